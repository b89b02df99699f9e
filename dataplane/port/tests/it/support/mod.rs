//! What the live tests share: two hosts with a veth between them, frames, and the far end.
#![allow(unreachable_pub)]

pub mod far;
pub mod frames;
pub mod netns;

use std::time::{Duration, Instant};

use culvert_ebpf::{FrameMeta, LoadOptions, ProgramKind, Programs, XdpMode};
use culvert_port::{Arena, Buf, FrameCache, Kick, Xsk, XskConfig};

use self::netns::Netns;

pub const PATIENCE: Duration = Duration::from_secs(5);

/// Our end of a veth with an AF_XDP socket on it in generic mode, and the tenant's end in a
/// namespace of its own. The calling thread moves into our namespace for good.
pub struct Rig {
    pub arena: &'static Arena,
    pub cache: FrameCache,
    pub xsk: Xsk,
    pub near: Netns,
    pub far: Netns,
    pub ifindex: u32,
    pub programs: Programs,
}

impl Rig {
    pub fn new(mtu: u32) -> Self {
        Self::with(mtu, 1024, |_| {})
    }

    pub fn with(mtu: u32, chunks: usize, adapt: impl FnOnce(&mut XskConfig)) -> Self {
        let (near, far) = netns::linked_pair(mtu);
        near.enter();
        let ifindex = near.ifindex("n0");
        let arena = Arena::new(chunks).unwrap();
        let mut cache = FrameCache::new(arena);
        let mut config = XskConfig::new(ifindex, 0);
        adapt(&mut config);
        let mut xsk = Xsk::open(arena, &config).unwrap();
        xsk.refill(&mut cache);
        let options = LoadOptions { pin_dir: None, max_slots: 4 };
        let mut programs = Programs::load(&options).unwrap();
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 0..1).unwrap();
        programs.set_socket(0, xsk.fd()).unwrap();
        Self { arena, cache, xsk, near, far, ifindex, programs }
    }

    /// Receives until `wanted` packets have satisfied `accept`; others are freed.
    pub fn receive(&mut self, wanted: usize, accept: impl Fn(&Buf) -> bool) -> Vec<Buf> {
        let deadline = Instant::now() + PATIENCE;
        let (mut got, mut batch) = (Vec::new(), Vec::new());
        while got.len() < wanted {
            assert!(
                Instant::now() < deadline,
                "{} of {wanted} packets, {:?}",
                got.len(),
                self.xsk.stats()
            );
            if self.xsk.receive(&mut self.cache, 64, &mut batch) == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
            for buf in batch.drain(..) {
                if accept(&buf) { got.push(buf) } else { self.cache.free_buf(buf) }
            }
            self.xsk.refill(&mut self.cache);
        }
        got
    }

    /// A packet of `bytes` in frames of at most `piece` bytes.
    pub fn buf(&mut self, bytes: &[u8], piece: usize) -> Buf {
        packet(&mut self.cache, bytes, piece)
    }

    /// Kicks and reaps until the kernel has sent everything.
    pub fn send_all(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.xsk.kick() == Kick::Pending {
            assert!(Instant::now() < deadline, "sending stalls: {:?}", self.xsk.stats());
            self.xsk.reap(&mut self.cache);
        }
    }

    /// Closes the socket and asserts that every chunk is accounted for, before and after.
    pub fn finish(self) {
        let Self { arena, cache, xsk, programs, .. } = self;
        let mut cache = cache;
        drop(programs);
        let held = cache.len() + xsk.outstanding();
        assert!(arena.stats().is_whole(held), "{:?} and {held} held", arena.stats());
        xsk.close(&mut cache);
        drop(cache);
        assert!(arena.stats().is_whole(0), "{:?}", arena.stats());
    }
}

pub fn packet(cache: &mut FrameCache, bytes: &[u8], piece: usize) -> Buf {
    let mut frames = bytes.chunks(piece).map(|chunk| {
        let mut frame = cache.alloc().unwrap();
        assert!(frame.extend(chunk));
        frame
    });
    let head = frames.next().unwrap();
    let tail = frames.collect();
    Buf::new(head, tail)
}

/// What the programs said about a received packet.
pub fn meta(buf: &Buf) -> FrameMeta {
    FrameMeta::from_bytes(&buf.head().meta()).expect("the programs wrote metadata")
}

/// Waits for something to become true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
