//! The tenant program, by test runs: all frames go to a socket, or nowhere.

use crate::support;

use culvert_ebpf::{Counter, FrameMeta, ProgramKind, XdpMode};
use support::{
    XDP_DROP,
    frames::{V4, tunnel},
    load, moved,
    netns::Netns,
    testrun::{Ingress, run, run_on},
};

#[test]
fn frames_of_any_content_and_length_are_dropped_without_a_socket() {
    let host = Netns::new();
    host.run(|| {
        let mut programs = load();
        programs.attach(ProgramKind::Tenant, 1, XdpMode::Generic, 0..1).unwrap();
        let mut random: u32 = 0x9e37_79b9;
        let mut runs = 0;
        for len in (14..300).chain([1514, 3000, 9014]) {
            for pattern in 0..3 {
                let frame: Vec<u8> = (0..len)
                    .map(|_| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        [0, 0xff, (random >> 24) as u8][pattern]
                    })
                    .collect();
                let outcome = run(programs.tenant_fd().unwrap(), &frame).unwrap();
                assert_eq!(outcome.verdict, XDP_DROP, "{len} bytes of pattern {pattern}");
                runs += 1;
            }
        }
        let dropped = support::counter(&programs, Counter::TenantNoSocket);
        assert_eq!(dropped, runs);
    });
}

#[test]
fn metadata_stands_directly_in_front_of_the_untouched_frame() {
    let host = Netns::new();
    host.run(|| {
        let mut programs = load();
        programs.attach(ProgramKind::Tenant, 1, XdpMode::Native, 0..1).unwrap_err();
        programs.attach(ProgramKind::Tenant, 1, XdpMode::Generic, 0..1).unwrap();
        for frame in [V4::default().frame(&tunnel()), vec![0x5a; 9014]] {
            let outcome = run(programs.tenant_fd().unwrap(), &frame).unwrap();
            let (meta, rest) = outcome.bytes.split_first_chunk::<{ FrameMeta::LEN }>().unwrap();
            assert_eq!(FrameMeta::from_bytes(meta), Some(FrameMeta::without_skb(1, 0)));
            assert!(rest == frame);
        }
    });
}

#[test]
fn an_unknown_device_is_dropped_and_counted() {
    let host = Netns::new();
    host.run(|| {
        let mut programs = load();
        let moved = moved(&mut programs, |programs| {
            let outcome = run(programs.tenant_fd().unwrap(), &[0; 60]).unwrap();
            assert_eq!(outcome.verdict, XDP_DROP);
            assert_eq!(outcome.bytes.len(), 60, "no metadata for a frame that goes nowhere");
        });
        assert_eq!(moved, [(Counter::TenantUnknownDevice, 1)]);
    });
}

#[test]
fn a_queue_whose_slot_is_another_devices_is_dropped_and_counted() {
    let host = Netns::new();
    host.ip("link add q0 numrxqueues 4 type veth peer name q1 numrxqueues 4");
    let (ifindex, other) = (host.ifindex("q0"), host.ifindex("q1"));
    host.run(|| {
        let mut programs = load();
        programs.attach(ProgramKind::Tenant, ifindex, XdpMode::Generic, 8..10).unwrap();
        programs.attach(ProgramKind::Tenant, other, XdpMode::Generic, 10..11).unwrap();
        for (rx_queue, expected) in [
            (0, Counter::TenantNoSocket),
            (1, Counter::TenantNoSocket),
            (2, Counter::TenantQueueOutOfRange),
            (3, Counter::TenantQueueOutOfRange),
        ] {
            let moved = moved(&mut programs, |programs| {
                let ingress = Ingress { ifindex, rx_queue, linear: None };
                let outcome = run_on(programs.tenant_fd().unwrap(), &[0; 60], ingress).unwrap();
                assert_eq!(outcome.verdict, XDP_DROP);
            });
            assert_eq!(moved, [(expected, 1)], "queue {rx_queue}");
        }
    });
}
