//! A volume as its users see it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::coop;

use super::fetch::{MAX_FILLS, Patience};
use super::read::Segment;
use super::refusal::Refusal;
use super::state::{Key, VolumeEntry};
use super::write::Empty;
use super::{Inner, Plant, ownership, planted};
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::volume_page::{Durability, VolumeState};
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES};

/// Bytes that one answer to BLOCK_STATUS covers at most, 1024 chunks: as many as a request can ask about that has
/// no extended header. Whoever wants to know more asks again.
const STATUS_BYTES: u64 = 4 << 30;

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
    /// What its page on the disk says.
    pub state: VolumeState,
    /// Why it is not served, if it is not.
    pub refusing: Option<Refusal>,
    /// Epoch of ownership.
    pub epoch: u64,
    /// What FLUSH promises, and the dirty quota.
    pub options: VolumeOptions,
    /// Bytes that are not in the store yet, also those whose only copy is damaged. An upper bound: what is dirty
    /// in the log and in its slot counts twice.
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
    /// the cache. Zeros that were written have their place there.
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
            refusing: entry.refusing,
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

    /// Brings a range into the cache, as far as there is room. It holds 4 MiB at a time.
    pub async fn cache(&self, offset: u64, len: u64) -> Result<()> {
        self.check(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            self.inner.may_go_on(self.id)?;
            coop::consume_budget().await;
            // What a disk slower than the store has not taken yet would not be kept.
            self.inner.fills.wait(|fills| *fills <= MAX_FILLS / 2).await;
            let stop = end.min((at / CHUNK_BYTES + 1) * CHUNK_BYTES);
            self.inner.read(self.id, at, stop - at).await?;
            at = stop;
        }
        Ok(())
    }

    /// Tells what of a range is where: extents from `offset` on without a gap, at most `limit`, at least
    /// one unless the range is empty. May end early, and does after 4 GiB.
    pub async fn block_status(
        &self,
        offset: u64,
        len: u64,
        limit: usize,
    ) -> Result<Vec<StatusExtent>> {
        self.check(offset, len)?;
        let end = offset + len.min(STATUS_BYTES);
        let patience = self.inner.patience();
        // What an unreadable slot held may be newer than a hole in the store.
        let mut asks_store = self.inner.state().unknown_slots == 0;
        let mut extents: Vec<StatusExtent> = Vec::new();
        let mut at = offset;
        while at < end {
            let chunk = (at / CHUNK_BYTES) as u32;
            let start = u64::from(chunk) * CHUNK_BYTES;
            let stop = end.min(start + CHUNK_BYTES);
            let key = Key { volume: self.id, chunk };
            coop::consume_budget().await;
            let blocks = self.inner.chunk_status(key, &patience, &mut asks_store).await?;
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
        if planted(Plant::UploadSkipped) {
            return Ok(0);
        }
        self.inner.cut(self.id, super::upload::Purpose::Upload).await
    }

    /// Changes what FLUSH promises and the dirty quota.
    pub async fn set_options(&self, options: VolumeOptions) -> Result<()> {
        self.inner.set_options(self.id, options).await
    }
}

impl Inner {
    /// Says that a request is cut short since the cache is about to be closed.
    pub(crate) fn cut_short(&self, volume: u64) -> Error {
        match self.name(volume) {
            Ok(volume) => Error::NotServed { volume, state: Refusal::Stopping },
            Err(error) => error,
        }
    }

    /// Whether a request that takes many steps may take the next one.
    pub(crate) fn may_go_on(&self, volume: u64) -> Result<()> {
        self.serving(volume)?;
        let is_stopping = self.state().is_stopping;
        if is_stopping { Err(self.cut_short(volume)) } else { Ok(()) }
    }

    /// The status of each block of a chunk. What the cache lacks, the index knows, if `asks_store`; else it is
    /// taken as data.
    async fn chunk_status(
        &self,
        key: Key,
        patience: &Patience,
        asks_store: &mut bool,
    ) -> Result<Vec<BlockStatus>> {
        let (mut blocks, rest) = self.cached_status(key).await?;
        if rest.is_empty() || !*asks_store {
            return Ok(blocks);
        }
        // After the look at the cache: what left it meanwhile is in the index by now.
        match self.stored(key, patience).await {
            Ok(stored) => {
                for block in rest.iter().filter(|block| !stored.contains(*block)) {
                    if let Some(status) = blocks.get_mut(usize::from(block)) {
                        *status = BlockStatus { zero: true, hole: true, ..BlockStatus::default() };
                    }
                }
            }
            // Those that follow do not wait for it again.
            Err(Error::StoreTimeout { .. } | Error::Store(_)) => *asks_store = false,
            Err(error) => return Err(error),
        }
        Ok(blocks)
    }

    /// What the cache says of each block of a chunk, and those of which it says nothing.
    async fn cached_status(&self, key: Key) -> Result<(Vec<BlockStatus>, BlockSet)> {
        loop {
            self.load(key).await?;
            let state = self.state();
            if state.needs_header(key) {
                continue;
            }
            let published = state.volumes.get(&key.volume).map_or(0, |v| v.page.published);
            let mut blocks = vec![BlockStatus::default(); usize::from(CHUNK_BLOCKS)];
            let mut rest = BlockSet::EMPTY;
            rest.insert_range(0..CHUNK_BLOCKS);
            if let Some((_, header)) = state.header(key) {
                rest.subtract(&header.valid);
                rest.subtract(&header.lost);
                for block in header.valid.iter() {
                    let (zero, hole) = (header.zero.contains(block), header.hole.contains(block));
                    let dirty = header.dirty.contains(block);
                    if let Some(status) = blocks.get_mut(usize::from(block)) {
                        *status = BlockStatus { zero, hole, cached: true, dirty };
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
                    rest.remove_range(run.first..run.end());
                    let zero = run.record.is_zero();
                    let hole = run.record.is_hole();
                    let dirty = run.seq() > published;
                    for status in blocks.iter_mut().take(run.end().into()).skip(run.first.into()) {
                        *status = BlockStatus { zero, hole, cached: true, dirty };
                    }
                }
            }
            return Ok((blocks, rest));
        }
    }

    /// Blocks of a chunk that the store has.
    async fn stored(&self, key: Key, patience: &Patience) -> Result<BlockSet> {
        let name = self.name(key.volume)?;
        let root = self.root_by(patience.end(), key.volume).await?.root;
        let mut stored = BlockSet::EMPTY;
        let blocks = 0..CHUNK_BLOCKS;
        for extent in self.locate(patience.end(), &name, &root, key.chunk, blocks).await? {
            stored.insert_range(extent.first..extent.end());
        }
        Ok(stored)
    }
}
