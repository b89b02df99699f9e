//! What each fuzz target does with its bytes. The targets run these under libFuzzer; the crate's
//! tests run the same over the kept corpus, truncations and random bytes.

use culvert_wire::bpf::{Instruction, Program};
use culvert_wire::checksum::Sum;
use culvert_wire::coalesce::{CoalesceConfig, Coalescer, Merged, OuterKey};
use culvert_wire::format::{Formats, VXLAN, decap};
use culvert_wire::fragment::Fragmenter;
use culvert_wire::path_mtu::Reading;
use culvert_wire::segment::{GsoKind, Segmenter};
use culvert_wire::{
    MacAddr, Packet, arp, dhcpv4, dhcpv6, ecn, eth, icmpv4, icmpv6, ipv4, ipv6, path_mtu, reply,
    router, tcp, udp, vxlan,
};
use std::net::{Ipv4Addr, Ipv6Addr};

mod flows;
mod formats;
mod pairs;
mod shards;

/// Descriptors of formats.
pub fn descriptors(data: &[u8]) {
    formats::descriptors(data);
}

/// Tunnel headers of every built-in format.
pub fn tunnel_headers(data: &[u8]) {
    formats::tunnel_headers(data);
}

/// Streams of segments, with time.
pub fn reassembler(data: &[u8]) {
    formats::reassembler(data);
}

/// A coalescer under flows that go on and stumble, batch after batch.
pub fn coalescer_flows(data: &[u8]) {
    flows::coalescer(data);
}

/// A receiver of the shard format under frames, losses, damage, lies and time.
pub fn shards(data: &[u8]) {
    shards::shards(data);
}

/// Hosts that speak the shard format, keys, blocks that are asked for, and somebody between them.
pub fn shard_pairs(data: &[u8]) {
    pairs::pairs(data);
}

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[
    ("packet_parse", packet_parse),
    ("headers", headers),
    ("vxlan_decap", vxlan_decap),
    ("tcp_options", tcp_options),
    ("segmenter", segmenter),
    ("fragmenter", fragmenter),
    ("coalescer", coalescer),
    ("coalescer_flows", coalescer_flows),
    ("replies", replies),
    ("filters", filters),
    ("configuration", configuration),
    ("descriptors", descriptors),
    ("tunnel_headers", tunnel_headers),
    ("reassembler", reassembler),
    ("shards", shards),
    ("shard_pairs", shard_pairs),
];

/// Whatever a client asks, the answer is whole or there is none.
pub fn configuration(data: &[u8]) {
    let mut out = [0; 1472];
    let v4 = [Ipv4Addr::new(10, 0, 0, 1); 8];
    if let Some(request) = dhcpv4::Request::parse(data) {
        let routes = [(Ipv4Addr::new(192, 168, 0, 0), 16, v4[0]); 16];
        let config = dhcpv4::Config {
            prefix_len: data.first().copied().unwrap_or(0),
            router: Some(v4[0]),
            dns: &v4,
            ntp: &v4,
            domain: Some("a-domain-of-some-length.example.internal"),
            hostname: Some("host"),
            mtu: 1500,
            routes: &routes,
        };
        let said = dhcpv4::Reply {
            kind: dhcpv4::Kind::Ack,
            yiaddr: v4[0],
            server: v4[1],
            lease_s: Some(u32::MAX),
            config: Some(config),
        };
        let len = said.emit(&request, &mut out).expect("room for the least");
        assert!((300..=request.max_len).contains(&len));
        assert!(out[..len].contains(&255));
        let _ = said.emit(&request, &mut out[..data.len() % 300]);
    }
    let v6 = [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1); 8];
    if let Some(request) = dhcpv6::Request::parse(data) {
        let said = dhcpv6::Reply {
            advertise: data.len().is_multiple_of(2),
            server: &dhcpv6::server_duid(MacAddr([2; 6])),
            status: Some(dhcpv6::Status::Success),
            addresses: Some(&v6),
            lease_s: u32::MAX,
            dns: &v6,
            ntp: &v6,
            domain: Some("example.internal"),
        };
        let len = said.emit(&request, &mut out).expect("room for all");
        assert_eq!(out[1..4], data[1..4]);
        let _ = said.emit(&request, &mut out[..data.len() % len]);
    }
    if let Ok(pkt) = Packet::parse(data, data.len()) {
        let _ = router::solicitor(data, &pkt);
    }
}

/// A parsed descriptor keeps its promises, whole and with a short head.
pub fn packet_parse(data: &[u8]) {
    for head in [data, &data[..data.len() / 2]] {
        let Ok(pkt) = Packet::parse(head, data.len()) else { continue };
        assert!(pkt.l3 >= 14 && pkt.l3 <= pkt.l4 && pkt.l4 <= pkt.payload);
        assert!(usize::from(pkt.payload) <= head.len());
        assert!(u32::from(pkt.payload) <= pkt.len && pkt.len <= pkt.frame_len);
        assert_eq!(pkt.is_ip(), pkt.src_ip(head).is_some() && pkt.dst_ip(head).is_some());
        let ported = pkt.is_tcp() || pkt.is_udp();
        assert_eq!(ported, pkt.src_port(head).is_some() && pkt.dst_port(head).is_some());
        // What the whole frame says, the head says too.
        assert_eq!(Packet::parse(data, data.len()), Ok(pkt));
    }
    // And a frame that claims to go on in further buffers.
    if let Ok(pkt) = Packet::parse(data, 70_000) {
        assert!(usize::from(pkt.payload) <= data.len());
    }
}

/// Every view takes what it is given, and its values come out again.
pub fn headers(data: &[u8]) {
    let mut out = [0u8; 128];
    if let Ok(view) = eth::View::new(data) {
        let repr = view.repr();
        assert_eq!(view.payload().len() + repr.len(), data.len());
        assert_eq!(repr.emit(&mut out), Some(repr.len()));
        assert_eq!(&out[..repr.len()], &data[..repr.len()]);
    }
    if let Ok(repr) = arp::Repr::parse(data) {
        assert_eq!(repr.emit(&mut out), Some(arp::LEN));
        assert_eq!(&out[..arp::LEN], &data[..arp::LEN]);
    }
    if let Ok(view) = ipv4::View::new(data) {
        let len = view.repr().emit(&mut out).expect("a checked header");
        // Checksum and the reserved flag are made anew.
        assert_eq!(&out[..6], &data[..6]);
        assert_eq!(&out[12..len], &data[12..len]);
    }
    if let Ok(view) = ipv6::View::new(data) {
        if let Ok(upper) = view.upper() {
            assert!(upper.offset <= view.payload().len());
        }
        view.repr().emit(&mut out);
        assert_eq!(&out[..40], &data[..40]);
    }
    if let Ok(repr) = udp::Repr::parse(data) {
        repr.emit(&mut out);
        assert_eq!(&out[..8], &data[..8]);
    }
    if let Ok(view) = tcp::View::new(data) {
        let len = view.repr().emit(&mut out).expect("a checked header");
        assert_eq!(&out[..12], &data[..12]);
        assert_eq!(&out[13..len], &data[13..len]);
        tcp_options(view.options());
    }
    let _ = icmpv4::Repr::parse(data);
    if let Ok(view) = icmpv6::View::new(data) {
        let _ = (view.target(), view.link_option(1), view.link_option(2));
    }
    let _ = vxlan::Repr::parse(data);
    quotations(data);
}

/// The bytes as what an ICMP error quotes, in an error whose checksum is right.
fn quotations(quoted: &[u8]) {
    let quoted = &quoted[..quoted.len().min(1000)];
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::LOCALHOST);
    let mut message = vec![0; quoted.len() + 64];
    let repr = icmpv4::Repr { kind: 3, code: 4, rest: 1400 };
    let v4_len = repr.emit(quoted, &mut message).expect("room for it");
    let v4_message = message[..v4_len].to_vec();
    let repr = icmpv6::Repr { kind: 2, code: 0, rest: 1400 };
    let v6_len = repr.emit(&v6, &v6, quoted, &mut message).expect("room for it");
    let mut headers = vec![2; 12];
    headers.extend([8, 0, 0x45, 0]);
    headers.extend((v4_len as u16 + 20).to_be_bytes());
    headers.extend([0, 0, 0, 0, 64, 1, 0, 0]);
    headers.extend(v4.octets());
    headers.extend(v4.octets());
    let sum = Sum::default().add(&headers[14..34]).finish();
    headers[24..26].copy_from_slice(&sum.to_be_bytes());
    let v4_frame = [&headers[..], &v4_message].concat();
    let mut headers = vec![2; 12];
    headers.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    headers.extend((v6_len as u16).to_be_bytes());
    headers.extend([58, 64]);
    headers.extend(v6.octets());
    headers.extend(v6.octets());
    let v6_frame = [&headers[..], &message[..v6_len]].concat();
    for frame in [v4_frame, v6_frame] {
        let pkt = Packet::parse(&frame, frame.len()).expect("headers that are right");
        match path_mtu::read(&Formats::default(), &frame[usize::from(pkt.l4)..], &frame, &pkt) {
            Reading::NotAReport => panic!("it is one"),
            Reading::Foreign => {}
            Reading::OfTunnel(report) => {
                assert_eq!(report.mtu, 1400);
                assert_eq!(report.source.is_ipv4(), report.vtep.is_ipv4());
                // Only what quotes all of the tunnel's header names a network.
                let least = if report.vtep.is_ipv4() { 36 } else { 56 };
                assert!(report.vni.is_none() || quoted.len() >= least);
            }
        }
    }
}

/// The format's decapsulation agrees with the header's view.
pub fn vxlan_decap(data: &[u8]) {
    if let Ok(found) = decap(&VXLAN, data) {
        let view = vxlan::View::new(data).expect("decapsulated");
        assert_eq!(view.repr().vni, found.vni.get());
        assert_eq!(view.payload(), &data[found.header_len..]);
        assert!(view.payload().len() >= eth::HEADER_LEN);
    }
}

/// Options end, and stay inside.
pub fn tcp_options(data: &[u8]) {
    assert!(tcp::Options::new(data).count() <= data.len());
}

/// Segments cover the payload once and in order.
pub fn segmenter(data: &[u8]) {
    let Some((&mss, frame)) = data.split_first_chunk() else { return };
    let Ok(pkt) = Packet::parse(frame, frame.len()) else { return };
    let Some(kind) = GsoKind::of(&pkt) else { return };
    let Ok(plan) = Segmenter::new(frame, &pkt, kind, u16::from_be_bytes(mss)) else { return };
    let (mut end, mut out) = (0, [0u8; 512]);
    for i in 0..plan.count() {
        let range = plan.payload_range(i);
        assert_eq!(range.start, end);
        end = range.end;
        let sum = Sum::default().add(&frame[plan.headers_len()..][range.clone()]);
        assert_eq!(plan.emit(frame, i, sum, &mut out), plan.headers_len());
        let mut segment = out[..plan.headers_len()].to_vec();
        segment.extend(&frame[plan.headers_len()..][range]);
        Packet::parse(&segment, segment.len()).expect("a segment that parses");
    }
    assert_eq!(end, pkt.payload_len());
}

/// Fragments cover the payload once and in order.
pub fn fragmenter(data: &[u8]) {
    let Some((&mtu, frame)) = data.split_first_chunk() else { return };
    let Ok(pkt) = Packet::parse(frame, frame.len()) else { return };
    let mtu = usize::from(u16::from_be_bytes(mtu));
    let Ok(plan) = Fragmenter::new(frame, &pkt, mtu) else { return };
    let (mut end, mut out) = (0, [0u8; 128]);
    for i in 0..plan.count() {
        let range = plan.payload_range(i);
        assert_eq!(range.start, end);
        end = range.end;
        let len = plan.emit(frame, i, &mut out);
        assert!(len > 0 && len - usize::from(pkt.l3) + range.len() <= mtu);
    }
    assert_eq!(plan.payload_offset() + end, pkt.len as usize);
}

/// Frames, each behind two bytes of length, through a coalescer of two slots: none is lost, doubled
/// or reordered within its flow.
pub fn coalescer(mut data: &[u8]) {
    let config = CoalesceConfig { flows: 2, max_segs: 4, udp: true, ..Default::default() };
    let mut coalescer = Coalescer::new(config);
    let (mut offered, mut flows, mut out) = (0, vec![], vec![]);
    while let Some((&len, rest)) = data.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes(len)).min(rest.len());
        let (frame, rest) = rest.split_at(len);
        data = rest;
        let Ok(pkt) = Packet::parse(frame, frame.len()) else { continue };
        let ends = (pkt.src_ip(frame), pkt.dst_ip(frame));
        flows.push((pkt.flow_hash, ends, pkt.src_port(frame), pkt.dst_port(frame)));
        let mut sink = |m: Merged<'_, usize>| collect(m, &mut out);
        let key = OuterKey::default();
        let passed = coalescer.offer(frame, &pkt, key, offered, &mut sink);
        out.extend(passed);
        offered += 1;
    }
    coalescer.flush_all(&mut |m| collect(m, &mut out));
    for (i, a) in out.iter().enumerate() {
        for b in &out[i + 1..] {
            assert!(a < b || flows[*a] != flows[*b], "reordered within a flow");
        }
    }
    out.sort_unstable();
    assert_eq!(out, (0..offered).collect::<Vec<_>>());
}

fn collect(merged: Merged<'_, usize>, out: &mut Vec<usize>) {
    assert_eq!(usize::from(merged.segs), merged.tokens.len());
    assert!(merged.packet.l3_len() <= 0xffff);
    out.extend(merged.tokens.map(|held| held.token));
}

/// Answers fit their buffer, parse, and are never answered by an error themselves.
pub fn replies(data: &[u8]) {
    let Ok(mut pkt) = Packet::parse(data, data.len()) else { return };
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    let mut out = [0u8; reply::MAX_LEN];
    let (v4, v6) = (Ipv4Addr::new(10, 0, 0, 1), Ipv6Addr::LOCALHOST);
    let errors = |out: &mut [u8], data: &[u8], pkt: &Packet| {
        reply::icmpv4_frag_needed(out, data, pkt, 1400, v4)
            .or_else(|| reply::icmpv6_packet_too_big(out, data, pkt, 1400, v6))
    };
    let answers = [
        reply::arp_reply(&mut out, data, &pkt, mac),
        reply::neighbour_advertisement(&mut out, data, &pkt, mac, true),
        errors(&mut out, data, &pkt),
    ];
    if let Some(len) = answers[2] {
        let answer = out[..len].to_vec();
        let parsed = Packet::parse(&answer, len).expect("an answer that parses");
        assert_eq!(errors(&mut out, &answer, &parsed), None);
    }
    let mut copy = data.to_vec();
    ecn::set(&mut copy, &mut pkt, ecn::CE);
    assert_eq!(Packet::parse(&copy, copy.len()), Ok(pkt));
}

/// A count, so many instructions of eight bytes, and a packet. A filter that is taken comes to its
/// end on every packet, and says the same twice.
pub fn filters(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let len = (usize::from(count) * 8).min(rest.len() / 8 * 8);
    let (program, packet) = rest.split_at(len);
    let (chunks, _) = program.as_chunks::<8>();
    let instructions: Vec<_> = chunks
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
            code: u16::from_be_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_be_bytes([k0, k1, k2, k3]),
        })
        .collect();
    let Ok(program) = Program::new(&instructions) else { return };
    assert_eq!(program.matches(packet), program.matches(packet));
    for len in 0..packet.len().min(64) {
        program.matches(&packet[..len]);
    }
}
