//! How long it takes from the start of the process after a crash until it serves, by size and dirtiness of
//! the cache, lazily and eagerly.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Volume;
use super::client::Client;
use super::fio::{Job, fio};
use super::plot::{Line, plot};
use super::servers::{Kind, Server, gateway_program};
use crate::run::{Result, cargo, command, output, root, target_folder};

/// Sizes of caches in GiB.
const SIZES: [u64; 4] = [1, 16, 128, 1024];
/// Length of the log in bytes; it is part of the cache.
const LOG: u64 = 1 << 30;
const DIRTY: [u64; 3] = [0, 50, 100];
/// What the aim says: times the cold sequential read of as many bytes, and milliseconds beside that.
const AIM: (f64, f64) = (1.5, 50.0);

/// One start.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    first_read_ms: f64,
    first_write_ms: f64,
    /// Bytes that the process read from the device until then, and reads of the device.
    bytes: f64,
    reads: f64,
    /// Until nothing is left to validate.
    validated_ms: f64,
    /// Resident memory when serving, and when everything is validated, in bytes.
    memory: f64,
    memory_validated: f64,
}

/// Measures, prints a table, and draws the plot.
pub(super) fn recovery(options: &Volume, folder: &Path) -> Result {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "culvert-volume", "--example", "full_cache"]);
    crate::run::run(&mut build)?;
    println!(
        "| cache | dirty | way | first read | first write | read until then | the same bytes in sequence | aim | last chunk validated | memory, serving and validated |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut lines = Vec::new();
    let mut sequential = Vec::new();
    let wanted = |gib: &u64| options.case.as_ref().is_none_or(|case| *case == gib.to_string());
    for dirty in DIRTY {
        let (mut lazy, mut eager) = (Vec::new(), Vec::new());
        for gib in SIZES.into_iter().filter(wanted) {
            let folder = folder.join("recovery");
            let chunks = crashed(&folder, gib, dirty)?;
            for is_eager in [false, true] {
                let start = start(&folder, is_eager, chunks)?;
                let own = in_sequence(&folder.join("cache"), start.bytes as u64)?;
                let limit = AIM.0 * own + AIM.1;
                let way = if is_eager { "eager" } else { "lazy" };
                let aim = match (is_eager, start.first_read_ms.max(start.first_write_ms) <= limit) {
                    (true, _) => String::new(),
                    (false, true) => format!("{limit:.0} ms, met"),
                    (false, false) => format!("{limit:.0} ms, missed"),
                };
                println!(
                    "| {gib} GiB | {dirty} % | {way} | {:.0} ms | {:.0} ms | {:.1} MiB, {:.0} reads | {own:.0} ms | {aim} | {:.1} s | {:.0}, {:.0} MiB |",
                    start.first_read_ms,
                    start.first_write_ms,
                    mib(start.bytes),
                    start.reads,
                    start.validated_ms / 1e3,
                    mib(start.memory),
                    mib(start.memory_validated),
                );
                let line = if is_eager { &mut eager } else { &mut lazy };
                line.push((gib as f64, start.first_read_ms));
                if !is_eager && dirty == 100 {
                    sequential.push((gib as f64, own));
                }
            }
            let _ = std::fs::remove_dir_all(&folder);
        }
        lines.push(Line { name: format!("lazy, {dirty} % dirty"), points: lazy, is_dashed: false });
        lines.push(Line {
            name: format!("eager, {dirty} % dirty"),
            points: eager,
            is_dashed: true,
        });
    }
    println!();
    lines.push(Line {
        name: "cold read of the lazy bytes".to_owned(),
        points: sequential,
        is_dashed: true,
    });
    if options.case.is_none() {
        let path = root().join("docs/performance/recovery.svg");
        let drawn = plot(
            "From the start of the process to the first read",
            "cache, GiB",
            "milliseconds",
            &lines,
        );
        std::fs::write(&path, drawn).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// A cache that is full, was written to, and whose gateway was killed. Returns its number of chunks.
fn crashed(folder: &Path, gib: u64, dirty: u64) -> Result<u64> {
    let _ = std::fs::remove_dir_all(folder);
    let program = target_folder().join("release/examples/full_cache");
    let mut make = command(&program.display().to_string());
    make.arg(folder).arg(((gib << 30) + LOG).to_string()).arg(dirty.to_string());
    let chunks: u64 = output(&mut make)?.trim().parse().map_err(|e| format!("full_cache: {e}"))?;
    let more = ["--upload-interval", "86400", "--upload-rate", "1K"];
    let server = Server::start(Kind::Gateway, folder, chunks << 22, &more)?;
    // As much log as there can be to scan, and a map of more.
    let job = Job { name: "write", rw: "randwrite", block: "4k", depth: 32, fsync: 0 };
    fio(&server.uri(), &job, chunks << 22, Some(2))?;
    server.kill()?;
    Ok(chunks)
}

/// Starts the gateway of a crashed cache with nothing of it in memory.
fn start(folder: &Path, is_eager: bool, chunks: u64) -> Result<Start> {
    let cache = folder.join("cache");
    drop_caches(&cache)?;
    let at = |name: &str| folder.join(name).display().to_string();
    let socket = folder.join("socket");
    let _ = std::fs::remove_file(&socket);
    // The program itself is not what is measured.
    output(command(&gateway_program().display().to_string()).arg("--version"))?;
    let reads = device_reads(&cache)?;
    let more = ["--upload-interval", "86400", "--upload-rate", "1K"];
    let more = if is_eager { [&more[..], &["--eager"]].concat() } else { more.to_vec() };
    let _ = at;
    let begun = Instant::now();
    let server = Server::start(Kind::Gateway, folder, chunks << 22, &more)?;
    let mut client = loop {
        if let Some(client) = Client::connect(&socket, "vol")? {
            break client;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let ms = || begun.elapsed().as_secs_f64() * 1e3;
    client.read((chunks / 2) << 22)?;
    let first_read_ms = ms();
    client.write((chunks / 3) << 22, &[1; 4096])?;
    let first_write_ms = ms();
    let io = format!("/proc/{}/io", server.pid());
    let io = std::fs::read_to_string(&io).map_err(|e| format!("{io}: {e}"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    let bytes = line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0.0);
    let reads = device_reads(&cache)? - reads;
    let memory = resident(server.pid())?;
    while server.metric("culvert_cache_unvalidated_chunks")? > 0.0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let validated_ms = ms();
    let memory_validated = resident(server.pid())?;
    server.kill()?;
    Ok(Start {
        first_read_ms,
        first_write_ms,
        bytes,
        reads,
        validated_ms,
        memory,
        memory_validated,
    })
}

/// Milliseconds of a cold read of so many bytes of the cache in one go.
fn in_sequence(cache: &Path, bytes: u64) -> Result<f64> {
    drop_caches(cache)?;
    let failed = |e: std::io::Error| format!("{}: {e}", cache.display());
    let file = File::open(cache).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    let begun = Instant::now();
    // The log is written from end to end; it may be shorter than what a large cache reads.
    let log_at = 64 << 20;
    let mut done = 0;
    while done < bytes {
        let len = buffer.len().min((bytes - done) as usize);
        file.read_exact_at(&mut buffer[..len], log_at + done % (LOG - (1 << 20)))
            .map_err(failed)?;
        done += len as u64;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Takes everything out of the page cache.
fn drop_caches(cache: &Path) -> Result {
    let file = File::open(cache).and_then(|file| file.sync_all());
    file.map_err(|e| format!("{}: {e}", cache.display()))?;
    let path = "/proc/sys/vm/drop_caches";
    std::fs::write(path, "3").map_err(|e| format!("{path}: {e}"))
}

/// Reads of the device that a file lies on, since the system started.
fn device_reads(file: &Path) -> Result<f64> {
    let device = std::fs::metadata(file).map_err(|e| e.to_string())?.dev();
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let stat = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let reads = stat.split_whitespace().next().and_then(|reads| reads.parse().ok());
    reads.ok_or_else(|| format!("{path} says {stat}"))
}

/// Resident memory of a process in bytes, without the page cache.
fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path} has no RssAnon"))
}
