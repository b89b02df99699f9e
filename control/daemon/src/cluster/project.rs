//! What of a cluster one host carries.
//!
//! A host is given what concerns it: its own objects, and the ACL groups that its ports name; the vnets that its ports are in and those that routes
//! lead them to, with their routes, mappings and ingress rules; and, for each port of another living
//! host in such a vnet, the mappings that follow from it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use culvert_model::{
    Host, HostParts, Keyed, MappingKey, ModelError, Object, ObjectKey, Objects, Place,
};

use super::Cluster;
use super::view::View;
use crate::names::HostName;

/// What one host is to carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// The state; `None` before the host has an underlay, or where nothing of it can be carried.
    pub host: Option<Host>,
    /// Mappings that follow from a port of another host.
    pub derived: Objects<Derived>,
    /// Objects that concern the host and contradict others, and what is wrong. They are left out.
    pub faults: BTreeMap<ObjectKey, ModelError>,
}

/// A mapping that follows from a port of another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derived {
    /// The mapping.
    pub key: MappingKey,
    /// The host.
    pub from: HostName,
}

impl Keyed for Derived {
    type Key = MappingKey;

    fn key(&self) -> MappingKey {
        self.key.clone()
    }

    fn compare(&self, key: &MappingKey) -> Ordering {
        self.key.cmp(key)
    }
}

/// Objects that are not carried as they are wanted.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// What is carried in their place; `None`: nothing.
    pub instead: BTreeMap<ObjectKey, Option<Object>>,
    /// What those refer to, for where the cluster has it no more.
    pub beside: Vec<Object>,
}

/// What `me` is to carry.
pub fn project(cluster: &Cluster, me: &HostName) -> Projection {
    project_holding(cluster, me, &Held::default())
}

/// As [`project`], with some objects held back.
pub fn project_holding(cluster: &Cluster, me: &HostName, held: &Held) -> Projection {
    let mut projection = Projection::default();
    let mut left_out = BTreeSet::new();
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
            if key == ObjectKey::Underlay || !left_out.insert(key) {
                projection.host = None;
                return projection;
            }
        }
    }
}

fn parts(
    cluster: &Cluster,
    me: &HostName,
    held: &Held,
    left_out: &BTreeSet<ObjectKey>,
) -> Option<(HostParts, Objects<Derived>)> {
    let view = View::of(cluster, me, held)?;
    let keep = Keep { held, left_out };
    let mut derived = Vec::new();
    let mut mappings = Vec::new();
    for vnet in &view.vnets {
        let written = cluster.mappings.range(move |mapping| mapping.vnet.cmp(vnet));
        let claimed = cluster.claims.in_vnet(vnet).map(|claim| claim.address);
        let ips: BTreeSet<_> = written.map(|mapping| mapping.ip).chain(claimed).collect();
        for ip in ips {
            let Some((mapping, from)) = view.mapping(vnet, ip) else { continue };
            if let Some(from) = from {
                derived.push(Derived { key: mapping.key(), from: from.clone() });
            }
            mappings.push(mapping);
        }
    }
    let of_vnets = cluster.routes.iter().filter(|route| view.carries_route(route));
    let routes = view.state.routes.iter().chain(of_vnets).cloned();
    let ingress = cluster.ingress.iter().filter(|rule| view.carries_rule(rule));
    let acls = cluster.acls.iter().chain(held.beside.iter().filter_map(|object| match object {
        Object::Acl(group) => Some(group).filter(|group| cluster.acls.get(&group.id).is_none()),
        _ => None,
    }));
    let acls = acls.filter(|group| view.acls.contains(&group.id));
    let vnets = cluster.vnets.iter().chain(held.beside.iter().filter_map(|object| match object {
        Object::Vnet(vnet) => Some(vnet).filter(|vnet| cluster.vnets.get(&vnet.id).is_none()),
        _ => None,
    }));
    let vnets = vnets.filter(|vnet| view.vnets.contains(&vnet.id));
    macro_rules! keep {
        ($objects:expr, $kind:ident) => {
            keep.all(
                $objects,
                |object| match object {
                    Object::$kind(value) => Some(value),
                    _ => None,
                },
                Object::$kind,
            )
        };
    }
    let parts = HostParts {
        vnets: keep!(vnets.cloned(), Vnet),
        ports: keep!(view.state.ports.iter().cloned(), Port),
        routes: keep!(routes, Route),
        mappings: keep!(mappings.into_iter(), Mapping),
        ingress: keep!(ingress.copied(), Ingress),
        acls: keep!(acls.cloned(), Acl),
        // All of them: few, and any of the vnets may come here.
        formats: keep!(cluster.formats.iter().cloned(), Format),
        underlay: view.underlay,
    };
    Some((parts, derived.into_iter().collect()))
}

/// Puts held objects in the place of those that are wanted.
struct Keep<'a> {
    held: &'a Held,
    left_out: &'a BTreeSet<ObjectKey>,
}

impl Keep<'_> {
    fn all<T>(
        &self,
        items: impl Iterator<Item = T>,
        of: impl Fn(Object) -> Option<T>,
        object: impl Fn(T) -> Object,
    ) -> Vec<T> {
        if self.held.instead.is_empty() && self.left_out.is_empty() {
            return items.collect();
        }
        items
            .filter_map(|item| {
                let object = object(item);
                let key = object.key();
                if self.left_out.contains(&key) {
                    return None;
                }
                match self.held.instead.get(&key) {
                    None => of(object),
                    Some(kept) => kept.clone().and_then(&of),
                }
            })
            .collect()
    }
}
