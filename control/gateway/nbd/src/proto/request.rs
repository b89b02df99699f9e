//! Requests of the transmission phase.

use super::cursor::Cursor;
use super::flags::CommandFlags;
use super::{ParseError, Style};

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read a range.
    Read,
    /// Write a range; the payload follows.
    Write,
    /// End the connection; not answered.
    Disconnect,
    /// Make durable what was answered.
    Flush,
    /// Discard a range.
    Trim,
    /// Bring a range into the cache.
    Cache,
    /// Make a range read as zeroes.
    WriteZeroes,
    /// Describe a range.
    BlockStatus,
    /// A command that this crate does not know.
    Other(u16),
}

impl Command {
    /// Those that are answered.
    pub const ANSWERED: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::Cache,
        Self::WriteZeroes,
        Self::BlockStatus,
    ];

    /// The number on the wire.
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Other(number) => number,
        }
    }

    /// The command of a number from the wire.
    pub const fn from_wire(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Other(other),
        }
    }

    /// Name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "write_zeroes",
            Self::BlockStatus => "block_status",
            Self::Other(_) => "unknown",
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is to be done.
    pub command: Command,
    /// Chosen by the client; comes back in the reply.
    pub cookie: u64,
    /// Offset in the export, in bytes.
    pub offset: u64,
    /// Length in bytes, of the range or of the payload.
    pub length: u64,
}

impl Request {
    /// Length of the header in bytes.
    pub const fn len(style: Style) -> usize {
        match style {
            Style::Simple | Style::Structured => 28,
            Style::Extended => 32,
        }
    }

    /// Greatest length of the header in bytes.
    pub const MAX_LEN: usize = 32;

    /// Parses [`Request::len`] bytes.
    ///
    /// # Errors
    /// When the magic number is wrong: the stream has lost step.
    pub fn parse(style: Style, bytes: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("request", bytes);
        let extended = style == Style::Extended;
        cursor.magic32(if extended { EXTENDED_MAGIC } else { COMPACT_MAGIC })?;
        let request = Self {
            flags: CommandFlags(cursor.u16()?),
            command: Command::from_wire(cursor.u16()?),
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            length: if extended { cursor.u64()? } else { cursor.u32()?.into() },
        };
        cursor.end()?;
        Ok(request)
    }

    /// Appends the header; the payload of a write goes behind it.
    ///
    /// # Errors
    /// [`ParseError::TooLong`] for a length above 32 bits in a compact request; nothing is appended.
    pub fn emit(&self, style: Style, out: &mut Vec<u8>) -> Result<(), ParseError> {
        let compact_length = u32::try_from(self.length);
        let extended = style == Style::Extended;
        if !extended && compact_length.is_err() {
            let limit = u32::MAX.into();
            return Err(ParseError::TooLong { what: "request", found: self.length, limit });
        }
        out.extend((if extended { EXTENDED_MAGIC } else { COMPACT_MAGIC }).to_be_bytes());
        out.extend(self.flags.0.to_be_bytes());
        out.extend(self.command.to_wire().to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        match compact_length {
            Ok(length) if !extended => out.extend(length.to_be_bytes()),
            _ => out.extend(self.length.to_be_bytes()),
        }
        Ok(())
    }

    /// Bytes of payload that follow this header.
    ///
    /// A WRITE always has one. An extended one should say so by [`CommandFlags::PAYLOAD_LEN`];
    /// QEMU's client (as of 10.0) does not.
    pub fn payload_len(&self, style: Style) -> u64 {
        let is_said = style == Style::Extended && self.flags.has(CommandFlags::PAYLOAD_LEN);
        if is_said || self.command == Command::Write { self.length } else { 0 }
    }
}
