//! Transmit through a packet socket: superframes, checksum offload, and frames above the MTU of
//! the far end, none of which an AF_XDP socket can send.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use thiserror::Error;

use crate::gather::{GatherBatch, MESSAGES_MAX};
use crate::sys::{self, errno};
use crate::{Buf, FlushOutcome, FrameCache, HoldId, Message, VnetHdr};

/// Why a packet socket could not be opened.
#[derive(Debug, Error)]
pub enum PacketError {
    /// Run with CAP_NET_RAW.
    #[error("no permission to open a packet socket: CAP_NET_RAW is missing")]
    Permission,
    /// The interface is gone; bring it back, or remove the port.
    #[error("no interface has index {ifindex} in this network namespace")]
    NoDevice {
        /// The index configured.
        ifindex: u32,
    },
    /// Anything else the kernel refused.
    #[error("cannot {step}: {source}")]
    Os {
        /// What was attempted.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How to open a packet socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketOptions {
    /// Send buffer in bytes, which bounds what is in flight.
    pub sndbuf_bytes: u32,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self { sndbuf_bytes: 8 << 20 }
    }
}

/// A packet socket that only sends, on one interface, each frame with its [`VnetHdr`].
///
/// Messages gather in a batch that [`flush`](Self::flush) sends with one system call.
#[derive(Debug)]
pub struct PacketTx {
    batch: GatherBatch,
    /// Empty before the first flush, and [`MESSAGES_MAX`] of them from then on.
    headers: Vec<libc::mmsghdr>,
    fd: OwnedFd,
    ifindex: u32,
}

// SAFETY: `headers` holds pointers only during `flush`, into the batch.
unsafe impl Send for PacketTx {}

impl PacketTx {
    /// Opens the socket on an interface of the caller's network namespace.
    ///
    /// # Errors
    /// [`PacketError`]; each variant says what to do about it.
    pub fn open(ifindex: u32, options: PacketOptions) -> Result<Self, PacketError> {
        let os = |step| move |source| PacketError::Os { step, source };
        // Protocol 0: the socket receives nothing, so nothing is cloned for it.
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW).map_err(|e| match errno(&e) {
            libc::EPERM => PacketError::Permission,
            _ => PacketError::Os { step: "open a packet socket", source: e },
        })?;
        let fd = socket.as_fd();
        sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)
            .map_err(os("turn PACKET_VNET_HDR on"))?;
        sys::set_send_buffer(fd, options.sndbuf_bytes).map_err(os("size the send buffer"))?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        sys::bind(fd, &address).map_err(|e| match errno(&e) {
            libc::ENODEV => PacketError::NoDevice { ifindex },
            _ => PacketError::Os { step: "bind a packet socket", source: e },
        })?;
        Ok(Self { batch: GatherBatch::new(), headers: Vec::new(), fd: socket, ifindex })
    }

    /// The interface it sends on.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The descriptor, to be polled.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// True when the batch has room for a message of so many pieces and bytes of headers.
    #[must_use]
    pub fn has_room(&self, pieces: usize, header_bytes: usize) -> bool {
        self.batch.has_room(pieces, header_bytes)
    }

    /// True when nothing waits for a flush.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Frames that the batch holds, for the account of the arena.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.batch.outstanding()
    }

    /// Gives a packet to the batch, for several messages to send parts of.
    pub fn hold(&mut self, buf: Buf) -> HoldId {
        self.batch.hold(buf)
    }

    /// A held packet; `None` once the batch has been flushed.
    #[must_use]
    pub fn held(&self, id: HoldId) -> Option<&Buf> {
        self.batch.held(id)
    }

    /// Starts a message.
    pub fn message(&mut self, hdr: VnetHdr) -> Message<'_> {
        self.batch.message(hdr)
    }

    /// A message of one whole packet as it is.
    ///
    /// # Errors
    /// The packet, when there is no room: flush first.
    pub fn send(&mut self, hdr: VnetHdr, buf: Buf) -> Result<(), Buf> {
        self.batch.send(hdr, buf)
    }

    /// Sends all messages, without blocking, and frees the packets they held. A message that the
    /// kernel refuses is dropped and counted, and the rest goes on.
    pub fn flush(&mut self, cache: &mut FrameCache) -> FlushOutcome {
        let mut outcome = FlushOutcome::default();
        let count = self.batch.messages().len();
        if self.headers.is_empty() && count > 0 {
            // SAFETY: zeroes are a valid mmsghdr: null pointers with zero lengths.
            let empty: libc::mmsghdr = unsafe { std::mem::zeroed() };
            self.headers.resize(MESSAGES_MAX, empty);
        }
        for (header, pieces) in self.headers.iter_mut().zip(self.batch.messages()) {
            header.msg_hdr.msg_iov = pieces.as_ptr().cast_mut();
            header.msg_hdr.msg_iovlen = pieces.len() as _;
        }
        let mut next = 0;
        while let Some(rest) = self.headers.get_mut(next..count).filter(|r| !r.is_empty()) {
            // SAFETY: every header points at iovecs of the batch, which does not change before
            // the end of this function, and these at bytes that the batch owns.
            let sent = unsafe {
                let fd = self.fd.as_raw_fd();
                libc::sendmmsg(fd, rest.as_mut_ptr(), rest.len() as _, libc::MSG_DONTWAIT as _)
            };
            if let Ok(sent) = usize::try_from(sent) {
                outcome.sent += sent;
                next += sent.max(1);
                continue;
            }
            let errno = errno(&io::Error::last_os_error());
            match errno {
                libc::EINTR => {}
                // These are about the socket or the device, not about the one message.
                libc::EAGAIN | libc::ENETDOWN | libc::ENXIO | libc::ENODEV => {
                    outcome.drop_for(errno, self.batch.packets(next, count));
                    break;
                }
                _ => {
                    outcome.drop_for(errno, self.batch.packets(next, 1));
                    next += 1;
                }
            }
        }
        outcome.refused += self.batch.clear(cache);
        outcome
    }
}
