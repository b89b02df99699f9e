//! Why a handshake cannot go on.

use crate::proto::ParseError;
use crate::proto::option_reply::OptionError;

/// Why a handshake cannot go on: the connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The other end sent something that is no message of the protocol. Check what connects there.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The client speaks only the unfixed newstyle and sends an option that this does not have.
    /// Use a client from this decade.
    #[error("option {option} from a client that does not speak fixed newstyle")]
    NotFixedNewstyle {
        /// The option's number.
        option: u32,
    },
    /// The server speaks only the unfixed newstyle. Use a server from this decade.
    #[error("the server does not speak fixed newstyle")]
    OldServer,
    /// The client goes on and on without using an export. Raise the limit if it means well.
    #[error("more than {limit} options")]
    TooManyOptions {
        /// The limit.
        limit: u32,
    },
    /// An option is so long that skipping it makes no sense. The client is broken or hostile.
    #[error("option {option} with {length} bytes of data, more than {limit}")]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// Length of its data in bytes.
        length: u32,
        /// The greatest length that is skipped.
        limit: u32,
    },
    /// `EXPORT_NAME` cannot be granted, and the protocol has no other answer than to hang up. The
    /// client's user does not see the reason: it is here.
    #[error("EXPORT_NAME refused: {reason}")]
    ExportNameRefused {
        /// Why.
        reason: String,
    },
    /// The server replies to something that was not asked.
    #[error("a reply to option {found} where one to {expected} is due")]
    WrongReply {
        /// The option that was sent.
        expected: u32,
        /// The option in the reply.
        found: u32,
    },
    /// The server refused. Its own words say what to do.
    #[error("the server refused ({error:?}): {message}")]
    Refused {
        /// The kind of refusal.
        error: OptionError,
        /// The server's words; may be empty.
        message: String,
    },
    /// The server granted an export and did not say how large it is, or said nonsense.
    #[error("the server did not describe the export: {what}")]
    Undescribed {
        /// What is missing or wrong.
        what: &'static str,
    },
}
