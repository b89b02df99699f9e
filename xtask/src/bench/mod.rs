//! Measurements.

mod engine;
mod loss;
mod volume;

pub(crate) use self::engine::engine;
pub(crate) use self::loss::loss;
pub(crate) use self::volume::{Volume, volume};
use crate::run::{Result, cargo, command, run, target_folder};
use crate::{Overlay, Scale};

/// Builds all programs in release: all at once, for what they depend on is built for the same features then, and for one
/// measurement as for the next.
fn release() -> Result {
    run(cargo().args(["build", "--release", "--workspace", "--bins"]))
}

/// Builds in release and compares Culvert with its peers.
pub(crate) fn overlay(options: &Overlay) -> Result {
    release()?;
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

/// Builds in release and measures what many ports and mappings cost.
pub(crate) fn scale(options: &Scale) -> Result {
    release()?;
    let program = target_folder().join("release/culvert-bench");
    let mut bench = command(&program.display().to_string());
    bench.args(["scale", "--secs", &options.secs.to_string()]);
    bench.args(["--rounds", &options.rounds.to_string()]);
    bench.args(["--ports", &options.ports.to_string()]);
    bench.args(["--mappings", &options.mappings.to_string()]);
    run(&mut bench)
}

/// Builds in release and measures how segments are best handed to the kernel.
pub(crate) fn segments() -> Result {
    release()?;
    let program = target_folder().join("release/culvert-bench");
    run(command(&program.display().to_string()).arg("segments"))
}
