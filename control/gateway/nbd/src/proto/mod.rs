//! The messages of the protocol: bytes in, values out, for both ends. No I/O, and no state beyond
//! one message.
//!
//! | module | what | who sends it |
//! |---|---|---|
//! | [`greeting`] | the first bytes of each end, and what ends `EXPORT_NAME` | both |
//! | [`option`] | options | client |
//! | [`option_reply`] | replies to options | server |
//! | [`request`] | requests, compact and extended | client |
//! | [`reply`] | simple replies; structured and extended chunks and their payloads | server |
//! | [`flags`] | sets of flags | |
//! | [`error`] | why bytes are no message | |
//!
//! Every header tells how many bytes follow it; the reader compares that with its limit before it
//! makes room. Every parser takes exactly one message and refuses what is left over.

pub mod error;
pub mod flags;
pub mod greeting;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;

mod cursor;

pub use error::ParseError;

/// How requests and replies are framed; negotiated by options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Style {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies (`NBD_OPT_STRUCTURED_REPLY`).
    Structured,
    /// Extended requests and replies, with lengths of 64 bits (`NBD_OPT_EXTENDED_HEADERS`).
    Extended,
}

/// Longest string of the protocol, in bytes: names, descriptions, context queries, messages.
pub const MAX_STRING_LEN: usize = 4096;
