//! How far something is that clients wait for: a bar where somebody watches, else lines in the log.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_volume::disk::{Disk, FileDisk};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, timeout};
use tracing::info;

/// Of what takes no longer nothing is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the log says that it goes on.
const SAY_EVERY: Duration = Duration::from_secs(5);
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
}

impl Measure<'_> {
    fn template(self) -> &'static str {
        match self {
            Self::Time => "{spinner} {msg}, {elapsed}",
            Self::Read(_) => "{spinner} {msg}, {bytes} read, {elapsed}",
            Self::Written(..) => "{msg} {wide_bar} {bytes}/{total_bytes} {eta}",
        }
    }

    fn show(self, bar: &ProgressBar) {
        match self {
            Self::Time => {}
            Self::Read(disk) => bar.set_position(disk.counts().read_bytes),
            Self::Written(disk, all) => {
                bar.set_length(all);
                bar.set_position(disk.counts().written_bytes.min(all));
            }
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
                info!(seconds = begun.elapsed().as_secs(), "not served yet: {what}");
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
