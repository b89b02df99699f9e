//! Two hosts joined by a veth pair: ours in the thread's own network namespace, the peer in a child's.

use std::{
    fs,
    future::Future,
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use culvert_nexthop::{MacAddr, NextHop, NextHops, Resolution, Resolver, ResolverConfig};
use tokio::{sync::watch, time::timeout};

/// Our end of the pair; the peer's is [`PEER`].
pub(crate) const DEVICE: &str = "und0";
/// The peer's end of the pair.
pub(crate) const PEER: &str = "und1";
pub(crate) const OUR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// No test takes longer.
const TEST_TIME: Duration = Duration::from_secs(90);

/// The two hosts; they vanish with the value.
pub(crate) struct Lab {
    peer: Child,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Both fail only if the child is gone already.
        let _ = self.peer.kill();
        let _ = self.peer.wait();
    }
}

/// Runs a test on two fresh hosts: `10.9.0.1` and `fd09::1` are ours, `10.9.0.2` and `fd09::2` the peer's.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let body = move || {
        // SAFETY: a plain system call; it moves this thread alone to a network namespace of its own.
        #[allow(unsafe_code)]
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "these tests need root: {}", std::io::Error::last_os_error());
        let lab = Lab::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(TEST_TIME, test(lab)).await.expect("the test hangs") });
    };
    thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl Lab {
    fn new() -> Self {
        let mut peer = Command::new("unshare")
            .args(["--net", "sleep", "120"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare from util-linux");
        let namespace = |task: &str| fs::read_link(format!("/proc/{task}/ns/net"));
        let ours = namespace("thread-self").unwrap();
        for _ in 0..500 {
            match namespace(&peer.id().to_string()) {
                Ok(theirs) if theirs != ours => break,
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
        assert!(peer.try_wait().unwrap().is_none(), "the peer's namespace did not start");
        let lab = Self { peer };
        let pid = lab.peer.id();
        ip("link set lo up");
        ip(&format!(
            "link add {DEVICE} address 02:00:00:00:00:01 type veth \
             peer name {PEER} address 02:00:00:00:00:02 netns {pid}"
        ));
        ip(&format!("addr add 10.9.0.1/24 dev {DEVICE}"));
        ip(&format!("addr add fd09::1/64 dev {DEVICE} nodad"));
        ip(&format!("link set {DEVICE} up"));
        lab.peer_ip("link set lo up");
        lab.peer_ip(&format!("addr add 10.9.0.2/24 dev {PEER}"));
        lab.peer_ip(&format!("addr add fd09::2/64 dev {PEER} nodad"));
        lab.peer_ip(&format!("link set {PEER} up"));
        lab
    }

    /// Runs a command at the peer.
    pub(crate) fn peer_run(&self, command: &str) -> String {
        let pid = self.peer.id();
        execute(&format!("nsenter -t {pid} -n {command}"))
    }

    /// Runs `ip` at the peer.
    pub(crate) fn peer_ip(&self, arguments: &str) -> String {
        self.peer_run(&format!("ip {arguments}"))
    }

    /// Follows [`DEVICE`] and `targets`, with a refresh so rare that only notices can help.
    pub(crate) async fn follow(&self, targets: &[&str]) -> Following {
        self.follow_with(targets, Duration::from_secs(3600)).await
    }

    pub(crate) async fn follow_with(&self, targets: &[&str], refresh: Duration) -> Following {
        let config = ResolverConfig {
            underlay_ifindexes: vec![ifindex(DEVICE)],
            sources: vec![address("10.9.0.1"), address("fd09::1")],
            refresh,
        };
        let (resolver, snapshots) = Resolver::start(config).await.unwrap();
        resolver.set_targets(targets.iter().copied().map(address));
        Following { resolver, snapshots }
    }
}

/// A resolver under test.
pub(crate) struct Following {
    pub(crate) resolver: Resolver,
    pub(crate) snapshots: watch::Receiver<Arc<NextHops>>,
}

impl Following {
    /// Waits until what is known of `target` satisfies `wanted`.
    pub(crate) async fn until(
        &mut self,
        target: &str,
        wanted: impl Fn(&Resolution) -> bool,
    ) -> Resolution {
        let key = address(target);
        let found = self.snapshots.wait_for(|hops| hops.by_vtep.get(&key).is_some_and(&wanted));
        let found = timeout(Duration::from_secs(30), found)
            .await
            .map(|found| found.expect("the resolver ended").by_vtep.get(&key).cloned());
        match found {
            Ok(Some(found)) => found,
            _ => panic!(
                "waited in vain; {target} is {:?}",
                self.snapshots.borrow().by_vtep.get(&key)
            ),
        }
    }

    /// Waits until `target` is resolved to these hops.
    pub(crate) async fn until_hops(&mut self, target: &str, hops: &[NextHop]) {
        self.until(target, |found| matches!(found, Resolution::Resolved(list) if list == hops))
            .await;
    }
}

/// The plain next hop on [`DEVICE`] to `dst_mac`.
pub(crate) fn hop(dst_mac: MacAddr) -> NextHop {
    NextHop { ifindex: ifindex(DEVICE), vlan: None, src_mac: OUR_MAC, dst_mac, mtu: 1500 }
}

pub(crate) fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn ifindex(device: &str) -> u32 {
    let shown = ip(&format!("-o link show dev {device}"));
    shown.split(':').next().and_then(|index| index.parse().ok()).unwrap()
}

/// Runs `ip` on our host.
pub(crate) fn ip(arguments: &str) -> String {
    execute(&format!("ip {arguments}"))
}

/// Sets a sysctl below `net` of our host.
pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

fn execute(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `condition` holds, for what no snapshot tells.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..300 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain until {what}");
}
