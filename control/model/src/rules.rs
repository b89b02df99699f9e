//! Rules: where a tenant's frame may go, where addresses live, what is taken from the underlay.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use culvert_wire::eth::MacAddr;
use culvert_wire::vni::Vni;
use ipnet::IpNet;

use crate::fault::Fault;
use crate::ids::{Mtu, PortId, VnetId, words};
use crate::objects::Keyed;

/// What happens to frames from a port by their IP destination.
///
/// The routes of a port and those of its vnet are one table: the longest prefix decides, and at equal
/// length the port's own. A destination that no route covers is dropped and counted. Where neither the
/// port nor its vnet has any route, every destination is looked up in its own vnet, as if `0.0.0.0/0` and
/// `::/0` led there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRoute {
    /// Whose frames.
    pub scope: RouteScope,
    /// Destinations; without host bits, unique in its scope.
    pub prefix: IpNet,
    /// What happens.
    pub action: RouteAction,
}

/// What tells routes apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Whose frames.
    pub scope: RouteScope,
    /// Destinations.
    pub prefix: IpNet,
}

impl Keyed for EgressRoute {
    type Key = RouteKey;

    fn key(&self) -> RouteKey {
        RouteKey { scope: self.scope.clone(), prefix: self.prefix }
    }

    fn compare(&self, key: &RouteKey) -> Ordering {
        self.scope.cmp(&key.scope).then_with(|| self.prefix.cmp(&key.prefix))
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            RouteScope::Port(id) => write!(f, "port {id} {}", self.prefix),
            RouteScope::Vnet(id) => write!(f, "vnet {id} {}", self.prefix),
        }
    }
}

/// Whose frames a route is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteScope {
    /// Those of every port in a vnet.
    Vnet(VnetId),
    /// Those of one port.
    Port(PortId),
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteAction {
    /// Looks the destination up among the ports and mappings of a vnet, not necessarily the port's own.
    Vnet(VnetId),
    /// Delivers to ports of the own vnet on this host; never leaves by the underlay.
    Local,
    /// Shows the frame to the control plane, rate-limited.
    Trap,
    /// Drops and counts it.
    Drop,
}

impl fmt::Display for RouteAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteAction::Vnet(vnet) => write!(f, "vnet {vnet}"),
            RouteAction::Local => f.write_str("local"),
            RouteAction::Trap => f.write_str("trap"),
            RouteAction::Drop => f.write_str("drop"),
        }
    }
}

/// Where an address of a vnet lives: behind which VTEP, with which MAC address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The vnet.
    pub vnet: VnetId,
    /// Address in the vnet; unique there, ports and gateways included.
    pub ip: IpAddr,
    /// Its MAC address, told to tenants that ask.
    pub mac: MacAddr,
    /// The VTEP it lives behind: another host's underlay address.
    pub vtep: IpAddr,
    /// The largest IP packet that the far end takes, where known; of an IPv6 address, 1280 bytes at least. It may be
    /// more than the underlay carries: the lesser of both holds.
    pub mtu: Option<Mtu>,
}

/// What tells mappings apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MappingKey {
    /// The vnet.
    pub vnet: VnetId,
    /// Address in the vnet.
    pub ip: IpAddr,
}

impl Keyed for Mapping {
    type Key = MappingKey;

    fn key(&self) -> MappingKey {
        MappingKey { vnet: self.vnet.clone(), ip: self.ip }
    }

    fn compare(&self, key: &MappingKey) -> Ordering {
        self.vnet.cmp(&key.vnet).then_with(|| self.ip.cmp(&key.ip))
    }
}

impl fmt::Display for MappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.vnet, self.ip)
    }
}

/// What is done with frames of one VNI by the VTEP that sent them.
///
/// Among the rules of a VNI that cover the sender, the greatest priority decides, then the longest
/// prefix. A frame that none covers is dropped and counted. A vnet for whose VNI there is no rule at all
/// behaves as if it had one: [`IngressAction::DecapValidate`] from any VTEP. One rule replaces that
/// default.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IngressRule {
    /// The VNI. It has a vnet, unless the action is to trap or to drop.
    pub vni: Vni,
    /// Senders.
    pub vtep: VtepMatch,
    /// Greater decides first.
    pub priority: u16,
    /// What happens.
    pub action: IngressAction,
}

impl IngressRule {
    /// Whether it lets frames in, so that there has to be a vnet for them.
    pub(crate) const fn delivers(&self) -> bool {
        matches!(self.action, IngressAction::DecapValidate | IngressAction::Decap)
    }
}

/// What tells ingress rules apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IngressKey {
    /// The VNI.
    pub vni: Vni,
    /// Senders.
    pub vtep: VtepMatch,
    /// Priority.
    pub priority: u16,
}

impl Keyed for IngressRule {
    type Key = IngressKey;

    fn key(&self) -> IngressKey {
        IngressKey { vni: self.vni, vtep: self.vtep, priority: self.priority }
    }
}

impl fmt::Display for IngressKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VNI {}, {}, priority {}", self.vni, self.vtep, self.priority)
    }
}

/// Which senders a rule covers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VtepMatch {
    /// All, of both families.
    #[default]
    Any,
    /// Those with an outer source in a prefix, which has no host bits.
    Prefix(IpNet),
}

impl VtepMatch {
    /// Whether a sender is covered.
    pub fn covers(&self, vtep: IpAddr) -> bool {
        match self {
            VtepMatch::Any => true,
            VtepMatch::Prefix(prefix) => prefix.contains(&vtep),
        }
    }

    /// Bits of the prefix; 0 for any.
    pub fn prefix_len(&self) -> u8 {
        match self {
            VtepMatch::Any => 0,
            VtepMatch::Prefix(prefix) => prefix.prefix_len(),
        }
    }
}

impl fmt::Display for VtepMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VtepMatch::Any => f.write_str("any"),
            VtepMatch::Prefix(prefix) => fmt::Display::fmt(prefix, f),
        }
    }
}

impl FromStr for VtepMatch {
    type Err = Fault;

    fn from_str(value: &str) -> Result<Self, Fault> {
        match value {
            "any" => Ok(VtepMatch::Any),
            _ => match value.parse() {
                Ok(prefix) => Ok(VtepMatch::Prefix(prefix)),
                Err(_) => Err(Fault::BadPrefix { value: value.to_owned() }),
            },
        }
    }
}

/// What a rule does with a frame from the underlay.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IngressAction {
    /// Delivers it if a mapping of the vnet says that its inner source address lives behind its outer
    /// source; drops and counts it otherwise.
    DecapValidate,
    /// Delivers it.
    Decap,
    /// Shows it to the control plane, rate-limited.
    Trap,
    /// Drops and counts it.
    Drop,
}
words!(IngressAction {
    DecapValidate = "decap-validate",
    Decap = "decap",
    Trap = "trap",
    Drop = "drop",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vtep_match_covers_its_prefix_only() {
        let of = |text: &str| text.parse::<VtepMatch>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(of("any").covers(ip("192.0.2.1")) && of("any").covers(ip("2001:db8::1")));
        assert!(of("192.0.2.0/24").covers(ip("192.0.2.255")));
        assert!(!of("192.0.2.0/24").covers(ip("192.0.3.0")));
        assert!(!of("0.0.0.0/0").covers(ip("2001:db8::1")));
        assert_eq!(of("192.0.2.1/32").prefix_len(), 32);
        assert!("all".parse::<VtepMatch>().is_err());
    }
}
