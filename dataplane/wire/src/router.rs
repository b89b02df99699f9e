//! Router discovery (RFC 4861 sections 4.1 and 4.2): solicitations, and the advertisements that answer
//! them.

use std::net::{IpAddr, Ipv6Addr};

use crate::eth::MacAddr;
use crate::icmpv6;
use crate::packet::{Frag, IpKind, Packet};
use crate::proto;
use crate::writer::{Writer, labels};

/// All nodes of the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;

const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
const ON_LINK: u8 = 0x80;

/// Hop limit that hosts are told to send with.
const HOP_LIMIT: u8 = 64;

/// Who solicits, if the frame is a valid router solicitation (RFC 4861 section 6.1.1).
#[must_use]
pub fn solicitor(head: &[u8], pkt: &Packet) -> Option<Ipv6Addr> {
    let is_icmp = pkt.ip == IpKind::V6 && pkt.proto == proto::ICMPV6;
    if !is_icmp || pkt.frag != Frag::None || pkt.ttl != 255 {
        return None;
    }
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (pkt.src_ip(head)?, pkt.dst_ip(head)?) else {
        return None;
    };
    let message = icmpv6::View::new(head.get(usize::from(pkt.l4)..pkt.len as usize)?).ok()?;
    let repr = message.repr();
    let solicits = repr.kind == icmpv6::kind::ROUTER_SOLICITATION && repr.code == 0;
    (solicits && message.checksum_ok(&src, &dst)).then_some(src)
}

/// What a router says about itself and the link.
#[derive(Copy, Clone, Debug)]
pub struct Advertisement<'a> {
    /// Its MAC address.
    pub mac: MacAddr,
    /// For how long it may be the default router, and for which the rest holds, seconds.
    pub lifetime_s: u16,
    /// Addresses are to be had by DHCPv6.
    pub managed: bool,
    /// The rest is to be had by DHCPv6.
    pub other: bool,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
    /// Prefixes of the link, none of which is for addresses that hosts make themselves.
    pub prefixes: &'a [(Ipv6Addr, u8)],
    /// Recursive DNS servers (RFC 8106).
    pub dns: &'a [Ipv6Addr],
    /// The domain that is searched (RFC 8106).
    pub domain: Option<&'a str>,
}

impl Advertisement<'_> {
    /// Writes the message from the given address to `dst`, and answers its length; `None` if `out` is too
    /// short.
    pub fn emit(&self, src: &Ipv6Addr, dst: &Ipv6Addr, out: &mut [u8]) -> Option<usize> {
        let mut body = [0; 1024];
        let mut w = Writer::new(&mut body);
        // Reachable time and retransmission timer: as the host likes.
        w.u32(0);
        w.u32(0);
        w.bytes(&[icmpv6::OPTION_SOURCE_LINK, 1]);
        w.bytes(&self.mac.0);
        w.bytes(&[OPTION_MTU, 1, 0, 0]);
        w.u32(self.mtu);
        for (prefix, len) in self.prefixes {
            w.bytes(&[OPTION_PREFIX, 4, *len, ON_LINK]);
            w.u32(self.lifetime_s.into());
            w.u32(self.lifetime_s.into());
            w.u32(0);
            w.bytes(&prefix.octets());
        }
        if !self.dns.is_empty() {
            w.bytes(&[OPTION_RDNSS, (1 + 2 * self.dns.len()) as u8, 0, 0]);
            w.u32(self.lifetime_s.into());
            self.dns.iter().for_each(|ip| w.bytes(&ip.octets()));
        }
        if let Some(domain) = self.domain {
            let len = 8 + domain.len() + 2;
            w.bytes(&[OPTION_DNSSL, len.div_ceil(8) as u8, 0, 0]);
            w.u32(self.lifetime_s.into());
            labels(&mut w, domain);
            w.zeroes(len.next_multiple_of(8) - len);
        }
        let len = w.finish()?;
        let flags = if self.managed { MANAGED } else { 0 } | if self.other { OTHER } else { 0 };
        let rest = u32::from_be_bytes([HOP_LIMIT, flags, 0, 0]) | u32::from(self.lifetime_s);
        let kind = icmpv6::kind::ROUTER_ADVERTISEMENT;
        icmpv6::Repr { kind, code: 0, rest }.emit(src, dst, body.get(..len)?, out)
    }
}
