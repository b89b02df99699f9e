//! Closing sockets without waiting for it.

use std::sync::mpsc::{self, SendError, Sender};

use culvert_port::Arena;

use crate::worker::device::{self, Device};

/// A thread that closes devices, all that wait at the same time together.
///
/// The kernel lets a socket go only after a grace period, 10 to 20 ms. Grace periods can be shared; so closing
/// keeps up with any number of changes, by a bounded number of threads.
pub(super) struct Closer {
    queue: Sender<Vec<Device>>,
    arena: &'static Arena,
}

impl Closer {
    /// Starts the thread. It ends with this value, after what it was given.
    pub(super) fn new(arena: &'static Arena) -> Self {
        let (queue, waiting) = mpsc::channel::<Vec<Device>>();
        let thread = std::thread::Builder::new().name("closer".to_owned());
        let spawned = thread.spawn(move || {
            while let Ok(mut devices) = waiting.recv() {
                devices.extend(waiting.try_iter().flatten());
                device::close_all(arena, devices);
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to close sockets: changes wait for the kernel");
        }
        Closer { queue, arena }
    }

    /// Closes devices some time soon. Their frames are the closer's until then.
    pub(super) fn close(&self, devices: Vec<Device>) {
        if let Err(SendError(devices)) = self.queue.send(devices) {
            device::close_all(self.arena, devices);
        }
    }
}
