//! Eviction: SIEVE over the slots (Zhang et al., NSDI 2024). A hand goes round; what was used since it
//! last came by stays once more. Dirty chunks are never evicted.
//!
//! A slot is used again only after a header that says it is free became durable, so that whatever the
//! directory still says, nobody takes the new data for the old chunk.

use std::sync::Arc;

use super::state::{Key, State};
use super::{Inner, Plant, planted};
use crate::SlotId;
use crate::error::Result;

impl Inner {
    /// Evicts up to `wanted` clean chunks. Returns how many there were.
    pub(crate) async fn evict(&self, wanted: usize) -> Result<usize> {
        let mut evicted = Vec::new();
        let mut steps = 2 * self.state().slots.len();
        while evicted.len() < wanted && steps > 0 {
            steps -= 1;
            let Some((slot, key)) = self.state().next_victim() else {
                continue;
            };
            let Some(io) = self.state().io(key) else {
                continue;
            };
            // Somebody is reading it: it is not the one to go.
            let Ok(_guard) = Arc::clone(&io).try_write_owned() else {
                continue;
            };
            {
                let mut state = self.state();
                let is_there = state.chunks.get(&key).is_some_and(|c| c.slot == Some(slot));
                if !is_there || !state.is_lock_of(key, Some(&io)) || !state.evictable(slot) {
                    continue;
                }
                state.vacate(slot);
                state.counters.evicted += 1;
            }
            self.write_free_header(slot).await?;
            evicted.push(slot);
        }
        if evicted.is_empty() {
            return Ok(0);
        }
        self.barrier().await?;
        let mut state = self.state();
        state.free.extend(&evicted);
        Ok(evicted.len())
    }
}

impl State {
    /// Moves the hand one slot and returns that slot if it may go.
    fn next_victim(&mut self) -> Option<(SlotId, Key)> {
        let slot = self.hand;
        self.hand = if slot as usize + 1 >= self.slots.len() { 0 } else { slot + 1 };
        if !self.evictable(slot) {
            return None;
        }
        let entry = self.slot(slot)?;
        if std::mem::take(&mut entry.visited) {
            return None;
        }
        entry.occupant.map(|key| (slot, key))
    }

    /// Whether a slot holds nothing that is not in the store.
    fn evictable(&self, slot: SlotId) -> bool {
        let Some(entry) = self.slots.get(slot as usize) else {
            return false;
        };
        let Some(key) = entry.occupant else {
            return false;
        };
        let Some(header) = &entry.header else {
            // Not validated, or not in memory: the directory's word is enough for what is clean.
            return entry.validated && entry.entry.dirty_blocks == 0 && self.unpinned(key);
        };
        (header.dirty.is_empty() || planted(Plant::EvictDirty))
            && header.lost.is_empty()
            && self.unpinned(key)
    }

    /// Whether nobody needs the chunk: not the log, no cut, no fetch.
    fn unpinned(&self, key: Key) -> bool {
        let in_cut =
            self.volumes.get(&key.volume).and_then(|v| v.cut.as_ref()).is_some_and(|cut| {
                cut.pending.get(&key.chunk).is_some_and(|pending| !pending.is_empty())
            });
        !in_cut
            && self
                .chunks
                .get(&key)
                .is_some_and(|chunk| chunk.log.is_empty() && chunk.frozen.is_empty())
    }
}
