//! Uploads, in cuts.
//!
//! A cut is everything up to one sequence. While it is under way, the values that belong to it are kept:
//! what newer writes displace from the log's map is frozen, and a slot is not overwritten before its
//! blocks were taken. The root that names the cut is published last, by a conditional put; only then do
//! blocks turn clean.
//!
//! A cut that fails has put packs that nothing names. The next one names them, as far as nothing was written
//! since where their blocks are from: an outage in a long drain does not take it back to its beginning, and a
//! damaged block does not have everything before it put again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::deletion::DELETING;
use super::fetch::FRAME_BLOCKS;
use super::state::{Chunk, Cut, Key, RemoteRoot};
use super::{Inner, Plant, index, planted};
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::FormatError;
use crate::format::crc32c;
use crate::format::index::{Extent, LEAF_CHUNKS, Leaf, NODE_LEAVES, Node, PageRef, cut};
use crate::format::pack::{MAX_BLOCKS, ObjectId, PackEntry, PackHeader, header_blocks};
use crate::format::root::{Root, RootState};
use crate::format::slot_header::SlotHeader;
use crate::format::volume_page::VolumeState;
use crate::remote::{StoreError, answer_by};
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BLOCKS};

/// Longest pause between two uploads that fail, give or take half of it.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What a cut changes in the index: ranges of a chunk and where they are now. `None`: holes.
pub(crate) type Changes = BTreeMap<u32, Vec<(Range<u16>, Option<Extent>)>>;

/// What a cut put into packs and did not publish.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    changes: Changes,
    /// Blocks of the cut that nothing was written to since it began: of these alone `changes` is right still.
    pub(crate) unchanged: BTreeMap<u32, BlockSet>,
}

/// What a cut is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Upload what is new; without that there is no cut.
    Upload,
    /// Publish a root in any case.
    Publish,
    /// The last one: the root says that anybody may take the volume.
    Release,
}

/// A pack under construction, in memory until it is put.
struct Pack<'a> {
    /// Of those who wait for a place nobody has a pack.
    _place: SemaphorePermit<'a>,
    entries: Vec<PackEntry>,
    parts: Vec<Bytes>,
}

/// Ends a cut, also one that nobody waits for any more.
struct Ending<'a> {
    inner: &'a Inner,
    volume: u64,
    /// What of it is in packs, until it is published.
    changes: Changes,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.inner.end_cut(self.volume, std::mem::take(&mut self.changes));
    }
}

impl Kept {
    /// What of `wanted` is in packs with its newest value: what that changes in the index, and the blocks, which are
    /// taken out of `wanted`.
    fn take(self, wanted: &mut BTreeMap<u32, BlockSet>) -> (Changes, BTreeMap<u32, BlockSet>) {
        let (mut changes, mut taken) = (Changes::new(), BTreeMap::new());
        for (chunk, ranges) in self.changes {
            let unchanged = self.unchanged.get(&chunk);
            let Some((wanted, unchanged)) = wanted.get_mut(&chunk).zip(unchanged) else {
                continue;
            };
            let (mut parts, mut blocks) = (Vec::new(), BlockSet::EMPTY);
            for (range, extent) in ranges {
                let mut left = BlockSet::EMPTY;
                left.insert_range(range);
                left.intersect(unchanged);
                left.intersect(wanted);
                for run in left.runs(CHUNK_BLOCKS) {
                    let part = extent.as_ref().map(|extent| cut(extent, run.start, run.end));
                    // All of it lies within the extent.
                    if part != Some(None) {
                        blocks.insert_range(run.clone());
                        parts.push((run, part.flatten()));
                    }
                }
            }
            if !blocks.is_empty() {
                wanted.subtract(&blocks);
                changes.insert(chunk, parts);
                taken.insert(chunk, blocks);
            }
        }
        wanted.retain(|_, blocks| !blocks.is_empty());
        (changes, taken)
    }
}

/// When an upload that failed is tried again.
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Inner {
    /// Uploads everything up to now and publishes it. Returns the sequence.
    pub(crate) async fn cut(&self, volume: u64, purpose: Purpose) -> Result<u64> {
        let turn = {
            let state = self.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            Arc::clone(&entry.uploading)
        };
        let _turn = turn.lock().await;
        let name = self.name(volume)?;
        // Those who come to their turn when the gateway stops do not wait for the store one after another.
        if purpose == Purpose::Upload && self.state().is_stopping {
            return Err(self.cut_short(volume));
        }
        if self.is_deleting(volume) {
            return Err(Error::NotServed { volume: name, state: DELETING });
        }
        self.fit(&name).await?;
        // Asking for the root first keeps cuts from beginning, and holding the log up, in an outage.
        self.forget_root(volume);
        let remote = self.root(volume).await?;
        // A release that nobody was told of must not stand while the volume is served.
        let always = purpose != Purpose::Upload || remote.root.state != RootState::Owned;
        self.check_whole(volume, &name).await?;
        let Some((seq, changes)) = self.begin_cut(volume, always) else {
            return Ok(self.state().volumes.get(&volume).map_or(0, |v| v.page.published));
        };
        let mut ending = Ending { inner: self, volume, changes };
        self.upload_cut(volume, seq, purpose, &remote, &mut ending.changes).await?;
        ending.changes.clear();
        Ok(seq)
    }

    /// Fails if something of the volume is lost, as far as slot headers tell. A cut without it would pass off what
    /// the store has of it as the newest; and nothing is to be put in vain.
    async fn check_whole(&self, volume: u64, name: &VolumeName) -> Result<()> {
        let keys: Vec<Key> = {
            let state = self.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            let (slots, end) = (state.unknown_slots, entry.page.size);
            if slots > 0 {
                let volume = name.clone();
                return Err(Error::UnknownLoss { volume, slots, offset: 0, end });
            }
            let keys = Key { volume, chunk: 0 }..=Key { volume, chunk: u32::MAX };
            let chunks = state.chunks.range(keys).filter(|(_, chunk)| {
                let slot = chunk.slot.and_then(|slot| state.slots.get(slot as usize));
                slot.is_some_and(|slot| slot.entry.dirty != 0)
            });
            chunks.map(|(key, _)| *key).collect()
        };
        for key in keys {
            let lost = self.lost_blocks(key).await?;
            if let Some(blocks) = lost.runs(CHUNK_BLOCKS).into_iter().next() {
                return Err(self.lost_range(key, &blocks));
            }
        }
        Ok(())
    }

    /// Blocks of a chunk whose newest values its header calls lost.
    async fn lost_blocks(&self, key: Key) -> Result<BlockSet> {
        loop {
            self.load(key).await?;
            let state = self.state();
            if !state.needs_header(key) {
                let here = state.chunks.get(&key).zip(state.header(key));
                let lost = here.map(|(chunk, (_, header))| lost_in(chunk, header));
                return Ok(lost.unwrap_or(BlockSet::EMPTY));
            }
        }
    }

    /// Chooses the sequence and what is in the cut, with what of it is in packs already. `None` if there is
    /// nothing new.
    fn begin_cut(&self, volume: u64, always: bool) -> Option<(u64, Changes)> {
        let mut state = self.state();
        let state = &mut *state;
        let seq = state.log.next_seq.saturating_sub(1);
        let entry = state.volumes.get_mut(&volume)?;
        let published = entry.page.published;
        let mut pending: BTreeMap<u32, BlockSet> = BTreeMap::new();
        let keys = Key { volume, chunk: 0 }..=Key { volume, chunk: u32::MAX };
        for (key, chunk) in state.chunks.range(keys) {
            let mut blocks = BlockSet::EMPTY;
            for run in chunk.log.iter().filter(|run| run.seq() > published) {
                blocks.insert_range(run.first..run.end());
            }
            if let Some(slot) = chunk.slot.and_then(|slot| state.slots.get(slot as usize)) {
                match &slot.header {
                    Some(header) => {
                        blocks.add(&header.dirty);
                        blocks.add(&lost_in(chunk, header));
                    }
                    // Groups of which a block is dirty; which one shows when the header is read.
                    None => {
                        for group in (0..64_u16).filter(|g| slot.entry.dirty >> g & 1 == 1) {
                            blocks.insert_range(group * 16..group * 16 + 16);
                        }
                    }
                }
            }
            if !blocks.is_empty() {
                pending.insert(key.chunk, blocks);
            }
        }
        let resized = entry.remote.as_ref().is_some_and(|r| r.root.size != entry.page.size);
        if pending.is_empty() && !always && !resized {
            return None;
        }
        let kept = std::mem::take(&mut entry.kept);
        entry.kept.unchanged.clone_from(&pending);
        let (changes, uploaded) = kept.take(&mut pending);
        let size = entry.page.size;
        entry.cut = Some(Cut { seq, size, pending, uploaded, urgent: Default::default() });
        Some((seq, changes))
    }

    /// Lets go of what the cut held. `changes`: what it put and did not publish.
    fn end_cut(&self, volume: u64, changes: Changes) {
        let mut state = self.state();
        if let Some(entry) = state.volumes.get_mut(&volume) {
            entry.cut = None;
            entry.kept.changes = changes;
            if entry.kept.changes.is_empty() {
                entry.kept = Kept::default();
            }
        }
        let keys = Key { volume, chunk: 0 }..=Key { volume, chunk: u32::MAX };
        for (_, chunk) in state.chunks.range_mut(keys) {
            chunk.frozen.clear();
        }
        drop(state);
        self.maintenance_wake.notify_one();
    }

    async fn upload_cut(
        &self,
        volume: u64,
        seq: u64,
        purpose: Purpose,
        remote: &RemoteRoot,
        changes: &mut Changes,
    ) -> Result<()> {
        // The store must never be ahead of this disk: after a power cut the sequences would be used again.
        if !planted(Plant::CutBeforeFlush) {
            self.make_durable(seq).await?;
        }
        let name = self.name(volume)?;
        let mut pack: Option<Pack<'_>> = None;
        while let Some((chunk, blocks)) = self.next_pending(volume) {
            let key = Key { volume, chunk };
            let Some(blocks) = self.really_dirty(key, &blocks, seq).await? else {
                continue;
            };
            for run in blocks.runs(CHUNK_BLOCKS) {
                let mut first = run.start;
                while first < run.end {
                    let mut filling = match pack.take() {
                        Some(pack) => pack,
                        None => self.new_pack().await?,
                    };
                    // No more than fits is read: what is in memory is what there are places for.
                    let stop = pack_until(first, run.end, filling.room());
                    let is_full = stop == first;
                    if !is_full {
                        for piece in self.read_as_of(key, first..stop, seq).await? {
                            match piece.data {
                                Some(data) => filling.add(chunk, piece.first, &data),
                                None => {
                                    let blocks = piece.first..piece.first + piece.count;
                                    changes.entry(chunk).or_default().push((blocks, None));
                                }
                            }
                        }
                    }
                    first = stop;
                    if is_full || filling.room() == 0 {
                        self.put_pack(&name, remote, filling, changes).await?;
                    } else {
                        pack = Some(filling);
                    }
                }
            }
            self.taken(key, &blocks);
        }
        if let Some(pack) = pack.filter(|pack| !pack.entries.is_empty()) {
            self.put_pack(&name, remote, pack, changes).await?;
        }
        let mut nodes = self.put_index(&name, remote, changes).await?;
        nodes.sort_unstable_by_key(|(number, _)| *number);
        self.publish(volume, seq, purpose, nodes).await
    }

    /// A chunk of the cut that is not taken yet, those first for which the log waits, and its blocks.
    fn next_pending(&self, volume: u64) -> Option<(u32, BlockSet)> {
        loop {
            let (chunk, blocks) = {
                let mut state = self.state();
                let cut = state.volumes.get_mut(&volume)?.cut.as_mut()?;
                let urgent = cut.urgent.pop_first().filter(|c| cut.pending.contains_key(c));
                let chunk = urgent.or_else(|| cut.pending.keys().next().copied())?;
                (chunk, cut.pending.get(&chunk).copied()?)
            };
            if !blocks.is_empty() {
                return Some((chunk, blocks));
            }
            if let Some(cut) = self.state().volumes.get_mut(&volume).and_then(|v| v.cut.as_mut()) {
                cut.pending.remove(&chunk);
            }
        }
    }

    /// Which of `blocks` belong to the cut. `None` to ask again.
    async fn really_dirty(
        &self,
        key: Key,
        blocks: &BlockSet,
        seq: u64,
    ) -> Result<Option<BlockSet>> {
        self.load(key).await?;
        let state = self.state();
        if state.needs_header(key) {
            return Ok(None);
        }
        let mut dirty = BlockSet::EMPTY;
        if let Some((_, header)) = state.header(key) {
            dirty.add(&header.dirty);
            dirty.add(&header.lost);
        }
        if let Some(chunk) = state.chunks.get(&key) {
            let newest = chunk.log.iter().filter(|run| run.seq() <= seq);
            for run in newest.chain(chunk.frozen.iter()) {
                dirty.insert_range(run.first..run.end());
            }
        }
        let mut clean = *blocks;
        clean.subtract(&dirty);
        let mut blocks = *blocks;
        blocks.subtract(&clean);
        Ok(Some(blocks))
    }

    /// Blocks were read for the cut: newer values may now take their place.
    fn taken(&self, key: Key, blocks: &BlockSet) {
        let mut state = self.state();
        if let Some(cut) = state.volumes.get_mut(&key.volume).and_then(|v| v.cut.as_mut()) {
            cut.pending.remove(&key.chunk);
            cut.uploaded.entry(key.chunk).or_insert(BlockSet::EMPTY).add(blocks);
        }
        if let Some(chunk) = state.chunks.get_mut(&key) {
            chunk.frozen.clear();
        }
    }

    fn object_id(&self, epoch: u64) -> ObjectId {
        let number = self.objects.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ObjectId { epoch, nonce: self.nonce, number }
    }

    /// Waits until an object may be put.
    async fn upload_place(&self) -> Result<SemaphorePermit<'_>> {
        self.upload_places.acquire().await.map_err(|_| self.stopped())
    }

    async fn new_pack(&self) -> Result<Pack<'_>> {
        let place = self.upload_place().await?;
        Ok(Pack { _place: place, entries: Vec::new(), parts: Vec::new() })
    }

    /// Writes an object of a new name. The caller has a place for it. In an outage it is given up as soon as a
    /// read is; but one attempt may take long, since a whole pack may have a slow way to go.
    async fn put_new(&self, name: &VolumeName, path: &str, data: Bytes) -> Result<()> {
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

    async fn put_pack(
        &self,
        name: &VolumeName,
        remote: &RemoteRoot,
        pack: Pack<'_>,
        changes: &mut Changes,
    ) -> Result<()> {
        let id = self.object_id(remote.root.epoch);
        let Pack { _place, entries, parts } = pack;
        let header = PackHeader { uuid: remote.root.uuid, epoch: remote.root.epoch, entries };
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
                let ranges = changes.entry(first.chunk).or_default();
                ranges.push((first.block..end, Some(extent)));
            }
        }
        Ok(())
    }

    /// Writes new leaves and nodes for what changed. Returns all nodes of the new index.
    async fn put_index(
        &self,
        name: &VolumeName,
        remote: &RemoteRoot,
        changes: &Changes,
    ) -> Result<Vec<(u32, PageRef)>> {
        let root = &remote.root;
        let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
        for (&chunk, ranges) in changes {
            let number = chunk / LEAF_CHUNKS;
            if let std::collections::btree_map::Entry::Vacant(vacant) = leaves.entry(number) {
                let leaf = self.leaf(self.deadline(), name, root, number).await?;
                let empty = || Leaf { uuid: root.uuid, number, extents: Vec::new() };
                vacant.insert(leaf.map_or_else(empty, |leaf| Leaf::clone(&leaf)));
            }
            let base = (chunk % LEAF_CHUNKS) as u16 * CHUNK_BLOCKS;
            for (range, extent) in ranges {
                let extent = extent.clone().map(|mut extent| {
                    extent.first += base;
                    extent
                });
                if let Some(leaf) = leaves.get_mut(&number) {
                    leaf.replace(base + range.start, base + range.end, extent);
                }
            }
        }
        let mut changed: BTreeMap<u32, Vec<(u32, Option<PageRef>)>> = BTreeMap::new();
        for (number, leaf) in leaves {
            let page = if leaf.extents.is_empty() {
                None
            } else {
                let bytes = leaf.emit();
                let is_legal = Leaf::parse(&bytes, root.uuid, number).map(drop);
                let page = self.put_page(name, root.epoch, bytes, is_legal).await?;
                self.keep_leaf(page, &Arc::new(leaf));
                Some(page)
            };
            changed.entry(number / NODE_LEAVES).or_default().push((number, page));
        }
        let mut nodes: BTreeMap<u32, PageRef> = root.nodes.iter().copied().collect();
        for (number, pages) in changed {
            let node = self.node(self.deadline(), name, root, number).await?;
            let mut leaves: BTreeMap<u32, PageRef> =
                node.map(|node| node.leaves.iter().copied().collect()).unwrap_or_default();
            for (leaf, page) in pages {
                match page {
                    Some(page) => leaves.insert(leaf, page),
                    None => leaves.remove(&leaf),
                };
            }
            if leaves.is_empty() {
                nodes.remove(&number);
                continue;
            }
            let node = Node { uuid: root.uuid, number, leaves: leaves.into_iter().collect() };
            let bytes = node.emit();
            let is_legal = Node::parse(&bytes, root.uuid, number).map(drop);
            let page = self.put_page(name, root.epoch, bytes, is_legal).await?;
            self.keep_node(page, &Arc::new(node));
            nodes.insert(number, page);
        }
        Ok(nodes.into_iter().collect())
    }

    /// Puts a page of the index, if whoever reads it will find it legal: by one that is not all that it names
    /// would be lost.
    async fn put_page(
        &self,
        name: &VolumeName,
        epoch: u64,
        bytes: Vec<u8>,
        is_legal: Result<(), FormatError>,
    ) -> Result<PageRef> {
        let id = self.object_id(epoch);
        let path = format!("{name}/index/{id}");
        is_legal.map_err(|e| index::damaged(name, &path, &format!("not put: {e}")))?;
        let page = PageRef { id, len: bytes.len() as u32, crc: crc32c(&bytes) };
        let _place = self.upload_place().await?;
        self.put_new(name, &path, Bytes::from(bytes)).await?;
        Ok(page)
    }

    /// Puts the root of a finished cut, and makes clean what is in it.
    async fn publish(
        &self,
        volume: u64,
        seq: u64,
        purpose: Purpose,
        nodes: Vec<(u32, PageRef)>,
    ) -> Result<()> {
        let (old, size, name) = {
            let state = self.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            let remote = entry.remote.clone().ok_or_else(|| self.stopped())?;
            let size = entry.cut.as_ref().map_or(entry.page.size, |cut| cut.size);
            (remote, size, entry.page.name.clone())
        };
        let nonce = self.random();
        // Given up here before it is there: whatever happens between, two never serve it.
        let (page_state, root_state) = match purpose {
            Purpose::Release => (Some(VolumeState::Released), RootState::Released),
            Purpose::Upload | Purpose::Publish => (None, RootState::Owned),
        };
        self.attempt(volume, nonce, page_state).await?;
        let root = Root {
            uuid: old.root.uuid,
            size,
            epoch: old.root.epoch,
            seq,
            nonce,
            owner: self.cache_id,
            state: root_state,
            published_at_ms: super::unix_ms(),
            nodes,
        };
        let published = self.put_root(volume, &name, root, old).await?;
        let left = self.published_root(volume, &published);
        self.write_page(volume, &mut |page| {
            if purpose == Purpose::Publish {
                page.state = VolumeState::Active;
            }
        })
        .await?;
        self.maintenance_wake.notify_one();
        self.space.notify_waiters();
        for key in left {
            self.load(key).await?;
        }
        Ok(())
    }

    /// Takes a root as the newest. Returns chunks whose headers must be read to make them clean.
    fn published_root(&self, volume: u64, remote: &RemoteRoot) -> Vec<Key> {
        let mut state = self.state();
        let mut left = Vec::new();
        let mut clean = BTreeMap::new();
        if let Some(entry) = state.volumes.get_mut(&volume) {
            entry.is_published(&remote.root);
            // Their condition was the root before: those that were not there by now never will be.
            entry.page.attempts.clear();
            entry.remote = Some(remote.clone());
            if let Some(cut) = &mut entry.cut {
                clean = std::mem::take(&mut cut.uploaded);
            }
        }
        for (chunk, blocks) in clean {
            let key = Key { volume, chunk };
            if state.needs_header(key) {
                left.push(key);
            }
            state.clean(key, &blocks);
        }
        state.recount_log(volume);
        state.counters.cuts += 1;
        drop(state);
        self.cut_published.notify_waiters();
        left
    }

    /// Waits until a cut of at least `seq` is published.
    pub(crate) async fn published(&self, volume: u64, seq: u64) -> Result<()> {
        loop {
            let reached = self.state().volumes.get(&volume).map(|v| v.page.published >= seq);
            match reached {
                Some(true) => return Ok(()),
                None => return Err(Error::Gone),
                Some(false) => {}
            }
            // Whoever comes while a cut is under way shares the next one.
            let before = self.state().log.next_seq.saturating_sub(1);
            let cut = self.cut(volume, Purpose::Upload).await?;
            if cut >= seq || before < seq {
                return Ok(());
            }
            if self.state().volumes.get(&volume).is_none_or(|v| v.dirty_bytes() == 0) {
                return Ok(());
            }
        }
    }

    /// Volumes that are served and have something to upload.
    fn dirty_volumes(&self) -> BTreeSet<u64> {
        let state = self.state();
        let served = state.volumes.iter().filter(|(_, v)| v.refusing.is_none());
        let dirty = served.filter(|(_, v)| v.dirty_bytes() > 0 && !state.is_stopping);
        dirty.map(|(id, _)| *id).collect()
    }

    /// Uploads a volume, and says whether that went well.
    async fn try_upload(&self, volume: u64) -> (u64, bool) {
        let done = self.cut(volume, Purpose::Upload).await;
        if let Err(error) = &done {
            tracing::warn!(%error, "an upload failed and is tried again");
        }
        (volume, done.is_ok())
    }

    /// The task that uploads whatever is dirty. Each volume has turns of its own: one that takes long or fails
    /// holds up no other.
    pub(crate) async fn run_uploads(self: Arc<Inner>) {
        let mut running = FuturesUnordered::new();
        let mut busy: BTreeSet<u64> = BTreeSet::new();
        // Those whose turn it is, and those that wait longer since they failed.
        let mut asked: BTreeSet<u64> = BTreeSet::new();
        let mut failing: BTreeMap<u64, Retry> = BTreeMap::new();
        let mut round = Instant::now() + self.config.upload_interval;
        let wake = self.upload_wake.notified();
        tokio::pin!(wake);
        loop {
            if self.marks.get().failed {
                return;
            }
            let (dirty, now) = (self.dirty_volumes(), Instant::now());
            asked.retain(|volume| dirty.contains(volume));
            failing.retain(|volume, _| dirty.contains(volume) || busy.contains(volume));
            let idle: Vec<u64> = dirty.difference(&busy).copied().collect();
            for volume in idle {
                let is_due = match failing.get(&volume) {
                    Some(retry) => retry.at <= now,
                    None => asked.contains(&volume),
                };
                if is_due {
                    asked.remove(&volume);
                    busy.insert(volume);
                    running.push(self.try_upload(volume));
                }
            }
            let waiting = failing.iter().filter(|(volume, _)| !busy.contains(*volume));
            let next = waiting.map(|(_, retry)| retry.at).min().map_or(round, |at| at.min(round));
            tokio::select! {
                biased;
                () = wake.as_mut() => {
                    wake.set(self.upload_wake.notified());
                    // Also those that are busy: what they have by now is not in the cut under way.
                    asked.extend(self.dirty_volumes());
                }
                Some((volume, is_done)) = running.next() => {
                    busy.remove(&volume);
                    let before = failing.remove(&volume).map(|retry| retry.pause);
                    if !is_done {
                        let shortest = self.config.upload_retry;
                        let pause = before.map_or(shortest, |pause| pause * 2);
                        let pause = pause.min(LONGEST_RETRY).max(shortest);
                        let at = Instant::now() + pause.mul_f64(0.5 + self.random_unit());
                        failing.insert(volume, Retry { at, pause });
                    }
                }
                () = tokio::time::sleep_until(next) => {
                    if Instant::now() >= round {
                        round = Instant::now() + self.config.upload_interval;
                        asked.extend(self.dirty_volumes().difference(&busy));
                    }
                }
            }
        }
    }
}

/// Where in `first..end` a pack ends that has room for so many blocks: between two frames if not at the end,
/// so that what a miss fetches lies in one object.
fn pack_until(first: u16, end: u16, room: u16) -> u16 {
    if room >= end - first {
        return end;
    }
    ((first + room) / FRAME_BLOCKS * FRAME_BLOCKS).max(first)
}

/// Blocks that a header calls lost and no newer record replaces.
fn lost_in(chunk: &Chunk, header: &SlotHeader) -> BlockSet {
    let mut lost = header.lost;
    for run in chunk.log.iter() {
        lost.remove_range(run.first..run.end());
    }
    lost
}

impl Pack<'_> {
    /// Blocks that it may have more.
    fn room(&self) -> u16 {
        (MAX_BLOCKS - self.entries.len()) as u16
    }

    fn add(&mut self, chunk: u32, first: u16, data: &Bytes) {
        for (i, block) in data.chunks(BLOCK_BYTES as usize).enumerate() {
            self.entries.push(PackEntry { chunk, block: first + i as u16, crc: crc32c(block) });
        }
        self.parts.push(data.clone());
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
