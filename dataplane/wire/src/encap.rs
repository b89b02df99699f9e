//! Outer headers, built once per destination and stamped per frame.

use std::net::IpAddr;

use crate::bytes::{put, put8, put16, put32};
use crate::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::cut::Cut;
use crate::ecn;
use crate::eth::{self, MacAddr, VlanTag, ether_type};
use crate::format::{
    Bits, FactAt, Facts, Field, FlowId, FormatDescriptor, InnerOffset, MAX_FIELDS, MAX_HEADER_LEN,
    Outer, Rule, Stream,
};
use crate::packet::Packet;
use crate::vni::Vni;
use crate::{ipv4, ipv6, tcp};

/// The most bytes of outer headers: tagged Ethernet, IPv6, TCP and the longest tunnel header.
pub const MAX_LEN: usize =
    eth::HEADER_LEN + eth::TAG_LEN + ipv6::HEADER_LEN + tcp::HEADER_LEN + MAX_HEADER_LEN;

const _: () = assert!(MAX_LEN <= u8::MAX as usize);

/// Most facts that a header states.
const MAX_FACTS: usize = crate::format::check::MAX_LIST;

/// Where the outer DSCP comes from (RFC 2983).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DscpMode {
    /// The inner packet's: the uniform model.
    Inherit,
    /// This one for every frame, 0 to 63: the pipe model.
    Fixed(u8),
}

/// Everything that the outer headers of one destination need.
#[derive(Clone, Debug)]
pub struct EncapSpec<'a> {
    /// Source MAC address on the underlay.
    pub src_mac: MacAddr,
    /// MAC address of the next hop.
    pub dst_mac: MacAddr,
    /// VLAN id of the underlay, 1 to 4094.
    pub vlan: Option<u16>,
    /// Address of this end.
    pub src: IpAddr,
    /// Address of the far end, of the same family.
    pub dst: IpAddr,
    /// Outer TTL or hop limit, not 0; usually 64.
    pub ttl: u8,
    /// The tunnel format.
    pub format: &'a FormatDescriptor,
    /// Put the format's option for the tenant's MSS into the header, if it has one.
    pub mss_option: bool,
    /// The virtual network.
    pub vni: Vni,
    /// Set DF on outer IPv4.
    pub df: bool,
    /// Where the outer DSCP comes from.
    pub dscp: DscpMode,
}

/// Why a specification makes no header.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncapError {
    /// One address is IPv4 and the other IPv6. Give both ends an address of one family.
    #[error("source and destination are of different families")]
    FamilyMismatch,
    /// The VLAN id is 0 or above 4094. Choose one in between, or none.
    #[error("VLAN id {0} is outside 1 to 4094")]
    BadVlan(u16),
    /// The TTL is 0. Use 64.
    #[error("a TTL of 0 reaches nothing")]
    ZeroTtl,
    /// The DSCP is above 63. Choose one from 0 to 63.
    #[error("DSCP {0} is outside 0 to 63")]
    BadDscp(u8),
    /// The format's header is longer than a template holds. Use a format without such options.
    #[error("the outer headers are longer than {MAX_LEN} bytes")]
    TooLong,
    /// The format has fewer bits for a VNI. Choose a smaller one, or another format.
    #[error("VNI {vni} is above {max}, the largest of the format")]
    VniTooLarge {
        /// The VNI.
        vni: u32,
        /// The largest that can be stated.
        max: u32,
    },
}

/// What becomes of the outer transport's checksum.
#[derive(Copy, Clone, Debug)]
pub enum OuterChecksum {
    /// Zero: none. Over IPv6 only where the receiver was told to accept it (RFC 6935, RFC 6936).
    Zero,
    /// Complete.
    Full {
        /// The sum of the whole inner frame, see [`inner_sum_from_headers`].
        inner: Sum,
    },
    /// The pseudo-header's sum; a device completes it (`csum_start` is the outer transport header,
    /// `csum_offset` that of [`EncapTemplate::checksum_offset`]).
    Partial,
}

/// What the outer headers of one frame say of it.
#[derive(Copy, Clone, Debug)]
pub struct OuterFrame {
    /// Bytes of the inner frame.
    pub inner_len: usize,
    /// The flow's hash. It makes the format's flow identifier, and the flow label over IPv6
    /// (RFC 6438).
    pub entropy: u16,
    /// The inner packet's TOS byte, 0 without IP. The outer one is made of it by the DSCP mode and
    /// RFC 6040.
    pub inner_tos: u8,
    /// The outer identification over IPv4.
    pub ip_id: u16,
    /// The number of the frame, where the format's header rides on the first segment only. Frames
    /// that are on their way between two VTEPs at the same time must have different ones.
    pub number: u32,
    /// What becomes of the outer checksum.
    pub csum: OuterChecksum,
    /// What the header states of the inner frame, where the format can.
    pub facts: Facts,
    /// Which segment of a superframe this is.
    pub position: Position,
}

impl OuterFrame {
    /// A frame of which nothing is stated, and that is no part of another.
    #[must_use]
    pub fn new(
        inner_len: usize,
        entropy: u16,
        inner_tos: u8,
        ip_id: u16,
        csum: OuterChecksum,
    ) -> Self {
        let (facts, position) = (Facts::default(), Position::WHOLE);
        Self { inner_len, entropy, inner_tos, ip_id, number: 0, csum, facts, position }
    }
}

/// The place of a segment in its superframe, for fields of a tunnel header that change by it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of the segment, from 0.
    pub index: usize,
    /// It is the last one.
    pub last: bool,
    /// Payload bytes before it.
    pub advance: usize,
}

impl Position {
    /// A frame that is one segment.
    pub const WHOLE: Self = Self { index: 0, last: true, advance: 0 };
}

/// Outer headers from Ethernet to the tunnel header, ready but for what changes per frame.
#[derive(Clone, Debug)]
pub struct EncapTemplate {
    bytes: [u8; MAX_LEN],
    len: u8,
    l3: u8,
    l4: u8,
    tunnel: u8,
    v6: bool,
    dscp: DscpMode,
    // Over addresses and protocol.
    pseudo: Sum,
    // Over the IPv4 header with TOS, length, id and checksum zero.
    ip_sum: Sum,
    // Over transport and tunnel header, where nothing of them but source port and length differs from frame to frame.
    rest_sum: Option<Sum>,
    outer: Outer,
    flow: FlowId,
    stream: Option<Stream>,
    fields: List<Field, MAX_FIELDS>,
    facts: List<FactAt, MAX_FACTS>,
}

/// A few values in place.
#[derive(Copy, Clone, Debug)]
struct List<T, const N: usize> {
    items: [Option<T>; N],
}

impl<T: Copy, const N: usize> List<T, N> {
    /// The first `N` of `items`: a legal descriptor has no more.
    fn of(items: impl Iterator<Item = T>) -> Self {
        let mut list = Self { items: [None; N] };
        for (to, from) in list.items.iter_mut().zip(items) {
            *to = Some(from);
        }
        list
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map_while(Option::as_ref)
    }
}

impl EncapTemplate {
    /// Builds the headers.
    ///
    /// # Errors
    /// Any [`EncapError`].
    pub fn new(spec: &EncapSpec<'_>) -> Result<Self, EncapError> {
        if let Some(vid) = spec.vlan
            && !(1..=4094).contains(&vid)
        {
            return Err(EncapError::BadVlan(vid));
        }
        if let DscpMode::Fixed(dscp @ 64..) = spec.dscp {
            return Err(EncapError::BadDscp(dscp));
        }
        if spec.ttl == 0 {
            return Err(EncapError::ZeroTtl);
        }
        let (format, outer) = (spec.format, spec.format.outer);
        if spec.vni.get() > format.vni.max() {
            return Err(EncapError::VniTooLarge { vni: spec.vni.get(), max: format.vni.max() });
        }
        let mut bytes = [0u8; MAX_LEN];
        let v6 = spec.dst.is_ipv6();
        let tag = spec.vlan.map(|tci| VlanTag { tpid: ether_type::VLAN, tci });
        let ethernet = eth::Repr {
            dst: spec.dst_mac,
            src: spec.src_mac,
            tags: [tag, None],
            ether_type: if v6 { ether_type::IPV6 } else { ether_type::IPV4 },
        };
        let l3 = ethernet.emit(&mut bytes).ok_or(EncapError::TooLong)?;
        let (pseudo, ip_len) = match (spec.src, spec.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = ipv4::Repr::new(src, dst, outer.protocol(), 0);
                ip.df = spec.df;
                ip.ttl = spec.ttl;
                (pseudo_v4(src, dst, outer.protocol(), 0), ip.emit(&mut bytes[l3..]))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut ip = ipv6::Repr::new(src, dst, outer.protocol(), 0);
                ip.hop_limit = spec.ttl;
                (pseudo_v6(&src, &dst, outer.protocol(), 0), ip.emit(&mut bytes[l3..]))
            }
            _ => return Err(EncapError::FamilyMismatch),
        };
        let l4 = l3 + ip_len.ok_or(EncapError::TooLong)?;
        if !v6 {
            put16(&mut bytes, l3 + 2, 0);
            put16(&mut bytes, l3 + 10, 0);
        }
        let ip_sum = Sum::default().add(&bytes[l3..l4]);
        match outer {
            Outer::Udp { port } => put16(&mut bytes, l4 + 2, port),
            Outer::Tcp { port } => {
                put16(&mut bytes, l4 + 2, port);
                put8(&mut bytes, l4 + 12, (tcp::HEADER_LEN as u8 / 4) << 4);
                put8(&mut bytes, l4 + 13, tcp::flags::ACK | tcp::flags::PSH);
            }
            Outer::Ip { .. } => {}
        }
        let tunnel = l4 + outer.header_len();
        let mut len = tunnel + format.template.len();
        let header = bytes.get_mut(tunnel..len).ok_or(EncapError::TooLong)?;
        header.copy_from_slice(&format.template);
        format.vni.write(header, spec.vni.get());
        let mut facts: Vec<FactAt> = format.facts.to_vec();
        if let Some((options, known)) = format.mss_option().filter(|_| spec.mss_option) {
            let start = len;
            let data = start + usize::from(options.head_len);
            len = data + usize::from(known.units) * usize::from(options.scale);
            let option = bytes.get_mut(start..len).ok_or(EncapError::TooLong)?;
            options.id.write(option, known.id);
            options.len.write(option, known.units.into());
            let at = ((data - tunnel) * 8) as u16 + known.states.bits.bit;
            let bits = Bits { bit: at, ..known.states.bits };
            facts.push(FactAt { fact: known.states.fact, bits });
            if let InnerOffset::Scaled { bits, base, scale } = format.inner_offset {
                let units = (len - tunnel - usize::from(base)) / usize::from(scale.max(1));
                bits.write(bytes.get_mut(tunnel..len).unwrap_or_default(), units as u32);
            }
        }
        let is_same = matches!(outer, Outer::Udp { .. })
            && !matches!(format.flow, FlowId::Header(_))
            && format.fields.is_empty()
            && facts.is_empty();
        let rest_sum = is_same.then(|| Sum::default().add(bytes.get(l4..len).unwrap_or_default()));
        Ok(Self {
            bytes,
            len: len as u8,
            l3: l3 as u8,
            l4: l4 as u8,
            tunnel: tunnel as u8,
            v6,
            dscp: spec.dscp,
            pseudo,
            ip_sum,
            rest_sum,
            outer,
            flow: format.flow,
            stream: format.numbers().copied(),
            fields: List::of(format.fields.iter().copied()),
            facts: List::of(facts.into_iter()),
        })
    }

    /// The same headers without DF, so that routers may fragment the packet. Over IPv6, where only
    /// the sender may, they are the same.
    #[must_use]
    pub fn without_df(&self) -> Self {
        let mut template = self.clone();
        if !self.v6 {
            let (l3, l4) = (self.l3_offset(), self.l4_offset());
            put16(&mut template.bytes, l3 + 6, 0);
            template.ip_sum = Sum::default().add(&template.bytes[l3..l4]);
        }
        template
    }

    /// Bytes of all outer headers.
    #[expect(clippy::len_without_is_empty, reason = "a template is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Bytes from the outer IP header to the inner frame: what the underlay's MTU has to hold
    /// besides it.
    #[must_use]
    pub fn overhead_l3(&self) -> usize {
        usize::from(self.len - self.l3)
    }

    /// True for an IPv6 underlay.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    /// Offset of the outer IP header.
    #[must_use]
    pub fn l3_offset(&self) -> usize {
        usize::from(self.l3)
    }

    /// Offset of the outer transport header: `csum_start` of [`OuterChecksum::Partial`].
    #[must_use]
    pub fn l4_offset(&self) -> usize {
        usize::from(self.l4)
    }

    /// Offset of the tunnel header: from there on the headers of each datagram repeat in a frame
    /// that a device cuts (`GSO_UDP_L4`).
    #[must_use]
    pub fn tunnel_offset(&self) -> usize {
        usize::from(self.tunnel)
    }

    /// The outer transport.
    #[must_use]
    pub const fn outer(&self) -> Outer {
        self.outer
    }

    /// The checksum's offset in the outer transport header: `csum_offset` of
    /// [`OuterChecksum::Partial`]. None for a transport without one.
    #[must_use]
    pub const fn checksum_offset(&self) -> Option<u16> {
        self.outer.checksum_offset()
    }

    /// Whether the tunnel header rides on the first segment only: what [`EncapTemplate::emit`]
    /// writes is in front of the whole frame, and what goes on the wire are the TCP segments that it
    /// is cut into ([`crate::segment`]).
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// The most bytes of inner frame that the outer length fields can state.
    #[must_use]
    pub fn max_inner_len(&self) -> usize {
        let counted_from = if self.v6 { self.l4 } else { self.l3 };
        0xffff - usize::from(self.len - counted_from)
    }

    /// Writes all outer headers into `out[..self.len()]` and answers their length; 0, with nothing
    /// written, if `out` is shorter or the inner frame longer than
    /// [`EncapTemplate::max_inner_len`].
    #[inline]
    pub fn emit(&self, out: &mut [u8], frame: &OuterFrame) -> usize {
        let len = self.len();
        if frame.inner_len > self.max_inner_len() {
            return 0;
        }
        let Some(out) = out.get_mut(..len) else { return 0 };
        out.copy_from_slice(self.bytes.get(..len).unwrap_or_default());
        let (l3, l4, end) = (self.l3_offset(), self.l4_offset(), len + frame.inner_len);
        let tos = match self.dscp {
            DscpMode::Inherit => frame.inner_tos & !ecn::MASK,
            DscpMode::Fixed(dscp) => dscp << 2,
        } | ecn::encapsulate(frame.inner_tos);
        if self.v6 {
            put32(out, l3, 6 << 28 | u32::from(tos) << 20 | u32::from(frame.entropy));
            put16(out, l3 + 4, (end - l4) as u16);
        } else {
            let total = (end - l3) as u16;
            let sum = self.ip_sum.add_u16(u16::from(tos)).add_u16(total).add_u16(frame.ip_id);
            put16(out, l3, 0x4500 | u16::from(tos));
            put16(out, l3 + 2, total);
            put16(out, l3 + 4, frame.ip_id);
            put16(out, l3 + 10, sum.finish());
        }
        self.stamp(out, self.tunnel_offset(), frame);
        match self.outer {
            Outer::Udp { .. } => {
                put16(out, l4, self.flow.source_port(frame.entropy));
                put16(out, l4 + 4, (end - l4) as u16);
            }
            Outer::Tcp { .. } => {
                put16(out, l4, self.flow.source_port(frame.entropy));
                if let (Some(stream), Some(header)) = (&self.stream, out.get_mut(l4..)) {
                    stream.length.write(header, (end - self.tunnel_offset()) as u32);
                    stream.offset.write(header, 0);
                    stream.frame.write(header, frame.number);
                }
            }
            Outer::Ip { .. } => {}
        }
        if let Some(at) = self.outer.checksum_offset() {
            let pseudo = self.pseudo.add_u16((end - l4) as u16);
            let sum = match frame.csum {
                OuterChecksum::Zero => 0,
                OuterChecksum::Partial => pseudo.fold(),
                OuterChecksum::Full { inner } => {
                    let rest = match self.rest_sum {
                        // What was just written is not read again: that would wait for the writes.
                        Some(sum) => Sum::default()
                            .add_u16(self.flow.source_port(frame.entropy))
                            .add_u16((end - l4) as u16)
                            .add_sum(sum),
                        None => Sum::default().add(out.get(l4..).unwrap_or_default()),
                    };
                    let sum = pseudo.add_sum(rest).add_sum(inner);
                    if matches!(self.outer, Outer::Udp { .. }) {
                        sum.finish_udp()
                    } else {
                        sum.finish()
                    }
                }
            };
            put16(out, l4 + usize::from(at), sum);
        }
        len
    }

    /// Writes only the tunnel header, for the second and later datagrams of a frame that a device
    /// cuts, and answers its length; 0 if `out` is shorter.
    #[inline]
    pub fn emit_tunnel_header(&self, out: &mut [u8], frame: &OuterFrame) -> usize {
        let header = self.bytes.get(self.tunnel_offset()..self.len()).unwrap_or_default();
        let Some(out) = out.get_mut(..header.len()) else { return 0 };
        put(out, 0, header);
        self.stamp(out, 0, frame);
        header.len()
    }

    /// Fills what differs per frame in the tunnel header, which starts at `start` and ends `out`.
    #[inline]
    fn stamp(&self, out: &mut [u8], start: usize, frame: &OuterFrame) {
        if let (FlowId::Header(bits), Some(header)) = (self.flow, out.get_mut(start..)) {
            bits.write(header, frame.entropy.into());
        }
        for at in self.facts.iter() {
            if let Some(header) = out.get_mut(start..) {
                at.bits.write(header, frame.facts.get(at.fact));
            }
        }
        let Position { index, last, advance } = frame.position;
        let cut = Cut { index, last, advance, end: out.len() + frame.inner_len, hold: false };
        for field in self.fields.iter() {
            cut.apply(std::slice::from_ref(field), start, out);
        }
        for field in self.fields.iter().filter(|field| field.rule == Rule::HeaderChecksum) {
            let at = start + usize::from(field.offset);
            put16(out, at, 0);
            let sum = Sum::default().add(out.get(start..).unwrap_or_default()).finish();
            put16(out, at, sum);
        }
    }
}

/// The sum of a whole inner frame from its headers alone: over a TCP or UDP packet with a right
/// checksum, everything from L4 on sums to the complement of the pseudo-header.
///
/// Valid only if the inner L4 checksum is complete, right and present (not a UDP zero), covers the
/// rest of the frame, and the frame is no fragment and has no [`crate::packet::Extensions::Special`].
#[inline]
#[must_use]
pub fn inner_sum_from_headers(head: &[u8], pkt: &Packet) -> Sum {
    let before = head.get(..usize::from(pkt.l4)).unwrap_or_default();
    let l4 = pkt.pseudo_header(head, pkt.l4_len() as u32).complement();
    Sum::default().add(before).add_sum(l4)
}
