//! XDP links: made, pinned, taken over from a previous process, removed.
//!
//! A pinned link outlives the process: the device keeps running the program, whose socket map is
//! then empty, so that frames meant for the overlay are dropped and never reach the host's stack.
//! The next process replaces the program in the link, which leaves no gap. A link cannot change its
//! mode: see [`guard`].

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramError, Xdp, XdpMode as AyaMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};
use thiserror::Error;
use tracing::warn;

use crate::{
    guard,
    netlink::{Attachment, xdp_attachment},
    privilege::{chain, missing, os_error},
};

const PIN_PREFIX: &str = "link-";

/// Where in the receive path a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// In the driver. On a veth this turns the TSO of the peer off.
    Native,
    /// Behind the driver, on the kernel's packet buffers. The only mode with
    /// [`FrameMeta::has_skb`](crate::FrameMeta::has_skb).
    Generic,
}

impl XdpMode {
    /// The name under which it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn to_aya(self) -> AyaMode {
        match self {
            Self::Native => AyaMode::Driver,
            Self::Generic => AyaMode::Skb,
        }
    }
}

/// Where a device's frames are taken from the kernel's receive path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// By an XDP program, which gives them to `AF_XDP` sockets.
    Xdp(XdpMode),
    /// By packet sockets that hear what [`Programs::hear`](crate::Programs::hear) lets them, and a program behind them
    /// (TCX, Linux 6.6) that keeps the same from the host. The device's receive coalescing stays on. Underlays only.
    Packet,
}

impl From<XdpMode> for Hook {
    fn from(mode: XdpMode) -> Hook {
        Hook::Xdp(mode)
    }
}

/// Why a program cannot be attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Check the interface's name and network namespace: it may be gone, or renumbered.
    #[error("no interface has index {ifindex} in this network namespace")]
    NoDevice {
        /// The index asked for.
        ifindex: u32,
    },
    /// Detach it first; each interface carries one program.
    #[error("interface {ifindex} already has a program of this process")]
    AlreadyAttached {
        /// The interface's index.
        ifindex: u32,
    },
    /// Nothing to do: there was no program of ours.
    #[error("interface {ifindex} has no program of this process")]
    NotAttached {
        /// The interface's index.
        ifindex: u32,
    },
    /// Another program is on the interface: remove it (`ip link set <dev> xdp off`, or the service
    /// that put it there), then try again.
    #[error("interface {ifindex} runs an XDP program of somebody else (program id {program_id})")]
    Busy {
        /// The interface's index.
        ifindex: u32,
        /// The other program's id, as `bpftool prog` shows it.
        program_id: u32,
    },
    /// Use the other mode, or lower the MTU: drivers refuse native XDP on large ones.
    #[error("interface {ifindex} does not take {} XDP: {reason}", mode.name())]
    Mode {
        /// The interface's index.
        ifindex: u32,
        /// The mode refused.
        mode: XdpMode,
        /// The kernel's answer.
        reason: String,
    },
    /// Take another mode, or make the device the underlay's first and change its mode then.
    #[error("interface {ifindex} is a tenant's: packet sockets receive on an underlay only")]
    TenantByPacket {
        /// The interface's index.
        ifindex: u32,
    },
    /// Give the process the capabilities named.
    #[error("attaching XDP to interface {ifindex} is refused: this process lacks {missing}")]
    Privilege {
        /// The interface's index.
        ifindex: u32,
        /// The capabilities that are missing.
        missing: String,
    },
    /// Load the programs with more slots, or choose a lower base.
    #[error("slot base {slot_base} of interface {ifindex} is not below max_slots {max_slots}")]
    SlotBase {
        /// The interface's index.
        ifindex: u32,
        /// The base asked for.
        slot_base: u32,
        /// The number of slots that exist.
        max_slots: u32,
    },
    /// Choose slots that no other interface has.
    #[error(
        "slot base {slot_base} of interface {ifindex} is within the slots of interface {other}"
    )]
    SlotTaken {
        /// The interface's index.
        ifindex: u32,
        /// The base asked for.
        slot_base: u32,
        /// The interface that has it.
        other: u32,
    },
    /// Nothing was changed: without the guard the device would be open for a moment. Read the
    /// reason; the guard takes Linux 6.6.
    #[error("interface {ifindex} cannot be kept closed while its XDP mode changes: {reason}")]
    Guard {
        /// The interface's index.
        ifindex: u32,
        /// What failed.
        reason: String,
    },
    /// The device drops everything that is meant for the overlay until it is attached again.
    #[error(
        "interface {ifindex} took neither the new XDP mode nor the old one again, and stays closed: {reason}"
    )]
    Closed {
        /// The interface's index.
        ifindex: u32,
        /// What each attempt said.
        reason: String,
    },
    /// Look at the pin directory: something else is in it, or it is not writable.
    #[error("pin {path}: {reason}")]
    Pin {
        /// The pin's path.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A step that does not fail on a sound system: read the reason.
    #[error("interface {ifindex}: {reason}")]
    Kernel {
        /// The interface's index.
        ifindex: u32,
        /// What failed.
        reason: String,
    },
}

/// A program on a device: attached while this value, or its pin, exists.
#[derive(Debug)]
pub(crate) struct DeviceLink {
    link: FdLink,
    pin: Option<PathBuf>,
}

impl DeviceLink {
    /// Detaches, and returns once the device runs the program no more.
    pub(crate) fn remove(self) -> Result<(), AttachError> {
        // The pin goes first: the last reference to go is then our descriptor, whose closing
        // detaches at once. A pin that goes last detaches some time later.
        if let Some(pin) = &self.pin {
            remove_pin(pin)?;
        }
        drop(self.link);
        Ok(())
    }
}

pub(crate) fn pin_path(directory: &Path, ifindex: u32) -> PathBuf {
    directory.join(format!("{PIN_PREFIX}{ifindex}"))
}

/// The devices whose links, or guards, are pinned in `directory`.
pub(crate) fn pinned(directory: &Path) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let ifindex = name.to_str().and_then(|name| {
            name.strip_prefix(PIN_PREFIX).or_else(|| name.strip_prefix(guard::PIN_PREFIX))
        });
        found.extend(ifindex.and_then(|ifindex| ifindex.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Removes what a previous process pinned for `ifindex`: the link, and a guard that a change of
/// mode left behind.
pub(crate) fn remove_pinned(directory: &Path, ifindex: u32) -> Result<(), AttachError> {
    let pin = pin_path(directory, ifindex);
    if pin.exists() {
        let link = open_pin(&pin)?;
        DeviceLink { link, pin: Some(pin) }.remove()?;
    }
    remove_pin(&guard::pin_path(directory, ifindex))
}

/// The link that a previous process left for the device, and its mode, if that link is what drives
/// the device. A pin that drives nothing any more is removed.
///
/// A device's index may have passed to another device since the link was pinned: only a link whose
/// program is the one that runs there now is worth taking over.
pub(crate) fn inherited(
    directory: &Path,
    ifindex: u32,
) -> Result<Option<(DeviceLink, XdpMode)>, AttachError> {
    let pin = pin_path(directory, ifindex);
    if !pin.exists() {
        return Ok(None);
    }
    let link = open_pin(&pin)?;
    let info = link
        .info()
        .map_err(|error| AttachError::Pin { path: pin.clone(), reason: chain(&error) })?;
    let link = DeviceLink { link, pin: Some(pin) };
    match running(ifindex)? {
        Some(Attachment { mode: Some(mode), program_id }) if program_id == info.program_id() => {
            Ok(Some((link, mode)))
        }
        _ => {
            warn!(ifindex, "removing a pinned XDP link that drives no device");
            link.remove()?;
            Ok(None)
        }
    }
}

/// Puts `program` on a device by a new link.
pub(crate) fn attach(
    program: &mut Xdp,
    ifindex: u32,
    mode: XdpMode,
    pin_dir: Option<&Path>,
) -> Result<DeviceLink, AttachError> {
    let link = create(program, ifindex, mode)?;
    match pin_dir.map(|directory| pin_path(directory, ifindex)) {
        None => Ok(DeviceLink { link, pin: None }),
        Some(path) => {
            let pinned = link
                .pin(&path)
                .map_err(|error| AttachError::Pin { path: path.clone(), reason: chain(&error) })?;
            Ok(DeviceLink { link: pinned.into(), pin: Some(path) })
        }
    }
}

/// Puts `program` in the place of the one that the link runs, without a gap.
pub(crate) fn replace(
    program: &mut Xdp,
    old: DeviceLink,
    ifindex: u32,
) -> Result<DeviceLink, AttachError> {
    let pin = old.pin;
    let link = replace_in(program, old.link, ifindex)?;
    Ok(DeviceLink { link, pin })
}

fn running(ifindex: u32) -> Result<Option<Attachment>, AttachError> {
    xdp_attachment(ifindex).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => AttachError::NoDevice { ifindex },
        _ => AttachError::Kernel { ifindex, reason: format!("rtnetlink: {error}") },
    })
}

fn replace_in(program: &mut Xdp, link: FdLink, ifindex: u32) -> Result<FdLink, AttachError> {
    let kernel = |reason| AttachError::Kernel { ifindex, reason };
    let link = XdpLink::try_from(link).map_err(|error| kernel(chain(&error)))?;
    let id = program
        .attach_to_link(link)
        .map_err(|error| kernel(format!("replacing the program of a link: {}", chain(&error))))?;
    let link = program.take_link(id).map_err(|error| kernel(chain(&error)))?;
    FdLink::try_from(link).map_err(|error| kernel(chain(&error)))
}

fn create(program: &mut Xdp, ifindex: u32, mode: XdpMode) -> Result<FdLink, AttachError> {
    let id = program
        .attach_to_if_index(ifindex, mode.to_aya())
        .map_err(|error| refused(&error, ifindex, mode))?;
    let link = program
        .take_link(id)
        .map_err(|error| AttachError::Kernel { ifindex, reason: chain(&error) })?;
    FdLink::try_from(link).map_err(|error: LinkError| AttachError::Kernel {
        ifindex,
        reason: format!("the kernel has no XDP links: {}", chain(&error)),
    })
}

pub(crate) fn refused(error: &ProgramError, ifindex: u32, mode: XdpMode) -> AttachError {
    match os_error(error) {
        Some(libc::ENODEV) => AttachError::NoDevice { ifindex },
        Some(libc::EPERM) => AttachError::Privilege { ifindex, missing: missing() },
        Some(libc::EBUSY | libc::EEXIST) => {
            let program_id =
                xdp_attachment(ifindex).ok().flatten().map_or(0, |found| found.program_id);
            AttachError::Busy { ifindex, program_id }
        }
        _ => AttachError::Mode { ifindex, mode, reason: chain(error) },
    }
}

fn open_pin(pin: &Path) -> Result<FdLink, AttachError> {
    let link = PinnedLink::from_pin(pin)
        .map_err(|error| AttachError::Pin { path: pin.to_owned(), reason: chain(&error) })?;
    Ok(link.into())
}

pub(crate) fn remove_pin(pin: &Path) -> Result<(), AttachError> {
    match fs::remove_file(pin) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(AttachError::Pin { path: pin.to_owned(), reason: error.to_string() }),
    }
}
