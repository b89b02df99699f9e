//! CHECK, STATUS and VERSION.

use serde_json::json;

use crate::host::{Container, Host};

#[test]
fn check_finds_each_kind_of_damage() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.conf(&json!({ "addresses": ["10.0.0.5"] }));
    let mut check = conf.clone();
    check["prevResult"] = host.call_for("ADD", &conf, &c1, "eth0").result();
    let device = host.devices().remove(0);
    let mac = c1.shown("eth0")["address"].as_str().unwrap().to_owned();
    let is_damaged = |words: &[&str]| host.call_for("CHECK", &check, &c1, "eth0").fails(103, words);

    for (damage, words, mend) in [
        ("ip route del default", "route to 0.0.0.0/0", "ip route add default via 10.0.0.1"),
        ("ip link set eth0 address 02:00:00:00:00:99", "MAC", ""),
        ("ip link set eth0 down", "eth0 is down", ""),
    ] {
        c1.ns.run(damage);
        is_damaged(&[words]);
        let mac = format!("ip link set eth0 address {mac} up");
        c1.ns.run(if mend.is_empty() { &mac } else { mend });
        c1.ns.run("ip route replace default via 10.0.0.1");
        host.call_for("CHECK", &check, &c1, "eth0").succeeds();
    }
    c1.ns.run("ip addr del 10.0.0.5/24 dev eth0");
    is_damaged(&["lacks the address 10.0.0.5/24"]);
    c1.ns.run("ip addr add 10.0.0.5/24 dev eth0");
    c1.ns.run("ip route replace default via 10.0.0.1");

    host.ns.run(&format!("ip link set {device} down"));
    is_damaged(&[&device, "down"]);
    host.ns.run(&format!("ip link set {device} up"));
    c1.ns.run("ip route replace default via 10.0.0.1");
    let port = host.culvertd.script().ports.remove(0);
    is_damaged(&["no port", &port.id]);
    let mut other = port.clone();
    other.ips.clear();
    host.culvertd.script().ports = vec![other];
    is_damaged(&["lacks the address 10.0.0.5"]);
    host.culvertd.script().ports = vec![port];
    host.call_for("CHECK", &check, &c1, "eth0").succeeds();

    host.call_for("CHECK", &conf, &c1, "eth0").fails(7, &["prevResult"]);
    c1.ns.run("ip link del eth0");
    is_damaged(&[&device, "gone"]);
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.is_clean();
}

#[test]
fn status_says_whether_containers_can_be_attached_and_whether_they_have_connections() {
    let mut host = Host::new();
    let conf = host.delegated(&json!({}));
    host.call("STATUS", &conf, &[]).succeeds();
    host.culvertd.script().no_dataplane = true;
    host.call("STATUS", &conf, &[]).fails(51, &["it is gone"]);
    host.culvertd.script().no_dataplane = false;
    let unknown = host.conf(&json!({ "vnet": "red" }));
    host.call("STATUS", &unknown, &[]).fails(50, &["red"]);
    host.culvertd.stop();
    host.call("STATUS", &conf, &[]).fails(50, &["culvertd"]);
    host.dataplane = None;
    host.call("STATUS", &conf, &[]).fails(51, &["no dataplane"]);
}

#[test]
fn versions_are_told_and_verbs_belong_to_them() {
    let host = Host::new();
    for asked in ["0.1.0", "0.4.0", "1.0.0", "1.1.0", "9.0.0"] {
        let told = host.call("VERSION", &json!({ "cniVersion": asked }), &[]).result();
        let supported = ["0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(told, json!({ "cniVersion": asked, "supportedVersions": supported }));
    }
    let old = host.conf(&json!({ "cniVersion": "1.0.0" }));
    host.call("STATUS", &old, &[]).fails(4, &["1.1.0"]);
    let older = host.conf(&json!({ "cniVersion": "0.3.1" }));
    let ran = host.call("ADD", &older, &[]);
    ran.fails(1, &["0.3.1"]);
    assert!(ran.out.contains("legal is 0.4.0, 1.0.0, 1.1.0"), "{}", ran.out);
}
