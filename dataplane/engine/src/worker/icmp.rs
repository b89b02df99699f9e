//! ICMP: errors that tenants get from us, and path MTU that the underlay reports to us.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_port::Buf;
use culvert_wire::eth::MacAddr;
use culvert_wire::format::VXLAN;
use culvert_wire::packet::{IpKind, Packet};
use culvert_wire::{icmpv4, icmpv6, proto, reply};

use super::Worker;
use crate::drops::DropReason;
use crate::limits::{MIN_PMTU_V4, MIN_PMTU_V6};
use crate::shared::Event;
use crate::tables::{LinkIndex, PortIndex};

/// So many events in each second, and no more.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u32,
    left: u32,
    since: Option<Instant>,
}

impl RateLimit {
    /// Allows `per_second` events.
    pub fn new(per_second: u32) -> Self {
        RateLimit { per_second, left: per_second, since: None }
    }

    /// Whether one more is allowed now.
    pub fn allow(&mut self, now: Instant) -> bool {
        let over = |since: Instant| now.duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.left = self.per_second;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

impl Worker {
    /// Tells a tenant that its packet is too big for the way: fragmentation needed (RFC 1191) or
    /// packet too big (RFC 8201). It comes from the packet's own destination, since no router that
    /// the tenant knows stands between.
    pub(super) fn packet_too_big(&mut self, port: PortIndex, buf: &Buf, pkt: &Packet, mtu: u32) {
        if !self.icmp.allow(self.polling.now()) {
            return;
        }
        let mac = self.tables.port(port).map(|entry| entry.mac);
        self.reply_to(port, buf, |out, head| match pkt.dst_ip(head)? {
            IpAddr::V4(from) => {
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                let len = reply::icmpv4_frag_needed(out, head, pkt, mtu, from);
                to_tenant(out, mac, len)
            }
            IpAddr::V6(from) => {
                let len = reply::icmpv6_packet_too_big(out, head, pkt, mtu, from);
                to_tenant(out, mac, len)
            }
        });
    }

    /// Tells a tenant that its packet's hop limit ended at our router.
    pub(super) fn time_exceeded(&mut self, port: PortIndex, buf: &Buf, pkt: &Packet) {
        if !self.icmp.allow(self.polling.now()) {
            return;
        }
        let tables = std::sync::Arc::clone(&self.tables);
        let vnet = tables.port(port).and_then(|entry| tables.vnet(entry.vnet));
        let Some(vnet) = vnet else { return };
        let of_family =
            |v4: bool| vnet.gateways.iter().map(|g| g.net.addr()).find(|ip| ip.is_ipv4() == v4);
        let from = of_family(pkt.ip == IpKind::V4);
        self.reply_to(port, buf, |out, head| match from? {
            IpAddr::V4(from) => reply::icmpv4_time_exceeded(out, head, pkt, from),
            IpAddr::V6(from) => reply::icmpv6_time_exceeded(out, head, pkt, from),
        });
    }

    /// Reads an ICMP error about a tunnel packet of ours. Only a smaller MTU is news.
    pub(super) fn path_mtu_report(&mut self, link: LinkIndex, buf: &Buf, pkt: &Packet) {
        let head = buf.head().data();
        let message = head.get(usize::from(pkt.l4)..pkt.len as usize).unwrap_or_default();
        let report = match pkt.proto {
            proto::ICMPV4 => read_v4(message),
            _ => read_v6(message, head, pkt),
        };
        let Some((vtep, mtu)) = report else {
            return self.counters.link(link).drop(DropReason::NotTunnel);
        };
        let floor = if vtep.is_ipv4() { MIN_PMTU_V4 } else { MIN_PMTU_V6 };
        if mtu >= floor && self.tables.vtep_of(&vtep).is_some() {
            self.shared.event(Event::PathMtu { vtep, mtu });
        }
    }
}

/// Addresses an error to the tenant's own MAC: a router of ours may have rewritten the packet that
/// it is about.
fn to_tenant(out: &mut [u8], mac: Option<MacAddr>, len: Option<usize>) -> Option<usize> {
    out.get_mut(..6)?.copy_from_slice(&mac?.0);
    len
}

/// The VTEP and the MTU of a fragmentation-needed message (RFC 1191 section 4).
fn read_v4(message: &[u8]) -> Option<(IpAddr, u32)> {
    let view = icmpv4::View::new(message).ok()?;
    if !view.checksum_ok() {
        return None;
    }
    let repr = view.repr();
    if repr.kind != icmpv4::kind::UNREACHABLE || repr.code != icmpv4::FRAG_NEEDED {
        return None;
    }
    let quoted = view.payload();
    let header_len = usize::from(quoted.first()? & 0x0f) * 4;
    let is_ours = quoted.first()? >> 4 == 4
        && *quoted.get(9)? == proto::UDP
        && is_from_a_tunnel(quoted.get(header_len..)?)?;
    let dst: [u8; 4] = *quoted.get(16..)?.first_chunk()?;
    is_ours.then_some((IpAddr::from(dst), repr.rest & 0xffff))
}

/// The VTEP and the MTU of a packet-too-big message (RFC 4443 section 3.2).
fn read_v6(message: &[u8], head: &[u8], pkt: &Packet) -> Option<(IpAddr, u32)> {
    let view = icmpv6::View::new(message).ok()?;
    let (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) = (pkt.src_ip(head), pkt.dst_ip(head))
    else {
        return None;
    };
    let repr = view.repr();
    if repr.kind != icmpv6::kind::PACKET_TOO_BIG || !view.checksum_ok(&src, &dst) {
        return None;
    }
    let quoted = view.payload();
    let is_ours = quoted.first()? >> 4 == 6
        && *quoted.get(6)? == proto::UDP
        && is_from_a_tunnel(quoted.get(40..)?)?;
    let dst: [u8; 16] = *quoted.get(24..)?.first_chunk()?;
    is_ours.then_some((IpAddr::from(dst), repr.rest))
}

/// Whether a quoted UDP header has the ports of a tunnel packet of ours. Who forges an error without having seen one
/// (RFC 5927) fails here, where the source port is none that we use.
fn is_from_a_tunnel(udp: &[u8]) -> Option<bool> {
    let src = u16::from_be_bytes([*udp.first()?, *udp.get(1)?]);
    let dst = u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]);
    Some(dst == VXLAN.outer.port() && VXLAN.flow.source_port(src) == src)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_allows_its_share_of_each_second() {
        let start = Instant::now();
        let mut limit = RateLimit::new(2);
        assert!(limit.allow(start) && limit.allow(start) && !limit.allow(start));
        let later = start + Duration::from_millis(1001);
        assert!(limit.allow(later) && limit.allow(later) && !limit.allow(later));
    }

    #[test]
    fn a_report_is_read_only_if_it_quotes_our_tunnel() {
        let mut quoted = vec![0x45, 0, 0, 100, 0, 0, 0x40, 0, 64, 17, 0, 0];
        quoted.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        quoted.extend([0xc0, 0, 0x12, 0xb5, 0, 80, 0xbe, 0xef]);
        let repr = icmpv4::Repr { kind: 3, code: 4, rest: 1400 };
        let mut message = vec![0; 256];
        let len = repr.emit(&quoted, &mut message).unwrap();
        assert_eq!(read_v4(&message[..len]), Some(("192.0.2.2".parse().unwrap(), 1400)));
        for cut in 0..len {
            assert_eq!(read_v4(&message[..cut]), None, "cut to {cut}");
        }
        // The lowest source port that we use, then one below, then another destination port.
        for (ports, ours) in [([0xc0, 0], true), ([0xbf, 0xff], false)] {
            quoted[20..22].copy_from_slice(&ports);
            let len = repr.emit(&quoted, &mut message).unwrap();
            assert_eq!(read_v4(&message[..len]).is_some(), ours);
        }
        quoted[20..24].copy_from_slice(&[0xc0, 0, 0x12, 0xb6]);
        let len = repr.emit(&quoted, &mut message).unwrap();
        assert_eq!(read_v4(&message[..len]), None);
    }
}
