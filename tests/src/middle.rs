//! Something in the wire between two hosts that can damage what passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::combo::Offloads;
use crate::link;
use crate::netns::Netns;
use crate::tools::RawSocket;

/// Bytes of frames that wait for a thread that gets no processor: what TCP sends before it waits for an answer.
const WAITING: i32 = 16 << 20;

/// Only frames longer than this are damaged: handshakes and ARP pass, payload is hit.
const SMALLEST_VICTIM: usize = 200;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    every: AtomicU64,
    damaged: AtomicU64,
}

/// A namespace in the wire with a thread per direction that copies frames, flipping a bit in some.
///
/// The hosts' ends must have their offloads off: a damaged frame must have had a complete checksum.
#[derive(Debug)]
pub struct Middle {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    ns: Netns,
}

impl Middle {
    /// Joins device `name` in `a` to device `name` in `b` through a namespace of its own.
    ///
    /// # Panics
    /// If that cannot be set up.
    pub fn between(a: &Netns, b: &Netns, name: &str, mtu: u32) -> Self {
        let ns = Netns::new("m");
        let shared = Arc::new(Shared::default());
        for (host, device) in [(a, "left"), (b, "right")] {
            link::veth(&ns, device, host, name, mtu);
            link::set_offloads(&ns, device, Offloads::Off);
            ns.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1");
            ns.run(&format!("ip link set {device} up"));
        }
        let threads = [("left", "right"), ("right", "left")].map(|(from, to)| {
            let open = |device| {
                let socket = RawSocket::open(&ns, device);
                let socket = socket.and_then(|socket| socket.keep(WAITING).map(|()| socket));
                socket.unwrap_or_else(|e| panic!("middle: {device}: {e}"))
            };
            let (from, to, shared) = (open(from), open(to), Arc::clone(&shared));
            std::thread::spawn(move || copy(&from, &to, &shared))
        });
        Self { shared, threads: threads.into(), ns }
    }

    /// The namespace; the device towards the first host is `left`, towards the second `right`. The
    /// hosts' own devices show no capture what AF_XDP sends, nor what XDP takes.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// From now on damages every `every`th large frame; 0 damages none.
    pub fn damage_every(&self, every: u64) {
        self.shared.every.store(every, Relaxed);
    }

    /// Frames damaged so far.
    pub fn damaged(&self) -> u64 {
        self.shared.damaged.load(Relaxed)
    }
}

fn copy(from: &RawSocket, to: &RawSocket, shared: &Shared) {
    let mut large = 0u64;
    while !shared.stop.load(Relaxed) {
        // An end that is not up yet answers with errors: the frame is lost like on any cut wire.
        let Ok(Some(mut frame)) = from.receive(Duration::from_millis(100)) else { continue };
        if frame.len() > SMALLEST_VICTIM {
            large += 1;
            let every = shared.every.load(Relaxed);
            if every > 0
                && large.is_multiple_of(every)
                && let Some(byte) = frame.last_mut()
            {
                *byte ^= 0x10;
                shared.damaged.fetch_add(1, Relaxed);
            }
        }
        let _ = to.send(&frame);
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
