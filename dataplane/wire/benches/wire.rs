//! What the hot functions cost, each beside what it is to be judged against: a naive checksum, a
//! plain copy.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_wire::checksum::{Sum, copy_and_sum};
use culvert_wire::coalesce::{Coalescer, OuterKey};
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use culvert_wire::eth::{self, ether_type};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::{GsoKind, Pieces, Segmenter};
use culvert_wire::{MacAddr, Packet, Vni, ipv4, proto, tcp};

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

criterion_group!(benches, checksums, headers, superframes);
criterion_main!(benches);
