//! ACL groups: what they deny gets nowhere and is counted, what they allow passes, and what was allowed may be answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_tests::tools::{ping, tcp_transfer};
use culvert_tests::topology::{Tenant, Topology, with_port_lines};
use culvert_tests::{Attach, Combo, Family, TopologySpec, checks};

/// Long enough for what is on its way to arrive.
const PATIENCE: Duration = Duration::from_millis(300);

/// Gives the port of a tenant a group `g`.
#[track_caller]
fn protect(topology: &Topology, tenant: usize, stateful: bool, rules: &[&str]) {
    let tenant = &topology.tenants[tenant];
    topology.reconfigure(tenant.spec.host, |toml| with_group(&toml, tenant, stateful, rules));
}

fn with_group(toml: &str, tenant: &Tenant, stateful: bool, rules: &[&str]) -> String {
    let rules: String = rules.iter().map(|rule| format!("    {{ {rule} }},\n")).collect();
    let toml = with_port_lines(toml, tenant, "acl = [\"g\"]");
    toml + &format!("\n[[acl]]\nid = \"g\"\nstateful = {stateful}\nrule = [\n{rules}]\n")
}

const EGRESS_ALL: &str = r#"direction = "egress", action = "allow""#;
const INGRESS_ALL: &str = r#"direction = "ingress", action = "allow""#;

fn addresses(tenant: &Tenant) -> [IpAddr; 2] {
    [tenant.v4.into(), tenant.v6.into()]
}

fn any_of(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}

/// Whether a datagram from one tenant reaches a port of another, and whether the answer comes back.
fn datagram(from: &Tenant, to: &Tenant, ip: IpAddr, port: u16) -> (bool, bool) {
    let server = to.ns.enter(|| UdpSocket::bind(SocketAddr::new(ip, port))).unwrap();
    let client = from.ns.enter(|| UdpSocket::bind(any_of(ip))).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"question", (ip, port)).unwrap();
    let mut bytes = [0; 16];
    let Ok((_, peer)) = server.recv_from(&mut bytes) else { return (false, false) };
    server.send_to(b"answer", peer).unwrap();
    (true, client.recv_from(&mut bytes).is_ok())
}

/// Whether a connection from one tenant to a port of another can be made.
fn connects(from: &Tenant, to: &Tenant, ip: IpAddr, port: u16) -> bool {
    let _server = to.ns.enter(|| TcpListener::bind(SocketAddr::new(ip, port))).unwrap();
    from.ns.enter(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE)).is_ok()
}

#[test]
fn a_stateless_group_judges_each_packet_by_itself() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    protect(
        &topology,
        1,
        false,
        &[
            r#"direction = "ingress", action = "allow", protocol = "udp", local_ports = "7001, 7003-7004""#,
            r#"direction = "egress", action = "allow", protocol = "udp", local_ports = 7001"#,
            r#"direction = "ingress", action = "allow", protocol = "tcp", local_ports = 7001"#,
        ],
    );
    for ip in addresses(b) {
        assert_eq!(datagram(a, b, ip, 7001), (true, true), "{ip}");
        checks::counted(&topology, 1, "acl_denied", 1, || {
            assert_eq!(datagram(a, b, ip, 7002), (false, false), "{ip}");
        });
        // What comes in is allowed, what would answer it is not.
        checks::counted(&topology, 1, "acl_denied", 1, || {
            assert_eq!(datagram(a, b, ip, 7004), (true, false), "{ip}");
        });
        checks::counted(&topology, 1, "acl_denied", 1, || {
            assert!(!connects(a, b, ip, 7001), "{ip}: the answer to the SYN is denied");
        });
        checks::counted(&topology, 1, "acl_denied", 1, || {
            assert!(!ping(&a.ns, ip, 1, 56).all_answered(), "{ip}");
        });
    }
    // By address: host A's tenant is one of those that group g is about.
    protect(
        &topology,
        1,
        false,
        &[
            &format!(r#"direction = "ingress", action = "deny", remote = "{}/32""#, a.v4),
            INGRESS_ALL,
            EGRESS_ALL,
        ],
    );
    assert_eq!(datagram(a, b, b.v4.into(), 7001), (false, false));
    assert_eq!(datagram(a, b, b.v6.into(), 7001), (true, true));
    // Without groups everything passes again.
    topology.reconfigure(1, |toml| toml);
    assert_eq!(datagram(a, b, b.v4.into(), 7002), (true, true));
}

#[test]
fn what_a_stateful_group_allows_may_be_answered_and_nothing_else() {
    for attach in [Attach::Veth, Attach::Tap] {
        let topology = TopologySpec::pair(Combo { attach, ..Combo::SIMPLE }).build();
        topology.wait_connected(0, 1);
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        protect(&topology, 0, true, &[EGRESS_ALL]);
        for ip in addresses(b) {
            assert_eq!(datagram(a, b, ip, 7001), (true, true), "{ip}");
            tcp_transfer(&a.ns, &b.ns, ip, 8 << 20).unwrap_or_else(|e| panic!("{ip}: {e}"));
            assert!(ping(&a.ns, ip, 2, 56).all_answered(), "{ip}");
            // In fragments, both ways: later ones name no ports.
            assert!(ping(&a.ns, ip, 2, 4000).all_answered(), "{ip}");
        }
        for ip in addresses(a) {
            checks::counted(&topology, 0, "acl_denied", 1, || {
                assert_eq!(datagram(b, a, ip, 7001), (false, false), "{ip}");
            });
            checks::counted(&topology, 0, "acl_denied", 1, || assert!(!connects(b, a, ip, 7001)));
            checks::counted(&topology, 0, "acl_denied", 1, || {
                assert!(!ping(&b.ns, ip, 1, 56).all_answered(), "{ip}");
            });
        }
        let workers = topology.stats(0).value()["workers"].clone();
        assert!(workers[0]["connections"].as_u64() > Some(0), "{workers:#}");
        assert_eq!(workers[0]["connections_evicted"], 0);
    }
}

#[test]
fn a_server_behind_a_stateful_group_is_reached_at_its_ports_alone() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let web = r#"direction = "ingress", action = "allow", protocol = "tcp", local_ports = "443""#;
    protect(&topology, 1, true, &[web]);
    for ip in addresses(b) {
        assert!(connects(a, b, ip, 443), "{ip}");
        assert!(!connects(a, b, ip, 444), "{ip}");
    }
    for ip in addresses(a) {
        assert!(!connects(b, a, ip, 443), "{ip}: it answers, it does not ask");
        assert_eq!(datagram(b, a, ip, 443), (false, false), "{ip}");
    }
}

#[test]
fn an_icmp_error_about_an_allowed_flow_passes_a_stateful_group() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let udp = r#"direction = "egress", action = "allow", protocol = "udp""#;
    for ip in addresses(b) {
        for (stateful, error) in
            [(true, ErrorKind::ConnectionRefused), (false, ErrorKind::WouldBlock)]
        {
            protect(&topology, 0, stateful, &[udp]);
            let socket = a.ns.enter(|| UdpSocket::bind(any_of(ip))).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            a.ns.enter(|| socket.connect((ip, 9))).unwrap();
            // Nobody listens there: port unreachable.
            socket.send(b"anybody there?").unwrap();
            let got = socket.recv(&mut [0; 16]).unwrap_err().kind();
            assert_eq!(got, error, "{ip}, stateful: {stateful}");
        }
    }
}

#[test]
fn between_tenants_of_one_host_both_groups_hold_on_whichever_worker() {
    for workers in ["1", "2"] {
        let mut spec = TopologySpec::quad(Combo::SIMPLE);
        spec.dataplane_args = vec!["--workers".into(), workers.into()];
        let topology = spec.build();
        topology.wait_connected(0, 2);
        let [a, c] = [&topology.tenants[0], &topology.tenants[2]];
        let web = r#"direction = "ingress", action = "allow", protocol = "tcp", local_ports = 443"#;
        // The receiver's group, then the sender's.
        protect(&topology, 2, true, &[web]);
        for ip in addresses(c) {
            assert!(connects(a, c, ip, 443), "{workers} workers, {ip}");
            assert!(!connects(a, c, ip, 444), "{workers} workers, {ip}");
        }
        let moved = topology.stats(0).port(&c.port)["drops"].clone();
        let denied = |drop: &&serde_json::Value| drop["reason"] == "acl_denied";
        assert!(moved.as_array().unwrap().iter().any(|d| denied(&d)), "at the receiver: {moved:#}");
        let out = r#"direction = "egress", action = "allow", protocol = "tcp", remote_ports = 443"#;
        protect(&topology, 0, true, &[out]);
        for ip in addresses(c) {
            assert!(connects(a, c, ip, 443), "{workers} workers, {ip}");
            assert!(!connects(a, c, ip, 444), "{workers} workers, {ip}");
            tcp_transfer_to(a, c, ip, 443);
        }
    }
}

/// Some megabytes to a port of another tenant and back.
fn tcp_transfer_to(from: &Tenant, to: &Tenant, ip: IpAddr, port: u16) {
    let server = to.ns.enter(|| TcpListener::bind(SocketAddr::new(ip, port))).unwrap();
    let mut near = from.ns.enter(|| TcpStream::connect((ip, port))).unwrap();
    let (mut far, _) = server.accept().unwrap();
    let bytes = vec![7; 4 << 20];
    std::thread::scope(|scope| {
        scope.spawn(|| near.write_all(&bytes).unwrap());
        let mut got = vec![0; bytes.len()];
        far.read_exact(&mut got).unwrap();
        assert!(got == bytes);
    });
    far.write_all(b"thanks").unwrap();
    near.read_exact(&mut [0; 6]).unwrap();
}

#[test]
fn a_connection_that_the_new_groups_do_not_allow_ends() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let rule = |port: u16| {
        format!(
            r#"direction = "ingress", action = "allow", protocol = "tcp", local_ports = {port}"#
        )
    };
    for ip in addresses(b) {
        // The server may say what it likes in both, by a rule of its own: that brings nothing back.
        protect(&topology, 1, true, &[&rule(443), EGRESS_ALL]);
        let server = b.ns.enter(|| TcpListener::bind(SocketAddr::new(ip, 443))).unwrap();
        let mut near = a.ns.enter(|| TcpStream::connect((ip, 443))).unwrap();
        let (mut far, _) = server.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        near.write_all(b"before").unwrap();
        far.read_exact(&mut [0; 6]).unwrap();
        protect(&topology, 1, true, &[&rule(444), EGRESS_ALL]);
        far.write_all(b"I am still here").unwrap();
        near.write_all(b"after").unwrap();
        let got = far.read(&mut [0; 5]).map_err(|e| e.kind());
        assert_eq!(got, Err(ErrorKind::WouldBlock), "{ip}");
        // Groups that allow it, too, leave it alone.
        protect(&topology, 1, true, &[&rule(443), EGRESS_ALL]);
        let mut near = a.ns.enter(|| TcpStream::connect((ip, 443))).unwrap();
        let (mut far, _) = server.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        protect(&topology, 1, true, &[&rule(444), &rule(443), EGRESS_ALL]);
        near.write_all(b"again").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
    }
}

/// Both states of the group let what goes to port 7002 pass, and nothing to 7000. Any mix of them does otherwise: the
/// first rule of the one and the second of the other let 7000 pass, or stop 7002. What is lost elsewhere counts for
/// nothing: one tenant is sent only what must pass, the other only what must not.
#[test]
fn no_packet_sees_half_of_a_group_that_is_replaced_under_traffic() {
    let topology = TopologySpec::quad(Combo::SIMPLE).build();
    topology.wait_connected(0, 1);
    topology.wait_connected(0, 3);
    let [a, b, d] = [0, 1, 3].map(|at| &topology.tenants[at]);
    let deny =
        r#"direction = "ingress", action = "deny", protocol = "udp", local_ports = "7000-7001""#;
    let allow = r#"direction = "ingress", action = "allow", protocol = "udp", local_ports = 7002"#;
    let swap = |rules: &[&str]| {
        topology.reconfigure(1, |toml| {
            with_port_lines(&with_group(&toml, b, false, rules), d, "acl = [\"g\"]")
        });
    };
    let denied = |port: &str| {
        let drops = topology.stats(1).port(port)["drops"].clone();
        let drops = drops.as_array().cloned().unwrap_or_default();
        let of = drops.iter().find(|drop| drop["reason"] == "acl_denied");
        of.and_then(|drop| drop["packets"].as_u64()).unwrap_or(0)
    };
    let marked = |to: &Tenant, port: u16| {
        let socket = to.ns.enter(|| UdpSocket::bind((to.v4, port))).unwrap();
        culvert_tests::sys::force_receive_buffer(&socket, 16 << 20).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (one, other) = (vec![deny, INGRESS_ALL], vec![allow]);
    swap(&one);
    let (always, never) = (marked(b, 7002), marked(d, 7000));
    let client = a.ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let done = AtomicBool::new(false);
    let (sent, swaps) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0_u32;
            while !done.load(Ordering::Relaxed) {
                client.send_to(&sent.to_be_bytes(), (b.v4, 7002)).unwrap();
                client.send_to(&sent.to_be_bytes(), (d.v4, 7000)).unwrap();
                sent += 1;
                if sent.is_multiple_of(8) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            sent
        });
        let end = std::time::Instant::now() + Duration::from_secs(4);
        let mut swaps = 0;
        while std::time::Instant::now() < end {
            swap(if swaps % 2 == 0 { &other } else { &one });
            swaps += 1;
        }
        done.store(true, Ordering::Relaxed);
        (sender.join().unwrap(), swaps)
    });
    assert!(sent > 1000 && swaps > 10, "{sent} packets, {swaps} changes");
    assert!(never.recv(&mut [0; 4]).is_err(), "a packet that both states deny came through");
    let mut passed = 0;
    while always.recv(&mut [0; 4]).is_ok() {
        passed += 1;
    }
    assert!(passed > sent / 2, "{passed} of {sent} passed");
    assert_eq!(denied(&b.port), 0, "a packet that both states allow was denied");
    assert!(denied(&d.port) > u64::from(sent / 2), "{} of {sent}", denied(&d.port));
}

#[test]
fn neighbours_are_found_however_closed_a_port_is() {
    let topology = TopologySpec::pair(Combo { tenant: Family::V6, ..Combo::SIMPLE }).build();
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    protect(&topology, 0, true, &[]);
    a.ns.run("ip neigh flush all");
    for ip in addresses(b) {
        assert!(!ping(&a.ns, ip, 1, 56).all_answered());
        let neighbours = a.ns.run("ip neigh show");
        let line = neighbours.lines().find(|line| line.starts_with(&format!("{ip} ")));
        assert!(line.is_some_and(|line| line.contains(&b.mac)), "{ip}: {neighbours}");
    }
}
