//! Merged superframes against the segments they were made of; one test for each rule.

use crate::forge::{Forge, any_forge, noise, parse};
use crate::formats::template;
use crate::segments::cut;
use culvert_wire::checksum::Sum;
use culvert_wire::coalesce::{CoalesceConfig, Coalescer, Merged, OuterHeaders, OuterKey};
use culvert_wire::encap::{OuterChecksum, OuterFrame};
use culvert_wire::format::VXLAN;
use culvert_wire::reassemble::insert_tag;
use culvert_wire::segment::GsoKind;
use culvert_wire::tcp::flags;
use proptest::prelude::*;

const OUTER: OuterKey = OuterKey { flow: 1, headers: HEADERS };

const HEADERS: OuterHeaders = OuterHeaders {
    addresses: [1, 2],
    tags: [None; 2],
    flow_label: 3,
    tos: 4,
    ttl: 64,
    df: true,
    src_port: 5,
    digest: 6,
};

/// What came out: a superframe (or a single frame) with the indexes of the frames in it.
#[derive(Debug, PartialEq, Eq)]
struct Out {
    frame: Vec<u8>,
    members: Vec<usize>,
    gso_size: u16,
    fixed_id: bool,
}

struct Bench {
    coalescer: Coalescer<usize>,
    frames: Vec<Vec<u8>>,
    out: Vec<Out>,
}

impl Bench {
    fn new(config: CoalesceConfig) -> Self {
        Self { coalescer: Coalescer::new(config), frames: vec![], out: vec![] }
    }

    fn offer(&mut self, frame: &[u8], outer: OuterKey) {
        let (pkt, token) = (parse(frame), self.frames.len());
        self.frames.push(frame.to_vec());
        let (frames, out) = (&self.frames, &mut self.out);
        let mut sink = |merged: Merged<'_, usize>| out.push(collect(frames, merged));
        let passed = self.coalescer.offer(frame, &pkt, outer, token, &mut sink);
        if let Some(token) = passed {
            let single = Out {
                frame: self.frames[token].clone(),
                members: vec![token],
                gso_size: 0,
                fixed_id: false,
            };
            self.out.push(single);
        }
    }

    fn finish(mut self) -> Vec<Out> {
        let (frames, out) = (&self.frames, &mut self.out);
        self.coalescer.flush_all(&mut |merged| out.push(collect(frames, merged)));
        assert_eq!(self.coalescer.held_flows(), 0);
        let mut all: Vec<_> = self.out.iter().flat_map(|o| o.members.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..self.frames.len()).collect::<Vec<_>>(), "a frame lost or doubled");
        self.out
    }
}

fn collect(frames: &[Vec<u8>], merged: Merged<'_, usize>) -> Out {
    let mut frame = merged.headers.to_vec();
    let (mut members, mut total) = (vec![], 0);
    let (segs, gso_size, fixed_id) = (merged.segs, merged.gso_size, merged.fixed_id);
    let (packet, payload_len) = (merged.packet, merged.payload_len);
    for held in merged.tokens {
        let from = usize::from(held.payload_offset);
        let len = usize::from(held.payload_len);
        frame.extend(&frames[held.token][from..from + len]);
        total += len;
        members.push(held.token);
    }
    assert_eq!(usize::from(segs), members.len());
    assert_eq!(payload_len as usize, total);
    if segs == 1 {
        frame.clone_from(&frames[members[0]]);
    } else {
        assert_eq!(packet.len as usize, frame.len());
        complete(&mut frame);
    }
    Out { frame, members, gso_size, fixed_id }
}

/// Completes the partial L4 checksum, as the receiver's stack would.
fn complete(frame: &mut [u8]) {
    use culvert_wire::checksum::Sum;
    let pkt = parse(frame);
    let l4 = usize::from(pkt.l4);
    let at = l4 + if pkt.is_udp() { 6 } else { 16 };
    let field = u16::from_be_bytes([frame[at], frame[at + 1]]);
    assert_eq!(field, pkt.pseudo_header(frame, pkt.l4_len() as u32).fold(), "no partial sum");
    let sum = Sum::default().add(&frame[l4..]);
    let sum = if pkt.is_udp() { sum.finish_udp() } else { sum.finish() };
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn merge(frames: &[Vec<u8>]) -> Vec<Out> {
    let mut bench = Bench::new(CoalesceConfig { udp: true, max_segs: 4096, ..Default::default() });
    for frame in frames {
        bench.offer(frame, OUTER);
    }
    bench.finish()
}

fn members(out: &[Out]) -> Vec<Vec<usize>> {
    out.iter().map(|o| o.members.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_cut_merges_to_the_same_bytes(mut forge in any_forge(60_000), mss in 536..=8960u16) {
        forge.zero_checksum = false;
        forge.flags &= !flags::CWR;
        prop_assume!(forge.payload.len() > usize::from(mss));
        let frame = forge.frame();
        let out = merge(&cut(&frame, mss, 4000));
        prop_assert_eq!(out.len(), 1);
        prop_assert_eq!(out[0].gso_size, mss);
        prop_assert_eq!(&out[0].frame, &frame);
    }

    #[test]
    fn shuffled_segments_keep_their_bytes_and_never_merge_over_a_gap(
        len in 2000..20_000usize, v6: bool, order in any::<prop::sample::Index>(),
        swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..8),
        drop in any::<prop::sample::Index>(),
    ) {
        let forge = Forge::tcp(v6, noise(len, order.index(99) as u64));
        let mut segments = cut(&forge.frame(), 600, 4000);
        for (a, b) in swaps {
            let (a, b) = (a.index(segments.len()), b.index(segments.len()));
            segments.swap(a, b);
        }
        segments.remove(drop.index(segments.len()));
        let out = merge(&segments);
        let order: Vec<_> = out.iter().flat_map(|o| o.members.clone()).collect();
        prop_assert_eq!(order, (0..segments.len()).collect::<Vec<_>>(), "reordered");
        for o in &out {
            let seen = crate::forge::verify(&o.frame);
            let at = seen.seq.wrapping_sub(forge.seq) as usize;
            prop_assert_eq!(&seen.payload[..], &forge.payload[at..at + seen.payload.len()]);
        }
    }

    #[test]
    fn cutting_what_was_merged_gives_back_every_segment(
        changes in prop::collection::vec(0..12u8, 1..30), v6: bool,
    ) {
        // A stream in which any header may change at any point.
        let mut forge = Forge::tcp(v6, vec![]);
        let mut frames = vec![];
        for change in changes {
            match change {
                0 => forge.ttl ^= 1,
                1 => forge.tos ^= 1,
                2 => forge.ack += 1,
                3 => forge.window += 1,
                4 => forge.seq = forge.seq.wrapping_add(1),
                5 => forge.flags ^= flags::ECE,
                6 => forge.id = forge.id.wrapping_add(7),
                7 => forge.options[7] ^= 1,
                _ => {}
            }
            let last = change == 11;
            forge.payload = noise(if last { 300 } else { 500 }, u64::from(forge.seq));
            let mut one = forge.clone();
            one.flags |= if change == 10 { flags::PSH } else { 0 };
            frames.push(one.frame());
            forge.seq = forge.seq.wrapping_add(forge.payload.len() as u32);
            forge.id = forge.id.wrapping_add(1);
        }
        let mut again = vec![];
        for out in merge(&frames) {
            if out.members.len() == 1 {
                again.push(out.frame);
            } else {
                prop_assert!(!out.fixed_id);
                again.extend(cut(&out.frame, out.gso_size, 4000));
            }
        }
        prop_assert_eq!(again, frames);
    }
}

/// Two segments that merge but for what `change` does to the second.
fn pair(v6: bool, change: impl Fn(&mut Forge)) -> Vec<Vec<u8>> {
    let first = Forge::tcp(v6, noise(1000, 1));
    let mut second = first.clone();
    second.seq = second.seq.wrapping_add(1000);
    second.id += 1;
    second.payload = noise(1000, 2);
    change(&mut second);
    vec![first.frame(), second.frame()]
}

#[test]
fn two_contiguous_segments_merge() {
    for v6 in [false, true] {
        let out = merge(&pair(v6, |_| {}));
        assert_eq!(members(&out), [[0, 1]]);
        assert_eq!(out[0].gso_size, 1000);
    }
}

#[test]
fn every_header_that_must_be_equal_keeps_segments_apart() {
    type Change = (&'static str, fn(&mut Forge));
    let changes: [Change; 15] = [
        ("ttl", |f| f.ttl -= 1),
        ("dscp", |f| f.tos = 0xb8),
        ("ecn", |f| f.tos = 3),
        ("vlan", |f| f.tags = 1),
        ("ack", |f| f.ack += 1),
        ("window", |f| f.window += 1),
        ("timestamp", |f| f.options[7] += 1),
        ("option length", |f| f.options = vec![]),
        ("gap", |f| f.seq = f.seq.wrapping_add(1)),
        ("overlap", |f| f.seq = f.seq.wrapping_sub(1)),
        ("ece", |f| f.flags |= flags::ECE),
        ("cwr", |f| f.flags |= flags::CWR),
        ("no ack", |f| f.flags = 0),
        ("larger", |f| f.payload.push(0)),
        ("port", |f| f.src_port += 1),
    ];
    for v6 in [false, true] {
        for (name, change) in changes {
            assert_eq!(members(&merge(&pair(v6, change))), [[0], [1]], "{name} v6={v6}");
        }
    }
    assert_eq!(members(&merge(&pair(true, |f| f.flow_label ^= 1))), [[0], [1]], "flow label");
    assert_eq!(members(&merge(&pair(false, |f| f.df = false))), [[0], [1]], "df");
    assert_eq!(members(&merge(&pair(false, |f| f.id += 1))), [[0], [1]], "id");
}

#[test]
fn an_identification_may_stand_still_only_with_df() {
    let out = merge(&pair(false, |f| f.id -= 1));
    assert_eq!(members(&out), [[0, 1]]);
    assert!(out[0].fixed_id);
    let mut frames = pair(false, |f| f.id -= 1);
    for frame in &mut frames {
        // Clears DF and corrects the sum of the header.
        frame[20] = 0;
        let sum = u16::from_be_bytes([frame[24], frame[25]]);
        let sum = culvert_wire::checksum::update_u16(sum, 0x4000, 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    assert_eq!(members(&merge(&frames)), [[0], [1]]);
}

#[test]
fn an_identification_that_stood_still_may_not_start_to_move() {
    let mut frames = pair(false, |f| f.id -= 1);
    let third = Forge {
        seq: 0xffff_f000u32.wrapping_add(2000),
        id: 102,
        ..Forge::tcp(false, noise(1000, 3))
    };
    frames.push(third.frame());
    assert_eq!(members(&merge(&frames)), [vec![0, 1], vec![2]]);
}

#[test]
fn a_segment_with_cwr_stays_alone() {
    let first = Forge { flags: flags::ACK | flags::CWR, ..Forge::tcp(false, noise(3000, 1)) };
    let segments = cut(&first.frame(), 1000, 4000);
    let out = merge(&segments);
    assert_eq!(members(&out), [vec![0], vec![1, 2]]);
    assert_eq!(out[0].frame, segments[0]);
}

#[test]
fn bytes_behind_the_packet_keep_a_frame_apart() {
    for v6 in [false, true] {
        let mut frames = pair(v6, |_| {});
        frames[1].extend([0; 4]);
        assert_eq!(members(&merge(&frames)), [[0], [1]]);
    }
}

#[test]
fn psh_and_fin_are_appended_and_then_flush() {
    for last in [flags::PSH, flags::FIN] {
        let mut frames = pair(false, |f| f.flags |= last);
        let next = Forge {
            seq: 0xffff_f000u32.wrapping_add(2000),
            id: 102,
            ..Forge::tcp(false, noise(1000, 3))
        };
        frames.push(next.frame());
        let out = merge(&frames);
        assert_eq!(members(&out), [vec![0, 1], vec![2]]);
        assert_eq!(crate::forge::verify(&out[0].frame).flags, flags::ACK | last);
    }
}

#[test]
fn a_shorter_segment_is_appended_and_then_flushes() {
    let mut frames = pair(false, |f| f.payload.truncate(10));
    let next = Forge {
        seq: 0xffff_f000u32.wrapping_add(1010),
        id: 102,
        ..Forge::tcp(false, noise(10, 3))
    };
    frames.push(next.frame());
    assert_eq!(members(&merge(&frames)), [vec![0, 1], vec![2]]);
}

#[test]
fn syn_rst_urg_and_pure_acks_flush_and_pass() {
    let changes: [fn(&mut Forge); 4] = [
        |f| f.flags |= flags::SYN,
        |f| f.flags |= flags::RST,
        |f| f.flags |= flags::URG,
        |f| f.payload.clear(),
    ];
    for change in changes {
        let mut bench = Bench::new(CoalesceConfig::default());
        for frame in pair(false, change) {
            bench.offer(&frame, OUTER);
        }
        assert_eq!(members(&bench.out), [[0], [1]], "not held");
        bench.finish();
    }
}

#[test]
fn another_tunnel_keeps_segments_apart_and_in_order() {
    let frames = pair(false, |_| {});
    let headers = [
        OuterHeaders { addresses: [9, 2], ..HEADERS },
        OuterHeaders { addresses: [1, 9], ..HEADERS },
        OuterHeaders { tags: [Some(9), None], ..HEADERS },
        OuterHeaders { tags: [None, Some(9)], ..HEADERS },
        OuterHeaders { flow_label: 9, ..HEADERS },
        OuterHeaders { tos: 9, ..HEADERS },
        OuterHeaders { ttl: 9, ..HEADERS },
        OuterHeaders { df: false, ..HEADERS },
        OuterHeaders { src_port: 9, ..HEADERS },
        OuterHeaders { digest: 9, ..HEADERS },
    ];
    let others = headers.map(|headers| OuterKey { headers, ..OUTER });
    for other in others.into_iter().chain([OuterKey { flow: 9, ..OUTER }]) {
        let mut bench = Bench::new(CoalesceConfig::default());
        bench.offer(&frames[0], OUTER);
        bench.offer(&frames[1], other);
        assert_eq!(members(&bench.finish()), [[0], [1]]);
    }
}

/// Outer headers around nothing, with so many VLAN tags.
fn outer(v6: bool, tags: u16) -> Vec<u8> {
    let template = template(&VXLAN, v6, false);
    let mut head = vec![0; template.len()];
    let frame = OuterFrame::new(0, 7, 0, 1, OuterChecksum::Zero);
    assert_eq!(template.emit(&mut head, &frame), head.len());
    for tag in 1..=tags {
        head.splice(0..0, [0; 4]);
        insert_tag(&mut head, tag);
    }
    head
}

#[test]
fn every_bit_of_outer_headers_that_the_kernel_looks_at_keeps_segments_apart() {
    // After the tags: addresses, TOS, TTL, DF or flow label, source port.
    let of_v4 = [vec![1, 6, 8, 34 - 14, 35 - 14], (12..20).collect()].concat();
    let of_v6 = [vec![0, 1, 2, 3, 7, 54 - 14, 55 - 14], (8..40).collect()].concat();
    for (v6, tags) in [(false, 0), (false, 2), (true, 0), (true, 1)] {
        let head = outer(v6, tags);
        let l3 = 14 + 4 * usize::from(tags);
        let of = |head: &[u8]| OuterHeaders::of(head, &parse(head), 6);
        let changed = |at: usize, mask: u8| {
            let mut head = head.clone();
            head[at] ^= mask;
            if !v6 {
                head[l3 + 10..l3 + 12].fill(0);
                let sum = Sum::default().add(&head[l3..l3 + 20]).finish();
                head[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
            }
            of(&head)
        };
        for &at in if v6 { &of_v6 } else { &of_v4 } {
            for bit in 0..8 {
                // The version; the bits beside DF make fragments, or are reserved.
                if (v6, at) == (true, 0) && bit >= 4 || (v6, at) == (false, 6) && bit != 6 {
                    continue;
                }
                assert_ne!(changed(l3 + at, 1 << bit), of(&head), "IPv6 {v6}: {at}, bit {bit}");
            }
        }
        for tag in 0..usize::from(tags) {
            assert_ne!(changed(15 + 4 * tag, 1), of(&head), "tag {tag}");
        }
        // Which hop a packet came by, and how many its sender sent.
        assert_eq!(changed(6, 0x40), of(&head));
        if !v6 {
            assert_eq!(changed(l3 + 5, 1), of(&head));
        }
        assert_ne!(OuterHeaders::of(&head, &parse(&head), 7), of(&head));
    }
}

#[test]
fn a_fragment_flushes_what_is_held_between_its_addresses() {
    let mut frames = pair(false, |_| {});
    frames[1][20] = 0x20;
    let sum = u16::from_be_bytes([frames[1][24], frames[1][25]]);
    let sum = culvert_wire::checksum::update_u16(sum, 0x4000, 0x2000);
    frames[1][24..26].copy_from_slice(&sum.to_be_bytes());
    let mut bench = Bench::new(CoalesceConfig::default());
    bench.offer(&frames[0], OUTER);
    bench.offer(&frames[1], OUTER);
    assert_eq!(members(&bench.out), [[0], [1]]);
    bench.finish();
}

#[test]
fn an_ipv6_packet_with_a_fragment_or_routing_header_flushes_and_passes() {
    // The header's type and its third and fourth byte: the first fragment of more, a later one, one that is the whole
    // packet; a routing header without segments left.
    for (kind, word) in [(44, [0, 1]), (44, [0, 8]), (44, [0, 0]), (43, [253, 0])] {
        let mut frames = pair(true, |_| {});
        let header = [6, 0, word[0], word[1], 0, 0, 0, 7];
        let len = u16::from_be_bytes([frames[1][18], frames[1][19]]) + 8;
        frames[1][18..20].copy_from_slice(&len.to_be_bytes());
        frames[1][20] = kind;
        frames[1].splice(54..54, header);
        let mut bench = Bench::new(CoalesceConfig::default());
        bench.offer(&frames[0], OUTER);
        bench.offer(&frames[1], OUTER);
        assert_eq!(members(&bench.out), [[0], [1]], "next header {kind}, {word:?}");
        bench.finish();
    }
}

#[test]
fn limits_of_segments_and_length_end_a_superframe() {
    let frame = Forge::tcp(false, noise(10_000, 1)).frame();
    let segments = cut(&frame, 1000, 4000);
    let mut few = Bench::new(CoalesceConfig { max_segs: 4, ..Default::default() });
    let mut short = Bench::new(CoalesceConfig { max_len: 52 + 3000, ..Default::default() });
    for segment in &segments {
        few.offer(segment, OUTER);
        short.offer(segment, OUTER);
    }
    let sizes = |out: Vec<Out>| out.iter().map(|o| o.members.len()).collect::<Vec<_>>();
    assert_eq!(sizes(few.finish()), [4, 4, 2]);
    assert_eq!(sizes(short.finish()), [3, 3, 3, 1]);
}

#[test]
fn no_superframe_is_above_64_kilobytes() {
    for v6 in [false, true] {
        let mut forge = Forge::tcp(v6, noise(1448, 1));
        let mut frames = vec![];
        for _ in 0..60 {
            frames.push(forge.frame());
            forge.seq = forge.seq.wrapping_add(1448);
            forge.id += 1;
        }
        let out = merge(&frames);
        assert_eq!(out.len(), 2);
        assert!(out[0].frame.len() - 14 <= 65_535 && out[0].frame.len() > 64_000);
    }
}

#[test]
fn more_flows_than_slots_evict_the_least_recent() {
    let mut bench = Bench::new(CoalesceConfig { flows: 2, ..Default::default() });
    let flow = |port, step: u32| Forge {
        src_port: port,
        seq: step * 1000,
        id: step as u16,
        ..Forge::tcp(false, noise(1000, 1))
    };
    for (port, step) in [(1, 0), (2, 0), (1, 1), (3, 0), (1, 2)] {
        bench.offer(&flow(port, step).frame(), OUTER);
    }
    assert_eq!(members(&bench.out), [[1]], "port 2 had waited longest");
    assert_eq!(members(&bench.finish()), [vec![1], vec![3], vec![0, 2, 4]]);
}

#[test]
fn only_the_flows_asked_for_are_flushed_and_the_others_go_on() {
    let mut bench = Bench::new(CoalesceConfig::default());
    let segment = |port: u16, step: u32| Forge {
        src_port: port,
        seq: step * 1000,
        id: step as u16,
        ..Forge::tcp(false, noise(1000, 1))
    };
    for at in 0..3 {
        bench.offer(&segment(at, 0).frame(), OUTER);
    }
    let (held, out) = (&bench.frames, &mut bench.out);
    let mut sink = |merged: Merged<'_, usize>| out.push(collect(held, merged));
    bench.coalescer.flush_if(|token| *token == 7, &mut sink);
    assert_eq!(bench.coalescer.held_flows(), 3);
    let mut sink = |merged: Merged<'_, usize>| bench.out.push(collect(&bench.frames, merged));
    bench.coalescer.flush_if(|token| *token == 1, &mut sink);
    assert_eq!(bench.coalescer.held_flows(), 2);
    for at in 0..3 {
        bench.offer(&segment(at, 1).frame(), OUTER);
    }
    // The second of the flow that was flushed begins anew; the others were two segments and are still held.
    assert_eq!(members(&bench.finish()), [vec![1], vec![0, 3], vec![4], vec![2, 5]]);
}

#[test]
fn udp_merges_only_where_asked_and_only_with_a_checksum() {
    let mut forge = Forge::udp(false, noise(500, 1));
    let mut frames = vec![];
    for _ in 0..3 {
        frames.push(forge.frame());
        forge.id += 1;
    }
    let mut off = Bench::new(CoalesceConfig::default());
    for frame in &frames {
        off.offer(frame, OUTER);
    }
    assert_eq!(members(&off.finish()), [[0], [1], [2]]);
    assert_eq!(members(&merge(&frames)), [[0, 1, 2]]);
    let none = Forge { zero_checksum: true, ..Forge::udp(false, noise(500, 1)) };
    assert_eq!(members(&merge(&[none.frame(), none.frame()])), [[0], [1]]);
}

#[test]
fn the_kind_of_superframe_is_told() {
    for (forge, want) in [
        (Forge::tcp(false, vec![]), GsoKind::TcpV4),
        (Forge::tcp(true, vec![]), GsoKind::TcpV6),
        (Forge::udp(true, vec![]), GsoKind::UdpL4),
    ] {
        assert_eq!(GsoKind::of(&parse(&forge.frame())), Some(want));
    }
}
