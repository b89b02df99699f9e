//! iperf3 between two hosts, with weather in the wire: TCP's goodput, and frames rebuilt against what was predicted for the
//! very frames that were sent.

use culvert_tests::tools::Iperf;
use culvert_tests::topology::Topology;
use culvert_tests::weather::{Loss, Weather};
use culvert_tests::{Combo, Offloads, TopologySpec};
use serde_json::Value;

use super::predict::{interval, rebuilt};

/// Bytes that any format puts around a tenant's packet, and some: the same wire for all.
const ROOM: u32 = 120;

/// Lengths that fewer frames of a hundred have are listed together.
const RARE: f64 = 0.005;

const FORMATS: [(&str, &str, &str); 5] = [
    ("`vxlan`", "format = \"vxlan\"", ""),
    ("`stt`", "format = \"stt\"", ""),
    ("`shard`, by length", "format = \"shard\"", ""),
    ("`shard`, 1 of 4", "format = \"shard\"", "shard = { k = 1, n = 4 }\n"),
    ("`shard`, 4 of 16", "format = \"shard\"", "shard = { k = 4, n = 16 }\n"),
];

/// Weather in which iperf3's lengths are listed.
const LENGTHS: [Weather; 2] =
    [Weather::losing(Loss::NONE), Weather::losing(Loss::Independent { rate: 0.01 })];

const WEATHERS: [Weather; 14] = [
    Weather::losing(Loss::NONE),
    Weather::losing(Loss::Independent { rate: 0.001 }),
    Weather::losing(Loss::Independent { rate: 0.01 }),
    Weather::losing(Loss::Independent { rate: 0.05 }),
    Weather::losing(Loss::Independent { rate: 0.1 }),
    Weather::losing(Loss::Bursts { rate: 0.001, mean: 3.0 }),
    Weather::losing(Loss::Bursts { rate: 0.001, mean: 10.0 }),
    Weather::losing(Loss::Bursts { rate: 0.01, mean: 3.0 }),
    Weather::losing(Loss::Bursts { rate: 0.01, mean: 10.0 }),
    Weather::losing(Loss::Bursts { rate: 0.05, mean: 3.0 }),
    Weather::losing(Loss::Bursts { rate: 0.05, mean: 10.0 }),
    Weather::losing(Loss::Bursts { rate: 0.1, mean: 3.0 }),
    Weather::losing(Loss::Bursts { rate: 0.1, mean: 10.0 }),
    // As in the model.
    Weather { loss: Loss::Independent { rate: 0.01 }, repeated: 0.02, overtaken: 0.05 },
];

/// Frames that were counted at both ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    pub(super) sent: u64,
    pub(super) rebuilt: u64,
}

impl Counted {
    pub(super) fn since(self, before: Self) -> Self {
        Self { sent: self.sent - before.sent, rebuilt: self.rebuilt - before.rebuilt }
    }
}

/// What the hosts say of frames from the first to the second.
pub(super) fn counted(topology: &Topology) -> Counted {
    let of = |host: usize, names: &[&str]| {
        let vtep = topology.hosts[1 - host].vtep.to_string();
        let ns = &topology.hosts[host].ns;
        let shown = topology.dataplane(host).cli(ns, &["show", "shards", "-o", "json"]);
        let lines = shown.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let lines = lines.and_then(|lines| lines.as_array().cloned()).unwrap_or_default();
        let line = lines.iter().find(|line| line["vtep"] == vtep.as_str());
        line.map_or(0, |line| names.iter().filter_map(|name| line[*name].as_u64()).sum())
    };
    Counted { sent: of(0, &["sent"]), rebuilt: of(1, &["whole", "rebuilt"]) }
}

/// Weather as the tables name it.
pub(super) fn described(weather: Weather) -> String {
    let Weather { loss, repeated, overtaken } = weather;
    if repeated == 0.0 && overtaken == 0.0 {
        return loss.to_string();
    }
    let [repeated, overtaken] = [repeated, overtaken].map(|share| share * 100.0);
    format!("{loss}, {repeated} % repeated, {overtaken} % overtaken")
}

fn build(vnet_toml: &'static str, underlay_toml: &'static str) -> Topology {
    let mut spec = TopologySpec::pair(Combo { wire: Offloads::Off, ..Combo::SIMPLE });
    spec.vnet_toml = vnet_toml;
    spec.underlay_toml = underlay_toml;
    spec.middle = true;
    let topology = spec.build();
    topology.widen_wire(ROOM);
    topology.settle();
    topology
}

pub(crate) fn main(secs: u32, seed: u64) -> crate::CommandResult {
    println!("`cargo xtask bench loss --hosts {secs} --seed {seed}`\n");
    println!(
        "| format | packets lost | goodput, Mb/s | frames rebuilt, % (95 % interval) | predicted |"
    );
    println!("|---|---|---|---|---|");
    let mut lengths = Vec::new();
    for (name, vnet_toml, underlay_toml) in FORMATS {
        let topology = build(vnet_toml, underlay_toml);
        let middle = topology.middle.as_ref().ok_or("the wire has nothing in it")?;
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        for weather in WEATHERS {
            let loss = weather.loss;
            let what = described(weather);
            let before = counted(&topology);
            middle.take_shapes();
            middle.set_weather(Some(weather), seed);
            let report = Iperf::tcp(secs).run(&topology.scratch, &a.ns, &b.ns, topology.address(1));
            middle.set_weather(None, 0);
            // The last frames' time has to be over.
            std::thread::sleep(std::time::Duration::from_millis(200));
            let Counted { sent, rebuilt: came } = counted(&topology).since(before);
            let shapes = middle.take_shapes();
            let goodput = match report {
                Ok(report) => format!("{:.1}", report.bits_per_second / 1e6),
                Err(e) => {
                    eprintln!("{name}, {what}: {e}");
                    "none".to_owned()
                }
            };
            let frames = if sent == 0 {
                "- | -".to_owned()
            } else {
                // A packet that is all of its frame is delivered as often as it comes.
                let came = came.min(sent);
                let [low, high] = interval(came, sent).map(|end| end * 100.0);
                let share = came as f64 / sent as f64 * 100.0;
                let all: u64 = shapes.iter().map(|(_, count)| count).sum();
                let odds = shapes.iter().map(|(shape, count)| rebuilt(shape, loss) * *count as f64);
                let predicted = odds.sum::<f64>() / all.max(1) as f64 * 100.0;
                format!("{share:.2} ({low:.2}-{high:.2}) | {predicted:.2}")
            };
            println!("| {name} | {what} | {goodput} | {frames} |");
            if LENGTHS.contains(&weather) && underlay_toml.is_empty() && sent > 0 {
                lengths.push((loss, shapes));
            }
        }
    }
    for (loss, shapes) in lengths {
        let all: u64 = shapes.iter().map(|(_, count)| count).sum();
        let percent = RARE * 100.0;
        println!(
            "\niperf3's {all} frames with {loss} lost, lengths of less than {percent} % left out:\n"
        );
        println!("| payload bytes | segments | frames |\n|---|---|---|");
        let frequent = |count: &u64| *count as f64 >= RARE * all as f64;
        for (shape, count) in shapes.iter().filter(|(_, count)| frequent(count)) {
            println!("| {} | {} | {count} |", shape.payload_len(), shape.segments());
        }
    }
    Ok(())
}
