//! Which socket slots of the XDP programs are free.
//!
//! Slots belong to an open device, not to a port: while a port moves from one device to another,
//! or a device is opened anew, both have their own.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of free slots, by where they start.
#[derive(Debug)]
pub struct Slots {
    free: BTreeMap<u32, u32>,
}

impl Slots {
    /// Slots 0 to `count`, all free.
    pub fn new(count: u32) -> Self {
        Slots { free: BTreeMap::from([(0, count)]) }
    }

    /// Takes `count` slots in a row, the lowest that are free; none where there are no such.
    pub fn take(&mut self, count: u32) -> Option<Range<u32>> {
        let (start, end) =
            self.free.iter().map(|(s, e)| (*s, *e)).find(|(s, e)| e - s >= count && count > 0)?;
        self.free.remove(&start);
        if start + count < end {
            self.free.insert(start + count, end);
        }
        Some(start..start + count)
    }

    /// Takes slots back that [`take`](Self::take) gave.
    pub fn give(&mut self, slots: Range<u32>) {
        let Range { mut start, mut end } = slots;
        if let Some((s, e)) = self.free.range(..start).next_back().map(|(s, e)| (*s, *e))
            && e == start
        {
            start = s;
        }
        if let Some(e) = self.free.remove(&end) {
            end = e;
        }
        self.free.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_old_and_the_new_device_of_a_port_have_slots_of_their_own() {
        let mut slots = Slots::new(8);
        let old = slots.take(4).unwrap();
        let new = slots.take(4).unwrap();
        assert_eq!((old.clone(), new.clone()), (0..4, 4..8));
        assert_eq!(slots.take(1), None);
        slots.give(old);
        assert_eq!(slots.take(5), None, "not in a row");
        slots.give(new);
        assert_eq!(slots.take(8), Some(0..8));
    }

    proptest! {
        #[test]
        fn no_slot_is_given_twice_and_none_is_lost(steps in prop::collection::vec((1u32..9, any::<bool>()), 1..200)) {
            let mut slots = Slots::new(64);
            let mut taken: Vec<Range<u32>> = Vec::new();
            for (n, give) in steps {
                if give && !taken.is_empty() {
                    slots.give(taken.swap_remove(n as usize % taken.len()));
                } else if let Some(range) = slots.take(n) {
                    prop_assert!(range.end <= 64 && range.len() == n as usize);
                    prop_assert!(taken.iter().all(|t| t.end <= range.start || range.end <= t.start));
                    taken.push(range);
                }
            }
            taken.into_iter().for_each(|range| slots.give(range));
            prop_assert_eq!(slots.take(64), Some(0..64));
        }
    }
}
