//! Closing sockets without waiting for it.

use std::sync::mpsc::{self, SendError, Sender};

use culvert_port::Arena;

use crate::worker::device::{self, Device};

/// A thread that closes devices, all that wait at the same time together.
///
/// The kernel lets a socket go only after a grace period of 10 to 20 ms, which many may share: so closing keeps
/// up with any number of changes, by a bounded number of threads.
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use culvert_port::{Buf, FrameCache};

    use super::*;
    use crate::worker::device::{Io, Role};

    /// A device that holds a frame.
    fn device(cache: &mut FrameCache) -> Device {
        let io = Io::Sink { sink: Box::default(), tap: false };
        let mut device = Device::new(Role::Tenant(0), io, 1500);
        device.hold(Buf::from(cache.alloc().unwrap()));
        device
    }

    #[track_caller]
    fn becomes_whole(arena: &Arena) {
        let start = Instant::now();
        while !arena.stats().is_whole(0) {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", arena.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_devices_held_comes_back_soon_and_also_when_the_closer_goes() {
        let arena = Arena::new(256).unwrap();
        let mut cache = FrameCache::new(arena);
        let closer = Closer::new(arena);
        let many = |cache: &mut FrameCache| (0..50).map(|_| device(cache)).collect();
        closer.close(many(&mut cache));
        cache.flush();
        becomes_whole(arena);
        closer.close(many(&mut cache));
        closer.close(many(&mut cache));
        drop(closer);
        drop(cache);
        becomes_whole(arena);
    }

    #[test]
    fn without_its_thread_it_closes_at_once() {
        let arena = Arena::new(64).unwrap();
        let mut cache = FrameCache::new(arena);
        let closer = Closer { queue: mpsc::channel().0, arena };
        closer.close(vec![device(&mut cache)]);
        drop(cache);
        assert!(arena.stats().is_whole(0));
    }
}
