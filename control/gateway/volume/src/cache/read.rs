//! Reads: the log's map first, then the slot, else the store.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::RwLock;

use super::Inner;
use super::fetch::Patience;
use super::runmap::Run;
use super::state::Key;
use crate::bits::BlockSet;
use crate::disk::read_around;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES, SlotId};

/// Neighbouring blocks of a chunk and their content.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) first: u16,
    pub(crate) count: u16,
    /// `None`: zeros.
    pub(crate) data: Option<Bytes>,
}

/// A part of an answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes.
    Data(Bytes),
    /// So many zeros.
    Zeroes(u64),
}

impl Segment {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Segment::Data(data) => data.len() as u64,
            Segment::Zeroes(len) => *len,
        }
    }

    /// Whether it has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a run of blocks is to be had.
enum Source {
    Log(Run),
    Zeroes,
    Slot { slot: SlotId, crcs: Vec<u32>, dirty: bool },
    Missing,
    Lost,
}

impl Inner {
    /// Reads a range of bytes that lies within the volume.
    pub(crate) async fn read(&self, volume: u64, offset: u64, len: u64) -> Result<Vec<Segment>> {
        let end = offset + len;
        let patience = self.patience();
        let mut segments = Vec::new();
        let mut at = offset;
        while at < end {
            let chunk = (at / CHUNK_BYTES) as u32;
            let start = u64::from(chunk) * CHUNK_BYTES;
            let stop = end.min(start + CHUNK_BYTES);
            let first = ((at - start) / BLOCK_BYTES) as u16;
            let last = (stop - start).div_ceil(BLOCK_BYTES) as u16;
            let key = Key { volume, chunk };
            for piece in self.read_chunk(key, first..last, &patience).await? {
                let piece_at = start + u64::from(piece.first) * BLOCK_BYTES;
                let piece_end = piece_at + u64::from(piece.count) * BLOCK_BYTES;
                let (from, to) = (piece_at.max(at), piece_end.min(stop));
                match piece.data {
                    Some(data) => segments.push(Segment::Data(
                        data.slice((from - piece_at) as usize..(to - piece_at) as usize),
                    )),
                    None => match segments.last_mut() {
                        Some(Segment::Zeroes(len)) => *len += to - from,
                        _ => segments.push(Segment::Zeroes(to - from)),
                    },
                }
            }
            at = stop;
        }
        Ok(segments)
    }

    /// Reads blocks of a chunk: pieces in rising order, without a gap.
    pub(crate) async fn read_chunk(
        &self,
        key: Key,
        blocks: Range<u16>,
        patience: &Patience,
    ) -> Result<Vec<Piece>> {
        loop {
            self.check_running()?;
            self.load(key).await?;
            let io = self.state().io(key);
            let guard = match &io {
                Some(io) => Some(io.read().await),
                None => None,
            };
            let Some(plan) = self.plan(key, io.as_ref(), blocks.clone(), u64::MAX) else {
                continue;
            };
            let mut pieces = Vec::new();
            let mut missing = BlockSet::EMPTY;
            let mut bad = BlockSet::EMPTY;
            for (range, source) in plan {
                let (first, count) = (range.start, range.end - range.start);
                match source {
                    Source::Log(run) => {
                        let data = self.read_run(&run).await?;
                        pieces.push(Piece { first, count, data: Some(data) });
                    }
                    Source::Zeroes => pieces.push(Piece { first, count, data: None }),
                    Source::Missing => missing.insert_range(range),
                    Source::Lost => return Err(self.lost(key, first)),
                    Source::Slot { slot, crcs, dirty } => {
                        match self.read_slot(slot, first, &crcs).await {
                            Ok(data) => pieces.push(Piece { first, count, data: Some(data) }),
                            Err(damaged) if dirty => return Err(self.first_lost(key, &damaged)),
                            Err(damaged) => bad.add(&damaged),
                        }
                    }
                }
            }
            drop(guard);
            if !bad.is_empty() {
                // Clean blocks that are damaged here are whole in the store.
                self.forget_clean(key, &bad);
                continue;
            }
            drop(io);
            {
                let misses = u64::from(missing.len());
                let counters = &mut self.state().counters;
                counters.misses += misses;
                counters.hits += u64::from(blocks.end - blocks.start) - misses;
            }
            if !missing.is_empty() {
                match self.fetch(key, &missing, patience).await? {
                    Some(fetched) => pieces.extend(fetched),
                    None => continue,
                }
                pieces.sort_by_key(|piece| piece.first);
            }
            return Ok(pieces);
        }
    }

    /// Where `blocks` are to be had as of sequence `up_to`, in rising order. `None` to look again: the slot's
    /// header is not in memory any more, or the chunk left the cache and came back, so that the lock `io` is
    /// not its lock any more.
    fn plan(
        &self,
        key: Key,
        io: Option<&Arc<RwLock<()>>>,
        blocks: Range<u16>,
        up_to: u64,
    ) -> Option<Vec<(Range<u16>, Source)>> {
        let mut state = self.state();
        if state.needs_header(key) || !state.is_lock_of(key, io) {
            return None;
        }
        let mut plan: Vec<(Range<u16>, Source)> = Vec::new();
        let mut rest = BlockSet::EMPTY;
        rest.insert_range(blocks.clone());
        if let Some(chunk) = state.chunks.get(&key) {
            let newest = chunk.log.lookup(blocks.clone());
            let frozen = chunk.frozen.lookup(blocks.clone());
            let frozen = if up_to == u64::MAX { Vec::new() } else { frozen };
            for run in newest.into_iter().filter(|run| run.seq() <= up_to).chain(frozen) {
                let range = run.first..run.end();
                rest.remove_range(range.clone());
                let zero = run.record.is_zero();
                plan.push((range, if zero { Source::Zeroes } else { Source::Log(run) }));
            }
        }
        match state.header(key) {
            Some((slot, header)) => {
                let is_used = header.valid.intersects(blocks);
                for run in rest.runs(CHUNK_BLOCKS) {
                    plan_slot(&mut plan, slot, header, run);
                }
                if let Some(slot) = state.slot(slot).filter(|_| is_used) {
                    slot.visited = true;
                }
            }
            None => plan.extend(rest.runs(CHUNK_BLOCKS).into_iter().map(|r| (r, Source::Missing))),
        }
        plan.sort_by_key(|(range, _)| range.start);
        Some(plan)
    }

    /// Reads neighbouring blocks of a slot. Fails with those that are not as they should be: some if not all.
    async fn read_slot(&self, slot: SlotId, first: u16, crcs: &[u32]) -> Result<Bytes, BlockSet> {
        let at = self.block_at(slot, first);
        let bytes = crcs.len() * BLOCK_BYTES as usize;
        let wrong = |data: &Bytes| {
            let mut wrong = BlockSet::EMPTY;
            for ((block, data), crc) in (first..).zip(data.chunks(BLOCK_BYTES as usize)).zip(crcs) {
                if crc32c(data) != *crc {
                    wrong.insert(block);
                }
            }
            wrong
        };
        let read = match self.disk.read_now(at, bytes) {
            Some(data) => Ok(data),
            None => self.disk.read(at, bytes).await,
        };
        let read = match read {
            Ok(data) if wrong(&data).is_empty() => return Ok(data),
            // Memory may be at fault, and the medium not.
            Ok(data) => Ok(self.disk.reread(at, bytes).await.unwrap_or(data)),
            // One bad spot must not hide what lies around it.
            Err(error) => {
                tracing::warn!(slot, first, %error, "blocks of a slot cannot be read at once");
                read_around(self.disk.as_ref(), at, bytes).await
            }
        };
        let data = read.map_err(|error| {
            tracing::warn!(slot, first, %error, "blocks of a slot cannot be read");
            let mut all = BlockSet::EMPTY;
            all.insert_range(first..first + crcs.len() as u16);
            all
        })?;
        let damaged = wrong(&data);
        if damaged.is_empty() {
            tracing::warn!(slot, first, "blocks were wrong at first, and right when read again");
            return Ok(data);
        }
        let (block, blocks) = (damaged.iter().next(), damaged.len());
        tracing::warn!(slot, block, blocks, "checksums of blocks are wrong");
        Err(damaged)
    }

    /// The error for blocks whose only copies are damaged: it names the first and its neighbours.
    fn first_lost(&self, key: Key, damaged: &BlockSet) -> Error {
        let first = damaged.runs(CHUNK_BLOCKS).into_iter().next();
        self.lost_range(key, &first.unwrap_or(0..CHUNK_BLOCKS))
    }

    /// Clean blocks that turned out damaged are missing from now on.
    fn forget_clean(&self, key: Key, bad: &BlockSet) {
        let mut state = self.state();
        let Some(slot) = state.chunks.get(&key).and_then(|chunk| chunk.slot) else {
            return;
        };
        if let Some(entry) = state.slot(slot)
            && let Some(header) = &mut entry.header
        {
            let mut bad = *bad;
            bad.subtract(&header.dirty);
            header.valid.subtract(&bad);
            header.zero.subtract(&bad);
            header.hole.subtract(&bad);
            entry.stale = true;
        }
        state.counters.damaged_blocks += u64::from(bad.len());
    }

    /// Reads blocks as they were at sequence `up_to`, for an upload. All are in the cache.
    pub(crate) async fn read_as_of(
        &self,
        key: Key,
        blocks: Range<u16>,
        up_to: u64,
    ) -> Result<Vec<Piece>> {
        loop {
            self.check_running()?;
            self.load(key).await?;
            let Some(io) = self.state().io(key) else {
                return Err(self.lost(key, blocks.start));
            };
            let guard = io.read().await;
            let Some(plan) = self.plan(key, Some(&io), blocks.clone(), up_to) else {
                continue;
            };
            let mut pieces = Vec::new();
            for (range, source) in plan {
                let (first, count) = (range.start, range.end - range.start);
                let data = match source {
                    Source::Log(run) => Some(self.read_run(&run).await?),
                    Source::Zeroes => None,
                    Source::Slot { slot, crcs, .. } => Some(
                        self.read_slot(slot, first, &crcs)
                            .await
                            .map_err(|damaged| self.first_lost(key, &damaged))?,
                    ),
                    Source::Missing | Source::Lost => return Err(self.lost(key, first)),
                };
                pieces.push(Piece { first, count, data });
            }
            drop(guard);
            return Ok(pieces);
        }
    }
}

fn plan_slot(
    plan: &mut Vec<(Range<u16>, Source)>,
    slot: SlotId,
    header: &crate::format::slot_header::SlotHeader,
    blocks: Range<u16>,
) {
    for block in blocks {
        let (dirty, next) = (header.dirty.contains(block), block + 1);
        let source = if header.lost.contains(block) {
            Source::Lost
        } else if header.zero.contains(block) {
            Source::Zeroes
        } else if header.valid.contains(block) {
            Source::Slot { slot, crcs: vec![header.crc(block)], dirty }
        } else {
            Source::Missing
        };
        match (plan.last_mut(), source) {
            (
                Some((range, Source::Slot { slot: s, crcs, dirty: d })),
                Source::Slot { slot: s2, crcs: more, dirty: d2 },
            ) if range.end == block && *s == s2 && *d == d2 => {
                crcs.extend(more);
                range.end = next;
            }
            (Some((range, Source::Zeroes)), Source::Zeroes)
            | (Some((range, Source::Missing)), Source::Missing)
                if range.end == block =>
            {
                range.end = next;
            }
            (_, source) => plan.push((block..next, source)),
        }
    }
}
