//! A device as its worker sees it: receive a batch, queue packets, flush them in order.
//!
//! An `xdp` device has two ways out, its AF_XDP ring and a packet socket for what the ring cannot
//! carry (superframes). The ring is kicked before the socket sends, and once something waits for
//! the socket everything later waits behind it, so a flow is never reordered between the two.

use std::os::fd::BorrowedFd;

use culvert_ebpf::FrameMeta;
use culvert_port::gather::MESSAGES_MAX;
use culvert_port::{
    Arena, Buf, CsumRequest, FlushOutcome, FrameCache, Health, HoldId, Kick, Message, PacketRx,
    PacketRxStats, PacketTx, Sink, Tap, TapStats, VnetHdr, Xsk, XskStats,
};

use super::cutter::{Cutter, Cutters};
use super::offload::Offload;
use crate::drops::DropReason;

/// Bytes of copied headers that a piece brings with it, on the average and generously.
const HEADERS_PER_PIECE: usize = 64;

/// How often the ring is kicked, for want of kernel memory or send buffer, before the packet socket
/// sends all the same.
const KICKS_BEFORE_SOCKET: usize = 16;

/// What the device belongs to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A tenant's port.
    Tenant(u16),
    /// An underlay device.
    Underlay(u16),
}

/// An open device. It stays the same while the device changes its role, and no other ever has it:
/// a port may have an old device and a new one at the same time.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachmentId(pub u64);

/// What is known of a device, and may change while it is open.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The largest IP packet that the device takes, in bytes.
    pub mtu: u32,
    /// Who cuts superframes: not used for tenants.
    pub cutters: Cutters,
    /// Whether single frames go by the packet socket, too.
    pub packet_only: bool,
    /// What a frame without metadata is taken for.
    pub unmarked: Offload,
}

/// The kernel objects behind a device.
pub enum Io {
    /// AF_XDP, and a packet socket beside it.
    Xdp {
        /// The socket of one queue.
        xsk: Box<Xsk>,
        /// For superframes.
        packet: Box<PacketTx>,
    },
    /// Packet sockets alone.
    Packet {
        /// Receives.
        rx: Box<PacketRx>,
        /// Sends.
        tx: Box<PacketTx>,
    },
    /// A TAP of ours.
    Tap(Box<Tap>),
    /// Nothing: what is sent is forgotten.
    Sink {
        /// Takes it.
        sink: Box<Sink>,
        /// Whether it stands for a TAP.
        tap: bool,
    },
}

/// A device, or one queue of it, owned by one worker.
pub struct Device {
    /// What it belongs to.
    pub role: Role,
    /// The open device that this is a queue of.
    pub attachment: AttachmentId,
    /// What a frame without metadata is taken for.
    unmarked: Offload,
    /// The kernel objects.
    io: Io,
    /// The largest IP packet that the device takes, in bytes.
    pub mtu: u32,
    /// Who cuts superframes: not used for tenants.
    pub cutters: Cutters,
    /// Whether single frames go by the packet socket, too.
    pub packet_only: bool,
    packet_pending: bool,
    ring_pending: bool,
    /// Packets put on the ring since the last flush.
    ring_packets: u64,
    /// Messages begun since the last flush.
    messages: usize,
}

/// Counters of one queue of a device. All queues of an attachment are of one kind.
#[derive(Copy, Clone, Debug)]
pub enum DeviceStats {
    /// Of the AF_XDP socket, the kernel's included.
    Xdp(XskStats),
    /// Of the receiving packet socket.
    Packet(PacketRxStats),
    /// Of the TAP.
    Tap(TapStats),
}

/// What a flush could not deliver.
#[derive(Copy, Clone, Debug, Default)]
pub struct Losses {
    /// Packets that the kernel refused.
    pub refused: u64,
    /// Packets for a device that is down or gone.
    pub down: u64,
}

impl Losses {
    /// Whether anything was lost.
    pub fn any(&self) -> bool {
        self.refused + self.down > 0
    }

    fn count(&mut self, outcome: &FlushOutcome) {
        self.down += outcome.down as u64;
        self.refused += (outcome.dropped() - outcome.down) as u64;
    }
}

/// Threads that close devices at once: closing waits for the kernel, and waits can be shared.
const CLOSERS_MAX: usize = 32;

/// Closes devices, many side by side: each waits for the kernel to be through with it. Returns when all are
/// closed.
pub fn close_all(arena: &'static Arena, mut devices: Vec<Device>) {
    let share = devices.len().div_ceil(CLOSERS_MAX).max(1);
    std::thread::scope(|scope| {
        while !devices.is_empty() {
            let some = devices.split_off(devices.len().saturating_sub(share));
            scope.spawn(move || {
                let mut cache = FrameCache::new(arena);
                some.into_iter().for_each(|device| device.close(&mut cache));
                cache.flush();
            });
        }
    });
}

impl Device {
    /// Takes the kernel objects over.
    pub fn new(role: Role, io: Io, mtu: u32) -> Self {
        Device {
            role,
            attachment: AttachmentId(0),
            unmarked: Offload::default(),
            io,
            mtu,
            cutters: Cutters::all(Cutter::Dataplane),
            packet_only: false,
            packet_pending: false,
            ring_pending: false,
            ring_packets: 0,
            messages: 0,
        }
    }

    /// Takes new facts over.
    pub fn update(&mut self, facts: Facts) {
        self.mtu = facts.mtu;
        self.cutters = facts.cutters;
        self.packet_only = facts.packet_only;
        self.unmarked = facts.unmarked;
    }

    /// The descriptor that is readable when packets wait; none where none will.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.io {
            Io::Xdp { xsk, .. } => Some(xsk.fd()),
            Io::Packet { rx, .. } => Some(rx.fd()),
            Io::Tap(tap) => Some(tap.fd()),
            Io::Sink { .. } => None,
        }
    }

    /// Takes up to `max` packets into `out`; the other two vectors are scratch space.
    pub fn receive(
        &mut self,
        cache: &mut FrameCache,
        max: usize,
        received: &mut Vec<Buf>,
        received_taps: &mut Vec<(Buf, VnetHdr)>,
        out: &mut Vec<(Buf, Offload)>,
    ) {
        match &mut self.io {
            Io::Xdp { xsk, .. } => {
                xsk.receive(cache, max, received);
                xsk.refill(cache);
                out.extend(received.drain(..).map(|buf| {
                    let meta = FrameMeta::from_bytes(&buf.head().meta());
                    let meta = meta.filter(FrameMeta::has_skb);
                    (buf, meta.map_or(self.unmarked, |meta| Offload::from_meta(&meta)))
                }));
            }
            Io::Packet { rx, .. } => {
                rx.receive(cache, max, received_taps);
            }
            Io::Tap(tap) => {
                tap.receive(cache, max, received_taps);
            }
            Io::Sink { .. } => {}
        }
        out.extend(received_taps.drain(..).map(|(buf, header)| {
            let off = Offload::from_vnet(&header);
            (buf, off)
        }));
    }

    /// Whether a single frame may leave with a partial checksum, which the device or the receiver
    /// completes.
    pub fn takes_partial(&self) -> bool {
        match &self.io {
            Io::Xdp { xsk, .. } => self.packet_only || self.packet_pending || xsk.bound().tx_meta,
            Io::Packet { .. } | Io::Tap(_) | Io::Sink { .. } => true,
        }
    }

    /// Queues a packet that needs no cutting. `partial` is a checksum for the device or the
    /// receiver to complete: where it starts, and where it is stored from there.
    ///
    /// # Errors
    /// The packet and why it was not queued.
    pub fn send(
        &mut self,
        mut buf: Buf,
        partial: Option<(u16, u16)>,
        cache: &mut FrameCache,
        losses: &mut Losses,
    ) -> Result<(), (Buf, DropReason)> {
        if self.goes_gathered() {
            return self.send_gathered(buf, partial, cache, losses);
        }
        if matches!(self.io, Io::Sink { .. }) {
            cache.free_buf(buf);
            return Ok(());
        }
        let request = partial.map(|(start, offset)| CsumRequest { start, offset });
        for attempt in 0..2 {
            let Io::Xdp { xsk, .. } = &mut self.io else { break };
            if buf.is_multi() && buf.frame_count() > xsk.max_tx_frames() {
                return self.send_gathered(buf, partial, cache, losses);
            }
            match xsk.transmit(buf, request) {
                Ok(()) => {
                    self.ring_pending = true;
                    self.ring_packets += 1;
                    return Ok(());
                }
                Err(back) => buf = back,
            }
            if attempt == 0 {
                // The ring is full: send what is in it and take back what was sent.
                self.flush(cache, losses);
            }
        }
        Err((buf, DropReason::TxRingFull))
    }

    /// Whether a single frame is queued beside the ring.
    fn goes_gathered(&self) -> bool {
        match self.io {
            Io::Xdp { .. } => self.packet_pending || self.packet_only,
            Io::Packet { .. } | Io::Tap(_) => true,
            Io::Sink { .. } => false,
        }
    }

    fn send_gathered(
        &mut self,
        buf: Buf,
        partial: Option<(u16, u16)>,
        cache: &mut FrameCache,
        losses: &mut Losses,
    ) -> Result<(), (Buf, DropReason)> {
        let mut header = VnetHdr::default();
        if let Some((start, offset)) = partial {
            header.flags = VnetHdr::NEEDS_CSUM;
            header.csum_start = start;
            header.csum_offset = offset;
        }
        self.make_room(buf.frame_count() + 1, 1, cache, losses);
        self.messages += 1;
        self.packet_pending = true;
        let sent = match &mut self.io {
            Io::Xdp { packet, .. } => packet.send(header, buf),
            Io::Packet { tx, .. } => tx.send(header, buf),
            Io::Tap(tap) => tap.send(header, buf),
            Io::Sink { .. } => Err(buf),
        };
        sent.map_err(|buf| (buf, DropReason::TxRefused))
    }

    /// Flushes if `messages` of so many pieces in all might find no room.
    pub fn make_room(
        &mut self,
        pieces: usize,
        messages: usize,
        cache: &mut FrameCache,
        losses: &mut Losses,
    ) {
        let header_bytes = pieces * HEADERS_PER_PIECE;
        let room = self.messages + messages <= MESSAGES_MAX
            && match &self.io {
                Io::Xdp { packet, .. } => packet.has_room(pieces, header_bytes),
                Io::Packet { tx, .. } => tx.has_room(pieces, header_bytes),
                Io::Tap(tap) => tap.has_room(pieces, header_bytes),
                Io::Sink { sink, .. } => sink.has_room(pieces, header_bytes),
            };
        if !room {
            self.flush(cache, losses);
        }
    }

    /// Holds a packet until the next flush, for messages that send parts of it.
    pub fn hold(&mut self, buf: Buf) -> HoldId {
        self.packet_pending = true;
        match &mut self.io {
            Io::Xdp { packet, .. } => packet.hold(buf),
            Io::Packet { tx, .. } => tx.hold(buf),
            Io::Tap(tap) => tap.hold(buf),
            Io::Sink { sink, .. } => sink.hold(buf),
        }
    }

    /// A held packet; none once the device has been flushed.
    pub fn held(&self, id: HoldId) -> Option<&Buf> {
        match &self.io {
            Io::Xdp { packet, .. } => packet.held(id),
            Io::Packet { tx, .. } => tx.held(id),
            Io::Tap(tap) => tap.held(id),
            Io::Sink { sink, .. } => sink.held(id),
        }
    }

    /// Starts a message beside the ring.
    pub fn message(&mut self, header: VnetHdr) -> Message<'_> {
        self.packet_pending = true;
        self.messages += 1;
        match &mut self.io {
            Io::Xdp { packet, .. } => packet.message(header),
            Io::Packet { tx, .. } => tx.message(header),
            Io::Tap(tap) => tap.message(header),
            Io::Sink { sink, .. } => sink.message(header),
        }
    }

    /// Sends everything that is queued, the ring first, and takes back what was sent.
    pub fn flush(&mut self, cache: &mut FrameCache, losses: &mut Losses) {
        self.messages = 0;
        match &mut self.io {
            Io::Xdp { xsk, packet } => {
                // What waits for the socket must not pass what is left in the ring.
                let kicks = if self.packet_pending { KICKS_BEFORE_SOCKET } else { 1 };
                for _ in 0..kicks {
                    if !std::mem::take(&mut self.ring_pending) {
                        break;
                    }
                    match xsk.kick() {
                        Kick::Idle | Kick::Sent => {}
                        Kick::Pending => self.ring_pending = true,
                        Kick::Down => losses.down += self.ring_packets,
                    }
                    xsk.reap(cache);
                }
                xsk.reap(cache);
                self.ring_packets = 0;
                if std::mem::take(&mut self.packet_pending) {
                    losses.count(&packet.flush(cache));
                }
            }
            Io::Packet { tx, .. } => {
                if std::mem::take(&mut self.packet_pending) {
                    losses.count(&tx.flush(cache));
                }
            }
            Io::Tap(tap) => {
                if std::mem::take(&mut self.packet_pending) {
                    losses.count(&tap.flush(cache));
                }
            }
            Io::Sink { sink, .. } => {
                self.packet_pending = false;
                sink.flush(cache);
            }
        }
    }

    /// How packets leave, in a word: `ring`, `packet_socket`, `tap`.
    pub fn way_out(&self, message: bool) -> &'static str {
        match self.io {
            Io::Tap(_) | Io::Sink { tap: true, .. } => "tap",
            _ if message || self.goes_gathered() || self.packet_only => "packet_socket",
            _ => "ring",
        }
    }

    /// Whether frames wait in the ring for the kernel to have room.
    pub fn unfinished(&self) -> bool {
        self.ring_pending
    }

    /// Frames that the device holds.
    pub fn outstanding(&self) -> usize {
        match &self.io {
            Io::Xdp { xsk, packet } => xsk.outstanding() + packet.outstanding(),
            Io::Packet { rx, tx } => rx.outstanding() + tx.outstanding(),
            Io::Tap(tap) => tap.outstanding(),
            Io::Sink { sink, .. } => sink.outstanding(),
        }
    }

    /// Whether the device can carry frames.
    pub fn health(&self) -> Health {
        match &self.io {
            Io::Xdp { xsk, .. } => xsk.health(),
            Io::Packet { .. } | Io::Tap(_) | Io::Sink { .. } => Health::Up,
        }
    }

    /// What the kernel object behind it has counted.
    pub fn stats(&mut self) -> DeviceStats {
        match &mut self.io {
            Io::Xdp { xsk, .. } => DeviceStats::Xdp(xsk.stats()),
            Io::Packet { rx, .. } => DeviceStats::Packet(rx.stats()),
            Io::Tap(tap) => DeviceStats::Tap(tap.stats()),
            Io::Sink { .. } => DeviceStats::Tap(TapStats::default()),
        }
    }

    /// Closes the kernel objects; every frame goes back to the cache.
    pub fn close(self, cache: &mut FrameCache) {
        match self.io {
            Io::Xdp { xsk, mut packet } => {
                xsk.close(cache);
                let _ = packet.flush(cache);
            }
            Io::Packet { rx, mut tx } => {
                rx.close(cache);
                let _ = tx.flush(cache);
            }
            Io::Tap(tap) => tap.close(cache),
            Io::Sink { mut sink, .. } => sink.flush(cache),
        }
    }
}
