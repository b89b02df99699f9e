//! One volume's page: its name, size, and where it stands with the remote. Kept twice; the higher
//! generation counts, and the other copy is overwritten next.

use super::{BLOCK, CACHE_VERSION, FormatError, put, require, seal, unseal};
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, MAX_VOLUME_BYTES};

const WHAT: &str = "volume page";
const MAGIC: &[u8; 8] = b"CVLTVOLP";
/// Where the nonces of attempts begin.
const ATTEMPTS_AT: usize = 192;

/// Most attempts that a page names. Whoever makes one more forgets the oldest: at one every few seconds, a put
/// that was answered with an error so long ago does not arrive any more.
pub const MAX_ATTEMPTS: usize = 128;

/// What this cache may do with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Served and uploaded.
    Active,
    /// Given up cleanly: the remote has everything.
    Released,
    /// Another gateway took it over. What was not uploaded is kept for export and never uploaded.
    Quarantined,
    /// Being deleted: perhaps it is in the store already. Nothing is served or uploaded any more.
    Deleting,
    /// The page is free.
    Gone,
}

/// What a FLUSH promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The data are on the cache's disk.
    #[default]
    Local,
    /// The data are in the object store.
    Remote,
}

/// One volume as the cache knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePage {
    /// The cache that the page belongs to.
    pub cache_id: u64,
    /// Grows with every write of the page.
    pub generation: u64,
    /// The volume's number in this cache. Never used again.
    pub id: u64,
    /// The volume's identity in the remote, the same wherever it is served.
    pub uuid: u128,
    /// Name.
    pub name: VolumeName,
    /// Size in bytes.
    pub size: u64,
    /// Epoch of ownership. The remote's root decides.
    pub epoch: u64,
    /// Records up to this sequence are in the published root.
    pub published: u64,
    /// Nonce of the root last published or opened by this cache.
    pub root_nonce: u64,
    /// State.
    pub state: VolumeState,
    /// What FLUSH promises.
    pub durability: Durability,
    /// Dirty bytes beyond which writers wait. 0: no limit.
    pub dirty_quota: u64,
    /// When the last root was published, in milliseconds since the Unix epoch.
    pub published_at_ms: u64,
    /// Nonces of roots that this cache put, or is about to, since `root_nonce`, the oldest first: one of them
    /// may be in the store, now or later. At most [`MAX_ATTEMPTS`].
    pub attempts: Vec<u64>,
    /// The highest sequence that a root covers which this cache put, or is about to. Records up to it were durable
    /// before. 0 in pages that were written before this was noted.
    pub attempted: u64,
}

impl VolumePage {
    /// As one block.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        let name = self.name.as_str().as_bytes();
        put(&mut out, 16, &self.cache_id.to_le_bytes());
        put(&mut out, 24, &self.generation.to_le_bytes());
        put(&mut out, 32, &self.id.to_le_bytes());
        put(&mut out, 40, &self.uuid.to_le_bytes());
        put(&mut out, 56, &self.size.to_le_bytes());
        put(&mut out, 64, &self.epoch.to_le_bytes());
        put(&mut out, 72, &self.published.to_le_bytes());
        put(&mut out, 80, &self.root_nonce.to_le_bytes());
        put(&mut out, 88, &self.dirty_quota.to_le_bytes());
        put(&mut out, 96, &self.published_at_ms.to_le_bytes());
        let state = match self.state {
            VolumeState::Gone => 0,
            VolumeState::Active => 1,
            VolumeState::Released => 2,
            VolumeState::Quarantined => 3,
            VolumeState::Deleting => 4,
        };
        let durability = match self.durability {
            Durability::Local => 0,
            Durability::Remote => 1,
        };
        put(&mut out, 104, &[state, durability, name.len() as u8, self.attempts.len() as u8]);
        put(&mut out, 112, &self.attempted.to_le_bytes());
        put(&mut out, 128, name);
        for (i, nonce) in self.attempts.iter().take(MAX_ATTEMPTS).enumerate() {
            put(&mut out, ATTEMPTS_AT + 8 * i, &nonce.to_le_bytes());
        }
        seal(&mut out, MAGIC, CACHE_VERSION);
        out
    }

    /// Checks and reads one block.
    pub fn parse(bytes: &[u8]) -> Result<VolumePage, FormatError> {
        let view = unseal(WHAT, bytes, MAGIC, CACHE_VERSION)?;
        if bytes.len() != BLOCK {
            return Err(FormatError::Length { what: WHAT, found: bytes.len(), legal: "4096" });
        }
        let state = match view.u8(104) {
            0 => VolumeState::Gone,
            1 => VolumeState::Active,
            2 => VolumeState::Released,
            3 => VolumeState::Quarantined,
            4 => VolumeState::Deleting,
            other => {
                return Err(FormatError::Field {
                    what: WHAT,
                    field: "state",
                    value: other.into(),
                    legal: "0 to 4",
                });
            }
        };
        let durability = match view.u8(105) {
            0 => Durability::Local,
            1 => Durability::Remote,
            other => {
                return Err(FormatError::Field {
                    what: WHAT,
                    field: "durability",
                    value: other.into(),
                    legal: "0 or 1",
                });
            }
        };
        let name_len = usize::from(view.u8(106));
        let name = bytes
            .get(128..128 + name_len)
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(|name| VolumeName::new(name).ok());
        let Some(name) = name else {
            return Err(FormatError::Field {
                what: WHAT,
                field: "name",
                value: name_len as u64,
                legal: "1 to 64 of a-z, 0-9, '.', '_' and '-'",
            });
        };
        let size = view.u64(56);
        require(
            size > 0 && size.is_multiple_of(BLOCK_BYTES) && size <= MAX_VOLUME_BYTES,
            WHAT,
            "size",
            size,
            "a multiple of 4096 up to 64 TiB",
        )?;
        let attempts = usize::from(view.u8(107));
        require(attempts <= MAX_ATTEMPTS, WHAT, "attempts", attempts as u64, "0 to 128")?;
        let attempts = (0..attempts).map(|i| view.u64(ATTEMPTS_AT + 8 * i)).collect();
        let page = VolumePage {
            cache_id: view.u64(16),
            generation: view.u64(24),
            id: view.u64(32),
            uuid: u128::from_le_bytes(view.bytes(40)),
            name,
            size,
            epoch: view.u64(64),
            published: view.u64(72),
            root_nonce: view.u64(80),
            state,
            durability,
            dirty_quota: view.u64(88),
            published_at_ms: view.u64(96),
            attempts,
            attempted: view.u64(112),
        };
        let counter = page.generation.max(page.epoch).max(page.published).max(page.attempted);
        require(counter <= u64::MAX / 2, WHAT, "counter", counter, "below 2^63")?;
        let is_number = (1..=u64::MAX / 2).contains(&page.id);
        require(is_number, WHAT, "number", page.id, "1 to 2^63 - 1")?;
        Ok(page)
    }
}
