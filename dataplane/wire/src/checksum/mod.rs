//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The ones-complement sum does not depend on byte order (RFC 1071 section 2 (B)), so the loops add
//! machine words as they lie in memory, several at a time, and swap once at the end.

mod blocks;

use std::net::{Ipv4Addr, Ipv6Addr};

/// A partial ones-complement sum over a run of bytes.
///
/// The sum knows whether it has covered an odd number of bytes, so pieces of any length chain:
/// `Sum::default().add(a).add(b)` equals the sum over `a` and `b` joined.
#[derive(Copy, Clone, Debug, Default)]
pub struct Sum {
    // Each piece adds at most 0xffff, so 2^48 pieces fit: no frame has as many.
    acc: u64,
    odd: bool,
}

#[expect(clippy::should_implement_trait, reason = "what is added are bytes, not sums")]
impl Sum {
    /// Appends `bytes`.
    #[inline]
    #[must_use]
    pub fn add(self, bytes: &[u8]) -> Self {
        self.piece(sum_bytes(bytes), bytes.len() & 1 != 0)
    }

    /// Appends two bytes: `value` in network order.
    #[inline]
    #[must_use]
    pub fn add_u16(self, value: u16) -> Self {
        self.piece(value, false)
    }

    /// Appends four bytes: `value` in network order.
    #[inline]
    #[must_use]
    pub fn add_u32(self, value: u32) -> Self {
        self.add_u16((value >> 16) as u16).add_u16(value as u16)
    }

    /// Appends the bytes that `next` was made of.
    #[inline]
    #[must_use]
    pub fn add_sum(self, next: Self) -> Self {
        self.piece(next.fold(), next.odd)
    }

    /// Takes `bytes` off the end again: they must have been the last ones added.
    #[inline]
    #[must_use]
    pub fn sub(self, bytes: &[u8]) -> Self {
        let odd = self.odd ^ (bytes.len() & 1 != 0);
        let value = !swap_if(sum_bytes(bytes), odd);
        Self { acc: self.acc.wrapping_add(u64::from(value)), odd }
    }

    /// Takes a 16-bit word off that was added at an even offset.
    #[inline]
    #[must_use]
    pub fn sub_u16(self, value: u16) -> Self {
        Self { acc: self.acc.wrapping_add(u64::from(!value)), odd: self.odd }
    }

    /// The sum in 16 bits, not complemented: what a partial checksum field holds.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        fold64(self.acc)
    }

    /// The complement of the sum: what a finished checksum field holds, and zero over data whose
    /// own checksum is right.
    #[inline]
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// As [`Sum::finish`], with zero sent as all ones: UDP keeps zero for "no checksum" (RFC 768).
    #[inline]
    #[must_use]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// The sum whose total with this one is zero (all ones).
    #[inline]
    #[must_use]
    pub fn complement(self) -> Self {
        Self { acc: u64::from(!self.fold()), odd: self.odd }
    }

    #[inline]
    fn piece(self, value: u16, odd: bool) -> Self {
        Self {
            acc: self.acc.wrapping_add(u64::from(swap_if(value, self.odd))),
            odd: self.odd ^ odd,
        }
    }
}

#[inline]
const fn swap_if(value: u16, swap: bool) -> u16 {
    if swap { value.swap_bytes() } else { value }
}

/// The sum of the IPv4 pseudo-header (RFC 793 section 3.1). `len` is L4 header and payload in bytes.
#[inline]
#[must_use]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, len: u32) -> Sum {
    Sum::default()
        .add_u32(src.to_bits())
        .add_u32(dst.to_bits())
        .add_u16(u16::from(proto))
        .add_u32(len)
}

/// The sum of the IPv6 pseudo-header (RFC 8200 section 8.1). `len` is L4 header and payload in bytes.
#[inline]
#[must_use]
pub fn pseudo_v6(src: &Ipv6Addr, dst: &Ipv6Addr, proto: u8, len: u32) -> Sum {
    Sum::default().add(&src.octets()).add(&dst.octets()).add_u16(u16::from(proto)).add_u32(len)
}

/// Replaces the word `old` by `new` under the finished checksum `field` (RFC 1624 equation 3).
#[inline]
#[must_use]
pub fn update_u16(field: u16, old: u16, new: u16) -> u16 {
    !fold64(u64::from(!field) + u64::from(!old) + u64::from(new))
}

/// Below it setting lanes up costs more than they save.
const LANES_MIN: usize = 128;

/// Copies `src` to the start of `dst` and sums it on the way.
///
/// The lengths should be equal; of unequal ones the shorter counts.
#[must_use]
pub fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> Sum {
    let len = src.len().min(dst.len());
    let (dst, src) = (&mut dst[..len], &src[..len]);
    if len < LANES_MIN {
        dst.copy_from_slice(src);
        return Sum::default().add(dst);
    }
    let (acc, whole) = blocks::copy_and_sum(dst, src);
    dst[whole..].copy_from_slice(&src[whole..]);
    Sum::default().piece(fold_native(acc, &src[whole..]), len & 1 != 0)
}

#[inline]
fn sum_bytes(bytes: &[u8]) -> u16 {
    if bytes.len() < LANES_MIN {
        return fold_native(0, bytes);
    }
    let (acc, whole) = blocks::sum(bytes);
    fold_native(acc, &bytes[whole..])
}

/// Adds modulo 2^64 - 1, of which 2^16 - 1 is a divisor: folding later gives the same sum.
#[inline]
const fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u64)
}

/// Adds `bytes` to a sum of words as they lie in memory and folds it into network order.
#[inline]
fn fold_native(acc: u64, bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<8>();
    // Halves of words, so that no addition waits for the carry of another.
    let (mut low, mut high) = (0u64, 0u64);
    let mut add = |word: u64| {
        low += word & 0xffff_ffff;
        high += word >> 32;
    };
    words.iter().for_each(|word| add(u64::from_le_bytes(*word)));
    if !rest.is_empty() {
        add(match bytes.last_chunk::<8>() {
            // What the words before it have of it goes out below.
            Some(last) => u64::from_le_bytes(*last) >> (8 * (8 - rest.len())),
            None => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        });
    }
    let acc = add_carry(add_carry(u64::from_le(acc), low), high);
    u16::from_be_bytes(fold64(acc).to_le_bytes())
}

#[inline]
const fn fold64(acc: u64) -> u16 {
    let acc = (acc & 0xffff_ffff) + (acc >> 32);
    let acc = (acc & 0xffff) + ((acc >> 16) & 0xffff) + (acc >> 32);
    let acc = (acc & 0xffff) + (acc >> 16);
    let acc = (acc & 0xffff) + (acc >> 16);
    acc as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&data).fold(), 0xddf2);
        assert_eq!(Sum::default().add(&data).finish(), !0xddf2);
    }

    #[test]
    fn pieces_of_odd_length_chain() {
        let data: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(37)).collect();
        let whole = Sum::default().add(&data).fold();
        for a in 0..data.len() {
            for b in a..data.len() {
                let parts = Sum::default().add(&data[..a]).add(&data[a..b]).add(&data[b..]);
                assert_eq!(parts.fold(), whole, "{a} {b}");
                let joined = Sum::default()
                    .add(&data[..a])
                    .add_sum(Sum::default().add(&data[a..b]).add(&data[b..]));
                assert_eq!(joined.fold(), whole, "{a} {b}");
            }
        }
    }

    #[test]
    fn the_examples_of_rfc_1624_update_to_zero_and_not_to_ffff() {
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn what_was_added_last_comes_off_again() {
        let s = Sum::default().add(&[1, 2, 3]);
        let t = s.add(&[7, 8, 9, 250, 3]).sub(&[7, 8, 9, 250, 3]);
        assert_eq!(t.add(&[5]).fold(), s.add(&[5]).fold());
    }

    #[test]
    fn a_sum_of_all_ones_stays_all_ones() {
        let ones = vec![0xffu8; 65_535];
        assert_eq!(Sum::default().add(&ones).fold(), 0xff00);
        assert_eq!(Sum::default().add(&ones[..65_534]).fold(), 0xffff);
        assert_eq!(Sum::default().add(&[]).fold(), 0);
    }

    /// Word by word, as RFC 1071 describes it.
    fn plain(bytes: &[u8]) -> u16 {
        let words = bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
        fold64(words.sum())
    }

    #[test]
    fn every_length_and_alignment_sums_as_word_by_word_and_is_copied() {
        let data: Vec<u8> =
            (0..3000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for start in 0..4 {
            for len in (0..700).chain([1447, 1448, 2048, 2990]) {
                let bytes = &data[start..start + len];
                let mut copy = vec![0xee; len + 2];
                let sum = copy_and_sum(&mut copy, bytes);
                assert_eq!((sum.fold(), sum.odd), (plain(bytes), len & 1 != 0), "{start} {len}");
                assert_eq!(Sum::default().add(bytes).fold(), plain(bytes), "{start} {len}");
                assert_eq!((&copy[..len], &copy[len..]), (bytes, &[0xee; 2][..]));
            }
        }
    }

    #[test]
    fn what_is_larger_than_any_frame_does_not_overflow() {
        let ones = vec![0xffu8; 20 << 20];
        let mut copy = vec![0; ones.len()];
        assert_eq!(Sum::default().add(&ones).fold(), 0xffff);
        assert_eq!(copy_and_sum(&mut copy, &ones).fold(), 0xffff);
        assert_eq!(copy, ones);
    }
}
