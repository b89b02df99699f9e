//! Reading everything to see whether it is still right, and getting out what could not be uploaded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::state::Key;
use super::{Cache, Inner};
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

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
    /// With `accept_loss` unreadable slots are given up, and the store's word is taken for what they
    /// may have held.
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
        let mut state = self.inner.state();
        report.unknown_slots = state.unknown_slots;
        if accept_loss {
            state.unknown_slots = 0;
        }
        Ok(report)
    }

    /// Hands out, range by range, what a volume in quarantine has that was never uploaded. Nothing is
    /// changed; [`forget_volume`](Cache::forget_volume) ends the quarantine.
    pub fn export_quarantine(&self, name: &VolumeName) -> Result<QuarantineExport> {
        let volume = self.volume(name)?.id();
        if self.inner.serving(volume).is_ok() {
            return Err(Error::NotServed {
                volume: name.clone(),
                state: "served, not in quarantine",
            });
        }
        let state = self.inner.state();
        let range = Key { volume, chunk: 0 }..=Key { volume, chunk: u32::MAX };
        let keys: VecDeque<Key> = state.chunks.range(range).map(|(key, _)| *key).collect();
        drop(state);
        let inner = Arc::clone(&self.inner);
        Ok(QuarantineExport { inner, keys, runs: VecDeque::new(), ready: VecDeque::new() })
    }
}

/// What is left to export of a volume in quarantine, in rising order.
#[derive(Debug)]
pub struct QuarantineExport {
    inner: Arc<Inner>,
    keys: VecDeque<Key>,
    runs: VecDeque<(Key, Range<u16>)>,
    ready: VecDeque<QuarantinedRange>,
}

impl QuarantineExport {
    /// The next range, or `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<QuarantinedRange>> {
        loop {
            if let Some(range) = self.ready.pop_front() {
                return Ok(Some(range));
            }
            if let Some((key, run)) = self.runs.pop_front() {
                for piece in self.inner.read_as_of(key, run, u64::MAX).await? {
                    let at = u64::from(key.chunk) * CHUNK_BYTES;
                    let offset = at + u64::from(piece.first) * BLOCK_BYTES;
                    let len = u64::from(piece.count) * BLOCK_BYTES;
                    self.ready.push_back(QuarantinedRange { offset, data: piece.data, len });
                }
                continue;
            }
            let Some(key) = self.keys.pop_front() else {
                return Ok(None);
            };
            let runs = self.inner.dirty_blocks(key).await?.runs(256);
            self.runs.extend(runs.into_iter().map(|run| (key, run)));
        }
    }
}

impl Inner {
    /// Blocks of a chunk that are not in the store.
    async fn dirty_blocks(&self, key: Key) -> Result<BlockSet> {
        loop {
            self.load(key).await?;
            let state = self.state();
            if state.needs_header(key) {
                continue;
            }
            let published = state.volumes.get(&key.volume).map_or(0, |v| v.page.published);
            let mut dirty = state.header(key).map_or(BlockSet::EMPTY, |(_, header)| header.dirty);
            if let Some(chunk) = state.chunks.get(&key) {
                for run in chunk.log.iter() {
                    if run.seq() > published {
                        dirty.insert_range(run.first..run.end());
                    }
                }
            }
            return Ok(dirty);
        }
    }

    async fn scrub_chunk(&self, key: Key, report: &mut ScrubReport) -> Result<()> {
        report.chunks += 1;
        // A header that left memory again, or a chunk that left the cache and came back: look again.
        let (_guard, runs, slot) = loop {
            self.load(key).await?;
            let Some(io) = self.state().chunks.get(&key).map(|chunk| Arc::clone(&chunk.io)) else {
                return Ok(());
            };
            let guard = Arc::clone(&io).read_owned().await;
            let state = self.state();
            if state.needs_header(key) || !state.is_lock_of(key, Some(&io)) {
                continue;
            }
            let runs = state.chunks.get(&key).map(|c| c.log.iter().cloned().collect::<Vec<_>>());
            let slot = state.header(key).map(|(slot, header)| (slot, header.clone()));
            break (guard, runs.unwrap_or_default(), slot);
        };
        let mut in_log = BlockSet::EMPTY;
        for run in runs {
            in_log.insert_range(run.first..run.end());
            report.blocks += u64::from(run.count);
            if !run.record.is_zero()
                && let Err(error) = self.read_run(&run).await
            {
                report.lost.push(error);
            }
        }
        let Some((slot, header)) = slot else {
            return Ok(());
        };
        let mut stored = header.valid;
        stored.subtract(&header.zero);
        stored.subtract(&in_log);
        for block in header.lost.iter() {
            report.lost.push(self.lost(key, block));
        }
        for run in stored.runs(64) {
            let bytes = usize::from(run.end - run.start) * BLOCK_BYTES as usize;
            let data = self.disk.read(self.block_at(slot, run.start), bytes).await;
            for (i, block) in run.enumerate() {
                report.blocks += 1;
                let from = i * BLOCK_BYTES as usize;
                let whole = data.as_ref().is_ok_and(|data| {
                    data.get(from..from + BLOCK_BYTES as usize)
                        .is_some_and(|data| crc32c(data) == header.crc(block))
                });
                if whole {
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
