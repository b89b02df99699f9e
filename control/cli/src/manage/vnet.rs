//! `culvert vnet`.

use std::net::IpAddr;

use culvert_model::{
    Dhcp, DhcpRoute, DomainName, FormatId, Gateway, Miss, Object, ObjectKey, Vnet, VnetId, Vni, api,
};

use super::values::{List, Setting, dhcp_routes, gateways, ips, vni};
use super::{Fields, Keys, needed};
use crate::error::CliError;

/// What can be said of a virtual network.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VnetFields {
    /// Its name.
    id: VnetId,
    /// Its identifier on the wire, 1 to 16777215.
    #[arg(long, value_parser = vni)]
    vni: Option<Vni>,
    /// Its tunnel format: vxlan, geneve, stt, shard, or the id of a format.
    #[arg(long)]
    format: Option<FormatId>,
    /// Whether the far ends are Culverts: superframes of TCP are then cut to what the way bears, and their
    /// headers state the tenant's MSS.
    #[arg(long, value_name = "BOOL")]
    raise_mss: Option<bool>,
    /// Whether broadcast and multicast are copied to every port and VTEP.
    #[arg(long, value_name = "BOOL")]
    flood: Option<bool>,
    /// What happens to frames for an unknown address: drop or trap.
    #[arg(long)]
    miss: Option<Miss>,
    /// Addresses that the dataplane answers for, as 10.0.0.254/24@02:00:00:00:00:fe, separated by
    /// commas, or none.
    #[arg(long, value_name = "GATEWAYS", value_parser = gateways)]
    gateway: Option<List<Gateway>>,
    /// Whether tenants that ask for their configuration are answered; any of the flags below says so
    /// too.
    #[arg(long, value_name = "BOOL")]
    dhcp: Option<bool>,
    /// DNS servers that tenants are told, separated by commas, or none.
    #[arg(long, value_name = "IPS", value_parser = ips)]
    dns: Option<List<IpAddr>>,
    /// NTP servers, likewise.
    #[arg(long, value_name = "IPS", value_parser = ips)]
    ntp: Option<List<IpAddr>>,
    /// The tenants' domain, or none.
    #[arg(long, value_name = "NAME")]
    domain: Option<Setting<DomainName>>,
    /// Seconds for which an address is lent, 60 to 2592000.
    #[arg(long, value_name = "SECONDS")]
    lease: Option<u32>,
    /// Routes that tenants are told, as 192.168.0.0/16@10.0.0.253, separated by commas, or none.
    #[arg(long, value_name = "ROUTES", value_parser = dhcp_routes)]
    dhcp_route: Option<List<DhcpRoute>>,
}

impl VnetFields {
    fn dhcp_onto(&self, before: Option<Dhcp>) -> Result<Option<Dhcp>, CliError> {
        let details = self.dns.is_some()
            || self.ntp.is_some()
            || self.domain.is_some()
            || self.lease.is_some()
            || self.dhcp_route.is_some();
        match (self.dhcp, details) {
            (Some(false), true) => {
                let text = "--dhcp false: given with what tenants are told; legal is one of them";
                return Err(CliError::Usage(text.to_owned()));
            }
            (Some(false), false) => return Ok(None),
            (None, false) => return Ok(before),
            (Some(true) | None, _) => {}
        }
        let mut dhcp = before.unwrap_or_default();
        dhcp.dns = self.dns.clone().map_or(dhcp.dns, |list| list.0);
        dhcp.ntp = self.ntp.clone().map_or(dhcp.ntp, |list| list.0);
        dhcp.domain = self.domain.clone().map_or(dhcp.domain, Setting::into_option);
        dhcp.lease_s = self.lease.unwrap_or(dhcp.lease_s);
        dhcp.routes = self.dhcp_route.clone().map_or(dhcp.routes, |list| list.0);
        Ok(Some(dhcp))
    }
}

impl Fields for VnetFields {
    const KIND: api::ObjectKind = api::ObjectKind::Vnet;

    fn key(&self) -> ObjectKey {
        ObjectKey::Vnet(self.id.clone())
    }

    fn onto(self, before: Option<Object>) -> Result<Object, CliError> {
        let mut vnet = match before {
            Some(Object::Vnet(vnet)) => vnet,
            _ => Vnet {
                id: self.id.clone(),
                vni: needed(self.vni, "--vni", "a number, 1 to 16777215")?,
                format: FormatId::default(),
                raise_mss: false,
                flood: false,
                miss: Miss::default(),
                gateways: Vec::new(),
                dhcp: None,
            },
        };
        vnet.dhcp = self.dhcp_onto(vnet.dhcp)?;
        vnet.vni = self.vni.unwrap_or(vnet.vni);
        vnet.format = self.format.unwrap_or(vnet.format);
        vnet.raise_mss = self.raise_mss.unwrap_or(vnet.raise_mss);
        vnet.flood = self.flood.unwrap_or(vnet.flood);
        vnet.miss = self.miss.unwrap_or(vnet.miss);
        vnet.gateways = self.gateway.map_or(vnet.gateways, |list| list.0);
        Ok(Object::Vnet(vnet))
    }
}

/// Names of virtual networks.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VnetKeys {
    /// Their names.
    #[arg(required = true)]
    ids: Vec<VnetId>,
}

impl Keys for VnetKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        self.ids.iter().cloned().map(ObjectKey::Vnet).collect()
    }
}
