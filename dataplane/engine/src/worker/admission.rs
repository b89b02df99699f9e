//! Whether a packet may leave or reach a tenant: its port's ACL groups and rates.
//!
//! Both directions of a port are judged by the one worker that owns it: what the tenant sends, since that
//! worker has the port's device; what comes from the underlay or from another tenant, after it was handed
//! over. So connections and buckets need no lock. What this program itself answers is not judged.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use culvert_model::Direction;
use culvert_port::Buf;
use culvert_wire::format::FormatIndex;
use culvert_wire::packet::{Frag, Packet};

use super::Worker;
use super::device::Role;
use super::ingress::IngressFlow;
use super::key::{Headers, IngressKey, is_of_a_flow};
use super::offload::Offload;
use crate::connections::fragments::Fragments;
use crate::connections::key::{of_packet, of_quoted};
use crate::connections::{Connections, TICKS_PER_SECOND, Tick};
use crate::drops::DropReason;
use crate::limits::CONNECTIONS;
use crate::meter::{PortBuckets, cost};
use crate::policy::acl::{Judgement, judge};
use crate::policy::ingress::Verdict;
use crate::policy::observe::{Observer, Stage, Step};
use crate::shared::Handoff;
use crate::tables::{PortIndex, Tables};

/// In the place of a VNI, which has 24 bits, in keys of packets between tenants of this host.
const LOCAL: u32 = 1 << 24;

/// Sets of the table that are swept in a tick: all of them take seconds.
const SETS_PER_TICK: usize = 64;

/// What a worker remembers to judge packets by.
pub struct Admission {
    started: Instant,
    /// Made when first needed.
    connections: Option<Box<Connections>>,
    fragments: Option<Box<Fragments>>,
    buckets: Vec<PortBuckets>,
    swept: Tick,
}

impl Admission {
    pub(super) fn new() -> Self {
        Admission {
            started: Instant::now(),
            connections: None,
            fragments: None,
            buckets: Vec::new(),
            swept: 0,
        }
    }

    /// Whether rates are measured, for which the time has to be known.
    pub(super) fn measures(&self) -> bool {
        !self.buckets.is_empty()
    }

    fn tick(&self, now: Instant) -> Tick {
        let millis = now.saturating_duration_since(self.started).as_millis();
        (millis / u128::from(1000 / TICKS_PER_SECOND)) as Tick
    }

    fn buckets(&mut self, port: PortIndex) -> &mut PortBuckets {
        let at = usize::from(port);
        if self.buckets.len() <= at {
            self.buckets.resize(at + 1, PortBuckets::default());
        }
        &mut self.buckets[at]
    }
}

/// The table of connections, made when first needed.
fn table(connections: &mut Option<Box<Connections>>) -> &mut Connections {
    connections.get_or_insert_with(|| {
        let seed = RandomState::new().hash_one(CONNECTIONS);
        Box::new(Connections::new(CONNECTIONS, seed))
    })
}

impl Worker {
    /// Whether a packet may go on its way from or to a tenant of this worker.
    ///
    /// # Errors
    /// The drop reason.
    pub(super) fn admit(
        &mut self,
        port: PortIndex,
        direction: Direction,
        judgement: Judgement,
        head: &[u8],
        pkt: &Packet,
        off: &Offload,
    ) -> Result<(), DropReason> {
        if judgement != Judgement::Free {
            let passes = self.passes(port, direction, judgement, head, pkt);
            if matches!(judgement, Judgement::Deny(_)) {
                self.sight.trace.saw(|| {
                    let result = if passes { Ok(()) } else { Err(DropReason::AclDenied) };
                    Step::of(Stage::Connection, result).by(self.tables.name_of_port(port))
                });
            }
            if !passes {
                return Err(DropReason::AclDenied);
            }
        }
        let meter = self.tables.port(port).and_then(|entry| entry.meter);
        let Some(meter) = meter else { return Ok(()) };
        let config = match direction {
            Direction::Egress => meter.rx,
            Direction::Ingress => meter.tx,
        };
        let Some(config) = config else { return Ok(()) };
        let superframe = off.gso.map(|(_, size)| (usize::from(pkt.payload), usize::from(size)));
        let bytes = cost(pkt.frame_len as usize, superframe);
        let now = self.polling.now();
        let buckets = self.admission.buckets(port);
        let bucket = match direction {
            Direction::Egress => &mut buckets.rx,
            Direction::Ingress => &mut buckets.tx,
        };
        let result =
            if bucket.take(config, bytes, now) { Ok(()) } else { Err(DropReason::Metered) };
        self.sight.trace.saw(|| {
            Step::of(Stage::Meter, result)
                .by(self.tables.name_of_port(port))
                .because(format!("{config}; this one counts for {bytes} bytes"))
        });
        result
    }

    /// What the rules say, with what is remembered of connections.
    fn passes(
        &mut self,
        port: PortIndex,
        direction: Direction,
        judgement: Judgement,
        head: &[u8],
        pkt: &Packet,
    ) -> bool {
        let now = self.admission.tick(self.polling.now());
        let Admission { connections, fragments, .. } = &mut self.admission;
        let Some(acl) = self.tables.port(port).and_then(|entry| entry.acl.as_deref()) else {
            return true;
        };
        let passes = match judgement {
            Judgement::Free | Judgement::Allow { stateful: false, .. } => true,
            Judgement::Allow { stateful: true, .. } => {
                if let Some((key, signal)) = of_packet(port, direction, head, pkt) {
                    table(connections).allowed(acl, &key, direction, signal, now);
                }
                true
            }
            Judgement::Deny(_) if !acl.stateful => false,
            Judgement::Deny(_) => match of_packet(port, direction, head, pkt) {
                Some((key, signal)) => {
                    table(connections).answers(acl, &key, direction, signal, now)
                }
                None => of_quoted(port, direction, head, pkt)
                    .is_some_and(|key| table(connections).is_known(acl, &key, now)),
            },
        };
        match pkt.frag {
            Frag::None => passes,
            Frag::First => {
                if passes {
                    let fragments = fragments.get_or_insert_default();
                    fragments.passed(port, direction, head, pkt, now);
                }
                passes
            }
            Frag::Later => {
                let known = |had: &mut Box<Fragments>| had.belongs(port, direction, head, pkt, now);
                passes || fragments.as_mut().is_some_and(known)
            }
        }
    }

    /// Delivers a packet to a tenant, possibly of another worker, if its port's groups and rates let it.
    /// `judgement`: what the groups say, where that is known.
    pub(super) fn deliver_judged(
        &mut self,
        port: PortIndex,
        buf: Buf,
        pkt: &Packet,
        off: Offload,
        judgement: Option<Judgement>,
    ) {
        let Some(entry) = self.tables.port(port) else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        if entry.acl.is_none() && entry.meter.is_none() || entry.blocked {
            return self.deliver(port, buf, off);
        }
        let worker = entry.worker;
        if worker != self.config.index {
            let unjudged = Some((*pkt, Arc::clone(&self.tables)));
            let packet = Handoff::Deliver { port, buf, unjudged, off };
            return self.hand_over(worker, Role::Tenant(port), packet);
        }
        let head = buf.head().data();
        let judgement = match judgement {
            Some(judgement) => judgement,
            None => self.judge_local(port, head, pkt),
        };
        match self.admit(port, Direction::Ingress, judgement, head, pkt, &off) {
            Ok(()) => self.deliver(port, buf, off),
            Err(reason) => self.drop_tenant(port, buf, reason),
        }
    }

    /// As [`deliver_judged`](Self::deliver_judged), for a packet that another worker sent here: by the rules
    /// that it had, be they older or newer than ours. So no packet passes by the sender's rules of one
    /// state and the receiver's of another.
    pub(super) fn deliver_by(
        &mut self,
        tables: Arc<Tables>,
        port: PortIndex,
        buf: Buf,
        pkt: &Packet,
        off: Offload,
    ) {
        if tables.generation == self.tables.generation {
            return self.deliver_judged(port, buf, pkt, off, None);
        }
        let id = |tables: &Tables| tables.port(port).map(|entry| entry.id.clone());
        if id(&tables) != id(&self.tables) {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        }
        let ours = std::mem::replace(&mut self.tables, tables);
        self.deliver_judged(port, buf, pkt, off, None);
        self.tables = ours;
    }

    /// What the groups of the receiver say about a packet of another tenant of this host, from the cache
    /// where that is still valid.
    pub(super) fn judge_local(&mut self, port: PortIndex, head: &[u8], pkt: &Packet) -> Judgement {
        let Some(entry) = self.tables.port(port) else { return Judgement::Free };
        if entry.acl.is_none() {
            return Judgement::Free;
        }
        let from = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let vni = LOCAL | u32::from(port);
        let (format, headers) = (FormatIndex::VXLAN, Headers::of(head, pkt));
        let key = IngressKey { vni, from, format, headers };
        // That of the port: what is flooded names it by no address.
        let (hash, epoch) = (pkt.flow_hash ^ vni, entry.epoch);
        if let Some(flow) = self.ingress_flows.get(hash, &key, epoch) {
            self.counters.flow_hits.add(1);
            if self.sight.trace.is_some() {
                judge(entry, Direction::Ingress, head, pkt, &mut self.sight.trace);
            }
            return flow.acl;
        }
        self.counters.flow_misses.add(1);
        let acl = judge(entry, Direction::Ingress, head, pkt, &mut self.sight.trace);
        if is_of_a_flow(head, pkt) {
            let stamp = self.tables.stamp_ingress(from, head, pkt);
            let verdict = Verdict::Deliver(port);
            let flow = IngressFlow { verdict, acl, policed: true, stamp };
            self.ingress_flows.insert(hash, key, epoch, flow);
        }
        acl
    }

    /// Forgets connections whose time is over, and publishes how many there are.
    pub(super) fn sweep_connections(&mut self) {
        let now = self.admission.tick(self.polling.now());
        let Admission { connections, swept, .. } = &mut self.admission;
        let Some(table) = connections else { return };
        let passed = now.wrapping_sub(std::mem::replace(swept, now)) as usize;
        table.sweep(passed.saturating_mul(SETS_PER_TICK), now);
        let losses = table.take_losses();
        self.counters.connections_evicted.add(losses.evicted);
        self.counters.connections_refused.add(losses.refused);
        self.counters.set_connections(table.len());
    }
}
