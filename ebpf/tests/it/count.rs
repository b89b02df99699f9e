//! The counting receiver, by test runs: a frame in, a verdict and totals out.

use crate::support;

use culvert_ebpf::{CountProgram, CountVerdict, XdpMode};
use support::{
    XDP_DROP, XDP_PASS,
    frames::{
        DOT1Q, ETH_ARP, ETH_IPV4, PEER6, TCP, UDP, V4, VTEP6, damaged, ethernet, extension,
        ipv6_frame, tcp, udp,
    },
    netns::Netns,
    testrun::run,
};

const PORT: u16 = 4000;

/// Attached to `lo` of a namespace of its own, where nothing arrives but test runs.
fn with_count(verdict: CountVerdict, port: Option<u16>, test: impl FnOnce(&CountProgram) + Send) {
    Netns::new().run(|| {
        let count = CountProgram::load_and_attach(1, XdpMode::Generic, verdict, port).unwrap();
        assert_eq!(count.read(), (0, 0));
        test(&count);
    });
}

#[test]
fn only_datagrams_to_the_port_are_counted_and_the_rest_is_the_hosts() {
    let v4 = V4::default();
    let ours = udp(PORT, &[7; 100]);
    let counted = [
        ("IPv4", v4.frame(&ours)),
        ("IPv6", ipv6_frame(PEER6, VTEP6, UDP, &ours)),
        ("without payload", v4.frame(&udp(PORT, &[]))),
        ("a first fragment", V4 { fragment: 0x2000, ..v4.clone() }.frame(&ours)),
        ("long", v4.frame(&udp(PORT, &[7; 3000]))),
    ];
    let left = [
        ("another port", v4.frame(&udp(PORT + 1, &[7; 100]))),
        ("another port over IPv6", ipv6_frame(PEER6, VTEP6, UDP, &udp(PORT + 1, &[7; 100]))),
        ("TCP", V4 { proto: TCP, ..v4.clone() }.frame(&tcp(PORT))),
        ("TCP over IPv6", ipv6_frame(PEER6, VTEP6, TCP, &tcp(PORT))),
        ("a tag", ethernet(&[DOT1Q], ETH_IPV4, &v4.packet(&ours))),
        ("options", V4 { options: vec![1; 8], ..v4.clone() }.frame(&ours)),
        ("a later fragment", V4 { fragment: 0x2010, ..v4.clone() }.frame(&ours)),
        ("an extension header", {
            ipv6_frame(PEER6, VTEP6, 0, &[extension(UDP, 8), ours.clone()].concat())
        }),
        ("a UDP header cut short", v4.frame(&ours[..7])),
        ("the same over IPv6", ipv6_frame(PEER6, VTEP6, UDP, &ours[..7])),
        ("an IP header cut short", v4.frame(&ours)[..30].to_vec()),
        ("ARP", ethernet(&[], ETH_ARP, &[0; 28])),
    ];
    for (verdict, shown) in [(CountVerdict::Drop, XDP_DROP), (CountVerdict::Pass, XDP_PASS)] {
        with_count(verdict, Some(PORT), |count| {
            let mut expected = (0, 0);
            for (name, frame) in &counted {
                assert_eq!(run(count.fd().unwrap(), frame).unwrap().verdict, shown, "{name}");
                expected = (expected.0 + 1, expected.1 + frame.len() as u64);
                assert_eq!(count.read(), expected, "{name}");
            }
            for (name, frame) in &left {
                assert_eq!(run(count.fd().unwrap(), frame).unwrap().verdict, XDP_PASS, "{name}");
                assert_eq!(count.read(), expected, "{name}");
            }
        });
    }
}

#[test]
fn without_a_port_every_frame_is_counted_however_damaged() {
    for (verdict, shown) in [(CountVerdict::Drop, XDP_DROP), (CountVerdict::Pass, XDP_PASS)] {
        with_count(verdict, None, |count| {
            let mut expected = (0, 0);
            damaged(2000, |frame, _| {
                assert_eq!(run(count.fd().unwrap(), frame).unwrap().verdict, shown);
                expected = (expected.0 + 1, expected.1 + frame.len() as u64);
            });
            assert_eq!(count.read(), expected);
        });
    }
}
