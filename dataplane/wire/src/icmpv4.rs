//! ICMP for IPv4 (RFC 792).

use crate::bytes::{put, put8, put16, put32};
use crate::checksum::Sum;
use crate::error::ParseError;

/// Bytes of the header, the message's own 4 included.
pub const HEADER_LEN: usize = 8;

/// Message types.
pub mod kind {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable; code 4 is "fragmentation needed" (RFC 1191).
    pub const UNREACHABLE: u8 = 3;
    /// Source quench, obsolete (RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded; code 0 is "TTL exceeded in transit".
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Code of [`kind::UNREACHABLE`]: the packet has DF and is above the next hop's MTU.
pub const FRAG_NEEDED: u8 = 4;

/// True for messages that report an error: they are never answered by another (RFC 1122 section
/// 3.2.2).
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        kind::UNREACHABLE
            | kind::SOURCE_QUENCH
            | kind::REDIRECT
            | kind::TIME_EXCEEDED
            | kind::PARAMETER_PROBLEM
    )
}

/// A message that is long enough for its header.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    message: &'a [u8],
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `message`, the whole payload of an IP packet.
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

    /// True if the checksum is right.
    #[must_use]
    pub fn checksum_ok(&self) -> bool {
        Sum::default().add(self.message).finish() == 0
    }

    /// The header as plain values.
    #[must_use]
    pub const fn repr(&self) -> Repr {
        let h = self.fixed;
        Repr { kind: h[0], code: h[1], rest: u32::from_be_bytes([h[4], h[5], h[6], h[7]]) }
    }
}

/// An ICMP header as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Message type, see [`kind`].
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// The message's own 4 bytes; the low 16 bits of "fragmentation needed" are the MTU in bytes.
    pub rest: u32,
}

impl Repr {
    /// Reads the message and verifies its checksum; `None` if it is wrong or too short.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let view = View::new(message).ok()?;
        view.checksum_ok().then(|| view.repr())
    }

    /// Writes header and `payload` with the checksum and answers their length; `None` if `out` is
    /// too short.
    pub fn emit(&self, payload: &[u8], out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..HEADER_LEN + payload.len())?;
        put8(out, 0, self.kind);
        put8(out, 1, self.code);
        put16(out, 2, 0);
        put32(out, 4, self.rest);
        put(out, HEADER_LEN, payload);
        let sum = Sum::default().add(out).finish();
        put16(out, 2, sum);
        Some(out.len())
    }
}
