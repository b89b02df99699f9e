//! The TCP header and its options (RFC 9293).

use crate::bytes::{put, put8, put16, put32};
use crate::checksum::Sum;
use crate::error::ParseError;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header.
pub const MAX_HEADER_LEN: usize = 60;

/// Bits of the flags byte.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN echo (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// A segment whose header length has been checked.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    fixed: &'a [u8; HEADER_LEN],
    segment: &'a [u8],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `segment`, the whole payload of an IP packet.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] or [`ParseError::BadTcpHeaderLength`].
    pub fn new(segment: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, rest) =
            segment.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
        let options_len = (usize::from(fixed[12] >> 4) * 4)
            .checked_sub(HEADER_LEN)
            .ok_or(ParseError::BadTcpHeaderLength)?;
        let (options, payload) =
            rest.split_at_checked(options_len).ok_or(ParseError::BadTcpHeaderLength)?;
        Ok(Self { fixed, segment, options, payload })
    }

    /// The bytes of the options.
    #[must_use]
    pub const fn options(&self) -> &'a [u8] {
        self.options
    }

    /// What follows the header.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// True if the checksum is right. `pseudo` is the pseudo-header's sum.
    #[must_use]
    pub fn checksum_ok(&self, pseudo: Sum) -> bool {
        pseudo.add(self.segment).finish() == 0
    }

    /// The header as plain values.
    #[must_use]
    pub fn repr(&self) -> Repr {
        let h = self.fixed;
        let mut options = [0u8; MAX_HEADER_LEN - HEADER_LEN];
        put(&mut options, 0, self.options);
        Repr {
            src_port: u16::from_be_bytes([h[0], h[1]]),
            dst_port: u16::from_be_bytes([h[2], h[3]]),
            seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            flags: h[13],
            window: u16::from_be_bytes([h[14], h[15]]),
            checksum: u16::from_be_bytes([h[16], h[17]]),
            urgent: u16::from_be_bytes([h[18], h[19]]),
            options,
            options_len: self.options.len() as u8,
        }
    }
}

/// A TCP header as plain values. The four reserved bits are sent as zero.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number of the first payload byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// See [`flags`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// The checksum field as it is.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; the first [`Repr::options_len`] bytes count.
    pub options: [u8; MAX_HEADER_LEN - HEADER_LEN],
    /// Bytes of options: a multiple of 4, at most 40.
    pub options_len: u8,
}

impl Repr {
    /// Reads the header at the start of `segment`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn parse(segment: &[u8]) -> Result<Self, ParseError> {
        View::new(segment).map(|v| v.repr())
    }

    /// Bytes that [`Repr::emit`] writes.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        HEADER_LEN + self.options_len as usize
    }

    /// Writes the header and answers its length; `None` if `out` is too short or the options are no
    /// multiple of 4 up to 40.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let options = self.options.get(..usize::from(self.options_len))?;
        if !options.len().is_multiple_of(4) {
            return None;
        }
        let len = self.header_len();
        let out = out.get_mut(..len)?;
        put16(out, 0, self.src_port);
        put16(out, 2, self.dst_port);
        put32(out, 4, self.seq);
        put32(out, 8, self.ack);
        put8(out, 12, (len / 4 * 16) as u8);
        put8(out, 13, self.flags);
        put16(out, 14, self.window);
        put16(out, 16, self.checksum);
        put16(out, 18, self.urgent);
        put(out, HEADER_LEN, options);
        Some(len)
    }
}

/// One option of a header.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TcpOption<'a> {
    /// The largest segment that the sender of a SYN accepts, in payload bytes (RFC 9293).
    MaxSegmentSize(u16),
    /// Window scale of a SYN (RFC 7323).
    WindowScale(u8),
    /// Value and echo (RFC 7323).
    Timestamps(u32, u32),
    /// Any other: its kind and its value.
    Other(u8, &'a [u8]),
}

/// Walks the options; stops at the end-of-list option and at the first malformed one.
#[derive(Copy, Clone, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// Walks `bytes`, the options of a header ([`View::options`]).
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = TcpOption<'a>;

    fn next(&mut self) -> Option<TcpOption<'a>> {
        loop {
            match self.0 {
                [1, rest @ ..] => self.0 = rest,
                [kind, len, ..] if *kind > 1 && *len > 1 => {
                    let (option, rest) = self.0.split_at_checked(usize::from(*len))?;
                    self.0 = rest;
                    let value = option.get(2..)?;
                    return Some(match (*kind, value) {
                        (2, &[a, b]) => TcpOption::MaxSegmentSize(u16::from_be_bytes([a, b])),
                        (3, &[shift]) => TcpOption::WindowScale(shift),
                        (8, &[a, b, c, d, e, f, g, h]) => TcpOption::Timestamps(
                            u32::from_be_bytes([a, b, c, d]),
                            u32::from_be_bytes([e, f, g, h]),
                        ),
                        (kind, value) => TcpOption::Other(kind, value),
                    });
                }
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_a_linux_syn_are_read() {
        let bytes = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7];
        let options: Vec<_> = Options::new(&bytes).collect();
        assert_eq!(
            options,
            [
                TcpOption::MaxSegmentSize(1460),
                TcpOption::Other(4, &[]),
                TcpOption::Timestamps(1, 2),
                TcpOption::WindowScale(7),
            ]
        );
    }

    #[test]
    fn an_option_that_lies_about_its_length_ends_the_walk() {
        for bytes in [&[8u8, 0, 1][..], &[8, 1], &[8, 10, 1], &[8], &[0, 2, 4, 1, 1]] {
            assert_eq!(Options::new(bytes).next(), None, "{bytes:?}");
        }
    }
}
