//! Frames of shards into a worker, without the kernel: what is counted, and that nothing leaks.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::Vni;
use culvert_wire::encap::{DscpMode, EncapSpec};
use culvert_wire::eth::MacAddr;
use culvert_wire::format::SHARD;
use culvert_wire::packet::Packet;
use culvert_wire::segment::{GsoKind, Pieces};
use culvert_wire::shard::encode::{Content, Path, PathConfig, Scratch, Stamp, Superframe};
use culvert_wire::shard::{Keyring, Policy};

use super::super::Worker;
use super::super::device::Role;
use super::super::offload::Offload;
use super::super::tests::{tables, worker_with};
use crate::drops::DropReason;
use crate::tables::{Neighbour, Reach, Tables, Target, VtepEntry};

const OURS: [u8; 4] = [192, 0, 2, 1];
const THEIRS: [u8; 4] = [192, 0, 2, 2];
const NEAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const FAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const FRAMES: usize = 256;

/// The tenant of `tests.rs`, and one behind a VTEP, in a network of shards.
fn hosts() -> Tables {
    let mut tables = tables();
    let (source, ip) = (IpAddr::from(OURS), IpAddr::from(THEIRS));
    let vtep =
        VtepEntry { index: 0, ip, source, format: None, reach: Reach::Pending, changed_in: 1 };
    tables.vteps = Arc::new([Some(Arc::new(vtep))]);
    tables.vtep_of_ip = [(ip, 0)].into_iter().collect();
    let mut vnet = tables.vnet(0).unwrap().clone();
    vnet.format = tables.formats().by_name("shard").unwrap().0;
    let far = Target::Remote { vtep: 0, mtu: 0 };
    vnet.macs = [(NEAR, Target::Local(0)), (FAR, far)].into_iter().collect();
    let neighbour = Neighbour { mac: FAR, target: far };
    vnet.neighbours = [(IpAddr::from([10, 0, 0, 2]), neighbour)].into_iter().collect();
    tables.vnets = Arc::new([Some(Arc::new(vnet))]);
    tables.vnet_of_vni = Arc::new([(100, 0)].into_iter().collect());
    tables
}

/// The segments of one frame from the far tenant, as they are on the wire.
fn segments(frame: u32, payload: usize, keys: Keyring) -> Vec<Vec<u8>> {
    let spec = EncapSpec {
        src_mac: MacAddr([2, 0, 0, 0, 1, 2]),
        dst_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        vlan: None,
        src: THEIRS.into(),
        dst: OURS.into(),
        ttl: 64,
        format: &SHARD,
        mss_option: false,
        vni: Vni::new(100).unwrap(),
        df: true,
        dscp: DscpMode::Inherit,
    };
    let config = PathConfig { max_segment: 1460, policy: Policy::default(), keys };
    let path = Path::new(&spec, config).unwrap();
    let mut inner = [NEAR.0, FAR.0].concat();
    let len = (40 + payload) as u16;
    inner.extend([8, 0, 0x45, 0]);
    inner.extend(len.to_be_bytes());
    inner.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let sum = culvert_wire::checksum::Sum::default().add(&inner[14..34]).finish();
    inner[24..26].copy_from_slice(&sum.to_be_bytes());
    inner.extend([
        0x1f, 0x90, 0x9c, 0x40, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    let head = inner.clone();
    inner.extend((0..payload).map(|i| i as u8));
    let pkt = Packet::parse(&head, inner.len()).unwrap();
    let superframe =
        Superframe { head: &head, pkt: &pkt, kind: GsoKind::TcpV4, mss: 1400, fixed_id: false };
    let stamp = Stamp { frame, entropy: 7, inner_tos: 0, ip_id: 1 };
    let mut scratch = Scratch::default();
    let content = Content::Superframe(superframe, 0..payload);
    let encoded = path.encode(&content, &stamp, &mut scratch).unwrap();
    let plan = encoded.segmenter().unwrap();
    let each = (0..encoded.placement().shape().segments()).map(|i| {
        let (share, range) = encoded.segment(i);
        let body = [share, &inner[54 + range.start..54 + range.end]].concat();
        let mut segment = vec![0; plan.headers_len()];
        let sum = Pieces::new(&[&body], 0).sum(0..body.len()).unwrap();
        plan.emit(encoded.headers(), i, sum, &mut segment);
        segment.extend(body);
        segment
    });
    each.collect()
}

fn offer(worker: &mut Worker, segments: &[Vec<u8>]) {
    let off = Offload { known: true, ..Offload::default() };
    for segment in segments {
        assert!(worker.carry(Role::Underlay(0), segment, off));
    }
}

/// Frames of the arena that nobody has; the worker has none until they come back.
fn free(worker: &mut Worker) -> usize {
    let all: Vec<_> = std::iter::from_fn(|| worker.cache.alloc()).collect();
    let count = all.len();
    all.into_iter().for_each(|frame| worker.cache.free(frame));
    count
}

fn dropped(worker: &Worker, reason: DropReason) -> u64 {
    worker.counters.link(0).dropped(reason)
}

#[test]
fn a_frame_is_delivered_once_its_shares_are_there_and_counted() {
    let mut worker = worker_with(hosts(), FRAMES);
    let whole = segments(1, 60_000, Keyring::default());
    assert!(whole.len() > 40);
    offer(&mut worker, &whole);
    let counts = worker.shards.counts();
    assert_eq!((counts.len(), counts[0].0, counts[0].1.whole), (1, IpAddr::from(THEIRS), 1));
    // There is no device for it, so it got as far as its port.
    assert!(worker.counters.port(0).dropped(DropReason::PortGone) > 0);
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
    offer(&mut worker, &whole[..1]);
    assert_eq!(dropped(&worker, DropReason::ShardDuplicate), 1);
}

#[test]
fn what_waits_in_vain_is_given_back_and_counted() {
    let mut worker = worker_with(hosts(), FRAMES);
    // Two strata of eight: two shares, and four are needed.
    offer(&mut worker, &segments(2, 60_000, Keyring::default())[..10]);
    assert!(worker.shards.waits() && worker.shards.held_frames() == 10);
    worker.clear_shards();
    assert_eq!(dropped(&worker, DropReason::ShardEvicted), 10);
    assert_eq!(worker.shards.counts()[0].1.evicted, 1);
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
}

#[test]
fn nothing_of_a_vtep_that_nobody_knows_is_held() {
    let mut tables = hosts();
    tables.vtep_of_ip = Default::default();
    let mut worker = worker_with(tables, FRAMES);
    offer(&mut worker, &segments(3, 60_000, Keyring::default())[..5]);
    assert_eq!(dropped(&worker, DropReason::UnknownVtep), 5);
    assert!(!worker.shards.waits() && worker.shards.counts().is_empty());
    assert_eq!(free(&mut worker), FRAMES);
}

#[test]
fn damage_and_wrong_keys_are_told_apart() {
    let mut worker = worker_with(hosts(), FRAMES);
    let mut bad = segments(4, 20_000, Keyring::default());
    bad[0][60] ^= 1;
    offer(&mut worker, &bad[..1]);
    assert_eq!(dropped(&worker, DropReason::ShardBadOuterChecksum), 1);
    let key = culvert_wire::shard::Key::new(&[5; 16]).unwrap();
    let keys = Keyring::new([(5, key)], 5).unwrap();
    let keyed = segments(5, 20_000, keys);
    offer(&mut worker, &keyed);
    assert_eq!(dropped(&worker, DropReason::ShardKeyed), keyed.len() as u64);
    worker.clear_shards();
    assert_eq!(worker.shards.counts()[0].1.bad_blocks, 1);
    assert_eq!((worker.shards.held_frames(), free(&mut worker)), (0, FRAMES));
}
