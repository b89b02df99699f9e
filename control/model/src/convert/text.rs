//! Values that are written as text.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;

use crate::fault::Fault;
use crate::ids::{AclGroupId, DomainName, FormatId, IfName, PortId, VnetId};
use crate::{IpNet, MacAddr};

/// A value that is written as text.
pub(super) trait Text: Sized {
    /// What is legal, for a missing one.
    const LEGAL: &'static str;
    fn read(text: &str) -> Result<Self, Fault>;
}

fn parse<T: FromStr>(text: &str, fault: fn(String) -> Fault) -> Result<T, Fault> {
    text.parse().map_err(|_| fault(text.to_owned()))
}

impl Text for VnetId {
    const LEGAL: &'static str = "1 to 63 of a-z, 0-9 and -";
    fn read(text: &str) -> Result<Self, Fault> {
        VnetId::new(text)
    }
}

impl Text for PortId {
    const LEGAL: &'static str = "1 to 63 of a-z, 0-9 and -";
    fn read(text: &str) -> Result<Self, Fault> {
        PortId::new(text)
    }
}

impl Text for AclGroupId {
    const LEGAL: &'static str = "1 to 63 of a-z, 0-9 and -";
    fn read(text: &str) -> Result<Self, Fault> {
        AclGroupId::new(text)
    }
}

impl Text for FormatId {
    const LEGAL: &'static str = "1 to 32 of a-z, 0-9 and -";
    fn read(text: &str) -> Result<Self, Fault> {
        FormatId::new(text)
    }
}

impl Text for DomainName {
    const LEGAL: &'static str = "labels of a-z, 0-9 and - joined by dots";
    fn read(text: &str) -> Result<Self, Fault> {
        DomainName::new(text)
    }
}

impl Text for Ipv4Net {
    const LEGAL: &'static str = "an IPv4 prefix, as 10.0.0.0/24";
    fn read(text: &str) -> Result<Self, Fault> {
        parse(text, |value| Fault::BadPrefix { value })
    }
}

impl Text for IfName {
    const LEGAL: &'static str = "an interface name";
    fn read(text: &str) -> Result<Self, Fault> {
        IfName::new(text)
    }
}

impl Text for MacAddr {
    const LEGAL: &'static str = "six hexadecimal octets, as 02:00:00:00:00:01";
    fn read(text: &str) -> Result<Self, Fault> {
        parse(text, |value| Fault::BadMac { value })
    }
}

impl Text for IpAddr {
    const LEGAL: &'static str = "an IP address";
    fn read(text: &str) -> Result<Self, Fault> {
        parse(text, |value| Fault::BadIp { value })
    }
}

impl Text for IpNet {
    const LEGAL: &'static str = "a prefix, as 10.0.0.0/24 or 2001:db8::/64";
    fn read(text: &str) -> Result<Self, Fault> {
        parse(text, |value| Fault::BadPrefix { value })
    }
}

/// An address with the length of its subnet: the same form as a prefix, another hint.
pub(super) struct GatewayIp(pub(super) IpNet);

impl Text for GatewayIp {
    const LEGAL: &'static str = "an address with the length of its subnet, as 10.0.0.1/24";
    fn read(text: &str) -> Result<Self, Fault> {
        parse(text, |value| Fault::BadGatewayIp { value }).map(GatewayIp)
    }
}

/// An IPv4 address, where one of IPv6 is of no use.
pub(super) struct V4Text(pub(super) Ipv4Addr);

impl Text for V4Text {
    const LEGAL: &'static str = "an IPv4 address";
    fn read(text: &str) -> Result<Self, Fault> {
        parse(text, |value| Fault::BadIp { value }).map(V4Text)
    }
}
