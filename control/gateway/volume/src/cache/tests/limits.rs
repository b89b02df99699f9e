//! What many clients share, and what memory holds of many chunks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::super::{Cache, Config, VolumeOptions};
use super::world::{LOG, config, disk_len, name, run};
use crate::disk::sim::{SimDisk, Survivors};
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
        volume.upload().await.unwrap();
        // Those that are newer in memory are written with a checkpoint, and can go after that.
        cache.destage().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(headers() <= LIMIT, "{} headers after writes", headers());
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
