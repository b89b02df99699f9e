//! The installed package under systemd: its units start with what privileges they have, carry packets, and start anew.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use culvert_tests::culvert::binary;
use culvert_tests::process::run_command;
use culvert_tests::tools::{ping, tcp_transfer};
use culvert_tests::{Combo, Peer, Process, Scratch, Topology, TopologySpec, package, wait_until};

const UNITS: [&str; 2] = ["culvert-dataplane", "culvertd"];
const LIMIT: Duration = Duration::from_secs(30);

/// A container with systemd on host A.
struct Booted {
    _systemd: Process,
    shared: PathBuf,
}

impl Booted {
    fn new(topology: &Topology, scratch: &Scratch) -> Booted {
        let folder = scratch.file("container");
        fs::create_dir(&folder).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("units/boot");
        let mut command = topology.hosts[0].ns.command(script);
        command.arg(&folder).arg(package::build()).args(UNITS);
        let systemd = Process::spawn(scratch, "systemd", command);
        Booted { _systemd: systemd, shared: folder.join("shared") }
    }

    fn logs(&self) -> String {
        ["culvert-dataplane", "culvertd"]
            .iter()
            .map(|name| {
                let text = fs::read(self.shared.join(format!("{name}.log"))).unwrap_or_default();
                format!("--- {name}\n{}\n", String::from_utf8_lossy(&text))
            })
            .collect()
    }

    fn run_dir(&self) -> PathBuf {
        self.shared.join("run")
    }

    #[track_caller]
    fn wait_for(&self, socket: &str) {
        let path = self.run_dir().join(socket);
        let up = wait_until(LIMIT, || UnixStream::connect(&path).is_ok());
        assert!(up, "no {socket}:\n{}", self.logs());
    }

    fn culvert(&self, topology: &Topology, args: &[&str]) -> Result<String, String> {
        let mut command = topology.hosts[0].ns.command(binary("culvert"));
        command.arg("--run-dir").arg(self.run_dir()).args(args);
        run_command(&mut command).map_err(|error| error.to_string())
    }

    /// Process of a unit, by who listens on its socket's peer: the one whose name it is, in the container.
    fn pid_of(&self, program: &str) -> u32 {
        let ours = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The kernel keeps 15 characters.
            let run = fs::metadata(format!("/proc/{pid}/root/run/culvert")).map(|m| m.ino());
            let shared = fs::metadata(self.run_dir()).map(|m| m.ino());
            name.trim() == program.get(..15).unwrap_or(program)
                && run.is_ok_and(|run| shared.is_ok_and(|shared| run == shared))
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        pids.find(ours).unwrap_or_else(|| panic!("no {program} runs:\n{}", self.logs()))
    }
}

fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("no {field} of {pid}")).trim_start_matches(':').trim().to_owned()
}

#[test]
fn units_carry_packets_with_the_privileges_that_they_state_and_start_anew() {
    let scratch = Scratch::new();
    let spec = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Culvert);
    let topology = spec.build();
    let booted = Booted::new(&topology, &scratch);
    for socket in ["dataplane.sock", "culvertd.sock"] {
        booted.wait_for(socket);
    }
    let file = scratch.file("host.toml");
    fs::write(&file, topology.host_toml(0)).unwrap();
    let apply = || booted.culvert(&topology, &["apply", "-f", file.to_str().unwrap()]);
    let mut last = Err(String::new());
    let applied = wait_until(LIMIT, || {
        last = apply();
        last.is_ok()
    });
    assert!(applied, "{last:?}\n{}", booted.logs());
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let connected = wait_until(LIMIT, || ping(&a.ns, b.v4.into(), 1, 56).all_answered());
    if !connected {
        let shown = ["ports", "info"].map(|what| booted.culvert(&topology, &["show", what]));
        let stats = booted.culvert(&topology, &["stats"]);
        panic!("no packet passes: {shown:#?}\n{stats:#?}\n{}", booted.logs());
    }
    tcp_transfer(&a.ns, &b.ns, b.v4.into(), 4 << 20).unwrap();

    let dataplane = booted.pid_of("culvert-dataplane");
    // NET_ADMIN, NET_RAW, PERFMON, BPF.
    let four: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(status(dataplane, set), format!("{four:016x}"), "{set}");
    }
    let culvertd = booted.pid_of("culvertd");
    assert_eq!(status(culvertd, "CapEff"), format!("{:016x}", 0));
    for pid in [dataplane, culvertd] {
        assert_ne!(status(pid, "Uid").split_whitespace().next(), Some("0"));
        assert_eq!(status(pid, "Seccomp"), "2");
        assert_eq!(status(pid, "NoNewPrivs"), "1");
    }
    assert_eq!(status(dataplane, "Uid"), status(culvertd, "Uid"));

    // A TAP needs its device.
    let tap =
        ["--vnet", "blue", "--tap", "made", "--mac", "02:00:00:00:00:77", "--ip", "10.77.1.77"];
    booted.culvert(&topology, &[&["port", "add", "made"][..], &tap].concat()).unwrap();

    // Killed, it is there again and has its state, with nobody's help.
    run_command(Command::new("kill").args(["-9", &dataplane.to_string()])).unwrap();
    let back = wait_until(LIMIT, || ping(&a.ns, b.v4.into(), 1, 56).all_answered());
    assert!(back, "{}", booted.logs());
    assert_ne!(booted.pid_of("culvert-dataplane"), dataplane);
    run_command(Command::new("kill").args(["-9", &culvertd.to_string()])).unwrap();
    booted.wait_for("culvertd.sock");
    let wanted = || booted.culvert(&topology, &["-o", "json", "port", "show"]);
    assert!(wait_until(LIMIT, || wanted().is_ok_and(|shown| shown.contains("made"))));
}
