//! What lies on the cache's disk and in the object store, byte by byte; `docs/volume-format.md` is the
//! specification. Pure: bytes in, values out. All integers are little-endian, all checksums CRC32C.
//!
//! Parsers believe nothing: they check magic, checksum, version, and the range of every field, and return
//! an error that names the first thing that is wrong.

pub mod checkpoint;
pub mod directory;
pub mod index;
pub mod log_frame;
pub mod pack;
pub mod root;
pub mod slot_header;
pub mod superblock;
#[cfg(test)]
mod tests;
pub mod volume_page;

use crate::BLOCK_BYTES;

/// One 4 KiB block.
pub const BLOCK: usize = BLOCK_BYTES as usize;

/// Version of the cache's format. 1 had no doubt, neither unknown slots nor doubtful headers; no sequence of attempts
/// in a volume's page; and no holes, neither in slots nor in a checkpoint.
pub const CACHE_VERSION: u32 = 2;

/// Version of the remote format.
pub const REMOTE_VERSION: u32 = 1;

/// CRC32C of a block of zeros.
pub const ZERO_BLOCK_CRC: u32 = 0x98f9_4189;

/// CRC32C (Castagnoli; RFC 3720 appendix B.4).
#[must_use]
pub fn crc32c(data: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(data)
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as such a thing does: never written, overwritten, or something else. If a whole
    /// cache says so, the path is wrong.
    #[error("{what}: no such structure here (it begins with {found:#018x})")]
    Magic {
        /// The structure.
        what: &'static str,
        /// The first eight bytes.
        found: u64,
    },
    /// Written by another version of Culvert. Use that version, or upload and make a new cache.
    #[error("{what}: format version {found}; this program knows 1 to {known}")]
    Version {
        /// The structure.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The version this program writes, and the highest that it reads.
        known: u32,
    },
    /// The bytes changed after they were written, or were written in part. What may be done depends on
    /// the structure; the cache uses the other copy where there is one.
    #[error("{what}: checksum {found:#010x} does not match {computed:#010x}")]
    Checksum {
        /// The structure.
        what: &'static str,
        /// The stored checksum.
        found: u32,
        /// The checksum of what is there.
        computed: u32,
    },
    /// The checksum is right and a value is not: a fault in the program that wrote it.
    #[error("{what}: {field} is {value}; legal is {legal}")]
    Field {
        /// The structure.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        legal: &'static str,
    },
    /// Too few bytes, or too many.
    #[error("{what}: {found} bytes; legal is {legal}")]
    Length {
        /// The structure.
        what: &'static str,
        /// Bytes there.
        found: usize,
        /// What it may be.
        legal: &'static str,
    },
}

/// Reads fields at fixed offsets. Bytes beyond the end read as zero; lengths are checked beforehand.
#[derive(Clone, Copy)]
pub(crate) struct View<'a>(pub(crate) &'a [u8]);

impl View<'_> {
    pub(crate) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0
            .get(at..at.saturating_add(N))
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        self.bytes::<1>(at)[0]
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

/// Writes `value` at `at`; what does not fit is a fault of the caller and is left out.
pub(crate) fn put(out: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = out.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    } else {
        debug_assert!(false, "{} bytes at {at} do not fit into {}", value.len(), out.len());
    }
}

/// Every structure begins alike: magic (8 bytes), checksum over the whole with this field zero (4),
/// version (4).
pub(crate) const PREFIX: usize = 16;

/// Fills the common beginning of a structure whose other fields are written.
pub(crate) fn seal(out: &mut [u8], magic: &[u8; 8], version: u32) {
    put(out, 0, magic);
    put(out, 8, &[0; 4]);
    put(out, 12, &version.to_le_bytes());
    let crc = crc32c(out);
    put(out, 8, &crc.to_le_bytes());
}

/// Checks the magic of a structure.
pub(crate) fn check_magic<'a>(
    what: &'static str,
    bytes: &'a [u8],
    magic: &[u8; 8],
) -> Result<View<'a>, FormatError> {
    if bytes.len() < PREFIX {
        return Err(FormatError::Length { what, found: bytes.len(), legal: "at least 16" });
    }
    let view = View(bytes);
    if view.bytes::<8>(0) != *magic {
        return Err(FormatError::Magic { what, found: view.u64(0) });
    }
    Ok(view)
}

/// Checks the version of a structure, of which `version` is the highest known.
pub(crate) fn check_version(
    what: &'static str,
    view: View<'_>,
    version: u32,
) -> Result<(), FormatError> {
    let found = view.u32(12);
    if (1..=version).contains(&found) {
        return Ok(());
    }
    Err(FormatError::Version { what, found, known: version })
}

/// Checks the common beginning of a structure. What an earlier version lacks is zero in it, so it is read as of
/// `version`. A later one may have another length, so that is to be checked after this.
pub(crate) fn unseal<'a>(
    what: &'static str,
    bytes: &'a [u8],
    magic: &[u8; 8],
    version: u32,
) -> Result<View<'a>, FormatError> {
    let view = check_magic(what, bytes, magic)?;
    let found = view.u32(8);
    // CRC is linear: continue over the parts instead of copying the whole.
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&bytes[..8]);
    digest.update(&[0; 4]);
    digest.update(&bytes[12..]);
    let computed = digest.finalize() as u32;
    if found != computed {
        return Err(FormatError::Checksum { what, found, computed });
    }
    check_version(what, view, version)?;
    Ok(view)
}

/// Returns an error for a value that is not legal.
pub(crate) fn require(
    legal: bool,
    what: &'static str,
    field: &'static str,
    value: u64,
    says: &'static str,
) -> Result<(), FormatError> {
    if legal { Ok(()) } else { Err(FormatError::Field { what, field, value, legal: says }) }
}
