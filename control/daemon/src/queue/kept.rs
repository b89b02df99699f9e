//! The queue on the host's disk: a file like that of the embedded store, an entry for each change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use culvert_model::{ModelError, Object, ObjectKey, api};
use prost::Message;

use crate::change::differences;
use crate::cluster::check::Touched;
use crate::names::{HostName, Slot};
use crate::store::file::FileStore;
use crate::store::{Store, StoreError, Txn};
use crate::stored::{QueueEntry, QueueMeta};

/// Version of the entries.
const VERSION: u32 = 1;
const META: &str = "meta";
const CHANGE: &str = "change/";
/// The most reasons that are kept of a change that failed.
const REASONS_MAX: usize = 20;

/// Why a change was not written when the store was back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reasons: Vec<String>,
    pub(super) at_unix_ms: i64,
}

/// A queued change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) asked_unix_ms: i64,
    /// Whose objects of one host it changes.
    host: HostName,
    pub(super) touched: Vec<Touched>,
    /// Absent: it waits.
    pub(super) refused: Option<Refused>,
    /// Of it on the disk, when it was queued.
    pub(super) bytes: usize,
}

impl Entry {
    pub(super) fn new(asked_unix_ms: i64, host: HostName, touched: Vec<Touched>) -> Entry {
        let mut entry = Entry { asked_unix_ms, host, touched, refused: None, bytes: 0 };
        entry.bytes = entry.write().encoded_len();
        entry
    }

    /// It was not written, for these reasons.
    pub(super) fn refuse(&mut self, mut reasons: Vec<String>, at_unix_ms: i64) {
        if let Some(omitted) = reasons.len().checked_sub(REASONS_MAX).filter(|n| *n > 0) {
            reasons.truncate(REASONS_MAX);
            reasons.push(format!("... and {omitted} more"));
        }
        self.refused = Some(Refused { reasons, at_unix_ms });
    }

    fn write(&self) -> QueueEntry {
        let differences = differences(&self.touched);
        let refused = self.refused.clone().unwrap_or_default();
        QueueEntry {
            asked_unix_ms: self.asked_unix_ms,
            differences: differences.iter().map(Message::encode_to_vec).collect(),
            reasons: refused.reasons,
            failed_unix_ms: refused.at_unix_ms,
            host: self.host.to_string(),
        }
    }

    fn read(value: &[u8]) -> Result<Entry, String> {
        let entry = QueueEntry::decode(value).map_err(|error| error.to_string())?;
        let host = HostName::new(&entry.host).map_err(|error| error.to_string())?;
        let mut touched = Vec::new();
        for (edit, difference) in entry.differences.iter().enumerate() {
            touched.push(read_touched(difference, &host, edit)?);
        }
        let mut read = Entry::new(entry.asked_unix_ms, host, touched);
        if !entry.reasons.is_empty() {
            let (reasons, at_unix_ms) = (entry.reasons, entry.failed_unix_ms);
            read.refused = Some(Refused { reasons, at_unix_ms });
        }
        Ok(read)
    }
}

fn read_touched(difference: &[u8], host: &HostName, edit: usize) -> Result<Touched, String> {
    let wrong = |errors: Vec<ModelError>| {
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        errors.join("; ")
    };
    let difference = api::Difference::decode(difference).map_err(|error| error.to_string())?;
    let key = ObjectKey::try_from(difference.key.unwrap_or_default()).map_err(wrong)?;
    let object = |object: Option<api::Object>| -> Result<Option<Object>, String> {
        let Some(object) = object else { return Ok(None) };
        let object = Object::try_from(object).map_err(wrong)?;
        if object.key() == key {
            return Ok(Some(object));
        }
        Err(format!("it holds {} instead of {key}", object.key()))
    };
    let (before, after) = (object(difference.before)?, object(difference.after)?);
    Ok(Touched { slot: Slot::of(key, host), before, after, edit })
}

/// What the file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Number of the change that was queued last.
    pub(super) last: u64,
    /// The cluster for which it was; empty: none ever was.
    pub(super) cluster_id: String,
    pub(super) changes: BTreeMap<u64, Entry>,
}

/// The file.
pub(super) struct Kept {
    file: FileStore,
}

impl Kept {
    /// Opens the file, and reads what is there.
    pub(super) async fn open(path: &Path) -> Result<(Kept, Contents), StoreError> {
        let file = FileStore::open(path)?;
        let mut contents = Contents::default();
        let damaged = |key: &str, reason: String| StoreError::Damaged {
            path: PathBuf::from(path),
            reason: format!("{key}: {reason}"),
        };
        for entry in file.snapshot("", None).await?.entries {
            let key = entry.key.as_str();
            if key == META {
                let meta = QueueMeta::decode(entry.value.as_slice());
                let meta = meta.map_err(|error| damaged(key, error.to_string()))?;
                if meta.version != VERSION {
                    let reason = format!(
                        "its entries have version {}; legal is {VERSION}: use a culvertd of the version that wrote it",
                        meta.version
                    );
                    return Err(StoreError::NotOurs { path: path.to_owned(), reason });
                }
                contents.last = contents.last.max(meta.last);
                contents.cluster_id = meta.cluster_id;
                continue;
            }
            let number = key.strip_prefix(CHANGE).and_then(|number| number.parse::<u64>().ok());
            let Some(number) = number.filter(|number| *number > 0) else {
                return Err(damaged(key, "no entry of a queue".to_owned()));
            };
            let change = Entry::read(&entry.value).map_err(|reason| damaged(key, reason))?;
            contents.changes.insert(number, change);
            contents.last = contents.last.max(number);
        }
        Ok((Kept { file }, contents))
    }

    /// Keeps a change for a cluster, durably; `last` is the number of the last one that was queued.
    pub(super) async fn put(
        &self,
        number: u64,
        entry: &Entry,
        last: u64,
        cluster_id: &str,
    ) -> Result<(), StoreError> {
        let cluster_id = cluster_id.to_owned();
        let meta = QueueMeta { version: VERSION, last, cluster_id }.encode_to_vec();
        let puts = vec![(META.to_owned(), meta), (key(number), entry.write().encode_to_vec())];
        self.file.commit(Txn { puts, ..Txn::default() }).await.map(drop)
    }

    /// Forgets a change, durably.
    pub(super) async fn remove(&self, number: u64) -> Result<(), StoreError> {
        self.file.commit(Txn { deletes: vec![key(number)], ..Txn::default() }).await.map(drop)
    }
}

fn key(number: u64) -> String {
    // As long as the longest, so that they are in their order.
    format!("{CHANGE}{number:020}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let host = HostName::new("a").unwrap();
        let toml = "[underlay]\ninterface = \"wire\"\naddresses = [\"198.18.0.1\"]\n\
                    [[vnet]]\nid = \"blue\"\nvni = 100\n";
        let state = culvert_model::host_toml::read(toml).unwrap();
        let vnet = Object::Vnet(state.vnets().iter().next().unwrap().clone());
        let slot = Slot::of(vnet.key(), &host);
        let touched = Touched { slot, before: None, after: Some(vnet), edit: 0 };
        Entry::new(1, host, vec![touched])
    }

    #[tokio::test]
    async fn what_is_kept_is_read_again_and_numbers_are_not_used_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.redb");
        let (mut first, mut second) = (entry(), entry());
        second.refuse((0..50).map(|n| format!("reason {n}")).collect(), 7);
        first.asked_unix_ms = 5;
        {
            let (kept, contents) = Kept::open(&path).await.unwrap();
            assert_eq!((contents.last, contents.changes.len()), (0, 0));
            kept.put(1, &first, 1, "it").await.unwrap();
            kept.put(2, &second, 2, "it").await.unwrap();
            kept.put(3, &first, 3, "it").await.unwrap();
            kept.remove(3).await.unwrap();
        }
        let (_, Contents { last, cluster_id, changes }) = Kept::open(&path).await.unwrap();
        assert_eq!((last, cluster_id.as_str()), (3, "it"));
        assert_eq!(changes.into_iter().collect::<Vec<_>>(), [(1, first), (2, second.clone())]);
        let reasons = second.refused.unwrap().reasons;
        assert_eq!((reasons.len(), reasons[20].as_str()), (21, "... and 30 more"));
    }

    #[tokio::test]
    async fn another_version_and_what_cannot_be_read_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let newer = QueueMeta { version: 2, last: 9, ..QueueMeta::default() }.encode_to_vec();
        let misplaced = QueueEntry { host: "a".to_owned(), ..QueueEntry::default() };
        let no_host = QueueEntry::default().encode_to_vec();
        for (n, (key, value, said)) in [
            ("meta", newer, "version 2; legal is 1"),
            ("meta", vec![0xff], "damaged"),
            ("change/x", misplaced.encode_to_vec(), "change/x: no entry of a queue"),
            ("change/00000000000000000000", misplaced.encode_to_vec(), "no entry of a queue"),
            ("change/00000000000000000001", no_host, "change/00000000000000000001"),
            ("change/00000000000000000001", vec![0xff; 9], "change/00000000000000000001"),
        ]
        .into_iter()
        .enumerate()
        {
            let path = folder.path().join(format!("{n}.redb"));
            let puts = vec![(key.to_owned(), value)];
            let file = FileStore::open(&path).unwrap();
            file.commit(Txn { puts: puts.clone(), ..Txn::default() }).await.unwrap();
            drop(file);
            let error = Kept::open(&path).await.err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
            let entries = FileStore::open(&path).unwrap().snapshot("", None).await.unwrap().entries;
            assert_eq!(entries.into_iter().map(|e| (e.key, e.value)).collect::<Vec<_>>(), puts);
        }
    }
}
