//! DHCP, DHCPv6 and router discovery: requests as clients write them, answers as tshark reads them.

use crate::forge::parse;
use crate::golden::{complaints, tshark};
use culvert_wire::dhcpv4::{self, Kind};
use culvert_wire::dhcpv6;
use culvert_wire::icmpv6;
use culvert_wire::reply::{self, Ends};
use culvert_wire::router::{self, Advertisement};
use culvert_wire::{MacAddr, eth, ipv6, proto};
use std::net::{Ipv4Addr, Ipv6Addr};

const CLIENT: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// A DHCP message of a client, with the options as given.
fn ask4(options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 0];
    message.extend([0; 16]);
    message.extend(CLIENT.0);
    message.extend([0; 10 + 64 + 128]);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend(options);
    message
}

/// The Ethernet header of a question.
fn head(ether_type: u16) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend(CLIENT.0);
    bytes.extend(ether_type.to_be_bytes());
    bytes
}

fn config<'a>(routes: &'a [(Ipv4Addr, u8, Ipv4Addr)], dns: &'a [Ipv4Addr]) -> dhcpv4::Config<'a> {
    dhcpv4::Config {
        prefix_len: 24,
        router: Some(GATEWAY),
        dns,
        ntp: dns,
        domain: Some("blue.internal"),
        hostname: Some("web-1"),
        mtu: 1430,
        routes,
    }
}

fn frame4(request: &[u8], kind: Kind, config: Option<dhcpv4::Config<'_>>) -> Vec<u8> {
    let request = dhcpv4::Request::parse(request).unwrap();
    let nak = kind == Kind::Nak;
    let said = dhcpv4::Reply {
        kind,
        yiaddr: if nak { Ipv4Addr::UNSPECIFIED } else { V4 },
        server: GATEWAY,
        lease_s: (!nak).then_some(3600),
        config,
    };
    let to = if nak { (MacAddr::BROADCAST, Ipv4Addr::BROADCAST) } else { (CLIENT, V4) };
    let ends = Ends {
        macs: (ROUTER, to.0),
        ips: (GATEWAY.into(), to.1.into()),
        ports: (dhcpv4::SERVER_PORT, dhcpv4::CLIENT_PORT),
    };
    let mut out = vec![0; 1514];
    let head = head(eth::ether_type::IPV4);
    let len = reply::datagram(&mut out, &head, ends, |out| said.emit(&request, out)).unwrap();
    out.truncate(len);
    out
}

#[test]
fn a_request_of_dhcp_is_read() {
    let message = ask4(&[
        0, 53, 1, 3, 50, 4, 10, 0, 0, 7, 54, 4, 10, 0, 0, 254, 61, 3, 1, 2, 3, 57, 2, 5, 220, 55,
        1, 1, 255, 0, 0,
    ]);
    let request = dhcpv4::Request::parse(&message).unwrap();
    assert_eq!((request.kind, request.xid, request.chaddr), (Kind::Request, 0xcafe_babe, CLIENT));
    assert_eq!(request.requested, Some(Ipv4Addr::new(10, 0, 0, 7)));
    assert_eq!(request.server, Some(GATEWAY));
    assert_eq!(request.client_id, Some(&[1, 2, 3][..]));
    assert_eq!(request.max_len, 1500 - 28);
}

#[test]
fn what_is_no_request_of_dhcp_is_refused() {
    let legal = ask4(&[53, 1, 1, 255]);
    assert!(dhcpv4::Request::parse(&legal).is_some());
    for (name, at, value) in [
        ("an answer", 0, 2),
        ("another hardware", 1, 6),
        ("another length of address", 2, 16),
        ("relayed", 24, 10),
        ("another cookie", 236, 0),
        ("an unknown kind", 242, 77),
        ("an option that is cut", 241, 200),
    ] {
        let mut message = legal.clone();
        message[at] = value;
        assert!(dhcpv4::Request::parse(&message).is_none(), "{name}");
    }
    assert!(dhcpv4::Request::parse(&ask4(&[53, 1, 1])).is_none(), "no end");
    assert!(dhcpv4::Request::parse(&ask4(&[255])).is_none(), "BOOTP");
    for len in 0..legal.len() {
        assert!(dhcpv4::Request::parse(&legal[..len]).is_none(), "{len}");
    }
}

#[test]
fn tshark_reads_what_dhcp_answers() {
    let dns = [Ipv4Addr::new(10, 0, 0, 253), Ipv4Addr::new(192, 0, 2, 53)];
    let routes = [
        (Ipv4Addr::new(192, 168, 0, 0), 16, Ipv4Addr::new(10, 0, 0, 253)),
        (Ipv4Addr::new(172, 16, 128, 0), 17, Ipv4Addr::new(10, 0, 0, 252)),
    ];
    let discover = ask4(&[53, 1, 1, 57, 2, 5, 220, 61, 7, 1, 2, 0, 0, 0, 0, 1, 255]);
    let request = ask4(&[53, 1, 3, 255]);
    let frames = [
        frame4(&discover, Kind::Offer, Some(config(&routes, &dns))),
        frame4(&request, Kind::Ack, Some(config(&[], &dns))),
        frame4(&request, Kind::Nak, None),
    ];
    assert_eq!(complaints("dhcp4.pcap", &frames), Vec::<String>::new());
    let fields = [
        "dhcp.option.dhcp",
        "dhcp.ip.your",
        "dhcp.option.subnet_mask",
        "dhcp.option.router",
        "dhcp.option.domain_name_server",
        "dhcp.option.interface_mtu",
        "dhcp.option.ip_address_lease_time",
        "dhcp.option.renewal_time_value",
        "dhcp.option.rebinding_time_value",
        "dhcp.option.hostname",
        "dhcp.option.domain_name",
        "dhcp.option.classless_static_route",
        "dhcp.option.dhcp_server_id",
        "udp.checksum.status",
    ];
    let rows = tshark("dhcp4-values.pcap", &frames, &fields);
    let servers = "10.0.0.253,192.0.2.53";
    let times = ["3600", "1800", "3150"];
    assert_eq!(rows[0][..5], ["2", "10.0.0.1", "255.255.255.0", "10.0.0.254", servers]);
    assert_eq!(rows[0][5], "1430");
    assert_eq!(rows[0][6..9], times);
    assert_eq!(rows[0][9..11], ["web-1", "blue.internal"]);
    // Length, significant octets, router of each; the default route is among them.
    assert_eq!(rows[0][11], "10c0a80a0000fd,11ac10800a0000fc,000a0000fe");
    assert_eq!(rows[0][12..], ["10.0.0.254", "1"]);
    assert_eq!(rows[1][..2], ["5", "10.0.0.1"]);
    assert_eq!(rows[1][11], "", "no routes, no option");
    assert_eq!(rows[2][..3], ["6", "0.0.0.0", ""]);
}

#[test]
fn a_client_that_takes_little_gets_what_matters_most() {
    let dns = [Ipv4Addr::new(10, 0, 0, 253); 8];
    let routes = [(Ipv4Addr::new(192, 168, 255, 0), 24, GATEWAY); 16];
    let long = ["x".repeat(63), "y".repeat(63), "z".repeat(63)].join(".");
    let config = dhcpv4::Config { domain: Some(&long), ..config(&routes, &dns) };
    let frame = frame4(&ask4(&[53, 1, 1, 255]), Kind::Offer, Some(config));
    assert!(frame.len() <= 14 + 576, "{}", frame.len());
    assert_eq!(complaints("dhcp4-small.pcap", std::slice::from_ref(&frame)), Vec::<String>::new());
    let fields = ["dhcp.option.router", "dhcp.option.hostname", "dhcp.option.domain_name"];
    let rows = tshark("dhcp4-small-values.pcap", &[frame], &fields);
    assert_eq!(rows[0], ["10.0.0.254", "web-1", ""]);
}

/// A DHCPv6 message of a client.
fn ask6(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![kind, 0xab, 0xcd, 0xef];
    for (code, value) in options {
        message.extend(code.to_be_bytes());
        message.extend((value.len() as u16).to_be_bytes());
        message.extend(*value);
    }
    message
}

const DUID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 1];

/// Association 7, with addresses.
fn association(addresses: &[Ipv6Addr]) -> Vec<u8> {
    let mut value = vec![0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    for ip in addresses {
        value.extend([0, 5, 0, 24]);
        value.extend(ip.octets());
        value.extend([0; 8]);
    }
    value
}

fn frame6(request: &[u8], addresses: Option<&[Ipv6Addr]>, advertise: bool) -> Vec<u8> {
    let request = dhcpv6::Request::parse(request).unwrap();
    let said = dhcpv6::Reply {
        advertise,
        server: &dhcpv6::server_duid(ROUTER),
        status: None,
        addresses,
        lease_s: 3600,
        dns: &["2001:db8::53".parse().unwrap()],
        ntp: &["2001:db8::123".parse().unwrap()],
        domain: Some("blue.internal"),
    };
    let ends = Ends {
        macs: (ROUTER, CLIENT),
        ips: (ROUTER.eui64_link_local().into(), CLIENT.eui64_link_local().into()),
        ports: (dhcpv6::SERVER_PORT, dhcpv6::CLIENT_PORT),
    };
    let mut out = vec![0; 1514];
    let head = head(eth::ether_type::IPV6);
    let len = reply::datagram(&mut out, &head, ends, |out| said.emit(&request, out)).unwrap();
    out.truncate(len);
    out
}

#[test]
fn a_request_of_dhcpv6_is_read() {
    let na = association(&[V6]);
    let message = ask6(3, &[(1, &DUID), (2, &[9; 4]), (3, &na), (25, &na), (8, &[0, 0])]);
    let request = dhcpv6::Request::parse(&message).unwrap();
    assert_eq!((request.kind, request.transaction), (dhcpv6::Kind::Request, 0x00ab_cdef));
    assert_eq!((request.client, request.server), (Some(&DUID[..]), Some(&[9; 4][..])));
    let associations: Vec<_> = request.associations().collect();
    assert_eq!(associations.len(), 2);
    assert!(associations[0].is_lasting() && !associations[1].is_lasting());
    assert_eq!(associations[0].addresses().collect::<Vec<_>>(), [V6]);
}

#[test]
fn what_is_no_request_of_dhcpv6_is_refused() {
    let na = association(&[]);
    let legal = ask6(1, &[(1, &DUID), (3, &na)]);
    for len in 0..legal.len() {
        let parsed = dhcpv6::Request::parse(&legal[..len]);
        assert_eq!(parsed.is_some(), [4, 18].contains(&len), "{len}: whole options only");
    }
    for kind in [0, 2, 7, 10, 12, 13, 255] {
        assert!(dhcpv6::Request::parse(&ask6(kind, &[(1, &DUID)])).is_none(), "{kind}");
    }
    assert!(dhcpv6::Request::parse(&ask6(1, &[(1, &[])])).is_none(), "an empty DUID");
    assert!(dhcpv6::Request::parse(&ask6(1, &[(1, &[1; 131])])).is_none(), "a long DUID");
    assert!(dhcpv6::Request::parse(&ask6(1, &[(3, &na[..11])])).is_none(), "a short association");
    let many = [(3, &na[..]); 5];
    assert!(dhcpv6::Request::parse(&ask6(1, &many)).is_none(), "too many associations");
}

#[test]
fn tshark_reads_what_dhcpv6_answers() {
    let stale = "fd00::99".parse().unwrap();
    let (na, pd) = (association(&[V6, stale]), association(&[]));
    let solicit = ask6(1, &[(1, &DUID), (3, &na), (25, &pd)]);
    let information = ask6(11, &[(1, &DUID)]);
    let frames = [
        frame6(&solicit, Some(&[V6]), true),
        frame6(&ask6(3, &[(1, &DUID), (3, &na), (3, &pd)]), Some(&[V6]), false),
        frame6(&information, None, false),
        frame6(&solicit, Some(&[]), true),
    ];
    assert_eq!(complaints("dhcp6.pcap", &frames), Vec::<String>::new());
    let fields = [
        "dhcpv6.msgtype",
        "dhcpv6.xid",
        "dhcpv6.iaaddr.ip",
        "dhcpv6.iaaddr.valid_lifetime",
        "dhcpv6.status_code",
        "dhcpv6.dns_server",
        "udp.checksum.status",
    ];
    let rows = tshark("dhcp6-values.pcap", &frames, &fields);
    assert_eq!(rows[0][0], "2");
    assert_eq!(rows[0][1], "0xabcdef");
    assert_eq!(rows[0][2], "fd00::1,fd00::99");
    assert_eq!(rows[0][3], "3600,0", "the address that is not its own ends");
    assert_eq!(rows[0][4], "6", "no prefixes");
    assert_eq!(rows[0][5..], ["2001:db8::53", "1"]);
    assert_eq!(rows[1][0], "7");
    assert_eq!(rows[1][4], "2", "the second association gets nothing");
    assert_eq!(rows[2][..3], ["7", "0xabcdef", ""]);
    assert_eq!(rows[3][4], "2,6");
}

fn advertisement<'a>(
    prefixes: &'a [(Ipv6Addr, u8)],
    dns: &'a [Ipv6Addr],
    domain: Option<&'a str>,
) -> Vec<u8> {
    let said = Advertisement {
        mac: ROUTER,
        lifetime_s: 3600,
        managed: true,
        other: true,
        mtu: 1430,
        prefixes,
        dns,
        domain,
    };
    let mut out = vec![0; 1514];
    let to = (MacAddr::ipv6_multicast(router::ALL_NODES), router::ALL_NODES);
    let head = head(eth::ether_type::IPV6);
    let len = reply::router_advertisement(&mut out, &head, to, &said).unwrap();
    out.truncate(len);
    out
}

#[test]
fn tshark_reads_what_a_router_advertises() {
    let prefixes = [("fd00::".parse().unwrap(), 64), ("fd00:1::".parse().unwrap(), 56)];
    let dns = ["2001:db8::53".parse().unwrap(), "2001:db8::54".parse().unwrap()];
    // Domains of each remainder of eight, for the padding.
    let domains = (1..=9).map(|len| "x".repeat(len) + ".internal").collect::<Vec<_>>();
    let mut frames = vec![advertisement(&[], &[], None), advertisement(&prefixes, &dns, None)];
    frames.extend(domains.iter().map(|domain| advertisement(&prefixes, &dns, Some(domain))));
    assert_eq!(complaints("ra.pcap", &frames), Vec::<String>::new());
    let fields = [
        "ipv6.src",
        "ipv6.hlim",
        "icmpv6.nd.ra.flag.m",
        "icmpv6.nd.ra.flag.o",
        "icmpv6.nd.ra.router_lifetime",
        "icmpv6.opt.mtu",
        "icmpv6.opt.prefix",
        "icmpv6.opt.prefix.flag.l",
        "icmpv6.opt.prefix.flag.a",
        "icmpv6.opt.rdnss",
        "icmpv6.opt.linkaddr",
        "icmpv6.checksum.status",
    ];
    let rows = tshark("ra-values.pcap", &frames, &fields);
    for row in &rows[1..] {
        assert_eq!(row[..6], ["fe80::ff:fe00:fe", "255", "1", "1", "3600", "1430"]);
        assert_eq!(row[6..9], ["fd00::,fd00:1::", "1,1", "0,0"]);
        assert_eq!(row[9..], ["2001:db8::53,2001:db8::54", "02:00:00:00:00:fe", "1"]);
    }
}

#[test]
fn only_a_valid_router_solicitation_is_one() {
    let solicitation = |kind: u8, src: Ipv6Addr, hops: u8| {
        let mut frame = head(eth::ether_type::IPV6);
        let dst = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let mut ip = ipv6::Repr::new(src, dst, proto::ICMPV6, 8);
        ip.hop_limit = hops;
        let mut bytes = [0; 48];
        ip.emit(&mut bytes).unwrap();
        let message = icmpv6::Repr { kind, code: 0, rest: 0 };
        message.emit(&src, &dst, &[], &mut bytes[40..]).unwrap();
        frame.extend(bytes);
        frame
    };
    let solicitor = |frame: &[u8]| router::solicitor(frame, &parse(frame));
    let src = CLIENT.eui64_link_local();
    assert_eq!(solicitor(&solicitation(133, src, 255)), Some(src));
    let none = Ipv6Addr::UNSPECIFIED;
    assert_eq!(solicitor(&solicitation(133, none, 255)), Some(none));
    assert_eq!(solicitor(&solicitation(134, src, 255)), None);
    assert_eq!(solicitor(&solicitation(133, src, 254)), None, "it came from another link");
    let mut damaged = solicitation(133, src, 255);
    damaged[56] ^= 1;
    assert_eq!(solicitor(&damaged), None);
}
