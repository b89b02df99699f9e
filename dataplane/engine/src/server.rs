//! The API on a Unix socket.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::api::dataplane_server::{Dataplane, DataplaneServer};
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::{Host, api, edit};
use culvert_socket::ListenError;
use futures_util::Stream;
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

use crate::control::{ApplyError, Controller};

mod watching;

/// The controller behind the API.
pub type Shared = Arc<Mutex<Controller>>;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// See [`ListenError`]; `--socket` chooses another.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// See the message.
    #[error("the API server stopped: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Listens on `path`, for this user alone.
///
/// # Errors
/// See [`ServeError`].
pub async fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    Ok(culvert_socket::listen(path, 0o600).await?)
}

/// How long calls that run are waited for at the end. Streams end only with their clients, and a client
/// that does not listen never hears that it is to go.
const GRACE: Duration = Duration::from_secs(1);

/// Serves the API until `stop` resolves, and a moment longer what had begun by then.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    listener: UnixListener,
    controller: Shared,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let api = DataplaneServer::new(Api { controller })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let incoming = UnixListenerStream::new(listener);
    let (stopping, stopped) = oneshot::channel();
    let stop = async {
        stop.await;
        let _ = stopping.send(());
    };
    let over = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(GRACE).await,
            // The server has ended by itself.
            Err(_) => std::future::pending().await,
        }
    };
    let server = tonic::transport::Server::builder();
    tokio::select! {
        served = server.serve_with_incoming_shutdown(api, incoming, stop) => served?,
        () = over => {}
    }
    Ok(())
}

struct Api {
    controller: Shared,
}

type Outcome = Result<(u64, Vec<String>), ApplyError>;

impl Api {
    /// Runs a change. A client that goes away takes its call's future with it, wherever that waits.
    /// What has begun comes to its end in a task that nobody drops, and that has the lock before it
    /// starts: whoever gets the lock after it finds all of the change or none.
    async fn change(
        &self,
        change: impl for<'a> FnOnce(
            &'a mut Controller,
        ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>
        + Send
        + 'static,
    ) -> Result<Response<api::Applied>, Status> {
        let mut controller = Arc::clone(&self.controller).lock_owned().await;
        let change = tokio::spawn(async move { change(&mut controller).await });
        let applied = change.await.map_err(|error| Status::internal(error.to_string()))?;
        match applied {
            Ok((generation, warnings)) => Ok(Response::new(api::Applied { generation, warnings })),
            Err(ApplyError::Generation(now)) => {
                Err(Status::aborted(format!("the current generation is {now}")))
            }
            Err(ApplyError::Instance(now)) => {
                Err(Status::aborted(format!("this is instance {now}")))
            }
            Err(ApplyError::Invalid(errors)) => {
                Err(api::refuse(Code::InvalidArgument, errors.iter().map(Into::into)))
            }
            Err(ApplyError::Refused(faults)) => Err(api::refuse(Code::FailedPrecondition, faults)),
        }
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type TrapStream = Streamed<api::Trap>;

#[tonic::async_trait]
impl Dataplane for Api {
    async fn get_info(
        &self,
        _: Request<api::GetInfoRequest>,
    ) -> Result<Response<api::Info>, Status> {
        Ok(Response::new(self.controller.lock().await.info()))
    }

    async fn replace(
        &self,
        request: Request<api::ReplaceRequest>,
    ) -> Result<Response<api::Applied>, Status> {
        let request = request.into_inner();
        let state = request.state.unwrap_or_default();
        let host = Host::try_from(state)
            .map_err(|errors| api::refuse(Code::InvalidArgument, errors.iter().map(Into::into)))?;
        self.change(move |controller| Box::pin(controller.replace(host, request.if_generation)))
            .await
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::Applied>, Status> {
        let api::UpdateRequest { edits, if_generation, if_instance } = request.into_inner();
        let edits = edit::from_messages(&edits)
            .map_err(|errors| api::refuse(Code::InvalidArgument, errors.iter().map(Into::into)))?;
        self.change(move |controller| {
            Box::pin(async move { controller.update(&edits, if_generation, &if_instance).await })
        })
        .await
    }

    async fn get_state(
        &self,
        _: Request<api::GetStateRequest>,
    ) -> Result<Response<api::CurrentState>, Status> {
        Ok(Response::new(self.controller.lock().await.state()))
    }

    async fn list_ports(
        &self,
        _: Request<api::ListPortsRequest>,
    ) -> Result<Response<api::PortList>, Status> {
        Ok(Response::new(self.controller.lock().await.ports()))
    }

    async fn get_stats(
        &self,
        _: Request<api::GetStatsRequest>,
    ) -> Result<Response<api::Stats>, Status> {
        Ok(Response::new(self.controller.lock().await.stats().await))
    }

    type WatchTrapsStream = TrapStream;

    async fn watch_traps(
        &self,
        _: Request<api::WatchTrapsRequest>,
    ) -> Result<Response<TrapStream>, Status> {
        let traps = self.controller.lock().await.watch_traps();
        let stream = futures_util::stream::unfold((traps, 0), |(mut traps, mut lost)| async move {
            loop {
                match traps.recv().await {
                    Ok((port, trap)) => {
                        let trap = api::Trap {
                            port,
                            reason: trap.reason.to_owned(),
                            head: trap.head,
                            frame_len: trap.len as u32,
                            lost,
                        };
                        return Some((Ok(trap), (traps, 0)));
                    }
                    Err(RecvError::Lagged(n)) => lost += n,
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type CaptureStream = Streamed<api::CaptureBatch>;

    async fn capture(
        &self,
        request: Request<api::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let stream = watching::capture(&self.controller, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    type TracePacketsStream = Streamed<api::TracedPacket>;

    async fn trace_packets(
        &self,
        request: Request<api::TraceRequest>,
    ) -> Result<Response<Self::TracePacketsStream>, Status> {
        let stream = watching::trace(&self.controller, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    type WatchFlowsStream = Streamed<api::FlowReport>;

    async fn watch_flows(
        &self,
        request: Request<api::WatchFlowsRequest>,
    ) -> Result<Response<Self::WatchFlowsStream>, Status> {
        let stream = watching::flows(&self.controller, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn explain(
        &self,
        request: Request<api::ExplainRequest>,
    ) -> Result<Response<api::TracedPacket>, Status> {
        let controller = self.controller.lock().await;
        let (trace, role) = controller.explain(request.get_ref())?;
        let device = controller.device_name(role);
        Ok(Response::new(api::TracedPacket { device, ..watching::told(&trace) }))
    }

    async fn list_paths(
        &self,
        _: Request<api::ListPathsRequest>,
    ) -> Result<Response<api::PathList>, Status> {
        Ok(Response::new(self.controller.lock().await.paths()))
    }
}
