//! What a consumer sees: an immutable snapshot of the way to each VTEP.

use std::{collections::HashMap, net::IpAddr};

pub use culvert_wire::eth::MacAddr;

/// The most entries of [`Resolution::Resolved`]: weights are scaled down to fit.
pub const MAX_NEXT_HOPS: usize = 64;

/// One way to a VTEP: the Ethernet (and 802.1Q) header of every packet that takes it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The underlay device that sends, one of [`ResolverConfig::underlay_ifindexes`]. Where the route names a
    /// VLAN device on top of it, this is its parent.
    ///
    /// [`ResolverConfig::underlay_ifindexes`]: crate::ResolverConfig::underlay_ifindexes
    pub ifindex: u32,
    /// The 802.1Q VLAN identifier (1 to 4094) to tag with; `None` sends untagged.
    pub vlan: Option<u16>,
    /// The address of the device (of the VLAN device, where there is one).
    pub src_mac: MacAddr,
    /// The address of the gateway, or of the VTEP itself where it is on-link.
    pub dst_mac: MacAddr,
    /// The largest IP packet in bytes, outer IP header included and Ethernet header not: the least of the
    /// devices' MTU, the route's metric and what path MTU discovery taught the kernel.
    pub mtu: u32,
}

/// The way to one VTEP, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// At least one and at most [`MAX_NEXT_HOPS`] entries, each path repeated by its weight, in an order that
    /// depends on the set of paths alone: `hops[flow_hash % hops.len()]` follows the weights and keeps a flow
    /// on its path while the set stays. Paths whose neighbour is not resolved are left out.
    Resolved(Vec<NextHop>),
    /// A route exists; the kernel is asking for the neighbour's Ethernet address.
    Pending,
    /// No packet can be sent. Followed further: it changes as soon as the kernel's tables do.
    Unreachable(Reason),
}

/// The ways to all VTEPs in use at one moment.
///
/// A VTEP that is absent is not a target, or has not been looked up yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    /// By address of the remote VTEP.
    pub by_vtep: HashMap<IpAddr, Resolution>,
}

/// Why no packet can be sent to a VTEP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Add a route to the VTEP; `ip route get` shows what the kernel does with it. Routes also vanish with
    /// the device they point to, so check that it is up.
    #[error("no route")]
    NoRoute,
    /// Remove the `blackhole` route if the VTEP is meant to be reached.
    #[error("blackhole route")]
    Blackhole,
    /// Remove the `unreachable` route if the VTEP is meant to be reached.
    #[error("unreachable route")]
    HostUnreachable,
    /// Remove the `prohibit` route or rule if the VTEP is meant to be reached.
    #[error("prohibited by a route or rule")]
    Prohibited,
    /// The VTEP is an address of this very host: correct the mapping.
    #[error("address of this host")]
    Local,
    /// The VTEP is a multicast, broadcast or anycast address: correct the mapping.
    #[error("not a unicast address")]
    NotUnicast,
    /// Set the named device (or its VLAN parent) up, or plug its cable in.
    #[error("device {0} is down")]
    DeviceDown(String),
    /// The route leaves by a device that the dataplane does not run on: add it as underlay, or change the route.
    #[error("device {0} is not an underlay")]
    NotUnderlay(String),
    /// Route over Ethernet or an 802.1Q VLAN directly on an underlay device instead.
    #[error("device {name} is unsupported: {why}")]
    UnsupportedDevice {
        /// The device that the route names.
        name: String,
        /// What about it is not supported.
        why: &'static str,
    },
    /// The route carries an encapsulation (MPLS, `SRv6`, ...), which bypassed packets would not get: use a plain one.
    #[error("route with an encapsulation")]
    UnsupportedRoute,
    /// Nobody answered for the next hop's Ethernet address: check that the gateway (or the VTEP) is up and in
    /// the same VLAN. The kernel keeps asking.
    #[error("neighbour does not answer")]
    NeighbourFailed,
    /// Our own IPv4 VTEP address, as which the route was asked for, is not set on any device: add it. (IPv6
    /// looks routes up for any source.)
    #[error("source {0} is not an address of this host")]
    SourceNotLocal(IpAddr),
    /// The kernel refused the lookup by an error that has no name here (`errno` value); see its log.
    #[error("route lookup failed with errno {0}")]
    LookupFailed(i32),
}

impl Reason {
    /// A short, stable name for counters and drop reasons.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Blackhole => "blackhole",
            Self::HostUnreachable => "host_unreachable",
            Self::Prohibited => "prohibited",
            Self::Local => "local",
            Self::NotUnicast => "not_unicast",
            Self::DeviceDown(_) => "device_down",
            Self::NotUnderlay(_) => "not_underlay",
            Self::UnsupportedDevice { .. } => "unsupported_device",
            Self::UnsupportedRoute => "unsupported_route",
            Self::NeighbourFailed => "neighbour_failed",
            Self::SourceNotLocal(_) => "source_not_local",
            Self::LookupFailed(_) => "lookup_failed",
        }
    }
}
