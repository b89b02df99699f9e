//! `culvert show`.

use culvert_model::{Host, RouteScope, api, host_toml};
use serde::Serialize;

use crate::args::{Args, Output, Show, What};
use crate::client::Client;
use crate::error::CliError;
use crate::output::{joined, or_dash, print, print_json, table};

pub(crate) async fn run(args: &Args, show: &Show) -> Result<(), CliError> {
    let mut client = Client::connect(&args.socket).await?;
    match show.what {
        What::Ports => {
            let answer = client.calls.list_ports(api::ListPortsRequest {}).await;
            let ports = client.answer(answer)?.ports.into_iter().map(PortStatus::from);
            rows(args.output, ports.collect())
        }
        What::Info => info(args.output, info_of(&mut client).await?.into()),
        What::Underlay => {
            let info = info_of(&mut client).await?;
            let devices = info.underlay.into_iter().map(Device::from).collect();
            underlay(args.output, wanted(&mut client).await?.as_ref(), devices)
        }
        What::Host => match (args.output, wanted(&mut client).await?) {
            (_, None) => Err(CliError::Other("no state was applied yet".to_owned())),
            (Output::Table, Some(host)) => print(host_toml::to_toml(&host).trim_end()),
            (Output::Json, Some(host)) => print_json(&WholeState::from(&host)),
        },
        // Without a state, these lists are empty.
        What::Vnets => rows(args.output, list(wanted(&mut client).await?.as_ref(), vnets)),
        What::Routes => rows(args.output, list(wanted(&mut client).await?.as_ref(), routes)),
        What::Mappings => rows(args.output, list(wanted(&mut client).await?.as_ref(), mappings)),
        What::Ingress => rows(args.output, list(wanted(&mut client).await?.as_ref(), ingress)),
    }
}

async fn wanted(client: &mut Client) -> Result<Option<Host>, CliError> {
    client.host().await
}

async fn info_of(client: &mut Client) -> Result<api::Info, CliError> {
    let answer = client.calls.get_info(api::GetInfoRequest {}).await;
    client.answer(answer)
}

fn list<T>(host: Option<&Host>, of: impl Fn(&Host) -> Vec<T>) -> Vec<T> {
    host.map(of).unwrap_or_default()
}

/// Something shown as one row of a table, or one object of JSON.
trait Row: Serialize {
    const HEADERS: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

fn rows<T: Row>(output: Output, items: Vec<T>) -> Result<(), CliError> {
    match output {
        Output::Json => print_json(&items),
        Output::Table => print(&table(T::HEADERS, items.iter().map(Row::cells).collect())),
    }
}

#[derive(Serialize)]
struct ModeRefusal {
    mode: String,
    reason: String,
}

fn refusals(refusals: Vec<api::ModeRefusal>) -> Vec<ModeRefusal> {
    refusals
        .into_iter()
        .map(|api::ModeRefusal { mode, reason }| ModeRefusal { mode, reason })
        .collect()
}

fn why_not(refusals: &[ModeRefusal]) -> String {
    let each: Vec<_> = refusals.iter().map(|r| format!("not {}: {}", r.mode, r.reason)).collect();
    each.join("; ")
}

#[derive(Serialize)]
struct PortStatus {
    id: String,
    vnet: String,
    attach: String,
    device: String,
    mode: String,
    refusals: Vec<ModeRefusal>,
    queues: u32,
    mtu: u32,
    state: String,
    reason: String,
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
struct Vnet {
    id: String,
    vni: u32,
    format: &'static str,
    flood: bool,
    miss: &'static str,
    gateways: Vec<Gateway>,
}

#[derive(Serialize)]
struct Gateway {
    ip: String,
    mac: String,
}

fn vnets(host: &Host) -> Vec<Vnet> {
    let gateway = |gateway: &culvert_model::Gateway| Gateway {
        ip: gateway.ip.to_string(),
        mac: gateway.mac.to_string(),
    };
    let vnet = |vnet: &culvert_model::Vnet| Vnet {
        id: vnet.id.to_string(),
        vni: vnet.vni.get(),
        format: vnet.format.name(),
        flood: vnet.flood,
        miss: vnet.miss.name(),
        gateways: vnet.gateways.iter().map(gateway).collect(),
    };
    host.vnets().iter().map(vnet).collect()
}

impl Row for Vnet {
    const HEADERS: &'static [&'static str] =
        &["vnet", "#vni", "format", "flood", "miss", "gateways"];
    fn cells(&self) -> Vec<String> {
        let gateways: Vec<_> = self.gateways.iter().map(|g| g.ip.as_str()).collect();
        vec![
            self.id.clone(),
            self.vni.to_string(),
            self.format.to_owned(),
            if self.flood { "yes" } else { "no" }.to_owned(),
            self.miss.to_owned(),
            joined(&gateways),
        ]
    }
}

/// Exactly one of `port` and `vnet` is present.
#[derive(Serialize)]
struct Route {
    port: Option<String>,
    vnet: Option<String>,
    prefix: String,
    action: &'static str,
    /// Present where the action is `vnet`.
    to_vnet: Option<String>,
}

fn routes(host: &Host) -> Vec<Route> {
    let route = |route: &culvert_model::EgressRoute| {
        let (port, vnet) = match &route.scope {
            RouteScope::Port(id) => (Some(id.to_string()), None),
            RouteScope::Vnet(id) => (None, Some(id.to_string())),
        };
        let (action, to_vnet) = match &route.action {
            culvert_model::RouteAction::Vnet(id) => ("vnet", Some(id.to_string())),
            culvert_model::RouteAction::Local => ("local", None),
            culvert_model::RouteAction::Trap => ("trap", None),
            culvert_model::RouteAction::Drop => ("drop", None),
        };
        Route { port, vnet, prefix: route.prefix.to_string(), action, to_vnet }
    };
    host.routes().iter().map(route).collect()
}

impl Row for Route {
    const HEADERS: &'static [&'static str] = &["of", "prefix", "to"];
    fn cells(&self) -> Vec<String> {
        let of = match (&self.port, &self.vnet) {
            (Some(port), _) => format!("port {port}"),
            (None, vnet) => format!("vnet {}", vnet.as_deref().unwrap_or("-")),
        };
        let to = match &self.to_vnet {
            Some(vnet) => format!("vnet {vnet}"),
            None => self.action.to_owned(),
        };
        vec![of, self.prefix.clone(), to]
    }
}

#[derive(Serialize)]
struct Mapping {
    vnet: String,
    ip: String,
    mac: String,
    vtep: String,
    mtu: Option<u16>,
}

fn mappings(host: &Host) -> Vec<Mapping> {
    let mapping = |mapping: &culvert_model::Mapping| Mapping {
        vnet: mapping.vnet.to_string(),
        ip: mapping.ip.to_string(),
        mac: mapping.mac.to_string(),
        vtep: mapping.vtep.to_string(),
        mtu: mapping.mtu.map(culvert_model::Mtu::get),
    };
    host.mappings().iter().map(mapping).collect()
}

impl Row for Mapping {
    const HEADERS: &'static [&'static str] = &["vnet", "ip", "mac", "vtep", "#mtu"];
    fn cells(&self) -> Vec<String> {
        let Mapping { vnet, ip, mac, vtep, mtu } = self;
        vec![vnet.clone(), ip.clone(), mac.clone(), vtep.clone(), or_dash(*mtu)]
    }
}

#[derive(Serialize)]
struct IngressRule {
    vni: u32,
    vtep: String,
    priority: u16,
    action: &'static str,
}

fn ingress(host: &Host) -> Vec<IngressRule> {
    let rule = |rule: &culvert_model::IngressRule| IngressRule {
        vni: rule.vni.get(),
        vtep: rule.vtep.to_string(),
        priority: rule.priority,
        action: rule.action.name(),
    };
    host.ingress().iter().map(rule).collect()
}

impl Row for IngressRule {
    const HEADERS: &'static [&'static str] = &["#vni", "vtep", "#priority", "action"];
    fn cells(&self) -> Vec<String> {
        let IngressRule { vni, vtep, priority, action } = self;
        vec![vni.to_string(), vtep.clone(), priority.to_string(), (*action).to_owned()]
    }
}

#[derive(Serialize)]
struct WantedUnderlay {
    interfaces: Vec<String>,
    addresses: Vec<String>,
    mtu: Option<u16>,
    mode: &'static str,
    tx: &'static str,
}

impl From<&culvert_model::Underlay> for WantedUnderlay {
    fn from(underlay: &culvert_model::Underlay) -> WantedUnderlay {
        WantedUnderlay {
            interfaces: underlay.interfaces.iter().map(ToString::to_string).collect(),
            addresses: underlay.addresses.iter().map(ToString::to_string).collect(),
            mtu: underlay.mtu.map(culvert_model::Mtu::get),
            mode: underlay.mode.name(),
            tx: underlay.tx.name(),
        }
    }
}

#[derive(Serialize)]
struct Device {
    interface: String,
    mode: String,
    refusals: Vec<ModeRefusal>,
    queues: u32,
    mtu: u32,
    up: bool,
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
        }
    }
}

impl Row for Device {
    const HEADERS: &'static [&'static str] =
        &["interface", "mode", "#queues", "#mtu", "link", "notes"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.interface.clone(),
            self.mode.clone(),
            self.queues.to_string(),
            self.mtu.to_string(),
            if self.up { "up" } else { "down" }.to_owned(),
            why_not(&self.refusals),
        ]
    }
}

fn underlay(output: Output, host: Option<&Host>, devices: Vec<Device>) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct Underlay {
        /// Absent before the first accepted state.
        wanted: Option<WantedUnderlay>,
        devices: Vec<Device>,
    }
    let wanted = host.map(|host| WantedUnderlay::from(host.underlay()));
    if output == Output::Json {
        return print_json(&Underlay { wanted, devices });
    }
    if let Some(wanted) = &wanted {
        let WantedUnderlay { addresses, mtu, mode, tx, .. } = wanted;
        let (addresses, mtu) = (joined(addresses), or_dash(*mtu));
        print(&format!("wanted: addresses {addresses}; mtu {mtu}; mode {mode}; tx {tx}\n"))?;
    }
    rows(output, devices)
}

#[derive(Serialize)]
struct Info {
    instance_id: String,
    version: String,
    generation: u64,
    features: Vec<Feature>,
    underlay: Vec<Device>,
    workers: Vec<Worker>,
}

#[derive(Serialize)]
struct Feature {
    name: String,
    available: bool,
    reason: String,
}

#[derive(Serialize)]
struct Worker {
    index: u32,
    /// Absent: not pinned.
    cpu: Option<u32>,
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

fn info(output: Output, info: Info) -> Result<(), CliError> {
    if output == Output::Json {
        return print_json(&info);
    }
    let Info { instance_id, version, generation, features, underlay, workers } = info;
    print(&format!(
        "culvert-dataplane {version}, instance {instance_id}, generation {generation}\n"
    ))?;
    let worker = |worker: Worker| vec![worker.index.to_string(), or_dash(worker.cpu)];
    print(&table(&["#worker", "#cpu"], workers.into_iter().map(worker).collect()))?;
    print("")?;
    rows(output, underlay)?;
    print("")?;
    let feature = |feature: Feature| {
        let available = if feature.available { "yes" } else { "no" };
        vec![feature.name, available.to_owned(), feature.reason]
    };
    print(&table(
        &["kernel feature", "there", "notes"],
        features.into_iter().map(feature).collect(),
    ))
}

#[derive(Serialize)]
struct WholeState {
    underlay: WantedUnderlay,
    vnets: Vec<Vnet>,
    ports: Vec<WantedPort>,
    routes: Vec<Route>,
    mappings: Vec<Mapping>,
    ingress: Vec<IngressRule>,
}

#[derive(Serialize)]
struct WantedPort {
    id: String,
    vnet: String,
    attach: &'static str,
    device: String,
    mac: String,
    ips: Vec<String>,
    anti_spoof: bool,
    mtu: Option<u16>,
    mode: &'static str,
    state: &'static str,
}

impl From<&culvert_model::Port> for WantedPort {
    fn from(port: &culvert_model::Port) -> WantedPort {
        WantedPort {
            id: port.id.to_string(),
            vnet: port.vnet.to_string(),
            attach: port.attach.kind(),
            device: port.attach.ifname().to_string(),
            mac: port.mac.to_string(),
            ips: port.ips.iter().map(ToString::to_string).collect(),
            anti_spoof: port.anti_spoof,
            mtu: port.mtu.map(culvert_model::Mtu::get),
            mode: port.mode.name(),
            state: port.state.name(),
        }
    }
}

impl From<&Host> for WholeState {
    fn from(host: &Host) -> WholeState {
        WholeState {
            underlay: host.underlay().into(),
            vnets: vnets(host),
            ports: host.ports().iter().map(WantedPort::from).collect(),
            routes: routes(host),
            mappings: mappings(host),
            ingress: ingress(host),
        }
    }
}
