//! Why a change was not written, or not taken out of the queue.

use std::time::Duration;

use culvert_model::VnetId;

use super::{BYTES_MAX, CHANGES_MAX};
use crate::change::ChangeError;
use crate::store::StoreError;

/// Why a change was not written.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    /// See the message.
    #[error(transparent)]
    Refused(#[from] ChangeError),
    /// Nothing to do: it is written when the store is back. `culvert queue` shows what became of it.
    #[error(
        "nothing is written yet, and what runs goes on: {reason}{}; queued as change {number}, which is written when the store is back: `culvert queue` shows it, `culvert queue cancel {number}` takes it back",
        since(*away)
    )]
    Queued {
        /// Its number.
        number: u64,
        /// Why the store cannot be used, or what goes before.
        reason: String,
        /// Since when the store cannot be used.
        away: Duration,
    },
    /// Look after the store, or cancel what is queued.
    #[error(
        "nothing was changed, and what runs goes on: {reason}; nor was it queued: the queue is full, with {changes} changes of {bytes} bytes; legal is {CHANGES_MAX} of {BYTES_MAX}: `culvert queue cancel` makes room"
    )]
    Full {
        /// Why the store cannot be used.
        reason: String,
        /// Changes in the queue.
        changes: usize,
        /// Bytes of them, and of the one that was refused.
        bytes: usize,
    },
    /// Give this host a port in the vnet, by which it follows it; or wait until the store is back.
    #[error(
        "nothing was changed, and what runs goes on: {reason}; nor was it queued: this host has no port in vnet {vnet}, and so does not know now what is in it"
    )]
    Unfollowed {
        /// Why the store cannot be used.
        reason: String,
        /// The vnet.
        vnet: VnetId,
    },
    /// Nothing to do, unless others changed the same meanwhile.
    #[error(
        "nothing was changed, and what runs goes on: {0}; nor was anything queued: of what is known and queued, nothing would change"
    )]
    Nothing(String),
    /// Look after the disk of the state folder.
    #[error("nothing was changed, and what runs goes on: {reason}; nor was it queued: {error}")]
    NotKept {
        /// Why the store cannot be used.
        reason: String,
        /// What the disk says.
        error: StoreError,
    },
}

fn since(away: Duration) -> String {
    if away.is_zero() { String::new() } else { format!(" (for {} s)", away.as_secs().max(1)) }
}

/// Why a change is not taken out of the queue.
#[derive(Debug, thiserror::Error)]
pub enum NotCancelled {
    /// Name one that there is.
    #[error("change {number}: not in the queue; {}", there_is(.there))]
    Unknown {
        /// What was asked for.
        number: u64,
        /// What there is.
        there: Vec<u64>,
    },
    /// Look whether it was written.
    #[error("change {0}: is being written at this moment")]
    Writing(u64),
    /// Look after the disk of the state folder.
    #[error(transparent)]
    File(#[from] StoreError),
}

fn there_is(there: &[u64]) -> String {
    match there {
        [] => "it is empty".to_owned(),
        [one] => format!("legal is {one}"),
        [first, .., last] => format!("legal is one of {} from {first} to {last}", there.len()),
    }
}
