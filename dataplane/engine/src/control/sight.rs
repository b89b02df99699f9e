//! What the control thread knows for captures, traces and explanations: names, and what devices are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use culvert_model::{PortId, Vni, api};
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate, OuterChecksum, OuterFrame};
use culvert_wire::eth::MacAddr;
use culvert_wire::format::{FormatIndex, VXLAN};
use culvert_wire::packet::{IpKind, Packet};
use tonic::Status;

use super::Controller;
use super::devices::Attached;
use crate::sight::Sight;
use crate::sight::trace::Trace;
use crate::tables::{Hop, Reach, VtepEntry};
use crate::worker::device::Role;
use crate::worker::explain::{KnownDevice, explain};
use crate::worker::offload::{Gso, Offload};

/// Bytes of a frame that can be explained: the largest IP packet behind two tags, in a tunnel.
const FRAME_MAX: usize = 65_535 + 14 + 8 + 128;

/// Hop limit of a packet that is said to come from a VTEP.
const OUTER_TTL: u8 = 64;

impl Controller {
    /// The list of watches.
    pub fn sight(&self) -> Arc<Sight> {
        Arc::clone(&self.shared.sight)
    }

    /// What the workers share with this thread.
    pub fn workers(&self) -> Arc<crate::shared::Shared> {
        Arc::clone(&self.shared)
    }

    /// A port of the state.
    ///
    /// # Errors
    /// A status that names it, and those that there are.
    pub fn port_named(&self, name: &str) -> Result<PortId, Status> {
        let found = self.host.as_ref().and_then(|host| host.port(name));
        found.map(|port| port.id.clone()).ok_or_else(|| {
            let ports = self.host.as_ref().map(|host| host.ports().clone()).unwrap_or_default();
            let names: Vec<_> = ports.iter().take(20).map(|port| port.id.to_string()).collect();
            let legal = match names.len() {
                0 => "there is none".to_owned(),
                n if n < ports.len() => format!("some that exist: {}", names.join(", ")),
                _ => format!("those that exist: {}", names.join(", ")),
            };
            Status::invalid_argument(format!("port {name:?}: no such port; {legal}"))
        })
    }

    /// The name of a device by its role; empty where it is gone.
    pub fn device_name(&self, role: Role) -> String {
        let found = self.attached.iter().find(|(_, attached)| attached.wanted.role == role);
        found.map_or_else(String::new, |(name, _)| name.to_string())
    }

    /// The name of a port by its index.
    pub fn port_name(&self, index: u16) -> String {
        let tables = self.shared.tables.load();
        tables.port(index).map_or_else(String::new, |port| port.id.to_string())
    }

    /// The ways to remote VTEPs.
    pub fn paths(&self) -> api::PathList {
        let (tables, now) = (self.shared.tables.load(), Instant::now());
        let vteps = self.known.vteps.iter().filter_map(|(_, index)| tables.vtep(index));
        let path = |vtep: &VtepEntry| {
            let (state, hops) = match &vtep.reach {
                Reach::Hops(hops) => ("reachable", &hops[..]),
                Reach::Pending => ("pending", &[][..]),
                Reach::Unreachable => ("unreachable", &[][..]),
            };
            let device = |hop: &Hop| self.device_name(Role::Underlay(hop.link));
            api::Path {
                vtep: vtep.ip.to_string(),
                source: vtep.source.to_string(),
                state: state.to_owned(),
                devices: hops.iter().map(device).collect(),
                mtu: hops.iter().map(|hop| hop.mtu).min().unwrap_or(0),
                learned_mtu: self.path_mtus.get(vtep.ip, now),
            }
        };
        api::PathList { paths: vteps.map(path).collect() }
    }

    /// What would become of a packet.
    ///
    /// # Errors
    /// The request names something that there is not, or its frame is too long.
    pub fn explain(&self, request: &api::ExplainRequest) -> Result<(Trace, Role), Status> {
        use api::explain_request::From;
        let bad = |message: String| Err(Status::invalid_argument(message));
        if request.frame.len() > FRAME_MAX {
            let len = request.frame.len();
            return bad(format!("frame: {len} bytes; legal is up to {FRAME_MAX}"));
        }
        let Ok(segment_size) = u16::try_from(request.segment_size) else {
            let size = request.segment_size;
            return bad(format!("segment size {size}: legal is up to 65535"));
        };
        let (role, frame) = match &request.from {
            Some(From::Port(name)) => {
                let id = self.port_named(name)?;
                match self.known.ports.get(&id) {
                    Some(index) => (Role::Tenant(index as u16), request.frame.clone()),
                    None => return bad(format!("port {name:?}: no such port")),
                }
            }
            Some(From::Vtep(from)) => {
                (self.underlay_role("")?, self.encapsulated(from, &request.frame)?)
            }
            Some(From::Device(name)) => (self.underlay_role(name)?, request.frame.clone()),
            None => return bad("a packet has to come from a port, a VTEP or a device".to_owned()),
        };
        let off = Offload { known: true, gso: gso_of(&frame, segment_size)?, ..Offload::default() };
        let devices: Vec<_> = self.attached.values().filter_map(known_device).collect();
        let tables = self.shared.tables.load_full();
        let trace = explain(tables, self.opener.arena, &devices, role, &frame, off);
        trace.map(|trace| (trace, role)).map_err(|error| Status::unavailable(error.to_string()))
    }

    /// The role of an underlay device; of the first for an empty name.
    fn underlay_role(&self, name: &str) -> Result<Role, Status> {
        let underlay = |attached: &Attached| matches!(attached.wanted.role, Role::Underlay(_));
        let mut found = self.attached.iter().filter(|(_, attached)| underlay(attached));
        match found.find(|(other, _)| name.is_empty() || other.as_str() == name) {
            Some((_, attached)) => Ok(attached.wanted.role),
            None if name.is_empty() => {
                Err(Status::failed_precondition("the state has no underlay device"))
            }
            None => Err(Status::invalid_argument(format!("{name:?}: no such underlay device"))),
        }
    }

    /// A frame in the outer headers that it would have from a VTEP.
    fn encapsulated(&self, from: &api::ExplainVtep, frame: &[u8]) -> Result<Vec<u8>, Status> {
        let bad = |message: String| Status::invalid_argument(message);
        let src: IpAddr = from
            .address
            .parse()
            .map_err(|_| bad(format!("VTEP {:?}: not an IP address", from.address)))?;
        let vni = Vni::new(from.vni)
            .map_err(|_| bad(format!("VNI {}: legal is 1 to 16777215", from.vni)))?;
        let ours = self.host.as_ref().map_or(&[][..], |host| &host.underlay().addresses);
        let dst = ours
            .iter()
            .find(|ip| ip.is_ipv4() == src.is_ipv4())
            .ok_or_else(|| bad(format!("VTEP {src}: we have no VTEP address of that family")))?;
        let pkt = Packet::parse(frame, frame.len());
        let (flow, tos) = pkt.map_or((0, 0), |pkt| (pkt.flow_hash, pkt.tos));
        let tables = self.shared.tables.load();
        let formats = tables.formats();
        let vnet = tables.vnet_of(vni).map_or(FormatIndex::VXLAN, |vnet| vnet.format);
        let vtep = tables.vtep_of(&src).and_then(|index| tables.vtep(index));
        let format = vtep.and_then(|vtep| vtep.format).unwrap_or(vnet);
        let spec = EncapSpec {
            src_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            dst_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            vlan: None,
            src,
            dst: *dst,
            ttl: OUTER_TTL,
            format: formats.get(format).unwrap_or(&VXLAN),
            mss_option: false,
            vni,
            df: true,
            dscp: DscpMode::Inherit,
        };
        let template = EncapTemplate::new(&spec).map_err(|error| bad(format!("{error:?}")))?;
        let mut bytes = vec![0; template.len()];
        let inner = culvert_wire::checksum::Sum::default().add(frame);
        let sum = OuterChecksum::Full { inner };
        template.emit(&mut bytes, &OuterFrame::new(frame.len(), flow as u16, tos, 0, sum));
        bytes.extend_from_slice(frame);
        Ok(bytes)
    }
}

fn known_device(attached: &Attached) -> Option<KnownDevice> {
    let open = attached.open()?;
    Some(KnownDevice { role: attached.wanted.role, facts: open.facts, tap: open.is_tap() })
}

/// A superframe's kind follows from its headers.
fn gso_of(frame: &[u8], segment_size: u16) -> Result<Option<(Gso, u16)>, Status> {
    if segment_size == 0 {
        return Ok(None);
    }
    let kind = Packet::parse(frame, frame.len()).ok().and_then(|pkt| match pkt.ip {
        IpKind::V4 if pkt.is_tcp() => Some(Gso::TcpV4),
        IpKind::V6 if pkt.is_tcp() => Some(Gso::TcpV6),
        _ if pkt.is_udp() => Some(Gso::UdpL4),
        _ => None,
    });
    match kind {
        Some(kind) => Ok(Some((kind, segment_size))),
        None => Err(Status::invalid_argument("a superframe is TCP or UDP")),
    }
}
