//! The control thread: desired state in, tables and devices out.
//!
//! A state is applied as a whole or not at all: new devices are opened first, then the tables are
//! swapped, then devices that nobody wants are closed. Between two states every packet sees one of
//! them.

pub mod attach;
pub mod pmtu;
pub mod status;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ebpf::Programs;
use culvert_model::{Attach, Host, IfName, Place, PortId, Section, UnderlayTx, VnetId, api};
use culvert_nexthop::{NextHops, Resolution, Resolver, ResolverConfig};
use culvert_port::device::Device as NetDevice;
use culvert_port::{Arena, FrameCache};
use culvert_wire::format::VXLAN;
use tokio::sync::{broadcast, oneshot, watch};

use self::attach::{Mode, OpenError, Opened, Refusal, Wanted};
use self::pmtu::PathMtus;
use crate::limits::{
    MAX_LINKS, MAX_PORTS, SLOTS_PER_LINK, SLOTS_PER_PORT, link_slot_base, port_slot_base,
};
use crate::shared::{Command, Event, Shared, Trap};
use crate::tables::{self, Hop, Indices, Inputs, PortFacts, Reach};
use crate::worker::device::Role;

/// How often the kernel's tables are read anew, beside its notifications.
const NEXT_HOP_REFRESH: Duration = Duration::from_secs(5);

/// A device that is open, and what is known of it.
#[derive(Debug)]
struct Attached {
    wanted: Wanted,
    ifindex: u32,
    mode: Mode,
    refusals: Vec<Refusal>,
    mtu: u32,
    /// The worker of each queue.
    workers: Vec<u16>,
    segments_udp: bool,
    /// Why it carries nothing at present.
    fault: Option<String>,
}

/// Why a state is not applied.
#[derive(Debug)]
pub enum ApplyError {
    /// The caller's idea of the current generation is old.
    Generation(u64),
    /// This host cannot carry the state; nothing was changed.
    Refused(Vec<api::Fault>),
}

/// The state of the control thread.
pub struct Controller {
    shared: Arc<Shared>,
    arena: &'static Arena,
    programs: Programs,
    /// Random at each start.
    instance_id: String,
    cpus: Vec<Option<u32>>,
    generation: u64,
    host: Option<Host>,
    attached: BTreeMap<IfName, Attached>,
    ports: Indices<PortId>,
    links: Indices<IfName>,
    vnets: Indices<VnetId>,
    vteps: Indices<IpAddr>,
    resolver: Option<(ResolverConfig, Resolver)>,
    next_hops: watch::Sender<Arc<NextHops>>,
    follow: Option<watch::Receiver<Arc<NextHops>>>,
    path_mtus: PathMtus,
    traps: broadcast::Sender<(String, Trap)>,
}

impl Controller {
    /// A controller without state.
    pub fn new(
        shared: Arc<Shared>,
        arena: &'static Arena,
        programs: Programs,
        instance_id: String,
        cpus: Vec<Option<u32>>,
    ) -> Self {
        Controller {
            shared,
            arena,
            programs,
            instance_id,
            cpus,
            generation: 0,
            host: None,
            attached: BTreeMap::new(),
            ports: Indices::new(MAX_PORTS as u32),
            links: Indices::new(MAX_LINKS as u32),
            vnets: Indices::new(1 << 16),
            vteps: Indices::new(1 << 20),
            resolver: None,
            next_hops: watch::Sender::new(Arc::default()),
            follow: None,
            path_mtus: PathMtus::default(),
            traps: broadcast::Sender::new(crate::limits::TRAP_QUEUE),
        }
    }

    /// Traps from now on: the port's name and the packet.
    pub fn watch_traps(&self) -> broadcast::Receiver<(String, Trap)> {
        self.traps.subscribe()
    }

    /// Makes `host` the state.
    ///
    /// # Errors
    /// [`ApplyError`]; the state before stays.
    pub async fn replace(
        &mut self,
        host: Host,
        if_generation: Option<u64>,
    ) -> Result<(u64, Vec<String>), ApplyError> {
        if if_generation.is_some_and(|wanted| wanted != self.generation) {
            return Err(ApplyError::Generation(self.generation));
        }
        let wanted = self.wanted(&host)?;
        let kept = |name: &IfName, attached: &BTreeMap<IfName, Attached>| {
            let old = attached.get(name);
            old.is_some_and(|old| {
                old.fault.is_none() && wanted.get(name).is_some_and(|(w, _)| *w == old.wanted)
            })
        };
        // A device that changes its role has to be closed before it is opened; all others are
        // opened before anything else changes.
        let (reused, fresh): (Vec<_>, Vec<_>) = wanted
            .iter()
            .filter(|(name, _)| !kept(name, &self.attached))
            .partition(|(name, _)| self.attached.contains_key(*name));
        let mut opened = Vec::new();
        let mut faults = Vec::new();
        for (name, (want, place)) in fresh {
            match attach::open(&mut self.programs, self.arena, want) {
                Ok(device) => opened.push((name.clone(), want.clone(), device)),
                Err(error) => faults.push(api::Fault::new(place, error)),
            }
        }
        if !faults.is_empty() {
            for (_, want, device) in opened {
                self.close_unused(&want, device);
            }
            self.forget_unused();
            return Err(ApplyError::Refused(faults));
        }
        let ifindexes = opened.iter().map(|(name, _, o)| (name.clone(), o.ifindex)).collect();
        if let Err(fault) = self.follow_underlay(&host, &ifindexes).await {
            for (_, want, device) in opened {
                self.close_unused(&want, device);
            }
            self.forget_unused();
            return Err(ApplyError::Refused(vec![fault]));
        }
        let mut warnings: Vec<String> = host.warnings().iter().map(ToString::to_string).collect();
        for (name, want, device) in opened {
            self.adopt(name, want, device);
        }
        for (name, (want, place)) in reused {
            self.close_device(name).await;
            match attach::open(&mut self.programs, self.arena, want) {
                Ok(device) => self.adopt(name.clone(), want.clone(), device),
                Err(error) => {
                    warnings.push(format!("{place} not attached: {error}"));
                    self.fail(name.clone(), want.clone(), &error);
                }
            }
        }
        let gone: Vec<_> =
            self.attached.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        self.vnets.retain(|id| host.vnets().iter().any(|vnet| vnet.id == *id));
        for vnet in host.vnets() {
            let _ = self.vnets.assign(&vnet.id);
        }
        let vteps: BTreeSet<IpAddr> = host.mappings().iter().map(|m| m.vtep).collect();
        self.vteps.retain(|ip| vteps.contains(ip));
        for ip in &vteps {
            let _ = self.vteps.assign(ip);
        }
        if let Some((_, resolver)) = &self.resolver {
            resolver.set_targets(vteps);
        }
        let addresses = &host.underlay().addresses;
        let maps = self
            .programs
            .set_vteps(addresses)
            .and_then(|()| self.programs.set_tunnel_ports(&[VXLAN.outer.port()]));
        if let Err(error) = maps {
            warnings.push(format!("underlay frames are not steered to us: {error}"));
        }
        self.host = Some(host);
        self.generation += 1;
        self.wait_for_next_hops().await;
        self.publish();
        for name in gone {
            self.close_device(&name).await;
        }
        self.forget_unused();
        match self.programs.release_unclaimed() {
            Ok(released) if !released.is_empty() => {
                tracing::info!(?released, "detached from devices that nothing wants any more");
            }
            Ok(_) => {}
            Err(error) => warnings.push(format!("a device of a former run stays closed: {error}")),
        }
        // The follower may have to follow another resolver now.
        self.shared.news.notify_one();
        Ok((self.generation, warnings))
    }

    /// The devices that a state needs, with the place that names each.
    fn wanted(&mut self, host: &Host) -> Result<BTreeMap<IfName, (Wanted, Place)>, ApplyError> {
        let mut all = BTreeMap::new();
        let mut faults = Vec::new();
        let underlay = host.underlay();
        for (i, name) in underlay.interfaces.iter().enumerate() {
            let place = Place::section(Section::Underlay, "interfaces").at(i);
            match self.links.assign(name) {
                None => faults.push(api::Fault::new(&place, "too many underlay interfaces")),
                Some(index) => {
                    let wanted = Wanted {
                        role: Role::Underlay(index as u16),
                        attach: Attach::Xdp { ifname: name.clone() },
                        mode: underlay.mode,
                        tx: underlay.tx,
                    };
                    all.insert(name.clone(), (wanted, place));
                }
            }
        }
        for (i, port) in host.ports().iter().enumerate() {
            let place = Place::object(Section::Port, i, "attach").named(port.id.as_str());
            match self.ports.assign(&port.id) {
                None => faults.push(api::Fault::new(&place, "too many ports")),
                Some(index) => {
                    let wanted = Wanted {
                        role: Role::Tenant(index as u16),
                        attach: port.attach.clone(),
                        mode: port.mode,
                        tx: UnderlayTx::Auto,
                    };
                    all.insert(port.attach.ifname().clone(), (wanted, place));
                }
            }
        }
        if faults.is_empty() {
            Ok(all)
        } else {
            self.forget_unused();
            Err(ApplyError::Refused(faults))
        }
    }

    /// Starts to follow the kernel's tables, or starts over when the underlay is another one.
    async fn follow_underlay(
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
    async fn wait_for_next_hops(&mut self) {
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

    /// Distributes an opened device's queues over the workers.
    fn adopt(&mut self, name: IfName, wanted: Wanted, opened: Opened) {
        let count = self.shared.inboxes.len();
        let first = self.least_loaded();
        let segments_udp = opened.devices.first().is_some_and(|device| device.segments_udp);
        let mut workers = Vec::new();
        for (queue, device) in opened.devices.into_iter().enumerate() {
            // A tenant's queues stay together, so that what is sent to it stays in order.
            let worker = match wanted.role {
                Role::Tenant(_) => first,
                Role::Underlay(_) => (first + queue) % count,
            };
            workers.push(worker as u16);
            if let Role::Tenant(port) = wanted.role
                && queue == 0
            {
                self.shared.counters.iter().for_each(|counters| counters.clear_port(port));
            }
            self.shared.inboxes[worker].command(Command::Attach(Box::new(device)));
        }
        tracing::info!(device = %name, mode = opened.mode.name(), role = ?wanted.role, "attached");
        for refusal in &opened.refusals {
            let mode = refusal.mode.name();
            tracing::warn!(device = %name, mode, reason = %refusal.reason, "mode refused");
        }
        let attached = Attached {
            wanted,
            ifindex: opened.ifindex,
            mode: opened.mode,
            refusals: opened.refusals,
            mtu: opened.mtu,
            workers,
            segments_udp,
            fault: None,
        };
        self.attached.insert(name, attached);
    }

    fn fail(&mut self, name: IfName, wanted: Wanted, error: &OpenError) {
        tracing::error!(device = %name, %error, "device cannot be opened");
        let attached = Attached {
            wanted,
            ifindex: 0,
            mode: Mode::Generic,
            refusals: Vec::new(),
            mtu: 0,
            workers: Vec::new(),
            segments_udp: false,
            fault: Some(error.to_string()),
        };
        self.attached.insert(name, attached);
    }

    fn least_loaded(&self) -> usize {
        let mut load = vec![0usize; self.shared.inboxes.len()];
        for worker in self.attached.values().flat_map(|attached| &attached.workers) {
            if let Some(load) = load.get_mut(usize::from(*worker)) {
                *load += 1;
            }
        }
        (0..load.len()).min_by_key(|worker| load[*worker]).unwrap_or(0)
    }

    fn close_unused(&mut self, wanted: &Wanted, opened: Opened) {
        let mut cache = FrameCache::new(self.arena);
        self.clear_slots(wanted.role);
        for device in opened.devices {
            device.close(&mut cache);
        }
        if opened.mode != Mode::Tap
            && let Err(error) = self.programs.detach(opened.ifindex)
        {
            tracing::warn!(%error, "a program stays attached");
        }
    }

    fn clear_slots(&mut self, role: Role) {
        let (base, count) = match role {
            Role::Tenant(port) => (port_slot_base(port), SLOTS_PER_PORT),
            Role::Underlay(link) => (link_slot_base(link), SLOTS_PER_LINK),
        };
        for slot in base..base + count {
            if let Err(error) = self.programs.clear_socket(slot) {
                tracing::debug!(%error, slot, "socket slot cannot be cleared");
            }
        }
    }

    /// Closes a device: first its sockets, then its program.
    async fn close_device(&mut self, name: &IfName) {
        let Some(attached) = self.attached.remove(name) else { return };
        self.close_sockets(&attached).await;
        let mode = attached.mode;
        if mode != Mode::Tap
            && attached.ifindex != 0
            && let Err(error) = self.programs.detach(attached.ifindex)
        {
            tracing::warn!(device = %name, %error, "program cannot be detached");
        }
        tracing::info!(device = %name, "detached");
    }

    async fn close_sockets(&mut self, attached: &Attached) {
        let workers: BTreeSet<u16> = attached.workers.iter().copied().collect();
        for worker in workers {
            let (done, closed) = oneshot::channel();
            let command = Command::Detach(attached.wanted.role, done);
            if self.shared.inboxes[usize::from(worker)].command(command) {
                let _ = closed.await;
            }
        }
        if attached.mode != Mode::Tap {
            self.clear_slots(attached.wanted.role);
        }
    }

    /// Gives the indices of objects that no state has back.
    fn forget_unused(&mut self) {
        let host = self.host.as_ref();
        let has_port =
            |id: &PortId| host.is_some_and(|host| host.ports().iter().any(|port| port.id == *id));
        self.ports.retain(has_port);
        self.links
            .retain(|name| host.is_some_and(|host| host.underlay().interfaces.contains(name)));
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

    /// Takes what the workers report.
    pub fn take_news(&mut self) {
        let mut changed = false;
        while let Some(event) = self.shared.events.pop() {
            match event {
                Event::PathMtu { vtep, mtu } => {
                    changed |= self.path_mtus.learn(vtep, mtu, Instant::now());
                }
            }
        }
        while let Some(trap) = self.shared.traps.pop() {
            let name = trap.port.and_then(|index| {
                self.ports.iter().find(|(_, i)| *i == u32::from(index)).map(|(id, _)| id)
            });
            let name = name.map_or_else(String::new, ToString::to_string);
            // Nobody listening is no error.
            let _ = self.traps.send((name, trap));
        }
        if changed {
            self.publish();
        }
    }

    /// Once in a while: old path MTUs, devices that came, went or changed.
    pub async fn look_around(&mut self) {
        if self.path_mtus.expire(Instant::now()) {
            self.publish();
        }
        let names: Vec<IfName> = self.attached.keys().cloned().collect();
        for name in names {
            self.look_at(&name).await;
        }
    }

    async fn look_at(&mut self, name: &IfName) {
        let Some(attached) = self.attached.get(name) else { return };
        if attached.mode == Mode::Tap && attached.fault.is_none() {
            return;
        }
        let found = NetDevice::by_name(name.as_str());
        let (ifindex, wanted) = (attached.ifindex, attached.wanted.clone());
        match found {
            Ok(device) if device.ifindex() == ifindex => {
                let mtu = device.mtu().unwrap_or(attached.mtu);
                let features = device.features().unwrap_or_default();
                let segments = attach::segments_udp(&wanted, &features);
                self.note_change(name, mtu, segments);
            }
            Ok(_) => {
                // Another device of this name, or one that could not be opened before.
                if let Some(attached) = self.attached.remove(name) {
                    self.close_sockets(&attached).await;
                    if ifindex != 0 {
                        let _ = self.programs.detach(ifindex);
                    }
                }
                match attach::open(&mut self.programs, self.arena, &wanted) {
                    Ok(opened) => self.adopt(name.clone(), wanted, opened),
                    Err(error) => self.fail(name.clone(), wanted, &error),
                }
                self.restart_resolver().await;
                self.publish();
            }
            Err(error) if attached.fault.is_none() => {
                tracing::warn!(device = %name, %error, "device is gone");
                if let Some(mut attached) = self.attached.remove(name) {
                    self.close_sockets(&attached).await;
                    let _ = self.programs.detach(ifindex);
                    attached.workers.clear();
                    attached.ifindex = 0;
                    attached.fault = Some(error.to_string());
                    self.attached.insert(name.clone(), attached);
                }
                self.publish();
            }
            Err(_) => {}
        }
    }

    fn note_change(&mut self, name: &IfName, mtu: u32, segments: bool) {
        let Some(attached) = self.attached.get_mut(name) else { return };
        if attached.segments_udp != segments {
            attached.segments_udp = segments;
            for worker in &attached.workers {
                let command = Command::SegmentsUdp(attached.wanted.role, segments);
                self.shared.inboxes[usize::from(*worker)].command(command);
            }
        }
        if attached.mtu != mtu {
            attached.mtu = mtu;
            self.publish();
        }
    }

    async fn restart_resolver(&mut self) {
        let Some(host) = self.host.clone() else { return };
        if let Err(fault) = self.follow_underlay(&host, &HashMap::new()).await {
            tracing::error!(fault = %fault.text(), "the underlay cannot be followed");
        }
        if let Some((_, resolver)) = &self.resolver {
            resolver.set_targets(self.vteps.iter().map(|(ip, _)| *ip).collect::<Vec<_>>());
        }
    }

    /// Ends: workers stop and close their devices. Tenants' programs stay attached and drop what
    /// arrives, unless `release` asks for them to be detached.
    pub fn stop(&mut self, release: bool) {
        for inbox in &self.shared.inboxes {
            inbox.command(Command::Stop);
        }
        if release {
            for attached in self.attached.values() {
                if attached.mode != Mode::Tap && attached.ifindex != 0 {
                    let _ = self.programs.detach(attached.ifindex);
                }
            }
        }
    }
}
