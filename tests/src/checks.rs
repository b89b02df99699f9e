//! What every working overlay does, as one list of checks.

use std::net::IpAddr;
use std::time::Duration;

use crate::stats::Arena;
use crate::tools::{Amount, Datagrams, Iperf, ping, ping_df, tcp_transfer, udp_exchange};
use crate::topology::Topology;
use crate::{Family, lab, wait_until};

/// Bytes of IP and UDP or ICMP header in front of the payload.
fn headers_len(address: IpAddr) -> u32 {
    if address.is_ipv4() { 28 } else { 48 }
}

/// Sends everything that a tenant may send from tenant `from` to `to`, and back where that is another matter.
///
/// # Panics
/// At the first thing that does not arrive as it was sent.
#[track_caller]
pub fn exercise(topology: &Topology, from: usize, to: usize) {
    let combo = topology.spec.combo;
    topology.wait_connected(from, to);
    topology.wait_connected(to, from);
    for (from, to) in [(from, to), (to, from)] {
        pings(topology, from, to);
        datagrams(topology, from, to);
    }
    let [a, b] = [&topology.tenants[from], &topology.tenants[to]];
    let dst = topology.address(to);
    if let Err(e) = tcp_transfer(&a.ns, &b.ns, dst, 8 << 20) {
        panic!("{combo}: {from} to {to}: {e}");
    }
    // A guest of the lab is emulated, ten times slower.
    let bytes = if lab::inside() { 3 << 20 } else { 32 << 20 };
    for reverse in [false, true] {
        let stream = Iperf { reverse, amount: Amount::Bytes(bytes), ..Iperf::tcp(1) };
        match stream.run(&topology.scratch, &a.ns, &b.ns, dst) {
            Ok(report) => {
                assert!(report.bits_per_second > 20e6, "{combo}: reverse {reverse}: {report:?}");
            }
            Err(e) => panic!("{combo}: reverse {reverse}: {e}"),
        }
    }
    // A receiver that gets no processor for a moment loses what its socket cannot hold; a path that loses, loses always.
    let mbits = if lab::inside() { 5 } else { 50 };
    let len = combo.tenant_mtu - 100;
    let amount = Amount::Bytes(u64::from(len) * 200);
    let stream = Iperf { amount, ..Iperf::udp(1, len, mbits) };
    let mut reports = Vec::new();
    let whole = (0..3).any(|_| match stream.run(&topology.scratch, &a.ns, &b.ns, dst) {
        Ok(report) => {
            reports.push(report);
            report.packets > 50 && report.lost * 20 <= report.packets
        }
        Err(e) => panic!("{combo}: UDP: {e}"),
    });
    assert!(whole, "{combo}: more than one datagram in twenty lost, three times: {reports:?}");
}

#[track_caller]
fn pings(topology: &Topology, from: usize, to: usize) {
    let combo = topology.spec.combo;
    let ns = &topology.tenants[from].ns;
    let dst = topology.address(to);
    let full = combo.tenant_mtu - headers_len(dst);
    let exact = ping_df(ns, dst, 3, full);
    assert!(exact.all_answered(), "{combo}: {from} to {to}, exactly the MTU: {}", exact.output);
    // Larger than the MTU: the tenant's kernel sends fragments.
    let fragments = ping(ns, dst, 3, full + 1200);
    assert!(fragments.all_answered(), "{combo}: {from} to {to}, fragments: {}", fragments.output);
}

#[track_caller]
fn datagrams(topology: &Topology, from: usize, to: usize) {
    let combo = topology.spec.combo;
    let [a, b] = [&topology.tenants[from], &topology.tenants[to]];
    let dst = topology.address(to);
    let full = usize::try_from(combo.tenant_mtu - headers_len(dst)).unwrap_or(0);
    let mut list = vec![
        Datagrams::plain(0, 4),
        Datagrams::plain(1, 4),
        Datagrams::plain(64, 20),
        Datagrams::plain(full, 20),
        Datagrams::plain(full * 2, 4),
        Datagrams::gso(100, 64, 32),
        Datagrams::gso(1000, 60, 20),
        // The last datagram of a send is as large as the others, and the send nearly 64 KB.
        Datagrams::gso(full, 2 * (65_000 / full), 65_000 / full),
    ];
    if combo.tenant == Family::V4 {
        list.push(Datagrams { no_checksum: true, ..Datagrams::plain(500, 4) });
    }
    for what in list {
        match udp_exchange(&a.ns, &b.ns, dst, what) {
            Ok(report) => {
                assert!(report.is_perfect(), "{combo}: {from} to {to}: {what:?}: {report:?}");
            }
            Err(e) => panic!("{combo}: {from} to {to}: {what:?}: {e}"),
        }
    }
}

/// Runs `action` on a quiet host; then exactly `packets` packets must have been dropped there for `reason`.
///
/// # Panics
/// If the counter says anything else three seconds later.
#[track_caller]
pub fn counted(
    topology: &Topology,
    host: usize,
    reason: &str,
    packets: u64,
    action: impl FnOnce(),
) {
    let before = topology.stats(host);
    action();
    let mut moved = std::collections::BTreeMap::new();
    let mut count = 0;
    wait_until(Duration::from_secs(3), || {
        moved = topology.stats(host).drops_since(&before);
        count = moved.get(reason).copied().unwrap_or(0);
        count >= packets
    });
    assert!(count == packets, "{reason} moved by {count}, not by {packets}; all: {moved:?}");
}

/// Waits until the packet memory of `host` holds no more than `limit` frames and none is missing; returns its state.
///
/// # Panics
/// If that does not come within 20 seconds, or the dataplane does not report its memory.
#[track_caller]
pub fn arena_at_rest(topology: &Topology, host: usize, limit: u64) -> Arena {
    let read = || topology.dataplane(host).stats(&topology.hosts[host].ns).arena();
    let mut last = None;
    let whole = wait_until(Duration::from_secs(20), || {
        last = read();
        last.is_some_and(|arena| arena.free + arena.held == arena.chunks && arena.held <= limit)
    });
    match last {
        Some(arena) if whole => arena,
        Some(arena) => panic!("host {host} holds more than {limit} frames at rest: {arena:?}"),
        None => panic!("`culvert stats -o json` says nothing about the arena"),
    }
}
