//! A gateway in a folder of its own, and stock clients.

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The program.
pub(crate) const GATEWAY: &str = env!("CARGO_BIN_EXE_culvert-gateway");

/// A folder of its own, gone with the value.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("culvert-gateway-").tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The arguments of a small gateway in this folder.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let path = |name| self.path(name).display().to_string();
        let pairs = [
            ("--cache", path("cache")),
            ("--cache-size", "96M".to_owned()),
            ("--log-size", "16M".to_owned()),
            ("--store", path("store")),
            ("--listen", path("nbd.sock")),
            ("--control", path("control.sock")),
        ];
        let mut arguments = vec!["serve".to_owned()];
        arguments.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        arguments
    }

    /// The same with further ones, which may say otherwise.
    pub(crate) fn arguments_with(&self, more: &[&str]) -> Vec<String> {
        let mut arguments = self.arguments();
        for option in ["--store", "--cache"].iter().filter(|option| more.contains(option)) {
            if let Some(at) = arguments.iter().position(|argument| argument == option) {
                arguments.drain(at..at + 2);
            }
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        arguments
    }
}

/// A gateway that runs; killed with the value.
pub(crate) struct Gateway {
    child: Child,
    socket: PathBuf,
}

impl Gateway {
    /// Starts it with further arguments and waits until it serves.
    pub(crate) fn start(scratch: &Scratch, more: &[&str]) -> Self {
        Self::start_with(scratch, more, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(
        scratch: &Scratch,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        let mut command = Command::new(GATEWAY);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::start_by(command, scratch, more)
    }

    /// The same with limits on its open files, SOFT:HARD.
    pub(crate) fn start_limited(scratch: &Scratch, files: &str, more: &[&str]) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}")).arg(GATEWAY);
        Self::start_by(command, scratch, more)
    }

    fn start_by(mut command: Command, scratch: &Scratch, more: &[&str]) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(scratch.path("log"));
        let child = command
            .args(scratch.arguments_with(more))
            .stdin(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        let mut gateway = Self { child, socket: scratch.path("nbd.sock") };
        let begun = Instant::now();
        while !greets(&gateway.socket) {
            let ended = gateway.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(scratch.path("log")).unwrap();
            assert!(ended.is_none(), "it ended with {ended:?}:\n{}", log());
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not serve:\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        gateway
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// How many files it may have open.
    pub(crate) fn open_files(&self) -> u64 {
        let path = format!("/proc/{}/limits", self.child.id());
        let limits = std::fs::read_to_string(path).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Kills it as nothing else does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended, and says how.
    pub(crate) fn ended(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Asks it to stop, and waits; it must say that all went well.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(!self.socket.exists(), "its socket is still there");
    }
}

/// Whether a server greets its clients; one that listens already may not yet.
fn greets(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0; 18]).is_ok()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loop device over a file; detached with the value.
pub(crate) struct LoopDevice(String);

impl LoopDevice {
    pub(crate) fn attach(file: &Path) -> Self {
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Self(device.trim().to_owned())
    }

    pub(crate) fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = output("losetup", &["--detach", &self.0]);
    }
}

/// The command line, which is built with the workspace.
pub(crate) fn culvert() -> String {
    let path = Path::new(GATEWAY).with_file_name("culvert");
    assert!(path.exists(), "{}: not built; say cargo build -p culvert-cli", path.display());
    path.display().to_string()
}

/// Runs a verb of the command line against the gateway of a folder; it must succeed.
pub(crate) fn cli(scratch: &Scratch, arguments: &[&str]) -> String {
    let control = scratch.path("control.sock").display().to_string();
    run(&culvert(), &[arguments, &["--gateway", &control]].concat())
}

/// The same for one that must fail; gives the exit code and what it said.
pub(crate) fn cli_fails(scratch: &Scratch, arguments: &[&str]) -> (i32, String) {
    let control = scratch.path("control.sock").display().to_string();
    let output = output(&culvert(), &[arguments, &["--gateway", &control]].concat());
    assert!(!output.status.success(), "{arguments:?} succeeded");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), said)
}

/// Runs a stock program, which must succeed; gives what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?} failed:\n{text}\n{errors}");
    text
}

/// Runs a program to its end.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        // The python that has libnbd is the distribution's, whatever else comes first here.
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; scripts/setup installs it"))
}

/// Writes a file of `len` bytes that tell where they belong.
pub(crate) fn image(path: &Path, len: usize) {
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
    std::fs::write(path, bytes).unwrap();
}

/// An address that nobody uses now.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
