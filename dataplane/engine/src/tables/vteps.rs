//! Remote VTEPs of a snapshot.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::build::{Inputs, format_index, place};
use super::{Tables, VtepEntry, VtepIndex, fresh};

/// `anew`: entries that say the same are made anew, too, and with them the ways that flows have cached.
pub(super) fn update(tables: &mut Tables, inputs: &Inputs<'_>, anew: bool) {
    let anew = anew || !inputs.changes.formats.is_empty();
    let named: BTreeSet<IpAddr> = inputs
        .changes
        .mappings
        .iter()
        .flat_map(|(old, new)| [old, new])
        .flatten()
        .map(|mapping| mapping.vtep)
        .collect();
    let moved: Vec<IpAddr> =
        named.into_iter().filter(|ip| tables.vtep_of(ip) != inputs.vteps.get(ip)).collect();
    // What goes first: its index may be another's by now.
    for ip in &moved {
        if let Some(index) = tables.vtep_of(ip) {
            place(&mut tables.vteps, index as usize, None);
        }
        tables.vtep_of_ip.set(*ip, inputs.vteps.get(ip));
    }
    for ip in &moved {
        if let Some(index) = inputs.vteps.get(ip) {
            place_vtep(tables, inputs, *ip, index, anew);
        }
    }
    let generation = tables.generation;
    tables.fresh.touch(moved.into_iter().map(fresh::ip_bucket), generation);
    // Where formats changed, those that they are spoken to in may be others.
    if inputs.scope.vteps || anew {
        for (ip, index) in inputs.vteps.iter() {
            place_vtep(tables, inputs, *ip, index, anew);
        }
    }
}

/// Keeps the entry that is there where it says the same, and with it the ways that flows have cached.
fn place_vtep(tables: &mut Tables, inputs: &Inputs<'_>, ip: IpAddr, index: VtepIndex, anew: bool) {
    let (source, reach) = (inputs.reach)(ip);
    let peers = &inputs.host.underlay().peers;
    let peer = peers.iter().find(|peer| peer.vtep == ip);
    let format = peer.and_then(|peer| peer.format.as_ref());
    let format = format.map(|format| format_index(tables, format));
    let raise_mss = peer.and_then(|peer| peer.raise_mss);
    if let Some(old) = tables.vtep(index)
        && old.ip == ip
        && old.source == source
        && old.reach == reach
        && old.format == format
        && old.raise_mss == raise_mss
        && !anew
    {
        return;
    }
    let changed_in = tables.generation;
    let entry = VtepEntry { index, ip, source, format, raise_mss, reach, changed_in };
    place(&mut tables.vteps, index as usize, Some(Arc::new(entry)));
}
