//! The command line against a fake dataplane: what it prints, and with which code it exits.

#[macro_use]
mod fake;
mod manage;
mod manual;

use std::path::Path;

use culvert_model::{Place, Section, api};
use fake::{Running, culvert};
use serde_json::json;

const EXAMPLE: &str = include_str!("../../model/examples/host.toml");

/// A dataplane to which the example has been applied.
fn applied() -> Running {
    let dataplane = Running::start();
    let file = dataplane.write("host.toml", EXAMPLE);
    let ran = dataplane.culvert(&["apply", "-f", &file]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        ran.out,
        format!(
            "{file}: applied as generation 1: 2 vnets, 2 ports, 3 routes, 1 mapping, 1 ingress rule, 2 ACL groups\n"
        )
    );
    assert_eq!(ran.err, "");
    dataplane
}

#[test]
fn what_is_applied_can_be_shown_again() {
    let dataplane = applied();
    let host = dataplane.culvert(&["show", "host", "--show-keys"]);
    let file = dataplane.write("again.toml", &host.out);
    let again = dataplane.culvert(&["-o", "json", "apply", "-f", &file]);
    assert_eq!(again.json(), json!({ "generation": 2, "warnings": [] }));
    assert_eq!(dataplane.culvert(&["show", "host", "--show-keys"]).out, host.out);
}

#[test]
fn a_check_needs_no_dataplane() {
    let dataplane = Running::start();
    let file = dataplane.write("host.toml", EXAMPLE);
    let ran = culvert(Path::new("/nonexistent/socket"), &["apply", "--check", "-f", &file]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains(": valid: 2 vnets"), "{ran:?}");
    assert_eq!(dataplane.script.lock().unwrap().generation, 0);
}

#[test]
fn an_invalid_file_exits_2_and_names_every_fault() {
    let dataplane = Running::start();
    let text = EXAMPLE.replace("vni = 100 ", "vni = 0 ").replace("\"tap0\"", "\"eth0\"");
    let file = dataplane.write("host.toml", &text);
    let ran = dataplane.culvert(&["apply", "-f", &file]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
    let lines: Vec<_> = ran.err.lines().collect();
    assert_eq!(
        lines[0],
        format!("{file}:24:7: vnet[0] \"blue\": vni 0: not a VNI; legal is 1 to 16777215")
    );
    assert!(
        lines[1].contains("port[1] \"a2\": attach eth0: already used by underlay: interfaces[0]")
    );
    assert_eq!(lines[2], format!("culvert: {file}: 2 faults; nothing was changed"));
    assert_eq!(dataplane.script.lock().unwrap().generation, 0);
}

#[test]
fn a_dash_reads_standard_input() {
    let dataplane = Running::start();
    let file = dataplane.write("host.toml", EXAMPLE);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.args(["apply", "--check", "-f", "-"]).stdin(std::fs::File::open(file).unwrap());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with(b"-: valid: 2 vnets"), "{output:?}");
}

#[test]
fn a_file_that_is_not_there_exits_2() {
    let ran = culvert(Path::new("/nonexistent/socket"), &["apply", "-f", "/nonexistent/host.toml"]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.err,
        "culvert: /nonexistent/host.toml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn wrong_usage_exits_2_and_help_lists_the_codes() {
    let socket = Path::new("/nonexistent/socket");
    assert_eq!(culvert(socket, &["aply"]).code, Some(2));
    assert_eq!(culvert(socket, &["show", "everything"]).code, Some(2));
    let help = culvert(socket, &["--help"]);
    assert_eq!(help.code, Some(0));
    for code in ["3  culvertd, its store or the dataplane cannot be reached", "6  queued: "] {
        assert!(help.out.contains(code), "{help:?}");
    }
}

#[test]
fn an_absent_dataplane_exits_3() {
    let ran = culvert(Path::new("/nonexistent/socket"), &["show"]);
    assert_eq!(ran.code, Some(3));
    assert_eq!(
        ran.err,
        "culvert: no dataplane at /nonexistent/socket: is culvert-dataplane running?\n"
    );
}

#[test]
fn the_socket_of_a_killed_dataplane_exits_3() {
    let mut dataplane = Running::start();
    dataplane.kill();
    let ran = dataplane.culvert(&["stats"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.ends_with("is culvert-dataplane running?\n"), "{ran:?}");
}

#[test]
fn a_refusal_exits_1_and_points_into_the_file() {
    let dataplane = Running::start();
    let place = Place::object(Section::Port, 1, "attach").named("a2");
    let fault = api::Fault::new(&place, "tap0: device or resource busy");
    dataplane.script.lock().unwrap().faults.push(fault);
    let file = dataplane.write("host.toml", EXAMPLE);
    let ran = dataplane.culvert(&["apply", "-f", &file]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
    let line = 1 + EXAMPLE.lines().position(|line| line.contains("tap0")).unwrap();
    assert_eq!(
        ran.err,
        format!(
            "{file}:{line}:10: port[1] \"a2\": attach tap0: device or resource busy\n\
             culvert: the dataplane refused {file}: 1 fault; nothing was changed\n"
        )
    );
}

#[test]
fn a_refusal_of_many_faults_arrives_and_counts_the_rest() {
    let dataplane = Running::start();
    let faults =
        (0..5_000).map(|n| api::Fault::new(&Place::object(Section::Mapping, n, "ip"), "no room"));
    dataplane.script.lock().unwrap().faults.extend(faults);
    let file = dataplane.write("host.toml", EXAMPLE);
    let ran = dataplane.culvert(&["apply", "-f", &file]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("\n... and "), "{}", ran.err);
    assert!(ran.err.ends_with(": 5000 faults; nothing was changed\n"), "{}", ran.err);
}

#[test]
fn a_state_for_another_generation_is_not_applied() {
    let dataplane = applied();
    let file = dataplane.write("host.toml", EXAMPLE);
    let ran = dataplane.culvert(&["apply", "-f", &file, "--if-generation", "7"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.err, "culvert: not applied: the generation is 1\n");
    let ran = dataplane.culvert(&["apply", "-f", &file, "--if-generation", "1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn warnings_go_to_standard_error() {
    let dataplane = Running::start();
    let file = dataplane.write("host.toml", &EXAMPLE.replace("mtu = 1430", "mtu = 9000"));
    let ran = dataplane.culvert(&["apply", "-f", &file]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.err.starts_with("culvert: warning: port \"a1\": mtu 9000: above the 1430"),
        "{ran:?}"
    );
}

#[test]
fn ports_are_shown_with_the_reasons_for_their_mode() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["show"]);
    assert_eq!(
        ran.out,
        "PORT  VNET  ATTACH  DEVICE   MODE     QUEUES   MTU  STATE  NOTES\n\
         a1    blue  xdp     veth-a1  generic       2  1500  down   no carrier; not native: it is a veth\n"
    );
    let port = &dataplane.culvert(&["-o", "json", "show", "ports"]).json()[0];
    assert_eq!(port["mode"], "generic");
    assert_eq!(port["refusals"], json!([{ "mode": "native", "reason": "it is a veth" }]));
}

#[test]
fn the_wanted_state_is_shown_in_parts() {
    let dataplane = applied();
    for (what, expected) in [
        ("vnets", "blue   100  geneve  no     drop  yes   10.0.0.254/24, fd00::ffff/64"),
        (
            "acls",
            "web   yes          0  ingress    allow   tcp       10.0.0.0/8      80, 443, 8000-8099  any",
        ),
        ("acls", "base  yes          0  egress     deny    any       169.254.0.0/16"),
        ("routes", "port a1    10.0.0.128/25  drop"),
        ("mappings", "blue  10.0.0.2  02:00:00:00:01:02  192.0.2.2  1400"),
        ("ingress", "100  192.0.2.2/32       100  decap-validate"),
        (
            "underlay",
            "wanted: addresses 192.0.2.1, 2001:db8::1; mtu 1500; mode auto; rx xdp; tx auto",
        ),
        ("underlay", "not zero-copy: not supported by the driver"),
        ("underlay", "up    UDP dataplane, TCP device  "),
        (
            "shards",
            "192.0.2.2     9       400      7        2        4  1: 3, 2: 1                  1        5",
        ),
        ("info", "culvert-dataplane 0.1.0, instance f00d, generation 1"),
        ("info", "no /sys/kernel/btf/vmlinux"),
    ] {
        let ran = dataplane.culvert(&["show", what]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.out.contains(expected), "{what}: {}", ran.out);
    }
}

#[test]
fn json_has_stable_names() {
    let dataplane = applied();
    let show = |what| dataplane.culvert(&["show", what, "-o", "json"]).json();
    assert_eq!(
        show("mappings"),
        json!([{ "vnet": "blue", "ip": "10.0.0.2", "mac": "02:00:00:00:01:02", "vtep": "192.0.2.2", "mtu": 1400 }])
    );
    assert_eq!(
        show("routes")[0],
        json!({ "port": null, "vnet": "blue", "prefix": "10.0.0.0/24", "action": "vnet", "to_vnet": "blue" })
    );
    assert_eq!(
        show("ingress"),
        json!([{ "vni": 100, "vtep": "192.0.2.2/32", "priority": 100, "action": "decap-validate" }])
    );
    assert_eq!(
        show("shards"),
        json!([{ "vtep": "192.0.2.2", "sent": 9, "sent_segments": 400, "whole": 7, "rebuilt": 2,
            "expired": [3, 1, 0, 0, 0, 0, 0, 0], "bad_blocks": 1, "evicted": 5,
            "asked": 6, "repaired": 4, "unasked": 1, "answered": 3, "refused": 2, "gone": 1 }])
    );
    assert_eq!(show("vnets")[0]["gateways"][0]["ip"], "10.0.0.254/24");
    assert_eq!(show("vnets")[0]["dhcp"]["lease_s"], 3600);
    assert_eq!(show("vnets")[1]["dhcp"], json!(null));
    assert_eq!(show("acls")[1]["stateful"], true);
    assert_eq!(
        show("acls")[1]["rules"][1],
        json!({
            "direction": "egress", "action": "allow", "protocol": "udp", "remote": "any",
            "local_ports": "any", "remote_ports": "53",
        })
    );
    assert_eq!(show("host")["ports"][0]["acl"], json!(["web", "base"]));
    assert_eq!(show("host")["ports"][0]["meter"]["rx"]["rate_bps"], 1_000_000_000);
    assert_eq!(show("underlay")["wanted"]["interfaces"], json!(["eth0"]));
    assert_eq!(show("underlay")["devices"][0]["up"], true);
    assert_eq!(show("underlay")["devices"][0]["cut_by"]["tcp_ipv6"], "device");
    assert_eq!(show("info")["workers"], json!([{ "index": 0, "cpu": 1 }]));
    assert_eq!(show("host")["ports"][1]["device"], "tap0");
}

#[test]
fn before_any_state_lists_are_empty() {
    let dataplane = Running::start();
    assert_eq!(dataplane.culvert(&["show", "vnets", "-o", "json"]).json(), json!([]));
    assert_eq!(
        dataplane.culvert(&["show", "underlay", "-o", "json"]).json()["wanted"],
        json!(null)
    );
    assert_eq!(dataplane.culvert(&["show", "host"]).code, Some(1));
}

#[test]
fn counters_are_shown() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["stats"]);
    for expected in [
        "a1            11      1100          22      2200        6        4        3\n",
        "eth0    rx_dropped          5\n",
        "arena: 4096 chunks, 4000 free, 96 held\n",
        "of no port: 7 dropped, 2 trapped\n",
    ] {
        assert!(ran.out.contains(expected), "{expected:?} in\n{}", ran.out);
    }
    let json = dataplane.culvert(&["stats", "-o", "json"]).json();
    assert_eq!(json["ports"][0]["dropped_packets"], 3);
    assert_eq!(json["ports"][0]["trapped"], 4);
    assert_eq!(json["ports"][0]["answers"], 6);
    assert_eq!(json["underlay_trapped"], 2);
    assert_eq!(json["arena"], json!({ "chunks": 4096, "free": 4000, "held": 96 }));
}

#[test]
fn drops_are_listed_by_frequency() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["stats", "--drops"]);
    assert_eq!(
        ran.out,
        "PORT        REASON       PACKETS\n(underlay)  unknown_vni        7\na1          spoofed_mac        3\n"
    );
    assert_eq!(
        dataplane.culvert(&["stats", "--drops", "-o", "json"]).json(),
        json!([
            { "port": null, "reason": "unknown_vni", "packets": 7 },
            { "port": "a1", "reason": "spoofed_mac", "packets": 3 },
        ])
    );
}

#[test]
fn traps_are_printed_as_they_come() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["traps", "-n", "2"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(
        ran.out,
        "a1 no_mapping 60 bytes: ff0a\nunderlay no_mapping 60 bytes (4 lost before): ff0a\n"
    );
    let first = dataplane.culvert(&["traps", "-n", "1", "-o", "json"]).json();
    assert_eq!(
        first,
        json!({ "port": "a1", "reason": "no_mapping", "frame_len": 60, "head": "ff0a", "lost": 0 })
    );
}

#[test]
fn a_stream_that_ends_is_a_failure() {
    let ran = Running::start().culvert(&["traps"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.ends_with("culvert: the dataplane ended the stream\n"), "{ran:?}");
}
