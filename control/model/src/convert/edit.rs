//! Edits from and to messages.

use super::read::Read;
use crate::api::{self, edit::Edit as Message};
use crate::edit::Edit;
use crate::fault::{Fault, ModelError, Place, Section};
use crate::rules::{IngressKey, MappingKey, RouteKey, RouteScope};

/// Reads edits; whether they can be applied is another question.
///
/// # Errors
/// Every fault found, each with the position of its edit.
pub fn edits(messages: &[api::Edit]) -> Result<Vec<Edit>, Vec<ModelError>> {
    let mut read = Read::default();
    let edits: Option<Vec<Edit>> = {
        let each = messages.iter().enumerate().map(|(at, message)| {
            let known = read.errors.len();
            let edit = read.edit(message);
            let name = message.edit.as_ref().map(name).unwrap_or_default();
            for error in read.errors.iter_mut().skip(known) {
                let place = error.place.clone().in_edit(at);
                error.place = if place.id.is_none() { place.named(&name) } else { place };
            }
            edit
        });
        // All of them, so that every fault is found.
        let all: Vec<_> = each.collect();
        all.into_iter().collect()
    };
    match edits {
        Some(edits) if read.errors.is_empty() => Ok(edits),
        _ => Err(read.errors),
    }
}

/// The object of an edit, as given.
fn name(message: &Message) -> String {
    let route = |port: Option<&str>, vnet: Option<&str>, prefix: &str| match (port, vnet) {
        (Some(id), _) => format!("port {id} {prefix}"),
        (_, Some(id)) => format!("vnet {id} {prefix}"),
        (None, None) => prefix.to_owned(),
    };
    let rule = |vni: u32, vtep: &str, priority: u32| {
        let vtep = if vtep.is_empty() { "any" } else { vtep };
        format!("VNI {vni}, {vtep}, priority {priority}")
    };
    match message {
        Message::SetUnderlay(_) => String::new(),
        Message::PutVnet(vnet) => vnet.id.clone(),
        Message::PutPort(port) => port.id.clone(),
        Message::DeleteVnet(id) | Message::DeletePort(id) => id.clone(),
        Message::PutRoute(api::EgressRoute { scope, prefix, .. }) => match scope {
            Some(api::egress_route::Scope::Port(id)) => route(Some(id), None, prefix),
            Some(api::egress_route::Scope::Vnet(id)) => route(None, Some(id), prefix),
            None => route(None, None, prefix),
        },
        Message::DeleteRoute(api::RouteKey { scope, prefix }) => match scope {
            Some(api::route_key::Scope::Port(id)) => route(Some(id), None, prefix),
            Some(api::route_key::Scope::Vnet(id)) => route(None, Some(id), prefix),
            None => route(None, None, prefix),
        },
        Message::PutMapping(api::Mapping { vnet, ip, .. })
        | Message::DeleteMapping(api::MappingKey { vnet, ip }) => format!("{vnet} {ip}"),
        Message::PutIngress(m) => rule(m.vni, &m.vtep, m.priority),
        Message::DeleteIngress(m) => rule(m.vni, &m.vtep, m.priority),
        Message::PutAcl(group) => group.id.clone(),
        Message::PutFormat(format) => format.id.clone(),
        Message::DeleteAcl(id) => id.clone(),
        Message::DeleteFormat(id) => id.clone(),
    }
}

impl Read {
    fn edit(&mut self, message: &api::Edit) -> Option<Edit> {
        let Some(message) = &message.edit else {
            let legal = "an object to put or to delete";
            let place = Place::section(Section::Underlay, "");
            return self.keep(place, Err(Fault::Missing { legal }));
        };
        Some(match message {
            Message::SetUnderlay(m) => Edit::SetUnderlay(self.underlay(Some(m))?),
            Message::PutVnet(m) => Edit::PutVnet(self.vnet(0, m)?),
            Message::DeleteVnet(id) => {
                Edit::DeleteVnet(self.text(Place::section(Section::Vnet, "id"), id)?)
            }
            Message::PutPort(m) => Edit::PutPort(self.port(0, m)?),
            Message::DeletePort(id) => {
                Edit::DeletePort(self.text(Place::section(Section::Port, "id"), id)?)
            }
            Message::PutRoute(m) => Edit::PutRoute(self.route(0, m)?),
            Message::DeleteRoute(m) => Edit::DeleteRoute(self.route_key(m)?),
            Message::PutMapping(m) => Edit::PutMapping(self.mapping(0, m)?),
            Message::DeleteMapping(m) => {
                let place = |field| Place::section(Section::Mapping, field);
                let (vnet, ip) = (self.text(place("vnet"), &m.vnet), self.text(place("ip"), &m.ip));
                Edit::DeleteMapping(MappingKey { vnet: vnet?, ip: ip? })
            }
            Message::PutIngress(m) => Edit::PutIngress(self.ingress(0, m)?),
            Message::DeleteIngress(m) => {
                let (vni, vtep, priority) = self.ingress_key(0, m.vni, &m.vtep, m.priority);
                Edit::DeleteIngress(IngressKey { vni: vni?, vtep: vtep?, priority: priority? })
            }
            Message::PutAcl(m) => Edit::PutAcl(self.acl(0, m)?),
            Message::PutFormat(m) => Edit::PutFormat(self.format(0, m)?),
            Message::DeleteAcl(id) => {
                Edit::DeleteAcl(self.text(Place::section(Section::Acl, "id"), id)?)
            }
            Message::DeleteFormat(id) => {
                Edit::DeleteFormat(self.text(Place::section(Section::Format, "id"), id)?)
            }
        })
    }

    fn route_key(&mut self, message: &api::RouteKey) -> Option<RouteKey> {
        let place = |field| Place::section(Section::Route, field);
        let scope = match &message.scope {
            Some(api::route_key::Scope::Port(id)) => {
                self.text(place("port"), id).map(RouteScope::Port)
            }
            Some(api::route_key::Scope::Vnet(id)) => {
                self.text(place("vnet"), id).map(RouteScope::Vnet)
            }
            None => self.keep(place(""), Err(Fault::Missing { legal: "one of port and vnet" })),
        };
        let prefix = self.text(place("prefix"), &message.prefix);
        Some(RouteKey { scope: scope?, prefix: prefix? })
    }
}

impl From<&Edit> for api::Edit {
    fn from(edit: &Edit) -> api::Edit {
        let message = match edit {
            Edit::SetUnderlay(underlay) => Message::SetUnderlay(underlay.into()),
            Edit::PutVnet(vnet) => Message::PutVnet(vnet.into()),
            Edit::DeleteVnet(id) => Message::DeleteVnet(id.to_string()),
            Edit::PutPort(port) => Message::PutPort(port.into()),
            Edit::DeletePort(id) => Message::DeletePort(id.to_string()),
            Edit::PutRoute(route) => Message::PutRoute(route.into()),
            Edit::DeleteRoute(RouteKey { scope, prefix }) => {
                let scope = match scope {
                    RouteScope::Port(id) => api::route_key::Scope::Port(id.to_string()),
                    RouteScope::Vnet(id) => api::route_key::Scope::Vnet(id.to_string()),
                };
                let prefix = prefix.to_string();
                Message::DeleteRoute(api::RouteKey { scope: Some(scope), prefix })
            }
            Edit::PutMapping(mapping) => Message::PutMapping(mapping.into()),
            Edit::DeleteMapping(MappingKey { vnet, ip }) => {
                let (vnet, ip) = (vnet.to_string(), ip.to_string());
                Message::DeleteMapping(api::MappingKey { vnet, ip })
            }
            Edit::PutIngress(rule) => Message::PutIngress(rule.into()),
            Edit::DeleteIngress(IngressKey { vni, vtep, priority }) => {
                let (vni, vtep, priority) = (vni.get(), vtep.to_string(), (*priority).into());
                Message::DeleteIngress(api::IngressKey { vni, vtep, priority })
            }
            Edit::PutAcl(group) => Message::PutAcl(group.into()),
            Edit::PutFormat(format) => Message::PutFormat(format.into()),
            Edit::DeleteAcl(id) => Message::DeleteAcl(id.to_string()),
            Edit::DeleteFormat(id) => Message::DeleteFormat(id.to_string()),
        };
        api::Edit { edit: Some(message) }
    }
}
