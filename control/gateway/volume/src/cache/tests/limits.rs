//! What many clients share, and what memory holds of many chunks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::super::{Cache, Config, VolumeOptions};
use super::world::{LOG, config, disk_len, name, run};
use crate::disk::sim::{SimDisk, Survivors};
use crate::remote::Store;
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

fn block(tag: u64) -> Bytes {
    Bytes::from(vec![tag as u8; BLOCK_BYTES as usize])
}

#[test]
fn all_who_flush_at_once_share_a_sync() {
    const CLIENTS: u64 = 32;
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(5), 1), SimStore::new(1));
        let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
        // In a log so large nothing moves to slots meanwhile, which would sync as well.
        let cache = Cache::create(at, remote, 8 * LOG, config(1)).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        let before = disk.counts().syncs;
        let clients = (0..CLIENTS).map(|client| {
            let volume = volume.clone();
            async move {
                volume.write(client * BLOCK_BYTES, block(client + 1), false).await.unwrap();
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
        let (at, remote) = (Arc::new(disk.clone()), Arc::new(store));
        let cache = Cache::open(at, remote, config(2)).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        for client in 0..CLIENTS {
            let found = volume.read_vec(client * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(client + 1), "client {client}");
        }
    });
}

#[test]
fn no_more_headers_are_in_memory_than_configured() {
    const CHUNKS: u64 = 16;
    const LIMIT: usize = 4;
    run(async {
        let disk = Arc::new(SimDisk::new(disk_len(24), 1));
        let config = Config { headers_in_memory: LIMIT, ..config(1) };
        let cache = Cache::create(disk, Arc::new(SimStore::new(1)), LOG, config).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNKS * CHUNK_BYTES, options).await.unwrap();
        let headers = || {
            let state = cache.inner.state();
            let there = state.slots.iter().filter(|slot| slot.header.is_some()).count();
            assert_eq!(there, state.headers_in_memory);
            there
        };
        for chunk in 0..CHUNKS {
            volume.write(chunk * CHUNK_BYTES, block(chunk + 1), false).await.unwrap();
        }
        cache.destage().await.unwrap();
        // What becomes clean by that is newer in memory than on disk.
        volume.upload().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(headers() <= LIMIT, "{} headers after an upload", headers());
        for chunk in (0..CHUNKS).chain(0..CHUNKS) {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(chunk + 1), "chunk {chunk}");
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
        let store = SimStore::new(1);
        let disk = Arc::new(SimDisk::new(disk_len(24), 1));
        let cache = Cache::create(disk, Arc::new(store.clone()), LOG, config(1)).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNKS * CHUNK_BYTES, options).await.unwrap();
        for chunk in 0..CHUNKS {
            volume.write(chunk * CHUNK_BYTES, block(chunk + 1), false).await.unwrap();
        }
        cache.release_volume(&name()).await.unwrap();
        let disk = SimDisk::new(disk_len(24), 2);
        let mut config = Config { headers_in_memory: LIMIT, ..config(2) };
        let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
        let cache = Cache::create(at, remote, LOG, config.clone()).await.unwrap();
        let volume = cache.attach_volume(&name(), options, false).await.unwrap();
        let checkpoints = cache.status().counters.checkpoints;
        // Again for those that found no free slot made ready.
        for chunk in (0..CHUNKS).chain(0..CHUNKS).chain(0..CHUNKS) {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(chunk + 1), "chunk {chunk}");
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
        disk.restart(Survivors::None);
        let cache = Cache::open(Arc::new(disk), Arc::new(store), config).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        for chunk in 0..CHUNKS {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(chunk + 1), "chunk {chunk}");
        }
        assert_eq!(cache.status().counters.misses, 0);
    });
}

#[test]
fn no_more_headers_are_in_memory_while_round_follows_round_of_destaging() {
    const CHUNKS: u64 = 300;
    const LIMIT: usize = 32;
    // What a round may add.
    const ROUND: usize = 64;
    run(async {
        // So many slots that they are looked at in parts.
        let disk = Arc::new(SimDisk::new(disk_len(2500), 1));
        let config = Config { headers_in_memory: LIMIT, destage_above: 0.0, ..config(1) };
        let store = Arc::new(SimStore::new(1));
        let cache = Cache::create(disk, store, 16 * LOG, config).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNKS * CHUNK_BYTES, options).await.unwrap();
        let writes = (0..CHUNKS).map(|chunk| volume.write(chunk * CHUNK_BYTES, block(1), false));
        join_all(writes).await;
        let mut most = 0;
        while cache.status().counters.destaged_chunks < CHUNKS {
            for _ in 0..1000 {
                most = most.max(cache.inner.state().headers_in_memory);
                tokio::task::yield_now().await;
            }
            // Time passes only while nobody has anything to do.
            tokio::time::sleep(Duration::from_micros(10)).await;
        }
        assert!((LIMIT..=LIMIT + ROUND).contains(&most), "{most}");
    });
}

#[test]
fn what_nobody_flushes_is_durable_after_a_second() {
    run(async {
        let disk = SimDisk::new(disk_len(4), 1);
        let config = || Config {
            idle_destage: Duration::from_secs(1 << 30),
            upload_interval: Duration::from_secs(1 << 30),
            ..config(1)
        };
        let store: Arc<dyn Store> = Arc::new(SimStore::new(1));
        let at = Arc::new(disk.clone());
        let cache = Cache::create(at, Arc::clone(&store), 8 * LOG, config()).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        for tag in 1..=2 {
            volume.write(tag * BLOCK_BYTES, block(tag), false).await.unwrap();
            // The first has more than that since.
            tokio::time::sleep(Duration::from_millis(tag * 500)).await;
        }
        volume.write(3 * BLOCK_BYTES, block(3), false).await.unwrap();
        disk.restart(Survivors::None);
        drop((cache, volume));
        let cache = Cache::open(Arc::new(disk), store, config()).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        for tag in 1..=2 {
            let found = volume.read_vec(tag * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(tag), "block {tag}");
        }
        let found = volume.read_vec(3 * BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
        assert_eq!(found, block(0), "was durable at once: the test proves nothing");
    });
}
