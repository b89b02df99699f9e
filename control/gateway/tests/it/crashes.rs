//! Killed, cut off from power, its cache lost, under a writer in another process whose blocks say what they are.

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::observing::metric;
use crate::support::{Gateway, Scratch, cli, run};
use crate::writer::{Promises, Syncs, Writer, check};

/// Rounds of a test: more where the long forms are asked for, which take nextest's profile `long`.
pub(crate) fn rounds(short: u64) -> u64 {
    let full = std::env::var("CULVERT_E2E").is_ok_and(|value| value == "full");
    if full { short * 50 } else { short }
}

#[test]
fn killed_again_and_again_it_keeps_every_answered_write() {
    let scratch = Scratch::new();
    let mut gateway = Gateway::start(&scratch, &["--volume", "vol=2M"]);
    let mut there = Promises::none();
    for round in 0..rounds(4) {
        let writer = Writer::start(&gateway.uri("vol"), &there, Syncs::FlushAndFua);
        std::thread::sleep(Duration::from_millis(100 + round * 137 % 500));
        gateway.kill();
        let said = writer.end();
        gateway = Gateway::start(&scratch, &[]);
        there = check(&gateway.uri("vol"), &said.answered, said.asked);
    }
    gateway.stop();
}

/// The cache's file behind a disk whose cache loses everything un-synced when it is killed.
pub(crate) struct Disk {
    nbdkit: Child,
    fuse: Child,
    pub(crate) mounted: std::path::PathBuf,
}

impl Disk {
    pub(crate) fn attach(scratch: &Scratch, file: &Path) -> Disk {
        let file = file.display().to_string();
        let cache = ["--filter=cache", "file", &file, "cache=writeback", "cache-on-read=false"];
        Disk::of(scratch, &cache)
    }

    /// What nbdkit serves with these arguments, as a file.
    pub(crate) fn of(scratch: &Scratch, arguments: &[&str]) -> Disk {
        let socket = scratch.path("disk.sock");
        let _ = std::fs::remove_file(&socket);
        let mounted = scratch.path("disk");
        std::fs::write(&mounted, "").unwrap();
        let start = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap()
        };
        let path = socket.display().to_string();
        let nbdkit = start("nbdkit", &[&["-f", "-U", &path][..], arguments].concat());
        wait_for(|| socket.exists());
        let fuse =
            start("nbdfuse", &[mounted.to_str().unwrap(), "--unix", socket.to_str().unwrap()]);
        wait_for(|| std::fs::metadata(&mounted).is_ok_and(|meta| meta.len() > 0));
        Disk { nbdkit, fuse, mounted }
    }

    /// Freezes it while two MiB of twos, at the beginning of the volume at `uri`, are in the log of the cache there,
    /// flushed, and nothing is about to move them. The cache is the gateway's whose metrics are at `metrics`.
    pub(crate) fn freeze_with_a_log(&self, uri: &str, metrics: &str) -> Frozen {
        let used = || metric(metrics, "culvert_cache_log_used_bytes");
        let write = |what: &str| run("qemu-io", &["-f", "raw", "-c", what, "-c", "flush", uri]);
        for _ in 0..10 {
            // What is there moves once a second: it just did, and does not for a while.
            write("write -P 1 0 2M");
            wait_for(|| used() < f64::from(1 << 20));
            write("write -P 2 0 2M");
            let frozen = Frozen::new(self.nbdkit.id());
            if used() >= f64::from(2 << 20) {
                return frozen;
            }
        }
        panic!("it moves too soon, each time");
    }

    /// Cuts the power: what was not synced is gone.
    pub(crate) fn cut(&mut self) {
        self.nbdkit.kill().unwrap();
        self.nbdkit.wait().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
        // It may have died of the cut: then the mount is all that is left of it.
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).stderr(Stdio::null()).status();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

/// A process that stands still. It goes on when the value is gone, or after half a minute: nobody waits for ever for
/// what does not come.
pub(crate) struct Frozen {
    _held: Sender<()>,
}

impl Frozen {
    fn new(process: u32) -> Frozen {
        let process = Pid::from_raw(process as i32);
        kill(process, Signal::SIGSTOP).unwrap();
        let (held, released) = channel::<()>();
        std::thread::spawn(move || {
            let _ = released.recv_timeout(Duration::from_secs(30));
            // It may have been killed.
            let _ = kill(process, Signal::SIGCONT);
        });
        Frozen { _held: held }
    }
}

pub(crate) fn wait_for(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_power_cut_takes_nothing_that_was_flushed_or_written_with_fua() {
    let scratch = Scratch::new();
    Gateway::start(&scratch, &["--volume", "vol=2M"]).stop();
    let file = scratch.path("medium");
    std::fs::rename(scratch.path("cache"), &file).unwrap();
    let mut there = Promises::none();
    let mut took = 0;
    let kinds = [Syncs::AtFirst, Syncs::FlushAndFua, Syncs::Fua, Syncs::AtFirst];
    for (round, syncs) in (0..rounds(4)).zip(kinds.into_iter().cycle()) {
        let mut disk = Disk::attach(&scratch, &file);
        let on_disk = disk.mounted.display().to_string();
        let gateway = Gateway::start(&scratch, &["--cache", &on_disk]);
        let writer = Writer::start(&gateway.uri("vol"), &there, syncs);
        wait_for(|| writer.promises().durable.newest() > there.asked);
        std::thread::sleep(Duration::from_millis(400 + round * 271 % 600));
        disk.cut();
        let said = writer.end();
        gateway.kill();
        drop(disk);
        assert!(
            said.durable.newest() > there.asked,
            "round {round}, {syncs:?}: nothing became durable"
        );
        let disk = Disk::attach(&scratch, &file);
        let gateway = Gateway::start(&scratch, &["--cache", &on_disk]);
        there = check(&gateway.uri("vol"), &said.durable, said.asked);
        took += u64::from(there.answered.is_behind(&said.answered));
        // In order, so that what was found is durable.
        gateway.stop();
        drop(disk);
    }
    // Else this disk loses nothing, and all that was found proves nothing.
    assert!(took > 0, "no cut took a write that was answered");
}

/// Milliseconds since the Unix epoch.
fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Fails unless a volume is shown with a last cut within `published`, in milliseconds since the Unix epoch, and with
/// its age in seconds.
fn shown_with_the_cut_of(scratch: &Scratch, published: &RangeInclusive<u64>) {
    let json = cli(scratch, &["volume", "show", "vol", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&json).unwrap();
    let cut = shown["published_unix_ms"].as_u64().unwrap();
    assert!(published.contains(&cut), "{published:?}: {json}");
    let since = || (unix_ms() - cut) / 1000;
    let least = since();
    let text = cli(scratch, &["volume", "show", "vol"]);
    let most = since();
    let age = text.lines().find_map(|line| line.strip_prefix("last cut ")?.split_once(" s ago"));
    let age: u64 = age.unwrap_or_else(|| panic!("{text}")).0.trim().parse().unwrap();
    assert!(age >= 1 && (least..=most).contains(&age), "{least} to {most} s:\n{text}");
}

#[test]
fn a_cache_that_is_lost_at_any_time_opens_at_its_last_cut() {
    let scratch = Scratch::new();
    // In every other round there is one cut, by command; in the others there may be some at any time, or none.
    let by_command = |round: u64| round.is_multiple_of(2);
    let start = |round, volume: &[&str]| {
        let interval = if by_command(round) { "3600" } else { "1" };
        Gateway::start(&scratch, &[volume, &["--upload-interval", interval]].concat())
    };
    let mut gateway = start(0, &["--volume", "vol=2M"]);
    let mut there = Promises::none();
    for round in 0..rounds(4) {
        let writer = Writer::start(&gateway.uri("vol"), &there, Syncs::FlushAndFua);
        // What was answered before a cut is in it.
        let flushed = by_command(round).then(|| {
            std::thread::sleep(Duration::from_millis(100));
            let (answered, begun) = (writer.promises().answered, unix_ms());
            cli(&scratch, &["volume", "flush", "vol"]);
            (answered, begun..=unix_ms())
        });
        let most = if by_command(round) { 300 } else { 2500 };
        std::thread::sleep(Duration::from_millis(round * 997 % most));
        gateway.kill();
        let said = writer.end();
        std::fs::remove_file(scratch.path("cache")).unwrap();
        // So that the cut's age is no fraction of a second.
        std::thread::sleep(Duration::from_millis(1000));
        gateway = start(round + 1, &["--volume", "vol", "--take-over"]);
        let promised = flushed.as_ref().map_or(&there.answered, |(answered, _)| answered);
        let found = check(&gateway.uri("vol"), promised, said.asked);
        found.must_be_a_cut(&there);
        if let Some((_, published)) = flushed {
            shown_with_the_cut_of(&scratch, &published);
        }
        there = found;
    }
    gateway.stop();
}
