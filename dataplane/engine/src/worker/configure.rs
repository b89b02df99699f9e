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
