//! What is taken from the underlay, and for whom.

use crate::common;

use std::net::IpAddr;

use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::ingress::Verdict;
use culvert_model::IngressAction::{self, Decap, DecapValidate, Drop, Trap};
use culvert_model::{HostParts, IngressRule, MacAddr, Vni};
use etherparse::ArpOperation;

use common::frames::{Frame, arp, arp_request, icmpv6, neighbour_solicitation, other, udp};
use common::{World, gateway, ip, mac, mapping, parts, port, rule, to_vnet, vnet, vnet_route};

const A: MacAddr = mac(0xa);
const B: MacAddr = mac(0xb);
/// Behind `VTEP`.
const R: MacAddr = MacAddr([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]);
/// What `R` makes by RFC 4291 appendix A.
const R_LINK_LOCAL: &str = "fe80::11:22ff:fe33:4455";
/// Behind `VTEP_2`.
const S: MacAddr = mac(0x11);
/// In green, behind `VTEP`.
const G: MacAddr = mac(0x20);
const BLUE_ROUTER: MacAddr = mac(0xb1);
const GREEN_ROUTER: MacAddr = mac(0x91);
const NOBODY: MacAddr = mac(0xdead);
const VTEP: &str = "192.0.2.2";
const VTEP_2: &str = "192.0.2.3";
const VTEP_6: &str = "2001:db8::2";
const STRANGER: &str = "192.0.2.99";
const BLUE: u32 = 100;
const GREEN: u32 = 200;

fn host() -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", BLUE), vnet("green", GREEN)];
    host.vnets[0].gateways = vec![gateway("10.0.0.254/24", BLUE_ROUTER)];
    host.vnets[1].gateways = vec![gateway("10.1.0.254/24", GREEN_ROUTER)];
    host.ports = vec![
        port("a", "blue", A, &["10.0.0.1", "fd00::1"]),
        port("b", "blue", B, &["10.0.0.2", "fd00::2"]),
        port("c", "green", A, &["10.1.0.1", "fd01::1"]),
    ];
    host.mappings = vec![
        mapping("blue", "10.0.0.9", R, VTEP),
        mapping("blue", "fd00::9", R, VTEP),
        mapping("blue", "10.0.0.10", S, VTEP_2),
        mapping("blue", "fd00::10", S, VTEP_2),
        mapping("blue", "10.0.0.11", mac(0x12), VTEP_6),
        mapping("green", "10.1.0.9", G, VTEP),
        mapping("green", "fd01::9", G, VTEP),
    ];
    host
}

fn with_rules(rules: impl IntoIterator<Item = IngressRule>) -> World {
    let mut host = host();
    host.ingress = rules.into_iter().collect();
    World::new(host)
}

fn legal() -> Frame {
    udp(R, A, "10.0.0.9", "10.0.0.1")
}

fn deliver(world: &World, port: &str) -> Verdict {
    Verdict::Deliver(world.port_index(port))
}

#[test]
fn a_known_neighbour_reaches_the_port_of_its_destination_mac() {
    let world = World::new(host());
    for (port, dst, last) in [("a", A, 1), ("b", B, 2)] {
        let frame = udp(R, dst, "10.0.0.9", &format!("10.0.0.{last}"));
        assert_eq!(world.ingress(BLUE, VTEP, &frame), deliver(&world, port));
        assert_eq!(world.ingress(BLUE, VTEP, &frame.tagged(7)), deliver(&world, port));
        let frame = udp(R, dst, "fd00::9", &format!("fd00::{last}"));
        assert_eq!(world.ingress(BLUE, VTEP, &frame), deliver(&world, port));
    }
    let over_v6 = udp(mac(0x12), A, "10.0.0.11", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP_6, &over_v6), deliver(&world, "a"));
    assert_eq!(world.ingress(BLUE, VTEP, &other(R, A)), deliver(&world, "a"));
}

#[test]
fn an_unknown_vtep_is_refused() {
    let world = World::new(host());
    let drop = Verdict::Drop(DropReason::UnknownVtep);
    for from in [STRANGER, "2001:db8::99", "192.0.2.1", "::ffff:192.0.2.2"] {
        assert_eq!(world.ingress(BLUE, from, &legal()), drop, "{from}");
    }
}

#[test]
fn a_network_of_no_vni_is_not_found() {
    let world = World::new(host());
    assert!(world.tables.vnet_of(Vni::new(BLUE).unwrap()).is_some());
    for vni in [1, BLUE + 1, BLUE << 8, 0x00ff_ffff] {
        assert!(world.tables.vnet_of(Vni::new(vni).unwrap()).is_none(), "{vni}");
    }
}

#[test]
fn a_wrong_vni_does_not_validate() {
    // Green's tenant c has the MAC of blue's a: only the source tells that the VNI is wrong.
    let world = World::new(host());
    let drop = Verdict::Drop(DropReason::SourceMismatch);
    assert_eq!(world.ingress(GREEN, VTEP, &legal()), drop);
    assert_eq!(world.ingress(BLUE, VTEP, &udp(G, A, "10.1.0.9", "10.0.0.1")), drop);
    assert_eq!(world.ingress(BLUE, VTEP, &udp(G, A, "fd01::9", "fd00::1")), drop);
    assert_eq!(world.ingress(GREEN, VTEP, &other(R, A)), drop);
}

#[test]
fn a_source_that_lives_elsewhere_is_refused() {
    let world = World::new(host());
    for frame in [
        // Behind another VTEP: address and MAC, address alone, MAC alone.
        udp(S, A, "10.0.0.10", "10.0.0.1"),
        udp(R, A, "10.0.0.10", "10.0.0.1"),
        udp(S, A, "10.0.0.9", "10.0.0.1"),
        udp(S, A, "fd00::10", "fd00::1"),
        udp(R, A, "fd00::10", "fd00::1"),
        udp(S, A, "fd00::9", "fd00::1"),
        other(S, A),
        // Here.
        udp(B, A, "10.0.0.2", "10.0.0.1"),
        udp(R, A, "10.0.0.2", "10.0.0.1"),
        udp(B, A, "10.0.0.9", "10.0.0.1"),
        other(B, A),
        // Nowhere.
        udp(R, A, "10.0.0.77", "10.0.0.1"),
        udp(NOBODY, A, "10.0.0.9", "10.0.0.1"),
        udp(R, A, "fd00::77", "fd00::1"),
        udp(NOBODY, A, "fd00::9", "fd00::1"),
        udp(R, A, "127.0.0.1", "10.0.0.1"),
        other(NOBODY, A),
        // The gateway, which is on every host and sends nothing under its own address.
        udp(BLUE_ROUTER, A, "10.0.0.254", "10.0.0.1"),
        udp(R, A, "10.0.0.254", "10.0.0.1"),
        other(BLUE_ROUTER, A),
    ] {
        let verdict = world.ingress(BLUE, VTEP, &frame);
        assert_eq!(verdict, Verdict::Drop(DropReason::SourceMismatch), "{frame:?}");
    }
}

#[test]
fn an_address_moves_to_another_vtep_with_its_mapping() {
    let mut moved = host();
    let mut world = World::new(host());
    for mapping in moved.mappings.iter_mut().filter(|mapping| mapping.mac == R) {
        mapping.vtep = VTEP_2.parse().unwrap();
    }
    world.apply(moved);
    let refused = Verdict::Drop(DropReason::SourceMismatch);
    assert_eq!(world.ingress(BLUE, VTEP, &legal()), refused);
    assert_eq!(world.ingress(BLUE, VTEP_2, &legal()), deliver(&world, "a"));
}

#[test]
fn sources_that_no_mapping_lists_are_known_by_their_mac() {
    let world = World::new(host());
    let all = (MacAddr([0x33, 0x33, 0, 0, 0, 1]), "ff02::1");
    let IpAddr::V6(link_local) = ip(R_LINK_LOCAL) else { panic!("{R_LINK_LOCAL}") };
    for frame in [
        udp(R, A, R_LINK_LOCAL, "fd00::1"),
        icmpv6((R, R_LINK_LOCAL), (A, "fd00::1"), 136, &link_local.octets()),
        udp(R, A, "0.0.0.0", "10.0.0.1"),
    ] {
        assert_eq!(world.ingress(BLUE, VTEP, &frame), deliver(&world, "a"), "{frame:?}");
        let elsewhere = world.ingress(BLUE, VTEP_2, &frame);
        assert_eq!(elsewhere, Verdict::Drop(DropReason::SourceMismatch), "{frame:?}");
    }
    for frame in [udp(S, A, R_LINK_LOCAL, "fd00::1"), icmpv6((R, "fe80::1"), all, 134, &[])] {
        let verdict = world.ingress(BLUE, VTEP, &frame);
        assert_eq!(verdict, Verdict::Drop(DropReason::SourceMismatch), "{frame:?}");
    }
}

#[test]
fn a_destination_without_a_port_here_goes_nowhere() {
    let world = World::new(host());
    let drop = Verdict::Drop(DropReason::NoLocalPort);
    // A neighbour behind a VTEP included: what came from the underlay does not go back to it.
    for dst in [NOBODY, S, R, BLUE_ROUTER] {
        assert_eq!(world.ingress(BLUE, VTEP, &udp(R, dst, "10.0.0.9", "10.0.0.1")), drop, "{dst}");
    }
}

#[test]
fn one_rule_replaces_the_default() {
    let drop = Verdict::Drop(DropReason::UnknownVtep);
    let world = with_rules([rule(BLUE, "192.0.2.3/32", 0, DecapValidate)]);
    // Another VTEP of the network's mappings is no longer covered, nor is one of the other family.
    assert_eq!(world.ingress(BLUE, VTEP, &legal()), drop);
    let over_v6 = udp(mac(0x12), A, "10.0.0.11", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP_6, &over_v6), drop);
    let from_s = udp(S, A, "10.0.0.10", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP_2, &from_s), deliver(&world, "a"));
    // The other network keeps its default.
    let green = udp(G, A, "10.1.0.9", "10.1.0.1");
    assert_eq!(world.ingress(GREEN, VTEP, &green), deliver(&world, "c"));
}

#[test]
fn a_rule_of_one_network_is_none_of_another() {
    let world = with_rules([rule(GREEN, "any", 9, Drop)]);
    assert_eq!(world.ingress(BLUE, VTEP, &legal()), deliver(&world, "a"));
    let green = udp(G, A, "10.1.0.9", "10.1.0.1");
    assert_eq!(world.ingress(GREEN, VTEP, &green), Verdict::Drop(DropReason::IngressDrop));
}

#[test]
fn each_action_does_what_it_says() {
    let spoofed = udp(S, A, "10.0.0.10", "10.0.0.1");
    let to = |action: IngressAction, from: &str, frame: &Frame| {
        let world = with_rules([rule(BLUE, "any", 0, action)]);
        world.ingress(BLUE, from, frame)
    };
    let a = Verdict::Deliver(World::new(host()).port_index("a"));
    let mismatch = Verdict::Drop(DropReason::SourceMismatch);
    assert_eq!(to(DecapValidate, VTEP, &legal()), a);
    assert_eq!(to(DecapValidate, VTEP, &spoofed), mismatch);
    assert!(matches!(to(DecapValidate, STRANGER, &legal()), Verdict::Drop(_)));
    assert_eq!(to(Decap, VTEP, &spoofed), a);
    assert_eq!(to(Decap, STRANGER, &udp(NOBODY, A, "8.8.8.8", "10.0.0.1")), a);
    assert_eq!(to(Decap, "2001:db8::99", &other(NOBODY, A)), a);
    for frame in [legal(), spoofed] {
        assert_eq!(to(Trap, VTEP, &frame), Verdict::Trap);
        assert_eq!(to(Trap, STRANGER, &frame), Verdict::Trap);
        assert_eq!(to(Drop, VTEP, &frame), Verdict::Drop(DropReason::IngressDrop));
        assert_eq!(to(Drop, STRANGER, &frame), Verdict::Drop(DropReason::IngressDrop));
    }
}

#[test]
fn decap_still_delivers_to_local_ports_only() {
    let world = with_rules([rule(BLUE, "any", 0, Decap)]);
    let verdict = world.ingress(BLUE, STRANGER, &udp(NOBODY, S, "8.8.8.8", "10.0.0.10"));
    assert_eq!(verdict, Verdict::Drop(DropReason::NoLocalPort));
}

#[test]
fn the_greatest_priority_decides_then_the_longest_prefix() {
    let dropped = Verdict::Drop(DropReason::IngressDrop);
    for (rules, verdict) in [
        (vec![rule(BLUE, "any", 2, Drop), rule(BLUE, "192.0.2.2/32", 1, Trap)], dropped),
        (vec![rule(BLUE, "any", 1, Drop), rule(BLUE, "192.0.2.2/32", 2, Trap)], Verdict::Trap),
        (vec![rule(BLUE, "any", 1, Drop), rule(BLUE, "192.0.2.2/32", 1, Trap)], Verdict::Trap),
        (vec![rule(BLUE, "192.0.2.0/24", 7, Trap), rule(BLUE, "192.0.2.0/28", 7, Drop)], dropped),
        // Among rules that do not cover the sender, priority and length count nothing.
        (
            vec![rule(BLUE, "192.0.2.3/32", 9, Drop), rule(BLUE, "192.0.2.0/24", 1, Trap)],
            Verdict::Trap,
        ),
        (vec![rule(BLUE, "::/0", 9, Drop), rule(BLUE, "0.0.0.0/0", 1, Trap)], Verdict::Trap),
        (vec![rule(BLUE, "any", 65_535, Trap), rule(BLUE, "192.0.2.2/32", 0, Drop)], Verdict::Trap),
    ] {
        let mut reversed = rules.clone();
        reversed.reverse();
        for rules in [rules, reversed] {
            let world = with_rules(rules.clone());
            assert_eq!(world.ingress(BLUE, VTEP, &legal()), verdict, "{rules:?}");
        }
    }
}

#[test]
fn rules_cover_vteps_of_ipv6_too() {
    let world = with_rules([
        rule(BLUE, "2001:db8::/64", 1, DecapValidate),
        rule(BLUE, "2001:db8::3/128", 1, Trap),
    ]);
    let over_v6 = udp(mac(0x12), A, "10.0.0.11", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP_6, &over_v6), deliver(&world, "a"));
    assert_eq!(world.ingress(BLUE, "2001:db8::3", &over_v6), Verdict::Trap);
    let uncovered = Verdict::Drop(DropReason::UnknownVtep);
    assert_eq!(world.ingress(BLUE, "2001:db9::2", &over_v6), uncovered);
    assert_eq!(world.ingress(BLUE, VTEP, &legal()), uncovered);
}

#[test]
fn what_a_gateway_routed_comes_from_a_network_whose_routes_lead_here() {
    // A tenant of green, behind a VTEP, that its host routed to blue.
    let routed = udp(BLUE_ROUTER, A, "10.1.0.9", "10.0.0.1");
    let routed_v6 = udp(BLUE_ROUTER, A, "fd01::9", "fd00::1");
    let refused = Verdict::Drop(DropReason::SourceMismatch);
    let apart = World::new(host());
    assert_eq!(apart.ingress(BLUE, VTEP, &routed), refused);

    let mut host = host();
    host.routes = vec![
        vnet_route("green", "10.0.0.0/24", to_vnet("blue")),
        vnet_route("green", "fd00::/64", to_vnet("blue")),
        vnet_route("green", "10.1.0.0/24", to_vnet("green")),
    ];
    let world = World::new(host);
    assert_eq!(world.ingress(BLUE, VTEP, &routed), deliver(&world, "a"));
    assert_eq!(world.ingress(BLUE, VTEP, &routed_v6), deliver(&world, "a"));
    // Not from another VTEP, under another MAC, from an address of nobody; not the other way.
    assert_eq!(world.ingress(BLUE, VTEP_2, &routed), refused);
    for frame in [
        udp(GREEN_ROUTER, A, "10.1.0.9", "10.0.0.1"),
        udp(S, A, "10.1.0.9", "10.0.0.1"),
        udp(BLUE_ROUTER, A, "10.1.0.77", "10.0.0.1"),
        // c is a port of this host.
        udp(BLUE_ROUTER, A, "10.1.0.1", "10.0.0.1"),
    ] {
        assert_eq!(world.ingress(BLUE, VTEP, &frame), refused, "{frame:?}");
    }
    let back = udp(GREEN_ROUTER, A, "10.0.0.9", "10.1.0.1");
    assert_eq!(world.ingress(GREEN, VTEP, &back), refused);
}

#[test]
fn a_route_of_a_single_port_lets_its_network_in() {
    let mut host = host();
    host.routes = vec![common::port_route("c", "10.0.0.0/24", to_vnet("blue"))];
    let world = World::new(host);
    let routed = udp(BLUE_ROUTER, A, "10.1.0.9", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP, &routed), deliver(&world, "a"));
}

#[test]
fn a_packet_routed_inside_its_network_has_the_gateways_mac() {
    let world = World::new(host());
    let routed = udp(BLUE_ROUTER, A, "10.0.0.9", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP, &routed), deliver(&world, "a"));
    let refused = Verdict::Drop(DropReason::SourceMismatch);
    assert_eq!(world.ingress(BLUE, VTEP_2, &routed), refused);
    let foreign_router = udp(GREEN_ROUTER, A, "10.0.0.9", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP, &foreign_router), refused);
}

#[test]
fn a_question_for_a_local_port_is_heard_by_it_alone() {
    let world = World::new(host());
    for (port, v4, v6) in [("a", "10.0.0.1", "fd00::1"), ("b", "10.0.0.2", "fd00::2")] {
        let request = arp_request(R, "10.0.0.9", v4);
        assert_eq!(world.ingress(BLUE, VTEP, &request), deliver(&world, port));
        for from in ["fd00::9", R_LINK_LOCAL, "::"] {
            let solicitation = neighbour_solicitation(R, from, v6);
            assert_eq!(world.ingress(BLUE, VTEP, &solicitation), deliver(&world, port), "{from}");
        }
    }
    // For somebody elsewhere, or nobody.
    let elsewhere = Verdict::Drop(DropReason::NoLocalPort);
    assert_eq!(world.ingress(BLUE, VTEP, &arp_request(R, "10.0.0.9", "10.0.0.10")), elsewhere);
    let solicitation = neighbour_solicitation(R, "fd00::9", "fd00::10");
    assert_eq!(world.ingress(BLUE, VTEP, &solicitation), elsewhere);
    let nobody = Verdict::Drop(DropReason::FloodDisabled);
    assert_eq!(world.ingress(BLUE, VTEP, &arp_request(R, "10.0.0.9", "10.0.0.77")), nobody);
    let solicitation = neighbour_solicitation(R, "fd00::9", "fd00::77");
    assert_eq!(world.ingress(BLUE, VTEP, &solicitation), nobody);
}

#[test]
fn a_question_from_the_wrong_vtep_is_not_heard() {
    let world = World::new(host());
    let refused = Verdict::Drop(DropReason::SourceMismatch);
    let request = arp_request(R, "10.0.0.9", "10.0.0.1");
    assert_eq!(world.ingress(BLUE, VTEP_2, &request), refused);
    assert_eq!(world.ingress(GREEN, VTEP, &arp_request(R, "10.0.0.9", "10.1.0.1")), refused);
    let solicitation = neighbour_solicitation(R, "fd00::9", "fd00::1");
    assert_eq!(world.ingress(BLUE, VTEP_2, &solicitation), refused);
}

#[test]
fn other_group_frames_need_a_network_that_floods() {
    let mut host = host();
    let quiet = World::new(host.clone());
    host.vnets[0].flood = true;
    let loud = World::new(host);
    let announcement =
        arp((R, MacAddr::BROADCAST), ArpOperation::REPLY, (R, "10.0.0.9"), "10.0.0.9");
    for frame in [
        udp(R, MacAddr::BROADCAST, "10.0.0.9", "255.255.255.255"),
        udp(R, MacAddr([0x33, 0x33, 0, 0, 0, 0xfb]), "fd00::9", "ff02::fb"),
        other(R, MacAddr::BROADCAST),
        announcement,
    ] {
        let drop = Verdict::Drop(DropReason::FloodDisabled);
        assert_eq!(quiet.ingress(BLUE, VTEP, &frame), drop, "{frame:?}");
        let flood = Verdict::Flood(loud.vnet_index("blue"));
        assert_eq!(loud.ingress(BLUE, VTEP, &frame), flood, "{frame:?}");
        // Flooding asks no less of the source.
        let refused = Verdict::Drop(DropReason::SourceMismatch);
        assert_eq!(loud.ingress(BLUE, VTEP_2, &frame), refused, "{frame:?}");
    }
}

#[test]
fn equal_addresses_in_two_networks_never_meet() {
    let mut host = parts();
    host.vnets = vec![vnet("blue", BLUE), vnet("green", GREEN)];
    for (net, near, vtep) in [("blue", "b1", VTEP), ("green", "g1", VTEP_2)] {
        host.ports.push(port(near, net, A, &["10.0.0.1", "fd00::1"]));
        host.mappings.push(mapping(net, "10.0.0.9", R, vtep));
        host.mappings.push(mapping(net, "fd00::9", R, vtep));
    }
    let world = World::new(host);
    let refused = Verdict::Drop(DropReason::SourceMismatch);
    for frame in [
        udp(R, A, "10.0.0.9", "10.0.0.1"),
        udp(R, A, "fd00::9", "fd00::1"),
        arp_request(R, "10.0.0.9", "10.0.0.1"),
        neighbour_solicitation(R, "fd00::9", "fd00::1"),
        other(R, A),
    ] {
        assert_eq!(world.ingress(BLUE, VTEP, &frame), deliver(&world, "b1"), "{frame:?}");
        assert_eq!(world.ingress(GREEN, VTEP_2, &frame), deliver(&world, "g1"), "{frame:?}");
        assert_eq!(world.ingress(GREEN, VTEP, &frame), refused, "{frame:?}");
        assert_eq!(world.ingress(BLUE, VTEP_2, &frame), refused, "{frame:?}");
    }
}

#[test]
fn an_advertisement_speaks_for_what_lives_behind_its_vtep_alone() {
    let mut host = host();
    host.vnets[0].flood = true;
    let world = World::new(host);
    let advertise = |target: &str, mac: MacAddr| {
        let IpAddr::V6(target) = ip(target) else { panic!("{target}") };
        // With a target link-layer address option (RFC 4861 section 4.6.1).
        let body = [&target.octets()[..], &[2, 1], &mac.0].concat();
        let all_nodes = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
        world.ingress(BLUE, VTEP, &icmpv6((R, "fd00::9"), (all_nodes, "ff02::1"), 136, &body))
    };
    let heard = Verdict::Flood(world.vnet_index("blue"));
    let refused = Verdict::Drop(DropReason::SourceMismatch);
    for own in ["fd00::9", R_LINK_LOCAL] {
        assert_eq!(advertise(own, R), heard, "{own}");
        assert_eq!(advertise(own, A), refused, "{own} with a local port's MAC");
    }
    // Of a local port, of another VTEP's tenant, of the gateway, of nobody.
    for other in ["fd00::1", "fd00::10", "fd00::fe", "fd00::77"] {
        assert_eq!(advertise(other, R), refused, "{other}");
    }
}
