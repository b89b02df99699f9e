//! The few system calls this crate makes, each with the unsafe part in one place.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// A memory mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    addr: NonNull<u8>,
    /// Zero where the memory is not to be unmapped.
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of a ring of an AF_XDP socket.
    pub(crate) fn ring(fd: BorrowedFd<'_>, len: usize, page_offset: i64) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        map(len, flags, fd.as_raw_fd(), page_offset).map(|addr| Self { addr, len })
    }

    /// Memory that is never unmapped.
    #[cfg(test)]
    pub(crate) fn leaked(len: usize) -> Self {
        Self { addr: map_anonymous(len).unwrap(), len: 0 }
    }

    /// A second handle on memory that is never unmapped.
    #[cfg(test)]
    pub(crate) fn alias(&self) -> Self {
        assert_eq!(self.len, 0);
        Self { addr: self.addr, len: 0 }
    }

    pub(crate) fn addr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping was made with this address and length and nobody else unmaps it.
            unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
        }
    }
}

fn map(len: usize, flags: i32, fd: RawFd, offset: i64) -> io::Result<NonNull<u8>> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
    let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(addr.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// Maps zeroed memory that stays for the life of the process.
pub(crate) fn map_anonymous(len: usize) -> io::Result<NonNull<u8>> {
    map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
}

/// Asks for huge pages. A refusal costs speed only, so it is not an error.
pub(crate) fn advise_huge(addr: NonNull<u8>, len: usize) {
    // SAFETY: advice changes no content; the range is inside the caller's mapping.
    unsafe { libc::madvise(addr.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
}

pub(crate) fn cvt(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

pub(crate) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

pub(crate) fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor returned is new, so it has no other owner.
    unsafe {
        let fd = cvt(libc::socket(family, kind | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A socket that asks the kernel about devices and routes.
pub(crate) fn netlink_route() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the descriptor returned is new, so it has no other owner.
    unsafe {
        let fd = cvt(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Sets a socket option to a plain value.
pub(crate) fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and length are those of `value`.
    cvt(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len)
    })?;
    Ok(())
}

/// Reads a socket option of a plain type of which every bit pattern is valid; bytes that an older
/// kernel does not know stay as `value` has them.
///
/// # Safety
/// Every bit pattern of `T` is valid.
pub(crate) unsafe fn get_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    mut value: T,
) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`.
    cvt(unsafe {
        let ptr = std::ptr::from_mut(&mut value).cast();
        libc::getsockopt(fd.as_raw_fd(), level, name, ptr, &raw mut len)
    })?;
    Ok(value)
}

/// Binds a socket to an address of a plain type (`sockaddr_xdp`, `sockaddr_ll`).
pub(crate) fn bind<T: Copy>(fd: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and length are those of `address`.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), len) })?;
    Ok(())
}

/// Raises the send buffer above the system's limit where the capability allows, else up to it.
pub(crate) fn set_send_buffer(fd: BorrowedFd<'_>, len_bytes: u32) -> io::Result<()> {
    let value = i32::try_from(len_bytes).unwrap_or(i32::MAX);
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &value)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &value))
}

/// As [`set_send_buffer`], of the receive buffer.
pub(crate) fn set_receive_buffer(fd: BorrowedFd<'_>, len_bytes: u32) -> io::Result<()> {
    let value = i32::try_from(len_bytes).unwrap_or(i32::MAX);
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &value)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &value))
}

/// A zero-length, non-blocking send: wakes the kernel's transmit side of an AF_XDP socket.
pub(crate) fn wake_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no data and no address are passed.
    let ret = unsafe {
        libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A zero-length, non-blocking receive: wakes the driver's receive side of an AF_XDP socket.
pub(crate) fn wake_rx(fd: BorrowedFd<'_>) -> io::Result<()> {
    let null = std::ptr::null_mut();
    // SAFETY: no buffer and no address are passed.
    let ret = unsafe {
        libc::recvfrom(fd.as_raw_fd(), null, 0, libc::MSG_DONTWAIT, null.cast(), null.cast())
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises the limit of locked memory, which kernels charge for a UMEM of a process without
/// CAP_IPC_LOCK. A refusal is not an error here: registering the UMEM will tell.
pub(crate) fn raise_memlock() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a live value.
    cvt(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })?;
    Ok(())
}
