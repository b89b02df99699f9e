//! Descriptors, tunnel headers and streams.

use culvert_wire::encap::{
    DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame, Position,
};
use culvert_wire::format::{
    Bits, Fact, FactAt, Facts, Field, FlowId, FormatDescriptor, Formats, Identifier, Inner,
    InnerOffset, KnownOption, Options, Outer, Rule, STT, Stream, Travel, decap,
};
use culvert_wire::reassemble::{ReassembleConfig, Reassembler, StreamKey, StreamPart};
use culvert_wire::{MacAddr, Packet, Vni, eth};

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

    fn maybe<T>(&mut self, of: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.next() % 2 == 1).then(|| of(self))
    }
}

/// Where parts of a header are.
enum Layout {
    /// One behind the other, so that most descriptors are legal: the bit where the last one ends.
    Packed(u16),
    /// Anywhere.
    Random,
}

impl Layout {
    /// A run of at least so many bits.
    fn bits(&mut self, n: &mut Numbers<'_>, least: u8) -> Bits {
        match self {
            Layout::Random => Bits { bit: n.wide() % 512, width: n.next() % 40 },
            Layout::Packed(end) => {
                let width = (least + n.next() % 4).min(32);
                let bits = Bits { bit: *end + u16::from(n.next() % 3), width };
                *end = bits.bit + u16::from(width);
                bits
            }
        }
    }

    fn field(&mut self, n: &mut Numbers<'_>) -> Field {
        let kinds = if matches!(self, Layout::Random) { 8 } else { 6 };
        let rule = match n.next() % kinds {
            0 => Rule::Length(n.next()),
            1 => Rule::Increment,
            2 => Rule::Advance,
            3 => Rule::First(n.next()),
            4 => Rule::Last(n.next()),
            5 => Rule::HeaderChecksum,
            6 => Rule::Checksum,
            _ => Rule::OptionalChecksum,
        };
        let Layout::Packed(end) = self else { return Field::new(n.next(), n.next() % 6, rule) };
        let width = match rule {
            Rule::First(_) | Rule::Last(_) => 1,
            Rule::HeaderChecksum => 2,
            _ => 1 << (n.next() % 3),
        };
        let align = if rule == Rule::HeaderChecksum { 16 } else { 8 };
        let start = end.next_multiple_of(align);
        *end = start + u16::from(width) * 8;
        Field::new((start / 8) as u8, width, rule)
    }

    fn facts(&mut self, n: &mut Numbers<'_>) -> Vec<FactAt> {
        let mut facts = Vec::new();
        if matches!(self, Layout::Random) {
            let of = |n: &mut Numbers<'_>, layout: &mut Layout| {
                let (fact, _) = FACTS[usize::from(n.next()) % FACTS.len()];
                FactAt { fact, bits: layout.bits(n, 1) }
            };
            facts.extend((0..n.next() % 4).map(|_| of(n, self)));
            return facts;
        }
        let wanted = n.wide();
        for (i, (fact, width)) in FACTS.into_iter().enumerate() {
            // The tag's three belong together.
            if wanted & 1 << i.min(6) != 0 {
                facts.push(FactAt { fact, bits: self.bits(n, width) });
            }
        }
        facts
    }

    fn outer(&self, n: &mut Numbers<'_>) -> Outer {
        let packed = matches!(self, Layout::Packed(_));
        match n.next() % 3 {
            0 => Outer::Udp { port: n.wide() | u16::from(packed) },
            1 => Outer::Tcp { port: n.wide() | u16::from(packed) },
            _ if packed => Outer::Ip { protocol: 253 },
            _ => Outer::Ip { protocol: n.next() },
        }
    }

    fn flow(&mut self, n: &mut Numbers<'_>, outer: Outer) -> FlowId {
        let packed = matches!(self, Layout::Packed(_));
        if packed && outer.port().is_some() {
            return FlowId::SourcePort { base: 0x8000, bits: n.next() % 16 };
        }
        match n.next() % 3 {
            0 if !packed => FlowId::SourcePort { base: n.wide(), bits: n.next() },
            1 => FlowId::Header(self.bits(n, 1)),
            _ => FlowId::Nowhere,
        }
    }

    fn travel(&self, n: &mut Numbers<'_>, outer: Outer) -> Travel {
        let mut bits = || Bits { bit: n.wide() % 128, width: n.next() % 40 };
        match self {
            Layout::Packed(_) if !matches!(outer, Outer::Tcp { .. }) => Travel::Every,
            Layout::Packed(_) => STT.travel,
            Layout::Random => match bits().bit % 3 {
                0 => Travel::Every,
                1 => STT.travel,
                _ => {
                    let offset = Bits::new(6, 0, 16);
                    Travel::First(Stream { length: bits(), offset, frame: bits() })
                }
            },
        }
    }

    fn options(&mut self, n: &mut Numbers<'_>) -> Options {
        let mut head = match self {
            Layout::Packed(_) => Layout::Packed(0),
            Layout::Random => Layout::Random,
        };
        let (id, len) = (head.bits(n, 4), head.bits(n, 3));
        let critical = n.maybe(|n| head.bits(n, 1));
        let head_len = match head {
            Layout::Packed(end) => end.div_ceil(8) as u8,
            Layout::Random => n.next() % 12,
        };
        let scale = n.next() % 5;
        let known = (0..n.next() % 4).map(|_| {
            let (fact, width) = FACTS[usize::from(n.next()) % FACTS.len()];
            let mut data = match self {
                Layout::Packed(_) => Layout::Packed(0),
                Layout::Random => Layout::Random,
            };
            let states = FactAt { fact, bits: data.bits(n, width) };
            KnownOption { id: n.next().into(), units: n.next() % 6, states }
        });
        let known: Vec<KnownOption> = known.collect();
        let any_critical = n.maybe(|n| self.bits(n, 1));
        Options { head_len, id, len, scale, critical, any_critical, known: known.into() }
    }
}

/// Facts, and the bits that they need; those of a tag last, in their order.
const FACTS: [(Fact, u8); 9] = [
    (Fact::Mss, 16),
    (Fact::L4Offset, 8),
    (Fact::ChecksumVerified, 1),
    (Fact::ChecksumPartial, 1),
    (Fact::Ipv4, 1),
    (Fact::Tcp, 1),
    (Fact::VlanPresent, 1),
    (Fact::VlanId, 12),
    (Fact::VlanPriority, 3),
];

/// Any descriptor is judged without a panic, and reads any bytes without one; by one that is legal, what is sent is
/// read again as it was meant.
pub(crate) fn descriptors(data: &[u8]) {
    let mut n = Numbers(data);
    let mut layout = if n.next() % 4 == 0 { Layout::Random } else { Layout::Packed(0) };
    let outer = layout.outer(&mut n);
    let identifiers: Vec<Identifier> = (0..n.next() % 4)
        .map(|_| {
            let bits = layout.bits(&mut n, 1);
            Identifier { bits, value: u32::from(n.wide()) & bits.max() }
        })
        .collect();
    let vni = layout.bits(&mut n, 8);
    let flow = layout.flow(&mut n, outer);
    let travel = layout.travel(&mut n, outer);
    let fields: Vec<Field> = (0..n.next() % 10).map(|_| layout.field(&mut n)).collect();
    let facts = layout.facts(&mut n);
    let options = n.maybe(|n| layout.options(n));
    let often = if options.is_some() { 3 } else { 1 };
    let scaled = (n.next() % 4 < often).then(|| (layout.bits(&mut n, 1), n.next() % 9));
    let len = match layout {
        Layout::Packed(end) => end.div_ceil(8) as usize + usize::from(n.next() % 3),
        Layout::Random => usize::from(n.next() % 70),
    };
    let mut template = vec![0; len];
    // What is sent has to have the identifiers, which random bytes would not.
    for identifier in &identifiers {
        identifier.bits.write(&mut template, identifier.value);
    }
    let inner_offset = match scaled {
        Some((bits, scale)) => {
            // Some options may be in the header as it is sent.
            let units = n.next() % 3;
            let base = len.saturating_sub(usize::from(units) * usize::from(scale)) as u8;
            bits.write(&mut template, units.into());
            InnerOffset::Scaled { bits, base, scale }
        }
        None if n.next() % 16 == 15 => InnerOffset::Fixed(n.next()),
        None => InnerOffset::Fixed(len as u8),
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
        options,
    };
    let _ = decap(&format, n.0);
    if format.check().is_ok() {
        for mss_option in [false, true] {
            round_trip(&format, mss_option, &mut n);
        }
    }
}

fn round_trip(format: &FormatDescriptor, mss_option: bool, n: &mut Numbers<'_>) {
    let vni = Vni::new(format.vni.max().min(0x00ab_cdef)).expect("8 bits or more");
    let spec = EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        vlan: None,
        src: [192, 0, 2, 1].into(),
        dst: [192, 0, 2, 2].into(),
        ttl: 64,
        format,
        mss_option,
        vni,
        df: true,
        dscp: DscpMode::Inherit,
    };
    let template = EncapTemplate::new(&spec).expect("a legal format");
    let flags = n.next();
    let is_set = |bit: u8| flags & 1 << bit != 0;
    let facts = Facts {
        mss: n.wide(),
        l4_offset: n.next(),
        checksum_verified: is_set(0),
        checksum_partial: is_set(1),
        ipv4: is_set(2),
        tcp: is_set(3),
        // The bit between priority and id is never stated.
        vlan: is_set(4).then(|| n.wide() & !0x1000),
    };
    let mut frame = OuterFrame::new(eth::HEADER_LEN, 0x1234, 0, 7, OuterChecksum::Partial);
    frame.facts = facts;
    frame.number = 0x0102_0304;
    let mut digests = [0; 2];
    for (index, digest) in digests.iter_mut().enumerate() {
        frame.position = Position { index, last: index == 1, advance: usize::from(n.wide()) };
        let mut out = vec![0; template.len() + eth::HEADER_LEN];
        assert_eq!(template.emit(&mut out, &frame), template.len());
        let pkt = Packet::parse(&out, out.len()).expect("outer headers of ours");
        let message = &out[template.tunnel_offset()..];
        let found = decap(format, message).expect("what was sent is read");
        assert_eq!((found.vni, found.header_len), (vni, message.len() - eth::HEADER_LEN));
        assert_eq!(found.facts, stated(format, mss_option, facts));
        *digest = found.digest;
        if let Some(stream) = format.stream() {
            let part = StreamPart::read(stream, &out, &pkt).expect("a TCP header");
            let frame = frame.number & stream.frame.max();
            assert_eq!((part.frame, part.length), (frame, message.len() as u32));
            assert!(part.is_whole());
        }
        // Damaged or cut it is refused, or nothing is read beyond its end.
        let mut damaged = message.to_vec();
        let at = usize::from(n.next()) % damaged.len();
        damaged[at] ^= n.next();
        damaged.truncate(damaged.len() - usize::from(n.next() % 4));
        if let Ok(found) = decap(format, &damaged) {
            assert!(damaged.len() >= found.header_len + eth::HEADER_LEN);
        }
    }
    assert_eq!(digests[0], digests[1], "segments of one frame look like two");
}

/// What a receiver knows of these facts.
fn stated(format: &FormatDescriptor, mss_option: bool, facts: Facts) -> Facts {
    let says = |fact| format.facts.iter().any(|at| at.fact == fact);
    let option = mss_option && format.mss_option().is_some();
    Facts {
        mss: if says(Fact::Mss) || option { facts.mss } else { 0 },
        l4_offset: if says(Fact::L4Offset) { facts.l4_offset } else { 0 },
        checksum_verified: says(Fact::ChecksumVerified) && facts.checksum_verified,
        checksum_partial: says(Fact::ChecksumPartial) && facts.checksum_partial,
        ipv4: says(Fact::Ipv4) && facts.ipv4,
        tcp: says(Fact::Tcp) && facts.tcp,
        vlan: facts.vlan.filter(|_| says(Fact::VlanPresent)),
    }
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
        grain: 512,
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
