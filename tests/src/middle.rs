//! Something in the wire between two hosts that can damage what passes, or lose, repeat and delay it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use culvert_wire::shard::{Shape, ShardHeader};

use crate::combo::Offloads;
use crate::link;
use crate::netns::Netns;
use crate::tools::RawSocket;
use crate::weather::{Sky, Weather};

/// Bytes of frames that wait for a thread that gets no processor: what TCP sends before it waits for an answer.
const WAITING: i32 = 16 << 20;

/// Only frames longer than this are damaged: handshakes and ARP pass, payload is hit.
const SMALLEST_VICTIM: usize = 200;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    every: AtomicU64,
    damaged: AtomicU64,
    lost: AtomicU64,
    // Counts changes of the weather.
    changes: AtomicU64,
    weather: Mutex<Option<(Weather, u64)>>,
    shapes: Mutex<BTreeMap<[u16; 3], u64>>,
    passed: AtomicU64,
    passed_bytes: AtomicU64,
}

/// Large frames from the first host that went on to the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// How many.
    pub frames: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
}

/// A namespace in the wire with a thread per direction that copies frames, flipping a bit in some, and as its weather
/// wants.
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
        let ways = [("left", "right", 0), ("right", "left", 1)];
        let threads = ways.map(|(from, to, way)| {
            let open = |device| {
                let socket = RawSocket::open(&ns, device);
                let socket = socket.and_then(|socket| socket.keep(WAITING).map(|()| socket));
                socket.unwrap_or_else(|e| panic!("middle: {device}: {e}"))
            };
            let (from, to, shared) = (open(from), open(to), Arc::clone(&shared));
            std::thread::spawn(move || copy(&from, &to, &shared, way))
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

    /// From now on there is this weather in both directions, each with random numbers of its own; none: all passes.
    pub fn set_weather(&self, weather: Option<Weather>, seed: u64) {
        let mut place = self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner);
        *place = weather.map(|weather| (weather, seed));
        self.shared.changes.fetch_add(1, Relaxed);
    }

    /// Frames that the weather has lost so far.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Relaxed)
    }

    /// What has passed since this was last asked.
    pub fn take_passed(&self) -> Passed {
        let take = |count: &AtomicU64| count.swap(0, Relaxed);
        Passed { frames: take(&self.shared.passed), bytes: take(&self.shared.passed_bytes) }
    }

    /// The frames of shards that the first host has sent since this was last asked, by their shapes; only those whose
    /// first segment it sent by itself.
    pub fn take_shapes(&self) -> Vec<(Shape, u64)> {
        let shapes =
            std::mem::take(&mut *self.shared.shapes.lock().unwrap_or_else(PoisonError::into_inner));
        shapes
            .into_iter()
            .filter_map(|([length, mss, urgent], count)| {
                let mut header = [0; 20];
                header[4..6].copy_from_slice(&length.to_be_bytes());
                header[14..16].copy_from_slice(&mss.to_be_bytes());
                header[18..20].copy_from_slice(&urgent.to_be_bytes());
                Some((ShardHeader::read(&header).ok()?.shape, count))
            })
            .collect()
    }
}

/// Length, MSS and urgent pointer of the first segment of a frame of shards over IPv4.
fn first_of_shape(frame: &[u8]) -> Option<[u16; 3]> {
    let word = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let ours = frame.get(12..15) == Some(&[8, 0, 0x45])
        && frame.get(23) == Some(&6)
        && word(36) == Some(culvert_wire::shard::PORT)
        && word(40) == Some(0);
    ours.then(|| Some([word(38)?, word(48)?, word(52)?]))?
}

fn copy(from: &RawSocket, to: &RawSocket, shared: &Shared, way: u64) {
    let mut large = 0u64;
    let (mut changes, mut sky) = (0, None);
    let send = |frame: Vec<u8>| {
        if way == 0 && frame.len() > SMALLEST_VICTIM {
            shared.passed.fetch_add(1, Relaxed);
            shared.passed_bytes.fetch_add(frame.len() as u64, Relaxed);
        }
        let _ = to.send(&frame);
    };
    while !shared.stop.load(Relaxed) {
        let now = shared.changes.load(Relaxed);
        if now != changes {
            changes = now;
            let weather = shared.weather.lock().unwrap_or_else(PoisonError::into_inner);
            sky.iter_mut().for_each(|sky: &mut Sky<_>| sky.settle(send));
            sky = weather.map(|(weather, seed)| Sky::new(weather, seed ^ way));
        }
        // An end that is not up yet answers with errors: the frame is lost like on any cut wire.
        let Ok(Some(mut frame)) = from.receive(Duration::from_millis(100)) else {
            sky.iter_mut().for_each(|sky| sky.settle(send));
            continue;
        };
        if way == 0
            && let Some(shape) = first_of_shape(&frame)
        {
            let mut shapes = shared.shapes.lock().unwrap_or_else(PoisonError::into_inner);
            *shapes.entry(shape).or_default() += 1;
        }
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
        match &mut sky {
            Some(sky) => {
                let before = sky.lost();
                sky.pass(frame, send);
                shared.lost.fetch_add(sky.lost() - before, Relaxed);
            }
            None => send(frame),
        }
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
