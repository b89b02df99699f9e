//! Counters with one writer: a worker adds with plain loads and stores, anyone may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::drops::DropReason;
use crate::limits::{MAX_LINKS, MAX_PORTS};

/// A counter that only its worker writes.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call it: two writers would lose counts.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// Packets and bytes in one direction. A superframe counts as one packet.
#[derive(Default, Debug)]
pub struct Traffic {
    /// Packets, as the port saw them.
    pub packets: Counter,
    /// Bytes, Ethernet header included.
    pub bytes: Counter,
}

impl Traffic {
    /// Counts one packet of `bytes`.
    #[inline]
    pub fn count(&self, bytes: usize) {
        self.packets.add(1);
        self.bytes.add(bytes as u64);
    }
}

/// What one worker counted for one tenant port or underlay device.
#[derive(Default, Debug)]
pub struct PortCounters {
    /// Received from the device.
    pub rx: Traffic,
    /// Handed to the device.
    pub tx: Traffic,
    /// Replies made here (ARP, neighbour discovery, ICMP errors).
    pub replies: Counter,
    /// Packets handed to the control plane.
    pub traps: Counter,
    drops: Drops,
}

#[derive(Debug)]
struct Drops([Counter; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

impl PortCounters {
    /// Counts one dropped packet.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `n` dropped packets.
    #[inline]
    pub fn drop_many(&self, reason: DropReason, n: u64) {
        self.drops.0[reason as usize].add(n);
    }

    /// Drops so far for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.0[reason as usize].get()
    }

    fn clear(&self) {
        for counter in [&self.rx.packets, &self.rx.bytes, &self.tx.packets, &self.tx.bytes] {
            counter.clear();
        }
        self.replies.clear();
        self.traps.clear();
        self.drops.0.iter().for_each(Counter::clear);
    }
}

/// All counters that one worker writes.
#[derive(Debug)]
pub struct WorkerCounters {
    ports: Box<[PortCounters]>,
    links: Box<[PortCounters]>,
    /// Rounds of the loop that found work.
    pub busy_rounds: Counter,
    /// Times that the worker went to sleep.
    pub sleeps: Counter,
    /// Flow-cache hits, egress and ingress together.
    pub flow_hits: Counter,
    /// Flow-cache misses.
    pub flow_misses: Counter,
    /// Packets handed to another worker.
    pub handoffs: Counter,
    /// Connections that are remembered now.
    pub connections: Counter,
    /// Connections forgotten for want of room while they were still believed.
    pub connections_evicted: Counter,
    /// Connections that found no room, since those of their port have taken it.
    pub connections_refused: Counter,
    /// Frames that this worker's sockets and queues hold now.
    pub frames_held: Counter,
    /// Free frames in this worker's own stock.
    pub frames_cached: Counter,
}

impl Default for WorkerCounters {
    fn default() -> Self {
        let block = |n: usize| (0..n).map(|_| PortCounters::default()).collect();
        WorkerCounters {
            ports: block(MAX_PORTS),
            links: block(MAX_LINKS),
            busy_rounds: Counter::default(),
            sleeps: Counter::default(),
            flow_hits: Counter::default(),
            flow_misses: Counter::default(),
            handoffs: Counter::default(),
            connections: Counter::default(),
            connections_evicted: Counter::default(),
            connections_refused: Counter::default(),
            frames_held: Counter::default(),
            frames_cached: Counter::default(),
        }
    }
}

impl WorkerCounters {
    /// Counters of a tenant port.
    #[inline]
    pub fn port(&self, index: u16) -> &PortCounters {
        &self.ports[usize::from(index)]
    }

    /// Counters of an underlay device.
    #[inline]
    pub fn link(&self, index: u16) -> &PortCounters {
        &self.links[usize::from(index)]
    }

    /// Zeroes a port's counters before its index is given to another port.
    pub fn clear_port(&self, index: u16) {
        self.ports[usize::from(index)].clear();
    }

    /// Publishes how many connections the worker remembers.
    pub fn set_connections(&self, connections: usize) {
        self.connections.0.store(connections as u64, Relaxed);
    }

    /// Publishes how many frames the worker's sockets hold and how many it has in stock.
    pub fn set_frames(&self, held: usize, cached: usize) {
        self.frames_held.0.store(held as u64, Relaxed);
        self.frames_cached.0.store(cached as u64, Relaxed);
    }

    /// Packets received from and sent to all devices.
    pub fn packets(&self) -> (u64, u64) {
        let all = || self.ports.iter().chain(&self.links);
        (all().map(|c| c.rx.packets.get()).sum(), all().map(|c| c.tx.packets.get()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_moves_its_own_counter_only() {
        let counters = WorkerCounters::default();
        counters.port(7).drop(DropReason::SpoofedIp);
        for reason in DropReason::ALL {
            let expected = u64::from(*reason == DropReason::SpoofedIp);
            assert_eq!(counters.port(7).dropped(*reason), expected);
            assert_eq!(counters.port(8).dropped(*reason), 0);
        }
        counters.clear_port(7);
        assert_eq!(counters.port(7).dropped(DropReason::SpoofedIp), 0);
    }
}
