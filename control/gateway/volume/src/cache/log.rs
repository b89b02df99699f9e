//! Appending to the log, and making things durable.
//!
//! One task appends: everything that waits goes into one frame and one write. One task syncs: everybody
//! who asked before a sync began is answered by it.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::runmap::{LogRecord, Place};
use super::state::{Frame, Key};
use super::{Inner, Plant, planted};
use crate::BLOCK_BYTES;
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
            state.log.queue.push_back(record);
        }
        drop(state);
        self.append_wake.notify_one();
        last
    }

    /// Waits until all records up to `seq` are written.
    pub(crate) async fn written(&self, seq: u64) -> Result<()> {
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
        self.sync_wake.notify_one();
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

    /// The task that appends.
    pub(crate) async fn run_appender(self: Arc<Inner>) {
        loop {
            self.append_wake.notified().await;
            while let Some(frame) = self.next_frame() {
                if self.marks.get().failed {
                    return;
                }
                let at = self.layout.log_at + frame.pos % self.layout.log_len;
                if let Err(e) = self.disk.write(at, frame.parts).await {
                    return self.fail(&e);
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

    /// The task that syncs.
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
                self.marks.change(|marks| {
                    marks.syncs = wanted;
                    marks.durable = marks.durable.max(before.written);
                });
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
            let (fits, fill) = {
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
                (fits, fill)
            };
            if fits && (paused || fill < self.config.slow_above) {
                if fill > 0.25 {
                    self.maintenance_wake.notify_one();
                }
                return Ok(());
            }
            self.maintenance_wake.notify_one();
            self.upload_wake.notify_waiters();
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
    pub(crate) async fn read_run(&self, run: &super::runmap::Run) -> Result<Bytes> {
        let bytes = usize::from(run.count) * BLOCK_BYTES as usize;
        let skip = usize::from(run.skip) * BLOCK_BYTES as usize;
        match run.record.place() {
            Place::Memory(data) => Ok(data.slice(skip..skip + bytes)),
            Place::Log { data, .. } => {
                let at = self.layout.log_at + data % self.layout.log_len + skip as u64;
                let data = self.disk.read(at, bytes).await?;
                for (i, block) in data.chunks(BLOCK_BYTES as usize).enumerate() {
                    if crate::format::crc32c(block) != run.crc(run.first + i as u16) {
                        let record = &run.record.record;
                        let key = Key { volume: record.volume, chunk: record.chunk };
                        return Err(self.lost(key, run.first + i as u16));
                    }
                }
                Ok(data)
            }
        }
    }
}
