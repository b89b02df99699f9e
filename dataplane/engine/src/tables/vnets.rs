//! Virtual networks of a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::edit::Changes;
use culvert_model::{
    EgressRoute, Host, IngressAction, Mapping, Mtu, Port, RouteAction, RouteKey, RouteScope, Vnet,
    VnetId, Vni, VtepMatch,
};
use culvert_wire::eth::MacAddr;
use ipnet::IpNet;

use super::build::{Inputs, format_index, place, set_route};
use super::{
    Gateway, Ingress, IngressEntry, Neighbour, Tables, Target, VnetEntry, VnetIndex, fresh,
};

/// What of a network has to be looked at anew.
#[derive(Default)]
struct Touched {
    routes: BTreeSet<IpNet>,
    routed_from: bool,
    ingress: bool,
    ips: BTreeSet<IpAddr>,
    macs: BTreeSet<MacAddr>,
    vteps: BTreeSet<IpAddr>,
    ports: bool,
}

type AllTouched<'a> = BTreeMap<&'a VnetId, Touched>;

/// True where the rules of a network changed, not only what lives in it.
pub(super) fn update(tables: &mut Tables, inputs: &Inputs<'_>) -> bool {
    let changes = inputs.changes;
    if changes.vnets.iter().any(|(_, new)| new.is_none()) {
        forget(tables, inputs.host);
    }
    let mut all = touched(inputs.host, changes);
    if !changes.formats.is_empty() {
        for vnet in inputs.host.vnets() {
            all.entry(&vnet.id).or_default();
        }
    }
    let mut rules_changed = false;
    for (id, touched) in &all {
        let (Some(vnet), Some(index)) = (inputs.host.vnet(id.as_str()), inputs.vnet_index(id))
        else {
            continue;
        };
        touch_addresses(tables, touched);
        let entry = entry(tables, inputs, vnet, index, touched);
        if entry.changed_in == tables.generation {
            tables.ingress_epoch = tables.generation;
            rules_changed = true;
        }
        place(&mut tables.vnets, index.into(), Some(Arc::new(entry)));
    }
    update_vnis(tables, inputs);
    rules_changed
}

/// Drops the entries of networks that are no more.
fn forget(tables: &mut Tables, host: &Host) {
    let gone: Vec<usize> = (0..tables.vnets.len())
        .filter(|at| {
            let entry = tables.vnets.get(*at).and_then(Option::as_ref);
            entry.is_some_and(|entry| host.vnet(entry.id.as_str()).is_none())
        })
        .collect();
    for index in gone {
        place(&mut tables.vnets, index, None);
    }
    tables.ingress_epoch = tables.generation;
}

/// Cached decisions about these addresses are made anew.
fn touch_addresses(tables: &mut Tables, touched: &Touched) {
    let generation = tables.generation;
    tables.fresh.touch(touched.ips.iter().copied().map(fresh::ip_bucket), generation);
    tables.fresh.touch(touched.macs.iter().copied().map(fresh::mac_bucket), generation);
}

/// The networks that the changes touch, and in what.
fn touched<'a>(host: &'a Host, changes: &Changes<'a>) -> AllTouched<'a> {
    let mut all = AllTouched::default();
    for vnet in changes.vnets.iter().flat_map(both) {
        let touched = all.entry(&vnet.id).or_default();
        // By another VNI it is found by other rules.
        touched.ingress = true;
        touched.routed_from = true;
    }
    for mapping in changes.mappings.iter().flat_map(both) {
        let touched = all.entry(&mapping.vnet).or_default();
        touched.ips.insert(mapping.ip);
        touched.macs.insert(mapping.mac);
        touched.vteps.insert(mapping.vtep);
    }
    for change in &changes.ports {
        for port in both(change) {
            let touched = all.entry(&port.vnet).or_default();
            touched.ips.extend(&port.ips);
            touched.macs.insert(port.mac);
            touched.ports = true;
        }
        // Its own routes lead from another network now.
        if let (Some(old), Some(new)) = change
            && old.vnet != new.vnet
        {
            for route in host.routes_in(RouteScope::Port(new.id.clone())) {
                leads_to(&mut all, route);
            }
        }
    }
    for route in changes.routes.iter().flat_map(both) {
        if let RouteScope::Vnet(id) = &route.scope {
            all.entry(id).or_default().routes.insert(route.prefix);
        }
        leads_to(&mut all, route);
    }
    for rule in changes.ingress.iter().flat_map(both) {
        if let Some(vnet) = host.vnet_of(rule.vni) {
            all.entry(&vnet.id).or_default().ingress = true;
        }
    }
    all
}

fn leads_to<'a>(all: &mut AllTouched<'a>, route: &'a EgressRoute) {
    if let RouteAction::Vnet(id) = &route.action {
        all.entry(id).or_default().routed_from = true;
    }
}

pub(super) fn both<'a, T>(change: &(Option<&'a T>, Option<&'a T>)) -> impl Iterator<Item = &'a T> {
    change.0.into_iter().chain(change.1)
}

/// The entry of a network: the one before with what was touched looked up in the state.
fn entry(
    tables: &Tables,
    inputs: &Inputs<'_>,
    vnet: &Vnet,
    index: VnetIndex,
    touched: &Touched,
) -> VnetEntry {
    let before = tables.vnet(index).filter(|before| before.id == vnet.id);
    let mut entry = before.cloned().unwrap_or_else(|| VnetEntry {
        index,
        id: vnet.id.clone(),
        vni: vnet.vni,
        format: format_index(tables, &vnet.format),
        raise_mss: vnet.raise_mss,
        flood: vnet.flood,
        miss: vnet.miss,
        gateways: Vec::new(),
        neighbours: Default::default(),
        macs: Default::default(),
        flood_vteps: Default::default(),
        local_ports: Default::default(),
        routes: None,
        routed_from: Vec::new(),
        ingress: Vec::new(),
        changed_in: tables.generation,
    });
    let format = format_index(tables, &vnet.format);
    // An index of other formats may be another format's.
    let mut changed = entry.vni != vnet.vni
        || entry.format != format
        || !inputs.changes.formats.is_empty()
        || entry.raise_mss != vnet.raise_mss
        || entry.flood != vnet.flood
        || entry.miss != vnet.miss;
    (entry.format, entry.raise_mss) = (format, vnet.raise_mss);
    (entry.vni, entry.flood, entry.miss) = (vnet.vni, vnet.flood, vnet.miss);
    let gateways = vnet.gateways.iter().map(|g| Gateway { net: g.ip, mac: g.mac }).collect();
    changed |= replace(&mut entry.gateways, gateways);
    for prefix in &touched.routes {
        let key = RouteKey { scope: RouteScope::Vnet(vnet.id.clone()), prefix: *prefix };
        let route = inputs.host.routes().get(&key).map(|route| inputs.route(route));
        changed |= set_route(&mut entry.routes, *prefix, route);
    }
    if touched.routed_from {
        changed |= replace(&mut entry.routed_from, routed_from(inputs, vnet));
    }
    if touched.ingress {
        changed |= replace(&mut entry.ingress, ingress(inputs.host, vnet.vni));
    }
    if changed {
        entry.changed_in = tables.generation;
    }
    for ip in &touched.ips {
        entry.neighbours.set(*ip, neighbour(inputs, &vnet.id, *ip));
    }
    for mac in &touched.macs {
        entry.macs.set(*mac, station(inputs, &vnet.id, *mac));
    }
    if !touched.vteps.is_empty() {
        flood_vteps(&mut entry, tables, inputs, &touched.vteps);
    }
    if touched.ports {
        let ports = inputs.host.ports_in(&vnet.id);
        let indices: BTreeSet<_> =
            ports.filter_map(inputs.ports).map(|facts| facts.index).collect();
        entry.local_ports = indices.into_iter().collect();
    }
    entry
}

fn replace<T: PartialEq>(value: &mut T, new: T) -> bool {
    let changed = *value != new;
    *value = new;
    changed
}

fn local(inputs: &Inputs<'_>, port: &Port) -> Option<Target> {
    (inputs.ports)(port).map(|facts| Target::Local(facts.index))
}

fn remote(inputs: &Inputs<'_>, mapping: &Mapping) -> Option<Target> {
    let vtep = inputs.vteps.get(&mapping.vtep)?;
    Some(Target::Remote { vtep, mtu: mapping.mtu.map_or(0, Mtu::get) })
}

/// What the state says of an address.
fn neighbour(inputs: &Inputs<'_>, vnet: &VnetId, ip: IpAddr) -> Option<Neighbour> {
    if let Some(port) = inputs.host.port_with_ip(vnet, ip) {
        return Some(Neighbour { mac: port.mac, target: local(inputs, port)? });
    }
    let mapping = inputs.host.mapping(vnet, ip)?;
    Some(Neighbour { mac: mapping.mac, target: remote(inputs, mapping)? })
}

/// Where the state says that a MAC is. Of several hosts that share one, the last by address.
fn station(inputs: &Inputs<'_>, vnet: &VnetId, mac: MacAddr) -> Option<Target> {
    if let Some(port) = inputs.host.port_with_mac(vnet, mac) {
        return local(inputs, port);
    }
    remote(inputs, inputs.host.mappings_with_mac(vnet, mac).last()?)
}

/// Keeps up the VTEPs of a network, of which some may have come or gone. Which indices it had is what
/// the snapshot before says: an index that changed hands since is in the new one's name.
fn flood_vteps(
    entry: &mut VnetEntry,
    tables: &Tables,
    inputs: &Inputs<'_>,
    touched: &BTreeSet<IpAddr>,
) {
    let mut vteps: BTreeSet<_> = entry.flood_vteps.iter().copied().collect();
    for ip in touched {
        if let Some(index) = inputs.previous.vtep_of(ip) {
            vteps.remove(&index);
        }
    }
    for ip in touched.iter().filter(|ip| inputs.host.has_vtep_in(&entry.id, **ip)) {
        vteps.extend(tables.vtep_of(ip));
    }
    if !vteps.iter().eq(entry.flood_vteps.iter()) {
        entry.flood_vteps = vteps.into_iter().collect();
    }
}

/// The other networks from which routes lead to this one.
fn routed_from(inputs: &Inputs<'_>, vnet: &Vnet) -> Vec<VnetIndex> {
    let from = |scope: &RouteScope| match scope {
        RouteScope::Vnet(id) => inputs.vnet_index(id),
        RouteScope::Port(id) => inputs.vnet_index(&inputs.host.port(id.as_str())?.vnet),
    };
    let own = inputs.vnet_index(&vnet.id);
    let scopes = inputs.host.scopes_to(&vnet.id);
    let all: BTreeSet<_> =
        scopes.into_iter().filter_map(from).filter(|from| Some(*from) != own).collect();
    all.into_iter().collect()
}

/// The rules for an identifier, the deciding one first.
fn ingress(host: &Host, vni: Vni) -> Vec<IngressEntry> {
    host.ingress_of(vni)
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

/// Which network has an identifier, and the rules for those that none has.
fn update_vnis(tables: &mut Tables, inputs: &Inputs<'_>) {
    let changes = inputs.changes;
    let vnets = changes.vnets.iter().flat_map(both).map(|vnet| vnet.vni);
    let rules = changes.ingress.iter().flat_map(both).map(|rule| rule.vni);
    let touched: BTreeSet<Vni> = vnets.chain(rules).collect();
    for vni in touched {
        let vnet = inputs.host.vnet_of(vni).and_then(|vnet| inputs.vnet_index(&vnet.id));
        if tables.vnet_of_vni.get(&vni.get()).copied() != vnet {
            let known = Arc::make_mut(&mut tables.vnet_of_vni);
            match vnet {
                Some(index) => drop(known.insert(vni.get(), index)),
                None => drop(known.remove(&vni.get())),
            }
            tables.ingress_epoch = tables.generation;
        }
        let rules = if vnet.is_none() { ingress(inputs.host, vni) } else { Vec::new() };
        let known = tables.strangers.get(&vni.get()).map_or(&[][..], Vec::as_slice);
        if known != rules {
            let strangers = Arc::make_mut(&mut tables.strangers);
            match rules.is_empty() {
                false => drop(strangers.insert(vni.get(), rules)),
                true => drop(strangers.remove(&vni.get())),
            }
            tables.ingress_epoch = tables.generation;
        }
    }
}
