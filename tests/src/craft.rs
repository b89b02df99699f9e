//! Frames made by hand, for what no kernel sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep};

use crate::tools::VirtioHeader;
use crate::topology::{Tenant, Topology, mac_bytes};

/// Ethernet and IP headers with a TTL of 64.
fn ip(macs: [[u8; 6]; 2], addresses: [IpAddr; 2]) -> PacketBuilderStep<IpHeaders> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    match addresses {
        [IpAddr::V4(src), IpAddr::V4(dst)] => builder.ipv4(src.octets(), dst.octets(), 64),
        [IpAddr::V6(src), IpAddr::V6(dst)] => builder.ipv6(src.octets(), dst.octets(), 64),
        [src, dst] => panic!("{src} and {dst} are of two families"),
    }
}

/// An Ethernet frame with a UDP datagram, all lengths and checksums right.
///
/// # Panics
/// If the addresses are of two families.
pub fn udp(macs: [[u8; 6]; 2], addresses: [IpAddr; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let builder = ip(macs, addresses);
    let mut frame = Vec::new();
    // Writing to a Vec fails only for a payload above 64 KB, which no caller has.
    let written = builder.udp(ports[0], ports[1]).write(&mut frame, payload);
    assert!(written.is_ok(), "payload of {} bytes: {written:?}", payload.len());
    frame
}

/// An Ethernet frame with a TCP segment (ACK, PSH), all lengths and checksums right.
///
/// # Panics
/// If the addresses are of two families.
pub fn tcp(macs: [[u8; 6]; 2], addresses: [IpAddr; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let builder = ip(macs, addresses);
    let mut frame = Vec::new();
    let segment = builder.tcp(ports[0], ports[1], 1000, 8000).ack(2000).psh();
    let written = segment.write(&mut frame, payload);
    assert!(written.is_ok(), "payload of {} bytes: {written:?}", payload.len());
    frame
}

/// An Ethernet frame with an ICMPv6 message of any kind, hop limit 255, the checksum right.
///
/// # Panics
/// If the message is longer than a packet.
pub fn icmpv6(
    macs: [[u8; 6]; 2],
    [src, dst]: [Ipv6Addr; 2],
    kind: u8,
    rest: [u8; 4],
    body: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1]);
    let message = builder.ipv6(src.octets(), dst.octets(), 255).icmpv6_raw(kind, 0, rest);
    let mut frame = Vec::new();
    let written = message.write(&mut frame, body);
    assert!(written.is_ok(), "{written:?}");
    frame
}

/// An ARP packet in an Ethernet frame from `mac` to `dst`; `sender` and `target` are hardware and protocol address.
pub fn arp(
    [mac, dst]: [[u8; 6]; 2],
    operation: u8,
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut frame = [&dst[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    for (hardware, address) in [sender, target] {
        frame.extend(hardware);
        frame.extend(address.octets());
    }
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

/// An ICMP error, from host `from` to the other, that says that `quoted`, an Ethernet frame, was too big: fragmentation
/// needed, or packet too big over IPv6. All checksums are right.
///
/// # Panics
/// If the VTEPs are of two families.
pub fn too_big(topology: &Topology, from: usize, quoted: &[u8], mtu: u32) -> Vec<u8> {
    let [near, far] = [&topology.hosts[from], &topology.hosts[1 - from]];
    let builder = PacketBuilder::ethernet2(mac_bytes(&near.wire_mac), mac_bytes(&far.wire_mac));
    // A router quotes as much as fits 576 bytes, or 1,280 over IPv6 (RFC 1812, RFC 4443).
    let packet = |max: usize| &quoted[14..quoted.len().min(14 + max)];
    let mut frame = Vec::new();
    let written = match (near.vtep, far.vtep) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
            builder
                .ipv4(src.octets(), dst.octets(), 64)
                .icmpv4(Icmpv4Type::DestinationUnreachable(kind))
                .write(&mut frame, packet(548))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder
            .ipv6(src.octets(), dst.octets(), 64)
            .icmpv6(Icmpv6Type::PacketTooBig { mtu })
            .write(&mut frame, packet(1232)),
        (src, dst) => panic!("{src} and {dst} are of two families"),
    };
    assert!(written.is_ok(), "{written:?}");
    frame
}

/// Makes the UDP checksum of a frame made by [`udp`] partial, as a stack leaves it to a device: the sum over the
/// pseudo-header alone. Returns what a virtio header says then of a superframe of datagrams of `size` bytes.
pub fn as_udp_superframe(frame: &mut [u8], ipv6: bool, size: u16) -> VirtioHeader {
    let l4 = udp_offset(ipv6);
    let addresses = if ipv6 { 22..54 } else { 26..34 };
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    let len = u32::try_from(frame.len() - l4).unwrap_or(0);
    let mut sum: u32 = frame[addresses].chunks(2).map(word).sum::<u32>() + 17 + len;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = sum.to_be_bytes();
    frame[l4 + 6..l4 + 8].copy_from_slice(&[high, low]);
    let l4 = u16::try_from(l4).unwrap_or(0);
    VirtioHeader {
        flags: 1,
        gso_type: VirtioHeader::UDP_L4,
        hdr_len: l4 + 8,
        gso_size: size,
        csum_start: l4,
        csum_offset: 6,
    }
}

/// Changes the IPv4 header of a frame without tags by `edit`, and makes its checksum right again.
pub fn edit_ipv4(frame: &mut [u8], edit: impl FnOnce(&mut [u8])) {
    let Some(header) = frame.get_mut(14..34) else { return };
    edit(header);
    header[10..12].fill(0);
    let mut sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [high, low, ..] = (!sum << 16).to_be_bytes();
    header[10..12].copy_from_slice(&[high, low]);
}

/// Sets whether the IPv4 packet in a frame may not be fragmented.
pub fn set_df(frame: &mut [u8], df: bool) {
    edit_ipv4(frame, |header| header[6] = if df { 0x40 } else { 0 });
}

/// Sets the TOS or traffic class of the IP packet in a frame.
pub fn set_tos(frame: &mut [u8], tos: u8) {
    if frame.get(12..14) == Some(&[0x86, 0xdd]) {
        frame[14] = 0x60 | tos >> 4;
        frame[15] = frame[15] & 0x0f | tos << 4;
    } else {
        edit_ipv4(frame, |header| header[1] = tos);
    }
}

/// Sets the TTL or hop limit of the IP packet in a frame.
pub fn set_ttl(frame: &mut [u8], ttl: u8) {
    if frame.get(12..14) == Some(&[0x86, 0xdd]) {
        frame[21] = ttl;
    } else {
        edit_ipv4(frame, |header| header[8] = ttl);
    }
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
