//! Whether a tenant may send what it sends under the name it gives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_wire::eth::ether_type;
use culvert_wire::icmpv6::{self, kind};
use culvert_wire::packet::{IpKind, Packet};
use culvert_wire::{arp, proto};

use super::acl::icmpv6_kind;
use super::configure;
use super::observe::{Observer, Stage, Step};
use crate::drops::DropReason;
use crate::tables::PortEntry;

/// ICMPv6 type of an MLDv2 report, which a host without an address sends, too (RFC 3590).
const MULTICAST_LISTENER_REPORT: u8 = 143;

/// Checks the source MAC, and the source address of IP and ARP packets.
///
/// Without an address a tenant may only look for one: DHCP from `0.0.0.0` (RFC 2131), duplicate
/// address detection, router solicitation and group membership from `::` (RFC 4862, RFC 3590). An IPv6 link-local source is
/// legal if it is listed or is the one that the port's MAC makes (RFC 4291 appendix A).
///
/// # Errors
/// The drop reason.
pub fn check(
    port: &PortEntry,
    head: &[u8],
    pkt: &Packet,
    seen: &mut impl Observer,
) -> Result<(), DropReason> {
    let result = judge(port, head, pkt);
    seen.saw(|| {
        let step = Step::of(Stage::AntiSpoof, result).by(format!("port {}", port.id));
        step.because(match result {
            Ok(()) if !port.anti_spoof => "anti-spoofing is off".to_owned(),
            Ok(()) => String::new(),
            Err(DropReason::PortBlocked) => "the port is blocked".to_owned(),
            Err(DropReason::SpoofedMac) => {
                format!("source {}, the port's is {}", pkt.src_mac(head), port.mac)
            }
            Err(_) => {
                let source =
                    pkt.src_ip(head).map_or_else(|| "source".to_owned(), |ip| ip.to_string());
                let own: Vec<_> = port.ips.iter().map(ToString::to_string).collect();
                format!("{source}; the port's addresses: {}", own.join(", "))
            }
        })
    });
    result
}

fn judge(port: &PortEntry, head: &[u8], pkt: &Packet) -> Result<(), DropReason> {
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
            let dhcp = pkt.proto == proto::UDP
                && pkt.src_port(head) == Some(68)
                && pkt.dst_port(head) == Some(67);
            if dhcp { Ok(()) } else { Err(DropReason::SpoofedIp) }
        }
        (IpKind::V6, Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED))) => {
            let to_group = pkt.dst_ip(head).is_some_and(|ip| ip.is_multicast());
            let solicits = matches!(
                icmpv6_kind(head, pkt),
                Some(
                    kind::ROUTER_SOLICITATION
                        | kind::NEIGHBOUR_SOLICITATION
                        | MULTICAST_LISTENER_REPORT
                )
            );
            if to_group && solicits { Ok(()) } else { Err(DropReason::SpoofedIp) }
        }
        // Of a link-local address that the tenant made in its own way, we ourselves alone hear.
        (IpKind::V6, Some(IpAddr::V6(ip)))
            if port.dhcp.is_some()
                && ip.is_unicast_link_local()
                && configure::asks(head, pkt).is_some() =>
        {
            Ok(())
        }
        (IpKind::V4 | IpKind::V6, Some(ip)) => {
            if owns(port, ip) {
                check_discovery(port, head, pkt)
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

/// What neighbour discovery claims is believed by whoever hears it: a tenant advertises its own
/// addresses only, and is no router (RFC 6105).
fn check_discovery(port: &PortEntry, head: &[u8], pkt: &Packet) -> Result<(), DropReason> {
    match icmpv6_kind(head, pkt) {
        Some(kind::ROUTER_ADVERTISEMENT | kind::REDIRECT) => Err(DropReason::RogueRouter),
        Some(kind::NEIGHBOUR_ADVERTISEMENT) => {
            let end = (pkt.len as usize).min(head.len());
            let message = head.get(usize::from(pkt.l4)..end).unwrap_or_default();
            let view = icmpv6::View::new(message).map_err(|_| DropReason::Malformed)?;
            let target = view.target().ok_or(DropReason::Malformed)?;
            if !owns(port, IpAddr::V6(target)) {
                return Err(DropReason::SpoofedIp);
            }
            match view.link_option(icmpv6::OPTION_TARGET_LINK) {
                Some(mac) if mac != port.mac => Err(DropReason::SpoofedMac),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
