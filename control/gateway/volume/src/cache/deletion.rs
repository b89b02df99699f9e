//! Deleting a volume.
//!
//! Only its owner may, and the store is told by a root that says so, put under the same condition as any other:
//! an unconditional removal could hit what another gateway put there meanwhile. The intention is on the disk
//! first, so that a deletion which was cut short anywhere is finished by asking for it again.

use super::refusal::Refusal;
use super::{Cache, Inner, Plant, planted, unix_ms};
use crate::error::{Error, Result};
use crate::format::root::{Root, RootState};
use crate::format::volume_page::VolumeState;
use crate::volume_name::VolumeName;

impl Cache {
    /// Deletes a volume that this cache serves, in the store and here. Its packs and index pages stay until
    /// somebody collects them. After an error from the store the volume is either served as before, or
    /// nobody serves it until it is deleted again.
    pub async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let inner = &self.inner;
        let volume = self.volume(name)?.id();
        // No cut is under way meanwhile, and none begins.
        let _turn = inner.cut_turn(volume).await?;
        if planted(Plant::DeletesUnasked) {
            let path = format!("{name}/root");
            inner.patiently(name, || inner.store.delete(&path)).await?;
            return inner.discard(volume).await;
        }
        if !inner.is_deleting(volume) {
            inner.serving(volume)?;
        }
        match inner.delete_in_store(volume, name).await {
            // Somebody removed it with the store's own tools.
            Ok(()) | Err(Error::NoVolume { .. }) => inner.discard(volume).await,
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    pub(crate) fn is_deleting(&self, volume: u64) -> bool {
        let state = self.state();
        state.volumes.get(&volume).is_some_and(|v| v.page.state == VolumeState::Deleting)
    }

    async fn delete_in_store(&self, volume: u64, name: &VolumeName) -> Result<()> {
        self.fit(name).await?;
        self.forget_root(volume);
        let old = self.root(volume).await?;
        if old.root.state == RootState::Deleted {
            return Ok(());
        }
        if let Some(entry) = self.state().volumes.get_mut(&volume) {
            entry.refusing = Some(Refusal::Deleting);
        }
        self.space.notify_waiters();
        let nonce = self.random();
        self.attempt(volume, nonce, old.root.seq, Some(VolumeState::Deleting)).await?;
        let root = Root {
            nonce,
            state: RootState::Deleted,
            published_at_ms: unix_ms(),
            ..Root::clone(&old.root)
        };
        self.put_root(volume, name, root, old).await.map(drop)
    }
}
