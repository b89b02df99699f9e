//! What is wrong with a cluster as it is: what other programs wrote, or hosts that do not fit together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Claim, Cluster, Owner};
use crate::follow::{CLOCKS_APART_MS, Known};
use crate::names::HostName;

/// Problems that are listed; the rest are counted.
const SHOWN_MAX: usize = 100;

/// What is wrong, in words, and with which host, where it is one.
pub fn problems(known: &Known) -> Vec<(Option<HostName>, String)> {
    let cluster = &known.cluster;
    let mut found = Vec::new();
    for (key, reason) in &cluster.unreadable {
        found.push((None, format!("{key}: cannot be read, and is left out: {reason}")));
    }
    shared_vteps(cluster, &mut found);
    shared_addresses(cluster, &mut found);
    for (host, ms) in &known.clocks_ahead_ms {
        if ms.abs() > CLOCKS_APART_MS {
            let (by, way) = (ms.unsigned_abs(), if *ms > 0 { "ahead of" } else { "behind" });
            found.push((Some(host.clone()), format!(
                "the clock of host {host} is {by} ms {way} ours; legal is up to {CLOCKS_APART_MS}: look after time synchronisation"
            )));
        }
    }
    let more = found.len().saturating_sub(SHOWN_MAX);
    found.truncate(SHOWN_MAX);
    if more > 0 {
        found.push((None, format!("{more} more problems of the cluster")));
    }
    found
}

fn shared_vteps(cluster: &Cluster, found: &mut Vec<(Option<HostName>, String)>) {
    let mut owners: BTreeMap<IpAddr, &HostName> = BTreeMap::new();
    for (host, state) in &cluster.hosts {
        for ip in state.underlay.iter().flat_map(|underlay| &underlay.addresses) {
            if let Some(other) = owners.insert(*ip, host)
                && other != host
            {
                found.push((Some(host.clone()), format!(
                    "{ip}: is a VTEP address of host {other} and of host {host}; legal is an address of one host only"
                )));
            }
        }
    }
}

fn shared_addresses(cluster: &Cluster, found: &mut Vec<(Option<HostName>, String)>) {
    let mut last: Option<&Claim<IpAddr>> = None;
    for claim in cluster.claims.all() {
        if let Some(other) = last
            && (&other.vnet, other.address) == (&claim.vnet, claim.address)
        {
            let (ip, vnet) = (claim.address, &claim.vnet);
            let (owner, other) = (Owner::from(claim), Owner::from(other));
            found.push((Some(claim.host.clone()), format!(
                "{ip} in vnet {vnet}: is the address of {other} and of {owner}; legal is one owner for each address of a vnet"
            )));
        }
        last = Some(claim);
    }
}
