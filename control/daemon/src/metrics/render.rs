//! From messages of the API to text.

use culvert_metrics::{Kind, Text};
use culvert_model::api;

use super::Dataplane;

/// All metrics in Prometheus' text format. Without a dataplane that answers, those of the control plane alone.
pub fn render(control: &api::ControlInfo, dataplane: Option<&Dataplane>) -> String {
    let mut text = Text::new();
    of_control(control, &mut text);
    let name = "culvert_dataplane_up";
    let help = "1 if the dataplane answered this request.";
    text.single(name, Kind::Gauge, help, u8::from(dataplane.is_some()));
    if let Some(Dataplane { info, stats, ports, paths }) = dataplane {
        of_info(info, &mut text);
        of_ports(ports, &mut text);
        of_paths(paths, &mut text);
        of_traffic(stats, &mut text);
        of_losses(stats, &mut text);
        of_workers(stats, &mut text);
        of_shards(&stats.shards, &mut text);
    }
    text.finish()
}

fn seconds(milliseconds: u64) -> f64 {
    std::time::Duration::from_millis(milliseconds).as_secs_f64()
}

fn of_control(info: &api::ControlInfo, text: &mut Text) {
    let name = "culvert_control_info";
    text.metric(name, Kind::Gauge, "Who answers; always 1.");
    let labels =
        [("version", &*info.version), ("host", &*info.host), ("cluster", &*info.cluster_id)];
    text.value(name, &labels, 1);

    let name = "culvert_control_objects";
    text.metric(name, Kind::Gauge, "Wanted objects, by what became of them on this host.");
    for (status, count) in
        [("applied", info.applied), ("pending", info.pending), ("failed", info.failed)]
    {
        text.value(name, &[("status", status)], count);
    }
    let name = "culvert_control_problems";
    text.single(name, Kind::Gauge, "Problems of the cluster.", info.problems.len());
    let name = "culvert_control_refused_callers_total";
    let help = "Connections of callers who are not allowed.";
    text.single(name, Kind::Counter, help, info.refused_callers);

    let store = info.store.clone().unwrap_or_default();
    let name = "culvert_control_store_healthy";
    text.metric(name, Kind::Gauge, "1 if the store can be read and written.");
    text.value(name, &[("kind", &store.kind)], u8::from(store.healthy));
    let name = "culvert_control_store_unhealthy_seconds";
    text.single(name, Kind::Gauge, "Since when it cannot.", seconds(store.unhealthy_ms));
    let name = "culvert_control_store_revision";
    text.single(name, Kind::Gauge, "Revision of the store that is known here.", store.revision);

    if let Some(queue) = &info.queue {
        let name = "culvert_control_queue";
        let help = "Changes that wait for the store, and that failed when it was back.";
        text.metric(name, Kind::Gauge, help);
        text.value(name, &[("state", "waiting")], queue.waiting);
        text.value(name, &[("state", "failed")], queue.failed);
    }

    let dataplane = info.dataplane.clone().unwrap_or_default();
    let name = "culvert_control_dataplane_connected";
    let help = "1 if the reconciler reaches the dataplane.";
    text.single(name, Kind::Gauge, help, u8::from(dataplane.connected));
    let name = "culvert_control_applied_revision";
    let help = "Revision of which the dataplane carries all that it can.";
    text.single(name, Kind::Gauge, help, dataplane.revision);
    let name = "culvert_control_lag_seconds";
    let help = "Since when there is a newer revision than that.";
    text.single(name, Kind::Gauge, help, seconds(dataplane.lag_ms));
    let name = "culvert_control_replays_total";
    let help = "States given to a dataplane that came anew.";
    text.single(name, Kind::Counter, help, dataplane.replays);
}

fn of_info(info: &api::Info, text: &mut Text) {
    let name = "culvert_dataplane_info";
    text.metric(name, Kind::Gauge, "The dataplane; always 1.");
    text.value(name, &[("version", &info.version), ("instance_id", &info.instance_id)], 1);
    let name = "culvert_dataplane_generation";
    text.single(name, Kind::Gauge, "States accepted since it started.", info.generation);
    let name = "culvert_dataplane_feature";
    text.metric(name, Kind::Gauge, "1 if the kernel has it.");
    for feature in &info.features {
        text.value(name, &[("name", &feature.name)], u8::from(feature.available));
    }
    let name = "culvert_underlay_up";
    text.metric(name, Kind::Gauge, "1 if the device has a carrier.");
    for device in &info.underlay {
        let labels = [("device", &*device.interface), ("mode", &*device.mode)];
        text.value(name, &labels, u8::from(device.up));
    }
    let name = "culvert_underlay_mtu_bytes";
    text.metric(name, Kind::Gauge, "MTU of the device.");
    for device in &info.underlay {
        text.value(name, &[("device", &device.interface)], device.mtu);
    }
}

fn of_ports(ports: &[api::PortStatus], text: &mut Text) {
    let name = "culvert_port_state";
    text.metric(name, Kind::Gauge, "The state that the port is in; always 1.");
    for port in ports {
        let labels = [
            ("port", &*port.id),
            ("vnet", &*port.vnet),
            ("device", &*port.device),
            ("mode", &*port.mode),
            ("state", &*port.state),
        ];
        text.value(name, &labels, 1);
    }
    let name = "culvert_port_mtu_bytes";
    text.metric(name, Kind::Gauge, "MTU of the tenant.");
    for port in ports {
        text.value(name, &[("port", &port.id)], port.mtu);
    }
}

fn of_paths(paths: &[api::Path], text: &mut Text) {
    let name = "culvert_path_up";
    text.metric(name, Kind::Gauge, "1 if there is a way to the VTEP and its neighbour is known.");
    for path in paths {
        text.value(name, &[("vtep", &path.vtep)], u8::from(path.state == "reachable"));
    }
    let name = "culvert_path_mtu_bytes";
    text.metric(name, Kind::Gauge, "Largest outer packet on the narrowest way to the VTEP.");
    for path in paths {
        text.value(name, &[("vtep", &path.vtep)], path.mtu);
    }
}

fn of_traffic(stats: &api::Stats, text: &mut Text) {
    let name = "culvert_port_packets_total";
    let help = "Packets from the tenant (rx) and to it (tx); a superframe counts once.";
    text.metric(name, Kind::Counter, help);
    for port in &stats.ports {
        text.value(name, &[("port", &port.id), ("direction", "rx")], port.rx_packets);
        text.value(name, &[("port", &port.id), ("direction", "tx")], port.tx_packets);
    }
    let name = "culvert_port_bytes_total";
    text.metric(name, Kind::Counter, "Bytes from the tenant (rx) and to it (tx).");
    for port in &stats.ports {
        text.value(name, &[("port", &port.id), ("direction", "rx")], port.rx_bytes);
        text.value(name, &[("port", &port.id), ("direction", "tx")], port.tx_bytes);
    }
    let name = "culvert_port_answers_total";
    text.metric(name, Kind::Counter, "Answers made for the tenant: ARP, ND, DHCP, ICMP errors.");
    for port in &stats.ports {
        text.value(name, &[("port", &port.id)], port.answers);
    }
}

fn of_losses(stats: &api::Stats, text: &mut Text) {
    let name = "culvert_port_drops_total";
    text.metric(name, Kind::Counter, "Packets of a port that were dropped.");
    for port in &stats.ports {
        for drop in &port.drops {
            text.value(name, &[("port", &port.id), ("reason", &drop.reason)], drop.packets);
        }
    }
    let name = "culvert_port_trapped_total";
    text.metric(name, Kind::Counter, "Frames of a port that went to the control plane.");
    for port in &stats.ports {
        text.value(name, &[("port", &port.id)], port.trapped);
    }
    let name = "culvert_underlay_drops_total";
    text.metric(name, Kind::Counter, "Packets of no port that were dropped.");
    for drop in &stats.drops {
        text.value(name, &[("reason", &drop.reason)], drop.packets);
    }
    let name = "culvert_underlay_trapped_total";
    let help = "Frames of the underlay that went to the control plane.";
    text.single(name, Kind::Counter, help, stats.underlay_trapped);
    let name = "culvert_kernel_events_total";
    let help = "Counters of XDP programs (no device), and of sockets and devices, the kernel's own included.";
    text.metric(name, Kind::Counter, help);
    for counter in &stats.kernel {
        let labels = [("device", &*counter.device), ("name", &*counter.name)];
        text.value(name, &labels, counter.value);
    }
}

/// A counter of a worker.
type Count = fn(&api::WorkerStats) -> u64;

fn of_workers(stats: &api::Stats, text: &mut Text) {
    let workers: Vec<_> = stats.workers.iter().map(|w| (w.index.to_string(), w)).collect();
    let name = "culvert_worker_packets_total";
    text.metric(name, Kind::Counter, "Packets received and sent.");
    for (index, worker) in &workers {
        text.value(name, &[("worker", index), ("direction", "rx")], worker.rx_packets);
        text.value(name, &[("worker", index), ("direction", "tx")], worker.tx_packets);
    }
    let name = "culvert_worker_flow_lookups_total";
    text.metric(name, Kind::Counter, "Packets whose flow was known (hit), or was decided (miss).");
    for (index, worker) in &workers {
        text.value(name, &[("worker", index), ("result", "hit")], worker.flow_hits);
        text.value(name, &[("worker", index), ("result", "miss")], worker.flow_misses);
    }
    let simple: [(&str, &str, Count); 3] = [
        ("culvert_worker_busy_polls_total", "Turns that found work.", |w| w.busy_polls),
        ("culvert_worker_sleeps_total", "Times that it slept.", |w| w.sleeps),
        ("culvert_worker_handed_over_total", "Frames for other workers.", |w| w.handed_over),
    ];
    for (name, help, value) in simple {
        text.metric(name, Kind::Counter, help);
        for (index, worker) in &workers {
            text.value(name, &[("worker", index)], value(worker));
        }
    }
    if let Some(arena) = &stats.arena {
        let name = "culvert_arena_frames";
        text.metric(name, Kind::Gauge, "Frames of packet memory.");
        text.value(name, &[("state", "free")], arena.free);
        text.value(name, &[("state", "held")], arena.held);
    }
}

fn of_shards(shards: &[api::ShardStats], text: &mut Text) {
    let name = "culvert_shard_frames_sent_total";
    text.metric(name, Kind::Counter, "Frames of the shard format sent to the VTEP.");
    for peer in shards {
        text.value(name, &[("vtep", &peer.vtep)], peer.sent);
    }
    let name = "culvert_shard_segments_sent_total";
    text.metric(name, Kind::Counter, "Segments of them.");
    for peer in shards {
        text.value(name, &[("vtep", &peer.vtep)], peer.sent_segments);
    }
    let name = "culvert_shard_frames_received_total";
    let help = "Frames of the shard format from the VTEP: every segment of them (whole), enough shares \
                (rebuilt), a wrong block (bad_block), or given up for want of room (evicted).";
    text.metric(name, Kind::Counter, help);
    for peer in shards {
        for (result, count) in [
            ("whole", peer.whole),
            ("rebuilt", peer.rebuilt),
            ("bad_block", peer.bad_blocks),
            ("evicted", peer.evicted),
        ] {
            text.value(name, &[("vtep", &peer.vtep), ("result", result)], count);
        }
    }
    let name = "culvert_shard_frames_expired_total";
    let help = "Frames of the shard format lost for want of shares, by how many were missing.";
    text.metric(name, Kind::Counter, help);
    for peer in shards {
        for (missing, count) in (1..).zip(&peer.expired).filter(|(_, count)| **count > 0) {
            let missing = i32::to_string(&missing);
            text.value(name, &[("vtep", &peer.vtep), ("missing", &missing)], *count);
        }
    }
    let name = "culvert_shard_blocks_asked_total";
    let help = "Blocks that the VTEP was asked for: requests (sent), frames rebuilt by an answer (repaired), \
                answers to no frame that waited (unasked).";
    text.metric(name, Kind::Counter, help);
    for peer in shards {
        for (result, count) in
            [("sent", peer.asked), ("repaired", peer.repaired), ("unasked", peer.unasked)]
        {
            text.value(name, &[("vtep", &peer.vtep), ("result", result)], count);
        }
    }
    let name = "culvert_shard_requests_total";
    let help =
        "Requests of the VTEP for blocks: answered, refused, or for one that is not kept (gone).";
    text.metric(name, Kind::Counter, help);
    for peer in shards {
        for (result, count) in
            [("answered", peer.answered), ("refused", peer.refused), ("gone", peer.gone)]
        {
            text.value(name, &[("vtep", &peer.vtep), ("result", result)], count);
        }
    }
}
