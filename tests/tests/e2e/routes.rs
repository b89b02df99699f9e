//! Gateways, egress routes, misses, and what is trapped.

use std::net::IpAddr;
use std::time::Duration;

use culvert_tests::tools::{RawSocket, ping, tcp_transfer};
use culvert_tests::topology::{TENANT_DEVICE, TenantSpec, VnetSpec, WIRE, mac_bytes};
use culvert_tests::{Combo, Peer, Topology, TopologySpec, checks, craft, view, wait_until};

const MARK: &[u8] = b"routed, switched, trapped or dropped";
/// For what must come, and for what must not.
const PATIENCE: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(300);
const GATEWAY_MACS: [&str; 2] = ["02:77:01:fe:00:fe", "02:77:02:fe:00:fe"];

fn carries_mark(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|w| w == MARK)
}

/// Vnets blue and green, a tenant of each on both hosts (0 and 1 blue, 2 and 3 green), a gateway in each vnet, and
/// routes from each to the other.
fn two_routed_vnets() -> Topology {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.vnets.push(VnetSpec { name: "green", vni: 200, subnet: 2, flood: false });
    for host in 0..2 {
        spec.tenants.push(TenantSpec { host, vnet: 1, number: [1, 2][host], anti_spoof: true });
    }
    let mut routes = String::new();
    for vnet in ["blue", "green"] {
        for (subnet, to) in [(1, "blue"), (2, "green")] {
            for prefix in [format!("10.77.{subnet}.0/24"), format!("fd77:{subnet}::/64")] {
                routes += &format!(
                    "[[route]]\nvnet = \"{vnet}\"\nprefix = \"{prefix}\"\nto = {{ vnet = \"{to}\" }}\n"
                );
            }
        }
    }
    spec.extra_toml = [routes.clone(), routes];
    let topology = spec.build();
    for host in 0..2 {
        topology.reconfigure(host, |toml| {
            let gateway = |subnet: usize| {
                let mac = GATEWAY_MACS[subnet - 1];
                format!(
                    "gateway = [\n{{ ip = \"10.77.{subnet}.254/24\", mac = \"{mac}\" }},\n\
                     {{ ip = \"fd77:{subnet}::fe/64\", mac = \"{mac}\" }}]\n"
                )
            };
            toml.replace("vni = 100\n", &format!("vni = 100\n{}", gateway(1)))
                .replace("vni = 200\n", &format!("vni = 200\n{}", gateway(2)))
        });
    }
    for tenant in &topology.tenants {
        let [own, other] = if tenant.spec.vnet == 0 { [1, 2] } else { [2, 1] };
        tenant.ns.run(&format!("ip route add 10.77.{other}.0/24 via 10.77.{own}.254"));
        tenant.ns.run(&format!("ip route add fd77:{other}::/64 via fd77:{own}::fe"));
    }
    topology
}

#[test]
fn tenants_of_two_vnets_talk_through_gateways() {
    let topology = two_routed_vnets();
    // In the vnet, to the other vnet on this host, and there on the other host.
    for to in [1, 2, 3] {
        topology.wait_connected(0, to);
        let [a, b] = [&topology.tenants[0], &topology.tenants[to]];
        for dst in [IpAddr::from(b.v4), b.v6.into()] {
            tcp_transfer(&a.ns, &b.ns, dst, 2 << 20).unwrap_or_else(|e| panic!("to {to}: {e}"));
        }
    }

    let [near, far] = [&topology.tenants[0], &topology.tenants[3]];
    let from = RawSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    let to = RawSocket::open(&far.ns, TENANT_DEVICE).unwrap();
    for ipv6 in [false, true] {
        let mut frame = craft::between(near, far, ipv6, 9, MARK);
        frame[..6].copy_from_slice(&mac_bytes(GATEWAY_MACS[0]));
        from.send(&frame).unwrap();
        let got = to.receive_matching(Duration::from_secs(2), carries_mark).unwrap().unwrap();
        // RFC 1812: a router takes one from the hop limit and writes its own address as the source.
        assert_eq!(got[..6], far.mac_bytes());
        assert_eq!(got[6..12], mac_bytes(GATEWAY_MACS[1]));
        let [was, is] = [view::ip(&frame).unwrap(), view::ip(&got).unwrap()];
        assert_eq!(view::Ip { ttl: was.ttl - 1, ..was }, is);
        assert!(ipv6 || view::sums_to_zero(&got[14..34]), "wrong IPv4 header checksum");

        craft::set_ttl(&mut frame, 1);
        from.drain().unwrap();
        checks::counted(&topology, 0, "ttl_exceeded", 1, || from.send(&frame).unwrap());
        let exceeded = |frame: &[u8]| {
            view::ip(frame).is_some_and(|ip| {
                let kind = if ipv6 { 3 } else { 11 };
                ip.payload.starts_with(&[kind, 0]) && [1, 58].contains(&ip.proto)
            })
        };
        let error = from.receive_matching(PATIENCE, exceeded).unwrap().expect("no time exceeded");
        let error = view::ip(&error).unwrap();
        let gateway: IpAddr = if ipv6 { "fd77:1::fe" } else { "10.77.1.254" }.parse().unwrap();
        assert_eq!((error.src, error.dst), (gateway, view::ip(&frame).unwrap().src));
        if ipv6 {
            assert!(view::payload_sum_is_right(&error));
        } else {
            assert!(view::sums_to_zero(&error.payload));
        }
        assert_eq!(error.payload[8..][..28], frame[14..][..28], "another packet is quoted");
    }
}

#[test]
fn without_a_route_the_gateway_leads_nowhere() {
    let topology = two_routed_vnets();
    topology.wait_connected(0, 3);
    let only_own = |toml: String| -> String {
        let (own, _) = toml.split_once("[[route]]").unwrap();
        own.to_owned()
    };
    // The sending host decides where its tenants may go...
    topology.reconfigure(0, only_own);
    let [near, far] = [&topology.tenants[0], &topology.tenants[3]];
    assert!(!ping(&near.ns, far.v4.into(), 1, 56).all_answered());
    // ...and the receiving one does not take a routed packet that its own routes forbid.
    let topology = two_routed_vnets();
    topology.wait_connected(0, 3);
    topology.reconfigure(1, only_own);
    let from = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let mut frame = craft::between(&topology.tenants[0], &topology.tenants[3], false, 9, MARK);
    frame[..6].copy_from_slice(&mac_bytes(GATEWAY_MACS[0]));
    checks::counted(&topology, 1, "source_mismatch", 3, || {
        (0..3).for_each(|_| from.send(&frame).unwrap());
    });
}

/// What the rules make of a packet from tenant 0 to tenant 1, which is on the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    Counted(&'static str),
    Trapped,
}

/// A pair of tenants whose far host is played by the test.
struct Bench {
    topology: Topology,
    tenant: RawSocket,
    wire: RawSocket,
}

impl Bench {
    fn new() -> Self {
        let spec = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Culvert, Peer::Bare);
        let topology = spec.build();
        let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
        let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
        let bench = Self { topology, tenant, wire };
        let frame = bench.frame(false);
        assert!(
            wait_until(Duration::from_secs(5), || bench.arrives_within(SHORT, &frame)),
            "no way at all"
        );
        bench
    }

    fn frame(&self, ipv6: bool) -> Vec<u8> {
        let [near, far] = [&self.topology.tenants[0], &self.topology.tenants[1]];
        craft::between(near, far, ipv6, 9, MARK)
    }

    fn arrives(&self, frame: &[u8]) -> bool {
        self.arrives_within(PATIENCE, frame)
    }

    fn arrives_within(&self, time: Duration, frame: &[u8]) -> bool {
        self.wire.drain().unwrap();
        self.tenant.send(frame).unwrap();
        self.wire.receive_matching(time, carries_mark).unwrap().is_some()
    }

    #[track_caller]
    fn assert_fate(&self, what: &str, frame: &[u8], fate: Fate) {
        match fate {
            Fate::Arrives => assert!(self.arrives(frame), "{what}: it does not arrive"),
            Fate::Counted(reason) => {
                checks::counted(&self.topology, 0, reason, 1, || {
                    assert!(!self.arrives_within(SHORT, frame), "{what}: it arrives");
                });
            }
            Fate::Trapped => {
                let trap = self.trapped(|| drop(self.tenant.send(frame)));
                assert_eq!(trap["port"], "t0", "{what}");
                assert_eq!(trap["frame_len"], frame.len(), "{what}");
                let head: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(trap["head"], head, "{what}");
                let counted = || self.topology.stats(0).port("t0")["trapped"].as_u64().unwrap();
                let before = counted();
                assert!(!self.arrives_within(SHORT, frame), "{what}: a trapped frame goes on, too");
                assert!(wait_until(PATIENCE, || counted() == before + 1), "{what}: not counted");
            }
        }
    }

    /// The first trap that `culvert traps` prints while `action` is done again and again.
    #[track_caller]
    fn trapped(&self, action: impl Fn()) -> serde_json::Value {
        let host = &self.topology.hosts[0].ns;
        let dataplane = self.topology.dataplane(0);
        let args = ["-o", "json", "traps", "-n", "1"];
        let mut traps = dataplane.spawn_cli(host, &self.topology.scratch, &args);
        let ended = wait_until(Duration::from_secs(5), || {
            action();
            traps.status().is_some()
        });
        assert!(ended, "nothing was trapped");
        serde_json::from_str(&traps.log()).unwrap_or_else(|e| panic!("{e}: {}", traps.log()))
    }
}

fn route(scope: &str, prefix: &str, to: &str) -> String {
    let to = if to == "blue" { "{ vnet = \"blue\" }".to_owned() } else { format!("\"{to}\"") };
    format!("[[route]]\n{scope}\nprefix = \"{prefix}\"\nto = {to}\n")
}

#[test]
fn the_longest_prefix_decides_and_a_ports_own_among_equals() {
    const VNET: &str = "vnet = \"blue\"";
    const PORT: &str = "port = \"t0\"";
    let bench = Bench::new();
    // Scope, whether the prefix is the destination alone (else its subnet), action.
    type Rule = (&'static str, bool, &'static str);
    let cases: [(&[Rule], Fate); 11] = [
        (&[], Fate::Arrives),
        (&[(VNET, false, "blue")], Fate::Arrives),
        (&[(VNET, false, "blue"), (VNET, true, "drop")], Fate::Counted("route_drop")),
        (&[(VNET, false, "drop"), (VNET, true, "blue")], Fate::Arrives),
        (&[(VNET, false, "blue"), (VNET, true, "local")], Fate::Counted("not_local")),
        (&[(VNET, false, "blue"), (VNET, true, "trap")], Fate::Trapped),
        (&[(PORT, true, "blue"), (VNET, true, "drop")], Fate::Arrives),
        (&[(PORT, true, "drop"), (VNET, true, "blue")], Fate::Counted("route_drop")),
        (&[(PORT, false, "blue"), (VNET, true, "drop")], Fate::Counted("route_drop")),
        (&[(PORT, false, "drop"), (VNET, true, "blue")], Fate::Arrives),
        (&[(PORT, false, "trap")], Fate::Trapped),
    ];
    for (rules, fate) in cases {
        for ipv6 in [false, true] {
            let toml = rules.iter().map(|(scope, exact, to)| {
                let prefix = match (ipv6, exact) {
                    (false, true) => "10.77.1.2/32",
                    (false, false) => "10.77.1.0/24",
                    (true, true) => "fd77:1::2/128",
                    (true, false) => "fd77:1::/64",
                };
                route(scope, prefix, to)
            });
            let toml: String = toml.collect();
            bench.topology.reconfigure(0, |base| format!("{base}\n{toml}"));
            bench.assert_fate(&format!("IPv6 {ipv6}: {rules:?}"), &bench.frame(ipv6), fate);
        }
    }
    // Routes that cover something else.
    let elsewhere = route(VNET, "192.0.2.0/24", "blue");
    bench.topology.reconfigure(0, |base| format!("{base}\n{elsewhere}"));
    bench.assert_fate("uncovered", &bench.frame(false), Fate::Counted("no_route"));
}

#[test]
fn a_route_that_says_local_reaches_tenants_of_this_host_alone() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let local = route("port = \"t0\"", "10.77.1.0/24", "local")
        + &route("port = \"t0\"", "fd77:1::/64", "local");
    topology.reconfigure(0, |base| format!("{base}\n{local}"));
    topology.wait_connected(0, 2);
    let from = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    for ipv6 in [false, true] {
        let frame = craft::between(&topology.tenants[0], &topology.tenants[1], ipv6, 9, MARK);
        checks::counted(&topology, 0, "not_local", 2, || {
            (0..2).for_each(|_| from.send(&frame).unwrap());
        });
    }
    // The routes are those of one port.
    topology.wait_connected(2, 1);
}

#[test]
fn what_no_mapping_knows_is_dropped_or_trapped_as_the_vnet_says() {
    let bench = Bench::new();
    let near = &bench.topology.tenants[0];
    let unknown = |ipv6: bool| {
        let [src, dst]: [IpAddr; 2] = if ipv6 {
            [near.v6.into(), craft::stranger(near.v6.into())]
        } else {
            [near.v4.into(), craft::stranger(near.v4.into())]
        };
        craft::udp([near.mac_bytes(), [2, 0x77, 9, 9, 9, 9]], [src, dst], [1, 9], MARK)
    };
    for ipv6 in [false, true] {
        bench.assert_fate("drop", &unknown(ipv6), Fate::Counted("no_mapping"));
    }
    bench
        .topology
        .reconfigure(0, |toml| toml.replace("vni = 100\n", "vni = 100\nmiss = \"trap\"\n"));
    for ipv6 in [false, true] {
        bench.assert_fate("trap", &unknown(ipv6), Fate::Trapped);
        bench.assert_fate("known", &bench.frame(ipv6), Fate::Arrives);
    }
    // More than anyone reads: what is left out is counted, so that all is accounted for.
    let before = bench.topology.stats(0);
    let flood = unknown(false);
    for _ in 0..5000 {
        bench.tenant.send(&flood).unwrap();
    }
    let limited = wait_until(Duration::from_secs(3), || {
        bench.topology.stats(0).drops_since(&before).contains_key("trap_limited")
    });
    assert!(limited, "{:?}", bench.topology.stats(0).drops_since(&before));
    assert!(bench.arrives(&bench.frame(false)), "a flood of traps stops honest traffic");
}

#[test]
fn an_ingress_rule_traps_drops_or_takes_what_comes_from_a_vtep() {
    let bench = Bench::new();
    let topology = &bench.topology;
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let mapped = craft::tunnelled(topology, 1, 100, &craft::between(far, near, false, 9, MARK));
    let stranger = craft::stranger(far.v4.into());
    let unmapped =
        craft::udp([far.mac_bytes(), near.mac_bytes()], [stranger, near.v4.into()], [1, 9], MARK);
    let unmapped = craft::tunnelled(topology, 1, 100, &unmapped);
    let comes_within = |time: Duration, frame: &[u8]| {
        bench.tenant.drain().unwrap();
        bench.wire.send(frame).unwrap();
        bench.tenant.receive_matching(time, carries_mark).unwrap().is_some()
    };
    let comes = |frame: &[u8]| comes_within(PATIENCE, frame);
    let stays_away = |frame: &[u8]| !comes_within(SHORT, frame);
    let vtep = topology.hosts[1].vtep;
    let rule = |vtep: &str, priority: u32, action: &str| {
        format!(
            "[[ingress]]\nvni = 100\nvtep = \"{vtep}\"\npriority = {priority}\naction = \"{action}\"\n"
        )
    };
    let with = |rules: String| topology.reconfigure(0, |base| format!("{base}\n{rules}"));
    assert!(comes(&mapped));
    with(rule("any", 1, "decap-validate"));
    assert!(comes(&mapped));
    checks::counted(topology, 0, "source_mismatch", 1, || assert!(stays_away(&unmapped)));
    with(rule("any", 1, "decap"));
    assert!(comes(&mapped) && comes(&unmapped));
    with(rule("any", 1, "decap") + &rule(&format!("{vtep}/32"), 9, "drop"));
    checks::counted(topology, 0, "ingress_drop", 1, || assert!(stays_away(&mapped)));
    with(rule("any", 9, "decap") + &rule(&format!("{vtep}/32"), 1, "drop"));
    assert!(comes(&mapped), "the greater priority decides");
    with(rule("203.0.113.0/24", 9, "decap"));
    checks::counted(topology, 0, "unknown_vtep", 1, || assert!(stays_away(&mapped)));
    with(rule("any", 1, "trap"));
    let trap = bench.trapped(|| bench.wire.send(&mapped).unwrap());
    assert!(trap["port"].is_null(), "{trap}");
    assert!(topology.stats(0).value()["underlay_trapped"].as_u64() > Some(0));
    assert!(stays_away(&mapped));
}
