//! Checks and tests.

use std::process::Command;

use crate::fuzz;
use crate::run::{Result, cargo, command, root, run};

/// How long CI runs each fuzz target: enough to replay the corpus and to meet what a parser cannot bear at all.
const FUZZ_SECS: u64 = 3;

/// What tells tests that they run in CI: some do more then, and one that is skipped fails unless `tests/skips.toml` lists it.
const IN_CI: (&str, &str) = ("CULVERT_CI", "1");

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
    run(&mut tests_in_ci())?;
    run(&mut shards_in_ci())
}

/// Installs what is missing, builds, runs all tests, and lists at the end what was skipped.
fn tests_in_ci() -> Command {
    let mut tests = command("scripts/test");
    tests.args(["--profile", "ci"]).env(IN_CI.0, IN_CI.1);
    tests
}

/// Runs some of them once more, in the shard format.
fn shards_in_ci() -> Command {
    let mut shards = e2e_command(false);
    shards.env("CULVERT_E2E_FORMAT", "shard").env(IN_CI.0, IN_CI.1);
    shards.args(["--profile", "ci", "-E"]).arg(format!("({SHARDS_IN_CI}) - ({OF_VXLAN})"));
    shards
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

/// Tests that are about the bytes of VXLAN, or name formats themselves: as they are in every run.
const OF_VXLAN: &str = "binary(harness) | binary(package) | binary(lab) \
    | test(/^(cutting|format_combos|formats|gro_rules|identifiers|ipv6_minimum|kernel_vxlan)::/) \
    | test(/^(overhead|packet_rx|shards)::/) \
    | test(what_crosses_the_wire_is_vxlan) | test(truncated_inside_a_sound_outer_packet) \
    | test(a_forged_icmp_error_changes_nothing) | test(a_known_vtep_cannot_speak)";

/// What CI runs in the shard format, too.
const SHARDS_IN_CI: &str = "test(/^(basic|offloads|acl|isolation)::/) \
    | test(first_eighth_of_the_combinations)";

/// The end-to-end tests alone: in VXLAN, or those that do not depend on it in another format; all of them in full.
pub(crate) fn e2e(full: bool, format: Option<&str>, filter: Option<&str>) -> Result {
    run(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    let mut nextest = e2e_command(full);
    match format {
        Some(format) => nextest
            .env("CULVERT_E2E_FORMAT", format)
            .arg("-E")
            .arg(format!("not ({OF_VXLAN}){}", named(filter))),
        None => nextest.args(filter),
    };
    run(&mut nextest)?;
    if full && format.is_none() {
        let mut shards = e2e_command(full);
        shards.env("CULVERT_E2E_FORMAT", "shard");
        return run(shards.arg("-E").arg(format!("not ({OF_VXLAN}){}", named(filter))));
    }
    Ok(())
}

fn named(filter: Option<&str>) -> String {
    filter.map_or_else(String::new, |filter| format!(" & test({filter})"))
}

fn e2e_command(full: bool) -> Command {
    let mut nextest = cargo();
    nextest.args(["nextest", "run", "--package", "culvert-tests", "--test", "*"]);
    if full {
        nextest.env("CULVERT_E2E", "full");
    }
    nextest
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn tests_of_ci_know_that_they_are_however_it_is_begun() {
        let told = (OsStr::new(IN_CI.0), Some(OsStr::new(IN_CI.1)));
        for tests in [tests_in_ci(), shards_in_ci()] {
            assert!(tests.get_envs().any(|variable| variable == told), "{tests:?}");
        }
    }
}
