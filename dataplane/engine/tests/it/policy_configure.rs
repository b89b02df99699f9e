//! Who asks for configuration is told what the model says, and nothing goes anywhere else.

use crate::common;

use std::net::{Ipv4Addr, Ipv6Addr};

use culvert_dataplane::drops::DropReason;
use culvert_dataplane::policy::anti_spoof::check;
use culvert_dataplane::policy::configure::{answer, router_lifetime_s, unsolicited};
use culvert_dataplane::policy::egress::Verdict;
use culvert_dataplane::policy::observe::Unwatched;
use culvert_model::{Dhcp, HostParts, MacAddr};
use culvert_wire::{Packet, dhcpv6};

use common::frames::{Frame, icmpv6, udp_with};
use common::{World, gateway, mac, parts, port, vnet};

const A: MacAddr = mac(0xa);
const ROUTER: MacAddr = mac(0xee);
/// A link-local address that A's MAC does not make.
const OWN_WAY: &str = "fe80::1234:5678";
const ALL_SERVERS: (MacAddr, &str) = (MacAddr([0x33, 0x33, 0, 1, 0, 2]), "ff02::1:2");
const ALL_ROUTERS: (MacAddr, &str) = (MacAddr([0x33, 0x33, 0, 0, 0, 2]), "ff02::2");

fn host() -> HostParts {
    let mut host = parts();
    host.vnets = vec![vnet("blue", 100), vnet("plain", 200)];
    for at in 0..2 {
        host.vnets[at].flood = true;
        host.vnets[at].gateways = vec![
            gateway("10.0.0.254/24", ROUTER),
            gateway("10.9.0.254/16", ROUTER),
            gateway("fd00::ff/64", ROUTER),
        ];
    }
    host.vnets[0].dhcp = Some(Dhcp { lease_s: 7200, ..Dhcp::default() });
    host.ports = vec![
        port("a", "blue", A, &["10.0.0.1", "10.9.0.1", "fd00::1", "fd00::2"]),
        port("six", "blue", mac(6), &["fd00::6"]),
        port("four", "blue", mac(4), &["10.0.0.4"]),
        port("p", "plain", A, &["10.0.0.1", "fd00::1"]),
    ];
    host
}

/// What a port is answered.
fn answered(world: &World, port: &str, frame: &Frame) -> Option<Vec<u8>> {
    let mut out = vec![0; 1514];
    let (port, pkt) = (world.port(port), frame.pkt());
    let vnet = world.tables.vnet(port.vnet).unwrap();
    let len = answer(port, vnet, &frame.bytes, &pkt, &mut out)?;
    out.truncate(len);
    let parsed = Packet::parse(&out, len).unwrap();
    assert_eq!(parsed.len as usize, len);
    Some(out)
}

/// A DHCP message of a client, from an address to a server's.
fn ask4(client: MacAddr, from: &str, to: &str, ciaddr: &str, options: &[u8]) -> Frame {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
    message.extend(ciaddr.parse::<Ipv4Addr>().unwrap().octets());
    message.extend([0; 12]);
    message.extend(client.0);
    message.extend([0; 10 + 64 + 128]);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend(options);
    message.push(255);
    let dst = if to == "255.255.255.255" { MacAddr::BROADCAST } else { ROUTER };
    udp_with(client, dst, (from, 68), (to, 67), &message)
}

fn broadcast4(options: &[u8]) -> Frame {
    ask4(A, "0.0.0.0", "255.255.255.255", "0.0.0.0", options)
}

/// Kind, address given, destination MAC and IP of an answer.
fn read4(frame: &[u8]) -> (u8, Ipv4Addr, MacAddr, Ipv4Addr) {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
    let kind = frame[282..].windows(3).find(|w| w[..2] == [53, 1]).unwrap()[2];
    let dst = MacAddr(frame[..6].try_into().unwrap());
    assert_eq!(frame[6..12], ROUTER.0);
    (kind, address(58), dst, address(30))
}

fn has_option(frame: &[u8], code: u8) -> bool {
    let mut at = 282;
    while frame[at] != 255 {
        if frame[at] == code {
            return true;
        }
        at += 2 + usize::from(frame[at + 1]);
    }
    false
}

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

#[test]
fn a_client_is_offered_the_address_that_it_wants_if_it_has_it_and_else_the_first() {
    let world = World::new(host());
    for (options, given) in [
        (&[53, 1, 1][..], FIRST),
        (&[53, 1, 1, 50, 4, 10, 9, 0, 1], SECOND),
        (&[53, 1, 1, 50, 4, 10, 0, 0, 4], FIRST),
    ] {
        let offer = answered(&world, "a", &broadcast4(options)).unwrap();
        assert_eq!(read4(&offer), (2, given, A, given));
        assert!(has_option(&offer, 51) && has_option(&offer, 1) && has_option(&offer, 3));
    }
    let tagged = broadcast4(&[53, 1, 1]).tagged(7);
    let offer = answered(&world, "a", &tagged).unwrap();
    assert_eq!(offer[12..16], [0x81, 0, 0, 7], "in the VLAN that it came from");
    assert_eq!(
        answered(
            &world,
            "six",
            &ask4(mac(6), "0.0.0.0", "255.255.255.255", "0.0.0.0", &[53, 1, 1])
        ),
        None
    );
}

#[test]
fn a_request_is_granted_refused_or_another_servers() {
    let world = World::new(host());
    let ask = |options: &[u8]| answered(&world, "a", &broadcast4(options));
    // Selecting.
    let ack = ask(&[53, 1, 3, 50, 4, 10, 0, 0, 1, 54, 4, 10, 0, 0, 254]).unwrap();
    assert_eq!(read4(&ack), (5, FIRST, A, FIRST));
    assert_eq!(ask(&[53, 1, 3, 50, 4, 10, 0, 0, 1, 54, 4, 192, 0, 2, 1]), None);
    // After a restart of the client.
    assert_eq!(read4(&ask(&[53, 1, 3, 50, 4, 10, 9, 0, 1]).unwrap()), (5, SECOND, A, SECOND));
    let nak = ask(&[53, 1, 3, 50, 4, 10, 0, 0, 99]).unwrap();
    let all = (MacAddr::BROADCAST, Ipv4Addr::BROADCAST);
    assert_eq!(read4(&nak), (6, Ipv4Addr::UNSPECIFIED, all.0, all.1));
    assert!(!has_option(&nak, 51) && !has_option(&nak, 1));
    // Renewing, by unicast, and rebinding.
    for to in ["10.0.0.254", "255.255.255.255"] {
        let ack = answered(&world, "a", &ask4(A, "10.0.0.1", to, "10.0.0.1", &[53, 1, 3]));
        assert_eq!(read4(&ack.unwrap()), (5, FIRST, A, FIRST));
    }
    let nak = answered(&world, "a", &ask4(A, "10.0.0.1", "10.0.0.254", "10.0.0.9", &[53, 1, 3]));
    assert_eq!(read4(&nak.unwrap()).0, 6);
    // Neither is answered.
    for kind in [4, 7, 2, 5, 6] {
        assert_eq!(ask(&[53, 1, kind]), None, "{kind}");
    }
}

#[test]
fn who_has_an_address_is_told_the_rest() {
    let world = World::new(host());
    let inform = ask4(A, "10.0.0.1", "255.255.255.255", "10.0.0.1", &[53, 1, 8]);
    let ack = answered(&world, "a", &inform).unwrap();
    assert_eq!(read4(&ack), (5, Ipv4Addr::UNSPECIFIED, A, FIRST));
    assert!(!has_option(&ack, 51) && has_option(&ack, 26));
}

#[test]
fn nobody_asks_for_another() {
    let world = World::new(host());
    let mut ask = broadcast4(&[53, 1, 1]);
    ask.bytes[42 + 28 + 5] = 0x77;
    assert_eq!(answered(&world, "a", &ask), None);
}

/// A DHCPv6 message of port `a`.
fn ask6(from: &str, to: (MacAddr, &str), kind: u8, options: &[(u16, &[u8])]) -> Frame {
    let mut message = vec![kind, 1, 2, 3];
    for (code, value) in options {
        message.extend(code.to_be_bytes());
        message.extend((value.len() as u16).to_be_bytes());
        message.extend(*value);
    }
    udp_with(A, to.0, (from, 546), (to.1, 547), &message)
}

fn association(addresses: &[&str]) -> Vec<u8> {
    let mut value = vec![0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    for ip in addresses {
        value.extend([0, 5, 0, 24]);
        value.extend(ip.parse::<Ipv6Addr>().unwrap().octets());
        value.extend([0; 8]);
    }
    value
}

fn contains(frame: &[u8], ip: &str) -> bool {
    let octets = ip.parse::<Ipv6Addr>().unwrap().octets();
    frame[62..].windows(16).any(|window| window == octets)
}

#[test]
fn dhcpv6_gives_a_port_all_of_its_addresses() {
    let world = World::new(host());
    let (client, server) = ([0, 3, 0, 1, 9, 9], dhcpv6::server_duid(ROUTER));
    let na = association(&[]);
    let solicit = [(1, &client[..]), (3, &na)];
    let advertise = answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, 1, &solicit)).unwrap();
    assert_eq!(advertise[62], 2);
    assert!(contains(&advertise, "fd00::1") && contains(&advertise, "fd00::2"));
    assert_eq!(advertise[..6], A.0);
    assert_eq!(advertise[38..54], OWN_WAY.parse::<Ipv6Addr>().unwrap().octets());
    let rapid = [(1, &client[..]), (3, &na), (14, &[])];
    assert_eq!(answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, 1, &rapid)).unwrap()[62], 7);
    for kind in [3, 5, 8, 9] {
        let named = [(1, &client[..]), (2, &server), (3, &na)];
        let reply = answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, kind, &named)).unwrap();
        assert_eq!((reply[62], contains(&reply, "fd00::1")), (7, kind < 8), "{kind}");
        let another = [(1, &client[..]), (2, &[1; 10]), (3, &na)];
        assert_eq!(answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, kind, &another)), None);
        assert_eq!(answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, kind, &solicit)), None);
    }
    // A solicit that names a server, one from no link-local address, one by unicast.
    let named = [(1, &client[..]), (2, &server), (3, &na)];
    assert_eq!(answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, 1, &named)), None);
    assert_eq!(answered(&world, "a", &ask6("fd00::1", ALL_SERVERS, 1, &solicit)), None);
    assert_eq!(answered(&world, "a", &ask6(OWN_WAY, (ROUTER, "fd00::ff"), 1, &solicit)), None);
}

#[test]
fn dhcpv6_says_whether_addresses_are_of_this_link() {
    let world = World::new(host());
    let status = |addresses: &[&str]| {
        let na = association(addresses);
        let confirm = [(1, &[9; 6][..]), (3, &na)];
        let reply = answered(&world, "a", &ask6(OWN_WAY, ALL_SERVERS, 4, &confirm))?;
        let at = reply.windows(4).position(|window| window == [0, 13, 0, 2])?;
        Some(reply[at + 5])
    };
    assert_eq!(status(&["fd00::1"]), Some(0));
    assert_eq!(status(&["fd00::1", "2001:db8::1"]), Some(4));
    assert_eq!(status(&[]), None);
}

#[test]
fn a_router_advertises_itself_to_who_asks_and_by_itself() {
    let world = World::new(host());
    let ask = |from: &str| icmpv6((A, from), ALL_ROUTERS, 133, &[]);
    let to_one = answered(&world, "a", &ask(OWN_WAY)).unwrap();
    assert_eq!(to_one[..6], A.0);
    let to_all = answered(&world, "a", &ask("::")).unwrap();
    assert_eq!(to_all[..6], [0x33, 0x33, 0, 0, 0, 1]);
    // Managed and other, for who has addresses; else only other.
    assert_eq!((to_all[54], to_all[59]), (134, 0xc0));
    let four = answered(&world, "four", &icmpv6((mac(4), OWN_WAY), ALL_ROUTERS, 133, &[]));
    assert_eq!(four.unwrap()[59], 0x40);
    let mut out = vec![0; 1514];
    let port = world.port("a");
    let len = unsolicited(port, world.vnet("blue"), &mut out).unwrap();
    assert_eq!(out[..len], to_all[..]);
    assert_eq!(router_lifetime_s(port.dhcp.as_deref().unwrap()), 7200);
    assert_eq!(unsolicited(world.port("p"), world.vnet("plain"), &mut out), None);
}

#[test]
fn a_question_is_for_us_alone_where_we_answer_and_like_any_other_packet_where_not() {
    let world = World::new(host());
    let flood = |port: &str| Verdict::Flood(world.port(port).vnet);
    let questions = [
        broadcast4(&[53, 1, 1]),
        ask6(OWN_WAY, ALL_SERVERS, 1, &[]),
        icmpv6((A, OWN_WAY), ALL_ROUTERS, 133, &[]),
    ];
    for (at, question) in questions.iter().enumerate() {
        assert_eq!(world.egress("a", question), Verdict::Configure);
        assert_eq!(world.egress("p", question), flood("p"));
        let spoofs =
            |port: &str| check(world.port(port), &question.bytes, &question.pkt(), &mut Unwatched);
        assert_eq!(spoofs("a"), Ok(()));
        let elsewhere = if at == 0 { Ok(()) } else { Err(DropReason::SpoofedIp) };
        assert_eq!(spoofs("p"), elsewhere, "a link-local address that its MAC does not make");
    }
    let other = udp_with(A, ALL_SERVERS.0, (OWN_WAY, 546), ("ff02::fb", 5353), &[]);
    let check = check(world.port("a"), &other.bytes, &other.pkt(), &mut Unwatched);
    assert_eq!(check, Err(DropReason::SpoofedIp), "for these questions alone");
    for answer in [
        udp_with(A, MacAddr::BROADCAST, ("10.0.0.1", 67), ("255.255.255.255", 68), &[]),
        udp_with(A, mac(6), ("fd00::1", 547), ("fd00::6", 546), &[]),
    ] {
        assert_eq!(world.egress("a", &answer), Verdict::Drop(DropReason::RogueRouter));
        assert_ne!(world.egress("p", &answer), Verdict::Drop(DropReason::RogueRouter));
    }
}

#[test]
fn a_change_of_what_a_network_tells_reaches_its_ports() {
    let mut world = World::new(host());
    let lease = |world: &World| world.port("a").dhcp.as_ref().map(|dhcp| dhcp.lease_s);
    assert_eq!((lease(&world), world.port("p").dhcp.is_some()), (Some(7200), false));
    let epoch = world.port("a").epoch;
    let mut changed = host();
    changed.vnets[0].dhcp = Some(Dhcp { lease_s: 600, ..Dhcp::default() });
    world.apply(changed.clone());
    assert_eq!(lease(&world), Some(600));
    assert!(world.port("a").epoch > epoch, "cached flows are judged anew");
    changed.vnets[0].dhcp = None;
    world.apply(changed);
    assert_eq!(lease(&world), None);
    assert_eq!(world.egress("a", &broadcast4(&[53, 1, 1])), Verdict::Flood(world.port("a").vnet));
}
