//! All of it together: store, follower, reconciler, API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::api::control_server::ControlServer;
use culvert_model::limits::MESSAGE_BYTES_MAX;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};

use crate::access::{Access, AccessError, incoming, listen, only_allowed};
use crate::change::Writer;
use crate::events::Events;
use crate::follow::{Follower, Identity, Known};
use crate::metrics;
use crate::queue::Queue;
use crate::reconcile::Reconciler;
use crate::report::Report;
use crate::server::Api;
use crate::settings::{Settings, StoreSettings, Tcp};
use crate::state_dir::StateDir;
use crate::store::etcd::EtcdStore;
use crate::store::file::FileStore;
use crate::store::{Store, StoreError};
use crate::stored::JoinError;
use crate::traps;

/// How long calls may take to end once the daemon is asked to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the header of a store may take to be checked at the start, before the rest begins without it.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How long culvertd waits, before it calls itself ready, until changes can be taken or the store is known to be away:
/// longer than a store takes to say that it does not answer.
const SETTLED: Duration = Duration::from_secs(10);
/// How long it then waits until what is known is also what clients are shown.
const SHOWN: Duration = Duration::from_secs(2);

/// Why culvertd does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// See the message.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// See the message.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// See the message.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Check the file that the settings name.
    #[error("tcp.{field}: {file}: {reason}")]
    Certificate {
        /// The setting.
        field: &'static str,
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Use an address of this host and a port that is free.
    #[error("tcp.listen: {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// What the kernel says.
        reason: String,
    },
    /// Use an address of this host and a port that is free.
    #[error("metrics: {address}: {source}")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// See the message.
    #[error("the API server stopped: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Checks what can be checked without touching anything: groups, certificates.
///
/// # Errors
/// See [`DaemonError`].
pub fn check(settings: &Settings) -> Result<(), DaemonError> {
    Access::new(settings.group.as_deref())?;
    if let Some(tcp) = &settings.tcp {
        Server::builder().tls_config(tls(tcp)?)?;
    }
    if let StoreSettings::Etcd { endpoints, prefix, tls } = &settings.store {
        EtcdStore::new(endpoints, prefix, tls.as_ref())?;
    }
    Ok(())
}

/// Opens a store, once the state folder is there.
pub type OpenStore = Box<dyn FnOnce(&StateDir) -> Result<Arc<dyn Store>, StoreError> + Send>;

/// Runs until `stop` resolves. `ready` is called once the API answers and changes can be taken, or the store is known
/// to be away.
///
/// # Errors
/// See [`DaemonError`].
pub async fn run(
    settings: Settings,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let of = settings.store.clone();
    let open: OpenStore = Box::new(move |_| match of {
        StoreSettings::Redb { path } => Ok(Arc::new(FileStore::open(&path)?)),
        StoreSettings::Etcd { endpoints, prefix, tls } => {
            Ok(Arc::new(EtcdStore::new(&endpoints, &prefix, tls.as_ref())?))
        }
    });
    run_with(settings, open, ready, stop).await
}

/// As [`run`], with another store.
///
/// # Errors
/// See [`DaemonError`].
pub async fn run_with(
    settings: Settings,
    open: OpenStore,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let access = Arc::new(Access::new(settings.group.as_deref())?);
    let server_tls = settings.tcp.as_ref().map(tls).transpose()?;
    // The socket first: a second culvertd must not touch what the first has.
    let listener = listen(&settings.socket).await?;
    let socket = RemoveSocket(&settings.socket);
    let state_dir = StateDir::open(&settings.state_dir)?;
    let machine = state_dir.machine()?;
    let remembered = state_dir.cluster()?;
    let cluster = match (&settings.cluster_id, remembered) {
        (Some(id), Some((known, file))) if *id != known => {
            return Err(JoinError::OtherCluster {
                location: "cluster_id in the settings".to_owned(),
                found: id.clone(),
                expected: known,
                source_of: file,
            }
            .into());
        }
        (_, Some(remembered)) => Some(remembered),
        (Some(id), None) => Some((id.clone(), "cluster_id in the settings".to_owned())),
        (None, None) => None,
    };
    let store = open(&state_dir)?;
    // A store of this host needs nobody to remember what is in it.
    let cache = match settings.store {
        StoreSettings::Redb { .. } => None,
        StoreSettings::Etcd { .. } => {
            let id = cluster.as_ref().map(|(id, _)| id.as_str());
            Some(state_dir.cache(id).await?)
        }
    };
    let cluster_id = cluster.as_ref().map(|(id, _)| id.clone());
    let identity = Identity {
        host: settings.host.clone(),
        machine,
        cluster,
        lease: settings.lease,
        everything: matches!(settings.store, StoreSettings::Redb { .. }),
    };
    let events = Events::default();
    let cached = match &cache {
        Some(cache) => cache.read(),
        None => None,
    };
    let queue_file = state_dir.queue_file();
    let remember = move |id: &str| state_dir.set_cluster(id);
    let (mut follower, known) =
        Follower::new(Arc::clone(&store), identity, cached, events.clone(), remember);
    // A store that is there and is not ours is better refused now than found in a log.
    match tokio::time::timeout(FIRST_LOOK, follower.look()).await {
        Ok(Err(JoinError::Store(error))) if error.is_outage() => {
            tracing::warn!(%error, "the store cannot be used yet");
        }
        Ok(looked) => looked?,
        Err(_) => tracing::warn!("the store does not answer yet"),
    }
    let (traps, _) = broadcast::channel(traps::QUEUE);
    let (reconciler, report) = Reconciler::new(
        settings.host.clone(),
        settings.dataplane.clone(),
        known.clone(),
        events.clone(),
        traps.clone(),
    );
    let follower = follower.beside(reconciler.vnets());
    let (mut settled, mut first) = (known.clone(), report.clone());
    let writer = Writer::new(Arc::clone(&store), settings.host.clone(), known.clone());
    let writer = Arc::new(writer);
    // Where the store is a file, what keeps it from being written would keep a queue from it too.
    let queue = match settings.store {
        StoreSettings::Redb { .. } => None,
        StoreSettings::Etcd { .. } => {
            let (me, known) = (settings.host.clone(), known.clone());
            let id = cluster_id.as_deref();
            Some(Arc::new(Queue::open(&queue_file, me, id, known, events.clone()).await?))
        }
    };
    let api = Arc::new(Api {
        me: settings.host.clone(),
        store: store.describe(),
        writer: Arc::clone(&writer),
        queue: queue.clone(),
        known: known.clone(),
        report,
        events,
        traps,
        access: Arc::clone(&access),
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(follower.run());
    tasks.spawn(reconciler.run());
    if let Some(queue) = queue {
        tasks.spawn(queue.write(writer));
    }
    if let Some(cache) = cache {
        tasks.spawn(cache.keep(known));
    }
    // Whoever calls at once is better answered a moment later than refused.
    if tokio::time::timeout(SETTLED, settled.wait_for(|known| settled_by(known))).await.is_err() {
        tracing::warn!("the store neither answers nor fails: changes are refused until it does");
    }
    let shown = |report: &Arc<Report>| settled_by(&report.known);
    let _ = tokio::time::timeout(SHOWN, first.wait_for(shown)).await;
    let (stopping, stopped) = watch::channel(false);
    let tcp = match (&settings.tcp, server_tls) {
        (Some(tcp), Some(tls)) => Some(serve_tcp(tcp, tls, Arc::clone(&api), stopped.clone())?),
        _ => None,
    };
    if let Some(address) = settings.metrics {
        let listening =
            metrics::listen(address, Arc::clone(&api), settings.dataplane.clone()).await;
        let address = listening.map_err(|source| DaemonError::Metrics { address, source })?;
        tracing::info!(%address, "metrics");
    }
    let unix = serve_unix(listener, access, api, stopped);
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(unix);
    if let Some(tcp) = tcp {
        servers.spawn(tcp);
    }
    tracing::info!(
        host = %settings.host, socket = %settings.socket.display(),
        store = store.describe().kind, at = store.describe().location, "ready"
    );
    ready();
    let ended = tokio::select! {
        () = stop => Ok(()),
        ended = servers.join_next() => match ended {
            Some(Ok(Err(error))) => Err(error.into()),
            _ => Ok(()),
        },
    };
    tracing::info!("stopping; the dataplane carries on");
    let _ = stopping.send(true);
    // Streams of watchers would never end by themselves.
    let all = async { while servers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_TIMEOUT, all).await;
    servers.abort_all();
    tasks.shutdown().await;
    drop(socket);
    ended
}

/// Changes can be taken, or why not is known.
fn settled_by(known: &Known) -> bool {
    known.unusable().is_none() || known.outage.is_some()
}

/// Removes the socket at the end, however that comes.
struct RemoveSocket<'a>(&'a Path);

impl Drop for RemoveSocket<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

fn service(api: Arc<Api>) -> ControlServer<Api> {
    ControlServer::from_arc(api)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn signalled(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn serve_unix(
    listener: UnixListener,
    access: Arc<Access>,
    api: Arc<Api>,
    stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let guarded = InterceptedService::new(service(api), only_allowed);
    let connections = Box::pin(incoming(listener, access));
    let server = Server::builder();
    server.serve_with_incoming_shutdown(guarded, connections, signalled(stopped)).await
}

fn serve_tcp(
    tcp: &Tcp,
    tls: ServerTlsConfig,
    api: Arc<Api>,
    stopped: watch::Receiver<bool>,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>> + use<>, DaemonError> {
    let listening = TcpIncoming::bind(tcp.listen);
    let connections = listening.map_err(|error| DaemonError::Listen {
        address: tcp.listen.to_string(),
        reason: error.to_string(),
    })?;
    let server = Server::builder().tls_config(tls)?;
    tracing::info!(address = %tcp.listen, "the API is on TCP too");
    Ok(async move {
        let served =
            server.serve_with_incoming_shutdown(service(api), connections, signalled(stopped));
        served.await
    })
}

/// Clients without a certificate of the authority are refused in the handshake.
fn tls(tcp: &Tcp) -> Result<ServerTlsConfig, DaemonError> {
    let read = |field: &'static str, path: &Path| {
        std::fs::read(path).map_err(|error| DaemonError::Certificate {
            field,
            file: path.display().to_string(),
            reason: error.to_string(),
        })
    };
    let certificate = read("certificate", &tcp.certificate)?;
    let key = read("key", &tcp.key)?;
    let client_ca = read("client_ca", &tcp.client_ca)?;
    Ok(ServerTlsConfig::new()
        .identity(TlsIdentity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(client_ca))
        .client_auth_optional(false))
}
