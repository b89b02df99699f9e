//! Verbs that show packets, rates and health, against a fake dataplane.

mod fake;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use culvert_model::api;
use fake::Running;
use fake::sight::datagram;
use serde_json::json;

const EXAMPLE: &str = include_str!("../../model/examples/host.toml");

fn applied() -> Running {
    let dataplane = Running::start();
    let file = dataplane.write("host.toml", EXAMPLE);
    assert_eq!(dataplane.culvert(&["apply", "-f", &file]).code, Some(0));
    dataplane
}

/// A dataplane whose counters move.
fn moving() -> Running {
    let dataplane = Running::start();
    dataplane.script.lock().unwrap().moves = true;
    dataplane
}

#[test]
fn packets_are_printed_one_to_a_line() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["capture", "-n", "3", "-p", "a1", "--", "udp", "port", "53"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(
        lines,
        [
            "(3 packets lost)",
            "22:13:20.000000001 a1 in   10.0.0.1.7 > 10.0.0.2.53 udp 46 bytes",
            "22:13:20.000000002 eth0 out  10.0.0.1.7 > 10.0.0.2.53 udp 46 bytes",
            "22:13:20.000000003 a1 drop spoofed_ip: 10.0.0.1.7 > 10.0.0.2.53 udp 46 bytes",
        ]
    );
    assert!(ran.err.contains("3 packets captured, 3 lost"), "{ran:?}");
    let script = dataplane.script.lock().unwrap();
    let select = script.captures[0].select.as_ref().unwrap();
    assert_eq!(
        (&select.ports[..], select.underlay, select.inner),
        (&["a1".to_owned()][..], false, false)
    );
    assert_eq!(select.filter[0].code, 0x28, "compiled here");
    assert!(script.captures[0].points.is_empty());
}

#[test]
fn packets_for_programs_have_names_that_stay() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["-o", "json", "capture", "--drops", "-n", "1", "-s", "64"]);
    assert_eq!(
        ran.json(),
        json!({
            "time_ns": 1_700_000_000_000_000_001_u64, "point": "from_tenant", "port": "a1",
            "device": "veth-a1", "drop_reason": null, "worker": 1, "frame_len": 46,
            "segment_size": null, "summary": "10.0.0.1.7 > 10.0.0.2.53 udp 46 bytes",
            "data": datagram().iter().map(|b| format!("{b:02x}")).collect::<String>(), "lost": 3,
        })
    );
    let script = dataplane.script.lock().unwrap();
    assert_eq!(script.captures[0].points, [i32::from(api::CapturePoint::Dropped)]);
    assert_eq!(script.captures[0].snaplen, 64);
}

#[test]
fn a_file_is_read_back_by_explain() {
    let dataplane = applied();
    let file = dataplane.directory.path().join("out.pcapng").display().to_string();
    // The stream ends before four came: what came is kept.
    let ran = dataplane.culvert(&["capture", "-n", "4", "-w", &file]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran = dataplane.culvert(&["explain", "-p", "a1", "--pcap", &file, "--frame", "3"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(dataplane.script.lock().unwrap().explains[0].frame, datagram());
    let ran = dataplane.culvert(&["explain", "-p", "a1", "--pcap", &file, "--frame", "4"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("--frame 4: the file has 3"), "{ran:?}");
}

#[test]
fn the_way_of_a_packet_is_shown_stage_by_stage() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["trace", "-n", "1", "icmp"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(
        lines,
        [
            "22:13:20.000000000 from a1: 10.0.0.1.7 > 10.0.0.2.53 udp 46 bytes",
            "  received    pass             port a1",
            "  anti_spoof  pass             port a1",
            "  route       drop route_drop  vnet blue: 10.0.0.0/8 -> drop",
            "  drop        drop route_drop",
            "  = dropped: route_drop (`culvert explain-drop route_drop`)",
        ]
    );
    assert!(dataplane.script.lock().unwrap().traces[0].select.as_ref().unwrap().inner);
    let json = dataplane.culvert(&["-o", "json", "trace"]).json();
    assert_eq!((&json["result"], &json["drop_reason"]), (&json!("dropped"), &json!("route_drop")));
    assert_eq!(
        json["steps"][2],
        json!({
            "stage": "route", "outcome": "drop", "reason": "route_drop",
            "rule": "vnet blue: 10.0.0.0/8 -> drop", "worker": 0, "times": 1,
        })
    );
}

#[test]
fn wrong_filters_ports_and_options_are_named() {
    let dataplane = applied();
    let cases: [(&[&str], &str); 7] = [
        (&["capture", "tcpp"], "filter \"tcpp\": "),
        (&["trace", "-n", "0"], "0 is not in 1..=10000"),
        (&["explain", "--dst", "10.0.0.2"], "--port"),
        (&["explain", "-p", "a11", "--dst", "10.0.0.2"], "no such port; did you mean \"a1\"?"),
        (&["explain", "-p", "a1", "--hex", "0g"], "\"0g\" at byte 0: not hexadecimal"),
        (&["explain", "--from-underlay", "198.18.0.2", "--dst", "10.0.0.1"], "--vni"),
        (&["explain-drop", "spofed_ip"], "did you mean \"spoofed_ip\"?"),
    ];
    for (args, text) in cases {
        let ran = dataplane.culvert(args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains(text), "{args:?}: {}", ran.err);
    }
    let ran = dataplane.culvert(&["trace", "-p", "b9"]);
    assert!(ran.code == Some(1) && ran.err.contains("port \"b9\": no such port"), "{ran:?}");
}

#[test]
fn a_packet_is_completed_from_the_state() {
    let dataplane = applied();
    let host = dataplane.culvert(&["-o", "json", "show", "host"]).json();
    let port = &host["ports"][0];
    let (id, mac) = (port["id"].as_str().unwrap(), port["mac"].as_str().unwrap());
    let own = port["ips"][0].as_str().unwrap();
    let mapping = &host["mappings"][0];
    let (dst, far) = (mapping["ip"].as_str().unwrap(), mapping["mac"].as_str().unwrap());
    let ran = dataplane.culvert(&["explain", "-p", id, "--dst", dst, "--proto", "tcp"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let script = dataplane.script.lock().unwrap();
    let frame = &script.explains[0].frame;
    let written =
        |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    assert_eq!((written(&frame[..6]), written(&frame[6..12])), (far.to_owned(), mac.to_owned()));
    let expected: std::net::Ipv4Addr = own.parse().unwrap();
    assert_eq!(frame[26..30], expected.octets());
    assert_eq!(frame[23], 6);
}

#[test]
fn health_exits_by_what_it_finds() {
    let dataplane = moving();
    let ran = dataplane.culvert(&["-o", "json", "health", "--interval", "1"]);
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["healthy"], false);
    let checks: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["severity"].as_str().unwrap(), f["check"].as_str().unwrap()))
        .collect();
    for expected in [
        ("error", "no_state"),
        ("warning", "next_hop"),
        ("warning", "port"),
        ("notice", "drops"),
        ("notice", "mode_refused"),
    ] {
        assert!(checks.contains(&expected), "{expected:?} in {checks:?}");
    }
    assert!(checks.is_sorted_by_key(|(severity, _)| {
        ["error", "warning", "notice"].iter().position(|s| s == severity)
    }));
    let text = dataplane.culvert(&["health", "--interval", "1"]);
    assert!(text.out.starts_with("error    no_state: dataplane: generation 0"), "{text:?}");
    assert!(text.err.contains("things are wrong"), "{text:?}");
}

#[test]
fn every_drop_reason_is_explained() {
    let dataplane = Running::start();
    let all = dataplane.culvert(&["-o", "json", "explain-drop"]).json();
    assert!(all.as_array().unwrap().len() > 40);
    let one = dataplane.culvert(&["explain-drop", "no_mapping"]);
    assert!(one.out.contains("-> Add a [[mapping]]"), "{one:?}");
}

/// Starts a verb that goes on until it is told to end.
fn start(dataplane: &Running, args: &[&str]) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.arg("--socket").arg(dataplane.directory.path().join("socket")).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &std::process::Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

#[test]
fn rates_are_watched_until_interrupted() {
    let dataplane = moving();
    let child = start(&dataplane, &["-o", "json", "stats", "--watch"]);
    let since = Instant::now();
    while dataplane.script.lock().unwrap().looks < 3 && since.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let port = &first["ports"][0];
    let elapsed = first["elapsed_s"].as_f64().unwrap();
    let rate = |value: &serde_json::Value| (value.as_f64().unwrap() * elapsed).round();
    assert_eq!(rate(&port["rx_packets_per_s"]), 1000.0);
    assert_eq!(port["drops"][0]["reason"], "spoofed_mac");
    assert_eq!(rate(&port["drops"][0]["packets_per_s"]), 5.0);
}

#[test]
fn top_refuses_what_is_no_terminal_with_advice() {
    let dataplane = Running::start();
    let ran = dataplane.culvert(&["top"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("`culvert stats --watch`"), "{ran:?}");
}

/// Runs `top` in a terminal that `script` makes, and does `end` after it has drawn.
fn top_in_a_terminal(end: impl FnOnce(&mut std::process::Child, u32)) -> (Option<i32>, String) {
    let dataplane = moving();
    let socket = dataplane.directory.path().join("socket");
    let pid_file = dataplane.directory.path().join("pid");
    let line = format!(
        "echo $$ >{}; stty rows 30 cols 120; exec {} --socket {} top",
        pid_file.display(),
        env!("CARGO_BIN_EXE_culvert"),
        socket.display()
    );
    let mut child = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while dataplane.script.lock().unwrap().looks < 2 && since.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    end(&mut child, pid);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

const ENTER_SCREEN: &str = "\x1b[?1049h";
const LEAVE_SCREEN: &str = "\x1b[?1049l";

#[test]
fn top_draws_and_gives_the_terminal_back() {
    let (code, screen) = top_in_a_terminal(|child, _| {
        child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    });
    assert_eq!(code, Some(0), "{screen:?}");
    assert!(screen.contains(ENTER_SCREEN) && screen.contains("spoofed_mac"), "{screen:?}");
    assert!(screen.rfind(LEAVE_SCREEN) > screen.rfind(ENTER_SCREEN), "{screen:?}");
}

#[test]
fn top_gives_the_terminal_back_when_a_signal_ends_it() {
    let (code, screen) = top_in_a_terminal(|_, pid| {
        let pid = pid.to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    });
    assert_eq!(code, Some(0), "{screen:?}");
    assert!(screen.rfind(LEAVE_SCREEN) > screen.rfind(ENTER_SCREEN), "{screen:?}");
}
