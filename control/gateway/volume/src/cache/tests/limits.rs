//! What many clients share, and what memory holds of many chunks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{LOG, block, config, disk_len, name, run};
use super::uploads::FOREVER;
use crate::disk::sim::{SimDisk, Survivors};
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// A new cache with a disk of so many slots and a log of `log` bytes, and a volume of so many chunks in it.
async fn new_volume(slots: u64, log: u64, chunks: u64, config: Config) -> (Parts, Cache, Volume) {
    let parts = Parts { disk: SimDisk::new(disk_len(slots), 1), store: SimStore::new(1) };
    let (disk, store) = (Arc::new(parts.disk.clone()), Arc::new(parts.store.clone()));
    let cache = Cache::create(disk, store, log, config).await.unwrap();
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), chunks * CHUNK_BYTES, options).await.unwrap();
    (parts, cache, volume)
}

/// What outlives a cache.
struct Parts {
    disk: SimDisk,
    store: SimStore,
}

impl Parts {
    async fn open(&self, config: Config) -> (Cache, Volume) {
        let (disk, store) = (Arc::new(self.disk.clone()), Arc::new(self.store.clone()));
        let cache = Cache::open(disk, store, config).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        (cache, volume)
    }
}

#[test]
fn all_who_flush_at_once_share_a_sync() {
    const CLIENTS: u64 = 32;
    run(async {
        // In a log so large nothing moves to slots meanwhile, which would sync as well.
        let (parts, cache, volume) = new_volume(5, 8 * LOG, 1, config(1)).await;
        let disk = &parts.disk;
        let before = disk.counts().syncs;
        let clients = (0..CLIENTS).map(|client| {
            let volume = volume.clone();
            async move {
                volume.write(client * BLOCK_BYTES, block(client as u8 + 1), false).await.unwrap();
                volume.flush().await.unwrap();
            }
        });
        join_all(clients).await;
        let syncs = disk.counts().syncs - before;
        assert!((1..=4).contains(&syncs), "{syncs} syncs for {CLIENTS} clients");
        // Nothing was written since.
        volume.flush().await.unwrap();
        assert_eq!(disk.counts().syncs - before, syncs);
        drop(cache);
        disk.restart(Survivors::None);
        let (_cache, volume) = parts.open(config(2)).await;
        for client in 0..CLIENTS {
            let found = volume.read_vec(client * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(client as u8 + 1), "client {client}");
        }
    });
}

#[test]
fn no_more_headers_are_in_memory_than_configured() {
    const CHUNKS: u64 = 16;
    const LIMIT: usize = 4;
    run(async {
        let config = Config { headers_in_memory: LIMIT, ..config(1) };
        let (_parts, cache, volume) = new_volume(24, LOG, CHUNKS, config).await;
        let headers = || {
            let state = cache.inner.state();
            let there = state.slots.iter().filter(|slot| slot.header.is_some()).count();
            assert_eq!(there, state.headers_in_memory);
            there
        };
        for chunk in 0..CHUNKS {
            volume.write(chunk * CHUNK_BYTES, block(chunk as u8 + 1), false).await.unwrap();
        }
        cache.destage().await.unwrap();
        // What becomes clean by that is newer in memory than on disk.
        volume.upload().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(headers() <= LIMIT, "{} headers after an upload", headers());
        for chunk in (0..CHUNKS).chain(0..CHUNKS) {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(chunk as u8 + 1), "chunk {chunk}");
            assert!(headers() <= LIMIT, "{} headers after a read of chunk {chunk}", headers());
        }
        // All of them were read from the disk, and nothing else was.
        let counters = cache.status().counters;
        assert_eq!((counters.misses, counters.evicted), (0, 0));
    });
}

#[test]
fn no_more_headers_are_in_memory_where_only_misses_fill_the_cache() {
    const CHUNKS: u64 = 16;
    const LIMIT: usize = 4;
    run(async {
        let (mut parts, cache, volume) = new_volume(24, LOG, CHUNKS, config(1)).await;
        for chunk in 0..CHUNKS {
            volume.write(chunk * CHUNK_BYTES, block(chunk as u8 + 1), false).await.unwrap();
        }
        cache.release_volume(&name()).await.unwrap();
        parts.disk = SimDisk::new(disk_len(24), 2);
        let mut config = Config { headers_in_memory: LIMIT, ..config(2) };
        let (at, remote) = (Arc::new(parts.disk.clone()), Arc::new(parts.store.clone()));
        let cache = Cache::create(at, remote, LOG, config.clone()).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.attach_volume(&name(), options, false).await.unwrap();
        let checkpoints = cache.status().counters.checkpoints;
        // Again for those that found no free slot made ready.
        for chunk in (0..CHUNKS).chain(0..CHUNKS).chain(0..CHUNKS) {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(chunk as u8 + 1), "chunk {chunk}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let headers = cache.inner.state().headers_in_memory;
            assert!(headers <= LIMIT, "{headers} headers after a read of chunk {chunk}");
        }
        let counters = cache.status().counters;
        assert_eq!((counters.filled_blocks, counters.evicted), (CHUNKS, 0));
        assert_eq!(counters.checkpoints, checkpoints, "checkpoints write headers too");
        // What went is on disk: nothing is fetched twice, neither now nor after a planned stop.
        config.seed = Some(3);
        drop(volume);
        cache.close().await.unwrap();
        parts.disk.restart(Survivors::None);
        let (cache, volume) = parts.open(config).await;
        for chunk in 0..CHUNKS {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(chunk as u8 + 1), "chunk {chunk}");
        }
        assert_eq!(cache.status().counters.misses, 0);
    });
}

#[test]
fn no_more_headers_are_in_memory_while_round_follows_round_of_destaging() {
    const CHUNKS: u64 = 300;
    const LIMIT: usize = 32;
    run(async {
        let config = Config { headers_in_memory: LIMIT, destage_above: 0.0, ..config(1) };
        // So many slots that they are looked at in parts.
        let (_parts, cache, volume) = new_volume(2500, 16 * LOG, CHUNKS, config).await;
        let writes = (0..CHUNKS).map(|chunk| volume.write(chunk * CHUNK_BYTES, block(1), false));
        join_all(writes).await;
        let done = || cache.status().counters.destaged_chunks == CHUNKS;
        let most = most_headers(&cache, done).await;
        assert!((LIMIT..=LIMIT + 8).contains(&most), "{most}");
    });
}

/// The most headers that are in memory at a time, until something is done.
async fn most_headers(cache: &Cache, is_done: impl Fn() -> bool) -> usize {
    let mut most = 0;
    while !is_done() {
        for _ in 0..1000 {
            most = most.max(cache.inner.state().headers_in_memory);
            tokio::task::yield_now().await;
        }
        // Time passes only while nobody has anything to do.
        tokio::time::sleep(Duration::from_micros(10)).await;
    }
    most
}

#[test]
fn no_more_headers_are_in_memory_while_a_cache_is_closed() {
    const CHUNKS: u64 = 100;
    const LIMIT: usize = 32;
    run(async {
        let config = Config {
            headers_in_memory: LIMIT,
            destage_above: 1.0,
            idle_destage: FOREVER,
            ..config(1)
        };
        let (_parts, cache, volume) = new_volume(CHUNKS + 50, 16 * LOG, CHUNKS, config).await;
        let writes = (0..CHUNKS).map(|chunk| volume.write(chunk * CHUNK_BYTES, block(1), false));
        join_all(writes).await;
        assert_eq!(cache.status().counters.destaged_chunks, 0);
        let done = || cache.inner.marks.get().failed;
        let (closed, most) = tokio::join!(cache.close_shared(), most_headers(&cache, done));
        closed.unwrap();
        assert_eq!(cache.status().counters.destaged_chunks, CHUNKS);
        assert!((LIMIT..=LIMIT + 8).contains(&most), "{most}");
    });
}

#[test]
fn who_waits_for_room_for_headers_waits_not_for_long_and_hears_of_a_failure() {
    run(async {
        let (_parts, cache, _volume) = new_volume(4, LOG, 1, config(1)).await;
        let inner = &cache.inner;
        // As if all were in use.
        inner.state().headers_in_memory = 100;
        let begun = tokio::time::Instant::now();
        inner.wait_for_room_for_headers().await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(1));
        inner.fail(&"a test");
        let begun = tokio::time::Instant::now();
        assert!(inner.wait_for_room_for_headers().await.is_err());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    });
}

#[test]
fn a_checkpoint_that_is_given_up_takes_nothing_with_it() {
    run(async {
        let mut given_up = 0;
        for polls in 1.. {
            let config = || Config { idle_destage: FOREVER, upload_interval: FOREVER, ..config(1) };
            let (parts, cache, volume) = new_volume(5, LOG, 1, config()).await;
            volume.write(0, block(1), true).await.unwrap();
            let is_done = {
                let _turn = cache.inner.maintenance.lock().await;
                assert_eq!(cache.inner.destage(false).await.unwrap(), 1);
                let mut checkpoint = std::pin::pin!(cache.inner.checkpoint(false));
                let mut is_done = false;
                for _ in 0..polls {
                    is_done = is_done || futures_util::poll!(&mut checkpoint).is_ready();
                    tokio::task::yield_now().await;
                }
                is_done
            };
            let closed = cache.close_shared().await;
            // There are no half-measures: it cannot be closed in order, or all is in order.
            assert_eq!(closed.is_ok(), is_done, "after {polls}");
            let told = cache.status().stopped.unwrap_or_default();
            assert_eq!(told.contains("given up"), !is_done, "{told} after {polls}");
            drop((cache, volume));
            parts.disk.restart(Survivors::None);
            let (_cache, volume) = parts.open(config()).await;
            let found = volume.read_vec(0, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(1), "given up after {polls}");
            if is_done {
                break;
            }
            given_up += 1;
        }
        assert!(given_up > 5, "{given_up}");
    });
}

#[test]
fn what_nobody_flushes_is_durable_after_a_second() {
    run(async {
        let config = || Config { idle_destage: FOREVER, upload_interval: FOREVER, ..config(1) };
        let (parts, cache, volume) = new_volume(4, 8 * LOG, 1, config()).await;
        for tag in 1..=2_u8 {
            volume.write(u64::from(tag) * BLOCK_BYTES, block(tag), false).await.unwrap();
            // The first has more than that since.
            tokio::time::sleep(Duration::from_millis(500 * u64::from(tag))).await;
        }
        volume.write(3 * BLOCK_BYTES, block(3), false).await.unwrap();
        parts.disk.restart(Survivors::None);
        drop((cache, volume));
        let (_cache, volume) = parts.open(config()).await;
        for tag in 1..=2_u8 {
            let found = volume.read_vec(u64::from(tag) * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(tag), "block {tag}");
        }
        let found = volume.read_vec(3 * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
        assert_eq!(found, block(0), "was durable at once: the test proves nothing");
    });
}
