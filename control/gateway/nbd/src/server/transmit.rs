//! The requests of one connection: read, checked, held to the budget, started.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{debug, info};

use super::Shared;
use super::inlet::Inlet;
use super::outlet::{Outgoing, Permit, write_out};
use super::run::{CACHE_STEP, Lane, Pending, run_job};
use crate::buffer::Buffer;
use crate::check::{Job, Rules, Verdict};
use crate::connections::{Connection, Phase};
use crate::errno::Errno;
use crate::export::{Context, Export, ExportError, Exports, MAX_PAYLOAD};
use crate::proto::ParseError;
use crate::proto::reply::MAX_EXTENTS;
use crate::proto::request::Request;

/// Why no more requests are read.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// The client said that it leaves.
    #[error("the client disconnected")]
    Disconnected,
    /// The client hung up between requests.
    #[error("the client hung up")]
    HungUp,
    /// The server ends the connection.
    #[error("ended by the server")]
    Ended,
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] ParseError),
    /// The stream broke, or nothing came for too long.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What a connection's requests may hold.
struct Budget {
    bytes: Arc<Semaphore>,
    max_bytes: u32,
    requests: Arc<Semaphore>,
    /// What advice leaves to others: half, and bytes for the largest request. So nobody ever waits for advice, least
    /// of all the reader, who would not see that the client has left.
    kept_bytes: u32,
    kept_requests: usize,
}

impl Budget {
    fn new(max_bytes: u32, max_requests: usize) -> Self {
        let max_requests = max_requests.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            bytes: Arc::new(Semaphore::new(max_bytes as usize)),
            max_bytes,
            requests: Arc::new(Semaphore::new(max_requests)),
            kept_bytes: (max_bytes / 2).max(MAX_PAYLOAD),
            kept_requests: max_requests.div_ceil(2),
        }
    }

    /// Waits until there is room for a request of `bytes`.
    async fn acquire(&self, bytes: u32) -> Result<Permit, Stop> {
        let bytes = bytes.min(self.max_bytes);
        // The semaphores are never closed.
        let request = Arc::clone(&self.requests).acquire_owned().await.map_err(|_| Stop::Ended)?;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
        Ok(Permit { _request: request, _bytes: bytes.map_err(|_| Stop::Ended)? })
    }

    /// Room for advice of `bytes`, if it leaves enough to others. Only the reader takes from the budget, so what it
    /// sees free stays so.
    fn acquire_for_advice(&self, bytes: u32) -> Option<Permit> {
        let free = self.bytes.available_permits();
        let has_bytes = free >= self.kept_bytes as usize + bytes as usize;
        if !has_bytes || self.requests.available_permits() <= self.kept_requests {
            return None;
        }
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok()?;
        Some(Permit { _request: request, _bytes: bytes })
    }
}

/// Carries requests to the export until the client leaves or the connection is ended. No request can enter the export
/// afterwards; some may still be inside.
pub(super) async fn transmit<X, R, W>(
    shared: &Arc<Shared<X>>,
    inlet: Inlet<R>,
    writer: W,
    connection: &Connection,
    export: Arc<X::Export>,
    rules: Rules,
    contexts: Vec<(u32, Context)>,
) where
    X: Exports,
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (replies, queue) = mpsc::unbounded_channel::<Outgoing>();
    let writing = tokio::spawn({
        let (connection, stall) = (connection.clone(), shared.limits.stall_timeout);
        async move {
            if let Err(e) = write_out(writer, queue, connection.clone(), stall).await {
                debug!(connection = %connection.id(), "cannot write: {e}");
                connection.advance(Phase::Dropped);
            }
        }
    });
    let style = rules.style;
    let lane = Lane {
        shared: Arc::clone(shared),
        export,
        connection: connection.clone(),
        style,
        contexts,
        replies,
    };
    let mut reading = Reading { lane: Arc::new(lane), inlet, rules };
    let stop = reading.run().await;
    match stop {
        Stop::Disconnected | Stop::Ended => debug!(connection = %connection.id(), "{stop}"),
        Stop::HungUp | Stop::Protocol(_) | Stop::Io(_) => {
            info!(connection = %connection.id(), peer = %connection.peer(), "{stop}");
        }
    }
    // Nothing enters any more, and what is advice only may end early.
    connection.gate().close();
    // Replies are made until the last request that runs lets go of the lane.
    drop(reading);
    let _ = writing.await;
}

struct Reading<X: Exports, R> {
    lane: Arc<Lane<X>>,
    inlet: Inlet<R>,
    rules: Rules,
}

impl<X: Exports, R: AsyncRead + Unpin> Reading<X, R> {
    async fn run(&mut self) -> Stop {
        let connection = self.lane.connection.clone();
        let mut ended = pin!(connection.reached(Phase::Draining));
        let limits = &self.lane.shared.limits;
        let budget = Budget::new(limits.in_flight_bytes, limits.in_flight_requests);
        loop {
            let stop = tokio::select! {
                biased;
                () = &mut ended => Some(Stop::Ended),
                result = self.request(&budget) => result.err(),
            };
            if let Some(stop) = stop {
                return stop;
            }
        }
    }

    /// Reads one request and starts or refuses it.
    async fn request(&mut self, budget: &Budget) -> Result<(), Stop> {
        let stall = self.lane.shared.limits.stall_timeout;
        let request = self.header(stall).await?;
        let job = match self.rules.check(&request, self.lane.export.size())? {
            Verdict::Run(job) => job,
            Verdict::Refuse { errno, reason, payload } => {
                let permit = budget.acquire(0).await?;
                self.inlet.skip(payload, stall).await?;
                self.pending(request, permit).refuse(ExportError::new(errno, reason));
                return Ok(());
            }
            Verdict::Disconnect => return Err(Stop::Disconnected),
        };
        let cost = self.cost(&job);
        let permit = match job {
            Job::Cache { .. } => budget.acquire_for_advice(cost),
            _ => Some(budget.acquire(cost).await?),
        };
        let Some(permit) = permit else {
            // Advice may be left undone, and is where others would wait for it.
            let permit = budget.acquire(0).await?;
            self.pending(request, permit).succeed();
            return Ok(());
        };
        let data = match job {
            Job::Write { length, .. } => Some(self.payload(length, stall).await?),
            _ => None,
        };
        let pending = self.pending(request, permit);
        match self.lane.connection.gate().enter() {
            Some(inside) => {
                // What the export has at hand is answered at once; the rest goes on by itself.
                let mut running = Box::pin(run_job(pending, job, data, inside));
                let mut nobody = TaskContext::from_waker(Waker::noop());
                // An export that panics fails this request only.
                let poll = AssertUnwindSafe(|| running.as_mut().poll(&mut nobody).is_pending());
                if catch_unwind(poll).unwrap_or(false) {
                    tokio::spawn(running);
                }
                Ok(())
            }
            None if self.lane.connection.phase() == Phase::ShuttingDown => {
                pending.refuse(ExportError::new(Errno::Shutdown, "the server is shutting down"));
                Ok(())
            }
            None => {
                pending.forget();
                Err(Stop::Ended)
            }
        }
    }

    async fn header(&mut self, stall: Duration) -> Result<Request, Stop> {
        if self.inlet.buffered().is_empty() {
            let first = self.inlet.fill();
            let result = match self.lane.shared.limits.idle_timeout {
                Some(idle) => timeout(idle, first).await.unwrap_or_else(|e| Err(e.into())),
                None => first.await,
            };
            match result {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Stop::HungUp),
                result => result?,
            }
        }
        let len = Request::len(self.rules.style);
        self.inlet.ensure(len, stall).await?;
        let request = Request::parse(self.rules.style, &self.inlet.buffered()[..len])?;
        self.inlet.consume(len);
        Ok(request)
    }

    async fn payload(&mut self, length: u32, stall: Duration) -> Result<Buffer, Stop> {
        let mut data = self.lane.shared.pool.take(length as usize);
        self.inlet.read_exact(&mut data, stall).await?;
        Ok(data)
    }

    /// Bytes that a request and its reply hold while it runs.
    fn cost(&self, job: &Job) -> u32 {
        match job {
            Job::Read { length, .. } | Job::Write { length, .. } => *length,
            Job::BlockStatus { .. } => {
                let extents = MAX_EXTENTS * self.lane.contexts.len();
                u32::try_from(extents * 2 * 16).unwrap_or(u32::MAX)
            }
            Job::Cache { length, .. } => {
                u32::try_from((*length).min(CACHE_STEP)).unwrap_or(u32::MAX)
            }
            Job::Flush | Job::Trim { .. } | Job::WriteZeroes { .. } => 0,
        }
    }

    fn pending(&self, request: Request, permit: Permit) -> Pending<X> {
        Pending::new(Arc::clone(&self.lane), request, permit, Instant::now())
    }
}
