//! Every short sequence of operations, with the power cut at every write and sync.

use super::super::{Cache, Volume};
use super::world::{CHUNKS, Fault, World, run};
use crate::disk::sim::Survivors;
use crate::{BLOCK_BYTES, CHUNK_BYTES};

/// The operations: each meets what the others leave.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Write,
    WriteFua,
    WritePart,
    Flush,
    Trim,
    Destage,
    Evict,
    Upload,
    Read,
}

use Operation::{Destage, Evict, Flush, Read, Trim, Upload, Write, WriteFua, WritePart};

const ALL: [Operation; 9] = [Write, WriteFua, WritePart, Flush, Trim, Destage, Evict, Upload, Read];

async fn perform(
    world: &mut World,
    cache: &Cache,
    volume: &Volume,
    operation: Operation,
) -> Result<(), Fault> {
    match operation {
        Write => world.write(volume, 0, 2 * BLOCK_BYTES, false).await?,
        WriteFua => world.write(volume, BLOCK_BYTES, BLOCK_BYTES, true).await?,
        WritePart => world.write(volume, BLOCK_BYTES / 2, BLOCK_BYTES, false).await?,
        Flush => world.flush(volume).await?,
        Trim => world.empty(volume, BLOCK_BYTES, 2 * BLOCK_BYTES, false, true).await?,
        Destage => cache.destage().await?,
        Evict => {
            cache.evict(1).await?;
        }
        Upload => {
            volume.upload().await?;
        }
        Read => world.check(volume, 0, 4 * BLOCK_BYTES).await?,
    }
    Ok(())
}

/// A cache in use: data in slots and log, dirty and clean, and a cut in the store.
fn base() -> World {
    let mut world = World::new(3);
    world.store.fail_one_in(0);
    run(async {
        let (cache, volume) = world.open().await.unwrap();
        for chunk in 0..CHUNKS {
            world.write(&volume, chunk * CHUNK_BYTES, 4 * BLOCK_BYTES, false).await.unwrap();
        }
        volume.upload().await.unwrap();
        world.write(&volume, BLOCK_BYTES, BLOCK_BYTES, false).await.unwrap();
        world.flush(&volume).await.unwrap();
        cache.destage().await.unwrap();
        world.write(&volume, 0, BLOCK_BYTES, false).await.unwrap();
        world.flush(&volume).await.unwrap();
    });
    world.disk.restart(Survivors::All);
    world
}

/// Runs `operations` until the power is cut at step `die_at`. Returns the steps taken.
fn run_until(
    world: &mut World,
    operations: &[Operation],
    die_at: Option<u64>,
) -> Result<u64, String> {
    world.disk.die_at(die_at);
    let disk = world.disk.clone();
    let done = run(async {
        tokio::select! {
            biased;
            () = disk.died() => Ok(()),
            done = async {
                let (cache, volume) = world.open().await?;
                for operation in operations {
                    perform(world, &cache, &volume, *operation).await?;
                }
                Ok::<_, Fault>(())
            } => done,
        }
    });
    done.map_err(|fault| format!("{operations:?}, dying at {die_at:?}: {fault}"))?;
    Ok(world.disk.steps())
}

/// What may be left after a power cut. Few un-synced sectors: every subset.
fn survivors(unsynced: usize, seed: u64) -> Vec<Survivors> {
    if unsynced <= 4 {
        return (0..1_u64 << unsynced).map(Survivors::Mask).collect();
    }
    let n = unsynced;
    let mut all = vec![Survivors::None, Survivors::Prefix(n / 2), Survivors::Prefix(n)];
    all.extend([Survivors::AllBut(0), Survivors::AllBut(n - 1), Survivors::Only(n - 1)]);
    all.extend((0..2).map(|i| Survivors::Random(seed * 2 + i)));
    all
}

/// Sequences of `CULVERT_DEPTH` operations (default 3), every `CULVERT_STRIDE`-th (default 8; 1: all).
#[test]
fn every_short_sequence_survives_a_power_cut_at_every_step() {
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (depth, stride) = (number("CULVERT_DEPTH", 3) as u32, number("CULVERT_STRIDE", 8));
    match short_sequences(depth, stride) {
        Ok((crashes, recoveries)) => {
            println!("{crashes} crashes, {recoveries} recoveries");
            assert!(recoveries > 100, "{recoveries}");
        }
        Err(fault) => panic!("{fault}"),
    }
}

/// Runs every `stride`-th sequence of `depth` operations with the power cut at every step, and recovers from
/// what each may leave. Returns numbers of crashes and recoveries.
pub(super) fn short_sequences(depth: u32, stride: usize) -> Result<(u64, u64), String> {
    let base = base();
    let (mut crashes, mut recoveries) = (0_u64, 0_u64);
    for number in (0..ALL.len().pow(depth)).step_by(if depth > 2 { stride } else { 1 }) {
        let operations: Vec<Operation> =
            (0..depth).map(|i| ALL[number / ALL.len().pow(i) % ALL.len()]).collect();
        let steps = run_until(&mut base.clone(), &operations, None)?;
        for die_at in 1..=steps {
            let mut world = base.clone();
            run_until(&mut world, &operations, Some(die_at))?;
            crashes += 1;
            let mut ends: Vec<Option<Survivors>> = vec![None];
            ends.extend(survivors(world.disk.unsynced(), die_at).into_iter().map(Some));
            for end in ends {
                let mut world = world.clone();
                match end {
                    None => world.disk.reopen(),
                    Some(survivors) => world.disk.restart(survivors),
                }
                recoveries += 1;
                let checked = run(async {
                    let (_cache, volume) = world.open().await?;
                    world.observe(&volume, end.is_none()).await
                });
                if let Err(fault) = checked {
                    return Err(format!(
                        "{operations:?}, cut at step {die_at} of {steps}, left {end:?}: {fault}"
                    ));
                }
            }
        }
    }
    Ok((crashes, recoveries))
}
