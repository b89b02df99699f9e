//! Sessions: the old connection's requests are over before the new one's begin.

use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_nbd::client::ClientError;
use culvert_nbd::{Fence, Limits};

use crate::support::{Gated, MIB, serve_fencing};

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_waits_for_what_runs_and_nothing_old_starts_behind_it() {
    let drain = Fence::Drain { within: Duration::from_secs(30) };
    for fence in [Fence::Drop, drain] {
        let served = serve_fencing(Gated::new(MIB, true), Limits::default(), fence);
        let old = served.client("vol;1").await.unwrap();
        let running = tokio::spawn({
            let old = old.clone();
            async move { old.write(0, &[1; 4096], false).await }
        });
        served.export.until_begun(1).await;
        let mut successor = Box::pin(served.client("vol;2"));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut successor).await;
        assert!(early.is_err(), "the old write is still inside the export");
        // The old client keeps sending: nothing of it may start any more.
        let late = tokio::spawn({
            let old = old.clone();
            async move { old.write(0, &[2; 4096], false).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(served.export.begun.load(Ordering::SeqCst), 1);
        served.export.permits.add_permits(100);
        let new = successor.await.unwrap();
        assert_eq!(served.export.ended.load(Ordering::SeqCst), 1);
        let answer = running.await.unwrap();
        match fence {
            Fence::Drop => assert!(matches!(answer, Err(ClientError::Io(_))), "{answer:?}"),
            Fence::Drain { .. } => answer.unwrap(),
        }
        assert!(matches!(late.await.unwrap(), Err(ClientError::Io(_))));
        assert_eq!(new.read(0, 4096).await.unwrap(), [1; 4096]);
        assert_eq!(served.export.begun.load(Ordering::SeqCst), 2, "one write, one read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_becomes_a_drop() {
    let fence = Fence::Drain { within: Duration::from_millis(50) };
    let served = serve_fencing(Gated::new(MIB, true), Limits::default(), fence);
    let old = served.client("vol;1").await.unwrap();
    let running = tokio::spawn(async move { old.write(0, &[1; 4096], false).await });
    served.export.until_begun(1).await;
    let mut successor = Box::pin(served.client("vol;2"));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut successor).await;
    assert!(early.is_err(), "even then the write is waited for");
    served.export.permits.add_permits(100);
    successor.await.unwrap();
    assert!(matches!(running.await.unwrap(), Err(ClientError::Io(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_generation_shares_a_session_and_an_older_one_is_refused() {
    let served = serve_fencing(Gated::new(MIB, false), Limits::default(), Fence::Drop);
    let one = served.client("vol;7").await.unwrap();
    let two = served.client("vol;7").await.unwrap();
    let stranger = served.client("vol").await.unwrap();
    let refused = served.client("vol;6").await.unwrap_err();
    assert!(refused.to_string().contains("generation 7"), "{refused}");
    for client in [&one, &two, &stranger] {
        client.read(0, 512).await.unwrap();
    }
    let key = "s".into();
    assert_eq!(served.server.connections().of_session(&key).len(), 2);
    let new = served.client("vol;8").await.unwrap();
    for old in [one, two] {
        assert!(matches!(old.read(0, 512).await, Err(ClientError::Io(_))));
    }
    for client in [&new, &stranger] {
        client.read(0, 512).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_connections_of_an_export_can_be_ended() {
    let served = serve_fencing(Gated::new(MIB, false), Limits::default(), Fence::Drop);
    let gone = served.client("vol").await.unwrap();
    let stays = served.client("ro").await.unwrap();
    let within = Duration::from_secs(30);
    served.server.connections().fence_export("vol", Fence::Drain { within }).await;
    assert!(matches!(gone.read(0, 512).await, Err(ClientError::Io(_))));
    stays.read(0, 512).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_the_default_export_is_found_by_what_that_stands_for() {
    let served = serve_fencing(Gated::new(MIB, false), Limits::default(), Fence::Drop);
    let gone = served.client("").await.unwrap();
    gone.read(0, 512).await.unwrap();
    let connections = served.server.connections();
    assert_eq!(connections.of_export("vol").len(), 1);
    connections.fence_export("vol", Fence::Drop).await;
    assert!(matches!(gone.read(0, 512).await, Err(ClientError::Io(_))));
}
