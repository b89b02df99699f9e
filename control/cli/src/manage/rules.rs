//! `culvert route`, `culvert mapping`, `culvert ingress` and `culvert acl`.

use std::net::IpAddr;

use culvert_model::{
    AclGroup, AclGroupId, AclRule, EgressRoute, IngressAction, IngressKey, IngressRule, IpNet,
    MacAddr, Mapping, MappingKey, Mtu, Object, ObjectKey, PortId, RouteAction, RouteKey,
    RouteScope, VnetId, Vni, VtepMatch, api,
};

use super::values::{Setting, acl_rule, ip, mac, mtu, prefix, route_action, vni};
use super::{Fields, Keys, needed};
use crate::error::CliError;

/// What names an egress route.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RouteKeys {
    /// Of frames from this port.
    #[arg(long, value_name = "PORT", required_unless_present = "vnet", conflicts_with = "vnet")]
    port: Option<PortId>,
    /// Of frames from every port in this vnet.
    #[arg(long)]
    vnet: Option<VnetId>,
    /// Destinations, as 10.0.0.0/24.
    #[arg(value_parser = prefix)]
    prefix: IpNet,
}

impl RouteKeys {
    fn route_key(&self) -> Option<RouteKey> {
        let port = self.port.clone().map(RouteScope::Port);
        let scope = port.or_else(|| self.vnet.clone().map(RouteScope::Vnet))?;
        Some(RouteKey { scope, prefix: self.prefix })
    }
}

impl Keys for RouteKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        self.route_key().map(ObjectKey::Route).into_iter().collect()
    }
}

/// What can be said of an egress route.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RouteFields {
    #[command(flatten)]
    of: RouteKeys,
    /// Where they go: vnet:ID, local, trap or drop.
    #[arg(long, value_name = "ACTION", value_parser = route_action)]
    to: RouteAction,
}

impl Fields for RouteFields {
    const KIND: api::ObjectKind = api::ObjectKind::Route;

    fn key(&self) -> ObjectKey {
        self.of.keys().pop().unwrap_or(ObjectKey::Underlay)
    }

    fn onto(self, _: Option<Object>) -> Result<Object, CliError> {
        let RouteKey { scope, prefix } =
            needed(self.of.route_key(), "--port or --vnet", "the id of one")?;
        Ok(Object::Route(EgressRoute { scope, prefix, action: self.to }))
    }
}

/// What names a mapping.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MappingKeys {
    /// The vnet.
    vnet: VnetId,
    /// Address in the vnet.
    #[arg(value_parser = ip)]
    ip: IpAddr,
}

impl Keys for MappingKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        vec![ObjectKey::Mapping(MappingKey { vnet: self.vnet.clone(), ip: self.ip })]
    }
}

/// What can be said of a mapping.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct MappingFields {
    #[command(flatten)]
    of: MappingKeys,
    /// Its MAC address.
    #[arg(long, value_parser = mac)]
    mac: Option<MacAddr>,
    /// The underlay address of the host behind which it lives.
    #[arg(long, value_name = "IP", value_parser = ip)]
    vtep: Option<IpAddr>,
    /// The largest IP packet that the far end takes, in bytes, or none: not known.
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    mtu: Option<Setting<Mtu>>,
}

impl Fields for MappingFields {
    const KIND: api::ObjectKind = api::ObjectKind::Mapping;

    fn key(&self) -> ObjectKey {
        ObjectKey::Mapping(MappingKey { vnet: self.of.vnet.clone(), ip: self.of.ip })
    }

    fn onto(self, before: Option<Object>) -> Result<Object, CliError> {
        let mut mapping = match before {
            Some(Object::Mapping(mapping)) => mapping,
            _ => Mapping {
                vnet: self.of.vnet,
                ip: self.of.ip,
                mac: needed(self.mac, "--mac", "a MAC address, as 02:00:00:00:00:01")?,
                vtep: needed(self.vtep, "--vtep", "an IP address")?,
                mtu: None,
            },
        };
        mapping.mac = self.mac.unwrap_or(mapping.mac);
        mapping.vtep = self.vtep.unwrap_or(mapping.vtep);
        mapping.mtu = self.mtu.map_or(mapping.mtu, Setting::into_option);
        Ok(Object::Mapping(mapping))
    }
}

/// What names an ingress rule.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IngressKeys {
    /// The VNI, 1 to 16777215.
    #[arg(value_parser = vni)]
    vni: Vni,
    /// Senders: a prefix of their underlay addresses, or any.
    #[arg(long, value_name = "PREFIX", default_value = "any")]
    vtep: VtepMatch,
    /// The greatest decides first, 0 to 65535.
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u16,
}

impl IngressKeys {
    fn ingress_key(&self) -> IngressKey {
        IngressKey { vni: self.vni, vtep: self.vtep, priority: self.priority }
    }
}

impl Keys for IngressKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        vec![ObjectKey::Ingress(self.ingress_key())]
    }
}

/// What can be said of an ingress rule.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IngressFields {
    #[command(flatten)]
    of: IngressKeys,
    /// What happens: decap-validate, decap, trap or drop.
    #[arg(long)]
    action: IngressAction,
}

impl Fields for IngressFields {
    const KIND: api::ObjectKind = api::ObjectKind::Ingress;

    fn key(&self) -> ObjectKey {
        ObjectKey::Ingress(self.of.ingress_key())
    }

    fn onto(self, _: Option<Object>) -> Result<Object, CliError> {
        let IngressKey { vni, vtep, priority } = self.of.ingress_key();
        Ok(Object::Ingress(IngressRule { vni, vtep, priority, action: self.action }))
    }
}

/// What can be said of an ACL group.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AclFields {
    /// Its name.
    id: AclGroupId,
    /// Whether what a rule allows may be answered.
    #[arg(long, value_name = "BOOL")]
    stateful: Option<bool>,
    /// A rule, as "ingress allow tcp remote=10.0.0.0/8 local-ports=80,443". The first that matches
    /// decides; those given replace all that there were.
    #[arg(long = "rule", value_name = "RULE", value_parser = acl_rule)]
    rules: Vec<AclRule>,
    /// Takes all rules away: then nothing matches, and ports of the group pass nothing by it.
    #[arg(long, conflicts_with = "rules")]
    no_rules: bool,
}

impl Fields for AclFields {
    const KIND: api::ObjectKind = api::ObjectKind::Acl;

    fn key(&self) -> ObjectKey {
        ObjectKey::Acl(self.id.clone())
    }

    fn onto(self, before: Option<Object>) -> Result<Object, CliError> {
        let mut group = match before {
            Some(Object::Acl(group)) => group,
            _ => AclGroup { id: self.id, stateful: false, rules: Vec::new() },
        };
        group.stateful = self.stateful.unwrap_or(group.stateful);
        if self.no_rules || !self.rules.is_empty() {
            group.rules = self.rules;
        }
        Ok(Object::Acl(group))
    }
}

/// Names of ACL groups.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AclKeys {
    /// Their names.
    #[arg(required = true)]
    ids: Vec<AclGroupId>,
}

impl Keys for AclKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        self.ids.iter().cloned().map(ObjectKey::Acl).collect()
    }
}
