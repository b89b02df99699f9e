//! Which objects there are, and what became of each.

use std::sync::Arc;

use culvert_model::{Object, ObjectKey, Section, api};
use tonic::{Code, Status};

use super::Api;
use crate::change::vnets_of_keys;
use crate::cluster::Cluster;
use crate::follow::Known;
use crate::names::{HostName, Slot};
use crate::queue::knows;

impl Api {
    pub(super) async fn listing(
        &self,
        request: api::ListObjectsRequest,
    ) -> Result<api::ObjectList, Status> {
        let kind = api::ObjectKind::try_from(request.kind).map_err(|_| {
            Status::invalid_argument(format!("kind {}: unknown; legal is 0 to 7", request.kind))
        })?;
        let keys: Vec<ObjectKey> =
            request.keys.into_iter().map(ObjectKey::try_from).collect::<Result<_, _>>().map_err(
                |errors| api::refuse(Code::InvalidArgument, errors.iter().map(Into::into)),
            )?;
        if request.ahead
            && let Some(queue) = &self.queue
            && let Some((known, cluster)) = queue.ahead().await
        {
            return self.ahead(&known, &cluster, kind, &keys, request.all_hosts);
        }
        // What is carried may be behind: of it only what became of objects is told.
        let report = Arc::clone(&self.report.borrow());
        let followed = &self.cluster();
        let read = if keys.is_empty() {
            if lies_apart(kind) || request.all_hosts {
                self.writer.everything().await
            } else {
                Ok(Arc::clone(followed))
            }
        } else {
            // Half an answer would say of an object that it is not there.
            Ok(self
                .writer
                .with_contents(followed, vnets_of_keys(&keys))
                .await
                .map_err(super::unreadable)?)
        };
        let (cluster, incomplete) = match read {
            Ok(cluster) => (cluster, String::new()),
            Err(error) => (Arc::clone(followed), error.to_string()),
        };
        let mut objects = Vec::new();
        let mut add = |host: Option<&HostName>, object: &Object| {
            let key = object.key();
            let mut listed = listed(&key, object, host);
            if host.is_none_or(|host| *host == self.me) {
                let status = report.status_of(&key);
                (listed.status, listed.reason) = (status.status, status.reason);
            } else {
                listed.set_status(api::ApplyStatus::Elsewhere);
            }
            objects.push(listed);
        };
        if keys.is_empty() {
            for (host, object) in cluster.objects() {
                let own = host.is_none_or(|host| *host == self.me);
                if is_of(kind, &object.key()) && (own || request.all_hosts) {
                    add(host, &object);
                }
            }
        }
        for key in &keys {
            let slot = Slot::of(key.clone(), &self.me);
            if let Some(object) = cluster.get(&slot) {
                add(slot.host.as_ref(), &object);
            }
        }
        if request.derived && is_of_mappings(kind) {
            let carried = report.wanted.host.as_ref().map(|host| host.mappings().clone());
            let carried = carried.unwrap_or_default();
            for derived in &report.wanted.derived {
                let Some(mapping) = carried.get(&derived.key) else { continue };
                let key = ObjectKey::Mapping(derived.key.clone());
                let status = report.status_of(&key);
                objects.push(api::ListedObject {
                    status: status.status,
                    reason: status.reason,
                    derived_from: derived.from.to_string(),
                    ..listed(&key, &Object::Mapping(mapping.clone()), None)
                });
            }
        }
        Ok(api::ObjectList { revision: cluster.revision, objects, incomplete })
    }

    /// Objects as they will be when the queue is written.
    fn ahead(
        &self,
        known: &Known,
        cluster: &Cluster,
        kind: api::ObjectKind,
        keys: &[ObjectKey],
        all_hosts: bool,
    ) -> Result<api::ObjectList, Status> {
        // Half an answer would say of an object that it is not there.
        let vnets = vnets_of_keys(keys);
        if let Some(vnet) = vnets.iter().find(|vnet| !knows(known, &self.me, vnet)) {
            return Err(Status::unavailable(format!("{WAITS}, of vnet {vnet} among others")));
        }
        let concerns = |host: Option<&HostName>| all_hosts || host.is_none_or(|h| *h == self.me);
        let named = |key: &ObjectKey| keys.is_empty() || keys.contains(key);
        let objects = cluster.objects().filter(|(host, _)| concerns(*host));
        let objects = objects.map(|(host, object)| (object.key(), object, host));
        let objects = objects.filter(|(key, ..)| is_of(kind, key) && named(key));
        let objects = objects.map(|(key, object, host)| listed(&key, &object, host)).collect();
        let part = keys.is_empty() && (lies_apart(kind) || all_hosts);
        let all_open = cluster.vnets.iter().all(|vnet| knows(known, &self.me, &vnet.id));
        let incomplete = if part && !all_open { WAITS.to_owned() } else { String::new() };
        Ok(api::ObjectList { revision: cluster.revision, objects, incomplete })
    }
}

/// Why a list of what will be when the queue is written is not whole.
const WAITS: &str = "changes wait for the store, and of vnets that do not concern this host nothing is known meanwhile";

/// Objects that may lie in vnets that do not concern this host, or belong to others.
const fn lies_apart(kind: api::ObjectKind) -> bool {
    matches!(kind, api::ObjectKind::Unspecified | api::ObjectKind::Route | api::ObjectKind::Mapping)
}

fn listed(key: &ObjectKey, object: &Object, host: Option<&HostName>) -> api::ListedObject {
    api::ListedObject {
        key: Some(key.into()),
        object: Some(object.into()),
        host: host.map(ToString::to_string).unwrap_or_default(),
        ..api::ListedObject::default()
    }
}

fn is_of(kind: api::ObjectKind, key: &ObjectKey) -> bool {
    let section = match kind {
        api::ObjectKind::Unspecified => return true,
        api::ObjectKind::Underlay => Section::Underlay,
        api::ObjectKind::Vnet => Section::Vnet,
        api::ObjectKind::Port => Section::Port,
        api::ObjectKind::Route => Section::Route,
        api::ObjectKind::Mapping => Section::Mapping,
        api::ObjectKind::Ingress => Section::Ingress,
        api::ObjectKind::Acl => Section::Acl,
        api::ObjectKind::Format => Section::Format,
    };
    key.section() == section
}

fn is_of_mappings(kind: api::ObjectKind) -> bool {
    matches!(kind, api::ObjectKind::Unspecified | api::ObjectKind::Mapping)
}
