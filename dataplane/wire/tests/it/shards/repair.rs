//! Blocks that are asked for: by whom, how often, and what lies change.

use super::coding::any_policy;
use super::far_end::{FarEnd, fix_tcp, placement_of};
use super::receiving::Dice;
use super::sending::{ends, path, ring, segments, stamp};
use crate::forge::{DST_MAC, Forge, SRC_MAC, noise, parse, verify};
use culvert_wire::Vni;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::format::VXLAN;
use culvert_wire::segment::{GsoKind, Pieces};
use culvert_wire::shard::encode::{Content, Scratch, Superframe};
use culvert_wire::shard::receive::{FrameKey, OuterSum, ReceiveConfig, RepairError};
use culvert_wire::shard::repair::{
    Blocks, MAX_MESSAGE_LEN, Message, MessageFault, NoBlock, answer, request,
};
use culvert_wire::shard::{BlockFault, Coding, Keyring, Policy};
use proptest::prelude::*;

const ASK_AFTER: u64 = 2_000;

fn config() -> ReceiveConfig {
    ReceiveConfig { ask_after_us: Some(ASK_AFTER), ..ReceiveConfig::default() }
}

/// The way from the first end to the second, or back.
pub(crate) fn way(v6: bool, back: bool) -> EncapSpec<'static> {
    let (src, dst) = ends(v6);
    let (src, dst) = if back { (dst, src) } else { (src, dst) };
    EncapSpec {
        src_mac: SRC_MAC,
        dst_mac: DST_MAC,
        vlan: None,
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::MIN,
        df: true,
        dscp: DscpMode::Inherit,
    }
}

/// A frame on its way: its packets, and what its sender keeps.
struct Sent {
    packets: Vec<Vec<u8>>,
    key: FrameKey,
    block: Vec<u8>,
}

fn sent(v6: bool, len: usize, policy: Policy, keys: &Keyring, number: u32) -> Sent {
    let path = path(v6, 1460, policy, keys.clone());
    let frame = Forge::tcp(v6, noise(len, u64::from(number))).frame();
    let pkt = parse(&frame);
    let kind = GsoKind::of(&pkt).unwrap();
    let superframe = Superframe { head: &frame, pkt: &pkt, kind, mss: 1400, fixed_id: false };
    let content = Content::Superframe(superframe, 0..len);
    let mut scratch = Scratch::default();
    let encoded = path.encode(&content, &stamp(number), &mut scratch).unwrap();
    let packets = segments(&encoded, &frame[pkt.headers_len()..]);
    Sent { packets, key: encoded.key().unwrap(), block: encoded.block().to_vec() }
}

fn ask(v6: bool, keys: &Keyring, key: &FrameKey) -> Vec<u8> {
    let mut out = [0; MAX_MESSAGE_LEN];
    let len = request(&way(v6, true), keys, key, 9, &mut out).unwrap();
    out[..len].to_vec()
}

fn give(v6: bool, key: &FrameKey, block: &[u8]) -> Vec<u8> {
    let mut out = [0; MAX_MESSAGE_LEN];
    let len = answer(&way(v6, false), key, block, 9, &mut out).unwrap();
    out[..len].to_vec()
}

fn read(packet: &[u8], keys: &Keyring) -> Result<Message, MessageFault> {
    let pkt = parse(packet);
    // In two slices, as a packet in two buffers.
    let (a, b) = packet.split_at(pkt.headers_len() + 3);
    let slices = [a, b];
    let mut pieces = Pieces::new(&slices, pkt.headers_len());
    Message::read(packet, &pkt, &mut pieces, OuterSum::Complete, keys)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever was lost: a frame of which half is here and no block asks once, gets the block for no more
    /// bytes than it sent, and then delivers all that arrived.
    #[test]
    fn a_frame_that_has_half_of_its_segments_asks_once_and_is_rebuilt(
        v6: bool, len in 1usize..60_000, policy in any_policy(), keyed: bool, seed: u64,
        loss in 0..100u64,
    ) {
        let keys = if keyed { ring(&[3], 3) } else { Keyring::default() };
        let Sent { packets, key, block } = sent(v6, len, policy, &keys, seed as u32);
        let mut dice = Dice::new(seed);
        let mut far = FarEnd::new(config(), keys.clone());
        let arrived: Vec<bool> = packets.iter().map(|_| !dice.percent(loss)).collect();
        let (_, placement) = placement_of(&packets[0]);
        for (packet, _) in packets.iter().zip(&arrived).filter(|(_, arrived)| **arrived) {
            far.offer(packet).unwrap();
        }
        far.flush();
        far.expire(ASK_AFTER - 1);
        far.ask();
        prop_assert!(far.out.asked.is_empty(), "too early");
        far.expire(1);
        far.ask();
        far.ask();
        let here = arrived.iter().filter(|arrived| **arrived).count();
        let shares = placement.carriers().filter(|i| arrived[*i]).count();
        let shape = *placement.shape();
        let lacks = shares < usize::from(shape.coding().k());
        let wanted = here > 0 && lacks && here * 2 >= shape.segments();
        prop_assert_eq!(&far.out.asked[..], if wanted { &[key][..] } else { &[][..] });
        if wanted {
            let asked = ask(v6, &keys, &key);
            prop_assert_eq!(read(&asked, &keys), Ok(Message::Request(key)));
            let mut blocks = Blocks::new(8);
            blocks.keep(0, key, &block);
            let given = give(v6, &key, blocks.give(1, 1, &key).unwrap());
            prop_assert!(given.len() <= asked.len(), "{} bytes for {}", given.len(), asked.len());
            for message in [&asked, &given] {
                verify(message);
            }
            let Ok(Message::Answer(of, block)) = read(&given, &keys) else { panic!("no answer") };
            prop_assert_eq!(of, key);
            prop_assert_eq!(far.receiver.repair(&of, block.bytes(), &keys), Ok(()));
            let again = far.receiver.repair(&of, block.bytes(), &keys);
            prop_assert_eq!(again, Err(RepairError::Unasked));
            far.flush();
        }
        let payload = |i: usize| placement.payload_range(i).len();
        let want: usize = (0..packets.len()).filter(|i| arrived[*i]).map(payload).sum();
        let got: usize = far.out.runs.iter().map(|run| run.payload.len()).sum();
        prop_assert_eq!(got, if wanted || !lacks { want } else { 0 });
        let whole = noise(len, u64::from(seed as u32));
        for run in &far.out.runs {
            prop_assert_eq!(run.content(), &whole[run.payload.clone()]);
        }
        far.expire(60_000);
        far.close();
    }

    /// No message that was changed on the way, under a right outer checksum, is taken for one about a frame.
    #[test]
    fn a_request_that_was_changed_is_refused(v6: bool, keyed: bool, at: usize, bit in 0..8u8) {
        let keys = if keyed { ring(&[3], 3) } else { Keyring::default() };
        let Sent { key, .. } = sent(v6, 9000, Policy::default(), &keys, 7);
        let mut packet = ask(v6, &keys, &key);
        let start = if v6 { 54 } else { 34 };
        let at = start + at % (packet.len() - start);
        // Its port, length, flags are for other tests, and the checksum is made right again.
        let l4 = at - start;
        prop_assume!(![2, 3, 12, 13, 16, 17].contains(&l4));
        packet[at] ^= 1 << bit;
        if parse(&packet).headers_len() == start + 20 {
            fix_tcp(&mut packet);
            let found = read(&packet, &keys);
            prop_assert!(!matches!(found, Ok(Message::Request(_))), "{found:?}");
        }
    }
}

#[test]
fn messages_need_the_keys_of_the_pair() {
    let (none, old, new) = (Keyring::default(), ring(&[1], 1), ring(&[1, 2], 2));
    let Sent { key, .. } = sent(false, 9000, Policy::default(), &none, 7);
    let found = |with: &Keyring, by: &Keyring| read(&ask(false, with, &key), by);
    assert_eq!(found(&none, &none), Ok(Message::Request(key)));
    assert_eq!(found(&old, &new), Ok(Message::Request(key)));
    for (with, by, fault) in [
        (&none, &old, BlockFault::NotKeyed),
        (&old, &none, BlockFault::Keyed),
        (&new, &old, BlockFault::UnknownKey(2)),
    ] {
        assert_eq!(found(with, by), Err(MessageFault::Block(fault)));
    }
    let other = ring(&[2], 2);
    let same_number =
        Keyring::new([(2, culvert_wire::shard::Key::new(&[9; 16]).unwrap())], 2).unwrap();
    assert_eq!(found(&same_number, &other), Err(MessageFault::Block(BlockFault::Mac)));
}

#[test]
fn a_short_request_gets_nothing() {
    let keys = Keyring::default();
    let Sent { key, .. } = sent(false, 9000, Policy::default(), &keys, 7);
    let whole = ask(false, &keys, &key);
    for len in 54 + 4..whole.len() {
        let mut short = whole[..len].to_vec();
        short[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
        short[24..26].fill(0);
        let sum = culvert_wire::checksum::Sum::default().add(&short[14..34]).finish();
        short[24..26].copy_from_slice(&sum.to_be_bytes());
        fix_tcp(&mut short);
        assert!(!matches!(read(&short, &keys), Ok(Message::Request(_))), "{len} bytes");
    }
}

#[test]
fn a_block_is_for_its_receiver_alone_once_and_for_a_time() {
    let keys = Keyring::default();
    let mut blocks = Blocks::new(4);
    let all: Vec<_> = (0..6).map(|n| sent(false, 9000, Policy::default(), &keys, n)).collect();
    for Sent { key, block, .. } in &all {
        blocks.keep(u64::from(key.binding.frame) * 100, *key, block);
        assert!(blocks.len() <= 4);
    }
    let mut give = |now, key: &FrameKey| blocks.give(now, 1000, key).map(<[u8]>::to_vec);
    assert_eq!(give(600, &all[0].key), Err(NoBlock::Gone), "it gave way");
    assert_eq!(give(600, &all[1].key), Err(NoBlock::Gone));
    assert_eq!(give(600, &all[2].key), Ok(all[2].block.clone()));
    assert_eq!(give(600, &all[2].key), Err(NoBlock::Given));
    let mut other = all[3].key;
    other.binding.dst = [192, 0, 2, 9].into();
    assert_eq!(give(600, &other), Err(NoBlock::Gone));
    let mut other = all[3].key;
    other.source_port ^= 1;
    assert_eq!(give(600, &other), Err(NoBlock::Gone));
    assert_eq!(give(1300, &all[3].key), Ok(all[3].block.clone()));
    assert_eq!(give(1401, &all[4].key), Err(NoBlock::Gone), "its time is over");
    assert_eq!(give(1500, &all[5].key), Ok(all[5].block.clone()));
}

#[test]
fn blocks_that_nobody_asked_for_or_that_are_wrong_change_nothing() {
    let keys = ring(&[3], 3);
    let coding = Policy::Fixed(Coding::new(4, 8).unwrap());
    let Sent { packets, key, block } = sent(false, 30_000, coding, &keys, 7);
    let (_, placement) = placement_of(&packets[0]);
    let mut far = FarEnd::new(config(), keys.clone());
    for (i, packet) in packets.iter().enumerate() {
        if placement.share_of(i).is_none() {
            far.offer(packet).unwrap();
        }
    }
    let repair = |far: &mut FarEnd, block: &[u8]| far.receiver.repair(&key, block, &keys);
    assert_eq!(repair(&mut far, &block), Err(RepairError::Unasked));
    far.expire(ASK_AFTER);
    far.ask();
    assert_eq!(far.out.asked, [key]);
    let wrong = |fault| Err(RepairError::Block(fault));
    assert_eq!(repair(&mut far, &block[1..]), wrong(BlockFault::Fields));
    let other = sent(false, 30_000, coding, &keys, 8).block;
    assert_eq!(repair(&mut far, &other), wrong(BlockFault::Crc));
    let plain = sent(false, 30_000, coding, &Keyring::default(), 7).block;
    assert!(repair(&mut far, &plain).is_err());
    let forged = sent(false, 30_000, coding, &ring(&[1], 1), 7).block;
    assert_eq!(repair(&mut far, &forged), wrong(BlockFault::UnknownKey(1)));
    far.flush();
    assert!(far.out.runs.is_empty());
    assert_eq!(repair(&mut far, &block), Ok(()));
    far.flush();
    assert!(!far.out.runs.is_empty());
    far.expire(50_000);
    assert_eq!(far.receiver.stats().rebuilt, 1);
    assert_eq!(repair(&mut far, &block), Err(RepairError::Unasked), "it is over");
    far.close();
}

#[test]
fn who_does_not_repair_never_asks() {
    let keys = Keyring::default();
    let Sent { packets, .. } = sent(false, 30_000, Policy::default(), &keys, 7);
    let (_, placement) = placement_of(&packets[0]);
    let mut far = FarEnd::new(ReceiveConfig::default(), keys);
    for (i, packet) in packets.iter().enumerate() {
        if placement.share_of(i).is_none() {
            far.offer(packet).unwrap();
        }
    }
    far.expire(49_999);
    far.ask();
    assert!(far.out.asked.is_empty());
    far.close();
}
