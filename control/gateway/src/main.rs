//! `culvert-gateway`: serves cached volumes over NBD.

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use culvert_gateway::progress::LogWriter;
use culvert_gateway::serve::serve;
use culvert_gateway::settings::{LogFormat, Options, Settings, SettingsError};
use tracing_subscriber::EnvFilter;

/// Exit code for options or settings that are not legal; clap's own, too.
const WRONG_USAGE: u8 = 2;

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
    let (settings, filter) = match gather(*options) {
        Ok(wanted) => wanted,
        Err(error) => {
            tell(&error);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match run(&settings, filter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&*error);
            ExitCode::FAILURE
        }
    }
}

fn tell(error: &dyn Error) {
    let mut told = error.to_string();
    eprintln!("culvert-gateway: {told}");
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Most errors say their cause in their own words.
        if !told.contains(&text) {
            eprintln!("  because: {text}");
            told = text;
        }
        source = cause.source();
    }
}

fn gather(options: Options) -> Result<(Settings, EnvFilter), SettingsError> {
    let settings = Settings::gather(options)?;
    let filter = settings.filter()?;
    Ok((settings, filter))
}

fn run(settings: &Settings, filter: EnvFilter) -> Result<(), Box<dyn Error>> {
    // Standard output may be the client's.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| LogWriter);
    match settings.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(settings))?;
    Ok(())
}
