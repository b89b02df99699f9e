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
    programs::{BtfTracePoint, Program, ProgramError, SchedClassifier, SocketFilter, Xdp},
};
use tracing::warn;

use crate::{
    attach::{self, DeviceLink, Hook},
    bpffs::{BpffsError, ensure_bpffs},
    counter::Counter,
    guard::Guard,
    object::{self, LoadError},
    privilege::chain,
    tables::{self, Carried, TableError},
};

const TENANT: &str = "tenant";
const UNDERLAY: &str = "underlay";
pub(crate) const HIDE: &str = "hide_underlay";
const HEAR: &str = "hear_underlay";
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
    pub(crate) const fn xdp(self) -> &'static str {
        match self {
            Self::Tenant => TENANT,
            Self::Underlay => UNDERLAY,
        }
    }

    /// What stands behind XDP while its mode changes.
    pub(crate) const fn guard(self) -> &'static str {
        match self {
            Self::Tenant => "guard_tenant",
            Self::Underlay => "guard_underlay",
        }
    }
}

pub(crate) struct Device {
    /// None at [`Hook::Packet`], which has a program in `guards`. None at another: it has neither the program of the
    /// old mode nor that of the new one, and a guard.
    pub(crate) link: Option<DeviceLink>,
    pub(crate) kind: ProgramKind,
    pub(crate) slots: Range<u32>,
    pub(crate) hook: Hook,
    /// A previous process had closed it before.
    pub(crate) was_closed: bool,
}

/// The tenant, underlay and metadata programs with their shared maps.
///
/// Devices are those of the network namespace that the calling thread is in. Dropping this value
/// leaves pinned links where they are, with nothing to receive their frames, so that they are
/// dropped; links that are not pinned are detached.
pub struct Programs {
    pub(crate) object: Ebpf,
    metadata: Result<(), String>,
    pub(crate) pin_dir: Option<PathBuf>,
    pub(crate) max_slots: u32,
    pub(crate) devices: BTreeMap<u32, Device>,
    pub(crate) unclaimed: BTreeSet<u32>,
    /// Programs behind XDP on devices that nothing else keeps closed.
    pub(crate) guards: BTreeMap<u32, Guard>,
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
        for name in [ProgramKind::Tenant.guard(), ProgramKind::Underlay.guard(), HIDE] {
            classifier(&mut object, name)
                .and_then(SchedClassifier::load)
                .map_err(|error| LoadError::from_kernel(&error))?;
        }
        filter(&mut object)
            .and_then(SocketFilter::load)
            .map_err(|error| LoadError::from_kernel(&error))?;
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

    /// Lets a packet socket hear what is the overlay's on an underlay device: what the XDP program would give to a
    /// socket. It counts as that one does.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn hear(&mut self, socket: BorrowedFd<'_>) -> Result<(), TableError> {
        let set = filter(&mut self.object).and_then(|program| program.attach(socket));
        set.map_err(|error| TableError::Filter { reason: chain(&error) })
    }

    /// Makes `addresses` the ones to which tunnel packets are taken from the underlay.
    ///
    /// # Errors
    /// [`TableError::Kernel`] above 1,024 addresses per family.
    pub fn set_vteps(&mut self, addresses: &[IpAddr]) -> Result<(), TableError> {
        tables::set_vteps(&mut self.object, addresses)
    }

    /// Makes `formats` those whose packets to our addresses are taken. A packet that none of them identifies is left to
    /// the host.
    ///
    /// # Errors
    /// [`TableError::Kernel`] above 64 carriers.
    pub fn set_carriers(&mut self, formats: &[Carried]) -> Result<(), TableError> {
        tables::set_carriers(&mut self.object, formats)
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

    /// The filter that [`hear`](Self::hear) gives to packet sockets, for inspection or a test run.
    #[must_use]
    pub fn filter_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd(HEAR)
    }

    /// The program that keeps from the host what packet sockets heard, for inspection or a test run.
    #[must_use]
    pub fn hide_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd(HIDE)
    }

    /// The program that stands behind XDP while a device of this kind changes its mode, for
    /// inspection or a test run.
    #[must_use]
    pub fn guard_fd(&self, kind: ProgramKind) -> Option<BorrowedFd<'_>> {
        self.fd(kind.guard())
    }

    fn fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        let fd = match self.object.program(name)? {
            Program::Xdp(program) => program.fd(),
            Program::SchedClassifier(program) => program.fd(),
            Program::SocketFilter(program) => program.fd(),
            _ => return None,
        };
        fd.ok().map(AsFd::as_fd)
    }
}

pub(crate) fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

pub(crate) fn classifier<'a>(
    object: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

fn filter(object: &mut Ebpf) -> Result<&mut SocketFilter, ProgramError> {
    object.program_mut(HEAR).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

fn start_metadata(object: &mut Ebpf, types: &Btf) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint =
        object.program_mut(METADATA).ok_or(ProgramError::UnexpectedProgramType)?.try_into()?;
    program.load(TRACEPOINT, types)?;
    program.attach().map(drop)
}
