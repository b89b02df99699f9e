//! Threads that connections live on.
//!
//! A connection's reader, its requests and its writer are woken by each other all the time. On one thread
//! that is a matter of nanoseconds, while waking another thread takes longer than a cached read does.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads for what a lane cannot do at once, as waiting for a disk.
const BLOCKING_THREADS: usize = 64;

/// Threads with a runtime each, among which connections are dealt out. What still runs there when the
/// value is dropped is dropped, too.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Lane {
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
    /// The thread ends when it is dropped.
    stop: Option<oneshot::Sender<()>>,
}

impl Lanes {
    /// So many threads.
    ///
    /// # Errors
    /// When the system gives no thread, or no descriptor for it.
    pub fn new(number: NonZero<usize>) -> io::Result<Self> {
        let lanes = (0..number.get()).map(Lane::new).collect::<io::Result<_>>()?;
        Ok(Self { lanes, next: AtomicUsize::new(0) })
    }

    /// As many threads as the machine has CPUs, from two to sixteen.
    ///
    /// # Errors
    /// See [`Lanes::new`].
    pub fn for_this_machine() -> io::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(2, NonZero::get).clamp(2, 16);
        Self::new(NonZero::new(cpus).unwrap_or(NonZero::<usize>::MIN))
    }

    /// The lane of the next connection.
    pub(super) fn next(&self) -> Option<&Handle> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let lane = self.lanes.get(number.checked_rem(self.lanes.len())?)?;
        Some(&lane.handle)
    }
}

impl Lane {
    fn new(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name(format!("nbd-lane-{number}-io"))
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(format!("nbd-lane-{number}"));
        let thread = thread.spawn(move || {
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, thread: Some(thread), stop: Some(stop) })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
