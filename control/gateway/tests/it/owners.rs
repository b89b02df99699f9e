//! Two gateways and one volume: whoever was taken over uploads nothing any more, and keeps what it has.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::crashes::{rounds, wait_for};
use crate::observing::metric;
use crate::support::{Gateway, Scratch, cli, cli_fails, culvert, free_address, output, run};

/// A second folder for a gateway with the same store.
fn beside(first: &Scratch) -> Scratch {
    let second = Scratch::new();
    std::os::unix::fs::symlink(first.path("store"), second.path("store")).unwrap();
    second
}

/// Stops a gateway that has 32 MiB to upload, takes the volume over, and lets the first go on. With `uploaded` it is
/// stopped in the middle of the upload: once the store has more of it than so many bytes.
fn stopped_and_taken_over(uploaded: Option<u64>) {
    let first_place = Scratch::new();
    let address = free_address().to_string();
    // It uploads by command only. A pack of 8 MiB goes at once, and for two seconds nothing more.
    let arguments = ["--upload-interval", "3600", "--upload-rate", "4M", "--metrics", &address];
    let first = Gateway::start(&first_place, &[&arguments[..], &["--volume", "vol=64M"]].concat());
    let uri = first.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4M", "-c", "flush", &uri]);
    cli(&first_place, &["volume", "flush", "vol"]);
    let in_store = || metric(&address, "culvert_store_uploaded_bytes_total");
    let root = || std::fs::read(first_place.path("store").join("vol/root")).unwrap();
    let (stored, published) = (in_store(), root());
    let write = ["-f", "raw", "-c", "write -P 2 8M 32M", "-c", "write -z 2M 64k", "-c", "flush"];
    run("qemu-io", &[&write[..], &[&uri]].concat());
    let flush = uploaded.map(|bytes| {
        let control = first_place.path("control.sock");
        let flush = Command::new(culvert())
            .args(["volume", "flush", "vol", "--gateway", control.to_str().unwrap()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(|| in_store() > stored + bytes as f64);
        flush
    });
    let before = in_store();
    first.signal(Signal::SIGSTOP);
    assert_eq!(root(), published, "the upload was at its end");
    assert!(uploaded.is_some() || before == stored, "{before} bytes were uploaded, not {stored}");

    let second_place = beside(&first_place);
    let second = Gateway::start(&second_place, &[]);
    let (_, said) = cli_fails(&second_place, &["volume", "attach", "vol"]);
    assert!(said.contains("take it over"), "{said}");
    cli(&second_place, &["volume", "attach", "vol", "--take-over"]);
    let other = second.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 3 4M 1M", "-c", "flush", &other]);
    cli(&second_place, &["volume", "flush", "vol"]);
    let published = root();

    first.signal(Signal::SIGCONT);
    // What it serves until it finds out is its own; it finds out by its next upload.
    let said = match flush {
        Some(flush) => {
            let ended = flush.wait_with_output().unwrap();
            assert!(!ended.status.success(), "its upload succeeded");
            String::from_utf8_lossy(&ended.stderr).into_owned()
        }
        None => cli_fails(&first_place, &["volume", "flush", "vol"]).1,
    };
    assert!(said.contains("taken over by another gateway"), "{said}");
    assert!(cli(&first_place, &["volume", "list"]).contains("quarantined"));
    assert_eq!(metric(&address, "culvert_volume_quarantined{volume=\"vol\"}"), 1.0);
    let read = ["-f", "raw", "-c", "read 0 4k", &uri];
    assert!(!output("qemu-io", &read).status.success(), "it still serves");
    // Everything that was not published is there, also what had gone to the store.
    let file = first_place.path("rest").display().to_string();
    let exported = cli(&first_place, &["cache", "export-quarantine", "vol", &file]);
    assert!(exported.contains(&format!("{} bytes", (32 << 20) + (64 << 10))), "{exported}");
    let rest = std::fs::read(&file).unwrap();
    assert_eq!(rest.len(), 64 << 20);
    let is_ours = |at: usize| (8 << 20..40 << 20).contains(&at);
    assert!(rest.iter().enumerate().all(|(at, byte)| *byte == if is_ours(at) { 2 } else { 0 }));
    // Nothing of it became visible: neither to the second, nor in the store.
    assert_eq!(root(), published, "another root than the second's");
    cli(&second_place, &["volume", "detach", "vol"]);
    cli(&second_place, &["volume", "attach", "vol"]);
    let commands = ["read -P 1 0 4M", "read -P 3 4M 1M", "read -P 0 5M 59M"];
    let mut check = vec!["-f", "raw"];
    check.extend(commands.iter().flat_map(|command| ["-c", *command]));
    check.push(&other);
    let said = run("qemu-io", &check);
    assert!(!said.contains("verification failed"), "{said}");
    // Once it is exported, the operator ends it.
    cli(&first_place, &["volume", "delete", "vol", "--forget"]);
    assert!(cli(&first_place, &["volume", "list"]).contains("no volumes"));
    first.stop();
    second.stop();
}

#[test]
fn a_gateway_stopped_before_an_upload_and_taken_over_uploads_nothing_when_it_goes_on() {
    for _ in 0..rounds(1) {
        stopped_and_taken_over(None);
    }
}

#[test]
fn a_gateway_stopped_in_the_middle_of_an_upload_and_taken_over_publishes_nothing_when_it_goes_on() {
    for round in 0..rounds(1) {
        // After the first, the second or the third pack of five.
        stopped_and_taken_over(Some((round % 3) << 23));
    }
}

/// What `culvert volume list` says of a volume's state.
fn state_of(place: &Scratch, volume: &str) -> String {
    let json = cli(place, &["volume", "list", "-o", "json"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    let found = listed.as_array().unwrap().iter().find(|listed| listed["name"] == volume);
    found.unwrap_or_else(|| panic!("{json}"))["state"].as_str().unwrap().to_owned()
}

/// Fails unless an error was logged, from a place in the log on, with all these words in a line.
fn must_be_told(place: &Scratch, from: usize, words: &[&str]) {
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    let tells = |line: &str| line.contains("ERROR") && words.iter().all(|w| line.contains(*w));
    assert!(log[from..].lines().any(tells), "no error with {words:?} in\n{}", &log[from..]);
}

#[test]
fn a_former_owner_with_nothing_to_upload_finds_out_when_it_starts_again() {
    let first_place = Scratch::new();
    let address = free_address().to_string();
    let arguments = ["--metrics", &address];
    let first = Gateway::start(&first_place, &[&arguments[..], &["--volume", "vol=8M"]].concat());
    let write = ["-f", "raw", "-c", "write -P 1 0 1M", "-c", "flush", &first.uri("vol")];
    run("qemu-io", &write);
    cli(&first_place, &["volume", "flush", "vol"]);
    assert_eq!(metric(&address, "culvert_volume_dirty_bytes{volume=\"vol\"}"), 0.0);
    first.kill();

    let second_place = beside(&first_place);
    let second = Gateway::start(&second_place, &["--volume", "vol", "--take-over"]);
    let write = ["-f", "raw", "-c", "write -P 2 0 1M", "-c", "flush", &second.uri("vol")];
    run("qemu-io", &write);
    cli(&second_place, &["volume", "flush", "vol"]);

    // It has all of what the volume was, in its cache. Nobody writes to it, so that nothing makes it look at the store
    // but that it starts.
    let first = Gateway::start(&first_place, &arguments);
    wait_for(|| state_of(&first_place, "vol") == "quarantined");
    assert_eq!(metric(&address, "culvert_volume_quarantined{volume=\"vol\"}"), 1.0);
    must_be_told(&first_place, 0, &["volume vol: taken over by another gateway"]);
    let read = ["-r", "-f", "raw", "-c", "read 0 4k", &first.uri("vol")];
    assert!(!output("qemu-io", &read).status.success(), "it still serves what is stale");
    assert_eq!(state_of(&second_place, "vol"), "active");
    first.stop();
    second.stop();
}

#[test]
fn a_volume_that_another_gateway_owns_keeps_no_other_from_being_served() {
    let first_place = Scratch::new();
    Gateway::start(&first_place, &["--volume", "lent=8M"]).kill();
    let place = beside(&first_place);
    // What cannot be served comes first.
    let gateway = Gateway::start(&place, &["--volume", "lent", "--volume", "own=4M"]);
    must_be_told(&place, 0, &["lent", "owned by"]);
    let commands = ["-f", "raw", "-c", "write -P 1 0 1M", "-c", "flush", "-c", "read -P 1 0 1M"];
    let said = run("qemu-io", &[&commands[..], &[&gateway.uri("own")]].concat());
    assert!(!said.contains("verification failed"), "{said}");
    assert_eq!(state_of(&place, "own"), "active");
    assert!(!cli(&place, &["volume", "list"]).contains("lent"));
    let read = ["-r", "-f", "raw", "-c", "read 0 4k", &gateway.uri("lent")];
    assert!(!output("qemu-io", &read).status.success(), "it is served");
    // Nor does a client get another one for it that names none.
    let unnamed = output("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4k", &gateway.uri("")]);
    let said = String::from_utf8_lossy(&unnamed.stderr).into_owned();
    assert!(!unnamed.status.success() && said.contains("name a volume"), "{said}");
    // By the operator's word it is, without another start.
    cli(&place, &["volume", "attach", "lent", "--take-over"]);
    run("qemu-io", &read);
    gateway.stop();
}

#[test]
fn a_gateway_told_to_serve_what_it_has_in_quarantine_starts_says_so_and_lets_it_be_exported() {
    let first_place = Scratch::new();
    let quiet = ["--upload-interval", "3600"];
    let first = Gateway::start(&first_place, &[&quiet[..], &["--volume", "lent=8M"]].concat());
    let write = ["-f", "raw", "-c", "write -P 1 1M 1M", "-c", "flush", &first.uri("lent")];
    run("qemu-io", &write);
    let second_place = beside(&first_place);
    Gateway::start(&second_place, &["--volume", "lent", "--take-over"]).stop();
    // By this it finds out, and it is in quarantine on the disk, too, when it says so.
    let (_, said) = cli_fails(&first_place, &["volume", "flush", "lent"]);
    assert!(said.contains("taken over by another gateway"), "{said}");
    first.stop();

    let before = std::fs::metadata(first_place.path("log")).unwrap().len() as usize;
    let first = Gateway::start(&first_place, &[&quiet[..], &["--volume", "lent"]].concat());
    must_be_told(&first_place, before, &["lent", "quarantine"]);
    assert_eq!(state_of(&first_place, "lent"), "quarantined");
    let read = ["-r", "-f", "raw", "-c", "read 0 4k", &first.uri("lent")];
    assert!(!output("qemu-io", &read).status.success(), "it is served");
    let file = first_place.path("rest").display().to_string();
    let exported = cli(&first_place, &["cache", "export-quarantine", "lent", &file]);
    assert!(exported.contains("1048576 bytes"), "{exported}");
    let rest = std::fs::read(&file).unwrap();
    assert!(rest.len() == 8 << 20 && rest[1 << 20..2 << 20].iter().all(|byte| *byte == 1));
    // A client that stays keeps nothing here, and is sent away.
    let script = format!(
        "import sys\n\
         h.connect_uri({:?})\n\
         try:\n\
         \x20   for _ in range(200):\n\
         \x20       if h.aio_is_dead() or h.aio_is_closed(): sys.exit(0)\n\
         \x20       h.poll(100)\n\
         except nbd.Error:\n\
         \x20   sys.exit(0)\n\
         sys.exit(3)\n",
        first.uri("lent")
    );
    let client = Command::new("nbdsh")
        .args(["-c", &script])
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .stdin(Stdio::null())
        .spawn();
    let mut client = client.unwrap();
    let connections = || {
        let json = cli(&first_place, &["volume", "list", "-o", "json"]);
        let listed: Value = serde_json::from_str(&json).unwrap();
        listed[0]["connections"].as_u64().unwrap()
    };
    wait_for(|| connections() == 1);
    cli(&first_place, &["volume", "delete", "lent", "--forget"]);
    assert!(client.wait().unwrap().success(), "it was not sent away");
    first.stop();
}
