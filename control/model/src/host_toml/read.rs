//! From the file to the messages of the API, and by these to a [`Host`].

use std::collections::HashSet;

use toml::de::{DeString, DeTable, DeValue};

use super::fields::{Fields, Found, Value};
use super::locate::{Lines, Position, offset};
use super::read_policy::{acl, dhcp, meter};
use super::{TomlError, TomlErrors, TomlFault};
use crate::api::{self, egress_route, port};
use crate::fault::{Fault, ModelError, Place, Section};
use crate::host::Host;
use crate::limits::{HOST_TOML_BYTES_MAX, MERGE_HOLD_MAX_US};
use crate::port::PortState;
use crate::rules::IngressAction;
use crate::shard::ShardSettings;
use crate::underlay::{ModePreference, UnderlayRx, UnderlayTx};
use crate::vnet::Miss;

const VNI: &str = "a number, 1 to 16777215";
const MTU: &str = "a number, 576 to 65535";
const HOLD: &str = "a number, 0 to 1000";
const ROUTE_TO: &str = "{ vnet = \"id\" }, \"local\", \"trap\" or \"drop\"";
const ATTACH: &str = "{ xdp = \"interface\" } or { tap = \"interface\" }";
const GATEWAY: &str = "a list of { ip = \"10.0.0.1/24\", mac = \"02:00:00:00:00:01\" }";
const PEER: &str = "a list of { vtep = \"198.51.100.7\", format = \"geneve\" }";
const KEYS: &str = "{ 1 = \"32 hexadecimal digits\" }";
const SHARD: &str = "{ k = 4, n = 8, hold_ms = 50 }";
const SHARD_FIELDS: &[(&str, &str)] = &[
    ("k", "shard.k"),
    ("n", "shard.n"),
    ("hold_ms", "shard.hold_ms"),
    ("frames", "shard.frames"),
    ("peer_frames", "shard.peer_frames"),
    ("kib", "shard.kib"),
    ("peer_kib", "shard.peer_kib"),
    ("repair_ms", "shard.repair_ms"),
];
const SECTIONS: [Section; 8] = [
    Section::Underlay,
    Section::Vnet,
    Section::Port,
    Section::Route,
    Section::Mapping,
    Section::Ingress,
    Section::Acl,
    Section::Format,
];

/// Reads and checks the text of a `host.toml`.
///
/// # Errors
/// Every fault, in the order of the file. Where the text is not TOML, only that.
pub fn read(text: &str) -> Result<Host, TomlErrors> {
    if text.len() > HOST_TOML_BYTES_MAX {
        let fault = TomlFault::TooLarge { bytes: text.len() };
        return Err(TomlErrors(vec![TomlError {
            position: Position { line: 1, column: 1 },
            fault,
        }]));
    }
    let lines = Lines::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let errors = syntax.into_iter().map(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let message = error.message().replace('\n', "; ");
            TomlError { position: lines.position(offset), fault: TomlFault::Syntax(message) }
        });
        return Err(in_order(errors.collect()));
    }
    let document = document.get_ref();

    let mut errors = unknown_sections(document, &lines);
    let mut found = Vec::new();
    let state = state(document, &mut found);
    let refused = match Host::try_from(state) {
        Ok(host) if found.is_empty() && errors.is_empty() => return Ok(host),
        Ok(_) => Vec::new(),
        Err(refused) => refused,
    };
    // A value that could not be read is absent from the state; that is not a second fault.
    let reported: HashSet<_> = found.iter().map(|found| subject(&found.error.place)).collect();
    let refused = refused.into_iter().filter(|error| !reported.contains(&subject(&error.place)));
    let refused: Vec<_> = refused
        .map(|error| {
            let Place { section, index, field, element, .. } = &error.place;
            Found { offset: offset(document, section.name(), *index, field, *element), error }
        })
        .collect();
    errors.extend(found.into_iter().chain(refused).map(|Found { offset, error }| TomlError {
        position: lines.position(offset),
        fault: TomlFault::Model(error),
    }));
    Err(in_order(errors))
}

/// What a fault is about, without the name of the object and with one name for each field.
fn subject(place: &Place) -> (Section, Option<usize>, &'static str, Option<usize>) {
    let field = if place.field == "interface" { "interfaces" } else { place.field };
    (place.section, place.index, field, place.element)
}

fn in_order(mut errors: Vec<TomlError>) -> TomlErrors {
    errors.sort_by_key(|error| error.position);
    TomlErrors(errors)
}

fn unknown_sections(document: &DeTable<'_>, lines: &Lines<'_>) -> Vec<TomlError> {
    let known = |name: &str| SECTIONS.iter().any(|section| section.name() == name);
    let unknown = document.keys().filter(|key| !known(key.get_ref()));
    let error = |key: &toml::Spanned<DeString<'_>>| TomlError {
        position: lines.position(key.span().start),
        fault: TomlFault::UnknownSection { name: key.get_ref().to_string() },
    };
    unknown.map(error).collect()
}

fn state(document: &DeTable<'_>, found: &mut Vec<Found>) -> api::State {
    let place = Place::section(Section::Underlay, "");
    let underlay = document.get(Section::Underlay.name());
    api::State {
        underlay: underlay
            .and_then(|value| Fields::of(value, place, "one table: [underlay]", found))
            .map(underlay_fields),
        vnets: objects(document, Section::Vnet, found, vnet),
        ports: objects(document, Section::Port, found, port),
        routes: objects(document, Section::Route, found, route),
        mappings: objects(document, Section::Mapping, found, mapping),
        ingress: objects(document, Section::Ingress, found, ingress),
        acls: objects(document, Section::Acl, found, acl),
        formats: objects(document, Section::Format, found, format),
    }
}

/// The objects of a section; one that is no table stays as an empty one, for the sake of positions.
fn objects<'v, 'i, M: Default>(
    document: &'v DeTable<'i>,
    section: Section,
    found: &mut Vec<Found>,
    read: impl Fn(Fields<'v, 'i, '_>) -> M,
) -> Vec<M> {
    let Some(value) = document.get(section.name()) else { return Vec::new() };
    let Some(items) = value.get_ref().as_array() else {
        let fault = Fault::WrongType {
            found: value.get_ref().type_str(),
            legal: "a list of tables, each under its own [[...]]",
        };
        let error = ModelError::new(Place::section(section, ""), fault);
        found.push(Found { offset: value.span().start, error });
        return Vec::new();
    };
    let object = |(index, item): (usize, &'v Value<'i>)| {
        let place = Place::object(section, index, "");
        Fields::of(item, place, "a table", found).map(&read).unwrap_or_default()
    };
    items.iter().enumerate().map(object).collect()
}

fn underlay_fields(mut fields: Fields<'_, '_, '_>) -> api::Underlay {
    fields.exclusive("interface", "interfaces");
    let single = fields.optional_text("interface", "an interface name");
    let mut interfaces = fields.texts("interfaces", "a list of interface names");
    interfaces.extend(single);
    let underlay = api::Underlay {
        interfaces,
        addresses: fields.texts("addresses", "a list of IP addresses"),
        mtu: mtu(&mut fields),
        mode: mode(&mut fields),
        rx: match fields.word("rx") {
            UnderlayRx::Xdp => api::UnderlayRx::Unspecified,
            UnderlayRx::Packet => api::UnderlayRx::Packet,
        }
        .into(),
        tx: match fields.word("tx") {
            UnderlayTx::Auto => api::UnderlayTx::Unspecified,
            UnderlayTx::Xdp => api::UnderlayTx::Xdp,
            UnderlayTx::Packet => api::UnderlayTx::Packet,
        }
        .into(),
        merge_hold_us: fields.number("merge_hold_us", HOLD, hold_fault).unwrap_or_default(),
        peers: fields.tables("peer", PEER, peer),
        shard: shard(&mut fields),
    };
    fields.finish();
    underlay
}

fn peer(fields: Fields<'_, '_, '_>) -> api::Peer {
    let mut fields = fields.within(&[
        ("vtep", "peer.vtep"),
        ("format", "peer.format"),
        ("keys", "peer.keys"),
        ("send_key", "peer.send_key"),
        ("raise_mss", "peer.raise_mss"),
    ]);
    let peer = api::Peer {
        vtep: fields.text("vtep", "a string"),
        format: fields.text("format", "a string"),
        keys: keys(&mut fields),
        send_key: fields.number("send_key", "the number of a key", key_number),
        raise_mss: fields.flag("raise_mss"),
    };
    fields.finish();
    peer
}

fn key_number(value: i64) -> Fault {
    Fault::BadNumber { value, min: 0, max: 7 }
}

fn keys(fields: &mut Fields<'_, '_, '_>) -> Vec<api::ShardKey> {
    let Some(value) = fields.value("keys") else { return Vec::new() };
    let place = fields.place("keys");
    let Some(table) = value.get_ref().as_table() else {
        let fault = Fault::WrongType { found: value.get_ref().type_str(), legal: KEYS };
        fields.fault(value.span().start, place, fault);
        return Vec::new();
    };
    let mut keys = Vec::with_capacity(table.len());
    for (name, value) in table {
        let id = name.get_ref().parse::<u32>().map_err(|_| Fault::BadWord {
            value: name.get_ref().to_string(),
            legal: "the number of a key, 0 to 7".to_owned(),
        });
        let secret = value.get_ref().as_str().ok_or(Fault::BadKeyText);
        match (id, secret) {
            (Ok(id), Ok(secret)) => keys.push(api::ShardKey { id, secret: secret.to_owned() }),
            (Err(fault), _) => fields.fault(name.span().start, place.clone(), fault),
            (_, Err(fault)) => fields.fault(value.span().start, place.clone(), fault),
        }
    }
    keys
}

fn shard(fields: &mut Fields<'_, '_, '_>) -> Option<api::ShardSettings> {
    let value = fields.value("shard")?;
    let place = fields.place("shard");
    let mut inner = Fields::of(value, place, SHARD, fields.found)?.within(SHARD_FIELDS);
    let mut number = |field, (min, max): (u32, u32)| {
        let (min, max) = (min.into(), max.into());
        inner.number(field, "a number", |value| Fault::BadNumber { value, min, max })
    };
    let settings = api::ShardSettings {
        k: number("k", (1, 8)),
        n: number("n", (1, 16)),
        hold_ms: number("hold_ms", ShardSettings::HOLD_MS),
        frames: number("frames", ShardSettings::FRAMES),
        peer_frames: number("peer_frames", ShardSettings::PEER_FRAMES),
        kib: number("kib", ShardSettings::KIB),
        peer_kib: number("peer_kib", ShardSettings::PEER_KIB),
        repair_ms: number("repair_ms", ShardSettings::REPAIR_MS),
    };
    inner.finish();
    Some(settings)
}

/// Only the description knows which fields there are, and how they belong together.
fn format(mut fields: Fields<'_, '_, '_>) -> api::Format {
    api::Format { id: fields.text("id", "a string"), description: fields.into_text() }
}

fn hold_fault(value: i64) -> Fault {
    Fault::BadNumber { value, min: 0, max: MERGE_HOLD_MAX_US.into() }
}

fn mtu(fields: &mut Fields<'_, '_, '_>) -> Option<u32> {
    fields.number("mtu", MTU, |value| Fault::BadMtu { value })
}

fn mode(fields: &mut Fields<'_, '_, '_>) -> i32 {
    api::Mode::from(fields.word::<ModePreference>("mode")).into()
}

fn vni(fields: &mut Fields<'_, '_, '_>) -> u32 {
    if !fields.has("vni") {
        fields.missing("vni", VNI);
    }
    fields.number("vni", VNI, |value| Fault::BadVni { value }).unwrap_or_default()
}

fn vnet(mut fields: Fields<'_, '_, '_>) -> api::Vnet {
    let vnet = api::Vnet {
        id: fields.text("id", "a string"),
        vni: vni(&mut fields),
        format: fields.text("format", "the name of a format"),
        raise_mss: fields.flag("raise_mss").unwrap_or_default(),
        flood: fields.flag("flood").unwrap_or_default(),
        miss: match fields.word("miss") {
            Miss::Drop => api::Miss::Drop.into(),
            Miss::Trap => api::Miss::Trap.into(),
        },
        gateways: fields.tables("gateway", GATEWAY, gateway),
        dhcp: dhcp(&mut fields),
    };
    fields.finish();
    vnet
}

fn gateway(fields: Fields<'_, '_, '_>) -> api::Gateway {
    let mut fields = fields.within(&[("ip", "gateway.ip"), ("mac", "gateway.mac")]);
    let gateway =
        api::Gateway { ip: fields.text("ip", "a string"), mac: fields.text("mac", "a string") };
    fields.finish();
    gateway
}

fn port(mut fields: Fields<'_, '_, '_>) -> api::Port {
    let port = api::Port {
        id: fields.text("id", "a string"),
        vnet: fields.text("vnet", "the id of a vnet"),
        attach: attach(&mut fields),
        mac: fields.text("mac", "six hexadecimal octets in a string"),
        ips: fields.texts("ips", "a list of IP addresses"),
        anti_spoof: fields.flag("anti_spoof"),
        mtu: mtu(&mut fields),
        mode: mode(&mut fields),
        state: match fields.word("state") {
            PortState::Active => api::PortState::Active.into(),
            PortState::Blocked => api::PortState::Blocked.into(),
        },
        acl: fields.texts("acl", "a list of ids of ACL groups"),
        meter: meter(&mut fields),
        hostname: fields.text("hostname", "a domain name in a string"),
        udp_gro: fields.flag("udp_gro").unwrap_or_default(),
    };
    fields.finish();
    port
}

fn attach(fields: &mut Fields<'_, '_, '_>) -> Option<port::Attach> {
    let value = fields.value("attach")?;
    let place = fields.place("attach");
    let mut inner = Fields::of(value, place, ATTACH, fields.found)?.nested();
    inner.exclusive("xdp", "tap");
    let xdp = inner.optional_text("xdp", "an interface name").map(port::Attach::Xdp);
    let tap = inner.optional_text("tap", "an interface name").map(port::Attach::Tap);
    inner.finish();
    xdp.or(tap)
}

fn route(mut fields: Fields<'_, '_, '_>) -> api::EgressRoute {
    fields.exclusive("port", "vnet");
    let port = fields.optional_text("port", "the id of a port").map(egress_route::Scope::Port);
    let vnet = fields.optional_text("vnet", "the id of a vnet").map(egress_route::Scope::Vnet);
    let prefix = fields.text("prefix", "a prefix in a string");
    let action = route_action(&mut fields);
    fields.finish();
    api::EgressRoute { scope: port.or(vnet), prefix, action }
}

fn route_action(fields: &mut Fields<'_, '_, '_>) -> Option<egress_route::Action> {
    let value = fields.value("to")?;
    let place = fields.place("to");
    let DeValue::String(word) = value.get_ref() else {
        let mut inner = Fields::of(value, place, ROUTE_TO, fields.found)?.nested();
        let vnet =
            inner.optional_text("vnet", "the id of a vnet").map(egress_route::Action::ToVnet);
        inner.finish();
        return vnet;
    };
    match word.as_ref() {
        "local" => Some(egress_route::Action::Local(api::Unit {})),
        "trap" => Some(egress_route::Action::Trap(api::Unit {})),
        "drop" => Some(egress_route::Action::Drop(api::Unit {})),
        other => {
            let fault = Fault::BadWord { value: other.to_owned(), legal: ROUTE_TO.to_owned() };
            fields.fault(value.span().start, place, fault);
            None
        }
    }
}

fn mapping(mut fields: Fields<'_, '_, '_>) -> api::Mapping {
    let mapping = api::Mapping {
        vnet: fields.text("vnet", "the id of a vnet"),
        ip: fields.text("ip", "an IP address in a string"),
        mac: fields.text("mac", "six hexadecimal octets in a string"),
        vtep: fields.text("vtep", "an IP address in a string"),
        mtu: mtu(&mut fields),
    };
    fields.finish();
    mapping
}

fn ingress(mut fields: Fields<'_, '_, '_>) -> api::IngressRule {
    let max = i64::from(u16::MAX);
    let rule = api::IngressRule {
        vni: vni(&mut fields),
        vtep: fields.text("vtep", "a prefix in a string, or \"any\""),
        priority: fields
            .number("priority", "a number, 0 to 65535", |value| Fault::BadNumber {
                value,
                min: 0,
                max,
            })
            .unwrap_or_default(),
        action: match fields.optional_word("action") {
            None => api::IngressAction::Unspecified,
            Some(IngressAction::DecapValidate) => api::IngressAction::DecapValidate,
            Some(IngressAction::Decap) => api::IngressAction::Decap,
            Some(IngressAction::Trap) => api::IngressAction::Trap,
            Some(IngressAction::Drop) => api::IngressAction::Drop,
        }
        .into(),
    };
    fields.finish();
    rule
}
