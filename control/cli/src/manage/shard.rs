//! Flags of `culvert host` for the shard format: its settings, and keys of peers.

use std::net::IpAddr;

use culvert_model::{Peer, Underlay, shard};
use culvert_wire::shard::{Coding, Key, Keyring};

use super::values::{Setting, coding, key_of, peer_key};
use crate::error::CliError;

/// An argument that nothing prints.
#[derive(Clone)]
struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ShardFields {
    /// How many shares the shard format sends with a frame, as 4/8: any 4 of 8 give its information;
    /// or auto: by the frame's length.
    #[arg(long, value_name = "K/N", value_parser = coding)]
    shard_code: Option<Setting<Coding>>,
    /// How long a frame of the shard format waits for shares, in milliseconds, 1 to 10000.
    #[arg(long, value_name = "MS")]
    shard_hold: Option<u16>,
    /// Frames of the shard format that each worker holds, 2 to 4096.
    #[arg(long, value_name = "N")]
    shard_frames: Option<u16>,
    /// Of them, those of one peer, 1 to 4096.
    #[arg(long, value_name = "N")]
    shard_peer_frames: Option<u16>,
    /// Memory that each worker holds for the shard format, in KiB, 256 to 1048576.
    #[arg(long, value_name = "KIB")]
    shard_memory: Option<u32>,
    /// Of it, that of one peer, 128 to 1048576.
    #[arg(long, value_name = "KIB")]
    shard_peer_memory: Option<u32>,
    /// How long the information of a frame of the shard format is kept for a receiver that got too few
    /// shares and asks for it, in milliseconds, up to 1000; with it, this host asks, too. 0: neither.
    #[arg(long, value_name = "MS")]
    shard_repair: Option<u16>,
    /// A key of the shard format between a VTEP and this host: its number, 0 to 7, and 32 hexadecimal
    /// digits, or @ and a file that has them. The first key of a VTEP is sent with at once.
    // Read later: what is wrong with an argument is said with all of the argument.
    #[arg(long = "key", value_name = "IP=ID:KEY")]
    keys: Vec<Secret>,
    /// Send to a VTEP with this one of its keys, which the other end has to have already.
    #[arg(long = "send-key", value_name = "IP=ID", value_parser = key_of)]
    send_keys: Vec<(IpAddr, u8)>,
    /// Take a key away, once the other end sends with another.
    #[arg(long = "drop-key", value_name = "IP=ID", value_parser = key_of)]
    drop_keys: Vec<(IpAddr, u8)>,
}

impl ShardFields {
    pub(super) fn onto(self, underlay: &mut Underlay) -> Result<(), CliError> {
        let settings = &mut underlay.shard;
        settings.coding = self.shard_code.map_or(settings.coding, Setting::into_option);
        settings.hold_ms = self.shard_hold.unwrap_or(settings.hold_ms);
        settings.frames = self.shard_frames.unwrap_or(settings.frames);
        settings.peer_frames = self.shard_peer_frames.unwrap_or(settings.peer_frames);
        settings.kib = self.shard_memory.unwrap_or(settings.kib);
        settings.peer_kib = self.shard_peer_memory.unwrap_or(settings.peer_kib);
        settings.repair_ms = self.shard_repair.unwrap_or(settings.repair_ms);
        for Secret(text) in &self.keys {
            let read = peer_key(text);
            let (vtep, id, key) =
                read.map_err(|fault| CliError::Usage(format!("--key: {fault}")))?;
            let peer = peer_of(&mut underlay.peers, vtep);
            let send = peer.keys.sending().map_or(id, |(send, _)| send);
            let others = copied(&peer.keys, |other| other != id);
            peer.keys = ring(vtep, others.into_iter().chain([(id, key)]), send)?;
        }
        for (vtep, id) in self.send_keys {
            let peer = peer_of(&mut underlay.peers, vtep);
            peer.keys = ring(vtep, copied(&peer.keys, |_| true), id)?;
        }
        for (vtep, id) in self.drop_keys {
            let peer = peer_of(&mut underlay.peers, vtep);
            if peer.keys.get(id).is_none() {
                return Err(CliError::Usage(format!("{vtep} has no key {id}")));
            }
            let left = copied(&peer.keys, |other| other != id);
            let send = peer.keys.sending().map_or(id, |(send, _)| send);
            peer.keys = match left.is_empty() {
                true => Keyring::default(),
                false => ring(vtep, left, send)?,
            };
        }
        Ok(())
    }
}

pub(super) fn peer_of(peers: &mut Vec<Peer>, vtep: IpAddr) -> &mut Peer {
    let at = peers.iter().position(|peer| peer.vtep == vtep).unwrap_or_else(|| {
        peers.push(Peer { vtep, format: None, raise_mss: None, keys: Keyring::default() });
        peers.len() - 1
    });
    &mut peers[at]
}

fn copied(keys: &Keyring, which: impl Fn(u8) -> bool) -> Vec<(u8, Key)> {
    shard::keys(keys).filter(|(id, _)| which(*id)).map(|(id, key)| (id, key.clone())).collect()
}

fn ring(
    vtep: IpAddr,
    keys: impl IntoIterator<Item = (u8, Key)>,
    send: u8,
) -> Result<Keyring, CliError> {
    Keyring::new(keys, send).map_err(|error| CliError::Usage(format!("{vtep}: {error}")))
}
