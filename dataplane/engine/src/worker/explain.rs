//! What would become of a packet: told by a worker that has every device and sends nothing.
//!
//! It runs the very code that carries packets, on the same tables and the same facts about devices,
//! with counters and queues of its own. It differs where the answer depends on more than that: it has
//! no flow cache and no connections, no rate limits to be used up, and its devices always have room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_port::{Arena, Buf, DEFAULT_HEADROOM, Frame, FrameCache, Sink};

use super::device::{AttachmentId, Device, Facts, Io, Role};
use super::offload::Offload;
use super::{Worker, WorkerConfig};
use crate::shared::Shared;
use crate::sight::Watch;
use crate::sight::select::Select;
use crate::sight::trace::{Joining, Trace, Tracing};
use crate::tables::Tables;

/// What is known of a device.
#[derive(Copy, Clone, Debug)]
pub struct KnownDevice {
    /// What it belongs to.
    pub role: Role,
    /// What may change.
    pub facts: Facts,
    /// Whether it is a TAP.
    pub tap: bool,
}

/// Why a packet cannot be explained.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The dataplane is out of packet memory: try again, or give it more by `--chunks`.
    #[error("no packet memory is free")]
    NoFrames,
    /// The process is out of descriptors.
    #[error("no worker for it can be made: {0}")]
    Worker(nix::Error),
}

/// What would become of a frame that comes in on a device of this role.
///
/// # Errors
/// [`ExplainError`].
pub fn explain(
    tables: Arc<Tables>,
    arena: &'static Arena,
    devices: &[KnownDevice],
    role: Role,
    frame: &[u8],
    off: Offload,
) -> Result<Trace, ExplainError> {
    let (shared, mut commands) = Shared::new(1).map_err(ExplainError::Worker)?;
    shared.tables.store(tables);
    let tracing = Arc::new(Tracing::new(Select::default(), 1));
    // There is nobody else who could watch.
    let watching = shared.sight.begin(&Watch::Trace(Arc::clone(&tracing))).ok();
    let config = WorkerConfig { index: 0, busy_poll: false, spin: Duration::ZERO, alone: true };
    let cache = FrameCache::new(arena);
    let mut worker =
        Worker::new(config, shared, commands.remove(0), cache).map_err(ExplainError::Worker)?;
    worker.attach_sinks(devices);
    if !worker.carry(role, frame, off) {
        return Err(ExplainError::NoFrames);
    }
    drop(watching);
    let (mut joining, now) = (Joining::default(), Instant::now());
    let mut whole = None;
    while let Some(part) = tracing.pop() {
        whole = whole.or(joining.take(part, now));
    }
    Ok(whole.or_else(|| joining.abandon().pop()).unwrap_or_default())
}

impl Worker {
    /// Gives the worker a device for each of these that takes everything and sends nothing.
    pub fn attach_sinks(&mut self, devices: &[KnownDevice]) {
        for (id, known) in devices.iter().enumerate() {
            let io = Io::Sink { sink: Box::new(Sink::default()), tap: known.tap };
            let mut device = Device::new(known.role, io, known.facts.mtu);
            device.attachment = AttachmentId(id as u64);
            device.update(known.facts);
            self.attach(device);
        }
    }

    /// Carries a frame that came in on a device of this role to the end of its way. False when there
    /// is no memory for it.
    pub fn carry(&mut self, role: Role, frame: &[u8], off: Offload) -> bool {
        self.load_tables();
        self.load_watches();
        let Some(buf) = self.buf_of(frame) else { return false };
        match role {
            Role::Tenant(port) => self.egress(port, buf, off),
            Role::Underlay(link) => self.ingress(link, buf, off),
        }
        self.finish_batch();
        true
    }

    /// Lets time pass for frames of shards that wait, and does what it brings. Who runs the worker has a clock for that.
    pub fn pass_time(&mut self, time: Duration) {
        self.load_tables();
        self.age_shards(time);
        self.finish_batch();
    }

    /// A packet of these bytes, in as many frames as it needs.
    fn buf_of(&mut self, bytes: &[u8]) -> Option<Buf> {
        let mut head = self.cache.alloc()?;
        head.reset(DEFAULT_HEADROOM);
        let mut rest = fill(&mut head, bytes);
        let mut buf = Buf::from(head);
        while !rest.is_empty() {
            let Some(mut frame) = self.cache.alloc() else {
                self.cache.free_buf(buf);
                return None;
            };
            frame.reset(0);
            rest = fill(&mut frame, rest);
            buf.push(frame);
        }
        Some(buf)
    }
}

/// Fills an empty frame; returns what finds no room.
fn fill<'a>(frame: &mut Frame, bytes: &'a [u8]) -> &'a [u8] {
    let (now, later) = bytes.split_at(bytes.len().min(frame.tailroom()));
    let fits = frame.extend(now);
    debug_assert!(fits);
    later
}
