//! When a device that could not be opened is tried again.

use std::time::{Duration, Instant};

use crate::limits::{RETRY_PAUSE_MAX, RETRY_PAUSE_MIN};

/// The time of the next attempt; each failure doubles the pause before the one after it.
#[derive(Copy, Clone, Debug)]
pub struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retry {
    /// For a device that failed at `now` for the first time.
    pub fn after(now: Instant) -> Self {
        Retry { at: now + RETRY_PAUSE_MIN, pause: RETRY_PAUSE_MIN }
    }

    /// Whether an attempt is due.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.at
    }

    /// It failed once more.
    pub fn failed(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
        self.at = now + self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_up_to_a_limit() {
        let start = Instant::now();
        let mut retry = Retry::after(start);
        assert!(!retry.is_due(start) && retry.is_due(start + RETRY_PAUSE_MIN));
        let (mut now, mut attempts) = (start, 0);
        let hour = Duration::from_secs(3600);
        while now < start + hour {
            now += Duration::from_millis(100);
            if retry.is_due(now) {
                attempts += 1;
                retry.failed(now);
            }
        }
        let most = hour.as_secs() / RETRY_PAUSE_MAX.as_secs() + 6;
        assert!((10..=most).contains(&attempts), "{attempts} attempts in an hour");
    }
}
