//! An underlay that receives by packet sockets.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use culvert_tests::stats::Stats;
use culvert_tests::tools::{ping, tcp_transfer};
use culvert_tests::topology::{Topology, WIRE};
use culvert_tests::{Combo, Family, Netns, Offloads, Peer, TopologySpec, checks, wait_until};

const PACKET: &str = "rx = \"packet\"";

/// Bytes around a tenant's packet in any format.
const ROOM: u32 = 120;

fn pair(combo: Combo) -> TopologySpec {
    let mut spec = TopologySpec::pair(combo);
    spec.underlay_toml = PACKET;
    spec
}

/// The mode of a host's end of the wire.
fn mode(topology: &Topology, host: usize) -> String {
    let ns = &topology.hosts[host].ns;
    let info = topology.dataplane(host).cli(ns, &["-o", "json", "show", "info"]).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let device = info["underlay"].as_array().unwrap().iter().find(|d| d["interface"] == WIRE);
    device.unwrap()["mode"].as_str().unwrap().to_owned()
}

/// Frames of shards that a host got with every segment.
fn whole_frames(topology: &Topology, host: usize) -> u64 {
    let ns = &topology.hosts[host].ns;
    let lines = topology.dataplane(host).cli(ns, &["-o", "json", "show", "shards"]).unwrap();
    let lines: serde_json::Value = serde_json::from_str(&lines).unwrap();
    lines.as_array().unwrap().iter().filter_map(|line| line["whole"].as_u64()).sum()
}

/// Whether a drop reason says that what came was wrong, and not merely that something did not come.
fn is_fault(reason: &str) -> bool {
    let losses = ["shard_evicted", "shard_timed_out"];
    reason == "bad_tunnel_header" || reason.starts_with("shard_") && !losses.contains(&reason)
}

/// Whether a device runs an XDP program.
fn has_xdp(ns: &Netns) -> bool {
    ns.run(&format!("ip link show {WIRE}")).contains("xdp")
}

/// Datagrams that the host's own stack got and nobody there wanted.
fn unwanted_datagrams(ns: &Netns) -> u64 {
    let text = ns.run("cat /proc/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let [names, values] = [lines.next().unwrap(), lines.next().unwrap()];
    let at = names.split_whitespace().position(|name| name == "NoPorts").unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

#[test]
fn packet_sockets_carry_all_that_rings_do() {
    for (format, underlay, wire, queues) in [
        ("vxlan", Family::V4, Offloads::On, 1),
        ("vxlan", Family::V6, Offloads::Off, 2),
        ("geneve", Family::V6, Offloads::On, 1),
        ("stt", Family::V4, Offloads::Off, 2),
        ("stt", Family::V6, Offloads::On, 1),
        ("shard", Family::V4, Offloads::Off, 2),
        ("shard", Family::V6, Offloads::On, 1),
    ] {
        let mut spec = pair(Combo { underlay, wire, ..Combo::SIMPLE });
        spec.vnet_toml = match format {
            "vxlan" => "",
            "geneve" => "format = \"geneve\"",
            "shard" => "format = \"shard\"",
            _ => "format = \"stt\"",
        };
        spec.wire_queues = queues;
        let topology = spec.build();
        topology.widen_wire(ROOM);
        topology.settle();
        assert_eq!(mode(&topology, 0), "packet", "{format}");
        checks::exercise(&topology, 0, 1);
        for host in &topology.hosts {
            assert!(!has_xdp(&host.ns), "{format}");
            assert_eq!(unwanted_datagrams(&host.ns), 0, "{format}: the host got tunnel packets");
        }
    }
}

#[test]
fn without_a_dataplane_ever_the_host_does_get_tunnel_packets() {
    // The control of the others: what they look for can be seen.
    let topology = pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Culvert).build();
    ping(&topology.tenants[1].ns, topology.address(0), 2, 56);
    assert!(unwanted_datagrams(&topology.hosts[0].ns) > 0);
}

/// Runs `action` while tenant 0 keeps sending to tenant 1 by TCP; every transfer must come out right.
fn under_load(topology: &mut Topology, action: impl FnOnce(&mut Topology)) {
    let stop = AtomicBool::new(false);
    let dst = topology.address(1);
    let names = [0, 1].map(|at| topology.tenants[at].ns.name().to_owned());
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let [a, b] = names.each_ref().map(|name| Netns::open(name));
            let mut transfers = 0;
            while !stop.load(Relaxed) {
                tcp_transfer(&a, &b, dst, 10 << 20).unwrap_or_else(|e| panic!("under load: {e}"));
                transfers += 1;
            }
            transfers
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| action(topology)));
        stop.store(true, Relaxed);
        let transfers = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(transfers > 0);
    });
}

#[test]
fn a_device_goes_from_rings_to_packet_sockets_and_back_under_load() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let with_packet =
        |toml: String| toml.replacen("[underlay]\n", "[underlay]\nrx = \"packet\"\n", 1);
    under_load(&mut topology, |topology| {
        for _ in 0..4 {
            topology.reconfigure(1, with_packet);
            assert_eq!(
                (mode(topology, 1).as_str(), has_xdp(&topology.hosts[1].ns)),
                ("packet", false)
            );
            std::thread::sleep(Duration::from_millis(300));
            topology.reconfigure(1, |toml| toml);
            assert_eq!(
                (mode(topology, 1).as_str(), has_xdp(&topology.hosts[1].ns)),
                ("generic", true)
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    assert_eq!(unwanted_datagrams(&topology.hosts[1].ns), 0, "the host got tunnel packets");
    // Rings are there again for what only they do.
    topology.reconfigure(1, |toml| toml.replacen("[underlay]\n", "[underlay]\ntx = \"xdp\"\n", 1));
    topology.wait_connected(0, 1);
}

#[test]
fn a_killed_dataplane_leaves_the_host_closed_to_tunnel_packets_and_open_to_its_own() {
    let mut topology = pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    under_load(&mut topology, |topology| {
        topology.culvert[1].as_mut().unwrap().process().kill();
        std::thread::sleep(Duration::from_secs(1));
        let [a, b] = [&topology.hosts[0], &topology.hosts[1]];
        assert!(ping(&a.ns, b.vtep, 2, 56).all_answered(), "the host's own");
        topology.start_culvert(1);
    });
    assert_eq!(unwanted_datagrams(&topology.hosts[1].ns), 0, "the host got tunnel packets");
    assert_eq!(mode(&topology, 1), "packet");
    topology.wait_connected(0, 1);
    topology.wait_connected(1, 0);
    // Stopped for good, with what it left taken away, the host has all.
    topology.reconfigure(1, |toml| toml.replace(PACKET, ""));
    assert!(has_xdp(&topology.hosts[1].ns));
    topology.wait_connected(0, 1);
}

#[test]
fn what_the_kernel_coalesced_arrives_as_one() {
    for format in ["stt", "shard"] {
        let mut spec = pair(Combo { wire: Offloads::Off, ..Combo::SIMPLE });
        spec.vnet_toml = match format {
            "shard" => "format = \"shard\"",
            _ => "format = \"stt\"",
        };
        let topology = spec.build();
        topology.widen_wire(ROOM);
        topology.hosts[1].ns.run(&format!("ethtool -K {WIRE} gro on"));
        topology.settle();
        let received = |stats: &Stats| stats.kernel(WIRE, "rx_packets").unwrap();
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let (before, whole) = (topology.stats(1), whole_frames(&topology, 1));
        let bytes = 16 << 20;
        tcp_transfer(&a.ns, &b.ns, topology.address(1), bytes).unwrap();
        let (after, whole) = (topology.stats(1), whole_frames(&topology, 1) - whole);
        let packets = received(&after) - received(&before);
        // None is longer than the wire's MTU, so there are as many at least.
        let segments = bytes as u64 / 1620;
        let few = packets > 0 && packets < segments / 3;
        assert!(few, "{format}: {packets} packets of {segments} segments");
        let mut faults = after.drops_since(&before);
        faults.retain(|reason, _| is_fault(reason));
        assert!(faults.is_empty(), "{format}: {faults:?}");
        // A frame has 64 KB at most.
        assert_eq!(whole > 100, format == "shard", "{format}: {whole} frames came whole");
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let host = &topology.hosts[0].ns;
    let good = topology.host_toml(0);
    let both = good.replacen("[underlay]\n", "[underlay]\nrx = \"packet\"\ntx = \"xdp\"\n", 1);
    let apply = |toml: &str| {
        topology.dataplane(0).write_config(toml);
        topology.dataplane(0).try_apply(host).map_err(|error| error.to_string())
    };
    let error = apply(&both).expect_err("no rings, and only rings");
    for word in ["underlay", "tx", "\"xdp\"", "auto or packet where rx is packet"] {
        assert!(error.contains(word), "no {word} in: {error}");
    }
    let error = apply(&good.replacen("[underlay]\n", "[underlay]\nrx = \"ring\"\n", 1))
        .expect_err("no such way");
    assert!(error.contains("legal is xdp, packet"), "{error}");
    assert_eq!(mode(&topology, 0), "generic");
    assert!(wait_until(Duration::from_secs(5), || {
        ping(&topology.tenants[0].ns, topology.address(1), 1, 56).all_answered()
    }));
}
