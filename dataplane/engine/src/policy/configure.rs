//! What tenants are told that ask for their configuration: DHCP, DHCPv6 and router discovery, answered from
//! the port's own addresses and its network's gateways.
//!
//! The server of DHCP is the gateway whose subnet has the address. That of DHCPv6, and the router, is the
//! first gateway that has an IPv6 address; it speaks from the link-local address that its MAC makes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::{Dhcp, DomainName};
use culvert_wire::dhcpv6::{self, Status};
use culvert_wire::eth::{MacAddr, ether_type};
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::reply::{self, Ends};
use culvert_wire::{dhcpv4, icmpv6, proto, router};
use ipnet::{IpNet, Ipv4Net};

use super::acl::icmpv6_kind;
use crate::tables::{Gateway, PortEntry, VnetEntry};

/// Servers and routes that the model allows.
const LIST_MAX: usize = 16;
/// Addresses of a port that one answer of DHCPv6 gives.
const ADDRESSES_MAX: usize = 16;
/// Prefixes that a router advertises.
const PREFIXES_MAX: usize = 8;

/// Least time for which a router's word holds, seconds.
const LIFETIME_MIN_S: u32 = 600;
/// The most that a router may say (RFC 4861 section 4.2, as RFC 8319 has it), seconds.
const LIFETIME_MAX_S: u32 = 9_000;

/// What a tenant asks for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// DHCP.
    Dhcp4,
    /// DHCPv6.
    Dhcp6,
    /// A router.
    Router,
}

/// Whether a packet asks for configuration: by its kind, whatever it says.
pub fn asks(head: &[u8], pkt: &Packet) -> Option<Ask> {
    if pkt.frag != Frag::None {
        return None;
    }
    match (pkt.ip, pkt.proto, pkt.dst_port(head)) {
        (IpKind::V4, proto::UDP, Some(dhcpv4::SERVER_PORT)) => Some(Ask::Dhcp4),
        (IpKind::V6, proto::UDP, Some(dhcpv6::SERVER_PORT)) => Some(Ask::Dhcp6),
        (IpKind::V6, proto::ICMPV6, _)
            if icmpv6_kind(head, pkt) == Some(icmpv6::kind::ROUTER_SOLICITATION) =>
        {
            Some(Ask::Router)
        }
        _ => None,
    }
}

/// Whether a packet answers such a question: in a network where the dataplane does, nobody else may.
pub fn is_servers(head: &[u8], pkt: &Packet) -> bool {
    let ports = (pkt.src_port(head), pkt.dst_port(head));
    pkt.proto == proto::UDP
        && match pkt.ip {
            IpKind::V4 => ports == (Some(dhcpv4::SERVER_PORT), Some(dhcpv4::CLIENT_PORT)),
            IpKind::V6 => ports == (Some(dhcpv6::SERVER_PORT), Some(dhcpv6::CLIENT_PORT)),
            IpKind::None => false,
        }
}

/// Writes the answer to a tenant's question as a frame, and answers its length; `None` where there is
/// none: it is malformed, meant for another server, or needs no answer.
pub fn answer(
    port: &PortEntry,
    vnet: &VnetEntry,
    head: &[u8],
    pkt: &Packet,
    out: &mut [u8],
) -> Option<usize> {
    let dhcp = port.dhcp.as_deref()?;
    match asks(head, pkt)? {
        Ask::Dhcp4 => dhcp4(port, vnet, dhcp, head, pkt, out),
        Ask::Dhcp6 => dhcp6(port, vnet, dhcp, head, pkt, out),
        Ask::Router => {
            let src = router::solicitor(head, pkt)?;
            let to = if src.is_unspecified() { None } else { Some((pkt.src_mac(head), src)) };
            advertise(port, vnet, dhcp, head, to, out)
        }
    }
}

/// Writes a router advertisement that nobody asked for. As [`answer`].
pub fn unsolicited(port: &PortEntry, vnet: &VnetEntry, out: &mut [u8]) -> Option<usize> {
    let mut head = [0; 14];
    head[12..].copy_from_slice(&ether_type::IPV6.to_be_bytes());
    advertise(port, vnet, port.dhcp.as_deref()?, &head, None, out)
}

/// For how long a router's word holds, seconds. It is repeated three times in that time.
pub fn router_lifetime_s(dhcp: &Dhcp) -> u16 {
    dhcp.lease_s.clamp(LIFETIME_MIN_S, LIFETIME_MAX_S) as u16
}

fn router_of(vnet: &VnetEntry) -> Option<&Gateway> {
    vnet.gateways.iter().find(|gateway| gateway.net.addr().is_ipv6())
}

/// A list of one family in an array, so that nothing is allocated.
struct List<T>([T; LIST_MAX], usize);

impl<T: Copy> List<T> {
    fn of(filler: T, items: impl Iterator<Item = T>) -> Self {
        let mut list = List([filler; LIST_MAX], 0);
        for item in items.take(LIST_MAX) {
            list.0[list.1] = item;
            list.1 += 1;
        }
        list
    }

    fn get(&self) -> &[T] {
        self.0.get(..self.1).unwrap_or_default()
    }
}

fn v4_of(ips: &[IpAddr]) -> List<Ipv4Addr> {
    let v4 = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    };
    List::of(Ipv4Addr::UNSPECIFIED, ips.iter().filter_map(v4))
}

fn v6_of(ips: &[IpAddr]) -> List<Ipv6Addr> {
    let v6 = |ip: &IpAddr| match ip {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    };
    List::of(Ipv6Addr::UNSPECIFIED, ips.iter().filter_map(v6))
}

fn name(name: Option<&DomainName>) -> Option<&str> {
    name.map(DomainName::as_str)
}

/// The gateway whose subnet has an address.
fn subnet(vnet: &VnetEntry, ip: Ipv4Addr) -> Option<(Ipv4Net, MacAddr)> {
    vnet.gateways.iter().find_map(|gateway| match gateway.net {
        IpNet::V4(net) if net.contains(&ip) => Some((net, gateway.mac)),
        _ => None,
    })
}

fn dhcp4(
    port: &PortEntry,
    vnet: &VnetEntry,
    dhcp: &Dhcp,
    head: &[u8],
    pkt: &Packet,
    out: &mut [u8],
) -> Option<usize> {
    let request = dhcpv4::Request::parse(payload(head, pkt)?)?;
    if port.anti_spoof && request.chaddr != port.mac {
        return None;
    }
    let own = |ip: Ipv4Addr| port.ips.contains(&IpAddr::V4(ip)) && subnet(vnet, ip).is_some();
    let asked = request.requested.or(Some(request.ciaddr).filter(|ip| !ip.is_unspecified()));
    let given = asked.filter(|ip| own(*ip)).or_else(|| {
        let first = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => Some(*ip).filter(|ip| own(*ip)),
            IpAddr::V6(_) => None,
        };
        port.ips.iter().find_map(first)
    })?;
    let (net, mac) = subnet(vnet, given)?;
    let server = net.addr();
    if request.server.is_some_and(|meant| meant != server) {
        return None;
    }
    let kind = match request.kind {
        dhcpv4::Kind::Discover => dhcpv4::Kind::Offer,
        dhcpv4::Kind::Request if asked.is_some_and(|ip| ip != given) => dhcpv4::Kind::Nak,
        dhcpv4::Kind::Request | dhcpv4::Kind::Inform => dhcpv4::Kind::Ack,
        _ => return None,
    };
    let informs = request.kind == dhcpv4::Kind::Inform;
    let (dns, ntp) = (v4_of(&dhcp.dns), v4_of(&dhcp.ntp));
    let filler = (Ipv4Addr::UNSPECIFIED, 0, Ipv4Addr::UNSPECIFIED);
    let routes = dhcp.routes.iter().map(|r| (r.prefix.addr(), r.prefix.prefix_len(), r.via));
    let routes = List::of(filler, routes);
    let config = dhcpv4::Config {
        prefix_len: net.prefix_len(),
        router: Some(server),
        dns: dns.get(),
        ntp: ntp.get(),
        domain: name(dhcp.domain.as_ref()),
        hostname: name(port.hostname.as_ref()),
        mtu: u16::try_from(port.mtu).unwrap_or(u16::MAX),
        routes: routes.get(),
    };
    let refused = kind == dhcpv4::Kind::Nak;
    let said = dhcpv4::Reply {
        kind,
        yiaddr: if refused || informs { Ipv4Addr::UNSPECIFIED } else { given },
        server,
        lease_s: (!refused && !informs).then_some(dhcp.lease_s),
        config: (!refused).then_some(config),
    };
    let to = match kind {
        dhcpv4::Kind::Nak => Ipv4Addr::BROADCAST,
        _ if !request.ciaddr.is_unspecified() => request.ciaddr,
        _ if request.broadcast => Ipv4Addr::BROADCAST,
        _ => given,
    };
    let to_mac = if to.is_broadcast() { MacAddr::BROADCAST } else { pkt.src_mac(head) };
    let ends = Ends {
        macs: (mac, to_mac),
        ips: (server.into(), to.into()),
        ports: (dhcpv4::SERVER_PORT, dhcpv4::CLIENT_PORT),
    };
    reply::datagram(out, head, ends, |out| said.emit(&request, out))
}

fn dhcp6(
    port: &PortEntry,
    vnet: &VnetEntry,
    dhcp: &Dhcp,
    head: &[u8],
    pkt: &Packet,
    out: &mut [u8],
) -> Option<usize> {
    use dhcpv6::Kind;
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (pkt.src_ip(head)?, pkt.dst_ip(head)?) else {
        return None;
    };
    // Nobody is told to speak to us by unicast (RFC 8415 section 18.4).
    if !src.is_unicast_link_local() || dst != dhcpv6::ALL_SERVERS {
        return None;
    }
    let mac = router_of(vnet)?.mac;
    let request = dhcpv6::Request::parse(payload(head, pkt)?)?;
    let server = dhcpv6::server_duid(mac);
    let meant = request.server.map(|meant| meant == server);
    // Which messages name a server, and which a client (RFC 8415 section 16).
    let legal = match request.kind {
        Kind::Solicit | Kind::Confirm | Kind::Rebind => meant.is_none() && request.client.is_some(),
        Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => {
            meant == Some(true) && request.client.is_some()
        }
        Kind::Information => meant != Some(false) && request.associations().next().is_none(),
    };
    if !legal {
        return None;
    }
    let own = v6_of(&port.ips);
    let own = own.get();
    let lasting = own.get(..own.len().min(ADDRESSES_MAX)).unwrap_or_default();
    let status = match request.kind {
        Kind::Confirm => {
            let claimed = || request.associations().flat_map(dhcpv6::Association::addresses);
            claimed().next()?;
            let on_link = |ip: Ipv6Addr| {
                vnet.gateways.iter().any(|gateway| gateway.net.contains(&IpAddr::V6(ip)))
            };
            Some(if claimed().all(on_link) { Status::Success } else { Status::NotOnLink })
        }
        Kind::Release | Kind::Decline => Some(Status::Success),
        Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind | Kind::Information => None,
    };
    let gives = matches!(request.kind, Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind);
    let (dns, ntp) = (v6_of(&dhcp.dns), v6_of(&dhcp.ntp));
    let told = gives || request.kind == Kind::Information;
    let said = dhcpv6::Reply {
        advertise: request.kind == Kind::Solicit && !request.rapid_commit,
        server: &server,
        status,
        addresses: gives.then_some(lasting),
        lease_s: dhcp.lease_s,
        dns: if told { dns.get() } else { &[] },
        ntp: if told { ntp.get() } else { &[] },
        domain: name(dhcp.domain.as_ref()).filter(|_| told),
    };
    let ends = Ends {
        macs: (mac, pkt.src_mac(head)),
        ips: (mac.eui64_link_local().into(), src.into()),
        ports: (dhcpv6::SERVER_PORT, dhcpv6::CLIENT_PORT),
    };
    reply::datagram(out, head, ends, |out| said.emit(&request, out))
}

fn advertise(
    port: &PortEntry,
    vnet: &VnetEntry,
    dhcp: &Dhcp,
    head: &[u8],
    to: Option<(MacAddr, Ipv6Addr)>,
    out: &mut [u8],
) -> Option<usize> {
    let router = router_of(vnet)?;
    let prefixes = vnet.gateways.iter().filter_map(|gateway| match gateway.net {
        IpNet::V6(net) if !net.addr().is_unicast_link_local() => {
            Some((net.network(), net.prefix_len()))
        }
        _ => None,
    });
    let prefixes = List::of((Ipv6Addr::UNSPECIFIED, 0), prefixes.take(PREFIXES_MAX));
    let dns = v6_of(&dhcp.dns);
    let said = router::Advertisement {
        mac: router.mac,
        lifetime_s: router_lifetime_s(dhcp),
        managed: port.ips.iter().any(IpAddr::is_ipv6),
        other: true,
        mtu: port.mtu,
        prefixes: prefixes.get(),
        dns: dns.get(),
        domain: name(dhcp.domain.as_ref()),
    };
    let all = (MacAddr::ipv6_multicast(router::ALL_NODES), router::ALL_NODES);
    reply::router_advertisement(out, head, to.unwrap_or(all), &said)
}

/// What a UDP datagram carries, as far as it lies in the first buffer.
fn payload<'a>(head: &'a [u8], pkt: &Packet) -> Option<&'a [u8]> {
    let len = head.get(usize::from(pkt.l4) + 4..usize::from(pkt.l4) + 6)?;
    let end = usize::from(pkt.l4) + usize::from(u16::from_be_bytes([len[0], len[1]]));
    head.get(usize::from(pkt.payload)..end.min(pkt.len as usize))
}
