//! DHCP, DHCPv6 and router discovery of tenants, answered on the spot.

use std::time::Instant;

use culvert_port::{Buf, DEFAULT_HEADROOM};
use culvert_wire::packet::Packet;

use super::Worker;
use super::answer::Answered;
use super::icmp::RateLimit;
use super::offload::Offload;
use crate::drops::DropReason;
use crate::limits::CONFIGURATIONS_PER_SECOND;
use crate::policy::configure::{answer, router_lifetime_s, unsolicited};
use crate::tables::PortIndex;

/// Bytes of the longest advertisement.
const ADVERTISEMENT_MAX: usize = 1500;

/// Times that a router's word is repeated while it holds.
const REPEATS: u64 = 3;

/// How often tenants asked, and when routers spoke last.
pub struct Configuring {
    limits: Vec<RateLimit>,
    started: Instant,
    /// Seconds for which all due advertisements were sent.
    advertised_s: u64,
}

impl Configuring {
    pub(super) fn new() -> Self {
        Configuring { limits: Vec::new(), started: Instant::now(), advertised_s: 0 }
    }

    fn allows(&mut self, port: PortIndex, now: Instant) -> bool {
        let at = usize::from(port);
        while self.limits.len() <= at {
            self.limits.push(RateLimit::new(CONFIGURATIONS_PER_SECOND));
        }
        self.limits.get_mut(at).is_some_and(|limit| limit.allow(now))
    }
}

impl Worker {
    /// Answers a tenant that asks for its configuration. The question goes nowhere else.
    pub(super) fn configure(&mut self, port: PortIndex, buf: Buf, pkt: &Packet) {
        if !self.configuring.allows(port, self.polling.now()) {
            return self.drop_tenant(port, buf, DropReason::AnswerLimited);
        }
        let tables = std::sync::Arc::clone(&self.tables);
        let Some((entry, vnet)) =
            tables.port(port).and_then(|entry| Some((entry, tables.vnet(entry.vnet)?)))
        else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        match self.reply_to(port, &buf, |out, head| answer(entry, vnet, head, pkt, out)) {
            Answered::Queued => self.cache.free_buf(buf),
            Answered::Nothing => self.drop_tenant(port, buf, DropReason::Unanswered),
            Answered::NoFrame => self.drop_tenant(port, buf, DropReason::NoFrames),
        }
    }

    /// Lets routers speak whose time has come, to each tenant of this worker by itself. Ports take turns,
    /// so that not all are due in one second.
    pub(super) fn advertise_routers(&mut self) {
        let now = self.polling.now();
        let now_s = now.saturating_duration_since(self.configuring.started).as_secs();
        let before = std::mem::replace(&mut self.configuring.advertised_s, now_s);
        if now_s == before {
            return;
        }
        let tables = std::sync::Arc::clone(&self.tables);
        for index in 0..self.tenant_slots.len() {
            let port = index as PortIndex;
            let Some(entry) = self.tenant_slot(port).and_then(|_| tables.port(port)) else {
                continue;
            };
            let (Some(dhcp), Some(vnet)) = (&entry.dhcp, tables.vnet(entry.vnet)) else { continue };
            let interval = u64::from(router_lifetime_s(dhcp)) / REPEATS;
            let turns = |seconds: u64| (seconds + index as u64 * 7) / interval.max(1);
            if turns(now_s) != turns(before) && !entry.blocked {
                self.send_to(port, |out| unsolicited(entry, vnet, out));
            }
        }
        self.finish_batch();
    }

    /// Builds a frame of our own for a tenant and queues it.
    fn send_to(&mut self, port: PortIndex, build: impl FnOnce(&mut [u8]) -> Option<usize>) {
        let Some(mut frame) = self.cache.alloc() else {
            return self.counters.port(port).drop(DropReason::NoFrames);
        };
        frame.reset(DEFAULT_HEADROOM);
        let built = frame
            .set_len(ADVERTISEMENT_MAX)
            .then(|| build(frame.data_mut()))
            .flatten()
            .filter(|len| frame.set_len(*len));
        if built.is_none() {
            return self.cache.free(frame);
        }
        self.counters.port(port).replies.add(1);
        self.deliver(port, Buf::from(frame), Offload { known: true, ..Offload::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use culvert_model::Dhcp;

    use super::*;
    use crate::tables::{Gateway, PortEntry, Tables};
    use crate::worker::cutter::{Cutter, Cutters};
    use crate::worker::device::{Facts, Role};
    use crate::worker::explain::KnownDevice;
    use crate::worker::tests::{tables, worker_with};

    /// Seconds at which the router spoke to the tenant, in a time that passes as fast as the test.
    fn spoken(change: impl Fn(&mut PortEntry), seconds: u64) -> Vec<u64> {
        let mut tables = tables();
        let mut port = PortEntry::clone(tables.port(0).unwrap());
        port.dhcp = Some(Dhcp { lease_s: 600, ..Dhcp::default() }.into());
        change(&mut port);
        let mut vnet = crate::tables::VnetEntry::clone(tables.vnet(0).unwrap());
        let mac = vnet.gateways[0].mac;
        vnet.gateways.push(Gateway { net: "fd00::1/64".parse().unwrap(), mac });
        tables = Tables {
            ports: std::sync::Arc::new([Some(port.into())]),
            vnets: std::sync::Arc::new([Some(vnet.into())]),
            ..tables
        };
        let mut worker = worker_with(tables, 64);
        let facts = Facts {
            mtu: 1500,
            cutters: Cutters::all(Cutter::Dataplane),
            packet_only: false,
            unmarked: Offload::default(),
        };
        worker.attach_sinks(&[KnownDevice { role: Role::Tenant(0), facts, tap: false }]);
        worker.configuring.started = worker.polling.now();
        let mut spoken = Vec::new();
        for second in 1..=seconds {
            worker.configuring.started -= Duration::from_secs(1);
            let before = worker.counters.port(0).tx.packets.get();
            worker.advertise_routers();
            let after = worker.counters.port(0).tx.packets.get();
            assert!(after - before <= 1, "once at a time");
            spoken.extend((after > before).then_some(second));
        }
        spoken
    }

    #[test]
    fn a_router_speaks_three_times_while_its_word_holds() {
        assert_eq!(spoken(|_| (), 1000), [200, 400, 600, 800, 1000]);
        // A longer lease, a longer word (RFC 4861, section 6.2.1: at most 9,000 s).
        let longer = |lease_s| {
            move |port: &mut PortEntry| port.dhcp = Some(Dhcp { lease_s, ..Dhcp::default() }.into())
        };
        assert_eq!(spoken(longer(6000), 6000), [2000, 4000, 6000]);
        assert_eq!(spoken(longer(1_000_000), 6000), [3000, 6000]);
    }

    #[test]
    fn a_router_does_not_speak_to_who_may_not_hear_or_did_not_ask_for_it() {
        assert_eq!(spoken(|port| port.blocked = true, 1000), []);
        assert_eq!(spoken(|port| port.dhcp = None, 1000), []);
    }
}
