//! Damage in the log: records that are lost or cannot be read, a loss that the operator accepts, and the sequences that
//! are used after it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{
    LOG, block, blocks, config, disk_len, in_log, layout, name, new_cache, open, run,
};
use super::faults::one_chunk;
use super::stores::{Gate, hasty};
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::format::superblock::COPIES;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

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
        disk.flip(layout(&disk).log_at + 4096 + 5, 1);
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
            let third = new_cache(&SimDisk::new(disk_len(4), 2), &store.copy(), 1).await;
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
            let third = new_cache(&SimDisk::new(disk_len(4), 2), &gate.store.copy(), 1).await;
            let found = third.attach_volume(&name(), options, true).await.unwrap();
            assert_eq!(found.read_vec(0, 4 * BLOCK_BYTES).await.unwrap(), whole);
        });
    }
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
