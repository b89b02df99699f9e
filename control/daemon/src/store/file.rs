//! The embedded store: one redb file of one host.
//!
//! Everything is also in memory; the file is written, and synced, before a change is acknowledged or seen by
//! anybody. Two tables: a header with the version of this layout and the revision, and the entries.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::mem::replace;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TableError,
};
use tokio::sync::Mutex;

use super::memory::{Core, Shared};
use super::{
    Description, Entry, Lease, Outcome, Revision, Snapshot, Store, StoreError, Txn, Watch,
};

/// Version of the tables' layout.
const LAYOUT: u64 = 1;
/// Bytes of the file that redb caches; all of it is in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

const HEADER: TableDefinition<'_, &str, u64> = TableDefinition::new("culvert-header");
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("culvert-entries");
const LAYOUT_KEY: &str = "layout";
const REVISION_KEY: &str = "revision";

/// How the database is opened, again after an I/O error.
type Opener = Arc<dyn Fn() -> Result<Database, StoreError> + Send + Sync>;

/// The embedded store.
pub struct FileStore {
    path: PathBuf,
    opener: Opener,
    database: Arc<Mutex<State>>,
    core: Shared,
}

/// What the store has of its file.
enum State {
    /// The database.
    Open(Database),
    /// Nothing, after an error: redb wants to be opened anew.
    Closed,
    /// Nothing until the process ends, since damage was found, and why.
    Lost(String),
}

impl std::fmt::Debug for FileStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FileStore {
    /// Opens the file, or makes it where there is none.
    ///
    /// # Errors
    /// Where it is locked, damaged, of another program or another version, or the kernel refuses. The
    /// file is then as it was.
    pub fn open(path: &Path) -> Result<FileStore, StoreError> {
        if !path.try_exists().map_err(|error| of_io(path, &error))? {
            create(path)?;
        }
        let opened = path.to_owned();
        Self::open_by(path, Arc::new(move || open(&opened)))
    }

    /// As [`FileStore::open`], of a database that `opener` opens.
    pub(super) fn open_by(path: &Path, opener: Opener) -> Result<FileStore, StoreError> {
        let (database, snapshot) = load(path, opener()?)?;
        Ok(FileStore {
            path: path.to_owned(),
            opener,
            database: Arc::new(Mutex::new(State::Open(database))),
            core: Shared::new(Core::new(snapshot)),
        })
    }
}

impl Drop for FileStore {
    /// A commit that is still under way has it closed by its own thread.
    fn drop(&mut self) {
        let last = Arc::get_mut(&mut self.database).map(Mutex::get_mut);
        if let Some(State::Open(database)) = last.map(|last| replace(last, State::Closed)) {
            close(database);
        }
    }
}

/// Makes the file under another name first, so that no cut leaves half of one.
fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| of_io(path, &error);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let database = builder().create(&new).map_err(|error| of_database(path, error))?;
    // The state may have keys.
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    initialise(path, &database)?;
    drop(database);
    fs::rename(&new, path).map_err(failed)?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let opened = quietly(|| builder().open(path)).ok_or_else(|| contradictory(path))?;
    let mut database = opened.map_err(|error| of_database(path, error))?;
    // All of it, since damage that is met later is met where redb has work half done.
    match quietly(|| database.check_integrity()).unwrap_or_else(|| Err(found_damage())) {
        Ok(sound) => {
            if !sound {
                tracing::warn!(
                    path = %path.display(),
                    "the state file was damaged, and is repaired: look whether the last changes are there"
                );
            }
            Ok(database)
        }
        // The disk is to blame, and may be well again.
        Err(error @ DatabaseError::Storage(StorageError::Io(_))) => {
            close(database);
            Err(of_database(path, error))
        }
        Err(error) => {
            leave(database);
            Err(of_database(path, error))
        }
    }
}

fn found_damage() -> DatabaseError {
    DatabaseError::Storage(StorageError::Corrupted("its pages contradict each other".to_owned()))
}

/// Lets go of a database without closing it: that would write to what is damaged, and where redb meets the
/// damage then, it ends the process. The file stays locked until the process ends.
fn leave(database: Database) {
    std::mem::forget(database);
}

/// Does something with a database. None if redb panics, as it does where damage makes its checks of its own
/// work fail.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Closes a database, which checks and writes, too.
fn close(database: Database) {
    let _ = quietly(|| drop(database));
}

/// Writes the tables of an empty store.
pub(super) fn initialise(path: &Path, database: &Database) -> Result<(), StoreError> {
    let failed = |error: redb::Error| of_redb(path, &error);
    let txn = database.begin_write().map_err(|error| failed(error.into()))?;
    {
        let mut header = txn.open_table(HEADER).map_err(|error| failed(error.into()))?;
        header.insert(LAYOUT_KEY, LAYOUT).map_err(|error| failed(error.into()))?;
        header.insert(REVISION_KEY, 0).map_err(|error| failed(error.into()))?;
        txn.open_table(ENTRIES).map_err(|error| failed(error.into()))?;
    }
    txn.commit().map_err(|error| failed(error.into()))
}

/// The database, and what is in it.
fn load(path: &Path, database: Database) -> Result<(Database, Snapshot), StoreError> {
    match quietly(|| read(path, &database)).unwrap_or_else(|| Err(contradictory(path))) {
        Ok(snapshot) => Ok((database, snapshot)),
        Err(error @ StoreError::File { .. }) => {
            close(database);
            Err(error)
        }
        Err(error) => {
            leave(database);
            Err(error)
        }
    }
}

fn read(path: &Path, database: &Database) -> Result<Snapshot, StoreError> {
    let failed = |error: redb::Error| of_redb(path, &error);
    let txn = database.begin_read().map_err(|error| failed(error.into()))?;
    let header = txn.open_table(HEADER).map_err(|error| match error {
        TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. } => {
            let reason = "a redb database without the header of one".to_owned();
            StoreError::NotOurs { path: path.to_owned(), reason }
        }
        error => failed(error.into()),
    })?;
    let number = |key: &str| -> Result<u64, StoreError> {
        let value = header.get(key).map_err(|error| failed(error.into()))?;
        value.map(|value| value.value()).ok_or_else(|| damaged(path, "its header is incomplete"))
    };
    let layout = number(LAYOUT_KEY)?;
    if layout != LAYOUT {
        let reason = format!(
            "layout {layout}; this culvertd reads {LAYOUT}: use the version of culvertd that wrote it"
        );
        return Err(StoreError::NotOurs { path: path.to_owned(), reason });
    }
    let revision = number(REVISION_KEY)?;
    let table = txn.open_table(ENTRIES).map_err(|error| failed(error.into()))?;
    let mut entries = Vec::new();
    for entry in table.iter().map_err(|error| failed(error.into()))? {
        let (key, value) = entry.map_err(|error| failed(error.into()))?;
        let (changed, value) = value.value();
        entries.push(Entry { key: key.value().to_owned(), value: value.to_owned(), changed });
    }
    Ok(Snapshot { revision, entries })
}

/// Writes a transaction; when this returns, it is on the disk.
fn write(database: &Database, revision: Revision, txn: &Txn) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut header = write.open_table(HEADER)?;
        header.insert(REVISION_KEY, revision)?;
        let mut entries = write.open_table(ENTRIES)?;
        for key in &txn.deletes {
            entries.remove(key.as_str())?;
        }
        for (key, value) in &txn.puts {
            entries.insert(key.as_str(), (revision, value.as_slice()))?;
        }
    }
    write.commit()?;
    Ok(())
}

/// Reads the file again after an error, and tells watchers what was written all the same.
fn reopen(path: &Path, opener: &Opener, core: &Shared) -> Result<Database, StoreError> {
    let (database, found) = load(path, opener()?)?;
    let mut core = core.lock();
    if found.revision != core.revision() {
        let known = core.snapshot("");
        core.apply(found.revision, difference(known, found));
    }
    Ok(database)
}

/// The transaction that makes `to` of `from`. A key that was written again is another, although its value is the same.
fn difference(from: Snapshot, to: Snapshot) -> Txn {
    let entries = from.entries.into_iter();
    let mut old: BTreeMap<_, _> =
        entries.map(|entry| (entry.key, (entry.value, entry.changed))).collect();
    let mut puts = Vec::new();
    for Entry { key, value, changed } in to.entries {
        if old.remove(&key).is_none_or(|old| old != (value.clone(), changed)) {
            puts.push((key, value));
        }
    }
    Txn { expect: Vec::new(), puts, deletes: old.into_keys().collect() }
}

fn commit(
    path: &Path,
    opener: &Opener,
    state: &mut State,
    core: &Shared,
    txn: Txn,
) -> Result<Outcome, StoreError> {
    let open = match replace(state, State::Closed) {
        State::Open(open) => open,
        State::Closed => again(path, opener, state, core)?,
        State::Lost(reason) => {
            *state = State::Lost(reason.clone());
            return Err(damaged(path, &reason));
        }
    };
    let Some(revision) = core.lock().check(&txn) else {
        *state = State::Open(open);
        return Ok(Outcome::Stale);
    };
    let error = match quietly(|| write(&open, revision, &txn)) {
        Some(Ok(())) => {
            *state = State::Open(open);
            core.lock().apply(revision, txn);
            return Ok(Outcome::Done(revision));
        }
        Some(Err(error)) => of_redb(path, &error),
        None => contradictory(path),
    };
    // Whether it is on the disk only the disk knows.
    close(open);
    match again(path, opener, state, core) {
        Ok(open) => *state = State::Open(open),
        Err(then) => {
            let location = path.display().to_string();
            let reason = format!("{error}; and when it was read again: {then}");
            return Err(StoreError::Unknown { location, reason });
        }
    }
    if core.lock().revision() == revision {
        return Ok(Outcome::Done(revision));
    }
    Err(error)
}

/// Opens the file again.
fn again(
    path: &Path,
    opener: &Opener,
    state: &mut State,
    core: &Shared,
) -> Result<Database, StoreError> {
    let opened = reopen(path, opener, core);
    // Its lock is held by what was left open.
    if let Err(StoreError::Damaged { reason, .. } | StoreError::NotOurs { reason, .. }) = &opened {
        *state = State::Lost(format!("{reason}; culvertd has to be started again"));
    }
    opened
}

#[tonic::async_trait]
impl Store for FileStore {
    fn describe(&self) -> Description {
        Description { kind: "redb", location: self.path.display().to_string() }
    }

    async fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        self.core.read(prefix, at)
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let mut database = Arc::clone(&self.database).lock_owned().await;
        let (path, opener, core) = (self.path.clone(), self.opener.clone(), self.core.clone());
        // Runs to its end even if the caller goes away.
        let done =
            tokio::task::spawn_blocking(move || commit(&path, &opener, &mut database, &core, txn));
        done.await.unwrap_or_else(|error| {
            Err(StoreError::File { path: self.path.clone(), reason: error.to_string() })
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.core.lock().watch(prefix, after)
    }

    /// The only host of the store is alive when it is asked: nothing is kept.
    async fn hold(
        &self,
        _: &str,
        _: Vec<u8>,
        _: Duration,
        _: Revision,
    ) -> Result<Box<dyn Lease>, StoreError> {
        Ok(Box::new(Nothing))
    }
}

struct Nothing;

#[tonic::async_trait]
impl Lease for Nothing {
    async fn renew(&mut self, _: Option<Vec<u8>>) -> Result<(), StoreError> {
        Ok(())
    }
}

fn of_io(path: &Path, error: &io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), reason: error.to_string() }
}

fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

fn contradictory(path: &Path) -> StoreError {
    damaged(path, "its pages contradict each other")
}

fn of_database(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Locked(path.to_owned())
        }
        DatabaseError::UpgradeRequired(version) => {
            let reason = format!("redb's file format {version}, which this culvertd cannot read");
            StoreError::NotOurs { path: path.to_owned(), reason }
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == io::ErrorKind::InvalidData =>
        {
            let reason = "not a redb database".to_owned();
            StoreError::NotOurs { path: path.to_owned(), reason }
        }
        error => of_redb(path, &error.into()),
    }
}

fn of_redb(path: &Path, error: &redb::Error) -> StoreError {
    match error {
        redb::Error::Corrupted(reason) => damaged(path, reason),
        error => StoreError::File { path: path.to_owned(), reason: error.to_string() },
    }
}
