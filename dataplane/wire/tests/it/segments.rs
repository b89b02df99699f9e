//! Segments against the superframe they were cut from, every checksum verified by etherparse.

use crate::forge::{Forge, any_forge, noise, parse, verify};
use culvert_wire::checksum::Sum;
use culvert_wire::segment::{GsoKind, Pieces, SegmentError, Segmenter};
use culvert_wire::tcp::flags;
use proptest::prelude::*;

/// Cuts a whole frame, its payload handed over in slices of `chunk` bytes.
pub(crate) fn cut(frame: &[u8], mss: u16, chunk: usize) -> Vec<Vec<u8>> {
    let pkt = parse(frame);
    let plan = Segmenter::new(frame, &pkt, GsoKind::of(&pkt).unwrap(), mss).unwrap();
    let slices: Vec<&[u8]> = frame.chunks(chunk).collect();
    let mut pieces = Pieces::new(&slices, plan.headers_len());
    (0..plan.count())
        .map(|i| {
            let range = plan.payload_range(i);
            let mut segment = vec![0; plan.headers_len() + range.len()];
            let (headers, payload) = segment.split_at_mut(plan.headers_len());
            let sum = pieces.copy_range_and_sum(range, payload).unwrap();
            assert_eq!(plan.emit(frame, i, sum, headers), headers.len());
            let whole = plan.segment_sum_with(headers, sum);
            if plan.has_checksum() {
                assert_same(plan.segment_sum(headers), whole);
            }
            assert_same(whole, Sum::default().add(&segment));
            segment
        })
        .collect()
}

/// Equal as ones' complement numbers: zero has two representations.
fn assert_same(a: Sum, b: Sum) {
    assert_eq!(a.fold() % 0xffff, b.fold() % 0xffff);
}

fn check(forge: &Forge, mss: u16, chunk: usize) {
    let frame = forge.frame();
    let segments = cut(&frame, mss, chunk);
    assert_eq!(segments.len(), forge.payload.len().div_ceil(usize::from(mss)).max(1));
    let mut joined = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let (first, last) = (i == 0, i + 1 == segments.len());
        let seen = verify(segment);
        assert!(last || seen.payload.len() == usize::from(mss));
        if !forge.v6 {
            assert_eq!(seen.id, forge.id.wrapping_add(i as u16));
        }
        if forge.udp {
            assert_eq!(seen.l4_checksum == 0, forge.zero_checksum);
        } else {
            assert_eq!(seen.seq, forge.seq.wrapping_add(joined.len() as u32));
            let only_last = flags::FIN | flags::PSH;
            let mut want = forge.flags;
            want &= if first { 0xff } else { !flags::CWR };
            want &= if last { 0xff } else { !only_last };
            assert_eq!(seen.flags, want);
        }
        joined.extend(seen.payload);
    }
    assert_eq!(joined, forge.payload);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn segments_reassemble_to_the_bytes_sent(
        forge in any_forge(65_375), mss in 536..=8960u16, chunk in 200..5000usize,
    ) {
        check(&forge, mss, chunk);
    }

    #[test]
    fn tiny_segments_reassemble_too(forge in any_forge(200), mss in 1..=64u16) {
        check(&forge, mss, 120);
    }
}

#[test]
fn the_longest_superframe_is_cut() {
    for v6 in [false, true] {
        let mut tcp = Forge::tcp(v6, noise(if v6 { 65_515 } else { 65_495 }, 5));
        tcp.options = vec![];
        check(&tcp, 1448, 3840);
        check(&Forge::udp(v6, noise(65_507, 6)), 1400, 3840);
    }
}

#[test]
fn a_frame_of_one_segment_gets_its_checksum_completed() {
    let forge = Forge { flags: flags::SYN, ..Forge::tcp(false, vec![]) };
    let mut frame = forge.frame();
    let pkt = parse(&frame);
    let partial = pkt.pseudo_header(&frame, pkt.l4_len() as u32).fold();
    frame[50..52].copy_from_slice(&partial.to_be_bytes());
    let segments = cut(&frame, 1448, 9999);
    assert_eq!(segments, [forge.frame()]);
}

#[test]
fn a_fixed_identification_stays() {
    let frame = Forge::tcp(false, noise(3000, 1)).frame();
    let pkt = parse(&frame);
    let plan = Segmenter::new(&frame, &pkt, GsoKind::TcpV4, 1000).unwrap().with_fixed_id();
    for i in 0..3 {
        let sum = Sum::default().add(&frame[plan.headers_len()..][plan.payload_range(i)]);
        let mut segment = vec![0; plan.headers_len()];
        plan.emit(&frame, i, sum, &mut segment);
        segment.extend(&frame[plan.headers_len()..][plan.payload_range(i)]);
        assert_eq!(verify(&segment).id, 100);
    }
}

fn refusal(forge: &Forge, kind: GsoKind, mss: u16) -> Option<SegmentError> {
    let frame = forge.frame();
    Segmenter::new(&frame, &parse(&frame), kind, mss).err()
}

#[test]
fn what_is_no_superframe_is_refused_by_name() {
    use SegmentError as E;
    let tcp = Forge::tcp(false, noise(3000, 1));
    assert_eq!(refusal(&tcp, GsoKind::TcpV4, 0), Some(E::ZeroMss));
    assert_eq!(refusal(&tcp, GsoKind::TcpV6, 1000), Some(E::WrongKind));
    assert_eq!(refusal(&tcp, GsoKind::UdpL4, 1000), Some(E::WrongKind));
    for bad in [flags::SYN, flags::RST, flags::URG] {
        let forge = Forge { flags: flags::ACK | bad, ..tcp.clone() };
        assert_eq!(refusal(&forge, GsoKind::TcpV4, 1000), Some(E::BadFlags));
    }
    let mut frame = tcp.frame();
    let pkt = parse(&frame);
    let short = Segmenter::new(&frame[..60], &pkt, GsoKind::TcpV4, 1000).err();
    assert_eq!(short, Some(E::HeadersTooLong));
    frame[20] = 0x20;
    frame[24] = frame[24].wrapping_add(0x20);
    let fixed = !Sum::default().add(&frame[14..24]).add(&frame[26..34]).fold();
    frame[24..26].copy_from_slice(&fixed.to_be_bytes());
    let fragment = Segmenter::new(&frame, &parse(&frame), GsoKind::TcpV4, 1000).err();
    assert_eq!(fragment, Some(E::Fragment));
    let mut udp = Forge { zero_checksum: true, ..Forge::udp(false, noise(900, 1)) }.frame();
    udp[39] -= 1;
    let lying = Segmenter::new(&udp, &parse(&udp), GsoKind::UdpL4, 100).err();
    assert_eq!(lying, Some(E::BadLength));
}
