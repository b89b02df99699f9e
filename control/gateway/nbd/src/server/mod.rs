//! The server: accepts clients, runs their handshakes, and carries requests to exports.
//!
//! | file | what |
//! |---|---|
//! | `listen` | sockets, socket activation, standard input and output |
//! | `lanes` | threads that connections live on |
//! | `connection` | one connection from its first byte to its end |
//! | `negotiate` | its handshake |
//! | `transmit` | its requests: read, checked, budgeted, started |
//! | `run` | one request in the export |
//! | `compose` | the reply made of its outcome |
//! | `outlet` | replies on their way to the socket |
//! | `inlet` | bytes from the socket |
//!
//! # What a client can cost
//! A connection holds one input buffer of 64 KiB, and requests up to the budgets of [`Limits`];
//! nothing is read from it beyond them. A slow client keeps its own budget occupied and no other
//! connection's; nothing bounds the sum of budgets but the number of connections, nor how many of them
//! one peer has. In the handshake a client holds one option of 64 KiB, for a limited time; when too
//! many handshakes are going on, the oldest is thrown out. Replies to LIST are as long as the list.

mod compose;
mod connection;
mod inlet;
mod lanes;
mod negotiate;
mod outlet;
mod run;
mod transmit;

pub mod listen;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use crate::buffer::BufferPool;
use crate::connections::{Connection, ConnectionId, Connections, Fence, Peer, Phase, fence_all};
use crate::export::{Exports, MAX_PAYLOAD};
use crate::observe::Observer;
pub use lanes::Lanes;
use listen::{Detached, Listener, Stream};

/// What clients may cost a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that use an export; further ones are refused with a sentence. Default 1024.
    pub max_connections: usize,
    /// Handshakes at the same time; beyond, the oldest one is thrown out. Default 128.
    pub max_handshakes: usize,
    /// Longest time that a handshake waits for its client, in sum. Default 10 s.
    pub handshake_timeout: Duration,
    /// Most options of one handshake. Default 1000.
    pub max_options: u32,
    /// Longest time without a byte in the middle of a message, either way. Default 60 s.
    pub stall_timeout: Duration,
    /// Longest time without a request. Default: any.
    pub idle_timeout: Option<Duration>,
    /// Bytes of payload that one connection's requests hold, of writes and replies together, until answered. A CACHE
    /// counts for what the export is asked for at a time, up to 4 MiB; it is answered without being done where less than
    /// half of the room, or than 32 MiB, would be left to others. Default 64 MiB; a single request may always hold 32 MiB.
    pub in_flight_bytes: u32,
    /// Requests that one connection may have unanswered before more are read. Those of CACHE that are done leave half
    /// to others. Default 256.
    pub in_flight_requests: usize,
    /// Bytes of payload buffers kept for later, for all connections. Default 64 MiB.
    pub idle_buffer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_handshakes: 128,
            handshake_timeout: Duration::from_secs(10),
            max_options: 1000,
            stall_timeout: Duration::from_secs(60),
            idle_timeout: None,
            in_flight_bytes: 64 << 20,
            in_flight_requests: 256,
            idle_buffer_bytes: 64 << 20,
        }
    }
}

/// How a server ends.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// How long clients get `ESHUTDOWN` and may leave by themselves, before the server hangs up.
    pub linger: Duration,
    /// How long, after that, the answers of running requests may take to reach their clients.
    pub within: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { linger: Duration::from_secs(1), within: Duration::from_secs(10) }
    }
}

/// An NBD server. Clones are the same server.
pub struct Server<X> {
    shared: Arc<Shared<X>>,
}

impl<X> Clone for Server<X> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<X> {
    exports: X,
    limits: Limits,
    observer: Box<dyn Observer>,
    pool: BufferPool,
    connections: Connections,
    /// Permits for connections that use an export.
    places: Arc<Semaphore>,
    /// Connections whose handshake waits for the client; the smallest identifier is the oldest.
    handshakes: Mutex<BTreeMap<ConnectionId, Connection>>,
    is_stopping: watch::Sender<bool>,
}

impl<X: Exports> Server<X> {
    /// A server of `exports` that tells `observer` (`()` for nobody) of its work.
    pub fn new(exports: X, limits: Limits, observer: impl Observer) -> Self {
        let shared = Shared {
            exports,
            observer: Box::new(observer),
            pool: BufferPool::new(limits.idle_buffer_bytes),
            connections: Connections::default(),
            places: Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS))),
            handshakes: Mutex::default(),
            is_stopping: watch::Sender::new(false),
            limits: Limits { in_flight_bytes: limits.in_flight_bytes.max(MAX_PAYLOAD), ..limits },
        };
        Self { shared: Arc::new(shared) }
    }

    /// Who is connected.
    pub fn connections(&self) -> &Connections {
        &self.shared.connections
    }

    /// The pool of payload buffers.
    pub fn pool(&self) -> &BufferPool {
        &self.shared.pool
    }

    /// Accepts clients until the server is shut down. Several listeners may be served at once.
    pub async fn serve(&self, listener: Listener) {
        self.accept(listener, None).await;
    }

    /// The same, with the connections on `lanes`, which must live until the server is shut down.
    pub async fn serve_on(&self, listener: Listener, lanes: &Lanes) {
        self.accept(listener, Some(lanes)).await;
    }

    async fn accept(&self, listener: Listener, lanes: Option<&Lanes>) {
        let mut is_stopping = self.shared.is_stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = is_stopping.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    let server = self.clone();
                    match lanes.and_then(Lanes::next) {
                        Some(lane) => {
                            let moved = stream.detach();
                            lane.spawn(async move {
                                match moved.and_then(Detached::attach) {
                                    Ok(stream) => server.serve_stream(stream).await,
                                    Err(e) => warn!("cannot serve a client: {e}"),
                                }
                            });
                        }
                        None => {
                            tokio::spawn(async move { server.serve_stream(stream).await });
                        }
                    }
                }
                Err(e) => {
                    // Out of descriptors, most likely: wait for some to be closed.
                    warn!(%listener, "cannot accept a client: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one connected client until it has left.
    pub async fn serve_stream(&self, stream: Stream) {
        match stream {
            Stream::Tcp(stream, peer) => {
                // Small replies must not wait for more; without the option they are only slower.
                let _ = stream.set_nodelay(true);
                let (reader, writer) = stream.into_split();
                self.serve_pair(reader, writer, peer).await;
            }
            Stream::Unix(stream, peer) => {
                let (reader, writer) = stream.into_split();
                self.serve_pair(reader, writer, peer).await;
            }
            Stream::Pipes(reader, writer) => {
                self.serve_pair(reader, writer, Peer::Anonymous).await;
            }
        }
    }

    /// Serves one client over any pair of streams until it has left.
    pub async fn serve_pair<R, W>(&self, reader: R, writer: W, peer: Peer)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let connection = self.shared.connections.add(peer);
        // Added before this was asked: a shutdown that begins now finds it in the list.
        if *self.shared.is_stopping.borrow() {
            connection.advance(Phase::Draining);
        }
        self.shared.observer.connected(&connection);
        let _leaving = Leaving { shared: &self.shared, connection: &connection };
        connection::run(&self.shared, reader, writer, &connection).await;
    }

    /// Stops accepting, answers what runs, answers anything new with `ESHUTDOWN`, and hangs up.
    /// Returns when no request is inside an export and every connection is closed.
    pub async fn shutdown(&self, how: Shutdown) {
        self.shared.is_stopping.send_replace(true);
        for connection in self.connections().all() {
            connection.advance(Phase::ShuttingDown);
        }
        let everyone_left = async {
            for connection in self.connections().all() {
                connection.reached(Phase::Ended).await;
            }
        };
        let _ = tokio::time::timeout(how.linger, everyone_left).await;
        // Whoever was accepted in the meantime is among them.
        loop {
            let rest = self.connections().all();
            if rest.is_empty() {
                break;
            }
            info!(connections = rest.len(), "hanging up");
            fence_all(rest.clone(), Fence::Drain { within: how.within }).await;
            for connection in rest {
                connection.reached(Phase::Ended).await;
            }
        }
    }
}

impl<X> Shared<X> {
    /// Notes that a handshake waits for its client, until the guard is dropped. Throws out the
    /// oldest if there are too many.
    fn wait_for_client(&self, connection: &Connection) -> Waiting<'_, X> {
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        handshakes.insert(connection.id(), connection.clone());
        if handshakes.len() > self.limits.max_handshakes.max(1)
            && let Some((_, oldest)) = handshakes.pop_first()
        {
            warn!(connection = %oldest.id(), peer = %oldest.peer(), "too many handshakes: the oldest is thrown out");
            oldest.advance(Phase::Dropped);
        }
        Waiting { shared: self, id: connection.id() }
    }
}

/// A handshake that waits for its client.
struct Waiting<'a, X> {
    shared: &'a Shared<X>,
    id: ConnectionId,
}

impl<X> Drop for Waiting<'_, X> {
    fn drop(&mut self) {
        let mut handshakes = self.shared.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        handshakes.remove(&self.id);
    }
}

/// Takes a connection off the list, whatever ended it.
struct Leaving<'a, X> {
    shared: &'a Shared<X>,
    connection: &'a Connection,
}

impl<X> Drop for Leaving<'_, X> {
    fn drop(&mut self) {
        self.shared.connections.remove(self.connection);
        self.shared.observer.disconnected(self.connection);
    }
}

impl<X> fmt::Debug for Server<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.shared.limits)
            .field("connections", &self.shared.connections)
            .finish_non_exhaustive()
    }
}
