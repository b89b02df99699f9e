//! Roots: reading them, telling whose they are, and replacing them.
//!
//! A root is ours if it has our epoch, names this cache, and has a nonce that this cache chose. The nonce is
//! what tells copies of one cache file apart, which have epoch and identity in common. Each nonce is on the disk
//! before a root with it is put, so that a put whose answer was lost is known as ours, also after a restart.
//!
//! A root of another identity is no such thing: the store may be the wrong one. Whoever takes a volume over keeps
//! its identity.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::refusal::Refusal;
use super::state::{RemoteRoot, VolumeEntry};
use super::{Inner, Plant, index, planted};
use crate::error::{Error, Result};
use crate::format::root::Root;
use crate::format::volume_page::{MAX_ATTEMPTS, VolumePage, VolumeState};
use crate::remote::{ObjectVersion, StoreError, answer_by};
use crate::volume_name::VolumeName;

/// Longest root that is read, far above what is legal: one of a later version is told from a damaged one.
pub(crate) const LONGEST_ROOT: usize = 1 << 20;

/// Roots of idle volumes that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 16;

/// Whose a root is.
#[derive(Debug)]
enum Whose {
    /// This cache put it, or took the volume with it.
    Ours,
    /// Another gateway has the volume, or another copy of this cache.
    Theirs,
    /// It is that of another volume of the same name.
    Another,
    /// Neither: the store lost something, or this disk did. Says what.
    Wrong(String),
}

impl Inner {
    /// Reads a volume's root.
    pub(crate) async fn get_root(&self, name: &VolumeName) -> Result<(Root, ObjectVersion)> {
        self.get_root_by(self.deadline(), name).await
    }

    /// The same, for which the store is asked until `deadline`.
    async fn get_root_by(
        &self,
        deadline: Instant,
        name: &VolumeName,
    ) -> Result<(Root, ObjectVersion)> {
        let path = format!("{name}/root");
        let mut asked_again = false;
        loop {
            let get = || self.store.get(&path, LONGEST_ROOT);
            let (bytes, version) = match self.patiently_until(deadline, name, get).await {
                Err(Error::Store(StoreError::NotFound { .. })) => {
                    return Err(Error::NoVolume { volume: name.clone() });
                }
                Err(Error::Store(StoreError::TooLarge { bytes, limit, .. })) => {
                    let cause = format!("{bytes} bytes; none has more than {limit}");
                    return Err(index::damaged(name, &path, &cause));
                }
                other => other?,
            };
            match Root::parse(&bytes) {
                Ok(root) => return Ok((root, version)),
                Err(error) if asked_again => return Err(index::damaged(name, &path, &error)),
                // A wrong answer may be the way's fault, not the object's: ask twice.
                Err(_) => asked_again = true,
            }
        }
    }

    /// Forgets that the root was read, so that the next use reads it again. What was read is kept for
    /// those who read by it.
    pub(crate) fn forget_root(&self, volume: u64) {
        if let Some(entry) = self.state().volumes.get_mut(&volume) {
            entry.root_unsure = true;
        }
    }

    fn whose(&self, volume: u64, root: &Root) -> Result<Whose> {
        let state = self.state();
        let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
        let VolumePage { uuid, epoch, published, root_nonce, attempts, .. } = &entry.page;
        if root.uuid != *uuid {
            return Ok(Whose::Another);
        }
        if root.epoch > *epoch || root.owner != self.cache_id {
            return Ok(Whose::Theirs);
        }
        let is_known =
            root.nonce == *root_nonce || attempts.contains(&root.nonce) || planted(Plant::AnyNonce);
        let is_older = root.epoch < *epoch || root.seq < *published;
        if !is_known && !is_older {
            return Ok(Whose::Theirs);
        }
        if is_older || root.seq >= state.log.next_seq {
            return Ok(Whose::Wrong(format!(
                "epoch {} and sequence {} are not those published last (epoch {epoch}, sequence {published})",
                root.epoch, root.seq
            )));
        }
        Ok(Whose::Ours)
    }

    /// The newest root of a volume of ours. Read at first use; from then on only we replace it, or lose
    /// the volume.
    pub(crate) async fn root(&self, volume: u64) -> Result<RemoteRoot> {
        self.root_by(self.deadline(), volume).await
    }

    /// The same, for which the store is asked until `deadline`.
    pub(crate) async fn root_by(&self, deadline: Instant, volume: u64) -> Result<RemoteRoot> {
        loop {
            let (before, name) = {
                let state = self.state();
                let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
                match &entry.remote {
                    Some(known) if !entry.root_unsure => return Ok(known.clone()),
                    _ => (entry.root_nonce(), entry.page.name.clone()),
                }
            };
            let (root, version) = self.get_root_by(deadline, &name).await?;
            let whose = self.whose(volume, &root)?;
            if !matches!(whose, Whose::Ours) && root.owner == self.cache_id {
                // It is judged by what is known now, and may be of before: another one of ours came meanwhile.
                let state = self.state();
                let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
                if entry.root_nonce() != before {
                    continue;
                }
            }
            match whose {
                Whose::Ours => {
                    let remote = RemoteRoot { root: Arc::new(root), version };
                    return self.note_root(volume, before, remote);
                }
                Whose::Theirs => return Err(self.superseded(volume, root.epoch).await),
                Whose::Another => return Err(self.another(volume, &root)),
                Whose::Wrong(what) => {
                    return Err(index::damaged(&name, &format!("{name}/root"), &what));
                }
            }
        }
    }

    /// Looks at the roots of volumes that have nothing to upload, since nothing else would tell that somebody took
    /// them over.
    async fn check_owners(&self) {
        let volumes: Vec<u64> = self.state().volumes.keys().copied().collect();
        let looks = volumes.into_iter().map(|volume| async move {
            match self.look_at_root(volume).await {
                // Of another owner it was told when it was found out.
                Ok(()) | Err(Error::Gone | Error::Superseded { .. }) => {}
                Err(error @ (Error::Store(_) | Error::StoreTimeout { .. })) => {
                    tracing::debug!(%error, "nobody knows whose a volume is");
                }
                Err(error) => tracing::warn!(%error, "a volume's root is not as it should be"),
            }
        });
        stream::iter(looks).for_each_concurrent(LOOKS_AT_ONCE, |look| look).await;
    }

    /// Reads the root of a volume that is served and idle, and ends its service if it is not ours. What is known of it
    /// stays what reads go by meanwhile.
    async fn look_at_root(&self, volume: u64) -> Result<()> {
        let idle_since = || {
            let state = self.state();
            let entry = state.volumes.get(&volume)?;
            let is_idle = entry.refusing.is_none() && entry.cut.is_none();
            let is_idle = is_idle && entry.dirty_bytes() == 0 && !state.is_stopping;
            is_idle.then(|| (entry.root_nonce(), entry.page.name.clone()))
        };
        let Some(before) = idle_since() else {
            return Ok(());
        };
        let (root, _) = self.get_root(&before.1).await?;
        let whose = self.whose(volume, &root)?;
        // If something of ours came meanwhile, it may be judged by what is of later.
        if root.owner == self.cache_id && idle_since() != Some(before.clone()) {
            return Ok(());
        }
        match whose {
            Whose::Ours => Ok(()),
            Whose::Theirs => Err(self.superseded(volume, root.epoch).await),
            Whose::Another => Err(self.another(volume, &root)),
            Whose::Wrong(what) => {
                Err(index::damaged(&before.1, &format!("{}/root", before.1), &what))
            }
        }
    }

    /// The task that does so at the start and from time to time.
    pub(crate) async fn run_owner_checks(self: Arc<Inner>) {
        loop {
            self.check_owners().await;
            tokio::time::sleep(self.config.owner_check_interval).await;
        }
    }

    /// Takes a root of ours as the newest, if none became known since it was asked for, when `before` was the newest
    /// one's nonce. Returns the newest.
    fn note_root(&self, volume: u64, before: Option<u64>, found: RemoteRoot) -> Result<RemoteRoot> {
        let mut state = self.state();
        let entry = state.volumes.get_mut(&volume).ok_or(Error::Gone)?;
        if entry.root_nonce() != before {
            return Ok(entry.remote.clone().unwrap_or(found));
        }
        if entry.remote.is_some() && entry.cut.is_some() {
            // A cut under way goes on from the root that it began with, so what that lacks must stay dirty. The next
            // cut takes note of this one.
            return Ok(found);
        }
        entry.root_unsure = false;
        let published = entry.page.published;
        entry.is_published(&found.root);
        entry.remote = Some(found.clone());
        if found.root.seq != published {
            state.recount_log(volume);
        }
        Ok(found)
    }

    /// Another gateway has the volume: from here on nothing is served or uploaded, and what is dirty is
    /// kept for export.
    pub(crate) async fn superseded(&self, volume: u64, epoch: u64) -> Error {
        let (name, ours, first, kept) = {
            let mut state = self.state();
            let Some(entry) = state.volumes.get_mut(&volume) else {
                return Error::Gone;
            };
            let first = entry.superseded_by.replace(epoch).is_none();
            entry.refusing = Some(Refusal::Quarantined);
            let kept = std::mem::take(&mut entry.kept);
            (entry.page.name.clone(), entry.page.epoch, first, kept)
        };
        drop(kept);
        // Who waits for room is not to wait any more.
        self.space.notify_waiters();
        let error = Error::Superseded { volume: name, epoch, ours };
        if first {
            tracing::error!(%error, "nothing of it is served or uploaded any more");
            let mut change = |page: &mut VolumePage| page.state = VolumeState::Quarantined;
            if let Err(error) = self.write_page(volume, &mut change).await {
                return error;
            }
        }
        error
    }

    /// The store has another volume of this name. It may be the wrong store, and with the right one all goes on:
    /// nothing is given up, and what is cached is served. But if the other one is of a later epoch, ours may have
    /// been taken over and deleted before that was made, and its clients must not go on as if nothing were: until
    /// the next start nothing of it is served.
    fn another(&self, volume: u64, found: &Root) -> Error {
        let (error, ends) = {
            let mut state = self.state();
            let Some(entry) = state.volumes.get_mut(&volume) else {
                return Error::Gone;
            };
            let VolumePage { name, uuid, epoch, .. } = &entry.page;
            let error = Error::OtherVolume { volume: name.clone(), found: found.uuid, ours: *uuid };
            let is_later = found.epoch > *epoch;
            let ends = is_later && matches!(entry.refusing, None | Some(Refusal::Releasing));
            if ends {
                entry.refusing = Some(Refusal::Replaced);
            }
            (error, ends)
        };
        if ends {
            tracing::error!(%error, "nothing of it is served until the next start");
            // Who waits for room is not to wait any more.
            self.space.notify_waiters();
        }
        error
    }

    /// Notes on the disk that a root with this nonce, which covers what was durable here up to a sequence, is about to
    /// be put, and with it what the volume becomes.
    pub(crate) async fn attempt(
        &self,
        volume: u64,
        nonce: u64,
        seq: u64,
        state: Option<VolumeState>,
    ) -> Result<()> {
        let mut change = |page: &mut VolumePage| {
            if page.attempts.len() >= MAX_ATTEMPTS {
                page.attempts.remove(0);
            }
            if !planted(Plant::AttemptsForgotten) {
                page.attempts.push(nonce);
            }
            page.attempted = page.attempted.max(seq);
            page.state = state.unwrap_or(page.state);
        };
        self.write_page(volume, &mut change).await
    }

    /// Replaces the root by a conditional put, and finds out what a doubtful answer meant. Its nonce is
    /// among the attempts.
    pub(crate) async fn put_root(
        &self,
        volume: u64,
        name: &VolumeName,
        root: Root,
        old: RemoteRoot,
    ) -> Result<RemoteRoot> {
        let path = format!("{name}/root");
        let bytes = Bytes::from(root.emit());
        let deadline = self.deadline();
        let mut version = old.version;
        let mut pause = Duration::from_millis(50);
        loop {
            let answer = if planted(Plant::PutWithoutCondition) {
                match self.store.get(&path, LONGEST_ROOT).await {
                    Ok((_, found)) => self.store.replace(&path, bytes.clone(), &found).await,
                    Err(error) => Err(error),
                }
            } else {
                let put = self.store.replace(&path, bytes.clone(), &version);
                answer_by(deadline, &path, put).await
            };
            match answer {
                Ok(version) => return Ok(RemoteRoot { root: Arc::new(root), version }),
                Err(StoreError::NotFound { .. }) => {
                    return Err(Error::NoVolume { volume: name.clone() });
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(StoreError::Unavailable { .. }) => self.state().counters.store_failures += 1,
                Err(error) => return Err(error.into()),
            }
            self.in_time(deadline, name)?;
            let (found, now) = self.get_root(name).await?;
            if found.nonce == root.nonce {
                return Ok(RemoteRoot { root: Arc::new(root), version: now });
            }
            match self.whose(volume, &found)? {
                // An earlier put of ours, or what was there before.
                Whose::Ours => {}
                _ if planted(Plant::NoEpochCheck) => {}
                Whose::Theirs => return Err(self.superseded(volume, found.epoch).await),
                Whose::Another => return Err(self.another(volume, &found)),
                Whose::Wrong(what) => return Err(index::damaged(name, &path, &what)),
            }
            version = now;
            self.pause(&mut pause).await;
        }
    }

    /// Puts a root that makes a volume ours over what is there, or where there is nothing, if `next` finds
    /// that right, and finds out what a doubtful answer meant. All roots that `next` gives have `nonce`.
    pub(crate) async fn claim(
        &self,
        name: &VolumeName,
        nonce: u64,
        next: impl Fn(Option<Root>) -> Result<Root> + Send + Sync,
    ) -> Result<RemoteRoot> {
        self.fit(name).await?;
        let path = format!("{name}/root");
        let deadline = self.deadline();
        let mut pause = Duration::from_millis(50);
        loop {
            let (found, version) = match self.get_root(name).await {
                Ok((root, version)) if root.nonce == nonce => {
                    return Ok(RemoteRoot { root: Arc::new(root), version });
                }
                Ok((root, version)) => (Some(root), Some(version)),
                Err(Error::NoVolume { .. }) => (None, None),
                Err(error) => return Err(error),
            };
            let root = next(found)?;
            let bytes = Bytes::from(root.emit());
            let put = match &version {
                Some(version) => self.store.replace(&path, bytes, version),
                None => self.store.create(&path, bytes),
            };
            match answer_by(deadline, &path, put).await {
                Ok(version) => return Ok(RemoteRoot { root: Arc::new(root), version }),
                // Somebody was faster.
                Err(StoreError::Conflict { .. } | StoreError::NotFound { .. }) => {}
                // It may have taken effect, or may still do.
                Err(StoreError::Unavailable { .. }) => self.state().counters.store_failures += 1,
                Err(error) => return Err(error.into()),
            }
            self.in_time(deadline, name)?;
            self.pause(&mut pause).await;
        }
    }

    /// Gives up on a root at `deadline`.
    fn in_time(&self, deadline: Instant, name: &VolumeName) -> Result<()> {
        if Instant::now() < deadline {
            return Ok(());
        }
        let seconds = self.config.fetch_timeout.as_secs();
        let cause = "the root could not be replaced".to_owned();
        Err(Error::StoreTimeout { volume: name.clone(), seconds, cause })
    }

    /// Waits before the next attempt, each time up to twice as long, and never as long as others do.
    pub(crate) async fn pause(&self, pause: &mut Duration) {
        tokio::time::sleep(pause.mul_f64(0.5 + self.random_unit())).await;
        *pause = (*pause * 2).min(Duration::from_secs(5));
    }
}

impl VolumeEntry {
    /// Nonce of the newest root that was read or put since the start.
    fn root_nonce(&self) -> Option<u64> {
        self.remote.as_ref().map(|remote| remote.root.nonce)
    }

    /// `root` is the one in the store.
    pub(crate) fn is_published(&mut self, root: &Root) {
        self.page.published = root.seq;
        self.page.root_nonce = root.nonce;
        self.page.published_at_ms = root.published_at_ms;
    }
}
