//! The lab: tests in a guest with another kernel.

use crate::run::{Result, cargo, command, run};

/// Prepares the lab and runs its tests, those whose name contains `filter`.
pub(crate) fn lab(filter: Option<&str>) -> Result {
    run(&mut command("scripts/setup-lab"))?;
    run(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    run(cargo()
        .args(["nextest", "run", "--package", "culvert-tests", "-E", "binary(lab)"])
        .args(["--success-output", "final"])
        .args(filter))
}
