//! All network devices of a namespace with one question to the kernel, and a bell that rings when
//! one of them changes: what a thousand ports are watched by.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::device::OperState;
use crate::sys::{self, cvt};

const HEADER_LEN: usize = 16;
const IFINFO_LEN: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_STATS64: u16 = 23;
const IFLA_EXT_MASK: u16 = 29;
/// Leaves the counters out, which are most of an answer.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// The two top bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;
/// Longer than any datagram that the kernel makes of a dump.
const ANSWER_LEN: usize = 64 << 10;

/// A network device as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether frames can flow.
    pub state: OperState,
}

/// The devices of the caller's network namespace, by name.
#[derive(Debug, Default)]
pub struct Links {
    by_name: HashMap<String, Link>,
}

impl Links {
    /// Reads them with one dump.
    ///
    /// # Errors
    /// What the kernel said: no descriptors left, or netlink is refused (seccomp, LSM).
    pub fn read() -> io::Result<Self> {
        let mut links = Links::default();
        dump(RTEXT_FILTER_SKIP_STATS, |datagram| links.take(datagram))?;
        Ok(links)
    }

    /// The device of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Link> {
        self.by_name.get(name).copied()
    }

    /// Whether there is a device of this index, under whatever name.
    #[must_use]
    pub fn has_index(&self, ifindex: u32) -> bool {
        self.by_name.values().any(|link| link.ifindex == ifindex)
    }

    /// Takes the messages of one datagram. True at the end of the dump.
    fn take(&mut self, datagram: &[u8]) -> io::Result<bool> {
        each_link(datagram, |message| {
            if let Some((name, link)) = parse(message) {
                self.by_name.insert(name, link);
            }
        })
    }
}

/// What the kernel counted of packets that a device lost, whoever uses it. All counts only grow
/// while the device exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// The device's index.
    pub ifindex: u32,
    /// Received and bad.
    pub rx_errors: u64,
    /// Received and dropped, by the driver or by the kernel's queue behind it.
    pub rx_dropped: u64,
    /// Not received for want of room in the device.
    pub rx_missed: u64,
    /// Received while nobody was there to take them.
    pub rx_no_handler: u64,
    /// Not sent because of an error.
    pub tx_errors: u64,
    /// Not sent: dropped by the driver or by the device's queue.
    pub tx_dropped: u64,
}

impl LinkCounters {
    /// Those of all devices of the caller's network namespace, by name, with one dump.
    ///
    /// # Errors
    /// As [`Links::read`].
    pub fn read() -> io::Result<HashMap<String, Self>> {
        let mut counters = HashMap::new();
        dump(0, |datagram| {
            each_link(datagram, |message| counters.extend(parse_counters(message)))
        })?;
        Ok(counters)
    }
}

/// Asks the kernel for all devices; `take` gets each datagram and says whether it was the last.
fn dump(filter: u32, mut take: impl FnMut(&[u8]) -> io::Result<bool>) -> io::Result<()> {
    let socket = netlink(0)?;
    let request = dump_request(filter);
    // SAFETY: the buffer is valid for its length; an unconnected netlink socket sends to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut buffer = vec![0u8; ANSWER_LEN];
    loop {
        let len = receive(socket.as_fd(), &mut buffer, 0)?;
        if take(buffer.get(..len).unwrap_or_default())? {
            return Ok(());
        }
    }
}

/// Calls `take` for each device in a datagram. True at the end of the dump.
fn each_link(mut datagram: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    while let (Some(len), Some(kind)) = (read_u32(datagram, 0), read_u16(datagram, 4)) {
        let message = datagram.get(..len as usize).filter(|m| m.len() >= HEADER_LEN);
        let message = message.ok_or(io::ErrorKind::InvalidData)?;
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = read_u32(message, HEADER_LEN).ok_or(io::ErrorKind::InvalidData)?;
                return Err(io::Error::from_raw_os_error(code.cast_signed().wrapping_neg()));
            }
            _ if kind == libc::RTM_NEWLINK => take(message),
            _ => {}
        }
        datagram = datagram.get((len as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn parse(message: &[u8]) -> Option<(String, Link)> {
    let ifindex = read_u32(message, HEADER_LEN + 4)?;
    let flags = read_u32(message, HEADER_LEN + 8)?.cast_signed();
    let state = match (flags & libc::IFF_UP != 0, flags & libc::IFF_RUNNING != 0) {
        (false, _) => OperState::Down,
        (true, false) => OperState::NoCarrier,
        (true, true) => OperState::Up,
    };
    let attributes = message.get(HEADER_LEN + IFINFO_LEN..)?;
    let name = name_of(attributes)?;
    let mtu = attribute(attributes, IFLA_MTU).and_then(|value| read_u32(value, 0)).unwrap_or(0);
    Some((name, Link { ifindex, mtu, state }))
}

fn parse_counters(message: &[u8]) -> Option<(String, LinkCounters)> {
    let ifindex = read_u32(message, HEADER_LEN + 4)?;
    let attributes = message.get(HEADER_LEN + IFINFO_LEN..)?;
    let stats = attribute(attributes, IFLA_STATS64)?;
    // The fields of `struct rtnl_link_stats64`; older kernels have fewer.
    let field = |index: usize| {
        let bytes = stats.get(index * 8..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    let counters = LinkCounters {
        ifindex,
        rx_errors: field(4),
        rx_dropped: field(6),
        rx_missed: field(15),
        rx_no_handler: field(23),
        tx_errors: field(5),
        tx_dropped: field(7),
    };
    Some((name_of(attributes)?, counters))
}

fn name_of(attributes: &[u8]) -> Option<String> {
    let name = attribute(attributes, IFLA_IFNAME)?;
    Some(String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned())
}

fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(read_u16(attributes, 0)?);
        let kind = read_u16(attributes, 2)? & TYPE_MASK;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn dump_request(filter: u32) -> Vec<u8> {
    let len = HEADER_LEN + IFINFO_LEN + 8;
    let mut out = vec![0; len];
    out[0..4].copy_from_slice(&(len as u32).to_ne_bytes());
    out[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    out[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    out[8..12].copy_from_slice(&1u32.to_ne_bytes());
    let attribute = &mut out[HEADER_LEN + IFINFO_LEN..];
    attribute[0..2].copy_from_slice(&8u16.to_ne_bytes());
    attribute[2..4].copy_from_slice(&IFLA_EXT_MASK.to_ne_bytes());
    attribute[4..8].copy_from_slice(&filter.to_ne_bytes());
    out
}

/// Readable when a device of the namespace that it was made in has changed.
#[derive(Debug)]
pub struct LinkBell {
    fd: OwnedFd,
}

impl LinkBell {
    /// Listens to the kernel's notices in the caller's network namespace.
    ///
    /// # Errors
    /// What the kernel said: no descriptors left, or netlink is refused (seccomp, LSM).
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: netlink(libc::RTMGRP_LINK as u32)? })
    }

    /// Throws away what was said: whoever is woken looks at all devices.
    pub fn clear(&self) {
        let mut buffer = [0u8; 256];
        // Overrun (ENOBUFS) is an error once, after which reading goes on.
        for _ in 0..4096 {
            match receive(self.fd.as_fd(), &mut buffer, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    }
}

impl AsRawFd for LinkBell {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

fn netlink(groups: u32) -> io::Result<OwnedFd> {
    let fd = sys::netlink_route()?;
    if groups != 0 {
        // SAFETY: zeroes are a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        sys::bind(fd.as_fd(), &address)?;
    }
    Ok(fd)
}

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    // SAFETY: the buffer is valid and writable for its length.
    let len =
        unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    cvt(i32::try_from(len).unwrap_or(i32::MAX)).map(|len| len as usize)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_as_the_ioctls_know_it() {
        let links = Links::read().unwrap();
        let known = crate::device::Device::by_name("lo").unwrap();
        let link = links.get("lo").unwrap();
        assert_eq!((link.ifindex, link.mtu), (known.ifindex(), known.mtu().unwrap()));
        assert_eq!(link.state, known.state().unwrap());
        assert_eq!(links.get("no-such-dev"), None);
        assert!(links.has_index(link.ifindex) && !links.has_index(u32::MAX));
    }

    #[test]
    fn counters_are_found_by_the_devices_name() {
        let counters = LinkCounters::read().unwrap();
        let device = crate::device::Device::by_name("lo").unwrap();
        assert_eq!(counters["lo"].ifindex, device.ifindex());
        assert!(!counters.contains_key("no-such-dev"));
    }

    #[test]
    fn counters_are_read_in_the_kernels_order_and_missing_ones_are_zero() {
        let attributes = |fields: u64| {
            let mut message = vec![0; HEADER_LEN + IFINFO_LEN];
            message[HEADER_LEN + 4] = 9;
            message.extend([9, 0, 3, 0]);
            message.extend(b"eth0\0\0\0\0");
            message.extend((4 + fields as u16 * 8).to_ne_bytes());
            message.extend(IFLA_STATS64.to_ne_bytes());
            (0..fields).for_each(|field| message.extend((100 + field).to_ne_bytes()));
            message
        };
        let (name, counters) = parse_counters(&attributes(24)).unwrap();
        let all = LinkCounters {
            ifindex: 9,
            rx_errors: 104,
            tx_errors: 105,
            rx_dropped: 106,
            tx_dropped: 107,
            rx_missed: 115,
            rx_no_handler: 123,
        };
        assert_eq!((name.as_str(), counters), ("eth0", all));
        let (_, old) = parse_counters(&attributes(23)).unwrap();
        assert_eq!(old, LinkCounters { rx_no_handler: 0, ..all });
        for cut in 0..attributes(24).len() {
            assert_eq!(parse_counters(&attributes(24)[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_cut_answer_is_an_error_or_no_device_but_never_a_panic() {
        let mut message = vec![0; HEADER_LEN + IFINFO_LEN];
        message.extend([9, 0, 3, 0]);
        message.extend(b"eth0\0\0\0\0");
        message.extend([8, 0, 4, 0, 0xdc, 5, 0, 0]);
        let len = message.len() as u32;
        message[0..4].copy_from_slice(&len.to_ne_bytes());
        message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        message[HEADER_LEN + 4] = 7;
        let mut links = Links::default();
        assert!(!links.take(&message).unwrap());
        let link = links.get("eth0").unwrap();
        assert_eq!(link, Link { ifindex: 7, mtu: 1500, state: OperState::Down });
        for cut in 6..message.len() {
            let mut links = Links::default();
            assert!(links.take(&message[..cut]).is_err() && links.by_name.is_empty(), "{cut}");
        }
        for lie in 0..message.len() as u32 {
            message[0..4].copy_from_slice(&lie.to_ne_bytes());
            let _ = Links::default().take(&message);
        }
    }
}
