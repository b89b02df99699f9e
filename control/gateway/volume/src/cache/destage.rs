//! Moving records from the log into slots.
//!
//! The order is what makes it safe: the records are durable before a slot is touched; data and header are
//! durable before the records leave the map; the directory is durable (see `checkpoint.rs`) before their
//! space in the log is used again. A crash at any point leaves the record where recovery finds it.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::runmap::Run;
use super::state::{Key, State};
use super::{Inner, Plant, planted};
use crate::error::{Error, Result};
use crate::format::ZERO_BLOCK_CRC;
use crate::format::slot_header::SlotHeader;
use crate::{BLOCK_BYTES, SlotId};

/// Bytes of one round.
const ROUND_BYTES: u64 = 16 << 20;
/// Chunks of one round.
const ROUND_CHUNKS: usize = 64;

/// What one round takes out of a chunk.
struct Job {
    key: Key,
    runs: Vec<Run>,
    /// All records of the chunk up to here are in the slot afterwards.
    seq: u64,
}

impl Inner {
    /// Moves the oldest records, or all with `everything`, as far as slots and cuts allow. Returns how
    /// many chunks were written.
    pub(crate) async fn destage(&self, everything: bool) -> Result<usize> {
        let (jobs, through) = {
            let written = self.marks.get().written;
            let mut state = self.state();
            let jobs = choose(&mut state, everything, written);
            (jobs, state.log.next_seq.saturating_sub(1))
        };
        if jobs.is_empty() {
            return Ok(0);
        }
        if !planted(Plant::DestageBeforeSync) {
            // What displaced one of these records may be newer; it must not be lost either.
            self.make_durable(through).await?;
        }
        let mut done = Vec::new();
        for job in jobs {
            match self.destage_chunk(&job).await {
                Ok(true) => done.push((job.key, job.seq)),
                // No free slot, or nothing left to do.
                Ok(false) => {}
                Err(error @ Error::Lost { .. }) => {
                    tracing::error!(%error, "a record of the log cannot be moved to its slot");
                }
                Err(error) => return Err(error),
            }
        }
        if done.is_empty() {
            return Ok(0);
        }
        self.barrier().await?;
        #[cfg(test)]
        self.destaging.store(false, std::sync::atomic::Ordering::Relaxed);
        let mut state = self.state();
        for (key, seq) in &done {
            state.drop_destaged(*key, *seq);
            state.forget_if_empty(*key);
        }
        state.counters.destaged_chunks += done.len() as u64;
        Ok(done.len())
    }

    /// Writes one chunk's records into its slot. False if there is no slot to be had.
    async fn destage_chunk(&self, job: &Job) -> Result<bool> {
        let key = job.key;
        let Some(guard) = self.lock(key).await else {
            return Ok(false);
        };
        self.load_locked(key, &guard).await?;
        let Some(slot) = self.slot_for(key).await? else {
            return Ok(false);
        };
        for group in job.runs.chunk_by(|a, b| a.end() == b.first && a.is_zero() == b.is_zero()) {
            let Some(first) = group.first() else { continue };
            let at = self.block_at(slot, first.first);
            if first.is_zero() {
                let blocks = group.iter().map(|run| u64::from(run.count)).sum::<u64>();
                self.disk.punch(at, blocks * BLOCK_BYTES).await?;
            } else {
                self.write_disk(at, self.read_runs(group).await?).await?;
            }
            #[cfg(test)]
            self.destaging.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        {
            let mut state = self.state();
            if !apply(&mut state, key, slot, &job.runs, job.seq) {
                return Ok(false);
            }
        }
        self.write_header(slot).await?;
        Ok(true)
    }

    /// Writes in the background: here, if that is quick.
    pub(crate) async fn write_disk(&self, at: u64, parts: Vec<Bytes>) -> Result<()> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        if self.disk.is_quick(len) {
            self.disk.write_now(at, &parts)?;
        } else {
            self.disk.write(at, parts).await?;
        }
        Ok(())
    }

    /// The chunk's slot, or a free one that becomes its.
    async fn slot_for(&self, key: Key) -> Result<Option<SlotId>> {
        for attempt in 0..2 {
            {
                let mut state = self.state();
                if !state.volumes.contains_key(&key.volume) {
                    return Ok(None);
                }
                if let Some(slot) = state.chunks.get(&key).and_then(|chunk| chunk.slot) {
                    return Ok(Some(slot));
                }
                if let Some(slot) = self.take_free(&mut state, key, false) {
                    return Ok(Some(slot));
                }
            }
            if self.check_free().await?
                && let Some(slot) = self.take_free(&mut self.state(), key, false)
            {
                return Ok(Some(slot));
            }
            if attempt == 0 && self.evict(1).await? == 0 {
                break;
            }
        }
        Ok(None)
    }

    /// Gives a free slot to a chunk. Fills leave the last slots to what is dirty.
    pub(crate) fn take_free(&self, state: &mut State, key: Key, for_fill: bool) -> Option<SlotId> {
        if for_fill && state.free.len() <= self.config.slots_kept_for_writes(state.slots.len()) {
            return None;
        }
        let slot = state.free.pop()?;
        let generation = state.chunk(key).generation;
        let entry = state.slots.get_mut(slot as usize)?;
        let mut header = SlotHeader::empty(self.cache_id, slot, entry.entry.version);
        (header.volume, header.chunk, header.generation) = (key.volume, key.chunk, generation);
        entry.occupant = Some(key);
        entry.entry.volume = key.volume;
        entry.entry.chunk = key.chunk;
        entry.header = Some(Box::new(header));
        entry.header_written = false;
        entry.stale = true;
        entry.visited = false;
        entry.validated = true;
        entry.summarize();
        state.headers_in_memory += 1;
        state.chunk(key).slot = Some(slot);
        Some(slot)
    }
}

/// Chooses the chunks of the oldest records, of those up to sequence `written`.
fn choose(state: &mut State, everything: bool, written: u64) -> Vec<Job> {
    let mut keys = BTreeSet::new();
    let mut bytes = 0;
    let limit = if everything { u64::MAX } else { ROUND_BYTES };
    'frames: for frame in &state.log.frames {
        for record in frame.records.iter().filter_map(std::sync::Weak::upgrade) {
            let key = Key { volume: record.record.volume, chunk: record.record.chunk };
            if keys.insert(key)
                && let Some(chunk) = state.chunks.get(&key)
            {
                bytes += chunk.log.blocks() * BLOCK_BYTES;
            }
            if bytes >= limit || (keys.len() >= ROUND_CHUNKS && !everything) {
                break 'frames;
            }
        }
    }
    let mut jobs = Vec::new();
    for key in keys {
        let Some(chunk) = state.chunks.get(&key) else {
            continue;
        };
        let mut runs: Vec<Run> = chunk.log.iter().cloned().collect();
        if let Some(volume) = state.volumes.get_mut(&key.volume)
            && let Some(cut) = &mut volume.cut
            && let Some(pending) = cut.pending.get(&key.chunk)
            && runs
                .iter()
                .any(|run| run.seq() > cut.seq && pending.intersects(run.first..run.end()))
            && !planted(Plant::DestageOverCut)
        {
            // The slot's values are still to be uploaded: only what belongs to the cut may go there.
            cut.urgent.insert(key.chunk);
            runs.retain(|run| run.seq() <= cut.seq);
            runs.extend(chunk.frozen.iter().cloned());
        }
        // By the mark, which moves once for a whole frame: places are set one by one meanwhile, and one that
        // was passed over must not be below the highest one.
        runs.retain(|run| run.seq() <= written);
        runs.sort_by_key(|run| run.first);
        if let Some(seq) = runs.iter().map(Run::seq).max() {
            jobs.push(Job { key, runs, seq });
        }
    }
    jobs
}

/// Puts what was written to the slot into its header in memory.
fn apply(state: &mut State, key: Key, slot: SlotId, runs: &[Run], seq: u64) -> bool {
    let Some(volume) = state.volumes.get_mut(&key.volume) else {
        return false;
    };
    let published = volume.page.published;
    let Some(entry) = state.slots.get_mut(slot as usize).filter(|e| e.occupant == Some(key)) else {
        return false;
    };
    let Some(header) = &mut entry.header else {
        return false;
    };
    let before = u64::from(header.dirty.len());
    for run in runs {
        let dirty = run.seq() > published && !planted(Plant::CleanTooEarly);
        for block in run.first..run.end() {
            header.valid.insert(block);
            header.lost.remove(block);
            if let Some(crc) = header.crcs.get_mut(usize::from(block)) {
                *crc = if run.record.is_zero() { ZERO_BLOCK_CRC } else { run.crc(block) };
            }
            if run.record.is_zero() {
                header.zero.insert(block);
            } else {
                header.zero.remove(block);
            }
            if dirty {
                header.dirty.insert(block);
            } else {
                header.dirty.remove(block);
            }
            if let Some(cut) = &mut volume.cut
                && run.seq() > cut.seq
                && let Some(uploaded) = cut.uploaded.get_mut(&key.chunk)
                && !planted(Plant::CleanOverwritten)
            {
                uploaded.remove(block);
            }
        }
    }
    header.seq = header.seq.max(seq);
    let after = u64::from(header.dirty.len());
    volume.dirty_slots = (volume.dirty_slots + after).saturating_sub(before);
    entry.stale = true;
    entry.visited = true;
    entry.summarize();
    state.count_moved(key, seq);
    true
}
