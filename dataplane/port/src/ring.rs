//! The four single-producer, single-consumer rings that a socket shares with the kernel.
//!
//! Each side keeps its own index and a copy of the other's last known one, and reads the shared
//! index only when the copy says that there is nothing to do.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::Mapping;

/// A descriptor as `struct xdp_desc` has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Desc {
    /// Offset of the data in the UMEM, in bytes.
    pub(crate) addr: u64,
    /// Length of the data in bytes.
    pub(crate) len: u32,
    /// `XDP_PKT_CONTD`, `XDP_TX_METADATA`.
    pub(crate) options: u32,
}

/// Where the parts of a ring are in the memory shared with the kernel.
#[derive(Debug)]
struct Shared<T> {
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    flags: *const AtomicU32,
    entries: *mut T,
    mask: u32,
    /// Keeps the memory mapped.
    _map: Mapping,
    _entries: PhantomData<T>,
}

impl<T: Copy> Shared<T> {
    /// # Safety
    /// The offsets are those that the kernel gave for this mapping, of a ring of `size` entries of
    /// type `T`; `size` is a power of two.
    unsafe fn new(map: Mapping, off: &libc::xdp_ring_offset, size: u32) -> Self {
        let at = |o: u64| map.addr().wrapping_add(o as usize);
        Self {
            producer: at(off.producer).cast(),
            consumer: at(off.consumer).cast(),
            flags: at(off.flags).cast(),
            entries: at(off.desc).cast(),
            mask: size - 1,
            _map: map,
            _entries: PhantomData,
        }
    }

    fn size(&self) -> u32 {
        self.mask + 1
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping, which lives as long as self; the kernel uses it atomically.
        unsafe { &*self.producer }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*self.consumer }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as above.
        let flags = unsafe { &*self.flags };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: the mask keeps the index inside the ring.
        unsafe { self.entries.add((index & self.mask) as usize) }
    }
}

/// Our end of a ring that we fill: fill and TX.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    shared: Shared<T>,
    /// Entries written, submitted or not.
    head: u32,
    /// Entries submitted.
    submitted: u32,
    /// Entries consumed by the kernel, when last looked.
    tail: u32,
}

// SAFETY: the pointers are into a mapping that the ring owns; only one thread has the ring.
unsafe impl<T: Send> Send for Producer<T> {}

impl<T: Copy> Producer<T> {
    /// # Safety
    /// As for [`Shared::new`], and no other producer writes this ring.
    pub(crate) unsafe fn new(map: Mapping, off: &libc::xdp_ring_offset, size: u32) -> Self {
        // SAFETY: the caller's promise.
        let shared = unsafe { Shared::new(map, off, size) };
        let head = shared.producer().load(Ordering::Relaxed);
        let tail = shared.consumer().load(Ordering::Acquire);
        Self { shared, head, submitted: head, tail }
    }

    pub(crate) fn size(&self) -> u32 {
        self.shared.size()
    }

    /// Free entries; looks at the kernel's index only when fewer than `want` are known to be free.
    pub(crate) fn room(&mut self, want: u32) -> u32 {
        let room = self.size() - self.head.wrapping_sub(self.tail);
        if room >= want {
            return room;
        }
        self.size() - self.pending_unsubmitted()
    }

    /// Entries that the kernel has not consumed yet, those not submitted included.
    fn pending_unsubmitted(&mut self) -> u32 {
        // Acquire: the kernel has read an entry before it says so; only then may it be rewritten.
        self.tail = self.shared.consumer().load(Ordering::Acquire);
        self.head.wrapping_sub(self.tail).min(self.size())
    }

    /// Entries submitted that the kernel has not consumed yet.
    pub(crate) fn pending(&mut self) -> u32 {
        self.pending_unsubmitted() - self.head.wrapping_sub(self.submitted)
    }

    /// Writes the next entry; the kernel sees it at [`submit`](Self::submit). The caller has
    /// checked [`room`](Self::room).
    pub(crate) fn push(&mut self, value: T) {
        debug_assert!(self.head.wrapping_sub(self.tail) < self.size(), "ring overrun");
        // SAFETY: the entry is inside the ring, and the kernel does not read beyond the submitted
        // index.
        unsafe { self.shared.entry(self.head).write(value) };
        self.head = self.head.wrapping_add(1);
    }

    /// Shows the kernel all entries written so far.
    pub(crate) fn submit(&mut self) {
        if self.submitted != self.head {
            // Release: the entries are written before the index that covers them.
            self.shared.producer().store(self.head, Ordering::Release);
            self.submitted = self.head;
        }
    }

    pub(crate) fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }
}

/// Our end of a ring that the kernel fills: RX and completion.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    shared: Shared<T>,
    /// Entries produced by the kernel, when last looked.
    head: u32,
    /// Entries read.
    tail: u32,
}

// SAFETY: the pointers are into a mapping that the ring owns; only one thread has the ring.
unsafe impl<T: Send> Send for Consumer<T> {}

impl<T: Copy> Consumer<T> {
    /// # Safety
    /// As for [`Shared::new`], and no other consumer reads this ring.
    pub(crate) unsafe fn new(map: Mapping, off: &libc::xdp_ring_offset, size: u32) -> Self {
        // SAFETY: the caller's promise.
        let shared = unsafe { Shared::new(map, off, size) };
        let tail = shared.consumer().load(Ordering::Relaxed);
        let head = shared.producer().load(Ordering::Acquire);
        Self { shared, head, tail }
    }

    pub(crate) fn size(&self) -> u32 {
        self.shared.size()
    }

    /// Entries that can be read; looks at the kernel's index only when none is known.
    pub(crate) fn available(&mut self) -> u32 {
        if self.head == self.tail {
            // Acquire: entries are read only after the index that covers them.
            self.head = self.shared.producer().load(Ordering::Acquire);
        }
        self.head.wrapping_sub(self.tail).min(self.shared.size())
    }

    /// Reads the next entry. The caller has checked [`available`](Self::available).
    pub(crate) fn pop(&mut self) -> T {
        debug_assert!(self.head != self.tail, "ring underrun");
        // SAFETY: the entry is inside the ring and the kernel has published it; any bit pattern
        // is a valid T (u64 and Desc).
        let value = unsafe { self.shared.entry(self.tail).read() };
        self.tail = self.tail.wrapping_add(1);
        value
    }

    /// Tells the kernel that the entries read so far may be used again.
    pub(crate) fn release(&mut self) {
        // Release: the entries are read before the kernel may overwrite them.
        self.shared.consumer().store(self.tail, Ordering::Release);
    }
}

/// Rings without a kernel: both ends over memory of our own.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;

    const OFFSETS: libc::xdp_ring_offset =
        libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 192, flags: 128 };

    /// Both ends of one ring, with indices that start at `start`. The memory is never unmapped.
    pub(crate) fn pair<T: Copy>(size: u32, start: u32) -> (Producer<T>, Consumer<T>) {
        let len = OFFSETS.desc as usize + size as usize * size_of::<T>();
        let map = Mapping::leaked(len);
        for index in [OFFSETS.producer, OFFSETS.consumer] {
            // SAFETY: inside the mapping just made, aligned.
            unsafe { map.addr().add(index as usize).cast::<u32>().write(start) };
        }
        // SAFETY: one producer and one consumer over memory laid out by OFFSETS that stays.
        unsafe {
            let producer = Producer::new(map.alias(), &OFFSETS, size);
            (producer, Consumer::new(map, &OFFSETS, size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::pair;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_visible_before_submit_and_nothing_reusable_before_release() {
        let (mut p, mut c) = pair::<u64>(4, 0);
        assert_eq!(p.room(4), 4);
        (0..4).for_each(|v| p.push(v));
        assert_eq!(c.available(), 0);
        assert_eq!(p.pending(), 0);
        p.submit();
        assert_eq!(p.pending(), 4);
        assert_eq!(c.available(), 4);
        assert_eq!(c.pop(), 0);
        assert_eq!(p.room(1), 0);
        c.release();
        assert_eq!(p.room(1), 1);
        assert_eq!(p.pending(), 3);
    }

    #[test]
    fn two_threads_pass_every_entry_in_order() {
        const COUNT: u64 = 100_000;
        let (mut p, mut c) = pair::<u64>(64, u32::MAX - 1000);
        let writer = std::thread::spawn(move || {
            let mut next = 0;
            while next < COUNT {
                let room = p.room(1);
                for _ in 0..u64::from(room).min(COUNT - next) {
                    p.push(next);
                    next += 1;
                }
                p.submit();
                if room == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            let ready = c.available();
            for _ in 0..ready {
                assert_eq!(c.pop(), next);
                next += 1;
            }
            c.release();
            if ready == 0 {
                std::thread::yield_now();
            }
        }
        writer.join().unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_ring_is_a_bounded_queue_wherever_its_indices_wrap(
            start in prop_oneof![any::<u32>(), u32::MAX - 40..=u32::MAX],
            size in prop::sample::select(vec![1u32, 2, 8, 32]),
            steps in prop::collection::vec((0u32..40, 0u32..40), 1..40),
        ) {
            let (mut p, mut c) = pair::<Desc>(size, start);
            let mut model = std::collections::VecDeque::new();
            let mut next = 0;
            for (push, pop) in steps {
                let room = p.room(push);
                prop_assert!(room >= push.min(size - model.len() as u32));
                prop_assert!(room <= size - model.len() as u32);
                for _ in 0..push.min(room) {
                    let desc = Desc { addr: next, len: next as u32, options: 1 };
                    p.push(desc);
                    model.push_back(desc);
                    next += 1;
                }
                p.submit();
                let ready = c.available();
                prop_assert!(ready > 0 || model.is_empty());
                for _ in 0..pop.min(ready) {
                    prop_assert_eq!(Some(c.pop()), model.pop_front());
                }
                c.release();
                prop_assert_eq!(p.pending() as usize, model.len());
            }
        }
    }
}
