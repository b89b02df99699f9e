//! A culvertd that keeps ports in memory and has no dataplane.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_model::api::control_server::{Control, ControlServer};
use culvert_model::api::{self, ApplyStatus, edit, object, refuse};
use culvert_model::fault::{Place, Section};
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// What it holds, and how it is to answer.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) ports: Vec<api::Port>,
    /// Refuse ports with these words.
    pub(crate) refuse: Option<String>,
    /// Say of ports that the dataplane does not carry them.
    pub(crate) never_carried: bool,
    /// Say that the dataplane is not reached.
    pub(crate) no_dataplane: bool,
    /// How often a change is to meet others' changes first.
    pub(crate) conflicts: u32,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Script>>);

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Fake {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn vnet(id: &str, vni: u32, gateways: &[&str]) -> api::Vnet {
    let mac = "02:00:00:00:00:fe".to_owned();
    let gateway = |ip: &&str| api::Gateway { ip: (*ip).to_owned(), mac: mac.clone() };
    api::Vnet {
        id: id.to_owned(),
        vni,
        gateways: gateways.iter().map(gateway).collect(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Control for Fake {
    type WatchEventsStream = Events<api::Event>;
    type WatchHostTrapsStream = Events<api::Trap>;

    async fn get_control_info(
        &self,
        _: Request<api::GetControlInfoRequest>,
    ) -> Answer<api::ControlInfo> {
        let down = self.script().no_dataplane;
        Ok(Response::new(api::ControlInfo {
            store: Some(api::StoreInfo { healthy: true, ..Default::default() }),
            dataplane: Some(api::DataplaneInfo {
                connected: !down,
                reason: if down { "it is gone".to_owned() } else { String::new() },
                ..Default::default()
            }),
            ..Default::default()
        }))
    }

    async fn apply_edits(
        &self,
        request: Request<api::ApplyEditsRequest>,
    ) -> Answer<api::Committed> {
        let mut script = self.script();
        if script.conflicts > 0 {
            script.conflicts -= 1;
            return Err(Status::aborted("others were faster"));
        }
        for edit in request.into_inner().edits {
            let place = Place::section(Section::Port, "");
            match edit.edit {
                Some(edit::Edit::PutPort(port)) => {
                    if let Some(words) = &script.refuse {
                        let fault = api::Fault::new(&place, words);
                        return Err(refuse(Code::FailedPrecondition, [fault]));
                    }
                    script.ports.retain(|held| held.id != port.id);
                    script.ports.push(port);
                }
                Some(edit::Edit::DeletePort(id)) => {
                    if !script.ports.iter().any(|port| port.id == id) {
                        let fault = api::Fault::new(&place, "there is no such port");
                        return Err(refuse(Code::InvalidArgument, [fault]));
                    }
                    script.ports.retain(|port| port.id != id);
                }
                other => return Err(Status::unimplemented(format!("{other:?}"))),
            }
        }
        Ok(Response::new(api::Committed::default()))
    }

    async fn list_objects(
        &self,
        request: Request<api::ListObjectsRequest>,
    ) -> Answer<api::ObjectList> {
        let script = self.script();
        let status = if script.never_carried { ApplyStatus::Pending } else { ApplyStatus::Applied };
        let objects: Vec<object::Object> = match request.into_inner().kind() {
            api::ObjectKind::Underlay => vec![object::Object::Underlay(api::Underlay {
                interfaces: vec!["wire".to_owned()],
                addresses: vec!["192.0.2.1".to_owned()],
                ..Default::default()
            })],
            api::ObjectKind::Vnet => vec![
                object::Object::Vnet(vnet("blue", 100, &["10.0.0.1/24", "fd00::1/64"])),
                object::Object::Vnet(vnet("green", 200, &[])),
            ],
            api::ObjectKind::Port => {
                script.ports.iter().cloned().map(object::Object::Port).collect()
            }
            _ => Vec::new(),
        };
        let listed = objects.into_iter().map(|object| api::ListedObject {
            object: Some(api::Object { object: Some(object) }),
            status: status.into(),
            reason: if script.never_carried { "no such device".to_owned() } else { String::new() },
            ..Default::default()
        });
        let objects = listed.collect();
        Ok(Response::new(api::ObjectList { revision: 1, objects, ..Default::default() }))
    }

    async fn list_queue(&self, _: Request<api::ListQueueRequest>) -> Answer<api::QueueList> {
        Err(Status::unimplemented("not here"))
    }

    async fn cancel_queued(
        &self,
        _: Request<api::CancelQueuedRequest>,
    ) -> Answer<api::QueuedChange> {
        Err(Status::unimplemented("not here"))
    }

    async fn apply_state(&self, _: Request<api::ApplyStateRequest>) -> Answer<api::Committed> {
        Err(Status::unimplemented("apply_state"))
    }

    async fn get_wanted(&self, _: Request<api::GetWantedRequest>) -> Answer<api::Wanted> {
        Err(Status::unimplemented("get_wanted"))
    }

    async fn list_hosts(&self, _: Request<api::ListHostsRequest>) -> Answer<api::HostList> {
        Err(Status::unimplemented("list_hosts"))
    }

    async fn forget_host(&self, _: Request<api::ForgetHostRequest>) -> Answer<api::Committed> {
        Err(Status::unimplemented("forget_host"))
    }

    async fn watch_events(
        &self,
        _: Request<api::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        Err(Status::unimplemented("watch_events"))
    }

    async fn watch_host_traps(
        &self,
        _: Request<api::WatchHostTrapsRequest>,
    ) -> Answer<Self::WatchHostTrapsStream> {
        Err(Status::unimplemented("watch_host_traps"))
    }
}

/// A running fake. What it holds outlives a stop, as a store does.
pub(crate) struct Culvertd {
    socket: PathBuf,
    script: Arc<Mutex<Script>>,
    running: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Culvertd {
    pub(crate) fn start(run_dir: &Path) -> Culvertd {
        let mut fake = Culvertd {
            socket: run_dir.join("culvertd.sock"),
            script: Arc::default(),
            running: None,
        };
        fake.restart();
        fake
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let service = ControlServer::new(Fake(Arc::clone(&self.script)));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let incoming = UnixListenerStream::new(listener);
                let server = tonic::transport::Server::builder();
                tokio::select! {
                    served = server.serve_with_incoming(service, incoming) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        self.running = Some((stop, thread));
    }

    /// Ends it and leaves its socket behind, as a killed one does.
    pub(crate) fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

impl Drop for Culvertd {
    fn drop(&mut self) {
        self.stop();
    }
}
