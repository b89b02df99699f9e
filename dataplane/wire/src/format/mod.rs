//! Formats as data.
//!
//! A tunnel format is a [`FormatDescriptor`]: what carries it, where in its header the identifier,
//! the VNI, the flow identifier and the inner frame are, and on which segments of a frame the header
//! rides. What a cut changes in each segment, and what a merge has to check, is a list of
//! [`Field`]s: the segmenter applies the list, the coalescer reads the same list backwards, and
//! every byte that no field covers is repeated by the one and must be equal for the other. Neither
//! knows a format by name.
//!
//! Descriptors are values: those of [`builtin`] are constants, others are made of a configuration.
//! [`check`] says whether one is legal, alone and beside others; nothing else here has to.

mod bits;
mod decap;
mod fields;
mod set;

pub mod builtin;
pub mod check;

use std::borrow::Cow;

use crate::proto;

pub use bits::Bits;
pub use builtin::{BUILT_IN, GENEVE, SHARD, STT, VXLAN};
pub use check::{FormatFault, check_set};
pub use decap::{Decap, DecapError, decap};
pub use fields::{Field, IPV4_FIELDS, IPV6_FIELDS, Rule, TCP_FIELDS, UDP_FIELDS, ip_fields};
pub use set::{FormatIndex, Formats};

/// Bytes of the longest tunnel header that is sent.
pub const MAX_HEADER_LEN: usize = 56;

/// Most fields of a tunnel header that change from segment to segment.
pub const MAX_FIELDS: usize = 8;

/// The outer transport of a format.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outer {
    /// A UDP datagram to this port.
    Udp {
        /// Destination port.
        port: u16,
    },
    /// Packets that look like TCP segments to this port, so that devices cut and merge them; there
    /// is no connection.
    Tcp {
        /// Destination port.
        port: u16,
    },
    /// An IP protocol of its own.
    Ip {
        /// The protocol number.
        protocol: u8,
    },
}

impl Outer {
    /// The protocol number of the outer IP header.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Udp { .. } => proto::UDP,
            Self::Tcp { .. } => proto::TCP,
            Self::Ip { protocol } => protocol,
        }
    }

    /// The destination port, where there are ports.
    #[must_use]
    pub const fn port(self) -> Option<u16> {
        match self {
            Self::Udp { port } | Self::Tcp { port } => Some(port),
            Self::Ip { .. } => None,
        }
    }

    /// Bytes of the transport header between IP and the tunnel header.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::Udp { .. } => crate::udp::HEADER_LEN,
            Self::Tcp { .. } => crate::tcp::HEADER_LEN,
            Self::Ip { .. } => 0,
        }
    }

    /// Offset of the checksum in the transport header, where there is one.
    #[must_use]
    pub const fn checksum_offset(self) -> Option<u16> {
        match self {
            Self::Udp { .. } => Some(6),
            Self::Tcp { .. } => Some(16),
            Self::Ip { .. } => None,
        }
    }

    /// Whether a packet of this IP protocol, to this port, is carried so.
    #[inline]
    #[must_use]
    pub fn carries(self, protocol: u8, port: Option<u16>) -> bool {
        self.protocol() == protocol && (self.port().is_none() || self.port() == port)
    }
}

/// Bits that must have a value for a message to be of the format.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identifier {
    /// Where.
    pub bits: Bits,
    /// The value.
    pub value: u32,
}

impl Identifier {
    /// The same byte by byte: where from the start of the header, which bits, and their value.
    pub fn bytes(&self) -> impl Iterator<Item = (u8, u8, u8)> + use<> {
        let (range, value) = (self.bits.range(), u64::from(self.value));
        let (first, last) = (range.start / 8, range.end.div_ceil(8));
        // From the first bit of the first byte to the last of the last: at most 40 bits.
        let behind = last * 8 - range.end;
        let mask = ((1u64 << self.bits.width) - 1) << behind;
        let value = value << behind & mask;
        (first..last).filter_map(move |byte| {
            let shift = (last - 1 - byte) * 8;
            Some((u8::try_from(byte).ok()?, (mask >> shift) as u8, (value >> shift) as u8))
        })
    }
}

/// Where the inner frame starts.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Inner {
    /// An Ethernet frame.
    Ethernet,
}

/// Where a format shows the network which packets belong together.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum FlowId {
    /// The outer source port: `base` with the low `bits` taken from the flow's hash.
    SourcePort {
        /// The lowest port.
        base: u16,
        /// Bits of hash.
        bits: u8,
    },
    /// Bits of the tunnel header, filled with the flow's hash.
    Header(Bits),
    /// Nowhere but in the flow label over IPv6.
    Nowhere,
}

impl FlowId {
    /// The source port for a flow of this hash; 0 where the format has no ports.
    #[inline]
    #[must_use]
    pub const fn source_port(self, entropy: u16) -> u16 {
        match self {
            Self::SourcePort { base, bits } => {
                base | (entropy & ((1u32 << (bits & 15)) - 1) as u16)
            }
            Self::Header(_) | Self::Nowhere => 0,
        }
    }
}

/// On which segments of a frame the tunnel header rides.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Travel {
    /// On every segment: each is a frame of its own.
    Every,
    /// On the first one. Header and inner frame are one stream, which is cut by the bytes, and the
    /// receiver needs all of it to have the frame back.
    First(Stream),
    /// On some of them, in shares ([`crate::shard`]). There is no tunnel header: this format is code, and
    /// a descriptor says only what carries it.
    Shares(Stream),
}

/// Where the outer transport header says to which frame a segment belongs, and where in it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    /// Bytes of the whole stream, tunnel header and inner frame.
    pub length: Bits,
    /// Bytes of the stream before this segment. The low half of a sequence number, so that a
    /// device that cuts TCP advances it.
    pub offset: Bits,
    /// The number of the frame.
    pub frame: Bits,
}

/// A property of the inner frame that a header can state.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    /// The tenant's MSS: payload bytes of each segment that the receiver may cut the frame into; 0
    /// for a frame that is not to be cut.
    Mss,
    /// Bytes from the start of the inner frame to its L4 header, of a frame with a partial
    /// checksum; else 0.
    L4Offset,
    /// Its L4 checksum is right: the sender has looked.
    ChecksumVerified,
    /// Its L4 checksum field holds the pseudo-header's sum only.
    ChecksumPartial,
    /// It is IPv4.
    Ipv4,
    /// It is TCP.
    Tcp,
    /// It had a VLAN tag, which is not in the inner frame but here.
    VlanPresent,
    /// The VLAN id of that tag.
    VlanId,
    /// The priority (PCP) of that tag.
    VlanPriority,
}

/// Where a header states a [`Fact`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct FactAt {
    /// What.
    pub fact: Fact,
    /// Where.
    pub bits: Bits,
}

/// The facts of one inner frame.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// See [`Fact::Mss`].
    pub mss: u16,
    /// See [`Fact::L4Offset`].
    pub l4_offset: u8,
    /// See [`Fact::ChecksumVerified`].
    pub checksum_verified: bool,
    /// See [`Fact::ChecksumPartial`].
    pub checksum_partial: bool,
    /// See [`Fact::Ipv4`].
    pub ipv4: bool,
    /// See [`Fact::Tcp`].
    pub tcp: bool,
    /// Tag control information of the tag of [`Fact::VlanPresent`].
    pub vlan: Option<u16>,
}

impl Facts {
    pub(crate) fn get(&self, fact: Fact) -> u32 {
        match fact {
            Fact::Mss => self.mss.into(),
            Fact::L4Offset => self.l4_offset.into(),
            Fact::ChecksumVerified => self.checksum_verified.into(),
            Fact::ChecksumPartial => self.checksum_partial.into(),
            Fact::Ipv4 => self.ipv4.into(),
            Fact::Tcp => self.tcp.into(),
            Fact::VlanPresent => self.vlan.is_some().into(),
            Fact::VlanId => u32::from(self.vlan.unwrap_or(0) & 0x0fff),
            Fact::VlanPriority => u32::from(self.vlan.unwrap_or(0) >> 13),
        }
    }

    fn set(&mut self, fact: Fact, value: u32) {
        match fact {
            Fact::Mss => self.mss = value as u16,
            Fact::L4Offset => self.l4_offset = value as u8,
            Fact::ChecksumVerified => self.checksum_verified = value != 0,
            Fact::ChecksumPartial => self.checksum_partial = value != 0,
            Fact::Ipv4 => self.ipv4 = value != 0,
            Fact::Tcp => self.tcp = value != 0,
            Fact::VlanPresent => self.vlan = (value != 0).then_some(0),
            Fact::VlanId => self.vlan = self.vlan.map(|tci| tci | value as u16 & 0x0fff),
            Fact::VlanPriority => self.vlan = self.vlan.map(|tci| tci | (value as u16) << 13),
        }
    }
}

/// Options between the fixed part of the header and the inner frame: each has a head that tells what
/// it is and how long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Bytes of an option's head.
    pub head_len: u8,
    /// What tells options apart, in the head.
    pub id: Bits,
    /// Units of data after the head, in the head.
    pub len: Bits,
    /// Bytes per unit.
    pub scale: u8,
    /// A bit of the head that forbids to ignore the option.
    pub critical: Option<Bits>,
    /// A bit of the fixed header that says that a critical option follows.
    pub any_critical: Option<Bits>,
    /// Options that are understood.
    pub known: Cow<'static, [KnownOption]>,
}

/// An option that is understood, and what it says.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct KnownOption {
    /// Its id.
    pub id: u32,
    /// Units of data.
    pub units: u8,
    /// What it states, at which bits of its data.
    pub states: FactAt,
}

/// A tunnel format.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FormatDescriptor {
    /// The name in configuration and counters.
    pub name: Cow<'static, str>,
    /// The outer transport.
    pub outer: Outer,
    /// The tunnel header as sent, without options, and with all that differs per frame still zero.
    pub template: Cow<'static, [u8]>,
    /// What tells a message of this format.
    pub identifiers: Cow<'static, [Identifier]>,
    /// Where the VNI is.
    pub vni: Bits,
    /// The flow identifier.
    pub flow: FlowId,
    /// Where the inner frame starts.
    pub inner_offset: InnerOffset,
    /// What the inner frame is.
    pub inner: Inner,
    /// Fields of the tunnel header that change from segment to segment.
    pub fields: Cow<'static, [Field]>,
    /// On which segments the header rides.
    pub travel: Travel,
    /// What the header states of the inner frame.
    pub facts: Cow<'static, [FactAt]>,
    /// Options of the header.
    pub options: Option<Options>,
}

impl FormatDescriptor {
    /// Whether a message starts as one of this format does. What it does not hold is no part of one.
    #[inline]
    #[must_use]
    pub fn identifies(&self, message: &[u8]) -> bool {
        self.identifiers.iter().all(|id| id.bits.read(message) == Some(id.value))
    }

    /// The option that states the tenant's MSS, if there is one.
    #[must_use]
    pub fn mss_option(&self) -> Option<(&Options, &KnownOption)> {
        let options = self.options.as_ref()?;
        let known = options.known.iter().find(|known| known.states.fact == Fact::Mss)?;
        Some((options, known))
    }

    /// Whether a receiver can be told the tenant's MSS. In shards it always is.
    #[must_use]
    pub fn states_mss(&self) -> bool {
        self.is_shards()
            || self.mss_option().is_some()
            || self.facts.iter().any(|at| at.fact == Fact::Mss)
    }

    /// The streams of a format whose header rides on the first segment only.
    #[must_use]
    pub fn stream(&self) -> Option<&Stream> {
        match &self.travel {
            Travel::First(stream) => Some(stream),
            Travel::Every | Travel::Shares(_) => None,
        }
    }

    /// Where the outer transport header has the numbers of a frame, whatever its segments carry.
    #[must_use]
    pub fn numbers(&self) -> Option<&Stream> {
        match &self.travel {
            Travel::First(stream) | Travel::Shares(stream) => Some(stream),
            Travel::Every => None,
        }
    }

    /// Whether it is the format of [`crate::shard`].
    #[inline]
    #[must_use]
    pub const fn is_shards(&self) -> bool {
        matches!(self.travel, Travel::Shares(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_stay_in_the_dynamic_range() {
        for entropy in 0..=u16::MAX {
            assert!(VXLAN.flow.source_port(entropy) >= 49_152);
        }
        assert_eq!(VXLAN.flow.source_port(0x4001), 49_153);
    }

    #[test]
    fn an_identifier_is_the_same_byte_by_byte() {
        let all = |bit, width, value| {
            let id = Identifier { bits: Bits { bit, width }, value };
            id.bytes().collect::<Vec<_>>()
        };
        assert_eq!(all(4, 1, 1), [(0, 0x08, 0x08)]);
        assert_eq!(all(16, 16, 0x6558), [(2, 0xff, 0x65), (3, 0xff, 0x58)]);
        assert_eq!(all(6, 4, 0b1101), [(0, 0x03, 0x03), (1, 0xc0, 0x40)]);
        assert_eq!(
            all(12, 32, 0xdead_beef),
            [(1, 0x0f, 0x0d), (2, 0xff, 0xea), (3, 0xff, 0xdb), (4, 0xff, 0xee), (5, 0xf0, 0xf0)]
        );
        // Whatever the header, both ways agree.
        let mut message = [0u8; 8];
        for seed in 0..20_000u32 {
            let hash = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            message.copy_from_slice(&(hash ^ hash >> 29).to_be_bytes());
            let bits = Bits { bit: (seed % 31) as u16, width: (seed % 7 + 1) as u8 };
            let id = Identifier { bits, value: seed >> 5 & bits.max() };
            let by_bytes = id
                .bytes()
                .all(|(at, mask, value)| message.get(usize::from(at)).unwrap() & mask == value);
            assert_eq!(by_bytes, bits.read(&message) == Some(id.value), "{id:?} {message:02x?}");
        }
    }

    #[test]
    fn a_transport_carries_what_has_its_protocol_and_port() {
        assert!(VXLAN.outer.carries(proto::UDP, Some(4789)));
        assert!(!VXLAN.outer.carries(proto::UDP, Some(6081)));
        assert!(!VXLAN.outer.carries(proto::TCP, Some(4789)));
        assert!(STT.outer.carries(proto::TCP, Some(7471)));
        assert!(Outer::Ip { protocol: 253 }.carries(253, None));
        assert!(!Outer::Ip { protocol: 253 }.carries(254, None));
    }
}
