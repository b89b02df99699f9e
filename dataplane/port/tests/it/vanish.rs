//! Devices that go down, are moved away or deleted while packets flow.

use crate::support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use culvert_port::device::{Device, DeviceError, OperState};
use culvert_port::{Health, Kick, PacketError, PacketOptions, PacketTx, VnetHdr};
use support::far::RawSocket;
use support::frames::{is_plain, plain};
use support::{Rig, eventually};

/// Sends both ways for a while, with `disturb` called in the middle of it.
fn disturbed_under_load(rig: &mut Rig, disturb: impl FnOnce(&Rig)) {
    let far = RawSocket::open(&rig.far);
    let stop = AtomicBool::new(false);
    let mut disturb = Some(disturb);
    std::thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // It fails once the device is gone, which is the point.
                let _ = far.send(&plain(false, 5000, 1));
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let start = Instant::now();
        let mut got = Vec::new();
        while start.elapsed() < Duration::from_millis(400) {
            rig.xsk.receive(&mut rig.cache, 64, &mut got);
            got.drain(..).for_each(|buf| rig.cache.free_buf(buf));
            rig.xsk.refill(&mut rig.cache);
            for _ in 0..8 {
                let buf = rig.buf(&plain(true, 3000, 2), 1000);
                if let Err(back) = rig.xsk.transmit(buf, None) {
                    rig.cache.free_buf(back);
                }
            }
            rig.xsk.kick();
            rig.xsk.reap(&mut rig.cache);
            if start.elapsed() > Duration::from_millis(150)
                && let Some(disturb) = disturb.take()
            {
                disturb(rig);
            }
        }
    });
}

/// Ends the load also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_device_deleted_under_load_is_reported_gone_and_no_frame_is_lost() {
    let mut rig = Rig::new(9000);
    assert_eq!(rig.xsk.health(), Health::Up);
    disturbed_under_load(&mut rig, |rig| {
        rig.near.ip("link del n0");
    });
    let stats = rig.xsk.stats();
    assert!(stats.rx_packets > 100 && stats.tx_packets > 100, "there was load: {stats:?}");
    assert!(stats.kick_down > 0, "{stats:?}");
    assert_eq!(rig.xsk.kick(), Kick::Down);
    assert_eq!(rig.xsk.health(), Health::Gone);
    rig.finish();
}

#[test]
fn a_device_moved_to_another_namespace_under_load_is_gone_too() {
    let mut rig = Rig::new(9000);
    disturbed_under_load(&mut rig, |rig| {
        rig.near.ip(&format!("link set n0 netns {}", rig.far.path()));
    });
    assert_eq!(rig.xsk.health(), Health::Gone);
    rig.finish();
}

#[test]
fn a_device_set_down_is_reported_and_resumes_when_it_comes_up() {
    let mut rig = Rig::new(9000);
    let far = RawSocket::open(&rig.far);
    rig.near.ip("link set n0 down");
    assert_eq!(rig.xsk.health(), Health::Down);
    let buf = rig.buf(&plain(true, 100, 7), 3840);
    rig.xsk.transmit(buf, None).unwrap();
    assert_eq!(rig.xsk.kick(), Kick::Down);
    assert_eq!(rig.xsk.stats().kick_down, 1);

    rig.near.ip("link set n0 up");
    eventually("the device is up", || rig.xsk.health() == Health::Up);
    eventually("the far end has carrier", || {
        rig.far.run(|| Device::by_name("f0").unwrap().state().unwrap() == OperState::Up)
    });
    rig.send_all();
    assert!(is_plain(&far.receive_plain()));
    rig.finish();
}

#[test]
fn a_device_set_down_under_load_loses_no_frame() {
    let mut rig = Rig::new(9000);
    disturbed_under_load(&mut rig, |rig| {
        rig.near.ip("link set n0 down");
    });
    assert_eq!(rig.xsk.health(), Health::Down);
    rig.finish();
}

#[test]
fn a_packet_socket_counts_what_a_vanished_device_cannot_send() {
    let mut rig = Rig::new(1500);
    let mut tx = PacketTx::open(rig.ifindex, PacketOptions::default()).unwrap();
    rig.near.ip("link del n0");
    for i in 0..5 {
        let buf = rig.buf(&plain(true, 100, i), 3840);
        tx.send(VnetHdr::default(), buf).unwrap();
    }
    assert_eq!(tx.outstanding(), 5);
    let outcome = tx.flush(&mut rig.cache);
    assert_eq!((outcome.sent, outcome.down, outcome.dropped()), (0, 5, 5));
    assert_eq!(tx.outstanding(), 0);
    assert!(matches!(
        PacketTx::open(rig.ifindex, PacketOptions::default()),
        Err(PacketError::NoDevice { .. })
    ));
    rig.finish();
}

#[test]
fn a_device_is_described_and_keeps_its_identity_when_renamed() {
    let rig = Rig::new(1400);
    let device = Device::by_name("n0").unwrap();
    assert_eq!(device.driver().unwrap(), "veth");
    assert_eq!(device.mtu().unwrap(), 1400);
    assert_eq!(device.mac().unwrap(), support::netns::NEAR_MAC);
    assert_eq!(device.state().unwrap(), OperState::Up);
    assert_eq!(device.queues().unwrap().rx, 1);
    let on = device.features().unwrap();
    assert!(on.is_on("tx-tcp-segmentation") && on.is_on("tx-udp-segmentation"));
    rig.near.command("ethtool", "-K n0 tx-udp-segmentation off");
    assert!(!device.features().unwrap().is_on("tx-udp-segmentation"));

    rig.far.ip("link set f0 down");
    eventually("carrier is lost", || device.state().unwrap() == OperState::NoCarrier);
    rig.near.ip("link set n0 down");
    rig.near.ip("link set n0 name renamed");
    assert_eq!(device.name().unwrap(), "renamed");
    assert_eq!(device.state().unwrap(), OperState::Down);
    rig.near.ip("link del renamed");
    assert!(matches!(device.mtu(), Err(DeviceError::Gone { .. })));
    rig.finish();
}
