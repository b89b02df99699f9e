//! Cached volumes: block devices whose truth is an object store, with a durable local cache in front.
//!
//! A volume is chunks of 4 MiB, a chunk 1,024 blocks of 4 KiB. Writes are answered once they are in the
//! cache's log, moved from there into the cache's slots, and uploaded in cuts. Reads come from the cache
//! where it has the blocks, else from the object store.
//!
//! What lives here: the disk behind a trait ([`disk`]), the formats on disk and in the store
//! ([`mod@format`]), the store behind a trait ([`remote`]), and what joins them ([`Cache`], [`Volume`]). What
//! does not: protocols, sockets, configuration.
//!
//! The rules that every change must keep are in the cache module's documentation.

mod bits;
mod cache;
pub mod disk;
mod error;
pub mod format;
pub mod remote;
mod volume_name;

pub use bits::BlockSet;
pub use cache::{
    BlockStatus, Cache, CacheStatus, Config, Counters, QuarantineExport, QuarantinedRange, Refusal,
    ScrubReport, Segment, StatusExtent, Volume, VolumeOptions, VolumeStatus,
};
pub use error::{Error, Result};
pub use format::volume_page::{Durability, VolumeState};
pub use volume_name::{NameError, VolumeName};

/// Bytes of a block, the unit of caching, checksums and uploads.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u16 = 1024;
/// Bytes of a chunk, the unit of space in the cache.
pub const CHUNK_BYTES: u64 = BLOCK_BYTES * CHUNK_BLOCKS as u64;
/// Largest volume in bytes: 64 TiB.
pub const MAX_VOLUME_BYTES: u64 = 64 << 40;
/// Highest number of a chunk.
pub const MAX_CHUNK: u32 = (MAX_VOLUME_BYTES / CHUNK_BYTES - 1) as u32;

/// A slot of the cache, counted from 0.
pub type SlotId = u32;

/// Whole blocks in `bytes`.
pub(crate) const fn log_blocks_of(bytes: u64) -> u64 {
    bytes / BLOCK_BYTES
}

/// A random number from the system, by way of the standard library's hash keys.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u64(std::process::id().into());
    hasher.finish()
}
