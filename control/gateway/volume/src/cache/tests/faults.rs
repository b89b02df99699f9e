//! Damage and failures: what can be got elsewhere is, what cannot is named, and nothing is silent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_immediate;

use super::super::state::Key;
use super::super::{Cache, Config, Volume, VolumeOptions};
use super::ownership::{Gate, hasty};
use super::uploads::FOREVER;
use super::world::{LOG, config, disk_len, name, run};
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::format::slot_header::{HEADER_BYTES, SLOT_BYTES, SlotHeader};
use crate::format::superblock::{COPIES, Layout, Superblock};
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

fn block(tag: u8) -> Bytes {
    Bytes::from(vec![tag; BLOCK_BYTES as usize])
}

fn layout() -> Layout {
    Layout::for_len(disk_len(4), LOG).unwrap()
}

/// Where the slot begins whose chunk begins with a block of `tag`.
fn slot_of(disk: &SimDisk, tag: u8) -> u64 {
    let layout = layout();
    (0..u64::from(layout.slots))
        .map(|slot| layout.slots_at + slot * SLOT_BYTES)
        .find(|at| disk.peek(at + 2 * HEADER_BYTES as u64, 1) == [tag])
        .unwrap()
}

/// Where in the log a block of `tag` lies.
fn in_log(disk: &SimDisk, tag: u8) -> u64 {
    (0..LOG / BLOCK_BYTES)
        .map(|i| layout().log_at + i * BLOCK_BYTES)
        .find(|at| disk.peek(*at, BLOCK_BYTES as usize) == block(tag))
        .unwrap()
}

/// Blocks of these tags.
fn blocks(tags: std::ops::RangeInclusive<u8>) -> Bytes {
    tags.flat_map(block).collect()
}

/// A closed cache with one clean chunk (0) and one dirty chunk (1), both in slots.
async fn closed() -> (SimDisk, SimStore) {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let cache = open_new(&disk, &store).await;
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

async fn open_new(disk: &SimDisk, store: &SimStore) -> Cache {
    Cache::create(Arc::new(disk.clone()), Arc::new(store.clone()), LOG, config(1)).await.unwrap()
}

/// A new cache of four slots with a volume of one chunk.
async fn one_chunk() -> (SimDisk, SimStore, Cache, Volume) {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let cache = open_new(&disk, &store).await;
    let volume = cache.create_volume(&name(), CHUNK_BYTES, VolumeOptions::default()).await.unwrap();
    (disk, store, cache, volume)
}

async fn open(disk: &SimDisk, store: &SimStore) -> Result<Cache, Error> {
    Cache::open(Arc::new(disk.clone()), Arc::new(store.clone()), config(2)).await
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
        let cache = open_new(&empty, &store).await;
        drop(cache);
        let twice =
            Cache::create(Arc::new(empty), Arc::new(store.clone()), LOG, Config::default()).await;
        assert!(matches!(twice, Err(Error::Exists { .. })));
    });
}

#[test]
fn what_memory_shows_wrong_is_read_again_from_the_medium() {
    run(async {
        let (disk, store) = closed().await;
        let dirty = slot_of(&disk, 2);
        disk.spoil_memory(dirty + 2 * HEADER_BYTES as u64 + 5);
        let headers = [dirty, dirty + HEADER_BYTES as u64];
        for header in headers {
            disk.spoil_memory(header + 50);
        }
        let cache = open(&disk, &store).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(CHUNK_BYTES, 4096).await.unwrap(), block(2));
        // A record of the log as well.
        volume.write(2 * CHUNK_BYTES, block(3), true).await.unwrap();
        let in_log = (0..LOG / 4096).map(|i| layout().log_at + i * 4096);
        for at in in_log.filter(|at| disk.peek(*at, 4096) == block(3)) {
            disk.spoil_memory(at + 9);
        }
        assert_eq!(volume.read_vec(2 * CHUNK_BYTES, 4096).await.unwrap(), block(3));
        cache.destage().await.unwrap();
        assert_eq!(volume.read_vec(2 * CHUNK_BYTES, 4096).await.unwrap(), block(3));
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().lost, 0);
    });
}

#[test]
fn a_directory_page_is_rebuilt_from_headers_that_only_memory_shows_wrong() {
    run(async {
        let (disk, store) = closed().await;
        let dirty = slot_of(&disk, 2);
        for header in [dirty, dirty + HEADER_BYTES as u64] {
            disk.spoil_memory(header + 50);
        }
        disk.flip(layout().directory_at + 16, 1);
        let cache = open(&disk, &store).await.unwrap();
        assert_eq!(cache.status().unknown_slots, 0);
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(CHUNK_BYTES, BLOCK_BYTES).await.unwrap(), block(2));
    });
}

/// The header before lies beside the one that says so, and the data are right by it.
#[test]
fn no_older_header_of_a_slot_that_was_given_up_is_believed() {
    for is_fetched in [false, true] {
        run(async {
            let (disk, store, cache, volume) = one_chunk().await;
            let key = Key { volume: volume.id(), chunk: 0 };
            volume.write(0, block(1), false).await.unwrap();
            cache.destage().await.unwrap();
            let slot = cache.inner.state().chunks[&key].slot.unwrap();
            volume.upload().await.unwrap();
            assert_eq!(cache.evict(1).await.unwrap(), 1);
            // What is newer goes elsewhere.
            cache.inner.state().free.retain(|free| *free != slot);
            volume.write(0, block(2), false).await.unwrap();
            cache.destage().await.unwrap();
            volume.upload().await.unwrap();
            assert_eq!(cache.evict(1).await.unwrap(), 1);
            if is_fetched {
                // Meanwhile free slots are made ready.
                tokio::time::sleep(Duration::from_secs(3)).await;
                assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(2));
                cache.inner.fills.wait(|fills| *fills == 0).await;
                cache.destage().await.unwrap();
                assert!(cache.inner.state().chunks[&key].slot.is_some_and(|new| new != slot));
            }
            let cache_id = cache.status().cache_id;
            drop(cache);
            disk.restart(Survivors::All);
            let at = layout().slots_at + u64::from(slot) * SLOT_BYTES;
            let says_free = |at: &u64| {
                let header = SlotHeader::parse(&disk.peek(*at, HEADER_BYTES), cache_id, slot);
                header.unwrap().volume == 0
            };
            let free = [at, at + HEADER_BYTES as u64].into_iter().find(says_free).unwrap();
            disk.flip(free + 50, 1);
            disk.flip(layout().directory_at + 16, 1);
            let cache = open(&disk, &store).await.unwrap();
            assert_eq!(cache.status().unknown_slots, 1);
            let volume = cache.volume(&name()).unwrap();
            let read = volume.read_vec(0, BLOCK_BYTES).await;
            if is_fetched {
                assert_eq!(read.unwrap(), block(2));
            } else {
                assert!(matches!(read, Err(Error::UnknownLoss { .. })), "{read:?}");
            }
            cache.scrub(true, |_, _| {}).await.unwrap();
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(2));
            volume.upload().await.unwrap();
            let third = open_new(&SimDisk::new(disk_len(4), 2), &store.copy()).await;
            let found = third.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
            assert_eq!(found.read_vec(0, BLOCK_BYTES).await.unwrap(), block(2));
        });
    }
}

/// It is on the disk with a checkpoint, and there is none while the map of the log is too long and no slot takes
/// more.
#[test]
fn a_loss_is_accepted_on_the_disk_or_not_at_all() {
    const CHUNKS: u64 = 5;
    let config = Config {
        destage_above: 2.0,
        idle_destage: FOREVER,
        upload_interval: FOREVER,
        // One slot.
        dirty_share: 0.0,
        ..config(1)
    };
    run(async {
        let (disk, store) = (SimDisk::new(64 << 20, 1), SimStore::new(1));
        let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
        let cache = Cache::create(at, remote, 4 * LOG, config).await.unwrap();
        let options = VolumeOptions::default();
        let size = (CHUNKS + 1) * CHUNK_BYTES;
        let volume = cache.create_volume(&name(), size, options).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        cache.inner.state().unknown_slots = 1;
        cache.destage().await.unwrap();
        let on_disk = || {
            let superblock = disk.peek(COPIES[0], BLOCK_BYTES as usize);
            Superblock::parse(&superblock, disk.len()).unwrap().unknown_slots
        };
        assert_eq!(on_disk(), 1);
        // Every other block.
        let blocks = CHUNKS * CHUNK_BYTES / BLOCK_BYTES;
        let places: Vec<u64> =
            (0..blocks).step_by(2).map(|i| CHUNK_BYTES + i * BLOCK_BYTES).collect();
        for places in places.chunks(30) {
            let trims = places.iter().map(|at| volume.trim(*at, BLOCK_BYTES, false));
            futures_util::future::try_join_all(trims).await.unwrap();
        }
        let refused = cache.scrub(true, |_, _| {}).await;
        assert!(matches!(refused, Err(Error::MapTooLong { .. })), "{refused:?}");
        let status = cache.status();
        assert!(status.stopped.is_none() && status.unknown_slots == 1, "{status:?}");
        assert_eq!(on_disk(), 1);
        // Few pieces are left of it.
        volume.trim(CHUNK_BYTES, CHUNKS * CHUNK_BYTES, false).await.unwrap();
        cache.scrub(true, |_, _| {}).await.unwrap();
        assert_eq!((cache.status().unknown_slots, on_disk()), (0, 0));
    });
}

#[test]
fn a_damaged_clean_block_is_fetched_again_and_a_dirty_one_is_named() {
    run(async {
        let (disk, store) = closed().await;
        disk.flip(slot_of(&disk, 1) + 2 * HEADER_BYTES as u64 + 77, 4);
        disk.flip(slot_of(&disk, 2) + 2 * HEADER_BYTES as u64 + 78, 4);
        let cache = open(&disk, &store).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        let report = cache.scrub(false, |_, _| {}).await.unwrap();
        assert_eq!((report.clean_damaged, report.lost.len()), (1, 1), "{report:?}");
        assert_eq!(volume.read_vec(0, 4096).await.unwrap(), block(1));
        assert_eq!(cache.status().counters.damaged_blocks, 1);
        match volume.read_vec(CHUNK_BYTES, 4096).await {
            Err(Error::Lost { offset, end, .. }) => {
                assert_eq!((offset, end), (CHUNK_BYTES, CHUNK_BYTES + 4096));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(volume.upload().await, Err(Error::Lost { .. })));
        volume.trim(CHUNK_BYTES, 4096, false).await.unwrap();
        volume.upload().await.unwrap();
    });
}

#[test]
fn damage_in_the_durable_part_of_the_log_is_an_error_unless_accepted() {
    run(async {
        let (disk, store, cache, volume) = one_chunk().await;
        for i in 0..3 {
            volume.write(i * 4096, block(i as u8 + 1), true).await.unwrap();
        }
        drop(cache);
        disk.restart(Survivors::All);
        // The data of the first record: two more frames, written later, say that it was durable.
        disk.flip(layout().log_at + 4096 + 5, 1);
        match open(&disk, &store).await {
            Err(error @ Error::LogDamaged { pos: 0, .. }) => {
                assert!(error.to_string().contains("--accept-loss"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        let accept = Config { accept_loss: true, ..config(3) };
        let cache =
            Cache::open(Arc::new(disk.clone()), Arc::new(store.clone()), accept).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(0, 4096).await.unwrap(), block(0));
    });
}

/// Nothing in the log tells that its last frame was durable. What does is that its record was uploaded, or that the
/// directory has it in a slot, where the power was cut before the superblock moved on.
#[test]
fn sequences_that_the_log_lost_are_not_used_again() {
    for is_uploaded in [true, false] {
        run(async {
            let (disk, store, cache, volume) = one_chunk().await;
            for tag in 1..=3 {
                volume.write(u64::from(tag) * BLOCK_BYTES, block(tag), true).await.unwrap();
            }
            let superblocks = COPIES.map(|at| disk.peek(at, BLOCK_BYTES as usize));
            if is_uploaded {
                volume.upload().await.unwrap();
            } else {
                cache.destage().await.unwrap();
            }
            drop(cache);
            disk.restart(Survivors::All);
            for (at, superblock) in COPIES.into_iter().zip(superblocks) {
                disk.write(at, vec![superblock.into()]).await.unwrap();
            }
            disk.flip(in_log(&disk, 3) + 9, 1);
            let opened = open(&disk, &store).await;
            assert!(matches!(opened, Err(Error::LogDamaged { seq: 3, .. })), "{opened:?}");
            let accept = Config { accept_loss: true, ..config(3) };
            let cache =
                Cache::open(Arc::new(disk.clone()), Arc::new(store.clone()), accept).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            volume.write(0, block(9), true).await.unwrap();
            drop(cache);
            disk.restart(Survivors::None);
            // Without the operator's word: there is no gap that looks like damage.
            let cache = open(&disk, &store).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            let whole: Bytes = [9, 1, 2, 3].into_iter().flat_map(block).collect();
            assert_eq!(volume.read_vec(0, 4 * BLOCK_BYTES).await.unwrap(), whole);
            volume.upload().await.unwrap();
            let third = open_new(&SimDisk::new(disk_len(4), 2), &store.copy()).await;
            let found = third.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
            assert_eq!(found.read_vec(0, 4 * BLOCK_BYTES).await.unwrap(), whole);
        });
    }
}

/// A crash before it is on the disk that sequences go on behind the loss must not hide that there is one.
#[test]
fn a_loss_that_was_accepted_is_asked_about_again_until_that_is_on_the_disk() {
    let (base, store) = run(async {
        let (disk, store, cache, volume) = one_chunk().await;
        for tag in 1..=3 {
            volume.write(u64::from(tag) * BLOCK_BYTES, block(tag), true).await.unwrap();
        }
        drop(cache);
        disk.restart(Survivors::All);
        (disk, store)
    });
    base.flip(in_log(&base, 2) + 9, 1);
    let (mut asked, mut went_on) = (0, 0);
    for die_at in 1.. {
        let disk = base.copy(1);
        disk.die_at(Some(die_at));
        let is_open = run(async {
            let accept = Config { accept_loss: true, ..config(3) };
            let opening = Cache::open(Arc::new(disk.clone()), Arc::new(store.copy()), accept);
            tokio::select! {
                biased;
                () = disk.died() => false,
                opened = opening => opened.map(|_| true).unwrap(),
            }
        });
        for left in [Survivors::None, Survivors::All, Survivors::Random(die_at)] {
            let disk = disk.copy(1);
            disk.restart(left);
            run(async {
                match open(&disk, &store.copy()).await {
                    Err(Error::LogDamaged { seq: 2, .. }) => asked += 1,
                    Ok(cache) => {
                        let next_seq = cache.inner.state().log.next_seq;
                        assert!(next_seq > 1000, "{next_seq} after a crash at {die_at}, {left:?}");
                        went_on += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            });
        }
        if is_open {
            break;
        }
    }
    assert!(asked > 10 && went_on > 2, "{asked} {went_on}");
}

/// A root arrives that was put before the log was damaged, and of which no answer had come.
#[test]
fn sequences_that_only_a_root_has_are_not_used_again_after_a_loss() {
    // That the first of these was durable says the frame after it; that the last one was, only the volume's page.
    for damaged in [2, 3] {
        let (disk, gate) = (SimDisk::new(disk_len(4), 1), Gate::new());
        let remote = || Arc::new(gate.clone());
        let options = VolumeOptions::default();
        run(async {
            let at = Arc::new(disk.clone());
            let cache = Cache::create(at, remote(), LOG, hasty(1)).await.unwrap();
            let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
            volume.write(0, block(1), true).await.unwrap();
            volume.upload().await.unwrap();
            for tag in 2..=3 {
                volume.write(u64::from(tag) * BLOCK_BYTES, block(tag), true).await.unwrap();
            }
            gate.upload_in_doubt(&volume).await;
        });
        disk.restart(Survivors::All);
        disk.flip(in_log(&disk, damaged) + 9, 1);
        run(async {
            let opened = Cache::open(Arc::new(disk.clone()), remote(), config(2)).await;
            match opened {
                Err(Error::LogDamaged { seq, .. }) => assert_eq!(seq, u64::from(damaged)),
                opened => panic!("{opened:?}"),
            }
            let accept = Config { accept_loss: true, ..config(3) };
            let cache = Cache::open(Arc::new(disk.clone()), remote(), accept).await.unwrap();
            gate.arrive().await;
            let volume = cache.volume(&name()).unwrap();
            volume.write(BLOCK_BYTES, block(9), true).await.unwrap();
            volume.upload().await.unwrap();
            let whole: Bytes = [1, 9, 2, 3].into_iter().flat_map(block).collect();
            assert_eq!(volume.read_vec(0, 4 * BLOCK_BYTES).await.unwrap(), whole);
            let third = open_new(&SimDisk::new(disk_len(4), 2), &gate.store.copy()).await;
            let found = third.attach_volume(&name(), options, true).await.unwrap();
            assert_eq!(found.read_vec(0, 4 * BLOCK_BYTES).await.unwrap(), whole);
        });
    }
}

#[test]
fn after_a_failed_sync_nothing_is_promised_until_the_cache_is_opened_again() {
    run(async {
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
        disk.restart(Survivors::None);
        let cache = open(&disk, &store).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(0, 4096).await.unwrap(), block(1));
    });
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
fn unreadable_sectors_are_errors_of_their_range_only() {
    run(async {
        let (disk, store) = closed().await;
        for tag in [1, 2] {
            disk.make_unreadable(slot_of(&disk, tag), SLOT_BYTES);
        }
        let cache = open(&disk, &store).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!(volume.read_vec(0, 4096).await.unwrap(), block(1));
        assert!(matches!(volume.read(CHUNK_BYTES, 4096).await, Err(Error::Lost { .. })));
        // The same chunk, beyond the 16 blocks that the directory calls dirty.
        assert_eq!(volume.read_vec(CHUNK_BYTES + (1 << 20), 4096).await.unwrap(), block(0));
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
            let cache = open_new(&fresh, &store).await;
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

/// After a planned stop nothing is validated, so only the headers themselves tell which of a slot's two is the
/// durable one. The first rewrite must spare it, however often it was written before the stop.
#[test]
pub(super) fn a_header_torn_after_a_planned_stop_takes_nothing() {
    for destages in 1..=3 {
        let (disk, store) = run(async {
            let (disk, store, cache, volume) = one_chunk().await;
            for round in 0..destages {
                volume.write(round * BLOCK_BYTES, block(1 + round as u8), true).await.unwrap();
                cache.destage().await.unwrap();
            }
            cache.close().await.unwrap();
            disk.restart(Survivors::None);
            (disk, store)
        });
        let session = |die_at| {
            let (disk, store) = (disk.copy(1), store.copy());
            disk.die_at(die_at);
            run(async {
                let work = async {
                    let cache = open(&disk, &store).await.unwrap();
                    let volume = cache.volume(&name()).unwrap();
                    volume.write(destages * BLOCK_BYTES, block(9), true).await.unwrap();
                    cache.destage().await.unwrap();
                };
                tokio::select! {
                    biased;
                    () = disk.died() => {}
                    () = work => {}
                }
            });
            (disk, store)
        };
        let steps = session(None).0.steps();
        let mut torn = 0;
        for die_at in 1..=steps {
            let (disk, store) = session(Some(die_at));
            let unsynced = disk.unsynced();
            let survivors = (0..unsynced)
                .flat_map(|i| [Survivors::Only(i), Survivors::AllBut(i), Survivors::Prefix(i)]);
            for left in survivors {
                let disk = disk.copy(1);
                disk.restart(left);
                torn += disk.counts().torn;
                run(async {
                    let cache = open(&disk, &store).await.unwrap();
                    let volume = cache.volume(&name()).unwrap();
                    for round in 0..destages {
                        let read = volume.read_vec(round * BLOCK_BYTES, BLOCK_BYTES).await;
                        let read = read.unwrap_or_else(|e| {
                            panic!("{destages} destaged, cut at {die_at}, left {left:?}: {e}")
                        });
                        assert_eq!(read, block(1 + round as u8));
                    }
                });
            }
        }
        assert!(torn > 100, "{torn} torn writes");
    }
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
        let lock = || Arc::clone(&cache.inner.state().chunks[&key].io);
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
fn a_damaged_record_of_the_log_is_an_error_of_its_range_and_holds_nobody_up() {
    for is_unreadable in [false, true] {
        run(async {
            let (disk, store) = (SimDisk::new(disk_len(8), 1), SimStore::new(1));
            // An upload that fails counts its losses, too.
            let config = Config { upload_interval: Duration::from_secs(86_400), ..config(1) };
            let unreadable_for = config.unreadable_for;
            let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
            let cache = Cache::create(at, remote, LOG, config).await.unwrap();
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
            let other_name = VolumeName::new("other").unwrap();
            let other = cache.create_volume(&other_name, 4 * CHUNK_BYTES, options).await.unwrap();
            // Not so much that it is moved to slots at once.
            volume.write(0, blocks(1..=3), true).await.unwrap();
            other.write(0, block(7), true).await.unwrap();
            volume.write(CHUNK_BYTES, block(8), true).await.unwrap();
            let bad = in_log(&disk, 2);
            if is_unreadable {
                disk.make_unreadable(bad, BLOCK_BYTES);
            } else {
                disk.flip(bad + 9, 1);
            }
            let check = async |volume: &Volume, other: &Volume| {
                match volume.read_vec(0, 3 * BLOCK_BYTES).await {
                    Err(Error::Lost { offset, end, .. }) => {
                        assert_eq!((offset, end), (BLOCK_BYTES, 2 * BLOCK_BYTES));
                    }
                    found => panic!("{found:?}"),
                }
                for (at, tag) in [(0, 1), (2 * BLOCK_BYTES, 3), (CHUNK_BYTES, 8)] {
                    assert_eq!(volume.read_vec(at, BLOCK_BYTES).await.unwrap(), block(tag));
                }
                assert_eq!(other.read_vec(0, BLOCK_BYTES).await.unwrap(), block(7));
            };
            check(&volume, &other).await;
            let lost = || volume.status().unwrap().lost;
            let mut before = lost();
            for _ in 0..3 {
                cache.destage().await.unwrap();
            }
            if is_unreadable {
                // It may be readable again.
                assert_eq!(lost(), before);
                assert!(cache.status().log.1 > 0, "the log does not keep what is read again");
                check(&volume, &other).await;
                before = lost();
                tokio::time::sleep(unreadable_for + Duration::from_secs(10)).await;
            }
            assert_eq!(lost(), before + 1, "a loss is counted once");
            assert_eq!(cache.status().log.1, 0, "the log keeps what is damaged");
            check(&volume, &other).await;
            if !is_unreadable {
                // Several times as much as the log holds.
                for i in 0..200 {
                    let at = CHUNK_BYTES + i % 8 * BLOCK_BYTES;
                    other.write(at, block(9), false).await.unwrap();
                }
            }
            let stopped = cache.status().stopped;
            assert!(stopped.is_none(), "{stopped:?}");
            cache.close().await.unwrap();
            disk.restart(Survivors::None);
            let cache = open(&disk, &store).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            let other = cache.volume(&other_name).unwrap();
            check(&volume, &other).await;
            // A write of the whole block heals it.
            volume.write(BLOCK_BYTES, block(6), true).await.unwrap();
            for _ in 0..2 {
                let healed = volume.read_vec(BLOCK_BYTES, BLOCK_BYTES).await.unwrap();
                assert_eq!(healed, block(6));
                cache.destage().await.unwrap();
            }
            volume.upload().await.unwrap();
            assert!(cache.status().stopped.is_none());
        });
    }
}

#[test]
fn what_of_the_log_cannot_be_read_for_a_while_is_not_lost() {
    run(async {
        let (disk, _store, cache, volume) = one_chunk().await;
        volume.write(0, blocks(1..=3), true).await.unwrap();
        let bad = in_log(&disk, 2);
        disk.make_unreadable(bad, BLOCK_BYTES);
        for _ in 0..3 {
            cache.destage().await.unwrap();
        }
        tokio::time::sleep(Config::default().unreadable_for / 2).await;
        assert!(cache.status().log.1 > 0);
        disk.make_readable(bad);
        assert_eq!(volume.read_vec(0, 3 * BLOCK_BYTES).await.unwrap(), blocks(1..=3));
        tokio::time::sleep(Config::default().unreadable_for).await;
        assert_eq!(cache.status().log.1, 0);
        assert_eq!(volume.read_vec(0, 3 * BLOCK_BYTES).await.unwrap(), blocks(1..=3));
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
    });
}

#[test]
fn a_bad_block_of_a_slot_takes_none_of_its_neighbours_along() {
    for is_unreadable in [false, true] {
        let spoil = |disk: &SimDisk, block: u64| {
            let at = slot_of(disk, 1) + 2 * HEADER_BYTES as u64 + block * BLOCK_BYTES;
            if is_unreadable { disk.make_unreadable(at + 512, 512) } else { disk.flip(at + 9, 1) }
        };
        run(async {
            let (disk, store, cache, volume) = one_chunk().await;
            volume.write(0, blocks(1..=8), false).await.unwrap();
            cache.destage().await.unwrap();
            volume.upload().await.unwrap();
            spoil(&disk, 2);
            store.set_down(true);
            let read = volume.read_vec(0, 8 * BLOCK_BYTES).await;
            assert!(matches!(read, Err(Error::StoreTimeout { .. })), "{read:?}");
            assert_eq!(cache.status().counters.damaged_blocks, 1);
            for (first, tags) in [(0, 1..=2), (3, 4..=8)] {
                let whole = blocks(tags);
                let read = volume.read_vec(first * BLOCK_BYTES, whole.len() as u64).await;
                assert_eq!(read.unwrap(), whole);
            }
            store.set_down(false);
            assert_eq!(volume.read_vec(0, 8 * BLOCK_BYTES).await.unwrap(), blocks(1..=8));
        });
        // What is not in the store is lost, and no more.
        run(async {
            let (disk, _store, cache, volume) = one_chunk().await;
            volume.write(0, blocks(1..=8), false).await.unwrap();
            cache.destage().await.unwrap();
            spoil(&disk, 4);
            spoil(&disk, 5);
            let bad = (4 * BLOCK_BYTES, 6 * BLOCK_BYTES);
            for answer in [
                volume.read_vec(0, 8 * BLOCK_BYTES).await.map(drop),
                volume.upload().await.map(drop),
            ] {
                match answer {
                    Err(Error::Lost { offset, end, .. }) => assert_eq!((offset, end), bad),
                    answer => panic!("{answer:?}"),
                }
            }
            volume.write(bad.0, blocks(5..=6), false).await.unwrap();
            volume.upload().await.unwrap();
            assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        });
    }
}

#[test]
fn a_damaged_record_that_the_store_has_is_fetched_again() {
    run(async {
        let (disk, _store, cache, volume) = one_chunk().await;
        volume.write(0, blocks(1..=4), true).await.unwrap();
        volume.upload().await.unwrap();
        disk.flip(in_log(&disk, 2) + 9, 1);
        cache.destage().await.unwrap();
        assert_eq!(cache.status().counters.damaged_blocks, 1);
        assert_eq!(volume.read_vec(0, 4 * BLOCK_BYTES).await.unwrap(), blocks(1..=4));
        assert_eq!(volume.status().unwrap().lost, 0);
    });
}

/// The mark goes with the header that has the new value. The record that does may not be durable yet when a header
/// is written for another reason.
#[test]
fn a_loss_is_not_forgotten_over_a_write_that_a_power_cut_took() {
    let (disk, store) = run(closed());
    let slot = slot_of(&disk, 2);
    for header in [slot, slot + HEADER_BYTES as u64] {
        disk.flip(header + 50, 1);
    }
    let session = |die_at| {
        let (disk, store) = (disk.copy(1), store.copy());
        disk.die_at(die_at);
        run(async {
            let work = async {
                let cache = open(&disk, &store).await.unwrap();
                let volume = cache.volume(&name()).unwrap();
                let read = volume.read(CHUNK_BYTES, BLOCK_BYTES).await;
                assert!(matches!(read, Err(Error::Lost { .. })), "{read:?}");
                volume.write(CHUNK_BYTES, block(9), false).await.unwrap();
                let _turn = cache.inner.maintenance.lock().await;
                cache.inner.checkpoint(false).await.unwrap();
            };
            tokio::select! {
                biased;
                () = disk.died() => {}
                () = work => {}
            }
        });
        disk
    };
    let steps = session(None).steps();
    let (mut lost, mut written) = (0, 0);
    for die_at in 1..=steps {
        let left = session(Some(die_at));
        let unsynced = left.unsynced();
        let survivors = (0..=unsynced).flat_map(|i| [Survivors::AllBut(i), Survivors::Prefix(i)]);
        for survivors in survivors {
            let disk = left.copy(1);
            disk.restart(survivors);
            run(async {
                let cache = open(&disk, &store.copy()).await.unwrap();
                let volume = cache.volume(&name()).unwrap();
                match volume.read_vec(CHUNK_BYTES, BLOCK_BYTES).await {
                    Err(Error::Lost { .. }) => lost += 1,
                    Ok(found) if found == block(9) => written += 1,
                    found => panic!("cut at {die_at}, left {survivors:?}: {found:?}"),
                }
            });
        }
    }
    assert!(lost > 0 && written > 0, "{lost} lost, {written} written");
}

#[test]
fn a_drain_that_cannot_upload_leaves_slots_to_reads() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(8), 1), SimStore::new(1));
        let cache = open_new(&disk, &store).await;
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
        let cache = open_new(&disk, &store).await;
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
        let cache = open_new(&disk, &store).await;
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
