//! The arena: the memory of all packets, who holds which chunk, and the pool of free ones.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use crossbeam_queue::ArrayQueue;
use thiserror::Error;

use crate::frame::{CHUNK_LEN, DEFAULT_HEADROOM, Frame};
use crate::xsk::share::Registration;
use crate::xsk::{BURST_FRAMES_MAX, IDLE_FRAMES_MAX, IDLE_FRAMES_MIN};

/// Chunks that a worker takes from, or gives to, the pool at a time.
pub(crate) const BATCH: usize = 64;

/// Most chunks in one arena (16 GiB), so that a chunk's number fits 32 bits with room to spare.
pub const MAX_CHUNKS: usize = 1 << 22;

const HUGE_PAGE_LEN: usize = 2 << 20;

/// A chunk lies in the pool or in a worker's cache.
const OWNER_FREE: u16 = 0;
/// A token of the chunk exists outside of pool and caches.
const OWNER_USER: u16 = 1;
/// First of the numbers that stand for sockets: the kernel holds the chunk.
const OWNER_SOCKET_MIN: u16 = 2;

/// Why an arena could not be made.
#[derive(Debug, Error)]
pub enum ArenaError {
    /// The number of chunks is zero or too large: configure a value within the limits.
    #[error("an arena has 1 to {MAX_CHUNKS} chunks of {CHUNK_LEN} bytes, not {0}")]
    Size(usize),
    /// The kernel gave no memory: configure a smaller arena or free memory on the host.
    #[error("cannot map {len_bytes} bytes for the packet arena: {source}")]
    Map {
        /// Length asked for in bytes.
        len_bytes: usize,
        /// What mmap said.
        source: io::Error,
    },
}

/// Where the chunks of an arena are, as far as the arena itself knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaStats {
    /// All chunks.
    pub capacity: usize,
    /// Chunks in the shared pool.
    pub pooled: usize,
}

impl ArenaStats {
    /// True when the chunks in the pool and those that the holders report (the lengths of all
    /// caches, [`Xsk::outstanding`](crate::Xsk::outstanding) of all sockets, and so on) add up to
    /// all there are. Exact only while no frame is moving.
    #[must_use]
    pub fn is_whole(&self, held: usize) -> bool {
        self.pooled + held == self.capacity
    }
}

/// The memory of all packets of a NUMA node, in chunks of 4096 bytes.
///
/// It is never unmapped, so that a [`Frame`] needs no reference to it. Every AF_XDP socket
/// registers the whole of it as its UMEM; a frame received on one socket leaves on another
/// without a copy.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    capacity: usize,
    /// Who holds each chunk. An entry is written only by the holder of the chunk (or, for a
    /// socket's number, by the one thread that owns the socket), and chunks change threads only
    /// through queues that order memory, hence relaxed accesses are enough.
    owners: Box<[AtomicU16]>,
    batches: ArrayQueue<[u32; BATCH]>,
    singles: ArrayQueue<u32>,
    /// Numbers of closed sockets, then the next one never used. Touched by open and close only.
    socket_ids: Mutex<(Vec<u16>, u16)>,
    /// What sockets that copy share, once one of them asked for it.
    registration: OnceLock<Option<Registration>>,
    idle_frames: AtomicUsize,
    burst_frames: AtomicUsize,
}

// SAFETY: `base` is only an address; access to the memory behind it goes through frames, of which
// there is at most one per chunk.
unsafe impl Send for Arena {}
// SAFETY: as above; all other fields are Sync.
unsafe impl Sync for Arena {}

impl Arena {
    /// The registration that all sockets that copy share; none where that is not possible.
    pub(crate) fn registration(&self) -> Option<&Registration> {
        self.registration.get_or_init(|| Registration::open(self)).as_ref()
    }

    /// Whether sockets that copy share one registration of the arena; false before the first of them.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.registration.get().is_some_and(Option::is_some)
    }

    /// Frames that a socket without traffic keeps for receiving.
    #[must_use]
    pub fn idle_frames(&self) -> usize {
        self.idle_frames.load(Relaxed)
    }

    /// The same of a socket that is to find room for a burst ([`XskConfig::bursts`](crate::XskConfig::bursts)).
    #[must_use]
    pub fn burst_frames(&self) -> usize {
        self.burst_frames.load(Relaxed)
    }

    /// Lets so many sockets share the arena: without traffic they hold no more than a quarter of it, and the
    /// `bursting` ones among them no more than an eighth beside, as long as that leaves each
    /// [`IDLE_FRAMES_MIN`].
    pub fn share_among(&self, sockets: usize, bursting: usize) {
        let each = (self.capacity / 4 / sockets.max(1)).clamp(IDLE_FRAMES_MIN, IDLE_FRAMES_MAX);
        let burst = (self.capacity / 8 / bursting.max(1)).clamp(each, BURST_FRAMES_MAX);
        self.idle_frames.store(each, Relaxed);
        self.burst_frames.store(burst, Relaxed);
    }

    /// Maps an arena of `chunks` chunks. It lives as long as the process.
    ///
    /// # Errors
    /// [`ArenaError`], when the size is illegal or the kernel gives no memory.
    pub fn new(chunks: usize) -> Result<&'static Self, ArenaError> {
        if chunks == 0 || chunks > MAX_CHUNKS {
            return Err(ArenaError::Size(chunks));
        }
        let base = map_chunks(chunks)?;
        let arena = Self {
            base,
            capacity: chunks,
            owners: (0..chunks).map(|_| AtomicU16::new(OWNER_FREE)).collect(),
            batches: ArrayQueue::new(chunks.div_ceil(BATCH)),
            singles: ArrayQueue::new(chunks),
            socket_ids: Mutex::new((Vec::new(), OWNER_SOCKET_MIN)),
            registration: OnceLock::new(),
            idle_frames: AtomicUsize::new(IDLE_FRAMES_MAX),
            burst_frames: AtomicUsize::new(IDLE_FRAMES_MAX),
        };
        let mut all = 0..chunks as u32;
        while all.len() >= BATCH {
            let batch = std::array::from_fn(|_| all.next().unwrap_or_default());
            arena.give_batch(batch);
        }
        all.for_each(|index| arena.give_one(index));
        Ok(Box::leak(Box::new(arena)))
    }

    /// Number of chunks in all and in the shared pool.
    #[must_use]
    pub fn stats(&self) -> ArenaStats {
        ArenaStats {
            capacity: self.capacity,
            pooled: self.batches.len() * BATCH + self.singles.len(),
        }
    }

    /// Address of the first byte and length in bytes.
    pub(crate) fn region(&self) -> (u64, u64) {
        (self.base.as_ptr() as u64, (self.capacity * CHUNK_LEN) as u64)
    }

    /// Number of the frame's chunk; `None` when the frame is of another arena.
    #[inline]
    pub(crate) fn index_of(&self, frame: &Frame) -> Option<u32> {
        let distance = (frame.chunk().as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        let index = distance / CHUNK_LEN;
        (index < self.capacity).then_some(index as u32)
    }

    #[inline]
    fn chunk(&self, index: u32) -> NonNull<u8> {
        debug_assert!((index as usize) < self.capacity);
        // SAFETY: every index in the pool and every one accepted by `reclaim` is below capacity.
        unsafe { self.base.add(index as usize * CHUNK_LEN) }
    }

    #[inline]
    fn owner(&self, index: u32) -> Option<&AtomicU16> {
        self.owners.get(index as usize)
    }

    #[inline]
    fn expect_owner(&self, index: u32, owner: u16, becomes: u16) {
        if cfg!(debug_assertions)
            && let Some(entry) = self.owner(index)
        {
            let was = entry.load(Relaxed);
            assert_eq!(was, owner, "chunk {index} changes hands, but another one owns it");
            entry.store(becomes, Relaxed);
        }
    }

    /// Takes up to [`BATCH`] chunks out of the pool.
    pub(crate) fn take_batch(&self, out: &mut Vec<Frame>) {
        let mut push = |index| {
            // SAFETY: an index in the pool has no token and the kernel does not hold it; the
            // offset is inside the chunk.
            out.push(unsafe { Frame::from_raw(self.chunk(index), DEFAULT_HEADROOM, 0) });
        };
        if let Some(batch) = self.batches.pop() {
            batch.into_iter().for_each(push);
        } else {
            (0..BATCH).map_while(|_| self.singles.pop()).for_each(&mut push);
        }
    }

    pub(crate) fn give_batch(&self, batch: [u32; BATCH]) {
        // The queue has room for every batch that the arena can form except when the remainder's
        // chunks are in it too; then the batch goes in one by one, for which there is always room.
        if let Err(batch) = self.batches.push(batch) {
            batch.into_iter().for_each(|index| self.give_one(index));
        }
    }

    pub(crate) fn give_one(&self, index: u32) {
        let pushed = self.singles.push(index);
        debug_assert!(pushed.is_ok(), "more chunks come back than the arena has");
    }

    /// A free frame leaves a cache. Checked in debug builds only.
    #[inline]
    pub(crate) fn note_alloc(&self, frame: &Frame) {
        if cfg!(debug_assertions)
            && let Some(index) = self.index_of(frame)
        {
            self.expect_owner(index, OWNER_FREE, OWNER_USER);
        }
    }

    /// A frame comes back to a cache: its chunk's number. `None`: it is of another arena.
    #[inline]
    pub(crate) fn note_free(&self, frame: &Frame) -> Option<u32> {
        let index = self.index_of(frame)?;
        self.expect_owner(index, OWNER_USER, OWNER_FREE);
        Some(index)
    }

    /// Hands the chunk of `frame` to the kernel under the socket's number; returns the address of
    /// its data in the UMEM. `Err`: the frame is of another arena.
    #[inline]
    pub(crate) fn lend(&self, frame: Frame, socket: u16) -> Result<u64, Frame> {
        let Some(index) = self.index_of(&frame) else { return Err(frame) };
        if let Some(entry) = self.owner(index) {
            debug_assert_eq!(entry.load(Relaxed), OWNER_USER, "chunk {index} is lent twice");
            entry.store(socket, Relaxed);
        }
        Ok(u64::from(index) * CHUNK_LEN as u64 + frame.offset() as u64)
    }

    /// Takes back the chunk at UMEM address `addr` with `len` bytes of data, if the socket holds
    /// it. `None` means that the kernel named a chunk it does not have, or bytes outside of one:
    /// no token is made, so no chunk can ever have two.
    #[inline]
    pub(crate) fn reclaim(&self, addr: u64, len: u32, socket: u16) -> Option<Frame> {
        let index = u32::try_from(addr / CHUNK_LEN as u64).ok()?;
        let off = (addr % CHUNK_LEN as u64) as usize;
        let entry = self.owner(index)?;
        let in_chunk = off >= crate::TX_META_LEN && off + len as usize <= CHUNK_LEN;
        if entry.load(Relaxed) != socket || !in_chunk {
            return None;
        }
        entry.store(OWNER_USER, Relaxed);
        // SAFETY: the index is in range, the socket held the chunk and so there was no token, the
        // kernel has given it up, and the extent was checked.
        Some(unsafe { Frame::from_raw(self.chunk(index), off, len as usize) })
    }

    /// Takes back all chunks that a socket still holds. The socket must be closed: the kernel
    /// no longer writes any of them.
    pub(crate) fn reclaim_all(&self, socket: u16, mut each: impl FnMut(Frame)) {
        for index in 0..self.capacity as u32 {
            let addr = u64::from(index) * CHUNK_LEN as u64 + DEFAULT_HEADROOM as u64;
            if let Some(frame) = self.reclaim(addr, 0, socket) {
                each(frame);
            }
        }
    }

    /// A number for a new socket; `None` when 65,534 are open.
    pub(crate) fn new_socket_id(&self) -> Option<u16> {
        let mut ids = self.socket_ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = ids.0.pop() {
            return Some(id);
        }
        let id = ids.1;
        ids.1 = id.checked_add(1)?;
        Some(id)
    }

    /// Gives a number back. Only once no chunk bears it.
    pub(crate) fn free_socket_id(&self, id: u16) {
        self.socket_ids.lock().unwrap_or_else(PoisonError::into_inner).0.push(id);
    }
}

/// Anonymous memory for the chunks, aligned so that huge pages can back it.
fn map_chunks(chunks: usize) -> Result<NonNull<u8>, ArenaError> {
    let len_bytes = chunks * CHUNK_LEN + HUGE_PAGE_LEN;
    let base = crate::sys::map_anonymous(len_bytes)
        .map_err(|source| ArenaError::Map { len_bytes, source })?;
    let align = base.align_offset(HUGE_PAGE_LEN);
    // SAFETY: the mapping is one huge page longer than the chunks need, so moving the start up to
    // the next huge page boundary stays inside.
    let base = unsafe { base.add(align) };
    crate::sys::advise_huge(base, chunks * CHUNK_LEN);
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FrameCache;
    use proptest::prelude::*;

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        assert!(matches!(Arena::new(0), Err(ArenaError::Size(0))));
        assert!(matches!(Arena::new(MAX_CHUNKS + 1), Err(ArenaError::Size(_))));
    }

    #[test]
    fn idle_sockets_leave_most_of_the_arena_to_who_has_traffic() {
        let arena = Arena::new(16_384).unwrap();
        let shares = |sockets, bursting| {
            arena.share_among(sockets, bursting);
            (arena.idle_frames(), arena.burst_frames())
        };
        assert_eq!(shares(0, 0), (64, 1024));
        assert_eq!(shares(3, 1), (64, 1024));
        assert_eq!(shares(100, 4), (40, 512));
        // A thousand ports, and a card of 16 queues.
        assert_eq!(shares(1016, 16), (8, 128));
        assert_eq!(shares(4096, 4096), (8, 8));
        let small = Arena::new(512).unwrap();
        small.share_among(2, 1);
        assert_eq!((small.idle_frames(), small.burst_frames()), (64, 64));
    }

    #[test]
    fn a_socket_gets_back_only_what_it_holds() {
        let arena = Arena::new(8).unwrap();
        let mut cache = FrameCache::new(arena);
        let (a, b) = (arena.new_socket_id().unwrap(), arena.new_socket_id().unwrap());
        let addr = arena.lend(cache.alloc().unwrap(), a).unwrap();
        assert!(arena.reclaim(addr, 10, b).is_none());
        assert!(arena.reclaim(addr + CHUNK_LEN as u64, 10, a).is_none());
        assert!(arena.reclaim(addr, CHUNK_LEN as u32, a).is_none());
        assert!(arena.reclaim(u64::MAX, 10, a).is_none());
        let frame = arena.reclaim(addr, 10, a).unwrap();
        assert_eq!(frame.len(), 10);
        assert!(arena.reclaim(addr, 10, a).is_none(), "a second token of one chunk");
        cache.free(frame);
        assert!(arena.stats().is_whole(cache.len()));
    }

    #[test]
    fn a_frame_of_another_arena_is_not_lent() {
        let (one, two) = (Arena::new(8).unwrap(), Arena::new(8).unwrap());
        let mut cache = FrameCache::new(one);
        let frame = two.lend(cache.alloc().unwrap(), 2).unwrap_err();
        cache.free(frame);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Alloc(usize),
        Free(usize),
        Swap(usize, usize),
        Lend(usize),
        Return(usize),
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..3).prop_map(Step::Alloc),
            (0usize..3).prop_map(Step::Free),
            (0usize..3, 0usize..3).prop_map(|(a, b)| Step::Swap(a, b)),
            (0usize..3).prop_map(Step::Lend),
            (0usize..3).prop_map(Step::Return),
            Just(Step::Close),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_order_of_operations_loses_or_doubles_a_chunk(
            chunks in 1usize..300,
            steps in prop::collection::vec((step(), 1usize..100), 1..60),
        ) {
            let arena = Arena::new(chunks).unwrap();
            let mut caches: Vec<_> = (0..3).map(|_| FrameCache::new(arena)).collect();
            let mut held: Vec<Vec<Frame>> = (0..3).map(|_| Vec::new()).collect();
            let socket = arena.new_socket_id().unwrap();
            let mut lent = Vec::new();
            for (step, times) in steps {
                for _ in 0..times {
                    match step {
                        Step::Alloc(c) => held[c].extend(caches[c].alloc()),
                        Step::Free(c) => {
                            if let Some(f) = held[c].pop() {
                                caches[c].free(f);
                            }
                        }
                        Step::Swap(a, b) => {
                            if let Some(f) = held[a].pop() {
                                held[b].push(f);
                            }
                        }
                        Step::Lend(c) => {
                            if let Some(f) = held[c].pop() {
                                lent.push(arena.lend(f, socket).unwrap());
                            }
                        }
                        Step::Return(c) => {
                            if let Some(addr) = lent.pop() {
                                held[c].push(arena.reclaim(addr, 1, socket).unwrap());
                            }
                        }
                        Step::Close => {
                            arena.reclaim_all(socket, |f| held[0].push(f));
                            lent.clear();
                        }
                    }
                }
                let elsewhere = caches.iter().map(FrameCache::len).sum::<usize>()
                    + held.iter().map(Vec::len).sum::<usize>()
                    + lent.len();
                prop_assert!(arena.stats().is_whole(elsewhere));
            }
            arena.reclaim_all(socket, |f| held[0].push(f));
            for (cache, frames) in caches.iter_mut().zip(held) {
                frames.into_iter().for_each(|f| cache.free(f));
            }
            drop(caches);
            prop_assert!(arena.stats().is_whole(0));
        }
    }
}
