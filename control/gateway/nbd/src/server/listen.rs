//! Where clients come from: sockets of our own, sockets passed by a service manager, and standard
//! input and output.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net as std_unix;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::connections::Peer;

/// Clients that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    name: String,
    /// Taken away with the listener.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The file of a socket that this process made; removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A connected client.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream, Peer),
    /// Over a Unix socket.
    Unix(UnixStream, Peer),
    /// Over two pipes.
    Pipes(pipe::Receiver, pipe::Sender),
}

impl Listener {
    /// Listens on a TCP address. Dead clients are found by TCP keepalive.
    ///
    /// # Errors
    /// When the address is not ours, in use, or not allowed.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // Accepted sockets inherit it.
        socket.set_keepalive(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let name = format!("tcp:{}", listener.local_addr()?);
        Ok(Self { kind: Kind::Tcp(listener), name, _file: None })
    }

    /// Listens on a Unix socket, whose file goes away with the listener. A socket file that nobody
    /// listens on any more is replaced. Who may connect is decided by the permissions of folder and
    /// socket, and those of the socket by the umask.
    ///
    /// # Errors
    /// When somebody listens there, when another kind of file is there, or when the folder is
    /// missing or not writable.
    pub fn unix(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                let message = format!("{}: exists and is no socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            Ok(_) => match std_unix::UnixStream::connect(path) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Ok(_) => {
                    let message = format!("{}: another server listens there", path.display());
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
                }
                Err(e) => return Err(e),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let listener = UnixListener::bind(path)?;
        let name = format!("unix:{}", path.display());
        let _file = Some(SocketFile(path.to_owned()));
        Ok(Self { kind: Kind::Unix(listener), name, _file })
    }

    /// The sockets that a service manager passed (`LISTEN_FDS`), TCP and Unix ones in any order;
    /// none if it passed none.
    ///
    /// # Errors
    /// When one is no listening stream socket.
    pub fn from_activation() -> io::Result<Vec<Self>> {
        let mut passed = ListenFd::from_env();
        let mut listeners = Vec::with_capacity(passed.len());
        for i in 0..passed.len() {
            // A socket of another family is put back, for the next attempt.
            if let Ok(Some(listener)) = passed.take_unix_listener(i) {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                let path = address.as_pathname().unwrap_or(Path::new("?"));
                let name = format!("unix:{}", path.display());
                let kind = Kind::Unix(UnixListener::from_std(listener)?);
                listeners.push(Self { kind, name, _file: None });
            } else if let Some(listener) = passed.take_tcp_listener(i)? {
                listener.set_nonblocking(true)?;
                let name = format!("tcp:{}", listener.local_addr()?);
                let kind = Kind::Tcp(TcpListener::from_std(listener)?);
                listeners.push(Self { kind, name, _file: None });
            }
        }
        Ok(listeners)
    }

    /// The TCP address it listens on; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(_) => None,
        }
    }

    /// Accepts a client. Can be given up without losing one.
    ///
    /// # Errors
    /// Those of `accept(2)`: usually out of file descriptors.
    pub async fn accept(&self) -> io::Result<Stream> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok(Stream::Tcp(stream, Peer::Tcp(address)))
            }
            Kind::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = unix_peer(&stream);
                Ok(Stream::Unix(stream, peer))
            }
        }
    }
}

/// A connected client that belongs to no runtime.
#[derive(Debug)]
pub(super) enum Detached {
    Tcp(std::net::TcpStream, Peer),
    Unix(std_unix::UnixStream, Peer),
    Pipes(OwnedFd, OwnedFd),
}

impl Detached {
    /// The client on the runtime that this is called on.
    pub(super) fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(stream, peer) => Stream::Tcp(TcpStream::from_std(stream)?, peer),
            Self::Unix(stream, peer) => Stream::Unix(UnixStream::from_std(stream)?, peer),
            Self::Pipes(input, output) => Stream::Pipes(
                pipe::Receiver::from_owned_fd(input)?,
                pipe::Sender::from_owned_fd(output)?,
            ),
        })
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Stream {
    /// Takes the client off its runtime.
    pub(super) fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(stream, peer) => Detached::Tcp(stream.into_std()?, peer),
            Self::Unix(stream, peer) => Detached::Unix(stream.into_std()?, peer),
            Self::Pipes(input, output) => {
                Detached::Pipes(input.into_nonblocking_fd()?, output.into_nonblocking_fd()?)
            }
        })
    }

    /// The client at standard input and output: one socket at both, or two pipes.
    ///
    /// # Errors
    /// When they are something else, as a terminal.
    pub fn stdio() -> io::Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        Self::from_fds(stdin, stdout)
    }

    /// The client at `input`, which is a socket; or at `input` and `output`, which are pipes.
    ///
    /// # Errors
    /// When they are something else.
    pub fn from_fds(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        let file = fs::File::from(input);
        let is_socket = file.metadata()?.file_type().is_socket();
        let input = OwnedFd::from(file);
        if !is_socket {
            let pipes = (pipe::Receiver::from_owned_fd(input), pipe::Sender::from_owned_fd(output));
            return match pipes {
                (Ok(input), Ok(output)) => Ok(Self::Pipes(input, output)),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "standard input and output are neither a socket nor two pipes",
                )),
            };
        }
        let unix = std_unix::UnixStream::from(input.try_clone()?);
        if unix.local_addr().is_ok() {
            unix.set_nonblocking(true)?;
            let stream = UnixStream::from_std(unix)?;
            let peer = unix_peer(&stream);
            return Ok(Self::Unix(stream, peer));
        }
        let tcp = std::net::TcpStream::from(input);
        let peer = tcp.peer_addr()?;
        tcp.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpStream::from_std(tcp)?, Peer::Tcp(peer)))
    }
}

fn unix_peer(stream: &UnixStream) -> Peer {
    match stream.peer_cred() {
        Ok(cred) => Peer::Unix { uid: cred.uid(), pid: cred.pid() },
        Err(_) => Peer::Anonymous,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let listener = Listener::unix(&path).unwrap();
        assert_eq!(listener.to_string(), format!("unix:{}", path.display()));
        let used = Listener::unix(&path).unwrap_err();
        assert_eq!(used.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists(), "the file goes with the listener");
        // What a process leaves that was killed.
        drop(std_unix::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::unix(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        let other = Listener::unix(&path).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(Listener::unix(&folder.path().join("missing/sock")).is_err());
    }

    #[tokio::test]
    async fn an_address_in_use_is_refused() {
        let one = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = one.tcp_address().unwrap();
        assert_eq!(one.to_string(), format!("tcp:{address}"));
        let used = Listener::tcp(address).unwrap_err();
        assert_eq!(used.kind(), io::ErrorKind::AddrInUse);
    }
}
