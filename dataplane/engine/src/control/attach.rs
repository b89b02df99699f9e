//! Opening devices: which mode, which queues, and why not a better one.

use std::ops::Range;
use std::time::Duration;

use culvert_ebpf::{AttachError, Hook, ProgramKind, Programs, TableError, XdpMode};
use culvert_model::{Attach, ModePreference, UnderlayRx, UnderlayTx};
use culvert_port::device::{Device as NetDevice, DeviceError, Features};
use culvert_port::{
    Arena, BindMode, Fanout, FrameCache, PacketError, PacketOptions, PacketRx, PacketRxOptions,
    PacketTx, Tap, TapError, TapOptions, TapWatch, Xsk, XskConfig, XskError,
};

use super::slots::Slots;
use crate::limits::{SLOTS_PER_LINK, SLOTS_PER_PORT};
use crate::worker::cutter::{Cutter, Cutters};
use crate::worker::device::{AttachmentId, Device, Facts, Io, Role};
use crate::worker::offload::Offload;

/// How a device's frames come to us.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The device writes into the arena.
    ZeroCopy,
    /// The driver runs the program, the kernel copies.
    Native,
    /// The kernel's stack runs the program and copies.
    Generic,
    /// Packet sockets hear them behind the device's and the kernel's receive coalescing.
    Packet,
    /// By the descriptor of a TAP.
    Tap,
}

impl Mode {
    /// Its name in configuration and status.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::ZeroCopy => "zero-copy",
            Mode::Native => "native",
            Mode::Generic => "generic",
            Mode::Packet => "packet",
            Mode::Tap => "tap",
        }
    }

    /// Where in the kernel they are taken; not used for a TAP.
    pub(super) const fn hook(self) -> Hook {
        match self {
            Mode::Generic | Mode::Tap => Hook::Xdp(XdpMode::Generic),
            Mode::Native | Mode::ZeroCopy => Hook::Xdp(XdpMode::Native),
            Mode::Packet => Hook::Packet,
        }
    }

    /// Whether frames leave by packet sockets alone, as there are no rings.
    const fn has_rings(self) -> bool {
        matches!(self, Mode::ZeroCopy | Mode::Native | Mode::Generic)
    }

    /// Whether sockets of this mode and of another are bound alike, so that they can stay.
    pub(super) fn binds_like(self, other: Mode) -> bool {
        let copies = |mode| matches!(mode, Mode::Native | Mode::Generic);
        self == other || copies(self) && copies(other)
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
    #[error("{name} cannot be opened: {}{}", list(.refusals), hint(.refusals))]
    NoMode {
        /// The device.
        name: String,
        /// What each mode said.
        refusals: Vec<Refusal>,
    },
    /// Remove ports, or reduce their devices' queues: so many sockets are open at once at most.
    #[error(
        "{name} needs {queues} sockets in a row, and of {} there are not so many left",
        crate::limits::MAX_SLOTS
    )]
    NoSlots {
        /// The device.
        name: String,
        /// Its receive queues.
        queues: u32,
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
pub(super) enum TryError {
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
    /// Which one it is.
    pub id: AttachmentId,
    /// One per queue.
    pub devices: Vec<Device>,
    /// The kernel's index of the device, in the network namespace where it was opened.
    pub ifindex: u32,
    /// The socket slots of its queues; none of a TAP.
    pub slots: Range<u32>,
    /// The mode in use.
    pub mode: Mode,
    /// Better modes that were refused.
    pub refusals: Vec<Refusal>,
    /// What else is known of it.
    pub facts: Facts,
    /// Of a TAP: whether it still exists.
    pub tap: Option<TapWatch>,
}

/// A single refusal means that a mode was asked for by name.
fn hint(refusals: &[Refusal]) -> &'static str {
    match refusals {
        [_] => "; `mode = \"auto\"` takes the best mode that the device has",
        _ => "",
    }
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
    /// How the underlay receives; not used for tenants.
    pub rx: UnderlayRx,
    /// How it transmits; not used for tenants.
    pub tx: UnderlayTx,
}

/// Whether what the device passes on may never have been on a wire. The kernel leaves checksums
/// of such frames to be completed, and superframes uncut.
fn is_virtual(driver: &str) -> bool {
    matches!(driver, "veth" | "tun" | "bridge" | "netkit" | "macvlan" | "ipvlan")
}

/// The modes to try, best first.
///
/// A native program on a virtual device turns the far end's segmentation offloads off, which costs
/// more than it gains: there generic comes first.
pub(super) fn modes(wanted: &Wanted, driver: &str) -> &'static [Mode] {
    if is_underlay(wanted.role) && wanted.rx == UnderlayRx::Packet {
        return &[Mode::Packet];
    }
    match wanted.mode {
        ModePreference::ZeroCopy => &[Mode::ZeroCopy],
        ModePreference::Native => &[Mode::Native],
        ModePreference::Generic => &[Mode::Generic],
        ModePreference::Auto if is_virtual(driver) => &[Mode::Generic, Mode::Native],
        ModePreference::Auto => &[Mode::ZeroCopy, Mode::Native, Mode::Generic],
    }
}

/// What a frame is taken for about which the kernel told nothing, as in native and zero-copy mode.
///
/// On a virtual device a checksum that equals the bare pseudo-header sum is one that the sender's
/// stack left to be completed. From a wire it is a complete one that happens to be, or was damaged
/// to, that value, one in 65,536: completing it would hide the damage. In generic mode a frame may
/// have been merged by GRO, which leaves a bare sum on any device; there the metadata tells, and
/// only a kernel without it leaves us to guess.
fn unmarked(driver: &str, mode: Mode) -> Offload {
    let complete = !is_virtual(driver) && matches!(mode, Mode::Native | Mode::ZeroCopy);
    Offload { known: complete, ..Offload::default() }
}

/// The XDP program of a role.
pub(super) const fn kind(role: Role) -> ProgramKind {
    match role {
        Role::Tenant(_) => ProgramKind::Tenant,
        Role::Underlay(_) => ProgramKind::Underlay,
    }
}

/// What devices are opened with.
pub struct Opener {
    /// The XDP programs.
    pub programs: Programs,
    /// The packet memory.
    pub arena: &'static Arena,
    slots: Slots,
    next_id: u64,
}

impl Opener {
    /// An opener of devices.
    pub fn new(programs: Programs, arena: &'static Arena) -> Self {
        Opener { programs, arena, slots: Slots::new(crate::limits::MAX_SLOTS), next_id: 1 }
    }

    /// Opens a device for its role. A queue that somebody else still has is waited for so long.
    ///
    /// # Errors
    /// [`OpenError`]; the device is then as it was: open or closed.
    pub fn open(&mut self, wanted: &Wanted, busy_wait: Duration) -> Result<Opened, OpenError> {
        match &wanted.attach {
            Attach::Tap { ifname } => self.open_tap(wanted.role, ifname.as_str()),
            Attach::Xdp { ifname } => self.open_xdp(wanted, ifname.as_str(), busy_wait),
        }
    }

    fn new_id(&mut self) -> AttachmentId {
        self.next_id += 1;
        AttachmentId(self.next_id)
    }

    fn open_tap(&mut self, role: Role, name: &str) -> Result<Opened, OpenError> {
        let failed = |source| OpenError::Tap { name: name.to_owned(), source };
        let tap = Tap::open(name, TapOptions::default()).map_err(failed)?;
        let watch = tap.watch().map_err(|source| {
            failed(TapError::Os { step: "watch the existence", name: name.to_owned(), source })
        })?;
        let net = NetDevice::by_name(name)?;
        let unmarked = Offload::default();
        let cutters = Cutters::all(Cutter::Dataplane);
        let facts = Facts { mtu: net.mtu()?, cutters, packet_only: false, unmarked };
        let id = self.new_id();
        let mut device = Device::new(role, Io::Tap(Box::new(tap)), facts.mtu);
        device.attachment = id;
        Ok(Opened {
            id,
            devices: vec![device],
            ifindex: net.ifindex(),
            slots: 0..0,
            mode: Mode::Tap,
            refusals: Vec::new(),
            facts,
            tap: Some(watch),
        })
    }

    fn open_xdp(
        &mut self,
        wanted: &Wanted,
        name: &str,
        busy_wait: Duration,
    ) -> Result<Opened, OpenError> {
        let net = NetDevice::by_name(name)?;
        let (ifindex, mtu) = (net.ifindex(), net.mtu()?);
        let queues = queues(&net, wanted.role, name)?;
        // A driver that does not say its name gets the order of a real one.
        let driver = net.driver().unwrap_or_default();
        let features = net.features().unwrap_or_default();
        let facts_in = |mode| facts(wanted, &driver, mode, mtu, &features);
        let no_slots = || OpenError::NoSlots { name: name.to_owned(), queues };
        let slots = self.slots.take(queues).ok_or_else(no_slots)?;
        let mut sockets = Sockets {
            id: self.new_id(),
            role: wanted.role,
            ifindex,
            slots: slots.clone(),
            facts: facts_in(Mode::Generic),
            busy_wait,
        };
        let mut refusals = Vec::new();
        for mode in modes(wanted, &driver) {
            sockets.facts = facts_in(*mode);
            match self.open_in(&sockets, *mode) {
                Ok(devices) => {
                    let (id, mode, facts) = (sockets.id, *mode, sockets.facts);
                    let tap = None;
                    return Ok(Opened { id, devices, ifindex, slots, mode, refusals, facts, tap });
                }
                Err(error) => refusals.push(Refusal { mode: *mode, reason: error.to_string() }),
            }
        }
        self.slots.give(slots);
        Err(OpenError::NoMode { name: name.to_owned(), refusals })
    }

    /// Tries one mode; takes everything back when it fails, so that a device that was closed
    /// before stays closed.
    fn open_in(&mut self, sockets: &Sockets, mode: Mode) -> Result<Vec<Device>, TryError> {
        let (ifindex, slots) = (sockets.ifindex, sockets.slots.clone());
        self.programs.attach(kind(sockets.role), ifindex, mode.hook(), slots)?;
        self.open_sockets(sockets, mode).inspect_err(|_| self.abandon(ifindex))
    }

    /// Opens the sockets of all queues and puts them into their slots, or none.
    pub(super) fn open_sockets(
        &mut self,
        sockets: &Sockets,
        mode: Mode,
    ) -> Result<Vec<Device>, TryError> {
        let mut devices = Vec::new();
        let mut group = None;
        for (queue, slot) in sockets.slots.clone().enumerate() {
            let opened = match mode {
                Mode::Packet => self.open_packet(sockets, &mut group),
                _ => self.open_queue(sockets, queue as u32, slot, mode),
            };
            match opened {
                Ok(device) => devices.push(device),
                Err(error) => {
                    self.close_sockets(devices);
                    return Err(error);
                }
            }
        }
        Ok(devices)
    }

    fn open_queue(
        &mut self,
        sockets: &Sockets,
        queue: u32,
        slot: u32,
        mode: Mode,
    ) -> Result<Device, TryError> {
        let mut config = XskConfig::new(sockets.ifindex, queue);
        config.mode = if mode == Mode::ZeroCopy { BindMode::ZeroCopy } else { BindMode::Copy };
        config.busy_wait = sockets.busy_wait;
        config.bursts = is_underlay(sockets.role);
        let xsk = Xsk::open(self.arena, &config)?;
        let packet = PacketTx::open(sockets.ifindex, PacketOptions::default())?;
        self.programs.set_socket(slot, xsk.fd())?;
        Ok(sockets.device(Io::Xdp { xsk: Box::new(xsk), packet: Box::new(packet) }))
    }

    /// Opens one of the packet sockets that share a device, of which the first makes their group.
    fn open_packet(
        &mut self,
        sockets: &Sockets,
        group: &mut Option<u16>,
    ) -> Result<Device, TryError> {
        let fanout = match *group {
            Some(group) => Fanout::Join(group),
            None if sockets.slots.len() > 1 => Fanout::New,
            None => Fanout::Alone,
        };
        let options = PacketRxOptions { fanout, ..PacketRxOptions::default() };
        let rx = PacketRx::open(sockets.ifindex, options)?;
        *group = rx.group();
        let tx = PacketTx::open(sockets.ifindex, PacketOptions::default())?;
        self.programs.hear(rx.fd())?;
        Ok(sockets.device(Io::Packet { rx: Box::new(rx), tx: Box::new(tx) }))
    }

    /// Closes sockets; the kernel takes them out of their slots.
    pub(super) fn close_sockets(&self, devices: Vec<Device>) {
        let mut cache = FrameCache::new(self.arena);
        devices.into_iter().for_each(|device| device.close(&mut cache));
    }

    /// Undoes [`open`](Self::open).
    pub(super) fn undo(&mut self, opened: Opened) {
        self.close_sockets(opened.devices);
        self.free_slots(opened.slots);
        if opened.mode != Mode::Tap {
            self.abandon(opened.ifindex);
        }
    }

    /// Takes sockets out of their slots while they are open. False where the kernel refuses.
    pub(super) fn empty_slots(&mut self, slots: Range<u32>) -> bool {
        let mut emptied = true;
        for slot in slots {
            if let Err(error) = self.programs.clear_socket(slot) {
                tracing::warn!(%error, "a socket stays in its slot until it is closed");
                emptied = false;
            }
        }
        emptied
    }

    /// Gives slots back whose sockets are closed, or not in them any more.
    pub(super) fn free_slots(&mut self, slots: Range<u32>) {
        if !slots.is_empty() {
            self.slots.give(slots);
        }
    }

    fn abandon(&mut self, ifindex: u32) {
        if let Err(error) = self.programs.abandon(ifindex) {
            tracing::warn!(%error, ifindex, "the program of a failed attempt stays attached");
        }
    }
}

/// What the sockets of one device have in common.
pub(super) struct Sockets {
    pub(super) id: AttachmentId,
    pub(super) role: Role,
    pub(super) ifindex: u32,
    pub(super) slots: Range<u32>,
    pub(super) facts: Facts,
    pub(super) busy_wait: Duration,
}

impl Sockets {
    fn device(&self, io: Io) -> Device {
        let mut device = Device::new(self.role, io, self.facts.mtu);
        device.attachment = self.id;
        device.update(self.facts);
        device
    }
}

/// The receive queues of a device, as far as a role allows so many.
pub(super) fn queues(net: &NetDevice, role: Role, name: &str) -> Result<u32, OpenError> {
    let queues = net.queues()?.rx.max(1);
    let limit = match role {
        Role::Tenant(_) => SLOTS_PER_PORT,
        Role::Underlay(_) => SLOTS_PER_LINK,
    };
    if queues > limit {
        return Err(OpenError::TooManyQueues { name: name.to_owned(), queues, limit });
    }
    Ok(queues)
}

/// What workers need to know of a device.
pub(super) fn facts(
    wanted: &Wanted,
    driver: &str,
    mode: Mode,
    mtu: u32,
    features: &Features,
) -> Facts {
    Facts {
        mtu,
        cutters: cutters(wanted, mode, features),
        packet_only: is_underlay(wanted.role)
            && (wanted.tx == UnderlayTx::Packet || !mode.has_rings()),
        unmarked: unmarked(driver, mode),
    }
}

/// The same, as the device is at present.
pub(super) fn present_facts(wanted: &Wanted, mode: Mode, mtu: u32) -> Facts {
    let net = NetDevice::by_name(wanted.attach.ifname().as_str());
    let features = net.as_ref().ok().and_then(|net| net.features().ok()).unwrap_or_default();
    let driver = net.ok().and_then(|net| net.driver().ok()).unwrap_or_default();
    facts(wanted, &driver, mode, mtu, &features)
}

const fn is_underlay(role: Role) -> bool {
    matches!(role, Role::Underlay(_))
}

/// Who cuts superframes: the device what it segments, and the kernel the rest where it would copy each frame of a ring,
/// so that it may as well cut.
pub(super) fn cutters(wanted: &Wanted, mode: Mode, features: &Features) -> Cutters {
    if !is_underlay(wanted.role) || wanted.tx == UnderlayTx::Xdp {
        return Cutters::all(Cutter::Dataplane);
    }
    let rest = match wanted.tx == UnderlayTx::Packet || mode != Mode::ZeroCopy {
        true => Cutter::Kernel,
        false => Cutter::Dataplane,
    };
    let of = |feature| if features.is_on(feature) { Cutter::Device } else { rest };
    Cutters {
        udp: of("tx-udp-segmentation"),
        tcp_v4: of("tx-tcp-segmentation"),
        tcp_v6: of("tx-tcp6-segmentation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_was_on_a_wire_may_have_a_checksum_to_complete() {
        for mode in [Mode::ZeroCopy, Mode::Native] {
            for driver in ["veth", "tun", "bridge", "macvlan"] {
                assert!(!unmarked(driver, mode).known, "{driver}");
            }
            for driver in ["mlx5_core", "ice", "virtio_net", "igb", ""] {
                let off = unmarked(driver, mode);
                assert_eq!(off, Offload { known: true, ..Offload::default() }, "{driver}");
            }
        }
        assert!(!unmarked("ice", Mode::Generic).known, "GRO may have merged it");
    }

    #[test]
    fn a_card_that_moves_to_native_mode_is_guessed_about_no_more() {
        let wanted = Wanted {
            role: Role::Underlay(0),
            attach: Attach::Xdp { ifname: "eth0".parse().unwrap() },
            mode: ModePreference::Auto,
            rx: UnderlayRx::Xdp,
            tx: UnderlayTx::Auto,
        };
        let features = Features::default();
        let generic = facts(&wanted, "igb", Mode::Generic, 1500, &features);
        let native = facts(&wanted, "igb", Mode::Native, 1500, &features);
        assert!(!generic.unmarked.known && native.unmarked.known);
        assert_ne!(generic, native, "the workers are told");
    }

    #[test]
    fn a_device_cuts_what_it_segments_and_the_rest_is_cut_where_that_is_cheapest() {
        use Cutter::{Dataplane, Device, Kernel};
        let underlay = |tx| Wanted {
            role: Role::Underlay(0),
            attach: Attach::Xdp { ifname: "eth0".parse().unwrap() },
            mode: ModePreference::Auto,
            rx: UnderlayRx::Xdp,
            tx,
        };
        for (tx, mode, rest) in [
            (UnderlayTx::Auto, Mode::Packet, Kernel),
            (UnderlayTx::Auto, Mode::Generic, Kernel),
            (UnderlayTx::Auto, Mode::Native, Kernel),
            (UnderlayTx::Auto, Mode::ZeroCopy, Dataplane),
            (UnderlayTx::Packet, Mode::ZeroCopy, Kernel),
        ] {
            for kinds in 0..8 {
                let is_on = |kind: usize| kinds & 1 << kind != 0;
                let names = ["tx-udp-segmentation", "tx-tcp-segmentation", "tx-tcp6-segmentation"];
                let on = (0..3).filter(|kind| is_on(*kind)).map(|kind| names[kind]);
                let features = on.collect::<Features>();
                let [udp, tcp_v4, tcp_v6] = [0, 1, 2].map(|k| if is_on(k) { Device } else { rest });
                let found = cutters(&underlay(tx), mode, &features);
                assert_eq!(found, Cutters { udp, tcp_v4, tcp_v6 }, "{tx:?} {mode:?} {features:?}");
                let tenant = Wanted { role: Role::Tenant(0), ..underlay(tx) };
                assert_eq!(cutters(&tenant, mode, &features), Cutters::all(Dataplane));
                let rings = cutters(&underlay(UnderlayTx::Xdp), mode, &features);
                assert_eq!(rings, Cutters::all(Dataplane));
            }
        }
    }

    #[test]
    fn sockets_stay_where_only_the_program_moves() {
        assert!(Mode::Generic.binds_like(Mode::Native));
        assert!(!Mode::Native.binds_like(Mode::ZeroCopy));
        assert!(!Mode::Generic.binds_like(Mode::Packet) && Mode::Packet.binds_like(Mode::Packet));
        assert_ne!(Mode::Generic.hook(), Mode::Native.hook());
        assert_eq!(Mode::ZeroCopy.hook(), Mode::Native.hook());
    }
}
