//! From one state to the next, as a whole or not at all.
//!
//! *Prepare* does everything that can fail, beside what runs: it opens new devices, widens the
//! program's tables, starts to follow another underlay, and moves devices to another mode, in that
//! order, the least disruptive first. If any of it fails, *undo* takes it back, and the state before
//! is still the one that is shown and carried. *Commit* does what cannot fail: it gives out indices,
//! takes back the devices that change hands, swaps the tables, hands the devices out in their new
//! roles, and closes those that nobody wants.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use culvert_ebpf::AttachError;
use culvert_model::{Attach, Edit, Host, IfName, Place, PortId, Section, UnderlayTx, api};
use culvert_port::IDLE_FRAMES;
use culvert_port::device::Device as NetDevice;
use culvert_wire::format::VXLAN;

use super::attach::{self, Opened, Wanted};
use super::devices::{Attached, Fault};
use super::modes::{BUSY_WAIT, Moved};
use super::underlay::Following;
use super::{ApplyError, Controller, Known};
use crate::worker::device::{Device, Role};

/// Devices that cannot be opened and are named in one refusal. To find out about each may take the
/// time that a busy queue is waited for.
const FAULTS_MAX: usize = 16;

/// Ports that are named for their MTU in the warnings of one state.
const MTU_WARNINGS_MAX: usize = 8;

/// The devices that a state needs, with the place that names each.
type Plan = BTreeMap<IfName, (Wanted, Place)>;

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
        let known = self.known_in(&host).map_err(|fault| ApplyError::Refused(vec![fault]))?;
        let plan = plan(&host, &known);
        let mut change = Change::default();
        if let Err(mut faults) = self.prepare(&host, &plan, &mut change).await {
            faults.extend(self.undo(change).await);
            return Err(ApplyError::Refused(faults));
        }
        Ok(self.commit(host, known, plan, change).await)
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
        self.replace(edited.map_err(ApplyError::Invalid)?, None).await
    }

    /// The indices of the objects of a state.
    fn known_in(&self, host: &Host) -> Result<Known, api::Fault> {
        let too_many = |place: Place, limit: usize, what: &str| {
            api::Fault::new(&place, format!("more than {limit} {what}, which is the limit"))
        };
        let known = &self.known;
        let ports = known.ports.moved_to(host.ports().iter().map(|port| &port.id));
        let ports = ports.map_err(|id: &PortId| {
            let place = Place::section(Section::Port, "id").named(id.as_str());
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
        let host_vteps: Vec<_> = host.vteps().collect();
        let vteps = known.vteps.moved_to(&host_vteps);
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
            if faults.len() >= FAULTS_MAX {
                break;
            }
        }
        faults.extend(underlay_mtu_faults(host));
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
            for (name, (wanted, place)) in plan.iter().filter(|(_, (w, _))| opens(w) == last) {
                self.turn(name, wanted.role, change)
                    .map_err(|error| vec![api::Fault::new(place, error)])?;
            }
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
            if let Err(error) = self.opener.programs.set_vteps(&addresses) {
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
        warnings.extend(self.mtu_warnings());
        let open = self.attached.values().filter_map(Attached::open);
        let sockets = open.map(|open| open.slots.len()).sum();
        warnings.extend(too_few_frames(sockets, self.opener.arena.stats().capacity));
        (self.generation, warnings)
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
    let idle = sockets * IDLE_FRAMES;
    let enough = (idle * 4 / 3).next_power_of_two();
    (idle > chunks / 4 * 3).then(|| {
        format!(
            "{sockets} sockets keep {IDLE_FRAMES} frames each of the {chunks} that there are, so \
             packets will be lost for want of frames: start the dataplane with --chunks {enough}"
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
    for port in host.ports() {
        let Some(index) = known.ports.get(&port.id) else { continue };
        let wanted = Wanted {
            role: Role::Tenant(index as u16),
            attach: port.attach.clone(),
            mode: port.mode,
            tx: UnderlayTx::Auto,
        };
        let place = Place::section(Section::Port, "attach").named(port.id.as_str());
        all.insert(port.attach.ifname().clone(), (wanted, place));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_sockets_that_take_most_of_the_memory_are_warned_of_with_the_remedy() {
        assert_eq!(too_few_frames(0, 1024), None);
        assert_eq!(too_few_frames(192, 16_384), None);
        let warning = too_few_frames(302, 16_384).unwrap();
        assert!(warning.contains("302 sockets") && warning.ends_with("--chunks 32768"));
        assert_eq!(too_few_frames(302, 32_768), None);
    }
}
