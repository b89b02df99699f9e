//! Who cuts a superframe: the kernel or a card behind Culvert's packet socket, or Culvert itself.
//!
//! [`compare`] has one tenant send the same superframes both ways and looks at what arrives at the far end of the
//! wire. Everything has to be equal but what `docs/wire-format.md` names: the identification of outer IPv4 headers, the
//! number of an STT frame, and the checksums that cover one of the two. Where a frame's number says which segments carry
//! shares, what arrives is put together and cut again instead, by Culvert's segmenter alone.

use std::time::Duration;

use culvert_wire::Packet;
use culvert_wire::checksum::Sum;
use culvert_wire::segment::{GsoKind, Segmenter};
use culvert_wire::shard::{Placement, ShardHeader};

use crate::craft;
use crate::segment::{self, Segment, flags, timestamps};
use crate::tools::{OffloadSocket, RawSocket, VirtioHeader};
use crate::topology::{TENANT_DEVICE, Topology, WIRE};
use crate::{Peer, TopologySpec, lab, wait_until};

/// Payload of the datagram that is sent behind each superframe: it arrives last, or nearly where there are several
/// queues.
const END: &[u8] = b"here a superframe ends";

/// The port of shards.
const SHARDS: u16 = culvert_wire::shard::PORT;

/// How long a superframe may take, in an emulated guest, too.
const LIMIT: Duration = Duration::from_secs(10);

/// A specification whose far host is bare: it only looks. The wire takes 100 bytes of outer headers.
pub fn spec(mut spec: TopologySpec, format: &'static str) -> TopologySpec {
    spec.peers = [Peer::Culvert, Peer::Bare];
    spec.vnet_toml = match format {
        "vxlan" => "format = \"vxlan\"",
        "geneve" => "format = \"geneve\"",
        "stt" => "format = \"stt\"",
        "shard" => "format = \"shard\"",
        other => panic!("{other}"),
    };
    spec
}

/// What a tenant sends, by a name.
fn superframes(topology: &Topology, ipv6: bool) -> Vec<(&'static str, VirtioHeader, Vec<u8>)> {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    // What fits a packet of the tenants' MTU behind its headers and timestamps.
    let mss = if ipv6 { 1428 } else { 1448 };
    let payload = |len: usize| (0..len).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>();
    let data = |len| Segment::between(a, b, ipv6, 0xffff_f000, payload(len));
    let named = |name, (header, frame)| (name, header, frame);
    let mut list = vec![
        named("63 KB", data(63_000).superframe(mss)),
        named("whole segments", data(20 * usize::from(mss)).superframe(mss)),
        named("one byte more than one segment", data(usize::from(mss) + 1).superframe(mss)),
        named("the least MSS", data(40_000).superframe(536)),
        named("an odd MSS", data(30_001).superframe(mss - 3)),
        named(
            "the last of a connection",
            Segment { flags: flags::ACK | flags::PSH | flags::FIN, ..data(9000) }.superframe(mss),
        ),
        named("ECT and DSCP", Segment { tos: 0x2a, ..data(9000) }.superframe(mss)),
        named("CE", Segment { tos: 0x03, ..data(9000) }.superframe(mss)),
        named("no options", Segment { options: Vec::new(), ..data(9000) }.superframe(mss)),
        named(
            "40 bytes of options",
            Segment { options: [timestamps(1, 2), vec![1; 28]].concat(), ..data(9000) }
                .superframe(mss - 28),
        ),
    ];
    let (mut header, frame) =
        Segment { flags: flags::ACK | flags::CWR, ..data(9000) }.superframe(mss);
    header.gso_type |= VirtioHeader::ECN;
    list.push(named("a reduced window", (header, frame)));
    let mut datagrams = craft::between(a, b, ipv6, 7, &payload(30_000));
    let header = craft::as_udp_superframe(&mut datagrams, ipv6, 1200);
    list.push(named("datagrams", (header, datagrams)));
    list
}

/// Has tenant 0 send superframes of both families, which first the device cuts and then Culvert. Returns how many wire
/// frames were compared. A device that does not `keep_push` clears PSH on all segments of outer TCP; nothing depends on it.
///
/// # Panics
/// At the first byte that differs, at a wrong checksum, and if a superframe is not cut.
#[track_caller]
pub fn compare(topology: &Topology, keep_push: bool) -> usize {
    let tenant = OffloadSocket::open(&topology.tenants[0].ns, TENANT_DEVICE)
        .unwrap_or_else(|e| panic!("the tenant's device: {e}"));
    let wire =
        RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap_or_else(|e| panic!("{WIRE}: {e}"));
    wire.keep(16 << 20).unwrap_or_else(|e| panic!("a receive buffer: {e}"));
    let all: Vec<_> = [false, true].into_iter().flat_map(|v6| superframes(topology, v6)).collect();
    let end = craft::between(&topology.tenants[0], &topology.tenants[1], false, 9, END);
    // The far VTEP's neighbour has to be found first.
    let found = wait_until(LIMIT, || {
        let _ = tenant.send(VirtioHeader::default(), &end);
        collect(&wire, Duration::from_millis(50)).is_some()
    });
    assert!(found, "nothing arrives at the far end of the wire");
    let mut by = [Vec::new(), Vec::new()];
    for (tx, by) in ["packet", "xdp"].into_iter().zip(&mut by) {
        topology.reconfigure(0, |toml| {
            toml.replacen("[underlay]\n", &format!("[underlay]\ntx = \"{tx}\"\n"), 1)
        });
        while collect(&wire, Duration::from_millis(200)).is_some() {}
        for (name, header, frame) in &all {
            let payload = frame.len() - usize::from(header.hdr_len);
            let segments = payload.div_ceil(header.gso_size.into());
            let datagrams = header.gso_type == VirtioHeader::UDP_L4;
            // An emulated card loses what it has no time for.
            let whole = (0..20).find_map(|_| {
                tenant.send(*header, frame).unwrap_or_else(|e| panic!("{name}: {e}"));
                let sent = tenant.send(VirtioHeader::default(), &end);
                sent.unwrap_or_else(|e| panic!("{name}: {e}"));
                let frames = collect(&wire, LIMIT);
                let frames = frames.unwrap_or_else(|| panic!("{name}: its end does not arrive"));
                is_whole(&frames, segments, datagrams).then_some(frames)
            });
            by.push(whole.unwrap_or_else(|| panic!("{name}: never whole")));
        }
    }
    let [device, ours] = by;
    let mut compared = 0;
    for (at, (name, ..)) in all.iter().enumerate() {
        let what = format!("superframe {at}, {name}");
        let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(
            lengths(&device[at]),
            lengths(&ours[at]),
            "{what}: cut by the device, and by us"
        );
        if device[at].iter().all(|frame| is_shards(frame)) {
            compared += compare_shards([&device[at], &ours[at]], keep_push, &what);
            continue;
        }
        let [device, ours] =
            [&device[at], &ours[at]].map(|frames| comparable(frames, keep_push, &what));
        for (n, (theirs, ours)) in device.iter().zip(&ours).enumerate() {
            let differs = theirs.iter().zip(ours).position(|(a, b)| a != b);
            if let Some(byte) = differs {
                let row = |frame: &[u8]| {
                    let from = byte / 16 * 16;
                    frame[from..frame.len().min(from + 16)].to_vec()
                };
                panic!(
                    "{what}: frame {n} differs at byte {byte}:\ndevice {:02x?}\nours   {:02x?}",
                    row(theirs),
                    row(ours)
                );
            }
            compared += 1;
        }
    }
    compared
}

/// What arrives at the far end of the wire of one superframe that tenant 0 sends.
///
/// # Panics
/// If nothing arrives.
#[track_caller]
pub fn arrives(topology: &Topology, header: VirtioHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let tenant = OffloadSocket::open(&topology.tenants[0].ns, TENANT_DEVICE)
        .unwrap_or_else(|e| panic!("the tenant's device: {e}"));
    let wire =
        RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap_or_else(|e| panic!("{WIRE}: {e}"));
    wire.keep(16 << 20).unwrap_or_else(|e| panic!("a receive buffer: {e}"));
    let end = craft::between(&topology.tenants[0], &topology.tenants[1], false, 9, END);
    let mut frames = Vec::new();
    let arrived = wait_until(LIMIT, || {
        let sent =
            tenant.send(header, frame).and_then(|()| tenant.send(VirtioHeader::default(), &end));
        sent.unwrap_or_else(|e| panic!("the tenant cannot send: {e}"));
        frames = collect(&wire, Duration::from_millis(100)).unwrap_or_default();
        !frames.is_empty()
    });
    assert!(arrived, "nothing arrives at the far end of the wire");
    frames
}

/// What comes with a tunnel's port until [`END`] does, and shortly after; none if that does not come in time.
fn collect(wire: &RawSocket, limit: Duration) -> Option<Vec<Vec<u8>>> {
    let tunnelled = |frame: &[u8]| {
        let l4 = outer_l4(frame);
        let port = frame.get(l4 + 2..l4 + 4).map(|p| u16::from_be_bytes([p[0], p[1]]));
        matches!((protocol(frame), port), (17, Some(4789 | 6081)) | (6, Some(7471 | SHARDS)))
    };
    let (mut limit, mut ended) = (limit, false);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = wire.receive_matching(limit, tunnelled) {
        if frame.ends_with(END) {
            ended = true;
            limit = Duration::from_millis(if lab::inside() { 300 } else { 30 });
        } else {
            frames.push(frame);
        }
    }
    ended.then_some(frames)
}

/// Whether frames are all that is made of a superframe: as many as it has segments, or all of the bytes of each stream.
fn is_whole(frames: &[Vec<u8>], segments: usize, datagrams: bool) -> bool {
    if frames.iter().any(|frame| protocol(frame) == 17) {
        return frames.len() == segments;
    }
    let mut streams = std::collections::BTreeMap::<_, (usize, usize)>::new();
    for frame in frames {
        let l4 = outer_l4(frame);
        let stream = streams.entry(frame[l4 + 8..l4 + 12].to_vec()).or_default();
        stream.0 = usize::from(u16::from_be_bytes([frame[l4 + 4], frame[l4 + 5]]));
        stream.1 += frame.len() - l4 - 20;
    }
    // A train of datagrams is one frame of shards.
    let all = if datagrams && !frames.iter().any(|frame| is_shards(frame)) { segments } else { 1 };
    streams.len() == all && streams.values().all(|(length, bytes)| length == bytes)
}

fn is_shards(frame: &[u8]) -> bool {
    let l4 = outer_l4(frame);
    protocol(frame) == 6 && frame.get(l4 + 2..l4 + 4) == Some(&SHARDS.to_be_bytes()[..])
}

/// Both are what our segmenter makes of the whole of it, to the byte but for what `keep_push` is about, and have the
/// same payload.
fn compare_shards(both: [&[Vec<u8>]; 2], keep_push: bool, what: &str) -> usize {
    for frames in both {
        let again = cut_again(frames, what);
        assert_eq!(frames.len(), again.len(), "{what}");
        for (n, (frame, again)) in frames.iter().zip(&again).enumerate() {
            assert!(segment::l4_checksum_is_right(frame), "{what}: frame {n}: outer checksum");
            let [frame, again] = [frame, again].map(|frame| {
                let (mut frame, l4) = (frame.clone(), outer_l4(frame));
                if !keep_push {
                    frame[l4 + 13] &= !flags::PSH;
                    frame[l4 + 16..l4 + 18].fill(0);
                }
                frame
            });
            let differs = frame.iter().zip(&again).position(|(a, b)| a != b);
            assert!(frame == again, "{what}: frame {n} differs at byte {differs:?}");
        }
    }
    let [device, ours] = both.map(without_shares);
    assert!(device == ours, "{what}: payload differs");
    both[0].len()
}

/// Puts the frames of one stream together, and has our segmenter cut it.
fn cut_again(frames: &[Vec<u8>], what: &str) -> Vec<Vec<u8>> {
    let first = &frames[0];
    let (l4, v6) = (outer_l4(first), is_v6(first));
    let headers = l4 + 20;
    let mut whole = first[..headers].to_vec();
    frames.iter().for_each(|frame| whole.extend(&frame[headers..]));
    whole[l4 + 13] |= flags::PSH;
    let mss = u16::from_be_bytes([whole[l4 + 14], whole[l4 + 15]]);
    let len = whole.len() - if v6 { l4 } else { 14 };
    let len = u16::try_from(len).unwrap_or_else(|_| panic!("{what}: {len} bytes")).to_be_bytes();
    let at = if v6 { 18 } else { 16 };
    whole[at..at + 2].copy_from_slice(&len);
    if !v6 {
        whole[24..26].fill(0);
        let sum = Sum::default().add(&whole[14..34]).finish();
        whole[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let pkt = Packet::parse(&whole, whole.len()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
    let plan = Segmenter::new(&whole, &pkt, kind, mss).unwrap_or_else(|e| panic!("{what}: {e}"));
    let cut = |i| {
        let range = plan.payload_range(i);
        let payload = &whole[headers + range.start..headers + range.end];
        let mut frame = vec![0; headers];
        plan.emit(&whole, i, Sum::default().add(payload), &mut frame);
        frame.extend(payload);
        frame
    };
    (0..plan.count()).map(cut).collect()
}

/// The tenant's payload of the frames of one stream.
fn without_shares(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for frame in frames {
        let l4 = outer_l4(frame);
        let header = ShardHeader::read(&frame[l4..]).unwrap_or_else(|e| panic!("{e}"));
        let placement = Placement::new(header.frame, header.shape);
        let i = usize::from(header.offset / header.shape.mss());
        let share = placement.share_of(i).map_or(0, |_| header.shape.share_len());
        payload.extend(&frame[l4 + 20 + share..]);
    }
    payload
}

fn is_v6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

fn outer_l4(frame: &[u8]) -> usize {
    14 + if is_v6(frame) { 40 } else { 20 }
}

fn protocol(frame: &[u8]) -> u8 {
    frame.get(if is_v6(frame) { 20 } else { 23 }).copied().unwrap_or(0)
}

/// The frames of one superframe with all checksums verified, and without what may differ.
fn comparable(frames: &[Vec<u8>], keep_push: bool, what: &str) -> Vec<Vec<u8>> {
    let mut first_id = None;
    let clear = |(n, frame): (usize, &Vec<u8>)| {
        let mut frame = frame.clone();
        let l4 = outer_l4(&frame);
        assert!(segment::l4_checksum_is_right(&frame), "{what}: frame {n}: outer checksum");
        if !is_v6(&frame) {
            assert!(segment::ipv4_checksum_is_right(&frame), "{what}: frame {n}: IPv4 checksum");
            let id = u16::from_be_bytes([frame[18], frame[19]]);
            let expected = first_id.get_or_insert(id).wrapping_add(u16::try_from(n).unwrap_or(0));
            assert_eq!(id, expected, "{what}: frame {n}: identification");
            frame[18..20].fill(0);
            frame[24..26].fill(0);
        }
        if protocol(&frame) == 6 {
            // The frame's number, and the checksum that covers it.
            frame[l4 + 8..l4 + 12].fill(0);
            frame[l4 + 16..l4 + 18].fill(0);
            if !keep_push {
                frame[l4 + 13] &= !flags::PSH;
            }
        }
        frame
    };
    frames.iter().enumerate().map(clear).collect()
}
