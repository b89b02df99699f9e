//! Appending to the log, and making things durable.
//!
//! One at a time appends: everything that waits goes into one frame and one write. Whoever waits for a record
//! does it, if the disk is quick; else a task does. One at a time syncs: everybody who asked before a sync
//! began is answered by it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;

use bytes::Bytes;

use super::runmap::{LogRecord, Place, Run};
use super::state::{Frame, Key};
use super::{Inner, Plant, planted};
use crate::BLOCK_BYTES;
use crate::disk::DiskError;
use crate::error::{Error, Result};
use crate::format::log_frame::{FrameHeader, MAX_RECORDS, Record};

/// How far the log is written and durable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// Every record up to this sequence is written.
    pub(crate) written: u64,
    /// Every record up to this sequence is durable.
    pub(crate) durable: u64,
    /// Number of the last request for a sync that was answered.
    pub(crate) syncs: u64,
    /// The disk failed; nothing more is promised.
    pub(crate) failed: bool,
}

/// Bytes of log that a record needs at most: it may get a frame of its own.
pub(crate) fn need(record: &Record) -> u64 {
    (1 + u64::from(record.data_blocks())) * BLOCK_BYTES
}

/// Lets whoever is ready go on first.
async fn yield_once() {
    let mut is_late = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut is_late, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A frame to be written.
struct NextFrame {
    pos: u64,
    parts: Vec<Bytes>,
    /// The records and where their data will be.
    places: Vec<(Weak<LogRecord>, u64)>,
    /// Sequence of its last record; 0 for a frame without any.
    last: u64,
}

impl Inner {
    /// Largest frame in bytes, header included. Two fit into the smallest log many times.
    pub(crate) fn max_frame(&self) -> u64 {
        (self.layout.log_len / 8).clamp(32 * BLOCK_BYTES, 2 << 20) / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Bytes of log that writers may fill. The rest is for the gap at the end of the ring.
    pub(crate) fn log_capacity(&self) -> u64 {
        self.layout.log_len - self.max_frame()
    }

    /// Bytes and records between two checkpoints.
    pub(crate) fn scan_limits(&self) -> (u64, u64) {
        (self.config.scan_bytes.min(self.layout.log_len / 2), self.config.scan_records)
    }

    /// Gives records their sequences, makes them visible to readers, and queues them. Returns the last
    /// sequence. The caller has reserved their space.
    pub(crate) fn append(&self, records: Vec<(Record, Bytes)>) -> u64 {
        let mut state = self.state();
        let mut last = state.log.next_seq.saturating_sub(1);
        for (record, data) in records {
            last = state.log.next_seq;
            state.log.next_seq += 1;
            let record = Arc::new(LogRecord::new(last, record, Place::Memory(data)));
            state.map_record(&record);
            state.log.queued_blocks += u64::from(record.record.data_blocks()).max(1);
            state.log.queue.push_back(record);
        }
        last
    }

    /// Sees to it that what waits is written: here, or by the task.
    fn write_queue(&self) {
        loop {
            if self.appending.swap(true, Ordering::AcqRel) {
                // Who appends looks again when that is done.
                return;
            }
            let is_left = self.write_quickly();
            self.appending.store(false, Ordering::Release);
            if is_left {
                return self.append_wake.notify_one();
            }
            if self.state().log.queue.is_empty() || self.marks.get().failed {
                return;
            }
        }
    }

    /// Writes what waits as long as the disk is quick. True if something is left.
    fn write_quickly(&self) -> bool {
        loop {
            let len = self.state().log.queued_blocks * BLOCK_BYTES;
            if len == 0 {
                return false;
            }
            if !self.disk.is_quick(len + BLOCK_BYTES) {
                return true;
            }
            let Some(frame) = self.next_frame() else {
                return false;
            };
            let at = self.layout.log_at + frame.pos % self.layout.log_len;
            let result = self.disk.write_now(at, &frame.parts);
            if !self.finish_frame(&frame, result) {
                return false;
            }
        }
    }

    /// Says that a frame is written. False if the cache stops.
    fn finish_frame(&self, frame: &NextFrame, result: std::result::Result<(), DiskError>) -> bool {
        if let Err(e) = result {
            self.fail(&e);
            return false;
        }
        for (record, data) in &frame.places {
            if let Some(record) = record.upgrade() {
                record.set_place(Place::Log { frame: frame.pos, data: *data });
            }
        }
        if frame.places.len() > 1 {
            // Records that share a header take less than was reserved for them.
            self.space.notify_waiters();
        }
        self.marks.change(|marks| marks.written = marks.written.max(frame.last));
        true
    }

    /// Waits until all records up to `seq` are written.
    pub(crate) async fn written(&self, seq: u64) -> Result<()> {
        if self.marks.get().written < seq {
            // Others may be about to append, too: one frame for all.
            yield_once().await;
            self.write_queue();
        }
        let marks = self.marks.wait(|marks| marks.failed || marks.written >= seq).await;
        if marks.failed { Err(self.stopped()) } else { Ok(()) }
    }

    /// Waits for a sync that begins now or later.
    pub(crate) async fn barrier(&self) -> Result<()> {
        let ticket = {
            let mut state = self.state();
            state.syncs_wanted += 1;
            state.syncs_wanted
        };
        self.start_sync();
        let marks = self.marks.wait(|marks| marks.failed || marks.syncs >= ticket).await;
        if marks.failed { Err(self.stopped()) } else { Ok(()) }
    }

    /// Makes everything up to `seq` durable.
    pub(crate) async fn make_durable(&self, seq: u64) -> Result<()> {
        self.written(seq).await?;
        if self.marks.get().durable >= seq {
            return Ok(());
        }
        self.barrier().await
    }

    /// Makes every record that has a sequence by now durable.
    pub(crate) async fn flush_all(&self) -> Result<u64> {
        let seq = self.state().log.next_seq.saturating_sub(1);
        self.make_durable(seq).await?;
        Ok(seq)
    }

    /// The error for everything after the disk failed.
    pub(crate) fn stopped(&self) -> Error {
        let cause = self.failure.get().cloned().unwrap_or_else(|| "it was closed".to_owned());
        Error::Stopped { cause }
    }

    /// Stops the cache: nothing is promised from here on, and nothing is tried again.
    pub(crate) fn fail(&self, cause: &dyn std::fmt::Display) {
        if self.failure.set(cause.to_string()).is_ok() {
            tracing::error!(%cause, "the cache stops");
        }
        self.marks.change(|marks| marks.failed = true);
        self.space.notify_waiters();
        self.maintenance_wake.notify_one();
    }

    pub(crate) fn check_running(&self) -> Result<()> {
        if self.marks.get().failed { Err(self.stopped()) } else { Ok(()) }
    }

    /// The task that appends what nobody could write at once.
    pub(crate) async fn run_appender(self: Arc<Inner>) {
        loop {
            self.append_wake.notified().await;
            if self.appending.swap(true, Ordering::AcqRel) {
                continue;
            }
            while let Some(mut frame) = self.next_frame() {
                if self.marks.get().failed {
                    return;
                }
                let at = self.layout.log_at + frame.pos % self.layout.log_len;
                let result = self.disk.write(at, std::mem::take(&mut frame.parts)).await;
                if !self.finish_frame(&frame, result) {
                    return;
                }
            }
            self.appending.store(false, Ordering::Release);
            if !self.state().log.queue.is_empty() {
                self.append_wake.notify_one();
            }
        }
    }

    /// Takes what waits, as much as fits into one frame, and says where to write it.
    fn next_frame(&self) -> Option<NextFrame> {
        let durable_seq = self.marks.get().durable;
        let mut state = self.state();
        let log = &mut state.log;
        let ring = self.layout.log_len;
        let rest = ring - log.head % ring;
        let mut blocks = 1;
        let mut taken: Vec<Arc<LogRecord>> = Vec::new();
        let mut waste = None;
        while let Some(record) = log.queue.front() {
            let more = u64::from(record.record.data_blocks());
            if taken.len() == MAX_RECORDS || (blocks + more) * BLOCK_BYTES > self.max_frame() {
                break;
            }
            if (blocks + more) * BLOCK_BYTES > rest {
                if taken.is_empty() {
                    waste = Some(rest);
                }
                break;
            }
            blocks += more;
            log.queued_blocks = log.queued_blocks.saturating_sub(more.max(1));
            taken.extend(log.queue.pop_front());
        }
        let header = |pos, first_seq, blocks: u64, records| FrameHeader {
            cache_id: self.cache_id,
            incarnation: log.incarnation,
            pos,
            first_seq,
            durable_seq,
            blocks: blocks as u32,
            records,
        };
        if let Some(waste) = waste {
            // The frame does not fit before the end of the ring: an empty one fills the gap.
            let pos = log.head;
            let pad = header(pos, log.unframed_seq, waste / BLOCK_BYTES, Vec::new());
            log.head += waste;
            log.frames.push_back(Frame { pos, first_seq: 0, last_seq: 0, records: Vec::new() });
            let parts = vec![Bytes::from(pad.emit())];
            return Some(NextFrame { pos, parts, places: Vec::new(), last: 0 });
        }
        let first = taken.first()?.seq;
        let last = taken.last()?.seq;
        let pos = log.head;
        let records = taken.iter().map(|record| record.record.clone()).collect();
        let mut parts = vec![Bytes::from(header(pos, first, blocks, records).emit())];
        let mut data = pos + BLOCK_BYTES;
        let mut places = Vec::new();
        for record in &taken {
            log.reserved = log.reserved.saturating_sub(need(&record.record));
            if let Place::Memory(bytes) = record.place()
                && !bytes.is_empty()
            {
                parts.push(bytes);
            }
            places.push((Arc::downgrade(record), data));
            data += u64::from(record.record.data_blocks()) * BLOCK_BYTES;
        }
        log.head += blocks * BLOCK_BYTES;
        log.unframed_seq = last + 1;
        let records = taken.iter().map(Arc::downgrade).collect();
        log.frames.push_back(Frame { pos, first_seq: first, last_seq: last, records });
        Some(NextFrame { pos, parts, places, last })
    }

    /// Sees to it that a sync begins now or when the one under way has ended.
    fn start_sync(&self) {
        if !self.disk.syncs_on_threads() {
            return self.sync_wake.notify_one();
        }
        if self.syncing.swap(true, Ordering::AcqRel) {
            // Who syncs looks again when that is done.
            return;
        }
        match self.this() {
            Ok(this) => drop(self.runtime.spawn_blocking(move || this.sync_here())),
            Err(_) => self.syncing.store(false, Ordering::Release),
        }
    }

    /// Syncs on this thread for as long as anybody wants it.
    fn sync_here(&self) {
        loop {
            loop {
                let wanted = self.state().syncs_wanted;
                let before = self.marks.get();
                if before.failed {
                    return;
                }
                if before.syncs >= wanted {
                    break;
                }
                match self.disk.sync_now() {
                    Some(Err(e)) => return self.fail(&e),
                    Some(Ok(())) => self.synced(wanted, before.written),
                    None => return,
                }
            }
            self.syncing.store(false, Ordering::Release);
            if self.marks.get().syncs >= self.state().syncs_wanted
                || self.syncing.swap(true, Ordering::AcqRel)
            {
                return;
            }
        }
    }

    /// A sync has ended that began when `wanted` were asked for and records up to `written` were written.
    fn synced(&self, wanted: u64, written: u64) {
        self.marks.change(|marks| {
            marks.syncs = marks.syncs.max(wanted);
            marks.durable = marks.durable.max(written);
        });
    }

    /// The task that syncs, where the disk has no syncs on threads.
    pub(crate) async fn run_syncer(self: Arc<Inner>) {
        loop {
            self.sync_wake.notified().await;
            loop {
                let wanted = self.state().syncs_wanted;
                let before = self.marks.get();
                if before.failed {
                    return;
                }
                if before.syncs >= wanted {
                    break;
                }
                if !planted(Plant::NoSync)
                    && let Err(e) = self.disk.sync().await
                {
                    return self.fail(&e);
                }
                self.synced(wanted, before.written);
            }
        }
    }

    /// The task that lets nothing stay un-synced for longer than configured.
    pub(crate) async fn run_ticker(self: Arc<Inner>) {
        loop {
            tokio::time::sleep(self.config.sync_interval / 2).await;
            let marks = self.marks.get();
            if marks.failed {
                return;
            }
            // What a request left behind that was given up.
            if !self.state().log.queue.is_empty() {
                self.append_wake.notify_one();
            }
            if marks.written > marks.durable && self.barrier().await.is_err() {
                return;
            }
        }
    }

    /// Waits until `bytes` of log and `records` can be taken, and takes them. The fuller the log, the
    /// longer each writer pauses, so that there is no cliff at its end.
    pub(crate) async fn reserve(&self, volume: u64, bytes: u64, records: u64) -> Result<()> {
        let (scan_bytes, scan_records) = self.scan_limits();
        let mut paused = false;
        loop {
            let room = self.space.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            self.check_running()?;
            let (fits, fill, over_quota) = {
                let mut state = self.state();
                let over_quota = state.volumes.get(&volume).is_some_and(|v| {
                    v.page.dirty_quota > 0 && v.dirty_bytes() >= v.page.dirty_quota
                });
                let log = &mut state.log;
                let used = log.head - log.tail + log.reserved;
                let scanned = log.head - log.scan_at + log.reserved;
                let pending = log.next_seq - log.scan_seq;
                let fits = used + bytes <= self.log_capacity()
                    && scanned + bytes <= scan_bytes
                    && pending + records <= scan_records
                    && !over_quota;
                let fill = used as f64 / self.log_capacity() as f64;
                log.is_short |= !fits;
                if fits && (paused || fill < self.config.slow_above) {
                    log.reserved += bytes;
                }
                (fits, fill, over_quota)
            };
            if fits && (paused || fill < self.config.slow_above) {
                if fill > 0.25 {
                    self.maintenance_wake.notify_one();
                }
                return Ok(());
            }
            // Records that wait to be written keep the room that they reserved.
            self.append_wake.notify_one();
            self.maintenance_wake.notify_one();
            if over_quota {
                self.upload_wake.notify_waiters();
            }
            if fits {
                let over = (fill - self.config.slow_above) / (1.0 - self.config.slow_above);
                tokio::time::sleep(self.config.longest_pause.mul_f64(over.clamp(0.0, 1.0))).await;
                paused = true;
            } else {
                room.await;
            }
        }
    }

    /// Reads blocks of a run, from memory or the log, and checks them.
    pub(crate) async fn read_run(&self, run: &Run) -> Result<Bytes> {
        let bytes = usize::from(run.count) * BLOCK_BYTES as usize;
        let skip = usize::from(run.skip) * BLOCK_BYTES as usize;
        match run.record.place() {
            Place::Memory(data) => Ok(data.slice(skip..skip + bytes)),
            Place::Log { data, .. } => {
                let pos = data + skip as u64;
                let data = self.read_log(pos, bytes).await?;
                if wrong_block(run, &data).is_none() {
                    return Ok(data);
                }
                // Memory may be at fault, and the medium not.
                let at = self.layout.log_at + pos % self.layout.log_len;
                let data = self.disk.reread(at, bytes).await?;
                match wrong_block(run, &data) {
                    None => Ok(data),
                    Some(block) => {
                        let Record { volume, chunk, .. } = run.record.record;
                        Err(self.lost(Key { volume, chunk }, block))
                    }
                }
            }
        }
    }

    /// Reads runs that lie in the log, and checks them. What is written together is read at once.
    pub(crate) async fn read_runs(&self, runs: &[Run]) -> Result<Vec<Bytes>> {
        let follows = |a: &Run, b: &Run| match (a.pos(), b.pos()) {
            // What lies behind another record's data begins no lap of its own: frames do not cross the end.
            (Some(a_pos), Some(b_pos)) => {
                a_pos + u64::from(a.count) * BLOCK_BYTES == b_pos
                    && !b_pos.is_multiple_of(self.layout.log_len)
            }
            _ => false,
        };
        let mut parts = Vec::new();
        for group in runs.chunk_by(follows) {
            let [first, _, ..] = group else {
                for run in group {
                    parts.push(self.read_run(run).await?);
                }
                continue;
            };
            let bytes = group.iter().map(|run| usize::from(run.count)).sum::<usize>();
            let pos = first.pos().unwrap_or_default();
            let data = self.read_log(pos, bytes * BLOCK_BYTES as usize).await?;
            let mut from = 0;
            for run in group {
                let to = from + usize::from(run.count) * BLOCK_BYTES as usize;
                let part = data.slice(from..to);
                // Alone it is read again, past what memory has.
                let is_right = wrong_block(run, &part).is_none();
                parts.push(if is_right { part } else { self.read_run(run).await? });
                from = to;
            }
        }
        Ok(parts)
    }

    async fn read_log(&self, pos: u64, len: usize) -> Result<Bytes> {
        let at = self.layout.log_at + pos % self.layout.log_len;
        match self.disk.read_now(at, len) {
            Some(data) => Ok(data),
            None => Ok(self.disk.read(at, len).await?),
        }
    }
}

/// The first block of a run whose checksum is wrong.
fn wrong_block(run: &Run, data: &[u8]) -> Option<u16> {
    let mut blocks = (run.first..).zip(data.chunks(BLOCK_BYTES as usize));
    blocks
        .find(|(block, data)| crate::format::crc32c(data) != run.crc(*block))
        .map(|(block, _)| block)
}
