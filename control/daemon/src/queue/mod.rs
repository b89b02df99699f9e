//! Changes that wait for the store: asked for while it cannot be reached, written in their order when it is back.
//!
//! | module | holds |
//! |---|---|
//! | this one | who may queue, and what is shown of the queue |
//! | `errors` | why a change was not written |
//! | `kept` | the queue on the host's disk |
//! | `write` | how it is written when the store is back |
//!
//! A queued change is what it makes of single objects: as they were when it was asked for, and as they are to be.
//! It is written only where they still are as they were, so that nobody's change is undone in ignorance.

mod errors;
mod kept;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use culvert_model::{Edit, ObjectKey, VnetId, api};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

pub use self::errors::{NotCancelled, Unwritten};
use self::kept::{Contents, Entry, Kept};
use crate::change::{ChangeError, Done, Plan, Writer, differences};
use crate::cluster::Cluster;
use crate::cluster::check::{checked, edited};
use crate::cluster::project::{Projection, project};
use crate::events::Events;
use crate::follow::Known;
use crate::names::{HostName, vnet_of};
use crate::store::{Revision, StoreError};
use crate::time::now_unix_ms;

/// Changes that the queue holds, those that failed included.
pub const CHANGES_MAX: usize = 1_000;
/// Bytes of them on the disk.
pub const BYTES_MAX: usize = 16 << 20;
/// How long a change waits for those that go before it, once the store is back.
const TURN: Duration = Duration::from_secs(5);
/// How long a store that has just failed is taken for away, although the follower has not noticed.
const AWAY: Duration = Duration::from_secs(5);

/// What a caller wants beside the change itself.
#[derive(Copy, Clone, Debug, Default)]
pub struct Wish {
    /// Only on top of this revision.
    pub if_revision: Option<Revision>,
    /// Checks, and writes nothing.
    pub dry_run: bool,
    /// Into the queue, where the store cannot be reached. What stands on a revision, and a dry run, is not queued.
    pub queue: bool,
}

/// How many changes wait, and how many failed.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They are written when the store is back.
    pub waiting: usize,
    /// They stay until somebody cancels them.
    pub failed: usize,
}

/// The changes of one host that wait for the store.
pub struct Queue {
    me: HostName,
    known: watch::Receiver<Arc<Known>>,
    events: Events,
    kept: Kept,
    state: Mutex<State>,
    counts: watch::Sender<Counts>,
    /// When and how the store failed last.
    failure: StdMutex<Option<(Instant, String)>>,
}

struct State {
    /// Number of the change that was queued last.
    last: u64,
    changes: BTreeMap<u64, Entry>,
    /// The change that is being written.
    writing: Option<u64>,
    ahead: Option<Ahead>,
}

/// What is known, as the changes that wait will leave it.
struct Ahead {
    /// What they were put on.
    known: Arc<Cluster>,
    cluster: Arc<Cluster>,
    /// What this host carries of it.
    carried: Projection,
}

impl State {
    fn bytes(&self) -> usize {
        self.changes.values().map(|entry| entry.bytes).sum()
    }

    /// The cluster as the changes that wait will leave it, as far as one can know.
    fn ahead(&mut self, known: &Arc<Cluster>, me: &HostName) -> &Ahead {
        let ahead = match self.ahead.take() {
            Some(ahead) if Arc::ptr_eq(&ahead.known, known) => ahead,
            _ => {
                let mut cluster = Arc::clone(known);
                for entry in self.changes.values().filter(|entry| entry.refused.is_none()) {
                    let cluster = Arc::make_mut(&mut cluster);
                    for touched in &entry.touched {
                        cluster.put(&touched.slot, touched.after.clone());
                    }
                }
                let carried = project(&cluster, me);
                Ahead { known: Arc::clone(known), cluster, carried }
            }
        };
        self.ahead.insert(ahead)
    }
}

impl Queue {
    /// Opens the queue of `me` in a file, or makes it where there is none. What waits in it for another cluster is not
    /// written.
    ///
    /// # Errors
    /// Where the file cannot be read, or is of another version.
    pub async fn open(
        path: &Path,
        me: HostName,
        cluster_id: Option<&str>,
        known: watch::Receiver<Arc<Known>>,
        events: Events,
    ) -> Result<Queue, StoreError> {
        let (kept, mut found) = Kept::open(path).await?;
        if !found.cluster_id.is_empty() && cluster_id != Some(&found.cluster_id) {
            let reason = format!(
                "was queued for cluster {}, of which this host is no more",
                found.cluster_id
            );
            for (number, entry) in &mut found.changes {
                if entry.refused.is_none() {
                    entry.refuse(vec![reason.clone()], now_unix_ms());
                    kept.put(*number, entry, found.last, &found.cluster_id).await?;
                }
            }
        }
        let Contents { last, changes, .. } = found;
        let state = State { last, changes, writing: None, ahead: None };
        let counts = watch::Sender::new(Counts::default());
        let queue =
            Queue { me, known, events, kept, state: state.into(), counts, failure: None.into() };
        queue.count(&*queue.state.lock().await);
        let Counts { waiting, failed } = queue.counts();
        if waiting + failed > 0 {
            tracing::info!(waiting, failed, "changes in the queue");
        }
        Ok(queue)
    }

    /// How many changes there are.
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    fn count(&self, state: &State) {
        let failed = state.changes.values().filter(|entry| entry.refused.is_some()).count();
        let waiting = state.changes.len() - failed;
        self.counts.send_replace(Counts { waiting, failed });
    }

    /// Why the store cannot be used, and since when.
    fn outage(&self) -> Option<(String, Duration)> {
        let known = self.known.borrow();
        if let Some(reason) = known.unusable() {
            let away = known.outage.as_ref().map(|outage| outage.since.elapsed());
            return Some((reason, away.unwrap_or_default()));
        }
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = failure.as_ref().filter(|(when, _)| when.elapsed() < AWAY);
        recent.map(|(_, reason)| (reason.clone(), Duration::ZERO))
    }

    fn failed(&self, reason: Option<String>) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        *failure = reason.map(|reason| (Instant::now(), reason));
    }

    /// Makes a change: writes it, after those that wait, or queues it where that is wanted and needed.
    ///
    /// # Errors
    /// See [`Unwritten`]. What is queued is an error too.
    pub async fn change(
        &self,
        writer: &Writer,
        plan: &dyn Plan,
        wish: Wish,
    ) -> Result<Done, Unwritten> {
        let may_queue = wish.queue && !wish.dry_run && wish.if_revision.is_none();
        let mut outage = self.outage();
        if outage.is_none() && !wish.dry_run {
            outage = self.turn().await;
        }
        if let Some((reason, _)) = &outage
            && !(may_queue || wish.dry_run)
            && self.counts().waiting > 0
        {
            return Err(ChangeError::Unhealthy(reason.clone()).into());
        }
        // What may have happened is not said to have not.
        let mut unknown = None;
        let (reason, away) = match outage.filter(|_| may_queue) {
            Some(outage) => outage,
            None => match writer.change(plan, wish.if_revision, wish.dry_run).await {
                Err(error) if error.is_outage() && !wish.dry_run => {
                    let reason = error.cause();
                    self.failed(Some(reason.clone()));
                    if !may_queue {
                        return Err(error.into());
                    }
                    if matches!(error, ChangeError::Store(StoreError::Unknown { .. })) {
                        unknown = Some(error);
                    }
                    (reason, Duration::ZERO)
                }
                done => {
                    if !wish.dry_run {
                        self.failed(None);
                    }
                    return Ok(done?);
                }
            },
        };
        let queued = self.put(plan, reason, away).await;
        match unknown {
            Some(unknown) if !matches!(queued, Err(Unwritten::Queued { .. })) => {
                Err(unknown.into())
            }
            _ => queued,
        }
    }

    /// Waits until nothing goes before a change that comes now; otherwise says what does.
    async fn turn(&self) -> Option<(String, Duration)> {
        let mut counts = self.counts.subscribe();
        let through = counts.wait_for(|counts| counts.waiting == 0);
        if tokio::time::timeout(TURN, through).await.is_ok() {
            return None;
        }
        let Counts { waiting, .. } = self.counts();
        Some(self.outage().unwrap_or_else(|| {
            (format!("changes that were queued go first, of which {waiting} wait"), Duration::ZERO)
        }))
    }

    async fn put(
        &self,
        plan: &dyn Plan,
        reason: String,
        away: Duration,
    ) -> Result<Done, Unwritten> {
        let mut state = self.state.lock().await;
        let known = Arc::clone(&self.known.borrow());
        // A host that knows no cluster, or whose name another has, has nothing to check a change against.
        if known.cluster.meta.is_none() || !(known.joined || known.from_cache) {
            return Err(ChangeError::Unhealthy(reason).into());
        }
        let Ahead { cluster, carried, .. } = state.ahead(&known.cluster, &self.me);
        // What is not known is not said to have changed.
        let unknown =
            |key: ObjectKey| vnet_of(&key).filter(|v| !knows(&known, &self.me, v)).cloned();
        let expected = plan.expected().into_iter().map(|(slot, _)| slot.key);
        if let Some(vnet) = expected.filter_map(unknown).next() {
            return Err(Unwritten::Unfollowed { reason, vnet });
        }
        let edits = plan.edits(cluster, carried)?;
        if let Some(vnet) = edits.iter().map(Edit::key).filter_map(unknown).next() {
            return Err(Unwritten::Unfollowed { reason, vnet });
        }
        let (made, touched) = edited(cluster, &self.me, &edits).map_err(ChangeError::Conflicts)?;
        let carried =
            checked(cluster, carried, &made, &self.me, &touched).map_err(ChangeError::Conflicts)?;
        if touched.is_empty() {
            return Err(Unwritten::Nothing(reason));
        }
        let entry = Entry::new(now_unix_ms(), self.me.clone(), touched);
        let (changes, bytes) = (state.changes.len(), state.bytes() + entry.bytes);
        if changes >= CHANGES_MAX || bytes > BYTES_MAX {
            return Err(Unwritten::Full { reason, changes, bytes });
        }
        let number = state.last + 1;
        let cluster_id = known.cluster.meta.as_ref().map_or("", |meta| &meta.cluster_id);
        if let Err(error) = self.kept.put(number, &entry, number, cluster_id).await {
            return Err(Unwritten::NotKept { reason, error });
        }
        state.last = number;
        state.changes.insert(number, entry);
        let known = Arc::clone(&known.cluster);
        state.ahead = Some(Ahead { known, cluster: Arc::new(made), carried });
        self.count(&state);
        tracing::info!(number, reason, "a change is queued");
        self.events.queue(number, api::QueueState::Waiting, &[]);
        Err(Unwritten::Queued { number, reason, away })
    }

    /// What is known, and the cluster as the changes that wait will leave it, where a change would be queued now.
    pub async fn ahead(&self) -> Option<(Arc<Known>, Arc<Cluster>)> {
        let mut state = self.state.lock().await;
        let known = Arc::clone(&self.known.borrow());
        let waits = self.outage().is_some() || self.counts().waiting > 0;
        let ahead = waits.then(|| Arc::clone(&state.ahead(&known.cluster, &self.me).cluster))?;
        Some((known, ahead))
    }

    /// What is in the queue, or one change of it.
    pub async fn list(&self, only: Option<u64>, with_differences: bool) -> api::QueueList {
        let state = self.state.lock().await;
        let changes = state.changes.iter();
        let changes = changes.filter(|(number, _)| only.is_none_or(|only| only == **number));
        api::QueueList {
            changes: changes.map(|(n, entry)| message(*n, entry, with_differences)).collect(),
            changes_max: CHANGES_MAX as u64,
            bytes_max: BYTES_MAX as u64,
            bytes: state.bytes() as u64,
        }
    }

    /// Takes a change out, and says what it was.
    ///
    /// # Errors
    /// See [`NotCancelled`].
    pub async fn cancel(&self, number: u64) -> Result<api::QueuedChange, NotCancelled> {
        let mut state = self.state.lock().await;
        let Some(entry) = state.changes.get(&number) else {
            let there = state.changes.keys().copied().collect();
            return Err(NotCancelled::Unknown { number, there });
        };
        if state.writing == Some(number) {
            return Err(NotCancelled::Writing(number));
        }
        let mut cancelled = message(number, entry, true);
        cancelled.set_state(api::QueueState::Cancelled);
        self.kept.remove(number).await?;
        state.changes.remove(&number);
        state.ahead = None;
        self.count(&state);
        tracing::info!(number, "a queued change is cancelled");
        self.events.queue(number, api::QueueState::Cancelled, &[]);
        Ok(cancelled)
    }
}

/// Whether the contents of a vnet are known here. Of one that is new, nothing need be known.
pub fn knows(known: &Known, me: &HostName, vnet: &VnetId) -> bool {
    let cluster = &known.cluster;
    let own = || cluster.hosts.get(me).is_some_and(|h| h.ports.iter().any(|p| p.vnet == *vnet));
    cluster.is_open(vnet) || (known.from_cache && own()) || cluster.vnets.get(vnet).is_none()
}

fn message(number: u64, entry: &Entry, with_differences: bool) -> api::QueuedChange {
    let refused = entry.refused.clone().unwrap_or_default();
    let mut message = api::QueuedChange {
        number,
        asked_unix_ms: entry.asked_unix_ms,
        reasons: refused.reasons,
        failed_unix_ms: refused.at_unix_ms,
        objects: u32::try_from(entry.touched.len()).unwrap_or(u32::MAX),
        ..api::QueuedChange::default()
    };
    message.set_state(match entry.refused {
        Some(_) => api::QueueState::Failed,
        None => api::QueueState::Waiting,
    });
    if with_differences {
        message.differences = differences(&entry.touched);
    }
    message
}
