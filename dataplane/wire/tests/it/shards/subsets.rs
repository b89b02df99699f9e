//! Any k shares open a frame, and no k - 1 do: all choices of every code, and any of them in any frame.

use super::coding::{any_policy, choices, codings};
use super::far_end::{FarEnd, placement_of, verify_in};
use super::receiving::{Dice, check_runs, deliverable, far_end, frame_for};
use super::sending::{path, ring, send};
use crate::forge::any_forge;
use culvert_wire::shard::Keyring;
use culvert_wire::shard::receive::{OuterSum, ReceiveConfig, ShardError};
use culvert_wire::tcp::flags;
use proptest::prelude::*;

#[test]
fn every_choice_of_k_shares_opens_a_frame_and_none_of_fewer_does() {
    let config = ReceiveConfig { frames: 2, ..Default::default() };
    let (mut opened, mut refused) = (0u32, 0u32);
    for coding in codings() {
        let (_, stream) = frame_for(coding, 0);
        let (header, placement) = placement_of(&stream[0]);
        assert_eq!((header.shape.coding(), stream.len()), (coding, usize::from(coding.n())));
        let carriers: Vec<_> = placement.carriers().collect();
        let verified: Vec<_> =
            stream.iter().map(|packet| verify_in(packet, OuterSum::Complete).unwrap()).collect();
        let mut far = FarEnd::new(config, Keyring::default());
        for count in [coding.k() - 1, coding.k()] {
            for set in choices(coding.n(), count) {
                far.out.runs.clear();
                for (i, (segment, bytes)) in verified.iter().enumerate() {
                    let share = carriers.iter().position(|carrier| *carrier == i);
                    if share.is_none_or(|share| set >> share & 1 != 0) {
                        far.offer_verified(segment, bytes);
                    }
                }
                far.flush();
                let bytes: usize = far.out.runs.iter().map(|run| run.payload.len()).sum();
                if count < coding.k() {
                    assert_eq!(bytes, 0, "{coding:?} {set:b}");
                    refused += 1;
                } else {
                    let lost: usize = carriers
                        .iter()
                        .enumerate()
                        .filter(|(share, _)| set >> share & 1 == 0)
                        .map(|(_, i)| placement.payload_range(*i).len())
                        .sum();
                    assert_eq!(bytes, header.shape.payload_len() - lost, "{coding:?} {set:b}");
                    opened += 1;
                }
                far.expire(50_000);
            }
        }
        far.close();
    }
    println!("{opened} choices of k shares opened a frame, {refused} of k - 1 did not");
    assert!(opened > 89_000 && refused > 65_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// In a frame of any length, MSS, code and family, with keys and without: of the segments that carry a
    /// share k arrive, or k - 1, and of the others all. With k all that arrived is delivered; with k - 1
    /// nothing is, and one share is counted as missing.
    #[test]
    fn any_k_shares_open_any_frame_and_k_less_one_do_not(
        mut forge in prop_oneof![2 => any_forge(usize::MAX), 1 => any_forge(6000)],
        mss in 536..=8960u16, segment in prop_oneof![2 => 536..=1500u16, 1 => 536..=8960u16],
        policy in any_policy(), v6: bool, keyed: bool, number: u32, enough: bool, seed: u64,
    ) {
        prop_assume!(!forge.payload.is_empty());
        forge.flags |= flags::ACK;
        let keys = if keyed { ring(&[1, 6], 6) } else { Keyring::default() };
        let path = path(v6, segment, policy, keys.clone());
        let unit = if forge.udp { usize::from(mss) } else { 1 };
        let mut dice = Dice::new(seed);
        let mut start = 0;
        for stream in send(&path, &forge.frame(), mss, number) {
            let (header, placement) = placement_of(&stream[0]);
            let k = usize::from(header.shape.coding().k());
            let mut carriers: Vec<_> = placement.carriers().collect();
            dice.shuffle(&mut carriers);
            let lost = carriers.split_off(if enough { k } else { k - 1 });
            let arrived: Vec<_> = (0..stream.len()).map(|i| !lost.contains(&i)).collect();
            let mut packets: Vec<_> = (0..stream.len()).filter(|i| arrived[*i]).collect();
            dice.shuffle(&mut packets);
            let mut far = far_end(keys.clone());
            for i in &packets {
                far.offer(&stream[*i]).unwrap();
            }
            far.flush();
            let want = match enough {
                true => deliverable(&placement, &arrived, unit),
                false => vec![false; placement.shape().payload_len()],
            };
            let here = check_runs(&far.out.runs, &forge, mss, start, want.len());
            prop_assert!(here == want, "delivered other bytes than arrived");
            start += want.len();
            far.expire(50_000);
            let stats = *far.receiver.stats();
            if enough {
                prop_assert_eq!(stats.whole + stats.rebuilt, 1);
            } else {
                let expired = u64::from(!packets.is_empty());
                prop_assert_eq!((stats.expired[0], stats.expired[1..].iter().sum::<u64>()), (expired, 0));
                prop_assert!(far.out.lost.iter().all(|error| *error == ShardError::TimedOut));
            }
            far.close();
        }
        prop_assert_eq!(start, forge.payload.len());
    }
}
