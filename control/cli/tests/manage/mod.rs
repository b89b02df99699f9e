//! Verbs that manage objects, against a fake culvertd.

mod fake;
mod format;
mod shard;

use culvert_model::api;
use serde_json::json;

use crate::fake::Ran;
use fake::Running;

/// One that has an underlay and a vnet.
fn started() -> Running {
    let daemon = Running::start();
    let out =
        daemon.ok(&["host", "add", "--interface", "eth0", "--address", "192.0.2.1,2001:db8::1"]);
    assert_eq!(
        out,
        "+ underlay: interfaces eth0; addresses 192.0.2.1, 2001:db8::1; mode auto; rx xdp; tx auto; merge_hold_us 0\n\
         1 added, 0 changed, 0 deleted: revision 1\n"
    );
    daemon.ok(&["vnet", "add", "blue", "--vni", "100"]);
    daemon
}

const PORT: [&str; 11] = [
    "port",
    "add",
    "web",
    "--vnet",
    "blue",
    "--xdp",
    "veth1",
    "--mac",
    "02:00:00:00:00:01",
    "--ip",
    "10.0.0.1,fd00::1",
];

#[test]
fn a_port_is_added_changed_shown_and_deleted() {
    let daemon = started();
    assert_eq!(
        daemon.ok(&PORT),
        "+ port web: vnet blue; attach xdp; device veth1; mac 02:00:00:00:00:01; \
         ips 10.0.0.1, fd00::1; anti_spoof yes; mode auto; state active; udp_gro no\n\
         1 added, 0 changed, 0 deleted: revision 3\n"
    );
    assert_eq!(
        daemon.ok(&["port", "set", "web", "--mtu", "1400", "--state", "blocked", "--ip", "none"]),
        "~ port web: ips 10.0.0.1, fd00::1 -> -; mtu - -> 1400; state active -> blocked\n\
         0 added, 1 changed, 0 deleted: revision 4\n"
    );
    daemon.ok(&["port", "set", "web", "--mtu", "none", "--meter-rx", "100M/256k"]);
    let json = daemon.culvert(&["-o", "json", "port", "show", "web"]).json();
    assert_eq!(
        json[0]["meter"],
        json!({"rx": {"rate_bps": 100_000_000, "burst_bytes": 256_000}, "tx": null})
    );
    assert_eq!((&json[0]["mtu"], &json[0]["status"]), (&json!(null), &json!("applied")));
    let table = daemon.ok(&["port", "show"]);
    let mut lines = table.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["PORT", "VNET", "ATTACH", "DEVICE", "MAC", "IPS", "ACL", "WANTED", "STATUS", "NOTES"]
    );
    assert!(lines.next().unwrap().starts_with("web"), "{table}");
    assert_eq!(
        daemon.ok(&["port", "del", "web"]),
        "- port web\n0 added, 0 changed, 1 deleted: revision 6\n"
    );
    assert_eq!(daemon.ok(&["port", "show"]), "none\n");
}

#[test]
fn rules_are_managed_by_what_names_them() {
    let daemon = started();
    daemon.ok(&PORT);
    daemon.ok(&["vnet", "add", "green", "--vni", "200", "--flood", "true"]);
    let out = daemon.ok(&["route", "add", "--port", "web", "10.0.0.0/24", "--to", "vnet:green"]);
    assert!(out.starts_with("+ route port web 10.0.0.0/24: action vnet; to_vnet green\n"), "{out}");
    let out = daemon.ok(&["route", "set", "--port", "web", "10.0.0.0/24", "--to", "drop"]);
    assert!(out.contains("action vnet -> drop; to_vnet green -> -"), "{out}");
    daemon.ok(&["route", "del", "--port", "web", "10.0.0.0/24"]);
    let mapping = ["mapping", "add", "blue", "10.0.0.2", "--mac", "02:00:00:00:00:02", "--vtep"];
    let out = daemon.ok(&[mapping.as_slice(), &["192.0.2.2"]].concat());
    assert!(out.starts_with("+ mapping blue 10.0.0.2: mac"), "{out}");
    let out = daemon.ok(&["mapping", "set", "blue", "10.0.0.2", "--vtep", "192.0.2.3"]);
    assert!(out.starts_with("~ mapping blue 10.0.0.2: vtep 192.0.2.2 -> 192.0.2.3\n"), "{out}");
    daemon.ok(&["ingress", "add", "100", "--vtep", "192.0.2.0/24", "--action", "decap"]);
    daemon.ok(&["ingress", "del", "100", "--vtep", "192.0.2.0/24"]);
    daemon.ok(&[
        "acl",
        "add",
        "web",
        "--stateful",
        "true",
        "--rule",
        "ingress allow tcp local-ports=80,443",
        "--rule",
        "egress allow",
    ]);
    daemon.ok(&["port", "set", "web", "--acl", "web"]);
    let json = daemon.culvert(&["-o", "json", "acl", "show"]).json();
    assert_eq!(json[0]["rules"][0]["local_ports"], "80, 443");
    let out = daemon.ok(&["acl", "set", "web", "--rule", "ingress deny"]);
    assert!(out.starts_with("~ acl web: rules "), "{out}");
    let vnet = [
        "vnet",
        "set",
        "blue",
        "--gateway",
        "10.0.0.254/24@02:00:00:00:00:fe,fd00::ffff/64@02:00:00:00:00:fe",
    ];
    daemon.ok(&[vnet.as_slice(), &["--dns", "10.0.0.53"]].concat());
    let json = daemon.culvert(&["-o", "json", "vnet", "show", "blue"]).json();
    assert_eq!(json[0]["dhcp"]["dns"], json!(["10.0.0.53"]));
    daemon.ok(&["vnet", "set", "blue", "--dhcp", "false"]);
    assert_eq!(
        daemon.culvert(&["-o", "json", "vnet", "show", "blue"]).json()[0]["dhcp"],
        json!(null)
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let daemon = started();
    let out = daemon.ok(&[PORT.as_slice(), &["--dry-run"]].concat());
    assert!(
        out.ends_with("would be 1 added, 0 changed, 0 deleted; nothing was changed\n"),
        "{out}"
    );
    assert_eq!(daemon.ok(&["port", "show"]), "none\n");
}

#[test]
fn bad_values_name_flag_value_and_what_is_legal() {
    let daemon = started();
    for (args, says) in [
        (
            ["--mac", "zz"],
            "invalid value 'zz' for '--mac <MAC>': \"zz\": not a MAC address; legal is",
        ),
        (["--ip", "10.0.0"], "'--ip <IPS>': \"10.0.0\": not an IP address; legal is"),
        (["--mtu", "100"], "'--mtu <BYTES>': 100: not an MTU; legal is 576 to 65535"),
        (["--state", "actve"], "did you mean \"active\"?"),
        (["--meter-rx", "fast"], "not a number; legal is as 64000"),
        (["--stat", "active"], "'--state'"),
    ] {
        let said = daemon.fails(2, &[["port", "set", "web"].as_slice(), &args].concat());
        assert!(said.contains(says), "{args:?}: {said}");
    }
    let said = daemon.fails(2, &["port", "add", "web", "--vnet", "blue", "--tap", "t0"]);
    assert!(said.contains("--mac: missing for a new one; legal is a MAC address"), "{said}");
    let said = daemon.fails(2, &["vnet", "set", "bleu", "--flood", "true"]);
    assert_eq!(
        said,
        "culvert: vnet bleu: not there; `culvert vnet add` makes one; did you mean \"blue\"?\n"
    );
    let said = daemon.fails(2, &["vnet", "add", "blue", "--vni", "7"]);
    assert_eq!(said, "culvert: vnet blue: there already; `culvert vnet set` changes it\n");
    let said = daemon.fails(2, &["port", "show", "wbe"]);
    assert!(said.contains("\"wbe\": not there"), "{said}");
    let said = daemon.fails(2, &["vnet", "set", "blue", "--dhcp", "false", "--dns", "10.0.0.53"]);
    assert!(said.contains("--dhcp false"), "{said}");
}

#[test]
fn a_refusal_names_the_object_and_changes_nothing() {
    let daemon = started();
    let mut port = PORT;
    port[4] = "bleu";
    let said = daemon.fails(1, &port);
    assert_eq!(
        said,
        "port \"web\": vnet \"bleu\": no such vnet; legal is the id of a [[vnet]] of this host; did you mean \"blue\"?\n\
         culvert: culvertd refused the change: 1 fault; nothing was changed\n"
    );
    daemon.ok(&PORT);
    let said = daemon.fails(1, &["vnet", "del", "blue"]);
    assert!(said.contains("no such vnet"), "{said}");
    assert_eq!(daemon.script.lock().unwrap().revision, 3);
}

#[test]
fn a_change_that_others_outran_is_tried_again() {
    let daemon = started();
    daemon.script.lock().unwrap().outrun = 2;
    daemon.ok(&PORT);
    daemon.script.lock().unwrap().outrun = 100;
    let said = daemon.fails(1, &["port", "set", "web", "--mtu", "1400"]);
    assert!(said.contains("not applied: somebody was faster"), "{said}");
}

#[test]
fn what_this_host_does_not_carry_has_an_exit_code_of_its_own() {
    let daemon = started();
    let key = culvert_model::ObjectKey::Port("web".parse().unwrap());
    daemon.script.lock().unwrap().failing = Some((key, "veth1: no such device"));
    let ran = daemon.culvert(&PORT);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(
        ran.err,
        "port web: failed: veth1: no such device\n\
         culvert: accepted, but this host does not carry 1 object of it\n"
    );
    let ran = daemon.culvert(&["port", "set", "web", "--mtu", "1400", "--wait", "0"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let table = daemon.ok(&["port", "show"]);
    assert!(table.contains("failed  veth1: no such device"), "{table}");
}

#[test]
fn a_file_is_applied_pruned_and_exported_again() {
    let daemon = started();
    daemon.ok(&["vnet", "add", "other", "--vni", "300"]);
    let file = daemon.directory.path().join("host.toml");
    std::fs::write(&file, include_str!("../../../model/examples/host.toml")).unwrap();
    let file = file.to_str().unwrap();
    let would = daemon.ok(&["apply", "-f", file, "--dry-run"]);
    assert!(would.contains("~ underlay: ") && would.contains("+ port a1: "), "{would}");
    assert!(!would.contains("- vnet other"), "{would}");
    let pruned = daemon.ok(&["apply", "-f", file, "--prune"]);
    assert!(pruned.contains("- vnet other\n"), "{pruned}");
    assert_eq!(daemon.ok(&["apply", "-f", file]), "nothing to change at revision 4\n");
    let exported = daemon.ok(&["export", "--show-keys"]);
    std::fs::write(file, &exported).unwrap();
    assert_eq!(daemon.ok(&["apply", "-f", file, "--prune"]), "nothing to change at revision 4\n");
    std::fs::write(file, exported.replace("vnet = \"green\"", "vnet = \"gren\"")).unwrap();
    let said = daemon.fails(2, &["apply", "-f", file]);
    assert!(said.contains("did you mean \"green\"?"), "{said}");
}

#[test]
fn hosts_are_shown_and_forgotten() {
    let daemon = started();
    let table = daemon.ok(&["host", "show"]);
    assert!(table.contains("this host") && table.contains("its clock is 90 s behind"), "{table}");
    let json = daemon.culvert(&["-o", "json", "host", "show"]).json();
    assert_eq!(json[1]["clock_ahead_ms"], json!(-90_000));
    daemon.ok(&["host", "del", "b"]);
    let said = daemon.fails(1, &["host", "del", "a"]);
    assert!(said.contains("host a is alive"), "{said}");
    let said = daemon.fails(2, &["host", "add", "--interface", "eth1", "--address", "192.0.2.9"]);
    assert!(said.contains("culvert host set"), "{said}");
    let out = daemon.ok(&["host", "set", "--mtu", "9000"]);
    assert!(out.starts_with("~ underlay: mtu - -> 9000\n"), "{out}");
}

#[test]
fn an_absent_culvertd_exits_3() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_culvert"));
    let ran = Ran::of(command.args(["--run-dir", "/nonexistent", "port", "show"]));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.contains("no culvertd at /nonexistent/culvertd.sock"), "{ran:?}");
}

#[test]
fn changes_are_queued_while_the_store_is_away() {
    let daemon = started();
    daemon.ok(&PORT);
    daemon.script.lock().unwrap().outage = Some("no route");
    // One that is read, changed and put back; one that is deleted; a whole state.
    let ran = daemon.culvert(&["port", "set", "web", "--mtu", "1400"]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert_eq!(ran.err, "culvert: no route: queued as change 1\n");
    assert_eq!(
        ran.out,
        "~ port web: mtu - -> 1400\n0 added, 1 changed, 0 deleted: queued as change 1\n"
    );
    let ran = daemon.culvert(&["-o", "json", "port", "del", "web"]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        report["queued"],
        json!({"number": 2, "reason": "no route", "unreachable_ms": 12_000})
    );
    assert_eq!((&report["revision"], &report["dry_run"]), (&json!(null), &json!(false)));
    assert_eq!(report["changes"][0]["change"], "delete");
    let file = daemon.directory.path().join("host.toml");
    std::fs::write(&file, include_str!("../../../model/examples/host.toml")).unwrap();
    let file = file.to_str().unwrap();
    let ran = daemon.culvert(&["apply", "-f", file]);
    assert_eq!(ran.code, Some(6), "{ran:?}");
    assert!(ran.out.ends_with("queued as change 3\n"), "{ran:?}");

    // Not where that is not wanted, or cannot be.
    for refused in [
        ["port", "del", "web", "--no-queue"].as_slice(),
        &["port", "set", "web", "--mtu", "1400", "--no-queue"],
        &["port", "set", "web", "--mtu", "1400", "--dry-run"],
        &["apply", "-f", file, "--no-queue"],
        &["apply", "-f", file, "--dry-run"],
    ] {
        let said = daemon.fails(3, refused);
        assert!(said.contains("nothing was changed: no route"), "{refused:?}: {said}");
    }
    assert_eq!(daemon.script.lock().unwrap().queue.len(), 3);

    // It goes away between reading and writing.
    {
        let mut script = daemon.script.lock().unwrap();
        (script.outage, script.outage_after) = (None, Some(0));
    }
    let ran = daemon.culvert(&["port", "set", "web", "--mtu", "1300"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (Some(6), "culvert: gone just now: queued as change 4\n")
    );
}

#[test]
fn the_queue_is_listed_shown_and_cancelled() {
    let daemon = started();
    daemon.ok(&PORT);
    assert_eq!(daemon.ok(&["queue"]), "nothing is queued\n");
    let said = daemon.fails(2, &["queue", "show", "1"]);
    assert_eq!(said, "culvert: change 1: not in the queue; the queue is empty\n");
    daemon.script.lock().unwrap().outage = Some("no route");
    daemon.fails(6, &["port", "set", "web", "--mtu", "1400"]);
    daemon.fails(6, &["port", "del", "web"]);
    {
        let mut script = daemon.script.lock().unwrap();
        let second = &mut script.queue[1];
        second.set_state(api::QueueState::Failed);
        second.reasons = vec!["port web: was deleted meanwhile".to_owned()];
        second.failed_unix_ms = 5;
    }
    for list in [["queue"].as_slice(), &["queue", "list"]] {
        let table = daemon.ok(list);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["NUMBER", "STATE", "AGE", "CHANGE", "NOTES"]
        );
        assert!(lines[1].contains("1  waiting") && lines[1].contains("~ port web"), "{table}");
        assert!(lines[2].ends_with("- port web  port web: was deleted meanwhile"), "{table}");
    }
    let json = daemon.culvert(&["-o", "json", "queue"]).json();
    assert_eq!((&json[0]["state"], &json[0]["failed_unix_ms"]), (&json!("waiting"), &json!(null)));
    assert_eq!((&json[1]["state"], &json[1]["failed_unix_ms"]), (&json!("failed"), &json!(5)));
    let shown = daemon.ok(&["queue", "show", "2"]);
    assert!(
        shown.contains("not written: port web: was deleted meanwhile\n- port web\n"),
        "{shown}"
    );
    let yaml = daemon.culvert(&["-o", "yaml", "queue", "show", "1"]).out;
    assert!(yaml.starts_with("number: 1\nstate: waiting\n"), "{yaml}");
    let cancelled = daemon.ok(&["queue", "cancel", "2"]);
    assert!(cancelled.starts_with("change 2: cancelled"), "{cancelled}");
    let said = daemon.fails(2, &["queue", "cancel", "2"]);
    assert_eq!(said, "culvert: change 2: not in the queue; legal is 1\n");
}

#[test]
fn another_host_is_reached_by_three_files_and_for_what_is_wanted_only() {
    let daemon = started();
    let remote = ["--remote", "localhost:1"];
    let said = daemon.fails(2, &[remote.as_slice(), &["--tls-ca", "x", "port", "show"]].concat());
    assert_eq!(
        said,
        "culvert: --remote localhost:1: --tls-cert, --tls-key missing: culvertd takes only clients with a certificate over the network\n"
    );
    let file = daemon.directory.path().join("no.pem");
    let file = file.to_str().unwrap();
    let three = ["--tls-ca", file, "--tls-cert", file, "--tls-key", file];
    let said = daemon.fails(2, &[remote.as_slice(), &three, &["port", "show"]].concat());
    assert!(said.contains("no.pem: No such file"), "{said}");
    std::fs::write(file, "no certificate").unwrap();
    let said = daemon.fails(2, &[remote.as_slice(), &three, &["port", "show"]].concat());
    assert!(said.contains("no.pem") && said.contains("legal are PEM files"), "{said}");
    for verb in [
        ["stats"].as_slice(),
        &["show", "ports"],
        &["health"],
        &["traps"],
        &["trace", "-n", "1"],
        &["capture"],
        &["volume", "delete", "disk0"],
        &["cache", "status"],
    ] {
        let said = daemon.fails(2, &[remote.as_slice(), &three, verb].concat());
        assert!(said.contains("run it on localhost, without --remote"), "{verb:?}: {said}");
    }
    let said = daemon.fails(2, &["--remote", "localhost", "port", "show"]);
    assert!(said.contains("no port; legal is HOST:PORT"), "{said}");
}
