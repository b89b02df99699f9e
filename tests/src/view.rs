//! Reading frames that arrived, apart from the code that is tested.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The headers of an IP packet in an Ethernet frame without tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's Don't Fragment; true for IPv6.
    pub df: bool,
    /// IPv4's More Fragments.
    pub more_fragments: bool,
    /// IPv4's fragment offset in bytes.
    pub offset: usize,
    /// Protocol or next header.
    pub proto: u8,
    /// What the IP header carries, padding removed.
    pub payload: Vec<u8>,
}

/// A VXLAN packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnelled {
    /// The outer IP header.
    pub outer: Ip,
    /// UDP source port.
    pub src_port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// The inner Ethernet frame.
    pub inner: Vec<u8>,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The IP packet in `frame`; `None` if there is none, or it is cut short. IPv4 options belong to the payload of nobody
/// here: a packet with options is none.
pub fn ip(frame: &[u8]) -> Option<Ip> {
    match (be16(frame, 12)?, frame.get(14..)?) {
        (0x0800, packet) => ipv4(packet),
        (0x86dd, packet) => ipv6(packet),
        _ => None,
    }
}

fn ipv4(packet: &[u8]) -> Option<Ip> {
    let len = usize::from(be16(packet, 2)?);
    let fragment = be16(packet, 6)?;
    let address = |at: usize| -> Option<IpAddr> {
        Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into())
    };
    (*packet.first()? == 0x45).then_some(Ip {
        src: address(12)?,
        dst: address(16)?,
        tos: *packet.get(1)?,
        ttl: *packet.get(8)?,
        df: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        offset: usize::from(fragment & 0x1fff) * 8,
        proto: *packet.get(9)?,
        payload: packet.get(20..len)?.to_vec(),
    })
}

fn ipv6(packet: &[u8]) -> Option<Ip> {
    let len = usize::from(be16(packet, 4)?);
    let address = |at: usize| -> Option<IpAddr> {
        Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into())
    };
    let [class, _] = (be16(packet, 0)? << 4).to_be_bytes();
    (packet.first()? >> 4 == 6).then_some(Ip {
        src: address(8)?,
        dst: address(24)?,
        tos: class,
        ttl: *packet.get(7)?,
        df: true,
        more_fragments: false,
        offset: 0,
        proto: *packet.get(6)?,
        payload: packet.get(40..40 + len)?.to_vec(),
    })
}

/// The VXLAN packet in `frame`, if there is one.
pub fn tunnelled(frame: &[u8]) -> Option<Tunnelled> {
    let outer = ip(frame)?;
    let udp = &outer.payload;
    if outer.proto != 17 || be16(udp, 2)? != 4789 || udp.get(8)? & 0x08 == 0 {
        return None;
    }
    let word = u32::from_be_bytes(*udp.get(12..)?.first_chunk()?);
    let (src_port, inner) = (be16(udp, 0)?, udp.get(16..)?.to_vec());
    Some(Tunnelled { src_port, vni: word >> 8, inner, outer })
}

/// Whether the Internet checksum (RFC 1071) over all of `bytes` is right.
pub fn sums_to_zero(bytes: &[u8]) -> bool {
    let word =
        |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u64 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

/// Whether the checksum of what an IPv6 packet, or UDP or TCP over IPv4, carries is right, its pseudo-header included.
pub fn payload_sum_is_right(ip: &Ip) -> bool {
    let mut bytes = match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
        _ => return false,
    };
    let Ok(len) = u32::try_from(ip.payload.len()) else { return false };
    bytes.extend(len.to_be_bytes());
    bytes.extend(u32::from(ip.proto).to_be_bytes());
    bytes.extend_from_slice(&ip.payload);
    sums_to_zero(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft;

    #[test]
    fn what_was_built_is_read_again() {
        for [src, dst] in [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]] {
            let addresses = [src.parse().unwrap(), dst.parse().unwrap()];
            let inner = craft::udp([[2; 6], [4; 6]], addresses, [1, 2], b"odd");
            let vxlan = [&[8, 0, 0, 0, 0, 0, 100, 0][..], &inner].concat();
            let frame = craft::udp([[6; 6], [8; 6]], addresses, [50_001, 4789], &vxlan);
            let read = tunnelled(&frame).unwrap();
            assert_eq!((read.vni, read.src_port), (100, 50_001));
            assert_eq!(read.inner, inner);
            let inner = ip(&read.inner).unwrap();
            assert_eq!([inner.src, inner.dst], addresses);
            assert_eq!(&inner.payload[8..], b"odd");
            assert!(payload_sum_is_right(&inner) && payload_sum_is_right(&read.outer));
            let mut damaged = inner.clone();
            damaged.payload[9] ^= 1;
            assert!(!payload_sum_is_right(&damaged));
        }
    }
}
