//! What the programs take from the underlay, by the formats of a state.

use std::collections::BTreeSet;

use culvert_ebpf::{Carried, Carrier, HeaderTest};
use culvert_model::Host;
use culvert_wire::format::{FormatDescriptor, Formats, Identifier, Outer, Travel, VXLAN};

/// What tells tunnel packets of the formats that a state uses; VXLAN where it has no network. Packets of
/// a format that nothing here uses are the host's own.
pub(super) fn carriers_of(host: &Host) -> Vec<Carried> {
    let formats = Formats::with(host.formats().iter().map(|format| format.descriptor.clone()));
    let of_vnets = host.vnets().iter().map(|vnet| &vnet.format);
    let used: BTreeSet<_> = of_vnets
        .chain(host.underlay().peers.iter().filter_map(|peer| peer.format.as_ref()))
        .collect();
    let mut carriers: Vec<_> = used
        .into_iter()
        .filter_map(|id| formats.by_name(id.as_str()))
        .map(|(_, format)| carried(format))
        .collect();
    if carriers.is_empty() {
        carriers.push(carried(&VXLAN));
    }
    carriers
}

fn carried(format: &FormatDescriptor) -> Carried {
    // A segment without header identifies nothing.
    let told = matches!(format.travel, Travel::Every);
    let tests = format.identifiers.iter().filter(|_| told).flat_map(Identifier::bytes);
    let tests = tests.map(|(offset, mask, value)| HeaderTest { offset, mask, value });
    Carried { carrier: carrier(format.outer), tests: tests.collect() }
}

const fn carrier(outer: Outer) -> Carrier {
    match outer {
        Outer::Udp { port } => Carrier::Udp(port),
        Outer::Tcp { port } => Carrier::Tcp(port),
        Outer::Ip { protocol } => Carrier::Ip(protocol),
    }
}
