//! A cached decision is used for every packet of its key: the key holds all that decides.

use crate::common;

use culvert_dataplane::policy::anti_spoof::check;
use culvert_dataplane::policy::observe::Unwatched;
use culvert_dataplane::worker::key::Headers;
use culvert_model::{HostParts, MacAddr, RouteAction};
use culvert_wire::eth::ether_type;
use etherparse::ArpOperation;

use common::frames::{
    Frame, arp, arp_request, icmpv6, neighbour_solicitation, other, udp, udp_ports,
};
use common::{World, gateway, mac, mapping, parts, port, to_vnet, vnet, vnet_route};

const A: MacAddr = mac(0xa);
const B: MacAddr = mac(0xb);
const R: MacAddr = mac(0x10);
const ROUTER: MacAddr = mac(0xb1);
const ALL_NODES: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

fn host() -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 100), vnet("green", 200)];
    host.vnets[0].gateways = vec![gateway("10.0.0.254/24", ROUTER), gateway("fd00::ff/64", ROUTER)];
    host.ports = vec![
        port("a", "blue", A, &["10.0.0.1", "fd00::1"]),
        port("b", "blue", B, &["10.0.0.2", "fd00::2"]),
    ];
    host.mappings = vec![
        mapping("blue", "10.0.0.9", R, "192.0.2.2"),
        mapping("green", "10.1.0.9", R, "192.0.2.3"),
    ];
    host.routes = vec![
        vnet_route("blue", "0.0.0.0/0", to_vnet("blue")),
        vnet_route("blue", "10.0.0.9/32", RouteAction::Trap),
        vnet_route("blue", "10.1.0.0/24", to_vnet("green")),
        vnet_route("blue", "::/0", to_vnet("blue")),
        vnet_route("blue", "fd00::2/128", RouteAction::Drop),
    ];
    host
}

/// What a tenant may send, legal or not: each by several MACs, addresses, ports and types.
fn frames() -> Vec<Frame> {
    let macs = [B, R, ROUTER, ALL_NODES, MacAddr::BROADCAST];
    let mut frames = Vec::new();
    for (src, dst) in [A, B].into_iter().flat_map(|src| macs.map(|dst| (src, dst))) {
        for from in ["10.0.0.1", "10.0.0.2", "0.0.0.0"] {
            for to in ["10.0.0.2", "10.0.0.9", "10.1.0.9", "255.255.255.255"] {
                frames.push(udp(src, dst, from, to));
                frames.push(udp_ports(src, dst, (from, 68), (to, 67)));
            }
            for operation in [ArpOperation::REQUEST, ArpOperation::REPLY] {
                frames.push(arp((src, dst), operation, (src, from), "10.0.0.9"));
                frames.push(arp((src, dst), operation, (B, from), "10.0.0.2"));
            }
        }
        for from in ["fd00::1", "fd00::2", "::"] {
            for to in ["fd00::2", "fd00::9", "ff02::1"] {
                frames.push(udp(src, dst, from, to));
                for kind in [128, 133, 134, 136, 143] {
                    frames.push(icmpv6((src, from), (dst, to), kind, &[0; 16]));
                }
            }
            // Two addresses of one solicited-node group.
            frames.push(neighbour_solicitation(src, from, "fd00::2"));
            frames.push(neighbour_solicitation(src, from, "fd07::2"));
        }
        frames.push(other(src, dst));
    }
    let tagged: Vec<_> = frames.iter().map(|frame| frame.clone().tagged(7)).collect();
    frames.extend(tagged);
    frames
}

fn headers(frame: &Frame) -> Headers {
    Headers::of(&frame.bytes, &frame.pkt())
}

#[test]
fn a_tenants_packets_of_one_key_have_one_verdict() {
    let world = World::new(host());
    let frames = frames();
    let keys: Vec<_> = frames.iter().map(headers).collect();
    let mut shared = 0;
    for (i, one) in frames.iter().enumerate() {
        for (j, two) in frames.iter().enumerate().skip(i + 1) {
            if keys[i] != keys[j] {
                continue;
            }
            shared += 1;
            assert_eq!(world.egress("a", one), world.egress("a", two), "{one:?} {two:?}");
            // The sender of each ARP message is checked before the cache is asked.
            if one.pkt().ether_type != ether_type::ARP {
                let checked = |frame: &Frame| {
                    check(world.port("a"), &frame.bytes, &frame.pkt(), &mut Unwatched)
                };
                assert_eq!(checked(one), checked(two), "{one:?} {two:?}");
            }
        }
    }
    assert!(shared > 100, "{shared} pairs of frames share a key: the test proves too little");
}

#[test]
fn what_a_decision_depends_on_makes_another_key() {
    let base = udp(A, B, "10.0.0.1", "10.0.0.2");
    let key = headers(&base);
    for frame in [
        udp(mac(0xc), B, "10.0.0.1", "10.0.0.2"),
        udp(A, mac(0xc), "10.0.0.1", "10.0.0.2"),
        udp(A, B, "10.0.0.3", "10.0.0.2"),
        udp(A, B, "10.0.0.1", "10.0.0.3"),
        udp_ports(A, B, ("10.0.0.1", 68), ("10.0.0.2", 9)),
        udp_ports(A, B, ("10.0.0.1", 40_000), ("10.0.0.2", 67)),
        udp(A, B, "fd00::1", "fd00::2"),
        arp_request(A, "10.0.0.1", "10.0.0.2"),
        other(A, B),
        base.clone().tagged(7),
    ] {
        assert_ne!(headers(&frame), key, "{frame:?}");
    }
    assert_ne!(headers(&base.clone().tagged(7)), headers(&base.clone().tagged(8)));
    assert_eq!(headers(&base), key);
    // An IPv4 pair is no IPv6 pair that begins with the same bytes.
    let v6 = udp(A, B, "a00:1::", "a00:2::");
    assert_ne!(headers(&v6), headers(&udp(A, B, "10.0.0.1", "10.0.0.2")));
}
