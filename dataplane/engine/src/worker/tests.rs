//! What a worker that is short of something loses: each packet is counted, and nothing leaks.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::{AclAction, AclGroup, AclRule, Direction, Miss, PortRanges, Protocol, Vni};
use culvert_port::{Arena, Buf, Frame, FrameCache};
use culvert_wire::encap::{DscpMode, EncapSpec, EncapTemplate};
use culvert_wire::eth::MacAddr;
use culvert_wire::format::{FormatIndex, VXLAN};
use culvert_wire::packet::Packet;
use culvert_wire::segment::{GsoKind, Segmenter};

use super::cutter::{Cutter, Cutters};
use super::device::{Facts, Role};
use super::explain::KnownDevice;
use super::offload::Offload;
use super::tunnel::Tunnel;
use super::{Worker, WorkerConfig};
use crate::drops::DropReason;
use crate::policy::acl::Judgement;
use crate::shared::Shared;
use crate::tables::{Gateway, PortAcl, PortEntry, Tables, VnetEntry};

const TENANT: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);

/// A worker without devices that has so many frames.
pub(super) fn worker_with(tables: Tables, frames: usize) -> Worker {
    let (shared, mut commands) = Shared::new(1).unwrap();
    shared.tables.store(Arc::new(tables));
    let config = WorkerConfig { index: 0, busy_poll: false, spin: Duration::ZERO, alone: false };
    let cache = FrameCache::new(Arena::new(frames).unwrap());
    Worker::new(config, shared, commands.remove(0), cache).unwrap()
}

/// A packet of one frame.
pub(super) fn buf_of(worker: &mut Worker, bytes: &[u8]) -> Buf {
    let mut frame = worker.cache.alloc().unwrap();
    assert!(frame.extend(bytes));
    Buf::from(frame)
}

/// Everything that is free; the worker has nothing until it gets it back.
fn take_all(worker: &mut Worker) -> Vec<Frame> {
    std::iter::from_fn(|| worker.cache.alloc()).collect()
}

/// One tenant, 10.0.0.1, in a network whose router is 10.0.0.254.
pub(super) fn tables() -> Tables {
    let vnet = VnetEntry {
        index: 0,
        id: "blue".parse().unwrap(),
        vni: Vni::new(100).unwrap(),
        format: FormatIndex::VXLAN,
        raise_mss: false,
        flood: false,
        miss: Miss::Drop,
        gateways: vec![Gateway { net: "10.0.0.254/24".parse().unwrap(), mac: ROUTER }],
        neighbours: Default::default(),
        macs: Default::default(),
        flood_vteps: Default::default(),
        local_ports: Arc::new([0]),
        routes: None,
        routed_from: Vec::new(),
        ingress: Vec::new(),
        changed_in: 1,
    };
    let port = PortEntry {
        index: 0,
        id: "tenant".parse().unwrap(),
        vnet: 0,
        mac: TENANT,
        ips: vec!["10.0.0.1".parse().unwrap()],
        anti_spoof: true,
        blocked: false,
        worker: 0,
        mtu: 1500,
        acl: None,
        meter: None,
        dhcp: None,
        hostname: None,
        udp_gro: false,
        routes: None,
        epoch: 1,
    };
    Tables {
        ports: Arc::new([Some(Arc::new(port))]),
        vnets: Arc::new([Some(Arc::new(vnet))]),
        ..Tables::default()
    }
}

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(TENANT.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(TENANT.0);
    frame.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame
}

/// A UDP datagram of the tenant to an address that nothing is known of.
pub(super) fn datagram() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2];
    frame.extend(TENANT.0);
    frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = culvert_wire::checksum::Sum::default().add(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0, 7, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

/// The tenant's drops that are not zero.
fn dropped(worker: &Worker) -> Vec<(DropReason, u64)> {
    let counters = worker.counters.port(0);
    let each = DropReason::ALL.iter().map(|reason| (*reason, counters.dropped(*reason)));
    each.filter(|(_, packets)| *packets > 0).collect()
}

#[test]
fn a_question_that_finds_no_frame_for_its_answer_is_lost_for_want_of_frames() {
    let mut worker = worker_with(tables(), 64);
    let question = buf_of(&mut worker, &arp_request([10, 0, 0, 254]));
    let pkt = Packet::parse(question.head().data(), question.len()).unwrap();
    let all = take_all(&mut worker);
    worker.answer(0, question, &pkt, Offload::default());
    assert_eq!(dropped(&worker), [(DropReason::NoFrames, 1)]);
    assert_eq!(worker.counters.port(0).replies.get(), 0);
    assert_eq!(all.len() + take_all(&mut worker).len(), 64, "the question's frame is free again");
}

#[test]
fn a_question_that_wants_silence_is_unanswered() {
    let mut worker = worker_with(tables(), 64);
    let question = buf_of(&mut worker, &arp_request([10, 0, 0, 1]));
    let pkt = Packet::parse(question.head().data(), question.len()).unwrap();
    worker.answer(0, question, &pkt, Offload::default());
    assert_eq!(dropped(&worker), [(DropReason::Unanswered, 1)]);
    assert_eq!(take_all(&mut worker).len(), 64);
}

#[test]
fn each_datagram_of_a_superframe_that_finds_no_frame_is_counted() {
    let mut superframe = vec![2, 0, 0, 0, 0, 2];
    superframe.extend(TENANT.0);
    superframe.extend([8, 0, 0x45, 0, 0x0b, 0xd4, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    superframe.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = culvert_wire::checksum::Sum::default().add(&superframe[14..34]).finish();
    superframe[24..26].copy_from_slice(&sum.to_be_bytes());
    superframe.extend([0x9c, 0x40, 0, 9, 0x0b, 0xc0, 0, 0]);
    superframe.extend([7; 3000]);

    let mut worker = worker_with(tables(), 64);
    let buf = buf_of(&mut worker, &superframe);
    let pkt = Packet::parse(buf.head().data(), buf.len()).unwrap();
    let plan = Segmenter::new(buf.head().data(), &pkt, GsoKind::UdpL4, 1000).unwrap();
    assert_eq!(plan.count(), 3);
    let spec = EncapSpec {
        src_mac: ROUTER,
        dst_mac: ROUTER,
        vlan: None,
        src: "192.0.2.1".parse().unwrap(),
        dst: "192.0.2.2".parse().unwrap(),
        ttl: 64,
        format: &VXLAN,
        mss_option: false,
        vni: Vni::new(100).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    };
    let template = EncapTemplate::new(&spec).unwrap();
    let tunnel = Tunnel {
        shards: None,
        raised: None,
        template,
        format: FormatIndex::VXLAN,
        segment_max: 600,
        link: 0,
        vtep: 0,
        epoch: 1,
        frame_max: 600,
        ip_max: 0,
    };
    let all = take_all(&mut worker);
    worker.cut_oversize_datagrams(0, &buf, &plan, 586, &tunnel).finish(&mut worker, buf);
    assert_eq!(dropped(&worker), [(DropReason::NoFrames, 3)]);
    assert_eq!(all.len() + take_all(&mut worker).len(), 64, "the superframe's frame is free again");
}

/// The tenant's port has a group whose only rule does this with UDP to it, since a generation.
fn with_group(action: AclAction, generation: u64) -> Tables {
    let rule = AclRule {
        direction: Direction::Ingress,
        action,
        protocol: Protocol::UDP,
        remote: None,
        local_ports: PortRanges::default(),
        remote_ports: PortRanges::default(),
    };
    let group = AclGroup { id: "g".parse().unwrap(), stateful: false, rules: vec![rule] };
    let acl = PortAcl {
        groups: vec![Arc::new(group)],
        stateful: false,
        changed_in: generation,
        owned_since: 1,
    };
    let mut all = tables();
    let port = all.port(0).unwrap().clone();
    let port = PortEntry { acl: Some(Arc::new(acl)), epoch: generation, ..port };
    all.ports = Arc::new([Some(Arc::new(port))]);
    all.generation = generation;
    all
}

#[test]
fn what_is_flooded_is_judged_anew_when_the_groups_of_its_receiver_change() {
    let mut worker = worker_with(with_group(AclAction::Deny, 1), 64);
    let mut frame = datagram();
    frame[..6].copy_from_slice(&[0xff; 6]);
    let pkt = Packet::parse(&frame, frame.len()).unwrap();
    for _ in 0..2 {
        assert!(matches!(worker.judge_local(0, &frame, &pkt), Judgement::Deny(Some(_))));
    }
    worker.shared.tables.store(Arc::new(with_group(AclAction::Allow, 2)));
    worker.load_tables();
    assert!(matches!(worker.judge_local(0, &frame, &pkt), Judgement::Allow { .. }));
}

#[test]
fn a_packet_of_another_worker_is_judged_by_the_rules_by_which_it_was_sent() {
    // For want of a device, what passes is lost.
    let passes = DropReason::PortGone;
    for (action, judged) in [(AclAction::Deny, DropReason::AclDenied), (AclAction::Allow, passes)] {
        let other = if action == AclAction::Deny { AclAction::Allow } else { AclAction::Deny };
        // Be the sender behind or ahead.
        for (ours, senders) in [(2, 1), (1, 2)] {
            let mut worker = worker_with(with_group(other, ours), 64);
            for (tables, result) in [
                (with_group(action, senders), judged),
                (
                    with_group(other, ours),
                    if judged == passes { DropReason::AclDenied } else { passes },
                ),
            ] {
                let before = worker.counters.port(0).dropped(result);
                let buf = buf_of(&mut worker, &datagram());
                let pkt = Packet::parse(buf.head().data(), buf.len()).unwrap();
                worker.deliver_by(Arc::new(tables), 0, buf, &pkt, Offload::default());
                assert_eq!(worker.counters.port(0).dropped(result), before + 1, "{action:?}");
                assert_eq!(worker.tables.generation, ours);
            }
            assert_eq!(take_all(&mut worker).len(), 64);
        }
    }
}

#[test]
fn a_packet_of_another_worker_does_not_reach_a_port_that_took_its_receivers_place() {
    let mut sent = with_group(AclAction::Allow, 1);
    let port = sent.port(0).unwrap().clone();
    sent.ports = Arc::new([Some(Arc::new(PortEntry { id: "former".parse().unwrap(), ..port }))]);
    let mut worker = worker_with(with_group(AclAction::Allow, 2), 64);
    worker.attach_sinks(&[KnownDevice {
        role: Role::Tenant(0),
        facts: Facts {
            mtu: 1500,
            cutters: Cutters::all(Cutter::Dataplane),
            packet_only: false,
            unmarked: Offload::default(),
        },
        tap: false,
    }]);
    for (tables, gone, sent) in [(sent, 1, 0), (with_group(AclAction::Allow, 1), 1, 1)] {
        let buf = buf_of(&mut worker, &datagram());
        let pkt = Packet::parse(buf.head().data(), buf.len()).unwrap();
        worker.deliver_by(Arc::new(tables), 0, buf, &pkt, Offload::default());
        worker.finish_batch();
        assert_eq!(worker.counters.port(0).dropped(DropReason::PortGone), gone);
        assert_eq!(worker.counters.port(0).tx.packets.get(), sent);
    }
}
