//! `culvert volume` and `culvert cache` against a gateway that serves.

use crate::support::{Gateway, Scratch, cli, cli_fails, culvert, image, run};

#[test]
fn a_volume_is_made_used_resized_released_taken_and_deleted_by_command() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &[]);
    assert!(cli(&scratch, &["volume", "list"]).contains("no volumes"));
    let made = cli(&scratch, &["volume", "create", "vol", "16M", "--dirty-quota", "8M"]);
    assert!(made.contains("16M (16777216 bytes)") && made.contains("8M"), "{made}");
    let uri = gateway.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 0x5a 0 2M", "-c", "flush", &uri]);

    let json = cli(&scratch, &["volume", "flush", "vol", "-o", "json"]);
    assert!(
        json.contains("\"dirty_bytes\": 0") && json.contains("\"state\": \"active\""),
        "{json}"
    );
    let resized = cli(&scratch, &["volume", "resize", "vol", "32M", "-o", "yaml"]);
    assert!(resized.contains("size: 33554432"), "{resized}");
    assert!(run("nbdinfo", &["--size", &uri]).contains("33554432"));
    let (code, said) = cli_fails(&scratch, &["volume", "resize", "vol", "4M"]);
    assert!(code == 1 && said.contains("--shrink"), "{code}: {said}");
    cli(&scratch, &["volume", "resize", "vol", "4M", "--shrink"]);
    let set = cli(&scratch, &["volume", "set", "vol", "--durability", "remote"]);
    assert!(set.contains("the store"), "{set}");
    cli(&scratch, &["volume", "set", "vol", "--durability", "local", "--dirty-quota", "0"]);

    let status = cli(&scratch, &["cache", "status", "-o", "json"]);
    assert!(status.contains("\"unvalidated_chunks\": 0"), "{status}");
    let scrubbed = cli(&scratch, &["cache", "scrub"]);
    assert!(scrubbed.contains("damaged: 0 that the store has, 0 that it has not"), "{scrubbed}");

    cli(&scratch, &["volume", "detach", "vol"]);
    let listed = cli(&scratch, &["volume", "list", "--stored"]);
    assert!(listed.contains("vol   stored"), "{listed}");
    let taken = cli(&scratch, &["volume", "attach", "vol"]);
    assert!(taken.contains("epoch                 2"), "{taken}");
    run("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 0 2M", &uri]);
    cli(&scratch, &["volume", "delete", "vol"]);
    assert!(cli(&scratch, &["volume", "list", "--stored"]).contains("no volumes"));
    gateway.stop();
    assert!(!scratch.path("control.sock").exists());
}

#[test]
fn what_cannot_be_done_is_refused_in_words() {
    let scratch = Scratch::new();
    let (code, said) = cli_fails(&scratch, &["volume", "list"]);
    assert!(code == 3 && said.contains("culvert-gateway running?"), "{code}: {said}");
    let gateway = Gateway::start(&scratch, &["--volume", "disk=8M"]);
    for (arguments, expected) in [
        (&["create", "disk", "8M"][..], "exists already"),
        (&["create", "new", "0"], "legal is a multiple of 4096"),
        (&["create", "new", "5000"], "legal is a multiple of 4096"),
        (&["create", "New", "8M"], "legal are"),
        (&["create", "a\u{7}b", "8M"], "legal are"),
        (&["resize", "disk", "99T"], "64 TiB"),
        (&["show", "dsik"], "did you mean \"disk\"?"),
        (&["flush", "nothing"], "no such volume"),
        (&["detach", "nothing"], "no such volume"),
        (&["delete", "nothing"], "no such volume"),
        (&["delete", "disk", "--forget"], "served here, not in quarantine"),
        (&["delete", "disk", "--forget"], "detach or delete it"),
        (&["attach", "nothing"], "no such volume"),
    ] {
        let (_, said) = cli_fails(&scratch, &[&["volume"], arguments].concat());
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let file = scratch.path("out").display().to_string();
    let (_, said) = cli_fails(&scratch, &["cache", "export-quarantine", "disk", &file]);
    assert!(said.contains("not in quarantine") && !scratch.path("out").exists(), "{said}");
    assert!(cli(&scratch, &["volume", "list"]).contains("disk  active"));
    gateway.stop();
}

#[test]
fn clients_of_a_released_volume_get_eshutdown_and_then_the_end() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M"]);
    let detach = [&culvert(), "volume", "detach", "vol", "--gateway"];
    let control = scratch.path("control.sock").display().to_string();
    let script = format!(
        "import subprocess, errno, time\n\
         h.connect_uri({uri:?})\n\
         h.pwrite(b'x' * 4096, 0)\n\
         child = subprocess.Popen({detach:?} + [{control:?}])\n\
         seen = set()\n\
         end = time.monotonic() + 20\n\
         while time.monotonic() < end:\n\
         \x20   try:\n\
         \x20       h.pread(4096, 4096)\n\
         \x20   except nbd.Error as e:\n\
         \x20       seen.add(e.errnum)\n\
         \x20       if not h.aio_is_ready(): break\n\
         \x20   time.sleep(0.01)\n\
         assert errno.ESHUTDOWN in seen, seen\n\
         assert errno.EINVAL not in seen, seen\n\
         assert not h.aio_is_ready()\n\
         assert child.wait() == 0\n",
        uri = gateway.uri("vol"),
    );
    run("nbdsh", &["-c", &script]);
    gateway.stop();
}

#[test]
fn a_scrub_names_what_is_damaged() {
    let scratch = Scratch::new();
    let image_path = scratch.path("image");
    image(&image_path, 4 << 20);
    let gateway = Gateway::start(&scratch, &["--volume", "vol=4M"]);
    run("nbdcopy", &[image_path.to_str().unwrap(), &gateway.uri("vol")]);
    gateway.stop();
    // One block, wherever it lies in the cache.
    let mut cache = std::fs::read(scratch.path("cache")).unwrap();
    let block = std::fs::read(&image_path).unwrap()[40_960..45_056].to_vec();
    let at = (0..cache.len()).step_by(4096).rev().find(|at| cache[*at..*at + 4096] == block);
    cache[at.unwrap() + 7] ^= 1;
    std::fs::write(scratch.path("cache"), &cache).unwrap();
    let gateway = Gateway::start(&scratch, &[]);
    // It may have been uploaded before: then the store has it, and nothing is lost.
    let control = scratch.path("control.sock").display().to_string();
    let output = crate::support::output(&culvert(), &["cache", "scrub", "--gateway", &control]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lost = said.contains("damaged: 0 that the store has, 1 that it has not");
    let clean = said.contains("damaged: 1 that the store has, 0 that it has not");
    assert!(lost && output.status.code() == Some(5) || clean && output.status.success(), "{said}");
    assert!(!lost || said.contains("the only copy of bytes 40960 to 45056"), "{said}");
    gateway.stop();
}

#[test]
fn a_client_that_names_no_export_is_a_client_of_the_only_volume() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M"]);
    let control = scratch.path("control.sock").display().to_string();
    let script = format!(
        "import subprocess, time\n\
         def volume(*words):\n\
         \x20   command = [{culvert:?}, 'volume', *words, '--gateway', {control:?}]\n\
         \x20   return subprocess.run(command, capture_output=True, text=True)\n\
         h.connect_uri({uri:?})\n\
         h.pwrite(b'x' * 4096, 0)\n\
         refused = volume('delete', 'vol')\n\
         assert refused.returncode != 0 and '1 clients are connected' in refused.stderr, refused\n\
         shown = volume('show', 'vol', '-o', 'json')\n\
         assert '\"connections\": 1' in shown.stdout, shown\n\
         detached = volume('detach', 'vol')\n\
         assert detached.returncode == 0, detached\n\
         end = time.monotonic() + 20\n\
         while h.aio_is_ready() and time.monotonic() < end:\n\
         \x20   try: h.pread(4096, 0)\n\
         \x20   except nbd.Error: pass\n\
         \x20   time.sleep(0.01)\n\
         assert not h.aio_is_ready(), 'nobody hung up'\n",
        culvert = culvert(),
        uri = gateway.uri(""),
    );
    run("nbdsh", &["-c", &script]);
    gateway.stop();
}

#[test]
fn sessions_of_different_volumes_leave_each_other_alone() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "a=8M", "--volume", "b=8M"]);
    let script = format!(
        "def opened(name):\n\
         \x20   h = nbd.NBD()\n\
         \x20   h.set_export_name(name)\n\
         \x20   h.connect_unix({socket:?})\n\
         \x20   return h\n\
         first = opened('a;session=s;generation=1')\n\
         other = opened('b;session=s;generation=2')\n\
         assert first.pread(512, 0) == bytes(512)\n\
         later = opened('a;session=s;generation=2')\n\
         try: first.pread(512, 0); raise AssertionError('the former connection still reads')\n\
         except nbd.Error: pass\n\
         assert other.pread(512, 0) == later.pread(512, 0) == bytes(512)\n",
        socket = scratch.path("nbd.sock"),
    );
    run("nbdsh", &["-c", &script]);
    gateway.stop();
}
