//! What a simulated run went through.

/// What a run did, to prove that it went where the danger is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) operations: u64,
    /// Those of them that were about the second of two volumes, or both.
    pub(super) on_second: u64,
    pub(super) crashes: u64,
    /// Deaths of the process alone after which everything was read.
    pub(super) kills_checked: u64,
    /// Writes to the log that a power cut tore.
    pub(super) torn_tails: u64,
    /// Crashes when slots were written whose records were not dropped from the map yet.
    pub(super) in_destage: u64,
    /// Crashes after the intention to put a root was on the disk, and before its success was. What an earlier
    /// crash left of that does not count.
    pub(super) in_publication: u64,
    /// Those of them when the root was in the store.
    pub(super) root_ahead: u64,
    /// Crashes when some chunks were validated and some not.
    pub(super) in_validation: u64,
    pub(super) in_recovery: u64,
    /// Sessions that ended as planned.
    pub(super) stops: u64,
    pub(super) evicted: u64,
    pub(super) cuts: u64,
    pub(super) checkpoints: u64,
    /// Images of the store that were compared with the model.
    pub(super) cuts_compared: u64,
    /// Answers that promised that everything is in the store.
    pub(super) remote_flushes: u64,
    pub(super) lost_answers: u64,
    pub(super) late_puts: u64,
    pub(super) short_reads: u64,
    pub(super) stale_lists: u64,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Seen) {
        self.operations += other.operations;
        self.on_second += other.on_second;
        self.crashes += other.crashes;
        self.kills_checked += other.kills_checked;
        self.torn_tails += other.torn_tails;
        self.in_destage += other.in_destage;
        self.in_publication += other.in_publication;
        self.root_ahead += other.root_ahead;
        self.in_validation += other.in_validation;
        self.in_recovery += other.in_recovery;
        self.stops += other.stops;
        self.evicted += other.evicted;
        self.cuts += other.cuts;
        self.checkpoints += other.checkpoints;
        self.cuts_compared += other.cuts_compared;
        self.remote_flushes += other.remote_flushes;
        self.lost_answers += other.lost_answers;
        self.late_puts += other.late_puts;
        self.short_reads += other.short_reads;
        self.stale_lists += other.stale_lists;
    }
}
