//! What this worker shows of its packets, and to whom.
//!
//! Where nobody watches, `on` is false and no packet is traced: each hook is one branch that is
//! never taken. Everything behind it may allocate.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_port::Buf;
use culvert_wire::bpf::Bytes;
use culvert_wire::packet::Packet;

use super::Worker;
use super::device::Role;
use super::offload::{Csum, Offload};
use crate::drops::DropReason;
use crate::limits::TRACE_HEAD_LEN;
use crate::policy::observe::{Observer, Stage, Step};
use crate::sight::Watches;
use crate::sight::capture::{Point, Record};
use crate::sight::flows::{FlowCount, FlowKey, FlowTable, FlowWatch, Source};
use crate::sight::pieces::Pieces;
use crate::sight::trace::{Active, Mark, Origin};

/// Bytes of a packet that its flow is read from.
const FLOW_HEAD_LEN: usize = 256;

/// The watches as this worker knows them.
#[derive(Default)]
pub(super) struct View {
    epoch: u64,
    watches: Arc<Watches>,
    /// Somebody watches.
    pub(super) on: bool,
    /// The packet at hand, where it is traced.
    pub(super) trace: Option<Active>,
    flows: Vec<(Arc<FlowWatch>, FlowTable)>,
    /// The flow of the packet at hand, where flows are counted.
    flow: Option<FlowKey>,
    packets_traced: u64,
    /// A capture has news.
    rings: bool,
}

/// What is to be told of a packet that is put aside.
pub(super) struct Aside {
    trace: Option<Active>,
    flow: Option<FlowKey>,
}

impl View {
    /// Whether anything about the packet at hand is to be told.
    #[inline]
    pub(super) fn looks(&self) -> bool {
        self.on || self.trace.is_some()
    }

    /// The packet at hand will be heard of again.
    pub(super) fn lead_on(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.leads_on();
        }
    }

    /// What follows the packet at hand, where it is traced.
    pub(super) fn mark(&self) -> Option<Arc<Mark>> {
        self.trace.as_ref().map(|trace| Arc::clone(&trace.mark))
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Worker {
    /// Looks who watches. Once a round.
    #[inline]
    pub(super) fn load_watches(&mut self) {
        if self.shared.sight.epoch() != self.sight.epoch {
            self.follow_watches();
        }
    }

    #[cold]
    fn follow_watches(&mut self) {
        self.sight.epoch = self.shared.sight.epoch();
        let watches = self.shared.sight.watches();
        let old = std::mem::take(&mut self.sight.flows);
        let fresh = |watch: &Arc<FlowWatch>| (Arc::clone(watch), FlowTable::default());
        self.sight.flows = watches.flows().map(fresh).collect();
        for (watch, table) in old {
            if let Some(found) = self.sight.flows.iter_mut().find(|(w, _)| Arc::ptr_eq(w, &watch)) {
                found.1 = table;
            }
        }
        self.sight.on = !watches.is_empty();
        self.sight.watches = watches;
    }

    /// What was counted for a watch since the last time.
    pub(super) fn take_flows(&mut self, watch: &Arc<FlowWatch>) -> FlowTable {
        self.load_watches();
        let found = self.sight.flows.iter_mut().find(|(other, _)| Arc::ptr_eq(other, watch));
        found.map(|(_, table)| std::mem::take(table)).unwrap_or_default()
    }

    /// A packet came in.
    #[cold]
    pub(super) fn watch_in(&mut self, role: Role, buf: &Buf, off: &Offload) {
        let tag = off.vlan.map(|(tpid, tci)| {
            let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.to_be_bytes());
            [a, b, c, d]
        });
        let pieces = match &tag {
            Some(tag) => Pieces::of(buf).tagged(tag),
            None => Pieces::of(buf),
        };
        let point = match role {
            Role::Tenant(_) => Point::FromTenant,
            Role::Underlay(_) => Point::FromUnderlay,
        };
        self.record(point, role, &pieces, None, segment_size(off));
        self.begin_trace(role, &pieces);
        if let (Role::Tenant(port), false) = (role, self.sight.flows.is_empty()) {
            let head = pieces.to_vec(FLOW_HEAD_LEN);
            if let Ok(pkt) = Packet::parse(&head, pieces.len()) {
                let key = FlowKey::of(Source::Port(port), &head, &pkt);
                self.count_flow(key, pieces.len(), None);
            }
        }
    }

    /// The packet at hand went as far as it goes here.
    #[cold]
    pub(super) fn watch_out(&mut self) {
        self.sight.flow = None;
        self.leave_trace();
    }

    /// Counts a packet of a flow, which becomes that of the packet at hand.
    pub(super) fn count_flow(&mut self, key: FlowKey, bytes: usize, to: Option<u16>) {
        self.sight.flow = Some(key);
        let count = FlowCount { packets: 1, bytes: bytes as u64, to, ..FlowCount::default() };
        self.sight.flows.iter_mut().for_each(|(_, table)| table.count(key, &count));
    }

    /// Counts an inner packet from the underlay.
    pub(super) fn count_inner(
        &mut self,
        (from, vni): (std::net::IpAddr, u32),
        head: &[u8],
        inner: &Packet,
        to: Option<u16>,
    ) {
        if !self.sight.flows.is_empty() {
            let key = FlowKey::of(Source::Vtep(from, vni), head, inner);
            self.count_flow(key, inner.frame_len as usize, to);
        }
    }

    /// A packet is queued for a device, whole as it is.
    #[inline]
    pub(super) fn watch_queued(&mut self, role: Role, buf: &Buf, off: &Offload) {
        if self.sight.on {
            let pieces = Pieces::of(buf);
            self.watch_queued_pieces(role, &pieces, segment_size(off));
        }
    }

    /// As [`watch_queued`](Self::watch_queued), for a packet in pieces.
    #[cold]
    pub(super) fn watch_queued_pieces(
        &mut self,
        role: Role,
        pieces: &Pieces<'_>,
        segment_size: u16,
    ) {
        let point = match role {
            Role::Tenant(_) => Point::ToTenant,
            Role::Underlay(_) => Point::ToUnderlay,
        };
        self.record(point, role, pieces, None, segment_size);
    }

    /// Counts `packets` that end here, and shows the frame that is left of them.
    pub(super) fn lose(&mut self, role: Role, reason: DropReason, packets: u64, frame: &Buf) {
        self.counters_of(role).drop_many(reason, packets);
        if self.sight.looks() {
            self.see_drop(role, reason, &Pieces::of(frame));
        }
    }

    /// Counts a packet that ends here, and of which nothing is left.
    pub(super) fn lose_unseen(&mut self, role: Role, reason: DropReason) {
        self.counters_of(role).drop(reason);
        if self.sight.looks() {
            self.see_drop(role, reason, &Pieces::default());
        }
    }

    /// Shows a drop.
    #[cold]
    pub(super) fn see_drop(&mut self, role: Role, reason: DropReason, pieces: &Pieces<'_>) {
        self.sight.trace.saw(|| {
            let at = match role {
                Role::Tenant(port) => self.tables.name_of_port(port),
                Role::Underlay(_) => "underlay".to_owned(),
            };
            Step::drop(Stage::Drop, reason).because(format!("counted at {at}"))
        });
        if let Some(key) = self.sight.flow {
            let count = FlowCount { drops: 1, reason: Some(reason), ..FlowCount::default() };
            self.sight.flows.iter_mut().for_each(|(_, table)| table.count(key, &count));
        }
        if !pieces.is_empty() {
            self.record(Point::Dropped, role, pieces, Some(reason), 0);
        }
    }

    fn record(
        &mut self,
        point: Point,
        role: Role,
        pieces: &Pieces<'_>,
        reason: Option<DropReason>,
        segment_size: u16,
    ) {
        let mut record = None;
        for capture in self.sight.watches.captures() {
            if !capture.wants(point) || !capture.select().takes(&self.tables, role, pieces) {
                continue;
            }
            let record = record.get_or_insert_with(|| Record {
                time_ns: now_ns(),
                worker: self.config.index,
                point,
                role,
                port: self.port_name(role),
                reason,
                len: pieces.len(),
                data: Vec::new(),
                segment_size,
            });
            capture.take(self.config.index, pieces, record.clone());
            self.sight.rings = true;
        }
    }

    fn port_name(&self, role: Role) -> Option<culvert_model::PortId> {
        match role {
            Role::Tenant(index) => self.tables.port(index).map(|port| port.id.clone()),
            Role::Underlay(_) => None,
        }
    }

    fn begin_trace(&mut self, role: Role, pieces: &Pieces<'_>) {
        let sinks: Vec<_> = self
            .sight
            .watches
            .traces()
            .filter(|tracing| {
                tracing.wants()
                    && tracing.select.takes(&self.tables, role, pieces)
                    && tracing.claim()
            })
            .cloned()
            .collect();
        if sinks.is_empty() {
            return;
        }
        self.sight.packets_traced += 1;
        let id = u64::from(self.config.index) << 48 | self.sight.packets_traced;
        let origin = self.origin(role, pieces);
        let mark = Arc::new(Mark { id, sinks });
        self.sight.trace = Some(Active::new(mark, self.config.index, Some(origin)));
    }

    pub(super) fn origin(&self, role: Role, pieces: &Pieces<'_>) -> Origin {
        Origin {
            time_ns: now_ns(),
            role,
            port: self.port_name(role),
            len: pieces.len(),
            head: pieces.to_vec(TRACE_HEAD_LEN),
        }
    }

    /// The flow is new. Of no interest where there is no cache worth the name.
    pub(super) fn see_cache_miss(&mut self) {
        if !self.config.alone {
            self.sight.trace.saw(|| Step::new(Stage::FlowCache, "miss"));
        }
    }

    /// Goes on with a packet that may be traced.
    pub(super) fn resume_trace(&mut self, mark: Option<Arc<Mark>>) {
        self.sight.trace = mark.map(|mark| Active::new(mark, self.config.index, None));
    }

    /// The packet that was gone on with went as far as it goes here.
    pub(super) fn leave_trace(&mut self) {
        if let Some(trace) = self.sight.trace.take() {
            trace.finish();
        }
    }

    /// Forgets the packet at hand for a while, since others come before it.
    pub(super) fn put_aside(&mut self) -> Aside {
        Aside { trace: self.sight.trace.take(), flow: self.sight.flow.take() }
    }

    /// Goes back to it.
    pub(super) fn take_up(&mut self, aside: Aside) {
        self.sight.trace = aside.trace;
        self.sight.flow = aside.flow;
    }

    /// Tells the clients of captures that there is something for them.
    #[inline]
    pub(super) fn ring_captures(&mut self) {
        if self.sight.rings {
            self.sight.rings = false;
            self.sight.watches.captures().for_each(|capture| capture.news.notify_one());
        }
    }
}

/// Payload bytes of a superframe's segments.
fn segment_size(off: &Offload) -> u16 {
    off.gso.map_or(0, |(_, size)| size)
}

/// The first step of a packet.
pub(super) fn received(from: String, len: usize, off: &Offload) -> Step {
    let mut detail = format!("{len} bytes");
    if let Some((kind, size)) = off.gso {
        detail.push_str(&format!("; superframe {kind:?}, segments of {size} bytes"));
    }
    if let Csum::Partial { .. } = off.csum {
        detail.push_str("; checksum to be completed");
    }
    Step::new(Stage::Received, "pass").by(from).because(detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sight::Watch;
    use crate::worker::tests::{datagram, tables, worker_with};

    #[test]
    fn flows_are_counted_while_somebody_looks_and_no_longer() {
        let mut worker = worker_with(tables(), 64);
        let frame = datagram();
        assert!(worker.carry(Role::Tenant(0), &frame, Offload::default()));
        let watch = Arc::new(FlowWatch::default());
        let watching = worker.shared.sight.begin(&Watch::Flows(Arc::clone(&watch))).unwrap();
        for _ in 0..3 {
            assert!(worker.carry(Role::Tenant(0), &frame, Offload::default()));
        }
        let (flows, other) = worker.take_flows(&watch).into_top(10);
        let (key, count) = flows[0];
        assert_eq!((key.source, key.proto, key.ports), (Source::Port(0), 17, Some((7, 53))));
        let bytes = 3 * frame.len() as u64;
        let reason = Some(DropReason::NoMapping);
        assert_eq!(count, FlowCount { packets: 3, bytes, drops: 3, reason, to: None });
        assert_eq!((flows.len(), other), (1, FlowCount::default()));
        assert!(worker.take_flows(&watch).into_top(10).0.is_empty(), "counted anew");
        drop(watching);
        assert!(worker.carry(Role::Tenant(0), &frame, Offload::default()));
        assert!(!worker.sight.on && worker.take_flows(&watch).into_top(10).0.is_empty());
    }
}
