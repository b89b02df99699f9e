//! What the store says, as nouns: the hosts of the cluster and the objects that they share.
//!
//! [`project`] says what of it one host carries, [`check`] whether a change may be written. Nothing here
//! does I/O. Versions of a cluster share what they have in common, as those of a host's state do.

mod advance;
pub mod check;
mod claims;
mod entries;
pub mod problems;
pub mod project;
mod slots;
mod view;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_model::{
    AclGroup, EgressRoute, Format, IngressRule, Keyed, Mapping, Object, ObjectKey, Objects, Port,
    PortId, RouteScope, Underlay, Vnet, VnetId,
};

pub use self::claims::{Claim, Claims, Owner};
use self::entries::{decode, read_object};
pub use self::entries::{slot_entries, write_object};
use crate::names::{Guarded, HostName, Name, Scope, Slot};
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
    /// Tunnel formats.
    pub formats: Objects<Format>,
    /// Which ports have which addresses.
    pub claims: Claims,
    /// When each guard was written last.
    pub guards: Objects<Guard>,
    /// The vnets of ports, as their hosts find them.
    pub placed: Objects<Placed>,
    /// The vnets of which the contents are known, of this host's interest; `None`: everything is known.
    pub contents: Option<BTreeSet<VnetId>>,
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
    /// What it stands before.
    pub of: Guarded,
    /// When it was written last.
    pub written: Revision,
}

impl Keyed for Guard {
    type Key = Guarded;

    fn key(&self) -> Guarded {
        self.of.clone()
    }

    fn compare(&self, key: &Guarded) -> Ordering {
        self.of.cmp(key)
    }
}

/// The vnet of a port, as its host finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    host: HostName,
    id: PortId,
    vnet: VnetId,
}

impl Keyed for Placed {
    type Key = (HostName, PortId);

    fn key(&self) -> (HostName, PortId) {
        (self.host.clone(), self.id.clone())
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
        cluster.add(snapshot);
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
            Name::Guard(of) => {
                self.revision = self.revision.max(revision);
                match value {
                    Some(_) => drop(self.guards.insert(Guard { of, written: revision })),
                    None => drop(self.guards.remove(&of)),
                }
                Ok(())
            }
            Name::PortVnet { host, id } => {
                effect.objects = true;
                self.place(host, id, value)
            }
            Name::Port { vnet, host, id } => {
                self.revision = self.revision.max(revision);
                effect.objects = true;
                self.put_port(&vnet, host, &id, value)
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

    /// The vnet of a port, as its host finds it.
    fn place(&mut self, host: HostName, id: PortId, value: Option<&[u8]>) -> Result<(), String> {
        let Some(value) = value else {
            self.placed.remove(&(host, id));
            return Ok(());
        };
        let read = std::str::from_utf8(value).map_err(|error| error.to_string());
        match read.and_then(|vnet| VnetId::new(vnet).map_err(|fault| fault.to_string())) {
            Ok(vnet) => {
                self.placed.insert(Placed { host, id, vnet });
                Ok(())
            }
            Err(reason) => {
                self.placed.remove(&(host, id));
                Err(reason)
            }
        }
    }

    /// A port, as it is found in its vnet.
    fn put_port(
        &mut self,
        vnet: &VnetId,
        host: HostName,
        id: &PortId,
        value: Option<&[u8]>,
    ) -> Result<(), String> {
        let key = ObjectKey::Port(id.clone());
        let read = value.map(|value| match read_object(value, &key)? {
            Object::Port(port) if port.vnet == *vnet => Ok(port),
            Object::Port(port) => Err(format!("holds a port of vnet {}", port.vnet)),
            other => Err(format!("holds {}", other.key())),
        });
        let (port, done) = match read.transpose() {
            Ok(port) => (port, Ok(())),
            Err(reason) => (None, Err(reason)),
        };
        // It may have moved to another vnet.
        let state = self.hosts.get(&host);
        let now = state.and_then(|state| state.ports.get(id));
        if port.is_some() || now.is_some_and(|now| now.vnet == *vnet) {
            self.put(&Slot { host: Some(host), key }, port.map(Object::Port));
        }
        done
    }

    /// From now on only some contents are known: those of the host, as a snapshot has them, and of vnets that
    /// are opened.
    pub fn follow_contents(&mut self, own: &Snapshot) {
        self.contents = Some(BTreeSet::new());
        self.add(own);
    }

    fn add(&mut self, snapshot: &Snapshot) {
        for entry in &snapshot.entries {
            self.set(&entry.key, Some(&entry.value), entry.changed, &mut Effect::default());
        }
    }

    /// Takes the contents of a vnet, as a snapshot has them.
    pub fn open(&mut self, vnet: &VnetId, snapshot: &Snapshot) {
        self.add(snapshot);
        if let Some(contents) = &mut self.contents {
            contents.insert(vnet.clone());
        }
        self.content += 1;
    }

    /// Forgets the contents of a vnet.
    pub fn close(&mut self, vnet: &VnetId) {
        let of_hosts = self.hosts.iter().flat_map(|(host, state)| {
            let ports = state.ports.iter().filter(|port| port.vnet == *vnet);
            ports.map(|port| (Some(host.clone()), ObjectKey::Port(port.id.clone())))
        });
        let routes =
            self.routes.iter().filter(|route| route.scope == RouteScope::Vnet(vnet.clone()));
        let mappings = self.mappings.range(|mapping| mapping.vnet.cmp(vnet));
        let shared = routes.map(|route| ObjectKey::Route(route.key()));
        let shared = shared.chain(mappings.map(|mapping| ObjectKey::Mapping(mapping.key())));
        let gone: Vec<_> = of_hosts.chain(shared.map(|key| (None, key))).collect();
        for (host, key) in gone {
            self.put(&Slot { host, key }, None);
        }
        self.guards.remove(&Guarded::Vnet(vnet.clone()));
        let prefix = Scope::Vnet(vnet.clone()).to_string();
        self.unreadable.retain(|key, _| !key.starts_with(&prefix));
        if let Some(contents) = &mut self.contents {
            contents.remove(vnet);
        }
        self.content += 1;
    }

    /// The vnets whose contents concern a host: those of its ports, and those that routes lead to from there.
    pub fn concerning(&self, host: &HostName) -> BTreeSet<VnetId> {
        let placed = self.placed.range(|placed| placed.host.cmp(host));
        let own: BTreeSet<VnetId> = placed.map(|placed| placed.vnet.clone()).collect();
        match self.hosts.get(host) {
            Some(state) => view::reached(self, state, own),
            None => own,
        }
    }

    /// Whether the contents of a vnet are known.
    pub fn is_open(&self, vnet: &VnetId) -> bool {
        self.contents.as_ref().is_none_or(|contents| contents.contains(vnet))
    }

    fn host<T>(&mut self, host: &HostName, change: impl FnOnce(&mut HostState) -> T) -> T {
        let state = Arc::make_mut(self.hosts.entry(host.clone()).or_default());
        let done = change(state);
        if state.is_empty() {
            self.hosts.remove(host);
        }
        done
    }

    /// Whether a host is taken to be alive.
    pub fn is_alive(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(|state| state.live.is_some())
    }

    /// Takes a host for dead.
    pub fn bury(&mut self, host: &HostName) {
        if self.hosts.contains_key(host) {
            self.host(host, |state| state.live = None);
        }
        self.content += 1;
    }

    /// The revision at which a guard was written last; 0: never.
    pub fn guard(&self, of: &Guarded) -> Revision {
        self.guards.get(of).map_or(0, |guard| guard.written)
    }
}
