//! A packet in one line.

use std::fmt::Write;

use culvert_wire::eth::ether_type;
use culvert_wire::format::{self, VXLAN};
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::{arp, icmpv4, icmpv6, proto, tcp};

/// What a frame is, as far as its first bytes tell.
pub(super) fn describe(head: &[u8], frame_len: usize) -> String {
    let Ok(pkt) = Packet::parse(head, frame_len) else {
        return format!("{frame_len} bytes that are not understood");
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    if pkt.is_udp()
        && pkt.dst_port(head) == VXLAN.outer.port()
        && let Some((inner, vni, len)) = inner_of(head, &pkt)
        && let (Some(src), Some(dst)) = (pkt.src_ip(head), pkt.dst_ip(head))
    {
        let inner = describe(inner, frame_len.saturating_sub(len));
        let _ = write!(text, "{src} > {dst} vxlan vni {vni}: {inner}");
        return text;
    }
    if let Some(vlan) = pkt.vlan {
        let _ = write!(text, "vlan {} ", vlan & 0xfff);
    }
    match pkt.ip {
        IpKind::None => link(&mut text, head, &pkt),
        IpKind::V4 | IpKind::V6 => network(&mut text, head, &pkt),
    }
    let _ = write!(text, " {frame_len} bytes");
    text
}

fn inner_of<'a>(head: &'a [u8], pkt: &Packet) -> Option<(&'a [u8], u32, usize)> {
    let message = head.get(usize::from(pkt.payload)..)?;
    let found = format::decap(&VXLAN, message).ok()?;
    let len = found.header_len;
    Some((message.get(len..)?, found.vni.get(), usize::from(pkt.payload) + len))
}

fn link(text: &mut String, head: &[u8], pkt: &Packet) {
    let bytes = head.get(usize::from(pkt.l3)..).unwrap_or_default();
    let arp = arp::Repr::parse(bytes).ok().filter(|_| pkt.ether_type == ether_type::ARP);
    let _ = match arp {
        Some(arp) if arp.op == arp::REQUEST => {
            write!(text, "arp who-has {} tell {}", arp.target_ip, arp.sender_ip)
        }
        Some(arp) => write!(text, "arp {} is-at {}", arp.sender_ip, arp.sender_mac),
        None => {
            let (src, dst) = (pkt.src_mac(head), pkt.dst_mac(head));
            write!(text, "{src} > {dst} ethertype {:#06x}", pkt.ether_type)
        }
    };
}

fn network(text: &mut String, head: &[u8], pkt: &Packet) {
    let (Some(src), Some(dst)) = (pkt.src_ip(head), pkt.dst_ip(head)) else { return };
    let _ = match (pkt.src_port(head), pkt.dst_port(head)) {
        (Some(from), Some(to)) => write!(text, "{src}.{from} > {dst}.{to}"),
        _ => write!(text, "{src} > {dst}"),
    };
    let l4 = head.get(usize::from(pkt.l4)..).unwrap_or_default();
    let kind = l4.first().copied();
    let _ = match pkt.proto {
        _ if pkt.frag == Frag::Later => write!(text, " fragment of protocol {}", pkt.proto),
        proto::TCP => write!(text, " tcp [{}]", flags(pkt.tcp_flags)),
        proto::UDP => write!(text, " udp"),
        proto::ICMPV4 => match kind {
            Some(icmpv4::kind::ECHO) => write!(text, " icmp echo request"),
            Some(icmpv4::kind::ECHO_REPLY) => write!(text, " icmp echo reply"),
            Some(icmpv4::kind::UNREACHABLE) => write!(text, " icmp unreachable"),
            Some(icmpv4::kind::TIME_EXCEEDED) => write!(text, " icmp time exceeded"),
            kind => write!(text, " icmp type {}", kind.unwrap_or(0)),
        },
        proto::ICMPV6 => match kind {
            Some(icmpv6::kind::ECHO) => write!(text, " icmp6 echo request"),
            Some(icmpv6::kind::ECHO_REPLY) => write!(text, " icmp6 echo reply"),
            Some(icmpv6::kind::PACKET_TOO_BIG) => write!(text, " icmp6 packet too big"),
            Some(icmpv6::kind::ROUTER_SOLICITATION) => write!(text, " icmp6 router solicitation"),
            Some(icmpv6::kind::ROUTER_ADVERTISEMENT) => write!(text, " icmp6 router advertisement"),
            Some(icmpv6::kind::NEIGHBOUR_SOLICITATION) => {
                write!(text, " icmp6 neighbour solicitation")
            }
            Some(icmpv6::kind::NEIGHBOUR_ADVERTISEMENT) => {
                write!(text, " icmp6 neighbour advertisement")
            }
            kind => write!(text, " icmp6 type {}", kind.unwrap_or(0)),
        },
        other => write!(text, " protocol {other}"),
    };
}

/// TCP flags as tcpdump writes them.
fn flags(flags: u8) -> String {
    let names = [
        (tcp::flags::FIN, 'F'),
        (tcp::flags::SYN, 'S'),
        (tcp::flags::RST, 'R'),
        (tcp::flags::PSH, 'P'),
        (tcp::flags::ACK, '.'),
        (tcp::flags::URG, 'U'),
        (tcp::flags::ECE, 'E'),
        (tcp::flags::CWR, 'W'),
    ];
    let set = names.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, name)| *name).collect()
}

/// A time of day, in UTC, to the nanosecond.
pub(super) fn time_of_day(time_ns: u64) -> String {
    let (seconds, nanos) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
    let day = seconds % 86_400;
    format!("{:02}:{:02}:{:02}.{nanos:09}", day / 3600, day / 60 % 60, day % 60)
}
