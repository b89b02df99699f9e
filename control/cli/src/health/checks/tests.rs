//! Each thing that can be wrong is found, and a healthy host has no findings.

use std::time::Duration;

use super::*;
use crate::health::host::HostFacts;

/// A host without a fault.
fn healthy() -> Facts {
    let stats = api::Stats {
        arena: Some(api::Arena { chunks: 1000, free: 900, held: 100 }),
        ..api::Stats::default()
    };
    Facts {
        info: api::Info {
            generation: 1,
            features: vec![api::KernelFeature {
                name: "xdp".into(),
                available: true,
                reason: String::new(),
            }],
            underlay: vec![api::UnderlayDevice {
                interface: "eth0".into(),
                mode: "native".into(),
                mtu: 1550,
                up: true,
                ..api::UnderlayDevice::default()
            }],
            workers: vec![api::WorkerInfo { index: 0, cpu: Some(1) }],
            ..api::Info::default()
        },
        ports: vec![api::PortStatus {
            id: "a1".into(),
            state: "active".into(),
            mtu: 1500,
            ..api::PortStatus::default()
        }],
        paths: vec![api::Path {
            vtep: "198.18.0.2".into(),
            state: "reachable".into(),
            mtu: 1550,
            ..api::Path::default()
        }],
        host: None,
        before: stats.clone(),
        after: stats,
        elapsed: Duration::from_secs(2),
        own: HostFacts::default(),
        control: None,
    }
}

fn drops(packets: u64, reason: &str) -> Vec<api::Drop> {
    vec![api::Drop { reason: reason.into(), packets }]
}

/// The one finding of a host that a change makes ill.
#[track_caller]
fn one(change: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = healthy();
    change(&mut facts);
    let mut found = all(&facts);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_healthy_host_has_no_findings() {
    assert_eq!(all(&healthy()), []);
}

#[test]
fn each_fault_is_found_with_its_severity() {
    use Severity::{Error, Notice, Warning};
    let drop_of = |reason: &'static str| {
        one(move |facts| {
            let drops = drops(6, reason);
            facts.after.ports =
                vec![api::PortStats { id: "a1".into(), drops, ..Default::default() }];
        })
    };
    let port_in = |state: &'static str| one(move |facts| facts.ports[0].state = state.into());
    let feature = |name: &'static str| {
        one(move |facts| {
            facts.info.features[0] =
                api::KernelFeature { name: name.into(), available: false, reason: "absent".into() };
        })
    };
    let kernel = one(|facts| {
        facts.after.kernel = vec![api::KernelCounter {
            device: "eth0".into(),
            name: "kernel_rx_ring_full".into(),
            value: 3,
        }];
    });
    let arena = |free| {
        one(move |facts| facts.after.arena = Some(api::Arena { chunks: 1000, free, held: 0 }))
    };
    let path = |state: &'static str| one(move |facts| facts.paths[0].state = state.into());
    let found = [
        (one(|facts| facts.info.generation = 0), Error, "no_state"),
        (feature("xdp"), Error, "kernel_feature"),
        (feature("frame-metadata"), Warning, "kernel_feature"),
        (feature("tx-metadata"), Notice, "kernel_feature"),
        (one(|facts| facts.info.underlay[0].up = false), Error, "underlay_device"),
        (one(|facts| facts.info.underlay[0].mode.clear()), Error, "underlay_device"),
        (port_in("gone"), Error, "port"),
        (port_in("failed"), Error, "port"),
        (port_in("down"), Warning, "port"),
        (port_in("blocked"), Notice, "port"),
        (path("unreachable"), Error, "next_hop"),
        (path("pending"), Warning, "next_hop"),
        (one(|facts| facts.paths[0].learned_mtu = Some(1400)), Notice, "path_mtu"),
        (arena(15), Error, "packet_memory"),
        (arena(90), Warning, "packet_memory"),
        (one(|facts| facts.info.workers[0].cpu = None), Notice, "worker_pinning"),
        (one(|facts| facts.own.waited = [("worker-0".into(), 0.4)].into()), Warning, "worker_cpu"),
        (drop_of("no_mapping"), Warning, "drops"),
        (drop_of("spoofed_ip"), Notice, "drops"),
        (drop_of("a_new_reason"), Warning, "drops"),
        (kernel, Warning, "kernel_counter"),
        (one(|facts| facts.own.conntrack = Some((95, 100))), Warning, "conntrack"),
        (
            one(|facts| facts.own.rp_filter = [("eth0".into(), 1), ("eth1".into(), 2)].into()),
            Warning,
            "rp_filter",
        ),
    ];
    for (finding, severity, check) in found {
        assert_eq!((finding.severity, finding.check), (severity, check), "{finding:?}");
        assert!(!finding.evidence.is_empty() && !finding.advice.is_empty(), "{finding:?}");
    }
}

#[test]
fn what_was_dropped_before_is_no_finding() {
    let mut facts = healthy();
    let stats = |packets| {
        vec![api::PortStats {
            id: "a1".into(),
            drops: drops(packets, "no_route"),
            ..Default::default()
        }]
    };
    (facts.before.ports, facts.after.ports) = (stats(10), stats(10));
    assert_eq!(all(&facts), []);
    facts.after.ports = stats(14);
    let found = all(&facts);
    assert!(found[0].evidence.starts_with("no_route: 4 packets, 2.0 a second."), "{found:?}");
}

#[test]
fn what_culvertd_says_is_judged() {
    let control = |change: fn(&mut api::ControlInfo)| {
        one(move |facts| {
            let mut info = api::ControlInfo {
                store: Some(api::StoreInfo {
                    kind: "etcd".into(),
                    healthy: true,
                    ..api::StoreInfo::default()
                }),
                queue: Some(api::QueueInfo::default()),
                ..api::ControlInfo::default()
            };
            change(&mut info);
            facts.control = Some(info);
        })
    };
    let found = control(|info| {
        let store = info.store.as_mut().unwrap();
        (store.healthy, store.reason, store.unhealthy_ms) = (false, "refused".into(), 61_000);
    });
    assert_eq!((found.severity, found.check), (Severity::Warning, "store"));
    assert_eq!((found.object.as_str(), found.evidence.as_str()), ("etcd", "refused (for 61 s)"));
    let found = control(|info| info.queue.as_mut().unwrap().waiting = 2);
    assert_eq!((found.severity, found.check), (Severity::Notice, "queue_waiting"));
    let found = control(|info| info.queue.as_mut().unwrap().failed = 1);
    assert_eq!((found.severity, found.check), (Severity::Warning, "queue_failed"));
    assert!(found.advice.contains("`culvert queue cancel`"), "{found:?}");
}
