//! The loss laboratory: what formats make of what a network loses.
//!
//! | file | what |
//! |---|---|
//! | `simulate.rs` | frames in memory, by the encoder and receivers that workers use |
//! | `predict.rs` | what theory says of them |
//! | `placement.rs` | where shares are put, and what bursts make of it |
//! | `hosts.rs` | iperf3 between two hosts with weather in the wire |
//! | `lengths.rs` | frames of chosen lengths between them |
//! | `frames.rs` | how long iperf3's frames are |
//! | `tables.rs` | what is printed |
//! | `plot.rs` | curves |

use std::path::PathBuf;

mod frames;
mod hosts;
mod lengths;
mod placement;
mod plot;
mod predict;
mod simulate;
mod tables;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Frames of each cell.
    #[arg(long, default_value_t = 10_000)]
    frames: u64,
    /// Where the random numbers begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Put the curves into this folder, as `loss.svg` and `placement.svg`.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Measure iperf3 between two hosts instead, so many seconds in each weather.
    #[arg(long, value_name = "SECONDS")]
    hosts: Option<u32>,
    /// Send frames of chosen lengths between two hosts instead.
    #[arg(long, conflicts_with = "hosts")]
    lengths: bool,
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    if let Some(secs) = args.hosts {
        return hosts::main(secs, args.seed);
    }
    if args.lengths {
        return lengths::main(args.seed);
    }
    let cells = tables::Cells::run(args.frames, args.seed);
    print!("{}", cells.markdown());
    if let Some(folder) = &args.plots {
        for (name, svg) in
            [("loss.svg", cells.loss_svg()), ("placement.svg", cells.placement_svg())]
        {
            let path = folder.join(name);
            std::fs::write(&path, svg).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}
