//! The Debian package of the programs that the tests use.

use std::path::PathBuf;
use std::process::Command;

use crate::culvert::binary;
use crate::process::run_command;

/// Builds the package as `cargo xtask deb` does.
///
/// # Panics
/// With what it says, if it cannot be built.
pub fn build() -> PathBuf {
    let xtask = binary("xtask");
    run_command(Command::new(&xtask).args(["deb", "--dev"])).unwrap_or_else(|e| panic!("{e}"));
    let path = xtask.with_file_name("../deb/culvert.deb");
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
