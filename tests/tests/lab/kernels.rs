//! Kernels that lack something: refused by name, or used without it and said so. In guests.

use std::time::Duration;

use culvert_tests::culvert::binary;
use culvert_tests::lab::{self, Guest, Kernel};
use culvert_tests::tools::{Datagrams, tcp_transfer, udp_exchange};
use culvert_tests::{Combo, Process, Scratch, TopologySpec};

#[test]
fn a_kernel_before_6_6_is_refused_by_the_feature_that_it_lacks() {
    let guest = Guest::new(Kernel::Old);
    if !lab::enter(
        &guest,
        module_path!(),
        "a_kernel_before_6_6_is_refused_by_the_feature_that_it_lacks",
    ) {
        return;
    }
    let mut scratch = Scratch::new();
    let pins = scratch.bpffs().join("a");
    let mut command = std::process::Command::new(binary("culvert-dataplane"));
    command.arg("--socket").arg(scratch.file("a.sock")).arg("--bpffs").arg(&pins);
    let mut process = Process::spawn(&scratch, "culvert-dataplane", command);
    let status = process.wait(Duration::from_secs(20));
    assert_eq!(status.and_then(|s| s.code()), Some(1), "{}", process.log());
    for word in ["AF_XDP", "several buffers", "Linux 6.6", "this is Linux 6.1"] {
        assert!(process.log().contains(word), "no \"{word}\" in: {}", process.log());
    }
    assert!(!scratch.file("a.sock").exists(), "a socket is left of a dataplane that never ran");
    assert!(!pins.exists(), "pins are left of a dataplane that never ran");
}

#[test]
fn a_kernel_before_6_17_carries_traffic_without_the_larger_transmit_budget() {
    let guest = Guest::new(Kernel::Longterm);
    let name = "a_kernel_before_6_17_carries_traffic_without_the_larger_transmit_budget";
    if !lab::enter(&guest, module_path!(), name) {
        return;
    }
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    for host in 0..2 {
        let log = topology.dataplane(host).log();
        for word in ["XDP_MAX_TX_SKB_BUDGET", "Linux 6.17", "32 frames a system call"] {
            assert!(log.contains(word), "host {host}: no \"{word}\" in: {log}");
        }
        let host_ns = &topology.hosts[host].ns;
        let info = topology.dataplane(host).cli(host_ns, &["show", "info"]).unwrap();
        assert!(info.contains("XDP_MAX_TX_SKB_BUDGET"), "{info}");
        // Transmit metadata came with 6.8 and its flag with 6.11: this kernel has them.
        assert!(!log.contains("XDP_UMEM_TX_METADATA_LEN"), "{log}");
    }
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    tcp_transfer(&a.ns, &b.ns, topology.address(1), 4 << 20).unwrap();
    for what in [Datagrams::plain(1000, 50), Datagrams::gso(1000, 60, 20)] {
        let report = udp_exchange(&b.ns, &a.ns, topology.address(0), what).unwrap();
        assert!(report.is_perfect(), "{what:?}: {report:?}");
    }
}
