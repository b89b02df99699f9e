//! The projection of a cluster from that of an earlier version, at the cost of what changed.
//!
//! What [`project`] says object by object is asked only of the keys that a change can have touched: the
//! objects that differ; the addresses of ports elsewhere that differ, or whose host came or went; and all
//! of a vnet that concerns the host since, or no longer. Where that is not enough (another underlay,
//! contradictions), the whole is made anew.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_model::objects::changes;
use culvert_model::{
    Edit, IngressRule, Keyed, MappingKey, ObjectKey, Objects, Port, RouteScope, VnetId, Vni,
};

use super::project::{Derived, Held, Projection, project};
use super::view::View;
use super::{Cluster, HostState};
use crate::names::HostName;
use crate::report::find;

impl Projection {
    /// What `me` is to carry of `new`, where this is what it was to carry of `old`.
    #[must_use]
    pub fn advanced(&self, old: &Cluster, new: &Cluster, me: &HostName) -> Projection {
        self.try_advanced(old, new, me).unwrap_or_else(|| project(new, me))
    }

    fn try_advanced(&self, old: &Cluster, new: &Cluster, me: &HostName) -> Option<Projection> {
        let host = self.host.as_ref().filter(|_| self.faults.is_empty())?;
        let held = Held::default();
        let (before, after) = (View::of(old, me, &held)?, View::of(new, me, &held)?);
        if before.underlay != after.underlay {
            return None;
        }
        let keys = touched(old, new, me, &before, &after);
        let mut derived = self.derived.clone();
        let mut edits = Vec::new();
        for key in &keys {
            let (object, from) = after.carried(key);
            if let ObjectKey::Mapping(key) = key {
                match from {
                    Some(from) => {
                        drop(derived.insert(Derived { key: key.clone(), from: from.clone() }));
                    }
                    None => drop(derived.remove(key)),
                }
            }
            match (find(host, key), object) {
                (Some(was), Some(is)) if was == is => {}
                (_, Some(is)) => edits.push(Edit::from(is)),
                (Some(_), None) => edits.push(Edit::deleting(key.clone())?),
                (None, None) => {}
            }
        }
        let host = host.edited(&edits).ok()?;
        Some(Projection { host: Some(host), derived, faults: self.faults.clone() })
    }
}

/// Keys under which something else may be carried.
fn touched(
    old: &Cluster,
    new: &Cluster,
    me: &HostName,
    before: &View<'_>,
    after: &View<'_>,
) -> BTreeSet<ObjectKey> {
    let mut keys = BTreeSet::new();
    for name in old.hosts.keys().chain(new.hosts.keys()) {
        let (was, is) = (old.hosts.get(name), new.hosts.get(name));
        match (was, is) {
            (Some(was), Some(is)) if Arc::ptr_eq(was, is) => {}
            _ => of_host(was.map(AsRef::as_ref), is.map(AsRef::as_ref), name == me, &mut keys),
        }
    }
    keys.extend(differing(&old.routes, &new.routes).map(|route| ObjectKey::Route(route.key())));
    keys.extend(differing(&old.mappings, &new.mappings).map(|m| ObjectKey::Mapping(m.key())));
    keys.extend(differing(&old.ingress, &new.ingress).map(|rule| ObjectKey::Ingress(rule.key())));
    keys.extend(differing(&old.acls, &new.acls).map(|group| ObjectKey::Acl(group.id.clone())));
    keys.extend(differing(&old.formats, &new.formats).map(|f| ObjectKey::Format(f.id.clone())));
    keys.extend(before.acls.symmetric_difference(&after.acls).cloned().map(ObjectKey::Acl));
    let mut vnis: BTreeSet<Vni> = BTreeSet::new();
    for vnet in differing(&old.vnets, &new.vnets) {
        keys.insert(ObjectKey::Vnet(vnet.id.clone()));
        vnis.insert(vnet.vni);
    }
    let mut came_or_went = before.vnets.symmetric_difference(&after.vnets).peekable();
    if came_or_went.peek().is_some() {
        // Whether a route is carried depends on whether the vnet is that it leads to.
        for cluster in [old, new] {
            let of_vnets =
                cluster.routes.iter().filter(|route| matches!(route.scope, RouteScope::Vnet(_)));
            keys.extend(of_vnets.map(|route| ObjectKey::Route(route.key())));
        }
    }
    for id in came_or_went {
        for cluster in [old, new] {
            of_vnet(cluster, id, &mut keys, &mut vnis);
        }
    }
    for vni in vnis {
        for cluster in [old, new] {
            let rules = cluster.ingress.range(|rule| rule.vni.cmp(&vni));
            keys.extend(rules.map(IngressRule::key).map(ObjectKey::Ingress));
        }
    }
    keys
}

fn of_host(
    was: Option<&HostState>,
    is: Option<&HostState>,
    own: bool,
    keys: &mut BTreeSet<ObjectKey>,
) {
    let none = HostState::default();
    let (was, is) = (was.unwrap_or(&none), is.unwrap_or(&none));
    if own {
        for port in differing(&was.ports, &is.ports) {
            keys.insert(ObjectKey::Port(port.id.clone()));
            keys.extend(addresses(port));
        }
        keys.extend(differing(&was.routes, &is.routes).map(|route| ObjectKey::Route(route.key())));
    } else if was.live.is_some() != is.live.is_some() || was.underlay != is.underlay {
        keys.extend(was.ports.iter().chain(is.ports.iter()).flat_map(addresses));
    } else {
        keys.extend(differing(&was.ports, &is.ports).flat_map(addresses));
    }
}

fn of_vnet(
    cluster: &Cluster,
    id: &VnetId,
    keys: &mut BTreeSet<ObjectKey>,
    vnis: &mut BTreeSet<Vni>,
) {
    keys.insert(ObjectKey::Vnet(id.clone()));
    vnis.extend(cluster.vnets.get(id).map(|vnet| vnet.vni));
    let mappings = cluster.mappings.range(|mapping| mapping.vnet.cmp(id));
    keys.extend(mappings.map(|mapping| ObjectKey::Mapping(mapping.key())));
    let claims = cluster.claims.in_vnet(id).map(|claim| claim.address);
    keys.extend(claims.map(|ip| ObjectKey::Mapping(MappingKey { vnet: id.clone(), ip })));
}

fn addresses(port: &Port) -> impl Iterator<Item = ObjectKey> + '_ {
    port.ips.iter().map(|&ip| ObjectKey::Mapping(MappingKey { vnet: port.vnet.clone(), ip }))
}

/// The objects that differ, as they were and as they are.
fn differing<'a, T: Keyed + PartialEq>(
    old: &'a Objects<T>,
    new: &'a Objects<T>,
) -> impl Iterator<Item = &'a T> {
    changes(old, new).into_iter().flat_map(|(was, is)| was.into_iter().chain(is))
}
