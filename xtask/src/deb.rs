//! The Debian package. What it holds is listed in the `Cargo.toml` of the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::{Result, cargo, command, run, target_folder};

/// Cargo's names of the crates whose programs are in it.
const CRATES: [&str; 5] =
    ["culvert-cli", "culvert-dataplane", "culvert-daemon", "culvert-gateway", "culvert-cni"];
/// What says what else is.
const MANIFEST: &str = "scripts/package/Cargo.toml";
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// Builds the programs, what goes with them, and the package. With `dev` of the programs that tests use, which are there.
pub(crate) fn deb(dev: bool) -> Result {
    let folder = if dev { "debug" } else { "release" };
    if !dev {
        let mut build = cargo();
        build.args(["build", "--locked", "--release"]);
        build.args(CRATES.map(|name| format!("--package={name}")));
        run(&mut build)?;
    }
    let built = target_folder().join(folder);
    accompany(&built)?;
    let out = target_folder().join("deb");
    fs::create_dir_all(&out).map_err(failed(&out))?;
    let mut deb = cargo();
    deb.args(["deb", "--quiet", "--no-build", "--manifest-path", MANIFEST]);
    deb.args(["--deb-version", concat!(env!("CARGO_PKG_VERSION"), "-1")]);
    if dev {
        // It takes programs from a folder `release` only, and need not press them hard.
        deb.args(["--fast", "-Z", "gz"]).env("CARGO_TARGET_DIR", stand_in(&built)?);
    } else {
        deb.env("CARGO_TARGET_DIR", target_folder());
    }
    run(deb.arg("--output").arg(out.join("culvert.deb")))
}

/// A target folder in which `built` is what was released.
fn stand_in(built: &Path) -> Result<PathBuf> {
    let folder = target_folder().join("package-of-tests");
    fs::create_dir_all(&folder).map_err(failed(&folder))?;
    let link = folder.join("release");
    match std::os::unix::fs::symlink(built, &link) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(folder),
        linked => linked.map_err(failed(&link)).map(|()| folder),
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// Makes what the package holds beside programs and files of the repository.
fn accompany(built: &Path) -> Result {
    let folder = built.join("package");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed(&folder))?;
    }
    let completions = folder.join("completions");
    fs::create_dir_all(&completions).map_err(failed(&completions))?;
    let culvert = built.join("culvert").display().to_string();
    run(command(&culvert).arg("man").arg(folder.join("man")))?;
    for shell in SHELLS {
        let output = command(&culvert).args(["completions", shell]).output();
        let output = output.map_err(|error| format!("{culvert}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{culvert} completions {shell} ended with {}", output.status));
        }
        let file = completions.join(format!("culvert.{shell}"));
        fs::write(&file, output.stdout).map_err(failed(&file))?;
    }
    let file = folder.join("libraries");
    fs::write(&file, libraries()?).map_err(failed(&file))
}

/// What is linked into the programs, under which licence, and the texts of the licences as their authors ship them.
fn libraries() -> Result<String> {
    let packages = linked()?;
    let mut text = String::from(
        "Culvert is under the Apache License, version 2.0: /usr/share/common-licenses/Apache-2.0\n\n\
         Its programs contain these libraries:\n\n",
    );
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for package in &packages {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {} {}: {}", package.name, package.version, package.license);
        for licence in package.texts()? {
            texts.entry(licence).or_default().push(&package.name);
        }
    }
    for (licence, names) in texts {
        let _ = write!(text, "\n{}\n{}:\n\n{}\n", "-".repeat(79), names.join(", "), licence);
    }
    Ok(text)
}

struct Package {
    name: String,
    version: String,
    license: String,
    folder: PathBuf,
}

impl Package {
    fn texts(&self) -> Result<BTreeSet<String>> {
        let mut texts = BTreeSet::new();
        for entry in fs::read_dir(&self.folder).map_err(failed(&self.folder))? {
            let path = entry.map_err(failed(&self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            let is_licence = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"]
                .iter()
                .any(|word| name.starts_with(word));
            if is_licence && path.is_file() {
                texts.insert(fs::read_to_string(&path).map_err(failed(&path))?.trim().to_owned());
            }
        }
        Ok(texts)
    }
}

/// The crates that are linked into our programs, other than our own.
fn linked() -> Result<Vec<Package>> {
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    tree.args(CRATES.map(|name| format!("--package={name}")));
    let linked: BTreeSet<(String, String)> = output(&mut tree)?
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, version) = (words.next()?, words.next()?.trim_start_matches('v'));
            Some((name.to_owned(), version.to_owned()))
        })
        .collect();
    let metadata = output(cargo().args(["metadata", "--locked", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).map_err(|error| error.to_string())?;
    let text =
        |package: &Value, field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let all = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Those without a source are ours.
    let of_others = all.iter().filter(|package| !package["source"].is_null());
    let packages = of_others.map(|package| Package {
        name: text(package, "name"),
        version: text(package, "version"),
        license: text(package, "license"),
        folder: PathBuf::from(text(package, "manifest_path"))
            .parent()
            .map_or_else(PathBuf::new, Path::to_owned),
    });
    let mut packages: Vec<_> =
        packages.filter(|p| linked.contains(&(p.name.clone(), p.version.clone()))).collect();
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(packages)
}

fn output(command: &mut std::process::Command) -> Result<String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}
