//! Merging contiguous segments of a flow into superframes, under the rules of Linux GRO.
//!
//! The fields of [`crate::format`] are read backwards: a byte that no field covers must be equal in
//! all segments of a superframe (addresses, VLAN, ports, acknowledgement, window, options, TTL,
//! TOS with ECN, DF, flow label, every other flag), and a field must hold what the segmenter would
//! have put there. So cutting what was merged gives back the same bytes.
//!
//! The caller has verified the L4 checksum of every frame that is offered, applied the outer ECN
//! bits to it ([`crate::ecn::set`]), and offers single segments, no superframes.

use std::vec::Drain;

use crate::bytes::{get8, get16, get32, put16};
use crate::checksum::Sum;
use crate::cut::Cut;
use crate::format::{Field, IPV4_FIELDS, IPV6_FIELDS, Rule, TCP_FIELDS, UDP_FIELDS, ip_fields};
use crate::packet::{Extensions, Frag, IpKind, Packet};
use crate::segment::GsoKind;
use crate::tcp::flags;
use crate::{eth, ipv4, ipv6, tcp};

pub use crate::outer::{OuterHeaders, OuterKey};

/// Bytes of the longest headers that are merged: two tags, IPv6, TCP with 40 bytes of options.
pub const MAX_HEADERS_LEN: usize =
    eth::HEADER_LEN + eth::MAX_TAGS * eth::TAG_LEN + ipv6::HEADER_LEN + tcp::MAX_HEADER_LEN;

/// Limits of a [`Coalescer`].
#[derive(Copy, Clone, Debug)]
pub struct CoalesceConfig {
    /// Flows held at once; above it the least recently extended one is flushed. At least 1.
    pub flows: usize,
    /// Segments of one superframe. At least 1.
    pub max_segs: usize,
    /// Bytes of a superframe from its L3 header on, at most 65535.
    pub max_len: usize,
    /// Merge UDP datagrams of one size as well; only for receivers that take `GSO_UDP_L4`.
    pub udp: bool,
}

impl Default for CoalesceConfig {
    fn default() -> Self {
        Self { flows: 32, max_segs: 64, max_len: 0xffff, udp: false }
    }
}

/// One frame held for a superframe.
#[derive(Copy, Clone, Debug)]
pub struct Held<T> {
    /// The caller's handle of the frame.
    pub token: T,
    /// Offset of the payload in the frame, in bytes.
    pub payload_offset: u16,
    /// Bytes of payload.
    pub payload_len: u16,
}

/// A finished superframe, or a single frame that met no other (`segs == 1`): the latter is to be
/// delivered as it came, its `headers` are its own.
#[derive(Debug)]
pub struct Merged<'a, T> {
    /// Headers from Ethernet to L4 for the whole superframe. The L4 checksum field holds the
    /// pseudo-header's sum: deliver with `NEEDS_CSUM`, `csum_start` at [`Packet::l4`].
    pub headers: &'a [u8],
    /// The descriptor of the superframe: the first segment's with the new lengths.
    pub packet: Packet,
    /// What it is to be cut into again.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Segments.
    pub segs: u16,
    /// Bytes of payload in all.
    pub payload_len: u32,
    /// All segments have one IPv4 identification (`SKB_GSO_TCP_FIXEDID`).
    pub fixed_id: bool,
    /// The frames in order.
    pub tokens: Drain<'a, Held<T>>,
}

/// Bits of a header that must be equal: all that no field covers.
type Mask = [u8; 40];

fn mask(fields: &[Field]) -> Mask {
    let mut mask = [0xff; 40];
    for field in fields {
        let (at, width) = (usize::from(field.offset), usize::from(field.width));
        let keep = match field.rule {
            Rule::First(bits) | Rule::Last(bits) => !bits,
            _ => 0,
        };
        for byte in mask.iter_mut().skip(at).take(width) {
            *byte &= keep;
        }
    }
    mask
}

fn equal_under(mask: &Mask, a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).zip(mask).fold(0, |d, ((a, b), m)| d | ((a ^ b) & m)) == 0
}

#[derive(Debug)]
struct Flow<T> {
    hash: u32,
    outer: OuterKey,
    stamp: u64,
    packet: Packet,
    kind: GsoKind,
    headers: [u8; MAX_HEADERS_LEN],
    gso_size: usize,
    payload_len: usize,
    fixed_id: Option<bool>,
    held: Vec<Held<T>>,
}

impl<T> Flow<T> {
    fn headers(&self) -> &[u8] {
        self.headers.get(..self.packet.headers_len()).unwrap_or_default()
    }

    /// Same addresses, protocol and ports in the same virtual network.
    fn is_flow_of(&self, head: &[u8], pkt: &Packet, outer: OuterKey) -> bool {
        self.outer.flow == outer.flow && self.same_addresses(head, pkt) && {
            let (a, b) = (usize::from(self.packet.l4), usize::from(pkt.l4));
            get32(&self.headers, a) == get32(head, b)
        }
    }

    fn same_addresses(&self, head: &[u8], pkt: &Packet) -> bool {
        let range = |pkt: &Packet| {
            let l3 = usize::from(pkt.l3);
            if pkt.ip == IpKind::V4 { l3 + 12..l3 + 20 } else { l3 + 8..l3 + 40 }
        };
        self.packet.ip == pkt.ip
            && self.packet.proto == pkt.proto
            && self.headers.get(range(&self.packet)) == head.get(range(pkt))
    }

    /// The value of an incrementing field that continues the flow, and whether it stands still.
    fn id_continues(&self, field: Field, start: usize, head: &[u8]) -> Option<bool> {
        let at = start + usize::from(field.offset);
        let (first, new) = (get16(&self.headers, at)?, get16(head, at)?);
        let df = get16(head, start + 6)? & ipv4::DF != 0;
        let next = first.wrapping_add(self.held.len() as u16);
        match self.fixed_id {
            Some(true) => (new == first).then_some(true),
            Some(false) => (new == next).then_some(false),
            // Without DF the identification tells fragments apart and must not stand still.
            None if df && new == first => Some(true),
            None => (new == next).then_some(false),
        }
    }

    fn fields_continue(&self, fields: &[Field], start: usize, head: &[u8]) -> bool {
        fields.iter().all(|field| {
            let at = start + usize::from(field.offset);
            match field.rule {
                Rule::Increment => self.id_continues(*field, start, head).is_some(),
                Rule::Advance => {
                    let next = get32(&self.headers, at)
                        .map(|first| first.wrapping_add(self.payload_len as u32));
                    next == get32(head, at)
                }
                Rule::First(bits) => get8(head, at).is_some_and(|byte| byte & bits == 0),
                _ => true,
            }
        })
    }
}

/// Merges segments into superframes.
///
/// Within a flow nothing is ever reordered: a frame that can not join what is held of its flow
/// flushes it first. Memory is allocated once, in [`Coalescer::new`].
#[derive(Debug)]
pub struct Coalescer<T> {
    config: CoalesceConfig,
    flows: Vec<Flow<T>>,
    masks: [Mask; 4],
    clock: u64,
    in_use: usize,
}

impl<T> Default for Coalescer<T> {
    fn default() -> Self {
        Self::new(CoalesceConfig::default())
    }
}

impl<T> Coalescer<T> {
    /// Makes an empty one; limits out of range are brought into it.
    #[must_use]
    pub fn new(config: CoalesceConfig) -> Self {
        let config = CoalesceConfig {
            flows: config.flows.max(1),
            max_segs: config.max_segs.clamp(1, usize::from(u16::MAX)),
            max_len: config.max_len.min(0xffff),
            udp: config.udp,
        };
        let flows = (0..config.flows).map(|_| Flow {
            hash: 0,
            outer: OuterKey::default(),
            stamp: 0,
            packet: Packet::EMPTY,
            kind: GsoKind::TcpV4,
            headers: [0; MAX_HEADERS_LEN],
            gso_size: 0,
            payload_len: 0,
            fixed_id: None,
            held: Vec::with_capacity(config.max_segs),
        });
        Self {
            config,
            flows: flows.collect(),
            masks: [mask(IPV4_FIELDS), mask(IPV6_FIELDS), mask(TCP_FIELDS), mask(UDP_FIELDS)],
            clock: 0,
            in_use: 0,
        }
    }

    /// Flows that hold a frame.
    #[must_use]
    pub const fn held_flows(&self) -> usize {
        self.in_use
    }

    /// Offers a frame: `head` is its start with all headers, `pkt` what was parsed of it.
    ///
    /// `None`: it is held, and comes back through `sink` now or later. `Some`: it is not mergeable,
    /// and whatever was held of its flow has just gone through `sink`; deliver it as it is.
    #[must_use = "a frame that is passed back must be delivered"]
    pub fn offer(
        &mut self,
        head: &[u8],
        pkt: &Packet,
        outer: OuterKey,
        token: T,
        sink: &mut impl FnMut(Merged<'_, T>),
    ) -> Option<T> {
        self.offer_as(self.config.udp, head, pkt, outer, token, sink)
    }

    /// As [`Coalescer::offer`], with UDP merged or not by this receiver's own word.
    #[must_use = "a frame that is passed back must be delivered"]
    pub fn offer_as(
        &mut self,
        udp: bool,
        head: &[u8],
        pkt: &Packet,
        outer: OuterKey,
        token: T,
        sink: &mut impl FnMut(Merged<'_, T>),
    ) -> Option<T> {
        let Some(kind) = GsoKind::of(pkt).filter(|_| pkt.frag == Frag::None) else {
            if pkt.frag != Frag::None {
                self.flush_addresses(head, pkt, outer, sink);
            }
            return Some(token);
        };
        let slot = self.find(head, pkt, outer);
        let mergeable = self.is_mergeable(udp, kind, head, pkt);
        if let Some(i) = slot {
            if mergeable && self.continues(i, head, pkt, outer) {
                self.append(i, head, pkt, token, sink);
                return None;
            }
            self.flush_slot(i, sink);
        }
        // A frame that would end a superframe does not start one.
        if !mergeable || pkt.tcp_flags & (flags::PSH | flags::FIN) != 0 {
            return Some(token);
        }
        let i = match slot {
            Some(i) => i,
            None => self.vacate(sink)?,
        };
        self.start(i, kind, head, pkt, outer, token);
        None
    }

    /// Sends everything held through `sink`, oldest flows first.
    pub fn flush_all(&mut self, sink: &mut impl FnMut(Merged<'_, T>)) {
        self.flush_if(|_| true, sink);
    }

    /// Sends the flows through `sink` of which a held frame is such a one, oldest flows first. Others stay.
    pub fn flush_if(&mut self, wanted: impl Fn(&T) -> bool, sink: &mut impl FnMut(Merged<'_, T>)) {
        while self.in_use > 0 {
            let is_wanted = |flow: &Flow<T>| flow.held.iter().any(|held| wanted(&held.token));
            let those = self.flows.iter().enumerate().filter(|(_, flow)| is_wanted(flow));
            let Some((i, _)) = those.min_by_key(|(_, flow)| flow.stamp) else { return };
            self.flush_slot(i, sink);
        }
    }

    /// Sends what is held of this frame's flow through `sink`; of a fragment, whatever may be of its flow.
    pub fn flush_flow(
        &mut self,
        head: &[u8],
        pkt: &Packet,
        outer: OuterKey,
        sink: &mut impl FnMut(Merged<'_, T>),
    ) {
        if pkt.frag != Frag::None {
            self.flush_addresses(head, pkt, outer, sink);
        } else if let Some(i) = self.find(head, pkt, outer) {
            self.flush_slot(i, sink);
        }
    }

    fn find(&self, head: &[u8], pkt: &Packet, outer: OuterKey) -> Option<usize> {
        if self.in_use == 0 {
            return None;
        }
        self.flows.iter().position(|flow| {
            !flow.held.is_empty() && flow.hash == pkt.flow_hash && flow.is_flow_of(head, pkt, outer)
        })
    }

    fn is_mergeable(&self, udp: bool, kind: GsoKind, head: &[u8], pkt: &Packet) -> bool {
        let plain_ip = match pkt.ip {
            IpKind::V4 => usize::from(pkt.l4 - pkt.l3) == ipv4::HEADER_LEN,
            _ => pkt.extensions != Extensions::Special,
        };
        let l4_ok = match kind {
            GsoKind::UdpL4 => {
                let l4 = usize::from(pkt.l4);
                udp && get16(head, l4 + 4).map(usize::from) == Some(pkt.l4_len())
                    && get16(head, l4 + 6) != Some(0)
            }
            // With accurate ECN (RFC 9768) CWR is a bit of a counter, which no superframe keeps.
            _ => pkt.tcp_flags & (flags::SYN | flags::RST | flags::URG | flags::CWR) == 0,
        };
        plain_ip
            && l4_ok
            && pkt.len == pkt.frame_len
            && pkt.payload_len() > 0
            && pkt.l3_len() <= self.config.max_len
            && pkt.headers_len() <= MAX_HEADERS_LEN.min(head.len())
    }

    fn continues(&self, i: usize, head: &[u8], pkt: &Packet, outer: OuterKey) -> bool {
        let Some(flow) = self.flows.get(i) else { return false };
        let (len, total) = (pkt.payload_len(), flow.payload_len + pkt.payload_len());
        let (l3, l4) = (usize::from(pkt.l3), usize::from(pkt.l4));
        let same_layout = flow.packet.l3 == pkt.l3
            && flow.packet.l4 == pkt.l4
            && flow.packet.payload == pkt.payload;
        if !same_layout || flow.outer != outer || len > flow.gso_size {
            return false;
        }
        let l3_len = pkt.headers_len() - l3 + total;
        if flow.held.len() >= self.config.max_segs || l3_len > self.config.max_len {
            return false;
        }
        let [v4, v6, tcp, udp] = &self.masks;
        let (ip_mask, ip_fixed) = match pkt.ip {
            IpKind::V4 => (v4, ipv4::HEADER_LEN),
            _ => (v6, ipv6::HEADER_LEN),
        };
        let (l4_mask, fixed) = match flow.kind {
            GsoKind::UdpL4 => (udp, 8),
            _ => (tcp, tcp::HEADER_LEN),
        };
        let held = flow.headers();
        let both = |from: usize, to: usize| {
            (held.get(from..to).unwrap_or_default(), head.get(from..to).unwrap_or_default())
        };
        let same = |from, to, mask: &Mask| {
            let (a, b) = both(from, to);
            equal_under(mask, a, b)
        };
        let exact = |from, to| {
            let (a, b) = both(from, to);
            a == b
        };
        exact(0, l3)
            && same(l3, l3 + ip_fixed, ip_mask)
            && exact(l3 + ip_fixed, l4)
            && same(l4, l4 + fixed, l4_mask)
            && exact(l4 + fixed, pkt.headers_len())
            && flow.fields_continue(ip_fields(pkt.ether_type), l3, head)
            && flow.fields_continue(flow.kind.fields(), l4, head)
    }

    fn start(
        &mut self,
        i: usize,
        kind: GsoKind,
        head: &[u8],
        pkt: &Packet,
        outer: OuterKey,
        token: T,
    ) {
        self.clock += 1;
        let Some(flow) = self.flows.get_mut(i) else { return };
        let len = pkt.headers_len();
        if let (Some(to), Some(from)) = (flow.headers.get_mut(..len), head.get(..len)) {
            to.copy_from_slice(from);
        }
        flow.hash = pkt.flow_hash;
        flow.outer = outer;
        flow.stamp = self.clock;
        flow.packet = *pkt;
        flow.kind = kind;
        flow.gso_size = pkt.payload_len();
        flow.payload_len = pkt.payload_len();
        flow.fixed_id = None;
        flow.held.push(held(pkt, token));
        self.in_use += 1;
    }

    fn append(
        &mut self,
        i: usize,
        head: &[u8],
        pkt: &Packet,
        token: T,
        sink: &mut impl FnMut(Merged<'_, T>),
    ) {
        self.clock += 1;
        let max_segs = self.config.max_segs;
        let Some(flow) = self.flows.get_mut(i) else { return };
        flow.stamp = self.clock;
        for field in ip_fields(pkt.ether_type) {
            if field.rule == Rule::Increment {
                flow.fixed_id = flow.id_continues(*field, usize::from(pkt.l3), head);
            }
        }
        for field in flow.kind.fields() {
            let at = usize::from(pkt.l4) + usize::from(field.offset);
            if let (Rule::Last(bits), Some(to), Some(from)) =
                (field.rule, flow.headers.get_mut(at), get8(head, at))
            {
                *to |= from & bits;
            }
        }
        flow.payload_len += pkt.payload_len();
        flow.held.push(held(pkt, token));
        let ends = pkt.tcp_flags & (flags::PSH | flags::FIN) != 0;
        if ends || pkt.payload_len() < flow.gso_size || flow.held.len() >= max_segs {
            self.flush_slot(i, sink);
        }
    }

    /// An empty slot, made by flushing the least recently extended flow if there is none.
    fn vacate(&mut self, sink: &mut impl FnMut(Merged<'_, T>)) -> Option<usize> {
        if self.in_use < self.flows.len() {
            return self.flows.iter().position(|flow| flow.held.is_empty());
        }
        let oldest = self.flows.iter().enumerate().min_by_key(|(_, flow)| flow.stamp)?.0;
        self.flush_slot(oldest, sink);
        Some(oldest)
    }

    /// A fragment shows no ports: every flow between its addresses may be its own.
    fn flush_addresses(
        &mut self,
        head: &[u8],
        pkt: &Packet,
        outer: OuterKey,
        sink: &mut impl FnMut(Merged<'_, T>),
    ) {
        for i in 0..self.flows.len() {
            let matches = self.flows.get(i).is_some_and(|flow| {
                !flow.held.is_empty()
                    && flow.outer.flow == outer.flow
                    && flow.same_addresses(head, pkt)
            });
            if matches {
                self.flush_slot(i, sink);
            }
        }
    }

    fn flush_slot(&mut self, i: usize, sink: &mut impl FnMut(Merged<'_, T>)) {
        let Some(flow) = self.flows.get_mut(i).filter(|flow| !flow.held.is_empty()) else { return };
        self.in_use -= 1;
        let segs = flow.held.len();
        if segs > 1 {
            flow.finish();
        }
        let len = flow.packet.headers_len();
        sink(Merged {
            headers: flow.headers.get(..len).unwrap_or_default(),
            packet: flow.packet,
            kind: flow.kind,
            gso_size: flow.gso_size as u16,
            segs: segs as u16,
            payload_len: flow.payload_len as u32,
            fixed_id: flow.fixed_id == Some(true),
            tokens: flow.held.drain(..),
        });
    }
}

impl<T> Flow<T> {
    /// Makes the first segment's headers those of the superframe.
    fn finish(&mut self) {
        let (l3, l4) = (usize::from(self.packet.l3), usize::from(self.packet.l4));
        let headers_len = self.packet.headers_len();
        let end = headers_len + self.payload_len;
        let Some(headers) = self.headers.get_mut(..headers_len) else { return };
        let cut = Cut { index: 0, last: true, advance: 0, end, hold: true };
        let (ip, transport) = (ip_fields(self.packet.ether_type), self.kind.fields());
        cut.apply(ip, l3, headers);
        cut.apply(transport, l4, headers);
        for field in ip.iter().filter(|f| f.rule == Rule::HeaderChecksum) {
            let at = l3 + usize::from(field.offset);
            put16(headers, at, 0);
            let sum = Sum::default().add(headers.get(l3..l4).unwrap_or_default()).finish();
            put16(headers, at, sum);
        }
        let pseudo = self.packet.pseudo_header(headers, (end - l4) as u32).fold();
        for field in transport {
            if matches!(field.rule, Rule::Checksum | Rule::OptionalChecksum) {
                put16(headers, l4 + usize::from(field.offset), pseudo);
            }
        }
        self.packet.len = end as u32;
        self.packet.frame_len = end as u32;
        if self.packet.proto == crate::proto::TCP {
            self.packet.tcp_flags = get8(headers, l4 + 13).unwrap_or_default();
        }
    }
}

fn held<T>(pkt: &Packet, token: T) -> Held<T> {
    Held { token, payload_offset: pkt.payload, payload_len: pkt.payload_len() as u16 }
}
