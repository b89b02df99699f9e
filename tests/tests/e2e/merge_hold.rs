//! Segments that wait for the next of their flow beyond the batch that they came in.

use std::time::{Duration, Instant};

use culvert_tests::segment::Segment;
use culvert_tests::tools::{RawSocket, tcp_transfer};
use culvert_tests::topology::{TENANT_DEVICE, Topology};
use culvert_tests::{Combo, TopologySpec};

// An idle socket has room for 64 frames.
const SEGMENTS: usize = 20;
const LEN: usize = 500;

fn topology(hold: &'static str) -> Topology {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.underlay_toml = hold;
    let topology = spec.build();
    topology.wait_connected(0, 1);
    topology
}

/// Sends segments of two flows in turn, one at a time, and returns the frames that arrive of each: their lengths.
fn trickle(topology: &Topology) -> [Vec<usize>; 2] {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let sender = RawSocket::open(&a.ns, TENANT_DEVICE).unwrap();
    let receiver = RawSocket::open(&b.ns, TENANT_DEVICE).unwrap();
    let mut flows = [4000, 5000].map(|port| {
        let base = Segment::between(a, b, false, 7000, vec![port as u8; LEN]);
        Segment { ports: [port, 9], ..base }
    });
    for _ in 0..SEGMENTS {
        for segment in &mut flows {
            sender.send(&segment.frame()).unwrap();
            *segment = segment.next(segment.payload.clone());
        }
        let sent = Instant::now();
        while sent.elapsed() < Duration::from_micros(40) {
            std::hint::spin_loop();
        }
    }
    let headers = flows[0].headers_len();
    let mut seen = [Vec::new(), Vec::new()];
    let is_ours = |frame: &[u8]| frame.get(36..38) == Some(&[0, 9]) && frame.get(23) == Some(&6);
    let mut bytes = [0, 0];
    while bytes != [SEGMENTS * LEN; 2] {
        let frame = receiver.receive_matching(Duration::from_secs(5), is_ours).unwrap();
        let frame = frame.unwrap_or_else(|| {
            let drops = [0, 1].map(|host| topology.stats(host).drops());
            panic!("{bytes:?} bytes of {seen:?}; drops: {drops:?}")
        });
        let flow = usize::from(frame[34..36] == 5000_u16.to_be_bytes());
        seen[flow].push(frame.len());
        bytes[flow] += frame.len() - headers;
    }
    seen
}

#[test]
fn segments_that_come_one_by_one_are_merged_where_they_may_wait() {
    let held = trickle(&topology("merge_hold_us = 1000"));
    let frames = held[0].len() + held[1].len();
    assert!(frames <= SEGMENTS, "two flows of {SEGMENTS} segments came as {held:?}");
    assert!(held.iter().all(|flow| flow.len() < SEGMENTS / 2), "{held:?}");
}

#[test]
fn nothing_waits_longer_than_it_may_and_no_order_is_lost() {
    let topology = topology("merge_hold_us = 1000");
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let sender = RawSocket::open(&a.ns, TENANT_DEVICE).unwrap();
    let receiver = RawSocket::open(&b.ns, TENANT_DEVICE).unwrap();
    let is_ours = |frame: &[u8]| frame.get(36..38) == Some(&[0, 9]) && frame.get(23) == Some(&6);
    let mut waits = Vec::new();
    for n in 0..20 {
        let base = Segment::between(a, b, false, 7000, vec![n; LEN]);
        let segment = Segment { ports: [4000 + u16::from(n), 9], ..base };
        let sent = Instant::now();
        sender.send(&segment.frame()).unwrap();
        assert!(receiver.receive_matching(Duration::from_secs(5), is_ours).unwrap().is_some());
        waits.push(sent.elapsed());
    }
    waits.sort();
    // A machine that does something else for a moment delays some of them.
    assert!(waits[5] < Duration::from_millis(20), "one segment alone: {waits:?}");
    for (from, to) in [(0, 1), (1, 0)] {
        let [from, to] = [from, to].map(|at| &topology.tenants[at]);
        tcp_transfer(&from.ns, &to.ns, to.v4.into(), 16 << 20).unwrap();
        tcp_transfer(&from.ns, &to.ns, to.v6.into(), 4 << 20).unwrap();
    }
}

#[test]
fn a_wait_that_is_too_long_is_refused() {
    let topology = topology("");
    let toml =
        topology.host_toml(0).replacen("[underlay]\n", "[underlay]\nmerge_hold_us = 1001\n", 1);
    topology.dataplane(0).write_config(&toml);
    let error = topology.dataplane(0).try_apply(&topology.hosts[0].ns).expect_err("1001");
    assert!(
        error.stderr().contains("merge_hold_us 1001: out of range; legal is 0 to 1000"),
        "{error}"
    );
    topology.wait_connected(0, 1);
}
