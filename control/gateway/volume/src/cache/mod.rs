//! The cache: log, slots, directory, and what moves data between them and the store.
//!
//! Rules that everything here keeps:
//!
//! 1. Sequence decides which value of a block is newer, never position.
//! 2. A write is answered once its record is written; FLUSH and FUA once everything answered before is
//!    durable. One sync answers all who asked before it began.
//! 3. A record is durable before its slot is touched; data and header are durable before the record leaves
//!    the map; the directory is durable before the record's space in the log is used again.
//! 4. What lies beside the data (slot header, log record) is the truth; directory and checkpoint are behind
//!    it and are checked against it at first access.
//! 5. A slot is used again only after a header that calls it free is durable.
//! 6. A root is published only when everything it names is in the store and durable here; blocks turn clean
//!    after that, never before.
//! 7. After a failed write or sync of the disk nothing is tried again and nothing more is promised.
//!
//! The state in memory has one lock ([`state`]), never held across I/O. A chunk's own lock is held for
//! reading while its slot is read and for writing while its slot changes.

mod checkpoint;
mod deletion;
mod destage;
mod evict;
mod fetch;
mod fitness;
mod headers;
mod held_up;
mod index;
mod log;
mod maintenance;
mod ownership;
mod pace;
mod pages;
mod read;
mod recover;
mod refusal;
mod roots;
mod runmap;
mod scrub;
mod state;
#[cfg(test)]
mod tests;
mod upload;
mod volume;
mod watched;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::disk::Disk;
use crate::disk::sim::Rng;
use crate::error::{Error, Result};
use crate::format::superblock::Layout;
use crate::remote::{ProbeError, Store};
use crate::volume_name::VolumeName;

pub use read::Segment;
pub use refusal::Refusal;
pub use scrub::{QuarantineExport, QuarantinedRange, ScrubReport};
pub use volume::{BlockStatus, StatusExtent, Volume, VolumeOptions, VolumeStatus};

use log::Marks;
use pace::Pace;
use state::State;
use watched::Watched;

/// How the cache behaves. The defaults are for production.
#[derive(Clone, Debug)]
pub struct Config {
    /// Nothing answered stays un-synced for longer.
    pub sync_interval: Duration,
    /// Bytes of log between two checkpoints.
    pub scan_bytes: u64,
    /// Records between two checkpoints.
    pub scan_records: u64,
    /// Fill of the log, 0 to 1, above which records move to slots.
    pub destage_above: f64,
    /// Quiet time after which records move to slots anyway.
    pub idle_destage: Duration,
    /// Fill of the log, 0 to 1, above which writers pause.
    pub slow_above: f64,
    /// The pause of a writer when the log is full.
    pub longest_pause: Duration,
    /// Share of the slots, 0 to 1, that may hold what is not uploaded yet. The others are left to reads while
    /// uploads drain; what finds no slot waits in the log. What no upload helps takes more rather than fill the log.
    pub dirty_share: f64,
    /// How long data of the log that the disk does not give back are read again before they are given up as lost. A
    /// device that was reset, or is reached by another way now, has them again.
    pub unreadable_for: Duration,
    /// Slot headers kept in memory; one takes 5 KiB. Those of chunks in use and of a round of destaging come on top, and
    /// those that are newer than on disk until they are written.
    pub headers_in_memory: usize,
    /// How long a read of something that is not cached may wait for the store, in sum over all that it needs
    /// there. What `fetch_rate` holds back does not count.
    pub fetch_timeout: Duration,
    /// How long one attempt to put an object of up to 8 MiB may take, as with a slow way to the store. Further
    /// attempts begin within `fetch_timeout`; then the upload is given up, and goes on later where it was.
    pub upload_timeout: Duration,
    /// Time between two uploads of a volume.
    pub upload_interval: Duration,
    /// Time between two looks at the root of a volume that has nothing to upload: somebody else may have taken it over.
    pub owner_check_interval: Duration,
    /// Pause of a volume after an upload that failed. Each further failure doubles it, up to a minute.
    pub upload_retry: Duration,
    /// Bytes per second that may be put into the store; 0: any number.
    pub upload_rate: u64,
    /// Bytes per second that may be got from the store; 0: any number.
    pub fetch_rate: u64,
    /// Objects that are put at the same time, each of which takes up to 16 MiB of memory. Reads are not counted,
    /// so that they keep their share of the way to the store while much is uploaded.
    pub uploads_at_once: usize,
    /// Shortest pause of the background validation after some chunks.
    pub validation_pause: Duration,
    /// Whether everything is validated before the cache opens.
    pub eager_validation: bool,
    /// Whether to open although a durable part of the log is damaged, and to lose it.
    pub accept_loss: bool,
    /// Seed of everything random; `None`: the system's. For tests.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            sync_interval: Duration::from_secs(1),
            scan_bytes: 64 << 20,
            scan_records: 16_384,
            destage_above: 0.25,
            idle_destage: Duration::from_secs(1),
            slow_above: 0.75,
            longest_pause: Duration::from_millis(20),
            dirty_share: 0.85,
            unreadable_for: Duration::from_secs(60),
            headers_in_memory: 8192,
            fetch_timeout: Duration::from_secs(30),
            upload_timeout: Duration::from_secs(120),
            upload_interval: Duration::from_secs(5),
            owner_check_interval: Duration::from_secs(60),
            upload_retry: Duration::from_secs(5),
            upload_rate: 0,
            fetch_rate: 0,
            uploads_at_once: 2,
            validation_pause: Duration::from_millis(1),
            eager_validation: false,
            accept_loss: false,
            seed: None,
        }
    }
}

impl Config {
    /// Free slots below which eviction begins, and at which it ends. Fills must not stop before it begins: in
    /// a cache that is only read nothing else would take a slot, and it would keep what it has for ever. That
    /// is so in a cache of fewer than eight slots (32 MiB), where no more than a quarter is kept free.
    fn watermarks(&self, slots: usize) -> (usize, usize) {
        let above_fills = self.slots_kept_for_writes(slots) + 1;
        let low = (slots / 20).max(above_fills.min(slots / 4)).max(1);
        (low, (slots / 12).max(low + 1))
    }

    /// Free slots that fills leave alone.
    fn slots_kept_for_writes(&self, slots: usize) -> usize {
        (slots / 50).max(1)
    }

    /// Slots that may be dirty, at least one. Where there are so few that it matters, one more is left than
    /// fills leave alone.
    fn most_dirty_slots(&self, slots: usize) -> usize {
        let share = (slots as f64 * self.dirty_share.clamp(0.0, 1.0)) as usize;
        share.min(slots.saturating_sub(self.slots_kept_for_writes(slots) + 1)).max(1)
    }
}

/// Counts since the cache was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chunks whose headers were checked for the first time.
    pub validated: u64,
    /// Slot headers found damaged.
    pub damaged_headers: u64,
    /// Clean blocks found damaged, to be fetched again.
    pub damaged_blocks: u64,
    /// Chunks written from the log to their slots.
    pub destaged_chunks: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Chunks evicted.
    pub evicted: u64,
    /// Blocks that clients read from the cache.
    pub hits: u64,
    /// Blocks that clients read and the store had to be asked for.
    pub misses: u64,
    /// Bytes got from the store.
    pub fetched_bytes: u64,
    /// Blocks of those that were kept.
    pub filled_blocks: u64,
    /// Bytes put into the store.
    pub uploaded_bytes: u64,
    /// Roots published.
    pub cuts: u64,
    /// Operations of the store that failed and were tried again or given up.
    pub store_failures: u64,
}

/// How a cache is.
#[derive(Clone, Debug)]
pub struct CacheStatus {
    /// The cache's identity.
    pub cache_id: u64,
    /// Bytes of the log, and how many of them are in use.
    pub log: (u64, u64),
    /// Slots, and how many are free.
    pub slots: (u32, u32),
    /// Chunks whose headers were not checked yet since the start.
    pub unvalidated: u32,
    /// Slots of which nobody knows what they held.
    pub unknown_slots: u32,
    /// Why the cache stopped, if it did.
    pub stopped: Option<String>,
    /// Why the store cannot hold volumes, if that was found. Nothing is uploaded then.
    pub unfit_store: Option<ProbeError>,
    /// Counts since the start.
    pub counters: Counters,
    /// What was done to the disk since it was opened.
    pub disk: crate::disk::DiskCounts,
}

/// What one cache consists of.
#[derive(Debug)]
pub(crate) struct Inner {
    this: Mutex<Weak<Inner>>,
    disk: Arc<dyn Disk>,
    store: Arc<dyn Store>,
    config: Config,
    layout: Layout,
    cache_id: u64,
    incarnation_at: u64,
    /// Makes names of objects of this run unique.
    nonce: u64,
    objects: AtomicU32,
    state: Mutex<State>,
    rng: Mutex<Rng>,
    marks: Watched<Marks>,
    /// Fills under way.
    fills: Watched<u64>,
    upload_pace: Pace,
    fetch_pace: Pace,
    /// Permits to have an object in memory that is put.
    upload_places: tokio::sync::Semaphore,
    /// Where what goes on behind a request runs: a request's own runtime may end with its connection.
    runtime: tokio::runtime::Handle,
    failure: OnceLock<String>,
    /// Whether the store keeps the conditions of puts, once that is known.
    fitness: OnceLock<Result<(), ProbeError>>,
    /// Held while that is found out.
    probing: tokio::sync::Mutex<()>,
    /// Whether somebody is writing records to the log.
    appending: AtomicBool,
    /// Whether a thread is syncing.
    syncing: AtomicBool,
    append_wake: Notify,
    sync_wake: Notify,
    maintenance_wake: Notify,
    headers_wake: Notify,
    headers_room: Notify,
    upload_wake: Notify,
    space: Notify,
    rmw_done: Notify,
    maintenance: tokio::sync::Mutex<()>,
    /// Whether slots were written whose records are still in the map: what a crash should meet.
    #[cfg(test)]
    destaging: AtomicBool,
    pages: tokio::sync::Mutex<()>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> u64 {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        rng.draw() << 32 ^ rng.draw()
    }

    /// A random number from 0 to 1.
    fn random_unit(&self) -> f64 {
        (self.random() % 1_000_000) as f64 / 1e6
    }

    fn name(&self, volume: u64) -> Result<VolumeName> {
        let state = self.state();
        let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
        Ok(entry.page.name.clone())
    }

    /// The epoch under which the volume is served, or why it is not.
    fn serving(&self, volume: u64) -> Result<u64> {
        self.check_running()?;
        let state = self.state();
        let entry = state.volumes.get(&volume).ok_or(Error::Gone)?;
        let volume = || entry.page.name.clone();
        match (entry.superseded_by, entry.refusing) {
            (Some(epoch), _) => {
                Err(Error::Superseded { volume: volume(), epoch, ours: entry.page.epoch })
            }
            (None, Some(state)) => Err(Error::NotServed { volume: volume(), state }),
            (None, None) => Ok(entry.page.epoch),
        }
    }
}

/// An open cache. Dropping it stops its tasks as a crash would; after [`close`](Cache::close) the next start has
/// little to do.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

impl Cache {
    fn start(inner: Arc<Inner>) -> Cache {
        *inner.this.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&inner);
        let tasks = vec![
            tokio::spawn(Arc::clone(&inner).run_appender()),
            tokio::spawn(Arc::clone(&inner).run_syncer()),
            tokio::spawn(Arc::clone(&inner).run_ticker()),
            tokio::spawn(Arc::clone(&inner).run_maintenance()),
            tokio::spawn(Arc::clone(&inner).run_headers()),
            tokio::spawn(Arc::clone(&inner).run_probe()),
            tokio::spawn(Arc::clone(&inner).run_owner_checks()),
            tokio::spawn(Arc::clone(&inner).run_uploads()),
            tokio::spawn(Arc::clone(&inner).run_validation()),
        ];
        Cache { inner, tasks }
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        let state = self.inner.state();
        let free = state.free.len() + state.unchecked.len();
        CacheStatus {
            cache_id: self.inner.cache_id,
            log: (self.inner.layout.log_len, state.log.head - state.log.tail),
            slots: (state.slots.len() as u32, free as u32),
            unvalidated: state.unvalidated,
            unknown_slots: state.unknown_slots,
            stopped: self.inner.failure.get().cloned(),
            unfit_store: self.inner.fitness.get().and_then(|fitness| fitness.clone().err()),
            counters: state.counters,
            disk: self.inner.disk.counts(),
        }
    }

    /// Slots that hold what is not in the store yet. Counts them, which takes milliseconds where they are many.
    #[must_use]
    pub fn dirty_slots(&self) -> u32 {
        let state = self.inner.state();
        state.slots.iter().filter(|slot| slot.entry.dirty_blocks > 0).count() as u32
    }

    /// Moves what is due from the log to slots and writes a checkpoint, now.
    pub async fn destage(&self) -> Result<()> {
        self.inner.destage_now().await
    }

    /// Evicts up to `chunks` clean chunks, now. Returns how many.
    pub async fn evict(&self, chunks: usize) -> Result<usize> {
        self.inner.evict_now(chunks).await
    }

    /// Begins a planned stop, so that whoever waits for the requests that run need not do so for ever: a writer
    /// that waits for room gets an error, since in an outage none may come, and so does a request of many steps
    /// at its next one. Others are served until [`close`](Cache::close).
    pub fn begin_stop(&self) {
        self.inner.state().is_stopping = true;
        self.inner.space.notify_waiters();
    }

    /// Stops in order: everything is durable, and moved to its slot. Only what no slot may take, since so many hold
    /// what is not uploaded, stays in the log, where the next start finds it. Unless so many small pieces are left
    /// there that no checkpoint names them, nothing is to be validated then. Requests that come later fail.
    pub async fn close(self) -> Result<()> {
        self.close_shared().await
    }

    /// The same, for who shares the cache. Nothing can be done with it afterwards.
    pub async fn close_shared(&self) -> Result<()> {
        self.begin_stop();
        for entry in self.inner.state().volumes.values_mut() {
            entry.refusing.get_or_insert(Refusal::Closed);
        }
        self.inner.fills.wait(|fills| *fills == 0).await;
        self.inner.settle_all().await
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.inner.marks.change(|marks| marks.failed = true);
        self.inner.space.notify_waiters();
    }
}

/// Milliseconds since the Unix epoch. In tests the time stands still, so that a seed gives the same bytes again.
fn unix_ms() -> u64 {
    if cfg!(test) {
        return 1;
    }
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Faults that tests put in to see that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Plant {
    /// A write is answered before its record is in the log.
    AnswerBeforeWritten,
    /// A FLUSH is answered without a sync.
    FlushSkipsSync,
    /// No sync at all.
    NoSync,
    /// A sync answers those, too, who asked or wrote while it was under way.
    SyncCoversLater,
    /// Slots are overwritten before their records are durable.
    DestageBeforeSync,
    /// The superblock moves on before directory and map are durable.
    SuperblockBeforeDirectory,
    /// Space of the log is used again before directory and superblock can do without it.
    TailBeforeDirectory,
    /// Both versions of a header go to the same place.
    HeaderInPlace,
    /// After a planned stop nobody looks which of a slot's headers is the durable one.
    StopForgetsCopies,
    /// Blocks are clean once they are in a slot.
    CleanTooEarly,
    /// Blocks that were overwritten after the cut turn clean with it.
    CleanOverwritten,
    /// Dirty chunks are evicted.
    EvictDirty,
    /// A cut holds whatever is newest when it is read.
    CutTakesNewest,
    /// Slots are overwritten although a cut needs what is there.
    DestageOverCut,
    /// A cut is uploaded before it is durable here.
    CutBeforeFlush,
    /// An upload is answered and puts nothing.
    UploadSkipped,
    /// A FLUSH of a volume with remote durability does not wait for a cut.
    FlushStaysHere,
    /// A root is put whatever epoch is there.
    NoEpochCheck,
    /// A root is put without a condition.
    PutWithoutCondition,
    /// Recovery does not check the data of records.
    NoDataCheck,
    /// A root under our epoch is taken for ours whatever its nonce.
    AnyNonce,
    /// The nonce of a root is not on the disk before it is put.
    AttemptsForgotten,
    /// A volume is deleted by removing its root, whoever put that.
    DeletesUnasked,
    /// The store is not tried at the start.
    StoreTrusted,
}

#[cfg(test)]
thread_local! {
    pub(crate) static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
pub(crate) fn planted(plant: Plant) -> bool {
    PLANTED.get() == Some(plant)
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn planted(_: Plant) -> bool {
    false
}
