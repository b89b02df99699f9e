//! The reassembler: any order, repeated, contradicting, too much, too late.

use culvert_wire::reassemble::{
    ReassembleConfig, ReassembleError, Reassembler, StreamKey, StreamPart, insert_tag,
};
use proptest::prelude::*;

/// A reassembler of numbered tokens, and what came out of it.
struct Bench {
    reassembler: Reassembler<u32>,
    whole: Vec<Vec<(u32, u32, u32)>>,
    lost: Vec<(ReassembleError, u32)>,
    offered: u32,
}

impl Bench {
    fn new(config: ReassembleConfig) -> Self {
        Self { reassembler: Reassembler::new(config), whole: vec![], lost: vec![], offered: 0 }
    }

    /// Offers bytes `offset..offset + len` of a frame of `length`; answers the token.
    fn offer(
        &mut self,
        now: u64,
        peer: u8,
        frame: u32,
        (length, offset, len): (u32, u32, u32),
    ) -> u32 {
        let token = self.offered;
        self.offered += 1;
        let key = StreamKey { from: [192, 0, 2, peer].into(), path: 7, frame };
        let part = StreamPart { frame, length, offset, len };
        let (whole, lost) = (&mut self.whole, &mut self.lost);
        self.reassembler.offer(
            now,
            key,
            part,
            token,
            &mut |parts| whole.push(parts.collect()),
            &mut |error, token| lost.push((error, token)),
        );
        token
    }

    fn waiting(&self) -> u32 {
        self.offered
            - self.lost.len() as u32
            - self.whole.iter().map(|parts| parts.len() as u32).sum::<u32>()
    }
}

fn small() -> ReassembleConfig {
    ReassembleConfig {
        frames: 4,
        frames_per_peer: 3,
        segments: 8,
        bytes: 100_000,
        grain: 1,
        hold_us: 1000,
    }
}

#[test]
fn segments_in_any_order_become_the_frame() {
    let parts = [(0, 1000), (1000, 1000), (2000, 500)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut bench = Bench::new(small());
        for i in order {
            let (offset, len) = parts[i];
            bench.offer(0, 1, 9, (2500, offset, len));
        }
        let found: Vec<_> = bench.whole[0].iter().map(|(offset, len, _)| (*offset, *len)).collect();
        assert_eq!(found, parts);
        assert_eq!((bench.waiting(), bench.reassembler.waiting_bytes()), (0, 0));
    }
}

#[test]
fn merged_segments_are_segments() {
    let mut bench = Bench::new(small());
    bench.offer(0, 1, 9, (60_000, 3000, 57_000));
    bench.offer(0, 1, 9, (60_000, 0, 3000));
    assert_eq!(bench.whole.len(), 1);
    let mut bench = Bench::new(small());
    bench.offer(0, 1, 9, (60_000, 0, 60_000));
    assert_eq!(bench.whole, [[(0, 60_000, 0)]]);
}

#[test]
fn frames_of_other_peers_or_numbers_do_not_mix() {
    let mut bench = Bench::new(small());
    bench.offer(0, 1, 9, (200, 0, 100));
    bench.offer(0, 2, 9, (200, 100, 100));
    bench.offer(0, 1, 8, (200, 100, 100));
    assert!(bench.whole.is_empty());
    bench.offer(0, 2, 9, (200, 0, 100));
    assert_eq!(bench.whole, [[(0, 100, 3), (100, 100, 1)]]);
}

#[test]
fn a_repeated_segment_is_dropped_alone() {
    let mut bench = Bench::new(small());
    bench.offer(0, 1, 9, (300, 0, 100));
    let again = bench.offer(0, 1, 9, (300, 0, 100));
    let part = bench.offer(0, 1, 9, (300, 20, 50));
    let duplicate = ReassembleError::Duplicate;
    assert_eq!(bench.lost, [(duplicate, again), (duplicate, part)]);
    bench.offer(0, 1, 9, (300, 100, 200));
    assert_eq!(bench.whole.len(), 1);
}

#[test]
fn contradictions_end_the_frame() {
    for third in [(300, 50, 100), (400, 100, 100), (300, 150, 150)] {
        let mut bench = Bench::new(small());
        bench.offer(0, 1, 9, (300, 0, 100));
        bench.offer(0, 1, 9, (300, 200, 100));
        bench.offer(0, 1, 9, third);
        let tokens: Vec<_> = bench.lost.iter().map(|(error, token)| (*error, *token)).collect();
        let want = [2, 0, 1].map(|token| (ReassembleError::Contradiction, token));
        assert_eq!(tokens, want, "{third:?}");
        assert_eq!(bench.reassembler.waiting(), 0);
    }
}

#[test]
fn what_is_outside_its_stream_is_refused_and_starts_nothing() {
    let mut bench = Bench::new(small());
    for part in [(300, 250, 51), (300, 0, 0), (70_000, 0, 100), (10, u32::MAX, 2), (0, 0, 1)] {
        bench.offer(0, 1, 9, part);
    }
    assert!(bench.lost.iter().all(|(error, _)| *error == ReassembleError::OutOfRange));
    assert_eq!((bench.lost.len(), bench.reassembler.waiting()), (5, 0));
}

#[test]
fn a_frame_waits_for_its_time_and_no_longer() {
    let mut bench = Bench::new(small());
    bench.offer(100, 1, 9, (300, 0, 100));
    bench.offer(600, 1, 10, (300, 0, 100));
    assert_eq!(bench.reassembler.deadline_us(), Some(1100));
    let lost = &mut bench.lost;
    bench.reassembler.expire(1099, &mut |error, token| lost.push((error, token)));
    assert!(lost.is_empty());
    bench.reassembler.expire(1100, &mut |error, token| lost.push((error, token)));
    assert_eq!(*lost, [(ReassembleError::TimedOut, 0)]);
    bench.offer(1600, 2, 1, (300, 0, 100));
    assert_eq!(bench.lost[1], (ReassembleError::TimedOut, 1));
    assert_eq!(bench.reassembler.waiting(), 1);
}

#[test]
fn limits_evict_what_waits_longest() {
    let mut bench = Bench::new(small());
    for frame in 0..4 {
        bench.offer(0, 1, frame, (300, 0, 100));
    }
    assert_eq!(bench.lost, [(ReassembleError::Evicted, 0)], "a fourth frame of one peer");
    bench.offer(0, 2, 0, (300, 0, 100));
    bench.offer(0, 3, 0, (300, 0, 100));
    assert_eq!(bench.lost[1], (ReassembleError::Evicted, 1), "a fifth frame in all");

    let mut bench = Bench::new(small());
    bench.offer(0, 1, 0, (65_000, 0, 60_000));
    bench.offer(0, 2, 0, (65_000, 0, 60_000));
    assert_eq!(bench.lost, [(ReassembleError::Evicted, 0)], "too many bytes");
    assert_eq!(bench.reassembler.waiting_bytes(), 60_000);

    let mut bench = Bench::new(small());
    for i in 0..9 {
        bench.offer(0, 1, 0, (300, i * 10, 10));
    }
    assert_eq!(bench.lost, [(ReassembleError::TooMany, 8)]);
    let lost = &mut bench.lost;
    bench.reassembler.clear(&mut |error, token| lost.push((error, token)));
    assert_eq!((bench.waiting(), bench.reassembler.waiting_bytes()), (0, 0));
}

#[test]
fn short_segments_are_charged_for_the_memory_that_they_take() {
    let config = ReassembleConfig { grain: 4096, segments: 20, bytes: 0, ..small() };
    let limit = 0xffff + 20 * 4096;
    let mut bench = Bench::new(config);
    for i in 0..20 {
        bench.offer(0, 1, 0, (65_000, i * 10, 1));
    }
    assert_eq!((bench.lost.len(), bench.reassembler.waiting_bytes()), (0, 20 * 4096));
    for i in 0..20 {
        bench.offer(0, 2, 0, (65_000, i * 10, 1));
        assert!(bench.reassembler.waiting_bytes() <= limit);
    }
    let evicted = bench.lost.iter().filter(|(error, _)| *error == ReassembleError::Evicted);
    assert_eq!(evicted.count(), 20, "the frame that waited longest");
    assert_eq!(bench.reassembler.waiting_bytes(), 20 * 4096);
    // A frame of the most bytes in the most segments fits.
    let mut bench = Bench::new(config);
    for i in 0..20 {
        bench.offer(0, 1, 0, (65_000, i * 3250, 3250));
    }
    assert_eq!((bench.whole.len(), bench.lost.len()), (1, 0));
    assert_eq!(bench.reassembler.waiting_bytes(), 0);
}

#[test]
fn limits_of_zero_are_brought_into_range() {
    let none = ReassembleConfig {
        frames: 0,
        frames_per_peer: 0,
        segments: 0,
        bytes: 0,
        grain: 0,
        hold_us: 0,
    };
    let mut bench = Bench::new(none);
    bench.offer(0, 1, 0, (100, 0, 100));
    assert_eq!(bench.whole.len(), 1);
}

#[test]
fn a_tag_goes_behind_the_addresses() {
    let mut frame = vec![0; 4];
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45]);
    insert_tag(&mut frame, 0x6064);
    assert_eq!(frame, [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0x60, 0x64, 8, 0, 0x45]);
    insert_tag(&mut [0; 15], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever comes, in whatever order: every token comes out once, limits hold, and what is handed on
    /// is a stream without gap or overlap.
    #[test]
    fn tokens_are_neither_lost_nor_doubled(
        offers in prop::collection::vec(
            (0..400u64, 1..4u8, 0..6u32, prop::sample::select(vec![300u32, 400, 70_000]), 0..450u32, 0..200u32),
            0..200,
        ),
    ) {
        let config = small();
        let mut bench = Bench::new(config);
        let mut now = 0;
        for (later, peer, frame, length, offset, len) in offers {
            now += later;
            let (offset, len) = (offset / 50 * 50, len / 50 * 50);
            bench.offer(now, peer, frame, (length, offset, len));
            prop_assert!(bench.reassembler.waiting() <= config.frames);
            prop_assert!(bench.reassembler.waiting_bytes() <= config.bytes);
            prop_assert!(bench.reassembler.deadline_us().is_none_or(|deadline| deadline > now));
        }
        for parts in &bench.whole {
            let mut end = 0;
            for (offset, len, _) in parts {
                prop_assert_eq!(*offset, end);
                end += len;
            }
            prop_assert!(end == 300 || end == 400);
        }
        let lost = &mut bench.lost;
        bench.reassembler.clear(&mut |error, token| lost.push((error, token)));
        let mut all: Vec<u32> = bench.lost.iter().map(|(_, token)| *token).collect();
        all.extend(bench.whole.iter().flatten().map(|(.., token)| *token));
        all.sort_unstable();
        prop_assert_eq!(all, (0..bench.offered).collect::<Vec<_>>());
    }
}
