//! A volume as its users see it.

use std::sync::Arc;

use bytes::Bytes;

use super::read::Segment;
use super::state::{Key, VolumeEntry};
use super::write::Empty;
use super::{Inner, ownership};
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::log_frame::{Content, Record};
use crate::format::volume_page::{Durability, VolumeState};
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES};

/// What an operator may choose for a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// What FLUSH promises.
    pub durability: Durability,
    /// Dirty bytes beyond which writers wait for uploads. 0: no limit.
    pub dirty_quota: u64,
}

/// How a volume is.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// Its name.
    pub name: VolumeName,
    /// Its identity in the store.
    pub uuid: u128,
    /// Size in bytes.
    pub size: u64,
    /// Whether it is served.
    pub state: VolumeState,
    /// Epoch of ownership.
    pub epoch: u64,
    /// What FLUSH promises, and the dirty quota.
    pub options: VolumeOptions,
    /// Bytes that are not in the store yet. An upper bound: what is dirty in the log and in its slot
    /// counts twice.
    pub dirty_bytes: u64,
    /// The remote watermark: everything up to this sequence is in the store.
    pub published: u64,
    /// When that was published, in milliseconds since the Unix epoch.
    pub published_at_ms: u64,
    /// Times since the start that a block was needed whose only copy is damaged.
    pub lost: u64,
}

/// What BLOCK_STATUS tells of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStatus {
    /// Reads as zeros.
    pub zero: bool,
    /// Nothing is stored for it anywhere: it was never written, was given up by a trim, or is zeros that left
    /// the cache. Zeros in the cache have their place there.
    pub hole: bool,
    /// It is in the cache.
    pub cached: bool,
    /// It is not in the store yet.
    pub dirty: bool,
}

/// A range of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub len: u64,
    /// Its status.
    pub status: BlockStatus,
}

/// An open volume. Clones are the same volume.
#[derive(Clone, Debug)]
pub struct Volume {
    inner: Arc<Inner>,
    id: u64,
}

impl Volume {
    pub(crate) fn new(inner: Arc<Inner>, id: u64) -> Volume {
        Volume { inner, id }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Size in bytes; 0 for a volume that is gone.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.state().volumes.get(&self.id).map_or(0, VolumeEntry::size)
    }

    /// How it is.
    pub fn status(&self) -> Result<VolumeStatus> {
        let state = self.inner.state();
        let entry = state.volumes.get(&self.id).ok_or(Error::Gone)?;
        let page = &entry.page;
        Ok(VolumeStatus {
            name: page.name.clone(),
            uuid: page.uuid,
            size: entry.size(),
            state: page.state,
            epoch: page.epoch,
            options: VolumeOptions { durability: page.durability, dirty_quota: page.dirty_quota },
            dirty_bytes: entry.dirty_bytes(),
            published: page.published,
            published_at_ms: page.published_at_ms,
            lost: entry.lost,
        })
    }

    /// Checks that the volume is served and the range lies within it.
    fn check(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.serving(self.id)?;
        let (size, volume) = {
            let state = self.inner.state();
            let entry = state.volumes.get(&self.id).ok_or(Error::Gone)?;
            (entry.size(), entry.page.name.clone())
        };
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            end => {
                let end = end.unwrap_or(u64::MAX);
                Err(Error::OutOfBounds { volume, offset, end, size })
            }
        }
    }

    /// Reads `len` bytes at `offset`.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Vec<Segment>> {
        self.check(offset, len)?;
        self.inner.read(self.id, offset, len).await
    }

    /// Reads into one buffer.
    pub async fn read_vec(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for segment in self.read(offset, len).await? {
            match segment {
                Segment::Data(data) => out.extend_from_slice(&data),
                Segment::Zeroes(len) => out.resize(out.len() + len as usize, 0),
            }
        }
        Ok(out)
    }

    /// Writes `data` at `offset`. When it returns the data survive the death of this process; with `fua`
    /// they are durable.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<()> {
        self.check(offset, data.len() as u64)?;
        self.inner.write(self.id, offset, data, fua).await
    }

    /// Makes everything durable that was answered before, on whatever connection.
    pub async fn flush(&self) -> Result<()> {
        self.inner.serving(self.id)?;
        self.inner.flush(self.id).await
    }

    /// Gives a range up: its whole blocks read as zeros afterwards.
    pub async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.check(offset, len)?;
        self.inner.empty(self.id, offset, len, Empty::Trim, fua).await
    }

    /// Makes a range read as zeros. It takes no more time or space than its records do.
    pub async fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Result<()> {
        self.check(offset, len)?;
        self.inner.empty(self.id, offset, len, Empty::Zeroes, fua).await
    }

    /// Brings a range into the cache, as far as there is room.
    pub async fn cache(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let mut at = offset;
        while at < offset + len {
            let step = (offset + len - at).min(CHUNK_BYTES);
            self.inner.read(self.id, at, step).await?;
            at += step;
        }
        Ok(())
    }

    /// Tells what of a range is where: extents from `offset` on without a gap, at most `limit`, at least
    /// one unless the range is empty. May end early.
    pub async fn block_status(
        &self,
        offset: u64,
        len: u64,
        limit: usize,
    ) -> Result<Vec<StatusExtent>> {
        self.check(offset, len)?;
        let end = offset + len;
        let mut extents: Vec<StatusExtent> = Vec::new();
        let mut at = offset;
        while at < end {
            let chunk = (at / CHUNK_BYTES) as u32;
            let start = u64::from(chunk) * CHUNK_BYTES;
            let stop = end.min(start + CHUNK_BYTES);
            let blocks = self.inner.chunk_status(Key { volume: self.id, chunk }).await?;
            while at < stop {
                let block = ((at - start) / BLOCK_BYTES) as usize;
                let next = stop.min(start + (block as u64 + 1) * BLOCK_BYTES);
                let status = blocks.get(block).copied().unwrap_or_default();
                let full = extents.len() >= limit.max(1);
                match extents.last_mut() {
                    Some(last) if last.status == status => last.len += next - at,
                    _ if full => return Ok(extents),
                    _ => extents.push(StatusExtent { len: next - at, status }),
                }
                at = next;
            }
        }
        Ok(extents)
    }

    /// Changes the size. What is cut off is gone: it reads as zeros if the volume grows again.
    pub async fn resize(&self, size: u64) -> Result<()> {
        ownership::check_size(size)?;
        self.inner.serving(self.id)?;
        let old = self.size();
        let shrink = |to| {
            if let Some(entry) = self.inner.state().volumes.get_mut(&self.id) {
                entry.shrinking_to = to;
            }
        };
        let mut result = Ok(());
        if size < old {
            // Nobody may write there any more before it is emptied, and no cut is smaller than what is in it.
            shrink(Some(size));
            result = self.inner.empty(self.id, size, old - size, Empty::Zeroes, true).await;
        }
        if result.is_ok() {
            result = self.inner.write_page(self.id, &mut |page| page.size = size).await;
        }
        shrink(None);
        result?;
        self.inner.upload_wake.notify_waiters();
        Ok(())
    }

    /// Uploads everything answered so far and publishes it. Returns the sequence of the cut.
    pub async fn upload(&self) -> Result<u64> {
        self.inner.serving(self.id)?;
        self.inner.cut(self.id, super::upload::Purpose::Upload).await
    }

    /// Changes what FLUSH promises and the dirty quota.
    pub async fn set_options(&self, options: VolumeOptions) -> Result<()> {
        self.inner.set_options(self.id, options).await
    }
}

impl Inner {
    /// The status of each block of a chunk.
    async fn chunk_status(&self, key: Key) -> Result<Vec<BlockStatus>> {
        // What the cache lacks, the index knows; without the store it is taken as data.
        let name = self.name(key.volume)?;
        let stored: Option<BlockSet> = match self.stored(&name, key).await {
            Ok(stored) => Some(stored),
            Err(Error::StoreTimeout { .. } | Error::Store(_)) => None,
            Err(error) => return Err(error),
        };
        loop {
            self.load(key).await?;
            let state = self.state();
            if state.needs_header(key) {
                continue;
            }
            let published = state.volumes.get(&key.volume).map_or(0, |v| v.page.published);
            let mut blocks: Vec<BlockStatus> = (0..CHUNK_BLOCKS)
                .map(|block| {
                    let hole = stored.as_ref().is_some_and(|stored| !stored.contains(block));
                    BlockStatus { zero: hole, hole, cached: false, dirty: false }
                })
                .collect();
            if let Some((_, header)) = state.header(key) {
                for block in header.valid.iter() {
                    let zero = header.zero.contains(block);
                    let dirty = header.dirty.contains(block);
                    if let Some(status) = blocks.get_mut(usize::from(block)) {
                        *status = BlockStatus { zero, hole: false, cached: true, dirty };
                    }
                }
                for block in header.lost.iter() {
                    if let Some(status) = blocks.get_mut(usize::from(block)) {
                        *status = BlockStatus { dirty: true, ..BlockStatus::default() };
                    }
                }
            }
            if let Some(chunk) = state.chunks.get(&key) {
                for run in chunk.log.iter() {
                    let zero = run.record.is_zero();
                    let hole = matches!(run.record.record, Record { content: Content::Trim, .. });
                    let dirty = run.seq() > published;
                    for status in blocks.iter_mut().take(run.end().into()).skip(run.first.into()) {
                        *status = BlockStatus { zero, hole, cached: true, dirty };
                    }
                }
            }
            return Ok(blocks);
        }
    }

    /// Blocks of a chunk that the store has.
    async fn stored(&self, name: &VolumeName, key: Key) -> Result<BlockSet> {
        let root = self.root(key.volume).await?.root;
        let mut stored = BlockSet::EMPTY;
        for extent in self.locate(name, &root, key.chunk, 0..CHUNK_BLOCKS).await? {
            stored.insert_range(extent.first..extent.end());
        }
        Ok(stored)
    }
}
