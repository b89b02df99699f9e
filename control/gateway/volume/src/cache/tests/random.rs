//! Long random runs. A failing seed is printed and fails again.

use super::world::{Seen, busy_run, long_run};

/// Runs `CULVERT_SEEDS` seeds (default 100) from `CULVERT_SEED` on.
#[test]
fn random_operations_and_crashes_lose_nothing_that_was_promised() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (first, count) = (number("CULVERT_SEED", 1), number("CULVERT_SEEDS", 100));
    let mut seen = Seen::default();
    for seed in first..first + count {
        match long_run(seed, 3, 70) {
            Ok(more) => seen.add(&more),
            Err(fault) => panic!("CULVERT_SEED={seed} CULVERT_SEEDS=1: {fault}"),
        }
    }
    println!("{count} seeds from {first}: {seen:?}");
    if count >= 100 {
        for (what, times) in [
            ("torn writes", seen.torn),
            ("crashes while records were moved", seen.in_maintenance),
            ("crashes in a cut", seen.in_cut),
            ("crashes in recovery", seen.in_recovery),
            ("evictions", seen.evicted),
            ("cuts", seen.cuts),
        ] {
            assert!(times >= count / 20, "too few {what}: {seen:?}");
        }
    }
}

#[test]
fn a_cut_beside_writes_is_a_cut() {
    for seed in 1..=30 {
        if let Err(fault) = busy_run(seed) {
            panic!("seed {seed}: {fault}");
        }
    }
}
