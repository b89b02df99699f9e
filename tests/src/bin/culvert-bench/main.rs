//! Load, receivers and yardsticks for measurements, and the comparison of overlays that uses them.
//!
//! Every command works in the network namespace it is started in and prints one JSON document, except `overlay`,
//! `scale`, `segments` and `loss`, which print Markdown tables, and make their own namespaces where they need any.

use clap::{Parser, Subcommand};

mod count;
mod flood;
mod loss;
mod overlay;
mod raw;
mod rr;
mod scale;
mod segments;

/// Measure packet paths.
#[derive(Parser)]
#[command(name = "culvert-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send UDP datagrams as fast as one or more threads can.
    Flood(flood::Args),
    /// Count arriving frames by an XDP program, and drop them.
    Count(count::Args),
    /// Request and response: latency percentiles. Without an address to connect to, the server.
    Rr(rr::Args),
    /// Forward frames between two devices by `AF_XDP`, unchanged: the limit of what any overlay can reach.
    Raw(raw::Args),
    /// Compare Culvert with its peers, side by side in one run.
    Overlay(overlay::Args),
    /// What formats make of what a network loses.
    Loss(loss::Args),
    /// What a thousand ports and a hundred thousand mappings cost.
    Scale(scale::Args),
    /// Hand over segments copied, or with their payload in place.
    Segments(segments::Args),
}

/// What a command ends with, for `main` to print.
type CommandResult = Result<(), Box<dyn std::error::Error>>;

fn print_json(value: &serde_json::Value) {
    println!("{value}");
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Flood(args) => flood::main(&args),
        Command::Count(args) => count::main(&args),
        Command::Rr(args) => rr::main(&args),
        Command::Raw(args) => raw::main(&args),
        Command::Overlay(args) => overlay::main(&args),
        Command::Loss(args) => loss::main(&args),
        Command::Scale(args) => scale::main(&args),
        Command::Segments(args) => segments::main(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("culvert-bench: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
