//! Cutting a superframe into segments.
//!
//! The plan ([`Segmenter`]) is made once per superframe; each segment's headers are the frame's own
//! with the fields of [`crate::format`] rewritten, as Linux GSO does. Payload is never touched here:
//! the caller moves or references it and brings its sum ([`Pieces`]).

use std::ops::Range;

use crate::bytes::{get16, put16};
use crate::checksum::Sum;
use crate::cut::{Cut, sum_without};
use crate::format::{Field, Rule, TCP_FIELDS, UDP_FIELDS, ip_fields};
use crate::ipv6;
use crate::packet::{Extensions, Frag, IpKind, Packet};
use crate::tcp::flags;

pub use crate::pieces::Pieces;

/// What a superframe is made of.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// A TCP segment over IPv4.
    TcpV4,
    /// A TCP segment over IPv6.
    TcpV6,
    /// Datagrams of one size, each with a UDP header of its own once cut (`GSO_UDP_L4`).
    UdpL4,
}

impl GsoKind {
    /// The kind of superframe that a parsed frame can be; `None` for neither TCP nor UDP.
    #[must_use]
    pub fn of(pkt: &Packet) -> Option<Self> {
        match pkt.ip {
            _ if pkt.is_udp() => Some(Self::UdpL4),
            IpKind::V4 if pkt.is_tcp() => Some(Self::TcpV4),
            IpKind::V6 if pkt.is_tcp() => Some(Self::TcpV6),
            _ => None,
        }
    }

    pub(crate) fn fields(self) -> &'static [Field] {
        match self {
            Self::TcpV4 | Self::TcpV6 => TCP_FIELDS,
            Self::UdpL4 => UDP_FIELDS,
        }
    }
}

/// Why a frame can not be cut. [`SegmentError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SegmentError {
    /// The frame is not of the kind that its metadata states. The sender's driver or the metadata
    /// program is wrong: report it.
    #[error("the frame is not of the stated kind")]
    WrongKind,
    /// The segment size is zero. As above, or the path MTU is below the headers.
    #[error("a segment size of zero")]
    ZeroMss,
    /// The headers are not in the first buffer.
    #[error("the headers are not in the first buffer")]
    HeadersTooLong,
    /// An IP fragment is never a superframe. The sender is broken or hostile.
    #[error("an IP fragment")]
    Fragment,
    /// A routing or fragment header: segments would need headers that the frame does not tell.
    #[error("an IPv6 routing or fragment header")]
    ExtensionHeaders,
    /// SYN, RST or URG on more than one segment's worth of payload. The sender is broken or
    /// hostile.
    #[error("SYN, RST or URG in a superframe")]
    BadFlags,
    /// The UDP length does not cover the whole superframe. The sender is broken or hostile.
    #[error("the UDP length does not cover the frame")]
    BadLength,
}

impl SegmentError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 7] = [
        Self::WrongKind,
        Self::ZeroMss,
        Self::HeadersTooLong,
        Self::Fragment,
        Self::ExtensionHeaders,
        Self::BadFlags,
        Self::BadLength,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WrongKind => "segment_wrong_kind",
            Self::ZeroMss => "segment_zero_mss",
            Self::HeadersTooLong => "segment_headers_too_long",
            Self::Fragment => "segment_fragment",
            Self::ExtensionHeaders => "segment_extension_headers",
            Self::BadFlags => "segment_bad_flags",
            Self::BadLength => "segment_bad_length",
        }
    }
}

/// The plan by which one superframe is cut.
#[derive(Copy, Clone, Debug)]
pub struct Segmenter {
    kind: GsoKind,
    ip: &'static [Field],
    l4_fields: &'static [Field],
    l3: usize,
    l3_header_len: usize,
    l4: usize,
    // Where the IP header's own checksum is, if it has one.
    ip_checksum: Option<usize>,
    // Where the L4 checksum is that segments carry.
    l4_checksum: Option<usize>,
    headers_len: usize,
    payload_len: usize,
    mss: usize,
    v6: bool,
    hold_id: bool,
    has_checksum: bool,
    // Addresses and protocol, without a length.
    pseudo: Sum,
    // Of what segments have in common, by header: the fields that change are not in it.
    eth_sum: Sum,
    ip_sum: Sum,
    l4_sum: Sum,
}

impl Segmenter {
    /// Plans to cut the frame that starts with `head` into segments of `mss` payload bytes.
    ///
    /// A frame with no more payload than `mss` makes one segment: the same plan completes a partial
    /// checksum.
    ///
    /// # Errors
    /// Any [`SegmentError`].
    pub fn new(head: &[u8], pkt: &Packet, kind: GsoKind, mss: u16) -> Result<Self, SegmentError> {
        if mss == 0 {
            return Err(SegmentError::ZeroMss);
        }
        if pkt.frag != Frag::None {
            return Err(SegmentError::Fragment);
        }
        if GsoKind::of(pkt) != Some(kind) {
            return Err(SegmentError::WrongKind);
        }
        if pkt.extensions == Extensions::Special {
            return Err(SegmentError::ExtensionHeaders);
        }
        let (l4, headers_len) = (usize::from(pkt.l4), pkt.headers_len());
        let l4_header = head.get(l4..headers_len).ok_or(SegmentError::HeadersTooLong)?;
        let (payload_len, mss) = (pkt.payload_len(), usize::from(mss));
        let never_many = flags::SYN | flags::RST | flags::URG;
        if payload_len > mss && pkt.tcp_flags & never_many != 0 {
            return Err(SegmentError::BadFlags);
        }
        let mut has_checksum = true;
        if let (GsoKind::UdpL4, &[_, _, _, _, a, b, c, d, ..]) = (kind, l4_header) {
            if usize::from(u16::from_be_bytes([a, b])) != pkt.l4_len() {
                return Err(SegmentError::BadLength);
            }
            has_checksum = [c, d] != [0, 0];
        }
        let (ip, l4_fields, l3) = (ip_fields(pkt.ether_type), kind.fields(), usize::from(pkt.l3));
        let checksum_at = |fields: &[Field], start: usize, is_one: fn(Rule) -> bool| {
            let field = fields.iter().find(|field| is_one(field.rule));
            field.map(|field| start + usize::from(field.offset))
        };
        let is_l4 = |rule| matches!(rule, Rule::Checksum | Rule::OptionalChecksum);
        Ok(Self {
            kind,
            ip,
            l4_fields,
            l3,
            l3_header_len: l4 - l3,
            l4,
            ip_checksum: checksum_at(ip, l3, |rule| rule == Rule::HeaderChecksum),
            l4_checksum: checksum_at(l4_fields, l4, is_l4).filter(|_| has_checksum),
            headers_len,
            payload_len,
            mss,
            v6: pkt.ip == IpKind::V6,
            hold_id: false,
            has_checksum,
            pseudo: pkt.pseudo_header(head, 0),
            eth_sum: Sum::default().add(head.get(..l3).unwrap_or_default()),
            ip_sum: sum_without(head.get(l3..l4).unwrap_or_default(), ip),
            l4_sum: sum_without(l4_header, l4_fields),
        })
    }

    /// The same plan with one IPv4 identification for all segments (`SKB_GSO_TCP_FIXEDID`).
    #[must_use]
    pub const fn with_fixed_id(mut self) -> Self {
        self.hold_id = true;
        self
    }

    /// What is cut.
    #[must_use]
    pub const fn kind(&self) -> GsoKind {
        self.kind
    }

    /// Segments, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload_len.div_ceil(self.mss).max(1)
    }

    /// Bytes of headers in front of each segment, Ethernet to L4.
    #[must_use]
    pub const fn headers_len(&self) -> usize {
        self.headers_len
    }

    /// The payload of segment `i` within the frame's payload; empty past the last segment.
    #[inline]
    #[must_use]
    pub fn payload_range(&self, i: usize) -> Range<usize> {
        let start = i.saturating_mul(self.mss).min(self.payload_len);
        start..(start + self.mss).min(self.payload_len)
    }

    /// True if segments carry an L4 checksum: false for a UDP superframe with a zero one.
    #[must_use]
    pub const fn has_checksum(&self) -> bool {
        self.has_checksum
    }

    /// Writes the headers of segment `i` into `out[..self.headers_len()]`, all checksums complete,
    /// and answers their length; 0 if `head` or `out` is too short.
    ///
    /// `head` is what the plan was made of; `payload_sum` is the sum over
    /// [`Segmenter::payload_range`] of `i`.
    #[inline]
    pub fn emit(&self, head: &[u8], i: usize, payload_sum: Sum, out: &mut [u8]) -> usize {
        let len = self.headers_len;
        let (Some(headers), Some(out)) = (head.get(..len), out.get_mut(..len)) else { return 0 };
        out.copy_from_slice(headers);
        let range = self.payload_range(i);
        let cut = Cut {
            index: i,
            last: range.end == self.payload_len,
            advance: range.start,
            end: len + range.len(),
            hold: self.hold_id,
        };
        let ip = cut.apply(self.ip, self.l3, out);
        let l4 = cut.apply(self.l4_fields, self.l4, out);
        if let Some(at) = self.ip_checksum {
            put16(out, at, self.ip_sum.add_sum(ip).finish());
        }
        if let Some(at) = self.l4_checksum {
            let l4_len = (cut.end - self.l4) as u32;
            let header = self.l4_sum.add_sum(l4);
            let sum = self.pseudo.add_u32(l4_len).add_sum(header).add_sum(payload_sum);
            let optional = self.kind == GsoKind::UdpL4;
            put16(out, at, if optional { sum.finish_udp() } else { sum.finish() });
        }
        len
    }

    /// The sum of the whole segment whose headers [`Segmenter::emit`] wrote, for the outer
    /// checksum: from the headers alone. Wrong where [`Segmenter::has_checksum`] is false: use
    /// [`Segmenter::segment_sum_with`] there.
    #[inline]
    #[must_use]
    pub fn segment_sum(&self, out_headers: &[u8]) -> Sum {
        // The segment's length is in its own IP header; the plan need not be told which it is.
        let at = |offset| usize::from(get16(out_headers, self.l3 + offset).unwrap_or(0));
        let l3_len = match self.v6 {
            true => at(4) + ipv6::HEADER_LEN,
            false => at(2),
        };
        let l4_len = l3_len.saturating_sub(self.l3_header_len) as u32;
        // An IPv4 header sums to zero. Of IPv6 only the length differs from segment to segment.
        let ip = match self.v6 {
            true => self.ip_sum.add_u16(at(4) as u16),
            false => Sum::default(),
        };
        self.eth_sum.add_sum(ip).add_sum(self.pseudo.add_u32(l4_len).complement())
    }

    /// The sum of the whole segment from its headers and the sum of its payload.
    #[inline]
    #[must_use]
    pub fn segment_sum_with(&self, out_headers: &[u8], payload_sum: Sum) -> Sum {
        Sum::default()
            .add(out_headers.get(..self.headers_len).unwrap_or_default())
            .add_sum(payload_sum)
    }
}
