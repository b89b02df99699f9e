//! A client of small requests beside a stream of large writes to another volume: of the same gateway, and, with the
//! other servers, of a server of its own on the same file system.

use std::path::Path;
use std::time::Duration;

use super::Volume;
use super::fio::{Job, Outcome, fio};
use super::servers::{Kind, Server};
use super::speed::{FILL, VOLUME, WARM, WIDE_CACHE, mib, settle};
use crate::run::Result;

/// Size of the volume of the small requests.
const SMALL: u64 = 128 << 20;
/// Its name at the gateway.
const SMALL_NAME: &str = "small";

/// What the client does.
pub(super) const JOBS: [Job; 3] = [
    Job::new("4 KiB random read, depth 1", "randread", "4k", 1),
    Job::new("4 KiB random write, depth 1", "randwrite", "4k", 1),
    Job { fsync: 1, ..Job::new("4 KiB write and flush", "randwrite", "4k", 1) },
];

/// What is written meanwhile.
const STREAM: Job = Job::new("1 MiB write stream", "write", "1m", 4);
/// How long the stream runs before the client begins, and after it ends, about.
const LEAD: Duration = Duration::from_secs(1);

/// A server of both volumes, or two.
struct Rival {
    kind: Kind,
    server: Server,
    /// That of the small volume, if it is another one.
    small: Option<Server>,
}

/// A run of one job.
#[derive(Clone, Copy)]
struct Sample {
    client: Outcome,
    /// Bytes per second of the stream.
    stream: f64,
}

/// Runs all jobs on all servers in turn and prints the table.
pub(super) fn beside(options: &Volume, folder: &Path) -> Result {
    let jobs = options.chosen(&JOBS);
    let folder = folder.join("beside");
    let rivals = Kind::ALL.map(|kind| Rival::start(kind, &folder));
    let rivals = rivals.into_iter().collect::<Result<Vec<_>>>()?;
    let names: Vec<&str> = rivals.iter().map(|rival| rival.kind.name()).collect();
    println!("| beside a stream | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for job in jobs {
        let mut samples = vec![Vec::new(); rivals.len()];
        for round in 0..options.rounds {
            for turn in 0..rivals.len() {
                let which = (turn + round as usize) % rivals.len();
                let sample = rivals[which].turn(&job, options.secs)?;
                eprintln!(
                    "{}, {}: {:.0} a second, p99 {:.0} us; stream {:.0} MiB/s",
                    job.name,
                    names[which],
                    sample.client.rate,
                    sample.client.p99_us,
                    mib(sample.stream)
                );
                samples[which].push(sample);
            }
        }
        let cells: Vec<String> = samples.into_iter().map(cell).collect();
        println!("| {} | {} |", job.name, cells.join(" | "));
    }
    println!();
    for rival in rivals {
        rival.server.stop()?;
        rival.small.map_or(Ok(()), Server::stop)?;
    }
    std::fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))
}

impl Rival {
    /// Starts it with both volumes written once and in the page cache; those of a gateway are in the store.
    fn start(kind: Kind, folder: &Path) -> Result<Rival> {
        let folder = folder.join(kind.name().replace(' ', "-"));
        let start = |interval: &str| {
            let small = format!("{SMALL_NAME}={SMALL}");
            let more = ["--cache-size", WIDE_CACHE, "--upload-interval", interval];
            let more: Vec<&str> = more.into_iter().chain(["--volume", small.as_str()]).collect();
            let server = Server::start(kind, &folder.join("large"), VOLUME, &more)?;
            let small = match kind {
                Kind::Gateway => None,
                Kind::Nbdkit | Kind::QemuNbd => {
                    Some(Server::start(kind, &folder.join(SMALL_NAME), SMALL, &[])?)
                }
            };
            Ok::<_, String>(Rival { kind, server, small })
        };
        let mut rival = start("1")?;
        rival.once(&FILL)?;
        if kind == Kind::Gateway {
            rival.server.wait_until_clean()?;
            // A stop moves all from the log to the slots, and a start uploads nothing for a day.
            rival.server.stop()?;
            rival = start("86400")?;
        }
        rival.once(&WARM)?;
        Ok(rival)
    }

    fn small_uri(&self) -> String {
        self.small.as_ref().map_or_else(|| self.server.uri_of(SMALL_NAME), Server::uri)
    }

    /// Does that from end to end of both volumes.
    fn once(&self, job: &Job) -> Result {
        fio(&self.server.uri(), job, VOLUME, None)?;
        fio(&self.small_uri(), job, SMALL, None)?;
        Ok(())
    }

    /// Runs the job within a stream.
    fn turn(&self, job: &Job, secs: u64) -> Result<Sample> {
        settle()?;
        let (uri, small) = (self.server.uri(), self.small_uri());
        std::thread::scope(|scope| {
            let stream =
                scope.spawn(|| fio(&uri, &STREAM, VOLUME, Some(secs + 2 * LEAD.as_secs())));
            std::thread::sleep(LEAD);
            let client = fio(&small, job, SMALL, Some(secs));
            let stream = stream.join().map_err(|_| "the stream's thread failed".to_owned())?;
            Ok(Sample { client: client?, stream: stream?.bandwidth })
        })
    }
}

/// That of the middle run, and the rates of all.
fn cell(mut samples: Vec<Sample>) -> String {
    samples.sort_by(|a, b| a.client.rate.total_cmp(&b.client.rate));
    let [first, .., last] = samples.as_slice() else {
        return samples.first().map_or_else(String::new, |one| words(one, ""));
    };
    let range = format!(" ({:.0} to {:.0})", first.client.rate, last.client.rate);
    words(&samples[samples.len() / 2], &range)
}

fn words(sample: &Sample, range: &str) -> String {
    let Outcome { rate, median_us, p99_us, p999_us, .. } = sample.client;
    let ms = |us: f64| format!("{:.2}", us / 1e3);
    let (median, p99, p999) = (ms(median_us), ms(p99_us), ms(p999_us));
    let stream = mib(sample.stream);
    format!("{rate:.0} a second{range}; {median}, {p99}, {p999} ms; stream {stream:.0} MiB/s")
}
