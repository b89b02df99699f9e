//! Many objects in the order of their keys, of which versions share what they have in common.
//!
//! The objects stand in chunks behind reference counts. A clone shares all of them; a change copies the
//! one chunk that it is in, and the list of chunks. So a state of 100,000 objects that differs from
//! another by one costs some kilobytes, and [`changes`] finds the difference without looking at what
//! both share.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Most objects of a chunk: small enough to copy for a change of one, large enough that the list of
/// chunks stays short.
const CHUNK_MAX: usize = 256;

/// Chunks below this are joined with their neighbour.
const CHUNK_MIN: usize = 64;

/// Something that has a key.
pub trait Keyed {
    /// What tells it from others of its kind.
    type Key: Ord;

    /// Its key.
    fn key(&self) -> Self::Key;

    /// How its key compares with another.
    fn compare(&self, key: &Self::Key) -> Ordering {
        self.key().cmp(key)
    }
}

/// Objects in the order of their keys; each key once. Cheap to clone, cheap to change.
pub struct Objects<T> {
    chunks: Arc<Vec<Arc<Vec<T>>>>,
    len: usize,
}

impl<T> Clone for Objects<T> {
    fn clone(&self) -> Self {
        Objects { chunks: Arc::clone(&self.chunks), len: self.len }
    }
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Objects { chunks: Arc::default(), len: 0 }
    }
}

impl<T: fmt::Debug> fmt::Debug for Objects<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: PartialEq> PartialEq for Objects<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
            || self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<T: Eq> Eq for Objects<T> {}

impl<T> Objects<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All, in the order of their keys.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { chunks: &self.chunks, at: Position::default() }
    }

    /// Those for which `order` says equal; it has to rise with the key.
    pub fn range<'a>(
        &'a self,
        order: impl Fn(&T) -> Ordering + 'a,
    ) -> impl Iterator<Item = &'a T> + 'a {
        let at = self.position(&order);
        Iter { chunks: &self.chunks, at }.take_while(move |item| order(item) == Ordering::Equal)
    }

    /// The one for which `order` says equal; it has to rise with the key.
    pub fn find(&self, order: impl Fn(&T) -> Ordering) -> Option<&T> {
        let Position { chunk, item } = self.position(&order);
        self.chunks.get(chunk)?.get(item).filter(|item| order(item).is_eq())
    }

    /// The first for which `order` does not say less; it has to rise with the key.
    pub fn first(&self, order: impl Fn(&T) -> Ordering) -> Option<&T> {
        let Position { chunk, item } = self.position(&order);
        self.chunks.get(chunk)?.get(item)
    }

    /// Where the first stands for which `order` does not say less.
    fn position(&self, order: &impl Fn(&T) -> Ordering) -> Position {
        let before = |chunk: &Arc<Vec<T>>| chunk.last().is_some_and(|item| order(item).is_lt());
        let chunk = self.chunks.partition_point(before);
        let item = self
            .chunks
            .get(chunk)
            .map_or(0, |chunk| chunk.partition_point(|item| order(item).is_lt()));
        Position { chunk, item }
    }
}

impl<T: Keyed> Objects<T> {
    /// The object of a key.
    pub fn get(&self, key: &T::Key) -> Option<&T> {
        self.find(|item| item.compare(key))
    }

    /// Whether there is an object of this key.
    pub fn contains(&self, key: &T::Key) -> bool {
        self.get(key).is_some()
    }
}

impl<T: Keyed + Clone> Objects<T> {
    /// Puts an object in the place of the one of its key, which is returned, or adds it.
    pub fn insert(&mut self, item: T) -> Option<T> {
        let key = item.key();
        let at = self.position(&|item| item.compare(&key));
        let chunks = Arc::make_mut(&mut self.chunks);
        // What is greater than all goes to the end of the last chunk.
        let (index, position) = match chunks.len() {
            0 => {
                chunks.push(Arc::default());
                (0, 0)
            }
            count if at.chunk >= count => (count - 1, chunks[count - 1].len()),
            _ => (at.chunk, at.item),
        };
        let chunk = Arc::make_mut(&mut chunks[index]);
        if let Some(old) = chunk.get_mut(position)
            && old.compare(&key).is_eq()
        {
            return Some(std::mem::replace(old, item));
        }
        chunk.insert(position, item);
        if chunk.len() > CHUNK_MAX {
            let rest = chunk.split_off(CHUNK_MAX / 2);
            chunks.insert(index + 1, Arc::new(rest));
        }
        self.len += 1;
        None
    }

    /// Removes the object of a key, and returns it.
    pub fn remove(&mut self, key: &T::Key) -> Option<T> {
        self.get(key)?;
        let Position { chunk: index, item } = self.position(&|item| item.compare(key));
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        let gone = chunk.remove(item);
        self.len -= 1;
        if chunk.len() < CHUNK_MIN {
            let small = chunk.len();
            let fits = |other: Option<&Arc<Vec<T>>>| {
                other.is_some_and(|other| other.len() + small <= CHUNK_MAX / 2)
            };
            if small == 0 {
                chunks.remove(index);
            } else if fits(chunks.get(index + 1)) {
                let next = chunks.remove(index + 1);
                Arc::make_mut(&mut chunks[index]).extend(next.iter().cloned());
            } else if index > 0 && fits(chunks.get(index - 1)) {
                let last = chunks.remove(index);
                Arc::make_mut(&mut chunks[index - 1]).extend(last.iter().cloned());
            }
        }
        Some(gone)
    }
}

impl<T: Keyed> FromIterator<T> for Objects<T> {
    /// Of objects with the same key, the last is kept.
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        items.sort_by_cached_key(Keyed::key);
        items.reverse();
        items.dedup_by(|one, other| one.compare(&other.key()).is_eq());
        items.reverse();
        let len = items.len();
        let mut chunks = Vec::with_capacity(len / (CHUNK_MAX / 2) + 1);
        let mut items = items.into_iter();
        loop {
            // Half full, so that what is added finds room.
            let chunk: Vec<T> = items.by_ref().take(CHUNK_MAX / 2).collect();
            if chunk.is_empty() {
                break;
            }
            chunks.push(Arc::new(chunk));
        }
        Objects { chunks: Arc::new(chunks), len }
    }
}

#[derive(Copy, Clone, Default)]
struct Position {
    chunk: usize,
    item: usize,
}

/// Objects in the order of their keys.
#[derive(Clone)]
pub struct Iter<'a, T> {
    chunks: &'a [Arc<Vec<T>>],
    at: Position,
}

impl<'a, T> Iter<'a, T> {
    fn peek(&self) -> Option<&'a T> {
        self.chunks.get(self.at.chunk)?.get(self.at.item)
    }

    /// The chunk that is to be read from its start.
    fn whole_chunk(&self) -> Option<&'a Arc<Vec<T>>> {
        self.chunks.get(self.at.chunk).filter(|_| self.at.item == 0)
    }

    fn skip_chunk(&mut self) {
        self.at = Position { chunk: self.at.chunk + 1, item: 0 };
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        let chunk = self.chunks.get(self.at.chunk)?;
        let item = chunk.get(self.at.item)?;
        self.at.item += 1;
        if self.at.item >= chunk.len() {
            self.skip_chunk();
        }
        Some(item)
    }
}

impl<'a, T> IntoIterator for &'a Objects<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

/// An object before and after: one of them is missing where it came or went.
pub type Change<'a, T> = (Option<&'a T>, Option<&'a T>);

/// What differs between two versions, in the order of keys. Costs what they do not share.
pub fn changes<'a, T: Keyed + PartialEq>(
    old: &'a Objects<T>,
    new: &'a Objects<T>,
) -> Vec<Change<'a, T>> {
    let mut found = Vec::new();
    if Arc::ptr_eq(&old.chunks, &new.chunks) {
        return found;
    }
    let (mut before, mut after) = (old.iter(), new.iter());
    loop {
        if let (Some(one), Some(other)) = (before.whole_chunk(), after.whole_chunk())
            && Arc::ptr_eq(one, other)
        {
            before.skip_chunk();
            after.skip_chunk();
            continue;
        }
        let order = match (before.peek(), after.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.compare(&other.key()),
        };
        let one = if order.is_le() { before.next() } else { None };
        let other = if order.is_ge() { after.next() } else { None };
        if one != other {
            found.push((one, other));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Keyed for (u16, u8) {
        type Key = u16;
        fn key(&self) -> u16 {
            self.0
        }
    }

    /// Puts, and deletions where there is no value.
    fn steps() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        let one = (0..2000_u16, proptest::option::weighted(0.6, 0..3_u8));
        // Long runs of one kind make chunks split and join.
        let run = (0..2000_u16, 1..600_u16, proptest::option::weighted(0.6, 0..3_u8)).prop_map(
            |(start, count, value)| (start..start + count).map(|key| (key, value)).collect(),
        );
        let some = prop_oneof![prop::collection::vec(one, 1..20), run];
        prop::collection::vec(some, 0..12).prop_map(|runs| runs.concat())
    }

    fn apply(
        objects: &mut Objects<(u16, u8)>,
        model: &mut BTreeMap<u16, u8>,
        steps: &[(u16, Option<u8>)],
    ) {
        for (key, value) in steps {
            match value {
                Some(value) => {
                    let old = objects.insert((*key, *value)).map(|(_, value)| value);
                    assert_eq!(old, model.insert(*key, *value));
                }
                None => {
                    let old = objects.remove(key).map(|(_, value)| value);
                    assert_eq!(old, model.remove(key));
                }
            }
        }
    }

    fn pairs(model: &BTreeMap<u16, u8>) -> Vec<(u16, u8)> {
        model.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #[test]
        fn objects_are_as_a_map_has_them(first in steps(), second in steps(), probe in 0..2600_u16) {
            let (mut old, mut model) = (Objects::default(), BTreeMap::new());
            apply(&mut old, &mut model, &first);
            let before = pairs(&model);
            let mut new = old.clone();
            apply(&mut new, &mut model, &second);
            let after = pairs(&model);

            prop_assert_eq!(old.iter().copied().collect::<Vec<_>>(), before.clone());
            prop_assert_eq!(new.iter().copied().collect::<Vec<_>>(), after.clone());
            prop_assert_eq!(new.len(), after.len());
            prop_assert_eq!(new.get(&probe).map(|pair| pair.1), model.get(&probe).copied());
            let above: Vec<_> = new.range(|(key, _)| (key / 100).cmp(&(probe / 100))).copied().collect();
            let expected: Vec<_> =
                after.iter().copied().filter(|(key, _)| key / 100 == probe / 100).collect();
            prop_assert_eq!(above, expected);
            prop_assert!(new.chunks.iter().all(|chunk| (1..=CHUNK_MAX).contains(&chunk.len())));
            prop_assert_eq!(&new, &after.iter().copied().collect::<Objects<_>>());

            let mut replayed: BTreeMap<u16, u8> = before.into_iter().collect();
            for (was, is) in changes(&old, &new) {
                prop_assert_ne!(was, is);
                prop_assert_eq!(was.map(|pair| pair.1), was.and_then(|pair| replayed.remove(&pair.0)));
                replayed.extend(is.copied());
            }
            prop_assert_eq!(pairs(&replayed), after);
        }
    }

    #[test]
    fn a_change_shares_all_but_its_chunk() {
        let old: Objects<(u16, u8)> = (0..20_000).map(|key| (key, 0)).collect();
        let mut new = old.clone();
        new.insert((10_001, 1));
        let shared = |(one, other): &(&Arc<Vec<_>>, &Arc<Vec<_>>)| Arc::ptr_eq(one, other);
        let shared = old.chunks.iter().zip(new.chunks.iter()).filter(shared).count();
        assert_eq!(shared, old.chunks.len() - 1);
    }

    #[test]
    fn of_equal_keys_the_last_is_kept() {
        let objects: Objects<(u16, u8)> = [(1, 1), (2, 1), (1, 2), (1, 3)].into_iter().collect();
        assert_eq!(objects.iter().copied().collect::<Vec<_>>(), [(1, 3), (2, 1)]);
    }
}
