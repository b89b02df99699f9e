//! Fuzzing by cargo-fuzz, for every crate that has a `fuzz` folder.

use std::path::PathBuf;

use crate::run::{Result, cargo, is_there, root, run};

/// Folders with fuzz targets.
const CRATES: [&str; 3] = ["dataplane/wire", "control/gateway/nbd", "control/gateway/volume"];

/// Runs `target`, or every target, for `secs` seconds each.
pub(crate) fn fuzz(target: Option<&str>, secs: u64) -> Result {
    if !is_there("cargo-fuzz", &["--version"]) {
        return Err(
            "cargo-fuzz is not installed: `cargo install cargo-fuzz`; it needs a nightly toolchain"
                .to_owned(),
        );
    }
    let mut found = false;
    for (folder, name) in targets()? {
        if target.is_none_or(|wanted| wanted == name) {
            found = true;
            run(cargo()
                .current_dir(folder)
                .args(["+nightly", "fuzz", "run", &name, "--"])
                .arg(format!("-max_total_time={secs}")))?;
        }
    }
    if found { Ok(()) } else { Err(format!("no fuzz target {}", target.unwrap_or("at all"))) }
}

fn targets() -> Result<Vec<(PathBuf, String)>> {
    let mut targets = Vec::new();
    for name in CRATES {
        let folder = root().join(name);
        let sources = folder.join("fuzz/fuzz_targets");
        let entries =
            std::fs::read_dir(&sources).map_err(|e| format!("{}: {e}", sources.display()))?;
        for entry in entries {
            let path = entry.map_err(|e| e.to_string())?.path();
            if path.extension().is_some_and(|e| e == "rs")
                && let Some(stem) = path.file_stem()
            {
                targets.push((folder.clone(), stem.to_string_lossy().into_owned()));
            }
        }
    }
    targets.sort();
    Ok(targets)
}
