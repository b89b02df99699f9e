//! The packet socket: superframes and checksums that the kernel finishes, frames that it refuses.

use crate::support;

use std::net::UdpSocket;

use culvert_port::{MessageError, PacketOptions, PacketTx, VnetHdr};
use support::far::RawSocket;
use support::frames::{L4, plain, tcp_partial, udp_partial};
use support::{PATIENCE, Rig};

fn open(rig: &Rig) -> PacketTx {
    PacketTx::open(rig.ifindex, PacketOptions::default()).unwrap()
}

fn udp_superframe(size: u16) -> VnetHdr {
    VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_UDP_L4,
        hdr_len: L4 as u16 + 8,
        gso_size: size,
        csum_start: L4 as u16,
        csum_offset: 6,
    }
}

#[test]
fn a_udp_superframe_becomes_datagrams_at_a_socket_of_the_far_end() {
    let mut rig = Rig::new(1500);
    let mut tx = open(&rig);
    let socket = rig.far.run(|| UdpSocket::bind("192.0.2.2:7000").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let payload: Vec<u8> = (0..20_000u32).map(|i| (i / 1000) as u8).collect();
    let frame = udp_partial(true, 7000, &payload);
    for offload in ["on", "off"] {
        rig.near.command("ethtool", &format!("-K n0 tx-udp-segmentation {offload}"));
        let buf = rig.buf(&frame, 3840);
        tx.send(udp_superframe(1000), buf).unwrap();
        let outcome = tx.flush(&mut rig.cache);
        assert_eq!((outcome.sent, outcome.dropped()), (1, 0));
        let mut got = [0; 2000];
        for i in 0..20 {
            assert_eq!(socket.recv(&mut got).unwrap(), 1000, "offload {offload}");
            assert!(got[..1000].iter().all(|b| *b == i), "datagram {i}, offload {offload}");
        }
    }
    rig.finish();
}

#[test]
fn a_tcp_superframe_crosses_a_veth_whole() {
    let mut rig = Rig::new(1500);
    let mut tx = open(&rig);
    let far = RawSocket::open(&rig.far);
    let frame = tcp_partial(true, 7000, &vec![0x33; 60_000]);
    let buf = rig.buf(&frame, 3840);
    let hdr = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: L4 as u16,
        csum_offset: 16,
    };
    tx.send(hdr, buf).unwrap();
    assert_eq!(tx.flush(&mut rig.cache).sent, 1);
    let got = far.receive(|bytes| bytes.len() > 10_000).unwrap();
    assert_eq!(got, frame);
    rig.finish();
}

#[test]
fn segments_are_gathered_from_one_held_packet_without_a_copy() {
    let mut rig = Rig::new(1500);
    let mut tx = open(&rig);
    let far = RawSocket::open(&rig.far);
    let payload: Vec<u8> = (0..40_000u32).map(|i| (i / 7) as u8).collect();
    let buf = rig.buf(&payload, 3840);
    let id = tx.hold(buf);
    let header = plain(true, 15, 0xee);
    for start in (0..payload.len()).step_by(1000) {
        assert!(tx.has_room(3, header.len()));
        let mut message = tx.message(VnetHdr::default());
        message.copy(&header);
        message.slice(id, start..start + 1000);
        message.finish().unwrap();
    }
    let outcome = tx.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.dropped()), (40, 0));
    for piece in payload.chunks(1000) {
        assert_eq!(far.receive_plain(), [&header[..], piece].concat());
    }
    rig.finish();
}

#[test]
fn one_message_of_128_laid_out_segments_is_sent() {
    let mut rig = Rig::new(1500);
    let mut tx = open(&rig);
    let socket = rig.far.run(|| UdpSocket::bind("192.0.2.2:7000").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let inner: Vec<u8> = (0..128u32 * 450).map(|i| (i / 450) as u8).collect();
    let whole: Vec<u8> =
        inner.chunks(450).flat_map(|piece| [&[0xabu8; 50][..], piece].concat()).collect();
    let outer = &udp_partial(true, 7000, &whole)[..L4 + 8];
    let buf = rig.buf(&inner, 3840);
    let mut message = tx.message(udp_superframe(500));
    message.copy(outer);
    let id = message.hold(buf);
    for i in 0..128 {
        message.copy(&[0xab; 50]);
        message.slice(id, i * 450..(i + 1) * 450);
    }
    message.finish().unwrap();
    let outcome = tx.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.dropped()), (1, 0));
    let mut got = [0; 1000];
    for i in 0..128 {
        assert_eq!(socket.recv(&mut got).unwrap(), 500);
        assert_eq!((got[49], got[50], got[499]), (0xab, i, i));
    }
    rig.finish();
}

#[test]
fn what_the_kernel_refuses_is_counted_by_reason_and_its_neighbours_are_sent() {
    let mut rig = Rig::new(1500);
    let mut tx = open(&rig);
    let far = RawSocket::open(&rig.far);
    let bad_csum = VnetHdr { flags: VnetHdr::NEEDS_CSUM, csum_start: 9000, ..VnetHdr::default() };
    for (hdr, len) in [
        (VnetHdr::default(), 100),
        (VnetHdr::default(), 5000),
        (bad_csum, 100),
        (VnetHdr::default(), 101),
    ] {
        let buf = rig.buf(&plain(true, len, 1), 3840);
        tx.send(hdr, buf).unwrap();
    }
    let outcome = tx.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.too_big, outcome.refused), (2, 1, 1));
    assert_eq!(far.receive_plain().len(), 100);
    assert_eq!(far.receive_plain().len(), 101);

    let empty = rig.cache.alloc().unwrap();
    tx.send(VnetHdr::default(), empty.into()).unwrap();
    assert_eq!(tx.message(VnetHdr::default()).finish(), Err(MessageError::Empty));
    let outcome = tx.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.refused, outcome.dropped()), (0, 1, 1));
    assert_eq!(tx.flush(&mut rig.cache).dropped(), 0);
    rig.finish();
}

#[test]
fn a_train_that_a_device_does_not_take_counts_as_its_packets() {
    let mut rig = Rig::new(1500);
    let mut tx = open(&rig);
    rig.near.ip("link set n0 down");
    let train = rig.buf(&udp_partial(true, 7000, &[5; 20_000]), 3840);
    tx.send(udp_superframe(1000), train).unwrap();
    let single = rig.buf(&plain(true, 100, 1), 3840);
    tx.send(VnetHdr::default(), single).unwrap();
    let outcome = tx.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.down, outcome.dropped()), (0, 21, 21));
    rig.finish();
}
