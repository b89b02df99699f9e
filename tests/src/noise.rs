//! Random parts of a `host.toml` that are about nobody's traffic: networks, ports, groups, mappings, routes and rules
//! that come and go beside what a test is about.

use std::fmt::Write;

use crate::link;
use crate::netns::Netns;
use crate::tools::Random;
use crate::topology::Topology;

/// Ports that may be there, each on a device of its own.
const PORTS: u64 = 4;
const VNETS: u64 = 2;
const GROUPS: u64 = 2;
const MAPPINGS: u64 = 8;

/// The names of all devices that [`noise`] attaches ports to.
fn device(n: u64) -> String {
    format!("q{n}")
}

/// Makes the devices of the ports on a host. Nobody is at their other ends.
///
/// # Panics
/// If they cannot be made.
pub fn add_devices(ns: &Netns) {
    for n in 0..PORTS {
        let (name, peer) = (device(n), format!("s{n}"));
        link::veth(ns, &name, ns, &peer, 1500);
        ns.run(&format!("ip link set {name} up"));
        ns.run(&format!("ip link set {peer} up"));
    }
}

fn below(random: &mut Random, n: u64) -> u64 {
    random.next_u64() % n
}

fn one_in(random: &mut Random, n: u64) -> bool {
    below(random, n) == 0
}

fn pick<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    let at = usize::try_from(below(random, of.len() as u64)).unwrap_or(0);
    of[at]
}

/// A vnet that ports and mappings may be in, with the part of its addresses that comes first.
fn home(random: &mut Random, vnets: &[u64]) -> (String, String) {
    match usize::try_from(below(random, vnets.len() as u64 + 1)).ok().and_then(|at| vnets.get(at)) {
        Some(n) => (format!("noise{n}"), format!("10.{}.0", 80 + n)),
        None => ("blue".to_owned(), "10.77.1".to_owned()),
    }
}

/// Sections that make a legal state of that of a topology with a vnet `blue`, of which they touch nothing.
pub fn noise(random: &mut Random, topology: &Topology, host: usize) -> String {
    let mut out = String::new();
    let vnets: Vec<u64> = (0..VNETS).filter(|_| !one_in(random, 3)).collect();
    for n in &vnets {
        vnet(&mut out, random, *n);
    }
    for group in 0..GROUPS {
        acl(&mut out, random, group);
    }
    for n in 0..PORTS {
        if !one_in(random, 3) {
            port(&mut out, random, n, host, &vnets);
        }
    }
    for n in 0..MAPPINGS {
        if one_in(random, 2) {
            continue;
        }
        let (vnet, net) = home(random, &vnets);
        let vtep = match one_in(random, 2) {
            true => topology.hosts[1 - host].vtep.to_string(),
            false => format!("203.0.113.{}", 1 + below(random, 3)),
        };
        let mac = format!("02:77:bb:{host:02x}:00:{n:02x}");
        let ip = format!("{net}.{}", 100 + n);
        let _ = write!(
            out,
            "\n[[mapping]]\nvnet = \"{vnet}\"\nip = \"{ip}\"\nmac = \"{mac}\"\nvtep = \"{vtep}\"\n"
        );
    }
    out
}

fn vnet(out: &mut String, random: &mut Random, n: u64) {
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "\n[[vnet]]\nid = \"noise{n}\"\nvni = {}\nflood = {}\nmiss = \"{}\"\n",
        1000 + n,
        one_in(random, 2),
        pick(random, &["drop", "trap"]),
    );
    let dhcp = one_in(random, 2);
    if dhcp || one_in(random, 2) {
        let mac = pick(random, &["02:77:fe:00:01:01", "02:77:fe:00:01:02"]);
        let _ = writeln!(out, "gateway = [{{ ip = \"10.{}.0.254/24\", mac = \"{mac}\" }}]", 80 + n);
    }
    if dhcp {
        let lease = pick(random, &["60", "3600"]);
        let _ = write!(out, "\n[vnet.dhcp]\nlease = {lease}\ndns = [\"10.{}.0.253\"]\n", 80 + n);
    }
    for priority in 0..below(random, 3) {
        let vtep = pick(random, &["any", "203.0.113.0/24", "198.18.0.0/15"]);
        let action = pick(random, &["decap-validate", "decap", "trap", "drop"]);
        let _ = write!(
            out,
            "\n[[ingress]]\nvni = {}\nvtep = \"{vtep}\"\npriority = {priority}\naction = \"{action}\"\n",
            1000 + n,
        );
    }
}

fn acl(out: &mut String, random: &mut Random, group: u64) {
    let stateful = one_in(random, 2);
    let _ = write!(out, "\n[[acl]]\nid = \"noise{group}\"\nstateful = {stateful}\nrule = [\n");
    for _ in 0..below(random, 4) {
        let direction = pick(random, &["ingress", "egress"]);
        let action = pick(random, &["allow", "deny"]);
        let more = pick(
            random,
            &["", ", protocol = \"udp\", local_ports = \"7000-7200\"", ", remote = \"10.0.0.0/8\""],
        );
        let _ =
            writeln!(out, "    {{ direction = \"{direction}\", action = \"{action}\"{more} }},");
    }
    out.push_str("]\n");
}

fn port(out: &mut String, random: &mut Random, n: u64, host: usize, vnets: &[u64]) {
    let (vnet, net) = home(random, vnets);
    let _ = write!(
        out,
        "\n[[port]]\nid = \"{0}\"\nvnet = \"{vnet}\"\nattach = {{ xdp = \"{0}\" }}\n\
         mac = \"02:77:aa:{host:02x}:00:{n:02x}\"\nips = [\"{net}.{1}\"]\nstate = \"{2}\"\nacl = {3}\n",
        device(n),
        200 + n,
        pick(random, &["active", "blocked"]),
        pick(random, &["[]", "[\"noise0\"]", "[\"noise1\", \"noise0\"]"]),
    );
    let meter = pick(
        random,
        &[
            "",
            "meter = { rx = { rate = \"1M\" } }",
            "meter = { tx = { rate = \"1G\", burst = \"2M\" } }",
        ],
    );
    let _ = writeln!(out, "{meter}");
    for prefix in ["10.0.0.0/8", "10.80.0.0/16", "0.0.0.0/0"] {
        if one_in(random, 2) {
            continue;
        }
        let own = format!("{{ vnet = \"{vnet}\" }}");
        let to = pick(random, &[&own, "\"local\"", "\"trap\"", "\"drop\""]);
        let id = device(n);
        let _ = write!(out, "\n[[route]]\nport = \"{id}\"\nprefix = \"{prefix}\"\nto = {to}\n");
    }
}
