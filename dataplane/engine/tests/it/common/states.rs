//! Random states of a host, of so few names that two of them have much in common.

use culvert_dataplane::tables::PortEntry;
use culvert_model::{
    EgressRoute, HostParts, IngressAction, MacAddr, Mapping, Miss, Port, PortId, PortState,
    RouteAction, RouteScope, Vnet, VnetId,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::frames::{Frame, questions, udp, udp_ports};
use super::policies::{any_dhcp, any_groups, any_list, any_meter};
use super::{gateway, mac, mapping, parts, port, rule, to_vnet, vnet};

pub(crate) const VNETS: [&str; 3] = ["blue", "green", "red"];
pub(crate) const PORTS: [&str; 4] = ["p0", "p1", "p2", "p3"];
pub(crate) const VTEPS: [&str; 4] = ["192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::2"];
const ROUTER: MacAddr = mac(0xee);
/// Nets of 10.0.0.0/24 to 10.2.0.0/24 and their IPv6 counterparts, for routes to be about.
const PREFIXES: [&str; 6] =
    ["0.0.0.0/0", "10.0.0.0/16", "10.0.0.0/30", "10.1.0.0/24", "::/0", "fd00::/64"];

fn vni_of(vnet: usize) -> u32 {
    vnet as u32 * 100 + 1
}

fn any_vnet(index: usize) -> impl Strategy<Value = Vnet> {
    let choices = (any::<bool>(), select(Miss::ALL), any::<bool>(), any_dhcp());
    choices.prop_map(move |(flood, miss, routed, dhcp)| {
        let mut vnet = vnet(VNETS[index], vni_of(index));
        (vnet.flood, vnet.miss, vnet.dhcp) = (flood, miss, dhcp);
        if routed || vnet.dhcp.is_some() {
            vnet.gateways = vec![gateway("10.0.0.254/24", ROUTER), gateway("fd00::ff/64", ROUTER)];
        }
        vnet
    })
}

/// A port whose addresses collide with nobody's but may be a route's destination.
fn any_port(index: usize) -> impl Strategy<Value = Port> {
    let states = select(PortState::ALL);
    let policy = (any_list(), any_meter());
    (select(&VNETS[..]), any::<bool>(), states, any::<bool>(), policy).prop_map(
        move |(vnet, anti_spoof, state, addressed, (acl, meter))| {
            let (v4, v6) = (format!("10.0.0.{}", index + 1), format!("fd00::{}", index + 1));
            let ips = if addressed { vec![v4.as_str(), v6.as_str()] } else { Vec::new() };
            let mut port = port(PORTS[index], vnet, mac(index as u16 + 1), &ips);
            (port.anti_spoof, port.state) = (anti_spoof, state);
            (port.acl, port.meter) = (acl, meter);
            port
        },
    )
}

fn any_mapping(index: usize) -> impl Strategy<Value = Mapping> {
    let choices = (select(&VNETS[..]), select(&VTEPS[..]), any::<bool>(), any::<bool>());
    choices.prop_map(move |(vnet, vtep, v6, shared)| {
        let at = if v6 { format!("fd00::1{index}") } else { format!("10.1.0.{index}") };
        // Several addresses may have one MAC, as those of a cluster.
        let last = if shared { 0 } else { index as u16 };
        mapping(vnet, &at, mac(0x100 + last), vtep)
    })
}

fn any_route() -> impl Strategy<Value = EgressRoute> {
    let actions = prop_oneof![
        3 => select(&VNETS[..]).prop_map(to_vnet),
        1 => Just(RouteAction::Local),
        1 => Just(RouteAction::Trap),
        1 => Just(RouteAction::Drop),
    ];
    let scopes = prop_oneof![
        select(&VNETS[..]).prop_map(|id| RouteScope::Vnet(VnetId::new(id).unwrap())),
        select(&PORTS[..]).prop_map(|id| RouteScope::Port(PortId::new(id).unwrap())),
    ];
    (scopes, select(&PREFIXES[..]), actions).prop_map(|(scope, prefix, action)| EgressRoute {
        scope,
        prefix: prefix.parse().unwrap(),
        action,
    })
}

/// Hosts of so few names and addresses that two of them have much in common.
pub(crate) fn any_host() -> impl Strategy<Value = HostParts> {
    let ports: Vec<_> = (0..PORTS.len()).map(any_port).collect();
    let mappings: Vec<_> = (0..5).map(any_mapping).collect();
    let vnets: Vec<_> = (0..VNETS.len()).map(any_vnet).collect();
    let rules = prop::collection::vec((0..VNETS.len(), select(IngressAction::ALL)), 0..3);
    (
        vnets,
        ports.prop_flat_map(|ports| subsequence(ports, 0..=PORTS.len())),
        mappings.prop_flat_map(|mappings| subsequence(mappings, 0..=5)),
        prop::collection::vec(any_route(), 0..6),
        rules,
        any_groups(),
    )
        .prop_map(|(vnets, ports, mappings, routes, rules, acls)| {
            let mut host = HostParts { vnets, ports, mappings, acls, ..parts() };
            let mut seen = Vec::new();
            for route in routes {
                let known = match &route.scope {
                    RouteScope::Port(id) => host.ports.iter().any(|port| port.id == *id),
                    RouteScope::Vnet(_) => true,
                };
                let key = (route.scope.clone(), route.prefix);
                if known && !seen.contains(&key) {
                    seen.push(key);
                    host.routes.push(route);
                }
            }
            for (priority, (vnet, action)) in rules.into_iter().enumerate() {
                host.ingress.push(rule(vni_of(vnet), "any", priority as u16, action));
            }
            host
        })
}

/// Frames that a port may send: to every neighbour, and some to nobody, directly and by a router; and what asks for
/// configuration.
pub(crate) fn probes(port: &PortEntry) -> Vec<Frame> {
    let mut dsts: Vec<(MacAddr, String)> = Vec::new();
    for last in 1..=PORTS.len() {
        dsts.push((mac(last as u16), format!("10.0.0.{last}")));
        dsts.push((mac(last as u16), format!("fd00::{last}")));
    }
    for last in 0..6 {
        dsts.push((mac(0x100 + last), format!("10.1.0.{last}")));
        dsts.push((mac(0x100 + last), format!("fd00::1{last}")));
    }
    let mut frames = Vec::new();
    for (dst, to) in &dsts {
        let from = if to.contains(':') { "fd00::99" } else { "10.0.0.99" };
        for dst in [*dst, ROUTER, MacAddr::BROADCAST] {
            frames.push(udp(port.mac, dst, from, to));
        }
        // What an answer looks like.
        frames.push(udp_ports(port.mac, *dst, (from, 9), (to, 40_000)));
    }
    frames.extend(questions(port.mac));
    frames
}

/// Frames from the underlay: VNI, VTEP and what it carries, from every mapping there may be to every port.
pub(crate) fn arrivals() -> Vec<(u32, &'static str, Frame)> {
    let mut all = Vec::new();
    for vni in [vni_of(0), vni_of(2), 999] {
        for vtep in VTEPS {
            for source in 0..6_u16 {
                for port in [1, 3] {
                    let (src, dst) = (mac(0x100 + source), mac(port));
                    let (from, to) = (format!("10.1.0.{source}"), format!("10.0.0.{port}"));
                    all.push((vni, vtep, udp(src, dst, &from, &to)));
                    let (from, to) = (format!("fd00::1{source}"), format!("fd00::{port}"));
                    all.push((vni, vtep, udp(src, dst, &from, &to)));
                }
            }
        }
    }
    all
}
