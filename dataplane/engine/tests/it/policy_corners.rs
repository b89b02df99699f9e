//! Corners of the policy where it would be easy to let something through.

use crate::common;

use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::anti_spoof::check;
use culvert_dataplane::policy::egress::Verdict;
use culvert_dataplane::policy::ingress;
use culvert_dataplane::policy::observe::Unwatched;
use culvert_dataplane::worker::key::Headers;
use culvert_model::{HostParts, MacAddr, Miss, RouteAction};
use etherparse::ArpOperation;

use common::frames::{Frame, arp, arp_request, icmpv6, udp};
use common::{World, gateway, mac, mapping, parts, port, vnet, vnet_route};

const A: MacAddr = mac(0xa);
const B: MacAddr = mac(0xb);
const R: MacAddr = mac(0x10);

fn host() -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 100)];
    host.vnets[0].gateways =
        vec![gateway("10.0.0.254/24", mac(0xb1)), gateway("fd00::ff/64", mac(0xb1))];
    host.ports = vec![
        port("a", "blue", A, &["10.0.0.1", "fd00::1"]),
        port("b", "blue", B, &["10.0.0.2", "fd00::2"]),
    ];
    host.mappings = vec![
        mapping("blue", "10.0.0.9", R, "192.0.2.2"),
        mapping("blue", "10.0.0.10", mac(0x11), "192.0.2.3"),
    ];
    host
}

fn headers(frame: &Frame) -> Headers {
    Headers::of(&frame.bytes, &frame.pkt())
}

#[test]
fn questions_for_two_addresses_are_two_flows() {
    let a = arp_request(R, "10.0.0.9", "10.0.0.1");
    let b = arp_request(R, "10.0.0.9", "10.0.0.2");
    let world = World::new(host());
    assert_ne!(world.ingress(100, "192.0.2.2", &a), world.ingress(100, "192.0.2.2", &b));
    assert_ne!(headers(&a), headers(&b));
}

#[test]
fn a_group_mac_does_not_get_around_the_routes() {
    for (action, verdict) in [
        (RouteAction::Drop, Verdict::Drop(DropReason::RouteDrop)),
        (RouteAction::Trap, Verdict::Trap),
    ] {
        let mut host = host();
        host.vnets[0].flood = true;
        host.routes = vec![vnet_route("blue", "0.0.0.0/0", action)];
        let world = World::new(host);
        let frame = udp(A, MacAddr::BROADCAST, "10.0.0.1", "10.0.0.9");
        assert_eq!(world.egress("a", &frame), verdict);
    }
}

#[test]
fn a_local_route_holds_for_flooded_frames() {
    let mut host = host();
    host.vnets[0].flood = true;
    host.routes = vec![vnet_route("blue", "0.0.0.0/0", RouteAction::Local)];
    let world = World::new(host);
    let frame = udp(A, MacAddr::BROADCAST, "10.0.0.1", "10.0.0.9");
    assert_ne!(world.egress("a", &frame), Verdict::Flood(world.vnet_index("blue")));
}

#[test]
fn a_local_route_to_nobody_here_is_not_local() {
    for miss in [Miss::Drop, Miss::Trap] {
        let mut host = host();
        host.vnets[0].miss = miss;
        host.routes = vec![vnet_route("blue", "0.0.0.0/0", RouteAction::Local)];
        let world = World::new(host);
        let frame = udp(A, mac(0xdead), "10.0.0.1", "10.0.0.77");
        assert_eq!(world.egress("a", &frame), Verdict::Drop(DropReason::NotLocal), "{miss}");
    }
}

#[test]
fn an_echo_from_the_unspecified_address_is_spoofed() {
    let world = World::new(host());
    let frame = icmpv6((A, "::"), (MacAddr([0x33, 0x33, 0, 0, 0, 1]), "ff02::1"), 128, &[]);
    assert_eq!(
        check(world.port("a"), &frame.bytes, &frame.pkt(), &mut Unwatched),
        Err(DropReason::SpoofedIp)
    );
}

#[test]
fn an_advertisement_of_anothers_address_is_spoofed() {
    let world = World::new(host());
    for target in ["fd00::2", "fd00::ff"] {
        let mut body = target.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
        body.extend([2, 1]);
        body.extend(A.0);
        let frame = icmpv6((A, "fd00::1"), (B, "fd00::2"), 136, &body);
        assert_eq!(
            check(world.port("a"), &frame.bytes, &frame.pkt(), &mut Unwatched),
            Err(DropReason::SpoofedIp)
        );
    }
}

#[test]
fn an_arp_sender_behind_another_vtep_is_refused() {
    let world = World::new(host());
    for sender in ["10.0.0.10", "10.0.0.2", "10.0.0.254"] {
        let frame = arp((R, A), ArpOperation::REPLY, (R, sender), "10.0.0.1");
        let refused = ingress::Verdict::Drop(DropReason::SourceMismatch);
        assert_eq!(world.ingress(100, "192.0.2.2", &frame), refused, "{sender}");
    }
}

#[test]
fn one_mac_behind_two_vteps_is_reached_by_its_addresses() {
    let mut host = host();
    host.mappings.push(mapping("blue", "10.0.0.11", R, "192.0.2.3"));
    let world = World::new(host);
    for (to, vtep) in [("10.0.0.9", "192.0.2.2"), ("10.0.0.11", "192.0.2.3")] {
        let verdict = world.egress("a", &udp(A, R, "10.0.0.1", to));
        assert_eq!(verdict, world.switched("blue", world.remote(vtep)), "{to}");
    }
}
