//! Changes of a state, one object each.
//!
//! [`diff`] says what differs between two states, [`Host::edited`] applies it, all or nothing. Edits are
//! applied in their order, and what they come to is checked as a whole after the last: one may break what
//! a later one mends, as where two ports swap their addresses.

mod blame;
mod key;

use std::collections::BTreeMap;

pub use key::ObjectKey;

pub use crate::convert::edits as from_messages;

use self::blame::Blame;
use crate::acl::AclGroup;
use crate::fault::{Fault, ModelError, Place, Section};
use crate::host::{Host, HostParts};
use crate::ids::{AclGroupId, PortId, VnetId};
use crate::port::Port;
use crate::rules::{EgressRoute, IngressKey, IngressRule, Mapping, MappingKey, RouteKey};
use crate::underlay::Underlay;
use crate::vnet::Vnet;

/// A change of one object. What is put takes the place of the whole object of the same key, or is added;
/// what is deleted must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Another underlay.
    SetUnderlay(Underlay),
    /// A vnet of this id.
    PutVnet(Vnet),
    /// No vnet of this id any more.
    DeleteVnet(VnetId),
    /// A port of this id.
    PutPort(Port),
    /// No port of this id any more.
    DeletePort(PortId),
    /// A route of this scope and prefix.
    PutRoute(EgressRoute),
    /// No such route any more.
    DeleteRoute(RouteKey),
    /// A mapping of this vnet and address.
    PutMapping(Mapping),
    /// No such mapping any more.
    DeleteMapping(MappingKey),
    /// An ingress rule of this VNI, sender and priority.
    PutIngress(IngressRule),
    /// No such rule any more.
    DeleteIngress(IngressKey),
    /// An ACL group of this id.
    PutAcl(AclGroup),
    /// No ACL group of this id any more.
    DeleteAcl(AclGroupId),
}

impl Edit {
    /// The object that it changes.
    pub fn key(&self) -> ObjectKey {
        match self {
            Edit::SetUnderlay(_) => ObjectKey::Underlay,
            Edit::PutVnet(vnet) => ObjectKey::Vnet(vnet.id.clone()),
            Edit::DeleteVnet(id) => ObjectKey::Vnet(id.clone()),
            Edit::PutPort(port) => ObjectKey::Port(port.id.clone()),
            Edit::DeletePort(id) => ObjectKey::Port(id.clone()),
            Edit::PutRoute(route) => ObjectKey::Route(route.key()),
            Edit::DeleteRoute(key) => ObjectKey::Route(key.clone()),
            Edit::PutMapping(mapping) => ObjectKey::Mapping(mapping.key()),
            Edit::DeleteMapping(key) => ObjectKey::Mapping(key.clone()),
            Edit::PutIngress(rule) => ObjectKey::Ingress(rule.key()),
            Edit::DeleteIngress(key) => ObjectKey::Ingress(*key),
            Edit::PutAcl(group) => ObjectKey::Acl(group.id.clone()),
            Edit::DeleteAcl(id) => ObjectKey::Acl(id.clone()),
        }
    }
}

/// The edits that make `b` of `a`: none where they are the same. What goes is first, so that names and
/// addresses are free for what comes; what is referred to comes before what refers to it.
pub fn diff(a: &Host, b: &Host) -> Vec<Edit> {
    let (ingress_gone, ingress) = differ(a.ingress(), b.ingress(), IngressRule::key);
    let (mappings_gone, mappings) = differ(a.mappings(), b.mappings(), Mapping::key);
    let (routes_gone, routes) = differ(a.routes(), b.routes(), EgressRoute::key);
    let (ports_gone, ports) = differ(a.ports(), b.ports(), |port| port.id.clone());
    let (acls_gone, acls) = differ(a.acls(), b.acls(), |group| group.id.clone());
    let (vnets_gone, vnets) = differ(a.vnets(), b.vnets(), |vnet| vnet.id.clone());
    let underlay = (a.underlay() != b.underlay()).then(|| Edit::SetUnderlay(b.underlay().clone()));
    let gone = ingress_gone.into_iter().map(Edit::DeleteIngress);
    gone.chain(mappings_gone.into_iter().map(Edit::DeleteMapping))
        .chain(routes_gone.into_iter().map(Edit::DeleteRoute))
        .chain(ports_gone.into_iter().map(Edit::DeletePort))
        .chain(acls_gone.into_iter().map(Edit::DeleteAcl))
        .chain(vnets_gone.into_iter().map(Edit::DeleteVnet))
        .chain(underlay)
        .chain(vnets.into_iter().map(Edit::PutVnet))
        .chain(acls.into_iter().map(Edit::PutAcl))
        .chain(ports.into_iter().map(Edit::PutPort))
        .chain(routes.into_iter().map(Edit::PutRoute))
        .chain(mappings.into_iter().map(Edit::PutMapping))
        .chain(ingress.into_iter().map(Edit::PutIngress))
        .collect()
}

/// Keys that only the first list has, and objects that are new or other in the second.
fn differ<T: Clone + PartialEq, K: Ord>(
    from: &[T],
    to: &[T],
    key: impl Fn(&T) -> K,
) -> (Vec<K>, Vec<T>) {
    let mut old: BTreeMap<K, &T> = from.iter().map(|item| (key(item), item)).collect();
    let new = to.iter().filter(|item| old.remove(&key(item)) != Some(item)).cloned().collect();
    (old.into_keys().collect(), new)
}

impl Host {
    /// This state with the edits applied, checked as a whole.
    ///
    /// # Errors
    /// Every fault found; each names the edit that is to blame, where one is.
    pub fn edited(&self, edits: &[Edit]) -> Result<Host, Vec<ModelError>> {
        made(Some(self), edits)
    }

    /// The state that edits make of nothing; one of them sets the underlay.
    ///
    /// # Errors
    /// As [`Host::edited`].
    pub fn of_edits(edits: &[Edit]) -> Result<Host, Vec<ModelError>> {
        made(None, edits)
    }
}

fn made(base: Option<&Host>, edits: &[Edit]) -> Result<Host, Vec<ModelError>> {
    let mut objects = base.map_or_else(Objects::default, Objects::of);
    let mut absent = Vec::new();
    for (at, edit) in edits.iter().enumerate() {
        if !objects.apply(edit) {
            absent.push(blame::absent(at, edit));
        }
    }
    let blame = Blame::new(base, edits);
    let Some(parts) = objects.into_parts() else {
        let legal = "an edit that sets the underlay, since there is no state yet";
        let place = Place::section(Section::Underlay, "");
        return Err(vec![ModelError::new(place, Fault::Missing { legal })]);
    };
    let places = parts.clone();
    match Host::new(parts) {
        Ok(host) if absent.is_empty() => Ok(host),
        Ok(_) => Err(absent),
        Err(errors) => {
            absent.extend(errors.into_iter().map(|error| blame.assign(error, &places)));
            Err(absent)
        }
    }
}

/// A state while it is changed, by key.
#[derive(Default)]
struct Objects {
    underlay: Option<Underlay>,
    vnets: BTreeMap<VnetId, Vnet>,
    ports: BTreeMap<PortId, Port>,
    routes: BTreeMap<RouteKey, EgressRoute>,
    mappings: BTreeMap<MappingKey, Mapping>,
    ingress: BTreeMap<IngressKey, IngressRule>,
    acls: BTreeMap<AclGroupId, AclGroup>,
}

impl Objects {
    fn of(host: &Host) -> Objects {
        Objects {
            underlay: Some(host.underlay().clone()),
            vnets: by_key(host.vnets(), |vnet| vnet.id.clone()),
            ports: by_key(host.ports(), |port| port.id.clone()),
            routes: by_key(host.routes(), EgressRoute::key),
            mappings: by_key(host.mappings(), Mapping::key),
            ingress: by_key(host.ingress(), IngressRule::key),
            acls: by_key(host.acls(), |group| group.id.clone()),
        }
    }

    /// False where there is nothing to delete.
    fn apply(&mut self, edit: &Edit) -> bool {
        match edit.clone() {
            Edit::SetUnderlay(underlay) => self.underlay = Some(underlay),
            Edit::PutVnet(vnet) => drop(self.vnets.insert(vnet.id.clone(), vnet)),
            Edit::DeleteVnet(id) => return self.vnets.remove(&id).is_some(),
            Edit::PutPort(port) => drop(self.ports.insert(port.id.clone(), port)),
            Edit::DeletePort(id) => return self.ports.remove(&id).is_some(),
            Edit::PutRoute(route) => drop(self.routes.insert(route.key(), route)),
            Edit::DeleteRoute(key) => return self.routes.remove(&key).is_some(),
            Edit::PutMapping(mapping) => drop(self.mappings.insert(mapping.key(), mapping)),
            Edit::DeleteMapping(key) => return self.mappings.remove(&key).is_some(),
            Edit::PutIngress(rule) => drop(self.ingress.insert(rule.key(), rule)),
            Edit::DeleteIngress(key) => return self.ingress.remove(&key).is_some(),
            Edit::PutAcl(group) => drop(self.acls.insert(group.id.clone(), group)),
            Edit::DeleteAcl(id) => return self.acls.remove(&id).is_some(),
        }
        true
    }

    /// None where there is no underlay.
    fn into_parts(self) -> Option<HostParts> {
        Some(HostParts {
            underlay: self.underlay?,
            vnets: self.vnets.into_values().collect(),
            ports: self.ports.into_values().collect(),
            routes: self.routes.into_values().collect(),
            mappings: self.mappings.into_values().collect(),
            ingress: self.ingress.into_values().collect(),
            acls: self.acls.into_values().collect(),
        })
    }
}

fn by_key<T: Clone, K: Ord>(items: &[T], key: impl Fn(&T) -> K) -> BTreeMap<K, T> {
    items.iter().map(|item| (key(item), item.clone())).collect()
}
