//! Who in a state has an address, a name, a number: what the checks of an edit and the tables of the
//! packet path ask, kept up with each edit.
//!
//! An index holds pairs of what is had and who has it. In a legal state most have one owner, but while a
//! change is checked there may be two.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_wire::eth::MacAddr;
use culvert_wire::vni::Vni;

use crate::ids::{AclGroupId, IfName, PortId, VnetId};
use crate::objects::{Keyed, Objects};
use crate::port::Port;
use crate::rules::{EgressRoute, Mapping, RouteAction, RouteKey};
use crate::vnet::Vnet;

/// A pair or triple that is its own key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry<T>(pub(crate) T);

impl<T: Ord + Clone> Keyed for Entry<T> {
    type Key = Entry<T>;

    fn key(&self) -> Self::Key {
        self.clone()
    }

    fn compare(&self, key: &Self::Key) -> Ordering {
        self.cmp(key)
    }
}

/// How often something is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Count<K> {
    pub(crate) of: K,
    count: usize,
}

impl<K: Ord + Clone> Keyed for Count<K> {
    type Key = K;

    fn key(&self) -> K {
        self.of.clone()
    }

    fn compare(&self, key: &K) -> Ordering {
        self.of.cmp(key)
    }
}

/// Everything that is indexed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) vnis: Objects<Entry<(Vni, VnetId)>>,
    pub(crate) interfaces: Objects<Entry<(IfName, PortId)>>,
    pub(crate) port_ips: Objects<Entry<(VnetId, IpAddr, PortId)>>,
    pub(crate) port_macs: Objects<Entry<(VnetId, MacAddr, PortId)>>,
    pub(crate) port_acls: Objects<Entry<(AclGroupId, PortId)>>,
    pub(crate) mapping_macs: Objects<Entry<(VnetId, MacAddr, IpAddr)>>,
    pub(crate) routed_to: Objects<Entry<(VnetId, RouteKey)>>,
    /// VTEPs, and how many mappings name each.
    pub(crate) vteps: Objects<Count<IpAddr>>,
    /// The same, vnet by vnet.
    pub(crate) vnet_vteps: Objects<Count<(VnetId, IpAddr)>>,
}

impl Index {
    /// Of whole lists.
    pub(crate) fn of<'a>(
        vnets: impl Iterator<Item = &'a Vnet>,
        ports: impl Iterator<Item = &'a Port> + Clone,
        routes: impl Iterator<Item = &'a EgressRoute>,
        mappings: impl Iterator<Item = &'a Mapping> + Clone,
    ) -> Index {
        let ips = |port: &'a Port| {
            port.ips.iter().map(|ip| Entry((port.vnet.clone(), *ip, port.id.clone())))
        };
        let mut by_vtep: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let mut by_vnet: BTreeMap<(VnetId, IpAddr), usize> = BTreeMap::new();
        for mapping in mappings.clone() {
            *by_vtep.entry(mapping.vtep).or_default() += 1;
            *by_vnet.entry((mapping.vnet.clone(), mapping.vtep)).or_default() += 1;
        }
        Index {
            vnis: vnets.map(|vnet| Entry((vnet.vni, vnet.id.clone()))).collect(),
            interfaces: ports.clone().map(interface).collect(),
            port_ips: ports.clone().flat_map(ips).collect(),
            port_macs: ports.clone().map(port_mac).collect(),
            port_acls: ports.flat_map(port_acls).collect(),
            mapping_macs: mappings.map(mapping_mac).collect(),
            routed_to: routes.filter_map(routed_to).collect(),
            vteps: by_vtep.into_iter().map(|(of, count)| Count { of, count }).collect(),
            vnet_vteps: by_vnet.into_iter().map(|(of, count)| Count { of, count }).collect(),
        }
    }

    pub(crate) fn vnet(&mut self, old: Option<&Vnet>, new: Option<&Vnet>) {
        let entry = |vnet: &Vnet| Entry((vnet.vni, vnet.id.clone()));
        exchange(&mut self.vnis, old.map(entry), new.map(entry));
    }

    pub(crate) fn port(&mut self, old: Option<&Port>, new: Option<&Port>) {
        exchange(&mut self.interfaces, old.map(interface), new.map(interface));
        exchange(&mut self.port_macs, old.map(port_mac), new.map(port_mac));
        let ips = |port: Option<&Port>| -> Vec<_> {
            let all = port.into_iter().flat_map(|port| port.ips.iter().map(move |ip| (port, ip)));
            all.map(|(port, ip)| Entry((port.vnet.clone(), *ip, port.id.clone()))).collect()
        };
        for gone in ips(old) {
            self.port_ips.remove(&gone);
        }
        for entry in ips(new) {
            self.port_ips.insert(entry);
        }
        if old.map(|port| &port.acl) != new.map(|port| &port.acl) {
            for gone in old.into_iter().flat_map(port_acls) {
                self.port_acls.remove(&gone);
            }
            for entry in new.into_iter().flat_map(port_acls) {
                self.port_acls.insert(entry);
            }
        }
    }

    pub(crate) fn route(&mut self, old: Option<&EgressRoute>, new: Option<&EgressRoute>) {
        exchange(&mut self.routed_to, old.and_then(routed_to), new.and_then(routed_to));
    }

    pub(crate) fn mapping(&mut self, old: Option<&Mapping>, new: Option<&Mapping>) {
        exchange(&mut self.mapping_macs, old.map(mapping_mac), new.map(mapping_mac));
        for (mapping, by) in [(new, 1), (old, -1)] {
            if let Some(mapping) = mapping {
                count(&mut self.vteps, mapping.vtep, by);
                count(&mut self.vnet_vteps, (mapping.vnet.clone(), mapping.vtep), by);
            }
        }
    }
}

fn interface(port: &Port) -> Entry<(IfName, PortId)> {
    Entry((port.attach.ifname().clone(), port.id.clone()))
}

fn port_mac(port: &Port) -> Entry<(VnetId, MacAddr, PortId)> {
    Entry((port.vnet.clone(), port.mac, port.id.clone()))
}

fn port_acls(port: &Port) -> impl Iterator<Item = Entry<(AclGroupId, PortId)>> + '_ {
    port.acl.iter().map(|id| Entry((id.clone(), port.id.clone())))
}

fn mapping_mac(mapping: &Mapping) -> Entry<(VnetId, MacAddr, IpAddr)> {
    Entry((mapping.vnet.clone(), mapping.mac, mapping.ip))
}

fn routed_to(route: &EgressRoute) -> Option<Entry<(VnetId, RouteKey)>> {
    match &route.action {
        RouteAction::Vnet(id) => Some(Entry((id.clone(), route.key()))),
        _ => None,
    }
}

fn exchange<T: Keyed<Key = T> + Clone + PartialEq>(
    objects: &mut Objects<T>,
    old: Option<T>,
    new: Option<T>,
) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        objects.remove(&old);
    }
    if let Some(new) = new {
        objects.insert(new);
    }
}

fn count<K: Ord + Clone>(counts: &mut Objects<Count<K>>, of: K, by: isize) {
    let now = counts.get(&of).map_or(0, |known| known.count).saturating_add_signed(by);
    if now == 0 {
        counts.remove(&of);
    } else {
        counts.insert(Count { of, count: now });
    }
}
