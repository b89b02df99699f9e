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

use culvert_model::{Edit, Keyed, Object, ObjectKey, RouteAction, RouteScope, VnetId, api};
use tokio::sync::{Mutex, watch};

use crate::cluster::check::{Conflict, Touched, checked, edited};
use crate::cluster::project::{Projection, project};
use crate::cluster::{Cluster, slot_entries};
use crate::follow::Known;
use crate::names::{Guarded, HostName, Name, Scope, Slot, vnet_of};
use crate::scopes::guard_value;
use crate::store::{Outcome, Revision, Store, StoreError, Txn};

/// How often a change is checked again since others changed the same.
const ATTEMPTS: u32 = 16;
/// How long one waits to see what others, or we, have just written.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How long one waits before what is not followed is read again.
const AGAIN: Duration = Duration::from_millis(50);

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
    /// The content of the cluster in which this host has seen it; see [`Cluster::content`].
    pub seen: u64,
}

/// What a plan is made from.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Basis {
    /// What this host follows, and whatever else the objects of the plan concern.
    #[default]
    Followed,
    /// All of the store.
    Everything,
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
        basis: Basis,
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
            let followed = &known.cluster;
            let carried = match turn.take() {
                Some((old, carried)) => carried.advanced(&old, followed, &self.me),
                None => project(followed, &self.me),
            };
            let (_, carried) = turn.insert((Arc::clone(followed), carried));
            let mut edits = plan(followed, carried);
            let wider = self.wider(followed, basis, &edits).await?;
            let (cluster, carried) = match wider {
                None => (Arc::clone(followed), carried.clone()),
                Some(wider) => {
                    let carried = carried.advanced(followed, &wider, &self.me);
                    edits = plan(&wider, &carried);
                    (Arc::new(wider), carried)
                }
            };
            let keys: Vec<_> = edits.iter().map(Edit::key).collect();
            let now = match basis {
                Basis::Followed => revision_of(followed, &cluster, &vnets_of_keys(&keys)),
                Basis::Everything => cluster.revision,
            };
            // Whoever read more than this host follows knows of later revisions than it does.
            let outdated = |wanted: &Revision| match followed.contents {
                None => *wanted != now,
                Some(_) => *wanted < now,
            };
            if let Some(wanted) = if_revision.filter(outdated) {
                return Err(ChangeError::Revision { now, wanted });
            }
            let (after, touched) =
                edited(&cluster, &self.me, &edits).map_err(ChangeError::Conflicts)?;
            let would_carry = checked(&cluster, &carried, &after, &self.me, &touched)
                .map_err(ChangeError::Conflicts)?;
            let warnings = would_carry.host.map(|host| host.warnings()).unwrap_or_default();
            let warnings = warnings.iter().map(ToString::to_string).collect();
            if dry_run || touched.is_empty() {
                let (revision, seen) = (followed.revision, followed.content);
                return Ok(Done { revision, touched, warnings, seen });
            }
            let guards = guards_of(&self.me, &touched);
            let txn = transaction(&cluster, &guards, &touched, if_revision.is_some());
            match self.store.commit(txn).await? {
                Outcome::Done(revision) => {
                    let seen = self.see(revision).await;
                    return Ok(Done { revision, touched, warnings, seen });
                }
                Outcome::Stale => {
                    // What others did is read anew, or on its way here.
                    let another = |known: &Arc<Known>| !Arc::ptr_eq(&known.cluster, followed);
                    let wait = if Arc::ptr_eq(&cluster, followed) { CATCH_UP } else { AGAIN };
                    self.catch_up(another, wait).await;
                }
            }
        }
        Err(ChangeError::Contended)
    }

    /// What is followed and more, where a change has to be checked against more.
    async fn wider(
        &self,
        followed: &Cluster,
        basis: Basis,
        edits: &[Edit],
    ) -> Result<Option<Cluster>, StoreError> {
        if followed.contents.is_none() {
            return Ok(None);
        }
        let Some(vnets) = vnets_of(edits).filter(|_| basis == Basis::Followed) else {
            return self.whole().await.map(Some);
        };
        if vnets.iter().all(|vnet| followed.is_open(vnet)) {
            return Ok(None);
        }
        self.opened(followed, vnets).await.map(Some)
    }

    async fn opened(
        &self,
        followed: &Cluster,
        vnets: BTreeSet<VnetId>,
    ) -> Result<Cluster, StoreError> {
        let mut wider = followed.clone();
        for vnet in vnets.into_iter().filter(|vnet| !followed.is_open(vnet)) {
            let prefix = Scope::Vnet(vnet.clone()).to_string();
            wider.open(&vnet, &self.store.snapshot(&prefix).await?);
        }
        Ok(wider)
    }

    /// A cluster with the contents of some vnets, also where this host does not follow them.
    ///
    /// # Errors
    /// Where the store has to be read, and cannot.
    pub async fn with_contents(
        &self,
        followed: &Arc<Cluster>,
        vnets: BTreeSet<VnetId>,
    ) -> Result<Arc<Cluster>, StoreError> {
        if vnets.iter().all(|vnet| followed.is_open(vnet)) {
            return Ok(Arc::clone(followed));
        }
        self.there()?;
        self.opened(followed, vnets).await.map(Arc::new)
    }

    /// Whoever only wants to see something does not wait for a store that is known to be away.
    fn there(&self) -> Result<(), StoreError> {
        match &self.known.borrow().outage {
            Some(outage) => Err(StoreError::Away { reason: outage.reason.clone() }),
            None => Ok(()),
        }
    }

    /// All of the store, also where this host follows only what concerns it.
    ///
    /// # Errors
    /// Where the store has to be read, and cannot.
    pub async fn everything(&self) -> Result<Arc<Cluster>, StoreError> {
        let followed = Arc::clone(&self.known.borrow().cluster);
        if followed.contents.is_none() {
            return Ok(followed);
        }
        self.there()?;
        self.whole().await.map(Arc::new)
    }

    async fn whole(&self) -> Result<Cluster, StoreError> {
        Ok(Cluster::read(&self.store.snapshot("").await?))
    }

    /// Waits until the follower has seen a transaction of this host.
    async fn see(&self, revision: Revision) -> u64 {
        let own = Guarded::Host(self.me.clone());
        self.catch_up(|known| known.cluster.guard(&own) >= revision, CATCH_UP).await
    }

    /// Waits until the follower has seen something, so that the next change is checked against it.
    async fn catch_up(&self, seen: impl FnMut(&Arc<Known>) -> bool, wait: Duration) -> u64 {
        let mut known = self.known.clone();
        // A store that has just answered and is then gone: what it did is seen when it is back.
        let _ = tokio::time::timeout(wait, known.wait_for(seen)).await;
        known.borrow().cluster.content
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
        let cluster = self.everything().await?;
        let objects = cluster.objects().filter(|(owner, _)| *owner == Some(host));
        let touched: Vec<Touched> = objects
            .map(|(owner, object)| Touched {
                slot: Slot { host: owner.cloned(), key: object.key() },
                before: Some(object),
                after: None,
                edit: 0,
            })
            .collect();
        let done = |revision, touched, seen| Done { revision, touched, warnings: Vec::new(), seen };
        if dry_run {
            return Ok(done(known.cluster.revision, touched, known.cluster.content));
        }
        let mut guards = guards_of(&self.me, &touched);
        guards.insert(Guarded::Host(host.clone()));
        let mut txn = transaction(&cluster, &guards, &touched, false);
        txn.deletes.push(Name::Host(host.clone()).to_string());
        // It must not come to life meanwhile.
        txn.expect.push((Name::Live(host.clone()).to_string(), 0));
        match self.store.commit(txn).await? {
            Outcome::Done(revision) => {
                let seen = self.see(revision).await;
                Ok(done(revision, touched, seen))
            }
            Outcome::Stale => Err(ChangeError::Contended),
        }
    }
}

/// The vnets whose contents the checks of some edits look at; `None`: those of all.
fn vnets_of(edits: &[Edit]) -> Option<BTreeSet<VnetId>> {
    let mut vnets = BTreeSet::new();
    for edit in edits {
        vnets.extend(vnet_of(&edit.key()).cloned());
        match edit {
            // Whether anybody uses it.
            Edit::DeleteVnet(_) | Edit::DeleteAcl(_) => return None,
            Edit::PutVnet(vnet) => drop(vnets.insert(vnet.id.clone())),
            Edit::PutPort(port) => drop(vnets.insert(port.vnet.clone())),
            Edit::PutRoute(route) => {
                if let RouteAction::Vnet(id) = &route.action {
                    vnets.insert(id.clone());
                }
            }
            // A port of this host is in a vnet that is followed; the rest is shared, or said by its key.
            Edit::DeletePort(_)
            | Edit::DeleteRoute(_)
            | Edit::PutMapping(_)
            | Edit::DeleteMapping(_)
            | Edit::SetUnderlay(_)
            | Edit::PutIngress(_)
            | Edit::DeleteIngress(_)
            | Edit::PutAcl(_) => {}
        }
    }
    Some(vnets)
}

/// The vnets in whose contents objects of these keys are.
pub fn vnets_of_keys(keys: &[ObjectKey]) -> BTreeSet<VnetId> {
    keys.iter().filter_map(vnet_of).cloned().collect()
}

/// The last revision of what this host follows, and of the contents of some vnets in a cluster that has them:
/// each change in a vnet writes its guard.
pub fn revision_of(followed: &Cluster, cluster: &Cluster, vnets: &BTreeSet<VnetId>) -> Revision {
    let contents = vnets.iter().map(|vnet| cluster.guard(&Guarded::Vnet(vnet.clone())));
    contents.fold(followed.revision, Revision::max)
}

/// The guards of an object.
fn guards(slot: &Slot, object: &Object, into: &mut BTreeSet<Guarded>) {
    let vnet = |id: &VnetId| Guarded::Vnet(id.clone());
    if let Some(host) = &slot.host {
        into.insert(Guarded::Host(host.clone()));
    }
    match object {
        Object::Underlay(_) => drop(into.insert(Guarded::Underlays)),
        Object::Vnet(v) => into.extend([Guarded::Vnets, vnet(&v.id)]),
        Object::Port(port) => {
            into.insert(vnet(&port.vnet));
            into.extend(port.acl.iter().cloned().map(Guarded::Acl));
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
        Object::Ingress(_) => drop(into.insert(Guarded::Vnets)),
        Object::Acl(group) => drop(into.insert(Guarded::Acl(group.id.clone()))),
    }
}

/// The guards of a transaction of `me`.
fn guards_of(me: &HostName, touched: &[Touched]) -> BTreeSet<Guarded> {
    let mut all = BTreeSet::from([Guarded::Host(me.clone())]);
    for touched in touched {
        for object in touched.before.iter().chain(&touched.after) {
            guards(&touched.slot, object, &mut all);
        }
    }
    all
}

/// The transaction of a checked change. With `strict`, nothing at all that is known may have changed since.
fn transaction(
    cluster: &Cluster,
    guards: &BTreeSet<Guarded>,
    touched: &[Touched],
    strict: bool,
) -> Txn {
    let key = |of: &Guarded| Name::Guard(of.clone()).to_string();
    let mut txn = Txn::default();
    txn.expect.extend(guards.iter().map(|of| (key(of), cluster.guard(of))));
    // The vnet itself, and its gateways, are elsewhere than its contents, and may be known from another time.
    let vnets = Guarded::Vnets;
    let in_vnet = guards.iter().any(|of| matches!(of, Guarded::Vnet(_)));
    if in_vnet && !strict && !guards.contains(&vnets) {
        txn.expect.push((key(&vnets), cluster.guard(&vnets)));
    }
    if strict {
        let others = cluster.guards.iter().filter(|guard| !guards.contains(&guard.of));
        txn.expect.extend(others.map(|guard| (key(&guard.of), guard.written)));
    }
    let value = guard_value(&guards.iter().map(Guarded::scope).collect());
    txn.puts.extend(guards.iter().map(|of| (key(of), value.clone())));
    for Touched { slot, before, after, .. } in touched {
        let entries = |object: &Option<Object>| match object {
            Some(object) => slot_entries(slot, object),
            None => Vec::new(),
        };
        let puts = entries(after);
        let gone = entries(before).into_iter().map(|(key, _)| key);
        txn.deletes.extend(gone.filter(|key| puts.iter().all(|(put, _)| put != key)));
        txn.puts.extend(puts);
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
