//! Taking shares out of the middle of a packet, without a copy of the rest.

use std::ops::Range;

use culvert_port::{Buf, Frame, FrameCache};

/// Appends those ranges of a packet's bytes, which ascend and do not overlap, to `out`; frees what is left
/// over. Within a frame the longest piece stays where it is and the others move up to it.
pub(super) fn keep(
    buf: Buf,
    ranges: &[Range<usize>],
    cache: &mut FrameCache,
    out: &mut Option<Buf>,
) {
    let (head, tail) = buf.into_parts();
    let (mut start, mut first) = (0, 0);
    for mut frame in std::iter::once(head).chain(tail) {
        let end = start + frame.len();
        while ranges.get(first).is_some_and(|range| range.end <= start) {
            first += 1;
        }
        let here = ranges.get(first..).unwrap_or_default();
        let here = here.iter().take_while(|range| range.start < end);
        let here = here.map(|range| range.start.max(start) - start..range.end.min(end) - start);
        let kept = compact(&mut frame, &here);
        start = end;
        match out {
            _ if !kept => cache.free(frame),
            None => *out = Some(Buf::from(frame)),
            Some(out) => out.push(frame),
        }
    }
}

/// Leaves only those ranges in the frame. False if that is nothing.
fn compact<R: Iterator<Item = Range<usize>> + Clone>(frame: &mut Frame, ranges: &R) -> bool {
    let longest = ranges.clone().enumerate().max_by_key(|(_, range)| range.len());
    let Some((at, stays)) = longest.filter(|(_, range)| !range.is_empty()) else { return false };
    let data = frame.data_mut();
    let mut end = stays.end;
    for range in ranges.clone().skip(at + 1) {
        let len = range.len();
        data.copy_within(range, end);
        end += len;
    }
    let mut start = stays.start;
    // Backwards: what is nearest moves first. There are few.
    for before in (0..at).rev() {
        let Some(range) = ranges.clone().nth(before) else { continue };
        start -= range.len();
        data.copy_within(range, start);
    }
    frame.pull_front(start) && frame.set_len(end - start)
}

#[cfg(test)]
mod tests {
    use culvert_port::Arena;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_is_what_was_asked_for_in_its_order(
            frames in prop::collection::vec(1..200usize, 1..8),
            cuts in prop::collection::btree_set(0..800usize, 0..20),
        ) {
            let mut cache = FrameCache::new(Arena::new(64).unwrap());
            let free = std::iter::from_fn(|| cache.alloc()).collect::<Vec<_>>();
            let count = free.len();
            free.into_iter().for_each(|frame| cache.free(frame));
            let (mut flat, mut buf) = (Vec::new(), None::<Buf>);
            for len in frames {
                let bytes: Vec<u8> = (0..len).map(|i| (flat.len() + i * 7) as u8).collect();
                let mut frame = cache.alloc().unwrap();
                prop_assert!(frame.extend(&bytes));
                flat.extend(bytes);
                match &mut buf {
                    None => buf = Some(Buf::from(frame)),
                    Some(buf) => buf.push(frame),
                }
            }
            let cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(flat.len())).collect();
            let ranges: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let wanted: Vec<u8> = ranges.iter().flat_map(|range| flat[range.clone()].to_vec()).collect();
            let mut out = None;
            keep(buf.unwrap(), &ranges, &mut cache, &mut out);
            prop_assert_eq!(out.as_ref().map(Buf::to_vec).unwrap_or_default(), wanted);
            if let Some(out) = out {
                cache.free_buf(out);
            }
            prop_assert_eq!(std::iter::from_fn(|| cache.alloc()).count(), count);
        }
    }
}
