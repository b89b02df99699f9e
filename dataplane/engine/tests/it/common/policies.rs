//! Random groups, meters and configuration of tenants, about the few ports and addresses that frames of the tests have.

use culvert_model::{
    AclAction, AclGroup, AclGroupId, AclRule, Dhcp, DhcpRoute, Direction, Meter, PortRange,
    PortRanges, Protocol, TokenBucket,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

pub(crate) const GROUPS: [&str; 3] = ["web", "base", "none"];

fn ports() -> impl Strategy<Value = PortRanges> {
    let ranges: [&[(u32, u32)]; 5] =
        [&[], &[(9, 9)], &[(40_000, 40_000)], &[(1, 8), (10, 65_535)], &[(67, 547)]];
    select(ranges.to_vec()).prop_map(|ranges| {
        let range = |(from, to): &(u32, u32)| PortRange::new(*from, *to).unwrap();
        PortRanges(ranges.iter().map(range).collect())
    })
}

fn rule() -> impl Strategy<Value = AclRule> {
    let protocols = [Protocol::Any, Protocol::UDP, Protocol::UDP, Protocol::TCP, Protocol::ICMPV6];
    let remotes = ["10.0.0.0/8", "10.1.0.0/24", "10.1.0.0/31", "fd00::/64", "0.0.0.0/0", "::/0"];
    (
        select(Direction::ALL),
        select(&[AclAction::Allow, AclAction::Allow, AclAction::Deny][..]),
        select(protocols.to_vec()),
        prop::option::of(select(remotes.to_vec())),
        ports(),
        ports(),
    )
        .prop_map(|(direction, action, protocol, remote, local_ports, remote_ports)| {
            let legal = |ports| if protocol.has_ports() { ports } else { PortRanges::default() };
            let remote = remote.filter(|net| protocol != Protocol::ICMPV6 || net.contains(':'));
            AclRule {
                direction,
                action,
                protocol,
                remote: remote.map(|net| net.parse().unwrap()),
                local_ports: legal(local_ports),
                remote_ports: legal(remote_ports),
            }
        })
}

fn group(id: &'static str) -> impl Strategy<Value = AclGroup> {
    (any::<bool>(), prop::collection::vec(rule(), 0..5)).prop_map(move |(stateful, rules)| {
        AclGroup { id: AclGroupId::new(id).unwrap(), stateful, rules }
    })
}

/// One by which a tenant may ask what it likes, and is only answered.
pub(crate) fn only_answers() -> AclGroup {
    let rule = AclRule {
        direction: Direction::Egress,
        action: AclAction::Allow,
        protocol: Protocol::Any,
        remote: None,
        local_ports: PortRanges::default(),
        remote_ports: PortRanges::default(),
    };
    AclGroup { id: GROUPS[0].parse().unwrap(), stateful: true, rules: vec![rule] }
}

/// All groups that ports may refer to.
pub(crate) fn any_groups() -> impl Strategy<Value = Vec<AclGroup>> {
    GROUPS.into_iter().map(group).collect::<Vec<_>>()
}

/// The groups of a port, of none most often.
pub(crate) fn any_list() -> impl Strategy<Value = Vec<AclGroupId>> {
    let some = subsequence(GROUPS.to_vec(), 1..=GROUPS.len()).prop_shuffle();
    let some =
        some.prop_map(|ids| ids.into_iter().map(|id| AclGroupId::new(id).unwrap()).collect());
    prop_oneof![2 => Just(Vec::new()), 3 => some]
}

/// Rates that a few frames exceed, and others.
pub(crate) fn any_meter() -> impl Strategy<Value = Option<Meter>> {
    let rates = [TokenBucket::RATE_MIN_BPS, TokenBucket::RATE_MIN_BPS, TokenBucket::RATE_MAX_BPS];
    let bucket = select(rates.to_vec()).prop_map(|rate| {
        let burst = if rate == TokenBucket::RATE_MIN_BPS {
            TokenBucket::BURST_MIN_BYTES
        } else {
            1_000_000
        };
        TokenBucket::new(rate, Some(burst.into())).unwrap()
    });
    let bucket = move || prop::option::weighted(0.75, bucket.clone());
    prop::option::of((bucket(), bucket()).prop_map(|(rx, tx)| Meter { rx, tx }))
}

/// What tenants are told. Their vnet needs gateways of both families.
pub(crate) fn any_dhcp() -> impl Strategy<Value = Option<Dhcp>> {
    let dhcp = (any::<[bool; 3]>(), select(&[60, 3600][..])).prop_map(
        |([dns, domain, routed], lease_s)| {
            let route = DhcpRoute {
                prefix: "192.168.0.0/16".parse().unwrap(),
                via: "10.0.0.253".parse().unwrap(),
            };
            let servers = ["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
            Dhcp {
                dns: if dns { servers.to_vec() } else { Vec::new() },
                ntp: Vec::new(),
                domain: domain.then(|| "blue.internal".parse().unwrap()),
                lease_s,
                routes: if routed { vec![route] } else { Vec::new() },
            }
        },
    );
    prop::option::weighted(0.4, dhcp)
}
