//! Fuzzing by libFuzzer, for every crate that has a `fuzz` folder.
//!
//! The compiler's coverage instrumentation is an LLVM pass that the stable toolchain can be told to run; only the
//! sanitizers need nightly, and the crates that are fuzzed have no `unsafe` for them to watch. So this works with the
//! toolchain that builds everything else, without cargo-fuzz.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Fuzz;
use crate::run::{Result, cargo, command, run, target_folder};

/// Folders with fuzz targets. CI builds those before the last two only: these depend on most of the dataplane and of the
/// control plane, and take minutes to build. The bodies of their targets run over their corpus in a test.
const CRATES: [&str; 5] = [
    "dataplane/wire",
    "control/gateway/nbd",
    "control/gateway/volume",
    "dataplane/engine",
    "control/daemon",
];

/// How many of them CI runs.
const IN_CI: usize = 3;

/// What libFuzzer wants to know of a running program: counters per edge, where they are, and what is compared.
const INSTRUMENTED: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// A target that is named explicitly keeps build scripts and macros free of the flags.
const TRIPLE: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// Runs one target, or each in turn.
pub(crate) fn fuzz(options: &Fuzz) -> Result {
    fuzz_crates(&CRATES, options)
}

/// Runs for so many seconds each target that is quickly built.
pub(crate) fn fuzz_in_ci(secs: u64) -> Result {
    fuzz_crates(&CRATES[..IN_CI], &Fuzz { target: None, secs, keep: false })
}

fn fuzz_crates(crates: &[&str], options: &Fuzz) -> Result {
    let mut found = false;
    for name in crates {
        let folder = crate::run::root().join(name).join("fuzz");
        let targets = targets(&folder)?;
        let wanted: Vec<_> =
            targets.iter().filter(|t| options.target.as_ref().is_none_or(|w| w == *t)).collect();
        if wanted.is_empty() {
            continue;
        }
        found = true;
        let built = build(&folder)?;
        for target in wanted {
            run_target(&folder, &built, target, options)?;
        }
    }
    if found {
        Ok(())
    } else {
        Err(format!("no fuzz target {}", options.target.as_deref().unwrap_or("at all")))
    }
}

/// Builds the targets of a crate; returns the folder of the programs. All crates build into one, so that what they
/// depend on, libFuzzer first of all, is built once.
fn build(folder: &Path) -> Result<PathBuf> {
    let out = target_folder().join("fuzz/build");
    run(cargo()
        .args(["build", "--release", "--bins", "--locked", "--target", TRIPLE, "--target-dir"])
        .arg(&out)
        .current_dir(folder)
        .env("RUSTFLAGS", INSTRUMENTED))?;
    Ok(out.join(TRIPLE).join("release"))
}

/// Runs a target over the kept corpus and what former runs found; new inputs stay in the target folder.
fn run_target(folder: &Path, built: &Path, target: &str, options: &Fuzz) -> Result {
    let kept = folder.join("corpus").join(target);
    let found = target_folder().join("fuzz/corpus").join(target);
    let artifacts = folder.join("artifacts").join(target);
    for folder in [&kept, &found, &artifacts] {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let program = built.join(target).display().to_string();
    run(command(&program)
        .arg(format!("-max_total_time={}", options.secs))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=300", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
        .args([&found, &kept]))
    .map_err(|e| {
        format!(
            "{e}\nthe input is in {}; once the fault is mended, keep it in {} so that tests repeat it",
            artifacts.display(),
            kept.display()
        )
    })?;
    if options.keep {
        // Adds to the first folder what reaches code that it does not reach yet.
        run(command(&program).args(["-merge=1", "-verbosity=0"]).args([&kept, &found]))?;
    }
    Ok(())
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = fs::read_dir(&sources).map_err(|e| format!("{}: {e}", sources.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(stem) = path.file_stem()
        {
            targets.push(stem.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}
