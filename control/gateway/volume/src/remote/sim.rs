//! A store for tests that is in memory and fails as real ones do: before a put took effect, after it, for
//! a while, or by ignoring conditions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Answer, ObjectVersion, Store, StoreError};
use crate::disk::sim::Rng;

/// A simulated store. Clones share it.
#[derive(Clone, Debug)]
pub struct SimStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    rng: Rng,
    versions: u64,
    down: bool,
    /// One in so many operations fails; 0: none.
    fail_one_in: u64,
    ignore_conditions: bool,
    gets: u64,
    got_bytes: u64,
    puts: u64,
    applied_then_failed: u64,
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
                fail_one_in: 0,
                ignore_conditions: false,
                gets: 0,
                got_bytes: 0,
                puts: 0,
                applied_then_failed: 0,
            })),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing, or everything, works.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// One in `n` operations fails from now on; a put fails before or after it took effect. 0: none.
    pub fn fail_one_in(&self, n: u64) {
        self.state().fail_one_in = n;
    }

    /// Conditions of puts are ignored from now on.
    pub fn ignore_conditions(&self) {
        self.state().ignore_conditions = true;
    }

    /// Number of reads, and the bytes they got.
    #[must_use]
    pub fn reads(&self) -> (u64, u64) {
        let state = self.state();
        (state.gets, state.got_bytes)
    }

    /// Number of puts.
    #[must_use]
    pub fn puts(&self) -> u64 {
        self.state().puts
    }

    /// Number of puts that took effect and failed nevertheless.
    #[must_use]
    pub fn applied_then_failed(&self) -> u64 {
        self.state().applied_then_failed
    }

    /// All paths.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
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
        }
        copy
    }

    /// Waits a little and decides whether this operation fails: before (`Some(true)`) or after.
    async fn turn(&self) -> Option<bool> {
        let (turns, fault) = {
            let mut state = self.state();
            let turns = state.rng.below(6);
            let n = state.fail_one_in;
            let fails = n > 0 && state.rng.one_in(n);
            let before = state.rng.one_in(2);
            (turns, if state.down { Some(true) } else { fails.then_some(before) })
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        fault
    }

    async fn put(
        &self,
        path: &str,
        data: Bytes,
        condition: Option<&ObjectVersion>,
    ) -> Result<ObjectVersion, StoreError> {
        let fault = self.turn().await;
        if fault == Some(true) {
            return Err(unavailable(path));
        }
        let version = {
            let mut state = self.state();
            state.puts += 1;
            let found = state.objects.get(path).map(|(_, v)| ObjectVersion(v.to_string()));
            if found.as_ref() != condition && !state.ignore_conditions {
                return Err(StoreError::Conflict { path: path.to_owned() });
            }
            state.versions += 1;
            let version = state.versions;
            state.objects.insert(path.to_owned(), (data, version));
            if fault.is_some() {
                state.applied_then_failed += 1;
            }
            version
        };
        tokio::task::yield_now().await;
        if fault.is_some() {
            return Err(unavailable(path));
        }
        Ok(ObjectVersion(version.to_string()))
    }
}

fn unavailable(path: &str) -> StoreError {
    StoreError::Unavailable { path: path.to_owned(), reason: "simulated outage".to_owned() }
}

impl Store for SimStore {
    fn get<'a>(&'a self, path: &'a str) -> Answer<'a, (Bytes, ObjectVersion)> {
        Box::pin(async move {
            if self.turn().await.is_some() {
                return Err(unavailable(path));
            }
            let mut state = self.state();
            state.gets += 1;
            match state.objects.get(path).cloned() {
                Some((data, version)) => {
                    state.got_bytes += data.len() as u64;
                    Ok((data, ObjectVersion(version.to_string())))
                }
                None => Err(StoreError::NotFound { path: path.to_owned() }),
            }
        })
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            if self.turn().await.is_some() {
                return Err(unavailable(path));
            }
            let mut state = self.state();
            state.gets += 1;
            state.got_bytes += range.end - range.start;
            let Some((data, _)) = state.objects.get(path) else {
                return Err(StoreError::NotFound { path: path.to_owned() });
            };
            // Like a real store: a range that ends beyond the object comes short.
            let len = data.len() as u64;
            let (from, to) = (range.start.min(len) as usize, range.end.min(len) as usize);
            Ok(data.slice(from..to))
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
            if self.turn().await.is_some() {
                return Err(unavailable(""));
            }
            let state = self.state();
            let names: BTreeSet<String> = state
                .objects
                .keys()
                .filter_map(|path| path.split_once('/').map(|(name, _)| name.to_owned()))
                .collect();
            Ok(names.into_iter().collect())
        })
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            if self.turn().await.is_some() {
                return Err(unavailable(path));
            }
            self.state().objects.remove(path);
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

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_refused() {
        let store = SimStore::new(1);
        probe(&store, 1).await.unwrap();
        assert_eq!(store.paths(), Vec::<String>::new());
        store.ignore_conditions();
        assert!(matches!(probe(&store, 1).await, Err(ProbeError::IgnoresConditions { .. })));
        assert_eq!(store.paths(), Vec::<String>::new());
    }
}
