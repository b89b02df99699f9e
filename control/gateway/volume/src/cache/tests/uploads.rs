//! Uploads that fail, take long, or must not be made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::state::Key;
use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{LOG, block, config, disk_len, in_log, layout, name, run, slot_of};
use super::stores::{Gate, Slow};
use crate::disk::sim::{Rng, SimDisk, Survivors};
use crate::error::Error;
use crate::format::slot_header::HEADER_BYTES;
use crate::format::volume_page::Durability;
use crate::remote::Store;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// So long that nobody waits for it.
pub(super) const FOREVER: Duration = Duration::from_secs(1 << 25);
const SLOTS: u64 = 8;
/// What one request writes.
const PIECE: u64 = 1 << 16;

/// Options of a cache that uploads nothing and moves nothing to slots unless it is asked to.
fn idle(seed: u64) -> Config {
    Config { upload_interval: FOREVER, idle_destage: FOREVER, ..config(seed) }
}

async fn new_cache(disk: &SimDisk, store: Arc<dyn Store>, config: Config) -> Cache {
    Cache::create(Arc::new(disk.clone()), store, LOG, config).await.unwrap()
}

/// A new cache of another gateway.
async fn other(store: &SimStore) -> Cache {
    let disk = SimDisk::new(disk_len(SLOTS), 9);
    new_cache(&disk, Arc::new(store.clone()), config(9)).await
}

/// Takes all headers out of memory. None is newer than the one on the disk.
fn drop_headers(cache: &Cache) {
    let mut state = cache.inner.state();
    let state = &mut *state;
    for slot in &mut state.slots {
        assert!(!slot.stale && !slot.being_written);
        if slot.header.take().is_some() {
            state.headers_in_memory -= 1;
        }
    }
}

/// What counts as dirty in slots must be what the slots have.
fn assert_counted(cache: &Cache) {
    let state = cache.inner.state();
    for (id, volume) in &state.volumes {
        let slots = state.slots.iter();
        let slots = slots.filter(|slot| slot.occupant.is_some_and(|key| key.volume == *id));
        let dirty: u64 = slots.map(|slot| u64::from(slot.entry.dirty_blocks)).sum();
        assert_eq!(volume.dirty_slots, dirty);
    }
}

#[test]
fn a_put_may_take_longer_than_a_read_may_wait() {
    for (upload_timeout, is_enough) in [(120, true), (5, false)] {
        run(async {
            let slow = Slow::new("/pack/", Duration::from_secs(10));
            let config = Config {
                fetch_timeout: Duration::from_secs(2),
                upload_timeout: Duration::from_secs(upload_timeout),
                ..config(1)
            };
            let disk = SimDisk::new(disk_len(SLOTS), 1);
            let cache = new_cache(&disk, Arc::new(slow), config).await;
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
            volume.write(0, block(1), false).await.unwrap();
            let begun = tokio::time::Instant::now();
            let uploaded = volume.upload().await;
            let took = begun.elapsed();
            if is_enough {
                assert!(uploaded.is_ok(), "{uploaded:?}");
                assert_eq!(volume.status().unwrap().dirty_bytes, 0);
            } else {
                assert!(matches!(uploaded, Err(Error::StoreTimeout { seconds: 5, .. })));
                assert!(took < Duration::from_secs(6), "{took:?}");
            }
        });
    }
}

#[test]
fn a_volume_that_is_slow_or_fails_holds_up_no_other() {
    run(async {
        let slow = Slow::new("slow/pack/", FOREVER);
        let disk = SimDisk::new(disk_len(SLOTS), 1);
        let cache = new_cache(&disk, Arc::new(slow.clone()), config(1)).await;
        let new = async |name: &str| {
            let (name, options) = (VolumeName::new(name).unwrap(), VolumeOptions::default());
            cache.create_volume(&name, CHUNK_BYTES, options).await.unwrap()
        };
        let (stuck, lost, volume) = (new("slow").await, new("lost").await, new("v").await);
        stuck.write(0, block(1), false).await.unwrap();
        lost.write(0, block(2), false).await.unwrap();
        cache.destage().await.unwrap();
        disk.flip(slot_of(&disk, 2) + 2 * HEADER_BYTES as u64 + 77, 1);
        // Until the pauses after failures are as long as they become.
        tokio::time::sleep(Duration::from_secs(400)).await;
        let tried = lost.status().unwrap().lost;
        assert!((3..20).contains(&tried), "tried {tried} times");
        let in_turn = Config::default().upload_interval + Duration::from_secs(1);
        for tag in 3..6 {
            volume.write(0, block(tag), false).await.unwrap();
            tokio::time::sleep(in_turn).await;
            assert_eq!(volume.status().unwrap().dirty_bytes, 0, "it waited for others");
        }
        for waiting in [&stuck, &lost] {
            assert!(waiting.status().unwrap().dirty_bytes > 0);
        }
        // Nor does a write that waits for room in a quota.
        let options = VolumeOptions { dirty_quota: BLOCK_BYTES, ..VolumeOptions::default() };
        volume.set_options(options).await.unwrap();
        let writes = async {
            for tag in 0..20 {
                volume.write(0, block(tag), false).await.unwrap();
            }
        };
        tokio::time::timeout(in_turn, writes).await.unwrap();
        slow.set(false);
        lost.trim(0, BLOCK_BYTES, false).await.unwrap();
        tokio::time::sleep(Duration::from_secs(400)).await;
        for healed in [&stuck, &lost, &volume] {
            assert_eq!(healed.status().unwrap().dirty_bytes, 0);
        }
    });
}

/// A volume of four chunks full of data, in slots. Chunk `i` begins with a byte of `100 + i`.
async fn full_volume(disk: &SimDisk, store: &SimStore) -> (Cache, Volume, Vec<u8>) {
    let config = Config { upload_interval: Duration::from_secs(86_400), ..config(1) };
    let cache = new_cache(disk, Arc::new(store.clone()), config).await;
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
    let mut data = Vec::new();
    for at in (0..4 * CHUNK_BYTES).step_by(PIECE as usize) {
        let is_first = at.is_multiple_of(CHUNK_BYTES);
        let tag = if is_first { 100 + at / CHUNK_BYTES } else { at / PIECE % 90 + 1 };
        let piece = vec![tag as u8; PIECE as usize];
        data.extend_from_slice(&piece);
        volume.write(at, piece.into(), false).await.unwrap();
    }
    while cache.status().log.1 > 0 {
        cache.destage().await.unwrap();
    }
    (cache, volume, data)
}

fn packs(store: &SimStore) -> usize {
    store.paths().iter().filter(|path| path.contains("/pack/")).count()
}

async fn assert_stored(store: &SimStore, data: &[u8]) {
    let cache = other(&store.copy()).await;
    let volume = cache.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
    for (i, piece) in data.chunks(PIECE as usize).enumerate() {
        let found = volume.read_vec(i as u64 * PIECE, PIECE).await.unwrap();
        assert!(found == piece, "piece {i} is wrong in the store");
    }
}

#[test]
fn an_upload_that_an_outage_cut_short_goes_on_where_it_was() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(SLOTS), 1), SimStore::new(1));
        let (cache, volume, mut data) = full_volume(&disk, &store).await;
        let outage = async {
            while packs(&store) == 0 {
                tokio::task::yield_now().await;
            }
            store.set_down(true);
        };
        let (uploaded, ()) = tokio::join!(volume.upload(), outage);
        assert!(matches!(uploaded, Err(Error::StoreTimeout { .. })), "{uploaded:?}");
        assert_eq!(packs(&store), 1);
        // Since then, of what is in that pack and of what is not.
        let (len, end) = (BLOCK_BYTES as usize, 4 * CHUNK_BYTES - BLOCK_BYTES);
        for at in [0, 20 * BLOCK_BYTES, CHUNK_BYTES, end] {
            volume.write(at, block(200), false).await.unwrap();
            data[at as usize..][..len].fill(200);
        }
        volume.trim(40 * BLOCK_BYTES, 2 * BLOCK_BYTES, false).await.unwrap();
        data[40 * len..42 * len].fill(0);
        cache.destage().await.unwrap();
        volume.write(60 * BLOCK_BYTES, block(201), false).await.unwrap();
        data[60 * len..61 * len].fill(201);
        store.set_down(false);
        volume.upload().await.unwrap();
        let put = cache.status().counters.uploaded_bytes;
        assert!(put < 4 * CHUNK_BYTES + (1 << 20), "{put} bytes were put");
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        assert_stored(&store, &data).await;
    });
}

#[test]
fn what_comes_before_a_damaged_block_is_put_once() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(SLOTS), 1), SimStore::new(1));
        let (_cache, volume, mut data) = full_volume(&disk, &store).await;
        let at = 3 * CHUNK_BYTES + 50 * BLOCK_BYTES;
        disk.flip(slot_of(&disk, 103) + 2 * HEADER_BYTES as u64 + 50 * BLOCK_BYTES, 1);
        let mut before = 0;
        for attempt in 0..4 {
            match volume.upload().await {
                Err(Error::Lost { offset, .. }) => assert_eq!(offset, at),
                other => panic!("{other:?}"),
            }
            assert!(packs(&store) > 0 && (attempt == 0 || packs(&store) == before));
            before = packs(&store);
        }
        volume.write(at, block(200), false).await.unwrap();
        data[at as usize..][..BLOCK_BYTES as usize].fill(200);
        volume.upload().await.unwrap();
        assert_stored(&store, &data).await;
    });
}

/// Uploads that outages cut short anywhere, with writes and destaging beside and between them. What the store has in
/// the end is what was written last.
#[test]
fn what_failed_uploads_leave_to_the_next_is_never_old() {
    let (mut failed, mut left) = (0, 0);
    for seed in 1..=100 {
        run(async {
            let mut rng = Rng::new(seed);
            let store = SimStore::new(seed);
            let disk = SimDisk::new(disk_len(SLOTS), seed);
            let cache = new_cache(&disk, Arc::new(store.clone()), config(seed)).await;
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), 3 * CHUNK_BYTES, options).await.unwrap();
            let mut tags: BTreeMap<u64, u8> = BTreeMap::new();
            let mut next = 0;
            for _ in 0..6 {
                let mut writes = || {
                    let count = 1 + rng.below(5);
                    let places = (0..count).map(|_| {
                        next += 1;
                        let chunk = rng.below(3) * CHUNK_BYTES;
                        (chunk + rng.below(6) * BLOCK_BYTES, if rng.one_in(4) { 0 } else { next })
                    });
                    places.collect::<Vec<_>>()
                };
                let (first, beside) = (writes(), writes());
                let write = async |list: &[(u64, u8)]| {
                    for (at, tag) in list {
                        match tag {
                            0 => volume.trim(*at, BLOCK_BYTES, false).await.unwrap(),
                            tag => volume.write(*at, block(*tag), false).await.unwrap(),
                        }
                        tokio::task::yield_now().await;
                    }
                };
                write(&first[..]).await;
                if rng.one_in(2) {
                    cache.destage().await.unwrap();
                }
                let turns = rng.below(120);
                let outage = async {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    store.set_down(true);
                };
                let (uploaded, (), ()) = tokio::join!(volume.upload(), outage, write(&beside[..]));
                match uploaded {
                    Ok(_) => {}
                    Err(Error::StoreTimeout { .. }) => failed += 1,
                    Err(error) => panic!("seed {seed}: {error}"),
                }
                tags.extend(first.into_iter().chain(beside));
                let state = cache.inner.state();
                left += u64::from(state.volumes.values().any(|v| !v.kept.is_empty()));
                drop(state);
                assert_counted(&cache);
                store.set_down(false);
            }
            volume.upload().await.unwrap();
            let second = other(&store.copy()).await;
            let copy = second.attach_volume(&name(), options, true).await.unwrap();
            for (at, tag) in tags {
                let found = copy.read_vec(at, BLOCK_BYTES).await.unwrap();
                assert!(found == block(tag), "seed {seed}: {} at {at}, not {tag}", found[0]);
            }
        });
    }
    assert!(failed > 50 && left > 5, "{failed} failed, {left} left something");
}

/// A closed cache: the first block of chunk 1 is dirty, in a slot.
async fn closed() -> (SimDisk, SimStore) {
    let (disk, store) = (SimDisk::new(disk_len(SLOTS), 1), SimStore::new(1));
    let cache = new_cache(&disk, Arc::new(store.clone()), config(1)).await;
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), 2 * CHUNK_BYTES, options).await.unwrap();
    volume.write(CHUNK_BYTES, block(1), false).await.unwrap();
    volume.upload().await.unwrap();
    volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
    cache.close().await.unwrap();
    disk.restart(Survivors::None);
    (disk, store)
}

/// Damages both headers of the slot whose chunk begins with a byte of `tag`.
fn damage_headers(disk: &SimDisk, tag: u8) {
    let slot = slot_of(disk, tag);
    for header in [slot, slot + HEADER_BYTES as u64] {
        disk.flip(header + 40, 1);
    }
}

#[test]
fn nothing_is_published_or_released_while_blocks_are_lost() {
    for is_read in [true, false] {
        run(async {
            let (disk, store) = closed().await;
            damage_headers(&disk, 2);
            let open = Cache::open(Arc::new(disk), Arc::new(store.clone()), config(2));
            let cache = open.await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            if is_read {
                // From here on the header is in memory, and has no dirty block.
                let read = volume.read_vec(CHUNK_BYTES, BLOCK_BYTES).await;
                assert!(matches!(read, Err(Error::Lost { .. })), "{read:?}");
            }
            // Of what is lost only the group of blocks is known.
            let lost = CHUNK_BYTES..CHUNK_BYTES + 16 * BLOCK_BYTES;
            let root = store.peek("v/root");
            // Something new does not hide it.
            volume.write(0, block(3), true).await.unwrap();
            for failed in [volume.upload().await.map(drop), cache.release_volume(&name()).await] {
                match failed {
                    Err(Error::Lost { volume, offset, end }) => {
                        assert!(volume == name() && offset == lost.start && end <= lost.end);
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(store.peek("v/root"), root);
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(3));
            volume.trim(lost.start, lost.end - lost.start, false).await.unwrap();
            volume.upload().await.unwrap();
            volume.write(CHUNK_BYTES, block(4), false).await.unwrap();
            cache.release_volume(&name()).await.unwrap();
            let second = other(&store).await;
            let options = VolumeOptions::default();
            let volume = second.attach_volume(&name(), options, false).await.unwrap();
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(3));
            assert_eq!(volume.read_vec(CHUNK_BYTES, BLOCK_BYTES).await.unwrap(), block(4));
        });
    }
}

#[test]
fn nothing_is_published_or_released_while_slots_are_unknown() {
    run(async {
        let (disk, store) = closed().await;
        damage_headers(&disk, 2);
        disk.flip(layout(&disk).directory_at + 16, 1);
        let open = Cache::open(Arc::new(disk), Arc::new(store.clone()), config(2));
        let cache = open.await.unwrap();
        assert_eq!(cache.status().unknown_slots, 1);
        let volume = cache.volume(&name()).unwrap();
        let root = store.peek("v/root");
        volume.write(0, block(3), true).await.unwrap();
        for failed in [volume.upload().await.map(drop), cache.release_volume(&name()).await] {
            assert!(matches!(failed, Err(Error::UnknownLoss { slots: 1, .. })), "{failed:?}");
        }
        assert_eq!(store.peek("v/root"), root);
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(3));
    });
}

#[test]
fn what_a_crash_leaves_of_evicted_chunks_is_not_dirty() {
    // A directory that calls it dirty.
    let evicted = async |options: VolumeOptions| {
        let (disk, store) = (SimDisk::new(disk_len(SLOTS), 1), SimStore::new(1));
        let cache = new_cache(&disk, Arc::new(store.clone()), idle(1)).await;
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        volume.write(0, block(1), false).await.unwrap();
        cache.destage().await.unwrap();
        volume.upload().await.unwrap();
        assert_eq!(cache.evict(1).await.unwrap(), 1);
        drop(cache);
        disk.reopen();
        let open = Cache::open(Arc::new(disk), Arc::new(store.clone()), idle(2));
        let cache = open.await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, BLOCK_BYTES);
        (cache, volume, store)
    };
    // A FLUSH that needs a cut finds that there is nothing to upload.
    run(async {
        let options = VolumeOptions { durability: Durability::Remote, dirty_quota: 0 };
        let (cache, volume, store) = evicted(options).await;
        let (name, options) = (VolumeName::new("other").unwrap(), VolumeOptions::default());
        let other = cache.create_volume(&name, CHUNK_BYTES, options).await.unwrap();
        other.write(0, block(2), true).await.unwrap();
        let gets = store.reads().0;
        let turns = async {
            while store.reads().0 < gets + 20 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            flushed = volume.flush() => flushed.unwrap(),
            () = turns => panic!("it asks the store again and again"),
        }
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        assert_counted(&cache);
    });
    // A writer that waits for room in a quota goes on.
    run(async {
        let options = VolumeOptions { dirty_quota: BLOCK_BYTES, ..VolumeOptions::default() };
        let (cache, volume, _) = evicted(options).await;
        let write = volume.write(0, block(2), false);
        tokio::time::timeout(Duration::from_secs(60), write).await.unwrap().unwrap();
        assert_counted(&cache);
    });
}

#[test]
fn a_cut_reads_each_header_once_to_see_whether_something_is_lost() {
    const CHUNKS: u64 = 6;
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(SLOTS), 1), SimStore::new(1));
        let cache = new_cache(&disk, Arc::new(store.clone()), idle(1)).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNKS * CHUNK_BYTES, options).await.unwrap();
        for chunk in 0..CHUNKS {
            let data = block(100 + chunk as u8);
            volume.write(chunk * CHUNK_BYTES, data, false).await.unwrap();
        }
        cache.close().await.unwrap();
        disk.restart(Survivors::None);
        damage_headers(&disk, 105);
        let open = Cache::open(Arc::new(disk.clone()), Arc::new(store), idle(2));
        let cache = open.await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        let mut before = disk.counts().reads;
        let mut reads = Vec::new();
        for _ in 0..4 {
            // Meanwhile free slots are made ready, and the first time the task that uploads has tried.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let uploaded = volume.upload().await;
            assert!(matches!(uploaded, Err(Error::Lost { .. })), "{uploaded:?}");
            let now = disk.counts().reads;
            reads.push(now - before);
            before = now;
        }
        assert!(reads[0] >= CHUNKS && reads[1..].iter().all(|n| *n <= 2), "{reads:?}");
        volume.trim(5 * CHUNK_BYTES, CHUNK_BYTES, false).await.unwrap();
        volume.upload().await.unwrap();
        assert_counted(&cache);
    });
}

#[test]
fn lost_blocks_count_as_dirty_however_often_their_header_is_read() {
    run(async {
        let (disk, store) = closed().await;
        damage_headers(&disk, 2);
        let open = Cache::open(Arc::new(disk), Arc::new(store), idle(2));
        let cache = open.await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        let is_lost = async || {
            let read = volume.read(CHUNK_BYTES, BLOCK_BYTES).await;
            assert!(matches!(read, Err(Error::Lost { .. })), "{read:?}");
        };
        is_lost().await;
        volume.write(0, block(3), false).await.unwrap();
        volume.write(BLOCK_BYTES, block(4), false).await.unwrap();
        // Also what is in memory only of headers is written.
        cache.destage().await.unwrap();
        // Of what is lost only the group of blocks is known.
        let dirty = (2 + 16) * BLOCK_BYTES;
        for _ in 0..3 {
            assert_eq!(volume.status().unwrap().dirty_bytes, dirty);
            assert_counted(&cache);
            drop_headers(&cache);
            is_lost().await;
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(3));
        }
    });
}

#[test]
fn what_a_cut_read_before_it_was_damaged_is_not_lost() {
    // The cut is published, or it fails and the next one names its packs.
    for is_published in [true, false] {
        run(async {
            let (disk, gate) = (SimDisk::new(disk_len(SLOTS), 1), Gate::new());
            let cache = new_cache(&disk, Arc::new(gate.clone()), idle(1)).await;
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
            volume.write(0, block(2), true).await.unwrap();
            gate.keep(true);
            let damage = async {
                while packs(&gate.store) == 0 {
                    tokio::task::yield_now().await;
                }
                disk.flip(in_log(&disk, 2) + 9, 1);
                cache.destage().await.unwrap();
                let state = cache.inner.state();
                let key = Key { volume: volume.id(), chunk: 0 };
                assert!(state.header(key).unwrap().1.lost.contains(0));
                gate.keep(!is_published);
            };
            let (uploaded, ()) = tokio::join!(volume.upload(), damage);
            assert_eq!(uploaded.is_ok(), is_published, "{uploaded:?}");
            gate.keep(false);
            volume.upload().await.unwrap();
            assert_eq!(volume.status().unwrap().dirty_bytes, 0);
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(2));
            assert_counted(&cache);
        });
    }
}

#[test]
fn a_damaged_header_of_what_is_published_loses_nothing() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(SLOTS), 1), SimStore::new(1));
        let cache = new_cache(&disk, Arc::new(store.clone()), idle(1)).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 2 * CHUNK_BYTES, options).await.unwrap();
        volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
        // The directory calls it dirty from here on.
        cache.destage().await.unwrap();
        volume.upload().await.unwrap();
        drop(cache);
        disk.reopen();
        damage_headers(&disk, 2);
        let open = Cache::open(Arc::new(disk), Arc::new(store), idle(2));
        let cache = open.await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(CHUNK_BYTES, BLOCK_BYTES).await.unwrap(), block(2));
        assert_eq!(cache.status().counters.damaged_headers, 1);
        volume.write(0, block(3), false).await.unwrap();
        volume.upload().await.unwrap();
        let status = volume.status().unwrap();
        assert_eq!((status.lost, status.dirty_bytes), (0, 0));
    });
}

/// A cut fails, and its root arrives after the next one has asked for the root: before that begins, and while it is
/// under way.
#[test]
fn a_root_that_arrives_late_is_not_undone_by_the_next_cut() {
    for is_under_way in [false, true] {
        run(async {
            let (disk, gate) = (SimDisk::new(disk_len(SLOTS), 1), Gate::new());
            let cache = new_cache(&disk, Arc::new(gate.clone()), idle(1)).await;
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), 3 * CHUNK_BYTES, options).await.unwrap();
            volume.write(0, block(1), false).await.unwrap();
            cache.destage().await.unwrap();
            volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
            gate.keep(true);
            let failed = volume.upload().await;
            assert!(matches!(failed, Err(Error::StoreTimeout { .. })), "{failed:?}");
            gate.keep(false);
            volume.write(2 * CHUNK_BYTES, block(3), false).await.unwrap();
            // As after a restart: nobody knows what was put, nor, before it begins, whether something is lost.
            let key = Key { volume: volume.id(), chunk: 0 };
            cache.inner.state().volumes.get_mut(&key.volume).unwrap().kept = Default::default();
            if !is_under_way {
                drop_headers(&cache);
                for slot in &mut cache.inner.state().slots {
                    slot.has_lost = None;
                }
            }
            let io = cache.inner.state().io(key).unwrap();
            let first_chunk = io.write_owned().await;
            let arrival = async {
                // Until the upload waits for the first chunk.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let has_begun = cache.inner.state().volumes[&key.volume].cut.is_some();
                assert_eq!(has_begun, is_under_way);
                gate.arrive().await;
                // As a read does that asked for the root before.
                cache.inner.forget_root(key.volume);
                cache.inner.root(key.volume).await.unwrap();
                cache.destage().await.unwrap();
                drop(first_chunk);
            };
            let (uploaded, ()) = tokio::join!(volume.upload(), arrival);
            uploaded.unwrap();
            let second = other(&gate.store.copy()).await;
            let copy = second.attach_volume(&name(), options, true).await.unwrap();
            for chunk in 0..3 {
                let found = copy.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
                assert_eq!(found, block(1 + chunk as u8), "chunk {chunk}, {is_under_way}");
            }
        });
    }
}

#[test]
fn of_a_volume_that_was_taken_over_nothing_is_kept_for_another_cut() {
    for is_under_way in [false, true] {
        run(async {
            let (disk, gate) = (SimDisk::new(disk_len(SLOTS), 1), Gate::new());
            let cache = new_cache(&disk, Arc::new(gate.clone()), idle(1)).await;
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
            volume.write(0, block(1), false).await.unwrap();
            let is_kept = || {
                let state = cache.inner.state();
                state.volumes.values().any(|volume| !volume.kept.is_empty())
            };
            let second = other(&gate.store).await;
            let take = async {
                while is_under_way && packs(&gate.store) == 0 {
                    tokio::task::yield_now().await;
                }
                second.attach_volume(&name(), options, true).await.unwrap();
                gate.keep(false);
            };
            gate.keep(true);
            let uploaded = if is_under_way {
                tokio::join!(volume.upload(), take).0
            } else {
                let failed = volume.upload().await;
                assert!(matches!(failed, Err(Error::StoreTimeout { .. })), "{failed:?}");
                assert!(is_kept());
                take.await;
                volume.upload().await
            };
            assert!(matches!(uploaded, Err(Error::Superseded { .. })), "{uploaded:?}");
            assert!(!is_kept());
        });
    }
}
