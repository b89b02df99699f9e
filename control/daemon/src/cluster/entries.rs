//! What a store holds of a cluster: keys and values.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_model::objects::changes;
use culvert_model::{Keyed, Object, ObjectKey, Objects, api};
use prost::Message;

use super::{Cluster, HostState};
use crate::names::{HostName, Name, Slot};

impl Cluster {
    /// What a store holds of it, without guards.
    pub fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        let difference = self.entries_since(&Cluster::default());
        difference.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Keys that have another value than for an earlier version, or none any more, at the cost of what changed.
    pub fn entries_since(&self, old: &Cluster) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut found = Found::default();
        found.message(&Name::Meta, old.meta.as_ref(), self.meta.as_ref());
        for name in old.hosts.keys().chain(self.hosts.keys()) {
            match (old.hosts.get(name), self.hosts.get(name)) {
                (Some(was), Some(is)) if Arc::ptr_eq(was, is) => {}
                (was, is) => found.host(name, was.map(AsRef::as_ref), is.map(AsRef::as_ref)),
            }
        }
        found.objects(None, &old.vnets, &self.vnets, Object::Vnet);
        found.objects(None, &old.routes, &self.routes, Object::Route);
        found.objects(None, &old.mappings, &self.mappings, Object::Mapping);
        found.objects(None, &old.ingress, &self.ingress, Object::Ingress);
        found.objects(None, &old.acls, &self.acls, Object::Acl);
        found.objects(None, &old.formats, &self.formats, Object::Format);
        found.0
    }
}

#[derive(Default)]
struct Found(BTreeMap<String, Option<Vec<u8>>>);

impl Found {
    fn message<M: Message>(&mut self, name: &Name, was: Option<&M>, is: Option<&M>) {
        let (was, is) = (was.map(M::encode_to_vec), is.map(M::encode_to_vec));
        if was != is {
            self.0.insert(name.to_string(), is);
        }
    }

    fn host(&mut self, name: &HostName, was: Option<&HostState>, is: Option<&HostState>) {
        let none = HostState::default();
        let (was, is) = (was.unwrap_or(&none), is.unwrap_or(&none));
        self.message(&Name::Host(name.clone()), was.record.as_ref(), is.record.as_ref());
        self.message(&Name::Live(name.clone()), was.live.as_ref(), is.live.as_ref());
        if was.underlay != is.underlay {
            let underlay = |state: &HostState| state.underlay.clone().map(Object::Underlay);
            self.object(Some(name), underlay(was).as_ref(), underlay(is).as_ref());
        }
        self.objects(Some(name), &was.ports, &is.ports, Object::Port);
        self.objects(Some(name), &was.routes, &is.routes, Object::Route);
    }

    fn objects<T: Keyed + Clone + PartialEq>(
        &mut self,
        host: Option<&HostName>,
        old: &Objects<T>,
        new: &Objects<T>,
        of: fn(T) -> Object,
    ) {
        for (was, is) in changes(old, new) {
            self.object(host, was.cloned().map(of).as_ref(), is.cloned().map(of).as_ref());
        }
    }

    fn object(&mut self, host: Option<&HostName>, was: Option<&Object>, is: Option<&Object>) {
        let entries = |object: Option<&Object>| match object {
            Some(object) => slot_entries(&Slot { host: host.cloned(), key: object.key() }, object),
            None => Vec::new(),
        };
        self.0.extend(entries(was).into_iter().map(|(key, _)| (key, None)));
        self.0.extend(entries(is).into_iter().map(|(key, value)| (key, Some(value))));
    }
}

/// What a store holds of an object.
pub fn slot_entries(slot: &Slot, object: &Object) -> Vec<(String, Vec<u8>)> {
    let name = match (&slot.host, object) {
        (Some(host), Object::Port(port)) => {
            let (host, id) = (host.clone(), port.id.clone());
            Name::Port { vnet: port.vnet.clone(), host, id }
        }
        _ => Name::Object(slot.clone()),
    };
    let mut entries = vec![(name.to_string(), write_object(object))];
    if let Name::Port { vnet, host, id } = name {
        entries.push((Name::PortVnet { host, id }.to_string(), vnet.as_str().into()));
    }
    entries
}

/// The value of a slot.
pub fn write_object(object: &Object) -> Vec<u8> {
    api::Object::from(object).encode_to_vec()
}

pub(super) fn read_object(value: &[u8], key: &ObjectKey) -> Result<Object, String> {
    let message = api::Object::decode(value).map_err(|error| error.to_string())?;
    let object = Object::try_from(message)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    let found = object.key();
    if found == *key { Ok(object) } else { Err(format!("holds {found} instead of {key}")) }
}

pub(super) fn decode<M: Message + Default>(value: Option<&[u8]>) -> Result<Option<M>, String> {
    value.map(M::decode).transpose().map_err(|error| error.to_string())
}
