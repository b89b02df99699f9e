//! Culvert to the kernel's VXLAN device, both directions.

use std::net::IpAddr;

use culvert_tests::tools::{
    Capture, Datagrams, tcp_transfer, tshark_complaints, tshark_fields, udp_exchange,
};
use culvert_tests::topology::WIRE;
use culvert_tests::{Attach, Combo, Family, Offloads, Peer, TopologySpec, checks, link};

fn against_the_kernel(combo: Combo, udp_csum: bool) {
    eprintln!("{combo}, outer checksum {udp_csum}");
    let peer = Peer::Kernel { udp_csum };
    let topology = TopologySpec::pair(combo).with_peers(Peer::Culvert, peer).build();
    checks::exercise(&topology, 0, 1);
}

/// By default a cover in which any two values meet, TAP tenants among them; `CULVERT_E2E=full` runs every combination.
/// Where the kernel may leave the outer checksum out, half of the cover does; of every combination both are run.
fn share(number: usize) {
    let vlan = link::has_vlan_devices();
    let full = culvert_tests::is_full();
    let list = if full { Combo::all(vlan) } else { Combo::cover(2, vlan) };
    for (index, combo) in list.into_iter().enumerate().filter(|(index, _)| index % 8 == number) {
        let sums: &[bool] = match combo.underlay {
            Family::V6 => &[true],
            Family::V4 if full => &[true, false],
            // Not the lowest bit alone, which is the choice of a family.
            Family::V4 => &[index.count_ones() % 2 == 0],
        };
        for with_sum in sums {
            against_the_kernel(combo, *with_sum);
        }
    }
}

culvert_tests::shares! { share:
    the_kernel_and_we_understand_each_other_first_eighth_of_the_combinations = 0,
    the_kernel_and_we_understand_each_other_second_eighth_of_the_combinations = 1,
    the_kernel_and_we_understand_each_other_third_eighth_of_the_combinations = 2,
    the_kernel_and_we_understand_each_other_fourth_eighth_of_the_combinations = 3,
    the_kernel_and_we_understand_each_other_fifth_eighth_of_the_combinations = 4,
    the_kernel_and_we_understand_each_other_sixth_eighth_of_the_combinations = 5,
    the_kernel_and_we_understand_each_other_seventh_eighth_of_the_combinations = 6,
    the_kernel_and_we_understand_each_other_last_eighth_of_the_combinations = 7,
}

#[test]
fn without_outer_checksums_the_kernel_and_we_understand_each_other() {
    for wire in [Offloads::On, Offloads::Off] {
        against_the_kernel(Combo { wire, ..Combo::SIMPLE }, false);
    }
}

/// Both families inside and outside, veth and TAP; what tenants send has offloads on and off.
#[test]
fn tshark_finds_no_fault_in_what_we_send_to_the_kernel() {
    for (underlay, attach, offloads) in [
        (Family::V4, Attach::Veth, Offloads::On),
        (Family::V6, Attach::Veth, Offloads::Off),
        (Family::V4, Attach::Tap, Offloads::Off),
        (Family::V6, Attach::Tap, Offloads::On),
    ] {
        let combo = Combo { underlay, attach, offloads, wire: Offloads::Off, ..Combo::SIMPLE };
        let topology = TopologySpec::pair(combo)
            .with_peers(Peer::Culvert, Peer::Kernel { udp_csum: true })
            .build();
        topology.wait_connected(0, 1);
        let capture =
            Capture::start(&topology.hosts[1].ns, &topology.scratch, WIRE, "udp port 4789");
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        for dst in [IpAddr::from(b.v4), b.v6.into()] {
            tcp_transfer(&a.ns, &b.ns, dst, 1 << 20).unwrap_or_else(|e| panic!("{combo}: {e}"));
            for what in
                [Datagrams::plain(0, 2), Datagrams::plain(3000, 4), Datagrams::gso(1000, 60, 20)]
            {
                let report = udp_exchange(&a.ns, &b.ns, dst, what).unwrap();
                assert!(report.is_perfect(), "{combo}: {what:?}: {report:?}");
            }
        }
        let pcap = capture.finish();
        let complaints = tshark_complaints(&pcap).unwrap();
        let first = complaints.first();
        assert!(
            complaints.is_empty(),
            "{combo}: {} complaints, first {first:#?}",
            complaints.len()
        );
        for filter in [
            "tcp && ip.version == 4",
            "tcp && ipv6",
            "udp.length == 1008",
            "vxlan && ip.frag_offset > 0",
        ] {
            let frames =
                tshark_fields(&pcap, &format!("vxlan.vni == 100 && {filter}"), &["frame.number"]);
            assert!(
                frames.unwrap().len() >= 2,
                "{combo}: nothing that is {filter}: it proves nothing"
            );
        }
    }
}
