//! What the log has that the slots have not: its map as of the last checkpoint, and its frames since then.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::super::runmap::{LogRecord, Place, Run};
use super::super::state::{Frame, Key, Log};
use super::super::{Plant, planted};
use super::{Recovery, WINDOW};
use crate::BLOCK_BYTES;
use crate::disk::DiskError;
use crate::error::{Error, Result};
use crate::format::checkpoint::{self, MappedRun};
use crate::format::crc32c;
use crate::format::log_frame::{Content, FrameHeader, MAX_RECORDS, Record};

/// How far beyond a gap to look for frames that prove it damage.
const LOOK_AHEAD: u64 = 4 << 20;

impl Recovery<'_> {
    pub(super) async fn log(&mut self) -> Result<()> {
        let sb = self.superblock;
        self.state.log = Log {
            next_seq: sb.scan_seq,
            unframed_seq: sb.scan_seq,
            head: sb.scan_at,
            tail: sb.tail,
            scan_at: sb.scan_at,
            scan_seq: sb.scan_seq,
            ..Log::default()
        };
        self.state.checkpoint_area = sb.checkpoint_area;
        match self.read_map().await? {
            Some(runs) => self.map(runs),
            None => {
                // The log itself is still there from its tail on.
                tracing::warn!("the map of the log is damaged; reading the log from its tail");
                if sb.tail < sb.scan_at {
                    self.state.log.head = sb.tail;
                    self.state.log.next_seq = 0;
                }
            }
        }
        self.scan().await
    }

    async fn read_map(&self) -> Result<Option<Vec<MappedRun>>> {
        let sb = &self.superblock;
        let at = sb.layout.checkpoint_at + u64::from(sb.checkpoint_area) * sb.layout.checkpoint_len;
        let len = sb.checkpoint_bytes.next_multiple_of(BLOCK_BYTES);
        let map = match self.disk.read(at, len as usize).await {
            Ok(map) => map.slice(..sb.checkpoint_bytes as usize),
            Err(error) => {
                tracing::warn!(%error, "the map of the log cannot be read");
                return Ok(None);
            }
        };
        if crc32c(&map) != sb.checkpoint_crc {
            return Ok(None);
        }
        Ok(checkpoint::parse(&map, sb.tail, sb.scan_at).ok())
    }

    fn map(&mut self, runs: Vec<MappedRun>) {
        let mut frames: BTreeMap<u64, Frame> = BTreeMap::new();
        let mut records = Vec::with_capacity(runs.len());
        for run in runs {
            let content = match &run.data {
                Some(data) => Content::Data(data.crcs.clone()),
                None if run.is_hole => Content::Trim,
                None => Content::Zeroes,
            };
            let record = Record {
                volume: run.volume,
                epoch: 0,
                chunk: run.chunk,
                first: run.first,
                count: run.count,
                content,
            };
            let data = run.data.as_ref().map_or(run.frame, |data| data.pos);
            let place = Place::Log { frame: run.frame, data };
            let record = Arc::new(LogRecord::new(run.seq, record, place));
            let frame = frames.entry(run.frame).or_insert_with(|| Frame {
                pos: run.frame,
                first_seq: run.seq,
                last_seq: run.seq,
                records: Vec::new(),
            });
            frame.first_seq = frame.first_seq.min(run.seq);
            frame.last_seq = frame.last_seq.max(run.seq);
            frame.records.push(Arc::downgrade(&record));
            records.push(record);
        }
        self.state.log.frames = frames.into_values().collect();
        // They come in the order of their sequences. Chunk by chunk, what is looked up for one is at hand for the next.
        records.sort_unstable_by_key(|record| {
            let Record { volume, chunk, first, .. } = record.record;
            (volume, chunk, first)
        });
        for record in &records {
            self.keep(record);
        }
    }

    /// Maps a record, unless its slot has it.
    fn keep(&mut self, record: &Arc<LogRecord>) {
        let key = Key { volume: record.record.volume, chunk: record.record.chunk };
        if !self.state.volumes.contains_key(&key.volume) {
            return;
        }
        let slot = self.state.chunks.get(&key).and_then(|chunk| chunk.slot);
        // A header may be there although its data are not; the directory is written after both.
        let in_slot = slot
            .filter(|slot| !self.rebuilt.contains(slot))
            .and_then(|slot| self.state.slots.get(slot as usize))
            .is_some_and(|slot| record.seq <= slot.entry.seq);
        if !in_slot {
            let (first, count) = (record.record.first, record.record.count);
            self.state.map_run(&Run { first, count, record: Arc::clone(record), skip: 0 });
        }
    }

    /// Reads the log from its head on, until the first gap: the end, or damage.
    async fn scan(&mut self) -> Result<()> {
        let sb = self.superblock;
        let limit = sb.tail + sb.layout.log_len;
        let mut window = Window { start: 0, data: Bytes::new() };
        let mut incarnation = 0;
        loop {
            let pos = self.state.log.head;
            let Some(header) = self.frame(&mut window, pos, limit, incarnation).await? else {
                break;
            };
            incarnation = header.incarnation;
            let mut data = pos + BLOCK_BYTES;
            let mut seq = header.first_seq;
            let mut records = Vec::new();
            let first_seq = if header.records.is_empty() { 0 } else { seq };
            for record in header.records {
                let blocks = u64::from(record.data_blocks());
                let place = Place::Log { frame: pos, data };
                let record = Arc::new(LogRecord::new(seq, record, place));
                records.push(Arc::downgrade(&record));
                self.keep(&record);
                data += blocks * BLOCK_BYTES;
                seq += 1;
            }
            let last_seq = if first_seq == 0 { 0 } else { seq - 1 };
            let log = &mut self.state.log;
            log.frames.push_back(Frame { pos, first_seq, last_seq, records });
            log.head += u64::from(header.blocks) * BLOCK_BYTES;
            log.next_seq = seq;
            log.unframed_seq = seq;
        }
        let log = &self.state.log;
        // Where the map is damaged, the log may not be readable from its tail to where the map ended. What others
        // name was there, too, however much is damaged.
        let is_short = log.head < sb.scan_at
            || log.next_seq < sb.scan_seq
            || log.next_seq <= self.newest_known();
        if is_short || self.goes_on(&mut window, limit).await? {
            self.give_up_the_rest()?;
        }
        Ok(())
    }

    /// The highest sequence that pages and directory name. They only name what was durable before.
    fn newest_known(&self) -> u64 {
        let pages = self.state.volumes.values().map(|volume| &volume.page);
        let published = pages.map(|page| page.published.max(page.attempted));
        let in_slots = self.state.slots.iter().map(|slot| slot.entry.seq);
        published.chain(in_slots).max().unwrap_or(0)
    }

    /// Goes on without what is damaged and what follows it, if that is accepted.
    fn give_up_the_rest(&mut self) -> Result<()> {
        let (sb, known) = (self.superblock, self.newest_known());
        let log = &mut self.state.log;
        let (pos, seq) = (log.head, log.next_seq);
        if !self.accept_loss {
            return Err(Error::LogDamaged { disk: self.disk.name(), pos, seq });
        }
        tracing::error!(pos, seq, "a durable part of the log is damaged, and given up");
        // Pages, slots and roots may name sequences of what is lost, and would call new records of them published or
        // moved: none is used again. The lost ones are no more than the log holds.
        let lost = sb.layout.log_len / BLOCK_BYTES * MAX_RECORDS as u64;
        log.head = log.head.max(sb.scan_at);
        log.next_seq = (log.next_seq.max(sb.scan_seq) + lost).max(known + 1);
        log.unframed_seq = log.next_seq;
        self.skips_sequences = true;
        Ok(())
    }

    /// The frame at `pos`, with its data checked, if it continues the log.
    async fn frame(
        &self,
        window: &mut Window,
        pos: u64,
        limit: u64,
        incarnation: u64,
    ) -> Result<Option<FrameHeader>> {
        let sb = &self.superblock;
        let ring = sb.layout.log_len;
        if pos + BLOCK_BYTES > limit {
            return Ok(None);
        }
        let Ok(header) = FrameHeader::parse(&window.read(self, pos, 1).await?) else {
            return Ok(None);
        };
        let expected = self.state.log.next_seq;
        let len = u64::from(header.blocks) * BLOCK_BYTES;
        let right_incarnation = if pos >= sb.incarnation_at {
            header.incarnation == sb.incarnation
        } else {
            header.incarnation >= incarnation && header.incarnation <= sb.incarnation
        };
        if header.cache_id != sb.cache_id
            || header.pos != pos
            || !right_incarnation
            || (header.first_seq != expected && expected != 0)
            || len > ring - pos % ring
            || pos + len > limit
        {
            return Ok(None);
        }
        if header.records.is_empty() {
            return Ok(Some(header));
        }
        let data = window.read(self, pos + BLOCK_BYTES, u64::from(header.blocks) - 1).await?;
        let mut blocks = data.chunks(BLOCK_BYTES as usize);
        for record in &header.records {
            if let Content::Data(crcs) = &record.content {
                for crc in crcs {
                    let whole = blocks.next().is_some_and(|block| crc32c(block) == *crc);
                    if !whole && !planted(Plant::NoDataCheck) {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(header))
    }

    /// A gap is the end of the log, unless a later frame says that what is missing was durable: whether one does.
    async fn goes_on(&self, window: &mut Window, limit: u64) -> Result<bool> {
        let sb = &self.superblock;
        let (gap, seq) = (self.state.log.head, self.state.log.next_seq);
        let mut pos = gap;
        let end = limit.min(gap + LOOK_AHEAD);
        while pos + BLOCK_BYTES <= end {
            if let Ok(header) = FrameHeader::parse(&window.read(self, pos, 1).await?)
                && header.cache_id == sb.cache_id
                && header.pos == pos
                && header.first_seq >= seq
                && header.durable_seq >= seq
                && (pos < sb.incarnation_at || header.incarnation == sb.incarnation)
            {
                return Ok(true);
            }
            pos += BLOCK_BYTES;
        }
        Ok(false)
    }
}

/// A part of the log in memory.
struct Window {
    start: u64,
    data: Bytes,
}

impl Window {
    /// `blocks` blocks at log position `pos`, which do not cross the end of the ring. What the medium does not
    /// give back is zeros: a gap.
    async fn read(&mut self, recovery: &Recovery<'_>, pos: u64, blocks: u64) -> Result<Bytes> {
        let layout = &recovery.superblock.layout;
        let len = blocks * BLOCK_BYTES;
        let inside = pos >= self.start && pos + len <= self.start + self.data.len() as u64;
        if !inside {
            let ring = layout.log_len;
            let rest = ring - pos % ring;
            let take = WINDOW.max(len).min(rest);
            let at = layout.log_at + pos % ring;
            self.start = pos;
            self.data = match recovery.disk.read(at, take as usize).await {
                Ok(data) => data,
                // One bad spot must not hide what lies around it.
                Err(DiskError::Unreadable { .. }) => {
                    match recovery.disk.read(at, len as usize).await {
                        Ok(data) => data,
                        Err(error @ DiskError::Unreadable { .. }) => {
                            tracing::warn!(pos, %error, "the log cannot be read");
                            Bytes::from(vec![0; len as usize])
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            };
        }
        let from = (pos - self.start) as usize;
        Ok(self.data.slice(from..from + len as usize))
    }
}
