//! Hostile clients: each harms at most itself, and none costs more memory than its budget.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use culvert_nbd::Limits;
use culvert_nbd::client::ClientError;
use culvert_nbd::client::negotiate;
use culvert_nbd::handshake::client::Wish;
use culvert_nbd::proto::Style;
use culvert_nbd::proto::flags::CommandFlags;
use culvert_nbd::proto::option::{InfoRequest, OptionHeader, OptionRequest};
use culvert_nbd::proto::request::{Command, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Gated, MIB, Served, eventually, resident_bytes, serve};

fn limits() -> Limits {
    Limits {
        handshake_timeout: Duration::from_millis(500),
        stall_timeout: Duration::from_millis(500),
        ..Limits::default()
    }
}

/// A proper client gets its answer, soon.
async fn is_well(served: &Served) {
    let begun = Instant::now();
    let client = served.client("vol").await.unwrap();
    assert_eq!(client.read(0, 4096).await.unwrap().len(), 4096);
    client.disconnect().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "served after {:?}", begun.elapsed());
}

/// A stream in the transmission phase, with compact requests.
async fn raw(served: &Served) -> UnixStream {
    let mut stream = served.unix().await;
    let wish = Wish { style: Style::Simple, ..Wish::to_use("vol") };
    negotiate(&mut stream, wish).await.unwrap();
    stream
}

fn request(command: Command, offset: u64, length: u64) -> Vec<u8> {
    let request = Request { flags: CommandFlags::NONE, command, cookie: 1, offset, length };
    let mut out = Vec::new();
    request.emit(Style::Simple, &mut out).unwrap();
    out
}

/// Waits until nobody is connected, while what is held goes on step by step.
async fn until_empty_by_steps(served: &Served) {
    let begun = Instant::now();
    while !served.server.connections().all().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it runs on");
        served.export.permits.add_permits(1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the server has hung up.
async fn hung_up(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    // With unread bytes in its way the kernel says it was reset.
    let _ = end.expect("the server hangs up");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_handshakes_end_in_time_and_make_room_for_others() {
    let served = serve(Gated::new(MIB, false), Limits { max_handshakes: 8, ..limits() });
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(served.unix().await);
        assert!(served.server.connections().all().len() <= 108);
    }
    is_well(&served).await;
    for stream in &mut silent {
        hung_up(stream).await;
    }
    served.until_empty().await;
    assert_eq!(served.statistics.refused.load(Ordering::Relaxed), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dribbled_handshake_ends_in_time() {
    let served = serve(Gated::new(MIB, false), limits());
    let mut stream = served.unix().await;
    let begun = Instant::now();
    // Endless options, byte by byte, each byte in good time.
    let mut bytes = vec![0, 0, 0, 3];
    for _ in 0..1000 {
        OptionRequest::List.emit(&mut bytes).unwrap();
    }
    for byte in bytes {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "still being listened to");
    }
    is_well(&served).await;
    served.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hears_no_answers_to_its_options_is_thrown_out() {
    let served = serve(Gated::new(MIB, false), Limits { max_options: u32::MAX, ..limits() });
    let mut stream = served.unix().await;
    let mut list = vec![0, 0, 0, 3];
    for _ in 0..100_000 {
        OptionRequest::List.emit(&mut list).unwrap();
    }
    let before = resident_bytes();
    assert!(stream.write_all(&list).await.is_err(), "all of it was taken");
    assert!(resident_bytes().saturating_sub(before) < 16 * MIB);
    is_well(&served).await;
    served.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_cut_off_at_any_byte_leaves_nothing_behind() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let mut session = vec![0, 0, 0, 3];
    OptionRequest::StructuredReply.emit(&mut session).unwrap();
    let info = InfoRequest { name: "vol".to_owned(), wanted: vec![3] };
    OptionRequest::Info(info.clone()).emit(&mut session).unwrap();
    OptionRequest::Go(info).emit(&mut session).unwrap();
    session.extend(request(Command::Write, 4096, 64));
    session.extend([7; 64]);
    session.extend(request(Command::Read, 4096, 64));
    session.extend(request(Command::Flush, 0, 0));
    for end in 0..=session.len() {
        let mut stream = served.unix().await;
        // Half of them wait for the answers, half vanish at once.
        let written = stream.write_all(&session[..end]).await;
        written.unwrap();
        if end % 2 == 0 {
            stream.shutdown().await.unwrap();
            hung_up(&mut stream).await;
        }
    }
    served.until_empty().await;
    assert_eq!(served.leases.load(Ordering::SeqCst), 0);
    is_well(&served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stop_reading_keep_their_own_budget_only() {
    let limits = Limits { in_flight_bytes: 32 << 20, ..limits() };
    let served = serve(Gated::new(64 * MIB, false), limits);
    let filler = served.client("vol").await.unwrap();
    for i in 0..64 {
        filler.write(i * MIB, &vec![1; MIB as usize], false).await.unwrap();
    }
    let before = resident_bytes();
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = raw(&served).await;
        // Asks for 4 GiB in all and reads none of it.
        for i in 0..4096 {
            let ask = request(Command::Read, i % 64 * MIB, MIB);
            let written = tokio::time::timeout(Duration::from_millis(50), stream.write_all(&ask));
            if written.await.is_err() {
                break;
            }
        }
        stalled.push(stream);
    }
    let grown = resident_bytes().saturating_sub(before);
    let allowed = 4 * (32 + 8) * MIB + 64 * MIB;
    assert!(grown < allowed, "{} MiB for four clients of 32 MiB", grown / MIB);
    is_well(&served).await;
    // They are thrown out for taking nothing for so long.
    filler.disconnect().await.unwrap();
    served.until_empty().await;
    assert!(served.server.pool().idle_bytes() <= 64 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_does_not_come_is_not_waited_for_forever() {
    let served = serve(Gated::new(64 * MIB, false), limits());
    let mut stream = raw(&served).await;
    stream.write_all(&request(Command::Write, 0, 32 * MIB)).await.unwrap();
    stream.write_all(&[1; 10]).await.unwrap();
    is_well(&served).await;
    hung_up(&mut stream).await;
    served.until_empty().await;
    assert_eq!(served.export.memory.allocated_bytes(), 0, "half a write wrote something");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_is_thrown_out_only_where_that_is_wanted() {
    for (idle_timeout, stays) in [(None, true), (Some(Duration::from_millis(300)), false)] {
        let served = serve(Gated::new(MIB, false), Limits { idle_timeout, ..limits() });
        let client = served.client("vol").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let answer = client.read(0, 512).await;
        assert_eq!(answer.is_ok(), stays, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_instead_of_a_request_ends_the_connection() {
    let served = serve(Gated::new(MIB, false), limits());
    let mut absurd = request(Command::Write, 0, 512);
    absurd[24..28].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut wrong_magic = request(Command::Read, 0, 512);
    wrong_magic[0] = 0;
    let extended = {
        let flags = CommandFlags::NONE;
        let request = Request { flags, command: Command::Read, cookie: 1, offset: 0, length: 512 };
        let mut out = Vec::new();
        request.emit(Style::Extended, &mut out).unwrap();
        out
    };
    for junk in [absurd, wrong_magic, extended, vec![0xff; 4096]] {
        let mut stream = raw(&served).await;
        stream.write_all(&junk).await.unwrap();
        hung_up(&mut stream).await;
        is_well(&served).await;
    }
    served.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_options_cost_no_memory() {
    let served = serve(Gated::new(MIB, false), Limits::default());
    let before = resident_bytes();
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = served.unix().await;
        let mut bytes = vec![0, 0, 0, 3];
        OptionHeader { option: 7, length: 1 << 20 }.emit(&mut bytes);
        bytes.resize(bytes.len() + (1 << 20) - 1, 0);
        stream.write_all(&bytes).await.unwrap();
        streams.push(stream);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 * MIB, "{} MiB for 64 options of 1 MiB", grown / MIB);
    is_well(&served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_end_do_not_pile_up_behind_a_slow_export() {
    let served = serve(Gated::new(MIB, true), Limits { in_flight_requests: 16, ..limits() });
    let mut stream = raw(&served).await;
    let asks: Vec<u8> = request(Command::Read, 0, 512).repeat(1 << 16);
    let before = resident_bytes();
    let flood = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&asks)).await;
    assert!(flood.is_err(), "all of it was taken");
    served.export.until_begun(16).await;
    assert_eq!(served.export.begun.load(Ordering::SeqCst), 16);
    assert!(resident_bytes().saturating_sub(before) < 16 * MIB);
    served.export.permits.add_permits(1 << 20);
    drop(stream);
    served.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_does_not_fool_the_client() {
    let scripts: [(&str, Vec<u8>); 5] = [
        ("magic", vec![0xff; 16]),
        ("cookie", [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &[9; 8]].concat()),
        ("long chunk", chunk(1, 1, u32::MAX, &[])),
        ("chunk elsewhere", chunk(1, 1, 12, &[&(1u64 << 40).to_be_bytes()[..], &[1; 4]].concat())),
        ("too little", chunk(1, 1, 12, &[&0u64.to_be_bytes()[..], &[1; 4]].concat())),
    ];
    for (what, script) in scripts {
        let (near, far) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            let served = serve(Gated::new(MIB, false), Limits::default());
            relay_handshake(far, &served, &script).await;
        });
        let wish = Wish { style: Style::Structured, ..Wish::to_use("vol") };
        let client = culvert_nbd::client::Client::connect(near, wish).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), client.read(0, 512)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{what}: no end"));
        assert!(matches!(answer, Err(ClientError::Protocol(_))), "{what}: {answer:?}");
        drop(client);
        server.await.unwrap();
    }
}

fn chunk(flags: u16, kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = 0x668e_33ef_u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(1u64.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(payload);
    out
}

/// Lets a real server do the handshake, then plays `script` as the answer to the first request.
async fn relay_handshake(mut client: UnixStream, served: &Served, script: &[u8]) {
    let mut server = served.unix().await;
    let (mut from_client, mut from_server) = (vec![0; 4096], vec![0; 4096]);
    loop {
        tokio::select! {
            n = server.read(&mut from_server) => {
                let n = n.unwrap();
                client.write_all(&from_server[..n]).await.unwrap();
            }
            n = client.read(&mut from_client) => {
                let n = n.unwrap();
                if from_client[..n].starts_with(&[0x25, 0x60, 0x95, 0x13]) {
                    let _ = client.write_all(script).await;
                    let mut rest = Vec::new();
                    let _ = client.read_to_end(&mut rest).await;
                    return;
                }
                server.write_all(&from_client[..n]).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_live_sockets_is_survived() {
    let served = serve(Gated::new(MIB, false), limits());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let byte = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(byte).collect()
    };
    for round in 0..60 {
        let (mut stream, bytes) = match round % 3 {
            0 => (served.unix().await, noise(300)),
            1 => (served.unix().await, [vec![0, 0, 0, 3], noise(300)].concat()),
            _ => (raw(&served).await, [request(Command::Read, 0, 64), noise(300)].concat()),
        };
        let _ = stream.write_all(&bytes).await;
    }
    is_well(&served).await;
    eventually(|| served.server.connections().all().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_cache_leave_room_to_others_and_end_with_their_connection() {
    let limits = Limits { in_flight_bytes: 48 << 20, ..limits() };
    let served = serve(Gated::new(1 << 30, true), limits);
    let mut stream = raw(&served).await;
    stream.write_all(&request(Command::Cache, 0, 1 << 30).repeat(100)).await.unwrap();
    // 4 MiB each, and 32 MiB are left. The rest is answered at once, without being done.
    let mut answers = [0; 96 * 16];
    let answered = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut answers));
    answered.await.expect("the others are answered").unwrap();
    let success = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
    assert!(answers.chunks(16).all(|answer| answer.starts_with(&success)), "{answers:x?}");
    assert_eq!(served.export.begun.load(Ordering::SeqCst), 4);
    assert_eq!(served.export.cached.load(Ordering::SeqCst), 16 * MIB);
    // The largest request does not wait for them.
    stream.write_all(&request(Command::Read, 0, 32 * MIB)).await.unwrap();
    served.export.until_begun(5).await;
    drop(stream);
    // They go on in small steps until the server has seen that.
    until_empty_by_steps(&served).await;
    let cached = served.export.cached.load(Ordering::SeqCst);
    assert!(cached < 1 << 30, "{cached} bytes for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_cache_of_any_length_leave_half_of_the_requests_to_others() {
    let limits = Limits { in_flight_requests: 16, ..limits() };
    let served = serve(Gated::new(MIB, true), limits);
    let mut stream = raw(&served).await;
    stream.write_all(&request(Command::Cache, 0, 512).repeat(100)).await.unwrap();
    let mut answers = [0; 92 * 16];
    let answered = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut answers));
    answered.await.expect("the others are answered").unwrap();
    assert_eq!(served.export.begun.load(Ordering::SeqCst), 8);
    drop(stream);
    until_empty_by_steps(&served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_request_to_cache_ends_with_its_connection() {
    let served = serve(Gated::new(1 << 30, true), limits());
    let mut stream = raw(&served).await;
    stream.write_all(&request(Command::Cache, 0, 1 << 30)).await.unwrap();
    served.export.until_begun(1).await;
    drop(stream);
    // It goes on in small steps until the server has seen that.
    until_empty_by_steps(&served).await;
    let cached = served.export.cached.load(Ordering::SeqCst);
    assert!(cached < 1 << 30, "{cached} bytes for nobody");
}
