//! What is in the store beside objects: its header, hosts, leases.

use crate::store::StoreError;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/culvert.store.v1.rs"));
}
pub use generated::*;

/// Version of keys and values that this culvertd reads and writes.
pub const SCHEMA: u32 = 2;

/// Why a store is not used. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Use a culvertd of the version that wrote it, or a newer one.
    #[error(
        "{location}: the state has schema {found}, written by culvertd {by}; this one reads {SCHEMA}: use culvertd {by} or newer"
    )]
    Newer {
        /// File or endpoints.
        location: String,
        /// Its schema.
        found: u32,
        /// Version that wrote it.
        by: String,
    },
    /// Bring it up to date with a culvertd between the two.
    #[error(
        "{location}: the state has schema {found}, written by culvertd {by}; this one reads {SCHEMA} only"
    )]
    Older {
        /// File or endpoints.
        location: String,
        /// Its schema.
        found: u32,
        /// Version that wrote it.
        by: String,
    },
    /// Name the store of this cluster; or, if the host is to move, remove its `cluster` file.
    #[error(
        "{location}: the store is of cluster {found}, this host of cluster {expected} (by {source_of}): nothing was read or written"
    )]
    OtherCluster {
        /// File or endpoints.
        location: String,
        /// The store's cluster.
        found: String,
        /// The host's cluster.
        expected: String,
        /// The file or setting that says so.
        source_of: String,
    },
    /// Restore the store; or, if the cluster is to begin anew, remove the host's `cluster` file.
    #[error(
        "{location}: the store is empty, but this host is of cluster {expected} (by {source_of}): nothing was written"
    )]
    Emptied {
        /// File or endpoints.
        location: String,
        /// The host's cluster.
        expected: String,
        /// The file or setting that says so.
        source_of: String,
    },
    /// Give one of the two machines another name.
    #[error(
        "host {name} is the name of another machine, which is alive (culvertd {version}): legal is a name used once in the cluster"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Version of the other's culvertd.
        version: String,
    },
    /// Move the file away, or correct it.
    #[error("{file}: {reason}")]
    Memory {
        /// A file of the state folder.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// See the message.
    #[error(transparent)]
    Store(#[from] StoreError),
}
