//! What is judged, one thing after the other. Pure: facts in, findings out.

use std::collections::BTreeMap;

use culvert_model::api;
use culvert_model::drops::{Concern, meaning};

use super::{Facts, Finding, Severity};

/// Outer headers and the inner Ethernet header, in bytes: over IPv4, and over IPv6.
const OVERHEAD: (u32, u32) = (50, 70);

/// Free packet memory below which it is short, and below which it is nearly gone, in percent.
const ARENA_SHORT: u64 = 10;
const ARENA_GONE: u64 = 2;

/// Share of the time for which a worker may wait for its CPU.
const WAIT_SHARE: f64 = 0.1;

/// Share of the kernel's connection table that may be in use, in percent.
const CONNTRACK_FULL: u64 = 90;

/// Reasons that stand for packets that do not pass at all.
const COUNTERS_OF_LOSS: [(&str, &str); 8] = [
    (
        "kernel_rx_dropped",
        "the kernel dropped packets for the socket: the worker does not keep up, or is short of packet memory",
    ),
    (
        "kernel_rx_ring_full",
        "the receive ring was full: the worker does not keep up; give it a CPU of its own",
    ),
    (
        "kernel_fill_empty",
        "the kernel had no frames to receive into: start the dataplane with more --chunks",
    ),
    (
        "rx_starved",
        "there was no packet memory to receive into: start the dataplane with more --chunks",
    ),
    (
        "netdev_rx_missed",
        "the device's own ring was full: raise it by `ethtool -G`, and look at the CPU that serves it",
    ),
    (
        "netdev_rx_errors",
        "the device received damaged frames: look at cable, optics and the far end",
    ),
    ("netdev_tx_errors", "the device could not transmit: see `ethtool -S`"),
    ("device_lost", "the device went away: look who removed it"),
];

/// Everything.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let checks = [
        state, features, underlay, ports, mtus, paths, arena, workers, drops, kernel, host, wanted,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}

fn finding(
    severity: Severity,
    check: &'static str,
    object: impl Into<String>,
    evidence: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    let (object, evidence, advice) = (object.into(), evidence.into(), advice.into());
    Finding { severity, check, object, evidence, advice }
}

fn state(facts: &Facts) -> Vec<Finding> {
    if facts.info.generation > 0 {
        return Vec::new();
    }
    let advice =
        "start culvertd, which replays the state, or apply a file: `culvert apply -f host.toml`";
    let evidence = "generation 0: no state was applied since the dataplane started";
    vec![finding(Severity::Error, "no_state", "dataplane", evidence, advice)]
}

/// What culvertd has to say.
fn wanted(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(control) = &facts.control else { return found };
    if let Some(store) = control.store.as_ref().filter(|store| !store.healthy) {
        let evidence = format!("{} (for {} s)", store.reason, store.unhealthy_ms / 1000);
        let advice = "look after the store; what runs goes on meanwhile, and changes wait in `culvert queue`";
        found.push(finding(Severity::Warning, "store", &*store.kind, evidence, advice));
    }
    let queue = control.queue.unwrap_or_default();
    if queue.waiting > 0 {
        let evidence = format!("changes that wait for the store: {}", queue.waiting);
        let advice = "they are written when it is back; `culvert queue` shows them";
        found.push(finding(Severity::Notice, "queue_waiting", "queue", evidence, advice));
    }
    if queue.failed > 0 {
        let evidence =
            format!("changes that were not written when the store was back: {}", queue.failed);
        let advice = "`culvert queue` says why; make what is still wanted anew, and take them out by `culvert queue cancel`";
        found.push(finding(Severity::Warning, "queue_failed", "queue", evidence, advice));
    }
    found
}

fn features(facts: &Facts) -> Vec<Finding> {
    let missing = facts.info.features.iter().filter(|feature| !feature.available);
    missing
        .map(|feature| {
            // Without it, superframes are lost; what else is missing costs time alone.
            let (severity, advice) = match feature.name.as_str() {
                "xdp" => (Severity::Error, "use a kernel with CONFIG_XDP_SOCKETS"),
                "frame-metadata" => (
                    Severity::Warning,
                    "use a kernel with BTF (CONFIG_DEBUG_INFO_BTF), or turn UDP, tunnel and SCTP segmentation off in tenants",
                ),
                _ => (Severity::Notice, "a newer kernel has it; it works without"),
            };
            let object = format!("kernel feature {}", feature.name);
            finding(severity, "kernel_feature", object, feature.reason.clone(), advice)
        })
        .collect()
}

fn refused(object: &str, refusals: &[api::ModeRefusal], advice: &str) -> Vec<Finding> {
    let each = refusals.iter().map(|refusal| {
        let evidence = format!("not {}: {}", refusal.mode, refusal.reason);
        finding(Severity::Notice, "mode_refused", object, evidence, advice)
    });
    each.collect()
}

fn underlay(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.info.generation > 0 && facts.info.underlay.is_empty() {
        let advice = "name the devices of the physical network in [underlay] interfaces";
        let evidence =
            "the state names no underlay device: only tenants of this host reach each other";
        found.push(finding(Severity::Notice, "underlay_device", "underlay", evidence, advice));
    }
    for device in &facts.info.underlay {
        let object = format!("device {}", device.interface);
        if device.mode.is_empty() {
            let advice = "see the dataplane's log; the device is tried again by itself";
            let evidence = "it is gone, or cannot be opened";
            found.push(finding(Severity::Error, "underlay_device", &*object, evidence, advice));
        } else if !device.up {
            let advice = format!("`ip link set {} up`, and look at the cable", device.interface);
            let evidence = "it is down, or has no carrier";
            found.push(finding(Severity::Error, "underlay_device", &*object, evidence, advice));
        }
        let advice =
            "a driver with XDP, and with zero-copy, carries more; nothing needs to be done";
        found.extend(refused(&object, &device.refusals, advice));
    }
    found
}

fn ports(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for port in &facts.ports {
        let object = format!("port {}", port.id);
        let reason = if port.reason.is_empty() { port.device.as_str() } else { &port.reason };
        let (severity, advice) = match port.state.as_str() {
            "gone" => (
                Severity::Error,
                "create the device, or take the port out of the state; it is opened by itself when it is back",
            ),
            "failed" => (Severity::Error, "see the reason; it is tried again by itself"),
            "down" => (Severity::Warning, "set the device up at both ends, or start the tenant"),
            "blocked" => (Severity::Notice, "set `state = \"active\"` to let it pass"),
            _ => {
                found.extend(refused(&object, &port.refusals, "it works in the mode that it has"));
                continue;
            }
        };
        found.push(finding(severity, "port", object, format!("{}: {reason}", port.state), advice));
    }
    found
}

/// Tenants whose packets do not fit into the underlay whole.
fn mtus(facts: &Facts) -> Vec<Finding> {
    let Some(host) = &facts.host else { return Vec::new() };
    let Some(least) = facts.info.underlay.iter().map(|d| d.mtu).filter(|mtu| *mtu > 0).min() else {
        return Vec::new();
    };
    let over_v6 = host.underlay().addresses.iter().any(std::net::IpAddr::is_ipv6);
    let overhead = if over_v6 { OVERHEAD.1 } else { OVERHEAD.0 };
    let fits = least.saturating_sub(overhead);
    let large: Vec<_> = facts.ports.iter().filter(|port| port.mtu > fits).collect();
    let Some(greatest) = large.iter().map(|port| port.mtu).max() else { return Vec::new() };
    let names: Vec<_> = large.iter().take(5).map(|port| port.id.as_str()).collect();
    let more = if large.len() > names.len() { ", ..." } else { "" };
    let object = format!("port {}{more}", names.join(", "));
    let evidence =
        format!("MTU {greatest}, and {fits} fit into a tunnel on an underlay of {least}");
    let advice = format!(
        "raise the underlay's MTU to {}, or lower the tenants' to {fits}: larger packets are cut, or answered with an ICMP error",
        greatest + overhead
    );
    vec![finding(Severity::Notice, "mtu", object, evidence, advice)]
}

fn paths(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    for path in &facts.paths {
        let object = format!("vtep {}", path.vtep);
        let way = format!("`ip route get {}`, and `ip neigh`", path.vtep);
        match path.state.as_str() {
            "unreachable" => {
                let advice =
                    format!("see {way}: the route has to lead through an underlay interface");
                let evidence = "no usable route";
                found.push(finding(Severity::Error, "next_hop", &*object, evidence, advice));
            }
            "pending" => {
                let advice = format!("see {way}: nobody answers for the next hop");
                let evidence = "its neighbour is not resolved";
                found.push(finding(Severity::Warning, "next_hop", &*object, evidence, advice));
            }
            _ => {}
        }
        if let Some(mtu) = path.learned_mtu {
            let evidence = format!("a router reported a path MTU of {mtu}");
            let advice = "tenants are told; a uniform MTU on the underlay carries more";
            found.push(finding(Severity::Notice, "path_mtu", object, evidence, advice));
        }
    }
    found
}

fn arena(facts: &Facts) -> Vec<Finding> {
    let Some(arena) = facts.after.arena else { return Vec::new() };
    let percent = arena.free * 100 / arena.chunks.max(1);
    if percent > ARENA_SHORT {
        return Vec::new();
    }
    let severity = if percent > ARENA_GONE { Severity::Warning } else { Severity::Error };
    let evidence = format!("{} of {} frames are free", arena.free, arena.chunks);
    let advice = "start the dataplane with more --chunks; an idle port holds 64 frames per queue";
    vec![finding(severity, "packet_memory", "arena", evidence, advice)]
}

fn workers(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if !facts.info.workers.is_empty() && facts.info.workers.iter().all(|w| w.cpu.is_none()) {
        let evidence = "no worker is pinned to a CPU";
        let advice = "for steady speed give each a CPU of its own: --cpus";
        found.push(finding(Severity::Notice, "worker_pinning", "workers", evidence, advice));
    }
    for (name, share) in &facts.own.waited {
        if *share > WAIT_SHARE {
            let index = name.trim_start_matches("worker-");
            let cpu = facts.info.workers.iter().find(|w| w.index.to_string() == index);
            let at = cpu.and_then(|w| w.cpu).map_or_else(String::new, |cpu| format!(" {cpu}"));
            let evidence =
                format!("waited {:.0} % of the time for CPU{at}, which others had", share * 100.0);
            let advice =
                "keep others off its CPU (isolcpus, cpusets), or pin it to another (--cpus)";
            let object = format!("worker {index}");
            found.push(finding(Severity::Warning, "worker_cpu", object, evidence, advice));
        }
    }
    found
}

type Counts<'a> = BTreeMap<(&'a str, &'a str), u64>;

fn counted(stats: &api::Stats) -> Counts<'_> {
    let mut counts = Counts::new();
    for port in &stats.ports {
        for drop in &port.drops {
            counts.insert((&port.id, &drop.reason), drop.packets);
        }
    }
    for drop in &stats.drops {
        counts.insert(("", &drop.reason), drop.packets);
    }
    counts
}

/// What was dropped meanwhile.
fn drops(facts: &Facts) -> Vec<Finding> {
    let before = counted(&facts.before);
    let mut found = Vec::new();
    for ((port, reason), packets) in counted(&facts.after) {
        let moved = packets.saturating_sub(before.get(&(port, reason)).copied().unwrap_or(0));
        if moved == 0 {
            continue;
        }
        let object = if port.is_empty() { "underlay".to_owned() } else { format!("port {port}") };
        let rate = moved as f64 / facts.elapsed.as_secs_f64().max(0.001);
        let (severity, what, advice) = match meaning(reason) {
            None => (Severity::Warning, "", "see the documentation of this dataplane's version"),
            Some(known) => {
                let severity = match known.concern {
                    Concern::Normal | Concern::Tenant => Severity::Notice,
                    Concern::State | Concern::Host | Concern::Network => Severity::Warning,
                };
                (severity, known.meaning, known.advice)
            }
        };
        let evidence = format!("{reason}: {moved} packets, {rate:.1} a second. {what}");
        found.push(finding(severity, "drops", object, evidence.trim_end(), advice));
    }
    found
}

/// What kernel and devices lost meanwhile.
fn kernel(facts: &Facts) -> Vec<Finding> {
    let before: BTreeMap<_, _> =
        facts.before.kernel.iter().map(|c| ((&c.device, &c.name), c.value)).collect();
    let mut found = Vec::new();
    for counter in &facts.after.kernel {
        let old = before.get(&(&counter.device, &counter.name)).copied().unwrap_or(0);
        let moved = counter.value.saturating_sub(old);
        let known = COUNTERS_OF_LOSS.iter().find(|(name, _)| *name == counter.name);
        if let (Some((name, advice)), 1..) = (known, moved) {
            let object = format!("device {}", counter.device);
            let evidence = format!("{name} moved by {moved}");
            found.push(finding(Severity::Warning, "kernel_counter", object, evidence, *advice));
        }
    }
    found
}

fn host(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.own.rp_filter.len() > 1 {
        for (device, value) in facts.own.rp_filter.iter().filter(|(_, value)| **value == 1) {
            let evidence = format!(
                "rp_filter = {value}: with several underlay devices the kernel drops neighbours' questions that come in on another than its route"
            );
            let advice = format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2");
            let object = format!("device {device}");
            found.push(finding(Severity::Warning, "rp_filter", object, evidence, advice));
        }
    }
    if let Some((count, max)) = facts.own.conntrack
        && count * 100 / max.max(1) >= CONNTRACK_FULL
    {
        let evidence = format!("{count} of {max} entries are in use");
        let advice = "tunnel packets do not need it, the host's own do: raise nf_conntrack_max, or exempt UDP port 4789 (notrack)";
        found.push(finding(Severity::Warning, "conntrack", "host", evidence, advice));
    }
    found
}

#[cfg(test)]
mod tests;
