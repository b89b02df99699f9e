//! Any legal host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::shard::{Coding, Key, Keyring};
use culvert_model::{
    AclAction, AclGroup, AclGroupId, AclRule, Attach, Dhcp, DhcpRoute, Direction, DomainName,
    EgressRoute, Format, Gateway, Host, HostParts, IfName, IngressAction, IngressRule, IpNet,
    MacAddr, Mapping, Meter, Miss, ModePreference, Mtu, Peer, Port, PortId, PortRange, PortRanges,
    PortState, Protocol, RouteAction, RouteScope, ShardSettings, TokenBucket, Underlay, UnderlayRx,
    UnderlayTx, Vnet, VnetId, Vni, VtepMatch,
};
use proptest::prelude::*;
use proptest::sample::select;

const VNETS: u32 = 3;
const ACLS: [&str; 3] = ["web", "base", "none"];

fn mode() -> impl Strategy<Value = ModePreference> {
    select(ModePreference::ALL)
}

fn mtu() -> impl Strategy<Value = Option<Mtu>> {
    proptest::option::of((1400_u32..=65_535).prop_map(|bytes| Mtu::new(bytes).unwrap()))
}

/// The n-th address of a kind: distinct ones by construction, so that the host is legal.
fn ip(n: u32, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(n + 1)).into()
    } else {
        Ipv4Addr::from(0x0a00_0001 + n).into()
    }
}

fn mac(n: u32) -> MacAddr {
    let [_, a, b, c] = n.to_be_bytes();
    MacAddr([2, 0, 0, a, b, c])
}

fn vnet_id(n: u32) -> VnetId {
    VnetId::new(&format!("vnet-{n}")).unwrap()
}

fn underlay() -> impl Strategy<Value = Underlay> {
    // A quote and a backslash are legal in the names of devices.
    let names = proptest::sample::subsequence(vec!["eth0", "e\"1", "e\\2", "enp1s0f0np0"], 1..=4);
    let all = UnderlayRx::ALL.iter().flat_map(|rx| UnderlayTx::ALL.iter().map(|tx| (*rx, *tx)));
    let ways: Vec<_> = all.filter(|way| *way != (UnderlayRx::Packet, UnderlayTx::Xdp)).collect();
    (names, any::<bool>(), mtu(), mode(), select(ways), 0..=1000_u16, shard()).prop_map(
        |(names, v4_first, mtu, mode, (rx, tx), merge_hold_us, shard)| {
            let mut addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
            if !v4_first {
                addresses.reverse();
            }
            let interfaces = names.into_iter().map(|name| IfName::new(name).unwrap()).collect();
            let peers = Vec::new();
            Underlay { interfaces, addresses, mtu, mode, rx, tx, merge_hold_us, peers, shard }
        },
    )
}

fn shard() -> impl Strategy<Value = ShardSettings> {
    let coding = proptest::option::of((1..=8_u8, 0..=8_u8));
    (coding, 1..=10_000_u16, 2..=4096_u16, 256..=1_048_576_u32, 0..=1_000_u16).prop_map(
        |(coding, hold_ms, frames, kib, repair_ms)| ShardSettings {
            coding: coding.map(|(k, more)| Coding::new(k, k + more).unwrap()),
            hold_ms,
            frames,
            kib,
            repair_ms,
            ..ShardSettings::default()
        },
    )
}

fn keyring(n: u32) -> Keyring {
    let ids = 0..n as u8 % 9;
    let keys = ids.clone().map(|id| (id, Key::new(&[n as u8 ^ id; 16]).unwrap()));
    if ids.is_empty() { Keyring::default() } else { Keyring::new(keys, ids.end - 1).unwrap() }
}

fn domain() -> impl Strategy<Value = Option<DomainName>> {
    proptest::option::of("[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?([.][a-z]{1,3}){0,2}")
        .prop_map(|name| name.map(|name| DomainName::new(&name).unwrap()))
}

fn dhcp() -> impl Strategy<Value = Dhcp> {
    let servers =
        || (0..4_u32).prop_map(|n| (0..n).map(|i| ip(2_000_000 + i, i % 2 == 1)).collect());
    let lease = select(&[Dhcp::LEASE_MIN_S, Dhcp::LEASE_DEFAULT_S, 7200, Dhcp::LEASE_MAX_S][..]);
    (servers(), servers(), domain(), lease, 0..3_u8).prop_map(
        |(dns, ntp, domain, lease_s, routes)| {
            let route = |n| DhcpRoute {
                prefix: format!("192.168.{n}.0/24").parse().unwrap(),
                via: "10.0.0.1".parse().unwrap(),
            };
            Dhcp { dns, ntp, domain, lease_s, routes: (0..routes).map(route).collect() }
        },
    )
}

/// One that covers all addresses that [`ip`] makes, of each family, for DHCP.
fn cover(v6: bool) -> Gateway {
    let len = if v6 { 64 } else { 8 };
    Gateway { ip: IpNet::new(ip(900_000, v6), len).unwrap(), mac: mac(0x00ff_ffff) }
}

fn bucket() -> impl Strategy<Value = Option<TokenBucket>> {
    let rate = TokenBucket::RATE_MIN_BPS..=TokenBucket::RATE_MAX_BPS;
    let burst = TokenBucket::BURST_MIN_BYTES..=TokenBucket::BURST_MAX_BYTES;
    proptest::option::of(
        (rate, burst).prop_map(|(rate, burst)| TokenBucket::new(rate, Some(burst.into())).unwrap()),
    )
}

fn meter() -> impl Strategy<Value = Option<Meter>> {
    proptest::option::of((bucket(), bucket()).prop_map(|(rx, tx)| Meter { rx, tx }))
}

fn acl_ids() -> impl Strategy<Value = Vec<AclGroupId>> {
    proptest::sample::subsequence(ACLS.to_vec(), 0..=ACLS.len())
        .prop_shuffle()
        .prop_map(|ids| ids.into_iter().map(|id| AclGroupId::new(id).unwrap()).collect())
}

fn ports() -> impl Strategy<Value = PortRanges> {
    let range = (any::<u16>(), any::<u16>())
        .prop_map(|(a, b)| PortRange::new(a.min(b).into(), a.max(b).into()).unwrap());
    proptest::collection::vec(range, 0..4).prop_map(PortRanges)
}

fn acl_rule() -> impl Strategy<Value = AclRule> {
    let remote = select(&["10.0.0.0/8", "fd00::/8", "192.0.2.1/32", "0.0.0.0/0"][..]);
    let protocols = [
        Protocol::Any,
        Protocol::TCP,
        Protocol::UDP,
        Protocol::SCTP,
        Protocol::ICMP,
        Protocol::ICMPV6,
        Protocol::Number(0),
        Protocol::Number(47),
    ];
    (
        select(Direction::ALL),
        select(AclAction::ALL),
        select(protocols.to_vec()),
        proptest::option::of(remote),
        (ports(), ports()),
    )
        .prop_map(|(direction, action, protocol, remote, (local_ports, remote_ports))| {
            let legal = |ports| if protocol.has_ports() { ports } else { PortRanges::default() };
            let remote =
                remote.map(|text| text.parse::<IpNet>().unwrap()).filter(|prefix| match protocol {
                    Protocol::ICMP => prefix.addr().is_ipv4(),
                    Protocol::ICMPV6 => prefix.addr().is_ipv6(),
                    _ => true,
                });
            let (local_ports, remote_ports) = (legal(local_ports), legal(remote_ports));
            AclRule { direction, action, protocol, remote, local_ports, remote_ports }
        })
}

fn acl(id: &'static str) -> impl Strategy<Value = AclGroup> {
    (any::<bool>(), proptest::collection::vec(acl_rule(), 0..5)).prop_map(
        move |(stateful, rules)| AclGroup { id: AclGroupId::new(id).unwrap(), stateful, rules },
    )
}

/// Some of two formats, which use most of what a description can say.
fn formats() -> impl Strategy<Value = Vec<Format>> {
    let over_udp = r#"
        id = "own-udp"
        outer = { udp = 7000 }
        header = "0000 6558 0000 0000"
        identifier = [{ offset = 0, width = 2, value = 0 }, { offset = 2, width = 16, value = 0x6558 }]
        vni = { offset = 4, width = 24 }
        flow = { first_port = 32768, bits = 15 }
        inner = { offset = 0, bit = 2, width = 6, base = 8, scale = 4 }
        field = [{ offset = 7, width = 1, rule = "last", bits = 1 }]
        options = { head = 4, id = { offset = 0, width = 24 }, length = { offset = 3, bit = 3, width = 5 }, scale = 4, critical = { offset = 2, width = 1 }, any-critical = { offset = 1, bit = 1, width = 1 }, known = [{ id = 0xffc701, units = 1, says = "mss", offset = 0, width = 16 }] }
    "#;
    let over_tcp = r#"
        id = "own-tcp"
        outer = { tcp = 7001 }
        header = "00 00 00 00 00 00 00 00 00 00"
        identifier = [{ offset = 0, width = 8, value = 0 }]
        vni = { offset = 7, width = 24 }
        travel = "first"
        fact = [{ says = "mss", offset = 1, width = 16 }, { says = "tcp", offset = 3, width = 1 }]
    "#;
    let all = [over_udp, over_tcp].map(|text| culvert_model::format::read(text).unwrap());
    proptest::sample::subsequence(all.to_vec(), 0..=2)
}

fn vnet(n: u32) -> impl Strategy<Value = Vnet> {
    let plain = (any::<bool>(), select(Miss::ALL), 0..4_u32);
    let plain = plain.prop_map(move |(flood, miss, gateways)| Vnet {
        id: vnet_id(n),
        vni: Vni::new(n * 5_000_000 + 1).unwrap(),
        format: (["vxlan", "geneve", "stt"][n as usize % 3]).parse().unwrap(),
        raise_mss: flood && n % 3 == 1,
        flood,
        miss,
        gateways: (0..gateways)
            .map(|g| Gateway {
                ip: IpNet::new(ip(1_000_000 + g, g % 2 == 1), 20).unwrap(),
                mac: mac(0x00ff_ffff),
            })
            .collect(),
        dhcp: None,
    });
    (plain, proptest::option::of(dhcp())).prop_map(|(mut vnet, dhcp)| {
        if dhcp.is_some() {
            vnet.gateways.extend([cover(false), cover(true)]);
        }
        vnet.dhcp = dhcp;
        vnet
    })
}

fn port(n: u32) -> impl Strategy<Value = Port> {
    let choices = (0..VNETS, any::<bool>(), any::<bool>(), 0..4_u32, any::<bool>());
    let policy = (acl_ids(), meter(), domain());
    (choices, mtu(), mode(), select(PortState::ALL), policy).prop_map(
        move |((vnet, tap, anti_spoof, ips, udp_gro), mtu, mode, state, (acl, meter, hostname))| {
            let ifname = IfName::new(&format!("dev{n}")).unwrap();
            Port {
                id: PortId::new(&format!("port-{n}")).unwrap(),
                vnet: vnet_id(vnet),
                attach: if tap { Attach::Tap { ifname } } else { Attach::Xdp { ifname } },
                mac: mac(n + 1),
                ips: (0..ips).map(|i| ip(n * 8 + i, i % 2 == 1)).collect(),
                anti_spoof,
                mtu,
                mode,
                state,
                acl,
                meter,
                hostname,
                udp_gro,
            }
        },
    )
}

fn route(n: u32, ports: u32) -> impl Strategy<Value = EgressRoute> {
    (0..VNETS, 0..ports + VNETS, 0..4_usize, 0..=24_u8).prop_map(move |(to, scope, action, len)| {
        let scope = if scope < ports {
            RouteScope::Port(PortId::new(&format!("port-{scope}")).unwrap())
        } else {
            RouteScope::Vnet(vnet_id(scope - ports))
        };
        let actions = [
            RouteAction::Vnet(vnet_id(to)),
            RouteAction::Local,
            RouteAction::Trap,
            RouteAction::Drop,
        ];
        // The position in the last octets keeps prefixes of one scope distinct.
        let address = IpAddr::from(Ipv4Addr::from(0x0b00_0000 | n << 8));
        EgressRoute {
            scope,
            prefix: IpNet::new(address, len.max(24)).unwrap(),
            action: actions[action].clone(),
        }
    })
}

fn mapping(n: u32) -> impl Strategy<Value = Mapping> {
    (0..VNETS, any::<bool>(), any::<bool>(), any::<u8>(), mtu())
        .prop_map(|(vnet, v6, vtep_v6, vtep, mtu)| {
            let vtep = u32::from(vtep) + 0x10_0000;
            Mapping {
                vnet: vnet_id(vnet),
                ip: ip(0, v6),
                mac: mac(0x80_0000),
                vtep: ip(vtep, vtep_v6),
                mtu,
            }
        })
        .prop_map(move |mapping| {
            let v6 = mapping.ip.is_ipv6();
            Mapping { ip: ip(500_000 + n, v6), mac: mac(0x80_0000 + n), ..mapping }
        })
}

fn ingress(n: u16) -> impl Strategy<Value = IngressRule> {
    (0..VNETS, any::<bool>(), 0..=32_u8, select(IngressAction::ALL)).prop_map(
        move |(vnet, any, len, action)| {
            let prefix = IpNet::new("192.0.2.0".parse().unwrap(), len).unwrap().trunc();
            IngressRule {
                vni: Vni::new(vnet * 5_000_000 + 1).unwrap(),
                vtep: if any { VtepMatch::Any } else { VtepMatch::Prefix(prefix) },
                priority: n,
                action,
            }
        },
    )
}

/// A legal host.
pub(crate) fn host() -> impl Strategy<Value = Host> {
    (0..8_u32, 0..8_u32, 0..8_u32, 0..8_u16)
        .prop_flat_map(|(ports, routes, mappings, rules)| {
            let vnets: Vec<_> = (0..VNETS).map(vnet).collect();
            let port_list: Vec<_> = (0..ports).map(port).collect();
            let routes: Vec<_> = (0..routes).map(|n| route(n, ports)).collect();
            let mappings: Vec<_> = (0..mappings).map(mapping).collect();
            let rules: Vec<_> = (0..rules).map(ingress).collect();
            let acls: Vec<_> = ACLS.into_iter().map(acl).collect();
            ((underlay(), formats()), vnets, port_list, routes, mappings, rules, acls)
        })
        .prop_map(|(first, mut vnets, ports, routes, mappings, ingress, acls)| {
            let (mut underlay, formats) = first;
            let own = formats.iter().map(|format: &Format| format.id.clone());
            for (vnet, format) in vnets.iter_mut().zip(own.clone()) {
                vnet.format = format;
                vnet.raise_mss = false;
            }
            let peer = |(n, format)| Peer {
                vtep: ip(0x00f0_0000 + n, false),
                format: Some(format).filter(|_| n % 3 != 2),
                raise_mss: [None, Some(false), Some(true)][n as usize % 3]
                    .filter(|raise| !raise || n % 3 == 2),
                keys: keyring(n),
            };
            underlay.peers = (0..8_u32).zip(own).map(peer).collect();
            let parts =
                HostParts { underlay, vnets, ports, routes, mappings, ingress, acls, formats };
            Host::new(parts).unwrap_or_else(|errors| panic!("{errors:?}"))
        })
}
