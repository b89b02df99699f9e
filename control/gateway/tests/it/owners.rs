//! Two gateways and one volume: whoever was taken over uploads nothing any more, and keeps what it has.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Gateway, Scratch, cli, cli_fails, output, run};

/// A second folder for a gateway with the same store.
fn beside(first: &Scratch) -> Scratch {
    let second = Scratch::new();
    std::os::unix::fs::symlink(first.path("store"), second.path("store")).unwrap();
    second
}

#[test]
fn a_gateway_that_was_stopped_and_taken_over_uploads_nothing_when_it_goes_on() {
    let first_place = Scratch::new();
    let first = Gateway::start(&first_place, &["--volume", "vol=8M"]);
    let uri = first.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 4M", "-c", "flush", &uri]);
    cli(&first_place, &["volume", "flush", "vol"]);
    // Written here, answered, flushed, and with luck in the middle of an upload.
    run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 2 1M 1M", "-c", "write -z 2M 64k", "-c", "flush", &uri],
    );
    first.signal(Signal::SIGSTOP);

    let second_place = beside(&first_place);
    let second = Gateway::start(&second_place, &[]);
    let (_, said) = cli_fails(&second_place, &["volume", "attach", "vol"]);
    assert!(said.contains("take it over"), "{said}");
    cli(&second_place, &["volume", "attach", "vol", "--take-over"]);
    let other = second.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 3 4M 1M", "-c", "flush", &other]);
    cli(&second_place, &["volume", "flush", "vol"]);

    first.signal(Signal::SIGCONT);
    let begun = Instant::now();
    while !cli(&first_place, &["volume", "list"]).contains("quarantined") {
        // What it serves until it finds out is its own; it finds out by its next upload.
        assert!(begun.elapsed() < Duration::from_secs(60), "it did not find out");
        std::thread::sleep(Duration::from_millis(100));
    }
    let read = ["-f", "raw", "-c", "read 0 4k", &uri];
    assert!(!output("qemu-io", &read).status.success(), "it still serves");
    let file = first_place.path("rest").display().to_string();
    let exported = cli(&first_place, &["cache", "export-quarantine", "vol", &file]);
    assert!(exported.contains("1114112 bytes"), "{exported}");
    let rest = std::fs::read(&file).unwrap();
    assert!(rest.len() == 8 << 20 && rest[1 << 20..2 << 20].iter().all(|byte| *byte == 2));
    // Nothing of it became visible: neither to the second, nor in the store.
    cli(&second_place, &["volume", "detach", "vol"]);
    cli(&second_place, &["volume", "attach", "vol"]);
    let commands = ["read -P 1 0 4M", "read -P 3 4M 1M", "read -P 0 5M 3M"];
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
