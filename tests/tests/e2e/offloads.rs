//! What tenants leave to their device: segmentation, checksums, VLAN tags; and what receivers let the kernel merge.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use culvert_tests::tools::{
    Datagrams, OffloadSocket, Random, VirtioHeader, tcp_transfer, udp_exchange,
};
use culvert_tests::topology::{TENANT_DEVICE, Tenant, WIRE};
use culvert_tests::{
    Attach, Combo, Family, Offloads, Peer, Topology, TopologySpec, craft, link, sys, view,
};

/// TCP both ways and UDP, by one and by superframe, from tenant 0 to tenant 1 in both families.
#[track_caller]
fn talk(topology: &Topology, what: &str) {
    let combo = topology.spec.combo;
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    for dst in [IpAddr::from(b.v4), b.v6.into()] {
        tcp_transfer(&a.ns, &b.ns, dst, 2 << 20).unwrap_or_else(|e| panic!("{combo}, {what}: {e}"));
        for (from, to, dst) in [(a, b, dst), (b, a, a.address(family_of(dst)))] {
            for datagrams in [Datagrams::plain(1400, 4), Datagrams::gso(1000, 40, 20)] {
                let report = udp_exchange(&from.ns, &to.ns, dst, datagrams).unwrap();
                assert!(report.is_perfect(), "{combo}, {what}, {datagrams:?}: {report:?}");
            }
        }
    }
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn each_feature_alone(attach: Attach) {
    for wire in [Offloads::On, Offloads::Off] {
        let topology = TopologySpec::pair(Combo { attach, wire, ..Combo::SIMPLE }).build();
        topology.wait_connected(0, 1);
        for feature in ["tso", "tx-udp-segmentation", "gso", "tx", "sg", "gro"] {
            // On one side only, so that unlike ends meet, too.
            let ns = &topology.tenants[0].ns;
            link::set_features(ns, TENANT_DEVICE, &[feature], false);
            talk(&topology, &format!("{feature} off"));
            // What depends on it went off with it.
            let all = [feature, "sg", "tso", "gso", "tx-udp-segmentation"];
            link::set_features(ns, TENANT_DEVICE, &all, true);
        }
    }
}

#[test]
fn each_offload_of_a_veth_tenant_can_be_off_alone() {
    each_feature_alone(Attach::Veth);
}

#[test]
fn each_offload_of_a_tap_tenant_can_be_off_alone() {
    each_feature_alone(Attach::Tap);
}

/// Lets `tenant` send everything with this VLAN tag, and take tags off what it receives. The tag stays beside the
/// frame where the device takes tags so.
fn put_on_vlan(topology: &mut Topology, tenant: usize, tci: u16) {
    let folder = topology.scratch.bpffs();
    let ns = &topology.tenants[tenant].ns;
    ns.run(&format!("tc qdisc add dev {TENANT_DEVICE} clsact"));
    for (direction, push) in [("egress", Some(tci)), ("ingress", None)] {
        let path = folder.join(format!("vlan-{tenant}-{direction}"));
        sys::pin_vlan_program(&path, push).unwrap();
        ns.run(&format!(
            "tc filter add dev {TENANT_DEVICE} {direction} bpf da object-pinned {}",
            path.display()
        ));
    }
}

#[test]
fn tagged_tenants_talk_with_and_without_vlan_offload() {
    for (attach, offload) in [(Attach::Veth, true), (Attach::Veth, false), (Attach::Tap, true)] {
        let mut topology = TopologySpec::pair(Combo { attach, ..Combo::SIMPLE }).build();
        for tenant in 0..2 {
            put_on_vlan(&mut topology, tenant, 42);
            let ns = &topology.tenants[tenant].ns;
            link::set_features(ns, TENANT_DEVICE, &["tx-vlan-offload"], offload);
        }
        topology.wait_connected(0, 1);
        topology.wait_connected(1, 0);
        talk(&topology, &format!("tagged, offload {offload}"));
    }
}

/// The `EtherType` and what follows of the first inner frame on the wire that holds an echo request of tenant 0.
fn inner_of_a_ping(topology: &Topology) -> Vec<u8> {
    let wire = OffloadSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let payload = [0x5a; 32];
    let line = format!("ping -n -c 3 -i 0.2 -W 1 -s 64 -p 5a {}", topology.tenants[1].v4);
    // Nobody answers: the far host is played by the test.
    let _ = topology.tenants[0].ns.try_run(&line);
    let is_echo = |frame: &[u8]| {
        view::tunnelled(frame).is_some_and(|seen| seen.inner.windows(32).any(|w| w == payload))
    };
    let got = wire.receive_matching(Duration::from_secs(1), is_echo).unwrap().expect("no ping");
    assert_eq!(got.vlan, None, "the outer frame is tagged");
    view::tunnelled(&got.frame).unwrap().inner[12..].to_vec()
}

#[test]
fn a_tenants_tag_is_in_the_inner_frame_and_in_none_that_had_none() {
    for offload in [true, false] {
        let spec = TopologySpec::pair(Combo::SIMPLE).with_peers(Peer::Culvert, Peer::Bare);
        let mut topology = spec.build();
        assert_eq!(inner_of_a_ping(&topology)[..3], [8, 0, 0x45]);
        // Priority 5, VLAN 42.
        put_on_vlan(&mut topology, 0, 5 << 13 | 42);
        let ns = &topology.tenants[0].ns;
        link::set_features(ns, TENANT_DEVICE, &["tx-vlan-offload"], offload);
        let inner = inner_of_a_ping(&topology);
        assert_eq!(inner[..7], [0x81, 0, 0xa0, 42, 8, 0, 0x45], "offload {offload}");
    }
}

#[test]
fn a_tagged_packet_above_the_path_mtu_is_told_so_on_its_vlan() {
    let combo = Combo::SIMPLE;
    let topology = TopologySpec::pair(combo).build();
    topology.wait_connected(0, 1);
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let tenant = OffloadSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    for ipv6 in [false, true] {
        // Of full size, which leaves no room for the tag on this underlay.
        let headers = if ipv6 { 48 } else { 28 };
        let payload = Random::bytes(4, usize::try_from(combo.tenant_mtu - headers).unwrap());
        let mut frame = craft::between(near, far, ipv6, 9, &payload);
        if !ipv6 {
            craft::set_df(&mut frame, true);
        }
        frame.splice(12..12, [0x81, 0, 0, 42]);
        tenant.send(VirtioHeader::default(), &frame).unwrap();
        let kind = if ipv6 { 2 } else { 3 };
        let is_error = |frame: &[u8]| {
            view::ip(frame).is_some_and(|ip| ip.proto != 17 && ip.payload.first() == Some(&kind))
        };
        let told = tenant.receive_matching(Duration::from_secs(3), is_error).unwrap();
        let told = told.unwrap_or_else(|| panic!("IPv6 {ipv6}: no error"));
        assert_eq!(told.vlan, Some(42), "IPv6 {ipv6}");
        let error = view::ip(&told.frame).unwrap();
        let mtu = u32::from_be_bytes(*error.payload[4..].first_chunk().unwrap());
        assert_eq!(mtu, combo.tenant_mtu - 4, "IPv6 {ipv6}");
        assert!(error.payload[8..].starts_with(&frame[18..18 + 40]), "IPv6 {ipv6}: the quote");
    }
}

/// Sends `payload` by one system call as datagrams of `size` bytes, the last one perhaps shorter, to a receiver that
/// takes merged ones. Returns what came, in order; a datagram of another size is an error.
fn through_gro(from: &Tenant, to: &Tenant, dst: IpAddr, size: usize, payload: &[u8]) -> Vec<u8> {
    let receiver = to.ns.enter(|| UdpSocket::bind(SocketAddr::new(dst, 0)).unwrap());
    sys::set_udp_gro(&receiver).unwrap();
    sys::force_receive_buffer(&receiver, 8 << 20).unwrap();
    let any = if dst.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sender = from.ns.enter(|| UdpSocket::bind(any).unwrap());
    sys::set_udp_segment(&sender, u16::try_from(size).unwrap()).unwrap();
    let address = receiver.local_addr().unwrap();
    from.ns.enter(|| sender.send_to(payload, address).unwrap());
    let mut got = Vec::new();
    let mut buffer = vec![0; 70_000];
    let mut wait = Duration::from_secs(2);
    while let Some((len, controls)) =
        sys::receive_with_control(receiver.as_fd(), &mut buffer, wait).unwrap()
    {
        let merged = controls.iter().find_map(|(level, kind, data)| {
            let is_size = *level == libc::SOL_UDP && *kind == libc::UDP_GRO;
            is_size.then(|| u16::from_ne_bytes([data[0], data[1]]))
        });
        let each = merged.map_or(len, usize::from);
        // All but the last piece of a merged receive are of that size.
        assert!(each == size || got.len() + len == payload.len(), "datagrams of {each} bytes");
        got.extend_from_slice(&buffer[..len]);
        wait = Duration::from_millis(200);
    }
    got
}

#[test]
fn datagrams_keep_their_boundaries_from_udp_segment_to_udp_gro() {
    for (attach, wire) in [
        (Attach::Veth, Offloads::On),
        (Attach::Veth, Offloads::Off),
        (Attach::Tap, Offloads::On),
        (Attach::Tap, Offloads::Off),
    ] {
        let combo = Combo { attach, wire, ..Combo::SIMPLE };
        let topology = TopologySpec::pair(combo).build();
        topology.wait_connected(0, 1);
        for tenant in &topology.tenants {
            link::set_features(&tenant.ns, TENANT_DEVICE, &["gro"], true);
        }
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        for dst in [IpAddr::from(b.v4), b.v6.into()] {
            // Datagrams, and a shorter one behind them.
            for (size, count, last) in [(1000, 20, 0), (1000, 20, 7), (64, 60, 1), (1400, 45, 1399)]
            {
                let payload = Random::bytes(size as u64, size * count + last);
                let got = through_gro(a, b, dst, size, &payload);
                assert!(
                    got == payload,
                    "{combo}, {count} of {size} and {last}: {} bytes",
                    got.len()
                );
            }
        }
    }
}
