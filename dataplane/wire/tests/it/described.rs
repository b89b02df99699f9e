//! Formats that no one else has, made of what a description can say: each of the outer transports, per-segment fields,
//! a stream with numbers of its own, options. The properties of [`crate::formats`] run over them, too.

use crate::forge::{Forge, noise, parse};
use crate::formats::{send, template};
use culvert_wire::checksum::Sum;
use culvert_wire::format::{
    Bits, Fact, FactAt, Field, FlowId, FormatDescriptor, Formats, Identifier, InnerOffset,
    KnownOption, Options, Outer, Rule, Stream, Travel, VXLAN, check_set, decap,
};
use culvert_wire::tcp;

/// A format over UDP that nobody else has: its header counts segments, states their length and which is
/// the last, and protects itself by a checksum.
pub(crate) fn over_udp() -> FormatDescriptor {
    FormatDescriptor {
        name: "acme".into(),
        outer: Outer::Udp { port: 7000 },
        template: vec![0xac, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(),
        identifiers: vec![Identifier { bits: Bits::new(0, 0, 8), value: 0xac }].into(),
        vni: Bits::new(8, 0, 24),
        inner_offset: InnerOffset::Fixed(12),
        fields: vec![
            Field::new(1, 1, Rule::First(0x80)),
            Field::new(1, 1, Rule::Last(0x01)),
            Field::new(2, 2, Rule::Length(0)),
            Field::new(4, 2, Rule::HeaderChecksum),
            Field::new(6, 1, Rule::Increment),
        ]
        .into(),
        ..VXLAN.clone()
    }
}

/// A format over an IP protocol of its own, with a flow identifier and the tenant's MSS in its header.
fn over_ip() -> FormatDescriptor {
    FormatDescriptor {
        name: "bare".into(),
        outer: Outer::Ip { protocol: 253 },
        template: vec![0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(),
        identifiers: vec![Identifier { bits: Bits::new(0, 0, 4), value: 4 }].into(),
        vni: Bits::new(0, 4, 28),
        flow: FlowId::Header(Bits::new(4, 0, 16)),
        inner_offset: InnerOffset::Fixed(10),
        fields: vec![].into(),
        facts: vec![FactAt { fact: Fact::Mss, bits: Bits::new(6, 0, 16) }].into(),
        ..VXLAN.clone()
    }
}

/// A TCP-shaped format whose header rides on the first segment. The high half of the sequence number is the frame's
/// number; the length has 20 bits of the acknowledgement number, from the middle of a byte on. The header states the length
/// of the inner frame, its own checksum, and facts, two of which begin within a byte.
fn over_tcp() -> FormatDescriptor {
    let states = |fact, bits| FactAt { fact, bits };
    let fields = vec![Field::new(6, 2, Rule::HeaderChecksum), Field::new(8, 2, Rule::Length(14))];
    FormatDescriptor {
        name: "gale".into(),
        outer: Outer::Tcp { port: 7001 },
        template: vec![0x5e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(),
        identifiers: vec![Identifier { bits: Bits::new(0, 0, 8), value: 0x5e }].into(),
        vni: Bits::new(10, 4, 28),
        inner_offset: InnerOffset::Fixed(14),
        fields: fields.into(),
        travel: Travel::First(Stream {
            length: Bits::new(8, 4, 20),
            offset: Bits::new(6, 0, 16),
            frame: Bits::new(4, 0, 16),
        }),
        facts: vec![
            states(Fact::Tcp, Bits::new(1, 0, 1)),
            states(Fact::Ipv4, Bits::new(1, 1, 1)),
            states(Fact::ChecksumPartial, Bits::new(1, 2, 1)),
            states(Fact::ChecksumVerified, Bits::new(1, 7, 1)),
            states(Fact::Mss, Bits::new(2, 3, 16)),
            states(Fact::L4Offset, Bits::new(4, 3, 8)),
        ]
        .into(),
        ..VXLAN.clone()
    }
}

/// A format over UDP with options whose heads are of two bytes, and their lengths in units of two. One is in all headers,
/// which nobody has to know; another states the tenant's MSS. The fixed part counts segments.
fn with_options() -> FormatDescriptor {
    let mss = FactAt { fact: Fact::Mss, bits: Bits::new(0, 0, 16) };
    FormatDescriptor {
        name: "opal".into(),
        outer: Outer::Udp { port: 7002 },
        template: vec![0x6f, 2, 0, 0, 0, 0, 0, 0, 0x12, 1, 0xbe, 0xef].into(),
        identifiers: vec![Identifier { bits: Bits::new(0, 0, 8), value: 0x6f }].into(),
        vni: Bits::new(5, 0, 24),
        inner_offset: InnerOffset::Scaled { bits: Bits::new(1, 0, 8), base: 8, scale: 2 },
        fields: vec![Field::new(3, 2, Rule::Increment)].into(),
        options: Some(Options {
            head_len: 2,
            id: Bits::new(0, 0, 8),
            len: Bits::new(1, 0, 8),
            scale: 2,
            critical: Some(Bits::new(0, 0, 1)),
            any_critical: Some(Bits::new(2, 0, 1)),
            known: vec![KnownOption { id: 0x31, units: 1, states: mss }].into(),
        }),
        ..VXLAN.clone()
    }
}

/// The built-in formats and these.
pub(crate) fn formats() -> Formats {
    Formats::with([over_udp(), over_ip(), over_tcp(), with_options()])
}

#[test]
fn the_formats_of_these_tests_are_legal() {
    let formats = formats();
    let all: Vec<_> = formats.iter().map(|(_, format)| format).collect();
    for format in &all {
        assert_eq!(format.check(), Ok(()), "{}", format.name);
    }
    assert_eq!(check_set(&all), Ok(()));
}

#[test]
fn a_described_stream_has_numbers_and_facts_where_it_says() {
    let template = template(&over_tcp(), false, false);
    let inner = Forge::tcp(false, noise(4000, 1)).frame();
    let frames = send(&template, &inner, 1448, 1500, 0x0001_0203);
    let stream = (14 + inner.len()) as u32;
    let mut offset = 0;
    for frame in &frames {
        let tcp = tcp::View::new(&frame[34..]).unwrap().repr();
        assert_eq!((tcp.dst_port, tcp.seq, tcp.ack), (7001, 0x0203 << 16 | offset, stream << 8));
        offset += parse(frame).payload_len() as u32;
    }
    assert_eq!(offset, stream);
    // An MSS of 1448 and an L4 offset of 34, three bits behind the start of a byte; 4066 bytes of inner frame.
    let header = &frames[0][54..68];
    assert_eq!(header[..6], [0x5e, 0xe0, 0, 0xb5, 0x04, 0x40]);
    assert_eq!(header[8..], [0x0f, 0xe2, 0, 0xab, 0xcd, 0xef]);
    assert_eq!(Sum::default().add(header).finish(), 0);
}

#[test]
fn a_described_option_states_the_mss_behind_the_options_of_the_header() {
    let format = with_options();
    let template = template(&format, false, true);
    assert_eq!(template.len(), 14 + 20 + 8 + 12 + 4);
    let inner = Forge::tcp(false, noise(3000, 1)).frame();
    for (count, frame) in (0u8..).zip(send(&template, &inner, 1448, 1600, 1)) {
        let want = [0x6f, 4, 0, 0, count, 0xab, 0xcd, 0xef, 0x12, 1, 0xbe, 0xef, 0x31, 1, 5, 0xa8];
        assert_eq!(frame[42..58], want);
        let found = decap(&format, &frame[42..]).unwrap();
        assert_eq!((found.header_len, found.facts.mss), (16, 1448));
    }
}
