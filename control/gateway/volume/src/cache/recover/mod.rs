//! Making a cache, and opening one after whatever happened to it.
//!
//! Opening reads the superblocks, the volume pages, the directory, the map of the log, and the log since the
//! last checkpoint; slot headers only where a directory page is damaged. What it read is made durable, and
//! the new incarnation too, before anything is written; so a crash while opening changes nothing.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use tokio::sync::Notify;

use super::headers::Copies;
use super::log::Marks;
use super::pace::Pace;
use super::refusal::Refusal;
use super::state::{Key, Slot, State, VolumeEntry};
use super::watched::Watched;
use super::{Cache, Config, Inner};
use crate::disk::sim::Rng;
use crate::disk::{Disk, read_around};
use crate::error::{Error, Result};
use crate::format::FormatError;
use crate::format::checkpoint;
use crate::format::crc32c;
use crate::format::directory::{DirectoryPage, ENTRIES, Entry, pages};
use crate::format::slot_header::{SLOT_BYTES, SlotHeader};
use crate::format::superblock::{COPIES, Layout, MAX_VOLUMES, Superblock, VOLUME_PAGES};
use crate::format::volume_page::{VolumePage, VolumeState};
use crate::remote::{self, ProbeError, Store};
use crate::{BLOCK_BYTES, SlotId};

mod log;

/// How much of the log is read or written at once.
const WINDOW: u64 = 1 << 20;

impl Cache {
    /// Makes a cache on a disk that holds none, with a log of `log_len` bytes, and opens it.
    pub async fn create(
        disk: Arc<dyn Disk>,
        store: Arc<dyn Store>,
        log_len: u64,
        config: Config,
    ) -> Result<Cache> {
        let layout = Layout::for_len(disk.len(), log_len).ok_or_else(|| Error::TooSmall {
            disk: disk.name(),
            len: disk.len(),
            log_len,
        })?;
        for at in COPIES {
            let there = disk.read(at, BLOCK_BYTES as usize).await?;
            // Of a later version it is a cache all the same.
            let found = Superblock::parse(&there, disk.len());
            if matches!(found, Ok(_) | Err(FormatError::Version { .. })) {
                return Err(Error::Exists { disk: disk.name() });
            }
        }
        let seed = config.seed.unwrap_or_else(crate::random);
        remote::probe(store.as_ref(), seed, config.fetch_timeout).await?;
        let cache_id = Rng::new(seed ^ 0x0063_6163_6865).draw().max(1);
        // The log is written ahead, so that a later sync has no metadata to commit.
        // From few pages again and again: a file system in user space takes what is not in memory yet piece by piece.
        let zeros = Bytes::from_static(&[0; 1 << 16]);
        let (mut at, end) = (layout.log_at, layout.log_at + layout.log_len);
        while at < end {
            let len = WINDOW.min(end - at) as usize;
            let parts = (0..len).step_by(zeros.len());
            let parts = parts.map(|from| zeros.slice(..zeros.len().min(len - from))).collect();
            disk.write(at, parts).await?;
            at += len as u64;
        }
        for number in 0..pages(layout.slots) {
            let first = number as SlotId * ENTRIES;
            let entries = vec![Entry::default(); ENTRIES.min(layout.slots - first) as usize];
            let page = DirectoryPage { cache_id, first, entries }.emit();
            disk.write(layout.directory_at + number * BLOCK_BYTES, vec![page.into()]).await?;
        }
        let map = checkpoint::emit(&[]);
        let superblock = Superblock {
            cache_id,
            generation: 1,
            layout,
            incarnation: 1,
            incarnation_at: 0,
            tail: 0,
            scan_at: 0,
            scan_seq: 1,
            checkpoint_area: 0,
            checkpoint_bytes: map.len() as u64,
            checkpoint_crc: crc32c(&map),
            clean: true,
            unknown_slots: 0,
        };
        let mut area = map;
        area.resize(BLOCK_BYTES as usize, 0);
        disk.write(layout.checkpoint_at, vec![area.into()]).await?;
        disk.sync().await?;
        for at in COPIES {
            disk.write(at, vec![superblock.emit().into()]).await?;
            disk.sync().await?;
        }
        Cache::open_with(disk, store, config, OnceLock::from(Ok(()))).await
    }

    /// Opens a cache. Volumes are served at once; chunks are validated at their first access, or all
    /// before this returns if the configuration says so. Whether the store is fit is found out meanwhile:
    /// see [`CacheStatus::unfit_store`](super::CacheStatus::unfit_store).
    pub async fn open(disk: Arc<dyn Disk>, store: Arc<dyn Store>, config: Config) -> Result<Cache> {
        Cache::open_with(disk, store, config, OnceLock::new()).await
    }

    async fn open_with(
        disk: Arc<dyn Disk>,
        store: Arc<dyn Store>,
        config: Config,
        fitness: OnceLock<Result<(), ProbeError>>,
    ) -> Result<Cache> {
        let superblock = read_superblock(disk.as_ref()).await?;
        let mut recovery = Recovery {
            disk: disk.as_ref(),
            superblock,
            state: State::default(),
            rebuilt: BTreeSet::new(),
            accept_loss: config.accept_loss,
            skips_sequences: false,
        };
        recovery.volumes().await?;
        recovery.directory().await?;
        recovery.log().await?;
        let Recovery { mut state, skips_sequences, .. } = recovery;
        // Those that were found before may be among those found now.
        state.unknown_slots = state.unknown_slots.max(superblock.unknown_slots);
        if superblock.clean {
            for slot in state.slots.iter_mut().filter(|slot| slot.occupant.is_some()) {
                slot.validated = true;
            }
            state.unvalidated = 0;
        }

        // What was read may be in the page cache only. It must not vanish after something was built on it.
        disk.sync().await?;
        let incarnation_at = state.log.head;
        state.log.incarnation = superblock.incarnation + 1;
        state.superblock_generation = superblock.generation + 1;
        let mut opened = Superblock {
            generation: superblock.generation + 1,
            clean: false,
            // On the disk before anything is that could hide the damage.
            unknown_slots: state.unknown_slots,
            ..superblock
        };
        if !skips_sequences {
            // Else the checkpoint below says so, together with the sequence: until then damage in the log, which frames
            // of the former incarnation prove, is found again, and asked about again.
            (opened.incarnation, opened.incarnation_at) = (state.log.incarnation, incarnation_at);
        }
        for at in COPIES {
            disk.write(at, vec![opened.emit().into()]).await?;
            disk.sync().await?;
        }
        let written = state.log.next_seq - 1;
        let mut rng = Rng::new(config.seed.unwrap_or_else(crate::random) ^ state.log.incarnation);
        let inner = Inner {
            this: Mutex::new(Weak::new()),
            layout: superblock.layout,
            cache_id: superblock.cache_id,
            incarnation_at,
            nonce: rng.draw() << 32 ^ rng.draw(),
            objects: AtomicU32::new(0),
            state: Mutex::new(state),
            rng: Mutex::new(rng),
            marks: Watched::new(Marks { written, durable: written, syncs: 0, failed: false }),
            fills: Watched::new(0),
            upload_pace: Pace::new(config.upload_rate),
            fetch_pace: Pace::new(config.fetch_rate),
            upload_places: tokio::sync::Semaphore::new(config.uploads_at_once.max(1)),
            failure: OnceLock::new(),
            fitness,
            probing: tokio::sync::Mutex::new(()),
            runtime: tokio::runtime::Handle::current(),
            appending: AtomicBool::new(false),
            syncing: AtomicBool::new(false),
            append_wake: Notify::new(),
            sync_wake: Notify::new(),
            maintenance_wake: Notify::new(),
            headers_wake: Notify::new(),
            headers_room: Notify::new(),
            upload_wake: Notify::new(),
            space: Notify::new(),
            rmw_done: Notify::new(),
            maintenance: tokio::sync::Mutex::new(()),
            #[cfg(test)]
            destaging: AtomicBool::new(false),
            pages: tokio::sync::Mutex::new(()),
            disk,
            store,
            config,
        };
        if inner.config.eager_validation {
            inner.validate_all().await?;
        }
        let cache = Cache::start(Arc::new(inner));
        if skips_sequences {
            // A scan ends where sequences do not follow each other: the next one is to begin behind that.
            let _turn = cache.inner.maintenance.lock().await;
            cache.inner.checkpoint_surely(None).await?;
        }
        cache.inner.maintenance_wake.notify_one();
        Ok(cache)
    }
}

/// The newest superblock that is whole.
async fn read_superblock(disk: &dyn Disk) -> Result<Superblock> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for at in COPIES {
        if at + BLOCK_BYTES > disk.len() {
            return Err(Error::TooShort { disk: disk.name(), len: disk.len() });
        }
        let there = read_around(disk, at, BLOCK_BYTES as usize).await?;
        match Superblock::parse(&there, disk.len()) {
            Ok(superblock) => found.push(superblock),
            // With a right checksum, so it is no damage. The other copy may be older.
            Err(cause @ FormatError::Version { .. }) => {
                return Err(Error::Later { disk: disk.name(), cause: Box::new(cause) });
            }
            Err(error) => errors.push(error),
        }
    }
    if let Some(newest) = found.into_iter().max_by_key(|sb| sb.generation) {
        for error in errors {
            tracing::warn!(disk = disk.name(), %error, "one superblock is damaged; the other is used");
        }
        return Ok(newest);
    }
    let mut errors = errors.into_iter();
    match (errors.next(), errors.next()) {
        (Some(first), Some(second)) => Err(Error::NoSuperblock {
            disk: disk.name(),
            first: Box::new(first),
            second: Box::new(second),
        }),
        _ => Err(Error::TooShort { disk: disk.name(), len: disk.len() }),
    }
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    superblock: Superblock,
    state: State,
    /// Slots whose entries were made of their headers.
    rebuilt: BTreeSet<SlotId>,
    accept_loss: bool,
    /// Whether sequences are passed over that records had which are lost.
    skips_sequences: bool,
}

impl Recovery<'_> {
    async fn volumes(&mut self) -> Result<()> {
        let len = u64::from(MAX_VOLUMES) * 2 * BLOCK_BYTES;
        let pages = read_around(self.disk, VOLUME_PAGES, len as usize).await?;
        self.state.next_volume = 1;
        for (index, copies) in pages.chunks(2 * BLOCK_BYTES as usize).enumerate() {
            let mut newest: Option<(u8, VolumePage)> = None;
            let mut broken = Vec::new();
            for (copy, bytes) in copies.chunks(BLOCK_BYTES as usize).enumerate() {
                match VolumePage::parse(bytes) {
                    Ok(page) => {
                        if page.cache_id == self.superblock.cache_id
                            && newest.as_ref().is_none_or(|(_, b)| b.generation < page.generation)
                        {
                            newest = Some((copy as u8, page));
                        }
                    }
                    // Most pages of most caches are empty: as many bytes as fit are compared at once.
                    Err(error) if *bytes != [0; BLOCK_BYTES as usize] => broken.push(error),
                    Err(_) => {}
                }
            }
            let Some((page_copy, page)) = newest else {
                // A power cut tears one of them; a volume that somebody was told of has both.
                let mut broken = broken.into_iter();
                if let (Some(_), Some(cause)) = (broken.next(), broken.next()) {
                    let disk = self.disk.name();
                    if !self.accept_loss {
                        return Err(Error::Damaged { disk, cause: Box::new(cause) });
                    }
                    tracing::error!(disk, index, %cause, "both pages of a volume are damaged: what it did not upload is lost");
                }
                continue;
            };
            self.state.page_copies.insert(index as u32, page_copy);
            self.state.page_generation = self.state.page_generation.max(page.generation);
            self.state.next_volume = self.state.next_volume.max(page.id + 1);
            let refusing = match page.state {
                VolumeState::Active => None,
                // A release that was finished leaves no page.
                VolumeState::Released => Some(Refusal::InDoubt),
                VolumeState::Quarantined => Some(Refusal::Quarantined),
                VolumeState::Deleting => Some(Refusal::Deleting),
                VolumeState::Gone => continue,
            };
            let entry = VolumeEntry::new(index as u32, page, refusing);
            self.state.volumes.insert(entry.page.id, entry);
        }
        Ok(())
    }

    async fn directory(&mut self) -> Result<()> {
        let layout = self.superblock.layout;
        let mut slots: Vec<Slot> = Vec::with_capacity(layout.slots as usize);
        let bytes = pages(layout.slots) * BLOCK_BYTES;
        let mut at = 0;
        while at < bytes {
            let len = (4 << 20).min(bytes - at);
            let part = read_around(self.disk, layout.directory_at + at, len as usize).await?;
            for page in part.chunks(BLOCK_BYTES as usize) {
                let first = slots.len() as SlotId;
                let count = ENTRIES.min(layout.slots - first) as usize;
                match DirectoryPage::parse(page, self.superblock.cache_id, first) {
                    Ok(page) if page.entries.len() == count => {
                        slots.extend(page.entries.iter().map(|entry| Slot {
                            entry: *entry,
                            header_written: entry.volume != 0,
                            ..Slot::default()
                        }));
                    }
                    other => {
                        let error = other.err();
                        tracing::warn!(
                            first,
                            ?error,
                            "a directory page is rebuilt from slot headers"
                        );
                        for slot in first..first + count as SlotId {
                            slots.push(self.rebuild(slot).await?);
                        }
                    }
                }
            }
            at += len;
        }
        self.occupy(slots);
        Ok(())
    }

    /// Makes a directory entry from the slot's headers.
    async fn rebuild(&mut self, slot: SlotId) -> Result<Slot> {
        let at = self.superblock.layout.slots_at + u64::from(slot) * SLOT_BYTES;
        let cache_id = self.superblock.cache_id;
        let Copies { best, broken } = Copies::read(self.disk, at, cache_id, slot).await?;
        self.rebuilt.insert(slot);
        let mut entry = Slot { unlisted: true, ..Slot::default() };
        if broken {
            // Headers are durable before the directory is written, so a power cut does not do this.
            tracing::error!(slot, "directory and header of a slot are damaged");
            self.state.unknown_slots += 1;
        }
        entry.entry.is_doubtful = broken;
        if let Some((copy, header)) = best {
            entry.durable_copy = Some(copy);
            entry.entry.version = header.version;
            if header.volume != 0 && !(broken && self.is_published(&header)) {
                entry.entry.volume = header.volume;
                entry.entry.chunk = header.chunk;
                entry.header_written = true;
                entry.header = Some(Box::new(header));
                entry.summarize();
                entry.header = None;
                // More may be when it is adopted.
                entry.has_lost = None;
            }
        }
        Ok(entry)
    }

    /// Whether the store has all that a header names. If it is not the newest, its slot may have been given up since:
    /// the data are still there then, so that their checksums prove nothing.
    fn is_published(&self, header: &SlotHeader) -> bool {
        let volume = self.state.volumes.get(&header.volume);
        volume.is_some_and(|volume| header.seq <= volume.page.published)
    }

    /// Says which chunk is in which slot.
    fn occupy(&mut self, slots: Vec<Slot>) {
        let state = &mut self.state;
        // Sorted, not looked up one by one: a cache has a quarter of a million slots per TiB, and they are mostly in order.
        let mut places: Vec<(Key, u64, SlotId)> = Vec::with_capacity(slots.len());
        for (i, slot) in slots.iter().enumerate() {
            let key = Key { volume: slot.entry.volume, chunk: slot.entry.chunk };
            places.push((key, slot.entry.seq, i as SlotId));
        }
        places.retain(|(key, ..)| state.volumes.contains_key(&key.volume));
        // A chunk that moved may be in an older page still; the higher sequence is newer, and of equal ones the first slot.
        places.sort_unstable_by_key(|(key, seq, slot)| (*key, Reverse(*seq), *slot));
        places.dedup_by_key(|(key, ..)| *key);
        state.slots = slots;
        for (key, _, slot) in &places {
            let Some(slot) = state.slots.get_mut(*slot as usize) else { continue };
            slot.occupant = Some(*key);
            state.unvalidated += 1;
            if let Some(volume) = state.volumes.get_mut(&key.volume) {
                volume.dirty_slots += u64::from(slot.entry.dirty_blocks);
            }
        }
        for (i, slot) in state.slots.iter_mut().enumerate() {
            if slot.occupant.is_none() {
                slot.entry = Entry { version: slot.entry.version, ..Entry::default() };
                slot.header_written = false;
                state.unchecked.push(i as SlotId);
            }
        }
        // The lowest first, so that a new cache fills from its beginning.
        state.unchecked.reverse();
        state.chunks_in_slots(places.into_iter().map(|(key, _, slot)| (key, slot)));
    }
}

impl VolumeEntry {
    pub(crate) fn new(page_index: u32, page: VolumePage, refusing: Option<Refusal>) -> VolumeEntry {
        VolumeEntry {
            page_index,
            page,
            remote: None,
            shrinking_to: None,
            root_unsure: false,
            cut: None,
            kept: Default::default(),
            dirty_slots: 0,
            dirty_log: 0,
            lost: 0,
            held_up: Default::default(),
            superseded_by: None,
            refusing,
            uploading: Arc::default(),
        }
    }
}

impl Inner {
    /// Reads and checks every slot header that is not checked yet, several at a time.
    async fn validate_all(&self) -> Result<()> {
        let keys: Vec<Key> = {
            let state = self.state();
            let chunks = state.chunks.iter().filter(|(_, chunk)| chunk.slot.is_some());
            chunks.map(|(key, _)| *key).collect()
        };
        for group in keys.chunks(32) {
            let loads = group.iter().map(|key| self.load(*key));
            futures_util::future::try_join_all(loads).await?;
        }
        Ok(())
    }
}
