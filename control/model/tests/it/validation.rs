//! Each rule about a host's state as a whole, by what breaks it.

use std::net::IpAddr;

use culvert_model::api::{self, egress_route, port};
use culvert_model::{Fault, Host, ModelError, Mtu, limits};

/// A host that is legal, to be broken.
fn legal() -> api::State {
    let port = |id: &str, vnet: &str, last: u8| api::Port {
        id: id.into(),
        vnet: vnet.into(),
        attach: Some(port::Attach::Xdp(format!("veth-{id}"))),
        mac: format!("02:00:00:00:00:{last:02}"),
        ips: vec![format!("10.0.0.{last}")],
        ..Default::default()
    };
    let vnet = |id: &str, vni| api::Vnet {
        id: id.into(),
        vni,
        gateways: vec![api::Gateway {
            ip: "10.0.0.254/24".into(),
            mac: "02:00:00:00:00:fe".into(),
        }],
        ..Default::default()
    };
    api::State {
        underlay: Some(api::Underlay {
            interfaces: vec!["eth0".into()],
            addresses: vec!["192.0.2.1".into()],
            ..Default::default()
        }),
        vnets: vec![vnet("blue", 100), vnet("green", 200)],
        ports: vec![port("a", "blue", 1), port("b", "blue", 2), port("c", "green", 1)],
        routes: vec![api::EgressRoute {
            scope: Some(egress_route::Scope::Vnet("blue".into())),
            prefix: "10.0.0.0/24".into(),
            action: Some(egress_route::Action::ToVnet("blue".into())),
        }],
        mappings: vec![api::Mapping {
            vnet: "blue".into(),
            ip: "10.0.0.3".into(),
            mac: "02:00:00:00:00:03".into(),
            vtep: "192.0.2.2".into(),
            mtu: None,
        }],
        ingress: vec![api::IngressRule {
            vni: 100,
            vtep: "192.0.2.0/24".into(),
            priority: 7,
            action: api::IngressAction::Decap.into(),
        }],
        acls: vec![api::AclGroup {
            id: "web".into(),
            stateful: true,
            rules: vec![api::AclRule {
                direction: api::Direction::Ingress.into(),
                action: api::AclAction::Allow.into(),
                protocol: Some(6),
                remote: "10.0.0.0/8".into(),
                local_ports: vec![api::PortRange { first: 80, last: 80 }],
                remote_ports: Vec::new(),
            }],
        }],
        formats: vec![api::Format { id: "acme".into(), description: ACME.into() }],
    }
}

/// The faults after a change to the legal host.
fn faults(change: impl FnOnce(&mut api::State)) -> Vec<ModelError> {
    let mut state = legal();
    change(&mut state);
    Host::try_from(state).err().unwrap_or_default()
}

/// The one fault after a change, at a place.
#[track_caller]
fn fault(place: &str, change: impl FnOnce(&mut api::State)) -> Fault {
    let mut faults = faults(change);
    assert_eq!(faults.len(), 1, "{faults:?}");
    let ModelError { place: at, fault } = faults.remove(0);
    assert_eq!(at.to_string(), place);
    fault
}

fn underlay(state: &mut api::State) -> &mut api::Underlay {
    state.underlay.as_mut().unwrap()
}

#[test]
fn the_unchanged_host_is_legal() {
    assert_eq!(faults(|_| ()), []);
}

#[test]
fn an_unknown_vnet_is_refused_wherever_it_is_named() {
    for (place, change) in [
        ("port[2] \"c\": vnet", (|s| s.ports[2].vnet = "red".into()) as fn(&mut api::State)),
        ("route[0]: vnet", |s| s.routes[0].scope = Some(egress_route::Scope::Vnet("red".into()))),
        ("route[0]: to", |s| s.routes[0].action = Some(egress_route::Action::ToVnet("red".into()))),
        ("mapping[0]: vnet", |s| s.mappings[0].vnet = "red".into()),
    ] {
        assert_eq!(
            fault(place, change),
            Fault::UnknownVnet { id: "red".parse().unwrap(), nearest: None }
        );
    }
}

#[test]
fn an_unknown_port_is_refused() {
    let fault = fault("route[0]: port", |s| {
        s.routes[0].scope = Some(egress_route::Scope::Port("z".into()));
    });
    assert_eq!(fault, Fault::UnknownPort { id: "z".parse().unwrap(), nearest: None });
}

#[test]
fn a_misspelt_name_is_corrected() {
    let near = fault("port[2] \"c\": vnet", |s| s.ports[2].vnet = "bleu".into());
    assert!(near.to_string().ends_with("; did you mean \"blue\"?"), "{near}");
}

#[test]
fn ids_and_vnis_are_used_once() {
    for (place, change) in [
        ("vnet[1] \"green\": vni", (|s| s.vnets[1].vni = 100) as fn(&mut api::State)),
        ("port[1] \"a\": id", |s| s.ports[1].id = "a".into()),
        ("vnet[2] \"blue\": id", |s| {
            s.vnets.push(api::Vnet { id: "blue".into(), vni: 300, ..Default::default() });
        }),
        ("route[1]: prefix", |s| s.routes.push(s.routes[0].clone())),
        ("ingress[1]: priority", |s| s.ingress.push(s.ingress[0].clone())),
    ] {
        let fault = fault(place, change);
        assert!(matches!(fault, Fault::Duplicate { .. }), "{fault:?}");
    }
}

#[test]
fn an_address_of_a_vnet_has_one_owner() {
    for (place, change) in [
        (
            "port[1] \"b\": ips[0]",
            (|s| s.ports[1].ips[0] = "10.0.0.1".into()) as fn(&mut api::State),
        ),
        ("port[1] \"b\": ips[0]", |s| s.ports[1].ips[0] = "10.0.0.254".into()),
        ("port[1] \"b\": mac", |s| s.ports[1].mac = "02:00:00:00:00:01".into()),
        ("port[1] \"b\": mac", |s| s.ports[1].mac = "02:00:00:00:00:fe".into()),
        ("mapping[0]: ip", |s| s.mappings[0].ip = "10.0.0.1".into()),
        ("mapping[0]: ip", |s| s.mappings[0].ip = "10.0.0.254".into()),
        ("mapping[0]: mac", |s| s.mappings[0].mac = "02:00:00:00:00:01".into()),
        ("mapping[1]: ip", |s| s.mappings.push(s.mappings[0].clone())),
    ] {
        let fault = fault(place, change);
        assert!(matches!(fault, Fault::Overlap { .. }), "{fault:?}");
    }
}

#[test]
fn equal_addresses_in_two_vnets_are_legal() {
    assert_eq!(faults(|s| s.ports[2].ips = s.ports[0].ips.clone()), []);
    assert_eq!(faults(|s| s.ports[2].mac = s.ports[0].mac.clone()), []);
}

#[test]
fn an_interface_is_used_once() {
    for (place, change) in [
        (
            "port[0] \"a\": attach",
            (|s| s.ports[0].attach = Some(port::Attach::Xdp("eth0".into()))) as fn(&mut api::State),
        ),
        ("port[1] \"b\": attach", |s| s.ports[1].attach = Some(port::Attach::Tap("veth-a".into()))),
        ("underlay: interfaces[1]", |s| underlay(s).interfaces.push("eth0".into())),
        ("underlay: addresses[1]", |s| underlay(s).addresses.push("192.0.2.1".into())),
    ] {
        let fault = fault(place, change);
        assert!(matches!(fault, Fault::Duplicate { .. }), "{fault:?}");
    }
}

#[test]
fn a_prefix_with_host_bits_names_its_network() {
    let prefix = "10.0.0.5/24".parse().unwrap();
    let route = fault("route[0]: prefix", |s| s.routes[0].prefix = "10.0.0.5/24".into());
    assert_eq!(route, Fault::HostBits { prefix });
    assert!(route.to_string().contains("the network is 10.0.0.0/24"));
    let rule = fault("ingress[0]: vtep", |s| s.ingress[0].vtep = "10.0.0.5/24".into());
    assert_eq!(rule, Fault::HostBits { prefix });
}

#[test]
fn an_underlay_mtu_must_hold_the_tenants_least_packet() {
    let set = |mtu: u32, v6_tenant: bool, v6_underlay: bool| {
        move |s: &mut api::State| {
            underlay(s).mtu = Some(mtu);
            if v6_tenant {
                s.ports[0].ips.push("fd00::1".into());
            }
            if v6_underlay {
                underlay(s).addresses.push("2001:db8::1".into());
            }
        }
    };
    for (v6_tenant, v6_underlay, least) in
        [(false, false, 626), (false, true, 646), (true, false, 1330), (true, true, 1350)]
    {
        assert_eq!(faults(set(least, v6_tenant, v6_underlay)), []);
        let fault = fault("underlay: mtu", set(least - 1, v6_tenant, v6_underlay));
        assert!(matches!(fault, Fault::UnderlayMtuTooSmall { .. }), "{fault:?}");
        assert!(fault.to_string().ends_with(&format!("legal is {least} or more")), "{fault}");
    }
}

#[test]
fn the_longest_format_of_vnets_and_peers_counts() {
    let vnet = |mtu: u32| {
        move |s: &mut api::State| {
            underlay(s).mtu = Some(mtu);
            s.vnets[0].format = "stt".into();
        }
    };
    let peer = |mtu: u32| {
        move |s: &mut api::State| {
            underlay(s).mtu = Some(mtu);
            let (vtep, format) = ("192.0.2.9".into(), "stt".into());
            underlay(s).peers.push(api::Peer { vtep, format, ..api::Peer::default() });
        }
    };
    // IPv4 20, TCP-shaped header 20, STT header 18, inner Ethernet 14: 72 where VXLAN takes 50.
    let least = 576 + 72;
    assert_eq!(faults(vnet(least)), []);
    assert_eq!(faults(peer(least)), []);
    for fault in [fault("underlay: mtu", vnet(least - 1)), fault("underlay: mtu", peer(least - 1))]
    {
        let said = fault.to_string();
        assert!(said.contains("less 72 bytes of headers leaves 575"), "{said}");
        assert!(said.ends_with("legal is 648 or more"), "{said}");
    }
}

#[test]
fn an_ipv6_port_needs_an_ipv6_mtu() {
    let fault = fault("port[0] \"a\": mtu", |s| {
        s.ports[0].ips.push("fd00::1".into());
        s.ports[0].mtu = Some(1279);
    });
    assert_eq!(fault, Fault::PortMtuTooSmall { mtu: Mtu::new(1279).unwrap() });
}

#[test]
fn mtus_are_what_ip_packets_may_be_of_ports_and_mappings() {
    type Set = fn(&mut api::State, Option<u32>);
    let port: Set = |s, mtu| s.ports[0].mtu = mtu;
    let mapping: Set = |s, mtu| s.mappings[0].mtu = mtu;
    let whose = ["port[0] \"a\": mtu", "mapping[0]: mtu"];
    for (place, set) in whose.into_iter().zip([port, mapping]) {
        for bytes in [0, 575, 65_536, u32::MAX] {
            let fault = fault(place, |s| set(s, Some(bytes)));
            assert_eq!(fault, Fault::BadMtu { value: bytes.into() });
            assert!(fault.to_string().contains("legal is 576 to 65535"), "{fault}");
        }
        // What is above the underlay's own is for the far end, or for packets that stay here.
        for bytes in [576, 1500, 65_535] {
            assert_eq!(faults(|s| set(s, Some(bytes))), [], "{place} {bytes}");
        }
    }
}

#[test]
fn a_mapping_of_an_ipv6_address_needs_an_ipv6_mtu() {
    let set = |mtu| {
        move |s: &mut api::State| {
            s.mappings[0].ip = "fd00::9".into();
            s.mappings[0].mtu = Some(mtu);
        }
    };
    let fault = fault("mapping[0]: mtu", set(1279));
    assert_eq!(fault, Fault::MappingMtuTooSmall { mtu: Mtu::new(1279).unwrap() });
    assert!(fault.to_string().ends_with("legal is 1280 or more (RFC 8200)"), "{fault}");
    assert_eq!(faults(set(1280)), []);
}

#[test]
fn macs_are_those_of_one_station() {
    for mac in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
        let mac_fault = Fault::MacNotUnicast { mac: mac.parse().unwrap() };
        assert_eq!(fault("port[0] \"a\": mac", |s| s.ports[0].mac = mac.into()), mac_fault);
        assert_eq!(fault("mapping[0]: mac", |s| s.mappings[0].mac = mac.into()), mac_fault);
        let gateway =
            fault("vnet[0] \"blue\": gateway[0].mac", |s| s.vnets[0].gateways[0].mac = mac.into());
        assert_eq!(gateway, mac_fault);
    }
}

#[test]
fn ips_are_unicast() {
    for ip in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "::ffff:10.0.0.1",
    ] {
        let ip_fault = Fault::IpNotUnicast { ip: ip.parse::<IpAddr>().unwrap() };
        assert_eq!(fault("port[0] \"a\": ips[0]", |s| s.ports[0].ips[0] = ip.into()), ip_fault);
        assert_eq!(fault("mapping[0]: ip", |s| s.mappings[0].ip = ip.into()), ip_fault);
        assert_eq!(fault("mapping[0]: vtep", |s| s.mappings[0].vtep = ip.into()), ip_fault);
        assert_eq!(
            fault("underlay: addresses[1]", |s| underlay(s).addresses.push(ip.into())),
            ip_fault
        );
    }
}

#[test]
fn a_mapping_leads_to_another_host_that_can_be_reached() {
    let vtep = |text: &str| text.parse::<IpAddr>().unwrap();
    let ours = fault("mapping[0]: vtep", |s| s.mappings[0].vtep = "192.0.2.1".into());
    assert_eq!(ours, Fault::VtepIsOurs { vtep: vtep("192.0.2.1") });
    let other = fault("mapping[0]: vtep", |s| s.mappings[0].vtep = "2001:db8::2".into());
    assert_eq!(other, Fault::NoUnderlayFamily { vtep: vtep("2001:db8::2") });
}

#[test]
fn only_trap_and_drop_do_without_a_vnet() {
    for action in [api::IngressAction::Decap, api::IngressAction::DecapValidate] {
        let fault = fault("ingress[0]: vni", |s| {
            s.ingress[0].vni = 300;
            s.ingress[0].action = action.into();
        });
        assert!(matches!(fault, Fault::UnknownVni { .. }));
    }
    for action in [api::IngressAction::Trap, api::IngressAction::Drop] {
        let change = |s: &mut api::State| {
            s.ingress[0].vni = 300;
            s.ingress[0].action = action.into();
        };
        assert_eq!(faults(change), []);
    }
}

#[test]
fn vnis_have_24_bits() {
    for vni in [0, 1 << 24, u32::MAX] {
        let fault = fault("vnet[1] \"green\": vni", |s| s.vnets[1].vni = vni);
        assert_eq!(fault, Fault::BadVni { value: vni.into() });
    }
}

#[test]
fn limits_are_held() {
    let too_many = |count, max| Fault::TooMany { count, max };
    let ips = fault("port[0] \"a\": ips", |s| {
        s.ports[0].ips =
            (0..257_u32).map(|n| format!("10.1.{}.{}", n / 200, n % 200 + 1)).collect();
    });
    assert_eq!(ips, too_many(257, limits::IPS_PER_PORT_MAX));
    let ports = fault("port:", |s| {
        s.ports = (0..4097_u32)
            .map(|n| api::Port {
                id: format!("p{n}"),
                vnet: "blue".into(),
                attach: Some(port::Attach::Tap(format!("t{n}"))),
                mac: format!("02:00:00:01:{:02x}:{:02x}", n >> 8, n & 255),
                ..Default::default()
            })
            .collect();
    });
    assert_eq!(ports, too_many(4097, limits::PORTS_MAX));
    let interfaces = fault("underlay: interfaces", |s| {
        underlay(s).interfaces = (0..9).map(|n| format!("eth{n}")).collect();
    });
    assert_eq!(interfaces, too_many(9, limits::UNDERLAY_INTERFACES_MAX));
}

#[test]
fn unknown_enum_values_are_refused() {
    for (place, change) in [
        ("underlay: mode", (|s| underlay(s).mode = 9) as fn(&mut api::State)),
        ("underlay: tx", |s| underlay(s).tx = 9),
        ("vnet[1] \"green\": miss", |s| s.vnets[1].miss = 9),
        ("port[0] \"a\": state", |s| s.ports[0].state = -1),
        ("ingress[0]: action", |s| s.ingress[0].action = 0),
    ] {
        let fault = fault(place, change);
        assert!(matches!(fault, Fault::BadWord { .. } | Fault::Missing { .. }), "{fault:?}");
    }
}

#[test]
fn a_reference_to_an_unreadable_object_is_no_second_fault() {
    // The vnet of ports, route, mapping and ingress rule is there, only its gateway is wrong.
    let gateway = fault("vnet[0] \"blue\": gateway[0].ip", |s| {
        s.vnets[0].gateways[0].ip = "10.0.0.254".into();
    });
    assert_eq!(gateway, Fault::BadGatewayIp { value: "10.0.0.254".into() });
    let port = fault("port[0] \"a\": mac", |s| {
        s.ports[0].mac = "zz".into();
        s.routes[0].scope = Some(egress_route::Scope::Port("a".into()));
    });
    assert_eq!(port, Fault::BadMac { value: "zz".into() });
    fault("vnet[0] \"blue\": vni", |s| s.vnets[0].vni = 0);
}

/// A change to the first rule of the ACL group.
fn rule(change: impl FnOnce(&mut api::AclRule)) -> impl FnOnce(&mut api::State) {
    |state| change(&mut state.acls[0].rules[0])
}

#[test]
fn a_group_that_a_port_names_exists_and_is_named_once() {
    let unknown = fault("port[0] \"a\": acl[0]", |s| s.ports[0].acl = vec!["wbe".into()]);
    let (id, nearest) = ("wbe".parse().unwrap(), Some("web".parse().unwrap()));
    assert_eq!(unknown, Fault::UnknownAcl { id, nearest });
    assert_eq!(
        unknown.to_string(),
        "\"wbe\": no such ACL group; legal is the id of an [[acl]] of this host; did you mean \"web\"?"
    );
    let far = fault("port[0] \"a\": acl[0]", |s| s.ports[0].acl = vec!["monitoring".into()]);
    assert!(matches!(far, Fault::UnknownAcl { nearest: None, .. }));
    let twice = fault("port[0] \"a\": acl[1]", |s| s.ports[0].acl = vec!["web".into(); 2]);
    assert!(matches!(twice, Fault::Duplicate { .. }));
    let twice = fault("acl[1] \"web\": id", |s| s.acls.push(s.acls[0].clone()));
    assert!(matches!(twice, Fault::Duplicate { .. }));
    assert_eq!(faults(|s| s.ports[0].acl = vec!["web".into()]), []);
}

#[test]
fn a_group_that_cannot_be_read_is_no_unknown_one() {
    let fault = fault("acl[0] \"web\": rule[0].remote", |s| {
        s.ports[0].acl = vec!["web".into()];
        s.acls[0].rules[0].remote = "10.0.0".into();
    });
    assert_eq!(fault, Fault::BadPrefix { value: "10.0.0".into() });
}

#[test]
fn a_rule_matches_what_can_be() {
    let at = |field: &str| format!("acl[0] \"web\": rule[0].{field}");
    let host_bits = fault(&at("remote"), rule(|r| r.remote = "10.0.0.1/8".into()));
    assert!(matches!(host_bits, Fault::HostBits { .. }));
    let reversed = fault(&at("local_ports"), rule(|r| r.local_ports[0].last = 70));
    assert_eq!(reversed, Fault::PortsReversed { first: 80, last: 70 });
    let large = fault(&at("local_ports"), rule(|r| r.local_ports[0].last = 70_000));
    assert!(matches!(large, Fault::BadNumber { value: 70_000, .. }));
    for number in [None, Some(1), Some(47)] {
        let without = fault(&at("local_ports"), rule(|r| r.protocol = number));
        assert!(matches!(without, Fault::PortsWithoutProtocol { .. }), "{number:?}");
    }
    let number = fault(&at("protocol"), rule(|r| r.protocol = Some(256)));
    assert!(matches!(number, Fault::BadNumber { value: 256, .. }));
    let family = fault(
        &at("remote"),
        rule(|r| {
            r.local_ports.clear();
            r.protocol = Some(58);
        }),
    );
    assert!(matches!(family, Fault::ProtocolOfOtherFamily { .. }));
    let direction = fault(&at("direction"), rule(|r| r.direction = 7));
    assert_eq!(direction, Fault::Missing { legal: "ingress or egress" });
    let action = fault(&at("action"), rule(|r| r.action = 0));
    assert_eq!(action, Fault::Missing { legal: "allow or deny" });
}

#[test]
fn groups_rules_and_ranges_have_limits() {
    let many = fault("acl[0] \"web\": rule", |s| {
        s.acls[0].rules = vec![s.acls[0].rules[0].clone(); limits::ACL_RULES_PER_GROUP_MAX + 1];
    });
    assert!(matches!(many, Fault::TooMany { .. }));
    let many = fault(
        "acl[0] \"web\": rule[0].local_ports",
        rule(|r| r.local_ports = vec![r.local_ports[0]; limits::ACL_PORT_RANGES_MAX + 1]),
    );
    assert!(matches!(many, Fault::TooMany { .. }));
    let named = |n: usize| api::AclGroup { id: format!("g{n}"), ..Default::default() };
    let many = fault("port[0] \"a\": acl", |s| {
        s.acls = (0..=limits::ACL_GROUPS_PER_PORT_MAX).map(named).collect();
        s.ports[0].acl = s.acls.iter().map(|group| group.id.clone()).collect();
    });
    assert!(matches!(many, Fault::TooMany { .. }));
    let many = fault("acl:", |s| s.acls = (0..=limits::ACL_GROUPS_MAX).map(named).collect());
    assert!(matches!(many, Fault::TooMany { .. }));
}

#[test]
fn a_meter_lets_one_superframe_pass_at_least() {
    let meter = |rate, burst| {
        move |s: &mut api::State| {
            let rx = Some(api::TokenBucket { rate, burst });
            s.ports[0].meter = Some(api::Meter { rx, tx: None });
        }
    };
    let burst = fault("port[0] \"a\": meter.rx", meter(1_000_000, Some(65_548)));
    assert!(matches!(burst, Fault::BadNumber { value: 65_548, min: 65_549, .. }));
    let rate = fault("port[0] \"a\": meter.rx", meter(7_999, None));
    assert!(matches!(rate, Fault::BadNumber { value: 7_999, min: 8_000, .. }));
    assert_eq!(faults(meter(8_000, None)), []);
}

#[test]
fn dhcp_needs_a_subnet_for_each_address() {
    let fault = fault("port[1] \"b\": ips[1]", |s| {
        s.vnets[0].dhcp = Some(api::Dhcp::default());
        s.ports[1].ips.push("10.0.1.2".into());
    });
    assert_eq!(fault, Fault::NoSubnet { ip: "10.0.1.2".parse().unwrap() });
    assert_eq!(faults(|s| s.vnets[0].dhcp = Some(api::Dhcp::default())), []);
}

#[test]
fn what_dhcp_tells_is_legal() {
    let dhcp = |change: fn(&mut api::Dhcp)| {
        move |s: &mut api::State| change(s.vnets[0].dhcp.get_or_insert_default())
    };
    let route = |prefix: &str, via: &str| api::DhcpRoute { prefix: prefix.into(), via: via.into() };
    for (place, change) in [
        ("dhcp.lease", dhcp(|d| d.lease = Some(59))),
        ("dhcp.domain", dhcp(|d| d.domain = "a..b".into())),
        ("dhcp.dns[1]", dhcp(|d| d.dns = vec!["10.0.0.9".into(), "10.0.0".into()])),
        ("dhcp.dns[1]", dhcp(|d| d.dns = vec!["10.0.0.9".into(); 2])),
        ("dhcp.ntp[0]", dhcp(|d| d.ntp = vec!["224.0.0.1".into()])),
        ("dhcp.dns", dhcp(|d| d.dns = (1..=9).map(|n| format!("10.9.9.{n}")).collect())),
    ] {
        fault(&format!("vnet[0] \"blue\": {place}"), change);
    }
    for (routes, via) in [
        (vec![route("192.168.0.1/16", "10.0.0.9")], 0),
        (vec![route("192.168.0.0/16", "10.0.1.9")], 0),
        (vec![route("fd00::/8", "10.0.0.9")], 0),
        (vec![route("192.168.0.0/16", "10.0.0.9"); 2], 1),
    ] {
        fault(&format!("vnet[0] \"blue\": dhcp.route[{via}]"), |s| {
            s.vnets[0].dhcp = Some(api::Dhcp { routes, ..Default::default() });
        });
    }
}

const ACME: &str = r#"
id = "acme"
outer = { udp = 7000 }
header = "ac00 0000 0000 0000"
identifier = [{ offset = 0, width = 8, value = 0xac }]
vni = { offset = 4, width = 16 }
"#;

#[test]
fn formats_are_there_legal_and_told_apart() {
    let unknown = fault("vnet[0] \"blue\": format", |s| s.vnets[0].format = "acne".into());
    let id = "acne".parse().unwrap();
    assert_eq!(unknown, Fault::UnknownFormat { id, nearest: Some("acme".parse().unwrap()) });
    let too_large = fault("vnet[0] \"blue\": vni", |s| {
        (s.vnets[0].format, s.vnets[0].vni) = ("acme".into(), 65_536);
        s.ingress.clear();
    });
    assert!(too_large.to_string().ends_with("legal is 1 to 65535"), "{too_large}");
    let overlap = fault("format[0] \"acme\": identifier", |s| {
        s.formats[0].description =
            ACME.replace("ac00", "0000").replace("0xac", "0").replace("offset = 4", "offset = 0");
        s.vnets[0].format = "acme".into();
    });
    assert!(overlap.to_string().contains("overlap in bit 0 of byte 0"), "{overlap}");
    let other_name = fault("format[0] \"acme\": id", |s| {
        s.formats[0].description = ACME.replace("\"acme\"", "\"other\"");
    });
    assert!(other_name.to_string().contains("\"other\""), "{other_name}");
    let clash = fault("format[1] \"two\": identifier", |s| {
        let description = ACME.replace("\"acme\"", "\"two\"");
        s.formats.push(api::Format { id: "two".into(), description });
    });
    assert!(clash.to_string().contains("UDP port 7000"), "{clash}");
    let built_in = fault("format[0] \"acme\": identifier", |s| {
        s.formats[0].description = ACME.replace("7000", "4789");
    });
    assert!(built_in.to_string().contains("\"vxlan\""), "{built_in}");
    let twice = fault("format[1] \"acme\": id", |s| {
        let again = s.formats[0].clone();
        s.formats.push(api::Format { description: ACME.replace("7000", "7001"), ..again });
    });
    assert!(matches!(twice, Fault::Duplicate { .. }), "{twice:?}");
}

#[test]
fn an_mss_is_raised_only_in_formats_that_can_state_it() {
    let vnet = fault("vnet[0] \"blue\": raise_mss", |s| s.vnets[0].raise_mss = true);
    assert!(vnet.to_string().contains("vxlan"), "{vnet}");
    let own = fault("vnet[0] \"blue\": raise_mss", |s| {
        s.vnets[0].format = "acme".into();
        s.vnets[0].raise_mss = true;
    });
    assert!(own.to_string().contains("acme"), "{own}");
    let peer = fault("underlay: peer[0].raise_mss", |s| {
        underlay(s).peers = vec![api::Peer {
            vtep: "192.0.2.7".into(),
            format: "vxlan".into(),
            raise_mss: Some(true),
            ..Default::default()
        }];
    });
    assert!(peer.to_string().contains("vxlan"), "{peer}");
    let mut state = legal();
    for format in ["geneve", "stt", "shard"] {
        state.vnets[0].format = format.into();
        state.vnets[0].raise_mss = true;
        assert!(Host::try_from(state.clone()).is_ok(), "{format}");
    }
}

#[test]
fn peers_have_known_formats_and_reachable_addresses() {
    let peer = |vtep: &str, format: &str| api::Peer {
        vtep: vtep.into(),
        format: format.into(),
        ..Default::default()
    };
    let unknown = fault("underlay: peer[1].format", |s| {
        underlay(s).peers = vec![peer("192.0.2.7", "acme"), peer("192.0.2.8", "genev")];
    });
    assert!(unknown.to_string().contains("did you mean \"geneve\""), "{unknown}");
    let family = fault("underlay: peer[0].vtep", |s| {
        underlay(s).peers = vec![peer("2001:db8::7", "stt")];
    });
    assert!(matches!(family, Fault::NoUnderlayFamily { .. }), "{family:?}");
    let twice = fault("underlay: peer[1].vtep", |s| {
        underlay(s).peers = vec![peer("192.0.2.7", "acme"), peer("192.0.2.7", "stt")];
    });
    assert!(matches!(twice, Fault::Duplicate { .. }), "{twice:?}");
}
