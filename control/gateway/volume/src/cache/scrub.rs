//! Reading everything to see whether it is still right, and getting out what could not be uploaded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::state::Key;
use super::{Cache, Inner};
use crate::bits::BlockSet;
use crate::disk::{read_around, reread_around};
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Most blocks that one range of an export has.
const EXPORT_BLOCKS: u16 = 256;

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Chunks looked at.
    pub chunks: u64,
    /// Blocks whose checksums were compared.
    pub blocks: u64,
    /// Damaged blocks that the store has too; they are fetched again at their next use.
    pub clean_damaged: u64,
    /// What only this cache had and is damaged.
    pub lost: Vec<Error>,
    /// Slots of which nobody knows what they held.
    pub unknown_slots: u32,
}

/// A range that was written here and never uploaded.
#[derive(Clone, Debug)]
pub struct QuarantinedRange {
    /// First byte.
    pub offset: u64,
    /// Its bytes, or `None` for so many zeros.
    pub data: Option<Bytes>,
    /// Length in bytes.
    pub len: u64,
}

impl Cache {
    /// Reads every block of the cache and compares checksums. `progress` is told chunks done and all.
    /// With `accept_loss` unreadable slots are given up, durably, and the store's word is taken for what
    /// they may have held.
    pub async fn scrub(
        &self,
        accept_loss: bool,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<ScrubReport> {
        let keys: Vec<Key> = self.inner.state().chunks.keys().copied().collect();
        let mut report = ScrubReport::default();
        for (done, key) in keys.iter().enumerate() {
            self.inner.scrub_chunk(*key, &mut report).await?;
            progress(done as u64 + 1, keys.len() as u64);
        }
        report.unknown_slots = self.inner.state().unknown_slots;
        if accept_loss && report.unknown_slots > 0 {
            self.inner.accept_unknown().await?;
        }
        Ok(report)
    }

    /// Hands out, range by range, what a volume in quarantine has that was never uploaded, as far as it can be
    /// read: see [`QuarantineExport::lost`]. Nothing is changed; [`forget_volume`](Cache::forget_volume) ends
    /// the quarantine.
    pub fn export_quarantine(&self, name: &VolumeName) -> Result<QuarantineExport> {
        let volume = self.volume(name)?.id();
        if self.inner.serving(volume).is_ok() {
            return Err(Error::Served { volume: name.clone() });
        }
        let state = self.inner.state();
        let range = Key { volume, chunk: 0 }..=Key { volume, chunk: u32::MAX };
        let keys: VecDeque<Key> = state.chunks.range(range).map(|(key, _)| *key).collect();
        drop(state);
        let inner = Arc::clone(&self.inner);
        Ok(QuarantineExport {
            inner,
            keys,
            parts: VecDeque::new(),
            ready: VecDeque::new(),
            lost: Vec::new(),
        })
    }
}

/// Neighbouring blocks of a chunk that are to be exported, or whose only copy is damaged.
#[derive(Debug)]
struct Part {
    key: Key,
    blocks: Range<u16>,
    is_lost: bool,
}

/// What is left to export of a volume in quarantine, in rising order.
#[derive(Debug)]
pub struct QuarantineExport {
    inner: Arc<Inner>,
    keys: VecDeque<Key>,
    parts: VecDeque<Part>,
    ready: VecDeque<QuarantinedRange>,
    lost: Vec<Range<u64>>,
}

impl QuarantineExport {
    /// The next range, or `None` after the last one. What is damaged is passed over.
    pub async fn next(&mut self) -> Result<Option<QuarantinedRange>> {
        loop {
            if let Some(range) = self.ready.pop_front() {
                return Ok(Some(range));
            }
            if let Some(part) = self.parts.pop_front() {
                self.take(part).await?;
                continue;
            }
            let Some(key) = self.keys.pop_front() else {
                return Ok(None);
            };
            let (dirty, lost) = self.inner.unpublished(key).await?;
            let of = |blocks: &BlockSet, is_lost| {
                let runs = blocks.runs(EXPORT_BLOCKS).into_iter();
                runs.map(move |blocks| Part { key, blocks, is_lost })
            };
            self.parts.extend(of(&dirty, false).chain(of(&lost, true)));
            self.parts.make_contiguous().sort_by_key(|part| part.blocks.start);
        }
    }

    /// Bytes of the volume, in rising order, that were never uploaded and cannot be exported, since their only
    /// copy is damaged: those that [`next`](Self::next) has passed over so far.
    #[must_use]
    pub fn lost(&self) -> &[Range<u64>] {
        &self.lost
    }

    /// Slots of the cache of which nobody knows what they held. There may have been more of this volume.
    #[must_use]
    pub fn unknown_slots(&self) -> u32 {
        self.inner.state().unknown_slots
    }

    /// Reads a part, or notes that it is lost. One that is damaged somewhere is put back in halves.
    async fn take(&mut self, part: Part) -> Result<()> {
        let Part { key, blocks, is_lost } = part;
        let at = |block: u16| u64::from(key.chunk) * CHUNK_BYTES + u64::from(block) * BLOCK_BYTES;
        if is_lost {
            let (offset, end) = (at(blocks.start), at(blocks.end));
            match self.lost.last_mut() {
                Some(last) if last.end == offset => last.end = end,
                _ => self.lost.push(offset..end),
            }
            return Ok(());
        }
        match self.inner.read_as_of(key, blocks.clone(), u64::MAX).await {
            Ok(pieces) => {
                self.ready.extend(pieces.into_iter().map(|piece| QuarantinedRange {
                    offset: at(piece.first),
                    len: u64::from(piece.count) * BLOCK_BYTES,
                    data: piece.data,
                }));
            }
            Err(Error::Lost { .. }) if blocks.len() == 1 => {
                self.parts.push_front(Part { key, blocks, is_lost: true });
            }
            // One block of it at least. Which one the medium does not tell of what it cannot read.
            Err(Error::Lost { .. }) => {
                let middle = blocks.start + (blocks.end - blocks.start) / 2;
                for blocks in [middle..blocks.end, blocks.start..middle] {
                    self.parts.push_front(Part { key, blocks, is_lost: false });
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Inner {
    /// Takes the store's word for whatever slots held that cannot be read, durably.
    async fn accept_unknown(&self) -> Result<()> {
        let _turn = self.maintenance.lock().await;
        // Nobody takes that word before it is on the disk that it may be taken.
        let result = self.checkpoint_surely(Some(0)).await;
        match &result {
            Ok(()) => self.state().unknown_slots = 0,
            Err(Error::MapTooLong { .. }) => {}
            Err(error) => self.fail(error),
        }
        result
    }

    /// Blocks of a chunk that are not in the store, and those of them whose only copy is damaged.
    async fn unpublished(&self, key: Key) -> Result<(BlockSet, BlockSet)> {
        loop {
            self.load(key).await?;
            let state = self.state();
            if state.needs_header(key) {
                continue;
            }
            let published = state.volumes.get(&key.volume).map_or(0, |v| v.page.published);
            let (mut dirty, mut lost) = match state.header(key) {
                Some((_, header)) => (header.dirty, header.lost),
                None => (BlockSet::EMPTY, BlockSet::EMPTY),
            };
            if let Some(chunk) = state.chunks.get(&key) {
                lost.subtract(&chunk.in_log());
                for run in chunk.log.iter().filter(|run| run.seq() > published) {
                    dirty.insert_range(run.first..run.end());
                }
            }
            return Ok((dirty, lost));
        }
    }

    async fn scrub_chunk(&self, key: Key, report: &mut ScrubReport) -> Result<()> {
        report.chunks += 1;
        // A header that left memory again, or a chunk that left the cache and came back: look again.
        let (_guard, runs, in_log, published, slot) = loop {
            self.load(key).await?;
            let Some(io) = self.state().io(key) else {
                return Ok(());
            };
            let guard = Arc::clone(&io).read_owned().await;
            let state = self.state();
            if state.needs_header(key) || !state.is_lock_of(key, Some(&io)) {
                continue;
            }
            let Some(chunk) = state.chunks.get(&key) else {
                return Ok(());
            };
            let (runs, in_log) = (chunk.log.iter().cloned().collect::<Vec<_>>(), chunk.in_log());
            let published = state.volumes.get(&key.volume).map_or(0, |v| v.page.published);
            let slot = state.header(key).map(|(slot, header)| (slot, header.clone()));
            break (guard, runs, in_log, published, slot);
        };
        for run in runs {
            report.blocks += u64::from(run.count);
            if run.is_zero() {
                continue;
            }
            let damaged = self.read_runs(std::slice::from_ref(&run)).await?.missing();
            for block in damaged.iter() {
                if run.seq() > published {
                    report.lost.push(self.lost(key, block));
                } else {
                    report.clean_damaged += 1;
                }
            }
        }
        let Some((slot, header)) = slot else {
            return Ok(());
        };
        let stored = header.valid.without(&header.zero).without(&in_log);
        for block in header.lost.without(&in_log).iter() {
            report.lost.push(self.lost(key, block));
        }
        for run in stored.runs(64) {
            let bytes = usize::from(run.end - run.start) * BLOCK_BYTES as usize;
            let at = self.block_at(slot, run.start);
            // From the medium: what memory has of it says nothing about that.
            let data = match reread_around(self.disk.as_ref(), at, bytes).await {
                Ok(data) => data,
                // Direct I/O may ask for more than the cache's alignment.
                Err(_) => read_around(self.disk.as_ref(), at, bytes).await?,
            };
            for (i, block) in run.enumerate() {
                report.blocks += 1;
                let from = i * BLOCK_BYTES as usize;
                let data = data.get(from..from + BLOCK_BYTES as usize);
                if data.is_some_and(|data| crc32c(data) == header.crc(block)) {
                    continue;
                }
                if header.dirty.contains(block) {
                    report.lost.push(self.lost(key, block));
                } else {
                    report.clean_damaged += 1;
                }
            }
        }
        Ok(())
    }
}
