//! The storage gateway beside `nbdkit file` and `qemu-nbd`: the same client, the same file system, in turn.
//!
//! | file | what |
//! |---|---|
//! | `servers` | the three servers, started and stopped |
//! | `fio` | the client, and what it says |
//! | `speed` | what is cached, read and written, also while much is uploaded; flushes that share a sync |
//! | `miss` | what is not cached, from the store in `store` |
//! | `recovery` | a start after a crash, drawn by `plot`; memory |
//! | `client` | a client that looks at the clock |
//! | `objects` | what a store in a folder has, and had |
//! | `scratch` | the folder in which all of it is |

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

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::scratch::Scratch;
use crate::run::{Result, target_folder};

/// A part of what is measured.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What is cached, read and written.
    Speed,
    /// The same with a cache that is 80 % full, at rest and while it uploads.
    Uploading,
    /// What the cache lacks.
    Miss,
    /// Starts after a crash, and memory.
    Recovery,
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
    /// Of speed and uploading only cases whose name contains this.
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

/// Builds the gateway in release, measures, prints Markdown.
pub(crate) fn volume(options: &Volume) -> Result {
    super::release()?;
    let folder = options.folder.clone().unwrap_or_else(target_folder).join("bench-volume");
    let folder = std::path::absolute(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let scratch = Scratch::take(folder)?;
    let folder = scratch.folder();
    let wanted = |part: Part| options.only.is_empty() || options.only.contains(&part);
    if wanted(Part::Speed) {
        println!("## The storage gateway\n");
        speed::speed(options, folder)?;
    }
    if wanted(Part::Uploading) {
        println!("### While it uploads\n");
        speed::uploading(options, folder)?;
    }
    if wanted(Part::Miss) {
        println!("### What the cache lacks\n");
        miss::miss(folder)?;
    }
    if wanted(Part::Recovery) {
        println!("### Starts after a crash\n");
        recovery::recovery(options, folder)?;
    }
    Ok(())
}
