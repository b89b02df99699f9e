//! Packs: objects of at most 8 MiB with the blocks of one upload. Immutable. The index says where each
//! block is; the table in front says the same for who has only the pack.

use super::{
    BLOCK, FormatError, REMOTE_VERSION, check_magic, check_version, put, require, seal, unseal,
};
use crate::{CHUNK_BLOCKS, MAX_CHUNK};

const WHAT: &str = "pack";
const MAGIC: &[u8; 8] = b"CVLTPACK";
const TABLE_AT: usize = 64;
const ENTRY_BYTES: usize = 12;

/// Bytes of the largest pack.
pub const MAX_BYTES: usize = 8 << 20;
/// Blocks of the largest pack, so that its table fits too.
pub const MAX_BLOCKS: usize = 2040;

/// The name of an object that is written once: unique by construction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Epoch of ownership of its writer.
    pub epoch: u64,
    /// Random number of the writer's run.
    pub nonce: u64,
    /// Number of the object in that run.
    pub number: u32,
}

impl ObjectId {
    /// Bytes on disk.
    pub const BYTES: usize = 20;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        put(&mut out, 0, &self.epoch.to_le_bytes());
        put(&mut out, 8, &self.nonce.to_le_bytes());
        put(&mut out, 16, &self.number.to_le_bytes());
        out
    }

    pub(crate) fn from_view(view: super::View<'_>, at: usize) -> ObjectId {
        ObjectId { epoch: view.u64(at), nonce: view.u64(at + 8), number: view.u32(at + 16) }
    }
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:016x}-{:08x}", self.epoch, self.nonce, self.number)
    }
}

/// One block of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// The chunk.
    pub chunk: u32,
    /// The block of the chunk.
    pub block: u16,
    /// Its CRC32C.
    pub crc: u32,
}

/// A pack's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// The volume.
    pub uuid: u128,
    /// Epoch of ownership of its writer.
    pub epoch: u64,
    /// The blocks, in the order of their data.
    pub entries: Vec<PackEntry>,
}

/// Blocks that the table of `entries` blocks takes, in front of their data.
#[must_use]
pub fn header_blocks(entries: usize) -> usize {
    (TABLE_AT + ENTRY_BYTES * entries).div_ceil(BLOCK)
}

impl PackHeader {
    /// As whole blocks.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; header_blocks(self.entries.len()) * BLOCK];
        put(&mut out, 16, &self.uuid.to_le_bytes());
        put(&mut out, 32, &self.epoch.to_le_bytes());
        put(&mut out, 40, &(self.entries.len() as u32).to_le_bytes());
        for (i, entry) in self.entries.iter().enumerate() {
            let at = TABLE_AT + ENTRY_BYTES * i;
            put(&mut out, at, &entry.chunk.to_le_bytes());
            put(&mut out, at + 4, &entry.block.to_le_bytes());
            put(&mut out, at + 8, &entry.crc.to_le_bytes());
        }
        seal(&mut out, MAGIC, REMOTE_VERSION);
        out
    }

    /// Checks and reads the header of a whole pack, whose data follow.
    pub fn parse(pack: &[u8]) -> Result<PackHeader, FormatError> {
        // How far its checksum reaches only its own version tells.
        let view = check_magic(WHAT, pack, MAGIC)?;
        check_version(WHAT, view, REMOTE_VERSION)?;
        let length = FormatError::Length {
            what: WHAT,
            found: pack.len(),
            legal: "its table and data, at most 8 MiB",
        };
        if pack.len() < TABLE_AT || pack.len() > MAX_BYTES {
            return Err(length);
        }
        let count = view.u32(40) as usize;
        if count > MAX_BLOCKS || pack.len() != (header_blocks(count) + count) * BLOCK {
            return Err(length);
        }
        let view = unseal(WHAT, &pack[..header_blocks(count) * BLOCK], MAGIC, REMOTE_VERSION)?;
        let mut entries = Vec::with_capacity(count);
        for i in 0..count {
            let at = TABLE_AT + ENTRY_BYTES * i;
            let entry =
                PackEntry { chunk: view.u32(at), block: view.u16(at + 4), crc: view.u32(at + 8) };
            require(entry.block < CHUNK_BLOCKS, WHAT, "block", entry.block.into(), "below 1024")?;
            require(entry.chunk <= MAX_CHUNK, WHAT, "chunk", entry.chunk.into(), "below 2^24")?;
            entries.push(entry);
        }
        Ok(PackHeader { uuid: u128::from_le_bytes(view.bytes(16)), epoch: view.u64(32), entries })
    }
}
