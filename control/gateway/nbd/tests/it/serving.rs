//! The server and the client, over sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_nbd::client::{Client, ClientError, negotiate};
use culvert_nbd::export::{Export, STATE_CACHED, STATE_DIRTY, STATE_HOLE, STATE_ZERO, ZeroMode};
use culvert_nbd::handshake::client::{Goal, Wish};
use culvert_nbd::proto::Style;
use culvert_nbd::proto::flags::CommandFlags;
use culvert_nbd::proto::reply::StatusExtent;
use culvert_nbd::proto::request::Command;
use culvert_nbd::{Errno, Limits, Shutdown, Stream};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::support::{
    ALL, FAILS_AT, Gated, MIB, PANICS_AT, SHORT_AT, Served, eventually, pattern, serve,
};

fn errno(e: ClientError) -> Errno {
    match e {
        ClientError::Server { errno, .. } => errno,
        other => panic!("{other}"),
    }
}

async fn exercise(client: &Client) {
    let style = client.agreed().style;
    assert_eq!((client.agreed().size, client.agreed().features), (16 * MIB, ALL));
    let data = pattern(5000, 300_000);
    client.write(5000, &data, false).await.unwrap();
    assert_eq!(client.read(5000, 300_000).await.unwrap(), data);
    // What lies around it is untouched, and zero.
    assert!(client.read(0, 5000).await.unwrap().iter().all(|b| *b == 0));
    client.trim(8192, 8192, true).await.unwrap();
    assert!(client.read(8192, 8192).await.unwrap().iter().all(|b| *b == 0));
    client.write(0, &[7; 512], true).await.unwrap();
    let mode = ZeroMode { no_hole: true, ..ZeroMode::default() };
    client.write_zeroes(0, 4096, mode).await.unwrap();
    let fast = ZeroMode { fast: true, ..mode };
    assert_eq!(errno(client.write_zeroes(0, 4096, fast).await.unwrap_err()), Errno::NotSup);
    client.flush().await.unwrap();
    client.cache(0, MIB).await.unwrap();
    assert_eq!(errno(client.read(16 * MIB - 1, 2).await.unwrap_err()), Errno::Inval);
    assert_eq!(errno(client.write(16 * MIB, &[0; 1], false).await.unwrap_err()), Errno::NoSpc);
    assert_eq!(
        errno(client.read(0, (32 << 20) + 1).await.unwrap_err()),
        Errno::Inval,
        "longer than the longest payload"
    );
    // A refused payload does not put the stream out of step.
    let long = vec![1; (32 << 20) + 1];
    assert_eq!(errno(client.write(0, &long, false).await.unwrap_err()), Errno::NoSpc);
    if style > Style::Simple {
        let reply = client.call(Command::Read, CommandFlags::NONE, 4096, 12288, &[]).await.unwrap();
        assert_eq!((reply.chunks, reply.hole_bytes), (2, 8192), "holes travel as holes");
        let reply = client.call(Command::Read, CommandFlags::DF, 4096, 12288, &[]).await.unwrap();
        assert_eq!((reply.chunks, reply.hole_bytes), (1, 0), "DF asks for one chunk");
    }
    client.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_in_every_style_over_both_kinds_of_socket() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let wish = Wish { style, ..Wish::to_use("vol") };
        let served = serve(Gated::new(16 * MIB, false), Limits::default());
        let client = Client::connect(served.unix().await, wish.clone()).await.unwrap();
        assert_eq!(client.agreed().style, style);
        exercise(&client).await;
        let served = serve(Gated::new(16 * MIB, false), Limits::default());
        let client = Client::connect(served.tcp().await, wish).await.unwrap();
        exercise(&client).await;
        served.until_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn block_status_tells_of_holes_and_of_the_cache() {
    for style in [Style::Structured, Style::Extended] {
        let served = serve(Gated::new(16 * MIB, false), Limits::default());
        let contexts = vec!["base:allocation".to_owned(), "culvert:cache".to_owned()];
        let wish = Wish { style, contexts, ..Wish::to_use("vol") };
        let client = Client::connect(served.unix().await, wish).await.unwrap();
        client.write(4096, &[1; 4096], true).await.unwrap();
        client.write(12288, &[1; 4096], false).await.unwrap();
        let extent = |length, flags: u32| StatusExtent { length, flags: flags.into() };
        let hole = STATE_HOLE | STATE_ZERO;
        let expected = [
            (
                1,
                vec![
                    extent(4096, hole),
                    extent(4096, 0),
                    extent(4096, hole),
                    extent(4096, 0),
                    extent(MIB - 16384, hole),
                ],
            ),
            (
                2,
                vec![
                    extent(4096, 0),
                    extent(4096, STATE_CACHED),
                    extent(4096, 0),
                    extent(4096, STATE_CACHED | STATE_DIRTY),
                    extent(MIB - 16384, 0),
                ],
            ),
        ];
        assert_eq!(client.block_status(0, MIB, false).await.unwrap(), expected);
        let one = client.block_status(1024, MIB, true).await.unwrap();
        assert_eq!(one, [(1, vec![extent(3072, hole)]), (2, vec![extent(3072, 0)])]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_overtake_one_that_takes_long() {
    let served = serve(Gated::new(MIB, true), Limits::default());
    let client = served.client("vol").await.unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { client.read(0, 4096).await }
    });
    served.export.until_begun(1).await;
    client.flush().await.unwrap();
    assert!(!slow.is_finished(), "the flush came first");
    served.export.permits.add_permits(1);
    assert_eq!(slow.await.unwrap().unwrap(), [0; 4096]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_budget_is_read_and_the_rest_waits() {
    for (limits, length, expected) in [
        (Limits { in_flight_requests: 5, ..Limits::default() }, 4096, 5),
        (Limits { in_flight_bytes: 32 << 20, ..Limits::default() }, 8 << 20, 4),
    ] {
        let served = serve(Gated::new(16 * MIB, true), limits);
        let client = served.client("vol").await.unwrap();
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let client = client.clone();
            reads.spawn(async move { client.read(0, length).await.map(|data| data.len()) });
        }
        served.export.until_begun(expected).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(served.export.begun.load(Ordering::SeqCst), expected);
        assert_eq!(served.server.connections().all()[0].in_flight(), expected);
        served.export.permits.add_permits(20);
        while let Some(read) = reads.join_next().await {
            assert_eq!(read.unwrap().unwrap(), length as usize);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_fails_its_request_only() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let client = served.client("vol").await.unwrap();
    let e = client.read(PANICS_AT, 4096).await.unwrap_err();
    assert_eq!(errno(e), Errno::Io);
    assert_eq!(errno(client.read(SHORT_AT, 4096).await.unwrap_err()), Errno::Io);
    match client.read(FAILS_AT, 4096).await.unwrap_err() {
        ClientError::Server { errno: Errno::Io, message, offset } => {
            assert_eq!(message, "volume vol, block 15: checksum is wrong");
            assert_eq!(offset, Some(FAILS_AT));
        }
        other => panic!("{other}"),
    }
    assert_eq!(client.read(0, 4096).await.unwrap(), [0; 4096]);
    let reads = served.statistics.command(Command::Read).unwrap();
    assert_eq!(reads.errors.load(Ordering::Relaxed), 3);
    assert_eq!(reads.bytes.load(Ordering::Relaxed), 4096);
    assert_eq!(reads.latency.counts().iter().sum::<u64>(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_opening_refuses_changes() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let client = served.client("ro").await.unwrap();
    assert!(client.agreed().features.read_only && !client.agreed().features.trim);
    assert_eq!(errno(client.write(0, &[1; 512], false).await.unwrap_err()), Errno::Perm);
    assert_eq!(errno(client.trim(0, 512, false).await.unwrap_err()), Errno::Perm);
    assert_eq!(client.read(0, 512).await.unwrap(), [0; 512]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_is_seen_at_once() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let client = served.client("vol").await.unwrap();
    assert_eq!(errno(client.write(MIB, &[1; 512], false).await.unwrap_err()), Errno::NoSpc);
    served.export.memory.resize(2 * MIB);
    client.write(MIB, &[1; 512], false).await.unwrap();
    served.export.memory.resize(4096);
    assert_eq!(errno(client.read(4096, 512).await.unwrap_err()), Errno::Inval);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_can_be_listed_and_described() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let wish = |goal| Wish { goal, ..Wish::to_use("vol") };
    let mut stream = served.unix().await;
    let agreed = negotiate(&mut stream, wish(Goal::List)).await.unwrap();
    assert_eq!(agreed.exports[0].name, "vol");
    let mut stream = served.tcp().await;
    let agreed = negotiate(&mut stream, wish(Goal::Describe)).await.unwrap();
    assert_eq!((agreed.size, agreed.description.as_str()), (MIB, "in memory"));
    let refused = served.client("nothing").await.unwrap_err();
    assert!(refused.to_string().contains("no export is called"), "{refused}");
    drop(stream);
    served.until_empty().await;
    assert_eq!(served.leases.load(Ordering::SeqCst), 0, "describing opens nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_refused_with_a_sentence() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let served = serve(Gated::new(MIB, false), limits);
    let one = served.client("vol").await.unwrap();
    let _two = served.client("vol").await.unwrap();
    let refused = served.client("vol").await.unwrap_err();
    assert!(refused.to_string().contains("2 connections are the limit"), "{refused}");
    // A place that was left can be taken again.
    one.disconnect().await.unwrap();
    eventually(|| served.leases.load(Ordering::SeqCst) == 1).await;
    eventually(|| served.server.connections().all().len() == 1).await;
    served.client("vol").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_answered_when_the_client_disconnects() {
    let served = serve(Gated::new(MIB, true), Limits::default());
    let client = served.client("vol").await.unwrap();
    let read = tokio::spawn({
        let client = client.clone();
        async move { client.read(0, 4096).await }
    });
    served.export.until_begun(1).await;
    client.disconnect().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(served.leases.load(Ordering::SeqCst), 1);
    served.export.permits.add_permits(1);
    assert_eq!(read.await.unwrap().unwrap(), [0; 4096]);
    served.until_empty().await;
    assert_eq!(served.leases.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_finished_and_its_lease_kept_when_the_client_vanishes() {
    let served = serve(Gated::new(MIB, true), Limits::default());
    let client = served.client("vol").await.unwrap();
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.write(0, &[9; 4096], false).await }
    });
    served.export.until_begun(1).await;
    write.abort();
    let _ = write.await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(served.leases.load(Ordering::SeqCst), 1, "its write is inside the export");
    served.export.permits.add_permits(1);
    served.until_empty().await;
    assert_eq!(served.leases.load(Ordering::SeqCst), 0);
    assert_eq!(served.export.ended.load(Ordering::SeqCst), 1);
    let pool = served.server.pool();
    let read = served.export.memory.read(0, 4096, pool).await.unwrap();
    assert_eq!(read.len(), 4096);
    assert_eq!(served.export.memory.allocated_bytes(), 4096, "the write took effect");
}

async fn stopping(served: &Served, how: Shutdown) -> tokio::task::JoinHandle<()> {
    let server = served.server.clone();
    let stop = tokio::spawn(async move { server.shutdown(how).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_answers_what_runs_and_refuses_what_is_new() {
    let served = serve(Gated::new(MIB, true), Limits::default());
    let client = served.client("vol").await.unwrap();
    let _idle = served.client("vol").await.unwrap();
    let read = tokio::spawn({
        let client = client.clone();
        async move { client.read(0, 4096).await }
    });
    served.export.until_begun(1).await;
    let how = Shutdown { linger: Duration::from_secs(2), ..Shutdown::default() };
    let stop = stopping(&served, how).await;
    assert_eq!(errno(client.flush().await.unwrap_err()), Errno::Shutdown);
    assert_eq!(errno(client.write(0, &[1; 512], false).await.unwrap_err()), Errno::Shutdown);
    served.export.permits.add_permits(1);
    assert_eq!(read.await.unwrap().unwrap(), [0; 4096]);
    stop.await.unwrap();
    assert!(served.server.connections().all().is_empty());
    assert!(matches!(client.flush().await.unwrap_err(), ClientError::Io(_)));
    assert!(!served.socket.exists(), "the listener is gone, and its file");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_waits_for_what_is_inside_the_export() {
    let served = serve(Gated::new(MIB, true), Limits::default());
    let client = served.client("vol").await.unwrap();
    let write = tokio::spawn(async move { client.write(0, &[1; 512], false).await });
    served.export.until_begun(1).await;
    let short = Duration::from_millis(20);
    let stop = stopping(&served, Shutdown { linger: short, within: short }).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!stop.is_finished(), "a write is inside");
    served.export.permits.add_permits(1);
    stop.await.unwrap();
    assert_eq!(served.export.ended.load(Ordering::SeqCst), 1);
    let _ = write.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pipes_and_one_socket_serve_as_standard_streams() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let (to_server, server_in) = pipe::pipe().unwrap();
    let (server_out, from_server) = pipe::pipe().unwrap();
    let stream = Stream::from_fds(
        server_in.into_blocking_fd().unwrap(),
        server_out.into_blocking_fd().unwrap(),
    );
    let (server, stream) = (served.server.clone(), stream.unwrap());
    tokio::spawn(async move { server.serve_stream(stream).await });
    let client = Client::connect(tokio::io::join(from_server, to_server), Wish::to_use("vol"));
    assert_eq!(client.await.unwrap().read(0, 512).await.unwrap(), [0; 512]);

    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    let copy = far.try_clone().unwrap();
    let stream = Stream::from_fds(far.into(), copy.into()).unwrap();
    let server = served.server.clone();
    let serving = tokio::spawn(async move { server.serve_stream(stream).await });
    near.set_nonblocking(true).unwrap();
    let client = Client::connect(UnixStream::from_std(near).unwrap(), Wish::to_use("vol"));
    let client = client.await.unwrap();
    assert_eq!(client.read(0, 512).await.unwrap(), [0; 512]);
    client.disconnect().await.unwrap();
    serving.await.unwrap();

    let file = || std::fs::File::open("/dev/null").unwrap().into();
    assert!(Stream::from_fds(file(), file()).is_err(), "a file is no client");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_write_at_once_and_find_what_they_wrote() {
    let served = Arc::new(serve(Gated::new(64 * MIB, false), Limits::default()));
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..8 {
        let served = Arc::clone(&served);
        clients.spawn(async move {
            let client = served.client("vol").await.unwrap();
            let mut requests = tokio::task::JoinSet::new();
            for j in 0..64 {
                let client = client.clone();
                requests.spawn(async move {
                    let offset = (i * 64 + j) * 65_536 + 512;
                    let data = pattern(offset, 40_000);
                    client.write(offset, &data, j % 8 == 0).await.unwrap();
                    assert_eq!(client.read(offset, 40_000).await.unwrap(), data);
                });
            }
            while let Some(request) = requests.join_next().await {
                request.unwrap();
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(served.server.pool().idle_bytes() <= 64 << 20);
}
