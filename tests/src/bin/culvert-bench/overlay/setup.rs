//! The peers and their best documented settings.

use std::time::Duration;

use clap::ValueEnum;
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
    /// Culvert as it comes; superframes cross the wire uncut where it sends them so.
    Culvert,
    /// Culvert, native XDP at tenants and underlay.
    CulvertNative,
    /// Culvert as it comes; the wire has no offloads, so frames are of wire size.
    CulvertCut,
}

impl Setup {
    pub(crate) const ALL: [Self; 8] = [
        Self::KernelUncut,
        Self::KernelCut,
        Self::Ovs,
        Self::RawGeneric,
        Self::RawNative,
        Self::Culvert,
        Self::CulvertNative,
        Self::CulvertCut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KernelUncut => "kernel-uncut",
            Self::KernelCut => "kernel-cut",
            Self::Ovs => "ovs",
            Self::RawGeneric => "raw-generic",
            Self::RawNative => "raw-native",
            Self::Culvert => "culvert",
            Self::CulvertNative => "culvert-native",
            Self::CulvertCut => "culvert-cut",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::KernelUncut => "Kernel VXLAN + bridge, superframes uncut on the wire",
            Self::KernelCut => "Kernel VXLAN + bridge, wire-sized frames",
            Self::Ovs => "Open vSwitch VXLAN on AF_XDP (native)",
            Self::RawGeneric => "Raw AF_XDP, generic, no encapsulation",
            Self::RawNative => "Raw AF_XDP, native, no encapsulation",
            Self::Culvert => "Culvert, automatic modes",
            Self::CulvertNative => "Culvert, native",
            Self::CulvertCut => "Culvert, wire-sized frames",
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
                let forwarders = [0, 1].map(|host| forwarder(&topology, host, mode));
                Running { forwarders: forwarders.into(), ..Running::alone(topology) }
            }
            Self::Culvert => Running::alone(TopologySpec::pair(Combo::SIMPLE).build()),
            Self::CulvertNative => {
                let mut spec = TopologySpec::pair(Combo::SIMPLE);
                spec.mode = ["native", "native"];
                Running::alone(spec.build())
            }
            Self::CulvertCut => Running::alone(TopologySpec::pair(cut).build()),
        };
        for forwarder in &mut running.forwarders {
            forwarder.wait_for_log("forwarding between", Duration::from_secs(10));
        }
        running.topology.wait_connected(0, 1);
        running
    }
}

fn forwarder(topology: &Topology, host: usize, mode: &str) -> Process {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let own = std::env::current_exe().unwrap_or_else(|e| panic!("own program: {e}"));
    let mut command = topology.hosts[host].ns.command(own);
    command.args(["raw", &topology.tenants[host].port, "wire", "--mode", mode]);
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
