//! Culvert to Culvert, the simplest set-up: if this fails, look here first.

use std::time::Duration;

use culvert_tests::tools::{Capture, tcp_transfer, tshark_complaints, tshark_fields};
use culvert_tests::topology::WIRE;
use culvert_tests::{Combo, Family, Offloads, TopologySpec, checks};

#[test]
fn two_tenants_on_two_hosts_talk() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    checks::exercise(&topology, 0, 1);
    checks::exercise(
        &TopologySpec::pair(Combo { tenant: Family::V6, ..Combo::SIMPLE }).build(),
        0,
        1,
    );
}

#[test]
fn two_tenants_on_one_host_talk_without_the_wire() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.hosts[0].ns.run(&format!("ip link set {WIRE} down"));
    checks::exercise(&topology, 0, 2);
}

#[test]
fn what_crosses_the_wire_is_vxlan_without_a_fault() {
    for underlay in [Family::V4, Family::V6] {
        let combo = Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE };
        let mut spec = TopologySpec::pair(combo);
        spec.middle = true;
        let topology = spec.build();
        topology.wait_connected(0, 1);
        let middle = topology.middle.as_ref().unwrap();
        let capture = Capture::start(middle.ns(), &topology.scratch, "left", "udp port 4789");
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        for dst in [b.v4.into(), b.v6.into()] {
            tcp_transfer(&a.ns, &b.ns, dst, 500_000).unwrap();
        }
        let pcap = capture.finish();
        let complaints = tshark_complaints(&pcap).unwrap();
        assert!(complaints.is_empty(), "{complaints:#?}");
        let frames =
            tshark_fields(&pcap, "vxlan.vni == 100 && tcp", &["frame.len", "udp.srcport"]).unwrap();
        assert!(frames.len() > 300, "{} frames", frames.len());
        for frame in frames {
            let (len, port) = frame.split_once('\t').unwrap();
            assert!(len.parse::<u32>().unwrap() <= combo.underlay_mtu() + 14, "{frame}");
            // RFC 7348, section 5: the source port carries entropy and comes from the dynamic range.
            assert!(port.parse::<u16>().unwrap() >= 49_152, "{frame}");
        }
    }
}

#[test]
fn the_workers_of_an_idle_host_leave_the_processor_alone() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    std::thread::sleep(Duration::from_millis(500));
    let process = topology.culvert[0].as_mut().unwrap().process();
    let before = process.cpu_time();
    std::thread::sleep(Duration::from_secs(5));
    let used = process.cpu_time() - before;
    // 2 % of one core over five seconds.
    assert!(used <= Duration::from_millis(100), "an idle dataplane used {used:?} in 5 s");
}

#[test]
fn flows_cross_workers() {
    let mut spec = TopologySpec::quad(Combo::SIMPLE);
    spec.dataplane_args = ["--workers", "2", "--cpus", "0,1"].map(str::to_owned).to_vec();
    let topology = spec.build();
    for (from, to) in [(0, 1), (2, 3), (0, 3), (0, 2)] {
        topology.wait_connected(from, to);
        let [a, b] = [&topology.tenants[from], &topology.tenants[to]];
        tcp_transfer(&a.ns, &b.ns, topology.address(to), 2 << 20).unwrap();
    }
    // Of a host's three devices one worker has one and the other two, so each hands something over.
    for host in 0..2 {
        let stats = topology.stats(host);
        let workers = stats.value()["workers"].as_array().unwrap();
        assert_eq!(workers.len(), 2);
        for worker in workers {
            assert!(worker["handed_over"].as_u64() > Some(0), "host {host}: {workers:#?}");
        }
    }
}
