//! Whether a descriptor is legal, alone and beside others; if not, what is wrong, where, and what
//! would be right.

mod faults;
mod sent;
mod set;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::{
    Bits, Fact, FlowId, FormatDescriptor, InnerOffset, MAX_FIELDS, MAX_HEADER_LEN, Options, Outer,
    Rule, Travel,
};
use crate::proto;
use crate::tcp::HEADER_LEN as TCP_LEN;

pub use faults::FormatFault;
pub use set::check_set;

/// Most identifiers, facts or known options of a format.
pub const MAX_LIST: usize = 16;

/// Most bytes of a name.
pub const MAX_NAME_LEN: usize = 32;

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
        if faults.is_empty() {
            self.check_sent(&mut faults);
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
        let in_options = self.options.iter().flat_map(|options| options.known.iter());
        let stated = self.facts.iter().chain(in_options.map(|known| &known.states));
        let stated: Vec<Fact> = stated.map(|at| at.fact).collect();
        for (i, fact) in stated.iter().enumerate() {
            if stated.iter().take(i).any(|before| before == fact) {
                faults.push(FormatFault::TwiceStated(*fact));
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
        let mut put = |what: String, bits: Bits| {
            if let Some(range) = self.inside_header(&what, bits, faults) {
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
            let Some(range) = self.inside_header(&what, bits, faults) else { continue };
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

    /// Inside the fixed part of the header, where options follow.
    fn inside_header(
        &self,
        what: &str,
        bits: Bits,
        faults: &mut Vec<FormatFault>,
    ) -> Option<Range<u32>> {
        let range = inside(what, bits, "header", self.template.len(), faults)?;
        if let (Some(_), InnerOffset::Scaled { base, .. }) = (&self.options, self.inner_offset)
            && bits.end() > usize::from(base)
        {
            let (what, end, base) = (what.to_owned(), bits.end(), base.into());
            faults.push(FormatFault::InOptions { what, bits: bits.to_string(), end, base });
            return None;
        }
        Some(range)
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
            if let Some(one) = options.known.iter().take(i).position(|one| one.id == known.id) {
                faults.push(FormatFault::SameOption { one, other: i, id: known.id });
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
