//! Appending to the log, and making things durable.
//!
//! One at a time appends: everything that waits goes into one frame and one write. Whoever waits for a record
//! does it, if the disk is quick; else a task does. One at a time syncs: everybody who asked before a sync
//! began is answered by it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Poll;

use bytes::{Bytes, BytesMut};

use super::runmap::{LogRecord, Place, Run};
use super::state::{Frame, Key, Log};
use super::{Inner, Plant, planted};
use crate::BLOCK_BYTES;
use crate::bits::BlockSet;
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

/// Data of the log.
#[derive(Debug)]
pub(crate) struct RunData {
    /// What was read, with its first blocks, in rising order.
    pub(crate) parts: Vec<(u16, Bytes)>,
    /// Blocks that read as something else than was written.
    pub(crate) wrong: BlockSet,
    /// Blocks that the medium did not give back, this time at least.
    pub(crate) unreadable: BlockSet,
}

impl RunData {
    /// Blocks that it lacks.
    pub(crate) fn missing(&self) -> BlockSet {
        let mut missing = self.wrong;
        missing.add(&self.unreadable);
        missing
    }
}

/// Why data of the log are not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// They have another checksum than the record says.
    Wrong,
    /// The medium does not give them back.
    Unreadable,
}

/// A writer that waits for room in the log, also one that gives up.
struct Waiting<'a>(&'a Inner);

impl<'a> Waiting<'a> {
    fn begin(inner: &'a Inner) -> Waiting<'a> {
        inner.state().log.waiting += 1;
        Waiting(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waiting = &mut self.0.state().log.waiting;
        *waiting = waiting.saturating_sub(1);
    }
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

/// What a sync covers.
struct SyncRound {
    /// Number of the last request that was made before it began.
    wanted: u64,
    /// The last sequence that was written before it began.
    written: u64,
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

    /// Bytes of that which only a write may fill that mends a loss: see `held_up`.
    fn kept_for_mending(&self) -> u64 {
        (self.log_capacity() / 32).max(4 * BLOCK_BYTES) / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Whether writers wait for room in the log, or are slowed down.
    pub(crate) fn is_log_short(&self, log: &Log) -> bool {
        let used = (log.head - log.tail + log.reserved) as f64;
        log.waiting > 0 || used / self.log_capacity() as f64 >= self.config.slow_above
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
        let first = records.first();
        let mends = first.is_some_and(|(record, _)| state.mends(record.volume, &records));
        for (record, data) in records {
            last = state.log.next_seq;
            state.log.next_seq += 1;
            let record = Arc::new(LogRecord::new(last, record, Place::Memory(data)));
            state.map_record(&record);
            state.log.queued_blocks += u64::from(record.record.data_blocks()).max(1);
            state.log.queue.push_back(record);
        }
        drop(state);
        if mends {
            self.upload_wake.notify_waiters();
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
        self.headers_room.notify_waiters();
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

    /// Begins a round, if anybody waits for a sync: `None` if not, or if the disk failed. Whoever asks or writes
    /// from here on waits for the next.
    fn begin_sync(&self) -> Option<SyncRound> {
        let wanted = self.state().syncs_wanted;
        let marks = self.marks.get();
        if marks.failed || marks.syncs >= wanted {
            return None;
        }
        let round = SyncRound { wanted, written: marks.written };
        if planted(Plant::NoSync) {
            self.end_sync(&round, Ok(()));
            return None;
        }
        Some(round)
    }

    /// Ends a round with what the disk said: answers whom it covers, or stops the cache.
    fn end_sync(&self, round: &SyncRound, result: Result<(), DiskError>) {
        if let Err(e) = result {
            return self.fail(&e);
        }
        let SyncRound { mut wanted, mut written } = *round;
        if planted(Plant::SyncCoversLater) {
            wanted = self.state().syncs_wanted;
            written = self.marks.get().written;
        }
        self.marks.change(|marks| {
            marks.syncs = marks.syncs.max(wanted);
            marks.durable = marks.durable.max(written);
        });
    }

    /// Syncs on this thread for as long as anybody wants it.
    fn sync_here(&self) {
        loop {
            while let Some(round) = self.begin_sync() {
                let Some(result) = self.disk.sync_now() else {
                    return;
                };
                self.end_sync(&round, result);
            }
            self.syncing.store(false, Ordering::Release);
            // Who asked since the last look found this thread syncing.
            let marks = self.marks.get();
            if marks.failed
                || marks.syncs >= self.state().syncs_wanted
                || self.syncing.swap(true, Ordering::AcqRel)
            {
                return;
            }
        }
    }

    /// The task that syncs, where the disk has no syncs on threads.
    pub(crate) async fn run_syncer(self: Arc<Inner>) {
        while !self.marks.get().failed {
            self.sync_wake.notified().await;
            while let Some(round) = self.begin_sync() {
                let result = self.disk.sync().await;
                self.end_sync(&round, result);
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

    /// Waits until `bytes` of log can be taken for `records`, and takes them. None means one of which only the place
    /// is known yet, and which changes what is there. The fuller the log, the longer each writer pauses, so that there
    /// is no cliff at its end. Fails once the volume is not served any more, where it would wait while the cache is
    /// being stopped, and where it would wait in vain.
    pub(crate) async fn reserve(
        &self,
        volume: u64,
        bytes: u64,
        records: &[(Record, Bytes)],
    ) -> Result<()> {
        let (scan_bytes, scan_records) = self.scan_limits();
        let count = records.len().max(1) as u64;
        let mut paused = false;
        loop {
            let room = self.space.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            self.serving(volume)?;
            let (goes_on, fits, has_room, fill, over_quota, is_stopping) = {
                let mut state = self.state();
                // What mends a loss does not wait for what does not come before that.
                let mends = state.mends(volume, records);
                let over_quota = !mends
                    && state.volumes.get(&volume).is_some_and(|v| {
                        v.page.dirty_quota > 0 && v.dirty_bytes() >= v.page.dirty_quota
                    });
                let kept = if mends { 0 } else { self.kept_for_mending() };
                let used = state.log.head - state.log.tail + state.log.reserved;
                let has_room = used + bytes + kept <= self.log_capacity();
                if let Some(error) = state.waits_in_vain(volume, mends, over_quota, has_room) {
                    return Err(error);
                }
                let is_stopping = state.is_stopping;
                let log = &mut state.log;
                let scanned = log.head - log.scan_at + log.reserved;
                let pending = log.next_seq - log.scan_seq;
                let fits = has_room
                    && scanned + bytes <= scan_bytes
                    && pending + count <= scan_records
                    && !over_quota;
                let fill = used as f64 / self.log_capacity() as f64;
                let goes_on = fits && (paused || mends || fill < self.config.slow_above);
                log.is_short |= !fits;
                if goes_on {
                    log.reserved += bytes;
                }
                (goes_on, fits, has_room, fill, over_quota, is_stopping)
            };
            if goes_on {
                if fill > 0.25 {
                    self.maintenance_wake.notify_one();
                }
                return Ok(());
            }
            if !fits && is_stopping {
                return Err(self.cut_short(volume));
            }
            let _waiting = (!has_room).then(|| Waiting::begin(self));
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

    /// Reads blocks of a run, from memory or the log, and checks them. Fails with the first block whose data are
    /// damaged.
    pub(crate) async fn read_run(&self, run: &Run) -> Result<Bytes> {
        if let Ok(data) = self.read_whole(run).await? {
            return Ok(data);
        }
        let mut whole = BytesMut::with_capacity(usize::from(run.count) * BLOCK_BYTES as usize);
        for block in alone(run) {
            let Ok(data) = self.read_whole(&block).await? else {
                let Record { volume, chunk, .. } = run.record.record;
                return Err(self.lost(Key { volume, chunk }, block.first));
            };
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    /// Reads runs, in rising order, and checks them. What was written together is read at once.
    pub(crate) async fn read_runs(&self, runs: &[Run]) -> Result<RunData> {
        let follows = |a: &Run, b: &Run| match (a.pos(), b.pos()) {
            // What lies behind another record's data begins no lap of its own: frames do not cross the end.
            (Some(a_pos), Some(b_pos)) => {
                a_pos + u64::from(a.count) * BLOCK_BYTES == b_pos
                    && !b_pos.is_multiple_of(self.layout.log_len)
            }
            _ => false,
        };
        let (wrong, unreadable) = (BlockSet::EMPTY, BlockSet::EMPTY);
        let mut found = RunData { parts: Vec::new(), wrong, unreadable };
        for group in runs.chunk_by(follows) {
            let together = match group {
                [first, _, ..] => {
                    let blocks = group.iter().map(|run| usize::from(run.count)).sum::<usize>();
                    let pos = first.pos().unwrap_or_default();
                    readable(self.read_log(pos, blocks * BLOCK_BYTES as usize).await)?.ok()
                }
                _ => None,
            };
            let mut from = 0;
            for run in group {
                let to = from + usize::from(run.count) * BLOCK_BYTES as usize;
                let part = together.as_ref().map(|data| data.slice(from..to));
                from = to;
                // Alone it is read again, past what memory has, and at last block by block.
                let part = match part.filter(|part| is_right(run, part)) {
                    Some(part) => Ok(part),
                    None => self.read_whole(run).await?,
                };
                if let Ok(part) = part {
                    found.parts.push((run.first, part));
                    continue;
                }
                for block in alone(run) {
                    match self.read_whole(&block).await? {
                        Ok(data) => found.parts.push((block.first, data)),
                        Err(Damage::Wrong) => found.wrong.insert(block.first),
                        Err(Damage::Unreadable) => found.unreadable.insert(block.first),
                    }
                }
            }
        }
        Ok(found)
    }

    /// Reads all blocks of a run at once. The inner error: the medium does not give them back as they were written.
    async fn read_whole(&self, run: &Run) -> Result<Result<Bytes, Damage>> {
        let bytes = usize::from(run.count) * BLOCK_BYTES as usize;
        let skip = usize::from(run.skip) * BLOCK_BYTES as usize;
        let pos = match run.record.place() {
            Place::Memory(data) => return Ok(Ok(data.slice(skip..skip + bytes))),
            Place::Log { data, .. } => data + skip as u64,
        };
        if let Ok(data) = readable(self.read_log(pos, bytes).await)?
            && is_right(run, &data)
        {
            return Ok(Ok(data));
        }
        // Memory may be at fault, and the medium not.
        let at = self.layout.log_at + pos % self.layout.log_len;
        let data = readable(self.disk.reread(at, bytes).await)?;
        Ok(data.and_then(|data| if is_right(run, &data) { Ok(data) } else { Err(Damage::Wrong) }))
    }

    async fn read_log(&self, pos: u64, len: usize) -> Result<Bytes, DiskError> {
        let at = self.layout.log_at + pos % self.layout.log_len;
        match self.disk.read_now(at, len) {
            Some(data) => Ok(data),
            None => self.disk.read(at, len).await,
        }
    }
}

/// The inner error is what the medium does not give back. Any other failure is the disk's.
fn readable(read: Result<Bytes, DiskError>) -> Result<Result<Bytes, Damage>> {
    match read {
        Ok(data) => Ok(Ok(data)),
        Err(DiskError::Unreadable { .. }) => Ok(Err(Damage::Unreadable)),
        Err(error) => Err(error.into()),
    }
}

/// The blocks of a run, each alone.
fn alone(run: &Run) -> impl Iterator<Item = Run> {
    (run.first..run.end()).filter_map(|block| run.cut(&(block..block + 1)))
}

/// Whether the data of a run have the checksums that its record has.
fn is_right(run: &Run, data: &[u8]) -> bool {
    let mut blocks = (run.first..).zip(data.chunks(BLOCK_BYTES as usize));
    blocks.all(|(block, data)| crate::format::crc32c(data) == run.crc(block))
}
