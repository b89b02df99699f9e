//! The kernel cuts what Culvert hands it uncut just as Culvert cuts it itself.

use culvert_tests::topology::WIRE;
use culvert_tests::{Combo, Family, Offloads, TopologySpec, cutting};

/// The wire segments nothing, so that the kernel has to.
fn kernel_cuts_as_we_do(format: &'static str) {
    for underlay in [Family::V4, Family::V6] {
        let combo = Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE };
        let topology = cutting::spec(TopologySpec::pair(combo), format).build();
        for host in &topology.hosts {
            host.ns.run(&format!("ip link set {WIRE} mtu {}", combo.tenant_mtu + 100));
        }
        let compared = cutting::compare(&topology, true);
        assert!(compared > 300, "{format} over {underlay:?}: {compared} frames");
        eprintln!("{format} over {underlay:?}: {compared} frames are equal");
    }
}

#[test]
fn the_kernel_cuts_vxlan_as_we_do() {
    kernel_cuts_as_we_do("vxlan");
}

#[test]
fn the_kernel_cuts_geneve_as_we_do() {
    kernel_cuts_as_we_do("geneve");
}

#[test]
fn the_kernel_cuts_stt_as_we_do() {
    kernel_cuts_as_we_do("stt");
}

#[test]
fn the_kernel_cuts_shards_as_we_do() {
    kernel_cuts_as_we_do("shard");
}
