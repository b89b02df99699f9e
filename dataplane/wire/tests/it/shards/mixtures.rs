//! Frames, damage and lies from several senders at once: what comes out is always what went in.

use super::far_end::{FarEnd, fix_tcp, placement_of};
use super::receiving::Dice;
use super::sending::{ends, ring, segments, stamp};
use crate::forge::{DST_MAC, Forge, SRC_MAC, parse};
use culvert_wire::Vni;
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Superframe};
use culvert_wire::shard::receive::ReceiveConfig;
use culvert_wire::shard::{Key, Keyring, Policy};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Frames that lie, of a run in CI. `CULVERT_SHARD_FRAMES` asks for another number.
const FRAMES: u32 = 10_000;

/// What may be wrong with a frame.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lie {
    /// Segments bear another number.
    Number,
    /// Segments come from another VTEP.
    Sender,
    /// Segments have another source port.
    Port,
    /// Shares were damaged.
    DamagedShares,
    /// Shares are those of other frames, of any network.
    ForeignShares,
    /// All shares are those of one other frame.
    ForeignBlock,
    /// Headers state another code.
    Code,
    /// Headers state a block of another length.
    Block,
    /// The block is sealed with a key that the receiver does not have, or with another one of that number.
    Key,
}

const LIES: [Lie; 9] = [
    Lie::Number,
    Lie::Sender,
    Lie::Port,
    Lie::DamagedShares,
    Lie::ForeignShares,
    Lie::ForeignBlock,
    Lie::Code,
    Lie::Block,
    Lie::Key,
];

/// Bytes of payload. The four frames in a row that bear one number differ in them, and so in their cuts.
const LENGTHS: [usize; 4] = [600, 1800, 4000, 6000];

/// Frames after which the sender seals with its other key.
const EPOCH: u32 = 300;

/// Bytes that say of which frame they are, and where in it.
fn content(uid: u32, range: Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(range.len() + 16);
    for word in range.start / 8..range.end.div_ceil(8) {
        bytes.extend(Dice::new(u64::from(uid) << 32 | word as u64).next().to_be_bytes());
    }
    bytes.drain(..range.start % 8);
    bytes.truncate(range.len());
    bytes
}

const fn vni_of(uid: u32) -> u32 {
    1 + uid % 3
}

/// The ways into three networks.
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

/// One sender, its keys, and the shares of its last frames.
struct Sender {
    /// Those of each key that the receiver has, taken in turns.
    epochs: Vec<Vec<Path>>,
    /// Those of keys that it has not.
    wrong: Vec<Vec<Path>>,
    shares: VecDeque<Vec<Vec<u8>>>,
}

impl Sender {
    /// One frame as packets, and the lie that changed them, if one did.
    fn packets(&mut self, uid: u32, dice: &mut Dice) -> (Vec<Vec<u8>>, Option<Lie>) {
        let lie = Some(LIES[dice.below(LIES.len())]).filter(|_| dice.percent(50));
        let epochs = if lie == Some(Lie::Key) { &self.wrong } else { &self.epochs };
        let paths = &epochs[(uid / EPOCH) as usize % epochs.len()];
        // A number is used four times at once, and again by the frames after the next few thousand.
        let group = uid / 4;
        let len = LENGTHS[(uid + group) as usize % LENGTHS.len()];
        let frame = Forge { seq: 0, ack: uid, ..Forge::tcp(false, content(uid, 0..len)) }.frame();
        let pkt = parse(&frame);
        let superframe =
            Superframe { head: &frame, pkt: &pkt, kind: GsoKind::TcpV4, mss: 536, fixed_id: false };
        let path = &paths[(vni_of(uid) - 1) as usize];
        let mut scratch = Scratch::default();
        let stamp = stamp(0x5eed_0000 | (group % 1024));
        let content = Content::Superframe(superframe, 0..len);
        let encoded = path.encode(&content, &stamp, &mut scratch).unwrap();
        let honest = segments(&encoded, &frame[pkt.headers_len()..]);
        let (_, placement) = placement_of(&honest[0]);
        let share_len = placement.shape().share_len();
        let shares = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            placement.carriers().map(|i| packets[i][54..54 + share_len].to_vec()).collect()
        };
        let alike = |others: &&Vec<Vec<u8>>| others[0].len() == share_len;
        let others: Vec<_> = self.shares.iter().filter(alike).collect();
        let same = others.iter().filter(|o| o.len() == usize::from(placement.shape().coding().n()));
        let same: Vec<_> = same.collect();
        let block = dice.below(same.len());
        // All of its segments, or some: then there are two frames that contradict each other.
        let all = dice.percent(50);
        let relabel = dice.next();
        let mut packets = honest.clone();
        for (i, packet) in packets.iter_mut().enumerate() {
            let share = placement.share_of(i);
            let some = all || dice.percent(50);
            match (lie, share) {
                (Some(Lie::Number), _) if some => {
                    packet[42..46].iter_mut().zip(relabel.to_be_bytes()).for_each(|(b, x)| *b ^= x);
                }
                (Some(Lie::Sender), _) if some => {
                    packet[29] ^= 4;
                    packet[24..26].fill(0);
                    let sum = Sum::default().add(&packet[14..34]).finish();
                    packet[24..26].copy_from_slice(&sum.to_be_bytes());
                }
                (Some(Lie::Port), _) if some => packet[35] ^= 1,
                (Some(Lie::DamagedShares), Some(_)) if some => {
                    packet[54 + dice.below(share_len)] ^= dice.next() as u8;
                }
                (Some(Lie::ForeignShares), Some(_)) if some && !others.is_empty() => {
                    let other = others[dice.below(others.len())];
                    packet[54..54 + share_len].copy_from_slice(&other[dice.below(other.len())]);
                }
                (Some(Lie::ForeignBlock), Some(share)) if !same.is_empty() => {
                    packet[54..54 + share_len].copy_from_slice(&same[block][share]);
                }
                (Some(Lie::Code), _) if some => packet[52] ^= 1 << (relabel % 6),
                (Some(Lie::Block), _) if some => packet[53] ^= 1 << (relabel % 7),
                _ => {}
            }
            fix_tcp(packet);
        }
        let lie = lie.filter(|lie| *lie == Lie::Key || packets != honest);
        if lie.is_none() {
            self.shares.push_back(shares(&honest));
            self.shares.drain(..self.shares.len().saturating_sub(24));
        }
        for packet in &mut packets {
            // On the way, where nobody makes the checksum right again.
            if dice.percent(1) {
                let at = 34 + dice.below(packet.len() - 34);
                packet[at] ^= 1 << dice.below(8);
            }
        }
        (packets, lie)
    }
}

/// What a run saw.
#[derive(Debug, Default)]
struct Seen {
    frames: u32,
    lies: BTreeMap<Lie, u32>,
    runs: usize,
    bytes: usize,
    opened: u64,
}

impl Seen {
    fn adversarial(&self) -> u32 {
        self.lies.values().sum()
    }
}

/// Sends until so many frames have lied.
fn run(epochs: &[Keyring], wrong: &[Keyring], known: &Keyring, seed: u64, lies: u32) -> Seen {
    let mut sender = Sender {
        epochs: epochs.iter().map(paths).collect(),
        wrong: wrong.iter().map(paths).collect(),
        shares: VecDeque::new(),
    };
    let mut dice = Dice::new(seed);
    let config = ReceiveConfig { frames: 128, frames_per_peer: 96, ..Default::default() };
    let mut far = FarEnd::new(config, known.clone());
    let mut air: Vec<Vec<u8>> = vec![];
    let mut seen = Seen::default();
    // Of the last few thousand frames, those whose block no key of the receiver opens.
    let mut sealed = VecDeque::new();
    while seen.adversarial() < lies {
        let uid = seen.frames;
        seen.frames += 1;
        let (packets, lie) = sender.packets(uid, &mut dice);
        if let Some(lie) = lie {
            *seen.lies.entry(lie).or_default() += 1;
            if lie == Lie::Key {
                sealed.push_back(uid);
                sealed.drain(..sealed.len().saturating_sub(1000));
            }
        }
        for packet in packets {
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
        far.out.lost.clear();
        for run in far.out.runs.drain(..) {
            let pkt = parse(&run.bytes);
            let tcp = &run.bytes[usize::from(pkt.l4)..];
            let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            let (offset, uid) = (number(4) as usize, number(8));
            assert_eq!(run.vni, vni_of(uid), "delivered to another network");
            assert!(!sealed.contains(&uid), "frame {uid} was opened by no key");
            let want = content(uid, offset..offset + run.content().len());
            assert!(run.content() == want, "other bytes of frame {uid} at {offset}");
            seen.runs += 1;
            seen.bytes += want.len();
        }
    }
    far.flush();
    far.out.runs.clear();
    far.close();
    let stats = far.receiver.stats();
    seen.opened = stats.whole + stats.rebuilt;
    seen
}

#[test]
fn no_mixture_of_frames_and_lies_delivers_other_bytes() {
    let lies = std::env::var("CULVERT_SHARD_FRAMES")
        .ok()
        .map_or(FRAMES, |text| text.parse().expect("CULVERT_SHARD_FRAMES is a number"));
    let same_number = Key::new(&[9; 16]).unwrap();
    let same_number = Keyring::new([(4, same_number)], 4).unwrap();
    let [three, four, both] = [ring(&[3], 3), ring(&[4], 4), ring(&[4, 5], 5)];
    let plain = Keyring::default();
    // The sender changes its key with frames of either on their way.
    let epochs = [four, ring(&[5], 5)].to_vec();
    let wrong = [three.clone(), plain.clone(), same_number].to_vec();
    let runs = [(vec![plain.clone()], vec![three], plain), (epochs, wrong, both)];
    for (seed, (epochs, wrong, known)) in runs.into_iter().enumerate() {
        let seen = run(&epochs, &wrong, &known, seed as u64, lies / 2);
        let Seen { frames, runs, bytes, opened, .. } = seen;
        let keys = if known.is_keyed() { "with keys" } else { "without keys" };
        println!(
            "{keys}: {frames} frames, of which {} lied, {opened} opened; {runs} runs, {bytes} bytes \
             delivered, none wrong, none to another network",
            seen.adversarial()
        );
        println!("{:?}", seen.lies);
        assert_eq!(seen.lies.len(), LIES.len(), "a lie that none of them told");
        let honest = u64::from(frames - seen.adversarial());
        assert!(opened > honest * 9 / 10, "{opened} opened of {honest} honest ones");
    }
}
