//! What the fake has seen of packets.

use culvert_model::api::{self, CapturePoint};

/// A UDP datagram from 10.0.0.1, port 7, to 10.0.0.2, port 53.
pub(crate) fn datagram() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcb, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 7, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// It came, it left, and another was dropped.
pub(crate) fn captured() -> Vec<api::CapturedPacket> {
    let packet = |point: CapturePoint, port: &str, device: &str, reason: &str, at: u64| {
        api::CapturedPacket {
            time_ns: 1_700_000_000_000_000_000 + at,
            point: point.into(),
            port: port.into(),
            device: device.into(),
            drop_reason: reason.into(),
            worker: 1,
            frame_len: 46,
            data: datagram(),
            segment_size: 0,
        }
    };
    vec![
        packet(CapturePoint::FromTenant, "a1", "veth-a1", "", 1),
        packet(CapturePoint::ToUnderlay, "", "eth0", "", 2),
        packet(CapturePoint::Dropped, "a1", "veth-a1", "spoofed_ip", 3),
    ]
}

/// It was dropped for want of a route.
pub(crate) fn traced() -> api::TracedPacket {
    let step = |stage: &str, outcome: &str, reason: &str, rule: &str| api::TraceStep {
        stage: stage.into(),
        outcome: outcome.into(),
        reason: reason.into(),
        rule: rule.into(),
        detail: String::new(),
        worker: 0,
        times: 1,
    };
    api::TracedPacket {
        time_ns: 1_700_000_000_000_000_000,
        port: "a1".into(),
        device: "veth-a1".into(),
        frame_len: 46,
        head: datagram(),
        steps: vec![
            step("received", "pass", "", "port a1"),
            step("anti_spoof", "pass", "", "port a1"),
            step("route", "drop", "route_drop", "vnet blue: 10.0.0.0/8 -> drop"),
            step("drop", "drop", "route_drop", ""),
        ],
        incomplete: false,
        lost: 0,
    }
}
