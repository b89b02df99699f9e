//! Index pages in memory: those that were used last, up to a number of bytes.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use crate::format::index::{Extent, Leaf, Node, PageRef};
use crate::format::pack::ObjectId;

/// What the allocator takes for so many bytes, about.
fn allocated(bytes: usize) -> usize {
    (bytes + 8).next_multiple_of(16).max(32)
}

/// Pages by their names, each with the bytes that it takes.
type ByName<T> = HashMap<ObjectId, (Arc<T>, usize)>;

/// Pages by the names of their objects, which never change. Those that were not used while half of the bytes came
/// anew are let go.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    /// Used since the last time that pages were let go.
    young: ByName<T>,
    young_bytes: usize,
    /// Used the time before.
    old: ByName<T>,
}

/// Pages that were let go: to be freed by who gets them, when nobody waits for him.
#[must_use]
#[derive(Debug)]
pub(crate) struct Gone<T>(#[expect(dead_code, reason = "held to be freed")] ByName<T>);

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
        let of = |extent: &Extent| allocated(extent.crcs.capacity() * 4);
        let extents = allocated(self.extents.capacity() * size_of::<Extent>());
        size_of::<Leaf>() + extents + self.extents.iter().map(of).sum::<usize>()
    }
}

impl Page for Node {
    const MOST: usize = 16 << 20;

    fn bytes(&self) -> usize {
        size_of::<Node>() + allocated(self.leaves.capacity() * size_of::<(u32, PageRef)>())
    }
}

impl<T: Page> Pages<T> {
    /// The page, if it is there, and what is let go for it.
    pub(crate) fn get(&mut self, id: &ObjectId) -> Option<(Arc<T>, Gone<T>)> {
        if let Some((page, _)) = self.young.get(id) {
            return Some((Arc::clone(page), Gone(HashMap::new())));
        }
        let (page, bytes) = self.old.remove(id)?;
        let gone = self.insert(*id, &page, bytes);
        Some((page, gone))
    }

    /// The page, without a use of it.
    pub(crate) fn peek(&self, id: &ObjectId) -> Option<&T> {
        self.young.get(id).or_else(|| self.old.get(id)).map(|(page, _)| page.as_ref())
    }

    /// Keeps a page that takes so many bytes. Returns what is let go for it.
    pub(crate) fn insert(&mut self, id: ObjectId, page: &Arc<T>, bytes: usize) -> Gone<T> {
        let mut gone = HashMap::new();
        if self.young_bytes + bytes > T::MOST / 2 {
            gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.young_bytes = 0;
        }
        if self.young.insert(id, (Arc::clone(page), bytes)).is_none() {
            self.young_bytes += bytes;
        }
        Gone(gone)
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
            drop(pages.insert(id(number), &Arc::new(Small(number)), 100));
            let (first, _gone) = pages.get(&id(0)).unwrap();
            assert_eq!(*first, Small(0), "after {number}");
            assert_eq!(pages.peek(&id(number)), Some(&Small(number)));
            let kept = pages.young.len() + pages.old.len();
            assert!(kept * 100 <= Small::MOST, "{kept} after {number}");
        }
        assert_eq!(pages.peek(&id(50)), None);
        // The same once more is not counted twice.
        for _ in 0..100 {
            drop(pages.insert(id(99), &Arc::new(Small(99)), 100));
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
