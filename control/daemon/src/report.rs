//! What became of each object on this host.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use culvert_model::{Host, Keyed, Object, ObjectKey, api};
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
            replays: 0,
            behind_since: None,
        }
    }
}

impl Report {
    /// The status of objects, for many questions.
    pub fn statuses(&self) -> Statuses<'_> {
        let index = |host: Option<&Host>| -> HashMap<ObjectKey, Object> {
            let objects = host.map(|host| Object::all_of(host.clone().into_parts()));
            objects.into_iter().flatten().map(|object| (object.key(), object)).collect()
        };
        Statuses {
            report: self,
            wanted: index(self.wanted.host.as_ref()),
            carried: index(self.carried.as_deref()),
        }
    }
}

/// The status of objects.
pub struct Statuses<'a> {
    report: &'a Report,
    wanted: HashMap<ObjectKey, Object>,
    carried: HashMap<ObjectKey, Object>,
}

impl Statuses<'_> {
    /// What became of an object of this host or of the cluster.
    pub fn of(&self, key: &ObjectKey) -> api::ObjectStatus {
        let (status, reason) = self.status(key);
        api::ObjectStatus { key: Some(key.into()), status: status.into(), reason }
    }

    fn status(&self, key: &ObjectKey) -> (api::ApplyStatus, String) {
        let report = self.report;
        if let Some(reason) = report.failed.get(key) {
            return (api::ApplyStatus::Failed, reason.clone());
        }
        if let Some(error) = report.wanted.faults.get(key) {
            return (api::ApplyStatus::Failed, error.to_string());
        }
        let wanted = self.wanted.get(key);
        if wanted.is_none() && report.wanted.host.is_some() {
            return (api::ApplyStatus::Elsewhere, String::new());
        }
        if wanted.is_some() && wanted == self.carried.get(key) {
            return match report.down.get(key) {
                Some(reason) => (api::ApplyStatus::Failed, reason.clone()),
                None => (api::ApplyStatus::Applied, String::new()),
            };
        }
        if let Some(reason) = &report.stuck {
            return (api::ApplyStatus::Failed, reason.clone());
        }
        let reason = match (&report.link, &report.wanted.host) {
            (_, None) => "this host has no underlay yet".to_owned(),
            (Err(reason), _) => format!("no dataplane: {reason}"),
            (Ok(()), Some(_)) => String::new(),
        };
        (api::ApplyStatus::Pending, reason)
    }

    /// How many objects of this host are applied, pending and failed.
    pub fn counts(&self) -> (u32, u32, u32) {
        let (mut applied, mut pending, mut failed) = (0, 0, 0);
        let keys = self.wanted.keys().chain(self.report.wanted.faults.keys());
        for key in keys {
            match self.status(key).0 {
                api::ApplyStatus::Applied => applied += 1,
                api::ApplyStatus::Failed => failed += 1,
                _ => pending += 1,
            }
        }
        (applied, pending, failed)
    }
}

/// The object of a state.
pub fn find(host: &Host, key: &ObjectKey) -> Option<Object> {
    match key {
        ObjectKey::Underlay => Some(Object::Underlay(host.underlay().clone())),
        ObjectKey::Vnet(id) => host.vnet(id.as_str()).cloned().map(Object::Vnet),
        ObjectKey::Port(id) => host.port(id.as_str()).cloned().map(Object::Port),
        ObjectKey::Route(key) => {
            host.routes().iter().find(|route| route.key() == *key).cloned().map(Object::Route)
        }
        ObjectKey::Mapping(key) => {
            let mut mappings = host.mappings().iter();
            mappings
                .find(|mapping| mapping.ip == key.ip && mapping.vnet == key.vnet)
                .cloned()
                .map(Object::Mapping)
        }
        ObjectKey::Ingress(key) => {
            host.ingress().iter().find(|rule| rule.key() == *key).copied().map(Object::Ingress)
        }
        ObjectKey::Acl(id) => host.acl(id.as_str()).cloned().map(Object::Acl),
    }
}
