//! The object store behind one narrow trait: whole objects, ranges, and the two conditional puts that
//! ownership rests on.

mod folder;
mod object;
pub mod sim;

use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub use folder::FolderStore;
pub use object::ObjectStoreRemote;

/// The future of one store operation.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A version of one object, as the store names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion(pub String);

/// What the volumes need of an object store. Paths are relative, parts separated by `/`.
///
/// A put takes effect whole or not at all. After [`StoreError::Unavailable`] it may have taken effect or
/// may still do.
pub trait Store: Debug + Send + Sync + 'static {
    /// A whole object of at most `limit` bytes, and its version. Of a longer one no more than that is taken
    /// into memory before it is refused.
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)>;

    /// Bytes of an object. The answer may come short.
    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes>;

    /// Writes an object that must not exist.
    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion>;

    /// Replaces an object that must still have the version `version`.
    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion>;

    /// The first parts of all paths: the names of volumes.
    fn list(&self) -> Answer<'_, Vec<String>>;

    /// Deletes an object. It is no error if there is none.
    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()>;

    /// What to call it in an error.
    fn name(&self) -> String;
}

/// What a store operation failed with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object. For a volume's root: there is no such volume.
    #[error("{path}: not found")]
    NotFound {
        /// The object.
        path: String,
    },
    /// The condition of a put did not hold: somebody else was faster. Read again and decide.
    #[error("{path}: changed or already there")]
    Conflict {
        /// The object.
        path: String,
    },
    /// The store refuses these credentials. Renew them, or grant the permission.
    #[error("{path}: refused: {reason}")]
    Denied {
        /// The object.
        path: String,
        /// What the store said.
        reason: String,
    },
    /// The object is longer than any of its kind: something else wrote it.
    #[error("{path}: {bytes} bytes; legal are at most {limit}")]
    TooLarge {
        /// The object.
        path: String,
        /// Its length, as far as that is known.
        bytes: u64,
        /// The longest legal one.
        limit: usize,
    },
    /// The store does not know such an operation. Use another store, or another version of it.
    #[error("{path}: not supported: {reason}")]
    Unsupported {
        /// The object.
        path: String,
        /// What the store said.
        reason: String,
    },
    /// The store did not answer, or not sensibly. It is tried again.
    #[error("{path}: {reason}")]
    Unavailable {
        /// The object.
        path: String,
        /// What went wrong.
        reason: String,
    },
}

impl StoreError {
    fn no_answer(path: &str) -> StoreError {
        StoreError::Unavailable { path: path.to_owned(), reason: "no answer".to_owned() }
    }
}

/// An answer, if it comes before `deadline`.
pub(crate) async fn answer_by<T>(
    deadline: Instant,
    path: &str,
    answer: Answer<'_, T>,
) -> Result<T, StoreError> {
    let answered = tokio::time::timeout_at(deadline, answer).await;
    answered.unwrap_or_else(|_| Err(StoreError::no_answer(path)))
}

/// Why a store is not fit to hold volumes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProbeError {
    /// It took a put whose condition did not hold. Two gateways could own one volume; use another store.
    #[error(
        "{store} ignores the condition of a put ({which}); ownership of volumes cannot be kept there"
    )]
    IgnoresConditions {
        /// The store.
        store: String,
        /// `create` or `replace`.
        which: &'static str,
    },
    /// It refuses puts with a condition. Ownership of volumes rests on them; use another store, or another
    /// version of it.
    #[error(
        "{store} refuses puts with a condition ({which}), without which ownership of volumes cannot be kept: {cause}"
    )]
    RefusesConditions {
        /// The store.
        store: String,
        /// `create` or `replace`.
        which: &'static str,
        /// What it said.
        cause: StoreError,
    },
    /// It could not be tried. See the cause.
    #[error("{store} cannot be probed: {cause}")]
    Store {
        /// The store.
        store: String,
        /// What went wrong.
        cause: StoreError,
    },
}

/// How the names of objects begin that [`probe`] makes. No volume has such a name.
pub const PROBE_PREFIX: &str = "_probe-";

/// How long the removal of what [`probe`] made may take. It is not waited for longer: it is a few bytes.
const TIDY_WITHIN: Duration = Duration::from_secs(5);

/// Finds out within `within` whether the store keeps the conditions of puts. Leaves nothing behind, as far as
/// the store lets it, for which it takes a few seconds more.
pub async fn probe(store: &dyn Store, nonce: u64, within: Duration) -> Result<(), ProbeError> {
    let path = format!("{PROBE_PREFIX}{nonce:016x}/root");
    let tried = tokio::time::timeout(within, try_conditions(store, &path)).await;
    let found = tried.unwrap_or_else(|_| {
        Err(ProbeError::Store { store: store.name(), cause: StoreError::no_answer(&path) })
    });
    // Also after an error: what failed may have taken effect.
    let end = Instant::now() + TIDY_WITHIN;
    if let Err(error) = answer_by(end, &path, store.delete(&path)).await {
        tracing::warn!(store = store.name(), %error, "an object is left of the attempt to find out whether conditions are kept");
    }
    found
}

async fn try_conditions(store: &dyn Store, path: &str) -> Result<(), ProbeError> {
    let failed = |which| {
        move |cause| match cause {
            StoreError::Unsupported { .. } => {
                ProbeError::RefusesConditions { store: store.name(), which, cause }
            }
            cause => ProbeError::Store { store: store.name(), cause },
        }
    };
    let ignores = |which| ProbeError::IgnoresConditions { store: store.name(), which };
    let which = "create";
    let first = store.create(path, Bytes::from_static(b"1")).await.map_err(failed(which))?;
    match store.create(path, Bytes::from_static(b"2")).await {
        Err(StoreError::Conflict { .. }) => {}
        Ok(_) => return Err(ignores(which)),
        Err(error) => return Err(failed(which)(error)),
    }
    let which = "replace";
    store.replace(path, Bytes::from_static(b"3"), &first).await.map_err(failed(which))?;
    match store.replace(path, Bytes::from_static(b"4"), &first).await {
        Err(StoreError::Conflict { .. }) => Ok(()),
        Ok(_) => Err(ignores(which)),
        Err(error) => Err(failed(which)(error)),
    }
}
