//! Stores that hold an operation up where a test says so, each in front of a [`SimStore`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::super::{Config, Volume};
use super::caches::config;
use crate::error::Error;
use crate::remote::sim::SimStore;
use crate::remote::{Answer, ObjectVersion, Store, StoreError};

/// A store that takes `time` to put an object of whose path `part` is a part, while it is slow.
#[derive(Clone, Debug)]
pub(super) struct Slow {
    store: SimStore,
    part: &'static str,
    time: Duration,
    is_slow: Arc<AtomicBool>,
}

impl Slow {
    pub(super) fn new(part: &'static str, time: Duration) -> Slow {
        let is_slow = Arc::new(AtomicBool::new(true));
        Slow { store: SimStore::new(1), part, time, is_slow }
    }

    pub(super) fn set(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    async fn wait(&self, path: &str) {
        if path.contains(self.part) && self.is_slow.load(Ordering::Relaxed) {
            tokio::time::sleep(self.time).await;
        }
    }
}

impl Store for Slow {
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)> {
        self.store.get(path, limit)
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.store.get_range(path, range)
    }

    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion> {
        Box::pin(async move {
            self.wait(path).await;
            self.store.create(path, data).await
        })
    }

    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion> {
        Box::pin(async move {
            self.wait(path).await;
            self.store.replace(path, data, version).await
        })
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        self.store.list()
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        self.store.delete(path)
    }

    fn name(&self) -> String {
        self.store.name()
    }
}

/// A store that takes puts of the root of the volume `v`, and answers a read of it, late where a test says so.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) store: SimStore,
    /// Whether puts of the root are answered with an error, and kept.
    keeps: Arc<AtomicBool>,
    /// The last of them.
    kept: Arc<Mutex<Option<(Bytes, ObjectVersion)>>>,
    /// Whether the answer to the next read of the root waits for `go_on`.
    pub(super) holds: Arc<AtomicBool>,
    pub(super) go_on: Arc<Notify>,
}

impl Gate {
    pub(super) fn new() -> Gate {
        Gate {
            store: SimStore::new(1),
            keeps: Arc::default(),
            kept: Arc::default(),
            holds: Arc::default(),
            go_on: Arc::default(),
        }
    }

    /// From now on puts of the root are kept, or arrive at once.
    pub(super) fn keep(&self, keeps: bool) {
        self.keeps.store(keeps, Ordering::Relaxed);
    }

    /// Uploads, of which only the root does not arrive. The cache gives up soon: see [`hasty`].
    pub(super) async fn upload_in_doubt(&self, volume: &Volume) {
        self.keep(true);
        let failed = volume.upload().await;
        assert!(matches!(failed, Err(Error::StoreTimeout { .. })), "{failed:?}");
        self.keep(false);
    }

    /// Lets the put arrive that was kept.
    pub(super) async fn arrive(&self) {
        let kept = self.kept.lock().unwrap().take();
        let (data, version) = kept.unwrap();
        self.store.replace("v/root", data, &version).await.unwrap();
    }
}

/// How a cache behaves that gives up on the store before anything goes on by itself.
pub(super) fn hasty(seed: u64) -> Config {
    Config { fetch_timeout: Duration::from_millis(100), ..config(seed) }
}

impl Store for Gate {
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)> {
        Box::pin(async move {
            let answer = self.store.get(path, limit).await;
            if path == "v/root" && self.holds.swap(false, Ordering::Relaxed) {
                self.go_on.notified().await;
            }
            answer
        })
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.store.get_range(path, range)
    }

    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion> {
        self.store.create(path, data)
    }

    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion> {
        Box::pin(async move {
            if path == "v/root" && self.keeps.load(Ordering::Relaxed) {
                *self.kept.lock().unwrap() = Some((data, version.clone()));
                let (path, reason) = (path.to_owned(), "on its way".to_owned());
                return Err(StoreError::Unavailable { path, reason });
            }
            self.store.replace(path, data, version).await
        })
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        self.store.list()
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        self.store.delete(path)
    }

    fn name(&self) -> String {
        self.store.name()
    }
}
