//! A worker's own stock of free frames.

use crate::arena::{Arena, BATCH};
use crate::frame::DEFAULT_HEADROOM;
use crate::{Buf, Frame, TX_META_LEN};

/// Free frames that a cache keeps before it gives a batch back to the pool: two full vectors of
/// packets, so that a worker that forwards touches the pool only when its load is lopsided.
const CACHE_MAX: usize = 512;

/// Tail vectors that are kept for re-use, and the capacity each is made with.
const SPARE_VECS_MAX: usize = 256;
const SPARE_VEC_CAPACITY: usize = 20;

/// A worker's own stock of free frames, exchanged in batches with the arena's pool.
///
/// Neither side of that exchange takes a lock. Dropping the cache gives all frames to the pool.
#[derive(Debug)]
pub struct FrameCache {
    arena: &'static Arena,
    free: Vec<Frame>,
    spare_vecs: Vec<Vec<Frame>>,
}

impl FrameCache {
    /// An empty cache; it fills itself from the pool at the first use.
    #[must_use]
    pub fn new(arena: &'static Arena) -> Self {
        Self {
            arena,
            free: Vec::with_capacity(CACHE_MAX + BATCH),
            spare_vecs: Vec::with_capacity(SPARE_VECS_MAX),
        }
    }

    /// The arena that the frames are of.
    #[must_use]
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// Free frames in this cache, for the account of the arena.
    #[must_use]
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// True when the cache holds no frame (the pool may still).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// An empty frame with its data at [`DEFAULT_HEADROOM`]; `None` when the arena is exhausted.
    #[inline]
    pub fn alloc(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.arena.take_batch(&mut self.free);
        }
        let mut frame = self.free.pop()?;
        self.arena.note_alloc(&frame);
        frame.reset(DEFAULT_HEADROOM - TX_META_LEN);
        Some(frame)
    }

    /// Takes a frame back. It must be of this cache's arena: one of another arena is lost to that
    /// one (and a debug build panics).
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        let ours = self.arena.note_free(&frame);
        debug_assert!(ours.is_some(), "a frame is freed to the cache of another arena");
        if ours.is_none() {
            return;
        }
        self.free.push(frame);
        if self.free.len() >= CACHE_MAX {
            self.spill();
        }
    }

    /// Takes all frames of a packet back.
    #[inline]
    pub fn free_buf(&mut self, buf: Buf) {
        let (head, mut tail) = buf.into_parts();
        self.free(head);
        if tail.capacity() > 0 {
            tail.drain(..).for_each(|frame| self.free(frame));
            self.put_vec(tail);
        }
    }

    /// An empty vector with room for the tail of the longest packet, re-used where possible.
    #[inline]
    pub fn spare_vec(&mut self) -> Vec<Frame> {
        self.spare_vecs.pop().unwrap_or_else(|| Vec::with_capacity(SPARE_VEC_CAPACITY))
    }

    /// Keeps the memory of an emptied tail for [`spare_vec`](Self::spare_vec). Frames that are
    /// still in it are freed.
    #[inline]
    pub fn put_vec(&mut self, mut vec: Vec<Frame>) {
        while let Some(frame) = vec.pop() {
            self.free(frame);
        }
        if vec.capacity() >= SPARE_VEC_CAPACITY && self.spare_vecs.len() < SPARE_VECS_MAX {
            self.spare_vecs.push(vec);
        }
    }

    /// Gives all free frames to the pool: for a worker that goes to sleep, and for the account.
    pub fn flush(&mut self) {
        while self.free.len() >= BATCH {
            self.spill();
        }
        while let Some(frame) = self.free.pop() {
            if let Some(index) = self.arena.index_of(&frame) {
                self.arena.give_one(index);
            }
        }
    }

    /// Gives one batch to the pool: the coldest frames, those at the bottom.
    fn spill(&mut self) {
        let mut batch = [0; BATCH];
        for (slot, frame) in batch.iter_mut().zip(self.free.drain(..BATCH)) {
            // Only frames of this arena were let in.
            *slot = self.arena.index_of(&frame).unwrap_or_default();
        }
        self.arena.give_batch(batch);
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_arena_says_none_and_recovers() {
        let arena = Arena::new(70).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut held: Vec<_> = std::iter::from_fn(|| cache.alloc()).collect();
        assert_eq!(held.len(), 70);
        assert!(cache.alloc().is_none());
        held.pop().into_iter().for_each(|f| cache.free(f));
        assert!(cache.alloc().map(|f| cache.free(f)).is_some());
        held.into_iter().for_each(|f| cache.free(f));
        drop(cache);
        assert!(arena.stats().is_whole(0));
    }

    #[test]
    fn frames_freed_by_one_worker_reach_another() {
        let arena = Arena::new(1024).unwrap();
        let mut hoarder = FrameCache::new(arena);
        let mut other = FrameCache::new(arena);
        let all: Vec<_> = std::iter::from_fn(|| hoarder.alloc()).collect();
        assert!(other.alloc().is_none());
        all.into_iter().for_each(|f| hoarder.free(f));
        assert!(hoarder.len() < CACHE_MAX);
        let frame = other.alloc().unwrap();
        other.free(frame);
    }

    #[test]
    fn tail_vectors_are_used_again() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut buf = Buf::from(cache.alloc().unwrap());
        let frame = cache.alloc().unwrap();
        buf.push_with(frame, &mut cache);
        let memory = buf.tail().as_ptr();
        cache.free_buf(buf);
        let again = cache.spare_vec();
        assert_eq!(again.as_ptr(), memory);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "another one owns it")]
    fn a_chunk_freed_twice_is_caught() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let frame = cache.alloc().unwrap();
        let socket = arena.new_socket_id().unwrap();
        let addr = arena.lend(frame, socket).unwrap();
        let back = arena.reclaim(addr, 0, socket).unwrap();
        let index = arena.note_free(&back).unwrap();
        assert_eq!(u64::from(index), addr / 4096);
        cache.free(back);
    }
}
