//! `culvert cache`: how the gateway's cache is, whether what it holds is whole, and what it could not upload.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use culvert_model::{Size, api};
use serde::Serialize;
use tonic::Streaming;

use super::At;
use super::progress::Progress;
use crate::args::{Args, Output};
use crate::client::Gateway;
use crate::error::CliError;
use crate::output::{print, print_value};

#[derive(Debug, clap::Args)]
pub(crate) struct CacheArgs {
    #[command(flatten)]
    at: At,

    #[command(subcommand)]
    verb: CacheVerb,
}

/// What one can do with the cache.
#[derive(Debug, Subcommand)]
enum CacheVerb {
    /// Show how the cache is.
    Status,
    /// Read every block of the cache, compare checksums, and name what is damaged; then exit code 5.
    Scrub {
        /// Give up slots that cannot be read, and take the store's word for what they may have held.
        #[arg(long)]
        accept_loss: bool,
    },
    /// Write what a volume in quarantine has, and never could upload, into a file as large as the volume:
    /// ranges at their places, holes elsewhere. What is damaged is left out and named; then exit code 5.
    /// Nothing changes in the cache.
    ExportQuarantine {
        /// The volume.
        name: String,
        /// The file, which must not exist yet. Until it is whole, and durable, it is FILE.part.
        file: PathBuf,
    },
}

#[derive(Serialize)]
struct Status {
    version: String,
    cache: String,
    cache_id: String,
    store: String,
    log_bytes: u64,
    log_used_bytes: u64,
    /// Slots of 4 MiB.
    slots: u32,
    free_slots: u32,
    /// Slots with something that is not in the store yet.
    dirty_slots: u32,
    unvalidated_chunks: u32,
    unknown_slots: u32,
    /// Why the cache stopped; absent: it did not.
    stopped: Option<String>,
    hit_blocks: u64,
    missed_blocks: u64,
    fetched_bytes: u64,
    uploaded_bytes: u64,
    evicted_chunks: u64,
    damaged_blocks: u64,
    store_failures: u64,
    connections: u32,
}

impl From<api::GatewayInfo> for Status {
    fn from(info: api::GatewayInfo) -> Status {
        Status {
            version: info.version,
            cache: info.cache_path,
            cache_id: info.cache_id,
            store: info.store,
            log_bytes: info.log_bytes,
            log_used_bytes: info.log_used_bytes,
            slots: info.slots,
            free_slots: info.free_slots,
            dirty_slots: info.dirty_slots,
            unvalidated_chunks: info.unvalidated_chunks,
            unknown_slots: info.unknown_slots,
            stopped: (!info.stopped.is_empty()).then_some(info.stopped),
            hit_blocks: info.hits,
            missed_blocks: info.misses,
            fetched_bytes: info.fetched_bytes,
            uploaded_bytes: info.uploaded_bytes,
            evicted_chunks: info.evicted_chunks,
            damaged_blocks: info.damaged_blocks,
            store_failures: info.store_failures,
            connections: info.connections,
        }
    }
}

impl Status {
    fn text(&self) -> String {
        let read = self.hit_blocks + self.missed_blocks;
        let hits = self.hit_blocks as f64 * 100.0 / read.max(1) as f64;
        let mut lines = vec![
            ("cache", format!("{} ({})", self.cache, self.cache_id)),
            ("store", self.store.clone()),
            ("log", format!("{} of {} in use", Size(self.log_used_bytes), Size(self.log_bytes))),
            (
                "slots of 4M",
                format!("{}, {} free, {} dirty", self.slots, self.free_slots, self.dirty_slots),
            ),
            ("chunks to validate", self.unvalidated_chunks.to_string()),
            ("blocks read", format!("{read}, {hits:.1} % from the cache")),
            ("fetched", Size(self.fetched_bytes).to_string()),
            ("uploaded", Size(self.uploaded_bytes).to_string()),
            ("evicted chunks", self.evicted_chunks.to_string()),
            ("damaged blocks", self.damaged_blocks.to_string()),
            ("failures of the store", self.store_failures.to_string()),
            ("connections", self.connections.to_string()),
        ];
        if self.unknown_slots > 0 {
            lines.push(("unreadable slots", self.unknown_slots.to_string()));
        }
        if let Some(cause) = &self.stopped {
            lines.push(("STOPPED", cause.clone()));
        }
        let lines: Vec<_> =
            lines.iter().map(|(what, value)| format!("{what:<21} {value}")).collect();
        lines.join("\n")
    }
}

#[derive(Serialize)]
struct Scrubbed {
    chunks: u64,
    blocks: u64,
    /// Damaged blocks that the store has too: they are fetched again.
    clean_damaged: u64,
    /// What only this cache had and is damaged.
    lost: Vec<String>,
    lost_count: u64,
    unknown_slots: u32,
}

/// Runs `culvert cache`.
pub(crate) async fn run(args: &Args, cache: &CacheArgs) -> Result<(), CliError> {
    let mut gateway = cache.at.connect(args).await?;
    match &cache.verb {
        CacheVerb::Status => {
            let answer = gateway.calls.get_gateway_info(api::GetGatewayInfoRequest {}).await;
            let status = Status::from(gateway.answer(answer)?);
            match args.output {
                Output::Table => print(&status.text()),
                output => print_value(output, &status),
            }
        }
        CacheVerb::Scrub { accept_loss } => scrub(args, &mut gateway, *accept_loss).await,
        CacheVerb::ExportQuarantine { name, file } => export(args, &mut gateway, name, file).await,
    }
}

async fn scrub(args: &Args, gateway: &mut Gateway, accept_loss: bool) -> Result<(), CliError> {
    let answer = gateway.calls.scrub_cache(api::ScrubCacheRequest { accept_loss }).await;
    let mut answers = gateway.answer(answer)?;
    let progress = Progress::counting("reading", "chunks");
    let report = loop {
        let told = answers.message().await.map_err(|status| gateway.failure(&status))?;
        let told =
            told.ok_or_else(|| CliError::Other("the gateway did not say how it ended".to_owned()))?;
        progress.set(told.done_chunks, told.total_chunks);
        if let Some(report) = told.report {
            break report;
        }
    };
    drop(progress);
    let found = Scrubbed {
        chunks: report.chunks,
        blocks: report.blocks,
        clean_damaged: report.clean_damaged,
        lost: report.lost,
        lost_count: report.lost_count,
        unknown_slots: report.unknown_slots,
    };
    match args.output {
        Output::Table => {
            for lost in &found.lost {
                print(lost)?;
            }
            print(&format!(
                "{} chunks with {} blocks read; damaged: {} that the store has, {} that it has not; {} unreadable slots",
                found.chunks,
                found.blocks,
                found.clean_damaged,
                found.lost_count,
                found.unknown_slots
            ))?;
        }
        output => print_value(output, &found)?,
    }
    if found.lost_count > 0 || (found.unknown_slots > 0 && !accept_loss) {
        return Err(CliError::Unhealthy("the cache has lost something".to_owned()));
    }
    Ok(())
}

#[derive(Default, Serialize)]
struct Exported {
    file: String,
    ranges: u64,
    bytes: u64,
    /// What was never uploaded, is damaged, and is not in the file.
    lost: Vec<LostRange>,
    /// Slots of which nobody knows what they held: perhaps more of this volume.
    unknown_slots: u32,
}

#[derive(Serialize)]
struct LostRange {
    offset: u64,
    end: u64,
}

async fn export(
    args: &Args,
    gateway: &mut Gateway,
    name: &str,
    path: &Path,
) -> Result<(), CliError> {
    let failed = |file: &Path, error| CliError::File { file: file.display().to_string(), error };
    if path.symlink_metadata().is_ok() {
        let error = Error::new(ErrorKind::AlreadyExists, "exists already: name another file");
        return Err(failed(path, error));
    }
    let request = api::ExportQuarantineRequest { name: name.to_owned() };
    let answer = gateway.calls.export_quarantine(request).await;
    let mut answers = gateway.answer(answer)?;
    // The first answer tells whether there is anything to export at all.
    let first = answers.message().await.map_err(|status| gateway.failure(&status))?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let file = File::create_new(&part).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            let why = "exists already: an export is under way, or was cut short; then remove it";
            failed(&part, Error::new(ErrorKind::AlreadyExists, why))
        }
        _ => failed(&part, error),
    })?;
    let received = receive(gateway, &file, &part, first, &mut answers).await;
    if received.is_err() {
        // It would keep the next attempt from beginning.
        let _ = std::fs::remove_file(&part);
    }
    let exported = Exported { file: path.display().to_string(), ..received? };
    name_whole(&part, path).map_err(|error| {
        let why = format!("{error}; all of it is in {}", part.display());
        failed(path, Error::new(error.kind(), why))
    })?;
    match args.output {
        Output::Table => {
            for LostRange { offset, end } in &exported.lost {
                print(&format!(
                    "volume {name}: the only copy of bytes {offset} to {end} is damaged; they are not in the file"
                ))?;
            }
            if exported.unknown_slots > 0 {
                print(&format!(
                    "{} slots of the cache are unreadable: they may have held more of volume {name}",
                    exported.unknown_slots
                ))?;
            }
            print(&format!(
                "{} ranges with {} bytes written to {}",
                exported.ranges, exported.bytes, exported.file
            ))?;
        }
        output => print_value(output, &exported)?,
    }
    if !exported.lost.is_empty() || exported.unknown_slots > 0 {
        return Err(CliError::Unhealthy("not all of it could be exported".to_owned()));
    }
    Ok(())
}

/// Writes what comes into the file.
async fn receive(
    gateway: &Gateway,
    file: &File,
    path: &Path,
    first: Option<api::QuarantineRange>,
    answers: &mut Streaming<api::QuarantineRange>,
) -> Result<Exported, CliError> {
    let failed = |error| CliError::File { file: path.display().to_string(), error };
    let progress = Progress::bytes("exporting");
    let mut exported = Exported::default();
    let mut next = first;
    loop {
        let Some(range) = next else {
            // A gateway that is stopped ends its answers, too.
            return Err(CliError::Other("the gateway did not say how it ended".to_owned()));
        };
        if range.complete {
            break;
        }
        let end = range.offset.saturating_add(range.len);
        file.set_len(range.size).map_err(failed)?;
        exported.unknown_slots = exported.unknown_slots.max(range.unknown_slots);
        if range.lost {
            exported.lost.push(LostRange { offset: range.offset, end });
        } else if range.len > 0 {
            if range.data.is_empty() {
                zeros(file, range.offset, range.len).map_err(failed)?;
            } else {
                file.write_all_at(&range.data, range.offset).map_err(failed)?;
            }
            exported.ranges += 1;
            exported.bytes += range.len;
            progress.set(end, range.size);
        }
        next = answers.message().await.map_err(|status| gateway.failure(&status))?;
    }
    file.sync_all().map_err(failed)?;
    Ok(exported)
}

/// Gives the file, once it is whole, its name, unless somebody else has taken that meanwhile. Name and all are
/// durable then: what it was made of is perhaps given up next.
fn name_whole(part: &Path, path: &Path) -> std::io::Result<()> {
    std::fs::hard_link(part, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    std::fs::remove_file(part)
}

/// Writes zeros, so that a range that was made zeros can be told from what is not there.
fn zeros(file: &File, mut offset: u64, len: u64) -> std::io::Result<()> {
    let zeros = [0; 1 << 16];
    let end = offset + len;
    while offset < end {
        let part = usize::try_from(end - offset).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all_at(&zeros[..part], offset)?;
        offset += part as u64;
    }
    Ok(())
}
