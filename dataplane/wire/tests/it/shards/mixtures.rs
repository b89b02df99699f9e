//! Frames, damage and lies from several senders at once: what comes out is always what went in.

use super::far_end::{FarEnd, fix_tcp, placement_of};
use super::receiving::Dice;
use super::sending::{ends, stamp};
use crate::forge::{DST_MAC, Forge, SRC_MAC, parse};
use culvert_wire::Vni;
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Superframe};
use culvert_wire::shard::receive::ReceiveConfig;
use culvert_wire::shard::{Keyring, Policy};

/// Frames of a run in CI. `CULVERT_SHARD_FRAMES` asks for another number.
const FRAMES: u32 = 20_000;

/// Bytes that say of which frame they are, and where in it.
fn content(uid: u32, range: std::ops::Range<usize>) -> impl Iterator<Item = u8> {
    range.map(move |at| {
        let word = Dice::new(u64::from(uid) << 32 | (at as u64 / 8)).next();
        word.to_be_bytes()[at % 8]
    })
}

const fn vni_of(uid: u32) -> u32 {
    1 + uid % 3
}

fn paths(keys: &Keyring) -> Vec<Path> {
    let (src, dst) = ends(false);
    (1..=3)
        .map(|vni| {
            let spec = EncapSpec {
                src_mac: SRC_MAC,
                dst_mac: DST_MAC,
                vlan: None,
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                ttl: 64,
                format: &VXLAN,
                mss_option: false,
                vni: Vni::new(vni).unwrap(),
                df: true,
                dscp: DscpMode::Inherit,
            };
            let keys = keys.clone();
            let config = PathConfig { max_segment: 700, policy: Policy::default(), keys };
            Path::new(&spec, config).unwrap()
        })
        .collect()
}

/// One frame as packets, damaged in one way or another.
fn packets(paths: &[Path], uid: u32, dice: &mut Dice, shares: &mut Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    // Few lengths, so that frames of one cut meet often.
    let len = [600, 1800, 4000, 6000][dice.below(4)];
    let payload: Vec<u8> = content(uid, 0..len).collect();
    let frame = Forge { seq: 0, ack: uid, ..Forge::tcp(false, payload) }.frame();
    let pkt = parse(&frame);
    let superframe =
        Superframe { head: &frame, pkt: &pkt, kind: GsoKind::TcpV4, mss: 536, fixed_id: false };
    let path = &paths[(vni_of(uid) - 1) as usize];
    let mut scratch = Scratch::default();
    // A number is used again by the frame after the next few thousand.
    let stamp = stamp(0x5eed_0000 | (uid % 4096));
    let content = Content::Superframe(superframe, 0..len);
    let encoded = path.encode(&content, &stamp, &mut scratch).unwrap();
    let mut packets = super::sending::segments(&encoded, &frame[pkt.headers_len()..]);
    let (_, placement) = placement_of(&packets[0]);
    let share_len = placement.shape().share_len();
    let relabel = dice.next();
    let lie = dice.below(24);
    for (i, packet) in packets.iter_mut().enumerate() {
        let carries = placement.share_of(i).is_some();
        match lie {
            // The whole frame under another number.
            0 => packet[42..46].iter_mut().zip(relabel.to_be_bytes()).for_each(|(b, x)| *b ^= x),
            // From another VTEP.
            1 => {
                packet[29] ^= 4;
                packet[24..26].fill(0);
                let sum = Sum::default().add(&packet[14..34]).finish();
                packet[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            // Another source port.
            2 => packet[35] ^= 1,
            // Damaged shares whose outer checksum is right.
            3 if carries && dice.percent(60) => {
                packet[54 + dice.below(share_len)] ^= dice.next() as u8;
            }
            // Shares of other frames of the same length.
            4 if carries && dice.percent(60) => {
                let others = shares.iter().filter(|share| share.len() == share_len);
                let others: Vec<_> = others.collect();
                if !others.is_empty() {
                    packet[54..54 + share_len].copy_from_slice(others[dice.below(others.len())]);
                }
            }
            // Another code or another block length for all of it.
            5 => packet[52] ^= 1 << (relabel % 6),
            6 => packet[53] ^= 1 << (relabel % 7),
            _ => {}
        }
        fix_tcp(packet);
        if carries && lie > 6 {
            shares.push(packet[54..54 + share_len].to_vec());
        }
        // On the way, where nobody makes the checksum right again.
        if dice.percent(1) {
            let at = 34 + dice.below(packet.len() - 34);
            packet[at] ^= 1 << dice.below(8);
        }
    }
    let excess = shares.len().saturating_sub(64);
    shares.drain(..excess);
    packets
}

fn run(keys: &Keyring, seed: u64, frames: u32) -> (usize, u64) {
    let paths = paths(keys);
    let mut dice = Dice::new(seed);
    let config = ReceiveConfig { frames: 128, frames_per_peer: 96, ..Default::default() };
    let mut far = FarEnd::new(config, keys.clone());
    let mut air: Vec<Vec<u8>> = vec![];
    let mut shares = vec![];
    let mut runs = 0;
    for uid in 0..frames {
        for packet in packets(&paths, uid, &mut dice, &mut shares) {
            if dice.percent(2) {
                air.push(packet.clone());
            }
            if !dice.percent(4) {
                air.push(packet);
            }
        }
        // Some dozens of packets are on their way at any time, and overtake each other.
        while air.len() > 40 {
            let at = dice.below(air.len().min(60));
            let packet = air.swap_remove(at);
            // A header that does not parse is refused before.
            if culvert_wire::Packet::parse(&packet, packet.len()).is_ok() {
                let _ = far.offer(&packet);
            }
            if dice.percent(10) {
                far.flush();
            }
        }
        far.expire(dice.next() % 1500);
        for run in far.out.runs.drain(..) {
            runs += 1;
            let pkt = parse(&run.bytes);
            let tcp = &run.bytes[usize::from(pkt.l4)..];
            let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            let (offset, uid) = (number(4) as usize, number(8));
            assert_eq!(run.vni, vni_of(uid), "delivered to another network");
            let want: Vec<u8> = content(uid, offset..offset + run.content().len()).collect();
            assert!(run.content() == want, "other bytes of frame {uid} at {offset}");
        }
    }
    far.flush();
    far.out.runs.clear();
    far.close();
    let stats = far.receiver.stats();
    (runs, stats.whole + stats.rebuilt)
}

#[test]
fn no_mixture_of_frames_and_lies_delivers_other_bytes() {
    let frames = std::env::var("CULVERT_SHARD_FRAMES")
        .ok()
        .map_or(FRAMES, |text| text.parse().expect("CULVERT_SHARD_FRAMES is a number"));
    let keys = [Keyring::default(), super::sending::ring(&[4], 4)];
    for (seed, keys) in keys.iter().enumerate() {
        let (runs, opened) = run(keys, seed as u64, frames / 2);
        println!("{} frames: {opened} opened, {runs} runs delivered, none wrong", frames / 2);
        assert!(opened > u64::from(frames / 4), "most of them are honest");
    }
}
