//! Bad input: a clear error, nothing lost, nothing half made.

use crate::support::{GATEWAY, Gateway, LoopDevice, Scratch, cli, cli_fails, output, run};

/// What it says when it refuses to start.
fn refused(scratch: &Scratch, more: &[&str]) -> String {
    refused_with(scratch, "", "", more)
}

/// The same with `new` in place of the argument `old`.
fn refused_with(scratch: &Scratch, old: &str, new: &str, more: &[&str]) -> String {
    let arguments = scratch.arguments_with(more);
    let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(argument) = all.iter_mut().find(|argument| **argument == old) {
        *argument = new;
    }
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
    assert!(said.contains("volume vol: owned by") && said.contains("take it over"), "{said}");
    // Nor with another one that cannot be served either.
    let said = refused(&scratch, &["--volume", "vol", "--volume", "nothing"]);
    assert!(said.contains("volume vol: owned by") && said.contains("volume nothing"), "{said}");
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

/// Changes a structure's first bytes behind magic and checksum, and makes the checksum right.
fn patch_superblocks(cache: &std::path::Path, at: usize, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(cache).unwrap();
    for copy in [0, 512 << 10] {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, copy).unwrap();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        block[8..12].fill(0);
        let crc = culvert_volume::format::crc32c(&block);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&block, copy).unwrap();
    }
}

#[test]
fn a_cache_of_another_version_is_refused_and_left_as_it_is() {
    let scratch = Scratch::new();
    Gateway::start(&scratch, &["--volume", "vol=8M"]).stop();
    let cache = scratch.path("cache");
    patch_superblocks(&cache, 12, &9_u32.to_le_bytes());
    let before = std::fs::read(&cache).unwrap();
    let said = refused(&scratch, &[]);
    let known = culvert_volume::format::CACHE_VERSION;
    let why = format!(
        "format version 9; this program knows 1 to {known}; use the version that wrote it, nothing was changed"
    );
    assert!(said.contains(&why), "{said}");
    assert!(std::fs::read(&cache).unwrap() == before, "it was changed");
}

#[test]
fn a_cache_without_its_store_serves_what_it_has_and_another_cache_does_not_get_its_volumes() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    Gateway::start(&scratch, &["--volume", "vol=8M"]).stop();
    std::fs::copy(scratch.path("cache"), other.path("cache")).unwrap();
    let gateway = Gateway::start(&other, &[]);
    run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &gateway.uri("vol")]);
    let (_, said) = cli_fails(&other, &["volume", "flush", "vol"]);
    assert!(said.contains("volume vol: no such volume"), "{said}");
    gateway.kill();
    // Another cache at the same store does not get it.
    std::fs::remove_file(other.path("cache")).unwrap();
    let store = scratch.path("store").display().to_string();
    let said = refused(&other, &["--volume", "vol", "--store", &store]);
    assert!(said.contains("take it over"), "{said}");
}

#[test]
fn of_two_copies_of_a_cache_at_one_store_the_second_to_upload_is_stopped_and_keeps_its_data() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    Gateway::start(&scratch, &["--volume", "vol=8M"]).stop();
    std::fs::copy(scratch.path("cache"), other.path("cache")).unwrap();
    let store = scratch.path("store").display().to_string();
    // Neither uploads before it is told to.
    let first = Gateway::start(&scratch, &["--upload-interval", "3600"]);
    let second = Gateway::start(&other, &["--store", &store, "--upload-interval", "3600"]);
    let write = |gateway: &Gateway, what: &str| {
        run("qemu-io", &["-f", "raw", "-c", what, "-c", "flush", &gateway.uri("vol")]);
    };
    write(&first, "write -P 1 0 1M");
    write(&second, "write -P 2 1M 1M");
    cli(&scratch, &["volume", "flush", "vol"]);
    let (_, said) = cli_fails(&other, &["volume", "flush", "vol"]);
    assert!(said.contains("another copy of this cache"), "{said}");
    assert!(cli(&other, &["volume", "list"]).contains("quarantined"));
    let read = ["-f", "raw", "-c", "read 0 4k", &second.uri("vol")];
    assert!(!output("qemu-io", &read).status.success(), "it still serves");
    // The first goes on, and nothing of the second is in the store.
    write(&first, "write -P 3 2M 1M");
    cli(&scratch, &["volume", "flush", "vol"]);
    let file = other.path("rest").display().to_string();
    let exported = cli(&other, &["cache", "export-quarantine", "vol", &file]);
    assert!(exported.contains("1048576 bytes"), "{exported}");
    let rest = std::fs::read(&file).unwrap();
    assert!(rest[1 << 20..2 << 20].iter().all(|byte| *byte == 2));
    second.stop();
    first.kill();
    std::fs::remove_file(scratch.path("cache")).unwrap();
    let gateway = Gateway::start(&scratch, &["--volume", "vol", "--take-over"]);
    let mut check = vec!["-f", "raw"];
    for command in ["read -P 1 0 1M", "read -P 0 1M 1M", "read -P 3 2M 1M"] {
        check.extend(["-c", command]);
    }
    let uri = gateway.uri("vol");
    check.push(&uri);
    let said = run("qemu-io", &check);
    assert!(!said.contains("verification failed"), "{said}");
    gateway.stop();
}

#[test]
fn a_former_owner_cannot_delete_a_volume_that_was_taken_over() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let first = Gateway::start(&scratch, &["--volume", "vol=8M"]);
    let store = scratch.path("store").display().to_string();
    let second = Gateway::start(&other, &["--store", &store, "--volume", "vol", "--take-over"]);
    let uri = second.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 4 0 1M", "-c", "flush", &uri]);
    let (_, said) = cli_fails(&scratch, &["volume", "delete", "vol"]);
    assert!(said.contains("taken over"), "{said}");
    cli(&other, &["volume", "flush", "vol"]);
    // Its owner may; then it is nowhere, and its name is free.
    cli(&other, &["volume", "delete", "vol"]);
    assert!(!cli(&other, &["volume", "list", "--stored"]).contains("vol "));
    let (_, said) = cli_fails(&other, &["volume", "attach", "vol", "--take-over"]);
    assert!(said.contains("no such volume"), "{said}");
    cli(&other, &["volume", "create", "vol", "4M"]);
    first.stop();
    second.stop();
}

/// A mounted tmpfs of a few MiB, gone with the value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(scratch: &Scratch, options: &str) -> SmallDisk {
        let at = scratch.path("small");
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &["-t", "tmpfs", "-o", options, "none", at.to_str().unwrap()]);
        SmallDisk(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = output("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_full_disk_leaves_no_cache_and_harms_no_volume() {
    let scratch = Scratch::new();
    let small = SmallDisk::mount(&scratch, "size=24m");
    let at = |name: &str| small.0.join(name).display().to_string();
    let said = refused(&scratch, &["--cache", &at("cache")]);
    assert!(said.contains("allocate") && said.contains("No space"), "{said}");
    assert_eq!(std::fs::read_dir(&small.0).unwrap().count(), 0);

    // The store's disk is full: writes go on, and all is there once there is room.
    let gateway = Gateway::start(&scratch, &["--store", &at("store"), "--volume", "vol=40M"]);
    let uri = gateway.uri("vol");
    let write = output("qemu-io", &["-f", "raw", "-c", "write -P 3 0 32M", "-c", "flush", &uri]);
    assert!(write.status.success(), "{write:?}");
    let (_, said) = cli_fails(&scratch, &["volume", "flush", "vol"]);
    assert!(said.contains("No space"), "{said}");
    run("mount", &["-o", "remount,size=96m", small.0.to_str().unwrap()]);
    cli(&scratch, &["volume", "flush", "vol"]);
    gateway.kill();
    std::fs::remove_file(scratch.path("cache")).unwrap();
    let more = ["--store", &at("store"), "--volume", "vol", "--take-over"];
    let gateway = Gateway::start(&scratch, &more);
    let read = output("qemu-io", &["-f", "raw", "-c", "read -P 3 0 32M", &gateway.uri("vol")]);
    assert!(read.status.success() && !String::from_utf8_lossy(&read.stdout).contains("failed"));
    gateway.stop();
}

#[test]
fn a_read_only_file_system_is_named_and_nothing_is_made() {
    let scratch = Scratch::new();
    let small = SmallDisk::mount(&scratch, "size=200m");
    let cache = small.0.join("cache").display().to_string();
    let store = small.0.join("store").display().to_string();
    let remount =
        |how: &str| run("mount", &["-o", &format!("remount,{how}"), small.0.to_str().unwrap()]);
    remount("ro");
    let said = refused(&scratch, &["--cache", &cache]);
    assert!(said.contains("Read-only") && said.contains("cache"), "{said}");
    let said = refused(&scratch, &["--store", &store]);
    assert!(said.contains("Read-only") && said.contains("store"), "{said}");
    assert!(!scratch.path("cache").exists());
    remount("rw");
    Gateway::start(&scratch, &["--cache", &cache, "--volume", "vol=8M"]).stop();
    remount("ro");
    let said = refused(&scratch, &["--cache", &cache]);
    assert!(said.contains("Read-only") && said.contains(&cache), "{said}");
}

#[test]
fn a_block_device_is_a_cache_once_it_is_made_one() {
    let scratch = Scratch::new();
    let medium = scratch.path("medium");
    std::fs::File::create(&medium).unwrap().set_len(96 << 20).unwrap();
    let attached = LoopDevice::attach(&medium);
    let device = attached.path();
    // What is there is not overwritten by a word too few.
    let said = refused(&scratch, &["--cache", device]);
    assert!(said.contains("--make") && said.contains(device), "{said}");
    let gateway = Gateway::start(&scratch, &["--cache", device, "--make", "--volume", "vol=16M"]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 8 0 8M", &gateway.uri("vol")]);
    gateway.kill();
    let gateway = Gateway::start(&scratch, &["--cache", device, "--make"]);
    let read = run("qemu-io", &["-f", "raw", "-c", "read -P 8 0 8M", &gateway.uri("vol")]);
    assert!(!read.contains("failed"), "{read}");
    gateway.stop();
}

/// Whether the newest superblock says that the cache was closed in order.
fn is_closed_in_order(cache: &std::path::Path) -> bool {
    use culvert_volume::format::superblock::{COPIES, Superblock};
    let bytes = std::fs::read(cache).unwrap();
    let copies = COPIES.map(|at| {
        let copy = &bytes[at as usize..at as usize + 4096];
        Superblock::parse(copy, bytes.len() as u64).unwrap()
    });
    copies.iter().max_by_key(|copy| copy.generation).unwrap().clean
}

#[test]
fn whoever_is_refused_after_the_cache_was_opened_leaves_it_closed_in_order() {
    // Without a volume that is served, one that is not there is reason enough.
    let (scratch, empty) = (Scratch::new(), Scratch::new());
    Gateway::start(&scratch, &["--volume", "vol=8M"]).stop();
    Gateway::start(&empty, &[]).stop();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let other = scratch.path("other.sock");
    let _other = std::os::unix::net::UnixListener::bind(&other).unwrap();
    let (control, other) = (scratch.path("control.sock"), other.display().to_string());
    let refusals = [
        ("to make it", refused(&empty, &["--volume", "nothing"])),
        ("cannot listen", refused(&scratch, &["--metrics", &address])),
        (
            "another process answers",
            refused_with(&scratch, &control.display().to_string(), &other, &[]),
        ),
    ];
    for (expected, said) in refusals {
        assert!(said.contains(expected) && said.contains("closed in order"), "{said}");
    }
    for cache in [scratch.path("cache"), empty.path("cache")] {
        assert!(is_closed_in_order(&cache), "the next start has to validate it");
    }
}

#[test]
fn wrong_settings_are_wrong_usage_and_nothing_is_made() {
    let scratch = Scratch::new();
    let file = scratch.path("gateway.toml").display().to_string();
    std::fs::write(&file, "cash = '/x'").unwrap();
    for (option, value, expected) in [
        ("--log", "culvert_nbd=loud", "--log \"culvert_nbd=loud\": "),
        ("--config", file.as_str(), "unknown field `cash`"),
        ("--config", "/nonexistent/gateway.toml", "/nonexistent/gateway.toml: No such file"),
    ] {
        let arguments = scratch.arguments_with(&[option, value]);
        let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = output(GATEWAY, &all);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(expected), "{option}: {said}");
        assert!(!scratch.path("cache").exists(), "{option} {value}");
    }
}
