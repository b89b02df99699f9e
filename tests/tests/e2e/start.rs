//! A start without all that is needed: what is missing is named, and what is used instead.

use std::process::Command;
use std::time::Duration;

use culvert_tests::culvert::binary;
use culvert_tests::process::{CommandError, run_command};
use culvert_tests::tools::{Datagrams, tcp_transfer, udp_exchange};
use culvert_tests::topology::TENANT_DEVICE;
use culvert_tests::{
    Combo, Family, Netns, Offloads, Peer, Process, Scratch, Topology, TopologySpec, link,
    wait_until,
};

/// What README asks for.
const CAPABILITIES: [&str; 5] = ["net_admin", "net_raw", "bpf", "perfmon", "ipc_lock"];

/// A host and the state that it should carry, its dataplane not started.
struct Bare {
    topology: Topology,
    scratch: Scratch,
}

/// How a start without something ended.
#[derive(Debug)]
enum Outcome {
    /// The process ended and said this.
    Refused(String),
    /// It started, and the state was refused so.
    StateRefused(CommandError),
    /// All works; this is its log.
    Works(String),
}

impl Bare {
    fn new() -> Self {
        let topology = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Bare).build();
        let scratch = Scratch::new();
        std::fs::write(scratch.file("host.toml"), topology.host_toml(0)).unwrap();
        Self { topology, scratch }
    }

    fn host(&self) -> &Netns {
        &self.topology.hosts[0].ns
    }

    /// Starts the dataplane behind `wrapper`, a program that starts another, and applies the state.
    fn start(&mut self, wrapper: &[&str]) -> Outcome {
        let bpffs = self.scratch.bpffs();
        let socket = self.scratch.file("dataplane.sock");
        let mut command = self.host().command(wrapper[0]);
        command.env("NO_COLOR", "1").args(&wrapper[1..]).arg(binary("culvert-dataplane"));
        command.args(["--workers", "1", "--chunks", "4096", "--release-on-stop"]);
        command.arg("--socket").arg(&socket).arg("--bpffs").arg(bpffs.join("x"));
        let mut process = Process::spawn(&self.scratch, "culvert-dataplane", command);
        wait_until(Duration::from_secs(10), || {
            process.status().is_some() || process.log().contains("ready")
        });
        if let Some(status) = process.status() {
            assert!(!status.success(), "it ended and calls that a success: {}", process.log());
            assert!(status.code().is_some_and(|code| code != 101), "a panic: {}", process.log());
            return Outcome::Refused(process.log());
        }
        let mut apply = self.host().command(binary("culvert"));
        apply.arg("--socket").arg(&socket).args(["apply", "-f"]);
        apply.arg(self.scratch.file("host.toml"));
        let applied = run_command(&mut apply);
        let log = process.log();
        assert!(process.status().is_none(), "it died of the state: {log}");
        process.stop(Duration::from_secs(5));
        match applied {
            Ok(_) => Outcome::Works(log),
            Err(error) => Outcome::StateRefused(error),
        }
    }

    /// Starts with the capabilities `kept` alone, and a small limit of locked memory.
    fn start_with(&mut self, kept: &[&str]) -> Outcome {
        let set: Vec<String> = kept.iter().map(|name| format!("+{name}")).collect();
        let bounding = format!("-all,{}", set.join(","));
        let limit = ["prlimit", "--memlock=1048576:1048576", "setpriv"];
        let capabilities = ["--bounding-set", &bounding, "--inh-caps", "-all"];
        self.start(&[&limit[..], &capabilities].concat())
    }
}

#[test]
fn the_documented_capabilities_are_enough_and_each_missing_one_is_named() {
    let mut bare = Bare::new();
    let all = bare.start_with(&CAPABILITIES);
    assert!(matches!(all, Outcome::Works(_)), "{all:?}");
    for missing in CAPABILITIES {
        let kept: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        let said = match bare.start_with(&kept) {
            Outcome::Refused(log) => log,
            Outcome::StateRefused(error) => error.stderr().to_owned(),
            Outcome::Works(log) => panic!("without {missing} all works:\n{log}"),
        };
        let name = format!("CAP_{}", missing.to_uppercase());
        assert!(said.contains(&name), "without {missing} it says:\n{said}");
        for other in kept {
            // It is no help to hear of capabilities that one has.
            let other = format!("CAP_{}", other.to_uppercase());
            assert!(!said.contains(&other), "{missing} is missing, and it names {other}:\n{said}");
        }
    }
    // Nothing of the failed starts is in the way of a good one.
    let again = bare.start(&["env"]);
    assert!(matches!(again, Outcome::Works(_)), "{again:?}");
}

#[test]
fn a_user_other_than_root_needs_the_documented_capabilities_and_no_more() {
    const NOBODY: u32 = 65_534;
    let mut bare = Bare::new();
    // Its socket and its files go where it may write; a BPF file system is open to all.
    std::os::unix::fs::chown(bare.scratch.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let all: Vec<String> = CAPABILITIES.iter().map(|name| format!("+{name}")).collect();
    let all = all.join(",");
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let capabilities = ["--inh-caps", &all, "--ambient-caps", &all];
    let outcome = bare.start(&[&user[..], &capabilities].concat());
    assert!(matches!(outcome, Outcome::Works(_)), "{outcome:?}");
    let outcome = bare.start(&user);
    assert!(matches!(&outcome, Outcome::Refused(log) if log.contains("CAP_BPF")), "{outcome:?}");
}

/// A program that hides the kernel's type information from another, in a mount namespace of its own.
fn without_btf(scratch: &Scratch) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let empty = scratch.file("empty");
    std::fs::create_dir(&empty).unwrap();
    let script = scratch.file("without-btf");
    let text = format!(
        "#!/bin/sh\nset -e\nmount --bind {} /sys/kernel/btf\nexec \"$@\"\n",
        empty.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn a_kernel_without_btf_is_said_and_what_remains_passes() {
    for wire in [Offloads::On, Offloads::Off] {
        let combo = Combo { wire, ..Combo::SIMPLE };
        let mut topology = TopologySpec::pair(combo).with_peers(Peer::Bare, Peer::Culvert).build();
        let script = without_btf(&topology.scratch);
        topology.spec.dataplane_wrapper =
            vec!["unshare".into(), "-m".into(), script.display().to_string()];
        topology.start_culvert(0);
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        // README: turn these off on such a kernel.
        let off = ["tx-udp-segmentation", "tx-sctp-segmentation", "tx-vlan-offload"];
        for tenant in [a, b] {
            link::set_features(&tenant.ns, TENANT_DEVICE, &off, false);
        }
        let log = topology.dataplane(0).log();
        assert!(log.contains("WARN") && log.contains("metadata"), "no warning:\n{log}");
        let host = &topology.hosts[0].ns;
        let info = topology.dataplane(0).cli(host, &["show", "info"]).unwrap();
        let line = info.lines().find(|line| line.contains("frame-metadata")).unwrap_or_default();
        for word in ["BTF", "TCP"] {
            assert!(line.contains(word), "`show info` does not say \"{word}\":\n{info}");
        }
        topology.wait_connected(0, 1);
        for family in [Family::V4, Family::V6] {
            let dst = b.address(family);
            tcp_transfer(&a.ns, &b.ns, dst, 4 << 20).unwrap_or_else(|e| panic!("{combo}: {e}"));
            for what in [Datagrams::plain(1400, 10), Datagrams::gso(1000, 40, 20)] {
                let report = udp_exchange(&a.ns, &b.ns, dst, what).unwrap();
                assert!(report.is_perfect(), "{combo}, {what:?}: {report:?}");
            }
        }
        // A superframe whose kind nobody knows is not guessed at.
        link::set_features(&a.ns, TENANT_DEVICE, &off[..1], true);
        let before = topology.stats(0);
        let lost = udp_exchange(&a.ns, &b.ns, b.v4.into(), Datagrams::gso(1000, 20, 20)).unwrap();
        assert_eq!((lost.intact, lost.wrong), (0, 0), "{lost:?}");
        let moved = topology.stats(0).drops_since(&before);
        assert_eq!(moved.get("unknown_superframe"), Some(&1), "{moved:?}");
    }
}

#[test]
fn a_device_node_that_may_not_be_opened_is_not_taken_for_a_missing_capability() {
    let mut bare = Bare::new();
    let toml = bare.topology.host_toml(0);
    let attach = toml.lines().find(|line| line.starts_with("attach = ")).unwrap();
    let toml = toml.replace(attach, "attach = { tap = \"tap0\" }");
    std::fs::write(bare.scratch.file("host.toml"), toml).unwrap();
    // The node is there, where no devices may be used.
    let script = "mount -t tmpfs -o nodev none /dev/net && mknod -m 600 /dev/net/tun c 10 200 && exec \"$@\"";
    let outcome = bare.start(&["unshare", "-m", "bash", "-c", script, "bash"]);
    let Outcome::StateRefused(refused) = &outcome else { panic!("{outcome:?}") };
    let said = refused.stderr();
    assert!(said.contains("cannot open /dev/net/tun: Permission denied"), "{said}");
    assert!(said.contains("its mode and owner") && !said.contains("CAP_"), "{said}");
}

#[test]
fn a_folder_for_pins_that_is_on_no_bpf_file_system_is_named() {
    let scratch = Scratch::new();
    let ns = Netns::new("x");
    let pins = scratch.file("pins");
    let mut command: Command = ns.command(binary("culvert-dataplane"));
    command.arg("--socket").arg(scratch.file("x.sock")).arg("--bpffs").arg(&pins);
    let mut process = Process::spawn(&scratch, "culvert-dataplane", command);
    let status = process.wait(Duration::from_secs(10));
    assert!(status.is_some_and(|status| !status.success()), "{status:?}: {}", process.log());
    let log = process.log();
    assert!(log.contains("pins") && log.contains("bpf"), "{log}");
}
