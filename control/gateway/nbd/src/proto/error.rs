//! Why bytes are no message.

/// Why bytes from the other end are no message of the protocol.
///
/// The other end is broken, hostile, or no NBD peer at all: check what connects there. Unless said
/// otherwise the stream cannot be resynchronised and the connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The message ends before its last field. A length in it lies.
    #[error("{what}: {have} bytes where {need} are needed")]
    Truncated {
        /// The message or field.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Bytes are left over behind the last field. A length in it lies.
    #[error("{what}: {count} bytes too many")]
    Trailing {
        /// The message.
        what: &'static str,
        /// Bytes left over.
        count: usize,
    },
    /// The magic number is wrong: the peer does not speak NBD, or the stream has lost step.
    #[error("{what}: magic number {found:#x}")]
    Magic {
        /// The message.
        what: &'static str,
        /// What is there instead.
        found: u64,
    },
    /// A length exceeds its limit. The peer wants more than the protocol or this end allows.
    #[error("{what}: length {found} exceeds {limit}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// The length.
        found: u64,
        /// The greatest legal one.
        limit: u64,
    },
    /// A string is not UTF-8, or has a NUL in it. Rename what the peer asks for.
    #[error("{what}: not a string of UTF-8 without NUL")]
    Text {
        /// The field.
        what: &'static str,
    },
    /// A field has a value that it must not have.
    #[error("{what}: illegal value {found}")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// The peer set flags that this end does not know, and it may not ignore them.
    #[error("{what}: unknown flags {found:#x}")]
    Flags {
        /// The set of flags.
        what: &'static str,
        /// All that were set.
        found: u32,
    },
}
