//! The header of a slot: which chunk lies in it, which blocks of it are there, and their checksums. It
//! lies beside the data and is the truth about them.
//!
//! Each slot has room for two copies. A new version goes where the last *durable* one is not, so that a
//! torn write takes nothing.

use super::{BLOCK, CACHE_VERSION, FormatError, put, require, seal, unseal};
use crate::bits::{BLOCK_SET_BYTES, BlockSet};
use crate::{CHUNK_BLOCKS, CHUNK_BYTES, MAX_CHUNK, SlotId};

const WHAT: &str = "slot header";
const MAGIC: &[u8; 8] = b"CVLTSLOT";

/// Bytes of one copy.
pub const HEADER_BYTES: usize = 2 * BLOCK;
/// Bytes of a slot: two headers, then the chunk.
pub const SLOT_BYTES: u64 = 2 * HEADER_BYTES as u64 + CHUNK_BYTES;

const VALID_AT: usize = 128;
const DIRTY_AT: usize = VALID_AT + BLOCK_SET_BYTES;
const ZERO_AT: usize = DIRTY_AT + BLOCK_SET_BYTES;
const LOST_AT: usize = ZERO_AT + BLOCK_SET_BYTES;
const HOLE_AT: usize = LOST_AT + BLOCK_SET_BYTES;
const CRCS_AT: usize = 1024;

/// A slot's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// The cache that the slot belongs to.
    pub cache_id: u64,
    /// The slot.
    pub slot: SlotId,
    /// Number of the volume; 0: the slot was given up, and what else is here means nothing.
    pub volume: u64,
    /// The chunk.
    pub chunk: u32,
    /// The chunk's generation.
    pub generation: u32,
    /// All the chunk's records up to this sequence are in the slot.
    pub seq: u64,
    /// Grows with every header written to this slot.
    pub version: u64,
    /// Blocks that are here.
    pub valid: BlockSet,
    /// Blocks that are not in the remote yet. All are valid.
    pub dirty: BlockSet,
    /// Valid blocks that are zeros, whatever the slot's data say.
    pub zero: BlockSet,
    /// Zero blocks that a trim gave up. Those that are zeros because somebody wrote them are none.
    pub hole: BlockSet,
    /// Blocks whose newest value was here only and is damaged. None is valid.
    pub lost: BlockSet,
    /// CRC32C of each block; meaningless where it is not valid.
    pub crcs: Box<[u32; CHUNK_BLOCKS as usize]>,
}

impl SlotHeader {
    /// The header of a slot with nothing in it.
    #[must_use]
    pub fn empty(cache_id: u64, slot: SlotId, version: u64) -> SlotHeader {
        SlotHeader {
            cache_id,
            slot,
            volume: 0,
            chunk: 0,
            generation: 0,
            seq: 0,
            version,
            valid: BlockSet::EMPTY,
            dirty: BlockSet::EMPTY,
            zero: BlockSet::EMPTY,
            hole: BlockSet::EMPTY,
            lost: BlockSet::EMPTY,
            crcs: Box::new([0; CHUNK_BLOCKS as usize]),
        }
    }

    /// The checksum of a block of the chunk.
    #[must_use]
    pub fn crc(&self, block: u16) -> u32 {
        self.crcs.get(usize::from(block)).copied().unwrap_or_default()
    }

    /// As two blocks.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        put(&mut out, 16, &self.cache_id.to_le_bytes());
        put(&mut out, 24, &self.volume.to_le_bytes());
        put(&mut out, 32, &self.chunk.to_le_bytes());
        put(&mut out, 36, &self.generation.to_le_bytes());
        put(&mut out, 40, &self.seq.to_le_bytes());
        put(&mut out, 48, &self.version.to_le_bytes());
        put(&mut out, 56, &self.slot.to_le_bytes());
        put(&mut out, VALID_AT, &self.valid.to_bytes());
        put(&mut out, DIRTY_AT, &self.dirty.to_bytes());
        put(&mut out, ZERO_AT, &self.zero.to_bytes());
        put(&mut out, LOST_AT, &self.lost.to_bytes());
        put(&mut out, HOLE_AT, &self.hole.to_bytes());
        for (i, crc) in self.crcs.iter().enumerate() {
            put(&mut out, CRCS_AT + 4 * i, &crc.to_le_bytes());
        }
        seal(&mut out, MAGIC, CACHE_VERSION);
        out
    }

    /// Checks and reads one copy that should be of `cache_id` and `slot`.
    pub fn parse(bytes: &[u8], cache_id: u64, slot: SlotId) -> Result<SlotHeader, FormatError> {
        let view = unseal(WHAT, bytes, MAGIC, CACHE_VERSION)?;
        if bytes.len() != HEADER_BYTES {
            return Err(FormatError::Length { what: WHAT, found: bytes.len(), legal: "8192" });
        }
        require(view.u64(16) == cache_id, WHAT, "cache", view.u64(16), "this cache's")?;
        require(view.u32(56) == slot, WHAT, "slot", view.u32(56).into(), "by its place")?;
        let set = |at: usize| BlockSet::from_bytes(&bytes[at..at + BLOCK_SET_BYTES]);
        let mut crcs = Box::new([0; CHUNK_BLOCKS as usize]);
        for (i, crc) in crcs.iter_mut().enumerate() {
            *crc = view.u32(CRCS_AT + 4 * i);
        }
        let header = SlotHeader {
            cache_id,
            slot,
            volume: view.u64(24),
            chunk: view.u32(32),
            generation: view.u32(36),
            seq: view.u64(40),
            version: view.u64(48),
            valid: set(VALID_AT),
            dirty: set(DIRTY_AT),
            zero: set(ZERO_AT),
            hole: set(HOLE_AT),
            lost: set(LOST_AT),
            crcs,
        };
        require(header.chunk <= MAX_CHUNK, WHAT, "chunk", header.chunk.into(), "below 2^24")?;
        require(
            header.version <= u64::MAX / 2 && header.seq <= u64::MAX / 2,
            WHAT,
            "version",
            header.version,
            "below 2^63",
        )?;
        for (set, of, field, legal) in [
            (&header.dirty, &header.valid, "dirty blocks", "among the valid ones"),
            (&header.zero, &header.valid, "zero blocks", "among the valid ones"),
            (&header.hole, &header.zero, "holes", "among the zero ones"),
        ] {
            let beyond = set.without(of);
            require(beyond.is_empty(), WHAT, field, beyond.len().into(), legal)?;
        }
        Ok(header)
    }
}
