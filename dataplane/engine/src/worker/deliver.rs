//! To a tenant: merge what belongs together, queue the rest as it is.

use std::sync::Arc;
use std::time::Instant;

use culvert_port::{Buf, HoldId, Place, VnetHdr};
use culvert_wire::coalesce::{
    CoalesceConfig, Coalescer, MAX_HEADERS_LEN, Merged, OuterHeaders, OuterKey,
};
use culvert_wire::packet::Packet;
use culvert_wire::segment::GsoKind;
use culvert_wire::{Vni, eth, tcp};

use super::device::{Losses, Role};
use super::offload::{Csum, Gso, Offload};
use super::raised::Raised;
use super::{Slot, Worker, checksum};
use crate::drops::DropReason;
use crate::policy::observe::{Observer, Stage, Step};
use crate::sight::pieces::Pieces;
use crate::sight::trace::Mark;
use crate::tables::{PortIndex, Tables};

/// Segments of a merged frame at most. Each is a buffer or two of a message.
const MAX_MERGED: usize = 64;

/// Flows that may wait for their next segment in one batch.
const MAX_FLOWS: usize = 32;

/// A segment that waits to be merged.
pub enum Piece {
    /// A packet of its own.
    Own {
        /// The packet.
        buf: Buf,
        /// What is still to be done on it.
        off: Offload,
        /// What it is cut into, where it is longer than the tenant's segments.
        raised: Raised,
    },
    /// Part of a packet that the port's device holds.
    Held {
        /// The packet.
        id: HoldId,
        /// Where the segment's Ethernet header is in it.
        start: usize,
        /// As above.
        raised: Raised,
    },
}

/// A segment and where it goes.
pub struct Token {
    port: PortIndex,
    piece: Piece,
    /// When it waits no longer, in microseconds of the worker's clock.
    due_us: u64,
    /// Follows it, where it is traced.
    mark: Option<Arc<Mark>>,
}

/// The coalescer, away while it runs.
pub struct Merging {
    coalescer: Option<Box<Coalescer<Token>>>,
    frames: usize,
    begun: Instant,
}

impl Default for Merging {
    fn default() -> Self {
        let config =
            CoalesceConfig { flows: MAX_FLOWS, max_segs: MAX_MERGED, max_len: 0xffff, udp: false };
        let coalescer = Some(Box::new(Coalescer::new(config)));
        Merging { coalescer, frames: 0, begun: Instant::now() }
    }
}

impl Merging {
    /// Frames that wait in it.
    pub fn held_frames(&self) -> usize {
        self.frames
    }

    /// Whether any does.
    pub fn waits(&self) -> bool {
        self.frames > 0
    }
}

fn outer_key(port: PortIndex, (vni, headers): (Vni, OuterHeaders)) -> OuterKey {
    OuterKey { flow: u64::from(vni.get()) << 16 | u64::from(port), headers }
}

impl Worker {
    /// Delivers a packet to a tenant, by the worker that owns the tenant's port.
    pub(super) fn deliver(&mut self, port: PortIndex, buf: Buf, off: Offload) {
        let Some(entry) = self.tables.port(port) else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        if entry.blocked {
            return self.drop_tenant(port, buf, DropReason::PortBlocked);
        }
        let (worker, mtu) = (entry.worker, entry.mtu);
        if !self.is_own(worker) {
            return self.hand_over_delivery(worker, port, buf, off);
        }
        let Some(slot) = self.tenant_slot(port) else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        match off.gso {
            None => self.deliver_single(port, slot, buf, off, mtu),
            Some((kind, size)) => self.deliver_superframe(port, slot, buf, off, kind, size),
        }
    }

    fn deliver_single(
        &mut self,
        port: PortIndex,
        slot: Slot,
        mut buf: Buf,
        mut off: Offload,
        mtu: u32,
    ) {
        let len = buf.len();
        if len > mtu as usize + l2_len(buf.head().data()) {
            return self.drop_tenant(port, buf, DropReason::ExceedsPortMtu);
        }
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        };
        if matches!(off.csum, Csum::Partial { .. }) && !device.takes_partial() {
            match Packet::parse(buf.head().data(), len) {
                Ok(pkt) => drop(checksum::complete(&mut buf, &pkt, &mut off)),
                Err(error) => return self.drop_tenant(port, buf, error.into()),
            }
        }
        let partial = match off.csum {
            Csum::Partial { start, offset } => Some((start, offset)),
            Csum::Given | Csum::Verified => None,
        };
        let way_out = device.way_out(false);
        self.watch_queued(Role::Tenant(port), &buf, &off);
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.cache.free_buf(buf);
        };
        let mut losses = Losses::default();
        match device.send(buf, partial, &mut self.cache, &mut losses) {
            Ok(()) => {
                self.counters.port(port).tx.count(len);
                self.sight.trace.saw(|| delivered(&self.tables, port, len, way_out));
                self.mark_dirty(slot);
            }
            Err((buf, reason)) => self.drop_tenant(port, buf, reason),
        }
        self.count_losses(Role::Tenant(port), losses);
    }

    /// A packet that the tenant's stack, or its device, cuts itself.
    fn deliver_superframe(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        off: Offload,
        kind: Gso,
        size: u16,
    ) {
        let pkt = match Packet::parse(buf.head().data(), buf.len()) {
            Ok(pkt) => pkt,
            Err(error) => return self.drop_tenant(port, buf, error.into()),
        };
        let Some(kind) = kind.kind() else {
            return self.drop_tenant(port, buf, DropReason::UnknownSuperframe);
        };
        if !matches!(off.csum, Csum::Partial { .. }) {
            return self.drop_tenant(port, buf, DropReason::NotSegmentable);
        }
        let len = buf.len();
        let mut losses = Losses::default();
        if self.slot_is_empty(slot) {
            return self.drop_tenant(port, buf, DropReason::PortGone);
        }
        self.watch_queued(Role::Tenant(port), &buf, &off);
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.cache.free_buf(buf);
        };
        device.make_room(buf.frame_count() + 1, 1, &mut self.cache, &mut losses);
        let id = device.hold(buf);
        let mut message = device.message(gso_header(kind, size, &pkt));
        message.slice(id, 0..len);
        let finished = message.finish();
        self.count_message(port, slot, finished.is_ok(), len);
        self.count_losses(Role::Tenant(port), losses);
        self.flush_slot(slot);
    }

    fn slot_is_empty(&self, slot: Slot) -> bool {
        self.devices.get(slot).is_none_or(Option::is_none)
    }

    fn count_message(&mut self, port: PortIndex, slot: Slot, finished: bool, len: usize) {
        if finished {
            self.counters.port(port).tx.count(len);
            let way_out = self.way_out_of(slot);
            self.sight.trace.saw(|| delivered(&self.tables, port, len, way_out));
        } else {
            self.lose_unseen(Role::Tenant(port), DropReason::TxRefused);
        }
        self.mark_dirty(slot);
    }

    /// Offers a packet of its own with a checksum known to be right to the coalescer.
    pub(super) fn merge_own(
        &mut self,
        port: PortIndex,
        key: (Vni, OuterHeaders),
        piece: Piece,
        pkt: &Packet,
    ) {
        let mut headers = [0; MAX_HEADERS_LEN];
        let len = usize::from(pkt.payload).min(MAX_HEADERS_LEN);
        if let Piece::Own { buf, .. } = &piece
            && let (Some(to), Some(from)) = (headers.get_mut(..len), buf.head().data().get(..len))
        {
            to.copy_from_slice(from);
            return self.merge(port, key, piece, &headers[..len], pkt, pkt.is_udp());
        }
        self.deliver_alone(port, piece, &headers, pkt);
    }

    /// Offers a segment to the coalescer; what it does not take is delivered at once.
    pub(super) fn merge(
        &mut self,
        port: PortIndex,
        key: (Vni, OuterHeaders),
        piece: Piece,
        head: &[u8],
        pkt: &Packet,
        udp: bool,
    ) {
        let outer = outer_key(port, key);
        let mark = self.sight.mark();
        let due_us = match (&piece, self.tables.merge_hold_us) {
            (Piece::Own { .. }, hold @ 1..) => self.merging_clock() + u64::from(hold),
            // What refers to a packet of the device does not outlive the device's next flush.
            _ => 0,
        };
        let token = Token { port, piece, due_us, mark };
        let Some(mut coalescer) = self.merging.coalescer.take() else {
            return self.forget(token);
        };
        self.merging.frames += token.piece.frames();
        let back = coalescer
            .offer_as(udp, head, pkt, outer, token, &mut |merged| self.deliver_merged(merged));
        self.merging.coalescer = Some(coalescer);
        let Some(token) = back else {
            self.sight.lead_on();
            return self.sight.trace.saw(|| Step::new(Stage::Merge, "waits"));
        };
        self.sight.trace.saw(|| Step::new(Stage::Merge, "pass").because("not to be merged"));
        self.merging.frames -= token.piece.frames();
        self.deliver_alone(port, token.piece, head, pkt);
    }

    fn merging_clock(&self) -> u64 {
        self.polling.now().saturating_duration_since(self.merging.begun).as_micros() as u64
    }

    /// Delivers everything that waits to be merged.
    pub(super) fn flush_merging(&mut self) {
        self.flush_merging_if(|_| true);
    }

    /// Delivers what has waited for its time: everything, where nothing is held beyond its batch.
    pub(super) fn flush_due(&mut self) {
        if self.merging.waits() {
            let now = self.merging_clock();
            self.flush_merging_if(|token| token.due_us <= now);
        }
    }

    /// Delivers the flows that refer to packets of a device, before it is flushed.
    pub(super) fn flush_held(&mut self) {
        self.flush_merging_if(|token| matches!(token.piece, Piece::Held { .. }));
    }

    /// Delivers all flows of a port.
    pub(super) fn flush_merging_of(&mut self, port: PortIndex) {
        self.flush_merging_if(|token| token.port == port);
    }

    fn flush_merging_if(&mut self, wanted: impl Fn(&Token) -> bool) {
        let Some(mut coalescer) = self.merging.coalescer.take() else { return };
        if coalescer.held_flows() > 0 {
            coalescer.flush_if(wanted, &mut |merged| self.deliver_merged(merged));
        }
        self.merging.coalescer = Some(coalescer);
    }

    /// Delivers what waits of a packet's flow, so that the packet can follow. No other flow is disturbed.
    pub(super) fn flush_flow(
        &mut self,
        port: PortIndex,
        key: (Vni, OuterHeaders),
        head: &[u8],
        pkt: &Packet,
    ) {
        let Some(mut coalescer) = self.merging.coalescer.take() else { return };
        if coalescer.held_flows() > 0 {
            let outer = outer_key(port, key);
            coalescer.flush_flow(head, pkt, outer, &mut |merged| self.deliver_merged(merged));
        }
        self.merging.coalescer = Some(coalescer);
    }

    /// Delivers what was merged.
    fn deliver_merged(&mut self, merged: Merged<'_, Token>) {
        // The packet at hand is another one.
        let aside = self.put_aside();
        if merged.segs == 1 {
            self.deliver_unmerged(merged);
        } else {
            self.deliver_segments(merged);
        }
        self.take_up(aside);
    }

    /// A segment that waited in vain for others.
    fn deliver_unmerged(&mut self, merged: Merged<'_, Token>) {
        let Merged { headers, packet, mut tokens, .. } = merged;
        let Some(held) = tokens.next() else { return };
        self.merging.frames -= held.token.piece.frames();
        let Token { port, piece, mark, .. } = held.token;
        self.resume_trace(mark);
        self.sight.trace.saw(|| Step::new(Stage::Merge, "pass").because("no other came"));
        self.deliver_alone(port, piece, headers, &packet);
        self.leave_trace();
    }

    fn deliver_segments(&mut self, merged: Merged<'_, Token>) {
        let Merged { headers, packet, kind, mut gso_size, segs, tokens, .. } = merged;
        let mut port = None;
        let mut slot = 0;
        let mut losses = Losses::default();
        let mut parts = std::mem::take(&mut self.parts);
        let mut marks = Vec::new();
        for held in tokens {
            debug_assert!(held.payload_len > 0);
            self.merging.frames -= held.token.piece.frames();
            port = Some(held.token.port);
            // All state the same, or they would not have been merged.
            gso_size = held.token.piece.raised().cut(gso_size);
            let Some(at) = self.tenant_slot(held.token.port) else {
                self.forget(held.token);
                continue;
            };
            slot = at;
            let Some(Some(device)) = self.devices.get_mut(slot) else {
                self.forget(held.token);
                continue;
            };
            marks.extend(held.token.mark);
            let (id, start) = match held.token.piece {
                Piece::Own { buf, .. } => {
                    if parts.is_empty() {
                        device.make_room(
                            usize::from(segs) * 3 + 1,
                            1,
                            &mut self.cache,
                            &mut losses,
                        );
                    }
                    (device.hold(buf), 0)
                }
                Piece::Held { id, start, .. } => (id, start),
            };
            let at = start + usize::from(held.payload_offset);
            parts.push((id, at..at + usize::from(held.payload_len)));
        }
        if self.sight.on
            && let Some(port) = port
        {
            let shown = self.bytes_of(slot, headers, &parts);
            self.watch_queued_pieces(Role::Tenant(port), &Pieces::from(&shown[..]), gso_size);
        }
        if let (Some(port), Some(Some(device)), false) =
            (port, self.devices.get_mut(slot), parts.is_empty())
        {
            let mut message = device.message(gso_header(kind, gso_size, &packet));
            message.copy(headers);
            let mut at = (None, Place::default());
            for (id, range) in parts.drain(..) {
                if at.0 != Some(id) {
                    at = (Some(id), Place::default());
                }
                message.slice_at(&mut at.1, id, range);
            }
            let len = message.len();
            let finished = message.finish();
            self.count_message(port, slot, finished.is_ok(), len);
            self.count_losses(Role::Tenant(port), losses);
            for mark in marks {
                self.resume_trace(Some(mark));
                self.see_merged(port, slot, segs, finished.is_ok(), len);
                self.leave_trace();
            }
        }
        parts.clear();
        self.parts = parts;
    }

    fn see_merged(&mut self, port: PortIndex, slot: Slot, segs: u16, sent: bool, len: usize) {
        let way_out = self.way_out_of(slot);
        self.sight
            .trace
            .saw(|| Step::new(Stage::Merge, "merged").because(format!("{segs} segments in one")));
        self.sight.trace.saw(|| match sent {
            true => delivered(&self.tables, port, len, way_out),
            false => Step::drop(Stage::Drop, DropReason::TxRefused),
        });
    }

    /// Headers, and parts of packets that a device holds, in one.
    fn bytes_of(
        &self,
        slot: Slot,
        headers: &[u8],
        parts: &[(HoldId, std::ops::Range<usize>)],
    ) -> Vec<u8> {
        let mut bytes = headers.to_vec();
        let device = self.devices.get(slot).and_then(Option::as_ref);
        for (id, range) in parts {
            if let Some(buf) = device.and_then(|device| device.held(*id)) {
                buf.slice_range(range.clone(), |piece| bytes.extend_from_slice(piece));
            }
        }
        bytes
    }

    fn way_out_of(&self, slot: Slot) -> &'static str {
        let device = self.devices.get(slot).and_then(Option::as_ref);
        device.map_or("", |device| device.way_out(true))
    }

    fn forget(&mut self, token: Token) {
        self.resume_trace(token.mark);
        match token.piece {
            Piece::Own { buf, .. } => self.drop_tenant(token.port, buf, DropReason::PortGone),
            Piece::Held { .. } => {
                self.lose_unseen(Role::Tenant(token.port), DropReason::PortGone);
            }
        }
        self.leave_trace();
    }

    /// Sends part of a held packet as a frame of its own, behind `headers`.
    pub(super) fn send_held(
        &mut self,
        port: PortIndex,
        id: HoldId,
        headers: &[u8],
        range: std::ops::Range<usize>,
        header: VnetHdr,
    ) {
        let found = self.tenant_slot(port);
        let Some((slot, device)) =
            found.and_then(|slot| Some((slot, self.devices.get_mut(slot)?.as_mut()?)))
        else {
            // The packet went with the device that held it.
            return self.lose_unseen(Role::Tenant(port), DropReason::PortGone);
        };
        let mut message = device.message(header);
        message.copy(headers);
        message.slice(id, range.clone());
        let len = message.len();
        let finished = message.finish();
        if self.sight.on && finished.is_ok() {
            let shown = self.bytes_of(slot, headers, &[(id, range)]);
            self.watch_queued_pieces(
                Role::Tenant(port),
                &Pieces::from(&shown[..]),
                header.gso_size,
            );
        }
        self.count_message(port, slot, finished.is_ok(), len);
    }

    /// Gives a packet to the port's device, so that messages can refer to parts of it. There will
    /// be room for `messages` of them.
    pub(super) fn hold_for(
        &mut self,
        port: PortIndex,
        messages: usize,
        buf: Buf,
    ) -> Option<(Slot, HoldId)> {
        let slot = self.tenant_slot(port);
        let Some((slot, device)) =
            slot.and_then(|slot| Some((slot, self.devices.get_mut(slot)?.as_mut()?)))
        else {
            self.drop_tenant(port, buf, DropReason::PortGone);
            return None;
        };
        let mut losses = Losses::default();
        let pieces = messages * 3 + buf.frame_count();
        device.make_room(pieces, messages, &mut self.cache, &mut losses);
        let id = device.hold(buf);
        self.count_losses(Role::Tenant(port), losses);
        self.mark_dirty(slot);
        Some((slot, id))
    }
}

impl Piece {
    fn frames(&self) -> usize {
        match self {
            Piece::Own { buf, .. } => buf.frame_count(),
            Piece::Held { .. } => 0,
        }
    }

    fn raised(&self) -> Raised {
        match self {
            Piece::Own { raised, .. } | Piece::Held { raised, .. } => *raised,
        }
    }
}

/// A packet is queued for a tenant.
fn delivered(tables: &Tables, port: PortIndex, len: usize, way_out: &str) -> Step {
    Step::new(Stage::Delivery, "pass")
        .by(tables.name_of_port(port))
        .because(format!("{len} bytes, {way_out}"))
}

/// The header that tells the kernel how to cut a frame, and where its partial checksum is.
pub(super) fn gso_header(kind: GsoKind, size: u16, pkt: &Packet) -> VnetHdr {
    let (gso_type, csum_offset) = match kind {
        GsoKind::TcpV4 => (VnetHdr::GSO_TCPV4, 16),
        GsoKind::TcpV6 => (VnetHdr::GSO_TCPV6, 16),
        GsoKind::UdpL4 => (VnetHdr::GSO_UDP_L4, 6),
    };
    let ecn = if pkt.tcp_flags & tcp::flags::CWR != 0 && kind != GsoKind::UdpL4 {
        VnetHdr::ECN
    } else {
        0
    };
    VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: gso_type | ecn,
        hdr_len: pkt.payload,
        gso_size: size,
        csum_start: pkt.l4,
        csum_offset,
    }
}

/// Bytes in front of the network header.
fn l2_len(head: &[u8]) -> usize {
    let mut len = eth::HEADER_LEN;
    while let Some(&[high, low]) = head.get(len - 2..len) {
        let tagged = eth::VlanTag::is_tpid(u16::from_be_bytes([high, low]));
        if !tagged || len >= eth::HEADER_LEN + eth::MAX_TAGS * eth::TAG_LEN {
            break;
        }
        len += eth::TAG_LEN;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::tests::{buf_of, worker_with};

    #[test]
    fn a_segment_that_cannot_be_merged_for_want_of_the_coalescer_is_counted_and_freed() {
        let mut worker = worker_with(Tables::default(), 64);
        let frame = [2; 60];
        let buf = buf_of(&mut worker, &frame);
        let pkt = Packet::parse(&frame, frame.len()).unwrap();
        let free = worker.cache.len();
        worker.merging.coalescer = None;
        let (off, raised) = (Offload::default(), Raised::default());
        let piece = Piece::Own { buf, off, raised };
        let key = (Vni::MIN, OuterHeaders::default());
        worker.merge(3, key, piece, &frame, &pkt, false);
        assert_eq!(worker.counters.port(3).dropped(DropReason::PortGone), 1);
        assert_eq!(worker.cache.len(), free + 1);
        assert_eq!(worker.merging.held_frames(), 0);
    }
}
