//! The part of a state that edits can have broken.
//!
//! The state before was legal, so a fault of the new one involves an object that was touched. Into the
//! neighbourhood of a touched object belongs what it refers to, what refers to it if it is gone, and who
//! else has its names, numbers and addresses. A fault of the whole is then a fault of the neighbourhood,
//! and the reverse: where a new rule relates objects in another way, they have to be gathered here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_wire::eth::MacAddr;
use culvert_wire::vni::Vni;

use super::{Edit, ObjectKey};
use crate::host::{Host, HostParts};
use crate::ids::{AclGroupId, FormatId, PortId, VnetId};
use crate::objects::{Keyed, Objects};
use crate::port::Port;
use crate::rules::{IngressKey, Mapping, MappingKey, RouteAction, RouteKey, RouteScope};
use crate::vnet::Vnet;

/// Objects that are named for having lost what they refer to, of a kind and for each edit: one is enough
/// to refuse, more help to see what is missing.
const REFERRERS_MAX: usize = 16;

/// Names of the objects of a neighbourhood. One that does not exist is no fault of its own.
#[derive(Default)]
struct Near {
    vnets: BTreeSet<VnetId>,
    ports: BTreeSet<PortId>,
    routes: BTreeSet<RouteKey>,
    mappings: BTreeSet<MappingKey>,
    ingress: BTreeSet<IngressKey>,
    acls: BTreeSet<AclGroupId>,
    formats: BTreeSet<FormatId>,
}

/// The neighbourhood of what the edits touched, as it is in `new`.
pub(super) fn parts(old: &Host, new: &Host, edits: &[Edit]) -> HostParts {
    // Nearly everything depends on the underlay, which changes rarely.
    if old.underlay != new.underlay
        || edits.iter().any(|edit| touches_peers(new, edit))
        || edits.iter().any(|edit| edit.key() == ObjectKey::Underlay)
    {
        return new.clone().into_parts();
    }
    let mut near = Near::default();
    let keys: BTreeSet<ObjectKey> = edits.iter().map(Edit::key).collect();
    for key in &keys {
        match key {
            ObjectKey::Underlay => {}
            ObjectKey::Vnet(id) => near.vnet(new, old.vnets.get(id), id),
            ObjectKey::Port(id) => near.port(new, id),
            ObjectKey::Route(key) => drop(near.routes.insert(key.clone())),
            ObjectKey::Mapping(key) => near.mapping(new, key),
            ObjectKey::Ingress(key) => drop(near.ingress.insert(*key)),
            ObjectKey::Acl(id) => near.acl(new, id),
            ObjectKey::Format(id) => near.format(new, id),
        }
    }
    near.close(new);
    near.as_it_is(new)
}

/// Whether the underlay's peers have this format.
fn touches_peers(host: &Host, edit: &Edit) -> bool {
    let ObjectKey::Format(id) = edit.key() else { return false };
    host.underlay.peers.iter().any(|peer| peer.format.as_ref() == Some(&id))
}

impl Near {
    fn vnet(&mut self, host: &Host, old: Option<&Vnet>, id: &VnetId) {
        self.vnets.insert(id.clone());
        let new = host.vnets.get(id);
        if let Some(old) = old
            && new.is_none_or(|new| new.vni != old.vni)
        {
            let rules = host.ingress.range(move |rule| rule.vni.cmp(&old.vni));
            let rules = rules.filter(|rule| rule.delivers());
            self.ingress.extend(rules.take(REFERRERS_MAX).map(Keyed::key));
        }
        let Some(new) = new else { return self.referrers(host, id) };
        self.owners_of_vni(host, new.vni);
        // Addresses of all its ports have to be in subnets of the gateways.
        if new.dhcp.is_some()
            && old.is_none_or(|old| old.dhcp.is_none() || old.gateways != new.gateways)
        {
            self.ports.extend(host.ports_in(id).map(Keyed::key));
        }
        for gateway in &new.gateways {
            self.owners_of_ip(host, id, gateway.ip.addr());
            self.owners_of_mac(host, id, gateway.mac);
        }
    }

    /// Some of what refers to a vnet that is gone.
    fn referrers(&mut self, host: &Host, id: &VnetId) {
        self.ports.extend(host.ports_in(id).take(REFERRERS_MAX).map(Keyed::key));
        self.mappings.extend(host.mappings_in(id).take(REFERRERS_MAX).map(Keyed::key));
        let own = host.routes_in(RouteScope::Vnet(id.clone()));
        self.routes.extend(own.take(REFERRERS_MAX).map(Keyed::key));
        self.routes.extend(host.routes_to(id).take(REFERRERS_MAX).cloned());
    }

    fn port(&mut self, host: &Host, id: &PortId) {
        let Some(Port { vnet, attach, mac, ips, .. }) = host.ports.get(id) else {
            let own = host.routes_in(RouteScope::Port(id.clone()));
            self.routes.extend(own.take(REFERRERS_MAX).map(Keyed::key));
            return;
        };
        self.ports.insert(id.clone());
        self.ports.extend(host.ports_on(attach.ifname()).map(Keyed::key));
        self.owners_of_mac(host, vnet, *mac);
        for ip in ips {
            self.owners_of_ip(host, vnet, *ip);
        }
    }

    fn mapping(&mut self, host: &Host, key: &MappingKey) {
        let Some(Mapping { vnet, ip, mac, .. }) = host.mappings.get(key) else { return };
        self.mappings.insert(key.clone());
        self.ports.extend(host.ports_with_ip(vnet, *ip).map(Keyed::key));
        self.ports.extend(host.ports_with_mac(vnet, *mac).map(Keyed::key));
    }

    fn acl(&mut self, host: &Host, id: &AclGroupId) {
        if host.acls.contains(id) {
            self.acls.insert(id.clone());
        } else {
            self.ports.extend(host.ports_with_acl(id).take(REFERRERS_MAX).map(Keyed::key));
        }
    }

    fn format(&mut self, host: &Host, id: &FormatId) {
        if !host.formats.contains(id) {
            let users = host.vnets.iter().filter(|vnet| vnet.format == *id);
            self.vnets.extend(users.take(REFERRERS_MAX).map(Keyed::key));
            return;
        }
        // Each has to be told from every other.
        self.formats.extend(host.formats.iter().map(Keyed::key));
        let users = host.vnets.iter().filter(|vnet| vnet.format == *id);
        self.vnets.extend(users.map(Keyed::key));
    }

    fn owners_of_vni(&mut self, host: &Host, vni: Vni) {
        self.vnets.extend(host.vnets_with_vni(vni).map(Keyed::key));
    }

    fn owners_of_ip(&mut self, host: &Host, vnet: &VnetId, ip: IpAddr) {
        self.ports.extend(host.ports_with_ip(vnet, ip).map(Keyed::key));
        self.mappings.extend(host.mapping(vnet, ip).map(Keyed::key));
    }

    fn owners_of_mac(&mut self, host: &Host, vnet: &VnetId, mac: MacAddr) {
        self.ports.extend(host.ports_with_mac(vnet, mac).map(Keyed::key));
        let mappings = host.mappings_with_mac(vnet, mac);
        self.mappings.extend(mappings.take(REFERRERS_MAX).map(Keyed::key));
    }

    /// Adds what the objects refer to, so that none of them misses it for not having been gathered.
    fn close(&mut self, host: &Host) {
        for key in &self.routes {
            match &key.scope {
                RouteScope::Port(id) => drop(self.ports.insert(id.clone())),
                RouteScope::Vnet(id) => drop(self.vnets.insert(id.clone())),
            }
            if let Some(RouteAction::Vnet(id)) = host.routes.get(key).map(|route| &route.action) {
                self.vnets.insert(id.clone());
            }
        }
        for key in &self.mappings {
            self.vnets.insert(key.vnet.clone());
        }
        for key in &self.ingress {
            self.vnets.extend(host.vnets_with_vni(key.vni).map(Keyed::key));
        }
        // The underlay is part of every neighbourhood.
        self.formats.extend(host.underlay.peers.iter().filter_map(|peer| peer.format.clone()));
        for port in self.ports.iter().filter_map(|id| host.ports.get(id)) {
            self.vnets.insert(port.vnet.clone());
            self.acls.extend(port.acl.iter().cloned());
        }
        for vnet in self.vnets.iter().filter_map(|id| host.vnets.get(id)) {
            self.formats.insert(vnet.format.clone());
        }
    }

    fn as_it_is(&self, host: &Host) -> HostParts {
        HostParts {
            underlay: host.underlay().clone(),
            vnets: present(&host.vnets, &self.vnets),
            ports: present(&host.ports, &self.ports),
            routes: present(&host.routes, &self.routes),
            mappings: present(&host.mappings, &self.mappings),
            ingress: present(&host.ingress, &self.ingress),
            acls: present(&host.acls, &self.acls),
            formats: present(&host.formats, &self.formats),
        }
    }
}

fn present<T: Keyed + Clone>(objects: &Objects<T>, keys: &BTreeSet<T::Key>) -> Vec<T> {
    keys.iter().filter_map(|key| objects.get(key)).cloned().collect()
}
