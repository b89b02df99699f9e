//! The flow cache: what the rule tables decided for a flow, until they change.
//!
//! Set-associative and of fixed size, so that a tenant who makes flows without end only evicts;
//! one per worker, so that it needs no lock. An entry is valid for the epoch it was made in.

/// Ways of a set: how many flows with equal low hash bits live side by side.
const WAYS: usize = 4;

#[derive(Debug, Clone)]
struct Entry<K, V> {
    key: K,
    epoch: u64,
    value: V,
}

/// A bounded map from flow keys to decisions.
#[derive(Debug)]
pub struct FlowCache<K, V> {
    slots: Box<[Option<Entry<K, V>>]>,
    set_mask: usize,
    /// The way that the next insertion into a full set replaces.
    hand: u8,
}

impl<K: Eq, V> FlowCache<K, V> {
    /// A cache of `entries`, rounded up to a power of two.
    pub fn new(entries: usize) -> Self {
        let sets = (entries / WAYS).next_power_of_two().max(1);
        let slots = (0..sets * WAYS).map(|_| None).collect();
        FlowCache { slots, set_mask: sets - 1, hand: 0 }
    }

    fn set(&self, hash: u32) -> usize {
        // The low bits choose ECMP hops and entropy ports too; multiply so that one tenant's flows
        // spread over the sets whatever its ports are.
        let mixed = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (mixed as usize & self.set_mask) * WAYS
    }

    /// The decision for `key`, if one was made in `epoch`.
    #[inline]
    pub fn get(&self, hash: u32, key: &K, epoch: u64) -> Option<&V> {
        let set = self.set(hash);
        self.slots
            .get(set..set + WAYS)?
            .iter()
            .flatten()
            .find_map(|entry| (entry.epoch == epoch && entry.key == *key).then_some(&entry.value))
    }

    /// Remembers the decision for `key`; replaces a stale entry first, then one in turn.
    pub fn insert(&mut self, hash: u32, key: K, epoch: u64, value: V) {
        let set = self.set(hash);
        let hand = usize::from(self.hand) % WAYS;
        let Some(ways) = self.slots.get_mut(set..set + WAYS) else { return };
        let place = ways
            .iter()
            .position(|slot| slot.as_ref().is_none_or(|entry| entry.key == key))
            .or_else(|| ways.iter().position(|s| s.as_ref().is_some_and(|e| e.epoch != epoch)))
            .unwrap_or(hand);
        self.hand = self.hand.wrapping_add(1);
        if let Some(slot) = ways.get_mut(place) {
            *slot = Some(Entry { key, epoch, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_an_older_epoch_is_a_miss() {
        let mut cache = FlowCache::new(64);
        cache.insert(1, "flow", 1, 10);
        assert_eq!(cache.get(1, &"flow", 1), Some(&10));
        assert_eq!(cache.get(1, &"flow", 2), None);
        cache.insert(1, "flow", 2, 11);
        assert_eq!(cache.get(1, &"flow", 2), Some(&11));
    }

    #[test]
    fn flows_of_equal_hash_are_told_apart() {
        let mut cache = FlowCache::new(64);
        cache.insert(9, 1u64, 1, 'a');
        cache.insert(9, 2u64, 1, 'b');
        assert_eq!(cache.get(9, &1, 1), Some(&'a'));
        assert_eq!(cache.get(9, &2, 1), Some(&'b'));
        assert_eq!(cache.get(9, &3, 1), None);
    }

    #[test]
    fn a_flood_of_flows_evicts_and_never_grows() {
        let mut cache = FlowCache::new(64);
        let slots = cache.slots.len();
        for flow in 0..100_000u32 {
            cache.insert(flow, flow, 1, flow);
        }
        assert_eq!(cache.slots.len(), slots);
        assert_eq!(cache.get(99_999, &99_999, 1), Some(&99_999));
    }
}
