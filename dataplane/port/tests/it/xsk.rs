//! AF_XDP sockets on a veth whose other end is a tenant: packets in, packets out.

use crate::support;

use std::net::UdpSocket;
use std::time::Duration;

use culvert_ebpf::GsoKind;
use culvert_port::{
    Arena, BindMode, Buf, BusyPoll, CsumRequest, FrameCache, Kick, PacketOptions, PacketTx,
    VnetHdr, Xsk, XskConfig, XskError,
};
use support::far::{RawSocket, send_segmented};
use support::frames::{L4, is_plain, plain, tcp_partial, udp_partial};
use support::{Rig, eventually, meta, packet};

fn plain_buf(buf: &Buf) -> bool {
    is_plain(buf.head().data())
}

const SIZES: [usize; 12] = [64, 65, 128, 1500, 1514, 3839, 3840, 3841, 7680, 7681, 8999, 9014];

#[test]
fn frames_of_every_size_are_received_as_sent() {
    let mut rig = Rig::new(9000);
    let far = RawSocket::open(&rig.far);
    for (i, size) in SIZES.into_iter().enumerate() {
        far.send(&plain(false, size, i as u8)).unwrap();
    }
    let got = rig.receive(SIZES.len(), plain_buf);
    for (i, (buf, size)) in got.into_iter().zip(SIZES).enumerate() {
        assert_eq!(buf.to_vec(), plain(false, size, i as u8), "{size} bytes");
        assert_eq!(buf.frame_count(), size.div_ceil(3840), "{size} bytes");
        assert_eq!(meta(&buf).ifindex, rig.ifindex);
        rig.cache.free_buf(buf);
    }
    assert_eq!(rig.xsk.stats().rx_packets, SIZES.len() as u64);
    rig.finish();
}

#[test]
fn frames_of_every_size_and_split_are_sent_as_they_are() {
    let mut rig = Rig::new(9000);
    let far = RawSocket::open(&rig.far);
    for size in SIZES {
        for piece in [size.div_ceil(18), 1000, 3840] {
            if size.div_ceil(piece) > rig.xsk.max_tx_frames() {
                continue;
            }
            let bytes = plain(true, size, piece as u8);
            let buf = rig.buf(&bytes, piece);
            rig.xsk.transmit(buf, None).unwrap();
            rig.send_all();
            assert_eq!(far.receive_plain(), bytes, "{size} bytes in pieces of {piece}");
        }
    }
    rig.xsk.reap(&mut rig.cache);
    let stats = rig.xsk.stats();
    assert_eq!((stats.kernel_tx_invalid, stats.kick_dropped, stats.tx_unsendable), (0, 0, 0));
    eventually("all frames come back", || {
        rig.xsk.reap(&mut rig.cache);
        let stats = rig.xsk.stats();
        stats.tx_completed == stats.tx_frames
    });
    rig.finish();
}

#[test]
fn a_received_frame_leaves_again_without_a_copy() {
    let mut rig = Rig::new(1500);
    let far = RawSocket::open(&rig.far);
    far.send(&plain(false, 1000, 9)).unwrap();
    let mut buf = rig.receive(1, plain_buf).remove(0);
    let address = buf.head().data().as_ptr();
    buf.head_mut().push_front(14).unwrap().copy_from_slice(&plain(true, 15, 0)[..14]);
    assert_eq!(buf.head().data()[14..].as_ptr(), address);
    rig.xsk.transmit(buf, None).unwrap();
    rig.send_all();
    assert_eq!(far.receive_plain()[14..], plain(false, 1000, 9));
    rig.finish();
}

#[test]
fn a_tcp_superframe_arrives_whole_with_its_mss() {
    let mut rig = Rig::new(1500);
    let frame = tcp_partial(false, 80, &vec![0x5a; 60_000]);
    let hdr = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: L4 as u16,
        csum_offset: 16,
    };
    let far_index = rig.far.ifindex("f0");
    let outcome = rig.far.run(|| {
        let mut cache = FrameCache::new(Arena::new(64).unwrap());
        let mut tx = PacketTx::open(far_index, PacketOptions::default()).unwrap();
        tx.send(hdr, packet(&mut cache, &frame, 3840)).unwrap();
        tx.flush(&mut cache)
    });
    assert_eq!((outcome.sent, outcome.dropped()), (1, 0));
    let buf = rig.receive(1, |b| b.len() > 10_000).remove(0);
    assert_eq!(buf.to_vec(), frame);
    assert_eq!(buf.frame_count(), frame.len().div_ceil(3840));
    let meta = meta(&buf);
    let gso = meta.gso().unwrap();
    assert_eq!((gso.kind, gso.size), (GsoKind::TcpV4, 1448));
    assert_eq!(meta.csum_partial(), Some((L4 as u16, 16)));
    rig.cache.free_buf(buf);
    rig.finish();
}

#[test]
fn a_udp_superframe_arrives_whole_with_its_datagram_size() {
    let mut rig = Rig::new(1500);
    rig.far.run(|| {
        let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
        send_segmented(&socket, "192.0.2.1:4000", &[3; 9500], 1000);
    });
    let buf = rig.receive(1, |b| b.len() > 9000).remove(0);
    assert_eq!(buf.len(), L4 + 8 + 9500);
    let meta = meta(&buf);
    let gso = meta.gso().unwrap();
    assert_eq!((gso.kind, gso.size), (GsoKind::UdpL4, 1000));
    assert_eq!(meta.csum_partial(), Some((L4 as u16, 6)));
    rig.cache.free_buf(buf);
    rig.finish();
}

#[test]
fn a_requested_checksum_is_completed_and_an_unrequested_one_is_not() {
    let mut rig = Rig::new(1500);
    assert!(rig.xsk.bound().tx_meta);
    let socket = rig.far.run(|| UdpSocket::bind("192.0.2.2:7000").unwrap());
    socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let frame = |text: &[u8]| udp_partial(true, 7000, text);
    let bad = rig.buf(&frame(b"unrequested"), 3840);
    rig.xsk.transmit(bad, None).unwrap();
    let request = Some(CsumRequest { start: L4 as u16, offset: 6 });
    let good = rig.buf(&frame(b"requested"), 3840);
    rig.xsk.transmit(good, request).unwrap();
    let split = rig.buf(&frame(b"requested, in two frames"), L4 + 8);
    rig.xsk.transmit(split, request).unwrap();
    rig.send_all();
    let mut got = [0; 100];
    for wanted in [&b"requested"[..], b"requested, in two frames"] {
        let len = socket.recv(&mut got).unwrap();
        assert_eq!(&got[..len], wanted);
    }
    rig.finish();
}

#[test]
fn a_packet_that_can_never_be_sent_is_dropped_and_counted() {
    let mut rig = Rig::new(9000);
    let far = RawSocket::open(&rig.far);
    let too_many = rig.buf(&plain(true, 190, 1), 10);
    assert_eq!(too_many.frame_count(), 19);
    let empty = Buf::from(rig.cache.alloc().unwrap());
    let bad_csum = rig.buf(&plain(true, 64, 2), 3840);
    let request = CsumRequest { start: 60, offset: 3 };
    rig.xsk.transmit(too_many, None).unwrap();
    rig.xsk.transmit(empty, None).unwrap();
    rig.xsk.transmit(bad_csum, Some(request)).unwrap();
    let mut with_gap = rig.buf(&plain(true, 100, 3), 50);
    with_gap.push(rig.cache.alloc().unwrap());
    rig.xsk.transmit(with_gap, None).unwrap();
    rig.send_all();
    assert_eq!(far.receive_plain(), plain(true, 100, 3), "empty frames are left out");
    assert_eq!(rig.xsk.stats().tx_unsendable, 3);
    rig.finish();
}

#[test]
fn a_tiny_ring_takes_whole_packets_only_and_loses_none() {
    let mut rig = Rig::with(9000, 1024, |config| {
        (config.tx_size, config.comp_size, config.tx_budget) = (64, 64, None);
    });
    let far = RawSocket::open(&rig.far);
    let mut refused = 0;
    for i in 0..100u8 {
        let mut buf = rig.buf(&plain(true, 900, i), 180);
        while let Err(back) = rig.xsk.transmit(buf, None) {
            refused += 1;
            rig.send_all();
            rig.xsk.reap(&mut rig.cache);
            buf = back;
        }
    }
    rig.send_all();
    assert!(refused >= 7, "5 frames each in a ring of 64: {refused}");
    for i in 0..100 {
        assert_eq!(far.receive_plain(), plain(true, 900, i));
    }
    assert_eq!(rig.xsk.stats().tx_ring_full, refused);
    rig.finish();
}

#[test]
fn a_frame_above_the_peers_mtu_is_counted_and_the_rest_of_the_batch_goes_on() {
    let mut rig = Rig::new(1500);
    let far = RawSocket::open(&rig.far);
    for (i, len) in [100, 3000, 100, 3000, 3000, 100].into_iter().enumerate() {
        let buf = rig.buf(&plain(true, len, i as u8), 3840);
        rig.xsk.transmit(buf, None).unwrap();
    }
    rig.send_all();
    for i in [0, 2, 5] {
        assert_eq!(far.receive_plain(), plain(true, 100, i));
    }
    assert_eq!(rig.xsk.stats().kick_dropped, 3);
    rig.finish();
}

#[test]
fn a_run_of_dropped_frames_does_not_end_a_kick() {
    let mut rig = Rig::new(1500);
    let far = RawSocket::open(&rig.far);
    for len in [3000, 3000, 3000, 3000, 3000, 100] {
        let buf = rig.buf(&plain(true, len, 9), 3840);
        rig.xsk.transmit(buf, None).unwrap();
    }
    assert_eq!(rig.xsk.kick(), Kick::Sent);
    assert_eq!(rig.xsk.stats().kick_dropped, 5);
    assert_eq!(far.receive_plain(), plain(true, 100, 9));
    rig.finish();
}

#[test]
fn more_packets_than_the_arena_holds_are_dropped_and_the_port_recovers() {
    let mut rig = Rig::with(1500, 64, |_| {});
    let far = RawSocket::open(&rig.far);
    for i in 0..200 {
        far.send(&plain(false, 100, i)).unwrap();
    }
    let hoard = rig.receive(64, plain_buf);
    assert!(rig.cache.alloc().is_none());
    rig.xsk.refill(&mut rig.cache);
    let stats = rig.xsk.stats();
    assert!(stats.fill_starved > 0 && stats.kernel_fill_empty + stats.kernel_rx_dropped > 0);
    hoard.into_iter().for_each(|buf| rig.cache.free_buf(buf));
    rig.xsk.refill(&mut rig.cache);
    far.send(&plain(false, 100, 250)).unwrap();
    let again = rig.receive(1, plain_buf).remove(0);
    assert_eq!(again.to_vec(), plain(false, 100, 250));
    rig.cache.free_buf(again);
    rig.finish();
}

#[test]
fn a_queue_in_use_is_an_error_and_a_queue_about_to_close_is_waited_for() {
    let rig = Rig::new(1500);
    let Rig { arena, mut cache, mut xsk, near, ifindex, .. } = rig;
    let config = XskConfig::new(ifindex, 0);
    assert!(matches!(Xsk::open(arena, &config), Err(XskError::Busy { queue: 0, .. })));
    for _ in 0..5 {
        xsk = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                near.enter();
                Xsk::open(arena, &config)
            });
            std::thread::sleep(Duration::from_millis(20));
            xsk.close(&mut cache);
            waiting.join().unwrap().unwrap()
        });
        xsk.refill(&mut cache);
        assert_eq!(xsk.outstanding(), 64);
    }
    xsk.close(&mut cache);
    drop(cache);
    assert!(arena.stats().is_whole(0));
}

#[test]
fn what_was_got_is_reported() {
    let poll = BusyPoll { usecs: 20, budget: 64 };
    let rig = Rig::with(1500, 1024, |config| {
        (config.busy_poll, config.tx_budget, config.sg) = (Some(poll), Some(1 << 20), false);
    });
    let bound = rig.xsk.bound();
    assert_eq!((bound.zero_copy, bound.sg, bound.busy_poll), (false, false, true));
    assert_eq!(bound.tx_budget, 2048, "clamped to the ring");
    assert_eq!(rig.xsk.max_tx_frames(), 1);
    rig.finish();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let rig = Rig::new(1500);
    let base = XskConfig::new(rig.ifindex, 0);
    let open = |config: XskConfig| Xsk::open(rig.arena, &config).unwrap_err();
    assert!(matches!(open(XskConfig { ifindex: 9999, ..base }), XskError::NoDevice { .. }));
    assert!(matches!(open(XskConfig { queue: 7, ..base }), XskError::Queue { queue: 7, .. }));
    assert!(matches!(open(XskConfig { rx_size: 100, ..base }), XskError::RingSize { .. }));
    rig.near.ip("link add spare type veth peer name spare-far");
    let ifindex = rig.near.ifindex("spare");
    let zero_copy = XskConfig { ifindex, mode: BindMode::ZeroCopy, ..base };
    assert!(matches!(open(zero_copy), XskError::ModeUnsupported { .. }));
    rig.finish();
}

#[test]
fn sockets_that_copy_share_one_registration_of_the_arena() {
    let rig = Rig::new(1500);
    let mut cache = FrameCache::new(rig.arena);
    let sockets: Vec<Xsk> = (0..8)
        .map(|n| {
            rig.near.ip(&format!("link add spare{n} type veth peer name far{n}"));
            let config = XskConfig::new(rig.near.ifindex(&format!("spare{n}")), 0);
            rig.near.run(|| Xsk::open(rig.arena, &config)).unwrap()
        })
        .collect();
    assert!(sockets.iter().all(|xsk| !xsk.bound().zero_copy && xsk.bound().sg));
    assert!(rig.arena.is_shared());
    sockets.into_iter().for_each(|xsk| xsk.close(&mut cache));
    cache.flush();
    rig.finish();
}
