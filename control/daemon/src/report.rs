//! What became of each object on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_model::{Edit, Host, Object, ObjectKey, api, diff};
use tokio::time::Instant;

use crate::cluster::project::Projection;
use crate::follow::Known;
use crate::store::Revision;

/// How things stand between store and dataplane.
#[derive(Clone, Debug)]
pub struct Report {
    /// The cluster that this is about.
    pub known: Arc<Known>,
    /// What is wanted of this host.
    pub wanted: Arc<Projection>,
    /// What the dataplane carries.
    pub carried: Option<Arc<Host>>,
    /// Objects that the dataplane refused, and why.
    pub failed: Arc<BTreeMap<ObjectKey, String>>,
    /// Ports that it carries, but whose devices are gone or cannot be opened, and why.
    pub down: Arc<BTreeMap<ObjectKey, String>>,
    /// Why it takes nothing new at all.
    pub stuck: Option<String>,
    /// The dataplane is connected; otherwise why not.
    pub link: Result<(), String>,
    /// The dataplane's instance; the last one, where none is connected.
    pub instance: String,
    /// Its version.
    pub version: String,
    /// Its generation.
    pub generation: u64,
    /// The revision of which everything is carried that can be.
    pub revision: Revision,
    /// The content of the cluster of which everything is carried that can be.
    pub seen: u64,
    /// States given to dataplanes that came anew.
    pub replays: u64,
    /// Since when the dataplane carries less than is known.
    pub behind_since: Option<Instant>,
}

impl Default for Report {
    fn default() -> Self {
        Report {
            known: Arc::default(),
            wanted: Arc::default(),
            carried: None,
            failed: Arc::default(),
            down: Arc::default(),
            stuck: None,
            link: Err("not connected yet".to_owned()),
            instance: String::new(),
            version: String::new(),
            generation: 0,
            revision: 0,
            seen: 0,
            replays: 0,
            behind_since: None,
        }
    }
}

impl Report {
    /// What became of an object of this host or of the cluster.
    pub fn status_of(&self, key: &ObjectKey) -> api::ObjectStatus {
        let (status, reason) = self.status(key);
        api::ObjectStatus { key: Some(key.into()), status: status.into(), reason }
    }

    fn status(&self, key: &ObjectKey) -> (api::ApplyStatus, String) {
        if let Some(reason) = self.failed.get(key) {
            return (api::ApplyStatus::Failed, reason.clone());
        }
        if let Some(error) = self.wanted.faults.get(key) {
            return (api::ApplyStatus::Failed, error.to_string());
        }
        let wanted = self.wanted.host.as_ref().and_then(|host| find(host, key));
        if wanted.is_none() && self.wanted.host.is_some() {
            return (api::ApplyStatus::Elsewhere, String::new());
        }
        let carried = self.carried.as_ref().and_then(|host| find(host, key));
        if wanted.is_some() && wanted == carried {
            return match self.down.get(key) {
                Some(reason) => (api::ApplyStatus::Failed, reason.clone()),
                None => (api::ApplyStatus::Applied, String::new()),
            };
        }
        if let Some(reason) = &self.stuck {
            return (api::ApplyStatus::Failed, reason.clone());
        }
        let reason = match (&self.link, &self.wanted.host) {
            (_, None) => "this host has no underlay yet".to_owned(),
            (Err(reason), _) => format!("no dataplane: {reason}"),
            (Ok(()), Some(_)) => String::new(),
        };
        (api::ApplyStatus::Pending, reason)
    }

    /// How many objects of this host are applied, pending and failed.
    pub fn counts(&self) -> (u32, u32, u32) {
        let mut notable: BTreeSet<ObjectKey> = self.wanted.faults.keys().cloned().collect();
        let (mut applied, mut pending, mut failed) = (0_usize, 0, 0);
        if let Some(wanted) = &self.wanted.host {
            let differ = match &self.carried {
                Some(carried) => diff(carried, wanted),
                None => Object::all_of(wanted.clone().into_parts()).map(Edit::from).collect(),
            };
            let differ = differ.iter().map(Edit::key);
            let told = self.failed.keys().chain(self.down.keys()).cloned();
            notable.extend(differ.chain(told).filter(|key| find(wanted, key).is_some()));
            let faults = self.wanted.faults.keys().filter(|key| find(wanted, key).is_none());
            applied = count(wanted) + faults.count() - notable.len();
        }
        for key in notable {
            match self.status(&key).0 {
                api::ApplyStatus::Applied => applied += 1,
                api::ApplyStatus::Failed => failed += 1,
                _ => pending += 1,
            }
        }
        (u32::try_from(applied).unwrap_or(u32::MAX), pending, failed)
    }
}

/// Objects of a state.
fn count(host: &Host) -> usize {
    1 + host.vnets().len()
        + host.ports().len()
        + host.routes().len()
        + host.mappings().len()
        + host.ingress().len()
        + host.acls().len()
        + host.formats().len()
}

/// The object of a state.
pub fn find(host: &Host, key: &ObjectKey) -> Option<Object> {
    match key {
        ObjectKey::Underlay => Some(Object::Underlay(host.underlay().clone())),
        ObjectKey::Vnet(id) => host.vnet(id.as_str()).cloned().map(Object::Vnet),
        ObjectKey::Port(id) => host.port(id.as_str()).cloned().map(Object::Port),
        ObjectKey::Route(key) => host.routes().get(key).cloned().map(Object::Route),
        ObjectKey::Mapping(key) => host.mappings().get(key).cloned().map(Object::Mapping),
        ObjectKey::Ingress(key) => host.ingress().get(key).copied().map(Object::Ingress),
        ObjectKey::Acl(id) => host.acl(id.as_str()).cloned().map(Object::Acl),
        ObjectKey::Format(id) => host.format(id.as_str()).cloned().map(Object::Format),
    }
}
