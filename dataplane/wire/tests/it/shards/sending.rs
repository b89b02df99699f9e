//! What is sent, as it is on the wire: cut by the crate's own segmenter, as a device would cut it.

use super::coding::any_policy;
use crate::forge::{DST_MAC, Forge, SRC_MAC, any_forge, noise, parse, verify};
use crate::segments::cut;
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::encode::{
    Content, EncodeError, Encoded, Path, PathConfig, Piece, Scratch, Stamp, Superframe,
};
use culvert_wire::shard::{Key, Keyring, PlanError, Policy, ShardHeader};
use culvert_wire::tcp::flags;
use culvert_wire::{Vni, packet::IpKind};
use proptest::prelude::*;

pub(crate) fn path(v6: bool, max_segment: u16, policy: Policy, keys: Keyring) -> Path {
    let (src, dst) = ends(v6);
    let spec = EncapSpec {
        src_mac: SRC_MAC,
        dst_mac: DST_MAC,
        vlan: None,
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::new(0x12_3456).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    };
    Path::new(&spec, PathConfig { max_segment, policy, keys }).unwrap()
}

pub(crate) fn ends(v6: bool) -> (&'static str, &'static str) {
    if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.2.2") }
}

pub(crate) fn ring(ids: &[u8], send: u8) -> Keyring {
    let keys = ids.iter().map(|id| (*id, Key::new(&[*id; 16]).unwrap()));
    Keyring::new(keys, send).unwrap()
}

pub(crate) fn stamp(frame: u32) -> Stamp {
    Stamp { frame, entropy: 77, inner_tos: 0, ip_id: 1000 }
}

/// The uncut packet, put together of its pieces.
pub(crate) fn uncut(encoded: &Encoded<'_>, content: &[u8]) -> Vec<u8> {
    let mut whole = encoded.headers().to_vec();
    for piece in encoded.pieces() {
        match piece {
            Piece::Share(share) => whole.extend(share),
            Piece::Payload(range) => whole.extend(&content[range]),
        }
    }
    whole
}

/// The segments, each put together on its own.
pub(crate) fn segments(encoded: &Encoded<'_>, content: &[u8]) -> Vec<Vec<u8>> {
    let plan = encoded.segmenter().unwrap();
    assert_eq!(plan.count(), encoded.placement().shape().segments());
    (0..plan.count())
        .map(|i| {
            let (share, range) = encoded.segment(i);
            let sum = Sum::default().add(share).add(&content[range.clone()]);
            let mut segment = vec![0; plan.headers_len()];
            plan.emit(encoded.headers(), i, sum, &mut segment);
            segment.extend(share);
            segment.extend(&content[range]);
            segment
        })
        .collect()
}

/// A superframe as it is sent: the segments of each of its streams.
pub(crate) fn send(path: &Path, frame: &[u8], mss: u16, number: u32) -> Vec<Vec<Vec<u8>>> {
    let pkt = parse(frame);
    let kind = GsoKind::of(&pkt).unwrap();
    let superframe = Superframe { head: frame, pkt: &pkt, kind, mss, fixed_id: false };
    let (first, second) = path.parts(&superframe).unwrap();
    let mut scratch = Scratch::default();
    [Some(first), second]
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(i, part)| {
            let content = Content::Superframe(superframe, part);
            let stamp = Stamp { inner_tos: pkt.tos, ..stamp(number.wrapping_add(i as u32)) };
            let encoded = path.encode(&content, &stamp, &mut scratch).unwrap();
            segments(&encoded, &frame[pkt.headers_len()..])
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The uncut packet, cut by what knows nothing of the format, is what is emitted segment by
    /// segment; every header says what it has to.
    #[test]
    fn a_device_that_cuts_tcp_cuts_streams(
        mut forge in any_forge(usize::MAX), mss in 536..=8960u16, segment in 536..=8960u16,
        policy in any_policy(), v6: bool, keyed: bool, number: u32,
    ) {
        forge.flags |= flags::ACK;
        let keys = if keyed { ring(&[2], 2) } else { Keyring::default() };
        let path = path(v6, segment, policy, keys);
        let frame = forge.frame();
        let pkt = parse(&frame);
        let kind = GsoKind::of(&pkt).unwrap();
        let superframe = Superframe { head: &frame, pkt: &pkt, kind, mss, fixed_id: false };
        let (first, second) = match path.parts(&superframe) {
            Ok(parts) => parts,
            Err(EncodeError::Plan(PlanError::SmallSegments { .. })) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        let content = &frame[pkt.headers_len()..];
        let mut scratch = Scratch::default();
        if content.is_empty() {
            // It goes as a frame that is not cut.
            let nothing = Content::Superframe(superframe, first);
            let refused = path.encode(&nothing, &stamp(number), &mut scratch).unwrap_err();
            prop_assert_eq!(refused, EncodeError::Empty);
            return Ok(());
        }
        let mut end = 0;
        for part in [Some(first), second].into_iter().flatten() {
            prop_assert_eq!(part.start, end);
            end = part.end;
            let contents = Content::Superframe(superframe, part);
            let encoded = path.encode(&contents, &stamp(number), &mut scratch).unwrap();
            let shape = *encoded.placement().shape();
            let whole = uncut(&encoded, content);
            prop_assert_eq!(whole.len(), encoded.packet().len as usize);
            let cut = cut(&whole, shape.mss(), 4000);
            let mine = segments(&encoded, content);
            prop_assert_eq!(&cut, &mine);
            for (i, segment) in mine.iter().enumerate() {
                let seen = verify(segment);
                let pkt = parse(segment);
                prop_assert_eq!(pkt.ip == IpKind::V6, v6);
                prop_assert_eq!(pkt.dst_port(segment), Some(culvert_wire::shard::PORT));
                let last = if i + 1 == mine.len() { flags::PSH } else { 0 };
                prop_assert_eq!(seen.flags, flags::ACK | last);
                let header = ShardHeader::read(&segment[usize::from(pkt.l4)..]).unwrap();
                let offset = (i * usize::from(shape.mss())) as u16;
                prop_assert_eq!(header, ShardHeader { frame: number, offset, shape });
                prop_assert_eq!(seen.id, if v6 { 0 } else { 1000u16.wrapping_add(i as u16) });
            }
        }
        prop_assert_eq!(end, content.len());
    }
}

#[test]
fn the_cost_of_a_64_kb_frame_is_160_bytes_and_no_segment_more() {
    let forge = Forge::tcp(false, noise(65_160, 1));
    let sent =
        send(&path(false, 1460, Policy::default(), Keyring::default()), &forge.frame(), 1448, 1);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].len(), 45, "as plain TCP with timestamps");
    let bytes: usize = sent[0].iter().map(|segment| segment.len() - 14 - 40).sum();
    assert_eq!(bytes, 65_160 + 2 * 80);
}

#[test]
fn superframes_are_shorter_than_in_vxlan_from_2797_bytes_on() {
    use culvert_wire::shard::Shape;
    // Outer Ethernet, IPv4, UDP, VXLAN; inner Ethernet, IPv4, TCP with timestamps.
    const VXLAN: usize = 14 + 20 + 8 + 8 + 14 + 20 + 32;
    let vxlan = |len: usize| len.div_ceil(1500 - 50 - 20 - 32) * VXLAN;
    let shard = |len: usize| {
        let shape = Shape::plan(len, 80, 1460, 65_495, Policy::default()).unwrap();
        shape.segments() * (14 + 20 + 20) + usize::from(shape.length()) - len
    };
    assert_eq!((shard(65_160), vxlan(65_160)), (45 * 54 + 160, 47 * 116));
    let longer = (1449..65_335).filter(|len| shard(*len) >= vxlan(*len)).max();
    assert_eq!(longer, Some(2796));
    assert_eq!(shard(2000) - vxlan(2000), 36);
}

#[test]
fn a_frame_above_the_limit_becomes_two_at_a_multiple_of_the_mss() {
    let forge = Forge { options: vec![], ..Forge::tcp(false, noise(65_495, 1)) };
    let frame = forge.frame();
    let sent = send(&path(false, 1460, Policy::default(), Keyring::default()), &frame, 1460, 1);
    assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [45, 1]);
    let streams: Vec<usize> =
        sent.iter().map(|stream| stream.iter().map(|segment| segment.len() - 54).sum()).collect();
    assert_eq!(streams[0] - 2 * 68, 44 * 1460);
}

#[test]
fn a_single_frame_is_one_segment_of_12_bytes_more() {
    let path = path(false, 1460, Policy::default(), Keyring::default());
    let mut scratch = Scratch::default();
    let frame = noise(1400, 1);
    let content = Content::Frame { len: frame.len(), partial: true };
    let encoded = path.encode(&content, &stamp(1), &mut scratch).unwrap();
    let sent = segments(&encoded, &frame);
    assert_eq!((sent.len(), sent[0].len()), (1, 14 + 40 + 12 + 1400));
    let long = Content::Frame { len: 1449, partial: false };
    let refused = path.encode(&long, &stamp(1), &mut scratch).unwrap_err();
    assert_eq!(refused, EncodeError::TooBig { max: 1448 });
}

#[test]
fn what_is_no_superframe_is_refused_by_name() {
    let path = path(false, 1460, Policy::default(), Keyring::default());
    let mut scratch = Scratch::default();
    let frame = Forge { flags: flags::SYN, ..Forge::tcp(false, noise(3000, 1)) }.frame();
    let pkt = parse(&frame);
    let superframe =
        Superframe { head: &frame, pkt: &pkt, kind: GsoKind::TcpV4, mss: 1448, fixed_id: false };
    let mut name = |part| {
        let content = Content::Superframe(superframe, part);
        path.encode(&content, &stamp(1), &mut scratch).unwrap_err().name()
    };
    assert_eq!(name(0..3000), "segment_bad_flags");
    assert_eq!(name(0..0), "shard_empty");
    assert_eq!(name(0..3001), "shard_empty");
}
