//! Verbs and options.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use culvert_model::{CONTROL_SOCKET, DATAPLANE_SOCKET, DEFAULT_RUN_DIR};

use crate::manage::host::HostVerb;
use crate::manage::port::{PortFields, PortKeys};
use crate::manage::queue::QueueArgs;
use crate::manage::rules::{
    AclFields, AclKeys, IngressFields, IngressKeys, MappingFields, MappingKeys, RouteFields,
    RouteKeys,
};
use crate::manage::vnet::{VnetFields, VnetKeys};
use crate::manage::{How, Verb as ObjectVerb};
use crate::remote::Remote;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  refused, and nothing was changed; or another failure
  2  wrong usage, or a file that cannot be read or is not valid
  3  culvertd, its store or the dataplane cannot be reached
  4  accepted, but this host does not carry all of it
  5  health found something wrong
  6  queued: the store cannot be reached, and it is written when it is back";

/// Manages the virtual networks of a host, and shows what happens.
///
/// Verbs that change something speak to culvertd, which keeps what is wanted; those that show what
/// happens, to the dataplane, which carries the packets.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// The directory with the sockets of this host's culvertd and dataplane.
    #[arg(long, global = true, value_name = "DIR", env = "CULVERT_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub(crate) run_dir: PathBuf,

    /// The dataplane's socket, where it is not in the run directory. `apply` then gives its state to
    /// this dataplane itself, without culvertd.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Speak to the culvertd of another host, by mutual TLS: HOST:PORT as in `tcp` of its settings. Only for
    /// verbs that change or list what is wanted.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "CULVERT_REMOTE",
        conflicts_with = "socket",
        help_heading = "Another host"
    )]
    pub(crate) remote: Option<Remote>,

    /// With --remote: PEM file of the authorities that its certificate may be signed by.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CULVERT_TLS_CA",
        help_heading = "Another host"
    )]
    pub(crate) tls_ca: Option<PathBuf>,

    /// With --remote: PEM file of our certificate, which an authority of its `client_ca` signed.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CULVERT_TLS_CERT",
        help_heading = "Another host"
    )]
    pub(crate) tls_cert: Option<PathBuf>,

    /// With --remote: PEM file of the key of our certificate.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CULVERT_TLS_KEY",
        help_heading = "Another host"
    )]
    pub(crate) tls_key: Option<PathBuf>,

    /// Tables for people; JSON or YAML with stable field names for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Args {
    /// The dataplane's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.run_dir.join(DATAPLANE_SOCKET))
    }

    /// The socket of culvertd.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run_dir.join(CONTROL_SOCKET)
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make the state in a file the wanted one: all of it, or nothing.
    Apply(Apply),
    /// Write what is wanted of this host as a file that `apply` takes.
    Export(Export),
    /// Attachments of tenants.
    #[command(subcommand)]
    Port(ObjectVerb<PortFields, PortKeys>),
    /// Virtual networks.
    #[command(subcommand)]
    Vnet(ObjectVerb<VnetFields, VnetKeys>),
    /// Where frames may go.
    #[command(subcommand)]
    Route(ObjectVerb<RouteFields, RouteKeys>),
    /// Behind which VTEP an address lives.
    #[command(subcommand)]
    Mapping(ObjectVerb<MappingFields, MappingKeys>),
    /// What is taken from the underlay.
    #[command(subcommand)]
    Ingress(ObjectVerb<IngressFields, IngressKeys>),
    /// ACL groups.
    #[command(subcommand)]
    Acl(ObjectVerb<AclFields, AclKeys>),
    /// Tunnel formats of your own.
    #[command(subcommand)]
    Format(crate::manage::format::FormatVerb),
    /// Hosts of the cluster, and this host's underlay.
    #[command(subcommand)]
    Host(HostVerb),
    /// Changes that wait for the store, or could not be written when it was back.
    Queue(QueueArgs),
    /// Volumes of this host's storage gateway.
    Volume(crate::volume::VolumeArgs),
    /// The cache of this host's storage gateway.
    Cache(crate::volume::cache::CacheArgs),
    /// Show the state of the dataplane.
    Show(Show),
    /// Show counters of ports, workers, kernel and packet memory.
    Stats(Stats),
    /// Print frames that rules hand to the control plane, as they come.
    Traps(Traps),
    /// Show packets as they pass, or write them to a file for Wireshark.
    Capture(crate::sight::args::Capture),
    /// Follow the next packets through every stage, and see what each decided and by which rule.
    Trace(crate::sight::args::Trace),
    /// Say what would become of a packet, without sending it.
    Explain(Box<crate::sight::args::Explain>),
    /// Say what a drop reason means, and what to do.
    ExplainDrop(crate::explain_drop::ExplainDrop),
    /// Show ports, flows and drops live.
    Top(crate::top::Top),
    /// Say what is wrong on this host, and what to do.
    Health(crate::health::Health),
    /// Print a completion script for a shell.
    Completions(Completions),
    /// Write the manual pages of all verbs into a directory.
    #[command(hide = true)]
    Man(Man),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// The host's state, in TOML; - reads standard input.
    #[arg(short, long, value_name = "HOST_TOML")]
    pub(crate) file: PathBuf,

    /// Check the file only; needs neither culvertd nor a dataplane.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) check: bool,

    #[command(flatten)]
    pub(crate) how: How,

    /// Delete what belongs to the whole cluster and is not in the file. Without it, such objects stay.
    #[arg(long)]
    pub(crate) prune: bool,

    /// Only if this is the store's revision.
    #[arg(long, value_name = "REVISION")]
    pub(crate) if_revision: Option<u64>,

    /// With --socket: only if this is the dataplane's generation.
    #[arg(long, value_name = "GENERATION")]
    pub(crate) if_generation: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// What this host carries: with the mappings that follow from other hosts' ports, and without what
    /// does not concern it.
    #[arg(long)]
    pub(crate) carried: bool,
    /// Write keys, too, which are left out else: `apply` takes a file with keys only as it is.
    #[arg(long)]
    pub(crate) show_keys: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// What to show.
    #[arg(value_enum, default_value_t = What::Ports)]
    pub(crate) what: What,
    /// Of the whole state, keys too, which are left out else.
    #[arg(long)]
    pub(crate) show_keys: bool,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Ports as they are.
    Ports,
    /// Virtual networks.
    Vnets,
    /// Egress routes.
    Routes,
    /// Where addresses live.
    Mappings,
    /// Ingress rules.
    Ingress,
    /// ACL groups, rule by rule.
    Acls,
    /// The physical network, as wanted and as it is, and who cuts superframes there: the device, the kernel, the dataplane.
    Underlay,
    /// Frames of the shard format by VTEP: whole, rebuilt of their shares, or lost.
    Shards,
    /// The dataplane itself, and what the kernel can do.
    Info,
    /// The whole state, as a host.toml.
    Host,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// Only what was dropped, and why.
    #[arg(long)]
    pub(crate) drops: bool,

    /// Print what moves, per second, every so many seconds, until interrupted.
    #[arg(short, long, value_name = "SECS", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub(crate) watch: Option<u16>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Traps {
    /// End after so many.
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "For bash:
  culvert completions bash >/etc/bash_completion.d/culvert")]
pub(crate) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// The directory.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}
