//! Replies to options.

use super::ParseError;
use super::cursor::{Cursor, fit};
use super::flags::TransmissionFlags;
use crate::export::BlockSizes;

const MAGIC: u64 = 0x0003_e889_0455_65a9;
const ERROR_BIT: u32 = 1 << 31;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;

/// [`Info::Export`], always sent.
pub const INFO_EXPORT: u16 = 0;
/// [`Info::Name`].
pub const INFO_NAME: u16 = 1;
/// [`Info::Description`].
pub const INFO_DESCRIPTION: u16 = 2;
/// [`Info::BlockSizes`]; a client that asks for it promises to obey.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Longest data of a reply that a client needs to accept, in bytes: name, description, two lengths.
pub const MAX_REPLY_LEN: u32 = 16 << 10;

/// What stands before each reply's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// Kind of reply.
    pub kind: u32,
    /// Length of its data in bytes. Believe it only up to a limit of your own.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Length in bytes.
    pub const LEN: usize = 20;

    /// Parses [`OptionReplyHeader::LEN`] bytes.
    ///
    /// # Errors
    /// When the magic number is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("option reply", bytes);
        cursor.magic64(MAGIC)?;
        let header = Self { option: cursor.u32()?, kind: cursor.u32()?, length: cursor.u32()? };
        cursor.end()?;
        Ok(header)
    }

    /// Appends the header.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC.to_be_bytes());
        out.extend(self.option.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(self.length.to_be_bytes());
    }
}

/// A reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply {
    /// Done; the last reply.
    Ack,
    /// An export.
    Server {
        /// Its name.
        name: String,
        /// Its description; may be empty.
        description: String,
    },
    /// Something about an export.
    Info(Info),
    /// A metadata context.
    MetaContext {
        /// Names it in replies to BLOCK_STATUS; zero when only listed.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Refused; the last reply.
    Error {
        /// Why.
        error: OptionError,
        /// The same for people; may be empty.
        message: String,
    },
    /// A kind that this crate does not know.
    Other {
        /// Its number.
        kind: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

/// Something about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes, and abilities.
    Export {
        /// Size in bytes.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// Its proper name.
    Name(String),
    /// Its description.
    Description(String),
    /// Sizes that requests must have. Not checked: see [`BlockSizes::is_legal`].
    BlockSizes(BlockSizes),
    /// A kind that this crate does not know, to be ignored.
    Other {
        /// Its number.
        kind: u16,
        /// Its data.
        data: Vec<u8>,
    },
}

/// Why an option was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OptionError {
    /// The server does not know the option.
    Unsupported,
    /// The server's policy forbids it.
    Policy,
    /// The option is malformed, or comes at the wrong time.
    Invalid,
    /// The platform does not support it.
    Platform,
    /// TLS must come first.
    TlsRequired,
    /// There is no such export.
    Unknown,
    /// The server is shutting down.
    Shutdown,
    /// The client must ask for the block sizes first.
    BlockSizeRequired,
    /// The option, or the answer, is too long.
    TooBig,
    /// Extended headers must come first, or have come already.
    ExtendedHeadersRequired,
    /// An error that this crate does not know: its number without the highest bit.
    Other(u32),
}

impl OptionError {
    const fn number(self) -> u32 {
        match self {
            Self::Unsupported => 1,
            Self::Policy => 2,
            Self::Invalid => 3,
            Self::Platform => 4,
            Self::TlsRequired => 5,
            Self::Unknown => 6,
            Self::Shutdown => 7,
            Self::BlockSizeRequired => 8,
            Self::TooBig => 9,
            Self::ExtendedHeadersRequired => 10,
            Self::Other(number) => number & !ERROR_BIT,
        }
    }

    const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Unsupported,
            2 => Self::Policy,
            3 => Self::Invalid,
            4 => Self::Platform,
            5 => Self::TlsRequired,
            6 => Self::Unknown,
            7 => Self::Shutdown,
            8 => Self::BlockSizeRequired,
            9 => Self::TooBig,
            10 => Self::ExtendedHeadersRequired,
            other => Self::Other(other),
        }
    }
}

impl OptionReply {
    /// An error with a sentence for people.
    pub fn error(error: OptionError, message: impl Into<String>) -> Self {
        Self::Error { error, message: message.into() }
    }

    /// Whether no further reply to the same option follows.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Ack | Self::Error { .. })
    }

    /// Parses the data behind an [`OptionReplyHeader`].
    ///
    /// # Errors
    /// When the data do not fit the kind.
    pub fn parse(kind: u32, data: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("option reply data", data);
        let reply = match kind {
            ACK => Self::Ack,
            SERVER => Self::Server {
                name: cursor.text32("export name")?.to_owned(),
                description: cursor.text_to_end("export description")?.to_owned(),
            },
            INFO => return Info::parse(data).map(Self::Info),
            META_CONTEXT => Self::MetaContext {
                id: cursor.u32()?,
                name: cursor.text_to_end("context name")?.to_owned(),
            },
            error if error & ERROR_BIT != 0 => Self::Error {
                error: OptionError::from_number(error & !ERROR_BIT),
                message: cursor.text_to_end("error message")?.to_owned(),
            },
            kind => return Ok(Self::Other { kind, data: data.to_vec() }),
        };
        cursor.end()?;
        Ok(reply)
    }

    /// Appends header and data of a reply to `option`. Strings are cut at 4096 bytes.
    pub fn emit(&self, option: u32, out: &mut Vec<u8>) {
        let start = out.len();
        OptionReplyHeader { option, kind: self.kind(), length: 0 }.emit(out);
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                let name = fit(name);
                out.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
                out.extend(name.as_bytes());
                out.extend(fit(description).as_bytes());
            }
            Self::Info(info) => info.emit(out),
            Self::MetaContext { id, name } => {
                out.extend(id.to_be_bytes());
                out.extend(fit(name).as_bytes());
            }
            Self::Error { message, .. } => out.extend(fit(message).as_bytes()),
            Self::Other { data, .. } => out.extend(data),
        }
        let data_start = start + OptionReplyHeader::LEN;
        let length = u32::try_from(out.len() - data_start).unwrap_or(u32::MAX);
        out[data_start - 4..data_start].copy_from_slice(&length.to_be_bytes());
    }

    const fn kind(&self) -> u32 {
        match self {
            Self::Ack => ACK,
            Self::Server { .. } => SERVER,
            Self::Info(_) => INFO,
            Self::MetaContext { .. } => META_CONTEXT,
            Self::Error { error, .. } => ERROR_BIT | error.number(),
            Self::Other { kind, .. } => *kind,
        }
    }
}

impl Info {
    fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("export information", data);
        let info = match cursor.u16()? {
            INFO_EXPORT => {
                Self::Export { size: cursor.u64()?, flags: TransmissionFlags(cursor.u16()?) }
            }
            INFO_NAME => Self::Name(cursor.text_to_end("export name")?.to_owned()),
            INFO_DESCRIPTION => {
                Self::Description(cursor.text_to_end("export description")?.to_owned())
            }
            INFO_BLOCK_SIZE => Self::BlockSizes(BlockSizes {
                minimum: cursor.u32()?,
                preferred: cursor.u32()?,
                maximum: cursor.u32()?,
            }),
            kind => Self::Other { kind, data: cursor.take(cursor.left())?.to_vec() },
        };
        cursor.end()?;
        Ok(info)
    }

    fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Export { size, flags } => {
                out.extend(INFO_EXPORT.to_be_bytes());
                out.extend(size.to_be_bytes());
                out.extend(flags.0.to_be_bytes());
            }
            Self::Name(name) => {
                out.extend(INFO_NAME.to_be_bytes());
                out.extend(fit(name).as_bytes());
            }
            Self::Description(description) => {
                out.extend(INFO_DESCRIPTION.to_be_bytes());
                out.extend(fit(description).as_bytes());
            }
            Self::BlockSizes(sizes) => {
                out.extend(INFO_BLOCK_SIZE.to_be_bytes());
                out.extend(sizes.minimum.to_be_bytes());
                out.extend(sizes.preferred.to_be_bytes());
                out.extend(sizes.maximum.to_be_bytes());
            }
            Self::Other { kind, data } => {
                out.extend(kind.to_be_bytes());
                out.extend(data);
            }
        }
    }
}
