//! The IPv4 header (RFC 791).

use std::net::Ipv4Addr;

use crate::bytes::{put, put8, put16};
use crate::checksum::Sum;
use crate::error::ParseError;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const MAX_HEADER_LEN: usize = 60;
/// The "don't fragment" bit of the flags and offset word.
pub const DF: u16 = 0x4000;
/// The "more fragments" bit of the flags and offset word.
pub const MF: u16 = 0x2000;
/// The fragment offset in the flags and offset word, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// A packet whose IPv4 header has been checked: version, both lengths, and that they are inside the
/// bytes. The checksum is not: see [`View::checksum_ok`].
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    fixed: &'a [u8; HEADER_LEN],
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `packet`; bytes after the total length are padding.
    ///
    /// # Errors
    /// [`ParseError::Truncated`], [`ParseError::BadIpVersion`], [`ParseError::BadIpHeaderLength`] or
    /// [`ParseError::BadIpTotalLength`].
    pub fn new(packet: &'a [u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; HEADER_LEN] = packet.first_chunk().ok_or(ParseError::Truncated)?;
        if fixed[0] >> 4 != 4 {
            return Err(ParseError::BadIpVersion);
        }
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if header_len < HEADER_LEN {
            return Err(ParseError::BadIpHeaderLength);
        }
        let header = packet.get(..header_len).ok_or(ParseError::Truncated)?;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        let payload = packet.get(header_len..total).ok_or(ParseError::BadIpTotalLength)?;
        Ok(Self { fixed, header, payload })
    }

    /// Header and options.
    #[must_use]
    pub const fn header(&self) -> &'a [u8] {
        self.header
    }

    /// The options, a multiple of 4 bytes.
    #[must_use]
    pub fn options(&self) -> &'a [u8] {
        self.header.get(HEADER_LEN..).unwrap_or_default()
    }

    /// What follows the header, without padding.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// True if the header's own checksum is right.
    #[must_use]
    pub fn checksum_ok(&self) -> bool {
        Sum::default().add(self.header).finish() == 0
    }

    /// The header as plain values.
    #[must_use]
    pub fn repr(&self) -> Repr {
        let h = self.fixed;
        let word = u16::from_be_bytes([h[6], h[7]]);
        let mut options = [0u8; MAX_HEADER_LEN - HEADER_LEN];
        put(&mut options, 0, self.options());
        Repr {
            tos: h[1],
            id: u16::from_be_bytes([h[4], h[5]]),
            df: word & DF != 0,
            mf: word & MF != 0,
            fragment_offset: word & OFFSET_MASK,
            ttl: h[8],
            proto: h[9],
            src: Ipv4Addr::new(h[12], h[13], h[14], h[15]),
            dst: Ipv4Addr::new(h[16], h[17], h[18], h[19]),
            options,
            options_len: (self.header.len() - HEADER_LEN) as u8,
            payload_len: self.payload.len() as u16,
        }
    }
}

/// An IPv4 header as plain values. Lengths and checksum are made from them by [`Repr::emit`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// DSCP (6 bits) and ECN (2).
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// More fragments follow.
    pub mf: bool,
    /// Fragment offset in units of 8 bytes.
    pub fragment_offset: u16,
    /// Time to live in hops.
    pub ttl: u8,
    /// Protocol of the payload.
    pub proto: u8,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Options; the first [`Repr::options_len`] bytes count.
    pub options: [u8; MAX_HEADER_LEN - HEADER_LEN],
    /// Bytes of options: a multiple of 4, at most 40.
    pub options_len: u8,
    /// Bytes after the header.
    pub payload_len: u16,
}

impl Repr {
    /// A header without options and fragmentation: id 0, DF set, TTL 64.
    #[must_use]
    pub const fn new(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, payload_len: u16) -> Self {
        Self {
            tos: 0,
            id: 0,
            df: true,
            mf: false,
            fragment_offset: 0,
            ttl: 64,
            proto,
            src,
            dst,
            options: [0; MAX_HEADER_LEN - HEADER_LEN],
            options_len: 0,
            payload_len,
        }
    }

    /// Reads the header at the start of `packet` and verifies its checksum.
    ///
    /// # Errors
    /// As [`View::new`], and [`ParseError::BadIpv4Checksum`].
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        let view = View::new(packet)?;
        if !view.checksum_ok() {
            return Err(ParseError::BadIpv4Checksum);
        }
        Ok(view.repr())
    }

    /// Bytes that [`Repr::emit`] writes.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        HEADER_LEN + self.options_len as usize
    }

    /// Writes the header with its checksum and answers its length; `None` if `out` is too short,
    /// the options are no multiple of 4 up to 40, or the total length is above 65535.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let options = self.options.get(..usize::from(self.options_len))?;
        let len = self.header_len();
        if !options.len().is_multiple_of(4) {
            return None;
        }
        let total = u16::try_from(len + usize::from(self.payload_len)).ok()?;
        let out = out.get_mut(..len)?;
        put8(out, 0, 0x40 | (len / 4) as u8);
        put8(out, 1, self.tos);
        put16(out, 2, total);
        put16(out, 4, self.id);
        let flags = if self.df { DF } else { 0 } | if self.mf { MF } else { 0 };
        put16(out, 6, flags | (self.fragment_offset & OFFSET_MASK));
        put8(out, 8, self.ttl);
        put8(out, 9, self.proto);
        put16(out, 10, 0);
        put(out, 12, &self.src.octets());
        put(out, 16, &self.dst.octets());
        put(out, HEADER_LEN, options);
        let sum = Sum::default().add(out).finish();
        put16(out, 10, sum);
        Some(len)
    }
}
