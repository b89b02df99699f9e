//! The socket against a kernel of our own on the other end of the rings, which can misbehave.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::CHUNK_LEN;
use crate::ring::{Consumer, Producer, fake};

const FULL: usize = 3840;

/// The kernel's ends of a socket's rings.
struct Kernel {
    rx: Producer<Desc>,
    tx: Consumer<Desc>,
    fill: Consumer<u64>,
    comp: Producer<u64>,
}

fn socket(arena: &'static Arena, size: u32) -> (Xsk, Kernel) {
    let (rx_in, rx) = fake::pair(size, 0);
    let (tx, tx_out) = fake::pair(size, u32::MAX - 5);
    let (fill, fill_out) = fake::pair(size, 3);
    let (comp_in, comp) = fake::pair(size, 0);
    // Any descriptor will do: the calls that would need a real one fail, as with a device gone.
    let fd = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM).unwrap();
    let bound =
        BoundMode { zero_copy: false, sg: true, tx_meta: true, tx_budget: 32, busy_poll: false };
    let xsk = Xsk {
        sock: Opened { rx, tx, fill, comp, fd, bound },
        arena,
        id: arena.new_socket_id().unwrap(),
        ifindex: 1,
        budget: FillBudget::new(0, size),
        bursts: false,
        rx_lent: 0,
        tx_lent: 0,
        partial: None,
        starved: false,
        down: false,
        skipping: false,
        discard: Vec::new(),
        stats: XskStats::default(),
    };
    (xsk, Kernel { rx: rx_in, tx: tx_out, fill: fill_out, comp: comp_in })
}

impl Kernel {
    /// Receives a packet of `frames` full frames; false when the fill ring has too few.
    fn receive(&mut self, frames: usize) -> bool {
        if (self.fill.available() as usize) < frames
            || (self.rx.room(frames as u32) as usize) < frames
        {
            return false;
        }
        for left in (0..frames).rev() {
            let chunk = self.take_chunk();
            let options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
            self.rx.push(Desc { addr: chunk + 256, len: FULL as u32, options });
        }
        self.fill.release();
        self.rx.submit();
        true
    }

    /// Takes a chunk out of the fill ring; its address.
    fn take_chunk(&mut self) -> u64 {
        assert!(self.fill.available() > 0);
        self.fill.pop() / CHUNK_LEN as u64 * CHUNK_LEN as u64
    }

    fn inject(&mut self, desc: Desc) {
        assert!(self.rx.room(1) > 0);
        self.rx.push(desc);
        self.rx.submit();
    }

    /// Sends up to `max` descriptors.
    fn send(&mut self, max: usize) -> Vec<Desc> {
        let mut sent = Vec::new();
        while sent.len() < max && self.tx.available() > 0 && self.comp.room(1) > 0 {
            let desc = self.tx.pop();
            self.comp.push(desc.addr);
            sent.push(desc);
        }
        self.tx.release();
        self.comp.submit();
        sent
    }
}

fn setup() -> (FrameCache, Xsk, Kernel) {
    let arena = Arena::new(512).unwrap();
    let mut cache = FrameCache::new(arena);
    let (mut xsk, kernel) = socket(arena, 64);
    xsk.refill(&mut cache);
    (cache, xsk, kernel)
}

fn finish(mut cache: FrameCache, xsk: Xsk) {
    let arena = cache.arena();
    assert!(arena.stats().is_whole(cache.len() + xsk.outstanding()));
    xsk.close(&mut cache);
    drop(cache);
    assert!(arena.stats().is_whole(0));
}

#[test]
fn a_packet_of_more_than_twenty_frames_is_dropped_and_its_neighbours_are_not() {
    let (mut cache, mut xsk, mut kernel) = setup();
    for frames in [1, 20, 21, 2] {
        assert!(kernel.receive(frames));
    }
    let mut got = Vec::new();
    assert_eq!(xsk.receive(&mut cache, 100, &mut got), 3);
    let lens: Vec<_> = got.iter().map(Buf::len).collect();
    assert_eq!(lens, [FULL, 20 * FULL, 2 * FULL]);
    assert_eq!(xsk.stats.rx_oversize, 1);
    got.into_iter().for_each(|buf| cache.free_buf(buf));
    finish(cache, xsk);
}

#[test]
fn a_packet_whose_end_is_still_to_come_is_kept_for_the_next_call() {
    let (mut cache, mut xsk, mut kernel) = setup();
    let [first, second] = std::array::from_fn(|_| kernel.take_chunk() + 256);
    kernel.inject(Desc { addr: first, len: 10, options: 1 });
    let mut got = Vec::new();
    assert_eq!(xsk.receive(&mut cache, 10, &mut got), 0);
    assert_eq!(xsk.outstanding(), 64);
    kernel.inject(Desc { addr: second, len: 5, options: 0 });
    assert_eq!(xsk.receive(&mut cache, 10, &mut got), 1);
    let buf = got.remove(0);
    assert_eq!((buf.frame_count(), buf.len()), (2, 15));
    cache.free_buf(buf);
    finish(cache, xsk);
}

#[test]
fn descriptors_of_chunks_that_the_kernel_does_not_hold_make_no_frames() {
    let (mut cache, mut xsk, mut kernel) = setup();
    let ours = cache.alloc().unwrap();
    let ours_addr = u64::from(xsk.arena.index_of(&ours).unwrap()) * CHUNK_LEN as u64 + 256;
    let lent = kernel.take_chunk();
    for (addr, len) in [
        (ours_addr, 100),
        (u64::MAX, 100),
        (1 << 40, 100),
        (lent + 256, 3841),
        (lent + 256, u32::MAX),
        (lent, 100),
    ] {
        kernel.inject(Desc { addr, len, options: 0 });
    }
    kernel.inject(Desc { addr: lent + 256, len: 100, options: 0 });
    kernel.inject(Desc { addr: lent + 256, len: 100, options: 0 });
    let mut got = Vec::new();
    assert_eq!(xsk.receive(&mut cache, 100, &mut got), 1);
    assert_eq!(xsk.stats.rx_bad_desc, 7);
    got.into_iter().for_each(|buf| cache.free_buf(buf));
    cache.free(ours);
    finish(cache, xsk);
}

#[test]
fn a_bad_descriptor_in_the_middle_drops_the_whole_packet() {
    let (mut cache, mut xsk, mut kernel) = setup();
    let [a, b, c] = std::array::from_fn(|_| kernel.take_chunk() + 256);
    for (addr, options) in [(a, 1), (u64::MAX, 1), (b, 0), (c, 0)] {
        kernel.inject(Desc { addr, len: 7, options });
    }
    let mut got = Vec::new();
    assert_eq!(xsk.receive(&mut cache, 100, &mut got), 1);
    assert_eq!((got[0].len(), got[0].frame_count()), (7, 1));
    got.into_iter().for_each(|buf| cache.free_buf(buf));
    finish(cache, xsk);
}

#[test]
fn a_starved_port_does_not_ask_for_ever_more_frames() {
    let arena = Arena::new(10).unwrap();
    let mut cache = FrameCache::new(arena);
    let (mut xsk, kernel) = socket(arena, 512);
    for _ in 0..20 {
        xsk.refill(&mut cache);
    }
    assert_eq!((xsk.outstanding(), xsk.stats.fill_starved), (10, 20));
    assert_eq!(xsk.budget.frames(), 64);
    drop(kernel);
    finish(cache, xsk);
}

#[test]
fn frames_given_to_the_kernel_carry_no_stale_metadata() {
    let (mut cache, mut xsk, mut kernel) = setup();
    for _ in 0..2 {
        assert!(kernel.receive(1));
        let mut got = Vec::new();
        assert_eq!(xsk.receive(&mut cache, 1, &mut got), 1);
        let mut buf = got.remove(0);
        assert_eq!(buf.head().meta(), [0; 32]);
        buf.head_mut().push_front(32).unwrap().fill(0xff);
        cache.free_buf(buf);
        xsk.refill(&mut cache);
    }
    // The very chunk that was soiled is the one given back: the cache is last in, first out.
    let mut seen = Vec::new();
    while kernel.receive(1) {
        xsk.receive(&mut cache, 1, &mut seen);
    }
    assert!(seen.iter().all(|buf| buf.head().meta() == [0; 32]));
    seen.into_iter().for_each(|buf| cache.free_buf(buf));
    finish(cache, xsk);
}

#[test]
fn the_checksum_request_stands_before_the_first_frame_only() {
    let (mut cache, mut xsk, mut kernel) = setup();
    let mut buf = Buf::from(cache.alloc().unwrap());
    buf.push(cache.alloc().unwrap());
    assert!(buf.head_mut().extend(&[1; 60]));
    assert!(buf.tail_mut()[0].extend(&[2; 10]));
    let start = buf.head().data().as_ptr();
    xsk.transmit(buf, Some(CsumRequest { start: 34, offset: 16 })).unwrap();
    xsk.sock.tx.submit();
    let sent = kernel.send(10);
    assert_eq!(sent.iter().map(|d| (d.len, d.options)).collect::<Vec<_>>(), [(60, 3), (10, 0)]);
    // SAFETY: the chunk is mapped, and nobody writes it in this test.
    let meta = unsafe { std::slice::from_raw_parts(start.sub(TX_META_LEN), TX_META_LEN) };
    assert_eq!(meta[..8], 2u64.to_ne_bytes());
    assert_eq!(meta[8..12], [34u16.to_ne_bytes(), 16u16.to_ne_bytes()].concat());
    assert_eq!(meta[12..], [0; 12]);
    assert_eq!(xsk.reap(&mut cache), 2);
    finish(cache, xsk);
}

#[test]
fn no_more_is_in_flight_than_the_completion_ring_can_return() {
    let (mut cache, mut xsk, mut kernel) = setup();
    let send = |xsk: &mut Xsk, cache: &mut FrameCache| {
        let mut frame = cache.alloc().unwrap();
        assert!(frame.extend(&[1; 60]));
        let result = xsk.transmit(frame.into(), None);
        xsk.sock.tx.submit();
        result.map_err(|buf| cache.free_buf(buf)).is_ok()
    };
    let mut taken = Vec::new();
    for _ in 0..64 {
        assert!(send(&mut xsk, &mut cache));
        assert_eq!(kernel.tx.available(), 1);
        taken.push(kernel.tx.pop().addr);
        kernel.tx.release();
    }
    assert!(!send(&mut xsk, &mut cache), "the TX ring is empty, but nothing has come back");
    kernel.comp.push(taken[0]);
    kernel.comp.submit();
    assert_eq!(xsk.reap(&mut cache), 1);
    assert!(send(&mut xsk, &mut cache));
    finish(cache, xsk);
}

#[test]
fn a_socket_closed_in_the_middle_of_a_packet_gives_back_its_beginning() {
    let (mut cache, mut xsk, mut kernel) = setup();
    let chunk = kernel.take_chunk();
    kernel.inject(Desc { addr: chunk + 256, len: 10, options: libc::XDP_PKT_CONTD });
    assert_eq!(xsk.receive(&mut cache, 10, &mut Vec::new()), 0);
    assert!(xsk.partial.is_some());
    finish(cache, xsk);
}

#[derive(Debug, Clone)]
enum Step {
    KernelReceives(usize),
    KernelSends(usize),
    Receive(usize),
    Refill,
    Forward(usize),
    Free(usize),
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1usize..24).prop_map(Step::KernelReceives),
        (1usize..40).prop_map(Step::KernelSends),
        (1usize..40).prop_map(Step::Receive),
        Just(Step::Refill),
        (1usize..10).prop_map(Step::Forward),
        (1usize..10).prop_map(Step::Free),
        Just(Step::Reap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn forwarding_in_any_order_loses_no_frame_and_keeps_packets_whole(
        chunks in 70usize..400,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let arena = Arena::new(chunks).unwrap();
        let mut cache = FrameCache::new(arena);
        let (mut xsk, mut kernel) = socket(arena, 64);
        let mut held: VecDeque<Buf> = VecDeque::new();
        let mut on_wire = Vec::new();
        let mut accepted = 0;
        for step in steps {
            match step {
                Step::KernelReceives(frames) => drop(kernel.receive(frames)),
                Step::KernelSends(max) => on_wire.extend(kernel.send(max)),
                Step::Receive(max) => {
                    let mut got = Vec::new();
                    prop_assert!(xsk.receive(&mut cache, max, &mut got) <= max);
                    held.extend(got);
                }
                Step::Refill => xsk.refill(&mut cache),
                Step::Forward(count) => {
                    for _ in 0..count {
                        let Some(buf) = held.pop_front() else { break };
                        let frames = buf.frame_count();
                        match xsk.transmit(buf, None) {
                            Ok(()) if frames <= TX_FRAMES_MAX => accepted += 1,
                            Ok(()) => {}
                            Err(buf) => held.push_front(buf),
                        }
                    }
                    xsk.sock.tx.submit();
                }
                Step::Free(count) => {
                    (0..count).filter_map(|_| held.pop_front()).for_each(|b| cache.free_buf(b));
                }
                Step::Reap => drop(xsk.reap(&mut cache)),
            }
            let in_hand: usize = held.iter().map(Buf::frame_count).sum();
            let elsewhere = cache.len() + xsk.outstanding() + in_hand;
            prop_assert!(arena.stats().is_whole(elsewhere));
        }
        on_wire.extend(kernel.send(usize::MAX));
        let ends = on_wire.iter().filter(|d| d.options & libc::XDP_PKT_CONTD == 0).count();
        let in_ring = xsk.sock.tx.pending() as usize;
        if in_ring == 0 {
            prop_assert_eq!(ends, accepted);
        }
        held.into_iter().for_each(|buf| cache.free_buf(buf));
        finish(cache, xsk);
    }
}
