//! Frames made by hand, for what no kernel sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;

use crate::topology::{Tenant, Topology, mac_bytes};

/// An Ethernet frame with a UDP datagram, all lengths and checksums right.
///
/// # Panics
/// If the addresses are of two families.
pub fn udp(
    macs: [[u8; 6]; 2],
    [src, dst]: [IpAddr; 2],
    ports: [u16; 2],
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    let builder = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("{src} and {dst} are of two families"),
    };
    let mut frame = Vec::new();
    // Writing to a Vec fails only for a payload above 64 KB, which no caller has.
    let written = builder.udp(ports[0], ports[1]).write(&mut frame, payload);
    assert!(written.is_ok(), "payload of {} bytes: {written:?}", payload.len());
    frame
}

/// A UDP frame from one tenant to another, as the first one's kernel would send it.
pub fn between(from: &Tenant, to: &Tenant, ipv6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let addresses: [IpAddr; 2] =
        if ipv6 { [from.v6.into(), to.v6.into()] } else { [from.v4.into(), to.v4.into()] };
    udp([from.mac_bytes(), to.mac_bytes()], addresses, [40_000, port], payload)
}

/// A frame tunnelled by VXLAN, from host `from` of a topology to the other, the outer checksum right.
pub fn tunnelled(topology: &Topology, from: usize, vni: u32, inner: &[u8]) -> Vec<u8> {
    tunnelled_from(topology, from, topology.hosts[from].vtep, vni, inner)
}

/// As [`tunnelled`], with an outer source address of choice.
pub fn tunnelled_from(
    topology: &Topology,
    from: usize,
    source: IpAddr,
    vni: u32,
    inner: &[u8],
) -> Vec<u8> {
    let [near, far] = [&topology.hosts[from], &topology.hosts[1 - from]];
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    payload.extend_from_slice(inner);
    udp(
        [mac_bytes(&near.wire_mac), mac_bytes(&far.wire_mac)],
        [source, far.vtep],
        [50_000, 4789],
        &payload,
    )
}

/// Another address in the same subnet as `address`, which nobody in a topology has.
pub fn stranger(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 99).into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = 0x99;
            Ipv6Addr::from(octets).into()
        }
    }
}

/// Offset of the UDP header in a frame made by [`udp`].
pub fn udp_offset(ipv6: bool) -> usize {
    14 + if ipv6 { 40 } else { 20 }
}
