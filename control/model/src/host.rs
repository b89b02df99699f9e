//! Everything one host is asked to carry, valid as a whole.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_wire::eth::MacAddr;
use culvert_wire::vni::Vni;

use crate::acl::AclGroup;
use crate::fault::{Fault, ModelError, Place, Section, Warning};
use crate::format::{self, Format};
use crate::ids::{AclGroupId, FormatId, IfName, PortId, VnetId};
use crate::index::{Count, Entry, Index};
use crate::objects::Objects;
use crate::port::Port;
use crate::rules::{EgressRoute, IngressRule, Mapping, RouteKey, RouteScope};
use crate::underlay::Underlay;
use crate::validate::{Draft, validate};
use crate::vnet::Vnet;
use crate::{IPV4_MTU_MIN, IPV4_OUTER_OVERHEAD, IPV6_MTU_MIN, IPV6_OUTER_OVERHEAD};

/// The state of one host. A value of this type has passed every check in [`Host::new`], and cannot be
/// changed but by making a new one.
///
/// It is a set of objects: two states of the same objects are equal, in whatever order they were given.
/// Versions of a state share what they have in common, so that one is cheap to clone and to change.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) underlay: Arc<Underlay>,
    pub(crate) vnets: Objects<Vnet>,
    pub(crate) ports: Objects<Port>,
    pub(crate) routes: Objects<EgressRoute>,
    pub(crate) mappings: Objects<Mapping>,
    pub(crate) ingress: Objects<IngressRule>,
    pub(crate) acls: Objects<AclGroup>,
    pub(crate) formats: Objects<Format>,
    pub(crate) index: Index,
}

impl PartialEq for Host {
    fn eq(&self, other: &Host) -> bool {
        // The index follows from the rest.
        self.underlay == other.underlay
            && self.vnets == other.vnets
            && self.ports == other.ports
            && self.routes == other.routes
            && self.mappings == other.mappings
            && self.ingress == other.ingress
            && self.acls == other.acls
            && self.formats == other.formats
    }
}

impl Eq for Host {}

/// What a [`Host`] is made of, not yet checked as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostParts {
    /// The physical network.
    pub underlay: Underlay,
    /// Virtual networks.
    pub vnets: Vec<Vnet>,
    /// Attachments of tenants.
    pub ports: Vec<Port>,
    /// Egress routes.
    pub routes: Vec<EgressRoute>,
    /// Where addresses live.
    pub mappings: Vec<Mapping>,
    /// What is taken from the underlay.
    pub ingress: Vec<IngressRule>,
    /// Which flows ports may have.
    pub acls: Vec<AclGroup>,
    /// Tunnel formats, beside the built-in ones.
    pub formats: Vec<Format>,
}

impl Host {
    /// Checks the parts as a whole: references, uniqueness, address families, MTUs and limits.
    ///
    /// # Errors
    /// Every fault found, in the order of the sections.
    pub fn new(parts: HostParts) -> Result<Host, Vec<ModelError>> {
        let draft = Draft::from(parts);
        let errors = validate(&draft, None);
        match draft.complete() {
            Some(parts) if errors.is_empty() => Ok(Host::of(parts)),
            _ => Err(errors),
        }
    }

    /// As [`Host::new`], where parts may already have failed with `errors`: what remains is checked all the
    /// same, so that a user sees every fault at once.
    pub(crate) fn from_draft(
        draft: Draft,
        mut errors: Vec<ModelError>,
    ) -> Result<Host, Vec<ModelError>> {
        errors.extend(validate(&draft, None));
        match draft.complete() {
            Some(parts) if errors.is_empty() => Ok(Host::of(parts)),
            _ => {
                errors.sort_by_key(|error| error.place.order());
                Err(errors)
            }
        }
    }

    /// An underlay alone, which may be wrong: only to be edited.
    pub(crate) fn unchecked(underlay: Underlay) -> Host {
        Host {
            underlay: Arc::new(underlay),
            vnets: Objects::default(),
            ports: Objects::default(),
            routes: Objects::default(),
            mappings: Objects::default(),
            ingress: Objects::default(),
            acls: Objects::default(),
            formats: Objects::default(),
            index: Index::default(),
        }
    }

    /// Of parts that are legal.
    fn of(parts: HostParts) -> Host {
        let HostParts { underlay, vnets, ports, routes, mut mappings, ingress, acls, formats } =
            parts;
        // Of a hundred thousand copies of a name, one is kept.
        let names: HashSet<&VnetId> = vnets.iter().map(|vnet| &vnet.id).collect();
        for mapping in &mut mappings {
            if let Some(name) = names.get(&mapping.vnet) {
                mapping.vnet = VnetId::clone(name);
            }
        }
        let index = Index::of(vnets.iter(), ports.iter(), routes.iter(), mappings.iter());
        Host {
            underlay: Arc::new(underlay),
            vnets: vnets.into_iter().collect(),
            ports: ports.into_iter().collect(),
            routes: routes.into_iter().collect(),
            mappings: mappings.into_iter().collect(),
            ingress: ingress.into_iter().collect(),
            acls: acls.into_iter().collect(),
            formats: formats.into_iter().collect(),
            index,
        }
    }

    /// The physical network.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Virtual networks.
    pub fn vnets(&self) -> &Objects<Vnet> {
        &self.vnets
    }

    /// Attachments of tenants.
    pub fn ports(&self) -> &Objects<Port> {
        &self.ports
    }

    /// Egress routes.
    pub fn routes(&self) -> &Objects<EgressRoute> {
        &self.routes
    }

    /// Where addresses live.
    pub fn mappings(&self) -> &Objects<Mapping> {
        &self.mappings
    }

    /// What is taken from the underlay, as given: see [`IngressRule`] for what holds without a rule.
    pub fn ingress(&self) -> &Objects<IngressRule> {
        &self.ingress
    }

    /// Which flows ports may have.
    pub fn acls(&self) -> &Objects<AclGroup> {
        &self.acls
    }

    /// Tunnel formats, beside the built-in ones.
    pub fn formats(&self) -> &Objects<Format> {
        &self.formats
    }

    /// The tunnel format of a name, if it is no built-in one.
    pub fn format(&self, id: &str) -> Option<&Format> {
        self.formats.find(|format| format.id.as_str().cmp(id))
    }

    /// The ACL group of a name.
    pub fn acl(&self, id: &str) -> Option<&AclGroup> {
        self.acls.find(|group| group.id.as_str().cmp(id))
    }

    /// The vnet of a name.
    pub fn vnet(&self, id: &str) -> Option<&Vnet> {
        self.vnets.find(|vnet| vnet.id.as_str().cmp(id))
    }

    /// The vnet of a VNI.
    pub fn vnet_of(&self, vni: Vni) -> Option<&Vnet> {
        self.vnets_with_vni(vni).next()
    }

    /// The port of a name.
    pub fn port(&self, id: &str) -> Option<&Port> {
        self.ports.find(|port| port.id.as_str().cmp(id))
    }

    /// The rules for a VNI, the deciding ones first. Empty: the default of [`IngressRule`] holds.
    pub fn ingress_of(&self, vni: Vni) -> Vec<&IngressRule> {
        let mut rules: Vec<_> = self.ingress.range(move |rule| rule.vni.cmp(&vni)).collect();
        rules.sort_by_key(|rule| std::cmp::Reverse((rule.priority, rule.vtep.prefix_len())));
        rules
    }

    /// The routes that hold for a port: its own and those of its vnet. Empty: every destination is looked up
    /// in its own vnet.
    pub fn routes_of<'a>(&'a self, port: &'a Port) -> impl Iterator<Item = &'a EgressRoute> {
        let own = RouteScope::Port(port.id.clone());
        self.routes_in(own).chain(self.routes_in(RouteScope::Vnet(port.vnet.clone())))
    }

    /// The routes of a scope, by prefix.
    pub fn routes_in(&self, scope: RouteScope) -> impl Iterator<Item = &EgressRoute> {
        self.routes.range(move |route| route.scope.cmp(&scope))
    }

    /// The routes that lead to a vnet.
    pub fn routes_to<'a>(&'a self, vnet: &'a VnetId) -> impl Iterator<Item = &'a RouteKey> {
        self.index.routed_to.range(move |Entry((to, _))| to.cmp(vnet)).map(|Entry((_, key))| key)
    }

    /// The scopes of routes that lead to a vnet, each once, however many routes each has.
    pub fn scopes_to<'a>(&'a self, vnet: &'a VnetId) -> Vec<&'a RouteScope> {
        let mut scopes: Vec<&RouteScope> = Vec::new();
        loop {
            let last = scopes.last().copied();
            let next = self.index.routed_to.first(|Entry((to, key))| {
                to.cmp(vnet).then_with(|| match last {
                    Some(last) if key.scope <= *last => Ordering::Less,
                    _ => Ordering::Greater,
                })
            });
            match next {
                Some(Entry((to, key))) if to == vnet => scopes.push(&key.scope),
                _ => return scopes,
            }
        }
    }

    /// The ports of a vnet, by MAC address.
    pub fn ports_in<'a>(&'a self, vnet: &'a VnetId) -> impl Iterator<Item = &'a Port> {
        let names = self.index.port_macs.range(move |Entry((of, _, _))| of.cmp(vnet));
        names.filter_map(|Entry((_, _, id))| self.ports.get(id))
    }

    /// The port that has an address in a vnet.
    pub fn port_with_ip<'a>(&'a self, vnet: &'a VnetId, ip: IpAddr) -> Option<&'a Port> {
        self.ports_with_ip(vnet, ip).next()
    }

    /// The port that has a MAC address in a vnet.
    pub fn port_with_mac<'a>(&'a self, vnet: &'a VnetId, mac: MacAddr) -> Option<&'a Port> {
        self.ports_with_mac(vnet, mac).next()
    }

    /// The ports that refer to an ACL group.
    pub fn ports_with_acl<'a>(&'a self, id: &'a AclGroupId) -> impl Iterator<Item = &'a Port> {
        let of = self.index.port_acls.range(move |Entry((group, _))| group.cmp(id));
        of.filter_map(|Entry((_, port))| self.ports.get(port))
    }

    /// All of them, while a change is checked.
    pub(crate) fn ports_with_ip<'a>(
        &'a self,
        vnet: &'a VnetId,
        ip: IpAddr,
    ) -> impl Iterator<Item = &'a Port> {
        let of = move |Entry((of, its, _)): &Entry<(VnetId, IpAddr, PortId)>| {
            of.cmp(vnet).then_with(|| its.cmp(&ip))
        };
        self.index.port_ips.range(of).filter_map(|Entry((_, _, id))| self.ports.get(id))
    }

    /// Likewise.
    pub(crate) fn ports_with_mac<'a>(
        &'a self,
        vnet: &'a VnetId,
        mac: MacAddr,
    ) -> impl Iterator<Item = &'a Port> {
        let of = move |Entry((of, its, _)): &Entry<(VnetId, MacAddr, PortId)>| {
            of.cmp(vnet).then_with(|| its.cmp(&mac))
        };
        self.index.port_macs.range(of).filter_map(|Entry((_, _, id))| self.ports.get(id))
    }

    /// All ports that are attached to a device, likewise.
    pub(crate) fn ports_on<'a>(&'a self, name: &'a IfName) -> impl Iterator<Item = &'a Port> {
        let of = move |Entry((its, _)): &Entry<(IfName, PortId)>| its.cmp(name);
        self.index.interfaces.range(of).filter_map(|Entry((_, id))| self.ports.get(id))
    }

    /// All vnets of a VNI, likewise.
    pub(crate) fn vnets_with_vni(&self, vni: Vni) -> impl Iterator<Item = &Vnet> {
        let of = move |Entry((its, _)): &Entry<(Vni, VnetId)>| its.cmp(&vni);
        self.index.vnis.range(of).filter_map(|Entry((_, id))| self.vnets.get(id))
    }

    /// The port that is attached to a device.
    pub fn port_on<'a>(&'a self, name: &'a IfName) -> Option<&'a Port> {
        self.ports_on(name).next()
    }

    /// The mapping of an address in a vnet.
    pub fn mapping(&self, vnet: &VnetId, ip: IpAddr) -> Option<&Mapping> {
        self.mappings.find(|mapping| mapping.vnet.cmp(vnet).then_with(|| mapping.ip.cmp(&ip)))
    }

    /// The mappings of a vnet, by address.
    pub fn mappings_in<'a>(&'a self, vnet: &'a VnetId) -> impl Iterator<Item = &'a Mapping> {
        self.mappings.range(move |mapping| mapping.vnet.cmp(vnet))
    }

    /// The mappings of a MAC address in a vnet, by IP address. A cluster, or a virtual router, has several.
    pub fn mappings_with_mac<'a>(
        &'a self,
        vnet: &'a VnetId,
        mac: MacAddr,
    ) -> impl Iterator<Item = &'a Mapping> {
        let of = move |Entry((of, its, _)): &Entry<(VnetId, MacAddr, IpAddr)>| {
            of.cmp(vnet).then_with(|| its.cmp(&mac))
        };
        self.index.mapping_macs.range(of).filter_map(|Entry((of, _, ip))| self.mapping(of, *ip))
    }

    /// The VTEPs that any mapping names, each once.
    pub fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        self.index.vteps.iter().map(|count| count.of)
    }

    /// Whether any mapping names this VTEP.
    pub fn has_vtep(&self, vtep: IpAddr) -> bool {
        self.index.vteps.contains(&vtep)
    }

    /// Whether any mapping of a vnet names this VTEP.
    pub fn has_vtep_in(&self, vnet: &VnetId, vtep: IpAddr) -> bool {
        let of = |count: &Count<(VnetId, IpAddr)>| {
            count.of.0.cmp(vnet).then_with(|| count.of.1.cmp(&vtep))
        };
        self.index.vnet_vteps.find(of).is_some()
    }

    /// The VTEPs that a vnet's mappings name, each once.
    pub fn vteps_in<'a>(&'a self, vnet: &'a VnetId) -> impl Iterator<Item = IpAddr> + 'a {
        self.index.vnet_vteps.range(move |count| count.of.0.cmp(vnet)).map(|count| count.of.1)
    }

    /// What is wrong with an underlay device of this MTU, in bytes, if it is too small for the tenants
    /// of this state: the same that is asked of `underlay.mtu`, which need not be given.
    pub fn underlay_mtu_fault(&self, mtu: u32) -> Option<Fault> {
        let gateways = self.vnets.iter().flat_map(|vnet| &vnet.gateways);
        let ipv6 = gateways.map(|gateway| gateway.ip.addr()).any(|ip| ip.is_ipv6())
            || self.ports.iter().flat_map(|port| &port.ips).any(IpAddr::is_ipv6);
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let vnets = self.vnets.iter().map(|vnet| &vnet.format);
        let overhead = largest_overhead(&self.underlay, vnets, || self.formats.iter());
        underlay_mtu_fault(mtu, overhead, ipv6)
    }

    /// Ports whose packets do not fit underlay devices of this MTU, in bytes. `device_mtu` is that of a
    /// port's device, which holds where the port has none. What [`Host::warnings`] says is left out.
    pub fn device_warnings(
        &self,
        underlay_mtu: u32,
        device_mtu: impl Fn(&Port) -> Option<u32>,
    ) -> Vec<Warning> {
        let underlay = &self.underlay;
        let underlay_mtu = underlay.mtu.map_or(u32::MAX, |mtu| mtu.get().into()).min(underlay_mtu);
        let mut rooms = Rooms::new(self, underlay_mtu);
        let ports = self.ports.iter();
        ports
            .filter(|port| port.mtu.is_none() || underlay.mtu.is_none())
            .filter_map(|port| {
                let field = if port.mtu.is_some() { "mtu" } else { "attach" };
                let given = port.mtu.map(|mtu| u32::from(mtu.get()));
                let room = rooms.of(&port.vnet);
                let mtu = given.or_else(|| device_mtu(port)).filter(|mtu| *mtu > room)?;
                let place = Place::section(Section::Port, field).named(port.id.as_str());
                let ifname = port.attach.ifname().clone();
                Some(Warning::DeviceMtuAboveRoom { place, ifname, mtu, room })
            })
            .collect()
    }

    /// What is legal, but hardly meant.
    pub fn warnings(&self) -> Vec<Warning> {
        let Some(underlay_mtu) = self.underlay.mtu else { return Vec::new() };
        let mut rooms = Rooms::new(self, underlay_mtu.get().into());
        let ports = self.ports.iter();
        ports
            .filter_map(|port| {
                let mtu = port.mtu?;
                let room = rooms.of(&port.vnet);
                if u32::from(mtu.get()) <= room {
                    return None;
                }
                let place = Place::section(Section::Port, "mtu").named(port.id.as_str());
                Some(Warning::PortMtuAboveRoom { place, mtu, room })
            })
            .collect()
    }

    /// The parts, to be changed and checked again; each list by key.
    pub fn into_parts(self) -> HostParts {
        HostParts {
            underlay: Arc::unwrap_or_clone(self.underlay),
            vnets: self.vnets.iter().cloned().collect(),
            ports: self.ports.iter().cloned().collect(),
            routes: self.routes.iter().cloned().collect(),
            mappings: self.mappings.iter().cloned().collect(),
            ingress: self.ingress.iter().copied().collect(),
            acls: self.acls.iter().cloned().collect(),
            formats: self.formats.iter().cloned().collect(),
        }
    }
}

/// The largest packets of tenants that an underlay carries whole, for each vnet in its formats.
struct Rooms<'a> {
    host: &'a Host,
    underlay_mtu: u32,
    known: BTreeMap<&'a VnetId, u32>,
}

impl<'a> Rooms<'a> {
    fn new(host: &'a Host, underlay_mtu: u32) -> Self {
        Self { host, underlay_mtu, known: BTreeMap::new() }
    }

    /// In bytes, in the longest format in which the vnet speaks to a VTEP.
    fn of(&mut self, vnet: &'a VnetId) -> u32 {
        if let Some(room) = self.known.get(vnet) {
            return *room;
        }
        let room = self.underlay_mtu.saturating_sub(self.overhead(vnet).into());
        self.known.insert(vnet, room);
        room
    }

    fn overhead(&self, vnet: &VnetId) -> u16 {
        let underlay = &self.host.underlay;
        let own = self.host.vnet(vnet.as_str()).map(|vnet| &vnet.format);
        let met = underlay.peers.iter().filter(|peer| self.host.has_vtep_in(vnet, peer.vtep));
        let formats = own.into_iter().chain(met.filter_map(|peer| peer.format.as_ref()));
        overhead_of(underlay, formats, || self.host.formats.iter())
    }
}

/// Bytes that the encapsulation takes of the underlay's MTU in the longest format in use: those of vnets, and of peers.
/// `described` are the formats that are not built in.
pub(crate) fn largest_overhead<'a, 'f, I: Iterator<Item = &'f Format>>(
    underlay: &'a Underlay,
    vnets: impl IntoIterator<Item = &'a FormatId>,
    described: impl Fn() -> I,
) -> u16 {
    let peers = underlay.peers.iter().filter_map(|peer| peer.format.as_ref());
    overhead_of(underlay, vnets.into_iter().chain(peers).collect::<BTreeSet<_>>(), described)
}

/// The same for the longest of these formats; that of VXLAN for none.
fn overhead_of<'a, 'f, I: Iterator<Item = &'f Format>>(
    underlay: &Underlay,
    formats: impl IntoIterator<Item = &'a FormatId>,
    described: impl Fn() -> I,
) -> u16 {
    let ipv6 = underlay.addresses.iter().any(IpAddr::is_ipv6);
    let keyed = underlay.peers.iter().any(|peer| peer.keys.is_keyed());
    let overheads =
        formats.into_iter().filter_map(|id| format::outer_overhead(id, described(), ipv6, keyed));
    let vxlan = if ipv6 { IPV6_OUTER_OVERHEAD } else { IPV4_OUTER_OVERHEAD };
    overheads.max().unwrap_or(vxlan)
}

/// What is wrong with an underlay of this MTU, of which the encapsulation takes `overhead` bytes, for tenants with or
/// without IPv6.
pub(crate) fn underlay_mtu_fault(mtu: u16, overhead: u16, ipv6: bool) -> Option<Fault> {
    let (family, needed) = if ipv6 { (6, IPV6_MTU_MIN) } else { (4, IPV4_MTU_MIN) };
    (mtu.saturating_sub(overhead) < needed).then_some(Fault::UnderlayMtuTooSmall {
        mtu,
        overhead,
        needed,
        family,
    })
}
