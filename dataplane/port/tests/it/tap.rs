//! TAP devices: the namespace that owns the device is the tenant.

use crate::support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use culvert_port::{Arena, Buf, FrameCache, Tap, TapError, TapOptions, VnetHdr};
use support::far::send_segmented;
use support::frames::{L4, plain, udp_partial};
use support::netns::{FAR_MAC, Netns};
use support::{PATIENCE, packet};

/// A TAP device `f0` with the tenant's addresses, in the namespace of the calling thread.
struct TapRig {
    arena: &'static Arena,
    cache: FrameCache,
    tap: Tap,
    netns: Netns,
}

impl TapRig {
    fn new(options: TapOptions) -> Self {
        let netns = Netns::new();
        netns.enter();
        let tap = Tap::open("f0", options).unwrap();
        netns.ip("link set f0 addrgenmode none address 02:00:00:00:00:02 up");
        netns.ip("addr add 192.0.2.2/24 dev f0");
        netns.ip("neigh replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev f0 nud permanent");
        let arena = Arena::new(256).unwrap();
        Self { arena, cache: FrameCache::new(arena), tap, netns }
    }

    fn receive(&mut self, accept: impl Fn(&Buf) -> bool) -> (Buf, VnetHdr) {
        let deadline = Instant::now() + PATIENCE;
        let mut got = Vec::new();
        loop {
            assert!(Instant::now() < deadline, "no packet: {:?}", self.tap.stats());
            if self.tap.receive(&mut self.cache, 1, &mut got) == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
            if let Some((buf, hdr)) = got.pop() {
                if accept(&buf) {
                    return (buf, hdr);
                }
                self.cache.free_buf(buf);
            }
        }
    }

    fn finish(self) {
        let Self { arena, cache, tap, .. } = self;
        let mut cache = cache;
        assert!(arena.stats().is_whole(cache.len() + tap.outstanding()));
        tap.close(&mut cache);
        drop(cache);
        assert!(arena.stats().is_whole(0));
    }
}

fn is_udp(buf: &Buf) -> bool {
    let data = buf.head().data();
    data.get(12..14) == Some(&[8, 0]) && data.get(23) == Some(&17)
}

#[test]
fn datagrams_and_superframes_of_the_tenant_are_read_with_their_offloads() {
    let mut rig = TapRig::new(TapOptions::default());
    assert!(rig.tap.has_uso());
    let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
    socket.send_to(b"hello", "192.0.2.1:4000").unwrap();
    let (buf, hdr) = rig.receive(is_udp);
    assert_eq!(buf.to_vec()[L4 + 8..], *b"hello");
    assert_eq!(hdr.partial_csum(), Some((L4 as u16, 6)));
    assert_eq!(hdr.gso_type, VnetHdr::GSO_NONE);
    assert!(buf.head().headroom() >= 128, "room for the outer headers");
    rig.cache.free_buf(buf);

    let payload: Vec<u8> = (0..63_000u32).map(|i| (i / 1400) as u8).collect();
    send_segmented(&socket, "192.0.2.1:4000", &payload, 1400);
    let (buf, hdr) = rig.receive(is_udp);
    assert_eq!(buf.to_vec()[L4 + 8..], payload);
    assert!(buf.frame_count() <= 17 && buf.is_multi());
    assert_eq!((hdr.gso_kind(), hdr.gso_size), (VnetHdr::GSO_UDP_L4, 1400));
    rig.cache.free_buf(buf);
    rig.finish();
}

#[test]
fn without_offloads_the_tenant_sends_finished_frames() {
    let mut rig = TapRig::new(TapOptions { offloads: false, ..TapOptions::default() });
    let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
    send_segmented(&socket, "192.0.2.1:4000", &[1; 2000], 1000);
    for _ in 0..2 {
        let (buf, hdr) = rig.receive(is_udp);
        assert_eq!(buf.len(), L4 + 8 + 1000);
        assert_eq!(hdr, VnetHdr::default());
        rig.cache.free_buf(buf);
    }
    rig.finish();
}

#[test]
fn what_is_flushed_arrives_at_the_tenants_socket() {
    let mut rig = TapRig::new(TapOptions::default());
    let socket = UdpSocket::bind("192.0.2.2:7000").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let partial = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        csum_start: L4 as u16,
        csum_offset: 6,
        ..VnetHdr::default()
    };
    let single = packet(&mut rig.cache, &udp_partial(true, 7000, b"single"), 3840);
    rig.tap.send(partial, single).unwrap();
    let superframe = VnetHdr {
        gso_type: VnetHdr::GSO_UDP_L4,
        gso_size: 1000,
        hdr_len: L4 as u16 + 8,
        ..partial
    };
    let large = packet(&mut rig.cache, &udp_partial(true, 7000, &[5; 20_000]), 3840);
    rig.tap.send(superframe, large).unwrap();
    let bad = packet(&mut rig.cache, &plain(true, 60, 1), 3840);
    rig.tap.send(VnetHdr { gso_type: 77, gso_size: 10, ..partial }, bad).unwrap();
    let outcome = rig.tap.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.refused, outcome.dropped()), (2, 1, 1));
    let mut got = [0; 2000];
    assert_eq!(socket.recv(&mut got).unwrap(), 6);
    for _ in 0..20 {
        assert_eq!(socket.recv(&mut got).unwrap(), 1000);
    }
    rig.finish();
}

#[test]
fn a_device_down_or_deleted_is_counted_and_nothing_is_lost() {
    let mut rig = TapRig::new(TapOptions::default());
    rig.netns.ip("link set f0 down");
    let mut out = Vec::new();
    for _ in 0..2 {
        let buf = packet(&mut rig.cache, &plain(true, 100, 1), 3840);
        rig.tap.send(VnetHdr::default(), buf).unwrap();
    }
    let outcome = rig.tap.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.down), (0, 2));
    rig.netns.ip("link del f0");
    assert_eq!(rig.tap.receive(&mut rig.cache, 8, &mut out), 0);
    assert!(rig.tap.stats().rx_down > 0);
    let buf = packet(&mut rig.cache, &plain(true, 100, 1), 3840);
    rig.tap.send(VnetHdr::default(), buf).unwrap();
    assert_eq!(rig.tap.flush(&mut rig.cache).down, 1);
    rig.finish();
}

#[test]
fn a_device_survives_its_process_only_when_persistent() {
    let rig = TapRig::new(TapOptions { persist: true, ..TapOptions::default() });
    let netns_has_device = |rig: &Netns| rig.ip("link show").contains("f0");
    assert!(matches!(Tap::open("f0", TapOptions::default()), Err(TapError::Busy { .. })));
    let multi = TapOptions { multi_queue: true, ..TapOptions::default() };
    assert!(matches!(Tap::open("f0", multi), Err(TapError::OtherKind { .. })));
    assert!(matches!(Tap::open("lo", multi), Err(TapError::OtherKind { .. })));
    assert!(matches!(Tap::open("no/name", multi), Err(TapError::Device(_))));
    let TapRig { tap, mut cache, netns, .. } = rig;
    tap.close(&mut cache);
    assert!(netns_has_device(&netns));
    let again = Tap::open("f0", TapOptions::default()).unwrap();
    again.close(&mut cache);
    assert!(!netns_has_device(&netns));
}

#[test]
fn an_exhausted_arena_puts_reading_off_without_losing_the_packet() {
    let mut rig = TapRig::new(TapOptions::default());
    let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
    let hoard: Vec<_> = std::iter::from_fn(|| rig.cache.alloc()).collect();
    socket.send_to(b"patience", "192.0.2.1:4000").unwrap();
    let mut out = Vec::new();
    assert_eq!(rig.tap.receive(&mut rig.cache, 1, &mut out), 0);
    assert_eq!(rig.tap.stats().rx_starved, 1);
    hoard.into_iter().for_each(|frame| rig.cache.free(frame));
    let (buf, _) = rig.receive(is_udp);
    assert_eq!(buf.to_vec()[L4 + 8..], *b"patience");
    assert_eq!(buf.head().data()[6..12], FAR_MAC);
    rig.cache.free_buf(buf);
    rig.finish();
}

#[test]
fn every_queue_of_a_device_sends_and_what_comes_arrives_on_one_of_them() {
    let options = TapOptions { multi_queue: true, ..TapOptions::default() };
    let mut rig = TapRig::new(options);
    let mut second = Tap::open("f0", options).unwrap();
    let socket = UdpSocket::bind("192.0.2.2:7000").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hdr = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        csum_start: L4 as u16,
        csum_offset: 6,
        ..VnetHdr::default()
    };
    let mut got = [0; 10];
    for (queue, text) in [(&mut rig.tap, b"one"), (&mut second, b"two")] {
        let buf = packet(&mut rig.cache, &udp_partial(true, 7000, text), 3840);
        queue.send(hdr, buf).unwrap();
        assert_eq!(queue.flush(&mut rig.cache).sent, 1);
        assert_eq!(socket.recv(&mut got).unwrap(), 3);
        assert_eq!(&got[..3], text);
    }
    for _ in 0..32 {
        let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
        socket.send_to(b"either", "192.0.2.1:4000").unwrap();
    }
    let mut arrived = Vec::new();
    let both = rig.tap.receive(&mut rig.cache, 64, &mut arrived)
        + second.receive(&mut rig.cache, 64, &mut arrived);
    assert_eq!(both, arrived.len());
    assert_eq!(arrived.iter().filter(|(buf, _)| is_udp(buf)).count(), 32);
    arrived.into_iter().for_each(|(buf, _)| rig.cache.free_buf(buf));
    second.close(&mut rig.cache);
    rig.finish();
}
