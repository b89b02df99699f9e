//! Reports of a path MTU: ICMP errors that say a tunnel packet was too big, and what they quote of it.
//!
//! What is read here may be forged. Whether it is believed is for whoever knows what was sent.

use std::net::IpAddr;

use crate::format::{DecapError, FlowId, FormatDescriptor, Formats, decap};
use crate::packet::Packet;
use crate::vni::Vni;
use crate::{icmpv4, icmpv6, proto};

/// What a report says, and what it quotes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who sent the quoted packet.
    pub source: IpAddr,
    /// Where it was going.
    pub vtep: IpAddr,
    /// Its source port, where its format has ports, is one that we use.
    pub port_is_ours: bool,
    /// Its length in bytes, IP header included.
    pub len: u32,
    /// Its network, if the quotation goes so far. A router has to quote 8 bytes behind the IP header only.
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

/// Reads the ICMP or ICMPv6 message of a packet. Tunnel packets are those of `formats`.
pub fn read(formats: &Formats, message: &[u8], head: &[u8], pkt: &Packet) -> Reading {
    let read = match pkt.proto {
        proto::ICMPV4 => read_v4(formats, message),
        _ => read_v6(formats, message, head, pkt),
    };
    read.unwrap_or(Reading::NotAReport)
}

/// A fragmentation-needed message (RFC 1191 section 4).
fn read_v4(formats: &Formats, message: &[u8]) -> Option<Reading> {
    let view = icmpv4::View::new(message).ok()?;
    let repr = view.repr();
    let is_report = repr.kind == icmpv4::kind::UNREACHABLE && repr.code == icmpv4::FRAG_NEEDED;
    let quoted = || Reading::of(quoted_v4(formats, view.payload(), repr.rest & 0xffff));
    (is_report && view.checksum_ok()).then(quoted)
}

/// A packet-too-big message (RFC 4443 section 3.2).
fn read_v6(formats: &Formats, message: &[u8], head: &[u8], pkt: &Packet) -> Option<Reading> {
    let view = icmpv6::View::new(message).ok()?;
    let (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) = (pkt.src_ip(head), pkt.dst_ip(head))
    else {
        return None;
    };
    let repr = view.repr();
    let is_report = repr.kind == icmpv6::kind::PACKET_TOO_BIG;
    let quoted = || Reading::of(quoted_v6(formats, view.payload(), repr.rest));
    (is_report && view.checksum_ok(&src, &dst)).then(quoted)
}

fn quoted_v4(formats: &Formats, quoted: &[u8], mtu: u32) -> Option<Report> {
    // Ours have neither options nor fragments.
    let is_ours = *quoted.first()? == 0x45 && u16_at(quoted, 6)? & 0x3fff == 0;
    let (src, dst): ([u8; 4], [u8; 4]) =
        (*quoted.get(12..)?.first_chunk()?, *quoted.get(16..)?.first_chunk()?);
    let len = u32::from(u16_at(quoted, 2)?);
    is_ours.then_some(())?;
    let (source, vtep) = (IpAddr::from(src), IpAddr::from(dst));
    let report = Report { source, vtep, port_is_ours: true, len, vni: None, mtu };
    quoted_transport(formats, *quoted.get(9)?, quoted.get(20..)?, 20, report)
}

fn quoted_v6(formats: &Formats, quoted: &[u8], mtu: u32) -> Option<Report> {
    let is_ours = quoted.first()? >> 4 == 6;
    let (src, dst): ([u8; 16], [u8; 16]) =
        (*quoted.get(8..)?.first_chunk()?, *quoted.get(24..)?.first_chunk()?);
    let len = 40 + u32::from(u16_at(quoted, 4)?);
    is_ours.then_some(())?;
    let (source, vtep) = (IpAddr::from(src), IpAddr::from(dst));
    let report = Report { source, vtep, port_is_ours: true, len, vni: None, mtu };
    quoted_transport(formats, *quoted.get(6)?, quoted.get(40..)?, 40, report)
}

/// Completes a report by what is quoted behind the IP header, if that can be of a format.
fn quoted_transport(
    formats: &Formats,
    protocol: u8,
    quoted: &[u8],
    ip_header_len: u32,
    report: Report,
) -> Option<Report> {
    // The least that a router has to quote (RFC 792).
    quoted.get(..8)?;
    let port = match protocol {
        proto::UDP | proto::TCP => Some(u16_at(quoted, 2)?),
        _ => None,
    };
    if protocol == proto::UDP && u32::from(u16_at(quoted, 4)?) + ip_header_len != report.len {
        return None;
    }
    formats.carried_by(protocol, port).find_map(|(_, format)| {
        let vni = quoted_vni(format, quoted)?;
        let port_is_ours = match format.flow {
            FlowId::SourcePort { .. } => {
                let source = u16_at(quoted, 0)?;
                source == format.flow.source_port(source)
            }
            FlowId::Header(_) | FlowId::Nowhere => true,
        };
        Some(Report { vni, port_is_ours, ..report })
    })
}

/// The VNI, `Some(None)` where the quotation ends before it, `None` for what is not of the format.
fn quoted_vni(format: &FormatDescriptor, quoted: &[u8]) -> Option<Option<Vni>> {
    // Only the first segment of a stream has a tunnel header, and nothing tells which it is.
    if format.numbers().is_some() {
        return Some(None);
    }
    let Some(header) = quoted.get(format.outer.header_len()..) else { return Some(None) };
    if header.len() < format.template.len() {
        return Some(None);
    }
    match decap(format, header) {
        Err(DecapError::NoInnerFrame | DecapError::Truncated) => Some(None),
        Ok(found) => Some(Some(found.vni)),
        Err(_) => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}
