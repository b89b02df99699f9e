//! GC.

use serde_json::json;

use crate::host::{Container, Host};

#[test]
fn only_what_the_runtime_names_is_left_of_a_network() {
    let mut host = Host::new();
    let [c1, c2, c3] = ["c1", "c2", "c3"].map(Container::new);
    let blue = host.delegated(&json!({}));
    let green =
        host.conf(&json!({ "name": "green-net", "vnet": "green", "addresses": ["10.9.0.1/24"] }));
    for container in [&c1, &c2] {
        host.call_for("ADD", &blue, container, "eth0").result();
    }
    host.call_for("ADD", &green, &c3, "eth0").result();
    host.ns.run("ip link add cv-other type veth peer name cv-peer");

    // A list that is not there is not an empty one.
    host.call("GC", &blue, &[]).fails(7, &["cni.dev/valid-attachments"]);
    let mut gc = blue.clone();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "c1", "ifname": "eth0" }]);
    host.culvertd.stop();
    host.call("GC", &gc, &[]).fails(11, &["culvertd"]);
    host.culvertd.restart();
    for _ in 0..2 {
        host.call("GC", &gc, &[]).succeeds();
        assert!(c1.has("eth0") && !c2.has("eth0") && c3.has("eth0"));
        assert_eq!(host.ports().len(), 2);
        assert_eq!(host.devices().len(), 4);
    }
    // host-local of this distribution is from before GC; a DEL that comes late frees its addresses.
    host.call_for("DEL", &blue, &c2, "eth0").succeeds();
    assert_eq!(host.leases(), ["10.0.0.10", "fd00::10"]);
    gc["cni.dev/valid-attachments"] = json!(null);
    host.call("GC", &gc, &[]).succeeds();
    assert!(!c1.has("eth0") && c3.has("eth0"));
}
