//! A fake dataplane, a running culvertd, and a client of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use culvert_daemon::daemon::{DaemonError, OpenStore, run_with};
use culvert_daemon::settings::{Flags, Settings};
use culvert_daemon::store::Store;
use culvert_daemon::store::file::FileStore;
use culvert_model::api::control_client::ControlClient;
use culvert_model::api::dataplane_server::{Dataplane, DataplaneServer};
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::{Host, api, edit};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// A folder that goes with this value.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(tempfile::Builder::new().prefix("culvertd-").tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// What a host cannot carry.
type Refuse = Box<dyn Fn(Option<&Host>, &Host) -> Vec<api::Fault> + Send>;

#[derive(Default)]
pub(crate) struct Carries {
    pub(crate) host: Option<Host>,
    /// All that it carried, in their order.
    pub(crate) history: Vec<Host>,
    pub(crate) generation: u64,
    pub(crate) instance: String,
    pub(crate) calls: u32,
    pub(crate) refuse: Option<Refuse>,
    /// Ports without a device.
    pub(crate) gone: std::collections::BTreeSet<String>,
}

#[derive(Clone)]
struct Fake {
    carries: Arc<Mutex<Carries>>,
    traps: broadcast::Sender<api::Trap>,
}

impl Fake {
    fn take(
        &self,
        if_generation: Option<u64>,
        make: impl FnOnce(Option<&Host>) -> Result<Host, Status>,
    ) -> Result<Response<api::Applied>, Status> {
        let mut carries = self.carries.lock().unwrap();
        carries.calls += 1;
        if if_generation.is_some_and(|generation| generation != carries.generation) {
            return Err(Status::aborted(format!("the generation is {}", carries.generation)));
        }
        let host = make(carries.host.as_ref())?;
        let faults = match &carries.refuse {
            Some(refuse) => refuse(carries.host.as_ref(), &host),
            None => Vec::new(),
        };
        if !faults.is_empty() {
            return Err(api::refuse(Code::FailedPrecondition, faults));
        }
        carries.history.push(host.clone());
        carries.host = Some(host);
        carries.generation += 1;
        let generation = carries.generation;
        Ok(Response::new(api::Applied { generation, warnings: Vec::new() }))
    }
}

fn invalid(errors: &[culvert_model::ModelError]) -> Status {
    api::refuse(Code::InvalidArgument, errors.iter().map(api::Fault::from))
}

type Traps = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<api::Trap, Status>> + Send>>;

#[tonic::async_trait]
impl Dataplane for Fake {
    type WatchTrapsStream = Traps;

    async fn get_info(
        &self,
        _: Request<api::GetInfoRequest>,
    ) -> Result<Response<api::Info>, Status> {
        let carries = self.carries.lock().unwrap();
        Ok(Response::new(api::Info {
            instance_id: carries.instance.clone(),
            generation: carries.generation,
            version: "fake".to_owned(),
            ..Default::default()
        }))
    }

    async fn replace(
        &self,
        request: Request<api::ReplaceRequest>,
    ) -> Result<Response<api::Applied>, Status> {
        let request = request.into_inner();
        self.take(request.if_generation, |_| {
            Host::try_from(request.state.unwrap_or_default()).map_err(|errors| invalid(&errors))
        })
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::Applied>, Status> {
        let request = request.into_inner();
        let instance = self.carries.lock().unwrap().instance.clone();
        if !request.if_instance.is_empty() && request.if_instance != instance {
            return Err(Status::aborted("another instance"));
        }
        let edits = edit::from_messages(&request.edits).map_err(|errors| invalid(&errors))?;
        self.take(request.if_generation, |host| {
            let made = match host {
                Some(host) => host.edited(&edits),
                None => Host::of_edits(&edits),
            };
            made.map_err(|errors| invalid(&errors))
        })
    }

    async fn get_state(
        &self,
        _: Request<api::GetStateRequest>,
    ) -> Result<Response<api::CurrentState>, Status> {
        let carries = self.carries.lock().unwrap();
        let state = carries.host.as_ref().map(Into::into);
        Ok(Response::new(api::CurrentState { state, generation: carries.generation }))
    }

    async fn list_ports(
        &self,
        _: Request<api::ListPortsRequest>,
    ) -> Result<Response<api::PortList>, Status> {
        let carries = self.carries.lock().unwrap();
        let ports = carries.host.iter().flat_map(Host::ports);
        let ports = ports.map(|port| api::PortStatus {
            id: port.id.to_string(),
            state: if carries.gone.contains(port.id.as_str()) { "gone" } else { "active" }.into(),
            ..Default::default()
        });
        Ok(Response::new(api::PortList { ports: ports.collect() }))
    }

    async fn get_stats(
        &self,
        _: Request<api::GetStatsRequest>,
    ) -> Result<Response<api::Stats>, Status> {
        Ok(Response::new(api::Stats::default()))
    }

    async fn watch_traps(
        &self,
        _: Request<api::WatchTrapsRequest>,
    ) -> Result<Response<Traps>, Status> {
        let traps = BroadcastStream::new(self.traps.subscribe());
        let traps = traps.filter_map(Result::ok).map(Ok);
        Ok(Response::new(Box::pin(traps)))
    }

    type CaptureStream = tokio_stream::Empty<Result<api::CaptureBatch, Status>>;

    async fn capture(
        &self,
        _: Request<api::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        Err(Status::unimplemented("capture"))
    }

    type TracePacketsStream = tokio_stream::Empty<Result<api::TracedPacket, Status>>;

    async fn trace_packets(
        &self,
        _: Request<api::TraceRequest>,
    ) -> Result<Response<Self::TracePacketsStream>, Status> {
        Err(Status::unimplemented("trace_packets"))
    }

    type WatchFlowsStream = tokio_stream::Empty<Result<api::FlowReport, Status>>;

    async fn watch_flows(
        &self,
        _: Request<api::WatchFlowsRequest>,
    ) -> Result<Response<Self::WatchFlowsStream>, Status> {
        Err(Status::unimplemented("watch_flows"))
    }

    async fn explain(
        &self,
        _: Request<api::ExplainRequest>,
    ) -> Result<Response<api::TracedPacket>, Status> {
        Err(Status::unimplemented("explain"))
    }

    async fn list_paths(
        &self,
        _: Request<api::ListPathsRequest>,
    ) -> Result<Response<api::PathList>, Status> {
        Err(Status::unimplemented("list_paths"))
    }
}

/// A dataplane that carries what it is told, and can be killed and started again.
pub(crate) struct FakeDataplane {
    pub(crate) carries: Arc<Mutex<Carries>>,
    pub(crate) traps: broadcast::Sender<api::Trap>,
    socket: PathBuf,
    running: Option<JoinHandle<()>>,
    starts: u32,
}

impl FakeDataplane {
    pub(crate) fn start(socket: &Path) -> FakeDataplane {
        let mut fake = FakeDataplane {
            carries: Arc::default(),
            traps: broadcast::Sender::new(64),
            socket: socket.to_owned(),
            running: None,
            starts: 0,
        };
        fake.restart();
        fake
    }

    /// Kills it, with its state.
    pub(crate) async fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
    }

    /// Starts it anew, as another process would be.
    pub(crate) fn restart(&mut self) {
        self.starts += 1;
        {
            let mut carries = self.carries.lock().unwrap();
            carries.host = None;
            carries.generation = 0;
            carries.instance = format!("instance-{}", self.starts);
        }
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        let fake = Fake { carries: self.carries.clone(), traps: self.traps.clone() };
        // A runtime of its own ends with all its connections.
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = listener.into_std().unwrap();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                let service = DataplaneServer::new(fake)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX);
                let incoming = UnixListenerStream::new(listener);
                let serve =
                    tonic::transport::Server::builder().serve_with_incoming(service, incoming);
                tokio::select! {
                    served = serve => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        self.running = Some(tokio::spawn(async move {
            // Dropped with this task, which ends the thread.
            let _stop = StopThread(Some(stop), Some(thread));
            std::future::pending::<()>().await;
        }));
    }

    pub(crate) fn host(&self) -> Option<Host> {
        self.carries.lock().unwrap().host.clone()
    }

    pub(crate) fn refuse(
        &self,
        refuse: impl Fn(Option<&Host>, &Host) -> Vec<api::Fault> + Send + 'static,
    ) {
        self.carries.lock().unwrap().refuse = Some(Box::new(refuse));
    }
}

struct StopThread(Option<oneshot::Sender<()>>, Option<std::thread::JoinHandle<()>>);

impl Drop for StopThread {
    fn drop(&mut self) {
        drop(self.0.take());
        if let Some(thread) = self.1.take() {
            thread.join().unwrap();
        }
    }
}

/// A running culvertd.
pub(crate) struct Daemon {
    pub(crate) client: ControlClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), DaemonError>>,
}

impl Daemon {
    /// Stops it as SIGTERM does.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.running.await.unwrap().unwrap();
    }

    /// Ends it without a word.
    pub(crate) async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }

    pub(crate) async fn apply(&mut self, toml: &str) -> Result<api::Committed, Status> {
        self.apply_host(&culvert_model::host_toml::read(toml).unwrap(), true).await
    }

    pub(crate) async fn apply_host(
        &mut self,
        host: &Host,
        prune: bool,
    ) -> Result<api::Committed, Status> {
        let state = Some(host.into());
        let request = api::ApplyStateRequest { state, prune, wait_ms: 5000, ..Default::default() };
        self.client.apply_state(request).await.map(Response::into_inner)
    }

    pub(crate) async fn edit(
        &mut self,
        edits: &[culvert_model::Edit],
    ) -> Result<api::Committed, Status> {
        let edits = edits.iter().map(Into::into).collect();
        let request = api::ApplyEditsRequest { edits, wait_ms: 5000, ..Default::default() };
        self.client.apply_edits(request).await.map(Response::into_inner)
    }

    pub(crate) async fn info(&mut self) -> api::ControlInfo {
        let info = self.client.get_control_info(api::GetControlInfoRequest {}).await;
        info.unwrap().into_inner()
    }

    pub(crate) async fn objects(&mut self) -> Vec<api::ListedObject> {
        let request = api::ListObjectsRequest { derived: true, ..Default::default() };
        self.client.list_objects(request).await.unwrap().into_inner().objects
    }

    pub(crate) async fn port(&mut self, id: &str) -> (api::ApplyStatus, String) {
        let port = self.objects().await.into_iter().find(|object| {
            matches!(&object.key, Some(api::ObjectKey { key: Some(api::object_key::Key::Port(port)) }) if port == id)
        });
        let port = port.unwrap();
        (port.status(), port.reason)
    }
}

/// A host: its folder, its dataplane.
pub(crate) struct TestHost {
    pub(crate) name: String,
    pub(crate) scratch: Scratch,
    pub(crate) dataplane: FakeDataplane,
}

impl TestHost {
    pub(crate) fn new(name: &str) -> TestHost {
        let scratch = Scratch::new();
        let dataplane = FakeDataplane::start(&scratch.path("dataplane.sock"));
        TestHost { name: name.to_owned(), scratch, dataplane }
    }

    pub(crate) fn settings(&self, toml: &str) -> Settings {
        let flags = Flags {
            host: Some(self.name.clone()),
            state_dir: Some(self.scratch.path("state")),
            socket: Some(self.socket()),
            dataplane: Some(self.scratch.path("dataplane.sock")),
            ..Flags::default()
        };
        Settings::parse("culvertd.toml", toml, &flags, "unused").unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.path("culvertd.sock")
    }

    /// Starts culvertd with a state file.
    pub(crate) async fn start(&self) -> Daemon {
        self.try_start().await.unwrap()
    }

    pub(crate) async fn try_start(&self) -> Result<Daemon, DaemonError> {
        let path = self.scratch.path("state").join("state.redb");
        let open: OpenStore = Box::new(move |_| Ok(Arc::new(FileStore::open(&path)?)));
        self.start_with("", open).await
    }

    /// One that was killed a moment ago lets go of its files and socket when its last task ends.
    async fn unlocked(&self) {
        for file in ["state/state.redb", "state/cache.redb", "state/queue.redb"] {
            let path = self.scratch.path(file);
            let locked = || path.exists() && FileStore::open(&path).is_err();
            for _ in 0..200 {
                if !locked() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        for _ in 0..200 {
            if UnixStream::connect(self.socket()).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts culvertd with a store that others share.
    pub(crate) async fn join(&self, store: &(impl Store + Clone), toml: &str) -> Daemon {
        let store: Arc<dyn Store> = Arc::new(store.clone());
        let open: OpenStore = Box::new(move |_| Ok(store));
        self.start_with(toml, open).await.unwrap()
    }

    pub(crate) async fn start_with(
        &self,
        toml: &str,
        open: OpenStore,
    ) -> Result<Daemon, DaemonError> {
        self.unlocked().await;
        let settings = self.settings(toml);
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let ready = move || {
            let _ = ready.send(());
        };
        let mut running = tokio::spawn(async move {
            run_with(settings, open, ready, async { drop(stopped.await) }).await
        });
        tokio::select! {
            ended = &mut running => match ended.unwrap() {
                Ok(()) => panic!("culvertd ended by itself"),
                Err(error) => return Err(error),
            },
            ready = is_ready => if ready.is_err() {
                return Err(running.await.unwrap().unwrap_err());
            },
        }
        let client = connect(&self.socket()).await;
        Ok(Daemon { client, stop: Some(stop), running })
    }
}

pub(crate) async fn connect(socket: &Path) -> ControlClient<Channel> {
    let channel = culvert_socket::connect(socket).await;
    ControlClient::new(channel.unwrap())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_for<'a>(
    what: &'a str,
    within: Duration,
    mut holds: impl FnMut() -> bool + 'a,
) -> impl Future<Output = Duration> + 'a {
    let started = Instant::now();
    async move {
        while !holds() {
            assert!(started.elapsed() < within, "{what}: not within {within:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        started.elapsed()
    }
}

/// The faults of a refusal, in words.
pub(crate) fn faults(status: &Status) -> Vec<String> {
    let refusal = api::refusal(status).unwrap_or_else(|| panic!("no refusal: {status:?}"));
    refusal.faults.iter().map(api::Fault::text).collect()
}

/// A host with one port in vnet `blue`: addresses end in `n`.
pub(crate) fn host_toml(n: u8) -> String {
    format!(
        "[underlay]\ninterface = \"wire\"\naddresses = [\"198.18.0.{n}\"]\n\n\
         [[vnet]]\nid = \"blue\"\nvni = 100\n\n{}",
        port_toml(&format!("web-{n}"), n)
    )
}

pub(crate) fn port_toml(id: &str, n: u8) -> String {
    format!(
        "[[port]]\nid = \"{id}\"\nvnet = \"blue\"\nattach = {{ xdp = \"{id}\" }}\n\
         mac = \"02:00:00:00:00:{n:02x}\"\nips = [\"10.0.0.{n}\"]\n\n"
    )
}

/// The port of [`port_toml`].
pub(crate) fn port(id: &str, n: u8) -> culvert_model::Port {
    let toml = host_toml(200).replace(&port_toml("web-200", 200), "") + &port_toml(id, n);
    culvert_model::host_toml::read(&toml).unwrap().ports().iter().next().unwrap().clone()
}
