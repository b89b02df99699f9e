//! Messages to nouns, with every check made again.

use std::collections::HashSet;

use super::text::{GatewayIp, Text};
use crate::api::{self, egress_route, port};
use crate::fault::{Fault, ModelError, Place, Section};
use crate::format::{self, Format};
use crate::host::Host;
use crate::ids::{AclGroupId, FormatId, Mtu, PortId, VnetId};
use crate::port::{Attach, Port, PortState};
use crate::rules::{
    EgressRoute, IngressAction, IngressRule, Mapping, RouteAction, RouteScope, VtepMatch,
};
use crate::underlay::{ModePreference, Peer, Underlay, UnderlayRx, UnderlayTx};
use crate::validate::Draft;
use crate::vnet::{Gateway, Miss, Vnet};
use crate::{Vni, limits};

impl TryFrom<api::State> for Host {
    type Error = Vec<ModelError>;

    /// Reads and checks a state.
    ///
    /// # Errors
    /// Every fault found, in the order of the sections.
    fn try_from(state: api::State) -> Result<Host, Vec<ModelError>> {
        let mut read = Read::default();
        let underlay = read.underlay(state.underlay.as_ref());
        let vnets = each(&state.vnets, |index, vnet| read.vnet(index, vnet));
        let ports = each(&state.ports, |index, port| read.port(index, port));
        let routes = each(&state.routes, |index, route| read.route(index, route));
        let mappings = each(&state.mappings, |index, mapping| read.mapping(index, mapping));
        let ingress = each(&state.ingress, |index, rule| read.ingress(index, rule));
        let acls = each(&state.acls, |index, group| read.acl(index, group));
        let formats = each(&state.formats, |index, format| read.format(index, format));
        let draft = Draft {
            underlay,
            vnets,
            ports,
            routes,
            mappings,
            ingress,
            acls,
            formats,
            broken_vnets: read.broken_vnets,
            broken_ports: read.broken_ports,
            broken_acls: read.broken_acls,
            broken_formats: read.broken_formats,
            broken_vnis: read.broken_vnis,
            unknown_vnis: read.unknown_vnis,
        };
        Host::from_draft(draft, read.errors)
    }
}

fn each<M, T>(messages: &[M], mut read: impl FnMut(usize, &M) -> Option<T>) -> Vec<Option<T>> {
    messages.iter().enumerate().map(|(index, message)| read(index, message)).collect()
}

/// Collects faults; a field that has one is `None`, and so is the object around it.
#[derive(Default)]
pub(super) struct Read {
    pub(super) errors: Vec<ModelError>,
    broken_vnets: HashSet<VnetId>,
    broken_ports: HashSet<PortId>,
    pub(super) broken_acls: HashSet<AclGroupId>,
    pub(super) broken_formats: HashSet<FormatId>,
    broken_vnis: HashSet<Vni>,
    unknown_vnis: bool,
}

impl Read {
    pub(super) fn keep<T>(&mut self, place: Place, value: Result<T, Fault>) -> Option<T> {
        value.map_err(|fault| self.errors.push(ModelError::new(place, fault))).ok()
    }

    pub(super) fn text<T: Text>(&mut self, place: Place, text: &str) -> Option<T> {
        let value =
            if text.is_empty() { Err(Fault::Missing { legal: T::LEGAL }) } else { T::read(text) };
        self.keep(place, value)
    }

    /// Every element, so that each fault is seen, then all of them or none.
    pub(super) fn list<T: Text>(&mut self, place: &Place, texts: &[String]) -> Option<Vec<T>> {
        let items = texts.iter().enumerate();
        let items: Vec<_> = items.map(|(n, text)| self.text(place.clone().at(n), text)).collect();
        items.into_iter().collect()
    }

    fn mtu(&mut self, place: Place, mtu: Option<u32>) -> Option<Option<Mtu>> {
        match mtu {
            None => Some(None),
            Some(bytes) => self.keep(place, Mtu::new(bytes)).map(Some),
        }
    }

    fn word<M, T>(&mut self, place: Place, number: i32, word: impl Fn(M) -> Option<T>) -> Option<T>
    where
        M: TryFrom<i32>,
    {
        let value = M::try_from(number).ok().and_then(word);
        let fault = Fault::BadWord {
            value: number.to_string(),
            legal: "a value of the API's enum".to_owned(),
        };
        self.keep(place, value.ok_or(fault))
    }

    fn mode(&mut self, place: Place, number: i32) -> Option<ModePreference> {
        self.word(place, number, |mode| {
            Some(match mode {
                api::Mode::Unspecified => ModePreference::Auto,
                api::Mode::ZeroCopy => ModePreference::ZeroCopy,
                api::Mode::Native => ModePreference::Native,
                api::Mode::Generic => ModePreference::Generic,
            })
        })
    }

    pub(super) fn underlay(&mut self, message: Option<&api::Underlay>) -> Option<Underlay> {
        let place = |field| Place::section(Section::Underlay, field);
        let missing = Fault::Missing { legal: "one section with interfaces and addresses" };
        let message = self.keep(place(""), message.ok_or(missing))?;
        let interfaces = self.list(&place("interfaces"), &message.interfaces);
        let addresses = self.list(&place("addresses"), &message.addresses);
        let mtu = self.mtu(place("mtu"), message.mtu);
        let mode = self.mode(place("mode"), message.mode);
        let rx = self.word(place("rx"), message.rx, |rx| {
            Some(match rx {
                api::UnderlayRx::Unspecified => UnderlayRx::Xdp,
                api::UnderlayRx::Packet => UnderlayRx::Packet,
            })
        });
        let tx = self.word(place("tx"), message.tx, |tx| {
            Some(match tx {
                api::UnderlayTx::Unspecified => UnderlayTx::Auto,
                api::UnderlayTx::Xdp => UnderlayTx::Xdp,
                api::UnderlayTx::Packet => UnderlayTx::Packet,
            })
        });
        let merge_hold_us = self.keep(place("merge_hold_us"), to_hold(message.merge_hold_us));
        let peers: Vec<_> = message
            .peers
            .iter()
            .enumerate()
            .map(|(n, peer)| {
                let vtep = self.text(place("peer.vtep").at(n), &peer.vtep);
                let format = match peer.format.as_str() {
                    "" => Some(None),
                    format => self.text(place("peer.format").at(n), format).map(Some),
                };
                let keys = self.keys(&|field| place(field).at(n), peer);
                Some(Peer { vtep: vtep?, format: format?, raise_mss: peer.raise_mss, keys: keys? })
            })
            .collect();
        let shard = self.shard(&place, message.shard.as_ref());
        Some(Underlay {
            interfaces: interfaces?,
            addresses: addresses?,
            mtu: mtu?,
            mode: mode?,
            rx: rx?,
            tx: tx?,
            merge_hold_us: merge_hold_us?,
            peers: peers.into_iter().collect::<Option<_>>()?,
            shard: shard?,
        })
    }

    fn format_id(&mut self, place: Place, id: &str) -> Option<FormatId> {
        if id.is_empty() { Some(FormatId::default()) } else { self.text(place, id) }
    }

    pub(super) fn format(&mut self, index: usize, message: &api::Format) -> Option<Format> {
        let place = |field| Place::object(Section::Format, index, field).named(&message.id);
        let id: Option<FormatId> = self.text(place("id"), &message.id);
        let format = format::read(&message.description).map_err(|errors| {
            for error in errors {
                let fault = Fault::BadFormat { message: error.to_string() };
                self.errors.push(ModelError::new(place(error.field()), fault));
            }
        });
        let format = format.ok().filter(|format| {
            let same = id.as_ref() == Some(&format.id);
            if !same && id.is_some() {
                let message = format!("the description is of {:?}", format.id);
                self.errors.push(ModelError::new(place("id"), Fault::BadFormat { message }));
            }
            same
        });
        if format.is_none() {
            self.broken_formats.extend(id);
        }
        format
    }

    pub(super) fn vnet(&mut self, index: usize, message: &api::Vnet) -> Option<Vnet> {
        let place = |field| Place::object(Section::Vnet, index, field).named(&message.id);
        let id: Option<VnetId> = self.text(place("id"), &message.id);
        let vni = self.keep(place("vni"), to_vni(message.vni));
        let format = self.format_id(place("format"), &message.format);
        let miss = self.word(place("miss"), message.miss, |miss| {
            Some(match miss {
                api::Miss::Unspecified | api::Miss::Drop => Miss::Drop,
                api::Miss::Trap => Miss::Trap,
            })
        });
        let gateways: Vec<_> = message
            .gateways
            .iter()
            .enumerate()
            .map(|(n, gateway)| {
                let ip = self.text::<GatewayIp>(place("gateway.ip").at(n), &gateway.ip);
                let mac = self.text(place("gateway.mac").at(n), &gateway.mac);
                Some(Gateway { ip: ip?.0, mac: mac? })
            })
            .collect();
        let flood = message.flood;
        let dhcp = self.dhcp(&place, message.dhcp.as_ref());
        let vnet = (|| {
            let gateways = gateways.into_iter().collect::<Option<_>>()?;
            Some(Vnet {
                id: id.clone()?,
                vni: vni?,
                format: format?,
                raise_mss: message.raise_mss,
                flood,
                miss: miss?,
                gateways,
                dhcp: dhcp?,
            })
        })();
        if vnet.is_none() {
            self.broken_vnets.extend(id);
            self.unknown_vnis |= vni.is_none();
            self.broken_vnis.extend(vni);
        }
        vnet
    }

    pub(super) fn port(&mut self, index: usize, message: &api::Port) -> Option<Port> {
        let place = |field| Place::object(Section::Port, index, field).named(&message.id);
        let id: Option<PortId> = self.text(place("id"), &message.id);
        let vnet = self.text(place("vnet"), &message.vnet);
        let attach = match &message.attach {
            Some(port::Attach::Xdp(name)) => {
                self.text(place("attach"), name).map(|ifname| Attach::Xdp { ifname })
            }
            Some(port::Attach::Tap(name)) => {
                self.text(place("attach"), name).map(|ifname| Attach::Tap { ifname })
            }
            None => {
                let legal = "{ xdp = \"interface\" } or { tap = \"interface\" }";
                self.keep(place("attach"), Err(Fault::Missing { legal }))
            }
        };
        let mac = self.text(place("mac"), &message.mac);
        let ips = self.list(&place("ips"), &message.ips);
        let mtu = self.mtu(place("mtu"), message.mtu);
        let mode = self.mode(place("mode"), message.mode);
        let state = self.word(place("state"), message.state, |state| {
            Some(match state {
                api::PortState::Unspecified | api::PortState::Active => PortState::Active,
                api::PortState::Blocked => PortState::Blocked,
            })
        });
        let acl = self.list(&place("acl"), &message.acl);
        let meter = self.meter(&place, message.meter.as_ref());
        let hostname = match message.hostname.as_str() {
            "" => Some(None),
            text => self.text(place("hostname"), text).map(Some),
        };
        let port = (|| {
            Some(Port {
                id: id.clone()?,
                vnet: vnet?,
                attach: attach?,
                mac: mac?,
                ips: ips?,
                anti_spoof: message.anti_spoof.unwrap_or(true),
                mtu: mtu?,
                mode: mode?,
                state: state?,
                acl: acl?,
                meter: meter?,
                hostname: hostname?,
                udp_gro: message.udp_gro,
            })
        })();
        if port.is_none() {
            self.broken_ports.extend(id);
        }
        port
    }

    pub(super) fn route(
        &mut self,
        index: usize,
        message: &api::EgressRoute,
    ) -> Option<EgressRoute> {
        let place = |field| Place::object(Section::Route, index, field);
        let scope = match &message.scope {
            Some(egress_route::Scope::Port(id)) => {
                self.text(place("port"), id).map(RouteScope::Port)
            }
            Some(egress_route::Scope::Vnet(id)) => {
                self.text(place("vnet"), id).map(RouteScope::Vnet)
            }
            None => self.keep(place(""), Err(Fault::Missing { legal: "one of port and vnet" })),
        };
        let prefix = self.text(place("prefix"), &message.prefix);
        let action = match &message.action {
            Some(egress_route::Action::ToVnet(id)) => {
                self.text(place("to"), id).map(RouteAction::Vnet)
            }
            Some(egress_route::Action::Local(_)) => Some(RouteAction::Local),
            Some(egress_route::Action::Trap(_)) => Some(RouteAction::Trap),
            Some(egress_route::Action::Drop(_)) => Some(RouteAction::Drop),
            None => {
                let legal = "{ vnet = \"id\" }, \"local\", \"trap\" or \"drop\"";
                self.keep(place("to"), Err(Fault::Missing { legal }))
            }
        };
        Some(EgressRoute { scope: scope?, prefix: prefix?, action: action? })
    }

    pub(super) fn mapping(&mut self, index: usize, message: &api::Mapping) -> Option<Mapping> {
        let place = |field| Place::object(Section::Mapping, index, field);
        let vnet = self.text(place("vnet"), &message.vnet);
        let ip = self.text(place("ip"), &message.ip);
        let mac = self.text(place("mac"), &message.mac);
        let vtep = self.text(place("vtep"), &message.vtep);
        let mtu = self.mtu(place("mtu"), message.mtu);
        Some(Mapping { vnet: vnet?, ip: ip?, mac: mac?, vtep: vtep?, mtu: mtu? })
    }

    pub(super) fn ingress(
        &mut self,
        index: usize,
        message: &api::IngressRule,
    ) -> Option<IngressRule> {
        let place = |field| Place::object(Section::Ingress, index, field);
        let (vni, vtep, priority) =
            self.ingress_key(index, message.vni, &message.vtep, message.priority);
        let action = match api::IngressAction::try_from(message.action) {
            Ok(api::IngressAction::DecapValidate) => Ok(IngressAction::DecapValidate),
            Ok(api::IngressAction::Decap) => Ok(IngressAction::Decap),
            Ok(api::IngressAction::Trap) => Ok(IngressAction::Trap),
            Ok(api::IngressAction::Drop) => Ok(IngressAction::Drop),
            Ok(api::IngressAction::Unspecified) | Err(_) => {
                Err(Fault::Missing { legal: "decap-validate, decap, trap or drop" })
            }
        };
        let action = self.keep(place("action"), action);
        Some(IngressRule { vni: vni?, vtep: vtep?, priority: priority?, action: action? })
    }

    pub(super) fn ingress_key(
        &mut self,
        index: usize,
        vni: u32,
        vtep: &str,
        priority: u32,
    ) -> (Option<Vni>, Option<VtepMatch>, Option<u16>) {
        let place = |field| Place::object(Section::Ingress, index, field);
        let vni = self.keep(place("vni"), to_vni(vni));
        let vtep = match vtep {
            "" => Some(VtepMatch::Any),
            text => self.keep(place("vtep"), text.parse()),
        };
        let bad_priority =
            Fault::BadNumber { value: priority.into(), min: 0, max: u16::MAX.into() };
        let priority = u16::try_from(priority).map_err(|_| bad_priority);
        let priority = self.keep(place("priority"), priority);
        (vni, vtep, priority)
    }
}

fn to_vni(value: u32) -> Result<Vni, Fault> {
    Vni::new(value).map_err(|_| Fault::BadVni { value: value.into() })
}

fn to_hold(value: u32) -> Result<u16, Fault> {
    let max = limits::MERGE_HOLD_MAX_US;
    let fault = Fault::BadNumber { value: value.into(), min: 0, max: max.into() };
    u16::try_from(value).ok().filter(|value| *value <= max).ok_or(fault)
}
