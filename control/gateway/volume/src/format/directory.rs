//! The directory: 64 bytes for each slot, 63 to a page of 4 KiB. It is written behind the slots' own headers,
//! in batches, and tells after a restart what is where without reading those.
//!
//! A page that does not parse is rebuilt from the headers of its slots.

use super::{BLOCK, CACHE_VERSION, FormatError, put, require, seal, unseal};
use crate::{MAX_CHUNK, SlotId};

const WHAT: &str = "directory page";
const MAGIC: &[u8; 8] = b"CVLTDIRP";

/// Entries of a page.
pub const ENTRIES: u32 = 63;
const ENTRY_BYTES: usize = 64;

/// Pages for `slots` slots.
#[must_use]
pub fn pages(slots: u32) -> u64 {
    u64::from(slots.div_ceil(ENTRIES))
}

/// What one slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Number of the volume; 0: the slot is free.
    pub volume: u64,
    /// The chunk.
    pub chunk: u32,
    /// The chunk's generation.
    pub generation: u32,
    /// All the chunk's records up to this sequence are in the slot.
    pub seq: u64,
    /// Version of the slot header that this repeats. A header below it has lost something.
    pub version: u64,
    /// One bit for each 16 blocks of which one is dirty.
    pub dirty: u64,
    /// Number of valid blocks.
    pub valid_blocks: u16,
    /// Number of dirty blocks.
    pub dirty_blocks: u16,
    /// Whether the header of `version` may not be the newest that the slot had: where no checksum proves what it
    /// says, it is not believed.
    pub is_doubtful: bool,
}

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryPage {
    /// The cache that the page belongs to.
    pub cache_id: u64,
    /// The first slot it tells of.
    pub first: SlotId,
    /// One entry for each of its 63 slots.
    pub entries: Vec<Entry>,
}

impl DirectoryPage {
    /// As one block.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        put(&mut out, 16, &self.cache_id.to_le_bytes());
        put(&mut out, 24, &self.first.to_le_bytes());
        put(&mut out, 28, &(self.entries.len() as u32).to_le_bytes());
        for (i, entry) in self.entries.iter().enumerate() {
            let at = ENTRY_BYTES * (i + 1);
            put(&mut out, at, &entry.volume.to_le_bytes());
            put(&mut out, at + 8, &entry.chunk.to_le_bytes());
            put(&mut out, at + 12, &entry.generation.to_le_bytes());
            put(&mut out, at + 16, &entry.seq.to_le_bytes());
            put(&mut out, at + 24, &entry.version.to_le_bytes());
            put(&mut out, at + 32, &entry.dirty.to_le_bytes());
            put(&mut out, at + 40, &entry.valid_blocks.to_le_bytes());
            put(&mut out, at + 42, &entry.dirty_blocks.to_le_bytes());
            put(&mut out, at + 44, &[u8::from(entry.is_doubtful)]);
        }
        seal(&mut out, MAGIC, CACHE_VERSION);
        out
    }

    /// Checks and reads one block that should be of `cache_id` and begin at slot `first`.
    pub fn parse(bytes: &[u8], cache_id: u64, first: SlotId) -> Result<DirectoryPage, FormatError> {
        let view = unseal(WHAT, bytes, MAGIC, CACHE_VERSION)?;
        if bytes.len() != BLOCK {
            return Err(FormatError::Length { what: WHAT, found: bytes.len(), legal: "4096" });
        }
        require(view.u64(16) == cache_id, WHAT, "cache", view.u64(16), "this cache's")?;
        require(view.u32(24) == first, WHAT, "first slot", view.u32(24).into(), "by its place")?;
        let count = view.u32(28);
        require(count <= ENTRIES, WHAT, "entries", count.into(), "at most 63")?;
        let mut entries = Vec::with_capacity(count as usize);
        for i in 0..count as usize {
            let at = ENTRY_BYTES * (i + 1);
            let entry = Entry {
                volume: view.u64(at),
                chunk: view.u32(at + 8),
                generation: view.u32(at + 12),
                seq: view.u64(at + 16),
                version: view.u64(at + 24),
                dirty: view.u64(at + 32),
                valid_blocks: view.u16(at + 40),
                dirty_blocks: view.u16(at + 42),
                is_doubtful: view.u8(at + 44) == 1,
            };
            let doubtful = view.u8(at + 44);
            require(doubtful <= 1, WHAT, "doubtful", doubtful.into(), "0 or 1")?;
            require(entry.chunk <= MAX_CHUNK, WHAT, "chunk", entry.chunk.into(), "below 2^24")?;
            require(
                entry.valid_blocks <= 1024 && entry.dirty_blocks <= entry.valid_blocks,
                WHAT,
                "dirty blocks",
                entry.dirty_blocks.into(),
                "at most the valid ones, of which there are at most 1024",
            )?;
            require(
                entry.version <= u64::MAX / 2 && entry.seq <= u64::MAX / 2,
                WHAT,
                "version",
                entry.version,
                "below 2^63",
            )?;
            entries.push(entry);
        }
        Ok(DirectoryPage { cache_id, first, entries })
    }
}
