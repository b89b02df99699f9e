//! Every code and every choice of shares, against another implementation of the same code; every
//! placement.

use crate::forge::noise;
use culvert_wire::shard::code::{decode, encode};
use culvert_wire::shard::{Coding, Placement, Policy, Shape};
use proptest::prelude::*;
use reed_solomon_erasure::galois_8::ReedSolomon;

/// Every legal code.
pub(crate) fn codings() -> impl Iterator<Item = Coding> {
    (1..=8).flat_map(|k| (k..=16).map(move |n| Coding::new(k, n).unwrap()))
}

/// Bit sets of `count` of `n`.
pub(crate) fn choices(n: u8, count: u8) -> impl Iterator<Item = u32> {
    (0..1u32 << n).filter(move |set| set.count_ones() == u32::from(count))
}

fn shares_of(coding: Coding, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let (k, n) = (usize::from(coding.k()), usize::from(coding.n()));
    let mut all = vec![0xee; n * len];
    all[..k * len].copy_from_slice(&noise(k * len, seed));
    encode(coding, len, &mut all);
    all.chunks(len).map(<[u8]>::to_vec).collect()
}

#[test]
fn every_code_gives_the_shares_of_another_implementation() {
    assert_eq!(codings().count(), 100);
    for coding in codings() {
        let (k, n) = (usize::from(coding.k()), usize::from(coding.n()));
        for len in [1, 20, 33] {
            let shares = shares_of(coding, len, 7 + len as u64);
            if n == k {
                continue;
            }
            let other = ReedSolomon::new(k, n - k).unwrap();
            let mut want = shares.clone();
            want[k..].iter_mut().for_each(|share| share.fill(0));
            other.encode(&mut want).unwrap();
            assert_eq!(shares, want, "{coding:?}");
        }
    }
}

#[test]
fn any_k_shares_of_every_code_give_the_block_and_fewer_do_not() {
    let mut count = 0u32;
    for coding in codings() {
        let shares = shares_of(coding, 5, u64::from(coding.n()));
        let block = shares[..usize::from(coding.k())].concat();
        let pick = |set: u32| -> Vec<(u8, &[u8])> {
            let numbers = (0..coding.n()).filter(|i| set >> i & 1 != 0);
            numbers.map(|i| (i, &shares[usize::from(i)][..])).collect()
        };
        for set in choices(coding.n(), coding.k()) {
            let mut out = vec![0; block.len()];
            assert!(decode(coding, &pick(set), &mut out));
            assert_eq!(out, block, "{coding:?} {set:b}");
            count += 1;
        }
        for set in choices(coding.n(), coding.k() - 1) {
            assert!(!decode(coding, &pick(set), &mut vec![0; block.len()]));
        }
    }
    // The sum over k of 17 over k + 1.
    assert_eq!(count, 89_828);
}

#[test]
fn a_buffer_that_is_too_short_is_left_alone() {
    let coding = Coding::new(2, 4).unwrap();
    let mut shares = vec![7; 15];
    encode(coding, 4, &mut shares);
    assert_eq!(shares, vec![7; 15]);
}

/// A policy, of all there are.
pub(crate) fn any_policy() -> impl Strategy<Value = Policy> {
    let codings: Vec<_> = codings().collect();
    prop_oneof![
        1 => Just(Policy::BySegments),
        3 => prop::sample::select(codings).prop_map(Policy::Fixed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// What the sender plans is legal, reads back from what the header states, covers the payload
    /// once and in order, and has each share in a segment that holds it.
    #[test]
    fn every_plan_is_a_placement(
        payload_len in 0..=65_495usize, template_len in 0..=255usize, keyed: bool,
        segment in 496..=8960u16, policy in any_policy(), frame: u32, v6: bool,
    ) {
        let block_len = culvert_wire::shard::block::block_len(template_len, keyed);
        let max_stream = if v6 { 65_515 } else { 65_495 };
        let Ok(shape) = Shape::plan(payload_len, block_len, segment, max_stream, policy) else {
            let largest = Shape::largest_payload(536, block_len, segment, max_stream, policy);
            prop_assert!(largest.is_none_or(|len| len < payload_len + 536));
            return Ok(());
        };
        let segments = shape.segments();
        prop_assert_eq!(policy.coding(segments), shape.coding());
        prop_assert!(shape.mss() <= segment);
        prop_assert_eq!(usize::from(shape.length()).div_ceil(shape.mss().into()), segments);
        let read = Shape::new(shape.length(), shape.mss(), shape.coding(), shape.block_len());
        prop_assert_eq!(read, Ok(shape));
        prop_assert_eq!(shape.payload_len(), payload_len);
        let placement = Placement::new(frame, shape);
        let (mut payload, mut shares) = (0, 0);
        for i in 0..segments {
            let range = placement.payload_range(i);
            let share = placement.share_of(i).map_or(0, |number| {
                assert_eq!(number, shares);
                shares += 1;
                shape.share_len()
            });
            prop_assert_eq!(range.start, payload);
            prop_assert_eq!(shape.stream_range(i).len(), share + range.len());
            payload = range.end;
        }
        prop_assert_eq!((payload, shares), (payload_len, usize::from(shape.coding().n())));
        // No fewer segments would do.
        if segments > 1 {
            let coding = policy.coding(segments - 1);
            let share = block_len.div_ceil(coding.k().into());
            let length = payload_len + usize::from(coding.n()) * share;
            let least = length.div_ceil(segments - 1);
            let fits = least <= segment.into() && length > 0;
            let shape = Shape::new(length as u16, least as u16, coding, block_len as u16);
            prop_assert!(!fits || !shape.is_ok_and(|shape| shape.segments() == segments - 1));
        }
    }
}
