//! What tenants are told when they ask for their configuration.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use crate::ids::DomainName;

/// What the dataplane answers to DHCP (RFC 2131), DHCPv6 (RFC 8415) and router solicitations (RFC 4861) in
/// a vnet. A port gets its own addresses, each in the subnet of one of the vnet's gateways, which is its
/// router, its own MTU, and what stands here.
///
/// DHCP packets of tenants then go nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// Recursive DNS servers of both families.
    pub dns: Vec<IpAddr>,
    /// NTP servers of both families.
    pub ntp: Vec<IpAddr>,
    /// Domain of the tenants' names, and the one that is searched.
    pub domain: Option<DomainName>,
    /// Time for which an address is lent, and a router's word holds, in seconds. What is said anew before
    /// half of it is over reaches tenants by then.
    pub lease_s: u32,
    /// Routes beside the one by the gateway (RFC 3442), unique by prefix.
    pub routes: Vec<DhcpRoute>,
}

impl Dhcp {
    /// Lease unless told otherwise, seconds.
    pub const LEASE_DEFAULT_S: u32 = 3600;
    /// Least lease, seconds.
    pub const LEASE_MIN_S: u32 = 60;
    /// Greatest lease, seconds: thirty days.
    pub const LEASE_MAX_S: u32 = 2_592_000;
}

impl Default for Dhcp {
    fn default() -> Self {
        Dhcp {
            dns: Vec::new(),
            ntp: Vec::new(),
            domain: None,
            lease_s: Dhcp::LEASE_DEFAULT_S,
            routes: Vec::new(),
        }
    }
}

/// A classless static route (RFC 3442).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct DhcpRoute {
    /// Destinations; without host bits.
    pub prefix: Ipv4Net,
    /// The router, in the tenant's subnet.
    pub via: Ipv4Addr,
}
