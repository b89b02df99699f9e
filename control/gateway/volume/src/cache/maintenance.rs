//! The tasks that destage, evict and write checkpoints, that keep the headers in memory few, and that validate in the
//! background. All slot headers are written by who has the turn of the maintenance, so they are never written twice at
//! once.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::state::Key;
use crate::error::Result;

/// Chunks that the background validation reads the headers of at the same time.
const VALIDATED_AT_ONCE: usize = 16;
/// Pause of the background validation after a chunk that could not be validated.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Once it is gone the cache has ended: nothing is promised any more, and no checkpoint written.
struct End<'a>(&'a Inner);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.marks.change(|marks| marks.failed = true);
        self.0.space.notify_waiters();
        self.0.headers_room.notify_waiters();
    }
}

impl Inner {
    /// The maintenance task.
    pub(crate) async fn run_maintenance(self: Arc<Inner>) {
        loop {
            let idle =
                tokio::time::timeout(self.config.idle_destage, self.maintenance_wake.notified());
            let idle = idle.await.is_err();
            let _turn = self.maintenance.lock().await;
            if self.marks.get().failed {
                return;
            }
            if let Err(error) = self.maintain(idle).await {
                return self.fail(&error);
            }
        }
    }

    /// The task that writes headers where more are in memory than there should be.
    pub(crate) async fn run_headers(self: Arc<Inner>) {
        loop {
            self.headers_wake.notified().await;
            let _turn = self.maintenance.lock().await;
            if self.marks.get().failed {
                return;
            }
            if let Err(error) = self.write_headers_in_excess().await {
                return self.fail(&error);
            }
        }
    }

    /// Does what is due; with `idle`, also what could wait: what is there by now, since rounds for the few records
    /// that come meanwhile would never end, and sync the disk all the time.
    async fn maintain(&self, idle: bool) -> Result<()> {
        let next_seq = self.state().log.next_seq;
        loop {
            let (fill, scan, is_short, free, slots, is_old) = {
                let mut state = self.state();
                let is_short = std::mem::take(&mut state.log.is_short);
                let log = &state.log;
                let used = (log.head - log.tail + log.reserved) as f64;
                let (bytes, records) = self.scan_limits();
                let scan = ((log.head - log.scan_at + log.reserved) as f64 / bytes as f64)
                    .max((log.next_seq - log.scan_seq) as f64 / records as f64);
                let fill = used / self.log_capacity() as f64;
                let is_old = log.frames.front().is_some_and(|frame| frame.first_seq < next_seq);
                (fill, scan, is_short, state.free.len(), state.slots.len(), is_old)
            };
            let (low, high) = self.config.watermarks(slots);
            let mut free = free;
            while free < high && self.check_free().await? {
                free += 1;
            }
            if free < low {
                self.evict(high - free).await?;
            }
            let destage = fill > self.config.destage_above || idle && is_old;
            let destaged = if destage { self.destage(false).await? } else { 0 };
            // A checkpoint that frees nothing would only wake those who wait for room, and they this task.
            let frees = (fill > 0.5 || is_short) && self.state().tail_may_move();
            if destaged > 0 || scan > 0.5 || frees {
                self.checkpoint(false).await?;
            }
            self.write_headers_in_excess().await?;
            if destaged == 0 {
                let (free, unchecked) = {
                    let state = self.state();
                    (state.free.len(), state.unchecked.len())
                };
                if fill > self.config.destage_above && free + unchecked < low {
                    // What is in the slots is dirty: an upload helps.
                    self.upload_wake.notify_waiters();
                }
                return Ok(());
            }
        }
    }

    /// Destages everything, for a planned stop. Whatever comes of it, no checkpoint is written after that.
    pub(crate) async fn settle_all(&self) -> Result<()> {
        let _turn = self.maintenance.lock().await;
        // Before others have the turn, also where this is given up.
        let _end = End(self);
        while self.destage(true).await? > 0 {
            self.checkpoint(false).await?;
        }
        self.checkpoint(true).await?;
        Ok(())
    }

    /// One round of destaging and a checkpoint, whatever the fill.
    pub(crate) async fn destage_now(&self) -> Result<()> {
        let _turn = self.maintenance.lock().await;
        self.destage(false).await?;
        self.checkpoint(false).await?;
        Ok(())
    }

    /// Evicts, for tests and operators.
    pub(crate) async fn evict_now(&self, wanted: usize) -> Result<usize> {
        let _turn = self.maintenance.lock().await;
        self.evict(wanted).await
    }

    /// The task that validates what nobody accessed yet, some chunks at once. It pauses as long as it worked,
    /// so that clients have the disk at least half of the time.
    pub(crate) async fn run_validation(self: Arc<Inner>) {
        // The chunk that was looked at last; `None`: it begins again.
        let mut last = None;
        loop {
            let next = {
                let state = self.state();
                if state.unvalidated == 0 {
                    break;
                }
                let rest = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
                let found = state.chunks.range::<Key, _>(rest).filter(|(_, chunk)| {
                    let slot = chunk.slot.and_then(|slot| state.slots.get(slot as usize));
                    slot.is_some_and(|slot| !slot.validated)
                });
                found.map(|(key, _)| *key).take(VALIDATED_AT_ONCE).collect::<Vec<_>>()
            };
            if next.is_empty() {
                if last.is_none() {
                    break;
                }
                last = None;
                continue;
            }
            last = next.last().copied();
            let begun = tokio::time::Instant::now();
            let loads = next.iter().map(|key| self.load(*key));
            let loaded = futures_util::future::try_join_all(loads).await;
            if self.marks.get().failed {
                return;
            }
            let mut pause = begun.elapsed().max(self.config.validation_pause);
            if let Err(error) = loaded {
                // It may pass, as a want of memory does: these come again after all others.
                tracing::warn!(%error, "a chunk could not be validated");
                pause = pause.max(PAUSE_AFTER_FAILURE);
            }
            tokio::time::sleep(pause).await;
        }
        self.upload_wake.notify_waiters();
    }
}
