//! What makes two packets one flow: everything that a decision may depend on.

use std::net::IpAddr;

use culvert_wire::eth::ether_type;
use culvert_wire::format::FormatIndex;
use culvert_wire::packet::{Frag, Packet};
use culvert_wire::{arp, icmpv6};

use crate::policy::acl::{icmpv6_kind, l4_ports};

/// Headers of a packet that decide where it goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    macs: [u8; 12],
    addresses: [u8; 32],
    ports: [u8; 4],
    ether_type: u16,
    vlan: u16,
    proto: u8,
    /// A later fragment, which names no ports: another one than a packet of port 0.
    later: bool,
}

impl Headers {
    /// From the first bytes of a packet.
    pub fn of(head: &[u8], pkt: &Packet) -> Self {
        let mut key = Headers {
            macs: [0; 12],
            addresses: [0; 32],
            ports: [0; 4],
            ether_type: pkt.ether_type,
            vlan: pkt.vlan.unwrap_or(0),
            proto: pkt.proto,
            later: pkt.frag == Frag::Later,
        };
        if let Some(macs) = head.first_chunk() {
            key.macs = *macs;
        }
        match (pkt.src_ip(head), pkt.dst_ip(head)) {
            (Some(IpAddr::V4(src)), Some(IpAddr::V4(dst))) => {
                key.addresses[..4].copy_from_slice(&src.octets());
                key.addresses[16..20].copy_from_slice(&dst.octets());
            }
            (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) => {
                key.addresses[..16].copy_from_slice(&src.octets());
                key.addresses[16..].copy_from_slice(&dst.octets());
            }
            _ => {}
        }
        if pkt.ether_type == ether_type::ARP
            && let Some(bytes) = head.get(usize::from(pkt.l3)..)
            && let Ok(arp) = arp::Repr::parse(bytes)
        {
            key.addresses[..4].copy_from_slice(&arp.sender_ip.octets());
            key.addresses[16..20].copy_from_slice(&arp.target_ip.octets());
            key.ports[..2].copy_from_slice(&arp.op.to_be_bytes());
        }
        if let Some(kind) = icmpv6_kind(head, pkt) {
            key.ports[0] = kind;
        }
        if let Some((src, dst)) = l4_ports(head, pkt) {
            key.ports[..2].copy_from_slice(&src.to_be_bytes());
            key.ports[2..].copy_from_slice(&dst.to_be_bytes());
        }
        key
    }
}

/// Whether what is decided for this packet holds for the next of equal [`Headers`]. Not so for
/// ARP and neighbour discovery, where the decision depends on what the message says.
pub fn is_of_a_flow(head: &[u8], pkt: &Packet) -> bool {
    let discovery = icmpv6_kind(head, pkt).is_some_and(|kind| {
        (icmpv6::kind::ROUTER_SOLICITATION..=icmpv6::kind::REDIRECT).contains(&kind)
    });
    pkt.ether_type != ether_type::ARP && !discovery
}

/// A flow that a tenant sends.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct EgressKey {
    /// Its port.
    pub port: u16,
    /// Its headers.
    pub headers: Headers,
}

/// A flow from the underlay.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IngressKey {
    /// Its VNI.
    pub vni: u32,
    /// The VTEP that it comes from.
    pub from: IpAddr,
    /// The format of its packets.
    pub format: FormatIndex,
    /// Its inner headers.
    pub headers: Headers,
}
