//! What the tracing program says of frames with offloads still to do, as a socket receives them.

use crate::support;

use culvert_ebpf::{Counter, FrameMeta, Gso, GsoKind, ProgramKind, Programs, XdpMode};
use support::{
    counter,
    frames::{ETH_IPV4, PEER4, PEER6, TCP, UDP, V4, VTEP6, ethernet, ipv6_frame, tcp, udp},
    inject::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Offload, send},
    load,
    netns::{Netns, linked_pair},
    tag::tag_egress,
    testrun::{Ingress, on_every_cpu, run_on},
    xsk::Receiver,
};

/// A tenant at the far end of a veth whose near end belongs to the programs.
struct Tenant {
    far: Netns,
    near: Netns,
    programs: Programs,
    receiver: Receiver,
    near_index: u32,
    far_index: u32,
}

impl Tenant {
    fn new(mode: XdpMode) -> Self {
        let (near, far) = linked_pair();
        // Nothing but the test's frames: no address, no router or neighbour solicitations.
        for (host, device) in [(&near, "n0"), (&far, "f0")] {
            host.ip(&format!("addr flush dev {device}"));
            host.ip(&format!("link set {device} addrgenmode none mtu 9000"));
        }
        let (near_index, far_index) = (near.ifindex("n0"), far.ifindex("f0"));
        let mut programs = load();
        let receiver = near.run(|| {
            programs.attach(ProgramKind::Tenant, near_index, mode, 3..4).unwrap();
            Receiver::bind(near_index)
        });
        programs.set_socket(3, receiver.fd()).unwrap();
        Self { far, near, programs, receiver, near_index, far_index }
    }

    /// What the socket receives of a frame that the tenant sends.
    fn passes(&mut self, frame: &[u8], offload: Offload) -> FrameMeta {
        let far_index = self.far_index;
        self.far.run(|| send(far_index, frame, offload));
        loop {
            let (meta, received) = self.receiver.receive().expect("the frame arrives");
            if received.len() != frame.len() {
                continue; // the tenant's own chatter, such as multicast reports
            }
            assert!(received == frame, "the frame's bytes arrive as they were sent");
            assert_eq!((meta.ifindex, meta.rx_queue), (self.near_index, 0));
            return meta;
        }
    }
}

fn superframe(gso: u8, gso_size: u16, headers: u16, checksum: (u16, u16)) -> Offload {
    Offload { gso, gso_size, headers, checksum: Some(checksum) }
}

fn tcp_payload(len: usize) -> Vec<u8> {
    let mut out = tcp(5001);
    out.extend((0..len).map(|index| index as u8));
    out
}

#[test]
fn a_superframe_arrives_whole_with_its_kind_and_segment_size() {
    let mut tenant = Tenant::new(XdpMode::Generic);
    let v4 = V4 { src: PEER4, proto: TCP, ..V4::default() };
    let over4 = v4.frame(&tcp_payload(20_000));
    let over6 = ipv6_frame(PEER6, VTEP6, TCP, &tcp_payload(30_001));
    let datagrams = V4 { proto: UDP, ..v4 }.frame(&udp(5001, &[3; 9_500]));
    for (name, frame, offload, kind) in [
        ("TCP over IPv4", over4, superframe(GSO_TCPV4, 1448, 54, (34, 16)), GsoKind::TcpV4),
        ("TCP over IPv6", over6, superframe(GSO_TCPV6, 1428, 74, (54, 16)), GsoKind::TcpV6),
        ("UDP", datagrams, superframe(GSO_UDP_L4, 1000, 42, (34, 6)), GsoKind::UdpL4),
    ] {
        let meta = tenant.passes(&frame, offload);
        let Gso { kind: seen, size, .. } = meta.gso().unwrap_or_else(|| panic!("{name}: no GSO"));
        assert_eq!((seen, size), (kind, offload.gso_size), "{name}");
        assert_eq!(meta.csum_partial(), offload.checksum, "{name}");
        assert_eq!(meta.vlan(), None, "{name}");
    }
}

#[test]
fn a_partial_checksum_is_told_from_a_finished_one() {
    let mut tenant = Tenant::new(XdpMode::Generic);
    let frame = V4::default().frame(&udp(53, &[1; 700]));
    let unfinished = Offload { gso: GSO_NONE, gso_size: 0, headers: 0, checksum: Some((34, 6)) };
    let meta = tenant.passes(&frame, unfinished);
    assert_eq!((meta.has_skb(), meta.csum_partial(), meta.gso()), (true, Some((34, 6)), None));
    let finished = Offload { checksum: None, ..unfinished };
    let meta = tenant.passes(&frame, finished);
    assert_eq!((meta.has_skb(), meta.csum_partial(), meta.gso()), (true, None, None));
}

#[test]
fn a_tag_beside_the_frame_is_reported_and_offsets_stay_those_of_its_bytes() {
    let mut tenant = Tenant::new(XdpMode::Generic);
    tag_egress(&tenant.far, "f0", 0x88a8, 3 << 13 | 100);
    let frame = V4 { proto: TCP, ..V4::default() }.frame(&tcp_payload(20_000));
    let meta = tenant.passes(&frame, superframe(GSO_TCPV4, 1448, 54, (34, 16)));
    assert_eq!(meta.vlan(), Some((0x88a8, 3 << 13 | 100)));
    assert_eq!(meta.csum_partial(), Some((34, 16)));
    assert_eq!(meta.gso().map(|gso| gso.size), Some(1448));
}

#[test]
fn a_tag_among_the_bytes_stays_there() {
    let mut tenant = Tenant::new(XdpMode::Generic);
    let packet = V4::default().packet(&udp(53, &[1; 700]));
    let frame = ethernet(&[0x8100], ETH_IPV4, &packet);
    let unfinished = Offload { gso: GSO_NONE, gso_size: 0, headers: 0, checksum: Some((38, 6)) };
    let meta = tenant.passes(&frame, unfinished);
    assert_eq!((meta.vlan(), meta.csum_partial()), (None, Some((38, 6))));
}

#[test]
fn in_native_mode_a_frame_says_that_its_buffer_was_not_seen() {
    let mut tenant = Tenant::new(XdpMode::Native);
    let frame = V4::default().frame(&udp(53, &[1; 700]));
    let unfinished = Offload { gso: GSO_NONE, gso_size: 0, headers: 0, checksum: Some((34, 6)) };
    let meta = tenant.passes(&frame, unfinished);
    assert_eq!(meta, FrameMeta::without_skb(tenant.near_index, 0));
}

#[test]
fn a_frame_is_counted_by_whether_a_socket_was_there() {
    let mut tenant = Tenant::new(XdpMode::Generic);
    let frame = V4::default().frame(&udp(53, &[1; 700]));
    let offload = Offload { gso: GSO_NONE, gso_size: 0, headers: 0, checksum: None };
    tenant.passes(&frame, offload);
    assert!(counter(&tenant.programs, Counter::TenantRedirected) >= 1);
    let dropped = counter(&tenant.programs, Counter::TenantNoSocket);

    tenant.programs.clear_socket(3).unwrap();
    let far_index = tenant.far_index;
    tenant.far.run(|| send(far_index, &frame, offload));
    assert!(counter(&tenant.programs, Counter::TenantNoSocket) > dropped);
}

#[test]
fn a_slot_takes_only_bound_sockets_and_only_within_range() {
    let mut programs = load();
    let file = std::fs::File::open("/dev/null").unwrap();
    let not_a_socket = std::os::fd::AsFd::as_fd(&file);
    let error = programs.set_socket(0, not_a_socket).unwrap_err();
    assert!(error.to_string().contains("slot 0"), "{error}");
    let error = programs.set_socket(64, not_a_socket).unwrap_err();
    assert!(error.to_string().contains("slot 64 does not exist: there are 64"), "{error}");
    assert!(programs.clear_socket(64).is_err());
}

#[test]
fn what_was_read_for_one_frame_is_never_given_to_the_next() {
    let mut tenant = Tenant::new(XdpMode::Generic);
    let frame = V4::default().frame(&udp(53, &[1; 700]));
    let unfinished = Offload { gso: GSO_NONE, gso_size: 0, headers: 0, checksum: Some((34, 6)) };
    assert!(tenant.passes(&frame, unfinished).has_skb());

    // A test run has no packet buffer that the tracing program could have read.
    let ingress = Ingress { ifindex: tenant.near_index, rx_queue: 0, linear: None };
    let program = tenant.programs.tenant_fd().unwrap();
    let expected = Some(FrameMeta::without_skb(tenant.near_index, 0));
    tenant.near.run(|| {
        on_every_cpu(|| {
            let outcome = run_on(program, &frame, ingress).unwrap();
            let meta = outcome.bytes.first_chunk::<{ FrameMeta::LEN }>().unwrap();
            assert_eq!(FrameMeta::from_bytes(meta), expected);
        });
    });
}
