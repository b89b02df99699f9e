//! Formats other than VXLAN between two hosts: built-in ones, and two that only a configuration knows.

use culvert_tests::format::{OVER_IP, OVER_UDP};
use culvert_tests::segment::Segment;
use culvert_tests::tools::{
    Capture, OffloadSocket, tcp_transfer, tshark_complaints, tshark_fields,
};
use culvert_tests::topology::{TENANT_DEVICE, Topology, WIRE, with_vnet_lines};
use culvert_tests::{Combo, Family, Offloads, TopologySpec, checks, craft, wait_until};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The text for a vnet of each format.
fn vnet_toml(format: &str) -> &'static str {
    match format {
        "vxlan" => "format = \"vxlan\"",
        "geneve" => "format = \"geneve\"",
        "stt" => "format = \"stt\"",
        "shard" => "format = \"shard\"",
        "acme" => "format = \"acme\"",
        "bare" => "format = \"bare\"",
        other => panic!("{other}"),
    }
}

/// Two hosts whose only vnet is in this format. The wire takes 100 bytes of outer headers.
fn topology(format: &str, combo: Combo, middle: bool) -> Topology {
    let mut spec = TopologySpec::pair(combo);
    spec.vnet_toml = vnet_toml(format);
    spec.extra_toml = [format!("{OVER_UDP}{OVER_IP}"), format!("{OVER_UDP}{OVER_IP}")];
    spec.middle = middle;
    let topology = spec.build();
    topology.widen_wire(100);
    topology.settle();
    topology
}

/// Everything that a tenant may send, in one format over both families of underlay and tenants, with and
/// without a wire that segments.
fn exercise(format: &str) {
    for (underlay, tenant, wire) in [
        (Family::V4, Family::V4, Offloads::On),
        (Family::V6, Family::V4, Offloads::Off),
        (Family::V4, Family::V6, Offloads::Off),
        (Family::V6, Family::V6, Offloads::On),
    ] {
        let topology = topology(format, Combo { underlay, tenant, wire, ..Combo::SIMPLE }, false);
        topology.wait_connected(0, 1);
        checks::exercise(&topology, 0, 1);
        assert_no_drops(&topology, format);
    }
}

/// Nothing was lost for a reason that a format brings with it.
fn assert_no_drops(topology: &Topology, format: &str) {
    for host in 0..2 {
        for reason in
            ["bad_tunnel_header", "bad_outer_checksum", "format_mismatch", "stream_contradiction"]
        {
            assert_eq!(drops(topology, host, reason), 0, "{format}: {reason} on host {host}");
        }
    }
}

fn drops(topology: &Topology, host: usize, reason: &str) -> u64 {
    topology.stats(host).dropped(reason)
}

#[test]
fn geneve_carries_everything() {
    exercise("geneve");
}

#[test]
fn stt_carries_everything() {
    exercise("stt");
}

#[test]
fn shard_carries_everything() {
    exercise("shard");
}

#[test]
fn a_format_over_udp_is_carried_by_configuration_alone() {
    exercise("acme");
}

#[test]
fn a_format_over_its_own_ip_protocol_is_carried_by_configuration_alone() {
    exercise("bare");
}

/// What crosses the wire while a tenant sends half a megabyte, each packet at most as long as its MTU.
fn captured(format: &str, underlay: Family) -> (Topology, PathBuf) {
    let combo = Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE };
    let topology = topology(format, combo, true);
    let middle = topology.middle.as_ref().unwrap();
    let capture = Capture::start(middle.ns(), &topology.scratch, "left", "");
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 500_000).unwrap();
    let pcap = capture.finish();
    for host in 0..2 {
        // A segment that this wire or an idle socket had no room for takes its frame along, which TCP sends again.
        for reason in ["stream_evicted", "stream_contradiction", "bad_tunnel_header"] {
            assert_eq!(drops(&topology, host, reason), 0, "{format}: {reason} on host {host}");
        }
    }
    (topology, pcap)
}

#[test]
fn tshark_reads_our_geneve_without_complaint() {
    for underlay in [Family::V4, Family::V6] {
        let (_topology, pcap) = captured("geneve", underlay);
        let complaints = tshark_complaints(&pcap).unwrap();
        assert!(complaints.is_empty(), "{complaints:#?}");
        let frames = tshark_fields(&pcap, "geneve.vni == 100 && tcp", &["frame.len"]).unwrap();
        assert!(frames.len() > 300, "{} frames", frames.len());
    }
}

/// tshark knows STT over IPv4 only, and looks for it only when told to.
#[test]
fn tshark_reads_our_stt_without_complaint() {
    let (_topology, pcap) = captured("stt", Family::V4);
    let tshark = |filter: &str, fields: &str| {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&pcap).args(["-n", "-T", "fields", "-Y", filter]);
        command.args(["-o", "ip.try_heuristic_first:TRUE", "-o", "stt.check_checksum:TRUE"]);
        let output = command.args(fields.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let segments = tshark("stt", "-e stt.pkt_len -e stt.seg_off");
    assert!(segments.len() > 300, "{} segments", segments.len());
    for segment in &segments {
        let values: Vec<u32> = segment.split('\t').map(|v| v.parse().unwrap()).collect();
        assert!(values[1] < values[0], "{segment}: beyond its frame");
    }
    let whole = tshark("stt.context_id == 100 && tcp", "-e stt.mss -e tcp.len");
    assert!(whole.iter().any(|frame| frame.starts_with("1448\t")), "{whole:?}");
    // tshark compares the checksum with the sum over a packet that has it, which is zero where it is right.
    let sums = tshark("stt.checksum_bad.expert", "-e _ws.expert.message");
    assert!(sums.iter().all(|sum| sum.contains("should be 0x0000")), "{sums:#?}");
    let complaints = tshark(
        "stt && (_ws.malformed || stt.version_unknown.expert || stt.data_offset_bad.expert \
         || stt.l4offset_bad.expert || stt.mss_bad.expert)",
        "-e frame.number -e _ws.expert.message",
    );
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn a_format_that_the_other_side_does_not_speak_is_counted_and_named() {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    // Both hosts use both formats, so that they take them from the underlay.
    let others = "\n[[vnet]]\nid = \"other\"\nvni = 7\nformat = \"geneve\"\n\
                  \n[[vnet]]\nid = \"third\"\nvni = 8\n";
    spec.extra_toml = [others.to_owned(), others.to_owned()];
    let topology = spec.build();
    topology.wait_connected(0, 1);
    topology.reconfigure(1, |toml| with_vnet_lines(&toml, "blue", "format = \"geneve\""));
    let ping = || {
        let dst = topology.address(1);
        topology.tenants[0].ns.try_run(&format!("ping -c 1 -W 1 {dst}"))
    };
    let counted = wait_until(Duration::from_secs(10), || {
        let _ = ping();
        drops(&topology, 1, "format_mismatch") > 0
    });
    assert!(counted, "{:?}", topology.stats(1).value());
    assert!(ping().is_err(), "a packet in another format was delivered");
    names_the_mismatch(&topology, "vnet blue", || drop(ping()));
}

/// On host 1, `blue`'s packets from host 0 come in VXLAN while Geneve is expected, as `by` says: trace and explanation
/// name both.
fn names_the_mismatch(topology: &Topology, by: &str, send: impl FnOnce()) {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let trace = traced(topology, 1, &["--underlay"], send);
    let frame = craft::tunnelled(topology, 0, 100, &craft::between(a, b, false, 9, b"hello"));
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let ns = &topology.hosts[1].ns;
    let explain = ["explain", "--device", WIRE, "--hex", &hex];
    // It exits as what it explains fares.
    let explained = match topology.dataplane(1).cli(ns, &explain) {
        Ok(text) => text,
        Err(error) => error.to_string(),
    };
    for text in [&trace, &explained] {
        for word in ["format geneve, not vxlan", by, "format_mismatch"] {
            assert!(text.contains(word), "no \"{word}\" in\n{text}");
        }
    }
}

/// Host addresses of a second pair of VTEPs.
fn second_vtep(host: usize) -> String {
    format!("fd18::{}", host + 1)
}

/// Two hosts with two pairs of VTEPs. `blue` lives behind those of IPv4, `green` behind those of IPv6; both vnets speak
/// VXLAN.
fn two_pairs() -> Topology {
    let mut spec = TopologySpec::twins(Combo { wire: Offloads::Off, ..Combo::SIMPLE });
    spec.vnet_toml = vnet_toml("vxlan");
    spec.middle = true;
    let topology = spec.build();
    topology.widen_wire(100);
    for (host, number) in topology.hosts.iter().zip([1, 2]) {
        for address in [second_vtep(number - 1), format!("fe80::{number}")] {
            host.ns.run(&format!("ip addr add {address}/64 dev {WIRE} nodad"));
        }
    }
    topology
}

/// The configuration of a host of [`two_pairs`], with more in the underlay's section.
fn with_two_pairs(topology: &Topology, host: usize, underlay: &str) -> String {
    let [near, far] = [host, 1 - host].map(|at| topology.hosts[at].vtep);
    let [near6, far6] = [host, 1 - host].map(second_vtep);
    let toml = topology.host_toml(host).replacen(
        &format!("addresses = [\"{near}\"]\n"),
        &format!("addresses = [\"{near}\", \"{near6}\"]\n{underlay}"),
        1,
    );
    let of_green = |part: &str| part.starts_with("vnet = \"green\"");
    let moved = |part: &str| match of_green(part) {
        true => part.replace(&format!("vtep = \"{far}\""), &format!("vtep = \"{far6}\"")),
        false => part.to_owned(),
    };
    let separator = "\n[[mapping]]\n";
    toml.split(separator).map(moved).collect::<Vec<_>>().join(separator)
}

#[test]
fn a_pair_of_vteps_speaks_its_own_format_beside_others_that_speak_their_vnets() {
    let topology = two_pairs();
    let peer = |host: usize| {
        let far = topology.hosts[1 - host].vtep;
        format!("peer = [{{ vtep = \"{far}\", format = \"geneve\" }}]\n")
    };
    for host in 0..2 {
        topology.reconfigure(host, |_| with_two_pairs(&topology, host, &peer(host)));
    }
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 3);
    let middle = topology.middle.as_ref().unwrap().ns();
    let captures = ["left", "right"].map(|end| {
        Capture::start(middle, &topology.scratch, end, "udp port 4789 or udp port 6081")
    });
    std::thread::scope(|scope| {
        for (a, b) in [(0, 1), (2, 3)] {
            let (topology, [a, b]) = (&topology, [a, b].map(|at| &topology.tenants[at]));
            scope.spawn(move || {
                for (from, to) in [(a, b), (b, a)] {
                    let dst = to.address(topology.spec.combo.tenant);
                    tcp_transfer(&from.ns, &to.ns, dst, 500_000).unwrap();
                }
            });
        }
    });
    for pcap in captures.map(Capture::finish) {
        let count = |filter: &str| tshark_fields(&pcap, filter, &["frame.len"]).unwrap().len();
        for (all, own) in [
            ("geneve", "geneve.vni == 100 && udp.dstport == 6081 && ip.src == 198.18.0.0/24"),
            ("vxlan", "vxlan.vni == 200 && udp.dstport == 4789 && ipv6.src == fd18::/64"),
        ] {
            let (all, own) = (count(all), count(own));
            assert!(own > 300 && all == own, "{own} of {all} in {}", pcap.display());
        }
    }
    assert_no_drops(&topology, "geneve beside vxlan");

    // One end of the pair forgets. What it then sends is in a format that the other takes, but not from it.
    topology.reconfigure(0, |_| with_two_pairs(&topology, 0, ""));
    let ping = || {
        let dst = topology.address(1);
        topology.tenants[0].ns.try_run(&format!("ping -c 1 -W 1 {dst}"))
    };
    let before = drops(&topology, 1, "format_mismatch");
    assert!(ping().is_err(), "a packet in another format was delivered");
    assert!(drops(&topology, 1, "format_mismatch") > before, "{:?}", topology.stats(1).value());
    names_the_mismatch(&topology, &format!("peer {}", topology.hosts[0].vtep), || drop(ping()));
    // The other pair hears nothing of it.
    topology.wait_connected(2, 3);
    topology.reconfigure(0, |_| with_two_pairs(&topology, 0, &peer(0)));
    topology.wait_connected(0, 1);
}

/// What `culvert trace` with these arguments writes while `action` runs.
fn traced(topology: &Topology, host: usize, args: &[&str], action: impl FnOnce()) -> String {
    let args = [&["trace", "-n", "200"], args].concat();
    let ns = &topology.hosts[host].ns;
    let mut trace = topology.dataplane(host).spawn_cli(ns, &topology.scratch, &args);
    trace.wait_for_log("waiting", Duration::from_secs(5));
    action();
    std::thread::sleep(Duration::from_millis(500));
    trace.signal(libc::SIGINT);
    trace.wait(Duration::from_secs(5));
    trace.log()
}

#[test]
fn a_trace_tells_how_superframes_are_cut_and_merged() {
    for format in ["vxlan", "geneve", "stt"] {
        let topology = topology(format, Combo { wire: Offloads::Off, ..Combo::SIMPLE }, false);
        topology
            .reconfigure(0, |toml| toml.replacen("[underlay]\n", "[underlay]\ntx = \"xdp\"\n", 1));
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let tenant = OffloadSocket::open(&a.ns, TENANT_DEVICE).unwrap();
        let (header, frame) = Segment::between(a, b, false, 1000, vec![7; 20_000]).superframe(1448);
        let send = || tenant.send(header, &frame).unwrap();
        let out = traced(&topology, 0, &["-p", &a.port, "tcp", "port", "5001"], send);
        let incoming = traced(&topology, 1, &["--underlay"], send);
        let (cut, put_together) = match format {
            "stt" => (
                vec!["1 stream, MSS 1448", "cut into 1560 bytes", "ring (13 times)"],
                vec!["1560 bytes from 0 of 20084", "1364 bytes from 18720 of 20084", "20066 bytes"],
            ),
            _ => (
                vec!["14 segments of up to 1448 bytes", "ring (13 times)"],
                vec!["segments in one"],
            ),
        };
        for (text, words) in [(&out, cut), (&incoming, put_together)] {
            for word in words {
                assert!(text.contains(word), "{format}: no \"{word}\" in\n{text}");
            }
        }
        let lines = out.lines().count();
        assert!(lines < 20, "{format}: {lines} lines for one packet:\n{out}");
    }
}
