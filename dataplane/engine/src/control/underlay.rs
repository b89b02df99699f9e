//! From the kernel's tables and the state to a snapshot of the rules.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_model::{Host, IfName, Place, PortId, Section, api};
use culvert_nexthop::{NextHops, Resolution, Resolver, ResolverConfig};
use culvert_port::device::Device as NetDevice;
use tokio::sync::watch;

use super::{Controller, NEXT_HOP_REFRESH};
use crate::tables::{self, Hop, Inputs, PortFacts, Reach};
use crate::worker::device::Role;

impl Controller {
    /// Starts to follow the kernel's tables, or starts over when the underlay is another one.
    pub(super) async fn follow_underlay(
        &mut self,
        host: &Host,
        fresh: &HashMap<IfName, u32>,
    ) -> Result<(), api::Fault> {
        let underlay = host.underlay();
        let place = Place::section(Section::Underlay, "interfaces");
        let mut underlay_ifindexes = Vec::new();
        for name in &underlay.interfaces {
            let known = fresh.get(name).copied();
            let ifindex = match known.or(self.attached.get(name).map(|a| a.ifindex)) {
                Some(ifindex) => ifindex,
                None => NetDevice::by_name(name.as_str())
                    .map_err(|error| api::Fault::new(&place, error))?
                    .ifindex(),
            };
            underlay_ifindexes.push(ifindex);
        }
        let config = ResolverConfig {
            underlay_ifindexes,
            sources: underlay.addresses.clone(),
            refresh: NEXT_HOP_REFRESH,
        };
        let same = self.resolver.as_ref().is_some_and(|(old, _)| {
            old.underlay_ifindexes == config.underlay_ifindexes && old.sources == config.sources
        });
        if same {
            return Ok(());
        }
        let (resolver, follow) = Resolver::start(config.clone())
            .await
            .map_err(|error| api::Fault::new(&place, error))?;
        self.resolver = Some((config, resolver));
        self.follow = Some(follow);
        Ok(())
    }

    /// Gives new VTEPs a moment to be looked up, so that the first packets find their way.
    pub(super) async fn wait_for_next_hops(&mut self) {
        let Some(follow) = &mut self.follow else { return };
        let wanted: Vec<IpAddr> = self.vteps.iter().map(|(ip, _)| *ip).collect();
        let known = |hops: &Arc<NextHops>| {
            wanted
                .iter()
                .all(|ip| !matches!(hops.by_vtep.get(ip), None | Some(Resolution::Pending)))
        };
        let patience = Duration::from_millis(300);
        let _ = tokio::time::timeout(patience, follow.wait_for(known)).await;
        let now = Arc::clone(&follow.borrow_and_update());
        self.next_hops.send_replace(now);
    }

    /// Builds a snapshot of the tables and makes it the current one.
    pub fn publish(&mut self) {
        let Some(host) = &self.host else { return };
        let ports: HashMap<PortId, PortFacts> = host
            .ports()
            .iter()
            .filter_map(|port| {
                let attached = self.attached.get(port.attach.ifname())?;
                let facts = PortFacts {
                    index: self.ports.get(&port.id)? as u16,
                    worker: attached.workers.first().copied().unwrap_or(0),
                    mtu: port.mtu.map_or(attached.mtu, |mtu| u32::from(mtu.get())),
                };
                Some((port.id.clone(), facts))
            })
            .collect();
        let mut link_workers: Vec<Vec<u16>> = Vec::new();
        let mut link_of: HashMap<u32, (u16, u32)> = HashMap::new();
        for attached in self.attached.values() {
            if let Role::Underlay(index) = attached.wanted.role {
                let at = usize::from(index);
                if link_workers.len() <= at {
                    link_workers.resize(at + 1, Vec::new());
                }
                link_workers[at] = attached.workers.clone();
                link_of.insert(attached.ifindex, (index, attached.mtu));
            }
        }
        let hops = self.next_hops.borrow().clone();
        let configured = host.underlay().mtu.map_or(u32::MAX, |mtu| u32::from(mtu.get()));
        let now = Instant::now();
        let reach = |vtep: IpAddr| {
            let source = host
                .underlay()
                .addresses
                .iter()
                .find(|ip| ip.is_ipv4() == vtep.is_ipv4())
                .copied()
                .unwrap_or(vtep);
            let limit = self.path_mtus.get(vtep, now).unwrap_or(u32::MAX).min(configured);
            let reach = match hops.by_vtep.get(&vtep) {
                None | Some(Resolution::Pending) => Reach::Pending,
                Some(Resolution::Unreachable(_)) => Reach::Unreachable,
                Some(Resolution::Resolved(list)) => {
                    let hops: Vec<Hop> = list
                        .iter()
                        .filter_map(|hop| {
                            let (link, device_mtu) = *link_of.get(&hop.ifindex)?;
                            Some(Hop {
                                link,
                                vlan: hop.vlan,
                                src_mac: hop.src_mac,
                                dst_mac: hop.dst_mac,
                                mtu: hop.mtu.min(device_mtu).min(limit),
                            })
                        })
                        .collect();
                    if hops.is_empty() { Reach::Unreachable } else { Reach::Hops(hops) }
                }
            };
            (source, reach)
        };
        let previous = self.shared.tables.load_full();
        let tables = tables::build(&Inputs {
            host,
            previous: &previous,
            ports: &ports,
            vnets: &self.vnets,
            vteps: &self.vteps,
            link_workers: &link_workers,
            reach: &reach,
        });
        self.shared.tables.store(Arc::new(tables));
    }

    /// The channel that says when next hops changed.
    pub fn follow(&self) -> Option<watch::Receiver<Arc<NextHops>>> {
        self.follow.clone()
    }

    /// Takes new next hops over, if there are any.
    pub fn take_next_hops(&mut self) {
        let Some(follow) = &mut self.follow else { return };
        if follow.has_changed().unwrap_or(false) {
            let now = Arc::clone(&follow.borrow_and_update());
            self.next_hops.send_replace(now);
            self.publish();
        }
    }

    pub(super) async fn restart_resolver(&mut self) {
        let Some(host) = self.host.clone() else { return };
        if let Err(fault) = self.follow_underlay(&host, &HashMap::new()).await {
            tracing::error!(fault = %fault.text(), "the underlay cannot be followed");
        }
        if let Some((_, resolver)) = &self.resolver {
            resolver.set_targets(self.vteps.iter().map(|(ip, _)| *ip).collect::<Vec<_>>());
        }
    }
}
