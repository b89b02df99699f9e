//! Compiles the eBPF programs with clang; the objects are embedded by `include_bytes_aligned!`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCES: &str = "src/bpf";
const OBJECTS: [&str; 2] = ["packet_path", "count"];

fn main() {
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=CLANG");

    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in OBJECTS {
        let source = Path::new(SOURCES).join(format!("{name}.bpf.c"));
        let object = out_dir.join(format!("{name}.bpf.o"));
        if let Err(reason) = compile(&clang, &source, &object) {
            println!("cargo::error=cannot compile {}: {reason}", source.display());
            return;
        }
    }
}

fn compile(clang: &str, source: &Path, object: &Path) -> Result<(), String> {
    let mut command = Command::new(clang);
    command.args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]);
    // Debian keeps asm/types.h in a directory per architecture, where `-target bpf` does not look.
    for arch in ["x86_64", "aarch64", "riscv64"] {
        let include = format!("/usr/include/{arch}-linux-gnu");
        if Path::new(&include).join("asm/types.h").exists() {
            command.arg(format!("-I{include}"));
            break;
        }
    }
    let output = command.arg("-c").arg(source).arg("-o").arg(object).output().map_err(|error| {
        format!("{clang} does not run ({error}): install clang (Debian: apt-get install clang), or name it in CLANG")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    if messages.contains("'bpf/") {
        return Err(
            "the libbpf headers are missing (Debian: apt-get install libbpf-dev)".to_owned()
        );
    }
    Err(messages.replace('\n', " | "))
}
