//! A packet made from options.

use std::net::IpAddr;

use culvert_model::MacAddr;
use culvert_wire::checksum::{Sum, pseudo_v4, pseudo_v6};
use culvert_wire::eth::ether_type;
use culvert_wire::{arp, icmpv4, icmpv6, proto, tcp};

use crate::sight::args::Protocol;

/// A packet to be made.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) src_mac: MacAddr,
    pub(super) dst_mac: MacAddr,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) ports: (u16, u16),
    pub(super) payload_len: usize,
    pub(super) ttl: u8,
    pub(super) df: bool,
}

impl Packet {
    /// The frame; none where the addresses are of two families, or it would be too long.
    pub(super) fn frame(&self) -> Option<Vec<u8>> {
        let mut frame = [self.dst_mac.0, self.src_mac.0].concat();
        if self.protocol == Protocol::Arp {
            frame.extend(ether_type::ARP.to_be_bytes());
            frame.extend(self.arp()?);
            return Some(frame);
        }
        let (number, l4) = self.transport()?;
        let len = u16::try_from(l4.len()).ok()?;
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(ether_type::IPV4.to_be_bytes());
                let total = len.checked_add(20)?.to_be_bytes();
                let flags = if self.df { 0x40 } else { 0 };
                let mut header = vec![0x45, 0, total[0], total[1], 0, 1, flags, 0];
                header.extend([self.ttl, number, 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                let sum = Sum::default().add(&header).finish().to_be_bytes();
                header[10..12].copy_from_slice(&sum);
                frame.extend(header);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend(ether_type::IPV6.to_be_bytes());
                let len = len.to_be_bytes();
                frame.extend([0x60, 0, 0, 0, len[0], len[1], number, self.ttl]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
            }
            _ => return None,
        }
        frame.extend(l4);
        Some(frame)
    }

    fn arp(&self) -> Option<[u8; arp::LEN]> {
        let (IpAddr::V4(sender_ip), IpAddr::V4(target_ip)) = (self.src, self.dst) else {
            return None;
        };
        let target_mac = MacAddr([0; 6]);
        let sender_mac = self.src_mac;
        let request = arp::Repr { op: arp::REQUEST, sender_mac, sender_ip, target_mac, target_ip };
        let mut bytes = [0; arp::LEN];
        request.emit(&mut bytes)?;
        Some(bytes)
    }

    /// The protocol's number, header and payload, with its checksum.
    fn transport(&self) -> Option<(u8, Vec<u8>)> {
        let ports = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        let v4 = self.src.is_ipv4();
        let (number, mut header, field) = match self.protocol {
            Protocol::Tcp => {
                let mut header = ports;
                // Sequence and acknowledgement number, 20 bytes, a SYN where nothing is carried.
                let flags = match self.payload_len {
                    0 => tcp::flags::SYN,
                    _ => tcp::flags::ACK,
                };
                header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                (proto::TCP, header, 16)
            }
            Protocol::Udp => {
                let mut header = ports;
                header.extend(u16::try_from(self.payload_len + 8).ok()?.to_be_bytes());
                header.extend([0, 0]);
                (proto::UDP, header, 6)
            }
            Protocol::Icmp if v4 => {
                (proto::ICMPV4, vec![icmpv4::kind::ECHO, 0, 0, 0, 0, 1, 0, 1], 2)
            }
            Protocol::Icmp => (proto::ICMPV6, vec![icmpv6::kind::ECHO, 0, 0, 0, 0, 1, 0, 1], 2),
            Protocol::Arp => return None,
        };
        header.resize(header.len() + self.payload_len, 0);
        let len = u32::try_from(header.len()).ok()?;
        let pseudo = match (self.src, self.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) if number == proto::ICMPV4 => Sum::default(),
            (IpAddr::V4(src), IpAddr::V4(dst)) => pseudo_v4(src, dst, number, len),
            (IpAddr::V6(src), IpAddr::V6(dst)) => pseudo_v6(&src, &dst, number, len),
            _ => return None,
        };
        let sum = pseudo.add(&header).finish_udp().to_be_bytes();
        header.get_mut(field..field + 2)?.copy_from_slice(&sum);
        Some((number, header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sight::packet::describe;

    #[test]
    fn what_is_made_is_what_was_asked_for() {
        let expected = [
            (Protocol::Tcp, "10.0.0.1", "10.0.0.2", "10.0.0.1.7 > 10.0.0.2.80 tcp [.] 58 bytes"),
            (Protocol::Udp, "fd00::1", "fd00::2", "fd00::1.7 > fd00::2.80 udp 66 bytes"),
            (
                Protocol::Icmp,
                "10.0.0.1",
                "10.0.0.2",
                "10.0.0.1 > 10.0.0.2 icmp echo request 46 bytes",
            ),
            (Protocol::Icmp, "fd00::1", "fd00::2", "fd00::1 > fd00::2 icmp6 echo request 66 bytes"),
            (Protocol::Arp, "10.0.0.1", "10.0.0.2", "arp who-has 10.0.0.2 tell 10.0.0.1 42 bytes"),
        ];
        for (protocol, src, dst, text) in expected {
            let packet = Packet {
                src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
                dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                protocol,
                ports: (7, 80),
                payload_len: 4,
                ttl: 64,
                df: true,
            };
            let frame = packet.frame().unwrap();
            assert_eq!(describe(&frame, frame.len()), text);
            let mixed = Packet { dst: "::1".parse().unwrap(), ..packet };
            assert!(!src.contains('.') || mixed.frame().is_none());
        }
    }
}
