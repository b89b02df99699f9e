//! Damage on the cache's disk, as a client, the log and the metrics tell it.

use std::os::unix::fs::FileExt;

use crate::observing::scrape;
use crate::support::{Gateway, Scratch, cli, cli_fails, free_address, run};

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

#[test]
fn a_block_that_is_lost_is_an_error_of_its_range_for_the_client_in_the_log_and_in_the_metrics() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let arguments = ["--upload-interval", "3600", "--metrics", &address];
    let gateway = Gateway::start(&scratch, &[&arguments[..], &["--volume", "vol=8M"]].concat());
    let write = format!(
        "h.connect_uri({:?})\n\
         h.pwrite(b'precious' * 512, 1 << 20)\n\
         h.pwrite(b'ordinary' * 512, (1 << 20) + 4096)\n\
         h.flush()\n\
         h.shutdown()",
        gateway.uri("vol")
    );
    run("nbdsh", &["-c", &write]);
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
    let text = scrape(&address);
    // Twice by the client, and each time that the gateway itself wants to move it.
    let lost = text
        .lines()
        .find_map(|line| line.strip_prefix("culvert_volume_lost_total{volume=\"vol\"} "));
    assert!(lost.is_some_and(|times| times.parse::<u64>().is_ok_and(|times| times >= 2)), "{text}");
    // Nothing is uploaded as if it were whole, until it is written anew.
    let (_, said) = cli_fails(&scratch, &["volume", "flush", "vol"]);
    assert!(said.contains(why), "{said}");
    let write = ["-f", "raw", "-c", "write -P 1 1M 4k", "-c", "flush", &gateway.uri("vol")];
    run("qemu-io", &write);
    cli(&scratch, &["volume", "flush", "vol"]);
    gateway.stop();
}
