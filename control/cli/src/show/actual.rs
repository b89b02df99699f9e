//! What the dataplane reports of itself, as rows and as JSON.

use culvert_model::api;
use serde::Serialize;

use crate::objects::Row;

#[derive(Serialize)]
pub(super) struct ModeRefusal {
    pub(super) mode: String,
    pub(super) reason: String,
}

pub(super) fn refusals(refusals: Vec<api::ModeRefusal>) -> Vec<ModeRefusal> {
    refusals
        .into_iter()
        .map(|api::ModeRefusal { mode, reason }| ModeRefusal { mode, reason })
        .collect()
}

pub(super) fn why_not(refusals: &[ModeRefusal]) -> String {
    let each: Vec<_> = refusals.iter().map(|r| format!("not {}: {}", r.mode, r.reason)).collect();
    each.join("; ")
}

#[derive(Serialize)]
pub(super) struct PortStatus {
    pub(super) id: String,
    pub(super) vnet: String,
    pub(super) attach: String,
    pub(super) device: String,
    pub(super) mode: String,
    pub(super) refusals: Vec<ModeRefusal>,
    pub(super) queues: u32,
    pub(super) mtu: u32,
    pub(super) state: String,
    pub(super) reason: String,
}

impl From<api::PortStatus> for PortStatus {
    fn from(port: api::PortStatus) -> PortStatus {
        PortStatus {
            id: port.id,
            vnet: port.vnet,
            attach: port.attach,
            device: port.device,
            mode: port.mode,
            refusals: refusals(port.refusals),
            queues: port.queues,
            mtu: port.mtu,
            state: port.state,
            reason: port.reason,
        }
    }
}

impl Row for PortStatus {
    const HEADERS: &'static [&'static str] =
        &["port", "vnet", "attach", "device", "mode", "#queues", "#mtu", "state", "notes"];
    fn cells(&self) -> Vec<String> {
        let notes = [self.reason.clone(), why_not(&self.refusals)];
        let notes: Vec<_> = notes.into_iter().filter(|note| !note.is_empty()).collect();
        vec![
            self.id.clone(),
            self.vnet.clone(),
            self.attach.clone(),
            self.device.clone(),
            self.mode.clone(),
            self.queues.to_string(),
            self.mtu.to_string(),
            self.state.clone(),
            notes.join("; "),
        ]
    }
}

#[derive(Serialize)]
pub(super) struct Device {
    pub(super) interface: String,
    pub(super) mode: String,
    pub(super) refusals: Vec<ModeRefusal>,
    pub(super) queues: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// Absent while it is not open.
    pub(super) cut_by: Option<Cutters>,
}

/// Who cuts superframes, by their outer headers: `device`, `kernel`, `dataplane`.
#[derive(Serialize)]
pub(super) struct Cutters {
    udp: String,
    tcp_ipv4: String,
    tcp_ipv6: String,
}

impl Cutters {
    fn in_short(&self) -> String {
        let Cutters { udp, tcp_ipv4, tcp_ipv6 } = self;
        match (udp == tcp_ipv4, tcp_ipv4 == tcp_ipv6) {
            (true, true) => udp.clone(),
            (_, true) => format!("UDP {udp}, TCP {tcp_ipv4}"),
            _ => format!("UDP {udp}, TCP/IPv4 {tcp_ipv4}, TCP/IPv6 {tcp_ipv6}"),
        }
    }
}

impl From<api::UnderlayDevice> for Device {
    fn from(device: api::UnderlayDevice) -> Device {
        Device {
            interface: device.interface,
            mode: device.mode,
            refusals: refusals(device.refusals),
            queues: device.queues,
            mtu: device.mtu,
            up: device.up,
            cut_by: device.cut_by.map(|cut_by| {
                let api::SuperframeCutters { udp, tcp_ipv4, tcp_ipv6 } = cut_by;
                Cutters { udp, tcp_ipv4, tcp_ipv6 }
            }),
        }
    }
}

impl Row for Device {
    const HEADERS: &'static [&'static str] =
        &["interface", "mode", "#queues", "#mtu", "link", "superframes cut by", "notes"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.interface.clone(),
            self.mode.clone(),
            self.queues.to_string(),
            self.mtu.to_string(),
            if self.up { "up" } else { "down" }.to_owned(),
            self.cut_by.as_ref().map_or_else(|| "-".to_owned(), Cutters::in_short),
            why_not(&self.refusals),
        ]
    }
}

#[derive(Serialize)]
pub(super) struct Info {
    pub(super) instance_id: String,
    pub(super) version: String,
    pub(super) generation: u64,
    pub(super) features: Vec<Feature>,
    pub(super) underlay: Vec<Device>,
    pub(super) workers: Vec<Worker>,
}

#[derive(Serialize)]
pub(super) struct Feature {
    pub(super) name: String,
    pub(super) available: bool,
    pub(super) reason: String,
}

#[derive(Serialize)]
pub(super) struct Worker {
    pub(super) index: u32,
    /// Absent: not pinned.
    pub(super) cpu: Option<u32>,
}

impl From<api::Info> for Info {
    fn from(info: api::Info) -> Info {
        let feature =
            |api::KernelFeature { name, available, reason }| Feature { name, available, reason };
        let worker = |api::WorkerInfo { index, cpu }| Worker { index, cpu };
        Info {
            instance_id: info.instance_id,
            version: info.version,
            generation: info.generation,
            features: info.features.into_iter().map(feature).collect(),
            underlay: info.underlay.into_iter().map(Device::from).collect(),
            workers: info.workers.into_iter().map(worker).collect(),
        }
    }
}
