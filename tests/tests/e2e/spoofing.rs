//! ARP and neighbour discovery as weapons, from a tenant and from a VTEP that is known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use culvert_tests::attack::Attack;
use culvert_tests::tools::{Random, RawSocket, ping};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Combo, Family, Topology, TopologySpec, checks, craft};

const QUIET: Duration = Duration::from_millis(200);
const ALL: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Solicited and override.
const OVERRIDE: [u8; 4] = [0x60, 0, 0, 0];

/// A target link-layer address option (RFC 4861, section 4.6.1).
fn link_option(mac: [u8; 6]) -> Vec<u8> {
    [&[2, 1][..], &mac].concat()
}

/// Two tenants on each host in a vnet that floods: what passes at all reaches everyone.
fn flooding() -> Topology {
    flooding_in("")
}

/// The same with these lines in the vnet.
pub(crate) fn flooding_in(vnet_toml: &'static str) -> Topology {
    let mut spec = TopologySpec::quad(Combo::SIMPLE);
    spec.vnets[0].flood = true;
    spec.vnet_toml = vnet_toml;
    let topology = spec.build();
    topology.wait_connected(0, 1);
    topology.wait_connected(0, 2);
    topology.wait_connected(3, 0);
    topology
}

/// Lies of tenant 0 about addresses of others, each with the counter that it moves.
fn lies(topology: &Topology) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let [near, far] = [&topology.tenants[0], &topology.tenants[2]];
    let (own, victim) = (near.mac_bytes(), far.mac_bytes());
    let nobody = ([0; 6], Ipv4Addr::UNSPECIFIED);
    let advertise = |target: Ipv6Addr, mac: [u8; 6]| {
        let body = [&target.octets()[..], &link_option(mac)].concat();
        craft::icmpv6([own, ALL_NODES_MAC], [near.v6, ALL_NODES], ADVERTISEMENT, OVERRIDE, &body)
    };
    vec![
        (
            "an ARP reply that claims the victim's address",
            craft::arp([own, ALL], REPLY, (own, far.v4), (ALL, far.v4)),
            "spoofed_ip",
        ),
        (
            "an ARP request that claims the victim's address",
            craft::arp([own, ALL], REQUEST, (own, far.v4), nobody),
            "spoofed_ip",
        ),
        (
            "an ARP reply that names the victim's MAC for the own address",
            craft::arp([own, ALL], REPLY, (victim, near.v4), (ALL, near.v4)),
            "spoofed_mac",
        ),
        ("an advertisement of the victim's address", advertise(far.v6, own), "spoofed_ip"),
        (
            "an advertisement of the own address with the victim's MAC",
            advertise(near.v6, victim),
            "spoofed_mac",
        ),
        (
            "a router advertisement",
            craft::icmpv6(
                [own, ALL_NODES_MAC],
                [near.v6, ALL_NODES],
                ROUTER_ADVERTISEMENT,
                [64, 0, 7, 8],
                &[0; 8],
            ),
            "rogue_router",
        ),
        (
            "a redirect",
            craft::icmpv6(
                [own, victim],
                [near.v6, far.v6],
                REDIRECT,
                [0; 4],
                &[near.v6.octets(), near.v6.octets()].concat(),
            ),
            "rogue_router",
        ),
    ]
}

/// What tenant `at` believes of the addresses of `of`: its neighbour entries for them.
fn believed(topology: &Topology, at: usize, of: usize) -> Vec<String> {
    let text = topology.tenants[at].ns.run("ip neigh");
    let of = &topology.tenants[of];
    let addresses = [of.v4.to_string(), of.v6.to_string()];
    let about = |line: &&str| addresses.iter().any(|a| line.starts_with(&format!("{a} ")));
    text.lines().filter(about).map(str::to_owned).collect()
}

#[test]
fn a_tenant_that_claims_anothers_address_is_heard_by_nobody() {
    let topology = flooding();
    let attacker = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let open = |at: usize| RawSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap();
    let others = [1, 2, 3].map(open);
    for (what, frame, reason) in lies(&topology) {
        others.iter().for_each(|socket| socket.drain().unwrap());
        checks::counted(&topology, 0, reason, 1, || attacker.send(&frame).unwrap());
        std::thread::sleep(QUIET);
        for (socket, at) in others.iter().zip([1, 2, 3]) {
            let from_attacker =
                |seen: &[u8]| seen[6..12] == frame[6..12] && seen[12..] == frame[12..];
            let heard = socket.receive_matching(Duration::ZERO, from_attacker).unwrap();
            assert!(heard.is_none(), "{what}: tenant {at} hears it");
        }
    }
    let victim = &topology.tenants[2].mac;
    for at in [1, 3] {
        ping(&topology.tenants[at].ns, topology.tenants[2].v4.into(), 1, 56);
        for line in believed(&topology, at, 2) {
            assert!(line.contains(victim.as_str()) || line.contains("FAILED"), "{line}");
        }
    }
    // What is true about oneself may be said.
    let near = &topology.tenants[0];
    let own = near.mac_bytes();
    let honest = craft::arp([own, ALL], REPLY, (own, near.v4), (ALL, near.v4));
    others.iter().for_each(|socket| socket.drain().unwrap());
    attacker.send(&honest).unwrap();
    for socket in &others {
        let same = |seen: &[u8]| seen[12..42] == honest[12..42];
        assert!(socket.receive_matching(Duration::from_secs(2), same).unwrap().is_some());
    }
}

#[test]
fn a_known_vtep_cannot_speak_for_addresses_that_do_not_live_there() {
    let topology = flooding();
    nobody_speaks_for_others(&topology, |inner| craft::tunnelled(&topology, 1, 100, inner));
}

/// Tells tenants of host A from host B, by frames that `tunnelled` makes, of addresses that do not live there.
#[track_caller]
pub(crate) fn nobody_speaks_for_others(topology: &Topology, tunnelled: impl Fn(&[u8]) -> Vec<u8>) {
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let [near, local, remote] = [0, 2, 1].map(|at| &topology.tenants[at]);
    let mac = remote.mac_bytes();
    let stranger = craft::stranger(near.v4.into());
    let IpAddr::V4(unmapped) = stranger else { panic!("{stranger}") };
    let advertise = |target: Ipv6Addr| {
        let body = [&target.octets()[..], &link_option(mac)].concat();
        craft::icmpv6([mac, ALL_NODES_MAC], [remote.v6, ALL_NODES], ADVERTISEMENT, OVERRIDE, &body)
    };
    let claims = [
        (
            "a reply for a local tenant's address",
            craft::arp([mac, ALL], REPLY, (mac, local.v4), (ALL, local.v4)),
        ),
        (
            "a reply for an unmapped address",
            craft::arp([mac, ALL], REPLY, (mac, unmapped), (ALL, unmapped)),
        ),
        (
            "a request from a local tenant's address",
            craft::arp([mac, ALL], REQUEST, (mac, local.v4), ([0; 6], near.v4)),
        ),
        (
            "a reply with a local tenant's MAC",
            craft::arp(
                [local.mac_bytes(), ALL],
                REPLY,
                (local.mac_bytes(), remote.v4),
                (ALL, remote.v4),
            ),
        ),
        ("an advertisement of a local tenant's address", advertise(local.v6)),
    ];
    for (what, inner) in claims {
        tenant.drain().unwrap();
        let frame = tunnelled(&inner);
        eprintln!("{what}");
        checks::counted(topology, 0, "source_mismatch", 1, || wire.send(&frame).unwrap());
        std::thread::sleep(QUIET);
        let same = |seen: &[u8]| seen[12..] == inner[12..];
        let heard = tenant.receive_matching(Duration::ZERO, same).unwrap();
        assert!(heard.is_none(), "{what}: it is delivered");
    }
    for line in believed(topology, 0, 2) {
        assert!(line.contains(local.mac.as_str()), "{line}");
    }
}

#[test]
fn floods_of_arp_and_neighbour_discovery_stop_nobody() {
    Attack::new(Combo::SIMPLE).survive(|attack| {
        let [near, far] = [&attack.topology.tenants[0], &attack.topology.tenants[1]];
        let own = near.mac_bytes();
        let mut random = Random::new(99);
        for _ in 0..10_000 {
            let roll = random.next_u64().to_le_bytes();
            let address = Ipv4Addr::new(10, 77, roll[0], roll[1]);
            attack.send_from_tenant(&craft::arp(
                [own, ALL],
                REQUEST,
                (own, near.v4),
                ([0; 6], address),
            ));
            // Known ones, too: each is answered.
            attack.send_from_tenant(&craft::arp(
                [own, ALL],
                REQUEST,
                (own, near.v4),
                ([0; 6], far.v4),
            ));
            let mut target = far.v6.octets();
            target[14..].copy_from_slice(&roll[2..4]);
            let group = Ipv6Addr::from([
                0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15],
            ]);
            let group_mac = [0x33, 0x33, 0xff, target[13], target[14], target[15]];
            let body = [&target[..], &[1, 1], &own].concat();
            attack.send_from_tenant(&craft::icmpv6(
                [own, group_mac],
                [near.v6, group],
                135,
                [0; 4],
                &body,
            ));
            // The same from the other host.
            let mac = far.mac_bytes();
            let question = craft::arp([mac, ALL], REQUEST, (mac, far.v4), ([0; 6], near.v4));
            attack.send_from_wire(&craft::tunnelled(&attack.topology, 1, 100, &question));
        }
    });
}

/// Bytes from the middle of a message may look like any type of one: here like each of neighbour and router discovery.
#[test]
fn a_later_fragment_is_no_neighbour_discovery() {
    let combo = Combo { tenant: Family::V6, ..Combo::SIMPLE };
    let topology = TopologySpec::pair(combo).build();
    topology.wait_connected(0, 1);
    let before = [0, 1].map(|host| topology.stats(host));
    for kind in ROUTER_SOLICITATION..=REDIRECT {
        let pattern =
            format!("ping -n -c 2 -i 0.1 -W 1 -s 4000 -p {kind:02x} {}", topology.address(1));
        let output = topology.tenants[0].ns.try_run(&pattern);
        assert!(output.as_ref().is_ok_and(|o| o.contains(" 2 received")), "{kind}: {output:?}");
    }
    for (host, before) in before.iter().enumerate() {
        let drops = topology.stats(host).drops_since(before);
        assert!(!drops.keys().any(|name| name.contains("spoofed")), "{drops:?}");
    }
}
