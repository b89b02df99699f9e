//! The programs of the packet path as one thing: loaded once per process, attached per device.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, Program, ProgramError, SchedClassifier, Xdp},
};
use tracing::{info, warn};

use crate::{
    attach::{self, AttachError, DeviceLink, XdpMode},
    bpffs::{BpffsError, ensure_bpffs},
    counter::Counter,
    guard::{self, Guard},
    object::{self, LoadError},
    privilege::chain,
    tables::{self, TableError},
};

const TENANT: &str = "tenant";
const UNDERLAY: &str = "underlay";
const METADATA: &str = "metadata";
const TRACEPOINT: &str = "netif_receive_skb";

/// How the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where links are pinned, as `link-<ifindex>`; created if absent. One directory per instance:
    /// two processes must not share one. Without it nothing outlives the process, and a tenant's
    /// frames reach the host's stack once it is gone.
    pub pin_dir: Option<PathBuf>,
    /// How many sockets there can be, over all devices and queues: 1 to 65536.
    pub max_slots: u32,
}

/// What a device's XDP program does with its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgramKind {
    /// Every frame goes to a socket, or nowhere.
    Tenant,
    /// Tunnel packets to our VTEPs, and ICMP errors about those that we sent, go to a socket or
    /// nowhere; everything else is the host's.
    Underlay,
}

impl ProgramKind {
    const fn xdp(self) -> &'static str {
        match self {
            Self::Tenant => TENANT,
            Self::Underlay => UNDERLAY,
        }
    }

    const fn guard(self) -> &'static str {
        match self {
            Self::Tenant => "guard_tenant",
            Self::Underlay => "guard_underlay",
        }
    }
}

struct Device {
    /// None: it has neither the program of the old mode nor that of the new one, and a guard.
    link: Option<DeviceLink>,
    kind: ProgramKind,
    slots: Range<u32>,
    mode: XdpMode,
    /// A previous process had closed it before.
    was_closed: bool,
}

/// The tenant, underlay and metadata programs with their shared maps.
///
/// Devices are those of the network namespace that the calling thread is in. Dropping this value
/// leaves pinned links where they are, with nothing to receive their frames, so that they are
/// dropped; links that are not pinned are detached.
pub struct Programs {
    object: Ebpf,
    metadata: Result<(), String>,
    pin_dir: Option<PathBuf>,
    max_slots: u32,
    devices: BTreeMap<u32, Device>,
    unclaimed: BTreeSet<u32>,
    /// Guards of devices that nothing else keeps closed.
    guards: BTreeMap<u32, Guard>,
}

impl Programs {
    /// Loads all programs and finds the links that a previous process pinned.
    ///
    /// # Errors
    /// See [`LoadError`]. That the metadata program cannot run is not among them: see
    /// [`Programs::metadata_available`].
    pub fn load(options: &LoadOptions) -> Result<Self, LoadError> {
        let unclaimed = match &options.pin_dir {
            None => BTreeSet::new(),
            Some(directory) => {
                ensure_bpffs(directory)?;
                attach::pinned(directory)
                    .map_err(|source| BpffsError::Io { path: directory.clone(), source })?
            }
        };
        let (mut object, kernel_types) = object::load(options.max_slots)?;
        for name in [TENANT, UNDERLAY] {
            xdp(&mut object, name)
                .and_then(Xdp::load)
                .map_err(|error| LoadError::from_kernel(&error))?;
        }
        for kind in [ProgramKind::Tenant, ProgramKind::Underlay] {
            classifier(&mut object, kind.guard())
                .and_then(SchedClassifier::load)
                .map_err(|error| LoadError::from_kernel(&error))?;
        }
        let metadata = kernel_types.and_then(|types| {
            start_metadata(&mut object, &types)
                .map_err(|error| format!("tracing {TRACEPOINT} is refused: {}", chain(&error)))
        });
        Ok(Self {
            object,
            metadata,
            pin_dir: options.pin_dir.clone(),
            max_slots: options.max_slots,
            devices: BTreeMap::new(),
            unclaimed,
            guards: BTreeMap::new(),
        })
    }

    /// Whether frames in generic mode come with what the kernel's packet buffer says.
    ///
    /// # Errors
    /// The reason why not, for an operator to read. Superframes and partial checksums can then not
    /// be told from others.
    pub fn metadata_available(&self) -> Result<(), String> {
        self.metadata.clone()
    }

    /// Puts the program of `kind` on a device, and gives its frames to the sockets in `slots`, one
    /// per receive queue.
    ///
    /// A link that a previous process pinned for the device is taken over without a gap. Where its
    /// mode differs, a guard keeps the device closed between the two.
    ///
    /// # Errors
    /// See [`AttachError`]; the device is then as before: open if it was, closed if it was.
    pub fn attach(
        &mut self,
        kind: ProgramKind,
        ifindex: u32,
        mode: XdpMode,
        slots: Range<u32>,
    ) -> Result<(), AttachError> {
        match self.devices.get(&ifindex) {
            Some(device) if device.link.is_some() => {
                return Err(AttachError::AlreadyAttached { ifindex });
            }
            // A guard is all that it has, and stays until the program is there.
            Some(_) => self.park(ifindex)?,
            None => {}
        }
        let (slot_base, max_slots) = (slots.start, self.max_slots);
        if slot_base >= max_slots || slots.end > max_slots {
            return Err(AttachError::SlotBase { ifindex, slot_base, max_slots });
        }
        let overlaps = |dev: &Device| slots.start < dev.slots.end && dev.slots.start < slots.end;
        if let Some((other, _)) = self.devices.iter().find(|(_, dev)| overlaps(dev)) {
            return Err(AttachError::SlotTaken { ifindex, slot_base, other: *other });
        }
        let was_closed = self.unclaimed.contains(&ifindex);
        // The tables come first: the program may see its first frame before attaching returns.
        self.publish(ifindex, &slots, mode)?;
        match self.link(kind, ifindex, mode) {
            Ok(link) => {
                self.unclaimed.remove(&ifindex);
                let link = Some(link);
                self.devices.insert(ifindex, Device { link, kind, slots, mode, was_closed });
                self.remove_guard(ifindex)
            }
            Err(error) => {
                self.withdraw(ifindex)?;
                Err(error)
            }
        }
    }

    /// A link on the device: the one that a previous process left, else a new one.
    fn link(
        &mut self,
        kind: ProgramKind,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<DeviceLink, AttachError> {
        let inherited = match &self.pin_dir {
            Some(directory) => attach::inherited(directory, ifindex)?,
            None => None,
        };
        match inherited {
            None => {
                let pin_dir = self.pin_dir.clone();
                attach::attach(self.xdp(kind, ifindex)?, ifindex, mode, pin_dir.as_deref())
            }
            Some((link, from)) if from == mode => {
                let link = attach::replace(self.xdp(kind, ifindex)?, link, ifindex)?;
                info!(ifindex, mode = mode.name(), "took over the XDP link of a previous process");
                Ok(link)
            }
            // On failure the old link is back, and its pin: still unclaimed, still closed.
            Some((link, from)) => {
                self.switch(kind, ifindex, link, [from, mode]).map_err(|(error, _)| error)
            }
        }
    }

    /// Takes a link of one mode off and makes one of the other. A guard stands meanwhile; where
    /// neither mode can be had any more it stays. On failure the link of the first mode is back,
    /// if that was possible.
    fn switch(
        &mut self,
        kind: ProgramKind,
        ifindex: u32,
        link: DeviceLink,
        [from, to]: [XdpMode; 2],
    ) -> Result<DeviceLink, (AttachError, Option<DeviceLink>)> {
        let pin_dir = self.pin_dir.clone();
        let pin_dir = pin_dir.as_deref();
        let guard = classifier(&mut self.object, kind.guard())
            .map_err(|error| AttachError::Guard { ifindex, reason: chain(&error) })
            .and_then(|program| Guard::attach(program, ifindex, pin_dir));
        let guard = match guard {
            Ok(guard) => guard,
            Err(error) => return Err((error, Some(link))),
        };
        let attempt = |programs: &mut Self, mode| {
            attach::attach(programs.xdp(kind, ifindex)?, ifindex, mode, pin_dir)
        };
        let made = link.remove().and_then(|()| attempt(self, to));
        let error = match made {
            Ok(link) => {
                if let Err(error) = guard.remove() {
                    warn!(%error, ifindex, "a guard stays on a device");
                }
                return Ok(link);
            }
            Err(error) => error,
        };
        match attempt(self, from) {
            Ok(link) => {
                if let Err(error) = guard.remove() {
                    warn!(%error, ifindex, "a guard stays on a device");
                }
                Err((error, Some(link)))
            }
            Err(second) => {
                self.guards.insert(ifindex, guard);
                let reason = format!("{error}; {second}");
                Err((AttachError::Closed { ifindex, reason }, None))
            }
        }
    }

    /// Runs the program in another mode on a device that is attached. Sockets stay in their slots;
    /// a guard keeps the device closed while neither program is on it, so a few frames are lost.
    ///
    /// # Errors
    /// See [`AttachError`]; the device then runs as before, save for [`AttachError::Closed`].
    pub fn set_mode(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), AttachError> {
        let device = self.devices.get_mut(&ifindex).ok_or(AttachError::NotAttached { ifindex })?;
        let (kind, from, slots) = (device.kind, device.mode, device.slots.clone());
        if from == mode {
            return Ok(());
        }
        let Some(link) = device.link.take() else {
            let reason = "it has no program".to_owned();
            return Err(AttachError::Closed { ifindex, reason });
        };
        let watched = self.publish(ifindex, &slots, mode);
        let switched = match watched {
            Ok(()) => self.switch(kind, ifindex, link, [from, mode]),
            Err(error) => Err((error, Some(link))),
        };
        let (link, mode, result) = match switched {
            Ok(link) => (Some(link), mode, Ok(())),
            Err((error, link)) => (link, from, Err(error)),
        };
        if let Some(device) = self.devices.get_mut(&ifindex) {
            (device.link, device.mode) = (link, mode);
        }
        if result.is_err() {
            self.publish(ifindex, &slots, from)?;
        }
        result
    }

    /// Puts the program of another kind in the place of the one that the device runs, without a
    /// gap. The sockets stay.
    ///
    /// # Errors
    /// See [`AttachError`]; the device then runs what it ran.
    pub fn set_kind(&mut self, ifindex: u32, kind: ProgramKind) -> Result<(), AttachError> {
        let device = self.devices.get_mut(&ifindex).ok_or(AttachError::NotAttached { ifindex })?;
        if device.kind == kind {
            return Ok(());
        }
        let Some(link) = device.link.take() else {
            device.kind = kind;
            return Ok(());
        };
        match attach::replace(self.xdp(kind, ifindex)?, link, ifindex) {
            Ok(link) => {
                if let Some(device) = self.devices.get_mut(&ifindex) {
                    (device.link, device.kind) = (Some(link), kind);
                }
                Ok(())
            }
            Err(error) => {
                // The pin still holds what was there.
                let back = match &self.pin_dir {
                    Some(directory) => attach::inherited(directory, ifindex)?,
                    None => None,
                };
                if let Some(device) = self.devices.get_mut(&ifindex) {
                    device.link = back.map(|(link, _)| link);
                }
                Err(error)
            }
        }
    }

    fn xdp(&mut self, kind: ProgramKind, ifindex: u32) -> Result<&mut Xdp, AttachError> {
        xdp(&mut self.object, kind.xdp())
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
    }

    /// Writes the entries of a device that is attached or about to be.
    fn publish(
        &mut self,
        ifindex: u32,
        slots: &Range<u32>,
        mode: XdpMode,
    ) -> Result<(), AttachError> {
        let range = [slots.start, slots.end.saturating_sub(slots.start)];
        tables::set_slots(&mut self.object, ifindex, range)
            .and_then(|()| tables::set_watched(&mut self.object, ifindex, mode == XdpMode::Generic))
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
    }

    /// Removes the entries of a device.
    fn withdraw(&mut self, ifindex: u32) -> Result<(), AttachError> {
        tables::clear_slots(&mut self.object, ifindex)
            .and_then(|()| tables::set_watched(&mut self.object, ifindex, false))
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
    }

    /// Takes a guard off that is needed no more, whoever put it there.
    fn remove_guard(&mut self, ifindex: u32) -> Result<(), AttachError> {
        if let Some(guard) = self.guards.remove(&ifindex) {
            guard.remove()?;
        }
        match &self.pin_dir {
            Some(directory) => attach::remove_pin(&guard::pin_path(directory, ifindex)),
            None => Ok(()),
        }
    }

    /// Takes the program off the device, or removes the link that a previous process left for it.
    /// From here on the host's stack sees the device's frames.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or what kept the pin from being removed.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        if let Some(device) = self.devices.remove(&ifindex) {
            if let Some(link) = device.link {
                link.remove()?;
            }
            self.remove_guard(ifindex)?;
            return self.withdraw(ifindex);
        }
        match &self.pin_dir {
            Some(directory) if self.unclaimed.contains(&ifindex) => {
                attach::remove_pinned(directory, ifindex)?;
                self.unclaimed.remove(&ifindex);
                self.guards.remove(&ifindex);
                Ok(())
            }
            _ => Err(AttachError::NotAttached { ifindex }),
        }
    }

    /// Leaves a device closed by what is on it, its program or a guard, for a later
    /// [`attach`](Self::attach) to take over; until then it has no slots.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or what kept its table entries.
    pub fn park(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.devices.remove(&ifindex).ok_or(AttachError::NotAttached { ifindex })?;
        self.unclaimed.insert(ifindex);
        self.withdraw(ifindex)
    }

    /// Gives a device up that was attached in vain. One that a previous process had closed stays
    /// closed, as if it had not been touched; any other is detached.
    ///
    /// # Errors
    /// As for [`Programs::detach`].
    pub fn abandon(&mut self, ifindex: u32) -> Result<(), AttachError> {
        let was_closed = self.devices.get(&ifindex).is_some_and(|device| device.was_closed);
        if !was_closed {
            return self.detach(ifindex);
        }
        self.park(ifindex)
    }

    /// The devices for which a previous process left a link that was not attached since. They drop
    /// what is meant for the overlay until they are attached, detached or released.
    #[must_use]
    pub fn pinned_links(&self) -> Vec<u32> {
        self.unclaimed.iter().copied().collect()
    }

    /// Detaches all devices of [`Programs::pinned_links`], and returns them. To be called once all
    /// devices of the new configuration are attached.
    ///
    /// # Errors
    /// The first pin that could not be removed; those behind it are still unclaimed.
    pub fn release_unclaimed(&mut self) -> Result<Vec<u32>, AttachError> {
        let unclaimed = self.pinned_links();
        for ifindex in &unclaimed {
            self.detach(*ifindex)?;
        }
        Ok(unclaimed)
    }

    /// Puts a bound `AF_XDP` socket into a slot. The kernel takes it out when the socket is closed.
    ///
    /// # Errors
    /// [`TableError::Slot`] and [`TableError::Socket`].
    pub fn set_socket(&mut self, slot: u32, socket: BorrowedFd<'_>) -> Result<(), TableError> {
        tables::set_socket(&mut self.object, slot, socket)
    }

    /// Empties a slot: its frames are dropped from here on.
    ///
    /// # Errors
    /// [`TableError::Slot`].
    pub fn clear_socket(&mut self, slot: u32) -> Result<(), TableError> {
        tables::clear_socket(&mut self.object, slot)
    }

    /// Makes `addresses` the ones to which tunnel packets are taken from the underlay.
    ///
    /// # Errors
    /// [`TableError::Kernel`] above 1,024 addresses per family.
    pub fn set_vteps(&mut self, addresses: &[IpAddr]) -> Result<(), TableError> {
        tables::set_vteps(&mut self.object, addresses)
    }

    /// Makes `ports` the UDP destination ports of tunnel packets.
    ///
    /// # Errors
    /// [`TableError::Kernel`] above 64 ports.
    pub fn set_tunnel_ports(&mut self, ports: &[u16]) -> Result<(), TableError> {
        tables::set_tunnel_ports(&mut self.object, ports)
    }

    /// All counters, summed over the CPUs; each only ever grows while this value lives.
    #[must_use]
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        tables::counters(&self.object).unwrap_or_else(|error| {
            warn!(%error, "the counters of the eBPF programs cannot be read");
            Vec::new()
        })
    }

    /// The tenant program, for inspection or a test run.
    #[must_use]
    pub fn tenant_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd(TENANT)
    }

    /// The underlay program, for inspection or a test run.
    #[must_use]
    pub fn underlay_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd(UNDERLAY)
    }

    fn fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        match self.object.program(name)? {
            Program::Xdp(program) => program.fd().ok().map(AsFd::as_fd),
            _ => None,
        }
    }
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

fn classifier<'a>(
    object: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

fn start_metadata(object: &mut Ebpf, types: &Btf) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint =
        object.program_mut(METADATA).ok_or(ProgramError::UnexpectedProgramType)?.try_into()?;
    program.load(TRACEPOINT, types)?;
    program.attach().map(drop)
}
