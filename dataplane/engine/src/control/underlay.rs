//! From the kernel's tables and the state to a snapshot of the rules.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_model::edit::Changes;
use culvert_model::{Host, IfName, Place, Port, Section, api};
use culvert_nexthop::{NextHops, Resolution, Resolver, ResolverConfig};
use tokio::sync::watch;

use super::devices::Attached;
use super::{Controller, NEXT_HOP_REFRESH};
use crate::tables::{self, Hop, Inputs, PortFacts, Reach, Scope};
use crate::worker::device::Role;

/// A resolver, and what it says.
pub(super) struct Following {
    config: ResolverConfig,
    resolver: Resolver,
    follow: watch::Receiver<Arc<NextHops>>,
}

impl Controller {
    /// What is to be followed: the underlay devices of `host` that exist. A device that is just
    /// being opened is in `fresh`. None where there is no such device.
    fn resolver_config(&self, host: &Host, fresh: &HashMap<IfName, u32>) -> Option<ResolverConfig> {
        let known = |name: &IfName| {
            let open = || Some(self.attached.get(name)?.open()?.ifindex);
            fresh.get(name).copied().or_else(open)
        };
        let underlay = host.underlay();
        let underlay_ifindexes: Vec<u32> = underlay.interfaces.iter().filter_map(known).collect();
        (!underlay_ifindexes.is_empty()).then(|| ResolverConfig {
            underlay_ifindexes,
            sources: underlay.addresses.clone(),
            refresh: NEXT_HOP_REFRESH,
        })
    }

    /// Starts to follow the kernel's tables beside what is followed now, where that is not what
    /// `host` needs. `Ok(None)`: what is followed now is right.
    pub(super) async fn follow_anew(
        &self,
        host: &Host,
        fresh: &HashMap<IfName, u32>,
    ) -> Result<Option<Option<Following>>, api::Fault> {
        let place = Place::section(Section::Underlay, "interfaces");
        let config = self.resolver_config(host, fresh);
        let same = match (&config, &self.resolver) {
            (None, None) => true,
            (Some(new), Some((old, _))) => {
                old.underlay_ifindexes == new.underlay_ifindexes && old.sources == new.sources
            }
            _ => false,
        };
        if same {
            return Ok(None);
        }
        let Some(config) = config else { return Ok(Some(None)) };
        let (resolver, follow) = Resolver::start(config.clone())
            .await
            .map_err(|error| api::Fault::new(&place, error))?;
        Ok(Some(Some(Following { config, resolver, follow })))
    }

    /// Follows by the new resolver from now on. The old one gives its neighbours back first, so
    /// that it does not take them from the new one.
    pub(super) async fn follow_by(&mut self, following: Option<Following>) {
        self.follow = None;
        if let Some((_, old)) = self.resolver.take() {
            old.stop().await;
        }
        match following {
            Some(Following { config, resolver, follow }) => {
                self.resolver = Some((config, resolver));
                self.follow = Some(follow);
            }
            None => {
                self.next_hops.send_replace(Arc::default());
            }
        }
        // The follower has to follow another resolver now.
        self.shared.news.notify_one();
    }

    /// Makes the remote VTEPs of the state the ones that are looked up.
    pub(super) fn set_targets(&self) {
        if let Some((_, resolver)) = &self.resolver {
            resolver.set_targets(self.known.vteps.iter().map(|(ip, _)| *ip).collect::<Vec<_>>());
        }
    }

    /// Gives these VTEPs a moment to be looked up, so that the first packets find their way. True when
    /// ways are other than before.
    pub(super) async fn wait_for_next_hops(
        &mut self,
        wanted: &[IpAddr],
        patience: Duration,
    ) -> bool {
        let Some(follow) = &mut self.follow else { return false };
        let known = |hops: &Arc<NextHops>| {
            wanted
                .iter()
                .all(|ip| !matches!(hops.by_vtep.get(ip), None | Some(Resolution::Pending)))
        };
        let _ = tokio::time::timeout(patience, follow.wait_for(known)).await;
        let now = Arc::clone(&follow.borrow_and_update());
        let changed = !Arc::ptr_eq(&now, &self.next_hops.borrow());
        self.next_hops.send_replace(now);
        changed
    }

    /// Builds a snapshot of the tables after what is not in the state changed, and makes it the current
    /// one.
    pub(super) fn publish(&mut self, scope: Scope) {
        self.publish_changes(&Changes::none(), scope);
    }

    /// Builds a snapshot of the tables and makes it the current one.
    pub(super) fn publish_changes(&self, changes: &Changes<'_>, scope: Scope) {
        let Some(host) = &self.host else { return };
        let ports = |port: &Port| {
            let open = self.attached.get(port.attach.ifname()).and_then(Attached::open);
            let device_mtu = open.map_or(0, |open| open.facts.mtu);
            Some(PortFacts {
                index: self.known.ports.get(&port.id)? as u16,
                worker: open.and_then(|o| o.workers.first().copied()).unwrap_or(0),
                mtu: port.mtu.map_or(device_mtu, |mtu| u32::from(mtu.get())),
            })
        };
        let mut link_workers: Vec<Vec<u16>> = Vec::new();
        let mut link_of: HashMap<u32, (u16, u32)> = HashMap::new();
        for attached in self.attached.values() {
            if let Role::Underlay(index) = attached.wanted.role {
                let at = usize::from(index);
                if link_workers.len() <= at {
                    link_workers.resize(at + 1, Vec::new());
                }
                if let Some(open) = attached.open() {
                    link_workers[at] = open.workers.clone();
                    link_of.insert(open.ifindex, (index, open.facts.mtu));
                }
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
                // Nobody asks for the way where no underlay device is left.
                None if self.resolver.is_none() => Reach::Unreachable,
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
            changes,
            scope,
            previous: &previous,
            ports: &ports,
            vnets: &self.known.vnets,
            vteps: &self.known.vteps,
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
            self.publish(Scope { vteps: true, ..Scope::default() });
        }
    }

    /// Follows the underlay devices as they are now. What fails is tried again.
    pub(super) async fn restart_resolver(&mut self) {
        let Some(host) = self.host.clone() else { return };
        match self.follow_anew(&host, &HashMap::new()).await {
            Ok(None) => self.resolver_due = false,
            Ok(Some(following)) => {
                self.resolver_due = false;
                self.follow_by(following).await;
                self.set_targets();
            }
            Err(fault) => {
                if !self.resolver_due {
                    tracing::error!(fault = %fault.text(), "the underlay cannot be followed");
                }
                self.resolver_due = true;
            }
        }
    }
}

impl Following {
    /// Ends it unused.
    pub(super) async fn stop(self) {
        self.resolver.stop().await;
    }
}
