//! Edits of so few names, numbers and addresses that they clash more often than not.

use std::net::IpAddr;

use culvert_model::{
    AclGroup, AclGroupId, Attach, Dhcp, Edit, EgressRoute, Format, Gateway, Host, IfName,
    IngressAction, IngressRule, IpNet, Keyed, MacAddr, Mapping, Miss, ModePreference, Mtu, Peer,
    Port, PortId, PortState, RouteAction, RouteScope, Underlay, UnderlayRx, UnderlayTx, Vnet,
    VnetId, Vni, VtepMatch,
};
use proptest::prelude::*;
use proptest::sample::select;

fn vnet_id() -> impl Strategy<Value = VnetId> {
    select(vec!["v0", "v1", "v2"]).prop_map(|id| id.parse().unwrap())
}

fn port_id() -> impl Strategy<Value = PortId> {
    select(vec!["p0", "p1", "p2"]).prop_map(|id| id.parse().unwrap())
}

fn acl_id() -> impl Strategy<Value = AclGroupId> {
    select(vec!["g0", "g1"]).prop_map(|id| id.parse().unwrap())
}

/// Two formats that one port does not tell apart.
fn format() -> impl Strategy<Value = Format> {
    let port = prop_oneof![2 => Just(0), 1 => Just(7000_u16), 1 => Just(7001), 1 => Just(4789)];
    (select(vec!["one", "two"]), port, any::<bool>()).prop_map(|(id, port, narrow)| {
        let port = if port == 0 { 7002 + u16::from(id == "two") } else { port };
        let width = if narrow { 8 } else { 24 };
        let text = format!(
            "id = \"{id}\"\nouter = {{ udp = {port} }}\nheader = \"08000000 00000000\"\n\
             identifier = [{{ offset = 0, width = 8, value = 8 }}]\n\
             vni = {{ offset = 4, width = {width} }}"
        );
        culvert_model::format::read(&text).unwrap()
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "fd00::1", "224.0.0.1"];
    let weights = prop_oneof![9 => 0..5_usize, 2 => Just(5), 1 => Just(6)];
    weights.prop_map(move |n| all[n].parse().unwrap())
}

fn mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![20 => 1..6_u8, 1 => Just(0)].prop_map(|n| match n {
        0 => MacAddr([0; 6]),
        n => MacAddr([2, 0, 0, 0, 0, n]),
    })
}

fn vni() -> impl Strategy<Value = Vni> {
    (1..4_u32).prop_map(|n| Vni::new(n).unwrap())
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let all = ["10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd00::/64", "10.0.0.1/24"];
    prop_oneof![8 => 0..4_usize, 1 => Just(4)].prop_map(move |n| all[n].parse().unwrap())
}

fn underlay() -> impl Strategy<Value = Underlay> {
    let addresses = prop_oneof![
        4 => Just(vec!["192.0.2.1", "2001:db8::1"]),
        1 => Just(vec!["192.0.2.1"]),
        1 => Just(vec!["192.0.2.2", "2001:db8::1"]),
        1 => Just(vec![]),
    ];
    let mtu = prop_oneof![3 => Just(None), 1 => Just(Some(1300)), 1 => Just(Some(600))];
    let peers =
        prop_oneof![4 => Just(vec![]), 1 => Just(vec!["one"]), 1 => Just(vec!["one", "two"])];
    let name = select(vec!["eth0", "d0"]);
    (addresses, mtu, name, peers).prop_map(|(addresses, mtu, name, peers)| Underlay {
        interfaces: vec![IfName::new(name).unwrap()],
        addresses: addresses.into_iter().map(|ip| ip.parse().unwrap()).collect(),
        mtu: mtu.map(|mtu| Mtu::new(mtu).unwrap()),
        mode: ModePreference::Auto,
        rx: UnderlayRx::Xdp,
        tx: UnderlayTx::Auto,
        merge_hold_us: 0,
        peers: peers
            .into_iter()
            .enumerate()
            .map(|(n, format)| Peer {
                vtep: [198, 51, 100, 1 + n as u8].into(),
                format: Some(format.parse().unwrap()),
                raise_mss: None,
                keys: Default::default(),
            })
            .collect(),
        shard: Default::default(),
    })
}

fn vnet() -> impl Strategy<Value = Vnet> {
    let gateway =
        (ip(), mac()).prop_map(|(ip, mac)| Gateway { ip: IpNet::new(ip, 24).unwrap(), mac });
    let dhcp = prop_oneof![3 => Just(None), 1 => Just(Some(Dhcp::default()))];
    let format = select(vec!["vxlan", "geneve", "one", "two"]);
    (vnet_id(), vni(), any::<bool>(), prop::collection::vec(gateway, 0..2), dhcp, format).prop_map(
        |(id, vni, flood, gateways, dhcp, format)| Vnet {
            id,
            vni,
            format: format.parse().unwrap(),
            raise_mss: false,
            flood,
            miss: Miss::Drop,
            gateways,
            dhcp,
        },
    )
}

fn port() -> impl Strategy<Value = Port> {
    let device = select(vec!["d0", "d1", "d2", "d3", "eth0"]);
    let mtu = prop_oneof![3 => Just(None), 1 => Just(Some(1200))];
    let ips = prop::collection::vec(ip(), 0..3);
    let acl = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(acl_id(), 1..3)];
    (port_id(), vnet_id(), device, mac(), ips, mtu, acl).prop_map(
        |(id, vnet, device, mac, ips, mtu, acl)| Port {
            id,
            vnet,
            attach: Attach::Xdp { ifname: IfName::new(device).unwrap() },
            mac,
            ips,
            anti_spoof: true,
            mtu: mtu.map(|mtu| Mtu::new(mtu).unwrap()),
            mode: ModePreference::Auto,
            state: PortState::Active,
            acl,
            meter: None,
            hostname: None,
            udp_gro: false,
        },
    )
}

fn route() -> impl Strategy<Value = EgressRoute> {
    let scope =
        prop_oneof![port_id().prop_map(RouteScope::Port), vnet_id().prop_map(RouteScope::Vnet),];
    let action = prop_oneof![vnet_id().prop_map(RouteAction::Vnet), Just(RouteAction::Local)];
    (scope, prefix(), action).prop_map(|(scope, prefix, action)| EgressRoute {
        scope,
        prefix,
        action,
    })
}

fn mapping() -> impl Strategy<Value = Mapping> {
    let vtep = prop_oneof![
        8 => Just("192.0.2.9"),
        1 => Just("192.0.2.2"),
        1 => Just("192.0.2.1"),
        3 => Just("2001:db8::9"),
    ];
    (vnet_id(), ip(), mac(), vtep).prop_map(|(vnet, ip, mac, vtep)| Mapping {
        vnet,
        ip,
        mac,
        vtep: vtep.parse().unwrap(),
        mtu: None,
    })
}

fn rule() -> impl Strategy<Value = IngressRule> {
    let vtep = prop_oneof![Just(VtepMatch::Any), prefix().prop_map(VtepMatch::Prefix)];
    (vni(), vtep, 0..2_u16, select(IngressAction::ALL))
        .prop_map(|(vni, vtep, priority, action)| IngressRule { vni, vtep, priority, action })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        1 => underlay().prop_map(Edit::SetUnderlay),
        5 => vnet().prop_map(Edit::PutVnet),
        3 => vnet_id().prop_map(Edit::DeleteVnet),
        6 => port().prop_map(Edit::PutPort),
        3 => port_id().prop_map(Edit::DeletePort),
        4 => route().prop_map(Edit::PutRoute),
        1 => route().prop_map(|route| Edit::DeleteRoute(route.key())),
        6 => mapping().prop_map(Edit::PutMapping),
        2 => mapping().prop_map(|mapping| Edit::DeleteMapping(mapping.key())),
        4 => rule().prop_map(Edit::PutIngress),
        1 => rule().prop_map(|rule| Edit::DeleteIngress(rule.key())),
        3 => (acl_id(), any::<bool>())
            .prop_map(|(id, stateful)| Edit::PutAcl(AclGroup { id, stateful, rules: vec![] })),
        2 => acl_id().prop_map(Edit::DeleteAcl),
        3 => format().prop_map(Edit::PutFormat),
        1 => select(vec!["one", "two"]).prop_map(|id| Edit::DeleteFormat(id.parse().unwrap())),
    ]
}

/// A legal state: of many edits, those that can be applied. Each is checked by `Host::new`.
pub(crate) fn state() -> impl Strategy<Value = Host> {
    let start = r#"
        [underlay]
        interface = "eth0"
        addresses = ["192.0.2.1", "2001:db8::1"]
        [[vnet]]
        id = "v0"
        vni = 1
        [[vnet]]
        id = "v1"
        vni = 2
    "#;
    prop::collection::vec(edit(), 0..40).prop_map(move |edits| {
        let start = culvert_model::host_toml::read(start).unwrap();
        edits.iter().fold(start, |host, edit| {
            let parts = crate::edits::applied(&host, std::slice::from_ref(edit));
            parts.and_then(|parts| Host::new(parts).ok()).unwrap_or(host)
        })
    })
}

/// Some edits.
pub(crate) fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec(edit(), 1..6)
}
