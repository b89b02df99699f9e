//! Whether the store is fit to hold volumes: whether it keeps the conditions of puts, which ownership rests on.
//!
//! It is tried once after each start, beside whatever clients do: what is cached is served meanwhile, also in an
//! outage. No root is put before.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Inner, Plant, planted};
use crate::error::{Error, Result};
use crate::remote::{PROBE_PREFIX, ProbeError, StoreError, probe};
use crate::volume_name::VolumeName;

/// Longest pause between two attempts to find out in the background.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Inner {
    /// Waits until the store is known to be fit, for as long as a read may wait for it.
    pub(crate) async fn fit(&self, name: &VolumeName) -> Result<()> {
        let deadline = self.deadline();
        let mut pause = Duration::from_millis(50);
        loop {
            let cause = match self.try_store(deadline).await {
                Ok(()) => return Ok(()),
                Err(ProbeError::Store {
                    cause: cause @ (StoreError::Unavailable { .. } | StoreError::Conflict { .. }),
                    ..
                }) => cause.to_string(),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() + pause >= deadline {
                let seconds = self.config.fetch_timeout.as_secs();
                return Err(Error::StoreTimeout { volume: name.clone(), seconds, cause });
            }
            self.pause(&mut pause).await;
        }
    }

    /// Finds out whether the store is fit, unless that is known. Gives up at `deadline`.
    async fn try_store(&self, deadline: Instant) -> Result<(), ProbeError> {
        // Whoever comes while it is tried waits for the answer.
        let Ok(_turn) = tokio::time::timeout_at(deadline, self.probing.lock()).await else {
            let reason = "it is being tried, and does not answer".to_owned();
            let cause = StoreError::Unavailable { path: PROBE_PREFIX.to_owned(), reason };
            return Err(ProbeError::Store { store: self.store.name(), cause });
        };
        if let Some(known) = self.fitness.get() {
            return known.clone();
        }
        if planted(Plant::StoreTrusted) {
            return Ok(());
        }
        let within = deadline.saturating_duration_since(Instant::now());
        let found = probe(self.store.as_ref(), self.random(), within).await;
        match &found {
            Err(ProbeError::Store { .. }) => self.state().counters.store_failures += 1,
            known => {
                let _ = self.fitness.set(known.clone());
            }
        }
        found
    }

    /// The task that finds out after a start.
    pub(crate) async fn run_probe(self: Arc<Inner>) {
        let mut pause = Duration::from_secs(1);
        loop {
            match self.try_store(self.deadline()).await {
                Ok(()) => return,
                Err(error @ ProbeError::Store { .. }) => {
                    tracing::warn!(%error, "nothing is uploaded before the store was tried");
                }
                Err(error) => {
                    tracing::error!(%error, "nothing will be uploaded");
                    return;
                }
            }
            tokio::time::sleep(pause.mul_f64(0.5 + self.random_unit())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
