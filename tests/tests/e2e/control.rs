//! culvertd over a running dataplane: each of the two dies, and traffic does not care.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use culvert_model::{Edit, PortId, host_toml};
use culvert_tests::control::Culvertd;
use culvert_tests::tools::{Datagrams, Iperf, ping, udp_exchange};
use culvert_tests::topology::Topology;
use culvert_tests::{Combo, TopologySpec, wait_until};

/// A pair of hosts of which the first has a culvertd that was given its state.
fn managed() -> (Topology, Culvertd) {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    let socket = topology.dataplane(0).socket().to_owned();
    let mut culvertd = Culvertd::new(&topology.scratch, "a", &socket, &[]);
    culvertd.start(&topology.hosts[0].ns, &topology.scratch);
    let done = culvertd.client().apply(&topology.host_toml(0)).unwrap();
    assert!(done.unapplied.is_empty(), "{:?}", done.unapplied);
    topology.wait_connected(0, 1);
    (topology, culvertd)
}

#[test]
fn no_packet_is_lost_while_culvertd_is_killed_and_started() {
    let (topology, mut culvertd) = managed();
    let [a, b] = [&topology.tenants[0].ns, &topology.tenants[1].ns];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let udp = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Relaxed) {
                let what = Datagrams::plain(1000, 200);
                let report = udp_exchange(a, b, topology.address(1), what).unwrap();
                assert!(report.is_perfect(), "{report:?}");
                sent += report.sent;
            }
            sent
        });
        let tcp = scope
            .spawn(|| Iperf::tcp(4).run(&topology.scratch, a, b, topology.address(1)).unwrap());
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(500));
            culvertd.process().kill();
            std::thread::sleep(Duration::from_millis(300));
            culvertd.start(&topology.hosts[0].ns, &topology.scratch);
        }
        let tcp = tcp.join().unwrap();
        stop.store(true, Relaxed);
        assert!(udp.join().unwrap() > 1000);
        assert!(tcp.bits_per_second > 1e6, "{tcp:?}");
    });
    // It knows what it knew, and gave the dataplane nothing anew.
    let info = culvertd.client().info();
    assert_eq!((info.pending, info.failed), (0, 0), "{info:?}");
    assert_eq!(info.dataplane.unwrap().replays, 0);
}

#[test]
fn a_killed_dataplane_is_back_with_its_state_within_a_second_of_its_start() {
    let (mut topology, culvertd) = managed();
    let (a, dst) = (topology.tenants[0].ns.name().to_owned(), topology.address(1));
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let Topology { culvert, hosts, scratch, .. } = &mut topology;
        let dataplane = culvert[0].as_mut().unwrap();
        dataplane.process().kill();
        let tenant = culvert_tests::Netns::open(&a);
        assert!(!ping(&tenant, dst, 1, 56).all_answered());
        dataplane.start(&hosts[0].ns, scratch, &[]);
        let started = Instant::now();
        // A lost one must not take the time of the next.
        let answered = || tenant.try_run(&format!("ping -c 1 -W 0.1 {dst}")).is_ok();
        assert!(
            wait_until(Duration::from_secs(1), answered),
            "no traffic a second after the start: {:?}",
            culvertd.client().info()
        );
        slowest = slowest.max(started.elapsed());
    }
    println!("traffic runs {} ms after the dataplane's start at the latest", slowest.as_millis());
    let info = culvertd.client().info();
    assert_eq!(info.dataplane.unwrap().replays, 3);
}

#[test]
fn a_port_whose_device_is_missing_does_not_keep_others_out() {
    let (topology, culvertd) = managed();
    let host = host_toml::read(&topology.host_toml(0)).unwrap();
    let mut missing = host.ports().iter().next().unwrap().clone();
    missing.id = PortId::new("missing").unwrap();
    missing.attach =
        culvert_model::Attach::Xdp { ifname: culvert_model::IfName::new("not-there").unwrap() };
    missing.mac = culvert_model::MacAddr([2, 0, 0, 0, 0, 0x77]);
    missing.ips = vec!["10.77.1.77".parse().unwrap()];
    let mut raised = host.ports().iter().next().unwrap().clone();
    raised.mtu = None;
    let mut client = culvertd.client();
    let done = client.edit(&[Edit::PutPort(missing), Edit::PutPort(raised)], 10_000).unwrap();
    assert_eq!(done.unapplied.len(), 1, "{:?}", done.unapplied);
    assert!(done.unapplied[0].reason.contains("not-there"), "{:?}", done.unapplied);
    assert!(ping(&topology.tenants[0].ns, topology.address(1), 2, 56).all_answered());
    let info = client.info();
    assert_eq!((info.pending, info.failed), (0, 1), "{info:?}");
    // When the device is there, the port is.
    let ns = &topology.hosts[0].ns;
    ns.run("ip link add not-there numtxqueues 1 numrxqueues 1 type veth peer name its-peer numtxqueues 1 numrxqueues 1");
    ns.run("ip link set not-there up");
    assert!(wait_until(Duration::from_secs(10), || client.info().failed == 0));
}
