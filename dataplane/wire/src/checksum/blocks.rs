//! Sums of whole blocks, in lanes that the compiler makes vectors of.
//!
//! Each loop is written twice: for any processor, and for those with AVX2, which carry half as many instructions for
//! the same bytes. Which form the compiler turns into good code was measured (`cargo bench -p culvert-wire`): where a
//! lane is as wide as a vector's element must become, adding is cheap, and where a block is copied with 128-bit
//! vectors, splitting words is cheaper than widening them.

use super::add_carry;

/// Bytes of a block.
const BLOCK: usize = 64;
/// Blocks that are added before anything could overflow.
const BLOCKS_MAX: usize = 1 << 16;

/// Sums all whole blocks, as words that lie in memory; how many bytes these are.
pub(super) fn sum(bytes: &[u8]) -> (u64, usize) {
    let (blocks, rest) = bytes.as_chunks();
    let sum = {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            #[expect(unsafe_code, reason = "the compiler cannot know the processor")]
            unsafe {
                wide::sum(blocks)
            }
        } else {
            widened(blocks)
        }
        #[cfg(not(target_arch = "x86_64"))]
        widened(blocks)
    };
    (sum, bytes.len() - rest.len())
}

/// As [`sum`], and copies these blocks; the slices have one length.
pub(super) fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> (u64, usize) {
    let (from, rest) = src.as_chunks();
    let (to, _) = dst.as_chunks_mut();
    let sum = {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            #[expect(unsafe_code, reason = "the compiler cannot know the processor")]
            unsafe {
                wide::copy_and_sum(to, from)
            }
        } else {
            copied_split(to, from)
        }
        #[cfg(not(target_arch = "x86_64"))]
        copied_split(to, from)
    };
    (sum, src.len() - rest.len())
}

/// Adds words of 32 bits in lanes of 64.
#[inline(always)]
fn widened(blocks: &[[u8; BLOCK]]) -> u64 {
    let mut sum = 0;
    for blocks in blocks.chunks(BLOCKS_MAX) {
        let mut lanes = [0u64; BLOCK / 4];
        for block in blocks {
            add_widened(&mut lanes, block);
        }
        sum = add_carry(sum, total(&lanes));
    }
    sum
}

/// The sum of lanes that were added to once for each of at most [`BLOCKS_MAX`] blocks: no carry is lost.
#[inline(always)]
fn total(lanes: &[u64; BLOCK / 4]) -> u64 {
    lanes.iter().fold(0, |total, lane| total.wrapping_add(*lane))
}

#[inline(always)]
fn add_widened(lanes: &mut [u64; BLOCK / 4], block: &[u8; BLOCK]) {
    let (words, _) = block.as_chunks::<4>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
}

/// Copies, and adds the halves of words of 32 bits in lanes of their own.
fn copied_split(to: &mut [[u8; BLOCK]], from: &[[u8; BLOCK]]) -> u64 {
    let mut sum = 0;
    for (to, from) in to.chunks_mut(BLOCKS_MAX).zip(from.chunks(BLOCKS_MAX)) {
        let (mut low, mut high) = ([0u32; BLOCK / 4], [0u32; BLOCK / 4]);
        for (to, from) in to.iter_mut().zip(from) {
            let block = *from;
            *to = block;
            let (words, _) = block.as_chunks::<4>();
            for ((low, high), word) in low.iter_mut().zip(&mut high).zip(words) {
                let word = u32::from_ne_bytes(*word);
                *low = low.wrapping_add(word & 0xffff);
                *high = high.wrapping_add(word >> 16);
            }
        }
        for lane in low.iter().chain(&high) {
            sum = add_carry(sum, u64::from(*lane));
        }
    }
    sum
}

/// For processors with AVX2.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{BLOCK, BLOCKS_MAX, add_carry, add_widened, total, widened};

    #[target_feature(enable = "avx2")]
    pub(super) fn sum(blocks: &[[u8; BLOCK]]) -> u64 {
        widened(blocks)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn copy_and_sum(to: &mut [[u8; BLOCK]], from: &[[u8; BLOCK]]) -> u64 {
        let mut sum = 0;
        for (to, from) in to.chunks_mut(BLOCKS_MAX).zip(from.chunks(BLOCKS_MAX)) {
            let mut lanes = [0u64; BLOCK / 4];
            for (to, from) in to.iter_mut().zip(from) {
                let block = *from;
                *to = block;
                add_widened(&mut lanes, &block);
            }
            sum = add_carry(sum, total(&lanes));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_gives_the_same_sum() {
        let data: Vec<u8> =
            (0..64 * 100_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let fold = |sum: u64| super::super::fold64(sum);
        for blocks in [0, 1, 2, 23, 100] {
            let (blocks, _) = data[..64 * blocks].as_chunks::<BLOCK>();
            let mut to = vec![[0; BLOCK]; blocks.len()];
            let widened = fold(widened(blocks));
            assert_eq!(fold(copied_split(&mut to, blocks)), widened);
            assert_eq!(to, blocks);
            assert_eq!(fold(sum(blocks.as_flattened()).0), widened);
            to.fill([0; BLOCK]);
            let copied = copy_and_sum(to.as_flattened_mut(), blocks.as_flattened());
            assert_eq!((fold(copied.0), copied.1), (widened, blocks.len() * BLOCK));
            assert_eq!(to, blocks);
        }
    }
}
