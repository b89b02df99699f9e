//! Volumes and their owners.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Cache, Config, Volume, VolumeOptions};
use super::caches::{LOG, block, cache_at, config, disk_len, name, run};
use super::runs::SEEDS;
use crate::disk::sim::{Rng, SimDisk, Survivors};
use crate::error::Error;
use crate::format::volume_page::Durability;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// How a change of owner went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// Whether the first owner's upload was in the store before the second came.
    is_uploaded: bool,
    /// Puts that came too late for their condition, after they were answered with an error.
    too_late: u64,
}

/// One owner uploads while another takes over, as when the first was stopped and goes on later.
pub(super) fn two_owners(seed: u64) -> Result<Change, String> {
    run(async {
        let mut rng = Rng::new(seed);
        let store = SimStore::new(seed);
        let (first, second) =
            (cache_at(&store, seed * 2).await, cache_at(&store, seed * 2 + 1).await);
        if rng.one_in(2) {
            store.fail_one_in(6);
        }
        let old = first.create_volume(&name(), 4 * CHUNK_BYTES, VolumeOptions::default()).await;
        let old = old.map_err(|e| e.to_string())?;
        old.write(0, block(1), false).await.map_err(|e| e.to_string())?;
        old.upload().await.map_err(|e| e.to_string())?;
        old.write(0, block(2), false).await.map_err(|e| e.to_string())?;
        old.write(CHUNK_BYTES, block(3), false).await.map_err(|e| e.to_string())?;
        let refused = second.attach_volume(&name(), VolumeOptions::default(), false).await;
        if !matches!(refused, Err(Error::Owned { .. })) {
            return Err(format!("taken without asking: {refused:?}"));
        }
        let late = rng.below(40);
        let take = async {
            for _ in 0..late {
                tokio::task::yield_now().await;
            }
            let new = second.attach_volume(&name(), VolumeOptions::default(), true).await?;
            new.write(2 * CHUNK_BYTES, block(4), false).await?;
            new.upload().await?;
            Ok::<_, Error>(new)
        };
        let (uploaded, new) = tokio::join!(old.upload(), take);
        let new = new.map_err(|e| format!("the second owner: {e}"))?;
        match &uploaded {
            Ok(_) | Err(Error::Superseded { .. }) => {}
            Err(error) => return Err(format!("the first owner's upload: {error}")),
        }
        // Whatever the first owner still tries, nothing of it becomes visible.
        let _ = old.write(3 * CHUNK_BYTES, block(5), false).await;
        let again = old.upload().await;
        if !matches!(again, Err(Error::Superseded { .. })) {
            return Err(format!("the first owner uploads after it lost the volume: {again:?}"));
        }
        if old.write(0, block(6), false).await.is_ok() || old.read(0, 1).await.is_ok() {
            return Err("the first owner still serves".to_owned());
        }
        new.upload().await.map_err(|e| format!("the second owner cannot upload: {e}"))?;
        drop(second);
        let third = cache_at(&store.copy(), 99).await;
        let now = third.attach_volume(&name(), VolumeOptions::default(), true).await;
        let now = now.map_err(|e| e.to_string())?;
        let mut tags = Vec::new();
        for chunk in 0..4 {
            let at = chunk * CHUNK_BYTES;
            tags.push(now.read_vec(at, 1).await.map_err(|e| e.to_string())?[0]);
        }
        if tags != [1, 0, 4, 0] && tags != [2, 3, 4, 0] {
            return Err(format!("the remote holds a mix: {tags:?}"));
        }
        let mut quarantine = BTreeMap::new();
        let mut export = first.export_quarantine(&name()).map_err(|e| e.to_string())?;
        while let Some(range) = export.next().await.map_err(|e| e.to_string())? {
            let data = range.data.as_ref().map_or(0, |data| data[0]);
            quarantine.insert(range.offset / CHUNK_BYTES, data);
        }
        let (a, b) = (quarantine.get(&0).copied(), quarantine.get(&1).copied());
        if tags[0] == 1 && (a, b) != (Some(2), Some(3)) {
            return Err(format!("the quarantine lacks what was not uploaded: {quarantine:?}"));
        }
        Ok(Change { is_uploaded: tags[0] == 2, too_late: store.faults().too_late })
    })
}

#[test]
fn a_superseded_owner_uploads_nothing_and_keeps_its_data_for_export() {
    let (mut in_time, mut too_late) = (0, 0);
    for seed in 1..=SEEDS {
        match two_owners(seed) {
            Ok(change) => {
                in_time += u64::from(change.is_uploaded);
                too_late += change.too_late;
            }
            Err(fault) => panic!("seed {seed}: {fault}"),
        }
    }
    // Now the one was faster and now the other, and some puts arrived when they were not wanted any more.
    assert!((1..SEEDS).contains(&in_time), "{in_time} in time");
    assert!(too_late > 0);
}

#[test]
fn a_released_volume_is_taken_with_everything_in_it() {
    run(async {
        let store = SimStore::new(1);
        let (first, second) = (cache_at(&store, 1).await, cache_at(&store, 2).await);
        let old =
            first.create_volume(&name(), CHUNK_BYTES, VolumeOptions::default()).await.unwrap();
        old.write(8192, block(7), false).await.unwrap();
        first.release_volume(&name()).await.unwrap();
        assert!(matches!(first.volume(&name()), Err(Error::NoVolume { .. })));
        assert!(old.read(0, 1).await.is_err());
        let new = second.attach_volume(&name(), VolumeOptions::default(), false).await.unwrap();
        assert_eq!(new.read_vec(8192, BLOCK_BYTES).await.unwrap(), block(7));
        // And back again: nothing that the first had before is in the way.
        new.write(8192, block(8), false).await.unwrap();
        second.release_volume(&name()).await.unwrap();
        let back = first.attach_volume(&name(), VolumeOptions::default(), false).await.unwrap();
        assert_eq!(back.read_vec(8192, BLOCK_BYTES).await.unwrap(), block(8));
        assert_eq!(back.status().unwrap().epoch, 3);
    });
}

#[test]
fn bad_names_sizes_and_ranges_are_refused_and_leave_nothing_behind() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache_at(&store, 1).await;
        for size in [0, 1, 4095, 4097, (64 << 40) + 4096, u64::MAX] {
            let made = cache.create_volume(&name(), size, VolumeOptions::default()).await;
            assert!(matches!(made, Err(Error::Size { .. })), "{size}");
        }
        assert_eq!(store.paths(), Vec::<String>::new());
        assert!(cache.volumes().is_empty());
        let volume = cache.create_volume(&name(), 8192, VolumeOptions::default()).await.unwrap();
        let again = cache.create_volume(&name(), 8192, VolumeOptions::default()).await;
        assert!(matches!(again, Err(Error::VolumeExists { .. })));
        for (offset, len) in [(0, 8193), (8192, 1), (u64::MAX, 2), (1, u64::MAX)] {
            assert!(matches!(volume.read(offset, len).await, Err(Error::OutOfBounds { .. })));
            assert!(matches!(
                volume.trim(offset, len, false).await,
                Err(Error::OutOfBounds { .. })
            ));
        }
        assert!(volume.write(8000, block(1), false).await.is_err());
        assert_eq!(volume.read_vec(0, 8192).await.unwrap(), vec![0; 8192]);
        let other = VolumeName::new("other").unwrap();
        assert!(matches!(cache.volume(&other), Err(Error::NoVolume { .. })));
        let missing = cache.attach_volume(&other, VolumeOptions::default(), true).await;
        assert!(matches!(missing, Err(Error::NoVolume { .. })));
        cache.delete_volume(&name()).await.unwrap();
        assert!(cache.stored_volumes().await.unwrap().is_empty());
        cache.create_volume(&name(), 4096, VolumeOptions::default()).await.unwrap();
    });
}

#[test]
fn cached_data_are_served_in_an_outage_and_the_rest_fails_in_time() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache_at(&store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 6 * CHUNK_BYTES, options).await.unwrap();
        for chunk in 0..6 {
            volume.write(chunk * CHUNK_BYTES, block(chunk as u8 + 1), false).await.unwrap();
            cache.destage().await.unwrap();
            volume.upload().await.unwrap();
        }
        store.set_down(true);
        let before = tokio::time::Instant::now();
        let mut failed = 0;
        for chunk in 0..6 {
            match volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await {
                Ok(data) => assert_eq!(data, block(chunk as u8 + 1)),
                Err(Error::StoreTimeout { .. }) => failed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!((1..6).contains(&failed), "{failed}");
        assert!(before.elapsed() <= Duration::from_secs(31 * failed));
        volume.write(0, block(9), true).await.unwrap();
        assert!(matches!(volume.upload().await, Err(Error::StoreTimeout { .. })));
        store.set_down(false);
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
        for chunk in 1..6 {
            let data = volume.read_vec(chunk * CHUNK_BYTES, BLOCK_BYTES).await.unwrap();
            assert_eq!(data, block(chunk as u8 + 1));
        }
    });
}

#[test]
fn a_miss_moves_one_frame_and_joined_misses_move_it_once() {
    run(async {
        let store = SimStore::new(1);
        let options = VolumeOptions::default();
        {
            let cache = cache_at(&store, 1).await;
            let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
            let data = Bytes::from(vec![5; 1 << 20]);
            volume.write(0, data, false).await.unwrap();
            cache.release_volume(&name()).await.unwrap();
        }
        let cache = cache_at(&store, 2).await;
        let volume = cache.attach_volume(&name(), options, false).await.unwrap();
        let reads: Vec<_> = (0..8).map(|i| volume.read_vec(65536 + i * 4096, 4096)).collect();
        for data in futures_util::future::join_all(reads).await {
            assert_eq!(data.unwrap(), block(5));
        }
        assert_eq!(cache.status().counters.fetched_bytes, 65536);
        tokio::time::sleep(Duration::from_millis(10)).await;
        store.set_down(true);
        assert_eq!(volume.read_vec(65536, 65536).await.unwrap(), vec![5; 65536]);
        // An aligned write of a part needs nothing from the store.
        volume.write(8192, block(6), true).await.unwrap();
    });
}

#[test]
fn with_remote_durability_a_flush_is_in_the_store() {
    run(async {
        let store = SimStore::new(1);
        let first = cache_at(&store, 1).await;
        let options = VolumeOptions { durability: Durability::Remote, dirty_quota: 0 };
        let volume = first.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        volume.write(0, block(1), false).await.unwrap();
        volume.flush().await.unwrap();
        volume.write(4096, block(2), true).await.unwrap();
        let second = cache_at(&store.copy(), 2).await;
        let copy = second.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
        assert_eq!(copy.read_vec(0, 4096).await.unwrap(), block(1));
        assert_eq!(copy.read_vec(4096, 4096).await.unwrap(), block(2));
    });
}

#[test]
fn those_who_flush_at_once_share_a_cut() {
    const CLIENTS: u64 = 16;
    run(async {
        let store = SimStore::new(1);
        let disk = Arc::new(SimDisk::new(disk_len(8), 1));
        let config = Config { upload_interval: Duration::from_secs(86_400), ..config(1) };
        // In a log so large nothing waits for room.
        let cache = Cache::create(disk, Arc::new(store.clone()), 4 * LOG, config).await.unwrap();
        let options = VolumeOptions { durability: Durability::Remote, dirty_quota: 0 };
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        let (cuts, gets) = (cache.status().counters.cuts, store.reads().0);
        let clients = (0..CLIENTS).map(|client| {
            let volume = volume.clone();
            async move {
                volume.write(client * BLOCK_BYTES, block(1), false).await.unwrap();
                volume.flush().await.unwrap();
            }
        });
        futures_util::future::join_all(clients).await;
        let (cuts, gets) = (cache.status().counters.cuts - cuts, store.reads().0 - gets);
        assert!((1..=4).contains(&cuts) && gets <= 4, "{cuts} cuts, {gets} reads of the store");
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
    });
}

#[test]
fn a_full_quota_slows_writers_to_the_pace_of_uploads() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache_at(&store, 1).await;
        let options = VolumeOptions { dirty_quota: 8 * BLOCK_BYTES, ..VolumeOptions::default() };
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        for i in 0..100 {
            volume.write(i % 50 * BLOCK_BYTES, block(i as u8), false).await.unwrap();
            assert!(volume.status().unwrap().dirty_bytes <= 9 * BLOCK_BYTES);
            let blocks = volume.block_status(0, CHUNK_BYTES, usize::MAX).await.unwrap();
            let dirty = blocks.iter().filter(|extent| extent.status.dirty);
            assert!(dirty.map(|extent| extent.len).sum::<u64>() <= 9 * BLOCK_BYTES);
        }
        store.set_down(true);
        let stuck = async {
            for i in 0..50 {
                volume.write(i * BLOCK_BYTES, block(1), false).await.unwrap();
            }
        };
        let stuck = tokio::time::timeout(Duration::from_secs(60), stuck).await;
        assert!(stuck.is_err(), "nothing held the writer back");
    });
}

#[test]
fn status_tells_what_is_where() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache_at(&store, 1).await;
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        let status = volume.block_status(0, CHUNK_BYTES, 100).await.unwrap();
        assert_eq!((status.len(), status[0].len, status[0].status.hole), (1, CHUNK_BYTES, true));
        volume.write(4096, block(1), false).await.unwrap();
        let status = volume.block_status(100, CHUNK_BYTES - 100, 100).await.unwrap();
        let lens: Vec<u64> = status.iter().map(|extent| extent.len).collect();
        assert_eq!(lens, [3996, 4096, CHUNK_BYTES - 8192]);
        assert!(status[1].status.dirty && status[1].status.cached && !status[1].status.zero);
        assert_eq!(cache.dirty_slots(), 0);
        cache.destage().await.unwrap();
        assert_eq!(cache.dirty_slots(), 1);
        volume.upload().await.unwrap();
        assert_eq!(cache.dirty_slots(), 0);
        let status = volume.block_status(4096, 4096, 1).await.unwrap();
        assert!(!status[0].status.dirty && status[0].status.cached);
        volume.trim(0, CHUNK_BYTES, false).await.unwrap();
        let status = volume.block_status(0, CHUNK_BYTES, 1).await.unwrap();
        assert!(status[0].len == CHUNK_BYTES && status[0].status.zero);
    });
}

/// Whether each of the first blocks reads as zeros, and is a hole.
async fn zeros_and_holes(volume: &Volume, blocks: u64) -> Vec<(bool, bool)> {
    let mut found = Vec::new();
    for at in (0..blocks * BLOCK_BYTES).step_by(BLOCK_BYTES as usize) {
        let status = volume.block_status(at, BLOCK_BYTES, 1).await.unwrap()[0].status;
        found.push((status.zero, status.hole));
    }
    found
}

#[test]
fn what_was_trimmed_is_a_hole_in_log_and_slot_and_zeros_that_were_written_are_none() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), Arc::new(SimStore::new(1)));
        let destages_when_asked = || Config {
            destage_above: 1.0,
            idle_destage: Duration::from_secs(86_400),
            ..config(1)
        };
        let at = Arc::new(disk.clone());
        let cache = Cache::create(at, store.clone(), LOG, destages_when_asked()).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        for i in 0..4 {
            volume.write(i * BLOCK_BYTES, block(1), false).await.unwrap();
        }
        volume.write_zeroes(0, BLOCK_BYTES, false).await.unwrap();
        volume.trim(BLOCK_BYTES, 2 * BLOCK_BYTES, false).await.unwrap();
        volume.write_zeroes(2 * BLOCK_BYTES, BLOCK_BYTES, true).await.unwrap();
        let wanted = [(true, false), (true, true), (true, false), (false, false)];
        assert_eq!(zeros_and_holes(&volume, 4).await, wanted, "in the log");
        cache.inner.checkpoint(false).await.unwrap();
        drop((cache, volume));
        disk.restart(Survivors::None);
        let cache =
            Cache::open(Arc::new(disk.clone()), store, destages_when_asked()).await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        assert_eq!((cache.status().log.1 > 0, cache.dirty_slots()), (true, 0));
        assert_eq!(zeros_and_holes(&volume, 4).await, wanted, "in the checkpoint");
        cache.destage().await.unwrap();
        assert_eq!(cache.status().counters.destaged_chunks, 1);
        assert_eq!(zeros_and_holes(&volume, 4).await, wanted, "in the slot");
        volume.upload().await.unwrap();
        assert_eq!(zeros_and_holes(&volume, 4).await, wanted, "clean");
        volume.write(BLOCK_BYTES, block(1), false).await.unwrap();
        cache.destage().await.unwrap();
        assert_eq!(zeros_and_holes(&volume, 2).await, [(true, false), (false, false)]);
    });
}

#[test]
fn uploads_and_fetches_keep_to_their_rates() {
    run(async {
        let store = SimStore::new(1);
        let disk = Arc::new(SimDisk::new(disk_len(4), 1));
        let slow = Config { upload_rate: 1 << 20, fetch_rate: 64 << 10, ..config(1) };
        let cache = Cache::create(disk, Arc::new(store.clone()), LOG, slow).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 2 * CHUNK_BYTES, options).await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut written = 0;
        while written < 4 << 20 {
            volume.write(written, Bytes::from(vec![7; 1 << 16]), false).await.unwrap();
            written += 1 << 16;
        }
        volume.upload().await.unwrap();
        // 4 MiB and a little of the index; the last object is not waited for.
        let (took, put) = (begun.elapsed().as_secs_f64(), cache.status().counters.uploaded_bytes);
        assert!(took > 2.0 && put >= 4 << 20, "{put} bytes in {took} s");
        cache.destage().await.unwrap();
        while cache.evict(4).await.unwrap() > 0 {}
        let begun = tokio::time::Instant::now();
        volume.read_vec(0, 1 << 19).await.unwrap();
        // Eight frames of 64 KiB, a second each, less the burst and the last.
        let took = begun.elapsed().as_secs_f64();
        assert!((6.0..9.0).contains(&took), "{took} s");
    });
}

#[test]
fn an_aligned_write_reads_nothing_from_the_store_and_an_unaligned_one_its_edges() {
    run(async {
        let store = SimStore::new(1);
        let first = cache_at(&store, 1).await;
        let options = VolumeOptions::default();
        let volume = first.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        volume.write(0, vec![1; CHUNK_BYTES as usize].into(), false).await.unwrap();
        volume.upload().await.unwrap();
        drop(first);
        let second = cache_at(&store, 2).await;
        let volume = second.attach_volume(&name(), options, true).await.unwrap();
        let fetched = || second.status().counters.fetched_bytes;
        let before = fetched();
        volume
            .write(5 * BLOCK_BYTES, vec![2; 3 * BLOCK_BYTES as usize].into(), true)
            .await
            .unwrap();
        volume.write_zeroes(100 * BLOCK_BYTES, BLOCK_BYTES, false).await.unwrap();
        volume.trim(200 * BLOCK_BYTES, BLOCK_BYTES, false).await.unwrap();
        assert_eq!(fetched(), before, "an aligned write read from the store");
        // Two edges of one write: a frame each, and nothing of what lies between.
        let len = 64 * BLOCK_BYTES as usize;
        volume.write(320 * BLOCK_BYTES + 1, vec![3; len].into(), false).await.unwrap();
        let data = fetched() - before;
        assert!(data > 0 && data <= 2 * 16 * BLOCK_BYTES + (512 << 10), "{data} bytes");
        let read = volume.read_vec(320 * BLOCK_BYTES, len as u64 + 4096).await.unwrap();
        assert_eq!((read[0], read[1], read[len], read[len + 1]), (1, 3, 3, 1));
    });
}

#[test]
fn a_frame_in_several_objects_is_fetched_in_the_time_of_one() {
    run(async {
        let store = SimStore::new(1);
        let first = cache_at(&store, 1).await;
        let options = VolumeOptions::default();
        let volume = first.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        // One frame, whose blocks were uploaded in four cuts.
        for part in 0..4 {
            let data = Bytes::from(vec![part as u8 + 1; 4 * BLOCK_BYTES as usize]);
            volume.write(part * 4 * BLOCK_BYTES, data, false).await.unwrap();
            volume.upload().await.unwrap();
        }
        drop(first);
        let second = cache_at(&store, 2).await;
        let volume = second.attach_volume(&name(), options, true).await.unwrap();
        let time = Duration::from_millis(10);
        store.set_range_time(time);
        let (begun, gets) = (tokio::time::Instant::now(), store.reads().0);
        let read = volume.read_vec(0, 16 * BLOCK_BYTES).await.unwrap();
        let took = begun.elapsed();
        for (block, data) in read.chunks(BLOCK_BYTES as usize).enumerate() {
            assert_eq!(data, vec![block as u8 / 4 + 1; BLOCK_BYTES as usize]);
        }
        assert!(store.reads().0 - gets >= 4);
        assert!((time..2 * time).contains(&took), "{took:?}");
    });
}

#[test]
fn objects_end_between_frames() {
    run(async {
        let store = SimStore::new(1);
        let disk = Arc::new(SimDisk::new(disk_len(8), 1));
        let first = Cache::create(disk, Arc::new(store.clone()), LOG, config(1)).await.unwrap();
        let options = VolumeOptions::default();
        let volume = first.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
        for at in (0..4 * CHUNK_BYTES).step_by(1 << 16) {
            let data = vec![1 | (at >> 16) as u8; 1 << 16];
            volume.write(at, data.into(), false).await.unwrap();
        }
        volume.upload().await.unwrap();
        assert!(store.paths().iter().filter(|path| path.contains("/pack/")).count() >= 3);
        drop(first);
        let second = cache_at(&store, 2).await;
        let volume = second.attach_volume(&name(), options, true).await.unwrap();
        volume.read_vec(0, 1).await.unwrap();
        for at in (1 << 16..4 * CHUNK_BYTES).step_by(1 << 16) {
            let gets = store.reads().0;
            let read = volume.read_vec(at, BLOCK_BYTES).await.unwrap();
            assert_eq!(read, vec![1 | (at >> 16) as u8; BLOCK_BYTES as usize]);
            assert_eq!(store.reads().0 - gets, 1, "the frame at {at} lies in several objects");
        }
    });
}

#[test]
fn a_scan_does_not_take_what_is_used_out_of_the_cache() {
    const CHUNKS: u64 = 64;
    const HOT: u64 = 4;
    run(async {
        let store = SimStore::new(1);
        let options = VolumeOptions::default();
        let frame = |chunk: u64| vec![1 + chunk as u8; 1 << 16];
        {
            let first = cache_at(&store, 1).await;
            let volume = first.create_volume(&name(), CHUNKS * CHUNK_BYTES, options).await.unwrap();
            for chunk in 0..CHUNKS {
                volume.write(chunk * CHUNK_BYTES, frame(chunk).into(), false).await.unwrap();
                if chunk % 2 == 1 {
                    volume.upload().await.unwrap();
                }
            }
            first.release_volume(&name()).await.unwrap();
        }
        // Twelve slots; a scan of five times as many chunks.
        let disk = Arc::new(SimDisk::new(disk_len(12), 2));
        let cache = Cache::create(disk, Arc::new(store.clone()), LOG, config(2)).await.unwrap();
        let volume = cache.attach_volume(&name(), options, false).await.unwrap();
        let read = async |chunk: u64| {
            let found = volume.read_vec(chunk * CHUNK_BYTES, 1 << 16).await.unwrap();
            assert_eq!(found, frame(chunk));
            // What was fetched is kept meanwhile, and room is made.
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let misses = || cache.status().counters.misses;
        for _ in 0..2 {
            for chunk in 0..HOT {
                read(chunk).await;
            }
        }
        let mut missed = 0;
        for chunk in HOT..CHUNKS {
            read(chunk).await;
            if chunk % 4 == 3 {
                let before = misses();
                for chunk in 0..HOT {
                    read(chunk).await;
                }
                missed += misses() - before;
            }
        }
        assert_eq!(missed, 0, "blocks of the hot set were evicted");
        let status = cache.status();
        assert!(status.counters.evicted > 30, "{status:?}");
        // Between the watermarks some slots are free, and no more than that.
        assert!((1..=3).contains(&status.slots.1), "{status:?}");
    });
}

#[test]
fn reads_of_the_store_do_not_wait_for_a_drain() {
    run(async {
        let store = SimStore::new(1);
        let options = VolumeOptions::default();
        {
            let first = cache_at(&store, 1).await;
            let volume = first.create_volume(&name(), 2 * CHUNK_BYTES, options).await.unwrap();
            volume.write(0, vec![1; 1 << 20].into(), false).await.unwrap();
            first.release_volume(&name()).await.unwrap();
        }
        let disk = Arc::new(SimDisk::new(disk_len(4), 2));
        let slow = Config { upload_rate: 1 << 20, ..config(2) };
        let cache = Cache::create(disk, Arc::new(store.clone()), LOG, slow).await.unwrap();
        let volume = cache.attach_volume(&name(), options, false).await.unwrap();
        for at in (0..CHUNK_BYTES).step_by(1 << 16) {
            volume.write(CHUNK_BYTES + at, vec![2; 1 << 16].into(), false).await.unwrap();
        }
        store.set_range_time(Duration::from_millis(10));
        let drained = async {
            let begun = tokio::time::Instant::now();
            volume.upload().await.unwrap();
            // A first megabyte goes at once, or is on its way since the writes.
            begun.elapsed()
        };
        let reads = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut longest = Duration::ZERO;
            for at in (0..1 << 20).step_by(1 << 16) {
                let begun = tokio::time::Instant::now();
                assert_eq!(volume.read_vec(at, 4096).await.unwrap(), block(1));
                longest = longest.max(begun.elapsed());
            }
            assert!(volume.status().unwrap().dirty_bytes > 0, "it was drained before");
            longest
        };
        let (drained, longest) = tokio::join!(drained, reads);
        assert!(drained > Duration::from_secs(1), "{drained:?}");
        assert!(longest < Duration::from_millis(50), "{longest:?}");
    });
}
