//! A tenant's MSS does not bound what crosses the underlay where the far end is told it, and what is delivered has it
//! again.

use culvert_tests::segment::Segment;
use culvert_tests::tools::{
    Capture, OffloadSocket, RawSocket, VirtioHeader, tcp_transfer, tshark_complaints, tshark_fields,
};
use culvert_tests::topology::{TENANT_DEVICE, Topology, WIRE, with_vnet_lines};
use culvert_tests::{Combo, Family, Offloads, TopologySpec, craft, wait_until};
use std::time::Duration;

/// The tenant's MSS: that of an MTU of 576 with timestamps, about.
const MSS: u16 = 524;

const GENEVE: &str = "format = \"geneve\"";
const RAISED: &str = "format = \"geneve\"\nraise_mss = true";
const STT: &str = "format = \"stt\"";

/// Our option for the MSS, as it is on the wire.
fn option(mss: u16) -> Vec<u8> {
    let [a, b] = mss.to_be_bytes();
    vec![0xff, 0xc7, 1, 1, a, b, 0, 0]
}

fn topology(vnet_toml: &'static str, combo: Combo, middle: bool) -> Topology {
    let mut spec = TopologySpec::pair(combo);
    (spec.vnet_toml, spec.middle) = (vnet_toml, middle);
    let topology = spec.build();
    topology.widen_wire(100);
    topology.settle();
    topology
}

/// What is delivered of a superframe: the size of segments that its virtio header states, and its payload.
fn delivered(topology: &Topology, data: &Segment, mss: u16) -> Vec<(u16, Vec<u8>)> {
    let open = |at: usize| OffloadSocket::open(&topology.tenants[at].ns, TENANT_DEVICE).unwrap();
    let [near, far] = [open(0), open(1)];
    let (header, frame) = data.superframe(mss);
    let is_ours =
        |frame: &[u8]| frame.starts_with(&data.macs[1]) && frame.len() > data.headers_len();
    // Packets of the first attempt may be lost where sockets have just come up.
    for _ in 0..5 {
        near.send(header, &frame).unwrap();
        let (mut all, mut left) = (Vec::new(), data.payload.len());
        while left > 0 {
            let Some(got) = far.receive_matching(Duration::from_secs(2), is_ours).unwrap() else {
                break;
            };
            let payload = got.frame[data.headers_len()..].to_vec();
            left = left.saturating_sub(payload.len());
            all.push((got.header.gso_size, payload));
        }
        if left == 0 {
            return all;
        }
    }
    panic!("the superframe does not arrive");
}

/// Bytes of the frames that cross the wire of a superframe.
fn on_the_wire(topology: &Topology, data: &Segment, mss: u16) -> Vec<usize> {
    // XDP takes them at the far host before anybody else could look.
    let middle = topology.middle.as_ref().expect("a wire that can be looked into");
    let wire = RawSocket::open(middle.ns(), "left").unwrap();
    wire.keep(16 << 20).unwrap();
    let near = OffloadSocket::open(&topology.tenants[0].ns, TENANT_DEVICE).unwrap();
    let (header, frame) = data.superframe(mss);
    // Neighbours' own packets are short.
    let is_data = |frame: &[u8]| frame.len() > 180;
    let mut lengths = Vec::new();
    // A machine that does something else for a while is given time, and a second chance.
    for _ in 0..3 {
        near.send(header, &frame).unwrap();
        let mut wait = Duration::from_secs(5);
        while let Some(frame) = wire.receive_matching(wait, is_data).unwrap() {
            lengths.push(frame.len());
            wait = Duration::from_secs(1);
        }
        if !lengths.is_empty() {
            break;
        }
    }
    lengths
}

fn superframe(topology: &Topology, ipv6: bool, len: usize) -> Segment {
    let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
    let payload = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
    Segment::between(a, b, ipv6, 5000, payload)
}

fn is_raised_and_delivered(vnet_toml: &'static str) {
    for (underlay, wire) in [
        (Family::V4, Offloads::Off),
        (Family::V6, Offloads::Off),
        (Family::V4, Offloads::On),
        (Family::V6, Offloads::On),
    ] {
        let topology =
            topology(vnet_toml, Combo { underlay, wire, ..Combo::SIMPLE }, wire == Offloads::Off);
        for ipv6 in [false, true] {
            for len in [1000, 1400, 20_000, 60_000] {
                let what = format!("{vnet_toml}, underlay {underlay:?}, IPv6 {ipv6}, {len} bytes");
                let data = superframe(&topology, ipv6, len);
                if wire == Offloads::Off {
                    let lengths = on_the_wire(&topology, &data, MSS);
                    // All but the last are as long as the wire takes, as far as there is that much.
                    let most = len.div_ceil(1390);
                    assert!((1..=most).contains(&lengths.len()), "{what}: {lengths:?}");
                }
                let all = delivered(&topology, &data, MSS);
                let bytes: Vec<u8> = all.iter().flat_map(|(_, payload)| payload).copied().collect();
                assert!(bytes == data.payload, "{what}: other bytes");
                for (size, payload) in &all {
                    let wanted = if payload.len() > usize::from(MSS) { MSS } else { 0 };
                    assert!(*size == wanted || *size == MSS, "{what}: {size} of {}", payload.len());
                }
                let whole = all.iter().map(|(_, payload)| payload.len()).max();
                assert!(whole > Some(usize::from(MSS)), "{what}: nothing is merged");
            }
        }
    }
}

#[test]
fn geneve_raises_a_small_mss_and_delivers_by_it() {
    is_raised_and_delivered(RAISED);
}

#[test]
fn stt_raises_a_small_mss_and_delivers_by_it() {
    is_raised_and_delivered(STT);
}

#[test]
fn a_far_end_that_is_not_told_gets_the_tenants_segments() {
    let combo = Combo { wire: Offloads::Off, ..Combo::SIMPLE };
    let topology = topology(GENEVE, combo, true);
    let data = superframe(&topology, false, 20_000);
    let segments = 20_000usize.div_ceil(MSS.into());
    assert_eq!(on_the_wire(&topology, &data, MSS).len(), segments);
    // The network says that all far ends are ours, and a peer that this one is not.
    let vtep = topology.hosts[1].vtep;
    let except = format!("[underlay]\npeer = [{{ vtep = \"{vtep}\", raise_mss = false }}]\n");
    topology.reconfigure(0, |toml| {
        with_vnet_lines(&toml, "blue", "raise_mss = true").replacen("[underlay]\n", &except, 1)
    });
    assert_eq!(on_the_wire(&topology, &data, MSS).len(), segments);
    topology.reconfigure(0, |toml| with_vnet_lines(&toml, "blue", "raise_mss = true"));
    assert_eq!(on_the_wire(&topology, &data, MSS).len(), 20_000usize.div_ceil(1480));
    // What fits already is sent as it is.
    assert_eq!(on_the_wire(&topology, &data, 1448).len(), 20_000usize.div_ceil(1448));
}

#[test]
fn connections_of_a_small_mss_cross_in_large_packets() {
    for vnet_toml in [RAISED, STT] {
        let combo = Combo { wire: Offloads::Off, ..Combo::SIMPLE };
        let topology = topology(vnet_toml, combo, true);
        let [a, b] = [&topology.tenants[0], &topology.tenants[1]];
        // Each end tells the other an MSS of 536.
        for (ns, device) in [(&a.ns, TENANT_DEVICE), (&b.ns, TENANT_DEVICE)] {
            let subnet = format!("{}/24", std::net::Ipv4Addr::from(u32::from(a.v4) & !0xff));
            ns.run(&format!("ip route replace {subnet} dev {device} advmss 536"));
        }
        let wire = &topology.middle.as_ref().unwrap();
        let capture = Capture::start(wire.ns(), &topology.scratch, "left", "");
        let inside = Capture::start(&b.ns, &topology.scratch, TENANT_DEVICE, "tcp");
        tcp_transfer(&a.ns, &b.ns, topology.address(1), 2_000_000).unwrap();
        let (pcap, inside) = (capture.finish(), inside.finish());
        let lengths = |pcap, filter| -> Vec<usize> {
            let lines = tshark_fields(pcap, filter, &["frame.len"]).unwrap();
            lines.iter().filter_map(|line| line.trim().parse().ok()).collect()
        };
        let large = lengths(&pcap, "frame.len > 1400").len();
        assert!(large > 1000, "{vnet_toml}: {large} large packets on the wire");
        let syns = tshark_fields(&inside, "tcp.flags.syn == 1", &["tcp.options.mss_val"]).unwrap();
        assert!(syns.iter().all(|mss| mss.trim() == "536"), "{vnet_toml}: {syns:?}");
        if vnet_toml == RAISED {
            assert!(tshark_complaints(&pcap).unwrap().is_empty());
            let stated = tshark_fields(
                &pcap,
                "frame.len > 1400",
                &["geneve.option.class", "geneve.option.type", "geneve.option.unknown.data"],
            );
            let stated = stated.unwrap();
            // 524: 536 less the timestamps of each packet.
            let ours = stated.iter().filter(|line| line.contains("020c")).count();
            assert_eq!(ours, stated.len(), "{:?}", stated.first());
        }
    }
}

/// An option that lies costs its packet at most, is counted, and never makes more segments than the least MSS.
#[test]
fn what_a_hostile_option_states_is_bounded_and_counted() {
    let topology = topology(RAISED, Combo { wire: Offloads::Off, ..Combo::SIMPLE }, false);
    let wire = RawSocket::open(&topology.hosts[0].ns, WIRE).unwrap();
    let far = OffloadSocket::open(&topology.tenants[1].ns, TENANT_DEVICE).unwrap();
    let data = superframe(&topology, false, 1300);
    let inner = data.frame();
    let [from, to] = [&topology.hosts[0], &topology.hosts[1]];
    let macs = [&from.wire_mac, &to.wire_mac].map(|mac| culvert_tests::topology::mac_bytes(mac));
    let packet = |options: &[u8]| {
        let mut message = vec![(options.len() / 4) as u8, 0, 0x65, 0x58, 0, 0, 100, 0];
        message.extend(options);
        message.extend(&inner);
        craft::udp(macs, [from.vtep, to.vtep], [50_000, 6081], &message)
    };
    let arrives = || {
        let ours = |frame: &[u8]| frame.len() >= inner.len() && frame[..12] == inner[..12];
        far.receive_matching(Duration::from_millis(700), ours).unwrap()
    };
    let refused = || topology.stats(1).dropped("bad_tunnel_header");
    // Without sense, hence refused: fewer bytes than any sender's segments have; twice; too short, too long.
    let short = [0xff, 0xc7, 1, 0].to_vec();
    let long = [&[0xff, 0xc7, 1, 2][..], &[2; 8]].concat();
    let twice = [option(MSS), option(MSS)].concat();
    let hostile = [option(1), option(7), option(47), twice, short, long];
    for (n, options) in (1..).zip(&hostile) {
        wire.send(&packet(options)).unwrap();
        assert!(wait_until(Duration::from_secs(5), || refused() == n), "{options:?}");
    }
    assert!(arrives().is_none(), "what was refused is delivered");
    // 0 is no MSS, and one that is not below the payload bounds nothing: the packet goes as it came.
    for options in [Vec::new(), option(0), option(1300), option(u16::MAX)] {
        wire.send(&packet(&options)).unwrap();
        let got = arrives().unwrap_or_else(|| panic!("{options:?}: nothing arrives"));
        assert_eq!((got.header.gso_size, got.frame.len()), (0, inner.len()), "{options:?}");
        assert!(got.frame == inner, "{options:?}: other bytes");
    }
    // The least one.
    wire.send(&packet(&option(48))).unwrap();
    let got = arrives().expect("the least MSS");
    assert_eq!((got.header.gso_type, got.header.gso_size), (VirtioHeader::TCP_V4, 48));
    assert_eq!(got.frame[data.headers_len()..], inner[data.headers_len()..]);
    // A wrong inner checksum is not made right: the packet goes to the tenant as it came, or not at all.
    let mut damaged = packet(&option(536));
    let last = damaged.len() - 1;
    damaged[last] ^= 0xff;
    let udp = craft::udp_offset(from.vtep.is_ipv6());
    damaged[udp + 6..udp + 8].fill(0);
    wire.send(&damaged).unwrap();
    if let Some(got) = arrives() {
        assert_eq!((got.header.flags, got.header.gso_size), (0, 0), "laundered");
        assert_eq!(got.frame.len(), inner.len());
    }
    assert_eq!(refused(), hostile.len() as u64);
}
