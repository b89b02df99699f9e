//! The API; what it lists of objects is in `objects`, what a change may expect of them in `expected`.

mod expected;
mod objects;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_model::api::control_server::Control;
use culvert_model::{Host, Keyed, Object, ObjectKey, api, edit};
use futures_util::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use crate::access::Access;
use crate::change::{ChangeError, Done, Edits, Plan, WholeState, Writer, differences};
use crate::cluster::Cluster;
use crate::cluster::check::Conflict;
use crate::cluster::problems::problems;
use crate::events::Events;
use crate::follow::Known;
use crate::names::HostName;
use crate::queue::{NotCancelled, Queue, Unwritten, Wish};
use crate::report::Report;
use crate::store::{Description, StoreError};
use crate::stored::SCHEMA;
use crate::traps::limited;

/// Traps a second for a subscriber that does not say.
const TRAP_RATE: u32 = 100;
/// The most that one may ask for.
const TRAP_RATE_MAX: u32 = 10_000;
/// The longest that a client may wait for the dataplane.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// What answers the API.
pub struct Api {
    /// This host.
    pub me: HostName,
    /// What the store is.
    pub store: Description,
    /// Writes changes.
    pub writer: Arc<Writer>,
    /// Keeps them while the store is away; `None`: the store is a file of this host.
    pub queue: Option<Arc<Queue>>,
    /// The cluster.
    pub known: watch::Receiver<Arc<Known>>,
    /// What became of it on this host.
    pub report: watch::Receiver<Arc<Report>>,
    /// Changes of status.
    pub events: Events,
    /// Frames of the dataplane.
    pub traps: broadcast::Sender<api::Trap>,
    /// Who may call.
    pub access: Arc<Access>,
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Api {
    /// Waits until the dataplane carries a change, and says what of it it does not.
    async fn wait(&self, done: &Done, wait_ms: u32) -> Vec<api::ObjectStatus> {
        if wait_ms == 0 {
            return Vec::new();
        }
        let time = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
        let mut report = self.report.clone();
        let carried = |report: &Arc<Report>| report.link.is_ok() && report.seen >= done.seen;
        // What is not carried in time is listed as pending.
        drop(tokio::time::timeout(time, report.wait_for(carried)).await);
        let report = Arc::clone(&report.borrow());
        let touched = done.touched.iter().filter(|touched| touched.after.is_some());
        let statuses = touched.map(|touched| report.status_of(&touched.slot.key));
        statuses
            .filter(|status| {
                matches!(status.status(), api::ApplyStatus::Pending | api::ApplyStatus::Failed)
            })
            .collect()
    }

    /// Makes a change, or queues it.
    async fn change(&self, plan: &dyn Plan, wish: Wish) -> Result<Done, Unwritten> {
        match &self.queue {
            Some(queue) => queue.change(&self.writer, plan, wish).await,
            None => Ok(self.writer.change(plan, wish.if_revision, wish.dry_run).await?),
        }
    }

    async fn committed(&self, done: Done, wish: Wish, wait_ms: u32) -> api::Committed {
        let unapplied = self.wait(&done, if wish.dry_run { 0 } else { wait_ms }).await;
        api::Committed {
            revision: done.revision,
            differences: differences(&done.touched),
            warnings: done.warnings,
            unapplied,
        }
    }

    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.known.borrow().cluster)
    }
}

#[tonic::async_trait]
impl Control for Api {
    async fn get_control_info(
        &self,
        _: Request<api::GetControlInfoRequest>,
    ) -> Answer<api::ControlInfo> {
        let known = Arc::clone(&self.known.borrow());
        let report = Arc::clone(&self.report.borrow());
        let (applied, pending, failed) = report.counts();
        let meta = known.cluster.meta.clone().unwrap_or_default();
        let since = known.outage.as_ref().map(|outage| outage.since.elapsed());
        let store = api::StoreInfo {
            kind: self.store.kind.to_owned(),
            location: self.store.location.clone(),
            healthy: known.unusable().is_none(),
            reason: known.unusable().unwrap_or_default(),
            unhealthy_ms: since.map_or(0, millis),
            revision: known.cluster.revision,
            schema: if known.cluster.meta.is_some() { meta.schema } else { SCHEMA },
            from_cache: known.from_cache,
        };
        let dataplane = api::DataplaneInfo {
            connected: report.link.is_ok(),
            reason: report.link.clone().err().unwrap_or_default(),
            instance_id: report.instance.clone(),
            version: report.version.clone(),
            generation: report.generation,
            revision: report.revision,
            lag_ms: report.behind_since.map_or(0, |since| millis(since.elapsed()).max(1)),
            replays: report.replays,
        };
        Ok(Response::new(api::ControlInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.me.to_string(),
            cluster_id: meta.cluster_id,
            store: Some(store),
            dataplane: Some(dataplane),
            refused_callers: self.access.refused(),
            problems: problems(&known).into_iter().map(|(_, problem)| problem).collect(),
            applied,
            pending,
            failed,
            queue: self.queue.as_ref().map(|queue| {
                let counts = queue.counts();
                let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                api::QueueInfo { waiting: count(counts.waiting), failed: count(counts.failed) }
            }),
        }))
    }

    async fn apply_edits(
        &self,
        request: Request<api::ApplyEditsRequest>,
    ) -> Answer<api::Committed> {
        let request = request.into_inner();
        let wish = Wish {
            if_revision: None,
            dry_run: request.dry_run,
            queue: request.on_outage() == api::OnOutage::Queue,
        };
        let edits = edit::from_messages(&request.edits)
            .map_err(|errors| api::refuse(Code::InvalidArgument, errors.iter().map(Into::into)))?;
        let expected = expected::read(request.expected, &edits)?;
        let plan = Edits::new(&self.me, edits).expecting(expected);
        let done = self.change(&plan, wish).await;
        let done = done.map_err(|error| unwritten(error, |conflict| conflict.into()))?;
        Ok(Response::new(self.committed(done, wish, request.wait_ms).await))
    }

    async fn apply_state(
        &self,
        request: Request<api::ApplyStateRequest>,
    ) -> Answer<api::Committed> {
        let request = request.into_inner();
        let wish = Wish {
            if_revision: request.if_revision,
            dry_run: request.dry_run,
            // What is made from all of the store cannot be made without it.
            queue: request.on_outage() == api::OnOutage::Queue && !request.prune,
        };
        let state = request.state.unwrap_or_default();
        let host = Host::try_from(state)
            .map_err(|errors| api::refuse(Code::InvalidArgument, errors.iter().map(Into::into)))?;
        let places = places(&host);
        let objects = Object::all_of(host.into_parts()).collect();
        let plan = WholeState { me: &self.me, objects, prune: request.prune };
        let done = self.change(&plan, wish).await;
        let done = done.map_err(|error| {
            unwritten(error, |conflict| {
                let index = places.get(&conflict.slot.key).copied();
                let index = index.and_then(|index| u32::try_from(index).ok());
                api::Fault { edit: None, index, ..api::Fault::from(conflict) }
            })
        })?;
        Ok(Response::new(self.committed(done, wish, request.wait_ms).await))
    }

    async fn list_queue(&self, request: Request<api::ListQueueRequest>) -> Answer<api::QueueList> {
        let request = request.into_inner();
        Ok(Response::new(match &self.queue {
            Some(queue) => queue.list(request.number, request.differences).await,
            None => api::QueueList::default(),
        }))
    }

    async fn cancel_queued(
        &self,
        request: Request<api::CancelQueuedRequest>,
    ) -> Answer<api::QueuedChange> {
        let number = request.into_inner().number;
        let cancelled = match &self.queue {
            Some(queue) => queue.cancel(number).await,
            None => Err(NotCancelled::Unknown { number, there: Vec::new() }),
        };
        cancelled.map(Response::new).map_err(|error| match error {
            NotCancelled::Unknown { .. } => Status::not_found(error.to_string()),
            NotCancelled::Writing(_) => Status::failed_precondition(error.to_string()),
            NotCancelled::File(_) => Status::unavailable(error.to_string()),
        })
    }

    async fn get_wanted(&self, request: Request<api::GetWantedRequest>) -> Answer<api::Wanted> {
        if request.into_inner().carried {
            let report = Arc::clone(&self.report.borrow());
            let state = report.wanted.host.as_ref().map(api::State::from);
            let revision = report.known.cluster.revision;
            return Ok(Response::new(api::Wanted { state, revision }));
        }
        let cluster = self.writer.everything().await.map_err(unreadable)?;
        Ok(Response::new(api::Wanted {
            state: written(&cluster, &self.me),
            revision: cluster.revision,
        }))
    }

    async fn list_objects(
        &self,
        request: Request<api::ListObjectsRequest>,
    ) -> Answer<api::ObjectList> {
        Ok(Response::new(self.listing(request.into_inner()).await?))
    }

    async fn list_hosts(&self, _: Request<api::ListHostsRequest>) -> Answer<api::HostList> {
        let known = Arc::clone(&self.known.borrow());
        let mut problems_of: HashMap<HostName, Vec<String>> = HashMap::new();
        for (host, problem) in problems(&known) {
            if let Some(host) = host {
                problems_of.entry(host).or_default().push(problem);
            }
        }
        // How many ports others have is known of some vnets only, where the store cannot be read.
        let cluster = self.writer.everything().await;
        let cluster = cluster.unwrap_or_else(|_| Arc::clone(&known.cluster));
        let hosts = cluster.hosts.iter().map(|(name, state)| {
            let itself = *name == self.me;
            let version = state.live.as_ref().map(|live| live.version.clone());
            let own = itself.then(|| env!("CARGO_PKG_VERSION").to_owned());
            api::HostEntry {
                name: name.to_string(),
                underlay: state.underlay.as_ref().map(Into::into),
                alive: itself || known.cluster.is_alive(name),
                self_: itself,
                ports: u32::try_from(state.ports.len()).unwrap_or(u32::MAX),
                version: own.or(version).unwrap_or_default(),
                clock_ahead_ms: known.clocks_ahead_ms.get(name).copied(),
                problems: problems_of.remove(name).unwrap_or_default(),
            }
        });
        let hosts = hosts.collect();
        Ok(Response::new(api::HostList { revision: known.cluster.revision, hosts }))
    }

    async fn forget_host(
        &self,
        request: Request<api::ForgetHostRequest>,
    ) -> Answer<api::Committed> {
        let request = request.into_inner();
        let name = HostName::new(&request.name)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if name == self.me {
            return Err(Status::failed_precondition(format!(
                "{name}: is this host; legal is a host that is not alive"
            )));
        }
        let cluster = self.cluster();
        match cluster.hosts.get(&name) {
            None => {
                let names: Vec<_> = cluster.hosts.keys().map(ToString::to_string).collect();
                let names = names.join(", ");
                return Err(Status::not_found(format!("{name}: no such host; there are {names}")));
            }
            Some(state) if state.live.is_some() => {
                return Err(Status::failed_precondition(format!(
                    "{name}: is alive; legal is a host whose lease has ended: stop its culvertd first"
                )));
            }
            Some(_) => {}
        }
        let done = self.writer.forget(&name, request.dry_run).await;
        let done = done.map_err(|error| refused(error, |conflict| conflict.into()))?;
        Ok(Response::new(self.committed(done, Wish::default(), 0).await))
    }

    type WatchEventsStream = Streamed<api::Event>;

    async fn watch_events(
        &self,
        _: Request<api::WatchEventsRequest>,
    ) -> Answer<Streamed<api::Event>> {
        let events = self.events.subscribe();
        let stream =
            futures_util::stream::unfold((events, 0), |(mut events, mut lost)| async move {
                loop {
                    match events.recv().await {
                        Ok(event) => return Some((Ok(api::Event { lost, ..event }), (events, 0))),
                        Err(RecvError::Lagged(n)) => lost += n,
                        Err(RecvError::Closed) => return None,
                    }
                }
            });
        Ok(Response::new(Box::pin(stream)))
    }

    type WatchHostTrapsStream = Streamed<api::Trap>;

    async fn watch_host_traps(
        &self,
        request: Request<api::WatchHostTrapsRequest>,
    ) -> Answer<Streamed<api::Trap>> {
        let rate = match request.into_inner().rate {
            0 => TRAP_RATE,
            rate if rate <= TRAP_RATE_MAX => rate,
            rate => {
                return Err(Status::invalid_argument(format!(
                    "rate {rate}: too many; legal is 1 to {TRAP_RATE_MAX} traps a second"
                )));
            }
        };
        Ok(Response::new(Box::pin(limited(self.traps.subscribe(), rate))))
    }
}

/// The store cannot be read.
fn unreadable(error: StoreError) -> Status {
    refused(ChangeError::Store(error), |conflict| conflict.into())
}

/// A change that was not written.
fn unwritten(error: Unwritten, fault: impl Fn(&Conflict) -> api::Fault) -> Status {
    let message = error.to_string();
    match error {
        Unwritten::Refused(error) => refused(error, fault),
        Unwritten::Queued { number, reason, away } => {
            let queued = api::Queued { number, reason, unreachable_ms: millis(away) };
            api::queue(&queued, message)
        }
        Unwritten::Full { .. } => Status::resource_exhausted(message),
        Unwritten::Nothing(_) | Unwritten::NotKept { .. } | Unwritten::Unfollowed { .. } => {
            Status::unavailable(message)
        }
    }
}

fn refused(error: ChangeError, fault: impl Fn(&Conflict) -> api::Fault) -> Status {
    match error {
        ChangeError::Conflicts(conflicts) => {
            api::refuse(Code::FailedPrecondition, conflicts.iter().map(fault))
        }
        error @ (ChangeError::Revision { .. }
        | ChangeError::Changed(_)
        | ChangeError::Contended) => Status::aborted(error.to_string()),
        error @ ChangeError::Unhealthy(_) => Status::unavailable(error.to_string()),
        // Of it, one cannot say that nothing was changed.
        ChangeError::Store(error @ StoreError::Unknown { .. }) => {
            Status::unavailable(error.to_string())
        }
        error @ ChangeError::Partly { .. } => Status::unavailable(error.to_string()),
        error @ ChangeError::Alive(_) => Status::failed_precondition(error.to_string()),
        ChangeError::Store(error) if error.is_outage() => {
            Status::unavailable(ChangeError::Unhealthy(error.to_string()).to_string())
        }
        ChangeError::Store(error) => Status::failed_precondition(error.to_string()),
    }
}

/// Where each object stands in its section.
fn places(host: &Host) -> HashMap<ObjectKey, usize> {
    let vnets = host.vnets().iter().map(|vnet| ObjectKey::Vnet(vnet.id.clone())).enumerate();
    let ports = host.ports().iter().map(|port| ObjectKey::Port(port.id.clone())).enumerate();
    let routes = host.routes().iter().map(|route| ObjectKey::Route(route.key())).enumerate();
    let mappings = host.mappings().iter().map(|m| ObjectKey::Mapping(m.key())).enumerate();
    let ingress = host.ingress().iter().map(|rule| ObjectKey::Ingress(rule.key())).enumerate();
    let acls = host.acls().iter().map(|group| ObjectKey::Acl(group.id.clone())).enumerate();
    let formats = host.formats().iter().map(|f| ObjectKey::Format(f.id.clone())).enumerate();
    let all =
        vnets.chain(formats).chain(acls).chain(ports).chain(routes).chain(mappings).chain(ingress);
    all.map(|(index, key)| (key, index)).collect()
}

/// What was written of a host and of the cluster, as a state.
fn written(cluster: &Cluster, me: &HostName) -> Option<api::State> {
    let own = cluster.hosts.get(me)?;
    let routes = own.routes.iter().chain(cluster.routes.iter());
    Some(api::State {
        underlay: Some(own.underlay.as_ref()?.into()),
        vnets: cluster.vnets.iter().map(Into::into).collect(),
        ports: own.ports.iter().map(Into::into).collect(),
        routes: routes.map(Into::into).collect(),
        mappings: cluster.mappings.iter().map(Into::into).collect(),
        ingress: cluster.ingress.iter().map(Into::into).collect(),
        acls: cluster.acls.iter().map(Into::into).collect(),
        formats: cluster.formats.iter().map(Into::into).collect(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
