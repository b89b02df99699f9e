//! Every short sequence of operations, with the power cut at every write and sync, and at every
//! operation of the store.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::{Cache, PLANTED, Volume};
use super::caches::run;
use super::world::{CHUNKS, Fault, World};
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
    Zeroes,
    Resize,
    Destage,
    Evict,
    Upload,
    Read,
}

use Operation::{
    Destage, Evict, Flush, Read, Resize, Trim, Upload, Write, WriteFua, WritePart, Zeroes,
};

const ALL: [Operation; 11] =
    [Write, WriteFua, WritePart, Flush, Trim, Zeroes, Resize, Destage, Evict, Upload, Read];

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
        Zeroes => world.empty(volume, BLOCK_BYTES / 2, 2 * BLOCK_BYTES, false, false).await?,
        Resize => world.shrink_and_grow(volume, 2).await?,
        Destage => cache.destage().await?,
        Evict => {
            cache.evict(1).await?;
        }
        Upload => world.upload(volume).await?,
        Read => world.check(volume, 0, 4 * BLOCK_BYTES).await?,
    }
    Ok(())
}

/// A cache in use: data in slots and log, dirty and clean, and a cut in the store. Its last session ended with
/// a power cut that took nothing, or with a planned stop.
fn base(is_stopped: bool) -> World {
    let mut world = World::new(3);
    world.store.fail_one_in(0);
    // Chunks are validated at their first access, and their headers read again later.
    (world.lazy, world.drops_headers) = (true, Some(true));
    run(async {
        let (cache, volume) = world.open().await.unwrap();
        for chunk in 0..CHUNKS {
            world.write(&volume, chunk * CHUNK_BYTES, 4 * BLOCK_BYTES, false).await.unwrap();
        }
        world.upload(&volume).await.unwrap();
        world.write(&volume, BLOCK_BYTES, BLOCK_BYTES, false).await.unwrap();
        world.flush(&volume).await.unwrap();
        cache.destage().await.unwrap();
        world.write(&volume, 0, BLOCK_BYTES, false).await.unwrap();
        world.flush(&volume).await.unwrap();
        if is_stopped {
            world.close(cache).await.unwrap();
        }
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

/// How many of the possible disks after a power cut are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Every subset of up to four un-synced sectors; of more, some.
    Few,
    /// Every subset of up to twelve; of more, each prefix, each single omission, each single survivor, and
    /// 256 random ones.
    All,
}

fn survivors(choice: Choice, unsynced: usize, seed: u64) -> Vec<Survivors> {
    let n = unsynced;
    let (exhausted, random) = match choice {
        Choice::Few => (4, 2),
        Choice::All => (12, 256),
    };
    if n <= exhausted {
        return (0..1_u64 << n).map(Survivors::Mask).collect();
    }
    let random = (0..random).map(|i| Survivors::Random(seed * random + i));
    let mut left = vec![Survivors::None];
    match choice {
        Choice::Few => left.extend([
            Survivors::Prefix(n / 2),
            Survivors::Prefix(n),
            Survivors::AllBut(0),
            Survivors::AllBut(n - 1),
            Survivors::Only(n - 1),
        ]),
        Choice::All => {
            left.extend((1..=n).map(Survivors::Prefix));
            left.extend((0..n).map(Survivors::AllBut));
            left.extend((0..n).map(Survivors::Only));
        }
    }
    left.extend(random);
    left
}

/// What is enumerated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequences {
    /// Operations in a sequence.
    pub(super) depth: u32,
    /// Every so many-th sequence.
    pub(super) stride: usize,
    /// What is left after each crash.
    pub(super) survivors: Choice,
    /// Words of the faults that are looked for: others are passed over. None: every fault is one.
    pub(super) wanted: &'static [&'static str],
}

/// What is enumerated with a planted fault as without one.
pub(super) const SHORT: [Sequences; 4] = [
    Sequences { depth: 0, stride: 1, survivors: Choice::Few, wanted: &[] },
    Sequences { depth: 1, stride: 1, survivors: Choice::Few, wanted: &[] },
    Sequences { depth: 2, stride: 1, survivors: Choice::Few, wanted: &[] },
    Sequences { depth: 3, stride: 4, survivors: Choice::Few, wanted: &[] },
];

/// What was done.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    sequences: u64,
    crashes: u64,
    /// Disks after crashes.
    disks: u64,
    /// Those among them that differ, and were recovered.
    recoveries: u64,
    /// The first fault that was found and not looked for.
    pub(super) passed_over: Option<String>,
}

impl Sequences {
    /// Sequences of operations, from both bases.
    fn all(&self) -> usize {
        2 * ALL.len().pow(self.depth)
    }

    /// Ends the search with a fault that is looked for, and notes any other.
    fn judge(&self, fault: String, done: &mut Done) -> Result<(), String> {
        if self.wanted.is_empty() || self.wanted.iter().any(|words| fault.contains(words)) {
            return Err(fault);
        }
        done.passed_over.get_or_insert(fault);
        Ok(())
    }
}

/// All sequences of up to three operations with `CULVERT_E2E=full`, which takes hours; else some.
#[test]
fn short_sequences_survive_a_power_cut_at_every_step() {
    let full = std::env::var("CULVERT_E2E").is_ok_and(|value| value == "full");
    let mut plan = Vec::from(SHORT);
    if full {
        for of in &mut plan {
            (of.stride, of.survivors) = (1, Choice::All);
        }
    } else {
        let more = |of| Sequences { survivors: Choice::All, ..of };
        plan.extend([more(SHORT[0]), Sequences { stride: 4, ..more(SHORT[1]) }]);
    }
    for of in plan {
        match short_sequences(of) {
            Ok(done) => {
                println!("{of:?}: {done:?}");
                let sequences = of.all().div_ceil(of.stride) as u64;
                assert_eq!(done.sequences, sequences, "{of:?}: {done:?}");
                // Each is cut at its end at least. Each kill is recovered from, and some power cut.
                assert!(done.crashes >= sequences, "{of:?}: {done:?}");
                assert!(done.recoveries >= done.crashes + sequences, "{of:?}: {done:?}");
            }
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// Runs sequences with the power cut at every step of their last operation and after it (earlier ones are last
/// in shorter sequences; opening is last where there is none), and recovers from what each may leave.
pub(super) fn short_sequences(of: Sequences) -> Result<Done, String> {
    let bases = [base(false), base(true)];
    let next = AtomicUsize::new(0);
    // Each sequence from either base.
    let all = of.all();
    let sequences = all / 2;
    let planted = PLANTED.get();
    let work = || {
        PLANTED.set(planted);
        let mut done = Done::default();
        loop {
            let number = next.fetch_add(of.stride, Ordering::Relaxed);
            if number >= all {
                return Ok(done);
            }
            let (base, number) = (&bases[number / sequences], number % sequences);
            let nth = |i| ALL[number / ALL.len().pow(i) % ALL.len()];
            let operations: Vec<Operation> = (0..of.depth).map(nth).collect();
            if let Err(fault) = one_sequence(base, &operations, of, &mut done) {
                next.store(all, Ordering::Relaxed);
                return Err(fault);
            }
        }
    };
    let parts: Vec<Result<Done, String>> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut sum = Done::default();
    for part in parts {
        let Done { sequences, crashes, disks, recoveries, passed_over } = part?;
        sum.sequences += sequences;
        sum.crashes += crashes;
        sum.disks += disks;
        sum.recoveries += recoveries;
        sum.passed_over = sum.passed_over.or(passed_over);
    }
    Ok(sum)
}

fn one_sequence(
    base: &World,
    operations: &[Operation],
    of: Sequences,
    done: &mut Done,
) -> Result<(), String> {
    done.sequences += 1;
    let mut whole = base.clone();
    let before = match operations.split_last() {
        Some((_, earlier)) => run_until(&mut base.clone(), earlier, None),
        None => Ok(0),
    };
    let (before, steps) = match (before, run_until(&mut whole, operations, None)) {
        (Ok(before), Ok(steps)) => (before, steps),
        (Err(fault), _) | (_, Err(fault)) => return of.judge(fault, done),
    };
    // What differs neither on the disk nor in the store nor in what was promised recovers alike.
    let mut known = HashSet::new();
    for die_at in before + 1..=steps {
        let mut world = base.clone();
        match run_until(&mut world, operations, Some(die_at)) {
            Ok(_) => recover(&world, (operations, die_at, steps), of, &mut known, done)?,
            Err(fault) => of.judge(fault, done)?,
        }
    }
    // The last answer was given.
    recover(&whole, (operations, steps + 1, steps), of, &mut known, done)
}

/// Recovers from what a power cut and a kill may leave of `world`. `at`: the sequence, the step at which it came,
/// and all of its steps.
fn recover(
    world: &World,
    at: (&[Operation], u64, u64),
    of: Sequences,
    known: &mut HashSet<(u64, u64, u64)>,
    done: &mut Done,
) -> Result<(), String> {
    let (operations, die_at, steps) = at;
    done.crashes += 1;
    let mut ends: Vec<Option<Survivors>> = vec![None];
    ends.extend(survivors(of.survivors, world.disk.unsynced(), die_at).into_iter().map(Some));
    for end in ends {
        let mut world = world.clone();
        match end {
            None => world.disk.reopen(),
            Some(survivors) => world.disk.restart(survivors),
        }
        done.disks += 1;
        let same = (world.disk.digest(), world.store.puts(), world.clock());
        if end.is_some() && !known.insert(same) {
            continue;
        }
        done.recoveries += 1;
        let checked = run(async {
            let (_cache, volume) = world.open().await?;
            world.observe(&volume, end.is_none()).await
        });
        if let Err(fault) = checked.and_then(|()| world.compare_remote()) {
            let fault =
                format!("{operations:?}, cut at step {die_at} of {steps}, left {end:?}: {fault}");
            of.judge(fault, done)?;
        }
    }
    Ok(())
}
