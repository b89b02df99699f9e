//! A frame whose block is known: the headers of any run of its payload.

use std::ops::Range;

use crate::bytes::{get8, get16, put16};
use crate::checksum::Sum;
use crate::cut::Cut;
use crate::ecn;
use crate::eth::{self, MAX_TAGS, VlanTag, ether_type};
use crate::format::{Rule, ip_fields};
use crate::packet::{Extensions, Frag, Packet};
use crate::segment::GsoKind;
use crate::shard::block::{Info, Kind, MAX_TEMPLATE_LEN};
use crate::shard::placement::{Placement, Shape};
use crate::tcp::flags;
use crate::vni::Vni;
use crate::{ipv4, ipv6, udp};

/// Most inner segments of a frame: 64 KB at the smallest MSS that senders use, 48.
pub const MAX_INNER_SEGMENTS: usize = 1400;

/// What the block said.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) vni: Vni,
    pub(super) kind: Kind,
    pub(super) checksum: bool,
    pub(super) fixed_id: bool,
    pub(super) mss: u16,
    // Those of the whole frame.
    headers: [u8; MAX_TEMPLATE_LEN],
    packet: Packet,
}

impl Default for Opened {
    fn default() -> Self {
        Self {
            vni: Vni::MIN,
            kind: Kind::Frame,
            checksum: false,
            fixed_id: false,
            mss: 0,
            headers: [0; MAX_TEMPLATE_LEN],
            packet: Packet::EMPTY,
        }
    }
}

impl Opened {
    /// Takes what the block says of the frame, and checks it against its shape. None for what no sender
    /// says.
    pub(super) fn set(&mut self, info: &Info<'_>, shape: &Shape) -> Option<()> {
        let payload_len = shape.payload_len();
        let &Info { vni, kind, checksum, fixed_id, mss, .. } = info;
        (self.vni, self.kind, self.mss) = (vni, kind, mss);
        (self.checksum, self.fixed_id, self.packet) = (checksum, fixed_id, Packet::EMPTY);
        if info.kind == Kind::Frame {
            let whole = shape.segments() == 1 && payload_len >= eth::HEADER_LEN;
            return whole.then_some(());
        }
        let inner = payload_len.div_ceil(usize::from(info.mss.max(1)));
        if inner == 0 || inner > MAX_INNER_SEGMENTS {
            return None;
        }
        let headers = self.headers.get_mut(..info.template.len())?;
        headers.copy_from_slice(info.template);
        self.packet = complete(headers, info.kind, payload_len)?;
        Some(())
    }

    /// A frame that was one of ECN-capable packets can carry the news of congestion. Of one that is
    /// delivered as it is, its receiver decides.
    pub(super) fn bears_congestion(&self) -> bool {
        self.kind == Kind::Frame || self.packet.tos & ecn::MASK != ecn::NOT_ECT
    }

    /// Of these bytes of payload, those that can be delivered on their own: whole datagrams, of TCP all.
    pub(super) fn whole_units(&self, payload: &Range<usize>, payload_len: usize) -> Range<usize> {
        let unit = if self.kind == Kind::Udp { usize::from(self.mss.max(1)) } else { 1 };
        let start = payload.start.next_multiple_of(unit).min(payload_len);
        let end = if payload.end == payload_len { payload_len } else { payload.end / unit * unit };
        start..end.max(start)
    }

    /// Writes the headers of a run of payload, and answers their length and the descriptor of headers
    /// and run. Nothing is written for a frame that is delivered as it is.
    pub(super) fn headers_of(
        &self,
        payload: &Range<usize>,
        placement: &Placement,
        outer_ecn: u8,
        out: &mut [u8; MAX_TEMPLATE_LEN],
    ) -> (usize, Packet) {
        let len = self.packet.headers_len();
        if self.kind == Kind::Frame {
            return (0, self.packet);
        }
        let (l3, l4, end) =
            (usize::from(self.packet.l3), usize::from(self.packet.l4), len + payload.len());
        let Some(out) = out.get_mut(..len) else { return (0, self.packet) };
        out.copy_from_slice(self.headers.get(..len).unwrap_or_default());
        let cut = Cut {
            // Rounded up: no run but the first is the first segment, and none has an identification
            // that the run before it has used.
            index: payload.start.div_ceil(usize::from(self.mss.max(1))),
            last: payload.end == placement.shape().payload_len(),
            advance: payload.start,
            end,
            hold: self.fixed_id,
        };
        let transport = GsoKind::of(&self.packet).map_or(&[][..], GsoKind::fields);
        let ip = ip_fields(self.packet.ether_type);
        cut.apply(ip, l3, out);
        cut.apply(transport, l4, out);
        let mut packet = Packet { len: end as u32, frame_len: end as u32, ..self.packet };
        for field in ip.iter().filter(|field| field.rule == Rule::HeaderChecksum) {
            let at = l3 + usize::from(field.offset);
            put16(out, at, 0);
            let sum = Sum::default().add(out.get(l3..l4).unwrap_or_default()).finish();
            put16(out, at, sum);
        }
        if let ecn::Egress::Forward { ecn, .. } = ecn::decapsulate(packet.tos, outer_ecn) {
            ecn::set(out, &mut packet, ecn);
        }
        let pseudo = packet.pseudo_header(out, (end - l4) as u32).fold();
        for field in transport {
            if matches!(field.rule, Rule::Checksum | Rule::OptionalChecksum) {
                let sum = if self.checksum { pseudo } else { 0 };
                put16(out, l4 + usize::from(field.offset), sum);
            }
        }
        if packet.is_tcp() {
            packet.tcp_flags = get8(out, l4 + 13).unwrap_or_default();
        }
        (len, packet)
    }
}

/// Fills lengths and the header checksum into the headers of a whole frame, and parses them. None unless
/// they are those of a superframe of this kind, and nothing else.
fn complete(headers: &mut [u8], kind: Kind, payload_len: usize) -> Option<Packet> {
    let len = headers.len();
    let (mut ether_type, mut l3) = (get16(headers, 12)?, eth::HEADER_LEN);
    for _ in 0..MAX_TAGS {
        if VlanTag::is_tpid(ether_type) {
            ether_type = get16(headers, l3 + 2)?;
            l3 += eth::TAG_LEN;
        }
    }
    let l3_len = len.checked_sub(l3)? + payload_len;
    match ether_type {
        ether_type::IPV4 => {
            let ip_len = usize::from(get8(headers, l3)? & 0x0f) * 4;
            put16(headers, l3 + 2, u16::try_from(l3_len).ok()?);
            put16(headers, l3 + 10, 0);
            let sum =
                Sum::default().add(headers.get(l3..l3 + ip_len.max(ipv4::HEADER_LEN))?).finish();
            put16(headers, l3 + 10, sum);
        }
        ether_type::IPV6 => {
            let len = l3_len.checked_sub(ipv6::HEADER_LEN)?;
            put16(headers, l3 + 4, u16::try_from(len).ok()?);
        }
        _ => return None,
    }
    if kind == Kind::Udp {
        let l4 = len.checked_sub(udp::HEADER_LEN)?;
        put16(headers, l4 + 4, (udp::HEADER_LEN + payload_len) as u16);
    }
    let pkt = Packet::parse(headers, len + payload_len).ok()?;
    let of_kind = if kind == Kind::Udp { pkt.is_udp() } else { pkt.is_tcp() };
    let legal = of_kind
        && pkt.headers_len() == len
        && pkt.len as usize == len + payload_len
        && pkt.frag == Frag::None
        && pkt.extensions != Extensions::Special
        && pkt.tcp_flags & (flags::SYN | flags::RST | flags::URG) == 0;
    legal.then_some(pkt)
}
