//! Everything one host is asked to carry, valid as a whole.

use std::net::IpAddr;

use culvert_wire::vni::Vni;

use crate::acl::AclGroup;
use crate::fault::{Fault, ModelError, Place, Section, Warning};
use crate::port::Port;
use crate::rules::{EgressRoute, IngressRule, Mapping, RouteScope};
use crate::underlay::Underlay;
use crate::validate::{Draft, validate};
use crate::vnet::Vnet;
use crate::{IPV4_MTU_MIN, IPV6_MTU_MIN, IPV6_OUTER_OVERHEAD};

/// The state of one host. A value of this type has passed every check in [`Host::new`], and cannot be
/// changed but by making a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    parts: HostParts,
}

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
}

impl Host {
    /// Checks the parts as a whole: references, uniqueness, address families, MTUs and limits.
    ///
    /// # Errors
    /// Every fault found, in the order of the sections.
    pub fn new(parts: HostParts) -> Result<Host, Vec<ModelError>> {
        let draft = Draft::from(parts);
        let errors = validate(&draft);
        match draft.complete() {
            Some(parts) if errors.is_empty() => Ok(Host { parts }),
            _ => Err(errors),
        }
    }

    /// As [`Host::new`], where parts may already have failed with `errors`: what remains is checked all the
    /// same, so that a user sees every fault at once.
    pub(crate) fn from_draft(
        draft: Draft,
        mut errors: Vec<ModelError>,
    ) -> Result<Host, Vec<ModelError>> {
        errors.extend(validate(&draft));
        match draft.complete() {
            Some(parts) if errors.is_empty() => Ok(Host { parts }),
            _ => {
                errors.sort_by_key(|error| error.place.order());
                Err(errors)
            }
        }
    }

    /// The physical network.
    pub fn underlay(&self) -> &Underlay {
        &self.parts.underlay
    }

    /// Virtual networks.
    pub fn vnets(&self) -> &[Vnet] {
        &self.parts.vnets
    }

    /// Attachments of tenants.
    pub fn ports(&self) -> &[Port] {
        &self.parts.ports
    }

    /// Egress routes.
    pub fn routes(&self) -> &[EgressRoute] {
        &self.parts.routes
    }

    /// Where addresses live.
    pub fn mappings(&self) -> &[Mapping] {
        &self.parts.mappings
    }

    /// What is taken from the underlay, as given: see [`IngressRule`] for what holds without a rule.
    pub fn ingress(&self) -> &[IngressRule] {
        &self.parts.ingress
    }

    /// Which flows ports may have.
    pub fn acls(&self) -> &[AclGroup] {
        &self.parts.acls
    }

    /// The ACL group of a name.
    pub fn acl(&self, id: &str) -> Option<&AclGroup> {
        self.parts.acls.iter().find(|group| group.id.as_str() == id)
    }

    /// The vnet of a name.
    pub fn vnet(&self, id: &str) -> Option<&Vnet> {
        self.parts.vnets.iter().find(|vnet| vnet.id.as_str() == id)
    }

    /// The port of a name.
    pub fn port(&self, id: &str) -> Option<&Port> {
        self.parts.ports.iter().find(|port| port.id.as_str() == id)
    }

    /// The rules for a VNI, the deciding ones first. Empty: the default of [`IngressRule`] holds.
    pub fn ingress_of(&self, vni: Vni) -> Vec<&IngressRule> {
        let mut rules: Vec<_> = self.parts.ingress.iter().filter(|rule| rule.vni == vni).collect();
        rules.sort_by_key(|rule| std::cmp::Reverse((rule.priority, rule.vtep.prefix_len())));
        rules
    }

    /// The routes that hold for a port: its own and those of its vnet. Empty: every destination is looked up
    /// in its own vnet.
    pub fn routes_of<'a>(&'a self, port: &'a Port) -> impl Iterator<Item = &'a EgressRoute> {
        self.parts.routes.iter().filter(|route| match &route.scope {
            RouteScope::Port(id) => *id == port.id,
            RouteScope::Vnet(id) => *id == port.vnet,
        })
    }

    /// What is wrong with an underlay device of this MTU, in bytes, if it is too small for the tenants
    /// of this state: the same that is asked of `underlay.mtu`, which need not be given.
    pub fn underlay_mtu_fault(&self, mtu: u32) -> Option<Fault> {
        let gateways = self.parts.vnets.iter().flat_map(|vnet| &vnet.gateways);
        let ipv6 = gateways.map(|gateway| gateway.ip.addr()).any(|ip| ip.is_ipv6())
            || self.parts.ports.iter().flat_map(|port| &port.ips).any(IpAddr::is_ipv6);
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        underlay_mtu_fault(mtu, &self.parts.underlay.addresses, ipv6)
    }

    /// Ports whose packets do not fit underlay devices of this MTU, in bytes. `device_mtu` is that of a
    /// port's device, which holds where the port has none. What [`Host::warnings`] says is left out.
    pub fn device_warnings(
        &self,
        underlay_mtu: u32,
        device_mtu: impl Fn(&Port) -> Option<u32>,
    ) -> Vec<Warning> {
        let underlay = &self.parts.underlay;
        let underlay_mtu = underlay.mtu.map_or(u32::MAX, |mtu| mtu.get().into()).min(underlay_mtu);
        let room = underlay_mtu.saturating_sub(outer_overhead(&underlay.addresses).into());
        let ports = self.parts.ports.iter().enumerate();
        ports
            .filter(|(_, port)| port.mtu.is_none() || underlay.mtu.is_none())
            .filter_map(|(index, port)| {
                let field = if port.mtu.is_some() { "mtu" } else { "attach" };
                let given = port.mtu.map(|mtu| u32::from(mtu.get()));
                let mtu = given.or_else(|| device_mtu(port)).filter(|mtu| *mtu > room)?;
                let place = Place::object(Section::Port, index, field).named(port.id.as_str());
                let ifname = port.attach.ifname().clone();
                Some(Warning::DeviceMtuAboveRoom { place, ifname, mtu, room })
            })
            .collect()
    }

    /// What is legal, but hardly meant.
    pub fn warnings(&self) -> Vec<Warning> {
        let Some(underlay_mtu) = self.parts.underlay.mtu else { return Vec::new() };
        let room =
            underlay_mtu.get().saturating_sub(outer_overhead(&self.parts.underlay.addresses));
        let ports = self.parts.ports.iter().enumerate();
        ports
            .filter_map(|(index, port)| {
                let mtu = port.mtu.filter(|mtu| mtu.get() > room)?;
                let place = Place::object(Section::Port, index, "mtu").named(port.id.as_str());
                Some(Warning::PortMtuAboveRoom { place, mtu, room })
            })
            .collect()
    }

    /// The parts, to be changed and checked again.
    pub fn into_parts(self) -> HostParts {
        self.parts
    }
}

/// What is wrong with an underlay of this MTU for tenants with or without IPv6.
pub(crate) fn underlay_mtu_fault(mtu: u16, addresses: &[IpAddr], ipv6: bool) -> Option<Fault> {
    let (family, needed) = if ipv6 { (6, IPV6_MTU_MIN) } else { (4, IPV4_MTU_MIN) };
    let overhead = outer_overhead(addresses);
    (mtu.saturating_sub(overhead) < needed).then_some(Fault::UnderlayMtuTooSmall {
        mtu,
        overhead,
        needed,
        family,
    })
}

/// Bytes that the encapsulation takes of the underlay's MTU, for the largest outer header in use.
pub(crate) fn outer_overhead(addresses: &[IpAddr]) -> u16 {
    if addresses.iter().any(IpAddr::is_ipv6) {
        IPV6_OUTER_OVERHEAD
    } else {
        crate::IPV4_OUTER_OVERHEAD
    }
}
