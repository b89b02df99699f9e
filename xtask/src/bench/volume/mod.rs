//! The storage gateway beside `nbdkit file` and `qemu-nbd`: the same client, the same file system, in turn.
//!
//! | file | what |
//! |---|---|
//! | `servers` | the three servers, started and stopped |
//! | `fio` | the client, and what it says |
//! | `speed` | what is cached, read and written, also while much is uploaded; flushes that share a sync |
//! | `beside` | small requests beside a stream to another volume |
//! | `miss` | what is not cached, from the store in `store` |
//! | `recovery` | a start after a crash, drawn by `plot`; memory |
//! | `client` | a client that looks at the clock |
//! | `objects` | what a store in a folder has, and had |
//! | `scratch` | the folder in which all of it is |

mod beside;
mod client;
mod fio;
mod miss;
mod objects;
mod plot;
mod recovery;
mod scratch;
mod servers;
mod speed;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::fio::Job;
use self::scratch::Scratch;
use crate::run::{Result, target_folder};

/// A part of what is measured.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What is cached, read and written.
    Speed,
    /// The same with a cache that is 80 % full, at rest and while it uploads.
    Uploading,
    /// Small requests beside a stream of writes to another volume.
    Beside,
    /// What the cache lacks.
    Miss,
    /// Starts after a crash, and memory.
    Recovery,
}

impl Part {
    /// What it does in turns.
    fn jobs(self) -> &'static [Job] {
        match self {
            Part::Speed | Part::Uploading => &speed::JOBS,
            Part::Beside => &beside::JOBS,
            Part::Miss | Part::Recovery => &[],
        }
    }
}

/// Options of `bench volume`.
#[derive(Args)]
pub(crate) struct Volume {
    /// Seconds of each measurement. Those while it uploads must be over before the upload is, some 8 at most.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    secs: u64,
    /// How often each server has its turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only this part. May be repeated; all by default.
    #[arg(long, value_name = "PART", value_enum)]
    only: Vec<Part>,
    /// Of speed, uploading and beside only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Of recovery only caches of so many GiB, with commas between. The plot is drawn anew if there are two or
    /// more.
    #[arg(
        long,
        value_name = "GIB",
        value_delimiter = ',',
        default_values_t = recovery::SIZES,
        value_parser = clap::value_parser!(u64).range(1..=8192)
    )]
    sizes: Vec<u64>,
    /// Folder on the file system to be measured, for a folder of volumes and caches; 24 GiB must be free.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl Volume {
    /// Those of the jobs that were asked for.
    fn chosen(&self, jobs: &[Job]) -> Vec<Job> {
        let wanted = |job: &&Job| self.case.as_ref().is_none_or(|text| job.name.contains(text));
        jobs.iter().filter(wanted).copied().collect()
    }

    /// The parts that were asked for and have something to do.
    fn parts(&self) -> Result<Vec<Part>> {
        let mut parts = Part::value_variants().to_vec();
        if !self.only.is_empty() {
            parts.retain(|part| self.only.contains(part));
        }
        let names: BTreeSet<&str> =
            parts.iter().flat_map(|part| part.jobs()).map(|job| job.name).collect();
        if let Some(text) = &self.case
            && !names.iter().any(|name| name.contains(text))
        {
            let names: Vec<&str> = names.into_iter().collect();
            return Err(format!("--case {text}: no name contains that of: {}", names.join("; ")));
        }
        parts.retain(|part| part.jobs().is_empty() || !self.chosen(part.jobs()).is_empty());
        Ok(parts)
    }
}

/// Builds the gateway in release, measures, prints Markdown.
pub(crate) fn volume(options: &Volume) -> Result {
    let parts = options.parts()?;
    super::release()?;
    let folder = options.folder.clone().unwrap_or_else(target_folder).join("bench-volume");
    let folder = std::path::absolute(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let scratch = Scratch::take(folder)?;
    let folder = scratch.folder();
    for part in parts {
        let (title, measure): (_, fn(&Volume, &Path) -> Result) = match part {
            Part::Speed => ("## The storage gateway", speed::speed),
            Part::Uploading => ("### While it uploads", speed::uploading),
            Part::Beside => ("### Beside a stream", beside::beside),
            Part::Miss => ("### What the cache lacks", |_, folder| miss::miss(folder)),
            Part::Recovery => ("### Starts after a crash", recovery::recovery),
        };
        println!("{title}\n");
        measure(options, folder)?;
    }
    Ok(())
}
