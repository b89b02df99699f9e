//! `culvert-gateway`: serves cached volumes over NBD.

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use culvert_gateway::serve::serve;
use culvert_gateway::settings::{LogFormat, Options, Settings};

/// Serves cached volumes over NBD.
#[derive(Parser, Debug)]
#[command(name = "culvert-gateway", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Serve the volumes of a cache, and make the cache if it does not exist.
    Serve(Box<Options>),
}

fn main() -> ExitCode {
    let Verb::Serve(options) = Arguments::parse().verb;
    match run(*options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-gateway: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let settings = Settings::gather(options)?;
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log)?;
    // Standard output may be the client's.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(&settings))?;
    Ok(())
}
