//! From what is wanted to what the dataplane carries.

use std::time::Duration;

use culvert_daemon::cluster::Cluster;
use culvert_daemon::cluster::project::project;
use culvert_daemon::names::{HostName, Slot};
use culvert_model::{Edit, Host, Object, PortState, Section, api};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::any_host;

use crate::support::{FakeDataplane, TestHost, host_toml, port, port_toml, wait_for};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_is_carried_and_applying_it_again_changes_nothing() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    let done = daemon.apply(&host_toml(1)).await.unwrap();
    assert_eq!(done.differences.len(), 3);
    assert!(done.unapplied.is_empty(), "{:?}", done.unapplied);
    assert_eq!(host.dataplane.host().unwrap().ports().iter().next().unwrap().id.as_str(), "web-1");

    let generation = host.dataplane.carries.lock().unwrap().generation;
    let again = daemon.apply(&host_toml(1)).await.unwrap();
    assert_eq!((again.revision, again.differences), (done.revision, Vec::new()));
    assert_eq!(host.dataplane.carries.lock().unwrap().generation, generation);
    let statuses: Vec<_> = daemon.objects().await.iter().map(api::ListedObject::status).collect();
    assert_eq!(statuses, [api::ApplyStatus::Applied; 3]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataplane_that_starts_anew_has_its_state_within_a_second() {
    let mut host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    for _ in 0..3 {
        host.dataplane.kill().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!daemon.info().await.dataplane.unwrap().connected);
        let (status, reason) = daemon.port("web-1").await;
        assert_eq!(status, api::ApplyStatus::Pending, "{reason}");
        host.dataplane.restart();
        let dataplane = &host.dataplane;
        wait_for("the state", Duration::from_secs(1), || dataplane.host().is_some()).await;
        wait_for_status(&mut daemon, "web-1", api::ApplyStatus::Applied).await;
    }
    let info = daemon.info().await.dataplane.unwrap();
    assert_eq!((info.replays, info.lag_ms), (3, 0));
}

async fn wait_for_status(
    daemon: &mut crate::support::Daemon,
    id: &str,
    wanted: api::ApplyStatus,
) -> String {
    for _ in 0..1000 {
        let (status, reason) = daemon.port(id).await;
        if status == wanted {
            return reason;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{id} is {:?}", daemon.port(id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn culvertd_killed_and_started_again_gives_nothing_that_is_there() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    daemon.kill().await;
    let calls = host.dataplane.carries.lock().unwrap().calls;
    let mut daemon = host.start().await;
    wait_for_status(&mut daemon, "web-1", api::ApplyStatus::Applied).await;
    assert_eq!(host.dataplane.carries.lock().unwrap().calls, calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_gives_the_dataplane_is_put_right() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    let wanted = host.dataplane.host().unwrap();
    {
        let mut carries = host.dataplane.carries.lock().unwrap();
        carries.host = Some(culvert_model::host_toml::read(&host_toml(9)).unwrap());
        carries.generation += 1;
    }
    let dataplane = &host.dataplane;
    wait_for("the wanted state", SOON, || dataplane.host().as_ref() == Some(&wanted)).await;
}

/// A dataplane on which the device of port `id` does not exist.
pub(crate) fn without_device(dataplane: &FakeDataplane, id: &'static str) {
    dataplane.refuse(move |before, host| {
        let named = |host: &Host| host.port(id).cloned();
        let index = host.ports().iter().position(|port| port.id.as_str() == id);
        // What runs may stay as it is.
        if named(host).is_none() || before.and_then(named) == named(host) {
            return Vec::new();
        }
        vec![api::Fault {
            section: Section::Port.name().to_owned(),
            index: index.and_then(|index| u32::try_from(index).ok()),
            id: id.to_owned(),
            field: "attach".to_owned(),
            message: "no such device".to_owned(),
            ..Default::default()
        }]
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_that_cannot_be_carried_does_not_keep_the_others_out() {
    let host = TestHost::new("a");
    without_device(&host.dataplane, "bad");
    let mut daemon = host.start().await;
    let toml = host_toml(1) + &port_toml("bad", 2) + &port_toml("web-3", 3);
    let done = daemon.apply(&toml).await.unwrap();
    assert_eq!(done.unapplied.len(), 1);
    assert_eq!(done.unapplied[0].status(), api::ApplyStatus::Failed);
    assert!(done.unapplied[0].reason.contains("no such device"), "{:?}", done.unapplied);
    let carried = host.dataplane.host().unwrap();
    assert_eq!(carried.ports().len(), 2);
    assert!(carried.port("web-3").is_some());
    let (status, _) = daemon.port("web-1").await;
    assert_eq!(status, api::ApplyStatus::Applied);
    // When the device comes, it is tried again without being asked.
    host.dataplane.refuse(|_, _| Vec::new());
    wait_for_status(&mut daemon, "bad", api::ApplyStatus::Applied).await;
    assert_eq!(host.dataplane.host().unwrap().ports().len(), 3);
    assert_eq!(daemon.info().await.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_change_runs_on_as_it_was() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    without_device(&host.dataplane, "web-1");
    let mut changed = port("web-1", 7);
    changed.state = PortState::Blocked;
    let edits = [Edit::PutPort(changed), Edit::PutPort(port("web-2", 2))];
    let done = daemon.edit(&edits).await.unwrap();
    assert_eq!(done.unapplied.len(), 1, "{:?}", done.unapplied);
    let carried = host.dataplane.host().unwrap();
    assert_eq!(carried.port("web-1"), Some(&port("web-1", 1)), "it was taken away or changed");
    assert!(carried.port("web-2").is_some());
    // Wanted as it runs, it has not failed any more.
    daemon.edit(&[Edit::PutPort(port("web-1", 1))]).await.unwrap();
    let (status, reason) = daemon.port("web-1").await;
    assert_eq!((status, reason.as_str()), (api::ApplyStatus::Applied, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_names_nothing_changes_nothing_and_is_told() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    let before = host.dataplane.host().unwrap();
    host.dataplane.refuse(|_, _| {
        vec![api::Fault {
            section: "port".to_owned(),
            message: "no memory".to_owned(),
            ..Default::default()
        }]
    });
    let done = daemon.edit(&[Edit::PutPort(port("web-2", 2))]).await.unwrap();
    assert!(done.unapplied[0].reason.contains("no memory"), "{:?}", done.unapplied);
    assert_eq!(host.dataplane.host().unwrap(), before);
    let (status, _) = daemon.port("web-1").await;
    assert_eq!(status, api::ApplyStatus::Applied);
    host.dataplane.refuse(|_, _| Vec::new());
    wait_for_status(&mut daemon, "web-2", api::ApplyStatus::Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_loses_its_device_has_failed_until_it_is_back() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    host.dataplane.carries.lock().unwrap().gone.insert("web-1".to_owned());
    assert_eq!(wait_for_status(&mut daemon, "web-1", api::ApplyStatus::Failed).await, "gone");
    assert_eq!(daemon.info().await.failed, 1);
    host.dataplane.carries.lock().unwrap().gone.clear();
    wait_for_status(&mut daemon, "web-1", api::ApplyStatus::Applied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_underlay_leaves_the_dataplane_alone() {
    let host = TestHost::new("a");
    let by_hand = culvert_model::host_toml::read(&host_toml(9)).unwrap();
    host.dataplane.carries.lock().unwrap().host = Some(by_hand.clone());
    let mut daemon = host.start().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(host.dataplane.host(), Some(by_hand));
    assert!(daemon.info().await.dataplane.unwrap().connected);
}

/// The objects of a state, in an order of their own: a state is a set.
fn objects(host: &Host) -> Vec<String> {
    let mut objects: Vec<_> =
        Object::all_of(host.clone().into_parts()).map(|object| format!("{object:?}")).collect();
    objects.sort();
    objects
}

/// What of a state concerns a host that has its ports: vnets without ports and without a route to them, and
/// their rules, do not.
fn concerning(host: &Host) -> Vec<String> {
    let mut cluster = Cluster::default();
    let me = HostName::new("a").unwrap();
    for object in Object::all_of(host.clone().into_parts()) {
        cluster.put(&Slot::of(object.key(), &me), Some(object));
    }
    let projection = project(&cluster, &me);
    assert!(projection.faults.is_empty(), "{:?}", projection.faults);
    objects(&projection.host.unwrap())
}

#[test]
fn any_state_follows_any_other_and_a_second_plan_is_empty() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let host = runtime.block_on(async { TestHost::new("a") });
    let daemon = std::cell::RefCell::new(runtime.block_on(host.start()));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(24));
    let states = (any_host::host(), any_host::host());
    let run = runner.run(&states, |(a, b)| {
        let daemon = &mut *daemon.borrow_mut();
        for wanted in [&a, &b] {
            let done = runtime.block_on(daemon.apply_host(wanted, true)).unwrap();
            prop_assert_eq!(done.unapplied, Vec::new());
            let carried = host.dataplane.host().unwrap();
            prop_assert_eq!(objects(&carried), concerning(wanted));
            let calls = host.dataplane.carries.lock().unwrap().calls;
            let again = runtime.block_on(daemon.apply_host(wanted, true)).unwrap();
            prop_assert_eq!(again.differences, Vec::new());
            prop_assert_eq!(host.dataplane.carries.lock().unwrap().calls, calls);
            // And what was written is what was given.
            let request = api::GetWantedRequest::default();
            let written = runtime.block_on(daemon.client.get_wanted(request)).unwrap();
            let written = Host::try_from(written.into_inner().state.unwrap()).unwrap();
            prop_assert_eq!(objects(&written), objects(wanted));
        }
        Ok(())
    });
    run.unwrap();
}
