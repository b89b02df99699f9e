//! How a change is written: checked against the cluster as it is known, and committed only if nothing that the
//! check relied on has changed meanwhile.
//!
//! Two hosts that write at the same time must not end up with one address twice. So each transaction
//! writes the *guards* of what it touches, and expects them to be as they were when it was checked: of two
//! that could contradict each other, the second is checked again. Guards are by vnet, so that vnets do not
//! wait for each other.
//!
//! | module | holds |
//! |---|---|
//! | this one | the writer |
//! | `plans` | what a change consists of: edits, or a whole state |
//! | `guards` | what a transaction expects and writes |

mod guards;
mod plans;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::VnetId;
use tokio::sync::{Mutex, watch};

use self::guards::{expectations, guards_of, transaction};
pub use self::plans::{Edits, Plan, Reads, WholeState, differences, happened, vnets_of_keys};
use crate::cluster::Cluster;
use crate::cluster::check::{Conflict, Touched, checked, edited};
use crate::cluster::project::{Projection, project};
use crate::follow::Known;
use crate::names::{Guarded, HostName, Name, Scope, Slot};
use crate::store::{Outcome, Revision, Store, StoreError};

/// How often a change is checked again since others changed the same.
const ATTEMPTS: u32 = 16;
/// How long one waits to see what others, or we, have just written.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How long one waits before what is not followed is read again.
const AGAIN: Duration = Duration::from_millis(50);
/// Objects of a host that are forgotten in one transaction: with two keys and some guards each, not more than etcd
/// takes by itself.
const FORGOTTEN_AT_ONCE: usize = 25;

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
    /// Read the objects again, and decide again.
    #[error("{}", .0.join("; "))]
    Changed(Vec<String>),
    /// Stop its culvertd first.
    #[error("host {0}: came to life; legal is a host whose lease has ended")]
    Alive(HostName),
    /// Try again: what is left goes then.
    #[error("{forgotten} objects are forgotten, and the rest is not: {reason}")]
    Partly {
        /// How many.
        forgotten: usize,
        /// Why not all.
        reason: String,
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
        plan: &dyn Plan,
        if_revision: Option<Revision>,
        dry_run: bool,
    ) -> Result<Done, ChangeError> {
        let mut turn = self.turn.lock().await;
        for _ in 0..ATTEMPTS {
            let known = self.usable()?;
            let followed = &known.cluster;
            let carried = match turn.take() {
                Some((old, carried)) => carried.advanced(&old, followed, &self.me),
                None => project(followed, &self.me),
            };
            let (_, carried) = turn.insert((Arc::clone(followed), carried));
            let wider = match self.wider(followed, plan.reads(followed, carried)).await {
                // What was read first is too long ago for what was to be read then.
                Err(StoreError::Compacted { .. }) => continue,
                wider => wider?,
            };
            let (cluster, carried) = match wider {
                None => (Arc::clone(followed), carried.clone()),
                Some(wider) => {
                    let carried = carried.advanced(followed, &wider, &self.me);
                    (Arc::new(wider), carried)
                }
            };
            // Whoever read more than this host follows knows of later revisions than it does.
            let now = cluster.revision;
            let outdated = |wanted: &Revision| match followed.contents {
                None => *wanted != now,
                Some(_) => *wanted < now,
            };
            if let Some(wanted) = if_revision.filter(outdated) {
                return Err(ChangeError::Revision { now, wanted });
            }
            let edits = plan.edits(&cluster, &carried)?;
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
            let mut txn = transaction(&cluster, &guards, &touched, if_revision.is_some());
            for (key, revision) in expectations(&cluster, &plan.expected()) {
                if txn.expect.iter().all(|(expected, _)| *expected != key) {
                    txn.expect.push((key, revision));
                }
            }
            match self.store.commit(txn).await? {
                Outcome::Done(revision) => {
                    let seen = self.see(revision).await;
                    return Ok(Done { revision, touched, warnings, seen });
                }
                Outcome::Stale => {
                    // What others did is read anew, or on its way here.
                    let now = followed.revision;
                    let another = |known: &Arc<Known>| known.cluster.revision > now;
                    let wait = if Arc::ptr_eq(&cluster, followed) { CATCH_UP } else { AGAIN };
                    self.catch_up(another, wait).await;
                }
            }
        }
        Err(ChangeError::Contended)
    }

    /// What is known, where it can be written on top of it.
    fn usable(&self) -> Result<Arc<Known>, ChangeError> {
        let known = Arc::clone(&self.known.borrow());
        match known.unusable() {
            Some(reason) => Err(ChangeError::Unhealthy(reason)),
            None => Ok(known),
        }
    }

    /// What is followed and more, where a change has to be checked against more.
    async fn wider(&self, followed: &Cluster, reads: Reads) -> Result<Option<Cluster>, StoreError> {
        match reads {
            _ if followed.contents.is_none() => Ok(None),
            Reads::Everything => self.whole().await.map(Some),
            Reads::Vnets(vnets) if vnets.iter().all(|vnet| followed.is_open(vnet)) => Ok(None),
            Reads::Vnets(vnets) => self.opened(followed, vnets).await.map(Some),
        }
    }

    async fn opened(
        &self,
        followed: &Cluster,
        vnets: BTreeSet<VnetId>,
    ) -> Result<Cluster, StoreError> {
        let mut wider = followed.clone();
        let mut at = None;
        for vnet in vnets.into_iter().filter(|vnet| !followed.is_open(vnet)) {
            let prefix = Scope::Vnet(vnet.clone()).to_string();
            let snapshot = self.store.snapshot(&prefix, at).await?;
            at = Some(snapshot.revision);
            wider.open(&vnet, &snapshot);
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
        Ok(Cluster::read(&self.store.snapshot("", None).await?))
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

    /// Forgets a host that is not alive. What belongs to it goes in parts that every etcd takes, and the host with
    /// the last of them.
    ///
    /// # Errors
    /// As [`Writer::change`], and [`ChangeError::Partly`]: what is left goes with the next attempt.
    pub async fn forget(&self, host: &HostName, dry_run: bool) -> Result<Done, ChangeError> {
        let _turn = self.turn.lock().await;
        let mut forgotten = Vec::new();
        match self.forget_all(host, dry_run, &mut forgotten).await {
            Err(error) if !forgotten.is_empty() => {
                Err(ChangeError::Partly { forgotten: forgotten.len(), reason: error.to_string() })
            }
            Err(error) => Err(error),
            Ok((revision, seen)) => {
                Ok(Done { revision, touched: forgotten, warnings: Vec::new(), seen })
            }
        }
    }

    async fn forget_all(
        &self,
        host: &HostName,
        dry_run: bool,
        forgotten: &mut Vec<Touched>,
    ) -> Result<(Revision, u64), ChangeError> {
        let mut attempts = 0..ATTEMPTS;
        let mut at_once = FORGOTTEN_AT_ONCE;
        loop {
            let known = self.usable()?;
            let cluster = self.everything().await?;
            let left = of_host(&cluster, host);
            if dry_run {
                *forgotten = left;
                return Ok((known.cluster.revision, known.cluster.content));
            }
            let (now, later) = left.split_at(left.len().min(at_once));
            let mut guards = guards_of(&self.me, now);
            guards.insert(Guarded::Host(host.clone()));
            let mut txn = transaction(&cluster, &guards, now, false);
            if later.is_empty() {
                txn.deletes.push(Name::Host(host.clone()).to_string());
            }
            // It must not come to life meanwhile.
            txn.expect.push((Name::Live(host.clone()).to_string(), 0));
            match self.store.commit(txn).await {
                Err(StoreError::TooLarge { .. }) if at_once > 1 => at_once /= 2,
                Err(error) => return Err(error.into()),
                Ok(Outcome::Done(revision)) => {
                    forgotten.extend_from_slice(now);
                    let seen = self.see(revision).await;
                    if later.is_empty() {
                        return Ok((revision, seen));
                    }
                    attempts = 0..ATTEMPTS;
                }
                Ok(Outcome::Stale) => {
                    self.catch_up(|now| !Arc::ptr_eq(now, &known), AGAIN).await;
                    if self.known.borrow().cluster.is_alive(host) {
                        return Err(ChangeError::Alive(host.clone()));
                    }
                    if attempts.next().is_none() {
                        return Err(ChangeError::Contended);
                    }
                }
            }
        }
    }
}

/// What belongs to a host, as it goes with it.
fn of_host(cluster: &Cluster, host: &HostName) -> Vec<Touched> {
    let objects = cluster.objects().filter(|(owner, _)| *owner == Some(host));
    let gone = objects.map(|(owner, object)| Touched {
        slot: Slot { host: owner.cloned(), key: object.key() },
        before: Some(object),
        after: None,
        edit: 0,
    });
    gone.collect()
}
