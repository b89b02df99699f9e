//! Where a tenant's packet goes.

use std::net::{IpAddr, Ipv4Addr};

use culvert_model::Miss;
use culvert_wire::eth::MacAddr;
use culvert_wire::packet::{IpKind, Packet};
use ipnet::IpNet;

use super::configure;
use super::observe::{Observer, Stage, Step, Unwatched};
use crate::drops::DropReason;
use crate::tables::{PortEntry, Route, Routes, Tables, Target, VnetEntry, VnetIndex};

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
    /// To nobody but us: it asks for its configuration.
    Configure,
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
pub fn decide(
    tables: &Tables,
    port: &PortEntry,
    head: &[u8],
    pkt: &Packet,
    seen: &mut impl Observer,
) -> Verdict {
    let Some(vnet) = tables.vnet(port.vnet) else {
        return Verdict::Drop(DropReason::NoRoute).seen_at(Stage::Route, seen, || "no vnet".into());
    };
    if port.dhcp.is_some() {
        if configure::asks(head, pkt).is_some() {
            seen.saw(|| Step::new(Stage::Reply, "configure").by(format!("vnet {}: dhcp", vnet.id)));
            return Verdict::Configure;
        }
        if configure::is_servers(head, pkt) {
            return Verdict::Drop(DropReason::RogueRouter)
                .seen_at(Stage::Route, seen, || "DHCP is answered here alone".into());
        }
    }
    let dst_mac = pkt.dst_mac(head);
    let dst_ip = match pkt.ip {
        IpKind::None => None,
        IpKind::V4 | IpKind::V6 => pkt.dst_ip(head),
    };
    if dst_mac.is_multicast() {
        return flood(tables, port, vnet, dst_ip, seen);
    }
    let Some(ip) = dst_ip else { return switch(tables, vnet, port, dst_mac, None, seen) };
    let gateway = vnet.gateway_by_mac(dst_mac);
    if gateway.is_some() && vnet.gateway_by_ip(ip).is_some() {
        return Verdict::Drop(DropReason::Unanswered)
            .seen_at(Stage::Route, seen, || format!("{ip} is a gateway's own address"));
    }
    match route(tables, port, vnet, ip, seen) {
        None => Verdict::Drop(DropReason::NoRoute),
        Some(Route::Drop) => Verdict::Drop(DropReason::RouteDrop),
        Some(Route::Trap) => Verdict::Trap,
        Some(Route::Local) => {
            let quiet = &mut Unwatched;
            let found = match gateway {
                Some(gateway) => routed(tables, vnet, ip, gateway.mac, quiet),
                None => switch(tables, vnet, port, dst_mac, Some(ip), quiet),
            };
            local_only(tables, vnet, found, ip, seen)
        }
        Some(Route::Vnet(index)) => match (tables.vnet(index), gateway) {
            (None, _) => Verdict::Drop(DropReason::NoRoute)
                .seen_at(Stage::Route, seen, || "the route's network is gone".into()),
            (Some(to), Some(gateway)) => {
                // The router has a MAC of its own in each network that it serves.
                let mac = to
                    .gateways
                    .iter()
                    .find(|g| g.net.contains(&ip))
                    .or(to.gateways.first())
                    .map_or(gateway.mac, |g| g.mac);
                routed(tables, to, ip, mac, seen)
            }
            (Some(to), None) if to.index == vnet.index => {
                switch(tables, vnet, port, dst_mac, Some(ip), seen)
            }
            (Some(to), None) => match to.neighbours.get(&ip) {
                None => miss(to, &ip, seen),
                Some(found) => {
                    let src_mac = pkt.src_mac(head);
                    let rewrite = Rewrite { src_mac, dst_mac: found.mac, hop: false };
                    forward(tables, to, found.target, port, Some(rewrite), &ip, seen)
                }
            },
        },
    }
}

/// The route for `ip`. Those of the port and of its network form one table: the longest prefix
/// wins, the port's own among equals. An empty table means the network itself.
fn route(
    tables: &Tables,
    port: &PortEntry,
    vnet: &VnetEntry,
    ip: IpAddr,
    seen: &mut impl Observer,
) -> Option<Route> {
    if port.routes.is_none() && vnet.routes.is_none() {
        seen.saw(|| {
            let rule = format!("vnet {}", vnet.id);
            Step::new(Stage::Route, "vnet").by(rule).because("no routes: its own vnet")
        });
        return Some(Route::Vnet(vnet.index));
    }
    let of = |routes: &Option<std::sync::Arc<Routes>>| routes.as_ref().and_then(|r| r.lookup(ip));
    let (found, owner) = match (of(&port.routes), of(&vnet.routes)) {
        (Some((own, route)), Some((vnets, _))) if own >= vnets => (Some((own, route)), Scope::Port),
        (_, Some(found)) => (Some(found), Scope::Vnet),
        (Some(found), None) => (Some(found), Scope::Port),
        (None, None) => (None, Scope::Vnet),
    };
    seen.saw(|| match found {
        None => Step::drop(Stage::Route, DropReason::NoRoute)
            .because(format!("no route of port {} or vnet {} covers {ip}", port.id, vnet.id)),
        Some((len, route)) => {
            let prefix =
                IpNet::new(ip, len).map_or_else(|_| ip.to_string(), |n| n.trunc().to_string());
            let scope = match owner {
                Scope::Port => format!("port {}", port.id),
                Scope::Vnet => format!("vnet {}", vnet.id),
            };
            let (step, action) = match route {
                Route::Vnet(to) => (Step::new(Stage::Route, "vnet"), tables.name_of_vnet(to)),
                Route::Local => (Step::new(Stage::Route, "local"), "local".to_owned()),
                Route::Trap => (Step::new(Stage::Route, "trap"), "trap".to_owned()),
                Route::Drop => (Step::drop(Stage::Route, DropReason::RouteDrop), "drop".to_owned()),
            };
            step.by(format!("{scope}: {prefix} -> {action}"))
        }
    });
    found.map(|(_, route)| route)
}

/// Whose route it is.
enum Scope {
    Port,
    Vnet,
}

/// Replicates what goes to a group. Routes are about unicast addresses; behind a group's MAC, too,
/// so that nobody gets around them.
fn flood(
    tables: &Tables,
    port: &PortEntry,
    vnet: &VnetEntry,
    dst_ip: Option<IpAddr>,
    seen: &mut impl Observer,
) -> Verdict {
    let to_group = |ip: IpAddr| ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if let Some(ip) = dst_ip.filter(|ip| !to_group(*ip)) {
        match route(tables, port, vnet, ip, seen) {
            None => return Verdict::Drop(DropReason::NoRoute),
            Some(Route::Drop) => return Verdict::Drop(DropReason::RouteDrop),
            Some(Route::Trap) => return Verdict::Trap,
            Some(Route::Local) => {
                return Verdict::Drop(DropReason::NotLocal)
                    .seen_at(Stage::Flood, seen, || "a flood does not stay on this host".into());
            }
            Some(Route::Vnet(to)) if to != vnet.index => {
                return Verdict::Drop(DropReason::FloodDisabled).seen_at(
                    Stage::Flood,
                    seen,
                    || "nothing is flooded to another vnet".into(),
                );
            }
            Some(Route::Vnet(_)) => {}
        }
    }
    seen.saw(|| {
        let (ports, vteps) = (vnet.local_ports.len(), vnet.flood_vteps.len());
        match vnet.flood {
            true => Step::new(Stage::Flood, "flood").because(format!(
                "to {ports} local ports, the sender's included, and {vteps} VTEPs"
            )),
            false => Step::drop(Stage::Flood, DropReason::FloodDisabled),
        }
        .by(format!("vnet {}: flood = {}", vnet.id, vnet.flood))
    });
    match vnet.flood {
        true => Verdict::Flood(vnet.index),
        false => Verdict::Drop(DropReason::FloodDisabled),
    }
}

/// By MAC; where several hosts share one (a virtual router, a cluster), by the address behind it.
fn switch(
    tables: &Tables,
    vnet: &VnetEntry,
    port: &PortEntry,
    dst_mac: MacAddr,
    dst_ip: Option<IpAddr>,
    seen: &mut impl Observer,
) -> Verdict {
    let by_ip = dst_ip.and_then(|ip| vnet.neighbours.get(&ip)).filter(|n| n.mac == dst_mac);
    match by_ip.map(|found| &found.target).or_else(|| vnet.macs.get(&dst_mac)) {
        Some(target) => forward(tables, vnet, *target, port, None, &dst_mac, seen),
        None => miss(vnet, &dst_mac, seen),
    }
}

fn routed(
    tables: &Tables,
    to: &VnetEntry,
    ip: IpAddr,
    src_mac: MacAddr,
    seen: &mut impl Observer,
) -> Verdict {
    match to.neighbours.get(&ip) {
        None => miss(to, &ip, seen),
        Some(found) => {
            let rewrite = Rewrite { src_mac, dst_mac: found.mac, hop: true };
            see_mapping(tables, to, &found.target, &ip, seen);
            // A router may send a packet back to where it came from; a switch may not.
            Verdict::Forward { vnet: to.index, target: found.target, rewrite: Some(rewrite) }
        }
    }
}

impl Verdict {
    fn hairpin_of(self, port: &PortEntry, seen: &mut impl Observer) -> Verdict {
        match self {
            Verdict::Forward { target: Target::Local(index), .. } if index == port.index => {
                Verdict::Drop(DropReason::Hairpin).seen_at(Stage::Mapping, seen, hairpin)
            }
            other => other,
        }
    }

    /// Tells of a drop.
    fn seen_at(
        self,
        stage: Stage,
        seen: &mut impl Observer,
        detail: impl FnOnce() -> String,
    ) -> Verdict {
        if let Verdict::Drop(reason) = self {
            seen.saw(|| Step::drop(stage, reason).because(detail()));
        }
        self
    }
}

fn forward(
    tables: &Tables,
    vnet: &VnetEntry,
    target: Target,
    port: &PortEntry,
    rewrite: Option<Rewrite>,
    sought: &dyn std::fmt::Display,
    seen: &mut impl Observer,
) -> Verdict {
    see_mapping(tables, vnet, &target, sought, seen);
    Verdict::Forward { vnet: vnet.index, target, rewrite }.hairpin_of(port, seen)
}

fn see_mapping(
    tables: &Tables,
    vnet: &VnetEntry,
    target: &Target,
    sought: &dyn std::fmt::Display,
    seen: &mut impl Observer,
) {
    seen.saw(|| {
        let outcome = match target {
            Target::Local(_) => "local",
            Target::Remote { .. } => "remote",
        };
        let place = tables.name_of_target(target);
        Step::new(Stage::Mapping, outcome).by(format!("vnet {}: {sought} -> {place}", vnet.id))
    });
}

fn local_only(
    tables: &Tables,
    vnet: &VnetEntry,
    found: Verdict,
    ip: IpAddr,
    seen: &mut impl Observer,
) -> Verdict {
    match found {
        Verdict::Forward { target: target @ Target::Local(_), .. } => {
            see_mapping(tables, vnet, &target, &ip, seen);
            found
        }
        Verdict::Drop(DropReason::Hairpin) => found.seen_at(Stage::Mapping, seen, hairpin),
        _ => Verdict::Drop(DropReason::NotLocal)
            .seen_at(Stage::Mapping, seen, || "the route wants a port of this host".into()),
    }
}

fn hairpin() -> String {
    "it would go back to its sender".into()
}

fn miss(vnet: &VnetEntry, sought: &dyn std::fmt::Display, seen: &mut impl Observer) -> Verdict {
    seen.saw(|| {
        let step = match vnet.miss {
            Miss::Trap => Step::new(Stage::Mapping, "trap"),
            Miss::Drop => Step::drop(Stage::Mapping, DropReason::NoMapping),
        };
        step.by(format!("vnet {}: miss = {}", vnet.id, vnet.miss))
            .because(format!("no mapping for {sought}"))
    });
    match vnet.miss {
        Miss::Trap => Verdict::Trap,
        Miss::Drop => Verdict::Drop(DropReason::NoMapping),
    }
}
