//! One object of a state, whichever kind it is.

use crate::acl::AclGroup;
use crate::edit::{Edit, ObjectKey};
use crate::format::Format;
use crate::host::HostParts;
use crate::objects::Keyed;
use crate::port::Port;
use crate::rules::{EgressRoute, IngressRule, Mapping};
use crate::underlay::Underlay;
use crate::vnet::Vnet;

/// One object of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The underlay of a host.
    Underlay(Underlay),
    /// A vnet.
    Vnet(Vnet),
    /// A port.
    Port(Port),
    /// An egress route.
    Route(EgressRoute),
    /// A mapping.
    Mapping(Mapping),
    /// An ingress rule.
    Ingress(IngressRule),
    /// An ACL group.
    Acl(AclGroup),
    /// A tunnel format.
    Format(Format),
}

impl Object {
    /// What tells it from all others of its state.
    pub fn key(&self) -> ObjectKey {
        match self {
            Object::Underlay(_) => ObjectKey::Underlay,
            Object::Vnet(vnet) => ObjectKey::Vnet(vnet.id.clone()),
            Object::Port(port) => ObjectKey::Port(port.id.clone()),
            Object::Route(route) => ObjectKey::Route(route.key()),
            Object::Mapping(mapping) => ObjectKey::Mapping(mapping.key()),
            Object::Ingress(rule) => ObjectKey::Ingress(rule.key()),
            Object::Acl(group) => ObjectKey::Acl(group.id.clone()),
            Object::Format(format) => ObjectKey::Format(format.id.clone()),
        }
    }

    /// Every object of a state, in the order of its sections.
    pub fn all_of(parts: HostParts) -> impl Iterator<Item = Object> {
        let HostParts { underlay, vnets, ports, routes, mappings, ingress, acls, formats } = parts;
        std::iter::once(Object::Underlay(underlay))
            .chain(vnets.into_iter().map(Object::Vnet))
            .chain(ports.into_iter().map(Object::Port))
            .chain(routes.into_iter().map(Object::Route))
            .chain(mappings.into_iter().map(Object::Mapping))
            .chain(ingress.into_iter().map(Object::Ingress))
            .chain(acls.into_iter().map(Object::Acl))
            .chain(formats.into_iter().map(Object::Format))
    }
}

/// The edit that puts an object.
impl From<Object> for Edit {
    fn from(object: Object) -> Edit {
        match object {
            Object::Underlay(underlay) => Edit::SetUnderlay(underlay),
            Object::Vnet(vnet) => Edit::PutVnet(vnet),
            Object::Port(port) => Edit::PutPort(port),
            Object::Route(route) => Edit::PutRoute(route),
            Object::Mapping(mapping) => Edit::PutMapping(mapping),
            Object::Ingress(rule) => Edit::PutIngress(rule),
            Object::Acl(group) => Edit::PutAcl(group),
            Object::Format(format) => Edit::PutFormat(format),
        }
    }
}

/// What an edit puts; none for one that deletes.
impl From<Edit> for Option<Object> {
    fn from(edit: Edit) -> Option<Object> {
        Some(match edit {
            Edit::SetUnderlay(underlay) => Object::Underlay(underlay),
            Edit::PutVnet(vnet) => Object::Vnet(vnet),
            Edit::PutPort(port) => Object::Port(port),
            Edit::PutRoute(route) => Object::Route(route),
            Edit::PutMapping(mapping) => Object::Mapping(mapping),
            Edit::PutIngress(rule) => Object::Ingress(rule),
            Edit::PutAcl(group) => Object::Acl(group),
            Edit::PutFormat(format) => Object::Format(format),
            Edit::DeleteVnet(_)
            | Edit::DeletePort(_)
            | Edit::DeleteRoute(_)
            | Edit::DeleteMapping(_)
            | Edit::DeleteIngress(_)
            | Edit::DeleteAcl(_)
            | Edit::DeleteFormat(_) => return None,
        })
    }
}
