//! Open vSwitch on one host of a topology: userspace datapath, `AF_XDP` ports in native mode, VXLAN.
//!
//! Each host has a database and a switch of its own. The settings are those of Open vSwitch's own guide to `AF_XDP`: one
//! receive queue per port, a polling thread pinned to a core, checksum offload off at the veth peers.

use std::path::PathBuf;
use std::time::Duration;

use culvert_tests::process::run_command;
use culvert_tests::topology::WIRE;
use culvert_tests::{Process, Topology, wait_until};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A running switch. Dropped, both programs end.
pub(crate) struct Ovs {
    switch: Process,
    _database: Process,
}

impl Ovs {
    /// Starts and configures the switch of `host`; its underlay address moves to the switch.
    ///
    /// # Panics
    /// If Open vSwitch is not installed or refuses something.
    pub(crate) fn start(topology: &Topology, host: usize) -> Self {
        let ns = &topology.hosts[host].ns;
        let folder = topology.scratch.file(&format!("ovs{host}"));
        std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let in_folder = |name: &str| folder.join(name).display().to_string();
        let socket = format!("unix:{}", in_folder("db.sock"));
        let program = |name: &str| {
            let mut command = ns.command(name);
            for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
                command.env(variable, &folder);
            }
            command
        };
        let run = |name: &str, args: &[&str]| {
            if let Err(e) = run_command(program(name).args(args)) {
                panic!("Open vSwitch: {e}");
            }
        };
        run("ovsdb-tool", &["create", &in_folder("conf.db"), SCHEMA]);
        let mut database = program("ovsdb-server");
        database.arg(in_folder("conf.db")).arg(format!("--remote=p{socket}"));
        let database = Process::spawn(&topology.scratch, "ovsdb-server", database);
        let db = PathBuf::from(in_folder("db.sock"));
        assert!(wait_until(Duration::from_secs(5), || db.exists()), "{}", database.log());
        let db_option = format!("--db={socket}");
        let vsctl = |words: &str| {
            let mut args = vec![db_option.as_str(), "-t", "15"];
            args.extend(words.split_whitespace());
            run("ovs-vsctl", &args);
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        vsctl("--no-wait init");
        vsctl(&format!(
            "--no-wait set Open_vSwitch . other_config:pmd-cpu-mask={:#x}",
            1u64 << (host % cpus)
        ));
        let mut switch = program("ovs-vswitchd");
        switch.args([&socket, "--pidfile"]);
        let switch = Process::spawn(&topology.scratch, "ovs-vswitchd", switch);

        let (vtep, other) = (topology.hosts[host].vtep, topology.hosts[1 - host].vtep);
        let port = &topology.tenants[host].port;
        let afxdp = "type=afxdp options:xdp-mode=native options:n_rxq=1";
        let vni = topology.spec.vnets[0].vni;
        ns.run(&format!("ip addr flush dev {WIRE}"));
        vsctl("add-br br-phy -- set bridge br-phy datapath_type=netdev");
        vsctl(&format!("add-port br-phy {WIRE} -- set interface {WIRE} {afxdp}"));
        ns.run(&format!("ip addr add {vtep}/24 dev br-phy"));
        ns.run(&format!("ip link set br-phy mtu {} up", topology.spec.combo.underlay_mtu()));
        vsctl("add-br br-int -- set bridge br-int datapath_type=netdev");
        vsctl(&format!("add-port br-int {port} -- set interface {port} {afxdp}"));
        vsctl(&format!(
            "add-port br-int vx0 -- set interface vx0 type=vxlan options:key={vni} options:remote_ip={other}"
        ));
        Self { switch, _database: database }
    }

    /// Whether the switch still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.switch.status().is_none()
    }
}
