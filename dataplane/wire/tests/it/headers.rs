//! Parsing what was emitted gives back the same values.

use culvert_wire::eth::{MacAddr, VlanTag, ether_type};
use culvert_wire::{arp, eth, icmpv4, icmpv6, ipv4, ipv6, tcp, udp, vxlan};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr)
}

fn tag() -> impl Strategy<Value = VlanTag> {
    (prop::sample::select(vec![ether_type::VLAN, ether_type::QINQ]), any::<u16>())
        .prop_map(|(tpid, tci)| VlanTag { tpid, tci })
}

fn options() -> impl Strategy<Value = ([u8; 40], u8)> {
    (any::<[u8; 40]>(), 0..=10u8).prop_map(|(mut bytes, words)| {
        bytes[usize::from(words) * 4..].fill(0);
        (bytes, words * 4)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn ethernet_round_trips(
        dst in mac(), src in mac(), outer in tag(), inner in tag(), n in 0..=2usize,
        ether_type in any::<u16>().prop_filter("no tag", |t| !VlanTag::is_tpid(*t)),
    ) {
        let tags = [(n > 0).then_some(outer), (n > 1).then_some(inner)];
        let repr = eth::Repr { dst, src, tags, ether_type };
        let mut out = [0; 22];
        prop_assert_eq!(repr.emit(&mut out), Some(14 + 4 * n));
        prop_assert_eq!(eth::Repr::parse(&out[..repr.len()]), Ok(repr));
    }

    #[test]
    fn arp_round_trips(
        op in any::<u16>(), sender_mac in mac(), target_mac in mac(), ips in any::<[u32; 2]>(),
    ) {
        let repr = arp::Repr {
            op, sender_mac, target_mac,
            sender_ip: Ipv4Addr::from(ips[0]),
            target_ip: Ipv4Addr::from(ips[1]),
        };
        let mut out = [0; arp::LEN];
        prop_assert_eq!(repr.emit(&mut out), Some(arp::LEN));
        prop_assert_eq!(arp::Repr::parse(&out), Ok(repr));
    }

    #[test]
    fn ipv4_round_trips(
        bytes in any::<[u8; 3]>(), id in any::<u16>(), bits in any::<[bool; 2]>(),
        fragment_offset in 0..=0x1fffu16, ips in any::<[u32; 2]>(), options in options(),
        payload_len in 0..200u16,
    ) {
        let repr = ipv4::Repr {
            tos: bytes[0], ttl: bytes[1], proto: bytes[2], id, df: bits[0], mf: bits[1],
            fragment_offset, src: ips[0].into(), dst: ips[1].into(),
            options: options.0, options_len: options.1, payload_len,
        };
        let mut out = [0; 300];
        let len = repr.emit(&mut out).unwrap();
        prop_assert_eq!(ipv4::Repr::parse(&out[..len + usize::from(payload_len)]), Ok(repr));
        out[1] ^= 0x10;
        prop_assert_eq!(ipv4::Repr::parse(&out), Err(culvert_wire::ParseError::BadIpv4Checksum));
    }

    #[test]
    fn ipv6_round_trips(
        traffic_class in any::<u8>(), flow_label in 0..=0xf_ffffu32, payload_len in 0..200u16,
        next_header in any::<u8>(), hop_limit in any::<u8>(), ips in any::<[u128; 2]>(),
    ) {
        let repr = ipv6::Repr {
            traffic_class, flow_label, payload_len, next_header, hop_limit,
            src: Ipv6Addr::from(ips[0]), dst: Ipv6Addr::from(ips[1]),
        };
        let mut out = [0; 300];
        prop_assert_eq!(repr.emit(&mut out), Some(40));
        prop_assert_eq!(ipv6::Repr::parse(&out), Ok(repr));
    }

    #[test]
    fn udp_round_trips(ports in any::<[u16; 2]>(), payload_len in 0..200u16, checksum: u16) {
        let repr = udp::Repr { src_port: ports[0], dst_port: ports[1], payload_len, checksum };
        let mut out = [0; 300];
        prop_assert_eq!(repr.emit(&mut out), Some(8));
        prop_assert_eq!(udp::Repr::parse(&out), Ok(repr));
    }

    #[test]
    fn tcp_round_trips(
        ports in any::<[u16; 2]>(), words in any::<[u32; 2]>(), halves in any::<[u16; 3]>(),
        flags in any::<u8>(), options in options(),
    ) {
        let repr = tcp::Repr {
            src_port: ports[0], dst_port: ports[1], seq: words[0], ack: words[1], flags,
            window: halves[0], checksum: halves[1], urgent: halves[2],
            options: options.0, options_len: options.1,
        };
        let mut out = [0; 60];
        let len = repr.emit(&mut out).unwrap();
        prop_assert_eq!(tcp::Repr::parse(&out[..len]), Ok(repr));
        prop_assert!(tcp::View::new(&out[..len - 1]).is_err());
    }

    #[test]
    fn icmp_round_trips(
        kind: u8, code: u8, rest: u32, payload in prop::collection::vec(any::<u8>(), 0..99),
        ips in any::<[u128; 2]>(),
    ) {
        let mut out = [0; 128];
        let repr = icmpv4::Repr { kind, code, rest };
        let len = repr.emit(&payload, &mut out).unwrap();
        prop_assert_eq!(icmpv4::Repr::parse(&out[..len]), Some(repr));
        let (src, dst) = (Ipv6Addr::from(ips[0]), Ipv6Addr::from(ips[1]));
        let repr = icmpv6::Repr { kind, code, rest };
        let len = repr.emit(&src, &dst, &payload, &mut out).unwrap();
        prop_assert_eq!(icmpv6::Repr::parse(&out[..len], &src, &dst), Some(repr));
        out[len - 1] ^= 1;
        prop_assert_eq!(icmpv6::Repr::parse(&out[..len], &src, &dst), None);
    }

    #[test]
    fn vxlan_round_trips(vni in 0..=0xff_ffffu32) {
        let repr = vxlan::Repr { vni };
        let mut out = [0; 8];
        prop_assert_eq!(repr.emit(&mut out), Some(8));
        prop_assert_eq!(vxlan::Repr::parse(&out), Ok(repr));
    }
}

#[test]
fn a_buffer_too_short_is_refused_by_every_emitter() {
    let mac = MacAddr::BROADCAST;
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let ethernet = eth::Repr { dst: mac, src: mac, tags: [None; 2], ether_type: 0x0800 };
    assert_eq!(ethernet.emit(&mut [0; 13]), None);
    assert_eq!(ipv4::Repr::new(v4, v4, 6, 0).emit(&mut [0; 19]), None);
    assert_eq!(ipv4::Repr::new(v4, v4, 6, u16::MAX).emit(&mut [0; 20]), None);
    assert_eq!(ipv6::Repr::new(v6, v6, 6, 0).emit(&mut [0; 39]), None);
    assert_eq!(vxlan::Repr { vni: 1 << 24 }.emit(&mut [0; 8]), None);
    assert_eq!(vxlan::Repr { vni: 1 }.emit(&mut [0; 7]), None);
    assert_eq!(icmpv4::Repr { kind: 0, code: 0, rest: 0 }.emit(&[0; 5], &mut [0; 12]), None);
}
