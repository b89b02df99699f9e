//! Names of hosts, and the keys of objects in a store.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::{
    AclGroupId, IngressKey, MappingKey, ObjectKey, PortId, RouteKey, RouteScope, VnetId, Vni,
};

/// Longest name of a host, in bytes: that of a DNS name.
pub const HOST_NAME_LEN_MAX: usize = 253;

/// Name of a host in its cluster: 1 to 253 of `a-z`, `0-9`, `-` and `.`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

/// Give the host a name of the legal form, by `host` in the settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: not the name of a host; legal is 1 to 253 of a-z, 0-9, - and .")]
pub struct BadHostName(String);

impl HostName {
    /// Checks `name`.
    ///
    /// # Errors
    /// Where it is not of the legal form.
    pub fn new(name: &str) -> Result<HostName, BadHostName> {
        let legal = (1..=HOST_NAME_LEN_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        if legal { Ok(HostName(name.into())) } else { Err(BadHostName(name.to_owned())) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The header of the store.
pub const META: &str = "meta";

/// What a key of a store stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// The header.
    Meta,
    /// A host that joined.
    Host(HostName),
    /// A host that is alive.
    Live(HostName),
    /// What transactions that could contradict each other all write: see [`crate::change`].
    Guard(String),
    /// An object of one host, or, without one, of the cluster.
    Object(Slot),
}

/// An object and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// The host that it belongs to; `None`: the cluster.
    pub host: Option<HostName>,
    /// The object.
    pub key: ObjectKey,
}

impl Slot {
    /// Where an object goes that `host` writes.
    pub fn of(key: ObjectKey, host: &HostName) -> Slot {
        let own = match &key {
            ObjectKey::Underlay | ObjectKey::Port(_) => true,
            ObjectKey::Route(route) => matches!(route.scope, RouteScope::Port(_)),
            ObjectKey::Vnet(_)
            | ObjectKey::Mapping(_)
            | ObjectKey::Ingress(_)
            | ObjectKey::Acl(_) => false,
        };
        Slot { host: own.then(|| host.clone()), key }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => self.key.fmt(f),
            Some(host) => write!(f, "{} of host {host}", self.key),
        }
    }
}

impl fmt::Display for Name {
    /// The key of the store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = match self {
            Name::Meta => return f.write_str(META),
            Name::Host(host) => return write!(f, "host/{host}"),
            Name::Live(host) => return write!(f, "live/{host}"),
            Name::Guard(guard) => return write!(f, "guard/{guard}"),
            Name::Object(slot) => slot,
        };
        match (&slot.host, &slot.key) {
            (Some(host), ObjectKey::Underlay) => write!(f, "underlay/{host}"),
            (Some(host), ObjectKey::Port(id)) => write!(f, "port/{host}/{id}"),
            (Some(host), ObjectKey::Route(RouteKey { scope: RouteScope::Port(id), prefix })) => {
                write!(f, "port-route/{host}/{id}/{prefix}")
            }
            (None, ObjectKey::Route(RouteKey { scope: RouteScope::Vnet(id), prefix })) => {
                write!(f, "vnet-route/{id}/{prefix}")
            }
            (None, ObjectKey::Vnet(id)) => write!(f, "vnet/{id}"),
            (None, ObjectKey::Mapping(MappingKey { vnet, ip })) => write!(f, "mapping/{vnet}/{ip}"),
            (None, ObjectKey::Ingress(IngressKey { vni, vtep, priority })) => {
                write!(f, "ingress/{}/{priority}/{vtep}", vni.get())
            }
            (None, ObjectKey::Acl(id)) => write!(f, "acl/{id}"),
            // No slot is made like that; the key would be read as nothing.
            (_, key) => write!(f, "misplaced/{key}"),
        }
    }
}

impl Name {
    /// What a key of a store stands for; `None` for one that is not ours.
    pub fn read(key: &str) -> Option<Name> {
        if key == META {
            return Some(Name::Meta);
        }
        let (kind, rest) = key.split_once('/')?;
        let object = |host: Option<&str>, key: ObjectKey| {
            let host = match host {
                None => None,
                Some(host) => Some(HostName::new(host).ok()?),
            };
            Some(Name::Object(Slot { host, key }))
        };
        match kind {
            "host" => Some(Name::Host(HostName::new(rest).ok()?)),
            "live" => Some(Name::Live(HostName::new(rest).ok()?)),
            "guard" => Some(Name::Guard(rest.to_owned())),
            "underlay" => object(Some(rest), ObjectKey::Underlay),
            "port" => {
                let (host, id) = rest.split_once('/')?;
                object(Some(host), ObjectKey::Port(PortId::new(id).ok()?))
            }
            "port-route" => {
                let (host, rest) = rest.split_once('/')?;
                let (id, prefix) = rest.split_once('/')?;
                let scope = RouteScope::Port(PortId::new(id).ok()?);
                let prefix = prefix.parse().ok()?;
                object(Some(host), ObjectKey::Route(RouteKey { scope, prefix }))
            }
            "vnet-route" => {
                let (id, prefix) = rest.split_once('/')?;
                let scope = RouteScope::Vnet(VnetId::new(id).ok()?);
                let prefix = prefix.parse().ok()?;
                object(None, ObjectKey::Route(RouteKey { scope, prefix }))
            }
            "acl" => object(None, ObjectKey::Acl(AclGroupId::new(rest).ok()?)),
            "vnet" => object(None, ObjectKey::Vnet(VnetId::new(rest).ok()?)),
            "mapping" => {
                let (vnet, ip) = rest.split_once('/')?;
                let (vnet, ip) = (VnetId::new(vnet).ok()?, ip.parse::<IpAddr>().ok()?);
                object(None, ObjectKey::Mapping(MappingKey { vnet, ip }))
            }
            "ingress" => {
                let (vni, rest) = rest.split_once('/')?;
                let (priority, vtep) = rest.split_once('/')?;
                let vni = Vni::new(vni.parse().ok()?).ok()?;
                let (vtep, priority) = (vtep.parse().ok()?, priority.parse().ok()?);
                object(None, ObjectKey::Ingress(IngressKey { vni, vtep, priority }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = [
            "meta",
            "host/a.example",
            "live/a",
            "guard/vnet/blue",
            "underlay/a",
            "port/a/web",
            "port-route/a/web/10.0.0.0/24",
            "vnet-route/blue/2001:db8::/64",
            "vnet/blue",
            "acl/web",
            "mapping/blue/10.0.0.1",
            "mapping/blue/fd00::1",
            "ingress/100/7/any",
            "ingress/100/7/192.0.2.0/24",
        ];
        for key in keys {
            assert_eq!(Name::read(key).map(|name| name.to_string()).as_deref(), Some(key));
        }
        for key in ["", "x", "port/a", "port/A/web", "mapping/blue/x", "ingress/0/1/any", "vnet/"] {
            assert_eq!(Name::read(key), None, "{key}");
        }
    }

    #[test]
    fn names_of_hosts_are_lower_case() {
        assert!(HostName::new("a-1.example.net").is_ok());
        for illegal in ["", "A", "a/b", "a b", &"x".repeat(254)] {
            assert!(HostName::new(illegal).is_err(), "{illegal}");
        }
    }
}
