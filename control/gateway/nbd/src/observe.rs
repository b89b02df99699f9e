//! What a server tells of its work: a trait to listen with, and histograms that do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::connections::Connection;
use crate::errno::Errno;
use crate::proto::request::Command;

/// An answered request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What was asked.
    pub command: Command,
    /// Length of the range in bytes, as asked.
    pub length: u64,
    /// From the request's last byte to the answer's place in the queue to the socket.
    pub latency: Duration,
    /// The error; `None` for success.
    pub error: Option<Errno>,
}

/// Hears of what happens. Called on the path of each request: must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A client connected.
    fn connected(&self, connection: &Connection) {
        let _ = connection;
    }

    /// A client's handshake failed, or it went away or was thrown out during it.
    fn refused(&self, connection: &Connection, reason: &str) {
        let _ = (connection, reason);
    }

    /// A connection has ended, whatever it had come to.
    fn disconnected(&self, connection: &Connection) {
        let _ = connection;
    }

    /// A request was answered.
    fn answered(&self, connection: &Connection, answered: &Answered) {
        let _ = (connection, answered);
    }
}

/// Hears nothing.
impl Observer for () {}

/// Buckets of a [`Histogram`]: four for each doubling, from 1 us to above one hour.
pub const BUCKETS: usize = 128;

/// A histogram of times without locks; its relative error is at most a quarter.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts a time.
    pub fn record(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Number of times in each bucket.
    pub fn counts(&self) -> [u64; BUCKETS] {
        self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed))
    }

    /// Sum of all times.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed))
    }

    /// The time that the share `q`, 0.0 to 1.0, of all times does not exceed; `None` without any.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let counts = self.counts();
        let total: u64 = counts.iter().sum();
        let wanted = ((total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(bucket_end(bucket))
    }
}

fn bucket_of(micros: u64) -> usize {
    let octave = micros.max(1).ilog2() as usize;
    let quarter = if octave < 2 { 0 } else { (micros >> (octave - 2)) as usize & 3 };
    (octave * 4 + quarter).min(BUCKETS - 1)
}

/// The time at which a bucket ends and the next begins.
pub fn bucket_end(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    let micros = if octave < 2 { 2 << octave } else { (5 + quarter) << (octave - 2) };
    Duration::from_micros(micros)
}

/// Counts and latencies by command: an [`Observer`] to read numbers from.
#[derive(Debug, Default)]
pub struct Statistics {
    commands: [CommandStatistics; Command::ANSWERED.len()],
    /// Clients that connected.
    pub connected: AtomicU64,
    /// Handshakes that failed.
    pub refused: AtomicU64,
    /// Connections that ended.
    pub disconnected: AtomicU64,
}

/// Counts and latencies of one command.
#[derive(Debug, Default)]
pub struct CommandStatistics {
    /// Times to the answer, failed ones included.
    pub latency: Histogram,
    /// Bytes of the ranges of requests that succeeded.
    pub bytes: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
}

impl Statistics {
    /// Those of one command; `None` for commands that are not answered.
    pub fn command(&self, command: Command) -> Option<&CommandStatistics> {
        let index = Command::ANSWERED.iter().position(|c| *c == command)?;
        self.commands.get(index)
    }
}

impl Observer for Statistics {
    fn connected(&self, _: &Connection) {
        self.connected.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, _: &Connection, _: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn disconnected(&self, _: &Connection) {
        self.disconnected.fetch_add(1, Ordering::Relaxed);
    }

    fn answered(&self, _: &Connection, answered: &Answered) {
        let Some(command) = self.command(answered.command) else { return };
        command.latency.record(answered.latency);
        if answered.error.is_some() {
            command.errors.fetch_add(1, Ordering::Relaxed);
        } else {
            command.bytes.fetch_add(answered.length, Ordering::Relaxed);
        }
    }
}

impl<O: Observer> Observer for std::sync::Arc<O> {
    fn connected(&self, connection: &Connection) {
        (**self).connected(connection);
    }

    fn refused(&self, connection: &Connection, reason: &str) {
        (**self).refused(connection, reason);
    }

    fn disconnected(&self, connection: &Connection) {
        (**self).disconnected(connection);
    }

    fn answered(&self, connection: &Connection, answered: &Answered) {
        (**self).answered(connection, answered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_below_the_end_of_its_bucket_and_at_most_a_quarter_away() {
        for micros in (0..5000).chain((5000..4_000_000_000).step_by(1_234_567)) {
            let bucket = bucket_of(micros);
            let end = u64::try_from(bucket_end(bucket).as_micros()).unwrap();
            assert!(micros < end, "{micros} us in the bucket that ends at {end}");
            assert!(micros < 4 || end - micros <= micros / 4 + 1, "{micros} us, {end}");
            assert!(bucket == 0 || micros < 4 || bucket_end(bucket - 1) <= bucket_end(bucket));
        }
    }

    #[test]
    fn quantiles_come_from_the_counts() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..99 {
            histogram.record(Duration::from_micros(100));
        }
        histogram.record(Duration::from_millis(50));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_micros(112)));
        assert!(histogram.quantile(1.0).unwrap() > Duration::from_millis(50));
        assert_eq!(histogram.sum(), Duration::from_micros(99 * 100 + 50_000));
    }
}
