//! Who owns a volume: creating, taking, giving up, and finding out that somebody else took it.
//!
//! The root's epoch decides. It grows with every change of owner, and a root is only ever replaced under
//! the condition that nobody else replaced it.

use std::sync::Arc;

use bytes::Bytes;

use super::refusal::Refusal;
use super::roots::LONGEST_ROOT;
use super::state::{Key, RemoteRoot, VolumeEntry};
use super::upload::Purpose;
use super::volume::VolumeOptions;
use super::{Cache, Inner, Plant, Volume, planted, unix_ms};
use crate::error::{Error, Result};
use crate::format::root::{Root, RootState};
use crate::format::superblock::{MAX_VOLUMES, VOLUME_PAGES};
use crate::format::volume_page::{Durability, VolumePage, VolumeState};
use crate::remote::{StoreError, answer_by};
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, MAX_VOLUME_BYTES, SlotId};

/// Keeps a name for who makes or takes a volume of it: until that is done nobody else does.
struct Claiming<'a> {
    inner: &'a Inner,
    name: VolumeName,
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.inner.state().claiming.remove(&self.name);
    }
}

impl Cache {
    /// Makes a new volume of `size` bytes, all zeros, in the store and here.
    pub async fn create_volume(
        &self,
        name: &VolumeName,
        size: u64,
        options: VolumeOptions,
    ) -> Result<Volume> {
        check_size(size)?;
        let inner = &self.inner;
        let _claiming = inner.begin_claim(name)?;
        inner.check_free_name(name)?;
        let (uuid, nonce) =
            (u128::from(inner.random()) << 64 | u128::from(inner.random()), inner.random());
        // Durable: after a power cut the sequences up to there must not be used again.
        let seq = inner.flush_all().await?;
        let claimed = inner.claim(name, nonce, |found| match found {
            // Epochs go on where a deleted volume of this name ended, so that none is used twice.
            Some(found) if found.state != RootState::Deleted => {
                Err(Error::VolumeExists { volume: name.clone() })
            }
            found => Ok(Root {
                uuid,
                size,
                epoch: found.map_or(1, |found| found.epoch + 1),
                seq,
                nonce,
                owner: inner.cache_id,
                state: RootState::Owned,
                published_at_ms: unix_ms(),
                nodes: Vec::new(),
            }),
        });
        inner.add_volume(name, claimed.await?, options).await
    }

    /// Takes a volume that is in the store: one that its owner released, one of this cache whose page was
    /// lost, or, with `take_over`, any. Taking over asserts that the former owner is dead: what it did not
    /// upload stays behind in its quarantine.
    pub async fn attach_volume(
        &self,
        name: &VolumeName,
        options: VolumeOptions,
        take_over: bool,
    ) -> Result<Volume> {
        let inner = &self.inner;
        let _claiming = inner.begin_claim(name)?;
        if let Some(volume) = inner.settle_released(name).await? {
            volume.set_options(options).await?;
            return Ok(volume);
        }
        inner.check_free_name(name)?;
        let nonce = inner.random();
        let seq = inner.flush_all().await?;
        let claimed = inner.claim(name, nonce, |found| match found {
            None => Err(Error::NoVolume { volume: name.clone() }),
            Some(found) if found.state == RootState::Deleted => {
                Err(Error::NoVolume { volume: name.clone() })
            }
            Some(found)
                if found.state == RootState::Owned
                    && found.owner != inner.cache_id
                    && !take_over =>
            {
                Err(Error::Owned { volume: name.clone(), owner: found.owner })
            }
            Some(found) => Ok(Root {
                epoch: found.epoch + 1,
                seq,
                nonce,
                owner: inner.cache_id,
                state: RootState::Owned,
                ..found
            }),
        });
        inner.add_volume(name, claimed.await?, options).await
    }

    /// The volumes in this cache.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        let state = self.inner.state();
        state.volumes.keys().map(|id| Volume::new(Arc::clone(&self.inner), *id)).collect()
    }

    /// The volumes in the store, whoever owns them.
    pub async fn stored_volumes(&self) -> Result<Vec<VolumeName>> {
        let inner = &self.inner;
        let names = answer_by(inner.deadline(), "", inner.store.list()).await?;
        let mut found = Vec::new();
        for name in names.iter().filter_map(|name| VolumeName::new(name).ok()) {
            let path = format!("{name}/root");
            let got = inner.store.get(&path, LONGEST_ROOT);
            match answer_by(inner.deadline(), &path, got).await {
                // Of a volume that was deleted the root says so.
                Ok((root, _))
                    if Root::parse(&root).is_ok_and(|root| root.state == RootState::Deleted) => {}
                // One that is damaged is there, too.
                Ok(_) | Err(StoreError::TooLarge { .. }) => found.push(name),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// A volume by its name.
    pub fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let state = self.inner.state();
        let found = state.volumes.iter().find(|(_, entry)| entry.page.name == *name);
        let (id, _) = found.ok_or_else(|| Error::NoVolume { volume: name.clone() })?;
        Ok(Volume::new(Arc::clone(&self.inner), *id))
    }

    /// Uploads everything and gives the volume up, so that another gateway may take it. Requests that
    /// come meanwhile are refused. After an error the volume is served again, unless the store does not
    /// even say whether it is released: then it may be tried again.
    pub async fn release_volume(&self, name: &VolumeName) -> Result<()> {
        let volume = self.volume(name)?.id();
        let in_doubt = {
            let state = self.inner.state();
            state.volumes.get(&volume).is_some_and(|v| v.refusing == Some(Refusal::InDoubt))
        };
        if !in_doubt {
            self.inner.serving(volume)?;
        }
        let refuse = |why| {
            if let Some(entry) = self.inner.state().volumes.get_mut(&volume) {
                entry.refusing = why;
            }
            // Who waits for room is not to wait any more.
            self.inner.space.notify_waiters();
        };
        refuse(Some(Refusal::Releasing));
        let Err(error) = self.inner.cut(volume, Purpose::Release).await else {
            refuse(Some(Refusal::Released));
            return self.inner.discard(volume).await;
        };
        let (is_lost, given_up) = {
            let state = self.inner.state();
            let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
            let is_lost =
                entry.superseded_by.is_some() || entry.refusing == Some(Refusal::Replaced);
            (is_lost, entry.page.state == VolumeState::Released)
        };
        if is_lost {
            return Err(error);
        }
        // The root that releases the volume may be there, or still arrive. One that does not, put over it,
        // settles that.
        if given_up && self.inner.cut(volume, Purpose::Publish).await.is_err() {
            refuse(Some(Refusal::InDoubt));
        } else {
            refuse(None);
        }
        Err(error)
    }

    /// Forgets a volume that is released or in quarantine, or whose name is another volume's in the store, with
    /// whatever this cache has of it.
    pub async fn forget_volume(&self, name: &VolumeName) -> Result<()> {
        let inner = &self.inner;
        let volume = self.volume(name)?.id();
        inner.check_settled(volume)?;
        // No cut is under way meanwhile, and none begins: it would take what is dropped for zeros or for clean.
        let _turn = inner.cut_turn(volume).await?;
        let mut is_anothers = false;
        if inner.check_settled(volume)?.is_none() {
            inner.forget_root(volume);
            match inner.root(volume).await {
                Err(Error::OtherVolume { .. }) => is_anothers = true,
                // One whose root somebody removed can be deleted.
                Ok(_) | Err(Error::NoVolume { .. }) => {
                    return Err(Error::Served { volume: name.clone() });
                }
                Err(error) => return Err(error),
            }
        }
        inner.begin_to_forget(volume, is_anothers)?;
        inner.discard(volume).await
    }
}

pub(crate) fn check_size(size: u64) -> Result<()> {
    let legal = size > 0 && size <= MAX_VOLUME_BYTES && size.is_multiple_of(BLOCK_BYTES);
    if legal { Ok(()) } else { Err(Error::Size { size }) }
}

impl Inner {
    /// Finds out about a volume of this name whose release began here. If the store knows of it, it has
    /// everything, and what is here is forgotten; if not, only this cache has what was not uploaded: the
    /// volume is served again.
    async fn settle_released(self: &Arc<Inner>, name: &VolumeName) -> Result<Option<Volume>> {
        let released = {
            let state = self.state();
            let found = state.volumes.iter().find(|(_, entry)| entry.page.name == *name);
            found
                .filter(|(_, v)| matches!(v.refusing, Some(Refusal::Released | Refusal::InDoubt)))
                .map(|(id, _)| *id)
        };
        let Some(volume) = released else {
            return Ok(None);
        };
        self.forget_root(volume);
        if self.root(volume).await?.root.state == RootState::Released {
            self.discard(volume).await?;
            return Ok(None);
        }
        self.cut(volume, Purpose::Publish).await?;
        if let Some(entry) = self.state().volumes.get_mut(&volume) {
            entry.refusing = None;
        }
        Ok(Some(Volume::new(Arc::clone(self), volume)))
    }

    /// Why a volume is not served. Fails while something else is done to it that ends by itself, and once the cache
    /// has stopped.
    fn check_settled(&self, volume: u64) -> Result<Option<Refusal>> {
        self.check_running()?;
        let state = self.state();
        let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
        match entry.refusing {
            Some(state) if state.ends_by_itself() => {
                Err(Error::NotServed { volume: entry.page.name.clone(), state })
            }
            settled => Ok(settled),
        }
    }

    /// From here on nothing else is done to a volume than to forget it: one that is not served, or whose name is another
    /// one's in the store.
    fn begin_to_forget(&self, volume: u64, is_anothers: bool) -> Result<()> {
        let mut state = self.state();
        let entry = state.volumes.get_mut(&volume).ok_or(Error::Gone)?;
        let name = || entry.page.name.clone();
        match entry.refusing {
            // It may have begun meanwhile.
            Some(state) if state.ends_by_itself() => {
                Err(Error::NotServed { volume: name(), state })
            }
            None if !is_anothers => Err(Error::Served { volume: name() }),
            _ => {
                entry.refusing = Some(Refusal::Forgetting);
                Ok(())
            }
        }
    }

    fn begin_claim(&self, name: &VolumeName) -> Result<Claiming<'_>> {
        self.check_running()?;
        if !self.state().claiming.insert(name.clone()) {
            return Err(Error::VolumeExists { volume: name.clone() });
        }
        Ok(Claiming { inner: self, name: name.clone() })
    }

    /// Checks that there is room for a volume of a name that is being claimed.
    fn check_free_name(&self, name: &VolumeName) -> Result<()> {
        let state = self.state();
        if state.volumes.values().any(|entry| entry.page.name == *name) {
            return Err(Error::VolumeExists { volume: name.clone() });
        }
        if state.volumes.len() + state.claiming.len() > MAX_VOLUMES as usize {
            return Err(Error::TooManyVolumes { limit: MAX_VOLUMES });
        }
        Ok(())
    }

    async fn add_volume(
        self: &Arc<Inner>,
        name: &VolumeName,
        remote: RemoteRoot,
        options: VolumeOptions,
    ) -> Result<Volume> {
        let id = {
            let mut state = self.state();
            let used: Vec<u32> = state.volumes.values().map(|entry| entry.page_index).collect();
            let page_index = (0..MAX_VOLUMES).find(|index| !used.contains(index));
            let page_index = page_index.ok_or(Error::TooManyVolumes { limit: MAX_VOLUMES })?;
            // Numbers are not used again while records of them may be in the log.
            let id = state.next_volume.max(state.log.next_seq);
            state.next_volume = id + 1;
            let page = VolumePage {
                cache_id: self.cache_id,
                generation: 0,
                id,
                uuid: remote.root.uuid,
                name: name.clone(),
                size: remote.root.size,
                epoch: remote.root.epoch,
                published: remote.root.seq,
                root_nonce: remote.root.nonce,
                state: VolumeState::Active,
                durability: options.durability,
                dirty_quota: options.dirty_quota,
                published_at_ms: remote.root.published_at_ms,
                attempts: Vec::new(),
                attempted: 0,
            };
            let mut entry = VolumeEntry::new(page_index, page, Some(Refusal::BeingMade));
            entry.remote = Some(remote);
            state.volumes.insert(id, entry);
            id
        };
        // Both copies, so that from the first answer on one that is damaged takes nothing.
        for _ in 0..2 {
            self.write_page(id, &mut |_| {}).await?;
        }
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            entry.refusing = None;
        }
        Ok(Volume::new(Arc::clone(self), id))
    }

    /// Changes a volume's page and writes it, durably, beside the copy before.
    pub(crate) async fn write_page(
        &self,
        volume: u64,
        change: &mut (dyn FnMut(&mut VolumePage) + Send),
    ) -> Result<()> {
        let _turn = self.pages.lock().await;
        let Some((at, copy, bytes)) = ({
            let mut state = self.state();
            let state = &mut *state;
            state.volumes.get_mut(&volume).map(|entry| {
                change(&mut entry.page);
                state.page_generation += 1;
                entry.page.generation = state.page_generation;
                let newest = state.page_copies.get(&entry.page_index).copied().unwrap_or(1);
                let copy = 1 - newest.min(1);
                let block = u64::from(entry.page_index) * 2 + u64::from(copy);
                (VOLUME_PAGES + block * BLOCK_BYTES, (entry.page_index, copy), entry.page.emit())
            })
        }) else {
            return Ok(());
        };
        if let Err(error) = self.disk.write(at, vec![Bytes::from(bytes)]).await {
            self.fail(&error);
            return Err(error.into());
        }
        // The sync of what an upload notes before it puts the root would make its cut durable, too.
        if !planted(Plant::CutBeforeFlush) {
            self.barrier().await?;
        }
        let (index, copy) = copy;
        self.state().page_copies.insert(index, copy);
        Ok(())
    }

    /// Changes what FLUSH promises and how much may be dirty.
    pub(crate) async fn set_options(&self, volume: u64, options: VolumeOptions) -> Result<()> {
        self.serving(volume)?;
        let VolumeOptions { durability, dirty_quota } = options;
        let durability: Durability = durability;
        let mut change = |page: &mut VolumePage| {
            page.durability = durability;
            page.dirty_quota = dirty_quota;
        };
        self.write_page(volume, &mut change).await?;
        // Where the quota was raised, writers may go on.
        self.space.notify_waiters();
        Ok(())
    }

    /// Drops everything that the cache has of a volume, and its page.
    pub(crate) async fn discard(&self, volume: u64) -> Result<()> {
        // The page first: records and slots of a volume that is gone mean nothing to recovery.
        self.write_page(volume, &mut |page| page.state = VolumeState::Gone).await?;
        let _turn = self.maintenance.lock().await;
        let keys: Vec<Key> = {
            let state = self.state();
            let range = Key { volume, chunk: 0 }..=Key { volume, chunk: u32::MAX };
            state.chunks.range(range).map(|(key, _)| *key).collect()
        };
        let mut slots: Vec<SlotId> = Vec::new();
        for key in keys {
            let Some(guard) = self.lock(key).await else {
                continue;
            };
            // The header's version must be known before a free one can be written.
            self.load_locked(key, &guard).await?;
            let slot = {
                let mut state = self.state();
                if let Some(chunk) = state.chunks.get_mut(&key) {
                    chunk.log.clear();
                    chunk.frozen.clear();
                }
                let slot = state.chunks.get(&key).and_then(|chunk| chunk.slot);
                match slot {
                    Some(slot) => {
                        state.vacate(slot);
                    }
                    None => state.forget_if_empty(key),
                }
                slot
            };
            if let Some(slot) = slot {
                self.write_free_header(slot).await?;
                slots.push(slot);
            }
        }
        self.barrier().await?;
        let mut state = self.state();
        state.free.extend(slots);
        state.log.moves();
        state.volumes.remove(&volume);
        drop(state);
        self.maintenance_wake.notify_one();
        self.space.notify_waiters();
        Ok(())
    }
}
