//! The objects of a cluster by their slots: whatever kind they are of, and whosever.

use culvert_model::{Keyed, Object, ObjectKey, Objects};

use super::Cluster;
use crate::names::{HostName, Slot};

impl Cluster {
    /// Gives a slot an object, or none. An object of another key is none of ours to place, and ignored.
    pub fn put(&mut self, slot: &Slot, object: Option<Object>) {
        fn set<T: Keyed + Clone>(
            objects: &mut Objects<T>,
            key: &T::Key,
            value: Option<T>,
        ) -> Option<T> {
            match value {
                Some(value) => objects.insert(value),
                None => objects.remove(key),
            }
        }
        macro_rules! of {
            ($kind:ident) => {
                match object {
                    Some(Object::$kind(value)) => Some(value),
                    _ => None,
                }
            };
        }
        match (&slot.host, slot.key.clone()) {
            (Some(host), ObjectKey::Underlay) => {
                let underlay = of!(Underlay);
                self.host(host, |state| state.underlay = underlay);
            }
            (Some(host), ObjectKey::Port(id)) => {
                let port = of!(Port).filter(|port| port.id == id);
                let new = port.clone();
                let old = self.host(host, |state| set(&mut state.ports, &id, port));
                self.claims.replace(host, old.as_ref(), new.as_ref());
            }
            (Some(host), ObjectKey::Route(key)) => {
                let route = of!(Route).filter(|route| route.key() == key);
                self.host(host, |state| drop(set(&mut state.routes, &key, route)));
            }
            (None, ObjectKey::Vnet(id)) => {
                drop(set(&mut self.vnets, &id, of!(Vnet).filter(|vnet| vnet.id == id)));
            }
            (None, ObjectKey::Route(key)) => {
                let route = of!(Route).filter(|route| route.key() == key);
                drop(set(&mut self.routes, &key, route));
            }
            (None, ObjectKey::Mapping(key)) => {
                let mapping = of!(Mapping).filter(|mapping| mapping.key() == key);
                drop(set(&mut self.mappings, &key, mapping));
            }
            (None, ObjectKey::Ingress(key)) => {
                set(&mut self.ingress, &key, of!(Ingress).filter(|rule| rule.key() == key));
            }
            (None, ObjectKey::Acl(id)) => {
                drop(set(&mut self.acls, &id, of!(Acl).filter(|group| group.id == id)));
            }
            (None, ObjectKey::Format(id)) => {
                drop(set(&mut self.formats, &id, of!(Format).filter(|format| format.id == id)));
            }
            (Some(_) | None, _) => {}
        }
    }

    /// The object of a slot.
    pub fn get(&self, slot: &Slot) -> Option<Object> {
        let state = slot.host.as_ref().map(|host| self.hosts.get(host));
        match (state, &slot.key) {
            (Some(state), ObjectKey::Underlay) => state?.underlay.clone().map(Object::Underlay),
            (Some(state), ObjectKey::Port(id)) => state?.ports.get(id).cloned().map(Object::Port),
            (Some(state), ObjectKey::Route(key)) => {
                state?.routes.get(key).cloned().map(Object::Route)
            }
            (None, ObjectKey::Vnet(id)) => self.vnets.get(id).cloned().map(Object::Vnet),
            (None, ObjectKey::Route(key)) => self.routes.get(key).cloned().map(Object::Route),
            (None, ObjectKey::Mapping(key)) => self.mappings.get(key).cloned().map(Object::Mapping),
            (None, ObjectKey::Ingress(key)) => self.ingress.get(key).copied().map(Object::Ingress),
            (None, ObjectKey::Acl(id)) => self.acls.get(id).cloned().map(Object::Acl),
            (None, ObjectKey::Format(id)) => self.formats.get(id).cloned().map(Object::Format),
            _ => None,
        }
    }

    /// Every object and whose it is; those of hosts first.
    pub fn objects(&self) -> impl Iterator<Item = (Option<&HostName>, Object)> {
        let own = self.hosts.iter().flat_map(|(host, state)| {
            let underlay = state.underlay.iter().cloned().map(Object::Underlay);
            underlay
                .chain(state.ports.iter().cloned().map(Object::Port))
                .chain(state.routes.iter().cloned().map(Object::Route))
                .map(move |object| (Some(host), object))
        });
        let shared = self.vnets.iter().cloned().map(Object::Vnet);
        let shared = shared
            .chain(self.routes.iter().cloned().map(Object::Route))
            .chain(self.mappings.iter().cloned().map(Object::Mapping))
            .chain(self.ingress.iter().copied().map(Object::Ingress))
            .chain(self.acls.iter().cloned().map(Object::Acl))
            .chain(self.formats.iter().cloned().map(Object::Format));
        own.chain(shared.map(|object| (None, object)))
    }
}
