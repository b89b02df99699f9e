//! To a remote VTEP: cut to the path's size, put the outer headers in front, queue.
//!
//! A superframe leaves in one of two ways. On a device that segments UDP itself it goes as a
//! *train*: one message of the packet socket whose payload is every segment with its own inner
//! headers, and which the device cuts at segment boundaries. Elsewhere it is cut into AF_XDP
//! frames, the copy of the payload fused with its checksum.

use std::ops::Range;

use culvert_port::{Buf, Frame, FrameCache, HoldId, Message, Place, VnetHdr};
use culvert_wire::checksum::{Sum, copy_and_sum};
use culvert_wire::encap::{OuterChecksum, OuterFrame, Position, inner_sum_from_headers};
use culvert_wire::format::{Facts, Outer as Transport};
use culvert_wire::fragment::Fragmenter;
use culvert_wire::packet::Packet;
use culvert_wire::segment::{GsoKind, Segmenter};

use super::device::{Losses, Role};
use super::egress::above_mtu;
use super::offload::{Csum, Gso, Offload};
use super::raised::MSS_MIN;
use super::tunnel::Tunnel;
use super::{Slot, Worker, checksum};
use crate::drops::DropReason;
use crate::limits::MAX_SEGMENTS;
use crate::policy::observe::{Observer, Stage, Step};
use crate::shared::Handoff;
use crate::sight::pieces::Pieces;
use crate::tables::{PortIndex, Tables};

/// Room in front of a frame that we fill: outer headers, and what a driver may want.
pub(super) const OUTER_ROOM: usize = 192;

/// Bytes of outer headers at most, tunnel header included.
pub(super) const OUTER_MAX: usize = culvert_wire::encap::MAX_LEN;

/// Bytes of inner headers at most that can be laid out per segment.
pub(super) const INNER_MAX: usize = 256;

/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: u16 = 6;

/// Where a packet that was found too big was going.
#[derive(Copy, Clone, Debug)]
pub enum Exit<'a> {
    /// To a tenant of this host.
    Local(PortIndex),
    /// To a remote VTEP.
    Tunnel(&'a Tunnel),
}

impl Worker {
    /// Sends a tenant's packet to a remote VTEP.
    pub(super) fn forward_remote(
        &mut self,
        port: PortIndex,
        mut buf: Buf,
        pkt: Packet,
        mut off: Offload,
        tunnel: &Tunnel,
    ) {
        let Some(slot) = self.link_slot(tunnel.link) else {
            return self.hand_over_encap(port, buf, pkt, off, tunnel);
        };
        checksum::infer_partial(&buf, &pkt, &mut off);
        if let Some((kind, size)) = off.gso {
            return self.cut(port, slot, buf, &pkt, off, (kind, size), tunnel);
        }
        let ip_len = pkt.len.saturating_sub(pkt.l3.into());
        if buf.len() as u32 > tunnel.frame_max || ip_len > tunnel.ip_mtu(pkt.l3) {
            let mtu = tunnel.ip_mtu(pkt.l3);
            self.sight.trace.saw(|| above_mtu(ip_len, mtu, name_of_way(&self.tables, tunnel)));
            return self.too_big(port, buf, &pkt, off, mtu, Exit::Tunnel(tunnel));
        }
        let right = checksum::complete(&mut buf, &pkt, &mut off);
        if right {
            self.sight.trace.saw(|| Step::new(Stage::Checksum, "completed"));
        }
        let head = buf.head().data();
        let inner = if right && pkt.len == pkt.frame_len {
            inner_sum_from_headers(head, &pkt)
        } else {
            checksum::sum_range(&buf, 0, buf.len())
        };
        let (position, facts) = (Position::WHOLE, Facts::default());
        self.send_inner(port, slot, buf, &pkt, (inner, position, facts), tunnel);
    }

    /// Puts the outer headers in front of an inner frame of known sum and queues it. They say where it is in
    /// its superframe, and state facts of it.
    fn send_inner(
        &mut self,
        port: PortIndex,
        slot: Slot,
        mut buf: Buf,
        pkt: &Packet,
        (inner, position, facts): (Sum, Position, Facts),
        tunnel: &Tunnel,
    ) {
        if let Some(path) = &tunnel.shards {
            return self.send_shard_frame(port, slot, buf, pkt, inner, (tunnel, path));
        }
        let len = buf.len();
        let ip_id = self.next_ip_id();
        let number = if tunnel.template.is_stream() { self.next_stream_number() } else { 0 };
        let Some(room) = buf.head_mut().push_front(tunnel.template.len()) else {
            return self.drop_tenant(port, buf, DropReason::HeadersTooLong);
        };
        let sum = OuterChecksum::Full { inner };
        let outer = OuterFrame {
            number,
            position,
            facts,
            ..OuterFrame::new(len, pkt.flow_hash as u16, pkt.tos, ip_id, sum)
        };
        tunnel.template.emit(room, &outer);
        self.sight.trace.saw(|| {
            let outer = tunnel.template.len();
            Step::named(Stage::Encapsulation, self.tables.formats().name(tunnel.format))
                .by(name_of_way(&self.tables, tunnel))
                .because(format!("{outer} bytes of outer headers in front of {len}"))
        });
        self.send_outer(port, slot, buf);
    }

    pub(super) fn send_outer(&mut self, port: PortIndex, slot: Slot, buf: Buf) {
        let len = buf.len();
        let mut losses = Losses::default();
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.drop_tenant(port, buf, DropReason::LinkDown);
        };
        let role = device.role;
        let way_out = device.way_out(false);
        if self.sight.on {
            self.watch_queued(role, &buf, &Offload::default());
        }
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.cache.free_buf(buf);
        };
        match device.send(buf, None, &mut self.cache, &mut losses) {
            Ok(()) => {
                self.counters_of(role).tx.count(len);
                self.sight.trace.saw(|| Step::new(Stage::Queue, "pass").because(way_out));
                self.mark_dirty(slot);
            }
            Err((buf, reason)) => self.drop_tenant(port, buf, reason),
        }
        self.count_losses(role, losses);
    }

    fn next_ip_id(&mut self) -> u16 {
        take_ip_ids(&mut self.entropy, 1)
    }

    fn hand_over_encap(
        &mut self,
        port: PortIndex,
        buf: Buf,
        pkt: Packet,
        off: Offload,
        tunnel: &Tunnel,
    ) {
        let workers = self.tables.link_workers(tunnel.link);
        let choice = (pkt.flow_hash >> 8) as usize % workers.len().max(1);
        let Some(worker) = workers.get(choice).copied() else {
            return self.drop_tenant(port, buf, DropReason::LinkDown);
        };
        if self.is_own(worker) {
            // The tables still name us, but the device is being closed or opened again.
            return self.drop_tenant(port, buf, DropReason::LinkDown);
        }
        let tunnel = tunnel.clone();
        let packet = Handoff::Encap { port, buf, pkt, off, tunnel };
        self.hand_over(worker, Role::Tenant(port), packet);
    }

    /// Cuts a superframe.
    #[allow(clippy::too_many_arguments)] // one packet's whole context
    fn cut(
        &mut self,
        port: PortIndex,
        slot: Slot,
        mut buf: Buf,
        pkt: &Packet,
        mut off: Offload,
        (kind, size): (Gso, u16),
        tunnel: &Tunnel,
    ) {
        let Some(kind) = kind.kind() else {
            return self.drop_tenant(port, buf, DropReason::UnknownSuperframe);
        };
        if !checksum::ready_to_cut(&mut buf, pkt, &mut off) {
            return self.drop_tenant(port, buf, DropReason::BadSuperframeChecksum);
        }
        if tunnel.template.is_stream() && kind != GsoKind::UdpL4 {
            let mss = tunnel.mss(pkt, size).max(MSS_MIN);
            return match &tunnel.shards {
                Some(path) => {
                    self.send_shards(port, slot, buf, pkt, (kind, mss), (tunnel, path));
                }
                None => self.send_streams(port, slot, buf, pkt, (kind, mss), tunnel),
            };
        }
        let mtu = tunnel.ip_mtu(pkt.l3);
        let room = mtu.saturating_sub(u32::from(pkt.payload.saturating_sub(pkt.l3)));
        let fits = u32::from(size) <= room;
        // TCP may be cut finer than it asked for; a datagram's size is its meaning.
        let mss = if fits || kind == GsoKind::UdpL4 { size } else { room as u16 };
        if let (Some(path), true) = (&tunnel.shards, fits) {
            return self.send_shards(port, slot, buf, pkt, (kind, mss), (tunnel, path));
        }
        let raised = tunnel.raise(pkt, size).filter(|_| kind != GsoKind::UdpL4);
        let (tunnel, facts, mss) = match raised {
            Some((raised, own, mss)) => (raised, Facts { mss: own, ..Facts::default() }, mss),
            None => (tunnel, Facts::default(), mss),
        };
        let plan = match Segmenter::new(buf.head().data(), pkt, kind, mss) {
            Ok(plan) if plan.headers_len() <= INNER_MAX => plan,
            _ => return self.drop_tenant(port, buf, DropReason::NotSegmentable),
        };
        let sends_trains = matches!(tunnel.template.outer(), Transport::Udp { .. })
            && self.leaves_whole(slot, tunnel);
        self.sight.trace.saw(|| {
            let each = format!("{} segments of up to {mss} bytes", plan.count());
            let asked = match (raised, fits) {
                (Some((_, own, _)), _) => format!(", MSS {own} stated"),
                (None, true) => String::new(),
                (None, false) => ", too big for the path".to_owned(),
            };
            let outcome = match sends_trains && plan.count() > 1 {
                true => "trains",
                false => "frames",
            };
            Step::new(Stage::Segmentation, outcome).because(format!("{each}{asked}"))
        });
        if !fits && kind == GsoKind::UdpL4 {
            return self.cut_oversize_datagrams(port, &buf, &plan, mtu, tunnel).finish(self, buf);
        }
        if sends_trains && plan.count() > 1 {
            self.send_trains(port, slot, buf, pkt, (&plan, facts), tunnel);
        } else {
            self.send_segments(port, slot, buf, pkt, (&plan, facts), tunnel);
        }
    }

    /// Whether a superframe leaves uncut, for the device or the kernel behind its packet socket to cut.
    pub(super) fn leaves_whole(&self, slot: Slot, tunnel: &Tunnel) -> bool {
        let device = self.devices.get(slot).and_then(Option::as_ref);
        device.is_some_and(|device| device.cutters.of(&tunnel.template).takes_whole())
    }

    /// Cuts into AF_XDP frames.
    fn send_segments(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        pkt: &Packet,
        (plan, facts): (&Segmenter, Facts),
        tunnel: &Tunnel,
    ) {
        for i in 0..plan.count() {
            match build_segment(&mut self.cache, &buf, plan, i) {
                Some((segment, sum)) => {
                    let of = (sum, position(plan, i), facts);
                    self.send_inner(port, slot, segment, pkt, of, tunnel);
                }
                None => {
                    let lost = (plan.count() - i) as u64;
                    self.lose(Role::Tenant(port), DropReason::NoFrames, lost, &buf);
                    break;
                }
            }
        }
        self.cache.free_buf(buf);
    }

    /// Lays the segments out one after the other, each with its inner headers, in messages that
    /// the device cuts or passes on whole.
    fn send_trains(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        pkt: &Packet,
        (plan, facts): (&Segmenter, Facts),
        tunnel: &Tunnel,
    ) {
        let layout = TrainLayout::new(plan, tunnel);
        let mut outer = [0u8; OUTER_MAX];
        let outer_len = tunnel.template.len();
        let (Some(outer), true) = (outer.get_mut(..outer_len), layout.per_train > 0) else {
            return self.drop_tenant(port, buf, DropReason::NotSegmentable);
        };
        let mut losses = Losses::default();
        let pieces = plan.count().div_ceil(layout.per_train) * 2 + plan.count() * 4;
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.drop_tenant(port, buf, DropReason::LinkDown);
        };
        let trains = plan.count().div_ceil(layout.per_train);
        device.make_room(pieces, trains, &mut self.cache, &mut losses);
        let role = device.role;
        let mut sent = 0u64;
        let mut bytes = 0u64;
        let mut failed = 0u64;
        let mut shown: Vec<Vec<u8>> = Vec::new();
        let held = device.hold(buf);
        let mut place = Place::default();
        let mut first = 0;
        while first < plan.count() {
            let train = first..plan.count().min(first + layout.per_train);
            let packets = train.len() as u64;
            first = train.end;
            let payload = layout.payload_len(plan, train.clone());
            let mut whole = OuterFrame::new(
                payload - layout.tunnel_len,
                pkt.flow_hash as u16,
                pkt.tos,
                take_ip_ids(&mut self.entropy, train.len()),
                OuterChecksum::Partial,
            );
            whole.facts = facts;
            tunnel.template.emit(outer, &whole);
            let (l4_headers, tunnel_header) = outer.split_at_mut(outer_len - layout.tunnel_len);
            let udp_start = (l4_headers.len() - 8) as u16;
            let single = train.len() == 1;
            let header = VnetHdr {
                flags: VnetHdr::NEEDS_CSUM,
                gso_type: if single { VnetHdr::GSO_NONE } else { VnetHdr::GSO_UDP_L4 },
                hdr_len: l4_headers.len() as u16,
                gso_size: if single { 0 } else { layout.segment_len as u16 },
                csum_start: udp_start,
                csum_offset: UDP_CHECKSUM,
            };
            let mut message = device.message(header);
            message.copy(l4_headers);
            if self.sight.on {
                shown.push(l4_headers.to_vec());
            }
            let mut inner = [0u8; INNER_MAX];
            for i in train {
                let range = shifted(plan.payload_range(i), pkt.payload);
                let Some(inner) = inner.get_mut(..plan.headers_len()) else { break };
                let Some(source) = message.held(held) else { break };
                let sum = checksum::sum_range_at(&mut place, source, range.start, range.end);
                plan.emit(source.head().data(), i, sum, inner);
                let own = OuterFrame {
                    inner_len: inner.len() + range.len(),
                    position: position(plan, i),
                    ..whole
                };
                tunnel.template.emit_tunnel_header(tunnel_header, &own);
                message.copy(tunnel_header);
                message.copy(inner);
                if let Some(shown) = shown.last_mut() {
                    shown.extend_from_slice(tunnel_header);
                    shown.extend_from_slice(inner);
                    source_range(&message, held, range.clone(), shown);
                }
                message.slice_at(&mut place, held, range);
            }
            match message.finish() {
                Ok(()) => {
                    sent += 1;
                    bytes += (l4_headers.len() + payload) as u64;
                }
                Err(_) => {
                    failed += packets;
                    shown.pop();
                }
            }
        }
        for train in &shown {
            let size = layout.segment_len as u16;
            self.watch_queued_pieces(role, &Pieces::from(&train[..]), size);
        }
        self.sight.trace.saw(|| {
            Step::named(Stage::Encapsulation, self.tables.formats().name(tunnel.format))
                .by(name_of_way(&self.tables, tunnel))
                .because(format!("{sent} trains, {bytes} bytes"))
        });
        self.sight.trace.saw(|| Step::new(Stage::Queue, "pass").because("packet_socket"));
        let counters = self.counters_of(role);
        counters.tx.packets.add(sent);
        counters.tx.bytes.add(bytes);
        self.counters.port(port).drop_many(DropReason::TxRefused, failed);
        if failed > 0 && self.sight.looks() {
            self.see_drop(Role::Tenant(port), DropReason::TxRefused, &Pieces::default());
        }
        self.count_losses(role, losses);
        // At once, while the payload that was summed is still in the cache.
        self.flush_slot(slot);
    }

    /// Datagrams of a superframe that are each above the path MTU: every one for itself.
    pub(super) fn cut_oversize_datagrams(
        &mut self,
        port: PortIndex,
        buf: &Buf,
        plan: &Segmenter,
        mtu: u32,
        tunnel: &Tunnel,
    ) -> Done {
        for i in 0..plan.count() {
            let Some((segment, _)) = build_segment(&mut self.cache, buf, plan, i) else {
                let lost = (plan.count() - i) as u64;
                self.lose(Role::Tenant(port), DropReason::NoFrames, lost, buf);
                break;
            };
            let off = Offload { csum: Csum::Given, known: true, ..Offload::default() };
            match Packet::parse(segment.head().data(), segment.len()) {
                Ok(pkt) => self.too_big(port, segment, &pkt, off, mtu, Exit::Tunnel(tunnel)),
                Err(error) => self.drop_tenant(port, segment, error.into()),
            }
        }
        Done
    }

    /// A packet above the MTU of its way: fragmented where IPv4 allows it, else its sender is told.
    pub(super) fn too_big(
        &mut self,
        port: PortIndex,
        mut buf: Buf,
        pkt: &Packet,
        mut off: Offload,
        mtu: u32,
        exit: Exit<'_>,
    ) {
        // IPv6, DF, or nothing to gain: the sender has to send less.
        let Ok(plan) = Fragmenter::new(buf.head().data(), pkt, mtu as usize) else {
            return self.refuse_too_big(port, buf, pkt, off, mtu, exit);
        };
        checksum::complete(&mut buf, pkt, &mut off);
        self.sight.trace.saw(|| {
            Step::new(Stage::Mtu, "fragmented").because(format!("{} fragments", plan.count()))
        });
        for i in 0..plan.count() {
            let range = shifted(plan.payload_range(i), pkt.l4);
            let header_len = plan.headers_len(i);
            let made = build(&mut self.cache, &buf, header_len, range, |header, _| {
                plan.emit(buf.head().data(), i, header);
            });
            let Some((fragment, _)) = made else {
                self.lose(Role::Tenant(port), DropReason::NoFrames, 1, &buf);
                break;
            };
            let off = Offload { known: true, ..Offload::default() };
            match exit {
                Exit::Local(to) => match Packet::parse(fragment.head().data(), fragment.len()) {
                    Ok(pkt) => self.deliver_judged(to, fragment, &pkt, off, None),
                    Err(error) => self.drop_tenant(port, fragment, error.into()),
                },
                Exit::Tunnel(tunnel) => {
                    match Packet::parse(fragment.head().data(), fragment.len()) {
                        Ok(pkt) => self.forward_remote(port, fragment, pkt, off, tunnel),
                        Err(error) => self.drop_tenant(port, fragment, error.into()),
                    }
                }
            }
        }
        self.cache.free_buf(buf);
    }
}

/// The first of so many identifications in a row, for packets that are cut out of one.
pub(super) fn take_ip_ids(last: &mut u16, packets: usize) -> u16 {
    let first = last.wrapping_add(1);
    *last = last.wrapping_add(packets as u16);
    first
}

/// Marks that the caller still owns the superframe.
pub(super) struct Done;

impl Done {
    pub(super) fn finish(self, worker: &mut Worker, buf: Buf) {
        worker.cache.free_buf(buf);
    }
}

/// How many segments go into one train, and what each is made of.
struct TrainLayout {
    tunnel_len: usize,
    segment_len: usize,
    per_train: usize,
}

impl TrainLayout {
    fn new(plan: &Segmenter, tunnel: &Tunnel) -> Self {
        let tunnel_len = tunnel.template.len() - tunnel.template.tunnel_offset();
        let segment_len = tunnel_len + plan.headers_len() + plan.payload_range(0).len();
        // The outer IP length covers the train: 65,535 less UDP and, over IPv4, the IP header.
        let room = 65_535 - 8 - 20;
        let per_train = (room / segment_len.max(1)).min(MAX_SEGMENTS);
        TrainLayout { tunnel_len, segment_len, per_train }
    }

    fn payload_len(&self, plan: &Segmenter, train: Range<usize>) -> usize {
        let last = plan.payload_range(train.end - 1).len();
        (train.len() - 1) * self.segment_len + self.tunnel_len + plan.headers_len() + last
    }
}

/// The place of a segment.
fn position(plan: &Segmenter, i: usize) -> Position {
    let advance = plan.payload_range(i).start;
    Position { index: i, last: i + 1 == plan.count(), advance }
}

/// Appends part of a packet that a message holds.
pub(super) fn source_range(
    message: &Message<'_>,
    id: HoldId,
    range: Range<usize>,
    out: &mut Vec<u8>,
) {
    if let Some(buf) = message.held(id) {
        buf.slice_range(range, |piece| out.extend_from_slice(piece));
    }
}

pub(super) fn name_of_way(tables: &Tables, tunnel: &Tunnel) -> String {
    tables.vtep(tunnel.vtep).map_or_else(String::new, |vtep| format!("vtep {}", vtep.ip))
}

pub(super) fn shifted(range: Range<usize>, by: u16) -> Range<usize> {
    range.start + usize::from(by)..range.end + usize::from(by)
}

/// Builds one segment of a superframe in frames of its own. Returns it with the sum of its bytes.
pub(super) fn build_segment(
    cache: &mut FrameCache,
    buf: &Buf,
    plan: &Segmenter,
    i: usize,
) -> Option<(Buf, Sum)> {
    let range = shifted(plan.payload_range(i), plan.headers_len() as u16);
    let mut whole = Sum::default();
    let (segment, _) = build(cache, buf, plan.headers_len(), range, |header, payload_sum| {
        plan.emit(buf.head().data(), i, payload_sum, header);
        whole = if plan.has_checksum() {
            plan.segment_sum(header)
        } else {
            plan.segment_sum_with(header, payload_sum)
        };
    })?;
    Some((segment, whole))
}

/// Builds a packet of a header, which `emit` writes, and a range of another packet's bytes.
pub(super) fn build(
    cache: &mut FrameCache,
    source: &Buf,
    header_len: usize,
    range: Range<usize>,
    emit: impl FnOnce(&mut [u8], Sum),
) -> Option<(Buf, Sum)> {
    let mut left = range.len();
    let mut frame = cache.alloc()?;
    frame.reset(OUTER_ROOM);
    let first = left.min(frame.tailroom().saturating_sub(header_len));
    if !frame.set_len(header_len + first) {
        cache.free(frame);
        return None;
    }
    let mut out = Buf::from(frame);
    left -= first;
    while left > 0 {
        let Some(mut frame) = cache.alloc() else {
            cache.free_buf(out);
            return None;
        };
        frame.reset(0);
        let n = left.min(frame.tailroom());
        if !frame.set_len(n) {
            cache.free(frame);
            cache.free_buf(out);
            return None;
        }
        left -= n;
        out.push(frame);
    }
    let sum = fill(&mut out, source, header_len, range);
    let Some(header) = out.head_mut().data_mut().get_mut(..header_len) else {
        cache.free_buf(out);
        return None;
    };
    emit(header, sum);
    Some((out, sum))
}

/// Copies a range of `source` behind the header of `out`, and sums it on the way.
fn fill(out: &mut Buf, source: &Buf, header_len: usize, range: Range<usize>) -> Sum {
    let mut sum = Sum::default();
    let (mut frame, mut at) = (0usize, header_len);
    source.slice_range(range, |mut piece| {
        while !piece.is_empty() {
            let target: &mut Frame = match frame.checked_sub(1) {
                None => out.head_mut(),
                Some(i) => match out.tail_mut().get_mut(i) {
                    Some(frame) => frame,
                    None => return,
                },
            };
            let room = target.data_mut().get_mut(at..).unwrap_or_default();
            let n = room.len().min(piece.len());
            if n == 0 {
                frame += 1;
                at = 0;
                continue;
            }
            let (now, later) = piece.split_at(n);
            sum = sum.add_sum(copy_and_sum(&mut room[..n], now));
            at += n;
            piece = later;
        }
    });
    sum
}

/// A copy of part of a packet in frames of its own.
pub(super) fn copy_range(cache: &mut FrameCache, buf: &Buf, range: Range<usize>) -> Option<Buf> {
    build(cache, buf, 0, range, |_, _| {}).map(|(copy, _)| copy)
}
