//! Moving records from the log into slots.
//!
//! The order is what makes it safe: the records are durable before a slot is touched; data and header are
//! durable before the records leave the map; the directory is durable (see `checkpoint.rs`) before their
//! space in the log is used again. A crash at any point leaves the record where recovery finds it.
//!
//! What of a record is damaged is moved as well: as a loss that the slot's header names, in the same order. So damage
//! holds nobody up, and is not forgotten. What the medium does not give back may be there later, as after a reset
//! of the device: it is read again for a while before it is called lost.

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::time::Instant;

use super::runmap::Run;
use super::state::{Key, State, Unreadable};
use super::{Inner, Plant, planted};
use crate::bits::BlockSet;
use crate::error::Result;
use crate::format::ZERO_BLOCK_CRC;
use crate::format::slot_header::SlotHeader;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS, SlotId};

/// Bytes of one round. Each has six syncs, of which five write little: with 16 MiB those took a third of the time.
const ROUND_BYTES: u64 = 64 << 20;
/// Chunks of one round.
const ROUND_CHUNKS: usize = 64;
/// Chunks of a round that have no slot, after one that found none for any.
const STUCK_CHUNKS: usize = 8;

/// Times that unreadable data of a chunk are read again before they are given up.
const REREADS: u32 = 12;

/// What one round takes out of a chunk.
struct Job {
    key: Key,
    runs: Vec<Run>,
    /// All records of the chunk up to here are in the slot afterwards.
    seq: u64,
}

/// How one round goes.
struct Round {
    /// Slots that may become dirty.
    room: usize,
    /// Whether no slot was to be had for some records.
    lacks_slots: bool,
}

impl Inner {
    /// Moves the oldest records, or all with `everything`, as far as slots and cuts allow. Returns how
    /// many chunks were written.
    pub(crate) async fn destage(&self, everything: bool) -> Result<usize> {
        let (jobs, through) = {
            let (written, now) = (self.marks.get().written, Instant::now());
            let mut state = self.state();
            let jobs = choose(&mut state, everything, written, now);
            (jobs, state.log.next_seq.saturating_sub(1))
        };
        if jobs.is_empty() {
            self.state().log.moves();
            return Ok(0);
        }
        if !planted(Plant::DestageBeforeSync) {
            // What displaced one of these records may be newer; it must not be lost either.
            self.make_durable(through).await?;
        }
        let mut round = Round { room: self.room_for_dirty(), lacks_slots: false };
        let done = self.write_slots(&jobs, &mut round).await;
        #[cfg(test)]
        self.destaging.store(false, std::sync::atomic::Ordering::Relaxed);
        let done = done?;
        let mut state = self.state();
        for (key, seq) in &done {
            state.drop_destaged(*key, *seq);
            state.forget_if_empty(*key);
        }
        state.counters.destaged_chunks += done.len() as u64;
        // What is clean and not validated yet can be evicted later.
        let is_stuck = round.lacks_slots
            && done.is_empty()
            && !state.tail_may_move()
            && state.unvalidated == 0;
        let is_news = if is_stuck {
            state.log.is_stuck_still(Instant::now())
        } else {
            state.log.moves();
            false
        };
        let helpless = if is_news { state.helpless() } else { Vec::new() };
        drop(state);
        if is_news {
            self.space.notify_waiters();
        }
        if !helpless.is_empty() {
            tracing::error!(
                volumes = %helpless.join(", "),
                "slots and log are full of what cannot be uploaded of these volumes: no volume takes writes for long"
            );
        }
        Ok(done.len())
    }

    /// Writes what the jobs take into the slots, durably. Returns which chunks were written, and up to which
    /// sequence.
    async fn write_slots(&self, jobs: &[Job], round: &mut Round) -> Result<Vec<(Key, u64)>> {
        let mut done = Vec::new();
        for job in jobs {
            if self.destage_chunk(job, round).await? {
                done.push((job.key, job.seq));
            }
            self.make_room_for_headers();
        }
        if !done.is_empty() {
            self.barrier().await?;
        }
        Ok(done)
    }

    /// How many slots more may become dirty.
    fn room_for_dirty(&self) -> usize {
        let state = self.state();
        let most = self.config.most_dirty_slots(state.slots.len());
        // There are no more dirty slots than dirty blocks; slots are many to count.
        let blocks: u64 = state.volumes.values().map(|volume| volume.dirty_slots).sum();
        if blocks < most as u64 / 2 {
            return most - blocks as usize;
        }
        let dirty = state.slots.iter().filter(|slot| slot.entry.dirty_blocks > 0).count();
        most.saturating_sub(dirty)
    }

    /// Whether the job makes a slot dirty that was not.
    fn adds_a_dirty_slot(&self, job: &Job) -> bool {
        let state = self.state();
        let published = state.volumes.get(&job.key.volume).map_or(0, |v| v.page.published);
        let slot = state.chunks.get(&job.key).and_then(|chunk| chunk.slot);
        let slot = slot.and_then(|slot| state.slots.get(slot as usize));
        slot.is_none_or(|slot| slot.entry.dirty_blocks == 0)
            && job.runs.iter().any(|run| run.seq() > published)
    }

    /// Writes one chunk's records into its slot. False if there is no slot to be had, if they cannot be read for now,
    /// or if nothing is left to do.
    async fn destage_chunk(&self, job: &Job, round: &mut Round) -> Result<bool> {
        let key = job.key;
        let Some(guard) = self.lock(key).await else {
            return Ok(false);
        };
        let unreadable =
            self.state().chunks.get(&key).and_then(|chunk| chunk.unreadable.as_deref().copied());
        let until = unreadable.map(|unreadable| unreadable.since + self.config.unreadable_for);
        let gives_up = until.is_some_and(|until| Instant::now() >= until);
        self.load_locked(key, &guard).await?;
        let adds_dirty = self.adds_a_dirty_slot(job);
        if adds_dirty && round.room == 0 && !self.goes_over_share(key.volume) {
            // The log keeps it, which slows writers; what makes room is an upload.
            self.upload_wake.notify_waiters();
            return Ok(false);
        }
        // Who found nothing to evict went round all slots: once in a round is enough.
        let Some(slot) = self.slot_for(key, !round.lacks_slots).await? else {
            round.lacks_slots = true;
            return Ok(false);
        };
        let mut damaged = BlockSet::EMPTY;
        for group in job.runs.chunk_by(|a, b| a.end() == b.first && a.is_zero() == b.is_zero()) {
            let Some(first) = group.first() else { continue };
            if first.is_zero() {
                let blocks = group.iter().map(|run| u64::from(run.count)).sum::<u64>();
                self.disk.punch(self.block_at(slot, first.first), blocks * BLOCK_BYTES).await?;
            } else if let Some(missing) = self.copy_to_slot(slot, group, gives_up).await? {
                damaged.add(&missing);
            } else {
                // The log keeps all of it, also what is in the slot already.
                self.read_later(key);
                return Ok(false);
            }
            #[cfg(test)]
            self.destaging.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        let lost = apply(&mut self.state(), job, slot, &damaged);
        let Some(lost) = lost else {
            return Ok(false);
        };
        self.write_header(slot).await?;
        round.room = round.room.saturating_sub(usize::from(adds_dirty));
        for blocks in lost.runs(CHUNK_BLOCKS) {
            let error = self.lost_range(key, &blocks);
            tracing::error!(%error, "data in the log are damaged");
        }
        Ok(true)
    }

    /// Writes data of neighbouring runs into a slot. Returns the blocks whose data in the log are damaged. `None`: some
    /// cannot be read and are not given up, and nothing was written.
    async fn copy_to_slot(
        &self,
        slot: SlotId,
        runs: &[Run],
        gives_up: bool,
    ) -> Result<Option<BlockSet>> {
        let found = self.read_runs(runs).await?;
        if !found.unreadable.is_empty() && !gives_up {
            return Ok(None);
        }
        let damaged = found.missing();
        let follows = |(a, data): &(u16, Bytes), (b, _): &(u16, Bytes)| {
            u64::from(b - a) * BLOCK_BYTES == data.len() as u64
        };
        for parts in found.parts.chunk_by(follows) {
            let Some((first, _)) = parts.first() else { continue };
            let data = parts.iter().map(|(_, data)| data.clone()).collect();
            self.write_disk(self.block_at(slot, *first), data).await?;
        }
        for blocks in damaged.runs(CHUNK_BLOCKS) {
            // What was there before is not the newest: no older header is to find it right.
            let bytes = u64::from(blocks.end - blocks.start) * BLOCK_BYTES;
            self.disk.punch(self.block_at(slot, blocks.start), bytes).await?;
        }
        Ok(Some(damaged))
    }

    /// Notes that data of a chunk in the log cannot be read, and when to read them again.
    fn read_later(&self, key: Key) {
        let (now, limit) = (Instant::now(), self.config.unreadable_for);
        let mut state = self.state();
        let Some(chunk) = state.chunks.get_mut(&key) else {
            return;
        };
        if chunk.unreadable.is_none() {
            tracing::warn!(
                chunk = key.chunk,
                seconds = limit.as_secs(),
                "data in the log cannot be read, and are read again until that is over"
            );
        }
        let since = chunk.unreadable.as_ref().map_or(now, |unreadable| unreadable.since);
        let again = (now + limit / REREADS).min(since + limit);
        chunk.unreadable = Some(Box::new(Unreadable { since, again }));
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

    /// The chunk's slot, or a free one that becomes its, if need be and `may_evict` one that is evicted.
    async fn slot_for(&self, key: Key, may_evict: bool) -> Result<Option<SlotId>> {
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
            if !may_evict || attempt == 0 && self.evict(1).await? == 0 {
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

/// Chooses the chunks of the oldest records, of those up to sequence `written`, without those that are to be read
/// again later than `now`. Where the last round found no slot, few that have none are chosen: one that lies in a slot
/// may make that free for others.
fn choose(state: &mut State, everything: bool, written: u64, now: Instant) -> Vec<Job> {
    let mut keys = BTreeSet::new();
    let mut bytes = 0;
    let limit = if everything { u64::MAX } else { ROUND_BYTES };
    let most_without = if state.log.stuck_since.is_some() { STUCK_CHUNKS } else { usize::MAX };
    let mut without_slot = 0;
    'frames: for frame in &state.log.frames {
        for record in frame.records.iter().filter_map(std::sync::Weak::upgrade) {
            let key = Key { volume: record.record.volume, chunk: record.record.chunk };
            let Some(chunk) = state.chunks.get(&key) else {
                continue;
            };
            if chunk.unreadable.as_ref().is_some_and(|unreadable| now < unreadable.again) {
                continue;
            }
            if chunk.slot.is_none() && !keys.contains(&key) {
                if without_slot == most_without {
                    continue;
                }
                without_slot += 1;
            }
            if keys.insert(key) {
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

/// Puts what was written to the slot into its header in memory, and what could not be had any more. Returns the
/// blocks that are lost: the store has those of `damaged` that are published. `None`: the slot is not the
/// chunk's.
fn apply(state: &mut State, job: &Job, slot: SlotId, damaged: &BlockSet) -> Option<BlockSet> {
    let key = job.key;
    let volume = state.volumes.get_mut(&key.volume)?;
    let published = volume.page.published;
    let entry = state.slots.get_mut(slot as usize).filter(|e| e.occupant == Some(key))?;
    let header = entry.header.as_mut()?;
    let mut lost = BlockSet::EMPTY;
    for run in &job.runs {
        let dirty = run.seq() > published && !planted(Plant::CleanTooEarly);
        for block in run.first..run.end() {
            header.valid.insert(block);
            header.lost.remove(block);
            if let Some(crc) = header.crcs.get_mut(usize::from(block)) {
                *crc = if run.record.is_zero() { ZERO_BLOCK_CRC } else { run.crc(block) };
            }
            header.zero.set(block, run.record.is_zero());
            header.hole.set(block, run.record.is_hole());
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
            if damaged.contains(block) {
                header.valid.remove(block);
                header.dirty.remove(block);
                if dirty {
                    header.lost.insert(block);
                    lost.insert(block);
                }
            }
        }
    }
    header.seq = header.seq.max(job.seq);
    entry.stale = true;
    entry.visited = true;
    state.summarize(slot);
    state.counters.damaged_blocks += u64::from(damaged.len() - lost.len());
    state.count_moved(key, job.seq);
    if let Some(chunk) = state.chunks.get_mut(&key) {
        chunk.unreadable = None;
    }
    Some(lost)
}
