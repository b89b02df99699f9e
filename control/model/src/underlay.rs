//! The physical network and our place in it.

use std::net::IpAddr;

use culvert_wire::shard::Keyring;

use crate::ids::{FormatId, IfName, Mtu, words};
use crate::shard::ShardSettings;

/// The devices that tunnelled frames use, and our addresses on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Devices; at least one, each once.
    pub interfaces: Vec<IfName>,
    /// Our own VTEP addresses, of IPv4, IPv6 or both; at least one, each once, unicast. The first of a
    /// family is the source of what we send in it.
    pub addresses: Vec<IpAddr>,
    /// MTU towards the other hosts; `None`: the least of the devices'.
    pub mtu: Option<Mtu>,
    /// How `AF_XDP` attaches to the devices. Without effect where packet sockets receive.
    pub mode: ModePreference,
    /// How frames are received.
    pub rx: UnderlayRx,
    /// How frames leave.
    pub tx: UnderlayTx,
    /// How long a segment may wait for the next of its flow before it is delivered, in microseconds, at most
    /// [`MERGE_HOLD_MAX_US`](crate::limits::MERGE_HOLD_MAX_US). 0: no longer than for what arrived with it.
    pub merge_hold_us: u16,
    /// VTEPs that are spoken to in a way of their own; each once.
    pub peers: Vec<Peer>,
    /// What the shard format sends and holds.
    pub shard: ShardSettings,
}

/// A VTEP that is not as all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub vtep: IpAddr,
    /// The format in which it is spoken to in every vnet, and has to speak to us; `None`: that of the vnet.
    pub format: Option<FormatId>,
    /// Whether it is a Culvert: see [`Vnet::raise_mss`](crate::Vnet::raise_mss); `None`: as the vnet says.
    pub raise_mss: Option<bool>,
    /// The keys of the shard format between it and us.
    pub keys: Keyring,
}

/// How an `AF_XDP` socket is to be attached to a device.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum ModePreference {
    /// The best that works; which, and why none better, is reported. For an underlay: zero-copy, else
    /// native, else generic. A veth is attached in generic mode, which alone keeps its offloads.
    #[default]
    Auto,
    /// Zero-copy, or fail.
    ZeroCopy,
    /// In the driver, by copy, or fail.
    Native,
    /// In the kernel's receive path, by copy.
    Generic,
}
words!(ModePreference { Auto = "auto", ZeroCopy = "zero-copy", Native = "native", Generic = "generic" });

/// How tunnelled frames are received.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnderlayRx {
    /// By `AF_XDP`, as `mode` says.
    #[default]
    Xdp,
    /// By packet sockets, which leave the device's receive coalescing (LRO, RSC) and the kernel's (GRO) in front of
    /// us; XDP turns the former off. Linux 6.6.
    Packet,
}
words!(UnderlayRx { Xdp = "xdp", Packet = "packet" });

/// How tunnelled frames leave.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnderlayTx {
    /// The dataplane chooses by device and frame.
    #[default]
    Auto,
    /// By the `AF_XDP` rings only.
    Xdp,
    /// By the packet socket only, which leaves segmentation and checksums to the device.
    Packet,
}
words!(UnderlayTx { Auto = "auto", Xdp = "xdp", Packet = "packet" });
