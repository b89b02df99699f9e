//! A UDP sender at full speed.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use culvert_tests::sys;

/// Datagrams handed to the kernel by one call.
const BATCH: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to send, as 10.0.0.2:9.
    dst: SocketAddr,
    /// Payload bytes of each datagram.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Flows, each sent by a thread of its own from a port of its own.
    #[arg(long, default_value_t = 1)]
    flows: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 5)]
    secs: u64,
    /// Datagrams a second of each flow; as many as the kernel takes if left out.
    #[arg(long)]
    pps: Option<u64>,
}

/// A socket connected to `dst` from any port, in the calling thread's namespace.
pub(crate) fn socket(dst: SocketAddr) -> io::Result<UdpSocket> {
    let any = match dst {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(dst)?;
    Ok(socket)
}

/// Has `send` send batches until `time` has passed, no faster than `pps`; returns the number of packets that the
/// kernel took.
pub(crate) fn repeat(
    time: Duration,
    pps: Option<u64>,
    mut send: impl FnMut(usize) -> io::Result<usize>,
) -> io::Result<u64> {
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            break;
        }
        if let Some(pps) = pps {
            let due = Duration::from_secs_f64(sent as f64 / pps.max(1) as f64);
            if due > elapsed {
                std::thread::sleep(due - elapsed);
                continue;
            }
        }
        match send(BATCH) {
            Ok(count) => sent += u64::try_from(count).unwrap_or(0),
            // A full device queue, or a neighbour that answered "no such port".
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ECONNREFUSED)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(sent)
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    let time = Duration::from_secs(args.secs);
    let started = Instant::now();
    let threads: Vec<_> = (0..args.flows)
        .map(|_| {
            let (dst, size, pps) = (args.dst, args.size, args.pps);
            std::thread::spawn(move || {
                let (socket, payload) = (socket(dst)?, vec![0x42; size]);
                repeat(time, pps, |batch| sys::send_many(&socket, &payload, batch))
            })
        })
        .collect();
    let mut sent = 0;
    for thread in threads {
        sent += thread.join().map_err(|_| "a sending thread died")??;
    }
    crate::print_json(&serde_json::json!({
        "sent": sent,
        "seconds": started.elapsed().as_secs_f64(),
    }));
    Ok(())
}
