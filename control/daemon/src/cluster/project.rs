//! What of a cluster one host carries.
//!
//! A host is given what concerns it: its own objects, and the ACL groups that its ports name; the vnets that its ports are in and those that routes
//! lead them to, with their routes, mappings and ingress rules; and, for each port of another living
//! host in such a vnet, the mappings that follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::{
    EgressRoute, Host, HostParts, IngressAction, Keyed, Mapping, MappingKey, ModelError, Object,
    ObjectKey, Place, RouteAction, RouteScope, Underlay, VnetId,
};

use super::{Cluster, HostState};
use crate::names::HostName;

/// What one host is to carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// The state; `None` before the host has an underlay, or where nothing of it can be carried.
    pub host: Option<Host>,
    /// Mappings that follow from a port of another host.
    pub derived: BTreeMap<MappingKey, HostName>,
    /// Objects that concern the host and contradict others, and what is wrong. They are left out.
    pub faults: BTreeMap<ObjectKey, ModelError>,
}

/// Objects that are held back from a projection: left out, or kept as they were.
pub type Held = BTreeMap<ObjectKey, Option<Object>>;

/// What `me` is to carry.
pub fn project(cluster: &Cluster, me: &HostName) -> Projection {
    project_holding(cluster, me, &Held::new())
}

/// As [`project`], with some objects held back.
pub fn project_holding(cluster: &Cluster, me: &HostName, held: &Held) -> Projection {
    let mut projection = Projection::default();
    let mut left_out = Held::new();
    // Each round leaves at least one object more out, so it ends; seldom is there a second.
    loop {
        let Some((parts, derived)) = parts(cluster, me, held, &left_out) else {
            projection.host = None;
            return projection;
        };
        projection.derived = derived;
        let errors = match Host::new(parts) {
            Ok(host) => {
                projection.host = Some(host);
                return projection;
            }
            Err(errors) => errors,
        };
        let Some((parts, _)) = self::parts(cluster, me, held, &left_out) else { return projection };
        for error in errors {
            let key = ObjectKey::at(&error.place, &parts);
            let place = key.as_ref().map(ObjectKey::place);
            let key = key.unwrap_or(ObjectKey::Underlay);
            if let (
                Some(place),
                ObjectKey::Route(_) | ObjectKey::Mapping(_) | ObjectKey::Ingress(_),
            ) = (place, &key)
            {
                let field =
                    Place { field: error.place.field, element: error.place.element, ..place };
                let error = ModelError::new(field, error.fault);
                projection.faults.entry(key.clone()).or_insert(error);
            } else {
                let place = Place { index: None, ..error.place };
                let error = ModelError::new(place, error.fault);
                projection.faults.entry(key.clone()).or_insert(error);
            }
            // Without an underlay, or with too many of something, there is no state.
            if key == ObjectKey::Underlay || left_out.insert(key, None).is_some() {
                projection.host = None;
                return projection;
            }
        }
    }
}

/// Vnets that concern a host: those of its ports, and where their routes lead.
fn concerning(cluster: &Cluster, state: &HostState, held: &Held) -> BTreeSet<VnetId> {
    let kept = held.values().filter_map(|kept| match kept {
        Some(Object::Port(port)) => Some(port),
        _ => None,
    });
    let ports = state.ports.values().chain(kept);
    let own: BTreeSet<VnetId> = ports.map(|port| port.vnet.clone()).collect();
    let of_vnets = cluster.routes.values().filter(|route| match &route.scope {
        RouteScope::Vnet(id) => own.contains(id),
        RouteScope::Port(_) => false,
    });
    let led_to = of_vnets.chain(state.routes.values()).filter_map(|route| match &route.action {
        RouteAction::Vnet(id) => Some(id.clone()),
        RouteAction::Local | RouteAction::Trap | RouteAction::Drop => None,
    });
    let led_to: Vec<_> = led_to.collect();
    own.into_iter().chain(led_to).collect()
}

/// Where a host is reached from another: its first address of a family that the other has too.
fn vtep_of(peer: &Underlay, own: &Underlay) -> Option<IpAddr> {
    let common = |ip: &&IpAddr| own.addresses.iter().any(|ours| ours.is_ipv4() == ip.is_ipv4());
    peer.addresses.iter().find(common).copied()
}

/// Mappings that follow from ports of other living hosts. Of two hosts that claim one address, the one whose
/// name is first has it.
fn derive(
    cluster: &Cluster,
    me: &HostName,
    own: &Underlay,
    vnets: &BTreeSet<VnetId>,
) -> BTreeMap<MappingKey, (Mapping, HostName)> {
    let mut derived = BTreeMap::new();
    let living = cluster.hosts.iter().filter(|(name, state)| *name != me && state.live.is_some());
    for (name, state) in living {
        let Some(vtep) = state.underlay.as_ref().and_then(|underlay| vtep_of(underlay, own)) else {
            continue;
        };
        // Two hosts with one address: what is sent there would come back.
        if own.addresses.contains(&vtep) {
            continue;
        }
        for port in state.ports.values().filter(|port| vnets.contains(&port.vnet)) {
            for &ip in &port.ips {
                let vnet = port.vnet.clone();
                let mapping = Mapping { vnet, ip, mac: port.mac, vtep, mtu: port.mtu };
                derived.entry(mapping.key()).or_insert_with(|| (mapping, name.clone()));
            }
        }
    }
    derived
}

type Parts = (HostParts, BTreeMap<MappingKey, HostName>);

fn parts(cluster: &Cluster, me: &HostName, held: &Held, left_out: &Held) -> Option<Parts> {
    let state = cluster.hosts.get(me)?;
    let underlay = match held.get(&ObjectKey::Underlay) {
        Some(Some(Object::Underlay(underlay))) => underlay.clone(),
        Some(_) => return None,
        None => state.underlay.clone()?,
    };
    let keep = Keep { held, left_out };
    let vnets = concerning(cluster, state, held);
    let mut derived = derive(cluster, me, &underlay, &vnets);
    // What is real goes before what was written down.
    let written = cluster.mappings.iter().filter(|(key, mapping)| {
        vnets.contains(&key.vnet)
            && !derived.contains_key(key)
            && !underlay.addresses.contains(&mapping.vtep)
    });
    let written: Vec<Mapping> = written.map(|(_, mapping)| mapping.clone()).collect();
    // A port here owns its addresses.
    for port in state.ports.values() {
        for &ip in &port.ips {
            derived.remove(&MappingKey { vnet: port.vnet.clone(), ip });
        }
    }
    let origins = derived.iter().map(|(key, (_, host))| (key.clone(), host.clone())).collect();
    let mappings = derived.into_values().map(|(mapping, _)| mapping).chain(written);
    let of_vnets = cluster.routes.values().filter(|route| match &route.scope {
        RouteScope::Vnet(id) => vnets.contains(id),
        RouteScope::Port(_) => false,
    });
    // A vnet that routes lead to has routes of its own only for ports in it, which are elsewhere; those
    // could lead on to vnets that are not here.
    let reachable = |route: &&EgressRoute| match &route.action {
        RouteAction::Vnet(id) => vnets.contains(id),
        RouteAction::Local | RouteAction::Trap | RouteAction::Drop => true,
    };
    let routes = state.routes.values().chain(of_vnets.filter(reachable)).cloned();
    let vnis: BTreeSet<_> = cluster.vnets.values().map(|vnet| vnet.vni).collect();
    let ours: BTreeSet<_> =
        cluster.vnets.values().filter(|v| vnets.contains(&v.id)).map(|v| v.vni).collect();
    let ingress = cluster.ingress.values().filter(|rule| {
        let delivers = matches!(rule.action, IngressAction::DecapValidate | IngressAction::Decap);
        ours.contains(&rule.vni) || !(delivers && vnis.contains(&rule.vni))
    });
    let ports = state.ports.values().chain(held.values().filter_map(|kept| match kept {
        Some(Object::Port(port)) => Some(port),
        _ => None,
    }));
    let named: BTreeSet<_> = ports.flat_map(|port| &port.acl).collect();
    let groups = cluster.acls.values().filter(|group| named.contains(&group.id));
    let here = cluster.vnets.values().filter(|vnet| vnets.contains(&vnet.id));
    let parts = HostParts {
        vnets: keep.all(
            here.cloned(),
            |v| ObjectKey::Vnet(v.id.clone()),
            |o| match o {
                Object::Vnet(vnet) => Some(vnet),
                _ => None,
            },
        ),
        ports: keep.all(
            state.ports.values().cloned(),
            |p| ObjectKey::Port(p.id.clone()),
            |o| match o {
                Object::Port(port) => Some(port),
                _ => None,
            },
        ),
        routes: keep.all(
            routes,
            |r| ObjectKey::Route(r.key()),
            |o| match o {
                Object::Route(route) => Some(route),
                _ => None,
            },
        ),
        mappings: keep.all(
            mappings,
            |m| ObjectKey::Mapping(m.key()),
            |o| match o {
                Object::Mapping(mapping) => Some(mapping),
                _ => None,
            },
        ),
        ingress: keep.all(
            ingress.copied(),
            |r| ObjectKey::Ingress(r.key()),
            |o| match o {
                Object::Ingress(rule) => Some(rule),
                _ => None,
            },
        ),
        acls: keep.all(
            groups.cloned(),
            |g| ObjectKey::Acl(g.id.clone()),
            |o| match o {
                Object::Acl(group) => Some(group),
                _ => None,
            },
        ),
        underlay,
    };
    Some((parts, origins))
}

/// Puts held objects in the place of those that are wanted.
struct Keep<'a> {
    held: &'a Held,
    left_out: &'a Held,
}

impl Keep<'_> {
    fn all<T>(
        &self,
        items: impl Iterator<Item = T>,
        key: impl Fn(&T) -> ObjectKey,
        held: impl Fn(Object) -> Option<T>,
    ) -> Vec<T> {
        if self.held.is_empty() && self.left_out.is_empty() {
            return items.collect();
        }
        items
            .filter_map(|item| {
                let key = key(&item);
                if self.left_out.contains_key(&key) {
                    return None;
                }
                match self.held.get(&key) {
                    None => Some(item),
                    Some(kept) => kept.clone().and_then(&held),
                }
            })
            .collect()
    }
}
