//! Changes of a state, one object each.
//!
//! [`diff`] says what differs between two states, [`Host::edited`] applies it, all or nothing. Edits are
//! applied in their order, and what they come to is checked as a whole after the last: one may break what
//! a later one mends, as where two ports swap their addresses.
//!
//! The rules of a legal state stand once, in the checks of a whole state. An edit is checked by the same
//! rules on its neighbourhood (`near`): what it puts, and whatever that might clash with or be missed by.

mod blame;
mod key;
mod near;

use std::sync::Arc;

pub use key::ObjectKey;

use self::blame::Blame;
use crate::acl::AclGroup;
pub use crate::convert::edits as from_messages;
use crate::fault::{Fault, ModelError, Place, Section};
use crate::format::Format;
use crate::host::Host;
use crate::ids::{AclGroupId, FormatId, PortId, VnetId};
use crate::objects::{Change, Keyed, changes};
use crate::port::Port;
use crate::rules::{EgressRoute, IngressKey, IngressRule, Mapping, MappingKey, RouteKey};
use crate::underlay::Underlay;
use crate::validate::{Counts, Draft, validate};
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
    /// A tunnel format of this id.
    PutFormat(Format),
    /// No ACL group of this id any more.
    DeleteAcl(AclGroupId),
    /// No tunnel format of this id any more.
    DeleteFormat(FormatId),
}

impl Edit {
    /// The edit that deletes an object. None for an underlay, which a state cannot be without.
    pub fn deleting(key: ObjectKey) -> Option<Edit> {
        Some(match key {
            ObjectKey::Underlay => return None,
            ObjectKey::Vnet(id) => Edit::DeleteVnet(id),
            ObjectKey::Port(id) => Edit::DeletePort(id),
            ObjectKey::Route(key) => Edit::DeleteRoute(key),
            ObjectKey::Mapping(key) => Edit::DeleteMapping(key),
            ObjectKey::Ingress(key) => Edit::DeleteIngress(key),
            ObjectKey::Acl(id) => Edit::DeleteAcl(id),
            ObjectKey::Format(id) => Edit::DeleteFormat(id),
        })
    }

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
            Edit::PutFormat(format) => ObjectKey::Format(format.id.clone()),
            Edit::DeleteAcl(id) => ObjectKey::Acl(id.clone()),
            Edit::DeleteFormat(id) => ObjectKey::Format(id.clone()),
        }
    }
}

/// What differs between two states, section by section, each in the order of keys.
#[derive(Debug)]
pub struct Changes<'a> {
    /// The underlay.
    pub underlay: bool,
    /// Vnets.
    pub vnets: Vec<Change<'a, Vnet>>,
    /// Ports.
    pub ports: Vec<Change<'a, Port>>,
    /// Egress routes.
    pub routes: Vec<Change<'a, EgressRoute>>,
    /// Mappings.
    pub mappings: Vec<Change<'a, Mapping>>,
    /// Ingress rules.
    pub ingress: Vec<Change<'a, IngressRule>>,
    /// ACL groups.
    pub acls: Vec<Change<'a, AclGroup>>,
    /// Tunnel formats.
    pub formats: Vec<Change<'a, Format>>,
}

impl<'a> Changes<'a> {
    /// None.
    pub fn none() -> Changes<'a> {
        Changes {
            underlay: false,
            vnets: Vec::new(),
            ports: Vec::new(),
            routes: Vec::new(),
            mappings: Vec::new(),
            ingress: Vec::new(),
            acls: Vec::new(),
            formats: Vec::new(),
        }
    }

    /// From one state, or from nothing, to another.
    pub fn since(old: Option<&'a Host>, new: &'a Host) -> Changes<'a> {
        if let Some(old) = old {
            return Changes::between(old, new);
        }
        Changes {
            underlay: true,
            vnets: new.vnets.iter().map(|vnet| (None, Some(vnet))).collect(),
            ports: new.ports.iter().map(|port| (None, Some(port))).collect(),
            routes: new.routes.iter().map(|route| (None, Some(route))).collect(),
            mappings: new.mappings.iter().map(|mapping| (None, Some(mapping))).collect(),
            ingress: new.ingress.iter().map(|rule| (None, Some(rule))).collect(),
            acls: new.acls.iter().map(|group| (None, Some(group))).collect(),
            formats: new.formats.iter().map(|format| (None, Some(format))).collect(),
        }
    }

    /// Between two states. Costs what they do not share, which is little where the one was edited into
    /// the other.
    pub fn between(old: &'a Host, new: &'a Host) -> Changes<'a> {
        Changes {
            underlay: old.underlay != new.underlay,
            vnets: changes(&old.vnets, &new.vnets),
            ports: changes(&old.ports, &new.ports),
            routes: changes(&old.routes, &new.routes),
            mappings: changes(&old.mappings, &new.mappings),
            ingress: changes(&old.ingress, &new.ingress),
            acls: changes(&old.acls, &new.acls),
            formats: changes(&old.formats, &new.formats),
        }
    }
}

/// The edits that make `b` of `a`: none where they are the same. What goes is first, so that names and
/// addresses are free for what comes; what is referred to comes before what refers to it.
pub fn diff(a: &Host, b: &Host) -> Vec<Edit> {
    let Changes { underlay, vnets, ports, routes, mappings, ingress, acls, formats } =
        Changes::between(a, b);
    let underlay = underlay.then(|| Edit::SetUnderlay(b.underlay().clone()));
    gone(&ingress, Edit::DeleteIngress)
        .chain(gone(&mappings, Edit::DeleteMapping))
        .chain(gone(&routes, Edit::DeleteRoute))
        .chain(gone(&ports, Edit::DeletePort))
        .chain(gone(&acls, Edit::DeleteAcl))
        .chain(gone(&vnets, Edit::DeleteVnet))
        .chain(put(&formats, Edit::PutFormat))
        .chain(underlay)
        .chain(put(&vnets, Edit::PutVnet))
        .chain(put(&acls, Edit::PutAcl))
        .chain(put(&ports, Edit::PutPort))
        .chain(put(&routes, Edit::PutRoute))
        .chain(put(&mappings, Edit::PutMapping))
        .chain(put(&ingress, Edit::PutIngress))
        // What used them uses others now.
        .chain(gone(&formats, Edit::DeleteFormat))
        .collect()
}

fn gone<'c, T: Keyed>(
    changes: &'c [Change<'_, T>],
    delete: fn(T::Key) -> Edit,
) -> impl Iterator<Item = Edit> + 'c {
    let gone = changes.iter().filter(|(_, new)| new.is_none());
    gone.filter_map(move |(old, _)| Some(delete((*old)?.key())))
}

fn put<'c, T: Clone>(
    changes: &'c [Change<'_, T>],
    put: fn(T) -> Edit,
) -> impl Iterator<Item = Edit> + 'c {
    changes.iter().filter_map(move |(_, new)| Some(put((*new)?.clone())))
}

impl Host {
    /// This state with the edits applied, checked as a whole. Costs what the edits touch.
    ///
    /// # Errors
    /// The faults found; each names the edit that is to blame. Of many objects that one edit leaves
    /// without what they refer to, some are named.
    pub fn edited(&self, edits: &[Edit]) -> Result<Host, Vec<ModelError>> {
        let mut host = self.clone();
        let mut errors = Vec::new();
        for (at, edit) in edits.iter().enumerate() {
            if !host.apply(edit) {
                errors.push(blame::absent(at, edit));
            }
        }
        let parts = near::parts(self, &host, edits);
        let counts = Counts::of(&host);
        let faults = validate(&Draft::from(parts.clone()), Some(&counts));
        if !faults.is_empty() {
            let blame = Blame::new(self, edits);
            errors.extend(faults.into_iter().map(|fault| blame.assign(fault, &host, &parts)));
        }
        if errors.is_empty() { Ok(host) } else { Err(errors) }
    }

    /// The state that edits make of nothing; one of them sets the underlay.
    ///
    /// # Errors
    /// As [`Host::edited`].
    pub fn of_edits(edits: &[Edit]) -> Result<Host, Vec<ModelError>> {
        let underlay = edits.iter().find_map(|edit| match edit {
            Edit::SetUnderlay(underlay) => Some(underlay),
            _ => None,
        });
        match underlay {
            Some(underlay) => Host::unchecked(underlay.clone()).edited(edits),
            None => {
                let legal = "an edit that sets the underlay, since there is no state yet";
                let place = Place::section(Section::Underlay, "");
                Err(vec![ModelError::new(place, Fault::Missing { legal })])
            }
        }
    }

    /// False where there is nothing to delete.
    fn apply(&mut self, edit: &Edit) -> bool {
        match edit.clone() {
            Edit::SetUnderlay(underlay) => self.underlay = Arc::new(underlay),
            Edit::PutVnet(vnet) => {
                let old = self.vnets.insert(vnet.clone());
                self.index.vnet(old.as_ref(), Some(&vnet));
            }
            Edit::DeleteVnet(id) => {
                let old = self.vnets.remove(&id);
                self.index.vnet(old.as_ref(), None);
                return old.is_some();
            }
            Edit::PutPort(port) => {
                let old = self.ports.insert(port.clone());
                self.index.port(old.as_ref(), Some(&port));
            }
            Edit::DeletePort(id) => {
                let old = self.ports.remove(&id);
                self.index.port(old.as_ref(), None);
                return old.is_some();
            }
            Edit::PutRoute(route) => {
                let old = self.routes.insert(route.clone());
                self.index.route(old.as_ref(), Some(&route));
            }
            Edit::DeleteRoute(key) => {
                let old = self.routes.remove(&key);
                self.index.route(old.as_ref(), None);
                return old.is_some();
            }
            Edit::PutMapping(mut mapping) => {
                // Of all copies of a name, one is kept.
                if let Some(vnet) = self.vnets.get(&mapping.vnet) {
                    mapping.vnet = vnet.id.clone();
                }
                let old = self.mappings.insert(mapping.clone());
                self.index.mapping(old.as_ref(), Some(&mapping));
            }
            Edit::DeleteMapping(key) => {
                let old = self.mappings.remove(&key);
                self.index.mapping(old.as_ref(), None);
                return old.is_some();
            }
            Edit::PutIngress(rule) => drop(self.ingress.insert(rule)),
            Edit::DeleteIngress(key) => return self.ingress.remove(&key).is_some(),
            Edit::PutAcl(group) => drop(self.acls.insert(group)),
            Edit::PutFormat(format) => drop(self.formats.insert(format)),
            Edit::DeleteAcl(id) => return self.acls.remove(&id).is_some(),
            Edit::DeleteFormat(id) => return self.formats.remove(&id).is_some(),
        }
        true
    }
}
