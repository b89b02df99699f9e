//! `culvert stats`.

use culvert_model::api;
use serde::Serialize;

use crate::args::{Args, Output, Stats as StatsArgs};
use crate::client::Client;
use crate::error::CliError;
use crate::output::{print, print_value, table};
use crate::show::shards::Shards;

#[derive(Serialize)]
struct Stats {
    ports: Vec<Port>,
    /// Drops of frames that belong to no port.
    underlay_drops: Vec<Drop>,
    underlay_trapped: u64,
    workers: Vec<Worker>,
    kernel: Vec<Kernel>,
    arena: Option<Arena>,
    /// Frames of the shard format, by VTEP.
    shards: Vec<Shards>,
}

/// rx came from the tenant, tx went to it.
#[derive(Serialize)]
struct Port {
    id: String,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    trapped: u64,
    answers: u64,
    dropped_packets: u64,
    drops: Vec<Drop>,
}

#[derive(Clone, Serialize)]
struct Drop {
    reason: String,
    packets: u64,
}

#[derive(Serialize)]
struct Worker {
    index: u32,
    rx_packets: u64,
    tx_packets: u64,
    busy_polls: u64,
    sleeps: u64,
    flow_hits: u64,
    flow_misses: u64,
    handed_over: u64,
    connections: u64,
    connections_evicted: u64,
    connections_refused: u64,
}

#[derive(Serialize)]
struct Kernel {
    device: String,
    name: String,
    value: u64,
}

#[derive(Serialize)]
struct Arena {
    chunks: u64,
    free: u64,
    held: u64,
}

fn drops(drops: Vec<api::Drop>) -> Vec<Drop> {
    drops.into_iter().map(|api::Drop { reason, packets }| Drop { reason, packets }).collect()
}

impl From<api::Stats> for Stats {
    fn from(stats: api::Stats) -> Stats {
        let port = |port: api::PortStats| Port {
            id: port.id,
            rx_packets: port.rx_packets,
            rx_bytes: port.rx_bytes,
            tx_packets: port.tx_packets,
            tx_bytes: port.tx_bytes,
            trapped: port.trapped,
            answers: port.answers,
            dropped_packets: port
                .drops
                .iter()
                .map(|drop| drop.packets)
                .fold(0, u64::saturating_add),
            drops: drops(port.drops),
        };
        let worker = |worker: api::WorkerStats| Worker {
            index: worker.index,
            rx_packets: worker.rx_packets,
            tx_packets: worker.tx_packets,
            busy_polls: worker.busy_polls,
            sleeps: worker.sleeps,
            flow_hits: worker.flow_hits,
            flow_misses: worker.flow_misses,
            handed_over: worker.handed_over,
            connections: worker.connections,
            connections_evicted: worker.connections_evicted,
            connections_refused: worker.connections_refused,
        };
        let kernel = |api::KernelCounter { device, name, value }| Kernel { device, name, value };
        Stats {
            ports: stats.ports.into_iter().map(port).collect(),
            underlay_drops: drops(stats.drops),
            underlay_trapped: stats.underlay_trapped,
            workers: stats.workers.into_iter().map(worker).collect(),
            kernel: stats.kernel.into_iter().map(kernel).collect(),
            shards: stats.shards.into_iter().map(Shards::from).collect(),
            arena: stats.arena.map(|api::Arena { chunks, free, held }| Arena {
                chunks,
                free,
                held,
            }),
        }
    }
}

/// One reason for drops of one port; without a port, of the underlay.
#[derive(Serialize)]
struct PortDrop {
    port: Option<String>,
    reason: String,
    packets: u64,
}

pub(crate) async fn run(args: &Args, stats_args: &StatsArgs) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    let answer = client.calls.get_stats(api::GetStatsRequest {}).await;
    let stats = Stats::from(client.answer(answer)?);
    match (args.output, stats_args.drops) {
        (Output::Table, false) => print(&tables(stats)),
        (Output::Table, true) => print(&drop_table(dropped(&stats))),
        (output, false) => print_value(output, &stats),
        (output, true) => print_value(output, &dropped(&stats)),
    }
}

/// Everything dropped, the most frequent first.
fn dropped(stats: &Stats) -> Vec<PortDrop> {
    let of_ports =
        stats.ports.iter().flat_map(|port| port.drops.iter().map(|drop| (Some(&port.id), drop)));
    let of_none = stats.underlay_drops.iter().map(|drop| (None, drop));
    let mut all: Vec<_> = of_ports
        .chain(of_none)
        .filter(|(_, drop)| drop.packets > 0)
        .map(|(port, Drop { reason, packets })| PortDrop {
            port: port.cloned(),
            reason: reason.clone(),
            packets: *packets,
        })
        .collect();
    all.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    all
}

fn drop_table(drops: Vec<PortDrop>) -> String {
    let row = |drop: PortDrop| {
        let port = drop.port.unwrap_or_else(|| "(underlay)".to_owned());
        vec![port, drop.reason, drop.packets.to_string()]
    };
    table(&["port", "reason", "#packets"], drops.into_iter().map(row).collect())
}

fn tables(stats: Stats) -> String {
    let underlay_dropped: u64 =
        stats.underlay_drops.iter().map(|drop| drop.packets).fold(0, u64::saturating_add);
    let numbers = |numbers: &[u64]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let port = |port: Port| {
        let counters =
            [port.rx_packets, port.rx_bytes, port.tx_packets, port.tx_bytes, port.answers];
        [vec![port.id], numbers(&counters), numbers(&[port.trapped, port.dropped_packets])].concat()
    };
    let worker = |worker: Worker| {
        let Worker { rx_packets, tx_packets, flow_hits, flow_misses, .. } = worker;
        let rest = [
            worker.handed_over,
            worker.busy_polls,
            worker.sleeps,
            worker.connections,
            worker.connections_evicted + worker.connections_refused,
        ];
        let counters =
            [[rx_packets, tx_packets, flow_hits, flow_misses].as_slice(), &rest].concat();
        [vec![worker.index.to_string()], numbers(&counters)].concat()
    };
    let kernel = |counter: Kernel| vec![counter.device, counter.name, counter.value.to_string()];

    let ports = table(
        &[
            "port",
            "#rx packets",
            "#rx bytes",
            "#tx packets",
            "#tx bytes",
            "#answers",
            "#trapped",
            "#dropped",
        ],
        stats.ports.into_iter().map(port).collect(),
    );
    let workers = table(
        &[
            "#worker",
            "#rx",
            "#tx",
            "#flow hits",
            "#flow misses",
            "#handed over",
            "#busy polls",
            "#sleeps",
            "#connections",
            "#lost",
        ],
        stats.workers.into_iter().map(worker).collect(),
    );
    let moved = stats.kernel.into_iter().filter(|counter| counter.value > 0);
    let kernel = table(&["device", "kernel counter", "#value"], moved.map(kernel).collect());
    let mut text = format!("{ports}\n\n{workers}\n\n{kernel}\n\n");
    if let Some(Arena { chunks, free, held }) = stats.arena {
        text.push_str(&format!("arena: {chunks} chunks, {free} free, {held} held\n"));
    }
    let trapped = stats.underlay_trapped;
    text + &format!("of no port: {underlay_dropped} dropped, {trapped} trapped")
}
