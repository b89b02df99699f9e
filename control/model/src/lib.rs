//! The nouns of Culvert, their validation, and the gRPC API.
//!
//! A host carries **ports** (attachments of tenants) in **vnets** (address spaces of their own, each with a
//! VNI on the wire). **Egress routes** say where a port's frames may go, **mappings** behind which VTEP an
//! address lives, **ingress rules** what is taken from the underlay, **ACL groups** which flows a port may
//! have.
//!
//! | module | holds |
//! |---|---|
//! | [`ids`] | names and small quantities that cannot hold an illegal value |
//! | [`underlay`], [`vnet`], [`port`], [`rules`], [`acl`], [`meter`], [`dhcp`] | the nouns |
//! | [`host`] | all of them, valid as a whole |
//! | [`objects`] | many objects by key, of which versions share what they have in common |
//! | [`fault`] | what can be wrong, where, and what is legal |
//! | [`object`] | one object of a state, whichever kind it is |
//! | [`edit`] | changes of one object each: what differs between two states, and applying it |
//! | [`api`] | the gRPC API, and its messages from and to the nouns |
//! | [`host_toml`] | the file that people write |
//! | [`drops`] | what each reason of a drop means, and what to do |
//! | [`size`] | numbers of bytes as people write them |
//! | [`limits`] | how much of each one host may carry |
//!
//! Nothing here does I/O; neither does it know how packets are carried.

pub mod acl;
pub mod api;
mod convert;
pub mod dhcp;
pub mod drops;
pub mod edit;
pub mod fault;
pub mod format;
pub mod host;
pub mod host_toml;
pub mod ids;
mod index;
pub mod limits;
pub mod meter;
mod nearest;
pub mod object;
pub mod objects;
pub mod port;
pub mod rules;
pub mod shard;
pub mod size;
pub mod underlay;
mod validate;
pub mod vnet;

pub use acl::{AclAction, AclGroup, AclRule, Direction, PortRange, PortRanges, Protocol};
pub use culvert_wire::eth::MacAddr;
pub use culvert_wire::vni::Vni;
pub use dhcp::{Dhcp, DhcpRoute};
pub use edit::{Edit, ObjectKey, diff};
pub use fault::{Fault, ModelError, Place, Section, Warning};
pub use format::Format;
pub use host::{Host, HostParts};
pub use ids::{AclGroupId, DomainName, FormatId, IfName, Mtu, PortId, VnetId};
pub use ipnet::IpNet;
pub use meter::{Meter, TokenBucket};
pub use nearest::nearest;
pub use object::Object;
pub use objects::{Keyed, Objects};
pub use port::{Attach, Port, PortState};
pub use rules::{
    EgressRoute, IngressAction, IngressKey, IngressRule, Mapping, MappingKey, RouteAction,
    RouteKey, RouteScope, VtepMatch,
};
pub use shard::ShardSettings;
pub use size::Size;
pub use underlay::{ModePreference, Peer, Underlay, UnderlayRx, UnderlayTx};
pub use vnet::{Gateway, Miss, Vnet};

/// The directory of a host's sockets, unless told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/culvert";
/// Name of the dataplane's socket in it.
pub const DATAPLANE_SOCKET: &str = "dataplane.sock";
/// Name of culvertd's socket in it.
pub const CONTROL_SOCKET: &str = "culvertd.sock";
/// Name of the gateway's socket in it.
pub const GATEWAY_SOCKET: &str = "gateway.sock";
/// Where the gateway's socket is when a service manager started it.
pub const GATEWAY_SERVICE_DIR: &str = "/run/culvert-gateway";
/// The socket of the dataplane, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/culvert/dataplane.sock";

/// The socket of culvertd, unless told otherwise.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/culvert/culvertd.sock";

/// Least MTU of an IPv4 tenant, bytes: what every host must be able to take (RFC 791).
pub const IPV4_MTU_MIN: u16 = 576;
/// Least MTU of an IPv6 tenant, bytes (RFC 8200).
pub const IPV6_MTU_MIN: u16 = 1280;
/// Bytes of the underlay's MTU taken over IPv4: IP 20, UDP 8, VXLAN 8, inner Ethernet 14.
pub const IPV4_OUTER_OVERHEAD: u16 = 50;
/// Bytes of the underlay's MTU taken over IPv6: IP 40, UDP 8, VXLAN 8, inner Ethernet 14.
pub const IPV6_OUTER_OVERHEAD: u16 = 70;
