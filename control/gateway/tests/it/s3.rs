//! Volumes in an S3 server over HTTP.

use std::sync::atomic::Ordering;

use crate::s3_proxy::{BUCKET, S3};
use crate::support::{GATEWAY, Gateway, Scratch, cli, cli_fails, image, run};

fn store() -> String {
    format!("s3://{BUCKET}/some/prefix")
}

#[test]
fn a_volume_in_s3_survives_its_cache_and_a_network_that_fails_all_the_time() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let s3 = S3::start(&scratch.path("objects"));
    let (image_path, copy) = (scratch.path("image"), scratch.path("copy"));
    image(&image_path, 24 << 20);
    let (image_path, copy) = (image_path.to_str().unwrap(), copy.to_str().unwrap());
    let (store, environment) = (store(), S3::environment(s3.proxy));
    let start =
        |scratch: &Scratch| Gateway::start_with(scratch, &["--store", &store], &environment);
    let gateway = start(&scratch);
    cli(&scratch, &["volume", "create", "vol", "24M"]);
    s3.script.fail_one_in.store(7, Ordering::Relaxed);
    run("nbdcopy", &[image_path, &gateway.uri("vol")]);
    cli(&scratch, &["volume", "flush", "vol"]);

    // Another gateway, with an empty cache: refused, then by the operator's word.
    let second = start(&other);
    let (_, said) = cli_fails(&other, &["volume", "attach", "vol"]);
    assert!(said.contains("take it over"), "{said}");
    cli(&other, &["volume", "attach", "vol", "--take-over"]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 64k", &gateway.uri("vol")]);
    let (_, said) = cli_fails(&scratch, &["volume", "flush", "vol"]);
    assert!(said.contains("taken over by another gateway"), "{said}");
    run("nbdcopy", &[&second.uri("vol"), copy]);
    run("cmp", &[image_path, copy]);

    // And back, released in order.
    cli(&other, &["volume", "detach", "vol"]);
    cli(&scratch, &["volume", "delete", "vol", "--forget"]);
    assert!(cli(&scratch, &["volume", "list", "--stored"]).contains("stored"));
    cli(&scratch, &["volume", "attach", "vol"]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image_path, &gateway.uri("vol")]);
    gateway.stop();
    second.stop();
    let script = &s3.script;
    for (what, count) in [
        ("lost answers", &script.lost_answers),
        ("halves", &script.halves),
        ("conflicts", &script.conflicts),
    ] {
        assert!(count.load(Ordering::Relaxed) > 0, "no {what} happened");
    }
}

#[test]
fn a_server_that_ignores_conditions_is_refused_at_start() {
    let scratch = Scratch::new();
    let s3 = S3::start(&scratch.path("objects"));
    let output = std::process::Command::new(GATEWAY)
        .args(scratch.arguments_with(&["--store", &store()]))
        .envs(S3::environment(s3.server))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("ignores the condition"), "{said}");
    assert!(!scratch.path("cache").exists());
}

#[test]
fn with_expired_credentials_what_is_cached_is_served_and_the_rest_says_why() {
    let scratch = Scratch::new();
    let s3 = S3::start(&scratch.path("objects"));
    let environment = S3::environment(s3.proxy);
    let gateway = Gateway::start_with(&scratch, &["--store", &store()], &environment);
    cli(&scratch, &["volume", "create", "vol", "8M"]);
    let uri = gateway.uri("vol");
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 1M", "-c", "flush", &uri]);
    s3.script.refuse.store(true, Ordering::Relaxed);
    run("qemu-io", &["-f", "raw", "-c", "write -P 2 1M 1M", "-c", "read -P 1 0 1M", &uri]);
    for arguments in [&["create", "new", "8M"][..], &["flush", "vol"], &["list", "--stored"]] {
        let (code, said) = cli_fails(&scratch, &[&["volume"], arguments].concat());
        assert!(code == 3 && said.contains("ExpiredToken"), "{code}: {said}");
    }
    assert!(cli(&scratch, &["volume", "list"]).contains("vol   active"));
    s3.script.refuse.store(false, Ordering::Relaxed);
    cli(&scratch, &["volume", "flush", "vol"]);
    gateway.stop();
}
