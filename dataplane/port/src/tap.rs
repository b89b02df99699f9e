//! TAP devices with checksum and segmentation offloads.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use crate::device::{self, DeviceError};
use crate::gather::GatherBatch;
use crate::sys::{cvt, errno};
use crate::{
    Buf, CHUNK_LEN, DEFAULT_HEADROOM, FlushOutcome, Frame, FrameCache, HoldId, Message,
    TX_META_LEN, VnetHdr,
};

/// Frames offered to one read: room for the largest superframe and its headers.
const READ_FRAMES: usize = 17;

/// Where data starts in the frames after the first; 64 keeps it aligned to a cache line.
const TAIL_OFFSET: usize = 64;

const _: () = assert!(
    (CHUNK_LEN - DEFAULT_HEADROOM) + (READ_FRAMES - 1) * (CHUNK_LEN - TAIL_OFFSET) >= 65536 + 256
);

/// Why a device node may not be opened: no capability of the network's helps there.
fn refusal(error: &io::Error) -> String {
    let why = if errno(error) == libc::EACCES {
        "its mode and owner, or a mount without devices, keep this user from reading and writing it"
    } else {
        "the device control group of this process forbids it (systemd: `DeviceAllow=/dev/net/tun rw`)"
    };
    format!("{error}: {why}")
}

/// Why a TAP device could not be opened.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel has no TUN/TAP driver, or /dev/net/tun is missing: load `tun`, create the node.
    #[error("no TUN/TAP driver: cannot open /dev/net/tun: {0}")]
    NoDriver(io::Error),
    /// Let this user read and write the device node; systemd does by `DeviceAllow=/dev/net/tun rw`.
    #[error("TAP device '{name}': cannot open /dev/net/tun: {}", refusal(source))]
    Node {
        /// The device.
        name: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// Run with CAP_NET_ADMIN.
    #[error("no permission to open TAP device '{name}': CAP_NET_ADMIN is missing")]
    Permission {
        /// The device.
        name: String,
    },
    /// Another program has the device: stop it, or choose another name.
    #[error("TAP device '{name}' is in use by another program")]
    Busy {
        /// The device.
        name: String,
    },
    /// A device of this name exists that is not a TAP device or has other queue settings: choose
    /// another name, or delete it (`ip link del`).
    #[error("interface '{name}' exists and is not a TAP device with the same queue setting")]
    OtherKind {
        /// The device.
        name: String,
    },
    /// Choose a name of 1 to 15 bytes without '/' or blanks.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Anything else the kernel refused.
    #[error("cannot {step} of TAP device '{name}': {source}")]
    Os {
        /// What was attempted.
        step: &'static str,
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How to open a TAP device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOptions {
    /// Let the other side send superframes and partial checksums.
    pub offloads: bool,
    /// One of several queues of the device; open it once per queue.
    pub multi_queue: bool,
    /// Keep the device when the process ends.
    pub persist: bool,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { offloads: true, multi_queue: false, persist: false }
    }
}

/// What a TAP queue has counted on receiving. All counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Reads put off because the arena had no frames.
    pub rx_starved: u64,
    /// Packets dropped because they were shorter than their virtio header or too long.
    pub rx_bad: u64,
    /// Reads that failed because the device is down or gone (EIO, EBADFD).
    pub rx_down: u64,
    /// Reads that failed in another way.
    pub rx_failed: u64,
}

/// One queue of a TAP device. What is sent here arrives at the device as received, and the other
/// way around. One system call per packet: the driver has no batched one.
#[derive(Debug)]
pub struct Tap {
    batch: GatherBatch,
    /// Frames for the next read; `None` where one has to be replaced.
    frames: [Option<Frame>; READ_FRAMES],
    hdr: [u8; VnetHdr::LEN],
    fd: OwnedFd,
    name: String,
    uso: bool,
    stats: TapStats,
}

impl Tap {
    /// Opens the TAP device `name`, creating it where it does not exist, in the caller's network
    /// namespace. It may be moved to another one afterwards.
    ///
    /// # Errors
    /// [`TapError`]; each variant says what to do about it.
    pub fn open(name: &str, options: TapOptions) -> Result<Self, TapError> {
        let mut req = device::request(name)?;
        let name = name.to_owned();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|e| match errno(&e) {
                libc::EPERM | libc::EACCES => TapError::Node { name: name.clone(), source: e },
                _ => TapError::NoDriver(e),
            })?;
        let fd = OwnedFd::from(file);
        let queues = if options.multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
        req.ifr_ifru.ifru_flags = flags as i16;
        let raw = fd.as_raw_fd();
        // SAFETY: the request is a live ifreq.
        cvt(unsafe { libc::ioctl(raw, libc::TUNSETIFF, &raw mut req) }).map_err(|e| {
            let name = name.clone();
            match errno(&e) {
                libc::EPERM => TapError::Permission { name },
                libc::EBUSY => TapError::Busy { name },
                libc::EINVAL => TapError::OtherKind { name },
                _ => TapError::Os { step: "attach to the queue", name, source: e },
            }
        })?;
        let os = |step| {
            let name = name.clone();
            move |source| TapError::Os { step, name, source }
        };
        let hdr_len = VnetHdr::LEN as libc::c_int;
        // SAFETY: the request reads an int.
        cvt(unsafe { libc::ioctl(raw, libc::TUNSETVNETHDRSZ, &raw const hdr_len) })
            .map_err(os("set the virtio header length"))?;
        let uso = set_offloads(raw, options.offloads).map_err(os("set the offloads"))?;
        let persist = libc::c_ulong::from(options.persist);
        // SAFETY: the request takes its argument by value.
        cvt(unsafe { libc::ioctl(raw, libc::TUNSETPERSIST, persist) })
            .map_err(os("set the persistence"))?;
        Ok(Self {
            batch: GatherBatch::new(),
            frames: [const { None }; READ_FRAMES],
            hdr: [0; VnetHdr::LEN],
            fd,
            name,
            uso,
            stats: TapStats::default(),
        })
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor, to be polled.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A second handle, which tells whether the device still exists.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn watch(&self) -> io::Result<TapWatch> {
        Ok(TapWatch { fd: self.fd.try_clone()? })
    }

    /// True when UDP superframes may come and go, too (Linux 6.2 on).
    #[must_use]
    pub fn has_uso(&self) -> bool {
        self.uso
    }

    /// What was counted on receiving.
    #[must_use]
    pub fn stats(&self) -> TapStats {
        self.stats
    }

    /// Frames that this queue holds, for the account of the arena.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.frames.iter().flatten().count() + self.batch.outstanding()
    }

    /// Appends up to `max` received packets, each with its header, to `out`; returns how many.
    pub fn receive(
        &mut self,
        cache: &mut FrameCache,
        max: usize,
        out: &mut Vec<(Buf, VnetHdr)>,
    ) -> usize {
        let mut packets = 0;
        for _ in 0..max {
            if !self.restock(cache) {
                self.stats.rx_starved += 1;
                break;
            }
            let len = match self.read() {
                Ok(len) => len,
                Err(e) => {
                    match errno(&e) {
                        libc::EAGAIN | libc::EINTR => {}
                        libc::EIO | libc::EBADFD => self.stats.rx_down += 1,
                        _ => self.stats.rx_failed += 1,
                    }
                    break;
                }
            };
            match self.take(len, cache) {
                Some(buf) => {
                    out.push((buf, VnetHdr::from_bytes(self.hdr)));
                    packets += 1;
                }
                None => self.stats.rx_bad += 1,
            }
        }
        self.stats.rx_packets += packets as u64;
        packets
    }

    /// Replaces the frames that the last packets took.
    fn restock(&mut self, cache: &mut FrameCache) -> bool {
        for (i, slot) in self.frames.iter_mut().enumerate() {
            if slot.is_none() {
                let Some(mut frame) = cache.alloc() else { return false };
                if i > 0 {
                    frame.reset(TAIL_OFFSET - TX_META_LEN);
                }
                *slot = Some(frame);
            }
        }
        true
    }

    /// Reads one packet into header and frames; its length, the header included.
    fn read(&mut self) -> io::Result<usize> {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut iovecs = [none; READ_FRAMES + 1];
        let (first, rest) = iovecs.split_at_mut(1);
        first[0] = libc::iovec { iov_base: self.hdr.as_mut_ptr().cast(), iov_len: VnetHdr::LEN };
        for (iovec, frame) in rest.iter_mut().zip(self.frames.iter().flatten()) {
            *iovec = libc::iovec { iov_base: frame.data_ptr().cast(), iov_len: frame.tailroom() };
        }
        // SAFETY: the iovecs point at the header and at the free bytes of frames, all owned by
        // self and borrowed exclusively; frames are empty, so data_ptr() + tailroom() is the end.
        let len = unsafe {
            libc::readv(self.fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int)
        };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Makes a packet of the frames that a read of `len` bytes filled.
    fn take(&mut self, len: usize, cache: &mut FrameCache) -> Option<Buf> {
        Buf::of_filled(&mut self.frames, len.checked_sub(VnetHdr::LEN)?, cache)
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

    /// Writes all messages, without blocking, and frees the packets they held. A message that the
    /// kernel refuses is dropped and counted, and the rest goes on.
    pub fn flush(&mut self, cache: &mut FrameCache) -> FlushOutcome {
        let mut outcome = FlushOutcome::default();
        for (at, pieces) in self.batch.messages().enumerate() {
            // SAFETY: the iovecs are of the batch and point at bytes that it owns.
            let written = unsafe {
                libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int)
            };
            if written >= 0 {
                outcome.sent += 1;
            } else {
                let errno = errno(&io::Error::last_os_error());
                outcome.drop_for(errno, self.batch.packets(at, 1));
            }
        }
        outcome.refused += self.batch.clear(cache);
        outcome
    }

    /// Closes the queue and gives its frames to the cache.
    pub fn close(mut self, cache: &mut FrameCache) {
        self.batch.clear(cache);
        self.frames.iter_mut().filter_map(Option::take).for_each(|f| cache.free(f));
    }
}

/// Tells whether a TAP device still exists, in whichever network namespace it is by now. The device
/// stays as long as this and its [`Tap`] do, unless somebody deletes it or its namespace ends.
#[derive(Debug)]
pub struct TapWatch {
    fd: OwnedFd,
}

impl TapWatch {
    /// True once the device is gone. A device of the same name that comes later is another one.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // SAFETY: zeroes are a valid ifreq, which the request fills.
        let result = unsafe {
            let mut req: libc::ifreq = std::mem::zeroed();
            cvt(libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETIFF, &raw mut req))
        };
        result.is_err_and(|error| errno(&error) == libc::EBADFD)
    }
}

/// Turns offloads on or off; returns whether UDP segmentation is among them.
fn set_offloads(fd: i32, on: bool) -> io::Result<bool> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |flags: libc::c_uint| {
        // SAFETY: the request takes its argument by value.
        cvt(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    };
    if !on {
        return set(0).map(|_| false);
    }
    if set(tcp | uso).is_ok() {
        return Ok(true);
    }
    set(tcp).map(|_| false)
}
