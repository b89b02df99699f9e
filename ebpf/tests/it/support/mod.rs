//! What the tests of the programs share: network namespaces, test runs, frames.

pub(crate) mod frames;
pub(crate) mod inject;
pub(crate) mod netns;
pub(crate) mod tag;
pub(crate) mod testrun;
pub(crate) mod xsk;

use culvert_ebpf::{Counter, LoadOptions, Programs};

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const TC_ACT_SHOT: u32 = 2;
/// Whoever stands behind decides.
pub(crate) const TC_ACT_UNSPEC: u32 = u32::MAX;

/// Programs that pin nothing.
pub(crate) fn load() -> Programs {
    Programs::load(&LoadOptions { pin_dir: None, max_slots: 64 }).expect("the programs load")
}

pub(crate) fn counter(programs: &Programs, wanted: Counter) -> u64 {
    let counters = programs.counters();
    counters.iter().find(|(counter, _)| *counter == wanted).expect("every counter is listed").1
}

/// The counters that `action` moves, and by how much. Those of the tracing program depend on what
/// else the machine receives and are left out.
pub(crate) fn moved(
    programs: &mut Programs,
    action: impl FnOnce(&mut Programs),
) -> Vec<(Counter, u64)> {
    let before = programs.counters();
    action(programs);
    let after = programs.counters();
    before
        .into_iter()
        .zip(after)
        .filter(|((counter, _), _)| *counter < Counter::SkbInfoCaptured)
        .filter(|((_, before), (_, after))| before != after)
        .map(|((counter, before), (_, after))| (counter, after - before))
        .collect()
}
