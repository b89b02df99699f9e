//! What of a tenant's IP header shows outside, and what of the outer one is taken over: ECN, DSCP, TTL.

use std::time::Duration;

use culvert_tests::tools::{OffloadSocket, RawSocket, tcp_transfer};
use culvert_tests::topology::{TENANT_DEVICE, Topology, WIRE, mac_bytes};
use culvert_tests::{Combo, Family, Offloads, Peer, TopologySpec, checks, craft, view, wait_until};

pub(crate) const MARK: &[u8] = b"marked";
/// For what must come, and for what must not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
pub(crate) const SHORT: Duration = Duration::from_millis(300);

pub(crate) const NOT_ECT: u8 = 0;
pub(crate) const ECT1: u8 = 1;
pub(crate) const ECT0: u8 = 2;
pub(crate) const CE: u8 = 3;
/// Expedited forwarding, in its place above the ECN bits.
pub(crate) const EF: u8 = 46 << 2;

pub(crate) fn carries_mark(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|w| w == MARK)
}

/// Host A runs Culvert; host B is played by the test.
pub(crate) struct Ends {
    pub(crate) topology: Topology,
    pub(crate) tenant: RawSocket,
    pub(crate) wire: RawSocket,
}

impl Ends {
    fn new(underlay: Family) -> Self {
        Self::of(Combo { underlay, ..Combo::SIMPLE })
    }

    fn of(combo: Combo) -> Self {
        let ends = Self::on(TopologySpec::pair(combo));
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        let frame = craft::between(near, far, false, 9, MARK);
        let there = || ends.sent_out(SHORT, &frame).is_some();
        assert!(wait_until(Duration::from_secs(5), there), "no way at all");
        ends
    }

    /// The same, whether there is a way or not.
    pub(crate) fn on(spec: TopologySpec) -> Self {
        let topology = spec.with_peers(Peer::Culvert, Peer::Bare).build();
        let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
        Self { topology, tenant, wire }
    }

    /// What comes out on the wire for a tenant's frame.
    fn sent_out(&self, patience: Duration, frame: &[u8]) -> Option<view::Tunnelled> {
        self.wire.drain().unwrap();
        self.tenant.send(frame).unwrap();
        view::tunnelled(&self.wire.receive_matching(patience, carries_mark).unwrap()?)
    }

    /// What comes to the tenant for a frame on the wire.
    pub(crate) fn taken_in(&self, frame: &[u8], patience: Duration) -> Option<Vec<u8>> {
        self.tenant.drain().unwrap();
        self.wire.send(frame).unwrap();
        self.tenant.receive_matching(patience, carries_mark).unwrap()
    }
}

/// RFC 6040, figure 4: what leaves a tunnel, by what was inside and outside; `None` is a drop.
const AT_THE_EXIT: [(u8, [Option<u8>; 4]); 4] = [
    // Outer:      Not-ECT        ECT(1)         ECT(0)         CE
    (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
    (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
    (ECT0, [Some(ECT0), Some(ECT1), Some(ECT0), Some(CE)]),
    (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
];

/// Every mark of a frame in every mark of its outer header, which `tunnel` puts around it, comes out as RFC 6040 wants.
pub(crate) fn marks_at_the_exit(ends: &Ends, way: &str, tunnel: impl Fn(&[u8]) -> Vec<u8>) {
    let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
    for ipv6 in [false, true] {
        for (inner, results) in AT_THE_EXIT {
            for (outer, result) in [NOT_ECT, ECT1, ECT0, CE].into_iter().zip(results) {
                let what = format!("{way}, IPv6 {ipv6}, {inner} in {outer}");
                let mut frame = craft::between(far, near, ipv6, 9, MARK);
                craft::set_tos(&mut frame, EF | inner);
                let mut tunnelled = tunnel(&frame);
                // Another class outside: it stays there.
                craft::set_tos(&mut tunnelled, 10 << 2 | outer);
                let Some(ecn) = result else {
                    checks::counted(&ends.topology, 0, "ecn_drop", 1, || {
                        let got = ends.taken_in(&tunnelled, SHORT);
                        assert!(got.is_none(), "{what}: delivered");
                    });
                    continue;
                };
                let got = ends.taken_in(&tunnelled, PATIENCE);
                let got = got.unwrap_or_else(|| panic!("{what}: nothing came"));
                craft::set_tos(&mut frame, EF | ecn);
                assert_eq!(got, frame, "{what}: more than the mark changed, or less");
            }
        }
    }
}

#[test]
fn congestion_marks_leave_the_tunnel_by_rfc_6040() {
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::new(underlay);
        marks_at_the_exit(&ends, &format!("{underlay:?}"), |frame| {
            craft::tunnelled(&ends.topology, 1, 100, frame)
        });
    }
}

#[test]
fn class_and_mark_are_copied_outside_and_the_outer_ttl_is_our_own() {
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::new(underlay);
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        for ipv6 in [false, true] {
            for tos in [NOT_ECT, ECT1, ECT0, CE, EF | ECT0, 0xff] {
                for ttl in [1, 255] {
                    let what = format!("{underlay:?}, IPv6 {ipv6}, {tos:#x}, TTL {ttl}");
                    let mut frame = craft::between(near, far, ipv6, 9, MARK);
                    craft::set_tos(&mut frame, tos);
                    craft::set_ttl(&mut frame, ttl);
                    let seen = ends.sent_out(PATIENCE, &frame);
                    let seen = seen.unwrap_or_else(|| panic!("{what}: nothing came"));
                    assert_eq!(seen.inner, frame, "{what}: a switched frame was changed");
                    assert_eq!((seen.outer.tos, seen.outer.ttl), (tos, 64), "{what}");
                    assert!(seen.outer.df, "{what}: a tunnel packet may be fragmented");
                    assert!(view::payload_sum_is_right(&seen.outer), "{what}: outer checksum");
                }
            }
        }
    }
}

/// Every frame on `socket` that carries the mark, until none comes for a moment.
pub(crate) fn marked_frames(socket: &RawSocket, first: Duration) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut wait = first;
    while let Some(frame) = socket.receive_matching(wait, carries_mark).unwrap() {
        frames.push(frame);
        wait = SHORT;
    }
    frames
}

/// Several tunnel packets in one message, as another Culvert sends them where nothing cuts.
#[test]
fn a_mark_on_a_train_reaches_each_of_its_packets() {
    const COUNT: usize = 4;
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::new(underlay);
        let hosts = &ends.topology.hosts;
        let wire = OffloadSocket::open(&hosts[1].ns, WIRE).unwrap();
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        for (inner, results) in AT_THE_EXIT {
            for (outer, result) in [NOT_ECT, ECT1, ECT0, CE].into_iter().zip(results) {
                let what = format!("{underlay:?}, {inner} in {outer}");
                let mut frame = craft::between(far, near, false, 9, MARK);
                craft::set_tos(&mut frame, EF | inner);
                let segment = [&[8, 0, 0, 0, 0, 0, 100, 0][..], &frame].concat();
                let macs = [1, 0].map(|at: usize| mac_bytes(&hosts[at].wire_mac));
                let addresses = [hosts[1].vtep, hosts[0].vtep];
                let mut train = craft::udp(macs, addresses, [50_000, 4789], &segment.repeat(COUNT));
                let size = u16::try_from(segment.len()).unwrap();
                let header = craft::as_udp_superframe(&mut train, underlay == Family::V6, size);
                craft::set_tos(&mut train, outer);
                ends.tenant.drain().unwrap();
                let before = ends.topology.stats(0);
                wire.send(header, &train).unwrap();
                let Some(ecn) = result else {
                    assert!(marked_frames(&ends.tenant, SHORT).is_empty(), "{what}: delivered");
                    let moved = ends.topology.stats(0).drops_since(&before);
                    assert_eq!(moved.get("ecn_drop"), Some(&(COUNT as u64)), "{what}: {moved:?}");
                    continue;
                };
                // They may come as one superframe again.
                let got = marked_frames(&ends.tenant, PATIENCE);
                let got: Vec<_> = got.iter().map(|frame| view::ip(frame).unwrap()).collect();
                let payload: Vec<u8> = got.iter().flat_map(|ip| ip.payload[8..].to_vec()).collect();
                assert_eq!(payload, MARK.repeat(COUNT), "{what}");
                assert!(got.iter().all(|ip| ip.tos == EF | ecn), "{what}: {got:?}");
            }
        }
    }
}

#[test]
fn a_superframes_class_and_mark_are_on_every_tunnel_packet() {
    const SIZE: usize = 600;
    for wire in [Offloads::On, Offloads::Off] {
        let ends = Ends::of(Combo { wire, ..Combo::SIMPLE });
        let tenant = OffloadSocket::open(&ends.topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        for (ipv6, tos) in [(false, EF | ECT0), (true, EF | CE), (false, ECT1)] {
            let payload = [MARK, &vec![0; SIZE - MARK.len()]].concat().repeat(3);
            let mut frame = craft::between(near, far, ipv6, 9, &payload);
            let size = u16::try_from(SIZE).unwrap();
            let header = craft::as_udp_superframe(&mut frame, ipv6, size);
            craft::set_tos(&mut frame, tos);
            ends.wire.drain().unwrap();
            tenant.send(header, &frame).unwrap();
            let frames = marked_frames(&ends.wire, PATIENCE);
            // A train, or its three packets.
            assert_eq!(frames.len(), if wire == Offloads::On { 1 } else { 3 }, "IPv6 {ipv6}");
            for frame in frames {
                let seen = view::tunnelled(&frame).unwrap();
                let inner = view::ip(&seen.inner).unwrap();
                assert_eq!((seen.outer.tos, inner.tos, seen.outer.ttl), (tos, tos, 64));
            }
        }
    }
}

/// Superframes of a connection that negotiated ECN keep their marks, and what is cut or merged is still one stream.
#[test]
fn connections_with_ecn_work() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    for tenant in [a, b] {
        tenant.ns.sysctl("net/ipv4/tcp_ecn", "1");
    }
    for dst in [std::net::IpAddr::from(b.v4), b.v6.into()] {
        let before = marked(&topology);
        tcp_transfer(&a.ns, &b.ns, dst, 4 << 20).unwrap();
        assert!(marked(&topology) > before, "no packet of the connection was ECN-capable");
    }
}

/// ECN-capable packets that tenant 1's stack has received, both families.
fn marked(topology: &Topology) -> u64 {
    let text = topology.tenants[1].ns.run("nstat -asz IpExtInECT0Pkts Ip6InECT0Pkts");
    let value = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    text.lines().filter(|line| line.contains("ECT0")).filter_map(value).sum()
}
