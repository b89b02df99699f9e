//! Project tasks. `cargo xtask <verb>`; each verb is a list of commands that one could type.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod bench;
mod ci;
mod deb;
mod fuzz;
mod lab;
mod run;

/// Work on Culvert.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Everything that must pass before a change is merged: format, lints, licences, scripts, documentation, all tests.
    Ci,
    /// The end-to-end tests alone, as root.
    E2e {
        /// All combinations of families, sizes and offloads instead of a cover, and then again in the shard format.
        #[arg(long)]
        full: bool,
        /// Those that do not depend on VXLAN, in this format instead: geneve, stt or shard.
        #[arg(long)]
        format: Option<String>,
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Measurements, in release.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Tests in a guest with another kernel, for what this machine's kernel lacks.
    Lab {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Build the Debian package; it is put into the folder `deb` of the target folder.
    Deb {
        /// Of the programs that `cargo build --workspace` built, as tests use them.
        #[arg(long)]
        dev: bool,
    },
    /// Fuzz one parser, or each in turn.
    Fuzz(Fuzz),
}

#[derive(Subcommand)]
enum Bench {
    /// Culvert beside its peers in one run; prints Markdown.
    Overlay(Overlay),
    /// What it costs to cut a superframe and to merge its frames again, in every format, in memory; prints Markdown.
    Engine,
    /// What formats make of what a network loses; writes tables and curves into the documentation.
    Loss(Loss),
    /// What many ports and mappings cost: to apply, to change, in memory, in packets; prints Markdown.
    Scale(Scale),
    /// Segments copied into frames of their own beside payload sent from where it lies; prints Markdown.
    Segments,
    /// The storage gateway beside `nbdkit file` and `qemu-nbd`; prints Markdown.
    Volume(bench::Volume),
}

/// Options of `fuzz`.
#[derive(Args)]
struct Fuzz {
    /// Name of the target; by default all.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    secs: u64,
    /// Add inputs that reach new code to the corpus in the repository.
    #[arg(long)]
    keep: bool,
}

/// Options of `bench overlay`.
#[derive(Args)]
struct Overlay {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    secs: u64,
    /// How often each peer has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Go on without this peer. May be repeated.
    #[arg(long, value_name = "PEER")]
    without: Vec<String>,
    /// Also write all samples to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Options of `bench loss`.
#[derive(Args)]
struct Loss {
    /// Frames of each cell.
    #[arg(long, default_value_t = 10_000)]
    frames: u64,
    /// Where the random numbers begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Instead, so many seconds of iperf3 between two hosts in each weather, as root; prints Markdown.
    #[arg(long, value_name = "SECONDS")]
    hosts: Option<u64>,
    /// Instead, frames of chosen lengths between two hosts in each weather, as root; prints Markdown.
    #[arg(long, conflicts_with = "hosts")]
    lengths: bool,
}

/// Options of `bench scale`.
#[derive(Args)]
struct Scale {
    /// Seconds of each measurement of packets.
    #[arg(long, default_value_t = 1)]
    secs: u64,
    /// How often packets are counted beside few ports and beside many.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Idle ports.
    #[arg(long, default_value_t = 1000)]
    ports: usize,
    /// Mappings.
    #[arg(long, default_value_t = 100_000)]
    mappings: usize,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Ci => ci::ci(),
        Verb::E2e { full, format, filter } => ci::e2e(full, format.as_deref(), filter.as_deref()),
        Verb::Bench { what: Bench::Overlay(options) } => bench::overlay(&options),
        Verb::Bench { what: Bench::Engine } => bench::engine(),
        Verb::Bench { what: Bench::Loss(options) } => bench::loss(&options),
        Verb::Bench { what: Bench::Scale(options) } => bench::scale(&options),
        Verb::Bench { what: Bench::Segments } => bench::segments(),
        Verb::Bench { what: Bench::Volume(options) } => bench::volume(&options),
        Verb::Lab { filter } => lab::lab(filter.as_deref()),
        Verb::Deb { dev } => deb::deb(dev),
        Verb::Fuzz(options) => fuzz::fuzz(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}
