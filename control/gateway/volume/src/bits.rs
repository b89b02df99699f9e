//! A set of the blocks of one chunk.

use std::ops::Range;

use crate::CHUNK_BLOCKS;

/// Bytes of a [`BlockSet`] on disk.
pub(crate) const BLOCK_SET_BYTES: usize = CHUNK_BLOCKS as usize / 8;
const WORDS: usize = CHUNK_BLOCKS as usize / 64;

/// A set of blocks of a chunk, one bit each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlockSet([u64; WORDS]);

impl BlockSet {
    /// No block.
    pub const EMPTY: BlockSet = BlockSet([0; WORDS]);

    /// Whether `block` is in the set. No block above the chunk is.
    #[must_use]
    pub fn contains(&self, block: u16) -> bool {
        self.0.get(usize::from(block / 64)).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Whether no block is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Number of blocks in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Adds one block.
    pub fn insert(&mut self, block: u16) {
        if let Some(word) = self.0.get_mut(usize::from(block / 64)) {
            *word |= 1 << (block % 64);
        }
    }

    /// Takes one block out.
    pub fn remove(&mut self, block: u16) {
        if let Some(word) = self.0.get_mut(usize::from(block / 64)) {
            *word &= !(1 << (block % 64));
        }
    }

    /// Adds one block, or takes it out.
    pub fn set(&mut self, block: u16, is_in: bool) {
        if is_in {
            self.insert(block);
        } else {
            self.remove(block);
        }
    }

    /// Adds `blocks`.
    pub fn insert_range(&mut self, blocks: Range<u16>) {
        for block in blocks {
            self.insert(block);
        }
    }

    /// Takes `blocks` out.
    pub fn remove_range(&mut self, blocks: Range<u16>) {
        for block in blocks {
            self.remove(block);
        }
    }

    /// Whether one of `blocks` is in the set.
    #[must_use]
    pub fn intersects(&self, mut blocks: Range<u16>) -> bool {
        blocks.any(|block| self.contains(block))
    }

    /// What is in this set or the other.
    pub fn add(&mut self, other: &BlockSet) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a |= b;
        }
    }

    /// Takes out what is in `other`.
    pub fn subtract(&mut self, other: &BlockSet) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a &= !b;
        }
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(mut self, other: &BlockSet) -> BlockSet {
        self.subtract(other);
        self
    }

    /// Takes out what is not in `other`.
    pub fn intersect(&mut self, other: &BlockSet) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a &= b;
        }
    }

    /// The blocks in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().enumerate().flat_map(|(i, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as u16;
                    rest &= rest - 1;
                    i as u16 * 64 + bit
                })
            })
        })
    }

    /// The runs of neighbouring blocks, each at most `limit` long.
    pub fn runs(&self, limit: u16) -> Vec<Range<u16>> {
        let mut runs: Vec<Range<u16>> = Vec::new();
        for block in self.iter() {
            match runs.last_mut() {
                Some(run) if run.end == block && run.end - run.start < limit => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }

    /// One bit for each group of 16 blocks that has a block in the set.
    #[must_use]
    pub fn summary(&self) -> u64 {
        let mut summary = 0;
        for block in self.iter() {
            summary |= 1 << (block / 16);
        }
        summary
    }

    /// All blocks of the groups of 16 that have a bit in `summary`: no fewer than those of which it is the
    /// [`summary`](Self::summary).
    #[must_use]
    pub fn from_summary(summary: u64) -> BlockSet {
        let mut set = BlockSet::EMPTY;
        for (i, word) in set.0.iter_mut().enumerate() {
            for group in (0..4).filter(|group| summary >> (4 * i + group) & 1 == 1) {
                *word |= 0xffff << (16 * group);
            }
        }
        set
    }

    /// As bytes: bit `i % 8` of byte `i / 8` is block `i`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BLOCK_SET_BYTES] {
        let mut bytes = [0; BLOCK_SET_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The inverse of [`to_bytes`](Self::to_bytes); missing bytes are zero.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> BlockSet {
        let mut set = BlockSet::EMPTY;
        for (word, chunk) in set.0.iter_mut().zip(bytes.chunks(8)) {
            let mut le = [0; 8];
            le[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(le);
        }
        set
    }
}

impl std::fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runs(CHUNK_BLOCKS)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_at_the_limit_and_bytes_round_trip() {
        let mut set = BlockSet::EMPTY;
        set.insert_range(60..70);
        set.insert(1023);
        assert_eq!(set.runs(4), [60..64, 64..68, 68..70, 1023..1024]);
        assert_eq!(set.len(), 11);
        assert_eq!(BlockSet::from_bytes(&set.to_bytes()), set);
        assert_eq!(set.summary(), 1 << 3 | 1 << 4 | 1 << 63);
        let groups = BlockSet::from_summary(set.summary());
        assert_eq!(groups.runs(1024), [48..80, 1008..1024]);
        let mut other = BlockSet::EMPTY;
        other.insert_range(66..90);
        other.intersect(&set);
        assert_eq!(other.runs(1024), vec![66..70]);
        assert_eq!(set.without(&other).runs(1024), [60..66, 1023..1024]);
        set.remove_range(0..1024);
        assert!(set.is_empty());
    }
}
