//! The objects of a state as rows of tables, and as JSON and YAML with stable field names.

mod format;
mod policy;
mod state;

use culvert_model::Object as Noun;
use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) use format::Format;
pub(crate) use policy::{Acl, acl_rows, acls};
pub(crate) use state::{
    IngressRule, Mapping, Port, Route, Underlay, Vnet, WholeState, ingress, mappings, routes, vnets,
};

/// Something shown as one row of a table, or one object of JSON.
pub(crate) trait Row: Serialize {
    const HEADERS: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

/// One object, whichever kind it is.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Object {
    Underlay(Underlay),
    Vnet(Vnet),
    Port(Port),
    Route(Route),
    Mapping(Mapping),
    Ingress(IngressRule),
    Acl(Acl),
    Format(Format),
}

impl From<&Noun> for Object {
    fn from(object: &Noun) -> Object {
        match object {
            Noun::Underlay(underlay) => Object::Underlay(underlay.into()),
            Noun::Vnet(vnet) => Object::Vnet(vnet.into()),
            Noun::Port(port) => Object::Port(port.into()),
            Noun::Route(route) => Object::Route(route.into()),
            Noun::Mapping(mapping) => Object::Mapping(mapping.into()),
            Noun::Ingress(rule) => Object::Ingress(rule.into()),
            Noun::Acl(group) => Object::Acl(group.into()),
            Noun::Format(format) => Object::Format(format.into()),
        }
    }
}

impl Object {
    /// Headers of the table of its kind.
    pub(crate) fn headers(&self) -> &'static [&'static str] {
        match self {
            Object::Underlay(_) => Underlay::HEADERS,
            Object::Vnet(_) => Vnet::HEADERS,
            Object::Port(_) => Port::HEADERS,
            Object::Route(_) => Route::HEADERS,
            Object::Mapping(_) => Mapping::HEADERS,
            Object::Ingress(_) => IngressRule::HEADERS,
            Object::Acl(_) => Acl::HEADERS,
            Object::Format(_) => Format::HEADERS,
        }
    }

    pub(crate) fn cells(&self) -> Vec<String> {
        match self {
            Object::Underlay(row) => row.cells(),
            Object::Vnet(row) => row.cells(),
            Object::Port(row) => row.cells(),
            Object::Route(row) => row.cells(),
            Object::Mapping(row) => row.cells(),
            Object::Ingress(row) => row.cells(),
            Object::Acl(row) => row.cells(),
            Object::Format(row) => row.cells(),
        }
    }

    /// Its fields by name, in their order.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    }
}

/// A value of a field on one line, as people write it.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let given = fields.iter().filter(|(_, value)| !value.is_null());
            let each: Vec<_> = given.map(|(name, v)| format!("{name} {}", plain(v))).collect();
            format!("({})", each.join(" "))
        }
    }
}
