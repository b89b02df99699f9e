//! An `AF_XDP` socket that receives in copy mode, and no more: enough to see what a program wrote.
#![allow(unsafe_code)] // Shared memory with the kernel.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use culvert_ebpf::FrameMeta;

const CHUNK: usize = 4096;
const CHUNKS: u32 = 256;
const FILL_RING: libc::off_t = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;

/// Memory that lives until the process ends: a test's.
fn map(fd: Option<BorrowedFd<'_>>, len: usize, offset: libc::off_t) -> *mut u8 {
    let flags = match fd {
        Some(_) => libc::MAP_SHARED | libc::MAP_POPULATE,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
    assert_ne!(address, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    address.cast()
}

fn set<T>(fd: &OwnedFd, option: libc::c_int, value: &T) {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    let value: *const T = value;
    // SAFETY: the pointer and length describe one live value.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, value.cast(), len) };
    assert_eq!(set, 0, "option {option}: {}", io::Error::last_os_error());
}

pub(crate) struct Receiver {
    fd: OwnedFd,
    memory: *mut u8,
    ring: *mut u8,
    offsets: libc::xdp_ring_offset,
    consumed: u32,
}

// SAFETY: the mappings belong to the process and are reached through this value only.
unsafe impl Send for Receiver {}

impl Receiver {
    /// Bound to queue 0 of a device of the calling thread's namespace, ready to be put in a slot.
    pub(crate) fn bind(ifindex: u32) -> Self {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = CHUNK * CHUNKS as usize;
        let memory = map(None, len, 0);
        let umem = libc::xdp_umem_reg {
            addr: memory as u64,
            len: len as u64,
            chunk_size: CHUNK as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(&fd, libc::XDP_UMEM_REG, &umem);
        set(&fd, libc::XDP_UMEM_FILL_RING, &CHUNKS);
        set(&fd, libc::XDP_UMEM_COMPLETION_RING, &CHUNKS);
        set(&fd, libc::XDP_RX_RING, &CHUNKS);

        // SAFETY: all-zero bytes are a valid value of this structure of integers.
        let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        let mut offsets_len = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
        // SAFETY: the pointers are to live values, the length is that of the first.
        let got = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_MMAP_OFFSETS,
                (&raw mut offsets).cast(),
                &raw mut offsets_len,
            )
        };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());

        let ring = |offset: &libc::xdp_ring_offset, entry, page| {
            map(Some(fd.as_fd()), offset.desc as usize + CHUNKS as usize * entry, page)
        };
        let fill = ring(&offsets.fr, size_of::<u64>(), FILL_RING);
        let rx = ring(&offsets.rx, size_of::<libc::xdp_desc>(), libc::XDP_PGOFF_RX_RING);
        for index in 0..CHUNKS as usize {
            // SAFETY: the fill ring has CHUNKS entries behind `desc`, which nobody reads yet.
            unsafe {
                let entry = fill.add(offsets.fr.desc as usize).cast::<u64>().add(index);
                entry.write((index * CHUNK) as u64);
            }
        }
        // SAFETY: the producer index is inside the mapping, and aligned.
        let producer = unsafe { &*fill.add(offsets.fr.producer as usize).cast::<AtomicU32>() };
        producer.store(CHUNKS, Ordering::Release);

        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY | libc::XDP_USE_SG,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        let address_len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
        // SAFETY: the address is a live value of the length given.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), address_len) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        Self { fd, memory, ring: rx, offsets: offsets.rx, consumed: 0 }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next frame, whole, with what stands in front of it. At most CHUNKS descriptors in all:
    /// used chunks are not given back.
    pub(crate) fn receive(&mut self) -> Option<(FrameMeta, Vec<u8>)> {
        let mut meta = None;
        let mut frame = Vec::new();
        loop {
            let descriptor = self.next()?;
            // SAFETY: the kernel put the descriptor's bytes inside the memory, behind at least
            // 256 bytes of headroom, and does not touch the chunk any more.
            let (before, bytes) = unsafe {
                let start = self.memory.add(descriptor.addr as usize);
                let before = start.sub(FrameMeta::LEN).cast::<[u8; FrameMeta::LEN]>().read();
                (before, std::slice::from_raw_parts(start, descriptor.len as usize))
            };
            if frame.is_empty() {
                meta = FrameMeta::from_bytes(&before);
            }
            frame.extend_from_slice(bytes);
            if descriptor.options & libc::XDP_PKT_CONTD == 0 {
                return Some((meta.expect("the program wrote metadata"), frame));
            }
        }
    }

    fn next(&mut self) -> Option<libc::xdp_desc> {
        // SAFETY: the producer index is inside the mapping, and aligned.
        let producer =
            unsafe { &*self.ring.add(self.offsets.producer as usize).cast::<AtomicU32>() };
        let deadline = Instant::now() + Duration::from_secs(2);
        while producer.load(Ordering::Acquire) == self.consumed {
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let index = (self.consumed % CHUNKS) as usize;
        self.consumed += 1;
        // SAFETY: the kernel published this entry by the index read above.
        Some(unsafe {
            let entries = self.ring.add(self.offsets.desc as usize).cast::<libc::xdp_desc>();
            entries.add(index).read()
        })
    }
}
