//! Reports of a path MTU: ICMP errors that say a tunnel packet was too big, and what they quote of it.
//!
//! What is read here may be forged. Whether it is believed is for whoever knows what was sent.

use std::net::IpAddr;

use crate::format::{self, VXLAN};
use crate::packet::Packet;
use crate::vni::Vni;
use crate::{icmpv4, icmpv6, proto, vxlan};

/// What a report says, and what it quotes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who sent the quoted packet.
    pub source: IpAddr,
    /// Where it was going.
    pub vtep: IpAddr,
    /// Its UDP source port.
    pub source_port: u16,
    /// Its length in bytes, IP header included.
    pub len: u32,
    /// Its network, if the quotation goes so far. A router has to quote 8 bytes of UDP only.
    pub vni: Option<Vni>,
    /// The MTU that it is too big for, in bytes.
    pub mtu: u32,
}

/// What an ICMP message is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Not about an MTU, or damaged.
    NotAReport,
    /// About something that is no tunnel packet.
    Foreign,
    /// About a tunnel packet.
    OfTunnel(Report),
}

impl Reading {
    fn of(quoted: Option<Report>) -> Reading {
        quoted.map_or(Reading::Foreign, Reading::OfTunnel)
    }
}

/// Reads the ICMP or ICMPv6 message of a packet.
pub fn read(message: &[u8], head: &[u8], pkt: &Packet) -> Reading {
    let read = match pkt.proto {
        proto::ICMPV4 => read_v4(message),
        _ => read_v6(message, head, pkt),
    };
    read.unwrap_or(Reading::NotAReport)
}

/// A fragmentation-needed message (RFC 1191 section 4).
fn read_v4(message: &[u8]) -> Option<Reading> {
    let view = icmpv4::View::new(message).ok()?;
    let repr = view.repr();
    let is_report = repr.kind == icmpv4::kind::UNREACHABLE && repr.code == icmpv4::FRAG_NEEDED;
    let quoted = || Reading::of(quoted_v4(view.payload(), repr.rest & 0xffff));
    (is_report && view.checksum_ok()).then(quoted)
}

/// A packet-too-big message (RFC 4443 section 3.2).
fn read_v6(message: &[u8], head: &[u8], pkt: &Packet) -> Option<Reading> {
    let view = icmpv6::View::new(message).ok()?;
    let (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) = (pkt.src_ip(head), pkt.dst_ip(head))
    else {
        return None;
    };
    let repr = view.repr();
    let is_report = repr.kind == icmpv6::kind::PACKET_TOO_BIG;
    let quoted = || Reading::of(quoted_v6(view.payload(), repr.rest));
    (is_report && view.checksum_ok(&src, &dst)).then(quoted)
}

fn quoted_v4(quoted: &[u8], mtu: u32) -> Option<Report> {
    // Ours have neither options nor fragments.
    let is_ours = *quoted.first()? == 0x45
        && *quoted.get(9)? == proto::UDP
        && u16_at(quoted, 6)? & 0x3fff == 0;
    let (src, dst): ([u8; 4], [u8; 4]) =
        (*quoted.get(12..)?.first_chunk()?, *quoted.get(16..)?.first_chunk()?);
    let len = u32::from(u16_at(quoted, 2)?);
    is_ours.then_some(())?;
    quoted_udp(quoted.get(20..)?, IpAddr::from(src), IpAddr::from(dst), len, 20, mtu)
}

fn quoted_v6(quoted: &[u8], mtu: u32) -> Option<Report> {
    let is_ours = quoted.first()? >> 4 == 6 && *quoted.get(6)? == proto::UDP;
    let (src, dst): ([u8; 16], [u8; 16]) =
        (*quoted.get(8..)?.first_chunk()?, *quoted.get(24..)?.first_chunk()?);
    let len = 40 + u32::from(u16_at(quoted, 4)?);
    is_ours.then_some(())?;
    quoted_udp(quoted.get(40..)?, IpAddr::from(src), IpAddr::from(dst), len, 40, mtu)
}

fn quoted_udp(
    udp: &[u8],
    source: IpAddr,
    vtep: IpAddr,
    len: u32,
    ip_header_len: u32,
    mtu: u32,
) -> Option<Report> {
    let is_tunnel =
        u16_at(udp, 2)? == VXLAN.outer.port() && u32::from(u16_at(udp, 4)?) + ip_header_len == len;
    let tunnel = Some(udp.get(8..)?).filter(|rest| rest.len() >= vxlan::HEADER_LEN);
    let vni = match tunnel.map(|rest| format::decap(&VXLAN, rest)) {
        None | Some(Err(format::DecapError::NoInnerFrame)) => None,
        Some(Ok((vni, _))) => Some(vni),
        Some(Err(_)) => return None,
    };
    let source_port = u16_at(udp, 0)?;
    is_tunnel.then_some(Report { source, vtep, source_port, len, vni, mtu })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}
