//! What an AF_XDP socket is told and what it tells.

use std::time::Duration;

/// Releasing a queue takes the kernel some milliseconds, on a loaded machine longer.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// Frames that a socket without traffic keeps for receiving, where there is room for that.
pub const IDLE_FRAMES_MAX: usize = 64;

/// The same, where many sockets share an arena. A first packet finds room, and the stock grows with what
/// follows; a first superframe may be lost.
pub const IDLE_FRAMES_MIN: usize = 8;

/// The same of a socket whose device brings bursts, where there is room for that: half of a receive ring. Some
/// 23 superframes of 64 KB in packets of 1,500 bytes, or 57 that nothing has cut.
pub const BURST_FRAMES_MAX: usize = 1024;

/// How frames pass between the driver and the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindMode {
    /// The device reads and writes the arena itself; the driver must support it.
    ZeroCopy,
    /// The kernel copies each frame; works with every device.
    Copy,
}

impl std::fmt::Display for BindMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BindMode::ZeroCopy => "zero-copy",
            BindMode::Copy => "copy-mode",
        })
    }
}

/// Busy polling: the socket's system calls drive the device instead of interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long a call may poll, in microseconds.
    pub usecs: u32,
    /// Frames handled in one go.
    pub budget: u32,
}

/// What to open. Ring sizes are powers of two from 64 to 32768.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XskConfig {
    /// The interface, in the caller's network namespace.
    pub ifindex: u32,
    /// The queue of the interface.
    pub queue: u32,
    /// Zero-copy or copy; nothing falls back silently.
    pub mode: BindMode,
    /// Descriptors in the RX ring.
    pub rx_size: u32,
    /// Descriptors in the TX ring.
    pub tx_size: u32,
    /// Frames in the fill ring; also the most that the port will ever keep for receiving.
    pub fill_size: u32,
    /// Frames in the completion ring.
    pub comp_size: u32,
    /// Packets of several frames, both ways.
    pub sg: bool,
    /// Keep frames for a burst while there is no traffic, instead of a few: see
    /// [`Arena::share_among`](crate::Arena::share_among).
    pub bursts: bool,
    /// How long to wait for a queue that its previous socket has not released yet.
    pub busy_wait: Duration,
    /// Busy polling; `None` leaves it off.
    pub busy_poll: Option<BusyPoll>,
    /// Frames that one system call sends in copy mode (clamped to 32..=`tx_size`); `None` leaves
    /// the kernel's 32.
    pub tx_budget: Option<u32>,
    /// Send buffer in bytes, which bounds what is in flight in copy mode; `None` leaves the
    /// system's default, which three 64 KB frames fill.
    pub sndbuf: Option<u32>,
}

impl XskConfig {
    /// A copy-mode multi-buffer socket with rings of 2048.
    #[must_use]
    pub fn new(ifindex: u32, queue: u32) -> Self {
        Self {
            ifindex,
            queue,
            mode: BindMode::Copy,
            rx_size: 2048,
            tx_size: 2048,
            fill_size: 2048,
            comp_size: 2048,
            sg: true,
            bursts: false,
            busy_wait: BUSY_WAIT,
            busy_poll: None,
            tx_budget: Some(2048),
            sndbuf: Some(8 << 20),
        }
    }
}

/// What was got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundMode {
    /// True: zero-copy. False: copy.
    pub zero_copy: bool,
    /// Packets of several frames work.
    pub sg: bool,
    /// [`CsumRequest`]s are honoured.
    pub tx_meta: bool,
    /// Frames that one system call sends in copy mode.
    pub tx_budget: u32,
    /// Busy polling is on.
    pub busy_poll: bool,
}

/// Asks the kernel or device to complete an Internet checksum over the frame from `start` on; the
/// field holds the folded sum of the pseudo-header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CsumRequest {
    /// Where summing starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where the checksum field is, in bytes from `start`.
    pub offset: u16,
}

/// What [`Xsk::kick`](super::Xsk::kick) found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// There was nothing to send, or the kernel needs no call to send it.
    Idle,
    /// The kernel took every descriptor.
    Sent,
    /// The kernel took only some (send buffer or memory is short): reap, and kick again later.
    Pending,
    /// The device is down or gone; [`Xsk::health`](super::Xsk::health) says which.
    Down,
}

/// Whether the device under a socket can carry frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The device is up.
    Up,
    /// The device is administratively down; the socket resumes when it comes up.
    Down,
    /// The device was removed or moved to another network namespace: close the socket.
    Gone,
}

/// What a socket has counted, and what the kernel has counted about it. All counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XskStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Descriptors received (a packet has one or more).
    pub rx_frames: u64,
    /// Packets dropped because they came in more than 20 frames.
    pub rx_oversize: u64,
    /// Descriptors dropped because they named a chunk that the kernel did not hold.
    pub rx_bad_desc: u64,
    /// Times the arena had no frame when the fill ring wanted one.
    pub fill_starved: u64,
    /// Frames that the port keeps for receiving at present (the only value that also shrinks).
    pub fill_budget: u64,
    /// Packets put on the TX ring.
    pub tx_packets: u64,
    /// Descriptors put on the TX ring.
    pub tx_frames: u64,
    /// Frames that came back by the completion ring.
    pub tx_completed: u64,
    /// Packets refused because a ring was full; the caller kept them.
    pub tx_ring_full: u64,
    /// Packets dropped because they cannot be sent on this socket: empty, more frames than
    /// [`Xsk::max_tx_frames`](super::Xsk::max_tx_frames), of another arena, or with a checksum
    /// request that is out of bounds or that the socket cannot honour.
    pub tx_unsendable: u64,
    /// Packets dropped because the last kick found the device down or gone.
    pub tx_down: u64,
    /// System calls to send.
    pub kicks: u64,
    /// Kicks that ended at the kernel's budget or send buffer (EAGAIN).
    pub kick_again: u64,
    /// Packets the device or its peer dropped on sending, such as one above the peer's MTU
    /// (EBUSY).
    pub kick_dropped: u64,
    /// Kicks that found the kernel short of memory (ENOBUFS, ENOMEM).
    pub kick_no_buffers: u64,
    /// Kicks that found the device down or gone (ENETDOWN, ENXIO, ENODEV).
    pub kick_down: u64,
    /// Kicks that failed in another way.
    pub kick_failed: u64,
    /// Kernel: packets dropped for other reasons, such as a packet too long for one frame where
    /// multi-buffer is off.
    pub kernel_rx_dropped: u64,
    /// Kernel: bad addresses in the fill ring.
    pub kernel_rx_invalid: u64,
    /// Kernel: bad descriptors in the TX ring.
    pub kernel_tx_invalid: u64,
    /// Kernel: packets dropped because the RX ring was full.
    pub kernel_rx_ring_full: u64,
    /// Kernel: packets dropped because the fill ring was empty.
    pub kernel_fill_empty: u64,
    /// Kernel: times the TX ring had nothing to send.
    pub kernel_tx_empty: u64,
}
