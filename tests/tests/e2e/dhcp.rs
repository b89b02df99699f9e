//! Tenants without static configuration: stock clients of DHCP and DHCPv6, and the kernel's own router discovery, get
//! from the dataplane what the model says.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use culvert_tests::tools::{Capture, RawSocket, ping, tshark_fields};
use culvert_tests::topology::{TENANT_DEVICE, Tenant, Topology, with_port_lines, with_vnet_lines};
use culvert_tests::{Combo, Process, TopologySpec, checks, craft, wait_until};

const ROUTER: &str = "10.77.1.254";
const ROUTER_MAC: &str = "02:77:01:ff:00:fe";
/// The link-local address that the router's MAC address makes.
const ROUTER_LINK_LOCAL: &str = "fe80::77:1ff:feff:fe";
const LIMIT: Duration = Duration::from_secs(20);

const DHCP: &str = r#"gateway = [
    { ip = "10.77.1.254/24", mac = "02:77:01:ff:00:fe" },
    { ip = "fd77:1::ff/64", mac = "02:77:01:ff:00:fe" },
]
dhcp = { dns = ["10.77.1.253", "fd77:1::fd"], ntp = ["10.77.1.252"], domain = "blue.internal", lease = 600, route = [{ prefix = "192.168.0.0/16", via = "10.77.1.253" }] }
"#;

/// The state of a host with DHCP: ports have an MTU that their devices do not have by themselves.
fn with_dhcp(toml: &str) -> String {
    with_vnet_lines(toml, "blue", DHCP).replace("\nmtu = 1500\n", "\nmtu = 1400\n")
}

/// Two tenants that have nothing but their device.
fn bare_tenants(flood: bool) -> Topology {
    let mut spec = TopologySpec::pair(Combo::SIMPLE);
    spec.vnets[0].flood = flood;
    let topology = spec.build();
    for host in 0..2 {
        topology.reconfigure(host, |toml| {
            let tenant = &topology.tenants[host];
            with_port_lines(&with_dhcp(&toml), tenant, &format!("hostname = \"web-{host}\""))
        });
    }
    for tenant in &topology.tenants {
        tenant.ns.run(&format!("ip addr flush dev {TENANT_DEVICE}"));
    }
    topology
}

/// A script that a client calls with what it learned: it notes all of it, and configures the device.
fn script(topology: &Topology, name: &str, text: &str) -> (PathBuf, PathBuf) {
    let (script, log) = (
        topology.scratch.file(&format!("{name}.sh")),
        topology.scratch.file(&format!("{name}.env")),
    );
    // In one write, so that nobody reads half of it.
    let note =
        format!("n=$(echo \"event=$1$reason\"; env)\nprintf '%s\\n' \"$n\" >>{}\n", log.display());
    fs::write(&script, format!("#!/bin/sh\n{note}{text}")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    (script, log)
}

/// What a client learned in its last event of a name; the number of such events.
fn learned(log: &PathBuf, event: &str) -> (usize, Vec<String>) {
    let text = fs::read_to_string(log).unwrap_or_default();
    let events: Vec<_> = text.split("event=").filter(|part| part.starts_with(event)).collect();
    let lines = events.last().map(|part| part.lines().map(str::to_owned).collect());
    (events.len(), lines.unwrap_or_default())
}

#[track_caller]
fn wait_for(log: &PathBuf, event: &str, client: &Process, count: usize) -> Vec<String> {
    let there = wait_until(LIMIT, || learned(log, event).0 >= count);
    let notes = fs::read_to_string(log).unwrap_or_default();
    assert!(there, "no {event}; the client says:\n{}\nand noted:\n{notes}", client.log());
    learned(log, event).1
}

#[track_caller]
fn has(lines: &[String], wanted: &[&str]) {
    for line in wanted {
        assert!(lines.iter().any(|found| found == line), "no {line} in {lines:#?}");
    }
}

fn udhcpc(topology: &Topology, tenant: &Tenant) -> (Process, PathBuf) {
    let (script, log) = script(
        topology,
        "udhcpc",
        r#"case "$1" in
deconfig) ip -4 addr flush dev $interface ;;
bound | renew)
  ip addr replace $ip/$mask dev $interface
  ip link set $interface mtu $mtu
  ip route replace default via $router dev $interface
  ;;
esac
"#,
    );
    let line = format!(
        "udhcpc -f -i {TENANT_DEVICE} -t 5 -T 1 -O mtu -O staticroutes -O hostname -O ntpsrv -s {}",
        script.display()
    );
    (tenant.ns.spawn(&topology.scratch, &line), log)
}

fn dhclient(topology: &Topology, tenant: &Tenant, family: u8) -> (Process, PathBuf, String) {
    let (script, log) = script(
        topology,
        &format!("dhclient{family}"),
        r#"case "$reason" in
BOUND | RENEW | REBIND | REBOOT)
  ip addr replace $new_ip_address/24 dev $interface
  ip route replace default via ${new_routers%% *} dev $interface
  ;;
BOUND6 | RENEW6 | REBIND6) ip addr replace $new_ip6_address/128 dev $interface nodad ;;
esac
exit 0
"#,
    );
    let config = topology.scratch.file(&format!("dhclient{family}.conf"));
    let asks = match family {
        4 => {
            "option classless code 121 = array of unsigned integer 8;\n\
             request subnet-mask, routers, domain-name, domain-name-servers, host-name, interface-mtu, \
             ntp-servers, classless;\n"
        }
        _ => "also request dhcp6.name-servers, dhcp6.domain-search;\n",
    };
    fs::write(&config, asks).unwrap();
    let at = |name: &str| topology.scratch.file(&format!("dhclient{family}.{name}"));
    let line = format!(
        "dhclient -{family} -1 -d -v -cf {} -lf {} -pf {} -sf {} {TENANT_DEVICE}",
        config.display(),
        at("leases").display(),
        at("pid").display(),
        script.display()
    );
    let process = tenant.ns.spawn(&topology.scratch, &line);
    (process, log, line.replace("-1 -d", "-r"))
}

/// Everything that tshark warns of in what the tenant was sent.
#[track_caller]
fn judge(capture: Capture, seen: &str, least: usize) {
    let pcap = capture.finish();
    let frames = tshark_fields(&pcap, seen, &["frame.number"]).unwrap();
    assert!(frames.len() >= least, "only {} of {seen} were captured", frames.len());
    let wrong = "_ws.malformed || _ws.expert.severity >= 0x600000 || ip.checksum.status == 0 \
                 || udp.checksum.status == 0 || icmpv6.checksum.status == 0";
    let fields = ["frame.number", "frame.protocols", "_ws.expert.message"];
    assert_eq!(tshark_fields(&pcap, wrong, &fields).unwrap(), Vec::<String>::new());
}

#[test]
fn stock_clients_are_configured_and_talk() {
    let topology = bare_tenants(false);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let filter = "udp port 68";
    let captures = [a, b].map(|t| Capture::start(&t.ns, &topology.scratch, TENANT_DEVICE, filter));
    let (mut busybox, log) = udhcpc(&topology, a);
    let bound = wait_for(&log, "bound", &busybox, 1);
    has(
        &bound,
        &[
            "ip=10.77.1.1",
            "mask=24",
            "router=10.77.1.254",
            "serverid=10.77.1.254",
            "dns=10.77.1.253",
            "ntpsrv=10.77.1.252",
            "domain=blue.internal",
            "hostname=web-0",
            "mtu=1400",
            "lease=600",
            "staticroutes=192.168.0.0/16 10.77.1.253 0.0.0.0/0 10.77.1.254",
        ],
    );
    let (mut isc, log_b, release) = dhclient(&topology, b, 4);
    let bound = wait_for(&log_b, "BOUND", &isc, 1);
    has(
        &bound,
        &[
            "new_ip_address=10.77.1.2",
            "new_subnet_mask=255.255.255.0",
            "new_routers=10.77.1.254",
            "new_domain_name_servers=10.77.1.253",
            "new_domain_name=blue.internal",
            "new_host_name=web-1",
            "new_interface_mtu=1400",
            "new_dhcp_lease_time=600",
            "new_classless=16 192 168 10 77 1 253 0 10 77 1 254",
        ],
    );
    let talks = || ping(&a.ns, b.v4.into(), 1, 56).all_answered();
    assert!(wait_until(LIMIT, talks), "configured by DHCP alone, they do not talk");
    // Renewal, unicast to the router that gave the address.
    busybox.signal(libc::SIGUSR1);
    wait_for(&log, "renew", &busybox, 1);
    let answers = topology.stats(0).port(&a.port)["answers"].as_u64();
    assert!(answers >= Some(3), "offer, ack and ack: {answers:?}");
    // Released: the client is told nothing, and may ask again.
    isc.kill();
    b.ns.run(&release);
    let (mut isc, log_b, _) = dhclient(&topology, b, 4);
    wait_for(&log_b, "BOUND", &isc, 2);
    isc.kill();
    busybox.kill();
    let [of_a, of_b] = captures;
    judge(of_a, "dhcp", 3);
    judge(of_b, "dhcp", 4);
}

#[test]
fn a_client_whose_address_changed_is_refused_and_gets_the_new_one() {
    let topology = bare_tenants(false);
    let a = &topology.tenants[0];
    let (mut client, log) = udhcpc(&topology, a);
    wait_for(&log, "bound", &client, 1);
    let capture = Capture::start(&a.ns, &topology.scratch, TENANT_DEVICE, "udp port 68");
    topology.reconfigure(0, |toml| with_dhcp(&toml).replace("\"10.77.1.1\"", "\"10.77.1.77\""));
    client.signal(libc::SIGUSR1);
    let bound = wait_for(&log, "bound", &client, 2);
    has(&bound, &["ip=10.77.1.77"]);
    client.kill();
    judge(capture, "dhcp", 2);
}

#[test]
fn ipv6_tenants_find_their_router_and_get_their_address() {
    let topology = bare_tenants(false);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let capture = Capture::start(&a.ns, &topology.scratch, TENANT_DEVICE, "icmp6 or udp port 546");
    for (key, value) in [("addr_gen_mode", "0"), ("accept_ra", "2"), ("router_solicitations", "5")]
    {
        a.ns.sysctl(&format!("net/ipv6/conf/{TENANT_DEVICE}/{key}"), value);
    }
    a.ns.run(&format!("ip link set {TENANT_DEVICE} down"));
    a.ns.run(&format!("ip link set {TENANT_DEVICE} up"));
    let routes = || a.ns.run("ip -6 route show");
    let default = format!("default via {ROUTER_LINK_LOCAL} dev {TENANT_DEVICE} proto ra");
    assert!(wait_until(LIMIT, || routes().contains(&default)), "{}", routes());
    assert!(routes().contains("fd77:1::/64 dev eth0 proto kernel"), "on link: {}", routes());
    let mtu = a.ns.enter(|| fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu")).unwrap();
    assert_eq!(mtu.trim(), "1400");
    let own = a.ns.run("ip -6 addr show scope global");
    assert_eq!(own, "", "no address that the tenant made itself");

    let (mut client, log, release) = dhclient(&topology, a, 6);
    let bound = wait_for(&log, "BOUND6", &client, 1);
    has(
        &bound,
        &[
            "new_ip6_address=fd77:1::1",
            "new_dhcp6_name_servers=fd77:1::fd",
            "new_dhcp6_domain_search=blue.internal.",
            "new_max_life=600",
        ],
    );
    b.ns.run(&format!("ip addr add {}/64 dev {TENANT_DEVICE} nodad", b.v6));
    let talks = || ping(&a.ns, b.v6.into(), 1, 56).all_answered();
    assert!(wait_until(LIMIT, talks), "configured by DHCPv6, they do not talk");
    // What lies behind the router goes to its MAC address, which it tells who asks.
    let beyond: IpAddr = "2001:db8::1".parse().unwrap();
    ping(&a.ns, beyond, 1, 56);
    let neighbours = a.ns.run("ip -6 neigh show");
    let router = neighbours.lines().find(|line| line.starts_with(ROUTER_LINK_LOCAL));
    let known = router.is_some_and(|line| line.contains(ROUTER_MAC) && line.contains("router"));
    assert!(known, "{neighbours}");
    client.kill();
    a.ns.run(&release);
    judge(capture, "dhcpv6 || icmpv6.type == 134", 4);
}

#[test]
fn what_asks_for_configuration_goes_to_nobody_else() {
    let topology = bare_tenants(true);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let (mine, others) = (
        RawSocket::open(&a.ns, TENANT_DEVICE).unwrap(),
        RawSocket::open(&b.ns, TENANT_DEVICE).unwrap(),
    );
    let own = a.mac_bytes();
    let discover = discover(own, own);
    others.drain().unwrap();
    mine.send(&discover).unwrap();
    let is_offer = |frame: &[u8]| frame.get(34..38) == Some(&[0, 67, 0, 68]);
    let offer = mine.receive_matching(LIMIT, is_offer).unwrap();
    assert!(offer.is_some(), "no offer");
    // Of what the tenant's own kernel says (its reports of multicast groups, say) the other may hear.
    let is_question = |frame: &[u8]| {
        frame.get(6..12) == Some(&own[..]) && frame.get(34..38) == Some(&[0, 68, 0, 67])
    };
    let heard = others.receive_matching(Duration::from_millis(300), is_question).unwrap();
    assert!(heard.is_none(), "another tenant heard the question: {heard:02x?}");
    // Nobody asks for another, and nobody answers in our place.
    checks::counted(&topology, 0, "unanswered", 1, || {
        mine.send(&self::discover(own, [2, 0x77, 9, 9, 9, 9])).unwrap();
    });
    checks::counted(&topology, 0, "rogue_router", 1, || {
        let any: IpAddr = Ipv4Addr::BROADCAST.into();
        let answer = craft::udp([own, [0xff; 6]], [a.v4.into(), any], [67, 68], &[2, 1, 6, 0]);
        mine.send(&answer).unwrap();
    });
    for _ in 0..50 {
        mine.send(&discover).unwrap();
    }
    let limited = || topology.stats(0).dropped("answer_limited") >= 10;
    assert!(wait_until(LIMIT, limited), "{:?}", topology.stats(0).drops());
    let from_router: IpAddr = ROUTER.parse().unwrap();
    assert!(!ping(&a.ns, from_router, 1, 56).all_answered());
}

/// A discover of a tenant, for a MAC address.
fn discover(src: [u8; 6], client: [u8; 6]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
    message.extend([0; 16]);
    message.extend(client);
    message.extend([0; 10 + 64 + 128]);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    let any: IpAddr = Ipv4Addr::UNSPECIFIED.into();
    craft::udp([src, [0xff; 6]], [any, Ipv4Addr::BROADCAST.into()], [68, 67], &message)
}
