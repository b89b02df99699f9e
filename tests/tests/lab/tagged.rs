//! A tagged underlay (802.1Q): the tunnel endpoint's address is on a VLAN device above the wire. In a guest, since the
//! kernel of this machine may lack VLAN devices.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use culvert_tests::lab::{self, Guest, Kernel};
use culvert_tests::process::run_command;
use culvert_tests::tools::Capture;
use culvert_tests::topology::WIRE;
use culvert_tests::{Attach, Combo, Family, Offloads, Peer, TopologySpec, checks};

const TAGGED: Combo = Combo { underlay_vlan: true, ..Combo::SIMPLE };

/// Tagged combinations that together have both families inside and outside, both kinds of wire and of attachment. Each
/// test takes one of them; `CULVERT_E2E=full` both.
const COMBOS: [Combo; 2] = [
    Combo { tenant: Family::V6, wire: Offloads::Off, attach: Attach::Tap, ..TAGGED },
    Combo { underlay: Family::V6, ..TAGGED },
];

const LIMIT: Duration = Duration::from_secs(150);

fn some_of(test: usize) -> impl Iterator<Item = Combo> {
    let chosen = move |at: &usize| culvert_tests::is_full() || *at == test;
    (0..COMBOS.len()).filter(chosen).map(|at| COMBOS[at])
}

/// The number on the first line of `tcpdump --count`.
fn tagged_frames(pcap: &Path) -> u64 {
    let mut command = Command::new("tcpdump");
    command.args(["--count", "-r"]).arg(pcap).args(["vlan", "321", "and", "udp", "port", "4789"]);
    let counted = run_command(&mut command).unwrap();
    counted.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[test]
fn a_tagged_underlay_carries_all_that_a_plain_one_does() {
    let guest = Guest::new(Kernel::Longterm).modules(&["tun"]).limit(LIMIT);
    if lab::enter(&guest, module_path!(), "a_tagged_underlay_carries_all_that_a_plain_one_does") {
        for combo in some_of(0) {
            eprintln!("{combo}");
            checks::exercise(&TopologySpec::pair(combo).build(), 0, 1);
        }
    }
}

#[test]
fn the_kernel_understands_us_on_a_tagged_underlay() {
    let guest = Guest::new(Kernel::Longterm).modules(&["tun"]).limit(LIMIT);
    if !lab::enter(&guest, module_path!(), "the_kernel_understands_us_on_a_tagged_underlay") {
        return;
    }
    for combo in some_of(1) {
        eprintln!("{combo}");
        let peer = Peer::Kernel { udp_csum: true };
        let topology = TopologySpec::pair(combo).with_peers(Peer::Culvert, peer).build();
        let wire = &topology.hosts[1].ns;
        // Only here: generic XDP takes frames before a capture sees them.
        let capture = Capture::start(wire, &topology.scratch, WIRE, "");
        topology.wait_connected(0, 1);
        let tagged = tagged_frames(&capture.finish());
        assert!(tagged >= 2, "{combo}: {tagged} tagged frames on the wire for two pings");
        checks::exercise(&topology, 0, 1);
    }
}
