//! What only the host itself knows. A file that cannot be read is no finding: we may run elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_model::api;
use tokio::net::UnixStream;

/// What a thread had of its CPU, in nanoseconds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
struct Schedule {
    ran: u64,
    waited: u64,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct HostFacts {
    threads: BTreeMap<String, (PathBuf, Schedule)>,
    /// Share of the time for which each worker wanted its CPU and somebody else had it.
    pub(super) waited: BTreeMap<String, f64>,
    /// `rp_filter` of each underlay device: the greater of its own and that of all.
    pub(super) rp_filter: BTreeMap<String, u32>,
    /// Entries of the kernel's connection table, and how many there may be.
    pub(super) conntrack: Option<(u64, u64)>,
}

impl HostFacts {
    /// Reads, for the first time, what is compared later.
    pub(super) async fn begin(socket: &Path, info: &api::Info) -> HostFacts {
        let mut facts = HostFacts::default();
        if let Some(pid) = process(socket).await {
            for (name, task) in workers(pid) {
                if let Some(schedule) = schedule(&task) {
                    facts.threads.insert(name, (task, schedule));
                }
            }
        }
        let conf = Path::new("/proc/sys/net/ipv4/conf");
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let all = number(conf.join("all/rp_filter")).unwrap_or(0);
        for device in &info.underlay {
            if let Some(own) = number(conf.join(&device.interface).join("rp_filter")) {
                facts.rp_filter.insert(device.interface.clone(), own.max(all) as u32);
            }
        }
        let netfilter = Path::new("/proc/sys/net/netfilter");
        facts.conntrack = number(netfilter.join("nf_conntrack_count"))
            .zip(number(netfilter.join("nf_conntrack_max")));
        facts
    }

    /// Reads the rest, so much later.
    pub(super) fn end(&mut self, elapsed: Duration) {
        for (name, (task, before)) in &self.threads {
            if let Some(after) = schedule(task) {
                let waited = after.waited.saturating_sub(before.waited) as f64;
                self.waited.insert(name.clone(), waited / elapsed.as_nanos().max(1) as f64);
            }
        }
    }
}

/// The process that listens on a socket.
async fn process(socket: &Path) -> Option<i32> {
    UnixStream::connect(socket).await.ok()?.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}

/// The threads of a process that are its workers, by name.
fn workers(pid: i32) -> Vec<(String, PathBuf)> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let named = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned();
        name.starts_with("worker-").then(|| (name, task.path()))
    });
    named.collect()
}

fn schedule(task: &Path) -> Option<Schedule> {
    parse_schedule(&fs::read_to_string(task.join("schedstat")).ok()?)
}

fn parse_schedule(text: &str) -> Option<Schedule> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some(Schedule { ran: numbers.next()??, waited: numbers.next()?? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_schedule_is_read() {
        assert_eq!(parse_schedule("100 20 3\n"), Some(Schedule { ran: 100, waited: 20 }));
        assert_eq!(parse_schedule("100"), None);
        assert_eq!(parse_schedule("a b c"), None);
    }
}
