//! Index pages in memory: those that were used last, up to a number of bytes.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use crate::format::index::{Extent, Leaf, Node, PageRef};
use crate::format::pack::ObjectId;

/// What an allocation takes beside what is asked for, about.
const ALLOCATION: usize = 16;

/// Pages by the names of their objects, which never change. Those that were not used while half of the bytes came
/// anew are let go.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    /// Used since the last time that pages were let go.
    young: HashMap<ObjectId, Arc<T>>,
    young_bytes: usize,
    /// Used the time before.
    old: HashMap<ObjectId, Arc<T>>,
}

impl<T> Default for Pages<T> {
    fn default() -> Pages<T> {
        Pages { young: HashMap::new(), young_bytes: 0, old: HashMap::new() }
    }
}

/// A page that knows what it takes.
pub(crate) trait Page {
    /// Bytes of such pages to keep in memory.
    const MOST: usize;

    /// Bytes in memory, about.
    fn bytes(&self) -> usize;
}

impl Page for Leaf {
    /// Of a volume that was written in long runs, 48 GiB: a leaf has four bytes for a block, and 64 for an extent.
    const MOST: usize = 48 << 20;

    fn bytes(&self) -> usize {
        let of = |extent: &Extent| extent.crcs.capacity() * 4 + ALLOCATION;
        let extents = self.extents.capacity() * size_of::<Extent>();
        size_of::<Leaf>() + extents + self.extents.iter().map(of).sum::<usize>()
    }
}

impl Page for Node {
    const MOST: usize = 16 << 20;

    fn bytes(&self) -> usize {
        size_of::<Node>() + self.leaves.capacity() * size_of::<(u32, PageRef)>() + ALLOCATION
    }
}

impl<T: Page> Pages<T> {
    pub(crate) fn get(&mut self, id: &ObjectId) -> Option<Arc<T>> {
        if let Some(page) = self.young.get(id) {
            return Some(Arc::clone(page));
        }
        let page = self.old.remove(id)?;
        self.insert(*id, &page);
        Some(page)
    }

    /// The page, without a use of it.
    pub(crate) fn peek(&self, id: &ObjectId) -> Option<&T> {
        self.young.get(id).or_else(|| self.old.get(id)).map(Arc::as_ref)
    }

    pub(crate) fn insert(&mut self, id: ObjectId, page: &Arc<T>) {
        let bytes = page.bytes();
        if self.young_bytes + bytes > T::MOST / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(id, Arc::clone(page)).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Small(u32);

    impl Page for Small {
        const MOST: usize = 8 * 100;

        fn bytes(&self) -> usize {
            100
        }
    }

    fn id(number: u32) -> ObjectId {
        ObjectId { epoch: 1, nonce: 2, number }
    }

    #[test]
    fn what_is_used_stays_and_no_more_than_the_limit_is_kept() {
        let mut pages = Pages::default();
        for number in 0..100 {
            pages.insert(id(number), &Arc::new(Small(number)));
            assert_eq!(pages.get(&id(0)).as_deref(), Some(&Small(0)), "after {number}");
            assert_eq!(pages.peek(&id(number)), Some(&Small(number)));
            let kept = pages.young.len() + pages.old.len();
            assert!(kept * 100 <= Small::MOST, "{kept} after {number}");
        }
        assert_eq!(pages.peek(&id(50)), None);
        // The same once more is not counted twice.
        for _ in 0..100 {
            pages.insert(id(99), &Arc::new(Small(99)));
        }
        assert!(pages.peek(&id(0)).is_some());
    }

    #[test]
    fn what_a_full_leaf_takes_is_known() {
        let pack = ObjectId { epoch: 1, nonce: 2, number: 3 };
        let of = |extents: u16| {
            let blocks = 16 * 1024 / extents;
            let extent =
                |i| Extent { first: i * blocks, pack, at: 1, crcs: vec![0; blocks.into()] };
            Leaf { uuid: 1, number: 0, extents: (0..extents).map(extent).collect() }.bytes()
        };
        assert!((65_536..70_000).contains(&of(16)), "{}", of(16));
        assert!((16_384 * 64..16_384 * 100).contains(&of(16_384)), "{}", of(16_384));
    }
}
