//! How long it takes from the start of the process after a crash until it serves, by size and dirtiness of
//! the cache, lazily and eagerly.

use std::fs::File;
use std::os::unix::fs::FileExt;
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

/// Bytes of memory that a TiB of cache may take.
const MEMORY_AIM: f64 = 256.0 * 1024.0 * 1024.0;

/// A moment after the start of the process.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    ms: f64,
    /// Bytes that the process has read from the device by then.
    bytes: f64,
}

/// One start.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    first_read: Moment,
    first_write: Moment,
    /// Nothing is left to validate.
    validated: Moment,
    /// Reads of the cache's disk until the first write, and until all is validated, as the gateway counts them.
    reads: f64,
    reads_validated: f64,
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
        "| cache | dirty | way | first read | first write | the same bytes in sequence | aim | last chunk validated | memory, serving and validated |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut memory: Option<(u64, f64)> = None;
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
                let own = in_sequence(&folder.join("cache"), start.first_write.bytes as u64)?;
                let limit = AIM.0 * own + AIM.1;
                let way = if is_eager { "eager" } else { "lazy" };
                let aim = match (is_eager, start.first_write.ms <= limit) {
                    (true, _) => String::new(),
                    (false, true) => format!("{limit:.0} ms, met"),
                    (false, false) => format!("{limit:.0} ms, missed"),
                };
                println!(
                    "| {gib} GiB | {dirty} % | {way} | {:.0} ms, {:.1} MiB | {:.0} ms, {:.1} MiB, {:.0} reads | {own:.0} ms | {aim} | {:.1} s, {:.1} MiB, {:.0} reads | {:.0}, {:.0} MiB |",
                    start.first_read.ms,
                    mib(start.first_read.bytes),
                    start.first_write.ms,
                    mib(start.first_write.bytes),
                    start.reads,
                    start.validated.ms / 1e3,
                    mib(start.validated.bytes),
                    start.reads_validated,
                    mib(start.memory),
                    mib(start.memory_validated),
                );
                if memory.is_none_or(|(most, bytes)| (most, bytes) < (gib, start.memory_validated))
                {
                    memory = Some((gib, start.memory_validated));
                }
                let line = if is_eager { &mut eager } else { &mut lazy };
                line.push((gib as f64, start.first_read.ms));
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
    if let Some((gib, bytes)) = memory {
        let each = bytes * 1024.0 / gib as f64;
        let is_met = if each < MEMORY_AIM { "met" } else { "missed" };
        println!(
            "At most {:.0} MiB of memory with a cache of {gib} GiB: {:.0} MiB for each TiB; aim under {:.0}, {is_met}.",
            mib(bytes),
            mib(each),
            mib(MEMORY_AIM)
        );
        println!();
    }
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
    let socket = folder.join("socket");
    let _ = std::fs::remove_file(&socket);
    // The program itself is not what is measured.
    output(command(&gateway_program().display().to_string()).arg("--version"))?;
    let more = ["--upload-interval", "86400", "--upload-rate", "1K"];
    let more = if is_eager { [&more[..], &["--eager"]].concat() } else { more.to_vec() };
    let begun = Instant::now();
    let server = Server::start(Kind::Gateway, folder, chunks << 22, &more)?;
    let mut client = loop {
        if let Some(client) = Client::connect(&socket, "vol")? {
            break client;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let now = || {
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok::<_, String>(Moment { ms, bytes: read_bytes(server.pid())? })
    };
    let reads = || server.metric("culvert_cache_disk_reads_total");
    client.read((chunks / 2) << 22)?;
    let first_read = now()?;
    client.write((chunks / 3) << 22, &[1; 4096])?;
    let first_write = now()?;
    let (reads_then, memory) = (reads()?, resident(server.pid())?);
    while server.metric("culvert_cache_unvalidated_chunks")? > 0.0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let start = Start {
        first_read,
        first_write,
        validated: now()?,
        reads: reads_then,
        reads_validated: reads()?,
        memory,
        memory_validated: resident(server.pid())?,
    };
    server.kill()?;
    Ok(start)
}

/// Bytes that a process has had from devices.
fn read_bytes(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/io");
    let io = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    let bytes = line.and_then(|bytes| bytes.parse().ok());
    bytes.ok_or_else(|| format!("{path} has no read_bytes"))
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

/// Resident memory of a process in bytes: its own, the program's text, and no page cache.
fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path} has no VmRSS"))
}
