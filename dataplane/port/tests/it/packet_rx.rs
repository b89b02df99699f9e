//! The receiving packet socket: superframes in one piece, tags that were taken off, filters, want of memory.

use crate::support;

use std::time::Instant;

use culvert_port::{
    Arena, Buf, Fanout, FilterInstruction, FrameCache, PacketOptions, PacketRx, PacketRxOptions,
    PacketTx, VnetHdr,
};
use support::far::RawSocket;
use support::frames::{L4, TEST_ETHERTYPE, is_plain, plain, tcp_partial, udp_partial};
use support::netns::{self, Netns};
use support::{PATIENCE, packet};

/// Everything.
const ALL: [FilterInstruction; 1] = [FilterInstruction { code: 6, jt: 0, jf: 0, k: u32::MAX }];

/// Frames of one ethertype: load it, compare, return all or nothing.
fn only(ethertype: [u8; 2]) -> [FilterInstruction; 4] {
    let op = |code, jt, jf, k| FilterInstruction { code, jt, jf, k };
    let ethertype = u32::from(u16::from_be_bytes(ethertype));
    [op(0x28, 0, 0, 12), op(0x15, 0, 1, ethertype), op(6, 0, 0, u32::MAX), op(6, 0, 0, 0)]
}

struct Rig {
    arena: &'static Arena,
    cache: FrameCache,
    rx: PacketRx,
    /// Sends superframes from the far end.
    tx: PacketTx,
    near: Netns,
    far: Netns,
}

impl Rig {
    fn new(chunks: usize, options: PacketRxOptions) -> Self {
        let (near, far) = netns::linked_pair(1500);
        near.enter();
        let arena = Arena::new(chunks).unwrap();
        let rx = PacketRx::open(near.ifindex("n0"), options).unwrap();
        let index = far.ifindex("f0");
        let tx = far.run(|| PacketTx::open(index, PacketOptions::default()).unwrap());
        Self { arena, cache: FrameCache::new(arena), rx, tx, near, far }
    }

    fn send(&mut self, hdr: VnetHdr, bytes: &[u8]) {
        let buf = packet(&mut self.cache, bytes, 3840);
        self.tx.send(hdr, buf).unwrap();
        let outcome = self.tx.flush(&mut self.cache);
        assert_eq!((outcome.sent, outcome.dropped()), (1, 0));
    }

    /// Receives until `wanted` packets have satisfied `accept`; others are freed.
    fn receive(&mut self, wanted: usize, accept: impl Fn(&Buf) -> bool) -> Vec<(Buf, VnetHdr)> {
        let deadline = Instant::now() + PATIENCE;
        let (mut got, mut batch) = (Vec::new(), Vec::new());
        while got.len() < wanted {
            assert!(Instant::now() < deadline, "{} of {wanted}, {:?}", got.len(), self.rx.stats());
            if self.rx.receive(&mut self.cache, 64, &mut batch) == 0 {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            for (buf, hdr) in batch.drain(..) {
                if accept(&buf) { got.push((buf, hdr)) } else { self.cache.free_buf(buf) }
            }
        }
        got
    }

    /// Closes all and asserts that every chunk is accounted for, before and after.
    fn finish(self) {
        let Self { arena, mut cache, rx, .. } = self;
        let held = cache.len() + rx.outstanding();
        assert!(arena.stats().is_whole(held), "{:?} and {held} held", arena.stats());
        rx.close(&mut cache);
        drop(cache);
        assert!(arena.stats().is_whole(0), "{:?}", arena.stats());
    }
}

fn len(buf: &Buf) -> usize {
    buf.len()
}

#[test]
fn superframes_arrive_whole_with_what_is_left_to_be_done() {
    let mut rig = Rig::new(1024, PacketRxOptions::default());
    rig.rx.set_filter(&ALL).unwrap();
    let tcp = tcp_partial(false, 7000, &vec![0x33; 60_000]);
    let udp = udp_partial(false, 7000, &vec![0x44; 20_000]);
    let start = L4 as u16;
    let csum = |csum_offset| VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        csum_start: start,
        csum_offset,
        ..VnetHdr::default()
    };
    let tcp_hdr = VnetHdr { gso_type: VnetHdr::GSO_TCPV4, hdr_len: 54, gso_size: 1448, ..csum(16) };
    let udp_hdr =
        VnetHdr { gso_type: VnetHdr::GSO_UDP_L4, hdr_len: start + 8, gso_size: 1000, ..csum(6) };
    for (hdr, frame) in [(tcp_hdr, &tcp), (udp_hdr, &udp)] {
        for _ in 0..40 {
            rig.send(hdr, frame);
            let got = rig.receive(1, |buf| len(buf) == frame.len());
            for (buf, seen) in got {
                assert_eq!(buf.to_vec(), *frame);
                assert!(buf.frame_count() <= 17);
                assert_eq!((seen.gso_kind(), seen.gso_size), (hdr.gso_kind(), hdr.gso_size));
                assert_eq!(seen.partial_csum(), hdr.partial_csum());
                rig.cache.free_buf(buf);
            }
        }
    }
    assert_eq!(rig.rx.stats().rx_bad, 0);
    rig.finish();
}

#[test]
fn many_packets_arrive_in_their_order_and_only_what_comes_in_and_passes_the_filter() {
    let mut rig = Rig::new(1024, PacketRxOptions::default());
    let far = RawSocket::open(&rig.far);
    far.send(&plain(false, 60, 1)).unwrap();
    let mut none = Vec::new();
    assert_eq!(
        rig.rx.receive(&mut rig.cache, 64, &mut none),
        0,
        "nothing before the filter is set"
    );
    rig.rx.set_filter(&only(TEST_ETHERTYPE)).unwrap();
    // What this host sends is not received; nor is what another protocol is.
    let index = rig.near.ifindex("n0");
    let mut own = PacketTx::open(index, PacketOptions::default()).unwrap();
    let sent = packet(&mut rig.cache, &plain(true, 100, 9), 3840);
    own.send(VnetHdr::default(), sent).unwrap();
    assert_eq!(own.flush(&mut rig.cache).sent, 1);
    for n in 0..200_usize {
        far.send(&udp_partial(false, 7000, &[1; 100])).unwrap();
        far.send(&plain(false, 60 + n * 7, n as u8)).unwrap();
    }
    let got = rig.receive(200, |_| true);
    for (n, (buf, hdr)) in got.into_iter().enumerate() {
        assert_eq!(buf.to_vec(), plain(false, 60 + n * 7, n as u8));
        assert_eq!(hdr.gso_kind(), VnetHdr::GSO_NONE);
        rig.cache.free_buf(buf);
    }
    assert_eq!(rig.rx.stats().rx_packets, 200);
    rig.finish();
}

#[test]
fn a_tag_that_was_taken_off_is_in_its_place_again() {
    let mut rig = Rig::new(1024, PacketRxOptions::default());
    rig.rx.set_filter(&ALL).unwrap();
    for tag in [[0x81, 0, 0x20, 7], [0x88, 0xa8, 0, 9]] {
        let mut frame = udp_partial(false, 7000, &[5; 500]);
        frame.splice(12..12, tag);
        let hdr = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            csum_start: L4 as u16 + 4,
            csum_offset: 6,
            ..VnetHdr::default()
        };
        rig.send(hdr, &frame);
        let (buf, seen) = rig.receive(1, |buf| len(buf) == frame.len()).remove(0);
        assert_eq!(buf.to_vec(), frame);
        assert_eq!(seen.partial_csum(), hdr.partial_csum());
        rig.cache.free_buf(buf);
    }
    rig.finish();
}

#[test]
fn without_memory_packets_wait_and_what_is_too_much_is_counted() {
    let options = PacketRxOptions { rcvbuf_bytes: 200_000, ..PacketRxOptions::default() };
    let mut rig = Rig::new(64, options);
    rig.rx.set_filter(&only(TEST_ETHERTYPE)).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| rig.cache.alloc()).collect();
    let far = RawSocket::open(&rig.far);
    for n in 0..2000_usize {
        far.send(&plain(false, 1000, n as u8)).unwrap();
    }
    let mut none = Vec::new();
    assert_eq!(rig.rx.receive(&mut rig.cache, 64, &mut none), 0);
    assert_eq!(rig.rx.stats().rx_starved, 1);
    held.into_iter().for_each(|frame| rig.cache.free(frame));
    let mut seen = 0;
    loop {
        let got = rig.rx.receive(&mut rig.cache, 64, &mut none);
        if got == 0 {
            break;
        }
        for (buf, _) in none.drain(..) {
            assert!(is_plain(buf.head().data()));
            seen += 1;
            rig.cache.free_buf(buf);
        }
    }
    let stats = rig.rx.stats();
    assert!(seen > 10 && seen < 2000, "{seen}");
    assert_eq!((stats.rx_packets, stats.rx_overrun), (seen, 2000 - seen));
    rig.finish();
}

#[test]
fn sockets_of_a_group_share_flows() {
    let mut rig =
        Rig::new(2048, PacketRxOptions { fanout: Fanout::New, ..PacketRxOptions::default() });
    let group = rig.rx.group().unwrap();
    let options = PacketRxOptions { fanout: Fanout::Join(group), ..PacketRxOptions::default() };
    let mut second = PacketRx::open(rig.near.ifindex("n0"), options).unwrap();
    rig.rx.set_filter(&ALL).unwrap();
    second.set_filter(&ALL).unwrap();
    let far = RawSocket::open(&rig.far);
    for port in 0..64 {
        far.send(&udp_partial(false, 7000 + port, &[1; 100])).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    let mut counts = [0, 0];
    let mut batch = Vec::new();
    while counts[0] + counts[1] < 64 {
        assert!(Instant::now() < deadline, "{counts:?}");
        for (at, rx) in [&mut rig.rx, &mut second].into_iter().enumerate() {
            rx.receive(&mut rig.cache, 64, &mut batch);
            for (buf, _) in batch.drain(..) {
                counts[at] += usize::from(len(&buf) == 142);
                rig.cache.free_buf(buf);
            }
        }
    }
    assert!(counts[0] > 8 && counts[1] > 8, "{counts:?}");
    second.close(&mut rig.cache);
    rig.finish();
}

#[test]
fn a_device_that_is_not_there_is_named_and_one_that_goes_ends_nothing() {
    let mut rig = Rig::new(1024, PacketRxOptions::default());
    let error = PacketRx::open(9_999, PacketRxOptions::default()).unwrap_err();
    assert!(error.to_string().contains("no interface has index 9999"), "{error}");
    rig.rx.set_filter(&ALL).unwrap();
    rig.near.command("ip", "link del n0");
    let mut none = Vec::new();
    for _ in 0..3 {
        assert_eq!(rig.rx.receive(&mut rig.cache, 64, &mut none), 0);
    }
    assert!(rig.rx.stats().rx_down > 0, "{:?}", rig.rx.stats());
    rig.finish();
}
