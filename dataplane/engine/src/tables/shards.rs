//! A map in shards, of which versions share what they have in common.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHasher};

/// Entries of a shard, on the average, above which their number is doubled: few enough to copy for a
/// change of one.
const SHARD_MEAN_MAX: usize = 128;

type Shard<K, V> = Arc<FxHashMap<K, V>>;

/// A hash of which every bit depends on every octet of an address: the hasher alone leaves its last octets
/// to the high bits.
pub(super) fn spread(key: &impl Hash) -> usize {
    let mut hasher = FxHasher::default();
    key.hash(&mut hasher);
    let hash = hasher.finish();
    ((hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize
}

/// A map that is cheap to clone and cheap to change: a clone shares all shards, a change copies one, and
/// the list of shards.
#[derive(Debug, Clone)]
pub struct Shards<K, V> {
    /// A power of two of them.
    shards: Arc<[Shard<K, V>]>,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Shards { shards: Arc::new([Arc::default()]), len: 0 }
    }
}

impl<K: Eq + Hash, V: PartialEq> PartialEq for Shards<K, V> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shards, &other.shards)
            || self.len == other.len && self.iter().all(|(k, v)| other.get(k) == Some(v))
    }
}

impl<K: Eq + Hash, V> Shards<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shards.get(self.shard_of(key))?.get(key)
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    fn shard_of(&self, key: &K) -> usize {
        spread(key) & (self.shards.len() - 1)
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Shards<K, V> {
    /// Gives a key a value, or none.
    pub fn set(&mut self, key: K, value: Option<V>) {
        let index = self.shard_of(&key);
        let Some(shard) = Arc::make_mut(&mut self.shards).get_mut(index) else { return };
        match value {
            Some(value) => {
                self.len += usize::from(Arc::make_mut(shard).insert(key, value).is_none());
                if self.len > self.shards.len() * SHARD_MEAN_MAX {
                    self.split();
                }
            }
            None if shard.contains_key(&key) => {
                Arc::make_mut(shard).remove(&key);
                self.len -= 1;
            }
            None => {}
        }
    }

    fn split(&mut self) {
        let count = self.shards.len() * 2;
        let mut next =
            Shards { shards: (0..count).map(|_| Arc::default()).collect(), len: self.len };
        let mut maps: Vec<FxHashMap<K, V>> = (0..count).map(|_| FxHashMap::default()).collect();
        for (key, value) in self.iter() {
            maps[next.shard_of(key)].insert(key.clone(), value.clone());
        }
        next.shards = maps.into_iter().map(Arc::new).collect();
        *self = next;
    }
}

impl<K: Eq + Hash + Clone, V: Clone> FromIterator<(K, V)> for Shards<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut shards = Shards::default();
        entries.into_iter().for_each(|(key, value)| shards.set(key, Some(value)));
        shards
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shards_are_as_a_map_has_them(steps in prop::collection::vec((0..900_u32, proptest::option::weighted(0.8, 0..4_u8)), 0..2000)) {
            let (mut shards, mut model) = (Shards::default(), HashMap::new());
            let mut kept = Vec::new();
            for (at, (key, value)) in steps.into_iter().enumerate() {
                if at % 500 == 0 {
                    kept.push((shards.clone(), model.clone()));
                }
                shards.set(key, value);
                match value {
                    Some(value) => drop(model.insert(key, value)),
                    None => drop(model.remove(&key)),
                }
            }
            kept.push((shards, model));
            for (shards, model) in kept {
                prop_assert_eq!(shards.len(), model.len());
                prop_assert!((0..900).all(|key| shards.get(&key) == model.get(&key)));
                prop_assert_eq!(&shards, &model.into_iter().collect());
            }
        }
    }

    #[test]
    fn a_change_shares_all_but_one_shard() {
        let old: Shards<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        let mut new = old.clone();
        new.set(77, Some(0));
        let shared = old.shards.iter().zip(new.shards.iter()).filter(|(a, b)| Arc::ptr_eq(a, b));
        assert_eq!(shared.count(), old.shards.len() - 1);
    }

    #[test]
    fn addresses_are_spread_over_the_shards() {
        let ip = |n: u32| std::net::IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let shards: Shards<_, _> = (0..10_000).map(|n| (ip(n), n)).collect();
        let largest = shards.shards.iter().map(|shard| shard.len()).max().unwrap();
        assert!(shards.shards.len() > 64 && largest < 3 * SHARD_MEAN_MAX, "{largest}");
    }
}
