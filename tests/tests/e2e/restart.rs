//! A dataplane that dies, comes back, or loses a port, under load.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use culvert_tests::tools::{Datagrams, RawSocket, ping, tcp_transfer, udp_exchange};
use culvert_tests::topology::{Topology, WIRE};
use culvert_tests::{Combo, Netns, Peer, TopologySpec, wait_until};

fn is_tunnel(frame: &[u8]) -> bool {
    // IPv4, UDP, destination port 4789.
    frame.get(12..14) == Some(&[8, 0])
        && frame.get(23) == Some(&17)
        && frame.get(36..38) == Some(&4789u16.to_be_bytes())
}

/// Counts frames that reach the stack of host A: from its tenant, and of the tunnel.
struct Leaks {
    tenant: RawSocket,
    wire: RawSocket,
}

impl Leaks {
    fn watch(host: &Netns, port: &str) -> Self {
        let open = |device| RawSocket::open(host, device).unwrap();
        Self { tenant: open(port), wire: open(WIRE) }
    }

    fn seen(&self, time: Duration) -> (bool, bool) {
        let tenant = self.tenant.receive(time).unwrap().is_some();
        let tunnel = self.wire.receive_matching(time, is_tunnel).unwrap().is_some();
        (tenant, tunnel)
    }
}

/// Runs `action` while tenant 0 keeps sending to tenant 1, TCP at full speed; every transfer must come out right.
fn under_load(topology: &mut Topology, action: impl FnOnce(&mut Topology)) {
    let stop = AtomicBool::new(false);
    let transfers = std::sync::atomic::AtomicUsize::new(0);
    // Descriptors of the two namespaces, since the action needs the topology itself.
    let dst = topology.address(1);
    let names = [0, 1].map(|i| topology.tenants[i].ns.name().to_owned());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let [a, b] = names.each_ref().map(|name| Netns::open(name));
            while !stop.load(Relaxed) {
                tcp_transfer(&a, &b, dst, 20 << 20).unwrap_or_else(|e| panic!("under load: {e}"));
                transfers.fetch_add(1, Relaxed);
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| action(topology)));
        stop.store(true, Relaxed);
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(transfers.into_inner() > 0);
}

#[test]
fn without_a_dataplane_ever_frames_do_reach_the_host() {
    // The control of the next test: what it looks for can be seen.
    let topology = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Culvert).build();
    let leaks = Leaks::watch(&topology.hosts[0].ns, &topology.tenants[0].port);
    ping(&topology.tenants[0].ns, topology.address(1), 1, 56);
    ping(&topology.tenants[1].ns, topology.address(0), 2, 56);
    assert_eq!(leaks.seen(Duration::from_secs(1)), (true, true));
}

#[test]
fn a_killed_dataplane_leaks_nothing_and_a_new_one_recovers_by_itself() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    under_load(&mut topology, |topology| {
        let leaks = Leaks::watch(&topology.hosts[0].ns, &topology.tenants[0].port);
        topology.culvert[0].as_mut().unwrap().process().kill();
        assert_eq!(leaks.seen(Duration::from_secs(2)), (false, false), "(tenant, tunnel) leaked");
        topology.start_culvert(0);
        assert_eq!(leaks.seen(Duration::from_millis(500)), (false, false), "leaked at the restart");
    });
    topology.wait_connected(0, 1);
    topology.wait_connected(1, 0);
}

#[test]
fn a_dataplane_can_be_killed_again_and_again() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    for _ in 0..4 {
        topology.wait_connected(0, 1);
        for host in 0..2 {
            topology.culvert[host].as_mut().unwrap().process().kill();
            topology.start_culvert(host);
        }
    }
    topology.wait_connected(0, 1);
}

#[test]
fn a_dataplane_that_is_asked_to_stop_ends_soon_and_cleanly() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let process = topology.culvert[0].as_mut().unwrap().process();
    let status = process.stop(Duration::from_secs(5));
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
}

#[test]
fn removing_and_adding_a_port_drops_nothing_of_others() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 3);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Relaxed) {
                for (from, to) in [(0, 1), (1, 0)] {
                    let [a, b] = [&topology.tenants[from], &topology.tenants[to]];
                    let what = Datagrams::plain(1000, 200);
                    let report = udp_exchange(&a.ns, &b.ns, topology.address(to), what).unwrap();
                    assert!(report.is_perfect(), "{from} to {to}: {report:?}");
                    sent += report.sent;
                }
            }
            sent
        });
        let host = &topology.hosts[0].ns;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(300));
            topology.dataplane(0).write_config(&topology.host_toml_without(0, 2));
            topology.dataplane(0).apply(host);
            assert!(!ping(&topology.tenants[2].ns, topology.address(3), 1, 56).all_answered());
            topology.dataplane(0).write_config(&topology.host_toml(0));
            topology.dataplane(0).apply(host);
            let back = || ping(&topology.tenants[2].ns, topology.address(3), 1, 56).all_answered();
            assert!(wait_until(Duration::from_secs(10), back), "the port did not come back");
        }
        stop.store(true, Relaxed);
        let sent = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(sent > 1000, "{sent} datagrams are no load");
    });
}

#[test]
fn applying_the_same_state_again_is_not_felt() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            udp_exchange(&a.ns, &b.ns, topology.address(1), Datagrams::plain(700, 3000)).unwrap()
        });
        for _ in 0..10 {
            topology.dataplane(0).apply(&topology.hosts[0].ns);
        }
        let report = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(report.is_perfect(), "{report:?}");
    });
}
