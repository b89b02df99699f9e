//! Where a tenant's packet goes, by the model's rules.

use crate::common;

use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::egress::{Rewrite, Verdict};
use culvert_dataplane::tables::Target;
use culvert_model::{EgressRoute, HostParts, MacAddr, Miss, RouteAction};

use common::frames::{arp, other, udp};
use common::{
    World, gateway, ip, mac, mapping, parts, port, port_route, to_vnet, vnet, vnet_route, with_mtu,
};
use etherparse::ArpOperation;

const A: MacAddr = mac(0xa);
const B: MacAddr = mac(0xb);
const C: MacAddr = mac(0xc);
/// Behind a VTEP, in blue.
const R: MacAddr = mac(0x10);
/// Behind a VTEP, in green.
const G: MacAddr = mac(0x20);
const BLUE_ROUTER: MacAddr = mac(0xb1);
const GREEN_ROUTER: MacAddr = mac(0x91);
const NOBODY: MacAddr = mac(0xdead);
const VTEP: &str = "192.0.2.2";
const VTEP_6: &str = "2001:db8::2";

/// Ports `a` and `b` in blue, `c` in green, a neighbour behind a VTEP in each; gateways in both.
fn host() -> HostParts {
    let mut host = parts();
    let mut blue = vnet("blue", 100);
    blue.gateways =
        vec![gateway("10.0.0.254/24", BLUE_ROUTER), gateway("fd00::ff/64", BLUE_ROUTER)];
    let mut green = vnet("green", 200);
    green.gateways =
        vec![gateway("10.1.0.254/24", GREEN_ROUTER), gateway("fd01::ff/64", GREEN_ROUTER)];
    host.vnets = vec![blue, green];
    host.ports = vec![
        port("a", "blue", A, &["10.0.0.1", "fd00::1"]),
        port("b", "blue", B, &["10.0.0.2", "fd00::2"]),
        port("c", "green", C, &["10.1.0.1", "fd01::1"]),
    ];
    host.mappings = vec![
        mapping("blue", "10.0.0.9", R, VTEP),
        mapping("blue", "fd00::9", R, VTEP),
        mapping("green", "10.1.0.9", G, VTEP_6),
        mapping("green", "fd01::9", G, VTEP_6),
    ];
    host
}

fn world(routes: impl IntoIterator<Item = EgressRoute>) -> World {
    let mut host = host();
    host.routes = routes.into_iter().collect();
    World::new(host)
}

#[test]
fn without_routes_frames_are_switched_by_their_mac() {
    let world = world([]);
    for (dst, to, target) in [
        (B, "10.0.0.2", world.local("b")),
        (B, "fd00::2", world.local("b")),
        (R, "10.0.0.9", world.remote(VTEP)),
        (R, "fd00::9", world.remote(VTEP)),
        // The MAC decides, not the address.
        (B, "10.0.0.9", world.local("b")),
        (R, "8.8.8.8", world.remote(VTEP)),
    ] {
        let from = if to.contains(':') { "fd00::1" } else { "10.0.0.1" };
        let frame = udp(A, dst, from, to);
        assert_eq!(world.egress("a", &frame), world.switched("blue", target), "{dst} {to}");
        assert_eq!(world.egress("a", &frame.tagged(7)), world.switched("blue", target));
    }
}

#[test]
fn frames_without_ip_are_switched_by_their_mac() {
    let world = world([vnet_route("blue", "0.0.0.0/0", RouteAction::Drop)]);
    let to_b = world.switched("blue", world.local("b"));
    assert_eq!(world.egress("a", &other(A, B)), to_b);
    let reply = arp((A, B), ArpOperation::REPLY, (A, "10.0.0.1"), "10.0.0.2");
    assert_eq!(world.egress("a", &reply), to_b);
    assert_eq!(world.egress("a", &other(A, NOBODY)), Verdict::Drop(DropReason::NoMapping));
}

#[test]
fn a_mapping_tells_the_far_mtu() {
    let mut host = host();
    let far = with_mtu(mapping("blue", "10.0.0.8", mac(8), VTEP), 9000);
    host.mappings.push(far);
    let world = World::new(host);
    let Target::Remote { vtep, .. } = world.remote(VTEP) else { panic!("not remote") };
    let expected = world.switched("blue", Target::Remote { vtep, mtu: 9000 });
    assert_eq!(world.egress("a", &udp(A, mac(8), "10.0.0.1", "10.0.0.8")), expected);
    let routed = world.routed("blue", Target::Remote { vtep, mtu: 9000 }, BLUE_ROUTER, mac(8));
    assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, "10.0.0.1", "10.0.0.8")), routed);
}

#[test]
fn an_unknown_destination_is_dropped_or_trapped_as_the_network_says() {
    let frames = [
        udp(A, NOBODY, "10.0.0.1", "10.0.0.77"),
        udp(A, NOBODY, "fd00::1", "fd00::77"),
        udp(A, BLUE_ROUTER, "10.0.0.1", "10.0.0.77"),
        udp(A, BLUE_ROUTER, "fd00::1", "fd00::77"),
        other(A, NOBODY),
    ];
    for (miss, verdict) in
        [(Miss::Drop, Verdict::Drop(DropReason::NoMapping)), (Miss::Trap, Verdict::Trap)]
    {
        let mut host = host();
        host.vnets[0].miss = miss;
        let world = World::new(host);
        for frame in &frames {
            assert_eq!(world.egress("a", frame), verdict, "{frame:?}");
        }
    }
}

#[test]
fn the_miss_of_the_network_that_is_looked_up_counts() {
    let mut host = host();
    host.vnets[1].miss = Miss::Trap;
    host.routes = vec![vnet_route("blue", "0.0.0.0/0", to_vnet("green"))];
    let world = World::new(host);
    for dst in [BLUE_ROUTER, B] {
        assert_eq!(world.egress("a", &udp(A, dst, "10.0.0.1", "10.1.0.77")), Verdict::Trap);
    }
}

#[test]
fn a_gateway_routes_inside_its_network() {
    let world = world([]);
    for (from, to, target, dst) in [
        ("10.0.0.1", "10.0.0.2", world.local("b"), B),
        ("fd00::1", "fd00::2", world.local("b"), B),
        ("10.0.0.1", "10.0.0.9", world.remote(VTEP), R),
        ("fd00::1", "fd00::9", world.remote(VTEP), R),
    ] {
        let verdict = world.egress("a", &udp(A, BLUE_ROUTER, from, to));
        assert_eq!(verdict, world.routed("blue", target, BLUE_ROUTER, dst), "{to}");
    }
}

#[test]
fn a_gateway_routes_into_another_network_under_its_mac_there() {
    let world = world([
        vnet_route("blue", "10.1.0.0/24", to_vnet("green")),
        vnet_route("blue", "fd01::/64", to_vnet("green")),
    ]);
    for (from, to, target, dst) in [
        ("10.0.0.1", "10.1.0.1", world.local("c"), C),
        ("fd00::1", "fd01::1", world.local("c"), C),
        ("10.0.0.1", "10.1.0.9", world.remote(VTEP_6), G),
        ("fd00::1", "fd01::9", world.remote(VTEP_6), G),
    ] {
        let verdict = world.egress("a", &udp(A, BLUE_ROUTER, from, to));
        assert_eq!(verdict, world.routed("green", target, GREEN_ROUTER, dst), "{to}");
    }
}

#[test]
fn a_router_has_the_mac_of_the_gateway_whose_subnet_has_the_destination() {
    let mut host = host();
    host.vnets[1].gateways.push(gateway("10.2.0.254/24", mac(0x92)));
    host.mappings.push(mapping("green", "10.2.0.9", mac(9), VTEP));
    host.routes = vec![vnet_route("blue", "10.0.0.0/8", to_vnet("green"))];
    let world = World::new(host);
    let verdict = world.egress("a", &udp(A, BLUE_ROUTER, "10.0.0.1", "10.2.0.9"));
    assert_eq!(verdict, world.routed("green", world.remote(VTEP), mac(0x92), mac(9)));
}

#[test]
fn a_network_without_gateways_sees_the_senders_gateway() {
    let mut host = host();
    host.vnets[1].gateways.clear();
    host.routes = vec![vnet_route("blue", "10.1.0.0/24", to_vnet("green"))];
    let world = World::new(host);
    let verdict = world.egress("a", &udp(A, BLUE_ROUTER, "10.0.0.1", "10.1.0.1"));
    assert_eq!(verdict, world.routed("green", world.local("c"), BLUE_ROUTER, C));
}

#[test]
fn a_route_into_another_network_holds_without_a_gateway_too() {
    let world = world([vnet_route("blue", "10.1.0.0/24", to_vnet("green"))]);
    for (to, target, dst_mac) in
        [("10.1.0.1", world.local("c"), C), ("10.1.0.9", world.remote(VTEP_6), G)]
    {
        // A tenant that believes the destination to be on its link asks for no router.
        let verdict = world.egress("a", &udp(A, B, "10.0.0.1", to));
        let rewrite = Some(Rewrite { src_mac: A, dst_mac, hop: false });
        let vnet = world.vnet_index("green");
        assert_eq!(verdict, Verdict::Forward { vnet, target, rewrite }, "{to}");
    }
}

#[test]
fn the_longest_prefix_decides() {
    let world = world([
        vnet_route("blue", "0.0.0.0/0", RouteAction::Drop),
        vnet_route("blue", "10.0.0.0/24", to_vnet("blue")),
        vnet_route("blue", "10.0.0.9/32", RouteAction::Trap),
        vnet_route("blue", "::/0", to_vnet("blue")),
        vnet_route("blue", "fd00::/64", RouteAction::Trap),
        vnet_route("blue", "fd00::2/128", RouteAction::Drop),
    ]);
    let to_b = world.switched("blue", world.local("b"));
    let drop = Verdict::Drop(DropReason::RouteDrop);
    for (to, verdict) in [
        ("10.0.0.2", to_b),
        ("10.0.0.9", Verdict::Trap),
        ("10.0.1.2", drop),
        ("fd00::2", drop),
        ("fd00::3", Verdict::Trap),
        ("fd01::2", to_b),
    ] {
        let from = if to.contains(':') { "fd00::1" } else { "10.0.0.1" };
        assert_eq!(world.egress("a", &udp(A, B, from, to)), verdict, "{to}");
    }
}

#[test]
fn drop_and_trap_hold_for_routed_packets_too() {
    let world = world([
        vnet_route("blue", "10.0.0.2/32", RouteAction::Drop),
        vnet_route("blue", "fd00::2/128", RouteAction::Trap),
    ]);
    let drop = Verdict::Drop(DropReason::RouteDrop);
    assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, "10.0.0.1", "10.0.0.2")), drop);
    assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, "fd00::1", "fd00::2")), Verdict::Trap);
}

#[test]
fn routes_of_port_and_network_are_one_table() {
    let world = world([
        vnet_route("blue", "10.0.0.0/24", to_vnet("blue")),
        vnet_route("blue", "10.0.0.2/32", RouteAction::Trap),
        port_route("a", "0.0.0.0/0", RouteAction::Trap),
        port_route("a", "10.0.0.9/32", RouteAction::Drop),
    ]);
    let from_a = |dst, to| world.egress("a", &udp(A, dst, "10.0.0.1", to));
    // The port's host route beats the network's prefix, the network's prefix the port's default.
    assert_eq!(from_a(R, "10.0.0.9"), Verdict::Drop(DropReason::RouteDrop));
    assert_eq!(from_a(R, "10.0.0.8"), world.switched("blue", world.remote(VTEP)));
    assert_eq!(from_a(B, "10.0.0.2"), Verdict::Trap);
    assert_eq!(from_a(B, "10.9.0.2"), Verdict::Trap);
    // Another port of the network has the network's routes only.
    let from_b = |dst, to| world.egress("b", &udp(B, dst, "10.0.0.2", to));
    assert_eq!(from_b(R, "10.0.0.9"), world.switched("blue", world.remote(VTEP)));
    assert_eq!(from_b(A, "10.9.0.2"), Verdict::Drop(DropReason::NoRoute));
}

#[test]
fn at_equal_length_the_ports_own_route_decides() {
    for (own, verdict) in [
        (RouteAction::Drop, Verdict::Drop(DropReason::RouteDrop)),
        (RouteAction::Trap, Verdict::Trap),
    ] {
        let world = world([
            vnet_route("blue", "10.0.0.0/24", to_vnet("blue")),
            port_route("a", "10.0.0.0/24", own.clone()),
            vnet_route("blue", "fd00::/64", to_vnet("blue")),
            port_route("a", "fd00::/64", own),
        ]);
        assert_eq!(world.egress("a", &udp(A, B, "10.0.0.1", "10.0.0.2")), verdict);
        assert_eq!(world.egress("a", &udp(A, B, "fd00::1", "fd00::2")), verdict);
        let to_a = world.switched("blue", world.local("a"));
        assert_eq!(world.egress("b", &udp(B, A, "10.0.0.2", "10.0.0.1")), to_a);
    }
}

#[test]
fn what_no_route_covers_is_dropped() {
    let drop = Verdict::Drop(DropReason::NoRoute);
    for route in [
        vnet_route("blue", "10.0.0.9/32", to_vnet("blue")),
        port_route("a", "10.0.0.9/32", to_vnet("blue")),
    ] {
        let world = world([route]);
        let to_r = world.switched("blue", world.remote(VTEP));
        assert_eq!(world.egress("a", &udp(A, R, "10.0.0.1", "10.0.0.9")), to_r);
        assert_eq!(world.egress("a", &udp(A, B, "10.0.0.1", "10.0.0.2")), drop);
        assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, "10.0.0.1", "10.0.0.2")), drop);
        // Routes of one family leave the other without any.
        assert_eq!(world.egress("a", &udp(A, B, "fd00::1", "fd00::2")), drop);
        // Another network is not concerned.
        let back = world.switched("green", world.remote(VTEP_6));
        assert_eq!(world.egress("c", &udp(C, G, "10.1.0.1", "10.1.0.9")), back);
    }
}

#[test]
fn a_local_route_never_leaves_the_host() {
    let world = world([
        vnet_route("blue", "0.0.0.0/0", RouteAction::Local),
        vnet_route("blue", "::/0", RouteAction::Local),
    ]);
    let drop = Verdict::Drop(DropReason::NotLocal);
    for (from, near, far) in
        [("10.0.0.1", "10.0.0.2", "10.0.0.9"), ("fd00::1", "fd00::2", "fd00::9")]
    {
        let to_b = world.switched("blue", world.local("b"));
        assert_eq!(world.egress("a", &udp(A, B, from, near)), to_b);
        let by_router = world.routed("blue", world.local("b"), BLUE_ROUTER, B);
        assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, from, near)), by_router);
        assert_eq!(world.egress("a", &udp(A, R, from, far)), drop);
        assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, from, far)), drop);
        // Nor under the address of a neighbour here.
        assert_eq!(world.egress("a", &udp(A, R, from, near)), drop);
    }
    // The own network only.
    let elsewhere = world.egress("a", &udp(A, BLUE_ROUTER, "10.0.0.1", "10.1.0.1"));
    assert!(matches!(elsewhere, Verdict::Drop(_)), "{elsewhere:?}");
}

#[test]
fn group_frames_flood_only_where_the_network_floods() {
    let frames = [
        udp(A, MacAddr::BROADCAST, "10.0.0.1", "255.255.255.255"),
        udp(A, MacAddr([1, 0, 0x5e, 0, 0, 0xfb]), "10.0.0.1", "224.0.0.251"),
        udp(A, MacAddr([0x33, 0x33, 0, 0, 0, 0xfb]), "fd00::1", "ff02::fb"),
        other(A, MacAddr::BROADCAST),
    ];
    let mut host = host();
    let quiet = World::new(host.clone());
    host.vnets[0].flood = true;
    let loud = World::new(host);
    for frame in &frames {
        let drop = Verdict::Drop(DropReason::FloodDisabled);
        assert_eq!(quiet.egress("a", frame), drop, "{frame:?}");
        assert_eq!(loud.egress("a", frame), Verdict::Flood(loud.vnet_index("blue")), "{frame:?}");
    }
}

#[test]
fn a_frame_does_not_go_back_to_its_port() {
    let world = world([vnet_route("green", "0.0.0.0/0", to_vnet("blue"))]);
    let drop = Verdict::Drop(DropReason::Hairpin);
    assert_eq!(world.egress("a", &udp(A, A, "10.0.0.1", "10.0.0.1")), drop);
    assert_eq!(world.egress("a", &udp(A, A, "fd00::1", "fd00::1")), drop);
    assert_eq!(world.egress("a", &other(A, A)), drop);
    // Not a hairpin: the same address, reached from another network.
    let to_a = world.routed("blue", world.local("a"), BLUE_ROUTER, A);
    assert_eq!(world.egress("c", &udp(C, GREEN_ROUTER, "10.1.0.1", "10.0.0.1")), to_a);
}

#[test]
fn a_packet_to_a_gateway_itself_goes_nowhere() {
    let world = world([]);
    let drop = Verdict::Drop(DropReason::Unanswered);
    for (from, to) in [("10.0.0.1", "10.0.0.254"), ("fd00::1", "fd00::ff")] {
        assert_eq!(world.egress("a", &udp(A, BLUE_ROUTER, from, to)), drop);
    }
}

#[test]
fn equal_addresses_in_two_networks_never_meet() {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 100), vnet("green", 200)];
    for (net, near, far, vtep) in [("blue", "b1", "b2", VTEP), ("green", "g1", "g2", "192.0.2.3")] {
        host.ports.push(port(near, net, A, &["10.0.0.1", "fd00::1"]));
        host.ports.push(port(far, net, B, &["10.0.0.2", "fd00::2"]));
        host.mappings.push(mapping(net, "10.0.0.9", R, vtep));
        host.mappings.push(mapping(net, "fd00::9", R, vtep));
    }
    let world = World::new(host);
    for (net, near, far, vtep) in [("blue", "b1", "b2", VTEP), ("green", "g1", "g2", "192.0.2.3")] {
        for (from, here, there) in
            [("10.0.0.1", "10.0.0.2", "10.0.0.9"), ("fd00::1", "fd00::2", "fd00::9")]
        {
            let local = world.switched(net, world.local(far));
            assert_eq!(world.egress(near, &udp(A, B, from, here)), local);
            let remote = world.switched(net, world.remote(vtep));
            assert_eq!(world.egress(near, &udp(A, R, from, there)), remote);
        }
    }
    assert_ne!(world.remote(VTEP), world.remote("192.0.2.3"));
    assert_eq!(world.port("b1").ips, [ip("10.0.0.1"), ip("fd00::1")]);
}

#[test]
fn a_mac_of_another_network_is_unknown() {
    let world = world([]);
    let drop = Verdict::Drop(DropReason::NoMapping);
    for dst in [C, G, GREEN_ROUTER] {
        assert_eq!(world.egress("a", &udp(A, dst, "10.0.0.1", "10.1.0.1")), drop, "{dst}");
        assert_eq!(world.egress("a", &udp(A, dst, "10.0.0.1", "10.0.0.2")), drop, "{dst}");
    }
}
