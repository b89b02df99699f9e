//! Damage on the cache's disk, as a client, the log and the metrics tell it.

use std::os::unix::fs::FileExt;

use crate::observing::metric;
use crate::support::{Gateway, Scratch, cli, cli_fails, culvert, free_address, output, run};

/// Flips a bit in each copy that the file has of a block which begins so.
fn damage(file: &std::path::Path, beginning: &[u8]) -> usize {
    let bytes = std::fs::read(file).unwrap();
    let file = std::fs::File::options().write(true).open(file).unwrap();
    let blocks = bytes.chunks(4096).enumerate();
    let found: Vec<usize> =
        blocks.filter(|(_, block)| block.starts_with(beginning)).map(|(i, _)| i).collect();
    for block in &found {
        let at = block * 4096 + 100;
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    }
    found.len()
}

/// Writes a block of `precious` at 1 MiB of the volume `vol`, and one of `ordinary` behind it.
fn write_precious(gateway: &Gateway) {
    let write = format!(
        "h.connect_uri({:?})\n\
         h.pwrite(b'precious' * 512, 1 << 20)\n\
         h.pwrite(b'ordinary' * 512, (1 << 20) + 4096)\n\
         h.flush()\n\
         h.shutdown()",
        gateway.uri("vol")
    );
    run("nbdsh", &["-c", &write]);
}

#[test]
fn a_block_that_is_lost_is_an_error_of_its_range_for_the_client_in_the_log_and_in_the_metrics() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let arguments = ["--upload-interval", "3600", "--metrics", &address];
    let gateway = Gateway::start(&scratch, &[&arguments[..], &["--volume", "vol=8M"]].concat());
    write_precious(&gateway);
    gateway.stop();
    assert!(damage(&scratch.path("cache"), b"precious") > 0, "it is not in the cache");

    let gateway = Gateway::start(&scratch, &arguments);
    let read = format!(
        "h.connect_uri({:?})\n\
         import errno\n\
         for length in [512, 4096]:\n\
         \x20 try: h.pread(length, 1 << 20); assert False\n\
         \x20 except nbd.Error as e: assert e.errnum == errno.EIO, e\n\
         assert h.pread(4096, (1 << 20) + 4096) == b'ordinary' * 512\n\
         assert h.pread(4096, (1 << 20) - 4096) == bytes(4096)\n\
         h.shutdown()",
        gateway.uri("vol")
    );
    run("nbdsh", &["-c", &read]);
    let why = "volume vol: the only copy of bytes 1048576 to 1052672 is damaged";
    let log = std::fs::read_to_string(scratch.path("log")).unwrap();
    let told = log.lines().filter(|line| line.contains("ERROR") && line.contains(why));
    assert_eq!(told.count(), 2, "{log}");
    // Twice by the client, and each time that the gateway itself wants to move it.
    let lost = metric(&address, "culvert_volume_lost_total{volume=\"vol\"}");
    assert!(lost >= 2.0, "{lost}");
    // Nothing is uploaded as if it were whole, until it is written anew.
    let (_, said) = cli_fails(&scratch, &["volume", "flush", "vol"]);
    assert!(said.contains(why), "{said}");
    let write = ["-f", "raw", "-c", "write -P 1 1M 4k", "-c", "flush", &gateway.uri("vol")];
    run("qemu-io", &write);
    cli(&scratch, &["volume", "flush", "vol"]);
    gateway.stop();
}

/// Of two volumes that another gateway took over, one has a block that is lost, and the other has uploaded all.
#[test]
fn an_export_leaves_out_what_is_lost_and_says_so() {
    let (first, second) = (Scratch::new(), Scratch::new());
    let quiet = ["--upload-interval", "3600"];
    let volumes = ["--volume", "vol=8M", "--volume", "empty=4M"];
    let gateway = Gateway::start(&first, &[&quiet[..], &volumes].concat());
    write_precious(&gateway);
    gateway.stop();
    assert!(damage(&first.path("cache"), b"precious") > 0, "it is not in the cache");
    std::os::unix::fs::symlink(first.path("store"), second.path("store")).unwrap();
    let other = Gateway::start(&second, &[]);
    for volume in ["vol", "empty"] {
        cli(&second, &["volume", "attach", volume, "--take-over"]);
    }
    other.stop();

    let gateway = Gateway::start(&first, &quiet);
    let control = first.path("control.sock").display().to_string();
    let export = |volume: &str| {
        cli_fails(&first, &["volume", "flush", volume]);
        let file = first.path(&format!("{volume}.raw"));
        let words = ["cache", "export-quarantine", volume, file.to_str().unwrap()];
        let exported = output(&culvert(), &[&words[..], &["--gateway", &control]].concat());
        let said = String::from_utf8_lossy(&exported.stdout).into_owned();
        (file, exported.status.code(), said)
    };
    let (file, code, said) = export("vol");
    assert!(code == Some(5) && said.contains("bytes 1048576 to 1052672 is damaged"), "{said}");
    let content = std::fs::read(&file).unwrap();
    assert!(content.len() == 8 << 20 && content[..(1 << 20) + 4096].iter().all(|byte| *byte == 0));
    assert_eq!(content[(1 << 20) + 4096..][..4096], b"ordinary".repeat(512));
    // One that is there is neither written nor removed.
    assert_eq!(export("vol").1, Some(2));
    assert_eq!(std::fs::read(&file).unwrap(), content);
    // One that is cut short, here since the file may not be as large, leaves nothing that looks whole, and the next
    // one does not write over what it left.
    let (cut, part) = (first.path("cut.raw"), first.path("cut.raw.part"));
    let words = ["cache", "export-quarantine", "vol", cut.to_str().unwrap()];
    let program = culvert();
    let limited = [&["--fsize=4096", &program][..], &words, &["--gateway", &control]].concat();
    let killed = output("prlimit", &limited);
    assert!(!killed.status.success() && !cut.exists(), "{killed:?}");
    std::fs::write(&part, "left").unwrap();
    let (code, said) = cli_fails(&first, &words);
    assert!(code == 2 && said.contains("cut.raw.part"), "{said}");
    assert!(std::fs::read(&part).unwrap() == b"left" && !cut.exists());
    let (file, code, said) = export("empty");
    assert!(code == Some(0) && said.contains("0 ranges"), "{said}");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 4 << 20);
    assert!(!first.path("empty.raw.part").exists());
    gateway.stop();
}
