//! What the service manager is told (`sd_notify(3)`); nothing where there is none.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The gateway serves.
pub const READY: &str = "READY=1";
/// The gateway is about to stop.
pub const STOPPING: &str = "STOPPING=1";

/// Tells the service manager a state, if one listens.
///
/// # Errors
/// When its socket cannot be reached; that is no reason to stop.
pub fn notify(state: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let path = path.as_encoded_bytes();
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::str::from_utf8(path).map_err(io::Error::other)?)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
