//! A store for tests that is in memory and fails as real ones do: before a put took effect, after it, long
//! before it does, by an answer that comes short, by a list of yesterday, for a while, or by ignoring
//! conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{Answer, ObjectVersion, PROBE_PREFIX, Store, StoreError};
use crate::disk::sim::{Rng, SimDisk, give_way};

/// A simulated store. Clones share it.
#[derive(Clone, Debug)]
pub struct SimStore {
    state: Arc<Mutex<State>>,
    /// Whose power is cut at a step of this store, too.
    machine: Option<SimDisk>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    rng: Rng,
    versions: u64,
    down: bool,
    /// Whether other tasks run before an operation is answered.
    delays: bool,
    /// One in so many operations fails; 0: none.
    fail_one_in: u64,
    ignore_conditions: bool,
    refuse_conditions: bool,
    deny: bool,
    deny_puts: bool,
    gets: u64,
    got_bytes: u64,
    puts: u64,
    /// Time that a read of a range takes.
    range_time: Duration,
    counts: StoreFaults,
    /// Puts that were answered with an error and take effect yet.
    late: Vec<Late>,
    /// What `list` said before the last change of it.
    stale: Vec<String>,
}

/// A put on its way.
#[derive(Clone, Debug)]
struct Late {
    path: String,
    data: Bytes,
    condition: Option<ObjectVersion>,
    /// Operations until it arrives.
    after: u64,
}

/// What an operation suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing happens.
    Before,
    /// It happens, and nobody is told.
    After,
    /// It happens some time later, and nobody is told.
    Late,
    /// The answer to a read of a range lacks its end.
    Short,
}

/// Counts of faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreFaults {
    /// Puts that took effect and failed nevertheless.
    pub applied_then_failed: u64,
    /// Puts that failed, and took effect after that.
    pub late: u64,
    /// Puts that failed and came too late for their condition.
    pub too_late: u64,
    /// Answers that lacked their end.
    pub short: u64,
    /// Lists of yesterday.
    pub stale_lists: u64,
}

impl SimStore {
    /// An empty store whose delays and faults follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SimStore {
        SimStore {
            state: Arc::new(Mutex::new(State {
                objects: BTreeMap::new(),
                rng: Rng::new(seed),
                versions: 0,
                down: false,
                delays: true,
                fail_one_in: 0,
                ignore_conditions: false,
                refuse_conditions: false,
                deny: false,
                deny_puts: false,
                gets: 0,
                got_bytes: 0,
                puts: 0,
                range_time: Duration::ZERO,
                counts: StoreFaults::default(),
                late: Vec::new(),
                stale: Vec::new(),
            })),
            machine: None,
        }
    }

    /// The same store as the machine with this disk sees it: each operation is a step, and a put another one
    /// once it took effect, at which that machine's power may be cut.
    #[must_use]
    pub fn seen_from(&self, machine: &SimDisk) -> SimStore {
        SimStore { state: Arc::clone(&self.state), machine: Some(machine.clone()) }
    }

    async fn step(&self) {
        if let Some(machine) = &self.machine {
            machine.step().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on no other task runs before an operation is answered, as suits a look at what is there.
    pub fn answer_at_once(&self) {
        self.state().delays = false;
    }

    /// From now on nothing, or everything, works.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// One in `n` operations fails from now on; a put fails before or after it took effect. 0: none.
    pub fn fail_one_in(&self, n: u64) {
        self.state().fail_one_in = n;
    }

    /// Each read of a range takes so long from now on.
    pub fn set_range_time(&self, time: Duration) {
        self.state().range_time = time;
    }

    /// Conditions of puts are ignored from now on.
    pub fn ignore_conditions(&self) {
        self.state().ignore_conditions = true;
    }

    /// Puts with a condition, which all are, are refused from now on.
    pub fn refuse_conditions(&self) {
        self.state().refuse_conditions = true;
    }

    /// From now on the credentials are refused, or not any more.
    pub fn deny(&self, deny: bool) {
        self.state().deny = deny;
    }

    /// From now on the credentials do not do for puts, or do again.
    pub fn deny_puts(&self, deny: bool) {
        self.state().deny_puts = deny;
    }

    /// Removes an object, as an operator may.
    pub fn remove(&self, path: &str) {
        self.state().objects.remove(path);
    }

    /// Number of reads, and the bytes they got.
    #[must_use]
    pub fn reads(&self) -> (u64, u64) {
        let state = self.state();
        (state.gets, state.got_bytes)
    }

    /// Number of puts, without those that try whether conditions are kept.
    #[must_use]
    pub fn puts(&self) -> u64 {
        self.state().puts
    }

    /// Counts of faults so far.
    #[must_use]
    pub fn faults(&self) -> StoreFaults {
        self.state().counts
    }

    /// All paths.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// An object as it is, without faults.
    #[must_use]
    pub fn peek(&self, path: &str) -> Option<Bytes> {
        self.state().objects.get(path).map(|(data, _)| data.clone())
    }

    /// Flips a bit of an object, if it is there and so long.
    pub fn flip(&self, path: &str, at: usize) {
        if let Some((data, _)) = self.state().objects.get_mut(path) {
            let mut changed = data.to_vec();
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= 1;
            }
            *data = Bytes::from(changed);
        }
    }

    /// A copy of all objects in a store without faults.
    #[must_use]
    pub fn copy(&self) -> SimStore {
        let copy = SimStore::new(1);
        {
            let from = self.state();
            let mut to = copy.state();
            to.objects.clone_from(&from.objects);
            to.versions = from.versions;
            to.puts = from.puts;
        }
        copy
    }

    /// Waits a little and decides what goes wrong with this operation.
    async fn turn(&self) -> Option<Fault> {
        let (turns, fault) = {
            let mut state = self.state();
            state.arrive();
            // Most answers come soon, some only after much else.
            let turns = if state.rng.one_in(40) { 200 } else { 6 };
            let turns = if state.delays { state.rng.below(turns) } else { 0 };
            let n = state.fail_one_in;
            let fails = n > 0 && state.rng.one_in(n);
            let fault = match state.rng.below(8) {
                0..3 => Fault::Before,
                3..5 => Fault::After,
                5..7 => Fault::Late,
                _ => Fault::Short,
            };
            (turns, if state.down { Some(Fault::Before) } else { fails.then_some(fault) })
        };
        give_way(turns).await;
        self.step().await;
        fault
    }

    /// Whether the credentials are good.
    fn allows(&self, path: &str) -> Result<(), StoreError> {
        if self.state().deny { Err(denied(path)) } else { Ok(()) }
    }

    async fn put(
        &self,
        path: &str,
        data: Bytes,
        condition: Option<&ObjectVersion>,
    ) -> Result<ObjectVersion, StoreError> {
        let fault = self.turn().await;
        self.allows(path)?;
        if self.state().deny_puts {
            return Err(denied(path));
        }
        if self.state().refuse_conditions {
            let (path, reason) = (path.to_owned(), "simulated old version".to_owned());
            return Err(StoreError::Unsupported { path, reason });
        }
        if fault == Some(Fault::Before) {
            return Err(unavailable(path));
        }
        let version = {
            let mut state = self.state();
            if fault == Some(Fault::Late) {
                let after = 1 + state.rng.below(6);
                let (path, condition) = (path.to_owned(), condition.cloned());
                state.late.push(Late { path, data, condition, after });
                None
            } else {
                let put = state.put(path, data, condition);
                if put.is_some() && fault.is_some() {
                    state.counts.applied_then_failed += 1;
                }
                Some(put.ok_or_else(|| StoreError::Conflict { path: path.to_owned() })?)
            }
        };
        give_way(1).await;
        self.step().await;
        match version {
            Some(version) if fault.is_none() => Ok(version),
            _ => Err(unavailable(path)),
        }
    }

    /// The answer to a read, which may come short.
    fn answer(&self, fault: Option<Fault>, data: Bytes) -> Bytes {
        if fault != Some(Fault::Short) {
            return data;
        }
        let mut state = self.state();
        state.counts.short += 1;
        let len = state.rng.below(data.len() as u64) as usize;
        data.slice(..len)
    }
}

impl State {
    /// Puts an object if the condition holds.
    fn put(
        &mut self,
        path: &str,
        data: Bytes,
        condition: Option<&ObjectVersion>,
    ) -> Option<ObjectVersion> {
        self.puts += u64::from(!path.starts_with(PROBE_PREFIX));
        let found = self.objects.get(path).map(|(_, v)| ObjectVersion(v.to_string()));
        if found.as_ref() != condition && !self.ignore_conditions {
            return None;
        }
        if found.is_none() {
            self.stale = self.names();
        }
        self.versions += 1;
        self.objects.insert(path.to_owned(), (data, self.versions));
        Some(ObjectVersion(self.versions.to_string()))
    }

    /// Lets puts take effect whose time has come.
    fn arrive(&mut self) {
        let (mut due, mut rest) = (Vec::new(), Vec::new());
        for mut late in std::mem::take(&mut self.late) {
            late.after -= 1;
            if late.after == 0 { due.push(late) } else { rest.push(late) }
        }
        self.late = rest;
        for late in due {
            match self.put(&late.path, late.data, late.condition.as_ref()) {
                Some(_) => self.counts.late += 1,
                None => self.counts.too_late += 1,
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let names = self.objects.keys().filter_map(|path| path.split_once('/'));
        let names: BTreeSet<String> = names.map(|(name, _)| name.to_owned()).collect();
        names.into_iter().collect()
    }
}

/// Whether a read fails altogether.
fn fails(fault: Option<Fault>) -> bool {
    fault.is_some_and(|fault| fault != Fault::Short)
}

fn denied(path: &str) -> StoreError {
    StoreError::Denied { path: path.to_owned(), reason: "simulated expiry".to_owned() }
}

fn unavailable(path: &str) -> StoreError {
    StoreError::Unavailable { path: path.to_owned(), reason: "simulated outage".to_owned() }
}

impl Store for SimStore {
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)> {
        Box::pin(async move {
            let fault = self.turn().await;
            self.allows(path)?;
            if fault.is_some() {
                return Err(unavailable(path));
            }
            let found = {
                let mut state = self.state();
                state.gets += 1;
                let found = state.objects.get(path).cloned();
                let got = found.as_ref().map_or(0, |(data, _)| data.len().min(limit) as u64);
                state.got_bytes += got;
                found
            };
            match found {
                Some((data, _)) if data.len() > limit => {
                    let (path, bytes) = (path.to_owned(), data.len() as u64);
                    Err(StoreError::TooLarge { path, bytes, limit })
                }
                Some((data, version)) => Ok((data, ObjectVersion(version.to_string()))),
                None => Err(StoreError::NotFound { path: path.to_owned() }),
            }
        })
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            let fault = self.turn().await;
            self.allows(path)?;
            let time = self.state().range_time;
            if !time.is_zero() {
                tokio::time::sleep(time).await;
            }
            if fails(fault) {
                return Err(unavailable(path));
            }
            let data = {
                let mut state = self.state();
                state.gets += 1;
                state.got_bytes += range.end - range.start;
                let Some((data, _)) = state.objects.get(path) else {
                    return Err(StoreError::NotFound { path: path.to_owned() });
                };
                // Like a real store: a range that ends beyond the object comes short.
                let len = data.len() as u64;
                let (from, to) = (range.start.min(len) as usize, range.end.min(len) as usize);
                data.slice(from..to)
            };
            Ok(self.answer(fault, data))
        })
    }

    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion> {
        Box::pin(self.put(path, data, None))
    }

    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion> {
        Box::pin(self.put(path, data, Some(version)))
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        Box::pin(async move {
            let fault = self.turn().await;
            self.allows("")?;
            if fails(fault) {
                return Err(unavailable(""));
            }
            let mut state = self.state();
            if fault.is_some() {
                state.counts.stale_lists += 1;
                return Ok(state.stale.clone());
            }
            Ok(state.names())
        })
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let fault = self.turn().await;
            self.allows(path)?;
            if fault.is_some() {
                return Err(unavailable(path));
            }
            let mut state = self.state();
            let stale = state.names();
            if state.objects.remove(path).is_some() {
                state.stale = stale;
            }
            Ok(())
        })
    }

    fn name(&self) -> String {
        "simulated store".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProbeError, probe};
    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_store_that_ignores_or_refuses_conditions_is_refused() {
        let store = SimStore::new(1);
        probe(&store, 1, WITHIN).await.unwrap();
        assert_eq!(store.paths(), Vec::<String>::new());
        store.ignore_conditions();
        let found = probe(&store, 1, WITHIN).await;
        assert!(matches!(found, Err(ProbeError::IgnoresConditions { .. })));
        assert_eq!(store.paths(), Vec::<String>::new());
        let store = SimStore::new(1);
        store.refuse_conditions();
        let found = probe(&store, 1, WITHIN).await;
        assert!(matches!(found, Err(ProbeError::RefusesConditions { .. })));
    }

    #[tokio::test]
    async fn an_object_longer_than_it_may_be_is_refused() {
        let store = SimStore::new(1);
        store.create("a/root", Bytes::from_static(b"0123")).await.unwrap();
        assert_eq!(store.get("a/root", 4).await.unwrap().0, "0123");
        let refused = store.get("a/root", 3).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { bytes: 4, limit: 3, .. })));
    }
}
