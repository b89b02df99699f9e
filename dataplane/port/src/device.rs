//! What a network device is and can do, by the classic ioctls: nothing here is per packet.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use thiserror::Error;

use crate::sys::{self, cvt, errno};

/// `ETHTOOL_` commands of `linux/ethtool.h`.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// The string set of feature names, and the length of one.
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// Names of interfaces in a message.
const NAMES_SHOWN: usize = 16;
/// More features than any kernel has: a bound on what is believed.
const FEATURES_MAX: usize = 512;

/// Why a question about a device has no answer.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Check the spelling and the network namespace.
    #[error("no interface '{name}': existing are {existing}")]
    NoName {
        /// The name asked for.
        name: String,
        /// Names of the interfaces of this namespace.
        existing: String,
    },
    /// The interface was deleted or moved to another network namespace: bring it back.
    #[error("interface '{name}' (index {ifindex}) is gone")]
    Gone {
        /// Its name when it was first found.
        name: String,
        /// Its index.
        ifindex: u32,
    },
    /// Choose a name of 1 to 15 bytes without '/' or blanks.
    #[error("'{0}' is not a legal interface name (1 to 15 bytes, no '/', no blanks)")]
    BadName(String),
    /// Anything else the kernel refused.
    #[error("cannot {step} of interface '{name}': {source}")]
    Os {
        /// What was asked.
        step: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether frames can flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperState {
    /// Administratively down.
    Down,
    /// Up, without carrier.
    NoCarrier,
    /// Up with carrier.
    Up,
}

/// Receive and transmit queues in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues {
    /// Receive queues.
    pub rx: u32,
    /// Transmit queues.
    pub tx: u32,
}

/// The offloads of a device that are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    active: Vec<String>,
}

impl Features {
    /// True when the feature of this name (as in `ethtool -k` of the kernel's own spelling, such
    /// as `tx-udp-segmentation`, `tx-tcp-segmentation`, `rx-vlan-hw-parse`) is on.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        self.active.iter().any(|f| f == name)
    }

    /// Names of all features that are on.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.active.iter().map(String::as_str)
    }
}

impl<'a> FromIterator<&'a str> for Features {
    /// Features of these names, and no others.
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        Self { active: names.into_iter().map(str::to_owned).collect() }
    }
}

/// A network device of the namespace in which it was looked up. It is known by its index, so that
/// a rename changes nothing.
#[derive(Debug)]
pub struct Device {
    /// Any socket: the ioctls answer for the namespace it was made in.
    socket: OwnedFd,
    ifindex: u32,
    name: String,
}

impl Device {
    /// Finds a device by name.
    ///
    /// # Errors
    /// [`DeviceError::NoName`], with the names that exist, when there is none.
    pub fn by_name(name: &str) -> Result<Self, DeviceError> {
        let mut req = request(name)?;
        let socket = any_socket(name)?;
        ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &mut req).map_err(|e| {
            let name = name.to_owned();
            match errno(&e) {
                libc::ENODEV => DeviceError::NoName { name, existing: existing_names() },
                _ => DeviceError::Os { step: "read the index", name, source: e },
            }
        })?;
        // SAFETY: SIOCGIFINDEX has set this member; any bits are a valid integer.
        let ifindex = unsafe { req.ifr_ifru.ifru_ifindex } as u32;
        Ok(Self { socket, ifindex, name: name.to_owned() })
    }

    /// Finds a device by index.
    ///
    /// # Errors
    /// [`DeviceError::Gone`] when there is none.
    pub fn by_index(ifindex: u32) -> Result<Self, DeviceError> {
        let name = format!("#{ifindex}");
        let socket = any_socket(&name)?;
        let mut device = Self { socket, ifindex, name };
        device.name = device.name()?;
        Ok(device)
    }

    /// Its index.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Its present name.
    ///
    /// # Errors
    /// [`DeviceError::Gone`].
    pub fn name(&self) -> Result<String, DeviceError> {
        self.named_request().map(|req| name_of(&req))
    }

    /// Its MTU in bytes: the longest packet behind the Ethernet header.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn mtu(&self) -> Result<u32, DeviceError> {
        let req = self.ask(libc::SIOCGIFMTU as _, "read the MTU")?;
        // SAFETY: SIOCGIFMTU has set this member; any bits are a valid integer.
        Ok(unsafe { req.ifr_ifru.ifru_mtu } as u32)
    }

    /// Its MAC address.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn mac(&self) -> Result<[u8; 6], DeviceError> {
        let req = self.ask(libc::SIOCGIFHWADDR as _, "read the MAC address")?;
        // SAFETY: SIOCGIFHWADDR has set this member; any bits are valid integers.
        let [a, b, c, d, e, f, ..] = unsafe { req.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok([a, b, c, d, e, f].map(|byte| byte as u8))
    }

    /// Whether frames can flow.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn state(&self) -> Result<OperState, DeviceError> {
        let req = self.ask(libc::SIOCGIFFLAGS as _, "read the state")?;
        let flags = flags_of(&req);
        Ok(match (flags & libc::IFF_UP != 0, flags & libc::IFF_RUNNING != 0) {
            (false, _) => OperState::Down,
            (true, false) => OperState::NoCarrier,
            (true, true) => OperState::Up,
        })
    }

    /// Its driver, such as `veth` or `mlx5_core`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn driver(&self) -> Result<String, DeviceError> {
        // struct ethtool_drvinfo: command, then driver[32], version[32] and more.
        let mut info = Words::<64>::new(ETHTOOL_GDRVINFO);
        self.ethtool(&mut info.0, "read the driver")?;
        Ok(text(&info.bytes()[4..36]))
    }

    /// Its queues in use; 1 where the driver does not tell.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn queues(&self) -> Result<Queues, DeviceError> {
        // struct ethtool_channels: command, four maxima, then rx, tx, other, combined.
        let mut channels = Words::<9>::new(ETHTOOL_GCHANNELS);
        match self.ethtool(&mut channels.0, "read the queues") {
            Ok(()) => {
                let [.., rx, tx, _, combined] = channels.0;
                Ok(Queues { rx: (rx + combined).max(1), tx: (tx + combined).max(1) })
            }
            Err(DeviceError::Os { source, .. }) if errno(&source) == libc::EOPNOTSUPP => {
                Ok(Queues { rx: 1, tx: 1 })
            }
            Err(e) => Err(e),
        }
    }

    /// Its offloads that are on.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn features(&self) -> Result<Features, DeviceError> {
        const STEP: &str = "read the offloads";
        // struct ethtool_sset_info: command, reserved, mask of sets (64 bits), a length per set.
        let mut sets: [u32; 5] = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
        self.ethtool(&mut sets, STEP)?;
        let count = (sets[4] as usize).min(FEATURES_MAX);
        // struct ethtool_gstrings: command, set, length, then the names.
        let mut names = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        (names[0], names[1], names[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32);
        self.ethtool(&mut names, STEP)?;
        // struct ethtool_gfeatures: command, blocks, then per block of 32 features
        // available, requested, active, never_changed.
        let blocks = count.div_ceil(32);
        let mut bits = vec![0u32; 2 + blocks * 4];
        (bits[0], bits[1]) = (ETHTOOL_GFEATURES, blocks as u32);
        self.ethtool(&mut bits, STEP)?;
        let name_bytes: Vec<u8> = names[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let active = name_bytes
            .chunks_exact(ETH_GSTRING_LEN)
            .enumerate()
            .filter(|(i, _)| bits[2 + i / 32 * 4 + 2] >> (i % 32) & 1 != 0)
            .map(|(_, name)| text(name))
            .collect();
        Ok(Features { active })
    }

    fn error(&self, step: &'static str, source: io::Error) -> DeviceError {
        let (name, ifindex) = (self.name.clone(), self.ifindex);
        match errno(&source) {
            libc::ENODEV => DeviceError::Gone { name, ifindex },
            _ => DeviceError::Os { step, name, source },
        }
    }

    fn named_request(&self) -> Result<libc::ifreq, DeviceError> {
        request_by_index(self.socket.as_raw_fd(), self.ifindex)
            .map_err(|e| self.error("read the name", e))
    }

    fn ask(&self, command: libc::c_ulong, step: &'static str) -> Result<libc::ifreq, DeviceError> {
        let mut req = self.named_request()?;
        ioctl(self.socket.as_raw_fd(), command, &mut req).map_err(|e| self.error(step, e))?;
        Ok(req)
    }

    /// `data` starts with the command, and is as long as the command's structure at least.
    fn ethtool(&self, data: &mut [u32], step: &'static str) -> Result<(), DeviceError> {
        let mut req = self.named_request()?;
        req.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &mut req).map_err(|e| self.error(step, e))
    }
}

/// A structure of ethtool as 32-bit words, the first of which is the command.
struct Words<const N: usize>([u32; N]);

impl<const N: usize> Words<N> {
    fn new(command: u32) -> Self {
        let mut words = [0; N];
        words[0] = command;
        Self(words)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }
}

/// Names and indices of all devices of the caller's network namespace, by index.
#[must_use]
pub fn list() -> Vec<(u32, String)> {
    let mut all = Vec::new();
    // SAFETY: the list ends with an entry without name, is valid until freed, and is freed once.
    unsafe {
        let head = libc::if_nameindex();
        let mut at = head;
        while !at.is_null() && !(*at).if_name.is_null() {
            let name = CStr::from_ptr((*at).if_name).to_string_lossy().into_owned();
            all.push(((*at).if_index, name));
            at = at.add(1);
        }
        if !head.is_null() {
            libc::if_freenameindex(head);
        }
    }
    all.sort_unstable();
    all
}

/// A request that names a device.
pub(crate) fn request(name: &str) -> Result<libc::ifreq, DeviceError> {
    let legal = !matches!(name, "" | "." | "..")
        && name.len() < libc::IFNAMSIZ
        && !name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
    if !legal {
        return Err(DeviceError::BadName(name.to_owned()));
    }
    let mut req = empty_request();
    for (slot, byte) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    Ok(req)
}

fn empty_request() -> libc::ifreq {
    // SAFETY: zeroes are a valid ifreq: an empty name and a null union.
    unsafe { std::mem::zeroed() }
}

fn request_by_index(fd: RawFd, ifindex: u32) -> io::Result<libc::ifreq> {
    let mut req = empty_request();
    req.ifr_ifru.ifru_ifindex = ifindex as i32;
    ioctl(fd, libc::SIOCGIFNAME as _, &mut req)?;
    Ok(req)
}

fn flags_of(req: &libc::ifreq) -> i32 {
    // SAFETY: called after SIOCGIFFLAGS, which has set this member; any bits are valid.
    i32::from(unsafe { req.ifr_ifru.ifru_flags })
}

fn name_of(req: &libc::ifreq) -> String {
    text(&req.ifr_name.map(|c| c as u8))
}

/// Text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes)).into_owned()
}

fn ioctl(fd: RawFd, command: libc::c_ulong, req: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every command used here takes an ifreq; a data pointer in it, where the command has
    // one, is to a live buffer that is as long as the command needs.
    cvt(unsafe { libc::ioctl(fd, command, std::ptr::from_mut(req)) })?;
    Ok(())
}

fn any_socket(name: &str) -> Result<OwnedFd, DeviceError> {
    sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM).map_err(|source| DeviceError::Os {
        step: "open a socket to ask",
        name: name.to_owned(),
        source,
    })
}

fn existing_names() -> String {
    some_of(list().into_iter().map(|(_, name)| name).collect())
}

/// Names for a message that people read: a host may have thousands.
fn some_of(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMES_SHOWN);
    names.truncate(NAMES_SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_those_that_exist() {
        let error = Device::by_name("no-such-dev").unwrap_err().to_string();
        assert!(error.starts_with("no interface 'no-such-dev': existing are "), "{error}");
        assert!(error.contains("lo"), "{error}");
    }

    #[test]
    fn a_message_names_only_some_of_many_interfaces() {
        let names = |n: usize| (0..n).map(|i| format!("t{i}")).collect::<Vec<_>>();
        assert_eq!(some_of(names(0)), "none");
        assert_eq!(some_of(names(2)), "t0, t1");
        assert!(some_of(names(1000)).ends_with("t15 and 984 more"));
    }

    #[test]
    fn illegal_names_are_refused_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a/b", "a b", "sixteen-bytes-ab", "nul\0"] {
            assert!(matches!(Device::by_name(name), Err(DeviceError::BadName(_))), "{name:?}");
        }
    }

    #[test]
    fn loopback_is_found_by_name_and_by_index() {
        let lo = Device::by_name("lo").unwrap();
        let same = Device::by_index(lo.ifindex()).unwrap();
        assert_eq!(same.name().unwrap(), "lo");
        assert!(lo.mtu().unwrap() >= 1280);
        assert_eq!(lo.mac().unwrap(), [0; 6]);
        assert_eq!(lo.queues().unwrap(), Queues { rx: 1, tx: 1 });
        assert!(lo.features().unwrap().is_on("loopback"));
        assert!(matches!(Device::by_index(u32::MAX >> 1), Err(DeviceError::Gone { .. })));
    }
}
