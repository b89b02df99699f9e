//! What can be wrong with a host's state, and where.
//!
//! A [`Fault`] says what is wrong with a value and what is legal; a [`Place`] says where it stands in the
//! state; a [`ModelError`] is both. `host.toml` adds line and column to it, the API sends it as it is.

use std::fmt;
use std::net::IpAddr;

use culvert_wire::eth::MacAddr;
use culvert_wire::shard::{CodingError, KeyError};
use culvert_wire::vni::Vni;
use ipnet::IpNet;

use crate::acl::Protocol;
use crate::ids::{AclGroupId, FormatId, IfName, Mtu, PortId, VnetId};
use crate::nearest::{asked, hint};

/// A part of the state, named as in `host.toml`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// The physical network and our place in it.
    Underlay,
    /// Virtual networks.
    Vnet,
    /// Attachments of tenants.
    Port,
    /// Egress routes.
    Route,
    /// Where tenants' addresses live.
    Mapping,
    /// What is taken from the underlay.
    Ingress,
    /// Which flows ports may have.
    Acl,
    /// Tunnel formats.
    Format,
}

impl Section {
    /// Name in `host.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Section::Underlay => "underlay",
            Section::Vnet => "vnet",
            Section::Port => "port",
            Section::Route => "route",
            Section::Mapping => "mapping",
            Section::Ingress => "ingress",
            Section::Acl => "acl",
            Section::Format => "format",
        }
    }
}

/// Where in the state something stands. Displayed as `port[1] "web": ips[0]`; where an edit brought it
/// there, as `edits[2] port "web": ips[0]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Position, from 0, of the edit that is to blame, where edits were given.
    pub edit: Option<usize>,
    /// The section.
    pub section: Section,
    /// Position in the section, from 0. `None` for the underlay and for a section as a whole.
    pub index: Option<usize>,
    /// Identifier of the object, where it has one.
    pub id: Option<String>,
    /// Field of the object, as in `host.toml`; empty for the object as a whole. A field inside a table, or
    /// a list of tables, is written with a dot (`dhcp.dns`, `gateway.ip`).
    pub field: &'static str,
    /// Position in the list of tables, or else in the field, from 0.
    pub element: Option<usize>,
}

impl Place {
    /// A field of the underlay, or a section as a whole when `field` is empty.
    pub const fn section(section: Section, field: &'static str) -> Place {
        Place { edit: None, section, index: None, id: None, field, element: None }
    }

    /// A field of the object at `index`.
    pub const fn object(section: Section, index: usize, field: &'static str) -> Place {
        Place { edit: None, section, index: Some(index), id: None, field, element: None }
    }

    /// The same place, with the identifier of its object.
    #[must_use]
    pub fn named(mut self, id: &str) -> Place {
        self.id = (!id.is_empty()).then(|| id.to_owned());
        self
    }

    /// The same place, at one element of the field's list.
    #[must_use]
    pub const fn at(mut self, element: usize) -> Place {
        self.element = Some(element);
        self
    }

    /// The same place, as something that an edit brought there: it has no position in the state.
    #[must_use]
    pub const fn in_edit(mut self, edit: usize) -> Place {
        self.edit = Some(edit);
        self.index = None;
        self
    }

    /// Sorts faults as they stand in the state.
    pub(crate) const fn order(&self) -> (Section, Option<usize>) {
        (self.section, self.index)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().unwrap_or_default();
        if let Some(edit) = self.edit {
            write!(f, "edits[{edit}] ")?;
        }
        write_place(f, self.section.name(), self.index, id, self.field, self.element)
    }
}

/// The form in which places are shown, for [`Place`] and for what the API sends in its stead.
pub(crate) fn write_place(
    f: &mut impl fmt::Write,
    section: &str,
    index: Option<usize>,
    id: &str,
    field: &str,
    element: Option<usize>,
) -> fmt::Result {
    f.write_str(section)?;
    if let Some(index) = index {
        write!(f, "[{index}]")?;
    }
    if !id.is_empty() {
        write!(f, " \"{}\"", id.escape_debug())?;
    }
    if field.is_empty() {
        return f.write_char(':');
    }
    match (field.split_once('.'), element) {
        (Some((list, leaf)), Some(element)) if is_list_of_tables(list) => {
            write!(f, ": {list}[{element}].{leaf}")
        }
        (_, Some(element)) => write!(f, ": {field}[{element}]"),
        (_, None) => write!(f, ": {field}"),
    }
}

/// Whether a field that has fields of its own is a list of tables; else it is one table.
pub(crate) fn is_list_of_tables(field: &str) -> bool {
    !matches!(field, "dhcp" | "meter" | "shard")
}

/// A fault and its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} {fault}")]
pub struct ModelError {
    /// Where.
    pub place: Place,
    /// What, and what is legal.
    pub fault: Fault,
}

impl ModelError {
    /// A fault at a place.
    pub const fn new(place: Place, fault: Fault) -> ModelError {
        ModelError { place, fault }
    }
}

/// What is wrong with a value. Each message quotes the value and says what is legal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Give the object an identifier of the legal form.
    #[error("{value:?}: not an identifier; legal is 1 to 63 of a-z, 0-9 and -")]
    BadId {
        /// As given.
        value: String,
    },
    /// Name a network device as `ip link` shows it.
    #[error(
        "{value:?}: not an interface name; legal is 1 to 15 printable ASCII characters without space, / and :, and not . or .."
    )]
    BadIfName {
        /// As given.
        value: String,
    },
    /// Write the MAC address in colon notation.
    #[error("{value:?}: not a MAC address; legal is six hexadecimal octets, as 02:00:00:00:00:01")]
    BadMac {
        /// As given.
        value: String,
    },
    /// Use the address of one station: not zero, not multicast.
    #[error(
        "{mac}: not the address of one station; legal is any but zero and those with the group bit (01:00:00:00:00:00)"
    )]
    MacNotUnicast {
        /// As given.
        mac: MacAddr,
    },
    /// Write the IP address in its usual form, without prefix length.
    #[error("{value:?}: not an IP address; legal is as 10.0.0.1 or 2001:db8::1")]
    BadIp {
        /// As given.
        value: String,
    },
    /// Use a unicast address.
    #[error(
        "{ip}: not a unicast address; legal is any but unspecified, loopback, multicast, broadcast and IPv4-mapped IPv6"
    )]
    IpNotUnicast {
        /// As given.
        ip: IpAddr,
    },
    /// Write the prefix with its length.
    #[error("{value:?}: not a prefix; legal is as 10.0.0.0/24 or 2001:db8::/64")]
    BadPrefix {
        /// As given.
        value: String,
    },
    /// Write the gateway's address with the length of its subnet.
    #[error(
        "{value:?}: not an address with prefix length; legal is as 10.0.0.1/24 or 2001:db8::1/64"
    )]
    BadGatewayIp {
        /// As given.
        value: String,
    },
    /// Clear the host bits, or lengthen the prefix.
    #[error("{prefix}: has host bits set; the network is {}", prefix.trunc())]
    HostBits {
        /// As given.
        prefix: IpNet,
    },
    /// Use a legal virtual network identifier.
    #[error("{value}: not a VNI; legal is 1 to 16777215")]
    BadVni {
        /// As given.
        value: i64,
    },
    /// Use a legal MTU.
    #[error("{value}: not an MTU; legal is {} to {} bytes of an IP packet", Mtu::MIN.get(), Mtu::MAX.get())]
    BadMtu {
        /// As given.
        value: i64,
    },
    /// Use a number in the range.
    #[error("{value}: out of range; legal is {min} to {max}")]
    BadNumber {
        /// As given.
        value: i64,
        /// Least legal value.
        min: i64,
        /// Greatest legal value.
        max: i64,
    },
    /// Write the number plainly or with a decimal unit.
    #[error("{value:?}: not a number; legal is as 64000, 64k, 100M or 2G")]
    BadScaled {
        /// As given.
        value: String,
    },
    /// Name the protocol, or give its number.
    #[error(
        "{value:?}: not an IP protocol; legal is any, tcp, udp, sctp, icmp, icmpv6 or a number, 0 to 255"
    )]
    BadProtocol {
        /// As given.
        value: String,
    },
    /// Write ports and ranges of them, separated by commas.
    #[error("{value:?}: not a port or range of ports; legal is as 80, 443, 8000-8999")]
    BadPorts {
        /// As given.
        value: String,
    },
    /// Write the range with its lower end first.
    #[error("{first}-{last}: reversed; legal is {last}-{first}")]
    PortsReversed {
        /// As given.
        first: u16,
        /// As given, below `first`.
        last: u16,
    },
    /// Name the protocol that the ports are of.
    #[error(
        "ports given with protocol {protocol}, which has none; legal is with tcp, udp and sctp"
    )]
    PortsWithoutProtocol {
        /// As given.
        protocol: Protocol,
    },
    /// Use the protocol or the prefix of the other IP version.
    #[error(
        "{remote}: never seen with protocol {protocol}; legal is a prefix of IPv{family}",
        family = if remote.addr().is_ipv4() { 6 } else { 4 }
    )]
    ProtocolOfOtherFamily {
        /// As given.
        protocol: Protocol,
        /// As given.
        remote: IpNet,
    },
    /// Write the name as DNS does.
    #[error(
        "{value:?}: not a domain name; legal is labels of a-z, 0-9 and - joined by dots, as web-1.example.internal"
    )]
    BadDomain {
        /// As given.
        value: String,
    },
    /// Give the vnet a gateway whose subnet has the address, use one that has it, or take `dhcp` from the
    /// vnet: without a subnet a tenant cannot be told its netmask and router.
    #[error(
        "{ip}: in the subnet of no gateway of its vnet, which has dhcp; legal is an address in one of them"
    )]
    NoSubnet {
        /// As given.
        ip: IpAddr,
    },
    /// Use a router in a subnet of the vnet, which tenants reach without another.
    #[error("{via}: in the subnet of no gateway of the vnet; legal is a router in one of them")]
    RouterNotOnLink {
        /// As given.
        via: IpAddr,
    },
    /// Choose how many shares rebuild a frame, and how many are sent.
    #[error(transparent)]
    BadCoding(#[from] CodingError),
    /// Give both: how many shares rebuild a frame, and how many are sent.
    #[error(
        "k without n, or n without k; legal are both, or none for a choice by the frame's length"
    )]
    HalfCoding,
    /// Correct the keys of the pair of VTEPs.
    #[error(transparent)]
    BadKey(#[from] KeyError),
    /// Write the key as 32 hexadecimal digits.
    #[error("not a key; legal is 32 hexadecimal digits, as `openssl rand -hex 16` makes them")]
    BadKeyText,
    /// Put the key itself in its place: it was left out where the text was made.
    #[error("a key that was left out; `culvert export --show-keys` writes keys")]
    RedactedKey,
    /// Give each key a number of its own.
    #[error("key number {id} twice; legal is each once")]
    KeyTwice {
        /// As given.
        id: u32,
    },
    /// Say which of the keys is sent with.
    #[error("more than one key and none to send with; legal is send_key = the number of one")]
    NoSendKey,
    /// Give the key, or leave out which is sent with.
    #[error("send_key = {id} without keys")]
    SendKeyWithoutKeys {
        /// As given.
        id: u32,
    },
    /// Correct the format's description, of which this is one fault.
    #[error("{message}")]
    BadFormat {
        /// What is wrong with it.
        message: String,
    },
    /// Describe one of them otherwise, or take another port for it.
    #[error("{message}")]
    FormatClash {
        /// The other format.
        with: FormatId,
        /// Why their packets cannot be told from each other.
        message: String,
    },
    /// Describe the format, or name one that is there.
    #[error("{id:?}: no such format; legal is vxlan, geneve, stt, shard or the id of a format{}", asked(nearest.as_ref()))]
    UnknownFormat {
        /// As given.
        id: FormatId,
        /// The name that was probably meant.
        nearest: Option<FormatId>,
    },
    /// Choose a VNI that the format has bits for, or another format.
    #[error("{vni}: does not fit format {format}; legal is 1 to {max}")]
    VniTooLarge {
        /// As given.
        vni: Vni,
        /// The vnet's format.
        format: FormatId,
        /// The largest that fits.
        max: u32,
    },
    /// Use one of the words.
    #[error("{value:?}: unknown; legal is {legal}{}", hint(value, legal))]
    BadWord {
        /// As given.
        value: String,
        /// The legal words, for people.
        legal: String,
    },
    /// Add the field.
    #[error("missing; legal is {legal}")]
    Missing {
        /// What is expected.
        legal: &'static str,
    },
    /// Correct the type of the value.
    #[error("{found}: wrong type; legal is {legal}")]
    WrongType {
        /// Type of the value.
        found: &'static str,
        /// What is expected.
        legal: &'static str,
    },
    /// Correct or remove the field.
    #[error("{name:?}: unknown field; legal is {legal}{}", hint(name, legal))]
    UnknownField {
        /// As given.
        name: String,
        /// The fields there are.
        legal: String,
    },
    /// Remove one of the two fields.
    #[error("{one} and {other} both given; legal is one of them")]
    Exclusive {
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Stay within the limit; spread the rest over other hosts.
    #[error("{count} given; legal is at most {max}")]
    TooMany {
        /// As given.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Declare the vnet, or correct the name.
    #[error("{id:?}: no such vnet; legal is the id of a [[vnet]] of this host{}", asked(nearest.as_ref()))]
    UnknownVnet {
        /// As given.
        id: VnetId,
        /// The vnet that was probably meant.
        nearest: Option<VnetId>,
    },
    /// Declare the port, or correct the name.
    #[error("{id:?}: no such port; legal is the id of a [[port]] of this host{}", asked(nearest.as_ref()))]
    UnknownPort {
        /// As given.
        id: PortId,
        /// The port that was probably meant.
        nearest: Option<PortId>,
    },
    /// Declare the group, or correct the name.
    #[error("{id:?}: no such ACL group; legal is the id of an [[acl]] of this host{}", asked(nearest.as_ref()))]
    UnknownAcl {
        /// As given.
        id: AclGroupId,
        /// The group that was probably meant.
        nearest: Option<AclGroupId>,
    },
    /// Declare a vnet with this VNI, or trap or drop its frames.
    #[error(
        "{vni}: no vnet of this host has this VNI; legal without one is the action trap or drop"
    )]
    UnknownVni {
        /// As given.
        vni: Vni,
    },
    /// Read the state again: somebody else may have deleted it.
    #[error("there is none to delete; legal is an object of the present state")]
    Absent,
    /// Give each object its own.
    #[error("{value}: already used by {by}; legal is a value used once")]
    Duplicate {
        /// As given.
        value: String,
        /// Where it stands already.
        by: Place,
    },
    /// Give each address of a vnet to one owner.
    #[error(
        "{value}: overlaps {by} in the same vnet; legal is one owner for each address of a vnet"
    )]
    Overlap {
        /// IP or MAC address, as given.
        value: String,
        /// Its owner.
        by: Place,
    },
    /// Raise the underlay's MTU.
    #[error(
        "{mtu}: too small for the encapsulation: less {overhead} bytes of headers leaves {}, and tenants with IPv{family} need {needed}; legal is {} or more",
        mtu.saturating_sub(*overhead), overhead + needed
    )]
    UnderlayMtuTooSmall {
        /// As given, bytes.
        mtu: u16,
        /// Outer IP, UDP, tunnel and inner Ethernet headers, bytes.
        overhead: u16,
        /// Least MTU of the tenants' protocol, bytes.
        needed: u16,
        /// 4 or 6: IP version of the tenants.
        family: u8,
    },
    /// Raise the port's MTU, or take its IPv6 addresses away.
    #[error(
        "{mtu}: too small for the port's IPv6 addresses; legal is {} or more (RFC 8200)",
        crate::IPV6_MTU_MIN
    )]
    PortMtuTooSmall {
        /// As given.
        mtu: Mtu,
    },
    /// Raise the mapping's MTU, or leave it out.
    #[error(
        "{mtu}: too small for an IPv6 address; legal is {} or more (RFC 8200)",
        crate::IPV6_MTU_MIN
    )]
    MappingMtuTooSmall {
        /// As given.
        mtu: Mtu,
    },
    /// Give the underlay an address of that family, or use a VTEP of the other.
    #[error(
        "{vtep}: the underlay has no {} address to send from; legal is a VTEP of a family in underlay addresses",
        if vtep.is_ipv4() { "IPv4" } else { "IPv6" }
    )]
    NoUnderlayFamily {
        /// As given.
        vtep: IpAddr,
    },
    /// Leave the mapping out: ports of this host need none.
    #[error(
        "{vtep}: is our own address; legal is another host's (ports of this host need no mapping)"
    )]
    VtepIsOurs {
        /// As given.
        vtep: IpAddr,
    },
}

/// Legal, but hardly what was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Set the port's MTU to what fits, or raise the underlay's.
    #[error(
        "{place} {mtu}: above the {room} bytes that fit the underlay; larger packets will be cut, or answered with \"packet too big\""
    )]
    PortMtuAboveRoom {
        /// Where.
        place: Place,
        /// As given.
        mtu: Mtu,
        /// Bytes of an IP packet that fit.
        room: u32,
    },
    /// Lower the MTU of the port or its device to what fits, or raise that of the underlay's devices.
    #[error(
        "{place} {ifname}: MTU {mtu} is above the {room} bytes that fit the underlay's devices; larger packets will be cut, or answered with \"packet too big\""
    )]
    DeviceMtuAboveRoom {
        /// Where.
        place: Place,
        /// The port's device.
        ifname: IfName,
        /// Of the port, or of its device.
        mtu: u32,
        /// Bytes of an IP packet that fit.
        room: u32,
    },
}
