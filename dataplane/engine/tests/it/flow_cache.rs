//! The flow cache under any sequence of uses.

use std::collections::HashMap;

use culvert_dataplane::flow::FlowCache;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Use {
    Insert { key: u8, epoch: u64 },
    Get { key: u8, epoch: u64 },
}

fn a_use() -> impl Strategy<Value = Use> {
    let parts = (any::<bool>(), 0..24_u8, 0..3_u64);
    parts.prop_map(|(insert, key, epoch)| match insert {
        true => Use::Insert { key, epoch },
        false => Use::Get { key, epoch },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn an_answer_is_the_last_decision_of_its_epoch(
        uses in prop::collection::vec(a_use(), 0..200),
        entries in 0..32_usize,
        hashes in 1..8_u32,
    ) {
        let mut cache = FlowCache::new(entries);
        let mut last: HashMap<u8, (u64, usize)> = HashMap::new();
        for (value, step) in uses.into_iter().enumerate() {
            match step {
                Use::Insert { key, epoch } => {
                    let hash = u32::from(key) % hashes;
                    cache.insert(hash, key, epoch, value);
                    last.insert(key, (epoch, value));
                    prop_assert_eq!(cache.get(hash, &key, epoch), Some(&value));
                }
                Use::Get { key, epoch } => {
                    let found = cache.get(u32::from(key) % hashes, &key, epoch);
                    if let Some(found) = found {
                        prop_assert_eq!(last.get(&key), Some(&(epoch, *found)));
                    }
                }
            }
        }
    }
}

#[test]
fn a_cache_of_no_entries_still_holds_some() {
    let mut cache = FlowCache::new(0);
    cache.insert(0, 'a', 1, 1);
    assert_eq!(cache.get(0, &'a', 1), Some(&1));
}

#[test]
fn stale_entries_make_room_before_live_ones() {
    // Four flows of one hash fill their set.
    let mut cache = FlowCache::new(64);
    for key in 0..4 {
        cache.insert(7, key, u64::from(key != 2), key);
    }
    cache.insert(7, 4, 1, 4);
    for key in [0, 1, 3, 4] {
        assert_eq!(cache.get(7, &key, 1), Some(&key), "a live flow was evicted");
    }
    assert_eq!(cache.get(7, &2, 0), None);
}

#[test]
fn a_full_set_gives_up_one_flow_for_another() {
    let mut cache = FlowCache::new(64);
    for key in 0..5 {
        cache.insert(7, key, 1, key);
    }
    assert_eq!(cache.get(7, &4, 1), Some(&4));
    let left = (0..4).filter(|key| cache.get(7, key, 1).is_some()).count();
    assert_eq!(left, 3);
}

#[test]
fn flows_of_a_full_set_are_replaced_in_turn() {
    let mut cache = FlowCache::new(64);
    for key in 0..8 {
        cache.insert(7, key, 1, key);
    }
    for key in 0..8 {
        assert_eq!(cache.get(7, &key, 1).is_some(), key >= 4, "{key}");
    }
}

#[test]
fn flows_of_other_hashes_are_not_evicted() {
    let mut cache = FlowCache::new(1 << 16);
    cache.insert(0, u32::MAX, 1, 0);
    // Far fewer flows than entries: their sets are not that of hash 0 unless the spread is poor.
    for flow in 1..64 {
        cache.insert(flow, flow, 1, flow);
    }
    assert_eq!(cache.get(0, &u32::MAX, 1), Some(&0));
    let kept = (1..64).filter(|flow| cache.get(*flow, flow, 1).is_some()).count();
    assert_eq!(kept, 63);
}
