//! The first bytes of each end, and the bytes that end `EXPORT_NAME`.

use super::ParseError;
use super::cursor::Cursor;
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};

const NBD_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");

/// The server's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Length in bytes.
    pub const LEN: usize = 18;

    /// Parses [`Greeting::LEN`] bytes.
    ///
    /// # Errors
    /// When they are something else: the other end is no NBD server, or one of the old style.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("server greeting", bytes);
        cursor.magic64(NBD_MAGIC)?;
        cursor.magic64(OPTION_MAGIC)?;
        let flags = HandshakeFlags(cursor.u16()?);
        cursor.end()?;
        Ok(Self { flags })
    }

    /// Appends the message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend(NBD_MAGIC.to_be_bytes());
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(self.flags.0.to_be_bytes());
    }
}

impl ClientFlags {
    /// Length in bytes of the client's first message, which is these flags.
    pub const LEN: usize = 4;

    /// Parses [`ClientFlags::LEN`] bytes.
    ///
    /// # Errors
    /// When a flag is unknown: the server must close the connection then.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("client flags", bytes);
        let flags = Self(cursor.u32()?);
        cursor.end()?;
        if !flags.without(Self::KNOWN).is_empty() {
            return Err(ParseError::Flags { what: "client flags", found: flags.0 });
        }
        Ok(flags)
    }

    /// Appends the message.
    pub fn emit(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

/// What the server answers to `EXPORT_NAME`, the one option without a reply header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    /// Size of the export in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    const ZEROES: usize = 124;

    /// Length in bytes, with or without the zeroes.
    pub const fn len(no_zeroes: bool) -> usize {
        if no_zeroes { 10 } else { 10 + Self::ZEROES }
    }

    /// Parses [`ExportNameReply::len`] bytes.
    ///
    /// # Errors
    /// When there are more or fewer of them.
    pub fn parse(bytes: &[u8], no_zeroes: bool) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("reply to EXPORT_NAME", bytes);
        let (size, flags) = (cursor.u64()?, TransmissionFlags(cursor.u16()?));
        if !no_zeroes {
            cursor.take(Self::ZEROES)?;
        }
        cursor.end()?;
        Ok(Self { size, flags })
    }

    /// Appends the message.
    pub fn emit(&self, no_zeroes: bool, out: &mut Vec<u8>) {
        out.extend(self.size.to_be_bytes());
        out.extend(self.flags.0.to_be_bytes());
        if !no_zeroes {
            out.resize(out.len() + Self::ZEROES, 0);
        }
    }
}
