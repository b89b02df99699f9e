//! What comes out at the far end: what arrived, at its place, or nothing.

use super::coding::any_policy;
use super::far_end::{Delivered, FarEnd, merge, placement_of};
use super::sending::{path, ring, segments, send, stamp};
use crate::forge::{Forge, any_forge, noise, parse, verify};
use crate::segments::cut;
use culvert_wire::ecn;
use culvert_wire::shard::encode::{Content, Scratch};
use culvert_wire::shard::receive::{OuterSum, ReceiveConfig, SegmentFault, ShardError};
use culvert_wire::shard::{BlockFault, Coding, Keyring, Kind, Placement, Policy};
use culvert_wire::tcp::flags;
use proptest::prelude::*;

pub(crate) fn far_end(keys: Keyring) -> FarEnd {
    FarEnd::new(ReceiveConfig::default(), keys)
}

/// A small generator of choices.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i + 1);
            items.swap(i, j);
        }
    }
}

/// Payload bytes that have to be delivered when these segments have arrived and the frame is open.
pub(crate) fn deliverable(placement: &Placement, arrived: &[bool], unit: usize) -> Vec<bool> {
    let len = placement.shape().payload_len();
    let mut here = vec![false; len];
    for (i, _) in arrived.iter().enumerate().filter(|(_, arrived)| **arrived) {
        here[placement.payload_range(i)].fill(true);
    }
    for start in (0..len).step_by(unit) {
        let datagram = start..(start + unit).min(len);
        if !here[datagram.clone()].iter().all(|here| *here) {
            here[datagram].fill(false);
        }
    }
    here
}

/// Checks the runs of one stream: right bytes, right headers, and which bytes there were.
pub(crate) fn check_runs(
    runs: &[Delivered],
    forge: &Forge,
    mss: u16,
    part_start: usize,
    len: usize,
) -> Vec<bool> {
    let mut here = vec![false; len];
    for run in runs {
        let range = part_start + run.payload.start..part_start + run.payload.end;
        assert_eq!(run.content(), &forge.payload[range.clone()]);
        assert!(here[run.payload.clone()].iter().all(|here| !here), "delivered twice");
        here[run.payload.clone()].fill(true);
        assert_eq!((run.vni, run.mss), (0x12_3456, mss));
        assert_eq!(run.gso.is_some(), run.payload.len() > usize::from(mss));
        let cut = cut(&run.bytes, mss, 3000);
        let mut at = range.start;
        for (i, segment) in cut.iter().enumerate() {
            let seen = verify(segment);
            if !forge.v6 {
                let index = (range.start.div_ceil(usize::from(mss)) + i) as u16;
                assert_eq!(seen.id, forge.id.wrapping_add(index));
            }
            if forge.udp {
                assert_eq!(seen.l4_checksum == 0, forge.zero_checksum);
                let whole = at.is_multiple_of(usize::from(mss));
                let last = at + seen.payload.len() == forge.payload.len();
                assert!(whole && (last || seen.payload.len() == usize::from(mss)));
            } else {
                assert_eq!(seen.seq, forge.seq.wrapping_add(at as u32));
                let mut want = forge.flags;
                if at + seen.payload.len() < forge.payload.len() {
                    want &= !(flags::FIN | flags::PSH);
                }
                if at > 0 {
                    want &= !flags::CWR;
                }
                assert_eq!(seen.flags, want);
            }
            let pkt = parse(segment);
            assert_eq!((pkt.tos, pkt.ttl), (forge.tos, forge.ttl));
            let options =
                &segment[usize::from(pkt.payload) - forge.options.len()..][..forge.options.len()];
            assert!(forge.udp || options == forge.options);
            at += seen.payload.len();
        }
    }
    here
}

#[derive(Copy, Clone, Debug)]
struct Weather {
    loss: u64,
    repeat: u64,
    merge: u64,
    flush: u64,
    shuffle: bool,
    seed: u64,
}

fn any_weather() -> impl Strategy<Value = Weather> {
    let often = || prop_oneof![Just(0u64), 0..40u64];
    (often(), often(), often(), 0..100u64, any::<bool>(), any::<u64>()).prop_map(
        |(loss, repeat, merge, flush, shuffle, seed)| Weather {
            loss,
            repeat,
            merge,
            flush,
            shuffle,
            seed,
        },
    )
}

/// The packets that arrive of a stream, and which of its segments are in them.
fn travel(stream: &[Vec<u8>], weather: Weather, dice: &mut Dice) -> (Vec<Vec<u8>>, Vec<bool>) {
    let arrived: Vec<bool> = stream.iter().map(|_| !dice.percent(weather.loss)).collect();
    let mut packets = vec![];
    let mut i = 0;
    while i < stream.len() {
        if !arrived[i] {
            i += 1;
            continue;
        }
        let mut end = i + 1;
        while end < stream.len() && arrived[end] && dice.percent(weather.merge * 2) {
            end += 1;
        }
        let packet = merge(&stream[i..end], true);
        // A frame of one segment is delivered as often as it comes.
        if stream.len() > 1 && dice.percent(weather.repeat) {
            // Again, and merged otherwise.
            let from = dice.below(end);
            let from = (from..end).find(|j| arrived[*j..end].iter().all(|a| *a)).unwrap();
            packets.push(merge(&stream[from..end], true));
        }
        packets.push(packet);
        i = end;
    }
    if weather.shuffle {
        dice.shuffle(&mut packets);
    }
    (packets, arrived)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is lost, repeated, merged or reordered: with k shares exactly what arrived comes out,
    /// at its place and as valid packets; with fewer nothing does.
    #[test]
    fn what_arrived_is_delivered_or_nothing_is(
        mut forge in prop_oneof![3 => any_forge(usize::MAX), 1 => any_forge(6000)],
        mss in prop_oneof![3 => 536..=1500u16, 1 => 536..=8960u16],
        segment in prop_oneof![3 => 536..=1500u16, 1 => 536..=8960u16],
        policy in any_policy(), v6: bool, keyed: bool, number: u32, weather in any_weather(),
    ) {
        forge.flags |= flags::ACK;
        let keys = if keyed { ring(&[1, 6], 6) } else { Keyring::default() };
        if forge.payload.is_empty() {
            comes_as_it_went(&forge.frame(), false, v6, keys, number);
            return Ok(());
        }
        let path = path(v6, segment, policy, keys.clone());
        let unit = if forge.udp { usize::from(mss) } else { 1 };
        let mut dice = Dice::new(weather.seed);
        let mut far = far_end(keys);
        let (mut start, mut whole, mut rebuilt, mut expired) = (0, 0, 0, 0);
        for stream in send(&path, &forge.frame(), mss, number) {
            let (header, placement) = placement_of(&stream[0]);
            let (packets, arrived) = travel(&stream, weather, &mut dice);
            for packet in &packets {
                far.offer(packet).unwrap();
                if dice.percent(weather.flush) {
                    match dice.percent(50) {
                        true => far.flush(),
                        false => far.flush_waited(),
                    }
                }
            }
            far.flush();
            let shares = placement.carriers().filter(|i| arrived[*i]).count();
            let open = shares >= usize::from(header.shape.coding().k());
            let want = match open {
                true => deliverable(&placement, &arrived, unit),
                false => vec![false; placement.shape().payload_len()],
            };
            let runs: Vec<_> =
                far.out.runs.iter().filter(|run| run.frame == header.frame).cloned().collect();
            let here = check_runs(&runs, &forge, mss, start, want.len());
            prop_assert!(here == want, "delivered other bytes than arrived");
            start += want.len();
            match open {
                _ if packets.is_empty() => {}
                true if arrived.iter().all(|arrived| *arrived) => whole += 1,
                true => rebuilt += 1,
                false => expired += 1,
            }
        }
        prop_assert_eq!(start, forge.payload.len());
        far.expire(50_000);
        let stats = *far.receiver.stats();
        prop_assert_eq!((stats.whole, stats.rebuilt), (whole, rebuilt));
        prop_assert_eq!(stats.expired.iter().sum::<u64>(), expired);
        far.close();
    }

    #[test]
    fn a_single_frame_comes_out_as_it_went_in(
        forge in any_forge(1300), v6: bool, keyed: bool, partial: bool, number: u32,
    ) {
        let keys = if keyed { ring(&[3], 3) } else { Keyring::default() };
        comes_as_it_went(&forge.frame(), partial, v6, keys, number);
    }
}

/// A frame that is not cut, from one end to the other.
fn comes_as_it_went(frame: &[u8], partial: bool, v6: bool, keys: Keyring, number: u32) {
    let path = path(v6, 1460, Policy::default(), keys.clone());
    let mut scratch = Scratch::default();
    let content = Content::Frame { len: frame.len(), partial };
    let encoded = path.encode(&content, &stamp(number), &mut scratch).unwrap();
    let mut far = far_end(keys);
    far.offer(&segments(&encoded, frame)[0]).unwrap();
    let [run] = &far.out.runs[..] else { panic!("one run") };
    assert_eq!((run.kind, run.checksum), (Kind::Frame, partial));
    assert_eq!(run.bytes, frame);
    far.close();
}

/// A frame of just as many segments as shares, or some more.
pub(crate) fn frame_for(coding: Coding, more: usize) -> (Forge, Vec<Vec<u8>>) {
    let (k, n) = (usize::from(coding.k()), usize::from(coding.n()));
    let forge = Forge::tcp(false, noise((n + more) * 740 - n * 80usize.div_ceil(k), 1));
    let path = path(false, 740, Policy::Fixed(coding), Keyring::default());
    let mut streams = send(&path, &forge.frame(), 536, 99);
    assert_eq!(streams.len(), 1);
    (forge, streams.remove(0))
}

#[test]
fn what_can_be_delivered_waits_for_one_batch_more_where_more_is_coming() {
    let coding = Coding::new(4, 8).unwrap();
    let (_, stream) = frame_for(coding, 20);
    let (_, placement) = placement_of(&stream[0]);
    let fourth = placement.carriers().nth(3).unwrap();
    let mut far = far_end(Keyring::default());
    for packet in &stream[..=fourth] {
        far.offer(packet).unwrap();
    }
    far.flush_waited();
    assert!(far.out.runs.is_empty(), "it may wait");
    for packet in &stream[fourth + 1..] {
        far.offer(packet).unwrap();
    }
    assert_eq!(far.out.runs.len(), 1, "all of it at once");
    far.close();

    let mut far = far_end(Keyring::default());
    for packet in &stream[..=fourth] {
        far.offer(packet).unwrap();
    }
    far.flush_waited();
    far.flush_waited();
    assert_eq!(far.out.runs.len(), 1, "no more than once");
    far.offer(&stream[fourth + 1]).unwrap();
    far.flush_waited();
    assert_eq!(far.out.runs.len(), 1, "what came later may wait in turn");
    far.flush();
    assert_eq!(far.out.runs.len(), 2);
}

#[test]
fn segments_are_held_until_the_kth_share_and_delivered_with_it() {
    let (forge, stream) = frame_for(Coding::new(4, 8).unwrap(), 20);
    let (_, placement) = placement_of(&stream[0]);
    let fourth = placement.carriers().nth(3).unwrap();
    let mut far = far_end(Keyring::default());
    for packet in &stream[..fourth] {
        far.offer(packet).unwrap();
        far.flush();
    }
    assert!(far.out.runs.is_empty());
    far.offer(&stream[fourth]).unwrap();
    far.flush();
    let [run] = &far.out.runs[..] else { panic!("one run") };
    assert_eq!(run.payload, 0..placement.payload_range(fourth).end);
    far.offer(&stream[fourth + 1]).unwrap();
    far.flush();
    assert_eq!(far.out.runs[1].payload, placement.payload_range(fourth + 1));
    for packet in &stream[fourth + 2..] {
        far.offer(packet).unwrap();
    }
    assert_eq!(far.out.runs.len(), 3, "the last one completes the frame: no flush is needed");
    check_runs(&far.out.runs, &forge, 536, 0, forge.payload.len());
    assert_eq!(far.receiver.frames(), 0);
    far.offer(&stream[5]).unwrap();
    assert_eq!(far.out.lost, [ShardError::Duplicate], "a repetition after the end");
    far.close();
}

#[test]
fn merged_segments_are_accepted_with_partial_sums_where_the_kernel_made_them() {
    let (forge, stream) = frame_for(Coding::new(2, 4).unwrap(), 9);
    let whole = merge(&stream, false);
    let mut far = far_end(Keyring::default());
    assert_eq!(far.offer(&whole), Err(SegmentFault::Checksum));
    far.sum = OuterSum::CompleteOrPartial;
    far.offer(&whole).unwrap();
    let [run] = &far.out.runs[..] else { panic!("one run") };
    assert_eq!(run.content(), forge.payload);
    assert_eq!(far.out.back, 1);
    far.close();
}

#[test]
fn segments_at_other_bounds_or_with_wrong_sums_are_refused() {
    let (_, stream) = frame_for(Coding::new(2, 4).unwrap(), 9);
    let mut far = far_end(Keyring::default());
    let mut damaged = stream[3].clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert_eq!(far.offer(&damaged), Err(SegmentFault::Checksum));
    let mut shifted = stream[3].clone();
    shifted[41] ^= 1;
    assert_eq!(far.offer(&shifted), Err(SegmentFault::Bounds));
    for flag in [flags::SYN, flags::FIN, flags::RST, flags::URG, flags::ACK] {
        let mut foreign = stream[3].clone();
        foreign[47] ^= flag;
        assert_eq!(far.offer(&foreign), Err(SegmentFault::Foreign));
    }
    far.close();
}

#[test]
fn congestion_met_by_any_segment_is_told_and_never_lost_silently() {
    for (tos, want) in [(ecn::ECT0, Some(ecn::CE)), (ecn::NOT_ECT, None)] {
        let forge = Forge { tos, ..Forge::tcp(false, noise(6000, 1)) };
        let path = path(false, 1460, Policy::default(), Keyring::default());
        let mut stream = send(&path, &forge.frame(), 1448, 1).remove(0);
        let (_, placement) = placement_of(&stream[0]);
        stream[2][15] |= ecn::CE;
        stream[2][24..26].fill(0);
        let sum = culvert_wire::checksum::Sum::default().add(&stream[2][14..34]).finish();
        stream[2][24..26].copy_from_slice(&sum.to_be_bytes());
        let mut far = far_end(Keyring::default());
        for packet in &stream {
            far.offer(packet).unwrap();
        }
        far.flush();
        let bytes: usize = far.out.runs.iter().map(|run| run.payload.len()).sum();
        match want {
            Some(ecn) => {
                assert_eq!((far.out.runs.len(), bytes), (1, 6000));
                let run = &far.out.runs[0];
                assert_eq!((parse(&run.bytes).tos & ecn::MASK, run.outer_ecn), (ecn, ecn::CE));
            }
            None => {
                assert_eq!(far.out.lost, [ShardError::Congestion]);
                assert_eq!(bytes, 6000 - placement.payload_range(2).len());
            }
        }
        far.close();
    }
}

#[test]
fn datagrams_wait_for_their_other_half_and_come_once() {
    let forge = Forge::udp(false, noise(20 * 1000, 1));
    let path = path(false, 1460, Policy::default(), Keyring::default());
    let stream = send(&path, &forge.frame(), 1000, 1).remove(0);
    let mut far = far_end(Keyring::default());
    for packet in &stream {
        far.offer(packet).unwrap();
        far.flush();
    }
    let here = check_runs(&far.out.runs, &forge, 1000, 0, forge.payload.len());
    assert!(here.iter().all(|here| *here));
    assert!(far.out.shared > 0, "datagrams that cross segments");
    far.close();
}

#[test]
fn one_damaged_share_among_enough_is_survived() {
    let coding = Coding::new(4, 8).unwrap();
    let (_, stream) = frame_for(coding, 3);
    let (header, placement) = placement_of(&stream[0]);
    for bad in 0..8 {
        let mut stream = stream.clone();
        let carrier = placement.carriers().nth(bad).unwrap();
        stream[carrier][54 + 7] ^= 0x40;
        super::far_end::fix_tcp(&mut stream[carrier]);
        let mut far = far_end(Keyring::default());
        for packet in &stream {
            far.offer(packet).unwrap();
        }
        let bytes: usize = far.out.runs.iter().map(|run| run.payload.len()).sum();
        assert_eq!(bytes, header.shape.payload_len());
        far.close();
    }
    let mut far = far_end(Keyring::default());
    let carriers: Vec<_> = placement.carriers().take(4).collect();
    for (i, packet) in stream.iter().enumerate() {
        let mut packet = packet.clone();
        if carriers.contains(&i) {
            packet[54] ^= 1;
            super::far_end::fix_tcp(&mut packet);
        } else if placement.share_of(i).is_some() {
            continue;
        }
        far.offer(&packet).unwrap();
    }
    far.flush();
    assert!(far.out.runs.is_empty());
    far.expire(50_000);
    assert!(far.out.lost.iter().all(|e| *e == ShardError::Block(BlockFault::Crc)));
    assert_eq!(far.receiver.stats().expired[0], 1);
    far.close();
}

#[test]
fn without_the_right_key_nothing_is_delivered() {
    let forge = Forge::tcp(false, noise(9000, 1));
    let cases = [
        (ring(&[1], 1), Keyring::default(), BlockFault::Keyed),
        (Keyring::default(), ring(&[1], 1), BlockFault::NotKeyed),
        (ring(&[2], 2), ring(&[1], 1), BlockFault::UnknownKey(2)),
    ];
    for (sender, receiver, fault) in cases {
        let path = path(false, 1460, Policy::default(), sender);
        let mut far = far_end(receiver);
        for packet in &send(&path, &forge.frame(), 1448, 1)[0] {
            far.offer(packet).unwrap();
        }
        far.flush();
        assert!(far.out.runs.is_empty());
        assert!(far.out.lost.iter().all(|error| *error == ShardError::Block(fault)));
        far.close();
    }
}
