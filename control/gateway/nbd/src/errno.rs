//! The error values of the transmission phase.

use std::io;

/// An error of the transmission phase, as it travels.
///
/// The values equal Linux's `errno` values, which the protocol fixes for every platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Errno {
    /// The export is read-only, or the operation is not allowed. Connect to a writable export.
    #[error("operation not permitted (EPERM)")]
    Perm,
    /// The export could not do the I/O. Look at the server's log for what failed below.
    #[error("input/output error (EIO)")]
    Io,
    /// The server has no memory for the request. Send smaller or fewer ones.
    #[error("out of memory (ENOMEM)")]
    NoMem,
    /// The request is malformed: unknown command or flag, unaligned, or beyond the export's end.
    #[error("invalid request (EINVAL)")]
    Inval,
    /// A write beyond the export's end, or no space below it. Free space, or enlarge the volume.
    #[error("no space (ENOSPC)")]
    NoSpc,
    /// The answer does not fit one chunk although `DF` asked for one. Read less at a time.
    #[error("too large for one chunk (EOVERFLOW)")]
    Overflow,
    /// The request is legal and not supported; or, for a fast zero, it would not be fast.
    #[error("not supported (ENOTSUP)")]
    NotSup,
    /// The server is shutting down. Disconnect, and connect again later or elsewhere.
    #[error("server is shutting down (ESHUTDOWN)")]
    Shutdown,
}

impl Errno {
    /// All errors the protocol knows.
    pub const ALL: [Self; 8] = [
        Self::Perm,
        Self::Io,
        Self::NoMem,
        Self::Inval,
        Self::NoSpc,
        Self::Overflow,
        Self::NotSup,
        Self::Shutdown,
    ];

    /// The value on the wire.
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// The error of a value from the wire; `None` for zero, which is success.
    ///
    /// The protocol has unknown values taken for `EINVAL`.
    pub fn from_wire(value: u32) -> Option<Self> {
        if value == 0 {
            return None;
        }
        Some(Self::ALL.into_iter().find(|e| e.to_wire() == value).unwrap_or(Self::Inval))
    }
}

impl From<&io::Error> for Errno {
    fn from(e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Perm,
            io::ErrorKind::OutOfMemory => Self::NoMem,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NoSpc,
            io::ErrorKind::Unsupported => Self::NotSup,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire_and_unknown_ones_become_einval() {
        for errno in Errno::ALL {
            assert_eq!(Errno::from_wire(errno.to_wire()), Some(errno));
        }
        assert_eq!(Errno::from_wire(0), None);
        assert_eq!(Errno::from_wire(9999), Some(Errno::Inval));
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Errno::from(&full), Errno::NoSpc);
        assert_eq!(Errno::from(&io::Error::other("?")), Errno::Io);
    }
}
