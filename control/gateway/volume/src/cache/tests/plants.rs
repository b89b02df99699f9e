//! Faults put in on purpose, one at a time: each must be found, by what it breaks, or the tests prove little.

use super::super::{PLANTED, Plant};
use super::enumerate::{SHORT, Sequences, short_sequences};
use super::random::{CRASHES, OPERATIONS};
use super::runs::{busy_run, full_log_run, long_run};
use super::volumes::two_owners;
use super::{damaged_slots, fitness, ownership};

/// Seeds of each run until a fault is said not to be found: one in some hundreds meets the rarest.
const MOST_SEEDS: u64 = 2000;

/// Words of which a fault has some that is found for the right reason.
type Words = &'static [&'static str];

/// Does what a seed says, and fails with what it finds.
type Run = fn(u64, Words) -> Result<(), String>;

/// Looks for the planted fault with the first seeds of one run after the other. Returns the seed that found it and
/// the fault; else some that were found and have other words.
fn find(plant: Plant, words: Words, runs: &[Run]) -> Result<(u64, String), Vec<String>> {
    PLANTED.set(Some(plant));
    let mut others = Vec::new();
    let mut found = None;
    for (run, seed) in runs.iter().flat_map(|run| (1..=MOST_SEEDS).map(move |seed| (run, seed))) {
        let Err(fault) = run(seed, words) else {
            continue;
        };
        if words.iter().any(|words| fault.contains(words)) {
            found = Some((seed, fault));
            break;
        }
        if others.len() < 5 {
            others.push(format!("seed {seed}: {fault}"));
        }
    }
    PLANTED.set(None);
    found.ok_or(others)
}

fn random(seed: u64, _: Words) -> Result<(), String> {
    long_run(seed, CRASHES, OPERATIONS).map(|_| ()).map_err(|fault| fault.to_string())
}

fn busy(seed: u64, _: Words) -> Result<(), String> {
    busy_run(seed).map_err(|fault| fault.to_string())
}

fn full_log(seed: u64, _: Words) -> Result<(), String> {
    full_log_run(seed).map_err(|fault| fault.to_string())
}

fn owners(seed: u64, _: Words) -> Result<(), String> {
    two_owners(seed).map(|_| ())
}

/// Short sequences: the seed is their length. They go on after a fault with other words.
fn short(seed: u64, words: Words) -> Result<(), String> {
    let Some(of) = SHORT.get(seed as usize) else {
        return Ok(());
    };
    let done = short_sequences(Sequences { wanted: words, ..*of })?;
    done.passed_over.map_or(Ok(()), Err)
}

/// A test, which panics where it finds something.
fn once(seed: u64, test: fn()) -> Result<(), String> {
    if seed > 1 {
        return Ok(());
    }
    std::panic::catch_unwind(test).map_err(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_owned(),
    })
}

fn copies(seed: u64, _: Words) -> Result<(), String> {
    once(seed, ownership::of_two_copies_of_a_cache_one_uploads_and_the_other_keeps_its_data)
}

fn torn_headers(seed: u64, _: Words) -> Result<(), String> {
    once(seed, damaged_slots::a_header_torn_after_a_planned_stop_takes_nothing)
}

fn own_roots(seed: u64, _: Words) -> Result<(), String> {
    once(seed, ownership::a_cache_knows_its_own_roots_after_a_crash_and_not_those_of_its_copy)
}

fn deletions(seed: u64, _: Words) -> Result<(), String> {
    once(seed, ownership::a_former_owner_cannot_delete_what_another_gateway_took_over)
}

fn unfit(seed: u64, _: Words) -> Result<(), String> {
    once(seed, fitness::a_cache_opened_at_an_unfit_store_serves_what_it_has_and_puts_nothing_there)
}

/// A block that was promised is older after a crash, or was read wrongly before one.
const LOST: Words =
    &["was promised (", "is wrong from byte", "ever written", "the remote image is"];
/// Somebody uploads who lost the volume, so that its owner loses it, or both do.
const TWO_OWNERS: Words = &[
    "the first owner uploads after it lost the volume",
    "the second owner: volume v: taken over",
    "the second owner cannot upload: volume v: taken over",
    "the remote holds a mix",
];
/// Nobody is refused who must be.
const NOT_REFUSED: Words = &["not refused: Ok("];
/// Of a slot or a record neither the old nor the new content is there.
const TORN: Words = &["the only copy of bytes"];

macro_rules! plants {
    ($($test:ident: $plant:ident by $($run:ident)or+ as $words:expr;)*) => {$(
        #[test]
        fn $test() {
            let words: Words = $words;
            match find(Plant::$plant, words, &[$($run),+]) {
                Ok(found) => println!("{:?}: {found:?}", Plant::$plant),
                Err(others) => panic!(
                    "{:?} was not found as any of {words:?}; found instead: {others:#?}",
                    Plant::$plant
                ),
            }
        }
    )*};
}

plants! {
    a_write_answered_before_its_record_is_written_is_found:
        AnswerBeforeWritten by short as &["was promised (killed)"];
    a_flush_without_a_sync_is_found: FlushSkipsSync by short as &["was promised (power cut)"];
    no_sync_at_all_is_found: NoSync by short as &["was promised (power cut)", "is damaged"];
    a_sync_that_answers_whoever_came_later_is_found:
        SyncCoversLater by full_log as &["was promised (power cut)"];
    a_slot_written_before_its_records_are_durable_is_found: DestageBeforeSync by short as TORN;
    a_superblock_ahead_of_the_directory_is_found:
        SuperblockBeforeDirectory by full_log or random or short as
        &["was promised (power cut)", "the log is damaged"];
    space_of_the_log_used_again_too_early_is_found:
        TailBeforeDirectory by full_log as
        &["was promised (", "the only copy of bytes", "the log is damaged"];
    headers_written_in_place_are_found: HeaderInPlace by short as TORN;
    headers_not_looked_at_after_a_planned_stop_are_found:
        StopForgetsCopies by torn_headers as TORN;
    blocks_clean_too_early_are_found: CleanTooEarly by random as LOST;
    blocks_clean_although_overwritten_are_found: CleanOverwritten by busy as LOST;
    eviction_of_dirty_chunks_is_found: EvictDirty by random as LOST;
    a_cut_of_whatever_is_newest_is_found:
        CutTakesNewest by busy as &["the remote image is no cut", "the only copy of bytes"];
    slots_overwritten_under_a_cut_are_found:
        DestageOverCut by busy as &["the remote image is no cut"];
    a_cut_that_is_not_durable_here_is_found:
        CutBeforeFlush by short as
        &["the remote image is no cut", "the log is damaged"];
    an_upload_that_puts_nothing_is_found:
        UploadSkipped by short as &["the remote image is an old cut"];
    a_flush_that_does_not_wait_for_a_cut_is_found:
        FlushStaysHere by random as &["the remote image is an old cut"];
    data_of_records_not_checked_is_found: NoDataCheck by short as TORN;
    a_root_put_without_looking_at_the_epoch_is_found: NoEpochCheck by owners as TWO_OWNERS;
    a_root_put_without_condition_is_found: PutWithoutCondition by owners as TWO_OWNERS;
    a_root_taken_for_ours_whatever_its_nonce_is_found: AnyNonce by copies as NOT_REFUSED;
    attempts_that_are_not_noted_are_found:
        AttemptsForgotten by own_roots as &["value: Superseded"];
    a_volume_deleted_by_who_lost_it_is_found: DeletesUnasked by deletions as NOT_REFUSED;
    a_store_that_is_not_tried_is_found: StoreTrusted by unfit as NOT_REFUSED;
}
