//! What the API shows: information, ports, counters.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use culvert_model::{Host, api};
use culvert_port::device::OperState;
use culvert_port::xsk::{KernelSupport, Missing};
use culvert_port::{Arena, LinkCounters, Links, PacketRxStats, TapStats, XskStats};
use tokio::sync::oneshot;

use super::Controller;
use super::attach::Refusal;
use super::devices::{Attached, Fault, links};
use crate::counters::PortCounters;
use crate::drops::DropReason;
use crate::shared::{Command, Shared};
use crate::worker::cutter::Cutters;
use crate::worker::device::{AttachmentId, DeviceStats, Role};
use crate::worker::shards::ShardCounts;

impl Controller {
    /// Who answers, and what its kernel and devices can do.
    pub fn info(&self) -> api::Info {
        let metadata = self.opener.programs.metadata_available();
        let mut features = vec![
            feature("xdp", &Ok(()), ""),
            feature(
                "frame-metadata",
                &metadata,
                "superframes of tenants are not told apart; only plain TCP ones are cut",
            ),
        ];
        // Some system calls: too few to be worth keeping the answer.
        let missing = KernelSupport::probe().map(KernelSupport::missing).unwrap_or_default();
        features.extend(missing.into_iter().map(|Missing { feature: name, since, instead }| {
            feature(name, &Err(format!("it came with Linux {since}")), instead)
        }));
        let (mut underlay, links) = (Vec::new(), links());
        for (name, attached) in &self.attached {
            if matches!(attached.wanted.role, Role::Underlay(_)) {
                let open = attached.open();
                underlay.push(api::UnderlayDevice {
                    interface: name.to_string(),
                    mode: open.map_or("", |o| o.mode.name()).to_owned(),
                    refusals: open.map(|o| refusals(&o.refusals)).unwrap_or_default(),
                    queues: open.map_or(0, |o| o.workers.len() as u32),
                    mtu: open.map_or(0, |o| o.facts.mtu),
                    up: open.is_some() && is_up(&links, name.as_str()),
                    cut_by: open.map(|o| cut_by(o.facts.cutters)),
                });
            }
        }
        let workers = self.cpus.iter().enumerate();
        api::Info {
            instance_id: self.instance_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.generation,
            features,
            underlay,
            workers: workers
                .map(|(index, cpu)| api::WorkerInfo { index: index as u32, cpu: *cpu })
                .collect(),
        }
    }

    /// The state as last accepted.
    pub fn state(&self) -> api::CurrentState {
        api::CurrentState {
            state: self.host.as_ref().map(api::State::from),
            generation: self.generation,
        }
    }

    /// The ports as they are.
    pub fn ports(&self) -> api::PortList {
        let ports = self.host.iter().flat_map(Host::ports);
        let links = links();
        let status = |port: &culvert_model::Port| {
            let name = port.attach.ifname();
            let attached = self.attached.get(name);
            let open = attached.and_then(Attached::open);
            let (state, reason) = match attached.map(|attached| &attached.state) {
                None => ("failed", "not attached".to_owned()),
                Some(Err(Fault { gone: true, reason, .. })) => ("gone", reason.clone()),
                Some(Err(Fault { reason, .. })) => ("failed", reason.clone()),
                Some(Ok(open)) if !open.is_tap() && !is_up(&links, name.as_str()) => {
                    ("down", format!("{name} is down or has no carrier"))
                }
                Some(Ok(_)) => (port.state.name(), String::new()),
            };
            api::PortStatus {
                id: port.id.to_string(),
                vnet: port.vnet.to_string(),
                attach: port.attach.kind().to_owned(),
                device: name.to_string(),
                mode: open.map_or("", |o| o.mode.name()).to_owned(),
                refusals: open.map(|o| refusals(&o.refusals)).unwrap_or_default(),
                queues: open.map_or(0, |o| o.workers.len() as u32),
                mtu: match port.mtu {
                    Some(mtu) => mtu.get().into(),
                    None => open.map_or(0, |o| o.facts.mtu),
                },
                state: state.to_owned(),
                reason,
            }
        };
        api::PortList { ports: ports.map(status).collect() }
    }

    /// Everything that is counted.
    pub async fn stats(&self) -> api::Stats {
        let mut sockets: Vec<(AttachmentId, DeviceStats)> = Vec::new();
        for inbox in &self.shared.inboxes {
            let (reply, answer) = oneshot::channel();
            if inbox.command(Command::Stats(reply)) {
                sockets.extend(answer.await.unwrap_or_default());
            }
        }
        sockets.sort_by_key(|(id, _)| *id);
        let shared = &self.shared;
        let ports = self.host.iter().flat_map(Host::ports);
        let ports = ports
            .filter_map(|port| {
                let index = self.known.ports.get(&port.id)? as u16;
                Some(port_stats(port.id.as_str(), shared, index))
            })
            .collect();
        let mut kernel = Vec::new();
        for (counter, value) in self.opener.programs.counters() {
            kernel.push(kernel_counter("", counter.name(), value));
        }
        let netdev = LinkCounters::read().unwrap_or_else(|error| {
            tracing::error!(%error, "the counters of the kernel's devices cannot be read");
            HashMap::default()
        });
        for (name, attached) in &self.attached {
            if let Some(open) = attached.open() {
                let mut sum = None;
                for stats in of_attachment(&sockets, open.id) {
                    add_queue(&mut sum, stats);
                }
                // A TAP may be in another namespace by now, and its name here another device's.
                let here = netdev.get(name.as_str()).filter(|link| link.ifindex == open.ifindex);
                let named = sum.into_iter().flatten().chain(here.into_iter().flat_map(of_netdev));
                kernel.extend(named.map(|(n, value)| kernel_counter(name.as_str(), n, value)));
            }
            for (counter, value) in [
                ("device_lost", attached.lost),
                ("device_reopened", attached.reopened),
                ("device_open_failed", attached.failed),
            ] {
                if value > 0 {
                    kernel.push(kernel_counter(name.as_str(), counter, value));
                }
            }
        }
        api::Stats {
            ports,
            workers: worker_stats(shared),
            kernel,
            arena: Some(arena_stats(self.opener.arena, shared)),
            drops: drops(|reason| self.links_sum(&|c| c.dropped(reason))),
            underlay_trapped: self.links_sum(&|c| c.traps.get()),
            shards: self.shard_stats().await,
        }
    }

    /// Frames of the shard format, of all workers, by VTEP.
    async fn shard_stats(&self) -> Vec<api::ShardStats> {
        let mut sums: BTreeMap<IpAddr, ShardCounts> = BTreeMap::new();
        for inbox in &self.shared.inboxes {
            let (reply, answer) = oneshot::channel();
            if inbox.command(Command::Shards(reply)) {
                for (vtep, counts) in answer.await.unwrap_or_default() {
                    sums.entry(vtep).or_default().add(&counts);
                }
            }
        }
        let stats = |(vtep, counts): (IpAddr, ShardCounts)| api::ShardStats {
            vtep: vtep.to_string(),
            sent: counts.sent,
            sent_segments: counts.sent_segments,
            whole: counts.whole,
            rebuilt: counts.rebuilt,
            expired: counts.expired.to_vec(),
            bad_blocks: counts.bad_blocks,
            evicted: counts.evicted,
            asked: counts.asked,
            repaired: counts.repaired,
            unasked: counts.unasked,
            answered: counts.answered,
            refused: counts.refused,
            gone: counts.gone,
        };
        sums.into_iter().map(stats).collect()
    }

    /// The sum of a counter over all underlay devices and workers.
    fn links_sum(&self, count: &dyn Fn(&PortCounters) -> u64) -> u64 {
        let links = self.known.links.iter().map(|(_, index)| index as u16);
        let of = |link| self.shared.counters.iter().map(|c| count(c.link(link))).sum::<u64>();
        links.map(of).sum()
    }
}

fn feature(name: &str, available: &Result<(), String>, instead: &str) -> api::KernelFeature {
    api::KernelFeature {
        name: name.to_owned(),
        available: available.is_ok(),
        reason: match available {
            Ok(()) => String::new(),
            Err(reason) => format!("{reason}; {instead}"),
        },
    }
}

fn refusals(refusals: &[Refusal]) -> Vec<api::ModeRefusal> {
    let each = refusals.iter();
    each.map(|r| api::ModeRefusal { mode: r.mode.name().to_owned(), reason: r.reason.clone() })
        .collect()
}

fn cut_by(cutters: Cutters) -> api::SuperframeCutters {
    let Cutters { udp, tcp_v4, tcp_v6 } = cutters;
    let [udp, tcp_ipv4, tcp_ipv6] = [udp, tcp_v4, tcp_v6].map(|cutter| cutter.name().to_owned());
    api::SuperframeCutters { udp, tcp_ipv4, tcp_ipv6 }
}

fn is_up(links: &Links, name: &str) -> bool {
    links.get(name).is_some_and(|link| link.state == OperState::Up)
}

/// The sockets of one attachment, in a list that is sorted by it.
fn of_attachment(
    sockets: &[(AttachmentId, DeviceStats)],
    id: AttachmentId,
) -> impl Iterator<Item = &DeviceStats> {
    let first = sockets.partition_point(|(other, _)| *other < id);
    let rest = sockets.get(first..).unwrap_or_default();
    rest.iter().take_while(move |(other, _)| *other == id).map(|(_, stats)| stats)
}

fn drops(count: impl Fn(DropReason) -> u64) -> Vec<api::Drop> {
    DropReason::ALL
        .iter()
        .map(|reason| api::Drop { reason: reason.name().to_owned(), packets: count(*reason) })
        .filter(|drop| drop.packets > 0)
        .collect()
}

fn port_stats(id: &str, shared: &Shared, index: u16) -> api::PortStats {
    let sum = |f: &dyn Fn(&PortCounters) -> u64| -> u64 {
        shared.counters.iter().map(|counters| f(counters.port(index))).sum()
    };
    api::PortStats {
        id: id.to_owned(),
        rx_packets: sum(&|c| c.rx.packets.get()),
        rx_bytes: sum(&|c| c.rx.bytes.get()),
        tx_packets: sum(&|c| c.tx.packets.get()),
        tx_bytes: sum(&|c| c.tx.bytes.get()),
        drops: drops(|reason| sum(&|c| c.dropped(reason))),
        trapped: sum(&|c| c.traps.get()),
        answers: sum(&|c| c.replies.get()),
    }
}

fn worker_stats(shared: &Shared) -> Vec<api::WorkerStats> {
    let each = shared.counters.iter().enumerate();
    each.map(|(index, counters)| {
        let (rx_packets, tx_packets) = counters.packets();
        api::WorkerStats {
            index: index as u32,
            rx_packets,
            tx_packets,
            busy_polls: counters.busy_rounds.get(),
            sleeps: counters.sleeps.get(),
            flow_hits: counters.flow_hits.get(),
            flow_misses: counters.flow_misses.get(),
            handed_over: counters.handoffs.get(),
            connections: counters.connections.get(),
            connections_evicted: counters.connections_evicted.get(),
            connections_refused: counters.connections_refused.get(),
        }
    })
    .collect()
}

/// Free are the pool's frames and the workers' own stock; held is what sockets and queues have.
fn arena_stats(arena: &Arena, shared: &Shared) -> api::Arena {
    let stats = arena.stats();
    let cached: u64 = shared.counters.iter().map(|c| c.frames_cached.get()).sum();
    let held: u64 = shared.counters.iter().map(|c| c.frames_held.get()).sum();
    api::Arena { chunks: stats.capacity as u64, free: stats.pooled as u64 + cached, held }
}

fn kernel_counter(device: &str, name: &str, value: u64) -> api::KernelCounter {
    api::KernelCounter { device: device.to_owned(), name: name.to_owned(), value }
}

fn add_queue(sum: &mut Option<Vec<(&'static str, u64)>>, stats: &DeviceStats) {
    let named = match stats {
        DeviceStats::Xdp(stats) => of_xsk(stats),
        DeviceStats::Packet(stats) => of_packet_rx(stats),
        DeviceStats::Tap(stats) => of_tap(stats),
    };
    match sum {
        None => *sum = Some(named),
        Some(sum) => sum.iter_mut().zip(named).for_each(|((_, sum), (_, value))| *sum += value),
    }
}

fn of_xsk(stats: &XskStats) -> Vec<(&'static str, u64)> {
    vec![
        ("rx_packets", stats.rx_packets),
        ("rx_oversize", stats.rx_oversize),
        ("rx_bad_descriptor", stats.rx_bad_desc),
        ("fill_starved", stats.fill_starved),
        ("tx_packets", stats.tx_packets),
        ("tx_ring_full", stats.tx_ring_full),
        ("tx_unsendable", stats.tx_unsendable),
        ("tx_down", stats.tx_down),
        ("tx_kicks", stats.kicks),
        ("tx_kick_again", stats.kick_again),
        ("tx_kick_dropped", stats.kick_dropped),
        ("tx_kick_no_buffers", stats.kick_no_buffers),
        ("tx_kick_down", stats.kick_down),
        ("tx_kick_failed", stats.kick_failed),
        ("kernel_rx_dropped", stats.kernel_rx_dropped),
        ("kernel_rx_ring_full", stats.kernel_rx_ring_full),
        ("kernel_fill_empty", stats.kernel_fill_empty),
        ("kernel_fill_invalid", stats.kernel_rx_invalid),
        ("kernel_tx_invalid", stats.kernel_tx_invalid),
    ]
}

fn of_packet_rx(stats: &PacketRxStats) -> Vec<(&'static str, u64)> {
    vec![
        ("rx_packets", stats.rx_packets),
        ("rx_bad", stats.rx_bad),
        ("rx_starved", stats.rx_starved),
        ("rx_down", stats.rx_down),
        ("rx_failed", stats.rx_failed),
        ("kernel_rx_overrun", stats.rx_overrun),
    ]
}

fn of_tap(stats: &TapStats) -> Vec<(&'static str, u64)> {
    vec![
        ("rx_packets", stats.rx_packets),
        ("rx_bad", stats.rx_bad),
        ("rx_starved", stats.rx_starved),
        ("rx_down", stats.rx_down),
        ("rx_failed", stats.rx_failed),
    ]
}

/// What the device itself lost, whoever uses it; packets that it carried are not a loss.
fn of_netdev(link: &LinkCounters) -> [(&'static str, u64); 6] {
    [
        ("netdev_rx_errors", link.rx_errors),
        ("netdev_rx_dropped", link.rx_dropped),
        ("netdev_rx_missed", link.rx_missed),
        ("netdev_rx_no_handler", link.rx_no_handler),
        ("netdev_tx_errors", link.tx_errors),
        ("netdev_tx_dropped", link.tx_dropped),
    ]
}
