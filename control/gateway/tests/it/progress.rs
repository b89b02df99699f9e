//! What takes longer than a second says how far it is: by a bar on a terminal, and nowhere else.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::crashes::{Disk, wait_for};
use crate::support::{GATEWAY, Gateway, Scratch, culvert, free_address, output, run};

/// A command in a terminal of 100 columns, which `script` makes; killed with the value.
struct Terminal(Child);

impl Terminal {
    fn start(command: &str) -> Self {
        let line = format!("stty rows 30 cols 100; exec {command}");
        let child = Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// What it draws until that is enough, or until it ends.
    fn draws(&mut self, enough: impl Fn(&str) -> bool) -> String {
        let drawn = self.0.stdout.as_mut().unwrap();
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let read = drawn.read(&mut part).unwrap();
            bytes.extend_from_slice(&part[..read]);
            let text = String::from_utf8_lossy(&bytes);
            if read == 0 || enough(&text) {
                return text.into_owned();
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_upload_shows_a_bar_on_a_terminal_and_none_elsewhere() {
    let scratch = Scratch::new();
    // An object goes at once, and the next one when the time for it is over.
    let slowly = ["--upload-rate", "1M", "--upload-interval", "3600"];
    let gateway = Gateway::start(&scratch, &[&slowly[..], &["--volume", "vol=8M"]].concat());
    let write = |what: &str| {
        run("qemu-io", &["-f", "raw", "-c", what, "-c", "flush", &gateway.uri("vol")]);
    };
    write("write -P 1 0 3M");
    let control = scratch.path("control.sock").display().to_string();
    let flush = ["volume", "flush", "vol", "--gateway", &control];
    let drawn = Terminal::start(&format!("{} {}", culvert(), flush.join(" "))).draws(|_| false);
    assert!(drawn.contains("uploading") && drawn.contains("/3.00 MiB"), "{drawn:?}");
    // It makes way for the answer.
    let shown = drawn.rfind("not in the store yet").unwrap_or_else(|| panic!("{drawn:?}"));
    assert!(drawn.rfind("/3.00 MiB") < Some(shown), "{drawn:?}");

    write("write -P 2 0 3M");
    let piped = output(&culvert(), &flush);
    assert!(piped.status.success() && piped.stderr.is_empty(), "{piped:?}");
    gateway.stop();
}

#[test]
fn making_a_cache_shows_a_bar_on_a_terminal_and_lines_in_the_log_elsewhere() {
    let scratch = Scratch::new();
    // 4 MiB a second.
    let slow = ["--filter=rate", "memory", "96M", "rate=32M", "burstiness=0.5"];
    let disk = Disk::of(&scratch, &slow);
    let cache = disk.mounted.display().to_string();
    let arguments = scratch.arguments_with(&["--cache", &cache, "--make"]);

    let log = scratch.path("log");
    let mut child = Command::new(GATEWAY)
        .args(&arguments)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    wait_for(|| said().contains("not served yet: the cache is being made"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!said().contains("MiB") && !said().contains('\r'), "{:?}", said());

    // The log of 16 MiB is written in steps of one. Should it serve and draw nothing, it ends all the same.
    let making = format!("timeout --foreground 60 {GATEWAY} {}", arguments.join(" "));
    let drawn = Terminal::start(&making).draws(|drawn| drawn.contains(".00 MiB/16.00 MiB"));
    assert!(drawn.contains("the cache is being made"), "{drawn:?}");
    assert!(drawn.contains(".00 MiB/16.00 MiB"), "{drawn:?}");
    assert!(drawn.contains("making a cache of what is there"), "no log: {drawn:?}");
    assert!(!drawn.contains("not served yet"), "{drawn:?}");
}

#[test]
fn closing_a_cache_shows_lines_with_what_is_left_in_the_log_and_a_bar_on_a_terminal() {
    let scratch = Scratch::new();
    let disk = Disk::of(&scratch, &["memory", "96M"]);
    let (cache, address) = (disk.mounted.display().to_string(), free_address().to_string());
    let slow = ["--upload-interval", "3600", "--metrics", &address, "--log-format", "json"];
    let arguments = [&["--cache", &cache, "--make", "--volume", "vol=8M"][..], &slow].concat();
    let socket = scratch.path("nbd.sock");
    let uri = format!("nbd+unix:///vol?socket={}", socket.display());

    // On a disk that stands still it cannot be over before that is told.
    let gateway = Gateway::start(&scratch, &arguments);
    let frozen = disk.freeze_with_a_log(&uri, &address);
    gateway.signal(Signal::SIGTERM);
    let said = || std::fs::read_to_string(scratch.path("log")).unwrap();
    let told = "not stopped yet: the cache is being closed";
    wait_for(|| said().contains(told));
    drop(frozen);
    assert!(gateway.ended().success(), "{}", said());
    let lines: Vec<Value> =
        said().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = lines.iter().find(|line| line["message"] == told).unwrap();
    let (seconds, left) = (first["seconds"].as_u64(), first["left_bytes"].as_u64());
    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{first}");
    assert!(left.is_some_and(|left| (2 << 20..3 << 20).contains(&left)), "{first}");
    assert_eq!(lines.last().unwrap()["message"], "closed in order");

    let pid = scratch.path("pid");
    let command = format!("{GATEWAY} {}", scratch.arguments_with(&arguments).join(" "));
    let command = format!("sh -c 'echo $$ > {}; exec {command}'", pid.display());
    let mut terminal = Terminal::start(&command);
    wait_for(|| UnixStream::connect(&socket).is_ok());
    let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    let frozen = disk.freeze_with_a_log(&uri, &address);
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    // Should it draw nothing, it ends once the disk goes on.
    let bar =
        |drawn: &str| drawn.split_once("the cache is being closed").map(|(_, bar)| bar.to_owned());
    let drawn = terminal.draws(|drawn| bar(drawn).is_some_and(|bar| bar.contains("MiB")));
    assert!(bar(&drawn).is_some_and(|bar| bar.contains(" B/2.0")), "{drawn:?}");
    assert!(!drawn.contains("not stopped yet"), "{drawn:?}");
    drop(frozen);
    let drawn = terminal.draws(|_| false);
    assert!(drawn.contains("closed in order"), "{drawn:?}");
}
