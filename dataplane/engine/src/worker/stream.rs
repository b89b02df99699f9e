//! Formats whose header rides on the first segment only: cut by the bytes, and put together again.
//!
//! A frame that was put together looks like one that nothing ever cut: the outer headers state its whole
//! length, and the outer checksum is left to a device that never saw it. So it goes on, to another worker
//! too, as if it had come so.

use std::time::Instant;

use culvert_port::{Buf, FrameCache, Place, VnetHdr};
use culvert_wire::checksum::Sum;
use culvert_wire::encap::{OuterChecksum, OuterFrame, Position};
use culvert_wire::format::{Facts, FormatIndex, Stream};
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::reassemble::{
    ReassembleError, Reassembler, StreamKey, StreamPart, insert_tag, max_stream_len, widen,
};
use culvert_wire::segment::{GsoKind, Segmenter};

use super::device::{Losses, Role};
use super::encap::{INNER_MAX, OUTER_MAX, build, name_of_way, shifted, take_ip_ids};
use super::ingress::{Outer, port_of, strip};
use super::offload::{Csum, Gso, Offload};
use super::raised::MSS_MIN;
use super::tunnel::Tunnel;
use super::{Slot, Worker, checksum};
use crate::drops::DropReason;
use crate::policy::ingress::Verdict;
use crate::policy::observe::{Observer, Stage, Step};
use crate::sight::pieces::Pieces;
use crate::tables::{LinkIndex, PortIndex};

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: u16 = 16;

/// Milliseconds of sleep while segments wait for others.
pub(super) const SLEEP_MS: u16 = 20;

/// Frames of which not all segments have come.
pub(super) struct Streams {
    /// None until the first segment comes: most workers never see one.
    reassembler: Option<Box<Reassembler<(LinkIndex, Buf)>>>,
    lost: Vec<(ReassembleError, LinkIndex, Buf)>,
    frames: usize,
    begun: Instant,
    number: u32,
}

impl Streams {
    pub(super) fn new() -> Self {
        // Numbers of frames begin anywhere, so that those of a worker before are not taken for these.
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
        let (lost, begun) = (Vec::new(), Instant::now());
        Streams { reassembler: None, lost, frames: 0, begun, number: seed as u32 }
    }

    /// Arena frames that wait.
    pub(super) const fn held_frames(&self) -> usize {
        self.frames
    }

    /// Whether anything waits.
    pub(super) fn waits(&self) -> bool {
        self.frames > 0
    }

    fn next_number(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.number
    }
}

impl Worker {
    /// The number of the next frame that is sent.
    pub(super) fn next_stream_number(&mut self) -> u32 {
        self.streams.next_number()
    }

    /// Takes a segment of a frame; where it was the last that was missing, the frame goes on.
    pub(super) fn join_stream(
        &mut self,
        link: LinkIndex,
        mut buf: Buf,
        pkt: &Packet,
        off: Offload,
        (format, stream, part): (FormatIndex, Stream, StreamPart),
    ) {
        self.sight.trace.saw(|| {
            let StreamPart { frame, length, offset, len } = part;
            let bytes = format!("frame {frame:#x}, {len} bytes from {offset} of {length}");
            Step::new(Stage::Outer, "segment").by(self.tables.formats().name(format)).because(bytes)
        });
        let Some(from) = pkt.src_ip(buf.head().data()) else {
            return self.drop_underlay(link, buf, DropReason::NotTunnel);
        };
        // Nothing of a stranger is held, who could push out what others sent.
        if !self.tables.knows(&from) {
            return self.drop_underlay(link, buf, DropReason::UnknownVtep);
        }
        if !outer_is_right(&buf, pkt, off) {
            return self.drop_underlay(link, buf, DropReason::BadOuterChecksum);
        }
        if part.length > max_stream_len(pkt.ip) {
            return self.drop_underlay(link, buf, DropReason::StreamOutOfRange);
        }
        let first = part.offset == 0;
        if !first && !buf.trim_front(pkt.payload.into(), &mut self.cache) {
            return self.drop_underlay(link, buf, DropReason::Malformed);
        }
        let path = u64::from(pkt.flow_hash) << 8 | self.tables.formats().position(format) as u64;
        let key = StreamKey { from, path, frame: part.frame };
        let now = self.polling.now().duration_since(self.streams.begun).as_micros() as u64;
        let Streams { reassembler, lost, frames, .. } = &mut self.streams;
        let reassembler = reassembler.get_or_insert_default();
        *frames += buf.frame_count();
        let mut whole: Option<Buf> = None;
        reassembler.offer(
            now,
            key,
            part,
            (link, buf),
            &mut |parts| {
                for (.., (_, part)) in parts {
                    *frames -= part.frame_count();
                    match &mut whole {
                        None => whole = Some(part),
                        Some(whole) => append(whole, part, &mut self.cache),
                    }
                }
            },
            &mut |error, (link, buf)| lost.push((error, link, buf)),
        );
        self.count_lost();
        let Some(mut whole) = whole else { return };
        match uncut(&mut whole, &stream, part.length) {
            Some(off) => self.ingress_here(link, whole, off),
            None => self.drop_underlay(link, whole, DropReason::Malformed),
        }
    }

    /// Gives up frames whose segments did not come in time.
    pub(super) fn expire_streams(&mut self) {
        let now = self.polling.now().duration_since(self.streams.begun).as_micros() as u64;
        let Streams { reassembler: Some(reassembler), lost, .. } = &mut self.streams else {
            return;
        };
        reassembler.expire(now, &mut |error, (link, buf)| lost.push((error, link, buf)));
        self.count_lost();
    }

    /// Gives up all frames.
    pub(super) fn clear_streams(&mut self) {
        let Streams { reassembler: Some(reassembler), lost, .. } = &mut self.streams else {
            return;
        };
        reassembler.clear(&mut |error, (link, buf)| lost.push((error, link, buf)));
        self.count_lost();
    }

    fn count_lost(&mut self) {
        while let Some((error, link, buf)) = self.streams.lost.pop() {
            self.streams.frames -= buf.frame_count();
            self.drop_underlay(link, buf, error.into());
        }
    }

    /// A frame that came as a whole, or was put together, and of which its header states something.
    pub(super) fn ingress_stream(
        &mut self,
        link: LinkIndex,
        mut buf: Buf,
        outer: &Outer,
        off: Offload,
    ) {
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
        let Some(kept) = self.not_elsewhere(link, buf, off, flow.verdict) else { return };
        buf = kept;
        if !outer_is_right(&buf, &outer.pkt, off) {
            return self.drop_underlay(link, buf, DropReason::BadOuterChecksum);
        }
        let stripped = strip(&mut buf, outer, &mut inner);
        self.sight.trace.saw(|| Step::of(Stage::Decapsulation, stripped));
        if let Err(reason) = stripped {
            return self.drop_underlay(link, buf, reason);
        }
        let Facts { mss, l4_offset, checksum_partial, vlan, .. } = outer.facts;
        let mut off = Offload { known: true, ..Offload::default() };
        if checksum_partial {
            let offset = checksum::field_offset(inner.proto);
            let fits = u16::from(l4_offset) == inner.l4 && inner.frag == Frag::None;
            let Some(offset) = offset.filter(|_| fits) else {
                return self.drop_underlay(link, buf, DropReason::BadTunnelHeader);
            };
            off.csum = Csum::Partial { start: inner.l4, offset };
        }
        if let Some(tci) = vlan {
            match tagged(&mut buf, tci) {
                Some(pkt) => (inner, off) = (pkt, off.moved(4)),
                None => return self.drop_underlay(link, buf, DropReason::Malformed),
            }
        }
        if mss == 0 || !inner.is_tcp() || inner.payload_len() <= usize::from(mss) {
            let right =
                checksum::complete(&mut buf, &inner, &mut off) || checksum::verify(&buf, &inner);
            return self.finish_single(link, buf, outer, &inner, flow, (off, right));
        }
        if mss < MSS_MIN {
            return self.drop_underlay(link, buf, DropReason::BadTunnelHeader);
        }
        let kind = if inner.ip == IpKind::V4 { Gso::TcpV4 } else { Gso::TcpV6 };
        off.gso = Some((kind, mss));
        if !checksum::ready_to_cut(&mut buf, &inner, &mut off) {
            return self.drop_underlay(link, buf, DropReason::BadSuperframeChecksum);
        }
        if matches!(flow.verdict, Verdict::Flood(_)) {
            return self.drop_underlay(link, buf, DropReason::NotSegmentable);
        }
        if let Verdict::Deliver(port) = flow.verdict {
            let headers = u32::from(inner.payload.saturating_sub(inner.l3));
            let mtu = self.tables.port(port).map_or(0, |entry| entry.mtu);
            if headers + u32::from(mss) > mtu {
                return self.drop_underlay(link, buf, DropReason::ExceedsPortMtu);
            }
            self.flush_flow(port, outer.key(), buf.head().data(), &inner);
        }
        self.dispatch(link, buf, &inner, flow, off);
    }

    /// Sends a superframe of TCP as streams: one, unless it is longer than the outer headers can state.
    #[allow(clippy::too_many_arguments)] // one packet's whole context
    pub(super) fn send_streams(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        pkt: &Packet,
        (kind, mss): (GsoKind, u16),
        tunnel: &Tunnel,
    ) {
        let room = tunnel.template.max_inner_len().saturating_sub(pkt.headers_len());
        let each = room / usize::from(mss.max(1)) * usize::from(mss);
        let plan =
            u16::try_from(each).map(|each| Segmenter::new(buf.head().data(), pkt, kind, each));
        let prefix = tunnel.template.len() - tunnel.template.tunnel_offset() + pkt.headers_len();
        let plan = match plan {
            Ok(Ok(plan))
                if plan.headers_len() <= INNER_MAX
                    && pkt.l4 <= u8::MAX.into()
                    && prefix < usize::from(tunnel.segment_max) =>
            {
                plan
            }
            _ => return self.drop_tenant(port, buf, DropReason::NotSegmentable),
        };
        let whole = self.leaves_whole(slot, tunnel);
        self.sight.trace.saw(|| {
            let outcome = if whole { "trains" } else { "frames" };
            let streams = if plan.count() == 1 { "stream" } else { "streams" };
            let each = format!("{} {streams}, MSS {mss}", plan.count());
            Step::new(Stage::Segmentation, outcome).because(each)
        });
        self.sight.trace.saw(|| {
            Step::named(Stage::Encapsulation, self.tables.formats().name(tunnel.format))
                .by(name_of_way(&self.tables, tunnel))
                .because(format!("cut into {} bytes", tunnel.segment_max))
        });
        let mut first = [0u8; OUTER_MAX + INNER_MAX];
        let heads: Vec<_> = (0..plan.count())
            .map(|i| {
                let len = self.stream_head(&buf, pkt, &plan, i, mss, tunnel, &mut first);
                first.get(..len).unwrap_or_default().to_vec()
            })
            .collect();
        if whole {
            return self.send_uncut(port, slot, buf, pkt, &plan, tunnel, &heads);
        }
        for (i, head) in heads.iter().enumerate() {
            let payload = shifted(plan.payload_range(i), pkt.payload);
            let total = head.len() + payload.len();
            let cut = Packet::parse(head, total).ok().and_then(|outer| {
                let kind = if tunnel.template.is_v6() { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
                Segmenter::new(head, &outer, kind, tunnel.segment_max).ok()
            });
            let Some(cut) = cut else {
                self.lose(Role::Tenant(port), DropReason::NotSegmentable, 1, &buf);
                continue;
            };
            for j in 0..cut.count() {
                match stream_segment(&mut self.cache, &buf, head, &cut, j, payload.start) {
                    Some(segment) => self.send_outer(port, slot, segment),
                    None => self.lose(Role::Tenant(port), DropReason::NoFrames, 1, &buf),
                }
            }
        }
        self.cache.free_buf(buf);
    }

    /// Writes outer headers, tunnel header and inner headers of the `i`th stream; answers their length. The
    /// checksums are left to who cuts the stream, and to the far tenant's stack.
    #[allow(clippy::too_many_arguments)] // one packet's whole context
    fn stream_head(
        &mut self,
        buf: &Buf,
        pkt: &Packet,
        plan: &Segmenter,
        i: usize,
        mss: u16,
        tunnel: &Tunnel,
        out: &mut [u8],
    ) -> usize {
        let (outer_len, inner_len) = (tunnel.template.len(), plan.headers_len());
        let payload = plan.payload_range(i).len();
        let Some((outer, inner)) = out
            .get_mut(..outer_len + inner_len)
            .and_then(|out| out.split_at_mut_checked(outer_len))
        else {
            return 0;
        };
        let head = buf.head().data();
        plan.emit(head, i, Sum::default(), inner);
        let l4_len = (inner_len - usize::from(pkt.l4) + payload) as u32;
        let at = usize::from(pkt.l4) + usize::from(TCP_CHECKSUM);
        if let Some(field) = inner.get_mut(at..at + 2) {
            field.copy_from_slice(&pkt.pseudo_header(head, l4_len).fold().to_be_bytes());
        }
        let stream_len = outer_len - tunnel.template.tunnel_offset() + inner_len + payload;
        let segments = stream_len.div_ceil(usize::from(tunnel.segment_max).max(1));
        let frame = OuterFrame {
            inner_len: inner_len + payload,
            entropy: pkt.flow_hash as u16,
            inner_tos: pkt.tos,
            ip_id: take_ip_ids(&mut self.entropy, segments),
            number: self.next_stream_number(),
            csum: OuterChecksum::Partial,
            facts: Facts {
                mss: if payload > usize::from(mss) { mss } else { 0 },
                l4_offset: pkt.l4 as u8,
                checksum_partial: true,
                ipv4: pkt.ip == IpKind::V4,
                tcp: true,
                ..Facts::default()
            },
            position: Position::WHOLE,
        };
        tunnel.template.emit(outer, &frame);
        outer_len + inner_len
    }

    /// Gives streams to the packet socket, for the device to cut as it cuts TCP.
    #[allow(clippy::too_many_arguments)] // one packet's whole context
    fn send_uncut(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        pkt: &Packet,
        plan: &Segmenter,
        tunnel: &Tunnel,
        heads: &[Vec<u8>],
    ) {
        let mut losses = Losses::default();
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.drop_tenant(port, buf, DropReason::LinkDown);
        };
        let pieces = buf.frame_count() + heads.len() * 4;
        device.make_room(pieces, heads.len(), &mut self.cache, &mut losses);
        let role = device.role;
        let headers = tunnel.template.tunnel_offset();
        let held = device.hold(buf);
        let mut place = Place::default();
        let (mut sent, mut bytes, mut failed) = (0u64, 0u64, 0u64);
        let mut shown: Vec<Vec<u8>> = Vec::new();
        for (i, head) in heads.iter().enumerate() {
            let payload = shifted(plan.payload_range(i), pkt.payload);
            let total = head.len() + payload.len();
            let single = total - headers <= usize::from(tunnel.segment_max);
            let gso_type = match (single, tunnel.template.is_v6()) {
                (true, _) => VnetHdr::GSO_NONE,
                (false, false) => VnetHdr::GSO_TCPV4,
                (false, true) => VnetHdr::GSO_TCPV6,
            };
            let mut message = device.message(VnetHdr {
                flags: VnetHdr::NEEDS_CSUM,
                gso_type,
                hdr_len: headers as u16,
                gso_size: if single { 0 } else { tunnel.segment_max },
                csum_start: tunnel.template.l4_offset() as u16,
                csum_offset: TCP_CHECKSUM,
            });
            message.copy(head);
            if self.sight.on {
                let mut all = head.clone();
                super::encap::source_range(&message, held, payload.clone(), &mut all);
                shown.push(all);
            }
            message.slice_at(&mut place, held, payload);
            match message.finish() {
                Ok(()) => {
                    sent += 1;
                    bytes += total as u64;
                }
                Err(_) => {
                    failed += 1;
                    shown.pop();
                }
            }
        }
        for stream in &shown {
            self.watch_queued_pieces(role, &Pieces::from(&stream[..]), tunnel.segment_max);
        }
        self.sight.trace.saw(|| Step::new(Stage::Queue, "pass").because("packet_socket"));
        let counters = self.counters_of(role);
        counters.tx.packets.add(sent);
        counters.tx.bytes.add(bytes);
        self.counters.port(port).drop_many(DropReason::TxRefused, failed);
        if failed > 0 && self.sight.looks() {
            self.see_drop(Role::Tenant(port), DropReason::TxRefused, &Pieces::default());
        }
        self.count_losses(role, losses);
        // At once, while the payload is still in the cache.
        self.flush_slot(slot);
    }
}

/// Whether the outer checksum stands, or was never on a wire.
fn outer_is_right(buf: &Buf, pkt: &Packet, mut off: Offload) -> bool {
    checksum::infer_partial(buf, pkt, &mut off);
    match off.csum {
        Csum::Verified => true,
        Csum::Partial { start, .. } if start == pkt.l4 => true,
        _ => checksum::verify(buf, pkt),
    }
}

/// Puts a part behind what is there.
fn append(whole: &mut Buf, part: Buf, cache: &mut FrameCache) {
    let (head, tail) = part.into_parts();
    for frame in std::iter::once(head).chain(tail) {
        match frame.is_empty() {
            true => cache.free(frame),
            false => whole.push(frame),
        }
    }
}

/// Makes the outer headers those of a packet that was never cut.
fn uncut(whole: &mut Buf, stream: &Stream, length: u32) -> Option<Offload> {
    let len = whole.len();
    let head = whole.head_mut().data_mut();
    // The first segment states its own length only.
    let pkt = Packet::parse(head, len).ok()?;
    widen(head, &pkt, stream, length)?;
    let csum = Csum::Partial { start: pkt.l4, offset: TCP_CHECKSUM };
    Some(Offload { csum, known: true, ..Offload::default() })
}

/// Puts a VLAN tag into an inner frame that has none.
fn tagged(buf: &mut Buf, tci: u16) -> Option<Packet> {
    buf.head_mut().push_front(4)?;
    insert_tag(buf.head_mut().data_mut(), tci);
    Packet::parse(buf.head().data(), buf.len()).ok()
}

/// Builds the `j`th segment of a stream: outer headers, what it has of the stream's own head, and what it has
/// of the payload, which starts at `payload` in `buf`.
fn stream_segment(
    cache: &mut FrameCache,
    buf: &Buf,
    head: &[u8],
    cut: &Segmenter,
    j: usize,
    payload: usize,
) -> Option<Buf> {
    let headers = cut.headers_len();
    let prefix = head.get(headers..)?;
    let range = cut.payload_range(j);
    let own = prefix.get(range.start.min(prefix.len())..range.end.min(prefix.len()))?;
    let from = |at: usize| at.saturating_sub(prefix.len()) + payload;
    let rest = from(range.start)..from(range.end);
    let made = build(cache, buf, headers + own.len(), rest, |out, sum| {
        let Some((outer, room)) = out.split_at_mut_checked(headers) else { return };
        room.copy_from_slice(own);
        cut.emit(head, j, Sum::default().add(own).add_sum(sum), outer);
    });
    made.map(|(segment, _)| segment)
}
