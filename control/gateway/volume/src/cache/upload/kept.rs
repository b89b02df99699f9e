//! What cuts that failed leave to the next one: packs that nothing names.
//!
//! It is right as far as nothing was written since to where its blocks are from. There may be millions of ranges,
//! so under the lock of the state only sets of blocks are compared.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::CHUNK_BLOCKS;
use crate::bits::BlockSet;
use crate::format::index::{Extent, cut};

/// Blocks of a chunk and where they are now. `None`: holes.
type Part = (Range<u16>, Option<Extent>);

/// What a cut changes in the index, by chunk.
pub(crate) type Changes = BTreeMap<u32, Vec<Part>>;

/// What a cut put into packs and did not publish. While a cut is under way, what was written since it began.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    changes: Changes,
    /// The blocks of `changes`.
    put: BTreeMap<u32, BlockSet>,
    /// Blocks that were written to since the cut began. Of these `changes` is not right any more.
    written: BTreeMap<u32, BlockSet>,
}

impl Kept {
    /// What a cut leaves that put `changes`, if nothing was written meanwhile: see
    /// [`take_written`](Self::take_written).
    pub(super) fn new(changes: Changes) -> Kept {
        let blocks_of = |parts: &[Part]| {
            let mut blocks = BlockSet::EMPTY;
            for (range, _) in parts {
                blocks.insert_range(range.clone());
            }
            blocks
        };
        let put = changes.iter().map(|(chunk, parts)| (*chunk, blocks_of(parts))).collect();
        Kept { changes, put, written: BTreeMap::new() }
    }

    /// Takes over what was written during the cut.
    pub(super) fn take_written(&mut self, during: &mut Kept) {
        self.written = std::mem::take(&mut during.written);
    }

    /// Whether it has nothing for the next cut.
    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Blocks of a chunk get newer values.
    pub(crate) fn written(&mut self, chunk: u32, blocks: Range<u16>) {
        self.written.entry(chunk).or_insert(BlockSet::EMPTY).insert_range(blocks);
    }

    /// Blocks of a chunk that are in packs with their newest values.
    pub(super) fn newest(&self, chunk: u32) -> BlockSet {
        let put = self.put.get(&chunk).copied().unwrap_or(BlockSet::EMPTY);
        self.written.get(&chunk).map_or(put, |written| put.without(written))
    }

    /// What of `wanted` is in packs with its newest value. It is taken out of `wanted`.
    pub(super) fn take_from(
        &self,
        wanted: &mut BTreeMap<u32, BlockSet>,
    ) -> BTreeMap<u32, BlockSet> {
        let mut taken = BTreeMap::new();
        for &chunk in self.put.keys() {
            let Some(left) = wanted.get_mut(&chunk) else {
                continue;
            };
            let mut blocks = self.newest(chunk);
            blocks.intersect(left);
            left.subtract(&blocks);
            if left.is_empty() {
                wanted.remove(&chunk);
            }
            if !blocks.is_empty() {
                taken.insert(chunk, blocks);
            }
        }
        taken
    }

    /// What is right of it still. Where that is more than a cut wants, the store has the same already.
    pub(super) fn into_changes(mut self) -> Changes {
        for (chunk, written) in &self.written {
            if let Some(parts) = self.changes.get_mut(chunk) {
                let all = std::mem::take(parts).into_iter();
                *parts = all.flat_map(|part| outside(part, written)).collect();
            }
        }
        self.changes.retain(|_, parts| !parts.is_empty());
        self.changes
    }
}

/// What of a part lies outside `blocks`.
fn outside((range, extent): Part, blocks: &BlockSet) -> Vec<Part> {
    if !blocks.intersects(range.clone()) {
        return vec![(range, extent)];
    }
    let mut left = BlockSet::EMPTY;
    left.insert_range(range);
    left.subtract(blocks);
    let part = |run: Range<u16>| match &extent {
        Some(extent) => cut(extent, run.start, run.end).map(|part| (run, Some(part))),
        None => Some((run, None)),
    };
    left.runs(CHUNK_BLOCKS).into_iter().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::ObjectId;

    fn set(blocks: Range<u16>) -> BlockSet {
        let mut set = BlockSet::EMPTY;
        set.insert_range(blocks);
        set
    }

    #[test]
    fn what_was_written_since_is_not_taken_and_not_named() {
        let pack = ObjectId { epoch: 1, nonce: 2, number: 3 };
        let extent = Extent { first: 10, pack, at: 5, crcs: (10..20).collect() };
        let mut during = Kept::default();
        during.written(7, 12..14);
        let first = vec![(10..20, Some(extent)), (30..32, None)];
        let mut kept = Kept::new(BTreeMap::from([(7, first), (8, vec![(0..4, None)])]));
        kept.take_written(&mut during);
        kept.written(8, 0..9);
        let mut newest = set(10..12);
        newest.add(&set(14..20));
        newest.add(&set(30..32));
        let other = (8, set(0..4));
        let mut wanted = BTreeMap::from([(7, set(0..40)), other, (9, set(0..1))]);
        assert_eq!(kept.take_from(&mut wanted), BTreeMap::from([(7, newest)]));
        let left = set(0..40).without(&newest);
        assert_eq!(wanted, BTreeMap::from([(7, left), other, (9, set(0..1))]));
        let changes = kept.into_changes();
        let ranges: Vec<_> = changes[&7].iter().map(|(range, _)| range.clone()).collect();
        assert_eq!((changes.len(), ranges), (1, newest.runs(CHUNK_BLOCKS)));
        let extent = changes[&7][1].1.as_ref().unwrap();
        assert_eq!((extent.first, extent.at, extent.crcs[0]), (14, 9, 14));
    }
}
