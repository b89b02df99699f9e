//! Receive through a packet socket: frames as the device's and the kernel's receive coalescing left them, which no XDP
//! program sees.
//!
//! Attaching XDP turns hardware coalescing (LRO) off, and generic XDP copies a superframe twice before it is in the
//! arena. Here the kernel copies it once, straight into free chunks. The socket hears what a filter lets it hear; the
//! host's stack hears the same, so something else has to keep that from it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::packet::PacketError;
use crate::sys::{self, errno};
use crate::{Buf, CHUNK_LEN, DEFAULT_HEADROOM, Frame, FrameCache, TX_META_LEN, VnetHdr};

/// Packets that one system call receives.
const BATCH: usize = 16;

/// Frames offered to each of them: room for the largest superframe and its headers.
const FRAMES: usize = 17;

/// Where data starts in the frames after the first; 64 keeps it aligned to a cache line.
const TAIL_OFFSET: usize = 64;

const _: () = assert!(
    (CHUNK_LEN - DEFAULT_HEADROOM) + (FRAMES - 1) * (CHUNK_LEN - TAIL_OFFSET) >= 65_536 + 256
);

/// Bytes of the control message that says which VLAN tag the device took off, as `u64` for its alignment.
const CONTROL_WORDS: usize = 8;

/// An instruction of a classic BPF program, as the kernel reads it (`struct sock_filter`).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterInstruction {
    /// What it does.
    pub code: u16,
    /// Instructions to skip where a test holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

/// Lets nothing through.
const NOTHING: [FilterInstruction; 1] = [FilterInstruction { code: 0x06, jt: 0, jf: 0, k: 0 }];

/// How to open a receiving packet socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketRxOptions {
    /// Receive buffer in bytes, which bounds what waits to be read.
    pub rcvbuf_bytes: u32,
    /// Whom it shares the device's packets with.
    pub fanout: Fanout,
}

/// Whom a socket shares the packets of its device with. In a group each flow always goes to the same socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fanout {
    /// It has all of them.
    #[default]
    Alone,
    /// The first of a new group.
    New,
    /// One more of a group, as [`PacketRx::group`] names it.
    Join(u16),
}

impl Default for PacketRxOptions {
    fn default() -> Self {
        Self { rcvbuf_bytes: 16 << 20, fanout: Fanout::Alone }
    }
}

/// What such a socket has counted. All counts only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PacketRxStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Reads put off because the arena had no frames.
    pub rx_starved: u64,
    /// Packets dropped because they were longer than any frame is, or empty.
    pub rx_bad: u64,
    /// Reads that failed because the device is down or gone.
    pub rx_down: u64,
    /// Reads that failed in another way.
    pub rx_failed: u64,
    /// Packets that the kernel dropped since nobody read those before them.
    pub rx_overrun: u64,
}

/// A packet socket that only receives, on one interface, each frame with its [`VnetHdr`].
#[derive(Debug)]
pub struct PacketRx {
    fd: OwnedFd,
    ifindex: u32,
    group: Option<u16>,
    /// Frames for the next packets, by packet; `None` where one has to be replaced.
    frames: Box<[[Option<Frame>; FRAMES]; BATCH]>,
    headers: [[u8; VnetHdr::LEN]; BATCH],
    controls: [[u64; CONTROL_WORDS]; BATCH],
    stats: PacketRxStats,
}

impl PacketRx {
    /// Opens the socket on an interface of the caller's network namespace. It hears nothing before
    /// [`set_filter`](Self::set_filter).
    ///
    /// # Errors
    /// [`PacketError`]; each variant says what to do about it.
    pub fn open(ifindex: u32, options: PacketRxOptions) -> Result<Self, PacketError> {
        let os = |step| move |source| PacketError::Os { step, source };
        // Protocol 0: it hears nothing before it is bound, by when the filter is in place.
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW).map_err(|e| match errno(&e) {
            libc::EPERM => PacketError::Permission,
            _ => PacketError::Os { step: "open a packet socket", source: e },
        })?;
        let fd = socket.as_fd();
        for (option, step) in [
            (libc::PACKET_VNET_HDR, "turn PACKET_VNET_HDR on"),
            (libc::PACKET_AUXDATA, "turn PACKET_AUXDATA on"),
            (libc::PACKET_IGNORE_OUTGOING, "turn PACKET_IGNORE_OUTGOING on"),
        ] {
            sys::set_option(fd, libc::SOL_PACKET, option, &1i32).map_err(os(step))?;
        }
        sys::set_receive_buffer(fd, options.rcvbuf_bytes).map_err(os("size the receive buffer"))?;
        let mut rx = Self {
            frames: Box::new([const { [const { None }; FRAMES] }; BATCH]),
            headers: [[0; VnetHdr::LEN]; BATCH],
            controls: [[0; CONTROL_WORDS]; BATCH],
            stats: PacketRxStats::default(),
            fd: socket,
            ifindex,
            group: None,
        };
        rx.set_filter(&NOTHING)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        sys::bind(rx.fd.as_fd(), &address).map_err(|e| match errno(&e) {
            libc::ENODEV => PacketError::NoDevice { ifindex },
            _ => PacketError::Os { step: "bind a packet socket", source: e },
        })?;
        rx.share(options.fanout).map_err(os("join a group of sockets"))?;
        Ok(rx)
    }

    fn share(&mut self, fanout: Fanout) -> io::Result<()> {
        let (flags, group) = match fanout {
            Fanout::Alone => return Ok(()),
            Fanout::New => (libc::PACKET_FANOUT_FLAG_UNIQUEID, 0),
            Fanout::Join(group) => (0, group),
        };
        let kind = (libc::PACKET_FANOUT_HASH | flags) << 16;
        let (fd, level, name) = (self.fd.as_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT);
        sys::set_option(fd, level, name, &(kind | u32::from(group)))?;
        // SAFETY: every bit pattern of an integer is valid.
        let got = unsafe { sys::get_option(fd, level, name, 0u32) }?;
        self.group = Some(got as u16);
        Ok(())
    }

    /// The group that it shares its device's packets with.
    #[must_use]
    pub fn group(&self) -> Option<u16> {
        self.group
    }

    /// From now on it hears what this program lets through. The program returns how many bytes of a packet to keep:
    /// all of them (`u32::MAX`) or none.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn set_filter(&self, program: &[FilterInstruction]) -> Result<(), PacketError> {
        let mut program: Vec<libc::sock_filter> = program
            .iter()
            .map(|i| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
            .collect();
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(u16::MAX),
            filter: program.as_mut_ptr(),
        };
        // The pointer in it is only read during the call, through which `program` lives.
        sys::set_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
            .map_err(|source| PacketError::Os { step: "set the filter of a packet socket", source })
    }

    /// The interface it receives from.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The descriptor, to be polled.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What was counted.
    pub fn stats(&mut self) -> PacketRxStats {
        let none = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        // SAFETY: every bit pattern of two integers is valid.
        let read = unsafe {
            sys::get_option(self.fd.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, none)
        };
        // Reading sets the kernel's own count to zero.
        self.stats.rx_overrun += read.map_or(0, |read| u64::from(read.tp_drops));
        self.stats
    }

    /// Frames that this socket holds, for the account of the arena.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.frames.iter().flatten().flatten().count()
    }

    /// Appends up to `max` received packets, each with its header, to `out`; returns how many.
    pub fn receive(
        &mut self,
        cache: &mut FrameCache,
        max: usize,
        out: &mut Vec<(Buf, VnetHdr)>,
    ) -> usize {
        let mut packets = 0;
        while packets < max {
            let room = self.restock(cache, BATCH.min(max - packets));
            if room == 0 {
                self.stats.rx_starved += 1;
                break;
            }
            let mut messages = [const { None }; BATCH];
            let count = match self.read(room, &mut messages) {
                Ok(count) => count,
                Err(e) => {
                    match errno(&e) {
                        libc::EAGAIN | libc::EINTR => {}
                        libc::ENETDOWN | libc::ENXIO | libc::ENODEV => self.stats.rx_down += 1,
                        _ => self.stats.rx_failed += 1,
                    }
                    break;
                }
            };
            for (at, message) in messages.iter().take(count).enumerate() {
                let taken = message.and_then(|message| self.take(at, message, cache));
                match taken {
                    Some(packet) => {
                        out.push(packet);
                        packets += 1;
                    }
                    None => self.stats.rx_bad += 1,
                }
            }
            if count < room {
                break;
            }
        }
        self.stats.rx_packets += packets as u64;
        packets
    }

    /// Replaces the frames that the last packets took, for up to `wanted` packets; for how many there is room now.
    fn restock(&mut self, cache: &mut FrameCache, wanted: usize) -> usize {
        for (at, slots) in self.frames.iter_mut().take(wanted).enumerate() {
            for (i, slot) in slots.iter_mut().enumerate() {
                if slot.is_some() {
                    continue;
                }
                let Some(mut frame) = cache.alloc() else { return at };
                if i > 0 {
                    frame.reset(TAIL_OFFSET - TX_META_LEN);
                }
                *slot = Some(frame);
            }
        }
        wanted
    }

    /// Reads up to `room` packets into headers and frames; how many, and of each its length and its VLAN tag. `None`
    /// for one that did not fit.
    fn read(&mut self, room: usize, messages: &mut [Option<Received>; BATCH]) -> io::Result<usize> {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut iovecs = [[none; FRAMES + 1]; BATCH];
        // SAFETY: zeroes are a valid mmsghdr: null pointers with zero lengths.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let parts = self.frames.iter().zip(&mut self.headers).zip(&mut self.controls);
        for ((((frames, hdr), control), iovecs), header) in
            parts.zip(&mut iovecs).zip(&mut headers).take(room)
        {
            let (first, rest) = iovecs.split_at_mut(1);
            first[0] = libc::iovec { iov_base: hdr.as_mut_ptr().cast(), iov_len: VnetHdr::LEN };
            for (iovec, frame) in rest.iter_mut().zip(frames.iter().flatten()) {
                *iovec =
                    libc::iovec { iov_base: frame.data_ptr().cast(), iov_len: frame.tailroom() };
            }
            header.msg_hdr.msg_iov = iovecs.as_mut_ptr();
            header.msg_hdr.msg_iovlen = iovecs.len() as _;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of_val(control) as _;
        }
        // SAFETY: each header points at iovecs and a control buffer that live through the call, and these at a header
        // and at the free bytes of frames, all owned by self and borrowed exclusively; frames are empty, so
        // data_ptr() + tailroom() is the end.
        let count = unsafe {
            let fd = self.fd.as_raw_fd();
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            libc::recvmmsg(fd, headers.as_mut_ptr(), room as _, flags as _, std::ptr::null_mut())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (message, header) in messages.iter_mut().zip(&headers).take(count) {
            // SAFETY: the kernel filled this header, whose control buffer is still alive.
            let vlan = unsafe { tag_of(&header.msg_hdr) };
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            *message = whole.then_some(Received { len: header.msg_len as usize, vlan });
        }
        Ok(count)
    }

    /// Makes a packet of the frames that the packet at a place filled.
    fn take(
        &mut self,
        at: usize,
        received: Received,
        cache: &mut FrameCache,
    ) -> Option<(Buf, VnetHdr)> {
        let len = received.len.checked_sub(VnetHdr::LEN)?;
        let mut packet = Buf::of_filled(self.frames.get_mut(at)?, len, cache)?;
        let mut hdr = VnetHdr::from_bytes(*self.headers.get(at)?);
        if let Some(tag) = received.vlan
            && insert_tag(packet.head_mut(), tag)
        {
            let moved = |at: u16| if at == 0 { 0 } else { at.saturating_add(TAG_LEN as u16) };
            hdr.hdr_len = moved(hdr.hdr_len);
            hdr.csum_start = moved(hdr.csum_start);
        }
        Some((packet, hdr))
    }

    /// Closes the socket and gives its frames to the cache.
    pub fn close(mut self, cache: &mut FrameCache) {
        let frames = self.frames.iter_mut().flatten();
        frames.filter_map(Option::take).for_each(|frame| cache.free(frame));
    }
}

/// Of a received packet: its length, the header included, and the tag that the device took off.
#[derive(Copy, Clone)]
struct Received {
    len: usize,
    vlan: Option<[u8; TAG_LEN]>,
}

/// Bytes of a VLAN tag, and of the MAC addresses in front of it.
const TAG_LEN: usize = 4;
const MACS_LEN: usize = 12;

/// The VLAN tag that the kernel says the device took off, as it stands in a frame.
///
/// # Safety
/// The kernel filled the header, and its control buffer is alive.
unsafe fn tag_of(header: &libc::msghdr) -> Option<[u8; TAG_LEN]> {
    // SAFETY: the caller says that the header and its control buffer are as the kernel left them, which is what these
    // functions walk; an auxdata message is as long as its type, which every bit pattern is valid of.
    let auxdata: libc::tpacket_auxdata = unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        let is_auxdata = !message.is_null()
            && (*message).cmsg_level == libc::SOL_PACKET
            && (*message).cmsg_type == libc::PACKET_AUXDATA
            && (*message).cmsg_len as usize
                >= libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize;
        if !is_auxdata {
            return None;
        }
        std::ptr::read_unaligned(libc::CMSG_DATA(message).cast())
    };
    if auxdata.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let said = auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tpid = if said { auxdata.tp_vlan_tpid } else { libc::ETH_P_8021Q as u16 };
    let ([t0, t1], [v0, v1]) = (tpid.to_be_bytes(), auxdata.tp_vlan_tci.to_be_bytes());
    Some([t0, t1, v0, v1])
}

/// Puts a tag behind the MAC addresses.
fn insert_tag(frame: &mut Frame, tag: [u8; TAG_LEN]) -> bool {
    if frame.len() < MACS_LEN || frame.push_front(TAG_LEN).is_none() {
        return false;
    }
    let data = frame.data_mut();
    data.copy_within(TAG_LEN..TAG_LEN + MACS_LEN, 0);
    if let Some(place) = data.get_mut(MACS_LEN..MACS_LEN + TAG_LEN) {
        place.copy_from_slice(&tag);
    }
    true
}
