//! From the underlay: verify, decapsulate, check the source.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::Direction;
use culvert_port::Buf;
use culvert_wire::checksum::Sum;
use culvert_wire::coalesce::OuterHeaders;
use culvert_wire::format::{Facts, FormatIndex, Outer as FormatOuter, Stream};
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::reassemble::StreamPart;
use culvert_wire::vni::Vni;
use culvert_wire::{ecn, proto};

use super::deliver::Piece;
use super::device::Role;
use super::key::{Headers, IngressKey, is_of_a_flow};
use super::offload::{Csum, Gso, Offload};
use super::raised::Raised;
use super::sight::received;
use super::{Worker, checksum};
use crate::drops::DropReason;
use crate::policy::acl::{Judgement, judge};
use crate::policy::ingress::{Verdict, decide, decide_without_vnet};
use crate::policy::observe::{Observer, Stage, Step};
use crate::shared::Handoff;
use crate::tables::{LinkIndex, PortIndex, Stamp, Tables, VnetEntry, VnetIndex};

/// What was decided for a flow from the underlay.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IngressFlow {
    /// Where it goes.
    pub verdict: Verdict,
    /// Where that is a port: what the rules of its ACL groups say.
    pub acl: Judgement,
    /// Whether each packet is to be admitted by itself: by the groups, or by a rate.
    pub policed: bool,
    /// What it depends on, beside the epoch of the rules.
    pub stamp: Stamp,
}

/// A parsed tunnel frame.
#[derive(Copy, Clone)]
pub(super) struct Outer {
    pub(super) pkt: Packet,
    pub(super) from: IpAddr,
    pub(super) vni: Vni,
    /// The format.
    pub(super) format: FormatIndex,
    /// Bytes of the tunnel header.
    pub(super) tunnel_len: usize,
    /// Where the outer transport's checksum is, from the start of its header.
    pub(super) checksum_at: Option<u16>,
    /// Whether the tunnel header rides on the first segment only.
    pub(super) is_stream: bool,
    /// What the tunnel header states of the inner frame.
    pub(super) facts: Facts,
    /// Tells packets apart that must not be merged.
    pub(super) headers: OuterHeaders,
}

impl Outer {
    pub(super) fn flow_source(&self) -> (IpAddr, u32) {
        (self.from, self.vni.get())
    }

    pub(super) fn inner_at(&self) -> usize {
        usize::from(self.pkt.payload) + self.tunnel_len
    }

    /// What must be equal in all that is merged.
    pub(super) fn key(&self) -> (Vni, OuterHeaders) {
        (self.vni, self.headers)
    }
}

impl Worker {
    /// Carries a frame that came from the underlay.
    pub(super) fn ingress(&mut self, link: LinkIndex, buf: Buf, off: Offload) {
        self.counters.link(link).rx.count(buf.len());
        if self.sight.on {
            self.watch_in(Role::Underlay(link), &buf, &off);
            self.ingress_here(link, buf, off);
            return self.watch_out();
        }
        self.ingress_here(link, buf, off);
    }

    /// As [`ingress`](Self::ingress), for a frame that was counted already.
    pub(super) fn ingress_here(&mut self, link: LinkIndex, mut buf: Buf, off: Offload) {
        self.sight.trace.saw(|| received("underlay".to_owned(), buf.len(), &off));
        let pkt = match Packet::parse(buf.head().data(), buf.len()) {
            Ok(pkt) => pkt,
            Err(error) => return self.drop_underlay(link, buf, error.into()),
        };
        if matches!(pkt.proto, proto::ICMPV4 | proto::ICMPV6) && pkt.ip != IpKind::None {
            self.path_mtu_report(link, &buf, &pkt);
            self.sight.trace.saw(|| Step::new(Stage::Outer, "icmp_error"));
            return self.cache.free_buf(buf);
        }
        if (pkt.len as usize) < buf.len() {
            buf.truncate(pkt.len as usize, &mut self.cache);
        }
        let outer = match parse_outer(&self.tables, buf.head().data(), pkt) {
            Ok(Outside::Frame(outer)) => outer,
            Ok(Outside::Part(format, stream, part)) => {
                return self.join_stream(link, buf, &pkt, off, (format, stream, part));
            }
            Ok(Outside::Shards) => return self.take_segment(link, buf, &pkt, off),
            Err(reason) => return self.drop_underlay(link, buf, reason),
        };
        let gso = match off.gso {
            None if !off.known && !outer.is_stream => self.guess_train(link, &buf, &outer),
            gso => gso,
        };
        self.sight.trace.saw(|| {
            let detail = format!("vni {} from {}", outer.vni, outer.from);
            let step = match gso {
                None => Step::new(Stage::Outer, "packet"),
                Some((Gso::UdpL4, _)) => Step::new(Stage::Outer, "train"),
                Some(_) => Step::new(Stage::Outer, "superframe"),
            };
            step.by(self.tables.formats().name(outer.format)).because(detail)
        });
        let Facts { mss, checksum_partial, vlan, .. } = outer.facts;
        if outer.is_stream && (mss > 0 || checksum_partial || vlan.is_some()) {
            return self.ingress_stream(link, buf, &outer, off);
        }
        match gso {
            Some(_) if outer.is_stream => self.ingress_single(link, buf, &outer, off),
            None => self.ingress_single(link, buf, &outer, off),
            Some((Gso::UdpL4, size)) => self.ingress_train(link, buf, &outer, off, size),
            Some((Gso::Tunnel { udp }, size)) => {
                self.ingress_superframe(link, buf, &outer, off, udp, size);
            }
            Some(_) => self.drop_underlay(link, buf, DropReason::UnknownSuperframe),
        }
    }

    /// One tunnel packet with one inner frame.
    fn ingress_single(&mut self, link: LinkIndex, mut buf: Buf, outer: &Outer, off: Offload) {
        let at = outer.inner_at();
        let head = buf.head().data().get(at..).unwrap_or_default();
        let mut inner = match Packet::parse(head, buf.len().saturating_sub(at)) {
            Ok(inner) => inner,
            Err(error) => return self.drop_underlay(link, buf, error.into()),
        };
        let flow = self.ingress_flow(outer, head, &inner);
        if self.sight.on {
            self.count_inner(outer.flow_source(), head, &inner, port_of(flow.verdict));
        }
        let Some(buf_kept) = self.not_elsewhere(link, buf, off, flow.verdict) else { return };
        buf = buf_kept;
        let merged = inner.is_tcp()
            || matches!(flow.verdict, Verdict::Deliver(port) if self.is_merged(port, &inner));
        let Some(checked) = verify(&mut buf, outer, &inner, off, merged) else {
            self.sight.trace.saw(|| Step::drop(Stage::Checksum, DropReason::BadOuterChecksum));
            return self.drop_underlay(link, buf, DropReason::BadOuterChecksum);
        };
        self.sight.trace.saw(|| {
            let inner =
                if checked.right { "inner right, too" } else { "inner not looked at, or wrong" };
            Step::new(Stage::Checksum, "pass").because(format!("outer right or none; {inner}"))
        });
        let stripped = strip(&mut buf, outer, &mut inner);
        self.sight.trace.saw(|| Step::of(Stage::Decapsulation, stripped));
        if let Err(reason) = stripped {
            return self.drop_underlay(link, buf, reason);
        }
        self.finish_single(link, buf, outer, &inner, flow, (checked.off, checked.right));
    }

    /// Merges a single inner frame, or delivers it as it is. Its checksum may be known to be right.
    pub(super) fn finish_single(
        &mut self,
        link: LinkIndex,
        buf: Buf,
        outer: &Outer,
        inner: &Packet,
        flow: IngressFlow,
        (off, right): (Offload, bool),
    ) {
        let Ok(raised) = Raised::of(outer.facts.mss, inner) else {
            return self.drop_underlay(link, buf, DropReason::BadTunnelHeader);
        };
        match flow.verdict {
            Verdict::Deliver(port)
                if self.is_merged(port, inner) && right && self.fits(port, inner, raised) =>
            {
                let (head, as_cut) = (buf.head().data(), raised.describe(inner, off));
                match self.admit_inner(port, flow, head, inner, &as_cut) {
                    Ok(()) => {
                        self.merge_own(port, outer.key(), Piece::Own { buf, off, raised }, inner);
                    }
                    Err(reason) => self.drop_tenant(port, buf, reason),
                }
            }
            Verdict::Deliver(port) if self.is_merged(port, inner) => {
                self.flush_flow(port, outer.key(), buf.head().data(), inner);
                self.dispatch(link, buf, inner, flow, off);
            }
            _ => self.dispatch(link, buf, inner, flow, off),
        }
    }

    /// A superframe that a kernel encapsulated whole and that no device has cut.
    fn ingress_superframe(
        &mut self,
        link: LinkIndex,
        mut buf: Buf,
        outer: &Outer,
        off: Offload,
        udp: bool,
        size: u16,
    ) {
        let at = outer.inner_at();
        let head = buf.head().data().get(at..).unwrap_or_default();
        let mut inner = match Packet::parse(head, buf.len().saturating_sub(at)) {
            Ok(inner) => inner,
            Err(error) => return self.drop_underlay(link, buf, error.into()),
        };
        let kind = match (inner.ip, inner.proto) {
            (_, proto::UDP) if udp => Gso::UdpL4,
            (IpKind::V4, proto::TCP) if !udp => Gso::TcpV4,
            (IpKind::V6, proto::TCP) if !udp => Gso::TcpV6,
            _ => return self.drop_underlay(link, buf, DropReason::UnknownSuperframe),
        };
        let flow = self.ingress_flow(outer, head, &inner);
        let verdict = flow.verdict;
        if self.sight.on {
            self.count_inner(outer.flow_source(), head, &inner, port_of(flow.verdict));
        }
        let Some(buf_kept) = self.not_elsewhere(link, buf, off, verdict) else { return };
        buf = buf_kept;
        let stripped = strip(&mut buf, outer, &mut inner);
        self.sight.trace.saw(|| Step::of(Stage::Decapsulation, stripped));
        if let Err(reason) = stripped {
            return self.drop_underlay(link, buf, reason);
        }
        let mut off = off.moved(-(at as i32));
        off.gso = Some((kind, size));
        if !checksum::ready_to_cut(&mut buf, &inner, &mut off) {
            return self.drop_underlay(link, buf, DropReason::BadSuperframeChecksum);
        }
        if matches!(verdict, Verdict::Flood(_)) {
            return self.drop_underlay(link, buf, DropReason::NotSegmentable);
        }
        if let Verdict::Deliver(port) = verdict {
            let headers = u32::from(inner.payload.saturating_sub(inner.l3));
            let mtu = self.tables.port(port).map_or(0, |entry| entry.mtu);
            if headers + u32::from(size) > mtu {
                return self.drop_underlay(link, buf, DropReason::ExceedsPortMtu);
            }
            self.flush_flow(port, outer.key(), buf.head().data(), &inner);
        }
        self.dispatch(link, buf, &inner, flow, off);
    }

    /// Whether a single packet, or what it will be cut into, is within its port's MTU. What is not goes alone,
    /// and is counted.
    pub(super) fn fits(&self, port: PortIndex, inner: &Packet, raised: Raised) -> bool {
        let ip_len = raised.ip_len(inner);
        self.tables.port(port).is_some_and(|entry| ip_len <= entry.mtu)
    }

    /// Whether packets like this one are merged for a port: datagrams, if it asked for that.
    pub(super) fn is_merged(&self, port: PortIndex, inner: &Packet) -> bool {
        let asks = || self.tables.port(port).is_some_and(|entry| entry.udp_gro);
        inner.is_tcp() || inner.is_udp() && asks()
    }

    /// Whether a decapsulated packet may reach its tenant.
    pub(super) fn admit_inner(
        &mut self,
        port: PortIndex,
        flow: IngressFlow,
        head: &[u8],
        inner: &Packet,
        off: &Offload,
    ) -> Result<(), DropReason> {
        if !flow.policed {
            return Ok(());
        }
        self.admit(port, Direction::Ingress, flow.acl, head, inner, off)
    }

    pub(super) fn dispatch(
        &mut self,
        link: LinkIndex,
        buf: Buf,
        inner: &Packet,
        flow: IngressFlow,
        off: Offload,
    ) {
        match flow.verdict {
            Verdict::Drop(reason) => self.drop_underlay(link, buf, reason),
            Verdict::Trap => self.trap(Role::Underlay(link), buf, "ingress"),
            Verdict::Flood(vnet) => self.flood_to_tenants(link, vnet, buf, inner, off),
            Verdict::Deliver(port) if flow.policed => {
                self.deliver_judged(port, buf, inner, off, Some(flow.acl));
            }
            Verdict::Deliver(port) => self.deliver(port, buf, off),
        }
    }

    /// Passes the frame on if its tenant belongs to another worker; else gives it back.
    pub(super) fn not_elsewhere(
        &mut self,
        link: LinkIndex,
        buf: Buf,
        off: Offload,
        verdict: Verdict,
    ) -> Option<Buf> {
        let Verdict::Deliver(port) = verdict else { return Some(buf) };
        // A port that is gone meanwhile is found out, and counted, at delivery.
        let Some(worker) = self.tables.port(port).map(|entry| entry.worker) else {
            return Some(buf);
        };
        if self.is_own(worker) {
            return Some(buf);
        }
        self.hand_over(worker, Role::Underlay(link), Handoff::Ingress { link, buf, off });
        None
    }

    pub(super) fn ingress_flow(
        &mut self,
        outer: &Outer,
        head: &[u8],
        inner: &Packet,
    ) -> IngressFlow {
        let key = IngressKey {
            vni: outer.vni.get(),
            from: outer.from,
            format: outer.format,
            headers: Headers::of(head, inner),
        };
        let hash = inner.flow_hash ^ outer.vni.get();
        if let Some(flow) = self.ingress_flows.get(hash, &key, self.tables.ingress_epoch)
            && self.tables.holds(&flow.stamp)
        {
            let flow = *flow;
            self.counters.flow_hits.add(1);
            if self.sight.trace.is_some() {
                self.retell_ingress(outer, head, inner);
            }
            return flow;
        }
        self.counters.flow_misses.add(1);
        self.see_cache_miss();
        let tables: Arc<Tables> = Arc::clone(&self.tables);
        let flow = ingress_flow(&tables, outer, head, inner, &mut self.sight.trace);
        if is_of_a_flow(head, inner) {
            self.ingress_flows.insert(hash, key, tables.ingress_epoch, flow);
        }
        flow
    }

    /// What the rules said when the flow was new, they say again: for the trace.
    #[cold]
    fn retell_ingress(&mut self, outer: &Outer, head: &[u8], inner: &Packet) {
        self.sight.trace.saw(|| {
            Step::new(Stage::FlowCache, "hit").because("decided before, by the rules that follow")
        });
        let tables = Arc::clone(&self.tables);
        ingress_flow(&tables, outer, head, inner, &mut self.sight.trace);
    }

    fn flood_to_tenants(
        &mut self,
        link: LinkIndex,
        vnet: VnetIndex,
        buf: Buf,
        inner: &Packet,
        off: Offload,
    ) {
        let tables = Arc::clone(&self.tables);
        for port in tables.vnet(vnet).map_or(&[][..], |vnet| &vnet.local_ports[..]) {
            match self.copy(&buf) {
                Some(copy) => self.deliver_judged(*port, copy, inner, off, None),
                None => self.lose(Role::Underlay(link), DropReason::NoFrames, 1, &buf),
            }
        }
        self.cache.free_buf(buf);
    }
}

/// Decides for a flow.
fn ingress_flow(
    tables: &Tables,
    outer: &Outer,
    head: &[u8],
    inner: &Packet,
    seen: &mut impl Observer,
) -> IngressFlow {
    let verdict = match tables.vnet_of(outer.vni) {
        None => decide_without_vnet(tables, outer.vni, outer.from, seen),
        Some(vnet) if !is_spoken(tables, vnet, outer, seen) => {
            Verdict::Drop(DropReason::FormatMismatch)
        }
        Some(vnet) => decide(tables, vnet, outer.from, head, inner, seen),
    };
    let verdict = match verdict {
        Verdict::Deliver(port) => deliverable(tables, port, seen),
        other => other,
    };
    let port = match verdict {
        Verdict::Deliver(port) => tables.port(port),
        _ => None,
    };
    let acl =
        port.map_or(Judgement::Free, |entry| judge(entry, Direction::Ingress, head, inner, seen));
    let metered = port.is_some_and(|entry| entry.meter.is_some());
    let policed = metered || acl != Judgement::Free;
    let stamp = tables.stamp_ingress(outer.from, head, inner);
    IngressFlow { verdict, acl, policed, stamp }
}

/// The one port that the verdict is about.
pub(super) fn port_of(verdict: Verdict) -> Option<PortIndex> {
    match verdict {
        Verdict::Deliver(port) => Some(port),
        _ => None,
    }
}

/// A blocked port gets nothing, whichever way it would go: merged, in a train, or alone.
fn deliverable(tables: &Tables, port: PortIndex, seen: &mut impl Observer) -> Verdict {
    match tables.port(port) {
        Some(entry) if entry.blocked => {
            seen.saw(|| {
                Step::drop(Stage::Port, DropReason::PortBlocked).by(format!("port {}", entry.id))
            });
            Verdict::Drop(DropReason::PortBlocked)
        }
        _ => Verdict::Deliver(port),
    }
}

/// Whether this is the format in which the network speaks to the VTEP.
fn is_spoken(tables: &Tables, vnet: &VnetEntry, outer: &Outer, seen: &mut impl Observer) -> bool {
    let vtep = tables.vtep_of(&outer.from).and_then(|index| tables.vtep(index));
    let own = vtep.and_then(|vtep| vtep.format);
    let spoken = own.unwrap_or(vnet.format);
    if spoken == outer.format {
        return true;
    }
    seen.saw(|| {
        let by = match own {
            Some(_) => format!("peer {}", outer.from),
            None => format!("vnet {}", vnet.id),
        };
        let name = |index| tables.formats().name(index);
        Step::drop(Stage::Vni, DropReason::FormatMismatch).by(by).because(format!(
            "format {}, not {}",
            name(spoken),
            name(outer.format)
        ))
    });
    false
}

/// What a packet from the underlay is.
enum Outside {
    /// A tunnel packet with all of its frame.
    Frame(Outer),
    /// A segment of a frame that is put together first.
    Part(FormatIndex, Stream, StreamPart),
    /// A segment of the shard format.
    Shards,
}

fn parse_outer(tables: &Tables, head: &[u8], pkt: Packet) -> Result<Outside, DropReason> {
    let (Some(from), Frag::None) = (pkt.src_ip(head), pkt.frag) else {
        return Err(DropReason::NotTunnel);
    };
    let (formats, port) = (tables.formats(), pkt.dst_port(head));
    let mut stream = None;
    for (index, format) in formats.carried_by(pkt.proto, port) {
        if format.is_shards() {
            return Ok(Outside::Shards);
        }
        if let Some(found) = format.stream() {
            let part = StreamPart::read(found, head, &pkt).ok_or(DropReason::BadTunnelHeader)?;
            if !part.is_whole() {
                return Ok(Outside::Part(index, *found, part));
            }
            stream = Some(index);
        }
    }
    let end = (pkt.len as usize).min(head.len());
    let message = head.get(usize::from(pkt.payload)..end).unwrap_or_default();
    let (format, found) =
        formats.decap(pkt.proto, port, message).ok_or(DropReason::NotTunnel)??;
    let outer = formats.get(format).map(|format| format.outer);
    Ok(Outside::Frame(Outer {
        pkt,
        from,
        vni: found.vni,
        format,
        tunnel_len: found.header_len,
        checksum_at: outer.and_then(FormatOuter::checksum_offset),
        is_stream: stream == Some(format),
        facts: found.facts,
        headers: OuterHeaders::of(head, &pkt, found.digest),
    }))
}

/// The ECN bits that the inner packet must get, where they change.
pub(super) fn inner_ecn(inner: &Packet, outer_tos: u8) -> Result<Option<u8>, DropReason> {
    if inner.ip == IpKind::None {
        return Ok(None);
    }
    match ecn::decapsulate(inner.tos, outer_tos) {
        ecn::Egress::Drop => Err(DropReason::EcnDrop),
        ecn::Egress::Forward { ecn, .. } => Ok((ecn != inner.tos & ecn::MASK).then_some(ecn)),
    }
}

/// What verification found, for the inner frame.
struct Checked {
    off: Offload,
    /// The inner checksum is known to be right, or was left to us.
    right: bool,
}

/// Verifies the outer checksum, and the inner one of a packet that may be `merged`. Both cover the inner L4 part,
/// which is summed once. None when the outer one is wrong.
fn verify(
    buf: &mut Buf,
    outer: &Outer,
    inner: &Packet,
    off: Offload,
    merged: bool,
) -> Option<Checked> {
    let at = outer.inner_at();
    let inner_l4 = at + usize::from(inner.l4);
    let inner_end = at + inner.len as usize;
    let head = buf.head().data();
    let field = match outer.checksum_at {
        Some(at) => {
            let at = usize::from(outer.pkt.l4) + usize::from(at);
            u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?])
        }
        None => 0,
    };
    let outer_pseudo = checksum::pseudo(head, &outer.pkt)?;
    let mut inner_off = Offload { known: true, ..Offload::default() };
    let mut vouched = off.csum == Csum::Verified || outer.checksum_at.is_none();
    match off.csum {
        Csum::Partial { start, .. } if start == outer.pkt.l4 => vouched = true,
        // A kernel that encapsulated before it summed: the outer sum stands once the inner one
        // does, and both were made on this machine.
        Csum::Partial { start, .. } if usize::from(start) >= at => {
            inner_off.csum = off.moved(-(at as i32)).csum;
            return Some(Checked { off: inner_off, right: true });
        }
        _ if !off.known && field != 0 && field == outer_pseudo.fold() => vouched = true,
        _ => {}
    }
    if !off.known && complete_bare(buf, at, inner) {
        inner_off.csum = Csum::Verified;
    }
    let sums_inner = merged && inner.frag == Frag::None;
    // Zero is no sum in UDP alone.
    let sums_outer = !vouched && (field != 0 || !outer.pkt.is_udp());
    if !vouched && field == 0 && outer.pkt.is_udp() && outer.pkt.ip == IpKind::V6 {
        return None;
    }
    if !sums_outer && !sums_inner {
        return Some(Checked { off: inner_off, right: false });
    }
    let l4_sum = checksum::sum_range(buf, inner_l4, inner_end);
    if sums_outer {
        let front = checksum::sum_range(buf, outer.pkt.l4.into(), inner_l4);
        let rest = checksum::sum_range(buf, inner_end, outer.pkt.len as usize);
        let all: Sum = outer_pseudo.add_sum(front).add_sum(l4_sum).add_sum(rest);
        if all.finish() != 0 {
            return None;
        }
    }
    let head = buf.head().data().get(at..).unwrap_or_default();
    let right = sums_inner && checksum::is_right(head, inner, l4_sum);
    Some(Checked { off: inner_off, right })
}

/// Completes an inner checksum that holds the bare pseudo-header sum, where the kernel does not
/// tell. Returns whether it did.
fn complete_bare(buf: &mut Buf, at: usize, inner: &Packet) -> bool {
    let head = buf.head().data().get(at..).unwrap_or_default();
    let Some(offset) = checksum::field_offset(inner.proto) else { return false };
    if inner.frag != Frag::None {
        return false;
    }
    let field_at = usize::from(inner.l4) + usize::from(offset);
    let field = match head.get(field_at..field_at + 2) {
        Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
        None => return false,
    };
    if field == 0 || checksum::pseudo(head, inner).is_none_or(|sum| sum.fold() != field) {
        return false;
    }
    let sum = checksum::sum_range(buf, at + usize::from(inner.l4), at + inner.len as usize);
    let value = if inner.is_udp() { sum.finish_udp() } else { sum.finish() };
    match buf.head_mut().data_mut().get_mut(at + field_at..at + field_at + 2) {
        Some(bytes) => {
            bytes.copy_from_slice(&value.to_be_bytes());
            true
        }
        None => false,
    }
}

/// Takes the outer headers away and carries the congestion mark inwards.
pub(super) fn strip(buf: &mut Buf, outer: &Outer, inner: &mut Packet) -> Result<(), DropReason> {
    let mark = inner_ecn(inner, outer.pkt.tos)?;
    if !buf.head_mut().pull_front(outer.inner_at()) {
        return Err(DropReason::Malformed);
    }
    if let Some(mark) = mark {
        ecn::set(buf.head_mut().data_mut(), inner, mark);
    }
    Ok(())
}
