//! ARP and neighbour discovery, answered from what the tables know.
//!
//! A tenant that asks for an address of its network gets the mapping's MAC from us; the question
//! never crosses the underlay. Where the network floods, a question that we cannot answer goes on
//! like any other broadcast.

use std::net::IpAddr;

use culvert_port::{Buf, DEFAULT_HEADROOM};
use culvert_wire::eth::{MacAddr, ether_type};
use culvert_wire::packet::Packet;
use culvert_wire::{arp, reply};

use super::Worker;
use super::offload::Offload;
use crate::drops::DropReason;
use crate::policy::anti_spoof;
use crate::policy::ingress::asked_for;
use crate::policy::observe::{Observer, Stage, Step};
use crate::tables::{Gateway, PortIndex, VnetEntry};

/// Bytes of the longest answer: a quoted IPv6 packet in an ICMPv6 error.
const ANSWER_MAX: usize = 1500;

/// What became of an answer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// It is on its way.
    Queued,
    /// The frame does not ask for one, or it cannot be made from what is known.
    Nothing,
    /// There is no free frame to make it in.
    NoFrame,
}

impl Worker {
    /// Answers, passes on or drops an ARP packet or a neighbour solicitation of a tenant.
    pub(super) fn answer(&mut self, port: PortIndex, buf: Buf, pkt: &Packet, off: Offload) {
        let tables = std::sync::Arc::clone(&self.tables);
        let Some((entry, vnet)) =
            tables.port(port).and_then(|entry| Some((entry, tables.vnet(entry.vnet)?)))
        else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        let head = buf.head().data();
        if let Err(reason) = anti_spoof::check(entry, head, pkt, &mut self.sight.trace) {
            return self.drop_tenant(port, buf, reason);
        }
        let is_arp = pkt.ether_type == ether_type::ARP;
        let Some(ip) = asked_for(head, pkt) else {
            // A reply or an announcement. Unicast ones go where they are addressed.
            return self.pass_on(port, buf, pkt, off, DropReason::Unanswered);
        };
        // A tenant that asks for its own address looks for duplicates: silence means there is none.
        if anti_spoof::owns(entry, ip) {
            self.sight.trace.saw(|| {
                Step::drop(Stage::Neighbour, DropReason::Unanswered)
                    .because(format!("{ip} is the port's own: silence means no duplicate"))
            });
            return self.drop_tenant(port, buf, DropReason::Unanswered);
        }
        let Some((mac, router)) = find(vnet, ip) else {
            return self.pass_on(port, buf, pkt, off, DropReason::UnknownNeighbour);
        };
        let answered = self.reply_to(port, &buf, |out, head| {
            if is_arp {
                reply::arp_reply(out, head, pkt, mac)
            } else {
                reply::neighbour_advertisement(out, head, pkt, mac, router)
            }
        });
        self.sight.trace.saw(|| {
            let outcome = match answered {
                Answered::Queued => "answered",
                Answered::Nothing | Answered::NoFrame => "unanswered",
            };
            let who = if router { "the gateway" } else { "the mapping" };
            Step::new(Stage::Neighbour, outcome)
                .by(format!("vnet {}: {ip} is at {mac}, by {who}", vnet.id))
        });
        match answered {
            Answered::Queued => self.cache.free_buf(buf),
            Answered::Nothing => self.drop_tenant(port, buf, DropReason::Unanswered),
            Answered::NoFrame => self.drop_tenant(port, buf, DropReason::NoFrames),
        }
    }

    /// Sends a question or an answer on where that is possible.
    fn pass_on(
        &mut self,
        port: PortIndex,
        buf: Buf,
        pkt: &Packet,
        off: Offload,
        reason: DropReason,
    ) {
        let unicast = !pkt.dst_mac(buf.head().data()).is_multicast();
        let floods = self
            .tables
            .port(port)
            .and_then(|entry| self.tables.vnet(entry.vnet))
            .is_some_and(|vnet| vnet.flood);
        self.sight.trace.saw(|| match (unicast, floods) {
            (true, _) => Step::new(Stage::Neighbour, "pass").because("unicast: as addressed"),
            (_, true) => Step::new(Stage::Neighbour, "pass").because("the vnet floods"),
            (false, false) => Step::drop(Stage::Neighbour, reason),
        });
        if unicast || floods {
            self.forward_by_rules(port, buf, pkt, off);
        } else {
            self.drop_tenant(port, buf, reason);
        }
    }

    /// Builds a frame for the tenant that sent `buf` and queues it.
    pub(super) fn reply_to(
        &mut self,
        port: PortIndex,
        buf: &Buf,
        build: impl FnOnce(&mut [u8], &[u8]) -> Option<usize>,
    ) -> Answered {
        let Some(mut frame) = self.cache.alloc() else { return Answered::NoFrame };
        frame.reset(DEFAULT_HEADROOM);
        let built = frame
            .set_len(ANSWER_MAX)
            .then(|| build(frame.data_mut(), buf.head().data()))
            .flatten()
            .filter(|len| frame.set_len(*len));
        if built.is_none() {
            self.cache.free(frame);
            return Answered::Nothing;
        }
        self.counters.port(port).replies.add(1);
        self.sight.trace.saw(|| Step::new(Stage::Reply, "pass").by(self.tables.name_of_port(port)));
        self.deliver(port, Buf::from(frame), Offload { known: true, ..Offload::default() });
        Answered::Queued
    }
}

/// The MAC that answers for `ip`, and whether it is a router's.
fn find(vnet: &VnetEntry, ip: IpAddr) -> Option<(MacAddr, bool)> {
    if let Some(gateway) = vnet.gateway_by_ip(ip) {
        return Some((gateway.mac, true));
    }
    if let Some(found) = vnet.neighbours.get(&ip) {
        return Some((found.mac, false));
    }
    match ip {
        // A link-local address that a MAC of the network makes.
        IpAddr::V6(v6) => {
            let of = |gateway: &&Gateway| gateway.mac.eui64_link_local() == v6;
            if let Some(gateway) = vnet.gateways.iter().find(of) {
                return Some((gateway.mac, true));
            }
            let mac = MacAddr::of_eui64_link_local(v6)?;
            vnet.macs.get(&mac).map(|_| (mac, false))
        }
        IpAddr::V4(_) => None,
    }
}

const _: () = assert!(ANSWER_MAX > arp::LEN);
