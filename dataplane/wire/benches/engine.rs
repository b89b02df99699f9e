//! A superframe cut into frames of the wire, and the frames put together again, in every format: what a worker computes
//! for it, without the memory and the devices of one. Checksums included, inner and outer.
//!
//! `cargo xtask bench engine` sets these beside DPDK's libraries and beside what no program can do without: to copy the
//! bytes once and sum them.

use std::cell::RefCell;
use std::hint::black_box;
use std::net::IpAddr;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use culvert_wire::checksum::{Sum, copy_and_sum};
use culvert_wire::coalesce::{CoalesceConfig, Coalescer, Merged, OuterHeaders, OuterKey};
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use culvert_wire::eth::{self, ether_type};
use culvert_wire::format::builtin::by_name;
use culvert_wire::format::{FormatDescriptor, Formats, decap};
use culvert_wire::reassemble::{Reassembler, StreamKey, StreamPart, widen};
use culvert_wire::segment::{GsoKind, Pieces, Segmenter};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::receive::{Held, OuterSum, Receiver, Run, Segment, ShardError, Sink};
use culvert_wire::shard::{Keyring, Policy};
use culvert_wire::{MacAddr, Packet, Vni, ecn, ipv4, ipv6, proto, tcp};

/// Of the tenant, with timestamps, at an MTU of 1500; over IPv6, 20 less.
const MSS: u16 = 1448;
/// As of a kernel that sends as much as it can: whole segments in at most 64 KB.
const SEGMENTS: usize = 45;
const PAYLOAD: usize = MSS as usize * SEGMENTS;
/// What a stream's segments carry over an underlay of 1600 bytes, so that there are about as many.
const STREAM_MSS: u16 = 1500;
const MAX_WIRE: usize = 2048;

/// Offset of the tenant's L4 header, and of its payload.
const fn inner_offsets(v6: bool) -> (usize, usize) {
    let l4 = eth::HEADER_LEN + if v6 { ipv6::HEADER_LEN } else { ipv4::HEADER_LEN };
    (l4, l4 + 32)
}

/// A tenant's superframe of TCP, whose checksum is partial.
fn superframe(v6: bool) -> Vec<u8> {
    let mut options = [0u8; 40];
    options[..12].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    let tcp = tcp::Repr {
        src_port: 40_000,
        dst_port: 5201,
        seq: 1,
        ack: 1,
        flags: tcp::flags::ACK,
        window: 512,
        checksum: 0,
        urgent: 0,
        options,
        options_len: 12,
    };
    let (l4, payload) = inner_offsets(v6);
    let mut frame: Vec<u8> = (0..payload + PAYLOAD).map(|i| (i % 251) as u8).collect();
    eth::Repr {
        dst: MacAddr([2, 0, 0, 0, 0, 1]),
        src: MacAddr([2, 0, 0, 0, 0, 2]),
        tags: [None; 2],
        ether_type: if v6 { ether_type::IPV6 } else { ether_type::IPV4 },
    }
    .emit(&mut frame);
    let len = (32 + PAYLOAD) as u16;
    if v6 {
        let (src, dst) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        ipv6::Repr::new(src, dst, proto::TCP, len).emit(&mut frame[eth::HEADER_LEN..]);
    } else {
        let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        ipv4::Repr::new(src, dst, proto::TCP, len).emit(&mut frame[eth::HEADER_LEN..]);
    }
    tcp.emit(&mut frame[l4..]);
    frame
}

fn template(format: &FormatDescriptor, v6: bool) -> EncapTemplate {
    EncapTemplate::new(&way(format, v6)).unwrap()
}

fn way(format: &FormatDescriptor, v6: bool) -> EncapSpec<'_> {
    let (src, dst): (IpAddr, IpAddr) = if v6 {
        ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
    } else {
        ([192, 0, 2, 1].into(), [192, 0, 2, 2].into())
    };
    EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 1, 2]),
        vlan: None,
        src,
        dst,
        ttl: 64,
        format,
        mss_option: false,
        vni: Vni::new(100).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    }
}

/// Frames of one superframe on the wire, and the length of each.
struct Wires {
    bytes: Vec<[u8; MAX_WIRE]>,
    lens: Vec<usize>,
}

impl Wires {
    fn new() -> Self {
        Self { bytes: vec![[0; MAX_WIRE]; 64], lens: Vec::with_capacity(64) }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.iter().zip(&self.lens).map(|(bytes, len)| &bytes[..*len])
    }
}

/// Cuts as workers do where the tunnel header rides on every segment.
fn cut_datagrams(frame: &[u8], v6: bool, outer: &EncapTemplate, wires: &mut Wires) {
    let pkt = Packet::parse(frame, frame.len()).unwrap();
    let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    let plan = Segmenter::new(frame, &pkt, kind, MSS).unwrap();
    let (len, headers) = (outer.len(), plan.headers_len());
    wires.lens.clear();
    for (i, out) in (0..plan.count()).zip(&mut wires.bytes) {
        let range = plan.payload_range(i);
        let end = len + headers + range.len();
        let payload = &frame[headers + range.start..headers + range.end];
        let sum = copy_and_sum(&mut out[len + headers..end], payload);
        let (front, inner) = out.split_at_mut(len);
        plan.emit(frame, i, sum, &mut inner[..headers]);
        let inner_sum = plan.segment_sum(&inner[..headers]);
        let csum = OuterChecksum::Full { inner: inner_sum };
        outer.emit(front, &OuterFrame::new(end - len, 0xc123, 0, i as u16, csum));
        wires.lens.push(end);
    }
}

/// Cuts as workers do where it rides on the first segment only: all is one stream, in the clothes of TCP.
fn cut_stream(frame: &[u8], outer: &EncapTemplate, wires: &mut Wires) {
    let mut head = [0u8; 256];
    let len = outer.len();
    outer.emit(&mut head, &OuterFrame::new(frame.len(), 0xc123, 0, 1, OuterChecksum::Partial));
    let (pkt, kind) = {
        let whole = Packet::parse(&head[..len], len + frame.len()).unwrap();
        (whole, if outer.is_v6() { GsoKind::TcpV6 } else { GsoKind::TcpV4 })
    };
    let plan = Segmenter::new(&head[..len], &pkt, kind, STREAM_MSS).unwrap();
    let headers = plan.headers_len();
    // What is cut is the tunnel header and the tenant's frame behind it.
    let tunnel = &head[headers..len];
    wires.lens.clear();
    for (i, out) in (0..plan.count()).zip(&mut wires.bytes) {
        let range = plan.payload_range(i);
        let (from, to) = (range.start, range.end);
        let own = tunnel.get(from..).map_or(0, |rest| rest.len().min(to - from));
        let end = headers + to - from;
        out[headers..headers + own].copy_from_slice(&tunnel[tunnel.len().min(from)..][..own]);
        let start = (from + own) - tunnel.len();
        let source = &frame[start..start + (to - from - own)];
        let sum = copy_and_sum(&mut out[headers + own..end], source);
        let sum = Sum::default().add(&out[headers..headers + own]).add_sum(sum);
        plan.emit(&head, i, sum, &mut out[..headers]);
        wires.lens.push(end);
    }
}

fn cut(format: &FormatDescriptor, frame: &[u8], v6: bool, wires: &mut Wires) {
    let outer = template(format, v6);
    if outer.is_stream() {
        cut_stream(frame, &outer, wires);
    } else {
        cut_datagrams(frame, v6, &outer, wires);
    }
}

fn l4_is_right(head: &[u8], pkt: &Packet, sum: Sum) -> bool {
    pkt.pseudo_header(head, pkt.l4_len() as u32).add_sum(sum).finish() == 0
}

/// A frame of the wire, its inner one parsed and both sums found right; with it what has to be equal in all that is
/// merged.
fn check_datagram(formats: &Formats, wire: &[u8]) -> (usize, Packet, OuterKey) {
    let outer = Packet::parse(wire, wire.len()).unwrap();
    let at = usize::from(outer.payload);
    let found = formats.decap(outer.proto, outer.dst_port(wire), &wire[at..]);
    let (_, found) = found.unwrap().unwrap();
    let headers = OuterHeaders::of(wire, &outer, found.digest);
    let start = at + found.header_len;
    let inner = &wire[start..];
    let pkt = Packet::parse(inner, inner.len()).unwrap();
    assert_ne!(ecn::decapsulate(pkt.tos, outer.tos), ecn::Egress::Drop);
    let l4 = start + usize::from(pkt.l4);
    let sum = Sum::default().add(&wire[l4..]);
    assert!(l4_is_right(inner, &pkt, sum));
    let whole = Sum::default().add(&wire[usize::from(outer.l4)..l4]).add_sum(sum);
    assert!(l4_is_right(wire, &outer, whole));
    (start, pkt, OuterKey { flow: found.vni.get().into(), headers })
}

/// Puts what was merged into one piece.
fn gather(merged: Merged<'_, usize>, wires: &Wires, starts: &[usize], whole: &mut [u8]) -> usize {
    let mut at = merged.headers.len();
    whole[..at].copy_from_slice(merged.headers);
    for held in merged.tokens {
        let from = starts[held.token] + usize::from(held.payload_offset);
        let len = usize::from(held.payload_len);
        whole[at..at + len].copy_from_slice(&wires.bytes[held.token][from..from + len]);
        at += len;
    }
    at
}

fn merge_datagrams(
    formats: &Formats,
    wires: &Wires,
    coalescer: &mut Coalescer<usize>,
    whole: &mut [u8],
) -> usize {
    let mut len = 0;
    let mut starts = [0; 64];
    for (i, wire) in wires.iter().enumerate() {
        let (start, pkt, outer) = check_datagram(formats, wire);
        starts[i] = start;
        let mut sink = |merged: Merged<'_, usize>| len += gather(merged, wires, &starts, whole);
        assert!(coalescer.offer(&wire[start..], &pkt, outer, i, &mut sink).is_none());
    }
    coalescer.flush_all(&mut |merged| len += gather(merged, wires, &starts, whole));
    len
}

fn merge_stream(
    format: &FormatDescriptor,
    wires: &Wires,
    reassembler: &mut Reassembler<usize>,
    whole: &mut [u8],
) -> usize {
    let stream = format.stream().unwrap();
    let mut len = 0;
    for (i, wire) in wires.iter().enumerate() {
        let outer = Packet::parse(wire, wire.len()).unwrap();
        let sum = Sum::default().add(&wire[usize::from(outer.l4)..]);
        assert!(l4_is_right(wire, &outer, sum));
        let part = StreamPart::read(stream, wire, &outer).unwrap();
        let (from, path) = (outer.src_ip(wire).unwrap(), u64::from(outer.flow_hash) << 8);
        let key = StreamKey { from, path, frame: part.frame };
        let mut complete = |parts: std::vec::Drain<'_, (u32, u32, usize)>| {
            let mut at = 0;
            for (n, (_, bytes, token)) in parts.enumerate() {
                let from = wires.lens[token] - bytes as usize;
                // Of the first the tunnel header stays behind.
                let skip = if n == 0 {
                    let head = &wires.bytes[token];
                    let first = Packet::parse(head, wires.lens[token]).unwrap();
                    assert!(widen(&mut head.clone(), &first, stream, part.length).is_some());
                    let found = decap(format, &head[from..]).unwrap();
                    black_box(OuterHeaders::of(head, &first, found.digest));
                    found.header_len
                } else {
                    0
                };
                let source = &wires.bytes[token][from + skip..wires.lens[token]];
                whole[at..at + source.len()].copy_from_slice(source);
                at += source.len();
            }
            len = at;
        };
        reassembler.offer(0, key, part, i, &mut complete, &mut |error, _| panic!("{error}"));
    }
    len
}

/// Cuts a stream of shares and payload; the number makes other places and shares of each frame.
fn cut_shards(
    frame: &[u8],
    v6: bool,
    path: &Path,
    number: u32,
    scratch: &mut Scratch,
    wires: &mut Wires,
) {
    let pkt = Packet::parse(frame, frame.len()).unwrap();
    let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    let superframe = Superframe { head: frame, pkt: &pkt, kind, mss: MSS, fixed_id: false };
    let (part, rest) = path.parts(&superframe).unwrap();
    assert!(rest.is_none());
    let stamp = Stamp { frame: number, entropy: 0xc123, inner_tos: 0, ip_id: 1 };
    let encoded = path.encode(&Content::Superframe(superframe, part), &stamp, scratch).unwrap();
    let plan = encoded.segmenter().unwrap();
    let (headers, content) = (plan.headers_len(), &frame[pkt.headers_len()..]);
    wires.lens.clear();
    for (i, out) in (0..plan.count()).zip(&mut wires.bytes) {
        let (share, range) = encoded.segment(i);
        let start = headers + share.len();
        let end = start + range.len();
        let mut sum = copy_and_sum(&mut out[start..end], &content[range]);
        if !share.is_empty() {
            out[headers..start].copy_from_slice(share);
            sum = Sum::default().add(share).add_sum(sum);
        }
        plan.emit(encoded.headers(), i, sum, &mut out[..headers]);
        wires.lens.push(end);
    }
}

/// Puts what is delivered into one piece. A token is the place of a packet.
struct Gather<'a> {
    wires: &'a Wires,
    headers: usize,
    whole: &'a mut [u8],
    len: usize,
}

impl Sink<usize> for Gather<'_> {
    fn begin(&mut self, run: &Run<'_>) {
        self.whole[..run.headers.len()].copy_from_slice(run.headers);
        self.len = run.headers.len();
    }

    fn piece(&mut self, token: Held<'_, usize>, bytes: &[std::ops::Range<usize>]) {
        let token = match token {
            Held::Taken(token) => token,
            Held::Shared(token) => *token,
        };
        for range in bytes {
            let from = &self.wires.bytes[token][self.headers + range.start..][..range.len()];
            self.whole[self.len..self.len + from.len()].copy_from_slice(from);
            self.len += from.len();
        }
    }

    fn end(&mut self) {}

    fn spent(&mut self, _: usize) {}

    fn lost(&mut self, error: ShardError, _: usize) {
        panic!("{error}");
    }
}

/// Of frames whose numbers differ, since a repeated one is refused.
fn merge_shards(wires: &Wires, receiver: &mut Receiver<usize>, whole: &mut [u8]) -> usize {
    let keys = Keyring::default();
    let mut gather = Gather { wires, headers: 0, whole, len: 0 };
    for (i, wire) in wires.iter().enumerate() {
        let outer = Packet::parse(wire, wire.len()).unwrap();
        gather.headers = outer.headers_len();
        let slices = [wire];
        let mut pieces = Pieces::new(&slices, outer.headers_len());
        let segment = Segment::verify(wire, &outer, &mut pieces, OuterSum::Complete).unwrap();
        receiver.offer(0, &segment, &mut pieces, i, MAX_WIRE as u32, &keys, &mut gather);
    }
    receiver.flush(&mut gather);
    gather.len
}

fn shards(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>) {
    let format = by_name("shard").unwrap();
    for v6 in [false, true] {
        let family = if v6 { "v6" } else { "v4" };
        let frame = superframe(v6);
        let config = PathConfig {
            max_segment: STREAM_MSS,
            policy: Policy::default(),
            keys: Keyring::default(),
        };
        let path = Path::new(&way(format, v6), config).unwrap();
        let (mut scratch, mut wires, mut number) = (Scratch::default(), Wires::new(), 0u32);
        group.bench_function(format!("cut-shard-{family}"), |b| {
            b.iter(|| {
                number = number.wrapping_add(1);
                cut_shards(black_box(&frame), v6, &path, number, &mut scratch, &mut wires);
            });
        });
        let mut whole = vec![0u8; frame.len() + 64];
        let mut receiver = Receiver::default();
        // A number that was there lately is refused: each frame is cut anew, as others' were, in the cache.
        let wires = RefCell::new(wires);
        let mut next = || {
            number = number.wrapping_add(1);
            let wires = &mut *wires.borrow_mut();
            cut_shards(&frame, v6, &path, number, &mut scratch, wires);
        };
        let mut merge = || merge_shards(&wires.borrow(), &mut receiver, &mut whole);
        next();
        assert_eq!(merge(), frame.len(), "shard {family}: not one superframe");
        group.bench_function(format!("merge-shard-{family}"), |b| {
            b.iter_batched(&mut next, |()| merge(), BatchSize::PerIteration);
        });
        let (_, payload) = inner_offsets(v6);
        let same = whole[payload..frame.len()] == frame[payload..];
        assert!(same, "shard {family}: other bytes");
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    let source = superframe(false);
    let mut target = vec![0u8; source.len()];
    let formats = Formats::default();
    group.bench_function("limit", |b| {
        b.iter(|| copy_and_sum(black_box(&mut target), black_box(&source)));
    });
    for name in ["vxlan", "geneve", "stt"] {
        let format = by_name(name).unwrap();
        for v6 in [false, true] {
            let family = if v6 { "v6" } else { "v4" };
            let frame = superframe(v6);
            let outer = template(format, v6);
            let mut wires = Wires::new();
            group.bench_function(format!("cut-{name}-{family}"), |b| {
                b.iter(|| {
                    if outer.is_stream() {
                        cut_stream(black_box(&frame), &outer, &mut wires);
                    } else {
                        cut_datagrams(black_box(&frame), v6, &outer, &mut wires);
                    }
                });
            });
            cut(format, &frame, v6, &mut wires);
            let mut whole = vec![0u8; frame.len() + 64];
            let mut coalescer = Coalescer::new(CoalesceConfig::default());
            let mut reassembler = Reassembler::new(Default::default());
            let mut merge = || {
                if outer.is_stream() {
                    merge_stream(format, black_box(&wires), &mut reassembler, &mut whole)
                } else {
                    merge_datagrams(&formats, black_box(&wires), &mut coalescer, &mut whole)
                }
            };
            assert_eq!(merge(), frame.len(), "{name} {family}: not one superframe");
            group.bench_function(format!("merge-{name}-{family}"), |b| {
                b.iter_batched(|| (), |()| merge(), BatchSize::SmallInput);
            });
            let (_, payload) = inner_offsets(v6);
            let same = whole[payload..frame.len()] == frame[payload..];
            assert!(same, "{name} {family}: other bytes");
        }
    }
    shards(&mut group);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50);
    targets = engine
}
criterion_main!(benches);
