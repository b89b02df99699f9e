//! Frames that the dataplane hands to the control plane, for subscribers: each at a rate of its own.

use culvert_model::api;
use futures_util::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tonic::Status;

/// Traps that wait for one subscriber.
pub const QUEUE: usize = 1024;

/// A bucket of as many traps as pass in a second.
struct Bucket {
    rate: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u32) -> Bucket {
        Bucket { rate: rate.into(), level: rate.into(), filled: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let passed = now.duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.level = passed.mul_add(self.rate, self.level).min(self.rate);
        if self.level < 1.0 {
            return false;
        }
        self.level -= 1.0;
        true
    }
}

/// At most `rate` traps a second; each says how many before it were lost, here or in the dataplane.
pub fn limited(
    traps: Receiver<api::Trap>,
    rate: u32,
) -> impl Stream<Item = Result<api::Trap, Status>> + Send {
    let state = (traps, Bucket::new(rate), 0_u64);
    futures_util::stream::unfold(state, |(mut traps, mut bucket, mut lost)| async move {
        loop {
            match traps.recv().await {
                Ok(trap) if bucket.take() => {
                    let lost = lost.saturating_add(trap.lost);
                    return Some((Ok(api::Trap { lost, ..trap }), (traps, bucket, 0)));
                }
                Ok(trap) => lost = lost.saturating_add(trap.lost).saturating_add(1),
                Err(RecvError::Lagged(n)) => lost = lost.saturating_add(n),
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_gets_its_rate_and_the_count_of_the_rest() {
        let sender = broadcast::Sender::new(QUEUE);
        let mut stream = Box::pin(limited(sender.subscribe(), 10));
        for _ in 0..25 {
            sender.send(api::Trap { lost: 2, ..Default::default() }).unwrap();
        }
        for _ in 0..10 {
            assert_eq!(stream.next().await.unwrap().unwrap().lost, 2);
        }
        // The other 15 are above the rate.
        assert!(tokio::time::timeout(Duration::from_millis(1), stream.next()).await.is_err());
        tokio::time::advance(Duration::from_secs(1)).await;
        sender.send(api::Trap::default()).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().lost, 45);
    }
}
