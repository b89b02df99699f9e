//! Token buckets: how much a port may send and receive.
//!
//! Whole numbers only. Tokens are kept in billionths of a bit, so that a rate in bits per second adds its
//! own value for each nanosecond, and no time is too short to count.

use std::time::Instant;

use culvert_model::TokenBucket;

/// Tokens of a byte.
const BYTE: i64 = 8_000_000_000;

const _: () = assert!(TokenBucket::BURST_MAX_BYTES as i64 <= i64::MAX / BYTE);

/// One bucket, full at first.
#[derive(Copy, Clone, Debug, Default)]
pub struct Bucket {
    tokens: i64,
    filled: Option<Instant>,
}

impl Bucket {
    /// Whether `bytes` pass now, and takes them if they do. What is larger than the burst passes when the
    /// bucket is full, and is paid for afterwards.
    pub fn take(&mut self, config: TokenBucket, bytes: u64, now: Instant) -> bool {
        let burst = i64::from(config.burst_bytes()) * BYTE;
        self.tokens = match self.filled {
            None => burst,
            Some(filled) => {
                let elapsed = now.saturating_duration_since(filled).as_nanos();
                let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
                let rate = i64::try_from(config.rate_bps()).unwrap_or(i64::MAX);
                self.tokens.saturating_add(elapsed.saturating_mul(rate)).min(burst)
            }
        };
        self.filled = Some(now.max(self.filled.unwrap_or(now)));
        let cost = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(BYTE);
        if self.tokens < cost.min(burst) {
            return false;
        }
        self.tokens -= cost;
        true
    }
}

/// The buckets of one port.
#[derive(Copy, Clone, Debug, Default)]
pub struct PortBuckets {
    /// For what comes from the tenant.
    pub rx: Bucket,
    /// For what goes to the tenant.
    pub tx: Bucket,
}

/// What a frame of `len` bytes counts for: a superframe, with segments of `segment` bytes of payload
/// behind `headers` bytes, as the frames that it is cut into.
pub fn cost(len: usize, superframe: Option<(usize, usize)>) -> u64 {
    let Some((headers, segment)) = superframe else { return len as u64 };
    let segments = len.saturating_sub(headers).div_ceil(segment.max(1)).max(1);
    (len + (segments - 1) * headers) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bucket(rate: u64, burst: u64) -> TokenBucket {
        TokenBucket::new(rate, Some(burst)).unwrap()
    }

    #[test]
    fn a_superframe_counts_as_its_segments() {
        assert_eq!(cost(1514, None), 1514);
        assert_eq!(cost(54 + 1460, Some((54, 1460))), 1514);
        assert_eq!(cost(54 + 1461, Some((54, 1460))), 54 + 1460 + 54 + 1);
        assert_eq!(cost(54 + 14_600, Some((54, 1460))), 10 * 1514);
        assert_eq!(cost(54, Some((54, 0))), 54);
    }

    #[test]
    fn the_burst_passes_at_once_and_the_rate_afterwards() {
        let (config, start) = (bucket(8_000_000, 100_000), Instant::now());
        let mut used = Bucket::default();
        let passed = (0..200).filter(|_| used.take(config, 1000, start)).count();
        assert_eq!(passed, 100);
        let mut passed = 0;
        for us in 1..=1_000_000_u64 {
            passed += u64::from(used.take(config, 1000, start + Duration::from_micros(us)));
        }
        assert_eq!(passed, 1000, "a megabyte in a second");
    }

    #[test]
    fn no_moment_is_too_short_and_no_pause_too_long() {
        let (config, start) = (bucket(8_000, 65_549), Instant::now());
        let mut used = Bucket::default();
        assert!(used.take(config, 65_549, start));
        for ns in 1..1_000_000 {
            assert!(!used.take(config, 1, start + Duration::from_nanos(ns)));
        }
        assert!(used.take(config, 1, start + Duration::from_millis(1)), "a byte in a millisecond");
        let later = start + Duration::from_secs(1 << 40);
        assert!(used.take(config, 65_549, later) && !used.take(config, 1, later));
    }

    #[test]
    fn what_is_above_the_burst_waits_for_a_full_bucket_and_is_paid_for() {
        let (config, start) = (bucket(8_000_000, 100_000), Instant::now());
        let mut used = Bucket::default();
        assert!(used.take(config, 300_000, start));
        assert!(!used.take(config, 300_000, start + Duration::from_millis(299)));
        assert!(used.take(config, 300_000, start + Duration::from_millis(300)));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let (config, start) = (bucket(8_000_000, 100_000), Instant::now() + Duration::from_secs(9));
        let mut used = Bucket::default();
        assert!(used.take(config, 100_000, start));
        assert!(!used.take(config, 1, start - Duration::from_secs(5)));
        assert!(!used.take(config, 1, start));
    }

    #[test]
    fn the_greatest_values_do_not_overflow() {
        let config = bucket(TokenBucket::RATE_MAX_BPS, TokenBucket::BURST_MAX_BYTES.into());
        let start = Instant::now();
        let mut used = Bucket::default();
        assert!(used.take(config, u64::MAX, start));
        assert!(!used.take(config, 1, start + Duration::from_millis(1)));
    }
}
