//! One `culvert-dataplane` process and the CLI that talks to it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::netns::Netns;
use crate::process::{CommandError, Process, run_command};
use crate::scratch::Scratch;
use crate::stats::Stats;
use crate::wait_until;

/// Where the built program `name` is.
///
/// The folder is `CULVERT_BIN_DIR` if set, else that of the running program's build profile.
///
/// # Panics
/// If the program was not built.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("CULVERT_BIN_DIR").map_or_else(
        || {
            let own = std::env::current_exe().unwrap_or_default();
            let folder = own.parent().unwrap_or(Path::new("."));
            // Test programs are in `deps`, below the folder of the binaries.
            if folder.ends_with("deps") { folder.join("..") } else { folder.to_owned() }
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} does not exist: run `cargo build --workspace` first, or set CULVERT_BIN_DIR",
        path.display()
    );
    path
}

/// A dataplane of one host: its socket, pins, configuration and, while it runs, its process.
#[derive(Debug)]
pub struct Culvert {
    process: Option<Process>,
    socket: PathBuf,
    bpffs: PathBuf,
    config: PathBuf,
    cpu: usize,
}

impl Culvert {
    /// Prepares a dataplane called `name` that keeps its pins below `bpffs`; its worker is pinned to `cpu`.
    pub fn new(scratch: &Scratch, name: &str, bpffs: &Path, cpu: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            process: None,
            socket: scratch.file(&format!("{name}.sock")),
            bpffs: bpffs.join(name),
            config: scratch.file(&format!("{name}.toml")),
            cpu: cpu % cpus,
        }
    }

    /// Starts the process in `ns` and waits until its socket answers.
    ///
    /// # Panics
    /// With its log, if it does not answer within 20 seconds.
    pub fn start(&mut self, ns: &Netns, scratch: &Scratch, args: &[String]) {
        self.start_by(&[], ns, scratch, args);
    }

    /// As [`Culvert::start`], by a program that starts another; `wrapper` is its command line.
    ///
    /// # Panics
    /// With its log, if it does not answer within 20 seconds.
    pub fn start_by(&mut self, wrapper: &[String], ns: &Netns, scratch: &Scratch, args: &[String]) {
        let program = binary("culvert-dataplane");
        let mut command = match wrapper.split_first() {
            None => ns.command(program),
            Some((wrapper, args)) => {
                let mut command = ns.command(wrapper);
                command.args(args).arg(program);
                command
            }
        };
        command.env("NO_COLOR", "1");
        command.arg("--socket").arg(&self.socket).arg("--bpffs").arg(&self.bpffs);
        if !args.iter().any(|arg| arg == "--workers") {
            command.args(["--workers", "1", "--cpus", &self.cpu.to_string()]);
        }
        if !args.iter().any(|arg| arg == "--log") {
            command.args(["--log", "info"]);
        }
        command.args(args);
        let mut process = Process::spawn(scratch, "culvert-dataplane", command);
        let socket = self.socket.clone();
        wait_until(Duration::from_secs(20), || {
            process.status().is_some() || UnixStream::connect(&socket).is_ok()
        });
        assert!(
            process.status().is_none() && UnixStream::connect(&socket).is_ok(),
            "culvert-dataplane does not answer on {}; its log:\n{}",
            socket.display(),
            process.log()
        );
        self.process = Some(process);
    }

    /// Replaces the text of `host.toml`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write_config(&self, toml: &str) {
        fs::write(&self.config, toml)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", self.config.display()));
    }

    /// The text of `host.toml` as last written.
    pub fn config(&self) -> String {
        fs::read_to_string(&self.config).unwrap_or_default()
    }

    /// Applies `host.toml`.
    ///
    /// # Panics
    /// With the CLI's message and the dataplane's log, if it is refused.
    #[track_caller]
    pub fn apply(&self, ns: &Netns) {
        if let Err(e) = self.try_apply(ns) {
            panic!("{e}\nhost.toml:\n{}\ndataplane's log:\n{}", self.config(), self.log());
        }
    }

    /// Applies `host.toml`; returns what the CLI printed.
    ///
    /// # Errors
    /// The CLI's exit code and message.
    pub fn try_apply(&self, ns: &Netns) -> Result<String, CommandError> {
        self.cli(ns, &["apply", "-f", &self.config.display().to_string()])
    }

    /// Runs the CLI with `args` against this dataplane.
    ///
    /// # Errors
    /// The CLI's exit code and message.
    pub fn cli(&self, ns: &Netns, args: &[&str]) -> Result<String, CommandError> {
        let mut command = ns.command(binary("culvert"));
        command.arg("--socket").arg(&self.socket).args(args);
        run_command(&mut command)
    }

    /// Starts the CLI with `args` against this dataplane; it runs beside the test, its output is its log.
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn spawn_cli(&self, ns: &Netns, scratch: &Scratch, args: &[&str]) -> Process {
        let mut command = ns.command(binary("culvert"));
        command.arg("--socket").arg(&self.socket).args(args);
        Process::spawn(scratch, "culvert", command)
    }

    /// All counters of this dataplane.
    ///
    /// # Panics
    /// If it does not answer, or not in JSON.
    #[track_caller]
    pub fn stats(&self, ns: &Netns) -> Stats {
        let text = match self.cli(ns, &["-o", "json", "stats"]) {
            Ok(text) => text,
            Err(e) => panic!("{e}\ndataplane's log:\n{}", self.log()),
        };
        match serde_json::from_str(&text) {
            Ok(value) => Stats::new(value),
            Err(e) => panic!("`culvert stats -o json` printed no JSON: {e}\n{text}"),
        }
    }

    /// The running process.
    ///
    /// # Panics
    /// If it was not started.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        match &mut self.process {
            Some(process) => process,
            None => panic!("culvert-dataplane was not started"),
        }
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| p.status().is_none())
    }

    /// What the process wrote so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The folder of its pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }
}
