//! Packets and bytes per flow, counted while somebody looks.
//!
//! The figures are exact for the flows that are in the table. It is bounded; what finds no place in
//! it is counted as *other*, until the client takes the table and it begins anew.

use std::net::IpAddr;

use culvert_wire::packet::Packet;
use rustc_hash::FxHashMap;

use crate::drops::DropReason;
use crate::limits::WATCHED_FLOWS_MAX;
use crate::tables::PortIndex;

/// A watch of flows; the counting is the workers' own.
#[derive(Debug, Default)]
pub struct FlowWatch(());

/// Where a flow comes from.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A tenant.
    Port(PortIndex),
    /// A remote VTEP, in the network of this VNI.
    Vtep(IpAddr, u32),
}

/// What makes packets one flow here: source, addresses, protocol and ports.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Where it comes from.
    pub source: Source,
    /// Its `EtherType`.
    pub ether_type: u16,
    /// Its IP protocol; 0 without IP.
    pub proto: u8,
    /// Its addresses.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Its ports.
    pub ports: Option<(u16, u16)>,
}

impl FlowKey {
    /// The flow of a packet.
    pub fn of(source: Source, head: &[u8], pkt: &Packet) -> Self {
        FlowKey {
            source,
            ether_type: pkt.ether_type,
            proto: pkt.proto,
            addresses: pkt.src_ip(head).zip(pkt.dst_ip(head)),
            ports: pkt.src_port(head).zip(pkt.dst_port(head)),
        }
    }
}

/// What was counted of a flow.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Packets; a superframe is one.
    pub packets: u64,
    /// Their bytes, Ethernet header included, tunnel headers not.
    pub bytes: u64,
    /// Packets that were dropped.
    pub drops: u64,
    /// Why the last one was.
    pub reason: Option<DropReason>,
    /// The local port that it goes to, of a flow from the underlay.
    pub to: Option<PortIndex>,
}

impl FlowCount {
    fn add(&mut self, other: &FlowCount) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.drops += other.drops;
        self.reason = other.reason.or(self.reason);
        self.to = other.to.or(self.to);
    }
}

/// The flows that a worker counts.
#[derive(Debug, Default)]
pub struct FlowTable {
    flows: FxHashMap<FlowKey, FlowCount>,
    other: FlowCount,
}

impl FlowTable {
    /// Counts.
    pub fn count(&mut self, key: FlowKey, count: &FlowCount) {
        if let Some(found) = self.flows.get_mut(&key) {
            return found.add(count);
        }
        if self.flows.len() < WATCHED_FLOWS_MAX {
            self.flows.insert(key, *count);
        } else {
            self.other.add(count);
        }
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: FlowTable) {
        for (key, count) in other.flows {
            self.count(key, &count);
        }
        self.other.add(&other.other);
    }

    /// The `top` flows by bytes, then packets; and everything else in one.
    pub fn into_top(self, top: usize) -> (Vec<(FlowKey, FlowCount)>, FlowCount) {
        let mut flows: Vec<_> = self.flows.into_iter().collect();
        flows
            .sort_by_key(|(_, count)| std::cmp::Reverse((count.bytes, count.packets, count.drops)));
        let mut other = self.other;
        let rest = flows.split_off(top.min(flows.len()));
        rest.iter().for_each(|(_, count)| other.add(count));
        (flows, FlowCount { reason: None, to: None, ..other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> FlowKey {
        let ports = Some(((n >> 16) as u16, n as u16));
        FlowKey { source: Source::Port(0), ether_type: 0x800, proto: 17, addresses: None, ports }
    }

    fn one(bytes: u64) -> FlowCount {
        FlowCount { packets: 1, bytes, ..FlowCount::default() }
    }

    #[test]
    fn a_flood_of_flows_is_counted_and_costs_no_more() {
        let mut table = FlowTable::default();
        let flood = WATCHED_FLOWS_MAX as u32 * 3;
        for n in 0..flood {
            table.count(key(n), &one(60));
        }
        table.count(key(1), &one(1000));
        assert_eq!(table.flows.len(), WATCHED_FLOWS_MAX);
        let (top, other) = table.into_top(1);
        assert_eq!(top, [(key(1), FlowCount { packets: 2, bytes: 1060, ..FlowCount::default() })]);
        assert_eq!(other.packets, u64::from(flood) - 1);
    }

    #[test]
    fn workers_tables_add_up() {
        let (mut a, mut b) = (FlowTable::default(), FlowTable::default());
        a.count(key(1), &one(100));
        b.count(key(1), &one(50));
        b.count(key(2), &FlowCount { drops: 1, reason: Some(DropReason::NoRoute), ..one(10) });
        a.merge(b);
        let (top, other) = a.into_top(10);
        assert_eq!(top[0].1.bytes, 150);
        assert_eq!((top[1].1.drops, top[1].1.reason), (1, Some(DropReason::NoRoute)));
        assert_eq!(other, FlowCount::default());
    }
}
