//! Completing and verifying the L4 checksum of a packet that lies in several frames.

use culvert_port::{Buf, Place};
use culvert_wire::checksum::Sum;
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::proto;

use super::offload::{Csum, Offload};

/// Sum of the bytes from `from` to `to`.
pub fn sum_range(buf: &Buf, from: usize, to: usize) -> Sum {
    sum_range_at(&mut Place::default(), buf, from, to)
}

/// As [`sum_range`], searching from `place`: see [`Buf::slice_range_at`].
pub fn sum_range_at(place: &mut Place, buf: &Buf, from: usize, to: usize) -> Sum {
    let mut sum = Sum::default();
    buf.slice_range_at(place, from..to, |piece| sum = sum.add(piece));
    sum
}

/// Pseudo-header sum of the packet's L4 part; none when it is not IP.
pub fn pseudo(head: &[u8], pkt: &Packet) -> Option<Sum> {
    (pkt.ip != IpKind::None).then(|| pkt.pseudo_header(head, pkt.l4_len() as u32))
}

/// Offset of the checksum in the L4 header.
pub fn field_offset(proto: u8) -> Option<u16> {
    match proto {
        proto::TCP => Some(16),
        proto::UDP => Some(6),
        _ => None,
    }
}

fn field(head: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]))
}

fn store(head: &mut [u8], at: usize, value: u16) -> bool {
    match head.get_mut(at..at + 2) {
        Some(bytes) => {
            bytes.copy_from_slice(&value.to_be_bytes());
            true
        }
        None => false,
    }
}

/// Where the kernel does not say whether a checksum is partial, its value does: a bare
/// pseudo-header sum is what a stack leaves for the device to complete.
pub fn infer_partial(buf: &Buf, pkt: &Packet, off: &mut Offload) {
    if off.known || off.csum != Csum::Given || pkt.frag != Frag::None {
        return;
    }
    let head = buf.head().data();
    let Some(offset) = field_offset(pkt.proto) else { return };
    let at = usize::from(pkt.l4) + usize::from(offset);
    if let (Some(value), Some(sum)) = (field(head, at), pseudo(head, pkt))
        && value != 0
        && value == sum.fold()
    {
        off.csum = Csum::Partial { start: pkt.l4, offset };
    }
}

/// Completes a partial checksum in place. Returns whether it did, so that the checksum of the
/// packet's own L4 header is known to be right.
pub fn complete(buf: &mut Buf, pkt: &Packet, off: &mut Offload) -> bool {
    let Csum::Partial { start, offset } = off.csum else { return false };
    let at = usize::from(start) + usize::from(offset);
    let sum = sum_range(buf, start.into(), pkt.len as usize);
    let is_udp = pkt.proto == proto::UDP;
    let value = if is_udp { sum.finish_udp() } else { sum.finish() };
    off.csum = Csum::Verified;
    // The field must be that of the packet's own L4 header; a sum elsewhere is none of ours.
    store(buf.head_mut().data_mut(), at, value)
        && start == pkt.l4
        && field_offset(pkt.proto) == Some(offset)
}

/// Whether the L4 checksum of a whole packet is right. A UDP checksum of zero over IPv4 is no
/// checksum, hence not known to be right.
pub fn verify(buf: &Buf, pkt: &Packet) -> bool {
    let head = buf.head().data();
    is_right(head, pkt, sum_range(buf, pkt.l4.into(), pkt.len as usize))
}

/// Whether a superframe may be cut: its checksum is partial, or was found right. What is cut gets
/// new checksums, which must not hide damage. On success the checksum is partial, save for a UDP
/// checksum of zero, which stays.
pub fn ready_to_cut(buf: &mut Buf, pkt: &Packet, off: &mut Offload) -> bool {
    if let Csum::Partial { start, offset } = off.csum {
        return start == pkt.l4 && field_offset(pkt.proto) == Some(offset);
    }
    let at = usize::from(pkt.l4) + 6;
    if pkt.proto == proto::UDP && field(buf.head().data(), at) == Some(0) {
        return true;
    }
    if !verify(buf, pkt) {
        return false;
    }
    match make_partial(buf, pkt) {
        Some((start, offset)) => {
            off.csum = Csum::Partial { start, offset };
            true
        }
        None => false,
    }
}

/// Whether the checksum of a packet whose L4 part has this sum is there and right.
pub fn is_right(head: &[u8], pkt: &Packet, l4_sum: Sum) -> bool {
    let at = usize::from(pkt.l4) + 6;
    if pkt.proto == proto::UDP && field(head, at) == Some(0) {
        return false;
    }
    field_offset(pkt.proto).is_some()
        && pseudo(head, pkt).is_some_and(|pseudo| pseudo.add_sum(l4_sum).finish() == 0)
}

/// Makes the checksum partial, as superframes need it: the field becomes the pseudo-header sum.
/// The caller knows that it was right. None when the packet has no such field.
pub fn make_partial(buf: &mut Buf, pkt: &Packet) -> Option<(u16, u16)> {
    let offset = field_offset(pkt.proto)?;
    let sum = pseudo(buf.head().data(), pkt)?.fold();
    let at = usize::from(pkt.l4) + usize::from(offset);
    store(buf.head_mut().data_mut(), at, sum).then_some((pkt.l4, offset))
}
