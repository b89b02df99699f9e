//! The UDP header (RFC 768).

use crate::bytes::put16;
use crate::checksum::Sum;
use crate::error::ParseError;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// A datagram whose length has been checked.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    fixed: &'a [u8; HEADER_LEN],
    datagram: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `bytes`, the payload of an IP packet.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] or [`ParseError::BadUdpLength`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let fixed: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let datagram = bytes.get(..len).ok_or(ParseError::BadUdpLength)?;
        let payload = datagram.get(HEADER_LEN..).ok_or(ParseError::BadUdpLength)?;
        Ok(Self { fixed, datagram, payload })
    }

    /// What follows the header.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The checksum field; zero means that the sender made none.
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.fixed[6], self.fixed[7]])
    }

    /// True if the checksum is right, or absent. `pseudo` is the pseudo-header's sum.
    #[must_use]
    pub fn checksum_ok(&self, pseudo: Sum) -> bool {
        self.checksum() == 0 || pseudo.add(self.datagram).finish() == 0
    }

    /// The header as plain values.
    #[must_use]
    pub const fn repr(&self) -> Repr {
        let h = self.fixed;
        Repr {
            src_port: u16::from_be_bytes([h[0], h[1]]),
            dst_port: u16::from_be_bytes([h[2], h[3]]),
            payload_len: self.payload.len() as u16,
            checksum: self.checksum(),
        }
    }
}

/// A UDP header as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes after the header, at most 65527.
    pub payload_len: u16,
    /// The checksum field as it is.
    pub checksum: u16,
}

impl Repr {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        View::new(bytes).map(|v| v.repr())
    }

    /// Writes the header and answers its length, [`HEADER_LEN`]; `None` if `out` is too short or
    /// the datagram too long.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..HEADER_LEN)?;
        put16(out, 0, self.src_port);
        put16(out, 2, self.dst_port);
        put16(out, 4, self.payload_len.checked_add(HEADER_LEN as u16)?);
        put16(out, 6, self.checksum);
        Some(HEADER_LEN)
    }
}
