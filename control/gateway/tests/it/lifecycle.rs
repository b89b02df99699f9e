//! Made, used, killed, stopped, started again.

use crate::observing::scrape;
use crate::support::{GATEWAY, Gateway, Scratch, free_address, image, run};

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
fn libnbd_starts_it_on_standard_streams_and_by_socket_activation() {
    let scratch = Scratch::new();
    let mut arguments = scratch.arguments();
    // Without a place of its own.
    arguments.truncate(arguments.len() - 2);
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
