//! A culvertd without store and dataplane: it keeps one host's state and says that all of it is applied.

use std::process::Command;
use std::sync::{Arc, Mutex};

use culvert_model::api::control_server::{Control, ControlServer};
use culvert_model::api::{self, refuse};
use culvert_model::{Edit, Host, Object, ObjectKey, Section, diff, edit};
use tempfile::TempDir;
use tonic::{Code, Request, Response, Status};

use crate::fake::{Ran, Served, fresh_directory};

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) host: Option<Host>,
    pub(crate) revision: u64,
    /// The next conditional changes come too late.
    pub(crate) outrun: u32,
    /// What this host does not carry, and why.
    pub(crate) failing: Option<(ObjectKey, &'static str)>,
    /// Why the store cannot be reached.
    pub(crate) outage: Option<&'static str>,
    /// The calls until it cannot be, where that comes in the middle of something.
    pub(crate) outage_after: Option<u32>,
    pub(crate) queue: Vec<api::QueuedChange>,
}

impl Script {
    fn object(&self, key: &ObjectKey) -> Option<Object> {
        let parts = self.host.clone()?.into_parts();
        Object::all_of(parts).find(|object| object.key() == *key)
    }

    fn commit(
        &mut self,
        edits: &[Edit],
        dry_run: bool,
        wait: bool,
    ) -> Result<api::Committed, Status> {
        let after = match &self.host {
            Some(host) => host.edited(edits),
            None => Host::of_edits(edits),
        };
        let after = after
            .map_err(|errors| refuse(Code::InvalidArgument, errors.iter().map(api::Fault::from)))?;
        let differences = edits.iter().map(|edit| api::Difference {
            key: Some((&edit.key()).into()),
            before: self.object(&edit.key()).as_ref().map(Into::into),
            after: Option::<Object>::from(edit.clone()).as_ref().map(Into::into),
        });
        let differences: Vec<_> = differences.collect();
        let failing = self.failing.iter().filter(|_| wait && !dry_run);
        let unapplied = failing.map(|(key, reason)| api::ObjectStatus {
            key: Some(key.into()),
            status: api::ApplyStatus::Failed.into(),
            reason: (*reason).into(),
        });
        let unapplied = unapplied.collect();
        if !dry_run && !differences.is_empty() {
            self.host = Some(after);
            self.revision += 1;
        }
        Ok(api::Committed { revision: self.revision, differences, warnings: Vec::new(), unapplied })
    }

    /// Whether a change gets to the store; otherwise it is queued, or refused.
    fn reach(&mut self, edits: &[Edit], may_queue: bool) -> Result<(), Status> {
        if self.outage_after.take_if(|calls| *calls == 0).is_some() {
            self.outage = Some("gone just now");
        }
        self.outage_after = self.outage_after.map(|calls| calls - 1);
        let Some(reason) = self.outage else { return Ok(()) };
        if !may_queue {
            return Err(Status::unavailable(format!("nothing was changed: {reason}")));
        }
        let number = self.queue.len() as u64 + 1;
        let differences = edits.iter().map(|edit| api::Difference {
            key: Some((&edit.key()).into()),
            before: self.object(&edit.key()).as_ref().map(Into::into),
            after: Option::<Object>::from(edit.clone()).as_ref().map(Into::into),
        });
        let differences = differences.collect();
        let mut change = api::QueuedChange { number, differences, ..Default::default() };
        change.set_state(api::QueueState::Waiting);
        self.queue.push(change);
        let queued = api::Queued { number, reason: reason.to_owned(), unreachable_ms: 12_000 };
        Err(api::queue(&queued, format!("{reason}: queued as change {number}")))
    }

    fn check_expected(&mut self, expected: &[api::ExpectedObject]) -> Result<(), Status> {
        if !expected.is_empty() && self.outrun > 0 {
            self.outrun -= 1;
            self.revision += 1;
            return Err(Status::aborted("somebody was faster"));
        }
        for api::ExpectedObject { key, object } in expected.iter().cloned() {
            let key = ObjectKey::try_from(key.unwrap()).unwrap();
            if self.object(&key) != object.map(|object| Object::try_from(object).unwrap()) {
                return Err(Status::aborted(format!("{key}: was changed")));
            }
        }
        Ok(())
    }

    fn check_revision(&mut self, wanted: Option<u64>) -> Result<(), Status> {
        match wanted {
            Some(wanted) if wanted != self.revision => {
                Err(Status::aborted(format!("the revision is {}", self.revision)))
            }
            _ => Ok(()),
        }
    }
}

struct Fake(Arc<Mutex<Script>>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Fake {
    type WatchEventsStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::Event, Status>>>;
    type WatchHostTrapsStream = tokio_stream::Iter<std::vec::IntoIter<Result<api::Trap, Status>>>;

    async fn get_control_info(
        &self,
        _: Request<api::GetControlInfoRequest>,
    ) -> Answer<api::ControlInfo> {
        Err(Status::unimplemented("not here"))
    }

    async fn apply_edits(
        &self,
        request: Request<api::ApplyEditsRequest>,
    ) -> Answer<api::Committed> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        let may_queue = request.on_outage() == api::OnOutage::Queue;
        let edits = edit::from_messages(&request.edits)
            .map_err(|errors| refuse(Code::InvalidArgument, errors.iter().map(api::Fault::from)))?;
        script.reach(&edits, may_queue)?;
        script.check_expected(&request.expected)?;
        script.commit(&edits, request.dry_run, request.wait_ms > 0).map(Response::new)
    }

    async fn list_queue(&self, request: Request<api::ListQueueRequest>) -> Answer<api::QueueList> {
        let only = request.into_inner().number;
        let mut changes = self.0.lock().unwrap().queue.clone();
        changes.retain(|change| only.is_none_or(|only| only == change.number));
        Ok(Response::new(api::QueueList { changes, ..Default::default() }))
    }

    async fn cancel_queued(
        &self,
        request: Request<api::CancelQueuedRequest>,
    ) -> Answer<api::QueuedChange> {
        let number = request.into_inner().number;
        let mut script = self.0.lock().unwrap();
        let place = script.queue.iter().position(|change| change.number == number);
        let place = place.ok_or_else(|| Status::not_found("not in the queue"))?;
        let mut change = script.queue.remove(place);
        change.set_state(api::QueueState::Cancelled);
        Ok(Response::new(change))
    }

    async fn apply_state(
        &self,
        request: Request<api::ApplyStateRequest>,
    ) -> Answer<api::Committed> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        script.check_revision(request.if_revision)?;
        let may_queue = request.on_outage() == api::OnOutage::Queue;
        let host = Host::try_from(request.state.unwrap_or_default())
            .map_err(|errors| refuse(Code::InvalidArgument, errors.iter().map(api::Fault::from)))?;
        let mut edits = match &script.host {
            Some(before) => diff(before, &host),
            None => Object::all_of(host.into_parts()).map(Edit::from).collect(),
        };
        let own = |edit: &Edit| matches!(edit.key().section(), Section::Underlay | Section::Port);
        let puts = |edit: &Edit| Option::<Object>::from(edit.clone()).is_some();
        edits.retain(|edit| request.prune || own(edit) || puts(edit));
        script.reach(&edits, may_queue)?;
        script.commit(&edits, request.dry_run, request.wait_ms > 0).map(Response::new)
    }

    async fn get_wanted(&self, _: Request<api::GetWantedRequest>) -> Answer<api::Wanted> {
        let script = self.0.lock().unwrap();
        let state = script.host.as_ref().map(Into::into);
        Ok(Response::new(api::Wanted { state, revision: script.revision }))
    }

    async fn list_objects(
        &self,
        request: Request<api::ListObjectsRequest>,
    ) -> Answer<api::ObjectList> {
        let request = request.into_inner();
        let script = self.0.lock().unwrap();
        let section = match request.kind() {
            api::ObjectKind::Unspecified => None,
            api::ObjectKind::Underlay => Some(Section::Underlay),
            api::ObjectKind::Vnet => Some(Section::Vnet),
            api::ObjectKind::Port => Some(Section::Port),
            api::ObjectKind::Route => Some(Section::Route),
            api::ObjectKind::Mapping => Some(Section::Mapping),
            api::ObjectKind::Ingress => Some(Section::Ingress),
            api::ObjectKind::Acl => Some(Section::Acl),
            api::ObjectKind::Format => Some(Section::Format),
        };
        let parts = script.host.clone().map(Host::into_parts);
        let objects = parts.into_iter().flat_map(Object::all_of);
        let objects = objects
            .filter(|object| section.is_none_or(|section| object.key().section() == section))
            .filter(|object| {
                request.keys.is_empty() || request.keys.contains(&(&object.key()).into())
            })
            .map(|object| {
                let failing = script.failing.as_ref().filter(|(key, _)| *key == object.key());
                api::ListedObject {
                    key: Some((&object.key()).into()),
                    object: Some((&object).into()),
                    host: String::new(),
                    status: failing
                        .map_or(api::ApplyStatus::Applied, |_| api::ApplyStatus::Failed)
                        .into(),
                    reason: failing.map_or_else(String::new, |(_, reason)| (*reason).to_owned()),
                    derived_from: String::new(),
                }
            });
        Ok(Response::new(api::ObjectList {
            revision: script.revision,
            objects: objects.collect(),
            ..Default::default()
        }))
    }

    async fn list_hosts(&self, _: Request<api::ListHostsRequest>) -> Answer<api::HostList> {
        let script = self.0.lock().unwrap();
        let this = api::HostEntry {
            name: "a".into(),
            underlay: script.host.as_ref().map(|host| host.underlay().into()),
            alive: true,
            self_: true,
            ports: 1,
            version: "0.1.0".into(),
            ..Default::default()
        };
        let other = api::HostEntry {
            name: "b".into(),
            clock_ahead_ms: Some(-90_000),
            problems: vec!["its clock is 90 s behind".into()],
            ..Default::default()
        };
        Ok(Response::new(api::HostList { revision: script.revision, hosts: vec![this, other] }))
    }

    async fn forget_host(
        &self,
        request: Request<api::ForgetHostRequest>,
    ) -> Answer<api::Committed> {
        match request.into_inner().name.as_str() {
            "b" => Ok(Response::new(api::Committed { revision: 9, ..Default::default() })),
            name => Err(Status::failed_precondition(format!("host {name} is alive"))),
        }
    }

    async fn watch_events(
        &self,
        _: Request<api::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        Err(Status::unimplemented("not here"))
    }

    async fn watch_host_traps(
        &self,
        _: Request<api::WatchHostTrapsRequest>,
    ) -> Answer<Self::WatchHostTrapsStream> {
        Err(Status::unimplemented("not here"))
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
        let fake = ControlServer::new(Fake(script.clone()));
        let served = Some(served!(fake, directory.path().join("culvertd.sock")));
        Running { script, directory, served }
    }

    pub(crate) fn culvert(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        Ran::of(command.arg("--run-dir").arg(self.directory.path()).args(args))
    }

    /// Runs a command that must succeed; returns what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.culvert(args);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}: {ran:?}");
        ran.out
    }

    /// Runs a command that must fail with this code; returns what it said.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.culvert(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        ran.err
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.served = None;
    }
}
