//! A host with an underlay device, a run directory and containers.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use culvert_tests::{Netns, Scratch};
use serde_json::{Value, json};

use crate::fake::Culvertd;

/// Where Debian has the plug-ins of others.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

pub(crate) struct Host {
    pub(crate) culvertd: Culvertd,
    pub(crate) ns: Netns,
    /// The socket of a dataplane, with nobody behind it.
    pub(crate) dataplane: Option<UnixListener>,
    pub(crate) scratch: Scratch,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) ok: bool,
    pub(crate) out: String,
}

impl Ran {
    /// What it answered.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        assert!(self.ok, "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    #[track_caller]
    pub(crate) fn succeeds(&self) {
        assert!(self.ok && self.out.is_empty(), "{self:#?}");
    }

    /// The code and message of its error.
    #[track_caller]
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.ok, "{self:#?}");
        let error: Value =
            serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
    }

    /// Whether it failed with this code, and says these words.
    #[track_caller]
    pub(crate) fn fails(&self, code: u64, words: &[&str]) {
        let (found, message) = self.error();
        assert_eq!(found, code, "{self:#?}");
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}

impl Host {
    pub(crate) fn new() -> Host {
        let scratch = Scratch::new();
        let ns = Netns::new("host");
        ns.run("ip link add wire mtu 1550 type veth peer name wire-far");
        ns.run("ip link set wire up");
        let dataplane = UnixListener::bind(scratch.file("dataplane.sock")).unwrap();
        let culvertd = Culvertd::start(scratch.path());
        Host { culvertd, ns, dataplane: Some(dataplane), scratch }
    }

    /// A configuration of the network `blue-net` with more fields.
    pub(crate) fn conf(&self, more: &Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "blue-net", "type": "culvert-cni", "vnet": "blue",
            "runDir": self.scratch.path(),
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        conf
    }

    /// A configuration whose addresses come from host-local, with its leases in our own folder.
    pub(crate) fn delegated(&self, more: &Value) -> Value {
        let mut conf = self.conf(more);
        conf["ipam"] = json!({
            "type": "host-local",
            "dataDir": self.scratch.file("leases"),
            "ranges": [
                [{ "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "gateway": "10.0.0.1" }],
                [{ "subnet": "fd00::/64", "rangeStart": "fd00::10", "gateway": "fd00::1" }]
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
        });
        conf
    }

    /// Addresses that host-local has given away.
    pub(crate) fn leases(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.scratch.file("leases/blue-net")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.contains(['.', ':'])).collect();
        names.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
        names.sort();
        names
    }

    /// Names of our devices at the host.
    pub(crate) fn devices(&self) -> Vec<String> {
        let shown = self.ns.run("ip -o link show type veth");
        let name = |line: &str| line.split([':', '@']).nth(1).unwrap_or_default().trim().to_owned();
        shown.lines().map(name).filter(|name| name.starts_with("cv")).collect()
    }

    pub(crate) fn ports(&self) -> Vec<String> {
        self.culvertd.script().ports.iter().map(|port| port.id.clone()).collect()
    }

    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.devices(), [""; 0]);
        assert_eq!(self.ports(), [""; 0]);
        assert_eq!(self.leases(), [""; 0]);
    }

    /// Calls the plug-in as a runtime does.
    pub(crate) fn call(&self, verb: &str, conf: &Value, variables: &[(&str, &str)]) -> Ran {
        let mut command = self.ns.command(env!("CARGO_BIN_EXE_culvert-cni"));
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", PLUGINS);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Ran { ok: output.status.success(), out: String::from_utf8(output.stdout).unwrap() }
    }

    /// The same, about an interface of a container.
    pub(crate) fn call_for(
        &self,
        verb: &str,
        conf: &Value,
        container: &Container,
        interface: &str,
    ) -> Ran {
        let variables = [
            ("CNI_CONTAINERID", container.id),
            ("CNI_IFNAME", interface),
            ("CNI_NETNS", &container.path),
        ];
        self.call(verb, conf, &variables)
    }
}

/// A container: an id and a namespace.
pub(crate) struct Container {
    pub(crate) id: &'static str,
    pub(crate) path: String,
    pub(crate) ns: Netns,
}

impl Container {
    pub(crate) fn new(id: &'static str) -> Container {
        let ns = Netns::new(id);
        Container { id, path: format!("/run/netns/{}", ns.name()), ns }
    }

    /// What `ip -json` shows of an interface.
    #[track_caller]
    pub(crate) fn shown(&self, interface: &str) -> Value {
        let shown = self.ns.run(&format!("ip -json -details addr show dev {interface}"));
        serde_json::from_str::<Value>(&shown).unwrap()[0].clone()
    }

    pub(crate) fn addresses(&self, interface: &str) -> Vec<String> {
        let shown = self.shown(interface);
        let addresses = shown["addr_info"].as_array().unwrap().iter();
        let text = |a: &Value| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]);
        addresses.map(text).filter(|text| !text.starts_with("fe80")).collect()
    }

    pub(crate) fn has(&self, interface: &str) -> bool {
        self.ns.try_run(&format!("ip link show dev {interface}")).is_ok()
    }
}
