//! Limits on what goes to and comes from the store.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How much may be taken at once after a pause, in time at the full rate.
const BURST: Duration = Duration::from_millis(250);

/// Bytes per second. Whoever takes more than there is waits, in order, until it would have come.
#[derive(Debug)]
pub(crate) struct Pace {
    /// 0: no limit.
    bytes_per_second: u64,
    /// When what was taken so far has come.
    paid_until: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, paid_until: Mutex::new(None) }
    }

    /// Waits until `bytes` may go. An object larger than a burst goes as a whole, and the next one waits
    /// the longer.
    pub(crate) async fn take(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let now = Instant::now();
        let from = {
            let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = now.checked_sub(BURST).unwrap_or(now);
            let from = paid.unwrap_or(oldest).max(oldest);
            *paid =
                Some(from + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64));
            from
        };
        tokio::time::sleep_until(from).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn as_much_goes_as_was_allowed_however_many_take_it() {
        let pace = Pace::new(1000);
        let begun = Instant::now();
        let takers = (0..50).map(|_| pace.take(100));
        futures_util::future::join_all(takers).await;
        // The last of 5,000 bytes begins after 4,900, less a burst.
        let took = begun.elapsed().as_millis();
        assert!((4640..=4660).contains(&took), "{took} ms");
        Pace::new(0).take(u64::MAX).await;
        assert_eq!(begun.elapsed().as_millis(), took);
    }
}
