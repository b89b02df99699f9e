//! Answers: to what, to whom, with what in them.

use crate::forge::{DST_MAC, DST4, DST6, Forge, SRC_MAC, SRC4, SRC6, noise, parse};
use culvert_wire::eth::{self, MacAddr, ether_type};
use culvert_wire::{Packet, arp, icmpv4, icmpv6, ipv4, ipv6, proto, reply};
use std::net::{Ipv4Addr, Ipv6Addr};

const OWNER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

pub(crate) fn arp_request() -> Vec<u8> {
    let ethernet = eth::Repr {
        dst: MacAddr::BROADCAST,
        src: SRC_MAC,
        tags: [None; 2],
        ether_type: ether_type::ARP,
    };
    let request = arp::Repr {
        op: arp::REQUEST,
        sender_mac: SRC_MAC,
        sender_ip: SRC4,
        target_mac: MacAddr::ZERO,
        target_ip: DST4,
    };
    let mut frame = vec![0; 42];
    let at = ethernet.emit(&mut frame).unwrap();
    request.emit(&mut frame[at..]).unwrap();
    frame
}

/// A solicitation of `DST6`, with a source link-layer option unless the source is unspecified.
pub(crate) fn solicitation(src: Ipv6Addr) -> Vec<u8> {
    let group: Ipv6Addr = "ff02::1:ff00:c8".parse().unwrap();
    let mut body = DST6.octets().to_vec();
    if !src.is_unspecified() {
        body.extend([1, 1]);
        body.extend(SRC_MAC.0);
    }
    let ethernet = eth::Repr {
        dst: MacAddr::ipv6_multicast(group),
        src: SRC_MAC,
        tags: [None; 2],
        ether_type: ether_type::IPV6,
    };
    let mut frame = vec![0; 14 + 40 + 8 + body.len()];
    let at = ethernet.emit(&mut frame).unwrap();
    let mut ip = ipv6::Repr::new(src, group, proto::ICMPV6, 8 + body.len() as u16);
    ip.hop_limit = 255;
    let at = at + ip.emit(&mut frame[at..]).unwrap();
    let message = icmpv6::Repr { kind: icmpv6::kind::NEIGHBOUR_SOLICITATION, code: 0, rest: 0 };
    message.emit(&src, &group, &body, &mut frame[at..]).unwrap();
    frame
}

pub(crate) fn answer(
    frame: &[u8],
    build: impl Fn(&mut [u8], &[u8], &Packet) -> Option<usize>,
) -> Option<Vec<u8>> {
    let mut out = vec![0; reply::MAX_LEN];
    let len = build(&mut out, frame, &parse(frame))?;
    // A buffer one byte short must be refused, not overrun.
    assert_eq!(build(&mut vec![0; len - 1], frame, &parse(frame)), None);
    out.truncate(len);
    Some(out)
}

pub(crate) fn advertise(frame: &[u8]) -> Option<Vec<u8>> {
    answer(frame, |o, h, p| reply::neighbour_advertisement(o, h, p, OWNER, false))
}

pub(crate) fn frag_needed(frame: &[u8]) -> Option<Vec<u8>> {
    answer(frame, |o, h, p| reply::icmpv4_frag_needed(o, h, p, 1400, DST4))
}

pub(crate) fn too_big(frame: &[u8]) -> Option<Vec<u8>> {
    answer(frame, |o, h, p| reply::icmpv6_packet_too_big(o, h, p, 1400, DST6))
}

#[test]
fn an_arp_request_is_answered_for_the_owner() {
    let reply = answer(&arp_request(), |o, h, p| reply::arp_reply(o, h, p, OWNER)).unwrap();
    let ethernet = eth::Repr::parse(&reply).unwrap();
    assert_eq!((ethernet.src, ethernet.dst), (OWNER, SRC_MAC));
    let want = arp::Repr {
        op: arp::REPLY,
        sender_mac: OWNER,
        sender_ip: DST4,
        target_mac: SRC_MAC,
        target_ip: SRC4,
    };
    assert_eq!(arp::Repr::parse(&reply[14..]), Ok(want));
}

#[test]
fn an_arp_reply_or_a_foreign_hardware_type_is_not_answered() {
    let mut reply = arp_request();
    reply[21] = 2;
    assert_eq!(answer(&reply, |o, h, p| reply::arp_reply(o, h, p, OWNER)), None);
    let mut foreign = arp_request();
    foreign[15] = 6;
    assert_eq!(answer(&foreign, |o, h, p| reply::arp_reply(o, h, p, OWNER)), None);
    let tcp = Forge::tcp(false, vec![]).frame();
    assert_eq!(answer(&tcp, |o, h, p| reply::arp_reply(o, h, p, OWNER)), None);
}

#[test]
fn a_solicitation_is_answered_to_the_solicitor() {
    let frame = solicitation(SRC6);
    assert_eq!(reply::solicited_target(&frame, &parse(&frame)), Some(DST6));
    let reply = advertise(&frame).unwrap();
    let pkt = parse(&reply);
    assert_eq!((pkt.src_mac(&reply), pkt.dst_mac(&reply)), (OWNER, SRC_MAC));
    assert_eq!(pkt.ttl, 255);
    let message = icmpv6::View::new(&reply[54..]).unwrap();
    assert!(message.checksum_ok(&DST6, &SRC6));
    assert_eq!(message.repr().kind, icmpv6::kind::NEIGHBOUR_ADVERTISEMENT);
    assert_eq!(message.repr().rest, 0x6000_0000);
    assert_eq!(message.target(), Some(DST6));
    assert_eq!(message.link_option(icmpv6::OPTION_TARGET_LINK), Some(OWNER));
}

#[test]
fn a_solicitation_without_an_address_is_answered_to_all_nodes() {
    let reply = advertise(&solicitation(Ipv6Addr::UNSPECIFIED)).unwrap();
    let pkt = parse(&reply);
    assert_eq!(pkt.dst_mac(&reply).to_string(), "33:33:00:00:00:01");
    assert_eq!(pkt.dst_ip(&reply).unwrap().to_string(), "ff02::1");
    assert_eq!(icmpv6::View::new(&reply[54..]).unwrap().repr().rest, 0x2000_0000);
}

#[test]
fn an_invalid_solicitation_is_not_answered() {
    let mut hop_limit = solicitation(SRC6);
    hop_limit[21] = 254;
    let mut checksum = solicitation(SRC6);
    checksum[60] ^= 1;
    let mut code = solicitation(SRC6);
    code[55] = 1;
    for frame in [hop_limit, checksum, code, Forge::udp(true, vec![]).frame()] {
        assert_eq!(advertise(&frame), None);
    }
}

#[test]
fn a_frame_above_the_path_mtu_gets_frag_needed() {
    for tags in 0..=2 {
        let frame = Forge { tags, ..Forge::tcp(false, noise(1460, 1)) }.frame();
        let reply = frag_needed(&frame).unwrap();
        let pkt = parse(&reply);
        assert_eq!((pkt.src_mac(&reply), pkt.dst_mac(&reply)), (DST_MAC, SRC_MAC));
        assert_eq!(usize::from(pkt.vlan_count), tags);
        assert_eq!(pkt.l3_len(), reply::MAX_ICMPV4_ERROR_LEN);
        assert_eq!(pkt.dst_ip(&reply), Some(SRC4.into()));
        assert_eq!(pkt.src_ip(&reply), Some(DST4.into()));
        let message = icmpv4::View::new(&reply[usize::from(pkt.l4)..]).unwrap();
        assert!(message.checksum_ok());
        let want = icmpv4::Repr { kind: icmpv4::kind::UNREACHABLE, code: 4, rest: 1400 };
        assert_eq!(message.repr(), want);
        let l3 = 14 + 4 * tags;
        assert_eq!(message.payload(), &frame[l3..l3 + 548]);
    }
}

#[test]
fn a_packet_above_the_path_mtu_gets_packet_too_big() {
    let frame = Forge::tcp(true, noise(1460, 1)).frame();
    let reply = too_big(&frame).unwrap();
    let pkt = parse(&reply);
    assert_eq!(pkt.l3_len(), ipv6::MIN_MTU);
    let message = icmpv6::View::new(&reply[54..]).unwrap();
    assert!(message.checksum_ok(&DST6, &SRC6));
    assert_eq!(message.repr(), icmpv6::Repr { kind: 2, code: 0, rest: 1400 });
    assert_eq!(message.payload(), &frame[14..14 + 1232]);
}

#[test]
fn a_ttl_that_runs_out_is_told() {
    let v4 = Forge::udp(false, noise(9, 1)).frame();
    let reply = answer(&v4, |o, h, p| reply::icmpv4_time_exceeded(o, h, p, DST4)).unwrap();
    assert_eq!(icmpv4::Repr::parse(&reply[34..]).unwrap().kind, 11);
    let v6 = Forge::udp(true, noise(9, 1)).frame();
    let reply = answer(&v6, |o, h, p| reply::icmpv6_time_exceeded(o, h, p, DST6)).unwrap();
    assert_eq!(icmpv6::Repr::parse(&reply[54..], &DST6, &SRC6).unwrap().kind, 3);
}

#[test]
fn errors_groups_and_later_fragments_are_never_answered() {
    let plain = Forge::tcp(false, noise(1460, 1)).frame();
    let mut group_mac = plain.clone();
    group_mac[0] |= 1;
    let rewrite = |change: fn(&mut ipv4::Repr)| {
        let mut frame = plain.clone();
        let mut ip = ipv4::Repr::parse(&frame[14..]).unwrap();
        change(&mut ip);
        ip.emit(&mut frame[14..]).unwrap();
        frame
    };
    let silent = [
        group_mac,
        rewrite(|ip| ip.dst = Ipv4Addr::new(224, 0, 0, 1)),
        rewrite(|ip| ip.dst = Ipv4Addr::BROADCAST),
        rewrite(|ip| ip.src = Ipv4Addr::UNSPECIFIED),
        rewrite(|ip| ip.src = Ipv4Addr::new(127, 0, 0, 1)),
        rewrite(|ip| ip.src = Ipv4Addr::new(240, 0, 0, 1)),
        rewrite(|ip| (ip.df, ip.fragment_offset) = (false, 9)),
        frag_needed(&plain).unwrap(),
        Forge::tcp(true, vec![]).frame(),
    ];
    for frame in silent {
        assert_eq!(frag_needed(&frame), None);
    }
    let plain = Forge::tcp(true, noise(1460, 1)).frame();
    let error = too_big(&plain).unwrap();
    let mut to_group = plain.clone();
    to_group[38] = 0xff;
    let mut unspecified = plain.clone();
    unspecified[22..38].fill(0);
    for frame in [error, to_group, unspecified, Forge::tcp(false, vec![]).frame()] {
        assert_eq!(too_big(&frame), None);
    }
}
