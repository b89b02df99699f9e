//! Frames by hand, through a packet socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::sys;

/// Sends and receives whole Ethernet frames on one device.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// Opens the device `name` in `ns`.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn open(ns: &Netns, name: &str) -> io::Result<Self> {
        let fd = ns.enter(|| sys::packet_socket(sys::interface_index(name)?))?;
        Ok(Self { fd })
    }

    /// Opens the device `name` in `ns` for sending only, past its queueing discipline: the cheapest
    /// way to make load.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn open_to_flood(ns: &Netns, name: &str) -> io::Result<Self> {
        let fd = ns.enter(|| sys::packet_sender(sys::interface_index(name)?))?;
        Ok(Self { fd })
    }

    /// Lets it keep `bytes` of what came and was not taken yet.
    ///
    /// # Errors
    /// If this process is not privileged.
    pub fn keep(&self, bytes: i32) -> io::Result<()> {
        sys::force_receive_buffer(&self.fd, bytes)
    }

    /// Sends the same frame `count` times (at most 64) with one system call; returns how many went.
    ///
    /// # Errors
    /// If the device refuses the first.
    pub fn send_many(&self, frame: &[u8], count: usize) -> io::Result<usize> {
        sys::send_many(&self.fd, frame, count)
    }

    /// Sends one frame, from the destination MAC to the last payload byte.
    ///
    /// # Errors
    /// If the device refuses it: shorter than 14 bytes, or above the MTU.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        sys::send(self.fd.as_fd(), frame).map(drop)
    }

    /// The next incoming frame, or `None` if none comes within `timeout`. A VLAN tag that the device stripped is lost.
    ///
    /// # Errors
    /// If the device went down.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 70_000];
        Ok(sys::receive(self.fd.as_fd(), &mut buffer, timeout)?.map(|len| {
            buffer.truncate(len);
            buffer
        }))
    }

    /// The next incoming frame that `wanted` accepts, or `None` if none comes within `timeout`; with a timeout of zero
    /// among what has already arrived.
    ///
    /// # Errors
    /// If the device went down.
    pub fn receive_matching(
        &self,
        timeout: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                Some(_) if timeout.is_zero() || !left.is_zero() => {}
                _ => return Ok(None),
            }
        }
    }

    /// Throws away what has already arrived.
    ///
    /// # Errors
    /// If the device went down.
    pub fn drain(&self) -> io::Result<()> {
        while self.receive(Duration::ZERO)?.is_some() {}
        Ok(())
    }
}
