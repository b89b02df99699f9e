//! Frames, built by a library that is not ours.

use std::net::{IpAddr, Ipv6Addr};

use culvert_model::MacAddr;
use culvert_wire::Packet;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, PacketBuilder, PacketBuilderStep,
};

use super::ip;

/// The bytes of a frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// From the destination MAC address on.
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    /// Its descriptor.
    pub(crate) fn pkt(&self) -> Packet {
        Packet::parse(&self.bytes, self.bytes.len()).unwrap()
    }

    /// The same frame behind a VLAN tag.
    pub(crate) fn tagged(mut self, vid: u16) -> Frame {
        let [high, low] = vid.to_be_bytes();
        self.bytes.splice(12..12, [0x81, 0x00, high, low]);
        self
    }
}

fn ethernet(src: MacAddr, dst: MacAddr) -> PacketBuilderStep<Ethernet2Header> {
    PacketBuilder::ethernet2(src.0, dst.0)
}

/// A UDP datagram between two addresses of one family.
pub(crate) fn udp(src: MacAddr, dst: MacAddr, from: &str, to: &str) -> Frame {
    udp_ports(src, dst, (from, 40_000), (to, 9))
}

/// A UDP datagram between two addresses and ports.
pub(crate) fn udp_ports(src: MacAddr, dst: MacAddr, from: (&str, u16), to: (&str, u16)) -> Frame {
    udp_with(src, dst, from, to, b"payload")
}

/// The same with a payload.
pub(crate) fn udp_with(
    src: MacAddr,
    dst: MacAddr,
    (from, from_port): (&str, u16),
    (to, to_port): (&str, u16),
    payload: &[u8],
) -> Frame {
    let ethernet = ethernet(src, dst);
    let ip = match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        pair => panic!("{pair:?} are not of one family"),
    };
    let mut bytes = Vec::new();
    ip.udp(from_port, to_port).write(&mut bytes, payload).unwrap();
    Frame { bytes }
}

/// An ICMPv6 message; `body` starts after the four bytes behind the checksum.
pub(crate) fn icmpv6(
    (src, from): (MacAddr, &str),
    (dst, to): (MacAddr, &str),
    kind: u8,
    body: &[u8],
) -> Frame {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (ip(from), ip(to)) else { panic!("{from} or {to}") };
    let mut bytes = Vec::new();
    ethernet(src, dst)
        .ipv6(from.octets(), to.octets(), 255)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut bytes, body)
        .unwrap();
    Frame { bytes }
}

/// A neighbour solicitation to the solicited-node group of `target` (RFC 4861 section 4.3); with
/// the source's MAC address, unless it has no address yet.
pub(crate) fn neighbour_solicitation(src: MacAddr, from: &str, target: &str) -> Frame {
    let IpAddr::V6(target) = ip(target) else { panic!("{target}") };
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(&target.octets()[13..]);
    let group = Ipv6Addr::from(group);
    let mut body = target.octets().to_vec();
    if from != "::" {
        body.extend([1, 1]);
        body.extend(src.0);
    }
    let dst = MacAddr::ipv6_multicast(group);
    icmpv6((src, from), (dst, &group.to_string()), 135, &body)
}

/// An ARP message; the Ethernet source and the sender's MAC address may differ.
pub(crate) fn arp(
    (src, dst): (MacAddr, MacAddr),
    operation: ArpOperation,
    (sender_mac, sender): (MacAddr, &str),
    target: &str,
) -> Frame {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (ip(sender), ip(target)) else {
        panic!("{sender} or {target}")
    };
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: sender_mac.0,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut bytes = Vec::new();
    ethernet(src, dst).arp(packet.into()).write(&mut bytes).unwrap();
    Frame { bytes }
}

/// An ARP request, broadcast by its sender.
pub(crate) fn arp_request(src: MacAddr, sender: &str, target: &str) -> Frame {
    arp((src, MacAddr::BROADCAST), ArpOperation::REQUEST, (src, sender), target)
}

/// Questions of a tenant for its configuration: DHCP, DHCPv6 and router discovery.
pub(crate) fn questions(src: MacAddr) -> [Frame; 3] {
    let mut discover = vec![1, 1, 6, 0, 1, 2, 3, 4];
    discover.extend([0; 20]);
    discover.extend(src.0);
    discover.extend([0; 10 + 64 + 128]);
    discover.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    let solicit =
        [1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 1, 0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    let link_local = src.eui64_link_local().to_string();
    let servers = (MacAddr([0x33, 0x33, 0, 1, 0, 2]), "ff02::1:2");
    let routers = (MacAddr([0x33, 0x33, 0, 0, 0, 2]), "ff02::2");
    [
        udp_with(src, MacAddr::BROADCAST, ("0.0.0.0", 68), ("255.255.255.255", 67), &discover),
        udp_with(src, servers.0, (&link_local, 546), (servers.1, 547), &solicit),
        icmpv6((src, &link_local), routers, 133, &[]),
    ]
}

/// A frame that is neither IP nor ARP.
pub(crate) fn other(src: MacAddr, dst: MacAddr) -> Frame {
    let header =
        Ethernet2Header { source: src.0, destination: dst.0, ether_type: EtherType(0x88b5) };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend([0; 46]);
    Frame { bytes }
}
