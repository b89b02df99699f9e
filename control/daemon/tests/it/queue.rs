//! Changes that wait for the store.

use std::time::{Duration, Instant};

use culvert_daemon::queue::CHANGES_MAX;
use culvert_daemon::store::memory::MemoryStore;
use culvert_daemon::store::{
    Description, Lease, Outcome, Revision, Snapshot, Store, StoreError, Txn, Watch,
};
use culvert_model::{Edit, Keyed, ObjectKey, Port, PortId, Vnet, api};
use tonic::{Code, Status};

use crate::support::{Daemon, TestHost, faults, host_toml, port, port_toml, wait_for};

const SOON: Duration = Duration::from_secs(8);
const SHARED: &str = "[store]\nkind = \"etcd\"\nendpoints = [\"http://unused\"]\nlease_s = 2\n";

async fn start(name: &str, n: u8, store: &MemoryStore) -> (TestHost, Daemon) {
    let host = TestHost::new(name);
    let mut daemon = host.join(store, SHARED).await;
    let toml = culvert_model::host_toml::read(&host_toml(n)).unwrap();
    daemon.apply_host(&toml, false).await.unwrap();
    (host, daemon)
}

fn put(id: &str, n: u8) -> Edit {
    Edit::PutPort(port(id, n))
}

fn delete(id: &str) -> Edit {
    Edit::DeletePort(PortId::new(id).unwrap())
}

fn vnet(id: &str, vni: u32) -> Vnet {
    let toml = "[underlay]\ninterface = \"wire\"\naddresses = [\"198.18.0.1\"]\n\n".to_owned()
        + &format!("[[vnet]]\nid = \"{id}\"\nvni = {vni}\n");
    culvert_model::host_toml::read(&toml).unwrap().vnets().iter().next().unwrap().clone()
}

fn request(edits: &[Edit]) -> api::ApplyEditsRequest {
    let edits = edits.iter().map(Into::into).collect();
    let mut request = api::ApplyEditsRequest { edits, ..Default::default() };
    request.set_on_outage(api::OnOutage::Queue);
    request
}

async fn ask(daemon: &mut Daemon, edits: &[Edit]) -> Result<api::Committed, Status> {
    daemon.client.apply_edits(request(edits)).await.map(tonic::Response::into_inner)
}

/// Asks for a change that is to be queued; its number.
#[track_caller]
fn queued(answer: Result<api::Committed, Status>) -> u64 {
    let status = answer.unwrap_err();
    api::queued(&status).unwrap_or_else(|| panic!("not queued: {status:?}")).number
}

async fn list(daemon: &mut Daemon) -> Vec<api::QueuedChange> {
    let request = api::ListQueueRequest { number: None, differences: true };
    daemon.client.list_queue(request).await.unwrap().into_inner().changes
}

async fn cancel(daemon: &mut Daemon, number: u64) -> Result<api::QueuedChange, Status> {
    let answer = daemon.client.cancel_queued(api::CancelQueuedRequest { number }).await;
    answer.map(tonic::Response::into_inner)
}

async fn unhealthy(daemon: &mut Daemon) {
    until("the outage", daemon, |info| !info.store.as_ref().unwrap().healthy).await;
}

async fn drained(daemon: &mut Daemon) {
    until("the queue", daemon, |info| info.queue.unwrap().waiting == 0).await;
}

async fn until(what: &str, daemon: &mut Daemon, holds: impl Fn(&api::ControlInfo) -> bool) {
    let started = Instant::now();
    loop {
        let info = daemon.info().await;
        if holds(&info) {
            return;
        }
        assert!(started.elapsed() < SOON, "{what}: {info:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ports(host: &TestHost) -> Vec<String> {
    let host = host.dataplane.host().unwrap();
    host.ports().iter().map(|port| port.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_queued_survive_culvertd_and_are_written_in_their_order() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    // What is remembered is written once a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    store.set_outage(Some("pulled the plug"));
    unhealthy(&mut on_a).await;
    tokio::time::sleep(Duration::from_millis(10)).await;

    let status = ask(&mut on_a, &[put("web-3", 3)]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    for said in ["pulled the plug", "queued as change 1", "`culvert queue cancel 1`"] {
        assert!(status.message().contains(said), "{}", status.message());
    }
    let told = api::queued(&status).unwrap();
    assert!(told.number == 1 && told.reason.contains("pulled the plug"), "{told:?}");
    assert!(told.unreachable_ms > 0, "{told:?}");
    // The second stands on the first, and a later one on both.
    let mut larger = port("web-3", 3);
    larger.mtu = culvert_model::Mtu::new(1400).ok();
    assert_eq!(queued(ask(&mut on_a, &[Edit::PutPort(larger.clone())]).await), 2);
    assert_eq!(queued(ask(&mut on_a, &[put("web-4", 4)]).await), 3);
    // The same again is nothing, and nothing is queued for it.
    let status = ask(&mut on_a, &[put("web-4", 4)]).await.unwrap_err();
    assert!(status.message().contains("nothing would change"), "{status:?}");
    // What is wrong is refused at once: against what is known, and what is queued.
    let found = faults(&ask(&mut on_a, &[put("web-5", 4)]).await.unwrap_err());
    assert!(found[0].contains("overlaps port[2] \"web-4\""), "{found:?}");
    let found = faults(&ask(&mut on_a, &[delete("nobody")]).await.unwrap_err());
    assert!(found[0].contains("there is none to delete"), "{found:?}");
    // Whoever does not ask is not queued; nor is a dry run.
    for unqueued in [
        api::ApplyEditsRequest { on_outage: 0, ..request(&[delete("web-1")]) },
        api::ApplyEditsRequest { on_outage: 99, ..request(&[delete("web-1")]) },
        api::ApplyEditsRequest { dry_run: true, ..request(&[delete("web-1")]) },
    ] {
        let status = on_a.client.apply_edits(unqueued).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(api::queued(&status).is_none(), "{status:?}");
        assert!(status.message().starts_with("nothing was changed"), "{status:?}");
    }
    assert_eq!(list(&mut on_a).await.len(), 3);

    // Objects as they will be, for whoever changes one.
    let ahead = api::ListObjectsRequest {
        kind: api::ObjectKind::Port.into(),
        ahead: true,
        ..Default::default()
    };
    let ahead = on_a.client.list_objects(ahead).await.unwrap().into_inner();
    assert_eq!((ahead.incomplete.as_str(), ahead.objects.len()), ("", 3), "{ahead:?}");
    let expecting = |object: &Port| api::ApplyEditsRequest {
        expected: vec![api::ExpectedObject {
            key: Some((&ObjectKey::Port(object.id.clone())).into()),
            object: Some((&object.clone().into_object()).into()),
        }],
        ..request(&[put("web-3", 3)])
    };
    let status = on_a.client.apply_edits(expecting(&port("web-3", 3))).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");

    // Killed, and started without the store: they are still there.
    on_a.kill().await;
    let mut on_a = a.join(&store, SHARED).await;
    let waiting = list(&mut on_a).await;
    assert_eq!(waiting.iter().map(|change| change.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(waiting.iter().all(|change| change.state() == api::QueueState::Waiting));
    assert_eq!(waiting[1].differences[0].before, Some((&port("web-3", 3).into_object()).into()));
    assert_eq!(on_a.info().await.queue, Some(api::QueueInfo { waiting: 3, failed: 0 }));
    assert_eq!(queued(ask(&mut on_a, &[delete("web-1")]).await), 4);

    let mut events = {
        let events = on_a.client.watch_events(api::WatchEventsRequest {}).await;
        events.unwrap().into_inner()
    };
    store.set_outage(None);
    drained(&mut on_a).await;
    let mut written = Vec::new();
    while written.len() < 4 {
        let event = tokio::time::timeout(SOON, events.message()).await.unwrap().unwrap().unwrap();
        if let Some(api::event::What::Queue(event)) = event.what {
            assert_eq!(event.state(), api::QueueState::Written, "{event:?}");
            written.push(event.number);
        }
    }
    assert_eq!(written, [1, 2, 3, 4]);
    wait_for("them on the host", SOON, || ports(&a) == ["web-3", "web-4"]).await;
    let carried = a.dataplane.host().unwrap();
    assert_eq!(carried.port("web-3").unwrap().mtu, larger.mtu);
    assert!(list(&mut on_a).await.is_empty());
    // From here on changes are written at once; numbers are not used again.
    ask(&mut on_a, &[delete("web-4")]).await.unwrap();
    store.set_outage(Some("again"));
    unhealthy(&mut on_a).await;
    assert_eq!(queued(ask(&mut on_a, &[put("web-4", 4)]).await), 5);
}

trait IntoObject {
    fn into_object(self) -> culvert_model::Object;
}

impl IntoObject for Port {
    fn into_object(self) -> culvert_model::Object {
        culvert_model::Object::Port(self)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_others_is_not_written_and_stays_to_be_seen() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let (b, mut on_b) = start("b", 2, &store).await;
    ask(&mut on_a, &[Edit::PutVnet(vnet("red", 300))]).await.unwrap();
    wait_for("hosts", SOON, || b.dataplane.host().is_some_and(|h| h.mappings().len() == 1)).await;
    store.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    unhealthy(&mut on_b).await;
    // One address on both; one vnet changed by both; a later change that has nothing to do with either.
    for (daemon, name, vni) in [(&mut on_a, "on-a", 301), (&mut on_b, "on-b", 302)] {
        assert_eq!(queued(ask(daemon, &[put(name, 9)]).await), 1);
        assert_eq!(queued(ask(daemon, &[Edit::PutVnet(vnet("red", vni))]).await), 2);
    }
    assert_eq!(queued(ask(&mut on_a, &[put("web-3", 3)]).await), 3);
    assert_eq!(queued(ask(&mut on_b, &[put("web-4", 4)]).await), 3);
    store.set_outage(None);
    drained(&mut on_a).await;
    drained(&mut on_b).await;
    let (failed_on_a, failed_on_b) = (list(&mut on_a).await, list(&mut on_b).await);
    let failed: Vec<_> = failed_on_a.iter().chain(&failed_on_b).collect();
    // Of each pair one.
    let mut numbers: Vec<_> = failed.iter().map(|change| change.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2], "{failed:?}");
    for change in &failed {
        assert_eq!(change.state(), api::QueueState::Failed);
        let said = change.reasons.join("\n");
        match change.number {
            1 => assert!(said.contains("10.0.0.9: is the address of port on-"), "{said}"),
            _ => assert!(
                said.contains("vnet \"red\": is not as it was")
                    || said.contains("vnet red: is not as it was"),
                "{said}"
            ),
        }
    }
    let both = || {
        let (on_a, on_b) = (ports(&a), ports(&b));
        let owners = on_a.iter().chain(&on_b).filter(|id| id.starts_with("on-")).count();
        owners == 1 && on_a.contains(&"web-3".to_owned()) && on_b.contains(&"web-4".to_owned())
    };
    wait_for("one of each pair, and all others", SOON, both).await;
    let info = on_a.info().await.queue.unwrap();
    assert_eq!(info.failed as usize, failed_on_a.len());

    // What failed does not keep later changes waiting, and goes when it is cancelled.
    ask(&mut on_a, &[delete("web-3")]).await.unwrap();
    ask(&mut on_b, &[delete("web-4")]).await.unwrap();
    for (daemon, failed) in [(&mut on_a, failed_on_a), (&mut on_b, failed_on_b)] {
        for change in failed {
            let cancelled = cancel(daemon, change.number).await.unwrap();
            assert_eq!(cancelled.state(), api::QueueState::Cancelled);
            assert_eq!(cancelled.reasons, change.reasons);
        }
        assert_eq!(daemon.info().await.queue, Some(api::QueueInfo::default()));
        let status = cancel(daemon, 77).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "change 77: not in the queue; it is empty");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_queued_as_what_it_changes_and_one_can_take_it_back() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    store.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    let toml = host_toml(1) + &port_toml("web-3", 3);
    let state = culvert_model::host_toml::read(&toml).unwrap();
    let mut request = api::ApplyStateRequest { state: Some((&state).into()), ..Default::default() };
    request.set_on_outage(api::OnOutage::Queue);
    let apply = |daemon: &Daemon| {
        let (mut client, request) = (daemon.client.clone(), request.clone());
        async move { client.apply_state(request).await.map(tonic::Response::into_inner) }
    };
    assert_eq!(queued(apply(&on_a).await), 1);
    let change = list(&mut on_a).await.remove(0);
    assert_eq!((change.objects, change.differences.len()), (1, 1), "{change:?}");
    assert_eq!(queued(ask(&mut on_a, &[delete("web-1")]).await), 2);
    let cancelled = cancel(&mut on_a, 1).await.unwrap();
    assert_eq!(cancelled.differences, change.differences);
    let status = cancel(&mut on_a, 1).await.unwrap_err();
    assert_eq!(status.message(), "change 1: not in the queue; legal is 2");
    store.set_outage(None);
    drained(&mut on_a).await;
    wait_for("only what was left", SOON, || ports(&a).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_vnet_that_waits_too_can_be_read_and_changed() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    store.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    let read = async |daemon: &Daemon, vnet: &str| {
        let keys = vec![(&ObjectKey::Mapping(mapping(vnet, 60).key())).into()];
        let request = api::ListObjectsRequest { keys, ahead: true, ..Default::default() };
        let list = daemon.client.clone().list_objects(request).await?;
        Ok::<_, Status>(list.into_inner().objects.len())
    };
    assert_eq!(queued(ask(&mut on_a, &[Edit::PutVnet(vnet("new", 500))]).await), 1);
    for (n, vnet) in ["new", "blue"].into_iter().enumerate() {
        assert_eq!(read(&on_a, vnet).await.unwrap(), 0);
        let edit = Edit::PutMapping(mapping(vnet, 60));
        assert_eq!(queued(ask(&mut on_a, &[edit]).await), 2 + n as u64);
        assert_eq!(read(&on_a, vnet).await.unwrap(), 1);
    }
    // As well of what is only remembered.
    on_a.kill().await;
    let on_a = a.join(&store, SHARED).await;
    for vnet in ["new", "blue"] {
        assert_eq!(read(&on_a, vnet).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_another_cluster_since_writes_nothing_of_what_waited() {
    let (old, new) = (MemoryStore::new(), MemoryStore::new());
    let (a, mut on_a) = start("a", 1, &old).await;
    old.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    assert_eq!(queued(ask(&mut on_a, &[put("web-3", 3)]).await), 1);
    on_a.kill().await;
    std::fs::remove_file(a.scratch.path("state").join("cluster")).unwrap();
    let mut on_a = a.join(&new, SHARED).await;
    let change = list(&mut on_a).await.remove(0);
    assert_eq!(change.state(), api::QueueState::Failed);
    assert!(change.reasons[0].contains("was queued for cluster"), "{change:?}");
    until("the new store", &mut on_a, |info| info.store.as_ref().unwrap().healthy).await;
    let entries = new.snapshot("", None).await.unwrap().entries;
    assert!(entries.iter().all(|entry| !entry.key.contains("web-")), "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_says_so() {
    let store = MemoryStore::new();
    let (_a, mut on_a) = start("a", 1, &store).await;
    store.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    // By number: the port that the one adds, the next deletes.
    for n in 0..CHANGES_MAX {
        let edit = if n % 2 == 0 { put("web-3", 3) } else { delete("web-3") };
        queued(ask(&mut on_a, &[edit]).await);
    }
    let status = ask(&mut on_a, &[put("web-3", 3)]).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    for said in ["nothing was changed", "gone", "the queue is full, with 1000 changes"] {
        assert!(status.message().contains(said), "{}", status.message());
    }
    cancel(&mut on_a, 1).await.unwrap();
    queued(ask(&mut on_a, &[put("web-3", 3)]).await);
    store.set_outage(None);
    until("the queue", &mut on_a, |info| info.queue.unwrap().waiting < 900).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_asked_for_while_the_queue_is_written_comes_after_it() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    store.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    for n in 0..20 {
        queued(ask(&mut on_a, &[put(&format!("p-{n}"), 100 + n)]).await);
    }
    store.set_outage(None);
    until("the store", &mut on_a, |info| info.store.as_ref().unwrap().healthy).await;
    // It deletes what the queue makes: before, there is none. Whoever does not queue waits for its turn as well.
    on_a.edit(&[delete("p-19")]).await.unwrap();
    ask(&mut on_a, &[delete("p-18")]).await.unwrap();
    wait_for("all of them", SOON, || ports(&a).len() == 19).await;
}

fn mapping(vnet: &str, n: u8) -> culvert_model::Mapping {
    let toml = host_toml(200)
        .replace("id = \"blue\"", &format!("id = \"{vnet}\""))
        .replace("vnet = \"blue\"", &format!("vnet = \"{vnet}\""))
        + &format!(
            "[[mapping]]\nvnet = \"{vnet}\"\nip = \"10.0.0.{n}\"\nmac = \"02:00:00:00:01:{n:02x}\"\n\
             vtep = \"198.18.0.99\"\n"
        );
    let host = culvert_model::host_toml::read(&toml).unwrap();
    host.mappings().iter().next().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_vnet_is_queued_only_where_it_is_known() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    ask(&mut on_a, &[Edit::PutVnet(vnet("green", 400))]).await.unwrap();
    ask(&mut on_a, &[Edit::PutMapping(mapping("blue", 50))]).await.unwrap();
    wait_for("the mapping", SOON, || a.dataplane.host().unwrap().mappings().len() == 1).await;
    store.set_outage(Some("gone"));
    unhealthy(&mut on_a).await;
    // No port there, so nothing is known of it.
    let status = ask(&mut on_a, &[Edit::PutMapping(mapping("green", 9))]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let said = status.message();
    assert!(api::queued(&status).is_none(), "{status:?}");
    assert!(said.contains("gone") && said.contains("no port in vnet green"), "{said}");
    // Of one that is new, everything is known.
    queued(ask(&mut on_a, &[Edit::PutVnet(vnet("new", 500))]).await);
    queued(ask(&mut on_a, &[Edit::PutMapping(mapping("new", 9))]).await);
    // The last port goes, and so the host follows the vnet no more; what was in it is read again.
    queued(ask(&mut on_a, &[delete("web-1")]).await);
    let gone = Edit::DeleteMapping(mapping("blue", 50).key());
    queued(ask(&mut on_a, &[gone]).await);
    store.set_outage(None);
    drained(&mut on_a).await;
    assert_eq!(list(&mut on_a).await, []);
    let listed = on_a.objects().await;
    let mappings: Vec<_> = listed
        .iter()
        .filter_map(|object| match object.object.as_ref()?.object.as_ref()? {
            api::object::Object::Mapping(mapping) => Some(mapping.vnet.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(mappings, ["new"]);
}

fn a_state() -> culvert_model::Host {
    culvert_model::host_toml::read(&host_toml(1)).unwrap()
}

/// A store that answers from some time on; without one, never.
#[derive(Clone)]
struct Slow(MemoryStore, Option<Instant>);

#[tonic::async_trait]
impl Store for Slow {
    fn describe(&self) -> Description {
        self.0.describe()
    }
    async fn snapshot(&self, prefix: &str, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        match self.1 {
            Some(time) => tokio::time::sleep_until(time.into()).await,
            None => std::future::pending().await,
        }
        self.0.snapshot(prefix, at).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.0.commit(txn).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.0.watch(prefix, after).await
    }
    async fn hold(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        replaces: Revision,
    ) -> Result<Box<dyn Lease>, StoreError> {
        self.0.hold(key, value, ttl, replaces).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn culvertd_is_ready_when_it_takes_changes() {
    // Later than the first look at the store waits.
    let answers = Instant::now() + Duration::from_secs(8);
    let slow = Slow(MemoryStore::new(), Some(answers));
    let host = TestHost::new("a");
    let mut daemon = host.join(&slow, SHARED).await;
    assert!(answers.elapsed() < Duration::from_secs(4), "long after the store");
    daemon.apply_host(&a_state(), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn culvertd_is_ready_when_it_knows_that_the_store_is_away() {
    let store = MemoryStore::new();
    store.set_outage(Some("not there yet"));
    let host = TestHost::new("b");
    let started = Instant::now();
    let mut daemon = host.join(&store, SHARED).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    let status = daemon.apply_host(&a_state(), false).await.unwrap_err();
    assert!(status.message().contains("not there yet"), "{status:?}");
    // Nothing is known of the cluster, so nothing can be checked and queued.
    let status = ask(&mut daemon, &[put("web-3", 3)]).await.unwrap_err();
    assert!(api::queued(&status).is_none(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn culvertd_is_ready_in_the_end_when_the_store_is_silent() {
    let host = TestHost::new("c");
    let started = Instant::now();
    let mut daemon = host.join(&Slow(MemoryStore::new(), None), SHARED).await;
    assert!(started.elapsed() < Duration::from_secs(30));
    let status = daemon.apply_host(&a_state(), false).await.unwrap_err();
    assert!(status.message().contains("has not been read yet"), "{status:?}");
}
