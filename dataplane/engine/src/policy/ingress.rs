//! Whether and where a packet from the underlay is delivered.

use std::net::IpAddr;

use culvert_wire::eth::ether_type;
use culvert_wire::packet::{IpKind, Packet};
use culvert_wire::vni::Vni;
use culvert_wire::{arp, icmpv6, reply};
use ipnet::IpNet;

use super::acl::icmpv6_kind;
use super::observe::{Observer, Stage, Step};
use crate::drops::DropReason;
use crate::tables::{
    Ingress, IngressEntry, PortIndex, Tables, Target, VnetEntry, VnetIndex, VtepIndex,
};

/// What happens to a decapsulated packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To one local port.
    Deliver(PortIndex),
    /// To every local port of the network.
    Flood(VnetIndex),
    /// To the control plane.
    Trap,
    /// Nowhere.
    Drop(DropReason),
}

/// Decides for an inner packet that came with `vnet`'s identifier from the VTEP at `from`.
pub fn decide(
    tables: &Tables,
    vnet: &VnetEntry,
    from: IpAddr,
    head: &[u8],
    pkt: &Packet,
    seen: &mut impl Observer,
) -> Verdict {
    seen.saw(|| Step::new(Stage::Vni, "vnet").by(format!("vnet {}: vni {}", vnet.id, vnet.vni)));
    let vtep = tables.vtep_of(&from);
    if let Err(verdict) = admit(tables, vnet, from, vtep, head, pkt, seen) {
        return verdict;
    }
    let verdict = port_of(vnet, head, pkt);
    seen.saw(|| {
        let step = match verdict {
            Verdict::Deliver(port) => {
                Step::new(Stage::Port, "deliver").by(tables.name_of_port(port))
            }
            Verdict::Flood(_) => Step::new(Stage::Port, "flood")
                .by(format!("vnet {}: flood = true", vnet.id))
                .because(format!("to {} local ports", vnet.local_ports.len())),
            Verdict::Trap => Step::new(Stage::Port, "trap"),
            Verdict::Drop(reason) => {
                Step::drop(Stage::Port, reason).by(format!("vnet {}", vnet.id))
            }
        };
        match verdict {
            Verdict::Flood(_) => step,
            _ => step.because(format!("destination {}", pkt.dst_mac(head))),
        }
    });
    verdict
}

/// Whether the packet may come from this VTEP. The verdict, where that is the end of it.
fn admit(
    tables: &Tables,
    vnet: &VnetEntry,
    from: IpAddr,
    vtep: Option<VtepIndex>,
    head: &[u8],
    pkt: &Packet,
    seen: &mut impl Observer,
) -> Result<(), Verdict> {
    let rule = first_match(&vnet.ingress, from);
    let action = if vnet.ingress.is_empty() {
        // Nobody that no mapping names has business here.
        if vtep.is_some() { Some(Ingress::DecapValidate) } else { None }
    } else {
        rule.map(|rule| rule.action)
    };
    let refused = match action {
        None => Some(Verdict::Drop(DropReason::UnknownVtep)),
        Some(Ingress::DecapValidate) if vtep.is_none() => {
            Some(Verdict::Drop(DropReason::UnknownVtep))
        }
        Some(Ingress::Drop) => Some(Verdict::Drop(DropReason::IngressDrop)),
        Some(Ingress::Trap) => Some(Verdict::Trap),
        Some(Ingress::Decap | Ingress::DecapValidate) => None,
    };
    seen.saw(|| {
        let step = match refused {
            Some(Verdict::Drop(reason)) => Step::drop(Stage::IngressRule, reason),
            Some(_) => Step::new(Stage::IngressRule, "trap"),
            None => Step::new(Stage::IngressRule, "pass"),
        };
        let step = step.by(match rule {
            Some(rule) => rule.to_string(),
            None => format!("vnet {}: {}", vnet.id, "without a rule, only VTEPs of its mappings"),
        });
        step.because(match vtep {
            None => format!("no mapping names {from}"),
            Some(_) => format!("from {from}"),
        })
    });
    if let Some(verdict) = refused {
        return Err(verdict);
    }
    let (Some(Ingress::DecapValidate), Some(vtep)) = (action, vtep) else { return Ok(()) };
    let lives = source_lives_at(tables, vnet, vtep, head, pkt);
    let valid = lives && advertised_lives_at(vnet, vtep, head, pkt);
    seen.saw(|| {
        let result = if valid { Ok(()) } else { Err(DropReason::SourceMismatch) };
        let mac = pkt.src_mac(head);
        let source = pkt.src_ip(head).map_or_else(|| mac.to_string(), |ip| format!("{ip} ({mac})"));
        Step::of(Stage::SourceCheck, result).by(format!("vnet {}", vnet.id)).because(
            match (lives, valid) {
                (_, true) => format!("{source} lives behind {from}"),
                (false, _) => format!("{source} does not live behind {from}"),
                (true, false) => format!("{source} advertises what does not live behind {from}"),
            },
        )
    });
    if valid { Ok(()) } else { Err(Verdict::Drop(DropReason::SourceMismatch)) }
}

/// The local port that the packet is for.
fn port_of(vnet: &VnetEntry, head: &[u8], pkt: &Packet) -> Verdict {
    let dst_mac = pkt.dst_mac(head);
    if !dst_mac.is_multicast() {
        return match vnet.macs.get(&dst_mac) {
            Some(Target::Local(port)) => Verdict::Deliver(*port),
            _ => Verdict::Drop(DropReason::NoLocalPort),
        };
    }
    if vnet.flood {
        return Verdict::Flood(vnet.index);
    }
    // Peers that learn addresses by broadcast ask for our tenants: only the one asked for hears it.
    match asked_for(head, pkt).and_then(|ip| vnet.neighbours.get(&ip)) {
        Some(found) => match found.target {
            Target::Local(port) => Verdict::Deliver(port),
            Target::Remote { .. } => Verdict::Drop(DropReason::NoLocalPort),
        },
        None => Verdict::Drop(DropReason::FloodDisabled),
    }
}

/// Decides for a packet whose identifier no network here has. A rule may still trap it.
pub fn decide_without_vnet(
    tables: &Tables,
    vni: Vni,
    from: IpAddr,
    seen: &mut impl Observer,
) -> Verdict {
    let rule = first_match(tables.ingress_of(vni), from);
    let verdict = match rule.map(|rule| rule.action) {
        Some(Ingress::Trap) => Verdict::Trap,
        Some(Ingress::Drop) => Verdict::Drop(DropReason::IngressDrop),
        Some(Ingress::Decap | Ingress::DecapValidate) | None => {
            Verdict::Drop(DropReason::UnknownVni)
        }
    };
    seen.saw(|| {
        let step = match verdict {
            Verdict::Drop(reason @ DropReason::UnknownVni) => Step::drop(Stage::Vni, reason),
            Verdict::Drop(reason) => Step::drop(Stage::IngressRule, reason),
            _ => Step::new(Stage::IngressRule, "trap"),
        };
        let rule = rule.map_or_else(String::new, ToString::to_string);
        step.by(rule).because(format!("no vnet here has vni {vni}"))
    });
    verdict
}

fn first_match(rules: &[IngressEntry], from: IpAddr) -> Option<&IngressEntry> {
    let covers = |net: &Option<IpNet>| net.is_none_or(|net| net.contains(&from));
    rules.iter().find(|rule| covers(&rule.from))
}

impl std::fmt::Display for IngressEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let action = match self.action {
            Ingress::DecapValidate => "decap-validate",
            Ingress::Decap => "decap",
            Ingress::Trap => "trap",
            Ingress::Drop => "drop",
        };
        match self.from {
            None => write!(f, "ingress rule: any -> {action}"),
            Some(net) => write!(f, "ingress rule: {net} -> {action}"),
        }
    }
}

/// Whether the inner source, by MAC and address, lives behind this VTEP: in the network itself, or,
/// for a packet that a gateway routed, in a network whose routes lead here.
fn source_lives_at(
    tables: &Tables,
    vnet: &VnetEntry,
    vtep: VtepIndex,
    head: &[u8],
    pkt: &Packet,
) -> bool {
    let mac = pkt.src_mac(head);
    let here = |target: &Target| matches!(target, Target::Remote { vtep: v, .. } if *v == vtep);
    let by_mac = || vnet.macs.get(&mac).is_some_and(here);
    let ip = match pkt.ip {
        IpKind::None if pkt.ether_type == ether_type::ARP => {
            // What an ARP packet claims is believed by whoever hears it.
            let arp = head.get(usize::from(pkt.l3)..).and_then(|b| arp::Repr::parse(b).ok());
            match arp {
                Some(arp) if arp.sender_mac == mac => IpAddr::V4(arp.sender_ip),
                _ => return false,
            }
        }
        IpKind::None => return by_mac(),
        IpKind::V4 | IpKind::V6 => match pkt.src_ip(head) {
            None => return false,
            Some(ip) => ip,
        },
    };
    if let Some(found) = vnet.neighbours.get(&ip) {
        let gateway = || vnet.gateway_by_mac(mac).is_some();
        return here(&found.target) && (found.mac == mac || gateway());
    }
    let unlisted =
        ip.is_unspecified() || matches!(ip, IpAddr::V6(v6) if v6 == mac.eui64_link_local());
    if unlisted {
        return by_mac();
    }
    vnet.routed_from.iter().filter_map(|index| tables.vnet(*index)).any(|other| {
        other.neighbours.get(&ip).is_some_and(|found| {
            here(&found.target) && (found.mac == mac || vnet.gateway_by_mac(mac).is_some())
        })
    })
}

/// Whether a neighbour advertisement is about an address that lives behind this VTEP, with the MAC that it has there:
/// whoever hears it believes it. True for everything else.
fn advertised_lives_at(vnet: &VnetEntry, vtep: VtepIndex, head: &[u8], pkt: &Packet) -> bool {
    let l4 = usize::from(pkt.l4);
    if icmpv6_kind(head, pkt) != Some(icmpv6::kind::NEIGHBOUR_ADVERTISEMENT) {
        return true;
    }
    let end = (pkt.len as usize).min(head.len());
    let message = head.get(l4..end).and_then(|bytes| icmpv6::View::new(bytes).ok());
    let Some((message, target)) = message.and_then(|view| Some((view, view.target()?))) else {
        return false;
    };
    let mac = match vnet.neighbours.get(&IpAddr::V6(target)) {
        Some(found) => match found.target {
            Target::Remote { vtep: v, .. } if v == vtep => found.mac,
            _ => return false,
        },
        // The source is known to live there; its MAC makes one address of its own.
        None if target == pkt.src_mac(head).eui64_link_local() => pkt.src_mac(head),
        None => return false,
    };
    message.link_option(icmpv6::OPTION_TARGET_LINK).is_none_or(|claimed| claimed == mac)
}

/// The address that an ARP request or a neighbour solicitation asks for.
pub fn asked_for(head: &[u8], pkt: &Packet) -> Option<IpAddr> {
    if pkt.ether_type == ether_type::ARP {
        let arp = arp::Repr::parse(head.get(usize::from(pkt.l3)..)?).ok()?;
        return (arp.op == arp::REQUEST).then_some(IpAddr::V4(arp.target_ip));
    }
    reply::solicited_target(head, pkt).map(IpAddr::V6)
}
