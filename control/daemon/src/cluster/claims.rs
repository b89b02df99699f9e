//! Who in a cluster has an address of a vnet: ports of all hosts, kept up with each change.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use culvert_model::{Keyed, MacAddr, Objects, Port, PortId, Vnet, VnetId};

use super::Cluster;
use crate::names::HostName;

/// An address of a vnet, and a port that has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim<A> {
    /// The vnet.
    pub vnet: VnetId,
    /// The address.
    pub address: A,
    /// The host of the port.
    pub host: HostName,
    /// The port.
    pub port: PortId,
}

impl<A: Ord + Clone> Keyed for Claim<A> {
    type Key = Claim<A>;

    fn key(&self) -> Claim<A> {
        self.clone()
    }

    fn compare(&self, key: &Claim<A>) -> Ordering {
        self.cmp(key)
    }
}

/// Which ports have which addresses. Nothing here forbids two owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    ips: Objects<Claim<IpAddr>>,
    macs: Objects<Claim<MacAddr>>,
}

impl Claims {
    /// A port of a host was another, or is.
    pub(super) fn replace(&mut self, host: &HostName, old: Option<&Port>, new: Option<&Port>) {
        fn claim<A>(host: &HostName, port: &Port, address: A) -> Claim<A> {
            Claim { vnet: port.vnet.clone(), address, host: host.clone(), port: port.id.clone() }
        }
        if let Some(old) = old {
            self.macs.remove(&claim(host, old, old.mac));
            for &ip in &old.ips {
                self.ips.remove(&claim(host, old, ip));
            }
        }
        if let Some(new) = new {
            self.macs.insert(claim(host, new, new.mac));
            for &ip in &new.ips {
                self.ips.insert(claim(host, new, ip));
            }
        }
    }

    /// The ports that have an address, by host and name.
    pub fn of_ip<'a>(
        &'a self,
        vnet: &'a VnetId,
        ip: IpAddr,
    ) -> impl Iterator<Item = &'a Claim<IpAddr>> {
        self.ips.range(move |claim| claim.vnet.cmp(vnet).then_with(|| claim.address.cmp(&ip)))
    }

    /// The ports that have a MAC address, by host and name.
    pub fn of_mac<'a>(
        &'a self,
        vnet: &'a VnetId,
        mac: MacAddr,
    ) -> impl Iterator<Item = &'a Claim<MacAddr>> {
        self.macs.range(move |claim| claim.vnet.cmp(vnet).then_with(|| claim.address.cmp(&mac)))
    }

    /// The addresses of a vnet that ports have, in order.
    pub fn in_vnet<'a>(&'a self, vnet: &'a VnetId) -> impl Iterator<Item = &'a Claim<IpAddr>> {
        self.ips.range(move |claim| claim.vnet.cmp(vnet))
    }

    /// All addresses that ports have, vnet by vnet, in order.
    pub fn all(&self) -> impl Iterator<Item = &Claim<IpAddr>> {
        self.ips.iter()
    }
}

/// Who has an address of a vnet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A port.
    Port {
        /// Its host.
        host: &'a HostName,
        /// Its name.
        id: &'a PortId,
    },
    /// A gateway of this vnet.
    Gateway(&'a VnetId),
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Port { host, id } => write!(f, "port {id} of host {host}"),
            Owner::Gateway(vnet) => write!(f, "a gateway of vnet {vnet}"),
        }
    }
}

impl<'a, A> From<&'a Claim<A>> for Owner<'a> {
    fn from(claim: &'a Claim<A>) -> Owner<'a> {
        Owner::Port { host: &claim.host, id: &claim.port }
    }
}

impl Cluster {
    /// Who has an IP address of a vnet; gateways first.
    pub fn owners_of_ip<'a>(
        &'a self,
        vnet: &'a VnetId,
        ip: IpAddr,
    ) -> impl Iterator<Item = Owner<'a>> {
        let gateway = self.gateway(vnet, |vnet| vnet.gateways.iter().any(|g| g.ip.addr() == ip));
        gateway.into_iter().chain(self.claims.of_ip(vnet, ip).map(Owner::from))
    }

    /// Who has a MAC address of a vnet; gateways first.
    pub fn owners_of_mac<'a>(
        &'a self,
        vnet: &'a VnetId,
        mac: MacAddr,
    ) -> impl Iterator<Item = Owner<'a>> {
        let gateway = self.gateway(vnet, |vnet| vnet.gateways.iter().any(|g| g.mac == mac));
        gateway.into_iter().chain(self.claims.of_mac(vnet, mac).map(Owner::from))
    }

    fn gateway(&self, vnet: &VnetId, has: impl Fn(&Vnet) -> bool) -> Option<Owner<'_>> {
        let vnet = self.vnets.get(vnet)?;
        has(vnet).then_some(Owner::Gateway(&vnet.id))
    }
}
