//! Replies of the transmission phase: simple ones, and chunks with their payloads.

use super::cursor::{Cursor, fit};
use super::flags::ReplyFlags;
use super::{ParseError, Style};
use crate::export::MAX_PAYLOAD;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

const ERROR_BIT: u16 = 1 << 15;

/// Most extents in one chunk that either end deals with.
pub const MAX_EXTENTS: usize = 8192;

/// Longest payload of a chunk that a client needs to accept: the data, behind their offset.
pub const MAX_CHUNK_LEN: u64 = MAX_PAYLOAD as u64 + 8;

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChunkKind {
    /// Nothing.
    None,
    /// Bytes of a read.
    Data,
    /// A range of a read that is all zeroes.
    Hole,
    /// Extents with lengths of 32 bits.
    Status,
    /// Extents with lengths of 64 bits.
    StatusExtended,
    /// An error.
    Error,
    /// An error at an offset.
    ErrorOffset,
    /// A kind that this crate does not know. With the highest bit set it is an error too.
    Other(u16),
}

impl ChunkKind {
    /// The number on the wire.
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Data => 1,
            Self::Hole => 2,
            Self::Status => 5,
            Self::StatusExtended => 6,
            Self::Error => ERROR_BIT | 1,
            Self::ErrorOffset => ERROR_BIT | 2,
            Self::Other(number) => number,
        }
    }

    /// The kind of a number from the wire.
    pub const fn from_wire(number: u16) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Data,
            2 => Self::Hole,
            5 => Self::Status,
            6 => Self::StatusExtended,
            0x8001 => Self::Error,
            0x8002 => Self::ErrorOffset,
            other => Self::Other(other),
        }
    }

    /// Whether it says that the request failed.
    pub const fn is_error(self) -> bool {
        self.to_wire() & ERROR_BIT != 0
    }
}

/// What stands before a reply's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A whole reply; after a successful READ its data follow.
    Simple {
        /// [`Errno`](crate::Errno) as a number; zero for success.
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// A part of a reply.
    Chunk(ChunkHeader),
}

/// What stands before a chunk's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Where it stands in its reply.
    pub flags: ReplyFlags,
    /// What it holds.
    pub kind: ChunkKind,
    /// The request's.
    pub cookie: u64,
    /// The request's offset, which only extended chunks carry.
    pub offset: Option<u64>,
    /// Length of the payload in bytes. Believe it only up to a limit of your own.
    pub length: u64,
}

impl ReplyHeader {
    /// Greatest length in bytes.
    pub const MAX_LEN: usize = 32;

    /// Bytes in the magic number that tells the length of the header.
    pub const MAGIC_LEN: usize = 4;

    /// Length of the header, in bytes, that begins with this magic number.
    ///
    /// # Errors
    /// When it is no magic number of a reply in this style.
    pub fn len(style: Style, magic: [u8; Self::MAGIC_LEN]) -> Result<usize, ParseError> {
        match (u32::from_be_bytes(magic), style) {
            (SIMPLE_MAGIC, Style::Simple | Style::Structured) => Ok(16),
            (STRUCTURED_MAGIC, Style::Structured) => Ok(20),
            (EXTENDED_MAGIC, Style::Extended) => Ok(32),
            (found, _) => Err(ParseError::Magic { what: "reply", found: found.into() }),
        }
    }

    /// Parses [`ReplyHeader::len`] bytes.
    ///
    /// # Errors
    /// When the magic number does not fit the style: the stream has lost step.
    pub fn parse(style: Style, bytes: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("reply", bytes);
        let magic = cursor.u32()?;
        Self::len(style, magic.to_be_bytes())?;
        let header = if magic == SIMPLE_MAGIC {
            Self::Simple { error: cursor.u32()?, cookie: cursor.u64()? }
        } else {
            let flags = ReplyFlags(cursor.u16()?);
            let kind = ChunkKind::from_wire(cursor.u16()?);
            let cookie = cursor.u64()?;
            let (offset, length) = if magic == EXTENDED_MAGIC {
                (Some(cursor.u64()?), cursor.u64()?)
            } else {
                (None, cursor.u32()?.into())
            };
            Self::Chunk(ChunkHeader { flags, kind, cookie, offset, length })
        };
        cursor.end()?;
        Ok(header)
    }

    /// Appends the header. A chunk with an offset is an extended one, any other a structured one.
    ///
    /// # Errors
    /// [`ParseError::TooLong`] for a length above 32 bits in a structured chunk.
    pub fn emit(&self, out: &mut impl Extend<u8>) -> Result<(), ParseError> {
        match self {
            Self::Simple { error, cookie } => {
                out.extend(SIMPLE_MAGIC.to_be_bytes());
                out.extend(error.to_be_bytes());
                out.extend(cookie.to_be_bytes());
                Ok(())
            }
            Self::Chunk(chunk) => chunk.emit(out),
        }
    }
}

impl ChunkHeader {
    fn emit(&self, out: &mut impl Extend<u8>) -> Result<(), ParseError> {
        let compact = u32::try_from(self.length).map_err(|_| ParseError::TooLong {
            what: "chunk",
            found: self.length,
            limit: u32::MAX.into(),
        });
        let magic = if self.offset.is_some() { EXTENDED_MAGIC } else { STRUCTURED_MAGIC };
        let compact = if self.offset.is_some() { 0 } else { compact? };
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.0.to_be_bytes());
        out.extend(self.kind.to_wire().to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        match self.offset {
            Some(offset) => {
                out.extend(offset.to_be_bytes());
                out.extend(self.length.to_be_bytes());
            }
            None => out.extend(compact.to_be_bytes()),
        }
        Ok(())
    }
}

/// A run of bytes of one state, as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes.
    pub length: u64,
    /// Flags, whose meaning the context tells.
    pub flags: u64,
}

/// A chunk's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Nothing.
    None,
    /// Bytes of a read.
    Data {
        /// Where they are in the export.
        offset: u64,
        /// At least one.
        data: &'a [u8],
    },
    /// A range of a read that is all zeroes.
    Hole {
        /// Where it is in the export.
        offset: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Extents from the request's offset on.
    Status {
        /// Identifier of the context, from its negotiation.
        context: u32,
        /// At least one, in order.
        extents: Vec<StatusExtent>,
    },
    /// An error.
    Error {
        /// [`Errno`](crate::Errno) as a number; not zero.
        error: u32,
        /// For people; may be empty.
        message: &'a str,
        /// Where in the export it happened, where that was said.
        offset: Option<u64>,
    },
}

impl<'a> Chunk<'a> {
    /// Parses the payload behind a [`ChunkHeader`].
    ///
    /// # Errors
    /// When it does not fit the kind, or the kind is unknown and no error.
    pub fn parse(kind: ChunkKind, payload: &'a [u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("chunk payload", payload);
        let chunk = match kind {
            ChunkKind::None => Self::None,
            ChunkKind::Data => {
                let offset = cursor.u64()?;
                let data = cursor.take(cursor.left().max(1))?;
                Self::Data { offset, data }
            }
            ChunkKind::Hole => Self::Hole { offset: cursor.u64()?, length: cursor.u32()? },
            ChunkKind::Status => {
                let context = cursor.u32()?;
                let count = cursor.left().div_ceil(8);
                Self::Status { context, extents: extents(&mut cursor, count, false)? }
            }
            ChunkKind::StatusExtended => {
                let context = cursor.u32()?;
                let count = cursor.u32()? as usize;
                Self::Status { context, extents: extents(&mut cursor, count, true)? }
            }
            ChunkKind::Error | ChunkKind::ErrorOffset => {
                let error = cursor.u32()?;
                if error == 0 {
                    return Err(ParseError::Value { what: "error of an error chunk", found: 0 });
                }
                let len = cursor.u16()?;
                let message = cursor.text("error message", len.into())?;
                let offset =
                    if kind == ChunkKind::ErrorOffset { Some(cursor.u64()?) } else { None };
                Self::Error { error, message, offset }
            }
            ChunkKind::Other(number) if kind.is_error() => {
                // Unknown errors begin like known ones.
                let _ = number;
                let error = cursor.u32()?.max(1);
                let len = cursor.u16()?;
                let message = cursor.text("error message", len.into())?;
                return Ok(Self::Error { error, message, offset: None });
            }
            ChunkKind::Other(number) => {
                return Err(ParseError::Value { what: "chunk type", found: number.into() });
            }
        };
        cursor.end()?;
        Ok(chunk)
    }

    /// The kind under which it travels in this style.
    pub const fn kind(&self, style: Style) -> ChunkKind {
        match (self, style) {
            (Self::None, _) => ChunkKind::None,
            (Self::Data { .. }, _) => ChunkKind::Data,
            (Self::Hole { .. }, _) => ChunkKind::Hole,
            (Self::Status { .. }, Style::Extended) => ChunkKind::StatusExtended,
            (Self::Status { .. }, _) => ChunkKind::Status,
            (Self::Error { offset: None, .. }, _) => ChunkKind::Error,
            (Self::Error { offset: Some(_), .. }, _) => ChunkKind::ErrorOffset,
        }
    }

    /// Appends the payload. Messages are cut at 4096 bytes; in a style of 32 bits, extents end
    /// before the first one that does not fit.
    pub fn emit(&self, style: Style, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Data { offset, data } => {
                out.extend(offset.to_be_bytes());
                out.extend(*data);
            }
            Self::Hole { offset, length } => {
                out.extend(offset.to_be_bytes());
                out.extend(length.to_be_bytes());
            }
            Self::Status { context, extents } if style == Style::Extended => {
                out.extend(context.to_be_bytes());
                let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                out.extend(count.to_be_bytes());
                for extent in extents {
                    out.extend(extent.length.to_be_bytes());
                    out.extend(extent.flags.to_be_bytes());
                }
            }
            Self::Status { context, extents } => {
                out.extend(context.to_be_bytes());
                for extent in extents {
                    let pair = (u32::try_from(extent.length), u32::try_from(extent.flags));
                    let (Ok(length), Ok(flags)) = pair else { break };
                    out.extend(length.to_be_bytes());
                    out.extend(flags.to_be_bytes());
                }
            }
            Self::Error { error, message, offset } => {
                let message = fit(message);
                out.extend(error.to_be_bytes());
                out.extend(u16::try_from(message.len()).unwrap_or(0).to_be_bytes());
                out.extend(message.as_bytes());
                out.extend(offset.iter().flat_map(|offset| offset.to_be_bytes()));
            }
        }
    }
}

/// Takes `count` extents, of 64 bits if they are `wide`.
fn extents(
    cursor: &mut Cursor<'_>,
    count: usize,
    wide: bool,
) -> Result<Vec<StatusExtent>, ParseError> {
    let what = "extents of a block status";
    if count == 0 {
        return Err(ParseError::Value { what, found: 0 });
    }
    let each = if wide { 16 } else { 8 };
    // A count that lies makes no room.
    if count > cursor.left().div_ceil(each) {
        let (need, have) = (count.saturating_mul(each), cursor.left());
        return Err(ParseError::Truncated { what, need, have });
    }
    let mut number = || if wide { cursor.u64() } else { cursor.u32().map(u64::from) };
    (0..count).map(|_| Ok(StatusExtent { length: number()?, flags: number()? })).collect()
}
