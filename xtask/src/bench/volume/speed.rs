//! What is cached, read and written: in a cache with room, and in one that is 80 % full, at rest and while it
//! uploads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Volume;
use super::fio::{Job, Outcome, fio};
use super::objects::Objects;
use super::servers::{Kind, Server};
use crate::run::Result;

/// Size of the volume. It fits into the page cache with all its copies.
pub(super) const VOLUME: u64 = 1 << 30;

/// What is measured.
pub(super) const JOBS: [Job; 9] = [
    Job::new("4 KiB random read, depth 1", "randread", "4k", 1),
    Job::new("4 KiB random read, depth 32", "randread", "4k", 32),
    Job::new("1 MiB read stream", "read", "1m", 4),
    Job::new("4 KiB random write, depth 1", "randwrite", "4k", 1),
    Job::new("4 KiB random write, depth 32", "randwrite", "4k", 32),
    Job::new("1 MiB write stream", "write", "1m", 4),
    Job { fsync: 64, ..Job::new("1 MiB write stream, flush each 64", "write", "1m", 4) },
    Job { fsync: 1, ..Job::new("4 KiB write and flush", "randwrite", "4k", 1) },
    Job {
        fsync: 1,
        clients: 32,
        ..Job::new("4 KiB write and flush, 32 clients", "randwrite", "4k", 1)
    },
];

/// Writes the volume from end to end.
pub(super) const FILL: Job = Job::new("fill", "write", "1m", 4);
/// Reads it, so that all of it is in the page cache.
pub(super) const WARM: Job = Job::new("warm", "read", "1m", 4);

/// What the aim says: times the rate of nbdkit.
const AIM: f64 = 1.0;

/// A cache in which the volume has all the room that it can use.
pub(super) const WIDE_CACHE: &str = "3G";
/// One with slots for 1.25 GiB beside the log.
const FULL_CACHE: &str = "2345M";

/// What may go to the store each second while something else is measured, in bytes.
const UPLOAD_RATE: u64 = 64 << 20;
/// Seconds that a turn may last while the volume is uploaded: then a cut is published, and less is left to upload.
const UPLOAD_SECS: u64 = VOLUME / UPLOAD_RATE;
/// Longest time until a gateway that has been killed does nothing but upload.
const UPLOADS_WITHIN: Duration = Duration::from_secs(60);
/// Share of the log in use below which nothing is moved to the slots while clients are busy, and some more.
const LOG_AT_REST: f64 = 0.3;

/// One of those that are compared.
struct Rival {
    name: &'static str,
    kind: Kind,
    place: Place,
}

/// Where a rival is.
enum Place {
    /// It serves all the time.
    Serving(Server),
    /// A gateway with a volume in this folder that is not in the store. It serves, and uploads, only while it has
    /// its turn.
    Dirty(PathBuf),
}

/// A run of one job.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    outcome: Outcome,
    /// CPU time of the server for each request in microseconds.
    cpu_us: f64,
    /// What the gateway did meanwhile.
    done: Counts,
    /// Bytes that it uploaded each second.
    upload_rate: f64,
}

/// What the gateway counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Flushes that it answered.
    flushes: f64,
    /// Syncs of its disk.
    syncs: f64,
    /// Bytes that it uploaded.
    uploaded: f64,
}

/// Samples by job and rival.
type Samples = BTreeMap<(usize, usize), Vec<Sample>>;

/// Runs all jobs on all servers in turn and prints the tables.
pub(super) fn speed(options: &Volume, folder: &Path) -> Result {
    let jobs = options.chosen(&JOBS);
    let folder = folder.join("speed");
    let rivals = Kind::ALL
        .into_iter()
        .map(|kind| serving(kind, &folder, WIDE_CACHE))
        .collect::<Result<Vec<_>>>()?;
    let samples = in_turns(options, &jobs, &rivals)?;
    table("what", &jobs, &rivals, &samples);
    syncs(&jobs, &samples);
    end(rivals, &folder)
}

/// The same with a cache that is 80 % full, at rest, and with all of it dirty, while that is uploaded.
pub(super) fn uploading(options: &Volume, folder: &Path) -> Result {
    let jobs = options.chosen(&JOBS);
    let folder = folder.join("uploading");
    let rest = filled(Kind::Gateway, &folder.join("at-rest"), FULL_CACHE)?;
    let free = rest.metric("culvert_cache_free_slots")?;
    let full = 1.0 - free / rest.metric("culvert_cache_slots")?;
    let dirty = folder.join("dirty");
    make_dirty(&dirty)?;
    let rivals = vec![
        Rival { name: "at rest", kind: Kind::Gateway, place: Place::Serving(rest) },
        Rival { name: "uploading", kind: Kind::Gateway, place: Place::Dirty(dirty) },
        serving(Kind::Nbdkit, &folder, FULL_CACHE)?,
        serving(Kind::QemuNbd, &folder, FULL_CACHE)?,
    ];
    let samples = in_turns(options, &jobs, &rivals)?;
    table(&format!("what, cache {:.0} % full", full * 100.0), &jobs, &rivals, &samples);
    end(rivals, &folder)
}

/// Runs each job on each rival as often as was asked for.
fn in_turns(options: &Volume, jobs: &[Job], rivals: &[Rival]) -> Result<Samples> {
    let mut samples = Samples::new();
    for (number, job) in jobs.iter().enumerate() {
        for round in 0..options.rounds {
            for turn in 0..rivals.len() {
                // Whoever is first is so in one round only.
                let which = (turn + round as usize) % rivals.len();
                let rival = &rivals[which];
                let sample = rival.turn(job, options.secs)?;
                eprintln!(
                    "{}, {}: {:.0} a second, {:.1} us, p99 {:.1} us, CPU {:.1} us",
                    job.name,
                    rival.name,
                    sample.outcome.rate,
                    sample.outcome.mean_us,
                    sample.outcome.p99_us,
                    sample.cpu_us
                );
                samples.entry((number, which)).or_default().push(sample);
            }
        }
    }
    Ok(samples)
}

impl Rival {
    fn turn(&self, job: &Job, secs: u64) -> Result<Sample> {
        let folder = match &self.place {
            Place::Serving(server) => {
                settle()?;
                return measured(server, job, secs);
            }
            Place::Dirty(folder) => folder,
        };
        let before = Objects::look(&folder.join("store/vol"))?;
        let server = start_uploading(folder)?;
        settle()?;
        let sample = measured(&server, job, secs)?;
        // Before its cut is published: all stays dirty then, and the next turn has as much to upload.
        server.kill()?;
        if !before.restore()? {
            return Err(format!(
                "--secs {secs} is too long: a turn of uploading must be over before all is in the store, which \
                 takes {UPLOAD_SECS} s from the start of the gateway, and other things come first"
            ));
        }
        Ok(sample)
    }
}

/// Runs a job on a server.
fn measured(server: &Server, job: &Job, secs: u64) -> Result<Sample> {
    let (before, begun) = (Counts::of(server)?, Instant::now());
    let cpu_before = server.cpu_secs()?;
    let outcome = fio(&server.uri(), job, VOLUME, Some(secs))?;
    // fio does not count the requests of its half second of warming up.
    let counted = secs as f64 / (secs as f64 + 0.5);
    let used = (server.cpu_secs()? - cpu_before) * counted;
    let took = begun.elapsed().as_secs_f64();
    let after = Counts::of(server)?;
    let done = Counts {
        flushes: after.flushes - before.flushes,
        syncs: after.syncs - before.syncs,
        uploaded: after.uploaded - before.uploaded,
    };
    Ok(Sample {
        outcome,
        cpu_us: used * 1e6 / outcome.requests.max(1.0),
        done,
        upload_rate: done.uploaded / took,
    })
}

impl Counts {
    /// Those of a gateway; of others nothing is known.
    fn of(server: &Server) -> Result<Counts> {
        if !server.is_gateway() {
            return Ok(Counts::default());
        }
        let flush = "command=\"flush\"";
        Ok(Counts {
            flushes: server.metric_where("culvert_nbd_request_seconds_count", flush)?,
            syncs: server.metric("culvert_cache_disk_syncs_total")?,
            uploaded: server.metric("culvert_store_uploaded_bytes_total")?,
        })
    }
}

/// Prints what each rival does, and how many times nbdkit's rate the gateways have, which are the first.
fn table(what: &str, jobs: &[Job], rivals: &[Rival], samples: &Samples) {
    let gateways = rivals.iter().take_while(|rival| rival.kind == Kind::Gateway).count();
    let uploading = rivals.iter().position(|rival| matches!(rival.place, Place::Dirty(_)));
    let mut head: Vec<String> = rivals.iter().map(|rival| rival.name.to_owned()).collect();
    let ours = rivals.iter().take(gateways);
    head.extend(ours.map(|rival| format!("{}: times nbdkit file", rival.name)));
    head.extend(uploading.map(|_| "MiB/s uploaded meanwhile".to_owned()));
    println!("| {what} | {} |", head.join(" | "));
    println!("|---|{}", "---|".repeat(head.len()));
    for (number, job) in jobs.iter().enumerate() {
        let of = |which: usize| median(&samples[&(number, which)]);
        let mut row: Vec<String> = (0..rivals.len()).map(|which| cell(job, &of(which))).collect();
        row.extend((0..gateways).map(|which| {
            let ratio = of(which).outcome.rate / of(gateways).outcome.rate;
            format!("{ratio:.2}, {}", if ratio >= AIM { "met" } else { "missed" })
        }));
        row.extend(uploading.map(|which| format!("{:.0}", mib(of(which).upload_rate))));
        println!("| {} | {} |", job.name, row.join(" | "));
    }
    println!();
}

/// Prints how many flushes shared a sync, in all rounds of the first rival.
fn syncs(jobs: &[Job], samples: &Samples) {
    let flushing: Vec<_> = jobs.iter().enumerate().filter(|(_, job)| job.fsync > 0).collect();
    if flushing.is_empty() {
        return;
    }
    println!("| culvert-gateway | flushes answered | syncs of its disk | syncs for each flush |");
    println!("|---|---|---|---|");
    for (number, job) in flushing {
        let done = || samples[&(number, 0_usize)].iter().map(|sample| sample.done);
        let flushes: f64 = done().map(|done| done.flushes).sum();
        let syncs: f64 = done().map(|done| done.syncs).sum();
        let each = syncs / flushes.max(1.0);
        println!("| {} | {flushes:.0} | {syncs:.0} | {each:.2} |", job.name);
    }
    println!();
}

/// A rival that serves in a folder of its name.
fn serving(kind: Kind, folder: &Path, cache_size: &str) -> Result<Rival> {
    let name = kind.name();
    let server = filled(kind, &folder.join(name.replace(' ', "-")), cache_size)?;
    Ok(Rival { name, kind, place: Place::Serving(server) })
}

/// A server whose volume was written once from end to end, and read, and is at rest.
fn filled(kind: Kind, folder: &Path, cache_size: &str) -> Result<Server> {
    let more = ["--cache-size", cache_size, "--upload-interval", "1"];
    let server = Server::start(kind, folder, VOLUME, &more)?;
    fio(&server.uri(), &FILL, VOLUME, None)?;
    if kind == Kind::Gateway {
        server.wait_until_clean()?;
    }
    // A stop moves all from the gateway's log to its slots.
    server.stop()?;
    let server = Server::start(kind, folder, VOLUME, &["--upload-interval", "86400"])?;
    fio(&server.uri(), &WARM, VOLUME, None)?;
    Ok(server)
}

/// Writes a gateway's volume from end to end, into its slots, and uploads nothing of it.
fn make_dirty(folder: &Path) -> Result {
    let more = ["--cache-size", FULL_CACHE, "--upload-interval", "86400"];
    let server = Server::start(Kind::Gateway, folder, VOLUME, &more)?;
    fio(&server.uri(), &FILL, VOLUME, None)?;
    server.stop()
}

/// Starts the gateway of a dirty volume, and waits until it uploads and has nothing else to do. Its start dropped the
/// cache from the page cache; all that is compared has its data there.
fn start_uploading(folder: &Path) -> Result<Server> {
    let more = ["--upload-interval", "1", "--upload-rate", &UPLOAD_RATE.to_string()];
    let server = Server::start(Kind::Gateway, folder, VOLUME, &more)?;
    fio(&server.uri(), &WARM, VOLUME, None)?;
    let begun = Instant::now();
    loop {
        let unvalidated = server.metric("culvert_cache_unvalidated_chunks")?;
        let log = server.metric("culvert_cache_log_used_bytes")?
            / server.metric("culvert_cache_log_bytes")?;
        let uploaded = server.metric("culvert_store_uploaded_bytes_total")?;
        if unvalidated < 1.0 && log < LOG_AT_REST && uploaded > 0.0 {
            return Ok(server);
        }
        if begun.elapsed() > UPLOADS_WITHIN {
            return Err(format!(
                "after {UPLOADS_WITHIN:?} the gateway has {unvalidated} chunks to validate, a log used \
                 by {:.0} %, and has uploaded {uploaded} bytes",
                log * 100.0
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Stops all and removes what they had.
fn end(rivals: Vec<Rival>, folder: &Path) -> Result {
    for rival in rivals {
        if let Place::Serving(server) = rival.place {
            server.stop()?;
        }
    }
    std::fs::remove_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))
}

/// Lets what is written reach the disk, so that nobody pays for another's writes.
pub(super) fn settle() -> Result {
    crate::run::command("sync").status().map_err(|e| format!("sync: {e}"))?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

fn median(samples: &[Sample]) -> Sample {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.outcome.rate.total_cmp(&b.outcome.rate));
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn cell(job: &Job, sample: &Sample) -> String {
    let Sample { outcome, cpu_us, .. } = sample;
    if job.block == "1m" {
        format!("{:.0} MiB/s, CPU {cpu_us:.0} µs", mib(outcome.bandwidth))
    } else {
        format!("{:.1} k/s, p99 {:.0} µs, CPU {cpu_us:.1} µs", outcome.rate / 1e3, outcome.p99_us)
    }
}

pub(super) fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
