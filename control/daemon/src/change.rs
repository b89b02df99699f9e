//! How a change is written: checked against the cluster as it is known, and committed only if nothing that the
//! check relied on has changed meanwhile.
//!
//! Two hosts that write at the same time must not end up with one address twice. So each transaction
//! writes the *guards* of what it touches, and expects them to be as they were when it was checked: of two
//! that could contradict each other, the second is checked again. Guards are by vnet, so that vnets do not
//! wait for each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::{Edit, Keyed, Object, ObjectKey, RouteAction, RouteScope, api};
use tokio::sync::{Mutex, watch};

use crate::cluster::check::{Conflict, Touched, checked, edited};
use crate::cluster::project::{Projection, project};
use crate::cluster::{Cluster, write_object};
use crate::follow::Known;
use crate::names::{HostName, Name, Slot};
use crate::store::{Outcome, Revision, Store, StoreError, Txn};

/// How often a change is checked again since others changed the same.
const ATTEMPTS: u32 = 16;
/// How long one waits to see what others, or we, have just written.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Correct what the conflicts name.
    #[error("{} faults", .0.len())]
    Conflicts(Vec<Conflict>),
    /// Read what is wanted again, and decide again.
    #[error("the current revision is {now}, not {wanted}")]
    Revision {
        /// The store's.
        now: Revision,
        /// The caller's.
        wanted: Revision,
    },
    /// Try again: others change the same objects all the time.
    #[error("others changed the same objects {ATTEMPTS} times meanwhile")]
    Contended,
    /// Look after the store; `culvert health` says more.
    #[error("nothing was changed, and what runs goes on: {0}")]
    Unhealthy(String),
    /// See the message.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change that was written, or would be.
#[derive(Debug)]
pub struct Done {
    /// The revision after it.
    pub revision: Revision,
    /// What it touched.
    pub touched: Vec<Touched>,
    /// Legal, but hardly meant.
    pub warnings: Vec<String>,
}

/// Writes changes of one host.
pub struct Writer {
    store: Arc<dyn Store>,
    me: HostName,
    known: watch::Receiver<Arc<Known>>,
    /// Changes of one host follow each other. What the host carries of the cluster is kept for the next.
    turn: Mutex<Option<(Arc<Cluster>, Projection)>>,
}

impl Writer {
    /// Writes to `store` on behalf of `me`.
    pub fn new(store: Arc<dyn Store>, me: HostName, known: watch::Receiver<Arc<Known>>) -> Writer {
        Writer { store, me, known, turn: Mutex::new(None) }
    }

    /// Writes what `plan` makes of the cluster, all of it or nothing.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing was written, but where [`StoreError::Unknown`] says otherwise.
    pub async fn change(
        &self,
        plan: impl Fn(&Cluster, &Projection) -> Vec<Edit>,
        if_revision: Option<Revision>,
        dry_run: bool,
    ) -> Result<Done, ChangeError> {
        let mut turn = self.turn.lock().await;
        for _ in 0..ATTEMPTS {
            let known = Arc::clone(&self.known.borrow());
            if let Some(reason) = known.unusable() {
                return Err(ChangeError::Unhealthy(reason));
            }
            let cluster = &known.cluster;
            if let Some(wanted) = if_revision.filter(|wanted| *wanted != cluster.revision) {
                return Err(ChangeError::Revision { now: cluster.revision, wanted });
            }
            let before = match turn.take() {
                Some((old, projection)) => projection.advanced(&old, cluster, &self.me),
                None => project(cluster, &self.me),
            };
            let (_, before) = turn.insert((Arc::clone(cluster), before));
            let edits = plan(cluster, before);
            let (after, touched) =
                edited(cluster, &self.me, &edits).map_err(ChangeError::Conflicts)?;
            let carried = checked(cluster, before, &after, &self.me, &touched)
                .map_err(ChangeError::Conflicts)?;
            let warnings = carried.host.map(|host| host.warnings()).unwrap_or_default();
            let warnings = warnings.iter().map(ToString::to_string).collect();
            if dry_run || touched.is_empty() {
                return Ok(Done { revision: cluster.revision, touched, warnings });
            }
            let txn = transaction(cluster, &self.me, &touched, if_revision.is_some());
            match self.store.commit(txn).await? {
                Outcome::Done(revision) => {
                    self.catch_up(|known| known.cluster.revision >= revision).await;
                    return Ok(Done { revision, touched, warnings });
                }
                Outcome::Stale => {
                    let before = cluster.revision;
                    self.catch_up(|known| known.cluster.revision > before).await;
                }
            }
        }
        Err(ChangeError::Contended)
    }

    /// Waits until the follower has seen something, so that the next change is checked against it.
    async fn catch_up(&self, seen: impl FnMut(&Arc<Known>) -> bool) {
        let mut known = self.known.clone();
        // A store that has just answered and is then gone: what it did is seen when it is back.
        let _ = tokio::time::timeout(CATCH_UP, known.wait_for(seen)).await;
    }

    /// Forgets a host that is not alive.
    ///
    /// # Errors
    /// As [`Writer::change`].
    pub async fn forget(&self, host: &HostName, dry_run: bool) -> Result<Done, ChangeError> {
        let _turn = self.turn.lock().await;
        let known = Arc::clone(&self.known.borrow());
        if let Some(reason) = known.unusable() {
            return Err(ChangeError::Unhealthy(reason));
        }
        let cluster = &known.cluster;
        let objects = cluster.objects().filter(|(owner, _)| *owner == Some(host));
        let touched: Vec<Touched> = objects
            .map(|(owner, object)| Touched {
                slot: Slot { host: owner.cloned(), key: object.key() },
                before: Some(object),
                after: None,
                edit: 0,
            })
            .collect();
        let done = |revision, touched| Done { revision, touched, warnings: Vec::new() };
        if dry_run {
            return Ok(done(cluster.revision, touched));
        }
        let mut txn = transaction(cluster, host, &touched, false);
        txn.deletes.push(Name::Host(host.clone()).to_string());
        // It must not come to life meanwhile.
        txn.expect.push((Name::Live(host.clone()).to_string(), 0));
        match self.store.commit(txn).await? {
            Outcome::Done(revision) => {
                self.catch_up(|known| known.cluster.revision >= revision).await;
                Ok(done(revision, touched))
            }
            Outcome::Stale => Err(ChangeError::Contended),
        }
    }
}

/// The guards of an object.
fn guards(slot: &Slot, object: &Object, into: &mut BTreeSet<String>) {
    let vnet = |id: &dyn std::fmt::Display| format!("vnet/{id}");
    if let Some(host) = &slot.host {
        into.insert(format!("host/{host}"));
    }
    match object {
        Object::Underlay(_) => drop(into.insert("hosts".to_owned())),
        Object::Vnet(v) => into.extend(["vnets".to_owned(), vnet(&v.id)]),
        Object::Port(port) => {
            into.insert(vnet(&port.vnet));
            into.extend(port.acl.iter().map(|id| format!("acl/{id}")));
        }
        Object::Route(route) => {
            if let RouteScope::Vnet(id) = &route.scope {
                into.insert(vnet(id));
            }
            if let RouteAction::Vnet(id) = &route.action {
                into.insert(vnet(id));
            }
        }
        Object::Mapping(mapping) => drop(into.insert(vnet(&mapping.vnet))),
        Object::Ingress(_) => drop(into.insert("vnets".to_owned())),
        Object::Acl(group) => drop(into.insert(format!("acl/{}", group.id))),
    }
}

/// The transaction of a checked change. With `strict`, nothing at all may have changed since.
fn transaction(cluster: &Cluster, me: &HostName, touched: &[Touched], strict: bool) -> Txn {
    let mut names = BTreeSet::from([format!("host/{me}")]);
    for touched in touched {
        for object in touched.before.iter().chain(&touched.after) {
            guards(&touched.slot, object, &mut names);
        }
    }
    let key = |guard: &str| Name::Guard(guard.to_owned()).to_string();
    let expected = names.iter().map(|guard| (key(guard), cluster.guard(guard)));
    let mut expect: Vec<_> = expected.collect();
    if strict {
        let others = cluster.guards.iter().filter(|guard| !names.contains(guard.name.as_ref()));
        expect.extend(others.map(|guard| (key(&guard.name), guard.written)));
    }
    let mut txn = Txn { expect, ..Txn::default() };
    txn.puts.extend(names.iter().map(|guard| (key(guard), Vec::new())));
    for touched in touched {
        let key = Name::Object(touched.slot.clone()).to_string();
        match &touched.after {
            Some(object) => txn.puts.push((key, write_object(object))),
            None => txn.deletes.push(key),
        }
    }
    txn
}

/// The edits that make `state` what is wanted of `me`. With `prune`, objects of the cluster that it lacks are
/// deleted.
pub fn plan_state(
    cluster: &Cluster,
    carried: &Projection,
    me: &HostName,
    state: &[Object],
    prune: bool,
) -> Vec<Edit> {
    let mut named: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut puts = Vec::new();
    for object in state {
        let key = object.key();
        // A mapping that another host's port amounts to need not be written.
        if let Object::Mapping(mapping) = object
            && carried.derived.contains(&mapping.key())
            && carried.host.as_ref().and_then(|host| host.mappings().get(&mapping.key()))
                == Some(mapping)
        {
            continue;
        }
        let slot = Slot::of(key.clone(), me);
        if cluster.get(&slot).as_ref() != Some(object) {
            puts.push(Edit::from(object.clone()));
        }
        named.insert(key);
    }
    // What refers goes before what it refers to.
    let mut there: Vec<ObjectKey> = Vec::new();
    if prune {
        there.extend(cluster.ingress.iter().map(|rule| ObjectKey::Ingress(rule.key())));
        there.extend(cluster.mappings.iter().map(|mapping| ObjectKey::Mapping(mapping.key())));
        there.extend(cluster.routes.iter().map(|route| ObjectKey::Route(route.key())));
    }
    if let Some(own) = cluster.hosts.get(me) {
        there.extend(own.routes.iter().map(|route| ObjectKey::Route(route.key())));
        there.extend(own.ports.iter().map(|port| ObjectKey::Port(port.id.clone())));
    }
    if prune {
        there.extend(cluster.acls.iter().map(|group| ObjectKey::Acl(group.id.clone())));
        there.extend(cluster.vnets.iter().map(|vnet| ObjectKey::Vnet(vnet.id.clone())));
    }
    let gone = there.into_iter().filter(|key| !named.contains(key));
    gone.filter_map(Edit::deleting).chain(puts).collect()
}

/// What a change did, for people.
pub fn differences(touched: &[Touched]) -> Vec<api::Difference> {
    let one = |touched: &Touched| api::Difference {
        key: Some((&touched.slot.key).into()),
        before: touched.before.as_ref().map(Into::into),
        after: touched.after.as_ref().map(Into::into),
    };
    touched.iter().map(one).collect()
}
