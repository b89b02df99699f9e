//! The culvert command line: manages what is wanted through culvertd, and shows what a dataplane does.
//!
//! Each verb has a module; [`client`] reaches culvertd and the dataplane, [`output`] prints, [`error`] knows the exit
//! codes.

mod apply;
mod args;
mod client;
mod error;
mod explain_drop;
mod export;
mod health;
mod manage;
mod manual;
mod objects;
mod output;
mod rates;
mod remote;
mod show;
mod sight;
mod stats;
mod stats_watch;
mod top;
mod traps;
mod volume;

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
        Verb::Format(verb) => manage::format::run(args, verb).await,
        Verb::Host(verb) => manage::host::run(args, verb).await,
        Verb::Queue(queue) => manage::queue::run(args, queue).await,
        Verb::Volume(volume) => volume::run(args, volume).await,
        Verb::Cache(cache) => volume::cache::run(args, cache).await,
        Verb::Show(show) => show::run(args, show).await,
        Verb::Stats(stats) => match stats.watch {
            None => stats::run(args, stats).await,
            Some(seconds) => stats_watch::run(args, stats.drops, seconds).await,
        },
        Verb::Traps(traps) => traps::run(args, traps).await,
        Verb::Capture(capture) => sight::capture::run(args, capture).await,
        Verb::Trace(trace) => sight::trace::run(args, trace).await,
        Verb::Explain(explain) => sight::explain::run(args, explain).await,
        Verb::ExplainDrop(explain) => explain_drop::run(args, explain),
        Verb::Top(top) => top::run(args, top).await,
        Verb::Health(health) => health::run(args, health).await,
        Verb::Completions(completions) => manual::completions(completions.shell),
        Verb::Man(man) => manual::pages(&man.dir),
    }
}
