//! Bad input: a clear error, nothing lost, nothing half made.

use crate::support::{GATEWAY, Gateway, Scratch, output};

/// What it says when it refuses to start.
fn refused(scratch: &Scratch, more: &[&str]) -> String {
    refused_with(scratch, "", "", more)
}

/// The same with `new` in place of the argument `old`.
fn refused_with(scratch: &Scratch, old: &str, new: &str, more: &[&str]) -> String {
    let arguments = scratch.arguments();
    let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(argument) = all.iter_mut().find(|argument| **argument == old) {
        *argument = new;
    }
    all.extend(more);
    let output = output(GATEWAY, &all);
    assert!(!output.status.success(), "it served");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_cache_in_use_is_refused_and_the_user_goes_on() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M"]);
    let sockets = ["nbd.sock", "other.sock"].map(|name| scratch.path(name).display().to_string());
    let said = refused_with(&scratch, &sockets[0], &sockets[1], &[]);
    assert!(said.contains("in use"), "{said}");
    let io = ["-f", "raw", "-c", "write 0 4k", &gateway.uri("vol")];
    assert!(output("qemu-io", &io).status.success());
    gateway.stop();
}

#[test]
fn a_file_that_is_no_cache_is_refused_and_left_as_it_is() {
    let scratch = Scratch::new();
    let precious = vec![7; 1 << 20];
    std::fs::write(scratch.path("cache"), &precious).unwrap();
    let said = refused(&scratch, &[]);
    assert!(said.contains("not a cache"), "{said}");
    assert_eq!(std::fs::read(scratch.path("cache")).unwrap(), precious);
}

#[test]
fn a_cache_too_small_or_too_large_leaves_no_file() {
    for (size, expected) in [("8M", "needs a log"), ("900T", "allocate")] {
        let scratch = Scratch::new();
        let said = refused_with(&scratch, "96M", size, &[]);
        assert!(said.contains(expected), "{size}: {said}");
        assert!(!scratch.path("cache").exists());
    }
}

#[test]
fn a_volume_that_is_nowhere_or_impossible_is_refused() {
    let scratch = Scratch::new();
    for (volume, expected) in [
        ("nothing", "to make it"),
        ("vol=0", "legal is a multiple of 4096"),
        ("vol=1000", "legal is a multiple of 4096"),
        ("vol=65T", "64 TiB"),
        ("Vol=1G", "legal are"),
        ("vol=1X", "legal is"),
    ] {
        let said = refused(&scratch, &["--volume", volume]);
        assert!(said.contains(expected), "{volume}: {said}");
    }
    assert!(std::fs::read_dir(scratch.path("store")).unwrap().all(|entry| {
        let name = entry.unwrap().file_name();
        !name.to_string_lossy().starts_with("vol")
    }));
}

#[test]
fn a_volume_of_another_gateway_needs_to_be_taken_over() {
    let scratch = Scratch::new();
    Gateway::start(&scratch, &["--volume", "vol=8M"]).kill();
    std::fs::rename(scratch.path("cache"), scratch.path("old-cache")).unwrap();
    let said = refused(&scratch, &["--volume", "vol"]);
    assert!(said.contains("take it over"), "{said}");
    Gateway::start(&scratch, &["--volume", "vol", "--take-over"]).stop();
}

#[test]
fn an_export_that_does_not_exist_is_refused_by_name() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "a=8M", "--volume", "b=8M"]);
    for (name, expected) in [("nothing", "No such file"), ("", "name one of the 2 volumes")] {
        let qemu = output("qemu-io", &["-f", "raw", "-c", "read 0 512", &gateway.uri(name)]);
        let nbdinfo = output("nbdinfo", &[&gateway.uri(name)]);
        assert!(!qemu.status.success() && !nbdinfo.status.success());
        let said = [qemu.stderr, nbdinfo.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(expected), "{name:?}: {said}");
    }
    gateway.stop();
}

#[test]
fn a_place_that_is_taken_is_named() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("nbd.sock"), "precious").unwrap();
    let said = refused(&scratch, &[]);
    assert!(said.contains("nbd.sock") && said.contains("no socket"), "{said}");
    assert!(!scratch.path("cache").exists(), "a cache was made before");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::fs::remove_file(scratch.path("nbd.sock")).unwrap();
    let said = refused(&scratch, &["--listen", &address]);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}
