//! Watches of several scopes of a store, put together transaction by transaction.
//!
//! Each scope has a watch of its own, and a transaction that changed several arrives in parts. Its guards say
//! which scopes it changed, so the parts are joined before anybody sees one of them. Transactions that
//! have no scope in common may come in either order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::names::{Name, Scope};
use crate::store::{Changes, Revision, Snapshot, Store, StoreError, Watch};

/// How long the parts of a transaction may be apart. What other programs wrote may name parts that never come.
const PARTS_APART: Duration = Duration::from_secs(2);
/// Transactions of a scope that wait for a part of the first of them.
const WAITING_MAX: usize = 10_000;

/// The value of guards of a transaction that changes `scopes`.
pub fn guard_value(scopes: &BTreeSet<Scope>) -> Vec<u8> {
    let scopes: Vec<_> = scopes.iter().map(ToString::to_string).collect();
    scopes.join("\n").into_bytes()
}

/// The scopes that the guards of a transaction name.
fn named(changes: &Changes) -> BTreeSet<&str> {
    let guards = changes.changes.iter().filter(|change| {
        change.key.contains("/guard") && matches!(Name::read(&change.key), Some(Name::Guard(_)))
    });
    let values = guards.filter_map(|change| std::str::from_utf8(change.value.as_ref()?).ok());
    values.flat_map(str::lines).collect()
}

/// Watches that are open.
pub struct Watches {
    store: Arc<dyn Store>,
    open: BTreeMap<String, Watched>,
    /// The latest transaction of which a part was taken.
    taken: Revision,
}

struct Watched {
    watch: Watch,
    /// What happened until then is in the snapshot, or was taken.
    loaded: Revision,
    /// Transactions that have arrived in part, and when.
    waiting: VecDeque<(Instant, Changes)>,
}

impl Watched {
    fn front(&self) -> Option<&Changes> {
        self.waiting.front().map(|(_, part)| part)
    }
}

impl Watches {
    /// None yet.
    pub fn new(store: Arc<dyn Store>) -> Watches {
        Watches { store, open: BTreeMap::new(), taken: 0 }
    }

    /// Reads a scope, as it is or as it was at a revision, and watches it from there. Of a transaction of which
    /// a part was taken, the rest is not left out.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(
        &mut self,
        scope: &Scope,
        at: Option<Revision>,
    ) -> Result<Snapshot, StoreError> {
        let prefix = scope.to_string();
        let at = at.map(|at| at.max(self.taken));
        let snapshot = self.store.snapshot(&prefix, at).await?;
        let watch = self.store.watch(&prefix, snapshot.revision).await?;
        let watched = Watched { watch, loaded: snapshot.revision, waiting: VecDeque::new() };
        self.open.insert(prefix, watched);
        Ok(snapshot)
    }

    /// Ends a watch.
    pub fn close(&mut self, scope: &Scope) {
        self.open.remove(&scope.to_string());
    }

    /// The next transaction. May be dropped while it waits.
    ///
    /// # Errors
    /// Those of the store; all is to be read anew then.
    pub async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            if let Some(changes) = self.complete() {
                return Ok(changes);
            }
            let fronts = self.open.values().filter_map(|watched| watched.waiting.front());
            let oldest = fronts.map(|(arrived, part)| (*arrived, part.revision)).min();
            let arrived = poll_fn(|context| self.poll(context));
            match oldest {
                None => arrived.await?,
                Some((since, revision)) => {
                    match tokio::time::timeout_at(since + PARTS_APART, arrived).await {
                        Ok(arrived) if since.elapsed() < PARTS_APART => arrived?,
                        _ => return Ok(self.take(revision)),
                    }
                }
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StoreError>> {
        let mut any = false;
        for watched in self.open.values_mut() {
            match watched.watch.poll_recv(context) {
                Poll::Pending => {}
                Poll::Ready(Some(Ok(changes))) => {
                    // Something is wrong with what it waits for.
                    if watched.waiting.len() == WAITING_MAX {
                        return Poll::Ready(Err(StoreError::Compacted { at: watched.loaded }));
                    }
                    watched.waiting.push_back((Instant::now(), changes));
                    any = true;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                // Too slow for the watch: from the start.
                Poll::Ready(None) => {
                    return Poll::Ready(Err(StoreError::Compacted { at: watched.loaded }));
                }
            }
        }
        if any { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// The earliest transaction of which no part is missing.
    fn complete(&mut self) -> Option<Changes> {
        let revisions: BTreeSet<Revision> =
            self.open.values().filter_map(Watched::front).map(|part| part.revision).collect();
        let whole = revisions.into_iter().find(|revision| self.is_whole(*revision))?;
        Some(self.take(whole))
    }

    /// A transaction, of the parts that have arrived.
    fn take(&mut self, revision: Revision) -> Changes {
        self.taken = self.taken.max(revision);
        let mut whole = Changes { revision, changes: Vec::new() };
        for watched in self.open.values_mut() {
            if watched.front().is_some_and(|part| part.revision == revision)
                && let Some((_, part)) = watched.waiting.pop_front()
            {
                watched.loaded = revision;
                whole.changes.extend(part.changes);
            }
        }
        whole
    }

    fn is_whole(&self, revision: Revision) -> bool {
        let parts = self.open.values().filter_map(Watched::front);
        let parts = parts.filter(|part| part.revision == revision);
        let named: BTreeSet<&str> = parts.flat_map(named).collect();
        named.into_iter().filter_map(|scope| self.open.get(scope)).all(|watched| {
            // Where a later one waits or was taken, or the snapshot is later, there is no part.
            watched.loaded >= revision
                || watched.front().is_some_and(|part| part.revision >= revision)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use culvert_model::VnetId;

    use super::*;
    use crate::names::{Guarded, HostName};
    use crate::store::memory::MemoryStore;
    use crate::store::{Change, Txn};

    fn vnet(name: &str) -> Scope {
        Scope::Vnet(VnetId::new(name).unwrap())
    }

    /// A transaction that writes a key in each scope.
    async fn write(store: &MemoryStore, scopes: &[Scope], value: u8) -> Revision {
        let all: BTreeSet<Scope> = scopes.iter().cloned().collect();
        let mut txn = Txn::default();
        for scope in scopes {
            let of = match scope {
                Scope::Vnet(vnet) => Guarded::Vnet(vnet.clone()),
                _ => Guarded::Host(HostName::new("a").unwrap()),
            };
            txn.puts.push((Name::Guard(of).to_string(), guard_value(&all)));
            txn.puts.push((format!("{scope}x"), vec![value]));
        }
        match store.commit(txn).await.unwrap() {
            crate::store::Outcome::Done(revision) => revision,
            crate::store::Outcome::Stale => panic!("stale"),
        }
    }

    fn values(changes: &Changes) -> Vec<(&str, u8)> {
        let of = |change: &Change| change.key.ends_with("/x");
        let values = changes.changes.iter().filter(|change| of(change));
        values.map(|c| (c.key.as_str(), c.value.as_ref().unwrap()[0])).collect()
    }

    #[tokio::test]
    async fn a_transaction_arrives_whole() {
        let store = MemoryStore::new();
        let host = Scope::Host(HostName::new("a").unwrap());
        let mut watches = Watches::new(Arc::new(store.clone()));
        for scope in [&host, &vnet("blue"), &vnet("red")] {
            assert_eq!(watches.open(scope, None).await.unwrap().entries, []);
        }
        for value in 0..50 {
            // Green is watched by nobody.
            let all = [host.clone(), vnet("blue"), vnet("green"), vnet("red")];
            let scopes = match value % 3 {
                0 => &all[..],
                1 => &all[1..3],
                _ => &all[3..],
            };
            let revision = write(&store, scopes, value).await;
            let changes = watches.next().await.unwrap();
            let expected: Vec<_> = scopes.iter().filter(|s| **s != vnet("green")).collect();
            assert_eq!(changes.revision, revision);
            assert_eq!(values(&changes).len(), expected.len(), "{changes:?}");
        }
    }

    #[tokio::test]
    async fn a_part_waits_for_the_others_and_what_follows_it_too() {
        let store = MemoryStore::new();
        let mut watches = Watches::new(Arc::new(store.clone()));
        watches.open(&vnet("blue"), None).await.unwrap();
        watches.open(&vnet("red"), None).await.unwrap();
        // Held back, as a slow connection would.
        let (late, slow) = tokio::sync::mpsc::channel(8);
        let red = watches.open.get_mut("in/red/").unwrap();
        let mut real = std::mem::replace(&mut red.watch, slow);
        write(&store, &[vnet("blue"), vnet("red")], 1).await;
        write(&store, &[vnet("blue")], 2).await;
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, watches.next()).await.is_err());
        late.send(real.recv().await.unwrap()).await.unwrap();
        assert_eq!(values(&watches.next().await.unwrap()).len(), 2);
        assert_eq!(values(&watches.next().await.unwrap()), [("in/blue/x", 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_never_come_are_not_waited_for_for_ever() {
        let store = MemoryStore::new();
        let mut watches = Watches::new(Arc::new(store.clone()));
        watches.open(&vnet("blue"), None).await.unwrap();
        watches.open(&vnet("red"), None).await.unwrap();
        let host = Scope::Host(HostName::new("a").unwrap());
        watches.open(&host, None).await.unwrap();
        let lie = guard_value(&BTreeSet::from([vnet("blue"), vnet("red")]));
        let puts = vec![("in/blue/guard".to_owned(), lie)];
        store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        // Nor does what others do meanwhile make it longer.
        let started = Instant::now();
        let mut others = 0;
        loop {
            write(&store, std::slice::from_ref(&host), 3).await;
            let next = watches.next().await.unwrap();
            if next.changes[0].key == "in/blue/guard" {
                break;
            }
            others += 1;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(started.elapsed() < PARTS_APART * 2);
        }
        assert!(others >= 2, "{others}");
        while watches.open.values().any(|watched| !watched.waiting.is_empty()) {
            watches.next().await.unwrap();
        }
        // A scope that is read later has it in its snapshot.
        write(&store, &[vnet("blue"), vnet("green")], 7).await;
        watches.open(&vnet("green"), None).await.unwrap();
        assert_eq!(values(&watches.next().await.unwrap()), [("in/blue/x", 7)]);
    }

    #[tokio::test]
    async fn a_scope_can_be_read_as_it_was_and_followed_from_there() {
        let store = MemoryStore::new();
        let mut watches = Watches::new(Arc::new(store.clone()));
        let then = write(&store, &[vnet("blue"), vnet("red")], 1).await;
        let both = write(&store, &[vnet("blue"), vnet("red")], 2).await;
        write(&store, &[vnet("red")], 3).await;
        for scope in [vnet("blue"), vnet("red")] {
            let snapshot = watches.open(&scope, Some(then)).await.unwrap();
            assert_eq!(snapshot.revision, then);
            let values: Vec<_> = snapshot.entries.iter().map(|e| (e.changed, e.value[0])).collect();
            assert_eq!(values.last(), Some(&(then, 1)), "{snapshot:?}");
        }
        let changes = watches.next().await.unwrap();
        assert_eq!((changes.revision, values(&changes).len()), (both, 2));
        assert_eq!(values(&watches.next().await.unwrap()), [("in/red/x", 3)]);
    }

    #[tokio::test]
    async fn a_scope_is_not_opened_at_a_time_before_what_was_taken() {
        let store = MemoryStore::new();
        let host = Scope::Host(HostName::new("a").unwrap());
        let mut watches = Watches::new(Arc::new(store.clone()));
        watches.open(&host, None).await.unwrap();
        let first = write(&store, &[vnet("blue")], 1).await;
        let second = write(&store, &[host.clone(), vnet("red")], 2).await;
        assert_eq!(watches.next().await.unwrap().revision, second);
        // The first was late, and leads to red.
        let snapshot = watches.open(&vnet("red"), Some(first)).await.unwrap();
        assert_eq!((snapshot.revision, snapshot.entries.len()), (second, 2));
        // Nothing of the second is waited for.
        write(&store, &[vnet("red")], 3).await;
        let next = tokio::time::timeout(PARTS_APART / 2, watches.next()).await;
        assert_eq!(values(&next.unwrap().unwrap()), [("in/red/x", 3)]);
    }
}
