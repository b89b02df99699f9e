//! Who cuts superframes on their way out: what `culvert show` says, and what is then on the wire.

use std::time::Duration;

use culvert_tests::segment::Segment;
use culvert_tests::tools::OffloadSocket;
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::{Combo, Family, Peer, Topology, TopologySpec, link, wait_until};
use serde_json::{Value, json};

/// Features of the wire that are off, `tx`, and who cuts what is UDP outside, TCP-shaped over IPv4 and over IPv6.
type Case = (&'static [&'static str], &'static str, [&'static str; 3]);

const CASES: [Case; 6] = [
    (&[], "auto", ["device", "device", "device"]),
    (&["tx-udp-segmentation"], "auto", ["kernel", "device", "device"]),
    (&["tx-tcp-segmentation"], "auto", ["device", "kernel", "device"]),
    (&["tx-tcp6-segmentation"], "auto", ["device", "device", "kernel"]),
    (&["tso", "tx-udp-segmentation"], "packet", ["kernel", "kernel", "kernel"]),
    (&[], "xdp", ["dataplane", "dataplane", "dataplane"]),
];

/// The MTU of the wire.
const MTU: usize = 1600;

/// What `culvert show underlay` says of the wire, and of who cuts.
fn shown(topology: &Topology) -> (Value, String) {
    let show = |args: &[&str]| topology.dataplane(0).cli(&topology.hosts[0].ns, args).unwrap();
    let json: Value = serde_json::from_str(&show(&["-o", "json", "show", "underlay"])).unwrap();
    (json["devices"][0].clone(), show(&["show", "info"]))
}

/// Lengths of the packets that one superframe is on the wire.
fn packets(wire: &OffloadSocket, send: impl FnOnce()) -> Vec<usize> {
    let next = || {
        let got = wire.receive_matching(Duration::from_millis(300), |frame| frame.len() > 1000);
        got.unwrap().map(|got| got.frame.len())
    };
    std::iter::from_fn(next).for_each(drop);
    send();
    std::iter::from_fn(next).collect()
}

fn is_cut_by_whom_it_is_said_to_be(format: &'static str, underlay: Family, kind: usize) {
    let combo = Combo { underlay, ..Combo::SIMPLE };
    let mut spec = TopologySpec::pair(combo).with_peers(Peer::Culvert, Peer::Bare);
    spec.vnet_toml = format;
    let topology = spec.build();
    topology.widen_wire(100);
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let tenant = OffloadSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    let wire = OffloadSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let (header, frame) =
        Segment::between(near, far, false, 1000, vec![7; 20_000]).superframe(1448);
    let host = &topology.hosts[0].ns;
    for (off, tx, [udp, tcp_v4, tcp_v6]) in CASES {
        link::set_features(host, WIRE, off, false);
        topology.reconfigure(0, |toml| {
            toml.replacen("[underlay]\n", &format!("[underlay]\ntx = \"{tx}\"\n"), 1)
        });
        let what = format!("{format}, {underlay:?}, without {off:?}, tx = {tx}");
        let wanted = json!({ "udp": udp, "tcp_ipv4": tcp_v4, "tcp_ipv6": tcp_v6 });
        let said = wait_until(Duration::from_secs(5), || {
            let (device, _) = shown(&topology);
            device["cut_by"] == wanted && device["mtu"] == MTU
        });
        let (device, table) = shown(&topology);
        assert!(said, "{what}: not {wanted} but {device}");
        let in_short = match (udp == tcp_v4, tcp_v4 == tcp_v6) {
            (true, true) => format!(" {udp} "),
            (_, true) => format!("UDP {udp}, TCP {tcp_v4} "),
            _ => format!("UDP {udp}, TCP/IPv4 {tcp_v4}, TCP/IPv6 {tcp_v6} "),
        };
        assert!(table.contains(in_short.trim_end()), "{what}: no \"{in_short}\" in\n{table}");
        let mut seen = Vec::new();
        // Until the way is known, and the workers have heard of the change, it may be otherwise.
        let cutter = [udp, tcp_v4, tcp_v6][kind];
        let cut = wait_until(Duration::from_secs(5), || {
            seen = packets(&wire, || tenant.send(header, &frame).unwrap());
            match cutter {
                "device" => seen.len() == 1 && seen[0] > 20_000,
                _ => seen.len() >= 12 && seen.iter().all(|len| *len <= MTU + 14),
            }
        });
        assert!(cut, "{what}: {seen:?}");
        link::set_features(host, WIRE, off, true);
    }
}

#[test]
fn superframes_in_udp_are_cut_by_whom_it_is_said() {
    is_cut_by_whom_it_is_said_to_be("format = \"geneve\"", Family::V4, 0);
}

#[test]
fn superframes_in_stt_are_cut_by_whom_it_is_said() {
    is_cut_by_whom_it_is_said_to_be("format = \"stt\"", Family::V4, 1);
    is_cut_by_whom_it_is_said_to_be("format = \"stt\"", Family::V6, 2);
}

#[test]
fn superframes_in_shards_are_cut_by_whom_it_is_said() {
    is_cut_by_whom_it_is_said_to_be("format = \"shard\"", Family::V4, 1);
}
