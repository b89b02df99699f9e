//! Devices between namespaces, by `ip` and `ethtool`.

use std::process::Command;

use crate::combo::Offloads;
use crate::netns::Netns;
use crate::process::run_command;

/// Largest MTU that a veth takes.
pub const MAX_MTU: u32 = 65_535;

/// Joins two namespaces by a veth pair of one queue each; both ends are down, with the MTU set.
pub fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str, mtu: u32) {
    veth_of(a, a_name, b, b_name, mtu, 1);
}

/// As [`veth`], with several queues at each end.
pub fn veth_of(a: &Netns, a_name: &str, b: &Netns, b_name: &str, mtu: u32, queues: u32) {
    let queues = format!("numtxqueues {queues} numrxqueues {queues}");
    a.run(&format!(
        "ip link add {a_name} mtu {mtu} {queues} type veth peer name {b_name} mtu {mtu} {queues} netns {}",
        b.name()
    ));
}

/// Moves a network card of this machine into a namespace as `name`; it is down, with the MTU set. A card comes back under
/// the name that it has there when its namespace is gone.
///
/// # Panics
/// If there is no such card, or it refuses the MTU.
pub fn take_card(ns: &Netns, card: &str, name: &str, mtu: u32) {
    let mut command = Command::new("ip");
    command.args(["link", "set", card, "down", "netns", ns.name()]);
    if let Err(e) = run_command(&mut command) {
        panic!("{e}");
    }
    ns.run(&format!("ip link set {card} name {name} mtu {mtu}"));
}

/// Turns one feature of a network card of this machine off, by the name that `ethtool -k` gives it.
///
/// # Panics
/// If the card or the feature does not exist, or is fixed.
pub fn turn_off(card: &str, feature: &str) {
    let mut command = Command::new("ethtool");
    command.args(["-K", card, feature, "off"]);
    if let Err(e) = run_command(&mut command) {
        panic!("{e}");
    }
}

/// Packets that `device` has received, as its driver counts them: before any XDP program.
///
/// # Panics
/// If there is no such device.
#[track_caller]
pub fn received(ns: &Netns, device: &str) -> u64 {
    let text = ns.run(&format!("ip -j -s link show {device}"));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match value[0]["stats64"]["rx"]["packets"].as_u64() {
        Some(packets) => packets,
        None => panic!("`ip -j -s link` says no packets of {device}: {text}"),
    }
}

/// Turns features of a device on or off by ethtool's names.
///
/// # Panics
/// If the device has no such feature, or it does not change.
#[track_caller]
pub fn set_features(ns: &Netns, device: &str, features: &[&str], on: bool) {
    let value = if on { "on" } else { "off" };
    for feature in features {
        ns.run(&format!("ethtool -K {device} {feature} {value}"));
    }
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
