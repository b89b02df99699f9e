//! The text that Prometheus gets, and the dashboard that is made of it.

use std::collections::{BTreeMap, BTreeSet};

use culvert_daemon::metrics::{Dataplane, render};
use culvert_model::api;
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../../docs/grafana/culvert.json");

fn control() -> api::ControlInfo {
    api::ControlInfo {
        version: "0.1.0".into(),
        host: "a".into(),
        cluster_id: "c\"1".into(),
        store: Some(api::StoreInfo {
            kind: "redb".into(),
            healthy: false,
            unhealthy_ms: 1500,
            revision: 7,
            ..Default::default()
        }),
        dataplane: Some(api::DataplaneInfo {
            connected: true,
            revision: 6,
            lag_ms: 250,
            replays: 2,
            ..Default::default()
        }),
        problems: vec!["two hosts with one address".into()],
        applied: 10,
        pending: 1,
        failed: 2,
        queue: Some(api::QueueInfo { waiting: 3, failed: 4 }),
        ..Default::default()
    }
}

fn dataplane() -> Dataplane {
    let drop = |reason: &str, packets| api::Drop { reason: reason.into(), packets };
    Dataplane {
        info: api::Info {
            instance_id: "f00d".into(),
            version: "0.1.0".into(),
            generation: 3,
            features: vec![api::KernelFeature {
                name: "btf".into(),
                available: true,
                ..Default::default()
            }],
            underlay: vec![api::UnderlayDevice {
                interface: "eth0".into(),
                mode: "native".into(),
                mtu: 1500,
                up: true,
                ..Default::default()
            }],
            ..Default::default()
        },
        stats: api::Stats {
            ports: vec![api::PortStats {
                id: "a1".into(),
                rx_packets: 11,
                rx_bytes: 1100,
                tx_packets: 22,
                tx_bytes: 2200,
                drops: vec![drop("spoofed_mac", 3)],
                trapped: 4,
                answers: 6,
            }],
            workers: vec![api::WorkerStats {
                index: 0,
                flow_hits: 99,
                flow_misses: 1,
                ..Default::default()
            }],
            kernel: vec![api::KernelCounter {
                device: "eth0".into(),
                name: "kernel_rx_dropped".into(),
                value: 5,
            }],
            arena: Some(api::Arena { chunks: 100, free: 60, held: 40 }),
            drops: vec![drop("unknown_vni", 7)],
            underlay_trapped: 2,
            shards: vec![api::ShardStats {
                vtep: "192.0.2.2".into(),
                sent: 9,
                sent_segments: 400,
                whole: 7,
                rebuilt: 2,
                expired: vec![3, 1, 0, 0, 0, 0, 0, 0],
                bad_blocks: 1,
                evicted: 5,
                asked: 6,
                repaired: 4,
                unasked: 1,
                answered: 3,
                refused: 2,
                gone: 1,
            }],
        },
        ports: vec![api::PortStatus {
            id: "a1".into(),
            vnet: "blue".into(),
            device: "veth-a1".into(),
            mode: "generic".into(),
            mtu: 1450,
            state: "active".into(),
            ..Default::default()
        }],
        paths: vec![api::Path {
            vtep: "192.0.2.2".into(),
            state: "reachable".into(),
            mtu: 1400,
            ..Default::default()
        }],
    }
}

/// Names of metrics with their types, from text whose form is checked.
#[track_caller]
fn families(text: &str) -> BTreeMap<&str, &str> {
    let mut families = BTreeMap::new();
    let (mut helped, mut current) = ("", "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split(' ').next().unwrap();
            assert!(help.len() > helped.len() + 1, "{line}: no help");
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            assert_eq!(name, helped, "{line}: help of another");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(families.insert(name, kind).is_none(), "{line}: twice");
            current = name;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(series.split('{').next(), Some(current), "{line}: in another's place");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    families
}

#[test]
fn every_metric_has_help_type_and_values_of_its_own() {
    let text = render(&control(), Some(&dataplane()));
    assert!(families(&text).len() > 30, "{text}");
    let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let names: BTreeSet<_> = series.iter().map(|line| line.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(names.len(), series.len(), "a series twice:\n{text}");
    for line in [
        "culvert_control_info{version=\"0.1.0\",host=\"a\",cluster=\"c\\\"1\"} 1",
        "culvert_control_objects{status=\"failed\"} 2",
        "culvert_control_queue{state=\"waiting\"} 3",
        "culvert_control_queue{state=\"failed\"} 4",
        "culvert_control_store_healthy{kind=\"redb\"} 0",
        "culvert_control_store_unhealthy_seconds 1.5",
        "culvert_control_lag_seconds 0.25",
        "culvert_dataplane_up 1",
        "culvert_port_packets_total{port=\"a1\",direction=\"tx\"} 22",
        "culvert_port_drops_total{port=\"a1\",reason=\"spoofed_mac\"} 3",
        "culvert_underlay_drops_total{reason=\"unknown_vni\"} 7",
        "culvert_kernel_events_total{device=\"eth0\",name=\"kernel_rx_dropped\"} 5",
        "culvert_worker_flow_lookups_total{worker=\"0\",result=\"hit\"} 99",
        "culvert_path_up{vtep=\"192.0.2.2\"} 1",
        "culvert_path_mtu_bytes{vtep=\"192.0.2.2\"} 1400",
        "culvert_arena_frames{state=\"held\"} 40",
        "culvert_shard_segments_sent_total{vtep=\"192.0.2.2\"} 400",
        "culvert_shard_frames_received_total{vtep=\"192.0.2.2\",result=\"rebuilt\"} 2",
        "culvert_shard_frames_received_total{vtep=\"192.0.2.2\",result=\"bad_block\"} 1",
        "culvert_shard_blocks_asked_total{vtep=\"192.0.2.2\",result=\"sent\"} 6",
        "culvert_shard_blocks_asked_total{vtep=\"192.0.2.2\",result=\"repaired\"} 4",
        "culvert_shard_requests_total{vtep=\"192.0.2.2\",result=\"refused\"} 2",
        "culvert_shard_frames_expired_total{vtep=\"192.0.2.2\",missing=\"1\"} 3",
    ] {
        assert!(series.contains(&line), "{line} is not in:\n{text}");
    }
}

#[test]
fn without_a_dataplane_the_control_plane_speaks_for_itself() {
    let text = render(&control(), None);
    let families = families(&text);
    assert!(text.contains("culvert_dataplane_up 0\n"), "{text}");
    assert!(families.keys().all(|name| !name.contains("_port_")), "{text}");
}

/// The metrics that an expression of Prometheus reads.
fn read_by(expression: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    expression.split(move |c| !word(c)).filter(|word| word.starts_with("culvert_"))
}

#[test]
fn the_dashboard_shows_metrics_that_there_are_and_rates_of_counters_only() {
    let text = render(&control(), Some(&dataplane()));
    let families = families(&text);
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut read = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            for name in read_by(expression) {
                let kind = families.get(name);
                assert!(kind.is_some(), "{}: {name} is not measured", panel["title"]);
                let rated = expression.contains("rate(") || expression.contains("increase(");
                assert_eq!(rated, kind == Some(&"counter"), "{}: {expression}", panel["title"]);
                read.insert(name);
            }
            let labels = expression.split('{').skip(1).filter_map(|rest| rest.split('}').next());
            for label in labels.flat_map(|labels| labels.split(',')) {
                let name = label.split(['=', '!']).next().unwrap().trim();
                let is_there = name == "instance" || text.contains(&format!("{name}=\""));
                assert!(is_there, "{}: no label {name}", panel["title"]);
            }
        }
    }
    assert!(read.len() > 15, "{read:?}");
    let variables = dashboard["templating"]["list"].to_string();
    assert!(read_by(&variables).all(|name| families.contains_key(name)));
}
