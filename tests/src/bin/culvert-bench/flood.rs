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

/// Sends until `time` has passed; returns the number of datagrams that the kernel took.
pub(crate) fn send(socket: &UdpSocket, size: usize, time: Duration) -> io::Result<u64> {
    let payload = vec![0x42; size];
    let end = Instant::now() + time;
    let mut sent = 0;
    while Instant::now() < end {
        match sys::send_many(socket, &payload, BATCH) {
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
            let (dst, size) = (args.dst, args.size);
            std::thread::spawn(move || send(&socket(dst)?, size, time))
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
