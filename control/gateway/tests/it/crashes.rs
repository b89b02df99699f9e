//! Killed, and cut off from power, under a writer in another process whose blocks say what they are.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Gateway, Scratch, run};

/// Blocks that are written, over and over, in an order that both scripts know.
const COMMON: &str = "
import struct, sys
BLOCKS = 512
def place(n): return (n * 7919 + n // 5) % BLOCKS
def block(n): return struct.pack('<QQ', n, place(n)) * 256
";

/// Writes from number `first` on until the connection breaks. Says `w N` once write N was answered and
/// `f N` once a FLUSH was that came after it.
const WRITER: &str = "
n = first
try:
    while True:
        h.pwrite(block(n), place(n) * 4096, nbd.CMD_FLAG_FUA if n % 23 == 0 else 0)
        print('w', n, flush=True)
        if n % 31 == 0:
            h.flush()
            print('f', n, flush=True)
        n += 1
except nbd.Error:
    pass
";

/// Checks every block: it is what write N made of it, where N is not below the newest promised one, and
/// not above the newest that was asked for. Says the newest number that it found.
const CHECKER: &str = "
newest = {}
for n in range(1, promised + 1): newest[place(n)] = n
top = 0
for at in range(BLOCKS):
    data = h.pread(4096, at * 4096)
    n, where = struct.unpack('<QQ', data[:16])
    if n == 0:
        assert data == bytes(4096), at
    else:
        assert where == at and data == block(n), (at, n, where)
    assert n >= newest.get(at, 0), ('lost', at, n, newest[at])
    assert n <= asked, ('from nowhere', at, n)
    top = max(top, n)
print(top)
";

/// What the writer was promised.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promised {
    pub(crate) answered: u64,
    pub(crate) flushed: u64,
}

pub(crate) fn writer(uri: &str, first: u64) -> Child {
    let script = format!("h.connect_uri({uri:?})\n{COMMON}\nfirst = {first}\n{WRITER}");
    Command::new("nbdsh")
        .args(["-c", &script])
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads what the writer says until it ends.
pub(crate) fn promised(mut writer: Child) -> Promised {
    let mut promised = Promised::default();
    let mut said = BufReader::new(writer.stdout.take().unwrap());
    let mut line = String::new();
    while said.read_line(&mut line).unwrap() > 0 {
        match line.trim().split_once(' ') {
            Some(("w", n)) => promised.answered = n.parse().unwrap(),
            Some(("f", n)) => promised.flushed = n.parse().unwrap(),
            _ => panic!("{line}"),
        }
        line.clear();
    }
    writer.wait().unwrap();
    promised
}

/// Checks what is there, and returns the newest write that is.
pub(crate) fn check(uri: &str, promised: u64, asked: u64) -> u64 {
    let script = format!(
        "h.connect_uri({uri:?})\n{COMMON}\npromised = {promised}\nasked = {asked}\n{CHECKER}"
    );
    run("nbdsh", &["-c", &script]).trim().parse().unwrap()
}

/// Rounds of a test: more where the long forms are asked for.
pub(crate) fn rounds(short: u64) -> u64 {
    let full = std::env::var("CULVERT_E2E").is_ok_and(|value| value == "full");
    if full { short * 50 } else { short }
}

#[test]
fn killed_again_and_again_it_keeps_every_answered_write() {
    let scratch = Scratch::new();
    let mut gateway = Gateway::start(&scratch, &["--volume", "vol=2M"]);
    let mut next = 1;
    for round in 0..rounds(4) {
        let child = writer(&gateway.uri("vol"), next);
        std::thread::sleep(Duration::from_millis(300 + round * 137 % 500));
        gateway.kill();
        let said = promised(child);
        assert!(said.answered >= next, "round {round}: nothing was written");
        gateway = Gateway::start(&scratch, &[]);
        check(&gateway.uri("vol"), said.answered, said.answered + 1);
        next = said.answered + 1;
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
        let socket = scratch.path("disk.sock");
        let _ = std::fs::remove_file(&socket);
        let mounted = scratch.path("disk");
        std::fs::write(&mounted, "").unwrap();
        let start = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap()
        };
        let path = socket.display().to_string();
        let file = file.display().to_string();
        let nbdkit = start(
            "nbdkit",
            &[
                "-f",
                "-U",
                &path,
                "--filter=cache",
                "file",
                &file,
                "cache=writeback",
                "cache-on-read=false",
            ],
        );
        wait_for(|| socket.exists());
        let fuse =
            start("nbdfuse", &[mounted.to_str().unwrap(), "--unix", socket.to_str().unwrap()]);
        wait_for(|| std::fs::metadata(&mounted).is_ok_and(|meta| meta.len() > 0));
        Disk { nbdkit, fuse, mounted }
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

pub(crate) fn wait_for(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_power_cut_takes_nothing_that_was_flushed() {
    let scratch = Scratch::new();
    Gateway::start(&scratch, &["--volume", "vol=2M"]).stop();
    let file = scratch.path("medium");
    std::fs::rename(scratch.path("cache"), &file).unwrap();
    let (mut next, mut asked) = (1, 0);
    for round in 0..rounds(2) {
        let mut disk = Disk::attach(&scratch, &file);
        let on_disk = disk.mounted.display().to_string();
        let gateway = Gateway::start(&scratch, &["--cache", &on_disk]);
        let child = writer(&gateway.uri("vol"), next);
        std::thread::sleep(Duration::from_millis(700 + round * 271 % 600));
        disk.cut();
        let said = promised(child);
        gateway.kill();
        drop(disk);
        assert!(said.flushed >= next, "round {round}: nothing was flushed: {said:?}");
        let disk = Disk::attach(&scratch, &file);
        let gateway = Gateway::start(&scratch, &["--cache", &on_disk]);
        // Of what came after the last flush anything may be there, also in later rounds.
        asked = asked.max(said.answered + 1);
        check(&gateway.uri("vol"), said.flushed, asked);
        gateway.stop();
        drop(disk);
        next = said.flushed + 1;
    }
}

#[test]
fn a_cache_that_is_lost_at_any_time_opens_at_its_last_cut() {
    let scratch = Scratch::new();
    let mut next = 1;
    let mut gateway = Gateway::start(&scratch, &["--volume", "vol=2M"]);
    for round in 0..rounds(2) {
        let child = writer(&gateway.uri("vol"), next);
        std::thread::sleep(Duration::from_millis(250));
        let flushed = crate::support::cli(&scratch, &["volume", "flush", "vol", "-o", "json"]);
        assert!(flushed.contains("\"watermark\""), "{flushed}");
        std::thread::sleep(Duration::from_millis(100 + round * 97 % 300));
        gateway.kill();
        let said = promised(child);
        std::fs::remove_file(scratch.path("cache")).unwrap();
        gateway = Gateway::start(&scratch, &["--volume", "vol", "--take-over"]);
        let shown = crate::support::cli(&scratch, &["volume", "show", "vol"]);
        assert!(shown.contains("last cut") && shown.contains("s ago"), "{shown}");
        // A cut holds all writes up to one, and none after: so whatever is newest promises all before.
        let top = check(&gateway.uri("vol"), 0, said.answered + 1);
        assert!(top >= next, "round {round}: nothing was uploaded");
        check(&gateway.uri("vol"), top, top);
        next = top + 1;
    }
    gateway.stop();
}
