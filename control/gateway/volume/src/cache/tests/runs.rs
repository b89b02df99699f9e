//! Runs of a [`World`] that a seed decides: random ones, and two that go where a certain danger is.

use std::time::Duration;

use super::caches::{disk_len, layout, run};
use super::world::{End, Fault, World};
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, Survivors};
use crate::error::Error;
use crate::remote::sim::SimStore;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// Seeds of the shorter runs.
pub(super) const SEEDS: u64 = 200;

/// A whole run: sessions of random operations with crashes between them, and a check of everything after
/// each. Goes on until there were so many crashes and operations.
pub(super) fn long_run(seed: u64, crashes: u64, operations: u64) -> Result<World, Fault> {
    let mut world = World::new(seed);
    if seed % 4 >= 2 {
        world.pair();
    }
    let mut killed = None;
    loop {
        let is_last = world.seen.crashes >= crashes && world.seen.operations >= operations;
        let die = if is_last {
            None
        } else if world.rng.one_in(5) {
            // Soon: while it is opened or made.
            Some(1 + world.rng.below(12))
        } else {
            Some(1 + world.rng.below(2000))
        };
        let end = world.session(die, if is_last { 10 } else { 120 }, killed)?;
        world.compare_remote()?;
        if end == End::Finished && is_last {
            break;
        }
        let was_killed = world.rng.one_in(3);
        if was_killed {
            world.disk.reopen();
        } else {
            let unsynced = world.disk.unsynced() as u64;
            let survivors = match world.rng.below(6) {
                0 => Survivors::None,
                1 => Survivors::Prefix(world.rng.below(unsynced + 1) as usize),
                2 => Survivors::AllBut(world.rng.below(unsynced) as usize),
                _ => Survivors::Random(world.rng.draw()),
            };
            world.disk.restart(survivors);
        }
        if !world.created {
            // It died while it was being made: nothing is promised, and it is made anew.
            world.disk = SimDisk::new(world.disk.len(), world.rng.draw());
            world.store = SimStore::new(world.rng.draw());
        }
        // What a kill kept and nobody looked at yet, a power cut may still take.
        killed = Some(was_killed && (world.observed || killed == Some(true)));
    }
    let layout = layout(&world.disk);
    world.seen.torn_tails = world.disk.torn_in(layout.log_at..layout.log_at + layout.log_len);
    let faults = world.store.faults();
    world.seen.lost_answers = faults.applied_then_failed;
    world.seen.late_puts = faults.late + faults.too_late;
    world.seen.short_reads = faults.short;
    world.seen.stale_lists = faults.stale_lists;
    Ok(world)
}

/// Uploads with writes and destaging beside them, and a look at the store after each.
pub(super) fn busy_run(seed: u64) -> Result<(), Fault> {
    let mut world = World::new(seed);
    let mut killed = None;
    for _ in 0..4 {
        run(async {
            let (cache, volume) = world.open().await?;
            if let Some(killed) = killed {
                world.observe(&volume, killed).await?;
            }
            for _ in 0..3 {
                world.disk.slow_reads(false);
                for _ in 0..6 {
                    let (offset, len) = world.range();
                    world.write(&volume, offset, len, false).await?;
                }
                world.flush(&volume).await?;
                if world.rng.one_in(2) {
                    cache.destage().await?;
                }
                world.disk.slow_reads(true);
                let waits = world.rng.below(60);
                let asked = world.history().tick();
                let writes = async {
                    for _ in 0..waits {
                        tokio::task::yield_now().await;
                    }
                    for _ in 0..5 {
                        let (offset, len) = world.range();
                        world.write(&volume, offset, len, false).await?;
                        if world.rng.one_in(3) {
                            cache.destage().await?;
                        }
                    }
                    Ok::<(), Error>(())
                };
                let (uploaded, written) = tokio::join!(volume.upload(), writes);
                uploaded?;
                world.history().uploaded(asked);
                written?;
                cache.evict(2).await?;
            }
            world.disk.slow_reads(false);
            world.flush(&volume).await?;
            Ok::<_, Fault>(())
        })?;
        world.compare_remote()?;
        let was_killed = world.rng.one_in(3);
        if was_killed {
            world.disk.reopen();
        } else {
            world.disk.restart(Survivors::Random(seed));
        }
        killed = Some(was_killed);
    }
    Ok(())
}

/// Writes that fill the log again and again while its records move to slots and checkpoints give its space back,
/// and a crash in the midst of that.
pub(super) fn full_log_run(seed: u64) -> Result<(), Fault> {
    let mut world = World::new(seed);
    world.disk = SimDisk::new(disk_len(4), seed);
    world.faulty = false;
    // Where they are few, all stay in their slots; where they are many, they take each other's.
    let chunks = 2 + seed % 3;
    let mut killed = None;
    for _ in 0..8 {
        let disk = world.disk.clone();
        run(async {
            let work = async {
                let (_cache, volume) = world.open().await?;
                if let Some(killed) = killed {
                    world.observe(&volume, killed).await?;
                }
                disk.die_at(Some(disk.steps() + 20 + world.rng.below(800)));
                // Each is some steps.
                for _ in 0..200 {
                    let chunk = world.rng.below(chunks);
                    let offset = chunk * CHUNK_BYTES + world.rng.below(16) * BLOCK_BYTES;
                    // Frames so large that many do not fit before the end of the ring.
                    let len = (8 + world.rng.below(24)) * BLOCK_BYTES;
                    let fua = world.rng.one_in(4);
                    world.write(&volume, offset, len, fua).await?;
                    if world.rng.one_in(4) {
                        world.flush(&volume).await?;
                    }
                }
                Ok::<(), Fault>(())
            };
            tokio::select! {
                biased;
                () = disk.died() => Ok(()),
                done = work => done,
                // Far more than any number of timeouts.
                () = tokio::time::sleep(Duration::from_secs(100_000)) => {
                    Err(Fault::Wrong("nothing goes on".to_owned()))
                }
            }
        })?;
        world.compare_remote()?;
        let was_killed = world.rng.one_in(3);
        if was_killed {
            world.disk.reopen();
        } else {
            let unsynced = world.disk.unsynced();
            let survivors = match world.rng.below(4) {
                0 => Survivors::Only(unsynced.saturating_sub(1)),
                1 => Survivors::Prefix(world.rng.below(unsynced as u64 + 1) as usize),
                _ => Survivors::Random(world.rng.draw()),
            };
            world.disk.restart(survivors);
        }
        killed = Some(was_killed);
    }
    Ok(())
}
