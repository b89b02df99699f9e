//! Volumes in a local folder. A file system has no conditional put, so each compare-and-swap runs under
//! a lock on the folder's `lock` file; files and folders are synced before a put is answered.
//!
//! The folder may be a mount of another machine that does not answer, for ever perhaps. Threads that wait for it
//! are the store's own: those of the cache and of its clients go on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

use super::{Answer, ObjectVersion, Store, StoreError};
use crate::format::crc32c;
use crate::format::root::MAX_BYTES;

/// Operations at a time, each of which has a thread.
const THREADS: usize = 64;

/// A folder that holds volumes. Clones share its threads.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: Arc<PathBuf>,
    threads: Arc<Threads>,
}

/// Threads of the store.
#[derive(Debug)]
struct Threads {
    /// Permits to use one.
    places: Arc<Semaphore>,
    handle: Handle,
    /// What they belong to; there until this is dropped.
    runtime: Option<Runtime>,
}

impl Threads {
    fn new() -> io::Result<Threads> {
        let threads = Builder::new_current_thread()
            .max_blocking_threads(THREADS)
            .thread_name("store-folder")
            .build()?;
        let (places, handle) = (Arc::new(Semaphore::new(THREADS)), threads.handle().clone());
        Ok(Threads { places, handle, runtime: Some(threads) })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waiting for those that hang.
            runtime.shutdown_background();
        }
    }
}

impl FolderStore {
    /// Opens the folder, and makes it if need be, for its owner alone.
    pub fn open(root: &Path) -> Result<FolderStore, StoreError> {
        let path = root.display().to_string();
        let failed = |e: io::Error| translate(&path, &e);
        if root.exists() && !root.is_dir() {
            return Err(StoreError::Denied { path, reason: "it is not a folder".to_owned() });
        }
        if !root.is_dir() {
            // It holds what tenants store. Who is to read it as well is whoever made it to say.
            DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        }
        let threads = Arc::new(Threads::new().map_err(failed)?);
        Ok(FolderStore { root: Arc::new(root.to_owned()), threads })
    }

    fn run<'a, T: Send + 'static>(
        &'a self,
        path: &'a str,
        job: impl FnOnce(&Path, &Path) -> Result<T, Failure> + Send + 'static,
    ) -> Answer<'a, T> {
        let unavailable = move |reason| StoreError::Unavailable { path: path.to_owned(), reason };
        Box::pin(async move {
            let place = Arc::clone(&self.threads.places).acquire_owned().await;
            let place = place.map_err(|e| unavailable(e.to_string()))?;
            let root = Arc::clone(&self.root);
            let at = root.join(path);
            let done = self.threads.handle.spawn_blocking(move || {
                let done = job(&root, &at);
                // With the job, not with who waits for it: one that hangs has its thread still.
                drop(place);
                done
            });
            match done.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(Failure::Conflict)) => Err(StoreError::Conflict { path: path.to_owned() }),
                Ok(Err(Failure::TooLarge { bytes, limit })) => {
                    Err(StoreError::TooLarge { path: path.to_owned(), bytes, limit })
                }
                Ok(Err(Failure::Io(e))) => Err(translate(path, &e)),
                Err(e) => Err(unavailable(e.to_string())),
            }
        })
    }
}

/// What an operation failed with.
enum Failure {
    Conflict,
    TooLarge { bytes: u64, limit: usize },
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

fn translate(path: &str, error: &io::Error) -> StoreError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound { path },
        io::ErrorKind::AlreadyExists => StoreError::Conflict { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::Denied { path, reason: error.to_string() }
        }
        _ => StoreError::Unavailable { path, reason: error.to_string() },
    }
}

/// Roots are small and hold a random nonce, so their content tells versions apart.
fn version_of(data: &[u8]) -> ObjectVersion {
    ObjectVersion(format!("{:x}-{:08x}", data.len(), crc32c(data)))
}

fn lock(root: &Path) -> io::Result<Flock<File>> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
}

/// Reads a file of at most `limit` bytes.
fn read(at: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut file = File::open(at)?;
    let mut data = Vec::new();
    (&mut file).take((limit as u64).saturating_add(1)).read_to_end(&mut data)?;
    if data.len() > limit {
        return Err(Failure::TooLarge { bytes: file.metadata()?.len(), limit });
    }
    Ok(data)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a temporary file beside `at`, synced.
fn temporary(root: &Path, at: &Path, data: &[u8]) -> io::Result<PathBuf> {
    let folder = at.parent().unwrap_or(root);
    if !folder.is_dir() {
        if !root.is_dir() {
            // Perhaps it is a mount that went away. Whoever made it said who may read it.
            return Err(io::Error::other("the store's folder is gone"));
        }
        fs::create_dir_all(folder)?;
        let mut made = folder;
        while let Some(parent) = made.parent() {
            sync_folder(parent)?;
            if parent == root {
                break;
            }
            made = parent;
        }
    }
    let name = at.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let nonce = crate::random();
    let path = folder.join(format!(".{name}.{nonce:016x}"));
    let write = || {
        let mut file = OpenOptions::new().create_new(true).write(true).open(&path)?;
        file.write_all(data)?;
        file.sync_all()
    };
    if let Err(e) = write() {
        let _ = fs::remove_file(&path);
        return Err(e);
    }
    Ok(path)
}

fn create(root: &Path, at: &Path, data: &[u8]) -> io::Result<()> {
    let temporary = temporary(root, at, data)?;
    // A hard link fails if the name is there, which a rename does not.
    let linked = fs::hard_link(&temporary, at);
    fs::remove_file(&temporary)?;
    // Also where the name is there already: whoever linked it may not have come as far as this, and who is told that
    // it is there may take an attempt of its own for done.
    sync_folder(at.parent().unwrap_or(root))?;
    linked
}

impl Store for FolderStore {
    fn get<'a>(&'a self, path: &'a str, limit: usize) -> Answer<'a, (Bytes, ObjectVersion)> {
        self.run(path, move |_, at| {
            let data = read(at, limit)?;
            let version = version_of(&data);
            Ok((Bytes::from(data), version))
        })
    }

    fn get_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        self.run(path, move |_, at| {
            let len = usize::try_from(range.end.saturating_sub(range.start))
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let mut data = vec![0; len];
            File::open(at)?.read_exact_at(&mut data, range.start)?;
            Ok(Bytes::from(data))
        })
    }

    fn create<'a>(&'a self, path: &'a str, data: Bytes) -> Answer<'a, ObjectVersion> {
        self.run(path, move |root, at| {
            create(root, at, &data)?;
            Ok(version_of(&data))
        })
    }

    fn replace<'a>(
        &'a self,
        path: &'a str,
        data: Bytes,
        version: &'a ObjectVersion,
    ) -> Answer<'a, ObjectVersion> {
        let version = version.clone();
        self.run(path, move |root, at| {
            let _lock = lock(root)?;
            // Nothing that is replaced is longer than a root.
            let found = match read(at, MAX_BYTES) {
                Err(Failure::TooLarge { .. }) => return Err(Failure::Conflict),
                found => found?,
            };
            if version_of(&found) != version {
                return Err(Failure::Conflict);
            }
            let temporary = temporary(root, at, &data)?;
            fs::rename(&temporary, at)?;
            sync_folder(at.parent().unwrap_or(root))?;
            Ok(version_of(&data))
        })
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        self.run("", |root, _| {
            let mut names = Vec::new();
            for entry in fs::read_dir(root)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
            names.sort();
            Ok(names)
        })
    }

    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()> {
        self.run(path, |root, at| {
            match fs::remove_file(at) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
            // Folders go with their last object; one that is not empty stays.
            let mut folder = at.parent();
            while let Some(path) = folder.filter(|path| *path != root) {
                if fs::remove_dir(path).is_err() {
                    break;
                }
                folder = path.parent();
            }
            Ok(())
        })
    }

    fn name(&self) -> String {
        self.root.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    struct TempFolder(PathBuf);

    impl Drop for TempFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn folder() -> TempFolder {
        TempFolder(std::env::temp_dir().join(format!("culvert-store-{:016x}", crate::random())))
    }

    #[tokio::test]
    async fn a_folder_keeps_conditions_and_is_clean_after_the_probe() {
        let folder = folder();
        let store = FolderStore::open(&folder.0).unwrap();
        super::super::probe(&store, 7, WITHIN).await.unwrap();
        assert_eq!(store.list().await.unwrap(), Vec::<String>::new());
        store.create("a/pack/x", Bytes::from_static(b"0123")).await.unwrap();
        assert!(matches!(
            store.create("a/pack/x", Bytes::new()).await,
            Err(StoreError::Conflict { .. })
        ));
        assert_eq!(store.get_range("a/pack/x", 1..3).await.unwrap(), "12");
        assert!(store.get_range("a/pack/x", 3..9).await.is_err());
        assert!(matches!(store.get("b/root", 9).await, Err(StoreError::NotFound { .. })));
        assert_eq!(store.list().await.unwrap(), ["a"]);
        assert_eq!(store.get("a/pack/x", 4).await.unwrap().0, "0123");
        let refused = store.get("a/pack/x", 3).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { bytes: 4, limit: 3, .. })));
    }

    /// A pipe that nobody writes to, as a mount that does not answer.
    #[test]
    fn a_folder_that_does_not_answer_takes_no_thread_of_others() {
        let folder = folder();
        let store = FolderStore::open(&folder.0).unwrap();
        let pipe = folder.0.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let lane = Builder::new_current_thread().enable_time().max_blocking_threads(2).build();
        lane.unwrap().block_on(async {
            let moment = Duration::from_millis(300);
            // More than there are threads.
            let gets = (0..THREADS + 3).map(|_| tokio::time::timeout(moment, store.get("pipe", 9)));
            let answers = futures_util::future::join_all(gets).await;
            let cached = tokio::task::spawn_blocking(|| 7);
            let cached = tokio::time::timeout(Duration::from_secs(5), cached).await;
            // It answers again, whatever came of this.
            let mut writer = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
            writer.write_all(&[1; 1000]).unwrap();
            while store.threads.places.available_permits() < THREADS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(writer);
            assert!(answers.iter().all(Result::is_err), "a pipe was read");
            assert_eq!(cached.expect("the lane's threads are taken").unwrap(), 7);
            store.create("a/root", Bytes::from_static(b"1")).await.unwrap();
            assert_eq!(store.get("a/root", 9).await.unwrap().0, "1");
        });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_replacements_of_one_version_one_wins() {
        let folder = folder();
        let store = FolderStore::open(&folder.0).unwrap();
        let version = store.create("a/root", Bytes::from_static(b"0")).await.unwrap();
        let tasks: Vec<_> = (1..=16_u8)
            .map(|i| {
                let (store, version) = (store.clone(), version.clone());
                tokio::spawn(async move {
                    store.replace("a/root", Bytes::from(vec![i; 10]), &version).await.is_ok()
                })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            won += usize::from(task.await.unwrap());
        }
        assert_eq!(won, 1);
    }
}
