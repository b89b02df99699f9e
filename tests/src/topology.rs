//! Two hosts, the wire between them, and their tenants.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::combo::{Attach, Combo, Family, Offloads};
use crate::culvert::Culvert;
use crate::middle::Middle;
use crate::netns::Netns;
use crate::scratch::Scratch;
use crate::stats::Stats;
use crate::underlay::{Shape, Underlay};
use crate::{kernel, link, tools, wait_until};

/// Name of the underlay device on each host.
pub const WIRE: &str = "wire";
/// Name of the second underlay device, where there are two.
pub const SECOND_WIRE: &str = "wire2";
/// Name of the device inside each tenant.
pub const TENANT_DEVICE: &str = "eth0";

/// What carries a host's tenants over the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `culvert-dataplane`, configured by `culvert`.
    Culvert,
    /// The kernel's VXLAN device and a bridge per vnet.
    Kernel {
        /// Whether the kernel writes outer UDP checksums over IPv4; over IPv6 it always does.
        udp_csum: bool,
    },
    /// The kernel's Geneve device and a bridge, for one vnet.
    KernelGeneve,
    /// Nothing: the tenants' devices end at the host. For peers that something else sets up, and hand-made packets.
    Bare,
}

/// A virtual network of a topology.
#[derive(Clone, Debug)]
pub struct VnetSpec {
    /// Name in `host.toml`.
    pub name: &'static str,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Third octet of 10.77.x.0/24 and last group of `fd77:x::/64`. Vnets may share one.
    pub subnet: u8,
    /// Whether broadcast is replicated to all mapped VTEPs.
    pub flood: bool,
}

/// A tenant of a topology.
#[derive(Clone, Copy, Debug)]
pub struct TenantSpec {
    /// Index of its host: 0 or 1.
    pub host: usize,
    /// Index of its vnet.
    pub vnet: usize,
    /// Host part of its addresses, at least 1. Tenants of different vnets may share one.
    pub number: u8,
    /// Whether the dataplane checks its source addresses.
    pub anti_spoof: bool,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct TopologySpec {
    /// Families, sizes, offloads.
    pub combo: Combo,
    /// What runs on host A and B.
    pub peers: [Peer; 2],
    /// The vnets, known to both hosts.
    pub vnets: Vec<VnetSpec>,
    /// The tenants.
    pub tenants: Vec<TenantSpec>,
    /// More text for each host's `host.toml`.
    pub extra_toml: [String; 2],
    /// More options for each `culvert-dataplane`.
    pub dataplane_args: Vec<String>,
    /// A program that starts each `culvert-dataplane`, with its own arguments; empty: none.
    pub dataplane_wrapper: Vec<String>,
    /// Mode line of tenants' ports and the underlay: `auto`, `native`, `generic`.
    pub mode: [&'static str; 2],
    /// More lines for the `[underlay]` section of each `host.toml`.
    pub underlay_toml: &'static str,
    /// Bytes of outer headers that the wire has room for; none: those of the format of the run.
    pub wire_room: Option<u32>,
    /// More lines for each `[[vnet]]` section of each `host.toml`.
    pub vnet_toml: &'static str,
    /// Put a [`Middle`] into the wire, which can damage frames.
    pub middle: bool,
    /// What else lies between the hosts.
    pub shape: Shape,
    /// Queues of each host's end of the wire.
    pub wire_queues: u32,
    /// Network cards of this machine that are the ends of the one wire, joined outside, instead of a veth pair.
    pub cards: Option<[&'static str; 2]>,
}

impl TopologySpec {
    /// One vnet with one tenant on each host, Culvert on both.
    pub fn pair(combo: Combo) -> Self {
        let tenant = |host| TenantSpec { host, vnet: 0, number: [1, 2][host], anti_spoof: true };
        Self {
            combo,
            peers: [Peer::Culvert; 2],
            vnets: vec![VnetSpec { name: "blue", vni: 100, subnet: 1, flood: false }],
            tenants: vec![tenant(0), tenant(1)],
            extra_toml: [String::new(), String::new()],
            dataplane_args: Vec::new(),
            dataplane_wrapper: Vec::new(),
            mode: ["auto", "auto"],
            underlay_toml: "",
            wire_room: None,
            vnet_toml: "",
            middle: false,
            shape: Shape::OneWire,
            wire_queues: 1,
            cards: None,
        }
    }

    /// Two vnets with the very same addresses, each with a tenant on both hosts; tenants 0 and 1 are `blue`, 2 and 3 `green`.
    pub fn twins(combo: Combo) -> Self {
        let mut spec = Self::pair(combo);
        spec.vnets.push(VnetSpec { name: "green", vni: 200, subnet: 1, flood: false });
        for host in 0..2 {
            let number = [1, 2][host];
            spec.tenants.push(TenantSpec { host, vnet: 1, number, anti_spoof: true });
        }
        spec
    }

    /// One vnet with two tenants on each host: 0 and 2 on A, 1 and 3 on B.
    pub fn quad(combo: Combo) -> Self {
        let mut spec = Self::pair(combo);
        for host in 0..2 {
            spec.tenants.push(TenantSpec { host, vnet: 0, number: [3, 4][host], anti_spoof: true });
        }
        spec
    }

    /// The same with other peers.
    pub fn with_peers(mut self, a: Peer, b: Peer) -> Self {
        self.peers = [a, b];
        self
    }

    /// MTU of the wire between the hosts, in bytes.
    pub(crate) fn underlay_mtu(&self) -> u32 {
        let room = self.wire_room.unwrap_or_else(|| self.combo.encapsulation_len());
        self.combo.tenant_mtu + room
    }

    /// Builds it and waits until nothing but first packets is missing.
    ///
    /// # Panics
    /// If any part cannot be set up; the message says which.
    pub fn build(self) -> Topology {
        Topology::build(self)
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Its namespace, with the device [`WIRE`].
    pub ns: Netns,
    /// Address of its tunnel endpoint.
    pub vtep: IpAddr,
    /// MAC address of its end of the wire.
    pub wire_mac: String,
}

/// One tenant.
#[derive(Debug)]
pub struct Tenant {
    /// Its namespace, with the device [`TENANT_DEVICE`].
    pub ns: Netns,
    /// What it was made from.
    pub spec: TenantSpec,
    /// Its IPv4 address, in a /24.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, in a /64.
    pub v6: Ipv6Addr,
    /// Its MAC address.
    pub mac: String,
    /// Its port's id in `host.toml`, and the name of the device at the host.
    pub port: String,
}

impl Tenant {
    /// Its address in `family`.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Its MAC address as bytes.
    pub fn mac_bytes(&self) -> [u8; 6] {
        mac_bytes(&self.mac)
    }
}

/// A `host.toml` with more lines in the port of a tenant.
///
/// # Panics
/// If the tenant has no port there.
#[track_caller]
pub fn with_port_lines(toml: &str, tenant: &Tenant, lines: &str) -> String {
    let at = format!("mac = \"{}\"\nips = ", tenant.mac);
    assert!(toml.contains(&at), "no port of {} in:\n{toml}", tenant.port);
    toml.replacen(&at, &format!("{}\n{at}", lines.trim_end()), 1)
}

/// A `host.toml` with more lines in the vnet of a name.
///
/// # Panics
/// If there is no such vnet.
#[track_caller]
pub fn with_vnet_lines(toml: &str, vnet: &str, lines: &str) -> String {
    let at = format!("[[vnet]]\nid = \"{vnet}\"\n");
    assert!(toml.contains(&at), "no vnet {vnet} in:\n{toml}");
    toml.replacen(&at, &format!("{at}{}\n", lines.trim_end()), 1)
}

/// Parses `02:00:...`; all zero for anything else.
pub fn mac_bytes(text: &str) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (byte, part) in bytes.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).unwrap_or(0);
    }
    bytes
}

/// A running topology. Fields drop in order: dataplanes end before their namespaces go.
#[derive(Debug)]
pub struct Topology {
    /// The dataplane of each host that runs Culvert.
    pub culvert: [Option<Culvert>; 2],
    /// The tenants, in the order of the specification.
    pub tenants: Vec<Tenant>,
    /// What stands in the wire, if the specification wants it.
    pub middle: Option<Middle>,
    /// The routers between the hosts, the first one beside host A.
    pub routers: Vec<Netns>,
    /// Hosts A and B.
    pub hosts: [Host; 2],
    /// What it was built from.
    pub spec: TopologySpec,
    /// Its files.
    pub scratch: Scratch,
}

impl Topology {
    fn build(spec: TopologySpec) -> Self {
        let scratch = Scratch::new();
        let Underlay { hosts, middle, routers } = Underlay::build(&spec);
        let mut tenants = Vec::new();
        for (index, &tenant) in spec.tenants.iter().enumerate() {
            tenants.push(build_tenant(&spec, &hosts[tenant.host], index, tenant));
        }
        let culvert = [None, None];
        let mut topology = Self { culvert, tenants, middle, routers, hosts, spec, scratch };
        for host in 0..2 {
            match topology.spec.peers[host] {
                Peer::Culvert => topology.start_culvert(host),
                Peer::Kernel { udp_csum } => kernel::attach(&topology, host, udp_csum),
                Peer::KernelGeneve => kernel::attach_geneve(&topology, host),
                Peer::Bare => {}
            }
        }
        topology.settle_tenants();
        topology
    }

    /// Starts the dataplane of a host and applies its `host.toml`.
    ///
    /// # Panics
    /// If it does not start or refuses the configuration.
    pub fn start_culvert(&mut self, host: usize) {
        let toml = self.host_toml(host);
        let bpffs = self.scratch.bpffs();
        let culvert = self.culvert[host]
            .get_or_insert_with(|| Culvert::new(&self.scratch, ["a", "b"][host], &bpffs, host));
        let TopologySpec { dataplane_args, dataplane_wrapper, .. } = &self.spec;
        culvert.start_by(dataplane_wrapper, &self.hosts[host].ns, &self.scratch, dataplane_args);
        culvert.write_config(&toml);
        culvert.apply(&self.hosts[host].ns);
        self.hand_over_taps(host);
    }

    /// The dataplane of a host.
    ///
    /// # Panics
    /// If that host does not run Culvert.
    #[track_caller]
    pub fn dataplane(&self, host: usize) -> &Culvert {
        self.culvert[host].as_ref().unwrap_or_else(|| panic!("host {host} does not run culvert"))
    }

    /// Gives TAP devices that the dataplane of `host` made to their tenants.
    fn hand_over_taps(&self, host: usize) {
        if self.spec.combo.attach != Attach::Tap {
            return;
        }
        let ns = &self.hosts[host].ns;
        for tenant in self.tenants.iter().filter(|t| t.spec.host == host) {
            let port = &tenant.port;
            let there = || ns.try_run(&format!("ip link show {port}")).is_ok();
            assert!(wait_until(Duration::from_secs(5), there), "no TAP device {port} appeared");
            ns.run(&format!("ip link set {port} down"));
            ns.run(&format!("ip link set {port} netns {} name {TENANT_DEVICE}", tenant.ns.name()));
            self.configure_tenant(tenant);
        }
    }

    fn configure_tenant(&self, tenant: &Tenant) {
        configure_tenant(tenant, &self.spec.combo);
    }

    /// Gives tenants beside a kernel host fixed neighbours, since Culvert answers for mappings but floods nothing.
    fn settle_tenants(&self) {
        let kernel =
            |host: usize| matches!(self.spec.peers[host], Peer::Kernel { .. } | Peer::KernelGeneve);
        for (at, tenant) in self.tenants.iter().enumerate() {
            if !kernel(tenant.spec.host) {
                continue;
            }
            for (other_at, other) in self.tenants.iter().enumerate() {
                if other_at != at && other.spec.vnet == tenant.spec.vnet {
                    for address in [IpAddr::from(other.v4), other.v6.into()] {
                        tenant.ns.run(&format!(
                            "ip neigh replace {address} lladdr {} dev {TENANT_DEVICE}",
                            other.mac
                        ));
                    }
                }
            }
        }
    }

    /// The configuration of a host that runs Culvert.
    pub fn host_toml(&self, host: usize) -> String {
        self.host_toml_without(host, usize::MAX)
    }

    /// The configuration of a host that runs Culvert, without its port for tenant `left_out`.
    pub fn host_toml_without(&self, host: usize, left_out: usize) -> String {
        let mut out = String::new();
        let mine = &self.hosts[host];
        let [port_mode, underlay_mode] = self.spec.mode;
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "[underlay]\ninterfaces = {:?}\naddresses = [\"{}\"]\nmode = \"{underlay_mode}\"\n{}\n",
            self.spec.shape.devices(),
            mine.vtep,
            self.spec.underlay_toml,
        );
        let format = self.format_line();
        for vnet in &self.spec.vnets {
            let _ = write!(
                out,
                "\n[[vnet]]\nid = \"{}\"\nvni = {}\nflood = {}\n{format}{}\n",
                vnet.name, vnet.vni, vnet.flood, self.spec.vnet_toml
            );
        }
        for (index, tenant) in self.tenants.iter().enumerate() {
            if index == left_out {
                continue;
            }
            let vnet = self.spec.vnets[tenant.spec.vnet].name;
            if tenant.spec.host == host {
                let kind = if self.spec.combo.attach == Attach::Tap { "tap" } else { "xdp" };
                let _ = write!(
                    out,
                    "\n[[port]]\nid = \"{0}\"\nvnet = \"{vnet}\"\nattach = {{ {kind} = \"{0}\" }}\n\
                     mac = \"{1}\"\nips = [\"{2}\", \"{3}\"]\nanti_spoof = {4}\nmtu = {5}\nmode = \"{port_mode}\"\n",
                    tenant.port,
                    tenant.mac,
                    tenant.v4,
                    tenant.v6,
                    tenant.spec.anti_spoof,
                    self.spec.combo.tenant_mtu,
                );
            } else {
                for ip in [IpAddr::from(tenant.v4), tenant.v6.into()] {
                    let _ = write!(
                        out,
                        "\n[[mapping]]\nvnet = \"{vnet}\"\nip = \"{ip}\"\nmac = \"{}\"\nvtep = \"{}\"\n",
                        tenant.mac,
                        self.hosts[1 - host].vtep
                    );
                }
            }
        }
        out.push('\n');
        out.push_str(&self.spec.extra_toml[host]);
        out
    }

    /// The line for vnets where the run is about another format than VXLAN, and the test about none.
    fn format_line(&self) -> String {
        let format = crate::format::of_run();
        let free = self.spec.peers.iter().all(|peer| *peer == Peer::Culvert);
        if format == "vxlan" || !free || self.spec.vnet_toml.contains("format") {
            return String::new();
        }
        format!("format = \"{format}\"\n")
    }

    /// Gives the wire room for this many bytes of outer headers.
    pub fn widen_wire(&self, room: u32) {
        let mtu = self.spec.combo.tenant_mtu + room;
        if let Some(middle) = &self.middle {
            for end in ["left", "right"] {
                middle.ns().run(&format!("ip link set {end} mtu {mtu}"));
            }
        }
        for host in &self.hosts {
            host.ns.run(&format!("ip link set {WIRE} mtu {mtu}"));
        }
    }

    /// Waits until tenants 0 and 1 can send each other packets of their full MTU: the dataplanes hear of another MTU of
    /// the wire in their own time, and a tenant that was told a smaller path remembers it.
    ///
    /// # Panics
    /// If they cannot within 10 seconds.
    #[track_caller]
    pub fn settle(&self) {
        self.wait_connected(0, 1);
        let combo = self.spec.combo;
        let full = combo.tenant_mtu - if combo.tenant == Family::V4 { 28 } else { 48 };
        for (from, to) in [(0, 1), (1, 0)] {
            let passes = wait_until(Duration::from_secs(10), || {
                for tenant in [from, to].map(|at| &self.tenants[at].ns) {
                    tenant.run("ip route flush cache");
                    tenant.run("ip -6 route flush cache");
                }
                tools::ping_df(&self.tenants[from].ns, self.address(to), 1, full).all_answered()
            });
            assert!(passes, "{combo}: packets of the tenants' MTU do not pass");
        }
    }

    /// Applies the configuration of a host as `edit` changes it.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn reconfigure(&self, host: usize, edit: impl FnOnce(String) -> String) {
        let dataplane = self.dataplane(host);
        dataplane.write_config(&edit(self.host_toml(host)));
        dataplane.apply(&self.hosts[host].ns);
    }

    /// All counters of a host that runs Culvert.
    ///
    /// # Panics
    /// If its dataplane does not answer.
    #[track_caller]
    pub fn stats(&self, host: usize) -> Stats {
        self.dataplane(host).stats(&self.hosts[host].ns)
    }

    /// The address with which tenants of this combination talk to tenant `index`.
    pub fn address(&self, index: usize) -> IpAddr {
        self.tenants[index].address(self.spec.combo.tenant)
    }

    /// Waits until tenant `from` reaches tenant `to`, both families.
    ///
    /// # Panics
    /// If it does not within ten seconds.
    #[track_caller]
    pub fn wait_connected(&self, from: usize, to: usize) {
        let [a, b] = [&self.tenants[from], &self.tenants[to]];
        for address in [IpAddr::from(b.v4), b.v6.into()] {
            let answered = wait_until(Duration::from_secs(10), || {
                tools::ping(&a.ns, address, 1, 56).all_answered()
            });
            assert!(answered, "{} of tenant {from} gets no answer from {address}", a.port);
        }
    }
}

impl Drop for Topology {
    /// A failing test shows what each dataplane dropped.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (host, culvert) in self.hosts.iter().zip(&mut self.culvert) {
            if let Some(culvert) = culvert
                && culvert.is_running()
            {
                let shown = culvert.cli(&host.ns, &["stats", "--drops"]);
                eprintln!(
                    "drops of {}:\n{}",
                    host.ns.name(),
                    shown.unwrap_or_else(|e| e.to_string())
                );
            }
        }
    }
}

fn build_tenant(spec: &TopologySpec, host: &Host, index: usize, tenant: TenantSpec) -> Tenant {
    let vnet = &spec.vnets[tenant.vnet];
    let made = Tenant {
        ns: Netns::new(&format!("t{index}")),
        spec: tenant,
        v4: Ipv4Addr::new(10, 77, vnet.subnet, tenant.number),
        v6: Ipv6Addr::new(0xfd77, u16::from(vnet.subnet), 0, 0, 0, 0, 0, u16::from(tenant.number)),
        mac: format!("02:77:{:02x}:{:02x}:00:{:02x}", vnet.subnet, tenant.host, tenant.number),
        port: format!("t{index}"),
    };
    // Only Culvert makes TAP devices; a kernel host always has veth.
    let tap = spec.combo.attach == Attach::Tap && spec.peers[tenant.host] == Peer::Culvert;
    if !tap {
        link::veth(&host.ns, &made.port, &made.ns, TENANT_DEVICE, spec.combo.tenant_mtu);
        host.ns.run(&format!("ip link set {} up", made.port));
        configure_tenant(&made, &spec.combo);
    }
    made
}

fn configure_tenant(tenant: &Tenant, combo: &Combo) {
    let ns = &tenant.ns;
    ns.run(&format!("ip link set {TENANT_DEVICE} address {} mtu {}", tenant.mac, combo.tenant_mtu));
    ns.run(&format!("ip link set {TENANT_DEVICE} up"));
    ns.run(&format!("ip addr add {}/24 dev {TENANT_DEVICE}", tenant.v4));
    ns.run(&format!("ip addr add {}/64 dev {TENANT_DEVICE} nodad", tenant.v6));
    if combo.offloads == Offloads::Off {
        link::set_offloads(ns, TENANT_DEVICE, Offloads::Off);
    }
}
