//! The wanted state, as rows and as JSON.

use culvert_model::{Host, RouteScope};
use serde::Serialize;

use super::Row;
use super::policy::{Acl, Dhcp, Meter, acls};
use crate::output::{joined, or_dash};

#[derive(Serialize)]
pub(super) struct Vnet {
    pub(super) id: String,
    pub(super) vni: u32,
    pub(super) format: &'static str,
    pub(super) flood: bool,
    pub(super) miss: &'static str,
    pub(super) gateways: Vec<Gateway>,
    /// Absent: tenants that ask for their configuration are not answered.
    pub(super) dhcp: Option<Dhcp>,
}

#[derive(Serialize)]
pub(super) struct Gateway {
    pub(super) ip: String,
    pub(super) mac: String,
}

pub(super) fn vnets(host: &Host) -> Vec<Vnet> {
    let gateway = |gateway: &culvert_model::Gateway| Gateway {
        ip: gateway.ip.to_string(),
        mac: gateway.mac.to_string(),
    };
    let vnet = |vnet: &culvert_model::Vnet| Vnet {
        id: vnet.id.to_string(),
        vni: vnet.vni.get(),
        format: vnet.format.name(),
        flood: vnet.flood,
        miss: vnet.miss.name(),
        gateways: vnet.gateways.iter().map(gateway).collect(),
        dhcp: vnet.dhcp.as_ref().map(Dhcp::from),
    };
    host.vnets().iter().map(vnet).collect()
}

impl Row for Vnet {
    const HEADERS: &'static [&'static str] =
        &["vnet", "#vni", "format", "flood", "miss", "dhcp", "gateways"];
    fn cells(&self) -> Vec<String> {
        let gateways: Vec<_> = self.gateways.iter().map(|g| g.ip.as_str()).collect();
        vec![
            self.id.clone(),
            self.vni.to_string(),
            self.format.to_owned(),
            if self.flood { "yes" } else { "no" }.to_owned(),
            self.miss.to_owned(),
            if self.dhcp.is_some() { "yes" } else { "no" }.to_owned(),
            joined(&gateways),
        ]
    }
}

/// Exactly one of `port` and `vnet` is present.
#[derive(Serialize)]
pub(super) struct Route {
    pub(super) port: Option<String>,
    pub(super) vnet: Option<String>,
    pub(super) prefix: String,
    pub(super) action: &'static str,
    /// Present where the action is `vnet`.
    pub(super) to_vnet: Option<String>,
}

pub(super) fn routes(host: &Host) -> Vec<Route> {
    let route = |route: &culvert_model::EgressRoute| {
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
    };
    host.routes().iter().map(route).collect()
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
pub(super) struct Mapping {
    pub(super) vnet: String,
    pub(super) ip: String,
    pub(super) mac: String,
    pub(super) vtep: String,
    pub(super) mtu: Option<u16>,
}

pub(super) fn mappings(host: &Host) -> Vec<Mapping> {
    let mapping = |mapping: &culvert_model::Mapping| Mapping {
        vnet: mapping.vnet.to_string(),
        ip: mapping.ip.to_string(),
        mac: mapping.mac.to_string(),
        vtep: mapping.vtep.to_string(),
        mtu: mapping.mtu.map(culvert_model::Mtu::get),
    };
    host.mappings().iter().map(mapping).collect()
}

impl Row for Mapping {
    const HEADERS: &'static [&'static str] = &["vnet", "ip", "mac", "vtep", "#mtu"];
    fn cells(&self) -> Vec<String> {
        let Mapping { vnet, ip, mac, vtep, mtu } = self;
        vec![vnet.clone(), ip.clone(), mac.clone(), vtep.clone(), or_dash(*mtu)]
    }
}

#[derive(Serialize)]
pub(super) struct IngressRule {
    pub(super) vni: u32,
    pub(super) vtep: String,
    pub(super) priority: u16,
    pub(super) action: &'static str,
}

pub(super) fn ingress(host: &Host) -> Vec<IngressRule> {
    let rule = |rule: &culvert_model::IngressRule| IngressRule {
        vni: rule.vni.get(),
        vtep: rule.vtep.to_string(),
        priority: rule.priority,
        action: rule.action.name(),
    };
    host.ingress().iter().map(rule).collect()
}

impl Row for IngressRule {
    const HEADERS: &'static [&'static str] = &["#vni", "vtep", "#priority", "action"];
    fn cells(&self) -> Vec<String> {
        let IngressRule { vni, vtep, priority, action } = self;
        vec![vni.to_string(), vtep.clone(), priority.to_string(), (*action).to_owned()]
    }
}

#[derive(Serialize)]
pub(super) struct WantedUnderlay {
    pub(super) interfaces: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) mtu: Option<u16>,
    pub(super) mode: &'static str,
    pub(super) tx: &'static str,
}

impl From<&culvert_model::Underlay> for WantedUnderlay {
    fn from(underlay: &culvert_model::Underlay) -> WantedUnderlay {
        WantedUnderlay {
            interfaces: underlay.interfaces.iter().map(ToString::to_string).collect(),
            addresses: underlay.addresses.iter().map(ToString::to_string).collect(),
            mtu: underlay.mtu.map(culvert_model::Mtu::get),
            mode: underlay.mode.name(),
            tx: underlay.tx.name(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct WholeState {
    pub(super) underlay: WantedUnderlay,
    pub(super) vnets: Vec<Vnet>,
    pub(super) ports: Vec<WantedPort>,
    pub(super) routes: Vec<Route>,
    pub(super) mappings: Vec<Mapping>,
    pub(super) ingress: Vec<IngressRule>,
    pub(super) acls: Vec<Acl>,
}

#[derive(Serialize)]
pub(super) struct WantedPort {
    pub(super) id: String,
    pub(super) vnet: String,
    pub(super) attach: &'static str,
    pub(super) device: String,
    pub(super) mac: String,
    pub(super) ips: Vec<String>,
    pub(super) anti_spoof: bool,
    pub(super) mtu: Option<u16>,
    pub(super) mode: &'static str,
    pub(super) state: &'static str,
    pub(super) acl: Vec<String>,
    /// Absent: unlimited.
    pub(super) meter: Option<Meter>,
    pub(super) hostname: Option<String>,
}

impl From<&culvert_model::Port> for WantedPort {
    fn from(port: &culvert_model::Port) -> WantedPort {
        WantedPort {
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
        }
    }
}

impl From<&Host> for WholeState {
    fn from(host: &Host) -> WholeState {
        WholeState {
            underlay: host.underlay().into(),
            vnets: vnets(host),
            ports: host.ports().iter().map(WantedPort::from).collect(),
            routes: routes(host),
            mappings: mappings(host),
            ingress: ingress(host),
            acls: acls(host),
        }
    }
}
