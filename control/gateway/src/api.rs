//! The gateway's API on its Unix socket: what operators do with volumes and cache while it serves.
//!
//! What takes long runs as a task of its own: a caller that goes away does not cut it short. When the
//! gateway stops, [`Api::stop`] does, and nothing begins any more: connections outlive the socket.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use culvert_model::api::volume_gateway_server::VolumeGateway;
use culvert_model::api::{
    AttachVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, DetachVolumeRequest,
    ExportQuarantineRequest, FlushVolumeRequest, GatewayInfo, GetGatewayInfoRequest,
    ListVolumesRequest, QuarantineRange, ResizeVolumeRequest, ScrubCacheRequest, ScrubProgress,
    ScrubReport, SetVolumeRequest, Volume as VolumeMessage, VolumeList, VolumeProgress,
};
use culvert_nbd::{Connection, Fence, Server};
use culvert_volume::{
    Cache, Durability, Error, Refusal, Volume, VolumeName, VolumeOptions, VolumeState,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::exports::{VolumeExports, volume_of};

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long clients of a volume that is gone may take to leave by themselves.
const LINGER: Duration = Duration::from_secs(1);
/// How long the answers of their last requests may take to reach them.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// Most losses that a report names.
const MAX_LOST: usize = 1000;

/// Messages of one answer.
type Answers<T> = ReceiverStream<Result<T, Status>>;
/// Where they are sent.
type Teller<T> = mpsc::Sender<Result<T, Status>>;

/// The API's state. Clones are the same.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Weak<Cache>,
    server: Server<VolumeExports>,
    cache_path: PathBuf,
    store: String,
    /// What runs. `None` once the gateway stops.
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

/// What a caller is told of an error.
fn tell(error: &Error) -> Status {
    let message = error.to_string();
    match error {
        Error::NoVolume { .. } | Error::Gone => Status::not_found(message),
        Error::VolumeExists { .. } => Status::already_exists(message),
        Error::Size { .. } | Error::Name(_) | Error::OutOfBounds { .. } => {
            Status::invalid_argument(message)
        }
        Error::Owned { .. }
        | Error::OtherVolume { .. }
        | Error::Served { .. }
        | Error::NotServed { .. }
        | Error::TooManyVolumes { .. } => Status::failed_precondition(message),
        Error::Superseded { .. } => Status::aborted(message),
        Error::Store(_) | Error::StoreTimeout { .. } | Error::Probe(_) => {
            Status::unavailable(message)
        }
        Error::FullOfQuarantine { .. } => Status::resource_exhausted(message),
        Error::Lost { .. } | Error::UnknownLoss { .. } | Error::RemoteDamaged { .. } => {
            Status::data_loss(message)
        }
        _ => Status::internal(message),
    }
}

/// Sends a message. False once nobody reads on.
async fn send<T>(teller: &Teller<T>, message: T) -> bool {
    teller.send(Ok(message)).await.is_ok()
}

fn name(text: &str) -> Result<VolumeName, Status> {
    VolumeName::new(text).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// A volume's state in the words of the API.
fn word(state: VolumeState, refusing: Option<Refusal>) -> &'static str {
    match (refusing, state) {
        (Some(Refusal::BeingMade), _) => "being made",
        (Some(Refusal::Releasing), _) => "detaching",
        (Some(Refusal::InDoubt), _) => "in doubt",
        (Some(Refusal::Released), _) => "released",
        (Some(Refusal::Quarantined), _) => "quarantined",
        (Some(Refusal::Replaced), _) => "replaced",
        (Some(Refusal::Forgetting), _) => "forgetting",
        (Some(Refusal::Deleting), _) => "deleting",
        (None | Some(Refusal::Stopping | Refusal::Closed), state) => match state {
            VolumeState::Active => "active",
            VolumeState::Released => "released",
            VolumeState::Quarantined => "quarantined",
            VolumeState::Deleting => "deleting",
            VolumeState::Gone => "gone",
        },
    }
}

fn options(remote: bool, dirty_quota: u64) -> VolumeOptions {
    let durability = if remote { Durability::Remote } else { Durability::Local };
    VolumeOptions { durability, dirty_quota }
}

impl Api {
    /// An API for `cache`, of which it does not keep hold, served by `server`.
    pub fn new(
        cache: &Arc<Cache>,
        server: Server<VolumeExports>,
        cache_path: PathBuf,
        store: String,
    ) -> Self {
        let tasks = Mutex::new(Some(JoinSet::new()));
        let cache = Arc::downgrade(cache);
        Self { shared: Arc::new(Shared { cache, server, cache_path, store, tasks }) }
    }

    /// Cuts short whatever runs, and lets nothing begin any more: the cache is about to be closed.
    pub async fn stop(&self) {
        let tasks = self.tasks().take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Option<JoinSet<()>>> {
        self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something on, whoever waits for it, unless the gateway stops.
    fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = self.tasks().as_mut() {
            // Those that have ended would be kept otherwise.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(work);
        }
    }

    fn cache(&self) -> Result<Arc<Cache>, Status> {
        // While it is closed it is still there.
        let serves = self.tasks().is_some();
        let cache = self.shared.cache.upgrade().filter(|_| serves);
        cache.ok_or_else(|| Status::unavailable("the gateway is stopping"))
    }

    fn connections(&self, name: &VolumeName) -> Vec<Connection> {
        let mut all = self.shared.server.connections().all();
        all.retain(|c| c.export_name().is_some_and(|export| volume_of(&export) == name.as_str()));
        all
    }

    fn message(&self, volume: &Volume) -> Result<VolumeMessage, Status> {
        let status = volume.status().map_err(|e| tell(&e))?;
        let durability = match status.options.durability {
            Durability::Local => "local",
            Durability::Remote => "remote",
        };
        Ok(VolumeMessage {
            connections: self.connections(&status.name).len() as u32,
            name: status.name.to_string(),
            uuid: format!("{:032x}", status.uuid),
            size: status.size,
            state: word(status.state, status.refusing).to_owned(),
            epoch: status.epoch,
            durability: durability.to_owned(),
            dirty_quota: status.options.dirty_quota,
            dirty_bytes: status.dirty_bytes,
            watermark: status.published,
            published_unix_ms: status.published_at_ms,
        })
    }

    /// Runs something that answers once, whether or not the caller waits for it.
    async fn finish<T, F>(&self, work: impl FnOnce(Arc<Cache>) -> F + Send) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let work = work(self.cache()?);
        self.run(async move {
            // Nobody may be there to hear it.
            let _ = answer.send(work.await);
        });
        match answered.await {
            Ok(result) => result.map_err(|e| tell(&e)),
            Err(_) => Err(Status::unavailable("the gateway is stopping")),
        }
    }

    /// Runs something that tells how far it is.
    fn stream<T, F>(&self, work: impl FnOnce(Teller<T>) -> F) -> Response<Answers<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (teller, answers) = mpsc::channel(4);
        let work = work(teller.clone());
        self.run(async move {
            if let Err(status) = work.await {
                let _ = teller.send(Err(status)).await;
            }
        });
        Response::new(ReceiverStream::new(answers))
    }

    /// Runs an upload of a volume and tells how much of it is left.
    async fn upload(
        &self,
        volume: Volume,
        teller: Teller<VolumeProgress>,
        work: impl Future<Output = Result<(), Error>>,
        message: impl FnOnce() -> Result<VolumeMessage, Status>,
    ) -> Result<(), Status> {
        let left = || volume.status().map_or(0, |status| status.dirty_bytes);
        let total_bytes = left();
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    done.map_err(|e| tell(&e))?;
                    break;
                }
                _ = progress.tick() => {
                    let left_bytes = left().min(total_bytes);
                    // A caller that does not read does not hold the upload up.
                    let _ = teller.try_send(Ok(VolumeProgress {
                        left_bytes,
                        total_bytes,
                        volume: None,
                    }));
                }
            }
        }
        let last = VolumeProgress { left_bytes: 0, total_bytes, volume: Some(message()?) };
        let _ = teller.send(Ok(last)).await;
        Ok(())
    }
}

#[tonic::async_trait]
impl VolumeGateway for Api {
    async fn get_gateway_info(
        &self,
        _: Request<GetGatewayInfoRequest>,
    ) -> Result<Response<GatewayInfo>, Status> {
        let cache = self.cache()?;
        let status = cache.status();
        let counters = status.counters;
        Ok(Response::new(GatewayInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cache_path: self.shared.cache_path.display().to_string(),
            cache_id: format!("{:016x}", status.cache_id),
            store: self.shared.store.clone(),
            log_bytes: status.log.0,
            log_used_bytes: status.log.1,
            slots: status.slots.0,
            free_slots: status.slots.1,
            dirty_slots: cache.dirty_slots(),
            unvalidated_chunks: status.unvalidated,
            unknown_slots: status.unknown_slots,
            stopped: status.stopped.unwrap_or_default(),
            hits: counters.hits,
            misses: counters.misses,
            fetched_bytes: counters.fetched_bytes,
            uploaded_bytes: counters.uploaded_bytes,
            evicted_chunks: counters.evicted,
            damaged_blocks: counters.damaged_blocks,
            store_failures: counters.store_failures,
            connections: self.shared.server.connections().all().len() as u32,
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<VolumeList>, Status> {
        let cache = self.cache()?;
        let mut volumes: Vec<VolumeMessage> =
            cache.volumes().iter().filter_map(|volume| self.message(volume).ok()).collect();
        if request.get_ref().stored {
            for name in cache.stored_volumes().await.map_err(|e| tell(&e))? {
                if !volumes.iter().any(|volume| volume.name == name.as_str()) {
                    let (name, state) = (name.to_string(), "stored".to_owned());
                    volumes.push(VolumeMessage { name, state, ..VolumeMessage::default() });
                }
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(VolumeList { volumes }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<VolumeMessage>, Status> {
        let CreateVolumeRequest { name: text, size, remote_durability, dirty_quota } =
            request.into_inner();
        let name = name(&text)?;
        let options = options(remote_durability, dirty_quota);
        let made = self
            .finish(move |cache| async move { cache.create_volume(&name, size, options).await });
        let made = made.await?;
        info!(volume = text, bytes = size, "made");
        Ok(Response::new(self.message(&made)?))
    }

    async fn attach_volume(
        &self,
        request: Request<AttachVolumeRequest>,
    ) -> Result<Response<VolumeMessage>, Status> {
        let AttachVolumeRequest { name: text, take_over, remote_durability, dirty_quota } =
            request.into_inner();
        let name = name(&text)?;
        let options = options(remote_durability, dirty_quota);
        let taken = self.finish(move |cache| async move {
            cache.attach_volume(&name, options, take_over).await
        });
        let taken = taken.await?;
        info!(volume = text, take_over, "taken from the store");
        Ok(Response::new(self.message(&taken)?))
    }

    async fn resize_volume(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<VolumeMessage>, Status> {
        let ResizeVolumeRequest { name: text, size, shrink } = request.into_inner();
        let volume = self.cache()?.volume(&name(&text)?).map_err(|e| tell(&e))?;
        let now = volume.size();
        if size < now && !shrink {
            return Err(Status::failed_precondition(format!(
                "volume {text}: {size} bytes are less than its {now}, and what is cut off is gone; say --shrink to do it"
            )));
        }
        let resized = volume.clone();
        self.finish(move |_| async move { resized.resize(size).await }).await?;
        info!(volume = text, from = now, to = size, "resized");
        Ok(Response::new(self.message(&volume)?))
    }

    async fn set_volume(
        &self,
        request: Request<SetVolumeRequest>,
    ) -> Result<Response<VolumeMessage>, Status> {
        let SetVolumeRequest { name: text, remote_durability, dirty_quota } = request.into_inner();
        let volume = self.cache()?.volume(&name(&text)?).map_err(|e| tell(&e))?;
        let mut options = volume.status().map_err(|e| tell(&e))?.options;
        if let Some(remote) = remote_durability {
            options.durability = if remote { Durability::Remote } else { Durability::Local };
        }
        options.dirty_quota = dirty_quota.unwrap_or(options.dirty_quota);
        let changed = volume.clone();
        self.finish(move |_| async move { changed.set_options(options).await }).await?;
        Ok(Response::new(self.message(&volume)?))
    }

    type FlushVolumeStream = Answers<VolumeProgress>;

    async fn flush_volume(
        &self,
        request: Request<FlushVolumeRequest>,
    ) -> Result<Response<Self::FlushVolumeStream>, Status> {
        let volume = self.cache()?.volume(&name(&request.get_ref().name)?).map_err(|e| tell(&e))?;
        let api = self.clone();
        Ok(self.stream(|teller| async move {
            let uploaded = async { volume.upload().await.map(drop) };
            api.upload(volume.clone(), teller, uploaded, || api.message(&volume)).await
        }))
    }

    type DetachVolumeStream = Answers<VolumeProgress>;

    async fn detach_volume(
        &self,
        request: Request<DetachVolumeRequest>,
    ) -> Result<Response<Self::DetachVolumeStream>, Status> {
        let name = name(&request.get_ref().name)?;
        let cache = self.cache()?;
        let volume = cache.volume(&name).map_err(|e| tell(&e))?;
        let mut was = self.message(&volume)?;
        let api = self.clone();
        Ok(self.stream(|teller| async move {
            let released = cache.release_volume(&name);
            let last = || {
                "released".clone_into(&mut was.state);
                was.dirty_bytes = 0;
                Ok(was)
            };
            api.upload(volume, teller, released, last).await?;
            info!(volume = %name, "released");
            leave(api.connections(&name)).await;
            Ok(())
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<VolumeMessage>, Status> {
        let DeleteVolumeRequest { name: text, forget } = request.into_inner();
        let name = name(&text)?;
        let volume = self.cache()?.volume(&name).map_err(|e| tell(&e))?;
        let was = self.message(&volume)?;
        let is_served = volume.status().map_err(|e| tell(&e))?.refusing.is_none();
        // Clients of a volume that is not served get errors only, and do not decide how long it stays.
        if was.connections > 0 && (is_served || !forget) {
            return Err(Status::failed_precondition(format!(
                "volume {text}: {} clients are connected; disconnect them first",
                was.connections
            )));
        }
        // Not those of the next volume of this name.
        let clients = self.connections(&name);
        self.finish(move |cache| async move {
            if forget { cache.forget_volume(&name).await } else { cache.delete_volume(&name).await }
        })
        .await?;
        info!(volume = text, "{}", if forget { "forgotten" } else { "deleted" });
        self.run(leave(clients));
        Ok(Response::new(was))
    }

    type ScrubCacheStream = Answers<ScrubProgress>;

    async fn scrub_cache(
        &self,
        request: Request<ScrubCacheRequest>,
    ) -> Result<Response<Self::ScrubCacheStream>, Status> {
        let cache = self.cache()?;
        let accept_loss = request.get_ref().accept_loss;
        Ok(self.stream(|teller: Teller<ScrubProgress>| async move {
            let mut told = tokio::time::Instant::now();
            let report = cache.scrub(accept_loss, |done_chunks, total_chunks| {
                if told.elapsed() >= PROGRESS_EVERY {
                    told = tokio::time::Instant::now();
                    let _ = teller.try_send(Ok(ScrubProgress {
                        done_chunks,
                        total_chunks,
                        report: None,
                    }));
                }
            });
            let report = report.await.map_err(|e| tell(&e))?;
            let report = ScrubReport {
                chunks: report.chunks,
                blocks: report.blocks,
                clean_damaged: report.clean_damaged,
                lost: report.lost.iter().take(MAX_LOST).map(ToString::to_string).collect(),
                lost_count: report.lost.len() as u64,
                unknown_slots: report.unknown_slots,
            };
            let (done_chunks, total_chunks) = (report.chunks, report.chunks);
            let last = ScrubProgress { done_chunks, total_chunks, report: Some(report) };
            let _ = teller.send(Ok(last)).await;
            Ok(())
        }))
    }

    type ExportQuarantineStream = Answers<QuarantineRange>;

    async fn export_quarantine(
        &self,
        request: Request<ExportQuarantineRequest>,
    ) -> Result<Response<Self::ExportQuarantineStream>, Status> {
        let name = name(&request.get_ref().name)?;
        let cache = self.cache()?;
        let size = cache.volume(&name).map_err(|e| tell(&e))?.size();
        Ok(self.stream(|teller: Teller<QuarantineRange>| async move {
            let mut export = cache.export_quarantine(&name).map_err(|e| tell(&e))?;
            let unknown_slots = export.unknown_slots();
            let empty = QuarantineRange { size, ..QuarantineRange::default() };
            if !send(&teller, QuarantineRange { unknown_slots, ..empty.clone() }).await {
                return Ok(());
            }
            while let Some(range) = export.next().await.map_err(|e| tell(&e))? {
                let data = range.data.map(|data| data.to_vec()).unwrap_or_default();
                let (offset, len) = (range.offset, range.len);
                if !send(&teller, QuarantineRange { offset, len, data, ..empty.clone() }).await {
                    return Ok(());
                }
            }
            for range in export.lost() {
                let (offset, len) = (range.start, range.end - range.start);
                let lost = QuarantineRange { offset, len, lost: true, ..empty.clone() };
                if !send(&teller, lost).await {
                    return Ok(());
                }
            }
            send(&teller, QuarantineRange { complete: true, ..empty }).await;
            Ok(())
        }))
    }
}

/// Ends connections of a volume that is gone. By then they get `ESHUTDOWN` for whatever they ask.
async fn leave(clients: Vec<Connection>) {
    if clients.is_empty() {
        return;
    }
    tokio::time::sleep(LINGER).await;
    for client in clients {
        client.fence(Fence::Drain { within: DRAIN_WITHIN }).await;
    }
}

#[cfg(test)]
mod tests {
    use culvert_nbd::Limits;
    use culvert_volume::Config;
    use culvert_volume::disk::sim::SimDisk;
    use culvert_volume::remote::sim::SimStore;

    use super::*;

    /// An API, and the cache that it is of.
    async fn api() -> (Api, Arc<Cache>) {
        let (disk, store) = (Arc::new(SimDisk::new(64 << 20, 1)), Arc::new(SimStore::new(1)));
        let cache = Cache::create(disk, store, 1 << 20, Config::default()).await.unwrap();
        let cache = Arc::new(cache);
        let server = Server::new(VolumeExports::new(&cache, Vec::new()), Limits::default(), ());
        (Api::new(&cache, server, "cache".into(), "store".to_owned()), cache)
    }

    #[tokio::test]
    async fn what_has_ended_is_not_kept() {
        let (api, _cache) = api().await;
        for _ in 0..20 {
            api.finish(|_| async { Ok(()) }).await.unwrap();
        }
        let kept = api.tasks().as_ref().map_or(0, JoinSet::len);
        assert!((1..=2).contains(&kept), "{kept}");
    }

    #[tokio::test]
    async fn what_runs_ends_with_a_stop_and_nothing_begins_after_it() {
        let (api, cache) = api().await;
        let (running, begun) = tokio::sync::oneshot::channel();
        let held = Arc::clone(&cache);
        api.run(async move {
            let _ = running.send(());
            std::future::pending::<()>().await;
            drop(held);
        });
        begun.await.unwrap();
        api.stop().await;
        // Asked for by who has the cache in hand already.
        let held = Arc::clone(&cache);
        let (running, begun) = tokio::sync::oneshot::channel();
        api.run(async move {
            let _ = running.send(held);
        });
        assert!(begun.await.is_err(), "it began");
        let refused = api.finish(|_| async { Ok(()) }).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        let listed = api.list_volumes(Request::new(ListVolumesRequest::default())).await;
        assert_eq!(listed.unwrap_err().code(), tonic::Code::Unavailable);
        assert_eq!(Arc::strong_count(&cache), 1, "somebody holds it");
    }
}
