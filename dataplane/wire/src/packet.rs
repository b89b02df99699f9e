//! Parse once: the descriptor that travels with a frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bytes::{get_array, get8, get16};
use crate::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::error::ParseError;
use crate::eth::{self, MAX_TAGS, MacAddr, VlanTag, ether_type};
use crate::hash::flow_hash;
use crate::{ipv4, ipv6, proto, tcp, udp};

/// The network layer of a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IpKind {
    /// Neither IPv4 nor IPv6.
    None,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Whether the IP packet is a fragment.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Frag {
    /// No fragment (an IPv6 "atomic fragment" of RFC 6946 is none either).
    None,
    /// The first: it has the L4 header.
    First,
    /// A later one: no L4 header.
    Later,
}

/// What stands between the IPv6 fixed header and L4.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Extensions {
    /// Nothing, or not IPv6.
    None,
    /// Headers that may be repeated in front of each segment.
    Repeatable,
    /// A routing or fragment header: the addresses of the pseudo-header, or the identification,
    /// can not be taken from the fixed header.
    Special,
}

/// Where things are in a frame, and the few values that every stage asks for.
///
/// Offsets are bytes from the start of the frame. Made by [`Packet::parse`], which guarantees
/// `14 <= l3 <= l4 <= payload <= len <= frame_len` and that `payload` bytes are in the head.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Bytes of the whole frame with padding; above the head's length for multi-buffer frames.
    pub frame_len: u32,
    /// Bytes without trailing padding: up to the end of the IP packet, or `frame_len` without IP.
    pub len: u32,
    /// A hash of the flow: addresses, protocol and ports; without the ports for every fragment, of
    /// MAC addresses and Ethernet type without IP. Flows that differ in their VLAN ids only have
    /// different hashes. Not symmetric.
    pub flow_hash: u32,
    /// Tag control information of the outermost inline tag.
    pub vlan: Option<u16>,
    /// Type of the payload after all tags.
    pub ether_type: u16,
    /// Offset of the L3 header, after up to two tags.
    pub l3: u16,
    /// Offset of the L4 header, after IPv6 extension headers; `l3` without IP.
    pub l4: u16,
    /// Offset of the L4 payload; `l4` for an unknown protocol and later fragments.
    pub payload: u16,
    /// The L4 protocol, 0 without IP. For later fragments, what the fragment header says.
    pub proto: u8,
    /// Time to live or hop limit, 0 without IP.
    pub ttl: u8,
    /// TOS or traffic class: DSCP (6 bits) and ECN (2); 0 without IP.
    pub tos: u8,
    /// The flags byte of a TCP header, see [`tcp::flags`]; else 0.
    pub tcp_flags: u8,
    /// Inline tags, 0 to 2.
    pub vlan_count: u8,
    /// The network layer.
    pub ip: IpKind,
    /// Whether it is a fragment.
    pub frag: Frag,
    /// IPv6 extension headers.
    pub extensions: Extensions,
}

const _: () = assert!(size_of::<Packet>() <= 48);

/// What one header layer adds.
struct Upper {
    offset: usize,
    proto: u8,
    frag: Frag,
    extensions: Extensions,
}

/// Reads inside the head, and tells a frame that is short from a head that is.
#[derive(Copy, Clone)]
struct Reader<'a> {
    head: &'a [u8],
    frame_len: usize,
}

impl Reader<'_> {
    fn missing(self, end: usize) -> ParseError {
        if end > self.frame_len { ParseError::Truncated } else { ParseError::HeadersTooLong }
    }

    fn u8(self, at: usize) -> Result<u8, ParseError> {
        get8(self.head, at).ok_or_else(|| self.missing(at + 1))
    }

    fn u16(self, at: usize) -> Result<u16, ParseError> {
        get16(self.head, at).ok_or_else(|| self.missing(at + 2))
    }

    fn reach(self, end: usize) -> Result<(), ParseError> {
        if end <= self.head.len() && end <= self.frame_len {
            Ok(())
        } else {
            Err(self.missing(end))
        }
    }
}

impl Packet {
    /// The descriptor of nothing, for slots that have none yet.
    pub const EMPTY: Self = Self {
        frame_len: 0,
        len: 0,
        flow_hash: 0,
        vlan: None,
        ether_type: 0,
        l3: 0,
        l4: 0,
        payload: 0,
        proto: 0,
        ttl: 0,
        tos: 0,
        tcp_flags: 0,
        vlan_count: 0,
        ip: IpKind::None,
        frag: Frag::None,
        extensions: Extensions::None,
    };

    /// Parses the headers of a frame of `frame_len` bytes that starts with `head`, its first
    /// contiguous piece. All headers must be in `head`.
    ///
    /// # Errors
    /// Any [`ParseError`] of Ethernet, IP, TCP and UDP: a frame that is refused must be dropped and
    /// counted under [`ParseError::name`].
    pub fn parse(head: &[u8], frame_len: usize) -> Result<Self, ParseError> {
        let head = head.get(..frame_len).unwrap_or(head);
        let reader = Reader { head, frame_len };
        let (mut ether_type, mut l3) = (reader.u16(12)?, eth::HEADER_LEN);
        let mut tags = [None; MAX_TAGS];
        let mut vlan_count = 0;
        while VlanTag::is_tpid(ether_type) {
            let tag = tags.get_mut(usize::from(vlan_count)).ok_or(ParseError::VlanStack)?;
            *tag = Some(reader.u16(l3)?);
            ether_type = reader.u16(l3 + 2)?;
            l3 += eth::TAG_LEN;
            vlan_count += 1;
        }
        let mut pkt = Self {
            frame_len: u32::try_from(frame_len).map_err(|_| ParseError::BadIpTotalLength)?,
            len: frame_len as u32,
            vlan: tags[0],
            ether_type,
            l3: l3 as u16,
            l4: l3 as u16,
            payload: l3 as u16,
            vlan_count,
            ..Self::EMPTY
        };
        match ether_type {
            ether_type::IPV4 => pkt.parse_v4(reader)?,
            ether_type::IPV6 => pkt.parse_v6(reader)?,
            _ => {}
        }
        pkt.flow_hash = flow_hash(head, &pkt, tags);
        Ok(pkt)
    }

    fn parse_v4(&mut self, reader: Reader<'_>) -> Result<(), ParseError> {
        let l3 = usize::from(self.l3);
        let first = reader.u8(l3)?;
        if first >> 4 != 4 {
            return Err(ParseError::BadIpVersion);
        }
        let header_len = usize::from(first & 0x0f) * 4;
        if header_len < ipv4::HEADER_LEN {
            return Err(ParseError::BadIpHeaderLength);
        }
        reader.reach(l3 + header_len)?;
        let total = usize::from(reader.u16(l3 + 2)?);
        if total < header_len || l3 + total > reader.frame_len {
            return Err(ParseError::BadIpTotalLength);
        }
        let header = reader.head.get(l3..l3 + header_len).unwrap_or_default();
        if Sum::default().add(header).finish() != 0 {
            return Err(ParseError::BadIpv4Checksum);
        }
        self.ip = IpKind::V4;
        self.len = (l3 + total) as u32;
        self.tos = reader.u8(l3 + 1)?;
        self.ttl = reader.u8(l3 + 8)?;
        let word = reader.u16(l3 + 6)?;
        let frag = match (word & ipv4::OFFSET_MASK, word & ipv4::MF) {
            (0, 0) => Frag::None,
            (0, _) => Frag::First,
            _ => Frag::Later,
        };
        let proto = reader.u8(l3 + 9)?;
        let offset = l3 + header_len;
        self.parse_l4(reader, &Upper { offset, proto, frag, extensions: Extensions::None })
    }

    fn parse_v6(&mut self, reader: Reader<'_>) -> Result<(), ParseError> {
        let l3 = usize::from(self.l3);
        if reader.u8(l3)? >> 4 != 6 {
            return Err(ParseError::BadIpVersion);
        }
        let start = l3 + ipv6::HEADER_LEN;
        reader.reach(start)?;
        let end = start + usize::from(reader.u16(l3 + 4)?);
        // A length of zero in a frame above 64 KB is BIG TCP or a jumbogram without its option.
        let giant = end == start && reader.frame_len > start + 0xffff;
        if end > reader.frame_len || giant {
            return Err(ParseError::BadIpTotalLength);
        }
        self.ip = IpKind::V6;
        self.len = end as u32;
        self.tos = (reader.u16(l3)? >> 4) as u8;
        self.ttl = reader.u8(l3 + 7)?;
        let next = reader.u8(l3 + 6)?;
        let inside = reader.head.get(start..end.min(reader.head.len())).unwrap_or_default();
        let whole = start + inside.len() == end;
        let upper = ipv6::walk(inside, next).map_err(|e| match e {
            ParseError::Truncated if !whole => ParseError::HeadersTooLong,
            e => e,
        })?;
        let frag = match upper.fragment {
            None => Frag::None,
            Some(_) if upper.is_later_fragment() => Frag::Later,
            Some(word) if word & 1 != 0 => Frag::First,
            Some(_) => Frag::None,
        };
        let extensions = match (upper.offset, upper.routing || upper.fragment.is_some()) {
            (0, _) => Extensions::None,
            (_, false) => Extensions::Repeatable,
            (_, true) => Extensions::Special,
        };
        let offset = start + upper.offset;
        self.parse_l4(reader, &Upper { offset, proto: upper.proto, frag, extensions })
    }

    fn parse_l4(&mut self, reader: Reader<'_>, upper: &Upper) -> Result<(), ParseError> {
        let l4 = upper.offset;
        // From here on the end of the IP packet, not that of the frame, is the limit.
        let end = self.len as usize;
        let head = reader.head.get(..end).unwrap_or(reader.head);
        let reader = Reader { head, frame_len: end };
        self.l4 = l4 as u16;
        self.payload = l4 as u16;
        self.proto = upper.proto;
        self.frag = upper.frag;
        self.extensions = upper.extensions;
        if upper.frag == Frag::Later {
            return Ok(());
        }
        let available = reader.frame_len - l4;
        let header_len = match upper.proto {
            proto::TCP => {
                let len = usize::from(reader.u8(l4 + 12)? >> 4) * 4;
                if len < tcp::HEADER_LEN || (len > available && upper.frag == Frag::None) {
                    return Err(ParseError::BadTcpHeaderLength);
                }
                self.tcp_flags = reader.u8(l4 + 13)?;
                len
            }
            proto::UDP => {
                let len = usize::from(reader.u16(l4 + 4)?);
                if len < udp::HEADER_LEN || (len > available && upper.frag == Frag::None) {
                    return Err(ParseError::BadUdpLength);
                }
                udp::HEADER_LEN
            }
            proto::ICMPV4 | proto::ICMPV6 => 8,
            _ => 0,
        };
        if header_len > available {
            return Err(ParseError::Truncated);
        }
        reader.reach(l4 + header_len)?;
        self.payload = (l4 + header_len) as u16;
        Ok(())
    }

    /// True if the frame carries IPv4 or IPv6.
    #[must_use]
    pub fn is_ip(&self) -> bool {
        self.ip != IpKind::None
    }

    /// True for a TCP segment with an L4 header.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.proto == proto::TCP && self.has_l4()
    }

    /// True for a UDP datagram with an L4 header.
    #[must_use]
    pub fn is_udp(&self) -> bool {
        self.proto == proto::UDP && self.has_l4()
    }

    /// True if an L4 header is present: IP, and no later fragment.
    #[must_use]
    pub fn has_l4(&self) -> bool {
        self.is_ip() && self.frag != Frag::Later
    }

    /// Bytes of all headers, Ethernet to L4.
    #[must_use]
    pub fn headers_len(&self) -> usize {
        usize::from(self.payload)
    }

    /// Bytes after the headers, without padding.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        (self.len as usize).saturating_sub(self.headers_len())
    }

    /// Bytes of L4 header and payload.
    #[must_use]
    pub fn l4_len(&self) -> usize {
        (self.len as usize).saturating_sub(usize::from(self.l4))
    }

    /// Bytes of the packet from L3 on: what an MTU limits.
    #[must_use]
    pub fn l3_len(&self) -> usize {
        (self.len as usize).saturating_sub(usize::from(self.l3))
    }

    /// The destination MAC address. `head` is what was parsed; [`MacAddr::ZERO`] if it is another.
    #[must_use]
    pub fn dst_mac(&self, head: &[u8]) -> MacAddr {
        MacAddr(get_array(head, 0).unwrap_or_default())
    }

    /// The source MAC address, likewise.
    #[must_use]
    pub fn src_mac(&self, head: &[u8]) -> MacAddr {
        MacAddr(get_array(head, 6).unwrap_or_default())
    }

    /// The source address, `None` without IP.
    #[must_use]
    pub fn src_ip(&self, head: &[u8]) -> Option<IpAddr> {
        self.address(head, 12, 8)
    }

    /// The destination address, `None` without IP.
    #[must_use]
    pub fn dst_ip(&self, head: &[u8]) -> Option<IpAddr> {
        self.address(head, 16, 24)
    }

    fn address(&self, head: &[u8], v4: usize, v6: usize) -> Option<IpAddr> {
        let l3 = usize::from(self.l3);
        match self.ip {
            IpKind::None => None,
            IpKind::V4 => get_array::<4>(head, l3 + v4).map(|a| Ipv4Addr::from(a).into()),
            IpKind::V6 => get_array::<16>(head, l3 + v6).map(|a| Ipv6Addr::from(a).into()),
        }
    }

    /// The source port of TCP or UDP.
    #[must_use]
    pub fn src_port(&self, head: &[u8]) -> Option<u16> {
        self.port(head, 0)
    }

    /// The destination port of TCP or UDP.
    #[must_use]
    pub fn dst_port(&self, head: &[u8]) -> Option<u16> {
        self.port(head, 2)
    }

    fn port(&self, head: &[u8], at: usize) -> Option<u16> {
        let ported = self.is_tcp() || self.is_udp();
        ported.then(|| get16(head, usize::from(self.l4) + at)).flatten()
    }

    /// The sum of the pseudo-header for an L4 packet of `l4_len` bytes, by the addresses of the IP
    /// header. Zero without IP.
    #[must_use]
    pub fn pseudo_header(&self, head: &[u8], l4_len: u32) -> Sum {
        match (self.src_ip(head), self.dst_ip(head)) {
            (Some(IpAddr::V4(src)), Some(IpAddr::V4(dst))) => {
                pseudo_v4(src, dst, self.proto, l4_len)
            }
            (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) => {
                pseudo_v6(&src, &dst, self.proto, l4_len)
            }
            _ => Sum::default(),
        }
    }
}
