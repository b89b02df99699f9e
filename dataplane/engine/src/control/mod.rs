//! The control thread: desired state in, tables and devices out.
//!
//! A state is applied as a whole or not at all: new devices are opened first, then the tables are
//! swapped, then devices that nobody wants are closed. Between two states every packet sees one of
//! them.

pub mod attach;
mod devices;
pub mod pmtu;
pub mod status;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ebpf::Programs;
use culvert_model::{Attach, Host, IfName, Place, PortId, Section, UnderlayTx, VnetId, api};
use culvert_nexthop::{NextHops, Resolver, ResolverConfig};
use culvert_port::Arena;
use culvert_wire::format::VXLAN;
use tokio::sync::{broadcast, watch};

use self::attach::{Mode, Refusal, Wanted};
use self::pmtu::PathMtus;
use crate::limits::{MAX_LINKS, MAX_PORTS};
use crate::shared::{Command, Event, Shared, Trap};
use crate::tables::Indices;
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

    /// Gives the indices of objects that no state has back.
    fn forget_unused(&mut self) {
        let host = self.host.as_ref();
        let has_port =
            |id: &PortId| host.is_some_and(|host| host.ports().iter().any(|port| port.id == *id));
        self.ports.retain(has_port);
        self.links
            .retain(|name| host.is_some_and(|host| host.underlay().interfaces.contains(name)));
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
