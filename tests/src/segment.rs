//! TCP segments made by hand, every field of them.

use std::net::{IpAddr, Ipv4Addr};

use crate::tools::VirtioHeader;
use crate::topology::Tenant;

/// Flags of TCP.
pub mod flags {
    /// The sender has no more data.
    pub const FIN: u8 = 0x01;
    /// The first of a connection.
    pub const SYN: u8 = 0x02;
    /// The connection is no more.
    pub const RST: u8 = 0x04;
    /// To be delivered at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Congestion was seen.
    pub const ECE: u8 = 0x40;
    /// The window was reduced.
    pub const CWR: u8 = 0x80;
}

/// A TCP segment in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// MAC addresses of source and destination.
    pub macs: [[u8; 6]; 2],
    /// 802.1Q tag.
    pub vlan: Option<u16>,
    /// Addresses of source and destination, of one family.
    pub addresses: [IpAddr; 2],
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 identification.
    pub id: u16,
    /// The 16 bits of IPv4 that hold DF (0x4000), MF (0x2000) and the fragment's offset.
    pub fragment: u16,
    /// IPv4 options, or IPv6 extension headers, the first of which is of kind `extension`.
    pub between: Vec<u8>,
    /// What the IPv6 header names as next, where `between` is not empty.
    pub extension: u8,
    /// IPv6 flow label.
    pub label: u32,
    /// Ports of source and destination.
    pub ports: [u16; 2],
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The four reserved bits beside the data offset.
    pub reserved: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Data from one tenant to another, as [`Segment::plain`].
    pub fn between(from: &Tenant, to: &Tenant, ipv6: bool, seq: u32, payload: Vec<u8>) -> Self {
        let addresses: [IpAddr; 2] =
            if ipv6 { [from.v6.into(), to.v6.into()] } else { [from.v4.into(), to.v4.into()] };
        let macs = [from.mac_bytes(), to.mac_bytes()];
        Self { macs, addresses, seq, ..Self::plain(payload) }
    }

    /// Data from nobody to nobody over IPv4: ACK, DF, TTL 64, a timestamp option.
    pub fn plain(payload: Vec<u8>) -> Self {
        Self {
            macs: [[0; 6]; 2],
            vlan: None,
            addresses: [Ipv4Addr::UNSPECIFIED.into(); 2],
            tos: 0,
            ttl: 64,
            id: 100,
            fragment: 0x4000,
            between: Vec::new(),
            extension: 0,
            label: 0x12345,
            ports: [40_000, 5001],
            seq: 0,
            ack: 77,
            reserved: 0,
            flags: flags::ACK,
            window: 500,
            urgent: 0,
            options: timestamps(1000, 2000),
            payload,
        }
    }

    /// The segment that follows in the stream: sequence number and IPv4 identification go on.
    #[must_use]
    pub fn next(&self, payload: Vec<u8>) -> Self {
        let len = u32::try_from(self.payload.len()).unwrap_or(0);
        Self {
            seq: self.seq.wrapping_add(len),
            id: self.id.wrapping_add(1),
            payload,
            ..self.clone()
        }
    }

    fn ipv6(&self) -> bool {
        self.addresses[0].is_ipv6()
    }

    fn l3(&self) -> usize {
        14 + if self.vlan.is_some() { 4 } else { 0 }
    }

    fn l4(&self) -> usize {
        self.l3() + if self.ipv6() { 40 } else { 20 } + self.between.len()
    }

    /// Bytes in front of the payload.
    pub fn headers_len(&self) -> usize {
        self.l4() + 20 + self.options.len()
    }

    /// The frame, all lengths and checksums right.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.with_partial_checksum();
        let l4 = self.l4();
        let sum = fold(sum(&frame[l4..]));
        frame[l4 + 16..l4 + 18].copy_from_slice(&(!sum).to_be_bytes());
        frame
    }

    /// The frame as a superframe of segments of `mss` bytes, and what a virtio header says of it.
    pub fn superframe(&self, mss: u16) -> (VirtioHeader, Vec<u8>) {
        let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let header = VirtioHeader {
            flags: 1,
            gso_type: if self.ipv6() { VirtioHeader::TCP_V6 } else { VirtioHeader::TCP_V4 },
            hdr_len: short(self.headers_len()),
            gso_size: mss,
            csum_start: short(self.l4()),
            csum_offset: 16,
        };
        (header, self.with_partial_checksum())
    }

    /// The checksum field has the sum over the pseudo-header alone.
    fn with_partial_checksum(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.headers_len() + self.payload.len());
        out.extend(self.macs[1]);
        out.extend(self.macs[0]);
        if let Some(tag) = self.vlan {
            out.extend([0x81, 0]);
            out.extend(tag.to_be_bytes());
        }
        let l4_len = 20 + self.options.len() + self.payload.len();
        let len = |n: usize| u16::try_from(n).unwrap_or(0).to_be_bytes();
        let mut pseudo = Vec::new();
        if let [IpAddr::V4(src), IpAddr::V4(dst)] = self.addresses {
            let start = out.len() + 2;
            let words = u8::try_from(5 + self.between.len() / 4).unwrap_or(5);
            out.extend([8, 0, 0x40 | words, self.tos]);
            out.extend(len(20 + self.between.len() + l4_len));
            out.extend(self.id.to_be_bytes());
            out.extend(self.fragment.to_be_bytes());
            out.extend([self.ttl, 6, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            out.extend(&self.between);
            let sum = !fold(sum(&out[start..]));
            out[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
            pseudo.extend(src.octets());
            pseudo.extend(dst.octets());
        }
        if let [IpAddr::V6(src), IpAddr::V6(dst)] = self.addresses {
            let first = 6 << 28 | u32::from(self.tos) << 20 | self.label & 0xf_ffff;
            out.extend([0x86, 0xdd]);
            out.extend(first.to_be_bytes());
            out.extend(len(self.between.len() + l4_len));
            out.extend([if self.between.is_empty() { 6 } else { self.extension }, self.ttl]);
            out.extend(src.octets());
            out.extend(dst.octets());
            out.extend(&self.between);
            pseudo.extend(src.octets());
            pseudo.extend(dst.octets());
        }
        pseudo.extend([0, 6]);
        pseudo.extend(len(l4_len));
        for port in self.ports {
            out.extend(port.to_be_bytes());
        }
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        let words = u8::try_from(5 + self.options.len() / 4).unwrap_or(5);
        out.extend([words << 4 | self.reserved & 0xf, self.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend(fold(sum(&pseudo)).to_be_bytes());
        out.extend(self.urgent.to_be_bytes());
        out.extend(&self.options);
        out.extend(&self.payload);
        out
    }
}

/// The timestamp option, padded as all senders pad it.
pub fn timestamps(value: u32, echo: u32) -> Vec<u8> {
    let mut option = vec![1, 1, 8, 10];
    option.extend(value.to_be_bytes());
    option.extend(echo.to_be_bytes());
    option
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u64::from(b)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// Whether the checksum of the IPv4 header of an untagged frame is right.
pub fn ipv4_checksum_is_right(frame: &[u8]) -> bool {
    frame.get(14..34).is_some_and(|header| fold(sum(header)) == 0xffff)
}

/// Whether the checksum of the TCP segment or UDP datagram in an untagged frame without IP options is right; that of
/// the outermost one, where it is a tunnel's.
pub fn l4_checksum_is_right(frame: &[u8]) -> bool {
    let v6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
    let (addresses, protocol, l4) = if v6 { (22..54, 20, 54) } else { (26..34, 23, 34) };
    let (Some(addresses), Some(&protocol), Some(l4)) =
        (frame.get(addresses), frame.get(protocol), frame.get(l4..))
    else {
        return false;
    };
    let length = u64::try_from(l4.len()).unwrap_or(0);
    fold(sum(addresses) + u64::from(protocol) + length + sum(l4)) == 0xffff
}
