//! A dataplane that carries nothing, but answers as one does, on a socket of its own.

pub(crate) mod sight;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use culvert_model::api::dataplane_server::{Dataplane, DataplaneServer};
use culvert_model::api::{self, refuse};
use culvert_model::{Host, edit};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status};

/// What the fake has been given, and how it is to answer.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) state: Option<api::State>,
    pub(crate) generation: u64,
    /// Faults to refuse the next states with, as a host does that cannot carry them.
    pub(crate) faults: Vec<api::Fault>,
    /// What was asked to be captured, traced or explained.
    pub(crate) captures: Vec<api::CaptureRequest>,
    pub(crate) traces: Vec<api::TraceRequest>,
    pub(crate) explains: Vec<api::ExplainRequest>,
    /// Whether counters move from one look to the next.
    pub(crate) moves: bool,
    /// How often they were asked for.
    pub(crate) looks: u64,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Script>>);

#[tonic::async_trait]
impl Dataplane for Fake {
    type WatchTrapsStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::Trap, Status>>>;
    type CaptureStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::CaptureBatch, Status>>>;
    type TracePacketsStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<api::TracedPacket, Status>>>;
    type WatchFlowsStream = tokio_stream::Pending<Result<api::FlowReport, Status>>;

    async fn capture(
        &self,
        request: Request<api::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        self.0.lock().unwrap().captures.push(request.into_inner());
        let batch = api::CaptureBatch { packets: sight::captured(), lost: 3 };
        Ok(Response::new(tokio_stream::iter(vec![Ok(batch)])))
    }

    async fn trace_packets(
        &self,
        request: Request<api::TraceRequest>,
    ) -> Result<Response<Self::TracePacketsStream>, Status> {
        let request = request.into_inner();
        if request.select.as_ref().is_some_and(|select| select.ports.iter().any(|p| p != "a1")) {
            return Err(Status::invalid_argument("port \"b9\": no such port"));
        }
        let packets = (0..request.count).map(|_| Ok(sight::traced())).collect::<Vec<_>>();
        self.0.lock().unwrap().traces.push(request);
        Ok(Response::new(tokio_stream::iter(packets)))
    }

    async fn watch_flows(
        &self,
        _: Request<api::WatchFlowsRequest>,
    ) -> Result<Response<Self::WatchFlowsStream>, Status> {
        Ok(Response::new(tokio_stream::pending()))
    }

    async fn explain(
        &self,
        request: Request<api::ExplainRequest>,
    ) -> Result<Response<api::TracedPacket>, Status> {
        self.0.lock().unwrap().explains.push(request.into_inner());
        Ok(Response::new(sight::traced()))
    }

    async fn list_paths(
        &self,
        _: Request<api::ListPathsRequest>,
    ) -> Result<Response<api::PathList>, Status> {
        let path = api::Path {
            vtep: "198.18.0.2".into(),
            source: "198.18.0.1".into(),
            state: "pending".into(),
            ..Default::default()
        };
        Ok(Response::new(api::PathList { paths: vec![path] }))
    }

    async fn get_info(
        &self,
        _: Request<api::GetInfoRequest>,
    ) -> Result<Response<api::Info>, Status> {
        Ok(Response::new(api::Info {
            instance_id: "f00d".into(),
            version: "0.1.0".into(),
            generation: self.0.lock().unwrap().generation,
            features: vec![api::KernelFeature {
                name: "btf".into(),
                available: false,
                reason: "no /sys/kernel/btf/vmlinux".into(),
            }],
            underlay: vec![api::UnderlayDevice {
                interface: "eth0".into(),
                mode: "native".into(),
                refusals: vec![api::ModeRefusal {
                    mode: "zero-copy".into(),
                    reason: "not supported by the driver".into(),
                }],
                queues: 4,
                mtu: 1500,
                up: true,
                cut_by: Some(api::SuperframeCutters {
                    udp: "dataplane".into(),
                    tcp_ipv4: "device".into(),
                    tcp_ipv6: "device".into(),
                }),
            }],
            workers: vec![api::WorkerInfo { index: 0, cpu: Some(1) }],
        }))
    }

    async fn replace(
        &self,
        request: Request<api::ReplaceRequest>,
    ) -> Result<Response<api::Applied>, Status> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        if request.if_generation.is_some_and(|generation| generation != script.generation) {
            return Err(Status::aborted(format!("the generation is {}", script.generation)));
        }
        let state = request.state.unwrap_or_default();
        let host = Host::try_from(state.clone())
            .map_err(|errors| refuse(Code::InvalidArgument, errors.iter().map(api::Fault::from)))?;
        if !script.faults.is_empty() {
            return Err(refuse(Code::FailedPrecondition, script.faults.clone()));
        }
        script.state = Some(state);
        script.generation += 1;
        let warnings = host.warnings().iter().map(ToString::to_string).collect();
        Ok(Response::new(api::Applied { generation: script.generation, warnings }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::Applied>, Status> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        if request.if_generation.is_some_and(|generation| generation != script.generation) {
            return Err(Status::aborted(format!("the generation is {}", script.generation)));
        }
        let invalid = |errors: Vec<culvert_model::ModelError>| {
            refuse(Code::InvalidArgument, errors.iter().map(api::Fault::from))
        };
        let edits = edit::from_messages(&request.edits).map_err(invalid)?;
        let host = match script.state.clone() {
            Some(state) => Host::try_from(state).map_err(invalid)?.edited(&edits),
            None => Host::of_edits(&edits),
        };
        let host = host.map_err(invalid)?;
        if !script.faults.is_empty() {
            return Err(refuse(Code::FailedPrecondition, script.faults.clone()));
        }
        script.state = Some((&host).into());
        script.generation += 1;
        let warnings = host.warnings().iter().map(ToString::to_string).collect();
        Ok(Response::new(api::Applied { generation: script.generation, warnings }))
    }

    async fn get_state(
        &self,
        _: Request<api::GetStateRequest>,
    ) -> Result<Response<api::CurrentState>, Status> {
        let script = self.0.lock().unwrap();
        let (state, generation) = (script.state.clone(), script.generation);
        Ok(Response::new(api::CurrentState { state, generation }))
    }

    async fn list_ports(
        &self,
        _: Request<api::ListPortsRequest>,
    ) -> Result<Response<api::PortList>, Status> {
        let port = api::PortStatus {
            id: "a1".into(),
            vnet: "blue".into(),
            attach: "xdp".into(),
            device: "veth-a1".into(),
            mode: "generic".into(),
            refusals: vec![api::ModeRefusal {
                mode: "native".into(),
                reason: "it is a veth".into(),
            }],
            queues: 2,
            mtu: 1500,
            state: "down".into(),
            reason: "no carrier".into(),
        };
        Ok(Response::new(api::PortList { ports: vec![port] }))
    }

    async fn get_stats(
        &self,
        _: Request<api::GetStatsRequest>,
    ) -> Result<Response<api::Stats>, Status> {
        let drop = |reason: &str, packets| api::Drop { reason: reason.into(), packets };
        let looks = {
            let mut script = self.0.lock().unwrap();
            script.looks += 1;
            if script.moves { script.looks } else { 0 }
        };
        Ok(Response::new(api::Stats {
            ports: vec![api::PortStats {
                id: "a1".into(),
                rx_packets: 11 + looks * 1000,
                rx_bytes: 1100,
                tx_packets: 22,
                tx_bytes: 2200,
                drops: vec![drop("spoofed_mac", 3 + looks * 5), drop("no_mapping", 0)],
                trapped: 4,
                answers: 6,
            }],
            workers: vec![api::WorkerStats { index: 0, rx_packets: 33, ..Default::default() }],
            kernel: vec![api::KernelCounter {
                device: "eth0".into(),
                name: "rx_dropped".into(),
                value: 5,
            }],
            arena: Some(api::Arena { chunks: 4096, free: 4000, held: 96 }),
            drops: vec![drop("unknown_vni", 7)],
            underlay_trapped: 2,
            shards: vec![api::ShardStats {
                vtep: "192.0.2.2".into(),
                sent: 9,
                sent_segments: 400,
                whole: 7,
                rebuilt: 2,
                expired: vec![3, 1, 0, 0, 0, 0, 0, 0],
                bad_blocks: 1,
                evicted: 5,
                asked: 6,
                repaired: 4,
                unasked: 1,
                answered: 3,
                refused: 2,
                gone: 1,
            }],
        }))
    }

    async fn watch_traps(
        &self,
        _: Request<api::WatchTrapsRequest>,
    ) -> Result<Response<Self::WatchTrapsStream>, Status> {
        let trap = |port: &str, lost| {
            Ok(api::Trap {
                port: port.into(),
                reason: "no_mapping".into(),
                head: vec![0xff, 0x0a],
                frame_len: 60,
                lost,
            })
        };
        Ok(Response::new(tokio_stream::iter(vec![trap("a1", 0), trap("", 4)])))
    }
}

/// A service on a socket, in a thread of its own, until it is dropped. The socket stays behind, as a killed
/// process leaves it.
pub(crate) struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Serves one until it is told to stop; whatever runs then is cut off.
macro_rules! served {
    ($service:expr, $socket:expr) => {{
        let (service, listener) =
            ($service, std::os::unix::net::UnixListener::bind($socket).unwrap());
        listener.set_nonblocking(true).unwrap();
        crate::fake::Served::by(move |stopped| async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            let server = tonic::transport::Server::builder();
            tokio::select! {
                result = server.serve_with_incoming(service, incoming) => result.unwrap(),
                _ = stopped => {}
            }
        })
    }};
}

impl Served {
    pub(crate) fn by<F: Future<Output = ()>>(
        serve: impl FnOnce(oneshot::Receiver<()>) -> F + Send + 'static,
    ) -> Served {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(serve(stopped));
        });
        Served { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A running fake; it ends, and its files go, with this value.
pub(crate) struct Running {
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) directory: TempDir,
    served: Option<Served>,
}

impl Running {
    pub(crate) fn start() -> Running {
        let directory = fresh_directory();
        let script = Arc::new(Mutex::new(Script::default()));
        let fake = DataplaneServer::new(Fake(script.clone()));
        let served = Some(served!(fake, directory.path().join("socket")));
        Running { script, directory, served }
    }

    /// Ends the server, and leaves its socket behind, as a killed dataplane does.
    pub(crate) fn kill(&mut self) {
        self.served = None;
    }

    pub(crate) fn culvert(&self, args: &[&str]) -> Ran {
        culvert(&self.directory.path().join("socket"), args)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn fresh_directory() -> TempDir {
    tempfile::Builder::new().prefix("culvert-cli-").tempdir().unwrap()
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Ran {
        let Output { status, stdout, stderr } = command.output().unwrap();
        Ran {
            code: status.code(),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }
}

pub(crate) fn culvert(socket: &Path, args: &[&str]) -> Ran {
    Ran::of(Command::new(env!("CARGO_BIN_EXE_culvert")).arg("--socket").arg(socket).args(args))
}
