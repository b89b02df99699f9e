//! A file or block device. Operations run on tokio's blocking pool, except what the page cache does at once.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::sys::uio::pwritev;
use rustix::io::ReadWriteFlags;

use super::buffers::Buffers;
use super::{Disk, DiskCounts, DiskError, Io, writeback};

/// Parts of one `pwritev` call. Linux allows 1,024.
const MAX_PARTS: usize = 1024;

/// Longest write that is tried without a thread of its own, in bytes. A longer one keeps the CPU for as long
/// as it takes to wake a thread.
const QUICK_BYTES: u64 = 128 << 10;

/// Longest read. It never waits, but while a thread copies one that is longer another one can send the last.
const QUICK_READ_BYTES: usize = 128 << 10;

/// Shortest write that the kernel begins to write to the medium at once, in bytes. A sync, of which there is one each second
/// at least, has less to wait for then. Shorter ones are written together.
const BEGUN_BYTES: u64 = 256 << 10;

/// Alignment of memory for direct I/O, in bytes: enough for every device.
const DIRECT_ALIGN: usize = 4096;

/// A quick write that took longer was none.
const QUICK_WRITE: Duration = Duration::from_micros(500);

/// Bytes of a unit of `st_blocks`.
const STAT_BLOCK: u64 = 512;

/// How long writes are handed to other threads after one was not quick: the kernel is holding up who dirties
/// its page cache, or the disk is slow.
const SLOW_FOR: Duration = Duration::from_millis(100);

/// A cache in a file or on a block device, locked exclusively while it is open.
#[derive(Clone, Debug)]
pub struct FileDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Flock<File>,
    path: PathBuf,
    len: u64,
    /// Whether all of it has its space in the file system.
    is_allocated: bool,
    buffers: Buffers,
    opened: Instant,
    /// Microseconds after `opened` until which writes are not quick.
    slow_until_us: AtomicU64,
    /// Whether the file system has no reads that do not wait.
    reads_wait: AtomicBool,
    counted: Counted,
}

/// [`DiskCounts`] that many threads add to.
#[derive(Debug, Default)]
struct Counted {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

impl Counted {
    fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn written(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl FileDisk {
    /// Makes a file of `len` bytes with all its space allocated, for this user alone: it holds what tenants store.
    /// It must not exist yet.
    pub fn create(path: &Path, len: u64) -> Result<FileDisk, DiskError> {
        let failed = |operation, reason: String| DiskError::Open {
            disk: path.display().to_string(),
            operation,
            reason,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed("create", e.to_string()))?;
        let undo = |e| {
            let _ = std::fs::remove_file(path);
            e
        };
        let allocated = i64::try_from(len)
            .map_err(|_| failed("allocate", format!("{len} bytes are too many")))
            .and_then(|len| {
                fallocate(&file, FallocateFlags::empty(), 0, len)
                    .map_err(|e| failed("allocate", format!("{len} bytes: {e}")))
            });
        allocated.map_err(undo)?;
        // The name as well must be there after a power cut, whatever was promised of the content.
        sync_folder_of(path).map_err(|e| undo(failed("create", e.to_string())))?;
        FileDisk::lock(file, path).map_err(undo)
    }

    /// Opens an existing file or block device and forgets what the page cache holds of it, so that what
    /// is read is what the medium has: after a failed sync the two may differ.
    pub fn open(path: &Path) -> Result<FileDisk, DiskError> {
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(|e| DiskError::Open {
                disk: path.display().to_string(),
                operation: "open",
                reason: e.to_string(),
            })?;
        let disk = FileDisk::lock(file, path)?;
        let synced = disk.inner.file.sync_data().map_err(|e| disk.inner.failed("sync", 0, 0, &e));
        synced?;
        posix_fadvise(disk.inner.file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|e| disk.inner.failed("read", 0, 0, &e))?;
        Ok(disk)
    }

    fn lock(file: File, path: &Path) -> Result<FileDisk, DiskError> {
        let disk = || path.display().to_string();
        let failed =
            |operation, reason: String| DiskError::Open { disk: disk(), operation, reason };
        let metadata = file.metadata().map_err(|e| failed("open", e.to_string()))?;
        let file_type = metadata.file_type();
        let is_allocated = file_type.is_file() && metadata.blocks() * STAT_BLOCK >= metadata.len();
        if !(file_type.is_file() || file_type.is_block_device()) {
            return Err(failed("open", "neither a regular file nor a block device".to_owned()));
        }
        let mut file =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
                Errno::EWOULDBLOCK => DiskError::InUse { disk: disk() },
                e => failed("open", e.to_string()),
            })?;
        let len =
            file.seek(SeekFrom::End(0)).map_err(|e| failed("read the length", e.to_string()))?;
        Ok(FileDisk {
            inner: Arc::new(Inner {
                file,
                path: path.to_owned(),
                len,
                is_allocated,
                buffers: Buffers::default(),
                opened: Instant::now(),
                slow_until_us: AtomicU64::new(0),
                reads_wait: AtomicBool::new(false),
                counted: Counted::default(),
            }),
        })
    }

    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Inner) -> Result<T, DiskError> + Send + 'static,
    ) -> Io<'_, T> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let name = inner.path.display().to_string();
            tokio::task::spawn_blocking(move || job(&inner)).await.unwrap_or_else(|e| {
                Err(DiskError::Io {
                    disk: name,
                    operation: "run",
                    offset: 0,
                    len: 0,
                    reason: e.to_string(),
                })
            })
        })
    }
}

impl Inner {
    fn failed(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
        reason: &dyn std::fmt::Display,
    ) -> DiskError {
        DiskError::Io {
            disk: self.path.display().to_string(),
            operation,
            offset,
            len,
            reason: reason.to_string(),
        }
    }

    /// The error of a read: of these bytes if the medium does not give them back, else of the disk.
    fn failed_read(&self, offset: u64, len: usize, e: &std::io::Error) -> DiskError {
        // What the kernel makes of the ways in which a device, or a checksum below, says so.
        let of_medium = matches!(
            e.raw_os_error().map(Errno::from_raw),
            Some(
                Errno::EIO
                    | Errno::ENODATA
                    | Errno::EILSEQ
                    | Errno::EBADMSG
                    | Errno::EUCLEAN
                    | Errno::EREMOTEIO
            )
        );
        let len = len as u64;
        if !of_medium {
            return self.failed("read", offset, len, e);
        }
        let disk = self.path.display().to_string();
        DiskError::Unreadable { disk, offset, len, reason: e.to_string() }
    }

    fn write_all(&self, begin: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let mut offset = begin;
        for group in parts.chunks(MAX_PARTS) {
            let mut slices: Vec<IoSlice<'_>> =
                group.iter().map(|part| IoSlice::new(part)).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                let at = i64::try_from(offset)
                    .map_err(|_| self.failed("write", offset, 0, &"the offset is too large"))?;
                let written = match pwritev(self.file.as_fd(), rest, at) {
                    Ok(0) => return Err(self.failed("write", offset, 0, &"nothing was written")),
                    Ok(written) => written,
                    Err(Errno::EINTR) => continue,
                    Err(e) => {
                        let len = rest.iter().map(|slice| slice.len() as u64).sum();
                        return Err(self.failed("write", offset, len, &e));
                    }
                };
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
        self.counted.written(offset - begin);
        Ok(())
    }

    /// Writes, and has the kernel begin to write to the medium what is long.
    fn write_and_begin(&self, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        self.write_all(offset, parts)?;
        let len = parts.iter().map(|part| part.len() as u64).sum();
        if len >= BEGUN_BYTES {
            let begun = writeback::begin(&self.file, offset, len);
            begun.map_err(|e| self.failed("write", offset, len, &e))?;
        }
        Ok(())
    }

    fn read(&self, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        let mut data = self.buffers.take(len);
        let read = self.file.read_exact_at(data.bytes_mut(), offset);
        read.map_err(|e| self.failed_read(offset, len, &e))?;
        self.counted.read(len);
        Ok(data.freeze())
    }

    /// Reads with direct I/O, where the file system has it. What is newer in memory goes to the medium first.
    fn reread(&self, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        // The same file, also if it was renamed meanwhile.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let Ok(direct) = OpenOptions::new().read(true).custom_flags(flags).open(path) else {
            return self.read(offset, len);
        };
        let mut memory = vec![0; len + DIRECT_ALIGN];
        let from = memory.as_ptr().align_offset(DIRECT_ALIGN).min(DIRECT_ALIGN);
        let read = direct.read_exact_at(&mut memory[from..from + len], offset);
        read.map_err(|e| self.failed_read(offset, len, &e))?;
        self.counted.read(len);
        Ok(Bytes::from(memory).slice(from..from + len))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|e| self.failed("sync", 0, self.len, &e))?;
        self.counted.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let signed = |n: u64| {
            i64::try_from(n).map_err(|_| self.failed("punch", offset, len, &"out of range"))
        };
        // A file that was made without its space, and a device, give back what they can.
        let how = if self.is_allocated {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        } else {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        };
        let flags = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&*self.file, flags, signed(offset)?, signed(len)?) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let zeros = Bytes::from_static(&[0; 1 << 16]);
                let mut parts = Vec::new();
                let mut rest = len;
                while rest > 0 {
                    let part = rest.min(zeros.len() as u64);
                    parts.push(zeros.slice(..part as usize));
                    rest -= part;
                }
                self.write_all(offset, &parts)
            }
            Err(e) => Err(self.failed("punch", offset, len, &e)),
        }
    }
}

/// Syncs the folder that a file was made in.
fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.inner.len
    }

    fn read(&self, offset: u64, len: usize) -> Io<'_, Bytes> {
        self.run(move |inner| inner.read(offset, len))
    }

    fn reread(&self, offset: u64, len: usize) -> Io<'_, Bytes> {
        self.run(move |inner| inner.reread(offset, len))
    }

    fn write(&self, offset: u64, parts: Vec<Bytes>) -> Io<'_, ()> {
        self.run(move |inner| inner.write_and_begin(offset, &parts))
    }

    fn punch(&self, offset: u64, len: u64) -> Io<'_, ()> {
        self.run(move |inner| inner.punch(offset, len))
    }

    fn sync(&self) -> Io<'_, ()> {
        self.run(Inner::sync)
    }

    fn name(&self) -> String {
        self.inner.path.display().to_string()
    }

    fn read_now(&self, offset: u64, len: usize) -> Option<Bytes> {
        let inner = &*self.inner;
        if len > QUICK_READ_BYTES || inner.reads_wait.load(Ordering::Relaxed) {
            return None;
        }
        let mut data = inner.buffers.take(len);
        let mut part = [IoSliceMut::new(data.bytes_mut())];
        match rustix::io::preadv2(&*inner.file, &mut part, offset, ReadWriteFlags::NOWAIT) {
            // Part of it is in memory: all is read again, which finds that part.
            Ok(read) if read == len => {
                inner.counted.read(len);
                Some(data.freeze())
            }
            Ok(_) => None,
            Err(rustix::io::Errno::OPNOTSUPP) => {
                inner.reads_wait.store(true, Ordering::Relaxed);
                None
            }
            Err(_) => None,
        }
    }

    fn is_quick(&self, len: u64) -> bool {
        let inner = &*self.inner;
        let slow_until_us = inner.slow_until_us.load(Ordering::Relaxed);
        len <= QUICK_BYTES && (slow_until_us == 0 || slow_until_us < inner.now_us())
    }

    fn write_now(&self, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let inner = &*self.inner;
        let begun = Instant::now();
        let result = inner.write_all(offset, parts);
        if begun.elapsed() > QUICK_WRITE {
            let until_us = inner.now_us() + SLOW_FOR.as_micros() as u64;
            inner.slow_until_us.store(until_us, Ordering::Relaxed);
        }
        result
    }

    fn sync_now(&self) -> Option<Result<(), DiskError>> {
        Some(self.inner.sync())
    }

    fn syncs_on_threads(&self) -> bool {
        true
    }

    fn counts(&self) -> DiskCounts {
        let counted = &self.inner.counted;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        DiskCounts {
            reads: of(&counted.reads),
            read_bytes: of(&counted.read_bytes),
            writes: of(&counted.writes),
            written_bytes: of(&counted.written_bytes),
            syncs: of(&counted.syncs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TempFile(PathBuf);

    impl TempFile {
        fn new() -> TempFile {
            let name = format!("culvert-disk-{:016x}", crate::random());
            TempFile(std::env::temp_dir().join(name))
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[tokio::test]
    async fn a_file_reads_back_what_was_written_and_holes_are_zeros() {
        let file = TempFile::new();
        let disk = FileDisk::create(&file.0, 1 << 20).unwrap();
        assert_eq!(disk.len(), 1 << 20);
        // More parts than one system call takes.
        let parts: Vec<Bytes> = (0..3000_u32).map(|i| Bytes::from(vec![i as u8; 64])).collect();
        disk.write(4096, parts.clone()).await.unwrap();
        disk.sync().await.unwrap();
        assert_eq!(disk.read(4096, 3000 * 64).await.unwrap(), parts.concat());
        // Also what is not synced.
        disk.write(0, vec![Bytes::from(vec![9; 4096])]).await.unwrap();
        let direct = disk.reread(0, 8192).await.unwrap();
        assert_eq!((&direct[..4096], &direct[4096..4160]), (&[9; 4096][..], &parts[0][..]));
        assert!(disk.reread(1 << 20, 4096).await.is_err());
        disk.punch(8192, 4096).await.unwrap();
        assert_eq!(disk.read(8192, 4096).await.unwrap(), vec![0; 4096]);
        assert!(matches!(disk.read((1 << 20) - 10, 20).await, Err(DiskError::Io { .. })));
        drop(disk);
        let disk = FileDisk::open(&file.0).unwrap();
        assert_eq!(disk.read(4096, 64).await.unwrap(), parts[0]);
    }

    #[test]
    fn a_cache_is_opened_once_at_a_time_and_made_once() {
        let file = TempFile::new();
        let disk = FileDisk::create(&file.0, 1 << 20).unwrap();
        assert!(matches!(FileDisk::open(&file.0), Err(DiskError::InUse { .. })));
        assert!(matches!(FileDisk::create(&file.0, 1 << 20), Err(DiskError::Open { .. })));
        drop(disk);
        drop(FileDisk::open(&file.0).unwrap());
        assert!(matches!(FileDisk::open(Path::new("/dev/null")), Err(DiskError::Open { .. })));
        let mode = std::fs::metadata(&file.0).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "others may read it");
        let too_big = TempFile::new();
        assert!(FileDisk::create(&too_big.0, 1 << 60).is_err());
        assert!(!too_big.0.exists());
    }

    #[tokio::test]
    async fn zeros_keep_the_space_of_a_file_that_has_it_and_give_back_that_of_a_sparse_one() {
        const LEN: u64 = 1 << 20;
        let (full, sparse) = (TempFile::new(), TempFile::new());
        drop(FileDisk::create(&full.0, LEN).unwrap());
        File::create(&sparse.0).unwrap().set_len(LEN).unwrap();
        for (file, keeps) in [(&full, true), (&sparse, false)] {
            let disk = FileDisk::open(&file.0).unwrap();
            disk.write(0, vec![Bytes::from(vec![7; LEN as usize / 2])]).await.unwrap();
            disk.sync().await.unwrap();
            let space = || std::fs::metadata(&file.0).unwrap().blocks() * STAT_BLOCK;
            let before = space();
            disk.punch(0, LEN / 4).await.unwrap();
            disk.sync().await.unwrap();
            let read = disk.read(0, LEN as usize / 2).await.unwrap();
            let (zeros, data) = read.split_at(LEN as usize / 4);
            assert!(zeros.iter().all(|byte| *byte == 0) && data.iter().all(|byte| *byte == 7));
            if keeps {
                assert!(before >= LEN && space() >= LEN, "{} of {before} are left", space());
            } else {
                assert!(space() < before, "{} of {before} are left", space());
            }
        }
    }

    #[test]
    fn a_bad_place_of_the_medium_is_told_from_a_disk_that_fails() {
        let file = TempFile::new();
        let disk = FileDisk::create(&file.0, 1 << 20).unwrap();
        let error = |errno: Errno| {
            let error = std::io::Error::from_raw_os_error(errno as i32);
            disk.inner.failed_read(4096, 8192, &error)
        };
        for errno in [Errno::EIO, Errno::ENODATA, Errno::EILSEQ] {
            let found = error(errno);
            assert!(
                matches!(found, DiskError::Unreadable { offset: 4096, len: 8192, .. }),
                "{found}"
            );
        }
        assert!(matches!(error(Errno::ENOMEM), DiskError::Io { operation: "read", .. }));
    }
}
