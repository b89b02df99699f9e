//! The storage gateway beside `nbdkit file` and `qemu-nbd`: the same client, the same file system, in turn.
//!
//! | file | what |
//! |---|---|
//! | `servers` | the three servers, started and stopped |
//! | `fio` | the client, and what it says |
//! | `speed` | what is cached, read and written, also while much is uploaded |
//! | `miss` | what is not cached, from the store in `store` |
//! | `recovery` | a start after a crash, drawn by `plot` |
//! | `client` | a client that looks at the clock |

mod client;
mod fio;
mod miss;
mod plot;
mod recovery;
mod servers;
mod speed;
mod store;

use std::path::PathBuf;

use clap::Args;

use crate::run::{Result, target_folder};

/// Options of `bench volume`.
#[derive(Args)]
pub(crate) struct Volume {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    secs: u64,
    /// How often each server has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these parts: speed, uploading, miss, recovery. May be repeated; all by default.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Only cases whose name contains this; of recovery, the cache of so many GiB, without a plot.
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Folder for volumes and caches, on the file system to be measured; 8 GiB must be free.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Builds the gateway in release, measures, prints Markdown.
pub(crate) fn volume(options: &Volume) -> Result {
    super::release()?;
    let folder = match &options.folder {
        Some(folder) => folder.clone(),
        None => target_folder().join("bench-volume"),
    };
    let folder = std::path::absolute(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let made = std::fs::create_dir_all(&folder);
    made.map_err(|e| format!("{}: {e}", folder.display()))?;
    let scratch = Scratch(folder);
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|p| p == part);
    if wanted("speed") {
        speed::speed(options, &scratch.0)?;
    }
    if wanted("uploading") {
        speed::uploading(options, &scratch.0)?;
    }
    if wanted("miss") {
        miss::miss(&scratch.0)?;
    }
    if wanted("recovery") {
        recovery::recovery(options, &scratch.0)?;
    }
    Ok(())
}

/// A folder that is gone with the value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
