//! Frames that answer a frame.
//!
//! Every builder writes a whole frame into `out` and answers its length, or `None` if the frame is
//! not one to answer or `out` is too short ([`MAX_LEN`] is always enough). The answer goes back the
//! way the frame came: to its source MAC address, with its VLAN tags. Limiting the rate of errors
//! (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)) is for the caller.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bytes::{get8, put, put16};
use crate::checksum::{pseudo_v4, pseudo_v6};
use crate::eth::{self, MacAddr};
use crate::packet::{Frag, IpKind, Packet};
use crate::{arp, icmpv4, icmpv6, ipv4, ipv6, proto, router, udp};

/// Bytes of the longest answer: an ICMP for IPv6 error of [`ipv6::MIN_MTU`] behind two VLAN tags.
pub const MAX_LEN: usize = eth::HEADER_LEN + eth::MAX_TAGS * eth::TAG_LEN + ipv6::MIN_MTU;

/// Bytes of the longest ICMP for IPv4 error from its IP header on (RFC 1812 section 4.3.2.3).
pub const MAX_ICMPV4_ERROR_LEN: usize = 576;

/// Internetwork control, the precedence of ICMP errors (RFC 1812 section 4.3.2.5).
const TOS_CONTROL: u8 = 0xc0;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ROUTER: u32 = 1 << 31;
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;

/// Answers an ARP request for an address of which `mac` is known; the answer claims to come from
/// `mac`. `None` if the frame is no request for Ethernet and IPv4.
#[must_use]
pub fn arp_reply(out: &mut [u8], head: &[u8], pkt: &Packet, mac: MacAddr) -> Option<usize> {
    if pkt.ether_type != eth::ether_type::ARP {
        return None;
    }
    let request = arp::Repr::parse(head.get(usize::from(pkt.l3)..)?).ok()?;
    if request.op != arp::REQUEST || request.sender_mac.is_multicast() {
        return None;
    }
    let at = ethernet(out, head, mac, request.sender_mac)?;
    let reply = arp::Repr {
        op: arp::REPLY,
        sender_mac: mac,
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    Some(at + reply.emit(out.get_mut(at..)?)?)
}

/// The target of a valid neighbour solicitation (RFC 4861 section 7.1.1), checksum included; `None`
/// if the frame is none.
#[must_use]
pub fn solicited_target(head: &[u8], pkt: &Packet) -> Option<Ipv6Addr> {
    Solicitation::parse(head, pkt).map(|s| s.target)
}

struct Solicitation {
    src: Ipv6Addr,
    target: Ipv6Addr,
    link: MacAddr,
}

impl Solicitation {
    fn parse(head: &[u8], pkt: &Packet) -> Option<Self> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (pkt.src_ip(head)?, pkt.dst_ip(head)?) else {
            return None;
        };
        if pkt.proto != proto::ICMPV6 || pkt.frag != Frag::None || pkt.ttl != 255 {
            return None;
        }
        let message = icmpv6::View::new(head.get(usize::from(pkt.l4)..pkt.len as usize)?).ok()?;
        let repr = message.repr();
        let is_solicitation = repr.kind == icmpv6::kind::NEIGHBOUR_SOLICITATION && repr.code == 0;
        if !is_solicitation || !message.checksum_ok(&src, &dst) {
            return None;
        }
        let target = message.target().filter(|t| !t.is_multicast())?;
        let link = message.link_option(icmpv6::OPTION_SOURCE_LINK);
        if src.is_unspecified() && (link.is_some() || !is_solicited_node(&dst)) {
            return None;
        }
        let link = link.unwrap_or_else(|| pkt.src_mac(head));
        (!link.is_multicast()).then_some(Self { src, target, link })
    }
}

fn is_solicited_node(address: &Ipv6Addr) -> bool {
    address.octets().starts_with(&[0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff])
}

/// Answers a neighbour solicitation for an address of which `mac` is known: an advertisement with
/// the override flag, to the solicitor, or to all nodes where it has no address yet (RFC 4861
/// section 7.2.4). `None` if the frame is no valid solicitation.
#[must_use]
pub fn neighbour_advertisement(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    mac: MacAddr,
    router: bool,
) -> Option<usize> {
    let asked = Solicitation::parse(head, pkt)?;
    let (dst, dst_mac, solicited) = if asked.src.is_unspecified() {
        (ALL_NODES, MacAddr::ipv6_multicast(ALL_NODES), 0)
    } else {
        (asked.src, asked.link, SOLICITED)
    };
    let mut body = [0u8; 24];
    put(&mut body, 0, &asked.target.octets());
    put(&mut body, 16, &[icmpv6::OPTION_TARGET_LINK, 1]);
    put(&mut body, 18, &mac.0);
    let message = icmpv6::Repr {
        kind: icmpv6::kind::NEIGHBOUR_ADVERTISEMENT,
        code: 0,
        rest: if router { ROUTER } else { 0 } | solicited | OVERRIDE,
    };
    let at = ethernet(out, head, mac, dst_mac)?;
    let len = (icmpv6::HEADER_LEN + body.len()) as u16;
    let mut ip = ipv6::Repr::new(asked.target, dst, proto::ICMPV6, len);
    ip.hop_limit = 255;
    let body_at = at + ip.emit(out.get_mut(at..)?)?;
    Some(body_at + message.emit(&asked.target, &dst, &body, out.get_mut(body_at..)?)?)
}

/// Tells the sender of a packet with DF that the next hop takes `mtu` bytes (RFC 1191). `from` is
/// the address that the answer claims to come from: that of a router, or the packet's destination.
/// `None` for what must not be answered (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7).
#[must_use]
pub fn icmpv4_frag_needed(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    mtu: u16,
    from: Ipv4Addr,
) -> Option<usize> {
    let message = icmpv4::Repr {
        kind: icmpv4::kind::UNREACHABLE,
        code: icmpv4::FRAG_NEEDED,
        rest: u32::from(mtu),
    };
    icmpv4_error(out, head, pkt, message, from)
}

/// Tells the sender that the packet's TTL ran out. As [`icmpv4_frag_needed`].
#[must_use]
pub fn icmpv4_time_exceeded(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    from: Ipv4Addr,
) -> Option<usize> {
    let message = icmpv4::Repr { kind: icmpv4::kind::TIME_EXCEEDED, code: 0, rest: 0 };
    icmpv4_error(out, head, pkt, message, from)
}

fn icmpv4_error(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    message: icmpv4::Repr,
    from: Ipv4Addr,
) -> Option<usize> {
    let IpAddr::V4(src) = pkt.src_ip(head)? else { return None };
    let IpAddr::V4(dst) = pkt.dst_ip(head)? else { return None };
    let source_is_one_host = !(src.is_unspecified()
        || src.is_multicast()
        || src.is_loopback()
        || src.octets()[0] >= 240);
    if !may_be_answered(head, pkt) || !source_is_one_host {
        return None;
    }
    if dst.is_multicast() || dst.is_broadcast() {
        return None;
    }
    let room = MAX_ICMPV4_ERROR_LEN - ipv4::HEADER_LEN - icmpv4::HEADER_LEN;
    let quote = quote(head, pkt, room)?;
    let at = ethernet(out, head, pkt.dst_mac(head), pkt.src_mac(head))?;
    let len = (icmpv4::HEADER_LEN + quote.len()) as u16;
    let mut ip = ipv4::Repr::new(from, src, proto::ICMPV4, len);
    ip.tos = TOS_CONTROL;
    let body_at = at + ip.emit(out.get_mut(at..)?)?;
    Some(body_at + message.emit(quote, out.get_mut(body_at..)?)?)
}

/// Tells the sender that the next hop takes `mtu` bytes (RFC 4443 section 3.2). `from` is the
/// address that the answer claims to come from. `None` for what must not be answered (RFC 4443
/// section 2.4 (e)), and for multicast, where an answer is allowed but would come from many.
#[must_use]
pub fn icmpv6_packet_too_big(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    mtu: u32,
    from: Ipv6Addr,
) -> Option<usize> {
    let message = icmpv6::Repr { kind: icmpv6::kind::PACKET_TOO_BIG, code: 0, rest: mtu };
    icmpv6_error(out, head, pkt, message, from)
}

/// Tells the sender that the packet's hop limit ran out. As [`icmpv6_packet_too_big`].
#[must_use]
pub fn icmpv6_time_exceeded(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    from: Ipv6Addr,
) -> Option<usize> {
    let message = icmpv6::Repr { kind: icmpv6::kind::TIME_EXCEEDED, code: 0, rest: 0 };
    icmpv6_error(out, head, pkt, message, from)
}

fn icmpv6_error(
    out: &mut [u8],
    head: &[u8],
    pkt: &Packet,
    message: icmpv6::Repr,
    from: Ipv6Addr,
) -> Option<usize> {
    let IpAddr::V6(src) = pkt.src_ip(head)? else { return None };
    let IpAddr::V6(dst) = pkt.dst_ip(head)? else { return None };
    let source_is_one_host = !(src.is_unspecified() || src.is_multicast() || src.is_loopback());
    if !may_be_answered(head, pkt) || !source_is_one_host || dst.is_multicast() {
        return None;
    }
    let quote = quote(head, pkt, ipv6::MIN_MTU - ipv6::HEADER_LEN - icmpv6::HEADER_LEN)?;
    let at = ethernet(out, head, pkt.dst_mac(head), pkt.src_mac(head))?;
    let len = (icmpv6::HEADER_LEN + quote.len()) as u16;
    let ip = ipv6::Repr::new(from, src, proto::ICMPV6, len);
    let body_at = at + ip.emit(out.get_mut(at..)?)?;
    Some(body_at + message.emit(&from, &src, quote, out.get_mut(body_at..)?)?)
}

/// Ends of a datagram: MAC address, IP address and UDP port of who sends it, and of who is to get it.
#[derive(Copy, Clone, Debug)]
pub struct Ends {
    /// MAC addresses, the sender's first.
    pub macs: (MacAddr, MacAddr),
    /// IP addresses, of one family, likewise.
    pub ips: (IpAddr, IpAddr),
    /// UDP ports, likewise.
    pub ports: (u16, u16),
}

/// A UDP datagram, behind the VLAN tags of the frame that it answers. `payload` writes what it carries,
/// and answers its length.
pub fn datagram(
    out: &mut [u8],
    head: &[u8],
    ends: Ends,
    payload: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<usize> {
    let ip_at = ethernet(out, head, ends.macs.0, ends.macs.1)?;
    let ip_len = match ends.ips {
        (IpAddr::V4(_), IpAddr::V4(_)) => ipv4::HEADER_LEN,
        (IpAddr::V6(_), IpAddr::V6(_)) => ipv6::HEADER_LEN,
        _ => return None,
    };
    let udp_at = ip_at + ip_len;
    let payload_len = payload(out.get_mut(udp_at + udp::HEADER_LEN..)?)?;
    let udp_len = u16::try_from(payload_len + udp::HEADER_LEN).ok()?;
    let (src_port, dst_port) = ends.ports;
    let header = udp::Repr { src_port, dst_port, payload_len: payload_len as u16, checksum: 0 };
    header.emit(out.get_mut(udp_at..)?)?;
    let pseudo = match ends.ips {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4::Repr::new(src, dst, proto::UDP, udp_len).emit(out.get_mut(ip_at..)?)?;
            pseudo_v4(src, dst, proto::UDP, udp_len.into())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ipv6::Repr::new(src, dst, proto::UDP, udp_len).emit(out.get_mut(ip_at..)?)?;
            pseudo_v6(&src, &dst, proto::UDP, udp_len.into())
        }
        _ => return None,
    };
    let end = udp_at + usize::from(udp_len);
    let sum = pseudo.add(out.get(udp_at..end)?).finish_udp();
    put16(out, udp_at + 6, sum);
    Some(end)
}

/// A router advertisement to `to`, behind the VLAN tags of the frame that it answers. It comes from the
/// link-local address that the router's MAC address makes.
pub fn router_advertisement(
    out: &mut [u8],
    head: &[u8],
    (dst_mac, dst): (MacAddr, Ipv6Addr),
    said: &router::Advertisement<'_>,
) -> Option<usize> {
    let src = said.mac.eui64_link_local();
    let at = ethernet(out, head, said.mac, dst_mac)?;
    let body_at = at + ipv6::HEADER_LEN;
    let len = said.emit(&src, &dst, out.get_mut(body_at..)?)?;
    let mut ip = ipv6::Repr::new(src, dst, proto::ICMPV6, u16::try_from(len).ok()?);
    ip.hop_limit = 255;
    ip.emit(out.get_mut(at..)?)?;
    Some(body_at + len)
}

/// As much of the packet as fits the answer and lies in the first buffer.
fn quote<'a>(head: &'a [u8], pkt: &Packet, room: usize) -> Option<&'a [u8]> {
    let l3 = usize::from(pkt.l3);
    let end = (pkt.len as usize).min(head.len()).min(l3 + room);
    head.get(l3..end)
}

/// No errors about errors, group traffic and later fragments.
fn may_be_answered(head: &[u8], pkt: &Packet) -> bool {
    let kind = get8(head, usize::from(pkt.l4)).unwrap_or(0);
    let about_error = match (pkt.ip, pkt.proto) {
        (IpKind::V4, proto::ICMPV4) => icmpv4::is_error(kind),
        (IpKind::V6, proto::ICMPV6) => icmpv6::is_error(kind),
        _ => false,
    };
    pkt.frag != Frag::Later
        && !about_error
        && !pkt.dst_mac(head).is_multicast()
        && !pkt.src_mac(head).is_multicast()
}

/// Writes the Ethernet header of an answer, the frame's tags and type included.
fn ethernet(out: &mut [u8], head: &[u8], src: MacAddr, dst: MacAddr) -> Option<usize> {
    let mut header = eth::Repr::parse(head).ok()?;
    header.src = src;
    header.dst = dst;
    header.emit(out)
}
