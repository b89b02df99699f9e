//! Configurations that cannot be carried: the error names the place, nothing changes, the exit code is not zero.

use std::process::Command;
use std::time::Duration;

use culvert_tests::culvert::binary;
use culvert_tests::process::run_command;
use culvert_tests::tools::{Datagrams, udp_exchange};
use culvert_tests::{Combo, Process, Scratch, Topology, TopologySpec};

/// Applies `toml` on host A; it must be refused with a message that contains all of `words`, and traffic goes on.
#[track_caller]
fn refused(topology: &Topology, toml: &str, words: &[&str]) {
    let host = &topology.hosts[0].ns;
    let dataplane = topology.dataplane(0);
    let shown = || dataplane.cli(host, &["-o", "json", "show", "ports"]).unwrap();
    let before = shown();
    dataplane.write_config(toml);
    let error = match dataplane.try_apply(host) {
        Ok(out) => panic!("accepted:\n{toml}\n{out}"),
        Err(error) => error,
    };
    assert!(error.code().is_some_and(|code| code != 0 && code != 101), "{error}");
    for word in words {
        assert!(error.stderr().contains(word), "the message lacks \"{word}\":\n{}", error.stderr());
    }
    assert_eq!(shown(), before, "a refused configuration changed something");
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let report = udp_exchange(&a.ns, &b.ns, topology.address(1), Datagrams::plain(100, 5)).unwrap();
    assert!(report.is_perfect(), "{report:?}");
}

#[test]
fn each_bad_configuration_is_refused_by_name_and_changes_nothing() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let with = |more: &str| format!("{good}\n{more}\n");
    let port = |id: &str, device: &str, ip: &str| {
        with(&format!(
            "[[port]]\nid = \"{id}\"\nvnet = \"blue\"\nattach = {{ xdp = \"{device}\" }}\n\
             mac = \"02:00:00:00:00:77\"\nips = [\"{ip}\"]"
        ))
    };
    refused(&topology, &port("x", "nosuch0", "10.77.1.50"), &["nosuch0"]);
    refused(&topology, &port("x", "lo", &topology.tenants[0].v4.to_string()), &["10.77.1.1"]);
    refused(&topology, &port("t0", "lo", "10.77.1.50"), &["t0"]);
    refused(&topology, &port("x", "t0", "10.77.1.50"), &["t0"]);
    refused(&topology, &with("[[vnet]]\nid = \"red\"\nvni = 100"), &["100"]);
    refused(&topology, &with("[[vnet]]\nid = \"red\"\nvni = 16777216"), &["16777216"]);
    refused(
        &topology,
        &with("[[route]]\nvnet = \"blue\"\nprefix = \"10.77.1.5/24\"\nto = \"drop\""),
        &["10.77.1.5/24", "10.77.1.0/24"],
    );
    refused(&topology, &with("[[vnet]]\nid = \"red\"\nvni = 7\ncolour = \"red\""), &["colour"]);
    let small = good.replace("[underlay]\n", "[underlay]\nmtu = 500\n");
    refused(&topology, &small, &["500"]);
    refused(&topology, "this is no TOML", &["a.toml:1:"]);
}

#[test]
fn a_socket_in_use_is_named() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    let host = &topology.hosts[0].ns;
    let socket = topology.dataplane(0).socket().display().to_string();
    let bpffs = topology.dataplane(0).bpffs().with_extension("second");
    let mut command = host.command(binary("culvert-dataplane"));
    command.args(["--workers", "1", "--socket", &socket, "--bpffs"]).arg(&bpffs);
    let mut second = Process::spawn(&topology.scratch, "culvert-dataplane", command);
    let status = second.wait(Duration::from_secs(10));
    assert!(status.is_some_and(|s| !s.success()), "{status:?}");
    assert!(second.log().contains(&socket), "{}", second.log());
    // The first one still answers.
    assert!(topology.dataplane(0).cli(host, &["show", "info"]).is_ok());
}

#[test]
fn a_missing_privilege_is_named() {
    let mut scratch = Scratch::new();
    let bpffs = scratch.bpffs();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    command.arg(binary("culvert-dataplane"));
    command.arg("--socket").arg(scratch.file("x.sock")).arg("--bpffs").arg(bpffs.join("x"));
    let mut process = Process::spawn(&scratch, "culvert-dataplane", command);
    let status = process.wait(Duration::from_secs(10));
    assert!(status.is_some_and(|s| !s.success()), "{status:?}");
    assert!(process.log().contains("CAP_"), "{}", process.log());
}

#[test]
fn an_absent_dataplane_is_exit_code_3() {
    let scratch = Scratch::new();
    let mut command = Command::new(binary("culvert"));
    command.arg("--socket").arg(scratch.file("nobody.sock")).args(["show", "info"]);
    let error = run_command(&mut command).unwrap_err();
    assert_eq!(error.code(), Some(3), "{error}");
    assert!(error.stderr().contains("nobody.sock"), "{error}");
}
