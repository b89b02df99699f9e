//! The shard format between two hosts: keys, losses, settings, and what is counted.

use std::time::Duration;

use culvert_tests::control::Culvertd;
use culvert_tests::stats::Stats;
use culvert_tests::tools::{Capture, tcp_transfer};
use culvert_tests::topology::{Topology, with_vnet_lines};
use culvert_tests::weather::{Loss, Weather};
use culvert_tests::{Combo, Family, Offloads, Process, TopologySpec, checks, wait_until};
use serde_json::Value;

use crate::shards_dissector::dissected;

/// Bytes around an inner Ethernet frame that is sent as it is, with a MAC.
const ROOM: u32 = 120;

pub(crate) const KEYS: &str = "keys = { 1 = \"000102030405060708090a0b0c0d0e0f\", \
                    2 = \"101112131415161718191a1b1c1d1e1f\" }, send_key = ";

/// All keys that are used here.
const SECRETS: [&str; 3] = [
    "000102030405060708090a0b0c0d0e0f",
    "101112131415161718191a1b1c1d1e1f",
    "ff1112131415161718191a1b1c1d1e1f",
];

/// Asserts that a log, which says something, has none of the keys in whatever form.
#[track_caller]
fn assert_no_secret(who: &str, log: &str) {
    assert!(log.contains("TRACE") && log.len() > 2000, "{who} logs next to nothing:\n{log}");
    let log = log.to_lowercase();
    for secret in SECRETS {
        let bytes = (0..16).map(|at| u8::from_str_radix(&secret[at * 2..at * 2 + 2], 16).unwrap());
        let bytes: Vec<u8> = bytes.collect();
        let numbers = format!("{bytes:?}");
        let escaped = bytes.escape_ascii().to_string();
        for form in [secret, numbers.trim_matches(['[', ']']), &escaped] {
            // Half of a key is too much.
            for half in [&form[..form.len() / 2], &form[form.len() / 2..]] {
                assert!(!log.contains(half), "the log of {who} has {half:?} of a key");
            }
        }
    }
}

/// Two hosts whose vnet is in the format.
pub(crate) fn hosts(combo: Combo, middle: bool) -> Topology {
    let mut spec = TopologySpec::pair(combo);
    spec.middle = middle;
    hosts_of(spec)
}

fn hosts_of(mut spec: TopologySpec) -> Topology {
    spec.vnet_toml = "format = \"shard\"";
    let topology = spec.build();
    topology.widen_wire(ROOM);
    topology.settle();
    topology
}

/// Gives a host an underlay with these lines for the other.
pub(crate) fn set_peer(topology: &Topology, host: usize, peer: &str) {
    let vtep = topology.hosts[1 - host].vtep;
    topology.reconfigure(host, |toml| {
        let line = format!("[underlay]\npeer = [{{ vtep = \"{vtep}\", {peer} }}]\n");
        toml.replacen("[underlay]\n", &line, 1)
    });
}

/// The line of `culvert show shards` for the other host; null before there is one.
fn shards(topology: &Topology, host: usize) -> Value {
    let vtep = topology.hosts[1 - host].vtep.to_string();
    let ns = &topology.hosts[host].ns;
    let shown = topology.dataplane(host).cli(ns, &["show", "shards", "-o", "json"]);
    let lines: Value = serde_json::from_str(&shown.unwrap()).unwrap();
    let lines = lines.as_array().unwrap();
    lines.iter().find(|line| line["vtep"] == vtep).cloned().unwrap_or(Value::Null)
}

fn count(shards: &Value, name: &str) -> u64 {
    shards[name].as_u64().unwrap_or(0)
}

fn drops(topology: &Topology, host: usize, reason: &str) -> u64 {
    topology.stats(host).dropped(reason)
}

#[test]
fn jumbo_tenants_talk() {
    for (underlay, wire) in [(Family::V4, Offloads::On), (Family::V6, Offloads::Off)] {
        let combo = Combo { underlay, wire, tenant_mtu: 9000, ..Combo::SIMPLE };
        let topology = hosts(combo, false);
        checks::exercise(&topology, 0, 1);
        let sent = shards(&topology, 0);
        assert!(count(&sent, "sent_segments") > count(&sent, "sent"), "{sent}");
        let received = shards(&topology, 1);
        assert_eq!(count(&received, "bad_blocks"), 0, "{received}");
        assert_eq!(count(&received, "evicted"), 0, "{received}");
    }
}

#[test]
fn a_superframe_above_the_limit_of_a_stream_becomes_two() {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.vnet_toml = "format = \"shard\"";
    // Sixteen shares, each the whole block: a superframe of 64 KB has no room for them.
    spec.underlay_toml = "shard = { k = 1, n = 16 }\n";
    let topology = spec.build();
    topology.widen_wire(ROOM);
    topology.settle();
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let before = topology.stats(0);
    let superframes = |stats: &Stats| stats.port(&a.port)["rx_packets"].as_u64().unwrap();
    let sent = count(&shards(&topology, 0), "sent");
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 16 << 20).unwrap();
    let came = superframes(&topology.stats(0)) - superframes(&before);
    let sent = count(&shards(&topology, 0), "sent") - sent;
    assert!(sent > came + came / 10, "{came} packets of the tenant made {sent} frames");
    assert_eq!(drops(&topology, 0, "shard_"), 0);
}

#[test]
fn keys_are_used_rotated_and_a_wrong_one_is_counted() {
    let mut spec = TopologySpec::pair(Combo { underlay: Family::V6, ..Combo::SIMPLE });
    spec.dataplane_args = ["--log", "trace"].map(str::to_owned).into();
    let topology = hosts_of(spec);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let ping = || {
        let dst = topology.address(1);
        a.ns.try_run(&format!("ping -c 1 -W 1 {dst}"))
    };
    // One end has keys, the other none: nothing passes, and both count why.
    set_peer(&topology, 0, &format!("{KEYS}1"));
    let counted = wait_until(Duration::from_secs(10), || {
        let _ = ping();
        drops(&topology, 1, "shard_keyed") > 0
    });
    assert!(counted, "{:?}", topology.stats(1).value());
    assert!(ping().is_err(), "a frame with a MAC was taken without a key");
    set_peer(&topology, 1, &format!("{KEYS}1"));
    checks::exercise(&topology, 0, 1);
    // The new key is known at both ends: either may send with it first.
    set_peer(&topology, 1, &format!("{KEYS}2"));
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 1 << 20).unwrap();
    set_peer(&topology, 0, &format!("{KEYS}2"));
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 1 << 20).unwrap();
    let before = shards(&topology, 1);
    set_peer(&topology, 0, "keys = { 2 = \"ff1112131415161718191a1b1c1d1e1f\" }");
    let counted = wait_until(Duration::from_secs(10), || {
        let _ = ping();
        drops(&topology, 1, "shard_bad_mac") > 0
    });
    assert!(counted, "{:?}", topology.stats(1).value());
    assert!(ping().is_err(), "a frame with a wrong MAC was delivered");
    let after = shards(&topology, 1);
    assert!(count(&after, "bad_blocks") > count(&before, "bad_blocks"), "{before} {after}");
    set_peer(&topology, 0, "keys = { 5 = \"101112131415161718191a1b1c1d1e1f\" }");
    let counted = wait_until(Duration::from_secs(10), || {
        let _ = ping();
        drops(&topology, 1, "shard_unknown_key") > 0
    });
    assert!(counted, "{:?}", topology.stats(1).value());
    for host in 0..2 {
        assert_no_secret("culvert-dataplane", &topology.dataplane(host).log());
    }
}

#[test]
fn culvertd_that_is_given_keys_and_starts_with_them_logs_none() {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.dataplane_args = ["--log", "trace"].map(str::to_owned).into();
    let topology = hosts_of(spec);
    let (ns, vtep) = (&topology.hosts[0].ns, topology.hosts[1].vtep);
    let socket = topology.dataplane(0).socket().to_owned();
    let mut culvertd = Culvertd::new(&topology.scratch, "a", &socket, &["--log", "trace"]);
    culvertd.start(ns, &topology.scratch);
    let done = culvertd.client().apply(&topology.host_toml(0)).unwrap();
    assert!(done.unapplied.is_empty(), "{:?}", done.unapplied);
    let [first, second, third] = SECRETS;
    for (flag, value) in [
        ("--key", format!("{vtep}=1:{first}")),
        ("--key", format!("{vtep}=2:{second}")),
        ("--send-key", format!("{vtep}=2")),
        ("--drop-key", format!("{vtep}=1")),
    ] {
        culvertd.cli(ns, &["host", "set", flag, &value]).unwrap();
    }
    let refused = culvertd.cli(ns, &["host", "set", "--key", &format!("{vtep}=8:{third}")]);
    assert!(!refused.unwrap_err().stderr().contains(third));
    let before = culvertd.process().log();
    culvertd.process().kill();
    culvertd.start(ns, &topology.scratch);
    let shown = culvertd.cli(ns, &["export", "--show-keys"]).unwrap();
    assert!(shown.contains(second) && !shown.contains(first), "{shown}");
    for log in [before, culvertd.process().log()] {
        assert_no_secret("culvertd", &log);
    }
    assert_no_secret("culvert-dataplane", &topology.dataplane(0).log());
}

#[test]
fn what_arrives_is_delivered_though_segments_are_lost() {
    let topology = hosts(Combo { wire: Offloads::Off, ..Combo::SIMPLE }, true);
    let middle = topology.middle.as_ref().unwrap();
    middle.damage_every(40);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let dst = topology.address(1);
    tcp_transfer(&a.ns, &b.ns, dst, 4 << 20).unwrap();
    middle.damage_every(0);
    assert!(middle.damaged() > 20, "{} frames damaged", middle.damaged());
    assert!(drops(&topology, 1, "shard_bad_outer_checksum") > 10);
    let over = wait_until(Duration::from_secs(2), || count(&shards(&topology, 1), "rebuilt") > 0);
    let received = shards(&topology, 1);
    assert!(over, "no frame was rebuilt: {received}");
    assert_eq!(count(&received, "bad_blocks"), 0, "{received}");
    tcp_transfer(&a.ns, &b.ns, dst, 1 << 20).unwrap();
    let text = topology.dataplane(1).cli(&topology.hosts[1].ns, &["show", "shards"]).unwrap();
    assert!(text.contains("REBUILT") && text.contains(&topology.hosts[0].vtep.to_string()));
}

#[test]
fn a_frame_whose_shares_are_lost_is_rebuilt_of_the_block_that_it_asks_for() {
    for (underlay, keys) in [(Family::V4, false), (Family::V6, true)] {
        let mut spec = TopologySpec::pair(Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE });
        spec.vnet_toml = "format = \"shard\"";
        // All shares are needed: one in ten frames or so lacks one.
        spec.underlay_toml = "shard = { k = 8, n = 8, hold_ms = 200, repair_ms = 200 }\n";
        spec.middle = true;
        let topology = spec.build();
        topology.widen_wire(ROOM);
        topology.settle();
        if keys {
            set_peer(&topology, 0, &format!("{KEYS}1"));
            set_peer(&topology, 1, &format!("{KEYS}2"));
            topology.settle();
        }
        let middle = topology.middle.as_ref().unwrap();
        let captures = ["left", "right"]
            .map(|device| Capture::start(middle.ns(), &topology.scratch, device, ""));
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        let dst = topology.address(1);
        middle.set_weather(Some(Weather::losing(Loss::Independent { rate: 0.02 })), 1);
        for _ in 0..20 {
            tcp_transfer(&a.ns, &b.ns, dst, 2 << 20).unwrap();
            if count(&shards(&topology, 1), "repaired") > 3 {
                break;
            }
        }
        middle.set_weather(None, 0);
        let captures = captures.map(Capture::finish);
        let (sender, receiver) = (shards(&topology, 0), shards(&topology, 1));
        let (asked, repaired) = (count(&receiver, "asked"), count(&receiver, "repaired"));
        let answered = count(&sender, "answered");
        assert!(repaired > 3, "sender {sender}\nreceiver {receiver}");
        assert!(asked >= answered && answered >= repaired, "{sender}\n{receiver}");
        assert_eq!(drops(&topology, 1, "shard_bad"), 0);
        assert_eq!(drops(&topology, 0, "shard_bad"), 0);
        // No answer is longer than what it answers; the dissector knows both.
        let fields = ["culvert_shard.message", "culvert_shard.frame", "frame.len"];
        let [near, far] =
            captures.each_ref().map(|pcap| dissected(pcap, "culvert_shard.message", &fields));
        let answers: Vec<_> = near.iter().filter(|message| message[0] == "answer").collect();
        assert!(answers.len() > 3, "{near:?}");
        let len = |message: &[String]| message[2].parse::<u32>().unwrap();
        for answer in answers {
            let request = far.iter().find(|m| m[0] == "request" && m[1] == answer[1]);
            let asked = request.map(|request| len(request));
            assert!(asked.is_some_and(|asked| asked >= len(answer)), "{answer:?} {asked:?}");
        }
        let wrong = "culvert_shard.message && (culvert_shard.illegal || culvert_shard.bad_checksum \
                     || culvert_shard.bad_block || _ws.malformed || _ws.lua.error)";
        for pcap in &captures {
            let wrong = dissected(pcap, wrong, &["frame.number", "_ws.expert.message"]);
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }
}

#[test]
fn two_formats_are_spoken_at_once() {
    let mut spec = TopologySpec::twins(Combo::SIMPLE);
    spec.underlay_toml = "shard = { k = 2, n = 6, hold_ms = 20 }\n";
    let topology = spec.build();
    topology.widen_wire(ROOM);
    for host in 0..2 {
        topology.reconfigure(host, |toml| with_vnet_lines(&toml, "blue", "format = \"shard\""));
    }
    topology.wait_connected(0, 1);
    topology.settle();
    checks::exercise(&topology, 0, 1);
    let before = count(&shards(&topology, 1), "whole");
    assert!(before > 0);
    topology.wait_connected(2, 3);
    checks::exercise(&topology, 2, 3);
    let after = count(&shards(&topology, 1), "whole");
    assert!(after < before + 50, "the vnet of the other format used shards: {before}, {after}");
    for host in 0..2 {
        assert_eq!(drops(&topology, host, "format_mismatch"), 0);
        assert_eq!(drops(&topology, host, "shard_bad"), 0);
    }
}

/// The steps of one stage, each with its outcome, rule and detail.
fn steps<'a>(packets: &'a [Value], stage: &str) -> Vec<&'a Value> {
    let steps = packets.iter().filter_map(|packet| packet["steps"].as_array()).flatten();
    steps.filter(|step| step["stage"] == stage).collect()
}

fn traced(process: &Process) -> Vec<Value> {
    let log = process.log();
    let lines = log.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn a_trace_shows_cut_placement_shares_and_rebuild() {
    let topology = hosts(Combo { wire: Offloads::Off, ..Combo::SIMPLE }, false);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let start = |host: usize, args: &[&str]| {
        let ns = &topology.hosts[host].ns;
        let args = [&["-o", "json", "trace"], args].concat();
        let mut process = topology.dataplane(host).spawn_cli(ns, &topology.scratch, &args);
        process.wait_for_log("waiting", Duration::from_secs(20));
        process
    };
    let large = ["-n", "40", "-p", &a.port, "tcp", "and", "greater", "5000"];
    let mut sender = start(0, &large);
    // A filter would be about inner frames, and a segment has none.
    let mut receiver = start(1, &["-n", "200", "-u"]);
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 8 << 20).unwrap();
    for (who, process) in [("sender", &mut sender), ("receiver", &mut receiver)] {
        let status = process.wait(Duration::from_secs(20));
        assert!(status.is_some_and(|status| status.success()), "{who}: {}", process.log());
    }
    let (sent, received) = (traced(&sender), traced(&receiver));
    let says = |steps: &[&Value], words: &[&str]| {
        let detail = |step: &Value| step["detail"].as_str().unwrap_or_default().to_owned();
        steps.iter().any(|step| words.iter().all(|word| detail(step).contains(word)))
    };
    let (cut, put) = (steps(&sent, "segmentation"), steps(&sent, "encapsulation"));
    assert!(says(&cut, &["bytes in", "segments of"]), "{cut:#?}");
    assert!(says(&put, &["frame 0x", "any 4 of 8 shares of", "on segments"]), "{put:#?}");
    let (segments, runs) = (steps(&received, "outer"), steps(&received, "rebuild"));
    assert!(says(&segments, &["segment", "share ", "any 4 of 8 rebuild"]), "{segments:#?}");
    assert!(says(&segments, &["no share"]), "{segments:#?}");
    assert!(says(&runs, &["of frame 0x", "vni 100"]), "{runs:#?}");
    assert!(!steps(&received, "delivery").is_empty());
}
