//! Path MTU that routers of the underlay report: which reports are believed.
//!
//! Anybody who can send to us can send an ICMP error. One is believed only if what it quotes can be
//! a packet of ours: from our address to a VTEP that we have mappings for, with a source port and
//! an identifier such as we use, and larger than the MTU that it is said to be too big for. Even
//! then it can be forged, so what it does is bounded: a floor, a time, and a rate.

use std::net::IpAddr;

use culvert_port::Buf;
use culvert_wire::packet::Packet;
use culvert_wire::path_mtu::{Reading, Report, read};

use super::Worker;
use super::device::Role;
use crate::drops::DropReason;
use crate::limits::{MIN_PMTU_V4, MIN_PMTU_V6};
use crate::shared::Event;
use crate::tables::{LinkIndex, Tables};

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
    match read(tables.formats(), message, head, pkt) {
        Reading::NotAReport => Judgement::NotAReport,
        Reading::OfTunnel(report) if is_ours(tables, &report) => {
            Judgement::Believe(report.vtep, report.mtu)
        }
        Reading::Foreign | Reading::OfTunnel(_) => Judgement::Forged,
    }
}

fn is_ours(tables: &Tables, report: &Report) -> bool {
    let vtep = tables.vtep_of(&report.vtep).and_then(|index| tables.vtep(index));
    let floor = if report.vtep.is_ipv4() { MIN_PMTU_V4 } else { MIN_PMTU_V6 };
    vtep.is_some_and(|vtep| vtep.source == report.source)
        && report.port_is_ours
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use culvert_wire::icmpv4;
    use culvert_wire::vni::Vni;

    use super::*;
    use crate::tables::{Reach, VnetEntry, VtepEntry};
    use crate::worker::tests::{buf_of, worker_with};

    const OURS: [u8; 4] = [192, 0, 2, 1];
    const THEIRS: [u8; 4] = [192, 0, 2, 2];

    fn tables() -> Tables {
        let (source, ip) = (IpAddr::from(OURS), IpAddr::from(THEIRS));
        let reach = Reach::Pending;
        let vtep =
            VtepEntry { index: 0, ip, source, format: None, raise_mss: None, reach, changed_in: 1 };
        let vnet = VnetEntry {
            index: 0,
            id: "blue".parse().unwrap(),
            vni: Vni::new(100).unwrap(),
            format: culvert_wire::format::FormatIndex::VXLAN,
            raise_mss: false,
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
        let frame = report(&quoted(), 1400);
        let pkt = Packet::parse(&frame, frame.len()).unwrap();
        let judged = |message: &[u8]| judge(&tables(), message, &frame, &pkt);
        assert_eq!(judged(&[]), Judgement::NotAReport);
        let repr = icmpv4::Repr { kind: 3, code: 3, rest: 1400 };
        let mut message = vec![0; 256];
        let len = repr.emit(&quoted(), &mut message).unwrap();
        assert_eq!(judged(&message[..len]), Judgement::NotAReport);
        assert!(matches!(judged(&frame[34..]), Judgement::Believe(..)));
        let mut damaged = frame[34..].to_vec();
        damaged[20] ^= 1;
        assert_eq!(judged(&damaged), Judgement::NotAReport);
    }
}
