//! Containers on two hosts, attached by cnitool through the container plug-in, culvertd and the dataplane.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use culvert_tests::culvert::binary;
use culvert_tests::process::{CommandError, run_command};
use culvert_tests::tools::{ping, tcp_transfer};
use culvert_tests::topology::WIRE;
use culvert_tests::{
    Combo, Culvert, Netns, Peer, Process, Scratch, Topology, TopologySpec, wait_until,
};
use serde_json::{Value, json};

/// Where Debian has host-local.
const PLUGINS: &str = "/usr/lib/cni";
/// Where cnitool keeps what ADD answered.
const RESULTS: &str = "/var/lib/cni/results";
/// Each in a vnet of its own, by the interface that containers have in it.
const NETWORKS: [(&str, &str); 2] = [("eth0", "culvert-e2e-blue"), ("eth1", "culvert-e2e-green")];

fn network(interface: &str) -> &'static str {
    NETWORKS.iter().find(|(name, _)| *name == interface).map_or("none", |(_, network)| network)
}

/// cnitool, as `scripts/setup-cni` built it.
fn cnitool() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().map(|folder| folder.join("cni/cnitool")).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("no cni/cnitool above {}: run scripts/setup-cni", own.display()))
}

/// A host with dataplane, culvertd, and a network for containers.
struct Site {
    culvertd: Process,
    dataplane: Culvert,
    run_dir: PathBuf,
    folder: PathBuf,
}

impl Site {
    /// Containers' addresses begin at 10.0.0.`first`.
    fn start(topology: &Topology, scratch: &mut Scratch, host: usize, first: u8) -> Site {
        let name = ["site-a", "site-b"][host];
        let folder = scratch.file(name);
        fs::create_dir_all(folder.join("net")).unwrap();
        let ns = &topology.hosts[host].ns;
        let bpffs = scratch.bpffs();
        // Its socket is dataplane.sock in the folder, which so is a run directory.
        let mut dataplane = Culvert::new(scratch, &format!("{name}/dataplane"), &bpffs, host);
        dataplane.start(ns, scratch, &[]);
        let mut command = ns.command(binary("culvertd"));
        command.env("NO_COLOR", "1").args(["--host", name, "--config", "/dev/null"]);
        command.arg("--state-dir").arg(folder.join("state"));
        command.arg("--socket").arg(folder.join("culvertd.sock"));
        command.arg("--dataplane").arg(folder.join("dataplane.sock"));
        let mut culvertd = Process::spawn(scratch, "culvertd", command);
        culvertd.wait_for_log("a dataplane", Duration::from_secs(20));

        let site = Site { culvertd, dataplane, run_dir: folder.clone(), folder };
        fs::write(
            site.folder.join("host.toml"),
            format!(
                "[underlay]\ninterface = \"{WIRE}\"\naddresses = [\"{}\"]\n\n\
                 [[vnet]]\nid = \"blue\"\nvni = 100\n\
                 gateway = [{{ ip = \"10.0.0.1/24\", mac = \"02:00:00:00:00:fe\" }}]\n\n\
                 [[vnet]]\nid = \"green\"\nvni = 200\n",
                topology.hosts[host].vtep
            ),
        )
        .unwrap();
        let file = site.folder.join("host.toml").display().to_string();
        site.culvert(ns, &["apply", "-f", &file]);
        for (vnet, subnet, (_, network)) in
            [("blue", "10.0.0", NETWORKS[0]), ("green", "10.0.1", NETWORKS[1])]
        {
            let start = format!("{subnet}.{first}");
            let ranges = json!([[{ "subnet": format!("{subnet}.0/24"), "rangeStart": start }]]);
            let folder = site.folder.join("leases");
            let ipam = json!({ "type": "host-local", "dataDir": folder, "ranges": ranges });
            let plugin = json!({
                "type": "culvert-cni", "vnet": vnet, "runDir": site.run_dir, "ipam": ipam
            });
            let conf = json!({ "cniVersion": "1.0.0", "name": network, "plugins": [plugin] });
            let file = site.folder.join(format!("net/{vnet}.conflist"));
            fs::write(file, conf.to_string()).unwrap();
        }
        site
    }

    #[track_caller]
    fn culvert(&self, ns: &Netns, args: &[&str]) -> String {
        let mut command = ns.command(binary("culvert"));
        command.arg("--run-dir").arg(&self.run_dir).args(args);
        run_command(&mut command)
            .unwrap_or_else(|e| panic!("{e}\nculvertd's log:\n{}", self.culvertd.log()))
    }

    fn cnitool(
        &self,
        host: &Netns,
        verb: &str,
        container: &str,
        interface: &str,
    ) -> Result<Value, CommandError> {
        let mut command = host.command(cnitool());
        let bin = binary("culvert-cni").parent().unwrap().to_owned();
        command.env("CNI_PATH", std::env::join_paths([bin, PLUGINS.into()]).unwrap());
        command.env("NETCONFPATH", self.folder.join("net")).env("CNI_IFNAME", interface);
        command.args([verb, network(interface), &format!("/run/netns/{container}")]);
        let out = run_command(&mut command)?;
        Ok(serde_json::from_str(&out).unwrap_or_default())
    }

    #[track_caller]
    fn add(&self, host: &Netns, container: &Netns, interface: &str) -> Attached {
        let result = self.cnitool(host, "add", container.name(), interface).unwrap_or_else(|e| {
            panic!("{e}\nculvertd:\n{}\ndataplane:\n{}", self.culvertd.log(), self.dataplane.log())
        });
        let address = result["ips"][0]["address"].as_str().unwrap();
        let ip = address.split('/').next().unwrap().parse().unwrap();
        Attached { ip, mac: result["interfaces"][1]["mac"].as_str().unwrap().to_owned() }
    }

    #[track_caller]
    fn works(&self, host: &Netns, verb: &str, container: &Netns, interface: &str) {
        if let Err(e) = self.cnitool(host, verb, container.name(), interface) {
            panic!("{e}\nculvertd:\n{}", self.culvertd.log());
        }
    }

    /// Devices, ports of culvertd and of the dataplane, and leases that are there.
    fn rest(&self, host: &Netns) -> [usize; 4] {
        let devices = host.run("ip -o link show").lines().filter(|l| l.contains(": cv")).count();
        let ports = |args: &[&str]| {
            let shown: Value = serde_json::from_str(&self.culvert(host, args)).unwrap();
            let list = shown.as_array().or_else(|| shown["ports"].as_array()).map(Vec::len);
            list.unwrap_or_else(|| panic!("{args:?}: {shown:#}"))
        };
        let leases = |(_, network): (&str, &str)| {
            let Ok(entries) = fs::read_dir(self.folder.join("leases").join(network)) else {
                return 0;
            };
            let names = entries.map(|entry| entry.unwrap().file_name());
            names.filter(|n| n.to_string_lossy().parse::<IpAddr>().is_ok()).count()
        };
        let leases = NETWORKS.into_iter().map(leases).sum();
        let [wanted, carried] =
            [ports(&["-o", "json", "port", "show"]), ports(&["-o", "json", "show", "ports"])];
        [devices, wanted, carried, leases]
    }
}

struct Attached {
    ip: IpAddr,
    mac: String,
}

#[track_caller]
fn reaches(from: &Netns, to: IpAddr) {
    let answered = || ping(from, to, 1, 56).all_answered();
    assert!(wait_until(Duration::from_secs(10), answered), "no answer from {to}");
}

fn hosts() -> (Topology, Scratch) {
    let mut spec = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Bare, Peer::Bare);
    spec.tenants.clear();
    (spec.build(), Scratch::new())
}

/// What cnitool remembers of our networks.
fn remembered() -> usize {
    let entries = fs::read_dir(RESULTS).map_or_else(|_| Vec::new(), Iterator::collect);
    let ours = |name: String| NETWORKS.iter().any(|(_, network)| name.starts_with(network));
    entries.into_iter().flatten().filter(|e| ours(e.file_name().to_string_lossy().into())).count()
}

#[test]
fn containers_on_two_hosts_talk_and_leave_nothing_behind() {
    let (topology, mut scratch) = hosts();
    let [a, b] = [&topology.hosts[0].ns, &topology.hosts[1].ns];
    let site_a = Site::start(&topology, &mut scratch, 0, 10);
    let site_b = Site::start(&topology, &mut scratch, 1, 20);
    let [c1, c2, c3] = ["c1", "c2", "c3"].map(Netns::new);

    // Before anything is there.
    site_a.works(a, "del", &c1, "eth0");
    let one = site_a.add(a, &c1, "eth0");
    let two = site_a.add(a, &c2, "eth0");
    let three = site_b.add(b, &c3, "eth0");
    reaches(&c1, two.ip);
    reaches(&c2, one.ip);
    // The gateway answers for itself; beyond it there is nothing here.
    ping(&c1, "10.0.0.1".parse().unwrap(), 1, 56);
    let neighbour = c1.run("ip neigh show 10.0.0.1");
    assert!(neighbour.contains("02:00:00:00:00:fe"), "{neighbour}");

    // Two stores, so each host is told of the other's containers.
    for (site, host, far, vtep) in
        [(&site_a, a, &three, topology.hosts[1].vtep), (&site_b, b, &one, topology.hosts[0].vtep)]
    {
        let (ip, vtep) = (far.ip.to_string(), vtep.to_string());
        let args = ["mapping", "add", "blue", &ip, "--mac", &far.mac, "--vtep", &vtep];
        site.culvert(host, &args);
    }
    reaches(&c1, three.ip);
    tcp_transfer(&c1, &c3, three.ip, 4 << 20).unwrap();
    tcp_transfer(&c2, &c1, one.ip, 4 << 20).unwrap();

    // Called again, and in no order.
    let again = site_a.cnitool(a, "add", c1.name(), "eth0").unwrap_err();
    assert!(again.to_string().contains("eth0 already"), "{again}");
    for (host, site, container) in [(a, &site_a, &c1), (a, &site_a, &c2), (b, &site_b, &c3)] {
        site.works(host, "check", container, "eth0");
    }
    reaches(&c1, two.ip);
    assert_eq!(site_a.rest(a), [2, 2, 2, 2]);

    for _ in 0..2 {
        site_a.works(a, "del", &c1, "eth0");
        assert_eq!(site_a.rest(a), [1, 1, 1, 1]);
        assert!(!ping(&c2, one.ip, 1, 56).all_answered());
    }
    let back = site_a.add(a, &c1, "eth0");
    reaches(&c2, back.ip);
    site_a.works(a, "del", &c1, "eth0");
    site_a.works(a, "del", &c2, "eth0");
    site_b.works(b, "del", &c3, "eth0");
    assert_eq!((site_a.rest(a), site_b.rest(b)), ([0; 4], [0; 4]));
    assert_eq!(remembered(), 0);
    for container in [&c1, &c2, &c3] {
        assert!(container.try_run("ip link show dev eth0").is_err());
    }
}

#[test]
fn a_container_of_two_interfaces_survives_the_dataplane() {
    let (topology, mut scratch) = hosts();
    let host = &topology.hosts[0].ns;
    let mut site = Site::start(&topology, &mut scratch, 0, 10);
    let [c1, c2] = ["c1", "c2"].map(Netns::new);
    let [first, second] = ["eth0", "eth1"].map(|interface| site.add(host, &c1, interface));
    for interface in ["eth0", "eth1"] {
        site.add(host, &c2, interface);
    }
    assert!(first.ip != second.ip && first.mac != second.mac);
    for ip in [first.ip, second.ip] {
        reaches(&c2, ip);
    }
    site.dataplane.process().kill();
    assert!(!ping(&c2, first.ip, 1, 56).all_answered());
    site.dataplane.start(host, &scratch, &[]);
    for ip in [first.ip, second.ip] {
        reaches(&c2, ip);
    }
    site.works(host, "check", &c1, "eth1");

    // Their namespace is gone before anybody says so.
    let name = c1.name().to_owned();
    drop(c1);
    let gone = || !host.run("ip -o link show").contains(&format!("link-netns {name}"));
    assert!(wait_until(Duration::from_secs(5), gone));
    for interface in ["eth0", "eth1"] {
        site.cnitool(host, "del", &name, interface).unwrap();
    }
    assert_eq!(site.rest(host), [2, 2, 2, 2]);
    for interface in ["eth0", "eth1"] {
        site.works(host, "del", &c2, interface);
    }
    assert_eq!(site.rest(host), [0; 4]);
}
