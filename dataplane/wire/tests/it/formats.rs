//! Every format: segments of a superframe, encapsulated, come out of the far end as the same bytes.
//!
//! One sender and one receiver serve all formats: they are made of what the crate offers to the packet
//! path, and know descriptors only.

use crate::described::{formats, over_udp};
use crate::forge::{DST_MAC, Forge, SRC_MAC, any_forge, noise, parse, verify};
use crate::golden::{complaints, tshark, tshark_with};
use culvert_wire::checksum::Sum;
use culvert_wire::coalesce::{CoalesceConfig, Coalescer, Merged, OuterHeaders, OuterKey};
use culvert_wire::encap::{
    DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame, Position, inner_sum_from_headers,
};
use culvert_wire::format::{Decap, Facts, FormatDescriptor, Formats, GENEVE, STT, Travel};
use culvert_wire::packet::{IpKind, Packet};
use culvert_wire::reassemble::{
    ReassembleError, Reassembler, StreamKey, StreamPart, max_stream_len, widen,
};
use culvert_wire::segment::{GsoKind, Segmenter};
use culvert_wire::{Vni, tcp};
use proptest::prelude::*;

const VNI: u32 = 0x00ab_cdef;

/// Bytes of TCP payload that every format carries: what an IPv4 packet holds beside headers without options.
const PAYLOAD_MAX: usize = 65_495;

/// Segments of one superframe, and its bytes from the IP header on, at most.
const MERGED_MAX: (usize, usize) = (64, 65_535);

pub(crate) fn template(format: &FormatDescriptor, v6: bool, mss_option: bool) -> EncapTemplate {
    let address = |v4: &str, v6_text: &str| if v6 { v6_text } else { v4 }.parse().unwrap();
    EncapTemplate::new(&EncapSpec {
        src_mac: SRC_MAC,
        dst_mac: DST_MAC,
        vlan: None,
        src: address("192.0.2.1", "2001:db8::1"),
        dst: address("192.0.2.2", "2001:db8::2"),
        ttl: 64,
        format,
        mss_option,
        vni: Vni::new(VNI).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    })
    .unwrap()
}

/// A superframe on the underlay, cut at `mss` bytes of its own payload where each segment is a frame, or
/// into packets of `mtu` where it is a stream.
pub(crate) fn send(
    template: &EncapTemplate,
    inner: &[u8],
    mss: u16,
    mtu: usize,
    number: u32,
) -> Vec<Vec<u8>> {
    let pkt = parse(inner);
    if template.is_stream() {
        let parts = parts(template, inner, &pkt, mss);
        let numbered = parts.iter().zip(number..);
        let sent = numbered
            .map(|(part, number)| send_stream(template, part, &parse(part), mss, mtu, number));
        return sent.flatten().collect();
    }
    send_cut(template, inner, mss, mss)
}

/// What streams are made of: the frame, or two where its length is more than the outer headers can state.
fn parts(template: &EncapTemplate, inner: &[u8], pkt: &Packet, mss: u16) -> Vec<Vec<u8>> {
    let room = template.max_inner_len();
    if inner.len() <= room {
        return vec![inner.to_vec()];
    }
    let mss = usize::from(mss);
    cut_at(inner, ((room - pkt.headers_len()) / mss * mss) as u16)
}

/// The segments of a frame, without anything around them.
fn cut_at(frame: &[u8], mss: u16) -> Vec<Vec<u8>> {
    let pkt = parse(frame);
    let plan = Segmenter::new(frame, &pkt, GsoKind::of(&pkt).unwrap(), mss).unwrap();
    let segment = |i| {
        let payload = &frame[plan.headers_len()..][plan.payload_range(i)];
        let mut out = vec![0; plan.headers_len()];
        plan.emit(frame, i, Sum::default().add(payload), &mut out);
        out.extend(payload);
        out
    };
    (0..plan.count()).map(segment).collect()
}

/// As [`send`] where each segment is a frame: cut at `cut` bytes, whatever MSS the headers state.
fn send_cut(template: &EncapTemplate, inner: &[u8], cut: u16, mss: u16) -> Vec<Vec<u8>> {
    let pkt = parse(inner);
    let plan = Segmenter::new(inner, &pkt, GsoKind::of(&pkt).unwrap(), cut).unwrap();
    let payload = &inner[plan.headers_len()..pkt.len as usize];
    (0..plan.count())
        .map(|i| {
            let range = plan.payload_range(i);
            let sum = Sum::default().add(&payload[range.clone()]);
            let mut segment = vec![0; plan.headers_len()];
            plan.emit(inner, i, sum, &mut segment);
            let whole = plan.segment_sum_with(&segment, sum);
            segment.extend(&payload[range.clone()]);
            let csum = OuterChecksum::Full { inner: whole };
            let last = i + 1 == plan.count();
            let mut outer =
                OuterFrame::new(segment.len(), pkt.flow_hash as u16, pkt.tos, i as u16, csum);
            outer.position = Position { index: i, last, advance: range.start };
            outer.facts = Facts { mss, ..Facts::default() };
            let mut out = vec![0; template.len()];
            assert_eq!(template.emit(&mut out, &outer), template.len());
            out.extend(segment);
            out
        })
        .collect()
}

/// The outer packet of a whole stream, its checksum left to whoever cuts it.
fn uncut(template: &EncapTemplate, inner: &[u8], pkt: &Packet, mss: u16, number: u32) -> Vec<u8> {
    let mut frame =
        OuterFrame::new(inner.len(), pkt.flow_hash as u16, pkt.tos, 7, OuterChecksum::Partial);
    frame.number = number;
    let tcp = pkt.is_tcp();
    frame.facts = Facts {
        mss: if tcp { mss } else { 0 },
        l4_offset: if tcp { pkt.l4 as u8 } else { 0 },
        checksum_partial: tcp,
        ipv4: pkt.ip == IpKind::V4,
        tcp,
        ..Facts::default()
    };
    let mut out = vec![0; template.len()];
    assert_eq!(template.emit(&mut out, &frame), template.len());
    out.extend(inner);
    out
}

/// Cuts the outer packet as every conventional algorithm cuts TCP.
fn send_stream(
    template: &EncapTemplate,
    inner: &[u8],
    pkt: &Packet,
    mss: u16,
    mtu: usize,
    number: u32,
) -> Vec<Vec<u8>> {
    let whole = uncut(template, inner, pkt, mss, number);
    let outer = Packet::parse(&whole, whole.len()).unwrap();
    let room = mtu - (template.tunnel_offset() - template.l3_offset());
    let kind = GsoKind::of(&outer).unwrap();
    let plan = Segmenter::new(&whole, &outer, kind, room as u16).unwrap();
    (0..plan.count())
        .map(|i| {
            let payload = &whole[plan.headers_len()..][plan.payload_range(i)];
            let mut out = vec![0; plan.headers_len()];
            plan.emit(&whole, i, Sum::default().add(payload), &mut out);
            out.extend(payload);
            out
        })
        .collect()
}

/// One end of a tunnel: what it delivers, in order.
struct Receiver {
    formats: Formats,
    reassembler: Reassembler<Vec<u8>>,
    coalescer: Coalescer<Vec<u8>>,
    delivered: Vec<Vec<u8>>,
    merged: Vec<(u16, u16)>,
    mss: Vec<u16>,
    lost: Vec<ReassembleError>,
}

impl Receiver {
    fn new() -> Self {
        let config = CoalesceConfig { udp: true, ..CoalesceConfig::default() };
        Self {
            formats: formats(),
            reassembler: Reassembler::default(),
            coalescer: Coalescer::new(config),
            delivered: vec![],
            merged: vec![],
            mss: vec![],
            lost: vec![],
        }
    }

    fn receive(&mut self, frame: &[u8]) {
        let outer = parse(frame);
        if outer.is_tcp() || outer.is_udp() {
            verify(frame);
        }
        let message = &frame[outer.headers_len()..outer.len as usize];
        let port = outer.dst_port(frame);
        let formats = self.formats.clone();
        let stream = formats.carried_by(outer.proto, port).find_map(|(_, f)| f.stream());
        let Some(stream) = stream else {
            let (_, found) = formats.decap(outer.proto, port, message).unwrap().unwrap();
            return self.deliver(&found, frame, &outer, &message[found.header_len..]);
        };
        let part = StreamPart::read(stream, frame, &outer).unwrap();
        let key = StreamKey { from: outer.src_ip(frame).unwrap(), path: 0, frame: part.frame };
        let (mut whole, mut lost) = (None, vec![]);
        self.reassembler.offer(
            0,
            key,
            part,
            frame.to_vec(),
            &mut |parts| whole = Some(parts.collect::<Vec<_>>()),
            &mut |error, _| lost.push(error),
        );
        self.lost.extend(lost);
        let Some(parts) = whole else { return };
        let mut joined = parts[0].2.clone();
        for (_, len, rest) in &parts[1..] {
            joined.extend(&rest[rest.len() - *len as usize..]);
        }
        let outer = parse(&parts[0].2);
        let widened = widen(&mut joined, &outer, stream, part.length).unwrap();
        assert_eq!(Packet::parse(&joined, joined.len()).unwrap(), widened);
        let message = &joined[widened.headers_len()..];
        let (_, found) = formats.decap(widened.proto, port, message).unwrap().unwrap();
        let inner = message[found.header_len..].to_vec();
        self.deliver(&found, &joined, &widened, &inner);
    }

    fn deliver(&mut self, found: &Decap, head: &[u8], outer: &Packet, inner: &[u8]) {
        assert_eq!(found.vni.get(), VNI);
        self.mss.push(found.facts.mss);
        let pkt = parse(inner);
        let headers = OuterHeaders::of(head, outer, found.digest);
        let key = OuterKey { flow: found.vni.get().into(), headers };
        let (mut out, mut merged) = (vec![], vec![]);
        let mut sink = |m: Merged<'_, Vec<u8>>| merged.push(join(m, &mut out));
        if let Some(alone) = self.coalescer.offer(inner, &pkt, key, inner.to_vec(), &mut sink) {
            out.push(alone);
        }
        self.delivered.extend(out);
        self.merged.extend(merged);
    }

    fn finish(mut self) -> Self {
        let (mut out, mut merged) = (vec![], vec![]);
        self.coalescer.flush_all(&mut |m| merged.push(join(m, &mut out)));
        self.delivered.extend(out);
        self.merged.extend(merged);
        self
    }
}

/// The bytes of a superframe, its checksum completed as a device does.
fn join(merged: Merged<'_, Vec<u8>>, out: &mut Vec<Vec<u8>>) -> (u16, u16) {
    let (segs, size) = (merged.segs, merged.gso_size);
    let (l4, is_tcp) = (usize::from(merged.packet.l4), merged.packet.is_tcp());
    let mut frame = merged.headers.to_vec();
    for held in merged.tokens {
        let at = usize::from(held.payload_offset);
        frame.extend(&held.token[at..at + usize::from(held.payload_len)]);
    }
    if segs > 1 {
        let sum = Sum::default().add(&frame[l4..]);
        let (at, sum) = if is_tcp { (l4 + 16, sum.finish()) } else { (l4 + 6, sum.finish_udp()) };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    out.push(frame);
    (segs, size)
}

fn any_format() -> impl Strategy<Value = FormatDescriptor> {
    // Frames of shards have tests of their own.
    let described = formats();
    let described = described.iter().filter(|(_, format)| !format.is_shards());
    let all: Vec<_> = described.map(|(_, format)| format.clone()).collect();
    prop::sample::select(all)
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let timestamps = vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
    let sack = vec![1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9];
    let both = [timestamps.clone(), sack.clone()].concat();
    prop::sample::select(vec![vec![], timestamps, sack, both])
}

/// Bytes from the IP header to the payload.
fn l3_headers_len(forge: &Forge) -> usize {
    20 + forge.options.len() + if forge.v6 { 40 } else { 20 }
}

/// With no more payload than its own length fields can state.
fn legal(mut forge: Forge) -> Forge {
    // IPv6 does not count its own header.
    let max = 65_535 + if forge.v6 { 40 } else { 0 } - l3_headers_len(&forge);
    forge.payload.truncate(max);
    forge
}

/// Payload of every length, the least and the most among them.
fn payload_len() -> impl Strategy<Value = usize> {
    prop_oneof![
        2 => 0..3000usize,
        2 => 0..=PAYLOAD_MAX,
        1 => PAYLOAD_MAX - 200..=PAYLOAD_MAX,
        1 => Just(PAYLOAD_MAX),
    ]
}

/// How many superframes are made of all segments in order.
fn superframes(forge: &Forge, mss: u16) -> usize {
    let (segs_max, room) = (MERGED_MAX.0, MERGED_MAX.1 - l3_headers_len(forge));
    let (mut count, mut segs, mut len) = (0, segs_max, 0);
    for segment in forge.payload.chunks(mss.into()) {
        if segs == segs_max || len + segment.len() > room {
            (count, segs, len) = (count + 1, 0, 0);
        }
        (segs, len) = (segs + 1, len + segment.len());
    }
    count.max(1)
}

/// Flags of a superframe: the last two are its last segment's alone.
fn flags() -> impl Strategy<Value = u8> {
    use culvert_wire::tcp::flags::{ACK, ECE, FIN, PSH};
    prop::sample::select(vec![ACK, ACK | ECE, ACK | PSH, ACK | PSH | FIN])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn in_order_what_is_cut_is_merged_to_the_same_bytes(
        format in any_format(), v6_outer: bool, v6: bool, options in options(), flags in flags(),
        len in payload_len(), mss in 536..=8960u16,
        mtu in prop::sample::select(vec![1500usize, 1550, 4000, 9000]), id: u16,
    ) {
        let template = template(&format, v6_outer, false);
        let forge = Forge { options, flags, id, ..Forge::tcp(v6, noise(len, u64::from(mss))) };
        let forge = legal(forge);
        let inner = forge.frame();
        let mut receiver = Receiver::new();
        for frame in send(&template, &inner, mss, mtu, 9) {
            receiver.receive(&frame);
        }
        let receiver = receiver.finish();
        prop_assert!(receiver.lost.is_empty());
        if format.stream().is_some() {
            prop_assert!(receiver.mss.iter().all(|stated| *stated == mss));
            prop_assert_eq!(receiver.mss.len(), if inner.len() > template.max_inner_len() { 2 } else { 1 });
        } else {
            // What the coalescer may merge at once is bounded.
            prop_assert_eq!(receiver.delivered.len(), superframes(&forge, mss));
            prop_assert!(receiver.merged.iter().all(|(segs, size)| *segs == 1 || *size == mss));
        }
        if l3_headers_len(&forge) + forge.payload.len() <= MERGED_MAX.1
            && (format.stream().is_some() || forge.payload.len().div_ceil(mss.into()) <= MERGED_MAX.0)
        {
            prop_assert!(receiver.delivered == [inner]);
        } else {
            // Several superframes are what the one was, to the last byte of each segment.
            let again: Vec<_> = receiver.delivered.iter().flat_map(|f| cut_at(f, mss)).collect();
            prop_assert!(again == cut_at(&inner, mss));
        }
    }

    #[test]
    fn what_is_cut_at_a_raised_mss_is_delivered_with_the_tenants(
        format in any_format(), v6_outer: bool, v6: bool, options in options(),
        len in 1..=PAYLOAD_MAX, mss in 48..=1400u16, more in 1..=8000u16, id: u16,
    ) {
        // No more segments than are merged at once.
        let raised = (mss + more).max(1100);
        prop_assume!(format.states_mss() && format.stream().is_none());
        let template = template(&format, v6_outer, true);
        let forge = Forge { options, id, ..Forge::tcp(v6, noise(len, u64::from(mss))) };
        let mut forge = legal(forge);
        forge.payload.truncate(MERGED_MAX.1 - l3_headers_len(&forge));
        let inner = forge.frame();
        let mut receiver = Receiver::new();
        for frame in send_cut(&template, &inner, raised, mss) {
            receiver.receive(&frame);
        }
        let receiver = receiver.finish();
        prop_assert!(receiver.mss.iter().all(|stated| *stated == mss));
        // Cut by what is stated it is what the tenant's own segments would have been, to the byte.
        prop_assert!(receiver.delivered == [inner]);
    }

    #[test]
    fn shuffled_the_same_bytes_come_at_the_same_sequence_numbers(
        format in any_format(), v6_outer: bool, v6: bool, options in options(), flags in flags(),
        len in payload_len(), mss in 536..=8960u16,
        mtu in prop::sample::select(vec![1500usize, 4000, 9000]), seed: u64,
    ) {
        let template = template(&format, v6_outer, false);
        let forge = Forge { options, flags, ..Forge::tcp(v6, noise(len, u64::from(mss))) };
        let forge = legal(forge);
        let inner = forge.frame();
        let mut frames = send(&template, &inner, mss, mtu, 9);
        let mut state = seed | 1;
        for i in (1..frames.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            frames.swap(i, (state >> 33) as usize % (i + 1));
        }
        let mut receiver = Receiver::new();
        frames.iter().for_each(|frame| receiver.receive(frame));
        let receiver = receiver.finish();
        // Every delivered byte is at its sequence number, each once: so nothing was merged over a gap.
        let mut runs: Vec<_> = receiver.delivered.iter().map(|frame| {
            let pkt = parse(frame);
            let tcp = tcp::View::new(&frame[usize::from(pkt.l4)..pkt.len as usize]).unwrap();
            (tcp.repr().seq.wrapping_sub(forge.seq) as usize, tcp.payload())
        }).collect();
        runs.sort_by_key(|(at, _)| *at);
        let mut end = 0;
        for (at, payload) in runs {
            prop_assert_eq!(at, end);
            end += payload.len();
            prop_assert!(forge.payload.get(at..end) == Some(payload));
        }
        prop_assert_eq!(end, forge.payload.len());
    }

    #[test]
    fn datagrams_keep_their_boundaries(
        format in any_format(), v6_outer: bool, v6: bool, count in 1..=64usize,
        size in 536..=8960u16,
    ) {
        let template = template(&format, v6_outer, false);
        prop_assume!(!template.is_stream());
        // As many as one superframe of either family holds.
        let count = count.min(65_487 / usize::from(size));
        let forge = Forge::udp(v6, noise(count * usize::from(size), 5));
        let mut receiver = Receiver::new();
        for frame in send(&template, &forge.frame(), size, 1500, 9) {
            receiver.receive(&frame);
        }
        let receiver = receiver.finish();
        prop_assert!(receiver.delivered == [forge.frame()]);
        prop_assert_eq!(receiver.merged, [(count as u16, size)]);
    }

    #[test]
    fn a_single_frame_comes_out_as_it_went_in(
        format in any_format(), v6_outer: bool, mut forge in any_forge(1300),
    ) {
        forge.zero_checksum = false;
        let inner = forge.frame();
        let pkt = parse(&inner);
        let template = template(&format, v6_outer, false);
        let mut out = vec![0; template.len()];
        let csum = OuterChecksum::Full { inner: inner_sum_from_headers(&inner, &pkt) };
        template.emit(&mut out, &OuterFrame::new(inner.len(), 77, pkt.tos, 1, csum));
        out.extend(&inner);
        let mut receiver = Receiver::new();
        receiver.receive(&out);
        prop_assert_eq!(receiver.finish().delivered, [inner]);
    }

    #[test]
    fn damage_to_a_tunnel_header_never_panics(
        format in any_format(), at in 0..60usize, value: u8, cut in 0..100usize,
    ) {
        let template = template(&format, false, true);
        let inner = Forge::tcp(false, noise(100, 3)).frame();
        let mut frame = send(&template, &inner, 1000, 1500, 1).remove(0);
        let tunnel = template.tunnel_offset();
        let end = frame.len();
        if let Some(byte) = frame.get_mut(tunnel + at) {
            *byte = value;
        }
        let message = &frame[tunnel..end - cut];
        for (_, format) in formats().iter() {
            let _ = culvert_wire::format::decap(format, message);
        }
    }
}

#[test]
fn fields_of_a_tunnel_header_change_from_segment_to_segment() {
    let format = over_udp();
    let template = template(&format, false, false);
    let inner = Forge::tcp(false, noise(3000, 1)).frame();
    let frames = send(&template, &inner, 1000, 1500, 1);
    let headers: Vec<&[u8]> = frames.iter().map(|f| &f[42..54]).collect();
    let flags: Vec<u8> = headers.iter().map(|header| header[1]).collect();
    assert_eq!(flags, [0x80, 0x00, 0x01]);
    let counts: Vec<u8> = headers.iter().map(|header| header[6]).collect();
    assert_eq!(counts, [0, 1, 2]);
    for (header, frame) in headers.iter().zip(&frames) {
        assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), frame.len() - 42);
        assert_eq!(Sum::default().add(header).finish(), 0);
    }
}

#[test]
fn geneve_tells_the_tenants_mss_in_an_option_that_need_not_be_known() {
    let template = template(&GENEVE, false, true);
    assert_eq!(template.len(), 14 + 20 + 8 + 8 + 8);
    let inner = Forge::tcp(false, noise(20_000, 1)).frame();
    let mut receiver = Receiver::new();
    let frames = send(&template, &inner, 1448, 1600, 1);
    assert_eq!(
        frames[0][42..58],
        [2, 0, 0x65, 0x58, 0xab, 0xcd, 0xef, 0, 0xff, 0xc7, 1, 1, 5, 0xa8, 0, 0]
    );
    frames.iter().for_each(|frame| receiver.receive(frame));
    let receiver = receiver.finish();
    assert!(receiver.mss.iter().all(|mss| *mss == 1448));
    assert_eq!(receiver.merged, [(14, 1448)]);
}

#[test]
fn frames_with_other_options_are_not_merged() {
    let with = template(&GENEVE, false, true);
    let without = template(&GENEVE, false, false);
    let inner = Forge::tcp(false, noise(2000, 1)).frame();
    let (a, b) = (send(&with, &inner, 1000, 1500, 1), send(&without, &inner, 1000, 1500, 1));
    let mut receiver = Receiver::new();
    receiver.receive(&a[0]);
    receiver.receive(&b[1]);
    assert_eq!(receiver.finish().delivered.len(), 2);
}

#[test]
fn a_stream_of_the_longest_frame_is_carried_over_both_families() {
    for v6 in [false, true] {
        let template = template(&STT, v6, false);
        let max = template.max_inner_len();
        let stream = max + 18;
        assert_eq!(stream as u32, max_stream_len(if v6 { IpKind::V6 } else { IpKind::V4 }));
        let forge = Forge { options: vec![], ..Forge::tcp(false, noise(max - 54, 3)) };
        let inner = forge.frame();
        assert_eq!(inner.len(), max);
        let mut receiver = Receiver::new();
        send(&template, &inner, 1448, 1500, 3).iter().for_each(|frame| receiver.receive(frame));
        assert_eq!(receiver.finish().delivered, [inner]);
    }
}

#[test]
fn the_most_payload_is_carried_in_every_format() {
    for (_, format) in formats().iter().filter(|(_, format)| !format.is_shards()) {
        for (v6_outer, v6) in [(false, false), (false, true), (true, false), (true, true)] {
            let template = template(format, v6_outer, false);
            let forge = Forge { options: vec![], ..Forge::tcp(v6, noise(PAYLOAD_MAX, 3)) };
            let inner = forge.frame();
            let mut receiver = Receiver::new();
            for frame in send(&template, &inner, 1448, 1500, 3) {
                receiver.receive(&frame);
            }
            let receiver = receiver.finish();
            let again: Vec<_> = receiver.delivered.iter().flat_map(|f| cut_at(f, 1448)).collect();
            assert!(again == cut_at(&inner, 1448), "{}", format.name);
            // With an IPv6 header in front of it it is more than one superframe.
            assert_eq!(receiver.delivered.len(), if v6 { 2 } else { 1 }, "{}", format.name);
        }
    }
}

#[test]
fn the_first_segment_alone_has_the_tunnel_header() {
    let template = template(&STT, false, false);
    let inner = Forge::tcp(false, noise(4000, 1)).frame();
    let frames = send(&template, &inner, 1448, 1500, 0x0102_0304);
    let stream = 18 + inner.len();
    let mut offset = 0;
    for (i, frame) in frames.iter().enumerate() {
        let pkt = parse(frame);
        let tcp = tcp::View::new(&frame[34..]).unwrap().repr();
        assert_eq!((tcp.dst_port, tcp.ack), (7471, 0x0102_0304));
        assert_eq!(tcp.seq, (stream as u32) << 16 | offset);
        let last = i + 1 == frames.len();
        assert_eq!(tcp.flags, tcp::flags::ACK | if last { tcp::flags::PSH } else { 0 });
        assert!(last || frame.len() == 14 + 1500);
        offset += pkt.payload_len() as u32;
    }
    assert_eq!(offset as usize, stream);
    assert_eq!(
        frames[0][54..72],
        [0, 0b1110, 34, 0, 5, 0xa8, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0xef, 0, 0]
    );
    assert_eq!(frames[0][72..], inner[..1460 - 18]);
}

#[test]
fn every_format_needs_the_room_that_its_table_says() {
    let formats = formats();
    let overhead = |name: &str, v6| {
        let (_, format) = formats.by_name(name).unwrap();
        template(format, v6, false).overhead_l3()
    };
    let names = ["vxlan", "geneve", "stt", "acme", "bare", "gale", "opal"];
    assert_eq!(names.map(|name| overhead(name, false)), [36, 36, 58, 40, 30, 54, 40]);
    assert_eq!(overhead("stt", true), 78);
    assert!(matches!(formats.by_name("stt").unwrap().1.travel, Travel::First(_)));
}

#[test]
fn tshark_finds_nothing_wrong_with_geneve() {
    let mut frames = vec![];
    for v6 in [false, true] {
        for option in [false, true] {
            let template = template(&GENEVE, v6, option);
            for forge in [Forge::tcp(false, noise(3000, 1)), Forge::udp(true, noise(3000, 2))] {
                frames.extend(send(&template, &forge.frame(), 1000, 1500, 1));
            }
        }
    }
    let found = complaints("geneve.pcap", &frames);
    assert!(found.is_empty(), "{found:#?}");
    for row in tshark("geneve_fields.pcap", &frames, &["geneve.vni", "geneve.version"]) {
        assert_eq!(row, ["0xabcdef", "0"]);
    }
}

/// tshark looks for STT over IPv4 only, among heuristics that have to be tried first.
#[test]
fn tshark_finds_nothing_wrong_with_stt() {
    let template = template(&STT, false, false);
    let mut frames = vec![];
    for (number, len) in [0, 100, 1300, 4000, 60_000].into_iter().enumerate() {
        let inner = Forge::tcp(number % 2 == 1, noise(len, 1)).frame();
        frames.extend(send(&template, &inner, 1400, 1500, number as u32 + 1));
    }
    let fields = [
        "stt.version",
        "stt.checksum.status",
        "_ws.expert.message",
        "stt.mss",
        "stt.l4offset",
        "stt.pkt_len",
        "stt.context_id",
    ];
    let rows = tshark_with(
        "stt.pcap",
        &frames,
        &fields,
        &["ip.try_heuristic_first:TRUE", "stt.check_checksum:TRUE"],
    );
    for row in &rows {
        // tshark compares the field with the sum over a packet that has the field in it. Where the field is
        // right that sum is zero, and so "should be" the field.
        assert_eq!(row[2], "Bad checksum [should be 0x0000]", "{row:?}");
    }
    let first: Vec<_> = rows.iter().filter(|row| !row[0].is_empty()).collect();
    assert_eq!(first.len(), 5);
    for row in first {
        assert_eq!((&*row[0], &*row[3], &*row[6]), ("0", "1400", "0x0000000000abcdef"), "{row:?}");
        assert!(row[4] == "34" || row[4] == "54", "{row:?}");
    }
}
