//! Reed-Solomon over GF(256): any k of n shares give the block back.
//!
//! The block, filled up with zeroes, is k data shares of equal length. Byte by byte they are the values
//! at the points 0 to k - 1 of the one polynomial of degree below k that takes them, and share i is its
//! value at i. So the first k shares are the block itself, and rebuilding is interpolation. The field is
//! that of the polynomial 0x11d, and all of it agrees with the usual systematic Vandermonde code.

use crate::shard::block::MAX_BLOCK_LEN;
use crate::shard::coding::{Coding, MAX_NEEDED, MAX_SHARES};

/// Bytes of all shares of the longest block.
pub const MAX_SHARES_LEN: usize = MAX_SHARES * MAX_BLOCK_LEN;

const POLYNOMIAL: u16 = 0x11d;

const fn powers() -> [u8; 510] {
    let mut table = [0; 510];
    let mut value = 1u16;
    let mut i = 0;
    while i < 255 {
        table[i] = value as u8;
        table[i + 255] = value as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= POLYNOMIAL;
        }
        i += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 255 {
        table[EXP[i] as usize] = i as u8;
        i += 1;
    }
    table
}

const fn products() -> [[u8; 256]; 256] {
    let mut table = [[0; 256]; 256];
    let mut a = 1;
    while a < 256 {
        let mut b = 1;
        while b < 256 {
            table[a][b] = EXP[LOG[a] as usize + LOG[b] as usize];
            b += 1;
        }
        a += 1;
    }
    table
}

/// Powers of 2, twice, so that two logarithms add without a reduction.
static EXP: [u8; 510] = powers();
/// Logarithms to the base 2; of 0, which has none, 0.
static LOG: [u8; 256] = logarithms();
/// A row for each factor: 64 KB, of which a frame touches the few rows of its coefficients.
static PRODUCTS: [[u8; 256]; 256] = products();

/// Weights of the data shares in each other share, by k and the share's number: what encoding needs, for any frame.
static ENCODING: [[[u8; MAX_NEEDED]; MAX_SHARES]; MAX_NEEDED + 1] = encoding();

const fn encoding() -> [[[u8; MAX_NEEDED]; MAX_SHARES]; MAX_NEEDED + 1] {
    let mut table = [[[0; MAX_NEEDED]; MAX_SHARES]; MAX_NEEDED + 1];
    let mut k = 1;
    while k <= MAX_NEEDED {
        let mut at = k;
        while at < MAX_SHARES {
            let mut i = 0;
            while i < k {
                let (mut log, mut other) = (0u32, 0);
                while other < k {
                    if other != i {
                        log += LOG[at ^ other] as u32 + 255 - LOG[i ^ other] as u32;
                    }
                    other += 1;
                }
                table[k][at][i] = EXP[(log % 255) as usize];
                i += 1;
            }
            at += 1;
        }
        k += 1;
    }
    table
}

/// Weights by which the values at `points` make the value at `at`: Lagrange's.
fn weights(points: &[u8], at: u8) -> [u8; MAX_NEEDED] {
    let mut weights = [0; MAX_NEEDED];
    for (i, (weight, point)) in weights.iter_mut().zip(points).enumerate() {
        // Logarithms of a product of at most 7 factors over as many: no overflow.
        let mut log = 0u32;
        let mut zero = false;
        for other in points.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, other)| other) {
            let (above, below) = (at ^ other, point ^ other);
            zero |= above == 0;
            let difference = u32::from(log_of(above)) + 255 - u32::from(log_of(below));
            log += difference;
        }
        if !zero {
            *weight = EXP.get((log % 255) as usize).copied().unwrap_or_default();
        }
    }
    weights
}

fn log_of(value: u8) -> u8 {
    LOG.get(usize::from(value)).copied().unwrap_or_default()
}

/// Adds `factor` times `from` to `to`.
#[inline]
fn add_product(to: &mut [u8], from: &[u8], factor: u8) {
    let Some(row) = PRODUCTS.get(usize::from(factor)) else { return };
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= row[usize::from(*from)];
    }
}

/// Adds the products of four shares, which lie one behind the other in `from`, to `to`: in one pass.
#[inline]
fn add_four_products(to: &mut [u8], from: &[u8], factors: [u8; 4]) {
    let len = to.len();
    let [a, b, c, d] = factors.map(|factor| &PRODUCTS[usize::from(factor)]);
    let (first, rest) = from.split_at(len.min(from.len()));
    let (second, rest) = rest.split_at(len.min(rest.len()));
    let (third, fourth) = rest.split_at(len.min(rest.len()));
    let sources = first.iter().zip(second).zip(third).zip(fourth);
    for (to, (((w, x), y), z)) in to.iter_mut().zip(sources) {
        let [w, x, y, z] = [*w, *x, *y, *z].map(usize::from);
        *to ^= a[w] ^ b[x] ^ c[y] ^ d[z];
    }
}

/// Makes the shares, one behind the other: `shares` starts with the block, padded to k shares of
/// `share_len` bytes, and gets the others behind it. Does nothing if it is shorter than n shares.
pub fn encode(coding: Coding, share_len: usize, shares: &mut [u8]) {
    let (k, n) = (usize::from(coding.k()), usize::from(coding.n()));
    let Some((data, rest)) =
        shares.get_mut(..n * share_len).and_then(|all| all.split_at_mut_checked(k * share_len))
    else {
        return;
    };
    if share_len == 0 {
        return;
    }
    let of_k = ENCODING.get(k).into_iter().flatten().skip(k);
    for (share, weights) in rest.chunks_exact_mut(share_len).zip(of_k) {
        share.fill(0);
        let (fours, rest) = weights.get(..k).unwrap_or_default().as_chunks::<4>();
        let groups = data.chunks_exact(share_len * 4);
        for (data, weight) in groups.remainder().chunks_exact(share_len).zip(rest) {
            add_product(share, data, *weight);
        }
        for (data, weights) in groups.zip(fours) {
            add_four_products(share, data, *weights);
        }
    }
}

/// Rebuilds the block from k shares, each with its number, all of one length: writes k times that
/// length into `block`. Answers false, with `block` of no use, unless there are exactly k different
/// shares and room for them.
pub fn decode(coding: Coding, shares: &[(u8, &[u8])], block: &mut [u8]) -> bool {
    let k = usize::from(coding.k());
    let Some(share_len) = shares.first().map(|(_, share)| share.len()) else { return false };
    let mut points = [0; MAX_NEEDED];
    let mut seen = 0u32;
    for (place, (point, share)) in points.iter_mut().zip(shares) {
        if *point >= coding.n() || share.len() != share_len || seen >> point & 1 != 0 {
            return false;
        }
        seen |= 1 << point;
        *place = *point;
    }
    let Some(block) = block.get_mut(..k * share_len).filter(|_| shares.len() == k) else {
        return false;
    };
    if share_len == 0 {
        return true;
    }
    let points = points.get(..k).unwrap_or_default();
    for (data, at) in block.chunks_exact_mut(share_len).zip(0u8..) {
        if let Some((_, share)) = shares.iter().find(|(point, _)| *point == at) {
            data.copy_from_slice(share);
            continue;
        }
        data.fill(0);
        for ((_, share), weight) in shares.iter().zip(weights(points, at)) {
            add_product(data, share, weight);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_a_field() {
        assert_eq!(PRODUCTS[2][0x80], 0x1d);
        for a in 1..=255u8 {
            assert_eq!(PRODUCTS[usize::from(a)].iter().filter(|x| **x == 1).count(), 1, "{a}");
            assert_eq!(PRODUCTS[usize::from(a)][0], 0);
            assert_eq!(PRODUCTS[1][usize::from(a)], a);
        }
    }

    #[test]
    fn the_weights_of_encoding_are_those_of_the_points_below_k() {
        let points: [u8; MAX_NEEDED] = std::array::from_fn(|i| i as u8);
        for (k, of_k) in ENCODING.iter().enumerate().skip(1) {
            for (at, row) in of_k.iter().enumerate().skip(k) {
                assert_eq!(*row, weights(&points[..k], at as u8), "{k}, {at}");
            }
        }
    }

    #[test]
    fn weights_at_a_point_pick_its_value() {
        let points = [3, 9, 0, 15];
        for (i, at) in points.into_iter().enumerate() {
            let mut want = [0; MAX_NEEDED];
            want[i] = 1;
            assert_eq!(weights(&points, at), want);
        }
    }

    #[test]
    fn shares_that_are_none_are_refused() {
        let coding = Coding::new(2, 3).unwrap();
        let (a, b) = ([1u8, 2], [3u8, 4]);
        let mut block = [0; 4];
        assert!(decode(coding, &[(0, &a), (1, &b)], &mut block));
        assert_eq!(block, [1, 2, 3, 4]);
        let few: &[(u8, &[u8])] = &[(0, &a)];
        assert!(!decode(coding, few, &mut block));
        assert!(!decode(coding, &[(0, &a), (0, &b)], &mut block));
        assert!(!decode(coding, &[(0, &a), (3, &b)], &mut block));
        assert!(!decode(coding, &[(0, &a), (1, &b[..1])], &mut block));
        assert!(!decode(coding, &[(0, &a), (1, &b), (2, &b)], &mut block));
        assert!(!decode(coding, &[(0, &a), (1, &b)], &mut block[..3]));
        assert!(!decode(coding, &[], &mut block));
    }
}
