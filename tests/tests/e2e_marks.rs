//! What of a tenant's IP header shows outside, and what of the outer one is taken over: ECN, DSCP, TTL.

use std::time::Duration;

use culvert_tests::tools::{RawSocket, tcp_transfer};
use culvert_tests::topology::{TENANT_DEVICE, Topology, WIRE};
use culvert_tests::{Combo, Family, Peer, TopologySpec, checks, craft, view, wait_until};

const MARK: &[u8] = b"marked";
/// For what must come, and for what must not.
const PATIENCE: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(300);

const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;
/// Expedited forwarding, in its place above the ECN bits.
const EF: u8 = 46 << 2;

fn carries_mark(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|w| w == MARK)
}

/// Host A runs Culvert; host B is played by the test.
struct Ends {
    topology: Topology,
    tenant: RawSocket,
    wire: RawSocket,
}

impl Ends {
    fn new(underlay: Family) -> Self {
        let combo = Combo { underlay, ..Combo::SIMPLE };
        let topology = TopologySpec::pair(combo).with_peers(Peer::Culvert, Peer::Bare).build();
        let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
        let ends = Self { topology, tenant, wire };
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        let frame = craft::between(near, far, false, 9, MARK);
        let there = || ends.sent_out(SHORT, &frame).is_some();
        assert!(wait_until(Duration::from_secs(5), there), "no way at all");
        ends
    }

    /// What comes out on the wire for a tenant's frame.
    fn sent_out(&self, patience: Duration, frame: &[u8]) -> Option<view::Tunnelled> {
        self.wire.drain().unwrap();
        self.tenant.send(frame).unwrap();
        view::tunnelled(&self.wire.receive_matching(patience, carries_mark).unwrap()?)
    }

    /// What comes to the tenant for a frame on the wire.
    fn taken_in(&self, frame: &[u8], patience: Duration) -> Option<Vec<u8>> {
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

#[test]
fn congestion_marks_leave_the_tunnel_by_rfc_6040() {
    for underlay in [Family::V4, Family::V6] {
        let ends = Ends::new(underlay);
        let [near, far] = [&ends.topology.tenants[0], &ends.topology.tenants[1]];
        for ipv6 in [false, true] {
            for (inner, results) in AT_THE_EXIT {
                for (outer, result) in [NOT_ECT, ECT1, ECT0, CE].into_iter().zip(results) {
                    let what = format!("{underlay:?}, IPv6 {ipv6}, {inner} in {outer}");
                    let mut frame = craft::between(far, near, ipv6, 9, MARK);
                    craft::set_tos(&mut frame, EF | inner);
                    let mut tunnelled = craft::tunnelled(&ends.topology, 1, 100, &frame);
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
