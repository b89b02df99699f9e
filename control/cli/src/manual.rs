//! What goes with the command when it is installed: completion scripts and manual pages.

use std::io;
use std::path::Path;

use clap::CommandFactory;

use crate::args::Args;
use crate::error::CliError;
use crate::output::print;

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "culvert", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a page for the command and one for each of its verbs.
pub(crate) fn pages(dir: &Path) -> Result<(), CliError> {
    let failed = |error: io::Error| CliError::Other(format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Args::command(), dir).map_err(failed)
}
