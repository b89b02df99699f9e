//! What clients see.

use std::time::Duration;

use culvert_model::{Edit, Object, ObjectKey, VnetId, api};
use tonic::Code;

use crate::support::{TestHost, faults, host_toml, port, port_toml, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_the_difference_and_writes_nothing() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    let first = daemon.apply(&host_toml(1)).await.unwrap();
    let toml = host_toml(1).replace("10.0.0.1", "10.0.0.7") + &port_toml("web-2", 2);
    let state = Some((&culvert_model::host_toml::read(&toml).unwrap()).into());
    let request =
        api::ApplyStateRequest { state, dry_run: true, prune: true, ..Default::default() };
    let dry = daemon.client.apply_state(request).await.unwrap().into_inner();
    assert_eq!(dry.revision, first.revision);
    let kinds: Vec<_> =
        dry.differences.iter().map(|d| (d.before.is_some(), d.after.is_some())).collect();
    assert_eq!(kinds, [(true, true), (false, true)]);
    let wanted = daemon.client.get_wanted(api::GetWantedRequest::default()).await.unwrap();
    let wanted = wanted.into_inner();
    assert_eq!(wanted.revision, first.revision);
    let host = culvert_model::Host::try_from(wanted.state.unwrap()).unwrap();
    assert_eq!(host, culvert_model::host_toml::read(&host_toml(1)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_another_revision_is_refused() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    let first = daemon.apply(&host_toml(1)).await.unwrap();
    let toml = host_toml(1) + &port_toml("web-2", 2);
    let state: api::State = (&culvert_model::host_toml::read(&toml).unwrap()).into();
    let request = |revision| api::ApplyStateRequest {
        state: Some(state.clone()),
        if_revision: Some(revision),
        ..Default::default()
    };
    let status = daemon.client.apply_state(request(first.revision + 5)).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains(&first.revision.to_string()), "{status:?}");
    daemon.client.apply_state(request(first.revision)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_not_as_expected_are_not_changed() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    let before = port("web-2", 2);
    let after = culvert_model::Port { mtu: culvert_model::Mtu::new(1400).ok(), ..before.clone() };
    let expected =
        |key: &culvert_model::PortId, object: Option<&culvert_model::Port>| api::ExpectedObject {
            key: Some((&ObjectKey::Port(key.clone())).into()),
            object: object.map(|port| (&Object::Port(port.clone())).into()),
        };
    let request = |edit: Edit, expected| api::ApplyEditsRequest {
        edits: vec![(&edit).into()],
        expected: vec![expected],
        ..Default::default()
    };
    let put = |port: &culvert_model::Port| Edit::PutPort(port.clone());
    let id = &before.id;
    let cases = [
        (put(&before), expected(id, Some(&after)), Err("was deleted since it was read")),
        (put(&before), expected(id, None), Ok(())),
        (put(&before), expected(id, None), Err("was made since it was read")),
        (put(&after), expected(id, Some(&after)), Err("was changed since it was read")),
        (put(&after), expected(id, Some(&before)), Ok(())),
        (
            Edit::DeletePort(id.clone()),
            expected(id, Some(&before)),
            Err("was changed since it was read"),
        ),
        (Edit::DeletePort(id.clone()), expected(id, Some(&after)), Ok(())),
    ];
    for (edit, expected, outcome) in cases {
        match (daemon.client.apply_edits(request(edit, expected)).await, outcome) {
            (Ok(_), Ok(())) => {}
            (Err(status), Err(said)) => {
                assert_eq!(status.code(), Code::Aborted, "{status:?}");
                assert!(status.message().contains(said), "{status:?}");
            }
            (answer, expected) => panic!("{answer:?}, not {expected:?}"),
        }
    }
    // What is expected is of what is changed.
    let other = culvert_model::PortId::new("web-1").unwrap();
    for (expected, said) in [
        (expected(&other, None), "expected[0] port web-1: no edit names it"),
        (expected(&other, Some(&before)), "expected[0] port web-1: holds port web-2"),
    ] {
        let status = daemon.client.apply_edits(request(put(&before), expected)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(said), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_the_edit_the_field_and_what_is_legal() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    let mut lost = port("web-2", 2);
    lost.vnet = VnetId::new("bleu").unwrap();
    let status = daemon.edit(&[Edit::PutPort(port("web-4", 4)), Edit::PutPort(lost)]).await;
    let found = faults(&status.unwrap_err());
    assert_eq!(
        found,
        [
            "edits[1] port \"web-2\": vnet \"bleu\": no such vnet; legal is the id of a vnet of the cluster; did you mean \"blue\"?"
        ]
    );
    // All or nothing.
    assert_eq!(host.dataplane.host().unwrap().ports().len(), 1);

    let twice = daemon.edit(&[Edit::PutPort(port("web-2", 1))]).await.unwrap_err();
    let found = faults(&twice);
    assert!(
        found
            .iter()
            .any(|f| f.starts_with("edits[0] port \"web-2\": mac 02:00:00:00:00:01: overlaps")),
        "{found:?}"
    );

    let gone = daemon.edit(&[Edit::DeleteVnet(VnetId::new("blue").unwrap())]).await.unwrap_err();
    let found = faults(&gone);
    assert_eq!(
        found,
        [
            "edits[0] vnet \"blue\": still used by port web-1 of host a; legal is to delete what uses it first"
        ]
    );
    let absent = daemon.edit(&[Edit::DeleteVnet(VnetId::new("red").unwrap())]).await.unwrap_err();
    assert!(faults(&absent)[0].contains("there is none to delete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_what_becomes_of_objects() {
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    daemon.apply(&host_toml(1)).await.unwrap();
    let events = daemon.client.watch_events(api::WatchEventsRequest {}).await.unwrap();
    let mut events = events.into_inner();
    daemon.edit(&[Edit::PutPort(port("web-2", 2))]).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(5), async {
        loop {
            let event = events.message().await.unwrap().unwrap();
            let web_2 = api::object_key::Key::Port("web-2".to_owned());
            if let Some(api::event::What::Object(status)) = event.what
                && status.key.as_ref().and_then(|key| key.key.as_ref()) == Some(&web_2)
            {
                return status;
            }
        }
    });
    let status = seen.await.unwrap();
    assert_eq!(status.status(), api::ApplyStatus::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_reach_subscribers_across_a_restart_of_the_dataplane() {
    let mut host = TestHost::new("a");
    let mut daemon = host.start().await;
    let request = api::WatchHostTrapsRequest { rate: 0 };
    let mut traps = daemon.client.watch_host_traps(request).await.unwrap().into_inner();
    let began = std::time::Instant::now();
    for round in 0..2 {
        let sender = host.dataplane.traps.clone();
        wait_for("the relay", Duration::from_secs(5), || sender.receiver_count() > 0).await;
        // What is sent while the relay connects may be lost; then another is sent.
        let trap = loop {
            let trap = api::Trap { port: format!("p{round}"), ..Default::default() };
            let _ = sender.send(trap);
            let next = tokio::time::timeout(Duration::from_millis(200), traps.message()).await;
            match next {
                Ok(next) => {
                    let next = next.unwrap().unwrap();
                    if next.port == format!("p{round}") {
                        break next;
                    }
                }
                Err(_) => assert!(began.elapsed() < Duration::from_secs(20), "no trap came"),
            }
        };
        assert_eq!(trap.port, format!("p{round}"));
        host.dataplane.kill().await;
        wait_for("its end", Duration::from_secs(5), || sender.receiver_count() == 0).await;
        host.dataplane.restart();
    }
    let refused = daemon.client.watch_host_traps(api::WatchHostTrapsRequest { rate: 10_001 }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}
