//! The kernel's VXLAN device with a bridge per vnet, as peer and as yardstick; and its Geneve device as peer.

use std::net::IpAddr;

use crate::combo::UNDERLAY_VLAN;
use crate::topology::{Topology, WIRE};

/// Connects the tenants of `host` by kernel VXLAN: a VXLAN device and a bridge per vnet, remote addresses fixed.
///
/// # Panics
/// If this kernel has no VXLAN or bridge.
pub fn attach(topology: &Topology, host: usize, udp_csum: bool) {
    let [mine, other] = [&topology.hosts[host], &topology.hosts[1 - host]];
    let ns = &mine.ns;
    let device = if topology.spec.combo.underlay_vlan {
        format!("{WIRE}.{UNDERLAY_VLAN}")
    } else {
        WIRE.to_owned()
    };
    let csum = match (mine.vtep, udp_csum) {
        (IpAddr::V4(_), true) => "udpcsum",
        (IpAddr::V4(_), false) => "noudpcsum",
        (IpAddr::V6(_), _) => "noudp6zerocsumtx noudp6zerocsumrx",
    };
    for (at, vnet) in topology.spec.vnets.iter().enumerate() {
        ns.run(&format!(
            "ip link add vx{at} type vxlan id {} dstport 4789 local {} remote {} dev {device} nolearning {csum}",
            vnet.vni, mine.vtep, other.vtep
        ));
        ns.run(&format!("ip link add br{at} type bridge mcast_snooping 0"));
        ns.run(&format!("ip link set vx{at} master br{at} mtu {}", topology.spec.combo.tenant_mtu));
        ns.run(&format!("ip link set vx{at} up"));
        ns.run(&format!("ip link set br{at} up"));
    }
    for tenant in &topology.tenants {
        let at = tenant.spec.vnet;
        if tenant.spec.host == host {
            ns.run(&format!("ip link set {} master br{at}", tenant.port));
        } else {
            ns.run(&format!("bridge fdb replace {} dev vx{at} dst {}", tenant.mac, other.vtep));
            ns.run(&format!("bridge fdb replace {} dev vx{at} master static", tenant.mac));
        }
    }
}

/// Connects the tenants of `host` by the kernel's Geneve device and a bridge.
///
/// # Panics
/// If this kernel has no Geneve or bridge.
pub fn attach_geneve(topology: &Topology, host: usize) {
    let [mine, other] = [&topology.hosts[host], &topology.hosts[1 - host]];
    let ns = &mine.ns;
    let csum = if mine.vtep.is_ipv4() { "udpcsum" } else { "udp6zerocsumrx" };
    let vnet = &topology.spec.vnets[0];
    ns.run(&format!(
        "ip link add gn0 type geneve id {} remote {} dstport 6081 {csum}",
        vnet.vni, other.vtep
    ));
    ns.run("ip link add br0 type bridge mcast_snooping 0");
    ns.run(&format!("ip link set gn0 master br0 mtu {}", topology.spec.combo.tenant_mtu));
    ns.run("ip link set gn0 up");
    ns.run("ip link set br0 up");
    for tenant in &topology.tenants {
        if tenant.spec.host == host {
            ns.run(&format!("ip link set {} master br0", tenant.port));
        } else {
            ns.run(&format!("bridge fdb replace {} dev gn0 master static", tenant.mac));
        }
    }
}
