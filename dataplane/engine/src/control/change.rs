//! From one state to the next, as a whole or not at all.
//!
//! *Prepare* does everything that can fail, beside what runs: it opens new devices, widens the
//! program's tables, starts to follow another underlay, and moves devices to another mode, in that
//! order, the least disruptive first. If any of it fails, *undo* takes it back, and the state before
//! is still the one that is shown and carried. *Commit* does what cannot fail: it gives out indices,
//! takes back the devices that change hands, swaps the tables, hands the devices out in their new
//! roles, and closes those that nobody wants.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use culvert_ebpf::AttachError;
use culvert_model::{Attach, Host, IfName, Place, PortId, Section, UnderlayTx, api};
use culvert_port::device::Device as NetDevice;
use culvert_wire::format::VXLAN;

use super::attach::{self, Mode, OpenError, Opened, Refusal, Sockets, TryError, Wanted};
use super::devices::{Attached, Fault, Open};
use super::underlay::Following;
use super::{ApplyError, Controller, Known};
use crate::worker::device::{Device, Role};

/// How long a queue is waited for that its previous socket has not released yet.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// The devices that a state needs, with the place that names each.
type Plan = BTreeMap<IfName, (Wanted, Place)>;

/// What was prepared, and how to take it back.
#[derive(Default)]
struct Change {
    /// Devices that are open beside those in use.
    opened: Vec<(IfName, Opened)>,
    /// Devices whose mode was changed, and what it was.
    moved: Vec<(IfName, Mode, Vec<Refusal>)>,
    /// Devices whose program is that of another role by now, and what it was.
    turned: Vec<(IfName, Role)>,
    /// Another resolver than the one in use; none where no underlay device is left.
    following: Option<Option<Following>>,
    /// Whether the programs know the new VTEP addresses beside the old ones.
    widened: bool,
    /// Devices that carry nothing, as before.
    still_faulted: Vec<String>,
}

impl Controller {
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
        let known = self.known_in(&host).map_err(|fault| ApplyError::Refused(vec![fault]))?;
        let plan = plan(&host, &known);
        let mut change = Change::default();
        if let Err(mut faults) = self.prepare(&host, &plan, &mut change).await {
            faults.extend(self.undo(change).await);
            return Err(ApplyError::Refused(faults));
        }
        Ok(self.commit(host, known, plan, change).await)
    }

    /// The indices of the objects of a state.
    fn known_in(&self, host: &Host) -> Result<Known, api::Fault> {
        let too_many = |place: Place, limit: usize, what: &str| {
            api::Fault::new(&place, format!("more than {limit} {what}, which is the limit"))
        };
        let known = &self.known;
        let ports = known.ports.moved_to(host.ports().iter().map(|port| &port.id));
        let ports = ports.map_err(|id: &PortId| {
            let at = host.ports().iter().position(|port| port.id == *id).unwrap_or(0);
            let place = Place::object(Section::Port, at, "id").named(id.as_str());
            too_many(place, crate::limits::MAX_PORTS, "ports")
        })?;
        let links = known.links.moved_to(host.underlay().interfaces.iter());
        let links = links.map_err(|_| {
            let place = Place::section(Section::Underlay, "interfaces");
            too_many(place, crate::limits::MAX_LINKS, "underlay interfaces")
        })?;
        let vnets = known.vnets.moved_to(host.vnets().iter().map(|vnet| &vnet.id));
        let vnets =
            vnets.map_err(|_| too_many(Place::section(Section::Vnet, "id"), 1 << 16, "vnets"))?;
        let vteps = known.vteps.moved_to(host.mappings().iter().map(|mapping| &mapping.vtep));
        let vteps = vteps
            .map_err(|_| too_many(Place::section(Section::Mapping, "vtep"), 1 << 20, "VTEPs"))?;
        Ok(Known { ports, links, vnets, vteps })
    }

    /// Does everything that can fail. What is done so far is in `change`, also on failure.
    async fn prepare(
        &mut self,
        host: &Host,
        plan: &Plan,
        change: &mut Change,
    ) -> Result<(), Vec<api::Fault>> {
        let mut faults = Vec::new();
        for (name, (wanted, place)) in plan {
            let known = self.attached.get(name);
            let as_before = known.is_some_and(|attached| attached.wanted == *wanted);
            if known.is_some_and(|attached| attached.state.is_ok() && same_kind(attached, wanted)) {
                continue;
            }
            // A TAP is not an XDP device of the same name: the one has to go before the other.
            match self.opener.open(wanted, BUSY_WAIT) {
                Ok(opened) => change.opened.push((name.clone(), opened)),
                // It carries nothing now, and this state changes nothing about that.
                Err(error) if as_before => {
                    change.still_faulted.push(format!("{place}: not attached: {error}"));
                }
                Err(error) => faults.push(api::Fault::new(place, error)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        change.widened = true;
        let mut addresses = self.host.as_ref().map_or_else(Vec::new, our_addresses);
        addresses.extend(our_addresses(host));
        let programs = &mut self.opener.programs;
        let steered = programs
            .set_vteps(&addresses)
            .and_then(|()| programs.set_tunnel_ports(&[VXLAN.outer.port()]));
        if let Err(error) = steered {
            let place = Place::section(Section::Underlay, "addresses");
            let error = format!("tunnel packets cannot be steered to us: {error}");
            return Err(vec![api::Fault::new(&place, error)]);
        }
        let fresh: HashMap<IfName, u32> =
            change.opened.iter().map(|(name, opened)| (name.clone(), opened.ifindex)).collect();
        change.following = self.follow_anew(host, &fresh).await.map_err(|fault| vec![fault])?;
        for (name, (wanted, place)) in plan {
            let modes = self.modes_to_try(name, wanted);
            if let Some(modes) = modes
                && let Err(error) = self.move_to(name, &modes, change).await
            {
                return Err(vec![api::Fault::new(place, error)]);
            }
        }
        for (name, (wanted, place)) in plan {
            self.turn(name, wanted.role, change)
                .map_err(|error| vec![api::Fault::new(place, error)])?;
        }
        Ok(())
    }

    /// The modes that an open device is to be tried in; none where its present one will do.
    fn modes_to_try(&self, name: &IfName, wanted: &Wanted) -> Option<Vec<Mode>> {
        let attached = self.attached.get(name)?;
        let open = attached.open()?;
        if open.is_tap() || attached.wanted.mode == wanted.mode {
            return None;
        }
        let driver = NetDevice::by_name(name.as_str()).and_then(|net| net.driver());
        Some(attach::modes(wanted.mode, &driver.unwrap_or_default()).to_vec())
    }

    /// Moves an open device to the first of `modes` that it takes. Its sockets stay where the new
    /// mode binds them alike; what it carries loses the frames of that moment.
    async fn move_to(
        &mut self,
        name: &IfName,
        modes: &[Mode],
        change: &mut Change,
    ) -> Result<(), OpenError> {
        let Some(open) = self.attached.get(name).and_then(Attached::open) else { return Ok(()) };
        let (from, before) = (open.mode, open.refusals.clone());
        let mut refusals = Vec::new();
        for mode in modes {
            let moved = if *mode == from { Ok(()) } else { self.set_mode(name, *mode).await };
            match moved {
                Ok(()) => {
                    if let Some(open) = self.attached.get_mut(name).and_then(Attached::open_mut) {
                        (open.mode, open.refusals) = (*mode, refusals);
                        tracing::info!(device = %name, mode = mode.name(), "changed its mode");
                    }
                    change.moved.push((name.clone(), from, before));
                    return Ok(());
                }
                Err(error) => refusals.push(Refusal { mode: *mode, reason: error.to_string() }),
            }
            if self.attached.get(name).and_then(Attached::open).is_none() {
                break;
            }
        }
        Err(OpenError::NoMode { name: name.to_string(), refusals })
    }

    /// Runs an open device in another mode. On failure it runs in the one that it ran in; where even
    /// that is refused it is faulted, and closed.
    async fn set_mode(&mut self, name: &IfName, mode: Mode) -> Result<(), TryError> {
        let Some(attached) = self.attached.get(name) else { return Ok(()) };
        let Some(open) = attached.open() else { return Ok(()) };
        let (ifindex, from) = (open.ifindex, open.mode);
        if mode.binds_like(from) {
            let moved = self.opener.programs.set_mode(ifindex, mode.xdp());
            if let Err(error @ AttachError::Closed { .. }) = &moved {
                self.fault(name, error.to_string()).await;
            }
            return moved.map_err(TryError::from);
        }
        // The kernel has one socket per queue, so the old ones go before the new ones can be had.
        let sockets = Sockets {
            id: open.id,
            role: attached.wanted.role,
            ifindex,
            slots: open.slots.clone(),
            facts: open.facts,
            driver: NetDevice::by_name(name.as_str()).and_then(|n| n.driver()).unwrap_or_default(),
            busy_wait: BUSY_WAIT,
        };
        let old = self.take_back(name).await;
        self.close_sockets(old).await;
        let error = match self.rebind(&sockets, mode) {
            Ok(devices) => {
                self.hand_out(name, devices);
                return Ok(());
            }
            Err(error) => error,
        };
        match self.rebind(&sockets, from) {
            Ok(devices) => self.hand_out(name, devices),
            Err(second) => self.fault(name, format!("{error}; {second}")).await,
        }
        Err(error)
    }

    fn rebind(&mut self, sockets: &Sockets, mode: Mode) -> Result<Vec<Device>, TryError> {
        self.opener.programs.set_mode(sockets.ifindex, mode.xdp())?;
        self.opener.open_sockets(sockets, mode)
    }

    /// Marks a device as unusable that stays closed: its program, or a guard, drops its frames.
    async fn fault(&mut self, name: &IfName, reason: String) {
        tracing::error!(device = %name, reason, "device carries nothing");
        let devices = self.take_back(name).await;
        self.close_sockets(devices).await;
        let Some(attached) = self.attached.get_mut(name) else { return };
        attached.failed += 1;
        let Some(Open { ifindex, slots, .. }) = attached.open() else { return };
        let (ifindex, slots) = (*ifindex, slots.clone());
        attached.state = Err(Fault::new(reason, false, Some(ifindex)));
        self.opener.free_slots(slots);
        if let Err(error) = self.opener.programs.park(ifindex) {
            tracing::warn!(device = %name, %error, "the program cannot be parked");
        }
    }

    /// Puts the program of a role on an open device, in the place of the one that it runs.
    fn turn(&mut self, name: &IfName, role: Role, change: &mut Change) -> Result<(), AttachError> {
        let Some(attached) = self.attached.get(name) else { return Ok(()) };
        let (before, Some(open)) = (attached.wanted.role, attached.open()) else { return Ok(()) };
        if open.is_tap() || attach::kind(before) == attach::kind(role) {
            return Ok(());
        }
        self.opener.programs.set_kind(open.ifindex, attach::kind(role))?;
        change.turned.push((name.clone(), before));
        Ok(())
    }

    /// Takes back what was prepared. What cannot be taken back is said.
    async fn undo(&mut self, change: Change) -> Vec<api::Fault> {
        let mut faults = Vec::new();
        for (name, role) in change.turned.into_iter().rev() {
            let open = self.attached.get(&name).and_then(Attached::open);
            if let Some(ifindex) = open.map(|open| open.ifindex)
                && let Err(error) = self.opener.programs.set_kind(ifindex, attach::kind(role))
            {
                faults.push(not_undone(&name, &error));
            }
        }
        for (name, mode, refusals) in change.moved.into_iter().rev() {
            let now = self.attached.get(&name).and_then(Attached::open).map(|open| open.mode);
            if now != Some(mode)
                && let Err(error) = self.set_mode(&name, mode).await
            {
                faults.push(not_undone(&name, &error));
                continue;
            }
            if let Some(open) = self.attached.get_mut(&name).and_then(Attached::open_mut) {
                (open.mode, open.refusals) = (mode, refusals);
            }
        }
        if change.widened {
            let addresses = self.host.as_ref().map_or_else(Vec::new, our_addresses);
            if let Err(error) = self.opener.programs.set_vteps(&addresses) {
                tracing::warn!(%error, "addresses of a refused state stay in the programs");
            }
        }
        if let Some(Some(following)) = change.following {
            following.stop().await;
        }
        for (_, opened) in change.opened {
            self.opener.undo(opened);
        }
        faults
    }

    /// Makes the state that was prepared the current one.
    async fn commit(
        &mut self,
        host: Host,
        known: Known,
        plan: Plan,
        change: Change,
    ) -> (u64, Vec<String>) {
        let mut warnings: Vec<String> = host.warnings().iter().map(ToString::to_string).collect();
        warnings.extend(change.still_faulted);
        for (id, index) in known.ports.iter() {
            if self.known.ports.get(id).is_none() {
                self.shared.counters.iter().for_each(|c| c.clear_port(index as u16));
            }
        }
        self.known = known;
        if let Some(following) = change.following {
            self.follow_by(following).await;
        }
        self.set_targets();
        self.wait_for_next_hops().await;

        // From here on devices that change hands are in nobody's: what arrives waits in their
        // sockets, so that no packet is judged by its old role and the new rules.
        let mut hands: Vec<(IfName, Vec<Device>)> = Vec::new();
        let mut gone = Vec::new();
        let fresh: BTreeSet<IfName> = change.opened.iter().map(|(name, _)| name.clone()).collect();
        let names: Vec<IfName> = self.attached.keys().cloned().collect();
        for name in names {
            let Some(attached) = self.attached.get(&name) else { continue };
            let wanted = plan.get(&name).map(|(wanted, _)| wanted);
            if wanted.is_none() || attached.state.is_ok() && fresh.contains(&name) {
                let devices = self.take_back(&name).await;
                if let Some(attached) = self.attached.remove(&name) {
                    gone.push((name, attached, devices));
                }
            } else if attached.state.is_ok()
                && wanted.is_some_and(|wanted| wanted.role != attached.wanted.role)
            {
                let devices = self.take_back(&name).await;
                hands.push((name, devices));
            }
        }
        for (name, opened) in change.opened {
            let Some((wanted, _)) = plan.get(&name) else { continue };
            let devices = self.adopt(name.clone(), wanted.clone(), opened);
            hands.push((name, devices));
        }
        for (name, (wanted, _)) in &plan {
            self.rewant(name, wanted);
        }
        self.host = Some(host);
        self.generation += 1;
        self.publish();
        for (name, devices) in hands {
            self.hand_out(&name, devices);
        }
        self.close_devices(gone).await;
        let addresses = self.host.as_ref().map_or_else(Vec::new, our_addresses);
        if let Err(error) = self.opener.programs.set_vteps(&addresses) {
            warnings.push(format!("packets to addresses that were ours are kept: {error}"));
        }
        warnings.extend(self.release_unwanted());
        (self.generation, warnings)
    }

    /// Detaches from devices that a former run closed and that this state does not name. One that is
    /// of the state and cannot be opened at present stays closed.
    fn release_unwanted(&mut self) -> Vec<String> {
        let faults = self.attached.values().filter_map(|attached| attached.state.as_ref().err());
        let wanted: BTreeSet<u32> = faults.filter_map(Fault::ifindex).collect();
        let mut warnings = Vec::new();
        for ifindex in self.opener.programs.pinned_links() {
            if wanted.contains(&ifindex) {
                continue;
            }
            match self.opener.programs.detach(ifindex) {
                Ok(()) => tracing::info!(ifindex, "detached from a device that nothing wants"),
                Err(error) => {
                    warnings.push(format!("a device of a former run stays closed: {error}"));
                }
            }
        }
        warnings
    }

    /// Enters what is wanted of a device by now.
    fn rewant(&mut self, name: &IfName, wanted: &Wanted) {
        let Some(attached) = self.attached.get_mut(name) else { return };
        if attached.wanted == *wanted {
            return;
        }
        let turns = attached.wanted.role != wanted.role;
        attached.wanted = wanted.clone();
        let Some(open) = attached.open() else { return };
        let queues = open.workers.len();
        let features = NetDevice::by_name(name.as_str()).and_then(|net| net.features());
        let facts = attach::facts(wanted, open.mode, open.facts.mtu, &features.unwrap_or_default());
        if turns {
            let workers = self.place(wanted.role, queues);
            if let Some(open) = self.attached.get_mut(name).and_then(Attached::open_mut) {
                open.workers = workers;
                open.facts = facts;
            }
        } else {
            self.update(name, facts);
        }
    }
}

fn our_addresses(host: &Host) -> Vec<std::net::IpAddr> {
    host.underlay().addresses.clone()
}

fn not_undone(name: &IfName, error: &dyn std::fmt::Display) -> api::Fault {
    let place = Place::section(Section::Port, "attach").named(name.as_str());
    api::Fault::new(&place, format!("{name} could not be brought back and stays closed: {error}"))
}

/// Whether the device that is open may serve what is wanted, be it in another role or mode.
fn same_kind(attached: &Attached, wanted: &Wanted) -> bool {
    attached.wanted.attach == wanted.attach
}

/// The devices that a state needs.
fn plan(host: &Host, known: &Known) -> Plan {
    let mut all = BTreeMap::new();
    let underlay = host.underlay();
    for (i, name) in underlay.interfaces.iter().enumerate() {
        let Some(index) = known.links.get(name) else { continue };
        let wanted = Wanted {
            role: Role::Underlay(index as u16),
            attach: Attach::Xdp { ifname: name.clone() },
            mode: underlay.mode,
            tx: underlay.tx,
        };
        let place = Place::section(Section::Underlay, "interfaces").at(i);
        all.insert(name.clone(), (wanted, place));
    }
    for (i, port) in host.ports().iter().enumerate() {
        let Some(index) = known.ports.get(&port.id) else { continue };
        let wanted = Wanted {
            role: Role::Tenant(index as u16),
            attach: port.attach.clone(),
            mode: port.mode,
            tx: UnderlayTx::Auto,
        };
        let place = Place::object(Section::Port, i, "attach").named(port.id.as_str());
        all.insert(port.attach.ifname().clone(), (wanted, place));
    }
    all
}
