//! UDP datagrams compared byte for byte.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::netns::Netns;
use crate::sys;
use crate::tools::Random;

/// Datagrams of one size, sent one by one or by GSO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams {
    /// Payload bytes of each.
    pub size: usize,
    /// How many.
    pub count: usize,
    /// How many go in one send, cut by the kernel or the device (`UDP_SEGMENT`); 1 is a plain send.
    pub per_send: usize,
    /// Leave the UDP checksum zero (IPv4 only).
    pub no_checksum: bool,
}

impl Datagrams {
    /// `count` plain datagrams of `size` bytes.
    pub fn plain(size: usize, count: usize) -> Self {
        Self { size, count, per_send: 1, no_checksum: false }
    }

    /// `count` datagrams of `size` bytes, `per_send` in each send.
    pub fn gso(size: usize, count: usize, per_send: usize) -> Self {
        Self { size, count, per_send, no_checksum: false }
    }
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramReport {
    /// Datagrams sent.
    pub sent: usize,
    /// Datagrams that arrived exactly as one of those sent, each counted once.
    pub intact: usize,
    /// Those that arrived so, but a second later than they were sent, or more.
    pub late: usize,
    /// Datagrams of another size, other contents, or that came twice.
    pub wrong: usize,
}

impl DatagramReport {
    /// Whether everything arrived, once, and unchanged.
    pub fn is_perfect(&self) -> bool {
        self.sent == self.intact && self.wrong == 0
    }

    /// Whether everything arrived, once, and unchanged, however late: a machine that stands still for a moment loses
    /// nothing.
    pub fn is_complete(&self) -> bool {
        self.sent == self.intact + self.late && self.wrong == 0
    }
}

impl DatagramReport {
    /// Counts one that is not of those that are expected now.
    fn straggler(&mut self, missing: &mut Vec<Vec<u8>>, arrived: &[u8]) {
        match missing.iter().position(|sent| sent == arrived) {
            Some(at) => {
                missing.swap_remove(at);
                self.late += 1;
            }
            None => self.wrong += 1,
        }
    }
}

/// Sends datagrams from `client` to `dst` in `server` and compares what arrives. Datagrams are unlike each other.
///
/// A send waits for the previous one's datagrams, so nothing is lost in socket buffers.
///
/// # Errors
/// If the sockets cannot be set up, or a send is refused (`EMSGSIZE` above 64 KB or a known smaller path MTU).
pub fn udp_exchange(
    client: &Netns,
    server: &Netns,
    dst: IpAddr,
    what: Datagrams,
) -> io::Result<DatagramReport> {
    let receiver = server.enter(|| UdpSocket::bind(SocketAddr::new(dst, 0)))?;
    sys::force_receive_buffer(&receiver, 8 << 20)?;
    let any: IpAddr = match dst {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let sender = client.enter(|| UdpSocket::bind(SocketAddr::new(any, 0)))?;
    client.enter(|| sender.connect(receiver.local_addr()?))?;
    if what.no_checksum {
        sys::set_no_checksum(&sender, true)?;
    }
    if what.per_send > 1 {
        let size =
            u16::try_from(what.size).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        sys::set_udp_segment(&sender, size)?;
    }
    let mut report = DatagramReport::default();
    let mut buffer = vec![0; 65_536];
    let mut missing: Vec<Vec<u8>> = Vec::new();
    while report.sent < what.count {
        let wave = what.per_send.min(what.count - report.sent);
        let mut expected: Vec<Vec<u8>> = (0..wave)
            .map(|i| Random::bytes(u64::try_from(report.sent + i).unwrap_or(0) ^ 0x5eed, what.size))
            .collect();
        sender.send(&expected.concat())?;
        report.sent += wave;
        // The first datagram may wait for a neighbour to resolve.
        receiver.set_read_timeout(Some(Duration::from_millis(1000)))?;
        while !expected.is_empty() {
            match receiver.recv(&mut buffer) {
                Ok(len) => match expected.iter().position(|e| e == &buffer[..len]) {
                    Some(at) => {
                        expected.swap_remove(at);
                        report.intact += 1;
                    }
                    None => report.straggler(&mut missing, &buffer[..len]),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        missing.append(&mut expected);
    }
    // What is missing has a last chance, and what comes beside it is wrong.
    while !missing.is_empty()
        && let Ok(len) = receiver.recv(&mut buffer)
    {
        report.straggler(&mut missing, &buffer[..len]);
    }
    receiver.set_nonblocking(true)?;
    while let Ok(len) = receiver.recv(&mut buffer) {
        report.straggler(&mut missing, &buffer[..len]);
    }
    Ok(report)
}
