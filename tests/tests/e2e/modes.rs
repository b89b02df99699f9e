//! Modes of devices, ways to transmit, queues and workers, and ports that are blocked.

use std::net::IpAddr;
use std::time::Duration;

use culvert_tests::tools::{
    Capture, Datagrams, Iperf, RawSocket, ping, tcp_transfer, tshark_fields, udp_exchange,
};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Combo, Offloads, Peer, Topology, TopologySpec, checks, craft};

const MARK: &[u8] = b"may not pass a blocked port";

fn carries_mark(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|w| w == MARK)
}

/// What `culvert show` says in JSON.
fn shown(topology: &Topology, host: usize, what: &str) -> serde_json::Value {
    let ns = &topology.hosts[host].ns;
    let text = topology.dataplane(host).cli(ns, &["-o", "json", "show", what]).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn blocked(toml: &str, port: &str) -> String {
    let id = format!("id = \"{port}\"\n");
    assert!(toml.contains(&id));
    toml.replace(&id, &format!("{id}state = \"blocked\"\n"))
}

#[test]
fn nothing_passes_a_blocked_port_in_either_direction() {
    let mut spec = TopologySpec::quad(Combo::SIMPLE);
    spec.vnets[0].flood = true;
    let topology = spec.build();
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 0);
    let open = |at: usize| RawSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap();
    let sockets = [open(0), open(1), open(2)];
    topology.reconfigure(0, |toml| blocked(&toml, "t0"));
    let ports = shown(&topology, 0, "ports").to_string();
    assert!(ports.contains("\"blocked\""), "{ports}");

    // From it: to its own host, across, and to all; from both sides, and what is for all, to it.
    let mut broadcast = craft::between(&topology.tenants[1], &topology.tenants[0], false, 9, MARK);
    broadcast[..6].fill(0xff);
    for (from, to, frame) in [
        (0, 1, craft::between(&topology.tenants[0], &topology.tenants[1], false, 9, MARK)),
        (0, 2, craft::between(&topology.tenants[0], &topology.tenants[2], true, 9, MARK)),
        (1, 0, craft::between(&topology.tenants[1], &topology.tenants[0], false, 9, MARK)),
        (2, 0, craft::between(&topology.tenants[2], &topology.tenants[0], true, 9, MARK)),
        (1, 0, broadcast),
    ] {
        let before = topology.stats(0);
        sockets[to].drain().unwrap();
        (0..4).for_each(|_| sockets[from].send(&frame).unwrap());
        let quiet = Duration::from_millis(300);
        let passed = sockets[to].receive_matching(quiet, carries_mark).unwrap();
        assert!(passed.is_none(), "from {from} to {to}");
        // The tenant's own kernel may ask for its neighbours meanwhile.
        let moved = topology.stats(0).drops_since(&before);
        assert!(moved.get("port_blocked") >= Some(&4), "from {from} to {to}: {moved:?}");
    }
    // Not even its own host or the dataplane itself answers.
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    near.ns.run(&format!("ip neigh flush dev {TENANT_DEVICE}"));
    assert!(!ping(&near.ns, far.v4.into(), 1, 56).all_answered());
    assert!(near.ns.run("ip neigh").lines().all(|line| !line.contains("REACHABLE")));
    // Others go on, and so does it when it is no longer blocked.
    topology.wait_connected(2, 1);
    topology.reconfigure(0, |toml| toml);
    topology.wait_connected(0, 1);
}

#[test]
fn native_mode_works_from_end_to_end() {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.mode = ["native", "native"];
    let topology = spec.build();
    for host in 0..2 {
        for what in ["ports", "info"] {
            let said = shown(&topology, host, what).to_string();
            assert!(said.contains("\"native\"") && !said.contains("\"generic\""), "{said}");
        }
    }
    checks::exercise(&topology, 0, 1);
}

/// Applies `toml` on host A: it must be refused in the name of zero-copy on `device`, and nothing may change.
#[track_caller]
fn zero_copy_is_refused(topology: &Topology, toml: &str, device: &str) {
    let look = || ["ports", "info", "host"].map(|what| shown(topology, 0, what));
    let before = look();
    topology.dataplane(0).write_config(toml);
    let applied = topology.dataplane(0).try_apply(&topology.hosts[0].ns);
    let error = applied.expect_err("zero-copy on a veth was accepted");
    assert_eq!(error.code(), Some(1), "{error}");
    for word in [device, "zero-copy"] {
        assert!(error.stderr().contains(word), "no \"{word}\" in: {}", error.stderr());
    }
    assert_eq!(look(), before);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let report = udp_exchange(&a.ns, &b.ns, b.v4.into(), Datagrams::plain(100, 5)).unwrap();
    assert!(report.is_perfect(), "after the refusal for {device}: {report:?}");
}

#[test]
fn zero_copy_on_a_veth_is_refused_by_name() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    // Without the port of tenant 2, whose device is then free.
    topology.dataplane(0).write_config(&topology.host_toml_without(0, 2));
    topology.dataplane(0).apply(&topology.hosts[0].ns);
    let all = topology.host_toml(0);
    let (rest, third) = all.split_once("id = \"t2\"").unwrap();
    let third = third.replacen("mode = \"auto\"", "mode = \"zero-copy\"", 1);
    zero_copy_is_refused(&topology, &format!("{rest}id = \"t2\"{third}"), "t2");
}

#[test]
fn an_attached_device_that_lacks_the_mode_asked_for_keeps_the_one_it_has() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let underlay = good.replacen("mode = \"auto\"", "mode = \"zero-copy\"", 1);
    zero_copy_is_refused(&topology, &underlay, WIRE);
    let port = good.replace("\nmtu = 1500\nmode = \"auto\"", "\nmtu = 1500\nmode = \"zero-copy\"");
    zero_copy_is_refused(&topology, &port, "t0");
}

/// A tunnel device has neither zero-copy nor native XDP, and is none of the virtual devices that begin with generic mode.
#[test]
fn a_device_without_native_xdp_is_carried_in_generic_mode_and_the_refusals_are_shown() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Bare).build();
    for (host, [own, other]) in topology.hosts.iter().zip([[1, 2], [2, 1]]) {
        let run = |line: &str| host.ns.run(line);
        run(&format!("ip addr flush dev {WIRE}"));
        run(&format!("ip link set {WIRE} down"));
        run(&format!("ip link set {WIRE} name lower mtu 1700 up"));
        run(&format!("ip addr add 192.0.2.{own}/24 dev lower"));
        run(&format!(
            "ip link add {WIRE} mtu {} type vxlan id 7 dstport 8472 local 192.0.2.{own} remote 192.0.2.{other}",
            Combo::SIMPLE.underlay_mtu()
        ));
        run(&format!("ip link set {WIRE} up"));
        run(&format!("ip addr add {}/24 dev {WIRE}", host.vtep));
    }
    topology.start_culvert(0);
    topology.start_culvert(1);
    let info = shown(&topology, 0, "info");
    let underlay = &info["underlay"][0];
    assert_eq!(underlay["mode"], "generic", "{info}");
    let refused: Vec<_> = underlay["refusals"].as_array().unwrap().iter().collect();
    assert_eq!(refused.len(), 2, "{info}");
    for (refusal, mode) in refused.iter().zip(["zero-copy", "native"]) {
        assert_eq!(refusal["mode"], mode, "{info}");
        assert!(refusal["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{info}");
    }
    let log = topology.dataplane(0).log();
    for mode in ["zero-copy", "native"] {
        assert!(log.lines().any(|line| line.contains("refused") && line.contains(mode)), "{log}");
    }
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    tcp_transfer(&a.ns, &b.ns, b.v4.into(), 4 << 20).unwrap();
    let report = udp_exchange(&a.ns, &b.ns, b.v6.into(), Datagrams::gso(1000, 40, 20)).unwrap();
    assert!(report.is_perfect(), "{report:?}");
}

#[test]
fn an_underlay_of_several_queues_is_shared_by_two_workers() {
    for (mode, queues) in [("generic", 4), ("native", 2)] {
        let mut spec = TopologySpec::quad(Combo::SIMPLE);
        spec.mode = ["auto", mode];
        spec.wire_queues = queues;
        spec.dataplane_args = ["--workers", "2", "--cpus", "0,1"].map(str::to_owned).to_vec();
        let topology = spec.build();
        topology.wait_connected(0, 1);
        topology.wait_connected(2, 3);
        let info = shown(&topology, 0, "info");
        assert_eq!(info["underlay"][0]["queues"], queues, "{info}");
        for (from, to) in [(0, 1), (2, 3), (3, 0)] {
            let [a, b] = [&topology.tenants[from], &topology.tenants[to]];
            for dst in [IpAddr::from(b.v4), b.v6.into()] {
                tcp_transfer(&a.ns, &b.ns, dst, 4 << 20)
                    .unwrap_or_else(|e| panic!("{mode}, {queues} queues, {from} to {to}: {e}"));
            }
            let what = Datagrams::gso(1000, 40, 20);
            let report = udp_exchange(&a.ns, &b.ns, b.v4.into(), what).unwrap();
            assert!(report.is_perfect(), "{mode}, {queues} queues: {report:?}");
        }
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let many = Iperf { streams: 8, ..Iperf::tcp(1) };
        let report = many.run(&topology.scratch, &a.ns, &b.ns, b.v4.into()).unwrap();
        assert!(report.bits_per_second > 20e6, "{mode}, {queues} queues: {report:?}");
        let stats = topology.stats(1);
        for worker in 0..2 {
            let packets = &stats.value()["workers"][worker]["rx_packets"];
            assert!(packets.as_u64() > Some(0), "{mode}: worker {worker} got nothing: {stats:?}");
        }
        checks::arena_at_rest(&topology, 0, 16_384);
    }
}

#[test]
fn a_worker_that_polls_busily_never_sleeps() {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.dataplane_args = vec!["--busy-poll".to_owned()];
    let mut topology = spec.build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    tcp_transfer(&a.ns, &b.ns, b.v4.into(), 4 << 20).unwrap();
    let sleeps = |topology: &Topology| topology.stats(0).value()["workers"][0]["sleeps"].clone();
    assert_eq!(sleeps(&topology), 0);
    let process = topology.culvert[0].as_mut().unwrap().process();
    let before = process.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    // It yields to whoever else wants the core, but one that slept would use next to nothing.
    let used = process.cpu_time() - before;
    assert!(used >= Duration::from_millis(50), "a busy worker used {used:?} of a second");
}

/// The longest frame that host B's kernel gets while tenants send superframes, with this `tx`.
fn longest_on_the_wire(wire: Offloads, tx: &'static str) -> u32 {
    let kernel = Peer::Kernel { udp_csum: true };
    let combo = Combo { wire, ..Combo::SIMPLE };
    let mut spec = TopologySpec::pair(combo).with_peers(Peer::Culvert, kernel);
    spec.underlay_toml = tx;
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let capture = Capture::start(&topology.hosts[1].ns, &topology.scratch, WIRE, "udp port 4789");
    for dst in [IpAddr::from(b.v4), b.v6.into()] {
        tcp_transfer(&a.ns, &b.ns, dst, 4 << 20).unwrap_or_else(|e| panic!("{wire:?}, {tx}: {e}"));
        for what in [Datagrams::plain(1400, 10), Datagrams::gso(1000, 60, 20)] {
            let report = udp_exchange(&a.ns, &b.ns, dst, what).unwrap();
            assert!(report.is_perfect(), "{wire:?}, {tx}, {what:?}: {report:?}");
        }
    }
    let frames = tshark_fields(&capture.finish(), "", &["frame.len"]).unwrap();
    assert!(frames.len() > 50, "{} frames", frames.len());
    frames.iter().filter_map(|len| len.parse().ok()).max().unwrap_or(0)
}

#[test]
fn superframes_cross_uncut_only_where_tx_and_the_device_allow_it() {
    let wire_sized = Combo::SIMPLE.underlay_mtu() + 14;
    for (tx, uncut) in
        [("", true), ("tx = \"auto\"", true), ("tx = \"packet\"", true), ("tx = \"xdp\"", false)]
    {
        let longest = longest_on_the_wire(Offloads::On, tx);
        assert_eq!(longest > wire_sized, uncut, "{tx:?}: the longest frame has {longest} bytes");
    }
    for tx in ["tx = \"auto\"", "tx = \"packet\"", "tx = \"xdp\""] {
        let longest = longest_on_the_wire(Offloads::Off, tx);
        assert!(longest <= wire_sized, "{tx:?}: {longest} bytes on a wire that cuts nothing");
    }
}
