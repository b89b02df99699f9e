//! Faults put in on purpose, one at a time: each must be found, or the tests prove little.

use super::super::{PLANTED, Plant};
use super::enumerate::{Choice, Sequences, short_sequences};
use super::random::{CRASHES, OPERATIONS};
use super::volumes::two_owners;
use super::world::{busy_run, long_run};
use super::{fitness, ownership};

/// Whether one of `seeds` runs finds the planted fault.
fn is_found(
    plant: Plant,
    seeds: u64,
    run: impl Fn(u64) -> Result<(), String>,
) -> Option<(u64, String)> {
    PLANTED.set(Some(plant));
    let found = (1..=seeds).find_map(|seed| run(seed).err().map(|fault| (seed, fault)));
    PLANTED.set(None);
    found
}

fn random(seed: u64) -> Result<(), String> {
    long_run(seed, CRASHES, OPERATIONS).map(|_| ()).map_err(|fault| fault.to_string())
}

fn busy(seed: u64) -> Result<(), String> {
    busy_run(seed).map_err(|fault| fault.to_string())
}

/// Short sequences: the seed is their length.
fn short(seed: u64) -> Result<(), String> {
    if seed > 3 {
        return Ok(());
    }
    let stride = [1, 1, 4][seed as usize - 1];
    short_sequences(Sequences { depth: seed as u32, stride, survivors: Choice::Few }).map(|_| ())
}

/// A test, which panics where it finds something.
fn once(seed: u64, test: fn()) -> Result<(), String> {
    let found = seed == 1 && std::panic::catch_unwind(test).is_err();
    if found { Err("the test fails".to_owned()) } else { Ok(()) }
}

fn copies(seed: u64) -> Result<(), String> {
    once(seed, ownership::of_two_copies_of_a_cache_one_uploads_and_the_other_keeps_its_data)
}

fn own_roots(seed: u64) -> Result<(), String> {
    once(seed, ownership::a_cache_knows_its_own_roots_after_a_crash_and_not_those_of_its_copy)
}

fn deletions(seed: u64) -> Result<(), String> {
    once(seed, ownership::a_former_owner_cannot_delete_what_another_gateway_took_over)
}

fn unfit(seed: u64) -> Result<(), String> {
    once(seed, fitness::a_cache_opened_at_an_unfit_store_serves_what_it_has_and_puts_nothing_there)
}

macro_rules! plants {
    ($($test:ident: $plant:ident by $run:ident;)*) => {$(
        #[test]
        fn $test() {
            let found = is_found(Plant::$plant, 200, $run);
            println!("{:?}: {found:?}", Plant::$plant);
            assert!(found.is_some(), "{:?} was not found", Plant::$plant);
        }
    )*};
}

plants! {
    a_flush_without_a_sync_is_found: FlushSkipsSync by short;
    no_sync_at_all_is_found: NoSync by short;
    a_slot_written_before_its_records_are_durable_is_found: DestageBeforeSync by short;
    a_superblock_ahead_of_the_directory_is_found: SuperblockBeforeDirectory by short;
    headers_written_in_place_are_found: HeaderInPlace by short;
    headers_not_looked_at_after_a_planned_stop_are_found: StopForgetsCopies by short;
    blocks_clean_too_early_are_found: CleanTooEarly by random;
    blocks_clean_although_overwritten_are_found: CleanOverwritten by busy;
    eviction_of_dirty_chunks_is_found: EvictDirty by random;
    a_cut_of_whatever_is_newest_is_found: CutTakesNewest by busy;
    slots_overwritten_under_a_cut_are_found: DestageOverCut by busy;
    a_cut_that_is_not_durable_here_is_found: CutBeforeFlush by short;
    data_of_records_not_checked_is_found: NoDataCheck by short;
    a_root_put_without_looking_at_the_epoch_is_found: NoEpochCheck by two_owners;
    a_root_put_without_condition_is_found: PutWithoutCondition by two_owners;
    a_root_taken_for_ours_whatever_its_nonce_is_found: AnyNonce by copies;
    attempts_that_are_not_noted_are_found: AttemptsForgotten by own_roots;
    a_volume_deleted_by_who_lost_it_is_found: DeletesUnasked by deletions;
    a_store_that_is_not_tried_is_found: StoreTrusted by unfit;
}
