//! Changes of owner, deletions and copies, with the power cut at every step of disk and store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::{Cache, Refusal, Volume, VolumeOptions};
use super::caches::{LOG, block, cache_at, config, disk_len, name, new_cache, run, until_it_dies};
use super::stores::{Gate, Slow};
use crate::CHUNK_BYTES;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::format::REMOTE_VERSION;
use crate::format::root::{Root, RootState};
use crate::remote::Store;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;

const SIZE: u64 = 4 * CHUNK_BYTES;

async fn open(disk: &SimDisk, store: &SimStore, seed: u64) -> Cache {
    let (disk, store) = (Arc::new(disk.clone()), Arc::new(store.clone()));
    Cache::open(disk, store, config(seed)).await.unwrap()
}

async fn tag(volume: &Volume, chunk: u64) -> u8 {
    volume.read_vec(chunk * CHUNK_BYTES, 1).await.unwrap()[0]
}

async fn tags(volume: &Volume) -> [u8; 4] {
    [tag(volume, 0).await, tag(volume, 1).await, tag(volume, 2).await, tag(volume, 3).await]
}

fn root(store: &SimStore) -> Option<Root> {
    store.peek("v/root").map(|root| Root::parse(&root).unwrap())
}

/// Another volume of the base, which whatever happens to the first leaves alone.
fn bystander() -> VolumeName {
    VolumeName::new("bystander").unwrap()
}

async fn bystander_is_whole(cache: &Cache) {
    let volume = cache.volume(&bystander()).unwrap();
    assert_eq!((tag(&volume, 0).await, tag(&volume, 1).await), (8, 7));
}

/// A cache and a volume: 1 in its first block is in the store, 2 in its second chunk is not. Another volume with
/// the same. The power was cut.
fn base() -> (SimDisk, SimStore) {
    let (disk, store) = (SimDisk::new(disk_len(4), 5), SimStore::new(5));
    run(async {
        let cache = new_cache(&disk, &store, 5).await;
        let volume = cache.create_volume(&name(), SIZE, VolumeOptions::default()).await.unwrap();
        volume.write(0, block(1), false).await.unwrap();
        volume.upload().await.unwrap();
        volume.write(CHUNK_BYTES, block(2), true).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&bystander(), SIZE, options).await.unwrap();
        volume.write(0, block(8), false).await.unwrap();
        volume.upload().await.unwrap();
        volume.write(CHUNK_BYTES, block(7), true).await.unwrap();
    });
    disk.restart(Survivors::All);
    (disk, store)
}

/// Opens a copy of the cache, works with it, and cuts the power at every step of that; `check` sees what is
/// left. Returns the number of crashes.
#[expect(clippy::needless_pass_by_value, reason = "closures are passed as they are written")]
fn at_every_step(
    (disk, store): &(SimDisk, SimStore),
    work: impl AsyncFn(&Cache),
    check: impl AsyncFn(&SimDisk, &SimStore),
) -> u64 {
    let session = |die_at: Option<u64>| {
        let (disk, store) = (disk.copy(1), store.copy());
        let begun = run(async {
            let cache = open(&disk, &store.seen_from(&disk), 7).await;
            let begun = disk.steps();
            disk.die_at(die_at);
            until_it_dies(&disk, work(&cache)).await;
            begun
        });
        (disk, store, begun)
    };
    let (whole, _, begun) = session(None);
    let steps = whole.steps();
    for die_at in begun + 1..=steps {
        for survivors in [Survivors::None, Survivors::All, Survivors::Random(die_at)] {
            let (disk, store, _) = session(Some(die_at));
            disk.restart(survivors);
            run(check(&disk, &store));
        }
    }
    steps - begun
}

#[test]
pub(super) fn a_former_owner_cannot_delete_what_another_gateway_took_over() {
    run(async {
        let store = SimStore::new(1);
        let (first, second) = (cache_at(&store, 1).await, cache_at(&store, 2).await);
        let options = VolumeOptions::default();
        let old = first.create_volume(&name(), SIZE, options).await.unwrap();
        old.write(0, block(1), false).await.unwrap();
        old.upload().await.unwrap();
        old.write(CHUNK_BYTES, block(2), false).await.unwrap();
        let new = second.attach_volume(&name(), options, true).await.unwrap();
        new.write(2 * CHUNK_BYTES, block(3), false).await.unwrap();
        new.upload().await.unwrap();
        // It does not know yet, and later it does.
        for _ in 0..2 {
            let deleted = first.delete_volume(&name()).await;
            assert!(matches!(deleted, Err(Error::Superseded { .. })), "not refused: {deleted:?}");
        }
        new.write(3 * CHUNK_BYTES, block(4), false).await.unwrap();
        new.upload().await.unwrap();
        assert_eq!(tags(&new).await, [1, 0, 3, 4]);
        // What it did not upload is still there.
        let range = first.export_quarantine(&name()).unwrap().next().await.unwrap().unwrap();
        assert_eq!((range.offset, range.data), (CHUNK_BYTES, Some(block(2))));
        first.forget_volume(&name()).await.unwrap();
        assert_eq!(root(&store).unwrap().state, RootState::Owned);
    });
}

#[test]
fn a_former_owner_with_nothing_to_upload_finds_out_as_well() {
    run(async {
        let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
        let (first, second) = (new_cache(&disk, &store, 1).await, cache_at(&store, 2).await);
        let options = VolumeOptions::default();
        let old = first.create_volume(&name(), SIZE, options).await.unwrap();
        old.write(0, block(1), true).await.unwrap();
        old.upload().await.unwrap();
        let new = second.attach_volume(&name(), options, true).await.unwrap();
        new.write(0, block(2), false).await.unwrap();
        new.upload().await.unwrap();
        tokio::time::sleep(2 * config(1).owner_check_interval).await;
        let read = old.read_vec(0, 1).await;
        assert!(matches!(read, Err(Error::Superseded { .. })), "{read:?}");
        assert_eq!(old.status().unwrap().refusing, Some(Refusal::Quarantined));
        assert_eq!(tags(&new).await, [2, 0, 0, 0]);
    });
}

#[test]
fn a_former_owner_that_starts_again_finds_out_at_once() {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    run(async {
        let cache = new_cache(&disk, &store, 1).await;
        let volume = cache.create_volume(&name(), SIZE, VolumeOptions::default()).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        volume.upload().await.unwrap();
        cache.close().await.unwrap();
        let second = cache_at(&store, 2).await;
        second.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
    });
    run(async {
        let cache = open(&disk, &store, 3).await;
        let volume = cache.volume(&name()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let read = volume.read_vec(0, 1).await;
        assert!(matches!(read, Err(Error::Superseded { .. })), "{read:?}");
    });
}

#[test]
fn a_volume_is_not_forgotten_while_it_is_released() {
    run(async {
        let store = Slow::new("/pack/", Duration::from_secs(10));
        let disk = SimDisk::new(disk_len(4), 1);
        let shared = (Arc::new(disk), Arc::new(store.clone()));
        let cache = Cache::create(shared.0, shared.1, LOG, config(1)).await.unwrap();
        let volume = cache.create_volume(&name(), SIZE, VolumeOptions::default()).await.unwrap();
        volume.write(0, block(1), true).await.unwrap();
        let forget = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(volume.status().unwrap().refusing, Some(Refusal::Releasing));
            cache.forget_volume(&name()).await
        };
        let volume = name();
        let (released, forgotten) = tokio::join!(cache.release_volume(&volume), forget);
        released.unwrap();
        let is_told = matches!(forgotten, Err(Error::NotServed { state: Refusal::Releasing, .. }));
        assert!(is_told, "{forgotten:?}");
        let (other, disk) = (Arc::new(store), Arc::new(SimDisk::new(disk_len(4), 2)));
        let other = Cache::create(disk, other, LOG, config(2)).await.unwrap();
        let options = VolumeOptions::default();
        let taken = other.attach_volume(&name(), options, false).await.unwrap();
        assert_eq!(tags(&taken).await, [1, 0, 0, 0]);
    });
}

#[test]
fn a_deleted_volume_is_gone_for_everybody_and_its_name_is_free() {
    run(async {
        let store = SimStore::new(1);
        let (first, second) = (cache_at(&store, 1).await, cache_at(&store, 2).await);
        let options = VolumeOptions::default();
        let old = first.create_volume(&name(), SIZE, options).await.unwrap();
        old.write(0, block(1), false).await.unwrap();
        let taken = second.attach_volume(&name(), options, true).await.unwrap();
        second.delete_volume(&name()).await.unwrap();
        assert!(taken.read(0, 1).await.is_err());
        assert!(second.stored_volumes().await.unwrap().is_empty());
        let attached = second.attach_volume(&name(), options, true).await;
        assert!(matches!(attached, Err(Error::NoVolume { .. })), "{attached:?}");
        let epoch = root(&store).unwrap().epoch;
        let new = second.create_volume(&name(), SIZE, options).await.unwrap();
        assert!(new.status().unwrap().epoch > epoch);
        assert_eq!(tags(&new).await, [0; 4]);
        // The first one's volume is another of that name, and is gone: nothing of it is served any more.
        let refused = old.upload().await;
        assert!(matches!(refused, Err(Error::OtherVolume { .. })), "{refused:?}");
        assert!(matches!(old.read(0, 1).await, Err(Error::NotServed { .. })));
        assert!(matches!(old.write(0, block(2), false).await, Err(Error::NotServed { .. })));
        let range = first.export_quarantine(&name()).unwrap().next().await.unwrap().unwrap();
        assert_eq!((range.offset, range.data), (0, Some(block(1))));
        first.forget_volume(&name()).await.unwrap();
        new.write(0, block(9), false).await.unwrap();
        new.upload().await.unwrap();
        assert_eq!(second.stored_volumes().await.unwrap(), [name()]);
    });
}

/// A store that is not ours, with another volume of the same name: of our epoch, or of a later one.
async fn wrong_store(is_later: bool) -> SimStore {
    let (store, options) = (SimStore::new(3), VolumeOptions::default());
    let first = cache_at(&store, 3).await;
    let mut volume = first.create_volume(&name(), SIZE, options).await.unwrap();
    let second = cache_at(&store, 4).await;
    if is_later {
        volume = second.attach_volume(&name(), options, true).await.unwrap();
    }
    volume.write(0, block(9), false).await.unwrap();
    volume.upload().await.unwrap();
    store
}

#[test]
fn a_start_with_the_wrong_store_takes_nothing_away() {
    for is_later in [false, true] {
        let (disk, store) = base();
        run(async {
            let wrong = wrong_store(is_later).await;
            let cache = open(&disk, &wrong, 1).await;
            let volume = cache.volume(&name()).unwrap();
            // Nobody knows yet.
            assert_eq!(tag(&volume, 1).await, 2);
            volume.write(3 * CHUNK_BYTES, block(4), true).await.unwrap();
            let before = wrong.peek("v/root");
            let refused = volume.upload().await;
            assert!(matches!(refused, Err(Error::OtherVolume { .. })), "{refused:?}");
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("is --store right?"), "{said}");
            if is_later {
                // What clients are to do with it nobody can tell.
                assert!(matches!(volume.read(0, 1).await, Err(Error::NotServed { .. })));
            } else {
                assert_eq!((tag(&volume, 1).await, tag(&volume, 3).await), (2, 4));
                let read = volume.read(2 * CHUNK_BYTES, 1).await;
                assert!(matches!(read, Err(Error::OtherVolume { .. })), "{read:?}");
                for failed in
                    [cache.delete_volume(&name()).await, cache.release_volume(&name()).await]
                {
                    assert!(matches!(failed, Err(Error::OtherVolume { .. })), "{failed:?}");
                }
                volume.write(3 * CHUNK_BYTES, block(5), true).await.unwrap();
            }
            assert_eq!(wrong.peek("v/root"), before);
            assert!(wrong.paths().iter().all(|path| !path.starts_with("bystander")));
            drop(cache);
            disk.restart(Survivors::All);
            let cache = open(&disk, &store, 2).await;
            let volume = cache.volume(&name()).unwrap();
            volume.upload().await.unwrap();
            assert_eq!(tags(&volume).await, [1, 2, 0, if is_later { 4 } else { 5 }]);
            bystander_is_whole(&cache).await;
            let third = cache_at(&store.copy(), 3).await;
            let found = third.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
            assert_eq!(tag(&found, 1).await, 2);
        });
    }
}

#[test]
fn a_volume_goes_on_when_the_store_has_the_right_one_again_or_is_forgotten() {
    let (disk, store) = base();
    run(async {
        let cache = open(&disk, &store, 1).await;
        let volume = cache.volume(&name()).unwrap();
        // Somebody removed its root with the store's own tools, and made another volume.
        let ours = store.peek("v/root").unwrap();
        store.remove("v/root");
        let second = cache_at(&store, 2).await;
        let options = VolumeOptions::default();
        second.create_volume(&name(), SIZE, options).await.unwrap();
        for _ in 0..2 {
            let refused = volume.upload().await;
            assert!(matches!(refused, Err(Error::OtherVolume { .. })), "{refused:?}");
        }
        let theirs = store.peek("v/root").unwrap();
        store.remove("v/root");
        Store::create(&store, "v/root", ours).await.unwrap();
        // One that is served is not forgotten.
        let forgotten = cache.forget_volume(&name()).await;
        assert!(matches!(forgotten, Err(Error::Served { .. })), "{forgotten:?}");
        volume.upload().await.unwrap();
        assert_eq!(tags(&volume).await, [1, 2, 0, 0]);
        store.remove("v/root");
        Store::create(&store, "v/root", theirs).await.unwrap();
        cache.forget_volume(&name()).await.unwrap();
        assert!(matches!(cache.volume(&name()), Err(Error::NoVolume { .. })));
        bystander_is_whole(&cache).await;
    });
}

#[test]
fn what_keeps_a_volume_from_being_forgotten_is_named() {
    let (disk, store) = base();
    run(async {
        let cache = open(&disk, &store, 1).await;
        let second = cache_at(&store, 2).await;
        second.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
        // This side does not know yet, and cannot upload it any more.
        let volume = cache.volume(&name()).unwrap();
        volume.write(2 * CHUNK_BYTES, block(3), true).await.unwrap();
        let refused = cache.forget_volume(&name()).await;
        assert!(matches!(refused, Err(Error::Superseded { .. })), "{refused:?}");
        let mut export = cache.export_quarantine(&name()).unwrap();
        let mut last = None;
        while let Some(range) = export.next().await.unwrap() {
            last = Some((range.offset, range.data));
        }
        assert_eq!(last, Some((2 * CHUNK_BYTES, Some(block(3)))));
        cache.forget_volume(&name()).await.unwrap();
        store.set_down(true);
        let refused = cache.forget_volume(&bystander()).await;
        assert!(matches!(refused, Err(Error::StoreTimeout { .. })), "{refused:?}");
        store.set_down(false);
        bystander_is_whole(&cache).await;
    });
}

/// The answer to a read of the root that was on its way when an upload began comes after that has ended.
#[test]
fn a_root_read_before_another_was_put_is_neither_damage_nor_a_strangers() {
    for is_resized in [false, true] {
        run(async {
            let (disk, gate) = (Arc::new(SimDisk::new(disk_len(4), 1)), Gate::new());
            let cache = Cache::create(disk, Arc::new(gate.clone()), LOG, config(1)).await.unwrap();
            let options = VolumeOptions::default();
            let volume = cache.create_volume(&name(), SIZE, options).await.unwrap();
            volume.write(0, block(1), false).await.unwrap();
            volume.upload().await.unwrap();
            cache.inner.forget_root(volume.id());
            gate.holds.store(true, Ordering::Relaxed);
            let (inner, id) = (Arc::clone(&cache.inner), volume.id());
            let late = tokio::spawn(async move { inner.root(id).await });
            while gate.holds.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            // With another size the sequence stays the same.
            if is_resized {
                volume.resize(2 * SIZE).await.unwrap();
            } else {
                volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
            }
            volume.upload().await.unwrap();
            gate.go_on.notify_one();
            let found = late.await.unwrap().unwrap();
            assert_eq!(found.root.nonce, root(&gate.store).unwrap().nonce);
            assert_eq!(tag(&volume, 0).await, 1);
        });
    }
}

#[test]
fn of_two_who_take_or_make_a_volume_at_once_one_gets_it() {
    for take in [true, false] {
        run(async {
            let store = SimStore::new(1);
            let (first, second) = (cache_at(&store, 1).await, cache_at(&store, 2).await);
            let options = VolumeOptions::default();
            if take {
                let old = first.create_volume(&name(), SIZE, options).await.unwrap();
                old.write(0, block(1), false).await.unwrap();
                old.upload().await.unwrap();
            }
            let get = async || {
                if take {
                    second.attach_volume(&name(), options, true).await
                } else {
                    second.create_volume(&name(), SIZE, options).await
                }
            };
            let got: [_; 3] = tokio::join!(get(), get(), get()).into();
            let mut won = 0;
            for got in got {
                match got {
                    Ok(volume) => {
                        won += 1;
                        volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
                        volume.upload().await.unwrap();
                        assert_eq!(tags(&volume).await, [u8::from(take), 2, 0, 0]);
                    }
                    Err(Error::VolumeExists { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!((won, second.volumes().len()), (1, 1));
        });
    }
}

#[test]
fn a_deletion_cut_short_anywhere_is_finished_by_asking_again() {
    let crashes = at_every_step(
        &base(),
        async |cache| cache.delete_volume(&name()).await.unwrap(),
        async |disk, store| {
            let cache = open(disk, store, 8).await;
            bystander_is_whole(&cache).await;
            match cache.volume(&name()) {
                Ok(volume) => {
                    if volume.read(0, 1).await.is_ok() {
                        assert_eq!(root(store).unwrap().state, RootState::Owned);
                    }
                    cache.delete_volume(&name()).await.unwrap();
                }
                Err(Error::NoVolume { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert_eq!(root(store).unwrap().state, RootState::Deleted);
            assert_eq!(cache.stored_volumes().await.unwrap(), [bystander()]);
            let again = cache.create_volume(&name(), SIZE, VolumeOptions::default()).await;
            assert_eq!(tags(&again.unwrap()).await, [0; 4]);
            bystander_is_whole(&cache).await;
        },
    );
    assert!(crashes > 10, "{crashes} crashes");
}

#[test]
fn a_volume_half_deleted_is_not_served_and_one_whose_root_is_gone_can_be_deleted() {
    let (disk, store) = base();
    run(async {
        let cache = open(&disk, &store, 8).await;
        let volume = cache.volume(&name()).unwrap();
        // The store is away before anything was said: nothing happens.
        store.set_down(true);
        assert!(matches!(cache.delete_volume(&name()).await, Err(Error::StoreTimeout { .. })));
        volume.write(2 * CHUNK_BYTES, block(3), false).await.unwrap();
        store.set_down(false);
        volume.upload().await.unwrap();
        // It goes away in between: served by nobody until it is deleted again, also not after a restart.
        store.deny_puts(true);
        assert!(matches!(cache.delete_volume(&name()).await, Err(Error::Store(_))));
        assert!(matches!(volume.read(0, 1).await, Err(Error::NotServed { .. })));
        assert!(matches!(volume.upload().await, Err(Error::NotServed { .. })));
        drop(cache);
        disk.restart(Survivors::All);
        store.deny_puts(false);
        let cache = open(&disk, &store, 9).await;
        let volume = cache.volume(&name()).unwrap();
        assert!(matches!(volume.read(0, 1).await, Err(Error::NotServed { .. })));
        store.remove("v/root");
        cache.delete_volume(&name()).await.unwrap();
        assert!(matches!(cache.volume(&name()), Err(Error::NoVolume { .. })));
    });
}

#[test]
pub(super) fn of_two_copies_of_a_cache_one_uploads_and_the_other_keeps_its_data() {
    let (disk, store) = base();
    run(async {
        let (first, second) = (open(&disk.copy(1), &store, 1).await, open(&disk, &store, 2).await);
        let (a, b) = (first.volume(&name()).unwrap(), second.volume(&name()).unwrap());
        a.write(2 * CHUNK_BYTES, block(3), false).await.unwrap();
        b.write(3 * CHUNK_BYTES, block(4), false).await.unwrap();
        // Both know the root.
        assert_eq!((tag(&a, 0).await, tag(&b, 0).await), (1, 1));
        a.upload().await.unwrap();
        let refused = b.upload().await;
        assert!(matches!(refused, Err(Error::Superseded { .. })), "not refused: {refused:?}");
        assert!(b.read(0, 1).await.is_err() && b.write(0, block(5), false).await.is_err());
        a.write(0, block(6), false).await.unwrap();
        a.upload().await.unwrap();
        let mut export = second.export_quarantine(&name()).unwrap();
        let mut kept = Vec::new();
        while let Some(range) = export.next().await.unwrap() {
            kept.push((range.offset / CHUNK_BYTES, range.data.unwrap()[0]));
        }
        assert_eq!(kept, [(1, 2), (3, 4)]);
        let third = cache_at(&store.copy(), 3).await;
        let found = third.attach_volume(&name(), VolumeOptions::default(), true).await.unwrap();
        assert_eq!(tags(&found).await, [6, 2, 3, 0]);
    });
}

/// The copy may be of a cache that was cut from power in the middle of an upload, whose root may be there.
#[test]
pub(super) fn a_cache_knows_its_own_roots_after_a_crash_and_not_those_of_its_copy() {
    let crashes = at_every_step(
        &base(),
        async |cache| {
            let volume = cache.volume(&name()).unwrap();
            volume.upload().await.unwrap();
            volume.write(0, block(7), true).await.unwrap();
            volume.upload().await.unwrap();
        },
        async |disk, store| {
            let copy = disk.copy(2);
            let cache = open(disk, store, 8).await;
            let volume = cache.volume(&name()).unwrap();
            volume.write(2 * CHUNK_BYTES, block(3), false).await.unwrap();
            // What was there before is its own, whichever of its puts that was.
            volume.upload().await.unwrap();
            let copy = open(&copy, store, 9).await;
            let other_volume = copy.volume(&name()).unwrap();
            other_volume.write(3 * CHUNK_BYTES, block(4), false).await.unwrap();
            let refused = other_volume.upload().await;
            assert!(matches!(refused, Err(Error::Superseded { .. })), "{refused:?}");
            volume.write(CHUNK_BYTES, block(5), false).await.unwrap();
            volume.upload().await.unwrap();
            assert_eq!(tags(&volume).await[1..], [5, 3, 0]);
        },
    );
    assert!(crashes > 20, "{crashes} crashes");
}

#[test]
fn a_release_cut_short_anywhere_loses_nothing() {
    let released = async |cache: &Cache| cache.release_volume(&name()).await.unwrap();
    let options = VolumeOptions::default();
    // Where it is taken back, and where it is released again.
    for take_back in [true, false] {
        let crashes = at_every_step(&base(), released, async |disk, store| {
            let cache = open(disk, store, 8).await;
            let is_here = cache.volume(&name()).is_ok();
            bystander_is_whole(&cache).await;
            if take_back {
                let volume = match cache.volume(&name()) {
                    Ok(volume) if volume.read(0, 1).await.is_ok() => volume,
                    _ => cache.attach_volume(&name(), options, false).await.unwrap(),
                };
                assert_eq!(tags(&volume).await, [1, 2, 0, 0]);
                volume.write(0, block(3), false).await.unwrap();
                volume.upload().await.unwrap();
                return;
            }
            if is_here {
                cache.release_volume(&name()).await.unwrap();
            }
            let taker = cache_at(store, 9).await;
            let volume = taker.attach_volume(&name(), options, false).await.unwrap();
            assert_eq!(tags(&volume).await, [1, 2, 0, 0]);
        });
        assert!(crashes > 20, "{crashes} crashes");
    }
}

#[test]
fn a_volume_half_made_or_half_taken_is_taken_by_asking_again() {
    let options = VolumeOptions::default();
    let empty = (SimDisk::new(disk_len(4), 6), SimStore::new(6));
    run(async {
        let _ = new_cache(&empty.0, &empty.1, 6).await;
    });
    empty.0.restart(Survivors::All);
    let crashes = at_every_step(
        &empty,
        async |cache| {
            cache.create_volume(&name(), SIZE, options).await.unwrap();
        },
        async |disk, store| {
            let cache = open(disk, store, 8).await;
            let volume = match cache.volume(&name()) {
                Ok(volume) => volume,
                Err(_) if root(store).is_some() => {
                    cache.attach_volume(&name(), options, false).await.unwrap()
                }
                Err(_) => cache.create_volume(&name(), SIZE, options).await.unwrap(),
            };
            volume.write(0, block(1), true).await.unwrap();
            volume.upload().await.unwrap();
        },
    );
    assert!(crashes > 5, "{crashes} crashes");
    // Another gateway takes it over from the one that is dead.
    let (_, store) = base();
    let crashes = at_every_step(
        &(empty.0.copy(1), store),
        async |cache| {
            cache.attach_volume(&name(), options, true).await.unwrap();
        },
        async |disk, store| {
            let cache = open(disk, store, 8).await;
            let volume = match cache.volume(&name()) {
                Ok(volume) => volume,
                Err(_) => cache.attach_volume(&name(), options, true).await.unwrap(),
            };
            assert_eq!(tags(&volume).await, [1, 0, 0, 0]);
            volume.write(CHUNK_BYTES, block(3), true).await.unwrap();
            volume.upload().await.unwrap();
        },
    );
    assert!(crashes > 5, "{crashes} crashes");
}

/// The page of a volume names a sequence. It may survive a power cut that takes what was written before, and not
/// flushed.
#[test]
fn a_volume_made_or_taken_beside_writes_is_not_ahead_of_what_a_power_cut_leaves() {
    let ((disk, store), options) = (base(), VolumeOptions::default());
    let [taken, made] = ["taken", "made"].map(|name| VolumeName::new(name).unwrap());
    run(async {
        let other = cache_at(&store, 9).await;
        other.create_volume(&taken, SIZE, options).await.unwrap();
        other.release_volume(&taken).await.unwrap();
    });
    for name_of_new in [&taken, &made] {
        let session = |die_at| {
            let (disk, store) = (disk.copy(1), store.copy());
            let begun = run(async {
                let cache = open(&disk, &store.seen_from(&disk), 7).await;
                let volume = cache.volume(&name()).unwrap();
                volume.write(2 * CHUNK_BYTES, block(3), false).await.unwrap();
                let begun = disk.steps();
                disk.die_at(die_at);
                let work = async {
                    let new = if *name_of_new == taken {
                        cache.attach_volume(&taken, options, false).await
                    } else {
                        cache.create_volume(&made, SIZE, options).await
                    };
                    new.unwrap();
                };
                until_it_dies(&disk, work).await;
                begun
            });
            (disk, store, begun)
        };
        let (whole, _, begun) = session(None);
        let (steps, mut there) = (whole.steps(), 0);
        for die_at in begun + 1..=steps {
            let (disk, store, _) = session(Some(die_at));
            let survivors = (0..disk.unsynced()).map(Survivors::Only);
            for survivors in survivors.chain([Survivors::None, Survivors::All]) {
                let (disk, store) = (disk.copy(1), store.copy());
                disk.restart(survivors);
                run(async {
                    let cache = open(&disk, &store, 8).await;
                    let Ok(volume) = cache.volume(name_of_new) else {
                        return;
                    };
                    there += 1;
                    volume.write(0, block(4), true).await.unwrap();
                    volume.upload().await.unwrap();
                    let third = cache_at(&store, 9).await;
                    let found = third.attach_volume(name_of_new, options, true).await.unwrap();
                    assert_eq!(tag(&found, 0).await, 4, "cut at {die_at}, left {survivors:?}");
                });
            }
        }
        assert!(there > 0 && steps - begun > 5, "there after {there}, {steps} steps");
    }
}

#[test]
fn a_root_that_is_too_long_or_of_a_later_version_is_called_so() {
    run(async {
        let store = SimStore::new(1);
        let cache = cache_at(&store, 1).await;
        let mut later = vec![0; 100 << 10];
        crate::format::seal(&mut later, b"CVLTROOT", REMOTE_VERSION + 1);
        for (root, why) in [(vec![7; 2 << 20], "2097152 bytes"), (later, "format version 2")] {
            Store::create(&store, "v/root", root.into()).await.unwrap();
            let begun = tokio::time::Instant::now();
            match cache.attach_volume(&name(), VolumeOptions::default(), true).await {
                Err(Error::RemoteDamaged { path, cause, .. }) => {
                    assert!(path == "v/root" && cause.contains(why), "{cause}");
                }
                other => panic!("{other:?}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "it was tried again");
            assert_eq!(cache.stored_volumes().await.unwrap(), [name()]);
            store.remove("v/root");
        }
    });
}
