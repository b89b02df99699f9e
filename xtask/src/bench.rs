//! Measurements.

use crate::Overlay;
use crate::run::{Result, cargo, command, run, target_folder};

/// Builds in release and compares Culvert with its peers.
pub(crate) fn overlay(options: &Overlay) -> Result {
    run(cargo().args(["build", "--release", "--workspace"]))?;
    let program = target_folder().join("release/culvert-bench");
    let mut bench = command(&program.display().to_string());
    bench.args(["overlay", "--secs", &options.secs.to_string()]);
    bench.args(["--rounds", &options.rounds.to_string()]);
    for peer in &options.without {
        bench.args(["--without", peer]);
    }
    if let Some(file) = &options.json {
        let file = std::path::absolute(file).map_err(|e| format!("{}: {e}", file.display()))?;
        bench.arg("--json").arg(file);
    }
    run(&mut bench)
}
