//! Checks of ACL groups, and of what ports and vnets refer to of them and of DHCP.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Check, once};
use crate::acl::{AclGroup, AclRule};
use crate::dhcp::Dhcp;
use crate::fault::{Fault, Place, Section};
use crate::ids::AclGroupId;
use crate::limits;
use crate::nearest;
use crate::port::Port;
use crate::vnet::Vnet;

impl<'a> Check<'a> {
    pub(super) fn acl(&mut self, index: usize, group: &'a AclGroup) {
        let place = |field| Place::object(Section::Acl, index, field).named(group.id.as_str());
        once(&mut self.errors, &mut self.seen_acls, &group.id, &group.id, place("id"));
        let (count, max) = (group.rules.len(), limits::ACL_RULES_PER_GROUP_MAX);
        if count > max {
            self.fault(place("rule"), Fault::TooMany { count, max });
        }
        for (element, rule) in group.rules.iter().enumerate() {
            self.acl_rule(&|field| place(field).at(element), rule);
        }
    }

    fn acl_rule(&mut self, place: &dyn Fn(&'static str) -> Place, rule: &AclRule) {
        let protocol = rule.protocol;
        for (field, ports) in
            [("rule.local_ports", &rule.local_ports), ("rule.remote_ports", &rule.remote_ports)]
        {
            if !ports.is_any() && !protocol.has_ports() {
                self.fault(place(field), Fault::PortsWithoutProtocol { protocol });
            }
            let (count, max) = (ports.0.len(), limits::ACL_PORT_RANGES_MAX);
            if count > max {
                self.fault(place(field), Fault::TooMany { count, max });
            }
        }
        if let Some(remote) = rule.remote {
            self.network(&place("rule.remote"), remote);
            let family = if remote.addr().is_ipv4() { 4 } else { 6 };
            if protocol.family().is_some_and(|only| only != family) {
                let fault = Fault::ProtocolOfOtherFamily { protocol, remote };
                self.fault(place("rule.remote"), fault);
            }
        }
    }

    pub(super) fn port_policy(&mut self, place: &dyn Fn(&'static str) -> Place, port: &'a Port) {
        let (count, max) = (port.acl.len(), limits::ACL_GROUPS_PER_PORT_MAX);
        if count > max {
            self.fault(place("acl"), Fault::TooMany { count, max });
        }
        let mut seen = HashMap::new();
        for (element, id) in port.acl.iter().enumerate() {
            once(&mut self.errors, &mut seen, id, id, place("acl").at(element));
            if !self.acl_ids.contains(id) {
                let near = nearest(id.as_str(), self.acl_ids.iter().map(|id| id.as_str()));
                let nearest = near.and_then(|near| AclGroupId::new(near).ok());
                self.fault(place("acl").at(element), Fault::UnknownAcl { id: id.clone(), nearest });
            }
        }
        let vnet = self.vnets.get(&port.vnet).copied();
        if let Some(vnet) = vnet.filter(|vnet| vnet.dhcp.is_some()) {
            for (element, &ip) in port.ips.iter().enumerate() {
                if !on_link(vnet, ip) {
                    self.fault(place("ips").at(element), Fault::NoSubnet { ip });
                }
            }
        }
    }

    pub(super) fn dhcp(
        &mut self,
        place: &dyn Fn(&'static str) -> Place,
        vnet: &'a Vnet,
        dhcp: &'a Dhcp,
    ) {
        for (field, servers) in [("dhcp.dns", &dhcp.dns), ("dhcp.ntp", &dhcp.ntp)] {
            let (count, max) = (servers.len(), limits::DHCP_SERVERS_MAX);
            if count > max {
                self.fault(place(field), Fault::TooMany { count, max });
            }
            let mut seen = HashMap::new();
            for (element, ip) in servers.iter().enumerate() {
                let at = place(field).at(element);
                self.unicast_ip(&at, *ip);
                once(&mut self.errors, &mut seen, ip, ip, at);
            }
        }
        let (count, max) = (dhcp.routes.len(), limits::DHCP_ROUTES_MAX);
        if count > max {
            self.fault(place("dhcp.route"), Fault::TooMany { count, max });
        }
        let mut seen = HashMap::new();
        for (element, route) in dhcp.routes.iter().enumerate() {
            let at = place("dhcp.route").at(element);
            self.network(&at, route.prefix.into());
            once(&mut self.errors, &mut seen, route.prefix, &route.prefix, at.clone());
            if !on_link(vnet, IpAddr::V4(route.via)) {
                self.fault(at, Fault::RouterNotOnLink { via: route.via.into() });
            }
        }
        let (min, max) = (Dhcp::LEASE_MIN_S, Dhcp::LEASE_MAX_S);
        if !(min..=max).contains(&dhcp.lease_s) {
            let value = dhcp.lease_s.into();
            let fault = Fault::BadNumber { value, min: min.into(), max: max.into() };
            self.fault(place("dhcp.lease"), fault);
        }
    }
}

/// Whether tenants of the vnet reach an address without a router.
fn on_link(vnet: &Vnet, ip: IpAddr) -> bool {
    vnet.gateways.iter().any(|gateway| gateway.ip.contains(&ip))
}
