//! A tenant's packet becomes a stream: cut here, or sent whole for the device to cut.

use culvert_port::{Buf, Place, VnetHdr};
use culvert_wire::checksum::Sum;
use culvert_wire::packet::Packet;
use culvert_wire::segment::GsoKind;
use culvert_wire::shard::block::MAX_TEMPLATE_LEN;
use culvert_wire::shard::encode::{Content, EncodeError, Encoded, Path, Piece, Stamp, Superframe};

use super::super::device::{Losses, Role};
use super::super::encap::{build, name_of_way, shifted, source_range};
use super::super::tunnel::Tunnel;
use super::super::{Slot, Worker};
use crate::drops::DropReason;
use crate::policy::observe::{Observer, Stage, Step};
use crate::sight::pieces::Pieces;
use crate::tables::PortIndex;

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: u16 = 16;

/// Pieces of the stream of one frame at most, beside those of its packet: headers, shares, and what they
/// part.
const PIECES: usize = 40;

impl Worker {
    /// Sends an inner frame of known sum that is not cut: one segment, behind its block.
    pub(in crate::worker) fn send_shard_frame(
        &mut self,
        port: PortIndex,
        slot: Slot,
        mut buf: Buf,
        pkt: &Packet,
        inner: Sum,
        (tunnel, path): (&Tunnel, &Path),
    ) {
        let len = buf.len();
        let stamp = self.stamp(pkt);
        let mut scratch = self.shards.scratch.take().unwrap_or_default();
        let content = Content::Frame { len, partial: false };
        let done = path.encode(&content, &stamp, &mut scratch).and_then(|encoded| {
            self.tell(&encoded, &stamp, "frames", tunnel);
            let plan = encoded.segmenter()?;
            let (block, _) = encoded.segment(0);
            let headers = plan.headers_len();
            let room = buf.head_mut().push_front(headers + block.len());
            let Some((outer, room)) = room.and_then(|room| room.split_at_mut_checked(headers))
            else {
                return Err(EncodeError::Headers(headers));
            };
            room.copy_from_slice(block);
            plan.emit(encoded.headers(), 0, Sum::default().add(block).add_sum(inner), outer);
            Ok(())
        });
        self.shards.scratch = Some(scratch);
        match done {
            Ok(()) => {
                self.shards.counts.sent(path.dst(), 1);
                self.send_outer(port, slot, buf);
            }
            Err(error) => self.drop_tenant(port, buf, error.into()),
        }
    }

    /// Sends a superframe whose checksum is partial, or absent where it may be: as one stream, or two.
    #[allow(clippy::too_many_arguments)] // one packet's whole context
    pub(in crate::worker) fn send_shards(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        pkt: &Packet,
        (kind, mss): (GsoKind, u16),
        (tunnel, path): (&Tunnel, &Path),
    ) {
        let mut head = [0; MAX_TEMPLATE_LEN];
        let len = usize::from(pkt.payload);
        let (Some(to), Some(from)) = (head.get_mut(..len), buf.head().data().get(..len)) else {
            return self.drop_tenant(port, buf, DropReason::ShardHeadersTooLong);
        };
        to.copy_from_slice(from);
        let frame = Superframe {
            head: head.get(..len).unwrap_or_default(),
            pkt,
            kind,
            mss,
            fixed_id: false,
        };
        let (first, second) = match path.parts(&frame) {
            Ok(parts) => parts,
            Err(error) => return self.drop_tenant(port, buf, error.into()),
        };
        let parts = std::iter::once(first).chain(second);
        let whole = self.leaves_whole(slot, tunnel);
        if whole {
            self.send_shards_uncut(port, slot, buf, &frame, parts, (tunnel, path));
        } else {
            self.send_shards_cut(port, slot, buf, &frame, parts, (tunnel, path));
        }
    }

    /// Cuts streams into packets of the path.
    fn send_shards_cut(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        frame: &Superframe<'_>,
        parts: impl Iterator<Item = std::ops::Range<usize>>,
        (tunnel, path): (&Tunnel, &Path),
    ) {
        let mut scratch = self.shards.scratch.take().unwrap_or_default();
        for part in parts {
            let stamp = self.stamp(frame.pkt);
            let content = Content::Superframe(*frame, part);
            let encoded = path.encode(&content, &stamp, &mut scratch);
            let planned = encoded.and_then(|encoded| Ok((encoded.segmenter()?, encoded)));
            let (plan, encoded) = match planned {
                Ok(planned) => planned,
                Err(error) => {
                    self.lose(Role::Tenant(port), error.into(), 1, &buf);
                    continue;
                }
            };
            self.tell(&encoded, &stamp, "frames", tunnel);
            self.keep_block(&encoded);
            let count = encoded.placement().shape().segments();
            self.shards.counts.sent(path.dst(), count);
            for i in 0..count {
                let (share, payload) = encoded.segment(i);
                let headers = plan.headers_len();
                let range = shifted(payload, frame.pkt.payload);
                let made =
                    build(&mut self.cache, &buf, headers + share.len(), range, |out, sum| {
                        let Some((outer, room)) = out.split_at_mut_checked(headers) else { return };
                        // Most segments have no share.
                        let sum = if share.is_empty() {
                            sum
                        } else {
                            room.copy_from_slice(share);
                            Sum::default().add(share).add_sum(sum)
                        };
                        plan.emit(encoded.headers(), i, sum, outer);
                    });
                match made {
                    Some((segment, _)) => self.send_outer(port, slot, segment),
                    None => self.lose(Role::Tenant(port), DropReason::NoFrames, 1, &buf),
                }
            }
        }
        self.shards.scratch = Some(scratch);
        self.cache.free_buf(buf);
    }

    /// Gives streams to the packet socket, for the device to cut as it cuts TCP. No payload is copied.
    fn send_shards_uncut(
        &mut self,
        port: PortIndex,
        slot: Slot,
        buf: Buf,
        frame: &Superframe<'_>,
        parts: impl Iterator<Item = std::ops::Range<usize>>,
        (tunnel, path): (&Tunnel, &Path),
    ) {
        let mut losses = Losses::default();
        let Some(Some(device)) = self.devices.get_mut(slot) else {
            return self.drop_tenant(port, buf, DropReason::LinkDown);
        };
        let role = device.role;
        device.make_room((buf.frame_count() + PIECES) * 2, 2, &mut self.cache, &mut losses);
        let held = device.hold(buf);
        let mut place = Place::default();
        let (mut sent, mut bytes) = (0u64, 0u64);
        let mut scratch = self.shards.scratch.take().unwrap_or_default();
        for part in parts {
            let stamp = self.stamp(frame.pkt);
            let content = Content::Superframe(*frame, part);
            let encoded = match path.encode(&content, &stamp, &mut scratch) {
                Ok(encoded) => encoded,
                Err(error) => {
                    self.lose_unseen(Role::Tenant(port), error.into());
                    continue;
                }
            };
            self.tell(&encoded, &stamp, "trains", tunnel);
            self.keep_block(&encoded);
            let shape = *encoded.placement().shape();
            let gso_type = match (shape.segments(), encoded.kind()) {
                (1, _) => VnetHdr::GSO_NONE,
                (_, GsoKind::TcpV6) => VnetHdr::GSO_TCPV6,
                _ => VnetHdr::GSO_TCPV4,
            };
            let header = VnetHdr {
                flags: VnetHdr::NEEDS_CSUM,
                gso_type,
                hdr_len: encoded.headers().len() as u16,
                gso_size: if shape.segments() == 1 { 0 } else { shape.mss() },
                csum_start: tunnel.template.l4_offset() as u16,
                csum_offset: TCP_CHECKSUM,
            };
            let Some(Some(device)) = self.devices.get_mut(slot) else { break };
            let mut message = device.message(header);
            let mut shown = self.sight.on.then(Vec::new);
            message.copy(encoded.headers());
            shown.iter_mut().for_each(|shown| shown.extend_from_slice(encoded.headers()));
            for piece in encoded.pieces() {
                match piece {
                    Piece::Share(share) => {
                        message.copy(share);
                        shown.iter_mut().for_each(|shown| shown.extend_from_slice(share));
                    }
                    Piece::Payload(range) => {
                        let range = shifted(range, frame.pkt.payload);
                        if let Some(shown) = &mut shown {
                            source_range(&message, held, range.clone(), shown);
                        }
                        message.slice_at(&mut place, held, range);
                    }
                }
            }
            let len = message.len();
            if message.finish().is_err() {
                self.lose_unseen(Role::Tenant(port), DropReason::TxRefused);
                continue;
            }
            sent += 1;
            bytes += len as u64;
            self.shards.counts.sent(path.dst(), shape.segments());
            if let Some(shown) = shown {
                self.watch_queued_pieces(role, &Pieces::from(&shown[..]), header.gso_size);
            }
        }
        self.shards.scratch = Some(scratch);
        self.sight.trace.saw(|| Step::new(Stage::Queue, "pass").because("packet_socket"));
        let counters = self.counters_of(role);
        counters.tx.packets.add(sent);
        counters.tx.bytes.add(bytes);
        self.count_losses(role, losses);
        // At once, while the payload is still in the cache.
        self.flush_slot(slot);
    }

    fn stamp(&mut self, pkt: &Packet) -> Stamp {
        // Room for the identifications of all segments.
        self.entropy = self.entropy.wrapping_add(128);
        Stamp {
            frame: self.next_stream_number(),
            entropy: pkt.flow_hash as u16,
            inner_tos: pkt.tos,
            ip_id: self.entropy,
        }
    }

    /// Tells who traces the packet how it is cut, and where its shares are.
    fn tell(
        &mut self,
        encoded: &Encoded<'_>,
        stamp: &Stamp,
        outcome: &'static str,
        tunnel: &Tunnel,
    ) {
        let shape = *encoded.placement().shape();
        let (segments, mss, len) = (shape.segments(), shape.mss(), shape.length());
        self.sight.trace.saw(|| {
            let cut = match segments {
                1 => format!("{len} bytes in one segment"),
                _ => format!("{len} bytes in {segments} segments of {mss}"),
            };
            Step::new(Stage::Segmentation, outcome).because(cut)
        });
        self.sight.trace.saw(|| {
            let (k, n) = (shape.coding().k(), shape.coding().n());
            let places: Vec<_> = encoded.placement().carriers().map(|i| i.to_string()).collect();
            let (share, block) = (shape.share_len(), shape.block_len());
            let shares = match n {
                1 => format!("a block of {block} bytes on segment {}", places.join("")),
                _ => format!(
                    "a block of {block} bytes, any {k} of {n} shares of {share} on segments {}",
                    places.join(" ")
                ),
            };
            Step::named(Stage::Encapsulation, self.tables.formats().name(tunnel.format))
                .by(name_of_way(&self.tables, tunnel))
                .because(format!("frame {:#010x}, {shares}", stamp.frame))
        });
    }
}
