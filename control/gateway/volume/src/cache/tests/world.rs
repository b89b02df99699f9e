//! A cache of one volume or two on a simulated disk and store, driven by a seed through operations and crashes, and
//! compared with the model throughout.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::{Cache, Volume, VolumeOptions};
use super::caches::{LOG, config, disk_len, name, run};
use super::history::{Asked, History};
use super::seen::Seen;
use crate::disk::sim::{Rng, SimDisk};
use crate::error::Error;
use crate::format::BLOCK;
use crate::format::root::Root;
use crate::format::superblock::VOLUME_PAGES;
use crate::format::volume_page::{Durability, VolumePage};
use crate::remote::StoreError;
use crate::remote::sim::SimStore;
use crate::volume_name::VolumeName;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Chunks of the volume, one more than slots.
pub(super) const CHUNKS: u64 = 4;

pub(super) struct World {
    pub(super) disk: SimDisk,
    pub(super) store: SimStore,
    /// The volumes: one, or two that share log and slots.
    sides: Vec<Side>,
    /// The volume that operations are about.
    side: usize,
    pub(super) rng: Rng,
    pub(super) seen: Seen,
    pub(super) created: bool,
    next_tag: u64,
    /// Whether the store fails now and then.
    pub(super) faulty: bool,
    pub(super) lazy: bool,
    /// Whether there are more slots than headers may be in memory. `None`: in every second session.
    pub(super) drops_headers: Option<bool>,
    /// Whether everything was read since the last crash.
    pub(super) observed: bool,
}

/// A volume of the cache, and what is known of it.
#[derive(Clone)]
struct Side {
    name: VolumeName,
    history: History,
    /// What FLUSH and FUA promise.
    durability: Durability,
    /// Whether it was made: by then the store has it.
    created: bool,
    /// What was read last from the store alone.
    image: Option<Image>,
}

impl Side {
    /// The volume, made if it is not there.
    async fn provide(&mut self, cache: &Cache) -> Result<Volume, Error> {
        let size = CHUNKS * CHUNK_BYTES;
        let volume = match cache.volume(&self.name) {
            Err(Error::NoVolume { .. }) if !self.created => {
                let options = VolumeOptions { durability: self.durability, dirty_quota: 0 };
                match cache.create_volume(&self.name, size, options).await {
                    // It died when the store had it and the disk did not.
                    Err(Error::VolumeExists { .. }) => {
                        cache.attach_volume(&self.name, options, false).await?
                    }
                    made => made?,
                }
            }
            found => found?,
        };
        self.created = true;
        if volume.size() < size {
            // It died between shrinking and growing again.
            volume.resize(size).await?;
        }
        Ok(volume)
    }

    fn new(name: VolumeName, durability: Durability) -> Side {
        Side { name, history: History::default(), durability, created: false, image: None }
    }
}

/// What a volume holds by the store alone.
#[derive(Clone)]
struct Image {
    root: Option<Bytes>,
    /// Number of objects in the store by then.
    objects: usize,
    /// All blocks that were touched by then.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Clone for World {
    /// The same world from here on, sharing nothing with this one.
    fn clone(&self) -> World {
        World {
            disk: self.disk.copy(7),
            store: self.store.copy(),
            sides: self.sides.clone(),
            rng: self.rng.clone(),
            ..*self
        }
    }
}

/// What ended a session with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Crashed,
    Finished,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let slots = 2 + rng.below(3);
        let store = SimStore::new(seed);
        let faulty = rng.one_in(3);
        // Cuts take most of the time of a run that makes one for each FLUSH.
        let is_remote = seed % 8 == 7;
        let durability = if is_remote { Durability::Remote } else { Durability::Local };
        World {
            disk: SimDisk::new(disk_len(slots), seed),
            store,
            sides: vec![Side::new(name(), durability)],
            side: 0,
            seen: Seen::default(),
            created: false,
            faulty,
            next_tag: 0,
            lazy: rng.one_in(2),
            drops_headers: None,
            observed: false,
            rng,
        }
    }

    /// Adds a second volume, which must be before anything is made.
    pub(super) fn pair(&mut self) {
        self.sides.push(Side::new(VolumeName::new("w").unwrap(), Durability::Local));
    }

    /// What is known of the volume that operations are about.
    pub(super) fn history(&mut self) -> &mut History {
        &mut self.sides[self.side].history
    }

    /// Number of things noted so far of all volumes.
    pub(super) fn clock(&self) -> u64 {
        self.sides.iter().map(|side| side.history.clock()).sum()
    }

    fn is_remote(&self) -> bool {
        self.sides[self.side].durability == Durability::Remote
    }

    /// Opens the cache and the first volume, or makes them.
    pub(super) async fn open(&mut self) -> Result<(Cache, Volume), Error> {
        let (cache, volumes) = self.open_all().await?;
        Ok((cache, volumes[0].clone()))
    }

    /// The same with all volumes.
    async fn open_all(&mut self) -> Result<(Cache, Vec<Volume>), Error> {
        self.side = 0;
        // The power may also be cut at a step of the store.
        let store = Arc::new(self.store.seen_from(&self.disk));
        let disk = Arc::new(self.disk.clone());
        let mut config = config(self.rng.draw());
        config.eager_validation = !self.lazy;
        // One request in five fails, and so, among millions, now and then all that fit into half a minute.
        config.fetch_timeout = Duration::from_secs(3600);
        if !self.drops_headers.unwrap_or_else(|| self.rng.one_in(2)) {
            // Enough for all: they are written by checkpoints only.
            config.headers_in_memory = 64;
        }
        if self.rng.one_in(2) {
            config.validation_pause = Duration::from_millis(self.rng.below(500));
        }
        if !self.created {
            let cache = Cache::create(disk, store, LOG, config).await?;
            let volume = self.sides[0].provide(&cache).await?;
            self.created = true;
            if self.faulty {
                self.store.fail_one_in(5);
            }
            let mut volumes = vec![volume];
            for side in self.sides.iter_mut().skip(1) {
                volumes.push(side.provide(&cache).await?);
            }
            return Ok((cache, volumes));
        }
        let cache = Cache::open(disk, store, config).await?;
        let mut volumes = Vec::new();
        for side in &mut self.sides {
            volumes.push(side.provide(&cache).await?);
        }
        Ok((cache, volumes))
    }

    /// A place that operations like: few blocks, so that they meet.
    pub(super) fn place(&mut self) -> u64 {
        let chunk = self.rng.below(CHUNKS);
        let block = match self.rng.below(4) {
            0 => self.rng.below(3),
            1 => 1022 + self.rng.below(2),
            _ => 14 + self.rng.below(20),
        };
        chunk * CHUNK_BYTES + block * BLOCK_BYTES
    }

    /// An offset and length within the volume: mostly few blocks, often not aligned.
    pub(super) fn range(&mut self) -> (u64, u64) {
        let size = CHUNKS * CHUNK_BYTES;
        let mut offset = self.place();
        let mut len = match self.rng.below(8) {
            0..4 => BLOCK_BYTES,
            4 => 2 * BLOCK_BYTES,
            5 => (1 + self.rng.below(40)) * BLOCK_BYTES,
            _ => 1 + self.rng.below(3 * BLOCK_BYTES),
        };
        if self.rng.one_in(4) {
            offset += self.rng.below(8) * 512;
        }
        if self.rng.one_in(8) {
            offset += self.rng.below(512);
        }
        offset = offset.min(size - 1);
        len = len.min(size - offset);
        (offset, len)
    }

    fn data(&mut self, len: u64) -> Bytes {
        self.next_tag += 1;
        let word = self.next_tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = vec![0; len as usize];
        for (number, sector) in bytes.chunks_mut(512).enumerate() {
            let word = word.rotate_left((number % 64) as u32).to_le_bytes();
            for part in sector.chunks_mut(word.len()) {
                part.copy_from_slice(&word[..part.len()]);
            }
        }
        Bytes::from(bytes)
    }

    /// Notes the answer to a change.
    fn answered(&mut self, asked: &Asked, fua: bool) {
        self.history().answer(asked, fua);
        if fua && self.is_remote() {
            self.seen.remote_flushes += 1;
            self.history().change_uploaded(asked);
        }
    }

    pub(super) async fn write(
        &mut self,
        volume: &Volume,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> Result<(), Error> {
        let data = self.data(len);
        let asked = self.history().ask(offset, &data);
        volume.write(offset, data, fua).await?;
        self.answered(&asked, fua);
        Ok(())
    }

    pub(super) async fn empty(
        &mut self,
        volume: &Volume,
        offset: u64,
        len: u64,
        fua: bool,
        trim: bool,
    ) -> Result<(), Error> {
        let (mut from, mut to) = (offset, offset + len);
        if trim {
            from = from.next_multiple_of(BLOCK_BYTES);
            to = (to / BLOCK_BYTES * BLOCK_BYTES).max(from);
        }
        let asked = self.history().ask_zeros(from, to);
        if trim {
            volume.trim(offset, len, fua).await?;
        } else {
            volume.write_zeroes(offset, len, fua).await?;
        }
        self.answered(&asked, fua);
        Ok(())
    }

    pub(super) async fn flush(&mut self, volume: &Volume) -> Result<(), Error> {
        let asked = self.history().tick();
        volume.flush().await?;
        self.history().flushed(asked);
        if self.is_remote() {
            self.seen.remote_flushes += 1;
            self.history().uploaded(asked);
        }
        Ok(())
    }

    pub(super) async fn upload(&mut self, volume: &Volume) -> Result<(), Error> {
        let asked = self.history().tick();
        volume.upload().await?;
        self.history().uploaded(asked);
        Ok(())
    }

    /// Stops as planned, after which a power cut takes nothing.
    pub(super) async fn close(&mut self, cache: Cache) -> Result<(), Error> {
        let asked: Vec<u64> = self.sides.iter_mut().map(|side| side.history.tick()).collect();
        cache.close().await?;
        for (side, asked) in self.sides.iter_mut().zip(asked) {
            side.history.flushed(asked);
        }
        Ok(())
    }

    pub(super) async fn check(
        &mut self,
        volume: &Volume,
        offset: u64,
        len: u64,
    ) -> Result<(), Fault> {
        let found = volume.read_vec(offset, len).await?;
        if found.len() as u64 != len {
            return Err(Fault::Wrong(format!("{} bytes for a read of {len}", found.len())));
        }
        let mut at = offset;
        while at < offset + len {
            let block = at / BLOCK_BYTES;
            let stop = (offset + len).min((block + 1) * BLOCK_BYTES);
            let newest = self.history().newest(block);
            let expected = &newest[(at - block * BLOCK_BYTES) as usize..][..(stop - at) as usize];
            let found = &found[(at - offset) as usize..(stop - offset) as usize];
            if found != expected {
                let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
                return Err(Fault::Wrong(format!("block {block} is wrong from byte {wrong:?} on")));
            }
            at = stop;
        }
        Ok(())
    }

    /// Two changes of one block at once, on parts that do not overlap: both must be there.
    async fn write_both(&mut self, volume: &Volume) -> Result<(), Error> {
        let offset = self.place();
        let (a, b) = (self.data(700), self.data(1500));
        let asked = self.history().ask_both((offset + 100, &a), (offset + 1000, &b));
        let (first, second) = tokio::join!(
            volume.write(offset + 100, a, false),
            volume.write(offset + 1000, b, false)
        );
        first?;
        second?;
        self.history().answer(&asked, false);
        Ok(())
    }

    /// Makes the volume smaller, so that its last chunk keeps some blocks, and as large again as it was.
    pub(super) async fn shrink_and_grow(
        &mut self,
        volume: &Volume,
        blocks: u64,
    ) -> Result<(), Error> {
        let size = CHUNKS * CHUNK_BYTES;
        let smaller = (CHUNKS - 1) * CHUNK_BYTES + blocks * BLOCK_BYTES;
        let asked = self.history().ask_zeros(smaller, size);
        volume.resize(smaller).await?;
        self.answered(&asked, true);
        volume.resize(size).await
    }

    /// One random operation.
    pub(super) async fn step(&mut self, cache: &Cache, volume: &Volume) -> Result<(), Fault> {
        self.seen.operations += 1;
        let (offset, len) = self.range();
        let fua = self.rng.one_in(6);
        match self.rng.below(100) {
            0..40 => self.write(volume, offset, len, fua).await?,
            40..46 => self.empty(volume, offset, len, fua, true).await?,
            46..52 => self.empty(volume, offset, len, fua, false).await?,
            52..62 => self.flush(volume).await?,
            62..76 => self.check(volume, offset, len).await?,
            76..82 => {
                cache.destage().await?;
            }
            82..86 => {
                cache.evict(1 + self.rng.below(3) as usize).await?;
            }
            86..90 => self.upload(volume).await?,
            90..93 => {
                // An upload beside writes.
                let asked = self.history().tick();
                let writes = async {
                    for _ in 0..4 {
                        let (offset, len) = self.range();
                        self.write(volume, offset, len, false).await?;
                        tokio::task::yield_now().await;
                    }
                    cache.destage().await?;
                    Ok::<(), Error>(())
                };
                let (uploaded, written) = tokio::join!(volume.upload(), writes);
                uploaded?;
                self.history().uploaded(asked);
                written?;
            }
            93..95 => {
                let whole = self.rng.below(CHUNKS) * CHUNK_BYTES;
                self.empty(volume, whole, CHUNK_BYTES, fua, true).await?;
            }
            95 => volume.cache(offset / CHUNK_BYTES * CHUNK_BYTES, CHUNK_BYTES).await?,
            96 => {
                let blocks = 1 + self.rng.below(30);
                self.shrink_and_grow(volume, blocks).await?;
            }
            97 => self.write_both(volume).await?,
            98 => match cache.stored_volumes().await {
                // A list of yesterday may lack it; nothing may be there that is not.
                Ok(names) => {
                    if names.iter().any(|found| self.sides.iter().all(|side| side.name != *found)) {
                        return Err(Fault::Wrong(format!("volumes that are not: {names:?}")));
                    }
                }
                Err(Error::Store(StoreError::Unavailable { .. })) => {}
                Err(error) => return Err(error.into()),
            },
            _ => tokio::time::sleep(Duration::from_millis(self.rng.below(3000))).await,
        }
        Ok(())
    }

    /// One random operation, on one of the volumes, or on both.
    async fn step_of_all(&mut self, cache: &Cache, volumes: &[Volume]) -> Result<(), Fault> {
        let [first, second] = volumes else {
            return self.step(cache, &volumes[0]).await;
        };
        if self.rng.one_in(20) {
            // Cuts of both at once.
            self.seen.operations += 1;
            self.seen.on_second += 1;
            let asked: Vec<u64> = self.sides.iter_mut().map(|side| side.history.tick()).collect();
            let done = tokio::join!(first.upload(), second.upload());
            for ((side, asked), done) in self.sides.iter_mut().zip(asked).zip([done.0, done.1]) {
                done?;
                side.history.uploaded(asked);
            }
            return Ok(());
        }
        self.side = usize::from(self.rng.one_in(3));
        self.seen.on_second += self.side as u64;
        self.step(cache, &volumes[self.side]).await
    }

    /// Reads every block of all volumes that was ever touched, after a crash.
    async fn observe_all(&mut self, volumes: &[Volume], killed: bool) -> Result<(), Fault> {
        for (side, volume) in volumes.iter().enumerate() {
            self.side = side;
            self.observe(volume, killed).await?;
        }
        self.side = 0;
        Ok(())
    }

    /// Reads every block that was ever touched, after a crash.
    pub(super) async fn observe(&mut self, volume: &Volume, killed: bool) -> Result<(), Fault> {
        let mut touched = self.history().touched();
        // Validation must not depend on the order.
        if self.rng.one_in(2) {
            touched.reverse();
        }
        for block in touched {
            let found = volume.read_vec(block * BLOCK_BYTES, BLOCK_BYTES).await?;
            self.history().observe(block, &found, killed).map_err(Fault::Wrong)?;
        }
        self.seen.kills_checked += u64::from(killed);
        Ok(())
    }

    /// Checks that what the store alone has is a cut, and one as new as was promised.
    pub(super) fn compare_remote(&mut self) -> Result<(), Fault> {
        let objects = self.store.paths().len();
        for side in self.sides.iter_mut().filter(|side| side.created) {
            let root = self.store.peek(&format!("{}/root", side.name));
            let touched = side.history.touched();
            let image = side.image.take().filter(|image| {
                let is_same = image.root == root && image.objects == objects;
                is_same && image.blocks.len() == touched.len()
            });
            let image = match image {
                Some(image) => image,
                None => {
                    self.seen.cuts_compared += 1;
                    let blocks = read_remote(self.store.copy(), &side.name, &touched)?;
                    Image { root, objects, blocks }
                }
            };
            let is_cut = side.history.is_cut(&image.blocks);
            is_cut.map_err(|why| Fault::Wrong(format!("volume {}: {why}", side.name)))?;
            side.image = Some(image);
        }
        Ok(())
    }

    /// Opens the cache, checks what survived the crash before, and runs operations until `steps` writes
    /// and syncs are done, or `operations` operations.
    pub(super) fn session(
        &mut self,
        die_after: Option<u64>,
        operations: u64,
        killed: Option<bool>,
    ) -> Result<End, Fault> {
        self.disk.die_at(die_after);
        self.observed = false;
        let attempt = self.last_attempt();
        let disk = self.disk.clone();
        let mut inner = None;
        let end = run(async {
            let body = async {
                let (cache, volumes) = self.open_all().await?;
                inner = Some(Arc::clone(&cache.inner));
                if let Some(killed) = killed {
                    self.observe_all(&volumes, killed).await?;
                }
                self.observed = true;
                for _ in 0..operations {
                    self.step_of_all(&cache, &volumes).await?;
                }
                if self.rng.one_in(2) {
                    self.close(cache).await?;
                    self.seen.stops += 1;
                }
                Ok::<(), Fault>(())
            };
            let end = tokio::select! {
                biased;
                () = disk.died() => Ok(End::Crashed),
                done = body => done.map(|()| End::Finished),
                // Far more than any number of timeouts.
                () = tokio::time::sleep(Duration::from_secs(100_000)) => {
                    Err(Fault::Wrong("nothing goes on".to_owned()))
                }
            };
            end.map_err(|fault| match (&inner, fault) {
                (Some(inner), Fault::Wrong(what)) => {
                    Fault::Wrong(format!("{what}; {}", outline(inner)))
                }
                (_, fault) => fault,
            })
        })?;
        match inner {
            Some(inner) => {
                let state = inner.state();
                let counters = state.counters;
                self.seen.evicted += counters.evicted;
                self.seen.cuts += counters.cuts;
                self.seen.checkpoints += counters.checkpoints;
                if end == End::Crashed {
                    let destaging = inner.destaging.load(std::sync::atomic::Ordering::Relaxed);
                    self.seen.in_destage += u64::from(destaging);
                    let is_between = state.unvalidated > 0 && counters.validated > 0;
                    self.seen.in_validation += u64::from(is_between);
                    drop(state);
                    self.look_at_publication(attempt);
                }
            }
            None if end == End::Crashed => self.seen.in_recovery += 1,
            None => {}
        }
        if end == End::Crashed {
            self.seen.crashes += 1;
        }
        Ok(end)
    }
}

impl World {
    /// The nonce of the root that the volume's page says is about to be put, if any.
    fn last_attempt(&self) -> Option<u64> {
        let copies = [VOLUME_PAGES, VOLUME_PAGES + BLOCK_BYTES];
        let pages = copies.map(|at| VolumePage::parse(&self.disk.peek(at, BLOCK)).ok());
        let newest = pages.into_iter().flatten().max_by_key(|page| page.generation)?;
        newest.attempts.last().copied()
    }

    /// Counts a crash if it came between the two writes of a volume's page that enclose a publication. `before`:
    /// the last attempt when the session began.
    fn look_at_publication(&mut self, before: Option<u64>) {
        let Some(attempt) = self.last_attempt().filter(|attempt| Some(*attempt) != before) else {
            return;
        };
        let root = self.store.peek(&format!("{}/root", name()));
        let root = root.and_then(|root| Root::parse(&root).ok());
        self.seen.in_publication += 1;
        self.seen.root_ahead += u64::from(root.is_some_and(|root| root.nonce == attempt));
    }
}

/// Opens a volume from the store alone, as after the loss of the cache, and reads what was touched.
fn read_remote(
    store: SimStore,
    name: &VolumeName,
    touched: &[u64],
) -> Result<BTreeMap<u64, Vec<u8>>, Error> {
    store.answer_at_once();
    run(async {
        let disk = Arc::new(SimDisk::new(disk_len(2), 1));
        let cache = Cache::create(disk, Arc::new(store), LOG, config(1)).await?;
        let volume = cache.attach_volume(name, VolumeOptions::default(), true).await?;
        let mut image = BTreeMap::new();
        let size = volume.size();
        for run in touched.chunk_by(|a, b| a + 1 == *b) {
            let (at, len) = (run[0] * BLOCK_BYTES, run.len() as u64 * BLOCK_BYTES);
            // The cut may have been made while the volume was smaller.
            let there = size.saturating_sub(at).min(len);
            let mut content = Vec::new();
            if there > 0 {
                content = volume.read_vec(at, there).await?;
            }
            content.resize(len as usize, 0);
            image.extend(run.iter().copied().zip(content.chunks(BLOCK).map(<[u8]>::to_vec)));
        }
        Ok::<_, Error>(image)
    })
}

/// The state in a few words, to find out why a run went wrong.
fn outline(inner: &super::super::Inner) -> String {
    let state = inner.state();
    let log = &state.log;
    let mut text = format!(
        "log {}..{} scan {} reserved {} of {}; next {}; free {} unchecked {} of {} slots; fills {};",
        log.tail,
        log.head,
        log.scan_at,
        log.reserved,
        LOG,
        log.next_seq,
        state.free.len(),
        state.unchecked.len(),
        state.slots.len(),
        inner.fills.get(),
    );
    for volume in state.volumes.values() {
        let cut = volume.cut.as_ref().map(|cut| (cut.seq, cut.pending.len(), &cut.urgent));
        text += &format!(
            " volume: dirty {} slots {} log, published {}, cut {cut:?}, refusing {:?};",
            volume.dirty_slots, volume.dirty_log, volume.page.published, volume.refusing
        );
    }
    for (key, chunk) in &state.chunks {
        text += &format!(
            " chunk {}: slot {:?}, {} runs, {} frozen, {} fetching, locked {};",
            key.chunk,
            chunk.slot,
            chunk.log.iter().count(),
            chunk.frozen.iter().count(),
            chunk.fetching,
            chunk.is_locked()
        );
    }
    text + &format!(" rmw {:?}, maintenance {}", state.rmw, inner.maintenance.try_lock().is_err())
}

/// Why a run is not as it should be.
#[derive(Debug)]
pub(super) enum Fault {
    /// The cache answered an error that nothing justifies.
    Error(Error),
    /// The cache answered something wrong.
    Wrong(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Error(error)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Error(error) => write!(f, "error: {error}"),
            Fault::Wrong(what) => f.write_str(what),
        }
    }
}
