//! What a loss holds up: its own volume, at its quota or when the cache is full of it, and no other one for ever. What
//! mends it is taken whatever is full.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::refusal::Refusal;
use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{block, config, disk_len, layout, name, new_cache, run, slot_of};
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::{Error, Result};
use crate::format::slot_header::HEADER_BYTES;
use crate::format::superblock::Layout;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Too little for anybody to have waited for an upload.
const AT_ONCE: Duration = Duration::from_secs(1);
/// More than an upload that fails is put off.
const IN_TIME: Duration = Duration::from_secs(200);

/// Damages the block of 1 that a chunk begins with.
fn damage_block(disk: &SimDisk) {
    disk.flip(slot_of(disk, 1) + 2 * HEADER_BYTES as u64 + 5, 1);
}

/// A volume of so many chunks beside the other.
async fn new_other(cache: &Cache, chunks: u64) -> Volume {
    let other = VolumeName::new("other").unwrap();
    let options = VolumeOptions::default();
    cache.create_volume(&other, chunks * CHUNK_BYTES, options).await.unwrap()
}

/// A cache of four slots, opened again, with a volume of four chunks. The first is dirty and begins with a block of 1,
/// and both headers of its slot are damaged; the directory as well if that is asked for.
async fn damaged(directory_too: bool) -> (Cache, Volume) {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let cache = new_cache(&disk, &store, 1).await;
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
    volume.write(0, block(1), false).await.unwrap();
    cache.close().await.unwrap();
    disk.restart(Survivors::None);
    let slot = slot_of(&disk, 1);
    for header in [slot, slot + HEADER_BYTES as u64] {
        disk.flip(header + 50, 1);
    }
    if directory_too {
        disk.flip(layout(&disk).directory_at + 16, 1);
    }
    let cache = Cache::open(Arc::new(disk), Arc::new(store), config(2)).await.unwrap();
    let volume = cache.volume(&name()).unwrap();
    (cache, volume)
}

/// A cache with two volumes, and a store that refuses puts. The slots that may be dirty are so with the first one, and
/// the log has a record of it for which there is none. Chunk `i` of it begins with a block of `1 + i`.
async fn full_of_one(disk: &SimDisk, store: &SimStore) -> (Cache, Volume, Volume) {
    let cache = new_cache(disk, store, 1).await;
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), 16 * CHUNK_BYTES, options).await.unwrap();
    let other = new_other(&cache, 4).await;
    store.deny_puts(true);
    for chunk in 0..14 {
        volume.write(chunk * CHUNK_BYTES, block(1 + chunk as u8), true).await.unwrap();
        cache.destage().await.unwrap();
    }
    assert_eq!(cache.dirty_slots(), 13);
    assert!(cache.status().log.1 > 0);
    (cache, volume, other)
}

/// A cache with two volumes, of which the first has more dirty chunks than there are slots. Chunk `i` of it begins with
/// a block of `1 + i`.
async fn with_more_than_slots(disk: &SimDisk, store: &SimStore) -> (Cache, Volume, Volume) {
    let cache = new_cache(disk, store, 1).await;
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), 8 * CHUNK_BYTES, options).await.unwrap();
    let other = new_other(&cache, 4).await;
    store.deny_puts(true);
    for chunk in 0..6 {
        volume.write(chunk * CHUNK_BYTES, block(1 + chunk as u8), true).await.unwrap();
        cache.destage().await.unwrap();
    }
    store.deny_puts(false);
    (cache, volume, other)
}

/// Writes a block, which is to be answered `within` that time.
async fn write(volume: &Volume, offset: u64, tag: u8, within: Duration) -> Result<()> {
    let answer = tokio::time::timeout(within, volume.write(offset, block(tag), false)).await;
    answer.expect("the writer still waits")
}

/// Uploads until what is lost counts as that, and says what.
async fn find_loss(volume: &Volume) -> Error {
    volume.upload().await.unwrap_err();
    let loss = volume.upload().await.unwrap_err();
    assert!(matches!(loss, Error::Lost { .. }), "{loss:?}");
    loss
}

/// Writes several times as much as the log holds.
async fn write_much(volume: &Volume) -> Result<()> {
    for i in 0..60 {
        write(volume, i % 2 * CHUNK_BYTES, 50, IN_TIME).await?;
    }
    Ok(())
}

#[test]
fn at_its_quota_a_volume_takes_what_mends_its_loss_and_tells_other_writers() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions { dirty_quota: 4 * BLOCK_BYTES, ..VolumeOptions::default() };
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        for i in 0..4 {
            volume.write(i * BLOCK_BYTES, block(1), true).await.unwrap();
        }
        cache.destage().await.unwrap();
        damage_block(&disk);
        // Who waits when it is found, and who comes after that.
        let beside = 8 * BLOCK_BYTES;
        for within in [IN_TIME, AT_ONCE] {
            match write(&volume, beside, 2, within).await {
                Err(Error::Lost { offset, end, .. }) => assert_eq!((offset, end), (0, BLOCK_BYTES)),
                answer => panic!("{answer:?}"),
            }
        }
        let trim = volume.trim(0, BLOCK_BYTES, false);
        tokio::time::timeout(AT_ONCE, trim).await.expect("the trim still waits").unwrap();
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        write(&volume, beside, 3, AT_ONCE).await.unwrap();
    });
}

#[test]
fn at_its_quota_a_volume_takes_all_that_a_lost_header_may_have_named() {
    run(async {
        let (_cache, volume) = damaged(false).await;
        let options = VolumeOptions { dirty_quota: BLOCK_BYTES, ..VolumeOptions::default() };
        volume.set_options(options).await.unwrap();
        // The directory knows 16 blocks together.
        let lost = 16 * BLOCK_BYTES;
        match find_loss(&volume).await {
            Error::Lost { offset, end, .. } => assert_eq!((offset, end), (0, lost)),
            error => panic!("{error:?}"),
        }
        let beside = write(&volume, lost, 2, AT_ONCE).await;
        assert!(matches!(beside, Err(Error::Lost { .. })), "{beside:?}");
        // Piece by piece: what is mended is no loss any more, and what is left of it is taken.
        for at in (0..lost).step_by(8 * BLOCK_BYTES as usize) {
            let data = Bytes::from(vec![3; 8 * BLOCK_BYTES as usize]);
            let mends = volume.write(at, data, false);
            tokio::time::timeout(AT_ONCE, mends).await.expect("the writer still waits").unwrap();
        }
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        write(&volume, lost, 4, AT_ONCE).await.unwrap();
    });
}

#[test]
fn a_volume_with_a_loss_holds_up_no_other_when_its_share_of_the_cache_is_full() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(16), 1), SimStore::new(1));
        let (cache, volume, other) = full_of_one(&disk, &store).await;
        damage_block(&disk);
        // A cut under way may have read the block before that: it fails, since nothing can be put.
        volume.upload().await.unwrap_err();
        store.deny_puts(false);
        find_loss(&volume).await;
        write_much(&other).await.unwrap();
        assert!(cache.dirty_slots() > 13);
        let beside = write(&volume, 15 * CHUNK_BYTES, 60, AT_ONCE).await;
        assert!(matches!(beside, Err(Error::Lost { offset: 0, .. })), "{beside:?}");
        write(&volume, 0, 61, AT_ONCE).await.unwrap();
        volume.upload().await.unwrap();
        write(&volume, 15 * CHUNK_BYTES, 60, IN_TIME).await.unwrap();
        let tags = (1..14).map(|chunk| (chunk, 1 + chunk as u8));
        for (chunk, tag) in tags.chain([(0, 61), (15, 60)]) {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(tag), "chunk {chunk}");
        }
    });
}

#[test]
fn a_volume_in_quarantine_holds_up_no_other_when_its_share_of_the_cache_is_full() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(16), 1), SimStore::new(1));
        let (cache, volume, other) = full_of_one(&disk, &store).await;
        store.deny_puts(false);
        let second = new_cache(&SimDisk::new(disk_len(4), 9), &store, 9).await;
        second.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
        let uploaded = volume.upload().await;
        assert!(matches!(uploaded, Err(Error::Superseded { .. })), "{uploaded:?}");
        write_much(&other).await.unwrap();
        let mut export = cache.export_quarantine(&name()).unwrap();
        let mut chunks = 0;
        while let Some(range) = export.next().await.unwrap() {
            let chunk = range.offset / CHUNK_BYTES;
            assert_eq!(range.data.unwrap(), block(1 + chunk as u8), "chunk {chunk}");
            chunks += 1;
        }
        assert_eq!(chunks, 14);
    });
}

#[test]
fn where_a_volume_with_a_loss_has_all_slots_others_are_told_and_go_on_once_it_is_mended() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let (cache, volume, other) = with_more_than_slots(&disk, &store).await;
        damage_block(&disk);
        find_loss(&volume).await;
        match write_much(&other).await {
            Err(Error::Lost { volume, offset, .. }) => assert_eq!((volume, offset), (name(), 0)),
            answer => panic!("{answer:?}"),
        }
        // What it has written by then is in the store.
        assert_eq!(other.status().unwrap().dirty_bytes, 0);
        assert_eq!(cache.dirty_slots(), 4);
        write(&volume, 0, 61, AT_ONCE).await.unwrap();
        volume.upload().await.unwrap();
        write_much(&other).await.unwrap();
        for chunk in 1..6 {
            let found = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(found, block(1 + chunk as u8), "chunk {chunk}");
        }
    });
}

#[test]
fn while_slots_are_unknown_writers_are_told_instead_of_waiting_for_room() {
    run(async {
        let (cache, volume) = damaged(true).await;
        assert_eq!(cache.status().unknown_slots, 1);
        let mut answer = Ok(());
        for i in 0..200 {
            // More chunks than may be dirty, and nothing twice.
            let offset = i % 4 * CHUNK_BYTES + i / 4 * BLOCK_BYTES;
            answer = write(&volume, offset, 3, IN_TIME).await;
            if answer.is_err() {
                break;
            }
        }
        assert!(matches!(answer, Err(Error::UnknownLoss { slots: 1, .. })), "{answer:?}");
        cache.scrub(true, |_, _| {}).await.unwrap();
        write(&volume, CHUNK_BYTES - BLOCK_BYTES, 4, IN_TIME).await.unwrap();
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
    });
}

#[test]
fn what_cannot_be_read_once_holds_nobody_up() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions { dirty_quota: BLOCK_BYTES, ..VolumeOptions::default() };
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        cache.destage().await.unwrap();
        let at = slot_of(&disk, 1) + 2 * HEADER_BYTES as u64;
        disk.make_unreadable(at, BLOCK_BYTES);
        let uploaded = volume.upload().await;
        assert!(matches!(uploaded, Err(Error::Lost { .. })), "{uploaded:?}");
        disk.make_readable(at);
        write(&volume, BLOCK_BYTES, 2, IN_TIME).await.unwrap();
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
    });
}

#[test]
fn what_was_lost_and_is_mended_is_uploaded_soon() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        cache.destage().await.unwrap();
        damage_block(&disk);
        // By then uploads are half a minute apart or more.
        tokio::time::sleep(IN_TIME).await;
        assert!(volume.status().unwrap().dirty_bytes > 0);
        write(&volume, 0, 2, AT_ONCE).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
    });
}

#[test]
fn an_upload_helps_a_volume_that_is_being_released() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let volume = new_other(&cache, 1).await;
        let helps = |refusing| {
            let mut state = cache.inner.state();
            state.volumes.get_mut(&volume.id()).unwrap().refusing = refusing;
            state.upload_helps(volume.id())
        };
        assert!(helps(Some(Refusal::Releasing)));
        assert!(!helps(Some(Refusal::InDoubt)));
        assert!(helps(None));
    });
}

#[test]
fn where_a_volume_in_quarantine_has_all_slots_others_are_told_and_go_on_once_it_is_forgotten() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let (cache, volume, other) = with_more_than_slots(&disk, &store).await;
        let second = new_cache(&SimDisk::new(disk_len(4), 9), &store, 9).await;
        second.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
        let uploaded = volume.upload().await;
        assert!(matches!(uploaded, Err(Error::Superseded { .. })), "{uploaded:?}");
        match write_much(&other).await {
            Err(error @ Error::FullOfQuarantine { .. }) => {
                assert!(
                    error.to_string().contains("`culvert volume delete v --forget`"),
                    "{error}"
                );
            }
            answer => panic!("{answer:?}"),
        }
        assert!(cache.inner.state().log.is_stuck);
        assert_eq!(cache.inner.state().helpless(), ["v"]);
        assert_eq!(other.status().unwrap().dirty_bytes, 0);
        cache.forget_volume(&name()).await.unwrap();
        assert!(!cache.inner.state().log.is_stuck);
        write_much(&other).await.unwrap();
    });
}

#[test]
fn who_waits_is_told_when_the_volume_that_has_all_slots_turns_out_to_be_somebody_elses() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let (cache, volume, other) = with_more_than_slots(&disk, &store).await;
        store.deny_puts(true);
        let mut writing = Box::pin(write_much(&other));
        let waited = tokio::time::timeout(IN_TIME / 2, &mut writing).await;
        assert!(waited.is_err(), "{waited:?}");
        cache.inner.superseded(volume.id(), 9).await;
        store.deny_puts(false);
        let told = tokio::time::timeout(IN_TIME, writing).await.expect("the writer still waits");
        assert!(matches!(told, Err(Error::FullOfQuarantine { .. })), "{told:?}");
    });
}

#[test]
fn the_volume_that_has_most_of_the_room_decides_what_its_writers_are_told() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let cache = new_cache(&disk, &store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        let other = new_other(&cache, 1).await;
        store.deny_puts(true);
        for i in 0..4 {
            volume.write(i * BLOCK_BYTES, block(1), true).await.unwrap();
        }
        other.write(0, block(2), true).await.unwrap();
        cache.inner.superseded(other.id(), 9).await;
        let told = |refusing, superseded_by| {
            let mut state = cache.inner.state();
            let largest = state.volumes.get_mut(&volume.id()).unwrap();
            (largest.refusing, largest.superseded_by) = (refusing, superseded_by);
            state.in_the_way()
        };
        for refusing in [Refusal::InDoubt, Refusal::Deleting, Refusal::Forgetting] {
            let told = told(Some(refusing), None);
            assert!(told.is_none(), "{refusing}: {told:?}");
        }
        match told(Some(Refusal::Quarantined), Some(9)) {
            Some(Error::FullOfQuarantine { volume }) => assert_eq!(volume, name()),
            told => panic!("{told:?}"),
        }
        assert!(told(Some(Refusal::Forgetting), Some(9)).is_none());
    });
}

#[test]
fn data_that_are_read_again_later_keep_no_others_in_the_log() {
    /// Chunks of one round.
    const BAD: u64 = 64;
    const LOG: u64 = 2 << 20;
    run(async {
        let disk = SimDisk::new(disk_len(128) + LOG, 1);
        let config = Config {
            destage_above: 1.0,
            idle_destage: Duration::from_secs(86_400),
            upload_interval: Duration::from_secs(86_400),
            ..config(1)
        };
        let (at, store) = (Arc::new(disk.clone()), Arc::new(SimStore::new(1)));
        let cache = Cache::create(at, store, LOG, config).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 80 * CHUNK_BYTES, options).await.unwrap();
        for chunk in 0..80 {
            volume.write(chunk * CHUNK_BYTES, block(1), true).await.unwrap();
        }
        // A frame is a header and its block.
        let log_at = Layout::for_len(disk_len(128) + LOG, LOG).unwrap().log_at;
        disk.make_unreadable(log_at, BAD * 2 * BLOCK_BYTES);
        for destaged in [0, 80 - BAD] {
            cache.destage().await.unwrap();
            assert_eq!(cache.status().counters.destaged_chunks, destaged);
        }
        disk.make_readable(log_at);
        let after = Config::default().unreadable_for / 2;
        tokio::time::sleep(after).await;
        cache.destage().await.unwrap();
        assert_eq!(cache.status().counters.destaged_chunks, 80);
    });
}
