//! What does not work is said, and leaves nothing behind.

use serde_json::json;

use crate::host::{Container, Host};

#[test]
fn a_port_that_is_refused_leaves_nothing_behind() {
    let host = Host::new();
    let c1 = Container::new("c1");
    host.culvertd.script().refuse = Some("ips 10.0.0.10: port \"web\" has it".to_owned());
    let conf = host.delegated(&json!({}));
    host.call_for("ADD", &conf, &c1, "eth0").fails(102, &["port \"web\" has it"]);
    host.is_clean();
    assert!(!c1.has("eth0"));
}

#[test]
fn a_port_that_is_not_carried_in_time_leaves_nothing_behind() {
    let host = Host::new();
    let c1 = Container::new("c1");
    host.culvertd.script().never_carried = true;
    let conf = host.delegated(&json!({}));
    host.call_for("ADD", &conf, &c1, "eth0").fails(11, &["no such device", "try again"]);
    host.is_clean();
    assert!(!c1.has("eth0"));
}

#[test]
fn an_add_without_culvertd_changes_nothing() {
    let mut host = Host::new();
    let c1 = Container::new("c1");
    host.culvertd.stop();
    let conf = host.delegated(&json!({}));
    host.call_for("ADD", &conf, &c1, "eth0").fails(11, &["culvertd.sock", "is it running?"]);
    host.is_clean();
}

#[test]
fn a_del_without_culvertd_closes_the_container_and_is_to_be_repeated() {
    let mut host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.delegated(&json!({}));
    host.call_for("ADD", &conf, &c1, "eth0").result();
    host.culvertd.stop();
    host.call_for("DEL", &conf, &c1, "eth0").fails(11, &["culvertd.sock"]);
    assert!(!c1.has("eth0"));
    // Nobody else may get its addresses while the port has them.
    assert_eq!((host.devices().len(), host.ports().len(), host.leases().len()), (0, 1, 2));
    host.culvertd.restart();
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.is_clean();
}

#[test]
fn changes_of_others_are_no_error() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let conf = host.conf(&json!({ "addresses": ["10.0.0.5"] }));
    host.culvertd.script().conflicts = 3;
    host.call_for("ADD", &conf, &c1, "eth0").result();
    host.culvertd.script().conflicts = 1000;
    host.call_for("DEL", &conf, &c1, "eth0").fails(11, &["others were faster"]);
    host.culvertd.script().conflicts = 0;
    host.call_for("DEL", &conf, &c1, "eth0").succeeds();
    host.is_clean();
}

#[test]
fn ipam_that_fails_is_told_in_its_own_words() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let mut conf = host.delegated(&json!({}));
    conf["ipam"]["ranges"] = json!([[{ "subnet": "10.0.0.0/31" }]]);
    let ran = host.call_for("ADD", &conf, &c1, "eth0");
    let (_, message) = ran.error();
    assert!(message.starts_with("IPAM plug-in host-local: "), "{message}");
    assert!(message.contains("10.0.0.0/31"), "{message}");
    host.is_clean();
    conf["ipam"] = json!({ "type": "no-such-plug-in" });
    host.call_for("ADD", &conf, &c1, "eth0").fails(104, &["no-such-plug-in", "/usr/lib/cni"]);
    host.is_clean();
}

#[test]
fn wrong_words_are_answered_by_right_ones() {
    let host = Host::new();
    let c1 = Container::new("c1");
    let addresses = json!(["10.0.0.5"]);
    let unknown = host.conf(&json!({ "vnet": "blu", "addresses": addresses }));
    host.call_for("ADD", &unknown, &c1, "eth0").fails(7, &["vnet \"blu\"", "blue, green"]);
    let without = host.conf(&json!({}));
    host.call_for("ADD", &without, &c1, "eth0").fails(7, &["ipam", "addresses"]);
    let conf = host.conf(&json!({ "addresses": addresses }));
    let own = format!("/run/netns/{}", host.ns.name());
    let variables =
        |netns| [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns)];
    host.call("ADD", &conf, &variables(&own)).fails(4, &["CNI_NETNS", "host's own"]);
    host.call("ADD", &conf, &variables("/run/netns/none")).fails(4, &["CNI_NETNS", "none"]);
    host.call("ADD", &conf, &variables("/dev/null")).fails(100, &["CNI_NETNS"]);
    host.call("ADD", &conf, &[]).fails(4, &["CNI_CONTAINERID"]);
    host.is_clean();
}
