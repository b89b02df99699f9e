//! Small indices that stay with their object for as long as it exists.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Hands out the lowest free index for each key, and takes it back when the key is gone.
#[derive(Debug, Clone)]
pub struct Indices<K> {
    by_key: HashMap<K, u32>,
    free: Vec<u32>,
    next: u32,
    limit: u32,
}

impl<K: Eq + Hash + Clone> Indices<K> {
    /// For at most `limit` keys.
    pub fn new(limit: u32) -> Self {
        Indices { by_key: HashMap::new(), free: Vec::new(), next: 0, limit }
    }

    /// The index of `key`, if it has one.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The index of `key`, a new one if it has none; none when the limit is reached.
    pub fn assign(&mut self, key: &K) -> Option<u32> {
        if let Some(index) = self.get(key) {
            return Some(index);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.next < self.limit => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.by_key.insert(key.clone(), index);
        Some(index)
    }

    /// These indices as a new set of keys has them: keys that stay keep theirs, the others' become
    /// free. A new key gets one that was free before, as long as there is one, so that what is
    /// still on its way to an old key's object does not meet a new one. `Err`: a key that found
    /// none.
    ///
    /// # Errors
    /// The first key for which no index is left.
    pub fn moved_to<'a>(&self, keys: impl Iterator<Item = &'a K> + Clone) -> Result<Self, &'a K> {
        let wanted: HashSet<&K> = keys.clone().collect();
        let mut next = self.clone();
        let mut left = Vec::new();
        for key in keys {
            if next.assign(key).is_none() {
                left.push(key);
            }
        }
        next.retain(|key| wanted.contains(key));
        for key in left {
            next.assign(key).ok_or(key)?;
        }
        Ok(next)
    }

    /// Forgets the keys that `keep` refuses; returns their indices.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) -> Vec<u32> {
        let mut gone = Vec::new();
        self.by_key.retain(|key, index| {
            let kept = keep(key);
            if !kept {
                gone.push(*index);
            }
            kept
        });
        gone.sort_unstable_by(|a, b| b.cmp(a));
        self.free.extend(&gone);
        gone
    }

    /// All keys with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.by_key.iter().map(|(key, index)| (key, *index))
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
        assert_eq!(indices.retain(|key| *key != "a"), vec![0]);
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
