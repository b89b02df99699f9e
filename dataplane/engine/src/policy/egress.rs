//! Where a tenant's packet goes.

use std::net::IpAddr;

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
    if dst_mac.is_multicast() {
        return if vnet.flood {
            Verdict::Flood(vnet.index)
        } else {
            Verdict::Drop(DropReason::FloodDisabled)
        };
    }
    let dst_ip = match pkt.ip {
        IpKind::None => None,
        IpKind::V4 | IpKind::V6 => pkt.dst_ip(head),
    };
    let Some(ip) = dst_ip else { return switch(vnet, port, dst_mac) };
    let gateway = vnet.gateway_by_mac(dst_mac);
    if gateway.is_some() && vnet.gateway_by_ip(ip).is_some() {
        return Verdict::Drop(DropReason::Unanswered);
    }
    match route(port, vnet, ip) {
        None => Verdict::Drop(DropReason::NoRoute),
        Some(Route::Drop) => Verdict::Drop(DropReason::RouteDrop),
        Some(Route::Trap) => Verdict::Trap,
        Some(Route::Local) => local_only(match gateway {
            Some(gateway) => routed(vnet, port, ip, gateway.mac),
            None => switch(vnet, port, dst_mac),
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
                routed(to, port, ip, mac)
            }
            (Some(to), None) if to.index == vnet.index => switch(vnet, port, dst_mac),
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

fn switch(vnet: &VnetEntry, port: &PortEntry, dst_mac: MacAddr) -> Verdict {
    match vnet.macs.get(&dst_mac) {
        Some(target) => forward(vnet.index, *target, port, None),
        None => miss(vnet),
    }
}

fn routed(to: &VnetEntry, port: &PortEntry, ip: IpAddr, src_mac: MacAddr) -> Verdict {
    match to.neighbours.get(&ip) {
        None => miss(to),
        Some(found) => {
            let rewrite = Rewrite { src_mac, dst_mac: found.mac, hop: true };
            // A router may send a packet back to where it came from; a switch may not.
            Verdict::Forward { vnet: to.index, target: found.target, rewrite: Some(rewrite) }
        }
        .hairpin_of(port),
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
        Verdict::Forward { target: Target::Remote { .. }, .. } => {
            Verdict::Drop(DropReason::NotLocal)
        }
        other => other,
    }
}

fn miss(vnet: &VnetEntry) -> Verdict {
    match vnet.miss {
        Miss::Trap => Verdict::Trap,
        Miss::Drop => Verdict::Drop(DropReason::NoMapping),
    }
}
