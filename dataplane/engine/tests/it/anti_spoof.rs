//! Whether a tenant may send what it sends under the name it gives.

use crate::common;

use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::anti_spoof::check;
use culvert_dataplane::policy::observe::Unwatched;
use culvert_model::{HostParts, MacAddr, PortState};
use etherparse::ArpOperation;

use common::frames::{
    Frame, arp, arp_request, icmpv6, neighbour_solicitation, other, udp, udp_ports,
};
use common::{World, mac, parts, port, vnet};

const A: MacAddr = MacAddr([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]);
/// What `A` makes by RFC 4291 appendix A.
const A_LINK_LOCAL: &str = "fe80::11:22ff:fe33:4455";
const B: MacAddr = mac(0xb);
const ALL_ROUTERS: (MacAddr, &str) = (MacAddr([0x33, 0x33, 0, 0, 0, 2]), "ff02::2");

fn host() -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 100)];
    host.ports = vec![
        port("a", "blue", A, &["10.0.0.1", "10.0.0.3", "fd00::1"]),
        port("b", "blue", B, &["10.0.0.2", "fd00::2"]),
        port("bare", "blue", mac(0xc), &[]),
    ];
    host
}

fn verdict(world: &World, port: &str, frame: &Frame) -> Result<(), DropReason> {
    let verdict = check(world.port(port), &frame.bytes, &frame.pkt(), &mut Unwatched);
    let tagged = frame.clone().tagged(7);
    let behind_tag = check(world.port(port), &tagged.bytes, &tagged.pkt(), &mut Unwatched);
    assert_eq!(verdict, behind_tag, "a tag changes what is legal: {frame:?}");
    verdict
}

/// What port `a` may send.
fn of_a(frame: &Frame) -> Result<(), DropReason> {
    verdict(&World::new(host()), "a", frame)
}

#[test]
fn a_tenant_sends_from_each_of_its_addresses() {
    for (from, to) in [("10.0.0.1", "10.0.0.2"), ("10.0.0.3", "8.8.8.8"), ("fd00::1", "fd00::2")] {
        assert_eq!(of_a(&udp(A, B, from, to)), Ok(()), "{from}");
    }
    assert_eq!(of_a(&other(A, B)), Ok(()));
}

#[test]
fn a_foreign_mac_is_dropped_whatever_it_carries() {
    for frame in [
        udp(B, A, "10.0.0.1", "10.0.0.2"),
        udp(B, A, "fd00::1", "fd00::2"),
        arp((B, MacAddr::BROADCAST), ArpOperation::REQUEST, (A, "10.0.0.1"), "10.0.0.2"),
        neighbour_solicitation(B, "fd00::1", "fd00::2"),
        other(B, A),
        udp_ports(B, MacAddr::BROADCAST, ("0.0.0.0", 68), ("255.255.255.255", 67)),
        udp(MacAddr::ZERO, B, "10.0.0.1", "10.0.0.2"),
        udp(MacAddr::BROADCAST, B, "10.0.0.1", "10.0.0.2"),
    ] {
        assert_eq!(of_a(&frame), Err(DropReason::SpoofedMac), "{frame:?}");
    }
}

#[test]
fn a_foreign_address_is_dropped() {
    for (from, to) in [
        ("10.0.0.2", "10.0.0.9"),
        ("10.0.0.0", "10.0.0.2"),
        ("255.255.255.255", "10.0.0.2"),
        ("224.0.0.1", "10.0.0.2"),
        ("127.0.0.1", "10.0.0.2"),
        ("fd00::2", "fd00::9"),
        ("::1", "fd00::2"),
        ("ff02::1", "fd00::2"),
        ("::ffff:10.0.0.1", "fd00::2"),
    ] {
        assert_eq!(of_a(&udp(A, B, from, to)), Err(DropReason::SpoofedIp), "{from}");
    }
}

#[test]
fn a_port_without_addresses_sends_no_ip_but_to_get_one() {
    let world = World::new(host());
    let bare = mac(0xc);
    let of_bare = |frame: Frame| verdict(&world, "bare", &frame);
    let spoofed = Err(DropReason::SpoofedIp);
    assert_eq!(of_bare(udp(bare, B, "10.0.0.1", "10.0.0.2")), spoofed);
    assert_eq!(of_bare(udp(bare, B, "fd00::1", "fd00::2")), spoofed);
    assert_eq!(of_bare(arp_request(bare, "10.0.0.1", "10.0.0.2")), spoofed);
    assert_eq!(of_bare(other(bare, B)), Ok(()));
    let discover = udp_ports(bare, MacAddr::BROADCAST, ("0.0.0.0", 68), ("255.255.255.255", 67));
    assert_eq!(of_bare(discover), Ok(()));
}

#[test]
fn from_the_unspecified_ipv4_address_comes_dhcp_only() {
    let all = "255.255.255.255";
    let send = |from_port, to_port| {
        of_a(&udp_ports(A, MacAddr::BROADCAST, ("0.0.0.0", from_port), (all, to_port)))
    };
    assert_eq!(send(68, 67), Ok(()));
    // A server's answer, another service, a client's port alone.
    for (from_port, to_port) in [(67, 68), (68, 53), (1068, 67), (68, 68)] {
        let verdict = send(from_port, to_port);
        assert_eq!(verdict, Err(DropReason::SpoofedIp), "{from_port} to {to_port}");
    }
}

#[test]
fn a_later_fragment_from_the_unspecified_address_is_no_dhcp() {
    let all = "255.255.255.255";
    let mut frame = udp_ports(A, MacAddr::BROADCAST, ("0.0.0.0", 68), (all, 67));
    // Fragment offset 8 bytes; what follows the header only looks like ports.
    let header = &mut frame.bytes[14..34];
    header[6..8].copy_from_slice(&[0, 1]);
    header[10..12].fill(0);
    let sum: u32 =
        header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(of_a(&frame), Err(DropReason::SpoofedIp));
}

#[test]
fn from_the_unspecified_ipv6_address_a_tenant_may_only_look_for_one() {
    let duplicate_detection = neighbour_solicitation(A, "::", A_LINK_LOCAL);
    assert_eq!(of_a(&duplicate_detection), Ok(()));
    let router_solicitation = icmpv6((A, "::"), ALL_ROUTERS, 133, &[]);
    assert_eq!(of_a(&router_solicitation), Ok(()));
    for frame in [
        udp(A, ALL_ROUTERS.0, "::", "ff02::2"),
        udp_ports(A, ALL_ROUTERS.0, ("::", 68), ("ff02::2", 67)),
        icmpv6((A, "::"), (B, "fd00::2"), 128, &[]),
        icmpv6((A, "::"), (B, "fd00::2"), 135, &[0; 16]),
    ] {
        assert_eq!(of_a(&frame), Err(DropReason::SpoofedIp), "{frame:?}");
    }
}

#[test]
fn the_link_local_address_that_the_mac_makes_is_the_tenants_own() {
    assert_eq!(of_a(&udp(A, B, A_LINK_LOCAL, "fd00::2")), Ok(()));
    let router_solicitation = icmpv6((A, A_LINK_LOCAL), ALL_ROUTERS, 133, &[]);
    assert_eq!(of_a(&router_solicitation), Ok(()));
    for from in ["fe80::1", "fe80::11:22ff:fe33:4456", "fe80:0:0:1:11:22ff:fe33:4455"] {
        assert_eq!(of_a(&udp(A, B, from, "fd00::2")), Err(DropReason::SpoofedIp), "{from}");
    }
    let listed = {
        let mut host = host();
        host.ports[0].ips.push("fe80::1".parse().unwrap());
        World::new(host)
    };
    assert_eq!(verdict(&listed, "a", &udp(A, B, "fe80::1", "fd00::2")), Ok(()));
}

#[test]
fn an_arp_sender_is_the_tenant_itself() {
    for (operation, dst) in [(ArpOperation::REQUEST, MacAddr::BROADCAST), (ArpOperation::REPLY, B)]
    {
        let of =
            |sender_mac, sender| of_a(&arp((A, dst), operation, (sender_mac, sender), "10.0.0.9"));
        assert_eq!(of(A, "10.0.0.1"), Ok(()));
        assert_eq!(of(A, "10.0.0.3"), Ok(()));
        // A gateway's or a neighbour's address under the own MAC, and the reverse.
        assert_eq!(of(A, "10.0.0.2"), Err(DropReason::SpoofedIp));
        assert_eq!(of(A, "10.0.0.254"), Err(DropReason::SpoofedIp));
        assert_eq!(of(B, "10.0.0.1"), Err(DropReason::SpoofedMac));
    }
    // A probe (RFC 5227) and an announcement.
    assert_eq!(of_a(&arp_request(A, "0.0.0.0", "10.0.0.7")), Ok(()));
    assert_eq!(of_a(&arp_request(A, "10.0.0.1", "10.0.0.1")), Ok(()));
}

#[test]
fn an_arp_message_that_is_none_is_malformed() {
    let whole = arp_request(A, "10.0.0.1", "10.0.0.2");
    assert_eq!(of_a(&whole), Ok(()));
    for len in 14..whole.bytes.len() {
        let cut = Frame { bytes: whole.bytes[..len].to_vec() };
        assert_eq!(of_a(&cut), Err(DropReason::Malformed), "cut to {len}");
    }
    // Hardware type, protocol type, and both lengths of addresses.
    for at in [15, 16, 18, 19] {
        let mut odd = whole.clone();
        odd.bytes[at] ^= 0xff;
        assert_eq!(of_a(&odd), Err(DropReason::Malformed), "byte {at}");
    }
}

#[test]
fn neighbour_solicitations_come_from_own_addresses() {
    for from in ["fd00::1", A_LINK_LOCAL] {
        assert_eq!(of_a(&neighbour_solicitation(A, from, "fd00::2")), Ok(()), "{from}");
    }
    let spoofed = neighbour_solicitation(A, "fd00::2", "fd00::9");
    assert_eq!(of_a(&spoofed), Err(DropReason::SpoofedIp));
}

#[test]
fn a_blocked_port_sends_nothing() {
    for anti_spoof in [true, false] {
        let mut host = host();
        host.ports[0].state = PortState::Blocked;
        host.ports[0].anti_spoof = anti_spoof;
        let world = World::new(host);
        for frame in [
            udp(A, B, "10.0.0.1", "10.0.0.2"),
            arp_request(A, "10.0.0.1", "10.0.0.2"),
            neighbour_solicitation(A, "::", A_LINK_LOCAL),
            other(A, B),
        ] {
            assert_eq!(verdict(&world, "a", &frame), Err(DropReason::PortBlocked));
        }
        assert_eq!(verdict(&world, "b", &udp(B, A, "10.0.0.2", "10.0.0.1")), Ok(()));
    }
}

#[test]
fn without_anti_spoof_every_source_passes() {
    let mut host = host();
    host.ports[0].anti_spoof = false;
    let world = World::new(host);
    for frame in [
        udp(mac(0x77), B, "10.9.9.9", "10.0.0.2"),
        udp(mac(0x77), B, "fd09::9", "fd00::2"),
        udp(A, B, "0.0.0.0", "10.0.0.2"),
        arp((A, B), ArpOperation::REPLY, (mac(0x77), "10.0.0.2"), "10.0.0.9"),
        other(mac(0x77), B),
    ] {
        assert_eq!(verdict(&world, "a", &frame), Ok(()), "{frame:?}");
        // The choice is one port's.
        assert_ne!(verdict(&world, "b", &frame), Ok(()), "{frame:?}");
    }
}
