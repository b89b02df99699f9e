//! Options: what the client asks for in the handshake.

use super::cursor::Cursor;
use super::{MAX_STRING_LEN, ParseError};

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");

/// Use an export; the only option without a reply header.
pub const EXPORT_NAME: u32 = 1;
/// End the handshake.
pub const ABORT: u32 = 2;
/// List the exports.
pub const LIST: u32 = 3;
/// Upgrade to TLS.
pub const STARTTLS: u32 = 5;
/// Describe an export.
pub const INFO: u32 = 6;
/// Use an export.
pub const GO: u32 = 7;
/// Use structured replies.
pub const STRUCTURED_REPLY: u32 = 8;
/// List metadata contexts.
pub const LIST_META_CONTEXT: u32 = 9;
/// Choose metadata contexts.
pub const SET_META_CONTEXT: u32 = 10;
/// Use extended requests and replies.
pub const EXTENDED_HEADERS: u32 = 11;

/// Longest data of an option that is looked at, in bytes: a name and fifteen queries of full length.
pub const MAX_OPTION_LEN: u32 = 64 << 10;

/// What stands before each option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option's number.
    pub option: u32,
    /// Length of its data in bytes. Believe it only up to a limit of your own.
    pub length: u32,
}

impl OptionHeader {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Parses [`OptionHeader::LEN`] bytes.
    ///
    /// # Errors
    /// When the magic number is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("option", bytes);
        cursor.magic64(OPTION_MAGIC)?;
        let header = Self { option: cursor.u32()?, length: cursor.u32()? };
        cursor.end()?;
        Ok(header)
    }

    /// Appends the header.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(self.option.to_be_bytes());
        out.extend(self.length.to_be_bytes());
    }
}

/// An option with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionRequest {
    /// Use this export and end the handshake.
    ExportName(String),
    /// End the handshake and disconnect.
    Abort,
    /// List the exports.
    List,
    /// Upgrade to TLS.
    StartTls,
    /// Describe an export.
    Info(InfoRequest),
    /// Use an export and end the handshake.
    Go(InfoRequest),
    /// Use structured replies.
    StructuredReply,
    /// List the metadata contexts that match.
    ListMetaContext(ContextRequest),
    /// Choose the metadata contexts that match.
    SetMetaContext(ContextRequest),
    /// Use extended requests and replies.
    ExtendedHeaders,
    /// An option that this crate does not know.
    Other {
        /// Its number.
        option: u32,
        /// Its data.
        data: Vec<u8>,
    },
}

/// Which export, and what the client wants told beside its size and flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// Name of the export; empty for the default one.
    pub name: String,
    /// Kinds of [`Info`](super::option_reply::Info); unknown ones are ignored.
    pub wanted: Vec<u16>,
}

/// Which export, and which of its metadata contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// Name of the export.
    pub name: String,
    /// Names of contexts, or a namespace with its colon; none means all when listing.
    pub queries: Vec<String>,
}

impl OptionRequest {
    /// Parses the data behind an [`OptionHeader`].
    ///
    /// # Errors
    /// When the data do not fit the option. The stream is still in step: the option is answered
    /// with `NBD_REP_ERR_INVALID`, or `NBD_REP_ERR_TOO_BIG` for [`ParseError::TooLong`].
    pub fn parse(option: u32, data: &[u8]) -> Result<Self, ParseError> {
        let mut cursor = Cursor::new("option data", data);
        let request = match option {
            EXPORT_NAME => Self::ExportName(cursor.text_to_end("export name")?.to_owned()),
            ABORT => Self::Abort,
            LIST => Self::List,
            STARTTLS => Self::StartTls,
            INFO => Self::Info(InfoRequest::take(&mut cursor)?),
            GO => Self::Go(InfoRequest::take(&mut cursor)?),
            STRUCTURED_REPLY => Self::StructuredReply,
            LIST_META_CONTEXT => Self::ListMetaContext(ContextRequest::take(&mut cursor)?),
            SET_META_CONTEXT => Self::SetMetaContext(ContextRequest::take(&mut cursor)?),
            EXTENDED_HEADERS => Self::ExtendedHeaders,
            _ => return Ok(Self::Other { option, data: data.to_vec() }),
        };
        // What follows an ABORT is ignored: the client leaves in any case.
        if option != ABORT {
            cursor.end()?;
        }
        Ok(request)
    }

    /// The option's number.
    pub const fn number(&self) -> u32 {
        match self {
            Self::ExportName(_) => EXPORT_NAME,
            Self::Abort => ABORT,
            Self::List => LIST,
            Self::StartTls => STARTTLS,
            Self::Info(_) => INFO,
            Self::Go(_) => GO,
            Self::StructuredReply => STRUCTURED_REPLY,
            Self::ListMetaContext(_) => LIST_META_CONTEXT,
            Self::SetMetaContext(_) => SET_META_CONTEXT,
            Self::ExtendedHeaders => EXTENDED_HEADERS,
            Self::Other { option, .. } => *option,
        }
    }

    /// Appends header and data.
    ///
    /// # Errors
    /// [`ParseError::TooLong`] when a name or query exceeds 4096 bytes or the whole 4 GiB; nothing
    /// is appended then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), ParseError> {
        let mut data = Vec::new();
        match self {
            Self::ExportName(name) => data.extend(checked("export name", name)?.as_bytes()),
            Self::Info(info) | Self::Go(info) => info.emit(&mut data)?,
            Self::ListMetaContext(contexts) | Self::SetMetaContext(contexts) => {
                contexts.emit(&mut data)?;
            }
            Self::Other { data: other, .. } => data.extend(other),
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders => {}
        }
        let length = u32::try_from(data.len()).map_err(|_| ParseError::TooLong {
            what: "option data",
            found: data.len() as u64,
            limit: u32::MAX.into(),
        })?;
        OptionHeader { option: self.number(), length }.emit(out);
        out.extend(data);
        Ok(())
    }
}

impl InfoRequest {
    fn take(cursor: &mut Cursor<'_>) -> Result<Self, ParseError> {
        let name = cursor.text32("export name")?.to_owned();
        let count = cursor.u16()?;
        let wanted = (0..count).map(|_| cursor.u16()).collect::<Result<_, _>>()?;
        Ok(Self { name, wanted })
    }

    fn emit(&self, data: &mut Vec<u8>) -> Result<(), ParseError> {
        put32(data, checked("export name", &self.name)?);
        let count = u16::try_from(self.wanted.len()).map_err(|_| ParseError::TooLong {
            what: "information requests",
            found: self.wanted.len() as u64,
            limit: u16::MAX.into(),
        })?;
        data.extend(count.to_be_bytes());
        data.extend(self.wanted.iter().flat_map(|kind| kind.to_be_bytes()));
        Ok(())
    }
}

impl ContextRequest {
    fn take(cursor: &mut Cursor<'_>) -> Result<Self, ParseError> {
        let name = cursor.text32("export name")?.to_owned();
        let count = cursor.u32()?;
        // Each query takes four bytes at least; a count that lies makes no room.
        if count as usize > cursor.left() / 4 {
            let (need, have) = ((count as usize).saturating_mul(4), cursor.left());
            return Err(ParseError::Truncated { what: "context queries", need, have });
        }
        let queries = (0..count)
            .map(|_| cursor.text32("context query").map(str::to_owned))
            .collect::<Result<_, _>>()?;
        Ok(Self { name, queries })
    }

    fn emit(&self, data: &mut Vec<u8>) -> Result<(), ParseError> {
        put32(data, checked("export name", &self.name)?);
        let count = u32::try_from(self.queries.len()).map_err(|_| ParseError::TooLong {
            what: "context queries",
            found: self.queries.len() as u64,
            limit: u32::MAX.into(),
        })?;
        data.extend(count.to_be_bytes());
        for query in &self.queries {
            put32(data, checked("context query", query)?);
        }
        Ok(())
    }
}

/// Appends a checked string behind its length.
fn put32(data: &mut Vec<u8>, text: &str) {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    data.extend(len.to_be_bytes());
    data.extend(text.as_bytes());
}

fn checked<'a>(what: &'static str, text: &'a str) -> Result<&'a str, ParseError> {
    if text.len() > MAX_STRING_LEN {
        let (found, limit) = (text.len() as u64, MAX_STRING_LEN as u64);
        return Err(ParseError::TooLong { what, found, limit });
    }
    if text.contains('\0') {
        return Err(ParseError::Text { what });
    }
    Ok(text)
}
