//! A cache in a file with a folder as its store, on several threads, as in production.

use std::sync::Arc;

use bytes::Bytes;
use culvert_volume::disk::{Disk, FileDisk};
use culvert_volume::remote::FolderStore;
use culvert_volume::{Cache, Config, VolumeName, VolumeOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_lose_nothing_when_the_cache_is_dropped_or_gone() {
    let folder = tempfile::tempdir().unwrap();
    let name = VolumeName::new("disk0").unwrap();
    let store = || Arc::new(FolderStore::open(&folder.path().join("store")).unwrap());
    let disk = FileDisk::create(&folder.path().join("cache"), 160 << 20).unwrap();
    let cache = Cache::create(Arc::new(disk), store(), 16 << 20, Config::default()).await.unwrap();
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name, 256 << 20, options).await.unwrap();
    // 64 MiB written through a log of 16 MiB, by writers whose ranges meet in blocks.
    let writers: Vec<_> = (0..8_u64)
        .map(|writer| {
            let volume = volume.clone();
            tokio::spawn(async move {
                for i in 0..2048_u64 {
                    let offset = (i * 8 + writer) * 4096 + 512;
                    let data = Bytes::from(vec![(i * 8 + writer) as u8 | 1; 4096]);
                    volume.write(offset, data, i % 512 == 0).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    drop((volume, cache));

    let check = |volume: culvert_volume::Volume| async move {
        for n in 0..2048 * 8_u64 {
            let found = volume.read_vec(n * 4096 + 512, 4096).await.unwrap();
            assert!(found.iter().all(|byte| *byte == n as u8 | 1), "write {n}");
        }
        assert_eq!(volume.read_vec(0, 512).await.unwrap(), vec![0; 512]);
    };
    let open = async || {
        // The tasks of the dropped cache hold the file until the runtime has let go of them.
        for _ in 0..100 {
            match FileDisk::open(&folder.path().join("cache")) {
                Ok(disk) => return disk,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
        panic!("the cache file is still locked");
    };
    let cache = Cache::open(Arc::new(open().await), store(), Config::default()).await.unwrap();
    check(cache.volume(&name).unwrap()).await;
    cache.volume(&name).unwrap().upload().await.unwrap();
    drop(cache);

    // The cache's file is lost: the volume opens at its last cut, in a cache smaller than its data.
    let disk = FileDisk::create(&folder.path().join("other"), 60 << 20).unwrap();
    let cache = Cache::create(Arc::new(disk), store(), 16 << 20, Config::default()).await.unwrap();
    assert!(cache.attach_volume(&name, options, false).await.is_err());
    let volume = cache.attach_volume(&name, options, true).await.unwrap();
    check(volume).await;
    assert!(cache.status().counters.evicted > 0);
    cache.close().await.unwrap();
}

/// After a failed sync the page cache may hold what the medium does not have.
#[tokio::test]
async fn what_is_read_after_opening_comes_from_the_medium() {
    // On a file system with a medium: the one that tests are built on.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("cache");
    let block = || vec![Bytes::from(vec![7; 4096])];
    {
        let disk = FileDisk::create(&path, 8 << 20).unwrap();
        for at in (0..8 << 20).step_by(4096) {
            disk.write(at, block()).await.unwrap();
        }
        assert!(disk.read_now(1 << 20, 4096).is_some(), "what was just written is in memory");
    }
    let disk = FileDisk::open(&path).unwrap();
    // A read ahead brings in a little of what lies around, so one look at each place.
    let kept = (0..8_u64).filter(|mib| disk.read_now(mib << 20, 4096).is_some()).count();
    assert_eq!(kept, 0, "so many of eight places are in memory still");
    assert_eq!(disk.read(1 << 20, 4096).await.unwrap(), vec![7; 4096]);
}
