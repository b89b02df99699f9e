//! A store, and how long its answers take.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use culvert_nbd::observe::Histogram;
use culvert_volume::remote::{Answer, ObjectVersion, Store, StoreError};

/// What a store is asked for; the names are labels of the metric.
const OPERATIONS: [&str; 6] = ["get", "get_range", "create", "replace", "list", "delete"];

/// Times of answers, failed ones included, by operation.
#[derive(Debug, Default)]
pub struct StoreTimes([Histogram; OPERATIONS.len()]);

impl StoreTimes {
    /// Name and times of each operation.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        OPERATIONS.into_iter().zip(&self.0)
    }
}

/// A store whose answers are timed.
#[derive(Debug)]
pub struct TimedStore {
    store: Arc<dyn Store>,
    times: Arc<StoreTimes>,
}

impl TimedStore {
    /// `store`, timed into `times`.
    pub fn new(store: Arc<dyn Store>, times: Arc<StoreTimes>) -> Self {
        Self { store, times }
    }

    fn timed<'a, T: Send + 'a>(
        &'a self,
        operation: usize,
        answer: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> Answer<'a, T> {
        Box::pin(async move {
            let begun = Instant::now();
            let answer = answer.await;
            if let Some(times) = self.times.0.get(operation) {
                times.record(begun.elapsed());
            }
            answer
        })
    }
}

impl Store for TimedStore {
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)> {
        self.timed(0, self.store.get(path, limit))
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.timed(1, self.store.get_range(path, range))
    }

    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion> {
        self.timed(2, self.store.create(path, data))
    }

    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion> {
        self.timed(3, self.store.replace(path, data, version))
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        self.timed(4, self.store.list())
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        self.timed(5, self.store.delete(path))
    }

    fn name(&self) -> String {
        self.store.name()
    }
}
