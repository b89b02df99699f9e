//! IPv4 fragmentation (RFC 791 section 2.3), for inner packets without DF above the path MTU.

use std::ops::Range;

use crate::bytes::{get16, put, put8, put16};
use crate::checksum::Sum;
use crate::ipv4;
use crate::packet::{IpKind, Packet};

/// Why a packet is not fragmented. [`FragmentError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FragmentError {
    /// Only IPv4 is fragmented on the way (RFC 8200 section 5). Answer with "packet too big".
    #[error("not IPv4")]
    NotIpv4,
    /// DF is set. Answer with "fragmentation needed".
    #[error("DF is set")]
    DontFragment,
    /// The MTU does not hold the header and 8 bytes. The path MTU is wrong.
    #[error("the MTU does not hold a fragment")]
    MtuTooSmall,
    /// The header is not in the first buffer, or is not what was parsed.
    #[error("the header is not in the first buffer")]
    HeadersTooLong,
    /// The offset of the last fragment would be above 65535. The sender is hostile.
    #[error("the offset of a fragment is too high")]
    OffsetTooHigh,
}

impl FragmentError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 5] = [
        Self::NotIpv4,
        Self::DontFragment,
        Self::MtuTooSmall,
        Self::HeadersTooLong,
        Self::OffsetTooHigh,
    ];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIpv4 => "fragment_not_ipv4",
            Self::DontFragment => "fragment_dont_fragment",
            Self::MtuTooSmall => "fragment_mtu_too_small",
            Self::HeadersTooLong => "fragment_headers_too_long",
            Self::OffsetTooHigh => "fragment_offset_too_high",
        }
    }
}

/// The plan by which a packet is fragmented. A fragment of a larger packet may be fragmented again.
///
/// The L4 checksum covers the whole packet and is in the first fragment: complete it before.
#[derive(Copy, Clone, Debug)]
pub struct Fragmenter {
    l3: usize,
    header_len: usize,
    // Header of later fragments: options without the "copied" bit are left out.
    later: [u8; ipv4::MAX_HEADER_LEN],
    later_len: usize,
    flags_offset: u16,
    payload_len: usize,
    step: usize,
}

impl Fragmenter {
    /// Plans to fragment the packet so that no fragment is above `mtu` bytes from its L3 header on.
    ///
    /// # Errors
    /// Any [`FragmentError`].
    pub fn new(head: &[u8], pkt: &Packet, mtu: usize) -> Result<Self, FragmentError> {
        if pkt.ip != IpKind::V4 {
            return Err(FragmentError::NotIpv4);
        }
        let l3 = usize::from(pkt.l3);
        let header = head.get(l3..usize::from(pkt.l4)).ok_or(FragmentError::HeadersTooLong)?;
        let flags_offset = get16(header, 6).ok_or(FragmentError::HeadersTooLong)?;
        if flags_offset & ipv4::DF != 0 {
            return Err(FragmentError::DontFragment);
        }
        let step = mtu.checked_sub(header.len()).map_or(0, |room| room & !7);
        if step == 0 {
            return Err(FragmentError::MtuTooSmall);
        }
        let payload_len = pkt.l3_len() - header.len();
        let before = usize::from(flags_offset & ipv4::OFFSET_MASK) * 8;
        if before + payload_len > 0xffff {
            return Err(FragmentError::OffsetTooHigh);
        }
        let (later, later_len) = later_header(header);
        Ok(Self { l3, header_len: header.len(), later, later_len, flags_offset, payload_len, step })
    }

    /// Fragments, at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload_len.div_ceil(self.step).max(1)
    }

    /// The bytes of fragment `i` within the payload of the IP packet; empty past the last.
    #[must_use]
    pub fn payload_range(&self, i: usize) -> Range<usize> {
        let start = i.saturating_mul(self.step).min(self.payload_len);
        start..(start + self.step).min(self.payload_len)
    }

    /// Bytes of Ethernet and IPv4 header in front of fragment `i`.
    #[must_use]
    pub const fn headers_len(&self, i: usize) -> usize {
        self.l3 + if i == 0 { self.header_len } else { self.later_len }
    }

    /// Offset of the IP payload in the original frame: where [`Fragmenter::payload_range`] counts
    /// from.
    #[must_use]
    pub const fn payload_offset(&self) -> usize {
        self.l3 + self.header_len
    }

    /// Writes Ethernet and IPv4 header of fragment `i` and answers their length; 0 if `head` or
    /// `out` is too short.
    pub fn emit(&self, head: &[u8], i: usize, out: &mut [u8]) -> usize {
        let len = self.headers_len(i);
        let Some(out) = out.get_mut(..len) else { return 0 };
        let source = if i == 0 { len } else { self.l3 };
        let Some(original) = head.get(..source) else { return 0 };
        put(out, 0, original);
        if i > 0 {
            put(out, self.l3, self.later.get(..self.later_len).unwrap_or_default());
        }
        let range = self.payload_range(i);
        let more = range.end < self.payload_len || self.flags_offset & ipv4::MF != 0;
        let offset = (self.flags_offset & ipv4::OFFSET_MASK) + (range.start / 8) as u16;
        put16(out, self.l3 + 2, (len - self.l3 + range.len()) as u16);
        put16(out, self.l3 + 6, if more { ipv4::MF } else { 0 } | offset);
        put16(out, self.l3 + 10, 0);
        let sum = Sum::default().add(out.get(self.l3..).unwrap_or_default()).finish();
        put16(out, self.l3 + 10, sum);
        len
    }
}

/// The header with only those options that RFC 791 section 3.1 has copied into every fragment,
/// padded to a multiple of 4.
fn later_header(header: &[u8]) -> ([u8; ipv4::MAX_HEADER_LEN], usize) {
    let mut later = [0u8; ipv4::MAX_HEADER_LEN];
    let mut options = header.get(ipv4::HEADER_LEN..).unwrap_or_default();
    put(&mut later, 0, header.get(..ipv4::HEADER_LEN).unwrap_or_default());
    let mut len = ipv4::HEADER_LEN;
    loop {
        let taken = match *options {
            [1, ..] => 1,
            [kind, option_len, ..]
                if kind > 1 && (2..=options.len()).contains(&usize::from(option_len)) =>
            {
                let taken = usize::from(option_len);
                if kind & 0x80 != 0 {
                    put(&mut later, len, options.get(..taken).unwrap_or_default());
                    len += taken;
                }
                taken
            }
            _ => break,
        };
        options = options.get(taken..).unwrap_or_default();
    }
    let len = len.next_multiple_of(4).min(ipv4::MAX_HEADER_LEN);
    put8(&mut later, 0, 0x40 | (len / 4) as u8);
    (later, len)
}
