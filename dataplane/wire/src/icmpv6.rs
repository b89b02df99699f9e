//! ICMP for IPv6 (RFC 4443) and the neighbour messages that use it (RFC 4861).

use std::net::Ipv6Addr;

use crate::bytes::{get_array, put, put8, put16, put32};
use crate::checksum::pseudo_v6;
use crate::error::ParseError;
use crate::eth::MacAddr;
use crate::proto;

/// Bytes of the header, the message's own 4 included.
pub const HEADER_LEN: usize = 8;

/// Message types.
pub mod kind {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded; code 0 is "hop limit exceeded in transit".
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Neighbour option: link-layer address of the message's source.
pub const OPTION_SOURCE_LINK: u8 = 1;
/// Neighbour option: link-layer address of the message's target.
pub const OPTION_TARGET_LINK: u8 = 2;

/// True for messages that are never answered by an error (RFC 4443 section 2.4 (e)).
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    kind < 128 || kind == kind::REDIRECT
}

/// A message that is long enough for its header.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    message: &'a [u8],
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `message`, the whole upper layer of an IP packet.
    ///
    /// # Errors
    /// [`ParseError::Truncated`].
    pub fn new(message: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, payload) = message.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok(Self { message, fixed, payload })
    }

    /// What follows the header: in an error message, the start of the packet it is about.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// True if the checksum is right for a packet between these addresses.
    #[must_use]
    pub fn checksum_ok(&self, src: &Ipv6Addr, dst: &Ipv6Addr) -> bool {
        let len = self.message.len() as u32;
        pseudo_v6(src, dst, proto::ICMPV6, len).add(self.message).finish() == 0
    }

    /// The header as plain values.
    #[must_use]
    pub const fn repr(&self) -> Repr {
        let h = self.fixed;
        Repr { kind: h[0], code: h[1], rest: u32::from_be_bytes([h[4], h[5], h[6], h[7]]) }
    }

    /// The target of a neighbour solicitation or advertisement; `None` if too short.
    #[must_use]
    pub fn target(&self) -> Option<Ipv6Addr> {
        get_array(self.payload, 0).map(Ipv6Addr::from)
    }

    /// The Ethernet address in a neighbour message's option `kind`: [`OPTION_SOURCE_LINK`] or
    /// [`OPTION_TARGET_LINK`].
    #[must_use]
    pub fn link_option(&self, kind: u8) -> Option<MacAddr> {
        let mut options = self.payload.get(16..)?;
        loop {
            let &[found, words, ..] = options else { return None };
            // RFC 4861 section 4.6: a length of zero is malformed, and would loop for ever.
            let (option, rest) = options.split_at_checked(usize::from(words) * 8)?;
            if words == 0 {
                return None;
            }
            if found == kind && words == 1 {
                return get_array(option, 2).map(MacAddr);
            }
            options = rest;
        }
    }
}

/// An ICMP for IPv6 header as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Message type, see [`kind`].
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// The message's own 4 bytes: the MTU in bytes of "packet too big", the flags of a neighbour
    /// advertisement.
    pub rest: u32,
}

impl Repr {
    /// Reads the message and verifies its checksum; `None` if it is wrong or too short.
    #[must_use]
    pub fn parse(message: &[u8], src: &Ipv6Addr, dst: &Ipv6Addr) -> Option<Self> {
        let view = View::new(message).ok()?;
        view.checksum_ok(src, dst).then(|| view.repr())
    }

    /// Writes header and `payload` with the checksum for these addresses and answers their length;
    /// `None` if `out` is too short.
    pub fn emit(
        &self,
        src: &Ipv6Addr,
        dst: &Ipv6Addr,
        payload: &[u8],
        out: &mut [u8],
    ) -> Option<usize> {
        let out = out.get_mut(..HEADER_LEN + payload.len())?;
        put8(out, 0, self.kind);
        put8(out, 1, self.code);
        put16(out, 2, 0);
        put32(out, 4, self.rest);
        put(out, HEADER_LEN, payload);
        let sum = pseudo_v6(src, dst, proto::ICMPV6, out.len() as u32).add(out).finish();
        put16(out, 2, sum);
        Some(out.len())
    }
}
