//! Whether a tenant may send what it sends under the name it gives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_wire::arp;
use culvert_wire::eth::ether_type;
use culvert_wire::packet::{IpKind, Packet};

use crate::drops::DropReason;
use crate::tables::PortEntry;

const PROTO_UDP: u8 = 17;
const PROTO_ICMPV6: u8 = 58;

/// Checks the source MAC, and the source address of IP and ARP packets.
///
/// Without an address a tenant may only look for one: DHCP from `0.0.0.0` (RFC 2131), duplicate
/// address detection and router solicitation from `::` (RFC 4862). An IPv6 link-local source is
/// legal if it is listed or is the one that the port's MAC makes (RFC 4291 appendix A).
///
/// # Errors
/// The drop reason.
pub fn check(port: &PortEntry, head: &[u8], pkt: &Packet) -> Result<(), DropReason> {
    if port.blocked {
        return Err(DropReason::PortBlocked);
    }
    if !port.anti_spoof {
        return Ok(());
    }
    if pkt.src_mac(head) != port.mac {
        return Err(DropReason::SpoofedMac);
    }
    match (pkt.ip, pkt.src_ip(head)) {
        (IpKind::V4, Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))) => {
            let dhcp = pkt.proto == PROTO_UDP
                && pkt.src_port(head) == Some(68)
                && pkt.dst_port(head) == Some(67);
            if dhcp { Ok(()) } else { Err(DropReason::SpoofedIp) }
        }
        (IpKind::V6, Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED))) => {
            let solicits = pkt.proto == PROTO_ICMPV6 && pkt.dst_ip(head).is_some_and(is_multicast);
            if solicits { Ok(()) } else { Err(DropReason::SpoofedIp) }
        }
        (IpKind::V4 | IpKind::V6, Some(ip)) => {
            if owns(port, ip) {
                Ok(())
            } else {
                Err(DropReason::SpoofedIp)
            }
        }
        (IpKind::V4 | IpKind::V6, None) => Err(DropReason::Malformed),
        (IpKind::None, _) if pkt.ether_type == ether_type::ARP => check_arp(port, head, pkt),
        (IpKind::None, _) => Ok(()),
    }
}

fn check_arp(port: &PortEntry, head: &[u8], pkt: &Packet) -> Result<(), DropReason> {
    let bytes = head.get(usize::from(pkt.l3)..).unwrap_or_default();
    let arp = arp::Repr::parse(bytes).map_err(|_| DropReason::Malformed)?;
    if arp.sender_mac != port.mac {
        return Err(DropReason::SpoofedMac);
    }
    // A probe (RFC 5227) asks for an address before it is used.
    let probe = arp.sender_ip == Ipv4Addr::UNSPECIFIED;
    if probe || owns(port, IpAddr::V4(arp.sender_ip)) { Ok(()) } else { Err(DropReason::SpoofedIp) }
}

/// Whether `ip` is one that the port may call its own.
pub fn owns(port: &PortEntry, ip: IpAddr) -> bool {
    port.ips.contains(&ip) || matches!(ip, IpAddr::V6(v6) if v6 == port.mac.eui64_link_local())
}

fn is_multicast(ip: IpAddr) -> bool {
    ip.is_multicast()
}
