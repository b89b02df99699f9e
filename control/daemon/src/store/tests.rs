//! What every store does alike.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::etcd::EtcdStore;
use super::file::FileStore;
use super::memory::MemoryStore;
use super::{Change, Changes, Outcome, Snapshot, Store, StoreError, Txn};

/// An etcd of one member, which ends with this value.
struct Etcd {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl Etcd {
    fn start() -> Etcd {
        let folder = tempfile::tempdir().unwrap();
        // Two ports that were free a moment ago.
        let ports: Vec<_> =
            (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let urls: Vec<_> = ports
            .iter()
            .map(|port| format!("http://127.0.0.1:{}", port.local_addr().unwrap().port()))
            .collect();
        drop(ports);
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &urls[0], "--advertise-client-urls", &urls[0]])
            .args(["--listen-peer-urls", &urls[1], "--initial-advertise-peer-urls", &urls[1]])
            .args(["--initial-cluster", &format!("default={}", urls[1])])
            .args(["--unsafe-no-fsync", "--logger", "zap"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = process.expect("etcd runs: scripts/setup installs etcd-server");
        Etcd { process, url: urls[0].clone(), _folder: folder }
    }

    async fn store(&self, prefix: &str) -> EtcdStore {
        let store = EtcdStore::new(std::slice::from_ref(&self.url), prefix, None).unwrap();
        for _ in 0..200 {
            if store.snapshot("", None).await.is_ok() {
                return store;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer on {}", self.url);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn put(key: &str, value: &str) -> (String, Vec<u8>) {
    (key.to_owned(), value.as_bytes().to_vec())
}

fn done(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done(revision) => revision,
        Outcome::Stale => panic!("stale"),
    }
}

async fn transactions(store: &dyn Store) {
    let first =
        Txn { puts: vec![put("a/1", "x"), put("a/2", "y"), put("b", "z")], ..Txn::default() };
    let first = done(store.commit(first).await.unwrap());
    let snapshot = store.snapshot("a/", None).await.unwrap();
    let keys: Vec<_> = snapshot.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a/1", "a/2"]);
    assert!(snapshot.entries.iter().all(|entry| entry.changed == first));

    // An expectation that fails keeps all of it from happening.
    let stale = Txn {
        expect: vec![("a/1".to_owned(), first), ("c".to_owned(), first)],
        puts: vec![put("a/1", "other")],
        deletes: vec!["b".to_owned()],
    };
    assert_eq!(store.commit(stale).await.unwrap(), Outcome::Stale);
    assert_eq!(store.snapshot("a/", None).await.unwrap().entries, snapshot.entries);

    let mut watch = store.watch("a/", first).await.unwrap();
    let second = Txn {
        expect: vec![("a/1".to_owned(), first), ("c".to_owned(), 0)],
        puts: vec![put("a/1", "other"), put("b", "unseen")],
        deletes: vec!["a/2".to_owned()],
    };
    let second = done(store.commit(second).await.unwrap());
    assert!(second > first);
    let third = Txn { puts: vec![put("a/3", "w")], ..Txn::default() };
    let third = done(store.commit(third).await.unwrap());
    let then = store.snapshot("a/", Some(first)).await.unwrap();
    assert_eq!(then, Snapshot { revision: first, ..snapshot });
    let then = store.snapshot("a/", Some(second)).await.unwrap().entries;
    let then: Vec<_> = then.iter().map(|entry| (entry.key.as_str(), entry.changed)).collect();
    assert_eq!(then, [("a/1", second)]);
    let expected =
        [(second, vec![("a/1", Some("other")), ("a/2", None)]), (third, vec![("a/3", Some("w"))])];
    // One that begins later, in the past, sees the same.
    let mut again = store.watch("a/", first).await.unwrap();
    for watch in [&mut watch, &mut again] {
        for (revision, changes) in &expected {
            let mut seen = watch.recv().await.unwrap().unwrap();
            seen.changes.sort_by(|a, b| a.key.cmp(&b.key));
            let changes = changes.iter().map(|(key, value)| Change {
                key: (*key).to_owned(),
                value: value.map(|value| value.as_bytes().to_vec()),
            });
            let changes = changes.collect();
            assert_eq!(seen, Changes { revision: *revision, changes });
        }
    }
}

async fn leases(store: &dyn Store) {
    let ttl = Duration::from_secs(2);
    let mut lease = store.hold("live/a", b"1".to_vec(), ttl, 0).await.unwrap();
    let held = store.hold("live/a", b"2".to_vec(), ttl, 0).await;
    assert!(matches!(held, Err(StoreError::Held { .. })));
    for n in 0..4_u8 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lease.renew(Some(vec![n])).await.unwrap();
        let entries = store.snapshot("live/", None).await.unwrap().entries;
        assert_eq!(entries[0].value, [n]);
    }
    let at = store.snapshot("live/", None).await.unwrap();
    // The same machine, started anew, takes its own place.
    let mut next = store.hold("live/a", vec![9], ttl, at.entries[0].changed).await.unwrap();
    let mut watch =
        store.watch("live/", store.snapshot("", None).await.unwrap().revision).await.unwrap();
    drop(lease);
    next.renew(None).await.unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(8), watch.recv()).await;
    let gone = gone.expect("the lease ends").unwrap().unwrap();
    assert_eq!(gone.changes, [Change { key: "live/a".to_owned(), value: None }]);
    assert!(matches!(next.renew(None).await, Err(StoreError::LeaseLost { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_store_in_memory() {
    let store = MemoryStore::new();
    transactions(&store).await;
    leases(&store).await;
}

#[tokio::test]
async fn a_store_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = FileStore::open(&path).unwrap();
    transactions(&store).await;
    let before = store.snapshot("", None).await.unwrap();
    assert!(matches!(FileStore::open(&path), Err(StoreError::Locked(_))));
    drop(store);
    let store = FileStore::open(&path).unwrap();
    assert_eq!(store.snapshot("", None).await.unwrap(), before);
    // What was before the start is not known any more as changes.
    assert!(matches!(store.watch("", 0).await, Err(StoreError::Compacted { at: 0 })));
}

#[tokio::test]
async fn a_store_in_etcd() {
    let etcd = Etcd::start();
    let store = etcd.store("/one/").await;
    transactions(&store).await;
    leases(&store).await;
    // Another prefix is another store.
    assert_eq!(etcd.store("/two/").await.snapshot("", None).await.unwrap().entries, []);
    // More than etcd takes at a time is refused by name.
    let puts = (0..200).map(|n| put(&format!("n/{n}"), "x")).collect();
    let error = store.commit(Txn { puts, ..Txn::default() }).await.unwrap_err();
    assert!(error.to_string().contains("200 parts"), "{error}");
    assert!(error.to_string().contains("--max-txn-ops"), "{error}");
    assert_eq!(store.snapshot("n/", None).await.unwrap().entries, []);
    drop(etcd);
    let error = store.snapshot("", None).await.unwrap_err();
    assert!(error.is_outage(), "{error}");
    let error = store.commit(Txn::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
}

#[test]
fn files_that_are_no_state_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "[underlay]\n".repeat(1000)).unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let other = folder.path().join("other");
    drop(redb::Database::create(&other).unwrap());
    for path in [&text, &empty, &other] {
        let before = std::fs::read(path).unwrap();
        let error = FileStore::open(path).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, StoreError::NotOurs { .. }), "{}: {message}", path.display());
        assert!(message.contains("not a state file of culvertd"), "{message}");
        let after = std::fs::read(path).unwrap();
        assert!(before == after || *path == other, "{} was changed", path.display());
    }
}
