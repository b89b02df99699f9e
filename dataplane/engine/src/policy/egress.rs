//! Where a tenant's packet goes.

use std::net::{IpAddr, Ipv4Addr};

use culvert_model::Miss;
use culvert_wire::eth::MacAddr;
use culvert_wire::packet::{IpKind, Packet};

use crate::drops::DropReason;
use crate::tables::{PortEntry, Route, Tables, Target, VnetEntry, VnetIndex};

/// Addresses that a router of ours writes into a packet that it forwards.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// New source MAC.
    pub src_mac: MacAddr,
    /// New destination MAC.
    pub dst_mac: MacAddr,
    /// Whether the hop limit is decremented.
    pub hop: bool,
}

/// What happens to a packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To one place.
    Forward {
        /// The network in which it travels.
        vnet: VnetIndex,
        /// The place.
        target: Target,
        /// What changes on the way.
        rewrite: Option<Rewrite>,
    },
    /// To every member of the network.
    Flood(VnetIndex),
    /// To the control plane.
    Trap,
    /// Nowhere.
    Drop(DropReason),
}

/// Decides for a unicast or multicast packet that is neither ARP nor neighbour discovery (those
/// are answered, see the worker) and whose source was found legal.
///
/// A packet to the MAC of one of the network's gateways is routed: the longest prefix says in
/// which network its destination is looked up. Any other is switched by its destination MAC; routes
/// may still drop or trap it, keep it local, or send it to another network.
pub fn decide(tables: &Tables, port: &PortEntry, head: &[u8], pkt: &Packet) -> Verdict {
    let Some(vnet) = tables.vnet(port.vnet) else { return Verdict::Drop(DropReason::NoRoute) };
    let dst_mac = pkt.dst_mac(head);
    let dst_ip = match pkt.ip {
        IpKind::None => None,
        IpKind::V4 | IpKind::V6 => pkt.dst_ip(head),
    };
    if dst_mac.is_multicast() {
        return flood(port, vnet, dst_ip);
    }
    let Some(ip) = dst_ip else { return switch(vnet, port, dst_mac, None) };
    let gateway = vnet.gateway_by_mac(dst_mac);
    if gateway.is_some() && vnet.gateway_by_ip(ip).is_some() {
        return Verdict::Drop(DropReason::Unanswered);
    }
    match route(port, vnet, ip) {
        None => Verdict::Drop(DropReason::NoRoute),
        Some(Route::Drop) => Verdict::Drop(DropReason::RouteDrop),
        Some(Route::Trap) => Verdict::Trap,
        Some(Route::Local) => local_only(match gateway {
            Some(gateway) => routed(vnet, ip, gateway.mac),
            None => switch(vnet, port, dst_mac, Some(ip)),
        }),
        Some(Route::Vnet(index)) => match (tables.vnet(index), gateway) {
            (None, _) => Verdict::Drop(DropReason::NoRoute),
            (Some(to), Some(gateway)) => {
                // The router has a MAC of its own in each network that it serves.
                let mac = to
                    .gateways
                    .iter()
                    .find(|g| g.net.contains(&ip))
                    .or(to.gateways.first())
                    .map_or(gateway.mac, |g| g.mac);
                routed(to, ip, mac)
            }
            (Some(to), None) if to.index == vnet.index => switch(vnet, port, dst_mac, Some(ip)),
            (Some(to), None) => match to.neighbours.get(&ip) {
                None => miss(to),
                Some(found) => {
                    let src_mac = pkt.src_mac(head);
                    let rewrite = Rewrite { src_mac, dst_mac: found.mac, hop: false };
                    forward(to.index, found.target, port, Some(rewrite))
                }
            },
        },
    }
}

/// The route for `ip`. Those of the port and of its network form one table: the longest prefix
/// wins, the port's own among equals. An empty table means the network itself.
fn route(port: &PortEntry, vnet: &VnetEntry, ip: IpAddr) -> Option<Route> {
    if port.routes.is_none() && vnet.routes.is_none() {
        return Some(Route::Vnet(vnet.index));
    }
    let of = |routes: &Option<crate::tables::Routes>| routes.as_ref().and_then(|r| r.lookup(ip));
    match (of(&port.routes), of(&vnet.routes)) {
        (Some((own, route)), Some((vnets, _))) if own >= vnets => Some(route),
        (_, Some((_, route))) | (Some((_, route)), None) => Some(route),
        (None, None) => None,
    }
}

/// Replicates what goes to a group. Routes are about unicast addresses; behind a group's MAC, too,
/// so that nobody gets around them.
fn flood(port: &PortEntry, vnet: &VnetEntry, dst_ip: Option<IpAddr>) -> Verdict {
    let to_group = |ip: IpAddr| ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if let Some(ip) = dst_ip.filter(|ip| !to_group(*ip)) {
        match route(port, vnet, ip) {
            None => return Verdict::Drop(DropReason::NoRoute),
            Some(Route::Drop) => return Verdict::Drop(DropReason::RouteDrop),
            Some(Route::Trap) => return Verdict::Trap,
            Some(Route::Local) => return Verdict::Drop(DropReason::NotLocal),
            Some(Route::Vnet(to)) if to != vnet.index => {
                return Verdict::Drop(DropReason::FloodDisabled);
            }
            Some(Route::Vnet(_)) => {}
        }
    }
    match vnet.flood {
        true => Verdict::Flood(vnet.index),
        false => Verdict::Drop(DropReason::FloodDisabled),
    }
}

/// By MAC; where several hosts share one (a virtual router, a cluster), by the address behind it.
fn switch(vnet: &VnetEntry, port: &PortEntry, dst_mac: MacAddr, dst_ip: Option<IpAddr>) -> Verdict {
    let by_ip = dst_ip.and_then(|ip| vnet.neighbours.get(&ip)).filter(|n| n.mac == dst_mac);
    match by_ip.map(|found| &found.target).or_else(|| vnet.macs.get(&dst_mac)) {
        Some(target) => forward(vnet.index, *target, port, None),
        None => miss(vnet),
    }
}

fn routed(to: &VnetEntry, ip: IpAddr, src_mac: MacAddr) -> Verdict {
    match to.neighbours.get(&ip) {
        None => miss(to),
        Some(found) => {
            let rewrite = Rewrite { src_mac, dst_mac: found.mac, hop: true };
            // A router may send a packet back to where it came from; a switch may not.
            Verdict::Forward { vnet: to.index, target: found.target, rewrite: Some(rewrite) }
        }
    }
}

impl Verdict {
    fn hairpin_of(self, port: &PortEntry) -> Verdict {
        match self {
            Verdict::Forward { target: Target::Local(index), .. } if index == port.index => {
                Verdict::Drop(DropReason::Hairpin)
            }
            other => other,
        }
    }
}

fn forward(vnet: VnetIndex, target: Target, port: &PortEntry, rewrite: Option<Rewrite>) -> Verdict {
    Verdict::Forward { vnet, target, rewrite }.hairpin_of(port)
}

fn local_only(verdict: Verdict) -> Verdict {
    match verdict {
        local @ Verdict::Forward { target: Target::Local(_), .. } => local,
        Verdict::Drop(DropReason::Hairpin) => verdict,
        _ => Verdict::Drop(DropReason::NotLocal),
    }
}

fn miss(vnet: &VnetEntry) -> Verdict {
    match vnet.miss {
        Miss::Trap => Verdict::Trap,
        Miss::Drop => Verdict::Drop(DropReason::NoMapping),
    }
}
