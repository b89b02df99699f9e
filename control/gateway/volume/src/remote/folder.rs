//! Volumes in a local folder. A file system has no conditional put, so each compare-and-swap runs under
//! a lock on the folder's `lock` file; files and folders are synced before a put is answered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};

use super::{Answer, ObjectVersion, Store, StoreError};
use crate::format::crc32c;

/// A folder that holds volumes.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: Arc<PathBuf>,
}

impl FolderStore {
    /// Opens the folder and makes it if need be.
    pub fn open(root: &Path) -> Result<FolderStore, StoreError> {
        fs::create_dir_all(root).map_err(|e| translate(&root.display().to_string(), &e))?;
        Ok(FolderStore { root: Arc::new(root.to_owned()) })
    }

    fn run<'a, T: Send + 'static>(
        &'a self,
        path: &'a str,
        job: impl FnOnce(&Path, &Path) -> Result<T, StoreErrorOrIo> + Send + 'static,
    ) -> Answer<'a, T> {
        let root = Arc::clone(&self.root);
        Box::pin(async move {
            let at = root.join(path);
            let done = tokio::task::spawn_blocking(move || job(&root, &at)).await;
            match done {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(StoreErrorOrIo::Conflict)) => {
                    Err(StoreError::Conflict { path: path.to_owned() })
                }
                Ok(Err(StoreErrorOrIo::Io(e))) => Err(translate(path, &e)),
                Err(e) => {
                    Err(StoreError::Unavailable { path: path.to_owned(), reason: e.to_string() })
                }
            }
        })
    }
}

enum StoreErrorOrIo {
    Conflict,
    Io(io::Error),
}

impl From<io::Error> for StoreErrorOrIo {
    fn from(error: io::Error) -> Self {
        StoreErrorOrIo::Io(error)
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

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a temporary file beside `at`, synced.
fn temporary(root: &Path, at: &Path, data: &[u8]) -> io::Result<PathBuf> {
    let folder = at.parent().unwrap_or(root);
    if !folder.is_dir() {
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
    linked?;
    sync_folder(at.parent().unwrap_or(root))
}

impl Store for FolderStore {
    fn get<'a>(&'a self, path: &'a str) -> Answer<'a, (Bytes, ObjectVersion)> {
        self.run(path, |_, at| {
            let mut data = Vec::new();
            File::open(at)?.read_to_end(&mut data)?;
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
            if version_of(&fs::read(at)?) != version {
                return Err(StoreErrorOrIo::Conflict);
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
    use super::*;

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
        super::super::probe(&store, 7).await.unwrap();
        assert_eq!(store.list().await.unwrap(), Vec::<String>::new());
        store.create("a/pack/x", Bytes::from_static(b"0123")).await.unwrap();
        assert!(matches!(
            store.create("a/pack/x", Bytes::new()).await,
            Err(StoreError::Conflict { .. })
        ));
        assert_eq!(store.get_range("a/pack/x", 1..3).await.unwrap(), "12");
        assert!(store.get_range("a/pack/x", 3..9).await.is_err());
        assert!(matches!(store.get("b/root").await, Err(StoreError::NotFound { .. })));
        assert_eq!(store.list().await.unwrap(), ["a"]);
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
