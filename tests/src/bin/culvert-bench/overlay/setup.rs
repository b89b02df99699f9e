//! The peers and their best documented settings.

use std::time::Duration;

use clap::ValueEnum;
use culvert_tests::topology::WIRE;
use culvert_tests::{Combo, Offloads, Peer, Process, Topology, TopologySpec};

use super::ovs::Ovs;

/// A peer of the comparison. Its name is that of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setup {
    /// Kernel VXLAN and bridge; superframes cross the wire uncut.
    KernelUncut,
    /// Kernel VXLAN and bridge; frames of wire size.
    KernelCut,
    /// Open vSwitch, userspace datapath, VXLAN, `AF_XDP` ports.
    Ovs,
    /// Raw `AF_XDP` forwarding in generic mode, no encapsulation.
    RawGeneric,
    /// Raw `AF_XDP` forwarding in native mode, no encapsulation.
    RawNative,
    /// Raw forwarding of superframes, no encapsulation: generic `AF_XDP` in, packet socket out.
    RawSuperframes,
    /// Culvert as it comes; superframes cross the wire uncut where it sends them so.
    Culvert,
    /// Culvert, native XDP at tenants and underlay.
    CulvertNative,
    /// Culvert as it comes; the wire has no offloads, so the kernel cuts to wire size what the packet socket gets.
    CulvertCut,
    /// The same, cut by Culvert itself into `AF_XDP` frames.
    CulvertCutXdp,
    /// As `culvert`, in Geneve.
    GeneveUncut,
    /// As `culvert-cut`, in Geneve.
    GeneveCut,
    /// As `culvert-cut-xdp`, in Geneve.
    GeneveCutXdp,
    /// As `culvert`, in STT.
    SttUncut,
    /// As `culvert-cut`, in STT.
    SttCut,
    /// As `culvert-cut-xdp`, in STT.
    SttCutXdp,
    /// As `culvert`, in shards.
    ShardUncut,
    /// As `culvert-cut`, in shards.
    ShardCut,
    /// As `culvert-cut-xdp`, in shards.
    ShardCutXdp,
    /// As `culvert`, received by packet sockets, behind what the device and the kernel merge.
    CulvertPacketRx,
    /// As `stt-uncut`, received by packet sockets.
    SttPacketRx,
    /// As `culvert-cut`, received by packet sockets.
    CulvertCutPacketRx,
    /// As `stt-cut`, received by packet sockets.
    SttCutPacketRx,
}

/// Who cuts superframes to wire size.
#[derive(Clone, Copy)]
enum Cutter {
    Nobody,
    Kernel,
    Culvert,
}

impl Setup {
    pub(crate) const ALL: [Self; 23] = [
        Self::KernelUncut,
        Self::KernelCut,
        Self::Ovs,
        Self::RawGeneric,
        Self::RawNative,
        Self::RawSuperframes,
        Self::Culvert,
        Self::CulvertNative,
        Self::CulvertCut,
        Self::CulvertCutXdp,
        Self::GeneveUncut,
        Self::GeneveCut,
        Self::GeneveCutXdp,
        Self::SttUncut,
        Self::SttCut,
        Self::SttCutXdp,
        Self::ShardUncut,
        Self::ShardCut,
        Self::ShardCutXdp,
        Self::CulvertPacketRx,
        Self::SttPacketRx,
        Self::CulvertCutPacketRx,
        Self::SttCutPacketRx,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KernelUncut => "kernel-uncut",
            Self::KernelCut => "kernel-cut",
            Self::Ovs => "ovs",
            Self::RawGeneric => "raw-generic",
            Self::RawNative => "raw-native",
            Self::RawSuperframes => "raw-superframes",
            Self::Culvert => "culvert",
            Self::CulvertNative => "culvert-native",
            Self::CulvertCut => "culvert-cut",
            Self::CulvertCutXdp => "culvert-cut-xdp",
            Self::GeneveUncut => "geneve-uncut",
            Self::GeneveCut => "geneve-cut",
            Self::GeneveCutXdp => "geneve-cut-xdp",
            Self::SttUncut => "stt-uncut",
            Self::SttCut => "stt-cut",
            Self::SttCutXdp => "stt-cut-xdp",
            Self::ShardUncut => "shard-uncut",
            Self::ShardCut => "shard-cut",
            Self::ShardCutXdp => "shard-cut-xdp",
            Self::CulvertPacketRx => "culvert-packet-rx",
            Self::SttPacketRx => "stt-packet-rx",
            Self::CulvertCutPacketRx => "culvert-cut-packet-rx",
            Self::SttCutPacketRx => "stt-cut-packet-rx",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KernelUncut => "Kernel VXLAN + bridge, superframes uncut on the wire",
            Self::KernelCut => "Kernel VXLAN + bridge, wire-sized frames",
            Self::Ovs => "Open vSwitch VXLAN on AF_XDP (native)",
            Self::RawGeneric => "Raw AF_XDP, generic, no encapsulation",
            Self::RawNative => "Raw AF_XDP, native, no encapsulation",
            Self::RawSuperframes => {
                "Raw superframes, generic AF_XDP in, packet socket out, no encapsulation"
            }
            Self::Culvert => "Culvert `vxlan`, automatic modes, *uncut (veth)*",
            Self::CulvertNative => "Culvert `vxlan`, native",
            Self::CulvertCut => "Culvert `vxlan`, *wire-sized by software GSO*",
            Self::CulvertCutXdp => "Culvert `vxlan`, *wire-sized by AF_XDP*",
            Self::GeneveUncut => "Culvert `geneve`, *uncut (veth)*",
            Self::GeneveCut => "Culvert `geneve`, *wire-sized by software GSO*",
            Self::GeneveCutXdp => "Culvert `geneve`, *wire-sized by AF_XDP*",
            Self::SttUncut => "Culvert `stt`, *uncut (veth)*",
            Self::SttCut => "Culvert `stt`, *wire-sized by software GSO*",
            Self::SttCutXdp => "Culvert `stt`, *wire-sized by AF_XDP*",
            Self::ShardUncut => "Culvert `shard`, *uncut (veth)*",
            Self::ShardCut => "Culvert `shard`, *wire-sized by software GSO*",
            Self::ShardCutXdp => "Culvert `shard`, *wire-sized by AF_XDP*",
            Self::CulvertPacketRx => "Culvert `vxlan`, *uncut (veth)*, received by packet socket",
            Self::SttPacketRx => "Culvert `stt`, *uncut (veth)*, received by packet socket",
            Self::CulvertCutPacketRx => {
                "Culvert `vxlan`, *wire-sized by software GSO*, received by packet socket"
            }
            Self::SttCutPacketRx => {
                "Culvert `stt`, *wire-sized by software GSO*, received by packet socket"
            }
        }
    }

    /// Builds it; tenants reach each other when this returns.
    ///
    /// # Panics
    /// If any part is missing.
    pub(crate) fn build(self) -> Running {
        let cut = Combo { wire: Offloads::Off, ..Combo::SIMPLE };
        let kernel = Peer::Kernel { udp_csum: false };
        let bare = |combo| TopologySpec::pair(combo).with_peers(Peer::Bare, Peer::Bare).build();
        let mut running = match self {
            Self::KernelUncut => {
                Running::alone(TopologySpec::pair(Combo::SIMPLE).with_peers(kernel, kernel).build())
            }
            Self::KernelCut => {
                Running::alone(TopologySpec::pair(cut).with_peers(kernel, kernel).build())
            }
            // Open vSwitch and the raw forwarder pass frames as they are: they must be complete and of wire size.
            Self::Ovs => {
                let topology = bare(Combo { offloads: Offloads::Off, ..cut });
                let ovs = [0, 1].map(|host| Ovs::start(&topology, host));
                Running { ovs: ovs.into(), ..Running::alone(topology) }
            }
            Self::RawGeneric | Self::RawNative => {
                let topology = bare(Combo { offloads: Offloads::Off, ..Combo::SIMPLE });
                let mode = if self == Self::RawNative { "native" } else { "generic" };
                let forwarders = [0, 1].map(|host| forwarder(&topology, host, &["--mode", mode]));
                Running { forwarders: forwarders.into(), ..Running::alone(topology) }
            }
            Self::RawSuperframes => {
                let topology = bare(Combo::SIMPLE);
                let words = ["--mode", "generic", "--superframes"];
                let forwarders = [0, 1].map(|host| forwarder(&topology, host, &words));
                Running { forwarders: forwarders.into(), ..Running::alone(topology) }
            }
            Self::Culvert => Running::alone(TopologySpec::pair(Combo::SIMPLE).build()),
            Self::CulvertNative => {
                let mut spec = TopologySpec::pair(Combo::SIMPLE);
                spec.mode = ["native", "native"];
                Running::alone(spec.build())
            }
            Self::CulvertCut => in_format("", Cutter::Kernel),
            Self::CulvertPacketRx => by_packet_rx("", Cutter::Nobody),
            Self::SttPacketRx => by_packet_rx(STT, Cutter::Nobody),
            Self::CulvertCutPacketRx => by_packet_rx("", Cutter::Kernel),
            Self::SttCutPacketRx => by_packet_rx(STT, Cutter::Kernel),
            Self::CulvertCutXdp => in_format("", Cutter::Culvert),
            Self::GeneveUncut => in_format(GENEVE, Cutter::Nobody),
            Self::GeneveCut => in_format(GENEVE, Cutter::Kernel),
            Self::GeneveCutXdp => in_format(GENEVE, Cutter::Culvert),
            Self::SttUncut => in_format(STT, Cutter::Nobody),
            Self::SttCut => in_format(STT, Cutter::Kernel),
            Self::SttCutXdp => in_format(STT, Cutter::Culvert),
            Self::ShardUncut => in_format(SHARD, Cutter::Nobody),
            Self::ShardCut => in_format(SHARD, Cutter::Kernel),
            Self::ShardCutXdp => in_format(SHARD, Cutter::Culvert),
        };
        for forwarder in &mut running.forwarders {
            forwarder.wait_for_log("forwarding between", Duration::from_secs(10));
        }
        running.topology.wait_connected(0, 1);
        running
    }
}

const GENEVE: &str = "format = \"geneve\"";
const STT: &str = "format = \"stt\"";
const SHARD: &str = "format = \"shard\"";

/// Culvert on both hosts, by the lines of its vnet.
fn in_format(vnet_toml: &'static str, cutter: Cutter) -> Running {
    let xdp = matches!(cutter, Cutter::Culvert);
    culvert(vnet_toml, cutter, if xdp { "tx = \"xdp\"" } else { "" })
}

/// The same, with the wire behind packet sockets.
fn by_packet_rx(vnet_toml: &'static str, cutter: Cutter) -> Running {
    culvert(vnet_toml, cutter, "rx = \"packet\"")
}

fn culvert(vnet_toml: &'static str, cutter: Cutter, underlay_toml: &'static str) -> Running {
    let wire = if matches!(cutter, Cutter::Nobody) { Offloads::On } else { Offloads::Off };
    let mut spec = TopologySpec::pair(Combo { wire, ..Combo::SIMPLE });
    spec.vnet_toml = vnet_toml;
    spec.underlay_toml = underlay_toml;
    let topology = spec.build();
    if vnet_toml == STT || vnet_toml == SHARD {
        // Their headers are longer in front of a packet of its own; both get as much, to be compared.
        for host in &topology.hosts {
            host.ns.run(&format!("ip link set {WIRE} mtu 1572"));
        }
    }
    Running::alone(topology)
}

fn forwarder(topology: &Topology, host: usize, words: &[&str]) -> Process {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let own = std::env::current_exe().unwrap_or_else(|e| panic!("own program: {e}"));
    let mut command = topology.hosts[host].ns.command(own);
    command.args(["raw", &topology.tenants[host].port, "wire"]).args(words);
    command.args(["--cpu", &(host % cpus).to_string()]);
    Process::spawn(&topology.scratch, "raw", command)
}

/// A peer, ready to be measured. Fields drop in order: processes end before their namespaces go.
pub(crate) struct Running {
    forwarders: Vec<Process>,
    ovs: Vec<Ovs>,
    pub(crate) topology: Topology,
}

impl Running {
    fn alone(topology: Topology) -> Self {
        Self { forwarders: Vec::new(), ovs: Vec::new(), topology }
    }

    /// Whether all that carries packets besides the topology still runs.
    pub(crate) fn is_whole(&mut self) -> bool {
        self.forwarders.iter_mut().all(|p| p.status().is_none())
            && self.ovs.iter_mut().all(Ovs::is_running)
    }
}
