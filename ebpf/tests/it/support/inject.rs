//! Sends frames with offloads still to do, as a tenant's stack would.
#![allow(unsafe_code)] // A packet socket with PACKET_VNET_HDR.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const PACKET_VNET_HDR: libc::c_int = 15;
const NEEDS_CSUM: u8 = 1;

pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_TCPV6: u8 = 4;
pub(crate) const GSO_UDP_L4: u8 = 5;

/// What is left to do for a frame, as in `struct virtio_net_hdr`.
#[derive(Clone, Copy)]
pub(crate) struct Offload {
    pub(crate) gso: u8,
    pub(crate) gso_size: u16,
    /// Length of all headers.
    pub(crate) headers: u16,
    /// Start and offset of the checksum to complete.
    pub(crate) checksum: Option<(u16, u16)>,
}

/// Sends one frame on a device of the calling thread's namespace.
pub(crate) fn send(ifindex: u32, frame: &[u8], offload: Offload) {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    let on_len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and length describe one live value.
    let set = unsafe {
        let on = (&raw const on).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, on, on_len)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());

    let (start, offset) = offload.checksum.unwrap_or_default();
    let mut message = vec![offload.checksum.map_or(0, |_| NEEDS_CSUM), offload.gso];
    for field in [offload.headers, offload.gso_size, start, offset] {
        message.extend(field.to_le_bytes());
    }
    message.extend(frame);

    // SAFETY: all-zero bytes are a valid value of this structure of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: buffer and address are live and of the lengths given.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    assert_eq!(sent, message.len() as isize, "{}", io::Error::last_os_error());
}
