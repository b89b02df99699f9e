//! Descriptors, tunnel headers and streams.

use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use culvert_wire::format::{
    Bits, Fact, FactAt, Field, FlowId, FormatDescriptor, Formats, Identifier, Inner, InnerOffset,
    Outer, Rule, STT, Travel, decap,
};
use culvert_wire::reassemble::{ReassembleConfig, Reassembler, StreamKey, StreamPart};
use culvert_wire::{MacAddr, Vni, eth};

/// Bytes as a row of small numbers; zeros where they end.
pub(crate) struct Numbers<'a>(pub(crate) &'a [u8]);

impl Numbers<'_> {
    pub(crate) fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn wide(&mut self) -> u16 {
        u16::from_be_bytes([self.next(), self.next()])
    }

    fn bits(&mut self) -> Bits {
        Bits { bit: self.wide() % 512, width: self.next() % 40 }
    }
}

/// Any descriptor is judged without a panic, and by one that is legal, what is sent is read again.
pub(crate) fn descriptors(data: &[u8]) {
    let mut n = Numbers(data);
    let outer = match n.next() % 3 {
        0 => Outer::Udp { port: n.wide() },
        1 => Outer::Tcp { port: n.wide() },
        _ => Outer::Ip { protocol: n.next() },
    };
    let fields: Vec<Field> = (0..n.next() % 10)
        .map(|_| {
            let rule = match n.next() % 8 {
                0 => Rule::Length(n.next()),
                1 => Rule::Increment,
                2 => Rule::Advance,
                3 => Rule::First(n.next()),
                4 => Rule::Last(n.next()),
                5 => Rule::HeaderChecksum,
                6 => Rule::Checksum,
                _ => Rule::OptionalChecksum,
            };
            Field::new(n.next(), n.next() % 6, rule)
        })
        .collect();
    let identifiers: Vec<Identifier> =
        (0..n.next() % 4).map(|_| Identifier { bits: n.bits(), value: n.wide().into() }).collect();
    let facts: Vec<FactAt> =
        (0..n.next() % 3).map(|_| FactAt { fact: Fact::Mss, bits: n.bits() }).collect();
    let vni = n.bits();
    let flow = match n.next() % 3 {
        0 => FlowId::SourcePort { base: n.wide(), bits: n.next() },
        1 => FlowId::Header(n.bits()),
        _ => FlowId::Nowhere,
    };
    let travel = if n.next() % 2 == 0 { Travel::Every } else { STT.travel };
    let mut template = vec![0; usize::from(n.next() % 70)];
    // What is sent has to have the identifiers, which random bytes would not.
    for identifier in &identifiers {
        identifier.bits.write(&mut template, identifier.value);
    }
    let inner_offset = match n.next() % 4 {
        0 => InnerOffset::Scaled { bits: n.bits(), base: n.next(), scale: n.next() },
        1 => InnerOffset::Fixed(n.next()),
        _ => InnerOffset::Fixed(template.len() as u8),
    };
    let format = FormatDescriptor {
        name: "fuzz".into(),
        outer,
        template: template.into(),
        identifiers: identifiers.into(),
        vni,
        flow,
        inner_offset,
        inner: Inner::Ethernet,
        fields: fields.into(),
        travel,
        facts: facts.into(),
        options: None,
    };
    let _ = decap(&format, n.0);
    if format.check().is_ok() {
        round_trip(&format);
    }
}

fn round_trip(format: &FormatDescriptor) {
    let vni = Vni::new(format.vni.max().min(0x00ab_cdef)).expect("8 bits or more");
    let spec = EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        vlan: None,
        src: [192, 0, 2, 1].into(),
        dst: [192, 0, 2, 2].into(),
        ttl: 64,
        format,
        mss_option: false,
        vni,
        df: true,
        dscp: DscpMode::Inherit,
    };
    let template = EncapTemplate::new(&spec).expect("a legal format");
    let mut out = vec![0; template.len() + eth::HEADER_LEN];
    let frame = OuterFrame::new(eth::HEADER_LEN, 0x1234, 0, 7, OuterChecksum::Partial);
    assert_eq!(template.emit(&mut out, &frame), template.len());
    let found = decap(format, &out[template.tunnel_offset()..]).expect("what was sent is read");
    assert_eq!((found.vni, found.header_len), (vni, template.len() - template.tunnel_offset()));
}

/// Any bytes, by every built-in format: an inner frame is behind the header, or nothing is.
pub(crate) fn tunnel_headers(data: &[u8]) {
    for (_, format) in Formats::default().iter() {
        if let Ok(found) = decap(format, data) {
            assert!(data.len() >= found.header_len + eth::HEADER_LEN);
        }
    }
}

/// Segments in any order, repeated, contradicting, and time that moves: limits hold, each token comes out
/// once, and what is handed on is a stream without gap or overlap.
pub(crate) fn reassembler(data: &[u8]) {
    let config = ReassembleConfig {
        frames: 4,
        frames_per_peer: 2,
        segments: 4,
        bytes: 70_000,
        hold_us: 500,
    };
    let mut reassembler = Reassembler::new(config);
    let (mut now, mut offered, mut out) = (0u64, 0usize, 0usize);
    let mut n = Numbers(data);
    while !n.0.is_empty() {
        now += u64::from(n.next());
        let peer = n.next();
        let key =
            StreamKey { from: [192, 0, 2, peer % 4].into(), path: 0, frame: (peer >> 4).into() };
        let part = StreamPart {
            frame: key.frame,
            length: u32::from(n.wide()) / 512 * 512,
            offset: u32::from(n.wide()) / 512 * 512,
            len: u32::from(n.wide()) / 512 * 512,
        };
        let (mut whole, mut lost) = (0, 0);
        reassembler.offer(
            now,
            key,
            part,
            offered,
            &mut |parts| {
                let mut end = 0;
                for (offset, len, _) in parts {
                    assert_eq!(offset, end);
                    end += len;
                    whole += 1;
                }
                assert_eq!(end, part.length);
            },
            &mut |_, _| lost += 1,
        );
        offered += 1;
        out += whole + lost;
        assert!(reassembler.waiting() <= config.frames);
        assert!(reassembler.waiting_bytes() <= config.bytes);
    }
    reassembler.clear(&mut |_, _| out += 1);
    assert_eq!((offered, reassembler.waiting_bytes()), (out, 0));
}
