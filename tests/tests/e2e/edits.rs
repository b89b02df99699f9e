//! Random changes under live traffic: no packet sees half of one.
//!
//! Each host goes back and forth between two faces that differ in several objects at once, and in random things that
//! are nobody's business here. Frames of most kinds pass only if an object of the one face and another of the other
//! are in force together; what passes by both faces passes by different objects in each.
//!
//! By default some seconds; `CULVERT_E2E=full` takes minutes.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use culvert_model::{Edit, Host, api, diff, host_toml};
use culvert_tests::marked::{Kind, Seen, traffic};
use culvert_tests::noise::{add_devices, noise};
use culvert_tests::tools::Random;
use culvert_tests::topology::{TenantSpec, VnetSpec, mac_bytes, with_port_lines, with_vnet_lines};
use culvert_tests::{Attach, Combo, Rpc, Topology, TopologySpec};

/// Two MAC addresses of a router: each face has one.
const ROUTERS: [&str; 2] = ["02:77:fe:00:00:01", "02:77:fe:00:00:02"];

/// When frames of a kind arrive.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Passes {
    /// Whatever the faces of the hosts.
    Always,
    /// With one face of one host.
    With { host: usize, face: usize },
    /// Never, unless a host mixes its faces.
    Never,
}
use Passes::{Always, Never, With};

/// Destination ports, and what a frame to each needs.
const KINDS: [(u16, Passes, &str); 18] = [
    (7001, Always, "to another host, by other routes and groups in each face"),
    (7002, Always, "to another port of the host"),
    (7010, With { host: 0, face: 0 }, "a rule of the sender's group"),
    (7011, With { host: 0, face: 1 }, "a rule of the sender's group"),
    (7020, Never, "a rule of the sender's group, and a route"),
    (7030, Never, "a rule of the sender's group, and a mapping"),
    (7040, Never, "the port's list of groups, and a rule of one of them"),
    (7050, Never, "a gateway's MAC address, and a mapping"),
    (7051, With { host: 0, face: 1 }, "a gateway's MAC address, and a mapping"),
    (7070, Never, "rules of the groups of two ports of one host"),
    (7110, Never, "a rule of the receiver's group, and a mapping of the source"),
    (
        7111,
        With { host: 1, face: 1 },
        "a rule of the receiver's group, and a mapping of the source",
    ),
    (7120, Never, "a rule of the receiver's group, and an ingress rule"),
    (7121, With { host: 1, face: 1 }, "a rule of the receiver's group, and an ingress rule"),
    (7130, Never, "the receiver's network, and a rule of its group"),
    (7160, With { host: 1, face: 0 }, "a rule of the receiver's group"),
    (7161, With { host: 1, face: 1 }, "a rule of the receiver's group"),
    (7003, Always, "to another host, last of a round"),
];

/// On host A: 0 sends in `blue`, 2 is its neighbour, 4 sends in `green`. On host B: 1, 3 and 6 are in `blue`, 5 in `green`.
fn topology(attach: Attach, workers: usize) -> Topology {
    let mut spec = TopologySpec::pair(Combo { attach, ..Combo::SIMPLE });
    spec.vnets.push(VnetSpec { name: "green", vni: 200, subnet: 2, flood: false });
    let tenant = |host, vnet, number, anti_spoof| TenantSpec { host, vnet, number, anti_spoof };
    spec.tenants = vec![
        // Also sends in the name of an address that is not its own.
        tenant(0, 0, 1, false),
        tenant(1, 0, 2, true),
        tenant(0, 0, 3, true),
        tenant(1, 0, 4, true),
        tenant(0, 1, 1, true),
        tenant(1, 1, 2, true),
        tenant(1, 0, 5, true),
    ];
    spec.dataplane_args = vec!["--workers".into(), workers.to_string()];
    let topology = spec.build();
    for host in &topology.hosts {
        add_devices(&host.ns);
    }
    topology.wait_connected(0, 1);
    topology.wait_connected(4, 5);
    topology
}

/// Addresses that only some faces know.
const ROUTED: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 60);
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 71);
const BEHIND_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 80);

fn mapping(ip: Ipv4Addr, mac: &str, vtep: std::net::IpAddr) -> String {
    format!("\n[[mapping]]\nvnet = \"blue\"\nip = \"{ip}\"\nmac = \"{mac}\"\nvtep = \"{vtep}\"\n")
}

/// A group whose rules allow UDP to some ports; `direction` is the tenant's.
fn group(id: &str, stateful: bool, direction: &str, ports: &str) -> String {
    let side = if direction == "egress" { "remote_ports" } else { "local_ports" };
    format!(
        "\n[[acl]]\nid = \"{id}\"\nstateful = {stateful}\nrule = [{{ direction = \"{direction}\", \
         action = \"allow\", protocol = \"udp\", {side} = \"{ports}\" }}]\n"
    )
}

/// Host A, where frames are sent.
fn sending(topology: &Topology, face: usize, stateful: bool) -> String {
    let [t0, t1, t2] = [0, 1, 2].map(|at| &topology.tenants[at]);
    let vtep = topology.hosts[1].vtep;
    // The first face knows of tenant 3 nothing.
    let left_out = if face == 0 { 3 } else { usize::MAX };
    let toml = topology.host_toml_without(0, left_out);
    let toml = with_port_lines(&toml, t0, &format!("acl = [\"out\", \"more{face}\"]"));
    let toml = with_port_lines(&toml, t2, "acl = [\"in\"]");
    let gateway = format!("gateway = [{{ ip = \"10.77.1.254/24\", mac = \"{}\" }}]", ROUTERS[face]);
    let mut toml = with_vnet_lines(&toml, "blue", &gateway);
    let common = "7001-7003, 7050-7051, 7110-7111, 7130, 7160-7161";
    let out = format!("{common}, {}", ["7010, 7020, 7030, 7070", "7011"][face]);
    toml += &group("out", stateful, "egress", &out);
    for (list, action) in [["deny", "allow"], ["allow", "deny"]].into_iter().enumerate() {
        toml += &format!(
            "\n[[acl]]\nid = \"more{list}\"\nrule = [{{ direction = \"egress\", action = \"{}\", \
             protocol = \"udp\", remote_ports = 7040 }}]\n",
            action[face]
        );
    }
    toml += &group("in", stateful, "ingress", ["7002", "7002, 7070"][face]);
    for (prefix, to) in [
        [("10.77.1.0/24", "{ vnet = \"blue\" }"), ("10.77.1.60/32", "\"drop\"")],
        [("0.0.0.0/0", "{ vnet = \"blue\" }"), ("10.77.1.60/32", "{ vnet = \"blue\" }")],
    ][face]
    {
        toml += &format!("\n[[route]]\nport = \"t0\"\nprefix = \"{prefix}\"\nto = {to}\n");
    }
    if face == 1 {
        toml += &mapping(BEHIND_ROUTER, &t1.mac, vtep);
    }
    toml
}

/// Host B, where frames arrive.
fn receiving(topology: &Topology, face: usize, stateful: bool) -> String {
    let [t0, t1, t5, t6] = [0, 1, 5, 6].map(|at| &topology.tenants[at]);
    let toml = topology.host_toml(1);
    let toml = with_port_lines(&toml, t1, "acl = [\"in\"]");
    let toml = with_port_lines(&toml, t5, "acl = [\"green\"]");
    let toml = with_port_lines(&toml, t6, "acl = [\"moving\"]");
    let moves = |vnet| format!("id = \"{}\"\nvnet = \"{vnet}\"", t6.port);
    let toml = toml.replacen(&moves("blue"), &moves(["blue", "green"][face]), 1);
    // Either may have routed what comes.
    let [one, other] = ROUTERS;
    let gateways = format!(
        "gateway = [{{ ip = \"10.77.1.254/24\", mac = \"{one}\" }}, \
         {{ ip = \"10.77.1.253/24\", mac = \"{other}\" }}]"
    );
    let mut toml = with_vnet_lines(&toml, "blue", &gateways);
    let common = "7001, 7003, 7010-7011, 7020, 7040, 7050-7051";
    let ports = format!("{common}, {}", ["7110, 7160", "7111, 7161"][face]);
    toml += &group("in", stateful, "ingress", &ports);
    toml += &group("green", stateful, "ingress", ["7120", "7121"][face]);
    toml += &group("moving", stateful, "ingress", ["9", "7000-7200"][face]);
    let action = ["drop", "decap-validate"][face];
    toml += &format!(
        "\n[[ingress]]\nvni = 200\nvtep = \"any\"\npriority = 10\naction = \"{action}\"\n"
    );
    if face == 1 {
        toml += &mapping(SOURCE, &t0.mac, topology.hosts[0].vtep);
    }
    toml
}

/// A state of a host with one of its faces, and what is nobody's business.
fn state(topology: &Topology, host: usize, face: usize, random: &mut Random) -> Host {
    let stateful = random.next_u64().is_multiple_of(2);
    let toml = [sending, receiving][host](topology, face, stateful);
    // More than there is.
    let rate = ["10G", "100G"][face];
    let meter = format!("meter = {{ rx = {{ rate = \"{rate}\" }}, tx = {{ rate = \"{rate}\" }} }}");
    let toml = with_port_lines(&toml, &topology.tenants[host], &meter);
    let toml = toml + &noise(random, topology, host);
    host_toml::read(&toml).unwrap_or_else(|e| panic!("{e:?}\n{toml}"))
}

fn kinds(topology: &Topology) -> Vec<(&culvert_tests::topology::Tenant, Kind)> {
    let tenants = &topology.tenants;
    let kind = |(port, ..): &(u16, Passes, &str)| {
        let (from, to) = match port {
            7002 | 7070 => (0, 2),
            7030 => (0, 3),
            7120 | 7121 => (4, 5),
            7130 => (0, 6),
            _ => (0, 1),
        };
        let mut kind = Kind::between(&tenants[from], &tenants[to], *port);
        match port {
            7020 => kind.addresses[1] = ROUTED,
            7050 | 7051 => {
                let face = usize::from(*port == 7051);
                kind.macs[1] = mac_bytes(ROUTERS[face]);
                kind.addresses[1] = BEHIND_ROUTER;
            }
            7110 | 7111 => kind.addresses[0] = SOURCE,
            _ => {}
        }
        (&tenants[from], kind)
    };
    KINDS.iter().map(kind).collect()
}

/// How changes are made.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum How {
    /// As a whole, by an update or as a state.
    Whole,
    /// One edit after the other: what must never be seen is seen then.
    EditByEdit,
}

/// One of the hosts, and what it was told last.
struct Told {
    rpc: Rpc,
    now: Host,
    face: usize,
    flips: u32,
}

impl Told {
    /// A host with its first face.
    fn new(topology: &Topology, host: usize, random: &mut Random) -> Told {
        let mut rpc = Rpc::connect(topology.dataplane(host).socket());
        let now = state(topology, host, 0, random);
        rpc.replace((&now).into()).unwrap_or_else(|e| panic!("{}", Rpc::reason(&e)));
        Told { rpc, now, face: 0, flips: 0 }
    }

    fn update(&mut self, edits: &[Edit]) {
        let messages = edits.iter().map(|edit| api::Edit::from(edit).edit.unwrap()).collect();
        let updated = self.rpc.update(messages, None, "");
        updated.unwrap_or_else(|e| panic!("{}: {edits:#?}", Rpc::reason(&e)));
        self.now = self.now.edited(edits).unwrap();
    }

    fn change_to(&mut self, next: Host, how: How, random: &mut Random) {
        let mut edits = diff(&self.now, &next);
        shuffle(random, &mut edits);
        match how {
            How::Whole if random.next_u64().is_multiple_of(4) => {
                let replaced = self.rpc.replace((&next).into());
                replaced.unwrap_or_else(|e| panic!("{}: {edits:#?}", Rpc::reason(&e)));
            }
            How::Whole => self.update(&edits),
            How::EditByEdit => self.edit_by_edit(edits),
        }
        self.now = next;
    }

    /// Any order in which each edit leaves a legal state.
    fn edit_by_edit(&mut self, mut edits: Vec<Edit>) {
        while !edits.is_empty() {
            let legal = |edit: &Edit| self.now.edited(std::slice::from_ref(edit)).is_ok();
            let some = match edits.iter().position(legal) {
                Some(at) => vec![edits.remove(at)],
                None => std::mem::take(&mut edits),
            };
            self.update(&some);
            std::thread::sleep(Duration::from_millis(4));
        }
    }
}

fn shuffle<T>(random: &mut Random, items: &mut [T]) {
    for at in (1..items.len()).rev() {
        let with = random.next_u64() % (at as u64 + 1);
        items.swap(at, usize::try_from(with).unwrap());
    }
}

/// What was seen while the hosts were changed at random, and how often each changed its face.
fn seen_under(topology: &Topology, how: How, seed: u64, lasts: Duration) -> (Seen, [u32; 2]) {
    let mut random = Random::new(seed);
    let mut hosts = [0, 1].map(|host| Told::new(topology, host, &mut random));
    let receivers = [1, 2, 3, 5, 6].map(|at| &topology.tenants[at]);
    let (seen, made) = traffic(&kinds(topology), &receivers, || {
        let end = Instant::now() + lasts;
        let mut made = 0_u32;
        while Instant::now() < end {
            let at = usize::try_from(random.next_u64() % 2).unwrap();
            let told = &mut hosts[at];
            let flips = !random.next_u64().is_multiple_of(4);
            if flips {
                (told.face, told.flips) = (1 - told.face, told.flips + 1);
            }
            let next = state(topology, at, told.face, &mut random);
            told.change_to(next, how, &mut random);
            if made.is_multiple_of(16) {
                assert_eq!(Host::try_from(told.rpc.state().0).unwrap(), told.now, "host {at}");
            }
            made += 1;
            std::thread::sleep(Duration::from_millis(random.next_u64() % 12));
        }
        made
    });
    eprintln!("seed {seed}: {made} changes, {} rounds of frames", seen.rounds);
    (seen, hosts.map(|told| told.flips))
}

/// Frames that the kernel lost before a dataplane had them, and those that one worker had no room for: for want of
/// processor time, which no change is to blame for.
fn lost_for_want_of_time(topology: &Topology) -> u64 {
    let of = |host| {
        let stats = topology.stats(host);
        let devices = ["wire", "t0", "t1", "t2"];
        let names = ["kernel_rx_dropped", "kernel_rx_ring_full", "kernel_fill_empty"];
        let kernel = devices.iter().flat_map(|device| names.map(|name| stats.kernel(device, name)));
        kernel.flatten().sum::<u64>() + stats.dropped("handoff_full")
    };
    of(0) + of(1)
}

/// How often the last of some rounds was by one face and the next by the other.
fn turns(by_face: &[BTreeSet<u32>; 2]) -> usize {
    let mut all: Vec<(u32, usize)> = Vec::new();
    for (face, rounds) in by_face.iter().enumerate() {
        all.extend(rounds.iter().map(|round| (*round, face)));
    }
    all.sort_unstable();
    all.windows(2).filter(|pair| pair[0].1 != pair[1].1).count()
}

fn check(topology: &Topology, seed: u64, lasts: Duration) {
    let (seen, flips) = seen_under(topology, How::Whole, seed, lasts);
    assert!(flips[0] > 10 && flips[1] > 10, "{flips:?} changes of faces");
    let lost_at_most = lost_for_want_of_time(topology);
    for (port, passes, needs) in KINDS {
        let arrived = seen.of(port);
        let at = seen.receivers(port);
        match passes {
            Never => assert!(
                arrived.is_empty(),
                "port {port}: {} of {} frames came through half a change, to {at:?}: {needs}",
                arrived.len(),
                seen.rounds
            ),
            Always => {
                assert_eq!(at, [usize::from(port == 7002)], "port {port}: {needs}");
                assert!(
                    arrived.is_sorted_by(|a, b| a < b),
                    "port {port}: order, once each: {needs}"
                );
                let lost = u64::from(seen.rounds) - arrived.len() as u64;
                eprintln!("port {port}: {lost} lost; at most {lost_at_most} for want of time");
                assert!(
                    lost <= lost_at_most,
                    "port {port}: {lost} of {} lost: {needs}",
                    seen.rounds
                );
            }
            With { .. } => {
                assert!(arrived.len() > 10, "port {port}: {} arrived: {needs}", arrived.len());
                assert!(arrived.len() < seen.rounds as usize / 20 * 19, "port {port}: {needs}");
            }
        }
    }
    // Of two frames, one after the other, just one passes, but where the face changes between the two.
    for (host, ports) in [(0, [7010, 7011]), (1, [7160, 7161])] {
        let by_face = ports.map(|port| seen.of(port).into_iter().collect::<BTreeSet<u32>>());
        let either: BTreeSet<u32> = by_face[0].symmetric_difference(&by_face[1]).copied().collect();
        let odd = u64::from(seen.rounds) - either.len() as u64;
        let turns = turns(&by_face);
        eprintln!(
            "host {host}: {} changes of its face, {turns} seen, {odd} between two",
            flips[host]
        );
        assert!(odd <= u64::from(flips[host]) + lost_at_most, "host {host}: {odd} rounds");
        assert!(turns > 10, "host {host}: frames saw {turns} changes");
    }
}

fn lasts(parts: u32) -> Duration {
    let full = culvert_tests::is_full();
    Duration::from_secs(if full { 120 } else { 12 }) / parts
}

#[test]
fn no_packet_sees_half_of_a_random_change() {
    for (n, (attach, workers)) in
        [(Attach::Veth, 1), (Attach::Veth, 2), (Attach::Tap, 2)].into_iter().enumerate()
    {
        eprintln!("{attach:?}, {workers} workers");
        check(&topology(attach, workers), n as u64 + 1, lasts(3));
    }
}

/// That the test above would see it.
#[test]
fn each_kind_of_packet_sees_a_change_that_is_made_edit_by_edit() {
    let topology = topology(Attach::Veth, 1);
    let mut missing: Vec<_> = KINDS.iter().filter(|(_, passes, _)| *passes == Never).collect();
    for seed in 1..=10 {
        let (seen, _) = seen_under(&topology, How::EditByEdit, seed, Duration::from_secs(3));
        missing.retain(|(port, ..)| seen.of(*port).is_empty());
        if missing.is_empty() {
            return;
        }
    }
    panic!("seen by nobody: {missing:?}");
}
