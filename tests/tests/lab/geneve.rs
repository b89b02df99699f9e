//! The kernel's own Geneve understands us, and we it. In a guest, since the kernel of this machine may lack Geneve.

use std::time::Duration;

use culvert_tests::lab::{self, Guest, Kernel};
use culvert_tests::tools::{Datagrams, ping_df, tcp_transfer, udp_exchange};
use culvert_tests::topology::{TENANT_DEVICE, with_vnet_lines};
use culvert_tests::{Combo, Family, Offloads, Peer, TopologySpec};

/// Pings, TCP and datagrams both ways over a wire that segments, and over one that does not.
fn talk(underlay: Family) {
    for (tenant, wire) in [(Family::V4, Offloads::Off), (Family::V6, Offloads::On)] {
        let combo = Combo { underlay, tenant, wire, ..Combo::SIMPLE };
        let mut spec = TopologySpec::pair(combo).with_peers(Peer::Culvert, Peer::KernelGeneve);
        spec.vnet_toml = "format = \"geneve\"";
        let topology = spec.build();
        topology.wait_connected(0, 1);
        let full = if tenant == Family::V4 { 1472 } else { 1452 };
        for (from, to) in [(0, 1), (1, 0)] {
            let [a, b] = [&topology.tenants[from].ns, &topology.tenants[to].ns];
            let dst = topology.address(to);
            let ping = ping_df(a, dst, 3, full);
            assert!(ping.all_answered(), "{combo}: {from} to {to}: {}", ping.output);
            if let Err(e) = tcp_transfer(a, b, dst, 1 << 20) {
                panic!("{combo}: {from} to {to}: {e}");
            }
            for what in [Datagrams::plain(1000, 20), Datagrams::gso(1000, 20, 20)] {
                let report = udp_exchange(a, b, dst, what).unwrap();
                assert!(report.is_perfect(), "{combo}: {from} to {to}: {what:?}: {report:?}");
            }
        }
        // It skips the option for the MSS, which is not critical.
        let raised = |toml: String| with_vnet_lines(&toml, "blue", "raise_mss = true");
        topology.reconfigure(0, raised);
        let [a, b] = [0, 1].map(|at| &topology.tenants[at].ns);
        let small = match tenant {
            Family::V4 => format!(
                "ip route replace {}/32 dev {TENANT_DEVICE} advmss 536",
                topology.address(0)
            ),
            Family::V6 => format!(
                "ip -6 route replace {}/128 dev {TENANT_DEVICE} advmss 536",
                topology.address(0)
            ),
        };
        b.run(&small);
        if let Err(e) = tcp_transfer(a, b, topology.address(1), 1 << 20) {
            panic!("{combo}: with the option: {e}");
        }
        let stats = topology.stats(0);
        for reason in ["bad_tunnel_header", "bad_outer_checksum", "format_mismatch"] {
            assert_eq!(stats.dropped(reason), 0, "{combo}: {reason}");
        }
    }
}

#[test]
fn the_kernels_geneve_understands_us_over_ipv4() {
    let guest = Guest::new(Kernel::Longterm).modules(&["geneve"]).limit(Duration::from_secs(150));
    if lab::enter(&guest, module_path!(), "the_kernels_geneve_understands_us_over_ipv4") {
        talk(Family::V4);
    }
}

#[test]
fn the_kernels_geneve_understands_us_over_ipv6() {
    let guest = Guest::new(Kernel::Longterm).modules(&["geneve"]).limit(Duration::from_secs(150));
    if lab::enter(&guest, module_path!(), "the_kernels_geneve_understands_us_over_ipv6") {
        talk(Family::V6);
    }
}
