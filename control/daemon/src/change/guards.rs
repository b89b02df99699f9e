//! What a transaction expects and writes, so that two that could contradict each other do not both happen.

use std::collections::BTreeSet;

use culvert_model::{Object, RouteAction, RouteScope, VnetId};

use crate::cluster::check::Touched;
use crate::cluster::{Cluster, slot_entries};
use crate::names::{Guarded, HostName, Name, Slot};
use crate::scopes::guard_value;
use crate::store::{Revision, Txn};

/// The guards of an object.
fn guards(slot: &Slot, object: &Object, into: &mut BTreeSet<Guarded>) {
    let vnet = |id: &VnetId| Guarded::Vnet(id.clone());
    if let Some(host) = &slot.host {
        into.insert(Guarded::Host(host.clone()));
    }
    match object {
        Object::Underlay(_) => drop(into.insert(Guarded::Underlays)),
        Object::Vnet(v) => into.extend([Guarded::Vnets, vnet(&v.id)]),
        Object::Port(port) => {
            into.insert(vnet(&port.vnet));
            into.extend(port.acl.iter().cloned().map(Guarded::Acl));
        }
        Object::Route(route) => {
            if let RouteScope::Vnet(id) = &route.scope {
                into.insert(vnet(id));
            }
            if let RouteAction::Vnet(id) = &route.action {
                into.insert(vnet(id));
            }
        }
        Object::Mapping(mapping) => drop(into.insert(vnet(&mapping.vnet))),
        Object::Ingress(_) => drop(into.insert(Guarded::Vnets)),
        Object::Acl(group) => drop(into.insert(Guarded::Acl(group.id.clone()))),
        // Vnets name formats, and so do underlays.
        Object::Format(_) => into.extend([Guarded::Vnets, Guarded::Underlays]),
    }
}

/// The guards of a transaction of `me`.
pub(super) fn guards_of(me: &HostName, touched: &[Touched]) -> BTreeSet<Guarded> {
    let mut all = BTreeSet::from([Guarded::Host(me.clone())]);
    for touched in touched {
        for object in touched.before.iter().chain(&touched.after) {
            guards(&touched.slot, object, &mut all);
        }
    }
    all
}

/// What has to be as it is known for these objects to be as they are.
pub(super) fn expectations(
    cluster: &Cluster,
    objects: &[(Slot, Option<Object>)],
) -> impl Iterator<Item = (String, Revision)> {
    let mut all = BTreeSet::new();
    for (slot, object) in objects {
        if let Some(object) = object {
            guards(slot, object, &mut all);
        }
    }
    all.into_iter().map(|of| (Name::Guard(of.clone()).to_string(), cluster.guard(&of)))
}

/// The transaction of a checked change. With `strict`, nothing at all that is known may have changed since.
pub(super) fn transaction(
    cluster: &Cluster,
    guards: &BTreeSet<Guarded>,
    touched: &[Touched],
    strict: bool,
) -> Txn {
    let key = |of: &Guarded| Name::Guard(of.clone()).to_string();
    let mut txn = Txn::default();
    txn.expect.extend(guards.iter().map(|of| (key(of), cluster.guard(of))));
    // The vnet itself, and its gateways, are elsewhere than its contents, and may be known from another time.
    let vnets = Guarded::Vnets;
    let in_vnet = guards.iter().any(|of| matches!(of, Guarded::Vnet(_)));
    if in_vnet && !strict && !guards.contains(&vnets) {
        txn.expect.push((key(&vnets), cluster.guard(&vnets)));
    }
    if strict {
        let others = cluster.guards.iter().filter(|guard| !guards.contains(&guard.of));
        txn.expect.extend(others.map(|guard| (key(&guard.of), guard.written)));
    }
    let value = guard_value(&guards.iter().map(Guarded::scope).collect());
    txn.puts.extend(guards.iter().map(|of| (key(of), value.clone())));
    for Touched { slot, before, after, .. } in touched {
        let entries = |object: &Option<Object>| match object {
            Some(object) => slot_entries(slot, object),
            None => Vec::new(),
        };
        let puts = entries(after);
        let gone = entries(before).into_iter().map(|(key, _)| key);
        txn.deletes.extend(gone.filter(|key| puts.iter().all(|(put, _)| put != key)));
        txn.puts.extend(puts);
    }
    txn
}
