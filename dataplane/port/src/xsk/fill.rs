//! How many frames a socket keeps for receiving.

use super::types::IDLE_FRAMES;

/// What an idle port keeps.
const START: usize = IDLE_FRAMES;

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
    min: usize,
    max: usize,
    calls: u32,
    /// Most frames the kernel had taken at once in this window.
    peak_used: usize,
}

impl FillBudget {
    /// Starts with `start` frames, at least 64, and never exceeds `max`.
    pub(super) fn new(start: u32, max: u32) -> Self {
        let max = max as usize;
        let min = START.max(start as usize).min(max);
        Self { frames: min, min, max, calls: 0, peak_used: 0 }
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
        if waiting < DRY.max(self.frames / 4) && ever_filled && !starved {
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
