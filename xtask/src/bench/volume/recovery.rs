//! How long it takes from the start of the process after a crash until it serves, by size and dirtiness of
//! the cache, lazily and eagerly; and the memory that this takes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Volume;
use super::client::Client;
use super::fio::{Job, fio};
use super::plot::{Line, plot};
use super::servers::{Kind, STARTS_WITHIN, Server, gateway_program};
use crate::run::{Result, cargo, command, output, root, target_folder};

/// Sizes of caches in GiB.
pub(super) const SIZES: [u64; 4] = [1, 16, 128, 1024];
/// Length of the log in bytes; it is part of the cache.
const LOG: u64 = 1 << 30;
/// Shares of dirty chunks, in percent.
const DIRTY: [u64; 3] = [0, 50, 100];
/// What the aim says: times the cold sequential read of as many bytes, and milliseconds beside that.
const AIM: (f64, f64) = (1.5, 50.0);

/// Bytes of memory that a TiB of cache may take.
const MEMORY_AIM: f64 = 256.0 * 1024.0 * 1024.0;

/// Where bytes of the cache begin that are written from end to end: in the directory or the log, however large it
/// is. In bytes.
const WRITTEN_AT: u64 = 64 << 20;
/// How many they are.
const WRITTEN: u64 = LOG - WRITTEN_AT;

/// Has the gateway upload nothing while it starts.
const QUIET: [&str; 4] = ["--upload-interval", "86400", "--upload-rate", "1K"];

/// Longest time in which no chunk is validated.
const VALIDATES_WITHIN: Duration = Duration::from_secs(60);

/// A moment after the start of the process.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    ms: f64,
    /// Bytes that the process has read from the device by then.
    bytes: f64,
    /// Reads of the cache's disk by then, as the gateway counts them.
    reads: f64,
}

/// One start.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    first_read: Moment,
    first_write: Moment,
    /// Nothing is left to validate.
    validated: Moment,
    /// Resident memory when serving, in bytes.
    memory: f64,
    /// The most that there was until a moment after everything was validated, when an upload of what is dirty
    /// has begun.
    most_memory: f64,
}

/// One start of one cache.
struct Row {
    gib: u64,
    dirty: u64,
    is_eager: bool,
    start: Start,
    /// Milliseconds of a cold read in sequence of the bytes that it read until the first write.
    in_sequence_ms: f64,
}

/// Measures, prints tables, and draws the plot.
pub(super) fn recovery(options: &Volume, folder: &Path) -> Result {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "culvert-volume", "--example", "full_cache"]);
    crate::run::run(&mut build)?;
    println!(
        "| cache | dirty | way | first read | first write | the same bytes in sequence | aim | last chunk validated | memory, serving and at most |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    let measured = measure(options, &folder.join("recovery"), &mut rows);
    println!();
    // What a run has that fails is worth having.
    memory(&rows);
    measured
}

/// Measures one size after the other. Each row is printed at once, and what there is drawn after each size.
fn measure(options: &Volume, folder: &Path, rows: &mut Vec<Row>) -> Result {
    let mut sizes = options.sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    for gib in sizes {
        // One file for all shares of dirty: making it, and removing it, takes longer than what is measured.
        for dirty in DIRTY {
            let chunks = crashed(folder, gib, dirty)?;
            for is_eager in [false, true] {
                let start = start(folder, is_eager, chunks)?;
                let bytes = start.first_write.bytes as u64;
                let in_sequence_ms = in_sequence(&folder.join("cache"), bytes)?;
                let row = Row { gib, dirty, is_eager, start, in_sequence_ms };
                println!("{}", row.line());
                rows.push(row);
            }
        }
        draw(rows)?;
        std::fs::remove_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    Ok(())
}

impl Row {
    fn way(&self) -> &'static str {
        way(self.is_eager)
    }

    /// Its line of the table.
    fn line(&self) -> String {
        let Row { gib, dirty, start, in_sequence_ms, .. } = self;
        let limit = AIM.0 * in_sequence_ms + AIM.1;
        let aim = match (self.is_eager, start.first_write.ms <= limit) {
            (true, _) => String::new(),
            (false, true) => format!("{limit:.0} ms, met"),
            (false, false) => format!("{limit:.0} ms, missed"),
        };
        let served = |at: &Moment| {
            format!("{:.0} ms, {:.1} MiB, {:.0} reads", at.ms, mib(at.bytes), at.reads)
        };
        let cells = [
            format!("{gib} GiB"),
            format!("{dirty} %"),
            self.way().to_owned(),
            served(&start.first_read),
            served(&start.first_write),
            format!("{in_sequence_ms:.0} ms"),
            aim,
            format!(
                "{:.1} s, {:.1} MiB, {:.0} reads",
                start.validated.ms / 1e3,
                mib(start.validated.bytes),
                start.validated.reads
            ),
            format!("{:.0}, {:.0} MiB", mib(start.memory), mib(start.most_memory)),
        ];
        format!("| {} |", cells.join(" | "))
    }
}

fn way(is_eager: bool) -> &'static str {
    if is_eager { "eager" } else { "lazy" }
}

/// Prints what the largest cache takes of memory.
fn memory(rows: &[Row]) {
    let Some(gib) = rows.iter().map(|row| row.gib).max() else { return };
    println!("### Memory\n");
    println!("| cache | dirty | way | serving | at most | for each TiB begun | aim |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows.iter().filter(|row| row.gib == gib) {
        let each = row.start.most_memory / gib.div_ceil(1024) as f64;
        let is_met = if each < MEMORY_AIM { "met" } else { "missed" };
        println!(
            "| {gib} GiB | {} % | {} | {:.0} MiB | {:.0} MiB | {:.0} MiB | under {:.0} MiB, {is_met} |",
            row.dirty,
            row.way(),
            mib(row.start.memory),
            mib(row.start.most_memory),
            mib(each),
            mib(MEMORY_AIM)
        );
    }
    println!();
}

/// Draws what was measured so far, once that makes lines.
fn draw(rows: &[Row]) -> Result {
    let of = |dirty: u64, is_eager: bool| {
        rows.iter().filter(move |row| row.dirty == dirty && row.is_eager == is_eager)
    };
    let mut lines = Vec::new();
    for dirty in DIRTY {
        for is_eager in [false, true] {
            let points = of(dirty, is_eager).map(|row| (row.gib as f64, row.start.first_read.ms));
            lines.push(Line {
                name: format!("{}, {dirty} % dirty", way(is_eager)),
                points: points.collect(),
                is_dashed: is_eager,
            });
        }
    }
    let points = of(100, false).map(|row| (row.gib as f64, row.in_sequence_ms));
    lines.push(Line {
        name: "cold read of the lazy bytes".to_owned(),
        points: points.collect(),
        is_dashed: true,
    });
    if lines.iter().any(|line| line.points.len() < 2) {
        return Ok(());
    }
    let path = root().join("docs/performance/recovery.svg");
    let title = "From the start of the process to the first read";
    let drawn = plot(title, "cache, GiB", "milliseconds", &lines);
    std::fs::write(&path, drawn).map_err(|e| format!("{}: {e}", path.display()))
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// A cache that is full, was written to, and whose gateway was killed. Returns its number of chunks.
fn crashed(folder: &Path, gib: u64, dirty: u64) -> Result<u64> {
    let program = target_folder().join("release/examples/full_cache");
    let mut make = command(&program.display().to_string());
    make.arg(folder).arg(((gib << 30) + LOG).to_string()).arg(dirty.to_string());
    let chunks: u64 = output(&mut make)?.trim().parse().map_err(|e| format!("full_cache: {e}"))?;
    let server = Server::start(Kind::Gateway, folder, chunks << 22, &QUIET)?;
    // As much log as there can be to scan, and a map of more. Anything but zeros would stay in the slots of the
    // cache that is made of this file next, whose headers name the checksum of zeros.
    let job = Job { zeros: true, ..Job::new("write", "randwrite", "4k", 32) };
    fio(&server.uri(), &job, chunks << 22, Some(2))?;
    server.kill()?;
    Ok(chunks)
}

/// Starts the gateway of a crashed cache with nothing of it in memory.
fn start(folder: &Path, is_eager: bool, chunks: u64) -> Result<Start> {
    let cache = folder.join("cache");
    drop_caches(&cache)?;
    // The program itself is not what is measured: all of it is in memory, and so are its libraries.
    let program = gateway_program();
    std::fs::read(&program).map_err(|e| format!("{}: {e}", program.display()))?;
    output(command(&program.display().to_string()).arg("--version"))?;
    let more = if is_eager { [&QUIET[..], &["--eager"]].concat() } else { QUIET.to_vec() };
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let begun = Instant::now();
    let server = Server::start(Kind::Gateway, folder, chunks << 22, &more)?;
    let mut client = loop {
        if let Some(client) = Client::connect(server.socket(), "vol")? {
            break client;
        }
        server.check_running()?;
        if begun.elapsed() > STARTS_WITHIN {
            return Err(format!("after {STARTS_WITHIN:?} the gateway does not serve"));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let moment = |ms: f64| {
        let bytes = read_bytes(server.pid())?;
        let reads = server.metric("culvert_cache_disk_reads_total")?;
        Ok::<_, String>(Moment { ms, bytes, reads })
    };
    client.read((chunks / 2) << 22)?;
    let first_read = moment(ms(begun))?;
    // The look at the counters is not a part of the write.
    let asked = Instant::now();
    client.write((chunks / 3) << 22, &[0; 4096])?;
    let first_write = moment(first_read.ms + ms(asked))?;
    let memory = memory_of(server.pid(), "VmRSS:")?;
    wait_until_validated(&server, begun)?;
    let validated = moment(ms(begun))?;
    // An upload begins then.
    std::thread::sleep(Duration::from_secs(1));
    let most_memory = memory_of(server.pid(), "VmHWM:")?;
    server.kill()?;
    Ok(Start { first_read, first_write, validated, memory, most_memory })
}

/// Waits until no chunk is left to validate. Each look costs the gateway time, so they are the rarer the longer it
/// takes.
fn wait_until_validated(server: &Server, begun: Instant) -> Result {
    let (mut left, mut moved) = (f64::MAX, Instant::now());
    loop {
        let unvalidated = server.metric("culvert_cache_unvalidated_chunks")?;
        if unvalidated < 1.0 {
            return Ok(());
        }
        if unvalidated < left {
            (left, moved) = (unvalidated, Instant::now());
        } else if moved.elapsed() > VALIDATES_WITHIN {
            return Err(format!("for {VALIDATES_WITHIN:?} {unvalidated} chunks are not validated"));
        }
        std::thread::sleep((begun.elapsed() / 100).max(Duration::from_millis(10)));
    }
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
    let failed = |e: std::io::Error| format!("{}: {e}", cache.display());
    let file = File::open(cache).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut ms, mut left) = (0.0, bytes);
    // A large cache may read more than is written in sequence: each lap begins cold.
    while left > 0 {
        drop_caches(cache)?;
        let lap = left.min(WRITTEN);
        let begun = Instant::now();
        let mut done = 0;
        while done < lap {
            let len = buffer.len().min((lap - done) as usize);
            file.read_exact_at(&mut buffer[..len], WRITTEN_AT + done).map_err(failed)?;
            done += len as u64;
        }
        ms += begun.elapsed().as_secs_f64() * 1e3;
        left -= lap;
    }
    Ok(ms)
}

/// Takes everything out of the page cache.
fn drop_caches(cache: &Path) -> Result {
    let file = File::open(cache).and_then(|file| file.sync_all());
    file.map_err(|e| format!("{}: {e}", cache.display()))?;
    let path = "/proc/sys/vm/drop_caches";
    std::fs::write(path, "3").map_err(|e| format!("{path}: {e}"))
}

/// Memory of a process in bytes by the line `name` of its status: its own, the program's text, and no page cache.
fn memory_of(pid: u32, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path} has no {name}"))
}
