//! Packets as they pass, copied for a client.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam_queue::ArrayQueue;
use culvert_model::PortId;
use culvert_wire::bpf::Bytes;
use tokio::sync::Notify;

use super::pieces::Pieces;
use super::select::Select;
use crate::drops::DropReason;
use crate::limits::{CAPTURE_BYTES, CAPTURE_QUEUE};
use crate::worker::device::Role;

/// Where a packet was seen.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// It came from a tenant.
    FromTenant,
    /// It is queued for a tenant.
    ToTenant,
    /// It came from the underlay.
    FromUnderlay,
    /// It is queued for the underlay.
    ToUnderlay,
    /// It ends here.
    Dropped,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 5] = [
        Point::FromTenant,
        Point::ToTenant,
        Point::FromUnderlay,
        Point::ToUnderlay,
        Point::Dropped,
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A packet that was seen.
#[derive(Clone, Debug)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// By which worker.
    pub worker: u16,
    /// Where.
    pub point: Point,
    /// The device; of a drop, that which it came from or was for.
    pub role: Role,
    /// The port's name, where the device is one's.
    pub port: Option<PortId>,
    /// Why it was dropped.
    pub reason: Option<DropReason>,
    /// Bytes of the packet.
    pub len: usize,
    /// The first of them.
    pub data: Vec<u8>,
    /// Payload bytes of the segments that a superframe is to be cut into; 0: it is none.
    pub segment_size: u16,
}

#[derive(Debug)]
struct Queue {
    records: ArrayQueue<Record>,
    bytes: AtomicUsize,
    lost: AtomicU64,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    select: Select,
    points: u8,
    snaplen: usize,
    queues: Box<[Queue]>,
    /// Rings when something was queued.
    pub news: Notify,
}

impl Capture {
    /// A capture of the points given (all where none is), of `snaplen` bytes of each packet.
    pub fn new(select: Select, points: &[Point], snaplen: usize, workers: usize) -> Self {
        let queue = |_| Queue {
            records: ArrayQueue::new(CAPTURE_QUEUE),
            bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        };
        let points = if points.is_empty() { &Point::ALL } else { points };
        Capture {
            select,
            points: points.iter().fold(0, |bits, point| bits | point.bit()),
            snaplen,
            queues: (0..workers).map(queue).collect(),
            news: Notify::new(),
        }
    }

    /// Whether packets at this point are wanted.
    pub fn wants(&self, point: Point) -> bool {
        self.points & point.bit() != 0
    }

    /// Which packets are wanted.
    pub fn select(&self) -> &Select {
        &self.select
    }

    /// Queues a packet, by the worker with this index. `record` comes without data.
    pub fn take(&self, worker: u16, packet: &Pieces<'_>, record: Record) {
        let Some(queue) = self.queues.get(usize::from(worker)) else { return };
        let kept = packet.len().min(self.snaplen);
        let waiting = queue.bytes.fetch_add(kept, Relaxed);
        let room = waiting + kept <= CAPTURE_BYTES && !queue.records.is_full();
        let record = room.then(|| Record { data: packet.to_vec(kept), ..record });
        if record.is_none_or(|record| queue.records.push(record).is_err()) {
            queue.bytes.fetch_sub(kept, Relaxed);
            queue.lost.fetch_add(1, Relaxed);
        }
    }

    /// What waits, up to so many bytes of it, by time; and how many packets were lost since the last
    /// call.
    pub fn drain(&self, bytes_max: usize) -> (Vec<Record>, u64) {
        let (mut records, mut lost) = (Vec::new(), 0);
        let share = bytes_max / self.queues.len().max(1);
        for queue in &self.queues {
            lost += queue.lost.swap(0, Relaxed);
            let mut taken = 0;
            while taken < share {
                let Some(record) = queue.records.pop() else { break };
                queue.bytes.fetch_sub(record.data.len(), Relaxed);
                taken += record.data.len() + size_of::<Record>();
                records.push(record);
            }
        }
        records.sort_by_key(|record| record.time_ns);
        (records, lost)
    }

    /// Whether packets wait.
    pub fn waits(&self) -> bool {
        self.queues.iter().any(|queue| !queue.records.is_empty() || queue.lost.load(Relaxed) > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time_ns: u64) -> Record {
        Record {
            time_ns,
            worker: 0,
            point: Point::FromTenant,
            role: Role::Tenant(0),
            port: None,
            reason: None,
            len: 100,
            data: Vec::new(),
            segment_size: 0,
        }
    }

    #[test]
    fn a_client_that_takes_nothing_loses_packets_by_number_and_is_told() {
        let capture = Capture::new(Select::default(), &[], 10, 2);
        let bytes = [7; 100];
        let mut packet = Pieces::default();
        packet.push(&bytes);
        for i in 0..CAPTURE_QUEUE as u64 + 5 {
            capture.take(1, &packet, record(i));
        }
        let (mut records, lost) = capture.drain(usize::MAX / 4);
        while capture.waits() {
            records.extend(capture.drain(usize::MAX / 4).0);
        }
        assert_eq!((records.len(), lost), (CAPTURE_QUEUE, 5));
        assert!(records.iter().all(|record| record.data == [7; 10]));
        assert!(records.is_sorted_by_key(|record| record.time_ns));
        assert_eq!(capture.drain(1000).1, 0);
    }

    #[test]
    fn a_client_that_takes_nothing_costs_a_bounded_number_of_bytes() {
        let capture = Capture::new(Select::default(), &[], usize::MAX, 1);
        let bytes = vec![7; 1 << 16];
        let mut packet = Pieces::default();
        packet.push(&bytes);
        for i in 0..1000 {
            capture.take(0, &packet, record(i));
        }
        let held = CAPTURE_BYTES / bytes.len();
        let (mut taken, mut lost) = (0, 0);
        while capture.waits() {
            let (records, missed) = capture.drain(1 << 20);
            taken += records.len();
            lost += missed;
        }
        assert_eq!((taken, lost), (held, 1000 - held as u64));
        capture.take(0, &packet, record(0));
        assert_eq!(capture.drain(1 << 20).0.len(), 1);
    }

    #[test]
    fn points_are_as_asked() {
        let all = Capture::new(Select::default(), &[], 1, 1);
        let drops = Capture::new(Select::default(), &[Point::Dropped], 1, 1);
        for point in Point::ALL {
            assert!(all.wants(point));
            assert_eq!(drops.wants(point), point == Point::Dropped);
        }
    }
}
