//! `culvert host`: the hosts of the cluster, and this host's underlay.

use std::net::IpAddr;

use clap::Subcommand;
use culvert_model::{
    Edit, IfName, ModePreference, Mtu, Object, ObjectKey, Peer, Underlay, UnderlayRx, UnderlayTx,
    api,
};
use serde::Serialize;

use super::shard::{ShardFields, peer_of};
use super::values::{List, Setting, ips, mtu, peer, raise_mss};
use super::{How, committed, edit, needed};
use crate::args::{Args, Output};
use crate::client::{Daemon, not_understood};
use crate::error::CliError;
use crate::objects;
use crate::output::{joined, or_dash, print, print_value, table};

/// What one can do with hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// Give this host an underlay, and so make it part of the cluster.
    Add(Change),
    /// Change the underlay of this host.
    Set(Change),
    /// Forget a host that is not alive, with its ports and their routes.
    Del(Forget),
    /// Show the hosts of the cluster.
    Show,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Change {
    #[command(flatten)]
    fields: UnderlayFields,
    #[command(flatten)]
    how: How,
}

#[derive(Clone, Debug, clap::Args)]
struct UnderlayFields {
    /// Devices of the physical network, separated by commas.
    #[arg(long = "interface", value_name = "DEVICES")]
    interfaces: Option<List<IfName>>,
    /// Our VTEP addresses on them, separated by commas.
    #[arg(long = "address", value_name = "IPS", value_parser = ips)]
    addresses: Option<List<IpAddr>>,
    /// MTU towards the other hosts in bytes, or none: the least of the devices'.
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    mtu: Option<Setting<Mtu>>,
    /// How AF_XDP attaches: auto, zero-copy, native or generic.
    #[arg(long)]
    mode: Option<ModePreference>,
    /// How frames are received: xdp, or packet, which keeps the device's receive coalescing.
    #[arg(long)]
    rx: Option<UnderlayRx>,
    /// How frames leave: auto, xdp or packet.
    #[arg(long)]
    tx: Option<UnderlayTx>,
    /// How long a segment may wait for the next of its flow, in microseconds: 0 to 1000.
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u16).range(..=1000))]
    merge_hold_us: Option<u16>,
    /// A VTEP that is spoken to in a format of its own, as 198.51.100.7=geneve; those given replace all
    /// that there were.
    #[arg(long = "peer", value_name = "IP=FORMAT", value_parser = peer)]
    peers: Vec<Peer>,
    /// Takes all peers' formats away.
    #[arg(long, conflicts_with = "peers")]
    no_peers: bool,
    /// Whether a VTEP is a Culvert, whatever its vnets say, as 198.51.100.7=true; false, or default: as
    /// they say.
    #[arg(long, value_name = "IP=BOOL", value_parser = raise_mss)]
    raise_mss: Vec<(IpAddr, Option<bool>)>,
    #[command(flatten)]
    shard: ShardFields,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Forget {
    /// Its name.
    name: String,
    /// Show what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args, verb: &HostVerb) -> Result<(), CliError> {
    let mut daemon = Daemon::connect(args).await?;
    match verb {
        HostVerb::Add(change) => put(args, &mut daemon, change, true).await,
        HostVerb::Set(change) => put(args, &mut daemon, change, false).await,
        HostVerb::Del(Forget { name, dry_run }) => {
            let request = api::ForgetHostRequest { name: name.clone(), dry_run: *dry_run };
            let answer = daemon.calls.forget_host(request).await;
            committed(args, daemon.answer(answer)?, *dry_run)
        }
        HostVerb::Show => show(args, &mut daemon).await,
    }
}

async fn put(args: &Args, daemon: &mut Daemon, change: &Change, new: bool) -> Result<(), CliError> {
    let of = (api::ObjectKind::Underlay, &ObjectKey::Underlay);
    edit(args, daemon, of, &change.how, |before| {
        let before = match before {
            Some(Object::Underlay(underlay)) => Some(underlay),
            _ => None,
        };
        let wrong = match (&before, new) {
            (Some(_), true) => "this host has an underlay already; `culvert host set` changes it",
            (None, false) => "this host has no underlay yet; `culvert host add` gives it one",
            _ => return Ok(Some(Edit::SetUnderlay(change.fields.clone().onto(before)?))),
        };
        Err(CliError::Usage(wrong.to_owned()))
    })
    .await
}

impl UnderlayFields {
    fn onto(self, before: Option<Underlay>) -> Result<Underlay, CliError> {
        let mut underlay = match before {
            Some(underlay) => underlay,
            None => Underlay {
                interfaces: needed(self.interfaces.clone(), "--interface", "names of devices")?.0,
                addresses: needed(self.addresses.clone(), "--address", "IP addresses")?.0,
                mtu: None,
                mode: ModePreference::default(),
                rx: UnderlayRx::default(),
                tx: UnderlayTx::default(),
                merge_hold_us: 0,
                peers: Vec::new(),
                shard: culvert_model::ShardSettings::default(),
            },
        };
        underlay.interfaces = self.interfaces.map_or(underlay.interfaces, |list| list.0);
        underlay.addresses = self.addresses.map_or(underlay.addresses, |list| list.0);
        underlay.mtu = self.mtu.map_or(underlay.mtu, Setting::into_option);
        underlay.mode = self.mode.unwrap_or(underlay.mode);
        underlay.rx = self.rx.unwrap_or(underlay.rx);
        underlay.merge_hold_us = self.merge_hold_us.unwrap_or(underlay.merge_hold_us);
        underlay.tx = self.tx.unwrap_or(underlay.tx);
        if self.no_peers || !self.peers.is_empty() {
            set_formats(&mut underlay.peers, self.peers);
        }
        for (vtep, raise) in self.raise_mss {
            peer_of(&mut underlay.peers, vtep).raise_mss = raise;
        }
        self.shard.onto(&mut underlay)?;
        underlay.peers.retain(|peer| {
            peer.format.is_some() || peer.raise_mss.is_some() || peer.keys.is_keyed()
        });
        Ok(underlay)
    }
}

/// Gives peers these formats, and all others none. What else is said of them stays.
fn set_formats(peers: &mut Vec<Peer>, formats: Vec<Peer>) {
    let old = std::mem::replace(peers, formats);
    for mut peer in old {
        match peers.iter_mut().find(|new| new.vtep == peer.vtep) {
            Some(new) => (new.raise_mss, new.keys) = (peer.raise_mss, peer.keys),
            None => {
                peer.format = None;
                peers.push(peer);
            }
        }
    }
}

#[derive(Serialize)]
struct Host {
    name: String,
    /// The host that answered.
    this: bool,
    alive: bool,
    ports: u32,
    version: String,
    /// How far its clock is ahead of this host's, where known.
    clock_ahead_ms: Option<i64>,
    /// Absent: none was given yet.
    underlay: Option<objects::Underlay>,
    problems: Vec<String>,
}

fn host(entry: api::HostEntry) -> Result<Host, CliError> {
    let object =
        entry.underlay.map(|m| api::Object { object: Some(api::object::Object::Underlay(m)) });
    let object = object.map(Object::try_from).transpose();
    let underlay = match object.map_err(|errors| not_understood(&errors))? {
        Some(Object::Underlay(underlay)) => Some(objects::Underlay::from(&underlay)),
        _ => None,
    };
    Ok(Host {
        name: entry.name,
        this: entry.self_,
        alive: entry.alive,
        ports: entry.ports,
        version: entry.version,
        clock_ahead_ms: entry.clock_ahead_ms,
        underlay,
        problems: entry.problems,
    })
}

async fn show(args: &Args, daemon: &mut Daemon) -> Result<(), CliError> {
    let answer = daemon.calls.list_hosts(api::ListHostsRequest {}).await;
    let hosts = daemon.answer(answer)?.hosts.into_iter().map(host);
    let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
    if args.output != Output::Table {
        return print_value(args.output, &hosts);
    }
    let row = |host: Host| {
        let addresses =
            host.underlay.as_ref().map_or_else(|| "-".to_owned(), |u| joined(&u.addresses));
        let interfaces =
            host.underlay.as_ref().map_or_else(|| "-".to_owned(), |u| joined(&u.interfaces));
        let this = if host.this { "this host" } else { "" };
        let notes: Vec<_> = [this]
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .chain(host.problems)
            .collect();
        let alive = if host.alive { "yes" } else { "no" }.to_owned();
        let clock = or_dash(host.clock_ahead_ms);
        vec![
            host.name,
            alive,
            host.ports.to_string(),
            interfaces,
            addresses,
            clock,
            notes.join("; "),
        ]
    };
    let headers =
        ["host", "alive", "#ports", "interfaces", "addresses", "#clock ahead ms", "notes"];
    print(&table(&headers, hosts.into_iter().map(row).collect()))
}
