//! Where desired state is kept: keys and values with revisions, changed by transactions, followed by
//! watches.
//!
//! | module | holds |
//! |---|---|
//! | [`memory`] | the same without a file, for tests, and the core of the embedded store |
//! | [`mod@file`] | the embedded store: one redb file of one host |
//! | [`etcd`] | the store of many hosts |
//!
//! A store knows nothing of what its values mean.

pub mod etcd;
pub mod file;
pub mod memory;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

/// Counts the changes of a store; each transaction has one of its own. 0: before the first.
pub type Revision = u64;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The transaction that wrote it last.
    pub changed: Revision,
}

/// All entries at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The value; `None`: deleted.
    pub value: Option<Vec<u8>>,
}

/// What one transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The transaction's revision.
    pub revision: Revision,
    /// The changes.
    pub changes: Vec<Change>,
}

/// A transaction: happens as a whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Keys, and the revision at which each must have been changed last; 0: it must not be there.
    pub expect: Vec<(String, Revision)>,
    /// Keys that get a value.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Keys that go; one that is not there is no error.
    pub deletes: Vec<String>,
}

/// What became of a transaction.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It happened, durably.
    Done(Revision),
    /// An expectation does not hold; nothing happened.
    Stale,
}

/// Where a store is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `redb`, `etcd`, `memory`.
    pub kind: &'static str,
    /// File or endpoints.
    pub location: String,
}

/// What watchers receive. An error ends the watch: read a snapshot, and watch again from there.
pub type Watch = mpsc::Receiver<Result<Changes, StoreError>>;

/// Keys and values with revisions.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// What and where it is.
    fn describe(&self) -> Description;

    /// All entries whose keys begin with `prefix`, as they are at one revision: now, or as they were at `at`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] where `at` is too long ago.
    async fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, StoreError>;

    /// Makes the transaction happen, durably, or not.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// What changes below `prefix` after the revision `after`, transaction by transaction.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// Puts a key that is deleted by itself when the lease is not renewed for `ttl`. `replaces` is when the
    /// key was changed last; 0: it must not be there.
    ///
    /// # Errors
    /// [`StoreError::Held`] where the key is another.
    async fn hold(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        replaces: Revision,
    ) -> Result<Box<dyn Lease>, StoreError>;
}

/// A key that lives as long as it is renewed. Dropped, it is no longer renewed, and goes by itself.
#[tonic::async_trait]
pub trait Lease: Send + Sync {
    /// Renews it, and gives the key another value if there is one.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] where it has expired: hold the key again.
    async fn renew(&mut self, value: Option<Vec<u8>>) -> Result<(), StoreError>;
}

/// Why a store does not do what it is asked. Nothing was changed, but where a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Look after the store: what runs goes on, changes have to wait.
    #[error("{location}: the store cannot be reached: {reason}")]
    Unreachable {
        /// The endpoints.
        location: String,
        /// What the connection says.
        reason: String,
    },
    /// Look after the store: it was not asked, since it did not answer a moment ago.
    #[error("{reason}")]
    Away {
        /// What it said then.
        reason: String,
    },
    /// Read what is wanted again: whether the transaction happened is not known.
    #[error("{location}: whether the change happened is not known: {reason}")]
    Unknown {
        /// File or endpoints.
        location: String,
        /// What went wrong.
        reason: String,
    },
    /// Split the change, or raise the limit that the message names.
    #[error("the change has {count} parts; legal is at most {max} for this store: {hint}")]
    TooLarge {
        /// Operations of the transaction.
        count: usize,
        /// The store's limit.
        max: String,
        /// How to raise it.
        hint: &'static str,
    },
    /// Nothing to do: what there is now is read, and followed from there.
    #[error("what was at revision {at} is not known any more")]
    Compacted {
        /// What was asked for.
        at: Revision,
    },
    /// Nothing to do: the key is put again.
    #[error("the lease of {key} has expired")]
    LeaseLost {
        /// The key.
        key: String,
    },
    /// Free space, repair the disk, and start again: the file holds all that was acknowledged.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The state file.
        path: PathBuf,
        /// What redb or the kernel says.
        reason: String,
    },
    /// Stop the other culvertd, or give this one a state file of its own.
    #[error("{}: locked: another culvertd has this state file open", .0.display())]
    Locked(PathBuf),
    /// Name another file, or move this one away.
    #[error("{}: not a state file of culvertd: {reason}", .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// How one sees it.
        reason: String,
    },
    /// Give it back from a backup.
    #[error("{}: the state file is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nothing to do: what holds it is read again.
    #[error("{key} is held by another")]
    Held {
        /// The key.
        key: String,
    },
    /// Look at the store's log: it refused what was asked.
    #[error("{location}: the store refused: {reason}")]
    Refused {
        /// The endpoints.
        location: String,
        /// What it says.
        reason: String,
    },
}

impl StoreError {
    /// The store is not to blame for what it was asked, but cannot be used at the moment.
    pub const fn is_outage(&self) -> bool {
        matches!(
            self,
            StoreError::Unreachable { .. }
                | StoreError::Away { .. }
                | StoreError::Unknown { .. }
                | StoreError::File { .. }
        )
    }
}
