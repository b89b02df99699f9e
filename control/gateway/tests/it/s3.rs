//! Volumes in an S3 server over HTTP.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use crate::observing::metric;
use crate::s3_proxy::{BUCKET, S3};
use crate::support::{GATEWAY, Gateway, Scratch, cli, cli_fails, free_address, image, run};

/// A server, and a folder for a gateway that uses it.
struct Place {
    s3: S3,
    scratch: Scratch,
}

impl Place {
    fn new() -> Place {
        let scratch = Scratch::new();
        Place { s3: S3::start(&scratch.path("objects")), scratch }
    }

    fn store() -> String {
        format!("s3://{BUCKET}/some/prefix")
    }

    /// Starts a gateway in the folder, with further arguments.
    fn start(&self, more: &[&str]) -> Gateway {
        self.start_in(&self.scratch, more)
    }

    /// The same in another folder.
    fn start_in(&self, scratch: &Scratch, more: &[&str]) -> Gateway {
        let store = Place::store();
        let arguments = [more, &["--store", &store]].concat();
        Gateway::start_with(scratch, &arguments, &S3::environment(self.s3.proxy))
    }

    /// Makes a volume of 8 MiB whose first MiB is flushed ones. Gives its URI.
    fn volume_with_ones(&self, gateway: &Gateway) -> String {
        cli(&self.scratch, &["volume", "create", "vol", "8M"]);
        let uri = gateway.uri("vol");
        run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 1M", "-c", "flush", &uri]);
        uri
    }

    /// What a gateway in the folder says that does not start, or stops by itself.
    fn refused(&self, address: SocketAddr) -> String {
        let output = std::process::Command::new(GATEWAY)
            .args(self.scratch.arguments_with(&["--store", &Place::store()]))
            .envs(S3::environment(address))
            .output()
            .unwrap();
        assert!(!output.status.success(), "it served");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Whether all requests are refused, as with credentials that have expired.
    fn expired(&self, expired: bool) {
        self.s3.script.refuse.store(expired, Ordering::Relaxed);
    }
}

#[test]
fn a_volume_in_s3_survives_its_cache_and_a_network_that_fails_all_the_time() {
    let (place, other) = (Place::new(), Scratch::new());
    let scratch = &place.scratch;
    let (image_path, copy) = (scratch.path("image"), scratch.path("copy"));
    image(&image_path, 24 << 20);
    let (image_path, copy) = (image_path.to_str().unwrap(), copy.to_str().unwrap());
    let gateway = place.start(&[]);
    cli(scratch, &["volume", "create", "vol", "24M"]);
    let script = &place.s3.script;
    script.fail_one_in.store(7, Ordering::Relaxed);
    // Whichever requests that hits, these are among them.
    script.lose_answers.lock().unwrap().extend(["/vol/pack/", "/vol/root"]);
    run("nbdcopy", &[image_path, &gateway.uri("vol")]);
    cli(scratch, &["volume", "flush", "vol"]);

    // Another gateway, with an empty cache: refused, then by the operator's word.
    let second = place.start_in(&other, &[]);
    let (_, said) = cli_fails(&other, &["volume", "attach", "vol"]);
    assert!(said.contains("take it over"), "{said}");
    cli(&other, &["volume", "attach", "vol", "--take-over"]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 64k", &gateway.uri("vol")]);
    let (_, said) = cli_fails(scratch, &["volume", "flush", "vol"]);
    assert!(said.contains("taken over by another gateway"), "{said}");
    run("nbdcopy", &[&second.uri("vol"), copy]);
    run("cmp", &[image_path, copy]);

    // And back, released in order.
    cli(&other, &["volume", "detach", "vol"]);
    cli(scratch, &["volume", "delete", "vol", "--forget"]);
    assert!(cli(scratch, &["volume", "list", "--stored"]).contains("stored"));
    cli(scratch, &["volume", "attach", "vol"]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image_path, &gateway.uri("vol")]);
    gateway.stop();
    second.stop();
    for what in [
        "lost",
        "answer lost to the put of a pack",
        "answer lost to the put of a root",
        "busy",
        "late",
        "half an answer",
        // At the latest by the second attempt to put that pack.
        "conflict",
    ] {
        assert!(script.times(what) > 0, "{what}: it never happened, but {script:?}");
    }
}

#[test]
fn a_server_that_ignores_or_refuses_conditions_is_refused_and_takes_nothing() {
    let place = Place::new();
    let (server, proxy) = (place.s3.server, place.s3.proxy);
    let old = |old| place.s3.script.old.store(old, Ordering::Relaxed);
    // No cache is made for it.
    let said = place.refused(server);
    assert!(said.contains("ignores the condition"), "{said}");
    old(true);
    let said = place.refused(proxy);
    assert!(said.contains("refuses puts with a condition"), "{said}");
    assert!(!place.scratch.path("cache").exists());
    old(false);

    // One that is there and is pointed at it stops, and has what it had.
    let gateway = place.start(&["--upload-interval", "3600"]);
    let uri = place.volume_with_ones(&gateway);
    gateway.kill();
    let said = place.refused(server);
    assert!(said.contains("ignores the condition") && said.contains("kept in the cache"), "{said}");
    old(true);
    let said = place.refused(proxy);
    assert!(said.contains("refuses puts with a condition"), "{said}");
    old(false);
    let gateway = place.start(&["--upload-interval", "3600"]);
    let said = run("qemu-io", &["-f", "raw", "-c", "read -P 1 0 1M", &uri]);
    assert!(!said.contains("verification failed"), "{said}");
    cli(&place.scratch, &["volume", "flush", "vol"]);
    gateway.stop();
}

#[test]
fn with_credentials_expired_at_the_start_no_cache_is_made_and_an_old_one_is_served() {
    let place = Place::new();
    let scratch = &place.scratch;
    place.expired(true);
    let said = place.refused(place.s3.proxy);
    assert!(said.contains("ExpiredToken"), "{said}");
    assert!(!scratch.path("cache").exists());
    place.expired(false);
    let gateway = place.start(&["--upload-interval", "3600"]);
    let uri = place.volume_with_ones(&gateway);
    gateway.kill();
    place.expired(true);
    let gateway = place.start(&["--upload-interval", "3600"]);
    let commands = ["-f", "raw", "-c", "read -P 1 0 1M", "-c", "write -P 2 1M 1M", "-c", "flush"];
    let said = run("qemu-io", &[&commands[..], &[&uri]].concat());
    assert!(!said.contains("verification failed"), "{said}");
    let (_, said) = cli_fails(scratch, &["volume", "flush", "vol"]);
    assert!(said.contains("ExpiredToken"), "{said}");
    let log = std::fs::read_to_string(scratch.path("log")).unwrap();
    assert!(log.contains("nothing is uploaded before the store was tried"), "{log}");
    place.expired(false);
    cli(scratch, &["volume", "flush", "vol"]);
    gateway.stop();
}

#[test]
fn in_an_outage_a_read_of_what_is_not_cached_fails_in_time_and_says_why() {
    let place = Place::new();
    let scratch = &place.scratch;
    let address = free_address().to_string();
    let gateway = place.start(&["--fetch-timeout", "2", "--metrics", &address]);
    cli(scratch, &["volume", "create", "vol", "8M"]);
    let uri = gateway.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 8M", &uri]);
    cli(scratch, &["volume", "detach", "vol"]);
    cli(scratch, &["volume", "attach", "vol"]);
    let uri = gateway.uri("vol");
    // What is cached by then.
    run("qemu-io", &["-f", "raw", "-c", "read -P 1 0 64k", &uri]);
    let failures = || metric(&address, "culvert_store_failures_total");
    let errors = || metric(&address, "culvert_nbd_errors_total{command=\"read\"}");
    let (before, errors_before) = (failures(), errors());
    place.s3.script.down.store(true, Ordering::Relaxed);
    let script = format!(
        "h.connect_uri({uri:?})\n\
         import errno, time\n\
         assert h.pread(65536, 0) == b'\\x01' * 65536\n\
         begun = time.monotonic()\n\
         try: h.pread(4096, 4 << 20); assert False\n\
         except nbd.Error as e: assert e.errnum == errno.EIO, e; print(e.string)\n\
         print('took', time.monotonic() - begun)\n\
         h.pwrite(b'2' * 4096, 4 << 20)\n\
         assert h.pread(4096, 4 << 20) == b'2' * 4096\n\
         h.shutdown()"
    );
    let said = run("nbdsh", &["-c", &script]);
    let took: f64 = said.rsplit_once("took ").unwrap().1.trim().parse().unwrap();
    assert!((1.0..12.0).contains(&took), "{said}");
    let log = std::fs::read_to_string(scratch.path("log")).unwrap();
    let why = "volume vol: the store did not answer within 2 s";
    assert!(said.contains(why) || log.contains(why), "{said}\n{log}");
    assert!(failures() > before, "{} failures", failures());
    assert_eq!(errors(), errors_before + 1.0, "reads that failed");
    place.s3.script.down.store(false, Ordering::Relaxed);
    run("qemu-io", &["-f", "raw", "-c", "read -P 1 5M 1M", &uri]);
    gateway.stop();
}

#[test]
fn with_expired_credentials_what_is_cached_is_served_and_the_rest_says_why() {
    let place = Place::new();
    let scratch = &place.scratch;
    let gateway = place.start(&[]);
    let uri = place.volume_with_ones(&gateway);
    place.expired(true);
    run("qemu-io", &["-f", "raw", "-c", "write -P 2 1M 1M", "-c", "read -P 1 0 1M", &uri]);
    for arguments in [&["create", "new", "8M"][..], &["flush", "vol"], &["list", "--stored"]] {
        let (code, said) = cli_fails(scratch, &[&["volume"], arguments].concat());
        assert!(code == 3 && said.contains("ExpiredToken"), "{code}: {said}");
    }
    assert!(cli(scratch, &["volume", "list"]).contains("vol   active"));
    place.expired(false);
    cli(scratch, &["volume", "flush", "vol"]);
    gateway.stop();
}
