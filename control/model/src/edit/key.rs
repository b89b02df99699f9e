//! What names an object of a state.

use std::fmt;

use crate::fault::{Place, Section};
use crate::host::HostParts;
use crate::ids::{AclGroupId, FormatId, PortId, VnetId};
use crate::objects::Keyed;
use crate::rules::{IngressKey, MappingKey, RouteKey};

/// What tells an object of a state from all others. Displayed as `port web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// The underlay, of which there is one.
    Underlay,
    /// A vnet.
    Vnet(VnetId),
    /// A port.
    Port(PortId),
    /// An egress route.
    Route(RouteKey),
    /// A mapping.
    Mapping(MappingKey),
    /// An ingress rule.
    Ingress(IngressKey),
    /// An ACL group.
    Acl(AclGroupId),
    /// A tunnel format.
    Format(FormatId),
}

impl ObjectKey {
    /// The part of the state in which it is.
    pub const fn section(&self) -> Section {
        match self {
            ObjectKey::Underlay => Section::Underlay,
            ObjectKey::Vnet(_) => Section::Vnet,
            ObjectKey::Port(_) => Section::Port,
            ObjectKey::Route(_) => Section::Route,
            ObjectKey::Mapping(_) => Section::Mapping,
            ObjectKey::Ingress(_) => Section::Ingress,
            ObjectKey::Acl(_) => Section::Acl,
            ObjectKey::Format(_) => Section::Format,
        }
    }

    /// What names it in its section; empty for the underlay.
    pub fn name(&self) -> String {
        match self {
            ObjectKey::Underlay => String::new(),
            ObjectKey::Vnet(id) => id.to_string(),
            ObjectKey::Port(id) => id.to_string(),
            ObjectKey::Route(key) => key.to_string(),
            ObjectKey::Mapping(key) => key.to_string(),
            ObjectKey::Ingress(key) => key.to_string(),
            ObjectKey::Acl(id) => id.to_string(),
            ObjectKey::Format(id) => id.to_string(),
        }
    }

    /// The object as a whole, named instead of numbered.
    pub fn place(&self) -> Place {
        Place::section(self.section(), "").named(&self.name())
    }

    /// The object at a place of `parts`; none for a section as a whole.
    pub fn at(place: &Place, parts: &HostParts) -> Option<ObjectKey> {
        if place.section == Section::Underlay {
            return Some(ObjectKey::Underlay);
        }
        let index = place.index?;
        Some(match place.section {
            Section::Underlay => ObjectKey::Underlay,
            Section::Vnet => ObjectKey::Vnet(parts.vnets.get(index)?.id.clone()),
            Section::Port => ObjectKey::Port(parts.ports.get(index)?.id.clone()),
            Section::Route => ObjectKey::Route(parts.routes.get(index)?.key()),
            Section::Mapping => ObjectKey::Mapping(parts.mappings.get(index)?.key()),
            Section::Ingress => ObjectKey::Ingress(parts.ingress.get(index)?.key()),
            Section::Acl => ObjectKey::Acl(parts.acls.get(index)?.id.clone()),
            Section::Format => ObjectKey::Format(parts.formats.get(index)?.id.clone()),
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectKey::Underlay => f.write_str("underlay"),
            _ => write!(f, "{} {}", self.section().name(), self.name()),
        }
    }
}
