//! The Unix sockets that the programs of Culvert meet on: how one is listened on, and how a gRPC client
//! gets there. What the ends of a TLS connection have against each other is in [`tls`].

pub mod tls;

use std::error::Error;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// Why a socket is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Stop the other process, or choose another socket.
    #[error("{}: another process answers on this socket", .0.display())]
    InUse(PathBuf),
    /// Check the existence and permissions of the folder, and that the path is no other file's.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The folder for sockets of a user who may not write to the host's run directory: `culvert` in
/// `$XDG_RUNTIME_DIR`, which is for that user alone. `None` where the session has no such folder.
pub fn user_run_dir() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    // Relative ones are to be ignored, says the XDG Base Directory Specification.
    folder.is_absolute().then(|| folder.join("culvert"))
}

/// Listens on a path, whose folder is made where it is missing, with the permission bits of `mode`. A
/// socket that a dead process left behind is replaced; a live one is not, nor a file that is no socket.
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(path: &Path, mode: u32) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Io { path: path.to_owned(), source };
    match UnixStream::connect(path).await {
        Ok(_) => return Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            if !std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
                return Err(failed(error));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// A connection for gRPC calls to whoever listens on a path.
///
/// # Errors
/// As the transport says; [`io_error`] finds what is behind it.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is part of the protocol, and without meaning on a Unix socket.
    Endpoint::from_static("http://culvert").connect_with_connector(connector).await
}

/// What the kernel said, among the causes of an error.
pub fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The last of the causes of an error in words, which says the most.
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/x.sock");
        let first = listen(&path, 0o600).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(
            matches!(listen(&path, 0o600).await, Err(ListenError::InUse(found)) if found == path)
        );
        drop(first);
        let second = listen(&path, 0o666).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        drop(second);
        let file = folder.path().join("file");
        std::fs::write(&file, "text").unwrap();
        assert!(matches!(listen(&file, 0o600).await, Err(ListenError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
    }

    #[tokio::test]
    async fn what_the_kernel_said_of_a_connection_is_found() {
        let error = connect(Path::new("/nonexistent/x.sock")).await.unwrap_err();
        assert_eq!(io_error(&error).map(io::Error::kind), Some(io::ErrorKind::NotFound));
        assert!(root_cause(&error).contains("No such file"), "{}", root_cause(&error));
    }
}
