//! The rule tables: an immutable snapshot of everything that decides where a packet goes.
//!
//! A worker loads the snapshot once per batch, so no packet sees half a change. What did not
//! change between two snapshots is shared between them, and keeps its epoch: cached flows that do
//! not depend on a change survive it (`fresh`). A snapshot is made of the one before ([`build()`]), and
//! costs what changed.
//!
//! Ports, virtual networks, VTEPs and links are known by small indices that stay with their object
//! from snapshot to snapshot ([`Indices`]).

mod acl;
mod build;
mod fresh;
mod indices;
mod names;
mod ports;
pub mod shard_keys;
mod shards;
mod vnets;
mod vteps;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::{Dhcp, DomainName, Meter, Miss, PortId, VnetId};
use culvert_wire::eth::MacAddr;
use culvert_wire::format::{FormatDescriptor, FormatIndex, Formats};
use culvert_wire::packet::Packet;
use culvert_wire::vni::Vni;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use rustc_hash::FxHashMap;

use self::fresh::Freshness;
pub(crate) use self::shard_keys::ShardRules;

pub use acl::PortAcl;
pub use build::{Inputs, PortFacts, Scope, build};
pub use fresh::Stamp;
pub use indices::Indices;
pub use shards::Shards;

/// Index of a tenant port.
pub type PortIndex = u16;
/// Index of a virtual network.
pub type VnetIndex = u16;
/// Index of a remote VTEP.
pub type VtepIndex = u32;
/// Index of an underlay device.
pub type LinkIndex = u16;

/// Entries by index. Shared as a whole while none of them changes.
pub(crate) type Slots<T> = Arc<[Option<Arc<T>>]>;

/// One snapshot of the rules.
#[derive(Debug, Default, Clone)]
pub struct Tables {
    /// Counts snapshots.
    pub generation: u64,
    /// The last in which a decision about what comes from the underlay may have changed, but for
    /// addresses: those have [`Stamp`]s.
    pub ingress_epoch: u64,
    pub(crate) ports: Slots<PortEntry>,
    pub(crate) vnets: Slots<VnetEntry>,
    pub(crate) vteps: Slots<VtepEntry>,
    pub(crate) vnet_of_vni: Arc<FxHashMap<u32, VnetIndex>>,
    pub(crate) vtep_of_ip: Shards<IpAddr, VtepIndex>,
    pub(crate) link_workers: Arc<[Vec<u16>]>,
    /// Ingress rules for identifiers that no network here has.
    pub(crate) strangers: Arc<FxHashMap<u32, Vec<IngressEntry>>>,
    pub(crate) fresh: Freshness,
    /// How long a segment may wait for the next of its flow, in microseconds.
    pub merge_hold_us: u16,
    /// Tunnel formats: the built-in ones, and those of the state.
    pub(crate) formats: Formats,
    /// ACL groups, of which ports share what they refer to.
    pub(crate) acls: Arc<acl::Groups>,
    /// Settings and keys of the shard format.
    pub(crate) shard: Arc<ShardRules>,
}

impl Tables {
    /// The port with this index.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&PortEntry> {
        self.ports.get(usize::from(index))?.as_deref()
    }

    /// The virtual network with this index.
    #[inline]
    pub fn vnet(&self, index: VnetIndex) -> Option<&VnetEntry> {
        self.vnets.get(usize::from(index))?.as_deref()
    }

    /// The remote VTEP with this index.
    #[inline]
    pub fn vtep(&self, index: VtepIndex) -> Option<&VtepEntry> {
        self.vteps.get(index as usize)?.as_deref()
    }

    /// Tunnel formats.
    #[inline]
    pub fn formats(&self) -> &Formats {
        &self.formats
    }

    /// The format in which a network speaks to a VTEP.
    pub fn format_towards(&self, vnet: &VnetEntry, vtep: &VtepEntry) -> Option<&FormatDescriptor> {
        self.formats.get(vtep.format.unwrap_or(vnet.format))
    }

    /// The virtual network that has this VNI here.
    #[inline]
    pub fn vnet_of(&self, vni: Vni) -> Option<&VnetEntry> {
        self.vnet(*self.vnet_of_vni.get(&vni.get())?)
    }

    /// Ingress rules for an identifier that no network here has.
    pub fn ingress_of(&self, vni: Vni) -> &[IngressEntry] {
        self.strangers.get(&vni.get()).map_or(&[], Vec::as_slice)
    }

    /// The workers that have a queue of this underlay device.
    #[inline]
    pub fn link_workers(&self, link: LinkIndex) -> &[u16] {
        self.link_workers.get(usize::from(link)).map_or(&[], Vec::as_slice)
    }

    /// What a decision about a packet from a tenant depends on.
    pub fn stamp_egress(&self, head: &[u8], pkt: &Packet) -> Stamp {
        Stamp::of_egress(self.generation, head, pkt)
    }

    /// What a decision about a packet from the VTEP at `from` depends on.
    pub fn stamp_ingress(&self, from: IpAddr, head: &[u8], pkt: &Packet) -> Stamp {
        Stamp::of_ingress(self.generation, from, head, pkt)
    }

    /// Whether nothing changed since about the addresses that a decision depends on.
    #[inline]
    pub fn holds(&self, stamp: &Stamp) -> bool {
        self.fresh.holds(stamp)
    }

    /// Settings and keys of the shard format.
    #[inline]
    pub fn shard(&self) -> &ShardRules {
        &self.shard
    }

    /// Whether anything can be taken from a VTEP: a mapping names it, or an ingress rule.
    #[inline]
    pub fn knows(&self, vtep: &IpAddr) -> bool {
        self.vtep_of(vtep).is_some() || self.shard.is_admitted(*vtep)
    }

    /// The remote VTEP that has this address.
    #[inline]
    pub fn vtep_of(&self, ip: &IpAddr) -> Option<VtepIndex> {
        self.vtep_of_ip.get(ip).copied()
    }
}

/// A tenant port as the packet path needs it.
#[derive(Debug, PartialEq, Clone)]
pub struct PortEntry {
    /// Its index.
    pub index: PortIndex,
    /// Its name.
    pub id: PortId,
    /// Its virtual network.
    pub vnet: VnetIndex,
    /// The one MAC that it may send from and that frames to it carry.
    pub mac: MacAddr,
    /// The addresses that it may send from.
    pub ips: Vec<IpAddr>,
    /// Whether MAC and addresses are enforced.
    pub anti_spoof: bool,
    /// Whether it is kept from sending and receiving.
    pub blocked: bool,
    /// The worker that transmits to it.
    pub worker: u16,
    /// The largest IP packet that it takes, in bytes.
    pub mtu: u32,
    /// Its ACL groups; none where everything passes.
    pub acl: Option<Arc<PortAcl>>,
    /// Limits of its rate.
    pub meter: Option<Meter>,
    /// What it is told when it asks for its configuration: as its network has it.
    pub dhcp: Option<Arc<Dhcp>>,
    /// What DHCP tells it to call itself.
    pub hostname: Option<DomainName>,
    /// Whether datagrams of a flow are merged for it.
    pub udp_gro: bool,
    /// Its own routes, which form one table with those of its network.
    pub routes: Option<Arc<Routes>>,
    /// Changes whenever a decision made for a packet of this port may have changed, but for addresses:
    /// those have [`Stamp`]s.
    pub epoch: u64,
}

/// Egress routes by longest prefix.
#[derive(Debug, Default, PartialEq, Clone)]
pub struct Routes {
    v4: PrefixMap<Ipv4Net, Route>,
    v6: PrefixMap<Ipv6Net, Route>,
    /// The networks that routes lead to, and how many do.
    leads_to: BTreeMap<VnetIndex, usize>,
}

/// What an egress route says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Look the destination up in this network.
    Vnet(VnetIndex),
    /// Only ports of this host.
    Local,
    /// To the control plane.
    Trap,
    /// Drop.
    Drop,
}

impl Routes {
    /// Gives a prefix a route, or none.
    fn set(&mut self, prefix: IpNet, route: Option<Route>) {
        let old = match (prefix, route) {
            (IpNet::V4(net), Some(route)) => self.v4.insert(net, route),
            (IpNet::V6(net), Some(route)) => self.v6.insert(net, route),
            (IpNet::V4(net), None) => self.v4.remove(&net),
            (IpNet::V6(net), None) => self.v6.remove(&net),
        };
        if let Some(Route::Vnet(to)) = route {
            *self.leads_to.entry(to).or_default() += 1;
        }
        if let Some(Route::Vnet(to)) = old
            && let Some(count) = self.leads_to.get_mut(&to)
        {
            *count -= 1;
            if *count == 0 {
                self.leads_to.remove(&to);
            }
        }
    }

    fn get(&self, prefix: IpNet) -> Option<Route> {
        match prefix {
            IpNet::V4(net) => self.v4.get(&net).copied(),
            IpNet::V6(net) => self.v6.get(&net).copied(),
        }
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The networks that any of the routes leads to.
    fn vnets(&self) -> impl Iterator<Item = VnetIndex> + '_ {
        self.leads_to.keys().copied()
    }

    /// The route of the longest prefix that covers `ip`, and that prefix's length.
    pub fn lookup(&self, ip: IpAddr) -> Option<(u8, Route)> {
        match ip {
            IpAddr::V4(ip) => {
                let found = self.v4.get_lpm(&Ipv4Net::from(ip));
                found.map(|(prefix, route)| (prefix.prefix_len(), *route))
            }
            IpAddr::V6(ip) => {
                let found = self.v6.get_lpm(&Ipv6Net::from(ip));
                found.map(|(prefix, route)| (prefix.prefix_len(), *route))
            }
        }
    }
}

/// Where an address or a MAC of a virtual network lives.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// On a port of this host.
    Local(PortIndex),
    /// Behind a remote VTEP.
    Remote {
        /// The VTEP.
        vtep: VtepIndex,
        /// The largest IP packet that the far port takes, where the mapping says so; else 0.
        mtu: u16,
    },
}

/// What a virtual network knows of one address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC.
    pub mac: MacAddr,
    /// Where it lives.
    pub target: Target,
}

/// The address of a virtual network's router, answered by every host.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address and the prefix it serves.
    pub net: IpNet,
    /// Its MAC.
    pub mac: MacAddr,
}

/// What happens to a tunnel packet that an ingress rule matches.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// Deliver if the inner source lives behind the VTEP it came from.
    DecapValidate,
    /// Deliver.
    Decap,
    /// To the control plane.
    Trap,
    /// Drop.
    Drop,
}

/// An ingress rule of one virtual network; the first that matches decides.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IngressEntry {
    /// The VTEPs it is about; all when none.
    pub from: Option<IpNet>,
    /// What it says.
    pub action: Ingress,
}

/// A virtual network as the packet path needs it.
#[derive(Debug, PartialEq, Clone)]
pub struct VnetEntry {
    /// Its index.
    pub index: VnetIndex,
    /// Its name.
    pub id: VnetId,
    /// Its identifier on the wire.
    pub vni: Vni,
    /// The format of its packets.
    pub format: FormatIndex,
    /// Whether the far ends are told a tenant's MSS, and get larger segments.
    pub raise_mss: bool,
    /// Whether broadcast and multicast are replicated.
    pub flood: bool,
    /// What a destination without a mapping means.
    pub miss: Miss,
    /// Its routers.
    pub gateways: Vec<Gateway>,
    /// All that is known by address: local ports and mappings.
    pub neighbours: Shards<IpAddr, Neighbour>,
    /// All that is known by MAC.
    pub macs: Shards<MacAddr, Target>,
    /// Remote VTEPs with a mapping here: where floods go.
    pub flood_vteps: Arc<[VtepIndex]>,
    /// Ports of this host.
    pub local_ports: Arc<[PortIndex]>,
    /// Routes of the network; none means that everything is looked up in the network itself.
    pub routes: Option<Arc<Routes>>,
    /// Networks whose routes lead here: their members may be the source of what is routed.
    pub routed_from: Vec<VnetIndex>,
    /// Ingress rules by falling priority; none means [`Ingress::DecapValidate`] for every VTEP.
    pub ingress: Vec<IngressEntry>,
    /// The generation in which it last changed, but for what lives where: addresses have [`Stamp`]s.
    pub changed_in: u64,
}

impl VnetEntry {
    /// The gateway that has this MAC.
    pub fn gateway_by_mac(&self, mac: MacAddr) -> Option<&Gateway> {
        self.gateways.iter().find(|gateway| gateway.mac == mac)
    }

    /// The gateway that has this address.
    pub fn gateway_by_ip(&self, ip: IpAddr) -> Option<&Gateway> {
        self.gateways.iter().find(|gateway| gateway.net.addr() == ip)
    }
}

/// One way to a remote VTEP.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The underlay device.
    pub link: LinkIndex,
    /// VLAN tag on the underlay.
    pub vlan: Option<u16>,
    /// The device's MAC.
    pub src_mac: MacAddr,
    /// The neighbour's MAC.
    pub dst_mac: MacAddr,
    /// The largest outer IP packet, in bytes: device, route and learned path MTU.
    pub mtu: u32,
}

/// Whether a VTEP can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through any of these; a flow stays on one.
    Hops(Vec<Hop>),
    /// Its neighbour is being resolved.
    Pending,
    /// Not at all.
    Unreachable,
}

/// A remote VTEP as the packet path needs it.
#[derive(Debug, PartialEq, Eq)]
pub struct VtepEntry {
    /// Its index.
    pub index: VtepIndex,
    /// Its address.
    pub ip: IpAddr,
    /// Our address that it sees.
    pub source: IpAddr,
    /// The format in which it is spoken to in every network, where it has one of its own.
    pub format: Option<FormatIndex>,
    /// Whether it is told a tenant's MSS, and gets larger segments, where that is not as the network says.
    pub raise_mss: Option<bool>,
    /// The ways to it.
    pub reach: Reach,
    /// The generation in which it last changed.
    pub changed_in: u64,
}
