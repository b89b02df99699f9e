//! Tunnel formats of a user's own.
//!
//! A format is described by a TOML table, which is also how the API carries it: a description is data
//! that only the wire crate gives a meaning. What the fields mean, bit by bit, is in
//! `docs/wire-format.md`.

use std::cmp::Ordering;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate};
use culvert_wire::format::{
    Bits, Fact, FactAt, Field, FlowId, FormatDescriptor, FormatFault, Identifier, Inner,
    InnerOffset, KnownOption, Options, Outer, Rule, STT, Stream, Travel, builtin, check_set,
};
use culvert_wire::shard::block::block_len;
use culvert_wire::{MacAddr, Vni, eth};
use serde::Deserialize;

use crate::ids::FormatId;
use crate::objects::Keyed;

/// A tunnel format of a user's own. Built-in formats are no objects: a vnet names them all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// Its name; unique, and none of a built-in format.
    pub id: FormatId,
    /// What its packets are.
    pub descriptor: FormatDescriptor,
}

impl Format {
    /// What keeps packets of this format from being told from those of others, built-in formats and these; with the
    /// name of the other.
    pub fn clashes<'a>(
        &self,
        others: impl Iterator<Item = &'a Format>,
    ) -> Vec<(String, FormatFault)> {
        let others = others.map(|other| &other.descriptor);
        let all = builtin::BUILT_IN.into_iter().chain(others);
        all.filter_map(|other| Some((other, check_set(&[&self.descriptor, other]).err()?)))
            .flat_map(|(other, faults)| {
                faults.into_iter().map(|fault| (other.name.to_string(), fault))
            })
            .collect()
    }
}

impl Keyed for Format {
    type Key = FormatId;

    fn key(&self) -> FormatId {
        self.id.clone()
    }

    fn compare(&self, key: &FormatId) -> Ordering {
        self.id.cmp(key)
    }
}

/// Names of the formats that need no description.
pub fn built_in_names<'a>() -> impl Iterator<Item = &'a str> {
    builtin::BUILT_IN.into_iter().map(|format| &*format.name)
}

/// Bytes that a format takes of the underlay's MTU: from the outer IP header up to the IP header of a tenant's packet that
/// is not cut. `own` are the formats beside the built-in ones; `keyed`: blocks of the shard format have a MAC. None for
/// a name that no format has.
pub fn outer_overhead<'a>(
    id: &FormatId,
    own: impl IntoIterator<Item = &'a Format>,
    ipv6: bool,
    keyed: bool,
) -> Option<u16> {
    let built_in = builtin::by_name(id.as_str());
    let mut own = own.into_iter();
    let descriptor = built_in.or_else(|| Some(&own.find(|format| format.id == *id)?.descriptor))?;
    let address = if ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let spec = EncapSpec {
        src_mac: MacAddr::default(),
        dst_mac: MacAddr::default(),
        vlan: None,
        src: address,
        dst: address,
        ttl: 64,
        format: descriptor,
        mss_option: false,
        vni: Vni::MIN,
        df: true,
        dscp: DscpMode::Inherit,
    };
    let outer = EncapTemplate::new(&spec).ok()?.overhead_l3();
    let block = if descriptor.is_shards() { block_len(0, keyed) } else { 0 };
    u16::try_from(outer + block + eth::HEADER_LEN).ok()
}

/// Why a description makes no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// Correct the text where it says so. The place is the byte where the fault is found, if it is known.
    #[error("{message}")]
    Text {
        /// The byte.
        at: Option<usize>,
        /// What is wrong, and what is legal.
        message: String,
    },
    /// Correct the format.
    #[error("{0}")]
    Fault(#[from] FormatFault),
}

impl DescriptionError {
    /// The field of the description that it is about; empty for the description as a whole.
    pub fn field(&self) -> &'static str {
        let text = self.to_string();
        let fields = ["outer", "header", "identifier", "vni", "flow", "inner", "field", "fact"];
        let mut fields = fields.into_iter().chain(["options", "travel"]);
        fields.find(|field| text.starts_with(field)).unwrap_or("")
    }
}

/// Reads a description: the TOML text of one table.
///
/// # Errors
/// Every fault of a description that can be read; else the first that cannot.
pub fn read(text: &str) -> Result<Format, Vec<DescriptionError>> {
    let table: Table = toml::from_str(text).map_err(|error| {
        let at = error.span().map(|span| span.start);
        let message = error.message().trim().replace('\n', "; ");
        vec![DescriptionError::Text { at, message }]
    })?;
    let format = Format::try_from(table).map_err(|error| vec![error])?;
    let mut faults = format.descriptor.check().err().unwrap_or_default();
    if builtin::by_name(format.id.as_str()).is_some() {
        faults.insert(0, FormatFault::ReservedName(format.id.to_string()));
    }
    if faults.is_empty() {
        return Ok(format);
    }
    Err(faults.into_iter().map(DescriptionError::from).collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    id: String,
    outer: OuterTable,
    header: String,
    identifier: Vec<IdentifierTable>,
    vni: BitsTable,
    #[serde(default)]
    flow: Option<FlowTable>,
    #[serde(default)]
    inner: Option<InnerTable>,
    #[serde(default)]
    field: Vec<FieldTable>,
    #[serde(default)]
    travel: Option<TravelWord>,
    #[serde(default)]
    stream: Option<StreamTable>,
    #[serde(default)]
    fact: Vec<FactTable>,
    #[serde(default)]
    options: Option<OptionsTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OuterTable {
    udp: Option<u16>,
    tcp: Option<u16>,
    protocol: Option<u8>,
}

#[derive(Copy, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct BitsTable {
    offset: u8,
    #[serde(default)]
    bit: u8,
    width: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentifierTable {
    offset: u8,
    #[serde(default)]
    bit: u8,
    width: u8,
    value: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FlowTable {
    Word(String),
    Bits(BitsTable),
    Ports { first_port: u16, bits: u8 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InnerTable {
    offset: u8,
    #[serde(default)]
    bit: u8,
    width: u8,
    base: u8,
    scale: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldTable {
    offset: u8,
    width: u8,
    rule: RuleWord,
    less: Option<u8>,
    bits: Option<u8>,
}

#[derive(Copy, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RuleWord {
    Length,
    Increment,
    Advance,
    First,
    Last,
    HeaderChecksum,
}

#[derive(Copy, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TravelWord {
    Every,
    First,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamTable {
    length: BitsTable,
    offset: BitsTable,
    frame: BitsTable,
}

#[derive(Copy, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FactWord {
    Mss,
    L4Offset,
    ChecksumVerified,
    ChecksumPartial,
    Ipv4,
    Tcp,
    VlanPresent,
    VlanId,
    VlanPriority,
}

const FACTS: [(FactWord, Fact, &str); 9] = [
    (FactWord::Mss, Fact::Mss, "mss"),
    (FactWord::L4Offset, Fact::L4Offset, "l4-offset"),
    (FactWord::ChecksumVerified, Fact::ChecksumVerified, "checksum-verified"),
    (FactWord::ChecksumPartial, Fact::ChecksumPartial, "checksum-partial"),
    (FactWord::Ipv4, Fact::Ipv4, "ipv4"),
    (FactWord::Tcp, Fact::Tcp, "tcp"),
    (FactWord::VlanPresent, Fact::VlanPresent, "vlan-present"),
    (FactWord::VlanId, Fact::VlanId, "vlan-id"),
    (FactWord::VlanPriority, Fact::VlanPriority, "vlan-priority"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FactTable {
    says: FactWord,
    offset: u8,
    #[serde(default)]
    bit: u8,
    width: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OptionsTable {
    head: u8,
    id: BitsTable,
    length: BitsTable,
    scale: u8,
    critical: Option<BitsTable>,
    any_critical: Option<BitsTable>,
    #[serde(default)]
    known: Vec<KnownTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownTable {
    id: u32,
    units: u8,
    says: FactWord,
    offset: u8,
    #[serde(default)]
    bit: u8,
    width: u8,
}

fn text(message: impl Into<String>) -> DescriptionError {
    DescriptionError::Text { at: None, message: message.into() }
}

fn bits(what: &str, table: BitsTable) -> Result<Bits, DescriptionError> {
    if table.bit > 7 {
        let bit = table.bit;
        return Err(text(format!("{what}: bit {bit} of a byte; legal is 0, the highest, to 7")));
    }
    Ok(Bits::new(table.offset, table.bit, table.width))
}

fn fact(word: FactWord) -> Fact {
    let found = FACTS.iter().find(|(known, ..)| *known as u8 == word as u8);
    found.map_or(Fact::Mss, |(_, fact, _)| *fact)
}

fn header(digits: &str) -> Result<Vec<u8>, DescriptionError> {
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
    if let Some(wrong) = digits.iter().find(|c| !c.is_ascii_hexdigit()) {
        return Err(text(format!("header: {wrong:?} is no hexadecimal digit")));
    }
    if !digits.len().is_multiple_of(2) {
        let count = digits.len();
        return Err(text(format!("header: {count} digits; legal are two for each byte")));
    }
    let digit = |c: &char| c.to_digit(16).unwrap_or(0) as u8;
    Ok(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, c| byte << 4 | digit(c))).collect())
}

fn outer(table: &OuterTable) -> Result<Outer, DescriptionError> {
    match (table.udp, table.tcp, table.protocol) {
        (Some(port), None, None) => Ok(Outer::Udp { port }),
        (None, Some(port), None) => Ok(Outer::Tcp { port }),
        (None, None, Some(protocol)) => Ok(Outer::Ip { protocol }),
        _ => Err(text(
            "outer: legal is one of { udp = PORT }, { tcp = PORT } and { protocol = NUMBER }",
        )),
    }
}

/// The dynamic ports (RFC 6335): what VXLAN, Geneve and STT use.
const DYNAMIC: FlowId = FlowId::SourcePort { base: 49_152, bits: 14 };

fn flow(table: Option<FlowTable>, outer: Outer) -> Result<FlowId, DescriptionError> {
    match table {
        None if outer.port().is_some() => Ok(DYNAMIC),
        None => Ok(FlowId::Nowhere),
        Some(FlowTable::Word(word)) => match word.as_str() {
            "source-port" => Ok(DYNAMIC),
            "nowhere" => Ok(FlowId::Nowhere),
            other => Err(text(format!(
                "flow: {other:?}: unknown; legal is \"source-port\", \"nowhere\", bits of the header, or {{ first_port, bits }}"
            ))),
        },
        Some(FlowTable::Bits(table)) => Ok(FlowId::Header(bits("flow", table)?)),
        Some(FlowTable::Ports { first_port, bits }) => {
            Ok(FlowId::SourcePort { base: first_port, bits })
        }
    }
}

fn field(n: usize, table: &FieldTable) -> Result<Field, DescriptionError> {
    let what = format!("field[{n}]");
    let rule = match (table.rule, table.less, table.bits) {
        (RuleWord::Length, less, None) => Rule::Length(less.unwrap_or(0)),
        (RuleWord::Increment, None, None) => Rule::Increment,
        (RuleWord::Advance, None, None) => Rule::Advance,
        (RuleWord::HeaderChecksum, None, None) => Rule::HeaderChecksum,
        (RuleWord::First, None, Some(bits)) => Rule::First(bits),
        (RuleWord::Last, None, Some(bits)) => Rule::Last(bits),
        (RuleWord::First | RuleWord::Last, ..) => {
            return Err(text(format!(
                "{what}: `bits`, a mask of the byte, has to be there, and nothing else"
            )));
        }
        _ => {
            return Err(text(format!(
                "{what}: `less` goes with \"length\", `bits` with \"first\" and \"last\""
            )));
        }
    };
    Ok(Field::new(table.offset, table.width, rule))
}

fn options(table: &OptionsTable) -> Result<Options, DescriptionError> {
    let at = |what, table: Option<BitsTable>| table.map(|table| bits(what, table)).transpose();
    let known = table.known.iter().map(|known| {
        let at = BitsTable { offset: known.offset, bit: known.bit, width: known.width };
        let states = FactAt { fact: fact(known.says), bits: bits("options.known", at)? };
        Ok(KnownOption { id: known.id, units: known.units, states })
    });
    Ok(Options {
        head_len: table.head,
        id: bits("options.id", table.id)?,
        len: bits("options.length", table.length)?,
        scale: table.scale,
        critical: at("options.critical", table.critical)?,
        any_critical: at("options.any-critical", table.any_critical)?,
        known: known.collect::<Result<Vec<_>, DescriptionError>>()?.into(),
    })
}

impl TryFrom<Table> for Format {
    type Error = DescriptionError;

    fn try_from(table: Table) -> Result<Format, DescriptionError> {
        let id = FormatId::new(&table.id).map_err(|fault| text(format!("id: {fault}")))?;
        let outer = outer(&table.outer)?;
        let template = header(&table.header)?;
        let identifiers = table.identifier.iter().enumerate().map(|(n, one)| {
            let at = BitsTable { offset: one.offset, bit: one.bit, width: one.width };
            Ok(Identifier { bits: bits(&format!("identifier[{n}]"), at)?, value: one.value })
        });
        let inner_offset = match table.inner {
            None => InnerOffset::Fixed(u8::try_from(template.len()).unwrap_or(u8::MAX)),
            Some(inner) => InnerOffset::Scaled {
                bits: bits(
                    "inner",
                    BitsTable { offset: inner.offset, bit: inner.bit, width: inner.width },
                )?,
                base: inner.base,
                scale: inner.scale,
            },
        };
        let facts = table.fact.iter().enumerate().map(|(n, one)| {
            let at = BitsTable { offset: one.offset, bit: one.bit, width: one.width };
            Ok(FactAt { fact: fact(one.says), bits: bits(&format!("fact[{n}]"), at)? })
        });
        let travel = match (table.travel.unwrap_or(TravelWord::Every), table.stream) {
            (TravelWord::Every, None) => Travel::Every,
            (TravelWord::Every, Some(_)) => {
                return Err(text("travel: a stream is for \"first\" only"));
            }
            (TravelWord::First, None) => STT.travel,
            (TravelWord::First, Some(stream)) => Travel::First(Stream {
                length: bits("travel.length", stream.length)?,
                offset: bits("travel.offset", stream.offset)?,
                frame: bits("travel.frame", stream.frame)?,
            }),
        };
        let fields = table.field.iter().enumerate().map(|(n, one)| field(n, one));
        let descriptor = FormatDescriptor {
            name: id.to_string().into(),
            outer,
            identifiers: identifiers.collect::<Result<Vec<_>, DescriptionError>>()?.into(),
            vni: bits("vni", table.vni)?,
            flow: flow(table.flow, outer)?,
            inner_offset,
            inner: Inner::Ethernet,
            fields: fields.collect::<Result<Vec<_>, _>>()?.into(),
            travel,
            facts: facts.collect::<Result<Vec<_>, DescriptionError>>()?.into(),
            options: table.options.as_ref().map(options).transpose()?,
            template: template.into(),
        };
        Ok(Format { id, descriptor })
    }
}

/// The description of a format: a TOML table, one line a field, that reads as this format.
pub fn to_toml(format: &Format) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_fields(&mut out, format);
    out
}

fn at(bits: Bits) -> String {
    let (offset, bit) = (bits.bit / 8, bits.bit % 8);
    match bit {
        0 => format!("offset = {offset}, width = {}", bits.width),
        bit => format!("offset = {offset}, bit = {bit}, width = {}", bits.width),
    }
}

fn word(fact: Fact) -> &'static str {
    FACTS.iter().find(|(_, known, _)| *known == fact).map_or("mss", |(.., word)| word)
}

fn write_fields(out: &mut String, format: &Format) -> std::fmt::Result {
    let descriptor = &format.descriptor;
    writeln!(out, "id = \"{}\"", format.id)?;
    match descriptor.outer {
        Outer::Udp { port } => writeln!(out, "outer = {{ udp = {port} }}")?,
        Outer::Tcp { port } => writeln!(out, "outer = {{ tcp = {port} }}")?,
        Outer::Ip { protocol } => writeln!(out, "outer = {{ protocol = {protocol} }}")?,
    }
    let header: Vec<String> =
        descriptor.template.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(out, "header = \"{}\"", header.join(" "))?;
    let identifiers = descriptor.identifiers.iter();
    let identifiers =
        identifiers.map(|id| format!("{{ {}, value = {:#x} }}", at(id.bits), id.value));
    list(out, "identifier", identifiers)?;
    writeln!(out, "vni = {{ {} }}", at(descriptor.vni))?;
    match descriptor.flow {
        DYNAMIC => writeln!(out, "flow = \"source-port\"")?,
        FlowId::SourcePort { base, bits } => {
            writeln!(out, "flow = {{ first_port = {base}, bits = {bits} }}")?;
        }
        FlowId::Header(bits) => writeln!(out, "flow = {{ {} }}", at(bits))?,
        FlowId::Nowhere => writeln!(out, "flow = \"nowhere\"")?,
    }
    if let InnerOffset::Scaled { bits, base, scale } = descriptor.inner_offset {
        writeln!(out, "inner = {{ {}, base = {base}, scale = {scale} }}", at(bits))?;
    }
    let fields = descriptor.fields.iter().map(|field| {
        let rule = match field.rule {
            Rule::Length(0) => "rule = \"length\"".to_owned(),
            Rule::Length(less) => format!("rule = \"length\", less = {less}"),
            Rule::Increment => "rule = \"increment\"".to_owned(),
            Rule::Advance => "rule = \"advance\"".to_owned(),
            Rule::First(bits) => format!("rule = \"first\", bits = {bits:#04x}"),
            Rule::Last(bits) => format!("rule = \"last\", bits = {bits:#04x}"),
            Rule::HeaderChecksum | Rule::Checksum | Rule::OptionalChecksum => {
                "rule = \"header-checksum\"".to_owned()
            }
        };
        format!("{{ offset = {}, width = {}, {rule} }}", field.offset, field.width)
    });
    list(out, "field", fields)?;
    if let Travel::First(stream) = descriptor.travel {
        writeln!(out, "travel = \"first\"")?;
        let Stream { length, offset, frame } = stream;
        writeln!(
            out,
            "stream = {{ length = {{ {} }}, offset = {{ {} }}, frame = {{ {} }} }}",
            at(length),
            at(offset),
            at(frame)
        )?;
    }
    let facts = descriptor.facts.iter();
    let facts = facts.map(|one| format!("{{ says = \"{}\", {} }}", word(one.fact), at(one.bits)));
    list(out, "fact", facts)?;
    let Some(options) = &descriptor.options else { return Ok(()) };
    let known: Vec<String> = options
        .known
        .iter()
        .map(|known| {
            let (says, at) = (word(known.states.fact), at(known.states.bits));
            let (id, units) = (known.id, known.units);
            format!("{{ id = {id:#x}, units = {units}, says = \"{says}\", {at} }}")
        })
        .collect();
    let optional = |name: &str, bits: Option<Bits>| {
        bits.map_or_else(String::new, |bits| format!(", {name} = {{ {} }}", at(bits)))
    };
    writeln!(
        out,
        "options = {{ head = {}, id = {{ {} }}, length = {{ {} }}, scale = {}{}{}, known = [{}] }}",
        options.head_len,
        at(options.id),
        at(options.len),
        options.scale,
        optional("critical", options.critical),
        optional("any-critical", options.any_critical),
        known.join(", ")
    )
}

fn list(out: &mut String, name: &str, items: impl Iterator<Item = String>) -> std::fmt::Result {
    let items: Vec<String> = items.collect();
    if items.is_empty() { Ok(()) } else { writeln!(out, "{name} = [{}]", items.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACME: &str = r#"
        id = "acme"
        outer = { udp = 7000 }
        header = "ac81 0000 0000 0000 0000 0000"
        identifier = [{ offset = 0, width = 8, value = 0xac }]
        vni = { offset = 8, width = 24 }
        field = [
            { offset = 1, width = 1, rule = "first", bits = 0x80 },
            { offset = 2, width = 2, rule = "length", less = 12 },
            { offset = 4, width = 2, rule = "header-checksum" },
        ]
    "#;

    fn faults(text: &str) -> Vec<(&'static str, String)> {
        let errors = read(text).expect_err("illegal");
        errors.iter().map(|error| (error.field(), error.to_string())).collect()
    }

    #[test]
    fn a_description_is_read_and_written_to_the_same_format() {
        let format = read(ACME).unwrap();
        assert_eq!(format.descriptor.outer, Outer::Udp { port: 7000 });
        assert_eq!(format.descriptor.inner_offset, InnerOffset::Fixed(12));
        assert_eq!(read(&to_toml(&format)), Ok(format));
    }

    #[test]
    fn every_built_in_format_can_be_described() {
        // The shard format is code.
        for built_in in builtin::BUILT_IN.into_iter().filter(|format| !format.is_shards()) {
            let id = FormatId::new(&format!("my-{}", built_in.name)).unwrap();
            let descriptor = FormatDescriptor { name: id.to_string().into(), ..built_in.clone() };
            let format = Format { id, descriptor };
            assert_eq!(read(&to_toml(&format)), Ok(format.clone()), "{}", to_toml(&format));
        }
    }

    #[test]
    fn faults_name_their_field() {
        for (from, to, field, message) in [
            ("offset = 8, width = 24", "offset = 1, width = 24", "vni", "vni and field[0] overlap"),
            (
                "offset = 8, width = 24",
                "offset = 10, width = 24",
                "vni",
                "past the header of 12 bytes",
            ),
            ("{ udp = 7000 }", "{ udp = 7000, tcp = 1 }", "outer", "legal is one of"),
            ("{ udp = 7000 }", "{ tcp = 7000 }", "travel", "not possible in TCP-shaped packets"),
            ("ac81", "acx1", "header", "'x' is no hexadecimal digit"),
            ("ac81", "ac8", "header", "23 digits"),
            ("value = 0xac", "value = 0xad", "identifier", "has to be 0xad"),
            ("bits = 0x80", "less = 1", "field", "`bits`, a mask of the byte"),
            ("\"acme\"", "\"geneve\"", "", "is a built-in format"),
        ] {
            let found = faults(&ACME.replace(from, to));
            assert_eq!(found[0].0, field, "{found:?}");
            assert!(found[0].1.contains(message), "{found:?}");
        }
    }

    #[test]
    fn unknown_fields_and_words_are_named_with_their_place() {
        let errors = read(&ACME.replace("vni =", "vini =")).unwrap_err();
        let DescriptionError::Text { at: Some(at), message } = &errors[0] else {
            panic!("{errors:?}");
        };
        assert!(message.contains("unknown field `vini`"), "{message}");
        assert!(ACME.replace("vni =", "vini =")[*at..].starts_with("vini"));
        let found = faults(&ACME.replace("\"first\"", "\"frist\""));
        assert!(found[0].1.contains("unknown variant `frist`"), "{found:?}");
        assert!(faults("id = \"a\"")[0].1.contains("missing field"), "a description of nothing");
    }
}
