//! ARP for Ethernet and IPv4 (RFC 826).

use std::net::Ipv4Addr;

use crate::bytes::{put, put8, put16};
use crate::error::ParseError;
use crate::eth::{MacAddr, ether_type};

/// Bytes of a message.
pub const LEN: usize = 28;
/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;

/// A message that is known to be ARP for Ethernet and IPv4.
#[derive(Copy, Clone, Debug)]
pub struct View<'a>(&'a [u8; LEN]);

impl<'a> View<'a> {
    /// Checks the message at the start of `bytes`.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] or [`ParseError::BadArp`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let m: &[u8; LEN] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        let ethernet = [m[0], m[1]] == [0, 1] && m[4] == 6;
        let ipv4 = u16::from_be_bytes([m[2], m[3]]) == ether_type::IPV4 && m[5] == 4;
        if ethernet && ipv4 { Ok(Self(m)) } else { Err(ParseError::BadArp) }
    }

    /// The message as plain values.
    #[must_use]
    pub const fn repr(&self) -> Repr {
        let m = self.0;
        Repr {
            op: u16::from_be_bytes([m[6], m[7]]),
            sender_mac: MacAddr([m[8], m[9], m[10], m[11], m[12], m[13]]),
            sender_ip: Ipv4Addr::new(m[14], m[15], m[16], m[17]),
            target_mac: MacAddr([m[18], m[19], m[20], m[21], m[22], m[23]]),
            target_ip: Ipv4Addr::new(m[24], m[25], m[26], m[27]),
        }
    }
}

/// An ARP message as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// [`REQUEST`] or [`REPLY`].
    pub op: u16,
    /// Ethernet address of the sender.
    pub sender_mac: MacAddr,
    /// IPv4 address of the sender; unspecified in a probe (RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// Ethernet address of the target; without meaning in a request.
    pub target_mac: MacAddr,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

impl Repr {
    /// Reads the message at the start of `bytes`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        View::new(bytes).map(|v| v.repr())
    }

    /// Writes the message and answers its length, [`LEN`]; `None` if `out` is too short.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..LEN)?;
        put16(out, 0, 1);
        put16(out, 2, ether_type::IPV4);
        put8(out, 4, 6);
        put8(out, 5, 4);
        put16(out, 6, self.op);
        put(out, 8, &self.sender_mac.0);
        put(out, 14, &self.sender_ip.octets());
        put(out, 18, &self.target_mac.0);
        put(out, 24, &self.target_ip.octets());
        Some(LEN)
    }
}
