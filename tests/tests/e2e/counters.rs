//! What is lost outside of the packet path shows in `culvert stats`, too.

use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Attach, Combo, TopologySpec};

const NETDEV: [(&str, [&str; 2]); 6] = [
    ("netdev_rx_errors", ["rx", "errors"]),
    ("netdev_rx_dropped", ["rx", "dropped"]),
    ("netdev_rx_missed", ["rx", "missed_errors"]),
    ("netdev_rx_no_handler", ["rx", "nohandler"]),
    ("netdev_tx_errors", ["tx", "errors"]),
    ("netdev_tx_dropped", ["tx", "dropped"]),
];

#[test]
fn what_a_device_drops_is_shown_as_the_kernel_counts_it() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let (host, tenant) = (&topology.hosts[0].ns, &topology.tenants[0]);
    let dropped = || topology.stats(0).kernel(&tenant.port, "netdev_rx_dropped").unwrap();
    let before = dropped();
    // Above the MTU of the other end, which drops such frames before XDP sees them.
    tenant.ns.run(&format!("ip link set {TENANT_DEVICE} mtu 9000"));
    let ping = format!("ping -n -c 5 -i 0.05 -W 1 -M do -s 5000 {}", topology.tenants[1].v4);
    tenant.ns.try_run(&ping).unwrap_err();
    assert!(dropped() >= before + 5, "{before} before, {} now", dropped());

    let stats = topology.stats(0);
    for device in [tenant.port.as_str(), WIRE] {
        let shown = host.run(&format!("ip -s -s -j link show dev {device}"));
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        for (name, [direction, field]) in NETDEV {
            // `ip` leaves out what this kernel does not count.
            let expected = shown[0]["stats64"][direction][field].as_u64().unwrap_or(0);
            assert_eq!(stats.kernel(device, name), Some(expected), "{device}: {name} in {shown}");
        }
    }
}

#[test]
fn a_taps_own_counters_are_shown() {
    let combo = Combo { attach: Attach::Tap, ..Combo::SIMPLE };
    let topology = TopologySpec::pair(combo).build();
    topology.wait_connected(0, 1);
    let stats = topology.stats(0);
    let port = &topology.tenants[0].port;
    assert!(stats.kernel(port, "rx_packets") > Some(0), "{stats:#?}");
    for name in ["rx_bad", "rx_starved", "rx_down", "rx_failed"] {
        assert!(stats.kernel(port, name).is_some(), "{name}: {stats:#?}");
    }
    // It is the tenant's by now: what its device lost is not this namespace's to see.
    assert_eq!(stats.kernel(port, "netdev_rx_dropped"), None);
}
