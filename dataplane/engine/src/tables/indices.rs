//! Small indices that stay with their object for as long as it exists.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

/// Hands out a free index for each key, and takes it back when the key is gone. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Indices<K> {
    given: Arc<Given<K>>,
    limit: u32,
}

#[derive(Debug, Clone)]
struct Given<K> {
    by_key: HashMap<K, u32>,
    free: Vec<u32>,
    next: u32,
}

impl<K: Eq + Hash + Clone> Indices<K> {
    /// For at most `limit` keys.
    pub fn new(limit: u32) -> Self {
        let given = Given { by_key: HashMap::new(), free: Vec::new(), next: 0 };
        Indices { given: Arc::new(given), limit }
    }

    /// The index of `key`, if it has one.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.given.by_key.get(key).copied()
    }

    /// The index of `key`, a new one if it has none; none when the limit is reached.
    pub fn assign(&mut self, key: &K) -> Option<u32> {
        if let Some(index) = self.get(key) {
            return Some(index);
        }
        let given = Arc::make_mut(&mut self.given);
        let index = match given.free.pop() {
            Some(index) => index,
            None if given.next < self.limit => {
                given.next += 1;
                given.next - 1
            }
            None => return None,
        };
        given.by_key.insert(key.clone(), index);
        Some(index)
    }

    /// These indices without the keys that are gone, and with those that came. A new key gets one that
    /// was free before, as long as there is one, so that what is still on its way to an old key's object
    /// does not meet a new one.
    ///
    /// # Errors
    /// The first key for which no index is left.
    pub fn changed<'a>(
        &self,
        gone: impl IntoIterator<Item = &'a K>,
        came: impl IntoIterator<Item = &'a K>,
    ) -> Result<Self, &'a K>
    where
        K: 'a,
    {
        let mut next = self.clone();
        let left: Vec<&K> = came.into_iter().filter(|key| next.assign(key).is_none()).collect();
        let mut freed: Vec<u32> = Vec::new();
        for key in gone {
            if next.get(key).is_some() {
                freed.extend(Arc::make_mut(&mut next.given).by_key.remove(key));
            }
        }
        if !freed.is_empty() {
            freed.sort_unstable_by(|a, b| b.cmp(a));
            Arc::make_mut(&mut next.given).free.extend(freed);
        }
        for key in left {
            next.assign(key).ok_or(key)?;
        }
        Ok(next)
    }

    /// These indices as a new set of keys has them: see [`changed`](Self::changed).
    ///
    /// # Errors
    /// The first key for which no index is left.
    pub fn moved_to<'a>(&'a self, keys: impl IntoIterator<Item = &'a K>) -> Result<Self, &'a K> {
        let wanted: Vec<&K> = keys.into_iter().collect();
        let all: HashSet<&K> = wanted.iter().copied().collect();
        let gone = self.given.by_key.keys().filter(|key| !all.contains(key));
        self.changed(gone, wanted.iter().copied())
    }

    /// All keys with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.given.by_key.iter().map(|(key, index)| (key, *index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_stays_with_its_key_and_is_reused_after_it() {
        let mut indices = Indices::new(3);
        assert_eq!(indices.assign(&"a"), Some(0));
        assert_eq!(indices.assign(&"b"), Some(1));
        assert_eq!(indices.assign(&"a"), Some(0));
        indices = indices.changed([&"a"], []).unwrap();
        assert_eq!(indices.assign(&"c"), Some(0));
        assert_eq!(indices.assign(&"d"), Some(2));
        assert_eq!(indices.assign(&"e"), None);
    }

    #[test]
    fn a_new_set_of_keys_takes_the_place_of_the_old_one_within_the_limit() {
        let mut old = Indices::new(3);
        old.assign(&"a");
        old.assign(&"b");
        let new = old.moved_to(["b", "c"].iter()).unwrap();
        assert_eq!((new.get(&"a"), new.get(&"b"), new.get(&"c")), (None, Some(1), Some(2)));
        assert_eq!(old.get(&"a"), Some(0), "the old ones are as they were");
        // All at the limit: an index changes hands at once.
        let full = new.moved_to(["x", "y", "z"].iter()).unwrap();
        let mut used: Vec<_> = full.iter().map(|(_, index)| index).collect();
        used.sort_unstable();
        assert_eq!(used, [0, 1, 2]);
        assert_eq!(full.moved_to(["x", "y", "z", "w"].iter()).unwrap_err(), &"w");
        // Any number of refusals leaks nothing.
        for _ in 0..10 {
            assert!(full.moved_to(["p", "q", "r", "s"].iter()).is_err());
        }
        assert!(full.moved_to(["p", "q", "r"].iter()).is_ok());
    }
}
