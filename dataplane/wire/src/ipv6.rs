//! The IPv6 header and its extension headers (RFC 8200).

use std::net::Ipv6Addr;

use crate::bytes::{get8, get16, put, put8, put16, put32};
use crate::error::ParseError;
use crate::proto;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Bytes of a fragment header (RFC 8200 section 4.5).
pub const FRAGMENT_HEADER_LEN: usize = 8;
/// The most extension headers that are followed.
pub const MAX_EXTENSIONS: usize = 8;
/// The most bytes of extension headers that are followed.
pub const MAX_EXTENSION_LEN: usize = 256;
/// The least MTU of an IPv6 link, in bytes.
pub const MIN_MTU: usize = 1280;

/// A packet whose fixed header has been checked: version and length.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `packet`; bytes after the payload length are padding.
    ///
    /// # Errors
    /// [`ParseError::Truncated`], [`ParseError::BadIpVersion`] or [`ParseError::BadIpTotalLength`].
    pub fn new(packet: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, rest) =
            packet.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
        if fixed[0] >> 4 != 6 {
            return Err(ParseError::BadIpVersion);
        }
        let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let payload = rest.get(..len).ok_or(ParseError::BadIpTotalLength)?;
        Ok(Self { fixed, payload })
    }

    /// Extension headers and what follows, without padding.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Follows the extension headers.
    ///
    /// # Errors
    /// As [`walk`].
    pub fn upper(&self) -> Result<Upper, ParseError> {
        walk(self.payload, self.fixed[6])
    }

    /// The fixed header as plain values.
    #[must_use]
    pub fn repr(&self) -> Repr {
        let h = self.fixed;
        let word = u32::from_be_bytes([h[0], h[1], h[2], h[3]]);
        let (mut src, mut dst) = ([0u8; 16], [0u8; 16]);
        src.copy_from_slice(&h[8..24]);
        dst.copy_from_slice(&h[24..40]);
        Repr {
            traffic_class: (word >> 20) as u8,
            flow_label: word & 0x000f_ffff,
            payload_len: self.payload.len() as u16,
            next_header: h[6],
            hop_limit: h[7],
            src: Ipv6Addr::from(src),
            dst: Ipv6Addr::from(dst),
        }
    }
}

/// An IPv6 fixed header as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// DSCP (6 bits) and ECN (2).
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes after the fixed header.
    pub payload_len: u16,
    /// Type of the first extension header or the upper protocol.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
}

impl Repr {
    /// A header with hop limit 64, no flow label and traffic class 0.
    #[must_use]
    pub const fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, payload_len: u16) -> Self {
        Self { traffic_class: 0, flow_label: 0, payload_len, next_header, hop_limit: 64, src, dst }
    }

    /// Reads the fixed header at the start of `packet`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        View::new(packet).map(|v| v.repr())
    }

    /// Writes the header and answers its length, [`HEADER_LEN`]; `None` if `out` is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..HEADER_LEN)?;
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | (self.flow_label & 0x000f_ffff);
        put32(out, 0, word);
        put16(out, 4, self.payload_len);
        put8(out, 6, self.next_header);
        put8(out, 7, self.hop_limit);
        put(out, 8, &self.src.octets());
        put(out, 24, &self.dst.octets());
        Some(HEADER_LEN)
    }
}

/// Where the upper layer of an IPv6 packet starts and what was on the way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The upper protocol, or the one of the first fragment's payload.
    pub proto: u8,
    /// Bytes of extension headers.
    pub offset: usize,
    /// The flags and offset word of a fragment header, if there is one.
    pub fragment: Option<u16>,
    /// A routing header is present: the pseudo-header's destination may be another than the fixed
    /// header's.
    pub routing: bool,
}

impl Upper {
    /// True for a fragment other than the first: no upper header follows.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|word| word & 0xfff8 != 0)
    }
}

/// Follows the chain of extension headers at the start of `payload`, the first of type `next`.
///
/// # Errors
/// [`ParseError::Truncated`] if a header reaches past `payload`, and
/// [`ParseError::ExtensionHeaderChain`] above [`MAX_EXTENSIONS`] or [`MAX_EXTENSION_LEN`].
pub fn walk(payload: &[u8], next: u8) -> Result<Upper, ParseError> {
    let mut upper = Upper { proto: next, offset: 0, fragment: None, routing: false };
    for _ in 0..=MAX_EXTENSIONS {
        let at = upper.offset;
        if upper.is_later_fragment() {
            return Ok(upper);
        }
        let len = match upper.proto {
            proto::HOP_BY_HOP | proto::ROUTING | proto::DESTINATION => {
                8 + 8 * usize::from(get8(payload, at + 1).ok_or(ParseError::Truncated)?)
            }
            // RFC 4302 section 2.2: the length is in words of 4 bytes, minus 2.
            proto::AUTHENTICATION => {
                8 + 4 * usize::from(get8(payload, at + 1).ok_or(ParseError::Truncated)?)
            }
            proto::FRAGMENT => {
                upper.fragment = Some(get16(payload, at + 2).ok_or(ParseError::Truncated)?);
                FRAGMENT_HEADER_LEN
            }
            _ => return Ok(upper),
        };
        upper.routing |= upper.proto == proto::ROUTING;
        upper.offset = at + len;
        if upper.offset > MAX_EXTENSION_LEN {
            return Err(ParseError::ExtensionHeaderChain);
        }
        if upper.offset > payload.len() {
            return Err(ParseError::Truncated);
        }
        upper.proto = get8(payload, at).ok_or(ParseError::Truncated)?;
    }
    Err(ParseError::ExtensionHeaderChain)
}
