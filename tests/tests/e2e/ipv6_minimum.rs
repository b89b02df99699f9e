//! A path that is, or is said to be, too small for IPv6: whom the engine believes, and what becomes of packets that
//! their senders may not make smaller.

use std::net::IpAddr;
use std::time::Duration;

use culvert_tests::tools::{RawSocket, ping, ping_df};
use culvert_tests::topology::{Topology, WIRE, mac_bytes};
use culvert_tests::{Combo, Family, TopologySpec, wait_until};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

/// What a router quotes of a tunnel packet from host A to host B: the headers up to the inner Ethernet header.
fn quoted(topology: &Topology, source: IpAddr, source_port: u16, vni: u32) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.resize(1400, 2);
    let macs = [0, 1].map(|host| mac_bytes(&topology.hosts[host].wire_mac));
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    let builder = match (source, topology.hosts[1].vtep) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), 64),
        _ => unreachable!("both are of the underlay's family"),
    };
    let mut frame = Vec::new();
    builder.udp(source_port, 4789).write(&mut frame, &payload).unwrap();
    frame.drain(14..).take(500).collect()
}

/// Sends host A the error of a router on the wire.
fn report(topology: &Topology, quoted: &[u8], mtu: u32) {
    let macs = [1, 0].map(|host| mac_bytes(&topology.hosts[host].wire_mac));
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    let mut frame = Vec::new();
    match (topology.hosts[1].vtep, topology.hosts[0].vtep) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let next_hop_mtu = u16::try_from(mtu).unwrap();
            let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
            let builder = builder.ipv4(src.octets(), dst.octets(), 64);
            builder
                .icmpv4(Icmpv4Type::DestinationUnreachable(kind))
                .write(&mut frame, quoted)
                .unwrap();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let builder = builder.ipv6(src.octets(), dst.octets(), 64);
            builder.icmpv6(Icmpv6Type::PacketTooBig { mtu }).write(&mut frame, quoted).unwrap();
        }
        _ => unreachable!("both are of the underlay's family"),
    }
    RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap().send(&frame).unwrap();
}

fn dropped(topology: &Topology, reason: &str) -> u64 {
    topology.dataplane(0).stats(&topology.hosts[0].ns).dropped(reason)
}

/// Whether a ping of so many bytes of IP packet, not to be fragmented, is answered.
fn passes(topology: &Topology, ipv6: bool, ip_len: u32) -> bool {
    let (a, b) = (&topology.tenants[0], &topology.tenants[1]);
    let (dst, headers): (IpAddr, u32) = if ipv6 { (b.v6.into(), 48) } else { (b.v4.into(), 28) };
    ping_df(&a.ns, dst, 1, ip_len - headers).all_answered()
}

#[test]
fn only_reports_about_packets_that_we_can_have_sent_are_believed() {
    for underlay in [Family::V4, Family::V6] {
        let topology = TopologySpec::pair(Combo { underlay, ..Combo::SIMPLE }).build();
        topology.wait_connected(0, 1);
        let ours = topology.hosts[0].vtep;
        let forged = [
            quoted(&topology, culvert_tests::craft::stranger(ours), 50_000, 100),
            quoted(&topology, ours, 1024, 100),
            quoted(&topology, ours, 50_000, 101),
        ];
        for quotation in &forged {
            report(&topology, quotation, 1400);
        }
        // The first is not even taken from the host, since it is about a packet of somebody else.
        let counted =
            wait_until(Duration::from_secs(5), || dropped(&topology, "bad_path_mtu_report") >= 2);
        assert!(counted, "{:?}", topology.dataplane(0).stats(&topology.hosts[0].ns).drops());
        assert!(passes(&topology, false, 1500), "a forged report was believed");
        report(&topology, &quoted(&topology, ours, 50_000, 100), 1400);
        let told = wait_until(Duration::from_secs(5), || !passes(&topology, false, 1500));
        assert!(told, "a sound report was not believed");
        assert!(passes(&topology, false, 1320));
    }
}

#[test]
fn ipv6_keeps_its_minimum_over_an_ipv4_path_that_is_smaller() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let quoted = quoted(&topology, topology.hosts[0].vtep, 50_000, 100);
    keeps_its_minimum(&topology, &quoted, 1300, 50);
}

/// A router reports this path MTU about a packet of ours; so many bytes of it are the tunnel's.
#[track_caller]
pub(crate) fn keeps_its_minimum(topology: &Topology, quoted: &[u8], mtu: u32, overhead: u32) {
    report(topology, quoted, mtu);
    let told = wait_until(Duration::from_secs(5), || !passes(topology, false, 1500));
    assert!(told, "the report was not believed");
    let inner = mtu - overhead;
    assert!(!passes(topology, false, inner + 1) && passes(topology, false, inner));
    // The tenant is told 1,280 and no less, and what it sends then goes without DF.
    assert!(!passes(topology, true, 1500));
    let route = topology.tenants[0].ns.run(&format!("ip -6 route get {}", topology.tenants[1].v6));
    assert!(route.contains("mtu 1280"), "{route}");
    assert!(passes(topology, true, 1280), "IPv6's minimum was lost");
    assert_eq!(dropped(topology, "below_ipv6_minimum"), 0);
}

#[test]
fn an_ipv6_path_too_small_for_ipv6_tenants_is_named() {
    let topology = TopologySpec::pair(Combo { underlay: Family::V6, ..Combo::SIMPLE }).build();
    topology.wait_connected(0, 1);
    let quoted = quoted(&topology, topology.hosts[0].vtep, 50_000, 100);
    too_small_is_named(&topology, &quoted, 70);
}

/// A router reports an IPv6 link's minimum about a packet of ours; so many bytes of it are the tunnel's.
#[track_caller]
pub(crate) fn too_small_is_named(topology: &Topology, quoted: &[u8], overhead: u32) {
    report(topology, quoted, 1280);
    let told = wait_until(Duration::from_secs(5), || !passes(topology, false, 1500));
    assert!(told, "the report was not believed");
    let dst = topology.tenants[1].v6.into();
    assert!(ping(&topology.tenants[0].ns, dst, 1, 1280 - overhead - 48).all_answered());
    assert!(!passes(topology, true, 1280));
    assert!(dropped(topology, "below_ipv6_minimum") > 0);
}
