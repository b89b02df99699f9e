//! Opens the cache, serves until told to stop, closes in order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::api::volume_gateway_server::VolumeGatewayServer;
use culvert_model::{DEFAULT_RUN_DIR, GATEWAY_SOCKET};
use culvert_nbd::observe::Statistics;
use culvert_nbd::{Lanes, Limits, Listener, Server, Shutdown, Stream};
use culvert_socket::ListenError;
use culvert_volume::disk::{Disk, DiskError, FileDisk};
use culvert_volume::remote::ProbeError;
use culvert_volume::{Cache, Config, Error, Refusal, VolumeName, VolumeOptions};
use futures_util::future::join_all;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tracing::{error, info, warn};

use crate::api::Api;
use crate::descriptors;
use crate::exports::VolumeExports;
use crate::metrics::{self, Sources};
use crate::notify::{READY, STOPPING, notify};
use crate::progress::{Measure, telling, telling_of_stop};
use crate::settings::{Place, Settings, WantedVolume};
use crate::store::{self, OpenError, StoreAt};
use crate::store_times::{StoreTimes, TimedStore};

/// NBD's port, on this host only.
const DEFAULT_PLACE: ([u8; 4], u16) = ([127, 0, 0, 1], 10_809);

/// Permissions of the API's socket.
const API_MODE: u32 = 0o600;

/// Why the gateway does not serve, or served to a bad end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The cache's disk cannot be used. The cause says why.
    #[error("cache {}: {source}", path.display())]
    Disk {
        /// The cache's path.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// What is there is no cache, and blank. It may be the wrong path; if it is not, say `--make`.
    #[error("cache {}: nothing is there but zeros; to make a cache of it, say --make", path.display())]
    Blank {
        /// The cache's path.
        path: PathBuf,
    },
    /// The store cannot be used. The cause says why.
    #[error("store {at}: {source}")]
    Store {
        /// The store.
        at: StoreAt,
        /// Why.
        source: OpenError,
    },
    /// The cache or a volume cannot be used. The cause says why and what to do.
    #[error(transparent)]
    Volume(#[from] Error),
    /// A volume is neither in the cache nor in the store. Give its size to make it.
    #[error("volume {name}: not there; to make it, say --volume {name}=SIZE")]
    NoVolume {
        /// Its name.
        name: VolumeName,
    },
    /// A socket cannot be listened on. Another server may be there.
    #[error("{place}: cannot listen: {source}")]
    Listen {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The API's socket cannot be listened on. The cause says why; --control names another.
    #[error("API: {source}")]
    Api {
        /// Why.
        source: ListenError,
    },
    /// Standard input and output are no client.
    #[error("--stdio: {0}")]
    Stdio(io::Error),
    /// The system gives no threads. Raise the limits on tasks and open files.
    #[error("cannot start the threads that serve clients: {0}")]
    Threads(io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signal(io::Error),
    /// The store cannot hold volumes: it was found out after the start, since what is cached does not wait for
    /// it. What was written is in the cache; start again with a store that keeps conditions.
    #[error("{cause}; what was written is kept in the cache")]
    Unfit {
        /// What was found.
        cause: ProbeError,
    },
    /// The cache's disk failed while it was in use. What was flushed is kept; repair the disk and
    /// start again.
    #[error("the cache stopped: {cause}")]
    Stopped {
        /// The failure.
        cause: String,
    },
    /// A planned stop came to its end without the cache being in order. The cause says why. Start again: what was
    /// flushed is kept, and no more is to be done for it than after a crash.
    #[error(
        "the cache is not closed in order: {cause}; what was flushed is kept, and the next start validates each chunk at its first access"
    )]
    NotClosed {
        /// Why.
        cause: Error,
    },
}

/// Serves until a signal says stop, or the one client on standard input has left.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(settings: &Settings) -> Result<(), ServeError> {
    // From now on a signal to stop is heard, and heeded once the cache is open.
    let mut signals = Signals::new().map_err(ServeError::Signal)?;
    // First, so that nothing is made for clients that cannot come, and those that come early wait.
    let clients = Clients::of(settings)?;
    let lanes = Arc::new(Lanes::for_this_machine().map_err(ServeError::Threads)?);
    let store_times = Arc::new(StoreTimes::default());
    let cache = Arc::new(open_cache(settings, &store_times).await?);
    let served = serve_cache(&cache, settings, clients, &lanes, store_times, &mut signals).await;
    if let Err(stopped @ ServeError::Stopped { .. }) = served {
        // Nothing more can be promised of what is on its disk.
        return Err(stopped);
    }
    // Whatever ended it: the next start has nothing to validate.
    let closed = close(cache).await.inspect_err(|error| error!("{error}"));
    served.and(closed)
}

/// Serves an open cache, which stays open.
async fn serve_cache(
    cache: &Arc<Cache>,
    settings: &Settings,
    clients: Clients,
    lanes: &Arc<Lanes>,
    store_times: Arc<StoreTimes>,
    signals: &mut Signals,
) -> Result<(), ServeError> {
    let missing = provide_all(cache, settings).await?;
    let statistics = Arc::new(Statistics::default());
    let exports = VolumeExports::new(cache, missing);
    let limits = descriptors::fit(Limits::default());
    let server = Server::new(exports, limits, Arc::clone(&statistics));
    if let Some(address) = settings.metrics {
        let cache = Arc::downgrade(cache);
        let sources = Sources { cache, server: server.clone(), statistics, store_times };
        metrics::listen(address, sources)
            .await
            .map_err(|source| ServeError::Listen { place: address.to_string(), source })?;
    }
    let api = Api::new(cache, server.clone(), settings.cache.clone(), settings.store.to_string());
    let control = serve_api(settings, &api).await?;
    let served = match clients {
        Clients::One(stream) => until_stopped(cache, signals, server.serve_stream(stream)).await,
        Clients::At(listeners) => {
            for listener in listeners {
                info!(%listener, "listening");
                let (server, lanes) = (server.clone(), Arc::clone(lanes));
                tokio::spawn(async move { server.serve_on(listener, &lanes).await });
            }
            until_stopped(cache, signals, std::future::pending()).await
        }
    };
    info!("stopping");
    tell_manager(STOPPING);
    // Requests that wait for the store would hold it up for as long as that is away.
    cache.begin_stop();
    let answering = server.shutdown(Shutdown::default());
    telling_of_stop("clients are being answered", Measure::Time, answering).await;
    if let Some((socket, serving)) = control {
        serving.abort();
        let _ = serving.await;
        let _ = std::fs::remove_file(socket);
    }
    api.stop().await;
    served
}

/// Serves the API. Where no place was asked for and no usual one can be had, the gateway does without.
async fn serve_api(
    settings: &Settings,
    api: &Api,
) -> Result<Option<(PathBuf, JoinHandle<()>)>, ServeError> {
    let (path, listener) = match &settings.control {
        Some(path) => {
            let listening = culvert_socket::listen(path, API_MODE).await;
            (path.clone(), listening.map_err(|source| ServeError::Api { source })?)
        }
        // Whoever made it for one client has no use for it.
        None if settings.stdio => return Ok(None),
        None => match listen_at_usual_place().await {
            Ok(listening) => listening,
            Err(why) => {
                warn!("no API for `culvert volume`: {why}; --control PATH names another place");
                return Ok(None);
            }
        },
    };
    info!(socket = %path.display(), "the API is served");
    let service = VolumeGatewayServer::new(api.clone());
    let serving = tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        let served = tonic::transport::Server::builder().add_service(service);
        if let Err(e) = served.serve_with_incoming(incoming).await {
            error!("the API ended: {e}");
        }
    });
    Ok(Some((path, serving)))
}

/// Listens for the API where `culvert volume` looks for it by itself: in the run directory, or in that of the
/// user who may not write there. Of a service it is the folder that the manager made. Otherwise says why not.
async fn listen_at_usual_place() -> Result<(PathBuf, UnixListener), String> {
    let service = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let user = culvert_socket::user_run_dir();
    let lacks_user = service.is_none() && user.is_none();
    let folders: Vec<PathBuf> = match service {
        Some(folder) => vec![folder],
        None => std::iter::once(PathBuf::from(DEFAULT_RUN_DIR)).chain(user).collect(),
    };
    let mut reasons = Vec::new();
    for folder in folders {
        let path = folder.join(GATEWAY_SOCKET);
        match culvert_socket::listen(&path, API_MODE).await {
            Ok(listener) => return Ok((path, listener)),
            // The command line would speak to that one, wherever this one listened.
            Err(e @ ListenError::InUse(_)) => return Err(e.to_string()),
            Err(e) => reasons.push(e.to_string()),
        }
    }
    if lacks_user {
        reasons.push("XDG_RUNTIME_DIR is not set".to_owned());
    }
    Err(reasons.join("; "))
}

/// Whether something begins as if nothing was ever written to it.
async fn is_blank(disk: &FileDisk) -> Result<bool, DiskError> {
    // What is not blank mostly says so in its first block: a start does not wait for more.
    for len in [4 << 10, 1 << 20] {
        let len = usize::try_from(disk.len()).unwrap_or(usize::MAX).min(len);
        if disk.read(0, len).await?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn open_cache(settings: &Settings, times: &Arc<StoreTimes>) -> Result<Cache, ServeError> {
    let longest = settings.upload_timeout.max(settings.fetch_timeout);
    let store = store::open(&settings.store, longest)
        .map_err(|source| ServeError::Store { at: settings.store.clone(), source })?;
    let store = Arc::new(TimedStore::new(store, Arc::clone(times)));
    let config = Config {
        eager_validation: settings.eager,
        accept_loss: settings.accept_loss,
        upload_rate: settings.upload_rate,
        fetch_rate: settings.fetch_rate,
        fetch_timeout: settings.fetch_timeout,
        upload_timeout: settings.upload_timeout,
        upload_interval: settings.upload_interval,
        ..Config::default()
    };
    let path = &settings.cache;
    let broken = |source| ServeError::Disk { path: path.clone(), source };
    if path.exists() {
        let disk = FileDisk::open(path).map_err(broken)?;
        if !is_blank(&disk).await.map_err(broken)? {
            let what = if settings.eager {
                "the cache is being validated"
            } else {
                "the cache is being opened"
            };
            let opening = Cache::open(Arc::new(disk.clone()), store, config);
            return Ok(telling(what, Measure::Read(&disk), opening).await?);
        }
        if !settings.make {
            return Err(ServeError::Blank { path: path.clone() });
        }
        info!(cache = %path.display(), bytes = disk.len(), "making a cache of what is there");
        return Ok(make(&disk, store, settings.log_size, config).await?);
    }
    info!(cache = %path.display(), bytes = settings.cache_size, "making a cache");
    let disk = FileDisk::create(path, settings.cache_size).map_err(broken)?;
    match make(&disk, store, settings.log_size, config).await {
        Ok(cache) => Ok(cache),
        Err(e) => {
            // Nothing half made stays behind.
            let _ = std::fs::remove_file(path);
            Err(e.into())
        }
    }
}

/// Makes a cache. What takes long is to write its log ahead.
async fn make(
    disk: &FileDisk,
    store: Arc<TimedStore>,
    log_len: u64,
    config: Config,
) -> Result<Cache, Error> {
    let making = Cache::create(Arc::new(disk.clone()), store, log_len, config);
    telling("the cache is being made", Measure::Written(disk, log_len), making).await
}

/// Makes sure that the volumes are served that are wanted, and returns those that are not. One that cannot be had keeps
/// none of the others away: it is an error only where nothing is in the cache, or for the only client.
async fn provide_all(cache: &Cache, settings: &Settings) -> Result<Vec<VolumeName>, ServeError> {
    // At once: each may wait for a store that does not answer.
    let providing = settings.volumes.iter().map(|wanted| async move {
        let provided = provide(cache, wanted, settings.take_over).await;
        (&wanted.name, provided)
    });
    let provided =
        telling("the store is asked for volumes", Measure::Time, join_all(providing)).await;
    let mut failures: Vec<(&VolumeName, ServeError)> = Vec::new();
    for (volume, provided) in provided {
        if let Err(failure) = provided {
            failures.push((volume, failure));
        }
    }
    // No time and no other gateway mends these.
    let is_final = |e: &ServeError| {
        matches!(e, ServeError::Volume(Error::Stopped { .. } | Error::Size { .. }))
    };
    let worst = failures.iter().position(|(_, failure)| is_final(failure));
    let is_alone = settings.stdio || cache.volumes().is_empty();
    let ends = worst.or((is_alone && !failures.is_empty()).then_some(0));
    let ends = ends.map(|at| failures.remove(at).1);
    for (volume, failure) in &failures {
        error!(%volume, "not served: {failure}; {}", advice(volume, failure));
    }
    match ends {
        Some(failure) => Err(failure),
        None => Ok(failures.into_iter().map(|(volume, _)| volume.clone()).collect()),
    }
}

/// What an operator may do about a volume that is not served.
fn advice(volume: &VolumeName, failure: &ServeError) -> String {
    match failure {
        ServeError::Volume(Error::NotServed { .. } | Error::Superseded { .. }) => {
            "`culvert volume list` shows in what state it is".to_owned()
        }
        _ => format!("once it can be, `culvert volume attach {volume}` or a restart takes it"),
    }
}

/// Makes sure that a volume is served: it is here, or in the store, or made.
async fn provide(cache: &Cache, wanted: &WantedVolume, take_over: bool) -> Result<(), ServeError> {
    let WantedVolume { name, size } = wanted;
    let mut options = VolumeOptions::default();
    if let Ok(volume) = cache.volume(name) {
        let status = volume.status()?;
        match status.refusing {
            None => return Ok(()),
            // The store may say by now.
            Some(Refusal::InDoubt) => options = status.options,
            Some(state) => return Err(Error::NotServed { volume: name.clone(), state }.into()),
        }
    }
    match (cache.attach_volume(name, options, take_over).await, size) {
        (Ok(volume), _) => {
            info!(volume = %name, bytes = volume.size(), "taken from the store");
            Ok(())
        }
        (Err(Error::NoVolume { .. }), Some(size)) => {
            cache.create_volume(name, *size, options).await?;
            info!(volume = %name, bytes = size, "made");
            Ok(())
        }
        (Err(Error::NoVolume { .. }), None) => Err(ServeError::NoVolume { name: name.clone() }),
        (Err(e), _) => Err(e.into()),
    }
}

/// Where clients come from.
enum Clients {
    /// One, at standard input and output.
    One(Stream),
    /// Whoever connects.
    At(Vec<Listener>),
}

impl Clients {
    fn of(settings: &Settings) -> Result<Self, ServeError> {
        if settings.stdio {
            return Stream::stdio().map(Self::One).map_err(ServeError::Stdio);
        }
        listeners(settings).map(Self::At)
    }
}

fn listeners(settings: &Settings) -> Result<Vec<Listener>, ServeError> {
    let failed = |place: String| |source| ServeError::Listen { place, source };
    let mut listeners = Listener::from_activation().map_err(failed("passed socket".to_owned()))?;
    let default = [Place::Tcp(DEFAULT_PLACE.into())];
    let places = match settings.listen.as_slice() {
        [] if listeners.is_empty() => &default[..],
        places => places,
    };
    for place in places {
        let listener = match place {
            Place::Tcp(address) => Listener::tcp(*address),
            Place::Unix(path) => Listener::unix(path),
        };
        listeners.push(listener.map_err(failed(place.to_string()))?);
    }
    Ok(listeners)
}

/// Signals that say stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// Waits for the end of `work`, a signal to stop, or a failure of the cache or the store.
async fn until_stopped(
    cache: &Cache,
    signals: &mut Signals,
    work: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    tell_manager(READY);
    let failure = async {
        loop {
            let status = cache.status();
            if let Some(cause) = status.stopped {
                error!("the cache stopped: {cause}");
                return ServeError::Stopped { cause };
            }
            if let Some(cause) = status.unfit_store {
                return ServeError::Unfit { cause };
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = work => Ok(()),
        _ = signals.terminate.recv() => Ok(()),
        _ = signals.interrupt.recv() => Ok(()),
        failure = failure => Err(failure),
    }
}

/// Closes the cache in order, so that the next start has nothing to validate. By then nobody changes anything there;
/// who asks for the metrics may still look at it.
async fn close(cache: Arc<Cache>) -> Result<(), ServeError> {
    let measure = Measure::of_log(&cache);
    let closing = {
        let cache = Arc::clone(&cache);
        // A task of its own: a disk that hangs holds up nobody who tells of it.
        let closing = tokio::spawn(async move { cache.close_shared().await });
        async { closing.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())) }
    };
    let closed = telling_of_stop("the cache is being closed", measure, closing).await;
    closed.map_err(|cause| ServeError::NotClosed { cause })?;
    info!("closed in order");
    Ok(())
}

fn tell_manager(state: &str) {
    if let Err(e) = notify(state) {
        warn!("cannot tell the service manager {state}: {e}");
    }
}
