//! Devices between namespaces, by `ip` and `ethtool`.

use crate::combo::Offloads;
use crate::netns::Netns;

/// Largest MTU that a veth takes.
pub const MAX_MTU: u32 = 65_535;

/// Joins two namespaces by a veth pair of one queue each; both ends are down, with the MTU set.
pub fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str, mtu: u32) {
    a.run(&format!(
        "ip link add {a_name} mtu {mtu} numtxqueues 1 numrxqueues 1 type veth \
         peer name {b_name} mtu {mtu} numtxqueues 1 numrxqueues 1 netns {}",
        b.name()
    ));
}

/// Turns the transmit offloads of a device off one by one, as far as its driver has them; `On` leaves them.
///
/// # Panics
/// If checksums or TCP segmentation stay on.
pub fn set_offloads(ns: &Netns, device: &str, offloads: Offloads) {
    if offloads == Offloads::On {
        return;
    }
    for feature in [
        "tx-udp-segmentation",
        "tx-udp_tnl-segmentation",
        "tx-udp_tnl-csum-segmentation",
        "tso",
        "gso",
        "gro",
        "tx",
        "txvlan",
        "rxvlan",
    ] {
        // A feature that this driver lacks cannot be changed, and is off.
        let _ = ns.try_run(&format!("ethtool -K {device} {feature} off"));
    }
    let state = ns.run(&format!("ethtool -k {device}"));
    for name in ["tx-checksumming: on", "tcp-segmentation-offload: on"] {
        assert!(!state.contains(name), "{device} in {} still has {name}", ns.name());
    }
}

/// Whether this kernel has VLAN devices (802.1Q).
pub fn has_vlan_devices() -> bool {
    let ns = Netns::new("probe");
    ns.run("ip link add left type veth peer name right");
    ns.try_run("ip link add link left name tagged type vlan id 2").is_ok()
}
