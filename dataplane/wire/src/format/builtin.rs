//! The formats that need no configuration.

use std::borrow::Cow;

use super::{
    Bits, Fact, FactAt, FlowId, FormatDescriptor, Identifier, Inner, InnerOffset, KnownOption,
    Options, Outer, Stream, Travel,
};
use crate::vxlan;

/// Source ports of RFC 7348 section 5 and RFC 8926 section 3.3: 49152 to 65535.
const DYNAMIC_PORTS: FlowId = FlowId::SourcePort { base: 49_152, bits: 14 };

const fn must_be(bits: Bits, value: u32) -> Identifier {
    Identifier { bits, value }
}

const fn states(fact: Fact, bits: Bits) -> FactAt {
    FactAt { fact, bits }
}

/// VXLAN (RFC 7348).
pub static VXLAN: FormatDescriptor = FormatDescriptor {
    name: Cow::Borrowed("vxlan"),
    outer: Outer::Udp { port: vxlan::PORT },
    template: Cow::Borrowed(&[vxlan::FLAG_VNI, 0, 0, 0, 0, 0, 0, 0]),
    identifiers: Cow::Borrowed(&[must_be(Bits::new(0, 4, 1), 1)]),
    vni: Bits::new(4, 0, 24),
    flow: DYNAMIC_PORTS,
    inner_offset: InnerOffset::Fixed(vxlan::HEADER_LEN as u8),
    inner: Inner::Ethernet,
    fields: Cow::Borrowed(&[]),
    travel: Travel::Every,
    facts: Cow::Borrowed(&[]),
    options: None,
};

/// The class of our own Geneve options: one of those for experiments (RFC 8926 section 7).
pub const GENEVE_CLASS: u16 = 0xffc7;
/// Type of the option that states the tenant's MSS. Its critical bit is clear: who does not know it
/// gets the same bytes in larger segments.
pub const GENEVE_MSS: u8 = 0x01;

/// Geneve (RFC 8926) with Ethernet inside. Control packets and other versions are not of it.
pub static GENEVE: FormatDescriptor = FormatDescriptor {
    name: Cow::Borrowed("geneve"),
    outer: Outer::Udp { port: 6081 },
    template: Cow::Borrowed(&[0, 0, 0x65, 0x58, 0, 0, 0, 0]),
    identifiers: Cow::Borrowed(&[
        must_be(Bits::new(0, 0, 2), 0),
        must_be(Bits::new(1, 0, 1), 0),
        must_be(Bits::new(2, 0, 16), 0x6558),
    ]),
    vni: Bits::new(4, 0, 24),
    flow: DYNAMIC_PORTS,
    inner_offset: InnerOffset::Scaled { bits: Bits::new(0, 2, 6), base: 8, scale: 4 },
    inner: Inner::Ethernet,
    fields: Cow::Borrowed(&[]),
    travel: Travel::Every,
    facts: Cow::Borrowed(&[]),
    options: Some(Options {
        head_len: 4,
        id: Bits::new(0, 0, 24),
        len: Bits::new(3, 3, 5),
        scale: 4,
        critical: Some(Bits::new(2, 0, 1)),
        any_critical: Some(Bits::new(1, 1, 1)),
        known: Cow::Borrowed(&[KnownOption {
            id: (GENEVE_CLASS as u32) << 8 | GENEVE_MSS as u32,
            units: 1,
            states: states(Fact::Mss, Bits::new(0, 0, 16)),
        }]),
    }),
};

/// STT (draft-davie-stt-08). The VNI is the low 24 bits of the context id, whose others are zero.
pub static STT: FormatDescriptor = FormatDescriptor {
    name: Cow::Borrowed("stt"),
    outer: Outer::Tcp { port: 7471 },
    template: Cow::Borrowed(&[0; 18]),
    identifiers: Cow::Borrowed(&[
        must_be(Bits::new(0, 0, 8), 0),
        must_be(Bits::new(8, 0, 32), 0),
        must_be(Bits::new(12, 0, 8), 0),
    ]),
    vni: Bits::new(13, 0, 24),
    flow: DYNAMIC_PORTS,
    inner_offset: InnerOffset::Fixed(18),
    inner: Inner::Ethernet,
    fields: Cow::Borrowed(&[]),
    travel: Travel::First(Stream {
        length: Bits::new(4, 0, 16),
        offset: Bits::new(6, 0, 16),
        frame: Bits::new(8, 0, 32),
    }),
    facts: Cow::Borrowed(&[
        states(Fact::Tcp, Bits::new(1, 4, 1)),
        states(Fact::Ipv4, Bits::new(1, 5, 1)),
        states(Fact::ChecksumPartial, Bits::new(1, 6, 1)),
        states(Fact::ChecksumVerified, Bits::new(1, 7, 1)),
        states(Fact::L4Offset, Bits::new(2, 0, 8)),
        states(Fact::Mss, Bits::new(4, 0, 16)),
        states(Fact::VlanPresent, Bits::new(6, 3, 1)),
        states(Fact::VlanId, Bits::new(6, 4, 12)),
        states(Fact::VlanPriority, Bits::new(6, 0, 3)),
    ]),
    options: None,
};

/// The shard format: what its outer headers are made by. All else of it is [`crate::shard`].
pub static SHARD: FormatDescriptor = FormatDescriptor {
    name: Cow::Borrowed("shard"),
    outer: Outer::Tcp { port: crate::shard::PORT },
    template: Cow::Borrowed(&[]),
    identifiers: Cow::Borrowed(&[]),
    vni: Bits::new(0, 0, 24),
    flow: DYNAMIC_PORTS,
    inner_offset: InnerOffset::Fixed(0),
    inner: Inner::Ethernet,
    fields: Cow::Borrowed(&[]),
    travel: Travel::Shares(Stream {
        length: Bits::new(4, 0, 16),
        offset: Bits::new(6, 0, 16),
        frame: Bits::new(8, 0, 32),
    }),
    facts: Cow::Borrowed(&[]),
    options: None,
};

/// All of them.
pub static BUILT_IN: [&FormatDescriptor; 4] = [&VXLAN, &GENEVE, &STT, &SHARD];

/// The built-in format of a name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static FormatDescriptor> {
    BUILT_IN.into_iter().find(|format| format.name == name)
}
