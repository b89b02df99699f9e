//! Opening devices: which mode, which queues, and why not a better one.

use culvert_ebpf::{AttachError, Programs, TableError, XdpMode};
use culvert_model::{Attach, ModePreference, UnderlayTx};
use culvert_port::device::{Device as NetDevice, DeviceError};
use culvert_port::{
    Arena, BindMode, PacketError, PacketOptions, PacketTx, Tap, TapError, TapOptions, Xsk,
    XskConfig, XskError,
};

use crate::limits::{SLOTS_PER_LINK, SLOTS_PER_PORT, link_slot_base, port_slot_base};
use crate::worker::device::{Device, Io, Role};

/// How a device's AF_XDP sockets run.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The device writes into the arena.
    ZeroCopy,
    /// The driver runs the program, the kernel copies.
    Native,
    /// The kernel's stack runs the program and copies.
    Generic,
    /// No XDP at all: a TAP.
    Tap,
}

impl Mode {
    /// Its name in configuration and status.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::ZeroCopy => "zero-copy",
            Mode::Native => "native",
            Mode::Generic => "generic",
            Mode::Tap => "tap",
        }
    }
}

/// A mode that was tried before the one in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The mode.
    pub mode: Mode,
    /// Why it is not in use.
    pub reason: String,
}

/// Why a device cannot carry a port or the underlay.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Name a device that exists in this network namespace.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Reduce the device's queues (`ethtool -L`).
    #[error("{name} has {queues} receive queues; a port serves at most {limit} (see ethtool -L)")]
    TooManyQueues {
        /// The device.
        name: String,
        /// Its receive queues.
        queues: u32,
        /// The most that we serve.
        limit: u32,
    },
    /// Choose another mode, or `auto`.
    #[error("{name} cannot be opened: {}", list(.refusals))]
    NoMode {
        /// The device.
        name: String,
        /// What each mode said.
        refusals: Vec<Refusal>,
    },
    /// See the source.
    #[error("{name}: {source}")]
    Tap {
        /// The device.
        name: String,
        /// What went wrong.
        source: TapError,
    },
}

fn list(refusals: &[Refusal]) -> String {
    let each = refusals.iter().map(|r| format!("{}: {}", r.mode.name(), r.reason));
    each.collect::<Vec<_>>().join("; ")
}

/// One failed attempt.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Socket(#[from] XskError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// An opened device: what workers get, and what status shows.
pub struct Opened {
    /// One per queue.
    pub devices: Vec<Device>,
    /// The kernel's index of the device; 0 for a TAP that may have moved.
    pub ifindex: u32,
    /// The mode in use.
    pub mode: Mode,
    /// Better modes that were refused.
    pub refusals: Vec<Refusal>,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
}

/// What is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is for.
    pub role: Role,
    /// The device.
    pub attach: Attach,
    /// The mode asked for.
    pub mode: ModePreference,
    /// How the underlay transmits; not used for tenants.
    pub tx: UnderlayTx,
}

/// The modes to try, best first.
///
/// A native program on a virtual device turns the far end's segmentation offloads off, which costs
/// more than it gains: there generic comes first.
fn modes(preference: ModePreference, driver: &str) -> &'static [Mode] {
    let is_virtual = matches!(driver, "veth" | "tun" | "bridge" | "netkit");
    match preference {
        ModePreference::ZeroCopy => &[Mode::ZeroCopy],
        ModePreference::Native => &[Mode::Native],
        ModePreference::Generic => &[Mode::Generic],
        ModePreference::Auto if is_virtual => &[Mode::Generic, Mode::Native],
        ModePreference::Auto => &[Mode::ZeroCopy, Mode::Native, Mode::Generic],
    }
}

/// Opens a device for its role.
///
/// # Errors
/// [`OpenError`]; nothing stays behind.
pub fn open(
    programs: &mut Programs,
    arena: &'static Arena,
    wanted: &Wanted,
) -> Result<Opened, OpenError> {
    match &wanted.attach {
        Attach::Tap { ifname } => open_tap(wanted.role, ifname.as_str()),
        Attach::Xdp { ifname } => open_xdp(programs, arena, wanted, ifname.as_str()),
    }
}

fn open_tap(role: Role, name: &str) -> Result<Opened, OpenError> {
    let tap = Tap::open(name, TapOptions::default())
        .map_err(|source| OpenError::Tap { name: name.to_owned(), source })?;
    let mtu = NetDevice::by_name(name)?.mtu()?;
    let device = Device::new(role, Io::Tap(Box::new(tap)), mtu);
    Ok(Opened { devices: vec![device], ifindex: 0, mode: Mode::Tap, refusals: Vec::new(), mtu })
}

fn open_xdp(
    programs: &mut Programs,
    arena: &'static Arena,
    wanted: &Wanted,
    name: &str,
) -> Result<Opened, OpenError> {
    let net = NetDevice::by_name(name)?;
    let (ifindex, mtu) = (net.ifindex(), net.mtu()?);
    let queues = net.queues()?.rx.max(1);
    let limit = match wanted.role {
        Role::Tenant(_) => SLOTS_PER_PORT,
        Role::Underlay(_) => SLOTS_PER_LINK,
    };
    if queues > limit {
        return Err(OpenError::TooManyQueues { name: name.to_owned(), queues, limit });
    }
    // A driver that does not say its name gets the order of a real one.
    let driver = net.driver().unwrap_or_default();
    let mut refusals = Vec::new();
    for mode in modes(wanted.mode, &driver) {
        match open_in(programs, arena, wanted, &net, queues, *mode) {
            Ok(mut devices) => {
                let features = net.features().unwrap_or_default();
                for device in &mut devices {
                    device.mtu = mtu;
                    device.segments_udp = segments_udp(wanted, &features);
                    device.packet_only =
                        is_underlay(wanted.role) && wanted.tx == UnderlayTx::Packet;
                }
                return Ok(Opened { devices, ifindex, mode: *mode, refusals, mtu });
            }
            Err(error) => refusals.push(Refusal { mode: *mode, reason: error.to_string() }),
        }
    }
    Err(OpenError::NoMode { name: name.to_owned(), refusals })
}

const fn is_underlay(role: Role) -> bool {
    matches!(role, Role::Underlay(_))
}

/// Whether superframes of UDP go to the device whole.
pub fn segments_udp(wanted: &Wanted, features: &culvert_port::device::Features) -> bool {
    is_underlay(wanted.role)
        && match wanted.tx {
            UnderlayTx::Xdp => false,
            UnderlayTx::Packet => true,
            UnderlayTx::Auto => features.is_on("tx-udp-segmentation"),
        }
}

/// Tries one mode; takes everything back when it fails.
fn open_in(
    programs: &mut Programs,
    arena: &'static Arena,
    wanted: &Wanted,
    net: &NetDevice,
    queues: u32,
    mode: Mode,
) -> Result<Vec<Device>, TryError> {
    let ifindex = net.ifindex();
    let xdp = if mode == Mode::Generic { XdpMode::Generic } else { XdpMode::Native };
    let base = match wanted.role {
        Role::Tenant(port) => port_slot_base(port),
        Role::Underlay(link) => link_slot_base(link),
    };
    match wanted.role {
        Role::Tenant(_) => programs.attach_tenant(ifindex, xdp, base)?,
        Role::Underlay(_) => programs.attach_underlay(ifindex, xdp, base)?,
    }
    let mut devices = Vec::new();
    for queue in 0..queues {
        match open_queue(programs, arena, wanted.role, ifindex, queue, base + queue, mode) {
            Ok(device) => devices.push(device),
            Err(error) => {
                close(programs, arena, devices, ifindex, base);
                return Err(error);
            }
        }
    }
    Ok(devices)
}

fn open_queue(
    programs: &mut Programs,
    arena: &'static Arena,
    role: Role,
    ifindex: u32,
    queue: u32,
    slot: u32,
    mode: Mode,
) -> Result<Device, TryError> {
    let mut config = XskConfig::new(ifindex, queue);
    config.mode = if mode == Mode::ZeroCopy { BindMode::ZeroCopy } else { BindMode::Copy };
    let xsk = Xsk::open(arena, &config)?;
    let packet = PacketTx::open(ifindex, PacketOptions::default())?;
    programs.set_socket(slot, xsk.fd())?;
    let io = Io::Xdp { xsk: Box::new(xsk), packet: Box::new(packet) };
    Ok(Device::new(role, io, 0))
}

fn close(
    programs: &mut Programs,
    arena: &'static Arena,
    devices: Vec<Device>,
    ifindex: u32,
    base: u32,
) {
    let mut cache = culvert_port::FrameCache::new(arena);
    for (slot, device) in (base..).zip(devices) {
        if let Err(error) = programs.clear_socket(slot) {
            tracing::debug!(%error, slot, "socket slot cannot be cleared");
        }
        device.close(&mut cache);
    }
    if let Err(error) = programs.detach(ifindex) {
        tracing::warn!(%error, ifindex, "the program of a failed attempt stays attached");
    }
}
