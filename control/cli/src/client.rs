//! The ways to the dataplane and to culvertd. That to the culvertd of another host is in [`crate::remote`].

use std::error::Error;
use std::io;
use std::path::Path;

use culvert_model::api::control_client::ControlClient;
use culvert_model::api::dataplane_client::DataplaneClient;
use culvert_model::api::volume_gateway_client::VolumeGatewayClient;
use culvert_model::host_toml;
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::{Host, ModelError, api};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::args::Args;
use crate::error::{CliError, Peer};
use crate::remote;

/// A connected dataplane.
pub(crate) type Client = Connected<DataplaneClient<Channel>>;

/// A connected culvertd.
pub(crate) type Daemon = Connected<ControlClient<Channel>>;

/// A connected gateway.
pub(crate) type Gateway = Connected<VolumeGatewayClient<Channel>>;

/// Somebody at the other end of a Unix socket, or of another host's TCP port.
pub(crate) struct Connected<Calls> {
    pub(crate) calls: Calls,
    who: Peer,
    /// Socket, or host and port.
    at: String,
    /// It is another host's, by TLS.
    remote: bool,
}

/// Connects to a Unix socket.
async fn channel(socket: &Path, who: Peer) -> Result<Channel, CliError> {
    culvert_socket::connect(socket).await.map_err(|error| unreachable(&error, who, socket))
}

/// Fails if another host is asked for what is reached on its own host only.
pub(crate) fn on_this_host(args: &Args, who: &str) -> Result<(), CliError> {
    let Some(remote) = &args.remote else {
        return Ok(());
    };
    Err(CliError::Usage(format!(
        "this asks {who}, which is reached on its own host only: run it on {}, without --remote and CULVERT_REMOTE",
        remote.host()
    )))
}

impl Client {
    /// Connects to the dataplane of this host.
    pub(crate) async fn connect(args: &Args) -> Result<Client, CliError> {
        on_this_host(args, "the dataplane")?;
        let (who, socket) = (Peer::Dataplane, args.socket());
        let calls = DataplaneClient::new(channel(&socket, who).await?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Client { calls, who, at: socket.display().to_string(), remote: false })
    }

    /// The wanted state, once one was accepted.
    pub(crate) async fn host(&mut self) -> Result<Option<Host>, CliError> {
        let answer = self.calls.get_state(api::GetStateRequest {}).await;
        self.answer(answer)?.state.map(read_host).transpose()
    }
}

impl Daemon {
    /// Connects to culvertd: of this host, or of the one that `--remote` names.
    pub(crate) async fn connect(args: &Args) -> Result<Daemon, CliError> {
        let who = Peer::Control;
        let (channel, at) = match &args.remote {
            Some(remote) => (remote.connect(args).await?, remote.to_string()),
            None => {
                let socket = args.control_socket();
                (channel(&socket, who).await?, socket.display().to_string())
            }
        };
        let calls = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Daemon { calls, who, at, remote: args.remote.is_some() })
    }
}

impl Gateway {
    /// Connects to the gateway at `socket`.
    pub(crate) async fn connect(socket: &Path) -> Result<Gateway, CliError> {
        let who = Peer::Gateway;
        let calls = VolumeGatewayClient::new(channel(socket, who).await?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Gateway { calls, who, at: socket.display().to_string(), remote: false })
    }
}

/// A state that was answered.
pub(crate) fn read_host(state: api::State) -> Result<Host, CliError> {
    Host::try_from(state).map_err(|errors| not_understood(&errors))
}

/// What was answered is not what this version knows.
pub(crate) fn not_understood(errors: &[ModelError]) -> CliError {
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    CliError::Answer(errors.join("; "))
}

impl<Calls> Connected<Calls> {
    /// The message of an answer.
    pub(crate) fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, CliError> {
        answer.map(Response::into_inner).map_err(|status| self.failure(&status))
    }

    pub(crate) fn failure(&self, status: &Status) -> CliError {
        if let Some(reason) = remote::distrust(status) {
            return CliError::Untrusted { at: self.at.clone(), reason };
        }
        match CliError::from_status(status, self.who, self.at.clone()) {
            // What has a source comes from the connection, and not from culvertd.
            CliError::Unreachable { who, at, .. } if self.remote && status.source().is_some() => {
                CliError::Unreachable { who, at, reason: remote::ended(status) }
            }
            error => error,
        }
    }

    /// A refusal with its faults in words, or any other failure.
    pub(crate) fn refusal(
        &self,
        status: &Status,
        what: &str,
        line: impl Fn(&api::Fault) -> String,
    ) -> CliError {
        CliError::from_refusal(status, self.who, what, line).unwrap_or_else(|| self.failure(status))
    }
}

fn unreachable(error: &tonic::transport::Error, who: Peer, socket: &Path) -> CliError {
    let at = socket.display().to_string();
    match culvert_socket::io_error(error).map(io::Error::kind) {
        // A socket without a listener is what a killed process leaves behind.
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            CliError::Absent { who, at }
        }
        Some(io::ErrorKind::PermissionDenied) => CliError::Forbidden { at },
        _ => CliError::Unreachable { who, at, reason: culvert_socket::root_cause(error) },
    }
}

/// A fault of the dataplane, where it stands in the file.
pub(crate) fn fault_in_file(file: &str, text: &str, fault: &api::Fault) -> String {
    match host_toml::locate(text, fault) {
        Some(position) => format!("{file}:{position}: {}", fault.text()),
        None => format!("{file}: {}", fault.text()),
    }
}
