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
    /// Too many entries (1,024 devices and addresses per family, 64 ports), or no kernel memory.
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

/// Makes the keys of `table` exactly `wanted`; new keys come before old ones go.
fn replace_keys<K: Pod + Ord>(
    object: &mut Ebpf,
    table: &'static str,
    wanted: &BTreeMap<K, u32>,
) -> Result<(), TableError> {
    let mut map = hash::<K, u32>(object, table)?;
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
    replace_keys(object, "vtep4", &v4)?;
    replace_keys(object, "vtep6", &v6)
}

pub(crate) fn set_tunnel_ports(object: &mut Ebpf, ports: &[u16]) -> Result<(), TableError> {
    let wanted = (0u32..).zip(ports).map(|(format, port)| (port.to_be_bytes(), format)).collect();
    replace_keys::<[u8; 2]>(object, "tunnel_ports", &wanted)
}

/// Slots of each device: from its base up to the base of the next device, or to the end.
pub(crate) fn ranges(bases: &BTreeMap<u32, u32>, max_slots: u32) -> BTreeMap<u32, [u32; 2]> {
    bases
        .iter()
        .map(|(ifindex, base)| {
            let end = bases.values().copied().filter(|other| other > base).min();
            (*ifindex, [*base, end.unwrap_or(max_slots).saturating_sub(*base)])
        })
        .collect()
}

pub(crate) fn set_slot_ranges(
    object: &mut Ebpf,
    ranges: &BTreeMap<u32, [u32; 2]>,
) -> Result<(), TableError> {
    let mut map = hash::<u32, [u32; 2]>(object, "slots")?;
    let present: BTreeSet<u32> = map.keys().collect::<Result<_, _>>().map_err(kernel("slots"))?;
    for (ifindex, range) in ranges {
        map.insert(ifindex, range, 0).map_err(kernel("slots"))?;
    }
    for ifindex in present.iter().filter(|ifindex| !ranges.contains_key(ifindex)) {
        map.remove(ifindex).map_err(kernel("slots"))?;
    }
    Ok(())
}

/// The devices whose packet buffers the tracing program reads.
pub(crate) fn set_watched(object: &mut Ebpf, devices: &BTreeSet<u32>) -> Result<(), TableError> {
    // Indices repeat from namespace to namespace, and the tracepoint sees them all.
    let netns = std::fs::metadata("/proc/thread-self/ns/net")
        .map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata) as u32)
        .map_err(|error| TableError::Kernel { table: "watched", reason: error.to_string() })?;
    replace_keys(object, "watched", &devices.iter().map(|ifindex| (*ifindex, netns)).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_owns_the_slots_up_to_the_base_of_the_next() {
        let bases = BTreeMap::from([(7, 16), (3, 0), (9, 4)]);
        let expected = BTreeMap::from([(3, [0, 4]), (9, [4, 12]), (7, [16, 48])]);
        assert_eq!(ranges(&bases, 64), expected);
    }
}
