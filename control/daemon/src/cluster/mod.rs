//! What the store says, as nouns: the hosts of the cluster and the objects that they share.
//!
//! [`project`] says what of it one host carries, [`check`] whether a change may be written. Nothing here
//! does I/O. Versions of a cluster share what they have in common, as those of a host's state do.

mod advance;
pub mod check;
mod claims;
pub mod problems;
pub mod project;
mod view;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_model::{
    AclGroup, EgressRoute, IngressRule, Keyed, Mapping, Object, ObjectKey, Objects, Port, Underlay,
    Vnet, api,
};
use prost::Message;

pub use self::claims::{Claim, Claims, Owner};
use crate::names::{HostName, Name, Slot};
use crate::store::{Changes, Revision, Snapshot};
use crate::stored;

/// Everything that the store holds, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The header; `None` before the store has one.
    pub meta: Option<stored::Meta>,
    /// When each host's lease was written last.
    pub lives: BTreeMap<HostName, Revision>,
    /// Another number whenever an object or the life of a host is another, so that what was made of the cluster
    /// need not be made again when only leases were renewed.
    pub content: u64,
    /// The last change of an object. What other programs write into the same etcd does not count.
    pub revision: Revision,
    /// Hosts that joined, or that something was written of.
    pub hosts: BTreeMap<HostName, Arc<HostState>>,
    /// Virtual networks.
    pub vnets: Objects<Vnet>,
    /// Routes of vnets.
    pub routes: Objects<EgressRoute>,
    /// Mappings that were written, for VTEPs that are no hosts of this cluster.
    pub mappings: Objects<Mapping>,
    /// Ingress rules.
    pub ingress: Objects<IngressRule>,
    /// ACL groups.
    pub acls: Objects<AclGroup>,
    /// Which ports have which addresses.
    pub claims: Claims,
    /// When each guard was written last.
    pub guards: Objects<Guard>,
    /// Keys whose values cannot be read, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// What belongs to one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// It joined.
    pub record: Option<stored::HostRecord>,
    /// Its lease lives.
    pub live: Option<stored::Live>,
    /// Its place in the physical network.
    pub underlay: Option<Underlay>,
    /// Its ports.
    pub ports: Objects<Port>,
    /// Routes of its ports.
    pub routes: Objects<EgressRoute>,
}

/// A guard: see [`crate::change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Its name.
    pub name: Arc<str>,
    /// When it was written last.
    pub written: Revision,
}

impl Keyed for Guard {
    type Key = Arc<str>;

    fn key(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn compare(&self, key: &Arc<str>) -> Ordering {
        self.name.cmp(key)
    }
}

impl HostState {
    fn is_empty(&self) -> bool {
        self.record.is_none()
            && self.live.is_none()
            && self.underlay.is_none()
            && self.ports.is_empty()
            && self.routes.is_empty()
    }
}

/// What a transaction was about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Some object is another.
    pub objects: bool,
    /// Hosts that became alive, or are no longer.
    pub alive: Vec<(HostName, bool)>,
}

impl Cluster {
    /// Reads a snapshot. What cannot be read is named in `unreadable`, and left out.
    pub fn read(snapshot: &Snapshot) -> Cluster {
        let mut cluster = Cluster::default();
        for entry in &snapshot.entries {
            cluster.set(&entry.key, Some(&entry.value), entry.changed, &mut Effect::default());
        }
        cluster
    }

    /// Takes over what a transaction changed.
    pub fn apply(&mut self, changes: &Changes) -> Effect {
        let mut effect = Effect::default();
        for change in &changes.changes {
            self.set(&change.key, change.value.as_deref(), changes.revision, &mut effect);
        }
        if effect.objects || !effect.alive.is_empty() {
            self.content += 1;
        }
        effect
    }

    fn set(&mut self, key: &str, value: Option<&[u8]>, revision: Revision, effect: &mut Effect) {
        self.unreadable.remove(key);
        let Some(name) = Name::read(key) else {
            if value.is_some() {
                self.unreadable.insert(key.to_owned(), "not a key of culvertd".to_owned());
            }
            return;
        };
        let done = match name {
            Name::Meta => decode(value).map(|meta| self.meta = meta),
            Name::Host(host) => decode(value).map(|record| {
                self.host(&host, |state| state.record = record);
                self.revision = self.revision.max(revision);
            }),
            Name::Live(host) => decode(value).map(|live: Option<stored::Live>| {
                let was = self.hosts.get(&host).is_some_and(|state| state.live.is_some());
                if was != live.is_some() {
                    effect.alive.push((host.clone(), live.is_some()));
                }
                match live {
                    Some(_) => drop(self.lives.insert(host.clone(), revision)),
                    None => drop(self.lives.remove(&host)),
                }
                self.host(&host, |state| state.live = live);
            }),
            Name::Guard(guard) => {
                self.revision = self.revision.max(revision);
                let name: Arc<str> = guard.into();
                match value {
                    Some(_) => drop(self.guards.insert(Guard { name, written: revision })),
                    None => drop(self.guards.remove(&name)),
                }
                Ok(())
            }
            Name::Object(slot) => {
                self.revision = self.revision.max(revision);
                effect.objects = true;
                let object = value.map(|value| read_object(value, &slot.key)).transpose();
                match object {
                    Ok(object) => {
                        self.put(&slot, object);
                        Ok(())
                    }
                    Err(reason) => {
                        self.put(&slot, None);
                        Err(reason)
                    }
                }
            }
        };
        if let Err(reason) = done {
            self.unreadable.insert(key.to_owned(), reason);
        }
    }

    fn host<T>(&mut self, host: &HostName, change: impl FnOnce(&mut HostState) -> T) -> T {
        let state = Arc::make_mut(self.hosts.entry(host.clone()).or_default());
        let done = change(state);
        if state.is_empty() {
            self.hosts.remove(host);
        }
        done
    }

    /// Takes a host for dead.
    pub fn bury(&mut self, host: &HostName) {
        if self.hosts.contains_key(host) {
            self.host(host, |state| state.live = None);
        }
        self.content += 1;
    }

    /// The revision at which a guard was written last; 0: never.
    pub fn guard(&self, name: &str) -> Revision {
        self.guards.find(|guard| guard.name.as_ref().cmp(name)).map_or(0, |guard| guard.written)
    }

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
            _ => None,
        }
    }

    /// What a store holds of it, without guards.
    pub fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        let mut entries = BTreeMap::new();
        if let Some(meta) = &self.meta {
            entries.insert(Name::Meta.to_string(), meta.encode_to_vec());
        }
        for (host, state) in &self.hosts {
            if let Some(record) = &state.record {
                entries.insert(Name::Host(host.clone()).to_string(), record.encode_to_vec());
            }
            if let Some(live) = &state.live {
                entries.insert(Name::Live(host.clone()).to_string(), live.encode_to_vec());
            }
        }
        for (host, object) in self.objects() {
            let slot = Slot { host: host.cloned(), key: object.key() };
            entries.insert(Name::Object(slot).to_string(), write_object(&object));
        }
        entries
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
            .chain(self.acls.iter().cloned().map(Object::Acl));
        own.chain(shared.map(|object| (None, object)))
    }
}

/// The value of a slot.
pub fn write_object(object: &Object) -> Vec<u8> {
    api::Object::from(object).encode_to_vec()
}

fn read_object(value: &[u8], key: &ObjectKey) -> Result<Object, String> {
    let message = api::Object::decode(value).map_err(|error| error.to_string())?;
    let object = Object::try_from(message)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let found = object.key();
    if found == *key { Ok(object) } else { Err(format!("holds {found} instead of {key}")) }
}

fn decode<M: Message + Default>(value: Option<&[u8]>) -> Result<Option<M>, String> {
    value.map(M::decode).transpose().map_err(|error| error.to_string())
}
