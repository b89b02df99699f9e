//! File systems of the kernel on a volume, and what stock clients do with one that is larger than its cache.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::crashes::{Disk, rounds, wait_for};
use crate::support::{Gateway, LoopDevice, Scratch, cli, image, output, run};
use crate::writer::{Promises, Syncs, Writer, check};

/// A volume as a file, by nbdfuse; unmounted with the value.
struct Fuse {
    program: Child,
    file: PathBuf,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // nbdfuse flushes and ends once it is unmounted.
        let unmounted = [&[][..], &["-l"]].into_iter().any(|lazily| {
            let unmounted = Command::new("umount").args(lazily).arg(&self.file).status();
            unmounted.is_ok_and(|status| status.success())
        });
        if !unmounted {
            let _ = self.program.kill();
        }
        let _ = self.program.wait();
    }
}

/// A volume as a block device: a loop device over that file.
struct Device {
    // Dropped in this order.
    device: LoopDevice,
    _fuse: Fuse,
}

impl Device {
    fn attach(scratch: &Scratch, uri: &str) -> Device {
        let file = scratch.path("volume");
        std::fs::write(&file, "").unwrap();
        let program =
            Command::new("nbdfuse").arg(&file).arg(uri).stdin(Stdio::null()).spawn().unwrap();
        let fuse = Fuse { program, file };
        wait_for(|| std::fs::metadata(&fuse.file).is_ok_and(|meta| meta.len() > 0));
        Device { device: LoopDevice::attach(&fuse.file), _fuse: fuse }
    }

    fn path(&self) -> &str {
        self.device.path()
    }
}

/// A mounted file system.
struct Mounted(PathBuf);

impl Mounted {
    fn mount(scratch: &Scratch, device: &Device) -> Mounted {
        Self::mount_at(scratch.path("mounted"), device.path())
    }

    fn mount_at(at: PathBuf, device: &str) -> Mounted {
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &[device, at.to_str().unwrap()]);
        Mounted(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.0.to_str().unwrap();
        if !output("umount", &[path]).status.success() {
            let _ = output("umount", &["-l", path]);
        }
    }
}

/// Bytes of a volume that are no hole.
fn allocated(uri: &str) -> u64 {
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", uri]);
    let is_data = |extent: &&str| extent.contains("\"data\": true");
    let length = |extent: &str| {
        let rest = extent.split("\"length\": ").nth(1)?;
        rest.split(',').next()?.trim().parse::<u64>().ok()
    };
    map.split('}').filter(is_data).filter_map(length).sum()
}

fn a_file_system_is_made_filled_trimmed_and_checked(kind: &str, check: &[&str]) {
    let scratch = Scratch::new();
    // Four times as large as the cache, so that data go to the store and come back.
    let gateway = Gateway::start(&scratch, &["--volume", "vol=384M"]);
    let device = Device::attach(&scratch, &gateway.uri("vol"));
    run(&format!("mkfs.{kind}"), &["-q", device.path()]);
    let source = scratch.path("source");
    std::fs::create_dir(&source).unwrap();
    for number in 0..24 {
        image(&source.join(format!("file-{number}")), (4 << 20) + number * 4097);
    }
    let mounted = Mounted::mount(&scratch, &device);
    let target = mounted.0.join("files");
    let (from, to) = (source.to_str().unwrap(), target.to_str().unwrap());
    run("cp", &["-r", from, to]);
    run("sync", &["-f", to]);
    drop(mounted);
    run(check[0], &[&check[1..], &[device.path()]].concat());
    let full = allocated(&gateway.uri("vol"));
    assert!(full > 96 << 20, "{full}");

    let mounted = Mounted::mount(&scratch, &device);
    run("diff", &["-r", from, to]);
    for number in 0..20 {
        std::fs::remove_file(target.join(format!("file-{number}"))).unwrap();
    }
    // XFS frees what was removed in the background, at the latest when it is unmounted.
    drop(mounted);
    let mounted = Mounted::mount(&scratch, &device);
    run("fstrim", &[mounted.0.to_str().unwrap()]);
    drop(mounted);
    run(check[0], &[&check[1..], &[device.path()]].concat());
    drop(device);
    let trimmed = allocated(&gateway.uri("vol"));
    assert!(trimmed + (64 << 20) < full, "{full} bytes became {trimmed}");

    // Killed and started again it is the same.
    cli(&scratch, &["volume", "flush", "vol"]);
    gateway.kill();
    let gateway = Gateway::start(&scratch, &[]);
    let device = Device::attach(&scratch, &gateway.uri("vol"));
    let mounted = Mounted::mount(&scratch, &device);
    for number in 20..24 {
        let name = format!("file-{number}");
        run("cmp", &[source.join(&name).to_str().unwrap(), target.join(&name).to_str().unwrap()]);
    }
    drop(mounted);
    drop(device);
    gateway.stop();
}

#[test]
fn ext4_is_made_filled_trimmed_and_checked() {
    a_file_system_is_made_filled_trimmed_and_checked("ext4", &["e2fsck", "-fn"]);
}

#[test]
fn xfs_is_made_filled_trimmed_and_checked() {
    a_file_system_is_made_filled_trimmed_and_checked("xfs", &["xfs_repair", "-n"]);
}

/// A mebibyte of which no two blocks are alike, nor two of such files.
fn mebibyte(number: u64) -> Vec<u8> {
    (0..1 << 20).map(|at: u64| (at % 251 + (at >> 12) * 7 + number * 13) as u8).collect()
}

fn is_whole(mounted: &Mounted, number: u64) -> bool {
    std::fs::read(mounted.0.join(number.to_string())).is_ok_and(|found| found == mebibyte(number))
}

/// Writes files of a mebibyte until the file system is full. Returns how many are whole: all but the last one.
fn fill(folder: &Path) -> u64 {
    let mut number = 0;
    loop {
        if let Err(e) = std::fs::write(folder.join(number.to_string()), mebibyte(number)) {
            assert_eq!(e.kind(), ErrorKind::StorageFull, "file {number}: {e}");
            return number;
        }
        number += 1;
    }
}

/// Makes a file system on a volume of a size and fills it, but for what is `taken` beforehand without being written.
/// `given_back` is the share that it gives back at least of what was deleted.
fn filled_until_there_is_no_space_it_gives_back_what_was_deleted(
    size: &str,
    make: &[&str],
    taken: Option<&str>,
    check: &[&str],
    given_back: f64,
) {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", &format!("vol={size}")]);
    let device = Device::attach(&scratch, &gateway.uri("vol"));
    run(make[0], &[&make[1..], &[device.path()]].concat());
    let mounted = Mounted::mount(&scratch, &device);
    if let Some(bytes) = taken {
        run("fallocate", &["-l", bytes, mounted.0.join("taken").to_str().unwrap()]);
    }
    let files = fill(&mounted.0);
    run("sync", &["-f", mounted.0.to_str().unwrap()]);
    drop(mounted);
    run(check[0], &[&check[1..], &[device.path()]].concat());
    let full = allocated(&gateway.uri("vol"));
    // More than what the cache holds, so that it was full, too.
    assert!(files > 96 && full >= files << 20, "{files} files, {full} bytes");

    let mounted = Mounted::mount(&scratch, &device);
    for number in 0..files {
        assert!(is_whole(&mounted, number), "file {number} of {files}");
    }
    let (kept, deleted): (Vec<u64>, Vec<u64>) = (0..files).partition(|number| number % 8 == 3);
    for number in &deleted {
        std::fs::remove_file(mounted.0.join(number.to_string())).unwrap();
    }
    // What was deleted is free for good once it is unmounted.
    drop(mounted);
    let mounted = Mounted::mount(&scratch, &device);
    run("fstrim", &[mounted.0.to_str().unwrap()]);
    for number in kept {
        assert!(is_whole(&mounted, number), "file {number} of {files} after the trim");
    }
    drop(mounted);
    run(check[0], &[&check[1..], &[device.path()]].concat());
    drop(device);
    let (trimmed, deleted) = (allocated(&gateway.uri("vol")), (deleted.len() as u64) << 20);
    let least = (deleted as f64 * given_back) as u64;
    assert!(trimmed + least < full, "{full} bytes became {trimmed}; {deleted} deleted");
    gateway.stop();
}

#[test]
fn ext4_filled_until_there_is_no_space_gives_back_what_was_deleted() {
    let make = ["mkfs.ext4", "-q", "-b", "4096"];
    let check = ["e2fsck", "-fn"];
    filled_until_there_is_no_space_it_gives_back_what_was_deleted(
        "128M", &make, None, &check, 0.75,
    );
}

#[test]
fn xfs_filled_until_there_is_no_space_gives_back_what_was_deleted() {
    // It is never smaller than 300 MiB, and fewer are enough to be written. Of what is deleted it gives back a quarter
    // here, also on a plain file.
    let (make, taken) = (["mkfs.xfs", "-q"], Some("170M"));
    let check = ["xfs_repair", "-n"];
    filled_until_there_is_no_space_it_gives_back_what_was_deleted(
        "384M", &make, taken, &check, 0.125,
    );
}

/// Writes files one after the other, each flushed before the next, until that fails or it is enough. Returns how many.
fn write_files(folder: &Path, first: u64, enough: &AtomicBool) -> u64 {
    let mut number = first;
    while !enough.load(Ordering::Relaxed) {
        let written = (|| {
            let mut file = std::fs::File::create(folder.join(number.to_string()))?;
            file.write_all(&content(number))?;
            file.sync_all()?;
            std::fs::File::open(folder)?.sync_all()
        })();
        if written.is_err() {
            break;
        }
        number += 1;
    }
    number - first
}

fn content(number: u64) -> Vec<u8> {
    let len = 1000 + number * 977 % 20_000;
    (0..len).map(|at| (at * (number + 1)) as u8).collect()
}

/// Most rounds beyond the others that it may take until a cut takes something that was answered. Mostly the first does:
/// only if a sync is at its very end when the power goes, a cut takes nothing.
const MORE_ROUNDS: u64 = 10;

#[test]
fn ext4_loses_no_flushed_file_in_a_power_cut() {
    let scratch = Scratch::new();
    let made = Gateway::start(&scratch, &["--volume", "vol=64M", "--volume", "other=2M"]);
    let device = Device::attach(&scratch, &made.uri("vol"));
    run("mkfs.ext4", &["-q", device.path()]);
    drop(device);
    made.stop();
    let medium = scratch.path("medium");
    std::fs::rename(scratch.path("cache"), &medium).unwrap();
    let mut files = 0;
    let (mut there, mut took) = (Promises::none(), false);
    for round in 0..rounds(2) + MORE_ROUNDS {
        // Every flush of a file flushes all volumes. So at last, with all files flushed, another volume is written to
        // that nobody flushes: what it was answered is what the cut may take.
        let at_rest = round >= rounds(2);
        if at_rest && took {
            break;
        }
        let mut disk = Disk::attach(&scratch, &medium);
        let on_disk = disk.mounted.display().to_string();
        let gateway = Gateway::start(&scratch, &["--cache", &on_disk]);
        let device = Device::attach(&scratch, &gateway.uri("vol"));
        let mounted = Mounted::mount(&scratch, &device);
        let enough = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (folder, enough) = (mounted.0.clone(), Arc::clone(&enough));
            move || write_files(&folder, files, &enough)
        });
        // One is begun once the one before is flushed.
        wait_for(|| mounted.0.join((files + 1).to_string()).exists());
        std::thread::sleep(Duration::from_millis(900 + round * 313 % 700));
        let (written, said) = if at_rest {
            enough.store(true, Ordering::Relaxed);
            let written = writer.join().unwrap();
            let other = Writer::start(&gateway.uri("other"), &there, Syncs::AtFirst);
            wait_for(|| other.promises().durable.newest() > there.asked);
            std::thread::sleep(Duration::from_millis(300));
            disk.cut();
            (written, Some(other.end()))
        } else {
            disk.cut();
            (writer.join().unwrap(), None)
        };
        assert!(written > 0, "round {round}: nothing was written");
        files += written;
        drop(mounted);
        drop(device);
        gateway.kill();
        drop(disk);

        let disk = Disk::attach(&scratch, &medium);
        let gateway = Gateway::start(&scratch, &["--cache", &on_disk]);
        if let Some(said) = said {
            there = check(&gateway.uri("other"), &said.durable, said.asked);
            took = there.answered.is_behind(&said.answered);
        }
        let device = Device::attach(&scratch, &gateway.uri("vol"));
        // The journal is replayed first; then nothing may be wrong.
        let replayed = output("e2fsck", &["-p", device.path()]);
        assert!(replayed.status.code().is_some_and(|code| code <= 1), "{replayed:?}");
        run("e2fsck", &["-fn", device.path()]);
        let mounted = Mounted::mount(&scratch, &device);
        for number in 0..files {
            let found = std::fs::read(mounted.0.join(number.to_string()));
            assert!(found.is_ok_and(|found| found == content(number)), "file {number} of {files}");
        }
        // What was written when the power went may be there or not, and is not counted.
        let _ = std::fs::remove_file(mounted.0.join(files.to_string()));
        drop(mounted);
        drop(device);
        gateway.stop();
        drop(disk);
    }
    // Else this disk loses nothing, and all that was found proves nothing.
    assert!(took, "no cut took a write that was answered");
}

/// The cache as most have it, a file: its size, its place on the disk and what a sync makes durable are the file
/// system's matter.
#[test]
fn a_cache_in_a_file_of_ext4_loses_nothing_that_was_flushed_in_a_power_cut() {
    let scratch = Scratch::new();
    let medium = scratch.path("medium");
    std::fs::File::create(&medium).unwrap().set_len(192 << 20).unwrap();
    run("mkfs.ext4", &["-q", medium.to_str().unwrap()]);
    let (mut there, mut took) = (Promises::none(), false);
    for round in 0..rounds(2) + MORE_ROUNDS {
        if round >= rounds(2) && took {
            break;
        }
        // What a cut takes is mostly taken from a writer that does not flush.
        let flushes = round.is_multiple_of(2) && round < rounds(2);
        let syncs = if flushes { Syncs::FlushAndFua } else { Syncs::AtFirst };
        let mut disk = Disk::attach(&scratch, &medium);
        let device = LoopDevice::attach(&disk.mounted);
        let mounted = Mounted::mount_at(scratch.path("host"), device.path());
        let cache = mounted.0.join("cache").display().to_string();
        // Made in the first round, and cut from power soon after.
        let gateway = Gateway::start(&scratch, &["--cache", &cache, "--volume", "vol=2M"]);
        let writer = Writer::start(&gateway.uri("vol"), &there, syncs);
        wait_for(|| writer.promises().durable.newest() > there.asked);
        std::thread::sleep(Duration::from_millis(600 + round * 271 % 600));
        disk.cut();
        let said = writer.end();
        gateway.kill();
        drop(mounted);
        drop(device);
        drop(disk);
        let is_durable = said.durable.newest() > there.asked;
        assert!(is_durable, "round {round}, {syncs:?}: nothing became durable");

        let disk = Disk::attach(&scratch, &medium);
        let device = LoopDevice::attach(&disk.mounted);
        let mounted = Mounted::mount_at(scratch.path("host"), device.path());
        let gateway = Gateway::start(&scratch, &["--cache", &cache]);
        there = check(&gateway.uri("vol"), &said.durable, said.asked);
        took |= there.answered.is_behind(&said.answered);
        gateway.stop();
        drop(mounted);
        drop(device);
        drop(disk);
    }
    // Else this disk loses nothing, and all that was found proves nothing.
    assert!(took, "no cut took a write that was answered");
}

#[test]
fn several_fio_jobs_verify_what_they_wrote() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=192M"]);
    let uri = format!("--uri={}", gateway.uri("vol"));
    let common = [
        "--ioengine=nbd",
        &uri,
        "--thread",
        "--rw=randrw",
        "--bsrange=512-64k",
        "--bs_unaligned=0",
        "--iodepth=8",
        "--size=40m",
        "--offset_increment=48m",
        "--numjobs=4",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--fsync=64",
        "--verify_state_save=0",
        "--name=jobs",
    ];
    run("fio", &common);
    // And once more only read, after a kill.
    gateway.kill();
    let gateway = Gateway::start(&scratch, &[]);
    let uri = format!("--uri={}", gateway.uri("vol"));
    let write = [
        "--name=w",
        "--ioengine=nbd",
        &uri,
        "--thread",
        "--rw=randwrite",
        "--bs=4k",
        "--size=32m",
        "--verify=sha256",
        "--verify_state_save=0",
        "--iodepth=16",
    ];
    run("fio", &[&write[..], &["--do_verify=0"]].concat());
    gateway.kill();
    let gateway = Gateway::start(&scratch, &[]);
    let uri = format!("--uri={}", gateway.uri("vol"));
    let write =
        write.map(|argument| if argument.starts_with("--uri") { uri.as_str() } else { argument });
    run("fio", &[&write[..], &["--verify_only"]].concat());
    gateway.stop();
}

#[test]
fn qemu_compares_converts_and_maps_a_volume() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=64M", "--volume", "copy=64M"]);
    let raw = scratch.path("image");
    image(&raw, 24 << 20);
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&[0; 1 << 20], 4 << 20).unwrap();
    let raw = raw.to_str().unwrap();
    let (vol, copy) = (gateway.uri("vol"), gateway.uri("copy"));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", raw, &vol]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &vol]);
    run("qemu-img", &["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", &vol, &copy]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &vol, &copy]);
    assert_eq!(allocated(&vol), 23 << 20);
    let qcow = scratch.path("qcow");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &vol, qcow.to_str().unwrap()]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", qcow.to_str().unwrap(), raw]);
    let io = [
        "-c",
        "write -P 5 512 1024",
        "-c",
        "write -f -P 6 1M 64k",
        "-c",
        "write -z 2M 64k",
        "-c",
        "discard 3M 1M",
        "-c",
        "flush",
        "-c",
        "read -P 5 512 1024",
        "-c",
        "read -P 6 1M 64k",
        "-c",
        "read -P 0 2M 64k",
        "-c",
        "read -P 0 3M 1M",
        "-c",
        "write -P 9 4095 2",
        "-c",
        "read -P 9 4095 2",
    ];
    let said = run("qemu-io", &[&["-f", "raw"][..], &io, &[&copy]].concat());
    assert!(!said.contains("verification failed") && !said.contains("rror"), "{said}");
    gateway.stop();
}

#[test]
fn nbdsh_finds_every_option_and_error_of_a_volume() {
    let scratch = Scratch::new();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M"]);
    let script =
        include_str!("nbdsh.py").replace("SOCKET", scratch.path("nbd.sock").to_str().unwrap());
    run("nbdsh", &["-c", &script]);
    gateway.stop();
}
