//! From the desired state and what is known of the underlay to a snapshot of the tables.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::{
    EgressRoute, Host, IngressAction, PortId, PortState, RouteAction, RouteScope, VnetId, VtepMatch,
};
use rustc_hash::FxHashMap;

use super::acl::Groups;
use super::{
    Gateway, Indices, Ingress, IngressEntry, Neighbour, PortEntry, PortIndex, Reach, Route, Routes,
    Tables, Target, VnetEntry, VnetIndex, VtepEntry,
};

/// What a port's device and worker add to its description.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// Its index.
    pub index: PortIndex,
    /// The worker that transmits to it.
    pub worker: u16,
    /// The largest IP packet that it takes.
    pub mtu: u32,
}

/// All that a snapshot is made of.
pub struct Inputs<'a> {
    /// The desired state.
    pub host: &'a Host,
    /// The snapshot before, whose unchanged parts are kept.
    pub previous: &'a Tables,
    /// Facts of every port of `host`.
    pub ports: &'a HashMap<PortId, PortFacts>,
    /// Indices of every network of `host`.
    pub vnets: &'a Indices<VnetId>,
    /// Indices of every remote VTEP that a mapping names.
    pub vteps: &'a Indices<IpAddr>,
    /// The workers that have a queue of each underlay device.
    pub link_workers: &'a [Vec<u16>],
    /// Our address towards a VTEP, and the ways to it.
    pub reach: &'a dyn Fn(IpAddr) -> (IpAddr, Reach),
}

/// Builds the next snapshot.
pub fn build(inputs: &Inputs<'_>) -> Tables {
    let generation = inputs.previous.generation + 1;
    let link_workers = inputs.link_workers.to_vec();
    let mut tables = Tables { generation, link_workers, ..Tables::default() };
    for (ip, index) in inputs.vteps.iter() {
        let (source, reach) = (inputs.reach)(*ip);
        let entry = VtepEntry { index, ip: *ip, source, reach, changed_in: generation };
        tables.vtep_of_ip.insert(*ip, index);
        place(&mut tables.vteps, index as usize, keep_vtep(inputs.previous, entry));
    }
    for entry in vnet_entries(inputs, generation) {
        tables.vnet_of_vni.insert(entry.vni.get(), entry.index);
        let index = usize::from(entry.index);
        place(&mut tables.vnets, index, keep_vnet(inputs.previous, entry));
    }
    for rule in inputs.host.ingress() {
        let vni = rule.vni.get();
        if !tables.vnet_of_vni.contains_key(&vni) {
            tables.strangers.entry(vni).or_insert_with(|| ingress(inputs.host, vni));
        }
    }
    for entry in port_entries(inputs, generation) {
        let index = usize::from(entry.index);
        let entry = keep_port(inputs.previous, &tables, entry);
        place(&mut tables.ports, index, entry);
    }
    tables
}

fn place<T>(slots: &mut Vec<Option<Arc<T>>>, index: usize, entry: Arc<T>) {
    if slots.len() <= index {
        slots.resize_with(index + 1, || None);
    }
    slots[index] = Some(entry);
}

fn keep_vtep(previous: &Tables, mut entry: VtepEntry) -> Arc<VtepEntry> {
    if let Some(Some(old)) = previous.vteps.get(entry.index as usize) {
        let now = std::mem::replace(&mut entry.changed_in, old.changed_in);
        if **old == entry {
            return Arc::clone(old);
        }
        entry.changed_in = now;
    }
    Arc::new(entry)
}

fn keep_vnet(previous: &Tables, mut entry: VnetEntry) -> Arc<VnetEntry> {
    if let Some(Some(old)) = previous.vnets.get(usize::from(entry.index)) {
        let now = std::mem::replace(&mut entry.changed_in, old.changed_in);
        if **old == entry {
            return Arc::clone(old);
        }
        entry.changed_in = now;
    }
    Arc::new(entry)
}

/// Keeps the old entry, and with it the cached flows, if neither the port nor any network that its
/// packets are looked up in has changed since.
fn keep_port(previous: &Tables, tables: &Tables, mut entry: PortEntry) -> Arc<PortEntry> {
    let unchanged_since = |index: VnetIndex, epoch: u64| {
        tables.vnet(index).is_some_and(|vnet| vnet.changed_in <= epoch)
    };
    if let Some(Some(old)) = previous.ports.get(usize::from(entry.index)) {
        entry.epoch = old.epoch;
        let routes =
            [entry.routes.as_ref(), tables.vnet(entry.vnet).and_then(|vnet| vnet.routes.as_ref())];
        if **old == entry
            && unchanged_since(entry.vnet, old.epoch)
            && routes
                .into_iter()
                .flatten()
                .all(|r| r.vnets().all(|v| unchanged_since(v, old.epoch)))
        {
            return Arc::clone(old);
        }
    }
    entry.epoch = tables.generation;
    Arc::new(entry)
}

fn vnet_entries(inputs: &Inputs<'_>, generation: u64) -> Vec<VnetEntry> {
    let host = inputs.host;
    let index_of = |id: &VnetId| inputs.vnets.get(id).map(|index| index as VnetIndex);
    let mut entries: HashMap<&VnetId, VnetEntry> = HashMap::new();
    for vnet in host.vnets() {
        let Some(index) = index_of(&vnet.id) else { continue };
        let entry = VnetEntry {
            index,
            id: vnet.id.clone(),
            vni: vnet.vni,
            flood: vnet.flood,
            miss: vnet.miss,
            gateways: vnet.gateways.iter().map(|g| Gateway { net: g.ip, mac: g.mac }).collect(),
            dhcp: vnet.dhcp.clone().map(Arc::new),
            neighbours: FxHashMap::default(),
            macs: FxHashMap::default(),
            flood_vteps: Vec::new(),
            local_ports: Vec::new(),
            routes: None,
            routed_from: Vec::new(),
            ingress: Vec::new(),
            changed_in: generation,
        };
        entries.insert(&vnet.id, entry);
    }
    for mapping in host.mappings() {
        let Some(entry) = entries.get_mut(&mapping.vnet) else { continue };
        let Some(vtep) = inputs.vteps.get(&mapping.vtep) else { continue };
        let target = Target::Remote { vtep, mtu: mapping.mtu.map_or(0, culvert_model::Mtu::get) };
        entry.neighbours.insert(mapping.ip, Neighbour { mac: mapping.mac, target });
        entry.macs.insert(mapping.mac, target);
        if !entry.flood_vteps.contains(&vtep) {
            entry.flood_vteps.push(vtep);
        }
    }
    for port in host.ports() {
        let Some(entry) = entries.get_mut(&port.vnet) else { continue };
        let Some(facts) = inputs.ports.get(&port.id) else { continue };
        let target = Target::Local(facts.index);
        entry.local_ports.push(facts.index);
        entry.macs.insert(port.mac, target);
        for ip in &port.ips {
            entry.neighbours.insert(*ip, Neighbour { mac: port.mac, target });
        }
    }
    for route in host.routes() {
        let from = match &route.scope {
            RouteScope::Vnet(id) => id,
            RouteScope::Port(id) => match host.ports().iter().find(|port| port.id == *id) {
                Some(port) => &port.vnet,
                None => continue,
            },
        };
        if let (RouteAction::Vnet(to), Some(from_index)) = (&route.action, index_of(from))
            && to != from
            && let Some(entry) = entries.get_mut(to)
            && !entry.routed_from.contains(&from_index)
        {
            entry.routed_from.push(from_index);
        }
    }
    for (id, entry) in &mut entries {
        let own = |route: &&EgressRoute| matches!(&route.scope, RouteScope::Vnet(v) if v == *id);
        entry.routes = routes(inputs, host.routes().iter().filter(own));
        entry.ingress = ingress(host, entry.vni.get());
        entry.flood_vteps.sort_unstable();
        entry.local_ports.sort_unstable();
        entry.routed_from.sort_unstable();
    }
    entries.into_values().collect()
}

/// The rules for an identifier, the deciding one first.
fn ingress(host: &Host, vni: u32) -> Vec<IngressEntry> {
    let mut rules: Vec<_> = host.ingress().iter().filter(|r| r.vni.get() == vni).collect();
    rules.sort_by_key(|rule| std::cmp::Reverse((rule.priority, rule.vtep.prefix_len())));
    rules
        .into_iter()
        .map(|rule| IngressEntry {
            from: match rule.vtep {
                VtepMatch::Any => None,
                VtepMatch::Prefix(net) => Some(net),
            },
            action: match rule.action {
                IngressAction::DecapValidate => Ingress::DecapValidate,
                IngressAction::Decap => Ingress::Decap,
                IngressAction::Trap => Ingress::Trap,
                IngressAction::Drop => Ingress::Drop,
            },
        })
        .collect()
}

fn routes<'a>(inputs: &Inputs<'_>, list: impl Iterator<Item = &'a EgressRoute>) -> Option<Routes> {
    let mut routes: Option<Routes> = None;
    for route in list {
        let action = match &route.action {
            RouteAction::Vnet(id) => match inputs.vnets.get(id) {
                Some(index) => Route::Vnet(index as VnetIndex),
                None => Route::Drop,
            },
            RouteAction::Local => Route::Local,
            RouteAction::Trap => Route::Trap,
            RouteAction::Drop => Route::Drop,
        };
        routes.get_or_insert_default().insert(route.prefix, action);
    }
    routes
}

fn port_entries<'a>(
    inputs: &'a Inputs<'_>,
    generation: u64,
) -> impl Iterator<Item = PortEntry> + 'a {
    let groups = Groups::of(inputs.host);
    let mut own_routes: HashMap<&PortId, Vec<&EgressRoute>> = HashMap::new();
    for route in inputs.host.routes() {
        if let RouteScope::Port(id) = &route.scope {
            own_routes.entry(id).or_default().push(route);
        }
    }
    inputs.host.ports().iter().filter_map(move |port| {
        let facts = inputs.ports.get(&port.id)?;
        let vnet = inputs.vnets.get(&port.vnet)? as VnetIndex;
        let previous = inputs.previous.port(facts.index);
        Some(PortEntry {
            index: facts.index,
            id: port.id.clone(),
            vnet,
            mac: port.mac,
            ips: port.ips.clone(),
            anti_spoof: port.anti_spoof,
            blocked: port.state == PortState::Blocked,
            worker: facts.worker,
            mtu: facts.mtu,
            acl: groups.of_port(port, vnet, previous, generation),
            meter: port.meter,
            hostname: port.hostname.clone(),
            routes: routes(inputs, own_routes.get(&port.id).into_iter().flatten().copied()),
            epoch: 0,
        })
    })
}
