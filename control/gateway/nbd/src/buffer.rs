//! Payload buffers: aligned for direct I/O, pooled, and handed from socket to disk and back without
//! a copy.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Alignment in memory of every buffer's start, in bytes; enough for `O_DIRECT`.
pub const ALIGNMENT: usize = 4096;

/// Smallest size class, in bytes.
const MIN_CLASS: usize = 4096;

/// Size classes are powers of two from [`MIN_CLASS`]; larger buffers are not kept.
const CLASSES: usize = 14;

/// A pool of payload buffers, shared by the connections of a server.
///
/// It bounds only what lies idle; what is in use is bounded by each connection's budget.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    max_idle_bytes: usize,
    idle: Mutex<Idle>,
}

struct Idle {
    bytes: usize,
    classes: [Vec<Box<[u8]>>; CLASSES],
}

impl BufferPool {
    /// A pool that keeps at most `max_idle_bytes` of unused memory.
    pub fn new(max_idle_bytes: usize) -> Self {
        let idle = Idle { bytes: 0, classes: [const { Vec::new() }; CLASSES] };
        Self { shared: Arc::new(Shared { max_idle_bytes, idle: Mutex::new(idle) }) }
    }

    /// A buffer of `len` bytes whose content is undefined: it may hold what an earlier user,
    /// perhaps of another volume, left there. Fill it before anyone else sees it.
    pub fn take(&self, len: usize) -> Buffer {
        let storage = class_of(len).and_then(|class| {
            let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let storage = idle.classes[class].pop()?;
            idle.bytes -= storage.len();
            Some(storage)
        });
        let storage = storage.unwrap_or_else(|| allocate(len));
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        Buffer { storage, start, len, pool: Some(Arc::clone(&self.shared)) }
    }

    /// Bytes of memory that lie idle in the pool.
    pub fn idle_bytes(&self) -> usize {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("idle_bytes", &self.idle_bytes()).finish()
    }
}

fn class_of(len: usize) -> Option<usize> {
    let size = len.max(MIN_CLASS).checked_next_power_of_two()?;
    let class = (size / MIN_CLASS).trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

/// Room for `len` bytes behind an aligned start.
fn allocate(len: usize) -> Box<[u8]> {
    let size = class_of(len).map_or(len, |class| MIN_CLASS << class);
    vec![0; size + ALIGNMENT].into_boxed_slice()
}

/// Owned bytes whose memory starts at a multiple of [`ALIGNMENT`] (until [`Buffer::advance`]d) and
/// returns to its pool when dropped.
pub struct Buffer {
    storage: Box<[u8]>,
    start: usize,
    len: usize,
    pool: Option<Arc<Shared>>,
}

impl Buffer {
    /// A buffer that belongs to no pool and holds a copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let storage = allocate(data.len());
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        let mut buffer = Self { storage, start, len: data.len(), pool: None };
        buffer.copy_from_slice(data);
        buffer
    }

    /// Forgets the bytes from `len` on; does nothing when there are none.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets the first `n` bytes, as what an aligned read brought too much.
    ///
    /// # Panics
    /// When the buffer has fewer than `n` bytes.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len, "advancing {n} bytes in a buffer of {}", self.len);
        self.start += n;
        self.len -= n;
    }

    /// The same memory as shared, read-only bytes; it returns to the pool with the last of them.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let storage = std::mem::take(&mut self.storage);
        let Some(class) = class_of(storage.len().saturating_sub(ALIGNMENT)) else { return };
        if storage.len() != (MIN_CLASS << class) + ALIGNMENT {
            return;
        }
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.bytes + storage.len() <= pool.max_idle_bytes {
            idle.bytes += storage.len();
            idle.classes[class].push(storage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = BufferPool::new(1 << 20);
        for len in [0, 1, 4096, 4097, 100_000] {
            let buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
        }
        let before = pool.idle_bytes();
        assert!(before > 0);
        let frozen = pool.take(4096).freeze();
        assert_eq!(pool.idle_bytes(), before - 4096 - ALIGNMENT);
        drop(frozen);
        assert_eq!(pool.idle_bytes(), before);
    }

    #[test]
    fn idle_memory_stays_below_the_limit() {
        let pool = BufferPool::new(64 << 10);
        let taken: Vec<_> = (0..32).map(|_| pool.take(4096)).collect();
        drop(taken);
        assert!(pool.idle_bytes() <= 64 << 10);
        drop(pool.take(1 << 20));
        assert!(pool.idle_bytes() <= 64 << 10);
        // Above the largest class nothing is kept at all.
        let roomy = BufferPool::new(usize::MAX);
        drop(roomy.take((MIN_CLASS << (CLASSES - 1)) + 1));
        assert_eq!(roomy.idle_bytes(), 0);
    }

    #[test]
    fn edges_can_be_cut_off() {
        let mut buffer = Buffer::copy_of(b"abcdef");
        buffer.truncate(5);
        buffer.advance(2);
        assert_eq!(&buffer[..], b"cde");
        assert_eq!(&buffer.freeze()[..], b"cde");
    }
}
