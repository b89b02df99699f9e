//! Names of hosts, and the keys of objects in a store.

use std::fmt;
use std::sync::Arc;

use culvert_model::{
    AclGroupId, FormatId, IngressKey, MappingKey, ObjectKey, PortId, RouteKey, RouteScope, VnetId,
    Vni,
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
pub const META: &str = "all/meta";

/// A part of a store that is read and followed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All of it.
    Everything,
    /// What every host follows: hosts and their leases, vnets, ingress rules, ACL groups.
    Shared,
    /// What only the host itself follows: which ports it has, and their routes.
    Host(HostName),
    /// What is in a vnet: ports of all hosts, routes, mappings.
    Vnet(VnetId),
}

impl fmt::Display for Scope {
    /// What its keys begin with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Everything => Ok(()),
            Scope::Shared => f.write_str("all/"),
            Scope::Host(host) => write!(f, "at/{host}/"),
            Scope::Vnet(vnet) => write!(f, "in/{vnet}/"),
        }
    }
}

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
    Guard(Guarded),
    /// A port, where those look for it that are in its vnet.
    Port {
        /// Its vnet.
        vnet: VnetId,
        /// Its host.
        host: HostName,
        /// The port.
        id: PortId,
    },
    /// The vnet of a port, where its host looks for it.
    PortVnet {
        /// Its host.
        host: HostName,
        /// The port.
        id: PortId,
    },
    /// An object of one host, or, without one, of the cluster, that is no port.
    Object(Slot),
}

/// What a guard stands before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarded {
    /// The VTEP addresses of all hosts.
    Underlays,
    /// Names and VNIs of vnets, and ingress rules.
    Vnets,
    /// An ACL group, and who uses it.
    Acl(AclGroupId),
    /// What belongs to a host.
    Host(HostName),
    /// What is in a vnet.
    Vnet(VnetId),
}

impl Guarded {
    /// Where it is.
    pub fn scope(&self) -> Scope {
        match self {
            Guarded::Underlays | Guarded::Vnets | Guarded::Acl(_) => Scope::Shared,
            Guarded::Host(host) => Scope::Host(host.clone()),
            Guarded::Vnet(vnet) => Scope::Vnet(vnet.clone()),
        }
    }
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
            | ObjectKey::Acl(_)
            | ObjectKey::Format(_) => false,
        };
        Slot { host: own.then(|| host.clone()), key }
    }
}

/// The vnet in whose contents an object is. Where a port is depends on the port.
pub fn vnet_of(key: &ObjectKey) -> Option<&VnetId> {
    match key {
        ObjectKey::Mapping(key) => Some(&key.vnet),
        ObjectKey::Route(RouteKey { scope: RouteScope::Vnet(id), .. }) => Some(id),
        _ => None,
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
            Name::Host(host) => return write!(f, "all/host/{host}"),
            Name::Live(host) => return write!(f, "all/live/{host}"),
            Name::Guard(Guarded::Underlays) => return f.write_str("all/guard/underlays"),
            Name::Guard(Guarded::Vnets) => return f.write_str("all/guard/vnets"),
            Name::Guard(Guarded::Acl(id)) => return write!(f, "all/guard/acl/{id}"),
            Name::Guard(Guarded::Host(host)) => return write!(f, "at/{host}/guard"),
            Name::Guard(Guarded::Vnet(id)) => return write!(f, "in/{id}/guard"),
            Name::Port { vnet, host, id } => return write!(f, "in/{vnet}/port/{host}/{id}"),
            Name::PortVnet { host, id } => return write!(f, "at/{host}/port/{id}"),
            Name::Object(slot) => slot,
        };
        match (&slot.host, &slot.key) {
            (Some(host), ObjectKey::Underlay) => write!(f, "all/underlay/{host}"),
            (Some(host), ObjectKey::Route(RouteKey { scope: RouteScope::Port(id), prefix })) => {
                write!(f, "at/{host}/route/{id}/{prefix}")
            }
            (None, ObjectKey::Route(RouteKey { scope: RouteScope::Vnet(id), prefix })) => {
                write!(f, "in/{id}/route/{prefix}")
            }
            (None, ObjectKey::Vnet(id)) => write!(f, "all/vnet/{id}"),
            (None, ObjectKey::Mapping(MappingKey { vnet, ip })) => {
                write!(f, "in/{vnet}/mapping/{ip}")
            }
            (None, ObjectKey::Ingress(IngressKey { vni, vtep, priority })) => {
                write!(f, "all/ingress/{}/{priority}/{vtep}", vni.get())
            }
            (None, ObjectKey::Acl(id)) => write!(f, "all/acl/{id}"),
            (None, ObjectKey::Format(id)) => write!(f, "all/format/{id}"),
            // No slot is made like that; the key would be read as nothing.
            (_, key) => write!(f, "misplaced/{key}"),
        }
    }
}

impl Name {
    /// What a key of a store stands for; `None` for one that is not ours.
    pub fn read(key: &str) -> Option<Name> {
        let (scope, rest) = key.split_once('/')?;
        match scope {
            "all" => Name::read_shared(rest),
            "at" => {
                let (host, rest) = rest.split_once('/')?;
                Name::read_of_host(HostName::new(host).ok()?, rest)
            }
            "in" => {
                let (vnet, rest) = rest.split_once('/')?;
                Name::read_in_vnet(VnetId::new(vnet).ok()?, rest)
            }
            _ => None,
        }
    }

    fn read_shared(key: &str) -> Option<Name> {
        let Some((kind, rest)) = key.split_once('/') else {
            return (key == "meta").then_some(Name::Meta);
        };
        let object = |key: ObjectKey| Some(Name::Object(Slot { host: None, key }));
        match kind {
            "host" => Some(Name::Host(HostName::new(rest).ok()?)),
            "live" => Some(Name::Live(HostName::new(rest).ok()?)),
            "guard" => Some(Name::Guard(match rest {
                "underlays" => Guarded::Underlays,
                "vnets" => Guarded::Vnets,
                _ => Guarded::Acl(AclGroupId::new(rest.strip_prefix("acl/")?).ok()?),
            })),
            "underlay" => {
                let host = Some(HostName::new(rest).ok()?);
                Some(Name::Object(Slot { host, key: ObjectKey::Underlay }))
            }
            "acl" => object(ObjectKey::Acl(AclGroupId::new(rest).ok()?)),
            "format" => object(ObjectKey::Format(FormatId::new(rest).ok()?)),
            "vnet" => object(ObjectKey::Vnet(VnetId::new(rest).ok()?)),
            "ingress" => {
                let (vni, rest) = rest.split_once('/')?;
                let (priority, vtep) = rest.split_once('/')?;
                let vni = Vni::new(vni.parse().ok()?).ok()?;
                let (vtep, priority) = (vtep.parse().ok()?, priority.parse().ok()?);
                object(ObjectKey::Ingress(IngressKey { vni, vtep, priority }))
            }
            _ => None,
        }
    }

    fn read_of_host(host: HostName, key: &str) -> Option<Name> {
        let Some((kind, rest)) = key.split_once('/') else {
            return (key == "guard").then_some(Name::Guard(Guarded::Host(host)));
        };
        match kind {
            "port" => Some(Name::PortVnet { host, id: PortId::new(rest).ok()? }),
            "route" => {
                let (id, prefix) = rest.split_once('/')?;
                let scope = RouteScope::Port(PortId::new(id).ok()?);
                let key = ObjectKey::Route(RouteKey { scope, prefix: prefix.parse().ok()? });
                Some(Name::Object(Slot { host: Some(host), key }))
            }
            _ => None,
        }
    }

    fn read_in_vnet(vnet: VnetId, key: &str) -> Option<Name> {
        let Some((kind, rest)) = key.split_once('/') else {
            return (key == "guard").then_some(Name::Guard(Guarded::Vnet(vnet)));
        };
        let key = match kind {
            "port" => {
                let (host, id) = rest.split_once('/')?;
                let (host, id) = (HostName::new(host).ok()?, PortId::new(id).ok()?);
                return Some(Name::Port { vnet, host, id });
            }
            "route" => {
                let scope = RouteScope::Vnet(vnet);
                ObjectKey::Route(RouteKey { scope, prefix: rest.parse().ok()? })
            }
            "mapping" => ObjectKey::Mapping(MappingKey { vnet, ip: rest.parse().ok()? }),
            _ => return None,
        };
        Some(Name::Object(Slot { host: None, key }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = [
            "all/meta",
            "all/host/a.example",
            "all/live/a",
            "all/guard/vnets",
            "all/guard/underlays",
            "all/guard/acl/web",
            "at/a/guard",
            "in/blue/guard",
            "all/underlay/a",
            "in/blue/port/a/web",
            "at/a/port/web",
            "at/a/route/web/10.0.0.0/24",
            "in/blue/route/2001:db8::/64",
            "all/vnet/blue",
            "all/acl/web",
            "all/format/acme",
            "in/blue/mapping/10.0.0.1",
            "in/blue/mapping/fd00::1",
            "all/ingress/100/7/any",
            "all/ingress/100/7/192.0.2.0/24",
        ];
        for key in keys {
            assert_eq!(Name::read(key).map(|name| name.to_string()).as_deref(), Some(key));
        }
        for key in [
            "",
            "x",
            "all",
            "all/",
            "all/x",
            "at/a/port",
            "at/A/port/web",
            "in/blue/mapping/x",
            "all/ingress/0/1/any",
            "all/vnet/",
            "in/blue",
        ] {
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
