//! A limit on everything that one host can be asked to carry. They bound memory and the time that a
//! replaced state takes, not what the packet path could do.

/// Underlay interfaces.
pub const UNDERLAY_INTERFACES_MAX: usize = 8;
/// Our own VTEP addresses.
pub const UNDERLAY_ADDRESSES_MAX: usize = 16;
/// Longest that a segment may wait to be merged, in microseconds.
pub const MERGE_HOLD_MAX_US: u16 = 1_000;
/// Virtual networks.
pub const VNETS_MAX: usize = 65_536;
/// Gateway addresses of one vnet.
pub const GATEWAYS_PER_VNET_MAX: usize = 64;
/// Ports.
pub const PORTS_MAX: usize = 4_096;
/// Addresses of one port.
pub const IPS_PER_PORT_MAX: usize = 256;
/// Egress routes, of all ports and vnets together.
pub const ROUTES_MAX: usize = 100_000;
/// Mappings, of all vnets together.
pub const MAPPINGS_MAX: usize = 1_000_000;
/// Ingress rules.
pub const INGRESS_RULES_MAX: usize = 65_536;
/// ACL groups.
pub const ACL_GROUPS_MAX: usize = 4_096;
/// Rules of one ACL group. The first packet of a flow is held against them one by one.
pub const ACL_RULES_PER_GROUP_MAX: usize = 256;
/// ACL groups of one port, for the same reason.
pub const ACL_GROUPS_PER_PORT_MAX: usize = 8;
/// Port ranges of one ACL rule, local and remote each.
pub const ACL_PORT_RANGES_MAX: usize = 16;
/// Tunnel formats, beside the built-in ones: each packet from the underlay is held against those of its port.
pub const FORMATS_MAX: usize = 24;
/// VTEPs that are spoken to in a format of their own, or with keys.
pub const UNDERLAY_PEERS_MAX: usize = 4_096;
/// DNS servers, and NTP servers, of one vnet: all of them fit one DHCP packet of the least size.
pub const DHCP_SERVERS_MAX: usize = 8;
/// Static routes of one vnet's DHCP, likewise.
pub const DHCP_ROUTES_MAX: usize = 16;
/// Bytes of a `host.toml`.
pub const HOST_TOML_BYTES_MAX: usize = 256 << 20;
/// Bytes of one gRPC message: a state at all its limits fits. Client and server set it on encoding and
/// decoding, since tonic's default of 4 MiB holds only some 40,000 mappings.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
