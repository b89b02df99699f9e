//! Tenant ports of a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_model::{Dhcp, Host, Port, PortId, PortState, RouteKey, RouteScope, Vnet};
use ipnet::IpNet;

use super::acl::Groups;
use super::build::{Inputs, PortFacts, place, set_route};
use super::vnets::both;
use super::{PortEntry, Tables, VnetIndex, fresh};

/// Ports that the changes touch, and the prefixes of their own routes that were.
type AllTouched<'a> = BTreeMap<&'a PortId, BTreeSet<IpNet>>;

/// `rules_changed`: those of a network did.
pub(super) fn update(tables: &mut Tables, inputs: &Inputs<'_>, rules_changed: bool) {
    if inputs.changes.ports.iter().any(|(_, new)| new.is_none()) {
        forget(tables, inputs.host);
    }
    Groups::update(&mut tables.acls, inputs.changes);
    let all = touched(inputs);
    for (id, prefixes) in &all {
        let Some(port) = inputs.host.port(id.as_str()) else { continue };
        if let Some(facts) = (inputs.ports)(port)
            && let Some(entry) = entry(tables, inputs, port, facts, prefixes)
        {
            // What was decided for packets to it may depend on any of its properties.
            let generation = tables.generation;
            let addresses = entry.ips.iter().copied().map(fresh::ip_bucket);
            tables.fresh.touch(addresses.chain([fresh::mac_bucket(entry.mac)]), generation);
            place(&mut tables.ports, facts.index.into(), Some(Arc::new(entry)));
        }
    }
    if inputs.scope.ports || rules_changed {
        for port in inputs.host.ports() {
            if let Some(facts) = (inputs.ports)(port) {
                refresh(tables, facts);
            }
        }
    }
}

fn forget(tables: &mut Tables, host: &Host) {
    let gone: Vec<usize> = (0..tables.ports.len())
        .filter(|at| {
            let entry = tables.ports.get(*at).and_then(Option::as_ref);
            entry.is_some_and(|entry| host.port(entry.id.as_str()).is_none())
        })
        .collect();
    for index in gone {
        place(&mut tables.ports, index, None);
    }
}

fn touched<'a>(inputs: &Inputs<'a>) -> AllTouched<'a> {
    let mut all = AllTouched::default();
    for port in inputs.changes.ports.iter().flat_map(both) {
        all.entry(&port.id).or_default();
    }
    for route in inputs.changes.routes.iter().flat_map(both) {
        if let RouteScope::Port(id) = &route.scope {
            all.entry(id).or_default().insert(route.prefix);
        }
    }
    for (old, new) in &inputs.changes.vnets {
        let dhcp = |vnet: &Option<&'a Vnet>| vnet.and_then(|vnet| vnet.dhcp.as_ref());
        if let Some(vnet) = new.filter(|_| dhcp(old) != dhcp(new)) {
            for port in inputs.host.ports_in(&vnet.id) {
                all.entry(&port.id).or_default();
            }
        }
    }
    for group in inputs.changes.acls.iter().flat_map(both) {
        for port in inputs.host.ports_with_acl(&group.id) {
            all.entry(&port.id).or_default();
        }
    }
    all
}

/// The entry of a port: the one before with what was touched looked up in the state. None where that is
/// the same.
fn entry(
    tables: &Tables,
    inputs: &Inputs<'_>,
    port: &Port,
    facts: PortFacts,
    prefixes: &BTreeSet<IpNet>,
) -> Option<PortEntry> {
    let before = tables.port(facts.index).filter(|before| before.id == port.id);
    let mut routes = before.and_then(|before| before.routes.clone());
    for prefix in prefixes {
        let key = RouteKey { scope: RouteScope::Port(port.id.clone()), prefix: *prefix };
        let route = inputs.host.routes().get(&key).map(|route| inputs.route(route));
        set_route(&mut routes, *prefix, route);
    }
    let vnet = inputs.vnet_index(&port.vnet)?;
    let mut entry = PortEntry {
        index: facts.index,
        id: port.id.clone(),
        vnet,
        mac: port.mac,
        ips: port.ips.clone(),
        anti_spoof: port.anti_spoof,
        blocked: port.state == PortState::Blocked,
        worker: facts.worker,
        mtu: facts.mtu,
        acl: tables.acls.of_port(port, vnet, before, tables.generation),
        meter: port.meter,
        dhcp: dhcp(inputs, port, before),
        hostname: port.hostname.clone(),
        udp_gro: port.udp_gro,
        routes,
        epoch: before.map_or(0, |before| before.epoch),
    };
    if before == Some(&entry) {
        return None;
    }
    entry.epoch = tables.generation;
    Some(entry)
}

/// What the port's network has tenants told; the one before where that is the same.
fn dhcp(inputs: &Inputs<'_>, port: &Port, before: Option<&PortEntry>) -> Option<Arc<Dhcp>> {
    let dhcp = inputs.host.vnet(port.vnet.as_str())?.dhcp.as_ref()?;
    let known = before.and_then(|before| before.dhcp.as_ref());
    Some(known.filter(|known| ***known == *dhcp).map_or_else(|| Arc::new(dhcp.clone()), Arc::clone))
}

/// Keeps the entry, and with it the cached flows, if neither what the device says of the port nor any
/// network that its packets are looked up in has changed since.
fn refresh(tables: &mut Tables, facts: PortFacts) {
    let Some(before) = tables.port(facts.index) else { return };
    let changed_since =
        |index: VnetIndex| tables.vnet(index).is_none_or(|vnet| vnet.changed_in > before.epoch);
    let routes = [before.routes.as_ref(), tables.vnet(before.vnet).and_then(|v| v.routes.as_ref())];
    let stale = (before.worker, before.mtu) != (facts.worker, facts.mtu)
        || changed_since(before.vnet)
        || routes.into_iter().flatten().any(|routes| routes.vnets().any(changed_since));
    if stale {
        let (worker, mtu, epoch) = (facts.worker, facts.mtu, tables.generation);
        let entry = PortEntry { worker, mtu, epoch, ..before.clone() };
        place(&mut tables.ports, facts.index.into(), Some(Arc::new(entry)));
    }
}
