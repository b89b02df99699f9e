//! From the snapshot before, the desired state and what changed in it to the next snapshot.
//!
//! Every entry is a function of the state, the indices and what is known of devices and ways; the entry
//! before only saves the work for what did not change in it. So a snapshot after many changes is the one
//! that would be made of nothing.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::edit::Changes;
use culvert_model::{EgressRoute, FormatId, Host, Port, RouteAction, VnetId};
use culvert_wire::format::{FormatIndex, Formats};

use super::{
    Indices, PortIndex, Reach, Route, Routes, Slots, Tables, VnetIndex, ports, shard_keys, vnets,
    vteps,
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

/// What may have changed beside the state.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Facts of ports that the state's changes do not name.
    pub ports: bool,
    /// Ways to VTEPs that were known before.
    pub vteps: bool,
}

impl Scope {
    /// Anything.
    pub const ALL: Scope = Scope { ports: true, vteps: true };
}

/// All that a snapshot is made of.
pub struct Inputs<'a> {
    /// The desired state.
    pub host: &'a Host,
    /// What changed in it since the snapshot before.
    pub changes: &'a Changes<'a>,
    /// What may have changed beside.
    pub scope: Scope,
    /// The snapshot before.
    pub previous: &'a Tables,
    /// Facts of every port of `host`.
    pub ports: &'a dyn Fn(&Port) -> Option<PortFacts>,
    /// Indices of every network of `host`.
    pub vnets: &'a Indices<VnetId>,
    /// Indices of every remote VTEP that a mapping names.
    pub vteps: &'a Indices<IpAddr>,
    /// The workers that have a queue of each underlay device.
    pub link_workers: &'a [Vec<u16>],
    /// Our address towards a VTEP, and the ways to it.
    pub reach: &'a dyn Fn(IpAddr) -> (IpAddr, Reach),
}

impl Inputs<'_> {
    pub(super) fn vnet_index(&self, id: &VnetId) -> Option<VnetIndex> {
        self.vnets.get(id).map(|index| index as VnetIndex)
    }

    /// What a route of the state says here.
    pub(super) fn route(&self, route: &EgressRoute) -> Route {
        match &route.action {
            RouteAction::Vnet(id) => self.vnet_index(id).map_or(Route::Drop, Route::Vnet),
            RouteAction::Local => Route::Local,
            RouteAction::Trap => Route::Trap,
            RouteAction::Drop => Route::Drop,
        }
    }
}

/// The index of a format of the state; that of VXLAN for one that is not there.
pub(super) fn format_index(tables: &Tables, id: &FormatId) -> FormatIndex {
    tables.formats.by_name(id.as_str()).map_or(FormatIndex::VXLAN, |(index, _)| index)
}

/// Builds the next snapshot.
pub fn build(inputs: &Inputs<'_>) -> Tables {
    let mut tables = inputs.previous.clone();
    tables.generation += 1;
    if *tables.link_workers != *inputs.link_workers {
        tables.link_workers = inputs.link_workers.into();
    }
    let formats_changed = !inputs.changes.formats.is_empty();
    if formats_changed {
        // Indices follow from all of them.
        let own = inputs.host.formats().iter().map(|format| format.descriptor.clone());
        tables.formats = Formats::with(own);
        tables.ingress_epoch = tables.generation;
    }
    if inputs.changes.underlay {
        tables.merge_hold_us = inputs.host.underlay().merge_hold_us;
        tables.ingress_epoch = tables.generation;
    }
    let other_shards = shard_keys::update(&mut tables, inputs);
    vteps::update(&mut tables, inputs, other_shards);
    let rules_changed = vnets::update(&mut tables, inputs);
    ports::update(&mut tables, inputs, rules_changed);
    tables
}

/// Puts an entry into its slot, or none.
pub(super) fn place<T>(slots: &mut Slots<T>, index: usize, entry: Option<Arc<T>>) {
    if index >= slots.len() {
        if entry.is_none() {
            return;
        }
        // Some room, so that a row of new ones does not copy all each time.
        let room = (index + 1).next_power_of_two();
        let added = std::iter::repeat_n(None, room - slots.len());
        *slots = slots.iter().cloned().chain(added).collect();
    }
    if let Some(slot) = Arc::make_mut(slots).get_mut(index) {
        *slot = entry;
    }
}

/// Gives a prefix of optional routes a route, or none. True when that is another than before.
pub(super) fn set_route(
    routes: &mut Option<Arc<Routes>>,
    prefix: ipnet::IpNet,
    route: Option<Route>,
) -> bool {
    if routes.as_ref().and_then(|routes| routes.get(prefix)) == route {
        return false;
    }
    let table = Arc::make_mut(routes.get_or_insert_default());
    table.set(prefix, route);
    if table.is_empty() {
        *routes = None;
    }
    true
}
