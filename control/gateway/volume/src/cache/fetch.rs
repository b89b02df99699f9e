//! Fetching blocks from the store, and putting them into slots.
//!
//! The unit is a frame of 16 blocks: a miss of one block fetches what is missing of its frame. Readers
//! that miss the same frame wait for one fetch, and share its failure unless they have time left. What was fetched
//! enters the cache only if the chunk did not leave its slot meanwhile, and only where nothing newer is.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::read::Piece;
use super::state::{Chunk, Key};
use super::{Inner, index};
use crate::bits::BlockSet;
use crate::error::{Error, Result};
use crate::format::crc32c;
use crate::format::index::Extent;
use crate::remote::{Answer, StoreError};
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Blocks of a frame.
pub(crate) const FRAME_BLOCKS: u16 = 16;

/// Frames on their way to the disk at a time, 16 MiB in memory. Where the store is faster than the disk, more is
/// answered and not kept.
pub(crate) const MAX_FILLS: u64 = 256;

/// A block from the store.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) block: u16,
    /// `None`: a hole.
    pub(crate) data: Option<Bytes>,
}

/// How long a read waits for the store, in sum over all that it gets there. What the configured rate holds back
/// is not waiting for the store, and does not count.
#[derive(Debug)]
pub(crate) struct Patience(Mutex<Instant>);

impl Patience {
    /// When it ends.
    pub(crate) fn end(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the end off to `end`, unless it is later already.
    fn put_off(&self, end: Instant) {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *until = end.max(*until);
    }
}

/// Keeps the chunk's entry, and with it its generation, while a fetch runs.
struct Fetching<'a> {
    inner: &'a Inner,
    key: Key,
    generation: u32,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(chunk) = state.chunks.get_mut(&self.key) {
            chunk.fetching = chunk.fetching.saturating_sub(1);
            if chunk.fetching == 0 {
                state.fetches.retain(|(key, _, _), _| *key != self.key);
            }
        }
        state.forget_if_empty(self.key);
    }
}

impl Inner {
    /// Gets missing blocks of a chunk. `None` if the cache changed such that the read must look again.
    pub(crate) async fn fetch(
        &self,
        key: Key,
        missing: &BlockSet,
        patience: &Patience,
    ) -> Result<Option<Vec<Piece>>> {
        self.serving(key.volume)?;
        let unknown = self.state().unknown_slots;
        if unknown > 0
            && let Some(block) = missing.iter().next()
        {
            let offset = u64::from(key.chunk) * CHUNK_BYTES + u64::from(block) * BLOCK_BYTES;
            let volume = self.name(key.volume)?;
            let end = offset + BLOCK_BYTES;
            return Err(Error::UnknownLoss { volume, slots: unknown, offset, end });
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let frames = missing.summary();
        let frames = (0..64_u16).filter(|frame| frames >> frame & 1 == 1);
        let fetches = frames.map(|frame| async move {
            self.fetch_frame(key, frame, patience).await.map(|fetched| (frame, fetched))
        });
        for (frame, fetched) in futures_util::future::try_join_all(fetches).await? {
            for block in (frame * FRAME_BLOCKS..(frame + 1) * FRAME_BLOCKS)
                .filter(|block| missing.contains(*block))
            {
                let Some(found) = fetched.iter().find(|fetched| fetched.block == block) else {
                    return Ok(None);
                };
                match pieces.last_mut() {
                    Some(piece)
                        if piece.data.is_none()
                            && found.data.is_none()
                            && piece.first + piece.count == block =>
                    {
                        piece.count += 1;
                    }
                    _ => pieces.push(Piece { first: block, count: 1, data: found.data.clone() }),
                }
            }
        }
        Ok(Some(pieces))
    }

    async fn fetch_frame(
        &self,
        key: Key,
        frame: u16,
        patience: &Patience,
    ) -> Result<Arc<Vec<Fetched>>> {
        loop {
            let (guard, cell) = {
                let mut state = self.state();
                let chunk = state.chunk(key);
                chunk.fetching += 1;
                let generation = chunk.generation;
                let guard = Fetching { inner: self, key, generation };
                let cell = Arc::clone(state.fetches.entry((key, frame, generation)).or_default());
                (guard, cell)
            };
            let mut began_here = false;
            let fetch = || {
                began_here = true;
                self.fetch_missing(key, frame, guard.generation, patience)
            };
            let fetched = cell.get_or_init(fetch).await.clone();
            // The next miss of this frame asks anew: the fetch may have failed, the fill may have been dropped.
            let at = (key, frame, guard.generation);
            {
                let mut state = self.state();
                if state.fetches.get(&at).is_some_and(|newest| Arc::ptr_eq(newest, &cell)) {
                    state.fetches.remove(&at);
                }
            }
            drop(guard);
            match fetched {
                // Whoever began it may have waited long for something else before. Who waited with it takes the
                // failure as well, once its own time is over: in an outage they do not wait one after another.
                Err(Error::StoreTimeout { .. })
                    if !began_here && Instant::now() < patience.end() => {}
                fetched => return fetched,
            }
        }
    }

    /// Gets what is missing of a frame, and has it kept.
    async fn fetch_missing(
        &self,
        key: Key,
        frame: u16,
        generation: u32,
        patience: &Patience,
    ) -> Result<Arc<Vec<Fetched>>> {
        let missing = self.missing_of(key, frame).await?;
        let fetched = Arc::new(self.fetch_blocks(key, &missing, patience).await?);
        if fetched.iter().any(|fetched| fetched.data.is_some()) {
            self.begin_fill(key, generation, &fetched)?;
        }
        Ok(fetched)
    }

    /// Has fetched blocks put into the cache, unless too many are on their way there.
    fn begin_fill(&self, key: Key, generation: u32, fetched: &Arc<Vec<Fetched>>) -> Result<()> {
        let this = self.this()?;
        let mut has_place = false;
        self.fills.change(|fills| {
            has_place = *fills < MAX_FILLS;
            *fills += u64::from(has_place);
        });
        if has_place {
            // The fill keeps the chunk's entry and generation too.
            self.state().chunk(key).fetching += 1;
            self.runtime.spawn(this.fill(key, generation, Arc::clone(fetched)));
        }
        Ok(())
    }

    /// The blocks of a frame that are neither in the log nor in the slot.
    async fn missing_of(&self, key: Key, frame: u16) -> Result<BlockSet> {
        loop {
            self.load(key).await?;
            let state = self.state();
            if state.needs_header(key) {
                continue;
            }
            let range = frame * FRAME_BLOCKS..(frame + 1) * FRAME_BLOCKS;
            let mut missing = BlockSet::EMPTY;
            missing.insert_range(range.clone());
            if let Some(chunk) = state.chunks.get(&key) {
                for run in chunk.log.lookup(range) {
                    missing.remove_range(run.first..run.end());
                }
            }
            if let Some((_, header)) = state.header(key) {
                missing.subtract(&header.valid);
                missing.subtract(&header.lost);
            }
            return Ok(missing);
        }
    }

    /// Gets blocks from the store by the newest root.
    async fn fetch_blocks(
        &self,
        key: Key,
        missing: &BlockSet,
        patience: &Patience,
    ) -> Result<Vec<Fetched>> {
        let name = self.name(key.volume)?;
        let root = self.root_by(patience.end(), key.volume).await?.root;
        let (Some(first), Some(last)) = (missing.iter().next(), missing.iter().last()) else {
            return Ok(Vec::new());
        };
        let mut fetched: Vec<Fetched> =
            missing.iter().map(|block| Fetched { block, data: None }).collect();
        let blocks = first..last + 1;
        let extents = self.locate(patience.end(), &name, &root, key.chunk, blocks).await?;
        // What lies in several objects, or apart, is asked for at once: a miss waits for one answer.
        let gets = extents.iter().flat_map(|extent| {
            let mut wanted = BlockSet::EMPTY;
            wanted.insert_range(extent.first..extent.end());
            let runs = wanted.runs(FRAME_BLOCKS).into_iter();
            let name = &name;
            runs.filter(|run| missing.intersects(run.clone()))
                .map(move |run| self.fetch_run(name, extent, run, patience))
        });
        for (run, data) in futures_util::future::try_join_all(gets).await? {
            for entry in &mut fetched {
                if run.contains(&entry.block) {
                    let at = usize::from(entry.block - run.start) * BLOCK_BYTES as usize;
                    entry.data = Some(data.slice(at..at + BLOCK_BYTES as usize));
                }
            }
            self.state().counters.fetched_bytes += data.len() as u64;
        }
        Ok(fetched)
    }

    /// Gets a run of an extent's blocks, and checks them.
    async fn fetch_run(
        &self,
        name: &VolumeName,
        extent: &Extent,
        run: Range<u16>,
        patience: &Patience,
    ) -> Result<(Range<u16>, Bytes)> {
        let path = format!("{name}/pack/{}", extent.pack);
        let from = u64::from(extent.at + (run.start - extent.first)) * BLOCK_BYTES;
        let to = from + u64::from(run.end - run.start) * BLOCK_BYTES;
        let (end, begun) = (patience.end(), Instant::now());
        self.fetch_pace.take(to - from).await;
        patience.put_off(end + begun.elapsed());
        // A wrong answer may be the way's fault, not the object's: ask twice.
        for _ in 0..2 {
            let get = || self.get_whole_range(&path, from..to);
            let data = self.patiently_until(patience.end(), name, get).await?;
            let mut blocks = data.chunks(BLOCK_BYTES as usize).zip(run.clone());
            let whole = blocks.all(|(data, block)| {
                let at = usize::from(block - extent.first);
                extent.crcs.get(at).is_some_and(|crc| *crc == crc32c(data))
            });
            if whole {
                return Ok((run, data));
            }
        }
        let cause = format!("bytes {from} to {to} have a wrong checksum");
        Err(index::damaged(name, &path, &cause))
    }

    /// Bytes of an object; an answer that comes short is a failure to try again.
    fn get_whole_range<'a>(&'a self, path: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            let data = self.store.get_range(path, range.clone()).await?;
            let (found, wanted) = (data.len() as u64, range.end - range.start);
            if found == wanted {
                return Ok(data);
            }
            let reason = format!("{found} bytes came of {wanted} at {}", range.start);
            Err(StoreError::Unavailable { path: path.to_owned(), reason })
        })
    }

    /// Puts fetched blocks into the chunk's slot, or into a free one.
    async fn fill(self: Arc<Inner>, key: Key, generation: u32, fetched: Arc<Vec<Fetched>>) {
        if let Err(error) = self.try_fill(key, generation, &fetched).await {
            tracing::debug!(%error, "fetched blocks were not kept");
        }
        drop(Fetching { inner: &self, key, generation });
        self.ask_for_room_for_headers();
        self.fills.change(|fills| *fills = fills.saturating_sub(1));
    }

    async fn try_fill(&self, key: Key, generation: u32, fetched: &[Fetched]) -> Result<()> {
        let Some(io) = ({
            let mut state = self.state();
            let chunk = state.chunks.get_mut(&key).filter(|chunk| chunk.generation == generation);
            chunk.map(Chunk::io)
        }) else {
            return Ok(());
        };
        let guard = io.write_owned().await;
        self.load_locked(key, &guard).await?;
        let Some((slot, wanted)) = ({
            let mut state = self.state();
            let current = state.chunks.get(&key).map(|chunk| chunk.generation);
            if current == Some(generation) {
                self.room_for_fill(&mut state, key, fetched)
            } else {
                None
            }
        }) else {
            self.maintenance_wake.notify_one();
            return Ok(());
        };
        for run in wanted.runs(FRAME_BLOCKS) {
            let parts = fetched
                .iter()
                .filter(|fetched| run.contains(&fetched.block))
                .filter_map(|fetched| fetched.data.clone())
                .collect();
            if let Err(e) = self.disk.write(self.block_at(slot, run.start), parts).await {
                self.fail(&e);
                return Err(e.into());
            }
        }
        let mut state = self.state();
        if let Some(entry) = state.slot(slot)
            && entry.occupant == Some(key)
            && let Some(header) = &mut entry.header
        {
            for block in wanted.iter() {
                let data = fetched.iter().find(|fetched| fetched.block == block);
                if let Some(data) = data.and_then(|fetched| fetched.data.as_ref()) {
                    header.valid.insert(block);
                    if let Some(crc) = header.crcs.get_mut(usize::from(block)) {
                        *crc = crc32c(data);
                    }
                }
            }
            // Not visited by that: what is read once, as in a scan, is the first to go.
            entry.stale = true;
            entry.summarize();
            state.counters.filled_blocks += u64::from(wanted.len());
        }
        Ok(())
    }

    /// The chunk's slot, or a free one that becomes its, and which of the blocks to put there.
    fn room_for_fill(
        &self,
        state: &mut super::state::State,
        key: Key,
        fetched: &[Fetched],
    ) -> Option<(crate::SlotId, BlockSet)> {
        if state.needs_header(key) || state.volumes.get(&key.volume)?.refusing.is_some() {
            return None;
        }
        let mut wanted = BlockSet::EMPTY;
        for fetched in fetched.iter().filter(|fetched| fetched.data.is_some()) {
            wanted.insert(fetched.block);
        }
        let chunk = state.chunks.get(&key)?;
        for run in chunk.log.iter() {
            wanted.remove_range(run.first..run.end());
        }
        let slot = match chunk.slot {
            Some(slot) => slot,
            None => self.take_free(state, key, true)?,
        };
        let (_, header) = state.header(key)?;
        wanted.subtract(&header.valid);
        wanted.subtract(&header.lost);
        (!wanted.is_empty()).then_some((slot, wanted))
    }

    /// When a store operation is given up that begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.fetch_timeout
    }

    /// The patience of a read that begins now.
    pub(crate) fn patience(&self) -> Patience {
        Patience(Mutex::new(self.deadline()))
    }

    /// Tries a store operation again, with growing pauses, until it succeeds or the time is over.
    pub(crate) async fn patiently<'a, T>(
        &'a self,
        name: &VolumeName,
        operation: impl Fn() -> Answer<'a, T>,
    ) -> Result<T> {
        self.patiently_until(self.deadline(), name, operation).await
    }

    /// The same, until `deadline`. Where that is over it is tried once, and only what is answered at once counts.
    pub(crate) async fn patiently_until<'a, T>(
        &'a self,
        deadline: Instant,
        name: &VolumeName,
        operation: impl Fn() -> Answer<'a, T>,
    ) -> Result<T> {
        let mut pause = Duration::from_millis(50);
        loop {
            let answer = tokio::time::timeout_at(deadline, operation()).await;
            let cause = match answer {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(
                    error @ (StoreError::NotFound { .. }
                    | StoreError::Conflict { .. }
                    | StoreError::TooLarge { .. }
                    | StoreError::Unsupported { .. }
                    | StoreError::Denied { .. }),
                )) => {
                    return Err(error.into());
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let wait = pause.mul_f64(0.5 + self.random_unit());
            self.state().counters.store_failures += 1;
            if Instant::now() + wait >= deadline {
                let seconds = self.config.fetch_timeout.as_secs();
                return Err(Error::StoreTimeout { volume: name.clone(), seconds, cause });
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// The cache's own reference, for tasks.
    pub(crate) fn this(&self) -> Result<Arc<Inner>> {
        let this = self.this.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        this.ok_or_else(|| self.stopped())
    }
}
