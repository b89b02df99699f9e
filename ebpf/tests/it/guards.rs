//! The guards that stand behind XDP, by test runs: they drop what XDP would have taken.

use crate::support;

use culvert_ebpf::{Carrier, Counter, ProgramKind, Programs};
use support::{
    TC_ACT_SHOT, TC_ACT_UNSPEC, XDP_PASS, counter,
    frames::{
        DOT1AD, DOT1Q, ETH_ARP, ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, PEER4, PEER6, TCP, UDP, V4,
        VTEP4, VTEP6, VXLAN, damaged, ethernet, extension, icmp_error, ipv6, ipv6_frame, tcp,
        tunnel, udp,
    },
    load, moved,
    netns::Netns,
    testrun::{classifier_takes, run, run_classifier},
};

fn with_programs(test: impl FnOnce(&mut Programs) + Send) {
    Netns::new().run(|| {
        let mut programs = load();
        programs.set_vteps(&[VTEP4.into(), VTEP6.into()]).unwrap();
        programs.set_carriers(&[Carrier::Udp(VXLAN).into()]).unwrap();
        test(&mut programs);
    });
}

/// The guard's verdict on a frame; it must leave the frame as it is, and count what it drops.
fn guarded(programs: &mut Programs, kind: ProgramKind, name: &str, frame: &[u8]) -> u32 {
    let before = counter(programs, Counter::GuardDropped);
    let mut verdict = 0;
    let others = moved(programs, |programs| {
        let outcome = run_classifier(programs.guard_fd(kind).unwrap(), frame);
        let outcome = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(outcome.bytes == frame, "{name}: the guard changed the frame");
        verdict = outcome.verdict;
    });
    assert_eq!(others, [], "{name}: a guard counts only what it drops");
    let dropped = counter(programs, Counter::GuardDropped) - before;
    assert_eq!(dropped, u64::from(verdict == TC_ACT_SHOT), "{name}: verdict {verdict}");
    verdict
}

#[test]
fn the_tenants_guard_drops_and_counts_every_frame() {
    with_programs(|programs| {
        let mut frames: Vec<Vec<u8>> = vec![
            V4::default().frame(&tunnel()),
            V4 { proto: TCP, ..V4::default() }.frame(&tcp(22)),
            ipv6_frame(PEER6, VTEP6, TCP, &tcp(22)),
            ethernet(&[], ETH_ARP, &[0; 28]),
            ethernet(&[DOT1AD, DOT1Q], ETH_IPV4, &V4::default().packet(&tunnel())),
            ethernet(&[], 0x88cc, &[0; 40]),
        ];
        frames.extend((15..300).map(|len| vec![0xff; len]));
        damaged(2000, |frame, _| frames.push(frame.to_vec()));
        for frame in frames.iter().filter(|frame| classifier_takes(frame)) {
            let verdict = guarded(programs, ProgramKind::Tenant, "a tenant's frame", frame);
            assert_eq!(verdict, TC_ACT_SHOT, "{frame:02x?}");
        }
    });
}

#[test]
fn the_underlays_guard_drops_what_is_the_overlays_and_leaves_the_rest_to_the_host() {
    let v4 = V4::default();
    let sent = V4 { src: VTEP4, dst: PEER4, ..v4.clone() };
    let inner6 = ipv6(PEER6, VTEP6, UDP, &tunnel());
    let too_big4 = icmp_error(3, 4, &sent.packet(&tunnel()));
    let too_big6 = icmp_error(2, 0, &ipv6(VTEP6, PEER6, UDP, &tunnel()));
    let extended = [extension(UDP, 8), tunnel()].concat();
    let other = V4 { dst: [192, 0, 2, 99], ..v4.clone() };
    let echo = icmp_error(8, 0, &[0; 56]);
    let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &VTEP6].concat();
    let mut lies = v4.frame(&tunnel());
    lies[14] = 0x44;
    let cut_behind_tag = ethernet(&[DOT1Q], ETH_IPV4, &v4.packet(&tunnel())[..15]);
    let overlays = [
        ("tunnel over IPv4", v4.frame(&tunnel())),
        ("tunnel over IPv6", ethernet(&[], ETH_IPV6, &inner6)),
        ("tunnel behind two tags", ethernet(&[DOT1AD, DOT1Q], ETH_IPV6, &inner6)),
        ("longer than what is looked at", v4.frame(&udp(VXLAN, &[1; 1400]))),
        ("an error about a tunnel packet", V4 { proto: ICMP, ..v4.clone() }.frame(&too_big4)),
        ("the same over IPv6", ipv6_frame(PEER6, VTEP6, ICMPV6, &too_big6)),
        ("a first fragment", V4 { fragment: 0x2000, ..v4.clone() }.frame(&tunnel())),
        ("options", V4 { options: vec![1; 8], ..v4.clone() }.frame(&tunnel())),
        ("an extension header", ipv6_frame(PEER6, VTEP6, 0, &extended)),
        ("a UDP header cut short", v4.frame(&tunnel()[..5])),
    ];
    let hosts = [
        ("SSH over IPv4", V4 { proto: TCP, ..v4.clone() }.frame(&tcp(22))),
        ("SSH over IPv6", ipv6_frame(PEER6, VTEP6, TCP, &tcp(22))),
        ("TCP to the tunnel port", V4 { proto: TCP, ..v4.clone() }.frame(&tcp(VXLAN))),
        ("DNS", v4.frame(&udp(53, &[0; 30]))),
        ("a tunnel packet to another host", other.frame(&tunnel())),
        ("ARP", ethernet(&[], ETH_ARP, &[0; 28])),
        ("neighbour discovery", ipv6_frame(PEER6, VTEP6, ICMPV6, &solicitation)),
        ("ping", V4 { proto: ICMP, ..v4.clone() }.frame(&echo)),
        ("a later fragment", V4 { fragment: 0x2010, ..v4.clone() }.frame(&tunnel())),
        ("an unknown EtherType", ethernet(&[], 0x88cc, &[0; 40])),
        ("a tag without content", ethernet(&[], DOT1Q, &[0, 1])),
        ("a header length that lies", lies),
        ("an IPv4 header cut short behind a tag", cut_behind_tag),
        ("ports cut short", v4.frame(&tunnel()[..3])),
    ];
    with_programs(|programs| {
        for (frames, expected) in [(&overlays[..], TC_ACT_SHOT), (&hosts[..], TC_ACT_UNSPEC)] {
            for (name, frame) in frames {
                let verdict = guarded(programs, ProgramKind::Underlay, name, frame);
                assert_eq!(verdict, expected, "{name}");
            }
        }
    });
}

#[test]
fn the_underlays_guard_and_the_underlay_program_agree_on_damaged_frames() {
    with_programs(|programs| {
        let (mut passed, mut dropped) = (0, 0);
        damaged(20_000, |frame, _| {
            if !classifier_takes(frame) {
                return;
            }
            let by_xdp = run(programs.underlay_fd().unwrap(), frame).unwrap().verdict;
            let by_guard = guarded(programs, ProgramKind::Underlay, "damaged", frame);
            let expected = if by_xdp == XDP_PASS { TC_ACT_UNSPEC } else { TC_ACT_SHOT };
            assert_eq!(by_guard, expected, "{frame:02x?}");
            *(if by_xdp == XDP_PASS { &mut passed } else { &mut dropped }) += 1;
        });
        assert!(passed > 1000 && dropped > 1000, "{passed} passed, {dropped} dropped");
    });
}

#[test]
fn packet_sockets_hear_what_xdp_would_take_and_the_host_does_not_get_it() {
    // A test run takes an Ethernet header off before it runs a socket's filter; a socket's frames have theirs.
    let with_header =
        |frame: &[u8]| [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5], frame].concat();
    with_programs(|programs| {
        let (mut heard, mut left, mut dropped) = (0, 0, 0);
        damaged(20_000, |frame, _| {
            if !classifier_takes(frame) {
                return;
            }
            let mut by_xdp = 0;
            let mut counted = moved(programs, |programs| {
                by_xdp = run(programs.underlay_fd().unwrap(), frame).unwrap().verdict;
            });
            // There is a socket that hears, as opposed to one in a slot.
            for (counter, _) in &mut counted {
                if *counter == Counter::UnderlayUnknownDevice {
                    *counter = Counter::UnderlayRedirected;
                }
            }
            let is_ours =
                counted.iter().any(|(counter, _)| *counter == Counter::UnderlayRedirected);
            let mut hears = 0;
            let by_filter = moved(programs, |programs| {
                let filter = programs.filter_fd().unwrap();
                hears = run_classifier(filter, &with_header(frame)).unwrap().verdict;
            });
            counted.sort();
            let mut by_filter = by_filter;
            by_filter.sort();
            assert_eq!(by_filter, counted, "{frame:02x?}");
            assert_eq!(hears, if is_ours { u32::MAX } else { 0 }, "{frame:02x?}");
            let mut hides = 0;
            let silent = moved(programs, |programs| {
                hides = run_classifier(programs.hide_fd().unwrap(), frame).unwrap().verdict;
            });
            assert_eq!(silent, [], "the filter has counted it");
            assert_eq!(hides == TC_ACT_SHOT, by_xdp != XDP_PASS, "{frame:02x?}");
            assert!(hides == TC_ACT_SHOT || hides == TC_ACT_UNSPEC);
            *(match (is_ours, by_xdp) {
                (true, _) => &mut heard,
                (false, XDP_PASS) => &mut left,
                _ => &mut dropped,
            }) += 1;
        });
        assert!(heard > 1000 && left > 1000 && dropped > 100, "{heard}, {left}, {dropped}");
    });
}
