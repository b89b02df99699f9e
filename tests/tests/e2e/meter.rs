//! Meters: a port sends and receives as much as its rates allow, whatever the size of its frames, and others are not
//! held up by it.

use culvert_tests::tools::Iperf;
use culvert_tests::topology::{Topology, with_port_lines};
use culvert_tests::{Combo, TopologySpec};

/// Gives the port of a tenant a meter.
#[track_caller]
fn meter(topology: &Topology, tenant: usize, meter: &str) {
    let tenant = &topology.tenants[tenant];
    let line = format!("meter = {meter}");
    topology.reconfigure(tenant.spec.host, |toml| with_port_lines(&toml, tenant, &line));
}

fn mbits(topology: &Topology, iperf: Iperf, from: usize, to: usize) -> f64 {
    let (client, server) = (&topology.tenants[from].ns, &topology.tenants[to].ns);
    let report = iperf.run(&topology.scratch, client, server, topology.address(to));
    report.unwrap_or_else(|e| panic!("{e}")).bits_per_second / 1e6
}

#[test]
fn what_a_tenant_sends_above_its_rate_is_dropped_and_counted() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    meter(&topology, 0, r#"{ rx = { rate = "20M" } }"#);
    let payload = mbits(&topology, Iperf::udp(3, 1400, 100), 0, 1);
    // 1,400 bytes of payload are 1,442 of the frame; the first burst, 131 KB, comes on top.
    assert!((17.0..21.0).contains(&payload), "{payload} Mbit/s of UDP through 20 Mbit/s");
    assert!(topology.stats(0).dropped("metered") > 1000);
    let back = mbits(&topology, Iperf::udp(2, 1400, 60), 1, 0);
    assert!(back > 40.0, "{back} Mbit/s: the other direction is not metered");
}

#[test]
fn superframes_count_as_what_they_are_cut_into() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    meter(&topology, 0, r#"{ rx = { rate = "50M", burst = "500k" } }"#);
    let sent = mbits(&topology, Iperf::tcp(3), 0, 1);
    assert!((10.0..52.0).contains(&sent), "{sent} Mbit/s of TCP through 50 Mbit/s");
    assert!(topology.stats(0).dropped("metered") > 0);
}

#[test]
fn what_is_sent_to_a_tenant_above_its_rate_is_dropped_and_counted() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(3, 1);
    meter(&topology, 1, r#"{ tx = { rate = "20M" } }"#);
    // From the other host, and from a tenant of the same.
    for from in [0, 3] {
        let before = topology.stats(1);
        let payload = mbits(&topology, Iperf::udp(3, 1400, 100), from, 1);
        assert!((17.0..21.0).contains(&payload), "{payload} Mbit/s of UDP from tenant {from}");
        assert!(topology.stats(1).drops_since(&before).contains_key("metered"));
    }
    let other = mbits(&topology, Iperf::udp(2, 1400, 60), 0, 3);
    assert!(other > 40.0, "{other} Mbit/s: another port is not metered");
}
