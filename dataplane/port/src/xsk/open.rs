//! Opening an AF_XDP socket: registering the arena, sizing and mapping rings, binding.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::{SOL_SOCKET, SOL_XDP};
use thiserror::Error;

use crate::arena::Arena;
use crate::frame::{CHUNK_LEN, TX_META_LEN};
use crate::ring::{Consumer, Desc, Producer};
use crate::sys::{self, Mapping, errno};
use crate::xsk::share::Registration;
use crate::xsk::{BindMode, BoundMode, XskConfig};

/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`, since Linux 6.17.
pub(super) const XDP_MAX_TX_SKB_BUDGET: i32 = 9;

/// Legal ring sizes; the kernel allows more, but no port needs it.
const RING_SIZE_MAX: u32 = 1 << 15;

/// Longest pause between two attempts to bind to a queue that its last socket has not released yet. The kernel
/// takes a grace period for that, on an idle machine some 20 ms.
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(8);

/// Why a socket could not be opened.
#[derive(Debug, Error)]
pub enum XskError {
    /// The kernel has no AF_XDP: use one built with `CONFIG_XDP_SOCKETS`.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    NoXdpSockets,
    /// The kernel is older than Linux 6.6: boot a newer one.
    #[error(
        "this kernel has no AF_XDP sockets for packets of several buffers (XDP_USE_SG): Linux 6.6 or later is \
         needed, this is Linux {release}"
    )]
    NoMultiBuffer {
        /// The kernel's release.
        release: String,
    },
    /// Run with the capability named.
    #[error("no permission to {step}: {capability} is missing")]
    Permission {
        /// What was attempted.
        step: &'static str,
        /// The capability that it takes.
        capability: &'static str,
    },
    /// Configure a power of two within the limits.
    #[error(
        "the {ring} ring must have a power of two from 64 to {RING_SIZE_MAX} entries, not {size}"
    )]
    RingSize {
        /// Which ring.
        ring: &'static str,
        /// The size configured.
        size: u32,
    },
    /// The kernel may not pin the arena: raise RLIMIT_MEMLOCK (systemd: `LimitMEMLOCK=infinity`),
    /// grant CAP_IPC_LOCK, or configure a smaller arena.
    #[error("cannot pin {len_bytes} bytes for AF_XDP: raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK")]
    Memory {
        /// Length of the arena in bytes.
        len_bytes: u64,
    },
    /// The interface is gone; bring it back, or remove the port.
    #[error("no interface has index {ifindex} in this network namespace")]
    NoDevice {
        /// The index configured.
        ifindex: u32,
    },
    /// The driver cannot do this mode: use another one.
    #[error("the driver has no {mode} AF_XDP (interface {ifindex})")]
    ModeUnsupported {
        /// The interface.
        ifindex: u32,
        /// The mode asked for.
        mode: BindMode,
    },
    /// The queue does not exist (see `ethtool -l`), or the kernel is too old for multi-buffer
    /// sockets (before 6.6): configure fewer queues, or turn `sg` off.
    #[error("interface {ifindex} refuses a socket on queue {queue}: {hint}")]
    Queue {
        /// The interface.
        ifindex: u32,
        /// The queue asked for.
        queue: u32,
        /// What is most likely wrong.
        hint: &'static str,
    },
    /// Another socket has the queue: stop the other program (`ss --xdp` names it).
    #[error("queue {queue} of interface {ifindex} is in use by another AF_XDP socket")]
    Busy {
        /// The interface.
        ifindex: u32,
        /// The queue asked for.
        queue: u32,
    },
    /// Close ports, or use fewer queues.
    #[error("too many AF_XDP sockets in this process")]
    TooMany,
    /// Anything else the kernel refused.
    #[error("cannot {step}: {source}")]
    Os {
        /// What was attempted.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A bound socket and its rings. Field order matters: a mapping keeps the socket alive, so the
/// rings are dropped before the descriptor, whose drop then releases the queue.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) rx: Consumer<Desc>,
    pub(super) tx: Producer<Desc>,
    pub(super) fill: Producer<u64>,
    pub(super) comp: Consumer<u64>,
    pub(super) fd: OwnedFd,
    pub(super) bound: BoundMode,
}

fn os(step: &'static str) -> impl Fn(io::Error) -> XskError {
    move |source| match errno(&source) {
        libc::EPERM | libc::EACCES => XskError::Permission { step, capability: "CAP_NET_ADMIN" },
        _ => XskError::Os { step, source },
    }
}

pub(super) fn open(arena: &'static Arena, cfg: &XskConfig) -> Result<Opened, XskError> {
    for (ring, size) in [
        ("RX", cfg.rx_size),
        ("TX", cfg.tx_size),
        ("fill", cfg.fill_size),
        ("completion", cfg.comp_size),
    ] {
        if !size.is_power_of_two() || !(64..=RING_SIZE_MAX).contains(&size) {
            return Err(XskError::RingSize { ring, size });
        }
    }
    let socket = new_socket()?;
    let fd = socket.as_fd();
    let shared = if cfg.mode == BindMode::Copy && cfg.sg { arena.registration() } else { None };
    let tx_meta_registered = match shared {
        Some(registration) => registration.tx_meta,
        None => register_arena(fd, arena)?,
    };
    for (name, size) in [
        (libc::XDP_UMEM_FILL_RING, cfg.fill_size),
        (libc::XDP_UMEM_COMPLETION_RING, cfg.comp_size),
        (libc::XDP_RX_RING, cfg.rx_size),
        (libc::XDP_TX_RING, cfg.tx_size),
    ] {
        sys::set_option(fd, SOL_XDP, name, &size).map_err(os("size an AF_XDP ring"))?;
    }
    let (rx, tx, fill, comp) = map_rings(fd, cfg)?;
    let tx_budget = set_budget(fd, cfg);
    if let Some(bytes) = cfg.sndbuf {
        sys::set_send_buffer(fd, bytes).map_err(os("size the send buffer"))?;
    }
    let busy_poll = set_busy_poll(fd, cfg);
    let sg = bind(fd, cfg, shared)?;
    let zero_copy = is_zero_copy(fd)?;
    let bound = BoundMode {
        zero_copy,
        sg,
        // With zero-copy it is the driver that must honour the request, and one that cannot
        // ignores it silently. In copy mode the kernel itself does.
        tx_meta: tx_meta_registered && !zero_copy,
        tx_budget,
        busy_poll,
    };
    Ok(Opened { rx, tx, fill, comp, fd: socket, bound })
}

/// A socket with neither memory nor rings.
pub(super) fn new_socket() -> Result<OwnedFd, XskError> {
    sys::socket(libc::AF_XDP, libc::SOCK_RAW).map_err(|e| match errno(&e) {
        libc::EAFNOSUPPORT => XskError::NoXdpSockets,
        libc::EPERM => {
            XskError::Permission { step: "open an AF_XDP socket", capability: "CAP_NET_RAW" }
        }
        _ => XskError::Os { step: "open an AF_XDP socket", source: e },
    })
}

/// Registers the whole arena as UMEM, with room for transmit metadata where the kernel has that.
pub(super) fn register_arena(fd: BorrowedFd<'_>, arena: &Arena) -> Result<bool, XskError> {
    let (addr, len) = arena.region();
    let mut reg = libc::xdp_umem_reg {
        addr,
        len,
        chunk_size: CHUNK_LEN as u32,
        headroom: 0,
        flags: libc::XDP_UMEM_TX_METADATA_LEN,
        tx_metadata_len: TX_META_LEN as u32,
    };
    let mut result = sys::set_option(fd, SOL_XDP, libc::XDP_UMEM_REG, &reg);
    if result.as_ref().is_err_and(|e| errno(e) == libc::EINVAL) {
        (reg.flags, reg.tx_metadata_len) = (0, 0);
        result = sys::set_option(fd, SOL_XDP, libc::XDP_UMEM_REG, &reg);
    }
    if result.as_ref().is_err_and(|e| errno(e) == libc::ENOBUFS) && sys::raise_memlock().is_ok() {
        result = sys::set_option(fd, SOL_XDP, libc::XDP_UMEM_REG, &reg);
    }
    match result {
        Ok(()) => Ok(reg.tx_metadata_len != 0),
        Err(e) if matches!(errno(&e), libc::ENOBUFS | libc::ENOMEM) => {
            Err(XskError::Memory { len_bytes: len })
        }
        Err(e) => Err(os("register the packet arena")(e)),
    }
}

type Rings = (Consumer<Desc>, Producer<Desc>, Producer<u64>, Consumer<u64>);

fn map_rings(fd: BorrowedFd<'_>, cfg: &XskConfig) -> Result<Rings, XskError> {
    let none = || libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let zero = libc::xdp_mmap_offsets { rx: none(), tx: none(), fr: none(), cr: none() };
    // SAFETY: the offsets are plain integers.
    let off = unsafe { sys::get_option(fd, SOL_XDP, libc::XDP_MMAP_OFFSETS, zero) }
        .map_err(os("read the layout of the AF_XDP rings"))?;
    if off.rx.flags == 0 {
        // Kernels before 5.4 answer with a shorter structure, without flags.
        return Err(XskError::NoXdpSockets);
    }
    let map = |off: &libc::xdp_ring_offset, entry_len: usize, size: u32, page: i64| {
        let len = off.desc as usize + size as usize * entry_len;
        Mapping::ring(fd, len, page).map_err(os("map an AF_XDP ring"))
    };
    let desc_len = size_of::<Desc>();
    let rx = map(&off.rx, desc_len, cfg.rx_size, libc::XDP_PGOFF_RX_RING)?;
    let tx = map(&off.tx, desc_len, cfg.tx_size, libc::XDP_PGOFF_TX_RING)?;
    let fill = map(&off.fr, 8, cfg.fill_size, libc::XDP_UMEM_PGOFF_FILL_RING as i64)?;
    let comp = map(&off.cr, 8, cfg.comp_size, libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64)?;
    // SAFETY: the kernel gave the offsets for rings of these sizes, each was mapped to its full
    // length, the sizes are powers of two, and these are the only ends on our side.
    unsafe {
        Ok((
            Consumer::new(rx, &off.rx, cfg.rx_size),
            Producer::new(tx, &off.tx, cfg.tx_size),
            Producer::new(fill, &off.fr, cfg.fill_size),
            Consumer::new(comp, &off.cr, cfg.comp_size),
        ))
    }
}

/// Raises the number of frames that one system call sends in copy mode; older kernels keep 32.
fn set_budget(fd: BorrowedFd<'_>, cfg: &XskConfig) -> u32 {
    const KERNEL_DEFAULT: u32 = 32;
    let Some(wanted) = cfg.tx_budget else { return KERNEL_DEFAULT };
    let budget = wanted.clamp(KERNEL_DEFAULT, cfg.tx_size.max(KERNEL_DEFAULT));
    match sys::set_option(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget) {
        Ok(()) => budget,
        Err(e) => {
            tracing::debug!(error = %e, "this kernel cannot raise the AF_XDP transmit budget");
            KERNEL_DEFAULT
        }
    }
}

fn set_busy_poll(fd: BorrowedFd<'_>, cfg: &XskConfig) -> bool {
    let Some(poll) = cfg.busy_poll else { return false };
    let set = |name, value: u32| sys::set_option(fd, SOL_SOCKET, name, &value);
    let result = set(libc::SO_PREFER_BUSY_POLL, 1)
        .and_then(|()| set(libc::SO_BUSY_POLL, poll.usecs))
        .and_then(|()| set(libc::SO_BUSY_POLL_BUDGET, poll.budget));
    if let Err(e) = &result {
        tracing::warn!(error = %e, "busy polling is unavailable (it takes CAP_NET_ADMIN)");
    }
    result.is_ok()
}

/// Binds, waiting for a queue that is still being released. Returns whether multi-buffer is on.
fn bind(
    fd: BorrowedFd<'_>,
    cfg: &XskConfig,
    shared: Option<&Registration>,
) -> Result<bool, XskError> {
    let (ifindex, queue) = (cfg.ifindex, cfg.queue);
    let mode_flag = match cfg.mode {
        BindMode::ZeroCopy => libc::XDP_ZEROCOPY,
        BindMode::Copy => libc::XDP_COPY,
    };
    let mut sg = cfg.sg;
    let mut pause = Duration::from_millis(1);
    let start = Instant::now();
    loop {
        let sg_flag = if sg { libc::XDP_USE_SG } else { 0 };
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            // Who shares a registration has its flags, and may name no others.
            sxdp_flags: match shared {
                Some(_) => libc::XDP_SHARED_UMEM,
                None => mode_flag | sg_flag | libc::XDP_USE_NEED_WAKEUP,
            },
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: shared.map_or(0, |registration| registration.raw_fd() as u32),
        };
        let Err(e) = sys::bind(fd, &address) else { return Ok(sg) };
        match errno(&e) {
            libc::EBUSY if start.elapsed() < cfg.busy_wait => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(BUSY_PAUSE_MAX);
            }
            libc::EBUSY => return Err(XskError::Busy { ifindex, queue }),
            // A zero-copy driver without multi-buffer support; single frames still work.
            libc::EOPNOTSUPP if sg && cfg.mode == BindMode::ZeroCopy => sg = false,
            libc::EOPNOTSUPP => {
                return Err(XskError::ModeUnsupported { ifindex, mode: cfg.mode });
            }
            libc::ENODEV => return Err(XskError::NoDevice { ifindex }),
            libc::EINVAL => {
                let hint = if sg {
                    "it has fewer queues, or the kernel (before 6.6) has no multi-buffer sockets"
                } else {
                    "it has fewer queues"
                };
                return Err(XskError::Queue { ifindex, queue, hint });
            }
            _ => return Err(os("bind the AF_XDP socket")(e)),
        }
    }
}

fn is_zero_copy(fd: BorrowedFd<'_>) -> Result<bool, XskError> {
    // SAFETY: the option is a plain integer.
    let flags = unsafe { sys::get_option(fd, SOL_XDP, libc::XDP_OPTIONS, 0u32) }
        .map_err(os("read the mode of the AF_XDP socket"))?;
    Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}
