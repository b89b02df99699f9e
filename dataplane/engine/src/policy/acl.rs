//! Whether a port's ACL groups let a packet pass: the rules alone, without the memory of connections.

use std::net::IpAddr;

use culvert_model::{AclAction, AclRule, Direction};
use culvert_wire::eth::ether_type;
use culvert_wire::packet::{Frag, IpKind, Packet};
use culvert_wire::{icmpv6, proto};

use super::observe::{Observer, Stage, Step};
use crate::drops::DropReason;
use crate::tables::{PortAcl, PortEntry};

/// What the rules say.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// They are not asked: the port has no groups, or the packet is none for them.
    Free,
    /// A rule allows it.
    Allow {
        /// The rule.
        rule: RuleIndex,
        /// Its group is stateful: the flow may be answered.
        stateful: bool,
    },
    /// A rule denies it, or, where there is none, no rule matches. It passes only as part of a connection.
    Deny(Option<RuleIndex>),
}

/// A rule of a port: position of its group among the port's, and its own in the group.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RuleIndex {
    /// Position of the group.
    pub group: u16,
    /// Position in the group.
    pub rule: u16,
}

/// What rules look at, as the tenant sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol; none where it is not IP.
    pub proto: Option<u8>,
    /// The address at the other end; none where it is not IP.
    pub remote: Option<IpAddr>,
    /// Ports of the tenant and of the other end; none where the packet names none: its protocol has none,
    /// or it is a later fragment.
    pub ports: Option<(u16, u16)>,
}

impl Flow {
    /// That of a packet.
    pub fn of(direction: Direction, head: &[u8], pkt: &Packet) -> Flow {
        let (near, far) = (l4_ports(head, pkt), pkt.is_ip());
        let (remote, ports) = match direction {
            Direction::Egress => (pkt.dst_ip(head), near),
            Direction::Ingress => (pkt.src_ip(head), near.map(|(src, dst)| (dst, src))),
        };
        Flow { proto: far.then_some(pkt.proto), remote, ports }
    }
}

/// Source and destination port of TCP, UDP and SCTP.
pub fn l4_ports(head: &[u8], pkt: &Packet) -> Option<(u16, u16)> {
    if let (Some(src), Some(dst)) = (pkt.src_port(head), pkt.dst_port(head)) {
        return Some((src, dst));
    }
    if pkt.proto != proto::SCTP || !pkt.has_l4() {
        return None;
    }
    let at = usize::from(pkt.l4);
    let end = (pkt.len as usize).min(head.len());
    let ports = head.get(..end)?.get(at..at + 4)?;
    Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
}

/// The type of an ICMPv6 message. A later fragment shows none: in its place are bytes from the middle of the message.
pub fn icmpv6_kind(head: &[u8], pkt: &Packet) -> Option<u8> {
    let shown = pkt.ip == IpKind::V6 && pkt.proto == proto::ICMPV6 && pkt.frag != Frag::Later;
    shown.then(|| head.get(usize::from(pkt.l4)).copied()).flatten()
}

/// Whether a packet is never subject to groups: ARP, and neighbour and router discovery, without which
/// there is no network to have rules about. Anti-spoofing checks what they claim.
pub fn is_exempt(head: &[u8], pkt: &Packet) -> bool {
    let discovery = pkt.frag == Frag::None
        && icmpv6_kind(head, pkt).is_some_and(|kind| {
            (icmpv6::kind::ROUTER_SOLICITATION..=icmpv6::kind::NEIGHBOUR_ADVERTISEMENT)
                .contains(&kind)
        });
    discovery || pkt.ether_type == ether_type::ARP
}

/// What the groups of a port say about a packet.
pub fn judge(
    port: &PortEntry,
    direction: Direction,
    head: &[u8],
    pkt: &Packet,
    seen: &mut impl Observer,
) -> Judgement {
    let Some(acl) = port.acl.as_deref() else { return Judgement::Free };
    if is_exempt(head, pkt) {
        return Judgement::Free;
    }
    let judgement = judge_flow(acl, direction, &Flow::of(direction, head, pkt));
    seen.saw(|| step(port, acl, direction, judgement));
    judgement
}

fn step(port: &PortEntry, acl: &PortAcl, direction: Direction, judgement: Judgement) -> Step {
    let name = |at: RuleIndex| {
        let group = acl.groups.get(usize::from(at.group));
        let id = group.map_or_else(String::new, |group| group.id.to_string());
        format!("acl {id}: rule[{}]", at.rule)
    };
    match judgement {
        Judgement::Free => Step::new(Stage::Acl, "pass"),
        Judgement::Allow { rule, stateful } => {
            let words = if stateful { "stateful" } else { "stateless" };
            Step::new(Stage::Acl, "pass").by(name(rule)).because(format!("{direction}, {words}"))
        }
        Judgement::Deny(_) if acl.stateful => {
            let step = Step::new(Stage::Acl, "connection").because(format!(
                "{direction}: passes as part of a connection only, else {}",
                DropReason::AclDenied.name()
            ));
            step.by(match judgement {
                Judgement::Deny(Some(rule)) => name(rule),
                _ => format!("port {}: no rule matches", port.id),
            })
        }
        Judgement::Deny(Some(rule)) => {
            Step::drop(Stage::Acl, DropReason::AclDenied).by(name(rule)).because(direction.name())
        }
        Judgement::Deny(None) => Step::drop(Stage::Acl, DropReason::AclDenied)
            .by(format!("port {}", port.id))
            .because(format!("{direction}: no rule matches")),
    }
}

/// What the groups say about a flow: the first rule that matches decides.
pub fn judge_flow(acl: &PortAcl, direction: Direction, flow: &Flow) -> Judgement {
    for (at, group) in acl.groups.iter().enumerate() {
        for (position, rule) in group.rules.iter().enumerate() {
            if rule.direction == direction && decides(rule, flow) {
                let rule_at = RuleIndex { group: at as u16, rule: position as u16 };
                return match rule.action {
                    AclAction::Allow => {
                        Judgement::Allow { rule: rule_at, stateful: group.stateful }
                    }
                    AclAction::Deny => Judgement::Deny(Some(rule_at)),
                };
            }
        }
    }
    Judgement::Deny(None)
}

/// Whether a rule of the right direction decides about a flow. Where it asks for ports that the packet
/// does not name, it denies what it might deny, and allows nothing.
fn decides(rule: &AclRule, flow: &Flow) -> bool {
    let protocol = match rule.protocol {
        culvert_model::Protocol::Any => true,
        culvert_model::Protocol::Number(number) => flow.proto == Some(number),
    };
    let remote =
        || rule.remote.is_none_or(|net| flow.remote.is_some_and(|remote| net.contains(&remote)));
    if !protocol || !remote() {
        return false;
    }
    if rule.local_ports.is_any() && rule.remote_ports.is_any() {
        return true;
    }
    match flow.ports {
        Some((local, remote)) => {
            rule.local_ports.contains(local) && rule.remote_ports.contains(remote)
        }
        None => rule.action == AclAction::Deny,
    }
}
