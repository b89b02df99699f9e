//! What a gateway tells of itself: its log and its metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::crashes::wait_for;
use crate::support::{Gateway, Scratch, cli, free_address, run};

pub(crate) fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The value of a series, which is named as in the text format.
pub(crate) fn metric(address: &str, series: &str) -> f64 {
    let text = scrape(address);
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

#[test]
fn metrics_count_what_was_done() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let arguments = ["--volume", "vol=8M", "--metrics", &address];
    let gateway = Gateway::start(&scratch, &arguments);
    let commands = ["-f", "raw", "-c", "write 0 1M", "-c", "read 0 64k", "-c", "read 64k 64k"];
    run("qemu-io", &[&commands[..], &[&gateway.uri("vol")]].concat());
    let text = scrape(&address);
    for line in [
        "culvert_nbd_request_seconds_count{command=\"read\"} 2",
        "culvert_nbd_bytes_total{command=\"write\"} 1048576",
        "culvert_nbd_errors_total{command=\"write\"} 0",
        "culvert_volume_bytes{volume=\"vol\"} 8388608",
        "culvert_cache_stopped 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    gateway.stop();
}

#[test]
fn metrics_tell_hits_misses_bytes_the_watermark_and_its_age() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let arguments = ["--metrics", &address, "--upload-interval", "3600"];
    let gateway = Gateway::start(&scratch, &[&arguments[..], &["--volume", "vol=8M"]].concat());
    let value = |name: &str| {
        let samples = parse(&scrape(&address));
        let found = samples.iter().find(|sample| sample.name == name);
        found.unwrap_or_else(|| panic!("no {name}")).value
    };
    let io = |what: &str| {
        run("qemu-io", &["-f", "raw", "-c", what, &gateway.uri("vol")]);
    };
    io("write -P 1 0 1M");
    assert_eq!(value("culvert_volume_dirty_bytes"), f64::from(1 << 20));
    assert_eq!(value("culvert_store_uploaded_bytes_total"), 0.0);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(value("culvert_volume_watermark_age_seconds") >= 1.0);
    // After a second of rest it moves to its slot.
    wait_for(|| value("culvert_cache_dirty_slots") == 1.0);
    let before = value("culvert_volume_watermark");
    cli(&scratch, &["volume", "flush", "vol"]);
    assert!(value("culvert_volume_watermark") > before);
    assert!(value("culvert_volume_watermark_age_seconds") < 1.0);
    assert_eq!(value("culvert_volume_dirty_bytes"), 0.0);
    assert_eq!(value("culvert_cache_dirty_slots"), 0.0);
    assert_eq!(value("culvert_volume_quarantined"), 0.0);
    assert_eq!(value("culvert_cache_unknown_slots"), 0.0);
    let uploaded = value("culvert_store_uploaded_bytes_total");
    assert!((f64::from(1 << 20)..f64::from(2 << 20)).contains(&uploaded), "{uploaded}");
    io("read -P 1 0 64k");
    assert_eq!(value("culvert_cache_hit_blocks_total"), 16.0);
    assert_eq!(value("culvert_cache_missed_blocks_total"), 0.0);
    // Given up and taken again: nothing of it is cached.
    cli(&scratch, &["volume", "detach", "vol"]);
    cli(&scratch, &["volume", "attach", "vol"]);
    io("read -P 1 0 64k");
    assert_eq!(value("culvert_cache_hit_blocks_total"), 16.0);
    assert_eq!(value("culvert_cache_missed_blocks_total"), 16.0);
    assert_eq!(value("culvert_store_fetched_bytes_total"), 65536.0);
    gateway.kill();
    let gateway = Gateway::start(&scratch, &arguments);
    let begun = Instant::now();
    while value("culvert_cache_unvalidated_chunks") > 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is not validated");
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.stop();
}

#[test]
fn metrics_that_operators_are_told_to_watch_are_there() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M", "--metrics", &address]);
    let text = scrape(&address);
    gateway.stop();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating.md");
    let page = std::fs::read_to_string(page).unwrap();
    let ours = ["culvert_cache_", "culvert_nbd_", "culvert_store_", "culvert_volume_"];
    let words = page.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let told: Vec<&str> =
        words.filter(|word| ours.iter().any(|ours| word.starts_with(*ours))).collect();
    assert!(told.len() > 6, "{told:?}");
    for metric in told {
        assert!(text.contains(&format!("# TYPE {metric} ")), "{metric} is not in\n{text}");
    }
}

/// A sample of Prometheus' text format.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Parses the answer in the text format: every line is a sample or a comment of the format, and what belongs to a metric
/// follows its type.
fn parse(text: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut family = String::new();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(["HELP", "TYPE"].contains(&kind) && words.next().is_some(), "{line}");
            name.clone_into(&mut family);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        assert!(name.starts_with(&family), "{line} stands among {family}");
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
            let (key, value) = label.split_once('=').unwrap();
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            (key.to_owned(), value.unwrap().to_owned())
        });
        let (labels, value) = (labels.collect(), value.parse().unwrap());
        samples.push(Sample { name: name.to_owned(), labels, value });
    }
    samples
}

/// What one labelled histogram says: count and sum. Its buckets must rise, each in bound and number, and end
/// with all.
fn histogram(samples: &[Sample], name: &str, label: (&str, &str)) -> (f64, f64) {
    let of = |suffix: &str| {
        let name = format!("{name}_{suffix}");
        let is_ours = move |sample: &&Sample| {
            sample.name == name && sample.labels.get(label.0).is_some_and(|v| v == label.1)
        };
        samples.iter().filter(is_ours).collect::<Vec<_>>()
    };
    let [count] = of("count")[..] else { panic!("no count of {label:?}") };
    let [sum] = of("sum")[..] else { panic!("no sum of {label:?}") };
    let buckets: Vec<(f64, f64)> =
        of("bucket").iter().map(|b| (b.labels["le"].parse().unwrap(), b.value)).collect();
    assert!(buckets.len() > 8, "{buckets:?}");
    let rise = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
    assert!(rise, "{label:?}: {buckets:?}");
    assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, count.value), "{label:?}");
    // Each time lies within its bucket, so the sum lies between what the buckets' bounds add up to.
    let (mut least, mut most, mut below) = (0.0, 0.0, (0.0, 0.0));
    for (end, upto) in buckets {
        if upto > below.1 {
            least += below.0 * (upto - below.1);
            most += end * (upto - below.1);
        }
        below = (end, upto);
    }
    assert!(least <= sum.value + 1e-6 * count.value && sum.value <= most, "{label:?}: {sum:?}");
    (count.value, sum.value)
}

#[test]
fn latency_histograms_hold_every_request_once() {
    let scratch = Scratch::new();
    let address = free_address().to_string();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M", "--metrics", &address]);
    let script = format!(
        "import errno\n\
         h.set_strict_mode(0)\n\
         h.add_meta_context('base:allocation')\n\
         h.connect_uri('{}')\n\
         for i in range(7): h.pwrite(b'x' * 4096, i * 4096)\n\
         for i in range(11): h.pread(4096, i * 4096)\n\
         for i in range(3): h.flush()\n\
         for i in range(2): h.trim(4096, i * 4096)\n\
         for i in range(4): h.zero(4096, i * 4096)\n\
         h.cache(4096, 0)\n\
         for i in range(5): h.block_status(4096, 0, lambda *all: 0)\n\
         try: h.pread(4096, 8 << 20); assert False\n\
         except nbd.Error as e: assert e.errnum == errno.EINVAL, e\n\
         h.shutdown()",
        gateway.uri("vol"),
    );
    run("nbdsh", &["-c", &script]);
    // Seven writes and so on; the read beyond the end was answered, too.
    let expected = [
        ("write", 7.0),
        ("read", 12.0),
        ("flush", 3.0),
        ("trim", 2.0),
        ("write_zeroes", 4.0),
        ("cache", 1.0),
        ("block_status", 5.0),
    ];
    let name = "culvert_nbd_request_seconds";
    let text = scrape(&address);
    let samples = parse(&text);
    for (command, number) in expected {
        let (count, sum) = histogram(&samples, name, ("command", command));
        assert_eq!(count, number, "{command}\n{text}");
        assert!(sum > 0.0, "{command}\n{text}");
    }
    let commands = samples.iter().filter(|sample| sample.name == format!("{name}_count"));
    assert_eq!(commands.count(), expected.len(), "{text}");
    let failed = samples.iter().filter(|sample| sample.name == "culvert_nbd_errors_total");
    assert_eq!(failed.map(|sample| sample.value).sum::<f64>(), 1.0, "{text}");
    // Within seconds what was written goes to the store, and a new root in place of the old one.
    let begun = Instant::now();
    loop {
        let text = scrape(&address);
        let name = "culvert_store_request_seconds";
        let count = |operation| histogram(&parse(&text), name, ("operation", operation)).0;
        if count("replace") >= 1.0 {
            assert!(count("create") >= 2.0, "a pack and a page of the index:\n{text}");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{text}");
        std::thread::sleep(Duration::from_millis(200));
    }
    gateway.stop();
}

#[test]
fn a_log_in_json_is_an_object_a_line_with_its_fields() {
    let scratch = Scratch::new();
    let cache = scratch.path("cache").display().to_string();
    let gateway = Gateway::start(&scratch, &["--volume", "vol=8M", "--log-format", "json"]);
    run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &gateway.uri("vol")]);
    gateway.stop();
    let log = std::fs::read_to_string(scratch.path("log")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "no {field}: {line}");
        }
    }
    let find = |message: &str| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.unwrap_or_else(|| panic!("{message} is not in\n{log}"))
    };
    let made = find("making a cache");
    assert_eq!((made["cache"].as_str(), made["bytes"].as_u64()), (Some(&*cache), Some(96 << 20)));
    assert_eq!(made["level"], "INFO");
    assert_eq!(made["target"], "culvert_gateway::serve");
    let made = find("made");
    assert_eq!((made["volume"].as_str(), made["bytes"].as_u64()), (Some("vol"), Some(8 << 20)));
    assert!(
        find("listening")["listener"].as_str().is_some_and(|l| l.contains("nbd.sock")),
        "{log}"
    );
    find("stopping");
    assert_eq!(lines.last().map(|line| &line["message"]), Some(&Value::from("closed in order")));
}
