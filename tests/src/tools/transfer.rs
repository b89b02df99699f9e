//! A TCP transfer compared byte for byte.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::sys;
use crate::tools::Random;

const BLOCK: usize = 64 * 1024;
/// No byte for so long means that the connection is stuck.
const STALL: Duration = Duration::from_secs(20);
/// A path that needs longer than this loses most of what is sent.
const LIMIT: Duration = Duration::from_secs(60);

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection failed or got stuck; the path loses or blocks packets.
    #[error("{side}: {error} after {done} of {total} bytes")]
    Io {
        /// Which end.
        side: &'static str,
        /// What the system said.
        error: io::Error,
        /// Bytes done so far.
        done: usize,
        /// Bytes wanted.
        total: usize,
    },
    /// The path changed data and hid it behind a good checksum.
    #[error("{side}: wrong data within the block at byte {at}")]
    Corrupt {
        /// Which end.
        side: &'static str,
        /// Where the block with the difference starts.
        at: usize,
    },
}

/// Sends `bytes` bytes both ways at once over one connection from `client` to `dst` in `server`, and compares all.
///
/// Returns how long it took.
///
/// # Errors
/// If the connection fails, stalls for twenty seconds, takes more than a minute, or delivers anything but what was sent.
pub fn tcp_transfer(
    client: &Netns,
    server: &Netns,
    dst: IpAddr,
    bytes: usize,
) -> Result<Duration, TransferError> {
    let fail = |side| move |error| TransferError::Io { side, error, done: 0, total: bytes };
    let listener =
        server.enter(|| TcpListener::bind(SocketAddr::new(dst, 0))).map_err(fail("server"))?;
    let address = listener.local_addr().map_err(fail("server"))?;
    let started = Instant::now();
    let near = client
        .enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
        .map_err(fail("client"))?;
    // The last packet of the handshake may be lost: accepting must not wait for ever.
    sys::wait_readable([listener.as_fd()], STALL).map_err(fail("server"))?;
    listener.set_nonblocking(true).map_err(fail("server"))?;
    let (far, _) = listener.accept().map_err(fail("server"))?;
    far.set_nonblocking(false).map_err(fail("server"))?;
    let end = started + LIMIT;
    for stream in [&near, &far] {
        for result in [stream.set_read_timeout(Some(STALL)), stream.set_write_timeout(Some(STALL))]
        {
            result.map_err(fail("socket"))?;
        }
    }
    std::thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| write_all(&near, "client", 1, bytes, end)),
            scope.spawn(|| write_all(&far, "server", 2, bytes, end)),
            scope.spawn(|| read_all(&far, "server", 1, bytes, end)),
            scope.spawn(|| read_all(&near, "client", 2, bytes, end)),
        ];
        let mut result = Ok(());
        for task in tasks {
            let done = task.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(done);
        }
        result
    })?;
    Ok(started.elapsed())
}

fn write_all(
    mut stream: &TcpStream,
    side: &'static str,
    seed: u64,
    total: usize,
    end: Instant,
) -> Result<(), TransferError> {
    let mut random = Random::new(seed);
    let mut block = vec![0; BLOCK];
    let mut done = 0;
    while done < total {
        if Instant::now() > end {
            let error = io::ErrorKind::TimedOut.into();
            return Err(TransferError::Io { side, error, done, total });
        }
        let block = &mut block[..BLOCK.min(total - done)];
        random.fill(block);
        stream.write_all(block).map_err(|error| TransferError::Io { side, error, done, total })?;
        done += block.len();
    }
    Ok(())
}

fn read_all(
    mut stream: &TcpStream,
    side: &'static str,
    seed: u64,
    total: usize,
    end: Instant,
) -> Result<(), TransferError> {
    let mut random = Random::new(seed);
    let (mut got, mut wanted) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut done = 0;
    while done < total {
        if Instant::now() > end {
            let error = io::ErrorKind::TimedOut.into();
            return Err(TransferError::Io { side, error, done, total });
        }
        let len = BLOCK.min(total - done);
        let (got, wanted) = (&mut got[..len], &mut wanted[..len]);
        stream.read_exact(got).map_err(|error| TransferError::Io { side, error, done, total })?;
        random.fill(wanted);
        if got != wanted {
            return Err(TransferError::Corrupt { side, at: done });
        }
        done += len;
    }
    Ok(())
}
