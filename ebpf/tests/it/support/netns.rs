//! Network namespaces that end with the test: they have no name, only a descriptor.
#![allow(unsafe_code)] // unshare and setns have no safe form in the libraries used here.

use std::{fs::File, io, os::fd::AsRawFd, process::Command, thread};

/// A network namespace of its own; it goes when this and all its devices' users are gone.
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: changes the namespace of this short-lived thread only.
            let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "{}", io::Error::last_os_error());
            File::open("/proc/thread-self/ns/net").expect("a thread's namespace can be opened")
        });
        let namespace = Self { file: made.join().expect("root may make namespaces") };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `action` on a thread inside.
    pub(crate) fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                action()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread inside for good.
    pub(crate) fn enter(&self) {
        // SAFETY: the descriptor is an open namespace; only this thread changes.
        let entered = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", io::Error::last_os_error());
    }

    /// Runs a command inside; its output if it succeeded.
    pub(crate) fn try_command(&self, line: &str) -> Result<String, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self
            .run(|| Command::new(words[0]).args(&words[1..]).output())
            .map_err(|error| format!("{line}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(format!("{line}: {text}{}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    pub(crate) fn command(&self, line: &str) -> String {
        self.try_command(line).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command(&format!("ip {arguments}"))
    }

    /// A path by which other commands can name this namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn ifindex(&self, name: &str) -> u32 {
        let shown = self.ip(&format!("-o link show dev {name}"));
        let (index, _) = shown.split_once(':').expect("ip shows an index");
        index.trim().parse().expect("an index is a number")
    }
}

/// Two hosts with a veth between them: `(near, far)`, devices `n0` and `f0`, addresses
/// `192.0.2.1` and `192.0.2.2`, `2001:db8::1` and `2001:db8::2`.
pub(crate) fn linked_pair() -> (Netns, Netns) {
    let (near, far) = (Netns::new(), Netns::new());
    near.ip(&format!("link add n0 type veth peer name f0 netns {}", far.path()));
    for (host, device, number) in [(&near, "n0", 1), (&far, "f0", 2)] {
        host.ip(&format!("addr add 192.0.2.{number}/24 dev {device}"));
        host.ip(&format!("addr add 2001:db8::{number}/64 dev {device} nodad"));
        host.ip(&format!("link set {device} up"));
    }
    (near, far)
}
