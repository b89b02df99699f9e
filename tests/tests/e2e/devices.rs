//! Devices that change hands, mode or role, come, go and fail, under a running dataplane.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use culvert_tests::combo::Attach;
use culvert_tests::tools::{Datagrams, RawSocket, ping, udp_exchange};
use culvert_tests::topology::{TENANT_DEVICE, WIRE, mac_bytes};
use culvert_tests::{
    Combo, Family, Netns, Peer, Topology, TopologySpec, checks, craft, link, sys, wait_until,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);

/// Where a tenant would reach the host, if anything let it.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn show(topology: &Topology, what: &str) -> Value {
    let text = topology.dataplane(0).cli(&topology.hosts[0].ns, &["-o", "json", "show", what]);
    serde_json::from_str(&text.unwrap()).unwrap()
}

/// What `show ports` says of one port.
fn port(topology: &Topology, id: &str) -> Value {
    let shown = show(topology, "ports");
    let list = shown.as_array().or_else(|| shown["ports"].as_array()).unwrap();
    list.iter().find(|port| port["id"] == id).cloned().unwrap_or(Value::Null)
}

#[track_caller]
fn wait_state(topology: &Topology, id: &str, state: &str) {
    let reached = wait_until(PATIENCE, || port(topology, id)["state"] == state);
    assert!(reached, "{id} is not {state}: {}", port(topology, id));
}

/// `toml` with another line in the section of the port of this device.
fn with_line(toml: &str, device: &str, field: &str, line: &str) -> String {
    let mut sections: Vec<String> = toml.split("\n\n").map(str::to_owned).collect();
    let attach = format!("= \"{device}\" }}");
    let section = sections.iter_mut().find(|section| section.contains(&attach)).unwrap();
    let lines = section.lines().map(|old| {
        if old.starts_with(&format!("{field} = ")) { line.to_owned() } else { old.to_owned() }
    });
    *section = lines.collect::<Vec<_>>().join("\n");
    sections.join("\n\n")
}

fn with_mode(toml: &str, device: &str, mode: &str) -> String {
    with_line(toml, device, "mode", &format!("mode = \"{mode}\""))
}

fn with_id(toml: &str, device: &str, id: &str) -> String {
    with_line(toml, device, "id", &format!("id = \"{id}\""))
}

/// One more port, of a device of its own.
fn extra_port(id: &str, device: &str, number: u8) -> String {
    format!(
        "\n\n[[port]]\nid = \"{id}\"\nvnet = \"blue\"\nattach = {{ xdp = \"{device}\" }}\n\
         mac = \"02:00:00:00:00:{number:02}\"\nips = [\"10.77.1.{number}\"]\nmode = \"auto\""
    )
}

fn apply(topology: &Topology, toml: &str) {
    topology.dataplane(0).write_config(toml);
    topology.dataplane(0).apply(&topology.hosts[0].ns);
}

/// Applies a state that must be refused by a message with all of `words`.
#[track_caller]
fn refuse(topology: &Topology, toml: &str, words: &[&str]) {
    topology.dataplane(0).write_config(toml);
    let error = match topology.dataplane(0).try_apply(&topology.hosts[0].ns) {
        Ok(out) => panic!("accepted:\n{toml}\n{out}"),
        Err(error) => error,
    };
    for word in words {
        assert!(error.stderr().contains(word), "the message lacks \"{word}\":\n{}", error.stderr());
    }
}

/// Everything of host A that a refused state must leave alone.
fn fingerprint(topology: &Topology) -> (Value, Value, Value, Vec<String>, String) {
    let mut info = show(topology, "info");
    let generation = info["generation"].take();
    let mut pins: Vec<_> = std::fs::read_dir(topology.dataplane(0).bpffs())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    pins.sort();
    let links = topology.hosts[0].ns.run("ip -o link show");
    // Without what counts: "prog/xdp id 7" is the same program as before.
    (generation, show(topology, "ports"), show(topology, "host"), pins, links)
}

fn carries(topology: &Topology, from: usize, to: usize) {
    let [a, b] = [&topology.tenants[from], &topology.tenants[to]];
    let what = Datagrams::plain(700, 30);
    let report = udp_exchange(&a.ns, &b.ns, topology.address(to), what).unwrap();
    assert!(report.is_perfect(), "{from} to {to}: {report:?}");
}

/// Floods the host from tenant 0, past all that the tenant's stack would do, while `action` runs.
/// Returns how many datagrams reached a socket of the host, which must be bound to all of it.
fn reached_the_host(topology: &mut Topology, action: impl FnOnce(&mut Topology)) -> usize {
    let (host, device) = (&topology.hosts[0].ns, topology.tenants[0].port.clone());
    host.run(&format!("ip addr replace {HOST}/24 dev {device}"));
    let shown = host.run(&format!("ip -o link show {device}"));
    let mac = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let socket = host.enter(|| UdpSocket::bind(SocketAddr::from((HOST, 4000)))).unwrap();
    sys::force_receive_buffer(&socket, 16 << 20).unwrap();
    let flood = RawSocket::open_to_flood(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let macs = [topology.tenants[0].mac_bytes(), mac_bytes(&mac)];
    let frame = craft::udp(macs, [GUEST.into(), HOST.into()], [4000, 4000], &[7; 64]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let _ = flood.send_many(&frame, 16);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| action(topology)));
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 100];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
}

#[test]
fn a_device_that_nobody_took_lets_its_tenant_reach_the_host() {
    // The control of those below: what they look for can be seen.
    let mut topology = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Bare).build();
    assert!(reached_the_host(&mut topology, |_| {}) > 100);
}

#[test]
fn no_frame_of_a_tenant_reaches_the_host_while_its_port_changes() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let reached = reached_the_host(&mut topology, |topology| {
        for _ in 0..3 {
            apply(topology, &with_id(&good, "t0", "other"));
            assert_eq!(port(topology, "other")["state"], "active");
            for mode in ["native", "generic", "native", "auto"] {
                apply(topology, &with_mode(&good, "t0", mode));
                let shown = port(topology, "t0");
                let expected = if mode == "native" { "native" } else { "generic" };
                assert_eq!(shown["mode"], expected, "{shown}");
            }
            refuse(topology, &with_mode(&good, "t0", "zero-copy"), &["t0", "zero-copy"]);
            assert_eq!(port(topology, "t0")["mode"], "generic");
        }
    });
    assert_eq!(reached, 0, "datagrams reached the host's stack");
    apply(&topology, &good);
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
}

#[test]
fn a_device_carries_in_its_new_role_and_mode() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    apply(&topology, &with_id(&good, "t0", "other"));
    topology.wait_connected(0, 1);
    carries(&topology, 0, 1);
    let native = good.replace("mode = \"auto\"", "mode = \"native\"");
    apply(&topology, &native);
    topology.wait_connected(0, 1);
    carries(&topology, 0, 1);
    carries(&topology, 1, 0);
    assert_eq!(show(&topology, "info")["underlay"][0]["mode"], "native");
    apply(&topology, &good);
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
}

#[test]
fn a_state_refused_halfway_changes_nothing() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 3);
    let good = topology.host_toml(0);
    let host = &topology.hosts[0].ns;
    for (name, queues) in [("n1", 1), ("n2", 9), ("n3", 1)] {
        host.run(&format!(
            "ip link add {name} numtxqueues {queues} numrxqueues {queues} type veth peer name {name}p"
        ));
    }
    let before = fingerprint(&topology);
    // The second of three new devices cannot be opened; the others can.
    let mut three = with_mode(&with_id(&good, "t0", "other"), "t2", "native");
    for (n, name) in ["n1", "n2", "n3"].iter().enumerate() {
        three.push_str(&extra_port(name, name, 51 + n as u8));
    }
    for _ in 0..3 {
        refuse(&topology, &three, &["n2", "9 receive queues"]);
    }
    assert_eq!(fingerprint(&topology), before);
    // Two devices change their mode; the second does not take it.
    let modes = with_mode(&with_mode(&good, "t0", "native"), "t2", "zero-copy");
    refuse(&topology, &modes, &["t2", "zero-copy"]);
    let after = fingerprint(&topology);
    assert_eq!(
        (&after.0, &after.1, &after.2, &after.3),
        (&before.0, &before.1, &before.2, &before.3)
    );
    carries(&topology, 0, 1);
    carries(&topology, 2, 3);
    // The good ones of the three are nobody's, and can be had.
    apply(&topology, &(good.clone() + &extra_port("n1", "n1", 51) + &extra_port("n3", "n3", 53)));
    apply(&topology, &good);
    assert_eq!(topology.hosts[0].ns.run("ip -o link show n1").matches("xdp").count(), 0);
    carries(&topology, 0, 1);
}

/// Makes tenant `at` look like tenant `like`, as far as its port checks.
fn impersonate(topology: &Topology, at: usize, like: usize) {
    let (tenant, like) = (&topology.tenants[at], &topology.tenants[like]);
    let run = |line: String| tenant.ns.run(&line);
    run(format!("ip addr flush dev {TENANT_DEVICE}"));
    run(format!("ip link set {TENANT_DEVICE} address {}", like.mac));
    run(format!("ip addr add {}/24 dev {TENANT_DEVICE}", like.v4));
    run(format!("ip addr add {}/64 dev {TENANT_DEVICE} nodad", like.v6));
}

#[test]
fn two_ports_swap_their_devices_in_one_apply() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(2, 3);
    let good = topology.host_toml(0);
    let swapped = good
        .replace("{ xdp = \"t0\" }", "{ xdp = \"t?\" }")
        .replace("{ xdp = \"t2\" }", "{ xdp = \"t0\" }")
        .replace("{ xdp = \"t?\" }", "{ xdp = \"t2\" }");
    for round in 0..3 {
        apply(&topology, &swapped);
        impersonate(&topology, 0, 2);
        impersonate(&topology, 2, 0);
        topology.wait_connected(0, 1);
        topology.wait_connected(2, 3);
        // What is sent to the address of tenant 0 arrives where its port is now.
        let [three, one] = [&topology.tenants[1], &topology.tenants[2]];
        let to = IpAddr::from(topology.tenants[0].v4);
        let what = Datagrams::plain(300, 10);
        let report = udp_exchange(&three.ns, &one.ns, to, what).unwrap();
        assert!(report.is_perfect(), "round {round}: {report:?}");
        apply(&topology, &good);
        impersonate(&topology, 0, 0);
        impersonate(&topology, 2, 2);
        topology.wait_connected(0, 1);
        topology.wait_connected(2, 3);
    }
}

#[test]
fn a_port_moves_to_another_device_and_only_the_old_one_is_closed() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let (host, tenant) = (&topology.hosts[0].ns, &topology.tenants[0]);
    link::veth(host, "moved", &tenant.ns, "eth1", topology.spec.combo.tenant_mtu);
    host.run("ip link set moved up");
    apply(&topology, &good.replace("{ xdp = \"t0\" }", "{ xdp = \"moved\" }"));
    tenant.ns.run(&format!("ip link set {TENANT_DEVICE} down"));
    tenant.ns.run(&format!("ip addr flush dev {TENANT_DEVICE}"));
    tenant.ns.run(&format!("ip link set eth1 address {} up", tenant.mac));
    tenant.ns.run(&format!("ip addr add {}/24 dev eth1", tenant.v4));
    tenant.ns.run(&format!("ip addr add {}/64 dev eth1 nodad", tenant.v6));
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
    carries(&topology, 2, 3);
    assert!(host.run("ip -o link show moved").contains("xdp"));
    assert!(!host.run("ip -o link show t0").contains("xdp"), "the old device is released");
}

fn remake_tenant_device(topology: &Topology) {
    let (host, tenant) = (&topology.hosts[0].ns, &topology.tenants[0]);
    let mtu = topology.spec.combo.tenant_mtu;
    link::veth(host, &tenant.port, &tenant.ns, TENANT_DEVICE, mtu);
    host.run(&format!("ip link set {} up", tenant.port));
    tenant.ns.run(&format!("ip link set {TENANT_DEVICE} up"));
    impersonate(topology, 0, 0);
}

#[test]
fn devices_that_go_down_vanish_and_come_back_carry_again_by_themselves() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let host = &topology.hosts[0].ns;
    let device = topology.tenants[0].port.clone();
    host.run(&format!("ip link set {device} down"));
    wait_state(&topology, "t0", "down");
    host.run(&format!("ip link set {device} up"));
    wait_state(&topology, "t0", "active");
    topology.wait_connected(0, 1);
    for _ in 0..2 {
        host.run(&format!("ip link del {device}"));
        wait_state(&topology, "t0", "gone");
        // A state that changes nothing about it is applied all the same.
        topology.dataplane(0).apply(host);
        assert_eq!(port(&topology, "t0")["state"], "gone");
        remake_tenant_device(&topology);
        wait_state(&topology, "t0", "active");
        topology.wait_connected(0, 1);
        carries(&topology, 1, 0);
    }
    let stats = topology.dataplane(0).stats(host);
    assert!(stats.value().to_string().contains("device_lost"), "{:?}", stats.value());
    // Nothing is left of the devices that were deleted.
    assert_eq!(std::fs::read_dir(topology.dataplane(0).bpffs()).unwrap().count(), 2);
}

#[test]
fn an_underlay_that_vanishes_and_comes_back_carries_again_by_itself() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.hosts[0], &topology.hosts[1]];
    a.ns.run(&format!("ip link del {WIRE}"));
    let gone = wait_until(PATIENCE, || show(&topology, "info")["underlay"][0]["up"] == false);
    assert!(gone, "{}", show(&topology, "info"));
    // Applied while there is no underlay device at all.
    topology.dataplane(0).apply(&a.ns);
    assert!(!ping(&topology.tenants[0].ns, topology.address(1), 1, 56).all_answered());
    link::veth(&a.ns, WIRE, &b.ns, WIRE, topology.spec.combo.underlay_mtu());
    for host in [a, b] {
        host.ns.run(&format!("ip link set {WIRE} address {} up", host.wire_mac));
        host.ns.run(&format!("ip addr add {}/24 dev {WIRE}", host.vtep));
    }
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
    // What the device says of itself is followed, too.
    let mtu = topology.spec.combo.underlay_mtu() - 10;
    a.ns.run(&format!("ip link set {WIRE} mtu {mtu}"));
    let followed = wait_until(PATIENCE, || show(&topology, "info")["underlay"][0]["mtu"] == mtu);
    assert!(followed, "{}", show(&topology, "info"));
}

#[test]
fn a_tap_that_somebody_deletes_is_noticed_counted_and_made_again() {
    let combo = Combo { attach: Attach::Tap, ..Combo::SIMPLE };
    let topology = TopologySpec::pair(combo).build();
    topology.wait_connected(0, 1);
    let (host, tenant) = (&topology.hosts[0].ns, &topology.tenants[0]);
    tenant.ns.run(&format!("ip link del {TENANT_DEVICE}"));
    let name = &tenant.port;
    let made = || host.try_run(&format!("ip link show {name}")).is_ok();
    assert!(wait_until(PATIENCE, made), "no new TAP: {}", port(&topology, "t0"));
    let stats = topology.dataplane(0).stats(host).value().to_string();
    assert!(stats.contains("device_lost") && stats.contains("device_reopened"), "{stats}");
    host.run(&format!("ip link set {name} down"));
    host.run(&format!("ip link set {name} netns {} name {TENANT_DEVICE}", tenant.ns.name()));
    tenant.ns.run(&format!("ip link set {TENANT_DEVICE} mtu {} up", combo.tenant_mtu));
    impersonate(&topology, 0, 0);
    wait_state(&topology, "t0", "active");
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
}

#[test]
fn a_killed_dataplane_may_come_back_with_other_roles_and_modes_and_leaks_nothing() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let reached = reached_the_host(&mut topology, |topology| {
        topology.culvert[0].as_mut().unwrap().process().kill();
        topology.spec.mode = ["native", "auto"];
        topology.start_culvert(0);
        assert_eq!(port(topology, "t0")["mode"], "native");
        topology.culvert[0].as_mut().unwrap().process().kill();
        topology.spec.mode = ["zero-copy", "auto"];
        // No mode that the device takes: refused, and still closed.
        let ns = &topology.hosts[0].ns;
        let culvert = topology.culvert[0].as_mut().unwrap();
        culvert.start(ns, &topology.scratch, &[]);
        refuse(topology, &topology.host_toml(0), &["t0", "zero-copy"]);
        topology.spec.mode = ["generic", "auto"];
        refuse(topology, &with_mode(&with_id(&good, "t0", "x"), "t0", "zero-copy"), &["zero-copy"]);
        apply(topology, &with_id(&topology.host_toml(0), "t0", "other"));
        assert_eq!(port(topology, "other")["mode"], "generic");
    });
    assert_eq!(reached, 0, "datagrams reached the host's stack");
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
}

#[test]
fn a_table_that_refuses_our_addresses_refuses_the_state() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let vtep = topology.hosts[0].vtep;
    let more = good.replace(&format!("\"{vtep}\""), &format!("\"{vtep}\", \"198.18.0.77\""));
    topology.hosts[0].ns.run(&format!("ip addr add 198.18.0.77/24 dev {WIRE}"));
    let pid = topology.culvert[0].as_mut().unwrap().process().pid();
    let frozen = sys::freeze_bpf_map(pid, "vtep4").unwrap();
    assert!(frozen, "the process has no map of that name");
    let before = fingerprint(&topology);
    refuse(&topology, &more, &["addresses", "vtep4"]);
    assert_eq!(fingerprint(&topology), before);
    carries(&topology, 0, 1);
    carries(&topology, 1, 0);
}

#[test]
fn ports_above_the_limit_are_refused_by_name() {
    let topology = TopologySpec::pair(Combo { tenant: Family::V4, ..Combo::SIMPLE }).build();
    let mut toml = topology.host_toml(0);
    for n in 0..4096u32 {
        let [.., a, b] = n.to_be_bytes();
        toml.push_str(&format!(
            "\n\n[[port]]\nid = \"p{n}\"\nvnet = \"blue\"\nattach = {{ xdp = \"p{n}\" }}\n\
             mac = \"02:01:00:00:{a:02x}:{b:02x}\"\nips = [\"10.99.{a}.{b}\"]"
        ));
    }
    refuse(&topology, &toml, &["port", "4097", "4096"]);
    assert_eq!(port(&topology, "t0")["state"], "active");
}

/// Descriptors are what an unused attempt would leak first. Sockets are closed behind a change's back, so they are
/// counted when their number has been the same for a while.
fn descriptors(topology: &mut Topology) -> usize {
    let pid = topology.culvert[0].as_mut().unwrap().process().pid();
    let count = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let (mut last, mut same) = (count(), 0);
    while same < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[test]
fn refused_states_leak_nothing() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    topology.hosts[0].ns.run("ip link add n1 numtxqueues 1 numrxqueues 1 type veth peer name n1p");
    let ports = extra_port("n1", "n1", 51) + &extra_port("nosuch", "nosuch", 52);
    let modes = with_mode(&good, "t0", "zero-copy");
    refuse(&topology, &(good.clone() + &ports), &["nosuch"]);
    refuse(&topology, &modes, &["zero-copy"]);
    let before = descriptors(&mut topology);
    for _ in 0..5 {
        refuse(&topology, &(good.clone() + &ports), &["nosuch"]);
        refuse(&topology, &modes, &["zero-copy"]);
    }
    assert_eq!(descriptors(&mut topology), before);
    carries(&topology, 0, 1);
    assert!(Netns::open(topology.hosts[0].ns.name()).run("ip -o link show n1").contains("n1"));
}

#[test]
fn hundreds_of_ports_come_change_their_names_and_go_while_traffic_goes_on() {
    const PORTS: usize = 300;
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    // Each idle socket keeps 64 frames.
    spec.dataplane_args = ["--chunks", "32768"].map(str::to_owned).to_vec();
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let host = &topology.hosts[0].ns;
    let batch = topology.scratch.file("links");
    let link = |n: usize| {
        format!(
            "link add v{n} numtxqueues 1 numrxqueues 1 type veth peer name w{n} numtxqueues 1 numrxqueues 1\n\
             link set v{n} up\nlink set w{n} up\n"
        )
    };
    std::fs::write(&batch, (0..PORTS).map(link).collect::<String>()).unwrap();
    host.run(&format!("ip -batch {}", batch.display()));
    let many = |prefix: &str| {
        let port = |n: usize| {
            let [.., a, b] = (n as u32).to_be_bytes();
            format!(
                "\n\n[[port]]\nid = \"{prefix}{n}\"\nvnet = \"blue\"\nattach = {{ xdp = \"v{n}\" }}\n\
                 mac = \"02:01:00:00:{a:02x}:{b:02x}\"\nips = [\"10.99.{a}.{b}\"]"
            )
        };
        good.clone() + &(0..PORTS).map(port).collect::<String>()
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Relaxed) {
                carries(&topology, 0, 1);
                rounds += 1;
            }
            rounds
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            apply(&topology, &many("p"));
            let active = |id: &str| port(&topology, id)["state"] == "active";
            // The kernel tells in its own time that a new device is up.
            let all_are = || active("p0") && active(&format!("p{}", PORTS - 1));
            assert!(wait_until(Duration::from_secs(10), all_are));
            // The sockets stay where they are, so this takes no time to speak of.
            let start = std::time::Instant::now();
            apply(&topology, &many("q"));
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
            assert!(active("q0") && active(&format!("q{}", PORTS - 1)));
            apply(&topology, &good);
            assert!(port(&topology, "q0").is_null());
        }));
        stop.store(true, Relaxed);
        let rounds = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(rounds > 0);
    });
    let links = host.run("ip -o link show");
    let attached = links.lines().filter(|line| line.contains("xdp")).count();
    assert_eq!(attached, 2, "t0 and the wire: {links}");
    checks::arena_at_rest(&topology, 0, 4096);
}

/// Starts to apply `toml` on host A and kills the client after `delay_ms`.
fn apply_and_die(topology: &Topology, toml: &str, delay_ms: u64) {
    let culvert = topology.dataplane(0);
    culvert.write_config(toml);
    let file = topology.scratch.file("dying.toml");
    std::fs::write(&file, toml).unwrap();
    let args = ["apply", "-f", &file.display().to_string()];
    let mut client = culvert.spawn_cli(&topology.hosts[0].ns, &topology.scratch, &args);
    std::thread::sleep(Duration::from_millis(delay_ms));
    client.kill();
}

/// A mapping behind a VTEP that never answers, so that an apply waits for it.
fn silent_vtep(number: u64) -> String {
    let (octet, number) = (100 + number, 60 + number);
    format!(
        "\n\n[[mapping]]\nvnet = \"blue\"\nip = \"10.77.1.{number}\"\n\
         mac = \"02:00:00:00:01:{number:02x}\"\nvtep = \"198.18.0.{octet}\"\n"
    )
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_an_apply_leaves_nothing_half_done() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let delays = [5, 10, 15, 20, 30, 60, 120, 200, 300];
    // The first apply of a dataplane.
    for (n, delay) in delays.into_iter().enumerate() {
        topology.culvert[0].as_mut().unwrap().process().kill();
        let ns = &topology.hosts[0].ns;
        topology.culvert[0].as_mut().unwrap().start(ns, &topology.scratch, &[]);
        apply_and_die(&topology, &(good.clone() + &silent_vtep(n as u64)), delay);
        apply(&topology, &good);
        topology.wait_connected(0, 1);
    }
    carries(&topology, 1, 0);
    // One that gives a running device another port.
    for (n, delay) in delays.into_iter().enumerate() {
        let other = with_id(&good, "t0", "other") + &silent_vtep(n as u64);
        apply_and_die(&topology, &other, delay);
        let [old, new] = ["t0", "other"].map(|id| port(&topology, id)["state"] == "active");
        assert!(old != new, "after {delay} ms: {}", show(&topology, "ports"));
        topology.wait_connected(0, 1);
        apply(&topology, &good);
        assert_eq!(port(&topology, "t0")["state"], "active");
        topology.wait_connected(0, 1);
    }
    carries(&topology, 0, 1);
    carries(&topology, 1, 0);
    checks::arena_at_rest(&topology, 0, 4096);
}

#[test]
fn a_device_that_is_renamed_stays_closed_and_carries_again_under_its_name() {
    let mut topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let good = topology.host_toml(0);
    let reached = reached_the_host(&mut topology, |topology| {
        for _ in 0..2 {
            topology.hosts[0].ns.run("ip link set t0 name elsewhere");
            wait_state(topology, "t0", "gone");
            std::thread::sleep(Duration::from_millis(300));
            // A state that still wants it does not open it either.
            apply(topology, &good);
            assert!(topology.hosts[0].ns.run("ip -o link show elsewhere").contains("xdp"));
            topology.hosts[0].ns.run("ip link set elsewhere name t0");
            wait_state(topology, "t0", "active");
        }
    });
    assert_eq!(reached, 0, "datagrams reached the host's stack");
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
    // In another namespace it keeps its program, too.
    let elsewhere = Netns::new("elsewhere");
    let host = &topology.hosts[0].ns;
    host.run(&format!("ip link set t0 netns {}", elsewhere.name()));
    wait_state(&topology, "t0", "gone");
    assert!(elsewhere.run("ip -o link show t0").contains("xdp"));
    elsewhere.run(&format!("ip link set t0 netns {}", host.name()));
    host.run("ip link set t0 up");
    wait_state(&topology, "t0", "active");
    topology.wait_connected(0, 1);
    carries(&topology, 1, 0);
    // Whoever does not want it any more releases it.
    host.run("ip link set t0 name elsewhere");
    wait_state(&topology, "t0", "gone");
    apply(&topology, &topology.host_toml_without(0, 0));
    assert!(!host.run("ip -o link show elsewhere").contains("xdp"));
}

#[test]
fn an_underlay_device_too_small_for_its_tenants_is_refused_and_a_tight_one_warned_of() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let host = &topology.hosts[0].ns;
    // Without explicit MTUs: the devices' are what there is.
    let line = format!("mtu = {}\n", topology.spec.combo.tenant_mtu);
    let good = topology.host_toml(0).replace(&line, "");
    assert!(!good.contains("mtu"), "{good}");
    let culvert = topology.dataplane(0);
    culvert.write_config(&good);
    let file = topology.scratch.file("a.toml").display().to_string();
    let warnings = || {
        let out = culvert.cli(host, &["-o", "json", "apply", "-f", &file]).unwrap();
        serde_json::from_str::<Value>(&out).unwrap()["warnings"].clone()
    };
    assert_eq!(warnings(), serde_json::json!([]), "a device that fits");
    host.run(&format!("ip link set {WIRE} mtu 1400"));
    let followed = wait_until(PATIENCE, || show(&topology, "info")["underlay"][0]["mtu"] == 1400);
    assert!(followed);
    let out = warnings().to_string();
    let around = topology.spec.combo.encapsulation_len();
    for word in ["t0", "1500", &(1400 - around).to_string()] {
        assert!(out.contains(word), "the warning lacks {word}: {out}");
    }
    // The tenants have IPv6 (RFC 8200).
    let least = 1280 + around;
    let short = least - 1;
    host.run(&format!("ip link set {WIRE} mtu {short}"));
    let legal = format!("{least} or more");
    refuse(&topology, &good, &["underlay: interfaces[0]", WIRE, &short.to_string(), &legal]);
    host.run(&format!("ip link set {WIRE} mtu {least}"));
    apply(&topology, &good);
}
