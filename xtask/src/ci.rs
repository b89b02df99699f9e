//! Checks and tests.

use crate::run::{Result, cargo, command, is_there, root, run};

/// Tools that a machine may lack, and why CI goes on without them.
const MAY_BE_ABSENT: [(&str, &str); 1] = [(
    "cargo-deny",
    "licences and sources change only with Cargo.lock; the tool takes minutes to build where it is not packaged",
)];

/// Everything that must pass.
pub(crate) fn ci() -> Result {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    scripts()?;
    if is_there("cargo-deny", &["--version"]) {
        run(cargo().args(["deny", "check", "licenses", "bans", "sources"]))?;
    } else {
        skipped("cargo-deny")?;
    }
    run(cargo()
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    tests()
}

fn skipped(tool: &str) -> Result {
    let listed = MAY_BE_ABSENT.iter().find(|(name, _)| *name == tool);
    let (_, reason) =
        listed.ok_or_else(|| format!("{tool} is not installed: run scripts/setup"))?;
    eprintln!("SKIPPED: {tool}: {reason}");
    Ok(())
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
    run(command("shellcheck").args(scripts))
}

/// All tests; the end-to-end tests look for the programs, so those are built first.
pub(crate) fn tests() -> Result {
    run(cargo().args(["build", "--workspace"]))?;
    run(cargo().args(["nextest", "run", "--workspace", "--profile", "ci"]))?;
    // nextest does not run examples in documentation.
    run(cargo().args(["test", "--workspace", "--doc"]))
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
