//! How a frame is cut, how many shares it has, and which segments carry one.
//!
//! A [`Shape`] is what the outer header states; a legal one tells the receiver the same
//! [`Placement`] that the sender had. The N segments are split into n strata, neighbours together,
//! and a hash of the frame's number picks one segment in each: a burst of losses takes the shares of
//! few strata, and no two frames in a row have theirs in the same places.

use std::ops::Range;

use crate::shard::block::{MAX_BLOCK_LEN, MIN_BLOCK_LEN};
use crate::shard::coding::{Coding, Policy};

/// Most segments of a frame: 64 KB at an MTU of 576.
pub const MAX_SEGMENTS: usize = 128;

/// Numbers of a header that contradict each other.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ShapeFault {
    /// More shares are needed than sent.
    #[error("more shares are needed than sent")]
    Coding,
    /// The stream is empty, or its segments are.
    #[error("a stream or segments of no bytes")]
    Empty,
    /// More segments than a frame may have, or fewer than shares.
    #[error("{0} segments")]
    Segments(usize),
    /// The block is shorter or longer than any.
    #[error("a block of {0} bytes")]
    Block(u16),
    /// A segment is too short to carry a share.
    #[error("a segment shorter than a share")]
    Share,
}

/// How one frame is cut: what the outer header states. A value is always legal.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    length: u16,
    mss: u16,
    block_len: u16,
    coding: Coding,
    segments: u8,
}

/// Why a payload cannot be sent as one stream.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PlanError {
    /// Payload and shares are longer than a stream. Send two frames.
    #[error("the stream would be longer than {max} bytes")]
    TooLong {
        /// Bytes of the longest stream.
        max: u32,
    },
    /// The segments are too small: a frame would have more of them than it may, or they cannot hold a
    /// share. Raise the path's MTU to 576 or more.
    #[error("segments of {max_segment} bytes are too small")]
    SmallSegments {
        /// Bytes of the longest segment.
        max_segment: u16,
    },
}

impl Shape {
    /// Checks what a header states.
    ///
    /// # Errors
    /// Any [`ShapeFault`].
    pub const fn new(
        length: u16,
        mss: u16,
        coding: Coding,
        block_len: u16,
    ) -> Result<Self, ShapeFault> {
        if length == 0 || mss == 0 {
            return Err(ShapeFault::Empty);
        }
        let segments = (length as usize).div_ceil(mss as usize);
        if segments > MAX_SEGMENTS || segments < coding.n() as usize {
            return Err(ShapeFault::Segments(segments));
        }
        let len = block_len as usize;
        if len < MIN_BLOCK_LEN || len > MAX_BLOCK_LEN || !len.is_multiple_of(4) {
            return Err(ShapeFault::Block(block_len));
        }
        let shape = Self { length, mss, block_len, coding, segments: segments as u8 };
        let last = length as usize - (segments - 1) * mss as usize;
        if (mss as usize) < shape.share_len() || last < shape.share_len() {
            return Err(ShapeFault::Share);
        }
        Ok(shape)
    }

    /// Plans the stream for a payload and a block of these lengths: the fewest segments of at most
    /// `max_segment` bytes that hold both, in a stream of at most `max_stream` bytes.
    ///
    /// # Errors
    /// Any [`PlanError`].
    pub fn plan(
        payload_len: usize,
        block_len: usize,
        max_segment: u16,
        max_stream: u32,
        policy: Policy,
    ) -> Result<Self, PlanError> {
        let too_small = PlanError::SmallSegments { max_segment };
        let most = usize::from(max_segment);
        let at_least = payload_len.checked_div(most).ok_or(too_small)?.max(1);
        for segments in at_least..=MAX_SEGMENTS {
            let coding = policy.coding(segments);
            let shares = usize::from(coding.n()) * block_len.div_ceil(usize::from(coding.k()));
            let length = payload_len + shares;
            if length > segments * most {
                continue;
            }
            if length > max_stream as usize {
                return Err(PlanError::TooLong { max: max_stream });
            }
            let mss = length.div_ceil(segments);
            let shape = Self::new(length as u16, mss as u16, coding, block_len as u16);
            if let Ok(shape) = shape
                && shape.segments() == segments
            {
                return Ok(shape);
            }
        }
        Err(too_small)
    }

    /// The most payload, in whole inner segments of `inner_mss` bytes, that [`Shape::plan`] puts into
    /// one stream. None if not even one inner segment fits.
    #[must_use]
    pub fn largest_payload(
        inner_mss: u16,
        block_len: usize,
        max_segment: u16,
        max_stream: u32,
        policy: Policy,
    ) -> Option<usize> {
        let inner_mss = usize::from(inner_mss);
        let most = (max_stream as usize).saturating_sub(block_len).checked_div(inner_mss)?;
        (1..=most)
            .rev()
            .map(|count| count * inner_mss)
            .find(|len| Self::plan(*len, block_len, max_segment, max_stream, policy).is_ok())
    }

    /// Bytes of the stream: payload and shares.
    #[must_use]
    pub const fn length(&self) -> u16 {
        self.length
    }

    /// Bytes of each segment but the last.
    #[must_use]
    pub const fn mss(&self) -> u16 {
        self.mss
    }

    /// Bytes of the block.
    #[must_use]
    pub const fn block_len(&self) -> u16 {
        self.block_len
    }

    /// The code.
    #[must_use]
    pub const fn coding(&self) -> Coding {
        self.coding
    }

    /// Segments.
    #[must_use]
    pub const fn segments(&self) -> usize {
        self.segments as usize
    }

    /// Bytes of one share.
    #[must_use]
    pub const fn share_len(&self) -> usize {
        (self.block_len as usize).div_ceil(self.coding.k() as usize)
    }

    /// Bytes of payload.
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        // Each segment can hold a share, and there are no more shares than segments.
        self.length as usize - self.coding.n() as usize * self.share_len()
    }

    /// The stream bytes of segment `i`; empty past the last one.
    #[must_use]
    pub const fn stream_range(&self, i: usize) -> Range<usize> {
        let (mss, length) = (self.mss as usize, self.length as usize);
        let start = if i * mss > length { length } else { i * mss };
        let end = if start + mss > length { length } else { start + mss };
        start..end
    }

    /// The segments that stream bytes are; None unless they begin and end where segments do.
    #[must_use]
    pub fn segments_of(&self, stream: Range<usize>) -> Option<Range<usize>> {
        let (mss, length) = (usize::from(self.mss), usize::from(self.length));
        let Range { start, end } = stream;
        let whole = start.is_multiple_of(mss) && (end == length || end.is_multiple_of(mss));
        (whole && start < end && end <= length).then(|| start / mss..end.div_ceil(mss))
    }
}

/// Which segments of a frame carry a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    frame: u32,
    shape: Shape,
    carriers: u128,
    // Where the payload of each segment begins, since sender and receiver ask several times for each; the end from the
    // last segment on.
    starts: [u16; MAX_SEGMENTS + 1],
}

impl Placement {
    /// Computes it for the frame of this number.
    #[must_use]
    pub fn new(frame: u32, shape: Shape) -> Self {
        let (segments, n) = (u32::from(shape.segments), u32::from(shape.coding.n()));
        let mut carriers = 0u128;
        let mut starts = [shape.payload_len() as u16; MAX_SEGMENTS + 1];
        let (mss, share_len) = (shape.mss, shape.share_len() as u16);
        let (each, more) = (segments / n, segments % n);
        let (mut start, mut behind, mut at) = (0, 0, 0u16);
        for stratum in 0..n {
            // It ends at `(stratum + 1) * segments / n`; one division is enough for all of them.
            behind += more;
            let end = start + each + u32::from(behind >= n);
            behind -= if behind >= n { n } else { 0 };
            let pick = (u64::from(spread(frame, stratum)) * u64::from(end - start)) >> 32;
            let pick = start + pick as u32;
            carriers |= 1 << pick;
            let of_stratum = starts.get_mut(start as usize..end as usize).unwrap_or_default();
            for (segment, begins) in (start..end).zip(of_stratum) {
                *begins = at;
                // Past the last segment, which may be a short one, nobody asks.
                at = at.wrapping_add(mss - if segment == pick { share_len } else { 0 });
            }
            start = end;
        }
        Self { frame, shape, carriers, starts }
    }

    /// The number of the frame.
    #[must_use]
    pub const fn frame(&self) -> u32 {
        self.frame
    }

    /// How the frame is cut.
    #[must_use]
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The number of the share that segment `i` carries.
    #[inline]
    #[must_use]
    pub fn share_of(&self, i: usize) -> Option<usize> {
        let carries = self.carriers.checked_shr(i as u32).unwrap_or(0) & 1 != 0;
        carries.then(|| self.shares_before(i))
    }

    /// The segments that carry a share, in order.
    pub fn carriers(&self) -> impl Iterator<Item = usize> + use<> {
        let mut left = self.carriers;
        std::iter::from_fn(move || {
            let next = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (next < MAX_SEGMENTS).then_some(next)
        })
    }

    /// Shares before segment `i`.
    #[must_use]
    pub fn shares_before(&self, i: usize) -> usize {
        let below = match i {
            0..MAX_SEGMENTS => (1u128 << i) - 1,
            _ => u128::MAX,
        };
        (self.carriers & below).count_ones() as usize
    }

    /// The bytes of the frame's payload that segment `i` carries, behind its share if it has one.
    #[inline]
    #[must_use]
    pub fn payload_range(&self, i: usize) -> Range<usize> {
        let [.., end] = self.starts;
        let at = |i: usize| usize::from(self.starts.get(i).copied().unwrap_or(end));
        at(i)..at(i + 1)
    }
}

/// 32 bits of which each depends on all of `frame` and `stratum`.
fn spread(frame: u32, stratum: u32) -> u32 {
    let mut x = frame.wrapping_add(0x9e37_79b9u32.wrapping_mul(stratum + 1));
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(length: u16, mss: u16, k: u8, n: u8, block_len: u16) -> Result<Shape, ShapeFault> {
        Shape::new(length, mss, Coding::new(k, n).unwrap(), block_len)
    }

    #[test]
    fn illegal_shapes_are_refused_by_name() {
        assert_eq!(shape(0, 1000, 1, 1, 80), Err(ShapeFault::Empty));
        assert_eq!(shape(1000, 0, 1, 1, 80), Err(ShapeFault::Empty));
        assert_eq!(shape(12_900, 100, 1, 1, 80), Err(ShapeFault::Segments(129)));
        assert_eq!(shape(1000, 1000, 1, 2, 80), Err(ShapeFault::Segments(1)));
        assert_eq!(shape(1000, 1000, 1, 1, 0), Err(ShapeFault::Block(0)));
        assert_eq!(shape(1000, 1000, 1, 1, 82), Err(ShapeFault::Block(82)));
        assert_eq!(shape(1000, 1000, 1, 1, 508), Err(ShapeFault::Block(508)));
        assert_eq!(shape(300, 40, 1, 2, 80), Err(ShapeFault::Share));
        assert_eq!(shape(1070, 1000, 1, 2, 80), Err(ShapeFault::Share), "the last one");
        assert!(shape(1080, 1000, 1, 2, 80).is_ok());
    }

    #[test]
    fn a_64_kb_frame_has_four_of_eight_shares() {
        let shape = Shape::plan(65_160, 80, 1460, 65_495, Policy::BySegments).unwrap();
        assert_eq!(shape.segments(), 45);
        assert_eq!(Ok(shape.coding()), Coding::new(4, 8));
        assert_eq!((shape.length(), shape.mss(), shape.share_len()), (65_320, 1452, 20));
        assert_eq!(shape.payload_len(), 65_160);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let plan = |len, segment, stream| Shape::plan(len, 80, segment, stream, Policy::BySegments);
        assert_eq!(plan(65_495, 1460, 65_495), Err(PlanError::TooLong { max: 65_495 }));
        assert!(plan(65_335, 1460, 65_495).is_ok());
        assert_eq!(plan(100, 0, 65_495), Err(PlanError::SmallSegments { max_segment: 0 }));
        assert_eq!(plan(0, 79, 65_495), Err(PlanError::SmallSegments { max_segment: 79 }));
        assert!(plan(0, 80, 65_495).is_ok());
        assert_eq!(plan(65_000, 400, 65_495), Err(PlanError::SmallSegments { max_segment: 400 }));
        let most = Shape::largest_payload(1448, 80, 1460, 65_495, Policy::BySegments);
        assert_eq!(most, Some(45 * 1448));
        assert_eq!(Shape::largest_payload(0, 80, 1460, 65_495, Policy::BySegments), None);
    }

    #[test]
    fn shares_spread_over_strata() {
        let shape = shape(65_320, 1452, 4, 8, 80).unwrap();
        let mut seen = [0u32; 45];
        for frame in 0..45_000 {
            let placement = Placement::new(frame, shape);
            let carriers: Vec<_> = placement.carriers().collect();
            assert_eq!(carriers.len(), 8);
            for (stratum, at) in carriers.into_iter().enumerate() {
                assert!((stratum * 45 / 8..(stratum + 1) * 45 / 8).contains(&at));
                assert_eq!(placement.share_of(at), Some(stratum));
                seen[at] += 1;
            }
        }
        // 5 or 6 segments a stratum: 9,000 or 7,500 frames each.
        assert!(seen.iter().all(|count| (7000..9500).contains(count)), "{seen:?}");
    }

    #[test]
    fn only_whole_segments_are_segments() {
        let shape = shape(2500, 1000, 1, 2, 80).unwrap();
        assert_eq!(shape.segments_of(0..1000), Some(0..1));
        assert_eq!(shape.segments_of(1000..2500), Some(1..3));
        for bad in [0..999, 1..1000, 1000..1000, 2000..2400, 2000..3000, 3000..4000] {
            assert_eq!(shape.segments_of(bad.clone()), None, "{bad:?}");
        }
    }
}
