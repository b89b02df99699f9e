//! Packs of an upload, and putting what has a name of its own into the store.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::super::Inner;
use super::super::fetch::FRAME_BLOCKS;
use super::Changes;
use crate::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::format::index::Extent;
use crate::format::pack::{MAX_BLOCKS, ObjectId, PackEntry, PackHeader, header_blocks};
use crate::format::root::Root;
use crate::remote::{StoreError, answer_by};
use crate::volume_name::VolumeName;

/// A pack under construction, in memory until it is put.
pub(super) struct Pack<'a> {
    /// Of those who wait for a place nobody has a pack.
    _place: SemaphorePermit<'a>,
    entries: Vec<PackEntry>,
    parts: Vec<Bytes>,
}

impl Pack<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Blocks that it may have more.
    pub(super) fn room(&self) -> u16 {
        (MAX_BLOCKS - self.entries.len()) as u16
    }

    pub(super) fn add(&mut self, chunk: u32, first: u16, data: &Bytes) {
        for (i, block) in data.chunks(BLOCK_BYTES as usize).enumerate() {
            self.entries.push(PackEntry { chunk, block: first + i as u16, crc: crc32c(block) });
        }
        self.parts.push(data.clone());
    }
}

/// Where in `first..end` a pack ends that has room for so many blocks: between two frames if not at the end,
/// so that what a miss fetches lies in one object.
pub(super) fn pack_until(first: u16, end: u16, room: u16) -> u16 {
    if room >= end - first {
        return end;
    }
    ((first + room) / FRAME_BLOCKS * FRAME_BLOCKS).max(first)
}

impl Inner {
    pub(crate) fn object_id(&self, epoch: u64) -> ObjectId {
        let number = self.objects.fetch_add(1, Ordering::Relaxed);
        ObjectId { epoch, nonce: self.nonce, number }
    }

    /// Waits until an object may be put.
    pub(crate) async fn upload_place(&self) -> Result<SemaphorePermit<'_>> {
        self.upload_places.acquire().await.map_err(|_| self.stopped())
    }

    pub(super) async fn new_pack(&self) -> Result<Pack<'_>> {
        let place = self.upload_place().await?;
        Ok(Pack { _place: place, entries: Vec::new(), parts: Vec::new() })
    }

    /// Writes an object of a new name. The caller has a place for it. In an outage it is given up as soon as a
    /// read is; but one attempt may take long, since a whole pack may have a slow way to go.
    pub(crate) async fn put_new(&self, name: &VolumeName, path: &str, data: Bytes) -> Result<()> {
        let len = data.len() as u64;
        self.upload_pace.take(len).await;
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let deadline = Instant::now() + self.config.upload_timeout;
            let put = self.store.create(path, data.clone());
            let cause = match answer_by(deadline, path, put).await {
                // Nobody else has this name: an earlier attempt of ours took effect after all.
                Ok(_) | Err(StoreError::Conflict { .. }) => {
                    self.state().counters.uploaded_bytes += len;
                    return Ok(());
                }
                Err(error @ StoreError::Unavailable { .. }) => error.to_string(),
                Err(error) => return Err(error.into()),
            };
            self.state().counters.store_failures += 1;
            if begun.elapsed() >= self.config.fetch_timeout {
                let seconds = begun.elapsed().as_secs();
                return Err(Error::StoreTimeout { volume: name.clone(), seconds, cause });
            }
            self.pause(&mut pause).await;
        }
    }

    /// Puts a pack into the store, and into `changes` what is in it.
    pub(super) async fn put_pack(
        &self,
        name: &VolumeName,
        base: &Root,
        pack: Pack<'_>,
        changes: &mut Changes,
    ) -> Result<()> {
        let id = self.object_id(base.epoch);
        let Pack { _place, entries, parts } = pack;
        let header = PackHeader { uuid: base.uuid, epoch: base.epoch, entries };
        let mut data = header.emit();
        data.reserve_exact(parts.iter().map(Bytes::len).sum());
        for part in parts {
            data.extend_from_slice(&part);
        }
        self.put_new(name, &format!("{name}/pack/{id}"), Bytes::from(data)).await?;
        // Not before it is there: what a cut that fails leaves behind is named by the next one.
        let mut at = header_blocks(header.entries.len()) as u16;
        for run in header.entries.chunk_by(|a, b| a.chunk == b.chunk && a.block + 1 == b.block) {
            if let Some(first) = run.first() {
                let crcs: Vec<u32> = run.iter().map(|entry| entry.crc).collect();
                let end = first.block + crcs.len() as u16;
                let extent = Extent { first: first.block, pack: id, at, crcs };
                at += run.len() as u16;
                let parts = changes.entry(first.chunk).or_default();
                parts.push((first.block..end, Some(extent)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_full_at_the_end_of_a_frame() {
        assert_eq!(pack_until(0, 1024, 2040), 1024);
        assert_eq!(pack_until(0, 1024, 1016), 1008);
        assert_eq!(pack_until(5, 100, 30), 32);
        assert_eq!(pack_until(5, 100, 95), 100);
        // Too little for a frame: nothing.
        assert_eq!(pack_until(17, 100, 7), 17);
        assert_eq!(pack_until(16, 32, 15), 16);
        // An empty pack always takes some.
        assert!((0..1024).all(|first| pack_until(first, 1024, MAX_BLOCKS as u16) == 1024));
    }
}
