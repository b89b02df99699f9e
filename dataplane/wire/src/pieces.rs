//! A payload that lies in several buffers.

use std::ops::Range;

use crate::checksum::{Sum, copy_and_sum};

/// A cursor over a chain of slices, addressed as one run of bytes.
///
/// Ranges that ascend cost nothing to find; one before the last restarts the walk.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    slices: &'a [&'a [u8]],
    skip: usize,
    index: usize,
    // Address of the current slice's first byte, `skip` not yet taken off.
    start: usize,
}

impl<'a> Pieces<'a> {
    /// Addresses `slices` from `skip` bytes after their start: the headers of a frame whose payload
    /// is meant.
    #[must_use]
    pub const fn new(slices: &'a [&'a [u8]], skip: usize) -> Self {
        Self { slices, skip, index: 0, start: 0 }
    }

    /// Bytes in the chain after those skipped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slices.iter().map(|s| s.len()).sum::<usize>().saturating_sub(self.skip)
    }

    /// True if nothing follows what is skipped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with the slices that make up `range`, in order, and answers how many bytes
    /// there were: fewer than asked where the chain ends before.
    pub fn slices_of(&mut self, range: Range<usize>, mut each: impl FnMut(&'a [u8])) -> usize {
        let mut at = range.start.saturating_add(self.skip);
        let end = range.end.saturating_add(self.skip);
        if at < self.start {
            self.index = 0;
            self.start = 0;
        }
        let mut done = 0;
        while at < end {
            let Some(slice) = self.slices.get(self.index) else { break };
            let offset = at - self.start;
            if offset >= slice.len() {
                self.start += slice.len();
                self.index += 1;
                continue;
            }
            let take = (end - at).min(slice.len() - offset);
            let Some(piece) = slice.get(offset..offset + take) else { break };
            each(piece);
            at += take;
            done += take;
        }
        done
    }

    /// Copies `range` to the start of `out` and sums it in the same pass; `None` if the chain or
    /// `out` is shorter.
    pub fn copy_range_and_sum(&mut self, range: Range<usize>, out: &mut [u8]) -> Option<Sum> {
        let len = range.len();
        let mut rest = out.get_mut(..len)?;
        let mut sum = Sum::default();
        let done = self.slices_of(range, |piece| {
            let (to, after) = std::mem::take(&mut rest).split_at_mut(piece.len());
            sum = sum.add_sum(copy_and_sum(to, piece));
            rest = after;
        });
        (done == len).then_some(sum)
    }

    /// Sums `range`; `None` if the chain is shorter.
    pub fn sum(&mut self, range: Range<usize>) -> Option<Sum> {
        let len = range.len();
        let mut sum = Sum::default();
        (self.slices_of(range, |piece| sum = sum.add(piece)) == len).then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_slices_and_may_go_back() {
        let data: Vec<u8> = (0..50).collect();
        let slices = [&data[..7], &data[7..7], &data[7..8], &data[8..31], &data[31..]];
        let mut pieces = Pieces::new(&slices, 5);
        assert_eq!(pieces.len(), 45);
        let ranges = [(0, 45), (0, 1), (1, 4), (20, 45), (3, 30), (45, 45), (0, 2)];
        for (from, to) in ranges {
            let mut out = vec![0u8; to - from];
            let sum = pieces.copy_range_and_sum(from..to, &mut out).unwrap();
            assert_eq!(out, &data[5 + from..5 + to]);
            assert_eq!(sum.fold(), Sum::default().add(&out).fold());
            assert_eq!(pieces.sum(from..to).unwrap().fold(), sum.fold());
        }
    }

    #[test]
    fn a_range_past_the_end_is_refused() {
        let data = [1u8, 2, 3];
        let slices = [&data[..]];
        let mut pieces = Pieces::new(&slices, 1);
        assert!(pieces.copy_range_and_sum(0..3, &mut [0; 8]).is_none());
        assert!(pieces.copy_range_and_sum(0..2, &mut [0; 1]).is_none());
        assert!(pieces.sum(0..3).is_none());
        assert!(pieces.sum(0..2).is_some());
        assert_eq!(pieces.slices_of(usize::MAX..usize::MAX, |_| ()), 0);
    }
}
