//! Frames by hand with what a driver says beside them: superframes, partial checksums, VLAN tags.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::sys;

/// Bytes of a virtio header on a packet socket.
const HEADER_LEN: usize = 10;

/// The virtio header of a frame (virtio 1.2, section 5.1.6), all fields as they are on the wire of that socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// 1: the checksum is partial, from `csum_start` on.
    pub flags: u8,
    /// 0: none; 1: TCP over IPv4; 3: UDP with fragments; 4: TCP over IPv6; 5: UDP; 0x80 more: with ECN.
    pub gso_type: u8,
    /// Bytes of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where the checksum is, from `csum_start` on.
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// UDP segmentation.
    pub const UDP_L4: u8 = 5;
    /// TCP segmentation over IPv4.
    pub const TCP_V4: u8 = 1;
    /// TCP segmentation over IPv6.
    pub const TCP_V6: u8 = 4;
    /// With one of the two: CWR is set, and stays on the first segment only.
    pub const ECN: u8 = 0x80;

    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = self.flags;
        out[1] = self.gso_type;
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, word) in out[2..].chunks_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }
}

/// A frame as the device delivered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// What was said beside it.
    pub header: VirtioHeader,
    /// The tag (TCI) that was taken out of it, if any.
    pub vlan: Option<u16>,
    /// The frame without the tag.
    pub frame: Vec<u8>,
}

/// Sends and receives whole frames with their virtio headers on one device.
#[derive(Debug)]
pub struct OffloadSocket {
    fd: OwnedFd,
}

impl OffloadSocket {
    /// Opens the device `name` in `ns`.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn open(ns: &Netns, name: &str) -> io::Result<Self> {
        let fd = ns.enter(|| sys::offload_socket(sys::interface_index(name)?))?;
        Ok(Self { fd })
    }

    /// Keeps as many bytes of frames that nobody has read yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn keep(&self, bytes: i32) -> io::Result<()> {
        sys::force_receive_buffer(self.fd.as_fd(), bytes)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// If the kernel refuses frame or header.
    pub fn send(&self, header: VirtioHeader, frame: &[u8]) -> io::Result<()> {
        let message = [&header.to_bytes()[..], frame].concat();
        sys::send(self.fd.as_fd(), &message).map(drop)
    }

    /// The next incoming frame that `wanted` accepts, or `None` if none comes within `timeout`.
    ///
    /// # Errors
    /// If the device went down.
    pub fn receive_matching(
        &self,
        timeout: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Option<Delivered>> {
        let end = Instant::now() + timeout;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let got = sys::receive_with_control(self.fd.as_fd(), &mut buffer, left)?;
            let Some((len, controls)) = got else { return Ok(None) };
            let Some((header, frame)) = buffer[..len].split_first_chunk() else { continue };
            if wanted(frame) {
                let vlan = controls.iter().find_map(|(level, kind, data)| {
                    let is_auxdata = *level == libc::SOL_PACKET && *kind == libc::PACKET_AUXDATA;
                    is_auxdata.then(|| tag(data)).flatten()
                });
                let header = VirtioHeader::from_bytes(*header);
                return Ok(Some(Delivered { header, vlan, frame: frame.to_vec() }));
            }
        }
    }
}

/// The tag in a `struct tpacket_auxdata`: status in the first word, the TCI after four words and two halves.
fn tag(auxdata: &[u8]) -> Option<u16> {
    // TP_STATUS_VLAN_VALID of linux/if_packet.h.
    const VALID: u32 = 1 << 4;
    let status = u32::from_ne_bytes(*auxdata.first_chunk()?);
    let tci = u16::from_ne_bytes(*auxdata.get(16..)?.first_chunk()?);
    (status & VALID != 0).then_some(tci)
}
