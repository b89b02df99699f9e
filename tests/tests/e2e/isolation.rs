//! Who may not reach whom, and what may not be hidden.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use culvert_tests::tools::{Datagrams, RawSocket, tcp_transfer, udp_exchange};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{
    Attach, Combo, Family, Offloads, Peer, Topology, TopologySpec, craft, wait_until,
};

pub(crate) const MARK: &[u8] = b"this very datagram and no other, please";
const COUNT: u64 = 5;
const SHORT: Duration = Duration::from_millis(400);

pub(crate) fn carries_mark(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|w| w == MARK)
}

/// Host A runs Culvert; host B is played by the test.
fn against_hand_made(underlay: Family, attach: Attach) -> Topology {
    let combo = Combo { underlay, attach, ..Combo::SIMPLE };
    TopologySpec::pair(combo).with_peers(Peer::Culvert, Peer::Bare).build()
}

/// Sends `frame` some times on `from`, and asserts that it never comes out of `at` and that counter `reason` moved as often.
#[track_caller]
pub(crate) fn never_passes(
    topology: &Topology,
    from: &RawSocket,
    frame: &[u8],
    at: &RawSocket,
    reason: &str,
) {
    at.drain().unwrap();
    let before = topology.stats(0);
    for _ in 0..COUNT {
        from.send(frame).unwrap();
    }
    let passed = at.receive_matching(SHORT, carries_mark).unwrap();
    assert!(passed.is_none(), "{reason}: the frame came through");
    let mut moved = 0;
    let counted = wait_until(Duration::from_secs(3), || {
        moved = topology.stats(0).dropped(reason) - before.dropped(reason);
        moved >= COUNT
    });
    assert!(
        counted && moved == COUNT,
        "{reason} moved by {moved} for {COUNT} frames; all: {:?}",
        topology.stats(0).drops_since(&before)
    );
}

#[track_caller]
pub(crate) fn passes(from: &RawSocket, frame: &[u8], at: &RawSocket) {
    at.drain().unwrap();
    let passed = wait_until(Duration::from_secs(5), || {
        from.send(frame).unwrap();
        at.receive_matching(SHORT, carries_mark).unwrap().is_some()
    });
    assert!(passed, "a good frame does not come through: the test would prove nothing");
    at.drain().unwrap();
}

#[test]
fn equal_addresses_in_two_vnets_never_meet() {
    for attach in [Attach::Veth, Attach::Tap] {
        equal_addresses(&TopologySpec::twins(Combo { attach, ..Combo::SIMPLE }).build());
    }
}

fn equal_addresses(topology: &Topology) {
    for (from, to, never) in [(0, 1, 3), (2, 3, 1), (1, 0, 2), (3, 2, 0)] {
        topology.wait_connected(from, to);
        let [a, b, c] = [from, to, never].map(|i| &topology.tenants[i]);
        assert_eq!((b.v4, b.v6), (c.v4, c.v6));
        for dst in [IpAddr::from(b.v4), b.v6.into()] {
            let bind = || UdpSocket::bind(SocketAddr::new(dst, 7000)).unwrap();
            let [right, wrong] = [b.ns.enter(bind), c.ns.enter(bind)];
            right.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            wrong.set_read_timeout(Some(SHORT)).unwrap();
            let any = if dst.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = a.ns.enter(|| UdpSocket::bind(any).unwrap());
            a.ns.enter(|| socket.send_to(MARK, SocketAddr::new(dst, 7000)).unwrap());
            let mut buffer = [0; 100];
            let len = right.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], MARK);
            assert!(wrong.recv(&mut buffer).is_err(), "tenant {from} reached tenant {never}");
        }
    }
}

#[test]
fn a_server_in_another_vnet_cannot_be_connected_to() {
    let topology = TopologySpec::twins(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 3);
    let address = SocketAddr::new(topology.address(3), 7001);
    let listener = topology.tenants[3].ns.enter(|| TcpListener::bind(address).unwrap());
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(2));
    assert!(topology.tenants[2].ns.enter(connect).is_ok());
    drop(listener.accept().unwrap());
    assert!(topology.tenants[0].ns.enter(connect).is_err());
}

#[test]
fn a_wrong_vni_an_unknown_vtep_and_a_source_behind_another_vtep_never_pass() {
    for (underlay, attach) in [(Family::V4, Attach::Veth), (Family::V6, Attach::Tap)] {
        let topology = against_hand_made(underlay, attach);
        let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
        let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
        for ipv6 in [false, true] {
            let inner = craft::between(far, near, ipv6, 9, MARK);
            passes(&wire, &craft::tunnelled(&topology, 1, 100, &inner), &tenant);

            let other_vni = craft::tunnelled(&topology, 1, 101, &inner);
            never_passes(&topology, &wire, &other_vni, &tenant, "unknown_vni");

            let stranger = craft::stranger(topology.hosts[1].vtep);
            let other_vtep = craft::tunnelled_from(&topology, 1, stranger, 100, &inner);
            never_passes(&topology, &wire, &other_vtep, &tenant, "unknown_vtep");

            let dst = if ipv6 { near.v6.into() } else { IpAddr::from(near.v4) };
            let src = craft::stranger(if ipv6 { far.v6.into() } else { far.v4.into() });
            let macs = [far.mac_bytes(), near.mac_bytes()];
            let unmapped = craft::udp(macs, [src, dst], [1, 9], MARK);
            let unmapped = craft::tunnelled(&topology, 1, 100, &unmapped);
            never_passes(&topology, &wire, &unmapped, &tenant, "source_mismatch");

            let own_address = craft::udp(macs, [dst, dst], [1, 9], MARK);
            let own_address = craft::tunnelled(&topology, 1, 100, &own_address);
            never_passes(&topology, &wire, &own_address, &tenant, "source_mismatch");
        }
    }
}

#[test]
fn a_tenant_cannot_use_anothers_mac_or_ip() {
    for attach in [Attach::Veth, Attach::Tap] {
        spoofing(&against_hand_made(Family::V4, attach));
    }
}

fn spoofing(topology: &Topology) {
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    for ipv6 in [false, true] {
        let good = craft::between(near, far, ipv6, 9, MARK);
        passes(&tenant, &good, &wire);

        let mut other_mac = good.clone();
        other_mac[11] ^= 1;
        never_passes(topology, &tenant, &other_mac, &wire, "spoofed_mac");

        let [src, dst] = if ipv6 {
            [craft::stranger(near.v6.into()), far.v6.into()]
        } else {
            [craft::stranger(near.v4.into()), far.v4.into()]
        };
        let other_ip = craft::udp([near.mac_bytes(), far.mac_bytes()], [src, dst], [1, 9], MARK);
        never_passes(topology, &tenant, &other_ip, &wire, "spoofed_ip");
    }
    // An ARP request that claims another's address, padded with the mark.
    let mut arp = vec![0xff; 6];
    arp.extend(near.mac_bytes());
    arp.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(near.mac_bytes());
    arp.extend([10, 77, 1, 99, 0, 0, 0, 0, 0, 0]);
    arp.extend(far.v4.octets());
    arp.extend(MARK);
    never_passes(topology, &tenant, &arp, &wire, "spoofed_ip");
}

#[test]
fn a_bad_tenant_checksum_arrives_bad_and_a_zero_one_zero() {
    for attach in [Attach::Veth, Attach::Tap] {
        for wire in [Offloads::On, Offloads::Off] {
            checksums(Combo { attach, wire, ..Combo::SIMPLE });
        }
    }
}

fn checksums(combo: Combo) {
    let topology = TopologySpec::pair(combo).build();
    topology.wait_connected(0, 1);
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let from = RawSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    let to = RawSocket::open(&far.ns, TENANT_DEVICE).unwrap();
    for (tcp, ipv6, sum) in [
        (false, false, Some(0xbad1)),
        (false, true, Some(0xbad1)),
        (false, false, Some(0)),
        (false, false, None),
        (false, true, None),
        (true, false, Some(0xbad1)),
        (true, true, Some(0xbad1)),
        (true, false, None),
        (true, true, None),
    ] {
        let what = format!("{combo}: TCP {tcp}, IPv6 {ipv6}, checksum {sum:x?}");
        let mut frame = if tcp {
            let addresses = if ipv6 {
                [near.v6.into(), far.v6.into()]
            } else {
                [near.v4.into(), far.v4.into()]
            };
            craft::tcp([near.mac_bytes(), far.mac_bytes()], addresses, [40_000, 9], MARK)
        } else {
            craft::between(near, far, ipv6, 9, MARK)
        };
        let at = craft::udp_offset(ipv6) + if tcp { 16 } else { 6 };
        if let Some(sum) = sum {
            frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(sum));
        }
        from.send(&frame).unwrap();
        let got = to.receive_matching(Duration::from_secs(3), carries_mark).unwrap();
        let got = got.unwrap_or_else(|| panic!("{what}: nothing arrived"));
        assert_eq!(got[at..at + 2], frame[at..at + 2], "{what}");
        assert_eq!(got[14..], frame[14..], "{what}");
    }
}

#[test]
fn damage_on_the_underlay_never_reaches_a_program() {
    for (underlay, tenant) in
        [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V4, Family::V6)]
    {
        let combo = Combo { underlay, tenant, wire: Offloads::Off, ..Combo::SIMPLE };
        let mut spec = TopologySpec::pair(combo);
        spec.middle = true;
        let topology = spec.build();
        topology.wait_connected(0, 1);
        let middle = topology.middle.as_ref().unwrap();
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let dst = topology.address(1);
        middle.damage_every(50);
        // TCP sends again what was damaged; wrong data is an error of the transfer.
        tcp_transfer(&a.ns, &b.ns, dst, 2 << 20).unwrap_or_else(|e| panic!("{combo}: {e}"));
        assert!(middle.damaged() >= 10, "only {} frames were damaged", middle.damaged());

        middle.damage_every(2);
        let report = udp_exchange(&a.ns, &b.ns, dst, Datagrams::plain(1000, 8)).unwrap();
        assert_eq!(report.wrong, 0, "{combo}: {report:?}");
        assert!(report.intact < report.sent, "{combo}: half the frames are damaged: {report:?}");

        middle.damage_every(0);
        let report = udp_exchange(&a.ns, &b.ns, dst, Datagrams::plain(1000, 8)).unwrap();
        assert!(report.is_perfect(), "{combo}: {report:?}");
    }
}

#[test]
fn a_damaged_inner_packet_under_a_zero_outer_checksum_stays_damaged() {
    let topology = against_hand_made(Family::V4, Attach::Veth);
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let good = craft::between(far, near, false, 9, MARK);
    passes(&wire, &craft::tunnelled(&topology, 1, 100, &good), &tenant);

    let mut inner = good.clone();
    let sum_at = craft::udp_offset(false) + 6;
    inner[sum_at] ^= 0xff;
    let mut frame = craft::tunnelled(&topology, 1, 100, &inner);
    frame[sum_at..sum_at + 2].fill(0);
    wire.send(&frame).unwrap();
    let got = tenant.receive_matching(Duration::from_secs(2), carries_mark).unwrap();
    // Dropping it is right too; delivering it with a good checksum is not.
    if let Some(got) = got {
        assert_eq!(got[sum_at..sum_at + 2], inner[sum_at..sum_at + 2]);
    }

    let mut damaged = craft::tunnelled(&topology, 1, 100, &good);
    // The outer UDP source port is hit, so that the mark stays whole.
    damaged[craft::udp_offset(false) + 1] ^= 1;
    never_passes(&topology, &wire, &damaged, &tenant, "bad_outer_checksum");
}
