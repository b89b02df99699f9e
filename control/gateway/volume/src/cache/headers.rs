//! Slot headers: reading and checking them at first access, and writing them so that a torn write takes
//! nothing.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedRwLockWriteGuard;
use tokio::task::coop::consume_budget;

use super::state::{Chunk, Key, Slot, State};
use super::{Inner, Plant, planted};
use crate::SlotId;
use crate::bits::BlockSet;
use crate::disk::{Disk, DiskError, read_around};
use crate::error::{Error, Result};
use crate::format::FormatError;
use crate::format::slot_header::{HEADER_BYTES, SLOT_BYTES, SlotHeader};
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Slots that are looked at for a header to drop, each time that one is read beyond the number to keep.
const HEADERS_LOOKED_AT: usize = 1024;

/// Longest wait for room for one header more.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What the two copies of a slot's header say.
#[derive(Debug)]
pub(crate) struct Copies {
    /// The newest one that is whole, and which copy it is.
    pub(crate) best: Option<(u8, SlotHeader)>,
    /// Whether a copy is there that is not whole.
    pub(crate) broken: bool,
}

impl Copies {
    /// Reads both copies, which begin at `at`.
    pub(crate) async fn read(
        disk: &dyn Disk,
        at: u64,
        cache_id: u64,
        slot: SlotId,
    ) -> Result<Copies> {
        let both = read_around(disk, at, 2 * HEADER_BYTES).await?;
        let copies = Copies::parse(&both, cache_id, slot);
        if !copies.broken {
            return Ok(copies);
        }
        // Memory may be at fault, and the medium not.
        match disk.reread(at, 2 * HEADER_BYTES).await {
            Ok(both) => Ok(Copies::parse(&both, cache_id, slot)),
            Err(DiskError::Unreadable { .. }) => Ok(copies),
            Err(error) => Err(error.into()),
        }
    }

    fn parse(both: &[u8], cache_id: u64, slot: SlotId) -> Copies {
        let mut copies = Copies { best: None, broken: false };
        for (i, bytes) in both.chunks(HEADER_BYTES).enumerate() {
            match SlotHeader::parse(bytes, cache_id, slot) {
                Ok(header) => {
                    if copies.best.as_ref().is_none_or(|(_, best)| best.version < header.version) {
                        copies.best = Some((i as u8, header));
                    }
                }
                // Never written, or written by another cache that this disk once held.
                Err(
                    FormatError::Magic { found: 0, .. } | FormatError::Field { field: "cache", .. },
                ) => {}
                Err(_) => copies.broken = true,
            }
        }
        copies
    }
}

impl Inner {
    pub(crate) fn slot_at(&self, slot: SlotId) -> u64 {
        self.layout.slots_at + u64::from(slot) * SLOT_BYTES
    }

    /// Where a block of the chunk in `slot` lies.
    pub(crate) fn block_at(&self, slot: SlotId, block: u16) -> u64 {
        self.slot_at(slot) + 2 * HEADER_BYTES as u64 + u64::from(block) * BLOCK_BYTES
    }

    /// Reads both copies of a slot's header.
    pub(crate) async fn read_headers(&self, slot: SlotId) -> Result<Copies> {
        Copies::read(self.disk.as_ref(), self.slot_at(slot), self.cache_id, slot).await
    }

    /// Sees to it that the header of the chunk's slot, if it has one, is in memory. At the first access
    /// since the start this is the validation of the chunk: what lies beside the data decides.
    pub(crate) async fn load(&self, key: Key) -> Result<()> {
        if !self.state().needs_header(key) {
            return Ok(());
        }
        match self.lock(key).await {
            Some(guard) => self.load_locked(key, &guard).await?,
            None => return Ok(()),
        }
        self.ask_for_room_for_headers();
        Ok(())
    }

    /// Locks a chunk for writing. `None` if nothing of it is here.
    pub(crate) async fn lock(&self, key: Key) -> Option<OwnedRwLockWriteGuard<()>> {
        loop {
            let io = self.state().io(key)?;
            let guard = Arc::clone(&io).write_owned().await;
            if self.state().is_lock_of(key, Some(&io)) {
                return Some(guard);
            }
        }
    }

    /// [`load`](Self::load) for who holds the chunk's lock.
    pub(crate) async fn load_locked(
        &self,
        key: Key,
        _guard: &OwnedRwLockWriteGuard<()>,
    ) -> Result<()> {
        let Some(slot) = ({
            let state = self.state();
            let needed = state.needs_header(key);
            needed.then(|| state.chunks.get(&key).and_then(|chunk| chunk.slot)).flatten()
        }) else {
            return Ok(());
        };
        let copies = self.read_headers(slot).await?;
        let dirty = || self.state().volumes.get(&key.volume).map_or(0, |v| v.dirty_slots);
        let before = dirty();
        self.adopt(slot, key, copies);
        if dirty() < before {
            // Who waits for room in a quota may go on.
            self.space.notify_waiters();
        }
        self.make_room_for_headers();
        Ok(())
    }

    /// Joins what the directory says of a slot with its headers.
    fn adopt(&self, slot: SlotId, key: Key, copies: Copies) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(entry) = state.slots.get_mut(slot as usize) else {
            return;
        };
        if entry.occupant != Some(key) || entry.header.is_some() {
            return;
        }
        if entry.validated && planted(Plant::StopForgetsCopies) {
            entry.durable_copy.get_or_insert(0);
        }
        if !entry.validated {
            entry.validated = true;
            state.unvalidated = state.unvalidated.saturating_sub(1);
            state.counters.validated += 1;
        }
        let listed = entry.entry;
        match copies.best {
            Some((copy, mut header)) if header.version >= listed.version => {
                // A later version was written by us, of what was believed of this one.
                if listed.is_doubtful && header.version == listed.version {
                    header.distrust_zeros();
                    entry.stale = true;
                }
                entry.durable_copy.get_or_insert(copy);
                if header.volume != key.volume || header.chunk != key.chunk {
                    // The slot was given up, and the chunk was clean then: nothing of it is dirty any more. The
                    // directory is behind.
                    entry.entry.version = header.version;
                    state.vacate(slot);
                    state.free.push(slot);
                    return;
                }
                entry.header_written = true;
                entry.entry.version = header.version;
                // Records that the header has are not dropped from the log's map: a power cut may have
                // kept the header and not the data. Only the directory is written after both.
                entry.header = Some(Box::new(header));
            }
            best => {
                // The newest header is damaged. What was clean is fetched again; what was dirty is lost,
                // and the new header says so. What was written after the directory is in the log still.
                let version = listed.version.max(best.as_ref().map_or(0, |(_, h)| h.version));
                let mut header = SlotHeader::empty(self.cache_id, slot, version);
                (header.volume, header.chunk) = (key.volume, key.chunk);
                (header.generation, header.seq) = (listed.generation, listed.seq);
                let published = state.volumes.get(&key.volume).map_or(0, |v| v.page.published);
                if listed.seq > published {
                    // Also what newer records replace: they may not be durable yet. With them it is taken back.
                    header.lost = BlockSet::from_summary(listed.dirty);
                }
                let in_log = state.chunks.get(&key).map_or(BlockSet::EMPTY, Chunk::in_log);
                let lost = header.lost.without(&in_log).len();
                tracing::error!(slot, chunk = key.chunk, lost, "slot header is damaged");
                state.counters.damaged_headers += 1;
                if let Some((copy, _)) = best {
                    entry.durable_copy.get_or_insert(copy);
                }
                entry.header = Some(Box::new(header));
                entry.stale = true;
            }
        }
        state.headers_in_memory += 1;
        state.summarize(slot);
        state.clean_published(key);
    }

    /// Sees to it that it is known which copy of the slot's header is the durable one, which the next must
    /// not replace. A planned stop spares the validation of a chunk, but not this: only the headers tell.
    async fn know_copies(&self, slot: SlotId) -> Result<()> {
        if self.state().slot(slot).is_none_or(|entry| entry.durable_copy.is_some()) {
            return Ok(());
        }
        let copies = self.read_headers(slot).await?;
        if let Some(entry) = self.state().slot(slot) {
            entry.learn_copies(&copies);
        }
        Ok(())
    }

    /// Writes the header that is in memory, beside the last durable one. The caller is the only one who
    /// writes headers.
    pub(crate) async fn write_header(&self, slot: SlotId) -> Result<()> {
        self.know_copies(slot).await?;
        let Some((copy, bytes)) = ({
            let syncs = self.marks.get().syncs;
            let mut state = self.state();
            state.slot(slot).and_then(|entry| {
                let copy = next_copy(entry, syncs);
                let header = entry.header.as_mut()?;
                header.version = header.version.max(entry.entry.version) + 1;
                let bytes = header.emit();
                entry.entry.version = header.version;
                entry.entry.is_doubtful = false;
                entry.stale = false;
                entry.being_written = true;
                entry.summarize();
                Some((copy, bytes))
            })
        }) else {
            return Ok(());
        };
        self.write_copy(slot, copy, bytes).await?;
        if let Some(entry) = self.state().slot(slot) {
            entry.header_written = entry.occupant.is_some();
            entry.being_written = false;
        }
        Ok(())
    }

    /// Writes a header that says the slot is free.
    pub(crate) async fn write_free_header(&self, slot: SlotId) -> Result<()> {
        self.know_copies(slot).await?;
        let Some((copy, bytes)) = ({
            let syncs = self.marks.get().syncs;
            let mut state = self.state();
            state.slot(slot).map(|entry| {
                entry.entry.version += 1;
                entry.entry.is_doubtful = false;
                let header = SlotHeader::empty(self.cache_id, slot, entry.entry.version);
                (next_copy(entry, syncs), header.emit())
            })
        }) else {
            return Ok(());
        };
        self.write_copy(slot, copy, bytes).await
    }

    async fn write_copy(&self, slot: SlotId, copy: u8, bytes: Vec<u8>) -> Result<()> {
        let at = self.slot_at(slot) + u64::from(copy) * HEADER_BYTES as u64;
        self.write_disk(at, vec![Bytes::from(bytes)]).await?;
        let mut state = self.state();
        let next_sync = state.syncs_wanted + 1;
        if let Some(entry) = state.slot(slot) {
            entry.written_copy = Some((copy, next_sync));
        }
        Ok(())
    }

    /// Reads the header of a free slot of which only the directory is known, so that it can be used.
    pub(crate) async fn check_free(&self) -> Result<bool> {
        let Some(slot) = self.state().unchecked.pop() else {
            return Ok(false);
        };
        let copies = self.read_headers(slot).await?;
        let mut state = self.state();
        if let Some(entry) = state.slot(slot) {
            entry.validated = true;
            entry.learn_copies(&copies);
            state.free.push(slot);
        }
        Ok(true)
    }

    /// Drops headers from memory that are on disk too, beyond the configured number. Looks at some slots; the next call
    /// goes on behind them.
    pub(crate) fn make_room_for_headers(&self) {
        let limit = self.config.headers_in_memory;
        let mut state = self.state();
        if state.headers_in_memory <= limit {
            return;
        }
        let last = state.slots.len().min(state.header_hand + HEADERS_LOOKED_AT);
        let slots = state.header_hand..last;
        state.drop_headers(limit, slots);
        let is_room = state.headers_in_memory <= limit;
        drop(state);
        if is_room {
            self.headers_room.notify_waiters();
        }
    }

    /// Wakes who writes headers if more are in memory than configured: those that are newer there than on disk cannot
    /// go.
    pub(crate) fn ask_for_room_for_headers(&self) {
        if self.has_headers_in_excess() {
            self.headers_wake.notify_one();
        }
    }

    fn has_headers_in_excess(&self) -> bool {
        self.state().headers_in_memory > self.config.headers_in_memory
    }

    /// Where more are in memory than configured, waits until some have been dropped, or for a while: for who could go
    /// on to load headers faster than they are written.
    pub(crate) async fn wait_for_room_for_headers(&self) -> Result<()> {
        let mut room = std::pin::pin!(self.headers_room.notified());
        room.as_mut().enable();
        self.check_running()?;
        if self.has_headers_in_excess() {
            self.headers_wake.notify_one();
            let _ = tokio::time::timeout(LONGEST_WAIT, room).await;
        }
        Ok(())
    }

    /// Brings the headers in memory down if there are more than configured: goes round the slots, writes what is newer
    /// than on disk and drops what is there too. The caller is the only one who writes headers, and lets the cache
    /// stop where this fails, or is cut short: what the directory says next must be what is on the disk.
    pub(crate) async fn write_headers_in_excess(&self) -> Result<()> {
        if !self.has_headers_in_excess() {
            return Ok(());
        }
        let limit = self.config.headers_in_memory;
        // Not to the limit, or the next one that is read would begin another round.
        let most = limit - limit / 16;
        let (slots, hand) = {
            let state = self.state();
            (state.slots.len(), state.header_hand)
        };
        let parts = (hand..slots).step_by(HEADERS_LOOKED_AT).map(|first| (first, slots));
        let parts = parts.chain((0..hand).step_by(HEADERS_LOOKED_AT).map(|first| (first, hand)));
        for (first, end) in parts {
            self.check_running()?;
            let part = first..end.min(first + HEADERS_LOOKED_AT);
            let stale: Vec<SlotId> = {
                let state = self.state();
                if state.headers_in_memory <= most {
                    break;
                }
                let slots = state.slots.get(part.clone()).unwrap_or_default();
                let slots = slots.iter().zip(part.start as SlotId..);
                let stale = slots.filter(|(slot, _)| slot.is_newer_in_memory());
                stale.map(|(_, slot)| slot).collect()
            };
            for slot in stale {
                self.write_header(slot).await?;
            }
            self.state().drop_headers(most, part);
            // Where the disk is quick, nothing was waited for.
            consume_budget().await;
        }
        self.headers_room.notify_waiters();
        Ok(())
    }

    /// The error for a block whose only copy is damaged.
    pub(crate) fn lost(&self, key: Key, block: u16) -> Error {
        self.lost_range(key, &(block..block + 1))
    }

    /// The error for blocks whose only copies are damaged.
    pub(crate) fn lost_range(&self, key: Key, blocks: &Range<u16>) -> Error {
        let at = |block: u16| u64::from(key.chunk) * CHUNK_BYTES + u64::from(block) * BLOCK_BYTES;
        let (offset, end) = (at(blocks.start), at(blocks.end));
        let mut state = self.state();
        match state.volumes.get_mut(&key.volume) {
            Some(volume) => {
                volume.lost += 1;
                Error::Lost { volume: volume.page.name.clone(), offset, end }
            }
            None => self.stopped(),
        }
    }
}

impl State {
    /// Drops headers of some slots from memory that are on disk too, until `most` are left in all. The hand is then
    /// behind the last that was looked at.
    fn drop_headers(&mut self, most: usize, slots: Range<usize>) {
        for at in slots {
            if self.headers_in_memory <= most {
                return;
            }
            self.header_hand = if at + 1 < self.slots.len() { at + 1 } else { 0 };
            if let Some(slot) = self.slots.get_mut(at)
                && slot.header.is_some()
                && !slot.stale
                && !slot.being_written
                && slot.header_written
                && slot
                    .occupant
                    .and_then(|key| self.chunks.get_mut(&key))
                    .is_some_and(Chunk::is_idle)
            {
                slot.header = None;
                self.headers_in_memory -= 1;
            }
        }
    }
}

impl SlotHeader {
    /// Believes nothing that no checksum proves, where a newer header may be gone.
    fn distrust_zeros(&mut self) {
        let zero = std::mem::replace(&mut self.zero, BlockSet::EMPTY);
        for block in zero.iter().filter(|block| self.dirty.contains(*block)) {
            self.lost.insert(block);
        }
        self.hole = BlockSet::EMPTY;
        self.valid.subtract(&zero);
        self.dirty.subtract(&zero);
    }
}

impl Slot {
    /// Takes from the headers, read before any was written since the start, what the next one depends on.
    fn learn_copies(&mut self, copies: &Copies) {
        let (copy, version) = copies.best.as_ref().map_or((0, 0), |(copy, h)| (*copy, h.version));
        // Once a header was written the slot knows better: what is read then may not be durable.
        self.durable_copy.get_or_insert(copy);
        self.entry.version = self.entry.version.max(version);
    }
}

/// The copy to write next: never the only durable one.
fn next_copy(slot: &mut Slot, syncs: u64) -> u8 {
    if let Some((copy, sync)) = slot.written_copy
        && sync <= syncs
    {
        slot.durable_copy = Some(copy);
        slot.written_copy = None;
    }
    if planted(Plant::HeaderInPlace) { 0 } else { 1 - slot.durable_copy.unwrap_or(0).min(1) }
}
