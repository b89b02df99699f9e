//! Medians, ratios and the verdict on the run itself.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Peer;
use super::measure::Sample;
use super::setup::Setup;

/// Native raw forwarding must beat kernel VXLAN by this in 64-byte packets, or the machine was busy with something else.
const VOID_BELOW: f64 = 2.4;

/// A figure of a sample.
type Figure = fn(&Sample) -> f64;

const PPS: Figure = |s| s.udp_64_pps;
const PPS_1400: Figure = |s| s.udp_1400_pps;
const TCP: Figure = |s| s.tcp_1_gbps;
const TCP_4: Figure = |s| s.tcp_4_gbps;
const P50: Figure = |s| s.rr_p50_us;

/// A wanted ratio between two peers.
struct Aim {
    what: &'static str,
    figure: Figure,
    /// The better of them counts.
    ours: &'static [Setup],
    theirs: Setup,
    /// Wanted: at least this, or at most if it is a latency.
    wanted: f64,
    at_most: bool,
}

#[rustfmt::skip]
const AIMS: [Aim; 33] = [
    Aim { what: "64-byte packets, native", figure: PPS, ours: &[Setup::CulvertNative], theirs: Setup::RawNative, wanted: 0.85, at_most: false },
    Aim { what: "64-byte packets, generic", figure: PPS, ours: &[Setup::Culvert], theirs: Setup::RawGeneric, wanted: 0.85, at_most: false },
    Aim { what: "64-byte packets, native", figure: PPS, ours: &[Setup::CulvertNative], theirs: Setup::Ovs, wanted: 1.25, at_most: false },
    Aim { what: "64-byte packets, native", figure: PPS, ours: &[Setup::CulvertNative], theirs: Setup::KernelUncut, wanted: 2.0, at_most: false },
    Aim { what: "one TCP stream, wire-sized frames", figure: TCP, ours: &[Setup::CulvertCut], theirs: Setup::Ovs, wanted: 2.0, at_most: false },
    Aim { what: "one TCP stream, superframes uncut", figure: TCP, ours: &[Setup::Culvert], theirs: Setup::KernelUncut, wanted: 0.6, at_most: false },
    Aim { what: "round trip, median", figure: P50, ours: &[Setup::Culvert], theirs: Setup::KernelUncut, wanted: 2.0, at_most: true },
    Aim { what: "round trip, median", figure: P50, ours: &[Setup::Culvert], theirs: Setup::Ovs, wanted: 1.0, at_most: true },
    Aim { what: "one TCP stream in shards, uncut", figure: TCP, ours: &[Setup::ShardUncut], theirs: Setup::SttUncut, wanted: 0.95, at_most: false },
    Aim { what: "one TCP stream in shards, software GSO", figure: TCP, ours: &[Setup::ShardCut], theirs: Setup::SttCut, wanted: 0.95, at_most: false },
    Aim { what: "one TCP stream in shards, AF_XDP", figure: TCP, ours: &[Setup::ShardCutXdp], theirs: Setup::SttCutXdp, wanted: 0.95, at_most: false },
    Aim { what: "four TCP streams in shards, uncut", figure: TCP_4, ours: &[Setup::ShardUncut], theirs: Setup::SttUncut, wanted: 0.95, at_most: false },
    Aim { what: "64-byte packets in shards, uncut", figure: PPS, ours: &[Setup::ShardUncut], theirs: Setup::SttUncut, wanted: 0.95, at_most: false },
    Aim { what: "1400-byte packets in shards, uncut", figure: PPS_1400, ours: &[Setup::ShardUncut], theirs: Setup::SttUncut, wanted: 0.95, at_most: false },
    Aim { what: "four TCP streams in shards, software GSO", figure: TCP_4, ours: &[Setup::ShardCut], theirs: Setup::SttCut, wanted: 0.95, at_most: false },
    Aim { what: "64-byte packets in shards, software GSO", figure: PPS, ours: &[Setup::ShardCut], theirs: Setup::SttCut, wanted: 0.95, at_most: false },
    Aim { what: "1400-byte packets in shards, software GSO", figure: PPS_1400, ours: &[Setup::ShardCut], theirs: Setup::SttCut, wanted: 0.95, at_most: false },
    Aim { what: "four TCP streams in shards, AF_XDP", figure: TCP_4, ours: &[Setup::ShardCutXdp], theirs: Setup::SttCutXdp, wanted: 0.95, at_most: false },
    Aim { what: "64-byte packets in shards, AF_XDP", figure: PPS, ours: &[Setup::ShardCutXdp], theirs: Setup::SttCutXdp, wanted: 0.95, at_most: false },
    Aim { what: "1400-byte packets in shards, AF_XDP", figure: PPS_1400, ours: &[Setup::ShardCutXdp], theirs: Setup::SttCutXdp, wanted: 0.95, at_most: false },
    Aim { what: "one TCP stream in vxlan, uncut", figure: TCP, ours: &[Setup::Culvert, Setup::CulvertPacketRx], theirs: Setup::RawSuperframes, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in vxlan, uncut", figure: TCP, ours: &[Setup::Culvert, Setup::CulvertPacketRx], theirs: Setup::Ovs, wanted: 3.5, at_most: false },
    Aim { what: "one TCP stream in geneve, uncut", figure: TCP, ours: &[Setup::GeneveUncut], theirs: Setup::RawSuperframes, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in geneve, uncut", figure: TCP, ours: &[Setup::GeneveUncut], theirs: Setup::Ovs, wanted: 3.5, at_most: false },
    Aim { what: "one TCP stream in stt, uncut", figure: TCP, ours: &[Setup::SttUncut, Setup::SttPacketRx], theirs: Setup::RawSuperframes, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in stt, uncut", figure: TCP, ours: &[Setup::SttUncut, Setup::SttPacketRx], theirs: Setup::Ovs, wanted: 3.5, at_most: false },
    Aim { what: "one TCP stream in shard, uncut", figure: TCP, ours: &[Setup::ShardUncut], theirs: Setup::RawSuperframes, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in shard, uncut", figure: TCP, ours: &[Setup::ShardUncut], theirs: Setup::Ovs, wanted: 3.5, at_most: false },
    Aim { what: "one TCP stream in vxlan, wire-sized by the better path", figure: TCP, ours: &[Setup::CulvertCut, Setup::CulvertCutXdp, Setup::CulvertCutPacketRx], theirs: Setup::KernelCut, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in geneve, wire-sized by the better path", figure: TCP, ours: &[Setup::GeneveCut, Setup::GeneveCutXdp], theirs: Setup::KernelCut, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in stt, wire-sized by the better path", figure: TCP, ours: &[Setup::SttCut, Setup::SttCutXdp, Setup::SttCutPacketRx], theirs: Setup::KernelCut, wanted: 0.9, at_most: false },
    Aim { what: "one TCP stream in shard, wire-sized by the better path", figure: TCP, ours: &[Setup::ShardCut, Setup::ShardCutXdp], theirs: Setup::KernelCut, wanted: 0.9, at_most: false },
    Aim { what: "this run: 64-byte packets", figure: PPS, ours: &[Setup::RawNative], theirs: Setup::KernelUncut, wanted: VOID_BELOW, at_most: false },
];

/// The result of a run.
pub(crate) struct Report<'a> {
    peers: &'a [Peer],
    secs: u64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(peers: &'a [Peer], secs: u64) -> Self {
        Self { peers, secs }
    }

    fn figure(&self, setup: Setup, figure: Figure) -> Option<f64> {
        let peer = self.peers.iter().find(|peer| peer.setup == setup)?;
        Some(median(peer.samples.iter().map(figure).collect()))
    }

    fn ratio(&self, figure: Figure, ours: Setup, theirs: Setup) -> Option<f64> {
        Some(self.figure(ours, figure)? / self.figure(theirs, figure)?)
    }

    /// The best of ours to theirs, and which that is.
    fn best(&self, aim: &Aim) -> Option<(Setup, f64)> {
        let ratio = |&ours: &Setup| Some((ours, self.ratio(aim.figure, ours, aim.theirs)?));
        aim.ours
            .iter()
            .filter_map(ratio)
            .max_by(|(_, a), (_, b)| if aim.at_most { b.total_cmp(a) } else { a.total_cmp(b) })
    }

    /// Why the run proves nothing, if so.
    pub(crate) fn void(&self) -> Option<String> {
        match self.ratio(PPS, Setup::RawNative, Setup::KernelUncut) {
            None => Some("raw-native and kernel-uncut were not both measured".to_owned()),
            Some(ratio) if ratio >= VOID_BELOW => None,
            Some(ratio) => Some(format!(
                "raw-native reached {ratio:.2} times kernel-uncut in 64-byte packets, {VOID_BELOW} is the least"
            )),
        }
    }

    /// How the run can be repeated.
    pub(crate) fn command(&self) -> String {
        let rounds = self.peers.iter().map(|p| p.samples.len()).max().unwrap_or(0);
        let mut command =
            format!("cargo xtask bench overlay --secs {} --rounds {rounds}", self.secs);
        for setup in Setup::ALL {
            if self.peers.iter().all(|peer| peer.setup != setup) {
                let _ = write!(command, " --without {}", setup.name());
            }
        }
        command
    }

    /// The medians of every peer by name.
    pub(crate) fn medians(&self) -> Value {
        let mut medians = Map::new();
        for peer in self.peers {
            let of = |figure: Figure| median(peer.samples.iter().map(figure).collect());
            medians.insert(
                peer.name.to_owned(),
                json!({
                    "tcp_1_gbps": of(TCP),
                    "tcp_4_gbps": of(TCP_4),
                    "udp_64_pps": of(PPS),
                    "udp_1400_pps": of(PPS_1400),
                    "rr_p50_us": of(P50),
                    "rr_p99_us": of(|s| s.rr_p99_us),
                }),
            );
        }
        Value::Object(medians)
    }

    /// Two tables: figures with ratios to the kernel, and what was aimed at.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "`{}`\n", self.command());
        if let Some(reason) = self.void() {
            let _ = writeln!(out, "**VOID: {reason}.**\n");
        }
        out.push_str(
            "| path, tenant MTU 1500 | 1 TCP stream, Gb/s | 4 TCP streams, Gb/s | 64-byte UDP, kpps | 1400-byte UDP, kpps \
             | round trip p50, us | p99, us |\n|---|---|---|---|---|---|---|\n",
        );
        for peer in self.peers {
            let cell = |figure: Figure, unit: f64| {
                let value = median(peer.samples.iter().map(figure).collect());
                let ratio = self.figure(Setup::KernelUncut, figure).map(|k| value / k);
                let ratio = ratio.map_or(String::new(), |r| format!(" ({r:.2})"));
                format!("{:.1}{ratio}", value / unit)
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                peer.setup.title(),
                cell(TCP, 1.0),
                cell(TCP_4, 1.0),
                cell(PPS, 1e3),
                cell(PPS_1400, 1e3),
                cell(P50, 1.0),
                cell(|s| s.rr_p99_us, 1.0),
            );
        }
        out.push_str(
            "\nMedians; in brackets the ratio to the first kernel row. \"Uncut\" frames cross a veth whole, which no \
             physical wire does.\n\n| aim | ours / peer | wanted | got | |\n|---|---|---|---|---|\n",
        );
        for aim in &AIMS {
            let Some((ours, got)) = self.best(aim) else { continue };
            let met = if aim.at_most { got <= aim.wanted } else { got >= aim.wanted };
            let _ = writeln!(
                out,
                "| {} | {} / {} | {} {:.2} | {got:.2} | {} |",
                aim.what,
                ours.name(),
                aim.theirs.name(),
                if aim.at_most { "at most" } else { "at least" },
                aim.wanted,
                if met { "met" } else { "missed" },
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(setup: Setup, pps: &[f64]) -> Peer {
        let sample = |&udp_64_pps: &f64| Sample {
            tcp_1_gbps: 1.0,
            tcp_4_gbps: 1.0,
            udp_64_pps,
            udp_1400_pps: 1.0,
            rr_p50_us: 10.0,
            rr_p99_us: 20.0,
        };
        Peer { setup, name: setup.name(), samples: pps.iter().map(sample).collect() }
    }

    #[test]
    fn a_run_in_which_the_limit_is_too_low_is_void() {
        let kernel = || peer(Setup::KernelUncut, &[100.0, 90.0, 400.0]);
        let good = [kernel(), peer(Setup::RawNative, &[240.0, 240.0, 1.0])];
        assert_eq!(Report::new(&good, 3).void(), None);
        let bad = [kernel(), peer(Setup::RawNative, &[239.0])];
        assert!(Report::new(&bad, 3).markdown().contains("**VOID: raw-native reached 2.39"));
        assert!(Report::new(&[kernel()], 3).void().is_some());
    }

    #[test]
    fn the_table_has_ratios_to_the_kernel_and_the_command_names_what_is_missing() {
        let peers = [peer(Setup::KernelUncut, &[100e3]), peer(Setup::Culvert, &[250e3])];
        let report = Report::new(&peers, 3);
        assert!(report.markdown().contains("| 250.0 (2.50) |"), "{}", report.markdown());
        assert!(report.command().contains("--without ovs"));
    }

    #[test]
    fn the_median_of_an_even_number_is_between() {
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
