//! A packet: one frame, or several in a row.

use std::ops::Range;

use crate::{Frame, FrameCache};

/// A packet of one or more frames in order.
///
/// Nearly every packet is one frame, and then `tail` owns no memory. Superframes come in up to 18.
#[derive(Debug)]
#[must_use = "a packet that is dropped is lost to the arena; free it to a FrameCache"]
pub struct Buf {
    head: Frame,
    tail: Vec<Frame>,
}

/// A frame of a packet, found before. A reader that goes forward through a packet keeps one, so that
/// it need not walk from the first frame each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    frame: usize,
    /// Bytes of the packet in front of that frame.
    start: usize,
}

impl From<Frame> for Buf {
    fn from(head: Frame) -> Self {
        Self { head, tail: Vec::new() }
    }
}

impl Buf {
    /// A packet of `head` followed by the frames of `tail`
    /// (take the vector from [`FrameCache::spare_vec`]).
    pub fn new(head: Frame, tail: Vec<Frame>) -> Self {
        Self { head, tail }
    }

    /// A packet of the first frames of `slots`, into which the kernel wrote `len` bytes one after the other. `None`
    /// where that is nothing.
    pub(crate) fn of_filled(
        slots: &mut [Option<Frame>],
        len: usize,
        cache: &mut FrameCache,
    ) -> Option<Self> {
        let mut left = len;
        let mut packet: Option<Self> = None;
        for slot in slots {
            if left == 0 {
                break;
            }
            let Some(mut frame) = slot.take() else { break };
            let n = left.min(frame.tailroom());
            left -= n;
            let fits = frame.set_len(n);
            debug_assert!(fits, "n is at most the tailroom");
            match packet.as_mut() {
                None => packet = Some(Self::from(frame)),
                Some(buf) => buf.push_with(frame, cache),
            }
        }
        packet
    }

    /// Gives up the packet for its frames.
    pub fn into_parts(self) -> (Frame, Vec<Frame>) {
        (self.head, self.tail)
    }

    /// The first frame.
    #[inline]
    pub fn head(&self) -> &Frame {
        &self.head
    }

    /// The first frame, to push or pull headers.
    #[inline]
    pub fn head_mut(&mut self) -> &mut Frame {
        &mut self.head
    }

    /// The frames after the first.
    #[inline]
    pub fn tail(&self) -> &[Frame] {
        &self.tail
    }

    /// The frames after the first, to be changed in place.
    #[inline]
    pub fn tail_mut(&mut self) -> &mut [Frame] {
        &mut self.tail
    }

    /// All frames in order.
    pub fn frames(&self) -> impl Iterator<Item = &Frame> {
        std::iter::once(&self.head).chain(&self.tail)
    }

    /// Number of frames, the empty ones too.
    #[inline]
    pub fn frame_count(&self) -> usize {
        1 + self.tail.len()
    }

    /// Appends a frame.
    #[inline]
    pub fn push(&mut self, frame: Frame) {
        self.tail.push(frame);
    }

    /// Appends a frame, taking the tail's memory from the cache when there is none yet.
    #[inline]
    pub(crate) fn push_with(&mut self, frame: Frame, cache: &mut FrameCache) {
        if self.tail.capacity() == 0 {
            self.tail = cache.spare_vec();
        }
        self.tail.push(frame);
    }

    /// Length of the packet in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.iter().map(Frame::len).sum::<usize>()
    }

    /// True when the packet holds no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when the packet has more than one frame.
    #[inline]
    pub fn is_multi(&self) -> bool {
        !self.tail.is_empty()
    }

    /// The bytes, frame by frame.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.frames().map(Frame::data)
    }

    /// Calls `f` with each contiguous piece of `range` (bytes of the packet), in order; a range
    /// beyond the end is cut. Returns the number of bytes seen.
    #[inline]
    pub fn slice_range<'a>(&'a self, range: Range<usize>, f: impl FnMut(&'a [u8])) -> usize {
        self.slice_range_at(&mut Place::default(), range, f)
    }

    /// As [`slice_range`](Self::slice_range), starting the search at `place`, which a former call
    /// on this packet left; afterwards it is where `range` begins. A place behind the range costs a
    /// search from the start. One of another packet, or from before this one's frames changed, finds
    /// the wrong bytes: start with the default there.
    #[inline]
    pub fn slice_range_at<'a>(
        &'a self,
        place: &mut Place,
        range: Range<usize>,
        mut f: impl FnMut(&'a [u8]),
    ) -> usize {
        if place.start > range.start {
            *place = Place::default();
        }
        let (mut skip, mut left, mut seen) = (range.start - place.start, range.len(), 0);
        let mut at = place.frame;
        while left > 0 {
            let Some(frame) = self.frame(at) else { break };
            let data = frame.data();
            at += 1;
            let rest = match data.get(skip..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => {
                    skip -= data.len();
                    if seen == 0 {
                        *place = Place { frame: at, start: place.start + data.len() };
                    }
                    continue;
                }
            };
            let piece = rest.get(..left).unwrap_or(rest);
            skip = 0;
            left -= piece.len();
            seen += piece.len();
            f(piece);
        }
        seen
    }

    #[inline]
    fn frame(&self, at: usize) -> Option<&Frame> {
        match at.checked_sub(1) {
            None => Some(&self.head),
            Some(at) => self.tail.get(at),
        }
    }

    /// Copies bytes from `offset` on into `out`; returns how many there were.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> usize {
        self.copy_to_at(&mut Place::default(), offset, out)
    }

    /// As [`copy_to`](Self::copy_to), starting the search at `place`.
    pub fn copy_to_at(&self, place: &mut Place, offset: usize, out: &mut [u8]) -> usize {
        let mut at = 0;
        self.slice_range_at(place, offset..offset.saturating_add(out.len()), |piece| {
            if let Some(room) = out.get_mut(at..at + piece.len()) {
                room.copy_from_slice(piece);
                at += piece.len();
            }
        })
    }

    /// All bytes in one new vector: for tests, captures and replies, not for the packet path.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        self.slices().for_each(|s| all.extend_from_slice(s));
        all
    }

    /// Cuts the packet to at most `total_len` bytes; frames past the end go to the cache.
    pub fn truncate(&mut self, total_len: usize, cache: &mut FrameCache) {
        let mut left = total_len;
        let mut keep = 0;
        let keep_of = |frame: &mut Frame, left: usize| {
            let n = frame.len().min(left);
            let shortened = frame.set_len(n);
            debug_assert!(shortened, "a shorter length always fits");
            n
        };
        left -= keep_of(&mut self.head, left);
        for frame in &mut self.tail {
            if left == 0 {
                break;
            }
            left -= keep_of(frame, left);
            keep += 1;
        }
        while self.tail.len() > keep {
            if let Some(frame) = self.tail.pop() {
                cache.free(frame);
            }
        }
    }

    /// Removes `n` bytes from the front, also beyond the first frame; frames emptied on the way go
    /// to the cache. `false`, and no change, when the packet is shorter.
    #[must_use = "false means that nothing was removed"]
    pub fn trim_front(&mut self, n: usize, cache: &mut FrameCache) -> bool {
        if self.head.pull_front(n) {
            return true;
        }
        if n > self.len() {
            return false;
        }
        let mut left = n;
        while left > self.head.len() && !self.tail.is_empty() {
            left -= self.head.len();
            let next = self.tail.remove(0);
            cache.free(std::mem::replace(&mut self.head, next));
        }
        self.head.pull_front(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arena;
    use proptest::prelude::*;

    fn buf_of(pieces: &[Vec<u8>], cache: &mut FrameCache) -> Buf {
        let mut frames = pieces.iter().map(|p| {
            let mut f = cache.alloc().unwrap();
            assert!(f.extend(p));
            f
        });
        let head = frames.next().unwrap();
        let tail = frames.collect();
        Buf::new(head, tail)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_scattered_packet_reads_and_trims_like_a_flat_one(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            start in 0usize..200, len in 0usize..200, front in 0usize..200, cut in 0usize..200,
        ) {
            let arena = Arena::new(64).unwrap();
            let mut cache = FrameCache::new(arena);
            let mut flat = pieces.concat();
            let mut buf = buf_of(&pieces, &mut cache);
            prop_assert_eq!(buf.len(), flat.len());
            prop_assert_eq!(buf.to_vec(), flat.clone());

            let mut got = Vec::new();
            let seen = buf.slice_range(start..start + len, |s| got.extend_from_slice(s));
            let from = start.min(flat.len());
            let want = &flat[from..(start + len).min(flat.len()).max(from)];
            prop_assert_eq!(seen, want.len());
            prop_assert_eq!(&got, want);
            let mut place = Place::default();
            for (from, n) in [(front, 9), (front, len), (start, len), (cut, 0), (cut, 30), (0, 7)] {
                let mut got = Vec::new();
                buf.slice_range_at(&mut place, from..from + n, |s| got.extend_from_slice(s));
                let begin = from.min(flat.len());
                prop_assert_eq!(&got, &flat[begin..(from + n).min(flat.len()).max(begin)]);
            }
            let mut out = vec![0; len];
            prop_assert_eq!(buf.copy_to(start, &mut out), want.len());
            prop_assert_eq!(&out[..want.len()], want);

            let trimmed = buf.trim_front(front, &mut cache);
            prop_assert_eq!(trimmed, front <= flat.len());
            if trimmed {
                flat.drain(..front);
            }
            prop_assert_eq!(buf.to_vec(), flat.clone());
            buf.truncate(cut, &mut cache);
            flat.truncate(cut);
            prop_assert_eq!(buf.to_vec(), flat);
            cache.free_buf(buf);
            drop(cache);
            prop_assert!(arena.stats().is_whole(0));
        }
    }
}
