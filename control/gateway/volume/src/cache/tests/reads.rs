//! Reads, and stops, while the store or the disk does not keep up: each ends in a stated time, and takes no more
//! than its share of memory and threads.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, poll_immediate};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::fetch::MAX_FILLS;
use super::super::state::Key;
use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{LOG, config, disk_len, name, run};
use crate::bits::BlockSet;
use crate::disk::sim::SimDisk;
use crate::error::{Error, Result};
use crate::format::volume_page::Durability;
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

const FRAME: u64 = 1 << 16;
/// How long a read waits for the store if nothing else is configured, and a moment.
const TIMEOUT: Duration = Duration::from_millis(30_100);

async fn cache(store: &SimStore, config: Config) -> Cache {
    let disk = Arc::new(SimDisk::new(disk_len(4), 1));
    Cache::create(disk, Arc::new(store.clone()), LOG, config).await.unwrap()
}

fn block() -> Bytes {
    Bytes::from(vec![9; BLOCK_BYTES as usize])
}

/// A store with a volume that nobody has. Each chunk begins with so many frames of its number plus one.
async fn stored(chunks: u64, frames: u64) -> SimStore {
    let store = SimStore::new(1);
    let cache = cache(&store, config(1)).await;
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), chunks * CHUNK_BYTES, options).await.unwrap();
    for chunk in 0..chunks {
        for frame in 0..frames {
            let data = Bytes::from(vec![1 + chunk as u8; FRAME as usize]);
            volume.write(chunk * CHUNK_BYTES + frame * FRAME, data, false).await.unwrap();
        }
        volume.upload().await.unwrap();
    }
    cache.release_volume(&name()).await.unwrap();
    store
}

/// A new cache that takes the volume, of which nothing is cached but its root.
async fn taken(store: &SimStore, config: Config) -> (Cache, Volume) {
    let cache = cache(store, config).await;
    let volume = cache.attach_volume(&name(), VolumeOptions::default(), false).await.unwrap();
    (cache, volume)
}

/// A volume whose writer waits for room, since its quota is full and the store is away.
async fn waiting(store: &SimStore, cache: &Cache) -> (Volume, JoinHandle<Result<()>>) {
    let options = VolumeOptions { dirty_quota: 8 * BLOCK_BYTES, ..VolumeOptions::default() };
    let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
    store.set_down(true);
    let writer = tokio::spawn({
        let volume = volume.clone();
        async move {
            for i in 0..50 {
                volume.write(i * BLOCK_BYTES, block(), false).await?;
            }
            Ok::<_, Error>(())
        }
    });
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!writer.is_finished(), "nothing held the writer back");
    (volume, writer)
}

#[test]
fn reads_of_one_frame_fail_together_in_an_outage_and_work_after_it() {
    run(async {
        let store = stored(1, 1).await;
        let (_cache, volume) = taken(&store, config(2)).await;
        store.set_down(true);
        let begun = Instant::now();
        let reads = (0..16).map(|i| volume.read_vec(i * BLOCK_BYTES, BLOCK_BYTES));
        for read in join_all(reads).await {
            assert!(matches!(read, Err(Error::StoreTimeout { .. })), "{read:?}");
        }
        assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
        store.set_down(false);
        assert_eq!(volume.read_vec(0, FRAME).await.unwrap(), vec![1; FRAME as usize]);
    });
}

#[test]
fn who_joins_a_fetch_does_not_fail_with_the_time_of_whoever_began_it() {
    run(async {
        let store = stored(1, 1).await;
        let (cache, volume) = taken(&store, config(2)).await;
        // A read that waited for most of its time already.
        let patience = cache.inner.patience();
        tokio::time::sleep(TIMEOUT - Duration::from_millis(110)).await;
        store.set_range_time(Duration::from_millis(100));
        let key = Key { volume: volume.id(), chunk: 0 };
        let mut missing = BlockSet::EMPTY;
        missing.insert(0);
        let first = cache.inner.fetch(key, &missing, &patience);
        let (first, second) = tokio::join!(first, volume.read_vec(BLOCK_BYTES, BLOCK_BYTES));
        assert!(matches!(first, Err(Error::StoreTimeout { .. })), "{first:?}");
        assert_eq!(second.unwrap(), vec![1; BLOCK_BYTES as usize]);
    });
}

#[test]
fn writes_of_parts_of_one_block_fail_together_in_an_outage() {
    run(async {
        let store = stored(1, 1).await;
        let (_cache, volume) = taken(&store, config(2)).await;
        store.set_down(true);
        let begun = Instant::now();
        let writes = (0..8).map(|i| volume.write(i * 512, Bytes::from(vec![9; 512]), false));
        for write in join_all(writes).await {
            assert!(matches!(write, Err(Error::StoreTimeout { .. })), "{write:?}");
        }
        assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
        store.set_down(false);
        volume.write(0, Bytes::from(vec![9; 512]), false).await.unwrap();
        let read = volume.read_vec(0, BLOCK_BYTES).await.unwrap();
        assert!(read[..512].iter().all(|byte| *byte == 9) && read[512..].iter().all(|b| *b == 1));
    });
}

#[test]
fn one_time_is_for_all_that_a_read_needs() {
    run(async {
        let store = stored(1, 1).await;
        let (_cache, volume) = taken(&store, config(2)).await;
        store.set_down(true);
        let heals = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            // The index comes after that, and the data never.
            store.set_range_time(Duration::from_secs(100));
            store.set_down(false);
        };
        let (begun, gets) = (Instant::now(), store.reads().0);
        let (read, ()) = tokio::join!(volume.read_vec(0, BLOCK_BYTES), heals);
        assert!(matches!(read, Err(Error::StoreTimeout { .. })), "{read:?}");
        assert!(store.reads().0 - gets >= 2, "it did not come as far as that");
        assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
    });
}

#[test]
fn what_the_rate_holds_back_does_not_count_as_waiting_for_the_store() {
    run(async {
        let store = stored(2, 64).await;
        let fetch_timeout = Duration::from_secs(2);
        let slow = Config { fetch_rate: FRAME, fetch_timeout, ..config(2) };
        let (_cache, volume) = taken(&store, slow).await;
        let begun = Instant::now();
        // Eight frames of each chunk, a second each.
        let read = volume.read_vec(CHUNK_BYTES - 8 * FRAME, 16 * FRAME).await.unwrap();
        let (first, second) = read.split_at(8 * FRAME as usize);
        assert!(first.iter().all(|byte| *byte == 1) && second.iter().all(|byte| *byte == 2));
        let took = begun.elapsed().as_secs_f64();
        assert!((14.0..17.0).contains(&took), "{took} s");
    });
}

#[test]
fn what_comes_faster_than_the_disk_takes_it_is_answered_and_not_kept() {
    const CHUNKS: u64 = 5;
    run(async {
        let store = stored(CHUNKS, 64).await;
        let (cache, volume) = taken(&store, config(2)).await;
        // As long as somebody reads a chunk, nothing is put into its slot.
        let mut held = Vec::new();
        for chunk in 0..CHUNKS as u32 {
            let io = {
                let mut state = cache.inner.state();
                let chunk = state.chunk(Key { volume: volume.id(), chunk });
                chunk.fetching += 1;
                chunk.io()
            };
            held.push(io.read_owned().await);
        }
        let read_all = async || {
            for chunk in 0..CHUNKS {
                let read = volume.read_vec(chunk * CHUNK_BYTES, CHUNK_BYTES).await.unwrap();
                assert!(read.iter().all(|byte| u64::from(*byte) == 1 + chunk), "{chunk}");
            }
        };
        read_all().await;
        // Of five times 64 frames.
        assert_eq!(cache.inner.fills.get(), MAX_FILLS);
        drop(held);
        cache.inner.fills.wait(|fills| *fills == 0).await;
        assert!(cache.status().counters.filled_blocks > 0);
        read_all().await;
    });
}

#[test]
fn a_writer_that_waits_for_room_in_an_outage_does_not_hold_up_a_stop() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache(&store, config(1)).await;
        let (_volume, writer) = waiting(&store, &cache).await;
        let begun = Instant::now();
        cache.begin_stop();
        let answer = writer.await.unwrap();
        assert!(matches!(answer, Err(Error::NotServed { .. })), "{answer:?}");
        cache.close().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_writer_that_waits_for_room_is_told_that_the_volume_was_taken_over() {
    run(async {
        let store = SimStore::new(1);
        let (first, second) = (cache(&store, config(1)).await, cache(&store, config(2)).await);
        let (_volume, writer) = waiting(&store, &first).await;
        store.set_down(false);
        second.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(200), writer).await;
        let answer = answer.expect("the writer still waits").unwrap();
        assert!(matches!(answer, Err(Error::Superseded { .. })), "{answer:?}");
        first.close().await.unwrap();
    });
}

#[test]
fn a_writer_that_waits_for_room_goes_on_when_the_quota_is_raised() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache(&store, config(1)).await;
        let (volume, writer) = waiting(&store, &cache).await;
        volume.set_options(VolumeOptions::default()).await.unwrap();
        let written = tokio::time::timeout(Duration::from_secs(60), writer).await;
        written.expect("the writer still waits").unwrap().unwrap();
    });
}

#[test]
fn requests_of_many_steps_are_cut_short_by_a_stop() {
    const SIZE: u64 = 1 << 40;
    run(async {
        let store = SimStore::new(1);
        let cache = cache(&store, config(1)).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), SIZE, options).await.unwrap();
        let (a, b, c) = (volume.clone(), volume.clone(), volume);
        let requests = [
            tokio::spawn(async move { a.cache(0, SIZE).await }),
            tokio::spawn(async move { b.trim(0, SIZE, false).await }),
            tokio::spawn(async move { c.write_zeroes(0, SIZE, false).await }),
        ];
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert!(requests.iter().all(|request| !request.is_finished()));
        cache.begin_stop();
        for request in requests {
            let answer = request.await.unwrap();
            assert!(matches!(answer, Err(Error::NotServed { .. })), "{answer:?}");
        }
        cache.close().await.unwrap();
    });
}

#[test]
fn flushes_that_wait_for_the_store_in_turn_do_not_hold_up_a_stop() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache(&store, config(1)).await;
        let options = VolumeOptions { durability: Durability::Remote, dirty_quota: 0 };
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        store.set_down(true);
        volume.write(0, block(), false).await.unwrap();
        let flushes: Vec<_> = (0..8)
            .map(|_| {
                let volume = volume.clone();
                tokio::spawn(async move { volume.flush().await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let begun = Instant::now();
        cache.begin_stop();
        for flush in flushes {
            let answer = flush.await.unwrap();
            assert!(
                matches!(answer, Err(Error::StoreTimeout { .. } | Error::NotServed { .. })),
                "{answer:?}"
            );
        }
        assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
    });
}

#[test]
fn a_write_that_is_given_up_gives_its_room_back() {
    run(async {
        let store = stored(1, 1).await;
        let (cache, volume) = taken(&store, config(2)).await;
        store.set_down(true);
        let reserved = || cache.inner.state().log.reserved;
        // The first waits for the store, the second for the first.
        let mut part = Box::pin(volume.write(100, Bytes::from_static(b"part"), false));
        assert!(poll_immediate(&mut part).await.is_none());
        let mut whole = Box::pin(volume.write(0, block(), false));
        assert!(poll_immediate(&mut whole).await.is_none());
        assert_eq!(reserved(), 4 * BLOCK_BYTES);
        drop(whole);
        assert_eq!(reserved(), 2 * BLOCK_BYTES);
        drop(part);
        assert_eq!(reserved(), 0);
    });
}

#[test]
fn the_status_of_a_large_volume_comes_in_parts_and_lets_others_run() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache(&store, config(1)).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 64 << 40, options).await.unwrap();
        let mut status = Box::pin(volume.block_status(0, 64 << 40, usize::MAX));
        assert!(poll_immediate(&mut status).await.is_none(), "it kept the thread to itself");
        let status = status.await.unwrap();
        let told: u64 = status.iter().map(|extent| extent.len).sum();
        assert_eq!((status.len(), told), (1, 4 << 30));
        let rest = volume.block_status((64 << 40) - 5000, 5000, usize::MAX).await.unwrap();
        assert_eq!((rest.len(), rest[0].len, rest[0].status.hole), (1, 5000, true));
    });
}

#[test]
fn the_status_in_an_outage_waits_once_and_not_for_what_is_cached() {
    const CHUNKS: u64 = 8;
    run(async {
        let store = stored(CHUNKS, 1).await;
        let (_cache, volume) = taken(&store, config(2)).await;
        for at in (0..CHUNK_BYTES).step_by(FRAME as usize) {
            volume.write(at, Bytes::from(vec![9; FRAME as usize]), false).await.unwrap();
        }
        store.set_down(true);
        let begun = Instant::now();
        let status = volume.block_status(0, CHUNK_BYTES, usize::MAX).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(status.iter().all(|extent| extent.status.cached), "{status:?}");
        let status = volume.block_status(0, CHUNKS * CHUNK_BYTES, usize::MAX).await.unwrap();
        assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
        assert_eq!(status.iter().map(|extent| extent.len).sum::<u64>(), CHUNKS * CHUNK_BYTES);
        // What nobody knows is taken as data.
        assert!(status.iter().all(|extent| !extent.status.hole), "{status:?}");
        store.set_down(false);
        let status = volume.block_status(0, CHUNKS * CHUNK_BYTES, usize::MAX).await.unwrap();
        assert!(status.iter().any(|extent| extent.status.hole), "{status:?}");
    });
}
