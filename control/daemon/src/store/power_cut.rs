//! The embedded store on a disk that loses its power at any write.
//!
//! What was written since the last sync may be there or not, each sector for itself. Whatever is: the store
//! opens, and holds what was acknowledged, and of the transaction under way all or nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::file::{FileStore, initialise};
use super::{Outcome, Revision, Store, StoreError, Txn};

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Default)]
struct Disk {
    /// What reads see.
    image: Vec<u8>,
    /// What surely survives.
    durable: Vec<u8>,
    /// What may.
    pending: Vec<Op>,
    /// Writes, changes of length and syncs so far.
    steps: usize,
    /// The step that does not happen any more.
    cut_at: Option<usize>,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        match self.cut_at {
            Some(cut_at) if self.steps > cut_at => Err(io::Error::other("power cut")),
            _ => Ok(()),
        }
    }

    /// What is on the disk when the power is back: of each pending write the sectors that chance picks.
    fn after_cut(&self, mut chance: Chance) -> Vec<u8> {
        let mut image = self.durable.clone();
        for op in &self.pending {
            match op {
                Op::SetLen(len) => {
                    if chance.half() {
                        image.resize(usize::try_from(*len).unwrap(), 0);
                    }
                }
                Op::Write(offset, bytes) => {
                    let offset = usize::try_from(*offset).unwrap();
                    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                        let at = offset + n * SECTOR;
                        if chance.half() {
                            let end = (at + sector.len()).max(image.len());
                            image.resize(end, 0);
                            image[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        image
    }
}

/// Small, reproducible chance (xorshift).
#[derive(Clone, Copy)]
struct Chance(u64);

/// Everything that was pending survives, or nothing of it does.
const ALL: Chance = Chance(u64::MAX);
const NOTHING: Chance = Chance(0);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn half(&mut self) -> bool {
        if self.0 == ALL.0 || self.0 == NOTHING.0 {
            return self.0 == ALL.0;
        }
        self.next() >> 40 & 1 == 1
    }
}

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Disk>>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let bytes = disk.image.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.image.resize(usize::try_from(len).unwrap(), 0);
        disk.pending.push(Op::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.pending.clear();
        disk.durable = disk.image.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        let at = usize::try_from(offset).unwrap();
        let end = (at + data.len()).max(disk.image.len());
        disk.image.resize(end, 0);
        disk.image[at..at + data.len()].copy_from_slice(data);
        disk.pending.push(Op::Write(offset, data.to_vec()));
        Ok(())
    }
}

fn disk_with(image: Vec<u8>) -> Arc<Mutex<Disk>> {
    Arc::new(Mutex::new(Disk { durable: image.clone(), image, ..Disk::default() }))
}

fn open(disk: &Arc<Mutex<Disk>>) -> Result<FileStore, StoreError> {
    let disk = disk.clone();
    let opener = move || {
        let mut builder = redb::Builder::new();
        // Small, so that a short workload fills some.
        builder.set_cache_size(1 << 20);
        builder
            .create_with_backend(Backend(disk.clone()))
            .map_err(|error| StoreError::File { path: "disk".into(), reason: error.to_string() })
    };
    FileStore::open_by(Path::new("disk"), Arc::new(opener))
}

/// The file as it is after its creation, which happens under another name.
fn fresh() -> Vec<u8> {
    let disk = disk_with(Vec::new());
    let database = redb::Builder::new().create_with_backend(Backend(disk.clone())).unwrap();
    initialise(Path::new("disk"), &database).unwrap();
    drop(database);
    std::mem::take(&mut disk.lock().unwrap().image)
}

type Map = BTreeMap<String, Vec<u8>>;

/// Transactions of any size: new keys, other values, deletions.
fn transaction(n: usize, chance: &mut Chance) -> Txn {
    let key = |n: u64| format!("mapping/blue/10.0.{}.{}", n / 256, n % 256);
    let count = if n % 5 == 4 { 300 } else { 1 + n % 3 };
    let mut txn = Txn::default();
    for _ in 0..count {
        let value = vec![u8::try_from(n % 250).unwrap(); 20 + (chance.next() % 200) as usize];
        let key = key(chance.next() % 400);
        txn.puts.retain(|(known, _)| *known != key);
        txn.puts.push((key, value));
    }
    let gone = key(chance.next() % 400);
    if txn.puts.iter().all(|(known, _)| *known != gone) {
        txn.deletes.push(gone);
    }
    txn
}

fn applied(map: &Map, txn: &Txn) -> Map {
    let mut map = map.clone();
    for key in &txn.deletes {
        map.remove(key);
    }
    map.extend(txn.puts.iter().cloned());
    map
}

async fn held(store: &FileStore) -> Map {
    let entries = store.snapshot("", None).await.unwrap().entries.into_iter();
    entries.map(|entry| (entry.key, entry.value)).collect()
}

/// Runs transactions until the power is cut; what was acknowledged, and what may be there instead.
async fn run(disk: &Arc<Mutex<Disk>>, transactions: usize) -> (u64, Map, Map) {
    let mut chance = Chance(7);
    let mut map = Map::new();
    let mut revision = 0;
    let Ok(store) = open(disk) else { return (0, map.clone(), map) };
    for n in 0..transactions {
        let txn = transaction(n, &mut chance);
        let next = applied(&map, &txn);
        match store.commit(txn).await {
            Ok(Outcome::Done(at)) => (revision, map) = (at, next),
            Ok(Outcome::Stale) => panic!("nothing was expected"),
            Err(_) => return (revision, map, next),
        }
    }
    (revision, map.clone(), map)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_acknowledged_change_survives_a_power_cut_at_every_write() {
    const TRANSACTIONS: usize = 12;
    let image = fresh();
    let whole = disk_with(image.clone());
    run(&whole, TRANSACTIONS).await;
    let steps = whole.lock().unwrap().steps;
    assert!(steps > 60, "{steps} steps are no test");
    let (mut older, mut newer) = (0, 0);
    for cut_at in 0..=steps {
        let disk = disk_with(image.clone());
        disk.lock().unwrap().cut_at = Some(cut_at);
        let (revision, acknowledged, under_way) = run(&disk, TRANSACTIONS).await;
        let some = (1..=3).map(|seed| Chance((seed << 32 ^ (cut_at as u64 + 1)) | 1 << 20));
        for (seed, chance) in [ALL, NOTHING].into_iter().chain(some).enumerate() {
            let after = disk_with(disk.lock().unwrap().after_cut(chance));
            let store = open(&after).unwrap_or_else(|e| panic!("cut at {cut_at}: {e}"));
            let found = held(&store).await;
            let at = store.snapshot("", None).await.unwrap().revision;
            match (found == acknowledged, found == under_way) {
                (true, _) if at == revision => older += 1,
                (_, true) if at == revision + 1 => newer += 1,
                _ => panic!(
                    "cut at {cut_at}, seed {seed}: revision {at} with {} entries, acknowledged {revision} with {}",
                    found.len(),
                    acknowledged.len()
                ),
            }
            // It goes on from there.
            let more = Txn { puts: vec![("more".to_owned(), vec![1])], ..Txn::default() };
            assert_eq!(store.commit(more).await.unwrap(), Outcome::Done(at + 1));
        }
    }
    // Both ends of a commit were cut.
    assert!(older > 0 && newer > 0, "{older} before, {newer} after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_error_is_told_and_the_store_goes_on_when_the_disk_does() {
    let disk = disk_with(fresh());
    let store = open(&disk).unwrap();
    let put = |n: u8| Txn { puts: vec![("key".to_owned(), vec![n])], ..Txn::default() };
    assert_eq!(store.commit(put(1)).await.unwrap(), Outcome::Done(1));
    let now = disk.lock().unwrap().steps;
    disk.lock().unwrap().cut_at = Some(now);
    assert!(store.commit(put(2)).await.is_err());
    assert!(store.commit(put(3)).await.is_err());
    disk.lock().unwrap().cut_at = None;
    let Outcome::Done(revision) = store.commit(put(4)).await.unwrap() else { panic!("stale") };
    let snapshot = store.snapshot("", None).await.unwrap();
    assert_eq!((snapshot.revision, snapshot.entries[0].value.as_slice()), (revision, &[4][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_later_is_told_until_the_next_start() {
    let disk = disk_with(fresh());
    let backend = disk.clone();
    let opened = AtomicBool::new(false);
    let opener = move || {
        // What the real opener says of a file whose pages contradict each other.
        if opened.swap(true, Relaxed) {
            let (path, reason) = ("disk".into(), "bad pages".to_owned());
            return Err(StoreError::Damaged { path, reason });
        }
        Ok(redb::Builder::new().create_with_backend(Backend(backend.clone())).unwrap())
    };
    let store = FileStore::open_by(Path::new("disk"), Arc::new(opener)).unwrap();
    let put = |n: u8| Txn { puts: vec![("key".to_owned(), vec![n])], ..Txn::default() };
    assert_eq!(store.commit(put(1)).await.unwrap(), Outcome::Done(1));
    let now = disk.lock().unwrap().steps;
    disk.lock().unwrap().cut_at = Some(now);
    // Whether it was written cannot be said any more.
    let error = store.commit(put(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
    for said in ["power cut", "bad pages"] {
        assert!(error.to_string().contains(said), "{error}");
    }
    for _ in 0..2 {
        let error = store.commit(put(3)).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("has to be started again"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_unseen_is_seen_before_the_next_change() {
    let (mut happened, mut not) = (0, 0);
    for steps in 0..40 {
        let disk = disk_with(fresh());
        let backend = disk.clone();
        let failing = Arc::new(AtomicBool::new(false));
        let fails = failing.clone();
        let opener = move || {
            if fails.load(Relaxed) {
                return Err(StoreError::File { path: "disk".into(), reason: "not now".to_owned() });
            }
            Ok(redb::Builder::new().create_with_backend(Backend(backend.clone())).unwrap())
        };
        let store = FileStore::open_by(Path::new("disk"), Arc::new(opener)).unwrap();
        let put = |expect: Revision| Txn {
            // Of the same value each time, as guards are.
            puts: vec![("guard".to_owned(), vec![1])],
            expect: vec![("guard".to_owned(), expect)],
            ..Txn::default()
        };
        assert_eq!(store.commit(put(0)).await.unwrap(), Outcome::Done(1));
        let now = disk.lock().unwrap().steps;
        disk.lock().unwrap().cut_at = Some(now + steps);
        failing.store(true, Relaxed);
        let Err(error) = store.commit(put(1)).await else { break };
        assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
        disk.lock().unwrap().cut_at = None;
        failing.store(false, Relaxed);
        match store.commit(put(1)).await.unwrap() {
            Outcome::Stale => happened += 1,
            Outcome::Done(revision) => {
                assert_eq!(revision, 2);
                not += 1;
            }
        }
    }
    assert!(happened > 0 && not > 0, "{happened} happened, {not} did not");
}
