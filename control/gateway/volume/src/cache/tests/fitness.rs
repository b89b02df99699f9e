//! Stores that are not fit, found out when a cache is made and when it is opened.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Cache, VolumeOptions};
use super::caches::{LOG, block, config, disk_len, name, open, run};
use super::stores::Slow;
use super::uploads::FOREVER;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::remote::ProbeError;
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Makes a store unfit.
type Spoil = fn(&SimStore);
/// Whether an error is the one expected.
type Judge = fn(&ProbeError) -> bool;

/// A cache in use, cut from power, and its store.
async fn used() -> (SimDisk, SimStore) {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
    let cache = Cache::create(at, remote, LOG, config(1)).await.unwrap();
    let options = VolumeOptions::default();
    let volume = cache.create_volume(&name(), 2 * CHUNK_BYTES, options).await.unwrap();
    volume.write(0, block(1), true).await.unwrap();
    volume.upload().await.unwrap();
    drop(cache);
    disk.restart(Survivors::All);
    (disk, store)
}

#[test]
pub(super) fn a_cache_opened_at_an_unfit_store_serves_what_it_has_and_puts_nothing_there() {
    let spoil: [(Spoil, Judge); 2] = [
        (SimStore::ignore_conditions, |e| matches!(e, ProbeError::IgnoresConditions { .. })),
        (SimStore::refuse_conditions, |e| matches!(e, ProbeError::RefusesConditions { .. })),
    ];
    for (spoil, is_right) in spoil {
        run(async {
            let (disk, store) = used().await;
            spoil(&store);
            let before = store.peek("v/root");
            let cache = open(&disk, &store).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
            volume.write(4096, block(2), true).await.unwrap();
            let uploaded = volume.upload().await;
            let is_refused = matches!(&uploaded, Err(Error::Probe(e)) if is_right(e));
            assert!(is_refused, "not refused: {uploaded:?}");
            let other = crate::volume_name::VolumeName::new("other").unwrap();
            let options = VolumeOptions::default();
            let made = cache.create_volume(&other, CHUNK_BYTES, options).await;
            assert!(matches!(made, Err(Error::Probe(_))), "not refused: {made:?}");
            let deleted = cache.delete_volume(&name()).await;
            assert!(matches!(deleted, Err(Error::Probe(_))), "not refused: {deleted:?}");
            assert!(matches!(cache.release_volume(&name()).await, Err(Error::Probe(_))));
            assert_eq!(volume.read_vec(4096, BLOCK_BYTES).await.unwrap(), block(2));
            assert!(is_right(&cache.status().unfit_store.unwrap()));
            assert_eq!((store.peek("v/root"), store.peek("other/root")), (before, None));
            assert!(store.paths().iter().all(|path| !path.starts_with('_')), "{:?}", store.paths());
        });
    }
}

#[test]
fn a_cache_opened_in_an_outage_or_with_expired_credentials_serves_and_uploads_later() {
    let spoil: [fn(&SimStore, bool); 2] = [SimStore::set_down, SimStore::deny];
    for spoil in spoil {
        run(async {
            let (disk, store) = used().await;
            spoil(&store, true);
            let begun = tokio::time::Instant::now();
            let cache = open(&disk, &store).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
            volume.write(4096, block(2), true).await.unwrap();
            assert!(begun.elapsed() < Duration::from_millis(50), "it waited for the store");
            assert!(volume.upload().await.is_err());
            // Some attempts in the background, too.
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!(cache.status().counters.store_failures > 2);
            assert!(cache.status().unfit_store.is_none());
            spoil(&store, false);
            let later = Duration::from_secs(200);
            let uploaded = async {
                while volume.status().unwrap().dirty_bytes > 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::time::timeout(later, uploaded).await.unwrap();
        });
    }
}

#[test]
fn no_cache_is_made_with_an_unfit_store() {
    let spoil: [fn(&SimStore); 4] = [
        SimStore::ignore_conditions,
        SimStore::refuse_conditions,
        |store| store.set_down(true),
        |store| store.deny(true),
    ];
    for spoil in spoil {
        run(async {
            let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
            spoil(&store);
            let (at, remote) = (Arc::new(disk.clone()), Arc::new(store));
            let made = Cache::create(at, remote, LOG, config(1)).await;
            assert!(matches!(made, Err(Error::Probe(_))), "{made:?}");
            assert_eq!(disk.counts().writes, 0);
        });
    }
}

#[test]
fn a_store_that_does_not_answer_is_given_up_in_time() {
    run(async {
        let disk = SimDisk::new(disk_len(4), 1);
        let slow = Slow::new("/root", FOREVER);
        let config = config(1);
        // A put that hangs, and before it some that may.
        let within = 2 * config.fetch_timeout + Duration::from_secs(10);
        let create = Cache::create(Arc::new(disk.clone()), Arc::new(slow.clone()), LOG, config);
        let made = tokio::time::timeout(within, create).await.unwrap();
        assert!(matches!(made, Err(Error::Probe(ProbeError::Store { .. }))), "{made:?}");
        assert_eq!(disk.counts().writes, 0);
        slow.set(false);
        let at = Arc::new(disk.clone());
        let cache = Cache::create(at, Arc::new(slow.clone()), LOG, self::config(1)).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), CHUNK_BYTES, options).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        slow.set(true);
        let uploaded = tokio::time::timeout(within, volume.upload()).await.unwrap();
        assert!(matches!(uploaded, Err(Error::StoreTimeout { .. })), "{uploaded:?}");
        let other = crate::volume_name::VolumeName::new("other").unwrap();
        let made = cache.create_volume(&other, CHUNK_BYTES, options);
        let made = tokio::time::timeout(within, made).await.unwrap();
        assert!(matches!(made, Err(Error::StoreTimeout { .. })), "{made:?}");
        drop(cache);
        disk.restart(Survivors::All);

        // Those who wait while it is tried give up as well.
        let opened = Cache::open(Arc::new(disk.clone()), Arc::new(slow.clone()), self::config(2));
        let cache = opened.await.unwrap();
        let volume = cache.volume(&name()).unwrap();
        let uploads = (0..4).map(|_| volume.upload());
        let uploads = futures_util::future::join_all(uploads);
        let uploaded = tokio::time::timeout(4 * within, uploads).await.unwrap();
        assert!(uploaded.iter().all(|one| matches!(one, Err(Error::StoreTimeout { .. }))));
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
        slow.set(false);
        // What hangs is given up first.
        tokio::time::sleep(within).await;
        volume.upload().await.unwrap();
        assert_eq!(volume.status().unwrap().dirty_bytes, 0);
    });
}
