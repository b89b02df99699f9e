//! Input that lies: no parser panics, and none believes more than the bytes hold.

use crate::forge::{Forge, any_forge, noise, parse};
use crate::replies::{arp_request, solicitation};
use culvert_wire::{Frag, Packet, ParseError, ipv6, proto};
use proptest::prelude::*;
use std::path::Path;

#[expect(unreachable_pub, reason = "the file is the fuzz crate's library as well")]
#[path = "../../fuzz/src/lib.rs"]
mod bodies;

fn run_all(data: &[u8]) {
    for (_, body) in bodies::ALL {
        body(data);
    }
}

fn samples() -> Vec<Vec<u8>> {
    let mut frames = vec![arp_request(), solicitation(crate::forge::SRC6)];
    for v6 in [false, true] {
        for tags in 0..=2 {
            frames.push(Forge { tags, ..Forge::tcp(v6, noise(40, 1)) }.frame());
            frames.push(Forge { tags, ..Forge::udp(v6, noise(40, 1)) }.frame());
        }
        frames.push(extended(&[proto::HOP_BY_HOP, proto::DESTINATION, proto::AUTHENTICATION]));
        frames.push(extended(&[proto::ROUTING, proto::FRAGMENT]));
    }
    frames
}

/// A UDP packet over IPv6 behind extension headers of 8 bytes each.
fn extended(chain: &[u8]) -> Vec<u8> {
    let plain = Forge::udp(true, noise(16, 1)).frame();
    let mut frame = plain[..54].to_vec();
    frame[20] = chain[0];
    for (i, _) in chain.iter().enumerate() {
        let next = chain.get(i + 1).copied().unwrap_or(proto::UDP);
        frame.extend([next, 0, 0, 0, 0, 0, 0, 0]);
    }
    frame.extend(&plain[54..]);
    let len = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame
}

#[test]
fn a_frame_cut_at_any_byte_is_refused_or_still_whole() {
    for frame in samples() {
        run_all(&frame);
        let whole = parse(&frame);
        for len in 0..frame.len() {
            run_all(&frame[..len]);
            let cut = Packet::parse(&frame[..len], len);
            if whole.is_ip() {
                assert!(cut.is_err(), "{len} of {}", frame.len());
            }
            // The same bytes as the first buffer of the whole frame.
            match Packet::parse(&frame[..len], frame.len()) {
                Ok(pkt) => assert_eq!(pkt, whole),
                Err(e) => assert_eq!(e, ParseError::HeadersTooLong, "{len}"),
            }
        }
    }
}

#[test]
fn every_byte_of_every_header_may_lie() {
    for frame in samples() {
        for at in 0..frame.len() {
            for value in [0, 1, 0x0f, 0x40, 0x45, 0x7f, 0x80, 0xf0, 0xff] {
                let mut bad = frame.clone();
                bad[at] = value;
                run_all(&bad);
            }
        }
    }
}

#[test]
fn the_kept_corpus_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, body) in bodies::ALL {
        let files = std::fs::read_dir(root.join(name))
            .unwrap_or_else(|e| panic!("no corpus for {name}: {e}"));
        let mut count = 0;
        for file in files {
            body(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        run_all(&data);
    }

    #[test]
    fn random_damage_to_good_frames_never_panics(
        forges in prop::collection::vec(any_forge(300), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        mss in any::<u16>(),
    ) {
        let mut stream = vec![];
        for forge in forges {
            let mut frame = forge.frame();
            for (at, value) in &damage {
                let at = at.index(frame.len());
                frame[at] = *value;
            }
            run_all(&frame);
            let mut with_mss = mss.to_be_bytes().to_vec();
            with_mss.extend(&frame);
            bodies::segmenter(&with_mss);
            bodies::fragmenter(&with_mss);
            stream.extend((frame.len() as u16).to_be_bytes());
            stream.extend(frame);
        }
        bodies::coalescer(&stream);
    }
}

fn error(frame: &[u8]) -> Option<ParseError> {
    Packet::parse(frame, frame.len()).err()
}

#[test]
fn lengths_that_lie_are_refused_by_name() {
    let v4 = Forge::tcp(false, noise(40, 1)).frame();
    let with = |at: usize, value: u8, fix: bool| {
        let mut frame = v4.clone();
        frame[at] = value;
        if fix {
            frame[24..26].fill(0);
            let len = usize::from(frame[14] & 15) * 4;
            let sum = culvert_wire::checksum::Sum::default().add(&frame[14..14 + len]).finish();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        error(&frame)
    };
    assert_eq!(with(14, 0x65, true), Some(ParseError::BadIpVersion));
    assert_eq!(with(14, 0x44, false), Some(ParseError::BadIpHeaderLength));
    assert_eq!(with(16, 0x40, true), Some(ParseError::BadIpTotalLength));
    assert_eq!(with(17, 19, true), Some(ParseError::BadIpTotalLength));
    assert_eq!(with(18, 0xee, false), Some(ParseError::BadIpv4Checksum));
    assert_eq!(with(46, 0x40, false), Some(ParseError::BadTcpHeaderLength));
    let mut cut = v4.clone();
    cut[17] = 40;
    cut[46] = 0xf0;
    cut[24..26].fill(0);
    let sum = culvert_wire::checksum::Sum::default().add(&cut[14..34]).finish();
    cut[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(error(&cut), Some(ParseError::BadTcpHeaderLength));
    let mut udp = Forge::udp(true, noise(40, 1)).frame();
    udp[59] = 7;
    assert_eq!(error(&udp), Some(ParseError::BadUdpLength));
    udp[59] = 49;
    assert_eq!(error(&udp), Some(ParseError::BadUdpLength));
    udp[14] = 0x45;
    assert_eq!(error(&udp), Some(ParseError::BadIpVersion));
}

#[test]
fn big_tcp_without_a_length_is_refused() {
    for v6 in [false, true] {
        let mut frame = Forge::tcp(v6, noise(1000, 1)).frame();
        let at = if v6 { 18 } else { 16 };
        frame[at..at + 2].fill(0);
        let refused = Packet::parse(&frame, 100_000);
        assert_eq!(refused, Err(ParseError::BadIpTotalLength));
    }
}

#[test]
fn long_chains_of_extension_headers_are_refused() {
    assert_eq!(error(&extended(&[proto::DESTINATION; 8])), None);
    assert_eq!(error(&extended(&[proto::DESTINATION; 9])), Some(ParseError::ExtensionHeaderChain));
    let mut long = extended(&[proto::DESTINATION; 2]);
    long[55] = 40;
    assert_eq!(error(&long), Some(ParseError::ExtensionHeaderChain));
    long[55] = 20;
    assert_eq!(error(&long), Some(ParseError::Truncated));
}

#[test]
fn vlan_stacks_and_fragments_are_told() {
    let mut frame = Forge { tags: 2, ..Forge::tcp(false, noise(40, 1)) }.frame();
    assert_eq!(parse(&frame).vlan, Some(0x2005));
    frame.splice(12..12, [0x81, 0, 0, 1]);
    assert_eq!(error(&frame), Some(ParseError::VlanStack));
    let mut v6 = extended(&[proto::FRAGMENT]);
    assert_eq!(parse(&v6).frag, Frag::None, "an atomic fragment is none");
    v6[57] = 1;
    assert_eq!(parse(&v6).frag, Frag::First);
    v6[57] = 8;
    let later = parse(&v6);
    assert_eq!((later.frag, later.src_port(&v6)), (Frag::Later, None));
    assert_eq!(usize::from(later.payload), 14 + ipv6::HEADER_LEN + 8);
}

#[test]
fn padding_is_not_part_of_the_packet() {
    let mut frame = Forge::udp(false, noise(2, 1)).frame();
    let len = frame.len();
    frame.resize(60, 0xee);
    let pkt = parse(&frame);
    assert_eq!((pkt.len as usize, pkt.frame_len, pkt.payload_len()), (len, 60, 2));
}

#[test]
fn flows_that_differ_have_different_hashes() {
    let hash = |forge: &Forge| parse(&forge.frame()).flow_hash;
    for v6 in [false, true] {
        let base = Forge::tcp(v6, noise(10, 1));
        let mut hashes = std::collections::BTreeSet::from([hash(&base)]);
        for tags in 1..=2 {
            assert!(hashes.insert(hash(&Forge { tags, ..base.clone() })));
        }
        assert!(hashes.insert(hash(&Forge::udp(v6, noise(10, 1)))));
        for port in 0..1000 {
            assert!(hashes.insert(hash(&Forge { src_port: port, ..base.clone() })));
        }
        let later = Forge { seq: 5, ack: 6, payload: noise(99, 2), ..base.clone() };
        assert_eq!(hash(&later), hash(&base));
    }
}
