//! A coalescer in use: flows that go on, stumble and differ, in two networks, batch after batch, while time moves.

use super::formats::Numbers;
use culvert_wire::coalesce::{CoalesceConfig, Coalescer, Merged, OuterHeaders, OuterKey};
use culvert_wire::segment::{GsoKind, Segmenter};
use culvert_wire::{MacAddr, Packet, checksum::Sum, eth, ipv4, ipv6, proto, tcp};
use std::net::{Ipv4Addr, Ipv6Addr};

const FLOWS: usize = 8;

/// One sender's state.
#[derive(Copy, Clone, Default)]
struct Sender {
    seq: u32,
    id: u16,
}

/// A frame as it was offered.
struct Offered {
    flow: usize,
    frame: Vec<u8>,
}

/// Segments of some flows, each of which goes on where the one before ended unless a byte says otherwise. What
/// comes out is what went in, in the order of its flow, of one flow and network, and cut again it is the same bytes.
pub(crate) fn coalescer(data: &[u8]) {
    let mut n = Numbers(data);
    let flows = usize::from(n.next() % 4) + 1;
    let config = CoalesceConfig { flows, max_segs: 6, max_len: 4000, udp: true };
    let mut coalescer = Coalescer::new(config);
    // How long a frame may wait for the next of its flow; by what the clock shows, it leaves at the latest.
    let hold = u64::from(n.next());
    let mut now = 0;
    let mut due: Vec<u64> = Vec::new();
    let mut senders = [Sender::default(); FLOWS];
    let mut offered: Vec<Offered> = Vec::new();
    let mut out: Vec<usize> = Vec::new();
    while !n.0.is_empty() {
        let flow = usize::from(n.next()) % FLOWS;
        let what = n.next();
        if what >= 0xfc && hold > 0 {
            // Time has passed, and a batch ends: what waited long enough leaves, with all of its flow.
            now += u64::from(n.next());
            let is_due = |token: &usize| due[*token] <= now;
            coalescer.flush_if(is_due, &mut |merged| {
                check(merged, &offered, &mut out, config.max_segs);
            });
            let mut held = vec![true; offered.len()];
            out.iter().for_each(|token| held[*token] = false);
            assert!(held.iter().zip(&due).all(|(held, due)| !held || *due > now), "held too long");
            continue;
        }
        if what >= 0xf8 {
            // A batch ends, and nothing outlives it.
            coalescer.flush_all(&mut |merged| check(merged, &offered, &mut out, config.max_segs));
            assert_eq!(coalescer.held_flows(), 0);
            continue;
        }
        let frame = next_frame(&mut senders[flow], flow, what, &mut n);
        let pkt = Packet::parse(&frame, frame.len()).expect("a frame of ours");
        // Flows 4 to 7 are those of the first four in another network.
        let headers = OuterHeaders { digest: u32::from(what == 0xf0), ..Default::default() };
        let key = OuterKey { flow: (flow / 4) as u64, headers };
        let token = offered.len();
        offered.push(Offered { flow, frame });
        due.push(now + hold);
        let head = &offered[token].frame[..];
        let mut sink = |merged: Merged<'_, usize>| {
            check(merged, &offered, &mut out, config.max_segs);
        };
        if what == 0xf1 {
            coalescer.flush_flow(head, &pkt, key, &mut sink);
        }
        let passed = coalescer.offer(head, &pkt, key, token, &mut sink);
        out.extend(passed);
        assert!(coalescer.held_flows() <= config.flows);
    }
    coalescer.flush_all(&mut |merged| check(merged, &offered, &mut out, config.max_segs));
    for flow in 0..FLOWS {
        let of_flow = |token: &&usize| offered[**token].flow == flow;
        assert!(out.iter().filter(of_flow).is_sorted(), "reordered within a flow");
    }
    out.sort_unstable();
    assert!(out.into_iter().eq(0..offered.len()), "a frame lost or doubled");
}

/// The next segment of a flow; odd flows are IPv6, flows 2, 3, 6 and 7 UDP.
fn next_frame(sender: &mut Sender, flow: usize, what: u8, n: &mut Numbers<'_>) -> Vec<u8> {
    let (v6, udp) = (flow % 2 == 1, flow % 4 >= 2);
    let len = usize::from(n.next() % 8) * 100;
    let (mut seq, mut id, mut ttl, mut tos, mut flags) =
        (sender.seq, sender.id, 64, 0, tcp::flags::ACK);
    let (mut ack, mut window, mut options, mut df, mut padding) = (1, 500, 0, true, 0);
    match what {
        0x80..0x90 => seq = seq.wrapping_add(u32::from(n.next())),
        0x90..0xa0 => id = id.wrapping_add(n.next().into()),
        0xa0..0xa8 => ttl = n.next() | 1,
        0xa8..0xb0 => tos = n.next(),
        0xb0..0xc0 => flags = n.next(),
        0xc0..0xc8 => ack = n.next().into(),
        0xc8..0xd0 => window = n.next().into(),
        0xd0..0xd8 => options = usize::from(n.next() % 11) * 4,
        0xd8..0xe0 => df = false,
        0xe0..0xe8 => padding = usize::from(n.next() % 8),
        _ => {}
    }
    sender.seq = seq.wrapping_add(len as u32);
    sender.id = id.wrapping_add(1);
    let l4_len = if udp { 8 } else { tcp::HEADER_LEN + options } + len;
    let mut frame = vec![0; 200];
    let ethernet = eth::Repr {
        dst: MacAddr([2; 6]),
        src: MacAddr([2, 0, 0, 0, 0, 1]),
        tags: [None, None],
        ether_type: if v6 { eth::ether_type::IPV6 } else { eth::ether_type::IPV4 },
    };
    let l3 = ethernet.emit(&mut frame).expect("room");
    let kind = if udp { proto::UDP } else { proto::TCP };
    let l4 = l3
        + if v6 {
            let ends = [1, 2].map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
            let mut ip = ipv6::Repr::new(ends[0], ends[1], kind, l4_len as u16);
            (ip.hop_limit, ip.traffic_class, ip.flow_label) = (ttl, tos, flow as u32 % 4);
            ip.emit(&mut frame[l3..])
        } else {
            let ends = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last));
            let mut ip = ipv4::Repr::new(ends[0], ends[1], kind, l4_len as u16);
            (ip.ttl, ip.tos, ip.id, ip.df) = (ttl, tos, id, df);
            ip.emit(&mut frame[l3..])
        }
        .expect("room");
    let port = (flow % 4) as u16;
    let end = l4 + l4_len - len;
    if udp {
        frame[l4..l4 + 4].copy_from_slice(&[port.to_be_bytes(), [0, 9]].concat());
        frame[l4 + 4..l4 + 6].copy_from_slice(&(l4_len as u16).to_be_bytes());
        // Not zero: there is a checksum.
        frame[l4 + 6] = 1;
    } else {
        let segment = tcp::Repr {
            src_port: port,
            dst_port: 9,
            seq,
            ack,
            flags,
            window,
            checksum: 0,
            urgent: 0,
            options: [1; 40],
            options_len: options as u8,
        };
        segment.emit(&mut frame[l4..]).expect("room");
    }
    frame.truncate(end);
    frame.extend((0..len).map(|i| (i as u8).wrapping_add(seq as u8)));
    // The plan to cut what is one segment completes its sums.
    let pkt = Packet::parse(&frame, frame.len()).expect("a frame of ours");
    let kind = GsoKind::of(&pkt).expect("TCP or UDP");
    let plan = Segmenter::new(&frame, &pkt, kind, u16::MAX).expect("one segment");
    let mut headers = vec![0; plan.headers_len()];
    plan.emit(&frame, 0, Sum::default().add(&frame[end..]), &mut headers);
    // What is said of the last segment is said of this one, too.
    frame[..end].copy_from_slice(&headers);
    frame.resize(frame.len() + padding, 0);
    frame
}

/// Cut again, what was merged is what was offered.
fn check(merged: Merged<'_, usize>, offered: &[Offered], out: &mut Vec<usize>, max_segs: usize) {
    let segs = usize::from(merged.segs);
    assert!(segs == merged.tokens.len() && segs <= max_segs);
    let (packet, kind, mss) = (merged.packet, merged.kind, merged.gso_size);
    let (mut whole, fixed_id) = (merged.headers.to_vec(), merged.fixed_id);
    let mut members = Vec::new();
    for held in merged.tokens {
        let frame = &offered[held.token].frame;
        let from = usize::from(held.payload_offset);
        whole.extend(&frame[from..from + usize::from(held.payload_len)]);
        members.push(held.token);
    }
    out.extend(&members);
    if segs == 1 {
        return;
    }
    assert!(members.is_sorted());
    assert!(members.iter().all(|token| offered[*token].flow == offered[members[0]].flow));
    assert_eq!(whole.len(), packet.len as usize);
    assert!(whole.len() - usize::from(packet.l3) <= 4000);
    let plan = Segmenter::new(&whole, &packet, kind, mss).expect("a superframe can be cut");
    let plan = if fixed_id { plan.with_fixed_id() } else { plan };
    assert_eq!(plan.count(), segs);
    for (i, token) in members.iter().enumerate() {
        let range = plan.payload_range(i);
        let payload = &whole[plan.headers_len() + range.start..plan.headers_len() + range.end];
        let mut frame = vec![0; plan.headers_len()];
        plan.emit(&whole, i, Sum::default().add(payload), &mut frame);
        frame.extend(payload);
        assert!(frame == offered[*token].frame, "segment {i} of {segs} is not what was offered");
    }
}
