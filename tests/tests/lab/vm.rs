//! A virtual machine whose card ends in a TAP that QEMU opens and the dataplane takes by XDP, as
//! docs/virtual-machines.md has it.

use std::time::Duration;

use culvert_tests::lab::{Guest, Kernel, LabError};
use culvert_tests::skip::skip;
use culvert_tests::{Combo, TopologySpec};

const MAC: &str = "02:77:01:00:00:63";
const ADDRESS: &str = "10.77.1.99";
/// Bytes each way.
const BYTES: usize = 4 << 20;

/// Answers a client with its own bytes.
const ECHO: &str = "
import socket
s = socket.create_server(('10.77.1.2', 7))
print('ready', flush=True)
c, _ = s.accept()
while data := c.recv(65536): c.sendall(data)
";

#[test]
fn a_machine_on_a_tap_talks_to_a_tenant_of_another_host() {
    let topology = TopologySpec::pair(Combo::SIMPLE).build();
    let [a, b] = [0, 1].map(|host| &topology.hosts[host]);
    a.ns.run("ip tuntap add vm1 mode tap vnet_hdr");
    a.ns.run("ip link set vm1 mtu 1450 up");
    topology.reconfigure(0, |toml| {
        format!(
            "{toml}\n[[port]]\nid = \"vm1\"\nvnet = \"blue\"\nattach = {{ xdp = \"vm1\" }}\n\
             mac = \"{MAC}\"\nips = [\"{ADDRESS}\"]\n"
        )
    });
    topology.reconfigure(1, |toml| {
        format!(
            "{toml}\n[[mapping]]\nvnet = \"blue\"\nip = \"{ADDRESS}\"\nmac = \"{MAC}\"\nvtep = \"{}\"\n",
            a.vtep
        )
    });
    assert_ne!(a.ns.name(), b.ns.name());
    let far = &topology.tenants[1];
    let server = topology.scratch.file("echo.py");
    std::fs::write(&server, ECHO).unwrap();
    let mut echo = far.ns.spawn(&topology.scratch, &format!("python3 {}", server.display()));
    echo.wait_for_log("ready", Duration::from_secs(10));

    let guest = Guest::new(Kernel::Longterm)
        .netns(&a.ns)
        .modules(&["virtio_net"])
        .limit(Duration::from_secs(120))
        .devices(&format!(
            "-netdev tap,id=net0,ifname=vm1,script=no,downscript=no \
             -device virtio-net-pci,netdev=net0,mac={MAC},host_mtu=1450"
        ));
    let script = format!(
        "
set -e
card=$(basename $(dirname $(grep -l {MAC} /sys/class/net/*/address)))
cat /sys/class/net/$card/mtu
ip addr add {ADDRESS}/24 dev $card
ip link set $card up
ping -c 3 -i 0.2 -W 5 10.77.1.2
python3 - <<'END'
import hashlib, os, socket, threading
sent = os.urandom({BYTES})
s = socket.create_connection(('10.77.1.2', 7), 20)
def send():
    s.sendall(sent)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b''
while data := s.recv(65536): got += data
assert got == sent, (len(got), len(sent))
print('echoed', len(got))
END
"
    );
    match guest.run(&script) {
        Ok(outcome) => {
            let stats = topology.stats(0);
            let value = stats.value();
            assert_eq!(outcome.code, 0, "{}\n{value:#}", outcome.output);
            assert!(outcome.output.starts_with("1450\n"), "{}", outcome.output);
            assert!(outcome.output.contains(&format!("echoed {BYTES}")), "{}", outcome.output);
        }
        Err(e @ LabError::NotPrepared(_)) => skip("lab", &e.to_string()),
        Err(e) => panic!("{e}"),
    }
}
