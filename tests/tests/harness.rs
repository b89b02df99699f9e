//! The harness itself, proved with the kernel's own VXLAN on both hosts.

use std::time::Duration;

use culvert_tests::combo::{Attach, Combo, Family, Offloads};
use culvert_tests::culvert::binary;
use culvert_tests::process::run_command;
use culvert_tests::tools::{
    Capture, Datagrams, RawSocket, ping, ping_df, tcp_transfer, tshark_complaints, tshark_fields,
    udp_exchange,
};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Netns, Peer, Scratch, Topology, TopologySpec, checks, link, wait_until};

const KERNEL: Peer = Peer::Kernel { udp_csum: true };

fn kernel_pair(combo: Combo) -> Topology {
    TopologySpec::pair(combo).with_peers(KERNEL, KERNEL).build()
}

#[test]
fn a_namespace_goes_with_its_value_and_is_known_to_ip() {
    let ns = Netns::new("x");
    let name = ns.name().to_owned();
    let listed = || ns.run("ip netns list").contains(&name);
    assert!(listed());
    assert!(ns.run("ip -o link").lines().count() >= 1);
    let outside = Netns::new("y");
    drop(ns);
    assert!(!outside.run("ip netns list").contains(&name));
}

#[test]
fn what_a_killed_test_made_is_removed_all_the_same() {
    // The child makes a namespace and a BPF mount, says so, and is killed without a chance to clean up.
    if let Ok(file) = std::env::var("CULVERT_TEST_VICTIM") {
        let ns = Netns::new("victim");
        let mut scratch = Scratch::new();
        let bpffs = scratch.bpffs();
        std::fs::write(file, format!("{}\n{}\n", ns.name(), bpffs.display())).unwrap();
        std::thread::sleep(Duration::from_secs(30));
        return;
    }
    let scratch = Scratch::new();
    let said = scratch.file("said");
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "what_a_killed_test_made_is_removed_all_the_same", "--nocapture"]);
    command.env("CULVERT_TEST_VICTIM", &said);
    let mut victim = culvert_tests::Process::spawn(&scratch, "victim", command);
    let read = || std::fs::read_to_string(&said).unwrap_or_default();
    assert!(
        wait_until(Duration::from_secs(10), || read().lines().count() == 2),
        "{}",
        victim.log()
    );
    let text = read();
    let mut lines = text.lines();
    let netns = std::path::Path::new("/run/netns").join(lines.next().unwrap());
    let bpffs = lines.next().unwrap().to_owned();
    let mounted = || std::fs::read_to_string("/proc/mounts").unwrap().contains(&bpffs);
    assert!(netns.exists() && mounted());
    victim.kill();
    assert!(wait_until(Duration::from_secs(5), || !netns.exists() && !mounted()));
}

#[test]
fn a_child_in_a_namespace_dies_with_its_process_value() {
    let ns = Netns::new("x");
    let scratch = Scratch::new();
    let process = ns.spawn(&scratch, "sleep 60");
    let path = format!("/proc/{}", process.pid());
    assert!(std::path::Path::new(&path).exists());
    drop(process);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn kernel_vxlan_passes_all_the_checks_that_are_made_of_culvert() {
    for (underlay, tenant, wire) in
        [(Family::V4, Family::V4, Offloads::On), (Family::V6, Family::V6, Offloads::Off)]
    {
        let topology = kernel_pair(Combo { underlay, tenant, wire, ..Combo::SIMPLE });
        checks::exercise(&topology, 0, 1);
    }
}

#[test]
fn damage_in_the_middle_is_made_and_found() {
    let mut spec = TopologySpec::pair(Combo { wire: Offloads::Off, ..Combo::SIMPLE });
    spec.middle = true;
    let topology = spec.with_peers(KERNEL, KERNEL).build();
    topology.wait_connected(0, 1);
    let middle = topology.middle.as_ref().unwrap();
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    middle.damage_every(2);
    let sent = Datagrams::plain(1000, 8);
    let report = udp_exchange(&a.ns, &b.ns, topology.address(1), sent).unwrap();
    assert!(report.wrong == 0 && report.intact < 8, "{report:?}");
    assert!(middle.damaged() >= 2);
    middle.damage_every(50);
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 1_000_000).unwrap();
    middle.damage_every(0);
    assert!(udp_exchange(&a.ns, &b.ns, topology.address(1), sent).unwrap().is_perfect());
}

#[test]
fn every_combination_of_the_cover_is_a_working_topology() {
    for combo in Combo::cover(2, link::has_vlan_devices()) {
        // The kernel's side has no TAP tenants.
        let combo = Combo { attach: Attach::Veth, ..combo };
        let topology = kernel_pair(combo);
        topology.wait_connected(0, 1);
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let overhead = if combo.tenant == Family::V4 { 28 } else { 48 };
        let full = combo.tenant_mtu - overhead;
        let pong = ping_df(&a.ns, topology.address(1), 2, full);
        assert!(pong.all_answered(), "{combo}: {}", pong.output);
        assert!(!ping_df(&a.ns, topology.address(1), 1, full + 1).all_answered(), "{combo}");
        tcp_transfer(&a.ns, &b.ns, topology.address(1), 1_000_000)
            .unwrap_or_else(|e| panic!("{combo}: {e}"));
    }
}

#[test]
fn equal_addresses_in_two_vnets_are_two_tenants() {
    let topology = TopologySpec::twins(Combo::SIMPLE).with_peers(KERNEL, KERNEL).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 3);
    assert_eq!(topology.tenants[1].v4, topology.tenants[3].v4);
    topology.tenants[3].ns.run("ip link set eth0 down");
    assert!(!ping(&topology.tenants[2].ns, topology.address(3), 1, 56).all_answered());
    assert!(ping(&topology.tenants[0].ns, topology.address(1), 1, 56).all_answered());
}

#[test]
fn tshark_accepts_a_good_capture_and_names_a_bad_checksum() {
    let topology = kernel_pair(Combo { wire: Offloads::Off, ..Combo::SIMPLE });
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let host = &topology.hosts[1];
    let capture = Capture::start(&host.ns, &topology.scratch, WIRE, "udp port 4789");
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 200_000).unwrap();
    let pcap = capture.finish();
    let complaints = tshark_complaints(&pcap).unwrap();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let frames = tshark_fields(&pcap, "vxlan.vni == 100 && tcp", &["frame.len"]).unwrap();
    assert!(frames.len() > 100, "{frames:?}");
    let longest: u32 = frames.iter().map(|l| l.parse().unwrap()).max().unwrap();
    assert!(longest <= 1550 + 14, "a frame of {longest} bytes crossed a wire without offloads");

    let capture = Capture::start(&host.ns, &topology.scratch, WIRE, "udp port 9");
    let socket = RawSocket::open(&topology.hosts[0].ns, WIRE).unwrap();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0xcc, 0, 0, 0, 1], [2, 0xcc, 0, 0, 0, 2])
        .ipv4([198, 18, 0, 1], [198, 18, 0, 2], 64)
        .udp(9, 9)
        .write(&mut frame, b"data")
        .unwrap();
    *frame.last_mut().unwrap() ^= 1;
    socket.send(&frame).unwrap();
    let complaints = tshark_complaints(&capture.finish()).unwrap();
    assert!(complaints.iter().any(|c| c.contains("hecksum")), "{complaints:?}");
}

#[test]
fn with_offloads_on_superframes_cross_the_wire_uncut() {
    let topology = kernel_pair(Combo::SIMPLE);
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let capture = Capture::start(&topology.hosts[1].ns, &topology.scratch, WIRE, "udp port 4789");
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 4_000_000).unwrap();
    let frames = tshark_fields(&capture.finish(), "", &["frame.len"]).unwrap();
    let longest = frames.iter().filter_map(|l| l.parse::<u32>().ok()).max().unwrap();
    assert!(longest > 10_000, "the longest frame had {longest} bytes");
}

#[test]
fn a_raw_frame_arrives_as_it_was_sent() {
    let [a, b] = [Netns::new("a"), Netns::new("b")];
    link::veth(&a, TENANT_DEVICE, &b, TENANT_DEVICE, 1500);
    for ns in [&a, &b] {
        ns.run("ip link set eth0 up");
    }
    let [from, to] = [&a, &b].map(|ns| RawSocket::open(ns, TENANT_DEVICE).unwrap());
    let frame: Vec<u8> = (0..60).collect();
    from.send(&frame).unwrap();
    let got = to.receive_matching(Duration::from_secs(2), |f| f == frame).unwrap();
    assert_eq!(got, Some(frame));
}

#[test]
fn a_transfer_without_a_path_fails_instead_of_hanging() {
    // Two namespaces that nothing joins.
    let [a, b] = [Netns::new("a"), Netns::new("b")];
    let lost = tcp_transfer(&a, &b, "127.0.0.1".parse().unwrap(), 1000);
    assert!(lost.is_err());
}

#[test]
fn the_cli_finds_every_generated_configuration_valid() {
    let pair = TopologySpec::pair(Combo { underlay: Family::V6, ..Combo::SIMPLE });
    // TAP tenants are made by the dataplane: their port is described and no device needed for that.
    let tap = TopologySpec::pair(Combo { attach: Attach::Tap, tenant_mtu: 9000, ..Combo::SIMPLE });
    for spec in [pair, tap, TopologySpec::twins(Combo::SIMPLE), TopologySpec::quad(Combo::SIMPLE)] {
        let topology = spec.with_peers(Peer::Bare, Peer::Bare).build();
        for host in 0..2 {
            for left_out in [host, usize::MAX] {
                let toml = topology.host_toml_without(host, left_out);
                let path = topology.scratch.file("host.toml");
                std::fs::write(&path, &toml).unwrap();
                let mut command = std::process::Command::new(binary("culvert"));
                command.args(["apply", "--check", "-f"]).arg(&path);
                run_command(&mut command).unwrap_or_else(|e| panic!("{e}\n{toml}"));
            }
        }
    }
}
