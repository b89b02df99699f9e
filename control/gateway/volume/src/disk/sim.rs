//! A disk for tests that may do at a power cut all that a real one may: keep any subset of the sectors that
//! were not synced, in any order, and so tear a write anywhere.
//!
//! Everything random comes from one seed, so that a failing run can be repeated.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::{Disk, DiskError, Io};

/// Bytes that reach the medium whole or not at all.
pub const SECTOR: u64 = 512;

/// Bytes that a write by a process that is killed changes wholly or not at all.
const PAGE: u64 = 4096;

/// What a sector holds that was never written.
static ZEROS: Bytes = Bytes::from_static(&[0; SECTOR as usize]);

/// Sectors of a region. Most of a disk was never written, and a look at its regions passes over that.
const REGION_SECTORS: u64 = 128;

/// A small generator of pseudo-random numbers (xorshift64*), for tests that must be repeatable.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit.max(1)
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What of the un-synced sectors is on the medium after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Everything.
    All,
    /// Nothing: the disk kept only what was synced.
    None,
    /// The first `n` versions of sectors that change anything, in the order of writing.
    Prefix(usize),
    /// All but the `n`-th of those.
    AllBut(usize),
    /// Only the `n`-th of those.
    Only(usize),
    /// Each sector keeps a random one of its versions, by this seed.
    Random(u64),
    /// Bit `i` says whether the `i`-th version survives of those that change anything.
    Mask(u64),
}

/// Lets other tasks run so many times.
pub(crate) async fn give_way(turns: u64) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

/// A simulated disk. Clones share it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    died: Arc<watch::Sender<bool>>,
}

/// Counts of what was done and what went wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes and holes.
    pub writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Writes of which a power cut left a part.
    pub torn: u64,
}

/// What a write gave one sector. A write of what is there already gives nothing: whether it survives does not
/// matter.
#[derive(Clone, Debug)]
struct Version {
    /// Number of the write.
    write: u64,
    sector: u64,
    data: Bytes,
    /// Whether a sync of it failed: memory shows it still, and it never gets to the medium.
    is_lost: bool,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// What is synced, by sector. Missing: zeros.
    durable: FxHashMap<u64, Bytes>,
    /// What is not, in the order of writing.
    volatile: Vec<Version>,
    /// Newest version by sector: an index into `volatile`.
    newest: FxHashMap<u64, usize>,
    /// By region, whether anything was ever there but zeros.
    touched: Vec<bool>,
    rng: Rng,
    steps: u64,
    writes: u64,
    die_at: Option<u64>,
    dead: bool,
    counts: Counts,
    /// Where writes began of which a power cut left a part.
    torn: Vec<u64>,
    fail_sync: bool,
    /// Whether a sync ever failed.
    has_lost: bool,
    fail_writes: bool,
    bad: BTreeMap<u64, u64>,
    slow_reads: bool,
    /// Bytes that memory shows with flipped bits.
    spoiled: Vec<u64>,
}

impl SimDisk {
    /// A disk of `len` zero bytes.
    #[must_use]
    pub fn new(len: u64, seed: u64) -> SimDisk {
        let state = State {
            len,
            durable: FxHashMap::default(),
            volatile: Vec::new(),
            newest: FxHashMap::default(),
            touched: vec![false; len.div_ceil(SECTOR * REGION_SECTORS) as usize],
            rng: Rng::new(seed),
            steps: 0,
            writes: 0,
            die_at: None,
            dead: false,
            counts: Counts::default(),
            torn: Vec::new(),
            fail_sync: false,
            has_lost: false,
            fail_writes: false,
            bad: BTreeMap::new(),
            slow_reads: false,
            spoiled: Vec::new(),
        };
        SimDisk { state: Arc::new(Mutex::new(state)), died: Arc::new(watch::Sender::new(false)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Steps so far: a write and a hole are two (before and after they take effect), a sync as well.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Cuts the power at step `step`: from then on nothing returns.
    pub fn die_at(&self, step: Option<u64>) {
        self.state().die_at = step;
    }

    /// Cuts the power now.
    pub fn kill(&self) {
        self.state().dead = true;
        self.died.send_replace(true);
    }

    /// Waits for the power cut.
    pub async fn died(&self) {
        let mut watch = self.died.subscribe();
        let _ = watch.wait_for(|dead| *dead).await;
    }

    /// Number of sector versions that are not synced and change anything.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.state().volatile.len()
    }

    /// A copy of the disk as it is, not of its faults to come.
    #[must_use]
    pub fn copy(&self, seed: u64) -> SimDisk {
        let copy = SimDisk::new(self.len(), seed);
        {
            let from = self.state();
            let mut to = copy.state();
            to.durable.clone_from(&from.durable);
            to.volatile.clone_from(&from.volatile);
            to.newest.clone_from(&from.newest);
            to.touched.clone_from(&from.touched);
            to.writes = from.writes;
            to.counts = from.counts;
            to.torn.clone_from(&from.torn);
        }
        copy
    }

    /// Gives the power back: decides which un-synced sectors are there, and forgets the rest. Use it on a
    /// disk that nobody writes to any more.
    pub fn restart(&self, survivors: Survivors) {
        let mut state = self.state();
        let state = &mut *state;
        let volatile = std::mem::take(&mut state.volatile);
        state.newest.clear();
        let mut rng = match survivors {
            Survivors::Random(seed) => Rng::new(seed),
            _ => Rng::new(0),
        };
        // A random disk first chooses how eager it was, or short and long losses would both be rare.
        let keep_of_16 = 1 + rng.below(15);
        // By write: where it began, how many sectors it changed, and how many of those are left.
        let mut parts: FxHashMap<u64, (u64, u64, u64)> = FxHashMap::default();
        for (i, Version { write, sector, data, is_lost }) in volatile.into_iter().enumerate() {
            let survives = match survivors {
                _ if is_lost => false,
                Survivors::All => true,
                Survivors::None => false,
                Survivors::Prefix(n) => i < n,
                Survivors::AllBut(n) => i != n,
                Survivors::Only(n) => i == n,
                Survivors::Random(_) => rng.below(16) < keep_of_16,
                Survivors::Mask(mask) => i < 64 && mask >> i & 1 == 1,
            };
            let part = parts.entry(write).or_insert((sector * SECTOR, 0, 0));
            part.1 += 1;
            if survives {
                part.2 += 1;
                state.durable.insert(sector, data);
            }
        }
        let torn = parts.values().filter(|(_, all, kept)| *kept > 0 && kept < all);
        state.torn.extend(torn.map(|(at, _, _)| at));
        state.counts.torn = state.torn.len() as u64;
        state.dead = false;
        state.die_at = None;
        state.steps = 0;
        self.died.send_replace(false);
    }

    /// Number of writes that began in `range` and of which a power cut left a part.
    #[must_use]
    pub fn torn_in(&self, range: Range<u64>) -> u64 {
        self.state().torn.iter().filter(|at| range.contains(at)).count() as u64
    }

    /// A digest of what is on the disk, by which equal disks are known. Call it on one where nothing is
    /// un-synced.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let state = self.state();
        // The order of sectors does not matter: each has its own digest, and these are added up.
        let of = |(sector, data): (&u64, &Bytes)| {
            use std::hash::Hasher;
            let mut hasher = rustc_hash::FxHasher::default();
            hasher.write_u64(*sector);
            hasher.write(data);
            hasher.finish()
        };
        let written = state.durable.iter().filter(|(_, data)| **data != ZEROS);
        written.map(of).fold(0, u64::wrapping_add)
    }

    /// Gives the disk back after the death of a process: what was not synced still is not.
    pub fn reopen(&self) {
        let mut state = self.state();
        state.dead = false;
        state.die_at = None;
        state.steps = 0;
        drop(state);
        self.died.send_replace(false);
    }

    /// Every sync from now on fails, and what was to be synced is lost from the medium, though reads
    /// still show it: as Linux does it.
    pub fn fail_syncs(&self, fail: bool) {
        self.state().fail_sync = fail;
    }

    /// Every write from now on fails.
    pub fn fail_writes(&self, fail: bool) {
        self.state().fail_writes = fail;
    }

    /// Some reads take so long that much happens meanwhile.
    pub fn slow_reads(&self, slow: bool) {
        self.state().slow_reads = slow;
    }

    /// Reads that touch these bytes fail from now on.
    pub fn make_unreadable(&self, offset: u64, len: u64) {
        self.state().bad.insert(offset, len);
    }

    /// Reads that touch what was made unreadable at `offset` succeed again.
    pub fn make_readable(&self, offset: u64) {
        self.state().bad.remove(&offset);
    }

    /// Flips the bits of `mask` in the byte at `offset`, synced or not.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut state = self.state();
        let sector = offset / SECTOR;
        let at = (offset % SECTOR) as usize;
        let flipped = |data: &Bytes| {
            let mut data = data.to_vec();
            data[at] ^= mask;
            Bytes::from(data)
        };
        let state = &mut *state;
        if let Some(&newest) = state.newest.get(&sector)
            && let Some(version) = state.volatile.get_mut(newest)
        {
            version.data = flipped(&version.data);
        }
        state.touch(sector);
        let durable = state.durable.entry(sector).or_insert_with(|| ZEROS.clone());
        *durable = flipped(durable);
    }

    /// From now on reads show the byte at `offset` with flipped bits, though the medium has it right.
    pub fn spoil_memory(&self, offset: u64) {
        self.state().spoiled.push(offset);
    }

    /// The bytes as a reader sees them now.
    #[must_use]
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        self.state().read(offset, len)
    }

    /// Lets a random number of other tasks run, then takes a step. Never returns once the power is cut.
    pub(crate) async fn step(&self) {
        if self.is_last_step().await {
            std::future::pending::<()>().await;
        }
    }

    /// The same, and tells whether the power is cut.
    async fn is_last_step(&self) -> bool {
        let turns = {
            let mut state = self.state();
            state.rng.below(4)
        };
        give_way(turns).await;
        let dead = {
            let mut state = self.state();
            state.steps += 1;
            if state.die_at.is_some_and(|at| state.steps >= at) {
                state.dead = true;
            }
            state.dead
        };
        if dead {
            self.died.send_replace(true);
        }
        dead
    }

    fn answer(&self, offset: u64, len: usize, is_direct: bool) -> Io<'_, Bytes> {
        Box::pin(async move {
            let turns = {
                let mut state = self.state();
                let slow = state.slow_reads && state.rng.one_in(3);
                state.rng.below(if slow { 300 } else { 4 })
            };
            give_way(turns).await;
            let answer = {
                let mut state = self.state();
                state.counts.reads += 1;
                if state.dead {
                    None
                } else if offset + len as u64 > state.len {
                    Some(Err(self.error("read", offset, len as u64, "end of the disk")))
                } else if state
                    .bad
                    .iter()
                    .any(|(&from, &n)| from < offset + len as u64 && offset < from + n)
                {
                    let (disk, len) = (self.name(), len as u64);
                    let reason = "Input/output error".to_owned();
                    Some(Err(DiskError::Unreadable { disk, offset, len, reason }))
                } else {
                    let mut data = state.read(offset, len);
                    for at in state.spoiled.iter().filter(|_| !is_direct) {
                        let byte = at.checked_sub(offset).and_then(|at| data.get_mut(at as usize));
                        if let Some(byte) = byte {
                            *byte ^= 0xff;
                        }
                    }
                    Some(Ok(data))
                }
            };
            match answer {
                None => std::future::pending().await,
                Some(Ok(data)) => Ok(Bytes::from(data)),
                Some(Err(error)) => Err(error),
            }
        })
    }

    fn error(&self, operation: &'static str, offset: u64, len: u64, reason: &str) -> DiskError {
        DiskError::Io { disk: self.name(), operation, offset, len, reason: reason.to_owned() }
    }
}

impl State {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let from = (at % SECTOR) as usize;
            let take = (SECTOR as usize - from).min(len - done);
            if let Some(data) = self.newest_of(at / SECTOR) {
                out[done..done + take].copy_from_slice(&data[from..from + take]);
            }
            done += take;
        }
        out
    }

    fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.counts.writes += 1;
        self.writes
    }

    fn punch(&mut self, offset: u64, len: u64) {
        let write = self.next_write();
        for sector in offset / SECTOR..(offset + len) / SECTOR {
            if self.newest_of(sector).is_some() {
                self.put(write, sector, ZEROS.clone());
            }
        }
    }

    /// Gives a sector what is written there, if that is not there already.
    fn put(&mut self, write: u64, sector: u64, data: Bytes) {
        let is_lost = self
            .newest
            .get(&sector)
            .is_some_and(|&i| self.volatile.get(i).is_some_and(|version| version.is_lost));
        if !is_lost && self.newest_of(sector).unwrap_or(&ZEROS) == &data {
            return;
        }
        self.touch(sector);
        self.newest.insert(sector, self.volatile.len());
        self.volatile.push(Version { write, sector, data, is_lost: false });
    }

    fn touch(&mut self, sector: u64) {
        if let Some(touched) = self.touched.get_mut((sector / REGION_SECTORS) as usize) {
            *touched = true;
        }
    }

    fn newest_of(&self, sector: u64) -> Option<&Bytes> {
        if !*self.touched.get((sector / REGION_SECTORS) as usize)? {
            return None;
        }
        match self.newest.get(&sector) {
            Some(&i) => self.volatile.get(i).map(|version| &version.data),
            None => self.durable.get(&sector),
        }
    }

    fn write(&mut self, offset: u64, data: &Bytes) {
        let write = self.next_write();
        for from in (0..data.len()).step_by(SECTOR as usize) {
            let sector = (offset + from as u64) / SECTOR;
            self.put(write, sector, data.slice(from..from + SECTOR as usize));
        }
    }
}

/// The parts of a write, one after the other.
fn joined(parts: &[Bytes]) -> Bytes {
    if let [only] = parts
        && only.len().is_multiple_of(SECTOR as usize)
    {
        return only.clone();
    }
    let mut data = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in parts {
        data.extend_from_slice(part);
    }
    // The cache writes whole blocks; what is not a whole sector would be read first by a real disk.
    data.resize(data.len().next_multiple_of(SECTOR as usize), 0);
    data.freeze()
}

impl Disk for SimDisk {
    fn len(&self) -> u64 {
        self.state().len
    }

    fn read(&self, offset: u64, len: usize) -> Io<'_, Bytes> {
        self.answer(offset, len, false)
    }

    fn reread(&self, offset: u64, len: usize) -> Io<'_, Bytes> {
        self.answer(offset, len, true)
    }

    fn write(&self, offset: u64, parts: Vec<Bytes>) -> Io<'_, ()> {
        Box::pin(async move {
            let data = joined(&parts);
            if self.is_last_step().await {
                // Some pages may have got there.
                {
                    let mut state = self.state();
                    let pages = state.rng.below(data.len() as u64 / PAGE + 1);
                    if !state.fail_writes && offset + data.len() as u64 <= state.len {
                        state.write(offset, &data.slice(..(pages * PAGE) as usize));
                    }
                }
                std::future::pending::<()>().await;
            }
            {
                let mut state = self.state();
                if state.fail_writes || offset + data.len() as u64 > state.len {
                    drop(state);
                    return Err(self.error("write", offset, data.len() as u64, "no space"));
                }
                state.write(offset, &data);
            }
            self.step().await;
            Ok(())
        })
    }

    fn punch(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            self.step().await;
            {
                let mut state = self.state();
                if state.fail_writes || offset + len > state.len {
                    drop(state);
                    return Err(self.error("punch", offset, len, "no space"));
                }
                state.punch(offset, len);
            }
            self.step().await;
            Ok(())
        })
    }

    fn sync(&self) -> Io<'_, ()> {
        Box::pin(async move {
            let before = self.state().writes;
            self.step().await;
            let failed = {
                let mut state = self.state();
                state.counts.syncs += 1;
                let state = &mut *state;
                if state.fail_sync {
                    state.has_lost = true;
                    for version in &mut state.volatile {
                        version.is_lost |= version.write <= before;
                    }
                    true
                } else {
                    let mut rest: Vec<Version> = Vec::new();
                    let mut saved: FxHashMap<u64, u64> = FxHashMap::default();
                    for version in std::mem::take(&mut state.volatile) {
                        if version.write <= before && !version.is_lost {
                            if state.has_lost {
                                saved.insert(version.sector, version.write);
                            }
                            state.durable.insert(version.sector, version.data);
                        } else {
                            rest.push(version);
                        }
                    }
                    // Memory shows what came last.
                    rest.retain(|version| {
                        !version.is_lost
                            || saved.get(&version.sector).is_none_or(|write| *write < version.write)
                    });
                    state.newest.clear();
                    for (i, version) in rest.iter().enumerate() {
                        state.newest.insert(version.sector, i);
                    }
                    state.volatile = rest;
                    false
                }
            };
            if failed {
                return Err(self.error("sync", 0, self.len(), "Input/output error"));
            }
            self.step().await;
            Ok(())
        })
    }

    fn name(&self) -> String {
        "simulated disk".to_owned()
    }

    /// Now and then, and never when the power is cut at one of the two steps of a write.
    fn is_quick(&self, _: u64) -> bool {
        let mut state = self.state();
        let dies = state.dead || state.die_at.is_some_and(|at| state.steps + 2 >= at);
        state.rng.one_in(2) && !dies
    }

    fn write_now(&self, offset: u64, parts: &[Bytes]) -> Result<(), DiskError> {
        let data = joined(parts);
        let mut state = self.state();
        if state.fail_writes || offset + data.len() as u64 > state.len {
            drop(state);
            return Err(self.error("write", offset, data.len() as u64, "no space"));
        }
        state.steps += 2;
        state.write(offset, &data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_failed_sync_lost_is_read_and_no_later_sync_saves_it() {
        let disk = SimDisk::new(1 << 20, 1);
        let block = |tag: u8| Bytes::from(vec![tag; 4096]);
        disk.write(0, vec![block(1)]).await.unwrap();
        disk.sync().await.unwrap();
        disk.write(0, vec![block(2)]).await.unwrap();
        disk.write(8192, vec![block(3)]).await.unwrap();
        disk.write(16384, vec![block(4)]).await.unwrap();
        disk.fail_syncs(true);
        assert!(disk.sync().await.is_err());
        disk.fail_syncs(false);
        // Written again, the same bytes are new.
        disk.write(8192, vec![block(3)]).await.unwrap();
        // And what came later is what memory shows.
        disk.write(16384, vec![block(5)]).await.unwrap();
        disk.sync().await.unwrap();
        for (at, tag) in [(0, 2), (8192, 3), (16384, 5)] {
            assert_eq!(disk.read(at, 4096).await.unwrap(), block(tag));
        }
        disk.restart(Survivors::All);
        assert_eq!(disk.read(0, 4096).await.unwrap(), block(1));
        assert_eq!(disk.read(8192, 4096).await.unwrap(), block(3));
        assert_eq!(disk.read(16384, 4096).await.unwrap(), block(5));
    }
}
