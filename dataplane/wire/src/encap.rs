//! Outer headers, built once per destination and stamped per frame.

use std::net::IpAddr;

use crate::bytes::{put, put16, put32};
use crate::checksum::{Sum, pseudo_v4, pseudo_v6};
use crate::cut::Cut;
use crate::ecn;
use crate::eth::{self, MacAddr, VlanTag, ether_type};
use crate::format::{FormatDescriptor, Outer};
use crate::packet::Packet;
use crate::vni::Vni;
use crate::{ipv4, ipv6, proto, udp};

/// The most bytes of outer headers: tagged Ethernet, IPv6, UDP and 30 bytes of tunnel header.
pub const MAX_LEN: usize = 96;

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
pub struct EncapSpec {
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
    pub format: &'static FormatDescriptor,
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
    /// `csum_offset` 6).
    Partial,
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
    format: &'static FormatDescriptor,
}

impl EncapTemplate {
    /// Builds the headers.
    ///
    /// # Errors
    /// Any [`EncapError`].
    pub fn new(spec: &EncapSpec) -> Result<Self, EncapError> {
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
        let Outer::Udp { port } = spec.format.outer;
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
                let mut ip = ipv4::Repr::new(src, dst, proto::UDP, 0);
                ip.df = spec.df;
                ip.ttl = spec.ttl;
                (pseudo_v4(src, dst, proto::UDP, 0), ip.emit(&mut bytes[l3..]))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut ip = ipv6::Repr::new(src, dst, proto::UDP, 0);
                ip.hop_limit = spec.ttl;
                (pseudo_v6(&src, &dst, proto::UDP, 0), ip.emit(&mut bytes[l3..]))
            }
            _ => return Err(EncapError::FamilyMismatch),
        };
        let l4 = l3 + ip_len.ok_or(EncapError::TooLong)?;
        if !v6 {
            put16(&mut bytes, l3 + 2, 0);
            put16(&mut bytes, l3 + 10, 0);
        }
        let ip_sum = Sum::default().add(&bytes[l3..l4]);
        put16(&mut bytes, l4 + 2, port);
        let tunnel = l4 + udp::HEADER_LEN;
        let len = tunnel + spec.format.template.len();
        let header = bytes.get_mut(tunnel..len).ok_or(EncapError::TooLong)?;
        header.copy_from_slice(spec.format.template);
        spec.format.vni.write(header, spec.vni.get());
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
            format: spec.format,
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

    /// The most bytes of inner frame that the outer length fields can state.
    #[must_use]
    pub fn max_inner_len(&self) -> usize {
        let counted_from = if self.v6 { self.l4 } else { self.l3 };
        0xffff - usize::from(self.len - counted_from)
    }

    /// Writes all outer headers into `out[..self.len()]` for an inner frame of `inner_len` bytes
    /// and answers their length; 0, with nothing written, if `out` is shorter or `inner_len` above
    /// [`EncapTemplate::max_inner_len`].
    ///
    /// `entropy` (the flow's hash) makes the format's flow identifier, and the flow label over IPv6
    /// (RFC 6438). `inner_tos` is the inner packet's TOS byte, 0 without IP; the outer one is made
    /// of it by the DSCP mode and RFC 6040. `ip_id` is the outer identification over IPv4.
    #[inline]
    pub fn emit(
        &self,
        out: &mut [u8],
        inner_len: usize,
        entropy: u16,
        inner_tos: u8,
        ip_id: u16,
        csum: OuterChecksum,
    ) -> usize {
        let len = self.len();
        if inner_len > self.max_inner_len() {
            return 0;
        }
        let Some(out) = out.get_mut(..len) else { return 0 };
        out.copy_from_slice(&self.bytes[..len]);
        let (l3, l4, end) = (self.l3_offset(), self.l4_offset(), len + inner_len);
        let tos = match self.dscp {
            DscpMode::Inherit => inner_tos & !ecn::MASK,
            DscpMode::Fixed(dscp) => dscp << 2,
        } | ecn::encapsulate(inner_tos);
        if self.v6 {
            put32(out, l3, 6 << 28 | u32::from(tos) << 20 | u32::from(entropy));
            put16(out, l3 + 4, (end - l4) as u16);
        } else {
            let total = (end - l3) as u16;
            let sum = self.ip_sum.add_u16(u16::from(tos)).add_u16(total).add_u16(ip_id);
            put16(out, l3, 0x4500 | u16::from(tos));
            put16(out, l3 + 2, total);
            put16(out, l3 + 4, ip_id);
            put16(out, l3 + 10, sum.finish());
        }
        put16(out, l4, self.format.flow.source_port(entropy));
        put16(out, l4 + 4, (end - l4) as u16);
        self.stamp(out, self.tunnel_offset(), inner_len);
        let pseudo = self.pseudo.add_u16((end - l4) as u16);
        let sum = match csum {
            OuterChecksum::Zero => 0,
            OuterChecksum::Partial => pseudo.fold(),
            OuterChecksum::Full { inner } => {
                pseudo.add(out.get(l4..).unwrap_or_default()).add_sum(inner).finish_udp()
            }
        };
        put16(out, l4 + 6, sum);
        len
    }

    /// Writes only the tunnel header, for the second and later datagrams of a frame that a device
    /// cuts, and answers its length; 0 if `out` is shorter.
    #[inline]
    pub fn emit_tunnel_header(&self, out: &mut [u8], inner_len: usize) -> usize {
        let header = self.bytes.get(self.tunnel_offset()..self.len()).unwrap_or_default();
        let Some(out) = out.get_mut(..header.len()) else { return 0 };
        put(out, 0, header);
        self.stamp(out, 0, inner_len);
        header.len()
    }

    fn stamp(&self, out: &mut [u8], start: usize, inner_len: usize) {
        let end = out.len() + inner_len;
        let cut = Cut { index: 0, last: true, advance: 0, end, hold: false };
        cut.apply(self.format.fields, start, out);
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
