//! What takes longer than a second says how far it is: by a bar on a terminal, and nowhere else.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use crate::crashes::{Disk, wait_for};
use crate::support::{GATEWAY, Gateway, Scratch, culvert, output, run};

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
