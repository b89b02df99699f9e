//! ACL groups: which flows a tenant may have.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::fault::Fault;
use crate::ids::{AclGroupId, words};
use crate::objects::Keyed;

/// A list of rules that ports refer to by name, replaced as a whole.
///
/// The groups of a port are asked in the order in which the port lists them, and the rules of a group in
/// theirs: the first that matches decides. A port with groups of which no rule matches drops the packet and
/// counts it; a port without groups passes everything. ARP and neighbour discovery are never subject to a
/// group, neither is what the dataplane itself answers.
///
/// Of a later fragment of an IP packet, which names no ports, only rules without ports can match; a rule
/// that has them and would match otherwise is passed over if it allows, and decides if it denies. So no
/// fragment gets through that its first one could not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclGroup {
    /// Name on this host; unique.
    pub id: AclGroupId,
    /// Whether a flow that a rule of this group allows may be answered: packets of the reverse direction
    /// that belong to it pass, and so do ICMP errors about it, whatever the rules say.
    pub stateful: bool,
    /// The rules, the deciding ones first.
    pub rules: Vec<AclRule>,
}

/// One rule: what it matches, all of it, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclRule {
    /// Which way, as the tenant sees it.
    pub direction: Direction,
    /// What happens.
    pub action: AclAction,
    /// IP protocol.
    pub protocol: Protocol,
    /// The address at the other end, a prefix without host bits; `None`: any.
    pub remote: Option<IpNet>,
    /// Ports at the tenant's end; any where empty. Only with TCP, UDP and SCTP.
    pub local_ports: PortRanges,
    /// Ports at the other end, likewise.
    pub remote_ports: PortRanges,
}

/// Which way a packet goes, as the tenant sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the tenant.
    Ingress,
    /// From the tenant.
    Egress,
}
words!(Direction { Ingress = "ingress", Egress = "egress" });

/// What a rule does with a packet that it matches.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum AclAction {
    /// Lets it pass.
    Allow,
    /// Drops and counts it.
    Deny,
}
words!(AclAction { Allow = "allow", Deny = "deny" });

/// An IP protocol (of IANA's registry of protocol numbers), or any.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Any, and packets that are not IP.
    #[default]
    Any,
    /// The one of this number.
    Number(u8),
}

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol::Number(1);
    /// TCP.
    pub const TCP: Protocol = Protocol::Number(6);
    /// UDP.
    pub const UDP: Protocol = Protocol::Number(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol::Number(58);
    /// SCTP.
    pub const SCTP: Protocol = Protocol::Number(132);

    const NAMES: [(&'static str, Protocol); 6] = [
        ("any", Protocol::Any),
        ("tcp", Protocol::TCP),
        ("udp", Protocol::UDP),
        ("sctp", Protocol::SCTP),
        ("icmp", Protocol::ICMP),
        ("icmpv6", Protocol::ICMPV6),
    ];

    /// Whether packets of the protocol name ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
    }

    /// The IP version that alone carries it, 4 or 6, where there is only one.
    pub(crate) fn family(self) -> Option<u8> {
        match self {
            Protocol::ICMP => Some(4),
            Protocol::ICMPV6 => Some(6),
            Protocol::Any | Protocol::Number(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (Protocol::NAMES.iter().find(|(_, protocol)| protocol == self), self) {
            (Some((name, _)), _) => f.pad(name),
            (None, Protocol::Number(number)) => f.pad(&number.to_string()),
            (None, Protocol::Any) => f.pad("any"),
        }
    }
}

impl FromStr for Protocol {
    type Err = Fault;

    fn from_str(value: &str) -> Result<Self, Fault> {
        let named = Protocol::NAMES.iter().find(|(name, _)| *name == value);
        let number = || value.parse().ok().map(Protocol::Number);
        named
            .map(|(_, protocol)| *protocol)
            .or_else(number)
            .ok_or_else(|| Fault::BadProtocol { value: value.to_owned() })
    }
}

/// Ports from `first` to `last`, both included, `first <= last`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports from `first` to `last`.
    ///
    /// # Errors
    /// Where `first` is above `last`, or one is above 65535.
    pub fn new(first: u32, last: u32) -> Result<PortRange, Fault> {
        let number = |value: u32| {
            let bad = Fault::BadNumber { value: value.into(), min: 0, max: u16::MAX.into() };
            u16::try_from(value).map_err(|_| bad)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(Fault::PortsReversed { first, last });
        }
        Ok(PortRange { first, last })
    }

    /// The least port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The greatest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = Fault;

    fn from_str(value: &str) -> Result<Self, Fault> {
        let bad = || Fault::BadPorts { value: value.to_owned() };
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| digits).ok_or_else(bad)
        };
        let (first, last) = value.split_once('-').unwrap_or((value, value));
        PortRange::new(number(first.trim())?, number(last.trim())?)
    }
}

/// A set of ports, written as `80, 443, 8000-8999`. Empty: any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortRanges(pub Vec<PortRange>);

impl PortRanges {
    /// Whether all ports are meant.
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `port` is meant.
    pub fn contains(&self, port: u16) -> bool {
        self.is_any() || self.0.iter().any(|range| range.contains(port))
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("any");
        }
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

impl FromStr for PortRanges {
    type Err = Fault;

    fn from_str(value: &str) -> Result<Self, Fault> {
        match value {
            "any" => Ok(PortRanges::default()),
            _ => value
                .split(',')
                .map(|part| part.trim().parse())
                .collect::<Result<_, _>>()
                .map(PortRanges),
        }
    }
}

impl Keyed for AclGroup {
    type Key = AclGroupId;

    fn key(&self) -> AclGroupId {
        self.id.clone()
    }

    fn compare(&self, key: &AclGroupId) -> Ordering {
        self.id.cmp(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_people_do() {
        for (text, shown) in [
            ("80", "80"),
            ("80,443", "80, 443"),
            ("80, 8000-8999", "80, 8000-8999"),
            ("0-65535", "0-65535"),
            ("7-7", "7"),
            ("any", "any"),
        ] {
            let ports: PortRanges = text.parse().unwrap();
            assert_eq!(ports.to_string(), shown);
            assert_eq!(shown.parse::<PortRanges>().unwrap(), ports);
        }
        for (text, fault) in [
            ("90-80", Fault::PortsReversed { first: 90, last: 80 }),
            ("65536", Fault::BadNumber { value: 65_536, min: 0, max: 65_535 }),
            ("", Fault::BadPorts { value: String::new() }),
            ("80,", Fault::BadPorts { value: String::new() }),
            ("http", Fault::BadPorts { value: "http".into() }),
            ("+80", Fault::BadPorts { value: "+80".into() }),
            ("1-2-3", Fault::BadPorts { value: "1-2-3".into() }),
        ] {
            assert_eq!(text.parse::<PortRanges>().unwrap_err(), fault, "{text}");
        }
    }

    #[test]
    fn a_protocol_has_one_value_however_it_is_written() {
        assert_eq!("6".parse::<Protocol>().unwrap(), Protocol::TCP);
        assert_eq!("tcp".parse::<Protocol>().unwrap().to_string(), "tcp");
        assert_eq!("47".parse::<Protocol>().unwrap().to_string(), "47");
        assert!("256".parse::<Protocol>().is_err() && "TCP".parse::<Protocol>().is_err());
    }

    #[test]
    fn no_ports_means_any() {
        assert!(PortRanges::default().contains(7));
        let web: PortRanges = "80, 8000-8001".parse().unwrap();
        assert!(web.contains(80) && web.contains(8001) && !web.contains(8002) && !web.contains(0));
    }
}
