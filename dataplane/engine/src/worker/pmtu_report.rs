//! Path MTU that routers of the underlay report: which reports are believed.
//!
//! Anybody who can send to us can send an ICMP error. One is believed only if what it quotes can be
//! a packet of ours: from our address to a VTEP that we have mappings for, with a source port and
//! an identifier such as we use, and larger than the MTU that it is said to be too big for. Even
//! then it can be forged, so what it does is bounded: a floor, a time, and a rate.

use std::net::IpAddr;

use culvert_port::Buf;
use culvert_wire::format::{self, VXLAN};
use culvert_wire::packet::Packet;
use culvert_wire::vni::Vni;
use culvert_wire::{icmpv4, icmpv6, proto};

use super::Worker;
use super::device::Role;
use crate::drops::DropReason;
use crate::limits::{MIN_PMTU_V4, MIN_PMTU_V6};
use crate::shared::Event;
use crate::tables::{LinkIndex, Tables};

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

/// What is done about an ICMP error.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The path MTU to this VTEP is this.
    Believe(IpAddr, u32),
    /// Not about an MTU.
    NotAReport,
    /// About a packet that we did not send, or to an MTU that no link has.
    Forged,
}

/// Judges an ICMP error with the rules at hand.
pub fn judge(tables: &Tables, message: &[u8], head: &[u8], pkt: &Packet) -> Judgement {
    let read = match pkt.proto {
        proto::ICMPV4 => read_v4(message),
        _ => read_v6(message, head, pkt),
    };
    let Some(quoted) = read else { return Judgement::NotAReport };
    match quoted {
        Some(report) if is_ours(tables, &report) => Judgement::Believe(report.vtep, report.mtu),
        _ => Judgement::Forged,
    }
}

fn is_ours(tables: &Tables, report: &Report) -> bool {
    let vtep = tables.vtep_of(&report.vtep).and_then(|index| tables.vtep(index));
    let floor = if report.vtep.is_ipv4() { MIN_PMTU_V4 } else { MIN_PMTU_V6 };
    vtep.is_some_and(|vtep| vtep.source == report.source)
        && report.source_port == VXLAN.flow.source_port(report.source_port)
        && report.vni.is_none_or(|vni| tables.vnet_of(vni).is_some())
        && (floor..report.len).contains(&report.mtu)
}

impl Worker {
    /// Reads an ICMP error about a tunnel packet of ours. Only a smaller MTU is news.
    pub(super) fn path_mtu_report(&mut self, link: LinkIndex, buf: &Buf, pkt: &Packet) {
        let head = buf.head().data();
        let message = head.get(usize::from(pkt.l4)..pkt.len as usize).unwrap_or_default();
        let dropped = match judge(&self.tables, message, head, pkt) {
            Judgement::NotAReport => DropReason::NotTunnel,
            Judgement::Believe(vtep, mtu) if self.pmtu_reports.allow(self.polling.now()) => {
                if self.shared.event(Event::PathMtu { vtep, mtu }) {
                    return;
                }
                DropReason::LostPathMtuReport
            }
            Judgement::Believe(..) | Judgement::Forged => DropReason::BadPathMtuReport,
        };
        self.lose(Role::Underlay(link), dropped, 1, buf);
    }
}

/// A fragmentation-needed message (RFC 1191 section 4): none if it is something else, and nothing
/// in it if what it quotes is no tunnel packet.
#[allow(clippy::option_option)] // "no report" and "a report that quotes nothing of ours" differ
fn read_v4(message: &[u8]) -> Option<Option<Report>> {
    let view = icmpv4::View::new(message).ok()?;
    let repr = view.repr();
    let is_report = repr.kind == icmpv4::kind::UNREACHABLE && repr.code == icmpv4::FRAG_NEEDED;
    (is_report && view.checksum_ok()).then(|| quoted_v4(view.payload(), repr.rest & 0xffff))
}

/// A packet-too-big message (RFC 4443 section 3.2), likewise.
#[allow(clippy::option_option)] // as above
fn read_v6(message: &[u8], head: &[u8], pkt: &Packet) -> Option<Option<Report>> {
    let view = icmpv6::View::new(message).ok()?;
    let (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) = (pkt.src_ip(head), pkt.dst_ip(head))
    else {
        return None;
    };
    let repr = view.repr();
    let is_report = repr.kind == icmpv6::kind::PACKET_TOO_BIG;
    (is_report && view.checksum_ok(&src, &dst)).then(|| quoted_v6(view.payload(), repr.rest))
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
    let tunnel = Some(udp.get(8..)?).filter(|rest| rest.len() >= VXLAN_HEADER_LEN);
    let vni = match tunnel.map(|rest| format::decap(&VXLAN, rest)) {
        None | Some(Err(format::DecapError::NoInnerFrame)) => None,
        Some(Ok((vni, _))) => Some(vni),
        Some(Err(_)) => return None,
    };
    let source_port = u16_at(udp, 0)?;
    is_tunnel.then_some(Report { source, vtep, source_port, len, vni, mtu })
}

/// Bytes of a VXLAN header (RFC 7348 section 5).
const VXLAN_HEADER_LEN: usize = 8;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tables::{Reach, VnetEntry, VtepEntry};
    use crate::worker::tests::{buf_of, worker_with};

    const OURS: [u8; 4] = [192, 0, 2, 1];
    const THEIRS: [u8; 4] = [192, 0, 2, 2];

    fn tables() -> Tables {
        let (source, ip) = (IpAddr::from(OURS), IpAddr::from(THEIRS));
        let reach = Reach::Pending;
        let vtep = VtepEntry { index: 0, ip, source, reach, changed_in: 1 };
        let vnet = VnetEntry {
            index: 0,
            id: "blue".parse().unwrap(),
            vni: Vni::new(100).unwrap(),
            flood: false,
            miss: culvert_model::Miss::Drop,
            gateways: Vec::new(),
            neighbours: Default::default(),
            macs: Default::default(),
            flood_vteps: Default::default(),
            local_ports: Default::default(),
            routes: None,
            routed_from: Vec::new(),
            ingress: Vec::new(),
            changed_in: 1,
        };
        Tables {
            vteps: Arc::new([Some(Arc::new(vtep))]),
            vtep_of_ip: [(ip, 0)].into_iter().collect(),
            vnets: Arc::new([Some(Arc::new(vnet))]),
            vnet_of_vni: Arc::new([(100, 0)].into_iter().collect()),
            ..Tables::default()
        }
    }

    /// A packet of ours as a router quotes it: IPv4, UDP, VXLAN and an inner Ethernet header.
    fn quoted() -> Vec<u8> {
        let mut quoted = vec![0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, 17, 0, 0];
        quoted.extend(OURS);
        quoted.extend(THEIRS);
        quoted.extend([0xc0, 1, 0x12, 0xb5, 5, 0xc8, 0xbe, 0xef]);
        quoted.extend([8, 0, 0, 0, 0, 0, 100, 0]);
        quoted.extend([2; 14]);
        quoted
    }

    /// A router's report that quotes such a packet.
    fn report(quoted: &[u8], mtu: u32) -> Vec<u8> {
        let repr = icmpv4::Repr { kind: 3, code: 4, rest: mtu };
        let mut message = vec![0; 256];
        let len = repr.emit(quoted, &mut message).unwrap();
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((len as u16 + 20).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 1, 0, 0, 203, 0, 113, 1]);
        frame.extend(OURS);
        let sum = culvert_wire::checksum::Sum::default().add(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(&message[..len]);
        frame
    }

    fn judged(quoted: &[u8], mtu: u32) -> Judgement {
        let frame = report(quoted, mtu);
        let pkt = Packet::parse(&frame, frame.len()).unwrap();
        judge(&tables(), &frame[34..], &frame, &pkt)
    }

    #[test]
    fn a_report_about_a_packet_of_ours_is_believed_however_much_it_quotes() {
        let believed = Judgement::Believe(IpAddr::from(THEIRS), 1400);
        assert_eq!(judged(&quoted(), 1400), believed);
        assert_eq!(judged(&quoted()[..28], 1400), believed, "what RFC 792 demands");
        assert_eq!(judged(&quoted()[..36], 1400), believed);
        for cut in 0..28 {
            assert_eq!(judged(&quoted()[..cut], 1400), Judgement::Forged, "cut to {cut}");
        }
    }

    #[test]
    fn a_report_about_a_packet_that_we_cannot_have_sent_is_not_believed() {
        let changes: [(&str, usize, u8); 10] = [
            ("options", 0, 0x46),
            ("a fragment", 7, 1),
            ("not UDP", 9, 6),
            ("another source", 15, 99),
            ("a VTEP without mappings", 19, 99),
            ("a source port that no flow has", 20, 0x40),
            ("another destination port", 23, 0xb6),
            ("lengths that do not agree", 25, 0),
            ("no VNI", 28, 0),
            ("a VNI of no vnet here", 34, 101),
        ];
        for (what, at, value) in changes {
            let mut quoted = quoted();
            quoted[at] = value;
            assert_eq!(judged(&quoted, 1400), Judgement::Forged, "{what}");
        }
        assert_eq!(judged(&quoted(), 1500), Judgement::Forged, "it fits that MTU");
        assert_eq!(judged(&quoted(), MIN_PMTU_V4 - 1), Judgement::Forged, "below the floor");
        assert_eq!(judged(&quoted(), 0), Judgement::Forged);
    }

    #[test]
    fn a_believed_report_that_the_control_thread_has_no_room_for_is_counted() {
        let mut worker = worker_with(tables(), 64);
        let buf = buf_of(&mut worker, &report(&quoted(), 1400));
        let pkt = Packet::parse(buf.head().data(), buf.len()).unwrap();
        worker.path_mtu_report(0, &buf, &pkt);
        let believed = Event::PathMtu { vtep: IpAddr::from(THEIRS), mtu: 1400 };
        assert_eq!(worker.shared.events.pop(), Some(believed.clone()));
        let lost = |worker: &Worker| {
            let counters = worker.counters.link(0);
            DropReason::ALL.iter().map(|reason| counters.dropped(*reason)).sum::<u64>()
        };
        assert_eq!(lost(&worker), 0);

        while worker.shared.events.push(believed.clone()).is_ok() {}
        worker.path_mtu_report(0, &buf, &pkt);
        assert_eq!(lost(&worker), 1);
        assert_eq!(worker.counters.link(0).dropped(DropReason::LostPathMtuReport), 1);
        worker.cache.free_buf(buf);
    }

    #[test]
    fn other_errors_are_no_reports_and_damaged_ones_neither() {
        assert_eq!(read_v4(&[]), None);
        let repr = icmpv4::Repr { kind: 3, code: 3, rest: 1400 };
        let mut message = vec![0; 256];
        let len = repr.emit(&quoted(), &mut message).unwrap();
        assert_eq!(read_v4(&message[..len]), None);
        let repr = icmpv4::Repr { kind: 3, code: 4, rest: 1400 };
        let len = repr.emit(&quoted(), &mut message).unwrap();
        assert!(matches!(read_v4(&message[..len]), Some(Some(_))));
        message[20] ^= 1;
        assert_eq!(read_v4(&message[..len]), None);
    }
}
