//! Any legal host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::{
    Attach, EgressRoute, Format, Gateway, Host, HostParts, IfName, IngressAction, IngressRule,
    IpNet, MacAddr, Mapping, Miss, ModePreference, Mtu, Port, PortId, PortState, RouteAction,
    RouteScope, Underlay, UnderlayTx, Vnet, VnetId, Vni, VtepMatch,
};
use proptest::prelude::*;
use proptest::sample::select;

const VNETS: u32 = 3;

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
    (names, any::<bool>(), mtu(), mode(), select(UnderlayTx::ALL)).prop_map(
        |(names, v4_first, mtu, mode, tx)| {
            let mut addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
            if !v4_first {
                addresses.reverse();
            }
            let interfaces = names.into_iter().map(|name| IfName::new(name).unwrap()).collect();
            Underlay { interfaces, addresses, mtu, mode, tx }
        },
    )
}

fn vnet(n: u32) -> impl Strategy<Value = Vnet> {
    (any::<bool>(), select(Miss::ALL), 0..4_u32).prop_map(move |(flood, miss, gateways)| Vnet {
        id: vnet_id(n),
        vni: Vni::new(n * 5_000_000 + 1).unwrap(),
        format: Format::Vxlan,
        flood,
        miss,
        gateways: (0..gateways)
            .map(|g| Gateway {
                ip: IpNet::new(ip(1_000_000 + g, g % 2 == 1), 20).unwrap(),
                mac: mac(0x00ff_ffff),
            })
            .collect(),
    })
}

fn port(n: u32) -> impl Strategy<Value = Port> {
    let choices = (0..VNETS, any::<bool>(), any::<bool>(), 0..4_u32);
    (choices, mtu(), mode(), select(PortState::ALL)).prop_map(
        move |((vnet, tap, anti_spoof, ips), mtu, mode, state)| {
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

pub(crate) fn host() -> impl Strategy<Value = Host> {
    (0..8_u32, 0..8_u32, 0..8_u32, 0..8_u16)
        .prop_flat_map(|(ports, routes, mappings, rules)| {
            let vnets: Vec<_> = (0..VNETS).map(vnet).collect();
            let port_list: Vec<_> = (0..ports).map(port).collect();
            let routes: Vec<_> = (0..routes).map(|n| route(n, ports)).collect();
            let mappings: Vec<_> = (0..mappings).map(mapping).collect();
            let rules: Vec<_> = (0..rules).map(ingress).collect();
            (underlay(), vnets, port_list, routes, mappings, rules)
        })
        .prop_map(|(underlay, vnets, ports, routes, mappings, ingress)| {
            let parts = HostParts { underlay, vnets, ports, routes, mappings, ingress };
            Host::new(parts).unwrap_or_else(|errors| panic!("{errors:?}"))
        })
}
