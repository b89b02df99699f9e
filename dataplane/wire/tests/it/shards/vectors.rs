//! The test vectors of `docs/shard-format.md` are what this implementation does.

use super::far_end::placement_of;
use super::sending::{path, ring, send};
use crate::forge::{Forge, parse};
use culvert_wire::shard::code::{decode, encode};
use culvert_wire::shard::{Coding, Info, Keyring, Placement, Policy, Shape};
use std::fmt::Write;

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

/// A frame of three segments, from 192.0.2.1 to 192.0.2.2 in network 0x123456.
fn frame(keys: &Keyring) -> String {
    let payload = (0..3000).map(|i| (i % 251) as u8).collect();
    let frame = Forge::tcp(false, payload).frame();
    let path = path(false, 1100, Policy::BySegments, keys.clone());
    let stream = send(&path, &frame, 1000, 0x5eed_0001).remove(0);
    let (header, placement) = placement_of(&stream[0]);
    let share_len = header.shape.share_len();
    let mut text = String::new();
    let mut block = vec![];
    for (i, packet) in stream.iter().enumerate() {
        let pkt = parse(packet);
        let (start, len) = (pkt.headers_len(), packet.len() - pkt.headers_len());
        lines(&format!("header {i}"), &packet[usize::from(pkt.l4)..start], &mut text);
        let behind = if placement.share_of(i).is_some() { share_len } else { 0 };
        let first = packet[start + behind];
        if behind > 0 {
            block = packet[start..start + share_len].to_vec();
            writeln!(text, "          a share of {share_len} bytes").unwrap();
        }
        writeln!(text, "          {} bytes of payload from {first:02x}", len - behind).unwrap();
    }
    let mut whole = vec![0; block.len()];
    assert!(decode(header.shape.coding(), &[(0, &block)], &mut whole));
    lines("block", &whole, &mut text);
    let binding = culvert_wire::shard::Binding {
        src: [192, 0, 2, 1].into(),
        dst: [192, 0, 2, 2].into(),
        frame: header.frame,
        shape: header.shape,
    };
    let info = Info::open(&whole[..header.shape.block_len().into()], &binding, keys).unwrap();
    assert_eq!((info.vni.get(), info.mss), (0x12_3456, 1000));
    text
}

#[test]
fn the_vectors_of_the_documentation_are_what_is_done() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/shard-format.md");
    let docs = std::fs::read_to_string(path).unwrap();
    let vectors = [placements(), shares(), frame(&Keyring::default()), frame(&ring(&[5], 5))];
    for vector in vectors {
        assert!(docs.contains(&vector), "docs/shard-format.md lacks\n{vector}");
    }
}
