//! Attachments of tenants.

use std::cmp::Ordering;
use std::net::IpAddr;

use culvert_wire::eth::MacAddr;

use crate::ids::{AclGroupId, DomainName, IfName, Mtu, PortId, VnetId, words};
use crate::meter::Meter;
use crate::objects::Keyed;
use crate::underlay::ModePreference;

/// One tenant's attachment to one vnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name on this host; unique.
    pub id: PortId,
    /// The vnet it is in.
    pub vnet: VnetId,
    /// The device, and how it is used.
    pub attach: Attach,
    /// The tenant's MAC address; unique in the vnet.
    pub mac: MacAddr,
    /// The tenant's addresses; each unique in the vnet. May be empty: then the port is reached by flooding
    /// only, and, with `anti_spoof`, can send no IP.
    pub ips: Vec<IpAddr>,
    /// Frames with a source MAC or IP address that is not the port's are dropped and counted. Default true.
    pub anti_spoof: bool,
    /// The tenant's MTU; `None`: the device's. May be above what fits the underlay: larger packets are then
    /// cut (TCP superframes, IPv4 without DF) or answered with "packet too big".
    pub mtu: Option<Mtu>,
    /// How `AF_XDP` attaches to the device. Without effect on a TAP.
    pub mode: ModePreference,
    /// Whether frames pass.
    pub state: PortState,
    /// ACL groups, each once, the first that has a matching rule decides. Empty: everything passes.
    pub acl: Vec<AclGroupId>,
    /// Limits of its rate; `None`: unlimited.
    pub meter: Option<Meter>,
    /// What the tenant is told to call itself, where its vnet has DHCP.
    pub hostname: Option<DomainName>,
    /// Whether UDP datagrams of a flow, equally long but for the last, are merged into one superframe for it, as
    /// the kernel does where a socket asks for it (`UDP_GRO`). Its stack cuts them again. Default false.
    pub udp_gro: bool,
}

/// The device of a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attach {
    /// A device that exists: the host end of a veth or of a VM's tap, a VF, a NIC. `AF_XDP` takes all its
    /// frames.
    Xdp {
        /// The device.
        ifname: IfName,
    },
    /// A TAP device that the dataplane makes and a tenant uses.
    Tap {
        /// The device.
        ifname: IfName,
    },
}

impl Attach {
    /// The device.
    pub const fn ifname(&self) -> &IfName {
        match self {
            Attach::Xdp { ifname } | Attach::Tap { ifname } => ifname,
        }
    }

    /// `xdp` or `tap`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Attach::Xdp { .. } => "xdp",
            Attach::Tap { .. } => "tap",
        }
    }
}

/// Whether a port's frames pass.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum PortState {
    /// They do.
    #[default]
    Active,
    /// They are dropped and counted, in both directions; the device stays attached.
    Blocked,
}
words!(PortState { Active = "active", Blocked = "blocked" });

impl Keyed for Port {
    type Key = PortId;

    fn key(&self) -> PortId {
        self.id.clone()
    }

    fn compare(&self, key: &PortId) -> Ordering {
        self.id.cmp(key)
    }
}
