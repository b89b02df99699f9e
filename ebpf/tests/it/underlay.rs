//! The underlay program, by test runs: a frame in, a verdict and a counter out.

use crate::support;

use culvert_ebpf::{
    Carried, Carrier, Counter, FrameMeta, HeaderTest, ProgramKind, Programs, XdpMode,
};
use support::{
    XDP_DROP, XDP_PASS,
    frames::{
        DOT1AD, DOT1Q, ETH_ARP, ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, PEER4, PEER6, TCP, UDP, V4,
        VTEP4, VTEP6, VXLAN, damaged, ethernet, extension, icmp_error, ipv6, ipv6_frame, tcp,
        tunnel, udp,
    },
    load, moved,
    netns::Netns,
    testrun::{Ingress, run, run_on},
};

const OTHER4: [u8; 4] = [192, 0, 2, 99];
const OTHER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99];
const GENEVE: u16 = 6081;
const STT: u16 = 7471;
const OWN: u8 = 253;

/// What the program makes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// To the socket, had there been one.
    Ours,
    /// The same, as an error about what we sent.
    IcmpError,
    /// To the host's stack.
    Host,
    /// Dropped and counted so.
    Dropped(Counter),
}

impl Fate {
    fn expected(self) -> (u32, Vec<(Counter, u64)>) {
        match self {
            Self::Ours => (XDP_DROP, vec![(Counter::UnderlayNoSocket, 1)]),
            Self::IcmpError => {
                let counters = [Counter::UnderlayNoSocket, Counter::UnderlayIcmpError];
                (XDP_DROP, counters.map(|counter| (counter, 1)).to_vec())
            }
            Self::Host => (XDP_PASS, vec![(Counter::UnderlayPassed, 1)]),
            Self::Dropped(counter) => (XDP_DROP, vec![(counter, 1)]),
        }
    }
}

fn with_programs(test: impl FnOnce(&mut Programs) + Send) {
    Netns::new().run(|| {
        let mut programs = load();
        programs.attach(ProgramKind::Underlay, 1, XdpMode::Generic, 0..1).unwrap();
        programs.set_vteps(&[VTEP4.into(), VTEP6.into()]).unwrap();
        programs
            .set_carriers(&[
                Carrier::Udp(VXLAN).into(),
                Carrier::Udp(GENEVE).into(),
                Carrier::Tcp(STT).into(),
                Carrier::Ip(OWN).into(),
            ])
            .unwrap();
        test(&mut programs);
    });
}

fn check(programs: &mut Programs, name: &str, frame: &[u8], linear: Option<usize>, fate: Fate) {
    let (verdict, counters) = fate.expected();
    let mut seen = None;
    let moved = moved(programs, |programs| {
        let ingress = Ingress { ifindex: 1, rx_queue: 0, linear };
        let outcome = run_on(programs.underlay_fd().unwrap(), frame, ingress);
        seen = Some(outcome.unwrap_or_else(|error| panic!("{name}: {error}")).verdict);
    });
    assert_eq!((seen, moved), (Some(verdict), counters), "{name}, linear part {linear:?}");
}

fn check_all(cases: Vec<(&str, Vec<u8>, Fate)>) {
    with_programs(|programs| {
        for (name, frame, fate) in cases {
            check(programs, name, &frame, None, fate);
        }
    });
}

fn v4() -> V4 {
    V4::default()
}

#[test]
fn tunnel_packets_to_our_vteps_go_to_the_socket() {
    let inner4 = v4().packet(&tunnel());
    let inner6 = ipv6(PEER6, VTEP6, UDP, &tunnel());
    let geneve = udp(GENEVE, &[0; 16]);
    check_all(vec![
        ("IPv4", ethernet(&[], ETH_IPV4, &inner4), Fate::Ours),
        ("IPv6", ethernet(&[], ETH_IPV6, &inner6), Fate::Ours),
        ("IPv4, one tag", ethernet(&[DOT1Q], ETH_IPV4, &inner4), Fate::Ours),
        ("IPv6, one tag", ethernet(&[DOT1Q], ETH_IPV6, &inner6), Fate::Ours),
        ("IPv4, two tags", ethernet(&[DOT1AD, DOT1Q], ETH_IPV4, &inner4), Fate::Ours),
        ("IPv6, two tags", ethernet(&[DOT1AD, DOT1Q], ETH_IPV6, &inner6), Fate::Ours),
        ("second tunnel port", v4().frame(&geneve), Fate::Ours),
        ("IPv4 without DF", V4 { fragment: 0, ..v4() }.frame(&tunnel()), Fate::Ours),
        ("jumbo", v4().frame(&udp(VXLAN, &[1; 8950])), Fate::Ours),
        ("no payload", v4().frame(&udp(VXLAN, &[])), Fate::Ours),
    ]);
}

#[test]
fn tcp_shaped_packets_and_other_protocols_go_to_the_socket_too() {
    let stt = tcp(STT);
    let bare = vec![7; 4];
    let fragment = V4 { fragment: 0x2000, proto: TCP, ..v4() };
    let options = V4 { options: vec![0x94, 4, 0, 0], proto: OWN, ..v4() };
    let quoted = V4 { src: VTEP4, dst: PEER4, proto: TCP, ..v4() }.packet(&stt[..8]);
    let error = V4 { proto: ICMP, ..v4() }.frame(&icmp_error(3, 4, &quoted));
    let own_quoted = ipv6(VTEP6, PEER6, OWN, &bare);
    let own_error = ipv6_frame(PEER6, VTEP6, ICMPV6, &icmp_error(2, 0, &own_quoted));
    let extended = [extension(TCP, 8), stt.clone()].concat();
    check_all(vec![
        ("TCP-shaped over IPv4", V4 { proto: TCP, ..v4() }.frame(&stt), Fate::Ours),
        ("TCP-shaped over IPv6", ipv6_frame(PEER6, VTEP6, TCP, &stt), Fate::Ours),
        (
            "TCP-shaped to another address",
            V4 { proto: TCP, dst: OTHER4, ..v4() }.frame(&stt),
            Fate::Host,
        ),
        ("TCP to a UDP format's port", V4 { proto: TCP, ..v4() }.frame(&tcp(GENEVE)), Fate::Host),
        ("UDP to a TCP-shaped format's port", v4().frame(&udp(STT, &[0; 30])), Fate::Host),
        ("a fragment", fragment.frame(&stt), Fate::Dropped(Counter::UnderlayFragment)),
        (
            "an extension header",
            ipv6_frame(PEER6, VTEP6, 0, &extended),
            Fate::Dropped(Counter::UnderlayIpv6Extension),
        ),
        ("a protocol over IPv4", V4 { proto: OWN, ..v4() }.frame(&bare), Fate::Ours),
        ("a protocol over IPv6", ipv6_frame(PEER6, VTEP6, OWN, &bare), Fate::Ours),
        (
            "a protocol with options",
            options.frame(&bare),
            Fate::Dropped(Counter::UnderlayIpv4Options),
        ),
        ("another protocol", V4 { proto: 254, ..v4() }.frame(&bare), Fate::Host),
        ("an error about TCP-shaped", error, Fate::IcmpError),
        ("an error about a protocol", own_error, Fate::IcmpError),
    ]);
}

#[test]
fn everything_else_is_left_to_the_host() {
    let three_tags = ethernet(&[DOT1AD, DOT1Q, DOT1Q], ETH_IPV4, &v4().packet(&tunnel()));
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &VTEP6].concat();
    let mut wrong_version = v4().frame(&tunnel());
    wrong_version[14] = 0x65;
    let mut short_header = v4().frame(&tunnel());
    short_header[14] = 0x44;
    let mut v6_wrong_version = ipv6_frame(PEER6, VTEP6, UDP, &tunnel());
    v6_wrong_version[14] = 0x40;
    check_all(vec![
        ("SSH over IPv4", V4 { proto: TCP, ..v4() }.frame(&tcp(22)), Fate::Host),
        ("SSH over IPv6", ipv6_frame(PEER6, VTEP6, TCP, &tcp(22)), Fate::Host),
        ("TCP to the tunnel port", V4 { proto: TCP, ..v4() }.frame(&tcp(VXLAN)), Fate::Host),
        ("ARP", ethernet(&[], ETH_ARP, &[0; 28]), Fate::Host),
        ("ND", ipv6_frame(PEER6, VTEP6, ICMPV6, &solicitation), Fate::Host),
        ("DNS", v4().frame(&udp(53, &[0; 30])), Fate::Host),
        ("DNS over IPv6", ipv6_frame(PEER6, VTEP6, UDP, &udp(53, &[0; 30])), Fate::Host),
        ("another IPv4 address", V4 { dst: OTHER4, ..v4() }.frame(&tunnel()), Fate::Host),
        ("another IPv6 address", ipv6_frame(PEER6, OTHER6, UDP, &tunnel()), Fate::Host),
        ("the tunnel port as source", v4().frame(&udp(50000, &[0; 30])), Fate::Host),
        ("ping", V4 { proto: ICMP, ..v4() }.frame(&icmp_error(8, 0, &[0; 56])), Fate::Host),
        ("three tags", three_tags, Fate::Host),
        ("unknown EtherType", ethernet(&[], 0x88cc, &[0; 40]), Fate::Host),
        ("tag without content", ethernet(&[], DOT1Q, &[0, 1]), Fate::Host),
        ("IPv4 of version 6", wrong_version, Fate::Host),
        ("IPv4 header of 16 bytes", short_header, Fate::Host),
        ("IPv6 of version 4", v6_wrong_version, Fate::Host),
        ("only Ethernet", ethernet(&[], ETH_IPV4, &[]), Fate::Host),
    ]);
}

#[test]
fn fragments_and_options_on_our_ports_are_dropped_and_counted() {
    let fragment = Fate::Dropped(Counter::UnderlayFragment);
    let options = Fate::Dropped(Counter::UnderlayIpv4Options);
    let first = V4 { fragment: 0x2000, ..v4() };
    let dns = udp(53, &[0; 30]);
    let router_alert = vec![0x94, 4, 0, 0];
    let with = |options: Vec<u8>| V4 { options, ..v4() };
    let first_with_options = V4 { fragment: 0x2000, ..with(router_alert.clone()) };
    check_all(vec![
        ("first fragment", first.frame(&tunnel()), fragment),
        ("first fragment with options", first_with_options.frame(&tunnel()), fragment),
        ("first fragment of DNS", first.frame(&dns), Fate::Host),
        ("later fragment", V4 { fragment: 0x2010, ..v4() }.frame(&tunnel()), Fate::Host),
        ("last fragment", V4 { fragment: 0x0010, ..v4() }.frame(&tunnel()), Fate::Host),
        ("options", with(router_alert.clone()).frame(&tunnel()), options),
        ("longest options", with(vec![1; 40]).frame(&tunnel()), options),
        ("options on DNS", with(router_alert).frame(&dns), Fate::Host),
    ]);
}

fn fragment_header(next: u8, offset_and_more: u16) -> Vec<u8> {
    let [high, low] = offset_and_more.to_be_bytes();
    vec![next, 0, high, low, 0, 0, 0, 1]
}

#[test]
fn ipv6_extension_headers_on_our_ports_are_dropped_and_counted() {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const ESP: u8 = 50;
    const AUTH: u8 = 51;
    const DESTINATION: u8 = 60;
    let dropped = Fate::Dropped(Counter::UnderlayIpv6Extension);
    let fragment = Fate::Dropped(Counter::UnderlayFragment);
    let to_vtep = |next: u8, parts: &[Vec<u8>]| ipv6_frame(PEER6, VTEP6, next, &parts.concat());
    let dns = udp(53, &[0; 30]);
    let auth = vec![UDP, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let all_three =
        [extension(ROUTING, 8), extension(DESTINATION, 24), extension(UDP, 16), tunnel()];
    let mut seven: Vec<Vec<u8>> = vec![extension(DESTINATION, 8); 6];
    seven.push(extension(UDP, 8));
    seven.push(dns.clone());
    let reaching_out = [extension(UDP, 2048), dns.clone()];
    let to_other = ipv6_frame(PEER6, OTHER6, HOP_BY_HOP, &seven.concat());
    check_all(vec![
        ("hop-by-hop", to_vtep(HOP_BY_HOP, &[extension(UDP, 8), tunnel()]), dropped),
        ("three headers", to_vtep(HOP_BY_HOP, &all_three), dropped),
        ("authentication", to_vtep(AUTH, &[auth, tunnel()]), dropped),
        ("atomic fragment", to_vtep(FRAGMENT, &[fragment_header(UDP, 0), tunnel()]), dropped),
        ("first fragment", to_vtep(FRAGMENT, &[fragment_header(UDP, 1), tunnel()]), fragment),
        ("later fragment", to_vtep(FRAGMENT, &[fragment_header(UDP, 0x109), tunnel()]), Fate::Host),
        ("hop-by-hop on DNS", to_vtep(HOP_BY_HOP, &[extension(UDP, 8), dns.clone()]), Fate::Host),
        ("options before TCP", to_vtep(DESTINATION, &[extension(TCP, 8), tcp(22)]), Fate::Host),
        ("MLD", to_vtep(HOP_BY_HOP, &[extension(ICMPV6, 8), vec![131; 24]]), Fate::Host),
        ("ESP", to_vtep(ESP, &[vec![0; 60]]), Fate::Host),
        ("a chain of seven", to_vtep(DESTINATION, &seven), dropped),
        ("a chain behind the window", to_vtep(DESTINATION, &reaching_out), dropped),
        ("a long chain to another host", to_other, Fate::Host),
        ("a chain that ends early", to_vtep(DESTINATION, &[vec![UDP, 0, 0]]), Fate::Host),
        (
            "a header longer than the frame",
            to_vtep(DESTINATION, &[vec![UDP, 9, 0, 0, 0, 0, 0, 0]]),
            Fate::Host,
        ),
    ]);
}

#[test]
fn icmp_errors_go_to_the_socket_only_if_they_quote_our_tunnel_packets() {
    let sent = V4 { src: VTEP4, dst: PEER4, ..v4() };
    let quote = |header: &V4, payload: &[u8]| header.packet(payload)[..28].to_vec();
    let ours = quote(&sent, &tunnel());
    let error = |kind, code, quoted: &[u8]| {
        V4 { src: OTHER4, proto: ICMP, ..v4() }.frame(&icmp_error(kind, code, quoted))
    };
    let quoted_fragment = V4 { fragment: 0x0010, ..sent.clone() };
    let quoted_tcp = V4 { proto: TCP, ..sent.clone() };
    let to_other = V4 { src: OTHER4, dst: OTHER4, proto: ICMP, ..v4() };
    let with_options = V4 { options: vec![1; 8], proto: ICMP, ..v4() };
    check_all(vec![
        ("fragmentation needed", error(3, 4, &ours), Fate::IcmpError),
        ("port unreachable", error(3, 3, &ours), Fate::IcmpError),
        ("host unreachable", error(3, 1, &ours), Fate::IcmpError),
        ("behind options", with_options.frame(&icmp_error(3, 4, &ours)), Fate::IcmpError),
        ("time exceeded", error(11, 0, &ours), Fate::Host),
        ("about what another sent", error(3, 4, &quote(&v4(), &tunnel())), Fate::Host),
        ("about DNS of ours", error(3, 3, &quote(&sent, &udp(53, &[0; 30]))), Fate::Host),
        ("about TCP of ours", error(3, 4, &quote(&quoted_tcp, &tcp(VXLAN))), Fate::Host),
        ("about a later fragment", error(3, 4, &quote(&quoted_fragment, &tunnel())), Fate::Host),
        ("quote cut in the ports", error(3, 4, &ours[..23]), Fate::Host),
        ("quote cut behind the ports", error(3, 4, &ours[..24]), Fate::IcmpError),
        ("to another address", to_other.frame(&icmp_error(3, 4, &ours)), Fate::Host),
    ]);
}

#[test]
fn icmpv6_errors_go_to_the_socket_only_if_they_quote_our_tunnel_packets() {
    let ours = ipv6(VTEP6, PEER6, UDP, &tunnel());
    let error =
        |kind, quoted: &[u8]| ipv6_frame(OTHER6, VTEP6, ICMPV6, &icmp_error(kind, 0, quoted));
    let others = ipv6(PEER6, VTEP6, UDP, &tunnel());
    let dns = ipv6(VTEP6, PEER6, UDP, &udp(53, &[0; 30]));
    let fragmented = [fragment_header(UDP, 1), tunnel()].concat();
    let fragment = ipv6(VTEP6, PEER6, 44, &fragmented);
    let to_other = ipv6_frame(PEER6, OTHER6, ICMPV6, &icmp_error(2, 0, &ours));
    check_all(vec![
        ("packet too big", error(2, &ours), Fate::IcmpError),
        ("destination unreachable", error(1, &ours), Fate::IcmpError),
        ("time exceeded", error(3, &ours), Fate::Host),
        ("about what another sent", error(2, &others), Fate::Host),
        ("about DNS of ours", error(1, &dns), Fate::Host),
        ("about a fragment", error(2, &fragment), Fate::Host),
        ("quote cut in the ports", error(2, &ours[..43]), Fate::Host),
        ("quote cut behind the ports", error(2, &ours[..44]), Fate::IcmpError),
        ("to another address", to_other, Fate::Host),
    ]);
}

/// Tunnel packets with the length of all headers in front of the UDP header.
fn tunnel_frames() -> Vec<(&'static str, Vec<u8>, usize)> {
    let inner4 = v4().packet(&tunnel());
    let inner6 = ipv6(PEER6, VTEP6, UDP, &tunnel());
    vec![
        ("IPv4", ethernet(&[], ETH_IPV4, &inner4), 34),
        ("IPv4, two tags", ethernet(&[DOT1AD, DOT1Q], ETH_IPV4, &inner4), 42),
        ("IPv6", ethernet(&[], ETH_IPV6, &inner6), 54),
        ("IPv6, two tags", ethernet(&[DOT1AD, DOT1Q], ETH_IPV6, &inner6), 62),
    ]
}

#[test]
fn a_tunnel_packet_cut_at_any_byte_is_dropped_once_its_port_can_be_read() {
    with_programs(|programs| {
        for (name, frame, udp_at) in tunnel_frames() {
            for len in 14..=frame.len() {
                let fate = if len < udp_at + 4 {
                    Fate::Host
                } else if len < udp_at + 8 {
                    Fate::Dropped(Counter::UnderlayTruncated)
                } else {
                    Fate::Ours
                };
                check(programs, &format!("{name}, {len} bytes"), &frame[..len], None, fate);
            }
        }
    });
}

#[test]
fn an_icmp_error_cut_at_any_byte_is_judged_by_what_is_left() {
    let sent = V4 { src: VTEP4, dst: PEER4, ..v4() };
    let quoted4 = icmp_error(3, 4, &sent.packet(&tunnel()));
    let quoted6 = icmp_error(2, 0, &ipv6(VTEP6, PEER6, UDP, &tunnel()));
    with_programs(|programs| {
        for (frame, ports_end) in [
            (V4 { proto: ICMP, ..v4() }.frame(&quoted4), 14 + 20 + 8 + 20 + 4),
            (ipv6_frame(PEER6, VTEP6, ICMPV6, &quoted6), 14 + 40 + 8 + 40 + 4),
        ] {
            for len in 14..=frame.len() {
                let fate = if len < ports_end { Fate::Host } else { Fate::IcmpError };
                check(programs, &format!("{len} bytes"), &frame[..len], None, fate);
            }
        }
    });
}

#[test]
fn headers_that_reach_into_fragments_of_the_buffer_are_judged_alike() {
    let dns = v4().frame(&udp(53, &[0; 600]));
    let options = V4 { options: vec![1; 40], ..v4() }.frame(&tunnel());
    let long = v4().frame(&udp(VXLAN, &[7; 5000]));
    with_programs(|programs| {
        for linear in (14..200).step_by(3) {
            for (name, frame, _) in tunnel_frames() {
                let linear = linear.min(frame.len());
                check(programs, name, &frame, Some(linear), Fate::Ours);
            }
            check(programs, "5,000 bytes", &long, Some(linear), Fate::Ours);
            check(programs, "DNS", &dns, Some(linear), Fate::Host);
            let dropped = Fate::Dropped(Counter::UnderlayIpv4Options);
            check(programs, "options", &options, Some(linear.min(options.len())), dropped);
        }
    });
}

#[test]
fn metadata_stands_in_front_of_our_frames_and_of_no_others() {
    with_programs(|programs| {
        let program = programs.underlay_fd().unwrap();
        let ours = v4().frame(&tunnel());
        let outcome = run(program, &ours).unwrap();
        let (meta, rest) = outcome.bytes.split_first_chunk::<{ FrameMeta::LEN }>().unwrap();
        assert_eq!(FrameMeta::from_bytes(meta), Some(FrameMeta::without_skb(1, 0)));
        assert!(rest == ours);

        let dns = v4().frame(&udp(53, &[0; 30]));
        assert!(run(program, &dns).unwrap().bytes == dns);
    });
}

#[test]
fn an_unknown_device_drops_ours_and_passes_the_rest() {
    Netns::new().run(|| {
        let mut programs = load();
        programs.set_vteps(&[VTEP4.into()]).unwrap();
        programs.set_carriers(&[Carrier::Udp(VXLAN).into()]).unwrap();
        let unknown = Fate::Dropped(Counter::UnderlayUnknownDevice);
        check(&mut programs, "ours", &v4().frame(&tunnel()), None, unknown);
        check(&mut programs, "DNS", &v4().frame(&udp(53, &[])), None, Fate::Host);
    });
}

#[test]
fn a_withdrawn_vtep_or_port_is_the_hosts_again() {
    with_programs(|programs| {
        let over4 = v4().frame(&tunnel());
        let over6 = ipv6_frame(PEER6, VTEP6, UDP, &tunnel());
        programs.set_vteps(&[VTEP6.into(), OTHER4.into()]).unwrap();
        check(programs, "old address", &over4, None, Fate::Host);
        check(programs, "kept address", &over6, None, Fate::Ours);
        let to_other = V4 { dst: OTHER4, ..v4() }.frame(&tunnel());
        check(programs, "new address", &to_other, None, Fate::Ours);
        programs.set_carriers(&[Carrier::Udp(GENEVE).into()]).unwrap();
        check(programs, "old port", &over6, None, Fate::Host);
        let geneve = ipv6_frame(PEER6, VTEP6, UDP, &udp(GENEVE, &[0; 16]));
        check(programs, "kept port", &geneve, None, Fate::Ours);
    });
}

/// One byte of a tunnel header.
fn byte(offset: u8, mask: u8, value: u8) -> HeaderTest {
    HeaderTest { offset, mask, value }
}

#[test]
fn what_no_format_identifies_is_the_hosts() {
    with_programs(|programs| {
        let vxlan = Carried { carrier: Carrier::Udp(VXLAN), tests: vec![byte(0, 0x08, 0x08)] };
        let own = |tests| Carried { carrier: Carrier::Ip(OWN), tests };
        let two = [own(vec![byte(0, 0xf0, 0x40)]), own(vec![byte(0, 0xff, 0xac), byte(3, 1, 0)])];
        let all = [&[vxlan.clone(), vxlan.clone(), Carrier::Tcp(STT).into()], &two[..]].concat();
        programs.set_carriers(&all).unwrap();
        let over_ip = |header: &[u8]| V4 { proto: OWN, ..v4() }.frame(&[header, &[0; 40]].concat());
        let over_udp = |header: &[u8]| v4().frame(&udp(VXLAN, &[header, &[0; 30]].concat()));
        let optioned = V4 { options: vec![1; 8], ..v4() };
        for (name, frame, fate) in [
            ("VXLAN", v4().frame(&tunnel()), Fate::Ours),
            ("VXLAN over IPv6", ipv6_frame(PEER6, VTEP6, UDP, &tunnel()), Fate::Ours),
            ("its port without its bit", over_udp(&[0xf7; 8]), Fate::Host),
            ("its bit", over_udp(&[0x08]), Fate::Ours),
            ("its bit, and less than any frame", v4().frame(&udp(VXLAN, &[8; 15])), Fate::Host),
            ("its port and nothing else", v4().frame(&udp(VXLAN, &[])), Fate::Host),
            (
                "the same over IPv6",
                ipv6_frame(PEER6, VTEP6, UDP, &udp(VXLAN, &[0; 30])),
                Fate::Host,
            ),
            ("not even behind options", optioned.frame(&udp(VXLAN, &[0; 30])), Fate::Host),
            ("the first of two", over_ip(&[0x4f, 0, 0, 0xff]), Fate::Ours),
            ("the second", over_ip(&[0xac, 0, 0, 0xfe]), Fate::Ours),
            ("half of the second", over_ip(&[0xac, 0, 0, 0xff]), Fate::Host),
            ("neither", over_ip(&[0x5f, 0, 0, 0]), Fate::Host),
            ("less than any frame", V4 { proto: OWN, ..v4() }.frame(&[0x4c; 15]), Fate::Host),
            ("what has no header", V4 { proto: TCP, ..v4() }.frame(&tcp(STT)), Fate::Ours),
        ] {
            check(programs, name, &frame, None, fate);
        }
        // More than the program looks at: it takes all.
        let many = (0..5).map(|n| own(vec![byte(0, 0xff, n)])).collect::<Vec<_>>();
        programs.set_carriers(&many).unwrap();
        check(programs, "one of five", &over_ip(&[9; 4]), None, Fate::Ours);
        programs.set_carriers(&[own(vec![byte(16, 0xff, 7)])]).unwrap();
        check(programs, "by the seventeenth byte", &over_ip(&[9; 4]), None, Fate::Ours);
        programs.set_carriers(&[own((0..16).map(|n| byte(n, 0xff, n)).collect())]).unwrap();
        let all: [u8; 16] = std::array::from_fn(|n| n as u8);
        check(programs, "all sixteen bytes", &over_ip(&all), None, Fate::Ours);
        for at in 0..16 {
            let mut damaged = all;
            damaged[at] ^= 0x10;
            check(programs, "one bit is wrong", &over_ip(&damaged), None, Fate::Host);
        }
    });
}

#[test]
fn damaged_frames_are_passed_or_dropped_and_each_is_counted_once() {
    const RUNS: usize = 20_000;
    with_programs(|programs| {
        let moved = moved(programs, |programs| {
            damaged(RUNS, |frame, linear| {
                let ingress = Ingress { ifindex: 1, rx_queue: 0, linear };
                let outcome = run_on(programs.underlay_fd().unwrap(), frame, ingress).unwrap();
                assert!(matches!(outcome.verdict, XDP_DROP | XDP_PASS), "{frame:02x?}");
            });
        });
        let counted = moved.iter().filter(|(name, _)| *name != Counter::UnderlayIcmpError);
        assert_eq!(counted.map(|(_, count)| count).sum::<u64>(), RUNS as u64);
        let fates = moved.len();
        assert!(fates >= 5, "the damage reaches {fates} counters only");
    });
}
