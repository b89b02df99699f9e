//! The root of a volume in the remote: the one object that is ever replaced, and only by a conditional
//! put. It says who owns the volume and which index is its newest complete cut.

use super::index::{NUMBERED_REF_BYTES, PageRef, put_refs, take_refs};
use super::{FormatError, REMOTE_VERSION, put, require, seal, unseal};
use crate::{BLOCK_BYTES, MAX_VOLUME_BYTES};

const WHAT: &str = "volume root";
const MAGIC: &[u8; 8] = b"CVLTROOT";
const HEADER: usize = 96;

/// Largest root in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// Most nodes: 64 TiB.
pub const MAX_NODES: u32 = 1024;

const _: () = assert!(HEADER + MAX_NODES as usize * NUMBERED_REF_BYTES <= MAX_BYTES);

/// What a root says of its volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootState {
    /// The owner serves it.
    #[default]
    Owned,
    /// The owner gave it up: anybody may take it.
    Released,
    /// The owner deleted it: the name is free. A root is never removed, since a store removes without a
    /// condition, and would remove what another gateway put there meanwhile.
    Deleted,
}

/// A volume's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The volume's identity.
    pub uuid: u128,
    /// Size in bytes.
    pub size: u64,
    /// Epoch of ownership. It grows when the owner changes.
    pub epoch: u64,
    /// Everything that the owner accepted up to this sequence of its cache is in the index, and nothing
    /// after it.
    pub seq: u64,
    /// Random, so that a writer recognizes its own root after a doubtful answer.
    pub nonce: u64,
    /// The owning cache.
    pub owner: u64,
    /// What the owner did with it last.
    pub state: RootState,
    /// When it was published, in milliseconds since the Unix epoch.
    pub published_at_ms: u64,
    /// Nodes by number, in rising order.
    pub nodes: Vec<(u32, PageRef)>,
}

impl Root {
    /// As bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        put(&mut out, 16, &self.uuid.to_le_bytes());
        put(&mut out, 32, &self.size.to_le_bytes());
        put(&mut out, 40, &self.epoch.to_le_bytes());
        put(&mut out, 48, &self.seq.to_le_bytes());
        put(&mut out, 56, &self.nonce.to_le_bytes());
        put(&mut out, 64, &self.owner.to_le_bytes());
        put(&mut out, 72, &self.published_at_ms.to_le_bytes());
        put(&mut out, 80, &(self.nodes.len() as u32).to_le_bytes());
        let state = match self.state {
            RootState::Owned => 0,
            RootState::Released => 1,
            RootState::Deleted => 2,
        };
        put(&mut out, 84, &[state]);
        put_refs(&mut out, &self.nodes);
        seal(&mut out, MAGIC, REMOTE_VERSION);
        out
    }

    /// Checks and reads a root.
    pub fn parse(bytes: &[u8]) -> Result<Root, FormatError> {
        let view = unseal(WHAT, bytes, MAGIC, REMOTE_VERSION)?;
        if bytes.len() < HEADER || bytes.len() > MAX_BYTES {
            let legal = "96 bytes to 64 KiB";
            return Err(FormatError::Length { what: WHAT, found: bytes.len(), legal });
        }
        let size = view.u64(32);
        require(
            size > 0 && size.is_multiple_of(BLOCK_BYTES) && size <= MAX_VOLUME_BYTES,
            WHAT,
            "size",
            size,
            "a multiple of 4096 up to 64 TiB",
        )?;
        let state = match view.u8(84) {
            0 => RootState::Owned,
            1 => RootState::Released,
            2 => RootState::Deleted,
            other => {
                let (value, legal) = (other.into(), "0 to 2");
                return Err(FormatError::Field { what: WHAT, field: "state", value, legal });
            }
        };
        require(view.u64(40) <= u64::MAX / 2, WHAT, "epoch", view.u64(40), "below 2^63")?;
        let nodes = take_refs(WHAT, bytes, HEADER, view.u32(80), 0, MAX_NODES)?;
        Ok(Root {
            uuid: u128::from_le_bytes(view.bytes(16)),
            size,
            epoch: view.u64(40),
            seq: view.u64(48),
            nonce: view.u64(56),
            owner: view.u64(64),
            state,
            published_at_ms: view.u64(72),
            nodes,
        })
    }
}
