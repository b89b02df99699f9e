//! What operators see of packets: captures, traces, flows.
//!
//! A *watch* is made by a client of the API and ends with its stream. Workers see the list of
//! watches at their next round; where it is empty, a packet costs them a branch. What they see goes
//! into bounded queues, one per worker: a client that is slow loses some of it, and is told how much.
//!
//! | module | idea |
//! |---|---|
//! | [`pieces`] | the bytes of a packet that lies in several places |
//! | [`select`] | which packets a watch is about |
//! | [`capture`] | packets as they pass |
//! | [`trace`] | single packets through every stage |
//! | [`flows`] | packets and bytes per flow |

pub mod capture;
pub mod flows;
pub mod pieces;
pub mod select;
pub mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use self::capture::Capture;
use self::flows::FlowWatch;
use self::trace::Tracing;
use crate::limits::WATCHES_MAX;

/// One thing that somebody watches.
#[derive(Clone)]
pub enum Watch {
    /// Packets as they pass.
    Capture(Arc<Capture>),
    /// Single packets through every stage.
    Trace(Arc<Tracing>),
    /// Packets and bytes per flow.
    Flows(Arc<FlowWatch>),
}

/// Everything that is watched.
#[derive(Clone, Default)]
pub struct Watches {
    entries: Vec<(u64, Watch)>,
}

impl Watches {
    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The captures.
    pub fn captures(&self) -> impl Iterator<Item = &Arc<Capture>> {
        self.entries.iter().filter_map(|(_, watch)| match watch {
            Watch::Capture(capture) => Some(capture),
            _ => None,
        })
    }

    /// The traces.
    pub fn traces(&self) -> impl Iterator<Item = &Arc<Tracing>> {
        self.entries.iter().filter_map(|(_, watch)| match watch {
            Watch::Trace(tracing) => Some(tracing),
            _ => None,
        })
    }

    /// The watches of flows.
    pub fn flows(&self) -> impl Iterator<Item = &Arc<FlowWatch>> {
        self.entries.iter().filter_map(|(_, watch)| match watch {
            Watch::Flows(flows) => Some(flows),
            _ => None,
        })
    }
}

/// The list of watches, which the workers follow.
#[derive(Default)]
pub struct Sight {
    /// Changes with the list.
    epoch: AtomicU64,
    next: AtomicU64,
    watches: ArcSwap<Watches>,
}

/// There are as many watches as may be; end another first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {WATCHES_MAX} captures, traces and the like already: end one of them first")]
pub struct TooMany;

impl Sight {
    /// Tells one list from the next; never goes back.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The list now.
    pub fn watches(&self) -> Arc<Watches> {
        self.watches.load_full()
    }

    /// Begins a watch, which ends when what is returned is dropped.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn begin(self: &Arc<Self>, watch: &Watch) -> Result<Watching, TooMany> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut full = false;
        self.watches.rcu(|now| {
            let mut next = Watches::clone(now);
            full = next.entries.len() >= WATCHES_MAX;
            if !full {
                next.entries.push((id, watch.clone()));
            }
            next
        });
        if full {
            return Err(TooMany);
        }
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(Watching { sight: Arc::clone(self), id })
    }
}

/// A watch that is on.
pub struct Watching {
    sight: Arc<Sight>,
    id: u64,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.sight.watches.rcu(|now| {
            let mut next = Watches::clone(now);
            next.entries.retain(|(id, _)| *id != self.id);
            next
        });
        self.sight.epoch.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_with_its_holder_and_their_number_is_bounded() {
        let sight = Arc::new(Sight::default());
        let watch = || Watch::Flows(Arc::new(FlowWatch::default()));
        let before = sight.epoch();
        let mut held: Vec<_> = (0..WATCHES_MAX).map(|_| sight.begin(&watch()).unwrap()).collect();
        assert!(sight.epoch() > before);
        assert_eq!(sight.begin(&watch()).err(), Some(TooMany));
        assert_eq!(sight.watches().flows().count(), WATCHES_MAX);
        held.pop();
        let last = sight.begin(&watch()).unwrap();
        held.clear();
        assert_eq!(sight.watches().flows().count(), 1);
        drop(last);
        assert!(sight.watches().is_empty());
    }
}
