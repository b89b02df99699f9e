//! Objects and their keys from and to messages.

use super::edit::edits;
use crate::api::{self, edit::Edit as Message, object, object_key};
use crate::edit::{Edit, ObjectKey};
use crate::fault::{Fault, ModelError, Place, Section};
use crate::object::Object;
use crate::rules::{IngressKey, MappingKey, RouteKey, RouteScope};

/// Reads one edit; it has no position.
fn single(message: Option<Message>, legal: &'static str) -> Result<Edit, Vec<ModelError>> {
    if message.is_none() {
        let place = Place::section(Section::Underlay, "");
        return Err(vec![ModelError::new(place, Fault::Missing { legal })]);
    }
    let mut edits = edits(&[api::Edit { edit: message }]).map_err(|mut errors| {
        errors.iter_mut().for_each(|error| error.place.edit = None);
        errors
    })?;
    edits.pop().ok_or_else(Vec::new)
}

impl TryFrom<api::Object> for Object {
    type Error = Vec<ModelError>;

    /// Reads an object; whether it fits others is another question.
    ///
    /// # Errors
    /// Every fault found.
    fn try_from(message: api::Object) -> Result<Object, Vec<ModelError>> {
        let message = message.object.map(|object| match object {
            object::Object::Underlay(m) => Message::SetUnderlay(m),
            object::Object::Vnet(m) => Message::PutVnet(m),
            object::Object::Port(m) => Message::PutPort(m),
            object::Object::Route(m) => Message::PutRoute(m),
            object::Object::Mapping(m) => Message::PutMapping(m),
            object::Object::Ingress(m) => Message::PutIngress(m),
            object::Object::Acl(m) => Message::PutAcl(m),
            object::Object::Format(m) => Message::PutFormat(m),
        });
        let edit = single(message, "one object")?;
        Option::<Object>::from(edit).ok_or_else(Vec::new)
    }
}

impl TryFrom<api::ObjectKey> for ObjectKey {
    type Error = Vec<ModelError>;

    /// Reads a key.
    ///
    /// # Errors
    /// Every fault found.
    fn try_from(message: api::ObjectKey) -> Result<ObjectKey, Vec<ModelError>> {
        let message = match message.key {
            Some(object_key::Key::Underlay(_)) => return Ok(ObjectKey::Underlay),
            Some(object_key::Key::Vnet(id)) => Some(Message::DeleteVnet(id)),
            Some(object_key::Key::Port(id)) => Some(Message::DeletePort(id)),
            Some(object_key::Key::Route(m)) => Some(Message::DeleteRoute(m)),
            Some(object_key::Key::Mapping(m)) => Some(Message::DeleteMapping(m)),
            Some(object_key::Key::Ingress(m)) => Some(Message::DeleteIngress(m)),
            Some(object_key::Key::Acl(id)) => Some(Message::DeleteAcl(id)),
            Some(object_key::Key::Format(id)) => Some(Message::DeleteFormat(id)),
            None => None,
        };
        single(message, "the key of one object").map(|edit| edit.key())
    }
}

impl From<&Object> for api::Object {
    fn from(object: &Object) -> api::Object {
        let object = match object {
            Object::Underlay(underlay) => object::Object::Underlay(underlay.into()),
            Object::Vnet(vnet) => object::Object::Vnet(vnet.into()),
            Object::Port(port) => object::Object::Port(port.into()),
            Object::Route(route) => object::Object::Route(route.into()),
            Object::Mapping(mapping) => object::Object::Mapping(mapping.into()),
            Object::Ingress(rule) => object::Object::Ingress(rule.into()),
            Object::Acl(group) => object::Object::Acl(group.into()),
            Object::Format(format) => object::Object::Format(format.into()),
        };
        api::Object { object: Some(object) }
    }
}

impl From<&ObjectKey> for api::ObjectKey {
    fn from(key: &ObjectKey) -> api::ObjectKey {
        let key = match key {
            ObjectKey::Underlay => object_key::Key::Underlay(api::Unit {}),
            ObjectKey::Vnet(id) => object_key::Key::Vnet(id.to_string()),
            ObjectKey::Port(id) => object_key::Key::Port(id.to_string()),
            ObjectKey::Route(key) => object_key::Key::Route(key.into()),
            ObjectKey::Mapping(key) => object_key::Key::Mapping(key.into()),
            ObjectKey::Ingress(key) => object_key::Key::Ingress(key.into()),
            ObjectKey::Acl(id) => object_key::Key::Acl(id.to_string()),
            ObjectKey::Format(id) => object_key::Key::Format(id.to_string()),
        };
        api::ObjectKey { key: Some(key) }
    }
}

impl From<&RouteKey> for api::RouteKey {
    fn from(key: &RouteKey) -> api::RouteKey {
        let scope = match &key.scope {
            RouteScope::Port(id) => api::route_key::Scope::Port(id.to_string()),
            RouteScope::Vnet(id) => api::route_key::Scope::Vnet(id.to_string()),
        };
        api::RouteKey { scope: Some(scope), prefix: key.prefix.to_string() }
    }
}

impl From<&MappingKey> for api::MappingKey {
    fn from(key: &MappingKey) -> api::MappingKey {
        api::MappingKey { vnet: key.vnet.to_string(), ip: key.ip.to_string() }
    }
}

impl From<&IngressKey> for api::IngressKey {
    fn from(key: &IngressKey) -> api::IngressKey {
        api::IngressKey {
            vni: key.vni.get(),
            vtep: key.vtep.to_string(),
            priority: key.priority.into(),
        }
    }
}
