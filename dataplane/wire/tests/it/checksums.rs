//! The Internet checksum against a naive reference.

use crate::forge::{any_forge, parse};
use culvert_wire::checksum::{Sum, copy_and_sum, update_u16};
use culvert_wire::encap::inner_sum_from_headers;
use proptest::prelude::*;

fn reference(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Zero has two representations in ones' complement.
fn canonical(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_split_sums_like_the_reference(
        data in prop::collection::vec(any::<u8>(), 0..3000),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|c| c.index(data.len() + 1)).collect();
        cuts.extend([0, data.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).fold(Sum::default(), |sum, w| sum.add(&data[w[0]..w[1]]));
        let joined = cuts.windows(2).fold(Sum::default(), |sum, w| {
            sum.add_sum(Sum::default().add(&data[w[0]..w[1]]))
        });
        prop_assert_eq!(pieces.fold(), reference(&data));
        prop_assert_eq!(joined.fold(), reference(&data));
        let mut copy = vec![0; data.len()];
        prop_assert_eq!(copy_and_sum(&mut copy, &data).fold(), reference(&data));
        prop_assert_eq!(copy, data);
    }

    #[test]
    fn what_is_taken_off_again_was_never_there(
        a in prop::collection::vec(any::<u8>(), 1..200),
        b in prop::collection::vec(any::<u8>(), 0..200),
        c in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let sum = Sum::default().add(&a).add(&b).sub(&b).add(&c);
        prop_assert_eq!(canonical(sum.fold()), canonical(reference(&[a, c].concat())));
    }

    #[test]
    fn an_incremental_update_equals_a_new_sum(
        mut data in prop::collection::vec(any::<u8>(), 20..60),
        word in any::<u16>(),
        at in 0..10usize,
    ) {
        data.truncate(data.len() & !1);
        data[0] |= 0x40;
        let before = !reference(&data);
        let at = at * 2;
        prop_assume!(at > 0);
        let old = u16::from_be_bytes([data[at], data[at + 1]]);
        data[at..at + 2].copy_from_slice(&word.to_be_bytes());
        prop_assert_eq!(update_u16(before, old, word), !reference(&data));
    }

    #[test]
    fn the_sum_of_a_frame_follows_from_its_headers(mut forge in any_forge(3000)) {
        forge.zero_checksum = false;
        let frame = forge.frame();
        let pkt = parse(&frame);
        let sum = inner_sum_from_headers(&frame[..usize::from(pkt.payload)], &pkt);
        prop_assert_eq!(canonical(sum.fold()), canonical(reference(&frame)));
    }
}
