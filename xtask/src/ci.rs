//! Checks and tests.

use crate::fuzz;
use crate::run::{Result, cargo, command, root, run};

/// How long CI runs each fuzz target: enough to replay the corpus and to meet what a parser cannot bear at all.
const FUZZ_SECS: u64 = 3;

/// Everything that must pass.
pub(crate) fn ci() -> Result {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    scripts()?;
    run(cargo().args(["deny", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]))?;
    run(cargo()
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    fuzz::fuzz_in_ci(FUZZ_SECS)?;
    // Installs what is missing, builds, runs all tests, and lists at the end what was skipped.
    run(command("scripts/test").args(["--profile", "ci"]))
}

/// Shell scripts have no compiler; shellcheck is theirs.
fn scripts() -> Result {
    let mut scripts = vec![".ci/run".to_owned()];
    let folder = root().join("scripts");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.starts_with("#!/usr/bin/env bash") {
            scripts.push(path.display().to_string());
        }
    }
    run(command("shellcheck").args(scripts))?;
    run(command("shellcheck").args([
        "--shell",
        "sh",
        "tests/lab/init",
        "tests/lab/start",
        "tests/units/boot",
    ]))
}

/// The end-to-end tests alone.
pub(crate) fn e2e(full: bool, filter: Option<&str>) -> Result {
    run(cargo().args(["build", "--workspace"]))?;
    let mut nextest = cargo();
    nextest.args(["nextest", "run", "--package", "culvert-tests", "--test", "*"]);
    if full {
        nextest.env("CULVERT_E2E", "full");
    }
    nextest.args(filter);
    run(&mut nextest)
}
