//! What all tests have in common: how they make small caches on a simulated disk and store, and find things on them.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::super::{Cache, Config};
use crate::BLOCK_BYTES;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::error::Error;
use crate::format::BLOCK;
use crate::format::slot_header::{HEADER_BYTES, SLOT_BYTES};
use crate::format::superblock::Layout;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;

/// Bytes of the log of these caches.
pub(super) const LOG: u64 = 256 << 10;

pub(super) fn name() -> VolumeName {
    VolumeName::new("v").unwrap()
}

pub(super) fn config(seed: u64) -> Config {
    Config { headers_in_memory: 2, seed: Some(seed), ..Config::default() }
}

/// Length of a disk with `slots` slots.
pub(super) fn disk_len(slots: u64) -> u64 {
    let base = Layout::for_len(1 << 30, LOG).unwrap();
    base.directory_at + BLOCK_BYTES + LOG + slots * SLOT_BYTES
}

/// Runs a future on a runtime of one thread whose clock stands still unless everybody waits. Everything
/// it spawned is gone afterwards.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

/// Works until that is done, or the power is cut.
pub(super) async fn until_it_dies(disk: &SimDisk, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = disk.died() => {}
        () = work => {}
    }
}

/// A block of bytes of `tag`.
pub(super) fn block(tag: u8) -> Bytes {
    Bytes::from(vec![tag; BLOCK])
}

/// Blocks of these tags.
pub(super) fn blocks(tags: std::ops::RangeInclusive<u8>) -> Bytes {
    tags.flat_map(block).collect()
}

/// A new cache on this disk.
pub(super) async fn new_cache(disk: &SimDisk, store: &SimStore, seed: u64) -> Cache {
    let (disk, store) = (Arc::new(disk.clone()), Arc::new(store.clone()));
    Cache::create(disk, store, LOG, config(seed)).await.unwrap()
}

/// A new cache of four slots on a disk of its own, as another gateway has it.
pub(super) async fn cache_at(store: &SimStore, seed: u64) -> Cache {
    new_cache(&SimDisk::new(disk_len(4), seed), store, seed).await
}

/// Opens a cache again, with seed 2.
pub(super) async fn open(disk: &SimDisk, store: &SimStore) -> Result<Cache, Error> {
    Cache::open(Arc::new(disk.clone()), Arc::new(store.clone()), config(2)).await
}

/// Where things are on the disk of a cache whose log has [`LOG`] bytes.
pub(super) fn layout(disk: &SimDisk) -> Layout {
    Layout::for_len(disk.len(), LOG).unwrap()
}

/// Where the slot begins whose chunk begins with a byte of `tag`.
pub(super) fn slot_of(disk: &SimDisk, tag: u8) -> u64 {
    let layout = layout(disk);
    (0..u64::from(layout.slots))
        .map(|slot| layout.slots_at + slot * SLOT_BYTES)
        .find(|at| disk.peek(at + 2 * HEADER_BYTES as u64, 1) == [tag])
        .unwrap()
}

/// Where in the log a block of `tag` lies.
pub(super) fn in_log(disk: &SimDisk, tag: u8) -> u64 {
    let layout = layout(disk);
    (0..LOG / BLOCK_BYTES)
        .map(|i| layout.log_at + i * BLOCK_BYTES)
        .find(|at| disk.peek(*at, BLOCK) == block(tag))
        .unwrap()
}
