//! A frame: the move-only token of one chunk of the arena.
#![allow(unsafe_code)]

use std::ptr::NonNull;

/// Length of a chunk in bytes; a power of two, as AF_XDP's aligned mode wants.
pub const CHUNK_LEN: usize = 4096;

/// Where received data starts in a chunk: XDP keeps this many bytes in front of it.
pub const DEFAULT_HEADROOM: usize = 256;

/// Length in bytes of the metadata that the XDP programs put in front of a received frame.
pub const META_LEN: usize = 32;

/// Length in bytes of the kernel's `struct xsk_tx_metadata`. It sits in front of the data of a
/// transmitted frame, and the kernel rejects any descriptor that does not leave room for it, so
/// no frame's data ever starts below this offset.
pub const TX_META_LEN: usize = 24;

/// One chunk of the arena and the extent of the data in it.
///
/// There is at most one token per chunk, so `&Frame` and `&mut Frame` give plain access to the
/// bytes. It is deliberately neither `Clone` nor `Copy`, and has no destructor: hand it back with
/// [`FrameCache::free`](crate::FrameCache::free), else its chunk is lost for the life of the
/// process (which [`ArenaStats`](crate::ArenaStats) shows).
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost to the arena; free it to a FrameCache"]
pub struct Frame {
    chunk: NonNull<u8>,
    off: u16,
    len: u16,
}

// SAFETY: a frame is the only token of its chunk, whose memory lives as long as the process.
unsafe impl Send for Frame {}
// SAFETY: through `&Frame` the chunk can only be read.
unsafe impl Sync for Frame {}

impl Frame {
    /// Makes the token of a chunk, with data of `len` bytes at `off`.
    ///
    /// # Safety
    /// `chunk` points at a whole chunk of an arena for which no other token exists and which the
    /// kernel does not write; `TX_META_LEN <= off` and `off + len <= CHUNK_LEN`.
    pub(crate) unsafe fn from_raw(chunk: NonNull<u8>, off: usize, len: usize) -> Self {
        debug_assert!(off >= TX_META_LEN && off + len <= CHUNK_LEN);
        Self { chunk, off: off as u16, len: len as u16 }
    }

    pub(crate) fn chunk(&self) -> NonNull<u8> {
        self.chunk
    }

    /// Offset of the data in the chunk, in bytes.
    pub(crate) fn offset(&self) -> usize {
        usize::from(self.off)
    }

    /// The data.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: off + len <= CHUNK_LEN; the chunk is initialised (anonymous memory starts as
        // zeroes) and this token is its only owner.
        unsafe { std::slice::from_raw_parts(self.chunk.as_ptr().add(self.off.into()), self.len()) }
    }

    /// The data, to be changed in place.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`, and `&mut self` makes the access exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.chunk.as_ptr().add(self.off.into()), self.len())
        }
    }

    /// Length of the data in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// True when the frame holds no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that [`push_front`](Self::push_front) can still put before the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.off) - TX_META_LEN
    }

    /// Bytes that [`set_len`](Self::set_len) can still add after the data.
    #[inline]
    pub fn tailroom(&self) -> usize {
        CHUNK_LEN - usize::from(self.off) - self.len()
    }

    /// Grows the data by `n` bytes into the headroom and returns those bytes (their content is
    /// whatever was there). `None`, and no change, when the headroom is too small.
    #[inline]
    pub fn push_front(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.headroom() {
            return None;
        }
        self.off -= n as u16;
        self.len += n as u16;
        self.data_mut().get_mut(..n)
    }

    /// Removes `n` bytes from the front of the data. `false`, and no change, when there are fewer.
    #[inline]
    #[must_use = "false means that nothing was removed"]
    pub fn pull_front(&mut self, n: usize) -> bool {
        if n > self.len() {
            return false;
        }
        self.off += n as u16;
        self.len -= n as u16;
        true
    }

    /// Sets the length of the data; new bytes at the end hold whatever was there. `false`, and no
    /// change, when the chunk ends before.
    #[inline]
    #[must_use = "false means that the length is unchanged"]
    pub fn set_len(&mut self, n: usize) -> bool {
        if n > CHUNK_LEN - usize::from(self.off) {
            return false;
        }
        self.len = n as u16;
        true
    }

    /// Appends bytes to the data. `false`, and no change, when the chunk ends before.
    #[inline]
    #[must_use = "false means that nothing was appended"]
    pub fn extend(&mut self, bytes: &[u8]) -> bool {
        let old = self.len();
        if bytes.len() > self.tailroom() {
            return false;
        }
        self.len += bytes.len() as u16;
        if let Some(room) = self.data_mut().get_mut(old..) {
            room.copy_from_slice(bytes);
        }
        true
    }

    /// Empties the frame and puts its (empty) data `headroom` usable bytes behind the start,
    /// clamped to the chunk.
    #[inline]
    pub fn reset(&mut self, headroom: usize) {
        self.off = headroom.saturating_add(TX_META_LEN).min(CHUNK_LEN) as u16;
        self.len = 0;
    }

    /// The 32 bytes in front of the data, where the XDP programs put what the kernel knew of a
    /// received frame. Meaningful only for the first frame of a packet that came from an AF_XDP
    /// socket and has not been moved since; all zeroes when the data starts too early in the
    /// chunk. A frame handed to the kernel for receiving has this area cleared first, so that
    /// bytes of an earlier packet are never taken for metadata.
    #[inline]
    pub fn meta(&self) -> [u8; META_LEN] {
        let mut meta = [0; META_LEN];
        if let Some(start) = usize::from(self.off).checked_sub(META_LEN) {
            // SAFETY: start + META_LEN == off <= CHUNK_LEN, in the chunk that this token owns.
            unsafe {
                let src = self.chunk.as_ptr().add(start);
                std::ptr::copy_nonoverlapping(src, meta.as_mut_ptr(), META_LEN);
            }
        }
        meta
    }

    /// Clears the area that [`meta`](Self::meta) will read after the kernel has received into
    /// this chunk.
    #[inline]
    pub(crate) fn clear_receive_meta(&mut self) {
        // SAFETY: DEFAULT_HEADROOM is inside the chunk, which this token owns.
        unsafe {
            self.chunk.as_ptr().add(DEFAULT_HEADROOM - META_LEN).write_bytes(0, META_LEN);
        }
    }

    /// Writes the kernel's transmit metadata into the bytes just before the data.
    #[inline]
    pub(crate) fn write_tx_meta(&mut self, meta: &[u8; TX_META_LEN]) {
        // SAFETY: off >= TX_META_LEN always holds, so the area is inside the chunk.
        unsafe {
            let dst = self.chunk.as_ptr().add(usize::from(self.off) - TX_META_LEN);
            std::ptr::copy_nonoverlapping(meta.as_ptr(), dst, TX_META_LEN);
        }
    }

    /// Address of the first data byte, for an iovec that outlives this borrow.
    #[inline]
    pub(crate) fn data_ptr(&self) -> *mut u8 {
        // SAFETY: off <= CHUNK_LEN.
        unsafe { self.chunk.as_ptr().add(self.off.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, FrameCache};

    fn cache() -> FrameCache {
        FrameCache::new(Arena::new(64).unwrap())
    }

    #[test]
    fn a_frame_is_two_words_and_has_a_niche() {
        assert_eq!(size_of::<Frame>(), 16);
        assert_eq!(size_of::<Option<Frame>>(), 16);
    }

    #[test]
    fn headers_pushed_and_pulled_leave_the_payload_alone() {
        let mut cache = cache();
        let mut f = cache.alloc().unwrap();
        assert!(f.extend(b"payload"));
        f.push_front(4).unwrap().copy_from_slice(b"head");
        assert_eq!(f.data(), b"headpayload");
        assert!(f.pull_front(4));
        assert_eq!(f.data(), b"payload");
        assert!(!f.pull_front(8));
        assert_eq!(f.data(), b"payload");
        cache.free(f);
    }

    #[test]
    fn room_for_transmit_metadata_is_never_given_away() {
        let mut cache = cache();
        let mut f = cache.alloc().unwrap();
        assert_eq!(f.headroom(), DEFAULT_HEADROOM - TX_META_LEN);
        assert!(f.push_front(DEFAULT_HEADROOM - TX_META_LEN + 1).is_none());
        assert!(f.push_front(DEFAULT_HEADROOM - TX_META_LEN).is_some());
        assert_eq!(f.offset(), TX_META_LEN);
        assert!(f.push_front(1).is_none());
        cache.free(f);
    }

    #[test]
    fn the_end_of_the_chunk_is_a_wall() {
        let mut cache = cache();
        let mut f = cache.alloc().unwrap();
        assert!(f.set_len(CHUNK_LEN - DEFAULT_HEADROOM));
        assert_eq!(f.tailroom(), 0);
        assert!(!f.set_len(CHUNK_LEN - DEFAULT_HEADROOM + 1));
        assert!(!f.extend(b"x"));
        f.reset(usize::MAX);
        assert_eq!((f.len(), f.tailroom()), (0, 0));
        f.reset(0);
        assert_eq!((f.headroom(), f.tailroom()), (0, CHUNK_LEN - TX_META_LEN));
        cache.free(f);
    }

    #[test]
    fn metadata_is_what_stands_before_the_data_and_zero_where_there_is_no_room() {
        let mut cache = cache();
        let mut f = cache.alloc().unwrap();
        f.push_front(META_LEN).unwrap().fill(7);
        assert!(f.pull_front(META_LEN));
        assert_eq!(f.meta(), [7; META_LEN]);
        f.clear_receive_meta();
        assert_eq!(f.meta(), [0; META_LEN]);
        f.reset(0);
        assert_eq!(f.meta(), [0; META_LEN]);
        cache.free(f);
    }
}
