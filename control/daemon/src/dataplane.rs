//! The way to this host's dataplane: what it carries, and giving it something else.

use std::path::Path;
use std::time::Duration;

use culvert_model::api::dataplane_client::DataplaneClient;
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::{Edit, Host, Keyed, ObjectKey, Section, api};
use culvert_socket::root_cause;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a dataplane may take for a state: opening thousands of devices takes seconds.
const APPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// What a dataplane carries.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    /// Random at each start of the dataplane.
    pub instance: String,
    /// Its version.
    pub version: String,
    /// Grows with each state.
    pub generation: u64,
    /// The state; `None` before the first.
    pub host: Option<Host>,
}

/// Why a dataplane did not take a state.
#[derive(Debug)]
pub enum Rejected {
    /// It carries something else than was thought, or is another process.
    Stale,
    /// It cannot carry it: the objects to blame, where they are known, and why.
    Refused(Vec<(Option<ObjectKey>, String)>),
    /// It is gone.
    Gone(String),
}

/// A connected dataplane.
#[derive(Clone, Debug)]
pub struct Link {
    calls: DataplaneClient<Channel>,
}

impl Link {
    /// Connects to its socket.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn connect(socket: &Path) -> Result<Link, String> {
        let connect = culvert_socket::connect(socket);
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(format!("{}: {}", socket.display(), root_cause(&error))),
            Err(_) => return Err(format!("{}: no answer", socket.display())),
        };
        let calls = DataplaneClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Link { calls })
    }

    /// What it carries, read in full.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn observe(&mut self) -> Result<Carried, String> {
        let info = self.info().await?;
        let state = self
            .calls
            .get_state(api::GetStateRequest {})
            .await
            .map_err(|status| text(&status))?
            .into_inner();
        // One that this version cannot read is replaced as a whole.
        let host = state.state.and_then(|state| Host::try_from(state).ok());
        let api::Info { instance_id: instance, version, .. } = info;
        Ok(Carried { instance, version, generation: state.generation, host })
    }

    /// Who it is, and its generation.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn info(&mut self) -> Result<api::Info, String> {
        let info = self.calls.get_info(api::GetInfoRequest {}).await;
        info.map(tonic::Response::into_inner).map_err(|status| text(&status))
    }

    /// Frames that it hands to the control plane.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn traps(&mut self) -> Result<Streaming<api::Trap>, String> {
        let traps = self.calls.watch_traps(api::WatchTrapsRequest {}).await;
        traps.map(tonic::Response::into_inner).map_err(|status| text(&status))
    }

    /// How ports are.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn ports(&mut self) -> Result<Vec<api::PortStatus>, String> {
        let ports = self.calls.list_ports(api::ListPortsRequest {}).await;
        ports.map(|ports| ports.into_inner().ports).map_err(|status| text(&status))
    }

    /// Its counters.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn stats(&mut self) -> Result<api::Stats, String> {
        let stats = self.calls.get_stats(api::GetStatsRequest {}).await;
        stats.map(tonic::Response::into_inner).map_err(|status| text(&status))
    }

    /// The ways to other hosts' VTEPs.
    ///
    /// # Errors
    /// Why not, for people.
    pub async fn paths(&mut self) -> Result<Vec<api::Path>, String> {
        let paths = self.calls.list_paths(api::ListPathsRequest {}).await;
        paths.map(|paths| paths.into_inner().paths).map_err(|status| text(&status))
    }

    /// Has it carry `target` instead of what it carries, by what differs, `edits`, where that is little; `None`:
    /// it carries nothing yet.
    ///
    /// # Errors
    /// See [`Rejected`]; it then carries what it did.
    pub async fn apply(
        &mut self,
        carried: &Carried,
        target: &Host,
        edits: Option<&[Edit]>,
    ) -> Result<u64, Rejected> {
        let Some(edits) = edits else { return self.replace(carried, target).await };
        let objects = target.ports().len() + target.mappings().len() + target.routes().len();
        if edits.len() > objects / 2 + 64 {
            return self.replace(carried, target).await;
        }
        let mut request = tonic::Request::new(api::UpdateRequest {
            edits: edits.iter().map(Into::into).collect(),
            if_generation: Some(carried.generation),
            if_instance: carried.instance.clone(),
        });
        request.set_timeout(APPLY_TIMEOUT);
        match self.calls.update(request).await {
            Ok(applied) => Ok(applied.into_inner().generation),
            Err(status) if status.code() == Code::Unimplemented => {
                self.replace(carried, target).await
            }
            Err(status) => Err(rejected(&status, edits, target)),
        }
    }

    async fn replace(&mut self, carried: &Carried, target: &Host) -> Result<u64, Rejected> {
        let mut request = tonic::Request::new(api::ReplaceRequest {
            state: Some(target.into()),
            if_generation: Some(carried.generation),
        });
        request.set_timeout(APPLY_TIMEOUT);
        match self.calls.replace(request).await {
            Ok(applied) => Ok(applied.into_inner().generation),
            Err(status) => Err(rejected(&status, &[], target)),
        }
    }
}

fn rejected(status: &Status, edits: &[Edit], target: &Host) -> Rejected {
    if status.code() == Code::Aborted {
        return Rejected::Stale;
    }
    if let Some(refusal) = api::refusal(status) {
        let faults = refusal.faults.iter();
        let blamed = faults.map(|fault| (blamed(fault, edits, target), fault.text()));
        return Rejected::Refused(blamed.collect());
    }
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            Rejected::Refused(vec![(None, status.message().to_owned())])
        }
        _ => Rejected::Gone(text(status)),
    }
}

/// The object that a fault is about.
fn blamed(fault: &api::Fault, edits: &[Edit], target: &Host) -> Option<ObjectKey> {
    let position = |n: u32| usize::try_from(n).ok();
    if let Some(edit) = fault.edit.and_then(position).and_then(|edit| edits.get(edit)) {
        return Some(edit.key());
    }
    let index = fault.index.and_then(position);
    let at = |n: usize| index.is_none_or(|index| index == n);
    // By name where there is one, else by position; a whole section is nobody's fault.
    let named = |key: ObjectKey| {
        (if fault.id.is_empty() { index.is_some() } else { key.name() == fault.id }).then_some(key)
    };
    macro_rules! find {
        ($items:expr, $key:expr) => {
            $items
                .iter()
                .enumerate()
                .filter(|(n, _)| !fault.id.is_empty() || at(*n))
                .find_map(|(_, item)| named($key(item)))
        };
    }
    let is = |section: Section| fault.section == section.name();
    if is(Section::Underlay) {
        Some(ObjectKey::Underlay)
    } else if is(Section::Vnet) {
        find!(target.vnets(), |v: &culvert_model::Vnet| ObjectKey::Vnet(v.id.clone()))
    } else if is(Section::Port) {
        find!(target.ports(), |p: &culvert_model::Port| ObjectKey::Port(p.id.clone()))
    } else if is(Section::Route) {
        find!(target.routes(), |r: &culvert_model::EgressRoute| ObjectKey::Route(r.key()))
    } else if is(Section::Mapping) {
        find!(target.mappings(), |m: &culvert_model::Mapping| ObjectKey::Mapping(m.key()))
    } else if is(Section::Ingress) {
        find!(target.ingress(), |r: &culvert_model::IngressRule| ObjectKey::Ingress(r.key()))
    } else if is(Section::Acl) {
        find!(target.acls(), |g: &culvert_model::AclGroup| ObjectKey::Acl(g.id.clone()))
    } else if is(Section::Format) {
        find!(target.formats(), |f: &culvert_model::Format| ObjectKey::Format(f.id.clone()))
    } else {
        None
    }
}

fn text(status: &Status) -> String {
    let reason = root_cause(status);
    if status.message().is_empty() {
        reason
    } else {
        format!("{}: {}", status.code(), status.message())
    }
}
