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
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::refusal::Refusal;
use super::state::{Cut, Key, RemoteRoot};
use super::{Inner, Plant, planted, unix_ms};
use crate::CHUNK_BLOCKS;
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::index::PageRef;
use crate::format::root::{Root, RootState};
use crate::format::volume_page::VolumeState;
use crate::volume_name::VolumeName;

mod kept;
mod pack;

pub(crate) use kept::{Changes, Kept};

use pack::{Pack, pack_until};

/// Longest pause between two uploads that fail, give or take half of it.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Slot headers that are read at the same time to find out whether something is lost.
const CHECKED_AT_ONCE: usize = 16;

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

/// A cut that begins.
struct Begun {
    /// What is in it: everything up to this sequence.
    seq: u64,
    /// The root that it goes on from, and replaces. `None` if there is nothing new: everything is published.
    base: Option<RemoteRoot>,
    /// What of it is in packs already, perhaps with older values.
    kept: Kept,
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

/// When an upload that failed is tried again.
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Inner {
    /// Waits until no cut of the volume is under way. None begins while the answer is held.
    pub(crate) async fn cut_turn(&self, volume: u64) -> Result<OwnedMutexGuard<()>> {
        let turn = {
            let state = self.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            Arc::clone(&entry.uploading)
        };
        Ok(turn.lock_owned().await)
    }

    /// Uploads everything up to now and publishes it. Returns the sequence up to which everything is published.
    pub(crate) async fn cut(&self, volume: u64, purpose: Purpose) -> Result<u64> {
        let _turn = self.cut_turn(volume).await?;
        self.cut_in_turn(volume, purpose).await
    }

    /// Waits until everything up to `seq` is published.
    pub(crate) async fn published(&self, volume: u64, seq: u64) -> Result<()> {
        let is_reached = || {
            let state = self.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            Ok::<bool, Error>(entry.page.published >= seq)
        };
        if is_reached()? {
            return Ok(());
        }
        let _turn = self.cut_turn(volume).await?;
        // All who waited share the first cut that began after they came.
        if is_reached()? {
            return Ok(());
        }
        self.cut_in_turn(volume, Purpose::Upload).await.map(drop)
    }

    /// [`cut`](Self::cut) for who has its turn.
    async fn cut_in_turn(&self, volume: u64, purpose: Purpose) -> Result<u64> {
        let done = self.try_cut(volume, purpose).await;
        self.cut_ended(volume, &done);
        done
    }

    async fn try_cut(&self, volume: u64, purpose: Purpose) -> Result<u64> {
        let name = self.name(volume)?;
        // Those who come to their turn when the gateway stops do not wait for the store one after another.
        if purpose == Purpose::Upload && self.state().is_stopping {
            return Err(self.cut_short(volume));
        }
        if self.is_deleting(volume) {
            return Err(Error::NotServed { volume: name, state: Refusal::Deleting });
        }
        self.fit(&name).await?;
        // Asking for the root first keeps cuts from beginning, and holding the log up, in an outage.
        self.forget_root(volume);
        self.root(volume).await?;
        self.check_whole(volume, &name).await?;
        let Begun { seq, base, kept } = self.begin_cut(volume, purpose)?;
        let Some(base) = base else {
            return Ok(seq);
        };
        let mut ending = Ending { inner: self, volume, changes: kept.into_changes() };
        self.upload_cut(volume, seq, purpose, base, &mut ending.changes).await?;
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
                // A dirty cache of a terabyte has a quarter of a million headers, so each is read once.
                slot.is_some_and(|slot| slot.entry.dirty != 0 && slot.has_lost != Some(false))
            });
            chunks.map(|(key, _)| *key).collect()
        };
        for keys in keys.chunks(CHECKED_AT_ONCE) {
            let lost = try_join_all(keys.iter().map(|key| self.lost_blocks(*key))).await?;
            for (key, lost) in keys.iter().zip(lost) {
                if let Some(blocks) = lost.runs(CHUNK_BLOCKS).into_iter().next() {
                    return Err(self.lost_range(*key, &blocks));
                }
            }
        }
        Ok(())
    }

    /// Blocks of a chunk whose newest values its header calls lost, and no pack has either.
    async fn lost_blocks(&self, key: Key) -> Result<BlockSet> {
        loop {
            self.load(key).await?;
            let state = self.state();
            if state.needs_header(key) {
                continue;
            }
            let (chunk, header) = (state.chunks.get(&key), state.header(key));
            let (Some(chunk), Some((_, header))) = (chunk, header) else {
                return Ok(BlockSet::EMPTY);
            };
            let entry = state.volumes.get(&key.volume).ok_or(Error::Gone)?;
            let kept = entry.kept.newest(key.chunk);
            return Ok(header.lost.without(&chunk.in_log()).without(&kept));
        }
    }

    /// Chooses the sequence and what is in the cut.
    fn begin_cut(&self, volume: u64, purpose: Purpose) -> Result<Begun> {
        let mut state = self.state();
        let state = &mut *state;
        let seq = state.log.next_seq.saturating_sub(1);
        let entry = state.volumes.get_mut(&volume).ok_or(Error::Gone)?;
        // With `published`, which is this root's: whoever reads may find a newer one at any time.
        let base = entry.remote.clone().ok_or_else(|| self.stopped())?;
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
                        blocks.add(&header.lost.without(&chunk.in_log()));
                    }
                    // Groups of which a block is dirty; which one shows when the header is read.
                    None => blocks.add(&BlockSet::from_summary(slot.entry.dirty)),
                }
            }
            if !blocks.is_empty() {
                pending.insert(key.chunk, blocks);
            }
        }
        let kept = std::mem::take(&mut entry.kept);
        // A release that nobody was told of must not stand while the volume is served.
        let always = purpose != Purpose::Upload || base.root.state != RootState::Owned;
        let size = entry.page.size;
        if pending.is_empty() && !always && base.root.size == size {
            return Ok(Begun { seq, base: None, kept });
        }
        let uploaded = kept.take_from(&mut pending);
        entry.cut = Some(Cut { seq, size, pending, uploaded, urgent: Default::default() });
        Ok(Begun { seq, base: Some(base), kept })
    }

    /// Lets go of what the cut held. `changes`: what it put and did not publish.
    fn end_cut(&self, volume: u64, changes: Changes) {
        let mut kept = Kept::new(changes);
        let mut state = self.state();
        if let Some(entry) = state.volumes.get_mut(&volume) {
            entry.cut = None;
            kept.take_written(&mut entry.kept);
            // Nothing more is uploaded of a volume that another gateway has.
            if !kept.is_empty() && entry.superseded_by.is_none() {
                entry.kept = std::mem::take(&mut kept);
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
        base: RemoteRoot,
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
                        self.put_pack(&name, &base.root, filling, changes).await?;
                    } else {
                        pack = Some(filling);
                    }
                }
            }
            self.taken(key, &blocks);
        }
        if let Some(pack) = pack.filter(|pack| !pack.is_empty()) {
            self.put_pack(&name, &base.root, pack, changes).await?;
        }
        let nodes = self.put_index(&name, &base.root, changes).await?;
        self.publish(volume, seq, purpose, base, nodes).await
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
        dirty.intersect(blocks);
        Ok(Some(dirty))
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

    /// Puts the root of a finished cut, and makes clean what is in it.
    async fn publish(
        &self,
        volume: u64,
        seq: u64,
        purpose: Purpose,
        base: RemoteRoot,
        nodes: Vec<(u32, PageRef)>,
    ) -> Result<()> {
        let (size, name) = {
            let state = self.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            let size = entry.cut.as_ref().map_or(entry.page.size, |cut| cut.size);
            (size, entry.page.name.clone())
        };
        let nonce = self.random();
        // Given up here before it is there: whatever happens between, two never serve it.
        let (page_state, root_state) = match purpose {
            Purpose::Release => (Some(VolumeState::Released), RootState::Released),
            Purpose::Upload | Purpose::Publish => (None, RootState::Owned),
        };
        self.attempt(volume, nonce, seq, page_state).await?;
        let root = Root {
            uuid: base.root.uuid,
            size,
            epoch: base.root.epoch,
            seq,
            nonce,
            owner: self.cache_id,
            state: root_state,
            published_at_ms: unix_ms(),
            nodes,
        };
        let published = self.put_root(volume, &name, root, base).await?;
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
            self.wait_for_room_for_headers().await?;
            self.load(key).await?;
        }
        self.ask_for_room_for_headers();
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
        // There may be a slot now.
        state.log.moves();
        state.counters.cuts += 1;
        left
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
                    // What they failed for is gone.
                    failing.retain(|volume, _| !self.take_mended(*volume));
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
