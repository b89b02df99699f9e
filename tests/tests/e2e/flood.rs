//! Broadcast and multicast: replicated by the sending host where the vnet floods, else dropped and counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use culvert_tests::tools::{Datagrams, RawSocket, udp_exchange};
use culvert_tests::topology::{TENANT_DEVICE, Tenant, Topology, WIRE};
use culvert_tests::{
    Attach, Combo, Family, Peer, TopologySpec, checks, craft, sys, view, wait_until,
};

const MARK: &[u8] = b"to all of you, once each";
const QUIET: Duration = Duration::from_millis(200);

fn carries_mark(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|w| w == MARK)
}

/// Everything that goes to a group from `tenant`: name, frame, and the counter it moves where the vnet does not flood.
fn to_groups(tenant: &Tenant) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let own = tenant.mac_bytes();
    let udp = |dst_mac: [u8; 6], dst: IpAddr| {
        let src = if dst.is_ipv4() { tenant.v4.into() } else { tenant.v6.into() };
        craft::udp([own, dst_mac], [src, dst], [5353, 5353], MARK)
    };
    let mut arp = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own].concat();
    arp.extend(tenant.v4.octets());
    arp.extend([0; 6]);
    // An address that no port and no mapping has: only another tenant can answer.
    arp.extend([10, 77, 1, 99]);
    arp.extend(MARK);
    let all = [0xff; 6];
    vec![
        ("an ARP request", arp, "unknown_neighbour"),
        ("limited broadcast", udp(all, Ipv4Addr::BROADCAST.into()), "flood_disabled"),
        ("subnet broadcast", udp(all, Ipv4Addr::new(10, 77, 1, 255).into()), "flood_disabled"),
        (
            "IPv4 multicast",
            udp([1, 0, 0x5e, 1, 2, 3], Ipv4Addr::new(239, 1, 2, 3).into()),
            "flood_disabled",
        ),
        (
            "IPv6 multicast",
            udp([0x33, 0x33, 0, 0, 0, 0xfb], Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into()),
            "flood_disabled",
        ),
    ]
}

fn sockets(topology: &Topology) -> Vec<RawSocket> {
    let open = |tenant: &Tenant| RawSocket::open(&tenant.ns, TENANT_DEVICE).unwrap();
    topology.tenants.iter().map(open).collect()
}

/// How often each socket sees the mark, after `action`.
fn copies(sockets: &[RawSocket], action: impl FnOnce()) -> Vec<usize> {
    sockets.iter().for_each(|socket| socket.drain().unwrap());
    action();
    std::thread::sleep(QUIET);
    let count = |socket: &RawSocket| {
        let next = || socket.receive_matching(Duration::ZERO, carries_mark).unwrap();
        std::iter::from_fn(next).count()
    };
    sockets.iter().map(count).collect()
}

#[test]
fn what_goes_to_a_group_reaches_every_tenant_once_and_never_its_sender() {
    for (underlay, attach) in [(Family::V4, Attach::Veth), (Family::V6, Attach::Tap)] {
        let mut spec = TopologySpec::quad(Combo { underlay, attach, ..Combo::SIMPLE });
        spec.vnets[0].flood = true;
        let topology = spec.build();
        topology.wait_connected(0, 1);
        topology.wait_connected(1, 0);
        let sockets = sockets(&topology);
        for from in [0, 1] {
            for (what, frame, _) in to_groups(&topology.tenants[from]) {
                let seen = copies(&sockets, || sockets[from].send(&frame).unwrap());
                let wanted: Vec<usize> = (0..4).map(|at| usize::from(at != from)).collect();
                assert_eq!(seen, wanted, "{what} from tenant {from} over {underlay:?}");
            }
        }
    }
}

#[test]
fn without_flooding_what_goes_to_a_group_is_dropped_and_counted() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    // Kernels tell their groups now and again; what is counted is to be ours alone.
    for tenant in &topology.tenants {
        tenant.ns.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    }
    std::thread::sleep(QUIET);
    let sockets = sockets(&topology);
    for (what, frame, reason) in to_groups(&topology.tenants[0]) {
        checks::counted(&topology, 0, reason, 1, || {
            let seen = copies(&sockets, || sockets[0].send(&frame).unwrap());
            assert_eq!(seen, [0, 0, 0, 0], "{what}");
        });
    }
}

#[test]
fn each_vtep_gets_one_copy_however_many_addresses_live_behind_it() {
    let mut spec = TopologySpec::quad(Combo::SIMPLE).with_peers(Peer::Culvert, Peer::Bare);
    spec.vnets[0].flood = true;
    for (number, vtep) in [(50, 3), (51, 3), (52, 4)] {
        spec.extra_toml[0] += &format!(
            "[[mapping]]\nvnet = \"blue\"\nip = \"10.77.1.{number}\"\n\
             mac = \"02:77:00:00:00:{number}\"\nvtep = \"198.18.0.{vtep}\"\n"
        );
    }
    let topology = spec.build();
    for vtep in [3, 4] {
        topology.hosts[1].ns.run(&format!("ip addr add 198.18.0.{vtep}/24 dev {WIRE}"));
    }
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let (_, frame, _) = to_groups(&topology.tenants[0]).swap_remove(1);
    let mut reached = Vec::new();
    // The first frames find neighbours that are not resolved yet.
    wait_until(Duration::from_secs(5), || {
        wire.drain().unwrap();
        tenant.send(&frame).unwrap();
        let next = || wire.receive_matching(QUIET, carries_mark).unwrap();
        let outer = |frame: Vec<u8>| view::tunnelled(&frame).map(|seen| seen.outer.dst);
        reached = std::iter::from_fn(next).filter_map(outer).collect();
        reached.sort();
        reached.len() >= 3
    });
    let wanted = [2, 3, 4].map(|number| IpAddr::from(Ipv4Addr::new(198, 18, 0, number)));
    assert_eq!(reached, wanted);
}

#[test]
fn what_a_tenants_kernel_sends_to_a_group_arrives_whole_and_a_superframe_is_counted() {
    let mut spec = TopologySpec::quad(Combo::SIMPLE);
    spec.vnets[0].flood = true;
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let listen = |at: usize| {
        let tenant = &topology.tenants[at];
        let socket = tenant.ns.enter(|| {
            let socket = UdpSocket::bind(SocketAddr::new(group.into(), 7100)).unwrap();
            socket.join_multicast_v4(&group, &tenant.v4).unwrap();
            socket
        });
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket
    };
    let listeners = [1, 2, 3].map(listen);
    let near = &topology.tenants[0];
    let sender = near.ns.enter(|| UdpSocket::bind(SocketAddr::new(near.v4.into(), 0)).unwrap());
    near.ns.run(&format!("ip route add 239.0.0.0/8 dev {TENANT_DEVICE}"));
    sender.set_multicast_loop_v4(false).unwrap();
    // Its checksum is partial when it leaves the tenant: a socket takes it only if everybody completed it.
    for len in [MARK.len(), 1472] {
        let payload = vec![7; len];
        sender.send_to(&payload, (group, 7100)).unwrap();
        for listener in &listeners {
            let mut buffer = [0; 2000];
            let got = listener.recv(&mut buffer).unwrap();
            assert!(buffer[..got] == payload[..], "{len} bytes became {got}");
        }
    }
    sys::set_udp_segment(&sender, 500).unwrap();
    checks::counted(&topology, 0, "not_segmentable", 1, || {
        sender.send_to(&vec![7; 2000], (group, 7100)).unwrap();
    });
    // Nobody else is any the worse for it.
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let what = Datagrams::gso(500, 8, 4);
    assert!(udp_exchange(&a.ns, &b.ns, b.v4.into(), what).unwrap().is_perfect());
}
