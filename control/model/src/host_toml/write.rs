//! From a [`Host`] to its file.

use std::fmt::{self, Display, Write};

use super::write_policy::{acl, dhcp, port_policy};
use crate::api;
use crate::format::{self, Format};
use crate::host::Host;
use crate::port::Port;
use crate::rules::{EgressRoute, IngressRule, Mapping, RouteAction, RouteScope};
use crate::shard::{self, Redacted, ShardSettings, key_text};
use crate::underlay::{Peer, Underlay};
use crate::vnet::{Gateway, Vnet};

/// The text of a `host.toml` that reads as this host. Fields at their default are left out.
///
/// Keys are left out: what stands in their place says so to who reads the text.
pub fn to_toml(host: &Host) -> String {
    File(host, Keys::Redacted).to_string()
}

/// As [`to_toml`], with keys: a text that has to be kept as they are.
pub fn to_toml_with_keys(host: &Host) -> String {
    File(host, Keys::Shown).to_string()
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Keys {
    Redacted,
    Shown,
}

struct File<'a>(&'a Host, Keys);

impl Display for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0;
        underlay(f, host.underlay(), self.1)?;
        host.vnets().iter().try_for_each(|item| vnet(f, item))?;
        host.ports().iter().try_for_each(|item| port(f, item))?;
        host.routes().iter().try_for_each(|item| route(f, item))?;
        host.mappings().iter().try_for_each(|item| mapping(f, item))?;
        host.ingress().iter().try_for_each(|item| ingress(f, item))?;
        host.acls().iter().try_for_each(|item| acl(f, item))?;
        host.formats().iter().try_for_each(|item| format(f, item))
    }
}

pub(super) fn quote(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

pub(super) fn field(f: &mut impl Write, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{name} = {value}")
}

pub(super) fn text(f: &mut impl Write, name: &str, value: impl Display) -> fmt::Result {
    field(f, name, quote(value))
}

pub(super) fn list<T: Display>(f: &mut impl Write, name: &str, values: &[T]) -> fmt::Result {
    let values: Vec<_> = values.iter().map(quote).collect();
    field(f, name, format_args!("[{}]", values.join(", ")))
}

/// A word, unless it is the default.
fn word<T: Display + Default + PartialEq>(
    f: &mut impl Write,
    name: &str,
    value: &T,
) -> fmt::Result {
    if *value == T::default() { Ok(()) } else { text(f, name, value) }
}

fn option<T: Display>(f: &mut impl Write, name: &str, value: Option<T>) -> fmt::Result {
    value.map_or(Ok(()), |value| field(f, name, value))
}

fn underlay(f: &mut impl Write, underlay: &Underlay, keys: Keys) -> fmt::Result {
    writeln!(f, "[underlay]")?;
    list(f, "interfaces", &underlay.interfaces)?;
    list(f, "addresses", &underlay.addresses)?;
    option(f, "mtu", underlay.mtu)?;
    word(f, "mode", &underlay.mode)?;
    word(f, "rx", &underlay.rx)?;
    word(f, "tx", &underlay.tx)?;
    if underlay.merge_hold_us > 0 {
        field(f, "merge_hold_us", underlay.merge_hold_us)?;
    }
    let settings = shard(&underlay.shard);
    if !settings.is_empty() {
        field(f, "shard", format_args!("{{ {settings} }}"))?;
    }
    if underlay.peers.is_empty() {
        return Ok(());
    }
    let peers: Vec<_> = underlay.peers.iter().map(|item| peer(item, keys)).collect();
    field(f, "peer", format_args!("[{}]", peers.join(", ")))
}

fn peer(peer: &Peer, keys: Keys) -> String {
    let mut parts = vec![format!("vtep = {}", quote(peer.vtep))];
    parts.extend(peer.format.as_ref().map(|format| format!("format = {}", quote(format))));
    parts.extend(peer.raise_mss.map(|raise| format!("raise_mss = {raise}")));
    if let Some((send, _)) = peer.keys.sending() {
        let key = |(id, key)| match keys {
            Keys::Shown => format!("{id} = {}", quote(key_text(key))),
            Keys::Redacted => format!("{id} = {}", quote(Redacted(key))),
        };
        let keys: Vec<_> = shard::keys(&peer.keys).map(key).collect();
        parts.push(format!("keys = {{ {} }}, send_key = {send}", keys.join(", ")));
    }
    format!("{{ {} }}", parts.join(", "))
}

fn shard(settings: &ShardSettings) -> String {
    let api::ShardSettings { k, n, hold_ms, frames, peer_frames, kib, peer_kib, repair_ms } =
        (*settings).into();
    let fields = [
        ("k", k),
        ("n", n),
        ("hold_ms", hold_ms),
        ("frames", frames),
        ("peer_frames", peer_frames),
        ("kib", kib),
        ("peer_kib", peer_kib),
        ("repair_ms", repair_ms),
    ];
    let given = fields.iter().filter_map(|(name, value)| Some(format!("{name} = {}", (*value)?)));
    given.collect::<Vec<_>>().join(", ")
}

fn format(f: &mut impl Write, format: &Format) -> fmt::Result {
    write!(f, "\n[[format]]\n{}", format::to_toml(format))
}

fn vnet(f: &mut impl Write, vnet: &Vnet) -> fmt::Result {
    writeln!(f, "\n[[vnet]]")?;
    text(f, "id", &vnet.id)?;
    field(f, "vni", vnet.vni)?;
    word(f, "format", &vnet.format)?;
    if vnet.raise_mss {
        field(f, "raise_mss", true)?;
    }
    if vnet.flood {
        field(f, "flood", true)?;
    }
    word(f, "miss", &vnet.miss)?;
    if !vnet.gateways.is_empty() {
        let gateway = |gateway: &Gateway| {
            format!("{{ ip = {}, mac = {} }}", quote(gateway.ip), quote(gateway.mac))
        };
        let gateways: Vec<_> = vnet.gateways.iter().map(gateway).collect();
        field(f, "gateway", format_args!("[{}]", gateways.join(", ")))?;
    }
    vnet.dhcp.as_ref().map_or(Ok(()), |vnet| dhcp(f, vnet))
}

fn port(f: &mut impl Write, port: &Port) -> fmt::Result {
    writeln!(f, "\n[[port]]")?;
    text(f, "id", &port.id)?;
    text(f, "vnet", &port.vnet)?;
    let (kind, ifname) = (port.attach.kind(), quote(port.attach.ifname()));
    field(f, "attach", format_args!("{{ {kind} = {ifname} }}"))?;
    text(f, "mac", port.mac)?;
    list(f, "ips", &port.ips)?;
    if !port.anti_spoof {
        field(f, "anti_spoof", false)?;
    }
    option(f, "mtu", port.mtu)?;
    word(f, "mode", &port.mode)?;
    word(f, "state", &port.state)?;
    if port.udp_gro {
        field(f, "udp_gro", true)?;
    }
    port_policy(f, port)
}

fn route(f: &mut impl Write, route: &EgressRoute) -> fmt::Result {
    writeln!(f, "\n[[route]]")?;
    match &route.scope {
        RouteScope::Port(id) => text(f, "port", id)?,
        RouteScope::Vnet(id) => text(f, "vnet", id)?,
    }
    text(f, "prefix", route.prefix)?;
    match &route.action {
        RouteAction::Vnet(id) => field(f, "to", format_args!("{{ vnet = {} }}", quote(id))),
        word @ (RouteAction::Local | RouteAction::Trap | RouteAction::Drop) => text(f, "to", word),
    }
}

fn mapping(f: &mut impl Write, mapping: &Mapping) -> fmt::Result {
    writeln!(f, "\n[[mapping]]")?;
    text(f, "vnet", &mapping.vnet)?;
    text(f, "ip", mapping.ip)?;
    text(f, "mac", mapping.mac)?;
    text(f, "vtep", mapping.vtep)?;
    option(f, "mtu", mapping.mtu)
}

fn ingress(f: &mut impl Write, rule: &IngressRule) -> fmt::Result {
    writeln!(f, "\n[[ingress]]")?;
    field(f, "vni", rule.vni)?;
    word(f, "vtep", &rule.vtep)?;
    field(f, "priority", rule.priority)?;
    text(f, "action", rule.action)
}
