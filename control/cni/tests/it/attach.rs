//! ADD and DEL, in order and out of it.

use serde_json::json;

use crate::host::{Container, Host};

#[test]
fn a_container_gets_its_interface_and_loses_it_again() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.conf(&json!({ "addresses": ["10.0.0.5", "fd00::5/64"] }));
    let result = host.call_for("ADD", &conf, &c1, "eth0").result();
    let [device] = <[String; 1]>::try_from(host.devices()).unwrap();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["interfaces"][0]["name"], *device);
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["interfaces"][1]["sandbox"], *c1.path);
    assert_eq!(
        result["ips"],
        json!([
            { "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 1 },
            { "address": "fd00::5/64", "gateway": "fd00::1", "interface": 1 }
        ])
    );

    let inside = c1.shown("eth0");
    // The wire's MTU less what VXLAN over IPv4 takes.
    assert_eq!(inside["mtu"], 1500);
    assert_eq!(result["interfaces"][1]["mtu"], 1500);
    assert_eq!(inside["address"], result["interfaces"][1]["mac"]);
    assert_eq!((&inside["num_tx_queues"], &inside["num_rx_queues"]), (&json!(1), &json!(1)));
    assert_eq!(c1.addresses("eth0"), ["10.0.0.5/24", "fd00::5/64"]);
    let ready = |a: &serde_json::Value| a["scope"] != "global" || a.get("tentative").is_none();
    assert!(inside["addr_info"].as_array().unwrap().iter().all(ready), "{inside:#}");
    for (family, way) in [("-4", "default via 10.0.0.1"), ("-6", "default via fd00::1")] {
        let routes = c1.ns.run(&format!("ip {family} route show dev eth0"));
        assert!(routes.contains(way), "{routes}");
    }
    // No packet of the host itself leaves there.
    let at_host = host.ns.run(&format!("ip addr show dev {device}"));
    assert!(!at_host.contains("inet"), "{at_host}");

    let port = host.culvertd.script().ports[0].clone();
    assert!(port.id.starts_with("cni-") && port.id.contains("-c1-eth0-"), "{}", port.id);
    assert_eq!(port.ips, ["10.0.0.5", "fd00::5"]);
    assert_eq!((port.vnet.as_str(), port.mtu), ("blue", Some(1500)));
    assert_eq!(json!(port.mac), inside["address"]);
    let link = host.ns.run(&format!("ip link show dev {device}"));
    assert!(link.contains(&format!("alias culvert-cni {}", port.id)), "{link}");

    let mut check = conf.clone();
    check["prevResult"] = result;
    host.call_for("CHECK", &check, &c1, "eth0").succeeds();
    for _ in 0..2 {
        host.call_for("DEL", &check, &c1, "eth0").succeeds();
        host.is_clean();
        assert!(!c1.has("eth0"));
    }
}

#[test]
fn delegated_addresses_are_given_and_taken_back_in_every_version() {
    let host = Host::new();
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let (c1, c2) = (Container::new("c1"), Container::new("c2"));
        let conf = host.delegated(&json!({ "cniVersion": version }));
        for (container, four, six) in [(&c1, 10, "10"), (&c2, 11, "11")] {
            let result = host.call_for("ADD", &conf, container, "eth0").result();
            assert_eq!(result["cniVersion"], version);
            let wanted = [format!("10.0.0.{four}/24"), format!("fd00::{six}/64")];
            assert_eq!(container.addresses("eth0"), wanted);
            assert_eq!(result["ips"][0].get("version").is_some(), version == "0.4.0");
            assert_eq!(result["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
            let mut check = conf.clone();
            check["prevResult"] = result;
            host.call_for("CHECK", &check, container, "eth0").succeeds();
        }
        assert_eq!(host.leases(), ["10.0.0.10", "10.0.0.11", "fd00::10", "fd00::11"]);
        host.call_for("DEL", &conf, &c2, "eth0").succeeds();
        assert_eq!((host.devices().len(), host.ports().len(), host.leases().len()), (1, 1, 2));
        host.call_for("DEL", &conf, &c1, "eth0").succeeds();
        host.is_clean();
        // host-local goes on from the last address it gave.
        std::fs::remove_dir_all(host.scratch.file("leases")).unwrap();
    }
}

#[test]
fn a_second_add_is_refused_and_harms_nothing() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.delegated(&json!({}));
    let result = host.call_for("ADD", &conf, &c1, "eth0").result();
    let before = (host.devices(), host.ports(), host.leases());
    host.call_for("ADD", &conf, &c1, "eth0").fails(101, &["eth0 already"]);
    // The container renamed it; then the name is free and the attachment is not.
    c1.ns.run("ip link set eth0 down");
    c1.ns.run("ip link set eth0 name lan0");
    host.call_for("ADD", &conf, &c1, "eth0").fails(101, &["DEL"]);
    c1.ns.run("ip link set lan0 name eth0");
    c1.ns.run("ip link set eth0 up");
    assert_eq!((host.devices(), host.ports(), host.leases()), before);
    assert_eq!(c1.shown("eth0")["address"], result["interfaces"][1]["mac"]);
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.call_for("ADD", &conf, &c1, "eth0").result();
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.is_clean();
}

#[test]
fn a_del_before_any_add_and_after_the_container_is_harmless() {
    let host = Host::new();
    let conf = host.delegated(&json!({}));
    let c1 = Container::new("c1");
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.call_for("ADD", &conf, &c1, "eth0").result();
    let variables = [("CNI_CONTAINERID", c1.id), ("CNI_IFNAME", "eth0")];
    let path = c1.path.clone();
    drop(c1);
    host.call("DEL", &conf, &[&variables[..], &[("CNI_NETNS", &path)]].concat()).succeeds();
    host.is_clean();
    // The runtime need not say where the namespace was.
    host.call("DEL", &conf, &variables).succeeds();
}

#[test]
fn two_interfaces_of_one_container_have_their_own_ports() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let blue = host.delegated(&json!({}));
    let green = host.conf(&json!({
        "name": "green-net", "vnet": "green", "addresses": ["10.0.0.10/24"], "mtu": 1400,
        "acl": ["web", "base"],
        "routes": [{ "dst": "192.168.0.0/16", "gw": "10.0.0.77" }]
    }));
    host.call_for("ADD", &blue, &c1, "eth0").result();
    let second = host.call_for("ADD", &green, &c1, "eth1").result();
    assert_eq!((host.devices().len(), host.ports().len()), (2, 2));
    assert_eq!(host.culvertd.script().ports[1].acl, ["web", "base"]);
    assert_ne!(c1.shown("eth0")["address"], c1.shown("eth1")["address"]);
    assert_eq!(c1.shown("eth1")["mtu"], 1400);
    assert_eq!(second["routes"], json!([{ "dst": "192.168.0.0/16", "gw": "10.0.0.77" }]));
    host.call_for("DEL", &blue, &c1, "eth0").succeeds();
    assert!(c1.has("eth1") && !c1.has("eth0"));
    let mut check = green.clone();
    check["prevResult"] = second;
    host.call_for("CHECK", &check, &c1, "eth1").succeeds();
    host.call_for("DEL", &green, &c1, "eth1").succeeds();
    host.is_clean();
}

#[test]
fn the_runtime_may_choose_addresses_and_mac() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.conf(&json!({
        "runtimeConfig": { "ips": ["10.0.0.99/24"], "mac": "02:aa:bb:cc:dd:ee" }
    }));
    host.call_for("ADD", &conf, &c1, "eth0").result();
    assert_eq!(c1.addresses("eth0"), ["10.0.0.99/24"]);
    assert_eq!(c1.shown("eth0")["address"], "02:aa:bb:cc:dd:ee");
    assert_eq!(host.culvertd.script().ports[0].mac, "02:aa:bb:cc:dd:ee");
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
}

#[test]
fn a_result_of_a_plug_in_before_is_kept() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.conf(&json!({
        "addresses": ["10.0.0.5"],
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "net1", "sandbox": c1.path, "pciID": "0000:01:00.0" }],
            "ips": [{ "address": "192.0.2.7/24", "interface": 0 }]
        }
    }));
    let result = host.call_for("ADD", &conf, &c1, "eth0").result();
    assert_eq!(result["interfaces"][0]["pciID"], "0000:01:00.0");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][0]["interface"], 0);
    assert_eq!(result["ips"][1]["interface"], 2);
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.is_clean();
}
