//! AF_XDP sockets.
//!
//! A socket belongs to one worker. Its loop is: [`receive`](Xsk::receive),
//! [`refill`](Xsk::refill), [`transmit`](Xsk::transmit) some packets, [`kick`](Xsk::kick),
//! [`reap`](Xsk::reap). Receiving in copy mode makes no system call.
#![allow(unsafe_code)]

mod fill;
mod open;
mod probe;
pub(crate) mod share;
#[cfg(test)]
mod tests;
mod types;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use self::fill::FillBudget;
use self::open::Opened;
pub use self::open::XskError;
pub use self::probe::{KernelSupport, Missing};
pub use self::types::{
    BURST_FRAMES_MAX, BindMode, BoundMode, BusyPoll, CsumRequest, Health, IDLE_FRAMES_MAX,
    IDLE_FRAMES_MIN, Kick, XskConfig, XskStats,
};
use crate::arena::Arena;
use crate::frame::TX_META_LEN;
use crate::ring::Desc;
use crate::sys::{self, errno};
use crate::{Buf, Frame, FrameCache};

/// Most frames in a received packet: a 64 KB superframe takes 18.
const RX_FRAMES_MAX: usize = 20;

/// Most frames in a sent packet: the kernel's MAX_SKB_FRAGS of 17, and the head.
const TX_FRAMES_MAX: usize = 18;

/// Kicks in a row without progress after which the rest is left for later.
const KICK_STALLS_MAX: u32 = 2;

/// How long a closing socket waits for what it has sent, and a zero-copy device for its last
/// transfers into frames that are about to be used again.
const CLOSE_WAIT_MS: u64 = 20;
const ZERO_COPY_SETTLE: Duration = Duration::from_millis(50);

/// An AF_XDP socket on one queue of one interface.
///
/// Dropping it closes it, but the frames that the kernel held are then lost to the arena:
/// [`close`](Self::close) gives them back.
#[derive(Debug)]
#[must_use = "close the socket, so that its frames return to the arena"]
pub struct Xsk {
    sock: Opened,
    arena: &'static Arena,
    /// The socket's number in the arena's table of owners.
    id: u16,
    ifindex: u32,
    budget: FillBudget,
    /// An idle socket keeps frames for a burst.
    bursts: bool,
    /// Frames lent to the kernel for receiving, and for sending.
    rx_lent: usize,
    tx_lent: usize,
    /// A packet of which only the first frames have arrived.
    partial: Option<Buf>,
    /// The last refill got too few frames: a fill ring that runs dry says nothing about traffic.
    starved: bool,
    /// The last kick found the device down: what is queued stays queued, and more would only keep
    /// frames from other ports.
    down: bool,
    /// The rest of a packet that is being dropped is still to come.
    skipping: bool,
    /// Frames of packets that could not be sent, until the next `reap`.
    discard: Vec<Frame>,
    stats: XskStats,
}

impl Xsk {
    /// Opens a socket and registers the arena with it. An XDP program must steer frames to it.
    ///
    /// A queue that another socket is just releasing is waited for, up to two seconds.
    ///
    /// # Errors
    /// [`XskError`]; each variant says what to do about it.
    pub fn open(arena: &'static Arena, cfg: &XskConfig) -> Result<Self, XskError> {
        let id = arena.new_socket_id().ok_or(XskError::TooMany)?;
        let sock = open::open(arena, cfg).inspect_err(|_| arena.free_socket_id(id))?;
        // A zero-copy device takes its frames ahead of the packets.
        let idle = if sock.bound.zero_copy { cfg.fill_size } else { 0 };
        Ok(Self {
            sock,
            arena,
            id,
            ifindex: cfg.ifindex,
            budget: FillBudget::new(idle, cfg.fill_size),
            bursts: cfg.bursts,
            rx_lent: 0,
            tx_lent: 0,
            partial: None,
            starved: false,
            down: false,
            skipping: false,
            discard: Vec::new(),
            stats: XskStats::default(),
        })
    }

    /// The descriptor, to be put into an XSKMAP or polled.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.sock.fd.as_fd()
    }

    /// The mode and features that the socket got.
    #[must_use]
    pub fn bound(&self) -> BoundMode {
        self.sock.bound
    }

    /// The interface it is bound to.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Most frames in a packet given to [`transmit`](Self::transmit), empty ones not counted.
    #[must_use]
    pub fn max_tx_frames(&self) -> usize {
        if self.sock.bound.sg { TX_FRAMES_MAX } else { 1 }
    }

    /// Frames that this socket holds, for the account of the arena.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, Buf::frame_count);
        self.rx_lent + self.tx_lent + partial + self.discard.len()
    }

    /// Appends up to `max` received packets to `out` and returns how many. A packet of which
    /// frames are still missing is kept for the next call. Packets of more than 20 frames are
    /// dropped and counted.
    pub fn receive(&mut self, cache: &mut FrameCache, max: usize, out: &mut Vec<Buf>) -> usize {
        let mut packets = 0;
        let mut frames = 0u64;
        while packets < max && self.sock.rx.available() > 0 {
            let desc = self.sock.rx.pop();
            frames += 1;
            let more = desc.options & libc::XDP_PKT_CONTD != 0;
            let frame = self.arena.reclaim(desc.addr, desc.len, self.id);
            self.rx_lent -= usize::from(frame.is_some());
            let whole = match frame {
                Some(frame) if !more && self.partial.is_none() && !self.skipping => {
                    Some(Buf::from(frame))
                }
                frame => self.assemble(frame, more, cache),
            };
            if let Some(buf) = whole {
                out.push(buf);
                packets += 1;
            }
        }
        if frames > 0 {
            self.sock.rx.release();
            self.stats.rx_frames += frames;
            self.stats.rx_packets += packets as u64;
        }
        packets
    }

    /// Takes the next frame of a packet of several; returns the packet when this was its last.
    fn assemble(
        &mut self,
        frame: Option<Frame>,
        more: bool,
        cache: &mut FrameCache,
    ) -> Option<Buf> {
        let Some(frame) = frame else {
            self.stats.rx_bad_desc += 1;
            self.drop_partial(more, cache);
            return None;
        };
        if self.skipping {
            cache.free(frame);
            self.skipping = more;
            return None;
        }
        match self.partial.as_mut() {
            None => self.partial = Some(Buf::from(frame)),
            Some(buf) if buf.frame_count() < RX_FRAMES_MAX => buf.push_with(frame, cache),
            Some(_) => {
                cache.free(frame);
                self.stats.rx_oversize += 1;
                self.drop_partial(more, cache);
                return None;
            }
        }
        if more { None } else { self.partial.take() }
    }

    fn drop_partial(&mut self, more: bool, cache: &mut FrameCache) {
        if let Some(buf) = self.partial.take() {
            cache.free_buf(buf);
        }
        self.skipping = more;
    }

    /// Gives the kernel frames to receive into, as many as the port's traffic of late calls for:
    /// 64 at first, or what a burst takes, up to the size of the fill ring. Call it once per loop, after `receive`.
    pub fn refill(&mut self, cache: &mut FrameCache) {
        let waiting = self.sock.fill.pending() as usize;
        let arena = self.arena;
        self.budget.set_idle(if self.bursts { arena.burst_frames() } else { arena.idle_frames() });
        let budget = self.budget.observe(waiting, self.rx_lent, self.starved);
        self.starved = false;
        let wanted = budget.saturating_sub(self.rx_lent);
        if wanted == 0 {
            return;
        }
        let wanted = wanted.min(self.sock.fill.room(wanted as u32) as usize);
        for _ in 0..wanted {
            let Some(mut frame) = cache.alloc() else {
                self.stats.fill_starved += 1;
                self.starved = true;
                break;
            };
            frame.clear_receive_meta();
            match self.arena.lend(frame, self.id) {
                Ok(addr) => self.sock.fill.push(addr),
                Err(frame) => {
                    // The cache is of another arena: nothing it holds can be received into.
                    cache.free(frame);
                    self.stats.fill_starved += 1;
                    break;
                }
            }
            self.rx_lent += 1;
        }
        self.sock.fill.submit();
        if self.sock.bound.zero_copy && self.sock.fill.needs_wakeup() {
            // It fails when the device is down, which `kick` and `health` report.
            let _ = sys::wake_rx(self.sock.fd.as_fd());
        }
    }

    /// Puts a packet on the TX ring, all of its frames or none. The kernel sees it at the next
    /// [`kick`](Self::kick). With `csum` the kernel or device completes a checksum in the first
    /// frame, where [`BoundMode::tx_meta`] says that it can.
    ///
    /// A packet that can never be sent here is dropped and counted as `tx_unsendable`; one for a
    /// device that the last kick found down is dropped and counted as `tx_down`.
    ///
    /// # Errors
    /// The packet comes back when the ring is full: kick, reap, and try again.
    pub fn transmit(&mut self, buf: Buf, csum: Option<CsumRequest>) -> Result<(), Buf> {
        let frames = buf.frames().filter(|f| !f.is_empty()).count();
        if !self.is_sendable(&buf, frames, csum) {
            self.stats.tx_unsendable += 1;
            self.discard(buf);
            return Ok(());
        }
        if self.down {
            self.stats.tx_down += 1;
            self.discard(buf);
            return Ok(());
        }
        // A frame in flight needs a place in the completion ring to come back by.
        let in_flight_room = (self.sock.comp.size() as usize).saturating_sub(self.tx_lent);
        if (self.sock.tx.room(frames as u32) as usize) < frames || in_flight_room < frames {
            self.stats.tx_ring_full += 1;
            return Err(buf);
        }
        let (head, mut tail) = buf.into_parts();
        let mut left = frames;
        let mut csum = csum;
        for mut frame in std::iter::once(head).chain(tail.drain(..)) {
            if frame.is_empty() {
                // The kernel rejects a descriptor without bytes.
                self.discard.push(frame);
                continue;
            }
            left -= 1;
            let mut options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
            if let Some(request) = csum.take() {
                frame.write_tx_meta(&tx_meta(request));
                options |= libc::XDP_TX_METADATA;
            }
            let len = frame.len() as u32;
            match self.arena.lend(frame, self.id) {
                Ok(addr) => self.sock.tx.push(Desc { addr, len, options }),
                // Cannot be: `is_sendable` has seen every frame.
                Err(frame) => self.discard.push(frame),
            }
        }
        self.tx_lent += frames;
        self.stats.tx_packets += 1;
        self.stats.tx_frames += frames as u64;
        Ok(())
    }

    fn is_sendable(&self, buf: &Buf, frames: usize, csum: Option<CsumRequest>) -> bool {
        let csum_fits = csum.is_none_or(|c| {
            // The kernel leaves a bad request at the head of the ring for ever.
            let end = usize::from(c.start) + usize::from(c.offset) + 2;
            let first = buf.frames().find(|f| !f.is_empty());
            self.sock.bound.tx_meta && first.is_some_and(|f| end <= f.len())
        });
        let ours = buf.frames().all(|f| self.arena.index_of(f).is_some());
        csum_fits && ours && (1..=self.max_tx_frames()).contains(&frames)
    }

    fn discard(&mut self, buf: Buf) {
        let (head, tail) = buf.into_parts();
        self.discard.push(head);
        self.discard.extend(tail);
    }

    /// Shows the kernel what `transmit` has queued and, where it needs a call to send it, makes
    /// that call as often as it takes (never more than twice per descriptor).
    pub fn kick(&mut self) -> Kick {
        let tx = &mut self.sock.tx;
        tx.submit();
        let mut pending = tx.pending();
        if pending == 0 || (self.sock.bound.zero_copy && !tx.needs_wakeup()) {
            self.down = false;
            return Kick::Idle;
        }
        let mut stalls = 0;
        for _ in 0..2 * pending + KICK_STALLS_MAX {
            self.stats.kicks += 1;
            let result = sys::wake_tx(self.sock.fd.as_fd());
            let left = self.sock.tx.pending();
            let mut progress = left < pending;
            pending = left;
            self.down = false;
            match result.as_ref().map_err(errno) {
                Ok(()) if self.sock.bound.zero_copy => return Kick::Sent,
                Ok(()) | Err(libc::EINTR) => {}
                Err(libc::EAGAIN) => self.stats.kick_again += 1,
                Err(libc::EBUSY) => {
                    // One packet was dropped and the batch stopped. The kernel publishes that it
                    // consumed the packet only with its next step, so it is progress as it is.
                    self.stats.kick_dropped += 1;
                    progress = true;
                }
                Err(libc::ENOBUFS | libc::ENOMEM) => self.stats.kick_no_buffers += 1,
                Err(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => {
                    self.stats.kick_down += 1;
                    self.down = true;
                    return Kick::Down;
                }
                Err(_) => {
                    self.stats.kick_failed += 1;
                    return Kick::Pending;
                }
            }
            if pending == 0 && result.is_ok() {
                return Kick::Sent;
            }
            stalls = if progress { 0 } else { stalls + 1 };
            if stalls >= KICK_STALLS_MAX {
                break;
            }
        }
        if pending == 0 { Kick::Sent } else { Kick::Pending }
    }

    /// Takes back the frames that have been sent; returns how many.
    pub fn reap(&mut self, cache: &mut FrameCache) -> usize {
        let mut frames = 0;
        while self.sock.comp.available() > 0 {
            let addr = self.sock.comp.pop();
            match self.arena.reclaim(addr, 0, self.id) {
                Some(frame) => {
                    cache.free(frame);
                    frames += 1;
                }
                None => self.stats.rx_bad_desc += 1,
            }
        }
        if frames > 0 {
            self.sock.comp.release();
            self.tx_lent -= frames;
            self.stats.tx_completed += frames as u64;
        }
        while let Some(frame) = self.discard.pop() {
            cache.free(frame);
        }
        frames
    }

    /// All counters, the kernel's included: one system call.
    #[must_use]
    pub fn stats(&self) -> XskStats {
        let mut stats = self.stats;
        stats.fill_budget = self.budget.frames() as u64;
        let zero = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        let fd = self.sock.fd.as_fd();
        // SAFETY: the structure is of plain integers.
        let kernel = unsafe { sys::get_option(fd, libc::SOL_XDP, libc::XDP_STATISTICS, zero) };
        if let Ok(kernel) = kernel {
            stats.kernel_rx_dropped = kernel.rx_dropped;
            stats.kernel_rx_invalid = kernel.rx_invalid_descs;
            stats.kernel_tx_invalid = kernel.tx_invalid_descs;
            stats.kernel_rx_ring_full = kernel.rx_ring_full;
            stats.kernel_fill_empty = kernel.rx_fill_ring_empty_descs;
            stats.kernel_tx_empty = kernel.tx_ring_empty_descs;
        }
        stats
    }

    /// Whether the device can carry frames: one system call.
    #[must_use]
    pub fn health(&self) -> Health {
        // A receive of nothing checks first whether the socket is still bound and the device up.
        match sys::wake_rx(self.sock.fd.as_fd()).as_ref().map_err(errno) {
            Err(libc::ENXIO | libc::ENODEV) => Health::Gone,
            Err(libc::ENETDOWN) => Health::Down,
            _ => Health::Up,
        }
    }

    /// Closes the socket and gives every frame it held to the cache. What was queued and not yet
    /// sent is lost. Takes up to 20 ms while frames are in flight, 50 ms more in zero-copy mode.
    pub fn close(mut self, cache: &mut FrameCache) {
        for _ in 0..CLOSE_WAIT_MS {
            if self.tx_lent == 0 || self.kick() == Kick::Down {
                break;
            }
            self.reap(cache);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.reap(cache);
        let Self { sock, arena, id, partial, .. } = self;
        let zero_copy = sock.bound.zero_copy;
        drop(sock);
        if zero_copy {
            std::thread::sleep(ZERO_COPY_SETTLE);
        }
        arena.reclaim_all(id, |frame| cache.free(frame));
        if let Some(buf) = partial {
            cache.free_buf(buf);
        }
        arena.free_socket_id(id);
    }
}

/// `struct xsk_tx_metadata` with a checksum request.
fn tx_meta(request: CsumRequest) -> [u8; TX_META_LEN] {
    let mut meta = [0; TX_META_LEN];
    meta[..8].copy_from_slice(&u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM).to_ne_bytes());
    [meta[8], meta[9]] = request.start.to_ne_bytes();
    [meta[10], meta[11]] = request.offset.to_ne_bytes();
    meta
}
