//! What a host remembers beside the store: which machine it is, which cluster it is of, the cluster as it
//! was last known, and where changes wait for the store.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::follow::Known;
use crate::store::file::FileStore;
use crate::store::{Store, StoreError, Txn};
use crate::stored::{JoinError, SCHEMA};
use crate::time::random_id;

/// Name of the file that holds the id of the host's cluster.
pub const CLUSTER_FILE: &str = "cluster";
const MACHINE_FILE: &str = "machine";
const CACHE_FILE: &str = "cache.redb";
const QUEUE_FILE: &str = "queue.redb";
/// How often at most it is written.
const CACHE_PAUSE: Duration = Duration::from_secs(1);

/// The folder of what a host remembers.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Uses a folder, and makes it where it is missing.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(path: &Path) -> Result<StateDir, JoinError> {
        // It holds keys: of the pairs of VTEPs, and those to other stores.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| memory(path, &error))?;
        Ok(StateDir(path.to_owned()))
    }

    /// The embedded store's file.
    pub fn state_file(&self) -> PathBuf {
        self.0.join("state.redb")
    }

    /// The file of changes that wait for a store of many hosts.
    pub fn queue_file(&self) -> PathBuf {
        self.0.join(QUEUE_FILE)
    }

    /// Random, of this machine: made once.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn machine(&self) -> Result<String, JoinError> {
        let path = self.0.join(MACHINE_FILE);
        if let Some(id) = read(&path)? {
            return Ok(id);
        }
        let id = random_id()?;
        write(&path, &id)?;
        Ok(id)
    }

    /// The cluster that the host is of, and the file that says so.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn cluster(&self) -> Result<Option<(String, String)>, JoinError> {
        let path = self.0.join(CLUSTER_FILE);
        Ok(read(&path)?.map(|id| (id, path.display().to_string())))
    }

    /// Remembers the cluster.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn set_cluster(&self, id: &str) -> Result<(), JoinError> {
        let path = self.0.join(CLUSTER_FILE);
        match read(&path)? {
            Some(known) if known == id => Ok(()),
            _ => write(&path, id),
        }
    }

    /// Opens what is remembered of a store of many hosts. What is of another cluster or version is forgotten.
    ///
    /// # Errors
    /// As of [`FileStore::open`].
    pub async fn cache(&self, cluster_id: Option<&str>) -> Result<Cache, StoreError> {
        let store = FileStore::open(&self.0.join(CACHE_FILE))?;
        let snapshot = store.snapshot("", None).await?;
        let written = Cluster::read(&snapshot);
        let ours = written
            .meta
            .as_ref()
            .is_some_and(|meta| meta.schema == SCHEMA && cluster_id == Some(&meta.cluster_id));
        if ours || snapshot.entries.is_empty() {
            return Ok(Cache { store, written });
        }
        tracing::warn!("what is remembered is of another cluster or version, and forgotten");
        let deletes = snapshot.entries.into_iter().map(|entry| entry.key).collect();
        store.commit(Txn { deletes, ..Txn::default() }).await?;
        Ok(Cache { store, written: Cluster::default() })
    }
}

/// The cluster as it was last known, for a host that starts while the store is away.
pub struct Cache {
    store: FileStore,
    /// What the file holds.
    written: Cluster,
}

impl Cache {
    /// What is remembered; `None`: nothing yet.
    pub fn read(&self) -> Option<Cluster> {
        self.written.meta.as_ref()?;
        Some(Cluster { contents: Some(BTreeSet::new()), ..self.written.clone() })
    }

    /// Remembers what the follower knows, until the follower ends.
    pub async fn keep(mut self, mut known: watch::Receiver<Arc<Known>>) {
        while known.changed().await.is_ok() {
            let now = Arc::clone(&known.borrow_and_update());
            if !now.from_cache
                && now.cluster.meta.is_some()
                && let Err(error) = self.write(&now.cluster).await
            {
                tracing::warn!(%error, "the cluster as it is now is not remembered");
            }
            tokio::time::sleep(CACHE_PAUSE).await;
        }
    }

    async fn write(&mut self, cluster: &Cluster) -> Result<(), StoreError> {
        // That leases were renewed is worth no write.
        if cluster.content == self.written.content {
            return Ok(());
        }
        let mut txn = Txn::default();
        for (key, value) in cluster.entries_since(&self.written) {
            match value {
                Some(value) => txn.puts.push((key, value)),
                None => txn.deletes.push(key),
            }
        }
        if !(txn.puts.is_empty() && txn.deletes.is_empty()) {
            self.store.commit(txn).await?;
        }
        self.written = cluster.clone();
        Ok(())
    }
}

fn memory(path: &Path, error: &io::Error) -> JoinError {
    JoinError::Memory { file: path.display().to_string(), reason: error.to_string() }
}

/// The one line of a file; `None`: there is no file.
fn read(path: &Path) -> Result<Option<String>, JoinError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(memory(path, &error)),
    };
    let line = text.trim();
    let legal = (1..=128).contains(&line.len()) && line.bytes().all(|b| b.is_ascii_graphic());
    if legal {
        return Ok(Some(line.to_owned()));
    }
    Err(JoinError::Memory {
        file: path.display().to_string(),
        reason: format!("{line:?}: legal is one line of 1 to 128 printable characters"),
    })
}

/// Writes a file as a whole, or not.
fn write(path: &Path, line: &str) -> Result<(), JoinError> {
    let new = path.with_extension("new");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| memory(path, &error))
}
