//! Marked traffic: frames of many kinds, sent one after the other, over and over, and which of them arrived where.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::craft;
use crate::tools::RawSocket;
use crate::topology::{TENANT_DEVICE, Tenant};

/// First bytes of each payload.
const MAGIC: [u8; 4] = *b"mark";
/// Offset of the payload in a frame of UDP over IPv4.
const PAYLOAD: usize = 42;
/// Between two rounds: slow enough that a host which computes for a moment loses nothing.
const PAUSE: Duration = Duration::from_millis(2);
/// How long what was sent last may be on its way.
const PATIENCE: Duration = Duration::from_millis(500);
const BUFFER_BYTES: i32 = 64 << 20;

/// One kind of frame: UDP over IPv4.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Its destination port, by which it is told from the others.
    pub port: u16,
    /// Source and destination MAC addresses.
    pub macs: [[u8; 6]; 2],
    /// Source and destination addresses.
    pub addresses: [std::net::Ipv4Addr; 2],
}

impl Kind {
    /// From one tenant to another.
    pub fn between(from: &Tenant, to: &Tenant, port: u16) -> Kind {
        Kind { port, macs: [from.mac_bytes(), to.mac_bytes()], addresses: [from.v4, to.v4] }
    }

    fn frame(&self, round: u32) -> Vec<u8> {
        let [from, to] = self.addresses;
        let payload = [MAGIC, round.to_be_bytes()].concat();
        craft::udp(self.macs, [from.into(), to.into()], [40_000, self.port], &payload)
    }
}

/// What was sent and what arrived.
#[derive(Debug, Default)]
pub struct Seen {
    /// In each round one frame of each kind was sent.
    pub rounds: u32,
    /// By destination port: where frames arrived, and the rounds in which they were sent, in their order.
    arrived: BTreeMap<u16, Vec<(usize, u32)>>,
}

impl Seen {
    /// The rounds whose frame to a port arrived, in the order of arrival.
    pub fn of(&self, port: u16) -> Vec<u32> {
        self.arrived.get(&port).into_iter().flatten().map(|(_, round)| *round).collect()
    }

    /// The receivers that got a frame to a port.
    pub fn receivers(&self, port: u16) -> Vec<usize> {
        let mut all: Vec<_> =
            self.arrived.get(&port).into_iter().flatten().map(|(at, _)| *at).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Sends one frame of each kind, in their order, round after round, while `change` runs; tells what arrived at the
/// receivers. Kinds are given with the tenant that sends them.
///
/// # Panics
/// If a socket fails, or `change` panics.
pub fn traffic<T>(
    kinds: &[(&Tenant, Kind)],
    receivers: &[&Tenant],
    change: impl FnOnce() -> T,
) -> (Seen, T) {
    let open = |tenant: &Tenant| {
        let socket = RawSocket::open(&tenant.ns, TENANT_DEVICE);
        socket.unwrap_or_else(|e| panic!("{}: {e}", tenant.port))
    };
    let senders: Vec<_> = kinds.iter().map(|(from, kind)| (open(from), kind)).collect();
    let sockets: Vec<_> = receivers.iter().map(|tenant| open(tenant)).collect();
    for socket in &sockets {
        socket.keep(BUFFER_BYTES).unwrap_or_else(|e| panic!("receive buffer: {e}"));
    }
    let [sending, receiving] = [true, true].map(AtomicBool::new);
    let arrived = Mutex::new(BTreeMap::<u16, Vec<(usize, u32)>>::new());
    std::thread::scope(|scope| {
        for (at, socket) in sockets.iter().enumerate() {
            let (arrived, receiving) = (&arrived, &receiving);
            scope.spawn(move || {
                while receiving.load(Ordering::Relaxed) {
                    let frame = socket.receive(Duration::from_millis(20));
                    let frame = frame.unwrap_or_else(|e| panic!("receiver {at}: {e}"));
                    if let Some((port, round)) = frame.as_deref().and_then(mark_of) {
                        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
                        arrived.entry(port).or_default().push((at, round));
                    }
                }
            });
        }
        let sender = scope.spawn(|| {
            let mut round = 0;
            while sending.load(Ordering::Relaxed) {
                for (socket, kind) in &senders {
                    let sent = socket.send(&kind.frame(round));
                    sent.unwrap_or_else(|e| panic!("{kind:?}: {e}"));
                }
                round += 1;
                std::thread::sleep(PAUSE);
            }
            round
        });
        // Whatever becomes of it, the threads end.
        let changed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(change));
        sending.store(false, Ordering::Relaxed);
        let rounds = sender.join();
        std::thread::sleep(PATIENCE);
        receiving.store(false, Ordering::Relaxed);
        let changed = changed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let rounds = rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        (Seen { rounds, arrived: std::mem::take(&mut arrived) }, changed)
    })
}

/// Destination port and round of a marked frame.
fn mark_of(frame: &[u8]) -> Option<(u16, u32)> {
    let payload = frame.get(PAYLOAD..PAYLOAD + 8)?;
    let (magic, round) = payload.split_at(4);
    let port = u16::from_be_bytes(frame.get(36..38)?.try_into().ok()?);
    (magic == MAGIC).then_some((port, u32::from_be_bytes(round.try_into().ok()?)))
}
