//! What the hot functions cost, each beside what it is to be judged against: a naive checksum, a
//! plain copy, a crate that does the same.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_wire::checksum::{Sum, copy_and_sum};
use culvert_wire::coalesce::{Coalescer, OuterKey};
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use culvert_wire::eth::{self, ether_type};
use culvert_wire::format::{STT, VXLAN};
use culvert_wire::segment::{GsoKind, Pieces, Segmenter};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::receive::{Held, OuterSum, Receiver, Run, Segment, ShardError, Sink};
use culvert_wire::shard::{Coding, Key, Keyring, Policy, code};
use culvert_wire::{MacAddr, Packet, Vni, ipv4, proto, tcp};
use reed_solomon_erasure::galois_8::ReedSolomon;

const MSS: u16 = 1448;

fn naive(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0u32, |sum, pair| {
        sum + (u32::from(pair[0]) << 8) + u32::from(*pair.get(1).unwrap_or(&0))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A TCP frame over IPv4 with timestamps; the L4 checksum is left partial.
fn frame(payload_len: usize) -> Vec<u8> {
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
    let ethernet = eth::Repr {
        dst: MacAddr([2, 0, 0, 0, 0, 1]),
        src: MacAddr([2, 0, 0, 0, 0, 2]),
        tags: [None; 2],
        ether_type: ether_type::IPV4,
    };
    let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let ip = ipv4::Repr::new(src, dst, proto::TCP, (32 + payload_len) as u16);
    let mut frame = vec![0x5a; 66 + payload_len];
    ethernet.emit(&mut frame);
    ip.emit(&mut frame[14..]);
    tcp.emit(&mut frame[34..]);
    frame
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1448, 65_000] {
        let data = vec![0x5au8; len];
        let mut out = vec![0u8; len];
        group.throughput(Throughput::Bytes(len as u64));
        group
            .bench_function(BenchmarkId::new("naive", len), |b| b.iter(|| naive(black_box(&data))));
        group.bench_function(BenchmarkId::new("sum", len), |b| {
            b.iter(|| Sum::default().add(black_box(&data)).fold());
        });
        group.bench_function(BenchmarkId::new("copy", len), |b| {
            b.iter(|| out.copy_from_slice(black_box(&data)));
        });
        group.bench_function(BenchmarkId::new("copy, then sum", len), |b| {
            b.iter(|| {
                out.copy_from_slice(black_box(&data));
                Sum::default().add(&out).fold()
            });
        });
        group.bench_function(BenchmarkId::new("copy_and_sum", len), |b| {
            b.iter(|| copy_and_sum(&mut out, black_box(&data)).fold());
        });
    }
}

fn headers(c: &mut Criterion) {
    let frame = frame(usize::from(MSS));
    c.bench_function("parse", |b| b.iter(|| Packet::parse(black_box(&frame), frame.len())));
    for (name, src, dst) in [("v4", "192.0.2.1", "192.0.2.2"), ("v6", "2001:db8::1", "2001:db8::2")]
    {
        let template = EncapTemplate::new(&EncapSpec {
            src_mac: MacAddr([2, 0, 0, 0, 1, 1]),
            dst_mac: MacAddr([2, 0, 0, 0, 1, 2]),
            vlan: None,
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            ttl: 64,
            format: &VXLAN,
            mss_option: false,
            vni: Vni::MIN,
            df: true,
            dscp: DscpMode::Inherit,
        })
        .unwrap();
        let mut out = [0u8; 96];
        let inner = Sum::default().add(&frame);
        for (kind, csum) in [("zero", OuterChecksum::Zero), ("full", OuterChecksum::Full { inner })]
        {
            c.bench_function(&format!("encap {name} {kind}"), |b| {
                b.iter(|| {
                    template.emit(&mut out, &OuterFrame::new(frame.len(), black_box(7), 0, 9, csum))
                });
            });
        }
    }
}

fn superframes(c: &mut Criterion) {
    let len = 44 * usize::from(MSS);
    let frame = frame(len);
    let pkt = Packet::parse(&frame, frame.len()).unwrap();
    let slices: Vec<&[u8]> = frame.chunks(3584).collect();
    let mut group = c.benchmark_group("superframe");
    group.throughput(Throughput::Bytes(len as u64));
    let mut out = vec![0u8; 2048];
    let plan = Segmenter::new(&frame, &pkt, GsoKind::TcpV4, MSS).unwrap();
    group.bench_function("segment, headers only", |b| {
        b.iter(|| {
            for i in 0..plan.count() {
                plan.emit(black_box(&frame), i, Sum::default(), &mut out);
                black_box(plan.segment_sum(&out));
            }
        });
    });
    group.bench_function("segment with payload", |b| {
        b.iter(|| {
            let mut pieces = Pieces::new(&slices, plan.headers_len());
            for i in 0..plan.count() {
                let (headers, payload) = out.split_at_mut(plan.headers_len());
                let sum = pieces.copy_range_and_sum(plan.payload_range(i), payload).unwrap();
                plan.emit(black_box(&frame), i, sum, headers);
                black_box(plan.segment_sum(headers));
            }
        });
    });
    let segments: Vec<Vec<u8>> = (0..plan.count())
        .map(|i| {
            let mut segment = vec![0u8; plan.headers_len() + usize::from(MSS)];
            plan.emit(&frame, i, Sum::default(), &mut segment);
            segment
        })
        .collect();
    let packets: Vec<_> = segments.iter().map(|s| Packet::parse(s, s.len()).unwrap()).collect();
    let mut coalescer = Coalescer::default();
    group.bench_function("coalesce 44 segments", |b| {
        b.iter(|| {
            let mut superframes = 0;
            let mut sink = |_: culvert_wire::coalesce::Merged<'_, u32>| superframes += 1;
            for (segment, pkt) in segments.iter().zip(&packets) {
                let outer = OuterKey::default();
                let _ = coalescer.offer(black_box(segment), pkt, outer, 0u32, &mut sink);
            }
            coalescer.flush_all(&mut sink);
            assert_eq!(superframes, 1);
        });
    });
}

/// Takes what is delivered and does nothing with it.
#[derive(Default)]
struct Delivered {
    bytes: usize,
}

impl Sink<u32> for Delivered {
    fn begin(&mut self, run: &Run<'_>) {
        self.bytes += run.payload.len();
    }
    fn piece(&mut self, token: Held<'_, u32>, ranges: &[std::ops::Range<usize>]) {
        black_box((token, ranges));
    }
    fn end(&mut self) {}
    fn spent(&mut self, _: u32) {}
    fn lost(&mut self, error: ShardError, _: u32) {
        panic!("{error}");
    }
}

/// The shard format for a frame of 64 KB beside what an outer header alone costs.
fn shards(c: &mut Criterion) {
    let len = 45 * usize::from(MSS);
    let frame = frame(len);
    let pkt = Packet::parse(&frame, frame.len()).unwrap();
    let spec = |format| EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        dst_mac: MacAddr([2, 0, 0, 0, 1, 2]),
        vlan: None,
        src: [192, 0, 2, 1].into(),
        dst: [192, 0, 2, 2].into(),
        ttl: 64,
        format,
        mss_option: false,
        vni: Vni::MIN,
        df: true,
        dscp: DscpMode::Inherit,
    };
    let mut group = c.benchmark_group("shard, 64 KB");
    group.throughput(Throughput::Bytes(len as u64));
    let template = EncapTemplate::new(&spec(&STT)).unwrap();
    let mut out = [0u8; 128];
    group.bench_function("outer header of stt", |b| {
        let frame = OuterFrame::new(65_400, black_box(7), 0, 9, OuterChecksum::Partial);
        b.iter(|| template.emit(&mut out, &frame));
    });
    let mut scratch = Scratch::default();
    let superframe =
        Superframe { head: &frame, pkt: &pkt, kind: GsoKind::TcpV4, mss: MSS, fixed_id: false };
    let content = Content::Superframe(superframe, 0..len);
    let key = Key::new(&[7; 16]).unwrap();
    let keyed = Keyring::new([(1, key)], 1).unwrap();
    for (name, keys) in [("encode", Keyring::default()), ("encode with a MAC", keyed)] {
        let config = PathConfig { max_segment: 1460, policy: Policy::default(), keys };
        let path = Path::new(&spec(&STT), config).unwrap();
        group.bench_function(name, |b| {
            let mut number = 0u32;
            b.iter(|| {
                number = number.wrapping_add(1);
                let stamp = Stamp { frame: number, entropy: 7, inner_tos: 0, ip_id: 9 };
                black_box(path.encode(black_box(&content), &stamp, &mut scratch)).is_ok()
            });
        });
    }
    let keys = Keyring::default();
    let config = PathConfig { max_segment: 1460, policy: Policy::default(), keys: keys.clone() };
    let path = Path::new(&spec(&STT), config).unwrap();
    let payload = &frame[pkt.headers_len()..];
    // Frames of many numbers, so that no frame is taken for a repetition.
    let frames: Vec<Vec<(Segment, Vec<u8>)>> = (0..256)
        .map(|number| {
            let stamp = Stamp { frame: number, entropy: 7, inner_tos: 0, ip_id: 9 };
            let encoded = path.encode(&content, &stamp, &mut scratch).unwrap();
            let plan = encoded.segmenter().unwrap();
            (0..plan.count())
                .map(|i| {
                    let (share, range) = encoded.segment(i);
                    let bytes = [share, &payload[range]].concat();
                    let mut packet = vec![0; plan.headers_len()];
                    plan.emit(encoded.headers(), i, Sum::default().add(&bytes), &mut packet);
                    packet.extend(&bytes);
                    let pkt = Packet::parse(&packet, packet.len()).unwrap();
                    let slices = [&bytes[..]];
                    let mut pieces = Pieces::new(&slices, 0);
                    let sum = OuterSum::Complete;
                    (Segment::verify(&packet, &pkt, &mut pieces, sum).unwrap(), bytes)
                })
                .collect()
        })
        .collect();
    // One segment of eleven is lost, of those that carry no share of the first four strata.
    for (name, lost) in [("receive 45 segments, verified before", 0), ("receive 41 of them", 11)] {
        let mut receiver = Receiver::default();
        let mut sink = Delivered::default();
        let (mut number, mut now) = (0, 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                number = (number + 1) % frames.len();
                now += 200;
                for (i, (segment, bytes)) in frames[number].iter().enumerate() {
                    if lost > 0 && i % lost == 10 {
                        continue;
                    }
                    let slices = [&bytes[..]];
                    let mut payload = Pieces::new(&slices, 0);
                    receiver.offer(now, segment, &mut payload, i as u32, 2048, &keys, &mut sink);
                }
                receiver.flush(&mut sink);
                assert!(sink.bytes > 0);
            });
        });
    }
}

/// The shares of a block beside those of the crate, which makes its matrix before and keeps the inverted one.
fn codes(c: &mut Criterion) {
    const SHARE_LEN: usize = 20;
    let coding = Coding::new(4, 8).unwrap();
    let codec = ReedSolomon::new(4, 4).unwrap();
    let mut shares: Vec<u8> = (0..8 * SHARE_LEN).map(|i| i as u8).collect();
    code::encode(coding, SHARE_LEN, &mut shares);
    let pieces: Vec<[u8; SHARE_LEN]> = shares.as_chunks::<SHARE_LEN>().0.to_vec();
    let mut group = c.benchmark_group("shard, block of 80 bytes");
    group.throughput(Throughput::Bytes(4 * SHARE_LEN as u64));
    group.bench_function("encode 4 of 8", |b| {
        b.iter(|| code::encode(coding, SHARE_LEN, black_box(&mut shares)));
    });
    let data = &pieces[..4];
    let mut others = [[0u8; SHARE_LEN]; 4];
    group.bench_function("encode 4 of 8, reed-solomon-erasure", |b| {
        b.iter(|| codec.encode_sep(black_box(data), black_box(&mut others[..])).unwrap());
    });
    let known: Vec<(u8, &[u8])> = (4..8u8).map(|i| (i, &pieces[usize::from(i)][..])).collect();
    let mut block = [0u8; 4 * SHARE_LEN];
    group.bench_function("rebuild of the last 4", |b| {
        b.iter(|| assert!(code::decode(coding, black_box(&known), black_box(&mut block[..]))));
    });
    let mut slots: Vec<_> = pieces.iter().enumerate().map(|(i, piece)| (*piece, i >= 4)).collect();
    group.bench_function("rebuild of the last 4, reed-solomon-erasure", |b| {
        b.iter(|| codec.reconstruct_data(black_box(&mut slots[..])).unwrap());
    });
}

criterion_group!(benches, checksums, headers, superframes, shards, codes);
criterion_main!(benches);
