//! A cluster as one host sees it: which objects concern it, and what of them it carries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{
    AclGroupId, EgressRoute, IngressAction, IngressRule, Mapping, MappingKey, Object, ObjectKey,
    RouteAction, RouteScope, Underlay, VnetId, Vni,
};

use super::project::Held;
use super::{Cluster, HostState};
use crate::names::HostName;

/// What decides whether an object concerns a host.
#[derive(Debug)]
pub(super) struct View<'a> {
    cluster: &'a Cluster,
    me: &'a HostName,
    /// The host.
    pub(super) state: &'a HostState,
    /// Its place in the physical network.
    pub(super) underlay: Underlay,
    /// Vnets that concern it: those of its ports, and where their routes lead.
    pub(super) vnets: BTreeSet<VnetId>,
    /// ACL groups that its ports name.
    pub(super) acls: BTreeSet<AclGroupId>,
    /// VNIs of all vnets, and whether the vnet concerns the host.
    vnis: BTreeMap<Vni, bool>,
    /// Where other living hosts are reached.
    vteps: BTreeMap<&'a HostName, IpAddr>,
}

impl<'a> View<'a> {
    /// The view of `me`, with some of its objects held back; `None` without an underlay.
    pub(super) fn of(cluster: &'a Cluster, me: &'a HostName, held: &Held) -> Option<View<'a>> {
        let state = cluster.hosts.get(me)?;
        let underlay = match held.instead.get(&ObjectKey::Underlay) {
            Some(Some(Object::Underlay(underlay))) => underlay.clone(),
            Some(_) => return None,
            None => state.underlay.clone()?,
        };
        let kept = held.instead.values().filter_map(|kept| match kept {
            Some(Object::Port(port)) => Some(port),
            _ => None,
        });
        let ports = state.ports.iter().chain(kept);
        let (mut own, mut acls) = (BTreeSet::new(), BTreeSet::new());
        for port in ports {
            if !own.contains(&port.vnet) {
                own.insert(port.vnet.clone());
            }
            for id in &port.acl {
                if !acls.contains(id) {
                    acls.insert(id.clone());
                }
            }
        }
        let vnets = reached(cluster, state, own);
        let mut vnis = BTreeMap::new();
        for vnet in &cluster.vnets {
            *vnis.entry(vnet.vni).or_default() |= vnets.contains(&vnet.id);
        }
        let vteps = cluster
            .hosts
            .iter()
            .filter(|(name, state)| *name != me && state.live.is_some())
            .filter_map(|(name, state)| Some((name, vtep_of(state.underlay.as_ref()?, &underlay)?)))
            .collect();
        Some(View { cluster, me, state, underlay, vnets, acls, vnis, vteps })
    }

    /// The mapping of an address, and the host from one of whose ports it follows, if so. What is real goes
    /// before what was written down. Of two hosts that claim one address, the one whose name is first has it.
    pub(super) fn mapping(
        &self,
        vnet: &'a VnetId,
        ip: IpAddr,
    ) -> Option<(Mapping, Option<&'a HostName>)> {
        let claims = self.cluster.claims.of_ip(vnet, ip);
        let mut own = false;
        let mut derived = None;
        for claim in claims {
            own |= claim.host == *self.me;
            if derived.is_none()
                && let Some(vtep) = self.vteps.get(&claim.host)
                && let Some(state) = self.cluster.hosts.get(&claim.host)
                && let Some(port) = state.ports.get(&claim.port)
            {
                let vnet = vnet.clone();
                let mapping = Mapping { vnet, ip, mac: port.mac, vtep: *vtep, mtu: port.mtu };
                derived = Some((mapping, Some(&claim.host)));
            }
        }
        if derived.is_some() {
            // A port here owns its addresses.
            return derived.filter(|_| !own);
        }
        let written = self.cluster.mappings.get(&MappingKey { vnet: vnet.clone(), ip })?;
        let elsewhere = !self.underlay.addresses.contains(&written.vtep);
        elsewhere.then(|| (written.clone(), None))
    }

    /// Whether a route of a vnet is carried. A vnet that routes lead to has routes of its own only for ports in
    /// it, which are elsewhere; those could lead on to vnets that are not here.
    pub(super) fn carries_route(&self, route: &EgressRoute) -> bool {
        let here = match &route.scope {
            RouteScope::Vnet(id) => self.vnets.contains(id),
            RouteScope::Port(_) => false,
        };
        here && match &route.action {
            RouteAction::Vnet(id) => self.vnets.contains(id),
            RouteAction::Local | RouteAction::Trap | RouteAction::Drop => true,
        }
    }

    /// Whether an ingress rule is carried: those of vnets that are here, and those of no vnet.
    pub(super) fn carries_rule(&self, rule: &IngressRule) -> bool {
        let delivers = matches!(rule.action, IngressAction::DecapValidate | IngressAction::Decap);
        match self.vnis.get(&rule.vni) {
            Some(here) => *here || !delivers,
            None => true,
        }
    }

    /// What is carried under a key, nothing being held back, and for a mapping the host that it follows from.
    pub(super) fn carried(&self, key: &'a ObjectKey) -> (Option<Object>, Option<&'a HostName>) {
        let cluster = self.cluster;
        let object = match key {
            ObjectKey::Underlay => Some(Object::Underlay(self.underlay.clone())),
            ObjectKey::Vnet(id) => {
                let vnet = cluster.vnets.get(id).filter(|_| self.vnets.contains(id));
                vnet.cloned().map(Object::Vnet)
            }
            ObjectKey::Port(id) => self.state.ports.get(id).cloned().map(Object::Port),
            ObjectKey::Route(key) => {
                let route = match key.scope {
                    RouteScope::Port(_) => self.state.routes.get(key),
                    RouteScope::Vnet(_) => {
                        cluster.routes.get(key).filter(|route| self.carries_route(route))
                    }
                };
                route.cloned().map(Object::Route)
            }
            ObjectKey::Mapping(key) => {
                let here = self.vnets.contains(&key.vnet);
                let mapping = here.then(|| self.mapping(&key.vnet, key.ip)).flatten();
                let (mapping, from) = mapping.unzip();
                return (mapping.map(Object::Mapping), from.flatten());
            }
            ObjectKey::Ingress(key) => {
                let rule = cluster.ingress.get(key).filter(|rule| self.carries_rule(rule));
                rule.copied().map(Object::Ingress)
            }
            ObjectKey::Acl(id) => {
                let group = cluster.acls.get(id).filter(|_| self.acls.contains(id));
                group.cloned().map(Object::Acl)
            }
            ObjectKey::Format(id) => cluster.formats.get(id).cloned().map(Object::Format),
        };
        (object, None)
    }
}

/// `own`, and where the routes of those vnets and of the host's ports lead.
pub(super) fn reached(
    cluster: &Cluster,
    state: &HostState,
    own: BTreeSet<VnetId>,
) -> BTreeSet<VnetId> {
    let of_vnets = cluster.routes.iter().filter(|route| match &route.scope {
        RouteScope::Vnet(id) => own.contains(id),
        RouteScope::Port(_) => false,
    });
    let led_to: Vec<_> = of_vnets
        .chain(state.routes.iter())
        .filter_map(|route| match &route.action {
            RouteAction::Vnet(id) => Some(id.clone()),
            RouteAction::Local | RouteAction::Trap | RouteAction::Drop => None,
        })
        .collect();
    own.into_iter().chain(led_to).collect()
}

/// Where a host is reached from another: its first address of a family that the other has too. None where
/// both have one address: what is sent there would come back.
fn vtep_of(peer: &Underlay, own: &Underlay) -> Option<IpAddr> {
    let common = |ip: &&IpAddr| own.addresses.iter().any(|ours| ours.is_ipv4() == ip.is_ipv4());
    let vtep = peer.addresses.iter().find(common).copied();
    vtep.filter(|vtep| !own.addresses.contains(vtep))
}
