//! Failures, and damage elsewhere than in the log and the slots: superblocks, openings, failed syncs, full disks and
//! full caches, objects in the store, and accesses that race. What can be got elsewhere is, what cannot is named, and
//! nothing is silent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_immediate;

use super::super::state::Key;
use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{
    LOG, block, blocks, config, disk_len, in_log, name, new_cache, open, run, slot_of,
};
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::format::slot_header::HEADER_BYTES;
use crate::format::superblock::COPIES;
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// A closed cache with one clean chunk (0) and one dirty chunk (1), both in slots.
pub(super) async fn closed() -> (SimDisk, SimStore) {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let cache = new_cache(&disk, &store, 1).await;
    let volume =
        cache.create_volume(&name(), 4 * CHUNK_BYTES, VolumeOptions::default()).await.unwrap();
    volume.write(0, block(1), false).await.unwrap();
    cache.destage().await.unwrap();
    volume.upload().await.unwrap();
    volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
    cache.close().await.unwrap();
    disk.restart(Survivors::None);
    (disk, store)
}

/// A new cache of four slots with a volume of one chunk.
pub(super) async fn one_chunk() -> (SimDisk, SimStore, Cache, Volume) {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let cache = new_cache(&disk, &store, 1).await;
    let volume = cache.create_volume(&name(), CHUNK_BYTES, VolumeOptions::default()).await.unwrap();
    (disk, store, cache, volume)
}

#[test]
fn a_planned_stop_leaves_nothing_to_validate() {
    run(async {
        let (disk, store) = closed().await;
        let cache = open(&disk, &store).await.unwrap();
        assert_eq!(cache.status().unvalidated, 0);
        assert_eq!(cache.status().log.1, 0);
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(CHUNK_BYTES, 4096).await.unwrap(), block(2));
        drop(cache);
        disk.restart(Survivors::None);
        let cache = open(&disk, &store).await.unwrap();
        assert_eq!(cache.status().unvalidated, 2);
    });
}

#[test]
fn one_damaged_superblock_is_survived_and_two_are_an_error() {
    run(async {
        let (disk, store) = closed().await;
        // Each opening writes both anew.
        disk.flip(COPIES[0] + 40, 1);
        drop(open(&disk, &store).await.unwrap());
        disk.flip(COPIES[1] + 40, 1);
        drop(open(&disk, &store).await.unwrap());
        disk.flip(COPIES[0] + 40, 1);
        disk.flip(COPIES[1] + 40, 1);
        let opened = open(&disk, &store).await;
        assert!(matches!(opened, Err(Error::NoSuperblock { .. })), "{opened:?}");
        let empty = SimDisk::new(disk_len(4), 1);
        assert!(matches!(open(&empty, &store).await, Err(Error::NoSuperblock { .. })));
        let cache = new_cache(&empty, &store, 1).await;
        drop(cache);
        let twice =
            Cache::create(Arc::new(empty), Arc::new(store.clone()), LOG, Config::default()).await;
        assert!(matches!(twice, Err(Error::Exists { .. })));
    });
}

#[test]
fn after_a_failed_sync_nothing_is_promised_until_the_cache_is_opened_again() {
    // What the sync failed for is not on the medium, whatever else is.
    for survivors in [Survivors::None, Survivors::All] {
        run(failed_sync(survivors));
    }
}

async fn failed_sync(survivors: Survivors) {
    let (disk, store, cache, volume) = one_chunk().await;
    volume.write(0, block(1), true).await.unwrap();
    volume.write(0, block(2), false).await.unwrap();
    disk.fail_syncs(true);
    let syncs = disk.counts().syncs;
    assert!(matches!(volume.flush().await, Err(Error::Stopped { .. })));
    assert!(matches!(volume.flush().await, Err(Error::Stopped { .. })));
    assert!(matches!(volume.write(0, block(3), false).await, Err(Error::Stopped { .. })));
    assert!(volume.read(0, 4096).await.is_err());
    assert_eq!(disk.counts().syncs, syncs + 1, "a failed sync was tried again");
    assert!(cache.status().stopped.is_some());
    drop(cache);
    disk.fail_syncs(false);
    disk.restart(survivors);
    let cache = open(&disk, &store).await.unwrap();
    let volume = cache.volume(&name()).unwrap();
    assert_eq!(volume.read_vec(0, 4096).await.unwrap(), block(1));
}

#[test]
fn a_full_disk_stops_the_cache_and_loses_nothing() {
    run(async {
        let (disk, store, cache, volume) = one_chunk().await;
        volume.write(0, block(1), true).await.unwrap();
        disk.fail_writes(true);
        assert!(matches!(volume.write(0, block(2), false).await, Err(Error::Stopped { .. })));
        drop(cache);
        disk.fail_writes(false);
        disk.restart(Survivors::All);
        let cache = open(&disk, &store).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(0, 4096).await.unwrap(), block(1));
    });
}

#[test]
fn damaged_objects_are_errors_that_name_them() {
    run(async {
        let (disk, store) = closed().await;
        let paths = store.paths();
        drop(disk);
        for path in paths {
            let store = store.copy();
            // Beyond a pack's table, within its first block.
            store.flip(&path, if path.contains("/pack/") { 4096 + 9 } else { 60 });
            let fresh = SimDisk::new(disk_len(4), 5);
            let cache = new_cache(&fresh, &store, 1).await;
            let attached = cache.attach_volume(&name(), VolumeOptions::default(), true).await;
            let read = match attached {
                Ok(volume) => volume.read_vec(0, 4096).await,
                Err(error) => Err(error),
            };
            match read {
                Err(Error::RemoteDamaged { path: named, .. }) => assert_eq!(named, path),
                other => panic!("{path}: {other:?}"),
            }
        }
    });
}

#[test]
fn first_accesses_that_race_validate_a_chunk_once() {
    run(async {
        let (disk, store) = closed().await;
        drop(open(&disk, &store).await.unwrap());
        disk.reopen();
        disk.slow_reads(true);
        let cache = open(&disk, &store).await.unwrap();
        assert_eq!(cache.status().unvalidated, 2);
        let volume = cache.volume(&name()).unwrap();
        let accesses = (0..32_u64).map(|number| {
            let volume = volume.clone();
            async move {
                // Some read what is there, some write beside it, all in one chunk.
                if number % 4 == 3 {
                    let at = CHUNK_BYTES + (8 + number) * 4096;
                    volume.write(at, block(7), false).await.unwrap();
                } else {
                    let read = volume.read_vec(CHUNK_BYTES, 4096).await.unwrap();
                    assert_eq!(read, block(2));
                }
            }
        });
        futures_util::future::join_all(accesses).await;
        let status = cache.status();
        // The background may have come to the other chunk meanwhile.
        assert!(status.counters.validated <= 2, "{status:?}");
        assert_eq!(u64::from(status.unvalidated) + status.counters.validated, 2);
        assert!(status.counters.validated >= 1);
    });
}

#[test]
fn a_reader_that_waited_while_its_chunk_left_and_came_back_takes_the_new_lock() {
    run(async {
        let (_disk, _store, cache, volume) = one_chunk().await;
        volume.write(0, block(1), false).await.unwrap();
        cache.destage().await.unwrap();
        volume.upload().await.unwrap();
        let key = Key { volume: volume.id(), chunk: 0 };
        // Meanwhile free slots are made ready.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let lock = || cache.inner.state().io(key).unwrap();
        let old = lock().write_owned().await;
        let mut read = Box::pin(volume.read_vec(0, BLOCK_BYTES));
        assert!(poll_immediate(&mut read).await.is_none());
        // What an eviction does that is writing the header of the free slot still.
        let slot = cache.inner.state().chunks[&key].slot.unwrap();
        cache.inner.state().vacate(slot);
        assert!(!cache.inner.state().chunks.contains_key(&key));
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
        cache.inner.fills.wait(|fills| *fills == 0).await;
        assert!(cache.inner.state().chunks[&key].slot.is_some());
        let new = lock().write_owned().await;
        drop(old);
        for _ in 0..100 {
            let answer = poll_immediate(&mut read).await;
            assert!(answer.is_none(), "read beside who may write the slot");
            tokio::task::yield_now().await;
        }
        drop(new);
        assert_eq!(read.await.unwrap(), block(1));
    });
}

#[test]
fn a_drain_that_cannot_upload_leaves_slots_to_reads() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(8), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 12 * CHUNK_BYTES, options).await.unwrap();
        volume.write(0, block(1), false).await.unwrap();
        volume.upload().await.unwrap();
        cache.destage().await.unwrap();
        assert_eq!(cache.evict(1).await.unwrap(), 1);
        store.deny_puts(true);
        for chunk in 1..12 {
            volume.write(chunk * CHUNK_BYTES, block(2), true).await.unwrap();
            cache.destage().await.unwrap();
        }
        // Meanwhile free slots are made ready.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let dirty = || {
            let state = cache.inner.state();
            state.slots.iter().filter(|slot| slot.entry.dirty_blocks > 0).count()
        };
        assert_eq!(dirty(), 6);
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
        cache.inner.fills.wait(|fills| *fills == 0).await;
        store.set_down(true);
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1), "it was not kept");
        for chunk in 1..12 {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(2));
        }
        // What waited in the log goes on once there are uploads.
        store.set_down(false);
        store.deny_puts(false);
        volume.upload().await.unwrap();
        for _ in 0..8 {
            cache.destage().await.unwrap();
        }
        assert_eq!((dirty(), cache.status().log.1), (0, 0));
    });
}

#[test]
fn a_cache_of_two_slots_takes_more_than_it_holds() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(2), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 16 * CHUNK_BYTES, options).await.unwrap();
        // Most of the time one slot is dirty, as many as may be, and the log full.
        for round in 0..8 {
            for chunk in 0..16 {
                let data = Bytes::from(vec![round + 1; 8 * BLOCK_BYTES as usize]);
                volume.write(chunk * CHUNK_BYTES, data, false).await.unwrap();
            }
        }
        for chunk in 0..16 {
            assert_eq!(volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap(), block(8));
        }
    });
}

#[test]
fn an_export_passes_over_what_is_damaged_and_names_it() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(8), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
        volume.write(0, blocks(1..=4), false).await.unwrap();
        volume.write(CHUNK_BYTES, block(5), false).await.unwrap();
        cache.close().await.unwrap();
        disk.restart(Survivors::None);
        // A block, both headers of a slot, and a record of the log.
        disk.flip(slot_of(&disk, 1) + 2 * HEADER_BYTES as u64 + BLOCK_BYTES + 5, 1);
        let slot = slot_of(&disk, 5);
        for header in [slot, slot + HEADER_BYTES as u64] {
            disk.flip(header + 50, 1);
        }
        let cache = open(&disk, &store).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        volume.write(3 * CHUNK_BYTES, blocks(6..=7), true).await.unwrap();
        disk.flip(in_log(&disk, 6) + 5, 1);
        let (other, remote) = (SimDisk::new(disk_len(4), 2), Arc::new(store.clone()));
        let other = Cache::create(Arc::new(other), remote, LOG, config(9)).await.unwrap();
        other.attach_volume(&name(), options, true).await.unwrap();
        assert!(matches!(volume.upload().await, Err(Error::Superseded { .. })));
        let mut export = cache.export_quarantine(&name()).unwrap();
        let mut found = Vec::new();
        while let Some(range) = export.next().await.unwrap() {
            found.push((range.offset, range.data.unwrap()));
        }
        let whole = [
            (0, block(1)),
            (2 * BLOCK_BYTES, blocks(3..=4)),
            (3 * CHUNK_BYTES + BLOCK_BYTES, block(7)),
        ];
        assert_eq!(found, whole);
        let lost = [
            BLOCK_BYTES..2 * BLOCK_BYTES,
            // The directory knows 16 blocks together.
            CHUNK_BYTES..CHUNK_BYTES + 16 * BLOCK_BYTES,
            3 * CHUNK_BYTES..3 * CHUNK_BYTES + BLOCK_BYTES,
        ];
        assert_eq!((export.lost(), export.unknown_slots()), (&lost[..], 0));
    });
}

#[test]
fn a_file_too_short_for_a_cache_is_called_so() {
    run(async {
        let opened = open(&SimDisk::new(64 << 10, 1), &SimStore::new(1)).await;
        assert!(matches!(opened, Err(Error::TooShort { len: 65_536, .. })), "{opened:?}");
    });
}
