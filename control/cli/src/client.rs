//! The way to the dataplane.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use culvert_model::api::dataplane_client::DataplaneClient;
use culvert_model::host_toml;
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::{Host, api};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::error::CliError;

/// A connected dataplane.
pub(crate) struct Client {
    pub(crate) calls: DataplaneClient<Channel>,
    socket: PathBuf,
}

impl Client {
    /// Connects to a Unix socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Client, CliError> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The authority is part of the protocol, and without meaning on a Unix socket.
        let channel =
            Endpoint::from_static("http://dataplane").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| unreachable(&error, socket))?;
        let calls = DataplaneClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Client { calls, socket: socket.to_owned() })
    }

    /// The message of an answer.
    pub(crate) fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, CliError> {
        answer.map(Response::into_inner).map_err(|status| self.failure(&status))
    }

    pub(crate) fn failure(&self, status: &Status) -> CliError {
        CliError::from_status(status, self.socket.clone())
    }

    /// The wanted state, once one was accepted.
    pub(crate) async fn host(&mut self) -> Result<Option<Host>, CliError> {
        let answer = self.calls.get_state(api::GetStateRequest {}).await;
        let Some(state) = self.answer(answer)?.state else { return Ok(None) };
        let host = Host::try_from(state);
        host.map(Some).map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            CliError::Answer(errors.join("; "))
        })
    }
}

fn unreachable(error: &tonic::transport::Error, socket: &Path) -> CliError {
    let socket = socket.to_owned();
    let mut cause: Option<&dyn Error> = Some(error);
    let mut reason = error.to_string();
    while let Some(error) = cause {
        reason = error.to_string();
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            // A socket without a listener is what a killed dataplane leaves behind.
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return CliError::Absent { socket };
            }
            Some(io::ErrorKind::PermissionDenied) => return CliError::Forbidden { socket },
            _ => cause = error.source(),
        }
    }
    CliError::Unreachable { socket, reason }
}

/// A fault of the dataplane, where it stands in the file.
pub(crate) fn fault_in_file(file: &str, text: &str, fault: &api::Fault) -> String {
    match host_toml::locate(text, fault) {
        Some(position) => format!("{file}:{position}: {}", fault.text()),
        None => format!("{file}: {}", fault.text()),
    }
}
