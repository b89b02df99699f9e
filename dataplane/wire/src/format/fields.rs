//! Fields that change from one segment of a frame to the next.

use crate::eth::ether_type;
use crate::tcp;

/// What a field does from one segment of a frame to the next.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Bytes from the start of the field's header to the end of the segment, minus this many.
    Length(u8),
    /// Goes up by one with each segment (the IPv4 identification).
    Increment,
    /// Goes up by the payload bytes before the segment (a sequence number).
    Advance,
    /// Of these bits, set ones stay on the first segment only.
    First(u8),
    /// Of these bits, set ones stay on the last segment only.
    Last(u8),
    /// Ones-complement checksum over the field's own header.
    HeaderChecksum,
    /// Ones-complement checksum over pseudo-header, L4 header and payload.
    Checksum,
    /// As [`Rule::Checksum`], but zero says "none": zero stays zero and is never made (RFC 768).
    OptionalChecksum,
}

/// A field of a header that changes from segment to segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// Bytes from the start of its header.
    pub offset: u8,
    /// Bytes wide: 1, 2 or 4.
    pub width: u8,
    /// How it changes.
    pub rule: Rule,
}

impl Field {
    /// A field of `width` bytes at `offset`.
    #[must_use]
    pub const fn new(offset: u8, width: u8, rule: Rule) -> Self {
        Self { offset, width, rule }
    }
}

/// Fields of IPv4: total length, identification, header checksum.
pub static IPV4_FIELDS: &[Field] = &[
    Field::new(2, 2, Rule::Length(0)),
    Field::new(4, 2, Rule::Increment),
    Field::new(10, 2, Rule::HeaderChecksum),
];

/// Fields of IPv6: payload length, which the fixed header is no part of.
pub static IPV6_FIELDS: &[Field] = &[Field::new(4, 2, Rule::Length(40))];

/// Fields of TCP: sequence number, FIN and PSH, CWR, checksum.
pub static TCP_FIELDS: &[Field] = &[
    Field::new(4, 4, Rule::Advance),
    Field::new(13, 1, Rule::Last(tcp::flags::FIN | tcp::flags::PSH)),
    Field::new(13, 1, Rule::First(tcp::flags::CWR)),
    Field::new(16, 2, Rule::Checksum),
];

/// Fields of UDP: length, checksum.
pub static UDP_FIELDS: &[Field] =
    &[Field::new(4, 2, Rule::Length(0)), Field::new(6, 2, Rule::OptionalChecksum)];

/// The fields of an IP header by its Ethernet type, empty for anything else.
#[must_use]
pub fn ip_fields(ether_type: u16) -> &'static [Field] {
    match ether_type {
        ether_type::IPV4 => IPV4_FIELDS,
        ether_type::IPV6 => IPV6_FIELDS,
        _ => &[],
    }
}
