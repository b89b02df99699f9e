//! The loss laboratory.

use std::fs;

use crate::Loss;
use crate::run::{Result, command, output, root, run, target_folder};

/// The page that has the tables, between these lines.
const PAGE: &str = "docs/loss.md";
const BEGIN: &str = "<!-- cargo xtask bench loss writes what follows -->\n";
const END: &str = "<!-- up to here -->\n";

/// Builds in release; writes the tables of the model and its curves, or measures between hosts.
pub(crate) fn loss(options: &Loss) -> Result {
    super::release()?;
    let program = target_folder().join("release/culvert-bench");
    let mut bench = command(&program.display().to_string());
    bench.args(["loss", "--seed", &options.seed.to_string()]);
    if let Some(secs) = options.hosts {
        return run(bench.args(["--hosts", &secs.to_string()]));
    }
    if options.lengths {
        return run(bench.arg("--lengths"));
    }
    bench.args(["--frames", &options.frames.to_string()]);
    bench.arg("--plots").arg(root().join("docs/performance"));
    let tables = output(&mut bench)?;
    let path = root().join(PAGE);
    let page = fs::read_to_string(&path).map_err(|e| format!("{PAGE}: {e}"))?;
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| format!("{PAGE} has no place for the tables"))?;
    fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}"))
        .map_err(|e| format!("{PAGE}: {e}"))
}
