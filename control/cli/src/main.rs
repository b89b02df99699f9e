//! The culvert command line: manages what is wanted through culvertd, and shows what a dataplane does.
//!
//! Each verb has a module; [`client`] reaches culvertd and the dataplane, [`output`] prints, [`error`] knows the exit
//! codes.

mod apply;
mod args;
mod client;
mod error;
mod export;
mod manage;
mod manual;
mod objects;
mod output;
mod show;
mod sight;
mod stats;
mod traps;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Verb};
use crate::error::CliError;

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&args)),
        Err(error) => Err(CliError::Other(format!("cannot start: {error}"))),
    };
    match result {
        // Whoever reads us has seen enough.
        Ok(()) | Err(CliError::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(args: &Args) -> Result<(), CliError> {
    match &args.verb {
        Verb::Apply(apply) => apply::run(args, apply).await,
        Verb::Export(export) => export::run(args, export).await,
        Verb::Port(verb) => manage::run(args, verb).await,
        Verb::Vnet(verb) => manage::run(args, verb).await,
        Verb::Route(verb) => manage::run(args, verb).await,
        Verb::Mapping(verb) => manage::run(args, verb).await,
        Verb::Ingress(verb) => manage::run(args, verb).await,
        Verb::Acl(verb) => manage::run(args, verb).await,
        Verb::Host(verb) => manage::host::run(args, verb).await,
        Verb::Show(show) => show::run(args, show).await,
        Verb::Stats(stats) => stats::run(args, stats).await,
        Verb::Traps(traps) => traps::run(args, traps).await,
        Verb::Capture(capture) => sight::capture::run(args, capture).await,
        Verb::Trace(trace) => sight::trace::run(args, trace).await,
        Verb::Explain(explain) => sight::explain::run(args, explain).await,
        Verb::Completions(completions) => manual::completions(completions.shell),
        Verb::Man(man) => manual::pages(&man.dir),
    }
}
