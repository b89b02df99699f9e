//! Culvert to the kernel's VXLAN device, both directions.

use culvert_tests::tools::{Capture, tshark_complaints, tshark_fields};
use culvert_tests::topology::WIRE;
use culvert_tests::{Combo, Family, Offloads, Peer, TopologySpec, checks};

fn against_the_kernel(combo: Combo, udp_csum: bool) {
    eprintln!("{combo}, outer checksum {udp_csum}");
    let peer = Peer::Kernel { udp_csum };
    let topology = TopologySpec::pair(combo).with_peers(Peer::Culvert, peer).build();
    checks::exercise(&topology, 0, 1);
}

#[test]
fn the_kernel_understands_us_over_ipv4() {
    for udp_csum in [true, false] {
        against_the_kernel(Combo::SIMPLE, udp_csum);
    }
}

#[test]
fn the_kernel_understands_us_over_ipv6() {
    against_the_kernel(Combo { underlay: Family::V6, ..Combo::SIMPLE }, true);
    against_the_kernel(
        Combo { underlay: Family::V6, tenant: Family::V6, tenant_mtu: 9000, ..Combo::SIMPLE },
        true,
    );
}

#[test]
fn the_kernel_understands_us_on_a_wire_without_offloads() {
    for tenant in [Family::V4, Family::V6] {
        against_the_kernel(Combo { tenant, wire: Offloads::Off, ..Combo::SIMPLE }, true);
        against_the_kernel(Combo { tenant, wire: Offloads::Off, ..Combo::SIMPLE }, false);
    }
}

#[test]
fn the_kernel_understands_tenants_without_offloads_and_with_odd_mtus() {
    for tenant_mtu in [1280, 9000] {
        against_the_kernel(Combo { tenant_mtu, offloads: Offloads::Off, ..Combo::SIMPLE }, true);
    }
}

#[test]
fn tshark_finds_no_fault_in_what_we_send_to_the_kernel() {
    for underlay in [Family::V4, Family::V6] {
        let combo = Combo { underlay, wire: Offloads::Off, ..Combo::SIMPLE };
        let topology = TopologySpec::pair(combo)
            .with_peers(Peer::Culvert, Peer::Kernel { udp_csum: true })
            .build();
        let capture =
            Capture::start(&topology.hosts[1].ns, &topology.scratch, WIRE, "udp port 4789");
        checks::exercise(&topology, 0, 1);
        let pcap = capture.finish();
        let complaints = tshark_complaints(&pcap).unwrap();
        assert!(
            complaints.is_empty(),
            "{} complaints, first {:#?}",
            complaints.len(),
            complaints.first()
        );
        assert!(tshark_fields(&pcap, "vxlan.vni == 100", &["frame.number"]).unwrap().len() > 1000);
    }
}
