//! A device as its worker sees it: receive a batch, queue packets, flush them in order.
//!
//! An `xdp` device has two ways out, its AF_XDP ring and a packet socket for what the ring cannot
//! carry (superframes). The ring is kicked before the socket sends, and once something waits for
//! the socket everything later waits behind it, so a flow is never reordered between the two.

use std::os::fd::{AsFd, BorrowedFd};

use culvert_port::{
    Buf, CsumRequest, FlushOutcome, FrameCache, HoldId, Kick, PacketTx, Tap, VnetHdr, Xsk,
};

use super::offload::{Gso, Offload};
use crate::drops::DropReason;

/// Frames that one packet of an AF_XDP ring may have: the kernel's limit of a socket buffer.
const MAX_RING_FRAMES: usize = 17;

/// What the device belongs to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A tenant's port.
    Tenant(u16),
    /// An underlay device.
    Underlay(u16),
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
    /// A TAP of ours.
    Tap(Box<Tap>),
}

/// A device, or one queue of it, owned by one worker.
pub struct Device {
    /// What it belongs to.
    pub role: Role,
    /// The kernel objects.
    pub io: Io,
    /// The largest IP packet that the device takes, in bytes.
    pub mtu: u32,
    /// Whether the device cuts UDP superframes itself, or passes them on uncut.
    pub segments_udp: bool,
    ring_pending: bool,
    packet_pending: bool,
}

/// What a flush could not deliver.
#[derive(Copy, Clone, Debug, Default)]
pub struct Losses {
    /// Packets that the kernel refused.
    pub refused: u64,
    /// Packets for a device that is down or gone.
    pub down: u64,
}

impl Device {
    /// Takes the kernel objects over.
    pub fn new(role: Role, io: Io, mtu: u32, segments_udp: bool) -> Self {
        Device { role, io, mtu, segments_udp, ring_pending: false, packet_pending: false }
    }

    /// The descriptor that is readable when packets wait.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.io {
            Io::Xdp { xsk, .. } => xsk.fd(),
            Io::Tap(tap) => tap.as_fd(),
        }
    }

    /// Takes up to `max` packets.
    pub fn receive(
        &mut self,
        cache: &mut FrameCache,
        max: usize,
        scratch: &mut Scratch,
        out: &mut Vec<(Buf, Offload)>,
    ) -> usize {
        match &mut self.io {
            Io::Xdp { xsk, .. } => {
                let n = xsk.receive(cache, max, &mut scratch.bufs);
                xsk.refill(cache);
                out.extend(scratch.bufs.drain(..).map(|buf| {
                    let meta = culvert_ebpf::FrameMeta::from_bytes(&buf.head().meta());
                    (buf, Offload::from_meta(&meta))
                }));
                n
            }
            Io::Tap(tap) => {
                let n = tap.receive(cache, max, &mut scratch.taps);
                out.extend(scratch.taps.drain(..).map(|(buf, hdr)| {
                    let off = Offload::from_vnet(&hdr);
                    (buf, off)
                }));
                n
            }
        }
    }

    /// Whether the ring can have a partial checksum completed by the receiver or the device.
    pub fn takes_partial(&self) -> bool {
        match &self.io {
            Io::Xdp { xsk, .. } => xsk.bound().tx_meta,
            Io::Tap(_) => true,
        }
    }

    /// Queues a packet that needs no cutting. `csum` is a partial checksum that the device or the
    /// receiver completes.
    ///
    /// # Errors
    /// The packet and why it was not queued.
    pub fn send(
        &mut self,
        buf: Buf,
        csum: Option<(u16, u16)>,
        cache: &mut FrameCache,
        losses: &mut Losses,
    ) -> Result<(), (Buf, DropReason)> {
        match &mut self.io {
            Io::Xdp { xsk, .. } if !self.packet_pending && buf.frame_count() <= MAX_RING_FRAMES => {
                let request = csum.map(|(start, offset)| CsumRequest { start, offset });
                let buf = match xsk.transmit(buf, request) {
                    Ok(()) => {
                        self.ring_pending = true;
                        return Ok(());
                    }
                    Err(buf) => buf,
                };
                // The ring is full: push what is in it out and take back what is done.
                self.flush(cache, losses);
                match &mut self.io {
                    Io::Xdp { xsk, .. } => {
                        let request = csum.map(|(start, offset)| CsumRequest { start, offset });
                        match xsk.transmit(buf, request) {
                            Ok(()) => {
                                self.ring_pending = true;
                                Ok(())
                            }
                            Err(buf) => Err((buf, DropReason::TxRingFull)),
                        }
                    }
                    Io::Tap(_) => Err((buf, DropReason::LinkDown)),
                }
            }
            _ => {
                let hdr = plain_header(csum);
                let len = buf.len();
                self.message(hdr, cache, losses, &[], Some((buf, 0..len)), &[])
                    .map_err(|buf| match buf {
                        Some(buf) => (buf, DropReason::TxRefused),
                        None => unreachable_loss(),
                    })
            }
        }
    }

    /// Queues one message of the packet socket or the TAP.
    pub fn gather(&mut self) -> &mut dyn Gather {
        self.packet_pending = true;
        match &mut self.io {
            Io::Xdp { packet, .. } => packet.as_mut(),
            Io::Tap(tap) => tap.as_mut(),
        }
    }
}
