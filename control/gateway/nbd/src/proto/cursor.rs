//! Takes fields off the front of a message.

use super::{MAX_STRING_LEN, ParseError};

pub(crate) struct Cursor<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, need: usize) -> Result<&'a [u8], ParseError> {
        let (what, have) = (self.what, self.rest.len());
        let (head, rest) =
            self.rest.split_at_checked(need).ok_or(ParseError::Truncated { what, need, have })?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (what, have) = (self.what, self.rest.len());
        let (head, rest) =
            self.rest.split_first_chunk().ok_or(ParseError::Truncated { what, need: N, have })?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn magic32(&mut self, legal: u32) -> Result<(), ParseError> {
        let found = self.u32()?;
        if found == legal {
            return Ok(());
        }
        Err(ParseError::Magic { what: self.what, found: found.into() })
    }

    pub(crate) fn magic64(&mut self, legal: u64) -> Result<(), ParseError> {
        let found = self.u64()?;
        if found == legal { Ok(()) } else { Err(ParseError::Magic { what: self.what, found }) }
    }

    /// A string of `len` bytes.
    pub(crate) fn text(&mut self, what: &'static str, len: usize) -> Result<&'a str, ParseError> {
        if len > MAX_STRING_LEN {
            let limit = MAX_STRING_LEN as u64;
            return Err(ParseError::TooLong { what, found: len as u64, limit });
        }
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !bytes.contains(&0) => Ok(text),
            _ => Err(ParseError::Text { what }),
        }
    }

    /// A string behind its length of 32 bits.
    pub(crate) fn text32(&mut self, what: &'static str) -> Result<&'a str, ParseError> {
        let len = self.u32()?;
        self.text(what, len as usize)
    }

    /// The string that fills the rest.
    pub(crate) fn text_to_end(&mut self, what: &'static str) -> Result<&'a str, ParseError> {
        self.text(what, self.rest.len())
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<(), ParseError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(ParseError::Trailing { what: self.what, count: self.rest.len() })
    }
}

/// The longest start of `text` that fits a string of the protocol, cut between characters.
pub(crate) fn fit(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
