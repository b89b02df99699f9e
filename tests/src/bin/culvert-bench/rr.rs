//! Request and response, one at a time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::flood;

/// Payload bytes of a request and of its response.
const SIZE: usize = 32;
/// A UDP response that takes longer is lost.
const LOST: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Server: the address to listen on. Client: the server's.
    address: SocketAddr,
    /// Be the client.
    #[arg(long)]
    client: bool,
    /// TCP instead of UDP.
    #[arg(long)]
    tcp: bool,
    /// How long the client asks, in seconds.
    #[arg(long, default_value_t = 5)]
    secs: u64,
}

/// What a client measured.
pub(crate) struct Latency {
    pub(crate) requests: u64,
    pub(crate) lost: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Answers datagrams with themselves until `stop` says so.
pub(crate) fn serve_udp(socket: &UdpSocket, stop: impl Fn() -> bool) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 2048];
    while !stop() {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                let _ = socket.send_to(&buffer[..len], from)?;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Asks over a connected UDP socket for `time`.
pub(crate) fn ask_udp(socket: &UdpSocket, time: Duration) -> io::Result<Latency> {
    socket.set_read_timeout(Some(LOST))?;
    let mut number = 0u64;
    measure(time, || {
        number += 1;
        let mut request = [0; SIZE];
        request[..8].copy_from_slice(&number.to_le_bytes());
        socket.send(&request)?;
        let mut response = [0; SIZE];
        loop {
            match socket.recv(&mut response) {
                // An answer to a request that was given up is not counted twice.
                Ok(_) if response != request => {}
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    })
}

fn serve_tcp(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; SIZE];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer)?;
    }
    Ok(())
}

fn ask_tcp(mut stream: &TcpStream, time: Duration) -> io::Result<Latency> {
    stream.set_nodelay(true)?;
    measure(time, || {
        let mut buffer = [0; SIZE];
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        Ok(true)
    })
}

/// Repeats `ask`, which says whether an answer came, until `time` is over.
fn measure(time: Duration, mut ask: impl FnMut() -> io::Result<bool>) -> io::Result<Latency> {
    // One nanosecond to ten seconds with three digits.
    let mut histogram =
        Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other)?;
    let mut lost = 0;
    let end = Instant::now() + time;
    while Instant::now() < end {
        let asked = Instant::now();
        if ask()? {
            histogram
                .saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
        } else {
            lost += 1;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "latencies below ten seconds")]
    let micros = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Latency { requests: histogram.len(), lost, p50_us: micros(0.5), p99_us: micros(0.99) })
}

pub(crate) fn main(args: &Args) -> crate::CommandResult {
    let time = Duration::from_secs(args.secs);
    let latency = match (args.client, args.tcp) {
        (false, false) => return Ok(serve_udp(&UdpSocket::bind(args.address)?, || false)?),
        (false, true) => {
            let listener = TcpListener::bind(args.address)?;
            for stream in listener.incoming() {
                serve_tcp(stream?)?;
            }
            return Ok(());
        }
        (true, false) => ask_udp(&flood::socket(args.address)?, time)?,
        (true, true) => ask_tcp(&TcpStream::connect(args.address)?, time)?,
    };
    crate::print_json(&serde_json::json!({
        "requests": latency.requests,
        "lost": latency.lost,
        "p50_us": latency.p50_us,
        "p99_us": latency.p99_us,
    }));
    Ok(())
}
