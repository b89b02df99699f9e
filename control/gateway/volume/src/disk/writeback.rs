//! Asks the kernel to begin to write what lies in the page cache.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write these bytes to the medium. It waits for nothing but room in the device's queue, and
/// makes nothing durable: what fails is told to the next sync of the file, and a sync writes what is left.
pub(super) fn begin(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return;
    };
    // SAFETY: no memory of this process is involved, and the descriptor is open as long as `file` is borrowed.
    let done = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
    };
    if done != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the sync writes all of it");
    }
}
