//! How the queue is written when the store is back.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::{Edit, api};

use super::{Counts, Queue};
use crate::change::{ChangeError, Plan, Reads, Writer, happened};
use crate::cluster::Cluster;
use crate::cluster::check::{Conflict, Touched};
use crate::cluster::project::Projection;
use crate::names::HostName;
use crate::store::{Revision, StoreError};
use crate::time::now_unix_ms;

/// How long nothing is tried after the store failed.
const PAUSE: Duration = Duration::from_millis(500);

/// What became of an attempt.
enum Attempt {
    Written(Revision),
    /// It is not written, for these reasons.
    Failed(Vec<String>),
    /// The store is away again.
    Later(String),
}

impl Queue {
    /// Writes what waits whenever the store can be used, until it is dropped.
    pub async fn write(self: Arc<Self>, writer: Arc<Writer>) {
        let mut known = self.known.clone();
        let mut counts = self.counts.subscribe();
        let waiting = |counts: &Counts| counts.waiting > 0;
        // Both senders live as long as this task.
        while counts.wait_for(waiting).await.is_ok()
            && known.wait_for(|known| known.unusable().is_none()).await.is_ok()
        {
            if !self.write_next(&writer).await {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Writes the change that waits longest. False: try again a little later.
    async fn write_next(&self, writer: &Writer) -> bool {
        let (number, touched) = {
            let mut state = self.state.lock().await;
            let waits = state.changes.iter().find(|(_, entry)| entry.refused.is_none());
            let Some((number, entry)) = waits else { return true };
            let (number, touched) = (*number, entry.touched.clone());
            state.writing = Some(number);
            (number, touched)
        };
        let attempt = attempt(writer, &self.me, &touched).await;
        let mut state = self.state.lock().await;
        state.writing = None;
        let kept = match attempt {
            Attempt::Later(reason) => {
                tracing::debug!(number, reason, "a queued change waits on");
                self.failed(Some(reason));
                return false;
            }
            Attempt::Written(revision) => {
                self.failed(None);
                tracing::info!(number, revision, "a queued change is written");
                state.changes.remove(&number);
                self.events.queue(number, api::QueueState::Written, &[]);
                self.kept.remove(number).await
            }
            Attempt::Failed(reasons) => {
                self.failed(None);
                let said = reasons.join("; ");
                tracing::warn!(number, reasons = said, "a queued change is not written");
                self.events.queue(number, api::QueueState::Failed, &reasons);
                let last = state.last;
                match state.changes.get_mut(&number) {
                    Some(entry) => {
                        entry.refuse(reasons, now_unix_ms());
                        let known = Arc::clone(&self.known.borrow().cluster);
                        let cluster_id = known.meta.as_ref().map_or("", |meta| &meta.cluster_id);
                        self.kept.put(number, entry, last, cluster_id).await
                    }
                    None => Ok(()),
                }
            }
        };
        // Tried again after the next start, when it finds that all is so already.
        if let Err(error) = kept {
            tracing::warn!(number, %error, "what became of a queued change is not remembered");
        }
        state.ahead = None;
        self.count(&state);
        true
    }
}

/// Writes one change by the path of all changes.
async fn attempt(writer: &Writer, me: &HostName, touched: &[Touched]) -> Attempt {
    match writer.change(&Queued { me, touched }, None, false).await {
        Ok(done) => Attempt::Written(done.revision),
        Err(ChangeError::Conflicts(conflicts)) => {
            Attempt::Failed(conflicts.iter().map(in_words).collect())
        }
        Err(ChangeError::Changed(reasons)) => Attempt::Failed(reasons),
        Err(error @ (ChangeError::Contended | ChangeError::Revision { .. })) => {
            Attempt::Later(error.to_string())
        }
        Err(error) if error.is_outage() => Attempt::Later(error.cause()),
        Err(error) => Attempt::Failed(vec![error.to_string()]),
    }
}

/// What is left to do of a change, as long as others did nothing to its objects since it was asked for.
struct Queued<'a> {
    me: &'a HostName,
    touched: &'a [Touched],
}

impl Plan for Queued<'_> {
    fn reads(&self, _: &Cluster, _: &Projection) -> Reads {
        let edits: Vec<Edit> = self.touched.iter().filter_map(edit_of).collect();
        Reads::of(&edits)
    }

    fn edits(&self, cluster: &Cluster, _: &Projection) -> Result<Vec<Edit>, ChangeError> {
        let (mut edits, mut found) = (Vec::new(), Vec::new());
        for touched in self.touched {
            let Touched { slot, before, after, .. } = touched;
            let now = cluster.get(slot);
            let (key, me) = (&slot.key, self.me);
            if let Some(host) = slot.host.as_ref().filter(|host| *host != me) {
                found.push(format!("{key}: was queued as one of host {host}; this host is {me}"));
            } else if now == *after {
                // So already.
            } else if now != *before {
                found.push(format!(
                    "{key}: is not as it was when the change was queued: it {} meanwhile",
                    happened(before.as_ref(), now.as_ref())
                ));
            } else {
                edits.extend(edit_of(touched));
            }
        }
        if found.is_empty() { Ok(edits) } else { Err(ChangeError::Changed(found)) }
    }
}

fn in_words(conflict: &Conflict) -> String {
    api::Fault { edit: None, ..api::Fault::from(conflict) }.text()
}

fn edit_of(touched: &Touched) -> Option<Edit> {
    match &touched.after {
        Some(object) => Some(Edit::from(object.clone())),
        None => Edit::deleting(touched.slot.key.clone()),
    }
}

impl ChangeError {
    /// Nothing is wrong with the change: the store cannot be used.
    pub const fn is_outage(&self) -> bool {
        match self {
            ChangeError::Unhealthy(_) => true,
            ChangeError::Store(error) => error.is_outage(),
            _ => false,
        }
    }

    /// What is wrong with the store, or with the change.
    pub(super) fn cause(&self) -> String {
        match self {
            ChangeError::Unhealthy(reason) => reason.clone(),
            ChangeError::Store(error @ StoreError::Unknown { .. }) => {
                format!("{error} (if it did, nothing is left to do when the store is back)")
            }
            error => error.to_string(),
        }
    }
}
