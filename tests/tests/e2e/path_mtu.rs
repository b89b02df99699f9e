//! Packets above the path MTU, and how the path MTU is learned.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use culvert_tests::tools::{
    OffloadSocket, PingReport, Random, RawSocket, ping, ping_df, tcp_transfer,
};
use culvert_tests::topology::{TENANT_DEVICE, WIRE};
use culvert_tests::underlay::BETWEEN_ROUTERS;
use culvert_tests::{
    Attach, Combo, Family, Offloads, Shape, Topology, TopologySpec, craft, view, wait_until,
};

/// For what must come, and for what must not.
const PATIENCE: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(500);
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A UDP packet of `len` bytes, IP header included, from tenant 0 to tenant 1, that may not be fragmented.
fn packet(topology: &Topology, ipv6: bool, len: u32) -> Vec<u8> {
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let headers = if ipv6 { 48 } else { 28 };
    let payload = Random::bytes(len.into(), usize::try_from(len - headers).unwrap());
    let mut frame = craft::between(near, far, ipv6, 9, &payload);
    if !ipv6 {
        craft::set_df(&mut frame, true);
    }
    frame
}

/// The ICMP error that `tenant` gets for `frame`: the frame with it, and the MTU it names.
fn error_about(tenant: &RawSocket, frame: &[u8]) -> Option<(Vec<u8>, u32)> {
    tenant.drain().unwrap();
    tenant.send(frame).unwrap();
    next_error(tenant)
}

/// The next ICMP error of that kind that comes to `tenant`.
fn next_error(tenant: &RawSocket) -> Option<(Vec<u8>, u32)> {
    let is_error = |frame: &[u8]| {
        view::ip(frame).is_some_and(|ip| {
            (ip.proto == ICMP && ip.payload.starts_with(&[3, 4]))
                || (ip.proto == ICMPV6 && ip.payload.starts_with(&[2, 0]))
        })
    };
    let got = tenant.receive_matching(Duration::from_secs(1), is_error).unwrap()?;
    let payload = view::ip(&got)?.payload;
    let word = u32::from_be_bytes(*payload.get(4..)?.first_chunk()?);
    // Over IPv4 the MTU is the lower half of the word (RFC 1191, section 4).
    Some((got, if payload[0] == 3 { word & 0xffff } else { word }))
}

/// Asserts all that RFC 792, 1191, 1812 and 4443 say about an error for `frame`.
#[track_caller]
fn assert_sound(topology: &Topology, error: &[u8], frame: &[u8]) {
    let (ip, about) = (view::ip(error).unwrap(), view::ip(frame).unwrap());
    let tenant = &topology.tenants[0];
    assert_eq!(error[..6], tenant.mac_bytes());
    assert_eq!((ip.src, ip.dst), (about.dst, about.src), "not from the packet's destination");
    let quoted = &ip.payload[8..];
    assert_eq!(quoted, &frame[14..14 + quoted.len()], "the quoted packet is not what was sent");
    if ip.proto == ICMP {
        assert!(view::sums_to_zero(&ip.payload), "wrong ICMP checksum");
        assert!(view::sums_to_zero(&error[14..34]), "wrong IPv4 header checksum");
        assert!(quoted.len() >= 28 && ip.payload.len() + 20 <= 576, "{} quoted", quoted.len());
    } else {
        assert!(view::payload_sum_is_right(&ip), "wrong ICMPv6 checksum");
        assert_eq!(ip.payload.len() + 40, 1280.min(48 + frame.len() - 14), "RFC 4443, 2.4 (c)");
    }
}

fn set_wire_mtu(topology: &Topology, mtu: u32) {
    for host in &topology.hosts {
        host.ns.run(&format!("ip link set {WIRE} mtu {mtu}"));
    }
}

fn listen(topology: &Topology, dst: IpAddr) -> UdpSocket {
    let bind = || UdpSocket::bind(SocketAddr::new(dst, 9)).unwrap();
    topology.tenants[1].ns.enter(bind)
}

/// Whether the UDP payload of `frame` arrives whole at `socket`.
fn arrives(tenant: &RawSocket, frame: &[u8], socket: &UdpSocket) -> bool {
    arrives_within(PATIENCE, tenant, frame, socket)
}

fn arrives_within(time: Duration, tenant: &RawSocket, frame: &[u8], socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(time)).unwrap();
    tenant.send(frame).unwrap();
    let mut buffer = vec![0; 10_000];
    let wanted = &view::ip(frame).unwrap().payload[8..];
    socket.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == wanted)
}

/// Asks again where an answer took longer than a second, which happens on a busy machine.
#[track_caller]
fn passes_in_the_end(ask: impl Fn() -> PingReport) {
    let mut last = ask();
    let answered = wait_until(Duration::from_secs(5), || {
        last = ask();
        last.all_answered()
    });
    assert!(answered, "{}", last.output);
}

fn a_shrunk_underlay_is_told_to_tenants(underlay: Family, attach: Attach) {
    let combo = Combo { underlay, attach, ..Combo::SIMPLE };
    let topology = TopologySpec::pair(combo).build();
    topology.wait_connected(0, 1);
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let far = RawSocket::open(&topology.tenants[1].ns, TENANT_DEVICE).unwrap();
    // While it runs the underlay gets smaller by 100 bytes, and all packets with it.
    let mtu = combo.tenant_mtu - 100;
    set_wire_mtu(&topology, combo.underlay_mtu() - 100);
    for ipv6 in [false, true] {
        let full = packet(&topology, ipv6, combo.tenant_mtu);
        let mut told = None;
        wait_until(Duration::from_secs(10), || {
            told = error_about(&tenant, &full);
            told.is_some()
        });
        let (error, named) = told.expect("no ICMP error came");
        assert_eq!(named, mtu);
        assert_sound(&topology, &error, &full);

        let before = topology.stats(0);
        let above = packet(&topology, ipv6, mtu + 1);
        assert!(error_about(&tenant, &above).is_some_and(|(_, named)| named == mtu));
        let moved = topology.stats(0).drops_since(&before);
        assert_eq!(moved.get("packet_too_big"), Some(&1), "{moved:?}");
        let dst = view::ip(&full).unwrap().dst;
        let socket = listen(&topology, dst);
        assert!(arrives(&tenant, &packet(&topology, ipv6, mtu), &socket), "exactly the path MTU");
        assert!(!arrives_within(SHORT, &tenant, &above, &socket));
    }

    let mut may_be_cut = packet(&topology, false, combo.tenant_mtu);
    craft::set_df(&mut may_be_cut, false);
    let socket = listen(&topology, topology.tenants[1].v4.into());
    far.drain().unwrap();
    assert!(arrives(&tenant, &may_be_cut, &socket), "an IPv4 packet without DF is not whole");
    let mut fragments = Vec::new();
    while let Some(frame) = far.receive(Duration::ZERO).unwrap() {
        fragments.extend(view::ip(&frame).filter(|ip| ip.proto == 17));
        let ip_len = frame.len() - 14;
        assert!(u32::try_from(ip_len).unwrap() <= mtu, "a fragment of {ip_len} bytes");
        assert!(
            view::ip(&frame).is_none_or(|ip| ip.src.is_ipv6())
                || view::sums_to_zero(&frame[14..34])
        );
    }
    assert!(fragments.len() >= 2 && fragments.iter().any(|ip| ip.more_fragments), "{fragments:?}");

    drop(socket);
    superframes_of_large_datagrams(&topology, mtu);

    // The tenant's own kernel believes what it is told, and TCP goes on.
    for (dst, headers) in
        [(IpAddr::from(topology.tenants[1].v4), 28), (topology.tenants[1].v6.into(), 48)]
    {
        let ns = &topology.tenants[0].ns;
        let refused = ping_df(ns, dst, 2, combo.tenant_mtu - headers);
        assert_eq!(refused.received, 0, "{}", refused.output);
        passes_in_the_end(|| ping_df(ns, dst, 2, mtu - headers));
        // The far end's answers are too large, too: it is told by the loss of the first one.
        passes_in_the_end(|| ping(ns, dst, 2, combo.tenant_mtu - headers));
        tcp_transfer(ns, &topology.tenants[1].ns, dst, 4 << 20).unwrap();
    }

    set_wire_mtu(&topology, combo.underlay_mtu());
    let socket = listen(&topology, topology.tenants[1].v6.into());
    let full = packet(&topology, true, combo.tenant_mtu);
    let again =
        wait_until(Duration::from_secs(10), || arrives_within(SHORT, &tenant, &full, &socket));
    assert!(again, "the underlay is as large as before, the path MTU is not");
}

/// A superframe whose datagrams are each above the path MTU: they are fragmented where that is allowed, else their
/// sender is told.
fn superframes_of_large_datagrams(topology: &Topology, mtu: u32) {
    const COUNT: usize = 5;
    let size = topology.spec.combo.tenant_mtu - 60;
    let [near, far] = [&topology.tenants[0], &topology.tenants[1]];
    let tenant = OffloadSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    let errors = RawSocket::open(&near.ns, TENANT_DEVICE).unwrap();
    for (ipv6, df) in [(false, false), (false, true), (true, true)] {
        let payload = Random::bytes(8, COUNT * usize::try_from(size).unwrap());
        let mut frame = craft::between(near, far, ipv6, 9, &payload);
        if !ipv6 {
            craft::set_df(&mut frame, df);
        }
        let header = craft::as_udp_superframe(&mut frame, ipv6, u16::try_from(size).unwrap());
        let socket = listen(topology, view::ip(&frame).unwrap().dst);
        errors.drain().unwrap();
        tenant.send(header, &frame).unwrap();
        if df {
            let told = next_error(&errors);
            assert_eq!(told.map(|(_, named)| named), Some(mtu), "IPv6 {ipv6}: not told");
            socket.set_read_timeout(Some(SHORT)).unwrap();
            assert!(socket.recv(&mut [0; 2000]).is_err(), "IPv6 {ipv6}: it passed all the same");
            continue;
        }
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = Vec::new();
        let mut buffer = [0; 2000];
        for _ in 0..COUNT {
            let len = socket.recv(&mut buffer).expect("a datagram of a superframe is lost");
            assert_eq!(u32::try_from(len).unwrap(), size);
            got.extend_from_slice(&buffer[..len]);
        }
        assert!(got == payload, "datagrams of a superframe changed, or their order");
    }
}

#[test]
fn veth_tenants_are_told_of_an_ipv4_underlay_that_shrinks_while_they_talk() {
    a_shrunk_underlay_is_told_to_tenants(Family::V4, Attach::Veth);
}

#[test]
fn tap_tenants_are_told_of_an_ipv6_underlay_that_shrinks_while_they_talk() {
    a_shrunk_underlay_is_told_to_tenants(Family::V6, Attach::Tap);
}

/// The link between two routers is smaller than both wires: only ICMP errors can say so.
fn learned_from_routers(underlay: Family, wire: Offloads) {
    let combo = Combo { underlay, wire, ..Combo::SIMPLE };
    let [first, second] = [combo.underlay_mtu() - 60, combo.underlay_mtu() - 130];
    let mut spec = TopologySpec::pair(combo);
    spec.shape = Shape::Routed { mtu: first };
    let topology = spec.build();
    topology.wait_connected(0, 1);
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    for mtu in [first, second] {
        for router in &topology.routers {
            router.run(&format!("ip link set {BETWEEN_ROUTERS} mtu {mtu}"));
        }
        for dst in [IpAddr::from(b.v4), b.v6.into()] {
            // Superframes both ways at once: they are lost until the error has come.
            tcp_transfer(&a.ns, &b.ns, dst, 4 << 20)
                .unwrap_or_else(|e| panic!("{combo}, {mtu} between the routers: {e}"));
        }
        let inner = mtu - combo.encapsulation_len();
        let tenant = RawSocket::open(&a.ns, TENANT_DEVICE).unwrap();
        let mut told = None;
        wait_until(Duration::from_secs(10), || {
            told = error_about(&tenant, &packet(&topology, false, combo.tenant_mtu));
            told.as_ref().is_some_and(|(_, named)| *named == inner)
        });
        assert_eq!(told.map(|(_, named)| named), Some(inner), "{combo}");
        passes_in_the_end(|| ping_df(&a.ns, b.v4.into(), 2, inner - 28));
    }
}

#[test]
fn an_icmp_error_of_an_ipv4_router_lowers_the_path_mtu_and_superframes_go_on() {
    for wire in [Offloads::On, Offloads::Off] {
        learned_from_routers(Family::V4, wire);
    }
}

#[test]
fn an_icmp_error_of_an_ipv6_router_lowers_the_path_mtu_and_superframes_go_on() {
    for wire in [Offloads::On, Offloads::Off] {
        learned_from_routers(Family::V6, wire);
    }
}

/// Every way in which an ICMP error can be none of a packet of ours. `quoted` is one of ours, sent by host A.
fn forgeries(topology: &Topology, quoted: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let ipv6 = topology.hosts[0].vtep.is_ipv6();
    let l4 = craft::udp_offset(ipv6);
    let mtu = 1300;
    let mut list: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut quote = |what, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut quoted = quoted.to_vec();
        edit(&mut quoted);
        list.push((what, craft::too_big(topology, 1, &quoted, mtu)));
    };
    let last_byte_of = |at: usize| if ipv6 { 14 + at + 15 } else { 14 + at + 3 };
    let (src, dst) = if ipv6 { (8, 24) } else { (12, 16) };
    quote("another source", &|q| q[last_byte_of(src)] ^= 0x40);
    quote("a VTEP that nobody knows", &|q| q[last_byte_of(dst)] ^= 0x40);
    quote("another destination port", &|q| q[l4 + 3] ^= 1);
    quote("a source port that we never use", &|q| q[l4..l4 + 2].copy_from_slice(&[0, 53]));
    quote("another protocol", &|q| {
        // TCP for UDP, UDP for TCP.
        q[if ipv6 { 20 } else { 23 }] ^= 6 ^ 17;
    });
    quote("no transport header", &|q| q.truncate(l4));
    let small = if ipv6 { 1279 } else { 551 };
    for (what, mtu) in [("no MTU", 0), ("an MTU below the least", small), ("a larger MTU", 9000)] {
        list.push((what, craft::too_big(topology, 1, quoted, mtu)));
    }
    let mut damaged = craft::too_big(topology, 1, quoted, mtu);
    let at = 14 + if ipv6 { 40 } else { 20 } + 2;
    damaged[at] ^= 0xff;
    list.push(("a wrong checksum", damaged));
    list
}

#[test]
fn a_forged_icmp_error_changes_nothing_and_a_true_one_does() {
    for underlay in [Family::V4, Family::V6] {
        let combo = Combo { underlay, ..Combo::SIMPLE };
        let topology = TopologySpec::pair(combo).build();
        topology.wait_connected(0, 1);
        let tunnelled = |frame: &[u8]| craft::tunnelled(&topology, 0, 100, frame);
        only_the_true_error_is_believed(&topology, combo.encapsulation_len(), tunnelled);
    }
}

/// Sends host A errors about its packets, of which `tunnelled` makes one, that take so many bytes beside the inner
/// IP packet.
#[track_caller]
pub(crate) fn only_the_true_error_is_believed(
    topology: &Topology,
    encapsulation_len: u32,
    tunnelled: impl Fn(&[u8]) -> Vec<u8>,
) {
    let wire = RawSocket::open(&topology.hosts[1].ns, WIRE).unwrap();
    let full = packet(topology, false, topology.spec.combo.tenant_mtu);
    let quoted = tunnelled(&full);
    let tenant = RawSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let socket = listen(topology, topology.tenants[1].v4.into());
    for (what, forged) in forgeries(topology, &quoted) {
        wire.send(&forged).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(arrives(&tenant, &full, &socket), "believed: {what}");
    }
    // The control: the same error without a lie.
    wire.send(&craft::too_big(topology, 1, &quoted, 1400)).unwrap();
    let mut told = None;
    wait_until(Duration::from_secs(10), || {
        told = error_about(&tenant, &full);
        told.is_some()
    });
    assert_eq!(told.map(|(_, named)| named), Some(1400 - encapsulation_len));
}
