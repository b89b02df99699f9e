//! Network namespaces as test hosts and tenants.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{CommandError, Process, run_command};
use crate::scratch::Scratch;
use crate::{janitor, sys};

const NETNS_DIR: &str = "/run/netns";

/// A network namespace that exists as long as this value; `ip -n NAME` reaches it from outside.
///
/// Children are moved in by `setns` between fork and exec and not by `ip netns exec`, which would give them a private
/// mount namespace with a new `/sys` and so hide pinned BPF objects.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: File,
    owned: bool,
}

impl Netns {
    /// Creates a namespace with `lo` up and IPv6 ready at once (no duplicate address detection, no router solicitations).
    ///
    /// `role` is part of the name, for people who look at a test that hangs.
    ///
    /// # Panics
    /// If this process is not root, or the kernel refuses.
    pub fn new(role: &str) -> Self {
        assert!(sys::is_root(), "tests make network namespaces: run them as root");
        Self::create(role).unwrap_or_else(|e| panic!("cannot create a network namespace: {e}"))
    }

    fn create(role: &str) -> io::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(NETNS_DIR)?;
        let (name, path) = loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("cv{}-{number}-{role}", std::process::id());
            let path = Path::new(NETNS_DIR).join(&name);
            match File::create_new(&path) {
                Ok(_) => break (name, path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        };
        janitor::netns(&name);
        let target = path.clone();
        std::thread::spawn(move || {
            sys::unshare_net()?;
            let own = format!("/proc/self/task/{}/ns/net", sys::thread_id());
            sys::bind_mount(Path::new(&own), &target)
        })
        .join()
        .map_err(|_| io::Error::other("the thread that makes a namespace died"))??;
        let ns = Self { file: File::open(&path)?, name, path, owned: true };
        ns.run("ip link set lo up");
        for (key, value) in [
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            // No link-local addresses: nothing is sent that a test did not ask for.
            ("net/ipv6/conf/default/addr_gen_mode", "1"),
            ("net/ipv4/ip_forward", "0"),
        ] {
            ns.sysctl(key, value);
        }
        Ok(ns)
    }

    /// A second handle on an existing namespace; it does not go with this value.
    ///
    /// # Panics
    /// If there is none of that name.
    #[track_caller]
    pub fn open(name: &str) -> Self {
        let path = Path::new(NETNS_DIR).join(name);
        match File::open(&path) {
            Ok(file) => Self { name: name.to_owned(), path, file, owned: false },
            Err(e) => panic!("{}: {e}", path.display()),
        }
    }

    /// The name by which `ip -n` knows this namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's descriptor, for `setns`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `f` on a fresh thread inside this namespace. Sockets that `f` opens stay in it wherever they go.
    ///
    /// # Panics
    /// If `f` does.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let fd = self.fd();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    sys::setns_net(fd)
                        .unwrap_or_else(|e| panic!("cannot enter {}: {e}", self.name));
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes a sysctl, named by its path below `/proc/sys`, inside this namespace.
    ///
    /// # Panics
    /// If it does not exist or refuses the value.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys").join(key);
        if let Err(e) = self.enter(|| fs::write(&path, value)) {
            panic!("{}: cannot set {} to {value}: {e}", self.name, path.display());
        }
    }

    /// A command that will run in this namespace and die with the thread that spawns it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::prepare_child(&mut command, Some(self.fd()));
        command
    }

    /// Runs a command line, split at white space, to its end; returns what it wrote to stdout.
    ///
    /// # Errors
    /// If it cannot start or does not exit with 0; the error holds what it wrote to stderr.
    pub fn try_run(&self, line: &str) -> Result<String, CommandError> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        command.args(words);
        run_command(&mut command)
    }

    /// As [`Netns::try_run`], for commands that must work.
    ///
    /// # Panics
    /// With the command's error output if it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        match self.try_run(line) {
            Ok(out) => out,
            Err(e) => panic!("in {}: {e}", self.name),
        }
    }

    /// Starts a command line, split at white space, that runs beside the test; its output goes to a log in `scratch`.
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn spawn(&self, scratch: &Scratch, line: &str) -> Process {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap_or_default();
        let mut command = self.command(program);
        command.args(words);
        Process::spawn(scratch, program, command)
    }

    /// Index of the interface `name` in this namespace.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn ifindex(&self, name: &str) -> u32 {
        match self.enter(|| sys::interface_index(name)) {
            Ok(index) => index,
            Err(e) => panic!("{}: interface {name}: {e}", self.name),
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // Failure leaves the name to the janitor.
        let _ = sys::unmount(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}
