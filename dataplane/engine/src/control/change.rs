//! From one state to the next, as a whole or not at all.
//!
//! *Prepare* does everything that can fail, beside what runs: it opens new devices, widens the
//! program's tables, starts to follow another underlay, and moves devices to another mode, in that
//! order, the least disruptive first. If any of it fails, *undo* takes it back, and the state before
//! is still the one that is shown and carried. *Commit* does what cannot fail: it gives out indices,
//! takes back the devices that change hands, swaps the tables, hands the devices out in their new
//! roles, and closes those that nobody wants.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use culvert_ebpf::AttachError;
use culvert_model::edit::Changes;
use culvert_model::{
    Attach, Edit, Host, IfName, Place, PortId, Section, UnderlayRx, UnderlayTx, Vnet, api,
};
use culvert_port::IDLE_FRAMES_MIN;
use culvert_port::device::Device as NetDevice;

use super::attach::{self, Opened, Wanted};
use super::carriers::carriers_of;
use super::devices::{Attached, Fault};
use super::modes::{BUSY_WAIT, Moved};
use super::underlay::Following;
use super::{ApplyError, Controller, Known};
use crate::tables::Scope;
use crate::worker::device::{Device, Role};

/// Devices that cannot be opened and are named in one refusal. To find out about each may take the
/// time that a busy queue is waited for.
const FAULTS_MAX: usize = 16;

/// Ports that are named for their MTU in the warnings of one state.
const MTU_WARNINGS_MAX: usize = 8;

/// In what form a state came.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Given {
    /// As a whole: everything is looked at, also what changed beside the state since the one before.
    Whole,
    /// By edits: what they do not touch is left alone.
    Edits,
}

impl Given {
    /// How long new VTEPs are waited for. Who edits often waits often.
    const fn patience(self) -> Duration {
        match self {
            Given::Whole => Duration::from_millis(300),
            Given::Edits => Duration::from_millis(5),
        }
    }
}

/// The devices that a change concerns: those of changed ports, and those that carry nothing at present.
/// All others stay as they are.
#[derive(Default)]
struct Plan {
    /// What is wanted of a device from now on, with the place that names it.
    wanted: BTreeMap<IfName, (Wanted, Place)>,
    /// Open devices that nothing wants any more.
    unwanted: Vec<IfName>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.unwanted.is_empty()
    }

    fn has_underlay(&self) -> bool {
        self.wanted.values().any(|(wanted, _)| matches!(wanted.role, Role::Underlay(_)))
    }
}

/// What was prepared, and how to take it back.
#[derive(Default)]
struct Change {
    /// Devices that are open beside those in use.
    opened: Vec<(IfName, Opened)>,
    /// Devices whose mode was changed, and what it was.
    moved: Vec<Moved>,
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
        self.change_to(host, Given::Whole).await
    }

    /// Makes `host` the state. Costs what differs from the state before.
    async fn change_to(
        &mut self,
        host: Host,
        given: Given,
    ) -> Result<(u64, Vec<String>), ApplyError> {
        let before = self.host.clone();
        let changes = Changes::since(before.as_ref(), &host);
        let known = self.known_in(&host, &changes).map_err(|f| ApplyError::Refused(vec![f]))?;
        let plan = self.plan(&host, before.as_ref(), &known, &changes);
        let mut change = Change::default();
        if let Err(mut faults) = self.prepare(&host, &changes, given, &plan, &mut change).await {
            faults.extend(self.undo(change).await);
            return Err(ApplyError::Refused(faults));
        }
        Ok(self.commit(&host, &changes, known, plan, change, given.patience()).await)
    }

    /// Changes objects of the state.
    ///
    /// # Errors
    /// [`ApplyError`]; the state before stays.
    pub async fn update(
        &mut self,
        edits: &[Edit],
        if_generation: Option<u64>,
        if_instance: &str,
    ) -> Result<(u64, Vec<String>), ApplyError> {
        if !if_instance.is_empty() && if_instance != self.instance_id {
            return Err(ApplyError::Instance(self.instance_id.clone()));
        }
        if if_generation.is_some_and(|wanted| wanted != self.generation) {
            return Err(ApplyError::Generation(self.generation));
        }
        let edited = self.host.as_ref().map_or_else(|| Host::of_edits(edits), |h| h.edited(edits));
        self.change_to(edited.map_err(ApplyError::Invalid)?, Given::Edits).await
    }

    /// The indices of the objects of a state.
    fn known_in(&self, host: &Host, changes: &Changes<'_>) -> Result<Known, api::Fault> {
        let too_many = |place: Place, limit: usize, what: &str| {
            api::Fault::new(&place, format!("more than {limit} {what}, which is the limit"))
        };
        let known = &self.known;
        let ports =
            known.ports.changed(gone(&changes.ports, |p| &p.id), came(&changes.ports, |p| &p.id));
        let ports = ports.map_err(|id: &PortId| {
            let place = Place::section(Section::Port, "id").named(id.as_str());
            too_many(place, crate::limits::MAX_PORTS, "ports")
        })?;
        let links = known.links.moved_to(host.underlay().interfaces.iter());
        let links = links.map_err(|_| {
            let place = Place::section(Section::Underlay, "interfaces");
            too_many(place, crate::limits::MAX_LINKS, "underlay interfaces")
        })?;
        let vnets =
            known.vnets.changed(gone(&changes.vnets, |v| &v.id), came(&changes.vnets, |v| &v.id));
        let vnets =
            vnets.map_err(|_| too_many(Place::section(Section::Vnet, "id"), 1 << 16, "vnets"))?;
        let (old, new) = self.vteps_of(host, changes);
        let vteps = known
            .vteps
            .changed(&old, &new)
            .map_err(|_| too_many(Place::section(Section::Mapping, "vtep"), 1 << 20, "VTEPs"))?;
        Ok(Known { ports, links, vnets, vteps })
    }

    /// VTEPs that no mapping names any more, and those that one names now.
    fn vteps_of(&self, host: &Host, changes: &Changes<'_>) -> (BTreeSet<IpAddr>, BTreeSet<IpAddr>) {
        let old = changes.mappings.iter().filter_map(|(old, _)| Some(old.as_ref()?.vtep));
        let new = changes.mappings.iter().filter_map(|(_, new)| Some(new.as_ref()?.vtep));
        let gone = old.filter(|vtep| !host.has_vtep(*vtep)).collect();
        (gone, new.filter(|vtep| self.known.vteps.get(vtep).is_none()).collect())
    }

    /// Sockets of the underlay's devices, whose packets are for all ports: those that are open, else as many as the
    /// device has queues.
    fn underlay_sockets(&self, host: &Host) -> usize {
        let queues = |name: &IfName| {
            let net = NetDevice::by_name(name.as_str()).ok()?;
            Some(net.queues().ok()?.rx.min(crate::limits::SLOTS_PER_LINK) as usize)
        };
        let sockets = |name: &IfName| {
            let open = self.attached.get(name).and_then(Attached::open);
            open.map(|open| open.slots.len()).or_else(|| queues(name)).unwrap_or(1).max(1)
        };
        host.underlay().interfaces.iter().map(sockets).sum()
    }

    /// Does everything that can fail. What is done so far is in `change`, also on failure.
    async fn prepare(
        &mut self,
        host: &Host,
        changes: &Changes<'_>,
        given: Given,
        plan: &Plan,
        change: &mut Change,
    ) -> Result<(), Vec<api::Fault>> {
        let mut faults = Vec::new();
        let open = self.attached.values().filter_map(Attached::open);
        let sockets: usize = open.map(|open| open.slots.len()).sum();
        let bursting = self.underlay_sockets(host);
        self.opener.arena.share_among(sockets + plan.wanted.len(), bursting);
        for (name, (wanted, place)) in &plan.wanted {
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
            if faults.len() >= FAULTS_MAX {
                break;
            }
        }
        // What tenants need of the underlay's MTU follows from the addresses of ports and gateways.
        let tenants_changed = !changes.ports.is_empty() || !changes.vnets.is_empty();
        if given == Given::Whole || changes.underlay || tenants_changed {
            faults.extend(underlay_mtu_faults(host));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        if changes.underlay || other_formats(changes) {
            self.widen(host, change)?;
        }
        let fresh: HashMap<IfName, u32> =
            change.opened.iter().map(|(name, opened)| (name.clone(), opened.ifindex)).collect();
        change.following = self.follow_anew(host, &fresh).await.map_err(|fault| vec![fault])?;
        for (name, (wanted, place)) in &plan.wanted {
            let modes = self.modes_to_try(name, wanted);
            if let Some(modes) = modes {
                let moved = self.move_to(name, &modes).await;
                let moved = moved.map_err(|error| vec![api::Fault::new(place, error)])?;
                change.moved.extend(moved);
            }
        }
        // A tenant's device that turns into one of the underlay is open to the host from then on, so
        // nothing that can fail may follow but its like.
        let opens = |wanted: &Wanted| matches!(wanted.role, Role::Underlay(_));
        for last in [false, true] {
            let some = plan.wanted.iter().filter(|(_, (wanted, _))| opens(wanted) == last);
            for (name, (wanted, place)) in some {
                self.turn(name, wanted.role, change)
                    .map_err(|error| vec![api::Fault::new(place, error)])?;
            }
        }
        Ok(())
    }

    /// Lets the programs take tunnel packets to the addresses of the new state beside those of the old.
    fn widen(&mut self, host: &Host, change: &mut Change) -> Result<(), Vec<api::Fault>> {
        change.widened = true;
        let mut addresses = self.host.as_ref().map_or_else(Vec::new, our_addresses);
        addresses.extend(our_addresses(host));
        let mut carriers = self.host.as_ref().map_or_else(Vec::new, carriers_of);
        carriers.extend(carriers_of(host));
        let programs = &mut self.opener.programs;
        let steered =
            programs.set_vteps(&addresses).and_then(|()| programs.set_carriers(&carriers));
        if let Err(error) = steered {
            let place = Place::section(Section::Underlay, "addresses");
            let error = format!("tunnel packets cannot be steered to us: {error}");
            return Err(vec![api::Fault::new(&place, error)]);
        }
        Ok(())
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
        for moved in change.moved.into_iter().rev() {
            let name = moved.name.clone();
            if let Err(error) = self.move_back(moved).await {
                faults.push(not_undone(&name, &error));
            }
        }
        if change.widened {
            let addresses = self.host.as_ref().map_or_else(Vec::new, our_addresses);
            let carriers = self.host.as_ref().map_or_else(Vec::new, carriers_of);
            let programs = &mut self.opener.programs;
            let narrowed =
                programs.set_vteps(&addresses).and_then(|()| programs.set_carriers(&carriers));
            if let Err(error) = narrowed {
                let place = Place::section(Section::Underlay, "addresses");
                let error = format!("packets to addresses of the refused state are kept: {error}");
                faults.push(api::Fault::new(&place, error));
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
        host: &Host,
        changes: &Changes<'_>,
        known: Known,
        plan: Plan,
        change: Change,
        patience: Duration,
    ) -> (u64, Vec<String>) {
        let mut warnings: Vec<String> = host.warnings().iter().map(ToString::to_string).collect();
        warnings.extend(change.still_faulted);
        for index in came(&changes.ports, |port| &port.id).filter_map(|id| known.ports.get(id)) {
            self.shared.counters.iter().for_each(|c| c.clear_port(index as u16));
        }
        let (gone_vteps, new_vteps) = self.vteps_of(host, changes);
        self.known = known;
        let mut scope = Scope { ports: !plan.is_empty(), vteps: changes.underlay };
        scope.vteps |= plan.has_underlay() || change.following.is_some();
        let wait_for: Vec<IpAddr> = match change.following {
            Some(following) => {
                self.follow_by(following).await;
                self.known.vteps.iter().map(|(ip, _)| *ip).collect()
            }
            None => new_vteps.iter().copied().collect(),
        };
        if !wait_for.is_empty() || !gone_vteps.is_empty() {
            self.set_targets();
            scope.vteps |= self.wait_for_next_hops(&wait_for, patience).await;
        }

        // From here on devices that change hands are in nobody's: what arrives waits in their
        // sockets, so that no packet is judged by its old role and the new rules.
        let mut hands: Vec<(IfName, Vec<Device>)> = Vec::new();
        let mut gone = Vec::new();
        let fresh: BTreeSet<IfName> = change.opened.iter().map(|(name, _)| name.clone()).collect();
        let concerned: Vec<&IfName> = plan.wanted.keys().chain(&plan.unwanted).collect();
        for name in concerned {
            let Some(attached) = self.attached.get(name) else { continue };
            let wanted = plan.wanted.get(name).map(|(wanted, _)| wanted);
            if wanted.is_none() || attached.state.is_ok() && fresh.contains(name) {
                let devices = self.take_back(name).await;
                if let Some(attached) = self.attached.remove(name) {
                    gone.push((name.clone(), attached, devices));
                }
            } else if attached.state.is_ok()
                && wanted.is_some_and(|wanted| wanted.role != attached.wanted.role)
            {
                let devices = self.take_back(name).await;
                hands.push((name.clone(), devices));
            }
        }
        for (name, opened) in change.opened {
            let Some((wanted, _)) = plan.wanted.get(&name) else { continue };
            let devices = self.adopt(name.clone(), wanted.clone(), opened);
            hands.push((name, devices));
        }
        for (name, (wanted, _)) in &plan.wanted {
            self.rewant(name, wanted);
        }
        self.host = Some(host.clone());
        self.generation += 1;
        self.publish_changes(changes, scope);
        for (name, devices) in hands {
            self.hand_out(&name, devices);
        }
        self.close_devices(gone).await;
        if changes.underlay
            && let Err(error) = self.opener.programs.set_vteps(&our_addresses(host))
        {
            warnings.push(format!("packets to addresses that were ours are kept: {error}"));
        }
        if other_formats(changes)
            && let Err(error) = self.opener.programs.set_carriers(&carriers_of(host))
        {
            warnings.push(format!("packets of formats that were ours are kept: {error}"));
        }
        warnings.extend(self.release_unwanted());
        warnings.extend(self.mtu_warnings());
        let open = self.attached.values().filter_map(Attached::open);
        let sockets = open.map(|open| open.slots.len()).sum();
        warnings.extend(too_few_frames(sockets, self.opener.arena.stats().capacity));
        (self.generation, warnings)
    }

    /// What becomes of the devices that the changes concern.
    fn plan(
        &self,
        host: &Host,
        before: Option<&Host>,
        known: &Known,
        changes: &Changes<'_>,
    ) -> Plan {
        let faulted = self.attached.iter().filter(|(_, attached)| attached.state.is_err());
        let mut names: BTreeSet<&IfName> = faulted.map(|(name, _)| name).collect();
        if changes.underlay {
            let hosts = [Some(host), before].into_iter().flatten();
            names.extend(hosts.flat_map(|host| &host.underlay().interfaces));
        }
        let ports = changes.ports.iter().flat_map(|(old, new)| [old, new]).flatten();
        names.extend(ports.map(|port| port.attach.ifname()));
        let mut plan = Plan::default();
        for name in names {
            match wanted_of(host, known, name) {
                Some(wanted) => drop(plan.wanted.insert(name.clone(), wanted)),
                None if self.attached.contains_key(name) => plan.unwanted.push(name.clone()),
                None => {}
            }
        }
        plan
    }

    /// Detaches from devices that were closed before and that this state does not name. One that is
    /// of the state stays closed while it cannot be opened, also under another name.
    fn release_unwanted(&mut self) -> Vec<String> {
        let faults = self.attached.values().filter_map(|attached| attached.state.as_ref().err());
        let wanted: BTreeSet<u32> = faults.flat_map(Fault::closed).collect();
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

    /// Names ports whose devices take larger packets than fit the underlay.
    fn mtu_warnings(&self) -> Vec<String> {
        let Some(host) = &self.host else { return Vec::new() };
        let mtu = |name: &IfName| Some(self.attached.get(name)?.open()?.facts.mtu);
        let Some(least) = host.underlay().interfaces.iter().filter_map(mtu).min() else {
            return Vec::new();
        };
        let all = host.device_warnings(least, |port| mtu(port.attach.ifname()));
        let mut some: Vec<_> = all.iter().take(MTU_WARNINGS_MAX).map(ToString::to_string).collect();
        if all.len() > some.len() {
            some.push(format!("so it is of {} more ports", all.len() - some.len()));
        }
        some
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
        let facts = attach::present_facts(wanted, open.mode, open.facts.mtu);
        if turns {
            let workers = self.place(wanted.role, queues);
            if let Some(open) = self.attached.get_mut(name).and_then(Attached::open_mut) {
                open.workers = workers;
                open.facts = facts;
            }
        } else {
            self.update_device(name, facts);
        }
    }
}

/// What to say where idle sockets alone take most of the packet memory: tenants with traffic then
/// find none, which only the counter `fill_starved` shows.
fn too_few_frames(sockets: usize, chunks: usize) -> Option<String> {
    let idle = sockets * IDLE_FRAMES_MIN;
    let enough = (idle * 4 / 3).next_power_of_two();
    (idle > chunks / 4 * 3).then(|| {
        format!(
            "{sockets} sockets keep at least {IDLE_FRAMES_MIN} frames each of the {chunks} that there \
             are, so packets will be lost for want of frames: start the dataplane with --chunks {enough}"
        )
    })
}

/// Names the underlay devices whose MTU, as it is now, is too small for the tenants.
fn underlay_mtu_faults(host: &Host) -> Vec<api::Fault> {
    let fault = |(i, name): (usize, &IfName)| {
        // One that does not exist now is somebody else's fault to name.
        let mtu = NetDevice::by_name(name.as_str()).and_then(|net| net.mtu()).ok()?;
        let fault = host.underlay_mtu_fault(mtu)?;
        let place = Place::section(Section::Underlay, "interfaces").at(i);
        Some(api::Fault::new(&place, format!("{name}: MTU {fault}")))
    };
    host.underlay().interfaces.iter().enumerate().filter_map(fault).collect()
}

fn our_addresses(host: &Host) -> Vec<IpAddr> {
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

/// What a state wants of a device, with the place that names it.
fn wanted_of(host: &Host, known: &Known, name: &IfName) -> Option<(Wanted, Place)> {
    let underlay = host.underlay();
    if let Some(i) = underlay.interfaces.iter().position(|own| own == name) {
        let wanted = Wanted {
            role: Role::Underlay(known.links.get(name)? as u16),
            attach: Attach::Xdp { ifname: name.clone() },
            mode: underlay.mode,
            rx: underlay.rx,
            tx: underlay.tx,
        };
        return Some((wanted, Place::section(Section::Underlay, "interfaces").at(i)));
    }
    let port = host.port_on(name)?;
    let wanted = Wanted {
        role: Role::Tenant(known.ports.get(&port.id)? as u16),
        attach: port.attach.clone(),
        mode: port.mode,
        rx: UnderlayRx::Xdp,
        tx: UnderlayTx::Auto,
    };
    Some((wanted, Place::section(Section::Port, "attach").named(port.id.as_str())))
}

/// Names of objects that are no more.
fn gone<'c, T, K: 'c>(
    changes: &'c [(Option<&'c T>, Option<&'c T>)],
    id: fn(&T) -> &K,
) -> impl Iterator<Item = &'c K> {
    changes.iter().filter(|(_, new)| new.is_none()).filter_map(move |(old, _)| old.map(id))
}

/// Names of objects that there were not before.
fn came<'c, T, K: 'c>(
    changes: &'c [(Option<&'c T>, Option<&'c T>)],
    id: fn(&T) -> &K,
) -> impl Iterator<Item = &'c K> {
    changes.iter().filter(|(old, _)| old.is_none()).filter_map(move |(_, new)| new.map(id))
}

/// Whether other formats may be in use.
fn other_formats(changes: &Changes<'_>) -> bool {
    let of = |vnet: Option<&Vnet>| vnet.map(|vnet| vnet.format.clone());
    changes.underlay
        || !changes.formats.is_empty()
        || changes.vnets.iter().any(|(old, new)| of(*old) != of(*new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_sockets_that_take_most_of_the_memory_are_warned_of_with_the_remedy() {
        assert_eq!(too_few_frames(0, 1024), None);
        assert_eq!(too_few_frames(1536, 16_384), None);
        let warning = too_few_frames(2400, 16_384).unwrap();
        assert!(warning.contains("2400 sockets") && warning.ends_with("--chunks 32768"));
        assert_eq!(too_few_frames(2400, 32_768), None);
    }
}
