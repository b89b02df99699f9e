//! A run of a frame's payload becomes a packet for a tenant.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use culvert_port::Buf;
use culvert_wire::coalesce::OuterHeaders;
use culvert_wire::ecn;
use culvert_wire::format::{FormatIndex, SHARD};
use culvert_wire::packet::{Frag, Packet};
use culvert_wire::segment::{GsoKind, Segmenter};
use culvert_wire::shard::Kind;

use super::super::encap::{OUTER_ROOM, build_segment, copy_range};
use super::super::ingress::{IngressFlow, Outer, inner_ecn, port_of};
use super::super::offload::{Csum, Gso, Offload};
use super::super::{Worker, checksum};
use super::keep::keep;
use super::record::{RunHead, Token};
use crate::drops::DropReason;
use crate::policy::ingress::Verdict;
use crate::policy::observe::{Observer, Stage, Step};
use crate::sight::trace::Mark;
use crate::tables::LinkIndex;

/// A run that is being put together.
pub(super) struct Running {
    head: RunHead,
    link: LinkIndex,
    buf: Option<Buf>,
    // A piece could not be copied: the rest would be at wrong places.
    broken: bool,
    packets: usize,
    marks: Vec<Arc<Mark>>,
}

impl Worker {
    pub(super) fn begin_run(&mut self, head: RunHead) -> Running {
        Running { head, link: 0, buf: None, broken: false, packets: 0, marks: Vec::new() }
    }

    /// Puts bytes of a packet that waits behind what is there: the packet itself without all else, or, where
    /// it is needed again, a copy.
    pub(super) fn add_piece(
        &mut self,
        run: &mut Running,
        token: Token,
        last: bool,
        ranges: &[Range<usize>],
    ) {
        run.packets += 1;
        if last {
            let Some(waiting) = self.shards.take(token) else { return };
            run.link = waiting.link;
            run.marks.extend(waiting.mark);
            return keep(waiting.buf, ranges, &mut self.cache, &mut run.buf);
        }
        let Some(waiting) = self.shards.get(token) else { return };
        run.link = waiting.link;
        for range in ranges {
            match copy_range(&mut self.cache, &waiting.buf, range.clone()) {
                Some(copy) => append(&mut run.buf, copy),
                None => run.broken = true,
            }
        }
    }

    /// Delivers a run; its headers are among `headers`.
    pub(super) fn deliver_run(&mut self, run: Running, headers: &[u8]) {
        let Running { head, link, buf, broken, packets, marks } = run;
        let Some(mut buf) = buf else { return };
        let mut marks = marks.into_iter();
        self.resume_trace(marks.next());
        self.sight.trace.saw(|| {
            let RunHead { frame, payload, vni, .. } = &head;
            let from = format!("bytes {} to {} of frame {frame:#010x}", payload.start, payload.end);
            Step::new(Stage::Rebuild, "run")
                .by("shard")
                .because(format!("{from}, of {packets} packets; vni {vni} from {}", head.src))
        });
        let headers = headers.get(head.headers.clone()).unwrap_or_default();
        if broken || !self.put_headers(&mut buf, headers) {
            self.drop_underlay(link, buf, DropReason::NoFrames);
        } else if head.kind == Kind::Frame {
            self.deliver_frame(link, buf, &head);
        } else {
            self.deliver_part(link, buf, &head);
        }
        self.leave_trace();
        for mark in marks {
            self.resume_trace(Some(mark));
            self.sight.trace.saw(|| Step::new(Stage::Rebuild, "joined").by("shard"));
            self.leave_trace();
        }
    }

    fn put_headers(&mut self, buf: &mut Buf, headers: &[u8]) -> bool {
        if let Some(room) = buf.head_mut().push_front(headers.len()) {
            room.copy_from_slice(headers);
            return true;
        }
        let Some(mut frame) = self.cache.alloc() else { return false };
        frame.reset(OUTER_ROOM);
        if !frame.extend(headers) {
            self.cache.free(frame);
            return false;
        }
        let rest = std::mem::replace(buf, Buf::from(frame));
        let (head, tail) = rest.into_parts();
        std::iter::once(head).chain(tail).for_each(|frame| buf.push(frame));
        true
    }

    /// A frame that was sent as it is.
    fn deliver_frame(&mut self, link: LinkIndex, mut buf: Buf, head: &RunHead) {
        let mut inner = match Packet::parse(buf.head().data(), buf.len()) {
            Ok(inner) => inner,
            Err(error) => return self.drop_underlay(link, buf, error.into()),
        };
        let outer = self.outer_of(head);
        let flow = self.flow_of(&outer, &buf, &inner);
        match inner_ecn(&inner, head.outer_ecn) {
            Ok(None) => {}
            Ok(Some(mark)) => ecn::set(buf.head_mut().data_mut(), &mut inner, mark),
            Err(reason) => return self.drop_underlay(link, buf, reason),
        }
        let mut off = Offload { known: true, ..Offload::default() };
        if head.checksum {
            let offset = checksum::field_offset(inner.proto);
            let Some(offset) = offset.filter(|_| inner.frag == Frag::None) else {
                return self.drop_underlay(link, buf, DropReason::ShardBadBlock);
            };
            off.csum = Csum::Partial { start: inner.l4, offset };
        }
        let merged = port_of(flow.verdict).is_some_and(|port| self.is_merged(port, &inner));
        if !merged || !self.is_here(flow.verdict) {
            return self.dispatch(link, buf, &inner, flow, off);
        }
        let right = checksum::complete(&mut buf, &inner, &mut off)
            || inner.frag == Frag::None && checksum::verify(&buf, &inner);
        self.finish_single(link, buf, &outer, &inner, flow, (off, right));
    }

    /// Payload of a superframe behind headers that fit it.
    fn deliver_part(&mut self, link: LinkIndex, buf: Buf, head: &RunHead) {
        let inner = head.packet;
        let outer = self.outer_of(head);
        let flow = self.flow_of(&outer, &buf, &inner);
        let mut off = Offload { known: true, ..Offload::default() };
        if head.checksum {
            let offset = if inner.is_tcp() { 16 } else { 6 };
            off.csum = Csum::Partial { start: inner.l4, offset };
        }
        if let Verdict::Deliver(port) = flow.verdict {
            self.flush_flow(port, outer.key(), buf.head().data(), &inner);
        }
        let Some(kind) = head.gso else {
            return self.dispatch(link, buf, &inner, flow, off);
        };
        if matches!(flow.verdict, Verdict::Flood(_)) {
            return self.drop_underlay(link, buf, DropReason::NotSegmentable);
        }
        if let Verdict::Deliver(port) = flow.verdict {
            let headers = u32::from(inner.payload.saturating_sub(inner.l3));
            let mtu = self.tables.port(port).map_or(0, |entry| entry.mtu);
            if headers + u32::from(head.mss) > mtu {
                return self.drop_underlay(link, buf, DropReason::ExceedsPortMtu);
            }
        }
        if !head.checksum {
            return self.deliver_datagrams(link, buf, &inner, (kind, head.mss), flow);
        }
        let kind = match kind {
            GsoKind::TcpV4 => Gso::TcpV4,
            GsoKind::TcpV6 => Gso::TcpV6,
            GsoKind::UdpL4 => Gso::UdpL4,
        };
        off.gso = Some((kind, head.mss));
        self.dispatch(link, buf, &inner, flow, off);
    }

    /// Datagrams without checksums, which no kernel takes in one.
    fn deliver_datagrams(
        &mut self,
        link: LinkIndex,
        buf: Buf,
        inner: &Packet,
        (kind, mss): (GsoKind, u16),
        flow: IngressFlow,
    ) {
        let Ok(plan) = Segmenter::new(buf.head().data(), inner, kind, mss) else {
            return self.drop_underlay(link, buf, DropReason::NotSegmentable);
        };
        for i in 0..plan.count() {
            let datagram = build_segment(&mut self.cache, &buf, &plan, i);
            let Some((datagram, _)) = datagram else {
                self.lose_unseen(super::super::device::Role::Underlay(link), DropReason::NoFrames);
                break;
            };
            match Packet::parse(datagram.head().data(), datagram.len()) {
                Ok(pkt) => {
                    let off = Offload { known: true, ..Offload::default() };
                    self.dispatch(link, datagram, &pkt, flow, off);
                }
                Err(error) => self.drop_underlay(link, datagram, error.into()),
            }
        }
        self.cache.free_buf(buf);
    }

    fn flow_of(&mut self, outer: &Outer, buf: &Buf, inner: &Packet) -> IngressFlow {
        let head = buf.head().data();
        let flow = self.ingress_flow(outer, head, inner);
        if self.sight.on {
            self.count_inner(outer.flow_source(), head, inner, port_of(flow.verdict));
        }
        flow
    }

    /// Whether this worker delivers it.
    fn is_here(&self, verdict: Verdict) -> bool {
        let Verdict::Deliver(port) = verdict else { return false };
        self.tables.port(port).is_some_and(|entry| self.is_own(entry.worker))
    }

    /// What the rules have to know of the outer packets.
    fn outer_of(&self, head: &RunHead) -> Outer {
        let index = self.tables.formats().by_name(&SHARD.name);
        Outer {
            pkt: Packet { tos: head.outer_ecn, ..Packet::EMPTY },
            from: IpAddr::clone(&head.src),
            vni: head.vni,
            format: index.map_or(FormatIndex::VXLAN, |(index, _)| index),
            tunnel_len: 0,
            checksum_at: None,
            is_stream: false,
            facts: Default::default(),
            headers: OuterHeaders::from_vtep(head.src, head.outer_ecn),
        }
    }
}

/// Puts a packet behind what is there.
fn append(whole: &mut Option<Buf>, part: Buf) {
    let Some(whole) = whole else {
        *whole = Some(part);
        return;
    };
    let (head, tail) = part.into_parts();
    std::iter::once(head).chain(tail).for_each(|frame| whole.push(frame));
}
