//! Memory of large reads, kept for the next ones: memory fresh from the system is cleared page by page when
//! it is first touched, which takes as long as the read.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Shortest buffer that is kept, in bytes. Shorter ones the allocator has at hand.
const MIN: usize = 64 << 10;
/// Longest one.
const MAX: usize = 4 << 20;
/// Bytes that are kept at most.
const IDLE: usize = 32 << 20;

/// Buffers that nobody uses at the moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer that returns to where it came from. What is in it at first is what an earlier read left.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer of `len` bytes.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let size = if len < MIN { len } else { len.next_power_of_two() };
        let kept = {
            let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let found = idle.iter().rposition(|memory| memory.len() == size);
            found.map(|at| idle.swap_remove(at))
        };
        Buffer { memory: kept.unwrap_or_else(|| vec![0; size]), len, home: self.clone() }
    }
}

impl Buffer {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// The same memory to share; it returns with the last who holds it.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if !(MIN..=MAX).contains(&memory.len()) {
            return;
        }
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.iter().map(Vec::len).sum::<usize>() + memory.len() <= IDLE {
            idle.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_and_idle_ones_are_few() {
        let buffers = Buffers::default();
        let held: Vec<Bytes> = (0..64).map(|_| buffers.take(700_000).freeze()).collect();
        assert!(held.iter().all(|buffer| buffer.len() == 700_000));
        drop(held);
        let idle = || buffers.0.lock().unwrap().iter().map(Vec::len).sum::<usize>();
        assert_eq!(idle(), IDLE);
        let again = buffers.take(1 << 20);
        assert_eq!(idle(), IDLE - (1 << 20));
        drop(again);
        drop(buffers.take(4096));
        drop(buffers.take(MAX + 1));
        assert_eq!(idle(), IDLE);
    }
}
