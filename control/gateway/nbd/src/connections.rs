//! The connections of a server: who is there, and how one is ended.
//!
//! # Sessions
//! A *session* is what survives a broken connection: a client that comes again continues it, with a
//! higher *generation*. Connections of one generation live side by side; those of a lower one are
//! ended, so that nothing of theirs lands behind the successor's back. The caller says so from
//! within [`Exports::open`](crate::export::Exports::open) by [`Connections::join_session`]: once that
//! has returned, no request of an older generation is running or will ever start, and the first
//! request of the new connection has not begun.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::gate::Gate;
use crate::proto::Style;

/// Names a session; chosen by the caller, equal for all connections of one session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub Arc<str>);

impl From<&str> for SessionKey {
    fn from(key: &str) -> Self {
        Self(key.into())
    }
}

/// Names a connection; never used again while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A client on a Unix socket, with what the kernel vouches for.
    Unix {
        /// User identifier of the process that connected.
        uid: u32,
        /// Its process identifier, where known.
        pid: Option<i32>,
    },
    /// A pair of pipes, or a stream whose other end has no name.
    Anonymous,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { uid, pid: Some(pid) } => write!(f, "unix:uid={uid},pid={pid}"),
            Self::Unix { uid, pid: None } => write!(f, "unix:uid={uid}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// How far a connection's end has come. Only ever moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests run.
    Serving,
    /// New requests are answered with `ESHUTDOWN`; those that run are answered.
    ShuttingDown,
    /// Nothing more is read; what runs is answered, then the connection is closed.
    Draining,
    /// Nothing more is read or written.
    Dropped,
    /// Its tasks have ended.
    Ended,
}

/// How to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Read no further request, answer those that run, close. After `within` it becomes a drop.
    Drain {
        /// Longest time for the answers to reach the client.
        within: Duration,
    },
    /// Close at once. What runs is finished inside the export; nobody hears of it.
    Drop,
}

/// A client's connection. Clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    id: ConnectionId,
    peer: Peer,
    gate: Arc<Gate>,
    phase: watch::Sender<Phase>,
    export_name: Mutex<Option<Arc<str>>>,
    session: OnceLock<Session>,
    style: OnceLock<Style>,
}

/// A connection's place in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The session.
    pub key: SessionKey,
    /// How often it was continued; higher is newer.
    pub generation: u64,
}

impl Connection {
    /// Its name.
    pub fn id(&self) -> ConnectionId {
        self.shared.id
    }

    /// Its other end.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// The export that it uses or is opening, by the name that the client gave, or what that stands for; `None`
    /// before that.
    pub fn export_name(&self) -> Option<Arc<str>> {
        self.shared.export_name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The session it belongs to.
    pub fn session(&self) -> Option<&Session> {
        self.shared.session.get()
    }

    /// How its requests and replies are framed; `None` during the handshake.
    pub fn style(&self) -> Option<Style> {
        self.shared.style.get().copied()
    }

    /// Number of its requests that are inside the export now.
    pub fn in_flight(&self) -> usize {
        self.shared.gate.inside()
    }

    /// Ends it. Returns when none of its requests is inside the export and none can enter.
    ///
    /// A request inside is never cut short, so this takes as long as the export does.
    pub async fn fence(&self, fence: Fence) {
        match fence {
            Fence::Drain { within } => {
                self.advance(Phase::Draining);
                if tokio::time::timeout(within, self.reached(Phase::Ended)).await.is_err() {
                    self.advance(Phase::Dropped);
                }
            }
            Fence::Drop => self.advance(Phase::Dropped),
        }
        self.shared.gate.emptied().await;
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.shared.gate
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// Moves on to `phase`, unless it is there or further already.
    pub(crate) fn advance(&self, phase: Phase) {
        self.shared.gate.close();
        self.shared.phase.send_if_modified(|now| {
            let moves = *now < phase;
            *now = (*now).max(phase);
            moves
        });
    }

    /// Waits until the phase is `phase` or a later one.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut watch = self.shared.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = watch.wait_for(|now| *now >= phase).await;
    }

    pub(crate) fn set_style(&self, style: Style) {
        let _ = self.shared.style.set(style);
    }

    /// Says what export it uses or is opening. The server says it by the name that the client gave. Where that
    /// stands for another, as the empty one does, [`Exports::open`](crate::export::Exports::open) says it anew,
    /// so that whoever looks for the connections of the other finds this one.
    pub fn set_export_name(&self, name: Option<&str>) {
        *self.shared.export_name.lock().unwrap_or_else(PoisonError::into_inner) =
            name.map(Arc::from);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("peer", self.peer())
            .field("export", &self.export_name())
            .finish_non_exhaustive()
    }
}

/// All connections of a server. Clones are the same set.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    inner: Arc<Mutex<Registry>>,
}

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    live: BTreeMap<ConnectionId, Connection>,
}

impl Connections {
    /// All that are connected, oldest first, those in their handshake included.
    pub fn all(&self) -> Vec<Connection> {
        self.lock().live.values().cloned().collect()
    }

    /// Those that belong to a session.
    pub fn of_session(&self, session: &SessionKey) -> Vec<Connection> {
        self.chosen(|c| c.session().is_some_and(|s| s.key == *session))
    }

    /// Those that use or are opening an export, by its [name](Connection::export_name).
    pub fn of_export(&self, name: &str) -> Vec<Connection> {
        self.chosen(|c| c.export_name().as_deref() == Some(name))
    }

    /// Makes a connection part of a session and ends those of lower generations. Returns when none
    /// of their requests is inside an export and none can enter.
    ///
    /// Whoever joins later fences whoever joined earlier, also one that is still being opened.
    ///
    /// # Errors
    /// [`Superseded`] if a connection of a higher generation is there: nothing is ended then.
    ///
    /// # Panics
    /// When the connection already is in a session.
    pub async fn join_session(
        &self,
        connection: &Connection,
        session: Session,
        fence: Fence,
    ) -> Result<(), Superseded> {
        let mut old = Vec::new();
        {
            let registry = self.lock();
            for other in registry.live.values() {
                let Some(theirs) = other.session().filter(|s| s.key == session.key) else {
                    continue;
                };
                if theirs.generation > session.generation {
                    return Err(Superseded { by: theirs.generation });
                }
                if theirs.generation < session.generation {
                    old.push(other.clone());
                }
            }
            let joined = connection.shared.session.set(session);
            assert!(joined.is_ok(), "connection {} joins a second session", connection.id());
        }
        fence_all(old, fence).await;
        Ok(())
    }

    /// Ends every connection to an export.
    pub async fn fence_export(&self, name: &str, fence: Fence) {
        fence_all(self.of_export(name), fence).await;
    }

    pub(crate) fn add(&self, peer: Peer) -> Connection {
        let mut registry = self.lock();
        let id = ConnectionId(registry.next);
        registry.next += 1;
        let shared = Shared {
            id,
            peer,
            gate: Arc::default(),
            phase: watch::Sender::new(Phase::Serving),
            export_name: Mutex::default(),
            session: OnceLock::new(),
            style: OnceLock::new(),
        };
        let connection = Connection { shared: Arc::new(shared) };
        registry.live.insert(id, connection.clone());
        connection
    }

    /// Takes a connection out, once nothing of it runs any more.
    pub(crate) fn remove(&self, connection: &Connection) {
        connection.advance(Phase::Ended);
        self.lock().live.remove(&connection.id());
    }

    fn chosen(&self, wanted: impl Fn(&Connection) -> bool) -> Vec<Connection> {
        self.lock().live.values().filter(|c| wanted(c)).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session was continued by somebody else in the meantime. The client must give up, or continue
/// the session with a generation above `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session was continued elsewhere (generation {by})")]
pub struct Superseded {
    /// The generation that is there.
    pub by: u64,
}

/// Fences all at once and waits for each: the close comes first for every one of them.
pub(crate) async fn fence_all(connections: Vec<Connection>, fence: Fence) {
    let mut tasks = tokio::task::JoinSet::new();
    for connection in connections {
        tasks.spawn(async move { connection.fence(fence).await });
    }
    while tasks.join_next().await.is_some() {}
}
