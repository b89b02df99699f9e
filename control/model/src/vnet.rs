//! Virtual networks.

use std::cmp::Ordering;

use culvert_wire::eth::MacAddr;
use culvert_wire::vni::Vni;
use ipnet::IpNet;

use crate::dhcp::Dhcp;
use crate::ids::{FormatId, VnetId, words};
use crate::objects::Keyed;

/// A virtual network: an address space of its own, that nothing enters or leaves but by a rule.
///
/// Ports of one vnet on the same host reach each other without mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vnet {
    /// Name on this host; unique.
    pub id: VnetId,
    /// Identifier on the wire; unique.
    pub vni: Vni,
    /// What its frames look like on the underlay, where the peer says nothing else.
    pub format: FormatId,
    /// The far ends are Culverts: a superframe of TCP is cut to what the way bears, however small the tenant's
    /// segments are, and its tunnel headers state the tenant's MSS, by which the far end delivers. Not
    /// where the format cannot state it. What a peer says goes before.
    pub raise_mss: bool,
    /// Broadcast and multicast are copied to every port of the vnet and to every VTEP in its mappings
    /// (head-end replication). Otherwise they are dropped and counted, but for ARP and neighbour
    /// discovery, which are answered from ports, mappings and gateways.
    pub flood: bool,
    /// What happens to a frame for an address that has no mapping and no port.
    pub miss: Miss,
    /// Addresses in the vnet that the dataplane itself answers for.
    pub gateways: Vec<Gateway>,
    /// What tenants are told that ask for their configuration; `None`: nobody answers them.
    pub dhcp: Option<Dhcp>,
}

/// An address that the dataplane answers ARP and neighbour discovery for, so that tenants can send to
/// other subnets.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Address, with the prefix length of its subnet: `10.0.0.1/24`.
    pub ip: IpNet,
    /// Its MAC address.
    pub mac: MacAddr,
}

/// What happens to a frame for an address that nothing is known of.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Miss {
    /// Dropped and counted.
    #[default]
    Drop,
    /// Shown to the control plane, rate-limited, which may add the mapping; the frame itself is dropped.
    Trap,
}
words!(Miss { Drop = "drop", Trap = "trap" });

impl Keyed for Vnet {
    type Key = VnetId;

    fn key(&self) -> VnetId {
        self.id.clone()
    }

    fn compare(&self, key: &VnetId) -> Ordering {
        self.id.cmp(key)
    }
}
