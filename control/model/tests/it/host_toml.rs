//! What the file says, and what is said about a file.

use culvert_model::host_toml::{read, to_toml_with_keys};
use culvert_model::{
    AclGroupId, Attach, Host, IngressAction, Miss, ModePreference, Protocol, RouteAction, VtepMatch,
};

const EXAMPLE: &str = include_str!("../../examples/host.toml");

fn report(text: &str) -> String {
    match read(text) {
        Ok(_) => "no fault".to_owned(),
        Err(errors) => errors.report("host.toml"),
    }
}

/// A file with a vnet `blue` and a port `a1`, followed by `rest`.
fn file(rest: &str) -> String {
    let base = r#"[underlay]
interface = "eth0"
addresses = ["192.0.2.1"]
[[vnet]]
id = "blue"
vni = 100
[[port]]
id = "a1"
vnet = "blue"
attach = { xdp = "veth-a1" }
mac = "02:00:00:00:00:01"
ips = ["10.0.0.1"]
"#;
    base.to_owned() + rest
}

#[test]
fn the_example_reads_as_it_says() {
    let host: Host = read(EXAMPLE).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(host.underlay().interfaces[0].as_str(), "eth0");
    assert_eq!(host.underlay().mode, ModePreference::Auto);
    let coding = host.underlay().shard.coding.unwrap();
    assert_eq!((coding.k(), coding.n()), (3, 9));
    assert_eq!(host.underlay().peers[0].keys.sending().unwrap().0, 1);
    assert_eq!(host.vnet("blue").unwrap().gateways.len(), 2);
    assert_eq!(host.vnet("green").unwrap().miss, Miss::Drop);
    assert!(matches!(host.port("a2").unwrap().attach, Attach::Tap { .. }));
    assert!(host.port("a2").unwrap().anti_spoof);
    assert!(host.routes().iter().any(|route| route.action == RouteAction::Drop));
    assert_eq!(host.routes_of(host.port("a1").unwrap()).count(), 3);
    assert_eq!(host.routes_of(host.port("a2").unwrap()).count(), 0);
    let rules = host.ingress_of(host.vnet("blue").unwrap().vni);
    assert_eq!(rules[0].action, IngressAction::DecapValidate);
    assert!(host.ingress_of(host.vnet("green").unwrap().vni).is_empty());
    assert!(host.warnings().is_empty());
    let a1 = host.port("a1").unwrap();
    assert_eq!(a1.acl.iter().map(AclGroupId::as_str).collect::<Vec<_>>(), ["web", "base"]);
    let (rx, tx) = (a1.meter.unwrap().rx.unwrap(), a1.meter.unwrap().tx.unwrap());
    assert_eq!((rx.rate_bps(), rx.burst_bytes()), (1_000_000_000, 2_000_000));
    assert_eq!((tx.rate_bps(), tx.burst_bytes()), (500_000_000, 625_000));
    assert_eq!(a1.hostname.as_ref().unwrap().as_str(), "web-1");
    let dhcp = host.vnet("blue").unwrap().dhcp.as_ref().unwrap();
    assert_eq!((dhcp.dns.len(), dhcp.lease_s, dhcp.routes.len()), (2, 3600, 1));
    assert!(host.vnet("green").unwrap().dhcp.is_none());
    let web = host.acl("web").unwrap();
    assert!(web.stateful);
    assert_eq!(web.rules[0].protocol, Protocol::TCP);
    assert_eq!(web.rules[0].local_ports.to_string(), "80, 443, 8000-8099");
    assert_eq!(web.rules[1].remote_ports.to_string(), "53");
    assert_eq!(host.acl("base").unwrap().rules.len(), 4);
}

#[test]
fn what_is_written_reads_as_the_same_host() {
    let host = read(EXAMPLE).unwrap();
    assert_eq!(read(&to_toml_with_keys(&host)).unwrap(), host);
}

#[test]
fn fields_have_the_documented_defaults() {
    let host = read(&file("[[ingress]]\nvni = 100\naction = \"decap\"\n")).unwrap();
    let port = host.port("a1").unwrap();
    assert!(port.anti_spoof && port.mtu.is_none());
    let rule = host.ingress().iter().next().unwrap();
    assert_eq!((rule.vtep, rule.priority), (VtepMatch::Any, 0));
}

#[test]
fn every_fault_of_a_file_is_reported_at_its_position() {
    let text = r#"[underlay]
interface = "eth0"
addresses = ["192.0.2.1", "192.0.2"]
mtu = 100

[[vnet]]
id = "blue"
vni = 0
flod = true

[[port]]
id = "a1"
vnet = "blue"
attach = { xdp = "veth/a1" }
mac = "02:00:00:00:00:01"

[[port]]
id = "web"
vnet = "red"
attach = "veth-web"
mac = "zz"
ips = ["10.0.0.1", 7, "10.0.0.1"]
mode = "fast"

[[route]]
vnet = "blue"
prefix = "10.0.0.5/24"
to = "elsewhere"

[[mapping]]
vnet = "blue"
ip = "10.0.0.9"
mac = "02:00:00:00:00:09"

[vlan]
"#;
    let expected = r#"host.toml:3:27: underlay: addresses[1] "192.0.2": not an IP address; legal is as 10.0.0.1 or 2001:db8::1
host.toml:4:7: underlay: mtu 100: not an MTU; legal is 576 to 65535 bytes of an IP packet
host.toml:8:7: vnet[0] "blue": vni 0: not a VNI; legal is 1 to 16777215
host.toml:9:1: vnet[0] "blue": "flod": unknown field; legal is id, vni, format, raise_mss, flood, miss, gateway, dhcp; did you mean "flood"?
host.toml:14:10: port[0] "a1": attach "veth/a1": not an interface name; legal is 1 to 15 printable ASCII characters without space, / and :, and not . or ..
host.toml:20:10: port[1] "web": attach string: wrong type; legal is { xdp = "interface" } or { tap = "interface" }
host.toml:21:7: port[1] "web": mac "zz": not a MAC address; legal is six hexadecimal octets, as 02:00:00:00:00:01
host.toml:22:20: port[1] "web": ips[1] integer: wrong type; legal is a string
host.toml:23:8: port[1] "web": mode "fast": unknown; legal is auto, zero-copy, native, generic
host.toml:28:6: route[0]: to "elsewhere": unknown; legal is { vnet = "id" }, "local", "trap" or "drop"
host.toml:30:1: mapping[0]: vtep missing; legal is an IP address
host.toml:35:2: "vlan": unknown section; legal is [underlay], [[vnet]], [[port]], [[route]], [[mapping]], [[ingress]] and [[acl]]
"#;
    assert_eq!(report(text), expected);
}

#[test]
fn faults_of_the_whole_are_reported_at_the_later_value() {
    let text = file(
        r#"[[port]]
id = "a1"
vnet = "red"
attach = { tap = "eth0" }
mac = "02:00:00:00:00:02"
[[route]]
port = "a9"
prefix = "10.0.0.5/24"
to = { vnet = "green" }
[[mapping]]
vnet = "blue"
ip = "10.0.0.1"
mac = "02:00:00:00:00:09"
vtep = "2001:db8::1"
"#,
    );
    let expected = r#"host.toml:14:6: port[1] "a1": id a1: already used by port[0] "a1": id; legal is a value used once
host.toml:15:8: port[1] "a1": vnet "red": no such vnet; legal is the id of a [[vnet]] of this host
host.toml:16:10: port[1] "a1": attach eth0: already used by underlay: interfaces[0]; legal is a value used once
host.toml:19:8: route[0]: port "a9": no such port; legal is the id of a [[port]] of this host; did you mean "a1"?
host.toml:20:10: route[0]: prefix 10.0.0.5/24: has host bits set; the network is 10.0.0.0/24
host.toml:21:6: route[0]: to "green": no such vnet; legal is the id of a [[vnet]] of this host
host.toml:24:6: mapping[0]: ip 10.0.0.1: overlaps port[0] "a1": ips[0] in the same vnet; legal is one owner for each address of a vnet
host.toml:26:8: mapping[0]: vtep 2001:db8::1: the underlay has no IPv6 address to send from; legal is a VTEP of a family in underlay addresses
"#;
    assert_eq!(report(&text), expected);
}

#[test]
fn one_wrong_type_is_one_fault() {
    for (rest, line) in [
        ("[[port]]\nid=\"b\"\nvnet=\"blue\"\nattach={xdp=7}\nmac=\"02::\"\n", "attach integer"),
        (
            "[[mapping]]\nvnet=\"blue\"\nip=1\nmac=\"02:00:00:00:00:02\"\nvtep=\"192.0.2.2\"\n",
            "ip integer",
        ),
        ("[[ingress]]\nvni=\"x\"\naction=\"drop\"\n", "vni string"),
        (
            "[[ingress]]\nvni=1\naction=\"drop\"\npriority=99999999999999999999\n",
            "priority 9223372036854775807",
        ),
        ("[[ingress]]\nvni=1\naction=\"drop\"\npriority=-1\n", "priority -1: out of range"),
        ("[[ingress]]\nvni=1\naction=\"eat\"\n", "action \"eat\": unknown"),
    ] {
        let report = report(&file(rest));
        let hits = report.lines().filter(|found| found.contains(line)).count();
        let others = report.lines().filter(|found| !found.contains(line) && !found.contains("mac"));
        assert_eq!((hits, others.count()), (1, 0), "{report}");
    }
}

#[test]
fn exclusive_fields_are_refused_together() {
    let both = "[[route]]\nvnet = \"blue\"\nport = \"a1\"\nprefix = \"0.0.0.0/0\"\nto = \"drop\"\n";
    assert_eq!(
        report(&file(both)),
        "host.toml:14:8: route[0]: vnet port and vnet both given; legal is one of them\n"
    );
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(
        report(""),
        "host.toml:1:1: underlay: missing; legal is one section with interfaces and addresses\n"
    );
    let report = report("[underlay]\n[[vnet]]\n[[port]]\n[[route]]\n[[ingress]]\n");
    for line in [
        "1:1: underlay: interfaces missing; legal is at least one interface name",
        "1:1: underlay: addresses missing; legal is at least one VTEP address of this host",
        "2:1: vnet[0]: id missing; legal is 1 to 63 of a-z, 0-9 and -",
        "2:1: vnet[0]: vni missing; legal is a number, 1 to 16777215",
        "3:1: port[0]: attach missing; legal is { xdp = \"interface\" } or { tap = \"interface\" }",
        "4:1: route[0]: missing; legal is one of port and vnet",
        "5:1: ingress[0]: action missing; legal is decap-validate, decap, trap or drop",
    ] {
        assert!(report.contains(line), "{line}\n---\n{report}");
    }
}

#[test]
fn text_that_is_not_toml_is_reported_by_position_alone() {
    let report = report("[underlay]\ninterface = eth0\nmtu = 12\n");
    assert!(report.starts_with("host.toml:2:13: "), "{report}");
    assert!(!report.contains("mtu"), "{report}");
}

#[test]
fn a_port_mtu_that_does_not_fit_is_a_warning() {
    let text = file("mtu = 1500\n").replace("[\"192.0.2.1\"]", "[\"192.0.2.1\"]\nmtu = 1500");
    let warnings = read(&text).unwrap().warnings();
    assert_eq!(
        warnings[0].to_string(),
        "port \"a1\": mtu 1500: above the 1450 bytes that fit the underlay; larger packets will be cut, \
         or answered with \"packet too big\""
    );
}

#[test]
fn a_port_mtu_is_compared_with_the_room_of_the_formats_that_its_vnet_speaks() {
    let room = |text: &str| {
        let warnings = read(text).unwrap().warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let said = warnings[0].to_string();
        let (_, after) = said.split_once("above the ").unwrap();
        after.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let text = file("mtu = 1500\n").replace("[\"192.0.2.1\"]", "[\"192.0.2.1\"]\nmtu = 1500");
    let vnet =
        |format: &str| text.replace("vni = 100", &format!("vni = 100\nformat = \"{format}\""));
    let peer = "\n[[underlay.peer]]\nvtep = \"192.0.2.9\"\nformat = \"stt\"\n";
    // IPv4 20, TCP-shaped 20, STT 18, inner Ethernet 14.
    assert_eq!(room(&vnet("stt")), 1500 - 72);
    // A VTEP that the vnet does not know has no say; one that it knows has.
    let mapping = "\n[[mapping]]\nvnet = \"blue\"\nip = \"10.0.0.9\"\nmac = \"02:00:00:00:00:09\"\nvtep = \"192.0.2.9\"\n";
    assert_eq!(room(&format!("{text}{peer}")), 1500 - 50);
    assert_eq!(room(&format!("{text}{peer}{mapping}")), 1500 - 72);
}

#[test]
fn faults_of_policy_are_reported_at_their_position() {
    let text = file(
        r#"acl = ["web"]
meter = { rx = { rate = "fast" }, tx = { burst = "1M" } }
hostname = "Web"
[[vnet]]
id = "green"
vni = 200
[vnet.dhcp]
dns = ["10.0.0.1", "nowhere"]
lease = 5
route = [{ prefix = "10.0.0.0/8", via = "10.0.0.1" }]
name = "x"
[[acl]]
id = "web"
rule = [
    { direction = "in", action = "allow" },
    { direction = "ingress", action = "allow", protocol = "tcpp", local_ports = "90-80" },
    { direction = "ingress", action = "allow", local_ports = 80 },
    { direction = "egress", action = "deny", remote = "10.0.0.1/8", ports = "80" },
    { direction = "egress" },
]
"#,
    );
    let expected = r#"host.toml:14:25: port[0] "a1": meter.rx "fast": not a number; legal is as 64000, 64k, 100M or 2G
host.toml:14:40: port[0] "a1": meter.tx missing; legal is rate, bits per second, as "100M"
host.toml:15:12: port[0] "a1": hostname "Web": not a domain name; legal is labels of a-z, 0-9 and - joined by dots, as web-1.example.internal
host.toml:20:20: vnet[1] "green": dhcp.dns[1] "nowhere": not an IP address; legal is as 10.0.0.1 or 2001:db8::1
host.toml:21:9: vnet[1] "green": dhcp.lease 5: out of range; legal is 60 to 2592000
host.toml:23:1: vnet[1] "green": dhcp "name": unknown field; legal is dns, ntp, domain, lease, route
host.toml:27:19: acl[0] "web": rule[0].direction "in": unknown; legal is ingress, egress
host.toml:28:59: acl[0] "web": rule[1].protocol "tcpp": not an IP protocol; legal is any, tcp, udp, sctp, icmp, icmpv6 or a number, 0 to 255
host.toml:28:81: acl[0] "web": rule[1].local_ports 90-80: reversed; legal is 80-90
host.toml:30:69: acl[0] "web": rule[3] "ports": unknown field; legal is direction, action, protocol, remote, local_ports, remote_ports
host.toml:31:5: acl[0] "web": rule[4].action missing; legal is allow or deny
"#;
    assert_eq!(report(&text), expected);
}

#[test]
fn a_mistyped_group_gets_the_nearest_name() {
    assert_eq!(
        report(&file("acl = [\"wbe\"]\n[[acl]]\nid = \"web\"\n")),
        "host.toml:13:8: port[0] \"a1\": acl[0] \"wbe\": no such ACL group; legal is the id of an [[acl]] of this host; did you mean \"web\"?\n"
    );
}
