//! Long random runs. A failing seed is printed and fails again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::runs::{SEEDS, busy_run, full_log_run, long_run};
use super::seen::Seen;
use super::world::Fault;
use crate::disk::sim::Survivors;

/// Least number of crashes in a run.
pub(super) const CRASHES: u64 = 3;
/// Least number of operations in a run.
pub(super) const OPERATIONS: u64 = 200;

/// Seeds that found a fault once, whatever range is run.
const KEPT: [u64; 1] = [4468];

#[test]
fn seeds_that_found_a_fault_find_none() {
    for seed in KEPT {
        if let Err(fault) = long_run(seed, CRASHES, OPERATIONS) {
            panic!("CULVERT_SEED={seed} CULVERT_SEEDS=1: {fault}");
        }
    }
}

/// Runs `CULVERT_SEEDS` seeds (default 1,000; with `CULVERT_CI` 10,000) from `CULVERT_SEED` on, on all
/// processors.
#[test]
fn seeds_of_random_operations_and_crashes_lose_nothing_that_was_promised() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let in_ci = std::env::var_os("CULVERT_CI").is_some();
    let count = number("CULVERT_SEEDS", if in_ci { 10_000 } else { 1000 });
    let first = number("CULVERT_SEED", 1);
    let (next, seen) = (AtomicU64::new(first), Mutex::new(Seen::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            match long_run(seed, CRASHES, OPERATIONS) {
                Ok(world) => seen.lock().unwrap().add(&world.seen),
                Err(fault) => {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                    panic!("CULVERT_SEED={seed} CULVERT_SEEDS=1: {fault}");
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let seen = seen.into_inner().unwrap();
    println!("{count} seeds from {first}: {seen:?}");
    if count < 100 {
        return;
    }
    assert!(seen.crashes >= CRASHES * count && seen.operations >= OPERATIONS * count, "{seen:?}");
    assert!(seen.cuts_compared >= count, "{seen:?}");
    for (what, times) in [
        ("operations on a second volume", seen.on_second),
        ("kills after which everything was read", seen.kills_checked),
        ("torn tails of the log", seen.torn_tails),
        ("crashes while records were moved", seen.in_destage),
        ("crashes in a publication", seen.in_publication),
        ("crashes in recovery", seen.in_recovery),
        ("planned stops", seen.stops),
        ("evictions", seen.evicted),
        ("cuts", seen.cuts),
        ("checkpoints", seen.checkpoints),
        ("answers of remote durability", seen.remote_flushes),
        ("puts whose answer was lost", seen.lost_answers),
        ("late puts", seen.late_puts),
        ("short reads", seen.short_reads),
    ] {
        assert!(times >= count / 20, "too few {what}: {seen:?}");
    }
    // A hundredth of the runs has one of these.
    for (what, times) in [
        ("crashes when the root was ahead", seen.root_ahead),
        ("crashes in a validation", seen.in_validation),
        ("stale lists", seen.stale_lists),
    ] {
        assert!(times >= count / 500, "too few {what}: {seen:?}");
    }
}

/// Runs of which none finds a fault.
fn find_none(run: fn(u64) -> Result<(), Fault>) {
    for seed in 1..=SEEDS {
        if let Err(fault) = run(seed) {
            panic!("seed {seed}: {fault}");
        }
    }
}

#[test]
fn a_cut_beside_writes_is_a_cut() {
    find_none(busy_run);
}

#[test]
fn space_of_the_log_is_used_again_only_when_nothing_needs_it() {
    find_none(full_log_run);
}

#[test]
fn a_seed_does_the_same_again() {
    for seed in 1..=16 {
        let [first, again] = [(); 2].map(|()| match long_run(seed, CRASHES, OPERATIONS) {
            Ok(world) => {
                world.disk.restart(Survivors::All);
                let (disk, puts) = (world.disk.digest(), world.store.puts());
                (world.seen, world.disk.counts(), disk, puts, world.clock())
            }
            Err(fault) => panic!("CULVERT_SEED={seed} CULVERT_SEEDS=1: {fault}"),
        });
        assert_eq!(first, again, "seed {seed}");
    }
}
