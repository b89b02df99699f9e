//! How far something is that clients wait for, or whoever stops the gateway: a bar where somebody watches, else lines
//! in the log.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_volume::Cache;
use culvert_volume::disk::{Disk, FileDisk};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, timeout};
use tracing::info;

/// Of what takes no longer nothing is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the log says that it goes on.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How often a bar moves.
const MOVE_EVERY: Duration = Duration::from_millis(250);

/// The bar that is shown; lines of the log go above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tells how far it is.
#[derive(Clone, Copy, Debug)]
pub enum Measure<'a> {
    /// Nothing but the time.
    Time,
    /// Bytes read from a disk; nobody knows beforehand of how many.
    Read(&'a FileDisk),
    /// Bytes written to a disk, of so many.
    Written(&'a FileDisk, u64),
    /// Bytes of a cache's log that moved to their places. See [`Measure::of_log`].
    Moved {
        /// The cache.
        cache: &'a Cache,
        /// Bytes that were in the log at first.
        all: u64,
        /// Bytes that were written to the disk until then.
        written_before: u64,
    },
}

impl<'a> Measure<'a> {
    /// What moves from now on of what is in the cache's log.
    ///
    /// The log itself is shorter only after a checkpoint, which may come at the very end. Until then what was written
    /// to the disk is taken for it. That is not exact: a header comes with every chunk, and what was overwritten in
    /// the log does not move.
    pub fn of_log(cache: &'a Cache) -> Self {
        let status = cache.status();
        Self::Moved { cache, all: status.log.1, written_before: status.disk.written_bytes }
    }

    fn template(self) -> &'static str {
        match self {
            Self::Time => "{spinner} {msg}, {elapsed}",
            Self::Read(_) => "{spinner} {msg}, {bytes} read, {elapsed}",
            Self::Written(..) | Self::Moved { .. } => {
                "{msg} {wide_bar} {bytes}/{total_bytes} {eta}"
            }
        }
    }

    /// Bytes that are done, and how many there are, if that is known.
    fn share(self) -> Option<(u64, u64)> {
        let (done, all) = match self {
            Self::Time | Self::Read(_) => return None,
            Self::Written(disk, all) => (disk.counts().written_bytes, all),
            Self::Moved { cache, all, written_before } => {
                let status = cache.status();
                let written = status.disk.written_bytes.saturating_sub(written_before);
                (written.max(all.saturating_sub(status.log.1)), all)
            }
        };
        Some((done.min(all), all))
    }

    /// Bytes that are not done, if that is known.
    fn left_bytes(self) -> Option<u64> {
        self.share().map(|(done, all)| all - done)
    }

    fn show(self, bar: &ProgressBar) {
        if let Self::Read(disk) = self {
            bar.set_position(disk.counts().read_bytes);
        }
        if let Some((done, all)) = self.share() {
            bar.set_length(all);
            bar.set_position(done);
        }
    }
}

/// Does what must be done before anybody is served, and from a second on tells that it goes on: on a terminal
/// by a bar, else in the log from time to time.
pub async fn telling<T>(
    what: &'static str,
    measure: Measure<'_>,
    work: impl Future<Output = T>,
) -> T {
    tell("not served yet", what, measure, work).await
}

/// Does what a planned stop waits for, and tells of it in the same way.
pub async fn telling_of_stop<T>(
    what: &'static str,
    measure: Measure<'_>,
    work: impl Future<Output = T>,
) -> T {
    tell("not stopped yet", what, measure, work).await
}

async fn tell<T>(
    waiting: &'static str,
    what: &'static str,
    measure: Measure<'_>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    let begun = Instant::now();
    if let Ok(done) = timeout(PATIENCE, &mut work).await {
        return done;
    }
    let bar = Bar::on_terminal(what, measure);
    loop {
        let pause = match &bar {
            Some(Bar(bar)) => {
                measure.show(bar);
                MOVE_EVERY
            }
            None => {
                let (seconds, left_bytes) = (begun.elapsed().as_secs(), measure.left_bytes());
                info!(seconds, left_bytes, "{waiting}: {what}");
                SAY_EVERY
            }
        };
        if let Ok(done) = timeout(pause, &mut work).await {
            return done;
        }
    }
}

/// A bar on standard error. Gone with the value.
struct Bar(ProgressBar);

impl Bar {
    /// `None` if standard error is no terminal that can draw one.
    fn on_terminal(what: &'static str, measure: Measure<'_>) -> Option<Self> {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if bar.is_hidden() {
            return None;
        }
        if let Ok(style) = ProgressStyle::with_template(measure.template()) {
            bar.set_style(style);
        }
        bar.set_message(what);
        measure.show(&bar);
        bar.enable_steady_tick(MOVE_EVERY);
        *shown() = Some(bar.clone());
        Some(Self(bar))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        *shown() = None;
        self.0.finish_and_clear();
    }
}

/// Standard error for the log. A bar that is shown makes way for each line.
#[derive(Debug)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &*shown() {
            Some(bar) => bar.suspend(|| io::stderr().write(line)),
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use culvert_volume::disk::sim::SimDisk;
    use culvert_volume::remote::sim::SimStore;
    use culvert_volume::{Config, VolumeName, VolumeOptions};

    use super::*;

    #[tokio::test]
    async fn all_of_a_log_is_left_at_first_and_nothing_at_the_end() {
        let (disk, store) = (Arc::new(SimDisk::new(64 << 20, 1)), Arc::new(SimStore::new(1)));
        // Nothing moves by itself.
        let hour = Duration::from_secs(3600);
        let config = Config { idle_destage: hour, upload_interval: hour, ..Config::default() };
        let cache = Cache::create(disk, store, 8 << 20, config).await.unwrap();
        let (name, options) = (VolumeName::new("vol").unwrap(), VolumeOptions::default());
        let volume = cache.create_volume(&name, 8 << 20, options).await.unwrap();
        volume.write(0, Bytes::from(vec![1; 1 << 20]), true).await.unwrap();
        let measure = Measure::of_log(&cache);
        let (done, all) = measure.share().unwrap();
        assert!(done == 0 && all > 1 << 20, "{done} of {all}");
        assert_eq!(measure.left_bytes(), Some(all));
        cache.close_shared().await.unwrap();
        assert_eq!(measure.left_bytes(), Some(0));
    }
}
