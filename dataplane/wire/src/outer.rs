//! What has to be equal outside of frames that are merged.

use std::net::IpAddr;

use crate::bytes::{get16, get32};
use crate::packet::{IpKind, Packet};
use crate::{eth, ipv4};

/// What the tunnel says about a frame.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OuterKey {
    /// Tells flows apart: virtual network and receiving port. Frames that differ here are never of
    /// one flow, whatever their addresses.
    pub flow: u64,
    /// Must be equal to merge frames of one flow.
    pub headers: OuterHeaders,
}

/// What GRO compares of the headers around a tunnel packet, each value as it came.
///
/// Outer MAC addresses and the outer IPv4 identification are not compared: the former say by which
/// hop a packet came last, the latter counts what a VTEP sends to all others.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OuterHeaders {
    /// Source and destination, IPv4 as mapped into IPv6; 0 without IP.
    pub addresses: [u128; 2],
    /// Tag control information of up to two tags, outermost first.
    pub tags: [Option<u16>; 2],
    /// IPv6 flow label, 20 bits; 0 over IPv4.
    pub flow_label: u32,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's Don't Fragment; false over IPv6.
    pub df: bool,
    /// Source port; 0 where the tunnel header follows IP at once.
    pub src_port: u16,
    /// Of the tunnel header, see [`Decap::digest`](crate::format::Decap::digest).
    pub digest: u32,
}

impl OuterHeaders {
    /// Those of a parsed packet that starts with `head`, and of its tunnel header.
    #[inline]
    #[must_use]
    pub fn of(head: &[u8], pkt: &Packet, digest: u32) -> Self {
        let l3 = usize::from(pkt.l3);
        let (v4, v6) = (pkt.ip == IpKind::V4, pkt.ip == IpKind::V6);
        let second = (pkt.vlan_count == 2).then(|| get16(head, eth::HEADER_LEN + eth::TAG_LEN));
        let first_word = get32(head, l3).filter(|_| v6).unwrap_or(0);
        Self {
            addresses: [pkt.src_ip(head), pkt.dst_ip(head)].map(|ip| ip.map_or(0, bits)),
            tags: [pkt.vlan, second.flatten()],
            flow_label: first_word & 0xf_ffff,
            tos: pkt.tos,
            ttl: pkt.ttl,
            df: v4 && get16(head, l3 + 6).is_some_and(|word| word & ipv4::DF != 0),
            src_port: pkt.src_port(head).unwrap_or(0),
            digest,
        }
    }

    /// Where no more is known than the sender, and the TOS of its packets.
    #[must_use]
    pub fn from_vtep(src: IpAddr, tos: u8) -> Self {
        Self { addresses: [bits(src), 0], tos, ..Self::default() }
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}
