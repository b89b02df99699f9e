//! The programs of the packet path as one thing: loaded once per process, attached per device.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, Program, ProgramError, Xdp},
};
use tracing::warn;

use crate::{
    attach::{self, AttachError, DeviceLink, XdpMode},
    bpffs::{BpffsError, ensure_bpffs},
    counter::Counter,
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

struct Device {
    link: DeviceLink,
    slot_base: u32,
    mode: XdpMode,
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

    /// Sends every frame that arrives on a tenant's device to the sockets from slot `slot_base` on,
    /// one per receive queue. The device's slots end where those of another device begin.
    ///
    /// A link that a previous process pinned for the device is taken over without a gap. Where its
    /// mode differs it must be detached before the new one can be attached: frames that arrive
    /// between the two reach the host's stack.
    ///
    /// # Errors
    /// See [`AttachError`]; the device is then as before, or, after a change of mode, without a
    /// program.
    pub fn attach_tenant(
        &mut self,
        ifindex: u32,
        mode: XdpMode,
        slot_base: u32,
    ) -> Result<(), AttachError> {
        self.attach(TENANT, ifindex, mode, slot_base)
    }

    /// Sends tunnel packets to our VTEPs, and ICMP errors about those that we sent, to the sockets
    /// from slot `slot_base` on; leaves everything else to the host.
    ///
    /// # Errors
    /// As for [`Programs::attach_tenant`].
    pub fn attach_underlay(
        &mut self,
        ifindex: u32,
        mode: XdpMode,
        slot_base: u32,
    ) -> Result<(), AttachError> {
        self.attach(UNDERLAY, ifindex, mode, slot_base)
    }

    fn attach(
        &mut self,
        program: &str,
        ifindex: u32,
        mode: XdpMode,
        slot_base: u32,
    ) -> Result<(), AttachError> {
        if self.devices.contains_key(&ifindex) {
            return Err(AttachError::AlreadyAttached { ifindex });
        }
        let max_slots = self.max_slots;
        if slot_base >= max_slots {
            return Err(AttachError::SlotBase { ifindex, slot_base, max_slots });
        }
        if let Some((other, _)) = self.devices.iter().find(|(_, dev)| dev.slot_base == slot_base) {
            return Err(AttachError::SlotTaken { ifindex, slot_base, other: *other });
        }
        // The tables come first: the program may see its first frame before attaching returns.
        self.publish(Some((ifindex, slot_base, mode)))?;
        let attached = xdp(&mut self.object, program)
            .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })
            .and_then(|program| attach::attach(program, ifindex, mode, self.pin_dir.as_deref()));
        match attached {
            Ok(link) => {
                self.unclaimed.remove(&ifindex);
                self.devices.insert(ifindex, Device { link, slot_base, mode });
                Ok(())
            }
            Err(error) => {
                self.publish(None)?;
                Err(error)
            }
        }
    }

    /// Writes the tables that follow from the attached devices and the one about to be.
    fn publish(&mut self, coming: Option<(u32, u32, XdpMode)>) -> Result<(), AttachError> {
        let attached = self.devices.iter().map(|(index, dev)| (*index, dev.slot_base, dev.mode));
        let all: Vec<_> = attached.chain(coming).collect();
        let bases = all.iter().map(|(ifindex, base, _)| (*ifindex, *base)).collect();
        let generic = |mode: &XdpMode| *mode == XdpMode::Generic;
        let watched =
            all.iter().filter(|(.., mode)| generic(mode)).map(|(ifindex, ..)| *ifindex).collect();
        tables::set_slot_ranges(&mut self.object, &tables::ranges(&bases, self.max_slots))
            .and_then(|()| tables::set_watched(&mut self.object, &watched))
            .map_err(|error| AttachError::Kernel {
                ifindex: coming.map_or(0, |(ifindex, ..)| ifindex),
                reason: chain(&error),
            })
    }

    /// Takes the program off the device, or removes the link that a previous process left for it.
    /// From here on the host's stack sees the device's frames.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`], or what kept the pin from being removed.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        if let Some(device) = self.devices.remove(&ifindex) {
            device.link.remove()?;
            return self.publish(None);
        }
        match &self.pin_dir {
            Some(directory) if self.unclaimed.contains(&ifindex) => {
                attach::remove_pinned(directory, ifindex)?;
                self.unclaimed.remove(&ifindex);
                Ok(())
            }
            _ => Err(AttachError::NotAttached { ifindex }),
        }
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

fn start_metadata(object: &mut Ebpf, types: &Btf) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint =
        object.program_mut(METADATA).ok_or(ProgramError::UnexpectedProgramType)?.try_into()?;
    program.load(TRACEPOINT, types)?;
    program.attach().map(drop)
}
