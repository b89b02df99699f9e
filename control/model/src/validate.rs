//! Checks of a host's state as a whole. Pure: parts in, faults out.

mod policy;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;

use culvert_wire::eth::MacAddr;
use culvert_wire::format::builtin;
use culvert_wire::vni::Vni;
use ipnet::IpNet;

use crate::acl::AclGroup;
use crate::fault::{Fault, ModelError, Place, Section};
use crate::format::Format;
use crate::host::{Host, HostParts, largest_overhead, underlay_mtu_fault};
use crate::ids::{AclGroupId, FormatId, IfName, PortId, VnetId};
use crate::objects::Keyed;
use crate::port::Port;
use crate::rules::{
    EgressRoute, IngressKey, IngressRule, Mapping, RouteAction, RouteScope, VtepMatch,
};
use crate::underlay::{Underlay, UnderlayRx, UnderlayTx};
use crate::vnet::Vnet;
use crate::{IPV6_MTU_MIN, limits, nearest};

/// The parts of a host of which some may have been unreadable: those are `None`, so that the others keep
/// their positions.
pub(crate) struct Draft {
    pub(crate) underlay: Option<Underlay>,
    pub(crate) vnets: Vec<Option<Vnet>>,
    pub(crate) ports: Vec<Option<Port>>,
    pub(crate) routes: Vec<Option<EgressRoute>>,
    pub(crate) mappings: Vec<Option<Mapping>>,
    pub(crate) ingress: Vec<Option<IngressRule>>,
    pub(crate) acls: Vec<Option<AclGroup>>,
    pub(crate) formats: Vec<Option<Format>>,
    /// Names of vnets, ports and ACL groups that were given, but unreadable otherwise: a reference to one is no fault.
    pub(crate) broken_vnets: HashSet<VnetId>,
    pub(crate) broken_ports: HashSet<PortId>,
    pub(crate) broken_acls: HashSet<AclGroupId>,
    pub(crate) broken_formats: HashSet<FormatId>,
    /// VNIs of unreadable vnets, likewise; with `unknown_vnis`, one of them had no readable VNI.
    pub(crate) broken_vnis: HashSet<Vni>,
    pub(crate) unknown_vnis: bool,
}

impl From<HostParts> for Draft {
    fn from(parts: HostParts) -> Draft {
        Draft {
            underlay: Some(parts.underlay),
            vnets: parts.vnets.into_iter().map(Some).collect(),
            ports: parts.ports.into_iter().map(Some).collect(),
            routes: parts.routes.into_iter().map(Some).collect(),
            mappings: parts.mappings.into_iter().map(Some).collect(),
            ingress: parts.ingress.into_iter().map(Some).collect(),
            acls: parts.acls.into_iter().map(Some).collect(),
            formats: parts.formats.into_iter().map(Some).collect(),
            broken_vnets: HashSet::new(),
            broken_ports: HashSet::new(),
            broken_acls: HashSet::new(),
            broken_formats: HashSet::new(),
            broken_vnis: HashSet::new(),
            unknown_vnis: false,
        }
    }
}

impl Draft {
    /// The parts, where every one was readable.
    pub(crate) fn complete(self) -> Option<HostParts> {
        Some(HostParts {
            underlay: self.underlay?,
            vnets: self.vnets.into_iter().collect::<Option<_>>()?,
            ports: self.ports.into_iter().collect::<Option<_>>()?,
            routes: self.routes.into_iter().collect::<Option<_>>()?,
            mappings: self.mappings.into_iter().collect::<Option<_>>()?,
            ingress: self.ingress.into_iter().collect::<Option<_>>()?,
            acls: self.acls.into_iter().collect::<Option<_>>()?,
            formats: self.formats.into_iter().collect::<Option<_>>()?,
        })
    }
}

/// Faults of unknown names for which the nearest known one is looked for: that takes time by the number
/// of names.
const SUGGESTIONS_MAX: usize = 32;

/// How many objects the whole state has, where a draft is a part of it.
pub(crate) struct Counts {
    vnets: usize,
    ports: usize,
    routes: usize,
    mappings: usize,
    ingress: usize,
    acls: usize,
    formats: usize,
}

impl Counts {
    pub(crate) fn of(host: &Host) -> Counts {
        Counts {
            vnets: host.vnets().len(),
            ports: host.ports().len(),
            routes: host.routes().len(),
            mappings: host.mappings().len(),
            ingress: host.ingress().len(),
            acls: host.acls().len(),
            formats: host.formats().len(),
        }
    }
}

impl From<&Draft> for Counts {
    fn from(draft: &Draft) -> Counts {
        Counts {
            vnets: draft.vnets.len(),
            ports: draft.ports.len(),
            routes: draft.routes.len(),
            mappings: draft.mappings.len(),
            ingress: draft.ingress.len(),
            acls: draft.acls.len(),
            formats: draft.formats.len(),
        }
    }
}

/// Every fault of a draft, in the order of the sections. A draft that is part of a state comes with the
/// counts of the whole.
pub(crate) fn validate(draft: &Draft, whole: Option<&Counts>) -> Vec<ModelError> {
    let own = Counts::from(draft);
    let counts = whole.unwrap_or(&own);
    let mut check = Check::new(draft);
    if let Some(underlay) = &draft.underlay {
        check.underlay(underlay);
    }
    check.limit(Section::Vnet, counts.vnets, limits::VNETS_MAX);
    for (index, vnet) in present(&draft.vnets) {
        check.vnet(index, vnet);
    }
    check.limit(Section::Port, counts.ports, limits::PORTS_MAX);
    for (index, port) in present(&draft.ports) {
        check.port(index, port);
    }
    check.limit(Section::Route, counts.routes, limits::ROUTES_MAX);
    for (index, route) in present(&draft.routes) {
        check.route(index, route);
    }
    check.limit(Section::Mapping, counts.mappings, limits::MAPPINGS_MAX);
    for (index, mapping) in present(&draft.mappings) {
        check.mapping(index, mapping);
    }
    check.limit(Section::Ingress, counts.ingress, limits::INGRESS_RULES_MAX);
    for (index, rule) in present(&draft.ingress) {
        check.ingress(index, rule);
    }
    check.limit(Section::Format, counts.formats, limits::FORMATS_MAX);
    for (index, format) in present(&draft.formats) {
        check.format(index, format);
    }
    check.limit(Section::Acl, counts.acls, limits::ACL_GROUPS_MAX);
    for (index, group) in present(&draft.acls) {
        check.acl(index, group);
    }
    check.errors
}

fn present<T>(items: &[Option<T>]) -> impl Iterator<Item = (usize, &T)> {
    items.iter().enumerate().filter_map(|(index, item)| item.as_ref().map(|item| (index, item)))
}

struct Check<'a> {
    draft: &'a Draft,
    errors: Vec<ModelError>,
    vnet_ids: HashSet<&'a VnetId>,
    port_ids: HashSet<&'a PortId>,
    acl_ids: HashSet<&'a AclGroupId>,
    /// Readable formats by name; the first of several.
    formats: HashMap<&'a FormatId, &'a Format>,
    vnis: HashSet<Vni>,
    /// Readable vnets by name; the first of several.
    vnets: HashMap<&'a VnetId, &'a Vnet>,
    seen_vnets: HashMap<&'a VnetId, Place>,
    seen_vnis: HashMap<Vni, Place>,
    seen_ports: HashMap<&'a PortId, Place>,
    seen_interfaces: HashMap<&'a IfName, Place>,
    seen_routes: HashMap<(&'a RouteScope, IpNet), Place>,
    seen_ingress: HashMap<IngressKey, Place>,
    seen_acls: HashMap<&'a AclGroupId, Place>,
    seen_formats: HashMap<&'a FormatId, Place>,
    /// Owners of a vnet's addresses: gateways, ports, then mappings.
    ip_owners: HashMap<(&'a VnetId, IpAddr), Place>,
    mac_owners: HashMap<(&'a VnetId, MacAddr), Place>,
}

impl<'a> Check<'a> {
    fn new(draft: &'a Draft) -> Check<'a> {
        let vnets = || present(&draft.vnets).map(|(_, vnet)| vnet);
        Check {
            draft,
            errors: Vec::new(),
            vnet_ids: vnets().map(|vnet| &vnet.id).chain(&draft.broken_vnets).collect(),
            port_ids: present(&draft.ports)
                .map(|(_, port)| &port.id)
                .chain(&draft.broken_ports)
                .collect(),
            formats: present(&draft.formats).map(|(_, format)| (&format.id, format)).collect(),
            acl_ids: present(&draft.acls)
                .map(|(_, group)| &group.id)
                .chain(&draft.broken_acls)
                .collect(),
            vnets: vnets().map(|vnet| (&vnet.id, vnet)).collect(),
            vnis: vnets().map(|vnet| vnet.vni).chain(draft.broken_vnis.iter().copied()).collect(),
            seen_vnets: HashMap::new(),
            seen_vnis: HashMap::new(),
            seen_ports: HashMap::new(),
            seen_interfaces: HashMap::new(),
            seen_routes: HashMap::new(),
            seen_ingress: HashMap::new(),
            seen_acls: HashMap::new(),
            seen_formats: HashMap::new(),
            ip_owners: HashMap::new(),
            mac_owners: HashMap::new(),
        }
    }

    fn fault(&mut self, place: Place, fault: Fault) {
        self.errors.push(ModelError::new(place, fault));
    }

    fn limit(&mut self, section: Section, count: usize, max: usize) {
        if count > max {
            self.fault(Place::section(section, ""), Fault::TooMany { count, max });
        }
    }

    fn unicast_ip(&mut self, place: &Place, ip: IpAddr) {
        if !is_unicast(ip) {
            self.fault(place.clone(), Fault::IpNotUnicast { ip });
        }
    }

    fn unicast_mac(&mut self, place: &Place, mac: MacAddr) {
        if mac.is_zero() || mac.is_multicast() {
            self.fault(place.clone(), Fault::MacNotUnicast { mac });
        }
    }

    fn network(&mut self, place: &Place, prefix: IpNet) {
        if prefix.addr() != prefix.network() {
            self.fault(place.clone(), Fault::HostBits { prefix });
        }
    }

    /// The name that was probably meant. A state with many faults is told so for the first of them.
    fn nearest<T: AsRef<str> + Clone>(&self, id: &T, known: &HashSet<&T>) -> Option<T> {
        if self.errors.len() >= SUGGESTIONS_MAX {
            return None;
        }
        let meant = nearest(id.as_ref(), known.iter().map(|known| T::as_ref(known)))?;
        known.iter().find(|known| T::as_ref(known) == meant).map(|known| (*known).clone())
    }

    fn known_vnet(&mut self, place: Place, id: &VnetId) {
        if !self.vnet_ids.contains(id) {
            let nearest = self.nearest(id, &self.vnet_ids);
            self.fault(place, Fault::UnknownVnet { id: id.clone(), nearest });
        }
    }

    /// The underlay has an address of the family, or the underlay itself is already at fault.
    fn reachable(&mut self, place: &Place, vtep: IpAddr) {
        let Some(underlay) = &self.draft.underlay else { return };
        if underlay.addresses.contains(&vtep) {
            self.fault(place.clone(), Fault::VtepIsOurs { vtep });
        } else if is_unicast(vtep)
            && !underlay.addresses.iter().any(|ours| ours.is_ipv4() == vtep.is_ipv4())
        {
            self.fault(place.clone(), Fault::NoUnderlayFamily { vtep });
        }
    }

    fn underlay(&mut self, underlay: &'a Underlay) {
        let interfaces = Place::section(Section::Underlay, "interfaces");
        if underlay.interfaces.is_empty() {
            self.fault(interfaces.clone(), Fault::Missing { legal: "at least one interface name" });
        }
        if underlay.interfaces.len() > limits::UNDERLAY_INTERFACES_MAX {
            let (count, max) = (underlay.interfaces.len(), limits::UNDERLAY_INTERFACES_MAX);
            self.fault(interfaces.clone(), Fault::TooMany { count, max });
        }
        for (element, interface) in underlay.interfaces.iter().enumerate() {
            once(
                &mut self.errors,
                &mut self.seen_interfaces,
                interface,
                interface,
                interfaces.clone().at(element),
            );
        }

        let addresses = Place::section(Section::Underlay, "addresses");
        if underlay.addresses.is_empty() {
            self.fault(
                addresses.clone(),
                Fault::Missing { legal: "at least one VTEP address of this host" },
            );
        }
        if underlay.addresses.len() > limits::UNDERLAY_ADDRESSES_MAX {
            let (count, max) = (underlay.addresses.len(), limits::UNDERLAY_ADDRESSES_MAX);
            self.fault(addresses.clone(), Fault::TooMany { count, max });
        }
        let mut seen = HashMap::new();
        for (element, &address) in underlay.addresses.iter().enumerate() {
            let place = addresses.clone().at(element);
            self.unicast_ip(&place, address);
            once(&mut self.errors, &mut seen, address, &address, place);
        }
        let peers = Place::section(Section::Underlay, "peer");
        if underlay.peers.len() > limits::UNDERLAY_PEERS_MAX {
            let (count, max) = (underlay.peers.len(), limits::UNDERLAY_PEERS_MAX);
            self.fault(peers, Fault::TooMany { count, max });
        }
        let mut seen = HashMap::new();
        for (element, peer) in underlay.peers.iter().enumerate() {
            let place = |field| Place::section(Section::Underlay, field).at(element);
            self.unicast_ip(&place("peer.vtep"), peer.vtep);
            self.reachable(&place("peer.vtep"), peer.vtep);
            once(&mut self.errors, &mut seen, peer.vtep, &peer.vtep, place("peer.vtep"));
            if let Some(format) = &peer.format {
                self.known_format(place("peer.format"), format);
                self.states_mss(place("peer.raise_mss"), format, peer.raise_mss);
            }
        }
        self.underlay_mtu(underlay);
        if underlay.merge_hold_us > limits::MERGE_HOLD_MAX_US {
            let (value, max) = (underlay.merge_hold_us.into(), limits::MERGE_HOLD_MAX_US.into());
            let fault = Fault::BadNumber { value, min: 0, max };
            self.fault(Place::section(Section::Underlay, "merge_hold_us"), fault);
        }
        if (underlay.rx, underlay.tx) == (UnderlayRx::Packet, UnderlayTx::Xdp) {
            let legal = "auto or packet where rx is packet: there are no rings".to_owned();
            let fault = Fault::BadWord { value: underlay.tx.name().to_owned(), legal };
            self.fault(Place::section(Section::Underlay, "tx"), fault);
        }
    }

    fn known_format(&mut self, place: Place, id: &FormatId) {
        let known = builtin::by_name(id.as_str()).is_some() || self.formats.contains_key(id);
        if !known && !self.draft.broken_formats.contains(id) {
            let names = self.formats.keys().map(|id| id.as_str());
            let nearest = nearest(id.as_str(), names.chain(crate::format::built_in_names()));
            let nearest = nearest.and_then(|name| name.parse().ok());
            self.fault(place, Fault::UnknownFormat { id: id.clone(), nearest });
        }
    }

    /// Asked to state the tenant's MSS, in a format that can.
    fn states_mss(&mut self, place: Place, id: &FormatId, wanted: Option<bool>) {
        let own = self.formats.get(id).map(|format| &format.descriptor);
        let format = builtin::by_name(id.as_str()).or(own);
        if wanted == Some(true) && format.is_some_and(|format| !format.states_mss()) {
            let legal =
                format!("false where the format is {id}, which cannot state a tenant's MSS");
            self.fault(place, Fault::BadWord { value: "true".to_owned(), legal });
        }
    }

    fn vni_fits(&mut self, place: Place, id: &FormatId, vni: Vni) {
        let own = self.formats.get(id).map(|format| &format.descriptor);
        let Some(max) = own.map(|descriptor| descriptor.vni.max()) else { return };
        if vni.get() > max {
            self.fault(place, Fault::VniTooLarge { vni, format: id.clone(), max });
        }
    }

    fn format(&mut self, index: usize, format: &'a Format) {
        let place = Place::object(Section::Format, index, "id").named(format.id.as_str());
        once(&mut self.errors, &mut self.seen_formats, &format.id, &format.id, place);
        // Against those before it, so that each pair is named once.
        let place = Place::object(Section::Format, index, "identifier").named(format.id.as_str());
        let before = present(&self.draft.formats).take_while(|(other, _)| *other < index);
        let faults = format.clashes(before.map(|(_, other)| other));
        for (with, fault) in faults {
            let message = fault.to_string();
            let fault = match with.parse() {
                Ok(with) => Fault::FormatClash { with, message },
                Err(_) => Fault::BadFormat { message },
            };
            self.fault(place.clone(), fault);
        }
    }

    fn underlay_mtu(&mut self, underlay: &Underlay) {
        let Some(mtu) = underlay.mtu else { return };
        let ports_v6 =
            present(&self.draft.ports).any(|(_, port)| port.ips.iter().any(IpAddr::is_ipv6));
        let gateways_v6 = present(&self.draft.vnets)
            .any(|(_, vnet)| vnet.gateways.iter().any(|gateway| gateway.ip.addr().is_ipv6()));
        let ipv6 = ports_v6 || gateways_v6;
        let vnets = present(&self.draft.vnets).map(|(_, vnet)| &vnet.format);
        let overhead = largest_overhead(underlay, vnets, || self.formats.values().copied());
        if let Some(fault) = underlay_mtu_fault(mtu.get(), overhead, ipv6) {
            self.fault(Place::section(Section::Underlay, "mtu"), fault);
        }
    }

    fn vnet(&mut self, index: usize, vnet: &'a Vnet) {
        let place = |field| Place::object(Section::Vnet, index, field).named(vnet.id.as_str());
        once(&mut self.errors, &mut self.seen_vnets, &vnet.id, &vnet.id, place("id"));
        once(&mut self.errors, &mut self.seen_vnis, vnet.vni, &vnet.vni, place("vni"));
        self.known_format(place("format"), &vnet.format);
        self.states_mss(place("raise_mss"), &vnet.format, Some(vnet.raise_mss));
        self.vni_fits(place("vni"), &vnet.format, vnet.vni);
        if vnet.gateways.len() > limits::GATEWAYS_PER_VNET_MAX {
            let (count, max) = (vnet.gateways.len(), limits::GATEWAYS_PER_VNET_MAX);
            self.fault(place("gateway"), Fault::TooMany { count, max });
        }
        for (element, gateway) in vnet.gateways.iter().enumerate() {
            let ip_place = place("gateway.ip").at(element);
            let mac_place = place("gateway.mac").at(element);
            self.unicast_ip(&ip_place, gateway.ip.addr());
            self.unicast_mac(&mac_place, gateway.mac);
            self.own_ip(&vnet.id, gateway.ip.addr(), ip_place);
            // The gateways of a vnet may share one MAC address, as those of IPv4 and IPv6 usually do.
            self.mac_owners.entry((&vnet.id, gateway.mac)).or_insert(mac_place);
        }
        if let Some(dhcp) = &vnet.dhcp {
            self.dhcp(&place, vnet, dhcp);
        }
    }

    fn port(&mut self, index: usize, port: &'a Port) {
        let place = |field| Place::object(Section::Port, index, field).named(port.id.as_str());
        once(&mut self.errors, &mut self.seen_ports, &port.id, &port.id, place("id"));
        self.known_vnet(place("vnet"), &port.vnet);
        let ifname = port.attach.ifname();
        once(&mut self.errors, &mut self.seen_interfaces, ifname, ifname, place("attach"));
        self.unicast_mac(&place("mac"), port.mac);
        match self.mac_owners.entry((&port.vnet, port.mac)) {
            Entry::Vacant(entry) => drop(entry.insert(place("mac"))),
            Entry::Occupied(entry) => {
                let fault = Fault::Overlap { value: port.mac.to_string(), by: entry.get().clone() };
                self.errors.push(ModelError::new(place("mac"), fault));
            }
        }
        if port.ips.len() > limits::IPS_PER_PORT_MAX {
            let (count, max) = (port.ips.len(), limits::IPS_PER_PORT_MAX);
            self.fault(place("ips"), Fault::TooMany { count, max });
        }
        for (element, &ip) in port.ips.iter().enumerate() {
            self.unicast_ip(&place("ips").at(element), ip);
            self.own_ip(&port.vnet, ip, place("ips").at(element));
        }
        if let Some(mtu) = port.mtu
            && mtu.get() < IPV6_MTU_MIN
            && port.ips.iter().any(IpAddr::is_ipv6)
        {
            self.fault(place("mtu"), Fault::PortMtuTooSmall { mtu });
        }
        self.port_policy(&place, port);
    }

    fn route(&mut self, index: usize, route: &'a EgressRoute) {
        let place = |field| Place::object(Section::Route, index, field);
        match &route.scope {
            RouteScope::Vnet(id) => self.known_vnet(place("vnet"), id),
            RouteScope::Port(id) if !self.port_ids.contains(id) => {
                let nearest = self.nearest(id, &self.port_ids);
                self.fault(place("port"), Fault::UnknownPort { id: id.clone(), nearest });
            }
            RouteScope::Port(_) => {}
        }
        self.network(&place("prefix"), route.prefix);
        if let RouteAction::Vnet(id) = &route.action {
            self.known_vnet(place("to"), id);
        }
        let key = (&route.scope, route.prefix);
        once(&mut self.errors, &mut self.seen_routes, key, &route.prefix, place("prefix"));
    }

    fn mapping(&mut self, index: usize, mapping: &'a Mapping) {
        let place = |field| Place::object(Section::Mapping, index, field);
        self.known_vnet(place("vnet"), &mapping.vnet);
        self.unicast_ip(&place("ip"), mapping.ip);
        self.own_ip(&mapping.vnet, mapping.ip, place("ip"));
        self.unicast_mac(&place("mac"), mapping.mac);
        // One MAC address may have many mappings, but none may claim that of a port or gateway here.
        if let Some(by) = self.mac_owners.get(&(&mapping.vnet, mapping.mac)) {
            let fault = Fault::Overlap { value: mapping.mac.to_string(), by: by.clone() };
            self.errors.push(ModelError::new(place("mac"), fault));
        }
        self.unicast_ip(&place("vtep"), mapping.vtep);
        self.reachable(&place("vtep"), mapping.vtep);
        // More than the underlay carries is no fault: it is what the far end takes, and the lesser of both holds.
        if let Some(mtu) = mapping.mtu
            && mtu.get() < IPV6_MTU_MIN
            && mapping.ip.is_ipv6()
        {
            self.fault(place("mtu"), Fault::MappingMtuTooSmall { mtu });
        }
    }

    fn ingress(&mut self, index: usize, rule: &IngressRule) {
        let place = |field| Place::object(Section::Ingress, index, field);
        if rule.delivers() && !self.vnis.contains(&rule.vni) && !self.draft.unknown_vnis {
            self.fault(place("vni"), Fault::UnknownVni { vni: rule.vni });
        }
        if let VtepMatch::Prefix(prefix) = rule.vtep {
            self.network(&place("vtep"), prefix);
        }
        let key = rule.key();
        once(&mut self.errors, &mut self.seen_ingress, key, &key, place("priority"));
    }

    fn own_ip(&mut self, vnet: &'a VnetId, ip: IpAddr, place: Place) {
        match self.ip_owners.entry((vnet, ip)) {
            Entry::Vacant(entry) => drop(entry.insert(place)),
            Entry::Occupied(entry) => {
                let fault = Fault::Overlap { value: ip.to_string(), by: entry.get().clone() };
                self.errors.push(ModelError::new(place, fault));
            }
        }
    }
}

/// A key may be used once.
fn once<K: Eq + Hash>(
    errors: &mut Vec<ModelError>,
    seen: &mut HashMap<K, Place>,
    key: K,
    shown: &dyn Display,
    place: Place,
) {
    match seen.entry(key) {
        Entry::Vacant(entry) => drop(entry.insert(place)),
        Entry::Occupied(entry) => {
            let fault = Fault::Duplicate { value: shown.to_string(), by: entry.get().clone() };
            errors.push(ModelError::new(place, fault));
        }
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        // The same station under a second name, by which no frame carries it.
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some(),
    };
    !(special || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}
