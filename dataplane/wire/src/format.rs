//! Formats as data.
//!
//! A tunnel format is a [`FormatDescriptor`]: where in its header the identifier, the VNI, the flow
//! identifier and the inner frame are. What a cut changes in each segment, and what a merge has to
//! check, is a list of [`Field`]s: the segmenter applies the list, the coalescer reads the same list
//! backwards, and every byte that no field covers is repeated by the one and must be equal for the
//! other. Neither knows a format by name.

use crate::bytes::{get8, get16, get32, put8, put16, put32};
use crate::eth::ether_type;
use crate::vni::Vni;
use crate::{tcp, vxlan};

/// What a field does from one segment of a frame to the next.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
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
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of its header.
    pub offset: u8,
    /// Bytes wide: 1, 2 or 4.
    pub width: u8,
    /// How it changes.
    pub rule: Rule,
}

impl Field {
    const fn new(offset: u8, width: u8, rule: Rule) -> Self {
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

/// The outer transport of a format.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outer {
    /// A UDP datagram to this port.
    Udp {
        /// Destination port.
        port: u16,
    },
}

impl Outer {
    /// The destination port.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Udp { port } => port,
        }
    }
}

/// A group of bits in the tunnel header: `width` bytes at `offset`, big-endian, of which the bits
/// from `shift` up count.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    /// Bytes from the start of the tunnel header.
    pub offset: u8,
    /// Bytes wide: 1, 2 or 4.
    pub width: u8,
    /// Bits below the value.
    pub shift: u8,
    /// Mask of the value after the shift.
    pub mask: u32,
}

impl Bits {
    /// Reads the value; `None` outside `header`.
    #[inline]
    #[must_use]
    pub fn read(&self, header: &[u8]) -> Option<u32> {
        let at = usize::from(self.offset);
        let word = match self.width {
            1 => u32::from(get8(header, at)?),
            2 => u32::from(get16(header, at)?),
            _ => get32(header, at)?,
        };
        Some((word.checked_shr(u32::from(self.shift)).unwrap_or(0)) & self.mask)
    }

    /// Sets the bits of `value` in a header where they are zero; does nothing outside it.
    pub fn write(&self, header: &mut [u8], value: u32) {
        let at = usize::from(self.offset);
        let word = (value & self.mask).checked_shl(u32::from(self.shift)).unwrap_or(0);
        match self.width {
            1 => put8(header, at, get8(header, at).unwrap_or(0) | word as u8),
            2 => put16(header, at, get16(header, at).unwrap_or(0) | word as u16),
            _ => put32(header, at, get32(header, at).unwrap_or(0) | word),
        }
    }
}

/// Bits that must have a value for a message to be of the format.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Identifier {
    /// Where.
    pub bits: Bits,
    /// The value.
    pub value: u32,
}

/// Where the inner frame starts.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum InnerOffset {
    /// After this many bytes of tunnel header.
    Fixed(u8),
    /// After `base` bytes and `scale` more for each unit of a length in the header.
    Scaled {
        /// Where the length is.
        bits: Bits,
        /// Bytes of the fixed part.
        base: u8,
        /// Bytes per unit.
        scale: u8,
    },
}

/// What the tunnel header carries.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    /// An Ethernet frame.
    Ethernet,
}

/// Where a format shows the network which packets belong together.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FlowId {
    /// The outer source port: `base` with the low `bits` taken from the flow's hash.
    SourcePort {
        /// The lowest port.
        base: u16,
        /// Bits of hash.
        bits: u8,
    },
}

impl FlowId {
    /// The source port for a flow of this hash.
    #[inline]
    #[must_use]
    pub const fn source_port(self, entropy: u16) -> u16 {
        match self {
            Self::SourcePort { base, bits } => {
                base | (entropy & ((1u32 << (bits & 15)) - 1) as u16)
            }
        }
    }
}

/// A tunnel format.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FormatDescriptor {
    /// The name in configuration and counters.
    pub name: &'static str,
    /// The outer transport.
    pub outer: Outer,
    /// The tunnel header as sent, with the VNI still zero.
    pub template: &'static [u8],
    /// What tells a message of this format.
    pub identifiers: &'static [Identifier],
    /// Where the VNI is.
    pub vni: Bits,
    /// The flow identifier.
    pub flow: FlowId,
    /// Where the inner frame starts.
    pub inner_offset: InnerOffset,
    /// What the inner frame is.
    pub inner: Inner,
    /// Fields of the tunnel header that change from segment to segment.
    pub fields: &'static [Field],
}

/// VXLAN (RFC 7348). The source port range is that of section 5: 49152 to 65535.
pub static VXLAN: FormatDescriptor = FormatDescriptor {
    name: "vxlan",
    outer: Outer::Udp { port: vxlan::PORT },
    template: &[vxlan::FLAG_VNI, 0, 0, 0, 0, 0, 0, 0],
    identifiers: &[Identifier { bits: Bits { offset: 0, width: 1, shift: 3, mask: 1 }, value: 1 }],
    vni: Bits { offset: 4, width: 4, shift: 8, mask: 0x00ff_ffff },
    flow: FlowId::SourcePort { base: 49_152, bits: 14 },
    inner_offset: InnerOffset::Fixed(vxlan::HEADER_LEN as u8),
    inner: Inner::Ethernet,
    fields: &[],
};

/// Why a message is not of a format. [`DecapError::name`] is the drop reason.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecapError {
    /// The message ends inside the tunnel header. The sender is broken or hostile.
    #[error("the message ends inside the tunnel header")]
    Truncated,
    /// The bits that tell the format are others. The sender speaks another format on this port:
    /// compare both ends' configuration.
    #[error("the tunnel header is of another format")]
    Unidentified,
    /// The VNI is zero, which no virtual network has. The sender's configuration is wrong.
    #[error("the VNI is zero")]
    BadVni,
    /// The tunnel header is right but there is no room for an Ethernet header behind it.
    #[error("no inner frame")]
    NoInnerFrame,
}

impl DecapError {
    /// Every reason: for tables of counters.
    pub const ALL: [Self; 4] =
        [Self::Truncated, Self::Unidentified, Self::BadVni, Self::NoInnerFrame];

    /// The stable name of the drop reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "decap_truncated",
            Self::Unidentified => "decap_unidentified",
            Self::BadVni => "decap_bad_vni",
            Self::NoInnerFrame => "decap_no_inner_frame",
        }
    }
}

/// Reads the tunnel header at the start of `message`, the payload of the outer transport, and
/// answers the VNI and the bytes up to the inner frame. Bits without meaning in the format are
/// ignored (RFC 7348 section 5: reserved fields).
///
/// `message` needs to hold no more than the tunnel header and the inner Ethernet header.
///
/// # Errors
/// Any [`DecapError`]: drop and count.
pub fn decap(desc: &FormatDescriptor, message: &[u8]) -> Result<(Vni, usize), DecapError> {
    for identifier in desc.identifiers {
        if identifier.bits.read(message).ok_or(DecapError::Truncated)? != identifier.value {
            return Err(DecapError::Unidentified);
        }
    }
    let vni = desc.vni.read(message).ok_or(DecapError::Truncated)?;
    let header_len = match desc.inner_offset {
        InnerOffset::Fixed(len) => usize::from(len),
        InnerOffset::Scaled { bits, base, scale } => {
            let units = bits.read(message).ok_or(DecapError::Truncated)?;
            usize::from(base) + usize::from(scale) * units as usize
        }
    };
    let inner = message.get(header_len..).ok_or(DecapError::Truncated)?;
    let vni = Vni::new(vni).map_err(|_| DecapError::BadVni)?;
    match desc.inner {
        Inner::Ethernet if inner.len() < crate::eth::HEADER_LEN => Err(DecapError::NoInnerFrame),
        Inner::Ethernet => Ok((vni, header_len)),
    }
}

/// The fields of an IP header by its Ethernet type, empty for anything else.
#[must_use]
pub fn ip_fields(ether_type: u16) -> &'static [Field] {
    match ether_type {
        ether_type::IPV4 => IPV4_FIELDS,
        ether_type::IPV6 => IPV6_FIELDS,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(first: u8, vni: u32) -> Vec<u8> {
        let [_, a, b, c] = vni.to_be_bytes();
        let mut m = vec![first, 0, 0, 0, a, b, c, 0];
        m.resize(8 + 14, 0);
        m
    }

    #[test]
    fn the_vni_flag_must_be_set_and_nothing_else_matters() {
        assert_eq!(decap(&VXLAN, &message(0x08, 7)), Ok((Vni::new(7).unwrap(), 8)));
        assert_eq!(decap(&VXLAN, &message(0xf7, 7)), Err(DecapError::Unidentified));
        let mut reserved = message(0xff, 0x00ab_cdef);
        reserved[1..4].fill(0xff);
        reserved[7] = 0xff;
        assert_eq!(decap(&VXLAN, &reserved), Ok((Vni::new(0x00ab_cdef).unwrap(), 8)));
    }

    #[test]
    fn vni_zero_and_short_messages_are_refused() {
        assert_eq!(decap(&VXLAN, &message(0x08, 0)), Err(DecapError::BadVni));
        let whole = message(0x08, 9);
        for len in 0..8 {
            assert_eq!(decap(&VXLAN, &whole[..len]), Err(DecapError::Truncated), "{len}");
        }
        for len in 8..22 {
            assert_eq!(decap(&VXLAN, &whole[..len]), Err(DecapError::NoInnerFrame), "{len}");
        }
    }

    #[test]
    fn a_format_with_options_is_decapsulated_by_its_description() {
        let geneve_like = FormatDescriptor {
            name: "test",
            inner_offset: InnerOffset::Scaled {
                bits: Bits { offset: 0, width: 1, shift: 0, mask: 0x3f },
                base: 8,
                scale: 4,
            },
            identifiers: &[Identifier {
                bits: Bits { offset: 2, width: 2, shift: 0, mask: 0xffff },
                value: 0x6558,
            }],
            ..VXLAN
        };
        let mut m = vec![2, 0, 0x65, 0x58, 0, 0, 5, 0];
        m.resize(8 + 8 + 14, 0);
        assert_eq!(decap(&geneve_like, &m), Ok((Vni::new(5).unwrap(), 16)));
        m[0] = 0x3f;
        assert_eq!(decap(&geneve_like, &m), Err(DecapError::Truncated));
    }

    #[test]
    fn source_ports_stay_in_the_dynamic_range() {
        for entropy in 0..=u16::MAX {
            assert!(VXLAN.flow.source_port(entropy) >= 49_152);
        }
        assert_eq!(VXLAN.flow.source_port(0x4001), 49_153);
    }
}
