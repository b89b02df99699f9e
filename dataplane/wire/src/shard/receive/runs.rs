//! Sets of segments as bits, and where the bytes of a run are.

use std::ops::Range;

use crate::shard::coding::MAX_SHARES;
use crate::shard::placement::{MAX_SEGMENTS, Placement};

/// No token: a segment that has been delivered, or carries nothing but a share.
pub(super) const NOBODY: u8 = u8::MAX;

/// Bits `range` of a set of segments.
pub(super) fn bits(range: Range<usize>) -> u128 {
    let below = |i: usize| if i < MAX_SEGMENTS { (1u128 << i) - 1 } else { u128::MAX };
    below(range.end) & !below(range.start)
}

/// The runs of ones in a set, in order.
pub(super) fn runs(mut set: u128) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let start = set.trailing_zeros() as usize;
        let len = (!(set >> start)).trailing_zeros() as usize;
        let run = start..(start + len).min(MAX_SEGMENTS);
        set &= !bits(run.clone());
        Some(run)
    })
}

/// Calls `each` with the owners of the segments that carry these payload bytes, in order, neighbours of
/// one owner together.
pub(super) fn walk(
    placement: &Placement,
    owners: &[u8; MAX_SEGMENTS],
    segments: Range<usize>,
    payload: &Range<usize>,
    mut each: impl FnMut(u8, Range<usize>),
) {
    let mut group: Option<(u8, Range<usize>)> = None;
    for i in segments {
        let carried = placement.payload_range(i);
        if carried.is_empty() || carried.end <= payload.start || carried.start >= payload.end {
            continue;
        }
        let owner = owners.get(i).copied().unwrap_or(NOBODY);
        match &mut group {
            Some((same, group)) if *same == owner => group.end = i + 1,
            _ => {
                if let Some((owner, group)) = group.replace((owner, i..i + 1)) {
                    each(owner, group);
                }
            }
        }
    }
    if let Some((owner, group)) = group {
        each(owner, group);
    }
}

/// Where the bytes of a run are in one token: what is between them are shares.
pub(super) struct Ranges {
    ranges: [Range<usize>; MAX_SHARES + 1],
    count: usize,
}

impl Ranges {
    pub(super) fn new() -> Self {
        Self { ranges: std::array::from_fn(|_| 0..0), count: 0 }
    }

    /// Those of the bytes of `payload` that are in `segments`, all of one token, whose first segment is `first`.
    pub(super) fn of(
        &mut self,
        placement: &Placement,
        first: usize,
        segments: Range<usize>,
        payload: &Range<usize>,
    ) -> &[Range<usize>] {
        self.count = 0;
        let token_start = placement.shape().stream_range(first).start;
        for i in segments {
            let stream = placement.shape().stream_range(i);
            let carried = placement.payload_range(i);
            let (start, end) = (carried.start.max(payload.start), carried.end.min(payload.end));
            if start >= end {
                continue;
            }
            // Payload is at the end of its segment.
            let behind = |at: usize| stream.end - (carried.end - at) - token_start;
            self.push(behind(start)..behind(end));
        }
        self.ranges.get(..self.count).unwrap_or_default()
    }

    fn push(&mut self, range: Range<usize>) {
        match self.ranges.get_mut(..self.count).and_then(<[_]>::last_mut) {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => {
                if let Some(place) = self.ranges.get_mut(self.count) {
                    *place = range;
                    self.count += 1;
                }
            }
        }
    }
}
