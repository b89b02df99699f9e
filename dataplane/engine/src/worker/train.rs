//! Trains from the underlay: several tunnel packets that came uncut, as one UDP superframe.

use std::ops::Range;

use culvert_port::{Buf, HoldId, Place};
use culvert_wire::coalesce::OuterHeaders;
use culvert_wire::ecn;
use culvert_wire::format::{self, Formats};
use culvert_wire::packet::Packet;

use super::deliver::Piece;
use super::device::Role;
use super::ingress::{Outer, inner_ecn, port_of};
use super::offload::{Csum, Gso, Offload};
use super::raised::Raised;
use super::{Slot, Worker, checksum};
use crate::drops::DropReason;
use crate::limits::MAX_SEGMENTS;
use crate::policy::ingress::Verdict;
use crate::sight::pieces::Pieces;
use crate::tables::{LinkIndex, PortIndex};

/// Bytes of an inner packet's headers that are looked at where they are not contiguous.
const HEAD_MAX: usize = 256;

/// Bytes of a tunnel header at most.
const TUNNEL_MAX: usize = 64;

impl Worker {
    /// Where the kernel does not say, a tunnel frame above the device's MTU is a train: its first
    /// inner packet tells the size of the others.
    pub(super) fn guess_train(
        &self,
        link: LinkIndex,
        buf: &Buf,
        outer: &Outer,
    ) -> Option<(Gso, u16)> {
        let device = self.devices.get(self.link_slot(link)?)?.as_ref()?;
        if outer.pkt.len.saturating_sub(outer.pkt.l3.into()) <= device.mtu {
            return None;
        }
        let at = outer.inner_at();
        let inner = Packet::parse(buf.head().data().get(at..)?, buf.len().checked_sub(at)?).ok()?;
        let size = u16::try_from(outer.tunnel_len + inner.len as usize).ok()?;
        Some((Gso::UdpL4, size))
    }

    /// Several tunnel packets of one size that came uncut as one UDP superframe. Their payloads
    /// are merged without moving a byte: the packet is held, and messages refer to parts of it.
    pub(super) fn ingress_train(
        &mut self,
        link: LinkIndex,
        buf: Buf,
        outer: &Outer,
        off: Offload,
        size: u16,
    ) {
        let (start, size) = (usize::from(outer.pkt.payload), usize::from(size));
        let count = buf.len().saturating_sub(start).div_ceil(size.max(1));
        if size <= outer.tunnel_len || count > MAX_SEGMENTS {
            return self.drop_underlay(link, buf, DropReason::UnknownSuperframe);
        }
        // On no wire yet: the sender's kernel left the outer sum to a device that never saw it.
        let mut outer_off = off;
        checksum::infer_partial(&buf, &outer.pkt, &mut outer_off);
        if !matches!(outer_off.csum, Csum::Partial { start, .. } if start == outer.pkt.l4) {
            return self.drop_underlay(link, buf, DropReason::BadOuterChecksum);
        }
        let mut scratch = [0; HEAD_MAX];
        let first = start..buf.len().min(start + size);
        let mut place = Place::default();
        let formats = self.tables.formats().clone();
        let verdict = match read_piece(&formats, &buf, &mut place, outer, first, &mut scratch) {
            Ok(piece) => self.ingress_flow(outer, piece.head, &piece.pkt).verdict,
            Err(reason) => return self.drop_underlay(link, buf, reason),
        };
        let port = match verdict {
            Verdict::Deliver(port) => port,
            Verdict::Drop(reason) => return self.drop_underlay(link, buf, reason),
            Verdict::Trap => return self.trap(Role::Underlay(link), buf, "ingress"),
            Verdict::Flood(_) => {
                return self.drop_underlay(link, buf, DropReason::NotSegmentable);
            }
        };
        let Some(buf) = self.not_elsewhere(link, buf, off, verdict) else { return };
        // Pieces refer to the packet that the port's device is about to hold, and join none of packets of their own.
        self.flush_merging_of(port);
        let len = buf.len();
        let Some((slot, id)) = self.hold_for(port, count, buf) else { return };
        let mut at = start;
        while at < len {
            let range = at..len.min(at + size);
            at = range.end;
            let (to, shown) = ((port, slot, id), range.clone());
            if let Err(reason) = self.train_piece(link, to, outer, range, &mut place) {
                self.lose_piece(link, slot, id, shown, reason);
            }
        }
        self.flush_held();
        // At once, while the payload that was summed is still in the cache.
        self.flush_slot(slot);
    }

    /// Counts a piece of a train that ends here, and shows it.
    fn lose_piece(
        &mut self,
        link: LinkIndex,
        slot: Slot,
        id: HoldId,
        range: Range<usize>,
        reason: DropReason,
    ) {
        self.counters.link(link).drop(reason);
        if self.sight.looks() {
            let device = self.devices.get(slot).and_then(Option::as_ref);
            let held = device.and_then(|device| device.held(id));
            let bytes = held.map(|buf| Pieces::of_range(buf, range).to_vec(usize::MAX));
            let bytes = bytes.unwrap_or_default();
            self.see_drop(Role::Underlay(link), reason, &Pieces::from(&bytes[..]));
        }
    }

    fn train_piece(
        &mut self,
        link: LinkIndex,
        (port, slot, id): (PortIndex, Slot, HoldId),
        outer: &Outer,
        range: Range<usize>,
        place: &mut Place,
    ) -> Result<(), DropReason> {
        let mut scratch = [0; HEAD_MAX];
        let inner_at = range.start + outer.tunnel_len;
        let end = range.end;
        let held = self.devices.get(slot).and_then(Option::as_ref).and_then(|d| d.held(id));
        let held = held.ok_or(DropReason::PortGone)?;
        let piece = read_piece(self.tables.formats(), held, place, outer, range, &mut scratch)?;
        let (head, mut inner, right) = (piece.head, piece.pkt, piece.right);
        let raised = Raised::of(piece.mss, &inner).map_err(|_| DropReason::BadTunnelHeader)?;
        let headers = OuterHeaders { digest: piece.digest, ..outer.headers };
        let key = Outer { headers, ..*outer }.key();
        let flow = self.ingress_flow(outer, head, &inner);
        if self.sight.on {
            self.count_inner(outer.flow_source(), head, &inner, port_of(flow.verdict));
        }
        let mark = inner_ecn(&inner, outer.pkt.tos)?;
        let fits = self.fits(port, &inner, raised);
        if flow.verdict == Verdict::Deliver(port) && right && fits && mark.is_none() {
            let off = raised.describe(&inner, Offload::default());
            if let Err(reason) = self.admit_inner(port, flow, head, &inner, &off) {
                self.lose_unseen(Role::Tenant(port), reason);
                return Ok(());
            }
            let place = Piece::Held { id, start: inner_at, raised };
            self.merge(port, key, place, head, &inner, true);
            return Ok(());
        }
        // Anything unusual goes its own way, in frames of its own, behind what was merged so far.
        let held = self.devices.get(slot).and_then(Option::as_ref).and_then(|d| d.held(id));
        let held = held.ok_or(DropReason::PortGone)?;
        let mut copy = super::encap::copy_range(&mut self.cache, held, inner_at..end)
            .ok_or(DropReason::NoFrames)?;
        if let Some(mark) = mark {
            ecn::set(copy.head_mut().data_mut(), &mut inner, mark);
        }
        self.flush_flow(port, key, copy.head().data(), &inner);
        let off = Offload { known: true, ..Offload::default() };
        self.dispatch(link, copy, &inner, flow, off);
        Ok(())
    }
}

/// One piece of a train: its headers, and whether its checksum is right.
struct TrainPiece<'a> {
    head: &'a [u8],
    pkt: Packet,
    right: bool,
    digest: u32,
    /// The tenant's MSS, where it is stated.
    mss: u16,
}

fn read_piece<'a>(
    formats: &Formats,
    buf: &Buf,
    place: &mut Place,
    outer: &Outer,
    range: Range<usize>,
    scratch: &'a mut [u8; HEAD_MAX],
) -> Result<TrainPiece<'a>, DropReason> {
    let mut tunnel = [0; TUNNEL_MAX];
    let kept = buf.copy_to_at(place, range.start, &mut tunnel).min(range.len());
    let format = formats.get(outer.format).ok_or(DropReason::BadTunnelHeader)?;
    let (digest, mss) = match format::decap(format, tunnel.get(..kept).unwrap_or_default()) {
        Ok(found) if found.vni == outer.vni && found.header_len == outer.tunnel_len => {
            (found.digest, found.facts.mss)
        }
        _ => return Err(DropReason::BadTunnelHeader),
    };
    let at = range.start + outer.tunnel_len;
    let len = range.end.saturating_sub(at);
    let kept = buf.copy_to_at(place, at, scratch).min(len);
    let head: &'a [u8] = scratch.get(..kept).unwrap_or_default();
    let pkt = Packet::parse(head, len)?;
    let (from, to) = (at + usize::from(pkt.l4), at + pkt.len as usize);
    let right = checksum::is_right(head, &pkt, checksum::sum_range_at(place, buf, from, to));
    Ok(TrainPiece { head, pkt, right, digest, mss })
}
