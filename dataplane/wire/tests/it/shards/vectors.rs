//! The test vectors of `docs/shard-format.md` are what this implementation does.

use super::far_end::placement_of;
use super::repair::way;
use super::sending::{ends, path, ring, segments, send, stamp};
use crate::forge::{DST4, Forge, SRC_MAC, SRC4, parse};
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::code::{decode, encode};
use culvert_wire::shard::encode::{Content, Scratch, Superframe};
use culvert_wire::shard::repair::{MAX_MESSAGE_LEN, answer, request};
use culvert_wire::shard::{Binding, Coding, Info, Keyring, Placement, Policy, Shape};
use std::fmt::Write;

const NUMBER: u32 = 0x5eed_0001;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn lines(name: &str, bytes: &[u8], text: &mut String) {
    for (i, line) in bytes.chunks(32).enumerate() {
        let name = if i == 0 { name } else { "" };
        writeln!(text, "{name:<10}{}", hex(line)).unwrap();
    }
}

fn placements() -> String {
    let mut text = String::new();
    for (length, mss, k, n) in [(65_320, 1452, 4, 8), (11_480, 1435, 2, 4), (2900, 1450, 1, 2)] {
        let shape = Shape::new(length, mss, Coding::new(k, n).unwrap(), 80).unwrap();
        for frame in [0, 1, 0x5eed_0001, u32::MAX] {
            let carriers: Vec<_> =
                Placement::new(frame, shape).carriers().map(|i| i.to_string()).collect();
            let segments = shape.segments();
            writeln!(text, "N {segments:>2}, n {n}, frame {frame:08x}: {}", carriers.join(" "))
                .unwrap();
        }
    }
    text
}

fn shares() -> String {
    let mut text = String::new();
    let coding = Coding::new(3, 6).unwrap();
    let mut all: Vec<u8> = (0..12).map(|i| i * 21).chain([0; 12]).collect();
    encode(coding, 4, &mut all);
    for (i, share) in all.chunks(4).enumerate() {
        writeln!(text, "share {i}: {}", hex(share)).unwrap();
    }
    text
}

/// A stream as it is on the wire, from one end to the other, and what its shares give.
fn stream(packets: &[Vec<u8>], v6: bool, keys: &Keyring, text: &mut String) -> Vec<u8> {
    let (header, placement) = placement_of(&packets[0]);
    let (coding, share_len) = (header.shape.coding(), header.shape.share_len());
    let mut shares = vec![];
    for (i, packet) in packets.iter().enumerate() {
        let pkt = parse(packet);
        let (start, len) = (pkt.headers_len(), packet.len() - pkt.headers_len());
        lines(&format!("header {i}"), &packet[usize::from(pkt.l4)..start], text);
        let behind = if placement.share_of(i).is_some() { share_len } else { 0 };
        if let Some(number) = placement.share_of(i) {
            let share = &packet[start..start + share_len];
            shares.push((number as u8, share));
            if coding.k() > 1 {
                lines(&format!("  share {number}"), share, text);
            } else {
                writeln!(text, "          a share of {share_len} bytes").unwrap();
            }
        }
        if let Some(first) = packet.get(start + behind) {
            writeln!(text, "          {} bytes of payload from {first:02x}", len - behind).unwrap();
        }
    }
    let mut whole = vec![0; usize::from(coding.k()) * share_len];
    // The last of them, so that what is interpolated is what was cut.
    assert!(decode(coding, &shares[shares.len() - usize::from(coding.k())..], &mut whole));
    let (block, padding) = whole.split_at(header.shape.block_len().into());
    assert!(padding.iter().all(|byte| *byte == 0));
    lines("block", block, text);
    let (src, dst) = ends(v6);
    let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
    let binding = Binding { src, dst, frame: header.frame, shape: header.shape };
    let info = Info::open(block, &binding, keys).unwrap();
    assert_eq!(info.vni.get(), 0x12_3456);
    block.to_vec()
}

fn counting(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// A frame of three segments, from 192.0.2.1 to 192.0.2.2 in network 0x123456.
fn frame(keys: &Keyring) -> String {
    let frame = Forge::tcp(false, counting(3000)).frame();
    let path = path(false, 1100, Policy::BySegments, keys.clone());
    let mut text = String::new();
    stream(&send(&path, &frame, 1000, NUMBER).remove(0), false, keys, &mut text);
    text
}

/// The same payload with any three of five shares, whose block does not fill them.
fn padded() -> String {
    let frame = Forge::tcp(false, counting(3000)).frame();
    let coding = Coding::new(3, 5).unwrap();
    let path = path(false, 700, Policy::Fixed(coding), Keyring::default());
    let mut text = String::new();
    let packets = send(&path, &frame, 1000, NUMBER).remove(0);
    let block = stream(&packets, false, &Keyring::default(), &mut text);
    assert_eq!((packets.len(), block.len() % 3), (5, 2));
    text
}

/// Datagrams over IPv6, with a MAC.
fn datagrams() -> String {
    let keys = ring(&[5], 5);
    let forge = Forge { options: vec![], ..Forge::udp(true, counting(2500)) };
    let path = path(true, 1100, Policy::BySegments, keys.clone());
    let mut text = String::new();
    stream(&send(&path, &forge.frame(), 1000, NUMBER).remove(0), true, &keys, &mut text);
    text
}

/// An ARP request, which is not cut: all of it behind the outer IP header.
fn whole() -> String {
    let mut frame = [[0xff; 6], SRC_MAC.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([&SRC_MAC.0[..], &SRC4.octets(), &[0; 6], &DST4.octets()].concat());
    let path = path(false, 1460, Policy::BySegments, Keyring::default());
    let mut scratch = Scratch::default();
    let content = Content::Frame { len: frame.len(), partial: false };
    let encoded = path.encode(&content, &stamp(NUMBER), &mut scratch).unwrap();
    let packet = segments(&encoded, &frame).remove(0);
    let mut text = String::new();
    lines("header", &packet[34..54], &mut text);
    lines("block", &packet[54..66], &mut text);
    lines("frame", &packet[66..], &mut text);
    text
}

/// A request for the block of [`frame`], and its answer, behind the outer IP header.
fn messages(keys: &Keyring) -> String {
    let frame = Forge::tcp(false, counting(3000)).frame();
    let path = path(false, 1100, Policy::BySegments, keys.clone());
    let pkt = parse(&frame);
    let kind = GsoKind::of(&pkt).unwrap();
    let superframe = Superframe { head: &frame, pkt: &pkt, kind, mss: 1000, fixed_id: false };
    let mut scratch = Scratch::default();
    let content = Content::Superframe(superframe, 0..3000);
    let encoded = path.encode(&content, &stamp(NUMBER), &mut scratch).unwrap();
    let key = encoded.key().unwrap();
    let mut out = [0; MAX_MESSAGE_LEN];
    let mut text = String::new();
    let len = request(&way(false, true), keys, &key, 1000, &mut out).unwrap();
    lines("header", &out[34..54], &mut text);
    lines("request", &out[54..len], &mut text);
    let len = answer(&way(false, false), &key, encoded.block(), 1000, &mut out).unwrap();
    lines("header", &out[34..54], &mut text);
    lines("answer", &out[54..len], &mut text);
    text
}

#[test]
fn the_vectors_of_the_documentation_are_what_is_done() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/shard-format.md");
    let docs = std::fs::read_to_string(path).unwrap();
    let (plain, keyed) = (Keyring::default(), ring(&[5], 5));
    let frames = [frame(&plain), frame(&keyed), padded(), datagrams(), whole()];
    let vectors = [placements(), shares(), messages(&plain), messages(&keyed)];
    let lacking: Vec<_> =
        frames.into_iter().chain(vectors).filter(|vector| !docs.contains(vector)).collect();
    assert!(lacking.is_empty(), "docs/shard-format.md lacks\n{}", lacking.join("\n"));
}
