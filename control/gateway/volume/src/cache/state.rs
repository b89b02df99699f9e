//! What the cache knows in memory. One lock guards it; nobody holds that lock across I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OnceCell, RwLock};
use tokio::time::Instant;

use super::held_up::HeldUp;
use super::pages::Pages;
use super::refusal::Refusal;
use super::runmap::{LogRecord, RunMap};
use super::upload::Kept;
use crate::SlotId;
use crate::bits::BlockSet;
use crate::error::Result;
use crate::format::directory::Entry;
use crate::format::index::{Leaf, Node};
use crate::format::root::Root;
use crate::format::slot_header::SlotHeader;
use crate::format::volume_page::{VolumePage, VolumeState};
use crate::remote::ObjectVersion;
use crate::volume_name::VolumeName;

/// A chunk of a volume of this cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) volume: u64,
    pub(crate) chunk: u32,
}

/// A chunk of which the cache has something, or which somebody is fetching.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) slot: Option<SlotId>,
    /// Newest values in the log.
    pub(crate) log: RunMap,
    /// Records of `log` up to this sequence are in the slot already, and counted there.
    pub(crate) moved: u64,
    /// Values that a cut still needs and that newer ones displaced from `log`.
    pub(crate) frozen: RunMap,
    /// Changes whenever the chunk leaves its slot, so that what was fetched before is not put in after.
    pub(crate) generation: u32,
    /// Held for reading while the slot is read, for writing while slot or header change. There are many chunks, so
    /// it is made for the first who asks, and may go with the header once nobody has it.
    io: Option<Arc<RwLock<()>>>,
    /// Number of fetches under way.
    pub(crate) fetching: u32,
    /// Whether some of `log` could not be read when it was to move to the slot.
    pub(crate) unreadable: Option<Box<Unreadable>>,
}

/// Data of the log that the medium did not give back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unreadable {
    /// When that was found.
    pub(crate) since: Instant,
    /// When to read them again.
    pub(crate) again: Instant,
}

impl Chunk {
    /// Its lock.
    pub(crate) fn io(&mut self) -> Arc<RwLock<()>> {
        Arc::clone(self.io.get_or_insert_default())
    }

    /// Whether nobody holds its lock, nor is about to: then the lock goes.
    pub(crate) fn is_idle(&mut self) -> bool {
        if self.io.as_ref().is_some_and(|io| Arc::strong_count(io) > 1) {
            return false;
        }
        self.io = None;
        true
    }

    /// Whether somebody has its lock for writing, or for reading.
    #[cfg(test)]
    pub(crate) fn is_locked(&self) -> bool {
        self.io.as_ref().is_some_and(|io| io.try_write().is_err())
    }

    fn new(generation: u32) -> Chunk {
        Chunk {
            slot: None,
            log: RunMap::default(),
            moved: 0,
            frozen: RunMap::default(),
            generation,
            io: None,
            fetching: 0,
            unreadable: None,
        }
    }

    /// Blocks whose newest values are in the log.
    pub(crate) fn in_log(&self) -> BlockSet {
        let mut blocks = BlockSet::EMPTY;
        for run in self.log.iter() {
            blocks.insert_range(run.first..run.end());
        }
        blocks
    }

    /// Blocks of the log that are neither published, by that mark, nor in the slot.
    fn dirty_log(&self, published: u64) -> u64 {
        let dirty = self.log.iter().filter(|run| run.seq() > published.max(self.moved));
        dirty.map(|run| u64::from(run.count)).sum()
    }
}

/// A slot. Its directory entry is made of this.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) occupant: Option<Key>,
    /// What the directory says, or would if it were written now.
    pub(crate) entry: Entry,
    /// Whether a header that names the occupant was written.
    pub(crate) header_written: bool,
    /// Whether the header on disk was read and checked since the start.
    pub(crate) validated: bool,
    /// Copy of the header that is durable: 0 or 1. `None` until the headers are read for the first time
    /// since the start: nothing else tells.
    pub(crate) durable_copy: Option<u8>,
    /// Copy written since, and the number of the sync that makes it durable.
    pub(crate) written_copy: Option<(u8, u64)>,
    /// The header, if it is in memory.
    pub(crate) header: Option<Box<SlotHeader>>,
    /// Whether the header in memory is newer than the one on disk.
    pub(crate) stale: bool,
    /// Whether the header is being written. Until that is done the one on disk is older than the directory
    /// in memory says, and must not be read.
    pub(crate) being_written: bool,
    /// Whether the header calls blocks lost. `None` until it was in memory since the start.
    pub(crate) has_lost: Option<bool>,
    /// Whether it was used since the eviction's hand came by.
    pub(crate) visited: bool,
    /// Whether the directory page must be written.
    pub(crate) unlisted: bool,
}

impl Slot {
    /// Brings the entry up to date with the header. Where more or fewer blocks may be dirty or lost than before,
    /// the volume's count must follow: see [`State::summarize`].
    pub(crate) fn summarize(&mut self) {
        if let Some(header) = &self.header {
            let mut dirty = header.dirty;
            dirty.add(&header.lost);
            let mut valid = header.valid;
            valid.add(&header.lost);
            self.entry.dirty = dirty.summary();
            self.entry.dirty_blocks = dirty.len() as u16;
            self.entry.valid_blocks = valid.len() as u16;
            self.entry.generation = header.generation;
            self.entry.seq = header.seq;
            self.has_lost = Some(!header.lost.is_empty());
            self.unlisted = true;
        }
    }

    /// Whether the header in memory is to be written.
    pub(crate) fn is_newer_in_memory(&self) -> bool {
        self.stale && self.occupant.is_some() && self.header.is_some()
    }
}

/// A frame of the log.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) pos: u64,
    pub(crate) first_seq: u64,
    /// Sequence of its last record; 0 if it has none.
    pub(crate) last_seq: u64,
    pub(crate) records: Vec<Weak<LogRecord>>,
}

/// The log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) incarnation: u64,
    /// Records that wait to be written, in order of sequence.
    pub(crate) queue: VecDeque<Arc<LogRecord>>,
    /// Blocks of their data, and one for each that has none.
    pub(crate) queued_blocks: u64,
    pub(crate) next_seq: u64,
    /// First sequence that is in no frame yet.
    pub(crate) unframed_seq: u64,
    /// Position of the next frame.
    pub(crate) head: u64,
    /// What is below may be overwritten.
    pub(crate) tail: u64,
    /// Where a scan would begin.
    pub(crate) scan_at: u64,
    pub(crate) scan_seq: u64,
    /// Bytes promised to records that are not in a frame yet.
    pub(crate) reserved: u64,
    /// Whether a writer waits for room.
    pub(crate) is_short: bool,
    /// Number of writers that wait for bytes of it.
    pub(crate) waiting: usize,
    /// Since when the tail cannot move, since no slot is to be had for records, as of the last round.
    pub(crate) stuck_since: Option<Instant>,
    /// Whether that was found so often that only somebody from outside can change it.
    pub(crate) is_stuck: bool,
    pub(crate) frames: VecDeque<Frame>,
}

/// How long no slot must have been had for anything in the log before that is said to stay so: slots turn clean while a
/// round of destaging looks for them, and chunks that somebody reads are passed over. Rounds are a second apart at most.
const STUCK_FOR: Duration = Duration::from_secs(5);

impl Log {
    /// A slot was had for something in the log, or there may be one now.
    pub(crate) fn moves(&mut self) {
        (self.stuck_since, self.is_stuck) = (None, false);
    }

    /// No slot was had for anything. Returns whether that is known to stay so only now.
    pub(crate) fn is_stuck_still(&mut self, now: Instant) -> bool {
        let since = *self.stuck_since.get_or_insert(now);
        let is_stuck = now.duration_since(since) >= STUCK_FOR;
        is_stuck && !std::mem::replace(&mut self.is_stuck, is_stuck)
    }
}

/// A cut under way: see `upload`.
#[derive(Debug)]
pub(crate) struct Cut {
    /// What is in it: everything up to this sequence.
    pub(crate) seq: u64,
    /// The volume's size then.
    pub(crate) size: u64,
    /// Blocks that are not uploaded yet.
    pub(crate) pending: BTreeMap<u32, BlockSet>,
    /// Blocks of slots that turn clean with publication.
    pub(crate) uploaded: BTreeMap<u32, BlockSet>,
    /// Chunks that the log waits for.
    pub(crate) urgent: BTreeSet<u32>,
}

/// The remote side of a volume.
#[derive(Clone, Debug)]
pub(crate) struct RemoteRoot {
    pub(crate) root: Arc<Root>,
    pub(crate) version: ObjectVersion,
}

/// A volume.
#[derive(Debug)]
pub(crate) struct VolumeEntry {
    /// Which of the volume pages.
    pub(crate) page_index: u32,
    pub(crate) page: VolumePage,
    pub(crate) remote: Option<RemoteRoot>,
    /// The size that the volume is being shrunk to: nobody may write beyond it any more.
    pub(crate) shrinking_to: Option<u64>,
    /// Whether the root must be read again before the next cut.
    pub(crate) root_unsure: bool,
    pub(crate) cut: Option<Cut>,
    /// What a cut that failed leaves to the next one.
    pub(crate) kept: Kept,
    /// Blocks in slots that are dirty or lost: the sum of `dirty_blocks` of the entries of its slots.
    pub(crate) dirty_slots: u64,
    /// Blocks in the log that are not published.
    pub(crate) dirty_log: u64,
    /// Times that a block was needed whose only copy is damaged.
    pub(crate) lost: u64,
    /// What of that keeps it from being uploaded.
    pub(crate) held_up: HeldUp,
    /// Epoch of whoever superseded us.
    pub(crate) superseded_by: Option<u64>,
    /// Why requests are refused, if they are.
    pub(crate) refusing: Option<Refusal>,
    /// Held by the cut under way.
    pub(crate) uploading: Arc<tokio::sync::Mutex<()>>,
}

impl VolumeEntry {
    /// Size in bytes, as far as requests may reach.
    pub(crate) fn size(&self) -> u64 {
        self.shrinking_to.map_or(self.page.size, |size| size.min(self.page.size))
    }

    /// Whether all that the cache has of the volume is being dropped, or is to be.
    pub(crate) fn is_leaving(&self) -> bool {
        self.page.state == VolumeState::Gone
            || matches!(self.refusing, Some(Refusal::Deleting | Refusal::Forgetting))
    }

    /// Whether another gateway took the volume, so that what this cache has of it is only kept for export.
    pub(crate) fn is_in_quarantine(&self) -> bool {
        self.superseded_by.is_some() || self.page.state == VolumeState::Quarantined
    }

    pub(crate) fn dirty_bytes(&self) -> u64 {
        (self.dirty_slots + self.dirty_log) * crate::BLOCK_BYTES
    }
}

/// Blocks that somebody reads, changes and writes back.
#[derive(Debug)]
pub(crate) struct Rmw {
    pub(crate) id: u64,
    pub(crate) key: Key,
    pub(crate) block: u16,
}

/// One fetch that several readers may wait for, and what comes of it.
pub(crate) type Fetch = Arc<OnceCell<Result<Arc<Vec<super::fetch::Fetched>>>>>;

/// Everything.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) volumes: BTreeMap<u64, VolumeEntry>,
    /// Names of volumes that are being made or taken.
    pub(crate) claiming: BTreeSet<VolumeName>,
    pub(crate) next_volume: u64,
    /// For each volume page the copy that is newest, also where the volume is gone.
    pub(crate) page_copies: BTreeMap<u32, u8>,
    /// Highest generation of any volume page.
    pub(crate) page_generation: u64,
    pub(crate) chunks: BTreeMap<Key, Chunk>,
    pub(crate) slots: Vec<Slot>,
    /// Free slots whose headers are known.
    pub(crate) free: Vec<SlotId>,
    /// Free slots whose headers must be read before they are used.
    pub(crate) unchecked: Vec<SlotId>,
    /// Blocks that were published while the header was not in memory.
    pub(crate) cleaned: BTreeMap<Key, BlockSet>,
    pub(crate) hand: SlotId,
    pub(crate) headers_in_memory: usize,
    /// The slot where the search for headers to drop from memory goes on.
    pub(crate) header_hand: usize,
    pub(crate) next_generation: u32,
    pub(crate) log: Log,
    pub(crate) syncs_wanted: u64,
    pub(crate) superblock_generation: u64,
    pub(crate) checkpoint_area: u8,
    pub(crate) rmw: Vec<Rmw>,
    pub(crate) next_rmw: u64,
    pub(crate) fetches: BTreeMap<(Key, u16, u32), Fetch>,
    pub(crate) leaves: Pages<Leaf>,
    pub(crate) nodes: Pages<Node>,
    pub(crate) unknown_slots: u32,
    pub(crate) unvalidated: u32,
    /// Whether the cache is about to be closed: nobody is to wait for room any more.
    pub(crate) is_stopping: bool,
    pub(crate) counters: super::Counters,
}

impl State {
    /// All chunks of a cache that was just opened, in the order of their keys.
    pub(crate) fn chunks_in_slots(&mut self, places: impl Iterator<Item = (Key, SlotId)>) {
        let next = &mut self.next_generation;
        let chunks = places.map(|(key, slot)| {
            *next = next.wrapping_add(1);
            (key, Chunk { slot: Some(slot), ..Chunk::new(*next) })
        });
        self.chunks = chunks.collect();
    }

    /// The chunk's entry, made if there is none.
    pub(crate) fn chunk(&mut self, key: Key) -> &mut Chunk {
        let next = &mut self.next_generation;
        self.chunks.entry(key).or_insert_with(|| {
            *next = next.wrapping_add(1);
            Chunk::new(*next)
        })
    }

    /// Forgets the chunk's entry if it says nothing.
    pub(crate) fn forget_if_empty(&mut self, key: Key) {
        if let Some(chunk) = self.chunks.get(&key)
            && chunk.slot.is_none()
            && chunk.log.is_empty()
            && chunk.frozen.is_empty()
            && chunk.fetching == 0
        {
            self.chunks.remove(&key);
        }
    }

    /// A chunk's lock.
    pub(crate) fn io(&mut self, key: Key) -> Option<Arc<RwLock<()>>> {
        self.chunks.get_mut(&key).map(Chunk::io)
    }

    /// Whether `io` is the chunk's lock; `None` is that of a chunk of which nothing is here. A chunk that
    /// leaves the cache while somebody waits for its lock has another one when it comes back.
    pub(crate) fn is_lock_of(&self, key: Key, io: Option<&Arc<RwLock<()>>>) -> bool {
        match (self.chunks.get(&key), io) {
            (Some(chunk), Some(io)) => chunk.io.as_ref().is_some_and(|own| Arc::ptr_eq(own, io)),
            (None, _) => true,
            (Some(_), None) => false,
        }
    }

    pub(crate) fn slot(&mut self, slot: SlotId) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    /// The chunk's slot and header, if it has a slot whose header is in memory.
    pub(crate) fn header(&self, key: Key) -> Option<(SlotId, &SlotHeader)> {
        let slot = self.chunks.get(&key)?.slot?;
        Some((slot, self.slots.get(slot as usize)?.header.as_deref()?))
    }

    /// Whether the chunk has a slot whose header must be read first.
    pub(crate) fn needs_header(&self, key: Key) -> bool {
        self.chunks
            .get(&key)
            .and_then(|chunk| chunk.slot)
            .and_then(|slot| self.slots.get(slot as usize))
            .is_some_and(|slot| slot.header.is_none())
    }

    /// Puts records of sequence `record.seq` into the map. Records come in order of sequence.
    pub(crate) fn map_record(&mut self, record: &Arc<LogRecord>) {
        let (first, count) = (record.record.first, record.record.count);
        let run = super::runmap::Run { first, count, record: Arc::clone(record), skip: 0 };
        self.map_run(&run);
    }

    pub(crate) fn map_run(&mut self, run: &super::runmap::Run) {
        let key = Key { volume: run.record.record.volume, chunk: run.record.record.chunk };
        let chunk = self.chunk(key);
        let (displaced, moved) = (chunk.log.insert(run.clone()), chunk.moved);
        let Some(volume) = self.volumes.get_mut(&key.volume) else {
            return;
        };
        if volume.cut.is_some() || !volume.kept.is_empty() {
            volume.kept.written(key.chunk, run.first..run.end());
        }
        volume.held_up.written(key.chunk, run.first..run.end());
        let published = volume.page.published;
        if run.seq() > published {
            volume.dirty_log += u64::from(run.count);
        }
        let mut frozen = Vec::new();
        for old in displaced {
            if old.seq() > published.max(moved) {
                volume.dirty_log = volume.dirty_log.saturating_sub(u64::from(old.count));
            }
            if let Some(cut) = &volume.cut
                && old.seq() <= cut.seq
                && let Some(pending) = cut.pending.get(&key.chunk)
                && pending.intersects(old.first..old.end())
            {
                frozen.push(old);
            }
        }
        if !frozen.is_empty() && !super::planted(super::Plant::CutTakesNewest) {
            let chunk = self.chunk(key);
            for run in frozen {
                chunk.frozen.insert(run);
            }
        }
    }

    /// Counts the blocks in the log that are not published, after `published` changed.
    pub(crate) fn recount_log(&mut self, volume: u64) {
        let Some(published) = self.volumes.get(&volume).map(|v| v.page.published) else {
            return;
        };
        let chunks = self.chunks.iter().filter(|(key, _)| key.volume == volume);
        let dirty = chunks.map(|(_, chunk)| chunk.dirty_log(published)).sum();
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.dirty_log = dirty;
        }
    }

    /// Whether a checkpoint now would free space of the log.
    pub(crate) fn tail_may_move(&self) -> bool {
        let live = |frame: &&Frame| frame.records.iter().any(|r| Weak::strong_count(r) > 0);
        let oldest = self.log.frames.iter().find(live).map_or(self.log.head, |frame| frame.pos);
        oldest > self.log.tail
    }

    /// Forgets the chunk's records up to `seq`, which are in its slot.
    pub(crate) fn drop_destaged(&mut self, key: Key, seq: u64) {
        let Some(chunk) = self.chunks.get_mut(&key) else {
            return;
        };
        let volume = self.volumes.get_mut(&key.volume);
        let published = volume.as_ref().map_or(u64::MAX, |volume| volume.page.published);
        let before = chunk.dirty_log(published);
        chunk.log.remove_up_to(seq);
        chunk.frozen.remove_up_to(seq);
        let after = chunk.dirty_log(published);
        if let Some(volume) = volume {
            volume.dirty_log = (volume.dirty_log + after).saturating_sub(before);
        }
    }

    /// Counts the chunk's records up to `seq` in its slot, where they are now, and no more in the log.
    pub(crate) fn count_moved(&mut self, key: Key, seq: u64) {
        if let Some(chunk) = self.chunks.get_mut(&key)
            && let Some(volume) = self.volumes.get_mut(&key.volume)
        {
            let before = chunk.dirty_log(volume.page.published);
            chunk.moved = chunk.moved.max(seq);
            let after = chunk.dirty_log(volume.page.published);
            volume.dirty_log = (volume.dirty_log + after).saturating_sub(before);
        }
    }

    /// Brings a slot's entry up to date with its header, and with that what its volume counts as dirty.
    pub(crate) fn summarize(&mut self, slot: SlotId) {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        let before = u64::from(entry.entry.dirty_blocks);
        entry.summarize();
        let after = u64::from(entry.entry.dirty_blocks);
        if let Some(key) = entry.occupant
            && let Some(volume) = self.volumes.get_mut(&key.volume)
        {
            volume.dirty_slots = (volume.dirty_slots + after).saturating_sub(before);
        }
    }

    /// Turns blocks clean that were published, if the header is in memory; else remembers them.
    pub(crate) fn clean(&mut self, key: Key, blocks: &BlockSet) {
        self.cleaned.entry(key).or_insert(BlockSet::EMPTY).add(blocks);
        self.clean_published(key);
    }

    /// Applies what [`clean`](Self::clean) remembered.
    pub(crate) fn clean_published(&mut self, key: Key) {
        let Some(slot) = self.chunks.get(&key).and_then(|chunk| chunk.slot) else {
            self.cleaned.remove(&key);
            return;
        };
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        let Some(header) = &mut entry.header else {
            return;
        };
        if let Some(blocks) = self.cleaned.remove(&key) {
            header.dirty.subtract(&blocks);
            // What was damaged here after the cut had read it is in the store.
            header.lost.subtract(&blocks);
            entry.stale = true;
            self.summarize(slot);
        }
    }

    /// Makes `slot` a free one, whose free header may still have to become durable.
    pub(crate) fn vacate(&mut self, slot: SlotId) -> Option<Key> {
        let entry = self.slots.get_mut(slot as usize)?;
        let key = entry.occupant.take();
        if entry.header.take().is_some() {
            self.headers_in_memory = self.headers_in_memory.saturating_sub(1);
        }
        let dirty = u64::from(entry.entry.dirty_blocks);
        entry.entry = Entry { version: entry.entry.version, ..Entry::default() };
        entry.has_lost = None;
        entry.header_written = false;
        entry.stale = false;
        entry.visited = false;
        entry.unlisted = true;
        if let Some(key) = key {
            // Some are dirty only by a directory that was behind.
            if let Some(volume) = self.volumes.get_mut(&key.volume) {
                volume.dirty_slots = volume.dirty_slots.saturating_sub(dirty);
            }
            self.cleaned.remove(&key);
            self.next_generation = self.next_generation.wrapping_add(1);
            let generation = self.next_generation;
            if let Some(chunk) = self.chunks.get_mut(&key)
                && chunk.slot == Some(slot)
            {
                chunk.slot = None;
                chunk.generation = generation;
            }
            self.forget_if_empty(key);
        }
        key
    }
}
