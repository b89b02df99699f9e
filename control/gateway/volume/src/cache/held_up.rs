//! Volumes that no upload helps, since something of them is lost that only the cache had: no root may leave it out.
//! What such a volume has stays dirty until somebody writes or trims what is lost, or the operator accepts the loss.
//!
//! That must not take the room of the others. At its quota, and once slots were made dirty for it beyond their share,
//! the volume takes nothing more: writers are told of the loss instead of waiting for what does not come. Only what
//! mends the loss is taken all the same, for which the log keeps some room.

use std::ops::Range;

use bytes::Bytes;

use super::Inner;
use super::refusal::Refusal;
use super::state::{State, VolumeEntry};
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::log_frame::Record;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// What is known of a loss that holds a volume up.
#[derive(Debug, Default)]
pub(crate) struct HeldUp {
    /// Whether a cut failed for want of a block since the last one that was published. What cannot be read may be
    /// there the next time, as after a reset of the device: only the second such cut makes a loss of it.
    is_suspected: bool,
    loss: Option<Loss>,
    /// Whether all of a loss was mended since that was asked last.
    is_mended: bool,
    /// Whether slots were made dirty for the volume beyond their share, since its last upload.
    is_over_share: bool,
}

/// Blocks that only the cache had, and for which cuts failed.
#[derive(Debug)]
struct Loss {
    /// What names them.
    error: Error,
    chunk: u32,
    /// Those of them that nothing was written to since.
    blocks: BlockSet,
}

impl HeldUp {
    /// Blocks of a chunk get newer values: they are not lost any more.
    pub(crate) fn written(&mut self, chunk: u32, blocks: Range<u16>) {
        if let Some(loss) = &mut self.loss
            && loss.chunk == chunk
        {
            loss.blocks.remove_range(blocks);
            if loss.blocks.is_empty() {
                self.loss = None;
                self.is_mended = true;
            }
        }
    }

    fn cut_ended(&mut self, result: &Result<u64>) {
        match result {
            Ok(_) => *self = HeldUp::default(),
            Err(error @ Error::Lost { offset, end, .. }) => {
                if !std::mem::replace(&mut self.is_suspected, true) {
                    return;
                }
                let chunk = (offset / CHUNK_BYTES) as u32;
                let block = |at: u64| ((at - u64::from(chunk) * CHUNK_BYTES) / BLOCK_BYTES) as u16;
                let mut blocks = BlockSet::EMPTY;
                blocks.insert_range(block(*offset)..block(*end));
                self.loss = Some(Loss { error: error.clone(), chunk, blocks });
            }
            // Nothing is known of it.
            Err(_) => {}
        }
    }
}

impl State {
    /// Why no cut of a volume can be published until somebody mends it. `None`: nothing is known to be lost.
    pub(crate) fn loss(&self, volume: u64) -> Option<Error> {
        let entry = self.volumes.get(&volume)?;
        if self.unknown_slots > 0 {
            let (volume, slots) = (entry.page.name.clone(), self.unknown_slots);
            return Some(Error::UnknownLoss { volume, slots, offset: 0, end: entry.page.size });
        }
        entry.held_up.loss.as_ref().map(|loss| loss.error.clone())
    }

    /// Whether what is dirty of a volume turns clean some time, as far as is known: it is uploaded, and nothing of it
    /// is lost. While the cache is being closed it may after the next start.
    pub(crate) fn upload_helps(&self, volume: u64) -> bool {
        let is_uploaded = |v: &VolumeEntry| {
            matches!(v.refusing, None | Some(Refusal::Releasing)) && v.held_up.loss.is_none()
        };
        self.is_stopping
            || self.unknown_slots == 0 && self.volumes.get(&volume).is_none_or(is_uploaded)
    }

    /// Names of the volumes with something dirty that no upload helps.
    pub(crate) fn helpless(&self) -> Vec<String> {
        let dirty = self.volumes.iter().filter(|(_, v)| v.dirty_bytes() > 0);
        let helpless = dirty.filter(|(id, _)| !self.upload_helps(**id));
        helpless.map(|(_, v)| v.page.name.to_string()).collect()
    }

    /// Whether one of the records is of blocks whose loss holds the volume up.
    pub(crate) fn mends(&self, volume: u64, records: &[(Record, Bytes)]) -> bool {
        let loss = self.volumes.get(&volume).and_then(|entry| entry.held_up.loss.as_ref());
        loss.is_some_and(|loss| {
            records.iter().any(|(record, _)| {
                let blocks = record.first..record.first + record.count;
                record.chunk == loss.chunk && loss.blocks.intersects(blocks)
            })
        })
    }

    /// What to tell a writer of a volume who would wait for room that does not come before somebody acts: mends a loss,
    /// of the volume or of another one that has all slots, or forgets a volume in quarantine that has them. Who `mends`
    /// a loss waits for the log's room alone. `None`: there is room, or there may be.
    pub(crate) fn waits_in_vain(
        &self,
        volume: u64,
        mends: bool,
        over_quota: bool,
        has_room: bool,
    ) -> Option<Error> {
        let entry = self.volumes.get(&volume)?;
        if !mends && (over_quota || entry.held_up.is_over_share) {
            let error = self.loss(volume);
            if error.is_some() {
                return error;
            }
        }
        // What is uploaded yet may make a slot free.
        let mut dirty = self.volumes.iter().filter(|(_, v)| v.dirty_bytes() > 0);
        if has_room || !self.log.is_stuck || dirty.any(|(id, _)| self.upload_helps(*id)) {
            return None;
        }
        self.loss(volume).or_else(|| self.in_the_way())
    }

    /// Why the volume that has most of the room does not give it back. `None`: it does so by itself, or once what was
    /// begun with it is done again, as a release in doubt.
    pub(crate) fn in_the_way(&self) -> Option<Error> {
        let dirty = self.volumes.iter().filter(|(_, v)| v.dirty_bytes() > 0);
        let (id, largest) = dirty.max_by_key(|(_, v)| v.dirty_bytes())?;
        if largest.is_leaving() {
            return None;
        }
        if largest.is_in_quarantine() && self.unknown_slots == 0 {
            return Some(Error::FullOfQuarantine { volume: largest.page.name.clone() });
        }
        self.loss(*id)
    }
}

impl Inner {
    /// Whether all of a loss of a volume was mended since this was asked last.
    pub(crate) fn take_mended(&self, volume: u64) -> bool {
        let mut state = self.state();
        let entry = state.volumes.get_mut(&volume);
        entry.is_some_and(|entry| std::mem::take(&mut entry.held_up.is_mended))
    }

    /// Takes up how a cut of a volume ended.
    pub(crate) fn cut_ended(&self, volume: u64, result: &Result<u64>) {
        if let Some(entry) = self.state().volumes.get_mut(&volume) {
            entry.held_up.cut_ended(result);
        }
        if matches!(result, Err(Error::Lost { .. } | Error::UnknownLoss { .. })) {
            // Who waits for it is told, and its records need not wait for it.
            self.space.notify_waiters();
            self.maintenance_wake.notify_one();
        }
    }

    /// Whether to make more slots dirty for a volume than may be: if no upload helps it, and its records in the log
    /// would keep writers of all volumes waiting.
    pub(crate) fn goes_over_share(&self, volume: u64) -> bool {
        let mut state = self.state();
        if state.upload_helps(volume) || !self.is_log_short(&state.log) {
            return false;
        }
        if let Some(entry) = state.volumes.get_mut(&volume) {
            entry.held_up.is_over_share = true;
        }
        true
    }
}
