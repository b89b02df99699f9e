//! Made, used, killed, stopped, started again.

use nix::sys::signal::Signal;

use crate::crashes::{Disk, wait_for};
use crate::observing::scrape;
use crate::support::{GATEWAY, Gateway, Scratch, culvert, free_address, image, output, run};

#[test]
fn what_was_written_is_there_after_a_kill_and_after_a_stop() {
    let scratch = Scratch::new();
    let (image_path, copy) = (scratch.path("image"), scratch.path("copy"));
    image(&image_path, 32 << 20);
    let (image_path, copy) = (image_path.to_str().unwrap(), copy.to_str().unwrap());
    let gateway = Gateway::start(&scratch, &["--volume", "vol=32M"]);
    run("nbdcopy", &[image_path, &gateway.uri("vol")]);
    gateway.kill();
    for _ in 0..2 {
        let gateway = Gateway::start(&scratch, &[]);
        run("nbdcopy", &[&gateway.uri("vol"), copy]);
        run("cmp", &[image_path, copy]);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image_path, &gateway.uri("")]);
        std::fs::remove_file(copy).unwrap();
        gateway.stop();
    }
}

#[test]
fn a_volume_outlives_its_cache_once_it_was_stopped_after_an_upload() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let arguments = ["--volume", "vol=8M", "--metrics", &address];
    let gateway = Gateway::start(&scratch, &arguments);
    let write = ["-f", "raw", "-c", "write -P 0x5a 0 8M", "-c", "flush"];
    run("qemu-io", &[&write[..], &[&gateway.uri("vol")]].concat());
    let begun = std::time::Instant::now();
    while !scrape(&address).contains("culvert_volume_dirty_bytes{volume=\"vol\"} 0\n") {
        assert!(begun.elapsed().as_secs() < 60, "not uploaded:\n{}", scrape(&address));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    gateway.kill();
    std::fs::remove_file(scratch.path("cache")).unwrap();
    // A new cache is another owner.
    let gateway = Gateway::start(&scratch, &["--volume", "vol", "--take-over"]);
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x5a 0 8M", &gateway.uri("vol;ro")]);
    gateway.stop();
}

#[test]
fn a_stop_that_cannot_close_the_cache_is_a_failure_and_what_was_flushed_is_kept() {
    let scratch = Scratch::new();
    let log = || std::fs::read_to_string(scratch.path("log")).unwrap();
    let medium = scratch.path("medium").display().to_string();
    std::fs::File::create(&medium).unwrap().set_len(96 << 20).unwrap();
    let mut disk = Disk::of(&scratch, &["file", &medium]);
    let (cache, address) = (disk.mounted.display().to_string(), free_address().to_string());
    let slow = ["--upload-interval", "3600", "--metrics", &address];
    let made = ["--cache", &cache, "--make", "--volume", "vol=8M"];
    let gateway = Gateway::start(&scratch, &[&made[..], &slow].concat());
    let _frozen = disk.freeze_with_a_log(&gateway.uri("vol"), &address);
    gateway.signal(Signal::SIGTERM);
    wait_for(|| log().contains("not stopped yet: the cache is being closed"));
    disk.cut();
    let status = gateway.ended();
    let said = log();
    assert_eq!(status.code(), Some(1), "{said}");
    for words in ["the cache is not closed in order: ", "; what was flushed is kept, and the next"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    drop(disk);
    let gateway = Gateway::start(&scratch, &["--cache", &medium]);
    let read = run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 2 0 2M", &gateway.uri("vol")]);
    assert!(!read.contains("failed"), "{read}");
    gateway.stop();
}

#[test]
fn libnbd_starts_it_on_standard_streams_and_by_socket_activation() {
    let scratch = Scratch::new();
    let mut arguments = scratch.arguments();
    // Without a place of its own.
    let listen = arguments.iter().position(|argument| argument == "--listen").unwrap();
    arguments.drain(listen..listen + 2);
    arguments.extend(["--volume".to_owned(), "vol=8M".to_owned()]);
    for (start, more) in [("connect_command", "--stdio"), ("connect_systemd_socket_activation", "")]
    {
        let mut command: Vec<&str> = vec![GATEWAY];
        command.extend(arguments.iter().map(String::as_str));
        command.extend(Some(more).filter(|more| !more.is_empty()));
        let script = format!(
            "h.set_export_name('vol')\n\
             h.{start}({command:?})\n\
             assert h.get_size() == 8 << 20\n\
             assert h.pread(4096, 0) in (b'x' * 4096, bytes(4096))\n\
             h.pwrite(b'x' * 4096, 0, nbd.CMD_FLAG_FUA)\n\
             h.shutdown()\n\
             import time; time.sleep(1)",
        );
        run("nbdsh", &["-c", &script]);
    }
    let gateway = Gateway::start(&scratch, &[]);
    run("qemu-io", &["-f", "raw", "-c", "read -P 0x78 0 4k", &gateway.uri("vol")]);
    gateway.stop();
}

#[test]
fn as_many_files_may_be_open_as_clients_need_or_fewer_clients_are_let_in() {
    let scratch = Scratch::new();
    let log = || std::fs::read_to_string(scratch.path("log")).unwrap();
    let gateway = Gateway::start_limited(&scratch, "256:4096", &["--volume", "vol=8M"]);
    assert_eq!(gateway.open_files(), 4096);
    gateway.stop();
    assert!(!log().contains("open files"), "{}", log());
    let gateway = Gateway::start_limited(&scratch, "200:200", &[]);
    run("qemu-io", &["-f", "raw", "-c", "read 0 4k", &gateway.uri("vol")]);
    gateway.stop();
    let said = log();
    assert!(said.contains("only 200 open files are allowed: at most 88 clients"), "{said}");
}

/// What an ordinary user types, with the programs where that user can read them, and a port and a disk of its own:
/// the cache takes 8 GiB there, of which its log is written. Nothing of it outlives the script.
const ORDINARY_USER: &str = r#"
gateway=$1 culvert=$2
cd "$3"
ip link set lo up
mkdir memory home run
mount -t tmpfs -o size=2g none memory
truncate -s 10G memory/disk
mkfs.ext4 -q -m 0 memory/disk
mount -o loop memory/disk home
cp "$gateway" culvert-gateway
cp "$culvert" culvert
chown 65534:65534 home run
chmod 755 .
chmod 700 run
exec setpriv --reuid 65534 --regid 65534 --clear-groups \
  env -i PATH="$PATH" HOME="$PWD/home" XDG_RUNTIME_DIR="$PWD/run" sh -euc '
cd
../culvert-gateway serve --cache ./cache --store ./store &
until ../culvert volume create vol 16M 2>../run/said; do
  # It makes its cache first.
  test $? = 3
  kill -0 $!
  sleep 0.2
done
../culvert volume list
nbdinfo --size nbd://127.0.0.1/vol
kill $!
wait $!
ls "$XDG_RUNTIME_DIR/culvert"

# Without a session there is no such folder.
unset XDG_RUNTIME_DIR
../culvert-gateway serve --cache ./cache --store ./store 2>../run/log &
until grep "no API" ../run/log; do
  kill -0 $!
  sleep 0.1
done
kill $!
wait $!
'
"#;

#[test]
fn two_options_are_all_that_an_ordinary_user_needs() {
    let scratch = Scratch::new();
    let folder = scratch.path("").display().to_string();
    let own = ["--net", "--mount", "--pid", "--fork", "--kill-child"];
    let script = ["timeout", "90", "sh", "-euc", ORDINARY_USER, "sh", GATEWAY, &culvert(), &folder];
    let output = output("unshare", &[&own[..], &script].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{log}");
    let socket = format!("{folder}run/culvert/gateway.sock");
    assert!(log.contains(&format!("socket={socket}")) && log.contains("closed in order"), "{log}");
    assert!(said.contains("vol   active   16M") && said.contains("\n16777216\n"), "{said}");
    assert!(!said.contains("gateway.sock\n"), "the socket is still there: {said}");
    let refusal = said.lines().last().unwrap();
    for words in ["/run/culvert/gateway.sock: ", "XDG_RUNTIME_DIR is not set", "--control PATH"] {
        assert!(refusal.contains(words), "{words}: {refusal}");
    }
}

#[test]
fn the_tour_in_the_readme_ends_with_what_was_written() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, section) = readme.split_once("\n## Cached volumes\n").unwrap();
    let (_, tour) = section.split_once("```sh\n").unwrap();
    let (tour, _) = tour.split_once("```").unwrap();
    assert!(tour.contains("kill -9") && tour.contains("date >"), "{tour}");
    let scratch = Scratch::new();
    let programs = std::path::Path::new(GATEWAY).parent().unwrap().display().to_string();
    // The programs are there already; and what is waited for is not a second, but what comes of it.
    let tour = tour.replace("cargo build", "true").replace("$PWD/target/release", &programs);
    let serves = "until culvert cache status >/dev/null 2>&1; do sleep 0.1; done";
    let mounted = "until test -s /tmp/disk/nbd; do sleep 0.1; done";
    let tour = tour.replace("kill -9 %1; sleep 1", "kill -9 %1; wait %1 || true");
    let tour = tour.replace("serve; sleep 1", &format!("serve; {serves}"));
    let tour = tour.replace("& sleep 1", &format!("& {mounted}"));
    assert!(!tour.contains("sleep 1"), "{tour}");
    let tour = tour.replace("/tmp/", &scratch.path("").display().to_string());
    let tour = format!("date() {{ echo precious; }}\n{tour}");
    culvert();
    // What it leaves behind, mounts and processes, goes with its end.
    let own = ["--mount", "--pid", "--fork", "--kill-child"];
    let script = ["timeout", "90", "bash", "-euc", &tour];
    let output = output("unshare", &[&own[..], &script].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("\nprecious\n") && said.contains("disk0  active  256M"), "{said}");
}
