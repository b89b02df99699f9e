//! The cache's disk behind one small trait, so that tests can put faults and power cuts under the cache.
//!
//! [`FileDisk`] is a file or a block device; [`sim::SimDisk`] is a disk that loses what was not synced.

mod buffers;
mod file;
pub mod sim;
mod writeback;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};

pub use file::FileDisk;

use crate::format::BLOCK;

/// The future of one disk operation.
pub type Io<'a, T> = Pin<Box<dyn Future<Output = Result<T, DiskError>> + Send + 'a>>;

/// Positional access to one file or block device. Offsets and lengths are in bytes and, as the cache uses
/// it, multiples of 4 KiB.
///
/// A write is in the kernel's hands once it returns, so it survives the death of the process; it survives
/// a power cut only after a [`sync`](Disk::sync) that began later. Writes that are not synced may reach the
/// medium in any order, in part, and torn at sectors.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `len` bytes at `offset`. [`DiskError::Unreadable`] is of these bytes only.
    fn read(&self, offset: u64, len: usize) -> Io<'_, Bytes>;

    /// Reads past whatever keeps a copy of the medium in memory, as far as there is a way: what was read
    /// before is not what was written. Both are multiples of 4 KiB.
    fn reread(&self, offset: u64, len: usize) -> Io<'_, Bytes> {
        self.read(offset, len)
    }

    /// Writes the parts one after the other, beginning at `offset`.
    fn write(&self, offset: u64, parts: Vec<Bytes>) -> Io<'_, ()>;

    /// Makes `len` bytes at `offset` read as zeros, with little or nothing written where that is possible. What was
    /// there must not be read again: its checksum would still be right. Space that was allocated to the cache
    /// stays so, or a later write would fail once others have filled the file system.
    fn punch(&self, offset: u64, len: u64) -> Io<'_, ()>;

    /// Makes every write that returned before durable.
    fn sync(&self) -> Io<'_, ()>;

    /// What to call it in an error.
    fn name(&self) -> String;

    /// Reads if that takes no waiting for the medium, as from the page cache. `None`: use
    /// [`read`](Disk::read), which also says why if it cannot be read at all.
    fn read_now(&self, _offset: u64, _len: usize) -> Option<Bytes> {
        None
    }

    /// Whether a write of `len` bytes takes so little time, as far as the last ones tell, that a thread with
    /// other work may do it by [`write_now`](Disk::write_now) instead of handing it to another thread.
    fn is_quick(&self, _len: u64) -> bool {
        false
    }

    /// [`write`](Disk::write), on this thread.
    fn write_now(&self, offset: u64, _parts: &[Bytes]) -> Result<(), DiskError> {
        Err(DiskError::Io {
            disk: self.name(),
            operation: "write",
            offset,
            len: 0,
            reason: "this disk has no quick writes".to_owned(),
        })
    }

    /// [`sync`](Disk::sync) on this thread, which has nothing else to do. `None`: use that.
    fn sync_now(&self) -> Option<Result<(), DiskError>> {
        None
    }

    /// Whether [`sync_now`](Disk::sync_now) is there.
    fn syncs_on_threads(&self) -> bool {
        false
    }

    /// What was done since it was opened, if that is counted.
    fn counts(&self) -> DiskCounts {
        DiskCounts::default()
    }
}

/// What blocks are filled with that the medium does not give back. Nothing begins so, and neither does what was
/// never written.
const UNREADABLE: u8 = 0xff;

/// Reads structures, or blocks with checksums, of which some may be unreadable: one that is does not parse then, as
/// if it were damaged in another way, and hides none that lies beside it.
pub(crate) async fn read_around(
    disk: &dyn Disk,
    offset: u64,
    len: usize,
) -> Result<Bytes, DiskError> {
    around(offset, len, |at, len| disk.read(at, len)).await
}

/// The same from the medium, whatever memory has of it.
pub(crate) async fn reread_around(
    disk: &dyn Disk,
    offset: u64,
    len: usize,
) -> Result<Bytes, DiskError> {
    around(offset, len, |at, len| disk.reread(at, len)).await
}

async fn around<'a>(
    offset: u64,
    len: usize,
    read: impl Fn(u64, usize) -> Io<'a, Bytes> + Send,
) -> Result<Bytes, DiskError> {
    match read(offset, len).await {
        Err(DiskError::Unreadable { .. }) => {}
        read => return read,
    }
    let mut whole = BytesMut::with_capacity(len);
    while whole.len() < len {
        let part = BLOCK.min(len - whole.len());
        match read(offset + whole.len() as u64, part).await {
            Ok(data) => whole.extend_from_slice(&data),
            Err(error @ DiskError::Unreadable { .. }) => {
                tracing::warn!(%error, "a block of the cache cannot be read");
                whole.resize(whole.len() + part, UNREADABLE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(whole.freeze())
}

/// Operations of a disk that succeeded, wherever their bytes were found or left: the page cache is a part of
/// the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Reads.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes, holes not counted.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Syncs.
    pub syncs: u64,
}

/// What a disk operation failed with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiskError {
    /// The kernel refused an operation. The device or its file system is at fault: see the kernel's log,
    /// replace the device, and start again; what was flushed before is still there.
    #[error("{disk}: {operation} of {len} bytes at {offset} failed: {reason}")]
    Io {
        /// Path of the file or device.
        disk: String,
        /// `read`, `write`, `punch` or `sync`.
        operation: &'static str,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// What the kernel said.
        reason: String,
    },
    /// The medium does not give these bytes back. What was stored there is lost; all else can be used. Replace
    /// the device when there is time: it will not be the last such place.
    #[error("{disk}: {len} bytes at {offset} cannot be read: {reason}")]
    Unreadable {
        /// Path of the file or device.
        disk: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// What the kernel said.
        reason: String,
    },
    /// The file or device cannot be opened, made or sized. Nothing was changed.
    #[error("{disk}: cannot {operation}: {reason}")]
    Open {
        /// Path of the file or device.
        disk: String,
        /// `open`, `create`, `allocate` or `read the length`.
        operation: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// Another process has the cache open. Stop that one first: two would destroy each other's data.
    #[error("{disk}: in use by another process")]
    InUse {
        /// Path of the file or device.
        disk: String,
    },
}
