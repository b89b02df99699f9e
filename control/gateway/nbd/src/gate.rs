//! Counts what is inside, lets in while open, and knows when the last has left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

const CLOSED: usize = 1 << (usize::BITS - 1);

/// One word: the number inside, and whether it is closed. Entering and closing are one atomic
/// operation each, so that nobody enters after a close has been seen to be empty.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    word: AtomicUsize,
    empty: Notify,
}

impl Gate {
    /// Enters, unless the gate is closed.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Inside> {
        let before = self.word.fetch_add(1, Ordering::AcqRel);
        let inside = Inside { gate: Arc::clone(self) };
        // A refused one was counted for a moment; leaving again wakes who waits for the last.
        (before & CLOSED == 0).then_some(inside)
    }

    /// Lets nobody in from now on. Cannot be undone.
    pub(crate) fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Whether nobody is let in any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// How many are inside.
    pub(crate) fn inside(&self) -> usize {
        self.word.load(Ordering::Acquire) & !CLOSED
    }

    /// Waits until nobody is inside. Final only if the gate is closed.
    pub(crate) async fn emptied(&self) {
        loop {
            let left = self.empty.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.inside() == 0 {
                return;
            }
            left.await;
        }
    }
}

/// Being inside; ends when dropped.
#[derive(Debug)]
pub(crate) struct Inside {
    gate: Arc<Gate>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let before = self.gate.word.fetch_sub(1, Ordering::AcqRel);
        if before & !CLOSED == 1 {
            self.gate.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_gate_empties_and_stays_empty() {
        let gate = Arc::new(Gate::default());
        let (one, two) = (gate.enter().unwrap(), gate.enter().unwrap());
        assert!(gate.inside() == 2 && !gate.is_closed());
        gate.close();
        assert!(gate.enter().is_none() && gate.is_closed());
        let waiter = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.emptied().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(two);
        waiter.await.unwrap();
        assert_eq!(gate.inside(), 0);
    }
}
