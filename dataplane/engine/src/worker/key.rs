//! What makes two packets one flow: everything that a decision may depend on.

use std::net::IpAddr;

use culvert_wire::packet::Packet;

/// Headers of a packet that decide where it goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    macs: [u8; 12],
    addresses: [u8; 32],
    ports: [u8; 4],
    ether_type: u16,
    vlan: u16,
    proto: u8,
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
        if let (Some(src), Some(dst)) = (pkt.src_port(head), pkt.dst_port(head)) {
            key.ports[..2].copy_from_slice(&src.to_be_bytes());
            key.ports[2..].copy_from_slice(&dst.to_be_bytes());
        }
        key
    }
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
    /// Its inner headers.
    pub headers: Headers,
}
