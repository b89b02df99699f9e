//! The maps of the packet path, by what they hold.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::BorrowedFd,
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, MapData, MapError, PerCpuArray, XskMap},
};
use thiserror::Error;

use crate::{counter::Counter, privilege::chain};

/// Why a table of the programs cannot be changed. The table is as before, or, where several
/// entries were to change, as if the call had ended early: repeat it.
#[derive(Debug, Error)]
pub enum TableError {
    /// Load the programs with more slots, or use a lower one.
    #[error("slot {slot} does not exist: there are {max_slots}")]
    Slot {
        /// The slot asked for.
        slot: u32,
        /// The number of slots.
        max_slots: u32,
    },
    /// Bind the socket before it is put into a slot, and only `AF_XDP` sockets.
    #[error("slot {slot} takes only a bound AF_XDP socket: {reason}")]
    Socket {
        /// The slot asked for.
        slot: u32,
        /// The kernel's answer.
        reason: String,
    },
    /// Give packet sockets only, and the process the capability to attach programs (`CAP_BPF`).
    #[error("the filter of a packet socket is refused: {reason}")]
    Filter {
        /// The kernel's answer.
        reason: String,
    },
    /// Too many entries (8,192 devices, 1,024 addresses per family, 64 ports), or no kernel memory.
    #[error("table {table}: {reason}")]
    Kernel {
        /// The map's name.
        table: &'static str,
        /// The kernel's answer.
        reason: String,
    },
}

fn kernel(table: &'static str) -> impl Fn(MapError) -> TableError {
    move |error| TableError::Kernel { table, reason: chain(&error) }
}

fn hash<'a, K: Pod, V: Pod>(
    object: &'a mut Ebpf,
    table: &'static str,
) -> Result<HashMap<&'a mut MapData, K, V>, TableError> {
    let map = object
        .map_mut(table)
        .ok_or(TableError::Kernel { table, reason: "not in the object".to_owned() })?;
    HashMap::try_from(map).map_err(kernel(table))
}

/// Makes the entries of `table` exactly `wanted`; new keys come before old ones go.
fn replace<K: Pod + Ord, V: Pod>(
    object: &mut Ebpf,
    table: &'static str,
    wanted: &BTreeMap<K, V>,
) -> Result<(), TableError> {
    let mut map = hash::<K, V>(object, table)?;
    let present: BTreeSet<K> = map.keys().collect::<Result<_, _>>().map_err(kernel(table))?;
    for (key, value) in wanted {
        map.insert(key, value, 0).map_err(kernel(table))?;
    }
    for key in present.iter().filter(|key| !wanted.contains_key(*key)) {
        map.remove(key).map_err(kernel(table))?;
    }
    Ok(())
}

pub(crate) fn set_vteps(object: &mut Ebpf, addresses: &[IpAddr]) -> Result<(), TableError> {
    let mut v4: BTreeMap<[u8; 4], u32> = BTreeMap::new();
    let mut v6: BTreeMap<[u8; 16], u32> = BTreeMap::new();
    for address in addresses {
        match address {
            IpAddr::V4(address) => drop(v4.insert(address.octets(), 0)),
            IpAddr::V6(address) => drop(v6.insert(address.octets(), 0)),
        }
    }
    replace(object, "vtep4", &v4)?;
    replace(object, "vtep6", &v6)
}

/// What carries tunnel packets.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// UDP to this port.
    Udp(u16),
    /// Packets that look like TCP segments to this port.
    Tcp(u16),
    /// This IP protocol: none that hosts act upon.
    Ip(u8),
}

impl Carrier {
    /// `struct carrier` of the program.
    fn key(self) -> [u8; 4] {
        let (port, protocol) = match self {
            Carrier::Udp(port) => (port, 17),
            Carrier::Tcp(port) => (port, 6),
            Carrier::Ip(protocol) => (0, protocol),
        };
        let [high, low] = port.to_be_bytes();
        [high, low, protocol, 0]
    }
}

/// Bits of a byte that have a value in each packet of a format.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct HeaderTest {
    /// The byte, from the start of the tunnel header.
    pub offset: u8,
    /// The bits of that byte that are looked at.
    pub mask: u8,
    /// Their value; 0 elsewhere.
    pub value: u8,
}

/// A format: what carries it, and how its packets are told from others there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// What carries it.
    pub carrier: Carrier,
    /// All of these hold. None at all: whatever comes is of the format.
    pub tests: Vec<HeaderTest>,
}

impl From<Carrier> for Carried {
    /// Whatever the carrier brings.
    fn from(carrier: Carrier) -> Carried {
        Carried { carrier, tests: Vec::new() }
    }
}

/// `MAX_FORMATS` and `HEAD` of the program.
const FORMATS_MAX: usize = 4;
const HEAD_LEN: usize = 16;

/// `struct signature` of the program: masks, and the values under them.
type Signature = [[u8; HEAD_LEN]; 2];

/// `struct signatures` of the program: how many, and these.
type Signatures = [u64; 1 + FORMATS_MAX * 2 * HEAD_LEN / 8];

/// What tells a format; none where that is behind what the program looks at, or nothing at all.
fn signature(format: &Carried) -> Option<Signature> {
    let mut signature = [[0; HEAD_LEN]; 2];
    let [masks, values] = &mut signature;
    for test in &format.tests {
        *masks.get_mut(usize::from(test.offset))? |= test.mask;
        *values.get_mut(usize::from(test.offset))? |= test.value & test.mask;
    }
    (!format.tests.is_empty()).then_some(signature)
}

/// What tells the formats of one carrier. Where the program cannot look at so much, or one of them is all that comes,
/// everything is taken, and whoever reads the packets tells what is of none.
fn signatures(formats: &[&Carried]) -> Signatures {
    let mut words = [0; _];
    let told: Option<Vec<_>> = formats.iter().map(|format| signature(format)).collect();
    let Some(told) = told.filter(|told| told.len() <= FORMATS_MAX) else { return words };
    let [count, places @ ..] = &mut words;
    *count = told.len() as u64;
    let (bytes, _) = told.as_flattened().as_flattened().as_chunks::<8>();
    for (place, bytes) in places.iter_mut().zip(bytes) {
        *place = u64::from_ne_bytes(*bytes);
    }
    words
}

pub(crate) fn set_carriers(object: &mut Ebpf, formats: &[Carried]) -> Result<(), TableError> {
    let mut by_carrier: BTreeMap<Carrier, Vec<&Carried>> = BTreeMap::new();
    for format in formats {
        let there = by_carrier.entry(format.carrier).or_default();
        if !there.contains(&format) {
            there.push(format);
        }
    }
    let wanted: BTreeMap<[u8; 4], Signatures> =
        by_carrier.iter().map(|(carrier, formats)| (carrier.key(), signatures(formats))).collect();
    replace(object, "carriers", &wanted)
}

/// Gives a device its slots: `first`, and how many.
pub(crate) fn set_slots(
    object: &mut Ebpf,
    ifindex: u32,
    slots: [u32; 2],
) -> Result<(), TableError> {
    hash::<u32, [u32; 2]>(object, "slots")?.insert(ifindex, slots, 0).map_err(kernel("slots"))
}

/// Takes a device's slots away: its frames are dropped from here on.
pub(crate) fn clear_slots(object: &mut Ebpf, ifindex: u32) -> Result<(), TableError> {
    absent_is_fine(hash::<u32, [u32; 2]>(object, "slots")?.remove(&ifindex), "slots")
}

fn absent_is_fine(result: Result<(), MapError>, table: &'static str) -> Result<(), TableError> {
    match result {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other.map_err(kernel(table)),
    }
}

/// Whether the tracing program reads the device's packet buffers.
pub(crate) fn set_watched(
    object: &mut Ebpf,
    ifindex: u32,
    watched: bool,
) -> Result<(), TableError> {
    let table = "watched";
    if !watched {
        return absent_is_fine(hash::<u32, u32>(object, table)?.remove(&ifindex), table);
    }
    // Indices repeat from namespace to namespace, and the tracepoint sees them all.
    let netns = std::fs::metadata("/proc/thread-self/ns/net")
        .map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata) as u32)
        .map_err(|error| TableError::Kernel { table, reason: error.to_string() })?;
    hash::<u32, u32>(object, table)?.insert(ifindex, netns, 0).map_err(kernel(table))
}

fn sockets(object: &mut Ebpf) -> Result<XskMap<&mut MapData>, TableError> {
    let table = "xsks";
    let map = object
        .map_mut(table)
        .ok_or(TableError::Kernel { table, reason: "not in the object".to_owned() })?;
    XskMap::try_from(map).map_err(kernel(table))
}

pub(crate) fn set_socket(
    object: &mut Ebpf,
    slot: u32,
    socket: BorrowedFd<'_>,
) -> Result<(), TableError> {
    let mut map = sockets(object)?;
    map.set(slot, socket, 0).map_err(|error| socket_error(&error, slot))
}

pub(crate) fn clear_socket(object: &mut Ebpf, slot: u32) -> Result<(), TableError> {
    let mut map = sockets(object)?;
    map.unset(slot).map_err(|error| socket_error(&error, slot))
}

fn socket_error(error: &MapError, slot: u32) -> TableError {
    match error {
        MapError::OutOfBounds { max_entries, .. } => {
            TableError::Slot { slot, max_slots: *max_entries }
        }
        _ => TableError::Socket { slot, reason: chain(error) },
    }
}

pub(crate) fn counters(object: &Ebpf) -> Result<Vec<(Counter, u64)>, TableError> {
    let table = "counters";
    let map = object
        .map(table)
        .ok_or(TableError::Kernel { table, reason: "not in the object".to_owned() })?;
    let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(kernel(table))?;
    Counter::ALL
        .iter()
        .map(|counter| Ok((*counter, sum(&map, *counter as u32).map_err(kernel(table))?)))
        .collect()
}

fn sum<T: Borrow<MapData>>(map: &PerCpuArray<T, u64>, index: u32) -> Result<u64, MapError> {
    Ok(map.get(&index, 0)?.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)))
}
