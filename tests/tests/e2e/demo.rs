//! `scripts/demo`, with the programs of the tests: it works, and leaves nothing behind however it ends.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_tests::culvert::binary;
use culvert_tests::process::run_command;
use culvert_tests::{Process, Scratch, sys, wait_until};

/// In the environment of every process of a demo of ours.
const MARK: &str = "CULVERT_DEMO_OF_TEST";

const RUN: &str = "/run/culvert-demo";

/// The only demo of this machine; its names are fixed. Whatever is left of it goes with this value.
struct Demo {
    _one_at_a_time: MutexGuard<'static, ()>,
    scratch: Scratch,
}

impl Demo {
    fn new() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let there = remains();
        assert!(
            there.is_empty(),
            "a demo runs on this machine, or its rest is there: {there:?}; this test does not touch it: \
             if nobody needs it, `scripts/demo --down` removes it"
        );
        Self { _one_at_a_time: guard, scratch: Scratch::new() }
    }

    fn command(options: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
        let mut command = Command::new(script);
        command.args(options).env(MARK, std::process::id().to_string());
        command.env("CULVERT_BIN_DIR", binary("culvert-dataplane").parent().unwrap());
        command
    }

    /// Starts it as a terminal would: in a process group of its own.
    fn start(&self, options: &[&str]) -> Process {
        let mut command = Self::command(options);
        command.args(["--seconds", "1"]);
        command.process_group(0);
        sys::end_with_parent(&mut command);
        Process::spawn(&self.scratch, "demo", command)
    }

    fn down() {
        run_command(&mut Self::command(&["--down"])).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if !remains().is_empty() {
            let _ = run_command(&mut Self::command(&["--down"]));
        }
    }
}

/// Namespaces, folders, mounts and processes of a demo; empty when there is none.
fn remains() -> Vec<String> {
    let names = |path: &str| -> Vec<PathBuf> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut found = Vec::new();
    if Path::new(RUN).exists() {
        found.push(RUN.to_owned());
    }
    let demos = names("/run/netns").into_iter().filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("demo-"))
    });
    found.extend(demos.map(|path| path.display().to_string()));
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(RUN)).map(str::to_owned));
    let mark = format!("{MARK}={}", std::process::id());
    for process in names("/proc") {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            found.push(format!("{}: {}", process.display(), String::from_utf8_lossy(&line)));
        }
    }
    found
}

/// The kernel takes a namespace down, and reaps the last process, a little later.
#[track_caller]
fn assert_nothing_remains(when: &str) {
    let gone = wait_until(Duration::from_secs(5), || remains().is_empty());
    assert!(gone, "{when}: {:?}", remains());
}

#[test]
fn the_demo_runs_to_its_end_and_cleans_up() {
    let demo = Demo::new();
    let mut run = demo.start(&[]);
    let status = run.wait(Duration::from_secs(120)).expect("it ends");
    let log = run.log();
    assert!(status.success(), "{status}\n{log}");
    for title in
        ["ping, IPv4", "ping, IPv6", "TCP, tenant a to b", "TCP, tenant b to a", "UDP, 1400"]
    {
        let row = log.lines().find(|line| line.starts_with(title));
        let row = row.unwrap_or_else(|| panic!("no row \"{title}\" in\n{log}"));
        let good = if title.starts_with("ping") {
            row.contains(" 0% packet loss, rtt ")
        } else {
            let rate = row.strip_suffix(" Gb/s").and_then(|row| row.rsplit(' ').next());
            rate.and_then(|rate| rate.parse().ok()).is_some_and(|rate: f64| rate > 0.0)
        };
        assert!(good, "{row}");
    }
    assert!(log.contains("Host a:") && log.contains("Host b:"), "{log}");
    for line in ["+ port tenant-b: vnet blue", "  = sent", "  = dropped: no_mapping"] {
        assert!(log.contains(line), "no line \"{line}\" in\n{log}");
    }
    assert_nothing_remains("after its end");
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let demo = Demo::new();
    for moment in ["Two hosts, a wire", "A dataplane and a culvertd", "What is wanted", "Traffic"] {
        let mut run = demo.start(&[]);
        run.wait_for_log(moment, Duration::from_secs(60));
        sys::kill_group(run.pid(), libc::SIGINT).unwrap();
        let status = run.wait(Duration::from_secs(30)).expect("it ends");
        assert_eq!(status.code(), Some(130), "at \"{moment}\":\n{}", run.log());
        assert_nothing_remains(moment);
    }
}

#[test]
fn a_demo_that_is_kept_works_until_it_is_taken_down() {
    let demo = Demo::new();
    let mut run = demo.start(&["--keep"]);
    let status = run.wait(Duration::from_secs(120)).expect("it ends");
    assert!(status.success(), "{status}\n{}", run.log());
    let ping = ["--net=/run/netns/demo-tenant-a", "ping", "-n", "-c", "2", "-W", "2", "10.0.0.2"];
    run_command(Command::new("nsenter").args(ping)).unwrap();

    let second = run_command(&mut Demo::command(&[])).unwrap_err();
    assert_eq!(second.code(), Some(1), "{second}");
    assert!(second.stderr().contains("--down removes it"), "{second}");
    run_command(Command::new("nsenter").args(ping)).expect("the second left the first alone");

    Demo::down();
    assert_nothing_remains("after --down");
}

/// Loss must not look like success: here the second host's tenant has no IPv6 address that answers.
#[test]
fn a_demo_whose_packets_are_lost_fails_and_cleans_up() {
    let demo = Demo::new();
    let mut run = demo.start(&[]);
    run.wait_for_log("A dataplane and a culvertd", Duration::from_secs(60));
    let remove = "-n demo-tenant-b addr del fd00::2/64 dev eth0";
    run_command(Command::new("ip").args(remove.split(' '))).unwrap();
    let status = run.wait(Duration::from_secs(120)).expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", run.log());
    assert!(run.log().contains("demo: nothing answers at fd00::2"), "{}", run.log());
    assert_nothing_remains("after it failed");
}
