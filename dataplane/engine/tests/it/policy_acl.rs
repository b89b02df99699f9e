//! What ACL groups say about a packet is what a plain reading of their rules says.

use crate::common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_dataplane::policy::acl::{Judgement, RuleIndex, judge};
use culvert_dataplane::policy::observe::{Stage, Step, Unwatched};
use culvert_dataplane::worker::key::Headers;
use culvert_model::{
    AclAction, AclGroup, AclRule, Direction, HostParts, IpNet, PortRange, PortRanges, Protocol,
};
use culvert_wire::Packet;
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header,
};
use proptest::prelude::*;
use proptest::sample::select;

use common::frames::{arp_request, neighbour_solicitation};
use common::{World, mac, parts, port, vnet};

const LOCAL: [&str; 2] = ["10.0.0.1", "fd00::1"];
const REMOTES: [[&str; 4]; 2] = [
    ["10.0.0.2", "10.1.0.2", "192.0.2.7", "255.255.255.255"],
    ["fd00::2", "fd00:1::2", "2001:db8::7", "ff02::fb"],
];
const PREFIXES: [&str; 8] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "192.0.2.7/32",
    "::/0",
    "fd00::/64",
    "2001:db8::7/128",
    "ff00::/8",
];
const PORTS: [u16; 5] = [0, 22, 80, 443, 65_535];

/// A packet as the tenant sees it.
#[derive(Clone, Debug)]
struct Spec {
    direction: Direction,
    /// None: not IP.
    ip: Option<Ip>,
}

#[derive(Clone, Debug)]
struct Ip {
    v6: bool,
    remote: usize,
    number: u8,
    local_port: u16,
    remote_port: u16,
    later_fragment: bool,
}

impl Spec {
    fn ends(&self, ip: &Ip) -> (IpAddr, IpAddr) {
        let family = usize::from(ip.v6);
        let (local, remote) = (LOCAL[family], REMOTES[family][ip.remote]);
        (local.parse().unwrap(), remote.parse().unwrap())
    }

    /// The bytes, by a library that is not ours.
    fn frame(&self) -> Vec<u8> {
        let ether_type = match &self.ip {
            None => EtherType(0x88b5),
            Some(ip) if ip.v6 => EtherType::IPV6,
            Some(_) => EtherType::IPV4,
        };
        let header = Ethernet2Header { source: mac(1).0, destination: mac(2).0, ether_type };
        let mut bytes = header.to_bytes().to_vec();
        let Some(ip) = &self.ip else {
            bytes.extend([0; 46]);
            return bytes;
        };
        let (local, remote) = self.ends(ip);
        let egress = self.direction == Direction::Egress;
        let (src, dst) = if egress { (local, remote) } else { (remote, local) };
        let ports = [ip.local_port, ip.remote_port];
        let [near, far] = if egress { ports } else { [ports[1], ports[0]] };
        let l4 = payload(ip.number, near, far);
        let offset = IpFragOffset::try_new(if ip.later_fragment { 8 } else { 0 }).unwrap();
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend(v4(src, dst, ip.number, l4.len(), offset));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend(v6(src, dst, ip.number, l4.len(), offset));
            }
            pair => panic!("{pair:?}"),
        }
        bytes.extend(l4);
        bytes
    }
}

fn v4(src: Ipv4Addr, dst: Ipv4Addr, number: u8, len: usize, offset: IpFragOffset) -> Vec<u8> {
    let (src, dst) = (src.octets(), dst.octets());
    let mut header = Ipv4Header::new(len as u16, 64, IpNumber(number), src, dst).unwrap();
    header.dont_fragment = false;
    header.fragment_offset = offset;
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

fn v6(src: Ipv6Addr, dst: Ipv6Addr, number: u8, len: usize, offset: IpFragOffset) -> Vec<u8> {
    let fragment = (offset.value() > 0)
        .then(|| Ipv6FragmentHeader::new(IpNumber(number), offset, false, 7).to_bytes());
    let extra = fragment.as_ref().map_or(0, |bytes| bytes.len());
    let next =
        if fragment.is_some() { IpNumber::IPV6_FRAGMENTATION_HEADER } else { IpNumber(number) };
    let header = Ipv6Header {
        payload_length: (len + extra) as u16,
        next_header: next,
        hop_limit: 64,
        source: src.octets(),
        destination: dst.octets(),
        ..Ipv6Header::default()
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(fragment.iter().flatten());
    bytes
}

/// An L4 packet with just what its parser asks for.
fn payload(number: u8, src: u16, dst: u16) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    if matches!(number, 6 | 17 | 132) {
        bytes[..2].copy_from_slice(&src.to_be_bytes());
        bytes[2..4].copy_from_slice(&dst.to_be_bytes());
    }
    match number {
        6 => bytes[12] = 5 << 4,
        17 => bytes[5] = 24,
        1 => bytes[0] = 8,
        58 => bytes[0] = 128,
        _ => {}
    }
    bytes
}

/// The first rule that matches, by the words of the documentation.
fn reference(groups: &[AclGroup], spec: &Spec) -> Judgement {
    let mut rules = Vec::new();
    for (group, of) in groups.iter().enumerate() {
        for (rule, it) in of.rules.iter().enumerate() {
            let at = RuleIndex { group: group as u16, rule: rule as u16 };
            rules.push((at, of.stateful, it));
        }
    }
    for (at, stateful, rule) in rules {
        let matches = match (&spec.ip, rule.protocol, rule.remote) {
            _ if rule.direction != spec.direction => false,
            (None, Protocol::Any, None) => true,
            (None, _, _) => false,
            (Some(ip), protocol, remote) => {
                let protocol = protocol == Protocol::Any || protocol == Protocol::Number(ip.number);
                let remote = remote.is_none_or(|net| net.contains(&spec.ends(ip).1));
                let asks = !(rule.local_ports.0.is_empty() && rule.remote_ports.0.is_empty());
                let within = |ranges: &PortRanges, port: u16| {
                    ranges.0.is_empty()
                        || ranges.0.iter().any(|r| (r.first()..=r.last()).contains(&port))
                };
                let ports = if !asks {
                    true
                } else if ip.later_fragment {
                    rule.action == AclAction::Deny
                } else {
                    within(&rule.local_ports, ip.local_port)
                        && within(&rule.remote_ports, ip.remote_port)
                };
                protocol && remote && ports
            }
        };
        if matches {
            return match rule.action {
                AclAction::Allow => Judgement::Allow { rule: at, stateful },
                AclAction::Deny => Judgement::Deny(Some(at)),
            };
        }
    }
    Judgement::Deny(None)
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let numbers = select(&[1_u8, 6, 17, 47, 58, 132][..]);
    let ip =
        (any::<bool>(), 0..4_usize, numbers, select(&PORTS[..]), select(&PORTS[..]), any::<u8>());
    let ip = ip.prop_map(|(v6, remote, number, local_port, remote_port, later)| Ip {
        v6,
        remote,
        number,
        local_port,
        remote_port,
        later_fragment: later < 64,
    });
    (select(Direction::ALL), proptest::option::weighted(0.95, ip))
        .prop_map(|(direction, ip)| Spec { direction, ip })
}

fn any_ports() -> impl Strategy<Value = PortRanges> {
    let range = (select(&PORTS[..]), select(&PORTS[..]))
        .prop_map(|(a, b)| PortRange::new(a.min(b).into(), a.max(b).into()).unwrap());
    proptest::collection::vec(range, 0..3).prop_map(PortRanges)
}

fn any_rule() -> impl Strategy<Value = AclRule> {
    let protocol = prop_oneof![
        Just(Protocol::Any),
        select(&[1_u8, 6, 17, 47, 58, 132][..]).prop_map(Protocol::Number)
    ];
    let remote = proptest::option::of(select(&PREFIXES[..]));
    let actions = select(AclAction::ALL);
    (select(Direction::ALL), actions, protocol, remote, any_ports(), any_ports()).prop_map(
        |(direction, action, protocol, remote, local_ports, remote_ports)| {
            let legal = |ports| if protocol.has_ports() { ports } else { PortRanges::default() };
            let remote = remote.map(|text| text.parse::<IpNet>().unwrap());
            let remote = remote.filter(|net| match protocol {
                Protocol::ICMP => net.addr().is_ipv4(),
                Protocol::ICMPV6 => net.addr().is_ipv6(),
                _ => true,
            });
            let (local_ports, remote_ports) = (legal(local_ports), legal(remote_ports));
            AclRule { direction, action, protocol, remote, local_ports, remote_ports }
        },
    )
}

fn any_groups() -> impl Strategy<Value = Vec<AclGroup>> {
    let group = (any::<bool>(), proptest::collection::vec(any_rule(), 0..8));
    proptest::collection::vec(group, 1..4).prop_map(|groups| {
        let group = |(at, (stateful, rules))| {
            let id = format!("g{at}").parse().unwrap();
            AclGroup { id, stateful, rules }
        };
        groups.into_iter().enumerate().map(group).collect()
    })
}

fn host(groups: &[AclGroup]) -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 100)];
    host.acls = groups.to_vec();
    let mut with = port("a", "blue", mac(1), &LOCAL);
    with.acl = groups.iter().map(|group| group.id.clone()).collect();
    host.ports = vec![with, port("b", "blue", mac(2), &["10.0.0.2"])];
    host
}

fn judged(world: &World, port: &str, direction: Direction, bytes: &[u8]) -> Judgement {
    let pkt = Packet::parse(bytes, bytes.len()).unwrap();
    judge(world.port(port), direction, bytes, &pkt, &mut Unwatched)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_judgement_is_what_a_plain_reading_of_the_rules_says(
        groups in any_groups(),
        specs in proptest::collection::vec(any_spec(), 1..16),
    ) {
        let world = World::new(host(&groups));
        for spec in specs {
            let found = judged(&world, "a", spec.direction, &spec.frame());
            prop_assert_eq!(found, reference(&groups, &spec), "{:?}", spec);
            prop_assert_eq!(judged(&world, "b", spec.direction, &spec.frame()), Judgement::Free);
        }
    }

    #[test]
    fn packets_of_one_cached_flow_are_judged_alike(
        groups in any_groups(),
        specs in proptest::collection::vec(any_spec(), 2..32),
    ) {
        let world = World::new(host(&groups));
        let mut known: Vec<(Direction, Headers, Judgement)> = Vec::new();
        for spec in specs {
            let bytes = spec.frame();
            let headers = Headers::of(&bytes, &Packet::parse(&bytes, bytes.len()).unwrap());
            let judgement = judged(&world, "a", spec.direction, &bytes);
            for (direction, other, before) in &known {
                if *direction == spec.direction && *other == headers {
                    prop_assert_eq!(*before, judgement, "{:?}", spec);
                }
            }
            known.push((spec.direction, headers, judgement));
        }
    }

    #[test]
    fn who_watches_is_told_the_rule_that_decided(groups in any_groups(), spec in any_spec()) {
        let world = World::new(host(&groups));
        let bytes = spec.frame();
        let pkt = Packet::parse(&bytes, bytes.len()).unwrap();
        let mut steps: Vec<Step> = Vec::new();
        let judgement = judge(world.port("a"), spec.direction, &bytes, &pkt, &mut steps);
        prop_assert_eq!(steps.len(), 1);
        prop_assert_eq!(steps[0].stage, Stage::Acl);
        let named = |at: RuleIndex| format!("acl g{}: rule[{}]", at.group, at.rule);
        match judgement {
            Judgement::Allow { rule, .. } => {
                prop_assert_eq!(&steps[0].rule, &named(rule));
                prop_assert_eq!(&steps[0].outcome, "pass");
            }
            Judgement::Deny(Some(rule)) => prop_assert_eq!(&steps[0].rule, &named(rule)),
            Judgement::Deny(None) => prop_assert!(steps[0].rule.starts_with("port a")),
            Judgement::Free => prop_assert!(false, "the port has groups"),
        }
    }
}

/// A group that allows nothing.
fn closed() -> World {
    let group = AclGroup { id: "g0".parse().unwrap(), stateful: false, rules: Vec::new() };
    World::new(host(&[group]))
}

#[test]
fn arp_and_neighbour_discovery_are_not_judged() {
    let world = closed();
    for direction in Direction::ALL {
        for frame in [
            arp_request(mac(1), "10.0.0.1", "10.0.0.2"),
            neighbour_solicitation(mac(1), "fd00::1", "fd00::2"),
        ] {
            assert_eq!(judged(&world, "a", *direction, &frame.bytes), Judgement::Free);
        }
    }
}

#[test]
fn a_fragment_that_looks_like_neighbour_discovery_is_judged() {
    let spec = |later_fragment| Spec {
        direction: Direction::Ingress,
        ip: Some(Ip {
            v6: true,
            remote: 0,
            number: 58,
            local_port: 0,
            remote_port: 0,
            later_fragment,
        }),
    };
    for kind in 133..=137_u8 {
        let mut whole = spec(false).frame();
        let at = whole.len() - 24;
        whole[at] = kind;
        let free = judged(&closed(), "a", Direction::Ingress, &whole) == Judgement::Free;
        assert_eq!(free, kind != 137, "no redirect");
        let mut later = spec(true).frame();
        let at = later.len() - 24;
        later[at] = kind;
        assert_eq!(judged(&closed(), "a", Direction::Ingress, &later), Judgement::Deny(None));
    }
}

#[test]
fn groups_that_did_not_change_are_kept_and_others_are_judged_anew() {
    let group =
        |id: &str, stateful| AclGroup { id: id.parse().unwrap(), stateful, rules: Vec::new() };
    let first = host(&[group("g0", false)]);
    let mut world = World::new(first.clone());
    let acl = |world: &World| {
        let acl = world.port("a").acl.clone().unwrap();
        (acl.changed_in, acl.owned_since)
    };
    let epoch = world.port("a").epoch;
    world.apply(first.clone());
    assert_eq!((acl(&world), world.port("a").epoch), ((1, 1), epoch));
    let second = host(&[group("g0", true)]);
    world.apply(second.clone());
    assert_eq!(acl(&world), (3, 1));
    assert!(world.port("a").epoch > epoch, "cached flows are judged anew");
    let mut without = second.clone();
    without.ports[0].acl.clear();
    world.apply(without);
    assert!(world.port("a").acl.is_none());
    world.apply(second);
    assert_eq!(acl(&world), (5, 5), "what was allowed before is forgotten");
}
