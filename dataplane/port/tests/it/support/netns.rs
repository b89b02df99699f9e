//! Network namespaces without a name: they end with the test.
#![allow(unsafe_code)] // unshare and setns have no safe form in the libraries used here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

/// A network namespace; it goes when this and the users of its devices are gone.
pub struct Netns {
    file: File,
}

impl Netns {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            // SAFETY: changes the namespace of this short-lived thread only.
            let ret = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(ret, 0, "{}", io::Error::last_os_error());
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self { file: made.join().unwrap() };
        netns.ip("link set lo up");
        netns
    }

    /// Runs `action` on a thread inside.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                action()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside for good.
    pub fn enter(&self) {
        // SAFETY: the descriptor is an open namespace; only this thread changes.
        let ret = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(ret, 0, "{}", io::Error::last_os_error());
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    pub fn command(&self, program: &str, arguments: &str) -> String {
        let output =
            self.run(|| Command::new(program).args(arguments.split_whitespace()).output()).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A path by which `ip` can name this namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub fn ifindex(&self, name: &str) -> u32 {
        self.run(|| culvert_port::device::Device::by_name(name).unwrap().ifindex())
    }
}

/// MAC addresses of `n0` (ours) and `f0` (the tenant's).
pub const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Two hosts with a veth between them: `n0` 192.0.2.1 and `f0` 192.0.2.2, who know each other's
/// MAC address. No IPv6, so that nothing is sent but by the test.
pub fn linked_pair(mtu: u32) -> (Netns, Netns) {
    let (near, far) = (Netns::new(), Netns::new());
    near.ip(&format!(
        "link add n0 mtu {mtu} type veth peer name f0 mtu {mtu} netns {}",
        far.path()
    ));
    for (host, device, own, other) in [(&near, "n0", 1, 2), (&far, "f0", 2, 1)] {
        host.ip(&format!("link set {device} addrgenmode none address 02:00:00:00:00:0{own} up"));
        host.ip(&format!("addr add 192.0.2.{own}/24 dev {device}"));
        host.ip(&format!(
            "neigh replace 192.0.2.{other} lladdr 02:00:00:00:00:0{other} dev {device} nud permanent"
        ));
    }
    (near, far)
}
