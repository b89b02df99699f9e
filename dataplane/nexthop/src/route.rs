//! What the kernel's route lookup said about one VTEP.

use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteLwEnCapType, RouteMessage, RouteMetric,
    RouteNextHop, RouteNextHopFlags, RouteType, RouteVia,
};

use crate::answer::Reason;

/// A route that forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Sorted, so that the order in which a routing daemon adds paths moves no flow.
    pub(crate) paths: Vec<Path>,
    /// The least of the route's MTU metric and the learned path MTU, in bytes.
    pub(crate) mtu: Option<u32>,
}

/// One path of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path {
    /// Index of the device that the route names: possibly a VLAN device.
    pub(crate) device: u32,
    /// `None` when the VTEP is on-link. May be of the other family (IPv4 via an IPv6 gateway).
    pub(crate) gateway: Option<IpAddr>,
    /// 1 or more.
    pub(crate) weight: u32,
    /// The kernel takes the path for dead, or its device has no carrier.
    pub(crate) dead: bool,
}

/// The attributes that a single path and each path of a multipath route have in common.
#[derive(Default)]
struct Hop {
    device: Option<u32>,
    gateway: Option<IpAddr>,
    encapsulated: bool,
}

impl Hop {
    fn read(&mut self, attributes: &[RouteAttribute]) {
        for attribute in attributes {
            match attribute {
                RouteAttribute::Oif(index) => self.device = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => {
                    self.gateway = Some((*v4).into());
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => {
                    self.gateway = Some((*v6).into());
                }
                RouteAttribute::Via(RouteVia::Inet(v4)) => self.gateway = Some((*v4).into()),
                RouteAttribute::Via(RouteVia::Inet6(v6)) => self.gateway = Some((*v6).into()),
                RouteAttribute::EncapType(kind) => {
                    self.encapsulated |= *kind != RouteLwEnCapType::None;
                }
                _ => {}
            }
        }
    }

    fn into_path(self, weight: u32, dead: bool) -> Result<Path, Reason> {
        if self.encapsulated {
            return Err(Reason::UnsupportedRoute);
        }
        let device = self.device.ok_or(Reason::NoRoute)?;
        Ok(Path { device, gateway: self.gateway, weight, dead })
    }
}

impl Route {
    /// Reads the kernel's answer to a lookup.
    pub(crate) fn parse(message: &RouteMessage) -> Result<Self, Reason> {
        match message.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Err(Reason::Local),
            RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
                return Err(Reason::NotUnicast);
            }
            RouteType::BlackHole => return Err(Reason::Blackhole),
            RouteType::Unreachable => return Err(Reason::HostUnreachable),
            RouteType::Prohibit => return Err(Reason::Prohibited),
            _ => return Err(Reason::NoRoute),
        }
        let multipath = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) if !hops.is_empty() => Some(hops),
            _ => None,
        });
        let mut paths = match multipath {
            Some(hops) => hops.iter().map(read_multipath_hop).collect::<Result<Vec<_>, _>>()?,
            None => {
                let mut hop = Hop::default();
                hop.read(&message.attributes);
                let dead = message.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
                vec![hop.into_path(1, dead)?]
            }
        };
        paths.sort_unstable();
        Ok(Self { paths, mtu: mtu(message) })
    }

    /// Whether the answer names a nexthop object without its paths, as with `nexthop_compat_mode` off.
    pub(crate) fn hides_paths(message: &RouteMessage) -> bool {
        let has = |wanted: fn(&RouteAttribute) -> bool| message.attributes.iter().any(wanted);
        has(|a| matches!(a, RouteAttribute::NhId(_)))
            && !has(|a| matches!(a, RouteAttribute::Oif(_) | RouteAttribute::MultiPath(_)))
    }
}

fn read_multipath_hop(hop: &RouteNextHop) -> Result<Path, Reason> {
    let mut read = Hop { device: Some(hop.interface_index), ..Hop::default() };
    read.read(&hop.attributes);
    let dead = hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown);
    // On the wire the weight is one less.
    read.into_path(u32::from(hop.hops) + 1, dead)
}

/// The MTU metric of an answer in bytes, a learned path MTU included where the lookup asked for it.
pub(crate) fn mtu(message: &RouteMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics),
            _ => None,
        })
        .flatten()
        .find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
            _ => None,
        })
}

/// The prefix that a route notice is about: address (zeros for the default route) and length in bits.
pub(crate) fn prefix(message: &RouteMessage) -> (Option<IpAddr>, u8) {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    (address, message.header.destination_prefix_length)
}

/// Whether `address` lies in the prefix; the default route (no address) covers all of its family.
pub(crate) fn covers(prefix: Option<IpAddr>, length_bits: u8, address: IpAddr) -> bool {
    let same_bits = |a: u128, b: u128, width: u32| {
        let ignored = width.saturating_sub(u32::from(length_bits));
        (a ^ b).checked_shr(ignored).unwrap_or(0) == 0
    };
    match (prefix, address) {
        (None, _) => true,
        (Some(IpAddr::V4(a)), IpAddr::V4(b)) => {
            same_bits(u32::from(a).into(), u32::from(b).into(), 32)
        }
        (Some(IpAddr::V6(a)), IpAddr::V6(b)) => same_bits(a.into(), b.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn answer(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    fn gateway(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, last].into()))
    }

    #[test]
    fn an_on_link_route_has_no_gateway() {
        let route =
            Route::parse(&answer(RouteType::Unicast, vec![RouteAttribute::Oif(2)])).unwrap();
        assert_eq!(route.paths, [Path { device: 2, gateway: None, weight: 1, dead: false }]);
        assert_eq!(route.mtu, None);
    }

    #[test]
    fn an_ipv4_route_may_go_via_an_ipv6_gateway() {
        let via: Ipv6Addr = "fe80::1".parse().unwrap();
        let attributes = vec![RouteAttribute::Oif(2), RouteAttribute::Via(RouteVia::Inet6(via))];
        let route = Route::parse(&answer(RouteType::Unicast, attributes)).unwrap();
        assert_eq!(route.paths[0].gateway, Some(via.into()));
    }

    #[test]
    fn multipath_weights_and_dead_paths_are_read_in_any_order() {
        let hop = |device, last, hops, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = device;
            hop.hops = hops;
            hop.flags = flags;
            hop.attributes = vec![gateway(last)];
            hop
        };
        let one = hop(2, 1, 0, RouteNextHopFlags::empty());
        let two = hop(2, 2, 2, RouteNextHopFlags::Linkdown);
        let parse = |hops| {
            let attributes = vec![
                RouteAttribute::MultiPath(hops),
                RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
            ];
            Route::parse(&answer(RouteType::Unicast, attributes)).unwrap()
        };
        let route = parse(vec![two.clone(), one.clone()]);
        assert_eq!(route, parse(vec![one, two]));
        let seen: Vec<_> = route.paths.iter().map(|path| (path.weight, path.dead)).collect();
        assert_eq!(seen, [(1, false), (3, true)]);
        assert_eq!(route.mtu, Some(1400));
    }

    #[test]
    fn routes_that_do_not_forward_say_why() {
        for (kind, reason) in [
            (RouteType::Local, Reason::Local),
            (RouteType::Multicast, Reason::NotUnicast),
            (RouteType::BlackHole, Reason::Blackhole),
            (RouteType::Prohibit, Reason::Prohibited),
            (RouteType::Unreachable, Reason::HostUnreachable),
            (RouteType::Throw, Reason::NoRoute),
        ] {
            let attributes = vec![RouteAttribute::Oif(2)];
            assert_eq!(Route::parse(&answer(kind, attributes)), Err(reason));
        }
        let mpls = vec![RouteAttribute::Oif(2), RouteAttribute::EncapType(RouteLwEnCapType::Mpls)];
        assert_eq!(Route::parse(&answer(RouteType::Unicast, mpls)), Err(Reason::UnsupportedRoute));
    }

    #[test]
    fn a_nexthop_object_without_paths_is_recognised() {
        let hidden = answer(RouteType::Unicast, vec![RouteAttribute::NhId(5)]);
        assert!(Route::hides_paths(&hidden));
        let shown =
            answer(RouteType::Unicast, vec![RouteAttribute::NhId(5), RouteAttribute::Oif(2)]);
        assert!(!Route::hides_paths(&shown));
    }

    #[test]
    fn prefixes_cover_their_own_addresses_only() {
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(covers(Some(v4("10.1.0.0")), 16, v4("10.1.2.3")));
        assert!(!covers(Some(v4("10.1.0.0")), 16, v4("10.2.2.3")));
        assert!(covers(Some(v4("0.0.0.0")), 0, v4("10.2.2.3")));
        assert!(covers(Some(v4("10.2.2.3")), 32, v4("10.2.2.3")));
        assert!(!covers(Some(v4("::")), 0, v4("10.2.2.3")));
        assert!(covers(Some(v4("::")), 0, v4("fd00::1")));
        assert!(!covers(Some(v4("fd00::2")), 128, v4("fd00::1")));
        assert!(covers(None, 0, v4("fd00::1")));
    }
}
