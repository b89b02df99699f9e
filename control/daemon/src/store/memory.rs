//! A store in memory.
//!
//! `Core` is what the embedded store keeps beside its file: every entry, the latest transactions for
//! watches that begin in the past, and the watchers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{
    Change, Changes, Description, Entry, Lease, Outcome, Revision, Snapshot, Store, StoreError,
    Txn, Watch,
};

/// Transactions that are kept for watches that begin, and what is read, in the past.
const LOG_LEN_MAX: usize = 1024;
/// Changes of them.
const LOG_CHANGES_MAX: usize = 20_000;
/// Transactions that wait for one watcher; a slower one has to begin again.
const WATCH_QUEUE: usize = 1024;

/// Entries, latest transactions and watchers.
#[derive(Default)]
pub(super) struct Core {
    revision: Revision,
    entries: BTreeMap<String, Written>,
    log: VecDeque<Logged>,
    /// Changes of the transactions in it.
    logged: usize,
    watchers: Vec<(String, mpsc::Sender<Result<Changes, StoreError>>)>,
    held: BTreeMap<String, (u64, Instant)>,
    leases: u64,
    /// Why nothing can be written, if so.
    full: Option<String>,
}

/// A value, and when it was written.
type Written = (Vec<u8>, Revision);

/// A transaction that happened.
struct Logged {
    changes: Arc<Changes>,
    /// What it replaced, in its order.
    before: Vec<(String, Option<Written>)>,
}

impl Core {
    /// Begins with entries that were read from somewhere.
    pub(super) fn new(snapshot: Snapshot) -> Core {
        let entries = snapshot.entries.into_iter();
        let entries = entries.map(|entry| (entry.key, (entry.value, entry.changed))).collect();
        Core { revision: snapshot.revision, entries, ..Core::default() }
    }

    pub(super) const fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn snapshot(&self, prefix: &str) -> Snapshot {
        Snapshot { revision: self.revision, entries: entries(self.below(prefix)) }
    }

    /// As it was at a revision.
    pub(super) fn snapshot_at(&self, prefix: &str, at: Revision) -> Result<Snapshot, StoreError> {
        self.remembers(at)?;
        let mut then: BTreeMap<&String, &Written> = self.below(prefix).collect();
        for (key, before) in self
            .log
            .iter()
            .rev()
            .take_while(|logged| logged.changes.revision > at)
            .flat_map(|logged| logged.before.iter().rev())
            .filter(|(key, _)| key.starts_with(prefix))
        {
            match before {
                Some(written) => drop(then.insert(key, written)),
                None => drop(then.remove(key)),
            }
        }
        Ok(Snapshot { revision: at.min(self.revision), entries: entries(then.into_iter()) })
    }

    fn below(&self, prefix: &str) -> impl Iterator<Item = (&String, &Written)> {
        let from = self.entries.range(prefix.to_owned()..);
        from.take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// What happened since is in the log.
    fn remembers(&self, at: Revision) -> Result<(), StoreError> {
        let oldest = self.log.front().map_or(self.revision, |logged| logged.changes.revision - 1);
        if at < oldest { Err(StoreError::Compacted { at }) } else { Ok(()) }
    }

    /// The revision that the transaction gets, if its expectations hold.
    pub(super) fn check(&self, txn: &Txn) -> Option<Revision> {
        let changed = |key: &str| self.entries.get(key).map_or(0, |(_, changed)| *changed);
        let holds = txn.expect.iter().all(|(key, revision)| changed(key) == *revision);
        holds.then(|| self.revision.saturating_add(1))
    }

    /// Makes a transaction happen that was checked.
    pub(super) fn apply(&mut self, revision: Revision, txn: Txn) {
        self.revision = revision;
        let count = txn.puts.len() + txn.deletes.len();
        let (mut changes, mut before) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for key in txn.deletes {
            if let Some(old) = self.entries.remove(&key) {
                before.push((key.clone(), Some(old)));
                changes.push(Change { key, value: None });
            }
        }
        for (key, value) in txn.puts {
            let old = self.entries.insert(key.clone(), (value.clone(), revision));
            before.push((key.clone(), old));
            changes.push(Change { key, value: Some(value) });
        }
        let changes = Arc::new(Changes { revision, changes });
        self.watchers.retain(|(prefix, watcher)| match below(&changes, prefix) {
            // A watcher that is full loses its end of the channel, and sees that the watch ended.
            Some(changes) => watcher.try_send(Ok(changes)).is_ok(),
            None => !watcher.is_closed(),
        });
        self.logged += before.len();
        self.log.push_back(Logged { changes, before });
        while self.log.len() > LOG_LEN_MAX || self.logged > LOG_CHANGES_MAX {
            let Some(oldest) = self.log.pop_front() else { break };
            self.logged -= oldest.before.len();
        }
    }

    pub(super) fn watch(&mut self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.remembers(after)?;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE + LOG_LEN_MAX);
        for logged in self.log.iter().filter(|logged| logged.changes.revision > after) {
            if let Some(changes) = below(&logged.changes, prefix) {
                // There is room for the whole log.
                let _ = sender.try_send(Ok(changes));
            }
        }
        self.watchers.push((prefix.to_owned(), sender));
        Ok(receiver)
    }

    fn room(&self) -> Result<(), StoreError> {
        match &self.full {
            None => Ok(()),
            Some(reason) => Err(StoreError::Unreachable {
                location: "memory".to_owned(),
                reason: reason.clone(),
            }),
        }
    }

    /// Puts a key with a lease.
    fn hold(&mut self, key: &str, value: Vec<u8>, until: Instant) -> u64 {
        self.leases += 1;
        self.held.insert(key.to_owned(), (self.leases, until));
        let txn = Txn { puts: vec![(key.to_owned(), value)], ..Txn::default() };
        self.apply(self.revision.saturating_add(1), txn);
        self.leases
    }

    /// Whether the lease is still that of its key; it then lives until `until`.
    fn renew(&mut self, key: &str, id: u64, value: Option<Vec<u8>>, until: Instant) -> bool {
        match self.held.get_mut(key) {
            Some((owner, deadline)) if *owner == id && *deadline > Instant::now() => {
                *deadline = until;
            }
            _ => return false,
        }
        if let Some(value) = value {
            let txn = Txn { puts: vec![(key.to_owned(), value)], ..Txn::default() };
            self.apply(self.revision.saturating_add(1), txn);
        }
        true
    }

    /// Deletes keys whose leases have ended; says when to look again.
    fn expire(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let ended: Vec<String> = self
            .held
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(key, _)| key.clone())
            .collect();
        if !ended.is_empty() {
            for key in &ended {
                self.held.remove(key);
            }
            let txn = Txn { deletes: ended, ..Txn::default() };
            self.apply(self.revision.saturating_add(1), txn);
        }
        self.held.values().map(|(_, until)| *until).min()
    }
}

fn entries<'a>(of: impl Iterator<Item = (&'a String, &'a Written)>) -> Vec<Entry> {
    of.map(|(key, (value, changed))| Entry {
        key: key.clone(),
        value: value.clone(),
        changed: *changed,
    })
    .collect()
}

/// The part of a transaction below a prefix.
fn below(changes: &Changes, prefix: &str) -> Option<Changes> {
    let part: Vec<_> =
        changes.changes.iter().filter(|change| change.key.starts_with(prefix)).cloned().collect();
    (!part.is_empty()).then_some(Changes { revision: changes.revision, changes: part })
}

/// A core that is shared by the store, its leases and whoever ends them.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Core>>);

impl Shared {
    pub(super) fn new(core: Core) -> Shared {
        Shared(Arc::new(Mutex::new(core)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // No panic can leave a transaction half applied: nothing in `apply` can fail.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        let core = self.lock();
        at.map_or_else(|| Ok(core.snapshot(prefix)), |at| core.snapshot_at(prefix, at))
    }

    /// Holds a key in memory only.
    fn hold(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        replaces: Revision,
    ) -> Result<Box<dyn Lease>, StoreError> {
        let key = key.to_owned();
        let id = {
            let mut core = self.lock();
            let expect = vec![(key.clone(), replaces)];
            if core.check(&Txn { expect, ..Txn::default() }).is_none() {
                return Err(StoreError::Held { key });
            }
            core.hold(&key, value, Instant::now() + ttl)
        };
        tokio::spawn(expire(Arc::downgrade(&self.0)));
        Ok(Box::new(MemoryLease { core: self.clone(), key, id, ttl }))
    }
}

/// Deletes what expires, until nothing is held any more or the store is gone.
async fn expire(core: Weak<Mutex<Core>>) {
    while let Some(shared) = core.upgrade() {
        let next = Shared(shared).lock().expire();
        let Some(next) = next else { return };
        tokio::time::sleep_until(next).await;
    }
}

struct MemoryLease {
    core: Shared,
    key: String,
    id: u64,
    ttl: Duration,
}

#[tonic::async_trait]
impl Lease for MemoryLease {
    async fn renew(&mut self, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let until = Instant::now() + self.ttl;
        self.core.lock().room()?;
        if self.core.lock().renew(&self.key, self.id, value, until) {
            Ok(())
        } else {
            Err(StoreError::LeaseLost { key: self.key.clone() })
        }
    }
}

/// A store in memory; clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore {
    core: Shared,
    outage: Arc<Mutex<Option<String>>>,
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// From now on every call fails as if the store were not there, and watches end; `None` ends that.
    pub fn set_outage(&self, reason: Option<&str>) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = reason.map(str::to_owned);
        if reason.is_some() {
            self.core.lock().watchers.clear();
        }
    }

    /// From now on nothing can be written and no lease renewed, as in a store without space; `None` ends that.
    pub fn set_full(&self, reason: Option<&str>) {
        self.core.lock().full = reason.map(str::to_owned);
    }

    fn reach(&self) -> Result<(), StoreError> {
        match &*self.outage.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(reason) => Err(StoreError::Unreachable {
                location: self.describe().location,
                reason: reason.clone(),
            }),
        }
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    fn describe(&self) -> Description {
        Description { kind: "memory", location: "memory".to_owned() }
    }

    async fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        self.reach()?;
        self.core.read(prefix, at)
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.reach()?;
        let mut core = self.core.lock();
        core.room()?;
        let Some(revision) = core.check(&txn) else { return Ok(Outcome::Stale) };
        core.apply(revision, txn);
        Ok(Outcome::Done(revision))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.reach()?;
        self.core.lock().watch(prefix, after)
    }

    async fn hold(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        replaces: Revision,
    ) -> Result<Box<dyn Lease>, StoreError> {
        self.reach()?;
        self.core.lock().room()?;
        self.core.hold(key, value, ttl, replaces)
    }
}
