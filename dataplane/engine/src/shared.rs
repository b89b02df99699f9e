//! What the workers and the control thread share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use culvert_port::Buf;
use culvert_wire::packet::Packet;
use culvert_wire::shard::receive::FrameKey;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use crate::counters::WorkerCounters;
use crate::limits::{HANDOFF_QUEUE, TRAP_QUEUE};
use crate::sight::Sight;
use crate::sight::flows::{FlowTable, FlowWatch};
use crate::sight::trace::Mark;
use crate::tables::{LinkIndex, PortIndex, Tables};
use crate::worker::device::{AttachmentId, Device, DeviceStats, Facts};
use crate::worker::offload::Offload;
use crate::worker::shards::ShardCounts;
use crate::worker::tunnel::Tunnel;

/// A packet on its way to the worker that owns its next port.
#[allow(clippy::large_enum_variant)] // a box would cost an allocation per packet
pub enum Handoff {
    /// For a local tenant.
    Deliver {
        /// The tenant's port.
        port: PortIndex,
        /// The packet.
        buf: Buf,
        /// Where the port's ACL groups and rates are still to be asked: its headers, and the rules by
        /// which it came so far.
        unjudged: Option<(Packet, Arc<Tables>)>,
        /// What is still to be done on it.
        off: Offload,
    },
    /// For a remote tenant: policy is done, cutting and encapsulation are not.
    Encap {
        /// The port it came from.
        port: PortIndex,
        /// The packet.
        buf: Buf,
        /// Its headers.
        pkt: Packet,
        /// What is still to be done on it.
        off: Offload,
        /// The way to the remote VTEP.
        tunnel: Tunnel,
    },
    /// A request for the block of a frame of shards that another worker may have sent.
    Request {
        /// The device it came from.
        link: LinkIndex,
        /// The packet.
        buf: Buf,
        /// The frame.
        frame: FrameKey,
        /// How many workers have looked for its block.
        asked: u16,
    },
    /// An underlay frame whose tenant another worker owns.
    Ingress {
        /// The device it came from.
        link: LinkIndex,
        /// The frame.
        buf: Buf,
        /// What the kernel said of it.
        off: Offload,
    },
}

impl Handoff {
    /// The packet.
    pub fn into_buf(self) -> Buf {
        match self {
            Handoff::Deliver { buf, .. }
            | Handoff::Encap { buf, .. }
            | Handoff::Request { buf, .. }
            | Handoff::Ingress { buf, .. } => buf,
        }
    }
}

/// What the control thread tells a worker.
pub enum Command {
    /// Take a device over.
    Attach(Box<Device>),
    /// Give the devices of an attachment back; what they had queued is flushed.
    Detach(AttachmentId, oneshot::Sender<Vec<Device>>),
    /// Facts about the devices of an attachment have changed.
    Update(AttachmentId, Facts),
    /// Report what was counted for a watch of flows, and begin anew.
    Flows(Arc<FlowWatch>, oneshot::Sender<FlowTable>),
    /// Report the devices' counters.
    Stats(oneshot::Sender<Vec<(AttachmentId, DeviceStats)>>),
    /// Report what became of frames of the shard format, by VTEP.
    Shards(oneshot::Sender<Vec<(IpAddr, ShardCounts)>>),
    /// End.
    Stop,
}

/// What a worker tells the control thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A router on the underlay reported a smaller path MTU.
    PathMtu {
        /// The VTEP that the report is about.
        vtep: IpAddr,
        /// The reported MTU of outer IP packets, in bytes.
        mtu: u32,
    },
}

/// A packet for the control plane.
#[derive(Clone, Debug)]
pub struct Trap {
    /// The port it came from; none for one from the underlay.
    pub port: Option<PortIndex>,
    /// Why.
    pub reason: &'static str,
    /// Its length in bytes.
    pub len: usize,
    /// Its first bytes.
    pub head: Vec<u8>,
}

/// Everything another thread may send to a worker, and the bell that wakes it.
pub struct Inbox {
    packets: ArrayQueue<(Handoff, Option<Arc<Mark>>)>,
    commands: mpsc::Sender<Command>,
    has_commands: AtomicBool,
    asleep: AtomicBool,
    bell: EventFd,
}

impl Inbox {
    /// An inbox, and where its worker takes commands from.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new() -> Result<(Self, mpsc::Receiver<Command>), nix::Error> {
        let bell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (commands, receiver) = mpsc::channel();
        let inbox = Inbox {
            packets: ArrayQueue::new(HANDOFF_QUEUE),
            commands,
            has_commands: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            bell,
        };
        Ok((inbox, receiver))
    }

    /// Hands a packet over, with what follows it where it is traced.
    ///
    /// # Errors
    /// The packet, when the queue is full.
    #[allow(clippy::result_large_err)] // the packet comes back whole; boxing it would allocate
    pub fn push(&self, packet: Handoff, mark: Option<Arc<Mark>>) -> Result<(), Handoff> {
        self.packets.push((packet, mark)).map_err(|(packet, _)| packet)?;
        self.ring();
        Ok(())
    }

    /// Sends a command. False when the worker is gone.
    pub fn command(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.has_commands.store(true, Ordering::Release);
        self.ring();
        sent
    }

    fn ring(&self) {
        // Pairs with the fence-like exchange in `sleep`: either we see the sleeper or it sees us.
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _ = self.bell.write(1);
        }
    }

    /// Takes a packet.
    pub fn pop(&self) -> Option<(Handoff, Option<Arc<Mark>>)> {
        self.packets.pop()
    }

    /// Whether commands wait; clears the mark.
    pub fn take_command_mark(&self) -> bool {
        self.has_commands.load(Ordering::Relaxed)
            && self.has_commands.swap(false, Ordering::Acquire)
    }

    /// Announces that the worker is about to sleep. False when it must not: something came in.
    pub fn prepare_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.packets.is_empty() && !self.has_commands.load(Ordering::SeqCst) {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// The worker is awake again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        let _ = self.bell.read();
    }

    /// The bell, for polling.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Packets that wait, roughly.
    pub fn waiting(&self) -> usize {
        self.packets.len()
    }
}

/// The state that all threads see.
pub struct Shared {
    /// The rules.
    pub tables: ArcSwap<Tables>,
    /// One inbox per worker.
    pub inboxes: Vec<Inbox>,
    /// One counter block per worker.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// Packets for the control plane.
    pub traps: ArrayQueue<Trap>,
    /// News for the control thread.
    pub events: ArrayQueue<Event>,
    /// Rings when a trap or an event was queued.
    pub news: tokio::sync::Notify,
    /// What is watched.
    pub sight: Arc<Sight>,
}

impl Shared {
    /// Shared state of `workers` workers, and each one's command queue.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(workers: usize) -> Result<(Arc<Self>, Vec<mpsc::Receiver<Command>>), nix::Error> {
        let mut inboxes = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..workers {
            let (inbox, receiver) = Inbox::new()?;
            inboxes.push(inbox);
            receivers.push(receiver);
        }
        let shared = Shared {
            tables: ArcSwap::default(),
            inboxes,
            counters: (0..workers).map(|_| Arc::default()).collect(),
            traps: ArrayQueue::new(TRAP_QUEUE),
            events: ArrayQueue::new(TRAP_QUEUE),
            news: tokio::sync::Notify::new(),
            sight: Arc::default(),
        };
        Ok((Arc::new(shared), receivers))
    }

    /// Queues news for the control thread; false when it does not keep up.
    pub fn event(&self, event: Event) -> bool {
        let queued = self.events.push(event).is_ok();
        self.news.notify_one();
        queued
    }
}
