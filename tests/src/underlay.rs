//! What lies between two hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::combo::{Family, UNDERLAY_VLAN};
use crate::link;
use crate::middle::Middle;
use crate::netns::Netns;
use crate::topology::{Host, SECOND_WIRE, TopologySpec, WIRE};

/// Name of the device between the two routers of [`Shape::Routed`], in both.
pub const BETWEEN_ROUTERS: &str = "mid";

/// How the hosts are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A wire; both hosts are in one subnet.
    OneWire,
    /// Two routers in a row, each with a wire to its host, and a link between them whose MTU may be smaller.
    Routed {
        /// MTU of the link between the routers, in bytes.
        mtu: u32,
    },
    /// Two wires side by side with routes of equal cost; each VTEP address is on its host's loopback device.
    TwoWires,
}

impl Shape {
    /// The underlay devices of each host.
    pub fn devices(self) -> &'static [&'static str] {
        match self {
            Shape::OneWire | Shape::Routed { .. } => &[WIRE],
            Shape::TwoWires => &[WIRE, SECOND_WIRE],
        }
    }
}

/// Two hosts and what joins them.
pub(crate) struct Underlay {
    pub hosts: [Host; 2],
    pub middle: Option<Middle>,
    pub routers: Vec<Netns>,
}

/// Addresses of subnet `subnet`, by family.
fn address(family: Family, subnet: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, subnet, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd18, 0, 0, subnet.into(), 0, 0, 0, number.into()).into(),
    }
}

/// Gives `device` an address of `subnet`, and a link-local one over IPv6: the kernel solicits neighbours from a
/// link-local address, and not at all without one.
fn configure(ns: &Netns, device: &str, family: Family, subnet: u8, number: u8) {
    let length = if family == Family::V4 { 24 } else { 64 };
    ns.run(&format!("ip addr add {}/{length} dev {device}", address(family, subnet, number)));
    if family == Family::V6 {
        ns.run(&format!("ip addr add fe80::{subnet:x}:{number}/64 dev {device} nodad"));
    }
}

/// Subnet of the VTEP of host `at`.
fn vtep_subnet(shape: Shape, at: u8) -> u8 {
    if matches!(shape, Shape::Routed { .. }) { at } else { 0 }
}

impl Underlay {
    pub(crate) fn build(spec: &TopologySpec) -> Self {
        let family = spec.combo.underlay;
        let hosts = [("a", 1u8), ("b", 2)].map(|(name, number)| Host {
            ns: Netns::new(name),
            vtep: address(family, vtep_subnet(spec.shape, number), number),
            wire_mac: format!("02:cc:00:00:00:{number:02x}"),
        });
        let (mut middle, mut routers) = (None, Vec::new());
        match spec.shape {
            Shape::OneWire => middle = one_wire(spec, &hosts),
            Shape::Routed { mtu } => routers = routed(spec, &hosts, mtu),
            Shape::TwoWires => two_wires(spec, &hosts),
        }
        for host in &hosts {
            for device in spec.shape.devices() {
                link::set_offloads(&host.ns, device, spec.combo.wire);
            }
        }
        Self { hosts, middle, routers }
    }
}

fn one_wire(spec: &TopologySpec, hosts: &[Host; 2]) -> Option<Middle> {
    let combo = &spec.combo;
    let [a, b] = [&hosts[0].ns, &hosts[1].ns];
    let middle = if spec.middle {
        Some(Middle::between(a, b, WIRE, spec.underlay_mtu()))
    } else if let Some(cards) = spec.cards {
        for (ns, card) in [a, b].into_iter().zip(cards) {
            link::take_card(ns, card, WIRE, spec.underlay_mtu());
        }
        None
    } else {
        link::veth_of(a, WIRE, b, WIRE, spec.underlay_mtu(), spec.wire_queues);
        None
    };
    for (host, number) in hosts.iter().zip([1, 2]) {
        host.ns.run(&format!("ip link set {WIRE} address {} up", host.wire_mac));
        let device = if combo.underlay_vlan {
            host.ns.run(&format!(
                "ip link add link {WIRE} name {WIRE}.{UNDERLAY_VLAN} type vlan id {UNDERLAY_VLAN}"
            ));
            host.ns.run(&format!("ip link set {WIRE}.{UNDERLAY_VLAN} up"));
            format!("{WIRE}.{UNDERLAY_VLAN}")
        } else {
            WIRE.to_owned()
        };
        configure(&host.ns, &device, combo.underlay, 0, number);
    }
    middle
}

/// Host A, its router, the other router, host B: the routers forward, the subnets are 1, 3 and 2.
fn routed(spec: &TopologySpec, hosts: &[Host; 2], mtu: u32) -> Vec<Netns> {
    const ROUTER: u8 = 254;
    const BETWEEN: u8 = 3;
    let family = spec.combo.underlay;
    let routers = [Netns::new("r0"), Netns::new("r1")];
    link::veth(&routers[0], BETWEEN_ROUTERS, &routers[1], BETWEEN_ROUTERS, mtu);
    for (at, number) in [(0usize, 1u8), (1, 2)] {
        let (host, router) = (&hosts[at].ns, &routers[at]);
        router.sysctl("net/ipv4/ip_forward", "1");
        router.sysctl("net/ipv6/conf/all/forwarding", "1");
        link::veth(host, WIRE, router, WIRE, spec.underlay_mtu());
        host.run(&format!("ip link set {WIRE} address {} up", hosts[at].wire_mac));
        router.run(&format!("ip link set {WIRE} up"));
        router.run(&format!("ip link set {BETWEEN_ROUTERS} up"));
        configure(host, WIRE, family, number, number);
        configure(router, WIRE, family, number, ROUTER);
        configure(router, BETWEEN_ROUTERS, family, BETWEEN, number);
    }
    for (at, number) in [(0usize, 1u8), (1, 2)] {
        let default = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
        let near = address(family, number, ROUTER);
        hosts[at].ns.run(&format!("ip route add {default} via {near}"));
        let far = address(family, BETWEEN, 3 - number);
        routers[at].run(&format!("ip route add {default} via {far}"));
    }
    routers.into()
}

/// Two wires in subnets 10 and 20, with a route of two next hops to the other VTEP.
fn two_wires(spec: &TopologySpec, hosts: &[Host; 2]) {
    let family = spec.combo.underlay;
    let wires = [(WIRE, 10u8), (SECOND_WIRE, 20)];
    for (device, subnet) in wires {
        link::veth(&hosts[0].ns, device, &hosts[1].ns, device, spec.underlay_mtu());
        for (host, number) in hosts.iter().zip([1, 2]) {
            // The kernel asks again after some two seconds instead of thirty, so that a test may wait for it.
            let ip = if family == Family::V4 { "ipv4" } else { "ipv6" };
            host.ns.sysctl(&format!("net/{ip}/neigh/{device}/base_reachable_time_ms"), "2000");
            host.ns.sysctl(&format!("net/{ip}/neigh/{device}/delay_first_probe_time"), "1");
            host.ns.run(&format!("ip link set {device} up"));
            configure(&host.ns, device, family, subnet, number);
        }
    }
    for (at, number) in [(0usize, 1u8), (1, 2)] {
        let ns = &hosts[at].ns;
        ns.run(&format!("ip addr add {} dev lo", hosts[at].vtep));
        let hop = |(device, subnet)| {
            format!("nexthop via {} dev {device}", address(family, subnet, 3 - number))
        };
        let hops = wires.map(hop).join(" ");
        ns.run(&format!("ip route add {} {hops}", hosts[1 - at].vtep));
    }
}
