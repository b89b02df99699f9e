//! Who may use the API on the Unix socket: root, whoever runs culvertd, and a group.
//!
//! Anybody can connect, so that who is not allowed is told so; every call of such a connection is refused,
//! before its message is read.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use culvert_socket::ListenError;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream, unix::UCred};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;
use tonic::{Request, Status};

/// Connections at a time of those who are not allowed; more are closed at once.
const REFUSED_MAX: usize = 32;

/// Why a socket is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Create the group, or name another.
    #[error("group {0:?}: no such group; legal is the name of a group of this host")]
    NoGroup(String),
    /// See [`ListenError`]; `--socket` chooses another.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Who is allowed.
#[derive(Debug)]
pub struct Access {
    own: Uid,
    group: Option<Gid>,
    refused: AtomicU64,
}

impl Access {
    /// Root, this process' user, and members of a group.
    ///
    /// # Errors
    /// Where there is no such group.
    pub fn new(group: Option<&str>) -> Result<Access, AccessError> {
        let group = match group {
            None => None,
            Some(name) => match Group::from_name(name) {
                Ok(Some(group)) => Some(group.gid),
                Ok(None) | Err(_) => return Err(AccessError::NoGroup(name.to_owned())),
            },
        };
        Ok(Access { own: Uid::effective(), group, refused: AtomicU64::new(0) })
    }

    /// Connections that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn allows(&self, peer: UCred) -> bool {
        let uid = Uid::from_raw(peer.uid());
        if uid.is_root() || uid == self.own {
            return true;
        }
        let Some(group) = self.group else { return false };
        Gid::from_raw(peer.gid()) == group || is_member(uid, group)
    }
}

/// Whether the databases of users and groups say so.
fn is_member(uid: Uid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group))
}

/// Listens on a path; anybody may connect.
///
/// # Errors
/// See [`AccessError`].
pub async fn listen(path: &Path) -> Result<UnixListener, AccessError> {
    Ok(culvert_socket::listen(path, 0o666).await?)
}

/// Connections of a listener, each with what its peer is allowed.
pub fn incoming(
    listener: UnixListener,
    access: Arc<Access>,
) -> impl futures_util::Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(REFUSED_MAX));
    futures_util::stream::unfold((listener, access, places), |(listener, access, places)| async {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // As where descriptors have run out: connections that end make room.
                    tracing::warn!(%error, "a connection is not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(peer) = stream.peer_cred() else { continue };
            let mut place = None;
            let allowed = access.allows(peer);
            if !allowed {
                access.refused.fetch_add(1, Relaxed);
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a caller");
                match Arc::clone(&places).try_acquire_owned() {
                    Ok(free) => place = Some(free),
                    Err(_) => continue,
                }
            }
            let peer = Peer { uid: peer.uid(), allowed };
            let connection = Connection { stream, peer, _place: place };
            return Some((Ok(connection), (listener, access, places)));
        }
    })
}

/// Refuses what its peer may not do.
///
/// # Errors
/// `PERMISSION_DENIED`, for a peer that is not allowed.
#[allow(clippy::result_large_err)]
pub fn only_allowed(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get::<Peer>() {
        Some(peer) if peer.allowed => Ok(request),
        Some(peer) => Err(Status::permission_denied(format!(
            "user {} may not use culvertd; legal are root, the user that runs culvertd, and members of the group in its settings",
            peer.uid
        ))),
        None => Err(Status::permission_denied("the caller is not known")),
    }
}

/// Who called.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    uid: u32,
    allowed: bool,
}

/// A connection of the Unix socket.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
