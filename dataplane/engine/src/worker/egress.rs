//! From a tenant: anti-spoof, flow cache, verdict.

use culvert_model::Direction;
use culvert_port::Buf;
use culvert_wire::eth::{self, ether_type};
use culvert_wire::icmpv6;
use culvert_wire::packet::{IpKind, Packet};

use super::Worker;
use super::device::Role;
use super::key::{EgressKey, Headers, is_of_a_flow};
use super::offload::{Gso, Offload};
use super::sight::received;
use super::tunnel::Tunnel;
use crate::drops::DropReason;
use crate::policy::acl::{Judgement, icmpv6_kind, judge};
use crate::policy::anti_spoof;
use crate::policy::egress::{Rewrite, Verdict, decide};
use crate::policy::observe::{Observer, Stage, Step};
use crate::shared::Handoff;
use crate::tables::{PortEntry, PortIndex, Stamp, Tables, Target, VnetIndex};

/// What was decided for a flow.
#[derive(Clone, Debug)]
pub struct EgressFlow {
    verdict: Verdict,
    /// The way to the remote VTEP, where the verdict leads to one.
    tunnel: Option<Tunnel>,
    /// What the rules of the port's ACL groups say.
    acl: Judgement,
    /// Whether each packet is to be admitted by itself: by the groups, or by a rate.
    policed: bool,
    /// What it depends on, beside the epochs of port and VTEP.
    stamp: Stamp,
}

impl EgressFlow {
    /// Whether it would be decided so again.
    fn holds(&self, tables: &Tables) -> bool {
        let way = self.tunnel.as_ref().is_none_or(|tunnel| {
            tables.vtep(tunnel.vtep).is_some_and(|vtep| vtep.changed_in == tunnel.epoch)
        });
        way && tables.holds(&self.stamp)
    }
}

impl Worker {
    /// Carries a packet that came from a tenant.
    pub(super) fn egress(&mut self, port: PortIndex, buf: Buf, off: Offload) {
        self.counters.port(port).rx.count(buf.len());
        if self.sight.on {
            self.watch_in(Role::Tenant(port), &buf, &off);
            self.egress_here(port, buf, off);
            return self.watch_out();
        }
        self.egress_here(port, buf, off);
    }

    /// As [`egress`](Self::egress), for a packet that was counted and seen already.
    pub(super) fn egress_here(&mut self, port: PortIndex, mut buf: Buf, mut off: Offload) {
        self.sight.trace.saw(|| received(self.tables.name_of_port(port), buf.len(), &off));
        if let Some((tpid, tci)) = off.vlan.take() {
            if !insert_vlan(&mut buf, tpid, tci) {
                return self.drop_tenant(port, buf, DropReason::Malformed);
            }
            off = off.moved(eth::TAG_LEN as i32);
        }
        let pkt = match Packet::parse(buf.head().data(), buf.len()) {
            Ok(pkt) => pkt,
            Err(error) => return self.drop_tenant(port, buf, error.into()),
        };
        if off.gso.is_none() && !off.known {
            match self.guess_superframe(port, &pkt) {
                Ok(gso) => {
                    off.gso = gso;
                    if let Some((kind, size)) = gso {
                        self.sight.trace.saw(|| {
                            Step::new(Stage::Segmentation, "guessed").because(format!(
                                "above the port's MTU: taken for a superframe {kind:?}, segments of {size} bytes"
                            ))
                        });
                    }
                }
                Err(reason) => return self.drop_tenant(port, buf, reason),
            }
        }
        if is_neighbour_query(buf.head().data(), &pkt) {
            return self.answer(port, buf, &pkt, off);
        }
        self.forward_by_rules(port, buf, &pkt, off);
    }

    /// Does with a tenant's packet what the rules say.
    pub(super) fn forward_by_rules(
        &mut self,
        port: PortIndex,
        mut buf: Buf,
        pkt: &Packet,
        off: Offload,
    ) {
        let key = EgressKey { port, headers: Headers::of(buf.head().data(), pkt) };
        let Some(flow) = self.egress_flow(&key, &buf, pkt) else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        if flow.policed {
            let head = buf.head().data();
            if let Err(reason) = self.admit(port, Direction::Egress, flow.acl, head, pkt, &off) {
                return self.drop_tenant(port, buf, reason);
            }
        }
        match flow.verdict {
            Verdict::Drop(reason) => self.drop_tenant(port, buf, reason),
            Verdict::Configure => self.configure(port, buf, pkt),
            Verdict::Trap => self.trap(Role::Tenant(port), buf, "egress"),
            Verdict::Flood(vnet) => self.flood_from_tenant(port, vnet, buf, pkt, off),
            Verdict::Forward { target, rewrite, .. } => {
                if let Some(rewrite) = rewrite
                    && let Err(reason) = apply(&mut buf, pkt, rewrite)
                {
                    self.sight.trace.saw(|| Step::drop(Stage::Rewrite, reason));
                    if reason == DropReason::TtlExceeded {
                        self.time_exceeded(port, &buf, pkt);
                    }
                    return self.drop_tenant(port, buf, reason);
                }
                if let Some(Rewrite { src_mac, dst_mac, hop }) = rewrite {
                    self.sight.trace.saw(|| {
                        let hop = if hop { ", hop limit less one" } else { "" };
                        Step::new(Stage::Rewrite, "pass")
                            .because(format!("source {src_mac}, destination {dst_mac}{hop}"))
                    });
                }
                match (target, flow.tunnel) {
                    (Target::Local(to), _) => self.forward_local(port, to, buf, pkt, off),
                    (Target::Remote { .. }, Some(tunnel)) => {
                        self.forward_remote(port, buf, *pkt, off, &tunnel);
                    }
                    (Target::Remote { .. }, None) => {
                        self.drop_tenant(port, buf, DropReason::NextHopUnreachable);
                    }
                }
            }
        }
    }

    /// What a frame above the port's own MTU must be, where the kernel does not say: the tracing
    /// program may be missing, or miss a frame. TCP can be cut to any size; of anything else the
    /// boundaries are lost.
    fn guess_superframe(
        &self,
        port: PortIndex,
        pkt: &Packet,
    ) -> Result<Option<(Gso, u16)>, DropReason> {
        let mtu = self.tables.port(port).map_or(u32::MAX, |entry| entry.mtu);
        if pkt.ip == IpKind::None || pkt.len.saturating_sub(pkt.l3.into()) <= mtu {
            return Ok(None);
        }
        let headers = u32::from(pkt.payload.saturating_sub(pkt.l3));
        let size = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
        match (pkt.ip, pkt.is_tcp()) {
            (IpKind::V4, true) => Ok(Some((Gso::TcpV4, size))),
            (IpKind::V6, true) => Ok(Some((Gso::TcpV6, size))),
            _ => Err(DropReason::UnknownSuperframe),
        }
    }

    /// The decision for a flow, from the cache where it is still valid. None when the port is gone.
    fn egress_flow(&mut self, key: &EgressKey, buf: &Buf, pkt: &Packet) -> Option<EgressFlow> {
        let epoch = self.tables.port(key.port)?.epoch;
        if let Some(flow) = self.egress_flows.get(pkt.flow_hash, key, epoch)
            && flow.holds(&self.tables)
        {
            self.counters.flow_hits.add(1);
            let flow = flow.clone();
            if self.sight.trace.is_some() {
                self.retell_egress(key, buf, pkt);
            }
            return Some(flow);
        }
        self.counters.flow_misses.add(1);
        self.see_cache_miss();
        let tables = std::sync::Arc::clone(&self.tables);
        let port = tables.port(key.port)?;
        let head = buf.head().data();
        let (flow, lasting) = egress_flow(&tables, port, head, pkt, &mut self.sight.trace);
        if lasting {
            self.egress_flows.insert(pkt.flow_hash, *key, port.epoch, flow.clone());
        }
        Some(flow)
    }

    /// What the rules said when the flow was new, they say again: for the trace.
    #[cold]
    fn retell_egress(&mut self, key: &EgressKey, buf: &Buf, pkt: &Packet) {
        self.sight.trace.saw(|| {
            Step::new(Stage::FlowCache, "hit").because("decided before, by the rules that follow")
        });
        let tables = std::sync::Arc::clone(&self.tables);
        if let Some(port) = tables.port(key.port) {
            egress_flow(&tables, port, buf.head().data(), pkt, &mut self.sight.trace);
        }
    }

    /// Replicates to every other member of the network, head end (RFC 7348 section 4.2 leaves
    /// multicast to the underlay; we do not ask for that).
    fn flood_from_tenant(
        &mut self,
        port: PortIndex,
        vnet: VnetIndex,
        buf: Buf,
        pkt: &Packet,
        mut off: Offload,
    ) {
        let tables = std::sync::Arc::clone(&self.tables);
        let Some(vnet) = tables.vnet(vnet) else {
            return self.drop_tenant(port, buf, DropReason::NoRoute);
        };
        if off.gso.is_some() {
            return self.drop_tenant(port, buf, DropReason::NotSegmentable);
        }
        super::checksum::infer_partial(&buf, pkt, &mut off);
        for to in vnet.local_ports.iter().filter(|to| **to != port) {
            match self.copy(&buf) {
                Some(copy) => self.deliver_judged(*to, copy, pkt, off, None),
                None => self.lose(Role::Tenant(port), DropReason::NoFrames, 1, &buf),
            }
        }
        for vtep in vnet.flood_vteps.iter().filter_map(|index| tables.vtep(*index)) {
            match Tunnel::new(&tables, vnet, vtep, pkt.flow_hash, 0) {
                Err(reason) => self.lose(Role::Tenant(port), reason, 1, &buf),
                Ok(tunnel) => match self.copy(&buf) {
                    Some(copy) => self.forward_remote(port, copy, *pkt, off, &tunnel),
                    None => self.lose(Role::Tenant(port), DropReason::NoFrames, 1, &buf),
                },
            }
        }
        self.cache.free_buf(buf);
    }

    /// To a tenant of this host.
    fn forward_local(
        &mut self,
        from: PortIndex,
        to: PortIndex,
        mut buf: Buf,
        pkt: &Packet,
        mut off: Offload,
    ) {
        let mtu = self.tables.port(to).map_or(0, |port| port.mtu);
        let ip_len = pkt.len.saturating_sub(pkt.l3.into());
        if off.gso.is_none() && ip_len > mtu {
            self.sight.trace.saw(|| above_mtu(ip_len, mtu, self.tables.name_of_port(to)));
            return self.too_big(from, buf, pkt, off, mtu, super::encap::Exit::Local(to));
        }
        super::checksum::infer_partial(&buf, pkt, &mut off);
        if let Some((kind, size)) = off.gso {
            let room = mtu.saturating_sub(u32::from(pkt.payload.saturating_sub(pkt.l3)));
            if u32::from(size) > room {
                if kind == Gso::UdpL4 {
                    return self.drop_tenant(from, buf, DropReason::ExceedsPortMtu);
                }
                off.gso = Some((kind, room as u16));
                self.sight.trace.saw(|| {
                    Step::new(Stage::Segmentation, "pass")
                        .because(format!("segments of {room} bytes, for the port's MTU"))
                });
            }
            if !super::checksum::ready_to_cut(&mut buf, pkt, &mut off) {
                return self.drop_tenant(from, buf, DropReason::BadSuperframeChecksum);
            }
        }
        self.deliver_judged(to, buf, pkt, off, None);
    }

    pub(super) fn copy(&mut self, buf: &Buf) -> Option<Buf> {
        super::encap::copy_range(&mut self.cache, buf, 0..buf.len())
    }

    pub(super) fn hand_over_delivery(
        &mut self,
        worker: u16,
        port: PortIndex,
        buf: Buf,
        off: Offload,
    ) {
        let packet = Handoff::Deliver { port, buf, unjudged: None, off };
        self.hand_over(worker, Role::Tenant(port), packet);
    }
}

/// Decides for a flow; and whether the decision lasts for the flow's next packets.
fn egress_flow(
    tables: &Tables,
    port: &PortEntry,
    head: &[u8],
    pkt: &Packet,
    seen: &mut impl Observer,
) -> (EgressFlow, bool) {
    let mut verdict = match anti_spoof::check(port, head, pkt, seen) {
        Ok(()) => decide(tables, port, head, pkt, seen),
        Err(reason) => Verdict::Drop(reason),
    };
    let mut tunnel = None;
    let mut lasting = is_of_a_flow(head, pkt);
    if let Verdict::Forward { vnet, target: Target::Remote { vtep, mtu }, .. } = verdict {
        let made = match (tables.vnet(vnet), tables.vtep(vtep)) {
            (Some(vnet), Some(vtep)) => Tunnel::new(tables, vnet, vtep, pkt.flow_hash, mtu),
            _ => Err(DropReason::NextHopUnreachable),
        };
        seen.saw(|| {
            let at = tables.vtep(vtep).map_or_else(String::new, |vtep| format!("vtep {}", vtep.ip));
            match &made {
                Ok(tunnel) => Step::new(Stage::NextHop, "pass").by(at).because(tunnel.to_string()),
                Err(reason) => Step::drop(Stage::NextHop, *reason).by(at),
            }
        });
        match made {
            Ok(made) => tunnel = Some(made),
            Err(reason) => {
                verdict = Verdict::Drop(reason);
                lasting = false;
            }
        }
    }
    let acl = match verdict {
        Verdict::Drop(_) | Verdict::Configure => Judgement::Free,
        _ => judge(port, Direction::Egress, head, pkt, seen),
    };
    let ends = matches!(verdict, Verdict::Drop(_) | Verdict::Configure);
    let policed = !ends && (acl != Judgement::Free || port.meter.is_some());
    let stamp = tables.stamp_egress(head, pkt);
    (EgressFlow { verdict, tunnel, acl, policed, stamp }, lasting)
}

/// Whether the packet is an ARP packet or a neighbour solicitation: those we answer.
fn is_neighbour_query(head: &[u8], pkt: &Packet) -> bool {
    pkt.ether_type == ether_type::ARP
        || icmpv6_kind(head, pkt) == Some(icmpv6::kind::NEIGHBOUR_SOLICITATION)
}

/// A packet is too big for its way.
pub(super) fn above_mtu(ip_len: u32, mtu: u32, way: String) -> Step {
    Step::new(Stage::Mtu, "too_big").by(way).because(format!("{ip_len} bytes, {mtu} fit"))
}

/// Puts a tag that the kernel took out of band back into the frame.
fn insert_vlan(buf: &mut Buf, tpid: u16, tci: u16) -> bool {
    let frame = buf.head_mut();
    if frame.len() < eth::HEADER_LEN || frame.push_front(eth::TAG_LEN).is_none() {
        return false;
    }
    let data = frame.data_mut();
    data.copy_within(eth::TAG_LEN..eth::TAG_LEN + 12, 0);
    let Some(tag) = data.get_mut(12..16) else { return false };
    tag[..2].copy_from_slice(&tpid.to_be_bytes());
    tag[2..].copy_from_slice(&tci.to_be_bytes());
    true
}

/// Does what a router does to a packet.
fn apply(buf: &mut Buf, pkt: &Packet, rewrite: Rewrite) -> Result<(), DropReason> {
    let l3 = usize::from(pkt.l3);
    let data = buf.head_mut().data_mut();
    if rewrite.hop {
        if pkt.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        let header = data.get_mut(l3..).unwrap_or_default();
        match (pkt.ip, header.len()) {
            (IpKind::V4, 20..) => {
                let old = u16::from_be_bytes([header[8], header[9]]);
                header[8] -= 1;
                let new = u16::from_be_bytes([header[8], header[9]]);
                let sum = u16::from_be_bytes([header[10], header[11]]);
                let sum = culvert_wire::checksum::update_u16(sum, old, new);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpKind::V6, 40..) => header[7] -= 1,
            _ => return Err(DropReason::Malformed),
        }
    }
    let macs = data.get_mut(..12).ok_or(DropReason::Malformed)?;
    macs[..6].copy_from_slice(&rewrite.dst_mac.0);
    macs[6..].copy_from_slice(&rewrite.src_mac.0);
    Ok(())
}
