//! Flipped metadata: every class of bytes of every structure, in either copy and in both, where a power cut left
//! a log and its map behind. What is read is right, or an error that names it.

use std::sync::Arc;

use bytes::Bytes;

use super::super::state::Key;
use super::super::{Cache, Volume, VolumeOptions};
use super::caches::{LOG, block, config, disk_len, name, run};
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::format::slot_header::{HEADER_BYTES, SlotHeader};
use crate::format::superblock::{COPIES, Layout, Superblock, VOLUME_PAGES};
use crate::format::volume_page::VolumePage;
use crate::format::{CACHE_VERSION, seal};
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// What is where, and with which tag.
const EXPECTED: [(u64, u8); 7] = [
    (0, 1),
    (CHUNK_BYTES, 2),
    (CHUNK_BYTES + BLOCK_BYTES, 0),
    (CHUNK_BYTES + (1 << 20), 0),
    (2 * CHUNK_BYTES, 3),
    (3 * CHUNK_BYTES, 4),
    (3 * CHUNK_BYTES + BLOCK_BYTES, 5),
];

/// A cache that was cut from power, and where its structures are. Of two copies the newer comes first.
struct Base {
    disk: SimDisk,
    store: SimStore,
    layout: Layout,
    superblocks: [u64; 2],
    volume_pages: [u64; 2],
    /// Headers of the slots of a clean chunk and of a dirty one.
    headers: [[u64; 2]; 2],
    /// Places of their entries within the directory's first page.
    entries: [u64; 2],
    /// The area of the map that is in use, and the other.
    maps: [u64; 2],
    /// A frame that the map names, those after the scan's start but the last, and the last.
    mapped: u64,
    scanned: Vec<u64>,
    last: u64,
}

/// One clean chunk, one dirty chunk whose older header calls zero what is data by now, one record in the map, and
/// some in the log after it.
fn base() -> Base {
    let (disk, store) = (SimDisk::new(disk_len(4), 1), SimStore::new(1));
    let (slots, frames) = run(async {
        let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
        let cache = Cache::create(at, remote, LOG, config(1)).await.unwrap();
        let options = VolumeOptions::default();
        let volume = cache.create_volume(&name(), 4 * CHUNK_BYTES, options).await.unwrap();
        for tag in [9, 1] {
            volume.write(0, block(tag), false).await.unwrap();
            cache.destage().await.unwrap();
            volume.upload().await.unwrap();
            cache.destage().await.unwrap();
        }
        // Zeros where there is nothing would leave nothing.
        let two = Bytes::from(vec![8; 2 * BLOCK_BYTES as usize]);
        volume.write(CHUNK_BYTES, two, false).await.unwrap();
        cache.destage().await.unwrap();
        volume.write_zeroes(CHUNK_BYTES, 2 * BLOCK_BYTES, false).await.unwrap();
        cache.destage().await.unwrap();
        volume.write(CHUNK_BYTES, block(2), false).await.unwrap();
        cache.destage().await.unwrap();
        volume.write(2 * CHUNK_BYTES, block(3), true).await.unwrap();
        {
            let _turn = cache.inner.maintenance.lock().await;
            cache.inner.checkpoint(false).await.unwrap();
        }
        for (block_of_chunk, tag) in [(0, 7), (0, 4), (1, 5)] {
            let at = 3 * CHUNK_BYTES + block_of_chunk * BLOCK_BYTES;
            volume.write(at, block(tag), true).await.unwrap();
        }
        let state = cache.inner.state();
        let slot = |chunk| state.chunks[&Key { volume: volume.id(), chunk }].slot.unwrap();
        let frames: Vec<u64> = state.log.frames.iter().map(|frame| frame.pos).collect();
        assert_eq!(
            (frames.len(), frames.iter().filter(|p| **p >= state.log.scan_at).count()),
            (4, 3)
        );
        ([slot(0), slot(1)], frames)
    });
    disk.restart(Survivors::All);
    let peek = |at| disk.peek(at, BLOCK_BYTES as usize);
    let superblock = Superblock::parse(&peek(COPIES[0]), u64::MAX).unwrap();
    let layout = superblock.layout;
    let generation = |at| VolumePage::parse(&peek(at)).unwrap().generation;
    let newer = |copies: [u64; 2], number: &dyn Fn(u64) -> u64| {
        if number(copies[0]) >= number(copies[1]) { copies } else { [copies[1], copies[0]] }
    };
    let volume_pages = newer([VOLUME_PAGES, VOLUME_PAGES + BLOCK_BYTES], &generation);
    let headers = slots.map(|slot| {
        let at = layout.slots_at + u64::from(slot) * crate::format::slot_header::SLOT_BYTES;
        let version = |at| {
            let bytes = disk.peek(at, HEADER_BYTES);
            SlotHeader::parse(&bytes, superblock.cache_id, slot)
                .unwrap_or_else(|e| panic!("slot {slot} at {at}: {e}"))
                .version
        };
        newer([at, at + HEADER_BYTES as u64], &version)
    });
    let area = |area: u8| layout.checkpoint_at + u64::from(area) * layout.checkpoint_len;
    let frame = |pos: u64| layout.log_at + pos % layout.log_len;
    Base {
        superblocks: COPIES,
        volume_pages,
        headers,
        entries: slots.map(|slot| 64 * (u64::from(slot) + 1)),
        maps: [area(superblock.checkpoint_area), area(1 - superblock.checkpoint_area)],
        mapped: frame(frames[0]),
        scanned: frames[1..3].iter().map(|pos| frame(*pos)).collect(),
        last: frame(frames[3]),
        layout,
        disk,
        store,
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    right: u64,
    errors: u64,
    unopened: u64,
}

impl Base {
    /// Flips a bit at each of `places` and reads everything. `last_may_be_gone`: the end of the log cannot be
    /// told from one that a power cut tore.
    fn flip(&self, what: &str, places: &[u64], last_may_be_gone: bool) -> Outcome {
        let (disk, store) = (self.disk.copy(1), self.store.copy());
        for at in places {
            disk.flip(*at, 1 << (at % 8));
        }
        let mut outcome = Outcome::default();
        run(async {
            let (at, remote) = (Arc::new(disk.clone()), Arc::new(store.clone()));
            let cache = match Cache::open(at, remote, config(2)).await {
                Ok(cache) => cache,
                Err(
                    Error::NoSuperblock { .. } | Error::LogDamaged { .. } | Error::Damaged { .. },
                ) => return outcome.unopened += 1,
                Err(error) => panic!("{what}: {error}"),
            };
            let volume = cache.volume(&name()).unwrap();
            for (at, tag) in EXPECTED {
                match volume.read_vec(at, BLOCK_BYTES).await {
                    Ok(found) if found == block(tag) => outcome.right += 1,
                    Ok(found) if last_may_be_gone && tag == 5 && found == block(0) => {}
                    Ok(found) => panic!("{what}: at {at} {} instead of {tag}", found[0]),
                    Err(
                        Error::Lost { volume, offset, end }
                        | Error::UnknownLoss { volume, offset, end, .. },
                    ) => {
                        assert!(volume == name() && offset <= at && at < end, "{what}: {offset}");
                        outcome.errors += 1;
                    }
                    Err(error) => panic!("{what}: at {at}: {error}"),
                }
            }
            // Whatever it was, it is healed by writing anew.
            for (at, _) in EXPECTED {
                volume.write(at, block(6), true).await.unwrap();
                assert_eq!(volume.read_vec(at, BLOCK_BYTES).await.unwrap(), block(6), "{what}");
            }
        });
        outcome
    }
}

/// The beginning of every structure: magic, checksum, version.
const COMMON: [u64; 3] = [3, 9, 12];

fn fields(own: &[u64]) -> Vec<u64> {
    [&COMMON, own].concat()
}

/// Sums up what came of flips of which none may be noticed, some may, or all prevent the cache from opening.
#[derive(Debug, Default)]
struct Sum {
    harmless: u64,
    harmful: u64,
    errors: u64,
    unopened: u64,
}

impl Sum {
    /// One copy of two: nothing is lost.
    fn harmless(&mut self, base: &Base, what: &str, places: &[u64]) {
        let outcome = base.flip(what, places, false);
        assert_eq!(outcome.right, EXPECTED.len() as u64, "{what}: {outcome:?}");
        self.harmless += 1;
    }

    /// More than that: what is lost is named.
    fn harmful(&mut self, base: &Base, what: &str, places: &[u64]) -> Outcome {
        let outcome = base.flip(what, places, false);
        self.harmful += 1;
        self.errors += outcome.errors;
        self.unopened += outcome.unopened;
        outcome
    }
}

#[test]
fn flipped_superblocks_and_volume_pages_are_survived_in_one_copy_and_named_in_both() {
    let base = base();
    let mut sum = Sum::default();
    // Nineteen fields, and what follows them.
    let superblock: Vec<u64> = (0..19).map(|field| 16 + 8 * field).chain([1000, 4095]).collect();
    let page =
        [16, 24, 32, 40, 56, 64, 72, 80, 88, 96, 104, 105, 106, 107, 112, 128, 192, 500, 4095];
    for (what, copies, own) in [
        ("superblock", base.superblocks, &superblock[..]),
        ("volume page", base.volume_pages, &page[..]),
    ] {
        for field in fields(own) {
            for (i, copy) in copies.iter().enumerate() {
                sum.harmless(&base, &format!("{what} {i} at {field}"), &[copy + field]);
            }
            let both = copies.map(|copy| copy + field);
            let outcome = sum.harmful(&base, &format!("both {what}s at {field}"), &both);
            assert_eq!(outcome.unopened, 1, "{what} at {field}: {outcome:?}");
        }
    }
    println!("{sum:?}");
    // With the operator's word the rest is opened.
    let (disk, store) = (base.disk.copy(1), base.store.copy());
    for copy in base.volume_pages {
        disk.flip(copy + 128, 1);
    }
    run(async {
        let accept = super::super::Config { accept_loss: true, ..config(3) };
        let cache = Cache::open(Arc::new(disk), Arc::new(store), accept).await.unwrap();
        assert!(matches!(cache.volume(&name()), Err(Error::NoVolume { .. })));
        let volume = cache.attach_volume(&name(), VolumeOptions::default(), false).await.unwrap();
        assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(1));
        volume.write(CHUNK_BYTES, block(8), true).await.unwrap();
        volume.upload().await.unwrap();
    });
}

#[test]
fn flipped_directory_pages_and_slot_headers_are_survived_or_what_is_lost_is_named() {
    let base = base();
    let mut sum = Sum::default();
    let directory = base.layout.directory_at;
    // Its own fields, those of the two entries, and what no entry uses.
    let mut own = vec![16, 24, 28, 4095];
    for entry in base.entries {
        own.extend([0, 8, 12, 16, 24, 32, 40, 42, 44, 50].map(|at| entry + at));
    }
    for field in fields(&own) {
        sum.harmless(&base, &format!("directory at {field}"), &[directory + field]);
    }
    // Numbers, bitmaps, checksums of blocks in the first half and in the second, and what follows.
    let header = [
        16, 24, 32, 36, 40, 48, 56, 100, 128, 255, 256, 383, 384, 511, 512, 639, 640, 767, 1024,
        1028, 4095, 4096, 5119, 5120, 8191,
    ];
    for (chunk, [newest, older]) in base.headers.into_iter().enumerate() {
        for field in fields(&header) {
            let (newest, older) = (newest + field, older + field);
            let what = |which: &str| format!("{which} of chunk {chunk} at {field}");
            sum.harmless(&base, &what("the older header"), &[older]);
            for (which, places) in [
                ("the newest header", &[newest][..]),
                ("both headers", &[newest, older]),
                ("directory and the newest header", &[directory + 16, newest]),
                ("directory and the older header", &[directory + 16, older]),
                ("directory and both headers", &[directory + 16, newest, older]),
            ] {
                sum.harmful(&base, &what(which), places);
            }
            // A clean chunk is fetched again.
            if chunk == 0 {
                sum.harmless(&base, &what("the newest header"), &[newest]);
                sum.harmless(&base, &what("both headers"), &[newest, older]);
            }
        }
    }
    println!("{sum:?}");
    assert!(sum.errors > sum.harmful && sum.unopened == 0, "{sum:?}");
}

#[test]
fn flipped_frames_and_maps_of_the_log_are_survived_or_what_is_lost_is_named() {
    let base = base();
    let mut sum = Sum::default();
    // The count, and the fields of the first run.
    for field in [0, 8, 16, 24, 28, 30, 32, 40, 48] {
        let [used, other] = base.maps.map(|map| map + field);
        sum.harmless(&base, &format!("map at {field}"), &[used]);
        sum.harmless(&base, &format!("unused map at {field}"), &[other]);
        sum.harmless(&base, &format!("both maps at {field}"), &[used, other]);
    }
    // The header's fields, those of the first record, its checksum, what follows, and the data.
    let frame = [16, 24, 32, 40, 48, 56, 60, 64, 72, 80, 84, 86, 88, 112, 200, 4095, 4096, 8191];
    for field in fields(&frame) {
        let mapped = base.mapped + field;
        sum.harmful(&base, &format!("mapped frame at {field}"), &[mapped]);
        let both = [base.maps[0] + 8, mapped];
        sum.harmful(&base, &format!("map and mapped frame at {field}"), &both);
        for (i, scanned) in base.scanned.iter().enumerate() {
            let what = format!("frame {i} of the scan at {field}");
            let outcome = sum.harmful(&base, &what, &[scanned + field]);
            assert_eq!(outcome.unopened, 1, "{what}: {outcome:?}");
        }
        base.flip(&format!("last frame at {field}"), &[base.last + field], true);
    }
    println!("{sum:?}");
    assert!(sum.errors > 0 && sum.unopened > 0, "{sum:?}");
}

#[test]
fn a_flipped_map_of_an_empty_log_is_survived() {
    let base = base();
    run(async {
        let (at, remote) = (Arc::new(base.disk.clone()), Arc::new(base.store.clone()));
        let cache = Cache::open(at, remote, config(4)).await.unwrap();
        // Clean slots take everything.
        cache.volume(&name()).unwrap().upload().await.unwrap();
        cache.close().await.unwrap();
    });
    base.disk.restart(Survivors::None);
    let superblock = base.disk.peek(COPIES[0], BLOCK_BYTES as usize);
    let superblock = Superblock::parse(&superblock, u64::MAX).unwrap();
    assert!(superblock.clean && superblock.tail == superblock.scan_at, "{superblock:?}");
    let area = u64::from(superblock.checkpoint_area) * base.layout.checkpoint_len;
    Sum::default().harmless(&base, "map of an empty log", &[base.layout.checkpoint_at + area]);
}

/// Nobody knows what the slot of the dirty chunk held, or which of its headers is the newest. Use hides the
/// damage: the page is written anew, the slot taken.
#[test]
fn a_doubt_outlives_checkpoints_and_restarts_until_the_operator_accepts_the_loss() {
    let base = base();
    let page = base.layout.directory_at + 16;
    let [newest, older] = base.headers[1].map(|header| header + 16);
    for places in [&[page, newest, older][..], &[page, newest]] {
        for is_read_before in [false, true] {
            let (disk, store) = (base.disk.copy(1), base.store.copy());
            for at in places {
                disk.flip(*at, 1);
            }
            let open = async || {
                let (disk, store) = (Arc::new(disk.clone()), Arc::new(store.clone()));
                let cache = Cache::open(disk, store, config(5)).await.unwrap();
                let volume = cache.volume(&name()).unwrap();
                (cache, volume)
            };
            // What was written there, and what beside it.
            let refused = async |volume: &Volume| {
                for at in [CHUNK_BYTES, CHUNK_BYTES + BLOCK_BYTES, CHUNK_BYTES + (1 << 20)] {
                    match volume.read_vec(at, BLOCK_BYTES).await {
                        Err(Error::Lost { .. } | Error::UnknownLoss { .. }) => {}
                        found => panic!("{places:?}, {is_read_before}: at {at} {found:?}"),
                    }
                }
            };
            run(async {
                let (cache, volume) = open().await;
                if is_read_before {
                    refused(&volume).await;
                }
                for chunk in [0, 3] {
                    volume.write(chunk * CHUNK_BYTES, block(6), true).await.unwrap();
                }
                cache.destage().await.unwrap();
                cache.close().await.unwrap();
            });
            disk.restart(Survivors::None);
            // A crash, and a planned stop.
            for _ in 0..2 {
                run(async {
                    let (cache, volume) = open().await;
                    assert_eq!(cache.status().unknown_slots, 1);
                    refused(&volume).await;
                    assert_eq!(volume.read_vec(0, BLOCK_BYTES).await.unwrap(), block(6));
                    assert_eq!(cache.scrub(false, |_, _| {}).await.unwrap().unknown_slots, 1);
                });
                disk.restart(Survivors::None);
            }
            run(async {
                let (cache, _) = open().await;
                assert_eq!(cache.scrub(true, |_, _| {}).await.unwrap().unknown_slots, 1);
            });
            disk.restart(Survivors::None);
            run(async {
                let (cache, volume) = open().await;
                assert_eq!(cache.status().unknown_slots, 0);
                let beside = volume.read_vec(CHUNK_BYTES + (1 << 20), BLOCK_BYTES).await.unwrap();
                assert_eq!(beside, block(0));
            });
        }
    }
}

#[test]
fn a_cache_of_a_later_version_is_refused_and_not_changed() {
    let base = base();
    for copy in COPIES {
        let disk = base.disk.copy(1);
        let mut superblock = disk.peek(copy, BLOCK_BYTES as usize);
        seal(&mut superblock, b"CVLTSUPR", CACHE_VERSION + 1);
        run(async {
            disk.write(copy, vec![superblock.into()]).await.unwrap();
            disk.sync().await.unwrap();
            let before = disk.digest();
            let (at, remote) = (Arc::new(disk.clone()), Arc::new(base.store.copy()));
            let opened = Cache::open(at.clone(), remote.clone(), config(6)).await;
            assert!(matches!(opened, Err(Error::Later { .. })), "{opened:?}");
            let made = Cache::create(at, remote, LOG, config(6)).await;
            assert!(matches!(made, Err(Error::Exists { .. })), "{made:?}");
            assert_eq!(disk.digest(), before);
        });
    }
}

#[test]
fn a_copy_that_cannot_be_read_takes_no_more_than_one_that_is_damaged() {
    let base = base();
    let older = base.headers.map(|[_, older]| older);
    let places = [&base.superblocks[..], &base.volume_pages, &older];
    let places = [&places.concat()[..], &[base.layout.directory_at, base.maps[0]]].concat();
    for at in places {
        let (disk, store) = (base.disk.copy(1), base.store.copy());
        disk.make_unreadable(at, 512);
        run(async {
            let cache = Cache::open(Arc::new(disk), Arc::new(store), config(2)).await.unwrap();
            let volume = cache.volume(&name()).unwrap();
            for (offset, tag) in EXPECTED {
                let found = volume.read_vec(offset, BLOCK_BYTES).await;
                let found = found.unwrap_or_else(|e| panic!("unreadable at {at}: {e}"));
                assert_eq!(found, block(tag), "unreadable at {at}");
            }
        });
    }
}
