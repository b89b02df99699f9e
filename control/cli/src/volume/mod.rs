//! `culvert volume` and `culvert cache`: what the storage gateway has, and what operators do with it.

pub(crate) mod cache;
mod progress;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use culvert_model::{GATEWAY_SERVICE_DIR, GATEWAY_SOCKET, Size, api};
use serde::Serialize;

use crate::args::{Args, Output};
use crate::client::{Gateway, on_this_host};
use crate::error::{CliError, Peer};
use crate::output::{or_dash, print, print_value, table};
use progress::{Progress, waiting};

/// Where the gateway is.
#[derive(Debug, clap::Args)]
pub(crate) struct At {
    /// The gateway's socket: `--control` of `culvert-gateway serve`. If not given, the first that a gateway
    /// answers on: in the run directory, of the service, `$XDG_RUNTIME_DIR/culvert/gateway.sock`.
    #[arg(long, global = true, value_name = "PATH", env = "CULVERT_GATEWAY")]
    gateway: Option<PathBuf>,
}

impl At {
    async fn connect(&self, args: &Args) -> Result<Gateway, CliError> {
        on_this_host(args, "the storage gateway")?;
        if let Some(socket) = &self.gateway {
            return Gateway::connect(socket).await;
        }
        let folders = [args.run_dir.clone(), GATEWAY_SERVICE_DIR.into()];
        let (mut tried, mut failure) = (Vec::new(), None);
        for folder in folders.into_iter().chain(culvert_socket::user_run_dir()) {
            match Gateway::connect(&folder.join(GATEWAY_SOCKET)).await {
                Ok(gateway) => return Ok(gateway),
                Err(CliError::Absent { at, .. }) => tried.push(at),
                // One that is there and may not be used, or not by this user; another may.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let absent = CliError::Absent { who: Peer::Gateway, at: tried.join(", ") };
        Err(failure.unwrap_or(absent))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct VolumeArgs {
    #[command(flatten)]
    at: At,

    #[command(subcommand)]
    verb: VolumeVerb,
}

/// What one can do with volumes.
#[derive(Debug, Subcommand)]
enum VolumeVerb {
    /// Make a volume, all zeros.
    Create {
        /// Its name: up to 64 of a-z, 0-9, dot, underscore and dash.
        name: String,
        /// Its size: a multiple of 4096 bytes, up to 64T.
        size: Size,
        #[command(flatten)]
        options: Options,
    },
    /// Take a volume that is in the store and that nobody has. Durability and dirty quota are not in the store: those that
    /// it had elsewhere must be given again.
    Attach {
        /// Its name.
        name: String,
        /// Take it although another gateway owns it. You assert that that one is dead.
        #[arg(long)]
        take_over: bool,
        #[command(flatten)]
        options: Options,
    },
    /// List the volumes.
    List {
        /// Also those that are in the store only.
        #[arg(long)]
        stored: bool,
    },
    /// Show a volume.
    Show {
        /// Its name.
        name: String,
    },
    /// Change the size. Clients see it when they connect anew.
    Resize {
        /// Its name.
        name: String,
        /// Its new size.
        size: Size,
        /// Permit a smaller size: what is cut off is gone.
        #[arg(long)]
        shrink: bool,
    },
    /// Change what FLUSH promises, or how much may be dirty.
    Set {
        /// Its name.
        name: String,
        /// What FLUSH waits for.
        #[arg(long, value_enum, required_unless_present = "dirty_quota")]
        durability: Option<Durability>,
        /// Bytes that may wait for upload before writers do; 0: no limit.
        #[arg(long, value_name = "SIZE")]
        dirty_quota: Option<Size>,
    },
    /// Upload everything that was written so far, and publish it.
    Flush {
        /// Its name.
        name: String,
    },
    /// Upload everything and give the volume up, so that another gateway may take it.
    Detach {
        /// Its name.
        name: String,
    },
    /// Delete a volume for good, in the store too.
    Delete {
        /// Its name.
        name: String,
        /// Only forget what this cache has of a volume that it does not serve any more. What a quarantine
        /// holds is gone then.
        #[arg(long)]
        forget: bool,
    },
}

/// What an operator may choose for a volume.
#[derive(Debug, clap::Args)]
struct Options {
    /// What FLUSH waits for.
    #[arg(long, value_enum, default_value_t = Durability::Local)]
    durability: Durability,
    /// Bytes that may wait for upload before writers do; 0: no limit.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    dirty_quota: Size,
}

/// What FLUSH waits for.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Durability {
    /// The local disk.
    Local,
    /// The store.
    Remote,
}

/// A volume as it is printed.
#[derive(Serialize)]
struct Shown {
    name: String,
    /// active: served; else why it is not; or stored: in the store only.
    state: String,
    uuid: String,
    size: u64,
    epoch: u64,
    durability: String,
    dirty_quota: u64,
    dirty_bytes: u64,
    /// Everything up to this sequence is in the store.
    watermark: u64,
    /// When that was published.
    published_unix_ms: u64,
    connections: u32,
}

impl From<api::Volume> for Shown {
    fn from(volume: api::Volume) -> Shown {
        Shown {
            name: volume.name,
            state: volume.state,
            uuid: volume.uuid,
            size: volume.size,
            epoch: volume.epoch,
            durability: volume.durability,
            dirty_quota: volume.dirty_quota,
            dirty_bytes: volume.dirty_bytes,
            watermark: volume.watermark,
            published_unix_ms: volume.published_unix_ms,
            connections: volume.connections,
        }
    }
}

impl Shown {
    fn is_here(&self) -> bool {
        self.state != "stored"
    }

    /// How long ago the store was up to date.
    fn age(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = now.saturating_sub(Duration::from_millis(self.published_unix_ms));
        format!("{} s", age.as_secs())
    }

    fn row(&self) -> Vec<String> {
        let here = |text: String| or_dash(self.is_here().then_some(text));
        vec![
            self.name.clone(),
            self.state.clone(),
            here(Size(self.size).to_string()),
            here(Size(self.dirty_bytes).to_string()),
            here(self.age()),
            here(self.durability.clone()),
            here(self.connections.to_string()),
        ]
    }

    fn print(&self, output: Output) -> Result<(), CliError> {
        if output != Output::Table {
            return print_value(output, self);
        }
        let quota = (self.dirty_quota > 0).then_some(Size(self.dirty_quota));
        let lines = [
            ("name", self.name.clone()),
            ("state", self.state.clone()),
            ("size", format!("{} ({} bytes)", Size(self.size), self.size)),
            ("not in the store yet", Size(self.dirty_bytes).to_string()),
            ("last cut", format!("{} ago, up to sequence {}", self.age(), self.watermark)),
            (
                "FLUSH waits for",
                match self.durability.as_str() {
                    "remote" => "the store".to_owned(),
                    _ => "the local disk".to_owned(),
                },
            ),
            ("dirty quota", or_dash(quota)),
            ("epoch", self.epoch.to_string()),
            ("uuid", self.uuid.clone()),
            ("connections", self.connections.to_string()),
        ];
        let lines = lines.map(|(what, value)| format!("{what:<21} {value}"));
        print(&lines.join("\n"))
    }
}

/// Runs `culvert volume`.
pub(crate) async fn run(args: &Args, volume: &VolumeArgs) -> Result<(), CliError> {
    let mut gateway = volume.at.connect(args).await?;
    let changed = match &volume.verb {
        VolumeVerb::List { stored } => return list(args, &mut gateway, *stored).await,
        VolumeVerb::Show { name } => {
            return show(&mut gateway, name).await?.print(args.output);
        }
        VolumeVerb::Create { name, size, options } => {
            let request = api::CreateVolumeRequest {
                name: name.clone(),
                size: size.0,
                remote_durability: options.durability == Durability::Remote,
                dirty_quota: options.dirty_quota.0,
            };
            let answer = waiting("making the volume", gateway.calls.create_volume(request)).await;
            gateway.answer(answer)?
        }
        VolumeVerb::Attach { name, take_over, options } => {
            let request = api::AttachVolumeRequest {
                name: name.clone(),
                take_over: *take_over,
                remote_durability: options.durability == Durability::Remote,
                dirty_quota: options.dirty_quota.0,
            };
            let answer = waiting("taking the volume", gateway.calls.attach_volume(request)).await;
            gateway.answer(answer)?
        }
        VolumeVerb::Resize { name, size, shrink } => {
            let (name, size, shrink) = (name.clone(), size.0, *shrink);
            let request = api::ResizeVolumeRequest { name, size, shrink };
            let answer = waiting("resizing the volume", gateway.calls.resize_volume(request)).await;
            gateway.answer(answer)?
        }
        VolumeVerb::Set { name, durability, dirty_quota } => {
            let request = api::SetVolumeRequest {
                name: name.clone(),
                remote_durability: durability.map(|to| to == Durability::Remote),
                dirty_quota: dirty_quota.map(|quota| quota.0),
            };
            let answer = waiting("changing the volume", gateway.calls.set_volume(request)).await;
            gateway.answer(answer)?
        }
        VolumeVerb::Flush { name } => {
            let request = api::FlushVolumeRequest { name: name.clone() };
            let answer = gateway.calls.flush_volume(request).await;
            let answers = gateway.answer(answer)?;
            uploaded(&gateway, answers, "uploading").await?
        }
        VolumeVerb::Detach { name } => {
            let request = api::DetachVolumeRequest { name: name.clone() };
            let answer = gateway.calls.detach_volume(request).await;
            let answers = gateway.answer(answer)?;
            uploaded(&gateway, answers, "uploading what is left").await?
        }
        VolumeVerb::Delete { name, forget } => {
            let request = api::DeleteVolumeRequest { name: name.clone(), forget: *forget };
            let answer = waiting("deleting the volume", gateway.calls.delete_volume(request)).await;
            let was = Shown::from(gateway.answer(answer)?);
            let what = if *forget { "forgotten" } else { "deleted" };
            return match args.output {
                Output::Table => print(&format!("volume {name} is {what}")),
                output => print_value(output, &was),
            };
        }
    };
    Shown::from(changed).print(args.output)
}

/// Follows an upload to its end.
async fn uploaded(
    gateway: &Gateway,
    mut answers: tonic::Streaming<api::VolumeProgress>,
    what: &'static str,
) -> Result<api::Volume, CliError> {
    let progress = Progress::bytes(what);
    while let Some(told) = answers.message().await.map_err(|status| gateway.failure(&status))? {
        progress.set(told.total_bytes - told.left_bytes.min(told.total_bytes), told.total_bytes);
        if let Some(volume) = told.volume {
            return Ok(volume);
        }
    }
    Err(CliError::Other("the gateway did not say how it ended".to_owned()))
}

async fn volumes(gateway: &mut Gateway, stored: bool) -> Result<Vec<Shown>, CliError> {
    let call = gateway.calls.list_volumes(api::ListVolumesRequest { stored });
    let answer = waiting("asking for the volumes", call).await;
    Ok(gateway.answer(answer)?.volumes.into_iter().map(Shown::from).collect())
}

async fn list(args: &Args, gateway: &mut Gateway, stored: bool) -> Result<(), CliError> {
    let volumes = volumes(gateway, stored).await?;
    match args.output {
        Output::Table if volumes.is_empty() => print("no volumes"),
        Output::Table => {
            let headers = ["name", "state", "#size", "#dirty", "#cut age", "flush", "#clients"];
            print(&table(&headers, volumes.iter().map(Shown::row).collect()))
        }
        output => print_value(output, &volumes),
    }
}

async fn show(gateway: &mut Gateway, name: &str) -> Result<Shown, CliError> {
    let mut volumes = volumes(gateway, false).await?;
    match volumes.iter().position(|volume| volume.name == name) {
        Some(at) => Ok(volumes.swap_remove(at)),
        None => {
            let hint = crate::error::hint(name, volumes.iter().map(|v| v.name.as_str()));
            Err(CliError::Usage(format!("volume {name}: no such volume{hint}")))
        }
    }
}
