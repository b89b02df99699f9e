//! The tenant's end: a raw socket on `f0`, and datagrams with segmentation.
#![allow(unsafe_code)] // Packet sockets and UDP_SEGMENT are not in the standard library.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::frames::is_plain;
use super::netns::Netns;

/// Sends and receives whole Ethernet frames on `f0`.
pub struct RawSocket(OwnedFd);

impl RawSocket {
    pub fn open(far: &Netns) -> Self {
        let ifindex = far.ifindex("f0");
        far.run(|| {
            let protocol = u16::to_be(libc::ETH_P_ALL as u16);
            // SAFETY: a new socket, bound to an address that lives through the call.
            unsafe {
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol));
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                let fd = OwnedFd::from_raw_fd(fd);
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = protocol;
                address.sll_ifindex = ifindex as i32;
                let len = size_of_val(&address) as u32;
                let ret = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len);
                assert_eq!(ret, 0, "{}", io::Error::last_os_error());
                let size = 64 << 20;
                let len = size_of_val(&size) as u32;
                let ret = libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUFFORCE,
                    (&raw const size).cast(),
                    len,
                );
                assert_eq!(ret, 0, "{}", io::Error::last_os_error());
                let wait = libc::timeval { tv_sec: 5, tv_usec: 0 };
                let len = size_of_val(&wait) as u32;
                let ret = libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_RCVTIMEO,
                    (&raw const wait).cast(),
                    len,
                );
                assert_eq!(ret, 0, "{}", io::Error::last_os_error());
                Self(fd)
            }
        })
    }

    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is live.
        let ret = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next frame that arrived (not one that was sent) and satisfies `accept`.
    pub fn receive(&self, accept: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        loop {
            // SAFETY: zeroes are a valid address to be overwritten; all buffers are live.
            let (ret, kind) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut len = size_of_val(&from) as u32;
                let ret = libc::recvfrom(
                    self.0.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut len,
                );
                (ret, from.sll_pkttype)
            };
            let len = usize::try_from(ret).map_err(|_| io::Error::last_os_error())?;
            if kind != libc::PACKET_OUTGOING && accept(&bytes[..len]) {
                bytes.truncate(len);
                return Ok(bytes);
            }
        }
    }

    pub fn receive_plain(&self) -> Vec<u8> {
        self.receive(is_plain).expect("a frame arrives in time")
    }
}

/// Sends `bytes` as datagrams of `size` bytes in one call (`UDP_SEGMENT`).
pub fn send_segmented(socket: &UdpSocket, to: &str, bytes: &[u8], size: u16) {
    let value = i32::from(size);
    let len = size_of_val(&value) as u32;
    // SAFETY: the option value is live.
    let ret = unsafe {
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const value).cast(), len)
    };
    assert_eq!(ret, 0, "{}", io::Error::last_os_error());
    assert_eq!(socket.send_to(bytes, to).unwrap(), bytes.len());
}
