//! All cells of the laboratory, as Markdown and as curves.

use std::fmt::Write as _;

use culvert_tests::weather::{Loss, Weather};
use culvert_wire::shard::{Coding, Policy, Shape};

use super::frames::IPERF3;
use super::placement::{Choice, kept};
use super::plot::{Curve, Panel, svg};
use super::predict::{interval, too_few};
use super::simulate::{BLOCK, Format, MAX_SEGMENT, Outcome, Sizes, run};

/// Of all losses.
const RATES: [f64; 4] = [0.001, 0.01, 0.05, 0.1];
/// Packets of a burst; 0: independent losses.
const BURSTS: [f64; 3] = [0.0, 3.0, 10.0];
/// Segments of a frame.
const SIZES: [usize; 4] = [2, 4, 8, 45];
/// Codes beside the one by the frame's length.
const CODES: [(u8, u8); 5] = [(1, 2), (2, 4), (4, 8), (4, 16), (8, 16)];
/// Burst lengths of the comparison of placements.
const LENGTHS: [f64; 5] = [2.0, 3.0, 5.0, 10.0, 20.0];
/// Frames of it for each of a cell's.
const PLACED: u64 = 20;

fn loss(rate: f64, mean: f64) -> Loss {
    if mean == 0.0 { Loss::Independent { rate } } else { Loss::Bursts { rate, mean } }
}

fn formats() -> Vec<(String, Format)> {
    let fixed = CODES.iter().filter_map(|(k, n)| {
        let coding = Coding::new(*k, *n).ok()?;
        Some((format!("`shard`, {k} of {n}"), Format::Shard(Policy::Fixed(coding))))
    });
    [("`vxlan`".to_owned(), Format::Vxlan), ("`stt`".to_owned(), Format::Stt)]
        .into_iter()
        .chain([("`shard`, by length".to_owned(), Format::Shard(Policy::BySegments))])
        .chain(fixed)
        .collect()
}

/// One format at one length, by burst length and rate.
struct Row {
    name: String,
    format: Format,
    // None: iperf3's lengths.
    segments: Option<usize>,
    by_bursts: Vec<[Outcome; RATES.len()]>,
    disturbed: Outcome,
}

/// Frames kept by each choice, by burst length, of as many frames.
struct Placed {
    shape: Shape,
    of: u64,
    by_length: Vec<[u64; 3]>,
}

/// Everything.
pub(crate) struct Cells {
    frames: u64,
    seed: u64,
    rows: Vec<Row>,
    placed: Vec<Placed>,
}

/// A frame of so many full segments.
fn shape(segments: usize, coding: Coding) -> Option<Shape> {
    let length = (segments * MAX_SEGMENT).min(65_495);
    Shape::new(length as u16, MAX_SEGMENT as u16, coding, BLOCK as u16).ok()
}

impl Cells {
    pub(crate) fn run(frames: u64, seed: u64) -> Self {
        let mut rows = Vec::new();
        for segments in SIZES.map(Some).into_iter().chain([None]) {
            let mut done = Vec::new();
            for (name, format) in formats() {
                // Of few segments several codes make the same.
                if let (Format::Shard(policy), Some(segments @ ..=8)) = (format, segments) {
                    let coding = policy.coding(segments);
                    if done.contains(&coding) {
                        continue;
                    }
                    done.push(coding);
                }
                eprintln!("{name}, {} segments", length_of(segments));
                let sizes = segments.map_or(Sizes::Mix(&IPERF3), Sizes::Segments);
                let cell = |weather| run(format, sizes, weather, frames, seed);
                let by_bursts = BURSTS
                    .map(|mean| RATES.map(|rate| cell(Weather::losing(loss(rate, mean)))))
                    .into();
                let loss = Loss::Independent { rate: 0.01 };
                let disturbed = cell(Weather { loss, repeated: 0.02, overtaken: 0.05 });
                rows.push(Row { name, format, segments, by_bursts, disturbed });
            }
        }
        let placed = [(8, 2, 4), (45, 4, 8)]
            .into_iter()
            .filter_map(|(segments, k, n)| {
                let shape = shape(segments, Coding::new(k, n).ok()?)?;
                let of = frames * PLACED;
                let by_length = LENGTHS
                    .map(|mean| {
                        let loss = loss(0.05, mean);
                        Choice::ALL.map(|choice| kept(choice, &shape, loss, of as u32, seed))
                    })
                    .into();
                Some(Placed { shape, of, by_length })
            })
            .collect();
        Self { frames, seed, rows, placed }
    }

    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ =
            writeln!(out, "`cargo xtask bench loss --frames {} --seed {}`", self.frames, self.seed);
        self.rebuilt(&mut out);
        self.usable(&mut out);
        self.disturbed(&mut out);
        tolerance(&mut out);
        self.placement(&mut out);
        out
    }

    /// Counted beside predicted.
    fn rebuilt(&self, out: &mut String) {
        out.push_str("\n### Frames of which anything can be delivered\n\n");
        let (mut inside, mut all) = (0, 0);
        for (at, mean) in BURSTS.iter().enumerate() {
            head(out, *mean, "frames rebuilt, %: counted (95 % interval), predicted");
            for row in self.rows.iter().filter(|row| row.format != Format::Vxlan) {
                let cells = row.by_bursts[at].iter().map(|cell| {
                    let [low, high] = interval(cell.rebuilt, cell.frames);
                    if *mean == 0.0 {
                        all += 1;
                        // What is computed of whole numbers meets its own bounds.
                        let slack = 1e-9;
                        let fits = low - slack <= cell.predicted && cell.predicted <= high + slack;
                        inside += u32::from(fits);
                    }
                    format!(
                        "{:.2} ({:.2}-{:.2}), {:.2}",
                        cell.share() * 100.0,
                        low * 100.0,
                        high * 100.0,
                        cell.predicted * 100.0
                    )
                });
                line(out, row, cells);
            }
        }
        let _ = writeln!(
            out,
            "\nOf the {all} counts with independent losses {inside} have the prediction in their interval. \
             Frames in a row share bursts, so that there the intervals are narrower than the truth."
        );
    }

    /// What is delivered of what arrived.
    fn usable(&self, out: &mut String) {
        out.push_str("\n### Payload delivered, of payload that arrived\n\n");
        for (at, mean) in BURSTS.iter().enumerate() {
            head(out, *mean, "payload delivered of payload arrived, %");
            for row in &self.rows {
                let cells = row.by_bursts[at].iter();
                line(out, row, cells.map(|cell| format!("{:.3}", cell.usable() * 100.0)));
            }
        }
    }

    /// The same when packets also come twice and late.
    fn disturbed(&self, out: &mut String) {
        out.push_str(
            "\n### With packets repeated and overtaken\n\n\
             1 % independent loss; 2 % of the packets come twice, up to 8 later ones overtake 5 %.\n\n\
             | format | segments | frames rebuilt, % | predicted without the rest | payload delivered \
             of payload arrived, % |\n|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let cell = &row.disturbed;
            let rebuilt = match row.format {
                Format::Vxlan => "- | -".to_owned(),
                _ => format!("{:.2} | {:.2}", cell.share() * 100.0, cell.predicted * 100.0),
            };
            let usable = cell.usable() * 100.0;
            let _ = writeln!(
                out,
                "| {} | {} | {rebuilt} | {usable:.3} |",
                row.name,
                length_of(row.segments)
            );
        }
    }

    fn placement(&self, out: &mut String) {
        out.push_str(
            "\n### Shares in strata, anywhere, in a row\n\n\
             Frames that keep fewer than k shares when 5 % of the packets are lost in bursts.\n\n\
             | segments, code | packets of a burst | strata, % | predicted | random, % | consecutive, % |\n\
             |---|---|---|---|---|---|\n",
        );
        for placed in &self.placed {
            let (k, n) = (placed.shape.coding().k(), placed.shape.coding().n());
            for (mean, kept) in LENGTHS.iter().zip(&placed.by_length) {
                let lost = |kept: u64| 100.0 * (placed.of - kept) as f64 / placed.of as f64;
                let [strata, random, consecutive] = kept.map(lost);
                let predicted = 100.0 * too_few(&placed.shape, loss(0.05, *mean));
                let segments = placed.shape.segments();
                let _ = writeln!(
                    out,
                    "| {segments}, {k} of {n} | {mean} | {strata:.3} | {predicted:.3} | {random:.3} | {consecutive:.3} |"
                );
            }
        }
    }

    /// Payload that arrived for nothing, at 45 segments.
    pub(crate) fn loss_svg(&self) -> String {
        let panels: Vec<_> = BURSTS
            .iter()
            .enumerate()
            .map(|(at, mean)| {
                let curves = self.rows.iter().filter(|row| row.segments == Some(45)).map(|row| {
                    let shares = row.by_bursts[at].iter().map(|cell| 1.0 - cell.usable()).collect();
                    Curve { name: row.name.replace('`', ""), shares }
                });
                Panel {
                    title: match mean {
                        0.0 => "payload that arrived for nothing".to_owned(),
                        _ => format!("in bursts of {mean}"),
                    },
                    places: RATES.map(|rate| format!("{} %", rate * 100.0)).into(),
                    curves: curves.collect(),
                }
            })
            .collect();
        svg("packets lost, frames of 45 segments", &panels)
    }

    /// Frames lost by each choice of places.
    pub(crate) fn placement_svg(&self) -> String {
        let panels: Vec<_> = self
            .placed
            .iter()
            .map(|placed| {
                let (k, n) = (placed.shape.coding().k(), placed.shape.coding().n());
                let curves = ["strata", "random", "consecutive"].iter().enumerate();
                let curves = curves.map(|(at, name)| Curve {
                    name: (*name).to_owned(),
                    shares: placed
                        .by_length
                        .iter()
                        .map(|kept| 1.0 - kept[at] as f64 / placed.of as f64)
                        .collect(),
                });
                Panel {
                    title: format!(
                        "frames lost: {} segments, {k} of {n} shares",
                        placed.shape.segments()
                    ),
                    places: LENGTHS.map(|mean| mean.to_string()).into(),
                    curves: curves.collect(),
                }
            })
            .collect();
        svg("packets of a burst, 5 % of all lost", &panels)
    }
}

fn head(out: &mut String, mean: f64, what: &str) {
    let bursts = match mean {
        0.0 => "Independent losses".to_owned(),
        _ => format!("Bursts of {mean} packets on the average"),
    };
    let _ = writeln!(out, "\n{bursts}: {what}.\n");
    let rates: Vec<_> = RATES.iter().map(|rate| format!("{} %", rate * 100.0)).collect();
    let _ = writeln!(out, "| format | segments | {} |", rates.join(" | "));
    let _ = writeln!(out, "|---|---|{}", "---|".repeat(RATES.len()));
}

fn length_of(segments: Option<usize>) -> String {
    segments.map_or_else(|| "iperf3's".to_owned(), |segments| segments.to_string())
}

fn line(out: &mut String, row: &Row, cells: impl Iterator<Item = String>) {
    let cells: Vec<_> = cells.collect();
    let _ = writeln!(out, "| {} | {} | {} |", row.name, length_of(row.segments), cells.join(" | "));
}

/// What a code costs, and what it bears.
fn tolerance(out: &mut String) {
    out.push_str(
        "\n### What a code costs and what it bears\n\n\
         A frame of 45 segments, computed: bytes of all shares, and frames that keep fewer than k of them.\n\n\
         | code | bytes of shares | 1 % | 5 % | 10 % | 20 % | 10 %, bursts of 10 |\n|---|---|---|---|---|---|---|\n",
    );
    let losses = [0.01, 0.05, 0.1, 0.2].map(|rate| loss(rate, 0.0)).into_iter();
    let losses: Vec<_> = losses.chain([loss(0.1, 10.0)]).collect();
    for (k, n) in [(1, 1), (1, 2), (1, 4), (2, 4), (2, 8), (4, 8), (4, 12), (4, 16), (8, 16)] {
        let Some(shape) = Coding::new(k, n).ok().and_then(|coding| shape(45, coding)) else {
            continue;
        };
        let bytes = usize::from(n) * shape.share_len();
        let cells = losses.iter().map(|loss| format!("{:.1e}", too_few(&shape, *loss)));
        let cells: Vec<_> = cells.collect();
        let _ = writeln!(out, "| {k} of {n} | {bytes} | {} |", cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_laboratory_has_every_table_and_every_curve() {
        let cells = Cells::run(20, 1);
        let text = cells.markdown();
        assert_eq!(text.matches("\n### ").count(), 5, "{text}");
        for (name, _) in formats() {
            assert!(text.contains(&format!("| {name} | 45 |")), "{name}");
        }
        assert!(text.contains("| iperf3's |") && !text.contains("NaN"), "{text}");
        assert_eq!(cells.loss_svg().matches("<polyline").count(), 3 * formats().len());
        assert_eq!(cells.placement_svg().matches("<polyline").count(), 2 * 3);
    }
}
