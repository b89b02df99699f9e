//! What is cached, read and written.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use super::Volume;
use super::fio::{Job, Outcome, fio};
use super::servers::{Kind, Server};
use crate::run::Result;

/// Size of the volume. It fits into the page cache with all its copies.
const VOLUME: u64 = 1 << 30;

/// What is measured.
const JOBS: [Job; 8] = [
    Job { name: "4 KiB random read, depth 1", rw: "randread", block: "4k", depth: 1, fsync: 0 },
    Job { name: "4 KiB random read, depth 32", rw: "randread", block: "4k", depth: 32, fsync: 0 },
    Job { name: "1 MiB read stream", rw: "read", block: "1m", depth: 4, fsync: 0 },
    Job { name: "4 KiB random write, depth 1", rw: "randwrite", block: "4k", depth: 1, fsync: 0 },
    Job { name: "4 KiB random write, depth 32", rw: "randwrite", block: "4k", depth: 32, fsync: 0 },
    Job { name: "1 MiB write stream", rw: "write", block: "1m", depth: 4, fsync: 0 },
    Job {
        name: "1 MiB write stream, flush each 64",
        rw: "write",
        block: "1m",
        depth: 4,
        fsync: 64,
    },
    Job { name: "4 KiB write and flush", rw: "randwrite", block: "4k", depth: 1, fsync: 1 },
];

/// A run, and the CPU time of the server for each request in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    outcome: Outcome,
    cpu_us: f64,
}

/// Runs all jobs on all servers in turn and prints the tables.
pub(super) fn speed(options: &Volume, folder: &Path) -> Result {
    let jobs: Vec<Job> = JOBS
        .into_iter()
        .filter(|job| options.case.as_ref().is_none_or(|text| job.name.contains(text.as_str())))
        .collect();
    let servers = Kind::ALL
        .into_iter()
        .map(|kind| filled(kind, folder).map(|server| (kind, server)))
        .collect::<Result<Vec<_>>>()?;
    let mut samples: BTreeMap<(usize, usize), Vec<Sample>> = BTreeMap::new();
    for (number, job) in jobs.iter().enumerate() {
        for round in 0..options.rounds {
            for turn in 0..servers.len() {
                // Whoever is first is so in one round only.
                let which = (turn + round) % servers.len();
                let (kind, server) = &servers[which];
                settle()?;
                let before = server.cpu_secs()?;
                let outcome = fio(&server.uri(), job, VOLUME, Some(options.secs))?;
                // fio does not count the requests of its half second of warming up.
                let counted = options.secs as f64 / (options.secs as f64 + 0.5);
                let used = (server.cpu_secs()? - before) * counted;
                let cpu_us = used * 1e6 / outcome.requests.max(1.0);
                eprintln!(
                    "{}, {}: {:.0} a second, {:.1} us, p99 {:.1} us, CPU {cpu_us:.1} us",
                    job.name,
                    kind.name(),
                    outcome.rate,
                    outcome.mean_us,
                    outcome.p99_us
                );
                samples.entry((number, which)).or_default().push(Sample { outcome, cpu_us });
            }
        }
    }
    println!(
        "| what | {} | times nbdkit |",
        servers.iter().map(|(k, _)| k.name()).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}---|", "---|".repeat(servers.len()));
    for (number, job) in jobs.iter().enumerate() {
        let median = |which| median(&samples[&(number, which)]);
        let cells: Vec<String> =
            (0..servers.len()).map(|which| cell(job, &median(which))).collect();
        let ratio = median(0).outcome.rate / median(1).outcome.rate;
        println!("| {} | {} | {ratio:.2} |", job.name, cells.join(" | "));
    }
    println!();
    for (_, server) in servers {
        server.stop()?;
    }
    Ok(())
}

/// The gateway with a cache that is 80 % full, all of it dirty, while that is uploaded.
pub(super) fn uploading(options: &Volume, folder: &Path) -> Result {
    let folder = folder.join("uploading");
    // Slots for 1.25 GiB beside the log.
    let more = ["--cache-size", "2432M", "--upload-interval", "86400"];
    let server = Server::start(Kind::Gateway, &folder, VOLUME, &more)?;
    let fill = Job { name: "fill", rw: "write", block: "1m", depth: 4, fsync: 0 };
    fio(&server.uri(), &fill, VOLUME, None)?;
    server.stop()?;
    println!("| what, cache 80 % full | at rest | while uploading | MiB/s uploaded meanwhile |");
    println!("|---|---|---|---|");
    let jobs = JOBS.into_iter().filter(|job| job.block == "4k" && job.fsync == 0);
    let jobs: Vec<Job> = jobs.collect();
    let mut busy = Vec::new();
    let server = Server::start(
        Kind::Gateway,
        &folder,
        VOLUME,
        &["--upload-interval", "1", "--upload-rate", "64M"],
    )?;
    for job in &jobs {
        let (before, begun) =
            (server.metric("culvert_store_uploaded_bytes_total")?, Instant::now());
        let outcome = fio(&server.uri(), job, VOLUME, Some(options.secs))?;
        let moved = server.metric("culvert_store_uploaded_bytes_total")? - before;
        busy.push((outcome, moved / begun.elapsed().as_secs_f64() / f64::from(1 << 20)));
    }
    server.kill()?;
    let server = Server::start(Kind::Gateway, &folder, VOLUME, &["--upload-interval", "1"])?;
    server.wait_until_clean()?;
    server.stop()?;
    let server = Server::start(Kind::Gateway, &folder, VOLUME, &["--upload-interval", "86400"])?;
    for (job, (busy, rate)) in jobs.iter().zip(busy) {
        let rest = fio(&server.uri(), job, VOLUME, Some(options.secs))?;
        let told = |o: &Outcome| format!("{:.1} k/s, p99 {:.0} µs", o.rate / 1e3, o.p99_us);
        println!("| {} | {} | {} | {rate:.0} |", job.name, told(&rest), told(&busy));
    }
    println!();
    server.stop()
}

/// A server whose volume was written once from end to end and is at rest.
fn filled(kind: Kind, folder: &Path) -> Result<Server> {
    let folder = folder.join(kind.name().replace(' ', "-"));
    let server =
        Server::start(kind, &folder, VOLUME, &["--cache-size", "3G", "--upload-interval", "1"])?;
    let fill = Job { name: "fill", rw: "write", block: "1m", depth: 4, fsync: 0 };
    fio(&server.uri(), &fill, VOLUME, None)?;
    if kind == Kind::Gateway {
        server.wait_until_clean()?;
    }
    // A stop moves all from the gateway's log to its slots.
    server.stop()?;
    // Uploads are measured by themselves.
    let server = Server::start(kind, &folder, VOLUME, &["--upload-interval", "86400"])?;
    let warm = Job { name: "warm", rw: "read", block: "1m", depth: 4, fsync: 0 };
    fio(&server.uri(), &warm, VOLUME, None)?;
    Ok(server)
}

/// Lets what is written reach the disk, so that nobody pays for another's writes.
fn settle() -> Result {
    crate::run::command("sync").status().map_err(|e| format!("sync: {e}"))?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    Ok(())
}

fn median(samples: &[Sample]) -> Sample {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.outcome.rate.total_cmp(&b.outcome.rate));
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn cell(job: &Job, sample: &Sample) -> String {
    let Sample { outcome, cpu_us } = sample;
    if job.block == "1m" {
        format!("{:.0} MiB/s, CPU {cpu_us:.0} µs", outcome.bandwidth / f64::from(1 << 20))
    } else {
        format!("{:.1} k/s, p99 {:.0} µs, CPU {cpu_us:.1} µs", outcome.rate / 1e3, outcome.p99_us)
    }
}
