//! Whether a descriptor is legal, alone and beside others; if not, what is wrong, where, and what
//! would be right.

use std::ops::Range;

use super::{
    Bits, Fact, FlowId, FormatDescriptor, InnerOffset, MAX_FIELDS, MAX_HEADER_LEN, Options, Outer,
    Rule, Travel,
};
use crate::proto;
use crate::tcp::HEADER_LEN as TCP_LEN;

/// Most identifiers, facts or known options of a format.
pub const MAX_LIST: usize = 16;

/// Most bytes of a name.
pub const MAX_NAME_LEN: usize = 32;

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
    /// A fact may be stated once.
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

/// A part of the header that has bits of its own.
struct Part {
    what: String,
    range: Range<u32>,
}

impl FormatDescriptor {
    /// All that is wrong with this descriptor, seen alone.
    ///
    /// # Errors
    /// At least one [`FormatFault`].
    pub fn check(&self) -> Result<(), Vec<FormatFault>> {
        let mut faults = Vec::new();
        self.check_frame(&mut faults);
        if self.is_shards() {
            // There is no tunnel header to be checked.
            self.check_travel(&mut faults);
            return if faults.is_empty() { Ok(()) } else { Err(faults) };
        }
        self.check_lists(&mut faults);
        let parts = self.parts(&mut faults);
        overlaps(&parts, &mut faults);
        self.check_template(&mut faults);
        self.check_travel(&mut faults);
        self.check_flow(&mut faults);
        if let Some(options) = &self.options {
            self.check_options(options, &mut faults);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn check_frame(&self, faults: &mut Vec<FormatFault>) {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.name.is_empty() || self.name.len() > MAX_NAME_LEN || !self.name.bytes().all(legal) {
            faults.push(FormatFault::BadName(self.name.to_string()));
        }
        match self.outer {
            Outer::Udp { port: 0 } | Outer::Tcp { port: 0 } => faults.push(FormatFault::PortZero),
            Outer::Ip { protocol } if is_hosts_own(protocol) => {
                faults.push(FormatFault::HostProtocol(protocol));
            }
            _ => {}
        }
        match self.template.len() {
            0 if !self.is_shards() => faults.push(FormatFault::EmptyHeader),
            len if len > MAX_HEADER_LEN => faults.push(FormatFault::HeaderTooLong { len }),
            _ => {}
        }
    }

    fn check_lists(&self, faults: &mut Vec<FormatFault>) {
        if self.identifiers.is_empty() {
            faults.push(FormatFault::NoIdentifier);
        }
        let known = self.options.as_ref().map_or(0, |options| options.known.len());
        for (what, count, max) in [
            ("identifier", self.identifiers.len(), MAX_LIST),
            ("field", self.fields.len(), MAX_FIELDS),
            ("fact", self.facts.len(), MAX_LIST),
            ("options", known, MAX_LIST),
        ] {
            if count > max {
                faults.push(FormatFault::TooMany { what, count, max });
            }
        }
        for (i, at) in self.facts.iter().enumerate() {
            if self.facts.iter().take(i).any(|before| before.fact == at.fact) {
                faults.push(FormatFault::TwiceStated(at.fact));
            }
        }
        let place = |fact| self.facts.iter().position(|at| at.fact == fact);
        let tag = [Fact::VlanPresent, Fact::VlanId, Fact::VlanPriority].map(place);
        let whole = matches!(tag, [Some(here), Some(id), Some(pcp)] if here < id && here < pcp);
        if !whole && tag != [None, None, None] {
            faults.push(FormatFault::HalfATag);
        }
        for field in self.fields.iter() {
            let rule = match field.rule {
                Rule::Checksum => "checksum",
                Rule::OptionalChecksum => "optional-checksum",
                _ => continue,
            };
            faults.push(FormatFault::BadRule { offset: field.offset, rule });
        }
    }

    /// Every part with its bits; those that are out of the header are faults, and left out.
    fn parts(&self, faults: &mut Vec<FormatFault>) -> Vec<Part> {
        let mut parts = Vec::new();
        let len = self.template.len();
        let mut put = |what: String, bits: Bits| {
            if let Some(range) = inside(&what, bits, "header", len, faults) {
                parts.push(Part { what, range });
            }
        };
        for (i, identifier) in self.identifiers.iter().enumerate() {
            put(format!("identifier[{i}]"), identifier.bits);
        }
        put("vni".to_owned(), self.vni);
        if let FlowId::Header(bits) = self.flow {
            put("flow".to_owned(), bits);
        }
        if let InnerOffset::Scaled { bits, .. } = self.inner_offset {
            put("inner".to_owned(), bits);
        }
        for (i, at) in self.facts.iter().enumerate() {
            put(format!("fact[{i}]"), at.bits);
        }
        if let Some(bits) = self.options.as_ref().and_then(|options| options.any_critical) {
            put("options.any-critical".to_owned(), bits);
        }
        for (i, field) in self.fields.iter().enumerate() {
            let what = format!("field[{i}]");
            let (width, legal) = match field.rule {
                Rule::First(_) | Rule::Last(_) => (field.width == 1, "1 byte for flags"),
                Rule::HeaderChecksum => (field.width == 2, "2 bytes for a checksum"),
                _ => (matches!(field.width, 1 | 2 | 4), "1, 2 or 4 bytes"),
            };
            if !width {
                let width = field.width.into();
                faults.push(FormatFault::BadWidth { what, width, legal });
                continue;
            }
            let bits = Bits::new(field.offset, 0, field.width * 8);
            let Some(range) = inside(&what, bits, "header", len, faults) else { continue };
            match field.rule {
                // Flags are single bits of a byte that may have other parts in it.
                Rule::First(mask) | Rule::Last(mask) => {
                    for bit in (0..8u32).filter(|bit| mask & 0x80 >> bit != 0) {
                        let at = range.start + bit;
                        parts.push(Part { what: what.clone(), range: at..at + 1 });
                    }
                }
                _ => parts.push(Part { what, range }),
            }
        }
        parts
    }

    fn check_template(&self, faults: &mut Vec<FormatFault>) {
        for (i, identifier) in self.identifiers.iter().enumerate() {
            let what = format!("identifier[{i}]");
            let value = identifier.value;
            if value > identifier.bits.max() {
                let bits = identifier.bits.to_string();
                faults.push(FormatFault::ValueTooWide { what, value, bits });
                continue;
            }
            if let Some(found) = identifier.bits.read(&self.template)
                && found != value
            {
                faults.push(FormatFault::HeaderContradicts { what, value, found });
            }
        }
        let flow = match self.flow {
            FlowId::Header(bits) => Some(bits),
            _ => None,
        };
        let filled = [("vni", Some(self.vni)), ("flow", flow)];
        let facts = self.facts.iter().map(|at| ("fact", Some(at.bits)));
        for (what, bits) in filled.into_iter().chain(facts) {
            match bits.and_then(|bits| bits.read(&self.template)) {
                None | Some(0) => {}
                Some(found) => {
                    faults.push(FormatFault::NotZero { what: what.to_owned(), found });
                }
            }
        }
        if !(8..=32).contains(&self.vni.width) {
            faults.push(FormatFault::BadWidth {
                what: "vni".to_owned(),
                width: self.vni.width.into(),
                legal: "8 to 32 bits",
            });
        }
        let len = self.template.len();
        let start = match self.inner_offset {
            InnerOffset::Fixed(start) => usize::from(start),
            InnerOffset::Scaled { bits, base, scale } => {
                if scale == 0 {
                    faults.push(FormatFault::ZeroScale("inner"));
                }
                let units = bits.read(&self.template).unwrap_or(0) as usize;
                usize::from(base) + units.saturating_mul(scale.into())
            }
        };
        if start != len {
            faults.push(FormatFault::WrongInnerOffset { len, start });
        }
    }

    fn check_travel(&self, faults: &mut Vec<FormatFault>) {
        let is_tcp = matches!(self.outer, Outer::Tcp { .. });
        let stream = match &self.travel {
            Travel::Every if is_tcp => return faults.push(FormatFault::EveryOverTcp),
            Travel::Every => return,
            Travel::First(_) if !is_tcp => return faults.push(FormatFault::FirstWithoutTcp),
            Travel::First(stream) | Travel::Shares(stream) => stream,
        };
        let mut bad = |what, bits: Bits, legal| {
            faults.push(FormatFault::BadStream { what, bits: bits.to_string(), legal });
        };
        if stream.offset.range() != (48..64) {
            bad(
                "offset",
                stream.offset,
                "has to be byte 6, 16 bits: the low half of the sequence number",
            );
        }
        let numbers = 32..96;
        let is_in = |bits: Bits| {
            let range = bits.range();
            numbers.start <= range.start && range.end <= numbers.end && !range.is_empty()
        };
        let legal = "has to be in bytes 4 to 11, sequence and acknowledgement number";
        for (what, bits) in [("length", stream.length), ("frame", stream.frame)] {
            if !is_in(bits) || bits.width > 32 {
                bad(what, bits, legal);
            }
        }
        if stream.length.width < 16 {
            bad("length", stream.length, "has to be 16 bits wide or more");
        }
        let parts = [("length", stream.length), ("offset", stream.offset), ("frame", stream.frame)];
        let parts = parts.map(|(what, bits)| Part { what: what.to_owned(), range: bits.range() });
        overlaps(&parts, faults);
        debug_assert_eq!(TCP_LEN, 20);
    }

    fn check_flow(&self, faults: &mut Vec<FormatFault>) {
        let has_ports = self.outer.port().is_some();
        match self.flow {
            FlowId::SourcePort { .. } if !has_ports => {
                faults.push(FormatFault::BadFlow(
                    "an IP protocol has no source port; use bits of the header, or \"nowhere\"",
                ));
            }
            FlowId::SourcePort { base, bits } => {
                let low = (1u32 << bits.min(16)) - 1;
                if bits > 15 || u32::from(base) & low != 0 || base == 0 {
                    faults.push(FormatFault::BadFlow(
                        "the low bits of the first source port have to be 0, as many as vary, at most 15",
                    ));
                }
            }
            _ if has_ports => {
                faults
                    .push(FormatFault::BadFlow("has to be in the source port, where there is one"));
            }
            FlowId::Header(_) | FlowId::Nowhere => {}
        }
    }

    fn check_options(&self, options: &Options, faults: &mut Vec<FormatFault>) {
        if !matches!(self.inner_offset, InnerOffset::Scaled { .. }) {
            faults.push(FormatFault::OptionsWithoutLength);
        }
        if options.scale == 0 {
            faults.push(FormatFault::ZeroScale("options"));
        }
        let len = usize::from(options.head_len);
        if !(1..=8).contains(&len) {
            faults.push(FormatFault::BadWidth {
                what: "options.head".to_owned(),
                width: len as u32,
                legal: "1 to 8 bytes",
            });
            return;
        }
        let mut parts = Vec::new();
        for (what, bits) in [("options.id", options.id), ("options.length", options.len)] {
            if let Some(range) = inside(what, bits, "option head", len, faults) {
                parts.push(Part { what: what.to_owned(), range });
            }
        }
        overlaps(&parts, faults);
        if let Some(bits) = options.critical {
            inside("options.critical", bits, "option head", len, faults);
        }
        for (i, known) in options.known.iter().enumerate() {
            let what = format!("options.known[{i}]");
            for (what, value, bits) in [
                (format!("{what}.id"), known.id, options.id),
                (format!("{what}.units"), known.units.into(), options.len),
            ] {
                if value > bits.max() {
                    let bits = bits.to_string();
                    faults.push(FormatFault::ValueTooWide { what, value, bits });
                }
            }
            let data = usize::from(known.units) * usize::from(options.scale);
            inside(&what, known.states.bits, "option's data", data, faults);
        }
        // The longest header that is sent has the option for the MSS.
        if let Some((options, known)) = self.mss_option() {
            let option = len + usize::from(known.units) * usize::from(options.scale);
            let whole = self.template.len() + option;
            if whole > MAX_HEADER_LEN {
                faults.push(FormatFault::HeaderTooLong { len: whole });
            }
        }
    }
}

/// What hosts do themselves: what every stack acts upon, and IPv6 extension headers.
fn is_hosts_own(protocol: u8) -> bool {
    const EXTENSIONS: [u8; 10] = [0, 43, 44, 50, 51, 60, 135, 139, 140, 59];
    const STACK: [u8; 8] = [proto::ICMPV4, 2, 4, proto::TCP, proto::UDP, 41, proto::ICMPV6, 255];
    EXTENSIONS.contains(&protocol) || STACK.contains(&protocol)
}

fn inside(
    what: &str,
    bits: Bits,
    of: &'static str,
    len: usize,
    faults: &mut Vec<FormatFault>,
) -> Option<Range<u32>> {
    let what = what.to_owned();
    if !(1..=32).contains(&bits.width) {
        let (width, legal) = (bits.width.into(), "1 to 32 bits");
        faults.push(FormatFault::BadWidth { what, width, legal });
        return None;
    }
    if bits.end() > len {
        let end = bits.end();
        faults.push(FormatFault::PastHeader { what, bits: bits.to_string(), end, of, len });
        return None;
    }
    Some(bits.range())
}

fn overlaps(parts: &[Part], faults: &mut Vec<FormatFault>) {
    for (i, one) in parts.iter().enumerate() {
        for other in parts.iter().skip(i + 1) {
            let start = one.range.start.max(other.range.start);
            if start < one.range.end.min(other.range.end) {
                faults.push(FormatFault::Overlap {
                    one: one.what.clone(),
                    other: other.what.clone(),
                    byte: start / 8,
                    bit: start % 8,
                });
            }
        }
    }
}

/// The formats that a packet could be of at the same time: every format has to be told from every
/// other by port, protocol or identifier.
///
/// # Errors
/// A [`FormatFault::Ambiguous`] for each pair.
pub fn check_set(formats: &[&FormatDescriptor]) -> Result<(), Vec<FormatFault>> {
    let mut faults = Vec::new();
    for (i, one) in formats.iter().enumerate() {
        for other in formats.iter().skip(i + 1) {
            if one.outer != other.outer || differ(one, other) {
                continue;
            }
            let outer = match one.outer {
                Outer::Udp { port } => format!("both are carried by UDP port {port}"),
                Outer::Tcp { port } => {
                    format!("both are carried by TCP-shaped packets to port {port}")
                }
                Outer::Ip { protocol } => format!("both are IP protocol {protocol}"),
            };
            faults.push(FormatFault::Ambiguous {
                one: one.name.to_string(),
                other: other.name.to_string(),
                outer,
            });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Whether some bit has to be 0 in the one and 1 in the other, in every segment.
fn differ(one: &FormatDescriptor, other: &FormatDescriptor) -> bool {
    if one.numbers().is_some() || other.numbers().is_some() {
        return false;
    }
    let (a, b) = (wanted(one), wanted(other));
    a.iter().zip(&b).any(|((mask, value), (other_mask, other_value))| {
        mask & other_mask & (value ^ other_value) != 0
    })
}

/// For each byte of the header, which bits have to have which value.
fn wanted(format: &FormatDescriptor) -> [(u8, u8); MAX_HEADER_LEN] {
    let (mut mask, mut value) = ([0; MAX_HEADER_LEN], [0; MAX_HEADER_LEN]);
    for identifier in format.identifiers.iter() {
        identifier.bits.write(&mut mask, u32::MAX);
        identifier.bits.write(&mut value, identifier.value);
    }
    let mut both = [(0, 0); MAX_HEADER_LEN];
    for (to, from) in both.iter_mut().zip(mask.into_iter().zip(value)) {
        *to = from;
    }
    both
}

#[cfg(test)]
mod tests {
    use super::super::builtin::BUILT_IN;
    use super::super::{FactAt, Field, GENEVE, Identifier, STT, Stream, VXLAN};
    use super::*;

    fn own() -> FormatDescriptor {
        FormatDescriptor {
            name: "acme".into(),
            outer: Outer::Udp { port: 7000 },
            template: vec![0xac, 0x3e, 1, 0, 0, 0, 0, 0].into(),
            identifiers: vec![Identifier { bits: Bits::new(0, 0, 16), value: 0xac3e }].into(),
            ..VXLAN.clone()
        }
    }

    /// The faults of a descriptor, one per line.
    fn faults(format: &FormatDescriptor) -> String {
        let faults = format.check().expect_err("illegal");
        faults.iter().map(|fault| format!("{fault}\n")).collect()
    }

    #[test]
    fn built_in_formats_are_legal_alone_and_together() {
        for format in BUILT_IN {
            assert_eq!(format.check(), Ok(()), "{}", format.name);
        }
        assert_eq!(check_set(&BUILT_IN), Ok(()));
        assert_eq!(own().check(), Ok(()));
    }

    #[test]
    fn parts_that_overlap_are_both_named() {
        let mut format = own();
        format.vni = Bits::new(1, 4, 24);
        assert!(faults(&format).contains("identifier[0] and vni overlap in bit 4 of byte 1"));
        let mut format = own();
        format.fields = vec![Field::new(6, 2, Rule::Length(0))].into();
        assert_eq!(faults(&format), "vni and field[0] overlap in bit 0 of byte 6\n");
        format.fields =
            vec![Field::new(2, 1, Rule::First(0x80)), Field::new(2, 1, Rule::Last(0xc0))].into();
        assert_eq!(faults(&format), "field[0] and field[1] overlap in bit 0 of byte 2\n");
        format.fields =
            vec![Field::new(2, 1, Rule::First(0x80)), Field::new(2, 1, Rule::Last(0x40))].into();
        assert_eq!(format.check(), Ok(()));
    }

    #[test]
    fn parts_past_the_header_are_named_with_both_ends() {
        let mut format = own();
        format.vni = Bits::new(6, 0, 24);
        assert_eq!(
            faults(&format),
            "vni: byte 6, 24 bits ends at byte 9, past the header of 8 bytes\n"
        );
        let mut format = own();
        format.fields = vec![Field::new(7, 2, Rule::Increment)].into();
        assert!(faults(&format).starts_with("field[0]: byte 7, 16 bits ends at byte 9"));
    }

    #[test]
    fn a_format_without_identifier_is_refused() {
        let mut format = own();
        format.identifiers = vec![].into();
        assert!(faults(&format).starts_with("identifier: none;"));
    }

    #[test]
    fn identifiers_have_to_fit_and_to_be_in_the_header_as_sent() {
        let mut format = own();
        format.identifiers = vec![Identifier { bits: Bits::new(0, 0, 8), value: 0x1ac }].into();
        assert_eq!(faults(&format), "identifier[0]: 0x1ac does not fit byte 0, 8 bits\n");
        format.identifiers = vec![Identifier { bits: Bits::new(2, 0, 8), value: 9 }].into();
        assert_eq!(faults(&format), "identifier[0]: has to be 0x9, but `header` has 0x1 there\n");
    }

    #[test]
    fn lengths_names_and_ports_have_limits() {
        let mut format = own();
        (format.name, format.outer) = ("ACME corp".into(), Outer::Udp { port: 0 });
        let text = faults(&format);
        assert!(text.contains("\"ACME corp\" is no name") && text.contains("port 0"), "{text}");
        let mut format = own();
        format.template = vec![0xac; 80].into();
        assert!(faults(&format).contains("header: 80 bytes; at most 56"));
        let mut format = own();
        format.inner_offset = InnerOffset::Fixed(12);
        assert!(
            faults(&format)
                .contains("`header` has 8 bytes, but the inner frame would start after 12")
        );
        let mut format = own();
        (format.outer, format.flow) = (Outer::Ip { protocol: 6 }, FlowId::Nowhere);
        assert!(faults(&format).contains("protocol 6 belongs to the hosts"));
        format.outer = Outer::Ip { protocol: 253 };
        assert_eq!(format.check(), Ok(()));
        format.vni = Bits::new(4, 0, 4);
        assert!(faults(&format).contains("vni: a width of 4; legal is 8 to 32 bits"));
        format.vni = Bits { bit: 32, width: 0 };
        assert!(faults(&format).contains("vni: a width of 0; legal is 1 to 32 bits"));
    }

    #[test]
    fn the_way_that_the_header_travels_has_to_suit_the_transport() {
        let tcp = FormatDescriptor { outer: Outer::Tcp { port: 7000 }, ..own() };
        assert!(faults(&tcp).contains("travel: \"every\" is not possible"));
        let stream = *STT.stream().unwrap();
        let udp = FormatDescriptor { travel: Travel::First(stream), ..own() };
        assert!(faults(&udp).contains("travel: \"first\" needs TCP-shaped packets"));
        let with = |stream| FormatDescriptor { travel: Travel::First(stream), ..tcp.clone() };
        assert_eq!(with(stream).check(), Ok(()));
        let swapped = Stream { length: stream.offset, offset: stream.length, ..stream };
        assert!(faults(&with(swapped)).contains("the low half of the sequence number"));
        let outside = Stream { frame: Bits::new(14, 0, 16), ..stream };
        assert!(
            faults(&with(outside))
                .contains("frame at byte 14, 16 bits; has to be in bytes 4 to 11")
        );
    }

    #[test]
    fn flows_are_identified_where_the_transport_has_room() {
        let mut format = own();
        format.flow = FlowId::Nowhere;
        assert!(faults(&format).contains("has to be in the source port"));
        format.flow = FlowId::SourcePort { base: 49_153, bits: 14 };
        assert!(faults(&format).contains("the low bits of the first source port"));
        format.outer = Outer::Ip { protocol: 253 };
        assert!(faults(&format).contains("an IP protocol has no source port"));
    }

    #[test]
    fn rules_that_need_the_payload_are_no_rules_of_a_tunnel_header() {
        let mut format = own();
        format.fields = vec![Field::new(2, 2, Rule::Checksum)].into();
        assert!(faults(&format).contains("field at byte 2: checksum is not possible"));
    }

    #[test]
    fn facts_are_stated_once_and_tags_as_a_whole() {
        let mss = FactAt { fact: Fact::Mss, bits: Bits::new(2, 0, 8) };
        let again = FactAt { bits: Bits::new(3, 0, 8), ..mss };
        let mut format = own();
        format.template = vec![0xac, 0x3e, 0, 0, 0, 0, 0, 0].into();
        format.facts = vec![mss, again].into();
        assert_eq!(faults(&format), "fact: Mss twice\n");
        format.facts = vec![FactAt { fact: Fact::VlanId, ..mss }].into();
        assert!(faults(&format).contains("belong together"));
        format.facts = vec![mss].into();
        assert_eq!(format.check(), Ok(()));
    }

    #[test]
    fn options_have_to_be_readable() {
        let mut format = GENEVE.clone();
        format.name = "own".into();
        format.inner_offset = InnerOffset::Fixed(8);
        assert!(faults(&format).contains("no room for any"));
        let mut format = GENEVE.clone();
        let mut options = format.options.clone().unwrap();
        options.len = Bits::new(3, 3, 7);
        options.scale = 0;
        format.options = Some(options);
        let text = faults(&format);
        assert!(text.contains("options: a scale of 0"), "{text}");
        assert!(text.contains("options.length: byte 3 bit 3, 7 bits ends at byte 5"), "{text}");
    }

    #[test]
    fn formats_that_cannot_be_told_apart_are_both_named() {
        // 0xac has VXLAN's flag for a VNI.
        let same_port = FormatDescriptor { outer: VXLAN.outer, ..own() };
        let text = check_set(&[&VXLAN, &same_port]).unwrap_err()[0].to_string();
        assert!(
            text.contains("\"vxlan\"")
                && text.contains("\"acme\"")
                && text.contains("UDP port 4789"),
            "{text}"
        );
        let other = FormatDescriptor {
            template: vec![0x23, 0, 0, 0, 0, 0, 0, 0].into(),
            identifiers: vec![Identifier { bits: Bits::new(0, 0, 8), value: 0x23 }].into(),
            ..same_port
        };
        assert_eq!(check_set(&[&VXLAN, &other, &own()]), Ok(()));
        let stt = FormatDescriptor { name: "other".into(), ..STT.clone() };
        assert!(check_set(&[&STT, &stt]).is_err());
    }
}
