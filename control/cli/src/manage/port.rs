//! `culvert port`.

use culvert_model::{
    AclGroupId, Attach, DomainName, IfName, MacAddr, Meter, ModePreference, Mtu, Object, ObjectKey,
    Port, PortId, PortState, TokenBucket, VnetId, api,
};

use super::values::{List, Setting, bucket, ips, mac, mtu};
use super::{Fields, Keys, needed};
use crate::error::CliError;

/// What can be said of a port.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PortFields {
    /// Its name.
    id: PortId,
    /// Its vnet.
    #[arg(long)]
    vnet: Option<VnetId>,
    /// A device that exists: the host end of a veth or of a VM's tap, a VF, a NIC.
    #[arg(long, value_name = "DEVICE", conflicts_with = "tap")]
    xdp: Option<IfName>,
    /// A TAP device that is made.
    #[arg(long, value_name = "DEVICE")]
    tap: Option<IfName>,
    /// The tenant's MAC address.
    #[arg(long, value_parser = mac)]
    mac: Option<MacAddr>,
    /// The tenant's addresses, separated by commas, or none.
    #[arg(long = "ip", value_name = "IPS", value_parser = ips)]
    ips: Option<List<std::net::IpAddr>>,
    /// Whether frames with another source address are dropped.
    #[arg(long, value_name = "BOOL")]
    anti_spoof: Option<bool>,
    /// Its MTU in bytes, or none: as the device says.
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    mtu: Option<Setting<Mtu>>,
    /// How AF_XDP attaches: auto, zero-copy, native or generic.
    #[arg(long)]
    mode: Option<ModePreference>,
    /// active or blocked.
    #[arg(long)]
    state: Option<PortState>,
    /// Its ACL groups, separated by commas, or none.
    #[arg(long, value_name = "GROUPS")]
    acl: Option<List<AclGroupId>>,
    /// Limit of what it sends: RATE or RATE/BURST in bits per second and bytes, as 100M/256k; or none.
    #[arg(long, value_name = "RATE", value_parser = bucket)]
    meter_rx: Option<Setting<TokenBucket>>,
    /// Limit of what is sent to it, likewise.
    #[arg(long, value_name = "RATE", value_parser = bucket)]
    meter_tx: Option<Setting<TokenBucket>>,
    /// The name that DHCP tells the tenant, or none.
    #[arg(long, value_name = "NAME")]
    hostname: Option<Setting<DomainName>>,
    /// Whether datagrams of a flow are merged for it.
    #[arg(long, value_name = "BOOL")]
    udp_gro: Option<bool>,
}

impl Fields for PortFields {
    const KIND: api::ObjectKind = api::ObjectKind::Port;

    fn key(&self) -> ObjectKey {
        ObjectKey::Port(self.id.clone())
    }

    fn onto(self, before: Option<Object>) -> Result<Object, CliError> {
        let attach = match (self.xdp, self.tap) {
            (Some(ifname), _) => Some(Attach::Xdp { ifname }),
            (None, tap) => tap.map(|ifname| Attach::Tap { ifname }),
        };
        let mut port = match before {
            Some(Object::Port(port)) => port,
            _ => Port {
                id: self.id,
                vnet: needed(self.vnet.clone(), "--vnet", "the id of a vnet")?,
                attach: needed(attach.clone(), "--xdp or --tap", "the name of a device")?,
                mac: needed(self.mac, "--mac", "a MAC address, as 02:00:00:00:00:01")?,
                ips: Vec::new(),
                anti_spoof: true,
                mtu: None,
                mode: ModePreference::default(),
                state: PortState::default(),
                acl: Vec::new(),
                meter: None,
                hostname: None,
                udp_gro: false,
            },
        };
        port.vnet = self.vnet.unwrap_or(port.vnet);
        port.attach = attach.unwrap_or(port.attach);
        port.mac = self.mac.unwrap_or(port.mac);
        port.ips = self.ips.map_or(port.ips, |list| list.0);
        port.anti_spoof = self.anti_spoof.unwrap_or(port.anti_spoof);
        port.mtu = self.mtu.map_or(port.mtu, Setting::into_option);
        port.mode = self.mode.unwrap_or(port.mode);
        port.state = self.state.unwrap_or(port.state);
        port.acl = self.acl.map_or(port.acl, |list| list.0);
        let mut meter = port.meter.unwrap_or_default();
        meter.rx = self.meter_rx.map_or(meter.rx, Setting::into_option);
        meter.tx = self.meter_tx.map_or(meter.tx, Setting::into_option);
        port.meter = (meter != Meter::default()).then_some(meter);
        port.hostname = self.hostname.map_or(port.hostname, Setting::into_option);
        port.udp_gro = self.udp_gro.unwrap_or(port.udp_gro);
        Ok(Object::Port(port))
    }
}

/// Names of ports.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PortKeys {
    /// Their names.
    #[arg(required = true)]
    ids: Vec<PortId>,
}

impl Keys for PortKeys {
    fn keys(&self) -> Vec<ObjectKey> {
        self.ids.iter().cloned().map(ObjectKey::Port).collect()
    }
}
