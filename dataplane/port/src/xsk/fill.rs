//! How many frames a socket keeps for receiving.

use super::types::IDLE_FRAMES_MAX;

/// Fewer waiting frames than a superframe takes: the next one would be dropped.
const DRY: usize = 20;

/// Calls over which a budget that is not used up is halved. Large, because a worker that spins
/// calls some hundred thousand times a second and bursts come further apart than milliseconds.
const WINDOW: u32 = 1 << 17;

/// The adaptive number of frames that a socket keeps for receiving: doubled whenever the kernel
/// has taken nearly all of them since the last look, halved after a long time of using few.
#[derive(Debug)]
pub(super) struct FillBudget {
    frames: usize,
    /// Never fewer than this, whatever the stock of idle sockets is.
    floor: usize,
    min: usize,
    max: usize,
    calls: u32,
    /// Most frames the kernel had taken at once in this window.
    peak_used: usize,
}

impl FillBudget {
    /// Keeps at least `floor` frames and never more than `max`; an idle socket's stock is
    /// [`IDLE_FRAMES_MAX`], unless [`set_idle`](Self::set_idle) says otherwise.
    pub(super) fn new(floor: u32, max: u32) -> Self {
        let (floor, max) = (floor as usize, max as usize);
        let min = IDLE_FRAMES_MAX.max(floor).min(max);
        Self { frames: min, floor, min, max, calls: 0, peak_used: 0 }
    }

    /// Sets the stock of an idle socket. One that has not been filled yet begins with it; what the kernel
    /// has of others comes back only with their packets.
    pub(super) fn set_idle(&mut self, frames: usize) {
        let min = frames.max(self.floor).min(self.max);
        if min != self.min && self.calls == 0 {
            self.frames = min;
        }
        self.min = min;
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// Takes note that of `lent` frames in the kernel's hands plus those just received `waiting`
    /// are still in the fill ring, and returns the budget. `starved`: the arena had too few for the
    /// last one.
    pub(super) fn observe(&mut self, waiting: usize, lent: usize, starved: bool) -> usize {
        let used = self.frames.saturating_sub(waiting);
        let ever_filled = lent > 0 || self.calls > 0;
        self.calls += 1;
        self.peak_used = self.peak_used.max(used);
        if used > 0 && waiting < DRY.max(self.frames / 4) && ever_filled && !starved {
            self.frames = (self.frames * 2).min(self.max);
            self.restart();
        } else if self.calls >= WINDOW {
            if self.peak_used < self.frames / 4 {
                self.frames = (self.frames / 2).max(self.min);
            }
            self.restart();
        }
        self.frames
    }

    fn restart(&mut self) {
        self.calls = 1;
        self.peak_used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fill_does_not_count_as_running_dry() {
        let mut budget = FillBudget::new(0, 2048);
        assert_eq!(budget.observe(0, 0, false), 64);
        assert_eq!(budget.observe(64, 64, false), 64);
    }

    #[test]
    fn a_port_that_runs_dry_gets_twice_as_many_up_to_its_ring() {
        let mut budget = FillBudget::new(0, 256);
        budget.observe(0, 0, false);
        assert_eq!(budget.observe(5, 64, false), 128);
        assert_eq!(budget.observe(0, 128, false), 256);
        assert_eq!(budget.observe(0, 256, false), 256);
    }

    #[test]
    fn a_port_that_turns_quiet_gives_up_its_frames_step_by_step() {
        let mut budget = FillBudget::new(0, 1024);
        budget.observe(0, 0, false);
        for _ in 0..4 {
            budget.observe(0, 64, false);
        }
        assert_eq!(budget.frames(), 1024);
        for _ in 0..8 * WINDOW {
            let now = budget.frames();
            budget.observe(now, now, false);
        }
        assert_eq!(budget.frames(), 64);
    }

    #[test]
    fn where_many_share_an_idle_port_keeps_few_and_gets_more_with_its_first_packets() {
        let mut budget = FillBudget::new(0, 2048);
        budget.set_idle(8);
        assert_eq!(budget.observe(0, 0, false), 8);
        for _ in 0..100 {
            assert_eq!(budget.observe(8, 8, false), 8);
        }
        assert_eq!(budget.observe(7, 8, false), 16);
        assert_eq!(budget.observe(14, 16, false), 32);
        assert_eq!(budget.observe(30, 32, false), 32);
        // A device that keeps its frames whatever the others do.
        let mut budget = FillBudget::new(2048, 2048);
        budget.set_idle(8);
        assert_eq!(budget.observe(0, 0, false), 2048);
    }

    #[test]
    fn steady_use_keeps_the_budget() {
        let mut budget = FillBudget::new(0, 1024);
        budget.observe(0, 0, false);
        budget.observe(0, 64, false);
        for _ in 0..3 * WINDOW {
            budget.observe(64, 128, false);
        }
        assert_eq!(budget.frames(), 128);
    }
}
