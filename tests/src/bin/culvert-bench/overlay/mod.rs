//! Culvert beside its peers: every one set up, measured and removed in turn, round after round, on the same machine.

use std::path::PathBuf;

use serde::Serialize;

pub(crate) mod measure;
mod ovs;
mod report;
mod setup;

use measure::Sample;
use setup::Setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    secs: u64,
    /// How often each peer has its turn; the tables show medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Go on without this peer; otherwise one that cannot be measured fails the run. May be repeated.
    #[arg(long, value_name = "PEER", value_enum)]
    without: Vec<Setup>,
    /// Also write all samples to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// All samples of one peer.
#[derive(Serialize)]
pub(crate) struct Peer {
    #[serde(skip)]
    setup: Setup,
    name: &'static str,
    samples: Vec<Sample>,
}

fn measure_once(setup: Setup, secs: u64) -> Result<Sample, String> {
    let mut running = setup.build();
    let sample = measure::sample(&running, secs).map_err(|e| e.to_string())?;
    if running.is_whole() { Ok(sample) } else { Err("one of its processes ended".to_owned()) }
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    let mut peers: Vec<Peer> = Setup::ALL
        .iter()
        .filter(|setup| !args.without.contains(setup))
        .map(|&setup| Peer { setup, name: setup.name(), samples: Vec::new() })
        .collect();
    for round in 1..=args.rounds {
        for peer in &mut peers {
            eprintln!("round {round} of {}: {}", args.rounds, peer.name);
            let (setup, secs) = (peer.setup, args.secs);
            // The harness panics where a topology cannot be built; here that is one missing peer.
            let sample = std::panic::catch_unwind(|| measure_once(setup, secs))
                .unwrap_or_else(|_| Err("it cannot be set up, see above".to_owned()))
                .map_err(|e| {
                    let name = setup.name();
                    format!("peer {name}: {e}; `--without {name}` measures the others")
                })?;
            peer.samples.push(sample);
        }
    }
    let report = report::Report::new(&peers, args.secs);
    print!("{}", report.markdown());
    if let Some(path) = &args.json {
        let document = serde_json::json!({
            "command": report.command(),
            "void": report.void(),
            "medians": report.medians(),
            "peers": peers,
        });
        std::fs::write(path, format!("{document:#}\n"))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}
