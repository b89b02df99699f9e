//! Damage in the slots and in the directory of them: headers, blocks, and what is lost because nobody knows what a slot
//! held.

use std::sync::Arc;
use std::time::Duration;

use super::super::state::Key;
use super::super::{Cache, Config, VolumeOptions};
use super::caches::{
    LOG, block, blocks, config, disk_len, layout, name, new_cache, open, run, slot_of,
    until_it_dies,
};
use super::faults::{closed, one_chunk};
use super::uploads::FOREVER;
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::format::slot_header::{HEADER_BYTES, SLOT_BYTES, SlotHeader};
use crate::format::superblock::{COPIES, Superblock};
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

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
        let in_log = (0..LOG / 4096).map(|i| layout(&disk).log_at + i * 4096);
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
        disk.flip(layout(&disk).directory_at + 16, 1);
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
            let at = layout(&disk).slots_at + u64::from(slot) * SLOT_BYTES;
            let says_free = |at: &u64| {
                let header = SlotHeader::parse(&disk.peek(*at, HEADER_BYTES), cache_id, slot);
                header.unwrap().volume == 0
            };
            let free = [at, at + HEADER_BYTES as u64].into_iter().find(says_free).unwrap();
            disk.flip(free + 50, 1);
            disk.flip(layout(&disk).directory_at + 16, 1);
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
            let third = new_cache(&SimDisk::new(disk_len(4), 2), &store.copy(), 1).await;
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
                until_it_dies(&disk, work).await;
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
fn a_scrub_judges_the_medium_and_not_what_memory_shows_of_it() {
    run(async {
        let (disk, _store, cache, volume) = one_chunk().await;
        volume.write(0, blocks(1..=8), false).await.unwrap();
        cache.destage().await.unwrap();
        let first = slot_of(&disk, 1) + 2 * HEADER_BYTES as u64;
        disk.spoil_memory(first + 4 * BLOCK_BYTES + 9);
        let report = cache.scrub(false, |_, _| {}).await.unwrap();
        assert_eq!((report.blocks, report.lost.len()), (8, 0), "{report:?}");
        // And a spot that cannot be read takes none of its neighbours along.
        disk.make_unreadable(first + 5 * BLOCK_BYTES, 512);
        let report = cache.scrub(false, |_, _| {}).await.unwrap();
        assert_eq!((report.blocks, report.lost.len()), (8, 1), "{report:?}");
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
            until_it_dies(&disk, work).await;
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
