//! Single packets through every stage.
//!
//! A packet is carried by one worker, handed to another, kept until others of its flow have come:
//! each stretch of its way makes a [`Part`]. A part says how many more it leads to, so that whoever
//! has all of them knows it ([`Joining`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use culvert_model::PortId;
use tokio::sync::Notify;

use super::select::Select;
use crate::limits::{TRACE_QUEUE, TRACE_STEPS_MAX};
use crate::policy::observe::{Observer, Step};
use crate::worker::device::Role;

/// How long the rest of a packet's way is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// A running trace.
#[derive(Debug)]
pub struct Tracing {
    /// Which packets.
    pub select: Select,
    left: AtomicU32,
    parts: ArrayQueue<Part>,
    lost: AtomicU64,
    /// Rings when something was queued.
    pub news: Notify,
}

impl Tracing {
    /// A trace of the next `count` packets.
    pub fn new(select: Select, count: u32) -> Self {
        Tracing {
            select,
            left: AtomicU32::new(count),
            parts: ArrayQueue::new(TRACE_QUEUE),
            lost: AtomicU64::new(0),
            news: Notify::new(),
        }
    }

    /// Whether more packets are wanted.
    pub fn wants(&self) -> bool {
        self.left.load(Relaxed) > 0
    }

    /// Takes one of the packets that are left.
    pub fn claim(&self) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn put(&self, part: Part) {
        if self.parts.push(part).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
        self.news.notify_one();
    }

    /// A part that waits.
    pub fn pop(&self) -> Option<Part> {
        self.parts.pop()
    }

    /// Parts lost since the last call.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }
}

/// Follows a packet that is traced.
#[derive(Debug)]
pub struct Mark {
    /// Which packet.
    pub id: u64,
    /// Who traces it.
    pub sinks: Vec<Arc<Tracing>>,
}

/// Where a traced packet came in.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The device.
    pub role: Role,
    /// The port's name, where the device is one's.
    pub port: Option<PortId>,
    /// Bytes of the packet.
    pub len: usize,
    /// The first of them.
    pub head: Vec<u8>,
}

/// A stretch of a packet's way.
#[derive(Clone, Debug)]
pub struct Part {
    /// Which packet.
    pub id: u64,
    /// Who carried it.
    pub worker: u16,
    /// Where it came in, in the first part.
    pub origin: Option<Origin>,
    /// What was decided, and how often in a row.
    pub steps: Vec<(Step, u32)>,
    /// Parts that this one leads to.
    pub leads_to: u32,
}

/// A part that is being made.
#[derive(Debug)]
pub struct Active {
    /// Whose.
    pub mark: Arc<Mark>,
    part: Part,
}

impl Active {
    /// Begins a part.
    pub fn new(mark: Arc<Mark>, worker: u16, origin: Option<Origin>) -> Self {
        let part = Part { id: mark.id, worker, origin, steps: Vec::new(), leads_to: 0 };
        Active { mark, part }
    }

    /// The packet goes on elsewhere.
    pub fn leads_on(&mut self) {
        self.part.leads_to += 1;
    }

    /// Ends the part.
    pub fn finish(self) {
        for sink in &self.mark.sinks {
            sink.put(self.part.clone());
        }
    }
}

impl Observer for Active {
    fn saw(&mut self, step: impl FnOnce() -> Step) {
        let steps = &mut self.part.steps;
        let step = step();
        if let Some((last, times)) = steps.last_mut()
            && *last == step
        {
            *times = times.saturating_add(1);
        } else if steps.len() < TRACE_STEPS_MAX {
            steps.push((step, 1));
        }
    }
}

/// A packet's whole way.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Where it came in.
    pub origin: Option<Origin>,
    /// What was decided, by which worker, and how often in a row.
    pub steps: Vec<(u16, Step, u32)>,
    /// Not all of the way is known.
    pub incomplete: bool,
}

/// Puts parts together.
#[derive(Debug, Default)]
pub struct Joining {
    waiting: HashMap<u64, (Instant, Vec<Part>)>,
}

impl Joining {
    /// Takes a part; returns the whole way where this was the last.
    pub fn take(&mut self, part: Part, now: Instant) -> Option<Trace> {
        let id = part.id;
        let (_, parts) = self.waiting.entry(id).or_insert_with(|| (now, Vec::new()));
        parts.push(part);
        let wanted = 1 + parts.iter().map(|part| part.leads_to as usize).sum::<usize>();
        let whole = parts.len() >= wanted && parts.iter().any(|part| part.origin.is_some());
        if !whole {
            return None;
        }
        self.waiting.remove(&id).map(|(_, parts)| joined(parts, false))
    }

    /// The ways whose rest did not come in time.
    pub fn overdue(&mut self, now: Instant) -> Vec<Trace> {
        let late = |(since, _): &mut (Instant, Vec<Part>)| now.duration_since(*since) >= PATIENCE;
        let late = self.waiting.extract_if(|_, entry| late(entry));
        late.map(|(_, (_, parts))| joined(parts, true)).collect()
    }

    /// Gives up on the rest of every way.
    pub fn abandon(self) -> Vec<Trace> {
        self.waiting.into_values().map(|(_, parts)| joined(parts, true)).collect()
    }

    /// When to look for those.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|(since, _)| *since + PATIENCE).min()
    }
}

fn joined(mut parts: Vec<Part>, incomplete: bool) -> Trace {
    // The others are in the order in which they came to an end.
    parts.sort_by_key(|part| part.origin.is_none());
    let origin = parts.iter().find_map(|part| part.origin.clone());
    let steps = parts.into_iter().flat_map(|part| {
        part.steps.into_iter().map(move |(step, times)| (part.worker, step, times))
    });
    Trace { origin, steps: steps.collect(), incomplete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::observe::Stage;

    fn part(origin: bool, leads_to: u32, stage: Stage) -> Part {
        let origin = origin.then(|| Origin {
            time_ns: 1,
            role: Role::Tenant(0),
            port: None,
            len: 60,
            head: Vec::new(),
        });
        Part { id: 7, worker: 0, origin, steps: vec![(Step::new(stage, "pass"), 1)], leads_to }
    }

    #[test]
    fn parts_are_joined_in_whatever_order_they_end() {
        let parts = [
            part(true, 2, Stage::Received),
            part(false, 0, Stage::Delivery),
            part(false, 0, Stage::Queue),
        ];
        for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
            let (mut joining, now) = (Joining::default(), Instant::now());
            let joined: Vec<_> =
                order.iter().map(|at| joining.take(parts[*at].clone(), now)).collect();
            assert!(joined[0].is_none() && joined[1].is_none());
            let trace = joined[2].clone().unwrap();
            assert_eq!(trace.steps.len(), 3);
            assert_eq!(trace.steps[0].1.stage, Stage::Received);
            assert!(!trace.incomplete && joining.due().is_none());
        }
    }

    #[test]
    fn a_way_whose_rest_does_not_come_is_shown_as_far_as_it_is_known() {
        let (mut joining, now) = (Joining::default(), Instant::now());
        assert!(joining.take(part(true, 1, Stage::Received), now).is_none());
        assert!(joining.overdue(now).is_empty());
        let late = joining.overdue(now + PATIENCE);
        assert!(late.len() == 1 && late[0].incomplete);
        assert!(joining.overdue(now + PATIENCE).is_empty());
    }

    #[test]
    fn no_more_packets_are_traced_than_were_asked_for() {
        let tracing = Tracing::new(Select::default(), 2);
        assert!(tracing.claim() && tracing.wants() && tracing.claim());
        assert!(!tracing.wants() && !tracing.claim());
    }

    #[test]
    fn equal_steps_in_a_row_are_one() {
        let tracing = Arc::new(Tracing::new(Select::default(), 1));
        let mark = Arc::new(Mark { id: 1, sinks: vec![Arc::clone(&tracing)] });
        let mut active = Active::new(mark, 3, None);
        for stage in [Stage::Queue, Stage::Queue, Stage::Delivery, Stage::Queue] {
            active.saw(|| Step::new(stage, "pass"));
        }
        active.finish();
        let times: Vec<_> = tracing.pop().unwrap().steps.iter().map(|(_, times)| *times).collect();
        assert_eq!(times, [2, 1, 1]);
    }
}
