//! The wanted state, as rows and as JSON.

use culvert_model::shard::{self, Redacted, key_text};
use culvert_model::{Host, RouteScope};
use culvert_wire::shard::{Coding, Key};
use serde::Serialize;

use super::policy::{Acl, Dhcp, Meter, acls};
use super::{Format, Row};
use crate::output::{joined, or_dash};

#[derive(Serialize)]
pub(crate) struct Vnet {
    pub(crate) id: String,
    pub(crate) vni: u32,
    pub(crate) format: String,
    pub(crate) raise_mss: bool,
    pub(crate) flood: bool,
    pub(crate) miss: &'static str,
    pub(crate) gateways: Vec<Gateway>,
    /// Absent: tenants that ask for their configuration are not answered.
    pub(crate) dhcp: Option<Dhcp>,
}

#[derive(Serialize)]
pub(crate) struct Gateway {
    pub(crate) ip: String,
    pub(crate) mac: String,
}

impl From<&culvert_model::Vnet> for Vnet {
    fn from(vnet: &culvert_model::Vnet) -> Vnet {
        let gateway = |gateway: &culvert_model::Gateway| Gateway {
            ip: gateway.ip.to_string(),
            mac: gateway.mac.to_string(),
        };
        Vnet {
            id: vnet.id.to_string(),
            vni: vnet.vni.get(),
            format: vnet.format.to_string(),
            raise_mss: vnet.raise_mss,
            flood: vnet.flood,
            miss: vnet.miss.name(),
            gateways: vnet.gateways.iter().map(gateway).collect(),
            dhcp: vnet.dhcp.as_ref().map(Dhcp::from),
        }
    }
}

pub(crate) fn vnets(host: &Host) -> Vec<Vnet> {
    host.vnets().iter().map(Vnet::from).collect()
}

impl Row for Vnet {
    const HEADERS: &'static [&'static str] =
        &["vnet", "#vni", "format", "flood", "miss", "dhcp", "gateways"];
    fn cells(&self) -> Vec<String> {
        let gateways: Vec<_> = self.gateways.iter().map(|g| g.ip.as_str()).collect();
        vec![
            self.id.clone(),
            self.vni.to_string(),
            self.format.clone(),
            if self.flood { "yes" } else { "no" }.to_owned(),
            self.miss.to_owned(),
            if self.dhcp.is_some() { "yes" } else { "no" }.to_owned(),
            joined(&gateways),
        ]
    }
}

/// Exactly one of `port` and `vnet` is present.
#[derive(Serialize)]
pub(crate) struct Route {
    pub(crate) port: Option<String>,
    pub(crate) vnet: Option<String>,
    pub(crate) prefix: String,
    pub(crate) action: &'static str,
    /// Present where the action is `vnet`.
    pub(crate) to_vnet: Option<String>,
}

impl From<&culvert_model::EgressRoute> for Route {
    fn from(route: &culvert_model::EgressRoute) -> Route {
        let (port, vnet) = match &route.scope {
            RouteScope::Port(id) => (Some(id.to_string()), None),
            RouteScope::Vnet(id) => (None, Some(id.to_string())),
        };
        let (action, to_vnet) = match &route.action {
            culvert_model::RouteAction::Vnet(id) => ("vnet", Some(id.to_string())),
            culvert_model::RouteAction::Local => ("local", None),
            culvert_model::RouteAction::Trap => ("trap", None),
            culvert_model::RouteAction::Drop => ("drop", None),
        };
        Route { port, vnet, prefix: route.prefix.to_string(), action, to_vnet }
    }
}

pub(crate) fn routes(host: &Host) -> Vec<Route> {
    host.routes().iter().map(Route::from).collect()
}

impl Row for Route {
    const HEADERS: &'static [&'static str] = &["of", "prefix", "to"];
    fn cells(&self) -> Vec<String> {
        let of = match (&self.port, &self.vnet) {
            (Some(port), _) => format!("port {port}"),
            (None, vnet) => format!("vnet {}", vnet.as_deref().unwrap_or("-")),
        };
        let to = match &self.to_vnet {
            Some(vnet) => format!("vnet {vnet}"),
            None => self.action.to_owned(),
        };
        vec![of, self.prefix.clone(), to]
    }
}

#[derive(Serialize)]
pub(crate) struct Mapping {
    pub(crate) vnet: String,
    pub(crate) ip: String,
    pub(crate) mac: String,
    pub(crate) vtep: String,
    pub(crate) mtu: Option<u16>,
}

impl From<&culvert_model::Mapping> for Mapping {
    fn from(mapping: &culvert_model::Mapping) -> Mapping {
        Mapping {
            vnet: mapping.vnet.to_string(),
            ip: mapping.ip.to_string(),
            mac: mapping.mac.to_string(),
            vtep: mapping.vtep.to_string(),
            mtu: mapping.mtu.map(culvert_model::Mtu::get),
        }
    }
}

pub(crate) fn mappings(host: &Host) -> Vec<Mapping> {
    host.mappings().iter().map(Mapping::from).collect()
}

impl Row for Mapping {
    const HEADERS: &'static [&'static str] = &["vnet", "ip", "mac", "vtep", "#mtu"];
    fn cells(&self) -> Vec<String> {
        let Mapping { vnet, ip, mac, vtep, mtu } = self;
        vec![vnet.clone(), ip.clone(), mac.clone(), vtep.clone(), or_dash(*mtu)]
    }
}

#[derive(Serialize)]
pub(crate) struct IngressRule {
    pub(crate) vni: u32,
    pub(crate) vtep: String,
    pub(crate) priority: u16,
    pub(crate) action: &'static str,
}

impl From<&culvert_model::IngressRule> for IngressRule {
    fn from(rule: &culvert_model::IngressRule) -> IngressRule {
        IngressRule {
            vni: rule.vni.get(),
            vtep: rule.vtep.to_string(),
            priority: rule.priority,
            action: rule.action.name(),
        }
    }
}

pub(crate) fn ingress(host: &Host) -> Vec<IngressRule> {
    host.ingress().iter().map(IngressRule::from).collect()
}

impl Row for IngressRule {
    const HEADERS: &'static [&'static str] = &["#vni", "vtep", "#priority", "action"];
    fn cells(&self) -> Vec<String> {
        let IngressRule { vni, vtep, priority, action } = self;
        vec![vni.to_string(), vtep.clone(), priority.to_string(), (*action).to_owned()]
    }
}

#[derive(Serialize)]
pub(crate) struct Peer {
    pub(crate) vtep: String,
    /// Absent: that of the vnet.
    pub(crate) format: Option<String>,
    /// Absent: as the vnet says.
    pub(crate) raise_mss: Option<bool>,
    pub(crate) keys: Vec<PeerKey>,
    pub(crate) send_key: Option<u8>,
}

/// A key of the shard format, left out unless it was asked for.
#[derive(Serialize)]
pub(crate) struct PeerKey {
    pub(crate) id: u8,
    pub(crate) key: String,
}

impl Peer {
    fn new(peer: &culvert_model::Peer, key: impl Fn(&Key) -> String) -> Peer {
        Peer {
            vtep: peer.vtep.to_string(),
            format: peer.format.as_ref().map(ToString::to_string),
            raise_mss: peer.raise_mss,
            keys: shard::keys(&peer.keys).map(|(id, k)| PeerKey { id, key: key(k) }).collect(),
            send_key: peer.keys.sending().map(|(id, _)| id),
        }
    }
}

/// What the shard format sends and holds.
#[derive(Serialize)]
pub(crate) struct ShardSettings {
    /// Absent: by the number of a frame's segments.
    pub(crate) k: Option<u8>,
    pub(crate) n: Option<u8>,
    pub(crate) hold_ms: u16,
    pub(crate) frames: u16,
    pub(crate) peer_frames: u16,
    pub(crate) kib: u32,
    pub(crate) peer_kib: u32,
    pub(crate) repair_ms: u16,
}

impl From<culvert_model::ShardSettings> for ShardSettings {
    fn from(settings: culvert_model::ShardSettings) -> ShardSettings {
        let culvert_model::ShardSettings {
            coding,
            hold_ms,
            frames,
            peer_frames,
            kib,
            peer_kib,
            repair_ms,
        } = settings;
        let (k, n) = (coding.map(Coding::k), coding.map(Coding::n));
        ShardSettings { k, n, hold_ms, frames, peer_frames, kib, peer_kib, repair_ms }
    }
}

#[derive(Serialize)]
pub(crate) struct Underlay {
    pub(crate) interfaces: Vec<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) mtu: Option<u16>,
    pub(crate) mode: &'static str,
    pub(crate) rx: &'static str,
    pub(crate) tx: &'static str,
    pub(crate) merge_hold_us: u16,
    /// VTEPs that are spoken to in a way of their own.
    pub(crate) peers: Vec<Peer>,
    /// Absent: all defaults.
    pub(crate) shard: Option<ShardSettings>,
}

impl From<&culvert_model::Underlay> for Underlay {
    fn from(underlay: &culvert_model::Underlay) -> Underlay {
        Underlay {
            interfaces: underlay.interfaces.iter().map(ToString::to_string).collect(),
            addresses: underlay.addresses.iter().map(ToString::to_string).collect(),
            mtu: underlay.mtu.map(culvert_model::Mtu::get),
            mode: underlay.mode.name(),
            rx: underlay.rx.name(),
            tx: underlay.tx.name(),
            merge_hold_us: underlay.merge_hold_us,
            peers: underlay.peers.iter().map(|peer| Peer::new(peer, redacted)).collect(),
            shard: (underlay.shard != Default::default()).then(|| underlay.shard.into()),
        }
    }
}

fn redacted(key: &Key) -> String {
    Redacted(key).to_string()
}

impl Row for Underlay {
    const HEADERS: &'static [&'static str] =
        &["interfaces", "addresses", "#mtu", "mode", "rx", "tx"];
    fn cells(&self) -> Vec<String> {
        let (interfaces, addresses) = (joined(&self.interfaces), joined(&self.addresses));
        vec![
            interfaces,
            addresses,
            or_dash(self.mtu),
            self.mode.to_owned(),
            self.rx.to_owned(),
            self.tx.to_owned(),
        ]
    }
}

#[derive(Serialize)]
pub(crate) struct WholeState {
    pub(crate) underlay: Underlay,
    pub(crate) vnets: Vec<Vnet>,
    pub(crate) ports: Vec<Port>,
    pub(crate) routes: Vec<Route>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) ingress: Vec<IngressRule>,
    pub(crate) acls: Vec<Acl>,
    pub(crate) formats: Vec<Format>,
}

#[derive(Serialize)]
pub(crate) struct Port {
    pub(crate) id: String,
    pub(crate) vnet: String,
    pub(crate) attach: &'static str,
    pub(crate) device: String,
    pub(crate) mac: String,
    pub(crate) ips: Vec<String>,
    pub(crate) anti_spoof: bool,
    pub(crate) mtu: Option<u16>,
    pub(crate) mode: &'static str,
    pub(crate) state: &'static str,
    pub(crate) acl: Vec<String>,
    /// Absent: unlimited.
    pub(crate) meter: Option<Meter>,
    pub(crate) hostname: Option<String>,
    pub(crate) udp_gro: bool,
}

impl From<&culvert_model::Port> for Port {
    fn from(port: &culvert_model::Port) -> Port {
        Port {
            id: port.id.to_string(),
            vnet: port.vnet.to_string(),
            attach: port.attach.kind(),
            device: port.attach.ifname().to_string(),
            mac: port.mac.to_string(),
            ips: port.ips.iter().map(ToString::to_string).collect(),
            anti_spoof: port.anti_spoof,
            mtu: port.mtu.map(culvert_model::Mtu::get),
            mode: port.mode.name(),
            state: port.state.name(),
            acl: port.acl.iter().map(ToString::to_string).collect(),
            meter: port.meter.map(Meter::from),
            hostname: port.hostname.as_ref().map(ToString::to_string),
            udp_gro: port.udp_gro,
        }
    }
}

impl Row for Port {
    const HEADERS: &'static [&'static str] =
        &["port", "vnet", "attach", "device", "mac", "ips", "acl", "wanted"];
    fn cells(&self) -> Vec<String> {
        let Port { id, vnet, attach, device, mac, ips, acl, state, .. } = self;
        let texts = [id, vnet, *attach, device, mac].map(str::to_owned);
        [texts.as_slice(), &[joined(ips), joined(acl), (*state).to_owned()]].concat()
    }
}

impl WholeState {
    /// With the keys, for who asked for them.
    pub(crate) fn with_keys(host: &Host) -> WholeState {
        let mut state = WholeState::from(host);
        let peers = host.underlay().peers.iter();
        state.underlay.peers = peers.map(|peer| Peer::new(peer, key_text)).collect();
        state
    }
}

impl From<&Host> for WholeState {
    fn from(host: &Host) -> WholeState {
        WholeState {
            underlay: host.underlay().into(),
            vnets: vnets(host),
            ports: host.ports().iter().map(Port::from).collect(),
            routes: routes(host),
            mappings: mappings(host),
            ingress: ingress(host),
            acls: acls(host),
            formats: host.formats().iter().map(Format::from).collect(),
        }
    }
}
