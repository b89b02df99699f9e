//! Which packets a watch is about.

use culvert_model::PortId;
use culvert_wire::bpf::{Bytes, Program};
use culvert_wire::format::Formats;
use culvert_wire::packet::Packet;
use culvert_wire::shard::ShardHeader;

use super::pieces::Pieces;
use crate::tables::Tables;
use crate::worker::device::Role;

/// Bytes of outer headers at most.
const HEADERS_MAX: usize = 256;

/// Ports, the underlay, and a filter.
#[derive(Clone, Debug, Default)]
pub struct Select {
    /// Only these ports, and the underlay if it is named; all where neither is.
    pub ports: Vec<PortId>,
    /// The underlay's devices.
    pub underlay: bool,
    /// A filter; none takes all.
    pub program: Option<Program>,
    /// Whether the filter is about the inner frame of a tunnel packet; a tenant's frame is one.
    pub inner: bool,
}

impl Select {
    /// Whether a packet of this device is meant.
    pub fn takes(&self, tables: &Tables, role: Role, packet: &Pieces<'_>) -> bool {
        self.takes_device(tables, role) && self.takes_packet(tables.formats(), role, packet)
    }

    fn takes_device(&self, tables: &Tables, role: Role) -> bool {
        if self.ports.is_empty() && !self.underlay {
            return true;
        }
        match role {
            Role::Underlay(_) => self.underlay,
            Role::Tenant(index) => {
                tables.port(index).is_some_and(|port| self.ports.contains(&port.id))
            }
        }
    }

    fn takes_packet(&self, formats: &Formats, role: Role, packet: &Pieces<'_>) -> bool {
        let Some(program) = &self.program else { return true };
        match (role, self.inner) {
            (Role::Underlay(_), true) => {
                match inner_offset(formats, &packet.to_vec(HEADERS_MAX), packet.len()) {
                    Some(at) => program.matches(&packet.behind(at)),
                    None => false,
                }
            }
            _ => program.matches(packet),
        }
    }
}

/// Where the inner frame of a tunnel packet starts. A segment of a frame that was cut has none.
pub fn inner_offset(formats: &Formats, head: &[u8], frame_len: usize) -> Option<usize> {
    let outer = Packet::parse(head, frame_len).ok()?;
    let message = head.get(usize::from(outer.payload)..)?;
    let mut carried = formats.carried_by(outer.proto, outer.dst_port(head));
    if carried.any(|(_, format)| format.is_shards()) {
        let header = head.get(usize::from(outer.l4)..usize::from(outer.payload))?;
        let shape = ShardHeader::read(header).ok()?.shape;
        // The block is in front of it.
        return (shape.segments() == 1)
            .then(|| usize::from(outer.payload) + usize::from(shape.block_len()));
    }
    let found = formats.decap(outer.proto, outer.dst_port(head), message)?;
    Some(usize::from(outer.payload) + found.ok()?.1.header_len)
}
