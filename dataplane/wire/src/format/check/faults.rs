//! What can be wrong with a descriptor.

use super::super::{DecapError, Fact};
use super::{MAX_HEADER_LEN, MAX_NAME_LEN};

/// Why a descriptor is not legal. Places are named as in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatFault {
    /// Choose a name of these letters.
    #[error("name: {0:?} is no name; legal are 1 to {MAX_NAME_LEN} of a-z, 0-9 and -")]
    BadName(String),
    /// A built-in format has the name. Choose another.
    #[error("name: {0:?} is a built-in format")]
    ReservedName(String),
    /// Nothing can be sent to port 0. Choose another.
    #[error("outer: port 0; legal is 1 to 65535")]
    PortZero,
    /// The protocol has a meaning to every host. Choose one of those for experiments.
    #[error(
        "outer: protocol {0} belongs to the hosts themselves; 253 and 254 are for experiments \
         (RFC 3692)"
    )]
    HostProtocol(u8),
    /// Give the header at least the bytes of the VNI and the identifier.
    #[error("header: empty")]
    EmptyHeader,
    /// Longer than what is put in front of a frame. Leave out what is not needed.
    #[error("header: {len} bytes; at most {MAX_HEADER_LEN}")]
    HeaderTooLong {
        /// Its bytes.
        len: usize,
    },
    /// Without one, nothing tells the format's packets from others. Name bits that are the same in
    /// all of them.
    #[error(
        "identifier: none; at least one bit of each packet has to tell that it is of this format"
    )]
    NoIdentifier,
    /// More of them than are looked at. Leave some out.
    #[error("{what}: {count} of them; at most {max}")]
    TooMany {
        /// The list.
        what: &'static str,
        /// Its length.
        count: usize,
        /// The most.
        max: usize,
    },
    /// Correct the width.
    #[error("{what}: a width of {width}; legal is {legal}")]
    BadWidth {
        /// The part.
        what: String,
        /// Its width.
        width: u32,
        /// What it may be.
        legal: &'static str,
    },
    /// The part would be read from the inner frame. Move it, or make the header longer.
    #[error("{what}: {bits} ends at byte {end}, past the {of} of {len} bytes")]
    PastHeader {
        /// The part.
        what: String,
        /// Where it is.
        bits: String,
        /// The byte where it ends.
        end: usize,
        /// What it has to be in.
        of: &'static str,
        /// The bytes of that.
        len: usize,
    },
    /// Two parts use the same bits. Move one of them.
    #[error("{one} and {other} overlap in bit {bit} of byte {byte}")]
    Overlap {
        /// One part.
        one: String,
        /// The other.
        other: String,
        /// The first byte that both have.
        byte: u32,
        /// The first bit in it.
        bit: u32,
    },
    /// The value does not fit its bits. Make them wider, or the value smaller.
    #[error("{what}: {value:#x} does not fit {bits}")]
    ValueTooWide {
        /// The part.
        what: String,
        /// The value.
        value: u32,
        /// The bits.
        bits: String,
    },
    /// What is sent would not be recognised. Make both the same.
    #[error("{what}: has to be {value:#x}, but `header` has {found:#x} there")]
    HeaderContradicts {
        /// The part.
        what: String,
        /// The value wanted.
        value: u32,
        /// The value in the header as sent.
        found: u32,
    },
    /// Bits that are filled for each frame have to be zero in the header as sent.
    #[error(
        "{what}: `header` has {found:#x} there; has to be 0, since it is filled for each frame"
    )]
    NotZero {
        /// The part.
        what: String,
        /// The value in the header as sent.
        found: u32,
    },
    /// The header as sent says that the inner frame starts elsewhere than behind it.
    #[error("inner: `header` has {len} bytes, but the inner frame would start after {start}")]
    WrongInnerOffset {
        /// Bytes of the header.
        len: usize,
        /// Where the inner frame would start.
        start: usize,
    },
    /// No length of options can be told so.
    #[error("{0}: a scale of 0")]
    ZeroScale(&'static str),
    /// Give options a place: `inner` has to be told by a length.
    #[error("options: there is no room for any, since `inner` is fixed")]
    OptionsWithoutLength,
    /// The receiver is told where the inner frame starts by a number that cannot state it. Choose another scale, or more
    /// bits for the length.
    #[error(
        "options: {room} bytes of them, the one for the MSS included, cannot be stated by `inner`: units of {scale}, at most {max}"
    )]
    NoRoomForMss {
        /// Bytes of options.
        room: usize,
        /// Bytes for each unit.
        scale: u32,
        /// The most units.
        max: u32,
    },
    /// The receiver would refuse what is sent. Correct what the header has behind its fixed part.
    #[error("options: what is sent from byte {base} on cannot be read: {error}")]
    BadOptions {
        /// Where options begin.
        base: usize,
        /// What the receiver would say.
        error: DecapError,
    },
    /// An option is looked up by its id. Give one of the two another.
    #[error("options: known[{one}] and known[{other}] have the same id {id:#x}")]
    SameOption {
        /// One known option.
        one: usize,
        /// The other.
        other: usize,
        /// Their id.
        id: u32,
    },
    /// Bytes behind the fixed part are options, which a receiver walks and other senders may leave out. Move the part
    /// before them.
    #[error("{what}: {bits} ends at byte {end}, in the options, which begin at byte {base}")]
    InOptions {
        /// The part.
        what: String,
        /// Where it is.
        bits: String,
        /// The byte where it ends.
        end: usize,
        /// Where options begin.
        base: usize,
    },
    /// What a known option states is of a frame, and the header as sent is of all. Leave it out of the header.
    #[error(
        "options: `header` has an option from byte {base} on that is options.known[{known}]; what it states would be \
         taken for a property of each frame"
    )]
    KnownBrought {
        /// Where options begin.
        base: usize,
        /// The number of the known option.
        known: usize,
    },
    /// The sum is over words of two bytes from the header's start. Move the field by a byte.
    #[error("field[{field}]: a checksum at byte {offset}; legal are even bytes")]
    OddChecksum {
        /// The number of the field.
        field: usize,
        /// Where it is.
        offset: u8,
    },
    /// TCP-shaped packets are cut by devices that repeat nothing behind the TCP header.
    #[error(
        "travel: \"every\" is not possible in TCP-shaped packets, of which devices cut the payload; use \"first\""
    )]
    EveryOverTcp,
    /// Only a TCP header has the fields that a stream needs and that devices advance.
    #[error("travel: \"first\" needs TCP-shaped packets: `outer = {{ tcp = PORT }}`")]
    FirstWithoutTcp,
    /// Devices advance the 32 bits at byte 4 of a TCP header by the bytes that they cut, so the offset
    /// has to be their low end. Length, offset and frame number have to be in sequence and
    /// acknowledgement number.
    #[error("travel: {what} at {bits}; {legal}")]
    BadStream {
        /// The part.
        what: &'static str,
        /// Where it is.
        bits: String,
        /// Where it may be.
        legal: &'static str,
    },
    /// A format with ports has its flow identifier in the source port, one without has it elsewhere.
    #[error("flow: {0}")]
    BadFlow(&'static str),
    /// The rule cannot be followed in a tunnel header.
    #[error("field at byte {offset}: {rule} is not possible in a tunnel header")]
    BadRule {
        /// The field.
        offset: u8,
        /// The rule.
        rule: &'static str,
    },
    /// A fact may be stated once, in the header or in one option.
    #[error("fact: {0:?} twice")]
    TwiceStated(Fact),
    /// The tag needs all three, the presence first.
    #[error("fact: vlan-present, vlan-id and vlan-priority belong together, in this order")]
    HalfATag,
    /// A receiver could not tell them apart. Give one of them another port, protocol or identifier.
    #[error(
        "identifier: a packet can be of {one:?} and of {other:?}: {outer}, and no bits that both look \
         at have to differ"
    )]
    Ambiguous {
        /// One format.
        one: String,
        /// The other.
        other: String,
        /// What carries both.
        outer: String,
    },
}
