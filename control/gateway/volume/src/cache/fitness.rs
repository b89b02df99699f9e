//! Whether the store is fit to hold volumes: whether it keeps the conditions of puts, which ownership rests on.
//!
//! It is tried once after each start, beside whatever clients do: what is cached is served meanwhile, also in an
//! outage. No root is put before.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Plant, planted};
use crate::error::{Error, Result};
use crate::remote::{ProbeError, StoreError, probe};
use crate::volume_name::VolumeName;

/// Longest pause between two attempts to find out in the background.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Inner {
    /// Waits until the store is known to be fit, for as long as a read may wait for it.
    pub(crate) async fn fit(&self, name: &VolumeName) -> Result<()> {
        let deadline = tokio::time::Instant::now() + self.config.fetch_timeout;
        let mut pause = Duration::from_millis(50);
        loop {
            let cause = match self.try_store().await {
                Ok(()) => return Ok(()),
                Err(ProbeError::Store {
                    cause: cause @ (StoreError::Unavailable { .. } | StoreError::Conflict { .. }),
                    ..
                }) => cause.to_string(),
                Err(error) => return Err(error.into()),
            };
            if tokio::time::Instant::now() + pause >= deadline {
                let seconds = self.config.fetch_timeout.as_secs();
                return Err(Error::StoreTimeout { volume: name.clone(), seconds, cause });
            }
            self.pause(&mut pause).await;
        }
    }

    /// Finds out whether the store is fit, unless that is known.
    async fn try_store(&self) -> Result<(), ProbeError> {
        // Whoever comes while it is tried waits for the answer.
        let _turn = self.probing.lock().await;
        if let Some(known) = self.fitness.get() {
            return known.clone();
        }
        if planted(Plant::StoreTrusted) {
            return Ok(());
        }
        let found = probe(self.store.as_ref(), self.random()).await;
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
            match self.try_store().await {
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
