//! Many hosts, one store.

use std::sync::Arc;
use std::time::Duration;

use culvert_daemon::change::{ChangeError, Done, Edits, Writer};
use culvert_daemon::cluster::Cluster;
use culvert_daemon::daemon::DaemonError;
use culvert_daemon::events::Events;
use culvert_daemon::follow::{Follower, Identity, Known};
use culvert_daemon::names::HostName;
use culvert_daemon::store::memory::MemoryStore;
use culvert_daemon::store::{Store, Txn};
use culvert_daemon::stored::{JoinError, Live, Meta};
use culvert_model::{
    AclGroup, Edit, EgressRoute, Host, Keyed, Mapping, Object, ObjectKey, Port, PortId,
    RouteAction, RouteScope, Vnet, VnetId, api,
};
use prost::Message;
use tonic::Code;

use crate::reconcile::without_device;
use crate::support::{Daemon, TestHost, faults, host_toml, port, wait_for};

const SOON: Duration = Duration::from_secs(5);
/// A lease of two seconds, and a cache as with etcd.
const SHARED: &str = "[store]\nkind = \"etcd\"\nendpoints = [\"http://unused\"]\nlease_s = 2\n";

async fn start(name: &str, n: u8, store: &MemoryStore) -> (TestHost, Daemon) {
    let host = TestHost::new(name);
    let mut daemon = host.join(store, SHARED).await;
    let toml = culvert_model::host_toml::read(&host_toml(n)).unwrap();
    daemon.apply_host(&toml, false).await.unwrap();
    (host, daemon)
}

fn maps(host: &TestHost, ip: &str) -> Option<Mapping> {
    let ip: std::net::IpAddr = ip.parse().unwrap();
    host.dataplane.host()?.mappings().iter().find(|mapping| mapping.ip == ip).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_one_host_is_a_mapping_of_the_others() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let (b, mut on_b) = start("b", 2, &store).await;
    wait_for("the mapping on a", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    wait_for("the mapping on b", SOON, || maps(&b, "10.0.0.1").is_some()).await;
    let mapping = maps(&a, "10.0.0.2").unwrap();
    assert_eq!(mapping.vtep.to_string(), "198.18.0.2");
    assert_eq!(mapping.mac.to_string(), "02:00:00:00:00:02");
    let listed = on_a.objects().await;
    let derived: Vec<_> = listed.iter().filter(|o| !o.derived_from.is_empty()).collect();
    assert_eq!((derived.len(), derived[0].derived_from.as_str()), (1, "b"));

    // What a host carries, written down and applied again, is nothing new.
    let request = api::GetWantedRequest { carried: true };
    let wanted = on_a.client.get_wanted(request).await.unwrap().into_inner().state.unwrap();
    let again = on_a.apply_host(&Host::try_from(wanted).unwrap(), true).await.unwrap();
    assert_eq!(again.differences, []);

    on_b.edit(&[Edit::DeletePort(PortId::new("web-2").unwrap())]).await.unwrap();
    wait_for("its end", SOON, || maps(&a, "10.0.0.2").is_none()).await;
    // Without ports, the vnet does not concern b.
    wait_for("nothing on b", SOON, || maps(&b, "10.0.0.1").is_none()).await;
    let hosts = on_a.client.list_hosts(api::ListHostsRequest {}).await.unwrap().into_inner().hosts;
    let names: Vec<_> = hosts.iter().map(|h| (h.name.as_str(), h.alive, h.self_)).collect();
    assert_eq!(names, [("a", true, true), ("b", true, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_host_is_refused_by_name() {
    let store = MemoryStore::new();
    let (_a, mut on_a) = start("a", 1, &store).await;
    let (_b, mut on_b) = start("b", 2, &store).await;
    let found = faults(&on_a.edit(&[Edit::PutPort(port("other", 2))]).await.unwrap_err());
    assert_eq!(
        found,
        [
            "edits[0] port \"other\": mac 02:00:00:00:00:02: is the address of port web-2 of host b; legal is one owner for each address of a vnet",
            "edits[0] port \"other\": ips[0] 10.0.0.2: is the address of port web-2 of host b; legal is one owner for each address of a vnet",
        ]
    );
    let toml = host_toml(2).replace("198.18.0.2", "198.18.0.1");
    let toml = culvert_model::host_toml::read(&toml).unwrap();
    let found = faults(&on_b.apply_host(&toml, false).await.unwrap_err());
    assert_eq!(
        found,
        [
            "underlay: addresses[0] 198.18.0.1: is a VTEP address of host a; legal is an address of one host only"
        ]
    );
    let vnet = VnetId::new("blue").unwrap();
    let found = faults(&on_a.edit(&[Edit::DeleteVnet(vnet)]).await.unwrap_err());
    assert!(found[0].contains("port web-1 of host a, port web-2 of host b"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_take_one_address_at_the_same_time_one_gets_it() {
    let store = MemoryStore::new();
    let (_a, mut on_a) = start("a", 1, &store).await;
    let (_b, mut on_b) = start("b", 2, &store).await;
    for n in 10..30 {
        let (on_a_edit, on_b_edit) = (
            [Edit::PutPort(port(&format!("a-{n}"), n))],
            [Edit::PutPort(port(&format!("b-{n}"), n))],
        );
        let (a, b) = tokio::join!(on_a.edit(&on_a_edit), on_b.edit(&on_b_edit));
        assert!(a.is_ok() != b.is_ok(), "{n}: {a:?}, {b:?}");
        let error = a.err().or(b.err()).unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_vnet_all_get_their_turn() {
    let store = MemoryStore::new();
    let (_a, on_a) = start("a", 1, &store).await;
    let (b, on_b) = start("b", 2, &store).await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 10..30_u8 {
        let client = if n % 2 == 0 { &on_a.client } else { &on_b.client };
        let mut client = client.clone();
        writers.spawn(async move {
            let edits = vec![(&Edit::PutPort(port(&format!("p-{n}"), n))).into()];
            client.apply_edits(api::ApplyEditsRequest { edits, ..Default::default() }).await
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap().unwrap();
    }
    wait_for("all of them on b", SOON, || {
        b.dataplane.host().is_some_and(|h| h.ports().len() == 11 && h.mappings().len() == 11)
    })
    .await;
}

/// A vnet like that of [`host_toml`], of another name and VNI.
fn other_vnet(name: &str, vni: u32) -> Vnet {
    let host = culvert_model::host_toml::read(&host_toml(1)).unwrap();
    let like = host.vnets().iter().next().unwrap();
    Vnet {
        id: VnetId::new(name).unwrap(),
        vni: culvert_model::Vni::new(vni).unwrap(),
        ..like.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_move_to_another_vnet_stays_among_its_neighbours() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let (_b, mut on_b) = start("b", 2, &store).await;
    wait_for("the mapping on a", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    without_device(&a.dataplane, "web-1");
    let red = other_vnet("red", 7);
    let moved = Port { vnet: red.id.clone(), ..port("web-1", 1) };
    let done = on_a.edit(&[Edit::PutVnet(red), Edit::PutPort(moved.clone())]).await.unwrap();
    assert_eq!(done.unapplied.len(), 1, "{:?}", done.unapplied);
    // It is still in blue, and hears of what happens there.
    assert!(maps(&a, "10.0.0.2").is_some(), "its neighbour was taken away");
    on_b.edit(&[Edit::PutPort(port("web-5", 5))]).await.unwrap();
    wait_for("the new neighbour on a", SOON, || maps(&a, "10.0.0.5").is_some()).await;
    // Also after a restart, and at each moment.
    on_a.kill().await;
    a.dataplane.carries.lock().unwrap().history.clear();
    let on_a = a.join(&store, SHARED).await;
    on_b.edit(&[Edit::PutPort(port("web-6", 6))]).await.unwrap();
    wait_for("the next neighbour on a", SOON, || maps(&a, "10.0.0.6").is_some()).await;
    for carried in &a.dataplane.carries.lock().unwrap().history {
        let ips: Vec<_> = carried.mappings().iter().map(|m| m.ip.to_string()).collect();
        for ip in ["10.0.0.2", "10.0.0.5"] {
            assert!(ips.iter().any(|there| there == ip), "{ips:?}");
        }
    }
    assert_eq!(a.dataplane.host().unwrap().port("web-1"), Some(&port("web-1", 1)));
    // Where it can move, what was around it goes.
    a.dataplane.refuse(|_, _| Vec::new());
    let carries = || a.dataplane.host().unwrap();
    wait_for("it in red", Duration::from_secs(40), || carries().port("web-1") == Some(&moved))
        .await;
    assert_eq!((carries().mappings().len(), carries().vnets().len()), (0, 1));
    drop(on_a);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_move_stays_although_its_vnet_and_its_group_go() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let group = AclGroup { id: "web".parse().unwrap(), stateful: false, rules: Vec::new() };
    let id = group.id.clone();
    let blue = port("web-1", 1).vnet;
    let before = Port { acl: vec![id.clone()], ..port("web-1", 1) };
    on_a.edit(&[Edit::PutAcl(group), Edit::PutPort(before.clone())]).await.unwrap();
    without_device(&a.dataplane, "web-1");
    let red = other_vnet("red", 7);
    let moved = Port { vnet: red.id.clone(), ..port("web-1", 1) };
    on_a.edit(&[Edit::PutVnet(red), Edit::PutPort(moved.clone())]).await.unwrap();
    // Nothing wants blue and the group any more.
    on_a.edit(&[Edit::DeleteVnet(blue.clone()), Edit::DeleteAcl(id)]).await.unwrap();
    on_a.edit(&[Edit::PutPort(Port { vnet: moved.vnet.clone(), ..port("web-2", 2) })])
        .await
        .unwrap();
    let carries = || a.dataplane.host().unwrap();
    wait_for("the other port", SOON, || carries().port("web-2").is_some()).await;
    for carried in &a.dataplane.carries.lock().unwrap().history {
        assert!(carried.ports().is_empty() || carried.port("web-1").is_some(), "it was taken away");
    }
    assert_eq!(carries().port("web-1"), Some(&before));
    assert!(carries().vnets().get(&blue).is_some());
    // Another port on its device would take it away: rather nothing at all is changed.
    let vnet = moved.vnet.clone();
    let gone = Port { attach: port("other", 9).attach, ..moved };
    let heir = Port { attach: port("web-1", 1).attach, vnet, ..port("heir", 9) };
    let done = on_a.edit(&[Edit::PutPort(gone.clone()), Edit::PutPort(heir)]).await.unwrap();
    let said: Vec<_> = done.unapplied.iter().map(|object| object.reason.as_str()).collect();
    assert!(said.iter().any(|said| said.contains("nor as it runs")), "{said:?}");
    assert_eq!(carries().port("web-1"), Some(&before), "it was taken away");
    a.dataplane.refuse(|_, _| Vec::new());
    wait_for("all as wanted", Duration::from_secs(40), || carries().port("heir").is_some()).await;
    assert_eq!(carries().port("web-1"), Some(&gone));
    assert_eq!((carries().vnets().len(), carries().acls().len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_lets_nobody_die() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let (_b, _on_b) = start("b", 2, &store).await;
    wait_for("the mapping", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    store.set_full(Some("no space left"));
    // Three leases long.
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(maps(&a, "10.0.0.2").is_some(), "its host was taken for dead");
    }
    let lives = store.snapshot("all/live/", None).await.unwrap().entries;
    assert_eq!(lives, [], "their leases have ended");
    assert!(!on_a.info().await.store.unwrap().healthy);
    store.set_full(None);
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(maps(&a, "10.0.0.2").is_some(), "it was not given the time to renew its lease");
    }
    assert_eq!(store.snapshot("all/live/", None).await.unwrap().entries.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_many_ports_is_forgotten_in_parts() {
    let store = MemoryStore::new();
    let (_a, mut on_a) = start("a", 1, &store).await;
    let (b, mut on_b) = start("b", 2, &store).await;
    let many = (10..90_u8).map(|n| Edit::PutPort(port(&format!("p-{n}"), n)));
    on_b.edit(&many.collect::<Vec<_>>()).await.unwrap();
    on_b.kill().await;
    let before = store.snapshot("", None).await.unwrap().revision;
    let mut placed = store.watch("at/b/", before).await.unwrap();
    let dead = async || {
        let hosts = on_a.client.clone().list_hosts(api::ListHostsRequest {}).await.unwrap();
        hosts.into_inner().hosts.iter().any(|host| host.name == "b" && !host.alive)
    };
    while !dead().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let forget = |dry_run| api::ForgetHostRequest { name: "b".to_owned(), dry_run };
    for dry_run in [true, false] {
        let done = on_a.client.forget_host(forget(dry_run)).await.unwrap().into_inner();
        assert_eq!(done.differences.len(), 82, "81 ports and an underlay");
    }
    let mut parts = Vec::new();
    while let Ok(changes) = placed.try_recv() {
        let changes = changes.unwrap().changes;
        parts.push(changes.iter().filter(|change| !change.key.ends_with("guard")).count());
    }
    assert!(parts.len() >= 4 && parts.iter().sum::<usize>() == 81, "{parts:?}");
    let left = store.snapshot("", None).await.unwrap().entries;
    let left = left.iter().filter(|entry| entry.key.contains("/b/") || entry.key.ends_with("/b"));
    let left: Vec<_> = left.filter(|entry| !entry.key.contains("guard")).collect();
    assert_eq!(left, [] as [&culvert_daemon::store::Entry; 0]);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_goes_after_its_lease_and_can_be_forgotten() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let (_b, on_b) = start("b", 2, &store).await;
    wait_for("the mapping", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    let forget = || api::ForgetHostRequest { name: "b".to_owned(), dry_run: false };
    let error = on_a.client.forget_host(forget()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    on_b.kill().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(maps(&a, "10.0.0.2").is_some(), "before its lease ended");
    wait_for("its end", SOON, || maps(&a, "10.0.0.2").is_none()).await;
    let done = on_a.client.forget_host(forget()).await.unwrap().into_inner();
    assert_eq!(done.differences.len(), 2);
    let hosts = on_a.client.list_hosts(api::ListHostsRequest {}).await.unwrap().into_inner().hosts;
    assert_eq!(hosts.len(), 1);
    // Its address is free.
    on_a.edit(&[Edit::PutPort(port("heir", 2))]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_everything_stays_and_changes_are_refused() {
    let store = MemoryStore::new();
    let (mut a, mut on_a) = start("a", 1, &store).await;
    let (_b, _on_b) = start("b", 2, &store).await;
    wait_for("the mapping", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    // What is remembered is written once a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    store.set_outage(Some("pulled the plug"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = on_a.edit(&[Edit::PutPort(port("web-3", 3))]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let said = error.message();
    assert!(said.contains("nothing was changed") && said.contains("pulled the plug"), "{said}");
    let info = on_a.info().await.store.unwrap();
    assert!(!info.healthy && info.unhealthy_ms > 0, "{info:?}");

    // A dataplane that starts anew, and a culvertd that does, need no store.
    a.dataplane.kill().await;
    a.dataplane.restart();
    wait_for("the state again", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    on_a.kill().await;
    a.dataplane.kill().await;
    a.dataplane.restart();
    let mut on_a = a.join(&store, SHARED).await;
    wait_for("the state from what is remembered", SOON, || maps(&a, "10.0.0.2").is_some()).await;
    assert!(on_a.info().await.store.unwrap().from_cache);

    // Longer than the leases: nobody is taken for dead when the store is back.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(maps(&a, "10.0.0.2").is_some());
    store.set_outage(None);
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert!(maps(&a, "10.0.0.2").is_some(), "dropped after the outage");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    on_a.edit(&[Edit::PutPort(port("web-3", 3))]).await.unwrap();
    let info = on_a.info().await.store.unwrap();
    assert!(info.healthy && !info.from_cache);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_by_one_machine_at_a_time() {
    let store = MemoryStore::new();
    let (_a, on_a) = start("a", 1, &store).await;
    let twin = TestHost::new("a");
    let mut on_twin = twin.join(&store, SHARED).await;
    let said = on_twin.info().await.store.unwrap().reason;
    assert!(said.contains("host a is the name of another machine, which is alive"), "{said}");
    let error = on_twin.edit(&[Edit::PutPort(port("web-3", 3))]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    // It does not carry what the other does.
    assert_eq!(twin.dataplane.host(), None);
    // When the other is gone, it has the name.
    on_a.kill().await;
    let dataplane = &twin.dataplane;
    wait_for("the name", Duration::from_secs(8), || dataplane.host().is_some()).await;
}

async fn open(host: &TestHost, store: &MemoryStore) -> Result<Daemon, DaemonError> {
    let store = store.clone();
    host.start_with(SHARED, Box::new(move |_| Ok(Arc::new(store)))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_cluster_or_version_is_refused_and_left_alone() {
    let host = TestHost::new("a");
    let first = MemoryStore::new();
    open(&host, &first).await.unwrap().stop().await;
    // An empty one.
    let empty = MemoryStore::new();
    let error = open(&host, &empty).await.err().unwrap();
    assert!(matches!(error, DaemonError::Join(JoinError::Emptied { .. })), "{error}");
    assert_eq!(empty.snapshot("", None).await.unwrap().entries, []);
    // Another's.
    let other = MemoryStore::new();
    open(&TestHost::new("b"), &other).await.unwrap().stop().await;
    let before = other.snapshot("", None).await.unwrap();
    let error = open(&host, &other).await.err().unwrap();
    assert!(matches!(error, DaemonError::Join(JoinError::OtherCluster { .. })), "{error}");
    let meta = before.entries.iter().filter(|entry| entry.key == "all/meta").cloned();
    let left = other.snapshot("all/meta", None).await.unwrap().entries;
    assert_eq!(left, meta.collect::<Vec<_>>());
    // Other versions.
    for schema in [1, 3] {
        let store = MemoryStore::new();
        let meta = Meta {
            schema,
            cluster_id: "x".to_owned(),
            created_by: "9.9".to_owned(),
            ..Meta::default()
        };
        let puts = vec![("all/meta".to_owned(), meta.encode_to_vec())];
        store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
        let error = open(&TestHost::new("c"), &store).await.err().unwrap().to_string();
        assert!(error.contains(&format!("schema {schema}, written by culvertd 9.9")), "{error}");
        assert_eq!(store.snapshot("", None).await.unwrap().entries.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_write_into_the_store_is_named_and_left_out() {
    let store = MemoryStore::new();
    let (a, mut on_a) = start("a", 1, &store).await;
    let foreign = culvert_daemon::cluster::write_object(&Object::Port(port("web-2", 1)));
    let puts = vec![
        ("in/blue/port/a/broken".to_owned(), vec![0xff; 7]),
        ("in/blue/port/a/renamed".to_owned(), foreign.clone()),
        ("in/blue/port/b/web-2".to_owned(), foreign.clone()),
        ("in/red/port/b/web-2".to_owned(), foreign),
        ("all/nonsense".to_owned(), vec![1]),
    ];
    store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
    for _ in 0..100 {
        if on_a.info().await.problems.len() >= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let problems = on_a.info().await.problems.join("\n");
    for expected in [
        "in/blue/port/a/broken: cannot be read",
        "in/blue/port/a/renamed: cannot be read, and is left out: holds port web-2 instead of port renamed",
        "all/nonsense: cannot be read",
        "10.0.0.1 in vnet blue: is the address of port web-1 of host a and of port web-2 of host b",
    ] {
        assert!(problems.contains(expected), "{expected}: {problems}");
    }
    on_a.edit(&[Edit::PutPort(port("web-3", 3))]).await.unwrap();
    assert_eq!(a.dataplane.host().unwrap().ports().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_apart_are_told() {
    let store = MemoryStore::new();
    let (_a, mut on_a) = start("a", 1, &store).await;
    let now = culvert_daemon::time::now_unix_ms();
    for (host, time_unix_ms) in
        [("near", now + 500), ("ahead", now + 60_000), ("behind", now - 60_000)]
    {
        let live = Live { time_unix_ms, ..Live::default() };
        let puts = vec![(format!("all/live/{host}"), live.encode_to_vec())];
        store.commit(Txn { puts, ..Txn::default() }).await.unwrap();
    }
    for _ in 0..200 {
        if on_a.info().await.problems.len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let problems = on_a.info().await.problems;
    let said: Vec<_> =
        problems.iter().map(|problem| problem.split(" is ").next().unwrap()).collect();
    assert_eq!(said, ["the clock of host ahead", "the clock of host behind"], "{problems:?}");
    let hosts = on_a.client.list_hosts(api::ListHostsRequest {}).await.unwrap().into_inner().hosts;
    let ahead = hosts.iter().find(|host| host.name == "ahead").unwrap();
    assert!(ahead.clock_ahead_ms.unwrap() > 50_000 && ahead.problems.len() == 1);
}

/// A host without a dataplane that follows a store.
struct Watcher {
    known: tokio::sync::watch::Receiver<Arc<Known>>,
    writer: Writer,
    me: HostName,
    task: tokio::task::JoinHandle<()>,
}

impl Watcher {
    fn new(name: &str, store: &MemoryStore) -> Watcher {
        let host = HostName::new(name).unwrap();
        let identity = Identity {
            host: host.clone(),
            machine: name.to_owned(),
            cluster: None,
            lease: Duration::from_secs(30),
            everything: false,
        };
        let store: Arc<dyn Store> = Arc::new(store.clone());
        let (follower, known) =
            Follower::new(Arc::clone(&store), identity, None, Events::default(), |_| Ok(()));
        let writer = Writer::new(store, host.clone(), known.clone());
        Watcher { known, writer, me: host, task: tokio::spawn(follower.run()) }
    }

    fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.known.borrow().cluster)
    }

    fn follows(&self) -> Vec<String> {
        let contents = self.cluster().contents.clone();
        contents.into_iter().flatten().map(|vnet| vnet.to_string()).collect()
    }

    async fn edit(&self, edit: Edit) -> Result<Done, ChangeError> {
        self.writer.change(&Edits::new(&self.me, vec![edit]), None, false).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_follows_the_vnets_that_concern_it_and_asks_for_the_rest() {
    let store = MemoryStore::new();
    let (_a, mut on_a) = start("a", 1, &store).await;
    let route = |to: &str| EgressRoute {
        scope: RouteScope::Vnet(VnetId::new("red").unwrap()),
        prefix: "10.9.0.0/16".parse().unwrap(),
        action: RouteAction::Vnet(VnetId::new(to).unwrap()),
    };
    let mapping = |vnet: &str, n: u8| Mapping {
        vnet: VnetId::new(vnet).unwrap(),
        ip: [10, 9, 0, n].into(),
        mac: culvert_model::MacAddr([2, 9, 0, 0, 0, n]),
        vtep: [198, 18, 9, 9].into(),
        mtu: None,
    };
    on_a.edit(&[
        Edit::PutVnet(other_vnet("red", 7)),
        Edit::PutVnet(other_vnet("green", 8)),
        Edit::PutRoute(route("green")),
        Edit::PutMapping(mapping("green", 1)),
        Edit::PutMapping(mapping("blue", 2)),
    ])
    .await
    .unwrap();

    let c = Watcher::new("c", &store);
    wait_for("c to join", SOON, || c.known.borrow().joined).await;
    let known = c.cluster();
    assert_eq!(known.vnets.len(), 3);
    assert!(known.hosts.values().any(|state| state.underlay.is_some() && state.live.is_some()));
    assert_eq!((known.mappings.len(), known.routes.len(), c.follows().len()), (0, 0, 0));
    assert!(known.hosts.values().all(|state| state.ports.is_empty()));
    assert_eq!(c.writer.everything().await.unwrap().mappings.len(), 2);

    // What is not followed is read before it is contradicted.
    let taken = c.edit(Edit::PutPort(port("c-1", 1))).await.unwrap_err();
    let ChangeError::Conflicts(conflicts) = taken else { panic!("{taken}") };
    assert!(
        conflicts.iter().any(|c| c.to_string().contains("port web-1 of host a")),
        "{conflicts:?}"
    );
    assert_eq!(c.follows(), [] as [&str; 0]);
    let blue = VnetId::new("blue").unwrap();
    let used = c.edit(Edit::DeleteVnet(blue.clone())).await.unwrap_err();
    let ChangeError::Conflicts(conflicts) = used else { panic!("{used}") };
    assert!(conflicts[0].message.contains("port web-1 of host a"), "{conflicts:?}");

    // With a port in a vnet, its contents come, and those of the vnet that its route leads to.
    let in_red = Port { vnet: VnetId::new("red").unwrap(), ..port("c-3", 3) };
    c.edit(Edit::PutPort(in_red.clone())).await.unwrap();
    assert_eq!(c.follows(), ["green", "red"]);
    let known = c.cluster();
    assert_eq!((known.mappings.len(), known.routes.len()), (1, 1));
    on_a.edit(&[Edit::PutMapping(mapping("green", 3)), Edit::PutMapping(mapping("blue", 4))])
        .await
        .unwrap();
    wait_for("the mapping in green", SOON, || c.cluster().mappings.len() == 2).await;
    // Its vnet may be another: what was known of the first goes.
    c.edit(Edit::PutPort(Port { vnet: blue, ..in_red })).await.unwrap();
    assert_eq!(c.follows(), ["blue"]);
    let known = c.cluster();
    let ips: Vec<_> = known.mappings.iter().map(|mapping| mapping.ip.to_string()).collect();
    assert_eq!(ips, ["10.9.0.2", "10.9.0.4"]);
    let ports: usize = known.hosts.values().map(|state| state.ports.len()).sum();
    assert_eq!((ports, known.routes.len()), (2, 0));
    let followed = known.claims.all().count();
    c.edit(Edit::DeletePort(PortId::new("c-3").unwrap())).await.unwrap();
    let known = c.cluster();
    assert_eq!((followed, known.claims.all().count(), c.follows().len()), (2, 0, 0));
    // What is changed elsewhere after it was read is not overwritten, followed or not.
    let read = mapping("green", 1);
    let change = |expected: Option<Mapping>| {
        let edits = Edits::new(&c.me, vec![Edit::PutMapping(mapping("green", 1))]);
        let expected = vec![(ObjectKey::Mapping(read.key()), expected.map(Object::Mapping))];
        let plan = edits.expecting(expected);
        async { c.writer.change(&{ plan }, None, true).await }
    };
    change(Some(read.clone())).await.unwrap();
    on_a.edit(&[Edit::DeleteMapping(read.key())]).await.unwrap();
    let changed = change(Some(read.clone())).await.unwrap_err();
    assert!(changed.to_string().contains("was deleted since it was read"), "{changed}");
    change(None).await.unwrap();
    on_a.edit(&[Edit::PutMapping(mapping("green", 1))]).await.unwrap();
    // Whoever follows all sees the same store.
    let whole = c.writer.everything().await.unwrap();
    assert_eq!((whole.mappings.len(), whole.placed.len()), (4, 1));
    c.task.abort();
}
