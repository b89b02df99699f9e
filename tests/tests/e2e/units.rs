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
use culvert_tests::{
    Combo, Netns, Peer, Process, Scratch, Topology, TopologySpec, package, wait_until,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A container with systemd.
struct Booted {
    _systemd: Process,
    shared: PathBuf,
    units: &'static [&'static str],
}

impl Booted {
    /// Boots it in a network namespace, with these units, and with files of these paths and contents.
    fn new(
        ns: &Netns,
        scratch: &Scratch,
        units: &'static [&'static str],
        files: &[(&str, &str)],
    ) -> Booted {
        let folder = scratch.file("container");
        fs::create_dir(&folder).unwrap();
        for (path, content) in files {
            let path = folder.join("files").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("units/boot");
        let mut command = ns.command(script);
        command.arg(&folder).arg(package::build()).args(units);
        let systemd = Process::spawn(scratch, "systemd", command);
        Booted { _systemd: systemd, shared: folder.join("shared"), units }
    }

    fn logs(&self) -> String {
        self.units
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
        let pid = self.running(program);
        pid.unwrap_or_else(|| panic!("no {program} runs:\n{}", self.logs()))
    }

    fn running(&self, program: &str) -> Option<u32> {
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
        pids.find(ours)
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
    let booted =
        Booted::new(&topology.hosts[0].ns, &scratch, &["culvert-dataplane", "culvertd"], &[]);
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

const GATEWAY: &str = r#"
cache = "/var/lib/culvert-gateway/cache"
cache-size = "96M"
log-size = "16M"
store = "/var/lib/culvert-gateway/store"
volume = ["vol=8M"]
"#;

#[test]
fn the_gateway_starts_with_the_first_client_of_its_socket() {
    let scratch = Scratch::new();
    let ns = Netns::new("units");
    let files = [("etc/culvert/gateway.toml", GATEWAY)];
    let booted = Booted::new(&ns, &scratch, &["culvert-gateway"], &files);
    let listens = || ns.run("ss -Hltn").contains("127.0.0.1:10809");
    assert!(wait_until(LIMIT, listens), "nobody listens:\n{}", booted.logs());
    assert_eq!(booted.running("culvert-gateway"), None, "it runs without a client");

    let io = |commands: [&str; 2]| {
        let mut command = ns.command("qemu-io");
        command.args(["-f", "raw", "-c", commands[0], "-c", commands[1], "nbd://127.0.0.1/vol"]);
        let said = run_command(&mut command);
        let said = said.unwrap_or_else(|e| panic!("{commands:?}: {e}\n{}", booted.logs()));
        assert!(!said.contains("failed"), "{commands:?}: {said}");
    };
    io(["write -P 7 4k 64k", "flush"]);
    io(["read -P 7 4k 64k", "read -P 0 68k 64k"]);
    let first = booted.pid_of("culvert-gateway");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        assert_eq!(status(first, set), format!("{:016x}", 0), "{set}");
    }
    assert_ne!(status(first, "Uid").split_whitespace().next(), Some("0"));
    assert_eq!(status(first, "Seccomp"), "2");
    assert_eq!(status(first, "NoNewPrivs"), "1");
    // It has no socket of its own making: no other port.
    let ports = ns.run("ss -Hltn");
    assert_eq!(ports.lines().count(), 1, "{ports}");

    // Killed, it starts anew; a client that comes meanwhile waits, and finds everything.
    run_command(Command::new("kill").args(["-9", &first.to_string()])).unwrap();
    io(["read -P 7 4k 64k", "write -P 8 1M 4k"]);
    let second = booted.pid_of("culvert-gateway");
    assert_ne!(second, first);
    // Stopped in order, it says so, and is there again for the next one.
    run_command(Command::new("kill").arg(second.to_string())).unwrap();
    io(["read -P 8 1M 4k", "read -P 7 4k 64k"]);
    assert!(booted.logs().contains("closed in order"), "{}", booted.logs());
}
