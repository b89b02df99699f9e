//! The way to culvertd, which keeps what this host is to carry.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_model::api::control_client::ControlClient;
use culvert_model::api::{self, ApplyStatus, ObjectKind, edit, object};
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::object::Object;
use culvert_model::{DATAPLANE_SOCKET, Format, PortId, Underlay, Vnet, VnetId};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::error::CniError;

/// Name of culvertd's socket in the run directory.
const CONTROL_SOCKET: &str = "culvertd.sock";
/// How long the dataplane may take to carry a port. Runtimes give a call a minute or more.
const APPLY_TIME: Duration = Duration::from_secs(10);
/// How long culvertd may take to answer anything else.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How often to ask again what became of a port.
const PAUSE: Duration = Duration::from_millis(50);
/// How often to try a change that others' changes came before.
const TRIES: u32 = 5;

/// A connected culvertd.
pub(crate) struct Culvertd {
    calls: ControlClient<Channel>,
    socket: PathBuf,
}

/// A port as culvertd has it.
#[derive(Clone, Debug)]
pub(crate) struct HeldPort {
    pub(crate) port: api::Port,
    pub(crate) status: ApplyStatus,
    pub(crate) reason: String,
}

impl Culvertd {
    /// Connects to the one whose sockets are in `run_dir`.
    pub(crate) async fn connect(run_dir: &Path) -> Result<Culvertd, CniError> {
        let socket = run_dir.join(CONTROL_SOCKET);
        let channel = channel(&socket).await.map_err(|reason| {
            let problem = format!("culvertd does not answer on {}: {reason}", socket.display());
            CniError::TryAgain { problem }
        })?;
        let calls = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Culvertd { calls, socket })
    }

    /// How store and dataplane are.
    pub(crate) async fn info(&mut self) -> Result<api::ControlInfo, CniError> {
        let asked = self.calls.get_control_info(request(api::GetControlInfoRequest {})).await;
        self.answer(asked)
    }

    /// The vnet of a name.
    pub(crate) async fn vnet(&mut self, id: &VnetId) -> Result<Vnet, CniError> {
        let vnets: Vec<Vnet> = self
            .objects(ObjectKind::Vnet)
            .await?
            .into_iter()
            .filter_map(|object| match object {
                Object::Vnet(vnet) => Some(vnet),
                _ => None,
            })
            .collect();
        let known: Vec<_> = vnets.iter().map(|vnet| vnet.id.to_string()).collect();
        vnets.into_iter().find(|vnet| vnet.id == *id).ok_or_else(|| {
            let legal = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
            CniError::config("vnet", id, format!("there is no such vnet; there are: {legal}"))
        })
    }

    /// The underlay of this host.
    pub(crate) async fn underlay(&mut self) -> Result<Underlay, CniError> {
        let objects = self.objects(ObjectKind::Underlay).await?;
        let found = objects.into_iter().find_map(|object| match object {
            Object::Underlay(underlay) => Some(underlay),
            _ => None,
        });
        found.ok_or_else(|| CniError::TryAgain {
            problem: "this host has no underlay yet: give culvertd one".to_owned(),
        })
    }

    /// The formats beside the built-in ones.
    pub(crate) async fn formats(&mut self) -> Result<Vec<Format>, CniError> {
        let objects = self.objects(ObjectKind::Format).await?.into_iter();
        let formats = objects.filter_map(|object| match object {
            Object::Format(format) => Some(format),
            _ => None,
        });
        Ok(formats.collect())
    }

    /// The ports of this host.
    pub(crate) async fn ports(&mut self) -> Result<Vec<HeldPort>, CniError> {
        let listed = self.list(ObjectKind::Port).await?;
        let held = listed.into_iter().filter_map(|entry| {
            let (status, reason) = (entry.status(), entry.reason);
            match entry.object?.object? {
                object::Object::Port(port) => Some(HeldPort { port, status, reason }),
                _ => None,
            }
        });
        Ok(held.collect())
    }

    /// The port of an id, if culvertd has it.
    pub(crate) async fn port(&mut self, id: &PortId) -> Result<Option<HeldPort>, CniError> {
        Ok(self.ports().await?.into_iter().find(|held| held.port.id == id.as_str()))
    }

    /// Puts a port and waits until the dataplane carries it.
    pub(crate) async fn put(&mut self, port: &api::Port) -> Result<(), CniError> {
        self.change(edit::Edit::PutPort(port.clone()))
            .await
            .map_err(|status| self.failure(&status))?;
        let id = PortId::new(&port.id).map_err(|fault| CniError::Refused(fault.to_string()))?;
        self.wait_applied(&id).await
    }

    /// Waits until the dataplane carries a port.
    pub(crate) async fn wait_applied(&mut self, id: &PortId) -> Result<(), CniError> {
        let end = Instant::now() + APPLY_TIME;
        loop {
            let Some(held) = self.port(id).await? else {
                return Err(CniError::Refused(format!("port {id} is gone: somebody deleted it")));
            };
            match held.status {
                ApplyStatus::Applied => return Ok(()),
                _ if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                ApplyStatus::Failed => return Err(CniError::Refused(held.reason)),
                _ => {
                    let reason = if held.reason.is_empty() { "no answer" } else { &held.reason };
                    let problem = format!("the dataplane does not carry port {id} yet: {reason}");
                    return Err(CniError::TryAgain { problem });
                }
            }
        }
    }

    /// Deletes a port. One that is gone is no error.
    pub(crate) async fn delete(&mut self, id: &PortId) -> Result<(), CniError> {
        if self.port(id).await?.is_none() {
            return Ok(());
        }
        match self.change(edit::Edit::DeletePort(id.as_str().to_owned())).await {
            Ok(()) => Ok(()),
            // Another call for the same container may have been faster.
            Err(status) => match self.port(id).await {
                Ok(None) => Ok(()),
                _ => Err(self.failure(&status)),
            },
        }
    }

    async fn change(&mut self, edit: edit::Edit) -> Result<(), Status> {
        let mut tries = 0;
        loop {
            tries += 1;
            let message = api::ApplyEditsRequest {
                edits: vec![api::Edit { edit: Some(edit.clone()) }],
                wait_ms: u32::try_from(APPLY_TIME.as_millis()).unwrap_or(u32::MAX),
                ..Default::default()
            };
            let mut request = Request::new(message);
            request.set_timeout(APPLY_TIME + ANSWER_TIME);
            match self.calls.apply_edits(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::Aborted && tries < TRIES => {}
                Err(status) => return Err(status),
            }
        }
    }

    async fn list(&mut self, kind: ObjectKind) -> Result<Vec<api::ListedObject>, CniError> {
        let message = api::ListObjectsRequest { kind: kind.into(), ..Default::default() };
        let asked = self.calls.list_objects(request(message)).await;
        Ok(self.answer(asked)?.objects)
    }

    async fn objects(&mut self, kind: ObjectKind) -> Result<Vec<Object>, CniError> {
        let listed = self.list(kind).await?;
        let objects = listed.into_iter().filter_map(|entry| entry.object).map(Object::try_from);
        objects.collect::<Result<_, _>>().map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            CniError::Refused(format!("its answer is not understood: {}", errors.join("; ")))
        })
    }

    fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, CniError> {
        answer.map(Response::into_inner).map_err(|status| self.failure(&status))
    }

    fn failure(&self, status: &Status) -> CniError {
        if let Some(refusal) = api::refusal(status) {
            let faults: Vec<_> = refusal.faults.iter().map(api::Fault::text).collect();
            return CniError::Refused(faults.join("; "));
        }
        let said = format!("{}: {}", status.code().description(), status.message());
        match status.code() {
            // The last three are what tonic makes of a connection that breaks or an answer that does not come.
            Code::Unavailable
            | Code::Aborted
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded => CniError::TryAgain {
                problem: format!("culvertd on {}: {said}", self.socket.display()),
            },
            _ => CniError::Refused(said),
        }
    }
}

/// Whether a dataplane takes connections.
pub(crate) async fn dataplane_answers(run_dir: &Path) -> bool {
    UnixStream::connect(run_dir.join(DATAPLANE_SOCKET)).await.is_ok()
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_TIME);
    request
}

async fn channel(socket: &Path) -> Result<Channel, String> {
    culvert_socket::connect(socket).await.map_err(|error| {
        match culvert_socket::io_error(&error).map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                "is it running?".to_owned()
            }
            _ => culvert_socket::root_cause(&error),
        }
    })
}
