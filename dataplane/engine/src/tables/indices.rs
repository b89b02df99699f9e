//! Small indices that stay with their object for as long as it exists.

use std::collections::HashMap;
use std::hash::Hash;

/// Hands out the lowest free index for each key, and takes it back when the key is gone.
#[derive(Debug)]
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
}
