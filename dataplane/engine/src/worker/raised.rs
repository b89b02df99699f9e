//! Segments that are longer than the tenant's own: a far end that knows us cuts superframes to what the way
//! bears, and its tunnel header states the tenant's MSS. What is delivered is cut by that one.

use culvert_wire::coalesce::MAX_HEADERS_LEN;
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::segment::GsoKind;
use culvert_wire::tcp::flags;

use culvert_port::VnetHdr;

use super::deliver::{Piece, gso_header};
use super::offload::{Csum, Gso, Offload};
use super::{Worker, checksum};
use crate::tables::PortIndex;

/// The least MSS that is sent, or believed of a tunnel header, in bytes: what Linux, too, takes for the least
/// (`net.ipv4.tcp_min_snd_mss`).
pub(super) const MSS_MIN: u16 = 48;

/// What was stated is below [`MSS_MIN`]: a superframe would be cut into too many segments.
#[derive(Debug)]
pub(super) struct TooSmall;

/// The tenant's MSS of a packet, where its tunnel header states one.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    mss: u16,
}

impl Raised {
    /// What a header that states this MSS, 0 for none, means for its inner packet: nothing, where that is no
    /// TCP that can be cut, or the packet and all that can be merged with it are too short.
    pub(super) fn of(mss: u16, inner: &Packet) -> Result<Raised, TooSmall> {
        let never_many = flags::SYN | flags::RST | flags::URG;
        let is_cut =
            inner.is_tcp() && inner.frag == Frag::None && inner.tcp_flags & never_many == 0;
        match mss {
            0 => Ok(Raised::default()),
            _ if !is_cut => Ok(Raised::default()),
            1..MSS_MIN if inner.payload_len() > usize::from(mss) => Err(TooSmall),
            1..MSS_MIN => Ok(Raised::default()),
            _ => Ok(Raised { mss }),
        }
    }

    /// The size of segments of what is merged of packets with this much payload.
    pub(super) fn cut(self, size: u16) -> u16 {
        if self.mss == 0 { size } else { size.min(self.mss) }
    }

    /// The kind of superframe that the packet alone is, if it is one.
    fn kind(self, pkt: &Packet) -> Option<GsoKind> {
        let longer = self.mss > 0 && pkt.payload_len() > usize::from(self.mss);
        GsoKind::of(pkt).filter(|_| longer)
    }

    /// Bytes of the largest IP packet that is made of this one.
    pub(super) fn ip_len(self, pkt: &Packet) -> u32 {
        let whole = pkt.len.saturating_sub(pkt.l3.into());
        match self.kind(pkt) {
            Some(_) => u32::from(pkt.payload.saturating_sub(pkt.l3)) + u32::from(self.mss),
            None => whole,
        }
    }

    /// The packet as a superframe, where it is one.
    pub(super) fn describe(self, pkt: &Packet, off: Offload) -> Offload {
        let kind = if pkt.ip == IpKind::V4 { Gso::TcpV4 } else { Gso::TcpV6 };
        let gso = self.kind(pkt).map(|_| (kind, self.mss));
        Offload { gso: gso.or(off.gso), ..off }
    }
}

impl Worker {
    /// Delivers a packet, with a checksum known to be right, that is merged with no other: in segments of the
    /// tenant's MSS, where it is longer.
    pub(super) fn deliver_alone(
        &mut self,
        port: PortIndex,
        piece: Piece,
        head: &[u8],
        pkt: &Packet,
    ) {
        match piece {
            Piece::Own { mut buf, off, raised } => {
                let as_cut = raised.describe(pkt, off);
                if as_cut.gso.is_some()
                    && let Some((start, offset)) = checksum::make_partial(&mut buf, pkt)
                {
                    let csum = Csum::Partial { start, offset };
                    return self.deliver(port, buf, Offload { csum, ..as_cut });
                }
                self.deliver(port, buf, off);
            }
            Piece::Held { id, start, raised } => {
                let (payload, end) = (start + usize::from(pkt.payload), start + pkt.len as usize);
                let mut headers = [0; MAX_HEADERS_LEN];
                let len = pkt.headers_len();
                let copied = headers.get_mut(..len).zip(head.get(..len));
                let Some((kind, (headers, head))) = raised.kind(pkt).zip(copied) else {
                    return self.send_held(port, id, &[], start..end, VnetHdr::default());
                };
                headers.copy_from_slice(head);
                let header = gso_header(kind, raised.mss, pkt);
                let at = usize::from(header.csum_start) + usize::from(header.csum_offset);
                let sum = pkt.pseudo_header(head, pkt.l4_len() as u32).fold();
                if let Some(field) = headers.get_mut(at..at + 2) {
                    field.copy_from_slice(&sum.to_be_bytes());
                }
                self.send_held(port, id, headers, payload..end, header);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 TCP packet with so much payload.
    fn packet(payload: u16) -> Packet {
        let len = 54 + u32::from(payload);
        let (ip, proto, tcp_flags) = (IpKind::V4, culvert_wire::proto::TCP, flags::ACK);
        let (l3, l4, payload) = (14, 34, 54);
        Packet { ip, proto, tcp_flags, l3, l4, payload, len, frame_len: len, ..Packet::EMPTY }
    }

    #[test]
    fn an_mss_that_is_stated_bounds_what_is_delivered() {
        let pkt = packet(1400);
        let raised = Raised::of(536, &pkt).unwrap();
        assert_eq!((raised.ip_len(&pkt), raised.cut(1400)), (576, 536));
        assert_eq!(raised.describe(&pkt, Offload::default()).gso, Some((Gso::TcpV4, 536)));
        // The last segment of a superframe may be shorter than the tenant's.
        let last = packet(100);
        let raised = Raised::of(536, &last).unwrap();
        assert_eq!((raised.ip_len(&last), raised.cut(1400)), (140, 536));
        assert_eq!(raised.describe(&last, Offload::default()).gso, None);
    }

    #[test]
    fn what_is_stated_without_sense_is_refused_or_means_nothing() {
        let pkt = packet(1400);
        assert_eq!(Raised::of(0, &pkt).unwrap(), Raised::default());
        for mss in 1..MSS_MIN {
            assert!(Raised::of(mss, &pkt).is_err(), "{mss}");
            assert_eq!(Raised::of(mss, &packet(mss)).unwrap(), Raised::default(), "{mss}");
        }
        for mss in [MSS_MIN, 1399, 1400, 1401, u16::MAX] {
            let raised = Raised::of(mss, &pkt).unwrap();
            assert_eq!(raised.cut(1400), mss.min(1400));
            assert_eq!(raised.describe(&pkt, Offload::default()).gso.is_some(), mss < 1400);
        }
        // Neither a handshake nor urgent data is ever cut.
        for flags in [flags::SYN, flags::RST, flags::URG] {
            let pkt = Packet { tcp_flags: flags, ..pkt };
            assert_eq!(Raised::of(536, &pkt).unwrap(), Raised::default());
        }
    }
}
