//! Asks the kernel to begin to write what lies in the page cache.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// Has the kernel begin to write these bytes to the medium. It waits for nothing to be written, though maybe for the
/// device's queue or the file system's journal, and makes nothing durable: the next sync of the file tells what fails
/// later, and writes what is left.
///
/// # Errors
/// What fails at once, which no sync may tell again. That there is no such call, or no memory, is none.
pub(super) fn begin(file: &File, offset: u64, len: u64) -> Result<()> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Ok(());
    };
    // SAFETY: no memory of this process is involved, and the descriptor is open as long as `file` is borrowed.
    let done = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
    };
    if done == 0 {
        return Ok(());
    }
    match Errno::last() {
        // Of the call: a filter of system calls, a file system without it.
        Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::ESPIPE | Errno::EOPNOTSUPP => Ok(()),
        // For now: the pages are dirty as before.
        Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM => Ok(()),
        errno => Err(Error::from(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::{FileExt, OpenOptionsExt};

    use super::*;

    #[test]
    fn what_is_begun_stays_readable_and_a_file_that_has_no_medium_is_no_error() {
        let file = tempfile::tempfile().unwrap();
        let data = vec![7; 1 << 20];
        file.write_all_at(&data, 4096).unwrap();
        begin(&file, 4096, data.len() as u64).unwrap();
        let mut found = vec![0; data.len()];
        file.read_exact_at(&mut found, 4096).unwrap();
        assert!(found == data);
        begin(&file, u64::MAX, 1).unwrap();
        begin(&File::open("/dev/zero").unwrap(), 0, 1).unwrap();
    }

    #[test]
    fn what_fails_at_once_is_an_error() {
        // It stands for a place, and no call on its file is allowed.
        let path_only = rustix::fs::OFlags::PATH.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(path_only).open("/").unwrap();
        let error = begin(&file, 0, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EBADF as i32));
    }
}
